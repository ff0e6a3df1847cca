//! `millrace capture` and Wireshark's extcap against the real captures of a manager, fed with made events:
//! what is printed and written, what `tshark` makes of it, and how it ends.

#[path = "support/skip.rs"]
mod skip;
#[path = "capture/stage.rs"]
mod stage;

use std::io::{Read as _, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use millrace::ports::pcap::Capture;
use nflib::control::{CapturePoint, CaptureStatus};
use stage::{Stage, ended, text, until};

/// User and group that may do nothing.
const NOBODY: u32 = 65_534;

/// Whether tshark is here; says so if it is not.
fn has_tshark() -> bool {
    let found = Command::new("tshark").arg("--version").output().is_ok();
    if !found {
        skip::skip("tshark is not installed (apt-get install tshark)");
    }
    found
}

/// What tshark says to a file; it must have nothing to complain about.
fn tshark(file: &Path, arguments: &[&str]) -> String {
    let said = Command::new("tshark").arg("-r").arg(file).args(arguments).output().unwrap();
    let (out, err) = (text(&said.stdout), text(&said.stderr));
    let complaints: Vec<_> = err.lines().filter(|line| !line.starts_with("Running as")).collect();
    assert!(said.status.success() && complaints.is_empty(), "{err}");
    out
}

fn complaint(said: &Output, code: i32) -> String {
    assert_eq!(said.status.code(), Some(code), "{said:?}");
    let err = text(&said.stderr);
    assert_eq!(err.lines().count(), 1, "{err}");
    assert!(err.starts_with("millrace: "), "{err}");
    err
}

#[test]
fn packets_are_printed_a_line_each() {
    let stage = Stage::new();
    stage.send(true);
    let said = stage.run(&["capture", "--at", "nf:firewall", "drop", "--count", "4"]);
    assert!(said.status.success(), "{said:?}");
    let out = text(&said.stdout);
    let tail: Vec<_> = out.lines().map(|line| &line["00:00:00.000000 ".len()..]).collect();
    let flow = "tcp 10.0.0.1:1234 → 10.0.0.2:80  60 bytes";
    assert_eq!(
        tail,
        [
            format!("nf:firewall#3 in  {flow}  chain=web from=manager hop=0 in=lan"),
            format!("nf:firewall#3 out  {flow}  action=drop chain=web hop=0 in=lan"),
            format!(
                "drop:firewall:nf_drop  {flow}  action=drop chain=web in=lan reason=nf_drop \
                 service=firewall"
            ),
            format!("nf:firewall#3 in  {flow}  chain=web from=manager hop=0 in=lan"),
        ]
    );
    assert_eq!(text(&said.stderr), "4 packets captured, 0 lost\n");
}

#[test]
fn packets_are_objects_for_programs() {
    let stage = Stage::new();
    stage.send(true);
    let said = stage.run(&["capture", "--at", "port:lan:in", "--count", "1", "--json"]);
    let value: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(value["place"], "port:lan");
    assert_eq!(value["key"]["ip_src"], "10.0.0.1");
}

#[test]
fn a_file_is_one_that_tshark_reads_with_places_chains_verdicts_and_reasons() {
    if !has_tshark() {
        return;
    }
    let stage = Stage::new();
    stage.send(true);
    let file = stage.path("out.pcapng");
    let name = file.to_str().unwrap();
    let at = ["capture", "--at", "port:lan", "nf:firewall", "drop", "--filter", "tcp port 80"];
    let said = stage.run(&[&at[..], &["-w", name, "--count", "400"]].concat());
    assert_eq!(text(&said.stderr), "400 packets captured, 0 lost\n");
    assert!(said.status.success() && said.stdout.is_empty());

    let fields = ["frame.interface_name", "frame.packet_flags_direction", "frame.comment"];
    let fields = fields.map(|field| ["-e", field]).concat();
    let out = tshark(&file, &[&["-Tfields", "-c", "4"], &fields[..]].concat());
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(
        lines,
        [
            "port:lan\t0x00000001\tchain=web in=lan buffer=5 flow=00000abc",
            "nf:firewall#3\t0x00000001\tchain=web hop=0 from=manager instance=3 in=lan buffer=5 \
             flow=00000abc",
            "nf:firewall#3\t0x00000002\tchain=web hop=0 action=drop instance=3 in=lan buffer=5 \
             flow=00000abc",
            "drop:firewall:nf_drop\t\tchain=web action=drop reason=nf_drop service=firewall in=lan \
             buffer=5 flow=00000abc",
        ]
    );
    let dropped = tshark(&file, &["-Y", "frame.comment contains \"reason=nf_drop\""]);
    assert_eq!(dropped.lines().count(), 100);
    assert_eq!(tshark(&file, &["-Y", "_ws.malformed || _ws.expert.severity == error"]), "");
    let info = Command::new("capinfos").arg("-A").arg(&file).output().unwrap();
    let info = text(&info.stdout);
    for expected in
        ["Number of packets:   400", "Capture application: Millrace", "Filter string = tcp port 80"]
    {
        assert!(info.contains(expected), "{expected} is missing in {info}");
    }
}

#[test]
fn a_capture_of_nothing_is_a_file_too() {
    let stage = Stage::new();
    let file = stage.path("none.pcapng");
    let name = file.to_str().unwrap();
    let said = stage.run(&["capture", "--at", "drop:no_rule", "-w", name, "--seconds", "0.05"]);
    assert_eq!(text(&said.stderr), "0 packets captured, 0 lost\n");
    assert!(said.status.success());
    assert!(Capture::new(std::fs::read(&file).unwrap()).unwrap().frames().is_empty());
    if has_tshark() {
        assert_eq!(tshark(&file, &[]), "");
    }
}

#[test]
fn a_signal_ends_a_capture_well() {
    let stage = Stage::new();
    stage.send(true);
    let file = stage.path("out.pcapng");
    let mut child = stage.command(&["capture", "--at", "port:lan", "-w", file.to_str().unwrap()]);
    let child = child.spawn().unwrap();
    until("packets are in the file", || std::fs::metadata(&file).is_ok_and(|f| f.len() > 5_000));
    stage::signal(&child, nix::sys::signal::Signal::SIGINT);
    let said = ended(child);
    assert!(said.status.success(), "{said:?}");
    let frames = Capture::new(std::fs::read(&file).unwrap()).unwrap().frames().len();
    assert_eq!(text(&said.stderr), format!("{frames} packets captured, 0 lost\n"));
    until("the manager has noticed", || stage.captures().is_empty());
    if has_tshark() {
        assert_eq!(tshark(&file, &["-Tfields", "-e", "frame.number"]).lines().count(), frames);
    }
}

#[test]
fn who_reads_no_more_ends_the_capture() {
    let stage = Stage::new();
    // Once with packets on their way, once without any.
    for sends in [true, false] {
        stage.send(sends);
        let mut child = stage.command(&["capture", "--at", "port:lan", "-w", "-"]).spawn().unwrap();
        let mut head = [0; 28];
        child.stdout.as_mut().unwrap().read_exact(&mut head).unwrap();
        assert_eq!(head[..4], [0x0a, 0x0d, 0x0d, 0x0a]);
        drop(child.stdout.take());
        let said = ended(child);
        assert_eq!((said.status.code(), said.status.signal()), (Some(0), None));
        until("the manager has noticed", || stage.captures().is_empty());
    }
}

#[test]
fn a_manager_that_goes_away_is_said_and_what_was_captured_is_kept() {
    let stage = Stage::new();
    stage.send(true);
    let file = stage.path("out.pcapng");
    let mut child = stage.command(&["capture", "--at", "port:lan", "-w", file.to_str().unwrap()]);
    let child = child.spawn().unwrap();
    until("packets are in the file", || std::fs::metadata(&file).is_ok_and(|f| f.len() > 5_000));
    stage.die();
    let said = ended(child);
    assert_eq!(said.status.code(), Some(1));
    assert!(text(&said.stderr).contains("the manager went away"), "{said:?}");
    assert!(!Capture::new(std::fs::read(&file).unwrap()).unwrap().frames().is_empty());
}

#[test]
fn what_cannot_be_is_said_in_one_line() {
    let stage = Stage::new();
    let said = |words: &[&str]| stage.run(&[&["capture"], words].concat());
    let line = complaint(&said(&["--at", "drop", "--filter", "tcp prot 80"]), 2);
    assert!(line.contains("\"tcp prot 80\"") && line.contains("syntax error"), "{line}");
    assert!(complaint(&said(&[]), 2).contains("--at PLACE"));
    assert!(complaint(&said(&["--at", "port:x"]), 1).contains("there are lan, wan"));
    assert!(complaint(&said(&["--at", "drop", "--count", "0"]), 2).contains("--count"));
    assert!(complaint(&said(&["--at", "drop", "--snap", "20000"]), 2).contains("1..=16384"));
    assert!(complaint(&said(&["--at", "drop", "--seconds", "x"]), 2).contains("seconds above 0"));
    let line = complaint(&said(&["--at", "drop", "-w", "/nonexistent/x.pcapng"]), 1);
    assert!(line.contains("/nonexistent/x.pcapng: "), "{line}");
    until("the manager has noticed", || stage.captures().is_empty());
    stage.die();
    assert!(complaint(&said(&["--at", "drop"]), 1).contains("no manager at"));
}

#[test]
fn points_and_captures_under_way_are_listed() {
    let stage = Stage::new();
    let points = stage.run(&["capture", "points"]);
    let points = text(&points.stdout);
    for at in
        ["port:lan ", "nf:firewall#3:in ", "ring:manager:nat#5 ", "ring:firewall#3:nat#5 ", "drop "]
    {
        assert!(points.lines().any(|line| line.starts_with(at)), "{at} is missing in {points}");
    }
    let listed = stage.run(&["capture", "points", "--json"]);
    let listed: Vec<CapturePoint> = serde_json::from_slice(&listed.stdout).unwrap();
    assert!(listed.len() > 10);
    let none = stage.run(&["capture", "list"]);
    assert_eq!(text(&none.stdout), "no capture is under way\n");
    let at = ["capture", "--at", "drop", "port:wan", "--filter", "udp"];
    let child = stage.command(&at).spawn().unwrap();
    until("it is under way", || !stage.captures().is_empty());
    let out = text(&stage.run(&["capture", "list"]).stdout);
    assert!(out.contains("drop port:wan  udp"), "{out}");
    let listed = stage.run(&["capture", "list", "--json"]);
    let listed: Vec<CaptureStatus> = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!((listed.len(), listed[0].id, &listed[0].filter[..]), (1, 1, "udp"));
    stage::signal(&child, nix::sys::signal::Signal::SIGTERM);
    assert!(ended(child).status.success());
}

#[test]
fn wireshark_is_answered_as_it_asks() {
    let stage = Stage::new();
    let said = |words: &[&str]| {
        let said = stage.run(&[&["extcap"], words].concat());
        assert!(said.status.success() && said.stderr.is_empty(), "{said:?}");
        text(&said.stdout)
    };
    let interfaces = said(&["--extcap-interfaces", "--extcap-version=4.0"]);
    assert!(interfaces.starts_with("extcap {version="), "{interfaces}");
    let ring = "interface {value=millrace:ring:firewall#3:nat#5}{display=Millrace: straight from";
    assert!(interfaces.contains(ring), "{interfaces}");
    let of = ["--extcap-interface", "millrace:drop"];
    assert!(
        said(&[&of[..], &["--extcap-dlts"]].concat()).starts_with("dlt {number=1}{name=EN10MB}")
    );
    let config = said(&[&of[..], &["--extcap-config"]].concat());
    assert!(config.lines().all(|line| line.starts_with("arg {number=")), "{config}");
    let checked = |filter| said(&[&of[..], &["--extcap-capture-filter", filter]].concat());
    assert_eq!(checked("udp port 53"), "");
    assert!(checked("udp prot 53").contains("syntax error"));
    stage.die();
    assert_eq!(said(&["--extcap-interfaces"]).lines().count(), 1, "no manager, no interfaces");
    assert!(complaint(&stage.run(&["extcap"]), 2).contains("extcap install"));
    let capture = ["extcap", "--capture", "--extcap-interface", "millrace:drop"];
    assert!(complaint(&stage.run(&capture), 2).contains("--fifo"));
}

#[test]
fn tshark_lists_the_rings_and_captures_at_one() {
    if !has_tshark() {
        return;
    }
    let stage = Stage::new();
    stage.send(true);
    let folder = stage.path("extcap folder");
    let dir = folder.to_str().unwrap();
    let installed = stage.run(&["extcap", "install", "--dir", dir]);
    assert_eq!(text(&installed.stdout), format!("{dir}/millrace\n"), "{installed:?}");
    stage.open_to_all();
    let tshark = |arguments: &[&str]| {
        let mut command = Command::new("tshark");
        // For root it looks into the system's folder only.
        if nix::unistd::geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command.env("WIRESHARK_EXTCAP_DIR", &folder).env_remove("MILLRACE_SOCKET");
        command.env("HOME", stage.path("home")).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        ended(command.spawn().unwrap())
    };
    let listed = text(&tshark(&["-D"]).stdout);
    for name in ["millrace:port:lan ", "millrace:ring:firewall#3:nat#5 ", "millrace:drop "] {
        assert!(listed.contains(name), "{name} is missing in {listed}");
    }
    let fields =
        ["-Tfields", "-e", "frame.interface_name", "-e", "tcp.dstport", "-e", "frame.comment"];
    let at = ["-i", "millrace:nf:firewall#3:in", "-f", "tcp port 80", "-c", "3"];
    let said = tshark(&[&at[..], &fields].concat());
    let out = text(&said.stdout);
    assert_eq!(out.lines().count(), 3, "{said:?}");
    assert!(out.starts_with("nf:firewall#3\t80\tchain=web hop=0 from=manager"), "{said:?}");
    until("the manager has noticed", || stage.captures().is_empty());
    let none = tshark(&[
        "-i",
        "millrace:drop",
        "-f",
        "udp",
        "-a",
        "duration:1",
        "-Tfields",
        "-e",
        "frame",
    ]);
    assert_eq!(text(&none.stdout), "", "{none:?}");

    // Somebody else's file is left alone.
    let other = folder.join("millrace");
    assert!(stage.run(&["extcap", "install", "--dir", dir]).status.success(), "again");
    assert!(stage.run(&["extcap", "remove", "--dir", dir]).status.success());
    assert!(!other.exists());
    assert!(
        complaint(&stage.run(&["extcap", "remove", "--dir", dir]), 1).contains("nothing to remove")
    );
    std::fs::File::create(&other).unwrap().write_all(b"#!/bin/sh\nexit\n").unwrap();
    for verb in ["install", "remove"] {
        let line = complaint(&stage.run(&["extcap", verb, "--dir", dir]), 1);
        assert!(line.contains("was not made by"), "{line}");
    }
    assert!(other.exists());
}
