//! What a worker marks, and what it tells of packets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use millrace::ports::PortPacket;
use millrace::stats::DropReason;
use millrace::worker::{Following, Observation};
use nflib::descriptor::ActionCode;
use nflib::observe::{Event, EventKind, NOBODY, TapPoint, TapSpec};
use nflib::shm::{Mark, Marks, TapReader};

use super::bench::{Bench, back, of_flow};

type Seen = Vec<(Event, Vec<u8>)>;

/// Everything told since the last call.
struct Told(TapReader<Arc<nflib::shm::TapFile>>);

impl Told {
    fn of(bench: &Bench) -> Self {
        Self(bench.tap.reader())
    }

    fn take(&mut self) -> Seen {
        let mut seen = Vec::new();
        self.0.drain(usize::MAX, &mut |event, bytes| seen.push((event, bytes.to_vec()))).unwrap();
        seen
    }
}

fn kinds(seen: &Seen) -> Vec<EventKind> {
    seen.iter().map(|(event, _)| event.kind).collect()
}

fn following(flow: u16, one_in: u32, count: u32) -> (Observation, Arc<AtomicU32>) {
    let left = Arc::new(AtomicU32::new(count));
    let trace = Following { slot: 4, matches: of_flow(flow), one_in, left: Arc::clone(&left) };
    (Observation { traces: vec![trace], ..Observation::default() }, left)
}

fn tap(id: u8, at: TapPoint, snap_bytes: u16) -> TapSpec {
    TapSpec { id, at, filter: Vec::new(), snap_bytes }
}

#[test]
fn with_nothing_asked_for_nothing_is_told_and_nothing_marked() {
    let mut bench = Bench::new(&[1]);
    let (mut told, mut nf) = (Told::of(&bench), bench.attach(1));
    for _ in 0..40 {
        bench.inject(8);
        bench.turn();
        for delivery in nf.receive() {
            nf.pass(&delivery, ActionCode::Next, 0);
        }
        bench.turn();
    }
    assert!(told.take().is_empty());
    bench.assert_all_back();
}

#[test]
fn packets_of_a_trace_are_marked_at_ingress_and_told_of_until_they_leave() {
    let mut bench = Bench::new(&[1]);
    let (mut told, mut nf) = (Told::of(&bench), bench.attach(1));
    let (observation, left) = following(5, 2, 3);
    bench.marks.keep(20);
    bench.worker.observe(&observation);
    for number in 0..10 {
        bench.inject_flow(5, number);
        bench.inject_flow(6, number);
    }
    bench.turn();
    let came = told.take();
    assert_eq!(kinds(&came), [EventKind::PortIn; 3]);
    assert_eq!(left.load(Ordering::Relaxed), 0);
    assert!(came.iter().all(|(e, bytes)| (e.peer, e.target, e.hop, bytes.len()) == (4, 0, 0, 20)));
    assert_eq!(bench.worker.marked_pkts(), 3);
    let theirs = Marks::from_fd(&bench.marks.read_only_fd().unwrap(), 256).unwrap();
    assert!(theirs.any());
    assert!(came.iter().all(|(event, _)| theirs.of(event.buffer) == Some(Mark::Shown)));
    // The first goes on, the second is dropped by the NF, the third is kept and dies with it.
    let deliveries = nf.receive();
    let of = |at: usize| deliveries.iter().find(|d| d.buffer == came[at].0.buffer).unwrap();
    nf.give_back(&[back(of(0), ActionCode::Next, 0), back(of(1), ActionCode::Drop, 0)]);
    bench.turn();
    let went = told.take();
    // Drops are told of when the worker takes the packet back, what it sends at the end of the turn.
    assert_eq!(kinds(&went), [EventKind::Drop, EventKind::PortOut]);
    assert_eq!((went[0].0.buffer, went[1].0.buffer), (of(1).buffer, of(0).buffer));
    let slot = bench.planner.slot_of(1);
    assert_eq!((went[0].0.code, went[0].0.target), (DropReason::NfDrop as u8, slot));
    assert_eq!((went[1].0.target, went[1].1.len()), (1, 20));
    bench.bury(0);
    let lost = told.take();
    let gone = lost.iter().filter(|(event, _)| event.marked).collect::<Vec<_>>();
    assert_eq!((gone.len(), gone[0].0.code), (1, DropReason::NfGone as u8));
    assert!(!theirs.any());
    bench.instances.clear();
    bench.change();
    bench.assert_all_back();
}

#[test]
fn now_and_then_a_packet_is_marked_for_its_latency_and_not_always_the_first() {
    let mut bench = Bench::new(&[]);
    let mut told = Told::of(&bench);
    bench.worker.observe(&Observation { latency_interval_ns: 1, ..Observation::default() });
    let (mut places, mut pairs) = (std::collections::BTreeSet::new(), 0);
    for _ in 0..640 {
        bench.inject(8);
        bench.turn();
        for (_, frame) in bench.sent() {
            assert_eq!(frame.len(), 60);
        }
        let seen = told.take();
        let of_packet: Vec<_> = seen.iter().filter(|(event, _)| event.marked).collect();
        if let [(came, kept), (went, _)] = of_packet[..] {
            assert_eq!((came.kind, went.kind), (EventKind::PortIn, EventKind::PortOut));
            assert_eq!((came.peer, kept.len(), came.buffer), (NOBODY, 0, went.buffer));
            assert!(went.time_ns >= came.time_ns);
            let frame = &bench.wires[0].lock().unwrap().received;
            let burst: &[PortPacket] = &frame[frame.len() - 8..];
            places.insert(burst.iter().position(|packet| packet.buffer == came.buffer).unwrap());
            pairs += 1;
        } else {
            assert!(of_packet.is_empty());
        }
    }
    assert_eq!(pairs, 640 / 16);
    assert!(places.len() > 3, "of a burst's places these were looked at: {places:?}");
    bench.assert_all_back();
}

#[test]
fn taps_take_what_passes_their_place_and_no_more() {
    let mut bench = Bench::new(&[1]);
    let (mut told, mut nf) = (Told::of(&bench), bench.attach(1));
    let slot = Some(bench.planner.slot_of(1));
    let reason = Some(DropReason::NfDrop as u8);
    // ldb [0]; jeq #3; ret.
    let threes = vec![(0x30, 0, 0, 0), (0x15, 0, 1, 3), (0x06, 0, 0, 1), (0x06, 0, 0, 0)];
    let taps = vec![
        tap(0, TapPoint::PortIn { port: 0 }, 10),
        TapSpec { filter: threes, ..tap(1, TapPoint::PortIn { port: 0 }, 60) },
        tap(2, TapPoint::PortOut { port: 1 }, 30),
        tap(3, TapPoint::Drop { reason, slot }, 40),
        tap(4, TapPoint::Drop { reason: Some(DropReason::NoRule as u8), slot: None }, 40),
        tap(5, TapPoint::PortIn { port: 1 }, 40),
    ];
    bench.worker.observe(&Observation {
        taps,
        tap_share_ns: Some(u64::MAX),
        ..Observation::default()
    });
    bench.inject(6);
    bench.turn();
    let came = told.take();
    assert_eq!(came.len(), 6);
    for (event, bytes) in &came {
        let n = bytes[0];
        let (taps, kept) = if n == 3 { (0b11, 60) } else { (0b01, 10) };
        assert_eq!((event.taps, bytes.len(), event.marked), (taps, kept, false));
        assert_eq!(bytes, &vec![n; kept]);
    }
    let deliveries = nf.receive();
    for delivery in &deliveries[..4] {
        nf.pass(delivery, ActionCode::Next, 0);
    }
    for delivery in &deliveries[4..] {
        nf.pass(delivery, ActionCode::Drop, 0);
    }
    bench.turn();
    let left: Vec<_> =
        told.take().iter().map(|(e, b)| (e.taps, e.hop, e.ingress, b.len())).collect();
    // With the way in, as it was noted there.
    assert_eq!(left, [vec![(0b1000, 0, 0, 40); 2], vec![(0b100, 0, 0, 30); 4]].concat());
    bench.worker.observe(&Observation::default());
    bench.inject(4);
    bench.turn();
    assert!(told.take().is_empty());
    for delivery in nf.receive() {
        nf.pass(&delivery, ActionCode::Next, 0);
    }
    bench.turn();
    bench.assert_all_back();
}

#[test]
fn what_a_port_does_not_take_is_told_of_as_dropped() {
    let mut bench = Bench::new(&[]);
    let mut told = Told::of(&bench);
    let taps = vec![
        tap(0, TapPoint::PortOut { port: 1 }, 10),
        tap(1, TapPoint::Drop { reason: None, slot: Some(NOBODY) }, 10),
    ];
    bench.worker.observe(&Observation {
        taps,
        tap_share_ns: Some(u64::MAX),
        ..Observation::default()
    });
    bench.wires[1].lock().unwrap().tx_room = Some(3);
    bench.inject(5);
    bench.turn();
    let seen: Vec<_> = told.take().iter().map(|(e, bytes)| (e.kind, bytes[0])).collect();
    let (out, drop) = (EventKind::PortOut, EventKind::Drop);
    assert_eq!(seen, [(out, 0), (out, 1), (out, 2), (drop, 3), (drop, 4)]);
}

#[test]
fn of_an_isolated_nf_what_it_drops_is_shown_as_it_left_it() {
    let mut bench = Bench::new(&[1]);
    let (mut told, mut nf) = (Told::of(&bench), bench.attach_isolated(1));
    let taps = vec![tap(0, TapPoint::Drop { reason: None, slot: None }, 10)];
    bench.worker.observe(&Observation {
        taps,
        tap_share_ns: Some(u64::MAX),
        ..Observation::default()
    });
    bench.inject(1);
    bench.turn();
    let delivery = nf.receive()[0];
    assert!(nf.region.write(delivery.buffer, delivery.offset_bytes, &[99; 4]));
    nf.pass(&delivery, ActionCode::Drop, 0);
    bench.turn();
    let seen = told.take();
    assert_eq!(seen[0].1[..6], [99, 99, 99, 99, 0, 0]);
    bench.assert_all_back();
}

#[test]
fn a_ring_that_nobody_reads_stops_no_packet_and_counts_what_is_not_told() {
    let mut bench = Bench::new(&[]);
    let mut told = Told::of(&bench);
    let taps = vec![tap(0, TapPoint::PortIn { port: 0 }, 2048)];
    bench.worker.observe(&Observation {
        taps,
        latency_interval_ns: 1,
        tap_share_ns: Some(u64::MAX),
        ..Observation::default()
    });
    let turns = 8_000;
    for _ in 0..turns {
        bench.inject(16);
        bench.turn();
        assert_eq!(bench.sent().len(), 16);
        bench.wires[0].lock().unwrap().received.clear();
    }
    let tapped = told.take().iter().filter(|(event, _)| event.taps != 0).count() as u64;
    let lost = told.0.lost_pkts();
    assert!(lost > 0);
    // Latency samples add the events of packets that leave.
    assert!(tapped + lost >= 16 * turns && tapped + lost <= 17 * turns, "{tapped} + {lost}");
    bench.assert_all_back();
}

#[test]
fn taps_that_have_used_up_their_share_let_packets_pass_and_count_them() {
    let mut bench = Bench::new(&[]);
    let mut told = Told::of(&bench);
    let taps = vec![tap(0, TapPoint::PortIn { port: 0 }, 60)];
    let tap_share_ns = Some(0);
    let latency_interval_ns = 1;
    bench.worker.observe(&Observation {
        taps,
        tap_share_ns,
        latency_interval_ns,
        ..Observation::default()
    });
    for _ in 0..32 {
        bench.inject(4);
        bench.turn();
    }
    assert_eq!(bench.sent().len(), 128);
    let seen = told.take();
    assert!(seen.iter().all(|(event, _)| event.taps == 0));
    assert_eq!((seen.len(), told.0.lost_pkts(), told.0.lost_marked()), (4, 128, 0), "two samples");
    bench.assert_all_back();
}
