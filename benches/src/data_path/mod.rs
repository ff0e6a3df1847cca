//! The data path as a whole, in ratios: real processes of ours and real programs of others, in turn.
//!
//! | module | subject |
//! |---|---|
//! | [`rows`] | **what is compared**, a function a row, in one table |
//! | [`lab`] | a manager with NFs, and what they did in a window |
//! | [`peers`] | the others: `onvm_hop`, `dpdk-testpmd`, a context switch |
//! | [`process`] | processes that end with the measurement |
//! | [`relay`] | what a chain costs at least: processes that only pass descriptors on |
#![forbid(unsafe_code)]

pub mod lab;
pub mod peers;
pub mod process;
pub mod relay;
pub mod rows;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::environment;
use crate::report::median;
use crate::traffic::signals::{Asked, Signals};

/// Why there is no figure.
#[derive(Debug, Error)]
pub enum Trouble {
    /// This machine or this build lacks what the row needs; no failure.
    #[error("{0}")]
    NotAvailable(String),
    /// Something that should work does not.
    #[error("{0}")]
    Failed(String),
    /// A signal asked for the end.
    #[error("interrupted")]
    Stopped,
}

impl From<std::io::Error> for Trouble {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<nix::errno::Errno> for Trouble {
    fn from(errno: nix::errno::Errno) -> Self {
        Self::Failed(errno.to_string())
    }
}

/// Cores of a measurement.
#[derive(Clone, Copy, Debug)]
pub struct Cores {
    /// The manager's, and of whatever is not measured.
    pub manager: u32,
    /// The NFs'; `None` on a machine with one core.
    pub second: Option<u32>,
}

/// What a row needs to measure.
pub struct Bench {
    /// Pairs of runs.
    pub reps: usize,
    /// One measurement.
    pub window: Duration,
    /// From the moment when everything runs to the window.
    pub warm_up: Duration,
    /// Where.
    pub cores: Cores,
    /// Our programs.
    pub programs: Programs,
    /// On the way, when a person may watch.
    pub progress: bool,
    signals: Signals,
}

/// Our programs, which lie beside this one.
#[derive(Debug)]
pub struct Programs {
    /// `millrace-manager`.
    pub manager: PathBuf,
    /// `millrace-nf`.
    pub nf: PathBuf,
    /// What `millrace-nf NAME --help` says, by name; `None`: no such NF.
    help: Mutex<BTreeMap<String, Option<String>>>,
}

impl Programs {
    /// Those in the folder of this program.
    ///
    /// # Errors
    /// [`Trouble::Failed`] when one is missing.
    pub fn find() -> Result<Self, Trouble> {
        let own = std::env::current_exe()?;
        let beside = |name: &str| {
            let path = own.with_file_name(name);
            let advice = "build it: cargo build --release -p millrace -p millrace-nfs";
            path.exists().then_some(path).ok_or_else(|| {
                Trouble::Failed(format!("{name} is not beside {}; {advice}", own.display()))
            })
        };
        let (manager, nf) = (beside("millrace-manager")?, beside("millrace-nf")?);
        Ok(Self { manager, nf, help: Mutex::default() })
    }

    /// That there is such an NF, and that it has these options.
    ///
    /// # Errors
    /// [`Trouble::NotAvailable`] when not.
    pub fn need_nf(&self, name: &str, options: &[&str]) -> Result<(), Trouble> {
        let mut known = self.help.lock().unwrap_or_else(PoisonError::into_inner);
        let help = known.entry(name.to_owned()).or_insert_with(|| {
            let output = Command::new(&self.nf).args([name, "--help"]).output().ok()?;
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
        });
        let missing = |what: String| Err(Trouble::NotAvailable(what));
        let Some(help) = help else {
            return missing(format!("millrace-nf has no {name} here"));
        };
        let has = |option: &&&str| help.contains(option.split('=').next().unwrap_or(option));
        match options.iter().filter(|option| option.starts_with("--")).find(|option| !has(option)) {
            Some(option) => missing(format!("millrace-nf {name} has no {option} here")),
            None => Ok(()),
        }
    }
}

impl Bench {
    /// Takes signals over and puts this thread, and so all that it starts, on the manager's core.
    ///
    /// # Errors
    /// [`Trouble`].
    pub fn new(reps: usize, window: Duration) -> Result<Self, Trouble> {
        let allowed = affinity()?;
        let mut cores = (0..CpuSet::count()).filter(|&core| allowed.is_set(core).unwrap_or(false));
        let mut next = || cores.next().and_then(|core| u32::try_from(core).ok());
        let manager = next().ok_or_else(|| Trouble::Failed("no core to run on".into()))?;
        let cores = Cores { manager, second: next() };
        let signals = Signals::take_over()?;
        let programs = Programs::find()?;
        pin(manager)?;
        let warm_up = Duration::from_millis(300);
        Ok(Self { reps, window, warm_up, cores, programs, progress: false, signals })
    }

    /// The core of the NFs, which is not the manager's.
    ///
    /// # Errors
    /// [`Trouble::NotAvailable`] on a machine with one.
    pub fn second_core(&self) -> Result<u32, Trouble> {
        let none = || Trouble::NotAvailable("needs two cores".into());
        self.cores.second.ok_or_else(none)
    }

    /// Sleeps so long.
    ///
    /// # Errors
    /// [`Trouble::Stopped`] as soon as a signal asks for the end.
    pub fn pause(&self, time: Duration) -> Result<(), Trouble> {
        let until = Instant::now() + time;
        loop {
            if self.signals.next()? == Some(Asked::Stop) {
                return Err(Trouble::Stopped);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.signals.sleep(left)?;
        }
    }

    /// Measures ours and the peer's in turn.
    ///
    /// # Errors
    /// The first of either.
    pub fn in_turn(
        &self,
        mut ours: impl FnMut() -> Result<f64, Trouble>,
        mut peer: impl FnMut() -> Result<f64, Trouble>,
    ) -> Result<Pairs, Trouble> {
        let mut pairs = Pairs::default();
        for _ in 0..self.reps {
            pairs.core_to_core_ns.extend(environment::core_to_core_ns());
            pairs.ours.push(ours()?);
            pairs.peer.push(peer()?);
            if self.progress {
                eprint!(".");
            }
        }
        if self.progress {
            eprint!("\r{}\r", " ".repeat(self.reps));
        }
        Ok(pairs)
    }
}

/// Figures measured in turn.
#[derive(Clone, Debug, Default)]
pub struct Pairs {
    /// Ours.
    pub ours: Vec<f64>,
    /// The peer's.
    pub peer: Vec<f64>,
    /// How far apart the first two cores were before each pair; empty where there is one.
    pub core_to_core_ns: Vec<f64>,
}

/// What a row came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Our median.
    pub ours: f64,
    /// The peer's, or the limit.
    pub peer_value: f64,
    /// Larger is better for us.
    pub ratio: f64,
    /// What else is to be known, for JSON.
    pub more: Map<String, Value>,
}

impl Outcome {
    /// Of rates.
    #[must_use]
    pub fn more_is_better(pairs: Pairs) -> Self {
        Self::of(pairs, |ours, peer| ours / peer)
    }

    /// Of costs.
    #[must_use]
    pub fn less_is_better(pairs: Pairs) -> Self {
        Self::of(pairs, |ours, peer| peer / ours)
    }

    fn of(pairs: Pairs, ratio: fn(f64, f64) -> f64) -> Self {
        let each = pairs.ours.iter().zip(&pairs.peer);
        let mut ratios: Vec<f64> = each.map(|(&ours, &peer)| ratio(ours, peer)).collect();
        let (ours, peer) = (median(&mut pairs.ours.clone()), median(&mut pairs.peer.clone()));
        let outcome = Self { ours, peer_value: peer, ratio: ratio(ours, peer), more: Map::new() };
        outcome
            .with("ours_each", rounded(&pairs.ours))
            .with("peer_each", rounded(&pairs.peer))
            .with("median_of_ratios", json!(round(median(&mut ratios))))
            .with("core_to_core_ns_each", rounded(&pairs.core_to_core_ns))
    }

    /// Of costs that may be no higher than a limit, which nobody needs to measure.
    #[must_use]
    pub fn below(mut ours: Vec<f64>, limit: f64) -> Self {
        let each = rounded(&ours);
        let ours = median(&mut ours);
        // A cost below what can be told from none is none.
        let ratio = limit / ours.max(limit / 1000.0);
        let outcome = Self { ours, peer_value: limit, ratio, more: Map::new() };
        outcome.with("ours_each", each)
    }

    /// And this.
    #[must_use]
    pub fn with(mut self, key: &str, value: Value) -> Self {
        self.more.insert(key.to_owned(), value);
        self
    }
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

fn rounded(values: &[f64]) -> Value {
    values.iter().map(|&value| round(value)).collect::<Vec<_>>().into()
}

fn affinity() -> Result<CpuSet, Trouble> {
    Ok(sched_getaffinity(Pid::from_raw(0))?)
}

fn set_affinity(set: &CpuSet) -> Result<(), Trouble> {
    Ok(sched_setaffinity(Pid::from_raw(0), set)?)
}

/// Puts this thread on a core.
///
/// # Errors
/// [`Trouble::Failed`] when it is none of ours.
pub fn pin(core: u32) -> Result<(), Trouble> {
    let mut set = CpuSet::new();
    set.set(core as usize)?;
    set_affinity(&set)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs() -> Pairs {
        Pairs {
            ours: vec![4.0, 2.0, 3.0],
            peer: vec![1.0, 2.0, 6.0],
            core_to_core_ns: vec![40.0, 41.0, 160.0],
        }
    }

    #[test]
    fn a_ratio_is_larger_where_we_are_better_whether_more_or_less_is_better() {
        let rates = Outcome::more_is_better(pairs());
        assert_eq!((rates.ours, rates.peer_value, rates.ratio), (3.0, 2.0, 1.5));
        assert_eq!(rates.more["median_of_ratios"], 1.0);
        assert_eq!(rates.more["core_to_core_ns_each"], json!([40.0, 41.0, 160.0]));
        let costs = Outcome::less_is_better(pairs());
        assert!((costs.ratio - 2.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn a_cost_at_its_limit_has_the_ratio_one_and_none_at_all_is_no_infinity() {
        assert!((Outcome::below(vec![25.0, 90.0, 3.0], 25.0).ratio - 1.0).abs() < 1e-12);
        assert!(Outcome::below(vec![-1.0], 25.0).ratio.is_finite());
    }
}
