//! The control thread: one loop over the control socket, the NFs' processes and signals.
//!
//! Everything that may wait happens here and never in a worker. A client is not trusted: its
//! messages are bounded, it is never waited for, and whatever is wrong with it ends its connection and
//! nothing else.
#![forbid(unsafe_code)]

mod buffers;
mod connection;
mod crashes;
mod ends;
mod flows;
mod judging;
mod messages;
mod observe;
mod requests;
mod socket;
mod supervise;
mod upgrade;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nflib::control::{self, ErrorCode, ErrorReply, Reply};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use thiserror::Error;

use crate::conductor::Conductor;
use crate::config::{Config, PollMode};
use crate::crash::Crashes;
use crate::fabric::{Fabric, FabricError};
use crate::journal::{Beginning, Journal, Remaining};
use crate::poll_loop::Snapshot;
use crate::registry::Leave;
use crate::shares::Shares;
use crate::status;
use crate::supervisor::{CoreMap, Supervisor};
use connection::Connections;
use crashes::{HUNG_UP, MANAGER_ENDS, PROCESS_ENDED};
use ends::{Deaths, StuckWatch};
use messages::Calls;
use observe::Observing;
use requests::Asking;
pub use socket::ControlSocket;
use upgrade::Upgrade;

/// Time between looks at the workers while they drain, or while a change is under way.
const BUSY_LOOK_MS: u8 = 1;
/// How long the first plan may take before clients are heard all the same.
const BEGIN_LIMIT: Duration = Duration::from_secs(2);
/// Longest time between looks at what has no descriptor to wait for.
const HOUSEKEEPING_MS: u8 = 100;

/// Why the control socket cannot be used, or the manager had to stop.
#[derive(Debug, Error)]
pub enum ServerError {
    /// Another manager has it.
    #[error(
        "{socket}: another manager is listening here{pid}; stop it, or set manager.socket to another path"
    )]
    InUse {
        /// The path.
        socket: PathBuf,
        /// Its process as ` (pid N)`, where known.
        pid: String,
    },
    /// Something else is there, and is left alone.
    #[error("{0}: this is not a socket; set manager.socket to another path, or remove it")]
    NotASocket(PathBuf),
    /// The group does not exist.
    #[error("manager.socket_group: there is no group {0:?}")]
    NoGroup(String),
    /// The system said no.
    #[error("{socket}: {what}: {source}")]
    Socket {
        /// The path.
        socket: PathBuf,
        /// The call.
        what: &'static str,
        /// Its error.
        source: io::Error,
    },
    /// The data path failed.
    #[error(transparent)]
    Fabric(#[from] FabricError),
    /// Signals or poll failed.
    #[error("control thread: {what}: {source}")]
    Os {
        /// The call.
        what: &'static str,
        /// Its error.
        source: io::Error,
    },
}

/// The control thread's state.
pub struct Server {
    socket: ControlSocket,
    config: Config,
    fabric: Fabric,
    conductor: Conductor,
    supervisor: Supervisor,
    connections: Connections,
    calls: Calls,
    asking: Asking,
    signals: SignalFd,
    started: Instant,
    drain_limit: Duration,
    shares: Shares,
    /// A service whose NFs are being exchanged.
    upgrade: Option<Upgrade>,
    journal: Option<Journal>,
    /// Rules that an earlier manager knew, and that end sooner than their timeout says.
    remaining: Remaining,
    deaths: Deaths,
    crashes: Crashes,
    stuck: StuckWatch,
    observing: Observing,
    /// When the last poll came back, nanoseconds of CLOCK_MONOTONIC.
    woke_ns: u64,
    /// When NFs are judged next.
    next_judgement: Option<Instant>,
    /// Somebody asked for the end.
    stopping: bool,
    /// The NFs stay, for the next manager.
    keep_nfs: bool,
    /// The connections that asked: they get the final books.
    wait_for_end: Vec<u64>,
    /// The workers were told to drain.
    draining: bool,
    /// Pages of the region that were found to be gone, as last reported.
    lost_pages: u64,
}

/// Blocks SIGINT and SIGTERM in this thread and all it starts later, so that they arrive at
/// [`Server::run`] and nowhere else. To be called before any other thread exists.
///
/// # Errors
/// As the system says.
pub fn block_signals() -> Result<SignalFd, ServerError> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGINT);
    set.add(Signal::SIGTERM);
    set.thread_block()
        .and_then(|()| SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK))
        .map_err(|errno| ServerError::Os { what: "signalfd", source: errno.into() })
}

impl Server {
    /// A server over a running fabric. `cores` are those that NFs and workers may have; to be taken
    /// before a driver pins the calling thread.
    ///
    /// # Errors
    /// As the system says, when there is no memory for route table and doorbells.
    pub fn new(
        socket: ControlSocket,
        config: Config,
        fabric: Fabric,
        signals: SignalFd,
        mut cores: CoreMap,
    ) -> Result<Self, ServerError> {
        let fail = |what| move |source| ServerError::Os { what, source };
        cores.take_for_workers(&config.manager.cores, config.manager.poll == PollMode::Busy);
        let launcher = std::env::current_exe().map_err(fail("own program"))?;
        let supervisor = Supervisor::new(config.manager.socket.clone(), launcher, cores)
            .map_err(fail("supervisor"))?;
        let crashes = Crashes::new(&config.manager);
        let conductor = Conductor::new(config.model.clone()).map_err(fail("memfd"))?;
        let observing = Observing::start(&fabric, config.manager.latency_interval_us)
            .map_err(fail("observer"))?;
        Ok(Self {
            observing,
            socket,
            drain_limit: Duration::from_millis(config.manager.drain_ms),
            config,
            fabric,
            conductor,
            supervisor,
            connections: Connections::default(),
            calls: Calls::default(),
            asking: Asking::default(),
            signals,
            started: Instant::now(),
            shares: Shares::default(),
            upgrade: None,
            journal: None,
            remaining: Remaining::new(),
            deaths: Deaths::default(),
            crashes,
            stuck: StuckWatch::default(),
            woke_ns: 0,
            next_judgement: None,
            stopping: false,
            keep_nfs: false,
            wait_for_end: Vec::new(),
            draining: false,
            lost_pages: 0,
        })
    }

    /// Begins with what an earlier manager's journal says, and goes on writing it.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_journal(mut self, beginning: Beginning) -> Result<Self, ServerError> {
        let Beginning { journal, model, remaining } = beginning;
        let conductor = Conductor::new(model);
        self.conductor = conductor.map_err(|source| ServerError::Os { what: "memfd", source })?;
        (self.journal, self.remaining) = (Some(journal), remaining);
        Ok(self)
    }

    /// Serves until SIGINT, SIGTERM or a request, then drains. Returns the final status.
    ///
    /// # Errors
    /// [`ServerError`] when the data path fails.
    pub fn run(mut self) -> Result<control::Status, ServerError> {
        self.begin()?;
        while !self.stopping {
            self.serve()?;
            if let Ok(Some(signal)) = self.signals.read_signal() {
                tracing::info!(signal = signal.ssi_signo, "stopping: draining");
                self.stopping = true;
            }
        }
        self.drain()
    }

    /// Brings what the configuration wants into force, before anybody is heard.
    fn begin(&mut self) -> Result<(), ServerError> {
        let began = Instant::now();
        while self.conductor.is_busy() && began.elapsed() < BEGIN_LIMIT {
            self.conductor.turn(&mut self.fabric, Instant::now())?;
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok(())
    }

    /// Stops receiving, lets what is inside come out, then tells the NFs to go.
    fn drain(mut self) -> Result<control::Status, ServerError> {
        self.draining = true;
        self.abandon_upgrade();
        self.fabric.drain(self.drain_limit);
        let asked = Instant::now();
        let mut told = false;
        while !self.fabric.stopped() {
            // What does not come out by itself is kept by an NF: it gives it up when told to stop.
            if !told && asked.elapsed() > self.drain_limit / 2 {
                if self.keep_nfs {
                    self.hang_up()?;
                } else {
                    self.tell_nfs_to_stop();
                }
                told = true;
            }
            self.serve()?;
        }
        if !self.keep_nfs {
            if !told {
                self.tell_nfs_to_stop();
            }
            self.end_nfs()?;
        }
        self.crashes.finish();
        let last = self.status()?;
        for id in std::mem::take(&mut self.wait_for_end) {
            self.connections.send(id, &Reply::Status(Box::new(last.clone())));
        }
        self.connections.flush_for(Duration::from_millis(100));
        if let Some(journal) = self.journal.take().filter(|_| !self.keep_nfs) {
            journal.end();
        }
        Ok(last)
    }

    /// Everything there is to see, with what the supervisor knows.
    fn status(&mut self) -> Result<control::Status, ServerError> {
        let mut status = status::take(&mut self.fabric, &self.conductor, self.started)?;
        for nf in &mut status.nfs {
            nf.cost_ns = self.shares.cost_ns(nf.instance);
            nf.stuck = self.stuck.stuck(nf.instance).map(|stuck| stuck.to_string());
        }
        status.deaths = self.deaths.status();
        for service in &mut status.services {
            if let Some(state) = self.supervisor.state(service.id) {
                service.restarts = state.restarts;
                service.waiting = state.waiting;
            }
        }
        if let Some((id, upgrade)) = self.upgrade.as_ref().map(Upgrade::status) {
            let of = status.services.iter_mut().find(|service| service.id == id);
            of.into_iter().for_each(|service| service.upgrade = Some(upgrade.clone()));
        }
        Ok(status)
    }

    /// Parts from NFs that keep packets and are to stay: without a manager they give them up.
    fn hang_up(&mut self) -> Result<(), ServerError> {
        let instances: Vec<_> = self.conductor.registry().nfs().map(|nf| nf.instance).collect();
        instances.into_iter().try_for_each(|instance| {
            self.conductor.ring(instance);
            self.end_nf(instance, MANAGER_ENDS)
        })
    }

    fn tell_nfs_to_stop(&mut self) {
        let instances: Vec<_> = self.conductor.registry().nfs().map(|nf| nf.instance).collect();
        for instance in instances {
            let stop = Reply::Stop { reason: "the manager is stopping".to_owned() };
            self.connections.send_to_nf(instance, &stop, None);
            self.conductor.ring(instance);
        }
    }

    /// One round: waits for something to happen, and sees to it.
    fn serve(&mut self) -> Result<(), ServerError> {
        let ready = self.wait()?;
        self.woke_ns = status::now_ns();
        // The dead first: what they have is wanted back, and others' flows wait for the next plan.
        for instance in ready.dead {
            self.end_nf(instance, PROCESS_ENDED)?;
        }
        for (id, hung_up) in ready.connections {
            self.read_from(id, hung_up)?;
        }
        // A process that dies hangs up first. What it has comes back before a successor is started,
        // which may take a worker's core for the length of a slice.
        self.sweep()?;
        self.connections.bound_unfinished();
        if ready.accept {
            self.connections.accept(&self.socket.listener);
        }
        self.end_broken()?;
        if !self.draining {
            self.advance_upgrade(Instant::now());
            self.conductor.turn(&mut self.fabric, Instant::now())?;
            self.expire_rules()?;
        }
        self.supervise(Instant::now())?;
        self.share_cores(Instant::now())?;
        self.look_for_stuck(Instant::now())?;
        self.judge(Instant::now())?;
        self.crashes.judge(Instant::now());
        self.observe()?;
        self.deliver();
        self.report_lost_pages();
        self.sweep()?;
        match self.fabric.lost_worker() {
            Some(worker) => Err(FabricError::WorkerLost { worker }.into()),
            None => Ok(()),
        }
    }

    /// Sends what conductor and callers have to say.
    fn deliver(&mut self) {
        for letter in self.conductor.take_letters() {
            self.connections.send_to_nf(letter.instance, &letter.reply, letter.fd);
            self.conductor.ring(letter.instance);
        }
        let unwritten = self.write_journal();
        for answer in self.conductor.take_answers() {
            if self.answered_while_upgrading(&answer) {
                continue;
            }
            let reply = match answer.result {
                Ok(mut applied) => {
                    applied.notes.extend(unwritten.clone());
                    Reply::Applied(applied)
                }
                Err(error) => Reply::Error(error),
            };
            if let Some(id) = self.asking.done(answer.id) {
                self.connections.send(id, &reply);
            }
        }
        for (id, reply) in self.calls.overdue(Instant::now()) {
            self.connections.send(id, &reply);
        }
        self.connections.flush();
    }

    /// Writes down what has changed. Returns what those must know who asked for it, if it fails.
    fn write_journal(&mut self) -> Option<String> {
        let steps = self.conductor.take_made();
        let journal = self.journal.as_mut().filter(|_| !steps.is_empty())?;
        let error = journal.add(steps, self.conductor.model()).err()?;
        tracing::error!("{error}; what was changed last is in force, and would not be restored");
        Some(format!("this change would not outlive the manager: {error}"))
    }

    /// Polls everything.
    fn wait(&self) -> Result<Ready, ServerError> {
        let busy = self.draining || self.conductor.is_busy();
        let timeout_ms = match (busy, &self.upgrade) {
            (true, _) => BUSY_LOOK_MS,
            (false, Some(_)) => upgrade::LOOK_EVERY_MS,
            (false, None) => HOUSEKEEPING_MS,
        };
        let pidfds: Vec<_> = self
            .conductor
            .registry()
            .nfs()
            .filter_map(|nf| Some((nf.instance, nf.pidfd.as_ref()?.as_fd())))
            .collect();
        let mut fds = vec![watch(self.signals.as_fd()), watch(self.socket.listener.as_fd())];
        let connections = self.connections.watched();
        fds.extend(connections.iter().map(|&(_, fd, flags)| PollFd::new(fd, flags)));
        fds.extend(pidfds.iter().map(|&(_, fd)| watch(fd)));
        fds.extend(self.supervisor.fds().map(watch));
        fds.push(watch(self.observing.fd()));
        let now = Instant::now();
        let until_supervisor = self
            .supervisor
            .next_deadline()
            .map(|at| at.saturating_duration_since(now).as_micros().div_ceil(1000));
        let timeout_ms = until_supervisor
            .map_or(timeout_ms, |ms| timeout_ms.min(u8::try_from(ms).unwrap_or(u8::MAX)));
        let with_more: Vec<_> = self.connections.with_more().map(|id| (id, false)).collect();
        let timeout_ms = if with_more.is_empty() { timeout_ms } else { 0 };
        match poll(&mut fds, PollTimeout::from(timeout_ms)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(ServerError::Os { what: "poll", source: errno.into() }),
        }
        let is_ready = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
        let hung_up = |fd: &PollFd<'_>| {
            fd.revents()
                .is_some_and(|seen| seen.intersects(PollFlags::POLLHUP | PollFlags::POLLERR))
        };
        let (of_connections, of_processes) = fds[2..].split_at(connections.len());
        let ready = connections.iter().zip(of_connections).filter(|(_, fd)| is_ready(fd));
        let dead = pidfds.iter().zip(of_processes).filter(|(_, fd)| is_ready(fd));
        Ok(Ready {
            accept: is_ready(&fds[1]),
            connections: ready.map(|((id, ..), fd)| (*id, hung_up(fd))).chain(with_more).collect(),
            dead: dead.map(|(nf, _)| nf.0).collect(),
        })
    }

    /// Says that somebody has taken pages out of the packet region.
    fn report_lost_pages(&mut self) {
        let lost = nflib::shm::lost_pages();
        if lost > std::mem::replace(&mut self.lost_pages, lost) {
            tracing::error!(
                pages = lost,
                "an NF has punched holes into the packet region: packets there are lost, and what \
                 comes to lie there is not seen by NFs that share it; let the manager start such NFs \
                 (they are confined), or make their service isolated, and restart the manager"
            );
        }
    }

    fn end_nf(&mut self, instance: u32, why: &str) -> Result<(), ServerError> {
        let _span = tracing::debug_span!("end_nf", instance, why).entered();
        self.connections.close_nf(instance);
        for (id, reply) in self.calls.gone(instance) {
            self.connections.send(id, &reply);
        }
        self.conductor.report_violations();
        let suspect = self.witness(instance, why);
        if let Some(nf) = self.conductor.remove(instance, &mut self.fabric)? {
            self.note_death(&nf, why);
            tracing::info!(instance, service = nf.service, name = nf.name, why, "NF removed");
            if self.supervisor.owner(nf.pid).is_none() {
                self.supervisor.cores().release(nf.pid);
            }
            if let Some(suspect) = suspect {
                self.accuse(suspect);
            }
        }
        Ok(())
    }

    /// Forgets closed connections, and the NFs on them.
    fn sweep(&mut self) -> Result<(), ServerError> {
        for instance in self.connections.sweep() {
            self.end_nf(instance, HUNG_UP)?;
        }
        Ok(())
    }

    /// Lets an NF leave: through the conductor, or at once when the manager ends anyway.
    fn drain_nf(&mut self, instance: u32, why: Leave) -> Result<bool, ServerError> {
        if !self.draining {
            return Ok(self.conductor.drain_nf(instance, why));
        }
        let Some(nf) = self.conductor.registry().get(instance).map(|record| record.nf) else {
            return Ok(false);
        };
        self.fabric.close_nf(nf)?;
        let reply = match why {
            Leave::Asked => Reply::Detached,
            Leave::Told(reason) => Reply::Stop { reason },
        };
        self.connections.send_to_nf(instance, &reply, None);
        Ok(true)
    }

    /// How the books stand, for tests that run the server in their own process.
    #[must_use]
    pub fn books(&mut self) -> Option<Snapshot> {
        self.fabric.snapshot().ok()
    }
}

struct Ready {
    accept: bool,
    /// Those with something to read, and whether their peers hung up.
    connections: Vec<(u64, bool)>,
    dead: Vec<u32>,
}

fn watch(fd: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::new(fd, PollFlags::POLLIN)
}

fn refusal(code: ErrorCode, message: impl Into<String>) -> Reply {
    Reply::Error(ErrorReply { code, message: message.into() })
}
