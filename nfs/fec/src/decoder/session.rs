//! One session: which numbers came, which are missing, and when they are given up.
//!
//! Numbers are extended to 64 bits where they come in, by serial arithmetic against the newest (RFC
//! 1982, section 3.2), and so nothing behind that wraps.
//!
//! ```text
//!      base                     top
//!        │    ◄── unsettled ──►   │
//! ───────┴────────────────────────┴──────────►  numbers
//!  settled: counted for good      newest known to exist
//! ```
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use super::blocks::Blocks;
use super::config::{DecoderConfig, DecoderStats, InOrder, Reject, Verdict};
use super::solver::Solver;
use super::window::{NO_BLOCK, Slot, State, Window};
use crate::mac::Key;
use crate::report::{REPORT_MAX_BYTES, Report};
use crate::wire::{SOURCE_SHIM_BYTES, Stream};

/// For so long after a change of epoch, packets of the epoch before are refused.
const OLD_EPOCH_NS: u64 = 10_000_000_000;

/// So many packets in a row, all from behind the window and each the successor of the one before, are
/// an encoder that was restarted and took its old epoch by chance: one restart in 256.
const RESTART_PKTS: u32 = 64;

/// A packet that waits to be fetched.
#[derive(Debug)]
pub(super) struct Ready {
    pub session: usize,
    pub position: u64,
    pub len_bytes: u16,
}

/// What all sessions share.
#[derive(Debug)]
pub(super) struct Shared {
    pub stats: DecoderStats,
    pub ready: VecDeque<Ready>,
    pub solver: Solver,
    pub in_order: Option<InOrder>,
    pub settle_ns: u64,
    pub report_ns: u64,
    /// When some session has something to do.
    pub tick_due_ns: u64,
    pub report_due_ns: u64,
}

impl Shared {
    pub fn wake(&mut self, at_ns: u64) {
        self.tick_due_ns = self.tick_due_ns.min(at_ns);
    }

    /// Hands a packet out; what does not fit is lost.
    pub fn push(&mut self, ready: Ready) {
        if self.ready.len() < self.ready.capacity() {
            self.ready.push_back(ready);
        } else {
            self.stats.undelivered += 1;
        }
    }
}

/// A session's state. Its memory is taken once, and used again for other sessions.
#[derive(Debug)]
pub(super) struct Session {
    pub index: usize,
    pub stream: Stream,
    pub used_ns: u64,
    pub window: Window,
    pub blocks: Blocks,
    /// The newest number known to exist.
    pub top: u64,
    /// The first number that is not settled.
    pub base: u64,
    /// Lost numbers in a row up to base.
    run: u64,
    /// What was the newest number, and when: it is settled some time after.
    mark: (u64, u64),
    /// In-order release: the next number to let out.
    release: u64,
    /// The number that would confirm a jump.
    jump: Option<u64>,
    /// Packets in a row from behind the window, and the number that would be the next.
    behind: (u32, u32),
    /// The epoch and number that would confirm a new epoch.
    new_epoch: Option<(u8, u32)>,
    /// The epoch before, and until when its packets are refused.
    old_epoch: Option<(u8, u64)>,
    report: Report,
    /// Something changed since the last report; when the next one is due.
    dirty: bool,
    report_due_ns: u64,
}

impl Session {
    pub fn new(index: usize, config: &DecoderConfig) -> Self {
        Self {
            index,
            stream: Stream { epoch: 0, session: 0 },
            used_ns: 0,
            window: Window::new(config.window_pkts.next_power_of_two(), config.window_bytes),
            blocks: Blocks::new(config.blocks_max),
            top: 0,
            base: 1,
            run: 0,
            mark: (0, 0),
            release: 0,
            jump: None,
            behind: (0, 0),
            new_epoch: None,
            old_epoch: None,
            report: Report::default(),
            dirty: false,
            report_due_ns: 0,
        }
    }

    /// Begins anew with the packet `sequence`. What was unsettled is settled before, by
    /// [`Session::finish`].
    pub fn start(&mut self, shared: &mut Shared, now_ns: u64, stream: Stream, sequence: u32) {
        self.window.reset(State::Unknown);
        self.stream = stream;
        self.top = (1 << 32) + u64::from(sequence);
        *self.window.slot_mut(self.top) = Slot::missing(now_ns);
        self.base = self.top + 1 - self.window.pkts();
        self.mark = (self.top, now_ns);
        self.release = self.top;
        (self.run, self.jump, self.new_epoch) = (0, None, None);
        self.behind = (0, 0);
        self.report = Report::default();
        shared.wake(now_ns + shared.settle_ns);
    }

    /// Forgets that there was an epoch before: the session is another now.
    pub fn forget_epochs(&mut self) {
        self.old_epoch = None;
    }

    /// Settles all there is: the epoch or the session ends.
    pub fn finish(&mut self, shared: &mut Shared) {
        self.release(shared, u64::MAX, u64::MAX);
        self.settle_to(shared, self.top + 1);
    }

    /// A source packet's epoch: the current one, or a new one that this packet confirms.
    pub fn check_epoch(
        &mut self,
        shared: &mut Shared,
        now_ns: u64,
        stream: Stream,
        sequence: u32,
    ) -> Result<(), Reject> {
        let epoch = stream.epoch;
        if epoch == self.stream.epoch {
            return Ok(());
        }
        if self.old_epoch.is_some_and(|(old, until_ns)| old == epoch && now_ns < until_ns) {
            return Err(Reject::Epoch);
        }
        if self.new_epoch != Some((epoch, sequence)) {
            self.new_epoch = Some((epoch, sequence.wrapping_add(1)));
            return Err(Reject::EpochUnconfirmed);
        }
        shared.stats.epochs += 1;
        self.finish(shared);
        self.old_epoch = Some((self.stream.epoch, now_ns.saturating_add(OLD_EPOCH_NS)));
        self.start(shared, now_ns, stream, sequence);
        Ok(())
    }

    /// The number that `sequence` stands for: the one nearest to the newest.
    pub fn extend(&self, sequence: u32) -> u64 {
        let ahead = sequence.wrapping_sub(self.top as u32) as i32;
        self.top.wrapping_add_signed(ahead.into())
    }

    /// Takes a source packet.
    pub fn source(
        &mut self,
        shared: &mut Shared,
        now_ns: u64,
        sequence: u32,
        inner: &[u8],
    ) -> Verdict {
        let mut number = self.extend(sequence);
        if self.is_restart(number, sequence) {
            shared.stats.epochs += 1;
            self.finish(shared);
            self.start(shared, now_ns, self.stream, sequence);
            number = self.top;
        }
        if number > self.top + self.window.pkts() {
            if self.jump != Some(number) {
                self.jump = Some(number + 1);
                return Verdict::Reject(Reject::Jump);
            }
            self.jump_to(shared, now_ns, number);
        } else if number > self.top {
            self.advance(shared, now_ns, number);
        }
        if let Some(verdict) = self.refuse(shared, number) {
            return verdict;
        }
        let position = self.window.store(inner);
        let slot = self.window.slot_mut(number);
        (slot.position, slot.len_bytes) = (position, inner.len() as u16);
        slot.state = State::Received;
        let block = slot.block;
        shared.stats.received += 1;
        self.touch(shared, now_ns);
        if block != NO_BLOCK {
            self.one_came(shared, block);
        }
        let deliver = Verdict::Deliver { inner_offset: SOURCE_SHIM_BYTES };
        if shared.in_order.is_none() {
            return deliver;
        }
        let next = number == self.release && shared.ready.is_empty();
        self.release += u64::from(next);
        self.release(shared, now_ns, self.top);
        if next { deliver } else { Verdict::Held }
    }

    /// Whether this packet shows that the encoder began its numbers anew in the same epoch.
    fn is_restart(&mut self, number: u64, sequence: u32) -> bool {
        if number + self.window.pkts() > self.top {
            return false;
        }
        let (in_a_row, next) = self.behind;
        let in_a_row = if sequence == next { in_a_row + 1 } else { 1 };
        self.behind = (in_a_row, sequence.wrapping_add(1));
        in_a_row >= RESTART_PKTS
    }

    /// Why a source packet, of a number up to the newest, is not taken, if it is not.
    fn refuse(&mut self, shared: &mut Shared, number: u64) -> Option<Verdict> {
        let too_old = self.top - number >= self.window.pkts();
        let passed = shared.in_order.is_some() && number < self.release;
        let slot = self.window.slot_mut(number);
        let state = if too_old { State::Lost } else { slot.state };
        match state {
            State::Unknown | State::Missing if !passed => None,
            State::Received | State::RecoveredLate => {
                shared.stats.duplicate += 1;
                Some(Verdict::Duplicate)
            }
            State::Recovered => {
                slot.state = State::RecoveredLate;
                shared.stats.late += 1;
                Some(Verdict::Late)
            }
            State::Unknown | State::Missing | State::Lost => {
                shared.stats.late += 1;
                Some(Verdict::Late)
            }
        }
    }

    /// Numbers up to `to`, at most a window ahead, are known to exist now.
    pub fn advance(&mut self, shared: &mut Shared, now_ns: u64, to: u64) {
        let settled = self.base > self.top;
        self.release(shared, now_ns, to);
        for number in self.top + 1..=to {
            let oldest = number - self.window.pkts();
            if self.base <= oldest {
                self.settle_to(shared, oldest + 1);
            }
            *self.window.slot_mut(number) = Slot::missing(now_ns);
        }
        self.top = to;
        if settled {
            self.mark = (to, now_ns);
            shared.wake(now_ns + shared.settle_ns);
        }
    }

    /// Goes on more than a window ahead: what lies between is lost, but for the newest window.
    fn jump_to(&mut self, shared: &mut Shared, now_ns: u64, number: u64) {
        self.finish(shared);
        let low = number + 1 - self.window.pkts();
        self.lose(shared, low - self.base);
        self.window.reset(State::Missing);
        if shared.in_order.is_some() {
            self.window.reset(State::Lost);
        }
        *self.window.slot_mut(number) = Slot::missing(now_ns);
        (self.base, self.top, self.release) = (low, number, number);
        self.mark = (number, now_ns);
        self.jump = None;
        shared.stats.jumps += 1;
        shared.wake(now_ns + shared.settle_ns);
    }

    fn lose(&mut self, shared: &mut Shared, count: u64) {
        shared.stats.lost += count;
        shared.stats.unrecovered += count;
        self.report.lost = self.report.lost.wrapping_add(count as u32);
        self.report.unrecovered = self.report.unrecovered.wrapping_add(count as u32);
        self.run += count;
    }

    /// Counts the numbers before `end` for good.
    fn settle_to(&mut self, shared: &mut Shared, end: u64) {
        for number in self.base..end {
            let Slot { block, state, .. } = *self.window.slot(number);
            if block != NO_BLOCK {
                self.give_up(shared, block);
            }
            match state {
                State::Missing | State::Lost => {
                    self.window.slot_mut(number).state = State::Lost;
                    self.lose(shared, 1);
                }
                State::Recovered => {
                    shared.stats.lost += 1;
                    self.report.lost = self.report.lost.wrapping_add(1);
                    self.run += 1;
                }
                State::Received | State::RecoveredLate => {
                    self.report.received = self.report.received.wrapping_add(1);
                    self.end_run();
                }
                State::Unknown => self.end_run(),
            }
        }
        self.base = self.base.max(end);
    }

    fn end_run(&mut self) {
        if self.run > 0 {
            self.report.bursts.add(std::mem::take(&mut self.run));
        }
    }

    /// Lets out in order what can be: up to a gap that is still worth waiting for, when `newest` is
    /// the newest number.
    pub fn release(&mut self, shared: &mut Shared, now_ns: u64, newest: u64) {
        let Some(InOrder { bound_pkts, bound_ns }) = shared.in_order else { return };
        while self.release <= self.top {
            let slot = *self.window.slot(self.release);
            if slot.is_here() {
                let (position, len_bytes) = (slot.position, slot.len_bytes);
                shared.push(Ready { session: self.index, position, len_bytes });
            } else if slot.state == State::Missing {
                let until_ns = slot.missing_since_ns() + bound_ns;
                if newest - self.release < bound_pkts as u64 && now_ns < until_ns {
                    shared.wake(until_ns);
                    return;
                }
                self.window.slot_mut(self.release).state = State::Lost;
                shared.stats.skipped += 1;
            }
            self.release += 1;
        }
    }

    /// Does what time asks for.
    pub fn tick(&mut self, shared: &mut Shared, now_ns: u64) {
        self.release(shared, now_ns, self.top);
        if self.base > self.top {
            return;
        }
        if now_ns >= self.mark.1 + shared.settle_ns {
            self.settle_to(shared, self.mark.0 + 1);
            self.mark = (self.top, now_ns);
            self.touch(shared, now_ns);
        }
        if self.base <= self.top {
            shared.wake(self.mark.1 + shared.settle_ns);
        }
    }

    /// Something changed: a report will tell.
    pub fn touch(&mut self, shared: &mut Shared, now_ns: u64) {
        if !self.dirty {
            self.dirty = true;
            self.report_due_ns = now_ns + shared.report_ns;
            shared.report_due_ns = shared.report_due_ns.min(self.report_due_ns);
        }
    }

    /// When the next report is due, if one is.
    pub fn report_due_ns(&self) -> Option<u64> {
        self.dirty.then_some(self.report_due_ns)
    }

    /// One more packet was recovered.
    pub fn count_recovered(&mut self, shared: &mut Shared) {
        shared.stats.recovered += 1;
        self.report.recovered = self.report.recovered.wrapping_add(1);
    }

    /// Writes a report; gives its length.
    pub fn write_report(
        &mut self,
        (run, number): (u8, u32),
        key: Option<&Key>,
        to: &mut [u8; REPORT_MAX_BYTES],
    ) -> usize {
        self.dirty = false;
        let report = Report { run, number, highest: self.top as u32, ..self.report };
        report.write(self.stream, key, to)
    }
}
