//! `lab-traffic` over a veth pair, in a network namespace that belongs to the test's thread, so that
//! the kernel removes all of it with the thread.

#[path = "../../manager/tests/support/skip.rs"]
mod skip;

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const SENDING: &str = "mrlt0";
const RECEIVING: &str = "mrlt1";

/// Where the test's report files are.
struct Lab {
    directory: tempfile::TempDir,
}

impl Lab {
    fn new() -> Result<Self, String> {
        unshare(CloneFlags::CLONE_NEWNET)
            .map_err(|errno| format!("no network namespace can be made: {errno}"))?;
        ip(&format!("link add {SENDING} type veth peer name {RECEIVING}"))?;
        for end in [SENDING, RECEIVING] {
            ip(&format!("link set {end} addrgenmode none"))?;
            ip(&format!("link set {end} up"))?;
        }
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        Ok(Self { directory })
    }

    fn report(&self) -> PathBuf {
        self.directory.path().join("sent.json")
    }

    fn receiver(&self, arguments: &str) -> Running {
        let arguments = format!("receive --interface {RECEIVING} --run-id 7 {arguments}");
        let mut running = Running::start(&arguments, &["--expect", path(&self.report())]);
        assert_eq!(running.line()["listening"], RECEIVING);
        running
    }

    fn sender(&self, arguments: &str) -> Running {
        let arguments = format!(
            "send --interface {SENDING} --dst-mac 02:6d:72:6c:00:fe --to 10.79.9.2 10.79.9.3 \
             --run-id 7 {arguments}"
        );
        Running::start(&arguments, &["--report", path(&self.report())])
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn ip(arguments: &str) -> Result<(), String> {
    let output = Command::new("ip").args(arguments.split_whitespace()).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            Err(format!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim()))
        }
        Err(error) => Err(format!("ip {arguments}: {error}")),
    }
}

/// A program that prints lines of JSON; killed when the test ends before it.
struct Running {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Running {
    fn start(arguments: &str, more: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_lab-traffic"))
            .args(arguments.split_whitespace())
            .args(more)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// The last line of a program that ends well.
    fn result(mut self) -> Value {
        let result = self.line();
        assert!(self.child.wait().unwrap().success());
        result
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn every_packet_of_a_run_is_accounted_for() {
    let lab = match Lab::new() {
        Ok(lab) => lab,
        Err(reason) => return skip::skip(&reason),
    };
    let receiver = lab.receiver("");
    let sent = lab.sender("--flows 300 --rate-pps 5000 --seconds 0.5 --seed 3").result();
    let received = receiver.result();
    assert!(sent["sent"].as_u64().unwrap() > 100, "{sent}");
    assert_eq!(sent["interface_dropped"], 0);
    assert_eq!(received["received"], sent["sent"]);
    assert_eq!(received["expected"], sent["sent"]);
    assert_eq!(received["valid"], true, "{received}");
    for count in ["lost", "reordered", "duplicated", "invented", "corrupted", "misdelivered"] {
        assert_eq!(received[count], 0, "{count}: {received}");
    }
    assert_eq!(received["kinds"]["http"]["received"], sent["sent_http"]);
    // No NF was on the way.
    assert_eq!(received["courses"]["udp"]["-"], sent["sent_udp"]);
}

#[test]
fn a_signal_begins_the_next_phase_and_another_ends_the_run() {
    let lab = match Lab::new() {
        Ok(lab) => lab,
        Err(reason) => return skip::skip(&reason),
    };
    let receiver = lab.receiver("--kind udp");
    let mut sender = lab.sender("--kind udp --flows 5 --rate-pps 2000");
    for phase in [1, 2] {
        // Packets of the phase before have to be on their way.
        std::thread::sleep(std::time::Duration::from_millis(100));
        sender.signal(Signal::SIGUSR1);
        assert_eq!(sender.line()["phase"], phase);
    }
    std::thread::sleep(std::time::Duration::from_millis(100));
    sender.signal(Signal::SIGTERM);
    let sent = sender.result();
    let received = receiver.result();
    assert_eq!((&sent["phase"], &received["lost"]), (&2.into(), &0.into()));
    let phases: Vec<_> = received["phases"].as_array().unwrap().iter().collect();
    assert_eq!(phases.len(), 3, "{received}");
    assert_eq!(phases[2]["moved_share"], 0.0);
}

#[test]
fn a_loss_in_the_kernel_makes_the_run_invalid_instead_of_ours() {
    let lab = match Lab::new() {
        Ok(lab) => lab,
        Err(reason) => return skip::skip(&reason),
    };
    let receiver = lab.receiver("--kind http --until-idle 0.3");
    let mut sender = lab.sender("--flows 20 --rate-pps 2000");
    std::thread::sleep(std::time::Duration::from_millis(100));
    // A veth whose other end is down drops what it is given, and its sender can see it.
    sender.signal(Signal::SIGUSR1);
    sender.line();
    ip(&format!("link set {RECEIVING} down")).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(100));
    ip(&format!("link set {RECEIVING} up")).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(100));
    sender.signal(Signal::SIGTERM);
    sender.result();
    let received = receiver.result();
    assert!(received["lost"].as_u64().unwrap() > 0, "{received}");
    assert!(received["misdelivered"].as_u64().unwrap() > 0, "UDP came too: {received}");
    assert_eq!(received["valid"], false, "{received}");
}

fn complaint(arguments: &[&str]) -> (Option<i32>, String) {
    let Output { status, stderr, .. } =
        Command::new(env!("CARGO_BIN_EXE_lab-traffic")).args(arguments).output().unwrap();
    let said = String::from_utf8(stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    (status.code(), said)
}

#[test]
fn bad_input_is_answered_by_one_line() {
    let send = ["send", "--dst-mac", "02:00:00:00:00:01", "--to", "10.0.0.1", "--interface"];
    let with = |more: &[&'static str]| [&send[..], more].concat();
    let usage: [(Vec<&str>, &str); 6] = [
        (vec![], "send, receive"),
        (with(&["lo", "--flows", "0"]), "--flows"),
        (with(&["lo", "--rate-pps", "0"]), "--rate-pps"),
        (with(&["lo", "--seconds", "0"]), "seconds"),
        (vec!["send", "--interface", "lo", "--dst-mac", "2:0", "--to", "10.0.0.1"], "six bytes"),
        (vec!["receive"], "--interface"),
    ];
    for (arguments, expected) in usage {
        let (code, said) = complaint(&arguments);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(expected), "{said}");
    }
    let failures: [(Vec<&str>, &str); 3] = [
        (with(&["mrl-none"]), "mrl-none"),
        (vec!["receive", "--interface", "mrl-none"], "mrl-none"),
        (vec!["receive", "--interface", "lo", "--course", "1;2"], "1;2"),
    ];
    for (arguments, expected) in failures {
        let (code, said) = complaint(&arguments);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(expected), "{said}");
    }
}
