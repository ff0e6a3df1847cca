//! The `fault` wrapper: makes any port lose, reorder, duplicate, damage and delay packets.
//!
//! It acts on the packets received through the port; sending is untouched. To disturb both
//! directions of a path, wrap both of its ports. The decisions come from a seeded generator and
//! depend on nothing but the packets before, so the same sequence of packets meets the same fate
//! in every run; only delays, and how long a reordered packet waits for others to overtake it,
//! involve the clock.
//!
//! Accounting stays exact: the inner queue counts what came in; a loss is a drop for
//! [`DropReason::FaultLoss`]; a duplicate takes a fresh buffer and counts as one more received;
//! whatever is delayed is in [`held_pkts`](PortQueue::held_pkts).
//!
//! ```text
//! inner rx ─► loss ─► duplicate ─► corrupt ─► reorder ─► delay line ─► out
//!                                               └─ aside until 1 to 8 others have passed ─┘
//! ```
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nflib::control::BufferUse;
use nflib::shm::BufferIndex;
use serde::Deserialize;

use super::{MAX_BURST_PKTS, OpenPort, Port, PortError, PortInfo, PortPacket, PortQueue};
use crate::pool::BufferPool;
use crate::stats::{Counter, DropReason, QueueCounters};

/// Most packets that overtake a reordered one.
const OVERTAKERS_MAX: u32 = 8;
/// How long a reordered packet waits for them when traffic pauses.
const ASIDE_MAX: Duration = Duration::from_millis(10);
/// Longest delay, µs.
const DELAY_MAX_US: u64 = 60_000_000;

/// Options of the `fault` wrapper. All faults are off by default; probabilities are 0 to 1.
#[derive(Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct FaultOptions {
    /// Probability that a packet is lost, each on its own.
    pub loss: f64,
    /// Losses in bursts, besides `loss`.
    pub burst_loss: Option<BurstLoss>,
    /// Probability that a packet is overtaken by the next 1 to 8.
    pub reorder: f64,
    /// Probability that a packet comes twice. The second has intact bytes and follows at once.
    pub duplicate: f64,
    /// Probability that one bit of a packet is flipped, anywhere in the frame.
    pub corrupt: f64,
    /// Time by which every packet is delayed, µs.
    pub delay_us: u64,
    /// Random time up to which the delay grows, µs. By itself it keeps the order of packets.
    pub jitter_us: u64,
    /// Packets held back by delay at most, for each queue; more are left in the inner port.
    pub held_max_pkts: u32,
    /// Seed of all decisions. Each queue draws its own sequence from it.
    pub seed: u64,
}

impl Default for FaultOptions {
    fn default() -> Self {
        Self {
            loss: 0.0,
            burst_loss: None,
            reorder: 0.0,
            duplicate: 0.0,
            corrupt: 0.0,
            delay_us: 0,
            jitter_us: 0,
            held_max_pkts: 4096,
            seed: 1,
        }
    }
}

/// Losses by the Gilbert model: a good state that loses nothing and a bad one that loses all. Before
/// each packet the state may change. The mean share lost is `p / (p + r)`, the mean burst `1 / r`.
#[derive(Deserialize, Clone, Copy, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct BurstLoss {
    /// Probability of going from good to bad.
    pub p: f64,
    /// Probability of going from bad to good.
    pub r: f64,
}

/// Wraps a port, called `name`, that is open already.
///
/// # Errors
/// [`PortError::Unsupported`] for a probability outside 0 to 1 or an endless delay.
pub fn wrap(name: &str, options: &FaultOptions, inner: OpenPort) -> Result<OpenPort, PortError> {
    check(options).map_err(|problem| PortError::Unsupported { device: name.into(), problem })?;
    let queues: Vec<_> = inner
        .queues
        .into_iter()
        .zip(0..)
        .map(|(queue, number)| FaultQueue::new(queue, number, options))
        .collect();
    let done = queues.iter().map(|queue| Arc::clone(&queue.done)).collect();
    let port = FaultPort { inner: inner.port, done };
    let queues = queues.into_iter().map(|queue| -> Box<dyn PortQueue> { Box::new(queue) });
    Ok(OpenPort { port: Box::new(port), queues: queues.collect() })
}

fn check(options: &FaultOptions) -> Result<(), String> {
    let burst = options.burst_loss.unwrap_or(BurstLoss { p: 0.0, r: 0.0 });
    for (key, probability) in [
        ("loss", options.loss),
        ("reorder", options.reorder),
        ("duplicate", options.duplicate),
        ("corrupt", options.corrupt),
        ("burst_loss.p", burst.p),
        ("burst_loss.r", burst.r),
    ] {
        if !(0.0..=1.0).contains(&probability) {
            return Err(format!("fault: {key} = {probability} is not a probability (0 to 1)"));
        }
    }
    if options.delay_us.saturating_add(options.jitter_us) > DELAY_MAX_US {
        return Err(format!("fault: delay_us + jitter_us are more than {DELAY_MAX_US}"));
    }
    if options.held_max_pkts == 0 {
        return Err("fault: held_max_pkts = 0 lets nothing through; use at least 1".into());
    }
    Ok(())
}

/// What the wrapper did. The queue's worker is the one writer.
#[derive(Debug, Default)]
struct Done {
    lost_pkts: Counter,
    reordered_pkts: Counter,
    duplicated_pkts: Counter,
    corrupted_pkts: Counter,
}

struct FaultPort {
    inner: Box<dyn Port>,
    done: Vec<Arc<Done>>,
}

impl Port for FaultPort {
    fn info(&self) -> PortInfo {
        let info = self.inner.info();
        PortInfo { driver: format!("{} with faults", info.driver), ..info }
    }

    fn hw_stats(&self) -> Vec<(String, u64)> {
        let total = |read: fn(&Done) -> &Counter| self.done.iter().map(|d| read(d).get()).sum();
        let mut stats = self.inner.hw_stats();
        stats.push(("fault_lost_pkts".into(), total(|done| &done.lost_pkts)));
        stats.push(("fault_reordered_pkts".into(), total(|done| &done.reordered_pkts)));
        stats.push(("fault_duplicated_pkts".into(), total(|done| &done.duplicated_pkts)));
        stats.push(("fault_corrupted_pkts".into(), total(|done| &done.corrupted_pkts)));
        stats
    }

    fn numa_node(&self) -> Option<u32> {
        self.inner.numa_node()
    }

    fn close(&mut self) {
        self.inner.close();
    }
}

/// A packet in the delay line.
struct Delayed {
    packet: PortPacket,
    due: Option<Instant>,
}

/// A packet that waits to be overtaken.
struct Aside {
    packet: PortPacket,
    overtakers_left: u32,
    until: Instant,
}

struct FaultQueue {
    inner: Box<dyn PortQueue>,
    options: FaultOptions,
    rng: fastrand::Rng,
    in_burst_loss: bool,
    line: VecDeque<Delayed>,
    last_due: Option<Instant>,
    aside: Vec<Aside>,
    done: Arc<Done>,
    arrived: Vec<PortPacket>,
    lost: Vec<BufferIndex>,
    spare: Vec<BufferIndex>,
    frame: Vec<u8>,
}

impl FaultQueue {
    fn new(inner: Box<dyn PortQueue>, number: u64, options: &FaultOptions) -> Self {
        // Consecutive seeds give unrelated sequences: the generator mixes its seed.
        let rng = fastrand::Rng::with_seed(options.seed.wrapping_add(number));
        Self {
            inner,
            options: options.clone(),
            rng,
            in_burst_loss: false,
            line: VecDeque::new(),
            last_due: None,
            aside: Vec::new(),
            done: Arc::default(),
            arrived: Vec::with_capacity(MAX_BURST_PKTS),
            lost: Vec::with_capacity(MAX_BURST_PKTS),
            spare: Vec::with_capacity(1),
            frame: Vec::new(),
        }
    }

    fn held(&self) -> usize {
        self.line.len() + self.aside.len()
    }

    /// Draws only for faults that are switched on: turning one on leaves the others' luck alone
    /// until it strikes for the first time.
    fn happens(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.rng.f64() < probability
    }

    fn admit(&mut self, pool: &mut BufferPool, packet: PortPacket) {
        if self.is_lost() {
            self.lost.push(packet.buffer);
            return;
        }
        let due = self.due();
        let copy =
            if self.happens(self.options.duplicate) { self.copy(pool, &packet) } else { None };
        if self.happens(self.options.corrupt) {
            self.corrupt(pool, &packet);
        }
        if self.happens(self.options.reorder) {
            let overtakers_left = self.rng.u32(1..=OVERTAKERS_MAX);
            let until = Instant::now() + ASIDE_MAX;
            self.aside.push(Aside { packet, overtakers_left, until });
            self.done.reordered_pkts.add(1);
        } else {
            self.pass(packet, due);
        }
        if let Some(copy) = copy {
            self.pass(copy, due);
        }
    }

    fn is_lost(&mut self) -> bool {
        if let Some(BurstLoss { p, r }) = self.options.burst_loss {
            let changes = self.happens(if self.in_burst_loss { r } else { p });
            self.in_burst_loss ^= changes;
        }
        self.happens(self.options.loss) || self.in_burst_loss
    }

    /// When a packet that comes now is to leave: never before the one ahead of it.
    fn due(&mut self) -> Option<Instant> {
        let (delay_us, jitter_us) = (self.options.delay_us, self.options.jitter_us);
        if delay_us + jitter_us == 0 {
            return None;
        }
        let delay = Duration::from_micros(delay_us + self.rng.u64(0..=jitter_us));
        let due = Some(Instant::now() + delay).max(self.last_due);
        self.last_due = due;
        due
    }

    /// The same bytes in a fresh buffer, or nothing when none is free.
    fn copy(&mut self, pool: &mut BufferPool, packet: &PortPacket) -> Option<PortPacket> {
        if pool.take(1, &mut self.spare) == 0 {
            return None;
        }
        let buffer = self.spare.pop()?;
        self.frame.resize(packet.len_bytes.into(), 0);
        let copied = pool.region().read(packet.buffer, packet.offset_bytes, &mut self.frame)
            && pool.region().write(buffer, packet.offset_bytes, &self.frame);
        if !copied {
            pool.give(&[buffer]);
            return None;
        }
        self.done.duplicated_pkts.add(1);
        let counters = self.inner.counters();
        counters.rx_pkts.add(1);
        counters.rx_bytes.add(packet.len_bytes.into());
        Some(PortPacket { buffer, ..*packet })
    }

    fn corrupt(&mut self, pool: &BufferPool, packet: &PortPacket) {
        let place = self.rng.u32(0..8 * u32::from(packet.len_bytes).max(1));
        let at = u32::from(packet.offset_bytes) + place / 8;
        let mut byte = [0];
        let Ok(at) = u16::try_from(at) else { return };
        if packet.len_bytes == 0 || !pool.region().read(packet.buffer, at, &mut byte) {
            return;
        }
        byte[0] ^= 1 << (place % 8);
        if pool.region().write(packet.buffer, at, &byte) {
            self.done.corrupted_pkts.add(1);
        }
    }

    /// Lets a packet into the delay line, and after it those it was the last to overtake.
    fn pass(&mut self, packet: PortPacket, due: Option<Instant>) {
        self.line.push_back(Delayed { packet, due });
        for aside in &mut self.aside {
            aside.overtakers_left = aside.overtakers_left.saturating_sub(1);
        }
        let line = &mut self.line;
        for aside in self.aside.extract_if(.., |aside| aside.overtakers_left == 0) {
            line.push_back(Delayed { packet: aside.packet, due });
        }
    }

    /// Stops waiting for overtakers that do not come.
    fn end_wait(&mut self) {
        if self.aside.is_empty() {
            return;
        }
        let no_more = self.inner.exhausted();
        let now = Instant::now();
        let line = &mut self.line;
        for aside in self.aside.extract_if(.., |aside| no_more || aside.until <= now) {
            line.push_back(Delayed { packet: aside.packet, due: self.last_due });
        }
    }

    fn release(&mut self, out: &mut Vec<PortPacket>, most: usize) -> usize {
        let now = self.line.front().and_then(|first| first.due).map(|_| Instant::now());
        let mut released = 0;
        while released < most {
            match self.line.front() {
                Some(first) if first.due <= now => out.push(first.packet),
                _ => break,
            }
            self.line.pop_front();
            released += 1;
        }
        released
    }

    fn poll_inner(&mut self, pool: &mut BufferPool) {
        let mut arrived = std::mem::take(&mut self.arrived);
        self.inner.rx_burst(pool, &mut arrived);
        for packet in arrived.drain(..) {
            self.admit(pool, packet);
        }
        self.arrived = arrived;
        if !self.lost.is_empty() {
            self.inner.counters().drops.add(DropReason::FaultLoss, self.lost.len() as u64);
            self.done.lost_pkts.add(self.lost.len() as u64);
            pool.give(&self.lost);
            self.lost.clear();
        }
    }
}

impl PortQueue for FaultQueue {
    fn rx_burst(&mut self, pool: &mut BufferPool, out: &mut Vec<PortPacket>) {
        let released = self.release(out, MAX_BURST_PKTS);
        if released == MAX_BURST_PKTS {
            return;
        }
        if self.held() < self.options.held_max_pkts as usize {
            self.poll_inner(pool);
        }
        self.end_wait();
        self.release(out, MAX_BURST_PKTS - released);
    }

    fn tx_burst(&mut self, pool: &mut BufferPool, packets: &[PortPacket]) -> usize {
        self.inner.tx_burst(pool, packets)
    }

    fn maintain(&mut self, pool: &mut BufferPool) {
        self.inner.maintain(pool);
    }

    fn counters(&self) -> &Arc<QueueCounters> {
        self.inner.counters()
    }

    /// None when packets may be held here, since no descriptor tells when those are due.
    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        let options = &self.options;
        let holds = options.delay_us + options.jitter_us > 0
            || options.reorder > 0.0
            || options.duplicate > 0.0;
        if holds { None } else { self.inner.poll_fd() }
    }

    fn held_pkts(&self) -> u64 {
        self.held() as u64 + self.inner.held_pkts()
    }

    fn held_buffers(&self) -> Option<usize> {
        Some(self.held() + self.inner.held_buffers()?)
    }

    fn tell_buffers(&self, tell: &mut dyn FnMut(BufferIndex, BufferUse)) {
        let line = self.line.iter().map(|delayed| delayed.packet.buffer);
        let aside = self.aside.iter().map(|aside| aside.packet.buffer);
        line.chain(aside).for_each(|buffer| tell(buffer, BufferUse::Delayed));
        self.inner.tell_buffers(tell);
    }

    fn exhausted(&self) -> bool {
        self.held() == 0 && self.inner.exhausted()
    }

    fn close(&mut self, pool: &mut BufferPool) {
        let line = self.line.drain(..).map(|delayed| delayed.packet);
        let aside = self.aside.drain(..).map(|aside| aside.packet);
        let held: Vec<_> = line.chain(aside).map(|packet| packet.buffer).collect();
        self.inner.counters().drops.add(DropReason::Shutdown, held.len() as u64);
        pool.give(&held);
        self.inner.close(pool);
    }
}

#[cfg(test)]
mod tests;
