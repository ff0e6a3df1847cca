//! The real `millrace` against a manager made for the test: what it asks, what it says, how it ends.

#[path = "command_line/fake.rs"]
mod fake;
#[path = "command_line/states.rs"]
mod states;
#[path = "command_line/top.rs"]
mod top;

use std::io::Read as _;
use std::process::Stdio;
use std::sync::{Mutex, mpsc};

use fake::Fake;
use nflib::control::rates::{DropRate, Rates};
use nflib::control::{
    Applied, ChainStatus, DropStatus, Edit, ErrorCode, ErrorReply, Explanation, NfStatus,
    PortStatus, Reply, Request, RuleStatus, ServiceRef, ServiceStatus, Status, Target,
};
use nflib::headers::Headers;
use states::{applied, chain, explanation, rule, status, willing};

const HTTP: &str = "tcp 10.0.0.1:1234 10.0.0.2:80";

/// Every command that asks a manager.
const ASKING: &[&str] = &[
    "status",
    "port list",
    "nf list",
    "nf stop 3",
    "nf call 3 hello",
    "service list",
    "service scale fw 2",
    "chain list",
    "chain show web",
    "chain add web --services fw",
    "chain set web --services fw",
    "chain remove web",
    "rule list",
    "rule add --priority 1 then drop",
    "rule remove 7",
    "flow list",
    "flow explain tcp 10.0.0.1:1234 10.0.0.2:80",
    "drops",
    "drops --interval 0.01",
    "stats --interval 0.01",
    "top --once --interval 0.01",
    "diff /dev/null",
    "apply /dev/null",
];

#[test]
fn what_there_is_to_see_is_shown() {
    let fake = Fake::new(willing());
    for (words, lines) in [
        ("status", &["millrace 9.9.9 (pid 4711)", "left  pcap", "web    fw ", " 3  fw "][..]),
        ("port list", &["PORT  BACKEND", "left  pcap"]),
        ("nf list", &["       3  fw       forward  running"]),
        ("service list", &[" 1  fw            1          3"]),
        ("chain list", &["web    fw        egress"]),
        ("chain show web", &["chain web (id 2)", "    0  fw               3"]),
        ("rule list", &[" 7      0       100  -     tp_dst=80  chain=web"]),
        ("rule list --limit 1", &["1 more; --limit shows them"]),
        ("flow list", &["tp_dst=80  -      7  chain=web     5    500  0.50 s", "1 of 90 flows"]),
        ("drops", &["service:1 (fw)  nf_drop", ": balanced"]),
        ("drops --interval 0.01", &["10 pps"]),
        ("stats --interval 0.01", &["1.00 kpps", "800.00 kbit/s", "service:1 (fw)  nf_drop"]),
    ] {
        let said = fake.run_words(words);
        for line in lines {
            assert!(said.text().contains(line), "{words}: {line:?} is missing in:\n{}", said.out);
        }
    }
}

#[test]
fn what_there_is_to_see_is_json_for_programs() {
    let fake = Fake::always(Reply::Status(Box::new(status(1))));
    let run = |words: &str| fake.run_words(&format!("{words} --json"));
    let status = status(1);
    assert_eq!(run("status").json::<Status>(), status);
    assert_eq!(run("port list").json::<Vec<PortStatus>>(), status.ports);
    assert_eq!(run("nf list").json::<Vec<NfStatus>>(), status.nfs);
    assert_eq!(run("service list").json::<Vec<ServiceStatus>>(), status.services);
    assert_eq!(run("chain list").json::<Vec<ChainStatus>>(), status.chains);
    assert_eq!(run("chain show web").json::<ChainStatus>(), status.chains[0]);
    assert_eq!(run("rule list").json::<Vec<RuleStatus>>(), status.rules);
    assert_eq!(run("rule list --table 1").json::<Vec<RuleStatus>>(), status.rules[1..]);
    assert_eq!(run("rule list --limit 1").json::<Vec<RuleStatus>>(), status.rules[..1]);
    assert_eq!(run("drops").json::<Vec<DropStatus>>(), status.drops);
}

#[test]
fn rates_are_json_for_programs() {
    let fake = Fake::new(willing());
    let rates: Rates = fake.run_words("stats --interval 0.01 --json").json();
    assert_eq!((rates.interval_s, rates.ports[0].rx_pps), (1.0, 1000.0));
    let drops: Vec<DropRate> = fake.run_words("drops --interval 0.01 --json").json();
    assert_eq!((drops[0].reason.as_str(), drops[0].pps), ("nf_drop", 10.0));
    let twice = fake.run_words("stats --interval 0.01 --watch 2 --json");
    assert_eq!(twice.text().lines().count(), 2);
}

#[test]
fn a_manager_that_started_anew_gives_no_rates() {
    let fake = Fake::always(Reply::Status(Box::new(status(1))));
    for words in ["stats --interval 0.01", "drops --interval 0.01"] {
        let said = fake.run_words(words);
        assert!(said.complaint(1).contains("started anew"), "{said:?}");
    }
}

/// Each command that changes something, and the edits it asks for.
fn changing() -> Vec<(&'static str, Vec<Edit>)> {
    let set = |chain, new| vec![Edit::SetChain { chain, new }];
    let mut branching = chain("web");
    branching.services.push(ServiceRef::Id(7));
    branching.end = "out:wan".into();
    branching.branches = [("bad", "scrub"), ("slow", "rest")]
        .map(|(name, chain)| (name.to_owned(), chain.to_owned()))
        .into();
    let mut empty = chain("pass");
    empty.services.clear();
    let mut full = rule(0).spec;
    full.name = Some("http".into());
    full.table = 1;
    full.idle_timeout_s = Some(30.0);
    full.hard_timeout_s = Some(0.5);
    let add = |rule| vec![Edit::AddRule { rule: Box::new(rule) }];
    vec![
        ("chain add web --services fw", set(chain("web"), true)),
        (
            "chain add web --services fw,7 --end out:wan --branch bad=scrub --branch slow=rest",
            set(branching, true),
        ),
        ("chain set pass --services=", set(empty, false)),
        ("chain remove web", vec![Edit::RemoveChain { name: "web".into() }]),
        ("rule add --priority 100 tp_dst=80 then chain=web", add(rule(0).spec)),
        (
            "rule add tp_dst=80 then chain=web --priority 100 --table 1 --name http \
             --idle-timeout 30 --hard-timeout 0.5",
            add(full),
        ),
        (
            "rule remove 7 http",
            vec![Edit::RemoveRule { id: 7 }, Edit::RemoveRuleNamed { name: "http".into() }],
        ),
        (
            "service scale fw 4",
            vec![Edit::Scale { service: ServiceRef::Name("fw".into()), instances: 4 }],
        ),
        ("service scale 7 0", vec![Edit::Scale { service: ServiceRef::Id(7), instances: 0 }]),
    ]
}

#[test]
fn a_change_is_asked_for_as_it_was_written_and_told_with_its_cost() {
    for (words, edits) in changing() {
        let fake = Fake::new(willing());
        assert_eq!(
            fake.run_words(words).text(),
            "+ chain web: fw; end egress\n\
             note: no rule leads into chain web\n\
             generation 5: 25.0 % of the flows moved, in force after 1.5 ms\n",
            "{words}"
        );
        assert_eq!(fake.asked(), [Request::Edit { edits }], "{words}");
        let json: Applied = fake.run_words(&format!("{words} --json")).json();
        assert_eq!(json, applied(), "{words}");
    }
}

#[test]
fn a_file_is_sent_as_text_and_what_it_changes_is_told() {
    let fake = Fake::new(willing());
    let path = fake.file("m.toml", "# a file\n");
    let request =
        |dry_run| Request::Apply { path: path.clone(), text: "# a file\n".into(), dry_run };
    let said = fake.run(&["apply", &path]);
    assert!(said.text().contains("+ chain web") && said.text().contains("in force after 1.5 ms"));
    for words in [&["diff", &path][..], &["apply", &path, "--dry-run"]] {
        let said = fake.run(words);
        assert!(said.text().ends_with("nothing was changed\n"), "{said:?}");
    }
    assert_eq!(fake.run(&["diff", &path, "--json"]).json::<Applied>(), applied());
    assert_eq!(fake.asked(), [false, true, true, true].map(request));
}

#[test]
fn a_file_that_cannot_be_read_or_is_too_long_is_named() {
    let fake = Fake::new(willing());
    for words in ["apply /nonexistent.toml", "diff /nonexistent.toml", "check /nonexistent.toml"] {
        let said = fake.run_words(words);
        assert!(said.complaint(1).contains("/nonexistent.toml: "), "{said:?}");
    }
    let long = fake.file("long.toml", &"#".repeat(nflib::control::MAX_REQUEST_BYTES));
    let said = fake.run(&["apply", &long]);
    assert!(said.complaint(1).contains("the manager accepts"), "{said:?}");
    assert_eq!(fake.asked(), []);
}

#[test]
fn an_nf_is_stopped_by_its_number() {
    let fake = Fake::new(willing());
    assert_eq!(fake.run_words("nf stop 3").text(), "instance 3 was told to leave\n");
    assert_eq!(fake.run_words("nf stop 3 --json").json::<Reply>(), Reply::Done);
    assert_eq!(fake.asked(), [Request::StopNf { instance: 3 }, Request::StopNf { instance: 3 }]);
}

#[test]
fn an_nf_is_called_by_number_or_service_with_the_words_joined() {
    let fake = Fake::new(willing());
    for (target, expected) in [
        ("3", Target::Instance(3)),
        ("fw", Target::Service(ServiceRef::Name("fw".into()))),
        ("service:1", Target::Service(ServiceRef::Id(1))),
    ] {
        let said = fake.run(&["nf", "call", target, "limit", "5"]);
        assert_eq!(said.text(), "3: limit 5\n");
        let request = Request::Call { target: expected, payload: b"limit 5".to_vec() };
        assert_eq!(fake.asked().pop(), Some(request));
    }
    let said = fake.run(&["nf", "call", "3", "--json", "--", "--set", "x"]);
    assert_eq!(said.text(), "{\"answers\":[[3,{\"Ok\":[45,45,115,101,116,32,120]}]]}\n");
}

#[test]
fn an_answer_that_is_a_refusal_is_shown_among_the_others_and_is_a_failure() {
    let answers = vec![(3, Ok(b"done".to_vec())), (4, Err("no such setting".to_owned()))];
    let fake = Fake::always(Reply::Called { answers });
    let said = fake.run_words("nf call fw limit 5");
    assert_eq!(said.out, "3: done\n4: error: no such setting\n");
    assert!(said.complaint(1).contains("1 of 2 instances refused"), "{said:?}");
}

#[test]
fn a_five_tuple_a_hex_string_and_a_capture_are_asked_about() {
    let fake = Fake::new(willing());
    let frame = || match fake.asked().pop() {
        Some(Request::Explain { in_port, frame }) => (in_port, frame),
        other => panic!("{other:?}"),
    };
    let said = fake.run_words(&format!("flow explain {HTTP}"));
    for line in ["table 0   rule 7 (priority 100): tp_dst=80 → chain=web", "end       out=right"]
    {
        assert!(said.text().contains(line), "{said:?}");
    }
    assert_eq!(frame().0, None);
    assert_eq!(Headers::parse(&frame().1).ports(), Some((1234, 80)));
    assert_eq!(fake.run(&["flow", "explain", HTTP, "--json"]).json::<Explanation>(), explanation());

    fake.run(&["flow", "explain", "--in", "left", "--hex", "02 00:ff"]).text();
    assert_eq!(frame(), (Some("left".into()), vec![2, 0, 0xff]));

    let mut capture =
        [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1].map(u32::to_le_bytes).concat();
    for byte in [1, 2] {
        capture.extend([0_u32, 0, 60, 60].map(u32::to_le_bytes).concat());
        capture.extend([byte; 60]);
    }
    let path = fake.file("two.pcap", "");
    std::fs::write(&path, capture).unwrap();
    fake.run(&["flow", "explain", "--pcap", &format!("{path}:2")]).text();
    assert_eq!(frame().1, [2; 60]);
    let said = fake.run(&["flow", "explain", "--pcap", &format!("{path}:3")]);
    assert!(said.complaint(1).contains("there is no frame 3; the file has 2"), "{said:?}");
}

#[test]
fn flows_are_listed_up_to_a_limit() {
    let fake = Fake::new(willing());
    let said = fake.run_words("flow list --limit 5 --json");
    let value: serde_json::Value = said.json();
    assert_eq!((&value["total"], &value["flows"][0]["pkts"]), (&90.into(), &5.into()));
    assert_eq!(fake.asked(), [Request::Flows { limit: 5 }]);
}

#[test]
fn every_refusal_is_one_line_and_exit_code_1() {
    let message = "there is no such\nthing; there are a, b".to_owned();
    let fake = Fake::always(Reply::Error(ErrorReply { code: ErrorCode::NotFound, message }));
    for words in ASKING {
        for words in [(*words).to_owned(), format!("{words} --json")] {
            let said = fake.run_words(&words);
            assert!(said.complaint(1).contains("there are a, b"), "{said:?}");
            assert_eq!(said.out, "", "{words}");
        }
    }
}

#[test]
fn without_a_manager_every_command_says_so_in_one_line() {
    let fake = Fake::away();
    for words in ASKING {
        let said = fake.run_words(words);
        let expected = format!("no manager at {}", fake.socket().display());
        assert!(said.complaint(1).contains(&expected), "{said:?}");
    }
}

#[test]
fn an_answer_to_another_question_and_a_peer_that_hangs_up_are_told() {
    let fake = Fake::always(Reply::Detached);
    for words in ASKING {
        let said = fake.run_words(words);
        assert!(said.complaint(1).contains("not a manager of this release"), "{said:?}");
    }
    let fake = Fake::new(|_| None);
    let said = fake.run_words("status");
    assert!(said.complaint(1).contains("closed the connection"), "{said:?}");
}

#[test]
fn a_chain_that_does_not_exist_is_told_which_do() {
    let fake = Fake::new(willing());
    let said = fake.run_words("chain show wbe");
    assert!(said.complaint(1).contains("there is no chain \"wbe\"; there are: web"), "{said:?}");
}

#[test]
fn bad_usage_is_one_line_with_exit_code_2_and_nobody_is_asked() {
    let fake = Fake::new(willing());
    for (words, expected) in [
        ("", "requires a subcommand"),
        ("chain", "requires a subcommand"),
        ("chian list", "'chian'"),
        ("chain lits", "list"),
        ("status --jsno", "--json"),
        ("rule add --priority 1 tp_dest=80 then drop", "did you mean tp_dst?"),
        ("rule add --priority 1 colour=red then drop", "millrace rule fields"),
        ("rule add --priority 1 tp_dst=80 drop", "no \"then\""),
        ("rule add --priority 1 tp_dst=80 then", "no action"),
        ("rule add --priority 1 then chain=a drop", "several actions"),
        ("rule add tp_dst=80 then drop", "--priority <P>"),
        ("rule add --priority 70000 then drop", "70000"),
        ("rule add --priority 1 --table 300 then drop", "300"),
        ("rule add --priority 1 --idle-timeout 0 then drop", "seconds above 0"),
        ("rule add --priority 1", "required"),
        ("rule remove", "<ID|NAME>"),
        ("rule list --limit many", "many"),
        ("chain add web", "--services"),
        ("chain add web --services fw,,nat", "missing between commas"),
        ("chain add web --services fw --branch bad", "expected NAME=CHAIN"),
        ("chain add web --services fw --branch a=b --branch a=c", "given twice"),
        ("chain show", "<NAME>"),
        ("service scale fw", "<N>"),
        ("service scale fw many", "many"),
        ("service scale fw -1", "-1"),
        ("nf stop fw", "fw"),
        ("nf call 3", "<PAYLOAD>"),
        ("nf call service: hello", "service:NAME"),
        ("flow explain", "<PROTO SRC DST>"),
        ("flow explain tcp 10.0.0.1:1", "3 words, not 2"),
        ("flow explain tpc 10.0.0.1:1 10.0.0.2:2", "expected tcp, udp"),
        ("flow explain tcp 10.0.0.1 10.0.0.2", "expected 10.0.0.1:80"),
        ("flow explain --hex 0g", "no hex digit"),
        ("flow explain --hex 00 --pcap x", "cannot be used with"),
        ("flow explain --hex 00 tcp 10.0.0.1:1 10.0.0.2:2", "cannot be used with"),
        ("drops --interval 0", "0.01 to 3600"),
        ("stats --interval never", "0.01 to 3600"),
        ("stats --watch often", "often"),
        ("top --view 5", "1..=4"),
        ("top", "needs a terminal"),
        ("check", "<FILE>"),
        ("diff", "<FILE>"),
        ("apply --dry-run", "<FILE>"),
        ("completions tcsh", "expected bash, zsh or fish"),
    ] {
        let said = fake.run_words(words);
        assert!(said.complaint(2).contains(expected), "{words}: {expected:?} is missing: {said:?}");
        assert_eq!(said.out, "", "{words}");
    }
    assert_eq!(fake.asked(), []);
}

#[test]
fn fields_help_and_version_need_no_manager() {
    let fake = Fake::away();
    let said = fake.run_words("rule fields");
    assert!(said.text().contains("tcp_flags=syn,!ack"), "{said:?}");
    let fields: serde_json::Value = fake.run_words("rule fields --json").json();
    assert_eq!(fields.as_array().unwrap().len(), nflib::control::MatchSpec::FIELDS.len());
    assert!(fake.run_words("--help").text().contains("Exit codes"));
    assert!(fake.run_words("rule add --help").text().contains("MATCH... then ACTION..."));
    assert!(fake.run_words("--version").text().starts_with("millrace "));
}

#[test]
fn a_configuration_is_checked_without_a_manager() {
    let fake = Fake::away();
    let port = "[[port]]\nname = \"s\"\nbackend = \"sink\"\n";
    let chain = "[[chain]]\nname = \"web\"\nservices = [\"fw\"]\nend = \"out:s\"\n";
    let good = fake.file("good.toml", &format!("{port}{chain}"));
    let said = fake.run(&["check", &good]);
    for line in [
        "good.toml: good\n",
        "ports     s\n",
        "service   fw: started by hand\n",
        "chain     web: fw; end out:s\n",
        "rules     0\n",
        "note: ",
    ] {
        assert!(said.text().contains(line), "{line:?} is missing in:\n{}", said.out);
    }
    let value: serde_json::Value = fake.run(&["check", &good, "--json"]).json();
    assert_eq!((&value["ports"][0], &value["chains"][0]["end"]), (&"s".into(), &"out:s".into()));
    assert_eq!(value["services"][0]["name"], "fw");
    let bad = fake.file("bad.toml", "[[port]]\nname = \"s\"\nbackend = \"snik\"\n");
    let said = fake.run(&["check", &bad]);
    assert!(said.complaint(1).contains("bad.toml:1: ") && said.err.contains("sink"), "{said:?}");
}

#[test]
fn a_reader_that_goes_away_is_no_fault() {
    let (gone, may_answer) = mpsc::channel::<()>();
    let may_answer = Mutex::new(may_answer);
    let fake = Fake::new(move |_| {
        may_answer.lock().unwrap().recv().unwrap();
        Some(Reply::Status(Box::new(status(1))))
    });
    let mut child = fake.command(&["status"]).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    gone.send(()).unwrap();
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!((child.wait().unwrap().code(), err.as_str()), (Some(0), ""));
}

#[test]
fn completions_know_every_command_and_are_sound() {
    let fake = Fake::away();
    for shell in ["bash", "zsh", "fish"] {
        let said = fake.run(&["completions", shell]);
        for word in ["explain", "idle-timeout", "scale"] {
            assert!(said.text().contains(word), "{shell}: {word}");
        }
    }
    let script = fake.file("millrace.bash", &fake.run_words("completions bash").out);
    let bash = std::process::Command::new("bash").args(["-n", &script]).status().unwrap();
    assert!(bash.success());
}

#[test]
fn every_command_has_its_manual_page() {
    let fake = Fake::away();
    assert!(fake.run_words("man").text().contains(".TH millrace 1"));
    let directory = fake.socket().with_file_name("man1");
    fake.run(&["man", "--dir", directory.to_str().unwrap()]).text();
    for page in ["millrace", "millrace-chain", "millrace-rule-add", "millrace-flow-explain"] {
        let text = std::fs::read_to_string(directory.join(format!("{page}.1"))).unwrap();
        assert!(text.contains(&format!(".TH {page} 1")), "{page}: {text}");
        assert!(text.contains("\\-\\-socket"), "{page}");
    }
    let pages = std::fs::read_dir(&directory).unwrap().count();
    // The leaves of ASKING, their nouns, and the rest.
    assert!(pages >= 30, "{pages} pages");
    let said = fake.run_words("man --dir /proc/nowhere");
    assert!(said.complaint(1).contains("/proc/nowhere"), "{said:?}");
}
