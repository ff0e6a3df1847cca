//! Where an NF's packets come from: a ring from each worker of the manager, and a direct edge from
//! each NF that may come before.
#![forbid(unsafe_code)]

use crate::descriptor::Delivery;
use crate::shm::{Consumer, Doorbell, RingMemory};

/// Turns at a core after an NF that feeds this one there within which this one is in turn.
const SOON_TURNS: u32 = 3;

/// Who pushes to an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A worker of the manager.
    Lane,
    /// Another NF; edges are numbered as they come. `closing` when it pushes no more.
    Edge { nf: u16, number: u64, closing: bool },
}

/// One ring to read.
pub(crate) struct Input<M> {
    pub(crate) ring: Consumer<Delivery, M>,
    pub(crate) source: Source,
    /// How to wake the NF that pushes here, when it waits for room.
    pusher_bell: Option<Doorbell>,
}

/// All inputs, each looked at once a turn.
pub(crate) struct Inputs<M> {
    pub(crate) all: Vec<Input<M>>,
    /// Whose turn it is.
    at: usize,
    /// Edges opened so far.
    edges: u64,
}

impl<M: RingMemory> Inputs<M> {
    pub(crate) fn new(lanes: impl Iterator<Item = Consumer<Delivery, M>>) -> Self {
        let all =
            lanes.map(|ring| Input { ring, source: Source::Lane, pusher_bell: None }).collect();
        Self { all, at: 0, edges: 0 }
    }

    /// The input whose turn it is; the next call gives the one after it. There is at least one.
    #[inline]
    pub(crate) fn next(&mut self) -> usize {
        if self.at >= self.all.len() {
            self.at = 0;
        }
        self.at += 1;
        self.at - 1
    }

    /// True when nothing waits anywhere.
    pub(crate) fn are_empty(&self) -> bool {
        self.all.iter().all(|input| input.ring.is_empty())
    }

    /// Whether this NF takes its turn at a core that it shares soon after an NF that feeds it there. `None` when
    /// there is no telling, for what is here comes from other cores.
    pub(crate) fn are_in_turn(&self, core: u32) -> Option<bool> {
        let (mut late, mut nearest, mut waits_elsewhere) = (false, None, false);
        for Input { ring, pusher_bell, .. } in &self.all {
            let waits = !ring.is_empty();
            match pusher_bell.as_ref().and_then(|bell| bell.turns_since(core)) {
                Some(turns) => {
                    nearest = Some(nearest.unwrap_or(turns).min(turns));
                    late |= waits;
                }
                None => waits_elsewhere |= waits,
            }
        }
        match nearest? {
            ..=SOON_TURNS => Some(true),
            // Nothing here is out of turn as well: it was not this NF's.
            _ => (late || !waits_elsewhere).then_some(false),
        }
    }

    /// Wakes the NFs that wait for room here and shall have it: not before half of the ring is free, or
    /// pusher and taker would take turns on the core for a burst each.
    #[inline]
    pub(crate) fn offer_room(&self) {
        for Input { ring, pusher_bell, .. } in &self.all {
            if let Some(bell) = pusher_bell
                && bell.wants_room()
                && ring.waiting() <= ring.capacity() / 2
            {
                bell.ring_for_room();
            }
        }
    }

    /// Reads a ring from an NF from now on, beside one that this NF number may have already: who
    /// pushes there has not heard yet of the new one.
    pub(crate) fn open_edge(
        &mut self,
        nf: u16,
        ring: Consumer<Delivery, M>,
        pusher_bell: Option<Doorbell>,
    ) {
        let source = Source::Edge { nf, number: self.edges, closing: false };
        self.edges += 1;
        self.all.push(Input { ring, source, pusher_bell });
    }

    /// The oldest ring from this NF gets nothing more: it is forgotten once it is empty. False when
    /// there is none.
    pub(crate) fn close_edge(&mut self, nf: u16) -> bool {
        let of_nf = |&source: &Source| match source {
            Source::Edge { nf: from, number, closing: false } if from == nf => Some(number),
            _ => None,
        };
        let sources = self.all.iter_mut().map(|input| &mut input.source);
        match sources.filter(|s| of_nf(s).is_some()).min_by_key(|s| of_nf(s)) {
            Some(Source::Edge { closing, .. }) => {
                *closing = true;
                true
            }
            _ => false,
        }
    }

    /// Forgets an input. Its place is taken by the last, which is looked at next.
    pub(crate) fn forget(&mut self, number: usize) {
        self.all.swap_remove(number);
        self.at = number;
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::shm::{Doorbells, HeapRing, Producer};

    const CORE: u32 = 1;

    #[test]
    fn an_nf_is_in_turn_soon_after_one_that_feeds_it_on_its_core() {
        let bells = Arc::new(Doorbells::create(8).unwrap());
        let bell = |nf| bells.bell(nf).unwrap();
        let ring = || HeapRing::new(4, 0);
        let (lane, near, far) = (ring(), ring(), ring());
        let mut inputs = Inputs::new(std::iter::once(Consumer::new(lane.clone())));
        let turn = |inputs: &Inputs<HeapRing>, others: u16| {
            (0..others).for_each(|_| _ = bell(7).take_turn(CORE));
            bell(0).take_turn(CORE);
            inputs.are_in_turn(CORE)
        };
        assert_eq!(turn(&inputs, 0), None, "nobody feeds it here");
        inputs.open_edge(1, Consumer::new(near), Some(bell(1)));
        inputs.open_edge(2, Consumer::new(far), Some(bell(2)));
        bell(2).take_turn(CORE + 1);
        assert_eq!(turn(&inputs, 0), None, "nor does one that has not run here");
        bell(1).take_turn(CORE);
        assert_eq!(turn(&inputs, 0), Some(true));
        bell(1).take_turn(CORE);
        assert_eq!(turn(&inputs, 2), Some(true), "others that come in between do no harm");
        assert_eq!(turn(&inputs, 0), Some(false), "it comes again, and its feeder has not");
        bell(2).take_turn(CORE);
        assert_eq!(turn(&inputs, 0), Some(true), "any of them");
        Producer::new(lane).push_burst(&[Delivery::default()]).unwrap();
        assert_eq!(turn(&inputs, 3), None, "it came for packets from elsewhere");
    }
}
