//! Rules: which packets take which way, changed while packets flow.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use nflib::control::{Edit, ErrorCode, Explanation, MatchSpec, Reply, Request, RuleSpec, Status};
use nflib::testing::FrameBuilder;

use super::running::{Manager, assert_nothing_lost, nf_program, until};
use super::scale::wait_for_pkts;
use super::tables::{
    FEW_FLOWS, WAITING, by_hand, chain, chain_to, few_to, generator, rule, services, sink, traffic,
};

fn ip(octets: [u8; 4]) -> IpAddr {
    Ipv4Addr::from(octets).into()
}

pub fn udp_frame(src: [u8; 4], src_port: u16, dst_port: u16) -> Vec<u8> {
    FrameBuilder::new().ip(ip(src), ip([198, 19, 0, 1])).udp(src_port, dst_port).pad_to(60).build()
}

fn tcp_frame(src: [u8; 4], src_port: u16, dst_port: u16) -> Vec<u8> {
    const SYN: u8 = 2;
    let ends = FrameBuilder::new().ip(ip(src), ip([198, 19, 0, 1]));
    ends.tcp(src_port, dst_port, SYN).pad_to(100).build()
}

/// A capture file (little endian, microseconds, Ethernet) with these frames.
fn write_capture(path: &Path, frames: &[Vec<u8>]) {
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1] {
        file.extend(word.to_le_bytes());
    }
    for frame in frames {
        let len = frame.len() as u32;
        for word in [0, 0, len, len] {
            file.extend(word.to_le_bytes());
        }
        file.extend(frame);
    }
    std::fs::write(path, file).unwrap();
}

fn spec(name: &str, priority: u16, matches: &[(&str, &str)], then: &str) -> RuleSpec {
    let mut rule = RuleSpec { name: Some(name.into()), priority, ..RuleSpec::default() };
    for (field, value) in matches {
        let value = nflib::control::spec::Value::Text((*value).into());
        MatchSpec::set(&mut rule.matches, field, value).unwrap();
    }
    match then.split_once('=') {
        Some(("chain", name)) => rule.then.chain = Some(name.into()),
        Some(("out", port)) => rule.then.out = Some(port.into()),
        Some(("goto", table)) => rule.then.goto = Some(table.parse().unwrap()),
        _ => rule.then.drop = true,
    }
    rule
}

fn add(rule: RuleSpec) -> Edit {
    Edit::AddRule { rule: Box::new(rule) }
}

#[track_caller]
fn explain(manager: &Manager, frame: &[u8]) -> Explanation {
    match manager.ask(&Request::Explain { in_port: None, frame: frame.to_vec() }) {
        Reply::Explained(explanation) => *explanation,
        other => panic!("{other:?}"),
    }
}

/// What came to each end, by the words in which an explanation says it.
fn ends(status: &Status) -> BTreeMap<String, u64> {
    let sent = status.ports.iter().map(|port| (format!("out={}", port.name), port.tx_pkts));
    let dropped = status.drops.iter().map(|drop| (format!("drop ({})", drop.reason), drop.pkts));
    sent.chain(dropped).filter(|(_, pkts)| *pkts > 0).collect()
}

/// Frames of several kinds, some more often than others.
fn frames_of_all_kinds() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for round in 0..40_u16 {
        let client = [10, 0, 0, (round % 4) as u8];
        frames.push(tcp_frame(client, 1000 + round % 8, 80));
        if round % 2 == 0 {
            frames.push(udp_frame(client, 2000, 53));
        }
        if round % 5 == 0 {
            frames.push(tcp_frame(client, 3000, 23));
        }
        if round % 4 == 0 {
            frames.push(tcp_frame([10, 9, 9, 9], 4000, 443));
        }
        if round % 8 == 0 {
            frames.push(udp_frame([10, 0, 1, 1], 5000, 5001));
        }
    }
    frames
}

#[test]
fn what_is_explained_is_what_happens_and_every_packet_is_counted_at_its_rule() {
    let Some(program) = nf_program() else { return };
    let captures = tempfile::tempdir().unwrap();
    let capture = captures.path().join("in.pcap");
    let frames = frames_of_all_kinds();
    write_capture(&capture, &frames);
    let tables = format!(
        "[[port]]\nname = \"in\"\nbackend = \"pcap\"\nreplay = \"{}\"\negress = \"out\"\n",
        capture.display()
    ) + "[[port]]\nname = \"out\"\nbackend = \"sink\"\n[[port]]\nname = \"web\"\n\
         backend = \"sink\"\n[[port]]\nname = \"dns\"\nbackend = \"sink\"\n"
        + &by_hand("fw")
        + &by_hand("cache")
        + &chain_to("web", &["fw", "cache"], "out:web")
        + &chain("default", &["fw"]);
    let manager = Manager::start(WAITING, &tables);

    let edits = vec![
        add(spec("http", 10, &[("ip_proto", "tcp"), ("tp_dst", "80")], "chain=web")),
        add(spec("dns", 10, &[("ip_proto", "udp"), ("tp_dst", "53")], "out=dns")),
        add(spec("no-telnet", 20, &[("ip_proto", "tcp"), ("tp_dst", "23")], "drop")),
        add(spec("far", 5, &[("eth_type", "ipv4"), ("ip_src", "10.0.1.0/24")], "goto=1")),
        add(RuleSpec { table: 1, ..spec("far-drop", 0, &[("ip_proto", "udp")], "drop") }),
    ];
    let applied = manager.edit(edits).unwrap();
    assert_eq!(applied.rule_ids.len(), 5, "{applied:?}");

    // The chain is not complete: no packet has come yet. What will become of each?
    let _nfs = [manager.nf(&program, "fw"), manager.nf(&program, "fw")];
    assert_eq!(manager.status().ports[0].rx_pkts, 0);
    assert_eq!(explain(&manager, &frames[0]).end, "drop (no_instance)");
    // The traffic begins with the second service's NF, which stands in no explanation of these.
    let mut rules: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    let (mut chains, mut at_end) = (BTreeMap::new(), BTreeMap::new());
    let mut instances: BTreeMap<u32, u64> = BTreeMap::new();
    for frame in &frames {
        let told = explain(&manager, frame);
        for table in &told.tables {
            if let Some(rule) = &table.rule {
                let count = rules.entry(rule.id).or_default();
                *count = (count.0 + 1, count.1 + frame.len() as u64);
            }
        }
        if let Some(chain) = told.chain {
            *chains.entry(chain.clone()).or_default() += 1_u64;
            let instance = told.hops[0].instance.unwrap();
            *instances.entry(instance).or_default() += 1;
            let end = if chain == "web" { "out=web".to_owned() } else { told.end };
            *at_end.entry(end).or_default() += 1;
        } else {
            *at_end.entry(told.end).or_default() += 1_u64;
        }
    }
    assert_eq!(instances.len(), 2, "both instances have flows: {instances:?}");

    let _cache = manager.nf(&program, "cache");
    let status = until("the replay is through", || {
        let status = manager.status();
        (status.ports[0].exhausted && status.accounting.held_pkts == 0).then_some(status)
    });
    assert_eq!(status.ports[0].rx_pkts, frames.len() as u64);
    let counted: BTreeMap<_, _> =
        status.rules.iter().map(|rule| (rule.id, (rule.pkts, rule.bytes))).collect();
    assert_eq!(counted, rules);
    assert_eq!(counted.keys().copied().collect::<Vec<_>>(), sorted(&applied.rule_ids));
    let entered: BTreeMap<_, _> =
        status.chains.iter().map(|chain| (chain.spec.name.clone(), chain.pkts)).collect();
    assert_eq!(entered, chains);
    assert_eq!(ends(&status), at_end);
    for (instance, pkts) in instances {
        let nf = status.nfs.iter().find(|nf| nf.instance == instance).unwrap();
        assert_eq!(nf.rx_pkts, pkts, "{nf:?}");
    }
    flows_are_listed_by_packets(&manager, frames.len() as u64);
    manager.assert_all_back();
    manager.stop();
}

fn sorted(ids: &[u64]) -> Vec<u64> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids
}

fn flows_are_listed_by_packets(manager: &Manager, pkts: u64) {
    let Reply::Flows { flows, total } = manager.ask(&Request::Flows { limit: 1000 }) else {
        panic!("no flows");
    };
    assert_eq!(flows.len() as u64, total);
    assert!(flows.is_sorted_by(|a, b| a.pkts >= b.pkts), "{flows:?}");
    assert_eq!(flows.iter().map(|flow| flow.pkts).sum::<u64>(), pkts);
    let rules = manager.status().rules;
    for flow in &flows {
        let rule = rules.iter().find(|rule| Some(rule.id) == flow.rule);
        match rule {
            Some(rule) if rule.spec.then.chain.is_some() => assert_eq!(flow.then, "chain=web"),
            Some(rule) if rule.spec.then.out.is_some() => assert_eq!(flow.then, "out=dns"),
            Some(_) => assert_eq!(flow.then, "drop"),
            None => assert_eq!(flow.then, "chain=default (no rule)"),
        }
    }
    let Reply::Flows { flows: three, total: same } = manager.ask(&Request::Flows { limit: 3 })
    else {
        panic!("no flows");
    };
    assert_eq!((three.len(), same), (3, total));
    assert_eq!(three[0].pkts, flows[0].pkts);
}

#[test]
fn rules_come_and_go_under_traffic_by_name_and_number_and_lose_nothing() {
    if nf_program().is_none() {
        return;
    }
    const PKTS: u64 = 25_000;
    let tables = generator("in", "out", PKTS)
        + &sink("out")
        + &services(&["short", "long1", "long2"])
        + &chain("few", &["short"])
        + &chain("default", &["long1", "long2"]);
    let manager = Manager::start(WAITING, &tables);
    manager.settled(&[("short", 1), ("long1", 1), ("long2", 1)]);
    let few = || {
        let matches = [("eth_type", "ipv4"), ("ip_src", FEW_FLOWS)];
        spec("few", 7, &matches, "chain=few")
    };
    for round in 0..4 {
        let added = manager.edit(vec![add(few())]).unwrap();
        assert_eq!(added.rule_ids.len(), 1);
        let id = added.rule_ids[0];
        wait_for_pkts(&manager, 600);
        let status = manager.status();
        let rule = status.rules.iter().find(|rule| rule.id == id).unwrap();
        assert!(rule.pkts > 0 && rule.bytes == rule.pkts * 60, "{rule:?}");
        let same_name = RuleSpec { priority: 9, ..few() };
        let refused = manager.edit(vec![add(same_name)]).unwrap_err();
        assert!(refused.message.contains("\"few\""), "{refused}");
        let remove = match round % 2 {
            0 => Edit::RemoveRule { id },
            _ => Edit::RemoveRuleNamed { name: "few".into() },
        };
        manager.edit(vec![remove.clone()]).unwrap();
        assert_eq!(manager.status().rule_count, 0);
        let gone = manager.edit(vec![remove]).unwrap_err();
        assert_eq!(gone.code, ErrorCode::NotFound);
    }
    let last = manager.edit(vec![add(few())]).unwrap().rule_ids[0];
    let before = manager.status();
    let chain_pkts = |status: &Status, name: &str| {
        status.chains.iter().find(|chain| chain.spec.name == name).unwrap().pkts
    };
    let status = until("the generator is done", || {
        let status = manager.status();
        (status.ports[0].exhausted && status.accounting.held_pkts == 0).then_some(status)
    });
    // To the packet: what came is what the rule took and what no rule took.
    assert_eq!(chain_pkts(&status, "few") + chain_pkts(&status, "default"), PKTS);
    let rule = status.rules.iter().find(|rule| rule.id == last).unwrap();
    assert!(rule.pkts <= chain_pkts(&status, "few"), "{rule:?}");
    assert!(rule.pkts >= chain_pkts(&status, "few") - chain_pkts(&before, "few"), "{rule:?}");
    assert_eq!(status.ports[1].tx_pkts, PKTS);
    assert_nothing_lost(&status, &["out"]);
    assert_eq!(status.plan.unordered_changes, 0);
    manager.assert_all_back();
    manager.stop();
}

#[test]
fn timeouts_remove_rules_that_are_not_used_or_old_and_leave_the_others() {
    if nf_program().is_none() {
        return;
    }
    let tables = traffic()
        + &services(&["short", "long"])
        + &chain("few", &["short"])
        + &chain("default", &["long"])
        + &few_to("few")
        + "idle_timeout_s = 2.0\n"
        + &rule("idle", 20, "ip_proto = \"tcp\"", "drop = true")
        + "idle_timeout_s = 0.2\n"
        + &rule("hard", 5, "ip_proto = \"udp\"", "chain = \"default\"")
        + "hard_timeout_s = 0.4\n";
    let manager = Manager::start(WAITING, &tables);
    manager.settled(&[("short", 1), ("long", 1)]);
    let names = || {
        let rules = manager.status().rules;
        rules.into_iter().filter_map(|rule| rule.spec.name).collect::<Vec<_>>()
    };
    until("two have run out", || (names() == ["few"]).then_some(()));
    // One that packets match goes on for as long as they do.
    let few = || manager.status().rules.into_iter().find(|rule| rule.spec.name.is_some());
    let started = few().unwrap().age_s;
    let old = until("it is older than its timeout", || {
        let rule = few()?;
        (rule.age_s > started + 2.5).then_some(rule)
    });
    assert!(old.pkts > 0 && old.idle_s < 2.0, "{old:?}");
    assert_nothing_lost(&manager.status(), &["out"]);

    // By a command, too; one that is short-lived is gone before anybody can use it.
    let edit = RuleSpec {
        hard_timeout_s: Some(0.05),
        ..spec("brief", 1, &[("ip_proto", "icmp")], "drop")
    };
    manager.edit(vec![add(edit)]).unwrap();
    until("it has run out", || (names() == ["few"]).then_some(()));
    manager.stop();
}
