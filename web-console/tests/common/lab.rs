//! A real manager with traffic and NFs, in a directory of its own; nothing of it outlives its test.

// Each suite uses a part of this.
#![allow(dead_code)]

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nflib::control::{Status, request_status};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::{LIMIT, is_installed, skip};

/// Packets a second that the lab's generator makes.
pub const RATE_PPS: u32 = 10_000;

/// A manager whose generator's packets cross the services `fw` (two instances) and `nat`.
pub struct Lab {
    manager: Child,
    program: PathBuf,
    directory: tempfile::TempDir,
}

/// A program built beside the console; says what is skipped when it is not there.
fn program(name: &str) -> Option<PathBuf> {
    let path = crate::common::console_program().with_file_name(name);
    if !path.exists() {
        skip(&format!("{name} is not built: cargo build -p millrace -p millrace-nfs"));
        return None;
    }
    Some(path)
}

impl Lab {
    /// Starts one, and waits until its chain is complete; `None` where its programs are not built.
    pub fn start() -> Option<Self> {
        Self::start_edited(3, |text| text)
    }

    /// One whose configuration is edited first, and then has so many NFs.
    pub fn start_edited(nfs: usize, edit: impl FnOnce(String) -> String) -> Option<Self> {
        let (program, nf) = (program("millrace-manager")?, program("millrace-nf")?);
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("m.sock");
        let text = format!(
            r#"
[manager]
socket = "{socket}"
[pool]
buffers = 16384
hugepages = "off"
[[port]]
name = "lan"
backend = "generator"
flows = 64
rate_pps = {RATE_PPS}
egress = "wan"
[[port]]
name = "wan"
backend = "sink"
[[service]]
name = "fw"
command = ["{nf}", "forward", "--log", "error"]
instances = 2
[[service]]
name = "nat"
command = ["{nf}", "forward", "--log", "error"]
[[chain]]
name = "default"
services = ["fw", "nat"]
[[chain]]
name = "short"
services = ["fw"]
"#,
            socket = socket.display(),
            nf = nf.display(),
        );
        std::fs::write(directory.path().join("m.toml"), edit(text)).unwrap();
        let manager = launch(&program, directory.path());
        let lab = Self { manager, program, directory };
        lab.until("all NFs run", |status| status.nfs.len() == nfs);
        Some(lab)
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("m.sock")
    }

    /// Its configuration.
    pub fn text(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("m.toml")).unwrap()
    }

    /// What it says of itself now, if it answers.
    pub fn status(&self) -> Option<Status> {
        let socket = UnixStream::connect(self.socket()).ok()?;
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        request_status(&socket).ok()
    }

    /// Waits until its status is as wanted.
    #[track_caller]
    pub fn until(&self, what: &str, is: impl Fn(&Status) -> bool) -> Status {
        let end = Instant::now() + LIMIT;
        loop {
            match self.status() {
                Some(status) if is(&status) => return status,
                status => assert!(Instant::now() < end, "not in time: {what}: {status:?}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills one NF of a service, without a word; returns its instance id.
    pub fn kill_nf(&self, service: &str) -> u32 {
        let status = self.status().unwrap();
        let nf = status.nfs.iter().find(|nf| nf.service_name == service).unwrap();
        kill(Pid::from_raw(nf.pid), Signal::SIGKILL).unwrap();
        nf.instance
    }

    /// Ends the manager in good order; every packet is accounted for and every buffer back.
    pub fn stop(&mut self) {
        kill(self.pid(), Signal::SIGTERM).unwrap();
        assert!(self.manager.wait().unwrap().success(), "the books balance at the end");
    }

    /// Starts the manager anew where one has ended.
    pub fn start_again(&mut self) {
        self.manager = launch(&self.program, self.directory.path());
        self.until("all NFs run again", |status| status.nfs.len() == 3);
    }

    /// The manager's process.
    pub fn manager_pid(&self) -> u32 {
        self.manager.id()
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.manager.id().cast_signed())
    }
}

/// How many packets tshark finds in a file; `None` where it is not installed.
#[track_caller]
pub fn packets_by_tshark(file: &[u8]) -> Option<usize> {
    use std::io::Write as _;
    if !is_installed("tshark") {
        return None;
    }
    let mut named = tempfile::NamedTempFile::new().unwrap();
    named.write_all(file).unwrap();
    let read = Command::new("tshark").args(["-n", "-r"]).arg(named.path()).output().unwrap();
    let complaints = String::from_utf8_lossy(&read.stderr);
    let faults = complaints.lines().filter(|line| !line.starts_with("Running as user"));
    assert!(read.status.success() && faults.count() == 0, "{complaints}");
    Some(String::from_utf8_lossy(&read.stdout).lines().filter(|line| !line.is_empty()).count())
}

/// Waits until something is so.
#[track_caller]
pub fn until(what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !is() {
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.manager.try_wait().is_ok_and(|ended| ended.is_some()) {
            return;
        }
        // In good order it ends its NFs; should it hang, they are ended here.
        let nfs: Vec<_> = self.status().into_iter().flat_map(|status| status.nfs).collect();
        let _ = kill(self.pid(), Signal::SIGTERM);
        let end = Instant::now() + Duration::from_secs(20);
        while Instant::now() < end {
            if self.manager.try_wait().is_ok_and(|ended| ended.is_some()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.manager.kill();
        let _ = self.manager.wait();
        for nf in nfs {
            let _ = kill(Pid::from_raw(nf.pid), Signal::SIGKILL);
        }
    }
}

fn launch(program: &Path, directory: &Path) -> Child {
    Command::new(program)
        .args(["--log", "error", "--config"])
        .arg(directory.join("m.toml"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}
