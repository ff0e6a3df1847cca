//! Ports with one defect each, to see that the checks notice.

use std::sync::Arc;

use millrace::pool::BufferPool;
use millrace::ports::{OpenPort, PortPacket, PortQueue};
use millrace::stats::QueueCounters;

use super::lab::{Abilities, Lab};
use super::plain::PcapLab;

/// What is wrong with a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// Delivers the second packet of a burst before the first.
    Reorders,
    /// Delivers a packet a second time.
    DeliversTwice,
    /// Puts data where the headroom should be.
    TakesHeadroom,
    /// Says that it took one packet more than it did.
    ClaimsMore,
    /// Sends from where the data was received, not from where it is now.
    IgnoresMovedStart,
    /// Drops a packet without counting it.
    DropsSilently,
    /// Keeps a buffer for ever.
    LosesABuffer,
}

/// A `pcap` port with a defect.
pub struct BrokenLab {
    inner: PcapLab,
    defect: Defect,
}

impl BrokenLab {
    /// The lab, when files can be made here.
    pub fn new(defect: Defect) -> Self {
        Self { inner: PcapLab::new().unwrap(), defect }
    }
}

impl Lab for BrokenLab {
    fn new() -> Result<Self, String> {
        Err("a broken port needs to be told its defect".into())
    }

    fn abilities(&self) -> Abilities {
        self.inner.abilities()
    }

    fn open(&mut self, pools: &mut [BufferPool], arrivals: &[Vec<u8>]) -> OpenPort {
        let OpenPort { port, queues } = self.inner.open(pools, arrivals);
        let defect = self.defect;
        let broken = |inner| -> Box<dyn PortQueue> { Box::new(BrokenQueue { inner, defect }) };
        OpenPort { port, queues: queues.into_iter().map(broken).collect() }
    }

    fn sent(&mut self) -> Vec<Vec<u8>> {
        self.inner.sent()
    }
}

struct BrokenQueue {
    inner: Box<dyn PortQueue>,
    defect: Defect,
}

impl PortQueue for BrokenQueue {
    fn rx_burst(&mut self, pool: &mut BufferPool, out: &mut Vec<PortPacket>) {
        let before = out.len();
        self.inner.rx_burst(pool, out);
        if out.len() < before + 2 {
            return;
        }
        match self.defect {
            Defect::Reorders => out.swap(before, before + 1),
            Defect::DeliversTwice => out[before + 1] = out[before],
            Defect::TakesHeadroom => out[before].offset_bytes -= 1,
            Defect::DropsSilently => pool.give(&[out.remove(before).buffer]),
            Defect::LosesABuffer => {
                out.remove(before);
                self.counters().rx_pkts.add(1_u64.wrapping_neg());
            }
            Defect::ClaimsMore | Defect::IgnoresMovedStart => {}
        }
    }

    fn tx_burst(&mut self, pool: &mut BufferPool, packets: &[PortPacket]) -> usize {
        match self.defect {
            Defect::ClaimsMore => {
                let most = packets.len().saturating_sub(1);
                self.inner.tx_burst(pool, &packets[..most]) + 1
            }
            Defect::IgnoresMovedStart => {
                let headroom = pool.region().geometry().headroom_bytes;
                let moved = |packet: &PortPacket| PortPacket { offset_bytes: headroom, ..*packet };
                self.inner.tx_burst(pool, &packets.iter().map(moved).collect::<Vec<_>>())
            }
            _ => self.inner.tx_burst(pool, packets),
        }
    }

    fn maintain(&mut self, pool: &mut BufferPool) {
        self.inner.maintain(pool);
    }

    fn counters(&self) -> &Arc<QueueCounters> {
        self.inner.counters()
    }

    fn held_pkts(&self) -> u64 {
        self.inner.held_pkts()
    }

    fn exhausted(&self) -> bool {
        self.inner.exhausted()
    }

    fn close(&mut self, pool: &mut BufferPool) {
        self.inner.close(pool);
    }
}
