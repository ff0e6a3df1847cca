//! What is seen of packets, as the manager tells it beside its status: latencies, captures, traces and
//! crashes; and what the console counts of it.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use nflib::control::{CaptureStatus, CrashStatus, LatencyReport, TraceStatus};

/// What is seen at one moment. A manager that does not tell leaves the part empty.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// How long packets take.
    pub latency: Option<Arc<LatencyReport>>,
    /// Captures under way.
    pub captures: Vec<CaptureStatus>,
    /// Traces, without their packets.
    pub traces: Vec<TraceStatus>,
    /// What is left of NFs that crashed, the newest first.
    pub crashes: Vec<CrashStatus>,
    /// Packets of captures and traces so far.
    pub sums: Sums,
}

/// Packets of all captures and traces that the console has seen, also of those that have ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Captured.
    pub captured_pkts: u64,
    /// To be captured, and lost.
    pub capture_lost_pkts: u64,
    /// Marked for a trace.
    pub traced_pkts: u64,
    /// Traced in part only.
    pub trace_torn_pkts: u64,
}

/// Adds up counters of things that come and go.
#[derive(Debug, Default)]
pub struct Tally {
    sums: Sums,
    captures: BTreeMap<u64, [u64; 2]>,
    traces: BTreeMap<u64, [u64; 2]>,
}

impl Tally {
    /// Takes note of what there is now; returns the sums.
    pub fn observe(&mut self, captures: &[CaptureStatus], traces: &[TraceStatus]) -> Sums {
        let now = captures.iter().map(|capture| (capture.id, [capture.pkts, capture.lost_pkts]));
        let [pkts, lost_pkts] = grown(&mut self.captures, now.collect());
        self.sums.captured_pkts += pkts;
        self.sums.capture_lost_pkts += lost_pkts;
        let now = traces.iter().map(|trace| (trace.id, [trace.marked_pkts, trace.torn_pkts]));
        let [pkts, torn_pkts] = grown(&mut self.traces, now.collect());
        self.sums.traced_pkts += pkts;
        self.sums.trace_torn_pkts += torn_pkts;
        self.sums
    }

    /// The manager is away, and may come back as another that numbers anew.
    pub fn interrupt(&mut self) {
        self.captures.clear();
        self.traces.clear();
    }
}

/// By how much the counters of all have grown together.
fn grown(before: &mut BTreeMap<u64, [u64; 2]>, now: BTreeMap<u64, [u64; 2]>) -> [u64; 2] {
    let mut more = [0_u64; 2];
    for (id, counters) in &now {
        let then = before.get(id).copied().unwrap_or_default();
        for (more, (now, then)) in more.iter_mut().zip(counters.iter().zip(then)) {
            *more = more.saturating_add(now.saturating_sub(then));
        }
    }
    *before = now;
    more
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capture(id: u64, pkts: u64, lost_pkts: u64) -> CaptureStatus {
        CaptureStatus { id, pkts, lost_pkts, ..CaptureStatus::default() }
    }

    #[test]
    fn what_ended_captures_had_stays_in_the_sums() {
        let mut tally = Tally::default();
        tally.observe(&[capture(1, 10, 1)], &[]);
        tally.observe(&[capture(1, 15, 1), capture(2, 7, 0)], &[]);
        let sums = tally.observe(&[capture(3, 1, 2)], &[]);
        assert_eq!((sums.captured_pkts, sums.capture_lost_pkts), (10 + 5 + 7 + 1, 3));
    }

    #[test]
    fn another_manager_numbers_anew() {
        let mut tally = Tally::default();
        tally.observe(&[capture(1, 10, 0)], &[]);
        tally.interrupt();
        let trace = TraceStatus { id: 1, marked_pkts: 3, torn_pkts: 2, ..TraceStatus::default() };
        let sums = tally.observe(&[capture(1, 4, 0)], &[trace]);
        assert_eq!((sums.captured_pkts, sums.traced_pkts, sums.trace_torn_pkts), (14, 3, 2));
    }
}
