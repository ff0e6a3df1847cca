//! The worker against NFs that behave and NFs that do not, with ports whose every buffer is seen.
//!
//! Each test ends with the same assertion: all buffers are back in the pool, and the books balance.

#[path = "worker/bench.rs"]
mod bench;
#[path = "worker/boundary.rs"]
mod boundary;
#[path = "worker/census.rs"]
mod census;
#[path = "worker/changes.rs"]
mod changes;
#[path = "worker/deaths.rs"]
mod deaths;
#[path = "worker/domain.rs"]
mod domain;
#[path = "worker/ends.rs"]
mod ends;
#[path = "worker/loans.rs"]
mod loans;
#[path = "worker/observing.rs"]
mod observing;
#[path = "worker/orders.rs"]
mod orders;

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use bench::{Bench, back, buffers};
use millrace::flow::Match;
use millrace::stats::DropReason;
use millrace::worker::{Following, Observation};
use nflib::descriptor::{ActionCode, Delivery, Returned};
use nflib::observe::{TapPoint, TapSpec};
use nflib::shm::Region;

#[test]
fn a_packet_crosses_two_nfs_in_the_buffer_the_port_wrote_and_nowhere_else() {
    let mut bench = Bench::new(&[1, 2]);
    let mut first = bench.attach(1);
    let mut second = bench.attach(2);
    bench.inject(3);
    bench.turn();
    let written = bench.wires[0].lock().unwrap().received.clone();

    let at_first = first.receive();
    for (delivery, port) in at_first.iter().zip(&written) {
        // The same buffer and range: the NF's address is its own base plus the port's offset.
        assert_eq!((delivery.buffer, delivery.offset_bytes), (port.buffer, port.offset_bytes));
        let offset = |region: &Region| {
            let at = region.ptr(delivery.buffer, delivery.offset_bytes).unwrap();
            at.as_ptr() as usize - region.base().as_ptr() as usize
        };
        assert_eq!(offset(&first.region), offset(&bench.region));
        // A write through the NF's mapping is the port's byte.
        assert!(first.region.write(delivery.buffer, delivery.offset_bytes, b"mark"));
        first.pass(delivery, ActionCode::Next, 0);
    }
    bench.turn();
    let at_second = second.receive();
    assert_eq!(at_second.len(), 3);
    for delivery in &at_second {
        assert_eq!((delivery.hop, delivery.port, delivery.flow_hash), (1, 0, 7));
        second.pass(delivery, ActionCode::Next, 0);
    }
    bench.turn();
    let sent = bench.sent();
    assert_eq!(sent.len(), 3);
    for (n, ((packet, bytes), port)) in sent.iter().zip(&written).enumerate() {
        assert_eq!(packet, port, "sent from the buffer and range it was received into");
        assert_eq!((&bytes[..4], bytes[4]), (&b"mark"[..], u8::try_from(n).unwrap()));
    }
    bench.assert_all_back();
}

#[test]
fn an_nf_s_new_range_is_what_is_sent() {
    let mut bench = Bench::new(&[1]);
    let mut nf = bench.attach(1);
    bench.inject(1);
    bench.turn();
    let delivery = nf.receive()[0];
    assert!(nf.region.write(delivery.buffer, 250, b"header"));
    let mut longer = back(&delivery, ActionCode::Next, 0);
    longer.offset_bytes -= 6;
    longer.len_bytes += 6;
    nf.give_back(&[longer]);
    bench.turn();
    let sent = bench.sent();
    assert_eq!((sent[0].1.len(), &sent[0].1[..6]), (66, &b"header"[..]));
    bench.assert_all_back();
}

#[test]
fn every_action_does_what_it_says() {
    let mut bench = Bench::new(&[1, 2]);
    let mut first = bench.attach(1);
    let mut second = bench.attach(2);
    bench.inject(6);
    bench.turn();
    let got = first.receive();
    first.pass(&got[0], ActionCode::Drop, 0);
    first.pass(&got[1], ActionCode::Out, 1);
    first.pass(&got[2], ActionCode::ToService, 2);
    first.pass(&got[3], ActionCode::ToService, 99);
    first.pass(&got[4], ActionCode::Out, 9);
    first.pass(&got[5], ActionCode::Out, 300);
    bench.turn();
    assert_eq!(bench.sent().len(), 1);
    let moved = second.receive();
    assert_eq!(moved.len(), 1);
    assert_eq!(moved[0].buffer, got[2].buffer);
    second.pass(&moved[0], ActionCode::Next, 0);
    bench.turn();
    assert_eq!(bench.sent().len(), 1);
    let drops = &bench.counters.drops;
    assert_eq!(drops.get(DropReason::UnknownService), 1);
    assert_eq!(drops.get(DropReason::UnknownPort), 2);
    assert_eq!(bench.drops_at(1, DropReason::NfDrop), 1);
    assert_eq!((first.counters.drop_pkts.get(), first.violations()), (1, 0));
    bench.assert_all_back();
}

#[test]
fn a_packet_for_a_service_without_nf_is_dropped_under_that_reason() {
    let mut bench = Bench::new(&[1, 2]);
    bench.inject(4);
    bench.turn();
    assert_eq!(bench.drops_at(1, DropReason::NoInstance), 4);
    bench.assert_all_back();
}

#[test]
fn a_packet_whose_chain_ends_at_a_port_without_egress_is_dropped_under_that_reason() {
    let mut bench = Bench::new(&[]);
    bench.wires[1].lock().unwrap().to_receive.push_back((vec![1; 60], 7));
    bench.turn();
    assert_eq!(bench.counters.drops.get(DropReason::NoEgress), 1);
    bench.assert_all_back();
}

#[test]
fn a_ring_that_is_nearly_full_takes_what_fits_and_the_rest_is_counted() {
    let mut bench = Bench::new(&[1]);
    let mut nf = bench.attach(1);
    bench.inject(100);
    bench.turn();
    bench.turn();
    assert_eq!(nf.counters.rx_pkts.get(), 64, "the ring holds 64");
    assert_eq!(nf.counters.ring_full_pkts.get(), 36);
    assert_eq!(bench.drops_at(1, DropReason::NfRingFull), 36);
    bench.assert_balanced();
    for delivery in nf.receive() {
        nf.pass(&delivery, ActionCode::Next, 0);
    }
    bench.turn();
    assert_eq!(bench.sent().len(), 64);
    bench.assert_all_back();
}

#[test]
fn a_port_that_is_full_drops_the_rest_under_that_reason() {
    let mut bench = Bench::new(&[]);
    bench.wires[1].lock().unwrap().tx_room = Some(5);
    bench.inject(8);
    bench.turn();
    let queue = bench.worker.ports()[1].queues[0].counters();
    assert_eq!((queue.tx_pkts.get(), queue.drops.get(DropReason::TxFull)), (5, 3));
    bench.assert_all_back();
}

#[test]
fn descriptors_an_isolated_nf_has_no_right_to_are_counted_and_change_nothing() {
    let mut bench = Bench::new(&[1, 2]);
    let mut nf = bench.attach_isolated(1);
    let mut other = bench.attach_isolated(2);
    bench.inject(4);
    bench.turn();
    let got = nf.receive();
    nf.pass(&got[0], ActionCode::Next, 0);
    bench.turn();
    let theirs = other.receive()[0];

    let never_given = buffers(&got).into_iter().max().unwrap() + 1;
    for buffer in [theirs.buffer, never_given, bench.buffers() as u32, u32::MAX] {
        nf.give_back(&[Returned { buffer, action: 1, ..Returned::default() }]);
    }
    nf.pass(&got[1], ActionCode::Next, 0);
    nf.pass(&got[1], ActionCode::Next, 0);
    bench.turn();
    assert_eq!(nf.violations(), 5, "another's, never given, two unknown, one twice");

    // The bystander's packets are untouched.
    let at_other = other.receive();
    assert_eq!(buffers(&at_other), [got[1].buffer]);
    for delivery in [theirs, at_other[0]] {
        other.pass(&delivery, ActionCode::Next, 0);
    }
    nf.pass(&got[2], ActionCode::Drop, 0);
    nf.pass(&got[3], ActionCode::Drop, 0);
    bench.turn();
    assert_eq!(bench.sent().len(), 2);
    assert_eq!(other.violations(), 0);
    bench.assert_all_back();
}

#[test]
fn an_isolated_nf_has_a_packet_at_the_hop_it_was_given_it_and_nowhere_else() {
    // The service is there twice, so the second hop would be one of its own.
    let mut bench = Bench::new(&[1, 2, 1]);
    let mut nf = bench.attach_isolated(1);
    let mut other = bench.attach(2);
    bench.inject(3);
    bench.turn();
    for (delivery, hop) in nf.receive().iter().zip([0, 2, 255]) {
        nf.give_back(&[Returned { hop, ..back(delivery, ActionCode::Next, 0) }]);
    }
    bench.turn();
    assert_eq!(nf.violations(), 2);
    assert_eq!(bench.drops_at(1, DropReason::NfMalformed), 2);
    for delivery in other.receive() {
        other.pass(&delivery, ActionCode::Drop, 0);
    }
    bench.turn();
    bench.assert_all_back();
}

#[test]
fn a_range_outside_the_buffer_or_an_unknown_action_is_dropped_under_a_named_reason() {
    let mut bench = Bench::new(&[1]);
    let mut nf = bench.attach(1);
    bench.inject(3);
    bench.turn();
    let got = nf.receive();
    nf.give_back(&[
        Returned { len_bytes: 2000, ..back(&got[0], ActionCode::Next, 0) },
        Returned { offset_bytes: u16::MAX, ..back(&got[1], ActionCode::Next, 0) },
        Returned { action: 200, ..back(&got[2], ActionCode::Next, 0) },
    ]);
    bench.turn();
    assert_eq!(bench.drops_at(1, DropReason::NfMalformed), 3);
    assert_eq!(nf.violations(), 3);
    assert!(bench.sent().is_empty());
    bench.assert_all_back();
}

fn an_nf_dies(isolated: bool) {
    let mut bench = Bench::new(&[1, 2]);
    let mut nf = bench.join(1, isolated);
    let mut bystander = bench.join(2, isolated);
    bench.change();
    bench.inject(30);
    bench.turn();
    // Some in its hands, some read, some in its ring, some returned and not yet collected.
    let mut taken = [Delivery::default(); 10];
    assert_eq!(nf.rx.read_burst(&mut taken), Ok(10));
    for delivery in &taken[..5] {
        nf.channel.set_held(delivery.buffer, true);
    }
    nf.rx.release();
    for delivery in &taken[5..] {
        nf.pass(delivery, ActionCode::Drop, 0);
    }
    // It dies between the push and what it has to write down afterwards.
    assert_eq!(nf.tx.push_burst(&[back(&taken[0], ActionCode::Next, 0)]), Ok(1));
    assert_eq!(nf.tx.push_burst(&[back(&taken[1], ActionCode::Drop, 0)]), Ok(1));
    assert_eq!(nf.rx.read_burst(&mut taken[..4]), Ok(4));
    let number = nf.nf;
    drop(nf);
    bench.bury(number);
    bench.assert_balanced();
    assert_eq!(bench.drops_at(1, DropReason::NfDrop), 6);
    assert_eq!(bench.drops_at(1, DropReason::NfGone), 23, "3 kept, 4 read, 16 unread");
    // What it had returned went on.
    let passed = bystander.receive();
    assert_eq!(passed.len(), 1);
    bystander.pass(&passed[0], ActionCode::Next, 0);
    bench.turn();
    assert_eq!(bench.sent().len(), 1);
    bench.assert_all_back();
}

#[test]
fn an_isolated_nf_that_dies_gives_every_buffer_back_wherever_it_was() {
    an_nf_dies(true);
}

#[test]
fn an_nf_of_the_domain_that_dies_gives_every_buffer_back_wherever_it_was() {
    an_nf_dies(false);
}

#[test]
fn a_worker_sleeps_only_if_nfs_can_wake_it_and_have_given_nothing_back_meanwhile() {
    let mut bench = Bench::new(&[1]);
    let mut nf = bench.attach(1);
    bench.inject(1);
    bench.turn();
    let got = nf.receive();
    assert!(bench.worker.is_woken_by_nfs());
    assert!(bench.worker.announce_sleep(0));
    assert!(nf.channel.worker_sleeps(0), "the NF sees it");
    bench.worker.announce_waking(0);
    assert!(!nf.channel.worker_sleeps(0));
    nf.pass(&got[0], ActionCode::Next, 0);
    assert!(!bench.worker.announce_sleep(0), "a packet is back");
    bench.turn();
    assert_eq!(bench.sent().len(), 1);
    bench.join(2, true);
    assert!(!bench.worker.is_woken_by_nfs(), "an isolated NF has no alarm to ring");
}

#[test]
fn an_nf_that_breaks_its_ring_is_reported_and_gets_nothing_more() {
    for isolated in [true, false] {
        let mut bench = Bench::new(&[1]);
        let nf = bench.join(1, isolated);
        bench.change();
        bench.inject(2);
        bench.turn();
        // An index that no honest consumer can have: ahead of the producer. The ring towards the NF
        // is the channel's first, behind one page of hold map.
        let file = nf.channel.fd().try_clone_to_owned().unwrap();
        nix::sys::uio::pwrite(file, &77u32.to_le_bytes(), 12288 + 128).unwrap();
        for _ in 0..2 {
            bench.inject(64);
            bench.turn();
        }
        let mut broken = Vec::new();
        bench.worker.take_broken(&mut broken);
        assert_eq!(broken, [0]);
        assert!(nf.violations() > 0);
        bench.worker.take_broken(&mut broken);
        assert_eq!(broken, [0], "told once");
        bench.bury(0);
        // What it says of its ring is no evidence: with its last NF the domain gives all back.
        let drops = bench.service_drops(1);
        bench.worker.reclaim_domain(&drops);
        bench.inject(1);
        bench.turn();
        assert!(bench.drops_at(1, DropReason::NoInstance) >= 1);
        bench.turn();
        bench.assert_all_back();
    }
}

#[test]
fn an_nf_that_goes_on_writing_while_it_is_removed_holds_nobody_up() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let mut bench = Bench::new(&[1]);
    drop(bench.attach_isolated(1));
    bench.worker.remove_nf(0);
    // Whether the writer keeps ahead of the removal is a race; many rounds make it happen.
    for _ in 0..300 {
        let mut nf = bench.join_as(0, 1, true);
        let counters = Arc::clone(&nf.counters);
        bench.inject(2);
        bench.turn();
        let removed = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&removed);
        let liar = std::thread::spawn(move || {
            let lie = [Returned { buffer: u32::MAX, ..Returned::default() }; 64];
            // Bounded, so that this test fails and does not hang.
            for _ in 0..200_000 {
                let _ = nf.tx.push_burst(&lie);
                if seen.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        while counters.violations.get() == 0 {
            bench.worker.turn(false);
        }
        let before = counters.violations.get();
        bench.worker.remove_nf(0);
        removed.store(true, Ordering::Relaxed);
        liar.join().unwrap();
        let during = counters.violations.get() - before;
        assert!(during <= u64::from(bench.ring_capacity), "{during} descriptors were looked at");
    }
    bench.assert_all_back();
}

#[test]
fn packets_that_circle_by_to_service_end_at_the_hop_limit() {
    let mut bench = Bench::new(&[1]);
    let mut nf = bench.attach(1);
    bench.inject(1);
    bench.turn();
    let mut rounds = 0;
    while let [delivery] = nf.receive()[..] {
        nf.pass(&delivery, ActionCode::ToService, 1);
        bench.turn();
        rounds += 1;
        assert!(rounds < 1000, "the loop must end");
    }
    assert_eq!(rounds, 255);
    assert_eq!(bench.drops_at(1, DropReason::HopLimit), 1);
    bench.assert_all_back();
}

#[test]
fn a_replacement_nf_takes_over_where_the_old_one_left() {
    let mut bench = Bench::new(&[1]);
    bench.instances.insert(1, vec![0]);
    bench.change();
    for round in 0..200u16 {
        let mut nf = bench.join_as(0, 1, round % 2 == 0);
        bench.inject(2);
        bench.turn();
        let got = nf.receive();
        assert_eq!(got.len(), 2, "round {round}");
        nf.pass(&got[0], ActionCode::Next, 0);
        bench.bury(0);
        bench.turn();
    }
    assert_eq!(bench.sent().len(), 200);
    assert_eq!(bench.drops_at(1, DropReason::NfGone), 200);
    bench.assert_all_back();
}

mod random {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// Whatever two NFs return, in whatever order, no packet is lost from the books and no
        /// buffer from the pool.
        #[test]
        fn no_sequence_of_returns_loses_a_packet_or_a_buffer(
            isolated: [bool; 2],
            steps in proptest::collection::vec((
                any::<bool>(), 0u32..300, any::<u16>(), any::<u16>(), 0u8..8, 0u16..4,
                prop_oneof![0u8..4, Just(255)],
            ), 0..150),
        ) {
            let mut bench = Bench::new(&[1, 2]);
            let taps = vec![TapSpec {
                id: 0,
                at: TapPoint::Drop { reason: None, slot: None },
                filter: Vec::new(),
                snap_bytes: 100,
            }];
            // Half of all that comes in is marked: there is one to a burst.
            let traces = vec![Following {
                slot: 0,
                matches: Match::ANY,
                one_in: 2,
                left: Arc::new(AtomicU32::new(u32::MAX)),
            }];
            bench.worker.observe(&Observation {
                taps,
                traces,
                latency_interval_ns: 1,
                tap_share_ns: Some(u64::MAX),
            });
            let mut a = bench.join(1, isolated[0]);
            let mut b = bench.join(2, isolated[1]);
            bench.change();
            for (first, buffer, offset_bytes, len_bytes, action, target, hop) in steps {
                bench.inject(1);
                bench.turn();
                let nf = if first { &mut a } else { &mut b };
                let _ = nf.receive();
                let lie =
                    Returned { buffer, offset_bytes, len_bytes, flow_hash: 0, target, hop, action };
                let honest = Returned { offset_bytes: 256, len_bytes: 60, ..lie };
                let _ = nf.tx.push_burst(&[lie, honest]);
                bench.turn();
            }
            bench.worker.remove_nf(0);
            bench.worker.remove_nf(1);
            let drops = bench.service_drops(1);
            bench.worker.reclaim_domain(&drops);
            bench.worker.turn(false);
            bench.assert_all_back();
        }
    }
}
