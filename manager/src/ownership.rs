//! Who holds each buffer: the manager's private record, which no NF can see or change.
//!
//! Every buffer a worker hands to an NF is written down here with the packet's place in its chain;
//! every descriptor that comes back is checked against it. A descriptor is accepted only from a
//! holder, and only once.
//!
//! A holder is one isolated NF, or the trusted domain as a whole: inside it, NFs hand packets to each
//! other without asking. After the death of an isolated NF its buffers are found by one walk over the
//! table; of one in the domain, by what it left in its rings (`nflib::shm`, `Remains`).
#![forbid(unsafe_code)]

use nflib::descriptor::{PortId, RouteId};
use nflib::shm::BufferIndex;

/// Who holds a buffer: the number of an isolated NF, or [`TRUSTED`].
pub type Holder = u16;
/// The trusted domain: any NF in it.
pub const TRUSTED: Holder = u16::MAX - 1;
/// The hop of a packet that an NF sent to a service which its route does not contain.
pub const OFF_ROUTE: u8 = u8::MAX;

/// What the manager remembers of a packet while an NF has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passage {
    /// The route it travels.
    pub route: RouteId,
    /// Position in the route of the NF that the worker gave it to; [`OFF_ROUTE`] for none.
    pub hop: u8,
    /// The port it came in by; [`NO_PORT`](nflib::descriptor::NO_PORT) if an NF made it.
    pub ingress: PortId,
    /// Times the worker gave it to an NF or moved it to another chain; bounds loops that NFs make.
    pub visits: u8,
    /// The worker's epoch when the packet came in: changes wait for the packets of older ones. 0: so
    /// long ago that nobody knows.
    pub epoch: u8,
}

/// Why a descriptor was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// No such buffer in this worker's share.
    UnknownBuffer,
    /// The buffer is not with this NF: never given, given back already, or another's.
    NotHolder,
}

const NOBODY: Holder = Holder::MAX;

#[derive(Clone, Copy, Debug)]
struct Slot {
    holder: Holder,
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
    pub const MAX_NFS: usize = TRUSTED as usize;

    /// A table for buffers `first..first + count`, none of them with an NF.
    #[must_use]
    pub fn new(first: BufferIndex, count: u32) -> Self {
        let passage = Passage { route: 0, hop: 0, ingress: 0, visits: 0, epoch: 0 };
        let free = Slot { holder: NOBODY, passage };
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

    /// Writes down that `buffer` goes to `holder`.
    ///
    /// The buffer is the worker's own at this moment; that is an invariant of the worker.
    #[inline]
    pub fn give(&mut self, buffer: BufferIndex, holder: Holder, passage: Passage) {
        if let Some(slot) = self.slot_mut(buffer) {
            debug_assert_eq!(slot.holder, NOBODY, "buffer {buffer} was given twice");
            *slot = Slot { holder, passage };
            self.held_buffers += 1;
        }
    }

    /// Accepts `buffer` back from `holder`.
    ///
    /// # Errors
    /// [`Violation`] when the holder has no right to return it; nothing changes then.
    #[inline]
    pub fn take_back(&mut self, buffer: BufferIndex, holder: Holder) -> Result<Passage, Violation> {
        let slot = self.slot_mut(buffer).ok_or(Violation::UnknownBuffer)?;
        if slot.holder != holder {
            return Err(Violation::NotHolder);
        }
        slot.holder = NOBODY;
        let passage = slot.passage;
        self.held_buffers -= 1;
        Ok(passage)
    }

    /// Gives the packets that NFs have epoch 0, so that the other numbers can be used anew.
    pub fn forget_epochs(&mut self) {
        for slot in &mut self.slots {
            slot.passage.epoch = 0;
        }
    }

    /// Takes back every buffer of `holder`, with its packet's passage, appended to `out`. For one
    /// who is gone.
    pub fn reclaim(&mut self, holder: Holder, out: &mut Vec<(BufferIndex, Passage)>) {
        let first = self.first;
        for (buffer, slot) in (first..).zip(&mut self.slots) {
            if slot.holder == holder {
                slot.holder = NOBODY;
                self.held_buffers -= 1;
                out.push((buffer, slot.passage));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    const HERE: Passage = Passage { route: 3, hop: 1, ingress: 2, visits: 2, epoch: 9 };

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
        table.give(2, 7, HERE);
        assert_eq!(table.held_buffers(), 1);
        let mut out = Vec::new();
        table.reclaim(7, &mut out);
        assert_eq!((out, table.held_buffers()), (vec![(2, HERE)], 0));
        assert!(usize::from(TRUSTED) >= OwnershipTable::MAX_NFS, "numbers of NFs stay below it");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Give(u32, Holder),
        TakeBack(u32, Holder),
        Reclaim(Holder),
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
                            model.iter().filter(|(_, e)| **e == edge).map(|(b, _)| (*b, HERE)).collect();
                        expected.sort_unstable_by_key(|(buffer, _)| *buffer);
                        prop_assert_eq!(got, expected);
                        model.retain(|_, e| *e != edge);
                    }
                }
                prop_assert_eq!(table.held_buffers(), model.len());
            }
        }
    }
}
