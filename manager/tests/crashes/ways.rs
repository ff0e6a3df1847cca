//! Ways to crash.

use millrace::crash::evidence::PacketKind;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::lab::{KILLER, Lab, bytes_of, crashes, first_crash, frame};
use super::running::{Manager, Process, nf_program, nfs_of, until};

/// The NF dies by `by`; then the bundle, and what goes on, is as it must be.
#[track_caller]
fn dies(by: &str, keys: &str, why: &str, words: Option<&str>, function: Option<&str>) {
    if nf_program().is_none() {
        return;
    }
    let lab = Lab::new();
    let manager = lab.start(by, keys);
    let (crash, bundle) = first_crash(&manager);
    assert!(crash.why.starts_with(why), "{crash:?}");
    match words {
        Some(words) => {
            assert!(crash.last_words.as_ref().is_some_and(|w| w.contains(words)), "{crash:?}");
        }
        None => assert_eq!(crash.last_words, None),
    }
    let culprit = bundle.report.culprit.as_deref();
    assert_eq!(culprit.is_some(), function.is_some(), "{culprit:?}\n{}", bundle.backtrace);
    if let Some(function) = function {
        assert!(culprit.unwrap().contains(function), "{culprit:?}\n{}", bundle.backtrace);
        let caller = if by == "stack" { "crash::recurse" } else { "forward::Forward" };
        assert!(bundle.backtrace.contains(caller), "{}", bundle.backtrace);
    }
    assert_killer_in_hand(&bundle);
    assert_eq!((&*crash.service, crash.instance), ("mid", 1));
    assert_eq!(bundle.report.process.command[1], "forward");
    assert!(bundle.report.process.by_manager);
    // Somebody else goes on, and nothing is lost but what it had.
    manager.settled(&[("mid", 1)]);
    assert_eq!(manager.status().deaths.count, 1);
    manager.assert_all_back();
    assert_eq!(crashes(&manager).len(), 1);
    manager.stop();
}

/// The packet that it died of is whole among those that it had in hand, and marked with chain and port.
#[track_caller]
fn assert_killer_in_hand(bundle: &millrace::crash::reading::Bundle) {
    let in_hand = bytes_of(bundle, PacketKind::InHand);
    assert_eq!(in_hand.iter().filter(|bytes| **bytes == frame(KILLER)).count(), 1, "in hand");
    assert_eq!(bundle.report.in_hand_pkts, in_hand.len() as u64);
    for (note, bytes) in bundle.packets() {
        assert_eq!((note.chain.as_deref(), note.hop, note.in_port), (Some("default"), 0, Some(0)));
        assert_eq!(usize::from(note.len_bytes), frame(1).len());
        if note.kind == PacketKind::Recorded {
            let number = note.number.unwrap() as usize;
            assert_eq!(bytes, &frame(number)[..128], "packet {number}");
        }
    }
    let recorded = bytes_of(bundle, PacketKind::Recorded).len() as u64;
    assert!(recorded > 0 && recorded == bundle.report.crash.recorded_pkts);
    let before: Vec<_> = bundle.replay();
    assert_eq!(before.iter().filter(|packet| packet.in_hand).count(), in_hand.len());
}

#[test]
fn a_panic_leaves_its_message_and_where_it_was() {
    let words = "panic: a packet of 267 bytes is too much for me at nfs/src/forward/crash.rs:";
    dies("panic", "", "exit status 101", Some(words), Some("Crash::crash"));
}

#[test]
fn a_write_through_a_null_pointer_leaves_address_and_function_also_under_strict_confinement() {
    let words = "SIGSEGV at address 0x10, in nflib::shm::scribble::write_to_null";
    dies("null", "confine = \"strict\"", "SIGSEGV", Some(words), Some("write_to_null"));
}

#[test]
fn a_full_stack_leaves_the_function_that_filled_it() {
    dies("stack", "", "SIGABRT", Some("SIGSEGV at address"), Some("recurse"));
}

#[test]
fn an_abort_leaves_who_called_it_also_of_an_isolated_nf() {
    let words = Some("SIGABRT in millrace_nf::forward::crash::Crash::crash");
    dies("abort", "isolated = true", "SIGABRT", words, Some("Crash::crash"));
}

#[test]
fn an_exit_leaves_no_words_and_yet_its_packets() {
    dies("exit", "confine = \"off\"", "exit status 1", None, None);
}

#[test]
fn one_that_hangs_and_is_killed_for_it_is_a_crash_with_its_reason() {
    let keys = "on_stuck = \"restart\"\nstuck_after_ms = 200";
    dies("hang", keys, "killed, because it was stuck: no progress for", None, None);
}

#[test]
fn one_that_is_killed_from_outside_is_a_crash_and_one_that_is_asked_to_end_is_none() {
    if nf_program().is_none() {
        return;
    }
    let lab = Lab::new();
    let manager = lab.start("panic", "recorder_pkts = 0");
    let (crash, bundle) = first_crash(&manager);
    assert_eq!((crash.recorded_pkts, bundle.report.in_hand_pkts > 0), (0, true), "{crash:?}");
    let status = manager.settled(&[("mid", 1)]);
    let pid = nfs_of(&status, "mid").next().unwrap().pid;
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    until("it leaves", || manager.status().nfs.is_empty().then_some(()));
    assert_eq!(crashes(&manager).len(), 1);
    manager.stop();

    let lab = Lab::new();
    let manager = Manager::start("wait_for_nfs = true", &lab.tables("exit", "instances = 2"));
    let (_, _) = first_crash(&manager);
    let status = manager.settled(&[("mid", 2)]);
    let pid = nfs_of(&status, "mid").map(|nf| nf.pid).max().unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let killed = until("it is a crash", || crashes(&manager).into_iter().nth(1));
    assert_eq!((&*killed.why, killed.last_words.as_deref()), ("SIGKILL", None));
    manager.assert_all_back();
    manager.stop();
}

#[test]
fn of_one_that_was_started_by_hand_its_last_words_tell() {
    let Some(program) = nf_program() else { return };
    let lab = Lab::new();
    let manager = Manager::start("wait_for_nfs = true", &lab.tables_with(""));
    let mut nf = std::process::Command::new(program);
    nf.args([
        "forward",
        "--crash-by",
        "null",
        "--crash-on",
        super::lab::POISON,
        "--service",
        "mid",
    ]);
    let mut nf = Process(nf.arg("--socket").arg(manager.socket()).spawn().unwrap());
    use std::os::unix::process::ExitStatusExt as _;
    let ended = until("it ends", || nf.0.try_wait().unwrap());
    let (crash, bundle) = first_crash(&manager);
    assert_eq!(ended.signal(), Some(Signal::SIGSEGV as i32), "what it dies of stays what it was");
    assert_eq!(crash.why, "ended, how is not known");
    assert!(crash.last_words.unwrap().starts_with("SIGSEGV at address 0x10"));
    assert!(!bundle.report.process.by_manager);
    assert!(bundle.log.contains("started by hand"), "{}", bundle.log);
    assert_killer_in_hand(&bundle);
    manager.assert_all_back();
    manager.stop();
}

#[test]
fn whoever_leaves_in_good_order_is_no_crash() {
    let Some(program) = nf_program() else { return };
    let lab = Lab::new();
    let limit = "command = [\"millrace-nf\", \"forward\", \"--log\", \"error\"]\npacket_limit = 5";
    let manager = Manager::start("wait_for_nfs = true", &lab.tables_with(limit));
    until("it has left at its limit", || {
        let status = manager.status();
        (status.nfs.is_empty() && status.accounting.rx_pkts > 0).then_some(())
    });
    manager.apply(&lab.tables_with("")).unwrap();
    let mut nf = manager.nf(&program, "mid");
    nf.signal(Signal::SIGTERM);
    assert_eq!(nf.exit_code(), Some(0));
    let mut nf = manager.nf(&program, "mid");
    let instance = manager.status().nfs[0].instance;
    manager.ask(&nflib::control::Request::StopNf { instance });
    assert_eq!(nf.exit_code(), Some(0));
    assert_eq!(crashes(&manager), []);
    let folder = manager.path("m.sock.crashes");
    let _nf = manager.nf(&program, "mid");
    assert!(!folder.exists(), "nothing is made for nothing");
    manager.stop();
}
