//! The packets taken at once.
#![forbid(unsafe_code)]

use crate::context::{Context, Departure};
use crate::nf::Action;
use crate::packet::{Packet, Slot, bytes_of};
use crate::shm::{Lease, PacketMemory};

/// The most packets in one burst. What a burst costs by itself (looks at the clock, at rings and for those who
/// want to see packets) is more than half of a hop in bursts of 64; 256 are no faster than 128.
pub const MAX_BURST_PKTS: usize = 128;

/// Packets that lie one behind the other in a burst, and about which the same was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Never [`Action::Hold`].
    pub(crate) action: Action,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// What was decided about a burst whose packets stay where they came: as long as an NF decides from
/// the first packet to the last, and releases none that it held, a decision is a count. All else is
/// written down packet by packet, behind these ([`Context::depart`]).
#[derive(Debug)]
pub(crate) struct Decisions {
    /// Runs that have ended, in order.
    runs: Vec<Run>,
    /// The run that goes on, from `start` to `upto`. [`Action::Hold`] once the order was left: then no run
    /// goes on.
    action: Action,
    start: usize,
    /// Packets before this position are decided.
    upto: usize,
}

impl Decisions {
    pub(crate) fn new() -> Self {
        let runs = Vec::with_capacity(MAX_BURST_PKTS);
        Self { runs, action: Action::Next, start: 0, upto: 0 }
    }

    /// Forgets all, for a new burst.
    #[inline]
    pub(crate) fn clear(&mut self) {
        self.runs.clear();
        (self.action, self.start, self.upto) = (Action::Next, 0, 0);
    }

    /// The runs, once the burst is [concluded](Burst::conclude).
    #[inline]
    pub(crate) fn runs(&self) -> &[Run] {
        &self.runs
    }

    #[inline]
    fn end_run(&mut self) {
        let Self { action, start, upto: end, .. } = *self;
        if start < end {
            self.runs.push(Run { action, start, end });
        }
        self.start = end;
    }

    fn begin_run(&mut self, action: Action) {
        self.end_run();
        self.action = action;
    }

    fn leave_order(&mut self) {
        self.begin_run(Action::Hold);
    }

    fn are_in_order(&self) -> bool {
        self.action != Action::Hold
    }
}

/// The packets taken at once, each either still here or decided.
pub struct Burst<'a> {
    memory: &'a PacketMemory,
    leases: &'a mut [Lease],
    decisions: &'a mut Decisions,
    first_arrival: u64,
}

impl<'a> Burst<'a> {
    #[inline]
    pub(crate) fn new(
        memory: &'a PacketMemory,
        leases: &'a mut [Lease],
        decisions: &'a mut Decisions,
        first_arrival: u64,
    ) -> Self {
        Self { memory, leases, decisions, first_arrival }
    }

    /// Packets the burst began with, at most [`MAX_BURST_PKTS`].
    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        self.leases.len()
    }

    /// True for a burst of no packets.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    /// The packet at a position, or `None` when it was decided, or never was.
    #[must_use]
    #[inline]
    pub fn packet(&mut self, at: usize) -> Option<Packet<'_>> {
        if at < self.decisions.upto {
            return None;
        }
        let lease = self.leases.get_mut(at).filter(|lease| lease.is_here())?;
        Some(Packet::new(self.memory, lease, self.first_arrival + at as u64))
    }

    /// The bytes of the packet at a position, to read; those of several can be read at once. `None` when
    /// it was decided, or never was.
    #[must_use]
    #[inline]
    pub fn bytes(&self, at: usize) -> Option<&[u8]> {
        if at < self.decisions.upto {
            return None;
        }
        let lease = self.leases.get(at).filter(|lease| lease.is_here())?;
        Some(bytes_of(lease, self.memory))
    }

    /// Decides about the packet at a position; it leaves the burst. Returns false, and does
    /// nothing, when there is none. A packet can thus be decided once only.
    ///
    /// From the first packet to the last costs least.
    #[inline]
    pub fn decide(&mut self, at: usize, action: Action, ctx: &mut Context<'_>) -> bool {
        // `Hold` is the action of no run, so one that goes on is in order.
        let goes_on = at == self.decisions.upto && action == self.decisions.action;
        if goes_on && action != Action::Hold && at < self.leases.len() && ctx.out.is_empty() {
            self.decisions.upto += 1;
            return true;
        }
        self.decide_anew(at, action, ctx)
    }

    /// Decides about each packet that is still here, in order, as `decision` says.
    #[inline]
    pub fn decide_each(
        &mut self,
        ctx: &mut Context<'_>,
        mut decision: impl FnMut(&mut Packet<'_>, &mut Context<'_>) -> Action,
    ) {
        let mut at = self.decisions.upto;
        while at < self.leases.len() {
            if self.decisions.are_in_order() && ctx.out.is_empty() {
                at = self.go_on(ctx, &mut decision);
            } else {
                if let Some(mut packet) = self.packet(at) {
                    let action = decision(&mut packet, ctx);
                    self.decide(at, action, ctx);
                }
                at += 1;
            }
        }
    }

    /// Decides from where the run stands to the first packet that does not go on with it, itself
    /// included. All are here: the order was not left. Returns the position behind it.
    #[inline]
    fn go_on(
        &mut self,
        ctx: &mut Context<'_>,
        decision: &mut impl FnMut(&mut Packet<'_>, &mut Context<'_>) -> Action,
    ) -> usize {
        let Self { memory, leases, decisions, first_arrival } = self;
        let (from, goes_on_with) = (decisions.upto, decisions.action);
        for (lease, at) in leases[from..].iter_mut().zip(from..) {
            let mut packet = Packet::new(memory, lease, *first_arrival + at as u64);
            let action = decision(&mut packet, ctx);
            if action != goes_on_with || !ctx.out.is_empty() {
                self.decisions.upto = at;
                self.decide(at, action, ctx);
                return at + 1;
            }
        }
        decisions.upto = leases.len();
        leases.len()
    }

    /// Bytes of all packets of the burst. To be asked before any is decided: what leaves out of its order is not
    /// counted any more.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.leases.iter().map(|lease| u64::from(lease.descriptor().len_bytes)).sum()
    }

    /// Decides the same about all packets that are still here.
    #[inline]
    pub fn decide_all(&mut self, action: Action, ctx: &mut Context<'_>) {
        if self.decisions.are_in_order() && action != Action::Hold && ctx.out.is_empty() {
            if self.decisions.action != action {
                self.decisions.begin_run(action);
            }
            self.decisions.upto = self.leases.len();
        } else {
            self.decide_each(ctx, |_, _| action);
        }
    }

    /// Ends the burst: what was not decided goes on along its chain.
    #[inline]
    pub(crate) fn conclude(&mut self, ctx: &mut Context<'_>) {
        if self.decisions.upto < self.leases.len() {
            self.decide_all(Action::Next, ctx);
        }
        self.decisions.end_run();
    }

    /// Of a burst in which all is decided, makes one of the packets that go on, about which nothing is
    /// decided; the others are moved to `done`.
    pub(crate) fn keep_what_goes_on(&mut self, done: &mut Vec<Departure>) {
        let all = Run { action: Action::Next, start: 0, end: self.leases.len() };
        if self.decisions.runs() != [all] {
            let mut kept = 0;
            for at in 0..self.decisions.runs.len() {
                let Run { action, start, end } = self.decisions.runs[at];
                for at in start..end {
                    if action != Action::Next {
                        done.push(Departure { slot: self.take(at), action });
                        continue;
                    }
                    if kept < at {
                        // That place was left by a packet before this one.
                        self.leases[kept] = self.leases[at].take();
                    }
                    kept += 1;
                }
            }
            let leases = std::mem::take(&mut self.leases);
            self.leases = &mut leases[..kept];
        }
        self.decisions.clear();
    }

    /// Moves all packets of a burst, in which all is decided, to `done`.
    pub(crate) fn take_all(&mut self, done: &mut Vec<Departure>) {
        for at in 0..self.decisions.runs.len() {
            let Run { action, start, end } = self.decisions.runs[at];
            for at in start..end {
                done.push(Departure { slot: self.take(at), action });
            }
        }
        self.decisions.clear();
    }

    /// A decision that does not go on with a run: another action, or out of order.
    #[inline(never)]
    fn decide_anew(&mut self, at: usize, action: Action, ctx: &mut Context<'_>) -> bool {
        if self.packet(at).is_none() {
            return false;
        }
        let in_order =
            at == self.decisions.upto && self.decisions.are_in_order() && ctx.out.is_empty();
        if !in_order {
            self.decisions.leave_order();
            let slot = self.take(at);
            ctx.depart(slot, action);
        } else if action != Action::Hold {
            self.decisions.begin_run(action);
            self.decisions.upto += 1;
        } else if let Err(slot) = ctx.hold(self.take(at)) {
            self.leases[at] = slot.lease;
            return self.decide(at, Action::Drop, ctx);
        } else {
            // A gap between two runs.
            self.decisions.end_run();
            self.decisions.upto += 1;
            self.decisions.start += 1;
        }
        true
    }

    fn take(&mut self, at: usize) -> Slot {
        Slot { lease: self.leases[at].take(), arrival: self.first_arrival + at as u64 }
    }
}
