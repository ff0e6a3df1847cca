//! Changes of plan while packets are inside.

use std::time::{Duration, Instant};

use millrace::change::Outcome;
use millrace::classify::RuleChanges;
use millrace::flow::Then;
use millrace::model::End;
use millrace::stats::DropReason;
use nflib::descriptor::{ActionCode, Delivery};

use super::bench::{Bench, TestNf, buffers, chain, ending, frame, rules};

/// Turns that a change may take once its old packets are out.
const FEW_TURNS: usize = 16;

fn finish(bench: &mut Bench) -> Outcome {
    for _ in 0..FEW_TURNS {
        bench.turn();
        if let Some(outcome) = bench.take_outcome() {
            return outcome;
        }
    }
    panic!("the change does not end");
}

fn pass_on(nf: &mut TestNf, deliveries: &[Delivery]) {
    for delivery in deliveries {
        nf.pass(delivery, ActionCode::Next, 0);
    }
}

#[test]
fn a_flow_that_moves_waits_for_its_old_packets_and_another_does_not() {
    let mut bench = Bench::with_chains(vec![chain(0, &[1]), chain(1, &[2])]);
    let mut first = bench.attach(1);
    let mut second = bench.attach(2);
    let mut third = bench.attach(3);
    bench.change_rules(rules(&[(1001, Some(Then::Chain(1)))]));
    bench.inject_flow(1000, 0);
    bench.turn();
    let old = first.receive();

    bench.chains[0] = chain(0, &[3]);
    bench.begin_change(RuleChanges::default());
    for number in 1..=3 {
        bench.inject_flow(1000, number);
        bench.inject_flow(1001, number);
    }
    bench.turn();
    assert!(third.receive().is_empty(), "they would overtake the one that is still inside");
    assert_eq!((bench.worker.parked_pkts(), bench.counters.parked_pkts.get()), (3, 3));
    let others = second.receive();
    assert_eq!(others.len(), 3, "who does not move does not wait");
    pass_on(&mut second, &others);
    bench.turn();
    assert_eq!(bench.sent_flows(), [(1001, 1), (1001, 2), (1001, 3)]);
    assert!(bench.worker.is_changing() && bench.take_outcome().is_none());

    pass_on(&mut first, &old);
    bench.inject_flow(1000, 4);
    let outcome = finish(&mut bench);
    assert_eq!((outcome.in_order, outcome.parked_pkts), (true, 4));
    let moved = third.receive();
    pass_on(&mut third, &moved);
    bench.turn();
    assert_eq!(bench.sent_flows(), [(1000, 0), (1000, 1), (1000, 2), (1000, 3), (1000, 4)]);
    bench.assert_all_back();
}

#[test]
fn the_last_instance_but_one_leaves_and_its_flows_keep_their_order() {
    // With one instance left no hash is needed any more, but it still tells who moves.
    for leaves in [0, 1] {
        let stays = 1 - leaves;
        let mut bench = Bench::new(&[1]);
        let mut nfs = [bench.join(1, false), bench.join(1, false)];
        bench.change();
        let flows = 1000..1016u16;
        flows.clone().for_each(|flow| bench.inject_flow(flow, 0));
        bench.turn();
        let old = nfs.each_mut().map(TestNf::receive);
        assert!(old.iter().all(|got| !got.is_empty()));

        bench.instances.insert(1, vec![nfs[stays].nf]);
        bench.begin_change(RuleChanges::default());
        flows.clone().for_each(|flow| bench.inject_flow(flow, 1));
        bench.turn();
        assert_eq!(bench.worker.parked_pkts(), old[leaves].len(), "the flows of the one that goes");
        let mut held = nfs[stays].receive();
        assert_eq!(held.len(), old[stays].len());
        for (nf, got) in nfs.iter_mut().zip(&old) {
            pass_on(nf, got);
        }
        assert!(finish(&mut bench).in_order);
        held.extend(nfs[stays].receive());
        pass_on(&mut nfs[stays], &held);
        bench.turn();
        let sent = bench.sent_flows();
        for flow in flows {
            let numbers: Vec<_> = sent.iter().filter(|s| s.0 == flow).map(|s| s.1).collect();
            assert_eq!(numbers, [0, 1], "flow {flow}");
        }
        bench.assert_all_back();
    }
}

#[test]
fn a_packet_of_the_old_plan_stays_on_it_also_from_chain_to_chain() {
    let mut default = ending(0, &[1], End::Chain(1));
    default.branches.insert(7, 1);
    for by_branch in [false, true] {
        let mut bench = Bench::with_chains(vec![default.clone(), chain(1, &[2])]);
        let mut first = bench.attach(1);
        let mut old = bench.attach(2);
        let mut new = bench.attach(3);
        let go_on = |nf: &mut TestNf, delivery: &Delivery| match by_branch {
            false => nf.pass(delivery, ActionCode::Next, 0),
            true => nf.pass(delivery, ActionCode::Branch, 7),
        };
        bench.inject_flow(1000, 0);
        bench.inject_flow(1000, 1);
        bench.turn();
        let inside = first.receive();
        go_on(&mut first, &inside[0]);
        bench.turn();

        bench.chains[1] = chain(1, &[3]);
        bench.begin_change(RuleChanges::default());
        go_on(&mut first, &inside[1]);
        bench.turn();
        assert!(new.receive().is_empty(), "the second would overtake the first");
        let both = old.receive();
        assert_eq!(buffers(&both), buffers(&inside));
        pass_on(&mut old, &both);
        assert!(finish(&mut bench).in_order);
        assert_eq!(bench.sent_flows(), [(1000, 0), (1000, 1)]);
        bench.assert_all_back();
    }
}

#[test]
fn a_packet_that_an_nf_sends_to_a_service_does_not_overtake_by_a_new_instance() {
    let mut bench = Bench::with_chains(vec![chain(0, &[1]), chain(1, &[9])]);
    let mut first = bench.attach(1);
    let mut old = bench.attach(9);
    let to_service = |bench: &mut Bench, nf: &mut TestNf, flows: std::ops::Range<u16>, number| {
        flows.for_each(|flow| bench.inject_flow(flow, number));
        bench.turn();
        for delivery in nf.receive() {
            nf.pass(&delivery, ActionCode::ToService, 9);
        }
        bench.turn();
    };
    to_service(&mut bench, &mut first, 1000..1016, 0);
    let before = old.receive();
    assert_eq!(before.len(), 16);

    let mut new = bench.join(9, false);
    let delta = bench.begin_change(RuleChanges::default());
    to_service(&mut bench, &mut first, 1000..1016, 1);
    assert!(!delta.moves(0, 1), "their own chain stays as it was");
    assert!(new.receive().is_empty(), "packets before them are still with the old one");
    let stayed = old.receive();
    assert!((1..16).contains(&stayed.len()), "who stays does not wait");
    assert_eq!(bench.worker.parked_pkts(), 16 - stayed.len());
    pass_on(&mut old, &before);
    pass_on(&mut old, &stayed);
    let outcome = finish(&mut bench);
    assert_eq!((outcome.in_order, outcome.parked_pkts), (true, 16 - stayed.len() as u64));
    let moved = new.receive();
    assert_eq!(moved.len(), 16 - stayed.len());
    assert!(moved.iter().all(|delivery| delivery.hop == 255));
    pass_on(&mut new, &moved);
    bench.turn();
    assert_eq!(bench.sent_flows().len(), 32);
    bench.assert_all_back();
}

#[test]
fn a_change_ends_though_packets_never_stop_coming() {
    let mut bench = Bench::new(&[1]);
    let mut first = bench.attach(1);
    let mut second = bench.attach(2);
    bench.inject_flow(1000, 0);
    bench.turn();
    let old = first.receive();
    bench.chains[0] = chain(0, &[2]);
    bench.begin_change(RuleChanges::default());
    let mut number = 0;
    let mut more = |bench: &mut Bench, count| {
        for _ in 0..count {
            number += 1;
            bench.inject_flow(1000, number);
        }
        bench.turn();
    };
    more(&mut bench, 20);
    pass_on(&mut first, &old);
    let mut outcome = None;
    for _ in 0..FEW_TURNS {
        more(&mut bench, 8);
        outcome = bench.take_outcome();
        if outcome.is_some() {
            break;
        }
        let got = second.receive();
        pass_on(&mut second, &got);
    }
    assert!(outcome.expect("the change must end under load").in_order);
    let got = second.receive();
    pass_on(&mut second, &got);
    bench.turn();
    let got = second.receive();
    pass_on(&mut second, &got);
    bench.turn();
    let numbers: Vec<_> = bench.sent_flows().iter().map(|sent| sent.1).collect();
    assert_eq!(numbers, (0..=number).collect::<Vec<_>>());
    bench.assert_all_back();
}

#[test]
fn a_full_parking_lot_stops_receiving_and_drops_nothing() {
    let mut bench = Bench::new(&[1]);
    let mut first = bench.attach(1);
    let mut second = bench.attach(2);
    bench.inject_flow(1000, 0);
    bench.turn();
    let old = first.receive();
    bench.chains[0] = chain(0, &[2]);
    bench.begin_change(RuleChanges::default());
    (1..=200).for_each(|number| bench.inject_flow(1000, number));
    for _ in 0..20 {
        bench.turn();
    }
    // A quarter of the buffers may wait here; the rest waits at the port.
    let parked = bench.worker.parked_pkts();
    assert_eq!((parked, bench.waiting_outside()), (64, 136));
    assert_eq!(bench.counters.dropped_pkts.get(), 0);
    pass_on(&mut first, &old);
    let mut outcome = None;
    for _ in 0..50 {
        bench.turn();
        outcome = outcome.or(bench.take_outcome());
        let got = second.receive();
        pass_on(&mut second, &got);
    }
    assert!(outcome.unwrap().in_order);
    let numbers: Vec<_> = bench.sent_flows().iter().map(|sent| sent.1).collect();
    assert_eq!(numbers, (0..=200).collect::<Vec<_>>());
    assert_eq!(bench.counters.dropped_pkts.get(), 0);
    bench.assert_all_back();
}

#[test]
fn an_nf_that_keeps_its_packets_holds_a_change_up_for_a_while_only() {
    let mut bench = Bench::new(&[1]);
    let mut first = bench.attach(1);
    let mut second = bench.attach(2);
    bench.inject_flow(1000, 0);
    bench.turn();
    let kept = first.receive();
    bench.chains[0] = chain(0, &[2]);
    bench.begin_change(RuleChanges::default());
    bench.inject_flow(1000, 1);
    let began = Instant::now();
    let outcome = loop {
        bench.turn();
        if let Some(outcome) = bench.take_outcome() {
            break outcome;
        }
        assert!(second.receive().is_empty());
        assert!(began.elapsed() < Duration::from_secs(60), "it must end");
        std::thread::sleep(Duration::from_millis(2));
    };
    assert!(!outcome.in_order && outcome.parked_pkts == 1);
    assert_eq!(outcome.waited, outcome.waited.max(Duration::from_millis(300)));
    // The one that was kept still ends as its own plan says: its route is there yet.
    pass_on(&mut first, &kept);
    let got = second.receive();
    pass_on(&mut second, &got);
    bench.turn();
    assert_eq!(bench.sent_flows().len(), 2);
    bench.assert_all_back();
}

#[test]
fn a_packet_kept_over_hundreds_of_changes_is_not_taken_for_a_new_one() {
    let mut bench = Bench::new(&[1]);
    let mut first = bench.attach(1);
    for number in 0..60 {
        bench.inject_flow(1000, number);
    }
    bench.turn();
    bench.turn();
    let mut kept = first.receive().into_iter();
    assert_eq!(kept.len(), 60);
    // A worker counts changes in a byte. Nobody waits here, or it would take minutes.
    bench.worker.set_patience(Duration::ZERO);
    for change in 0..600 {
        bench.begin_change(RuleChanges::default());
        let in_order = finish(&mut bench).in_order;
        assert!(!in_order, "a packet of an older plan is inside after change {change}");
        // Some come back just when their number is in use again.
        if (240..290).contains(&change) {
            first.pass(&kept.next().unwrap(), ActionCode::Next, 0);
        }
    }
    assert_eq!(kept.len(), 10);
    kept.for_each(|packet| first.pass(&packet, ActionCode::Next, 0));
    bench.turn();
    bench.change();
    assert_eq!(bench.sent_flows().len(), 60);
    bench.assert_all_back();
}

#[test]
fn a_manager_that_stops_during_a_change_counts_what_is_inside() {
    for isolated in [false, true] {
        let mut bench = Bench::new(&[1]);
        let mut first = bench.join(1, isolated);
        let _second = bench.join(2, isolated);
        bench.change();
        for number in 0..5 {
            bench.inject_flow(1000, number);
        }
        bench.turn();
        let inside = first.receive();
        bench.chains[0] = chain(0, &[2]);
        bench.begin_change(RuleChanges::default());
        for number in 5..15 {
            bench.inject_flow(1000, number);
        }
        bench.turn();
        assert_eq!(bench.worker.parked_pkts(), 10);
        first.pass(&inside[0], ActionCode::Next, 0);
        bench.worker.close();
        assert_eq!(bench.sent_flows(), [(1000, 0)], "what was given back goes out yet");
        let gone = bench.drops_at(1, DropReason::NfGone);
        assert_eq!(gone, if isolated { 4 } else { 0 });
        assert_eq!(bench.counters.drops.get(DropReason::Shutdown), 14 - gone);
        bench.assert_all_back();
    }
}

#[test]
fn a_packet_that_moves_by_a_rule_waits_and_goes_where_the_new_rule_says() {
    let mut bench = Bench::with_chains(vec![chain(0, &[1]), chain(1, &[2])]);
    let mut first = bench.attach(1);
    let mut second = bench.attach(2);
    for flow in 1000..1004 {
        bench.inject_flow(flow, 0);
    }
    bench.turn();
    let old = first.receive();
    bench.begin_change(rules(&[
        (1000, Some(Then::Chain(1))),
        (1001, Some(Then::Out(1))),
        (1002, Some(Then::Drop)),
    ]));
    for flow in 1000..1004 {
        bench.inject_flow(flow, 1);
    }
    // What cannot be read may belong to any rule's flow.
    bench.wires[0].lock().unwrap().to_receive.push_back((frame(1003, 2), 5));
    bench.turn();
    assert_eq!(bench.worker.parked_pkts(), 3);
    let unmoved = first.receive();
    assert_eq!(unmoved.len(), 2, "only the flows of these rules wait");
    assert!(bench.sent_flows().is_empty());
    pass_on(&mut first, &old);
    pass_on(&mut first, &unmoved);
    assert!(finish(&mut bench).in_order);
    let moved = second.receive();
    pass_on(&mut second, &moved);
    bench.turn();
    let sent = bench.sent_flows();
    let of = |flow| sent.iter().filter(|s| s.0 == flow).map(|s| s.1).collect::<Vec<_>>();
    assert_eq!((of(1000), of(1001)), (vec![0, 1], vec![0, 1]));
    assert_eq!((of(1002), of(1003)), (vec![0], vec![0, 1, 2]));
    assert_eq!(bench.counters.drops.get(DropReason::RuleDrop), 1);
    bench.assert_all_back();
}
