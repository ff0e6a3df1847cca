//! Chains are exchanged while packets flow.

use nflib::control::{Reply, Request, Status};

use super::running::{
    Manager, assert_faultless, assert_nothing_lost, nf_program, nfs_of, until, verified,
};
use super::tables::{FLOWS, WAITING, chain, few_to, services, traffic};

/// Packets that each NF of a service has had, all instances together.
fn rx(status: &Status, service: &str) -> u64 {
    nfs_of(status, service).map(|nf| nf.rx_pkts).sum()
}

/// What each of these services gets while the sink gets some thousand packets more.
fn gets(manager: &Manager, services: &[&str]) -> Vec<u64> {
    let before = manager.status();
    let after = until("traffic goes on", || {
        let now = manager.status();
        (verified(&now, "out", "good") > verified(&before, "out", "good") + 2000).then_some(now)
    });
    services.iter().map(|service| rx(&after, service) - rx(&before, service)).collect()
}

const SIX: [&str; 6] = ["a1", "a2", "b1", "b2", "b3", "b4"];
const SHORT: &[&str] = &["a1", "a2"];
const LONG: &[&str] = &["b1", "b2", "b3", "b4"];

/// Few flows through one chain, the others through the other.
fn two_chains(few: &[&str], many: &[&str]) -> String {
    traffic() + &services(&SIX) + &chain("few", few) + &chain("default", many) + &few_to("few")
}

#[test]
fn five_exchanges_of_two_chains_under_traffic_lose_nothing_and_keep_every_order() {
    if nf_program().is_none() {
        return;
    }
    let manager = Manager::start(WAITING, &two_chains(SHORT, LONG));
    manager.settled(&SIX.map(|name| (name, 1)));
    let mut generation = manager.status().plan.generation;
    for exchange in 1..=5 {
        let (few, many) = if exchange % 2 == 0 { (SHORT, LONG) } else { (LONG, SHORT) };
        let applied = manager.apply(&two_chains(few, many)).unwrap();
        let changed: Vec<_> = applied.changes.iter().map(|change| change.name.as_str()).collect();
        assert_eq!(changed, ["default", "few"], "{applied:?}");
        assert!(applied.generation > generation && applied.moved_share == 1.0, "{applied:?}");
        generation = applied.generation;
        let got = gets(&manager, &[few[0], many[0]]);
        assert!(got[0] > 0 && got[1] > 2 * got[0], "exchange {exchange}: {got:?}");
        let status = manager.status();
        assert_nothing_lost(&status, &["out"]);
    }
    let status = manager.status();
    assert_eq!(status.plan.unordered_changes, 0, "{:?}", status.plan);
    assert!(manager.stop().contains("dropped 0"));
}

#[test]
fn a_chain_turned_round_shortened_and_emptied_uses_exactly_its_nfs() {
    if nf_program().is_none() {
        return;
    }
    const ALL: [&str; 3] = ["x", "y", "z"];
    let tables = |order: &[&str]| traffic() + &services(&ALL) + &chain("default", order);
    let manager = Manager::start(WAITING, &tables(&ALL));
    manager.settled(&ALL.map(|name| (name, 1)));
    let orders: [&[&str]; 7] =
        [&["z", "y", "x"], &["y"], &["x", "y", "x"], &[], &["z", "x"], &["x", "z"], &ALL];
    for order in orders {
        manager.apply(&tables(order)).unwrap();
        // Whoever is not on the way has been left by the last packet when the answer comes.
        let got = gets(&manager, &ALL);
        for (service, got) in ALL.iter().zip(got) {
            let visits = order.iter().filter(|name| name == &service).count() as u64;
            assert_eq!(got > 0, visits > 0, "{service} in {order:?} got {got}");
        }
        assert_nothing_lost(&manager.status(), &["out"]);
    }
    manager.apply(&tables(&[])).unwrap();
    manager.assert_all_back();
    manager.stop();
}

#[test]
fn neighbours_in_a_chain_hand_packets_over_without_the_manager() {
    if nf_program().is_none() {
        return;
    }
    let tables = |isolated: &str| {
        let middle = super::tables::service_with("middle", 1, isolated);
        traffic()
            + &services(&["first", "last"])
            + &middle
            + &chain("default", &["first", "middle", "last"])
    };
    let manager = Manager::start(WAITING, &tables(""));
    let status = manager.settled(&[("first", 1), ("middle", 1), ("last", 1)]);
    let instance = |status: &Status, name| nfs_of(status, name).next().unwrap().instance;
    let direct = |status: &Status, name| nfs_of(status, name).next().unwrap().direct_to.clone();
    assert_eq!(direct(&status, "first"), [instance(&status, "middle")]);
    assert_eq!(direct(&status, "middle"), [instance(&status, "last")]);
    assert!(direct(&status, "last").is_empty());
    gets(&manager, &[]);
    let status = manager.status();
    let from_manager = |name| nfs_of(&status, name).next().unwrap().from_manager_pkts;
    assert!(from_manager("first") > 2000);
    assert_eq!((from_manager("middle"), from_manager("last")), (0, 0));
    assert!(rx(&status, "last") > 2000);
    assert_eq!(vias(&manager), ["manager", "direct", "direct"]);

    // An isolated one is handed its packets by the manager, and hands them back to it.
    manager.apply(&tables("isolated = true")).unwrap();
    let status = until("the isolated one has taken the other's place", || {
        let status = manager.settled(&[("first", 1), ("middle", 1), ("last", 1)]);
        let alone = status.nfs.iter().all(|nf| nf.direct_to.is_empty());
        (alone && status.services.iter().any(|service| service.isolated)).then_some(status)
    });
    assert_eq!(vias(&manager), ["manager"; 3]);
    gets(&manager, &[]);
    assert_faultless(&manager.status(), "out");
    assert!(rx(&manager.status(), "middle") > rx(&status, "middle"));
    manager.stop();
}

/// How each hop of the default chain is reached.
fn vias(manager: &Manager) -> Vec<String> {
    let frame = super::rules::udp_frame([198, 18, 0, (FLOWS - 1) as u8], 1024, 9);
    match manager.ask(&Request::Explain { in_port: None, frame }) {
        Reply::Explained(explanation) => explanation.hops.into_iter().map(|hop| hop.via).collect(),
        other => panic!("{other:?}"),
    }
}
