//! A service's NFs are exchanged for those of another command while packets flow.

use std::collections::BTreeSet;
use std::time::Duration;

use nflib::control::{
    self, Applied, Edit, ErrorReply, MAX_REPLY_BYTES, Reply, Request, ServiceRef, Status,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::running::{
    Manager, assert_faultless, assert_nothing_lost, is_alive, nf_program, nfs_of, until, verified,
};
use super::scale::{scale, wait_for_pkts};
use super::tables::{WAITING, by_hand, chain, service, services, traffic};

/// The command of the new version.
fn next_version(more: &[&str]) -> Vec<String> {
    let words = ["millrace-nf", "forward", "--log", "info"].iter().chain(more);
    words.map(|word| (*word).to_owned()).collect()
}

fn request(command: Vec<String>, probation_ms: u64) -> Request {
    Request::Upgrade { service: ServiceRef::Name("mid".into()), command, probation_ms }
}

fn answer(reply: Reply) -> Result<Applied, ErrorReply> {
    match reply {
        Reply::Applied(applied) => Ok(applied),
        Reply::Error(error) => Err(error),
        other => panic!("{other:?}"),
    }
}

/// Asks, and does not wait for the answer, which is what the result gives.
fn begin(
    manager: &Manager,
    command: Vec<String>,
    probation_ms: u64,
) -> impl FnOnce() -> Result<Applied, ErrorReply> + use<> {
    let socket = manager.connect();
    control::send(&socket, &request(command, probation_ms), &[]).unwrap();
    move || answer(control::recv(&socket, MAX_REPLY_BYTES).unwrap().0)
}

fn upgrade(
    manager: &Manager,
    command: Vec<String>,
    probation_ms: u64,
) -> Result<Applied, ErrorReply> {
    begin(manager, command, probation_ms)()
}

fn phase(status: &Status) -> Option<String> {
    let mid = status.services.iter().find(|service| service.name == "mid").unwrap();
    mid.upgrade.as_ref().map(|upgrade| upgrade.phase.clone())
}

#[track_caller]
fn wait_for_phase(manager: &Manager, wanted: &str) {
    until(wanted, || (phase(&manager.status()).as_deref() == Some(wanted)).then_some(()));
}

fn pids(status: &Status) -> BTreeSet<i32> {
    nfs_of(status, "mid").map(|nf| nf.pid).collect()
}

/// A service of two instances between two others.
fn tables() -> String {
    traffic()
        + &services(&["before", "after"])
        + &service("mid", 2)
        + &chain("default", &["before", "mid", "after"])
}

fn start() -> (Manager, BTreeSet<i32>) {
    let manager = Manager::start(WAITING, &tables());
    let status = manager.settled(&[("before", 1), ("mid", 2), ("after", 1)]);
    wait_for_pkts(&manager, 500);
    (manager, pids(&status))
}

/// That the old instances serve as if nothing had been, and the others are gone.
fn assert_as_before(manager: &Manager, old: &BTreeSet<i32>) {
    let status = manager.settled(&[("before", 1), ("mid", 2), ("after", 1)]);
    assert_eq!((&pids(&status), phase(&status)), (old, None));
    let mut started: BTreeSet<_> = manager.started_nfs().into_iter().collect();
    started.retain(|pid| is_alive(*pid));
    assert_eq!(started.len(), 4, "nobody is left over");
    let rx = |status: &Status| nfs_of(status, "mid").map(|nf| nf.rx_pkts).collect::<Vec<_>>();
    let before = rx(&status);
    wait_for_pkts(manager, 500);
    assert!(rx(&manager.status()).iter().zip(before).all(|(now, before)| *now > before));
}

#[test]
fn an_upgrade_moves_every_flow_to_new_instances_and_loses_and_reorders_nothing() {
    if nf_program().is_none() {
        return;
    }
    let (mut manager, mut old) = start();
    for more in [["--busy-ns", "1"], ["--busy-ns", "2"]] {
        let done = begin(&manager, next_version(&more), 300);
        wait_for_phase(&manager, "warming up");
        let status = manager.status();
        let new: BTreeSet<_> = nfs_of(&status, "mid")
            .filter(|nf| nf.state == "standby" && nf.rx_pkts == 0)
            .map(|nf| nf.pid)
            .collect();
        assert!(new.len() == 2 && new.is_disjoint(&old), "{:?}", status.nfs);
        wait_for_phase(&manager, "probation");
        let stands_by: BTreeSet<_> = nfs_of(&manager.status(), "mid")
            .filter(|nf| nf.state == "standby" && nf.flow_share == 0.0)
            .map(|nf| nf.pid)
            .collect();
        assert_eq!(stands_by, old);
        let applied = done().unwrap();
        assert_eq!((applied.moved_share, applied.changes.len()), (1.0, 1), "{applied:?}");
        let status = manager.settled(&[("before", 1), ("mid", 2), ("after", 1)]);
        assert_eq!((pids(&status), phase(&status)), (new.clone(), None));
        assert!(!old.iter().any(|pid| is_alive(*pid)), "the old ones are gone");
        wait_for_pkts(&manager, 500);
        old = new;
    }
    let status = manager.status();
    assert_eq!(status.plan.unordered_changes, 0, "{:?}", status.plan);
    assert!(status.services.iter().all(|service| service.restarts == 0));
    assert_nothing_lost(&status, &["out"]);
    // It is what is wanted: scaled, kept when the manager is killed, and taken back by the file.
    manager.edit(scale("mid", 3)).unwrap();
    manager.kill_and_start_again();
    let status = manager.settled(&[("mid", 3)]);
    assert!(old.is_subset(&pids(&status)), "they are the same processes");
    manager.apply(&tables()).unwrap();
    manager.settled(&[("mid", 2)]);
    wait_for_pkts(&manager, 300);
    assert_nothing_lost(&manager.status(), &["out"]);
    manager.stop();
}

#[test]
fn a_new_version_that_does_not_come_up_changes_nothing_and_says_why() {
    if nf_program().is_none() {
        return;
    }
    let (manager, old) = start();
    let sh = |script: &str| vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()];
    for (command, expected) in [
        (vec!["no-such-nf".to_owned()], "there is no program \"no-such-nf\""),
        (next_version(&["--nonsense"]), "has ended: exit code 2: "),
        (sh("echo it cannot be; exit 7"), "has ended: exit code 7: it cannot be"),
        (sh("kill -SEGV $$"), "has ended: killed by SIGSEGV"),
        // Attaches, and dies before it has flows.
        (
            sh("millrace-nf forward \"$@\" & sleep 0.3; kill -9 $!; echo so it is; exit 3"),
            "so it is",
        ),
    ] {
        let command = match command.last() {
            // The arguments that the manager adds are the script's.
            Some(last) if last.contains("millrace-nf") => {
                let program = nf_program().unwrap().display().to_string();
                let script = last.replace("millrace-nf", &program);
                vec!["sh".into(), "-c".into(), script, "sh".into()]
            }
            _ => command,
        };
        let error = upgrade(&manager, command, 2000).unwrap_err();
        assert_eq!(error.message.lines().count(), 1, "{error}");
        assert!(error.message.starts_with("service \"mid\" is not upgraded: "), "{error}");
        assert!(error.message.contains(expected), "{error}");
        assert_as_before(&manager, &old);
    }
    let status = manager.status();
    assert_eq!(status.plan.unordered_changes, 0, "{:?}", status.plan);
    assert_nothing_lost(&status, &["out"]);
    assert!(manager.stop().contains("dropped 0"));
}

#[test]
fn a_new_version_that_leaves_during_its_probation_gives_every_flow_back_without_a_loss() {
    if nf_program().is_none() {
        return;
    }
    let (manager, old) = start();
    let error = upgrade(&manager, next_version(&["--packet-limit", "500"]), 20_000).unwrap_err();
    assert!(error.message.contains("a new instance has ended: exit code 0"), "{error}");
    assert_as_before(&manager, &old);
    let status = manager.status();
    assert_eq!(status.plan.unordered_changes, 0, "{:?}", status.plan);
    assert_nothing_lost(&status, &["out"]);
    assert!(manager.stop().contains("dropped 0"));
}

#[test]
fn a_new_version_that_dies_with_flows_loses_what_it_held_and_no_more() {
    if nf_program().is_none() {
        return;
    }
    let (manager, old) = start();
    let done = begin(&manager, next_version(&[]), 20_000);
    wait_for_phase(&manager, "probation");
    wait_for_pkts(&manager, 300);
    let status = manager.status();
    let victim = nfs_of(&status, "mid").find(|nf| nf.state == "running").unwrap().pid;
    assert!(!old.contains(&victim));
    kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
    let error = done().unwrap_err();
    assert!(error.message.contains("a new instance has ended: killed by SIGKILL"), "{error}");
    assert_as_before(&manager, &old);
    let status = manager.status();
    let dropped: u64 = status.drops.iter().map(|drop| drop.pkts).sum();
    assert!(status.drops.iter().all(|drop| drop.place == "service:mid"), "{:?}", status.drops);
    // A packet is missing at the sink only once a later one of its flow is there.
    assert!(verified(&status, "out", "lost") <= dropped, "{:?}", status.drops);
    for what in ["reordered", "duplicate", "corrupt", "foreign"] {
        assert_eq!(verified(&status, "out", what), 0, "{what}");
    }
    manager.stop();
}

#[test]
fn what_would_disturb_an_upgrade_is_refused_in_one_line() {
    if nf_program().is_none() {
        return;
    }
    let tables = tables() + &by_hand("hand");
    let manager = Manager::start(WAITING, &tables);
    let status = manager.settled(&[("before", 1), ("mid", 2), ("after", 1)]);
    let old = pids(&status);
    let refused = |request: &Request, expected: &str| {
        let error = answer(manager.ask(request)).unwrap_err();
        assert_eq!(error.message.lines().count(), 1, "{error}");
        assert!(error.message.contains(expected), "{error}");
    };
    let of = |service: &str, command: Vec<String>| Request::Upgrade {
        service: ServiceRef::Name(service.into()),
        command,
        probation_ms: 1,
    };
    refused(&of("hand", next_version(&[])), "its NFs are started by hand");
    refused(&of("none", next_version(&[])), "there is no service \"none\"");
    refused(&of("mid", Vec::new()), "command is empty");
    let same = ["millrace-nf", "forward", "--log", "error"].map(str::to_owned);
    refused(&of("mid", same.into()), "runs by this command already");
    refused(&request(next_version(&[]), u64::MAX), "expected at most");

    let done = begin(&manager, next_version(&[]), 20_000);
    wait_for_phase(&manager, "probation");
    refused(&of("before", next_version(&[])), "service \"mid\" is being upgraded (probation)");
    refused(&Request::Edit { edits: scale("mid", 3) }, "is being upgraded");
    let command = next_version(&["--busy-ns", "1"]);
    let service = ServiceRef::Name("mid".into());
    refused(&Request::Edit { edits: vec![Edit::SetCommand { service, command }] }, "upgraded");
    manager.edit(scale("before", 2)).unwrap();
    // What a file says counts more.
    manager.apply(&tables.replacen("instances = 2", "instances = 1", 1)).unwrap();
    let error = done().unwrap_err();
    assert!(error.message.contains("its entry was changed meanwhile"), "{error}");
    let status = manager.settled(&[("before", 1), ("mid", 1), ("after", 1)]);
    assert!(pids(&status).is_subset(&old), "{:?} of {old:?}", status.nfs);
    wait_for_pkts(&manager, 300);
    assert_faultless(&manager.status(), "out");
    manager.stop();
}

#[test]
fn a_manager_that_ends_or_dies_meanwhile_leaves_nothing_half_done() {
    if nf_program().is_none() {
        return;
    }
    let (mut manager, old) = start();
    let done = begin(&manager, next_version(&[]), 20_000);
    wait_for_phase(&manager, "probation");
    let new: BTreeSet<_> = pids(&manager.status()).difference(&old).copied().collect();
    manager.kill_and_start_again();
    drop(done);
    // The old command is what is wanted; the next manager ends what was on trial.
    assert_as_before(&manager, &old);
    until("the new ones are gone", || (!new.iter().any(|pid| is_alive(*pid))).then_some(()));
    let done = begin(&manager, next_version(&[]), 20_000);
    wait_for_phase(&manager, "probation");
    let new: BTreeSet<_> = pids(&manager.status()).difference(&old).copied().collect();
    manager.stop();
    assert_eq!(done().unwrap_err().message, "the manager is stopping");
    std::thread::sleep(Duration::from_millis(1));
    assert!(!new.iter().chain(&old).any(|pid| is_alive(*pid)));
}
