//! What an NF tells of the packets that are looked at: those that are marked, and those that a tap takes.
//!
//! Told is as a burst comes and before it goes on, so that whoever has seen the next NF's word, or the
//! port's, finds this one's in its ring.
#![forbid(unsafe_code)]

use std::sync::Arc;

use nix::time::{ClockId, clock_gettime};

use crate::context::Departure;
use crate::descriptor::{ActionCode, Delivery};
use crate::nf::Action;
use crate::observe::{Budget, Event, EventKind, NOBODY, TapPoint, TapSpec, Teller};
use crate::shm::{BufferIndex, Marks, Region, TapFile};

use super::outputs::code_of;

pub(crate) struct Lookout {
    marks: Marks,
    teller: Teller,
}

impl Lookout {
    pub(crate) fn new(marks: Marks, file: &Arc<TapFile>, region: Arc<Region>) -> Self {
        Self { marks, teller: Teller::new(file, region) }
    }

    /// Sets other taps. What is wrong with them is the manager's fault: then there are none.
    pub(crate) fn set_taps(&mut self, taps: &[TapSpec]) {
        if let Err(error) = self.teller.set_taps(taps) {
            tracing::warn!("the manager sent a tap that cannot be: {error}");
        }
    }

    /// Bounds the time that taps take otherwise.
    pub(crate) fn bound_taps(&mut self, budget: Budget) {
        self.teller.bound_taps(budget);
    }

    /// Whether there is anything to tell: one word to look at.
    #[inline]
    pub(crate) fn is_on(&self) -> bool {
        self.marks.any() || self.teller.has_taps()
    }

    /// A burst has come from a neighbour, or from a worker (`None`).
    pub(crate) fn came(&mut self, burst: &[Delivery], peer: Option<u16>) {
        let peer = peer.unwrap_or(NOBODY);
        let is_of = |from: Option<u16>| from.is_none_or(|nf| nf == peer);
        let event = Event { kind: EventKind::NfIn, peer, ..Event::default() };
        self.tell_all(burst, event, |at| matches!(at, TapPoint::NfIn { from } if is_of(from)));
    }

    /// The same was decided about all these.
    pub(crate) fn decided(&mut self, packets: &[Delivery], action: Action) {
        let (code, target) = code_of(action);
        let event = Event {
            kind: EventKind::NfOut,
            code: code as u8,
            target: if code == ActionCode::Next { NOBODY } else { target },
            peer: NOBODY,
            ..Event::default()
        };
        self.tell_all(packets, event, |at| at == TapPoint::NfOut);
    }

    /// These were decided about out of their order.
    pub(crate) fn departs(&mut self, departures: &[Departure]) {
        for Departure { slot, action } in departures {
            self.decided(std::slice::from_ref(slot.lease.descriptor()), *action);
        }
    }

    /// The NF keeps these packets, or has kept them and let go since.
    pub(crate) fn holds(&mut self, buffers: &[BufferIndex]) {
        for &buffer in buffers {
            let packet = Delivery { buffer, hop: Event::NO_HOP, ..Delivery::default() };
            let event = Event { kind: EventKind::NfHold, peer: NOBODY, ..Event::default() };
            self.tell_all(std::slice::from_ref(&packet), event, |_| false);
        }
    }

    /// The same of all these packets, as far as somebody wants it; taps only as far as there is time.
    fn tell_all(&mut self, packets: &[Delivery], what: Event, is_here: impl Fn(TapPoint) -> bool) {
        let time_ns = now_ns();
        let tapped = self.teller.has_tap_at(&is_here) && self.teller.begin(time_ns, packets.len());
        let marked = self.marks.any();
        for packet in packets {
            let mark = if marked { self.marks.of(packet.buffer) } else { None };
            if tapped || mark.is_some() {
                let shown = (mark, self.marks.kept_bytes());
                self.teller.tell(event_of(packet, time_ns, what), shown, tapped, &is_here);
            }
        }
        if tapped {
            self.teller.end(now_ns().saturating_sub(time_ns));
        }
    }
}

fn event_of(packet: &Delivery, time_ns: u64, what: Event) -> Event {
    let &Delivery { buffer, offset_bytes, len_bytes, flow_hash, route, port, hop } = packet;
    Event { time_ns, buffer, flow_hash, offset_bytes, len_bytes, route, hop, ingress: port, ..what }
}

/// CLOCK_MONOTONIC, which all processes share.
pub(super) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| now.tv_sec().unsigned_abs() * 1_000_000_000 + now.tv_nsec().unsigned_abs())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::shm::{HugePages, Mark, MarkTable, RegionGeometry};

    struct Scene {
        marks: Arc<MarkTable>,
        file: Arc<TapFile>,
        region: Arc<Region>,
        lookout: Lookout,
    }

    fn scene() -> Scene {
        let geometry = RegionGeometry { buffers: 64, stride_bytes: 2048, headroom_bytes: 256 };
        let region = Arc::new(Region::create(geometry, HugePages::Off).unwrap());
        let marks = MarkTable::create(64).unwrap();
        let theirs = Marks::from_fd(&marks.read_only_fd().unwrap(), 64).unwrap();
        let file = TapFile::create().unwrap();
        let lookout = Lookout::new(theirs, &file, Arc::clone(&region));
        Scene { marks, file, region, lookout }
    }

    fn seen(file: &Arc<TapFile>) -> Vec<(Event, Vec<u8>)> {
        let mut seen = Vec::new();
        file.reader().drain(usize::MAX, &mut |event, b| seen.push((event, b.to_vec()))).unwrap();
        seen
    }

    fn packet(buffer: u32) -> Delivery {
        Delivery {
            buffer,
            offset_bytes: 256,
            len_bytes: 60,
            route: 9,
            port: 2,
            hop: 1,
            flow_hash: 77,
        }
    }

    #[test]
    fn of_a_burst_only_marked_packets_are_told_of_and_shown_ones_with_their_bytes() {
        let mut scene = scene();
        assert!(!scene.lookout.is_on());
        assert!(scene.region.write(3, 256, &[3; 60]));
        scene.marks.keep(16);
        scene.marks.set(2, Mark::Timed);
        scene.marks.set(3, Mark::Shown);
        assert!(scene.lookout.is_on());
        let burst: Vec<_> = (1..6).map(packet).collect();
        scene.lookout.came(&burst, Some(4));
        scene.lookout.decided(&burst[2..3], Action::Out(5));
        let seen = seen(&scene.file);
        let told: Vec<_> =
            seen.iter().map(|(e, b)| (e.kind, e.buffer, e.peer, e.target, b.len())).collect();
        let (came, went) = (EventKind::NfIn, EventKind::NfOut);
        assert_eq!(told, [(came, 2, 4, 0, 0), (came, 3, 4, 0, 16), (went, 3, NOBODY, 5, 16)]);
        assert!(seen.iter().all(|(e, _)| (e.marked, e.route, e.hop, e.ingress) == (true, 9, 1, 2)));
        assert_eq!(seen[1].1, [3; 16]);
        assert!(seen[2].0.time_ns >= seen[0].0.time_ns && seen[0].0.time_ns > 0);
    }

    #[test]
    fn a_tap_takes_what_comes_from_one_neighbour_and_no_other() {
        let mut scene = scene();
        let at = TapPoint::NfIn { from: Some(NOBODY) };
        scene.lookout.set_taps(&[TapSpec { id: 6, at, filter: Vec::new(), snap_bytes: 20 }]);
        scene.lookout.came(&[packet(1)], Some(7));
        scene.lookout.came(&[packet(2), Delivery { len_bytes: 8, ..packet(5) }], None);
        scene.lookout.decided(&[packet(2)], Action::Next);
        let seen = seen(&scene.file);
        let told: Vec<_> = seen.iter().map(|(e, b)| (e.buffer, e.taps, b.len())).collect();
        assert_eq!(told, [(2, 1 << 6, 20), (5, 1 << 6, 8)]);
        scene.lookout.set_taps(&[]);
        assert!(!scene.lookout.is_on());
    }

    #[test]
    fn taps_take_no_more_than_their_share_of_the_time_and_marks_are_told_of_all_the_same() {
        let mut scene = scene();
        let tap = TapSpec { id: 0, at: TapPoint::NfOut, filter: Vec::new(), snap_bytes: 0 };
        scene.lookout.set_taps(&[tap]);
        scene.marks.set(7, Mark::Timed);
        let (burst, mut offered) = (vec![packet(7); 64], 0);
        let mut reader = scene.file.reader();
        let (mut told, mut tapped) = (0, 0);
        // Until the share of a millisecond is used up.
        while reader.lost_pkts() == 0 || offered < 64 * 1_000 {
            scene.lookout.decided(&burst, Action::Next);
            offered += 64;
            let mut each = |event: Event, _: &[u8]| {
                told += 1;
                tapped += u64::from(event.taps != 0);
            };
            reader.drain(usize::MAX, &mut each).unwrap();
        }
        assert_eq!(told, offered);
        assert_eq!(tapped + reader.lost_pkts(), offered);
        assert_eq!(reader.lost_marked(), 0);
    }

    #[test]
    fn a_descriptor_of_no_place_is_told_of_without_bytes() {
        let mut scene = scene();
        let tap = TapSpec { id: 0, at: TapPoint::NfOut, filter: Vec::new(), snap_bytes: 99 };
        scene.lookout.set_taps(&[tap]);
        let wrong = [
            Delivery { buffer: 64, ..packet(0) },
            Delivery { offset_bytes: 2000, ..packet(0) },
            Delivery { len_bytes: u16::MAX, ..packet(0) },
        ];
        scene.lookout.decided(&wrong, Action::Drop);
        let seen = seen(&scene.file);
        assert_eq!(seen.len(), 3);
        assert!(seen.iter().all(|(_, bytes)| bytes.is_empty()));
    }
}
