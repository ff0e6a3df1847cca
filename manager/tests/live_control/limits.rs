//! NFs that leave by themselves: after so many packets, or after so long.

use nflib::control::Status;

use super::running::{Manager, assert_nothing_lost, is_alive, nf_program, nfs_of, until};
use super::scale::{scale, wait_for_pkts};
use super::tables::{WAITING, by_hand, chain, service_with, services, traffic};

fn only(status: &Status, service: &str) -> i32 {
    nfs_of(status, service).next().unwrap().pid
}

#[test]
fn an_nf_with_a_packet_limit_leaves_in_good_order_and_none_follows() {
    if nf_program().is_none() {
        return;
    }
    let tables = traffic()
        + &services(&["first"])
        + &service_with("mid", 1, "packet_limit = 2000")
        + &chain("default", &["first", "mid"]);
    let manager = Manager::start(WAITING, &tables);
    let pid = only(&manager.settled(&[("first", 1), ("mid", 1)]), "mid");
    wait_for_pkts(&manager, 1000);
    let status = manager.settled(&[("mid", 0)]);
    until("its process has ended", || (!is_alive(pid)).then_some(()));
    // It had at least its limit, and what was with it when it left.
    let good = super::running::verified(&status, "out", "good");
    assert!(good >= 2000, "{good}");
    let mid = |status: &Status| {
        status.services.iter().find(|service| service.name == "mid").unwrap().clone()
    };
    until("packets find no instance", || {
        mid(&manager.status()).drops.contains_key("no_instance").then_some(())
    });
    let status = manager.status();
    let drops = mid(&status).drops;
    assert_eq!(drops.len(), 1, "it lost nothing itself: {drops:?}");
    assert_eq!((mid(&status).restarts, mid(&status).instances.len()), (0, 0));
    // Whoever wants another says so.
    manager.edit(scale("mid", 2)).unwrap();
    let status = manager.settled(&[("mid", 2)]);
    assert!(nfs_of(&status, "mid").all(|nf| nf.pid != pid));
    wait_for_pkts(&manager, 500);
    manager.stop();
}

#[test]
fn an_nf_with_a_time_limit_leaves_its_flows_to_another() {
    let Some(program) = nf_program() else { return };
    let tables = traffic()
        + &by_hand("mid")
        + &service_with("timed", 1, "time_limit_s = 1.5")
        + &chain("default", &["mid"]);
    let manager = Manager::start(WAITING, &tables);
    let _stays = manager.nf(&program, "mid");
    let mut goes = std::process::Command::new(&program);
    goes.args(["forward", "--log", "error", "--service", "mid", "--time-limit-s", "1.5"]);
    let mut goes =
        super::running::Process(goes.arg("--socket").arg(manager.socket()).spawn().unwrap());
    let status = manager.settled(&[("mid", 2), ("timed", 1)]);
    let timed = only(&status, "timed");
    assert_eq!(goes.exit_code(), Some(0));
    manager.settled(&[("mid", 1), ("timed", 0)]);
    until("the supervised one has ended", || (!is_alive(timed)).then_some(()));
    wait_for_pkts(&manager, 500);
    let status = manager.status();
    assert_nothing_lost(&status, &["out"]);
    let timed = status.services.iter().find(|service| service.name == "timed").unwrap();
    assert_eq!((timed.restarts, timed.wanted), (0, Some(1)), "{timed:?}");
    manager.stop();
}
