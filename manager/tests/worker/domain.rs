//! The trusted domain: what its NFs may do with each other's packets, and what not even they may.

use millrace::stats::DropReason;
use nflib::descriptor::{ActionCode, Returned};

use super::bench::{Bench, back, buffers, chain};

#[test]
fn an_nf_of_the_domain_returns_what_a_neighbour_was_given_at_its_own_hop_further_on() {
    let mut bench = Bench::new(&[1, 2, 3]);
    let mut first = bench.attach(1);
    let mut second = bench.attach(2);
    let mut third = bench.attach(3);
    bench.inject(3);
    bench.turn();
    let got = first.receive();
    // As if by direct edges: over one hop, over two, and to the end.
    second.give_back(&[Returned { hop: 1, ..back(&got[0], ActionCode::Next, 0) }]);
    third.give_back(&[Returned { hop: 2, ..back(&got[1], ActionCode::Next, 0) }]);
    second.give_back(&[Returned { hop: 1, ..back(&got[2], ActionCode::Drop, 0) }]);
    bench.turn();
    assert_eq!(bench.sent().len(), 1);
    assert_eq!(bench.drops_at(2, DropReason::NfDrop), 1, "counted at the one who dropped it");
    let at_third = third.receive();
    assert_eq!((buffers(&at_third), at_third[0].hop), (vec![got[0].buffer], 2));
    third.pass(&at_third[0], ActionCode::Next, 0);
    bench.turn();
    assert_eq!(bench.sent().len(), 1);
    for nf in [&first, &second, &third] {
        assert_eq!(nf.violations(), 0);
    }
    bench.assert_all_back();
}

#[test]
fn a_hop_of_another_service_or_beyond_the_route_is_malformed() {
    let mut bench = Bench::new(&[1, 2, 1]);
    let mut first = bench.attach(1);
    let mut second = bench.attach(2);
    bench.inject(4);
    bench.turn();
    let got = first.receive();
    // Hops 1 and 0 are not of these NFs' services; there is no hop 3; nobody sent it off its route.
    first.give_back(&[Returned { hop: 1, ..back(&got[0], ActionCode::Next, 0) }]);
    second.give_back(&[Returned { hop: 0, ..back(&got[1], ActionCode::Next, 0) }]);
    first.give_back(&[Returned { hop: 3, ..back(&got[2], ActionCode::Next, 0) }]);
    first.give_back(&[Returned { hop: 255, ..back(&got[3], ActionCode::Next, 0) }]);
    bench.turn();
    assert_eq!((first.violations(), second.violations()), (3, 1));
    assert_eq!(bench.drops_at(1, DropReason::NfMalformed), 3);
    assert_eq!(bench.drops_at(2, DropReason::NfMalformed), 1);
    assert!(bench.sent().is_empty());
    bench.assert_all_back();
}

#[test]
fn a_packet_that_neighbours_sent_back_along_its_route_goes_on_from_there() {
    let mut bench = Bench::new(&[1, 2, 1, 3]);
    let mut first = bench.attach(1);
    let mut second = bench.attach(2);
    let mut third = bench.attach(3);
    bench.inject(2);
    bench.turn();
    for delivery in &first.receive() {
        first.pass(delivery, ActionCode::Next, 0);
    }
    bench.turn();
    let at_second = second.receive();
    assert!(at_second.iter().all(|delivery| delivery.hop == 1));
    // As if the second had sent them to service 1 itself: one goes on from hop 0, the other from 2.
    first.give_back(&[
        Returned { hop: 0, ..back(&at_second[0], ActionCode::Next, 0) },
        Returned { hop: 2, ..back(&at_second[1], ActionCode::Next, 0) },
    ]);
    bench.turn();
    let (again, at_third) = (second.receive(), third.receive());
    assert_eq!((buffers(&again), again[0].hop), (vec![at_second[0].buffer], 1));
    assert_eq!((buffers(&at_third), at_third[0].hop), (vec![at_second[1].buffer], 3));
    second.pass(&again[0], ActionCode::Drop, 0);
    third.pass(&at_third[0], ActionCode::Next, 0);
    bench.turn();
    assert_eq!(bench.sent().len(), 1);
    assert_eq!((first.violations(), second.violations(), third.violations()), (0, 0, 0));
    bench.assert_all_back();
}

#[test]
fn a_packet_sent_off_its_route_may_come_back_from_a_service_on_it() {
    let mut bench = Bench::with_chains(vec![chain(0, &[1, 2]), chain(1, &[3])]);
    let mut first = bench.attach(1);
    let mut second = bench.attach(2);
    let mut aside = bench.attach(3);
    bench.inject(1);
    bench.turn();
    let got = first.receive();
    first.pass(&got[0], ActionCode::ToService, 3);
    bench.turn();
    let got = aside.receive();
    assert_eq!(got[0].hop, 255);
    // As if service 3 had sent it on to service 2 itself, which is at hop 1 of its route.
    second.give_back(&[Returned { hop: 1, ..back(&got[0], ActionCode::Next, 0) }]);
    bench.turn();
    assert_eq!(bench.sent().len(), 1);
    assert_eq!((second.violations(), aside.violations()), (0, 0));
    bench.assert_all_back();
}

#[test]
fn a_buffer_comes_back_once_whoever_of_the_domain_returns_it() {
    let mut bench = Bench::new(&[1, 2]);
    let mut first = bench.attach(1);
    let mut second = bench.attach(2);
    bench.inject(2);
    bench.turn();
    let [got, other] = first.receive()[..] else { panic!("two were delivered") };
    let passed_on = Returned { hop: 1, ..back(&got, ActionCode::Next, 0) };
    second.give_back(&[passed_on]);
    bench.turn();
    assert_eq!(bench.sent().len(), 1);
    first.pass(&got, ActionCode::Next, 0);
    second.give_back(&[passed_on]);
    bench.turn();
    assert_eq!((first.violations(), second.violations()), (1, 1));
    assert!(bench.sent().is_empty());
    first.pass(&other, ActionCode::Drop, 0);
    bench.turn();
    bench.assert_all_back();
}

#[test]
fn what_an_isolated_nf_has_or_nobody_has_is_not_the_domain_s() {
    let mut bench = Bench::new(&[1, 2]);
    let mut isolated = bench.attach_isolated(1);
    let mut trusted = bench.attach(2);
    bench.inject(2);
    bench.turn();
    let got = isolated.receive();
    let nobody_s = buffers(&got).into_iter().max().unwrap() + 1;
    trusted.give_back(&[
        Returned { hop: 1, ..back(&got[0], ActionCode::Next, 0) },
        Returned { hop: 1, buffer: nobody_s, ..back(&got[0], ActionCode::Next, 0) },
        Returned { hop: 1, buffer: u32::MAX, ..back(&got[0], ActionCode::Next, 0) },
    ]);
    bench.turn();
    assert_eq!(trusted.violations(), 3);
    assert!(bench.sent().is_empty());
    // Nor is the domain's an isolated one's.
    isolated.pass(&got[0], ActionCode::Next, 0);
    bench.turn();
    let at_trusted = trusted.receive();
    isolated.give_back(&[back(&at_trusted[0], ActionCode::Next, 0)]);
    bench.turn();
    assert_eq!(isolated.violations(), 1);
    trusted.pass(&at_trusted[0], ActionCode::Next, 0);
    isolated.pass(&got[1], ActionCode::Drop, 0);
    bench.turn();
    assert_eq!(bench.sent().len(), 1);
    bench.assert_all_back();
}

#[test]
fn one_bad_descriptor_in_a_burst_costs_no_other_its_way() {
    let mut bench = Bench::new(&[1]);
    let mut nf = bench.attach(1);
    bench.inject(40);
    bench.turn();
    let got = nf.receive();
    let mut returned: Vec<_> = got.iter().map(|d| back(d, ActionCode::Next, 0)).collect();
    returned[3].offset_bytes = 2040;
    returned[7].hop = 1;
    returned[11].action = 9;
    returned[15].action = ActionCode::Drop as u8;
    returned[19].len_bytes = 0;
    returned[23].buffer = 255;
    // Twice the same: the second time it is nobody's, and what was to come never does.
    returned[27] = returned[26];
    nf.give_back(&returned);
    bench.turn();
    let lost = [3, 7, 11, 15, 23, 27];
    let left: Vec<_> = (0..40).filter(|n| !lost.contains(n)).collect();
    let sent = bench.sent();
    assert_eq!(
        sent.iter().map(|(packet, _)| packet.buffer).collect::<Vec<_>>(),
        left.iter().map(|&n| got[n].buffer).collect::<Vec<_>>()
    );
    assert_eq!(nf.violations(), 5);
    assert_eq!(bench.drops_at(1, DropReason::NfMalformed), 3);
    assert_eq!(bench.drops_at(1, DropReason::NfDrop), 1);
    nf.give_back(&[back(&got[23], ActionCode::Next, 0), back(&got[27], ActionCode::Next, 0)]);
    bench.turn();
    assert_eq!(bench.sent().len(), 2);
    bench.assert_all_back();
}
