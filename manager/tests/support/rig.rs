//! A rig: an open port in its lab, with the rules that hold at every moment checked on each step.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace::pool::BufferPool;
use millrace::ports::{MAX_BURST_PKTS, OpenPort, PortPacket};
use millrace::stats::QueueCounters;
use nflib::shm::{BufferIndex, HugePages, Region};

use super::lab::{Lab, ShowsSent};

/// How long anything may take before a check fails.
const PATIENCE: Duration = Duration::from_secs(10);
/// Frames put on the wire in one turn.
const FEED_PKTS: usize = 32;

pub struct Rig<L: Lab> {
    pub lab: L,
    pub pool: Vec<BufferPool>,
    pub port: OpenPort,
    /// What arrives, in order.
    pub arrivals: Vec<Vec<u8>>,
    /// How many of the arrivals may still be put on the wire.
    pub feed_left: usize,
    in_hand: HashSet<BufferIndex>,
    received_pkts: u64,
    received_bytes: u64,
    given_pkts: u64,
}

impl<L: Lab> Rig<L> {
    /// Opens the port of `lab`, at which `wanted` are to arrive.
    pub fn new(mut lab: L, wanted: Vec<Vec<u8>>) -> Self {
        let geometry = lab.geometry();
        let region = Arc::new(Region::create(geometry, HugePages::Off).expect("a region"));
        let mut pool = vec![lab.pool(&region)];
        let arrivals = lab.arrivals(wanted);
        let port = lab.open(&mut pool, &arrivals);
        assert_eq!(port.queues.len(), 1, "the suite drives one queue");
        Self {
            lab,
            pool,
            port,
            arrivals,
            feed_left: usize::MAX,
            in_hand: HashSet::new(),
            received_pkts: 0,
            received_bytes: 0,
            given_pkts: 0,
        }
    }

    pub fn counters(&self) -> &QueueCounters {
        self.port.queues[0].counters()
    }

    /// One turn of a worker: a burst received, and the queue's own work.
    pub fn turn(&mut self) -> Vec<PortPacket> {
        self.feed_left -= self.lab.feed(FEED_PKTS.min(self.feed_left));
        let marker = PortPacket { buffer: u32::MAX, offset_bytes: 1, len_bytes: 2, flow_hash: 3 };
        let mut out = vec![marker];
        let queue = &mut self.port.queues[0];
        queue.rx_burst(&mut self.pool[0], &mut out);
        queue.maintain(&mut self.pool[0]);
        assert_eq!(out.remove(0), marker, "a burst is appended to what is there");
        assert!(out.len() <= MAX_BURST_PKTS, "a burst of {} packets", out.len());
        for packet in &out {
            self.check_delivered(packet);
        }
        self.received_pkts += out.len() as u64;
        self.received_bytes += out.iter().map(|packet| u64::from(packet.len_bytes)).sum::<u64>();
        self.check_books();
        out
    }

    fn check_delivered(&mut self, packet: &PortPacket) {
        let geometry = *self.pool[0].region().geometry();
        let PortPacket { buffer, offset_bytes, len_bytes, .. } = *packet;
        assert!(geometry.contains(buffer, offset_bytes, len_bytes), "{packet:?} leaves its buffer");
        assert!(
            offset_bytes >= geometry.headroom_bytes,
            "{packet:?} leaves less than {} bytes of headroom",
            geometry.headroom_bytes
        );
        assert!(self.in_hand.insert(buffer), "buffer {buffer} was delivered while in use");
    }

    /// Everything that came in or was handed over is somewhere.
    pub fn check_books(&self) {
        let queue = &self.port.queues[0];
        let counters = queue.counters();
        let came = counters.rx_pkts.get() + self.given_pkts;
        let went = self.received_pkts
            + counters.tx_pkts.get()
            + counters.drops.total()
            + queue.held_pkts();
        assert_eq!(
            came,
            went,
            "rx {} + given {} against received {} + tx {} + drops {:?} + held {}",
            counters.rx_pkts.get(),
            self.given_pkts,
            self.received_pkts,
            counters.tx_pkts.get(),
            counters.drops.nonzero().collect::<Vec<_>>(),
            queue.held_pkts()
        );
    }

    /// The frame of a packet in hand.
    pub fn frame(&self, packet: &PortPacket) -> Vec<u8> {
        let mut frame = vec![0; packet.len_bytes.into()];
        let region = self.pool[0].region();
        assert!(region.read(packet.buffer, packet.offset_bytes, &mut frame), "{packet:?}");
        frame
    }

    /// Receives until `count` packets of ours are in hand, or time is up. Frees the noise.
    pub fn receive(&mut self, count: usize) -> Vec<PortPacket> {
        let start = Instant::now();
        let mut packets = Vec::new();
        while packets.len() < count && start.elapsed() < PATIENCE {
            for packet in self.turn() {
                if self.lab.is_noise(&self.frame(&packet)) {
                    self.free(&[packet]);
                } else {
                    packets.push(packet);
                }
            }
        }
        assert!(packets.len() >= count, "{} of {count} packets came", packets.len());
        packets
    }

    /// Takes a free buffer and puts `frame` at `offset_bytes` of it.
    pub fn packet(&mut self, frame: &[u8], offset_bytes: u16) -> PortPacket {
        let buffer = self.pool[0].take_one().expect("a free buffer");
        assert!(self.in_hand.insert(buffer), "buffer {buffer} was free while in use");
        assert!(self.pool[0].region().write(buffer, offset_bytes, frame));
        PortPacket { buffer, offset_bytes, len_bytes: frame.len() as u16, flow_hash: 0 }
    }

    /// Gives packets in hand back to the pool.
    pub fn free(&mut self, packets: &[PortPacket]) {
        for packet in packets {
            assert!(self.in_hand.remove(&packet.buffer));
        }
        self.pool[0].give(&packets.iter().map(|packet| packet.buffer).collect::<Vec<_>>());
    }

    /// Offers packets once; returns how many were taken.
    pub fn offer(&mut self, packets: &[PortPacket]) -> usize {
        let taken = self.port.queues[0].tx_burst(&mut self.pool[0], packets);
        assert!(taken <= packets.len(), "{taken} packets taken of {}", packets.len());
        for packet in &packets[..taken] {
            assert!(self.in_hand.remove(&packet.buffer));
        }
        self.given_pkts += taken as u64;
        self.check_books();
        taken
    }

    /// Sends all packets, however many calls that takes.
    pub fn send(&mut self, packets: &[PortPacket]) {
        let start = Instant::now();
        let mut rest = packets;
        while !rest.is_empty() && start.elapsed() < PATIENCE {
            rest = &rest[self.offer(rest)..];
            self.port.queues[0].maintain(&mut self.pool[0]);
        }
        assert!(rest.is_empty(), "{} of {} packets were not taken", rest.len(), packets.len());
    }

    /// Turns until `done`, or time is up; whatever comes in meanwhile is freed.
    pub fn turn_until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
            let packets = self.turn();
            self.free(&packets);
        }
    }

    /// Waits until the lab saw `count` frames of ours leave, and returns them.
    fn sent(&mut self, count: usize) -> Vec<Vec<u8>> {
        let mut sent = Vec::new();
        self.turn_until("frames sent", |rig| {
            sent = rig.lab.sent();
            sent.len() >= count
        });
        sent
    }

    /// Packets and bytes received so far.
    pub fn received(&self) -> (u64, u64) {
        (self.received_pkts, self.received_bytes)
    }

    /// Waits until exactly these frames were sent, as far as the lab can see that, and closes.
    pub fn finish_having_sent(mut self, frames: &[Vec<u8>]) {
        match self.lab.abilities().shows_sent {
            ShowsSent::Soon => {
                assert_eq!(self.sent(frames.len()), frames);
                self.close();
            }
            ShowsSent::AtClose => {
                self.close();
                assert_eq!(self.lab.sent(), frames);
            }
            ShowsSent::Never => self.close(),
        }
    }

    /// Closes the port.
    pub fn finish(mut self) {
        self.close();
    }

    /// Closes the port and checks that all buffers are back in the pool.
    fn close(&mut self) {
        self.port.queues[0].close(&mut self.pool[0]);
        self.check_books();
        self.port.port.close();
        let left: Vec<_> = self.in_hand.drain().collect();
        self.pool[0].give(&left);
        let (free, count) = (self.pool[0].free_buffers(), self.pool[0].count() as usize);
        assert_eq!(free, count, "all buffers are back in the pool");
        let mut all = Vec::new();
        self.pool[0].take(count, &mut all);
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), count, "and each of them once");
        self.pool[0].give(&all);
    }
}
