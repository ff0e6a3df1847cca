//! A manager under traffic, whose packets go through three NFs, or into a wall.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use nflib::control::{Reply, Request, TraceStatus};
use serde::de::DeserializeOwned;

use super::running::{Manager, Process, nf_program, until};
use super::tables::{WAITING, by_hand, chain, few_to, generator};

const MILLRACE: &str = env!("CARGO_BIN_EXE_millrace");

/// A packet source that goes through the chain "default", and one of the few flows that go to the wall.
pub const THROUGH: &str = "ip_src=198.18.0.40";
pub const WALLED: &str = "ip_src=198.18.0.1";

pub struct Stage {
    pub manager: Manager,
    /// Of the services a, b and c, and wall; b exchanges Ethernet addresses, wall drops all.
    pub nfs: Vec<Process>,
}

/// All NFs run and packets flow; `None` where the NF program is not built.
pub fn set(keys: &str) -> Option<Stage> {
    let program = nf_program()?;
    let tables = generator("in", "out", 0)
        + "[[port]]\nname = \"out\"\nbackend = \"sink\"\n"
        + &["a", "b", "c", "wall"].map(by_hand).concat()
        + &chain("default", &["a", "b", "c"])
        + &chain("walled", &["wall"])
        + &few_to("walled");
    let manager = Manager::start(&format!("{WAITING}\n{keys}"), &tables);
    let nfs = vec![
        nf(&manager, &program, "a", &["forward"]),
        nf(&manager, &program, "b", &["forward", "--swap-macs"]),
        nf(&manager, &program, "c", &["forward"]),
        nf(&manager, &program, "wall", &["firewall", "--default", "deny"]),
    ];
    manager.settled(&[("a", 1), ("b", 1), ("c", 1), ("wall", 1)]);
    let stage = Stage { manager, nfs };
    until("packets flow", || (stage.manager.status().ports[1].tx_pkts > 100).then_some(()));
    Some(stage)
}

fn nf(manager: &Manager, program: &Path, service: &str, args: &[&str]) -> Process {
    let mut command = Command::new(program);
    command.args(args).args(["--log", "error", "--service", service, "--socket"]);
    let nf = command.arg(manager.socket()).stdin(Stdio::null()).spawn();
    Process(nf.unwrap())
}

impl Stage {
    pub fn millrace(&self, args: &[&str]) -> Output {
        let mut command = Command::new(MILLRACE);
        command.args(args).arg("--socket").arg(self.manager.socket()).output().unwrap()
    }

    /// What a command says that succeeds.
    #[track_caller]
    pub fn says(&self, args: &[&str]) -> String {
        let output = self.millrace(args);
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {complaint}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    pub fn json<T: DeserializeOwned>(&self, args: &[&str]) -> T {
        let args = [args, &["--json"]].concat();
        serde_json::from_str(&self.says(&args)).unwrap()
    }

    /// Follows so many packets of these to their ends.
    #[track_caller]
    pub fn trace(&self, matches: &str, count: &str) -> TraceStatus {
        self.json(&["trace", "add", "--match", matches, "--count", count, "--wait"])
    }

    #[track_caller]
    pub fn ask(&self, request: &Request) -> Reply {
        self.manager.ask(request)
    }

    /// Stops everything; the books are balanced at each step.
    pub fn stop(self) {
        self.manager.status();
        self.manager.stop();
    }
}
