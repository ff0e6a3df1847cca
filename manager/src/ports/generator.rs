//! The `generator` port: receives frames that nobody sent.
//!
//! It takes free buffers and writes frames of a given shape into them, at a given rate, so that a
//! chain can be driven and measured without a NIC and without privilege. The frames carry a flow
//! number and a sequence number ([`test_frame`](super::test_frame)), which the `sink` port can
//! check. Writing the frame into the buffer is this port's DMA. What is sent to it, it counts and
//! frees.
//!
//! Flows take turns, one packet each; with several queues, flow `f` belongs to queue
//! `f % queues`, as RSS would have it. When no buffer is free the generator waits: it makes the
//! packet later and drops nothing.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Instant;

use nflib::shm::BufferIndex;
use serde::Deserialize;

use super::sink::Discard;
use super::test_frame::{MAX_FLOWS, MIN_FRAME_BYTES, SOURCE_MAC, Stamp, Template};
use super::{
    LinkState, MAX_BURST_PKTS, OpenPort, Port, PortError, PortInfo, PortPacket, PortQueue,
};
use crate::pool::BufferPool;
use crate::stats::{DropReason, QueueCounters};

/// The simple IMIX, 7:4:1 of 64, 594 and 1518 bytes, here without the frame check sequence.
const IMIX_BYTES: [u16; 12] = [60, 590, 60, 60, 590, 60, 60, 590, 60, 1514, 590, 60];

/// Options of a `generator` port.
#[derive(Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct GeneratorOptions {
    /// Length of the frames without the frame check sequence, bytes: one number, a list that is
    /// gone through in turn, or `"imix"`. 60 is what RFC 2544 calls a 64-byte frame.
    pub frame_bytes: FrameBytes,
    /// Number of flows that differ in their UDP 5-tuple.
    pub flows: u32,
    /// Packets a second over all queues; 0 = as fast as asked.
    pub rate_pps: u64,
    /// Packets to make over all queues; 0 = endless.
    pub count_pkts: u64,
    /// Chooses the filler behind the stamp.
    pub seed: u64,
    /// Number of queues.
    pub queues: u16,
    /// Whether packets come with a flow hash, as from a NIC with receive-side scaling.
    pub flow_hash: bool,
}

impl Default for GeneratorOptions {
    fn default() -> Self {
        Self {
            frame_bytes: FrameBytes::One(60),
            flows: 64,
            rate_pps: 0,
            count_pkts: 0,
            seed: 1,
            queues: 1,
            flow_hash: true,
        }
    }
}

/// How long the frames are, bytes without the frame check sequence.
#[derive(Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(untagged, expecting = "frame_bytes must be a number, a list of numbers, or \"imix\"")]
pub enum FrameBytes {
    /// All of one length.
    One(u16),
    /// These lengths in turn.
    List(Vec<u16>),
    /// A mix with a name.
    Mix(Mix),
}

/// A mix of frame lengths with a name.
#[derive(Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Mix {
    /// 7:4:1 of 60, 590 and 1514 bytes.
    Imix,
}

impl FrameBytes {
    fn lengths(&self) -> &[u16] {
        match self {
            Self::One(len) => std::slice::from_ref(len),
            Self::List(list) => list,
            Self::Mix(Mix::Imix) => &IMIX_BYTES,
        }
    }
}

/// Opens a generator called `name`.
///
/// # Errors
/// [`PortError::Unsupported`] for options that contradict each other or the buffer size.
pub fn open(
    name: &str,
    options: &GeneratorOptions,
    pools: &mut [BufferPool],
) -> Result<OpenPort, PortError> {
    check(options, pools)
        .map_err(|problem| PortError::Unsupported { device: name.into(), problem })?;
    let mut rng = fastrand::Rng::with_seed(options.seed);
    let templates: Arc<[Template]> =
        options.frame_bytes.lengths().iter().map(|&len| Template::new(len, &mut rng)).collect();
    let queues = (0..options.queues)
        .map(|q| -> Box<dyn PortQueue> {
            Box::new(GeneratorQueue::new(q, options, Arc::clone(&templates)))
        })
        .collect();
    let max_bytes = pools.iter().map(|pool| pool.region().geometry().max_packet_bytes()).min();
    let port = GeneratorPort {
        info: PortInfo {
            backend: "generator".into(),
            device: name.into(),
            driver: "generator".into(),
            link: LinkState::Up,
            speed_mbps: None,
            mac: Some(SOURCE_MAC.map(|byte| format!("{byte:02x}")).join(":")),
            mtu_bytes: max_bytes.unwrap_or(0).saturating_sub(14),
            promiscuous: true,
            queues: options.queues,
        },
    };
    Ok(OpenPort { port: Box::new(port), queues })
}

fn check(options: &GeneratorOptions, pools: &[BufferPool]) -> Result<(), String> {
    let queues = options.queues;
    if queues == 0 || pools.is_empty() {
        return Err("a port needs at least 1 queue and 1 buffer pool".into());
    }
    if options.flows < u32::from(queues) || options.flows > MAX_FLOWS {
        return Err(format!(
            "flows = {} is outside {queues}..={MAX_FLOWS} (at least one for each queue)",
            options.flows
        ));
    }
    if options.rate_pps != 0 && options.rate_pps < u64::from(queues) {
        return Err(format!(
            "rate_pps = {} is less than 1 for each of {queues} queues; use fewer queues",
            options.rate_pps
        ));
    }
    let lengths = options.frame_bytes.lengths();
    if lengths.is_empty() {
        return Err("frame_bytes is an empty list; name at least one length".into());
    }
    for pool in pools {
        let max = pool.region().geometry().max_packet_bytes();
        if let Some(bad) =
            lengths.iter().find(|&&len| len < MIN_FRAME_BYTES || u32::from(len) > max)
        {
            return Err(format!(
                "frame_bytes = {bad} is outside {MIN_FRAME_BYTES}..={max} (the space of a buffer \
                 behind its headroom)"
            ));
        }
    }
    Ok(())
}

struct GeneratorPort {
    info: PortInfo,
}

impl Port for GeneratorPort {
    fn info(&self) -> PortInfo {
        self.info.clone()
    }
}

/// One queue's part of `total` that is shared out as evenly as whole numbers allow.
fn share(total: u64, queue: u16, queues: u16) -> u64 {
    let (queue, queues) = (u64::from(queue), u64::from(queues));
    total / queues + u64::from(queue < total % queues)
}

struct GeneratorQueue {
    templates: Arc<[Template]>,
    next_template: usize,
    next: Stamp,
    first_flow: u32,
    flow_step: u32,
    flows: u32,
    left_pkts: Option<u64>,
    pacer: Option<Pacer>,
    gives_hash: bool,
    counters: Arc<QueueCounters>,
    discard: Discard,
    buffers: Vec<BufferIndex>,
    unfit: Vec<BufferIndex>,
}

impl GeneratorQueue {
    fn new(queue: u16, options: &GeneratorOptions, templates: Arc<[Template]>) -> Self {
        let counted = options.count_pkts != 0;
        let paced = options.rate_pps != 0;
        Self {
            templates,
            next_template: 0,
            next: Stamp { flow: u32::from(queue), sequence: 0 },
            first_flow: u32::from(queue),
            flow_step: u32::from(options.queues),
            flows: options.flows,
            gives_hash: options.flow_hash,
            left_pkts: counted.then(|| share(options.count_pkts, queue, options.queues)),
            pacer: paced.then(|| Pacer::new(share(options.rate_pps, queue, options.queues))),
            counters: Arc::default(),
            discard: Discard::default(),
            buffers: Vec::with_capacity(MAX_BURST_PKTS),
            unfit: Vec::new(),
        }
    }

    fn due_pkts(&mut self) -> usize {
        let mut due = MAX_BURST_PKTS as u64;
        if let Some(left) = self.left_pkts {
            due = due.min(left);
        }
        if let Some(pacer) = &mut self.pacer {
            due = due.min(pacer.due_pkts(Instant::now()));
        }
        due as usize
    }

    #[inline]
    fn step(&mut self) {
        self.next.flow += self.flow_step;
        if self.next.flow >= self.flows {
            self.next.flow = self.first_flow;
            self.next.sequence += 1;
        }
        self.next_template += 1;
        if self.next_template == self.templates.len() {
            self.next_template = 0;
        }
    }
}

impl PortQueue for GeneratorQueue {
    fn rx_burst(&mut self, pool: &mut BufferPool, out: &mut Vec<PortPacket>) {
        let due = self.due_pkts();
        if due == 0 {
            return;
        }
        let mut buffers = std::mem::take(&mut self.buffers);
        let made = pool.take(due, &mut buffers) as u64;
        let region = pool.region();
        let offset_bytes = region.geometry().headroom_bytes;
        let mut bytes = 0;
        for buffer in buffers.drain(..) {
            let stamp = self.next;
            let template = &self.templates[self.next_template];
            let len_bytes = template.len_bytes();
            if template.write(region, buffer, offset_bytes, stamp) {
                let flow_hash = if self.gives_hash { flow_hash(stamp.flow) } else { 0 };
                out.push(PortPacket { buffer, offset_bytes, len_bytes, flow_hash });
            } else {
                self.unfit.push(buffer);
            }
            bytes += u64::from(len_bytes);
            self.step();
        }
        self.buffers = buffers;
        if let Some(left) = &mut self.left_pkts {
            *left -= made;
        }
        if let Some(pacer) = &mut self.pacer {
            pacer.sent_pkts += made;
        }
        self.counters.rx_pkts.add(made);
        self.counters.rx_bytes.add(bytes);
        if !self.unfit.is_empty() {
            // Only with a pool of smaller buffers than the one the port was opened on.
            self.counters.drops.add(DropReason::RxTooLarge, self.unfit.len() as u64);
            pool.give(&self.unfit);
            self.unfit.clear();
        }
    }

    fn tx_burst(&mut self, pool: &mut BufferPool, packets: &[PortPacket]) -> usize {
        self.discard.take(pool, packets, &self.counters)
    }

    fn maintain(&mut self, _pool: &mut BufferPool) {}

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }

    fn exhausted(&self) -> bool {
        self.left_pkts == Some(0)
    }

    fn close(&mut self, _pool: &mut BufferPool) {}
}

/// A hash as a NIC would give: the same for each packet of a flow, and never 0.
#[inline]
fn flow_hash(flow: u32) -> u32 {
    let mixed = (flow ^ (flow >> 15)).wrapping_mul(0x9e37_79b1);
    (mixed ^ (mixed >> 16)) | 1
}

/// Says how many packets are due at a steady rate.
///
/// The average is kept exactly while the worker comes by at least every 10 ms; what it sleeps away
/// beyond that is forgiven, so that a stall is not followed by a flood.
struct Pacer {
    rate_pps: u64,
    backlog_max_pkts: u64,
    started: Option<Instant>,
    sent_pkts: u64,
}

impl Pacer {
    fn new(rate_pps: u64) -> Self {
        let backlog_max_pkts = (rate_pps / 100).max(1);
        Self { rate_pps, backlog_max_pkts, started: None, sent_pkts: 0 }
    }

    fn due_pkts(&mut self, now: Instant) -> u64 {
        let elapsed = now - *self.started.get_or_insert(now);
        let owed = elapsed.as_nanos() * u128::from(self.rate_pps) / 1_000_000_000;
        let owed = u64::try_from(owed).unwrap_or(u64::MAX);
        let due = owed.saturating_sub(self.sent_pkts);
        let forgiven = due.saturating_sub(self.backlog_max_pkts);
        self.sent_pkts += forgiven;
        due - forgiven
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::test_frame;
    use nflib::shm::{HugePages, Region, RegionGeometry};
    use std::time::Duration;

    fn pools(count: u32) -> Vec<BufferPool> {
        let geometry =
            RegionGeometry { buffers: count * 256, stride_bytes: 2048, headroom_bytes: 256 };
        let region = Arc::new(Region::create(geometry, HugePages::Off).unwrap());
        (0..count).map(|i| BufferPool::new(Arc::clone(&region), i * 256, 256)).collect()
    }

    fn options(toml: &str) -> GeneratorOptions {
        toml::from_str(toml).unwrap()
    }

    fn receive_all(toml: &str) -> Vec<Stamp> {
        let mut pools = pools(1);
        let mut port = open("gen0", &options(toml), &mut pools).unwrap();
        let mut stamps = Vec::new();
        for queue in &mut port.queues {
            while !queue.exhausted() {
                let mut out = Vec::new();
                queue.rx_burst(&mut pools[0], &mut out);
                for packet in &out {
                    let mut frame = vec![0; packet.len_bytes.into()];
                    assert!(pools[0].region().read(packet.buffer, packet.offset_bytes, &mut frame));
                    stamps.push(test_frame::parse(&frame).unwrap());
                }
                let buffers: Vec<_> = out.iter().map(|packet| packet.buffer).collect();
                pools[0].give(&buffers);
            }
        }
        stamps
    }

    #[test]
    fn flows_take_turns_and_each_counts_from_zero() {
        let stamps = receive_all("flows = 3\ncount_pkts = 100");
        assert_eq!(stamps.len(), 100);
        for (i, stamp) in stamps.iter().enumerate() {
            let expected = Stamp { flow: i as u32 % 3, sequence: i as u64 / 3 };
            assert_eq!(*stamp, expected);
        }
    }

    #[test]
    fn queues_share_the_count_and_keep_each_flow_to_one_queue() {
        let stamps = receive_all("flows = 5\ncount_pkts = 101\nqueues = 2");
        assert_eq!(stamps.len(), 101);
        let mut seen = std::collections::HashSet::new();
        assert!(stamps.iter().all(|stamp| seen.insert((stamp.flow, stamp.sequence))));
        assert!(stamps[..51].iter().all(|stamp| stamp.flow % 2 == 0));
        assert!(stamps[51..].iter().all(|stamp| stamp.flow % 2 == 1));
    }

    #[test]
    fn imix_has_seven_short_four_medium_and_one_long() {
        let mut pools = pools(1);
        let options = options("frame_bytes = \"imix\"\ncount_pkts = 12");
        let mut port = open("gen0", &options, &mut pools).unwrap();
        let mut out = Vec::new();
        port.queues[0].rx_burst(&mut pools[0], &mut out);
        let with = |len| out.iter().filter(|packet| packet.len_bytes == len).count();
        assert_eq!([with(60), with(590), with(1514)], [7, 4, 1]);
    }

    #[test]
    fn the_rate_is_kept_and_a_stall_is_not_made_up_for() {
        let start = Instant::now();
        let mut pacer = Pacer::new(1_000_000);
        assert_eq!(pacer.due_pkts(start), 0);
        assert_eq!(pacer.due_pkts(start + Duration::from_micros(50)), 50);
        pacer.sent_pkts += 50;
        assert_eq!(pacer.due_pkts(start + Duration::from_millis(1)), 950);
        pacer.sent_pkts += 950;
        assert_eq!(pacer.due_pkts(start + Duration::from_secs(1)), 10_000);
        pacer.sent_pkts += 10_000;
        assert_eq!(pacer.due_pkts(start + Duration::from_secs(1)), 0);
    }

    #[test]
    fn a_hash_is_given_unless_it_is_not_wanted() {
        assert!(options("").flow_hash);
        assert!(!options("flow_hash = false").flow_hash);
    }

    #[test]
    fn impossible_options_are_refused_with_the_value_and_the_range() {
        let mut pools = pools(1);
        for (toml, word) in [
            ("flows = 0", "flows = 0 is outside 1..=16777216"),
            ("queues = 0", "at least 1 queue"),
            ("queues = 4\nrate_pps = 3", "use fewer queues"),
            ("frame_bytes = 59", "frame_bytes = 59 is outside 60..=1792"),
            ("frame_bytes = [60, 9000]", "frame_bytes = 9000"),
            ("frame_bytes = []", "empty list"),
        ] {
            let error = open("gen0", &options(toml), &mut pools).err().unwrap().to_string();
            assert!(error.starts_with("gen0: ") && error.contains(word), "{error}");
        }
        assert!(toml::from_str::<GeneratorOptions>("rate = 1").is_err());
        let error = toml::from_str::<GeneratorOptions>("frame_bytes = \"tiny\"").unwrap_err();
        assert!(error.to_string().contains("or \"imix\""), "{error}");
    }
}
