//! The encoder of one session: numbers packets, and makes repair packets while they are in hand.
//!
//! No packet is held or kept. The packets of a burst are added to the sums of their blocks, one run of
//! the kernel for each block, and leave at once.
//!
//! D blocks are open at a time, and together they are a *group* of k · D consecutive numbers: the
//! group's first packet belongs to its first block, the next to the second, and so on, round and
//! round. When the group is full its repair packets follow in the same manner: the first of every
//! block, then the second of every block. So any two packets of a block, repair packets too, are D
//! packets apart, and a burst of losses no longer than m · D costs no block more than it can bear. A
//! block's repair packets are sent a little later for it (up to D − 1 packets), its data never.
//!
//! ```text
//!  k = 3, m = 2, D = 2:   a0 b0 a1 b1 a2 b2 │ ra0 rb0 ra1 rb1   (then the next group)
//! ```
//!
//! The flush timer runs from a group's first packet. When it ends, the group is closed as it is: its
//! blocks may be short, and a short block counts the packets that it does not have as zeroes. Other
//! k, m and D take effect with the next group.
#![forbid(unsafe_code)]

mod config;
mod plan;
mod pool;

pub use config::{ConfigError, EncoderConfig, FLUSH_MAX_NS, FLUSH_MIN_NS, ShortBlocks};

use std::collections::VecDeque;

use thiserror::Error;

use self::plan::{Codes, Plan};
use self::pool::Pool;
use crate::adapt::{Controller, News, Redundancy, Stride};
use crate::code::K_MAX;
use crate::kernel::Kernel;
use crate::mac::MAC_BYTES;
use crate::report::Report;
use crate::wire::{
    INNER_MIN_BYTES, REPAIR_SHIM_BYTES, Repair, SOURCE_SHIM_BYTES, STRIDE_MAX, Stream, WireError,
    source_shim,
};

/// Packets of a burst for whose repair packets there is always room: call
/// [`Encoder::next_repair`] until it gives none after at most so many.
pub const BURST_MAX_PKTS: usize = 64;

/// Why a burst was not taken. None of its packets was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AddError {
    /// A packet's length cannot be protected.
    #[error("an inner packet of {len_bytes} bytes; expected {INNER_MIN_BYTES} to {max_bytes}")]
    Length {
        /// Its length.
        len_bytes: usize,
        /// The longest that the encoder was set up for.
        max_bytes: usize,
    },
    /// There are fewer places for shims than packets.
    #[error("fewer shims than packets")]
    Shims,
}

/// What an encoder did, and how it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EncoderStats {
    /// Source packets.
    pub source_pkts: u64,
    /// Bytes of inner packets.
    pub source_bytes: u64,
    /// Repair packets handed out.
    pub repair_pkts: u64,
    /// Bytes of them, shims and MACs included.
    pub repair_bytes: u64,
    /// Repair packets that nobody fetched in time.
    pub repair_dropped_pkts: u64,
    /// Blocks closed.
    pub blocks: u64,
    /// Of these, short ones.
    pub blocks_short: u64,
    /// Reports taken.
    pub reports: u64,
    /// Reports refused.
    pub reports_rejected: u64,
    /// The last report: totals of this epoch.
    pub peer: Report,
    /// Smoothed loss that the reports tell, a share; `None` before the first.
    pub loss: Option<f64>,
    /// k in use.
    pub k: u8,
    /// m in use; 0 when adaptive redundancy is off.
    pub m: u8,
    /// D in use.
    pub stride: u8,
}

/// A group that takes packets.
#[derive(Debug)]
struct Group {
    opened_ns: u64,
    first: u32,
    taken: usize,
    plan: Plan,
    blocks: [u16; STRIDE_MAX],
}

impl Group {
    fn stride(&self) -> usize {
        self.plan.stride.into()
    }
}

/// A group whose repair packets go out.
#[derive(Debug)]
struct Ready {
    blocks: [u16; STRIDE_MAX],
    count: usize,
    /// What goes next: this row of this one of the blocks.
    row: u8,
    at: usize,
}

/// One session's encoder.
#[derive(Debug)]
pub struct Encoder {
    config: EncoderConfig,
    kernel: Kernel,
    stream: Stream,
    next: u32,
    codes: Codes,
    controller: Controller,
    plan: Plan,
    pool: Pool,
    open: Option<Group>,
    ready: VecDeque<Ready>,
    peer: Option<Report>,
    stats: EncoderStats,
}

impl Encoder {
    /// An encoder that sends in `epoch`, which must differ from that of its last run.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn new(config: EncoderConfig, kernel: Kernel, epoch: u8) -> Result<Self, ConfigError> {
        config.check()?;
        let (codes, pool, ready) = storage(&config)?;
        let controller = Controller::new(config.k, config.redundancy, config.stride);
        Ok(Self {
            kernel,
            stream: Stream { epoch, session: config.session },
            next: config.first_sequence,
            codes,
            plan: Plan::new(&config, controller.choice()),
            controller,
            pool,
            open: None,
            ready,
            peer: None,
            stats: EncoderStats::default(),
            config,
        })
    }

    /// Bytes that go before an inner packet, behind the UDP header.
    #[must_use]
    pub fn overhead_bytes(&self) -> usize {
        SOURCE_SHIM_BYTES
    }

    /// Bytes by which a repair packet may be longer than the longest inner packet of its block: what an
    /// MTU must leave room for.
    #[must_use]
    pub fn repair_overhead_bytes(&self) -> usize {
        REPAIR_SHIM_BYTES + if self.config.key.is_some() { MAC_BYTES } else { 0 }
    }

    /// Takes one burst's packets, in the order in which they are sent, and fills each one's shim. An
    /// inner packet begins with its IP header and ends where that says (no Ethernet padding).
    ///
    /// # Errors
    /// [`AddError`]; then nothing was taken.
    pub fn add(
        &mut self,
        now_ns: u64,
        packets: &[&[u8]],
        shims: &mut [[u8; SOURCE_SHIM_BYTES]],
    ) -> Result<(), AddError> {
        let max_bytes = self.config.inner_max_bytes;
        let fits = |packet: &&&[u8]| (INNER_MIN_BYTES..=max_bytes).contains(&packet.len());
        if let Some(packet) = packets.iter().find(|packet| !fits(packet)) {
            return Err(AddError::Length { len_bytes: packet.len(), max_bytes });
        }
        if shims.len() < packets.len() {
            return Err(AddError::Shims);
        }
        self.flush_if_due(now_ns);
        for (shim, offset) in shims.iter_mut().zip(0..packets.len() as u32) {
            *shim = source_shim(self.stream, self.next.wrapping_add(offset));
        }
        self.stats.source_pkts += packets.len() as u64;
        self.stats.source_bytes += packets.iter().map(|packet| packet.len() as u64).sum::<u64>();
        let mut rest = packets;
        while !rest.is_empty() {
            let count = rest.len().min(self.packets_to_boundary()).min(BURST_MAX_PKTS);
            let (part, later) = rest.split_at(count);
            self.protect(now_ns, part);
            self.next = self.next.wrapping_add(count as u32);
            rest = later;
        }
        Ok(())
    }

    /// Packets until a group is full and repair packets come. Who sends these exactly in their place,
    /// also amid a burst, cuts bursts here.
    #[must_use]
    pub fn packets_to_boundary(&self) -> usize {
        let (stride, taken) = match &self.open {
            Some(group) => (group.stride(), group.taken),
            None => (self.plan.stride.into(), 0),
        };
        usize::from(self.config.k) * stride - taken
    }

    /// The next repair packet, a UDP payload. Call it until it gives none, after [`Encoder::add`] and
    /// at [`Encoder::deadline_ns`].
    pub fn next_repair(&mut self, now_ns: u64) -> Option<&[u8]> {
        self.flush_if_due(now_ns);
        let (index, row) = self.next_ready()?;
        let packet = self.pool.packet(index, row, self.config.key.is_some());
        self.stats.repair_pkts += 1;
        self.stats.repair_bytes += packet.len() as u64;
        Some(packet)
    }

    /// When the flush timer ends; `None` while no block is open.
    #[must_use]
    pub fn deadline_ns(&self) -> Option<u64> {
        self.open.as_ref().map(|group| group.opened_ns + self.config.flush_ns)
    }

    /// Takes a report of the decoder.
    ///
    /// # Errors
    /// [`WireError`]: it is none, of another session or epoch, tells of packets that were never sent,
    /// is not newer than the last, or its MAC is wrong.
    pub fn report(&mut self, _now_ns: u64, payload: &[u8]) -> Result<(), WireError> {
        let news = self.read_report(payload).inspect_err(|_| self.stats.reports_rejected += 1)?;
        self.stats.reports += 1;
        let before = self.controller.choice();
        let choice = self.controller.observe(&news);
        if choice != before {
            self.plan = Plan::new(&self.config, choice);
        }
        Ok(())
    }

    /// Changes k, redundancy and stride; the blocks that are open are closed as they are. Fetch all
    /// repair packets first: those that wait are dropped.
    ///
    /// # Errors
    /// [`ConfigError`]; then nothing changes.
    pub fn reconfigure(
        &mut self,
        k: u8,
        redundancy: Redundancy,
        stride: Stride,
    ) -> Result<(), ConfigError> {
        let config = EncoderConfig { k, redundancy, stride, ..self.config.clone() };
        config.check()?;
        let (codes, pool, ready) = storage(&config)?;
        self.close();
        while self.next_ready().is_some() {
            self.stats.repair_dropped_pkts += 1;
        }
        (self.codes, self.pool, self.ready) = (codes, pool, ready);
        self.controller = Controller::new(k, redundancy, stride);
        self.plan = Plan::new(&config, self.controller.choice());
        self.config = config;
        Ok(())
    }

    /// What it did so far.
    #[must_use]
    pub fn stats(&self) -> EncoderStats {
        EncoderStats {
            peer: self.peer.unwrap_or_default(),
            loss: self.controller.loss(),
            k: self.config.k,
            m: self.plan.m,
            stride: self.plan.stride,
            ..self.stats
        }
    }

    /// Its settings.
    #[must_use]
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// Closes what is open, full or not, at once.
    pub fn flush(&mut self) {
        self.close();
    }

    fn flush_if_due(&mut self, now_ns: u64) {
        if self.deadline_ns().is_some_and(|deadline| now_ns >= deadline) {
            self.close();
        }
    }

    /// Adds packets, no more than the open group has room for, to their blocks.
    fn protect(&mut self, now_ns: u64, packets: &[&[u8]]) {
        if self.open.is_none() && !self.open_group(now_ns) {
            return;
        }
        let Some(group) = &mut self.open else { return };
        let stride = group.stride();
        let code = self.codes.get(group.plan.code);
        let m = usize::from(group.plan.m);
        for start in 0..stride.min(packets.len()) {
            let index = group.blocks[(group.taken + start) % stride];
            let mut own: [&[u8]; K_MAX] = [&[]; K_MAX];
            let mut count = 0;
            for (place, packet) in own.iter_mut().zip(packets[start..].iter().step_by(stride)) {
                *place = packet;
                count += 1;
            }
            self.pool.add(index, m, code, self.kernel, &own[..count]);
        }
        group.taken += packets.len();
        if group.taken == usize::from(self.config.k) * stride {
            self.close();
        }
    }

    /// Opens a group. False when parity is off.
    fn open_group(&mut self, now_ns: u64) -> bool {
        let plan = self.plan;
        if plan.m == 0 {
            return false;
        }
        let stride = usize::from(plan.stride);
        while self.pool.free() < stride && self.drop_oldest() {}
        let mut blocks = [0; STRIDE_MAX];
        for block in &mut blocks[..stride] {
            let Some(index) = self.pool.take() else { return false };
            *block = index;
        }
        self.open = Some(Group { opened_ns: now_ns, first: self.next, taken: 0, plan, blocks });
        true
    }

    /// Gives up the repair packets that have waited longest.
    fn drop_oldest(&mut self) -> bool {
        let Some(ready) = self.ready.pop_front() else { return false };
        for (at, &index) in ready.blocks[..ready.count].iter().enumerate() {
            let sent = ready.row + u8::from(at < ready.at);
            let left = self.pool.block(index).rows.saturating_sub(sent);
            self.stats.repair_dropped_pkts += u64::from(left);
            self.pool.give(index);
        }
        true
    }

    /// Closes the open group: its repair packets are ready.
    fn close(&mut self) {
        let Some(group) = self.open.take() else { return };
        let stride = group.stride();
        let count = group.taken.min(stride);
        for (at, &index) in group.blocks[..stride].iter().enumerate() {
            if at >= count {
                self.pool.give(index);
                continue;
            }
            let sources = self.pool.block(index).sources;
            self.stats.blocks += 1;
            self.stats.blocks_short += u64::from(sources < usize::from(self.config.k));
            let repair = Repair {
                first: group.first.wrapping_add(at as u32),
                k: self.config.k,
                sources: sources as u8,
                stride: group.plan.stride,
                row: 0,
                m: group.plan.rows(sources),
                length: [0; 2],
                code: group.plan.code,
            };
            let code = self.codes.get(group.plan.code);
            let key = self.config.key.as_ref();
            self.pool.seal(index, self.stream, repair, code, self.kernel, key);
        }
        self.ready.push_back(Ready { blocks: group.blocks, count, row: 0, at: 0 });
    }

    /// Steps to the next repair packet: of which block, which row.
    fn next_ready(&mut self) -> Option<(u16, usize)> {
        loop {
            let ready = self.ready.front_mut()?;
            let blocks = &ready.blocks[..ready.count];
            while let Some(&index) = blocks.get(ready.at) {
                ready.at += 1;
                if ready.row < self.pool.block(index).rows {
                    return Some((index, ready.row.into()));
                }
            }
            (ready.row, ready.at) = (ready.row + 1, 0);
            if blocks.iter().all(|&index| ready.row >= self.pool.block(index).rows) {
                for &index in blocks {
                    self.pool.give(index);
                }
                self.ready.pop_front();
            }
        }
    }

    fn read_report(&mut self, payload: &[u8]) -> Result<News, WireError> {
        let (stream, report) = Report::parse(payload, self.config.key.as_ref())?;
        if stream.session != self.stream.session {
            return Err(WireError::Session);
        }
        // Serial arithmetic (RFC 1982, section 3.2): the newest packet that the decoder knows of is
        // not newer than the newest that was sent.
        let ahead = report.highest.wrapping_sub(self.next.wrapping_sub(1)) as i32;
        if stream.epoch != self.stream.epoch {
            return Err(WireError::Epoch);
        }
        if ahead > 0 {
            return Err(WireError::Impossible);
        }
        let before = self.peer.unwrap_or_default();
        let newer = report.number.wrapping_sub(before.number) as i32 > 0;
        if self.peer.is_some() && report.run == before.run && !newer {
            return Err(WireError::Replayed);
        }
        self.peer = Some(report);
        Ok(report.since(&before))
    }
}

fn storage(config: &EncoderConfig) -> Result<(Codes, Pool, VecDeque<Ready>), ConfigError> {
    let (k, m_max) = (usize::from(config.k), config.m_max());
    let codes = Codes::new(k, m_max).map_err(|_| ConfigError::K(config.k))?;
    let stride = usize::from(config.stride.max());
    // One group is open; those that a burst fills, one that it began with and one that it leaves
    // wait to be fetched.
    let blocks = BURST_MAX_PKTS.div_ceil(k) + 3 * stride;
    let pool = Pool::new(blocks, m_max, config.inner_max_bytes);
    Ok((codes, pool, VecDeque::with_capacity(blocks)))
}

#[cfg(test)]
mod tests;
