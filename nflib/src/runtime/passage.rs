//! A packet's way through an NF: from an input ring through the NF to an output ring, in an order
//! that tells, at every instant, which packets the NF has.
//!
//! An NF dies at any instant, and the manager must then find every packet it had, and none that it
//! had passed on. So each packet is evidenced in exactly one way at any time. A burst goes through
//! these steps, and their order is the contract with
//! [`remaining_buffers`](crate::shm::remaining_buffers):
//!
//! | | step | evidence of a packet of the burst |
//! |---|---|---|
//! | 1 | read a burst from one input, which moves the ring's `taken` | unreleased in the input |
//! | 2 | run the NF; set the hold bit of each packet it newly holds | the same, or the bit |
//! | 3 | push to every output, one burst each; clear the hold bit, if set, of what was pushed | pushed and unsettled: no longer here |
//! | 4 | keep what did not fit, in order; set its hold bit | the bit |
//! | 5 | release the input | |
//! | 6 | settle every output that was pushed to | |
//!
//! Later pushes of leftovers, and of held packets that a tick or a message released, are steps 3, 4
//! and 6 alone. Between two settles there is at most one push to an output, so the slots that are
//! evidence (at most the ring's capacity) are never written over. In the common case, nothing held
//! and nothing left over, no bit is touched.
//!
//! Whatever is looked at ([`Lookout`]) is told of before steps 2 and 3.
//!
//! While anything is left over, no input is read: what is not taken stays where its sender sees it.
#![forbid(unsafe_code)]

use crate::burst::MAX_BURST_PKTS;
use crate::burst::Run;
use crate::context::Departure;
use crate::engine::Engine;
use crate::nf::{Action, NetworkFunction};
use crate::observe::NOBODY;
use crate::shm::{Recorder, RingError, RingMemory};

use super::inputs::{Inputs, Source};
use super::lookout::Lookout;
use super::marks::{HoldMap, Marks};
use super::outputs::Outputs;

/// An NF between its rings.
pub(crate) struct Passage<N, M, H> {
    pub(crate) engine: Engine<N>,
    pub(crate) inputs: Inputs<M>,
    pub(crate) outputs: Outputs<M>,
    marks: Marks<H>,
    /// Packets taken from the inputs.
    pub(crate) rx_pkts: u64,
    /// Packets decided about, other than held.
    pub(crate) tx_pkts: u64,
    /// Packets the NF dropped.
    pub(crate) drop_pkts: u64,
    /// Packets taken from an input at once, and the most that may be.
    burst_pkts: usize,
    max_burst_pkts: usize,
    /// Keeps the last packets taken, for when the NF dies of one.
    pub(crate) recorder: Recorder,
    /// Who tells of packets that are looked at; none without a manager.
    pub(crate) lookout: Option<Box<Lookout>>,
}

/// How long a burst may take: its slots are the pusher's again only afterwards, and until then a
/// costly NF looks like one that hangs.
const MAX_BURST_NS: u64 = 2_000_000;

impl<N: NetworkFunction, M: RingMemory, H: HoldMap> Passage<N, M, H> {
    /// `holds` is the NF's hold map, without any bit set.
    pub(crate) fn new(engine: Engine<N>, inputs: Inputs<M>, outputs: Outputs<M>, holds: H) -> Self {
        let marks = Marks::new(holds);
        Self {
            engine,
            inputs,
            outputs,
            marks,
            rx_pkts: 0,
            tx_pkts: 0,
            drop_pkts: 0,
            burst_pkts: MAX_BURST_PKTS,
            max_burst_pkts: MAX_BURST_PKTS,
            recorder: Recorder::off(),
            lookout: None,
        }
    }

    /// Takes no more packets at once than so many, at least one.
    pub(super) fn limit_burst(&mut self, pkts: usize) {
        self.max_burst_pkts = pkts.clamp(1, MAX_BURST_PKTS);
        self.burst_pkts = self.burst_pkts.min(self.max_burst_pkts);
    }

    /// Takes fewer packets at once from an NF that needs so long for each that a whole burst would
    /// take longer than some milliseconds.
    pub(super) fn adapt_burst(&mut self, pkt_ns: u64) {
        let fitting = usize::try_from(MAX_BURST_NS / pkt_ns.max(1)).unwrap_or(usize::MAX);
        self.burst_pkts = fitting.clamp(1, self.max_burst_pkts);
    }

    /// One look at what was left over, at every input and at the clock. Returns the packets moved.
    ///
    /// # Errors
    /// The manager broke a ring.
    pub(crate) fn turn(&mut self, now_ns: u64) -> Result<usize, RingError> {
        let mut moved_pkts = 0;
        if self.outputs.have_leftovers() {
            moved_pkts += self.pass_on(None, now_ns)?;
        }
        for _ in 0..self.inputs.all.len() {
            if self.outputs.have_leftovers() {
                break;
            }
            let input = self.inputs.next();
            moved_pkts += self.serve(input, now_ns)?;
        }
        if self.engine.tick_if_due(now_ns) {
            moved_pkts += self.pass_on(None, now_ns)?;
        }
        Ok(moved_pkts)
    }

    /// A burst of one input, through all steps. Returns its packets.
    fn serve(&mut self, number: usize, now_ns: u64) -> Result<usize, RingError> {
        let input = &mut self.inputs.all[number];
        let count =
            match (input.ring.read_burst(&mut self.engine.room()[..self.burst_pkts]), input.source)
            {
                (Ok(0), Source::Edge { closing: true, .. }) => {
                    self.inputs.forget(number);
                    return Ok(0);
                }
                (Ok(count), _) => count,
                (Err(error), Source::Lane) => return Err(error),
                (Err(error), Source::Edge { nf, .. }) => {
                    tracing::warn!("NF {nf} broke the ring from it: {error}; it is read no more");
                    self.inputs.forget(number);
                    return Ok(0);
                }
            };
        if count > 0 {
            if self.recorder.is_due(now_ns) {
                self.record(number, count, now_ns);
            }
            self.rx_pkts += count as u64;
            let is_watched = self.is_watched();
            if is_watched {
                self.tell_of_arrivals(number, count);
            }
            self.engine.run(count, now_ns);
            if is_watched {
                self.tell_of_decisions();
            }
            self.pass_unwatched(Some(number), now_ns)?;
        }
        Ok(count)
    }

    /// Keeps the burst that was just read, before the NF can die of it.
    #[cold]
    #[inline(never)]
    fn record(&mut self, input: usize, count: usize, now_ns: u64) {
        let peer = match self.inputs.all[input].source {
            Source::Lane => NOBODY,
            Source::Edge { nf, .. } => nf,
        };
        let first_number = self.rx_pkts + 1;
        self.recorder.record(&self.engine.arrivals()[..count], peer, first_number, now_ns);
    }

    /// Steps 2 (its second half) to 6: what the NF held and what it decided about. `input` is the
    /// one the burst came by. Returns the packets that moved.
    ///
    /// # Errors
    /// The manager broke a ring.
    pub(crate) fn pass_on(
        &mut self,
        input: Option<usize>,
        now_ns: u64,
    ) -> Result<usize, RingError> {
        if self.is_watched() {
            self.tell_of_decisions();
        }
        self.pass_unwatched(input, now_ns)
    }

    fn pass_unwatched(&mut self, input: Option<usize>, now_ns: u64) -> Result<usize, RingError> {
        if self.engine.has_newly_held() {
            for buffer in self.engine.take_newly_held() {
                self.marks.set(buffer);
            }
        }
        let moved_pkts = match self.push_at_once(now_ns)? {
            Some(moved_pkts) => moved_pkts,
            None => self.queue_and_push(now_ns)?,
        };
        self.engine.forget_decided();
        if self.outputs.have_leftovers() {
            self.outputs.mark_leftovers(&mut self.marks);
        }
        if let Some(input) = input.and_then(|number| self.inputs.all.get_mut(number)) {
            input.ring.release();
        }
        self.outputs.settle();
        Ok(moved_pkts)
    }

    /// Whether anything of a burst may have to be told.
    #[inline]
    fn is_watched(&self) -> bool {
        self.lookout.as_ref().is_some_and(|lookout| lookout.is_on())
    }

    #[cold]
    #[inline(never)]
    fn tell_of_arrivals(&mut self, input: usize, count: usize) {
        let peer = match self.inputs.all[input].source {
            Source::Lane => None,
            Source::Edge { nf, .. } => Some(nf),
        };
        if let Some(lookout) = &mut self.lookout {
            lookout.came(&self.engine.arrivals()[..count], peer);
        }
    }

    #[cold]
    #[inline(never)]
    fn tell_of_decisions(&mut self) {
        let Some(lookout) = &mut self.lookout else { return };
        lookout.holds(self.engine.newly_held());
        let (packets, runs, _) = self.engine.decided();
        for &Run { action, start, end } in runs {
            lookout.decided(&packets[start..end], action);
        }
        lookout.departs(&self.engine.out);
    }

    /// Step 3, when the same was decided about all packets of a burst, and all go the same way.
    #[inline]
    fn push_at_once(&mut self, now_ns: u64) -> Result<Option<usize>, RingError> {
        let (packets, runs, one_hop) = self.engine.decided();
        let &[Run { action, start, end }] = runs else { return Ok(None) };
        if !one_hop || !self.engine.out.is_empty() || self.outputs.have_leftovers() {
            return Ok(None);
        }
        let packets = &packets[start..end];
        let moved_pkts = self.outputs.push_at_once(packets, action, &mut self.marks, now_ns)?;
        if moved_pkts.is_some() {
            self.tx_pkts += packets.len() as u64;
            self.drop_pkts += if action == Action::Drop { packets.len() as u64 } else { 0 };
        }
        Ok(moved_pkts)
    }

    /// Step 3 in general: each packet is queued for its output, then each output gets its burst.
    fn queue_and_push(&mut self, now_ns: u64) -> Result<usize, RingError> {
        let (packets, runs, _) = self.engine.decided();
        for &Run { action, start, end } in runs {
            let packets = &packets[start..end];
            self.tx_pkts += packets.len() as u64;
            self.drop_pkts += if action == Action::Drop { packets.len() as u64 } else { 0 };
            self.outputs.queue_run(packets, action);
        }
        for Departure { slot, action } in self.engine.out.drain(..) {
            self.tx_pkts += 1;
            self.drop_pkts += u64::from(action == Action::Drop);
            self.outputs.queue_run(std::slice::from_ref(slot.lease.descriptor()), action);
        }
        self.outputs.push_all(&mut self.marks, now_ns)
    }
}

#[cfg(all(test, not(loom)))]
#[path = "passage_tests.rs"]
mod tests;
