//! Work that takes a given time a packet: an NF as costly as one wants it, for experiments.
//!
//! A loop whose length was calibrated, and not a look at the clock until the time is over: a process
//! that was preempted in between would have to do less work, and shared cores are what these
//! experiments are about.
#![forbid(unsafe_code)]

use std::hint::black_box;
use std::time::{Duration, Instant};

/// Steps of one measurement: some tens of microseconds, so that most are not interrupted.
const CALIBRATION_STEPS: u64 = 20_000;
/// Measurements; the shortest is the one that was not interrupted.
const CALIBRATIONS: usize = 25;

/// How long a step takes on this machine, now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    ns_per_step: f64,
}

impl Pace {
    /// Measures it, which takes about a millisecond.
    pub fn measure() -> Self {
        let time = |_| {
            let begun = Instant::now();
            run(CALIBRATION_STEPS);
            begun.elapsed()
        };
        let shortest = (0..CALIBRATIONS).map(time).min().unwrap_or_default();
        // A clock that did not move must not make a step infinitely short.
        let shortest = shortest.max(Duration::from_nanos(1));
        Self { ns_per_step: shortest.as_nanos() as f64 / CALIBRATION_STEPS as f64 }
    }

    /// Steps that take so long.
    pub fn steps(self, busy_ns: u32) -> u64 {
        (f64::from(busy_ns) / self.ns_per_step).round() as u64
    }
}

/// Does so many steps; each needs the result of the one before, so none can be left out or run
/// beside another.
#[inline]
pub fn run(steps: u64) {
    let mut x = black_box(1u64);
    for _ in 0..steps {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    }
    black_box(x);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_times_the_time_is_ten_times_the_steps_and_none_is_none() {
        let pace = Pace { ns_per_step: 1.5 };
        assert_eq!((pace.steps(0), pace.steps(30), pace.steps(300)), (0, 20, 200));
        assert!(Pace::measure().ns_per_step > 0.0);
    }

    #[test]
    fn twice_the_steps_take_about_twice_as_long() {
        let shortest = |steps| {
            let time = |_| {
                let begun = Instant::now();
                run(steps);
                begun.elapsed()
            };
            (0..50).map(time).min().unwrap().as_nanos() as f64
        };
        let ratio = shortest(40_000) / shortest(10_000);
        assert!((2.0..8.0).contains(&ratio), "{ratio}: the loop was optimized away");
    }
}
