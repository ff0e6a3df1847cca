//! The trusted domain: what its NFs may do with each other's packets, and what not even they may.

use millrace::stats::DropReason;
use nflib::descriptor::{ActionCode, Returned};

use super::bench::{Bench, back, buffers};

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
fn a_hop_of_another_service_or_beyond_the_route_is_malformed_and_one_behind_is_not() {
    let mut bench = Bench::new(&[1, 2, 1]);
    let mut first = bench.attach(1);
    let mut second = bench.attach(2);
    bench.inject(5);
    bench.turn();
    let got = first.receive();
    first.pass(&got[0], ActionCode::Next, 0);
    bench.turn();
    let at_second = second.receive();
    // Given away at hop 1, and sent back along the route to the first one, at its own hop.
    first.give_back(&[Returned { hop: 0, ..back(&at_second[0], ActionCode::Next, 0) }]);
    // Hops 1 and 0 are not of these NFs' services; there is no hop 3; nobody sent it off its route.
    first.give_back(&[Returned { hop: 1, ..back(&got[1], ActionCode::Next, 0) }]);
    second.give_back(&[Returned { hop: 0, ..back(&got[2], ActionCode::Next, 0) }]);
    first.give_back(&[Returned { hop: 3, ..back(&got[3], ActionCode::Next, 0) }]);
    first.give_back(&[Returned { hop: 255, ..back(&got[4], ActionCode::Next, 0) }]);
    bench.turn();
    assert_eq!((first.violations(), second.violations()), (3, 1));
    assert_eq!(bench.drops_at(1, DropReason::NfMalformed), 3);
    assert_eq!(bench.drops_at(2, DropReason::NfMalformed), 1);
    assert!(bench.sent().is_empty());
    let again = second.receive();
    assert_eq!((buffers(&again), again[0].hop), (vec![at_second[0].buffer], 1));
    second.pass(&again[0], ActionCode::Drop, 0);
    bench.turn();
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
