//! Who holds each buffer: the manager's private record, which no NF can see or change.
//!
//! Every buffer a worker hands to an NF is written down here with the packet's place in its chain;
//! every descriptor that comes back is checked against it. A descriptor is accepted only from the
//! NF that was given the buffer, and only once. After a death, the buffers of the dead are found by
//! one walk over the table, wherever they were: in a ring, in the NF's hands, or kept by it.
#![forbid(unsafe_code)]

use nflib::descriptor::{ChainId, PortId};
use nflib::shm::BufferIndex;

/// A worker's number for one attached NF.
pub type Edge = u16;

/// What the manager remembers of a packet while an NF has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passage {
    /// The chain it travels.
    pub chain: ChainId,
    /// Position in the chain of the NF that has it now.
    pub hop: u8,
    /// The port it came in by.
    pub ingress: PortId,
    /// NFs visited so far, counting this one; bounds loops made by ToService.
    pub visits: u8,
}

/// Why a descriptor was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// No such buffer in this worker's share.
    UnknownBuffer,
    /// The buffer is not with this NF: never given, given back already, or another's.
    NotHolder,
}

const NOBODY: Edge = Edge::MAX;

#[derive(Clone, Copy, Debug)]
struct Slot {
    holder: Edge,
    passage: Passage,
}

/// The table of one worker's share of the buffers.
#[derive(Debug)]
pub struct OwnershipTable {
    first: BufferIndex,
    slots: Box<[Slot]>,
    held_buffers: usize,
}

impl OwnershipTable {
    /// Most NFs a worker can tell apart.
    pub const MAX_EDGES: usize = NOBODY as usize;

    /// A table for buffers `first..first + count`, none of them with an NF.
    #[must_use]
    pub fn new(first: BufferIndex, count: u32) -> Self {
        let free =
            Slot { holder: NOBODY, passage: Passage { chain: 0, hop: 0, ingress: 0, visits: 0 } };
        Self { first, slots: vec![free; count as usize].into(), held_buffers: 0 }
    }

    /// Buffers that NFs have.
    #[must_use]
    pub fn held_buffers(&self) -> usize {
        self.held_buffers
    }

    #[inline]
    fn slot_mut(&mut self, buffer: BufferIndex) -> Option<&mut Slot> {
        self.slots.get_mut(buffer.wrapping_sub(self.first) as usize)
    }

    /// Writes down that `buffer` goes to the NF behind `edge`.
    ///
    /// The buffer is the worker's own at this moment; that is an invariant of the worker.
    #[inline]
    pub fn give(&mut self, buffer: BufferIndex, edge: Edge, passage: Passage) {
        if let Some(slot) = self.slot_mut(buffer) {
            debug_assert_eq!(slot.holder, NOBODY, "buffer {buffer} was given twice");
            *slot = Slot { holder: edge, passage };
            self.held_buffers += 1;
        }
    }

    /// Accepts `buffer` back from the NF behind `edge`.
    ///
    /// # Errors
    /// [`Violation`] when the NF has no right to return it; nothing changes then.
    #[inline]
    pub fn take_back(&mut self, buffer: BufferIndex, edge: Edge) -> Result<Passage, Violation> {
        let slot = self.slot_mut(buffer).ok_or(Violation::UnknownBuffer)?;
        if slot.holder != edge {
            return Err(Violation::NotHolder);
        }
        slot.holder = NOBODY;
        let passage = slot.passage;
        self.held_buffers -= 1;
        Ok(passage)
    }

    /// Takes back every buffer of `edge`, appended to `out`. For an NF that is gone.
    pub fn reclaim(&mut self, edge: Edge, out: &mut Vec<BufferIndex>) {
        let first = self.first;
        for (buffer, slot) in (first..).zip(&mut self.slots) {
            if slot.holder == edge {
                slot.holder = NOBODY;
                self.held_buffers -= 1;
                out.push(buffer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    const HERE: Passage = Passage { chain: 3, hop: 1, ingress: 2, visits: 2 };

    #[test]
    fn a_buffer_comes_back_once_and_only_from_its_holder() {
        let mut table = OwnershipTable::new(100, 10);
        table.give(105, 1, HERE);
        assert_eq!(table.take_back(105, 2), Err(Violation::NotHolder));
        assert_eq!(table.take_back(105, 1), Ok(HERE));
        assert_eq!(table.take_back(105, 1), Err(Violation::NotHolder));
    }

    #[test]
    fn a_buffer_outside_the_share_is_unknown() {
        let mut table = OwnershipTable::new(100, 10);
        for buffer in [0, 99, 110, u32::MAX] {
            assert_eq!(table.take_back(buffer, 0), Err(Violation::UnknownBuffer));
        }
    }

    #[test]
    fn nobody_s_number_holds_nothing() {
        let mut table = OwnershipTable::new(0, 4);
        let nobody = u16::try_from(OwnershipTable::MAX_EDGES).unwrap();
        table.give(2, 7, HERE);
        assert_eq!(table.held_buffers(), 1);
        let mut out = Vec::new();
        table.reclaim(7, &mut out);
        assert_eq!((out, table.held_buffers()), (vec![2], 0));
        assert!(usize::from(nobody) >= OwnershipTable::MAX_EDGES, "edges stay below it");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Give(u32, Edge),
        TakeBack(u32, Edge),
        Reclaim(Edge),
    }

    proptest! {
        /// The model: a map from buffer to holder.
        #[test]
        fn the_table_agrees_with_a_map(steps in proptest::collection::vec(prop_oneof![
            (0u32..12, 0u16..3).prop_map(|(b, e)| Step::Give(b, e)),
            (0u32..14, 0u16..3).prop_map(|(b, e)| Step::TakeBack(b, e)),
            (0u16..3).prop_map(Step::Reclaim),
        ], 0..100)) {
            let mut table = OwnershipTable::new(0, 12);
            let mut model = HashMap::new();
            for step in steps {
                match step {
                    Step::Give(buffer, edge) => {
                        // The worker gives only what it has.
                        if let std::collections::hash_map::Entry::Vacant(e) = model.entry(buffer) {
                            e.insert(edge);
                            table.give(buffer, edge, HERE);
                        }
                    }
                    Step::TakeBack(buffer, edge) => {
                        let allowed = model.get(&buffer) == Some(&edge);
                        prop_assert_eq!(table.take_back(buffer, edge).is_ok(), allowed);
                        if allowed {
                            model.remove(&buffer);
                        }
                    }
                    Step::Reclaim(edge) => {
                        let mut got = Vec::new();
                        table.reclaim(edge, &mut got);
                        let mut expected: Vec<_> =
                            model.iter().filter(|(_, e)| **e == edge).map(|(b, _)| *b).collect();
                        expected.sort_unstable();
                        prop_assert_eq!(got, expected);
                        model.retain(|_, e| *e != edge);
                    }
                }
                prop_assert_eq!(table.held_buffers(), model.len());
            }
        }
    }
}
