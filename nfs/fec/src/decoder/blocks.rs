//! Blocks that miss packets and wait for repair packets, or for the packets themselves.
#![forbid(unsafe_code)]

use super::config::{Reject, Verdict};
use super::session::{Ready, Session, Shared};
use super::solver::Symbols;
use super::window::{NO_BLOCK, Slot, State};
use crate::code::{K_MAX, M_MAX};
use crate::inner;
use crate::wire::{INNER_MIN_BYTES, Repair};

/// A repair packet that was kept: its copy lies in the window.
#[derive(Clone, Copy, Debug, Default)]
struct Kept {
    position: u64,
    length: [u8; 2],
}

/// A block that waits.
#[derive(Clone, Debug)]
struct Waiting {
    repair: Repair,
    first: u64,
    coded_bytes: usize,
    /// Packets that are not here.
    missing: usize,
    rows: [Option<Kept>; M_MAX],
    /// Repair packets that are here.
    have: usize,
    /// Counts blocks, so that the oldest is known.
    age: u64,
}

/// A session's waiting blocks, of which there is a bounded number.
#[derive(Debug)]
pub(super) struct Blocks {
    list: Vec<Option<Waiting>>,
    free: Vec<u16>,
    taken: u64,
}

impl Blocks {
    pub fn new(most: usize) -> Self {
        Self { list: vec![None; most], free: (0..most as u16).rev().collect(), taken: 0 }
    }

    /// Memory of each, bytes.
    pub const BYTES: usize = size_of::<Option<Waiting>>() + size_of::<u16>();

    fn get(&self, index: u16) -> Option<&Waiting> {
        self.list.get(usize::from(index))?.as_ref()
    }

    fn get_mut(&mut self, index: u16) -> Option<&mut Waiting> {
        self.list.get_mut(usize::from(index))?.as_mut()
    }

    /// The one that has waited longest.
    fn oldest(&self) -> Option<u16> {
        let ages = self.list.iter().zip(0..);
        let ages = ages.filter_map(|(block, index)| Some((block.as_ref()?.age, index)));
        ages.min().map(|(_, index)| index)
    }
}

impl Waiting {
    fn number(&self, at: usize) -> u64 {
        self.first + at as u64 * u64::from(self.repair.stride)
    }

    fn sources(&self) -> usize {
        self.repair.sources.into()
    }
}

impl Session {
    /// Takes a repair packet.
    pub fn repair(
        &mut self,
        shared: &mut Shared,
        now_ns: u64,
        repair: Repair,
        coded: &[u8],
    ) -> Verdict {
        let first = self.extend(repair.first);
        let last = first + u64::from(repair.sources - 1) * u64::from(repair.stride);
        let pkts = self.window.pkts();
        if last - first >= pkts || last >= self.top + pkts {
            return Verdict::Reject(Reject::Span);
        }
        if first < self.base || self.top.max(last) - first >= pkts {
            shared.stats.repairs += 1;
            shared.stats.repairs_late += 1;
            return Verdict::Repair;
        }
        if first <= self.top && self.window.slot(first).whole {
            shared.stats.repairs += 1;
            shared.stats.repairs_unused += 1;
            return Verdict::Repair;
        }
        let Ok(known) = self.find(&repair, first, coded.len()) else {
            return Verdict::Reject(Reject::Inconsistent);
        };
        if last > self.top {
            self.advance(shared, now_ns, last);
        }
        shared.stats.repairs += 1;
        self.touch(shared, now_ns);
        let slot = self.window.slot_mut(first);
        shared.stats.blocks += u64::from(!slot.counted);
        slot.counted = true;
        let Some(index) =
            known.or_else(|| self.wait_for(shared, now_ns, repair, first, coded.len()))
        else {
            shared.stats.repairs_unused += 1;
            return Verdict::Repair;
        };
        if !self.keep(index, &repair, coded) {
            shared.stats.duplicate += 1;
            return Verdict::Duplicate;
        }
        self.try_solve(shared, index);
        self.release(shared, now_ns, self.top);
        Verdict::Repair
    }

    /// The waiting block that this repair packet is of, if there is one. An error when it contradicts
    /// that block, or its packets are another's.
    fn find(&self, repair: &Repair, first: u64, coded_bytes: usize) -> Result<Option<u16>, Reject> {
        let mut found = NO_BLOCK;
        for at in 0..u64::from(repair.sources) {
            let number = first + at * u64::from(repair.stride);
            let block = if number > self.top { NO_BLOCK } else { self.window.slot(number).block };
            if at == 0 {
                found = block;
            } else if block != found {
                return Err(Reject::Inconsistent);
            }
        }
        let Some(block) = self.blocks.get(found) else { return Ok(None) };
        let agrees = block.first == first
            && block.repair.same_block(repair)
            && block.coded_bytes == coded_bytes;
        if agrees { Ok(Some(found)) } else { Err(Reject::Inconsistent) }
    }

    /// A new waiting block, when something is missing in it.
    fn wait_for(
        &mut self,
        shared: &mut Shared,
        now_ns: u64,
        repair: Repair,
        first: u64,
        coded_bytes: usize,
    ) -> Option<u16> {
        let numbers =
            (0..u64::from(repair.sources)).map(|at| first + at * u64::from(repair.stride));
        let (mut missing, mut wanted) = (0, 0);
        for number in numbers.clone() {
            let slot = self.window.slot_mut(number);
            // It was sent, and so it is missing even where it is from before our first packet.
            if slot.state == State::Unknown {
                *slot = Slot { counted: slot.counted, ..Slot::missing(now_ns) };
            }
            missing += usize::from(!slot.is_here());
            wanted += usize::from(slot.state == State::Missing);
        }
        if wanted == 0 {
            self.window.slot_mut(first).whole = missing == 0;
            return None;
        }
        if self.blocks.free.is_empty()
            && let Some(oldest) = self.blocks.oldest()
        {
            shared.stats.blocks_evicted += 1;
            self.give_up(shared, oldest);
        }
        let index = self.blocks.free.pop()?;
        self.blocks.taken += 1;
        let (rows, age) = ([None; M_MAX], self.blocks.taken);
        self.blocks.list[usize::from(index)] =
            Some(Waiting { repair, first, coded_bytes, missing, rows, have: 0, age });
        for number in numbers {
            self.window.slot_mut(number).block = index;
        }
        Some(index)
    }

    /// Keeps a copy of a repair packet. False when it is here already.
    fn keep(&mut self, index: u16, repair: &Repair, coded: &[u8]) -> bool {
        let Some(block) = self.blocks.get_mut(index) else { return false };
        let row = &mut block.rows[usize::from(repair.row)];
        if row.is_some() {
            return false;
        }
        let position = self.window.store(coded);
        *row = Some(Kept { position, length: repair.length });
        block.have += 1;
        true
    }

    /// A packet that a waiting block missed has come.
    pub fn one_came(&mut self, shared: &mut Shared, index: u16) {
        if let Some(block) = self.blocks.get_mut(index) {
            block.missing -= 1;
        }
        self.try_solve(shared, index);
    }

    /// Solves a block once it can be, which is once.
    fn try_solve(&mut self, shared: &mut Shared, index: u16) {
        let Some(block) = self.blocks.get(index) else { return };
        let first = block.first;
        if block.missing == 0 {
            self.window.slot_mut(first).whole = true;
            self.forget(index);
            return;
        }
        if block.missing > block.have {
            return;
        }
        match self.solve(shared, index) {
            Ok(()) => {
                shared.stats.blocks_solved += 1;
                self.window.slot_mut(first).whole = true;
                self.forget(index);
            }
            Err(failure) => {
                match failure {
                    Failure::Overrun => shared.stats.blocks_overrun += 1,
                    Failure::Bad => shared.stats.blocks_bad += 1,
                }
                self.give_up(shared, index);
            }
        }
    }

    /// Solves a block that has as many repair packets as it misses packets, or more.
    fn solve(&mut self, shared: &mut Shared, index: u16) -> Result<(), Failure> {
        let Some(block) = self.blocks.get(index) else { return Err(Failure::Bad) };
        let coded_bytes = block.coded_bytes;
        let mut symbols = Symbols { bytes: [&[]; K_MAX], lengths: [[0; 2]; K_MAX] };
        let (mut missing, mut rows, mut numbers) = ([0; M_MAX], [0; M_MAX], [0; M_MAX]);
        let mut kept = block.rows.iter().zip(0..).filter_map(|(kept, row)| Some(((*kept)?, row)));
        let mut count = 0;
        for at in 0..block.sources() {
            let number = block.number(at);
            let slot = self.window.slot(number);
            let (position, len_bytes, length) = if slot.is_here() {
                (slot.position, slot.len_bytes.into(), slot.len_bytes.to_be_bytes())
            } else {
                let (Kept { position, length }, row) = kept.next().ok_or(Failure::Bad)?;
                (missing[count], rows[count], numbers[count]) = (at, row, number);
                count += 1;
                (position, coded_bytes, length)
            };
            if len_bytes > coded_bytes {
                return Err(Failure::Bad);
            }
            symbols.lengths[at] = length;
            symbols.bytes[at] = self.window.bytes(position, len_bytes).ok_or(Failure::Overrun)?;
        }
        let Repair { code, k, m, .. } = block.repair;
        let (missing, rows) = (&missing[..count], &rows[..count]);
        let code = (code, usize::from(k), usize::from(m));
        let lengths = shared.solver.solve(code, &symbols, missing, rows, coded_bytes);
        let lengths = &lengths.ok_or(Failure::Bad)?[..count];
        // One that is wrong makes all the others suspect: they come from the same sums.
        let mut solved = (0..count).map(|at| shared.solver.packet(at, coded_bytes)).zip(lengths);
        if !solved.all(|(coded, &len_bytes)| is_packet(coded, len_bytes)) {
            return Err(Failure::Bad);
        }
        for (at, (&number, &len_bytes)) in numbers.iter().zip(lengths).enumerate() {
            self.bring_back(shared, number, at, len_bytes);
        }
        Ok(())
    }

    /// A packet was recovered: it is let out, unless in-order release has passed it.
    fn bring_back(&mut self, shared: &mut Shared, number: u64, at: usize, len_bytes: usize) {
        if self.window.slot(number).state != State::Missing {
            return;
        }
        let position = self.window.store(shared.solver.packet(at, len_bytes));
        let len_bytes = len_bytes as u16;
        let slot = self.window.slot_mut(number);
        *slot = Slot { position, len_bytes, state: State::Recovered, ..*slot };
        self.count_recovered(shared);
        if shared.in_order.is_none() {
            shared.push(Ready { session: self.index, position, len_bytes });
        }
    }

    /// Gives a waiting block up.
    pub fn give_up(&mut self, shared: &mut Shared, index: u16) {
        shared.stats.blocks_failed += u64::from(self.blocks.get(index).is_some());
        self.forget(index);
    }

    fn forget(&mut self, index: u16) {
        let Some(place) = self.blocks.list.get_mut(usize::from(index)) else { return };
        let Some(block) = place.take() else { return };
        for at in 0..block.sources() {
            self.window.slot_mut(block.number(at)).block = NO_BLOCK;
        }
        self.blocks.free.push(index);
    }
}

/// Why a block could not be solved.
enum Failure {
    Overrun,
    Bad,
}

/// Whether recovered bytes are an IP packet of that length, and nothing but zeroes behind it.
fn is_packet(coded: &[u8], len_bytes: usize) -> bool {
    len_bytes >= INNER_MIN_BYTES
        && coded.split_at_checked(len_bytes).is_some_and(|(packet, rest)| {
            rest.iter().all(|&byte| byte == 0) && inner::is_ip(packet)
        })
}
