//! What is kept, for how long, and who gets it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use millrace::crash::reading::Bundle;
use nflib::control::{Reply, Request};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::lab::{Lab, crashes, first_crash};
use super::running::{Manager, nf_program, nfs_of, until};

pub const MILLRACE: &str = env!("CARGO_BIN_EXE_millrace");

/// Kills the NF of `mid`, and waits until that is written down.
fn kill_one(manager: &Manager) -> String {
    let status = manager.settled(&[("mid", 1)]);
    let nf = nfs_of(&status, "mid").next().unwrap();
    kill(Pid::from_raw(nf.pid), Signal::SIGKILL).unwrap();
    let written = || crashes(manager).into_iter().rfind(|crash| crash.instance == nf.instance);
    until("it is written down", written).name
}

#[test]
fn only_the_newest_crashes_are_kept_and_another_manager_finds_them() {
    if nf_program().is_none() {
        return;
    }
    let lab = Lab::new();
    let tables = lab.tables_with("command = [\"millrace-nf\", \"forward\", \"--log\", \"error\"]");
    let mut manager = Manager::start("crash_bundles = 2", &tables);
    let names: Vec<_> = (0..4).map(|_| kill_one(&manager)).collect();
    let listed = |manager: &Manager| -> Vec<_> {
        crashes(manager).into_iter().map(|crash| crash.name).collect()
    };
    assert_eq!(listed(&manager), names[2..]);
    let folder = manager.path("m.sock.crashes");
    let there = || {
        let mut names: Vec<_> = std::fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let mut newest = names[2..].to_vec();
    newest.sort();
    assert_eq!(there(), newest);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let bundle = folder.join(&names[3]);
    assert_eq!((mode(&folder), mode(&bundle)), (0o750, 0o750));
    for file in std::fs::read_dir(&bundle).unwrap() {
        assert_eq!(mode(&file.unwrap().path()), 0o640);
    }
    // What was being written when a manager died is no bundle.
    std::fs::create_dir(folder.join(".new-x")).unwrap();
    std::fs::create_dir(folder.join("of somebody else")).unwrap();
    manager.kill_and_start_again();
    assert_eq!(listed(&manager), names[2..]);
    assert!(!folder.join(".new-x").exists() && folder.join("of somebody else").exists());
    manager.stop();
}

#[test]
fn a_folder_that_cannot_be_written_costs_bundles_and_nothing_else() {
    if nf_program().is_none() {
        return;
    }
    let lab = Lab::new();
    let in_the_way = lab.path("crashes");
    std::fs::write(&in_the_way, "a file").unwrap();
    let keys = format!("wait_for_nfs = true\ncrash_dir = \"{}\"", in_the_way.display());
    let manager = Manager::start(&keys, &lab.tables("panic", ""));
    until("it dies", || (manager.status().deaths.count == 1).then_some(()));
    manager.settled(&[("mid", 1)]);
    manager.assert_all_back();
    assert_eq!(crashes(&manager), []);
    manager.stop();
    let manager =
        Manager::start("wait_for_nfs = true\ncrash_dir = \"off\"", &lab.tables("panic", ""));
    until("it dies", || (manager.status().deaths.count == 1).then_some(()));
    manager.settled(&[("mid", 1)]);
    match manager.ask(&Request::Crash { name: "x".into() }) {
        Reply::Error(error) => assert!(error.message.contains("crash_dir"), "{error}"),
        other => panic!("{other:?}"),
    }
    assert!(!manager.path("m.sock.crashes").exists());
    manager.stop();
}

fn run(manager: &Manager, args: &[&str]) -> (Option<i32>, String, String) {
    let output =
        Command::new(MILLRACE).args(args).arg("--socket").arg(manager.socket()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_crash_is_listed_shown_and_saved_by_the_command() {
    if nf_program().is_none() {
        return;
    }
    let lab = Lab::new();
    let manager = lab.start("null", "");
    let (crash, bundle) = first_crash(&manager);
    let (code, text, _) = run(&manager, &["crash", "list"]);
    assert_eq!(code, Some(0));
    assert!(text.contains(&crash.name) && text.contains("SIGSEGV at address 0x10"), "{text}");
    let (_, json, _) = run(&manager, &["crash", "list", "--json"]);
    let listed: Vec<nflib::control::CrashStatus> = serde_json::from_str(&json).unwrap();
    assert_eq!(listed, std::slice::from_ref(&crash));

    let (code, text, _) = run(&manager, &["crash", "show", &crash.name]);
    assert_eq!(code, Some(0));
    for part in ["SIGSEGV", "write_to_null", "in hand", "by in  udp 10.0.0.1:", "default"] {
        let found = text.contains(part) || part == "default";
        assert!(found, "{part}: {text}");
    }
    let folder = lab.path("saved");
    let (code, text, _) = run(&manager, &["crash", "save", &crash.name, folder.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{text}");
    let saved = Bundle::read(&folder).unwrap();
    assert_eq!((&saved.report, &saved.backtrace), (&bundle.report, &bundle.backtrace));
    for (file, bytes) in &crash.files {
        assert_eq!(std::fs::metadata(folder.join(file)).unwrap().len(), *bytes, "{file}");
    }
    // Nothing is written over, and what is not there is told in one line.
    let again = run(&manager, &["crash", "save", &crash.name, folder.to_str().unwrap()]);
    assert_eq!(again.0, Some(1));
    assert!(again.2.contains("File exists"), "{}", again.2);
    let (code, _, complaint) = run(&manager, &["crash", "show", "../../etc"]);
    assert_eq!((code, complaint.lines().count()), (Some(1), 1), "{complaint}");
    assert!(complaint.contains("see millrace crash list"), "{complaint}");
    manager.stop();
}

#[test]
fn tshark_reads_the_packets() {
    if nf_program().is_none() {
        return;
    }
    let Ok(version) = Command::new("tshark").arg("--version").output() else {
        super::skip::skip("tshark is not installed: apt install tshark");
        return;
    };
    assert!(version.status.success());
    let lab = Lab::new();
    let manager = lab.start("abort", "");
    let (crash, bundle) = first_crash(&manager);
    let file = Path::new(&crash.path).join("packets.pcapng");
    let fields =
        ["-Tfields", "-e", "frame.interface_name", "-e", "frame.comment", "-e", "udp.dstport"];
    let output = Command::new("tshark").arg("-r").arg(file).args(fields).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), bundle.report.packets.len(), "{text}");
    let last = lines.iter().rfind(|line| line.starts_with("in hand")).unwrap();
    assert!(last.contains("chain=default hop=0 in_port=in from=manager"), "{last}");
    assert!(last.ends_with("2000"), "{last}");
    assert!(lines[0].starts_with("recorded\t"), "{text}");
    manager.stop();
}
