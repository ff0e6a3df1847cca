//! A manager dies or is exchanged, and the next one goes on: with what commands had changed, with the
//! NFs, and with nothing left of the first.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use nflib::control::{ChainSpec, Edit, Reply, Request, Status};

use super::running::{Manager, assert_nothing_lost, is_alive, nf_program, until, verified};
use super::scale::{scale, wait_for_pkts};
use super::tables::{WAITING, chain, few_to, service, services, traffic};

fn pids(status: &Status) -> BTreeSet<i32> {
    status.nfs.iter().map(|nf| nf.pid).collect()
}

/// What a status says of what is wanted.
fn wanted(status: &Status) -> impl PartialEq + std::fmt::Debug {
    let services: Vec<_> =
        status.services.iter().map(|s| (s.id, s.name.clone(), s.wanted)).collect();
    let chains: Vec<_> = status.chains.iter().map(|c| (c.id, c.spec.clone())).collect();
    let rules: Vec<_> = status.rules.iter().map(|r| (r.id, r.spec.clone())).collect();
    (services, chains, rules)
}

fn rule_to(chain: &str, tp_dst: u64) -> Edit {
    let rule = serde_json::json!({
        "priority": 5, "match": {"ip_proto": "tcp", "tp_dst": tp_dst}, "then": {"chain": chain}
    });
    Edit::AddRule { rule: serde_json::from_value(rule).unwrap() }
}

/// A chain of two services, and a second chain.
fn tables() -> String {
    traffic()
        + &services(&["first"])
        + &service("mid", 1)
        + &chain("default", &["first", "mid"])
        + &chain("few", &["mid"])
        + &few_to("few")
}

/// Makes changes of every kind.
fn change_much(manager: &Manager) {
    manager.edit(scale("mid", 2)).unwrap();
    manager.edit(vec![rule_to("few", 80), rule_to("few", 81)]).unwrap();
    manager.edit(vec![Edit::RemoveRule { id: 2 }]).unwrap();
    let services = vec!["first".parse().unwrap()];
    let chain = ChainSpec { name: "more".into(), services, ..ChainSpec::default() };
    let chain = ChainSpec { end: "egress".into(), ..chain };
    manager.edit(vec![Edit::SetChain { chain, new: true }, rule_to("more", 82)]).unwrap();
}

#[test]
fn what_commands_changed_outlives_a_killed_manager_with_its_numbers() {
    if nf_program().is_none() {
        return;
    }
    let mut manager = Manager::start(WAITING, &tables());
    manager.settled(&[("first", 1), ("mid", 1)]);
    change_much(&manager);
    let before = manager.settled(&[("first", 1), ("mid", 2)]);
    for _ in 0..2 {
        manager.kill_and_start_again();
        let after = manager.settled(&[("first", 1), ("mid", 2)]);
        assert_eq!(wanted(&after), wanted(&before));
        assert_eq!(pids(&after), pids(&before), "nobody is doubled or replaced");
        wait_for_pkts(&manager, 300);
    }
    let added = manager.edit(vec![rule_to("few", 90)]).unwrap();
    assert_eq!(added.rule_ids, [5], "numbers go on");
    assert_nothing_lost(&manager.status(), &["out"]);
    // The file is what is wanted again as soon as somebody says so.
    manager.apply(&tables()).unwrap();
    manager.kill_and_start_again();
    let status = manager.settled(&[("first", 1), ("mid", 1)]);
    assert_eq!((status.chains.len(), status.rule_count), (2, 1));
    manager.stop();
}

#[test]
fn a_manager_that_is_exchanged_keeps_its_nfs_and_loses_nothing() {
    if nf_program().is_none() {
        return;
    }
    let mut manager = Manager::start(WAITING, &tables());
    manager.settled(&[("first", 1), ("mid", 1)]);
    change_much(&manager);
    let before = manager.settled(&[("first", 1), ("mid", 2)]);
    wait_for_pkts(&manager, 300);
    let socket = manager.connect();
    nflib::control::send(&socket, &Request::Shutdown { keep_nfs: true }, &[]).unwrap();
    let reply = || nflib::control::recv(&socket, nflib::control::MAX_REPLY_BYTES).unwrap().0;
    assert_eq!(reply(), Reply::Done);
    let Reply::Status(last) = reply() else { panic!("no last status") };
    assert!(last.accounting.balanced && last.accounting.held_pkts == 0, "{:?}", last.accounting);
    assert_nothing_lost(&last, &["out"]);
    assert_eq!(manager.process().exit_code(), Some(0));
    assert!(pids(&before).into_iter().all(is_alive), "they wait");
    manager.start_again();
    let after = manager.settled(&[("first", 1), ("mid", 2)]);
    assert_eq!((wanted(&after), pids(&after)), (wanted(&before), pids(&before)));
    wait_for_pkts(&manager, 300);
    assert_nothing_lost(&manager.status(), &["out"]);
    manager.stop();
    assert!(!pids(&before).into_iter().any(is_alive));
}

#[test]
fn a_journal_that_lasts_is_gone_by_after_a_clean_end_and_a_damaged_one_is_told() {
    let tables = traffic() + &chain("default", &[]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let keys = format!("journal = \"{}\"", path.display());
    let mut manager = Manager::start(&keys, &tables);
    manager.edit(vec![rule_to("default", 80)]).unwrap();
    manager.edit(vec![rule_to("default", 81)]).unwrap();
    manager.process().signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(manager.process().exit_code(), Some(0));
    manager.start_again();
    assert_eq!(manager.status().rule_count, 2);
    manager.edit(vec![rule_to("default", 82)]).unwrap();
    manager.kill();
    let said = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, said.replacen("81", "83", 1)).unwrap();
    let error = manager.fail_to_start();
    assert_eq!(error.lines().count(), 1, "{error}");
    let told =
        "line 2 is damaged, and whole ones stand behind it; mend that, or move the file away";
    assert!(error.contains(told), "{error}");
    // Half of a line at the end is what a death leaves.
    std::fs::write(&path, &said[..said.len() - 7]).unwrap();
    manager.start_again();
    assert_eq!(manager.status().rule_count, 2);
    manager.stop();
}

/// Memory files that a process has open or mapped, by their inodes.
fn memory_files(pid: i32) -> BTreeSet<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let mapped = maps.lines().filter(|line| line.contains("/memfd:"));
    let mapped = mapped.filter_map(|line| line.split_whitespace().nth(4)?.parse().ok());
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let open = fds.filter_map(|fd| {
        let target = std::fs::read_link(fd.path()).ok()?;
        let is_memory = target.to_string_lossy().starts_with("/memfd:");
        is_memory.then(|| std::fs::metadata(fd.path()).ok().map(|meta| meta.ino()))?
    });
    mapped.chain(open).collect()
}

/// That the NFs have no memory but what this manager gave them, so that all of an earlier one's pages
/// are free.
fn assert_no_old_memory(manager: &mut Manager, nfs: &BTreeSet<i32>) {
    let given = memory_files(manager.process().pid());
    assert!(given.len() > nfs.len(), "{given:?}");
    for pid in nfs {
        let has = memory_files(*pid);
        assert!(!has.is_empty() && has.is_subset(&given), "NF {pid} has {has:?} of {given:?}");
    }
}

fn kills() -> usize {
    let kills = std::env::var("MILLRACE_TEST_KILLS").ok();
    kills.map_or(5, |kills| kills.parse().expect("MILLRACE_TEST_KILLS is a number"))
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let at = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted[at]
}

#[test]
#[allow(clippy::print_stdout)] // the figure is what the test harness shows
fn a_manager_killed_again_and_again_under_load_is_followed_by_one_that_carries_on() {
    if nf_program().is_none() {
        return;
    }
    let mut manager = Manager::start(WAITING, &tables());
    manager.settled(&[("first", 1), ("mid", 1)]);
    change_much(&manager);
    let before = manager.settled(&[("first", 1), ("mid", 2)]);
    let nfs = pids(&before);
    let mut back = Vec::new();
    for _ in 0..kills() {
        wait_for_pkts(&manager, 300);
        manager.kill();
        let began = Instant::now();
        manager.start_again();
        until("packets come through again", || {
            (verified(&manager.status(), "out", "good") > 0).then_some(())
        });
        back.push(began.elapsed());
        let after = manager.settled(&[("first", 1), ("mid", 2)]);
        assert_eq!((wanted(&after), pids(&after)), (wanted(&before), pids(&before)));
        assert_no_old_memory(&mut manager, &nfs);
        let started: BTreeSet<_> = manager.started_nfs().into_iter().collect();
        assert_eq!(started, nfs, "none is left over");
    }
    wait_for_pkts(&manager, 300);
    assert_nothing_lost(&manager.status(), &["out"]);
    let files: Vec<_> = std::fs::read_dir(manager.path(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !["m.toml", "m.sock", "m.sock.nfs", "m.sock.journal"].contains(&&**name))
        .collect();
    assert!(files.is_empty(), "{files:?}");
    manager.stop();
    assert!(!nfs.into_iter().any(is_alive));
    back.sort_unstable();
    let [p50, p99] = [50, 99].map(|percent| percentile(&back, percent));
    eprintln!(
        "{} kills; from the start of the next manager to its first packet out: p50 {:.0} ms, \
         p99 {:.0} ms",
        back.len(),
        p50.as_secs_f64() * 1e3,
        p99.as_secs_f64() * 1e3
    );
}
