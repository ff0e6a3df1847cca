//! How much of its time a writer may spend on taps.
#![forbid(unsafe_code)]

/// Length of a window, nanoseconds.
const WINDOW_NS: u64 = 1_000_000;
/// What taps may take of each window, nanoseconds: a twentieth.
const SHARE_NS: u64 = WINDOW_NS / 20;

/// Bounds the time that taps take: of each millisecond so much, and then packets pass unlooked at until the
/// next one, so that a capture cannot hold a chain up however much passes it. At a few hundred nanoseconds a
/// packet that is enough for some hundred thousand packets a second.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    share_ns: u64,
    window_ends_ns: u64,
    left_ns: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self::of(SHARE_NS)
    }
}

impl Budget {
    /// So many nanoseconds of each millisecond.
    #[must_use]
    pub fn of(share_ns: u64) -> Self {
        Self { share_ns, window_ends_ns: 0, left_ns: 0 }
    }

    /// Whether there is anything left, at this time of CLOCK_MONOTONIC.
    #[must_use]
    pub fn has_time(&mut self, now_ns: u64) -> bool {
        if now_ns >= self.window_ends_ns {
            self.window_ends_ns = now_ns.saturating_add(WINDOW_NS);
            self.left_ns = self.share_ns;
        }
        self.left_ns > 0
    }

    /// So much was spent; also if others had the core meanwhile.
    pub fn spend(&mut self, ns: u64) {
        self.left_ns = self.left_ns.saturating_sub(ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn of_any_window_no_more_is_spent_than_the_share_and_one_burst(
            bursts in proptest::collection::vec((0u64..200_000, 1u64..30_000), 1..300),
        ) {
            let (mut budget, mut now_ns) = (Budget::default(), 1);
            let mut spent: Vec<(u64, u64)> = Vec::new();
            for (pause_ns, cost_ns) in bursts {
                now_ns += pause_ns;
                if budget.has_time(now_ns) {
                    spent.push((now_ns, cost_ns));
                    now_ns += cost_ns;
                    budget.spend(cost_ns);
                }
            }
            for &(from_ns, _) in &spent {
                let window = spent.iter().filter(|(at, _)| (from_ns..from_ns + WINDOW_NS).contains(at));
                // It may lie across two windows of the budget.
                prop_assert!(window.map(|(_, ns)| ns).sum::<u64>() <= 2 * (SHARE_NS + 30_000));
            }
        }
    }

    #[test]
    fn what_is_spent_comes_back_with_the_next_window() {
        let mut budget = Budget::default();
        assert!(budget.has_time(5));
        budget.spend(SHARE_NS - 1);
        assert!(budget.has_time(6));
        budget.spend(WINDOW_NS);
        assert!(!budget.has_time(WINDOW_NS));
        assert!(budget.has_time(WINDOW_NS + 5));
    }
}
