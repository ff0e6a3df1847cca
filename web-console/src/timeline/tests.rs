//! Statuses one after the other, and what is told of them.

use super::*;
use nflib::control::{
    ChainSpec, ChainStatus, DeathStatus, DropStatus, MatchSpec, NfStatus, PortStatus, RuleSpec,
    RuleStatus, ServiceStatus, ThenSpec,
};

fn nf(instance: u32) -> NfStatus {
    NfStatus {
        instance,
        name: "forward".into(),
        service_name: "fw".into(),
        state: "running".into(),
        ..Default::default()
    }
}

fn status() -> Status {
    Status {
        pid: 7,
        ports: vec![PortStatus { name: "lan".into(), link: "up".into(), ..Default::default() }],
        nfs: vec![nf(1)],
        services: vec![ServiceStatus {
            id: 1,
            name: "fw".into(),
            wanted: Some(1),
            instances: vec![1],
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// What is told when `change` happens to a manager that was seen before.
fn told(change: impl FnOnce(&mut Status)) -> Vec<(Kind, Level, String)> {
    let mut timeline = Timeline::default();
    let seq = timeline.up(&Arc::new(status()), 1000);
    let mut next = status();
    next.uptime_s = 1.0;
    change(&mut next);
    timeline.up(&Arc::new(next), 2000);
    let entries = timeline.after(seq);
    assert!(entries.iter().all(|entry| entry.at_unix_ms == 2000));
    entries.into_iter().map(|entry| (entry.kind, entry.level, entry.text)).collect()
}

#[test]
fn nothing_is_told_when_nothing_happened() {
    assert_eq!(told(|_| {}), []);
}

#[test]
fn an_nf_that_comes_and_one_that_goes_in_good_order_are_told_apart_from_a_death() {
    let came = told(|status| status.nfs.push(nf(2)));
    assert_eq!((came.len(), came[0].0, came[0].1), (1, Kind::Start, Level::Good));
    let left = told(|status| status.nfs.clear());
    assert_eq!((left.len(), left[0].0, left[0].1), (1, Kind::Stop, Level::Info));
    let died = told(|status| {
        status.nfs.clear();
        status.deaths.count = 1;
        status.deaths.last = vec![DeathStatus {
            instance: 1,
            service: "fw".into(),
            why: "signal 9".into(),
            noticed_ns: 5_000,
            reclaimed_ns: 47_000,
            ..Default::default()
        }];
    });
    assert_eq!((died.len(), died[0].0, died[0].1), (1, Kind::Crash, Level::Bad));
    assert!(died[0].2.contains("signal 9") && died[0].2.contains("42 µs"), "{}", died[0].2);
}

#[test]
fn a_death_that_was_told_is_not_told_again() {
    let mut timeline = Timeline::default();
    let mut dead = status();
    dead.deaths.last = vec![DeathStatus { instance: 9, noticed_ns: 5, ..Default::default() }];
    let seq = timeline.up(&Arc::new(dead.clone()), 0);
    assert_eq!(timeline.up(&Arc::new(dead), 1), seq);
}

#[test]
fn links_scaling_chains_and_rules_are_told() {
    let link = told(|status| status.ports[0].link = "down".into());
    assert_eq!((link[0].0, link[0].1), (Kind::Link, Level::Bad));
    let scale = told(|status| status.services[0].wanted = Some(3));
    assert_eq!(scale[0].2, "service fw: 3 instances wanted (before: 1)");
    let chain = told(|status| {
        let spec = ChainSpec { name: "web".into(), end: "egress".into(), ..Default::default() };
        status.chains.push(ChainStatus { spec, ..Default::default() });
    });
    assert_eq!(chain[0].0, Kind::Apply);
    let rules = told(|status| {
        let spec = RuleSpec {
            priority: 5,
            matches: MatchSpec {
                tp_dst: Some(nflib::control::spec::Value::Int(80)),
                ..Default::default()
            },
            then: ThenSpec { drop: true, ..Default::default() },
            ..Default::default()
        };
        status.rules =
            (1..=5).map(|id| RuleStatus { id, spec: spec.clone(), ..Default::default() }).collect();
        status.rule_count = 5;
    });
    assert_eq!(rules.len(), 1);
    assert!(rules[0].2.starts_with("rule added: 1 (priority 5): tp_dst=80 → drop; 2 "));
    assert!(rules[0].2.ends_with("; and 2 more"), "{}", rules[0].2);
}

#[test]
fn drops_are_told_when_they_begin_and_again_only_after_a_pause() {
    let mut timeline = Timeline::default();
    let at = |pkts| {
        let line = DropStatus { place: "service:fw".into(), reason: "no_instance".into(), pkts };
        Arc::new(Status { drops: vec![line], ..status() })
    };
    let seq = timeline.up(&at(0), 0);
    assert_eq!(timeline.up(&at(5), 1_000), seq + 1);
    assert_eq!(timeline.up(&at(9), 2_000), seq + 1);
    assert_eq!(timeline.up(&at(9), 70_000), seq + 1);
    assert_eq!(timeline.up(&at(10), 71_000), seq + 2);
    let last = timeline.after(seq + 1).remove(0);
    assert_eq!(last.text, "packets are dropped at service:fw: no_instance");
}

#[test]
fn a_manager_that_goes_and_comes_is_told_once_each() {
    let mut timeline = Timeline::default();
    timeline.up(&Arc::new(status()), 0);
    timeline.away("it closed the connection", 1);
    timeline.away("no manager at /x", 2);
    let mut next = status();
    next.pid = 8;
    timeline.up(&Arc::new(next), 3);
    let texts: Vec<_> = timeline.after(0).into_iter().map(|entry| entry.text).collect();
    assert_eq!(texts.len(), 3, "{texts:?}");
    assert!(texts[1].starts_with("the manager is away: it closed"));
    assert!(texts[2].starts_with("another manager answers"));
}

#[test]
fn books_that_do_not_balance_are_told_as_a_fault() {
    let mut timeline = Timeline::default();
    let mut good = status();
    good.accounting.balanced = true;
    let seq = timeline.up(&Arc::new(good), 0);
    timeline.up(&Arc::new(status()), 1);
    assert_eq!(timeline.after(seq)[0].kind, Kind::Fault);
}

#[test]
fn only_the_latest_are_kept_and_numbers_go_on() {
    let mut timeline = Timeline::default();
    for turn in 0..MAX_ENTRIES as u64 {
        timeline.up(&Arc::new(status()), turn);
        timeline.away("gone", turn);
        timeline.before = None;
    }
    let entries = timeline.after(0);
    assert!(entries.len() <= MAX_ENTRIES);
    assert_eq!(entries.last().unwrap().seq, timeline.seq);
}
