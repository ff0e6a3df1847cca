//! A file that cannot be carried out changes nothing.

use nflib::control::{ChangeOf, ErrorCode, Status};

use super::running::{Manager, assert_nothing_lost, nf_program};
use super::scale::wait_for_pkts;
use super::tables::{
    WAITING, chain, chain_to, few_to, generator, rule, service, services, sink, traffic,
};

/// All of a status that a change could change.
fn state(status: &Status) -> String {
    let nfs: Vec<_> = status.nfs.iter().map(|nf| (nf.instance, nf.pid, &nf.direct_to)).collect();
    let services: Vec<_> = status.services.iter().map(|s| (&s.name, s.id, s.wanted)).collect();
    let chains: Vec<_> = status.chains.iter().map(|chain| (chain.id, &chain.spec)).collect();
    let rules: Vec<_> = status.rules.iter().map(|rule| (rule.id, &rule.spec)).collect();
    format!("{nfs:?} {services:?} {chains:?} {rules:?} {:?}", status.plan.generation)
}

fn good() -> String {
    traffic()
        + &services(&["a", "b"])
        + &chain("few", &["a"])
        + &chain("default", &["a", "b"])
        + &few_to("few")
}

#[test]
fn a_file_with_any_mistake_is_refused_in_one_line_and_changes_nothing() {
    if nf_program().is_none() {
        return;
    }
    let manager = Manager::start(WAITING, &good());
    manager.settled(&[("a", 1), ("b", 1)]);
    let before = manager.status();
    let mistakes: &[(String, &[&str])] = &[
        (good() + &chain("x", &["a", "nat"]), &["\"x\"", "no service \"nat\"", "a, b"]),
        (
            good() + &chain_to("x", &["a"], "chain:y") + &chain_to("y", &[], "chain:x"),
            &["x → y → x", "another end"],
        ),
        (good() + &chain("few", &["b"]), &["two chains are named \"few\""]),
        (good() + &service("a", 2), &["two services are named \"a\""]),
        (good() + &few_to("default"), &["rule few", "stand there already"]),
        (
            good() + &rule("r", 1, "in_port = \"wan\"", "drop = true"),
            &["no port \"wan\"", "in, out"],
        ),
        (good() + &rule("r", 1, "ip_proto = \"udp\"", "out = \"wan\""), &["no port \"wan\""]),
        (good() + &rule("r", 1, "ip_proto = \"udp\"", "chain = \"nil\""), &["no chain \"nil\""]),
        (good() + &rule("r", 1, "ip_proto = \"upd\"", "drop = true"), &["upd"]),
        (good() + &chain_to("x", &[], "out:wan"), &["no port \"wan\""]),
        (good() + "[[chain]]\nname = \"x\"\nservice = [\"a\"]\n", &["service", "expected"]),
        (good() + "[[cahin]]\n", &["cahin", "expected"]),
        (good() + "[[chain]\n", &["m.toml:"]),
    ];
    for (tables, words) in mistakes {
        for dry_run in [true, false] {
            let refused = manager.apply_text(manager.text(tables), dry_run).unwrap_err();
            assert_eq!(refused.code, ErrorCode::Invalid, "{refused}");
            let message = &refused.message;
            assert!(message.starts_with("m.toml:") && !message.contains('\n'), "{message}");
            for word in *words {
                assert!(message.contains(word), "{word:?} is missing in: {message}");
            }
        }
        assert_eq!(state(&manager.status()), state(&before), "{tables}");
    }
    wait_for_pkts(&manager, 500);
    assert_nothing_lost(&manager.status(), &["out"]);
    manager.stop();
}

#[test]
fn what_only_a_restart_can_change_is_said_so_by_its_name() {
    if nf_program().is_none() {
        return;
    }
    let manager = Manager::start(WAITING, &good());
    manager.settled(&[("a", 1), ("b", 1)]);
    let before = manager.status();
    let text = manager.text(&good());
    let slower = good().replace("rate_pps = 10000", "rate_pps = 9999");
    let more_ports = generator("in2", "out", 0) + &good();
    for (text, word) in [
        (text.replace("buffers = 16384", "buffers = 8192"), "pool"),
        (text.replace("ring_capacity = 4096", "ring_capacity = 512"), "ring_capacity"),
        (text.replace("m.sock", "other.sock"), "socket"),
        (text.replace("[pool]", "workers = 2\n[pool]"), "workers"),
        (manager.text(&slower), "\"in\""),
        (manager.text(&(good() + &sink("third"))), "port"),
        (manager.text(&more_ports), "port"),
    ] {
        let refused = manager.apply_text(text, false).unwrap_err();
        assert_eq!(refused.code, ErrorCode::Invalid);
        let message = &refused.message;
        assert!(message.contains("restart") && message.contains(word), "{word}: {message}");
        assert!(!message.contains('\n'), "{message}");
        assert_eq!(state(&manager.status()), state(&before), "{word}");
    }
    manager.stop();
}

#[test]
fn a_dry_run_says_what_an_apply_would_do_and_does_nothing() {
    if nf_program().is_none() {
        return;
    }
    let manager = Manager::start(WAITING, &good());
    manager.settled(&[("a", 1), ("b", 1)]);
    let before = manager.status();
    let next = traffic()
        + &service("a", 2)
        + &services(&["c"])
        + &chain("default", &["c", "a"])
        + &rule("no-tcp", 10, "ip_proto = \"tcp\"", "drop = true");
    let dry = manager.apply_text(manager.text(&next), true).unwrap();
    let lines: Vec<_> = dry.changes.iter().map(ToString::to_string).collect();
    for line in [
        "~ service a",
        "- service b",
        "+ service c",
        "- chain few",
        "~ chain default",
        "- rule few",
    ] {
        assert!(lines.iter().any(|l| l.starts_with(line)), "{line}: {lines:#?}");
    }
    assert!(lines.iter().any(|line| line.starts_with("+ rule no-tcp")), "{lines:#?}");
    assert_eq!(state(&manager.status()), state(&before));

    let done = manager.apply(&next).unwrap();
    assert_eq!(done.changes, dry.changes);
    assert!(done.generation > before.plan.generation);
    let status = manager.settled(&[("a", 2), ("b", 0), ("c", 1)]);
    assert_eq!(status.services.len(), 2);
    // The same again is no difference.
    let again = manager.apply(&next).unwrap();
    assert!(again.changes.is_empty(), "{again:?}");
    assert_eq!(again.moved_share, 0.0);
    wait_for_pkts(&manager, 500);

    // And back: a rule that overlaps another of its priority is reported, and taken in file order.
    let overlapping = good() + &rule("all", 10, "ip_proto = \"udp\"", "chain = \"default\"");
    let back = manager.apply(&overlapping).unwrap();
    assert!(
        back.notes.iter().any(|n| n.contains("few") && n.contains("all") && n.contains("overlap")),
        "{back:?}"
    );
    assert!(back.changes.iter().any(|c| c.of == ChangeOf::Rule && c.name == "all"), "{back:?}");
    let status = manager.settled(&[("a", 1), ("b", 1), ("c", 0)]);
    let few = |status: &Status| status.chains.iter().find(|c| c.spec.name == "few").unwrap().pkts;
    let before = few(&status);
    wait_for_pkts(&manager, 500);
    assert!(few(&manager.status()) > before, "the rule that stands first is taken");
    manager.stop();
}
