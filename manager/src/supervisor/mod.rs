//! Starting NFs and keeping as many running as are wanted.
//!
//! The [`Supervisor`] is a part of the control thread's poll loop: nothing in it waits. It is told
//! what is wanted ([`set_wanted`](Supervisor::set_wanted)), is given every turn
//! ([`poll`](Supervisor::poll)), and says what happened.
//!
//! ```text
//!            start                    ends badly: again, after a pause that grows
//!  wanted ──────────► running ──┬───────────────────────────────────────► wanted
//!     ▲  no core, no program:   ├─ exit code 0 (a limit): done      ─┐ until the service's
//!     └─ waits, with a reason   ├─ exit code 2 (usage): given up    ─┤ entry changes
//!                               └─ not wanted any more: surplus ──► released ──► SIGTERM, SIGKILL
//! ```
//!
//! - **Scale-down is graceful, and the server's work:** the supervisor names the
//!   [`surplus`](Supervisor::surplus); the server moves the flows away, tells the NF to stop, and
//!   says so ([`released`](Supervisor::released)); only one that does not go then is pressed.
//! - **A changed command is rolled out:** NFs of the old one stay until all of the new one are
//!   attached, and become surplus then. If the new ones do not come up, the old ones go on serving.
//!   Where cores are short, they change places one by one.
//! - **NFs outlive a manager that is killed:** records beside the control socket tell the next one
//!   which processes are whose, and it adopts those that are what is wanted and names the others as
//!   surplus. How an adopted NF ends is known to nobody, so it is always taken for a failure.
//! - **A clean end ends all** ([`end_all`](Supervisor::end_all)), and leaves no file behind.
//!
//! NFs run with no privileges of the manager's, and confined: see [`exec`].
#![forbid(unsafe_code)]

mod cores;
mod event;
pub mod exec;
mod files;
mod launch;
mod output;
mod process;
mod record;
mod slot;
mod syscalls;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nflib::control::{Confine, ServiceSpec};
use nflib::descriptor::ServiceId;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

pub use cores::{CoreMap, Holder, NoCore};
pub use event::{Event, GIVEN_UP, NfProcess, ServiceState, What};
pub use launch::find_program;
pub use output::LINES_KEPT;
pub use process::How;
use process::{Found, OsProcesses, Processes};
use slot::{Slot, State};

/// From being told to leave to SIGTERM, and from that to SIGKILL.
pub const GRACE: Duration = Duration::from_secs(5);
/// Between two looks at what NFs have printed.
const OUTPUT_EVERY: Duration = Duration::from_millis(100);
/// Most processes started in one turn: a start takes about a millisecond, and others wait.
const MAX_STARTS: usize = 8;
/// How an NF says that its command line is wrong: starting it again would end the same way.
const EXIT_USAGE: i32 = 2;

/// How many NFs of a service shall run, and how one is started. Everything was checked before.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Wanted {
    /// Service id.
    pub service: ServiceId,
    /// The service's name.
    pub name: String,
    /// Program and arguments; a program without `/` is looked for beside the manager's own, then in
    /// `$PATH`.
    pub command: Vec<String>,
    /// How many.
    pub instances: u32,
    /// Cores to take in turn; empty: any.
    pub cores: Vec<u32>,
    /// Each on a core that no worker and no other NF has.
    pub own_core: bool,
    /// User to run as.
    pub user: Option<String>,
    /// Leave after so many packets.
    pub packet_limit: Option<u64>,
    /// Leave after so long, seconds.
    pub time_limit_s: Option<f64>,
    /// How far each is confined.
    #[serde(default)]
    pub confine: Confine,
    /// Files and folders that each may write.
    #[serde(default)]
    pub writable: Vec<String>,
    /// Hand packets over only through the manager. What an NF may reach is given to it when it
    /// attaches, so another one has to.
    #[serde(default)]
    pub isolated: bool,
    /// See [`ServiceSpec::shared_region`].
    #[serde(default)]
    pub shared_region: bool,
    /// Packets can be read only, which depends on how each is confined.
    #[serde(default)]
    pub read_only: bool,
}

impl Wanted {
    /// What a service's specification wants; `None` when its NFs are started by hand.
    #[must_use]
    pub fn of(service: ServiceId, spec: &ServiceSpec) -> Option<Self> {
        Some(Self {
            service,
            name: spec.name.clone(),
            command: spec.command.clone()?,
            instances: spec.instances,
            cores: spec.cores.clone(),
            own_core: spec.own_core,
            user: spec.user.clone(),
            packet_limit: spec.packet_limit,
            time_limit_s: spec.time_limit_s,
            confine: spec.confine,
            writable: spec.writable.clone(),
            isolated: spec.isolated,
            shared_region: spec.shared_region,
            read_only: spec.access.is_read_only(),
        })
    }

    /// Whether an NF started for `other` is as good as one started for this.
    fn starts_alike(&self, other: &Self) -> bool {
        let Self { name, instances, .. } = other;
        *other == Self { name: name.clone(), instances: *instances, ..self.clone() }
    }
}

/// How far NFs are confined that are to be confined so: in words, as it is on this machine.
#[must_use]
pub fn confinement(wanted: Confine) -> String {
    let mut lacking = Vec::new();
    if wanted != Confine::Off {
        lacking.extend((nflib::shm::landlock_version() == 0).then_some("Landlock"));
        let filter = syscalls::filter(syscalls::Refused::default());
        lacking.extend(filter.is_none().then_some("seccomp"));
    }
    match lacking.is_empty() {
        true => wanted.name().to_owned(),
        false => format!("{} without {}", wanted.name(), lacking.join(" and ")),
    }
}

/// What a process is to the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// It stands in a slot.
    Kept,
    /// It was started for a service's earlier entry, or by an earlier manager.
    Stale,
    /// It was started for an entry that is not wanted yet.
    OnTrial,
    /// It shall go; the server is to drain it and to tell it.
    Surplus,
    /// It was told to go. What comes next if it does not, and when.
    Released { term_at: Option<Instant>, kill_at: Option<Instant> },
}

struct Nf {
    wanted: Wanted,
    core: Option<u32>,
    /// Counts starts.
    age: u64,
    /// `None`: adopted.
    started: Option<Instant>,
    attached: bool,
    role: Role,
}

impl Nf {
    fn release(&mut self, now: Instant) {
        if !matches!(self.role, Role::Released { .. }) {
            // One that is not attached cannot have been told to leave: SIGTERM is the word.
            let term_at = if self.attached { now + GRACE } else { now };
            self.role = Role::Released { term_at: Some(term_at), kill_at: Some(term_at + GRACE) };
        }
    }
}

struct Service {
    wanted: Wanted,
    slots: Vec<Slot>,
    restarts: u64,
}

/// Keeps as many NFs running as are wanted. See the module's text.
pub struct Supervisor<P: Processes = OsProcesses> {
    processes: P,
    cores: CoreMap,
    services: BTreeMap<ServiceId, Service>,
    nfs: BTreeMap<i32, Nf>,
    starts: u64,
    /// What is wanted was said once.
    told: bool,
    ending: bool,
    /// Time of the last turn.
    now: Instant,
    read_at: Instant,
    events: Vec<Event>,
}

impl Supervisor {
    /// A supervisor beside the control socket at `socket`, which must be bound already: its lock is
    /// what keeps two managers from adopting the same NFs. `launcher` is the manager's own program
    /// (see [`exec`]); `cores` knows the workers' already.
    ///
    /// NFs of an earlier manager are adopted at once; the first
    /// [`set_wanted`](Self::set_wanted) decides which may stay.
    ///
    /// # Errors
    /// As epoll_create1(2).
    pub fn new(socket: PathBuf, launcher: PathBuf, cores: CoreMap) -> io::Result<Self> {
        let confinement = confinement(Confine::Default);
        if confinement != Confine::Default.name() {
            tracing::warn!("NFs are confined less than they might be: {confinement}");
        }
        let usable = cores.usable().iter().copied().collect();
        Ok(Self::over(OsProcesses::new(socket, launcher, usable)?, cores, Instant::now()))
    }

    /// Descriptors to wait for: when one is readable, [`poll`](Self::poll) has something to do.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.processes.fd())
    }
}

impl<P: Processes> Supervisor<P> {
    fn over(processes: P, cores: CoreMap, now: Instant) -> Self {
        let mut supervisor = Self {
            processes,
            cores,
            services: BTreeMap::new(),
            nfs: BTreeMap::new(),
            starts: 0,
            told: false,
            ending: false,
            now,
            read_at: now,
            events: Vec::new(),
        };
        for Found { pid, core, wanted } in supervisor.processes.adopt() {
            supervisor.add(pid, wanted, core, None, Role::Stale);
        }
        supervisor
    }

    /// Says what is wanted: every service that has a command, with all its fields. What is said
    /// again unchanged changes nothing; a service that changes in any way starts afresh what had
    /// left or was given up. Services that are missing are wanted no more.
    pub fn set_wanted(&mut self, services: &[Wanted]) {
        if self.ending {
            return;
        }
        self.services.retain(|id, _| services.iter().any(|wanted| wanted.service == *id));
        for wanted in services {
            self.set_service(wanted);
        }
        for nf in self.nfs.values_mut() {
            let known = self.services.contains_key(&nf.wanted.service);
            if !known && matches!(nf.role, Role::Kept | Role::Stale | Role::OnTrial) {
                nf.role = Role::Surplus;
            }
        }
        if !std::mem::replace(&mut self.told, true) {
            self.tell_adopted();
        }
    }

    fn tell_adopted(&mut self) {
        for (pid, nf) in &self.nfs {
            let what = What::Adopted { pid: *pid, wanted: nf.role == Role::Kept };
            self.events.push(event(&nf.wanted, what));
        }
    }

    fn set_service(&mut self, wanted: &Wanted) {
        let count = wanted.instances as usize;
        match self.services.get_mut(&wanted.service) {
            Some(service) if service.wanted.starts_alike(wanted) => {
                let scaled = service.wanted.instances != wanted.instances;
                service.wanted = wanted.clone();
                if scaled {
                    service.revive();
                    service.grow(count);
                    self.shrink(wanted.service, count);
                }
            }
            _ => self.replace_service(wanted),
        }
    }

    /// Puts a new entry in the place of a service's old one, if there was one. NFs that run already
    /// and are what is wanted (of an earlier manager, of an entry that comes back) stand in for it.
    fn replace_service(&mut self, wanted: &Wanted) {
        let restarts = self.services.get(&wanted.service).map_or(0, |service| service.restarts);
        let mut service = Service { wanted: wanted.clone(), slots: Vec::new(), restarts };
        let mut present: Vec<_> = self
            .nfs
            .iter_mut()
            .filter(|(_, nf)| nf.wanted.service == wanted.service)
            .filter(|(_, nf)| matches!(nf.role, Role::Kept | Role::Stale | Role::OnTrial))
            .collect();
        present.sort_by_key(|(_, nf)| nf.age);
        for (pid, nf) in present {
            nf.role = Role::Stale;
            if service.slots.len() < wanted.instances as usize && nf.wanted.starts_alike(wanted) {
                nf.role = Role::Kept;
                service.slots.push(Slot::running(*pid));
            }
        }
        service.grow(wanted.instances as usize);
        self.services.insert(wanted.service, service);
    }

    /// Takes slots away until `count` are left: first those where nothing runs, then the newest.
    fn shrink(&mut self, id: ServiceId, count: usize) {
        let Some(service) = self.services.get_mut(&id) else { return };
        while service.slots.len() > count {
            let age = |pid: i32| self.nfs.get(&pid).map_or(0, |nf| nf.age);
            let newest = (0..service.slots.len()).max_by_key(|at| match service.slots[*at].state {
                State::Running(pid) => (0, age(pid)),
                _ => (1, *at as u64),
            });
            let Some(at) = newest else { return };
            if let State::Running(pid) = service.slots.remove(at).state
                && let Some(nf) = self.nfs.get_mut(&pid)
            {
                nf.role = Role::Surplus;
            }
        }
    }

    /// Starts an NF of an entry that is not wanted yet, beside those that are. It is not started again
    /// when it ends. When the entry becomes what is [wanted](Self::set_wanted), the NF stands in for it.
    ///
    /// # Errors
    /// One line: why it cannot be started.
    pub fn try_out(&mut self, wanted: &Wanted) -> Result<i32, String> {
        let core = match wanted.own_core || !wanted.cores.is_empty() {
            true => Some(
                self.cores
                    .choose(&wanted.cores, wanted.own_core)
                    .map_err(|none| none.to_string())?,
            ),
            false => None,
        };
        let pid = self.processes.start(wanted, core)?;
        self.events.push(event(wanted, What::Started { pid, core }));
        self.add(pid, wanted.clone(), core, Some(self.now), Role::OnTrial);
        Ok(pid)
    }

    /// Ends a trial: the NF is surplus.
    pub fn end_trial(&mut self, pid: i32) {
        if let Some(nf) = self.nfs.get_mut(&pid).filter(|nf| nf.role == Role::OnTrial) {
            nf.role = Role::Surplus;
        }
    }

    /// Starts anew what has left or was given up, and ends every pause: a person asks for it.
    pub fn start_again(&mut self, service: ServiceId) {
        if let Some(service) = self.services.get_mut(&service) {
            service.revive();
        }
    }

    /// One turn. `now` is the time; it never goes back. Returns what happened, in order.
    pub fn poll(&mut self, now: Instant) -> Vec<Event> {
        self.now = now;
        for (pid, how) in self.processes.ended() {
            self.see_end(pid, how);
        }
        self.retire_stale();
        self.press_leavers();
        self.start_due();
        self.pass_output();
        if self.ending && self.nfs.is_empty() {
            self.processes.clean();
        }
        std::mem::take(&mut self.events)
    }

    /// When [`poll`](Self::poll) has something to do at the latest, unless a descriptor or a call
    /// gives it something earlier.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let slots = self.services.values().flat_map(|service| &service.slots);
        let starts = slots.filter_map(|slot| match slot.state {
            State::Due { at, .. } => Some(at.unwrap_or(self.now)),
            _ => None,
        });
        let presses = self.nfs.values().filter_map(|nf| match nf.role {
            Role::Released { term_at, kill_at } => term_at.or(kill_at),
            _ => None,
        });
        let output = (!self.nfs.is_empty()).then_some(self.read_at);
        starts.chain(presses).chain(output).min()
    }

    /// NFs that run and shall not, newest first: the server is to drain each, tell it to stop, and
    /// say [`released`](Self::released); at once for one that is not attached. An NF stays named
    /// until then; it is not taken back when more are wanted again.
    #[must_use]
    pub fn surplus(&self) -> Vec<i32> {
        let surplus = self.nfs.iter().filter(|(_, nf)| nf.role == Role::Surplus);
        let mut surplus: Vec<_> = surplus.map(|(pid, nf)| (nf.age, *pid)).collect();
        surplus.sort_unstable_by(|a, b| b.cmp(a));
        surplus.into_iter().map(|(_, pid)| pid).collect()
    }

    /// The server has told this NF to leave: if it does not, it gets SIGTERM after [`GRACE`] (at
    /// once if it was never attached), and SIGKILL after another. One that was wanted counts as
    /// done, and none takes its place.
    pub fn released(&mut self, pid: i32, now: Instant) {
        let pid = self.processes.leader_of(pid);
        let Some(nf) = self.nfs.get_mut(&pid) else { return };
        if nf.role == Role::Kept {
            let slot = self.services.get_mut(&nf.wanted.service).and_then(|s| s.slot_of(pid));
            if let Some(slot) = slot {
                slot.state = State::Done("it was told to leave".into());
            }
        }
        nf.release(now);
    }

    /// Kills an NF of ours that is stuck, and what it started. It is restarted as after any bad end,
    /// or, if not `again`, given up.
    pub fn kill_stuck(&mut self, pid: i32, again: bool, why: &str, now: Instant) {
        let pid = self.processes.leader_of(pid);
        let Some(nf) = self.nfs.get_mut(&pid) else { return };
        if !again {
            let slot = self.services.get_mut(&nf.wanted.service).and_then(|s| s.slot_of(pid));
            if let Some(slot) = slot {
                slot.state = State::GivenUp(format!("it was stuck: {why}"));
            }
            nf.role = Role::Released { term_at: None, kill_at: Some(now) };
        }
        self.processes.signal(pid, Signal::SIGKILL);
    }

    /// The process `pid` has attached as instance `instance`. Returns whether it is one of ours, or
    /// was started by one of ours (a script).
    pub fn attached(&mut self, pid: i32, instance: u32) -> bool {
        let pid = self.processes.leader_of(pid);
        let Some(nf) = self.nfs.get_mut(&pid) else { return false };
        nf.attached = true;
        self.cores.name_instance(pid, instance);
        true
    }

    /// The process of ours that `pid` (by a socket's credentials) is, or was started by.
    #[must_use]
    pub fn owner(&self, pid: i32) -> Option<i32> {
        let leader = self.processes.leader_of(pid);
        self.nfs.contains_key(&leader).then_some(leader)
    }

    /// Ends everything: nothing is wanted or started any more, every NF counts as released. Go on
    /// with [`poll`](Self::poll) until [`is_empty`](Self::is_empty); the last turn removes what
    /// lies beside the socket.
    pub fn end_all(&mut self, now: Instant) {
        self.ending = true;
        self.services.clear();
        for nf in self.nfs.values_mut() {
            nf.release(now);
        }
    }

    /// Whether no process is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nfs.is_empty()
    }

    /// Which core has whom; NFs that were started by hand and pinned are noted here, too.
    pub fn cores(&mut self) -> &mut CoreMap {
        &mut self.cores
    }

    /// The processes, by number.
    pub fn nfs(&self) -> impl Iterator<Item = NfProcess> {
        self.nfs.iter().map(|(pid, nf)| NfProcess {
            pid: *pid,
            service: nf.wanted.service,
            core: nf.core,
            leaving: !matches!(nf.role, Role::Kept | Role::OnTrial),
        })
    }

    /// How a service is doing; `None` for one of which nothing is wanted and nothing runs.
    #[must_use]
    pub fn state(&self, id: ServiceId) -> Option<ServiceState> {
        let of_service = self.nfs.values().filter(|nf| nf.wanted.service == id);
        let leaves = |nf: &&Nf| !matches!(nf.role, Role::Kept | Role::OnTrial);
        let leaving = of_service.filter(leaves).count() as u32;
        let Some(service) = self.services.get(&id) else {
            return (leaving > 0).then(|| ServiceState { leaving, ..ServiceState::default() });
        };
        let count = |what: fn(&State) -> bool| {
            service.slots.iter().filter(|slot| what(&slot.state)).count() as u32
        };
        Some(ServiceState {
            wanted: service.wanted.instances,
            running: count(|state| matches!(state, State::Running(_))),
            done: count(|state| matches!(state, State::Done(_))),
            leaving,
            restarts: service.restarts,
            waiting: service.slots.iter().find_map(|slot| match &slot.state {
                State::Due { why, .. } => Some(why.clone()),
                State::GivenUp(why) => Some(format!("{GIVEN_UP}{why}")),
                State::Running(_) | State::Done(_) => None,
            }),
        })
    }

    fn add(
        &mut self,
        pid: i32,
        wanted: Wanted,
        core: Option<u32>,
        started: Option<Instant>,
        role: Role,
    ) {
        if let Some(core) = core {
            let service = wanted.name.clone();
            self.cores.take(core, wanted.own_core, Holder::Nf { service, pid, instance: None });
        }
        self.starts += 1;
        let age = self.starts;
        self.nfs.insert(pid, Nf { wanted, core, age, started, attached: false, role });
    }

    /// Takes a process that has ended out, and decides what becomes of its slot.
    fn see_end(&mut self, pid: i32, how: How) {
        let Some(nf) = self.nfs.remove(&pid) else { return };
        let lines = self.processes.output(pid, true);
        self.events
            .extend(lines.into_iter().map(|line| event(&nf.wanted, What::Said { pid, line })));
        let said = self.processes.last_lines(pid);
        self.processes.forget(pid);
        if self.cores.release(pid) {
            for service in self.services.values_mut() {
                service.try_for_core();
            }
        }
        let last = said.iter().rev().find(|line| !line.is_empty()).cloned();
        let mut exited = |will_restart_in, said| {
            let exited = What::Exited { pid, how, will_restart_in, said };
            self.events.push(event(&nf.wanted, exited));
        };
        let service = self.services.get_mut(&nf.wanted.service);
        let slot = service.and_then(|service| service.slot_of(pid));
        let Some(slot) = slot else {
            exited(None, last.filter(|_| nf.role == Role::OnTrial));
            return;
        };
        let why = match &last {
            Some(last) => format!("{how}: {last}"),
            None => how.to_string(),
        };
        match how {
            How::Code(0) => {
                slot.state = State::Done("it left by its own will".into());
                exited(None, None);
            }
            How::Code(EXIT_USAGE) => {
                slot.state = State::GivenUp(why.clone());
                exited(None, last);
                self.events.push(event(&nf.wanted, What::GaveUp { pid, why, said }));
            }
            _ => {
                let ran = nf.started.map_or(slot::HEALTHY_AFTER, |start| self.now - start);
                exited(Some(slot.failed(self.now, ran, &why)), last);
            }
        }
    }

    /// Names NFs of earlier entries as surplus, as soon as those that follow them are attached. If
    /// these have no core to start on, one has to go for the next.
    fn retire_stale(&mut self) {
        if !self.told || self.nfs.values().all(|nf| nf.role != Role::Stale) {
            return;
        }
        for (id, service) in &self.services {
            let of_service = |nf: &Nf| nf.wanted.service == *id;
            let up = |slot: &Slot| match slot.state {
                State::Running(pid) => self.nfs.get(&pid).is_some_and(|nf| nf.attached),
                State::Done(_) => true,
                State::Due { .. } | State::GivenUp(_) => false,
            };
            let all_up = service.slots.iter().all(up);
            let for_core =
                service.slots.iter().any(|s| matches!(s.state, State::Due { for_core: true, .. }));
            let leaving = |nf: &Nf| matches!(nf.role, Role::Surplus | Role::Released { .. });
            let none_leaves = !self.nfs.values().any(|nf| of_service(nf) && leaving(nf));
            let count = match (all_up, for_core && none_leaves) {
                (true, _) => usize::MAX,
                (false, true) => 1,
                (false, false) => 0,
            };
            let mut stale: Vec<_> = self
                .nfs
                .values_mut()
                .filter(|nf| of_service(nf) && nf.role == Role::Stale)
                .collect();
            stale.sort_by_key(|nf| nf.age);
            for nf in stale.into_iter().take(count) {
                nf.role = Role::Surplus;
            }
        }
    }

    /// Signals to those who were told to leave and stay.
    fn press_leavers(&mut self) {
        for (pid, nf) in &mut self.nfs {
            let Role::Released { term_at, kill_at } = &mut nf.role else { continue };
            for (at, signal) in [(term_at, Signal::SIGTERM), (kill_at, Signal::SIGKILL)] {
                if at.take_if(|at| *at <= self.now).is_some() {
                    self.processes.signal(*pid, signal);
                    if nf.attached || signal == Signal::SIGKILL {
                        let pressed = What::Pressed { pid: *pid, signal: signal.as_str() };
                        self.events.push(event(&nf.wanted, pressed));
                    }
                }
            }
        }
    }

    fn start_due(&mut self) {
        let now = self.now;
        let due: Vec<(ServiceId, usize)> = self
            .services
            .iter()
            .flat_map(|(id, service)| {
                (0..).zip(&service.slots).map(move |(at, slot)| (*id, at, slot))
            })
            .filter(|(_, _, slot)| slot.is_due(now))
            .map(|(id, at, _)| (id, at))
            .take(MAX_STARTS)
            .collect();
        for (id, at) in due {
            self.start(id, at);
        }
    }

    fn start(&mut self, id: ServiceId, at: usize) {
        let Some(service) = self.services.get_mut(&id) else { return };
        let (wanted, slot) = (&service.wanted, &mut service.slots[at]);
        let waits = |why: String| event(wanted, What::Waiting { why });
        let core = if wanted.own_core || !wanted.cores.is_empty() {
            match self.cores.choose(&wanted.cores, wanted.own_core) {
                Ok(core) => Some(core),
                Err(none) => {
                    let why = none.to_string();
                    self.events.extend(slot.no_core(self.now, &why).then(|| waits(why)));
                    return;
                }
            }
        } else {
            None
        };
        match self.processes.start(wanted, core) {
            Ok(pid) => {
                slot.state = State::Running(pid);
                let again = std::mem::replace(&mut slot.started_before, true);
                service.restarts += u64::from(again);
                self.events.push(event(wanted, What::Started { pid, core }));
                let wanted = wanted.clone();
                self.add(pid, wanted, core, Some(self.now), Role::Kept);
            }
            Err(why) => {
                self.events.extend(slot.not_started(self.now, &why).then(|| waits(why)));
            }
        }
    }

    fn pass_output(&mut self) {
        if self.now < self.read_at {
            return;
        }
        self.read_at = self.now + OUTPUT_EVERY;
        for (pid, nf) in &self.nfs {
            for line in self.processes.output(*pid, false) {
                self.events.push(event(&nf.wanted, What::Said { pid: *pid, line }));
            }
        }
    }
}

impl Service {
    fn slot_of(&mut self, pid: i32) -> Option<&mut Slot> {
        self.slots.iter_mut().find(|slot| slot.state == State::Running(pid))
    }

    fn grow(&mut self, count: usize) {
        let missing = count.saturating_sub(self.slots.len());
        self.slots.extend(std::iter::repeat_n(Slot::due(), missing));
    }

    fn revive(&mut self) {
        for slot in &mut self.slots {
            if !matches!(slot.state, State::Running(_)) {
                *slot = slot.afresh();
            }
        }
    }

    fn try_for_core(&mut self) {
        for slot in &mut self.slots {
            if let State::Due { at, for_core: true, .. } = &mut slot.state {
                *at = None;
            }
        }
    }
}

fn event(of: &Wanted, what: What) -> Event {
    Event { service: of.service, name: of.name.clone(), what }
}
