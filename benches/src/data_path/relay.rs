//! What a chain of processes that share a core costs at least: processes that do nothing but copy
//! descriptors from one ring to the next, in a circle, and give the core away when they find no more.
//!
//! They feed each other in the order in which the scheduler gives them the core, which it keeps as long as
//! all of them yield: each takes from the one that had the core before it. There is no NF in them, no check,
//! no clock and no counter.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout)] // how a relay answers

use std::fmt::Display;
use std::fs::OpenOptions;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nflib::descriptor::Delivery;
use nflib::shm::{Doorbell, Doorbells, EdgeRing, RingError};

use super::process::Process;
use super::rows::RING_CAPACITY;
use super::{Bench, Trouble, pin};

/// Packets that circulate, as in the rows of chains.
const IN_FLIGHT: usize = 4096;
/// As an NF takes at most.
const BURST_PKTS: usize = nflib::burst::MAX_BURST_PKTS;
/// Turns in the same order after which it counts as kept.
const SURE_TURNS: u32 = 200;
/// Circles to be tried until one closes.
const TRIES: u32 = 5;

/// Nanoseconds for a descriptor to be passed on by one of so many processes on `core`.
///
/// # Errors
/// [`Trouble::NotAvailable`] when the scheduler keeps no order here, [`Trouble::Failed`] when that cannot be
/// measured.
pub fn ns_a_hop(bench: &Bench, core: u32, processes: u16) -> Result<f64, Trouble> {
    for _ in 0..TRIES {
        if let Some(ns_a_pkt) = circle(bench, core, processes)? {
            return Ok(ns_a_pkt / f64::from(processes));
        }
    }
    Err(Trouble::NotAvailable("threads that yield do not keep their order here".into()))
}

/// One circle; `None` when it did not close, for the order changed before all had found their feeders.
fn circle(bench: &Bench, core: u32, processes: u16) -> Result<Option<f64>, Trouble> {
    let program = std::env::current_exe()?;
    let dir = tempfile::Builder::new().prefix("millrace-bench-").tempdir()?;
    let bells = Arc::new(Doorbells::create(u32::from(processes) + 1)?);
    let rings = (0..processes)
        .map(|_| EdgeRing::create(RING_CAPACITY))
        .collect::<std::io::Result<Vec<_>>>()?;
    let path = |fd: BorrowedFd<'_>| format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd());
    let ms = |time: Duration| time.as_millis().to_string();
    let mut relays = Vec::new();
    for number in 0..processes {
        let mut args = vec!["relay".to_owned(), core.to_string(), number.to_string()];
        args.extend([ms(bench.warm_up), ms(bench.window), path(bells.fd())]);
        args.extend(rings.iter().map(|ring| path(ring.fd())));
        let mut relay = Process::start(dir.path(), &program, args)?;
        relay.next_line()?;
        relays.push(relay);
    }
    // Tells them that all are there.
    bell(&bells, processes)?.take_turn(core);
    let mut feeders = Vec::new();
    for relay in &mut relays {
        feeders.push(number::<u16>(&relay.next_line()?)?);
    }
    let closes = is_circle(&feeders);
    let ns_a_pkt = match relays.first_mut() {
        Some(first) if closes => Some(number(&first.next_line()?)?),
        _ => None,
    };
    drop(relays);
    bench.pause(Duration::ZERO)?;
    Ok(ns_a_pkt)
}

/// Whether one leads to the next, through all of them.
fn is_circle(feeders: &[u16]) -> bool {
    let mut at = 0;
    let leads_back = |_: &u16| {
        at = feeders.get(usize::from(at)).copied().unwrap_or(u16::MAX);
        at == 0
    };
    feeders.iter().position(leads_back).map(|at| at + 1) == Some(feeders.len())
}

/// What a relay printed.
fn number<T: FromStr<Err: Display>>(line: &str) -> Result<T, Trouble> {
    line.parse().map_err(|error| Trouble::Failed(format!("a relay printed {line:?}: {error}")))
}

fn bell(bells: &Arc<Doorbells>, number: u16) -> Result<Doorbell, Trouble> {
    bells.bell(number).ok_or_else(|| Trouble::Failed(format!("there is no bell {number}")))
}

/// What one of the processes is told.
#[derive(clap::Args)]
pub struct Relay {
    /// Core to run on
    core: u32,
    /// Its number; the first, 0, brings the packets, and measures
    number: u16,
    /// After so long
    warm_up_ms: u64,
    /// For so long
    window_ms: u64,
    /// Doorbells, by which it knows who had the core before, and that all are there
    bells: PathBuf,
    /// Rings, by the number of the one that pushes there
    rings: Vec<PathBuf>,
}

impl Relay {
    /// Runs without end; prints its feeder's number. The first prints how many nanoseconds of the window there
    /// were for each packet that it passed on.
    ///
    /// # Errors
    /// [`Trouble::Failed`] when a ring is none.
    pub fn run(&self) -> Result<(), Trouble> {
        let broken = |error: RingError| Trouble::Failed(error.to_string());
        pin(self.core)?;
        println!("ready");
        let bells = Arc::new(Doorbells::from_fd(open(&self.bells)?)?);
        let own = bell(&bells, self.number)?;
        let feeder = self.feeder(&bells, &own)?;
        println!("{feeder}");
        let (input, output) = (self.ring(feeder)?, self.ring(self.number)?);
        let (mut rx, mut tx) = (input.consumer(), output.producer());
        let mut burst = [Delivery::default(); BURST_PKTS];
        let mut window = (self.number == 0).then(|| Window::new(self.warm_up_ms, self.window_ms));
        if window.is_some() {
            for _ in 0..IN_FLIGHT / BURST_PKTS {
                tx.push_burst(&burst).map_err(broken)?;
            }
        }
        let mut pkts = 0_u64;
        loop {
            let count = rx.pop_burst(&mut burst).map_err(broken)?;
            if count > 0 {
                // There is room: a ring holds more than circulate.
                tx.push_burst(&burst[..count]).map_err(broken)?;
                pkts += count as u64;
                continue;
            }
            if let Some(ns_a_pkt) = window.as_mut().and_then(|window| window.look(pkts)) {
                println!("{ns_a_pkt}");
                window = None;
            }
            // Others may still be looking for their feeders.
            own.take_turn(self.core);
            std::thread::yield_now();
        }
    }

    /// The one that has the core before this one, once all are there.
    fn feeder(&self, bells: &Arc<Doorbells>, own: &Doorbell) -> Result<u16, Trouble> {
        let all_are_there = bell(bells, u16::try_from(self.rings.len()).unwrap_or(u16::MAX))?;
        let (mut turns, mut feeder) = (0, None);
        while turns < SURE_TURNS {
            std::thread::yield_now();
            let before = own.take_turn(self.core);
            let same = before == feeder && all_are_there.core().is_some();
            turns = if same { turns + 1 } else { 0 };
            feeder = before;
        }
        // It is alone when nobody was before it.
        Ok(feeder.unwrap_or(self.number))
    }

    fn ring(&self, number: u16) -> Result<EdgeRing, Trouble> {
        let path = self.rings.get(usize::from(number));
        let path = path.ok_or_else(|| Trouble::Failed(format!("there is no ring {number}")))?;
        Ok(EdgeRing::from_fd(open(path)?, RING_CAPACITY)?)
    }
}

/// When to measure.
struct Window {
    begin: Instant,
    length: Duration,
    /// When it began, and after how many packets.
    since: Option<(Instant, u64)>,
}

impl Window {
    fn new(warm_up_ms: u64, window_ms: u64) -> Self {
        let begin = Instant::now() + Duration::from_millis(warm_up_ms);
        Self { begin, length: Duration::from_millis(window_ms), since: None }
    }

    /// Nanoseconds for each packet, at its end.
    fn look(&mut self, pkts: u64) -> Option<f64> {
        let now = Instant::now();
        match self.since {
            None if now >= self.begin => self.since = Some((now, pkts)),
            Some((since, before)) if now >= since + self.length => {
                return Some(now.duration_since(since).as_nanos() as f64 / (pkts - before) as f64);
            }
            _ => {}
        }
        None
    }
}

fn open(path: &Path) -> std::io::Result<OwnedFd> {
    Ok(OpenOptions::new().read(true).write(true).open(path)?.into())
}

#[cfg(test)]
mod tests {
    use super::is_circle;

    #[test]
    fn a_circle_leads_through_all() {
        assert!(is_circle(&[0]) && is_circle(&[1, 0]) && is_circle(&[2, 0, 1]));
        for broken in [&[1, 1][..], &[0, 1], &[1, 0, 2], &[1, 2, 1], &[7, 0], &[]] {
            assert!(!is_circle(broken), "{broken:?}");
        }
    }
}
