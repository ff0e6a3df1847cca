//! Services get more instances, and fewer, while packets flow.

use nflib::control::{Edit, ErrorCode, Request, ServiceRef, Status};

use super::running::{
    LIMIT, Manager, assert_nothing_lost, is_alive, nf_program, nfs_of, until, verified,
};
use super::tables::{WAITING, by_hand, chain, service, services, traffic};

pub fn scale(service: &str, instances: u32) -> Vec<Edit> {
    vec![Edit::Scale { service: ServiceRef::Name(service.into()), instances }]
}

fn shares(status: &Status, service: &str) -> Vec<f64> {
    nfs_of(status, service).map(|nf| nf.flow_share).collect()
}

/// Waits until so many more packets are through.
pub fn wait_for_pkts(manager: &Manager, pkts: u64) {
    let good = |status: &Status| verified(status, "out", "good");
    let before = good(&manager.status());
    until("packets flow", || (good(&manager.status()) >= before + pkts).then_some(()));
}

#[test]
fn one_to_four_to_two_instances_moves_few_flows_and_loses_none() {
    if nf_program().is_none() {
        return;
    }
    let tables = traffic()
        + &services(&["before", "after"])
        + &service("mid", 1)
        + &chain("default", &["before", "mid", "after"]);
    let manager = Manager::start(&format!("{WAITING}\n"), &tables);
    manager.settled(&[("before", 1), ("mid", 1), ("after", 1)]);
    wait_for_pkts(&manager, 1000);

    let applied = manager.edit(scale("mid", 4)).unwrap();
    assert_eq!(applied.moves.len(), 3, "{applied:?}");
    for (n, moved) in (2..).zip(&applied.moves) {
        let most = 1.0 / f64::from(n) * 1.1;
        assert!(*moved > 0.0 && *moved <= most, "to {n} instances: {moved} of {most}");
    }
    let status = manager.settled(&[("mid", 4)]);
    let four: Vec<_> = nfs_of(&status, "mid").map(|nf| nf.pid).collect();
    assert!(shares(&status, "mid").iter().all(|share| (share - 0.25).abs() < 0.01), "{status:?}");
    wait_for_pkts(&manager, 2000);
    let each: Vec<_> = nfs_of(&manager.status(), "mid").map(|nf| nf.rx_pkts).collect();
    assert!(each.iter().all(|pkts| *pkts > 0), "{each:?}");
    assert_nothing_lost(&manager.status(), &["out"]);

    let applied = manager.edit(scale("mid", 2)).unwrap();
    assert_eq!(applied.moves.len(), 2, "{applied:?}");
    for (n, moved) in [4.0, 3.0].into_iter().zip(&applied.moves) {
        assert!(*moved > 0.0 && *moved <= 1.1 / n, "from {n} instances: {moved}");
    }
    let status = manager.settled(&[("mid", 2)]);
    let two: Vec<_> = nfs_of(&status, "mid").map(|nf| nf.pid).collect();
    assert!(two.iter().all(|pid| four.contains(pid)), "those that stay are the same");
    // The manager takes an NF that does not end well for one that failed, and starts it again.
    let mid = status.services.iter().find(|service| service.name == "mid").unwrap();
    assert_eq!((mid.wanted, mid.restarts), (Some(2), 0), "{mid:?}");
    until("the others have ended", || {
        four.iter().all(|pid| two.contains(pid) || !is_alive(*pid)).then_some(())
    });
    wait_for_pkts(&manager, 1000);
    let status = manager.status();
    assert_eq!(nfs_of(&status, "mid").count(), 2);
    assert_eq!(status.plan.unordered_changes, 0, "{:?}", status.plan);
    assert_nothing_lost(&status, &["out"]);
    assert!(manager.stop().contains("dropped 0"));
}

#[test]
fn instances_started_by_hand_share_and_leave_with_exit_code_0() {
    let Some(program) = nf_program() else { return };
    let tables =
        traffic() + &by_hand("mid") + &service("last", 1) + &chain("default", &["mid", "last"]);
    let manager = Manager::start(WAITING, &tables);
    let mut nfs: Vec<_> = (0..3).map(|_| manager.nf(&program, "mid")).collect();
    manager.settled(&[("mid", 3), ("last", 1)]);
    wait_for_pkts(&manager, 1000);
    // One by SIGTERM, one by a command; the third carries on.
    nfs[0].signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(nfs[0].exit_code(), Some(0));
    let pid = nfs[1].pid();
    let instance = manager.status().nfs.iter().find(|nf| nf.pid == pid).unwrap().instance;
    let reply = manager.ask(&Request::StopNf { instance });
    assert_eq!(reply, nflib::control::Reply::Done);
    assert_eq!(nfs[1].exit_code(), Some(0));
    let status = manager.settled(&[("mid", 1), ("last", 1)]);
    assert_eq!(shares(&status, "mid"), [1.0]);
    wait_for_pkts(&manager, 1000);
    assert_nothing_lost(&manager.status(), &["out"]);

    let refused = manager.edit(scale("mid", 2)).unwrap_err();
    assert_eq!(refused.code, ErrorCode::Invalid);
    assert!(refused.message.contains("started by hand"), "{refused}");
    // Where the manager starts the NFs, nobody else's may join.
    let mut stranger = manager.spawn_nf(&program, "last");
    assert_eq!(stranger.exit_code(), Some(1));
    assert!(stranger.complaint().contains("millrace service scale last N"));
    manager.stop();
}

#[test]
fn a_service_scaled_to_nothing_and_back_drops_under_its_own_name() {
    if nf_program().is_none() {
        return;
    }
    let tables = traffic() + &service("mid", 2) + &chain("default", &["mid"]);
    let manager = Manager::start(WAITING, &tables);
    manager.settled(&[("mid", 2)]);
    wait_for_pkts(&manager, 500);
    manager.edit(scale("mid", 0)).unwrap();
    manager.settled(&[("mid", 0)]);
    let status = until("packets are dropped", || {
        let status = manager.status();
        (!status.drops.is_empty()).then_some(status)
    });
    assert!(
        status.drops.iter().all(|d| d.place == "service:mid" && d.reason == "no_instance"),
        "{:?}",
        status.drops
    );
    manager.edit(scale("mid", 1)).unwrap();
    manager.settled(&[("mid", 1)]);
    wait_for_pkts(&manager, 500);
    let end = manager.stop();
    assert!(end.contains("no_instance") && !end.contains("nf_gone"), "within {LIMIT:?}: {end}");
}
