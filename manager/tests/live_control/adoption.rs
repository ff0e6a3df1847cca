//! A manager dies, and the next one goes on with the NFs it had started.

use std::collections::BTreeSet;

use super::running::{Manager, assert_nothing_lost, is_alive, nf_program, until};
use super::scale::{scale, wait_for_pkts};
use super::tables::{WAITING, chain, service, services, traffic};

fn pids(manager: &Manager) -> BTreeSet<i32> {
    manager.status().nfs.iter().map(|nf| nf.pid).collect()
}

#[test]
fn nfs_outlive_a_killed_manager_and_serve_the_next_one() {
    if nf_program().is_none() {
        return;
    }
    let tables = traffic()
        + &services(&["first"])
        + &service("mid", 2)
        + &chain("default", &["first", "mid"]);
    let mut manager = Manager::start(WAITING, &tables);
    manager.settled(&[("first", 1), ("mid", 2)]);
    let before = pids(&manager);
    for _ in 0..2 {
        wait_for_pkts(&manager, 300);
        manager.kill_and_start_again();
        manager.settled(&[("first", 1), ("mid", 2)]);
        assert_eq!(pids(&manager), before, "they are the same processes");
    }
    wait_for_pkts(&manager, 300);
    let status = manager.status();
    assert_nothing_lost(&status, &["out"]);
    assert!(status.services.iter().all(|service| service.restarts == 0), "{:?}", status.services);

    // They are the manager's own as if it had started them: scaled, and ended with it.
    manager.edit(scale("mid", 1)).unwrap();
    manager.settled(&[("mid", 1)]);
    until("the surplus one has ended", || {
        (before.iter().filter(|pid| is_alive(**pid)).count() == 2).then_some(())
    });
    manager.edit(scale("mid", 3)).unwrap();
    manager.settled(&[("mid", 3)]);
    manager.stop();
    assert!(!before.iter().any(|pid| is_alive(*pid)));
}

#[test]
fn what_the_next_managers_file_does_not_want_ends() {
    if nf_program().is_none() {
        return;
    }
    let tables = traffic() + &services(&["a", "b"]) + &chain("default", &["a", "b"]);
    let mut manager = Manager::start(WAITING, &tables);
    let status = manager.settled(&[("a", 1), ("b", 1)]);
    let pid = |name: &str| status.nfs.iter().find(|nf| nf.service_name == name).unwrap().pid;
    let (stays, goes) = (pid("b"), pid("a"));
    // The other keeps its place, and with it its number: it is known by its service's id.
    let next = tables.replace("services = [\"a\", \"b\"]", "services = [\"b\"]");
    let a = services(&["a"]);
    let next = next.replace(&a, "").replace("name = \"b\"", "name = \"b\"\nid = 2");
    std::fs::write(manager.path("m.toml"), manager.text(&next)).unwrap();
    manager.kill_and_start_again();
    until("the other has ended", || (!is_alive(goes)).then_some(()));
    let status = manager.settled(&[("b", 1)]);
    assert_eq!(status.nfs[0].pid, stays);
    wait_for_pkts(&manager, 300);
    manager.stop();
    assert!(!is_alive(stays));
}
