//! When to send: an even rate, without a debt that a pause would leave.
#![forbid(unsafe_code)]

/// Of a pause, so much is made up for; the rest is not sent at all, since a flood after it would
/// overflow rings that the rate itself would not.
const MAX_DEBT_NS: u64 = 5_000_000;
/// Shortest sleep: packets that come due within it go together.
const MIN_SLEEP_NS: u64 = 200_000;

/// Grants packets at a rate.
#[derive(Debug)]
pub struct Pace {
    rate_pps: u64,
    start_ns: u64,
    granted: u64,
    /// How long the sender was kept from sending beyond what is made up for, nanoseconds.
    pub paused_ns: u64,
}

impl Pace {
    /// `rate_pps` ≥ 1 packets a second from now on.
    #[must_use]
    pub fn new(rate_pps: u64, now_ns: u64) -> Self {
        Self { rate_pps: rate_pps.max(1), start_ns: now_ns, granted: 0, paused_ns: 0 }
    }

    /// How many packets are due.
    #[must_use]
    pub fn due(&mut self, now_ns: u64) -> u64 {
        let last_ns = self.start_ns + self.ns_of(self.granted);
        let behind_ns = now_ns.saturating_sub(last_ns);
        if behind_ns > MAX_DEBT_NS.max(self.ns_of(1)) {
            let forgotten_ns = behind_ns - MAX_DEBT_NS.max(self.ns_of(1));
            self.paused_ns += forgotten_ns;
            self.start_ns += forgotten_ns;
        }
        let elapsed_ns = now_ns.saturating_sub(self.start_ns);
        let target = u128::from(elapsed_ns) * u128::from(self.rate_pps) / 1_000_000_000;
        (target as u64).saturating_sub(self.granted)
    }

    /// So many were sent.
    pub fn sent(&mut self, pkts: u64) {
        self.granted += pkts;
    }

    /// How long to sleep when none is due.
    #[must_use]
    pub fn sleep_ns(&self, now_ns: u64) -> u64 {
        let next_ns = self.start_ns + self.ns_of(self.granted + 1);
        next_ns.saturating_sub(now_ns).max(MIN_SLEEP_NS)
    }

    fn ns_of(&self, pkts: u64) -> u64 {
        (u128::from(pkts) * 1_000_000_000 / u128::from(self.rate_pps)) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends all that is due at each of these times; returns how many in all.
    fn run(pace: &mut Pace, times_ns: impl IntoIterator<Item = u64>) -> u64 {
        let mut sent = 0;
        for now_ns in times_ns {
            let due = pace.due(now_ns);
            pace.sent(due);
            sent += due;
        }
        sent
    }

    #[test]
    fn a_second_grants_the_rate_however_it_is_cut() {
        for step_ns in [50_000, 333_333, 1_000_000, 4_900_000] {
            let mut pace = Pace::new(20_000, 5);
            let sent = run(&mut pace, (0..=1_000_000_000).step_by(step_ns).map(|t| t + 5));
            assert!((19_899..=20_000).contains(&sent), "{sent} in steps of {step_ns} ns");
            assert_eq!(pace.paused_ns, 0);
        }
    }

    #[test]
    fn a_pause_leaves_no_flood_and_is_told() {
        let mut pace = Pace::new(20_000, 0);
        run(&mut pace, [1_000_000]);
        assert_eq!(pace.due(1_001_000_000), 100);
        assert_eq!(pace.paused_ns, 995_000_000);
    }

    #[test]
    fn slow_rates_are_granted_too() {
        let mut pace = Pace::new(10, 0);
        let sent = run(&mut pace, (0..=2_000_000_000).step_by(1_000_000));
        assert_eq!(sent, 20);
        assert!(pace.sleep_ns(2_000_000_000) > 90_000_000);
    }
}
