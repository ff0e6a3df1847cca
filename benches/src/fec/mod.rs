//! Speed of forward error correction on one core: what `millrace bench fec` measures.
//!
//! | module | subject |
//! |---|---|
//! | [`rows`] | **what is compared**, in one table |
//! | [`blocks`] | the packets that are coded: a ring of blocks in memory of its own |
//! | [`isa_l`] | the peer: Intel's ISA-L, when it was compiled in; `unsafe` |
//!
//! Time is CPU time of the thread, so that what else runs on the machine counts less; ours and the
//! peer's runs take turns.
#![deny(unsafe_code)]

pub mod blocks;
#[allow(unsafe_code)]
pub mod isa_l;
pub mod rows;

use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use crate::data_path::{Pairs, Trouble, pin};

/// How to measure.
#[derive(Clone, Copy, Debug)]
pub struct Bench {
    /// Pairs of runs.
    pub reps: usize,
    /// CPU time of one run, about.
    pub window: Duration,
}

impl Bench {
    /// Puts this thread on the last of its cores: the first ones have most of the interrupts.
    ///
    /// # Errors
    /// [`Trouble::Failed`] when that cannot be.
    pub fn new(reps: usize, window: Duration) -> Result<Self, Trouble> {
        let allowed = sched_getaffinity(Pid::from_raw(0))?;
        let mut cores = (0..CpuSet::count()).rev();
        let last = cores.find(|&core| allowed.is_set(core).unwrap_or(false));
        let last = last.and_then(|core| u32::try_from(core).ok());
        pin(last.ok_or_else(|| Trouble::Failed("no core to run on".into()))?)?;
        Ok(Self { reps, window })
    }

    /// Nanoseconds that a lap takes, ours and the peer's in turn.
    ///
    /// # Errors
    /// [`Trouble::Failed`] without a clock.
    pub fn in_turn(
        &self,
        mut ours: impl FnMut(),
        mut peer: impl FnMut(),
    ) -> Result<Pairs, Trouble> {
        let ours_laps = self.laps(&mut ours)?;
        let peer_laps = self.laps(&mut peer)?;
        let mut pairs = Pairs::default();
        for _ in 0..self.reps {
            pairs.ours.push(lap_ns(ours_laps, &mut ours)?);
            pairs.peer.push(lap_ns(peer_laps, &mut peer)?);
        }
        Ok(pairs)
    }

    /// How many laps fill the window; running them warms caches and predictors up.
    fn laps(&self, work: &mut impl FnMut()) -> Result<u32, Trouble> {
        let mut laps = 1;
        loop {
            let took_ns = lap_ns(laps, work)? * f64::from(laps);
            if took_ns >= self.window.as_nanos() as f64 / 2.0 || laps > u32::MAX / 2 {
                return Ok(laps);
            }
            laps *= 2;
        }
    }
}

fn lap_ns(laps: u32, work: &mut impl FnMut()) -> Result<f64, Trouble> {
    let before = cpu_time()?;
    for _ in 0..laps {
        work();
    }
    Ok((cpu_time()?.saturating_sub(before)).as_nanos() as f64 / f64::from(laps))
}

fn cpu_time() -> Result<Duration, Trouble> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}
