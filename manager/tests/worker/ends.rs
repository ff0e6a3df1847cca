//! Where packets go: rules, chains, their ends and branches, and what NFs ask for on the way.

use millrace::flow::Then;
use millrace::model::End;
use millrace::plan::Miss;
use millrace::stats::DropReason;
use nflib::descriptor::{ActionCode, Delivery};
use nflib::headers::Headers;

use super::bench::{Bench, TestNf, back, buffers, chain, ending, flow_and_number, frame, rules};

/// Passes on everything that an NF has; returns how much that was.
fn pass_all(bench: &mut Bench, nf: &mut TestNf, action: ActionCode, target: u16) -> usize {
    let got = nf.receive();
    for delivery in &got {
        nf.pass(delivery, action, target);
    }
    bench.turn();
    got.len()
}

#[test]
fn a_frame_tells_its_flow_and_number() {
    let frame = frame(40_123, 0x0102_0304);
    assert_eq!(flow_and_number(&frame), (40_123, 0x0102_0304));
    assert_eq!(Headers::parse(&frame).ports(), Some((40_123, 53)));
}

#[test]
fn a_chain_s_end_is_where_its_packets_leave() {
    for (end, at, reason) in [
        (End::Egress, Some(1), None),
        (End::Ingress, Some(0), None),
        (End::Out(0), Some(0), None),
        (End::Out(1), Some(1), None),
        (End::Drop, None, Some(DropReason::ChainEnd)),
        (End::Out(7), None, Some(DropReason::UnknownPort)),
    ] {
        for services in [&[1u16][..], &[]] {
            let mut bench = Bench::with_chains(vec![ending(0, services, end)]);
            let mut nf = bench.attach(1);
            bench.inject(3);
            bench.turn();
            pass_all(&mut bench, &mut nf, ActionCode::Next, 0);
            for port in 0..2 {
                let sent = bench.sent_by(port).len();
                assert_eq!(sent, if at == Some(port) { 3 } else { 0 }, "{end:?} {services:?}");
            }
            if let Some(reason) = reason {
                assert_eq!(bench.counters.drops.get(reason), 3);
            }
            bench.assert_all_back();
        }
    }
}

#[test]
fn a_chain_that_ends_in_another_goes_on_there_also_through_empty_ones() {
    let mut bench = Bench::with_chains(vec![
        ending(0, &[1], End::Chain(1)),
        ending(1, &[], End::Chain(2)),
        ending(2, &[], End::Chain(3)),
        ending(3, &[2], End::Ingress),
    ]);
    let mut first = bench.attach(1);
    let mut second = bench.attach(2);
    bench.inject(4);
    bench.turn();
    assert_eq!(pass_all(&mut bench, &mut first, ActionCode::Next, 0), 4);
    let got = second.receive();
    assert_eq!(got.len(), 4);
    // It is the other chain's route that they travel now, from its start.
    let route = bench.worker.plan().route_of(3).unwrap().id;
    assert!(got.iter().all(|delivery| (delivery.route, delivery.hop) == (route, 0)));
    for delivery in &got {
        second.pass(delivery, ActionCode::Next, 0);
    }
    bench.turn();
    assert_eq!(bench.sent_by(0).len(), 4);
    assert_eq!(bench.worker.chain_counts(), [(4, 240)], "counted where they entered");
    bench.assert_all_back();
}

#[test]
fn chains_that_lead_in_a_circle_end_at_the_hop_limit() {
    // Without any NF, and through one.
    let circle =
        |services: &[u16]| vec![ending(0, services, End::Chain(1)), ending(1, &[], End::Chain(0))];
    let mut bench = Bench::with_chains(circle(&[]));
    bench.inject(2);
    bench.turn();
    assert_eq!(bench.counters.drops.get(DropReason::HopLimit), 2);
    bench.assert_all_back();

    let mut bench = Bench::with_chains(circle(&[1]));
    let mut nf = bench.attach(1);
    bench.inject(2);
    bench.turn();
    let mut rounds = 0;
    while pass_all(&mut bench, &mut nf, ActionCode::Next, 0) > 0 {
        rounds += 1;
        assert!(rounds < 1000, "the circle must end");
    }
    assert_eq!(
        bench.counters.drops.get(DropReason::HopLimit) + bench.drops_at(1, DropReason::HopLimit),
        2
    );
    bench.assert_all_back();
}

#[test]
fn a_branch_leads_where_the_packet_s_own_chain_says() {
    let mut default = chain(0, &[1, 2]);
    default.branches.insert(77, 1);
    let mut other = ending(1, &[3], End::Ingress);
    other.branches.insert(77, 2);
    let mut bench = Bench::with_chains(vec![default, other, ending(2, &[], End::Out(0))]);
    let mut first = bench.attach(1);
    let mut third = bench.attach(3);
    bench.inject(2);
    bench.turn();
    let got = first.receive();
    first.pass(&got[0], ActionCode::Branch, 77);
    first.pass(&got[1], ActionCode::Branch, 78);
    bench.turn();
    assert_eq!(bench.counters.drops.get(DropReason::UnknownBranch), 1);
    let at_third = third.receive();
    assert_eq!(buffers(&at_third), [got[0].buffer]);
    // The same branch means another chain there.
    third.pass(&at_third[0], ActionCode::Branch, 77);
    bench.turn();
    assert_eq!(bench.sent_by(0).len(), 1);
    assert!(bench.sent().is_empty());
    bench.assert_all_back();
}

#[test]
fn a_packet_sent_to_a_service_of_its_route_goes_on_from_there() {
    let mut bench = Bench::new(&[1, 2, 3, 4]);
    let mut first = bench.attach(1);
    let mut third = bench.attach(3);
    let mut fourth = bench.attach(4);
    bench.inject(1);
    bench.turn();
    assert_eq!(pass_all(&mut bench, &mut first, ActionCode::ToService, 3), 1);
    let got = third.receive();
    assert_eq!(got[0].hop, 2);
    third.pass(&got[0], ActionCode::Next, 0);
    bench.turn();
    assert_eq!(fourth.receive().len(), 1);
    fourth.pass(&Delivery { hop: 3, ..got[0] }, ActionCode::Next, 0);
    bench.turn();
    assert_eq!(bench.sent().len(), 1);
    bench.assert_all_back();
}

#[test]
fn a_packet_sent_off_its_route_comes_to_the_route_s_end() {
    let mut bench = Bench::with_chains(vec![ending(0, &[1, 2], End::Ingress), chain(1, &[9])]);
    for isolated in [true, false] {
        let mut first = bench.join(1, isolated);
        let mut ninth = bench.join(9, isolated);
        bench.change();
        bench.inject(2);
        bench.turn();
        let before = bench.drops_at(9, DropReason::NfMalformed);
        assert_eq!(pass_all(&mut bench, &mut first, ActionCode::ToService, 9), 2);
        let got = ninth.receive();
        assert!(got.len() == 2 && got.iter().all(|delivery| delivery.hop == 255));
        // No hop of the route can be where it is.
        let lie = nflib::descriptor::Returned { hop: 0, ..back(&got[1], ActionCode::Next, 0) };
        ninth.give_back(&[back(&got[0], ActionCode::Next, 0), lie]);
        bench.turn();
        assert_eq!(bench.sent_by(0).len(), 1);
        assert_eq!(bench.drops_at(9, DropReason::NfMalformed), before + 1);
        bench.assert_all_back();
        bench.instances.clear();
    }
}

#[test]
fn a_full_neighbour_is_blamed_for_what_could_not_be_pushed_to_it() {
    let mut bench = Bench::new(&[1, 2]);
    let mut first = bench.attach(1);
    let second = bench.attach(2);
    bench.inject(2);
    bench.turn();
    let got = first.receive();
    first.pass(&got[0], ActionCode::Refused, second.nf);
    first.pass(&got[1], ActionCode::Refused, 999);
    bench.turn();
    assert_eq!(second.counters.ring_full_pkts.get(), 1);
    assert_eq!(bench.drops_at(2, DropReason::NfRingFull), 1);
    assert_eq!(bench.counters.drops.get(DropReason::NfRingFull), 1, "nobody's");
    bench.assert_all_back();
}

#[test]
fn rules_send_flows_into_chains_out_and_away_and_the_miss_takes_the_rest() {
    let mut bench = Bench::with_chains(vec![chain(0, &[1]), ending(1, &[2], End::Ingress)]);
    let mut first = bench.attach(1);
    let mut second = bench.attach(2);
    bench.change_rules(rules(&[
        (1001, Some(Then::Chain(1))),
        (1002, Some(Then::Out(0))),
        (1003, Some(Then::Drop)),
    ]));
    for miss in [Miss::Chain(0), Miss::Egress, Miss::Drop] {
        bench.miss = miss;
        bench.change();
        let no_rule = bench.counters.drops.get(DropReason::NoRule);
        for flow in [1001, 1002, 1003, 1004] {
            bench.inject_flow(flow, 0);
        }
        bench.turn();
        let flows = |sent: Vec<(_, Vec<u8>)>| -> Vec<u16> {
            sent.iter().map(|(_, frame)| flow_and_number(frame).0).collect()
        };
        assert_eq!(flows(bench.sent_by(0)), [1002]);
        let default = pass_all(&mut bench, &mut first, ActionCode::Next, 0);
        assert_eq!(default, usize::from(miss == Miss::Chain(0)));
        let left: &[u16] = if miss == Miss::Drop { &[] } else { &[1004] };
        assert_eq!(flows(bench.sent()), left);
        let dropped = bench.counters.drops.get(DropReason::NoRule) - no_rule;
        assert_eq!(dropped, u64::from(miss == Miss::Drop));
        assert_eq!(pass_all(&mut bench, &mut second, ActionCode::Next, 0), 1);
        assert_eq!(flows(bench.sent_by(0)), [1001]);
    }
    assert_eq!(bench.counters.drops.get(DropReason::RuleDrop), 3);
    assert_eq!(bench.worker.chain_counts(), [(1, 60), (3, 180)]);
    bench.assert_all_back();
}

#[test]
fn a_rule_into_a_chain_that_no_plan_has_drops_under_no_rule() {
    let mut bench = Bench::new(&[1]);
    bench.change_rules(rules(&[(1001, Some(Then::Chain(40)))]));
    bench.inject_flow(1001, 0);
    bench.turn();
    assert_eq!(bench.counters.drops.get(DropReason::NoRule), 1);
    bench.assert_all_back();
}

#[test]
fn each_flow_stays_with_one_instance_and_every_instance_gets_some() {
    for nic_hashes in [true, false] {
        let mut bench = Bench::sized(vec![chain(0, &[1])], 512, 512);
        let mut nfs: Vec<_> = (0..4).map(|_| bench.join(1, false)).collect();
        bench.change();
        for number in 0..4 {
            for flow in 1000..1064u16 {
                let hash = if nic_hashes { u32::from(flow).wrapping_mul(0x0101_6B55) } else { 0 };
                let frame = (frame(flow, number), hash);
                bench.wires[0].lock().unwrap().to_receive.push_back(frame);
            }
        }
        while bench.waiting_outside() > 0 {
            bench.turn();
        }
        let mut home = std::collections::BTreeMap::new();
        for nf in &mut nfs {
            let mut pkts = 0;
            loop {
                let got = nf.receive();
                if got.is_empty() {
                    break;
                }
                for delivery in got {
                    assert_ne!(delivery.flow_hash, 0);
                    let mut bytes = [0; 60];
                    assert!(nf.region.read(delivery.buffer, delivery.offset_bytes, &mut bytes));
                    let (flow, _) = flow_and_number(&bytes);
                    assert_eq!(*home.entry(flow).or_insert(nf.nf), nf.nf, "flow {flow}");
                    nf.pass(&delivery, ActionCode::Next, 0);
                    pkts += 1;
                }
            }
            assert!(pkts > 0, "an instance without flows");
        }
        assert_eq!(home.len(), 64);
        while bench.worker.held_by_nfs() > 0 {
            bench.turn();
        }
        assert_eq!(bench.sent().len(), 256);
        bench.assert_all_back();
    }
}

#[test]
fn two_ports_share_a_ring_that_is_too_small_for_both() {
    let mut bench = Bench::new(&[1]);
    let mut nf = bench.attach(1);
    let mut delivered = [0, 0];
    for _ in 0..4 {
        for wire in &bench.wires {
            wire.lock().unwrap().to_receive.extend((0..64).map(|n| (vec![n; 60], 7)));
        }
        bench.turn();
        let got = nf.receive();
        assert_eq!(got.len(), 64, "as many as the ring takes");
        for delivery in &got {
            delivered[usize::from(delivery.port)] += 1;
            nf.pass(delivery, ActionCode::Drop, 0);
        }
    }
    bench.turn();
    assert!(delivered.iter().all(|&pkts| pkts >= 64), "{delivered:?}");
    bench.assert_all_back();
}
