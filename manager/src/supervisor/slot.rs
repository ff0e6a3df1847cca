//! A place for one instance of a service: what stands in it, and when to try again.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

/// Pause before the restart after a first failure. Others may die of the same cause: what they have is
/// taken back first, and to start a program takes the control thread, and a core, for milliseconds.
pub const SETTLING: Duration = Duration::from_millis(3);
/// First pause after that restart.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// An instance that ran so long was well: its end starts the count of failures anew.
pub const HEALTHY_AFTER: Duration = Duration::from_secs(10);

/// Time to wait before the next start, after so many failures in a row before this one: 3 ms at first,
/// then 100 ms, doubling up to 10 s.
#[must_use]
pub fn pause(failures: u32) -> Duration {
    match failures.checked_sub(1) {
        None => SETTLING,
        Some(doublings) => (FIRST_PAUSE * (1 << doublings.min(16))).min(LONGEST_PAUSE),
    }
}

/// What stands in a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// An instance, by its process.
    Running(i32),
    /// To be started, at once or at a time.
    Due {
        /// When; `None`: at the next turn.
        at: Option<Instant>,
        /// Why not yet.
        why: String,
        /// It is a core that is missing: try as soon as one is given back.
        for_core: bool,
    },
    /// The instance has left by its own will, or was told to; none is started.
    Done(String),
    /// Starting it again would fail again; none is started.
    GivenUp(String),
}

/// A place for one instance.
#[derive(Clone, Debug)]
pub struct Slot {
    /// What stands in it.
    pub state: State,
    failures: u32,
    /// An instance ran here before.
    pub started_before: bool,
}

impl Slot {
    /// A slot whose instance is to be started.
    #[must_use]
    pub fn due() -> Self {
        let state = State::Due { at: None, why: "it is being started".into(), for_core: false };
        Self { state, failures: 0, started_before: false }
    }

    /// A slot with an instance in it.
    #[must_use]
    pub fn running(pid: i32) -> Self {
        Self { state: State::Running(pid), ..Self::due() }
    }

    /// The slot with nothing held against it: its instance is to be started.
    #[must_use]
    pub fn afresh(&self) -> Self {
        Self { started_before: self.started_before, ..Self::due() }
    }

    /// Whether its instance is to be started now.
    #[must_use]
    pub fn is_due(&self, now: Instant) -> bool {
        matches!(self.state, State::Due { at, .. } if at.is_none_or(|at| at <= now))
    }

    /// Notes a failure of an instance that had run for `ran`; returns the pause before the next.
    pub fn failed(&mut self, now: Instant, ran: Duration, why: &str) -> Duration {
        if ran >= HEALTHY_AFTER {
            self.failures = 0;
        }
        let pause = pause(self.failures);
        self.failures += 1;
        let why = format!("{why}; next try {}", after(pause));
        self.state = State::Due { at: Some(now + pause), why, for_core: false };
        pause
    }

    /// Notes that it could not even be started; returns whether that is news.
    pub fn not_started(&mut self, now: Instant, why: &str) -> bool {
        self.failures = self.failures.max(1);
        let pause = pause(self.failures);
        self.failures += 1;
        self.wait(now + pause, why, false)
    }

    /// Notes that it waits for a core; returns whether that is news.
    pub fn no_core(&mut self, now: Instant, why: &str) -> bool {
        self.wait(now + Duration::from_secs(1), why, true)
    }

    fn wait(&mut self, at: Instant, why: &str, for_core: bool) -> bool {
        let news = !matches!(&self.state, State::Due { why: before, .. } if before == why);
        self.state = State::Due { at: Some(at), why: why.to_owned(), for_core };
        news
    }
}

fn after(pause: Duration) -> String {
    if pause <= SETTLING { "at once".into() } else { format!("after {pause:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_from_next_to_nothing_to_ten_seconds() {
        let ms: Vec<u128> = (0..10).map(|failures| pause(failures).as_millis()).collect();
        assert_eq!(ms, [3, 100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        assert_eq!(pause(u32::MAX), LONGEST_PAUSE);
    }

    #[test]
    fn ten_seconds_of_health_are_forgiveness() {
        let now = Instant::now();
        let mut slot = Slot::due();
        for expected in [3, 100, 200, 400] {
            let pause = slot.failed(now, HEALTHY_AFTER - Duration::from_nanos(1), "crash");
            assert_eq!(pause.as_millis(), expected);
        }
        assert_eq!(slot.failed(now, HEALTHY_AFTER, "crash"), SETTLING);
        assert_eq!(slot.failed(now, Duration::ZERO, "crash"), FIRST_PAUSE);
    }

    #[test]
    fn what_cannot_be_started_is_never_tried_at_once() {
        let now = Instant::now();
        let mut slot = Slot::due();
        assert!(slot.is_due(now));
        assert!(slot.not_started(now, "no program"));
        assert!(!slot.is_due(now) && slot.is_due(now + FIRST_PAUSE));
        assert!(!slot.not_started(now, "no program"), "the same again is no news");
        assert!(!slot.is_due(now + FIRST_PAUSE));
        assert!(slot.not_started(now, "no user"));
    }
}
