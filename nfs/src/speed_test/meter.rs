//! Counting rounds and timing some of them.
//!
//! The time before the figures are steady is left out: until all packets circulate, and a while
//! longer. Clocks are read by the caller, once a burst.
#![forbid(unsafe_code)]

use hdrhistogram::Histogram;
use serde::Serialize;

/// How long all packets must have circulated before anything is counted.
pub const WARM_UP_NS: u64 = 200_000_000;
/// Longest latency told apart, one minute; longer ones count as this.
const MAX_LATENCY_NS: u64 = 60_000_000_000;
/// Digits to which latencies are kept.
const DIGITS: u8 = 3;

/// Packets that have come back, at a moment.
#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    at_ns: u64,
    rounds: u64,
}

/// The meter.
pub struct Meter {
    rounds: u64,
    now_ns: u64,
    /// Counting begins at the first look after this.
    steady_from_ns: u64,
    steady_since: Option<Mark>,
    period_since: Mark,
    latencies: Histogram<u64>,
    period_latencies: Histogram<u64>,
}

/// What a period, or all of them, came to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// How long it was.
    pub seconds: f64,
    /// Packets that came back.
    pub rounds: u64,
    /// The same, a second.
    pub rounds_per_s: f64,
    /// The same, in millions.
    pub mpps: f64,
    /// Time for one of them.
    pub ns_per_round: f64,
    /// How long single packets took to come back.
    pub latency: Option<Latencies>,
}

/// How long the timed packets took, nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Latencies {
    /// How many were timed.
    pub samples: u64,
    /// Half of them took no longer.
    pub p50_ns: u64,
    /// 99 % of them.
    pub p99_ns: u64,
    /// 99.9 % of them.
    #[serde(rename = "p99_9_ns")]
    pub p999_ns: u64,
    /// The slowest.
    pub max_ns: u64,
}

impl Meter {
    /// A meter that waits for its first packets.
    pub fn new() -> Self {
        let histogram = || {
            Histogram::new_with_bounds(1, MAX_LATENCY_NS, DIGITS)
                .unwrap_or_else(|_| unreachable!("1 to a minute, three digits: within the limits"))
        };
        Self {
            rounds: 0,
            now_ns: 0,
            steady_from_ns: u64::MAX,
            steady_since: None,
            period_since: Mark::default(),
            latencies: histogram(),
            period_latencies: histogram(),
        }
    }

    /// Another packet has been sent on its first round.
    pub fn more_circulate(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
        self.steady_since = None;
        self.steady_from_ns = now_ns.saturating_add(WARM_UP_NS);
    }

    /// Some have come back.
    #[inline]
    pub fn came_back(&mut self, pkts: usize, now_ns: u64) {
        self.now_ns = now_ns;
        self.rounds += pkts as u64;
        if now_ns >= self.steady_from_ns {
            self.begin();
        }
    }

    /// Nothing is counted any more: packets are taken out of the round.
    pub fn end(&mut self, now_ns: u64) {
        self.now_ns = self.now_ns.max(now_ns);
    }

    #[cold]
    fn begin(&mut self) {
        // What has come back until now was on its way during the warm-up.
        let mark = Mark { at_ns: self.now_ns, rounds: self.rounds };
        self.steady_from_ns = u64::MAX;
        self.steady_since = Some(mark);
        self.period_since = mark;
        self.latencies.reset();
        self.period_latencies.reset();
    }

    /// One came back after so long.
    #[inline]
    pub fn took(&mut self, ns: u64) {
        if self.steady_since.is_some() {
            self.latencies.saturating_record(ns);
            self.period_latencies.saturating_record(ns);
        }
    }

    /// Ends a period. `None` while nothing is counted yet.
    pub fn end_period(&mut self, now_ns: u64) -> Option<Figures> {
        self.steady_since?;
        self.now_ns = self.now_ns.max(now_ns);
        let now = Mark { at_ns: now_ns, rounds: self.rounds };
        let figures = figures(self.period_since, now, &self.period_latencies);
        self.period_since = now;
        self.period_latencies.reset();
        figures
    }

    /// All that was counted. `None` when the time was too short for it.
    pub fn total(&self) -> Option<Figures> {
        let now = Mark { at_ns: self.now_ns, rounds: self.rounds };
        figures(self.steady_since?, now, &self.latencies)
    }
}

fn figures(from: Mark, to: Mark, latencies: &Histogram<u64>) -> Option<Figures> {
    let ns = to.at_ns.checked_sub(from.at_ns).filter(|&ns| ns > 0)?;
    let rounds = to.rounds - from.rounds;
    let seconds = ns as f64 / 1e9;
    let rounds_per_s = rounds as f64 / seconds;
    Some(Figures {
        seconds,
        rounds,
        rounds_per_s,
        mpps: rounds_per_s / 1e6,
        ns_per_round: if rounds > 0 { ns as f64 / rounds as f64 } else { 0.0 },
        latency: (!latencies.is_empty()).then(|| Latencies {
            samples: latencies.len(),
            p50_ns: latencies.value_at_quantile(0.5),
            p99_ns: latencies.value_at_quantile(0.99),
            p999_ns: latencies.value_at_quantile(0.999),
            max_ns: latencies.max(),
        }),
    })
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { seconds, mpps, ns_per_round, .. } = self;
        write!(f, "{mpps:.3} M rounds/s, {ns_per_round:.2} ns a round, over {seconds:.2} s")?;
        if let Some(Latencies { samples, p50_ns, p99_ns, p999_ns, max_ns }) = self.latency {
            write!(
                f,
                "; latency p50 {p50_ns}, p99 {p99_ns}, p99.9 {p999_ns}, max {max_ns} ns of {samples}"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    /// A meter that counts since `SECOND_NS`.
    fn steady() -> Meter {
        let mut meter = Meter::new();
        meter.more_circulate(SECOND_NS - WARM_UP_NS - 5);
        meter.more_circulate(SECOND_NS - WARM_UP_NS);
        meter.came_back(1_000_000, SECOND_NS - 1);
        meter.took(77);
        assert_eq!((meter.end_period(SECOND_NS - 1), meter.total()), (None, None));
        meter.came_back(0, SECOND_NS);
        meter
    }

    #[test]
    fn rates_are_those_after_the_warm_up() {
        let mut meter = steady();
        for step in 1..=10 {
            meter.came_back(100, SECOND_NS + step * 1000);
        }
        let total = meter.total().unwrap();
        assert_eq!(total.rounds, 1000);
        assert!((total.mpps - 100.0).abs() < 1e-9 && (total.ns_per_round - 10.0).abs() < 1e-9);
        assert_eq!(total.latency, None);
        // One that joins later makes everything begin anew.
        meter.more_circulate(2 * SECOND_NS);
        assert_eq!(meter.total(), None);
    }

    #[test]
    fn periods_are_counted_apart_and_the_total_over_all() {
        let mut meter = steady();
        meter.came_back(10, SECOND_NS + 50);
        meter.took(40);
        let first = meter.end_period(SECOND_NS + 100).unwrap();
        meter.came_back(30, SECOND_NS + 150);
        meter.took(60);
        meter.took(60);
        let second = meter.end_period(SECOND_NS + 200).unwrap();
        assert_eq!((first.rounds, second.rounds), (10, 30));
        assert_eq!(first.latency.map(|l| (l.samples, l.p50_ns, l.max_ns)), Some((1, 40, 40)));
        assert_eq!(second.latency.map(|l| (l.samples, l.p50_ns, l.max_ns)), Some((2, 60, 60)));
        let total = meter.total().unwrap();
        assert_eq!((total.rounds, total.latency.unwrap().samples), (40, 3));
        assert!((total.seconds - 200e-9).abs() < 1e-12);
        let silent = meter.end_period(SECOND_NS + 300).unwrap();
        assert_eq!((silent.rounds, silent.latency), (0, None));
        assert!(silent.ns_per_round.abs() < 1e-12 && silent.to_string().starts_with("0.000 M"));
    }

    #[test]
    fn percentiles_are_those_of_the_samples() {
        let mut meter = steady();
        for ns in 1..=1000 {
            meter.took(ns * 100);
        }
        meter.took(u64::MAX);
        meter.came_back(1, SECOND_NS + 1);
        let latency = meter.total().unwrap().latency.unwrap();
        let near = |value: u64, expected: u64| value.abs_diff(expected) <= expected / 500;
        assert!(near(latency.p50_ns, 50_100) && near(latency.p99_ns, 99_100), "{latency:?}");
        assert!(near(latency.p999_ns, 100_000) && near(latency.max_ns, MAX_LATENCY_NS));
    }
}
