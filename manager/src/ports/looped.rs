//! The `loop` port: what is sent out by it comes in by it, on the same queue and in order, as over a
//! cable that is plugged back into its own port. Nothing is copied.
//!
//! With `[port.fault]` around it it is a link that loses, delays or reorders, at the speed of the worker:
//! both ends of a tunnel can be tried in one manager, without any interface.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;

use nflib::control::BufferUse;
use nflib::shm::BufferIndex;
use serde::Deserialize;

use super::{
    LinkState, MAX_BURST_PKTS, OpenPort, Port, PortError, PortInfo, PortPacket, PortQueue,
};
use crate::pool::BufferPool;
use crate::stats::QueueCounters;

/// Most packets that may be under way on a queue.
const UNDER_WAY_MAX: u32 = 1 << 20;

/// Options of a `loop` port.
#[derive(Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct LoopOptions {
    /// Most packets under way on each queue; more are not taken, as by a NIC whose ring is full.
    pub held_max_pkts: u32,
    /// Number of queues.
    pub queues: u16,
}

impl Default for LoopOptions {
    fn default() -> Self {
        Self { held_max_pkts: 4096, queues: 1 }
    }
}

/// Opens a loop called `name`.
///
/// # Errors
/// [`PortError::Unsupported`] without a queue, a pool or room for a packet.
pub fn open(
    name: &str,
    options: &LoopOptions,
    pools: &mut [BufferPool],
) -> Result<OpenPort, PortError> {
    let fail = |problem: String| PortError::Unsupported { device: name.into(), problem };
    if options.queues == 0 || pools.is_empty() {
        return Err(fail("a port needs at least 1 queue and 1 buffer pool".into()));
    }
    if !(1..=UNDER_WAY_MAX).contains(&options.held_max_pkts) {
        let found = options.held_max_pkts;
        return Err(fail(format!("held_max_pkts = {found}; expected 1 to {UNDER_WAY_MAX}")));
    }
    let max_bytes = pools.iter().map(|pool| pool.region().geometry().max_packet_bytes()).min();
    let info = PortInfo {
        backend: "loop".into(),
        device: name.into(),
        driver: "loop".into(),
        link: LinkState::Up,
        speed_mbps: None,
        mac: None,
        mtu_bytes: max_bytes.unwrap_or(0).saturating_sub(14),
        promiscuous: true,
        queues: options.queues,
    };
    let queue = || -> Box<dyn PortQueue> { Box::new(LoopQueue::new(options.held_max_pkts)) };
    let queues = (0..options.queues).map(|_| queue()).collect();
    Ok(OpenPort { port: Box::new(LoopPort(info)), queues })
}

struct LoopPort(PortInfo);

impl Port for LoopPort {
    fn info(&self) -> PortInfo {
        self.0.clone()
    }
}

struct LoopQueue {
    counters: Arc<QueueCounters>,
    /// Sent, and not received yet. No more than there was room for from the start.
    under_way: VecDeque<PortPacket>,
    held_max_pkts: usize,
}

impl LoopQueue {
    fn new(held_max_pkts: u32) -> Self {
        let held_max_pkts = held_max_pkts as usize;
        let under_way = VecDeque::with_capacity(held_max_pkts);
        Self { counters: Arc::default(), under_way, held_max_pkts }
    }
}

fn bytes_of(packets: impl Iterator<Item = u16>) -> u64 {
    packets.map(u64::from).sum()
}

impl PortQueue for LoopQueue {
    fn rx_burst(&mut self, _pool: &mut BufferPool, out: &mut Vec<PortPacket>) {
        let count = self.under_way.len().min(MAX_BURST_PKTS);
        if count == 0 {
            return;
        }
        // What a far end would not be told is not told here: the hash may be that of a flow which is a
        // tunnel's inside by now.
        let arrivals =
            self.under_way.drain(..count).map(|packet| PortPacket { flow_hash: 0, ..packet });
        let before = out.len();
        out.extend(arrivals);
        self.counters.rx_pkts.add(count as u64);
        self.counters.rx_bytes.add(bytes_of(out[before..].iter().map(|packet| packet.len_bytes)));
    }

    fn tx_burst(&mut self, _pool: &mut BufferPool, packets: &[PortPacket]) -> usize {
        let room = self.held_max_pkts - self.under_way.len();
        let taken = &packets[..packets.len().min(room).min(MAX_BURST_PKTS)];
        self.under_way.extend(taken);
        self.counters.tx_pkts.add(taken.len() as u64);
        self.counters.tx_bytes.add(bytes_of(taken.iter().map(|packet| packet.len_bytes)));
        taken.len()
    }

    fn maintain(&mut self, _pool: &mut BufferPool) {}

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }

    /// Nobody but the worker itself sends into it.
    fn may_receive(&self) -> bool {
        !self.under_way.is_empty()
    }

    fn held_buffers(&self) -> Option<usize> {
        Some(self.under_way.len())
    }

    fn tell_buffers(&self, tell: &mut dyn FnMut(BufferIndex, BufferUse)) {
        self.under_way.iter().for_each(|packet| tell(packet.buffer, BufferUse::Sending));
    }

    fn close(&mut self, pool: &mut BufferPool) {
        let buffers: Vec<_> = self.under_way.drain(..).map(|packet| packet.buffer).collect();
        pool.give(&buffers);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use nflib::shm::{HugePages, Region, RegionGeometry};
    use proptest::prelude::*;

    use super::*;

    fn pools() -> Vec<BufferPool> {
        let geometry = RegionGeometry { buffers: 256, stride_bytes: 2048, headroom_bytes: 256 };
        let region = Arc::new(Region::create(geometry, HugePages::Off).unwrap());
        vec![BufferPool::new(region, 0, 256)]
    }

    proptest! {
        #[test]
        fn what_is_sent_comes_back_in_order_and_no_more_is_under_way_than_may_be(
            held_max_pkts in 1u32..100,
            steps in proptest::collection::vec((any::<bool>(), 0usize..90), 1..60),
        ) {
            let mut pools = pools();
            let options = LoopOptions { held_max_pkts, ..LoopOptions::default() };
            let mut port = open("loop0", &options, &mut pools).unwrap();
            let queue = &mut port.queues[0];
            let (mut model, mut number) = (VecDeque::new(), 0u16);
            for (sends, count) in steps {
                if sends {
                    let mut buffers = Vec::new();
                    pools[0].take(count, &mut buffers);
                    let packets: Vec<_> = buffers.iter().map(|&buffer| {
                        number = number % 1500 + 1;
                        PortPacket { buffer, offset_bytes: 200, len_bytes: number, flow_hash: 7 }
                    }).collect();
                    let taken = queue.tx_burst(&mut pools[0], &packets);
                    let room = held_max_pkts as usize - model.len();
                    prop_assert_eq!(taken, packets.len().min(room).min(MAX_BURST_PKTS));
                    model.extend(&packets[..taken]);
                    pools[0].give(&buffers[taken..]);
                } else {
                    let mut out = Vec::new();
                    queue.rx_burst(&mut pools[0], &mut out);
                    prop_assert_eq!(out.len(), model.len().min(MAX_BURST_PKTS));
                    for packet in &out {
                        let sent: PortPacket = model.pop_front().unwrap();
                        prop_assert_eq!(*packet, PortPacket { flow_hash: 0, ..sent });
                    }
                    let buffers: Vec<_> = out.iter().map(|packet| packet.buffer).collect();
                    pools[0].give(&buffers);
                }
                prop_assert_eq!(queue.held_buffers(), Some(model.len()));
                prop_assert_eq!(queue.may_receive(), !model.is_empty());
                let mut told = BTreeSet::new();
                queue.tell_buffers(&mut |buffer, _| { told.insert(buffer); });
                prop_assert_eq!(told, model.iter().map(|packet| packet.buffer).collect());
                let counters = queue.counters();
                let under_way = counters.tx_pkts.get() - counters.rx_pkts.get();
                prop_assert_eq!(under_way, model.len() as u64);
            }
            queue.close(&mut pools[0]);
            prop_assert_eq!(pools[0].free_buffers(), 256);
        }
    }

    #[test]
    fn a_loop_without_room_or_queue_is_refused_in_one_line() {
        for (options, expected) in [
            (
                LoopOptions { held_max_pkts: 0, queues: 1 },
                "loop0: held_max_pkts = 0; expected 1 to",
            ),
            (LoopOptions { held_max_pkts: 9, queues: 0 }, "at least 1 queue"),
        ] {
            let error = open("loop0", &options, &mut pools()).err().unwrap().to_string();
            assert!(error.contains(expected) && !error.contains('\n'), "{error}");
        }
    }
}
