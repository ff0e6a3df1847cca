//! NFs as processes: started, watched, signalled, reaped, found again.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nflib::control::Confine;
use nflib::shm::pidfd_open;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, getpgid};

use super::Wanted;
use super::exec::Surroundings;
use super::launch;
use super::output::Tail;
use super::record::{Folder, Record};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// By itself.
    Code(i32),
    /// By a signal.
    Signal(Signal),
    /// It was another manager's child, whose end only that one could learn.
    Unknown,
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "killed by {signal}"),
            Self::Unknown => f.write_str("ended, how is not known"),
        }
    }
}

/// A process that an earlier manager started.
pub struct Found {
    /// It.
    pub pid: i32,
    /// The core it was given.
    pub core: Option<u32>,
    /// What it was started for.
    pub wanted: Wanted,
}

/// What the supervisor needs of an operating system.
pub trait Processes {
    /// Starts a process, or says in one line why it cannot be.
    fn start(&mut self, wanted: &Wanted, core: Option<u32>) -> Result<i32, String>;
    /// Processes of an earlier manager, which from now on are watched as if started here.
    fn adopt(&mut self) -> Vec<Found>;
    /// Processes that have ended since the last call, and how. Each is kept until it is
    /// [forgotten](Self::forget).
    fn ended(&mut self) -> Vec<(i32, How)>;
    /// Sends a signal to a process and what it started.
    fn signal(&mut self, pid: i32, signal: Signal);
    /// The process, of those started or adopted here, that `pid` belongs to.
    fn leader_of(&self, pid: i32) -> i32;
    /// New lines of output; all there are once it has ended.
    fn output(&mut self, pid: i32, ended: bool) -> Vec<String>;
    /// The last lines of output.
    fn last_lines(&self, pid: i32) -> Vec<String>;
    /// Forgets a process that has ended.
    fn forget(&mut self, pid: i32);
    /// Removes what lies about for the next manager; nothing runs any more.
    fn clean(&mut self);
}

struct Watched {
    pidfd: OwnedFd,
    stem: String,
    tail: Tail,
}

/// The real processes of this machine.
pub struct OsProcesses {
    socket: PathBuf,
    /// The manager's own program, which is the launcher too.
    launcher: PathBuf,
    /// Cores of an NF that got none of its own.
    all_cores: Vec<u32>,
    folder: Folder,
    /// Readable when any process has ended; watches the pidfds.
    epoll: Epoll,
    watched: BTreeMap<i32, Watched>,
}

/// Processes whose end is seen to in one turn; more are seen in the next.
const MAX_ENDED: usize = 64;

impl OsProcesses {
    /// Nothing started yet.
    ///
    /// # Errors
    /// As epoll_create1(2).
    pub fn new(socket: PathBuf, launcher: PathBuf, all_cores: Vec<u32>) -> nix::Result<Self> {
        let folder = Folder::of_socket(&socket);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self { socket, launcher, all_cores, folder, epoll, watched: BTreeMap::new() })
    }

    /// Readable when a process has ended.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    fn watch(&mut self, pid: i32, stem: String, tail: Tail) -> std::io::Result<()> {
        let pidfd = pidfd_open(pid)?;
        self.epoll.add(&pidfd, EpollEvent::new(EpollFlags::EPOLLIN, pid.cast_unsigned().into()))?;
        self.watched.insert(pid, Watched { pidfd, stem, tail });
        Ok(())
    }

    /// `NAME-N` with the lowest N that no process has; in a name for files only what is harmless
    /// there.
    fn free_stem(&self, name: &str) -> String {
        let safe = |c: char| if c.is_ascii_alphanumeric() || "-_".contains(c) { c } else { '_' };
        let name: String = name.chars().map(safe).take(64).collect();
        let taken = |stem: &String| self.watched.values().any(|watched| watched.stem == *stem);
        let mut stems = (0_u32..).map(|n| format!("{name}-{n}"));
        stems.find(|stem| !taken(stem)).unwrap_or(name)
    }

    fn command(&self, wanted: &Wanted, core: Option<u32>) -> Result<Command, String> {
        let name = wanted.command.first().ok_or("the command is empty")?;
        let search = std::env::var_os("PATH");
        let program = launch::find_program(name, &self.launcher, search.as_deref())?;
        let account = launch::account(wanted.user.as_deref(), &self.socket)?;
        if wanted.read_only && wanted.confine == Confine::Off && account.is_none() {
            return Err("access is read-only, which an NF of the manager's own user that is not \
                        confined could undo: name another user, or leave out confine"
                .into());
        }
        let surroundings = Surroundings {
            session: false,
            // DPDK's EAL may have pinned the thread that starts NFs: always say the cores.
            cores: core.map_or_else(|| self.all_cores.clone(), |core| vec![core]),
            account,
            confined: true,
            confine: Some(wanted.confine),
            reader: wanted.read_only,
            writable: wanted.writable.iter().map(PathBuf::from).collect(),
        };
        let args = launch::arguments(wanted, &self.socket, core);
        let mut command = Command::new(&self.launcher);
        // A process group of its own: Ctrl-C at a manager's terminal is for the manager, which
        // drains first; and what an NF has started can be ended with it.
        command
            .args(surroundings.to_args(program.as_os_str(), &args))
            .process_group(0)
            .stdin(Stdio::null());
        Ok(command)
    }

    fn spawn(
        &mut self,
        wanted: &Wanted,
        core: Option<u32>,
    ) -> Result<(Child, String, Tail), String> {
        let mut command = self.command(wanted, core)?;
        self.folder.make()?;
        let stem = self.free_stem(&wanted.name);
        let path = self.folder.output(&stem);
        let (file, tail) =
            Tail::create(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let again = file.try_clone().map_err(|error| error.to_string())?;
        let child = command.stdout(file).stderr(again).spawn();
        let child = child.map_err(|error| format!("{}: {error}", self.launcher.display()))?;
        Ok((child, stem, tail))
    }
}

impl Processes for OsProcesses {
    fn start(&mut self, wanted: &Wanted, core: Option<u32>) -> Result<i32, String> {
        let (mut child, stem, tail) = self.spawn(wanted, core)?;
        let pid = child.id().cast_signed();
        let noted = self
            .watch(pid, stem.clone(), tail)
            .and_then(|()| self.folder.write(&stem, &Record::of(pid, core, wanted)?));
        if let Err(error) = noted {
            // What cannot be watched, or found again, must not run.
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
            let _ = child.wait();
            self.forget(pid);
            return Err(format!("cannot be watched: {error}"));
        }
        Ok(pid)
    }

    fn adopt(&mut self) -> Vec<Found> {
        let mut found = Vec::new();
        for (stem, record) in self.folder.living() {
            let tail = Tail::resume(&self.folder.output(&stem));
            // Looked at again once it is watched: from here on the number is this process's.
            if self.watch(record.pid, stem, tail).is_ok() && record.is_alive() {
                found.push(Found { pid: record.pid, core: record.core, wanted: record.wanted });
            } else {
                self.forget(record.pid);
            }
        }
        found
    }

    fn ended(&mut self) -> Vec<(i32, How)> {
        let mut events = [EpollEvent::empty(); MAX_ENDED];
        let count = self.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
        let pids = events[..count].iter().filter_map(|event| i32::try_from(event.data()).ok());
        pids.filter_map(|pid| Some((pid, reap(pid, self.watched.get(&pid)?.pidfd.as_fd())?)))
            .collect()
    }

    fn signal(&mut self, pid: i32, signal: Signal) {
        // A child's number is its own until it is reaped, which happens in `ended` only. Of another
        // manager's child the same holds until init reaps it, when its descriptor is readable.
        let gone = self.watched.get(&pid).is_none_or(|watched| has_ended(watched.pidfd.as_fd()));
        if !gone {
            let _ = killpg(Pid::from_raw(pid), signal);
        }
    }

    fn leader_of(&self, pid: i32) -> i32 {
        if self.watched.contains_key(&pid) {
            return pid;
        }
        getpgid(Some(Pid::from_raw(pid))).map_or(pid, Pid::as_raw)
    }

    fn output(&mut self, pid: i32, ended: bool) -> Vec<String> {
        let Some(watched) = self.watched.get_mut(&pid) else { return Vec::new() };
        if ended { watched.tail.finish() } else { watched.tail.read() }
    }

    fn last_lines(&self, pid: i32) -> Vec<String> {
        let watched = self.watched.get(&pid);
        watched.map_or_else(Vec::new, |w| w.tail.last_lines().map(str::to_owned).collect())
    }

    fn forget(&mut self, pid: i32) {
        if let Some(watched) = self.watched.remove(&pid) {
            self.folder.forget(&watched.stem);
        }
    }

    fn clean(&mut self) {
        self.folder.remove();
    }
}

fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut fds = [PollFd::new(pidfd, PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// How a process ended, which is then reaped; `None` when it has not.
fn reap(pid: i32, pidfd: BorrowedFd<'_>) -> Option<How> {
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
    match waitid(Id::PIDFd(pidfd), look | WaitPidFlag::WNOWAIT) {
        Ok(WaitStatus::StillAlive) => return None,
        Err(Errno::ECHILD) => return Some(How::Unknown),
        _ => {}
    }
    // Ended, and not reaped yet, so the group's number is not another's: end what it left behind,
    // or an NF that a script had started would go on beside the one that takes its place.
    let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
    match waitid(Id::PIDFd(pidfd), look) {
        Ok(WaitStatus::Exited(_, code)) => Some(How::Code(code)),
        Ok(WaitStatus::Signaled(_, signal, _)) => Some(How::Signal(signal)),
        // A real-time signal, for which there is no name.
        _ => Some(How::Unknown),
    }
}
