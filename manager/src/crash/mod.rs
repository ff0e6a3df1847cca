//! NFs that crash: whether one did, and what is kept of it.
//!
//! ```text
//! an NF is gone ─► witness: copies what it has ─► its buffers go back ─► suspect
//!                                                                           │ how its process ended
//!    store ◄── writer's thread: bundle ◄── a crash? ◄───────────────────────┘
//! ```
//! What an NF that is gone has in its rings is copied before it is taken back. Whether it crashed is known
//! when its process's end is, which the supervisor learns, for the NFs that the manager started; of others
//! only their last words tell.
//!
//! A crash is a process that ended by a signal, or with another exit status than 0, without having left; and an
//! NF that was removed because it broke the rules, or killed because it was stuck. Who was asked to go, and did
//! or was made to, has not crashed.
#![forbid(unsafe_code)]

pub mod backtrace;
pub mod bundle;
pub mod evidence;
pub mod reading;
pub mod store;

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nflib::control::CrashStatus;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use crate::config::ManagerConfig;
use crate::supervisor::{Event, How, What};
use bundle::{ProcessNote, Scene};
use store::{Bounds, Store, Writer};

/// Last lines kept of what each NF prints.
const LINES_KEPT: usize = 200;
/// Ends of processes that are remembered until the NF on them is gone, too.
const ENDS_KEPT: usize = 256;
/// How long the supervisor may take to learn how a process ended.
const SUPERVISED_LIMIT: Duration = Duration::from_secs(3);
/// How long a process may live on whose connection has ended, before it is taken to live.
const HUNG_UP_LIMIT: Duration = Duration::from_millis(500);
/// Longest command line that is kept, bytes.
const MAX_COMMAND_BYTES: u64 = 64 << 10;

/// How an NF was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Its process has ended, or its connection has and the process may have.
    Gone,
    /// The manager took it out: why.
    Removed(String),
}

/// An NF that is gone, and may have crashed.
pub struct Suspect {
    /// How it was lost.
    pub lost: Lost,
    /// The process that the manager had started for it, if it had.
    pub leader: Option<i32>,
    /// Readable when its process has ended; `None`: it has.
    pub pidfd: Option<OwnedFd>,
    /// It, or everybody, had been asked to go.
    pub told_to_go: bool,
    /// When it was lost.
    pub since: Instant,
    /// All that is known of it but `why` and `log`.
    pub scene: Scene,
}

struct Ended {
    pid: i32,
    how: How,
    /// The supervisor had to kill it to make it go.
    pressed: bool,
    lines: VecDeque<String>,
}

/// What to do about a suspect.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Crashed(String),
    Innocent,
    NotKnownYet,
}

/// NFs that crash.
#[derive(Default)]
pub struct Crashes {
    store: Option<Arc<Store>>,
    writer: Option<Writer>,
    suspects: Vec<Suspect>,
    /// Processes that ended, the newest last.
    ended: VecDeque<Ended>,
    /// What those that run have printed, by process.
    lines: HashMap<i32, VecDeque<String>>,
    pressed: HashSet<i32>,
    /// Why processes are being killed that stood still.
    stuck: HashMap<i32, String>,
}

impl Crashes {
    /// As the configuration has it.
    #[must_use]
    pub fn new(config: &ManagerConfig) -> Self {
        let bounds = Bounds { bundles: config.crash_bundles, bytes: config.crash_bytes };
        let folder = config.crash_dir.folder(&config.socket);
        let store = folder.map(|folder| Arc::new(Store::open(folder, bounds)));
        Self { store, ..Self::default() }
    }

    /// Whether anything is kept of a crash.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.store.is_some()
    }

    /// What is there, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<CrashStatus> {
        self.store.as_ref().map_or_else(Vec::new, |store| store.list())
    }

    /// A crash and its files.
    ///
    /// # Errors
    /// One line.
    pub fn files(&self, name: &str) -> Result<(CrashStatus, Vec<OwnedFd>), String> {
        let store = self.store.as_ref();
        store.ok_or("nothing is kept of crashes: manager.crash_dir is \"off\"")?.files(name)
    }

    /// Notes what the supervisor tells.
    pub fn hear(&mut self, event: &Event) {
        if !self.is_on() {
            return;
        }
        match &event.what {
            What::Said { pid, line } => {
                let lines = self.lines.entry(*pid).or_default();
                if lines.len() == LINES_KEPT {
                    lines.pop_front();
                }
                lines.push_back(line.clone());
            }
            What::Started { pid, .. } | What::Adopted { pid, .. } => {
                // Another process had this number.
                self.ended.retain(|ended| ended.pid != *pid);
                self.stuck.remove(pid);
                self.pressed.remove(pid);
            }
            What::Pressed { pid, .. } => {
                self.pressed.insert(*pid);
            }
            What::Exited { pid, how, .. } => {
                if self.ended.len() == ENDS_KEPT {
                    self.ended.pop_front();
                }
                let lines = self.lines.remove(pid).unwrap_or_default();
                let pressed = self.pressed.remove(pid);
                self.ended.push_back(Ended { pid: *pid, how: *how, pressed, lines });
            }
            What::Waiting { .. } | What::GaveUp { .. } => {}
        }
    }

    /// A process is being killed because it stands still.
    pub fn kills_stuck(&mut self, pid: i32, why: &str) {
        if self.is_on() {
            self.stuck.insert(pid, why.to_owned());
        }
    }

    /// Whether this was, a moment ago, a process that the manager had started.
    #[must_use]
    pub fn has_just_ended(&self, pid: i32) -> bool {
        self.ended.iter().any(|ended| ended.pid == pid)
    }

    /// Looks into an NF that is gone.
    pub fn suspect(&mut self, suspect: Suspect) {
        self.suspects.push(suspect);
    }

    /// True while it is not known of some NF whether it crashed.
    #[must_use]
    pub fn has_suspects(&self) -> bool {
        !self.suspects.is_empty()
    }

    /// Decides about those of whom enough is known, and has bundles written.
    pub fn judge(&mut self, now: Instant) {
        for suspect in std::mem::take(&mut self.suspects) {
            match self.verdict(&suspect, now) {
                Verdict::NotKnownYet => self.suspects.push(suspect),
                Verdict::Innocent => drop(self.forget(&suspect)),
                Verdict::Crashed(why) => {
                    let log = self.forget(&suspect);
                    self.write(Scene { why, log, ..suspect.scene });
                }
            }
        }
    }

    fn verdict(&self, suspect: &Suspect, now: Instant) -> Verdict {
        if let Lost::Removed(why) = &suspect.lost {
            return Verdict::Crashed(format!("removed: {why}"));
        }
        let waited = now.saturating_duration_since(suspect.since);
        let pid = suspect.scene.process.pid;
        if let Some(stuck) = self.stuck.get(&suspect.leader.unwrap_or(pid)) {
            return Verdict::Crashed(format!("killed, because it was stuck: {stuck}"));
        }
        let ended = suspect.leader.map(|leader| self.ended.iter().rfind(|e| e.pid == leader));
        let how = match ended {
            Some(Some(ended)) if ended.pressed => return Verdict::Innocent,
            // What a script that had started it came to says nothing.
            Some(Some(ended)) if ended.pid == pid => ended.how,
            Some(None) if waited < SUPERVISED_LIMIT => return Verdict::NotKnownYet,
            _ if suspect.pidfd.as_ref().is_none_or(has_ended) => How::Unknown,
            _ if waited < HUNG_UP_LIMIT => return Verdict::NotKnownYet,
            _ => return Verdict::Innocent,
        };
        match how {
            How::Code(0) | How::Signal(Signal::SIGTERM | Signal::SIGINT) => Verdict::Innocent,
            How::Code(code) => Verdict::Crashed(format!("exit status {code}")),
            How::Signal(signal) => Verdict::Crashed(signal.as_str().to_owned()),
            How::Unknown => {
                let words = suspect.scene.black_box.last_words();
                let has_words = words.signal.is_some() || words.panic.is_some();
                match suspect.told_to_go && !has_words {
                    true => Verdict::Innocent,
                    false => Verdict::Crashed("ended, how is not known".to_owned()),
                }
            }
        }
    }

    /// Forgets what was remembered of a process for this; returns its last lines.
    fn forget(&mut self, suspect: &Suspect) -> Vec<String> {
        let pid = suspect.scene.process.pid;
        let leader = suspect.leader.unwrap_or(pid);
        self.stuck.remove(&leader);
        if suspect.leader.is_none() {
            return vec!["(it was started by hand: what it printed went elsewhere)".to_owned()];
        }
        match self.ended.iter().rposition(|ended| ended.pid == leader) {
            Some(at) => self.ended.remove(at).map_or_else(Vec::new, |e| e.lines.into()),
            // It was removed, and lives or is about to end.
            None => self.lines.get(&leader).into_iter().flatten().cloned().collect(),
        }
    }

    fn write(&mut self, scene: Scene) {
        let Some(store) = &self.store else { return };
        if self.writer.is_none() {
            match Writer::start(Arc::clone(store)) {
                Ok(writer) => self.writer = Some(writer),
                Err(error) => {
                    tracing::warn!(%error, "an NF crashed ({}), and no thread can be had to write \
                         down what is left of it", scene.why);
                    return;
                }
            }
        }
        if let Some(writer) = &self.writer {
            writer.write(scene);
        }
    }

    /// Decides about all that are left, and waits for what is being written.
    pub fn finish(&mut self) {
        self.judge(Instant::now() + SUPERVISED_LIMIT);
        self.writer = None;
    }
}

impl ProcessNote {
    /// What can be seen of a process that has just attached.
    #[must_use]
    pub fn of(pid: i32, uid: u32) -> Self {
        let mut line = Vec::new();
        if let Ok(file) = std::fs::File::open(format!("/proc/{pid}/cmdline")) {
            // What cannot be read is not known.
            let _ = file.take(MAX_COMMAND_BYTES).read_to_end(&mut line);
        }
        let words = line.strip_suffix(&[0]).unwrap_or(&line).split(|byte| *byte == 0);
        let words = words.map(|word| String::from_utf8_lossy(word).into_owned());
        let command = if line.is_empty() { Vec::new() } else { words.collect() };
        let folder = std::fs::read_link(Path::new(&format!("/proc/{pid}/cwd"))).ok();
        let folder = folder.map(|folder| folder.display().to_string());
        Self { pid, uid, command, folder, by_manager: false }
    }
}

fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests;
