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

use nflib::descriptor::{NO_PORT, PortId, RouteId};
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
    /// Position in the route of the NF that the worker gave it to; [`OFF_ROUTE`] for none. Inside
    /// the trusted domain the packet may be elsewhere by now.
    pub hop: u8,
    /// The port it came in by; [`NO_PORT`] if an NF made it.
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

/// Holder and passage of one buffer in one word: written at once, and compared at once.
///
/// ```text
/// 63    56 55     48 47     40 39  32 31   16 15    0
/// │ epoch │ visits  │ ingress │ hop  │ route │ holder │
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot(u64);

impl Slot {
    const FREE: Self = Self(NOBODY as u64);

    #[inline]
    fn new(holder: Holder, passage: Passage) -> Self {
        let Passage { route, hop, ingress, visits, epoch } = passage;
        let far = u32::from_le_bytes([hop, ingress, visits, epoch]);
        Self(u64::from(holder) | u64::from(route) << 16 | u64::from(far) << 32)
    }

    #[inline]
    fn holder(self) -> Holder {
        self.0 as Holder
    }

    #[inline]
    fn passage(self) -> Passage {
        let [hop, ingress, visits, epoch] = ((self.0 >> 32) as u32).to_le_bytes();
        Passage { route: (self.0 >> 16) as RouteId, hop, ingress, visits, epoch }
    }
}

/// The table of one worker's share of the buffers.
#[derive(Debug)]
pub struct OwnershipTable {
    first: BufferIndex,
    slots: Box<[Slot]>,
    held_buffers: usize,
    accounts: Accounts,
}

/// How many buffers with packets of ports each has: an isolated NF, or one route inside the trusted
/// domain. Who of the domain has them the manager does not know, but whose traffic they are it does.
/// What was lent is counted and bounded elsewhere.
#[derive(Debug, Default)]
struct Accounts {
    isolated: Vec<usize>,
    routes: Vec<usize>,
}

impl Accounts {
    #[inline]
    fn held(&self, holder: Holder, route: RouteId) -> usize {
        let (accounts, at) = match holder {
            TRUSTED => (&self.routes, route),
            _ => (&self.isolated, holder),
        };
        accounts.get(usize::from(at)).copied().unwrap_or(0)
    }

    #[inline]
    fn add(&mut self, holder: Holder, passage: Passage, buffers: usize) {
        if let Some(held) = self.held_mut(holder, passage) {
            *held += buffers;
        }
    }

    #[inline]
    fn subtract(&mut self, holder: Holder, passage: Passage, buffers: usize) {
        if let Some(held) = self.held_mut(holder, passage) {
            *held -= buffers;
        }
    }

    #[inline]
    fn held_mut(&mut self, holder: Holder, passage: Passage) -> Option<&mut usize> {
        if passage.ingress == NO_PORT {
            return None;
        }
        let (accounts, at) = match holder {
            TRUSTED => (&mut self.routes, usize::from(passage.route)),
            _ => (&mut self.isolated, usize::from(holder)),
        };
        if at >= accounts.len() {
            accounts.resize(at + 1, 0);
        }
        accounts.get_mut(at)
    }
}

impl OwnershipTable {
    /// Most NFs a worker can tell apart.
    pub const MAX_NFS: usize = TRUSTED as usize;

    /// A table for buffers `first..first + count`, none of them with an NF.
    #[must_use]
    pub fn new(first: BufferIndex, count: u32) -> Self {
        let slots = vec![Slot::FREE; count as usize].into();
        Self { first, slots, held_buffers: 0, accounts: Accounts::default() }
    }

    /// Buffers that NFs have.
    #[must_use]
    pub fn held_buffers(&self) -> usize {
        self.held_buffers
    }

    /// Buffers that an isolated NF has; of the trusted domain, that packets of this route take up in
    /// it. Without those that were lent.
    #[must_use]
    #[inline]
    pub fn held_by(&self, holder: Holder, route: RouteId) -> usize {
        self.accounts.held(holder, route)
    }

    #[inline]
    fn slot(&self, buffer: BufferIndex) -> Option<Slot> {
        self.slots.get(buffer.wrapping_sub(self.first) as usize).copied()
    }

    /// Writes down that `buffer` goes to `holder`.
    ///
    /// The buffer is the worker's own at this moment; that is an invariant of the worker.
    #[inline]
    pub fn give(&mut self, buffer: BufferIndex, holder: Holder, passage: Passage) {
        self.give_run(std::iter::once(buffer), holder, passage);
    }

    /// Writes down that all of `buffers` go to `holder`, in the same passage.
    #[inline]
    pub fn give_run(
        &mut self,
        buffers: impl Iterator<Item = BufferIndex>,
        holder: Holder,
        passage: Passage,
    ) {
        let given = Slot::new(holder, passage);
        let (first, slots) = (self.first, &mut self.slots[..]);
        let mut count = 0;
        for buffer in buffers {
            if let Some(slot) = slots.get_mut(buffer.wrapping_sub(first) as usize) {
                debug_assert_eq!(slot.holder(), NOBODY, "buffer {buffer} was given twice");
                *slot = given;
                count += 1;
            }
        }
        self.held_buffers += count;
        self.accounts.add(holder, passage, count);
    }

    /// The passage of the packet in `buffer`, if `holder` has it.
    ///
    /// # Errors
    /// [`Violation`] when it has not.
    #[inline]
    pub fn passage(&self, buffer: BufferIndex, holder: Holder) -> Result<Passage, Violation> {
        let slot = self.slot(buffer).ok_or(Violation::UnknownBuffer)?;
        if slot.holder() == holder { Ok(slot.passage()) } else { Err(Violation::NotHolder) }
    }

    /// Accepts `buffer` back from `holder`.
    ///
    /// # Errors
    /// [`Violation`] when the holder has no right to return it; nothing changes then.
    #[inline]
    pub fn take_back(&mut self, buffer: BufferIndex, holder: Holder) -> Result<Passage, Violation> {
        let passage = self.passage(buffer, holder)?;
        self.take_back_run(&[buffer], |buffer| Some(*buffer), holder, passage);
        Ok(passage)
    }

    /// Accepts back from `holder` the values in front whose buffer it has in just this passage.
    /// Ends at the first that it has not, or of which `buffer` tells none. Returns how many.
    #[inline]
    pub fn take_back_run<T>(
        &mut self,
        values: &[T],
        buffer: impl Fn(&T) -> Option<BufferIndex>,
        holder: Holder,
        passage: Passage,
    ) -> usize {
        let given = Slot::new(holder, passage);
        let (first, slots) = (self.first, &mut self.slots[..]);
        let mut count = 0;
        for value in values {
            let slot = buffer(value)
                .and_then(|buffer| slots.get_mut(buffer.wrapping_sub(first) as usize))
                .filter(|slot| **slot == given);
            let Some(slot) = slot else { break };
            *slot = Slot::FREE;
            count += 1;
        }
        self.held_buffers -= count;
        if count > 0 {
            self.accounts.subtract(holder, passage, count);
        }
        count
    }

    /// Every buffer that an NF has: which, who, and the packet's passage.
    pub fn held(&self) -> impl Iterator<Item = (BufferIndex, Holder, Passage)> + '_ {
        let slots = (self.first..).zip(&self.slots).filter(|(_, slot)| **slot != Slot::FREE);
        slots.map(|(buffer, slot)| (buffer, slot.holder(), slot.passage()))
    }

    /// Gives the packets that NFs have epoch 0, so that the other numbers can be used anew.
    pub fn forget_epochs(&mut self) {
        for slot in self.slots.iter_mut().filter(|slot| **slot != Slot::FREE) {
            *slot = Slot::new(slot.holder(), Passage { epoch: 0, ..slot.passage() });
        }
    }

    /// Takes back every buffer of `holder`, with its packet's passage, appended to `out`. For one
    /// who is gone.
    pub fn reclaim(&mut self, holder: Holder, out: &mut Vec<(BufferIndex, Passage)>) {
        let first = self.first;
        for (buffer, slot) in (first..).zip(&mut self.slots) {
            if slot.holder() == holder {
                let passage = slot.passage();
                out.push((buffer, passage));
                *slot = Slot::FREE;
                self.held_buffers -= 1;
                self.accounts.subtract(holder, passage, 1);
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

    #[test]
    fn a_run_ends_at_the_first_that_is_not_like_it() {
        let run = |table: &mut OwnershipTable, buffers: &[u32]| {
            table.take_back_run(buffers, |&b| (b != 99).then_some(b), TRUSTED, HERE)
        };
        let mut table = OwnershipTable::new(0, 100);
        table.give_run(0..100, TRUSTED, HERE);
        assert_eq!(run(&mut table, &[5, 6, 5, 7]), 2, "the second time it is not with the holder");
        assert_eq!(run(&mut table, &[8, 100, 9]), 1, "there is no such buffer");
        assert_eq!(run(&mut table, &[10, 99, 11]), 1, "the caller says no");
        let elsewhere = Passage { visits: 3, ..HERE };
        assert_eq!(table.take_back(12, TRUSTED), Ok(HERE));
        table.give(12, TRUSTED, elsewhere);
        assert_eq!(run(&mut table, &[13, 12]), 1, "given in another passage");
        assert_eq!(table.take_back(14, TRUSTED), Ok(HERE));
        table.give(14, 3, HERE);
        assert_eq!(run(&mut table, &[15, 14]), 1, "with another holder");
        assert_eq!(run(&mut table, &[]), 0);
        assert_eq!(table.held_buffers(), 94);
        assert_eq!(table.passage(12, TRUSTED), Ok(elsewhere));
        table.forget_epochs();
        assert_eq!(table.passage(12, TRUSTED), Ok(Passage { epoch: 0, ..elsewhere }));
        assert_eq!(table.passage(13, TRUSTED), Err(Violation::NotHolder));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Give(u32, Holder),
        TakeBack(u32, Holder),
        TakeBackRun(Vec<u32>, Holder),
        Reclaim(Holder),
    }

    proptest! {
        /// The model: a map from buffer to holder.
        #[test]
        fn the_table_agrees_with_a_map(steps in proptest::collection::vec(prop_oneof![
            (0u32..12, 0u16..3).prop_map(|(b, e)| Step::Give(b, e)),
            (0u32..14, 0u16..3).prop_map(|(b, e)| Step::TakeBack(b, e)),
            (proptest::collection::vec(0u32..14, 0..6), 0u16..3)
                .prop_map(|(run, e)| Step::TakeBackRun(run, e)),
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
                    Step::TakeBackRun(run, edge) => {
                        let allowed =
                            run.iter().take_while(|&b| model.remove_entry(b).is_some_and(|(b, e)| {
                                if e != edge {
                                    model.insert(b, e);
                                }
                                e == edge
                            })).count();
                        let got = table.take_back_run(&run, |&b| Some(b), edge, HERE);
                        prop_assert_eq!(got, allowed);
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
                for edge in 0..3 {
                    let held = model.values().filter(|e| **e == edge).count();
                    prop_assert_eq!(table.held_by(edge, HERE.route), held);
                }
            }
        }
    }
}
