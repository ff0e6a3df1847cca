//! Loans: buffers that come from the pool to an NF that asked, and are accounted for like packets.

use std::collections::BTreeSet;

use millrace::classify::RuleChanges;
use millrace::model::End;
use millrace::stats::DropReason;
use nflib::descriptor::{ActionCode, Delivery, NO_PORT, Returned};

use super::bench::{Bench, TestNf, back, buffers, chain, ending};

/// What an NF says that has made a packet in a loan.
fn made(loan: &Delivery, action: ActionCode, target: u16) -> Returned {
    Returned { len_bytes: 60, ..back(loan, action, target) }
}

#[test]
fn a_loan_is_an_empty_buffer_at_the_nf_s_own_place_in_the_chain_it_is_for() {
    let chains = vec![chain(0, &[2]), chain(1, &[5, 2]), chain(2, &[2])];
    let mut bench = Bench::with_chains(chains);
    let mut nf = bench.attach(2);
    bench.worker.owe(nf.nf, 3, 1);
    bench.turn();
    let loans = nf.receive();
    assert_eq!(loans.len(), 3);
    let route = bench.worker.plan().route_of(1).unwrap().id;
    for loan in &loans {
        assert_eq!((loan.port, loan.len_bytes, loan.offset_bytes), (NO_PORT, 0, 256));
        assert_eq!((loan.route, loan.hop), (route, 1));
        assert!(loan.is_loan());
    }
    let hashes: BTreeSet<_> = loans.iter().map(|loan| loan.flow_hash).collect();
    assert_eq!(hashes.len(), 3, "each is a flow of its own");
    assert_eq!((bench.counters.lent_pkts.get(), bench.worker.held_pkts()), (3, 3));
    // Given back, they are lent no second time.
    for loan in &loans {
        nf.pass(loan, ActionCode::Drop, 0);
    }
    bench.turn();
    assert!(nf.receive().is_empty());
    assert_eq!(bench.drops_at(2, DropReason::LoanReturned), 3);
    bench.assert_all_back();
}

#[test]
fn a_packet_made_in_a_loan_travels_like_any_other() {
    let mut bench = Bench::with_chains(vec![ending(0, &[1, 2], End::Out(1))]);
    let mut first = bench.attach(1);
    let mut second = bench.attach(2);
    bench.worker.owe(first.nf, 3, 0);
    bench.turn();
    let loans = first.receive();
    let fill = |buffer| assert!(first.region.write(buffer, 256, &[0x42; 60]));
    buffers(&loans).into_iter().for_each(fill);
    first.give_back(&[
        made(&loans[0], ActionCode::Next, 0),
        made(&loans[1], ActionCode::Out, 1),
        made(&loans[2], ActionCode::Drop, 0),
    ]);
    bench.turn();
    let sent = bench.sent();
    assert_eq!((sent.len(), &sent[0].1[..]), (1, &[0x42; 60][..]));
    assert_eq!(bench.drops_at(1, DropReason::NfDrop), 1, "it was a packet by then");
    let got = second.receive();
    assert_eq!((got.len(), got[0].port, got[0].len_bytes, got[0].hop), (1, NO_PORT, 60, 1));
    second.pass(&got[0], ActionCode::Next, 0);
    bench.turn();
    assert_eq!(bench.sent().len(), 1);
    bench.assert_all_back();
}

#[test]
fn a_packet_that_came_in_by_no_port_leaves_by_none_at_its_chain_s_end() {
    for end in [End::Egress, End::Ingress] {
        let mut bench = Bench::with_chains(vec![ending(0, &[1], end)]);
        let mut nf = bench.attach(1);
        bench.worker.owe(nf.nf, 1, 0);
        bench.turn();
        let loan = nf.receive()[0];
        nf.give_back(&[made(&loan, ActionCode::Next, 0)]);
        bench.turn();
        assert_eq!(bench.counters.drops.get(DropReason::NoEgress), 1, "{end:?}");
        bench.assert_all_back();
    }
}

#[test]
fn loans_wait_for_room_in_the_ring_and_for_buffers_to_spare() {
    // Rings of 64: half of one for loans. 128 buffers: an eighth is kept.
    let mut bench = Bench::sized(vec![chain(0, &[1])], 128, 64);
    let mut nf = bench.attach(1);
    bench.worker.owe(nf.nf, 120, 0);
    for expected in [32, 32, 32, 16, 0, 0] {
        bench.turn();
        bench.turn();
        let loans = nf.receive();
        assert_eq!(loans.len(), expected);
    }
    assert_eq!(bench.worker.pool().free_buffers(), 16);
    // A port still gets buffers.
    bench.inject(10);
    bench.turn();
    let got = nf.receive();
    assert_eq!(got.len(), 10);
    // All it had and one more: the rest of the loan comes when they are free again.
    for packet in &got {
        nf.pass(packet, ActionCode::Drop, 0);
    }
    let nf_number = nf.nf;
    bench.bury(nf_number);
    assert_eq!(bench.drops_at(1, DropReason::NfGone), 112);
    bench.turn();
    assert_eq!(bench.counters.lent_pkts.get(), 112, "the dead are lent nothing more");
    bench.assert_all_back();
}

#[test]
fn an_nf_that_is_closed_or_in_no_chain_is_lent_nothing() {
    let mut bench = Bench::with_chains(vec![chain(0, &[1])]);
    let mut stranger = bench.attach(7);
    let mut closed = bench.attach(1);
    bench.worker.owe(stranger.nf, 4, 1);
    bench.worker.owe(closed.nf, 4, 0);
    bench.worker.owe(99, 4, 0);
    bench.worker.close_nf(closed.nf);
    bench.turn();
    assert!(stranger.receive().is_empty() && closed.receive().is_empty());
    // Its chain comes.
    bench.chains.push(chain(1, &[7]));
    bench.change();
    bench.turn();
    let loans = stranger.receive();
    assert_eq!(loans.len(), 4);
    for loan in &loans {
        stranger.pass(loan, ActionCode::Drop, 0);
    }
    bench.turn();
    bench.assert_all_back();
}

#[test]
fn what_an_nf_made_may_circulate_through_the_worker_longer_than_any_other_packet() {
    for isolated in [false, true] {
        let mut bench = Bench::new(&[1]);
        let mut nf = if isolated { bench.attach_isolated(1) } else { bench.attach(1) };
        bench.worker.owe(nf.nf, 1, 0);
        bench.turn();
        let mut at = nf.receive()[0];
        at.len_bytes = 60;
        for _ in 0..1000 {
            nf.pass(&at, ActionCode::ToService, 1);
            bench.turn();
            let got = nf.receive();
            assert_eq!((got.len(), got[0].buffer, got[0].hop), (1, at.buffer, 0));
        }
        nf.pass(&at, ActionCode::Drop, 0);
        bench.turn();
        bench.assert_all_back();
    }
}

/// An NF whose stock is to be of so many, of either kind.
fn with_stock(bench: &mut Bench, isolated: bool, pkts: u32) -> TestNf {
    bench.keeps_stock = true;
    let nf = if isolated { bench.attach_isolated(1) } else { bench.attach(1) };
    bench.worker.owe(nf.nf, pkts, 0);
    bench.turn();
    nf
}

#[test]
fn an_nf_that_keeps_a_stock_is_lent_another_buffer_for_each_it_asks_for() {
    for isolated in [false, true] {
        let mut bench = Bench::with_chains(vec![ending(0, &[1], End::Out(1))]);
        let mut nf = with_stock(&mut bench, isolated, 3);
        let mut stock = nf.receive();
        assert_eq!(stock.len(), 3);
        for round in 0..200 {
            let (one, two) = (stock.remove(0), stock.remove(0));
            nf.give_back(&[made(&one, ActionCode::Next, 0), made(&two, ActionCode::Next, 0)]);
            nf.channel.ask_for(0, 2);
            bench.turn();
            bench.turn();
            assert_eq!(bench.sent().len(), 2, "round {round}");
            let more = nf.receive();
            assert_eq!(more.len(), 2, "round {round}");
            stock.extend(more);
        }
        for loan in &stock {
            nf.pass(loan, ActionCode::Drop, 0);
        }
        bench.turn();
        assert!(nf.receive().is_empty(), "it did not ask");
        bench.assert_all_back();
    }
}

#[test]
fn a_stock_comes_in_the_turn_of_the_first_packets_and_before_them() {
    let mut bench = Bench::with_chains(vec![chain(0, &[1])]);
    bench.keeps_stock = true;
    let mut nf = bench.join(1, false);
    bench.worker.owe(nf.nf, 2, 0);
    bench.turn();
    assert!(nf.receive().is_empty(), "no plan names it");
    bench.inject(3);
    bench.change();
    bench.turn();
    let got = nf.receive();
    let loans: Vec<_> = got.iter().map(Delivery::is_loan).collect();
    assert_eq!(loans, [true, true, false, false, false]);
    for delivery in &got {
        nf.pass(delivery, ActionCode::Drop, 0);
    }
    bench.turn();
    bench.assert_all_back();
}

#[test]
fn an_nf_that_asks_without_end_leaves_buffers_to_the_ports() {
    for isolated in [false, true] {
        let mut bench = Bench::sized(vec![chain(0, &[1])], 128, 256);
        let mut nf = with_stock(&mut bench, isolated, 16);
        let mut got = nf.receive().len();
        for _ in 0..200 {
            nf.channel.ask_for(0, u64::MAX / 2 + 12345);
            bench.turn();
            got += nf.receive().len();
        }
        let most = if isolated { 64 } else { 112 };
        assert!(got <= most && got > most / 2, "{got} of 128");
        bench.inject(4);
        bench.turn();
        assert!(bench.worker.pool().free_buffers() > 0);
        let number = nf.nf;
        bench.bury(number);
        bench.turn();
        bench.assert_all_back();
    }
}

#[test]
fn a_change_of_chains_recalls_the_stock_and_is_in_order_once_it_is_back() {
    let mut bench = Bench::with_chains(vec![ending(0, &[1], End::Out(1))]);
    let mut nf = with_stock(&mut bench, false, 4);
    let old = nf.receive();
    let recalls = nf.channel.recalls(0);
    assert!(old.iter().all(|loan| loan.flow_hash == recalls));
    bench.chains = vec![ending(0, &[1, 2], End::Out(1))];
    bench.begin_change(RuleChanges::default());
    bench.turn();
    assert_eq!(nf.channel.recalls(0), recalls + 1);
    assert!(bench.worker.take_outcome().is_none(), "what is in stock is waited for");
    for loan in &old {
        nf.pass(loan, ActionCode::Drop, 0);
    }
    nf.channel.ask_for(0, 4);
    bench.turn();
    bench.turn();
    assert!(bench.worker.take_outcome().is_some_and(|outcome| outcome.in_order));
    let new = nf.receive();
    assert_eq!(new.len(), 4);
    assert!(new.iter().all(|loan| loan.flow_hash == recalls + 1 && loan.route != old[0].route));
    for loan in &new {
        nf.pass(loan, ActionCode::Drop, 0);
    }
    bench.turn();
    bench.assert_all_back();
}

#[test]
fn a_stock_outlives_the_chain_it_was_lent_for_where_another_has_the_service() {
    let mut bench = Bench::with_chains(vec![chain(0, &[1]), chain(1, &[1])]);
    let mut nf = with_stock(&mut bench, false, 2);
    for loan in nf.receive() {
        nf.pass(&loan, ActionCode::Drop, 0);
    }
    bench.turn();
    bench.chains.remove(0);
    bench.miss = millrace::plan::Miss::Chain(1);
    bench.change();
    nf.channel.ask_for(0, 2);
    bench.turn();
    let loans = nf.receive();
    assert_eq!(loans.len(), 2);
    assert_eq!(loans[0].route, bench.worker.plan().route_of(1).unwrap().id);
    for loan in &loans {
        nf.pass(loan, ActionCode::Drop, 0);
    }
    bench.turn();
    bench.assert_all_back();
}
