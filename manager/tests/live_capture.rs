//! Captures of a running manager with real NFs under traffic: every kind of place, filters, instances that
//! come later, and a reader that does not read.

#[path = "support/running.rs"]
mod running;
#[path = "support/skip.rs"]
mod skip;
#[path = "live_control/tables.rs"]
#[allow(dead_code)]
mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Output, Stdio};

use nflib::control::{
    self, CaptureRequest, CaptureStatus, Edit, MAX_REPLY_BYTES, Reply, Request, ServiceRef,
};
use running::{Manager, Process, assert_nothing_lost, nf_program, nfs_of, until};
use serde_json::Value;
use tables::{FEW_FLOWS, WAITING, chain, rule, service, traffic};

/// The firewall of a chain `web` denies the few flows; what it lets pass goes on to `tail`.
fn web() -> String {
    let firewall = format!(
        "[[service]]\nname = \"firewall\"\ninstances = 1\ncommand = [\"millrace-nf\", \"firewall\", \
         \"--log\", \"error\", \"--rule\", \"deny udp from {FEW_FLOWS} to any\"]\n"
    );
    let all = rule("all", 1, "eth_type = \"ipv4\"", "chain = \"web\"");
    [traffic(), firewall, service("tail", 1), chain("web", &["firewall", "tail"]), all].concat()
}

/// Runs `millrace ARGS…` to its end, which must be a good one.
#[track_caller]
fn millrace(manager: &Manager, arguments: &[&str]) -> String {
    let said = start(manager, arguments);
    let said = finish(said);
    assert!(said.status.success(), "{said:?}");
    String::from_utf8(said.stdout).unwrap()
}

fn start(manager: &Manager, arguments: &[&str]) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace"));
    command.arg("--socket").arg(manager.socket()).args(arguments);
    Process(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
}

/// What a process says until its end. It has room to say it: tests ask for little.
#[track_caller]
fn finish(mut process: Process) -> Output {
    use std::io::Read as _;
    let mut stdout = Vec::new();
    process.0.stdout.take().unwrap().read_to_end(&mut stdout).unwrap();
    process.exit_code();
    let stderr = process.complaint().into_bytes();
    Output { status: process.0.wait().unwrap(), stdout, stderr }
}

/// Packets as `capture --json` prints them.
#[track_caller]
fn packets(manager: &Manager, arguments: &[&str]) -> Vec<Value> {
    let out = millrace(manager, &[&["capture", "--json"], arguments].concat());
    out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Captures until what was seen suffices, then ends it by a signal.
#[track_caller]
fn packets_until(manager: &Manager, at: &[&str], enough: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    use std::io::{BufRead as _, BufReader};
    let mut capture = start(manager, &[&["capture", "--json", "--at"], at].concat());
    let lines = BufReader::new(capture.0.stdout.take().unwrap()).lines();
    let mut seen = Vec::new();
    let mut told = false;
    for line in lines {
        seen.push(serde_json::from_str(&line.unwrap()).unwrap());
        if !told && seen.len().is_multiple_of(100) && enough(&seen) {
            capture.signal(nix::sys::signal::Signal::SIGINT);
            told = true;
        }
        assert!(seen.len() < 1_000_000, "there is never enough");
    }
    assert_eq!(capture.exit_code(), Some(0), "{}", capture.complaint());
    seen
}

fn text<'a>(packet: &'a Value, key: &str) -> &'a str {
    packet[key].as_str().unwrap_or_default()
}

fn is_of_few(packet: &Value) -> bool {
    let source: std::net::Ipv4Addr = packet["key"]["ip_src"].as_str().unwrap().parse().unwrap();
    source.octets()[..3] == [198, 18, 0] && source.octets()[3] < 8
}

#[test]
fn packets_are_seen_at_every_place_of_their_way_with_what_became_of_them() {
    let Some(_) = nf_program() else { return };
    let slow = web().replace("rate_pps = 10000", "rate_pps = 300");
    let manager = Manager::start(WAITING, &slow);
    let status = manager.settled(&[("firewall", 1), ("tail", 1)]);
    let instance = |service| nfs_of(&status, service).next().unwrap().instance;
    let (firewall, tail) = (instance("firewall"), instance("tail"));
    let at = [
        "port:in:in",
        "ring:manager:firewall",
        "nf:firewall",
        "ring:firewall:tail",
        "nf:tail:out",
        "ring:tail:manager",
        "port:out:out",
        "drop",
    ];
    let expected = [
        "drop:firewall:nf_drop".to_owned(),
        format!("nf:firewall#{firewall}"),
        format!("nf:tail#{tail}"),
        "port:in".to_owned(),
        "port:out".to_owned(),
        format!("ring:firewall#{firewall}:tail#{tail}"),
        format!("ring:manager:firewall#{firewall}"),
        format!("ring:tail#{tail}:manager"),
    ];
    let mut seen = packets_until(&manager, &at, |seen| {
        // NFs begin later than workers: until there is enough of all.
        let at_place = |place: &String| seen.iter().filter(|p| text(p, "place") == place).count();
        expected.iter().all(|place| at_place(place) >= 20)
    });
    // Of packets that came in before the capture began it is not known where.
    let mut came = BTreeSet::new();
    seen.retain(|packet| {
        let buffer = text(packet, "buffer").to_owned();
        if text(packet, "place") == "port:in" {
            came.insert(buffer);
            return true;
        }
        !text(packet, "in").is_empty() || came.contains(&buffer)
    });
    let mut by_place: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for packet in &seen {
        by_place.entry(text(packet, "place")).or_default().push(packet);
    }
    assert_eq!(by_place.keys().copied().collect::<Vec<_>>(), expected);
    for (place, packets) in &by_place {
        for packet in packets {
            assert_eq!(text(packet, "in"), "in", "{packet}");
            assert_eq!(text(packet, "chain"), "web", "{packet}");
            assert!(packet["len_bytes"] == 60 && packet["kept_bytes"] == 60, "{packet}");
            let passes = place.contains("tail") || *place == "port:out";
            assert!(!passes || !is_of_few(packet), "{packet}");
        }
    }
    for packet in &by_place["drop:firewall:nf_drop"] {
        let about = ["action", "reason", "service"].map(|key| text(packet, key));
        assert_eq!(about, ["drop", "nf_drop", "firewall"]);
        assert!(is_of_few(packet));
    }
    let decided = by_place[&*expected[1]].iter().filter(|packet| packet["direction"] == "out");
    for packet in decided {
        assert_eq!(text(packet, "action"), if is_of_few(packet) { "drop" } else { "next" });
        assert_eq!((text(packet, "hop"), text(packet, "instance")), ("0", &*firewall.to_string()));
    }
    assert!(by_place[&*expected[5]].iter().all(|packet| text(packet, "hop") == "1"));

    until("the capture is over", || under_way(&manager).is_empty().then_some(()));
    manager.stop();
}

#[test]
fn only_packets_that_pass_the_filter_are_captured_and_only_their_first_bytes() {
    let Some(_) = nf_program() else { return };
    let manager = Manager::start(WAITING, &web());
    manager.settled(&[("firewall", 1), ("tail", 1)]);
    for at in ["port:in", "nf:firewall:in", "drop:firewall"] {
        let filter = ["--filter", "udp and src host 198.18.0.5 and ip[8] > 1"];
        let words = [&["--at", at, "--count", "20", "--snap", "50"], &filter[..]].concat();
        let seen = packets(&manager, &words);
        let sources: BTreeSet<_> = seen.iter().map(|p| p["key"]["ip_src"].to_string()).collect();
        assert_eq!(sources, BTreeSet::from(["\"198.18.0.5\"".to_owned()]), "{at}");
        assert!(seen.iter().all(|p| p["kept_bytes"] == 50 && p["len_bytes"] == 60), "{at}");
    }
    let none = ["--at", "nf:firewall", "--filter", "tcp", "--seconds", "0.2"];
    assert!(packets(&manager, &none).is_empty());
    manager.stop();
}

fn under_way(manager: &Manager) -> Vec<CaptureStatus> {
    match manager.ask(&Request::Captures) {
        Reply::Captures { captures } => captures,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_instance_that_comes_while_a_capture_runs_is_captured_too() {
    let Some(_) = nf_program() else { return };
    let manager = Manager::start(WAITING, &web());
    manager.settled(&[("firewall", 1), ("tail", 1)]);
    let file = manager.path("tail.pcapng");
    let arguments = ["capture", "--at", "nf:tail:in", "-w", file.to_str().unwrap()];
    let capture = start(&manager, &arguments);
    until("packets are captured", || under_way(&manager).first().filter(|c| c.pkts > 0).cloned());
    let before = manager.settled(&[("tail", 1)]);
    let scale = Edit::Scale { service: ServiceRef::Name("tail".into()), instances: 2 };
    manager.edit(vec![scale]).unwrap();
    let after = manager.settled(&[("tail", 2)]);
    let all: Vec<_> = nfs_of(&after, "tail").map(|nf| format!("nf:tail#{}", nf.instance)).collect();
    assert_eq!((nfs_of(&before, "tail").count(), all.len()), (1, 2));
    let names = || {
        let file = std::fs::read(&file).unwrap();
        let has = |name: &String| file.windows(name.len()).any(|part| part == name.as_bytes());
        all.iter().all(has).then_some(())
    };
    until("both are in the file", names);
    capture.signal(nix::sys::signal::Signal::SIGINT);
    let said = finish(capture);
    assert!(said.status.success(), "{said:?}");
    manager.stop();
}

#[test]
fn a_reader_that_reads_nothing_loses_its_capture_and_no_packet() {
    let Some(_) = nf_program() else { return };
    let nothing_denied = web().replace("deny udp", "deny tcp");
    let manager = Manager::start(WAITING, &nothing_denied);
    manager.settled(&[("firewall", 1), ("tail", 1)]);
    let socket = manager.connect();
    let at = ["port:in", "nf:firewall", "ring:firewall:tail", "port:out"].map(str::to_owned);
    let request = CaptureRequest { at: at.to_vec(), ..CaptureRequest::default() };
    control::send(&socket, &Request::Capture(request), &[]).unwrap();
    let (reply, pipe) = control::recv::<Reply>(&socket, MAX_REPLY_BYTES).unwrap();
    assert!(matches!(reply, Reply::Capturing { .. }) && pipe.len() == 1, "{reply:?}");
    let full = until("the pipe is full", || {
        under_way(&manager).into_iter().find(|capture| capture.lost_pkts > 1000)
    });
    assert!(full.pkts > 1000, "{full:?}");
    let status = manager.status();
    assert_nothing_lost(&status, &["out"]);
    drop(pipe);
    until("the manager has noticed", || under_way(&manager).is_empty().then_some(()));
    // And packets go on as before.
    let sent = running::verified(&status, "out", "good");
    until("more came", || {
        (running::verified(&manager.status(), "out", "good") > sent + 1000).then_some(())
    });
    assert_nothing_lost(&manager.status(), &["out"]);
    manager.stop();
}

#[test]
fn captures_end_with_their_manager() {
    let Some(_) = nf_program() else { return };
    let manager = Manager::start(WAITING, &web());
    manager.settled(&[("firewall", 1), ("tail", 1)]);
    let file = manager.path("out.pcapng");
    let file_name = file.to_str().unwrap().to_owned();
    let capture = start(&manager, &["capture", "--at", "port:in", "-w", &file_name]);
    until("packets are captured", || under_way(&manager).first().filter(|c| c.pkts > 0).cloned());
    let kept = std::fs::File::open(&file).unwrap();
    manager.stop();
    let said = finish(capture);
    let told = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(told.contains(" packets captured, "), "{told}");
    assert!(kept.metadata().unwrap().len() > 1000);
}
