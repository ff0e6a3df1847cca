//! NFs are killed in the middle of a chain, and others leave in good order, while packets flow.

use nflib::control::{ChainSpec, Edit, OnDeath, ServiceRef, Status};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::running::{
    Manager, assert_faultless, assert_nothing_lost, nf_program, nfs_of, until, verified,
};
use super::scale::wait_for_pkts;
use super::tables::{
    WAITING, by_hand, chain, chain_to, few_to, generator, service, services, sink, traffic,
};

const MIDDLES: [&str; 5] = ["m0", "m1", "m2", "m3", "m4"];
const ROUNDS: usize = 4;

/// Puts no NF between the ports, so that NFs are left with what they have.
fn bypass(chains: &[(&str, &str)]) -> Vec<Edit> {
    let chain = |(name, end): &(&str, &str)| ChainSpec {
        name: (*name).into(),
        services: Vec::new(),
        end: (*end).into(),
        ..ChainSpec::default()
    };
    chains.iter().map(|spec| Edit::SetChain { chain: chain(spec), new: false }).collect()
}

fn pid_of(status: &Status, service: &str) -> i32 {
    nfs_of(status, service).next().unwrap().pid
}

/// That nothing was dropped but for the death of NFs of these services.
fn assert_died_of_death(status: &Status, services: &[&str]) {
    for drop in &status.drops {
        let place = drop.place.strip_prefix("service:").unwrap_or(&drop.place);
        assert!(services.contains(&place), "{drop:?}");
        assert!(["nf_gone", "no_instance", "nf_ring_full"].contains(&&*drop.reason), "{drop:?}");
    }
}

#[test]
fn twenty_kills_in_the_middle_of_a_chain_cost_other_chains_nothing_and_no_buffer() {
    if nf_program().is_none() {
        return;
    }
    let mut all = vec!["first"];
    all.extend(MIDDLES);
    all.push("last");
    let tables = generator("in", "out", 0)
        + &sink("out")
        + &sink("other")
        + &services(&all)
        + &services(&["o1", "o2"])
        + &chain("default", &all)
        + &chain_to("few", &["o1", "o2"], "out:other")
        + &few_to("few");
    let manager = Manager::start(WAITING, &tables);
    let settled: Vec<_> = all.iter().chain(&["o1", "o2"]).map(|name| (*name, 1)).collect();
    let status = manager.settled(&settled);
    assert!(all.windows(2).all(|pair| {
        let [from, to] = [pair[0], pair[1]].map(|name| nfs_of(&status, name).next().unwrap());
        from.direct_to == [to.instance]
    }));
    wait_for_pkts(&manager, 500);
    let mut random = fastrand::Rng::with_seed(7);
    for round in 0..ROUNDS {
        for middle in MIDDLES {
            let before = manager.status();
            let pid = pid_of(&before, middle);
            kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
            until("another takes its place", || {
                let status = manager.status();
                let mut nfs = nfs_of(&status, middle);
                nfs.any(|nf| nf.pid != pid && nf.state == "running").then_some(())
            });
            // Some kills hit a chain that has just been put together again, others one under way.
            if random.bool() {
                wait_for_pkts(&manager, random.u64(1..300));
            }
        }
        assert_faultless(&manager.status(), "other");
        assert!(round < ROUNDS);
    }
    let status = manager.settled(&settled);
    wait_for_pkts(&manager, 1000);
    // Direct edges lead to the newcomers.
    let to = |status: &Status, name| nfs_of(status, name).next().unwrap().instance;
    for pair in all.windows(2) {
        let from = nfs_of(&status, pair[0]).next().unwrap();
        assert_eq!(from.direct_to, [to(&status, pair[1])], "{pair:?}");
    }
    let restarts: u64 = status.services.iter().map(|service| service.restarts).sum();
    assert_eq!(restarts, (ROUNDS * MIDDLES.len()) as u64);

    manager.edit(bypass(&[("default", "egress"), ("few", "out:other")])).unwrap();
    manager.assert_all_back();
    let status = manager.status();
    assert_died_of_death(&status, &all);
    assert_faultless(&status, "other");
    for fault in ["reordered", "duplicate", "stale", "corrupt", "foreign"] {
        assert_eq!(verified(&status, "out", fault), 0, "{fault}: {:?}", status.plan);
    }
    let dropped: u64 = status.drops.iter().map(|drop| drop.pkts).sum();
    assert_eq!(verified(&status, "out", "lost"), dropped, "every gap has its entry in the ledger");
    assert_eq!(status.accounting.dropped_pkts, dropped);
    manager.stop();
}

#[test]
fn one_of_several_instances_is_killed_and_the_others_take_its_flows() {
    if nf_program().is_none() {
        return;
    }
    let tables = traffic()
        + &services(&["first", "last"])
        + &service("mid", 3)
        + &chain("default", &["first", "mid", "last"]);
    let manager = Manager::start(WAITING, &tables);
    manager.settled(&[("first", 1), ("mid", 3), ("last", 1)]);
    wait_for_pkts(&manager, 500);
    for _ in 0..3 {
        let pid = pid_of(&manager.status(), "mid");
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        until("three are there again", || {
            let status = manager.settled(&[("mid", 3)]);
            nfs_of(&status, "mid").all(|nf| nf.pid != pid).then_some(())
        });
        wait_for_pkts(&manager, 500);
    }
    let status = manager.status();
    assert_died_of_death(&status, &["mid", "last", "first"]);
    assert_eq!(verified(&status, "out", "reordered"), 0, "{:?}", status.plan);
    assert_eq!(verified(&status, "out", "duplicate"), 0);
    manager.edit(bypass(&[("default", "egress")])).unwrap();
    manager.assert_all_back();
    manager.stop();
}

#[test]
fn an_nf_that_leaves_in_good_order_loses_nothing_while_another_is_there() {
    let Some(program) = nf_program() else { return };
    let tables = traffic()
        + &by_hand("mid")
        + &services(&["first", "last"])
        + &chain("default", &["first", "mid", "last"]);
    let manager = Manager::start(WAITING, &tables);
    let mut stays = manager.nf(&program, "mid");
    for _ in 0..5 {
        let mut goes = manager.nf(&program, "mid");
        manager.settled(&[("first", 1), ("mid", 2), ("last", 1)]);
        wait_for_pkts(&manager, 300);
        // The older one goes, so that each is once the one that stays.
        std::mem::swap(&mut stays, &mut goes);
        goes.signal(Signal::SIGTERM);
        assert_eq!(goes.exit_code(), Some(0));
        manager.settled(&[("mid", 1)]);
        wait_for_pkts(&manager, 300);
        assert_nothing_lost(&manager.status(), &["out"]);
    }
    assert_eq!(manager.status().plan.unordered_changes, 0);
    assert!(manager.stop().contains("dropped 0"));
}

#[test]
fn the_last_nf_of_a_chain_leaves_and_its_neighbours_keep_nothing() {
    let Some(program) = nf_program() else { return };
    let tables = traffic()
        + &by_hand("mid")
        + &services(&["first", "last"])
        + &chain("default", &["first", "mid", "last"]);
    let manager = Manager::start(WAITING, &tables);
    for round in 0..4 {
        let mut only = manager.nf(&program, "mid");
        manager.settled(&[("first", 1), ("mid", 1), ("last", 1)]);
        wait_for_pkts(&manager, 300);
        if round % 2 == 0 {
            only.signal(Signal::SIGTERM);
            assert_eq!(only.exit_code(), Some(0));
        } else {
            only.0.kill().unwrap();
            only.0.wait().unwrap();
        }
        manager.settled(&[("mid", 0)]);
    }
    let status = manager.status();
    assert_died_of_death(&status, &["mid"]);
    // It came back to life each time; what it had at its deaths is accounted for.
    assert_eq!(verified(&status, "out", "reordered"), 0);
    manager.edit(bypass(&[("default", "egress")])).unwrap();
    manager.assert_all_back();
    let refused = manager
        .edit(vec![Edit::Scale { service: ServiceRef::Name("mid".into()), instances: 1 }])
        .unwrap_err();
    assert!(refused.message.contains("\"mid\""), "{refused}");
    manager.stop();
}

/// A chain over `first`, `mid` and `last` with a policy; `mid` is by hand, so that it stays dead.
fn with_policy(policy: &str, mid: &str) -> Manager {
    let tables = traffic()
        + mid
        + &services(&["first", "last"])
        + &chain("default", &["first", "mid", "last"])
        + &format!("on_death = \"{policy}\"\n");
    Manager::start(WAITING, &tables)
}

fn kill_mid(manager: &Manager) -> i32 {
    let pid = pid_of(&manager.status(), "mid");
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    pid
}

#[test]
fn a_chain_that_holds_loses_only_what_the_dead_one_had_and_no_order() {
    if nf_program().is_none() {
        return;
    }
    let manager = with_policy("hold", &services(&["mid"]));
    manager.settled(&[("first", 1), ("mid", 1), ("last", 1)]);
    wait_for_pkts(&manager, 500);
    // Two: the third restart would wait for longer than a quarter of the buffers lasts.
    for _ in 0..2 {
        let pid = kill_mid(&manager);
        until("another takes its place", || {
            let status = manager.settled(&[("mid", 1)]);
            nfs_of(&status, "mid").all(|nf| nf.pid != pid).then_some(())
        });
        wait_for_pkts(&manager, 500);
    }
    let status = manager.status();
    for drop in &status.drops {
        // On a machine that does much else a start may take longer than that, too.
        assert_eq!(drop.place, "service:mid", "{:?}", status.drops);
        assert!(["nf_gone", "hold_full"].contains(&&*drop.reason), "{:?}", status.drops);
    }
    for fault in ["reordered", "duplicate"] {
        assert_eq!(verified(&status, "out", fault), 0, "{fault}: {:?}", status.plan);
    }
    manager.edit(bypass(&[("default", "egress")])).unwrap();
    manager.assert_all_back();
    manager.stop();
}

#[test]
fn a_chain_that_bypasses_goes_on_without_the_dead_and_says_so() {
    let Some(program) = nf_program() else { return };
    let manager = with_policy("bypass", &by_hand("mid"));
    let nf = manager.nf(&program, "mid");
    manager.settled(&[("first", 1), ("mid", 1), ("last", 1)]);
    wait_for_pkts(&manager, 500);
    kill_mid(&manager);
    manager.settled(&[("mid", 0)]);
    wait_for_pkts(&manager, 500);
    let status = manager.status();
    let mid = status.services.iter().find(|service| service.name == "mid").unwrap();
    assert!(mid.bypassed_pkts > 0, "{mid:?}");
    for drop in &status.drops {
        assert_eq!((&*drop.place, &*drop.reason), ("service:mid", "nf_gone"), "{:?}", status.drops);
    }
    // The policy is a part of the chain that a file and a command can change.
    let spec = status.chains.iter().find(|chain| chain.spec.name == "default").unwrap();
    let mut spec = spec.spec.clone();
    assert_eq!(spec.on_death, OnDeath::Bypass);
    spec.on_death = OnDeath::Drop;
    let applied = manager.edit(vec![Edit::SetChain { chain: spec, new: false }]).unwrap();
    assert_eq!(applied.moved_share, 0.0, "no flow takes another path");
    assert!(applied.changes[0].to_string().contains("on_death bypass →"), "{:?}", applied.changes);
    until("packets are dropped at the service", || {
        let status = manager.status();
        status.drops.iter().any(|drop| drop.reason == "no_instance").then_some(())
    });
    drop(nf);
    manager.edit(bypass(&[("default", "egress")])).unwrap();
    manager.assert_all_back();
    manager.stop();
}
