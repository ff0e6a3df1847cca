//! Packets of a capture that wait for those of other rings that are older.
//!
//! Rings are read one after the other, so that what comes from one may be older than what came from
//! another just before. What is older than a whole round has been read from all of them.
#![forbid(unsafe_code)]

use nflib::observe::Event;

use super::Source;
use crate::observe::points::Place;

/// Most bytes of packets that wait; beyond, order is given up and not memory.
const MAX_BYTES: usize = 1 << 20;
/// Most packets that wait.
const MAX_PKTS: usize = 16_384;

/// A packet at one of its places.
#[derive(Clone, Copy, Debug)]
pub(super) struct Staged {
    pub(super) place: Place,
    pub(super) source: Source,
    pub(super) event: Event,
    at: usize,
    len: usize,
}

/// Packets that wait, and their bytes.
#[derive(Debug, Default)]
pub(super) struct Stage {
    packets: Vec<Staged>,
    bytes: Vec<u8>,
}

impl Stage {
    /// Whether one more of this length has to wait until others are taken.
    pub(super) fn is_full_for(&self, len: usize) -> bool {
        self.packets.len() >= MAX_PKTS || self.bytes.len() + len > MAX_BYTES
    }

    pub(super) fn push(&mut self, place: Place, source: Source, event: Event, bytes: &[u8]) {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        self.packets.push(Staged { place, source, event, at, len: bytes.len() });
    }

    /// Takes what is not younger than `until_ns`, oldest first. What claims to be of the future, that is
    /// later than `now_ns`, is of now.
    pub(super) fn take_until(&mut self, until_ns: u64, now_ns: u64) -> Taken {
        let mut all = std::mem::take(self);
        for packet in &mut all.packets {
            packet.event.time_ns = packet.event.time_ns.min(now_ns);
        }
        // Stable: what one ring tells at the same time stays in its order.
        all.packets.sort_by_key(|packet| packet.event.time_ns);
        let count = all.packets.partition_point(|packet| packet.event.time_ns <= until_ns);
        for &Staged { place, source, event, at, len } in &all.packets[count..] {
            self.push(place, source, event, &all.bytes[at..at + len]);
        }
        all.packets.truncate(count);
        Taken(all)
    }
}

/// Packets in their order.
pub(super) struct Taken(Stage);

impl Taken {
    pub(super) fn each(&self) -> impl Iterator<Item = (&Staged, &[u8])> {
        let bytes = |packet: &Staged| packet.at..packet.at + packet.len;
        self.0.packets.iter().map(move |packet| (packet, &self.0.bytes[bytes(packet)]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage(times: &[u64]) -> Stage {
        let mut stage = Stage::default();
        for (number, &time_ns) in (0..).zip(times) {
            let event = Event { time_ns, buffer: number, ..Event::default() };
            stage.push(Place::Port(0), Source::Worker(0), event, &[number as u8; 3]);
        }
        stage
    }

    fn taken(stage: &mut Stage, until_ns: u64, now_ns: u64) -> Vec<(u64, u32)> {
        let taken = stage.take_until(until_ns, now_ns);
        let of = |(packet, bytes): (&Staged, &[u8])| {
            assert_eq!(bytes, [packet.event.buffer as u8; 3]);
            (packet.event.time_ns, packet.event.buffer)
        };
        taken.each().map(of).collect()
    }

    #[test]
    fn what_is_old_enough_comes_in_the_order_of_time_and_the_rest_later() {
        let mut stage = stage(&[30, 10, 50, 10, 20]);
        assert_eq!(taken(&mut stage, 30, 60), [(10, 1), (10, 3), (20, 4), (30, 0)]);
        assert_eq!(taken(&mut stage, 40, 60), []);
        assert_eq!(taken(&mut stage, 60, 60), [(50, 2)]);
        assert!(stage.packets.is_empty() && stage.bytes.is_empty());
    }

    #[test]
    fn what_claims_to_be_of_the_future_does_not_wait_for_it() {
        let mut stage = stage(&[u64::MAX, 10]);
        assert_eq!(taken(&mut stage, 20, 30), [(10, 1)]);
        assert_eq!(taken(&mut stage, 30, 40), [(30, 0)]);
    }

    #[test]
    fn there_is_an_end_to_what_waits() {
        let mut stage = stage(&vec![1; MAX_PKTS - 1]);
        assert!(!stage.is_full_for(0));
        stage.push(Place::Port(0), Source::Worker(0), Event::default(), &[]);
        assert!(stage.is_full_for(0));
        assert!(Stage::default().is_full_for(MAX_BYTES + 1));
    }
}
