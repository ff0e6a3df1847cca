//! What becomes of packets at a service without an NF, by their chain's policy.

use std::time::Duration;

use millrace::classify::RuleChanges;
use millrace::flow::Then;
use millrace::model::End;
use millrace::plan::ChainShape;
use millrace::stats::DropReason;
use nflib::control::OnDeath;
use nflib::descriptor::{ActionCode, ServiceId};

use super::bench::{Bench, TestNf, chain, ending, flow_and_number, rules};

fn with_policy(on_death: OnDeath, services: &[ServiceId]) -> ChainShape {
    ChainShape { on_death, ..chain(0, services) }
}

/// Takes what is there and passes it on; the numbers, in order.
fn work(nf: &mut TestNf) -> Vec<u32> {
    let got = nf.receive();
    let number = |delivery: &nflib::descriptor::Delivery| {
        let mut bytes = vec![0; usize::from(delivery.len_bytes)];
        assert!(nf.region.read(delivery.buffer, delivery.offset_bytes, &mut bytes));
        flow_and_number(&bytes).1
    };
    let numbers = got.iter().map(number).collect();
    got.iter().for_each(|delivery| nf.pass(delivery, ActionCode::Next, 0));
    numbers
}

fn inject(bench: &mut Bench, numbers: std::ops::Range<u32>) {
    numbers.for_each(|number| bench.inject_flow(1000, number));
    bench.turn();
}

/// The NF is dead, and the next plan does without it.
fn die(bench: &mut Bench, nf: &TestNf, service: ServiceId) {
    bench.bury(nf.nf);
    bench.instances.remove(&service);
}

/// Turns until the change is done.
fn finish(bench: &mut Bench) {
    for _ in 0..16 {
        bench.turn();
        if let Some(outcome) = bench.take_outcome() {
            return assert!(outcome.in_order);
        }
    }
    panic!("the change does not end");
}

#[test]
fn packets_that_are_held_go_to_the_successor_before_all_that_came_later() {
    // At the first hop, and behind another that goes on working.
    for services in [&[2][..], &[1, 2]] {
        let mut bench = Bench::with_chains(vec![with_policy(OnDeath::Hold, services)]);
        let mut first = (services.len() > 1).then(|| bench.attach(1));
        let mut pass = |bench: &mut Bench| {
            if let Some(first) = &mut first {
                work(first);
                bench.turn();
            }
        };
        let dead = bench.attach(2);
        inject(&mut bench, 0..3);
        pass(&mut bench);
        // Some are on their way while nobody has noticed, some while the plan changes.
        bench.bury(dead.nf);
        assert_eq!(bench.drops_at(2, DropReason::NfGone), 3);
        inject(&mut bench, 3..6);
        pass(&mut bench);
        bench.instances.remove(&2);
        bench.begin_change(RuleChanges::default());
        inject(&mut bench, 6..9);
        finish(&mut bench);
        pass(&mut bench);
        inject(&mut bench, 9..12);
        pass(&mut bench);
        assert_eq!(bench.worker.parked_pkts(), 9);
        assert_eq!(bench.service_drops(2).waiting_pkts.get(), 9);
        assert_eq!(bench.sent().len(), 0);

        let mut successor = bench.join(2, false);
        bench.begin_change(RuleChanges::default());
        inject(&mut bench, 12..15);
        assert_eq!(work(&mut successor), (3..12).collect::<Vec<_>>(), "those who waited longest");
        finish(&mut bench);
        pass(&mut bench);
        assert_eq!(work(&mut successor), [12, 13, 14]);
        bench.turn();
        assert_eq!(bench.sent_flows().len(), 12);
        assert_eq!(bench.service_drops(2).waiting_pkts.get(), 0);
        bench.assert_all_back();
    }
}

#[test]
fn who_waits_neither_holds_up_another_change_nor_is_lost_by_it() {
    let policy = with_policy(OnDeath::Hold, &[1, 2]);
    let mut bench = Bench::with_chains(vec![policy, chain(1, &[3])]);
    let mut first = bench.attach(1);
    let dead = bench.attach(2);
    let mut third = bench.attach(3);
    die(&mut bench, &dead, 2);
    bench.change();
    inject(&mut bench, 0..2);
    work(&mut first);
    bench.turn();
    assert_eq!(bench.worker.parked_pkts(), 2);
    // Again and again, until every number of a route has been used anew: what waits follows its chain.
    for at in 0..300 {
        bench.chains[1] = ending(1, &[3], if at % 2 == 0 { End::Drop } else { End::Egress });
        bench.chains[0].services = if at % 3 == 0 { vec![2, 1] } else { vec![1, 2] };
        bench.change_rules(rules(&[(2000, Some(Then::Chain(1)))]));
        bench.inject_flow(2000, 7);
        bench.turn();
        assert_eq!(work(&mut third), [7]);
        bench.turn();
    }
    bench.sent();
    assert_eq!(bench.worker.parked_pkts(), 2);
    bench.chains[0].services = vec![1, 2];
    let mut successor = bench.join(2, false);
    bench.begin_change(RuleChanges::default());
    bench.turn();
    assert_eq!(work(&mut successor), [0, 1]);
    finish(&mut bench);
    assert_eq!(bench.sent_flows(), [(1000, 0), (1000, 1)]);

    // A chain that does not visit the service any more does not keep its packets.
    die(&mut bench, &successor, 2);
    bench.change();
    inject(&mut bench, 2..4);
    work(&mut first);
    bench.turn();
    bench.chains[0].services = vec![1];
    bench.change();
    assert_eq!(bench.drops_at(2, DropReason::NoInstance), 2);
    bench.assert_all_back();
}

#[test]
fn one_of_two_instances_dies_and_its_flows_wait_for_the_other() {
    let mut bench = Bench::with_chains(vec![with_policy(OnDeath::Hold, &[1])]);
    let mut nfs = [bench.join(1, false), bench.join(1, false)];
    bench.change();
    let flows = 1000..1016u16;
    let send = |bench: &mut Bench, number| {
        flows.clone().for_each(|flow| bench.inject_flow(flow, number));
        bench.turn();
    };
    bench.bury(nfs[0].nf);
    send(&mut bench, 0);
    assert!(bench.worker.parked_pkts() > 0);
    bench.instances.insert(1, vec![nfs[1].nf]);
    bench.begin_change(RuleChanges::default());
    send(&mut bench, 1);
    work(&mut nfs[1]);
    finish(&mut bench);
    work(&mut nfs[1]);
    bench.turn();
    let sent = bench.sent_flows();
    for flow in flows {
        let numbers: Vec<_> = sent.iter().filter(|s| s.0 == flow).map(|s| s.1).collect();
        assert_eq!(numbers, [0, 1], "flow {flow}");
    }
    bench.assert_all_back();
}

#[test]
fn no_more_wait_than_a_quarter_of_the_buffers_and_none_for_ever() {
    let mut bench = Bench::with_chains(vec![with_policy(OnDeath::Hold, &[1])]);
    bench.change();
    let limit = bench.buffers() / 4;
    inject(&mut bench, 0..limit as u32 + 5);
    (0..4).for_each(|_| bench.turn());
    assert_eq!(bench.worker.parked_pkts(), limit);
    assert_eq!(bench.drops_at(1, DropReason::HoldFull), 5);
    bench.worker.set_hold_limit(Duration::ZERO);
    bench.turn();
    assert_eq!(bench.drops_at(1, DropReason::HoldTimeout), limit as u64);
    bench.assert_all_back();

    bench.worker.set_hold_limit(Duration::MAX);
    inject(&mut bench, 0..3);
    assert_eq!(bench.worker.parked_pkts(), 3);
    bench.worker.stop_holding();
    inject(&mut bench, 3..5);
    assert_eq!(bench.counters.drops.get(DropReason::Shutdown), 3);
    assert_eq!(bench.drops_at(1, DropReason::HoldFull), 7);
    bench.assert_all_back();
}

#[test]
fn a_chain_that_bypasses_skips_the_dead_and_counts_what_skipped() {
    let mut bench = Bench::with_chains(vec![with_policy(OnDeath::Bypass, &[1, 2, 3])]);
    let mut first = bench.attach(1);
    let dead = bench.attach(2);
    let mut last = bench.attach(3);
    die(&mut bench, &dead, 2);
    inject(&mut bench, 0..2);
    work(&mut first);
    bench.turn();
    assert_eq!(work(&mut last), [0, 1], "also before the plan knows");
    bench.turn();
    bench.change();
    inject(&mut bench, 2..4);
    work(&mut first);
    bench.turn();
    assert_eq!(work(&mut last), [2, 3]);
    bench.turn();
    die(&mut bench, &last, 3);
    bench.change();
    inject(&mut bench, 4..6);
    work(&mut first);
    bench.turn();
    assert_eq!(bench.sent_flows().len(), 6, "two dead in a row, and the end");
    assert_eq!(bench.service_drops(2).bypassed_pkts.get(), 6);
    assert_eq!(bench.service_drops(3).bypassed_pkts.get(), 2);
    bench.assert_all_back();
}

#[test]
fn a_chain_that_drops_does_so_at_the_service_and_waits_for_nobody() {
    let held = ChainShape { id: 1, ..with_policy(OnDeath::Hold, &[1]) };
    let mut bench = Bench::with_chains(vec![chain(0, &[1]), held]);
    bench.change_rules(rules(&[(2000, Some(Then::Chain(1)))]));
    inject(&mut bench, 0..2);
    assert_eq!(bench.drops_at(1, DropReason::NoInstance), 2);
    for number in 0..100 {
        bench.inject_flow(2000, number);
    }
    (0..4).for_each(|_| bench.turn());
    let waiting = bench.worker.parked_pkts();
    assert_eq!(waiting, bench.buffers() / 4);
    let mut successor = bench.join(1, false);
    bench.begin_change(RuleChanges::default());
    bench.turn();
    assert!(bench.worker.parked_pkts() > 0, "the ring does not take all who wait");
    bench.inject_flow(1000, 7);
    bench.turn();
    let got = work(&mut successor);
    assert!(got.len() < waiting && got.contains(&7), "nobody of its chain waits: {got:?}");
    bench.turn();
    work(&mut successor);
    finish(&mut bench);
    work(&mut successor);
    bench.turn();
    bench.assert_all_back();
}
