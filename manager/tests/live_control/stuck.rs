//! NFs that live and do nothing, while packets wait for them.

use nflib::control::{Reply, Request, Status, Target};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::running::{Manager, is_alive, nf_program, nfs_of, until, verified};
use super::scale::wait_for_pkts;
use super::tables::{WAITING, chain, chain_to, few_to, generator, service_with, services, sink};

/// A chain through `mid`, with further keys of its service, and another chain beside it.
fn start(keys: &str) -> Manager {
    let tables = generator("in", "out", 0)
        + &sink("out")
        + &sink("other")
        + &service_with("mid", 1, keys)
        + &services(&["last", "beside"])
        + &chain("default", &["mid", "last"])
        + &chain_to("few", &["beside"], "out:other")
        + &few_to("few");
    let manager = Manager::start(WAITING, &tables);
    manager.settled(&[("mid", 1), ("last", 1), ("beside", 1)]);
    wait_for_pkts(&manager, 500);
    manager
}

fn mid(status: &Status) -> (u32, i32) {
    nfs_of(status, "mid").map(|nf| (nf.instance, nf.pid)).next().unwrap()
}

/// Makes it hang; it does not answer once it does.
fn hang(manager: &Manager, how: &str) -> (u32, i32) {
    let (instance, pid) = mid(&manager.status());
    let payload = format!("set hang {how}").into_bytes();
    let reply = manager.ask(&Request::Call { target: Target::Instance(instance), payload });
    assert!(matches!(&reply, Reply::Called { answers } if answers[0].1.is_ok()), "{reply:?}");
    (instance, pid)
}

fn stuck(status: &Status) -> Option<String> {
    nfs_of(status, "mid").next().and_then(|nf| nf.stuck.clone())
}

/// Nobody else is stuck, has died or has lost anything.
fn assert_others_well(manager: &Manager) {
    let status = manager.status();
    assert!(status.nfs.iter().all(|nf| nf.service_name == "mid" || nf.stuck.is_none()));
    assert!(status.deaths.last.iter().all(|death| death.service == "mid"), "{:?}", status.deaths);
    for fault in ["lost", "reordered", "duplicate"] {
        assert_eq!(verified(&status, "other", fault), 0, "{fault}");
    }
}

#[test]
fn an_nf_that_is_stopped_is_told_of_with_the_reason_and_goes_on_when_it_is_continued() {
    if nf_program().is_none() {
        return;
    }
    let manager = start("stuck_after_ms = 300");
    let (_, pid) = mid(&manager.status());
    kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    let why = until("it is told of", || stuck(&manager.status()));
    assert!(why.contains("no progress for") && why.contains("is stopped"), "{why}");
    kill(Pid::from_raw(pid), Signal::SIGCONT).unwrap();
    until("it goes on", || stuck(&manager.status()).is_none().then_some(()));
    wait_for_pkts(&manager, 500);
    let status = manager.status();
    assert_eq!((mid(&status).1, status.deaths.count), (pid, 0), "it was only told of");
    assert_others_well(&manager);
    manager.stop();
}

#[test]
fn an_nf_that_hangs_in_its_handler_is_told_apart_and_restarted_and_no_buffer_is_missing() {
    if nf_program().is_none() {
        return;
    }
    let manager = start("on_stuck = \"restart\"\nstuck_after_ms = 300");
    for how in ["sleep", "run"] {
        let (instance, pid) = hang(&manager, how);
        until("another takes its place", || {
            let status = manager.status();
            nfs_of(&status, "mid").any(|nf| nf.pid != pid && nf.state == "running").then_some(())
        });
        assert!(!is_alive(pid));
        let deaths = manager.status().deaths;
        let death = deaths.last.last().unwrap();
        assert_eq!((death.instance, death.pid, &*death.service), (instance, pid, "mid"));
        assert!(death.reclaimed_ns >= death.noticed_ns);
        wait_for_pkts(&manager, 500);
    }
    let status = manager.status();
    assert_eq!(status.deaths.count, 2);
    for fault in ["reordered", "duplicate"] {
        assert_eq!(verified(&status, "out", fault), 0, "{fault}: {:?}", status.plan);
    }
    assert_others_well(&manager);
    // Every packet it had is back and counted: the end of the manager says that the books balance.
    manager.stop();
}

#[test]
fn an_nf_that_is_killed_for_standing_still_stays_away_and_the_service_says_why() {
    if nf_program().is_none() {
        return;
    }
    let manager = start("on_stuck = \"kill\"\nstuck_after_ms = 300");
    let (_, pid) = hang(&manager, "sleep");
    let status = manager.settled(&[("mid", 0)]);
    assert!(!is_alive(pid));
    let service = status.services.iter().find(|service| service.name == "mid").unwrap();
    let why = service.waiting.as_deref().unwrap_or_default();
    assert!(why.contains("given up") && why.contains("stuck") && why.contains("sleeps"), "{why}");
    assert_others_well(&manager);
    manager.stop();
}

#[test]
fn an_nf_that_sleeps_for_want_of_packets_is_not_stuck() {
    if nf_program().is_none() {
        return;
    }
    let tables = generator("in", "out", 200)
        + &sink("out")
        + &service_with("mid", 1, "on_stuck = \"restart\"\nstuck_after_ms = 20")
        + &chain("default", &["mid"]);
    let manager = Manager::start(WAITING, &tables);
    let (_, pid) = mid(&manager.settled(&[("mid", 1)]));
    until("all packets are through", || {
        (verified(&manager.status(), "out", "good") == 200).then_some(())
    });
    std::thread::sleep(std::time::Duration::from_millis(1000));
    let status = manager.status();
    assert_eq!((mid(&status).1, stuck(&status), status.deaths.count), (pid, None, 0));
    manager.stop();
}
