//! What a person, a program or an NF is told that asks for the impossible.

use std::process::{Command, Output};

use nflib::control::{ChainSpec, Edit, ErrorCode, Reply, Request, RuleSpec, ServiceRef, ThenSpec};

use super::raw::RawNf;
use super::running::Manager;
use super::tables::{by_hand, chain, few_to, sink};

const MILLRACE: &str = env!("CARGO_BIN_EXE_millrace");

fn start() -> Manager {
    let tables = sink("out")
        + &by_hand("a")
        + &by_hand("b")
        + &chain("web", &["a"])
        + &chain("default", &["a", "b"])
        + &few_to("web");
    Manager::start("", &tables)
}

fn millrace(manager: &Manager, args: &[&str]) -> Output {
    let mut command = Command::new(MILLRACE);
    command.args(args).arg("--socket").arg(manager.socket()).output().unwrap()
}

#[track_caller]
fn assert_one_line(output: &Output, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(output.stdout.is_empty());
    for word in words {
        assert!(said.contains(word), "{word:?} is missing in: {said}");
    }
}

#[test]
fn a_command_that_asks_for_the_impossible_gets_one_line_and_nothing_changes() {
    let manager = start();
    let generation = || manager.status().plan.generation;
    let before = generation();
    let cases: &[(&[&str], &[&str])] = &[
        (&["chain", "add", "x", "--services", "a,nat"], &["no service \"nat\"", "there are a, b"]),
        (&["chain", "add", "web", "--services", "a"], &["a chain \"web\" already"]),
        (&["chain", "add", "x", "--services", "", "--end", "chain:x"], &["x → x", "another end"]),
        (
            &["chain", "add", "x", "--services", "", "--end", "out:wan"],
            &["no port \"wan\"; there are out"],
        ),
        (&["chain", "add", "x", "--services", "", "--end", "nowhere"], &["nowhere", "expected"]),
        (&["chain", "remove", "web"], &["\"web\" cannot be removed", "few"]),
        (&["chain", "remove", "nil"], &["no chain \"nil\""]),
        (&["chain", "show", "nil"], &["nil"]),
        (&["rule", "add", "--priority", "1", "in_port=wan", "then", "drop"], &["no port \"wan\""]),
        (&["rule", "add", "--priority", "1", "then", "chain=nil"], &["no chain \"nil\""]),
        (&["rule", "add", "--priority", "1", "tp_dst=80", "then", "drop"], &["ip_proto"]),
        (&["rule", "add", "--priority", "1", "--name", "few", "then", "drop"], &["\"few\""]),
        (&["rule", "remove", "999"], &["999"]),
        (&["rule", "remove", "nil"], &["nil"]),
        (&["service", "scale", "a", "2"], &["\"a\"", "started by hand"]),
        (&["service", "scale", "nat", "2"], &["no service \"nat\"", "there are a, b"]),
        (&["nf", "stop", "77"], &["no instance 77"]),
        (&["nf", "call", "77", "hello"], &["no instance 77"]),
        (&["nf", "call", "a", "hello"], &["service a has no instance"]),
        (&["flow", "explain", "--in", "wan", "udp", "1.1.1.1:1", "2.2.2.2:2"], &["\"wan\""]),
    ];
    for (args, words) in cases {
        assert_one_line(&millrace(&manager, args), words);
    }
    assert_eq!(generation(), before);
    let status = manager.status();
    assert_eq!((status.chains.len(), status.rule_count), (2, 1));
    manager.stop();
}

#[test]
fn edits_are_made_together_or_not_at_all() {
    let manager = start();
    let new = ChainSpec {
        name: "x".into(),
        services: vec![ServiceRef::Name("b".into())],
        end: "egress".into(),
        ..ChainSpec::default()
    };
    let into_x = RuleSpec {
        priority: 3,
        then: ThenSpec { chain: Some("x".into()), ..ThenSpec::default() },
        ..RuleSpec::default()
    };
    let good = || {
        vec![
            Edit::AddRule { rule: Box::new(into_x.clone()) },
            Edit::SetChain { chain: new.clone(), new: true },
            Edit::RemoveRuleNamed { name: "few".into() },
            Edit::RemoveChain { name: "web".into() },
        ]
    };
    for (last, code) in [
        (Edit::RemoveRule { id: 4711 }, ErrorCode::NotFound),
        (Edit::RemoveChain { name: "web".into() }, ErrorCode::NotFound),
        (Edit::Scale { service: ServiceRef::Id(9), instances: 1 }, ErrorCode::NotFound),
        (Edit::RemoveChain { name: "x".into() }, ErrorCode::NotFound),
    ] {
        let mut edits = good();
        edits.push(last.clone());
        let refused = manager.edit(edits).unwrap_err();
        assert_eq!(refused.code, code, "{last:?}: {refused}");
        assert!(!refused.message.contains('\n'));
        let status = manager.status();
        assert_eq!((status.chains.len(), status.rule_count), (2, 1), "{last:?}: {refused}");
        assert!(status.chains.iter().any(|chain| chain.spec.name == "web"));
    }
    // Together they are possible, though the rule names a chain that comes later.
    let applied = manager.edit(good()).unwrap();
    assert_eq!((applied.rule_ids.len(), applied.changes.len()), (1, 4), "{applied:?}");
    let status = manager.status();
    let names: Vec<_> = status.chains.iter().map(|chain| chain.spec.name.as_str()).collect();
    assert!(names.contains(&"x") && !names.contains(&"web"), "{names:?}");
    manager.stop();
}

#[test]
fn rules_that_overlap_with_one_priority_are_reported_and_the_first_is_taken() {
    let manager = start();
    let overlap = RuleSpec {
        name: Some("second".into()),
        priority: 10,
        then: ThenSpec { drop: true, ..ThenSpec::default() },
        ..RuleSpec::default()
    };
    let applied = manager.edit(vec![Edit::AddRule { rule: Box::new(overlap) }]).unwrap();
    let note = applied.notes.iter().find(|note| note.contains("overlap")).unwrap();
    assert!(note.contains("few") && note.contains("second"), "{note}");
    let frame = super::rules::udp_frame([198, 18, 0, 1], 1024, 9);
    let Reply::Explained(told) = manager.ask(&Request::Explain { in_port: None, frame }) else {
        panic!("no explanation");
    };
    assert_eq!(told.chain.as_deref(), Some("web"));
    let table = &told.tables[0];
    assert_eq!(table.rule.as_ref().unwrap().spec.name.as_deref(), Some("few"));
    assert_eq!(table.also_matching[0].spec.name.as_deref(), Some("second"));
    manager.stop();
}

#[test]
fn frames_of_every_kind_are_explained_or_refused() {
    let manager = start();
    for frame in [vec![], vec![0], vec![0xff; 13], vec![0x81; 64], vec![0; 16_384]] {
        let reply = manager.ask(&Request::Explain { in_port: None, frame });
        assert!(matches!(reply, Reply::Explained(_)), "{reply:?}");
    }
    let too_long = Request::Explain { in_port: None, frame: vec![0; 16_385] };
    let Reply::Error(error) = manager.ask(&too_long) else { panic!("it is too long") };
    assert_eq!(error.code, ErrorCode::BadRequest);
    assert!(error.message.contains("16385") && error.message.contains("16384"), "{error}");
    manager.stop();
}

#[test]
fn nfs_and_commands_may_each_ask_for_their_own_things_only() {
    let manager = start();
    let Err(error) = RawNf::attach(&manager, "nat") else { panic!("there is no such service") };
    assert_eq!(error.code, ErrorCode::UnknownService);
    let nf = RawNf::attach(&manager, "a").unwrap();
    for request in [
        Request::Edit { edits: vec![] },
        Request::StopNf { instance: nf.instance() },
        Request::Shutdown { keep_nfs: false },
        Request::Flows { limit: 1 },
    ] {
        nf.say(&request);
        let Reply::Error(error) = nf.hear() else { panic!("{request:?}") };
        assert_eq!(error.code, ErrorCode::Forbidden, "{error}");
    }
    // Numbers that were never sent are another process's fancy.
    nf.say(&Request::Synced { token: u64::MAX });
    nf.say(&Request::Answer { token: 5, result: Err("what?".into()) });
    for request in [Request::Detach, Request::Synced { token: 1 }] {
        let Reply::Error(error) = manager.ask(&request) else { panic!("{request:?}") };
        assert_eq!(error.code, ErrorCode::BadRequest, "{error}");
    }
    assert_eq!(manager.status().nfs.len(), 1);
    nf.leave();
    manager.stop();
}
