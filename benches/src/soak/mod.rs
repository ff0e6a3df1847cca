//! Chaos under load: a real manager, real NFs, and everything that may happen to them at any instant.
//!
//! One thread kills and stops NFs; another one applies configurations and scales. Beside the chains
//! that suffer runs one of bystanders, of whose packets none may be lost. Every packet is numbered, and
//! the sinks say which are missing or there twice; the books of the last moment say where each went.
//!
//! A service is killed again only when the NF in its place has run for so long that the supervisor
//! has forgiven it: what is measured is the recovery, not the pauses between failures in a row.
#![forbid(unsafe_code)]

mod manager;
mod tally;
mod world;

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use millrace::status::now_ns;
use nflib::control::{Edit, NfStatus, ServiceRef, Status};
use nflib::shm::{SHORT_SLICE_NS, ask_for_short_slices, pidfd_open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::data_path::Trouble;
use crate::traffic::signals::Signals;
use manager::{Control, Manager};
use tally::{Packets, Tally};
use world::{BUFFERS, SCALED, World};

/// After so long the supervisor takes an NF for healthy, and restarts it at once when it dies.
const FORGIVEN_AFTER: Duration = Duration::from_millis(10_500);
/// How long anything may take to come back.
const RECOVERY_LIMIT: Duration = Duration::from_secs(30);
/// Between two looks while something is waited for, and otherwise.
const LOOK_EVERY: (Duration, Duration) = (Duration::from_millis(3), Duration::from_millis(50));
/// Longest stop of an NF, milliseconds.
const MAX_STOP_MS: u64 = 400;

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// For how long.
    pub seconds: f64,
    /// Chooses what happens when.
    pub seed: u64,
    /// Packets a second to the chains that suffer.
    pub rate_pps: u64,
    /// Mean time between two kills or stops, milliseconds.
    pub pace_ms: u64,
    /// Spoil the result on purpose: the last line must say so.
    pub spoil: bool,
}

/// Runs it. Returns whether all is well, and the line that says so.
///
/// # Errors
/// [`Trouble`] when it could not be run to its end.
pub fn run(options: Options, signals: &Signals) -> Result<(bool, String), Trouble> {
    let mut world = World::new(options.rate_pps);
    let mut manager = Manager::start(&world)?;
    let mut chaos = Chaos::new(options, manager.control().clone(), world.victims());
    chaos.settle(&mut manager, signals)?;
    // With the same NFs, and without an edge between them, as at the end.
    chaos.empty(&world, &mut manager, signals)?;
    chaos.tally.open_files.0 = fewest_open_files(&manager, 0);
    apply(manager.control(), &world, false)?;
    chaos.settle(&mut manager, signals)?;
    let stop = AtomicBool::new(false);
    let counts = [AtomicU64::new(0), AtomicU64::new(0)];
    let control = manager.control().clone();
    let (ended, changed) = std::thread::scope(|scope| {
        let mutator = scope.spawn(|| change_things(&control, &mut world, options, &stop, &counts));
        let ended = chaos.rage(&mut manager, signals);
        stop.store(true, Ordering::Relaxed);
        (ended, mutator.join())
    });
    ended?;
    chaos.tally.applies = counts[0].load(Ordering::Relaxed);
    chaos.tally.scales = counts[1].load(Ordering::Relaxed);
    changed
        .map_err(|_| Trouble::Failed("the thread that changes things panicked".to_owned()))??;
    world.scaled = World::new(options.rate_pps).scaled;
    chaos.settle(&mut manager, signals)?;
    chaos.empty(&world, &mut manager, signals)?;
    chaos.tally.memory_kib.1 = manager.private_kib();
    chaos.tally.open_files.1 = fewest_open_files(&manager, chaos.tally.open_files.0);
    let last = manager.finish()?;
    if !last.accounting.balanced {
        chaos
            .tally
            .faults
            .push(format!("the books do not balance: {}", last.accounting.equation()));
    }
    let mut packets = Packets::of(&last);
    packets.bystander_lost += u64::from(options.spoil);
    Ok(chaos.tally.line(&packets, chaos.began.elapsed().as_secs_f64(), options.seed))
}

/// Open files when what is about to be closed has been: edges are forgotten when both ends have said
/// that they have done with them. Ends early at so many.
fn fewest_open_files(manager: &Manager, enough: u64) -> u64 {
    let end = Instant::now() + Duration::from_secs(2);
    let mut fewest = manager.open_files();
    while fewest > enough && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
        fewest = fewest.min(manager.open_files());
    }
    fewest
}

fn apply(control: &Control, world: &World, empty: bool) -> Result<(), Trouble> {
    let refused = |error| Trouble::Failed(format!("a configuration is refused: {error}"));
    control.apply(world, empty)?.map(|_| ()).map_err(refused)
}

/// Applies configurations and scales, until told to stop.
fn change_things(
    control: &Control,
    world: &mut World,
    options: Options,
    stop: &AtomicBool,
    counts: &[AtomicU64; 2],
) -> Result<(), Trouble> {
    let mut random = fastrand::Rng::with_seed(options.seed ^ 0x5eed);
    while !stop.load(Ordering::Relaxed) {
        let (result, what) = if random.u32(0..3) == 0 {
            world.scaled = random.u32(1..5);
            let service = ServiceRef::Name(SCALED.to_owned());
            let edit = Edit::Scale { service, instances: world.scaled };
            counts[1].fetch_add(1, Ordering::Relaxed);
            (control.edit(edit)?, format!("{SCALED} to {}", world.scaled))
        } else {
            let what = world.change(&mut random);
            counts[0].fetch_add(1, Ordering::Relaxed);
            (control.apply(world, false)?, what)
        };
        match result {
            Ok(_) => (),
            // A scaling that takes too long, since the NFs it waits for are being killed.
            Err(error) if error.code == nflib::control::ErrorCode::Timeout => {}
            Err(error) => return Err(Trouble::Failed(format!("{what}: {error}"))),
        }
        let pause = Duration::from_millis(random.u64(options.pace_ms / 2..options.pace_ms * 4));
        let until = Instant::now() + pause;
        while Instant::now() < until && !stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(())
}

/// An NF that was killed.
struct Kill {
    service: String,
    pid: i32,
    at_ns: u64,
    /// When its process had ended, as a thread that waited for nothing else saw it; 0 until then.
    died_ns: Arc<AtomicU64>,
    reclaimed_ns: Option<u64>,
    respawned: bool,
}

struct Chaos {
    options: Options,
    control: Control,
    victims: Vec<String>,
    random: fastrand::Rng,
    began: Instant,
    /// When each service was killed last.
    killed: BTreeMap<String, Instant>,
    kills: Vec<Kill>,
    stopped: Vec<(i32, Instant)>,
    tally: Tally,
}

impl Chaos {
    fn new(options: Options, control: Control, victims: Vec<String>) -> Self {
        Self {
            options,
            control,
            victims,
            random: fastrand::Rng::with_seed(options.seed),
            began: Instant::now(),
            killed: BTreeMap::new(),
            kills: Vec::new(),
            stopped: Vec::new(),
            tally: Tally::default(),
        }
    }

    /// Waits until every service has what it wants, and nothing changes.
    fn settle(&mut self, manager: &mut Manager, signals: &Signals) -> Result<(), Trouble> {
        let began = Instant::now();
        loop {
            self.go_on_all(false);
            let status = self.look(manager)?;
            let has_all = status.services.iter().all(|service| {
                let running = running(&status, &service.name).count();
                Some(running as u32) == service.wanted && service.draining.is_empty()
            });
            if has_all && !status.plan.changing && self.kills.is_empty() {
                return Ok(());
            }
            if began.elapsed() > RECOVERY_LIMIT {
                let missing = status.services.iter().find(|service| {
                    Some(running(&status, &service.name).count() as u32) != service.wanted
                });
                return Err(Trouble::Failed(format!("it does not settle: {missing:?}")));
            }
            rest(signals, LOOK_EVERY.0)?;
        }
    }

    /// Kills and stops until the time is over.
    fn rage(&mut self, manager: &mut Manager, signals: &Signals) -> Result<(), Trouble> {
        let end = Instant::now() + Duration::from_secs_f64(self.options.seconds);
        let warm = Instant::now() + Duration::from_secs_f64(self.options.seconds / 4.0);
        let mut next = Instant::now();
        let mut status = self.look(manager)?;
        while Instant::now() < end {
            self.go_on_all(true);
            if Instant::now() >= next {
                self.strike(&status);
                let pace_ms = self.options.pace_ms;
                next = Instant::now()
                    + Duration::from_millis(self.random.u64(pace_ms / 2..pace_ms * 3 / 2 + 1));
            }
            let pause = if self.kills.is_empty() { LOOK_EVERY.1 } else { LOOK_EVERY.0 };
            rest(signals, pause.min(next.saturating_duration_since(Instant::now())))?;
            status = self.look(manager)?;
            if self.tally.memory_kib.0 == 0 && Instant::now() >= warm {
                self.tally.memory_kib.0 = manager.private_kib();
            }
        }
        self.go_on_all(false);
        Ok(())
    }

    /// Kills one or two NFs, or stops one for a while.
    fn strike(&mut self, status: &Status) {
        let now = Instant::now();
        let forgiven: Vec<_> = self
            .victims
            .iter()
            .filter(|name| {
                self.killed.get(*name).is_none_or(|at| now.duration_since(*at) > FORGIVEN_AFTER)
            })
            .cloned()
            .collect();
        let stops = self.random.u32(0..4) == 0;
        let Some(name) = choose(&mut self.random, if stops { &self.victims } else { &forgiven })
        else {
            return;
        };
        if stops {
            let nfs: Vec<_> = running(status, &name).map(|nf| nf.pid).collect();
            let Some(pid) = choose(&mut self.random, &nfs) else { return };
            if kill(Pid::from_raw(pid), Signal::SIGSTOP).is_ok() {
                let stop = Duration::from_millis(self.random.u64(5..MAX_STOP_MS));
                self.stopped.push((pid, now + stop));
                self.tally.stops += 1;
            }
            return;
        }
        self.kill_one(status, &name);
        // Now and then its neighbour with it.
        let chain = name.get(..2).unwrap_or("").to_owned();
        if self.random.u32(0..5) == 0
            && let Some(other) =
                forgiven.into_iter().find(|other| *other != name && other.starts_with(&chain))
        {
            self.kill_one(status, &other);
        }
    }

    fn kill_one(&mut self, status: &Status, name: &str) {
        let nfs: Vec<_> = running(status, name).map(|nf| nf.pid).collect();
        let Some(pid) = choose(&mut self.random, &nfs) else { return };
        let died_ns = watch_for_end(pid);
        let at_ns = now_ns();
        if kill(Pid::from_raw(pid), Signal::SIGKILL).is_err() {
            return;
        }
        self.tally.kills += 1;
        self.killed.insert(name.to_owned(), Instant::now());
        let kill = Kill {
            service: name.to_owned(),
            pid,
            at_ns,
            died_ns,
            reclaimed_ns: None,
            respawned: false,
        };
        self.kills.push(kill);
    }

    /// Lets those go on whose time is over, or all.
    fn go_on_all(&mut self, only_due: bool) {
        let now = Instant::now();
        self.stopped.retain(|&(pid, until)| {
            if only_due && now < until {
                return true;
            }
            let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
            false
        });
    }

    /// Looks at the manager: that its books balance, that no buffer is in nobody's account, and how
    /// far those are who were killed.
    fn look(&mut self, manager: &mut Manager) -> Result<Status, Trouble> {
        manager.still_runs()?;
        let status = self.control.status()?;
        if !status.accounting.balanced {
            return Err(Trouble::Failed(format!(
                "the books do not balance: {}",
                status.accounting.equation()
            )));
        }
        // Generators and sinks keep none between two turns.
        if status.pool.at_ports > 0 {
            let lost = status.pool.at_ports;
            return Err(Trouble::Failed(format!("{lost} buffers are in nobody's account")));
        }
        let mut kills = std::mem::take(&mut self.kills);
        let mut failed = None;
        kills.retain_mut(|kill| {
            self.follow(kill, &status);
            let recovered = self.has_recovered(kill, &status);
            let waited = Duration::from_nanos(now_ns().saturating_sub(kill.at_ns));
            if !recovered && waited > RECOVERY_LIMIT {
                failed = Some(format!("no NF takes the place of {} ({})", kill.service, kill.pid));
            }
            !recovered
        });
        self.kills = kills;
        failed.map_or(Ok(status), |why| Err(Trouble::Failed(why)))
    }

    /// What the manager says of a death.
    fn follow(&mut self, kill: &mut Kill, status: &Status) {
        if kill.reclaimed_ns.is_some() {
            return;
        }
        let of_it = |death: &&nflib::control::DeathStatus| {
            death.pid == kill.pid && death.reclaimed_ns >= kill.at_ns
        };
        if let Some(death) = status.deaths.last.iter().find(of_it) {
            kill.reclaimed_ns = Some(death.reclaimed_ns);
            // The manager may have been at something else when it ended, and we, too.
            let died_ns = match kill.died_ns.load(Ordering::Relaxed) {
                0 => death.noticed_ns,
                seen_ns => seen_ns.min(death.noticed_ns.max(kill.at_ns)),
            };
            self.tally.reclaim_us.push(death.reclaimed_ns.saturating_sub(died_ns) / 1000);
            self.tally.kill_to_reclaim_us.push((death.reclaimed_ns - kill.at_ns) / 1000);
        }
    }

    /// Whether packets go through an NF that came after the kill, or enough NFs are there without.
    fn has_recovered(&mut self, kill: &mut Kill, status: &Status) -> bool {
        let attached_ns = |nf: &NfStatus| status.at_ns.saturating_sub((nf.uptime_s * 1e9) as u64);
        let newcomer = running(status, &kill.service)
            .find(|nf| nf.pid != kill.pid && attached_ns(nf) > kill.at_ns);
        let Some(newcomer) = newcomer else {
            // Scaled down meanwhile, or of one that was leaving anyway.
            let wanted = status.services.iter().find(|service| service.name == kill.service);
            let there = running(status, &kill.service).count() as u32;
            let others = wanted.is_none_or(|service| service.wanted == Some(there));
            return others && running(status, &kill.service).all(|nf| nf.pid != kill.pid);
        };
        if let (false, Some(reclaimed_ns)) = (kill.respawned, kill.reclaimed_ns) {
            kill.respawned = true;
            let respawn_ns = attached_ns(newcomer).saturating_sub(reclaimed_ns);
            self.tally.respawn_us.push(respawn_ns / 1000);
        }
        if newcomer.tx_pkts == 0 {
            return false;
        }
        self.tally.recovery_us.push(status.at_ns.saturating_sub(kill.at_ns) / 1000);
        true
    }

    /// Puts no NF between the ports, and waits until every buffer is back.
    fn empty(
        &mut self,
        world: &World,
        manager: &mut Manager,
        signals: &Signals,
    ) -> Result<(), Trouble> {
        apply(&self.control, world, true)?;
        self.settle(manager, signals)?;
        let began = Instant::now();
        loop {
            let status = self.look(manager)?;
            self.tally.buffers_lost = BUFFERS.saturating_sub(status.pool.free);
            let empty = status.accounting.held_pkts == 0 && self.tally.buffers_lost == 0;
            if empty || began.elapsed() > RECOVERY_LIMIT {
                return Ok(());
            }
            rest(signals, LOOK_EVERY.0)?;
        }
    }
}

impl Drop for Chaos {
    fn drop(&mut self) {
        // One that stays stopped would not hear that it is to end.
        self.go_on_all(false);
    }
}

/// The NFs of a service that get packets.
fn running<'a>(status: &'a Status, service: &'a str) -> impl Iterator<Item = &'a NfStatus> {
    status.nfs.iter().filter(move |nf| nf.service_name == service && nf.state == "running")
}

fn rest(signals: &Signals, time: Duration) -> Result<(), Trouble> {
    signals.sleep(time)?;
    match signals.next()? {
        Some(_) => Err(Trouble::Stopped),
        None => Ok(()),
    }
}

/// A thread that waits for the end of a process, and the time when it saw it.
fn watch_for_end(pid: i32) -> Arc<AtomicU64> {
    let died_ns = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&died_ns);
    let Ok(pidfd) = pidfd_open(pid) else { return died_ns };
    std::thread::spawn(move || {
        // Without, it would be later, and the manager's word counts where that is earlier.
        let _ = ask_for_short_slices(SHORT_SLICE_NS);
        let limit = PollTimeout::try_from(RECOVERY_LIMIT).unwrap_or(PollTimeout::MAX);
        if poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], limit).is_ok_and(|n| n > 0) {
            seen.store(now_ns(), Ordering::Relaxed);
        }
    });
    died_ns
}

fn choose<T: Clone>(random: &mut fastrand::Rng, from: &[T]) -> Option<T> {
    (!from.is_empty()).then(|| from[random.usize(0..from.len())].clone())
}
