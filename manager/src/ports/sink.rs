//! The `sink` port: counts what it is sent and frees it. It receives nothing.
//!
//! With `verify = true` it also reads each frame and checks the generator's stamp
//! ([`test_frame`]): lost, reordered, duplicated and damaged packets show up in
//! the port's hardware statistics under names that begin with `verify_`.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;

use nflib::shm::BufferIndex;
use serde::Deserialize;

use super::test_frame::{self, Flaw, Stamp};
use super::{
    LinkState, MAX_BURST_PKTS, OpenPort, Port, PortError, PortInfo, PortPacket, PortQueue,
};
use crate::pool::BufferPool;
use crate::stats::{Counter, QueueCounters};

/// Options of a `sink` port.
#[derive(Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct SinkOptions {
    /// Check the stamps of a generator's frames.
    pub verify: bool,
    /// Most flows that each queue keeps track of, at about 200 bytes each; packets of further flows
    /// are counted as `verify_untracked_pkts`.
    pub verify_flows_max: u32,
    /// Number of queues. Each checks on its own, so a flow should stay on one queue.
    pub queues: u16,
}

impl Default for SinkOptions {
    fn default() -> Self {
        Self { verify: false, verify_flows_max: 65_536, queues: 1 }
    }
}

/// Opens a sink called `name`.
///
/// # Errors
/// [`PortError::Unsupported`] without a queue or a pool.
pub fn open(
    name: &str,
    options: &SinkOptions,
    pools: &mut [BufferPool],
) -> Result<OpenPort, PortError> {
    if options.queues == 0 || pools.is_empty() {
        let problem = "a port needs at least 1 queue and 1 buffer pool".into();
        return Err(PortError::Unsupported { device: name.into(), problem });
    }
    let queues: Vec<_> = (0..options.queues).map(|_| SinkQueue::new(options)).collect();
    let max_bytes = pools.iter().map(|pool| pool.region().geometry().max_packet_bytes()).min();
    let port = SinkPort {
        info: PortInfo {
            backend: "sink".into(),
            device: name.into(),
            driver: if options.verify { "sink verify" } else { "sink" }.into(),
            link: LinkState::Up,
            speed_mbps: None,
            mac: None,
            mtu_bytes: max_bytes.unwrap_or(0).saturating_sub(14),
            promiscuous: true,
            queues: options.queues,
        },
        findings: queues.iter().filter_map(SinkQueue::findings).collect(),
    };
    let queues = queues.into_iter().map(|queue| -> Box<dyn PortQueue> { Box::new(queue) });
    Ok(OpenPort { port: Box::new(port), queues: queues.collect() })
}

struct SinkPort {
    info: PortInfo,
    findings: Vec<Arc<Findings>>,
}

impl Port for SinkPort {
    fn info(&self) -> PortInfo {
        self.info.clone()
    }

    fn hw_stats(&self) -> Vec<(String, u64)> {
        if self.findings.is_empty() {
            return Vec::new();
        }
        let total = |read: fn(&Findings) -> u64| self.findings.iter().map(|f| read(f)).sum();
        [
            ("verify_good_pkts", total(|f| f.good_pkts.get())),
            ("verify_lost_pkts", total(Findings::lost_pkts)),
            ("verify_reordered_pkts", total(|f| f.reordered_pkts.get())),
            ("verify_duplicate_pkts", total(|f| f.duplicate_pkts.get())),
            ("verify_stale_pkts", total(|f| f.stale_pkts.get())),
            ("verify_corrupt_pkts", total(|f| f.corrupt_pkts.get())),
            ("verify_foreign_pkts", total(|f| f.foreign_pkts.get())),
            ("verify_untracked_pkts", total(|f| f.untracked_pkts.get())),
        ]
        .map(|(name, value)| (name.to_string(), value))
        .into()
    }
}

/// Sending into nothing: counts packets and frees them.
#[derive(Debug, Default)]
pub(super) struct Discard {
    freed: Vec<BufferIndex>,
}

impl Discard {
    /// Takes up to a burst from the front of `packets`; returns how many.
    #[inline]
    pub(super) fn take(
        &mut self,
        pool: &mut BufferPool,
        packets: &[PortPacket],
        counters: &QueueCounters,
    ) -> usize {
        let taken = &packets[..packets.len().min(MAX_BURST_PKTS)];
        self.freed.clear();
        self.freed.extend(taken.iter().map(|packet| packet.buffer));
        pool.give(&self.freed);
        counters.tx_pkts.add(taken.len() as u64);
        counters.tx_bytes.add(taken.iter().map(|packet| u64::from(packet.len_bytes)).sum());
        taken.len()
    }
}

struct SinkQueue {
    counters: Arc<QueueCounters>,
    discard: Discard,
    verifier: Option<Verifier>,
}

impl SinkQueue {
    fn new(options: &SinkOptions) -> Self {
        let verifier = options.verify.then(|| Verifier::new(options.verify_flows_max));
        Self { counters: Arc::default(), discard: Discard::default(), verifier }
    }

    fn findings(&self) -> Option<Arc<Findings>> {
        self.verifier.as_ref().map(|verifier| Arc::clone(&verifier.findings))
    }
}

impl PortQueue for SinkQueue {
    fn rx_burst(&mut self, _pool: &mut BufferPool, _out: &mut Vec<PortPacket>) {}

    fn may_receive(&self) -> bool {
        false
    }

    fn tx_burst(&mut self, pool: &mut BufferPool, packets: &[PortPacket]) -> usize {
        if let Some(verifier) = &mut self.verifier {
            for packet in packets.iter().take(MAX_BURST_PKTS) {
                verifier.check(pool, packet);
            }
        }
        self.discard.take(pool, packets, &self.counters)
    }

    fn maintain(&mut self, _pool: &mut BufferPool) {}

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }

    fn close(&mut self, _pool: &mut BufferPool) {}
}

/// What the checks of one queue found. The queue's worker is the one writer.
#[derive(Debug, Default)]
struct Findings {
    /// Undamaged packets seen for the first time, in order or not.
    good_pkts: Counter,
    /// Sequence numbers that were jumped over …
    skipped_pkts: Counter,
    /// … and, of those, the ones that came later: packets overtaken by others of their flow.
    reordered_pkts: Counter,
    /// Packets seen before.
    duplicate_pkts: Counter,
    /// So far behind that it cannot be told whether they are late or duplicates.
    stale_pkts: Counter,
    /// A length or checksum is wrong.
    corrupt_pkts: Counter,
    /// Not a generator's frame.
    foreign_pkts: Counter,
    /// Of a flow beyond the limit.
    untracked_pkts: Counter,
}

impl Findings {
    /// Packets missing now: each was followed by a later one of its flow and has not come since.
    /// The last ones of a flow can be missing without anyone noticing.
    fn lost_pkts(&self) -> u64 {
        // The reordered first: a reader in another thread then sees too many rather than < 0.
        let reordered = self.reordered_pkts.get();
        self.skipped_pkts.get().saturating_sub(reordered)
    }
}

struct Verifier {
    flows: HashMap<u32, FlowState>,
    flows_max: usize,
    frame: Vec<u8>,
    findings: Arc<Findings>,
}

impl Verifier {
    fn new(flows_max: u32) -> Self {
        let flows_max = usize::try_from(flows_max).unwrap_or(usize::MAX);
        Self { flows: HashMap::new(), flows_max, frame: Vec::new(), findings: Arc::default() }
    }

    fn check(&mut self, pool: &BufferPool, packet: &PortPacket) {
        self.frame.resize(packet.len_bytes.into(), 0);
        // A copy, since an NF may still be able to write the buffer while we look at it.
        if !pool.region().read(packet.buffer, packet.offset_bytes, &mut self.frame) {
            self.findings.corrupt_pkts.add(1);
            return;
        }
        match test_frame::parse(&self.frame) {
            Ok(stamp) => self.place(stamp),
            Err(Flaw::Corrupt) => self.findings.corrupt_pkts.add(1),
            Err(Flaw::Foreign) => self.findings.foreign_pkts.add(1),
        }
    }

    fn place(&mut self, stamp: Stamp) {
        let findings = &self.findings;
        if self.flows.len() >= self.flows_max && !self.flows.contains_key(&stamp.flow) {
            findings.untracked_pkts.add(1);
            return;
        }
        match self.flows.entry(stamp.flow).or_default().place(stamp.sequence) {
            Place::Next { skipped_pkts } => {
                findings.good_pkts.add(1);
                findings.skipped_pkts.add(skipped_pkts);
            }
            Place::Late => {
                findings.good_pkts.add(1);
                findings.reordered_pkts.add(1);
            }
            Place::Again => findings.duplicate_pkts.add(1),
            Place::Stale => findings.stale_pkts.add(1),
        }
    }
}

/// How far back the packets of a flow are remembered one by one.
const WINDOW_PKTS: u64 = 1024;
const WINDOW_WORDS: usize = WINDOW_PKTS as usize / 64;

#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// The furthest so far, `skipped_pkts` beyond the one expected.
    Next { skipped_pkts: u64 },
    /// Behind a later one, for the first time.
    Late,
    /// Seen before.
    Again,
    /// Further back than the window.
    Stale,
}

/// Which of a flow's last [`WINDOW_PKTS`] packets were seen: a ring of bits, one a packet.
#[derive(Debug, Default)]
struct FlowState {
    next: u64,
    seen: [u64; WINDOW_WORDS],
}

impl FlowState {
    fn place(&mut self, sequence: u64) -> Place {
        if sequence >= self.next {
            let skipped_pkts = sequence - self.next;
            if skipped_pkts >= WINDOW_PKTS {
                self.seen = [0; WINDOW_WORDS];
            } else {
                (self.next..sequence).for_each(|missing| *self.word(missing) &= !bit(missing));
            }
            *self.word(sequence) |= bit(sequence);
            self.next = sequence.saturating_add(1);
            return Place::Next { skipped_pkts };
        }
        if self.next - sequence > WINDOW_PKTS {
            return Place::Stale;
        }
        let word = self.word(sequence);
        if *word & bit(sequence) != 0 {
            return Place::Again;
        }
        *word |= bit(sequence);
        Place::Late
    }

    fn word(&mut self, sequence: u64) -> &mut u64 {
        &mut self.seen[(sequence % WINDOW_PKTS / 64) as usize]
    }
}

fn bit(sequence: u64) -> u64 {
    1 << (sequence % 64)
}

#[cfg(test)]
mod tests {
    use super::super::generator::{self, GeneratorOptions};
    use super::*;
    use nflib::shm::{HugePages, Region, RegionGeometry};
    use proptest::prelude::*;

    fn pools() -> Vec<BufferPool> {
        let geometry = RegionGeometry { buffers: 256, stride_bytes: 2048, headroom_bytes: 256 };
        let region = Arc::new(Region::create(geometry, HugePages::Off).unwrap());
        vec![BufferPool::new(region, 0, 256)]
    }

    /// Sends one burst of generated packets, changed by `change`, to a verifying sink.
    fn findings(
        flows: u32,
        flows_max: u32,
        change: impl Fn(&BufferPool, &mut Vec<PortPacket>),
    ) -> HashMap<String, u64> {
        let mut pools = pools();
        let source = GeneratorOptions { flows, ..Default::default() };
        let mut source = generator::open("gen0", &source, &mut pools).unwrap();
        let options =
            SinkOptions { verify: true, verify_flows_max: flows_max, ..Default::default() };
        let mut sink = open("sink0", &options, &mut pools).unwrap();
        let mut packets = Vec::new();
        source.queues[0].rx_burst(&mut pools[0], &mut packets);
        change(&pools[0], &mut packets);
        let sent = packets.len();
        assert_eq!(sink.queues[0].tx_burst(&mut pools[0], &packets), sent);
        assert_eq!(sink.queues[0].counters().tx_pkts.get(), sent as u64);
        let stats: HashMap<_, _> =
            sink.port.hw_stats().into_iter().filter(|&(_, value)| value > 0).collect();
        stats
    }

    fn expect(found: &HashMap<String, u64>, expected: &[(&str, u64)]) {
        let expected: HashMap<String, u64> =
            expected.iter().map(|&(name, value)| (format!("verify_{name}_pkts"), value)).collect();
        assert_eq!(*found, expected);
    }

    #[test]
    fn an_unchanged_stream_is_all_good() {
        expect(&findings(4, 100, |_, _| ()), &[("good", 64)]);
    }

    #[test]
    fn lost_reordered_duplicated_and_damaged_packets_are_told_apart() {
        let lose = |_: &BufferPool, packets: &mut Vec<_>| drop(packets.drain(10..13));
        expect(&findings(1, 100, lose), &[("good", 61), ("lost", 3)]);
        let swap = |_: &BufferPool, packets: &mut Vec<_>| packets.swap(10, 13);
        expect(&findings(1, 100, swap), &[("good", 64), ("reordered", 3)]);
        // The same bytes from another buffer: a buffer is freed only once.
        let repeat = |pool: &BufferPool, packets: &mut Vec<PortPacket>| {
            let mut frame = vec![0; 60];
            assert!(pool.region().read(packets[5].buffer, 256, &mut frame));
            assert!(pool.region().write(packets[40].buffer, 256, &frame));
        };
        expect(&findings(1, 100, repeat), &[("good", 63), ("lost", 1), ("duplicate", 1)]);
        let damage = |pool: &BufferPool, packets: &mut Vec<PortPacket>| {
            assert!(pool.region().write(packets[5].buffer, 256 + 52, &[0xff]));
            assert!(pool.region().write(packets[6].buffer, 256 + 12, &[0x86, 0xdd]));
        };
        let expected = [("good", 62), ("lost", 2), ("corrupt", 1), ("foreign", 1)];
        expect(&findings(1, 100, damage), &expected);
    }

    #[test]
    fn flows_beyond_the_limit_are_counted_and_not_kept() {
        expect(&findings(64, 10, |_, _| ()), &[("good", 10), ("untracked", 54)]);
    }

    proptest! {
        #[test]
        fn the_window_agrees_with_a_set_that_remembers_everything(
            sequences in prop::collection::vec(0_u64..3000, 1..400),
        ) {
            let mut state = FlowState::default();
            let mut seen = std::collections::HashSet::new();
            let mut next = 0;
            for sequence in sequences {
                let expected = if sequence >= next {
                    Place::Next { skipped_pkts: sequence - next }
                } else if next - sequence > WINDOW_PKTS {
                    Place::Stale
                } else if seen.contains(&sequence) {
                    Place::Again
                } else {
                    Place::Late
                };
                seen.insert(sequence);
                next = next.max(sequence + 1);
                prop_assert_eq!(state.place(sequence), expected);
            }
        }
    }
}
