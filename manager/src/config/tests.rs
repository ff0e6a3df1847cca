//! Whole files: what is read, and what each mistake is called.
#![forbid(unsafe_code)]

use proptest::prelude::*;

use super::*;
use crate::flow::Then;
use crate::model::{End, Unmatched};

const GOOD: &str = r#"
    [manager]
    socket = "/tmp/x.sock"
    [[port]]
    name = "in"
    backend = "generator"
    egress = "out"
    [[port]]
    name = "out"
    backend = "sink"
    [[chain]]
    name = "default"
    services = [1, 2]
"#;

fn error_of(text: &str) -> String {
    let text = Config::parse(text, Path::new("m.toml")).unwrap_err().to_string();
    assert!(!text.contains('\n'), "an error is one line: {text}");
    assert!(text.starts_with("m.toml"), "an error names the file: {text}");
    text
}

#[test]
fn a_good_file_resolves_its_names() {
    let config = Config::parse(GOOD, Path::new("m.toml")).unwrap();
    assert_eq!(config.ports[0].egress, Some(1));
    let chain = config.model.default_chain().unwrap();
    assert_eq!((&chain.services[..], chain.end), (&[1, 2][..], End::Egress));
    assert_eq!(config.model.unmatched(), Unmatched::Chain(chain.id));
    assert!(config.notes.is_empty() && !config.manager.wait_for_nfs);
    assert_eq!(config.pool.buffers, 16_384);
}

#[test]
fn a_core_is_one_workers_and_nfs_join_it_only_where_the_worker_rests() {
    let core = crate::supervisor::CoreMap::of_this_thread().usable().first().copied().unwrap();
    let twice = format!("[manager]\nworkers = 2\ncores = [{core}, {core}]");
    let error = error_of(&GOOD.replace("[manager]", &twice));
    assert!(error.contains(&format!("two workers would run on core {core}")), "{error}");

    let with = |poll: &str| {
        let manager = format!("[manager]\ncores = [{core}]\npoll = {poll:?}");
        let service = format!("[[service]]\nname = \"fw\"\ncommand = [\"x\"]\ncores = [{core}]\n");
        let chain = format!("{service}[[chain]]");
        GOOD.replace("[manager]", &manager)
            .replace("[[chain]]", &chain)
            .replace("[1, 2]", "[\"fw\"]")
    };
    let error = error_of(&with("busy"));
    assert!(error.contains("worker 0's alone") && error.starts_with("m.toml:13:"), "{error}");
    let notes = Config::parse(&with("adaptive"), Path::new("m.toml")).unwrap().notes;
    assert_eq!(notes, [format!("service \"fw\" shares core {core} with worker 0")]);
}

#[test]
fn an_unknown_key_is_named_with_its_line() {
    let error = error_of("[manager]\nsockte = \"x\"\n");
    assert!(error.starts_with("m.toml:2:") && error.contains("sockte"), "{error}");
    let error = error_of(&GOOD.replace("egress", "egrees"));
    assert!(error.contains("port \"in\"") && error.contains("egrees"), "{error}");
}

#[test]
fn each_mistake_says_what_was_expected() {
    for (from, to, expected) in [
        ("egress = \"out\"", "egress = \"nope\"", "there are in, out"),
        ("\"generator\"", "\"genrator\"", "expected one of af_xdp"),
        ("name = \"out\"", "name = \"in\"", "names must differ"),
        ("name = \"in\"", "", "add name"),
        ("[manager]", "[manager]\nworkers = 0", "at least 1"),
        ("[manager]", "[manager]\ncores = [0, 0]", "give one each"),
        ("[manager]", "[manager]\ncores = [4000]", "no core 4000"),
        ("[manager]", "[manager]\nquantum_pkts = 8", "expected 32 to 4096"),
        ("[manager]", "[manager]\nquantum_pkts = 4097", "expected 32 to 4096"),
        ("[manager]", "[manager]\nring_capacity = 100", "power of two"),
        ("[manager]", "[manager]\nflow_cache = 4294967295", "at most 67108864"),
        ("[manager]", "[manager]\nlatency_interval_us = 49", "expected 0 (off) or at least 50"),
        ("[manager]", "[manager]\nlatency_interval_us = -1", "u32"),
        ("[manager]", "[pool]\nbuffers = 3\n[manager]", "at least 64"),
        ("[manager]", "[pool]\nbuffer_bytes = 100\n[manager]", "multiple of 64"),
        ("[manager]", "[pool]\nhugepages = \"maybe\"\n[manager]", "maybe"),
        ("services = [1, 2]", "services = [70000]", "chain \"default\""),
        ("services = [1, 2]", "services = [65535]", "1 to 65534"),
    ] {
        let error = error_of(&GOOD.replacen(from, to, 1));
        assert!(error.contains(expected), "{to}: {error}");
    }
    assert!(error_of("").contains("at least one"));
}

/// Two services, two chains, a rule each; what stands where is counted below.
const FLOWS: &str = r#"[[port]]
name = "lan"
backend = "sink"
egress = "wan"
[[port]]
name = "wan"
backend = "sink"
egress = "lan"
[[service]]
name = "fw"
command = ["millrace-nf", "firewall"]
[[service]]
name = "nat"
id = 7
[[chain]]
name = "default"
services = ["fw", 7]
[[chain]]
name = "web"
services = ["nat"]
end = "out:wan"
branches = { alarm = "default" }
[[rule]]
name = "http"
priority = 10
match = { ip_proto = "tcp", tp_dst = 80 }
then = { chain = "web" }
[[rule]]
match = { in_port = "lan" }
then = { out = "wan" }
"#;

fn model_of(text: &str) -> Model {
    Config::parse(text, Path::new("m.toml")).unwrap().model
}

#[test]
fn services_chains_and_rules_are_resolved() {
    let model = model_of(FLOWS);
    assert_eq!(model.default_chain().unwrap().services, [1, 7]);
    let web = model.chain_named("web").unwrap();
    assert_eq!((web.end, web.services.as_slice()), (End::Out(1), &[7][..]));
    let alarm = nflib::BranchId::new("alarm").0;
    assert_eq!(web.branches[&alarm], model.default_chain().unwrap().id);
    let rules: Vec<_> = model.rules().map(|rule| (rule.label(), rule.entry.then)).collect();
    let unnamed = ("0/0 in_port=lan".to_owned(), Then::Out(1));
    assert_eq!(rules, [("http".to_owned(), Then::Chain(web.id)), unnamed]);
    assert_eq!(model.services_in_chains(), [1, 7].into());
}

#[test]
fn each_mistake_in_services_chains_and_rules_is_named_with_its_line() {
    let long = format!("services = [{}]", "7, ".repeat(255));
    let many = format!("{}[[service]]", "[[service]]\nname = \"x\"\n".repeat(65_534));
    for (from, to, line, expected) in [
        ("name = \"nat\"", "name = \"fw\"", 12, "two services are named \"fw\""),
        ("name = \"nat\"", "name = \"a b\"", 12, "a name is 1 to 64 of"),
        ("name = \"nat\"", "name = \"9\"", 12, "choose a word"),
        (
            "id = 7",
            "id = 1\n[[service]]\nname = \"x\"\nid = 1",
            15,
            "\"nat\" and \"x\" have the same id 1",
        ),
        ("id = 7", "id = 0", 12, "expected 1 to 65534"),
        ("id = 7", "id = 65536", 12, "service \"nat\": invalid value"),
        ("id = 7", "isolate = true", 12, "service \"nat\": unknown field `isolate`"),
        ("name = \"nat\"\nid = 7", "id = 7", 12, "[[service]]: missing field `name`"),
        ("[[service]]", &many, 11, "65536 services, at most 65534"),
        ("[\"millrace-nf\", \"firewall\"]", "[]", 9, "command is empty"),
        ("[\"millrace-nf\", \"firewall\"]", "[\"x\"]\ninstances = 1001", 9, "at most 1000"),
        ("[\"millrace-nf\", \"firewall\"]", "[\"x\"]\ncores = [0, 4000]", 9, "no core 4000"),
        ("[\"millrace-nf\", \"firewall\"]", "[\"x\"]\nweight = 0", 9, "expected 1 to 100"),
        (
            "[\"millrace-nf\", \"firewall\"]",
            "[\"x\"]\ncores = [0]\nown_core = true",
            9,
            "leave out cores",
        ),
        (
            "[\"millrace-nf\", \"firewall\"]",
            "[\"x\"]\nuser = \"mrm-nobody\"",
            9,
            "no user \"mrm-nobody\"",
        ),
        ("[\"millrace-nf\", \"firewall\"]", "[\"x\"]\nuser = \"4294967290\"", 9, "no user"),
        (
            "[\"millrace-nf\", \"firewall\"]",
            "[\"x\"]\npacket_limit = 0",
            9,
            "packet_limit: expected 1",
        ),
        (
            "[\"millrace-nf\", \"firewall\"]",
            "[\"x\"]\ntime_limit_s = 0.0",
            9,
            "expected more than 0",
        ),
        (
            "[\"millrace-nf\", \"firewall\"]",
            "[\"x\"]\ntime_limit_s = nan",
            9,
            "expected more than 0",
        ),
        (
            "[\"millrace-nf\", \"firewall\"]",
            "[\"x\"]\ntime_limit_s = inf",
            9,
            "expected more than 0",
        ),
        ("name = \"web\"", "name = \"default\"", 18, "two chains are named \"default\""),
        ("name = \"web\"", "name = \"\"", 18, "a name is 1 to 64"),
        (
            "[\"nat\"]",
            "[\"nta\"]",
            18,
            "chain \"web\": there is no service \"nta\"; there are fw, nat",
        ),
        ("[\"nat\"]", "[8]", 18, "no service with id 8; there are fw, nat"),
        ("services = [\"nat\"]", &long, 18, "services has 255 entries, at most 254"),
        ("\"out:wan\"", "\"out:wna\"", 18, "no port \"wna\"; there are lan, wan"),
        ("\"out:wan\"", "\"chain:x\"", 18, "no chain \"x\"; there are default, web"),
        ("\"out:wan\"", "\"chain:web\"", 18, "web → web"),
        ("\"out:wan\"", "\"exit\"", 18, "expected egress, ingress, drop, out:PORT or chain:NAME"),
        ("alarm = \"default\"", "alarm = \"x\"", 18, "branch \"alarm\": there is no chain \"x\""),
        ("alarm = \"default\"", "\"a.b\" = \"web\"", 18, "branch \"a.b\": a branch's name"),
        ("alarm = \"default\"", "\"a.b\" = 1", 18, "chain \"web\": invalid type"),
        ("chain = \"web\"", "chain = \"wbe\"", 23, "rule \"http\": there is no chain \"wbe\""),
        ("chain = \"web\"", "out = \"wna\"", 23, "rule \"http\": there is no port \"wna\""),
        ("chain = \"web\"", "", 23, "then says nothing"),
        ("chain = \"web\"", "drop = false", 23, "then says nothing"),
        (
            "chain = \"web\"",
            "chain = \"web\", drop = true",
            23,
            "more than one thing (chain=web drop)",
        ),
        ("chain = \"web\"", "goto = 0", 23, "only goes on to a higher table"),
        ("chain = \"web\"", "chain = \"web\", set_metadata = 1", 23, "add goto"),
        ("chain = \"web\"", "goto = 1, set_metadata = \"1/2\"", 23, "its mask has not"),
        ("chain = \"web\"", "goto = 1, set_metadata = \"x\"", 23, "a number of 64 bits"),
        ("priority = 10", "priority = 65536", 23, "rule \"http\": invalid value"),
        ("priority = 10", "idle_timeout_s = 0.0005", 23, "expected 0.001 to"),
        ("priority = 10", "hard_timeout_s = inf", 23, "expected 0.001 to"),
        ("priority = 10", "hard_timeout_s = nan", 23, "expected 0.001 to"),
        ("name = \"http\"", "name = \"80\"", 23, "choose a word"),
        (
            "in_port = \"lan\"",
            "in_port = \"dmz\"",
            28,
            "rule 0/0 in_port=dmz: there is no port \"dmz\"; there are lan, wan",
        ),
        (
            "{ in_port = \"lan\" }",
            "{ tp_dst = 80, ip_proto = \"tcp\" }\npriority = 10",
            28,
            "stand there already, as rule http",
        ),
        (
            "match = { in_port",
            "name = \"http\"\nmatch = { in_port",
            28,
            "two rules are named \"http\"",
        ),
        ("in_port", "inport", 28, "unknown field `inport`"),
    ] {
        let text = FLOWS.replacen(from, to, 1);
        assert_ne!(text, FLOWS, "{from}");
        let error = error_of(&text);
        assert!(error.contains(expected), "{to}: {error}");
        assert!(error.starts_with(&format!("m.toml:{line}: ")) || to == many, "{to}: {error}");
    }
}

#[test]
fn the_former_table_chain_is_answered_with_the_new_one() {
    let old = "[manager]\n[[port]]\nname = \"p\"\nbackend = \"sink\"\n[chain]\nservices = [1]\n";
    let error = error_of(old);
    assert!(
        error.starts_with("m.toml:5: ") && error.contains("write [[chain]] with name"),
        "{error}"
    );
}

#[test]
fn chains_may_be_many_and_long_but_not_without_end() {
    let ports = "[[port]]\nname = \"p\"\nbackend = \"sink\"\n";
    let chains = |count: usize| -> String {
        (0..count)
            .map(|n| format!("[[chain]]\nname = \"c{n}\"\nservices = [{}]\n", n + 1))
            .collect()
    };
    let model = model_of(&format!("{ports}{}", chains(16_384)));
    assert_eq!((model.chains().len(), model.services().len()), (16_384, 16_384));
    assert!(model.chains().all(|chain| chain.id < 16_384));
    let error = error_of(&format!("{ports}{}", chains(16_385)));
    assert!(error.contains("16385 chains, at most 16384"), "{error}");
    let long = "7, ".repeat(254);
    let one = model_of(&format!("{ports}[[chain]]\nname = \"l\"\nservices = [{long}]\n"));
    assert_eq!(one.chain_named("l").unwrap().services.len(), 254);
    // A long loop is told in one line.
    let looped: String = (0..5000)
        .map(|n| format!("[[chain]]\nname = \"c{n}\"\nend = \"chain:c{}\"\n", (n + 1) % 5000))
        .collect();
    let error = error_of(&format!("{ports}{looped}"));
    assert!(error.contains("c0 → c1 →") && error.ends_with("another end"), "{error}");
}

#[test]
fn branches_that_would_be_one_are_refused() {
    use nflib::BranchId;
    let mut seen = std::collections::HashMap::new();
    let (a, b) = (0..)
        .map(|n| format!("b{n}"))
        .find_map(|name| Some((seen.insert(BranchId::new(&name), name.clone())?, name)))
        .unwrap();
    let both = format!("{a} = \"default\", {b} = \"default\"");
    let error = error_of(&FLOWS.replace("alarm = \"default\"", &both));
    assert!(error.contains("have the same number") && error.contains(&b), "{error}");
}

#[test]
fn a_file_without_default_chain_says_what_is_dropped() {
    let notes = |text: &str| Config::parse(text, Path::new("m.toml")).unwrap().notes;
    assert_eq!(notes(FLOWS), [""; 0]);
    let text = FLOWS.replace("\"default\"", "\"rest\"");
    let said = notes(&text);
    assert!(said[0].contains("no chain \"default\"") && said[0].contains("no_rule"), "{said:?}");
    let text = FLOWS.replace("[\"fw\", 7]", "[7]").replace("id = 7", "id = 7\ninstances = 4");
    let said = notes(&text);
    assert!(said[0].contains("\"fw\" is in no chain"), "{said:?}");
    assert!(
        said[1].contains("\"nat\" has no command") && said[1].contains("instances"),
        "{said:?}"
    );
}

#[test]
fn what_only_counts_at_start_is_named_by_its_key() {
    let running = Config::parse(GOOD, Path::new("m.toml")).unwrap();
    let after = |text: &str| {
        let next = Config::parse_after(text, Path::new("m.toml"), Some(&running.model)).unwrap();
        next.needs_restart(&running)
    };
    let source = "backend = \"generator\"";
    for (from, to, expected) in [
        (
            "[manager]",
            "[manager]\nworkers = 2",
            "needs a restart: manager.workers (millrace down, then up)",
        ),
        (
            "[manager]",
            "[manager]\nwait_for_nfs = true\npoll = \"busy\"",
            "manager.poll, manager.wait_for_nfs",
        ),
        ("[manager]", "[pool]\nbuffers = 1024\n[manager]", "pool.buffers"),
        (source, "backend = \"sink\"", "port \"in\": backend"),
        (
            source,
            "backend = \"generator\"\nflows = 9\nseed = 4",
            "port \"in\": flows, port \"in\": seed",
        ),
        ("egress = \"out\"", "", "port \"in\": egress"),
        ("egress = \"out\"", "egress = \"out\"\n[port.fault]\nloss = 0.5", "port \"in\": fault"),
        (
            "name = \"out\"\n    backend = \"sink\"",
            "name = \"out\"\nbackend = \"sink\"\n[[port]]\nname = \"x\"\nbackend = \"sink\"",
            "port \"x\" is new",
        ),
    ] {
        let text = GOOD.replacen(from, to, 1);
        assert_ne!(text, GOOD, "{from}");
        let said = after(&text).unwrap_or_default();
        assert!(said.contains(expected), "{to}: {said}");
    }
    // A default written out is no difference, and services, chains and rules never need a restart.
    let live =
        GOOD.replace("services = [1, 2]", "services = [3]\n[[rule]]\nthen = { drop = true }");
    let live = live.replace("[manager]", "[manager]\nworkers = 1");
    assert_eq!(after(&live), None);
}

/// What fuzzing starts from must reach beyond the first error.
#[test]
fn the_seeds_of_the_fuzz_target_are_whole_files() {
    for seed in [
        include_str!("../../../fuzz/seeds/config/chains.toml"),
        include_str!("../../../fuzz/seeds/config/all_backends.toml"),
    ] {
        assert!(model_of(seed).rule_count() >= 2);
    }
}

/// The reference for people is read by this test, too.
#[test]
fn the_reference_has_a_file_that_is_right_and_names_every_key() {
    let reference = include_str!("../../CONFIG.md");
    let example = reference.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next());
    let config = Config::parse(example.unwrap(), Path::new("CONFIG.md")).unwrap();
    assert_eq!(config.notes.len(), 1, "as the text says: {:?}", config.notes);
    assert!(config.notes[0].contains("rules http and http-back overlap"), "{:?}", config.notes);
    let mut keys: Vec<_> = nflib::control::MatchSpec::FIELDS.to_vec();
    // What serde would take, it says when it meets what it does not know.
    for (table, below) in [
        ("[manager]", "[manager]\nx = 1"),
        ("[pool]", "[pool]\nx = 1"),
        ("[[service]]", "[[service]]\nname = \"x\"\nx = 1"),
        ("[[chain]]", "[[chain]]\nname = \"x\"\nx = 1"),
        ("[[rule]]", "[[rule]]\nx = 1"),
        ("then", "[[rule]]\nthen = { x = 1 }"),
    ] {
        let error = error_of(below);
        let known =
            error.split("expected one of ").nth(1).unwrap_or_else(|| panic!("{table}: {error}"));
        let names: Vec<_> = known.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        assert!(names.len() >= 4, "{table}: {error}");
        keys.extend(names.into_iter().map(|name| &*name.leak()));
    }
    for key in keys {
        let said = [format!("`{key}`"), format!("`{key} = ")].iter().any(|s| reference.contains(s));
        assert!(said, "{key} is not in CONFIG.md");
    }
}

proptest! {
    #[test]
    fn a_file_with_holes_and_foreign_bits_is_read_or_refused_in_one_line(
        cuts in prop::collection::vec((0_usize..800, 0_usize..12, "\\PC{0,4}|[\\[\\]{}=\",.\n0-9]{0,4}"), 0..4),
        source in prop::sample::select(vec![FLOWS, GOOD]),
    ) {
        let mut chars: Vec<_> = source.chars().collect();
        for (at, len, put) in cuts {
            let at = at.min(chars.len());
            let end = (at + len).min(chars.len());
            chars.splice(at..end, put.chars());
        }
        let text: String = chars.into_iter().collect();
        match Config::parse(&text, Path::new("m.toml")) {
            Ok(config) => prop_assert!(config.notes.iter().all(|note| !note.contains('\n'))),
            Err(error) => prop_assert!(!error.to_string().contains('\n'), "{}", error),
        }
    }
}
