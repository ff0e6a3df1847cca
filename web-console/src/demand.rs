//! How often the manager is asked: as often as the base interval says, and more often while somebody
//! has a stream open that wants more.
#![forbid(unsafe_code)]

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Most events a second that a stream may ask for.
pub const MAX_HZ: u8 = 10;

/// Who wants how many readings a second, and who wants one at once.
#[derive(Debug, Default)]
pub struct Demand {
    wanted: Mutex<Wanted>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Wanted {
    /// How many streams want that many a second.
    streams: [u32; MAX_HZ as usize + 1],
    /// How often somebody wanted a reading at once.
    at_once: u64,
    /// Up to which of these there is one.
    had: u64,
}

/// One stream's wish; gone when it is dropped.
#[derive(Debug)]
pub struct Wish {
    demand: Arc<Demand>,
    hz: u8,
}

impl Demand {
    /// Wants `hz` readings a second, at most [`MAX_HZ`], until the wish is dropped.
    #[must_use]
    pub fn wish(self: &Arc<Self>, hz: u8) -> Wish {
        let hz = hz.clamp(1, MAX_HZ);
        self.change(hz, |count| count.saturating_add(1));
        Wish { demand: Arc::clone(self), hz }
    }

    fn lock(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, hz: u8, change: impl Fn(u32) -> u32) {
        let mut wanted = self.lock();
        let streams = &mut wanted.streams[usize::from(hz)];
        *streams = change(*streams);
        drop(wanted);
        self.changed.notify_all();
    }

    /// Wants a reading at once; returns the number that it, or a later one, will have
    /// ([`begin`](Self::begin)).
    pub fn at_once(&self) -> u64 {
        let mut wanted = self.lock();
        wanted.at_once += 1;
        let number = wanted.at_once;
        drop(wanted);
        self.changed.notify_all();
        number
    }

    /// Called before the manager is asked: the number of the reading that comes of it. Whoever was
    /// told this number, or a lower one, has wanted it before.
    pub fn begin(&self) -> u64 {
        let mut wanted = self.lock();
        wanted.had = wanted.at_once;
        wanted.had
    }

    /// Sleeps until it is time for the next reading after one at `last`: `base` later, or as much
    /// sooner as somebody wants it, also if they come only now.
    pub fn wait(&self, last: Instant, base: Duration) {
        let mut wanted = self.lock();
        loop {
            let period = shortest(&wanted.streams).map_or(base, |period| period.min(base));
            let left = (last + period).saturating_duration_since(Instant::now());
            if left.is_zero() || wanted.at_once > wanted.had {
                return;
            }
            let waited = self.changed.wait_timeout(wanted, left);
            wanted = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn shortest(wanted: &[u32]) -> Option<Duration> {
    let hz = wanted.iter().rposition(|&streams| streams > 0)?;
    Some(period(hz as u8))
}

/// The time between two events of a stream.
#[must_use]
pub fn period(hz: u8) -> Duration {
    Duration::from_secs(1) / u32::from(hz.max(1))
}

impl Drop for Wish {
    fn drop(&mut self) {
        self.demand.change(self.hz, |count| count.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_wish_counts_until_it_is_gone() {
        let demand = Arc::new(Demand::default());
        let period = || shortest(&demand.wanted.lock().unwrap().streams);
        assert_eq!(period(), None);
        let slow = demand.wish(2);
        let fast = demand.wish(200);
        assert_eq!(period(), Some(Duration::from_millis(100)));
        drop(fast);
        assert_eq!(period(), Some(Duration::from_millis(500)));
        drop(slow);
        assert_eq!(period(), None);
    }

    #[test]
    fn a_wish_wakes_who_waits_for_longer() {
        let demand = Arc::new(Demand::default());
        let other = Arc::clone(&demand);
        let waiting = std::thread::spawn(move || {
            other.wait(Instant::now(), Duration::from_secs(3600));
        });
        let _wish = demand.wish(10);
        waiting.join().unwrap();
    }

    #[test]
    fn a_reading_that_is_wanted_at_once_is_one_that_began_later() {
        let demand = Demand::default();
        let before = demand.begin();
        let number = demand.at_once();
        assert!(before < number);
        demand.wait(Instant::now(), Duration::from_secs(3600));
        assert!(demand.begin() >= number);
    }
}
