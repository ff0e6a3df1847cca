//! Real managers and NFs for a test, each in a directory of its own; none outlives its test.

// Each suite uses a part of this.
#![allow(dead_code)]

use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nflib::control::{
    self, Applied, Edit, ErrorReply, MAX_REPLY_BYTES, NfStatus, Reply, Request, Status,
    request_status,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::skip::skip;

pub const MANAGER: &str = env!("CARGO_BIN_EXE_millrace-manager");
/// Longer than anything here takes on a machine that does much else; ends a test that would hang.
pub const LIMIT: Duration = Duration::from_secs(60);

/// The NF program, built beside the manager; absent when only the manager's package was built.
pub fn nf_program() -> Option<PathBuf> {
    let path = Path::new(MANAGER).with_file_name("millrace-nf");
    if path.exists() {
        return Some(path);
    }
    skip("millrace-nf is not built: cargo build -p millrace-nfs");
    None
}

/// Looks again and again until there is something to see.
#[track_caller]
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A child that does not outlive its test.
pub struct Process(pub Child);

impl Process {
    pub fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    #[track_caller]
    pub fn exit_code(&mut self) -> Option<i32> {
        until("a process ends", || self.0.try_wait().unwrap()).code()
    }

    /// What it has written to standard error, once it has ended.
    pub fn complaint(&mut self) -> String {
        let mut said = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        said
    }

    fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running manager in a directory of its own.
pub struct Manager {
    process: Process,
    directory: tempfile::TempDir,
    manager_keys: String,
}

/// Buffers of a manager under test.
pub const BUFFERS: u64 = 16_384;

impl Manager {
    /// Starts one; `manager_keys` are further lines of `[manager]`, `tables` all that stands behind
    /// `[pool]`.
    pub fn start(manager_keys: &str, tables: &str) -> Self {
        Self::start_by(Command::new(MANAGER), manager_keys, tables)
    }

    /// Starts one by a command that the arguments are added to.
    pub fn start_by(command: Command, manager_keys: &str, tables: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let manager_keys = manager_keys.to_owned();
        let text = text(directory.path(), &manager_keys, tables);
        std::fs::write(directory.path().join("m.toml"), text).unwrap();
        let process = launch(command, directory.path());
        let manager = Self { process, directory, manager_keys };
        until("the manager listens", || UnixStream::connect(manager.socket()).ok());
        manager
    }

    /// Kills it, without a word to anybody, and starts another with the same file.
    pub fn kill_and_start_again(&mut self) {
        self.kill();
        self.start_again();
    }

    /// Kills it, without a word to anybody.
    pub fn kill(&mut self) {
        self.process.0.kill().unwrap();
        self.process.0.wait().unwrap();
    }

    /// Starts another where one has ended.
    pub fn start_again(&mut self) {
        self.process = launch(Command::new(MANAGER), self.directory.path());
        until("the next manager listens", || UnixStream::connect(self.socket()).ok());
    }

    /// Where one was killed: starts another, and returns what it says when it ends by itself.
    pub fn fail_to_start(&mut self) -> String {
        let mut command = Command::new(MANAGER);
        command.stderr(Stdio::piped());
        self.process = launch(command, self.directory.path());
        assert_eq!(self.process.exit_code(), Some(1));
        self.process.complaint()
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("m.sock")
    }

    pub fn open_files(&self) -> usize {
        self.process.open_files()
    }

    pub fn connect(&self) -> UnixStream {
        let socket = UnixStream::connect(self.socket()).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket
    }

    /// Sends a request over a fresh connection and returns what comes back.
    #[track_caller]
    pub fn ask(&self, request: &Request) -> Reply {
        let socket = self.connect();
        control::send(&socket, request, &[]).unwrap();
        control::recv(&socket, MAX_REPLY_BYTES).unwrap().0
    }

    /// Everything there is to see; that the books balance goes for every moment.
    #[track_caller]
    pub fn status(&self) -> Status {
        let status = request_status(&self.connect()).unwrap();
        assert!(status.accounting.balanced, "{:?}", status.accounting);
        assert_eq!(status.pool.lost, 0, "{:?}", status.pool);
        status
    }

    /// The whole file that a manager has whose tables are these.
    pub fn text(&self, tables: &str) -> String {
        text(self.directory.path(), &self.manager_keys, tables)
    }

    /// Makes what runs be these tables.
    #[track_caller]
    pub fn apply(&self, tables: &str) -> Result<Applied, ErrorReply> {
        self.apply_text(self.text(tables), false)
    }

    #[track_caller]
    pub fn apply_text(&self, text: String, dry_run: bool) -> Result<Applied, ErrorReply> {
        applied(self.ask(&Request::Apply { path: "m.toml".into(), text, dry_run }))
    }

    #[track_caller]
    pub fn edit(&self, edits: Vec<Edit>) -> Result<Applied, ErrorReply> {
        applied(self.ask(&Request::Edit { edits }))
    }

    /// Starts a `forward` by hand.
    pub fn spawn_nf(&self, program: &Path, service: &str) -> Process {
        let nf = Command::new(program)
            .args(["forward", "--log", "error", "--service", service, "--socket"])
            .arg(self.socket())
            .stderr(Stdio::piped())
            .spawn();
        Process(nf.unwrap())
    }

    /// Starts a `forward` by hand and waits until it is attached.
    #[track_caller]
    pub fn nf(&self, program: &Path, service: &str) -> Process {
        let nf = self.spawn_nf(program, service);
        let pid = nf.pid();
        until("the NF is attached", || self.status().nfs.into_iter().find(|nf| nf.pid == pid));
        nf
    }

    /// Waits until each of these services has so many NFs that get flows, and no others.
    #[track_caller]
    pub fn settled(&self, services: &[(&str, usize)]) -> Status {
        until(&format!("NFs: {services:?}"), || {
            let status = self.status();
            let all = services.iter().all(|&(name, count)| {
                let nfs: Vec<_> = nfs_of(&status, name).collect();
                nfs.len() == count && nfs.iter().all(|nf| nf.state == "running")
            });
            (all && !status.plan.changing).then_some(status)
        })
    }

    /// Waits until no packet is inside, and every buffer is free.
    #[track_caller]
    pub fn assert_all_back(&self) {
        let mut last = None;
        let all_free = || {
            let status = last.insert(self.status());
            (status.accounting.held_pkts == 0 && status.pool.free == BUFFERS).then_some(())
        };
        let end = Instant::now() + LIMIT;
        let mut all_free = all_free;
        while all_free().is_none() {
            assert!(Instant::now() < end, "buffers are missing: {:?}", self.status().pool);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Stops the manager; its last lines say where every packet went. Nothing is left of it.
    #[track_caller]
    pub fn stop(mut self) -> String {
        let nfs: Vec<_> = self.status().nfs.iter().map(|nf| nf.pid).collect();
        let started = self.started_nfs();
        self.process.signal(Signal::SIGTERM);
        let code = self.process.exit_code();
        let mut said = String::new();
        self.process.0.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("held 0 (balanced)"), "{said}");
        assert!(!self.socket().exists(), "the socket's file is gone");
        assert!(!self.path("m.sock.nfs").exists(), "the records of NFs are gone");
        assert!(!self.path("m.sock.journal").exists(), "the journal is gone");
        for pid in nfs.into_iter().filter(|pid| started.contains(pid)) {
            assert!(!is_alive(pid), "NF {pid}, which the manager started, has ended");
        }
        said
    }

    /// Processes that the manager has started, by what it wrote down for its successor.
    pub fn started_nfs(&self) -> Vec<i32> {
        let records = std::fs::read_dir(self.path("m.sock.nfs")).into_iter().flatten();
        let records = records.filter_map(|entry| std::fs::read(entry.ok()?.path()).ok());
        let pid = |record: Vec<u8>| {
            let record: serde_json::Value = serde_json::from_slice(&record).ok()?;
            i32::try_from(record.get("pid")?.as_i64()?).ok()
        };
        records.filter_map(pid).collect()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = self.process.0.kill();
        let _ = self.process.0.wait();
        // NFs wait for the next manager; here none comes. Only processes whose command line names
        // this test's own socket are touched.
        let socket = self.socket();
        for pid in self.started_nfs() {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&line).contains(&*socket.to_string_lossy()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

fn text(directory: &Path, manager_keys: &str, tables: &str) -> String {
    let socket = directory.join("m.sock");
    format!(
        "[manager]\nsocket = \"{}\"\n{manager_keys}\n[pool]\nbuffers = {BUFFERS}\n\
         hugepages = \"off\"\n{tables}\n",
        socket.display()
    )
}

fn launch(mut command: Command, directory: &Path) -> Process {
    let command = command.args(["--log", "warn", "--config"]).arg(directory.join("m.toml"));
    Process(command.stdout(Stdio::piped()).spawn().unwrap())
}

fn applied(reply: Reply) -> Result<Applied, ErrorReply> {
    match reply {
        Reply::Applied(applied) => Ok(applied),
        Reply::Error(error) => Err(error),
        other => panic!("{other:?}"),
    }
}

/// Whether a process runs; one that has ended and waits to be reaped does not.
pub fn is_alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| state != 'Z' && state != 'X')
}

/// The NFs of a service.
pub fn nfs_of<'a>(status: &'a Status, service: &'a str) -> impl Iterator<Item = &'a NfStatus> {
    status.nfs.iter().filter(move |nf| nf.service_name == service)
}

/// What the verifying sink of this name has counted.
#[track_caller]
pub fn verified(status: &Status, sink: &str, what: &str) -> u64 {
    let port = status.ports.iter().find(|port| port.name == sink);
    port.unwrap_or_else(|| panic!("no port {sink}")).hw_stats[&format!("verify_{what}_pkts")]
}

/// That a sink has missed no packet and seen none twice, damaged or out of turn.
#[track_caller]
pub fn assert_faultless(status: &Status, sink: &str) {
    for what in ["lost", "reordered", "duplicate", "stale", "corrupt", "foreign", "untracked"] {
        let count = verified(status, sink, what);
        assert_eq!(count, 0, "{what} at {sink}; {:?} {:?}", status.plan, status.drops);
    }
}

/// That no packet was lost anywhere on the way: none dropped, and nothing missing at the sinks.
#[track_caller]
pub fn assert_nothing_lost(status: &Status, sinks: &[&str]) {
    assert!(status.drops.is_empty(), "{:?}", status.drops);
    for sink in sinks {
        assert_faultless(status, sink);
    }
}
