//! `millrace replay`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::keeping::MILLRACE;
use super::lab::{KILLER, Lab, PKTS, first_crash};
use super::running::{Process, nf_program, until};

/// The bundle of an NF that died by `by`, kept beyond its manager.
fn bundle_of(lab: &Lab, by: &str, keys: &str) -> PathBuf {
    let manager = lab.start(by, keys);
    let (crash, _) = first_crash(&manager);
    let kept = lab.path("bundle");
    let copied = Command::new("cp").arg("-r").arg(&crash.path).arg(&kept).status().unwrap();
    assert!(copied.success());
    manager.stop();
    kept
}

fn replay(lab: &Lab, bundle: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(MILLRACE);
    command.arg("replay").arg(bundle).args(args).env("TMPDIR", lab.path(""));
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// Nothing of a replay is left: neither its folder nor a process.
#[track_caller]
fn assert_nothing_left(lab: &Lab) {
    let folder = lab.path("");
    let left: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("millrace-replay-"))
        .collect();
    assert_eq!(left, [] as [String; 0]);
    let name = folder.join("millrace-replay-");
    let name = name.to_string_lossy().into_owned();
    let processes = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok());
    let lines = processes.map(|line| String::from_utf8_lossy(&line).into_owned());
    let running: Vec<_> = lines.filter(|line| line.contains(&name)).collect();
    assert_eq!(running, [] as [String; 0]);
}

#[test]
fn what_it_died_of_is_found_again_and_named_and_a_mended_nf_survives_it() {
    if nf_program().is_none() {
        return;
    }
    let lab = Lab::new();
    let bundle = bundle_of(&lab, "null", "");
    let (code, text, complaint) = replay(&lab, &bundle, &[]);
    assert_eq!(code, Some(3), "{text}{complaint}");
    assert!(text.starts_with("the NF crashed again: SIGSEGV in "), "{text}");
    let named = format!(
        "write_to_null at packet {KILLER} of {PKTS} (udp 10.0.0.1:{} → 10.0.0.2:2000); that packet \
         alone is enough",
        1000 + KILLER
    );
    assert!(text.contains(&named), "{text}");
    assert_nothing_left(&lab);

    let mended = ["--json", "--service-command", "millrace-nf", "forward", "--log", "error"];
    let (code, json, complaint) = replay(&lab, &bundle, &mended);
    assert_eq!(code, Some(0), "{json}{complaint}");
    let found: serde_json::Value = serde_json::from_str(&json).unwrap();
    let number = |key: &str| found[key].as_u64().unwrap() as usize;
    assert_eq!((number("rx_pkts"), number("tx_pkts"), number("runs")), (PKTS, PKTS, 1));
    assert_eq!((&found["crashed"], &found["drops"]), (&false.into(), &serde_json::json!({})));
    assert_nothing_left(&lab);
}

#[test]
fn one_that_hangs_hangs_again_and_one_that_drops_is_told_of() {
    if nf_program().is_none() {
        return;
    }
    let lab = Lab::new();
    let keys = "on_stuck = \"restart\"\nstuck_after_ms = 200\nisolated = true";
    let bundle = bundle_of(&lab, "hang", keys);
    let (code, text, complaint) = replay(&lab, &bundle, &["--quick"]);
    assert_eq!(code, Some(3), "{text}{complaint}");
    assert!(text.contains("stuck: no progress for"), "{text}");
    let firewall =
        ["--times", "2", "--service-command", "millrace-nf", "firewall", "--default", "deny"];
    let (code, text, complaint) = replay(&lab, &bundle, &firewall);
    assert_eq!(code, Some(0), "{text}{complaint}");
    let two = 2 * PKTS;
    let start = format!(
        "it did not crash in 2 runs: {two} packets in, 0 out, {two} dropped ({two} nf_drop"
    );
    assert!(text.starts_with(&start), "{text}");
    assert_nothing_left(&lab);
}

#[test]
fn what_cannot_be_replayed_is_told_in_one_line() {
    if nf_program().is_none() {
        return;
    }
    let lab = Lab::new();
    let bundle = bundle_of(&lab, "exit", "");
    let one_line = |(code, text, complaint): (Option<i32>, String, String), part: &str| {
        assert_eq!((code, &*text, complaint.lines().count()), (Some(1), "", 1), "{complaint}");
        assert!(complaint.contains(part), "{complaint}");
    };
    one_line(replay(&lab, &lab.path("nowhere"), &[]), "crash.json: No such file");
    let absent = ["--service-command", "no-such-program"];
    one_line(replay(&lab, &bundle, &absent), "no-such-program");
    let usage = ["--service-command", "millrace-nf", "forward", "--no-such-option"];
    one_line(replay(&lab, &bundle, &usage), "cannot be started: given up");
    std::fs::write(bundle.join("crash.json"), "{\"packets\": 7}").unwrap();
    one_line(replay(&lab, &bundle, &[]), "expected a bundle as millrace crash save writes it");
    std::fs::write(bundle.join("crash.json"), "{}").unwrap();
    one_line(replay(&lab, &bundle, &[]), "packets, and crash.json tells of 0");
    std::fs::write(bundle.join("packets.pcapng"), "x").unwrap();
    one_line(replay(&lab, &bundle, &[]), "packets.pcapng: ");
    assert_nothing_left(&lab);
}

#[test]
fn one_that_is_interrupted_leaves_nothing_behind() {
    if nf_program().is_none() {
        return;
    }
    let lab = Lab::new();
    let bundle = bundle_of(&lab, "exit", "");
    // An NF that never comes: sleep is none.
    let replay = Command::new(MILLRACE)
        .arg("replay")
        .arg(&bundle)
        .args(["--service-command", "/bin/sh", "-c", "sleep 1000"])
        .env("TMPDIR", lab.path(""))
        .stderr(Stdio::piped())
        .spawn();
    let mut replay = Process(replay.unwrap());
    until("its manager listens", || {
        let mut folders = std::fs::read_dir(lab.path("")).unwrap();
        folders.any(|entry| entry.unwrap().path().join("m.sock").exists()).then_some(())
    });
    std::thread::sleep(Duration::from_millis(50));
    kill(Pid::from_raw(replay.pid()), Signal::SIGINT).unwrap();
    assert_eq!(replay.exit_code(), Some(1));
    assert_eq!(replay.complaint(), "millrace: interrupted\n");
    assert_nothing_left(&lab);
}
