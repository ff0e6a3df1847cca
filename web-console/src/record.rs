//! What the console remembers while it runs: figures over time, and what happened.
#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nflib::control::{LatencyReport, Status};

use crate::history::{History, HistoryAnswer, Tier};
use crate::latency::{Latencies, LatencyHistory};
use crate::timeline::{Entry, Timeline};

/// The memory, shared by the poller, which writes, and the handlers, which read.
#[derive(Debug, Default)]
pub struct Record(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    history: History,
    timeline: Timeline,
    latencies: Latencies,
}

impl Record {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The manager answered; returns the number of the timeline's latest entry.
    pub fn up(&self, status: &Arc<Status>, at_unix_ms: u64) -> u64 {
        let mut inner = self.lock();
        inner.history.observe(status, at_unix_ms);
        inner.timeline.up(status, at_unix_ms)
    }

    /// The manager told latencies.
    pub fn latency(&self, report: &Arc<LatencyReport>, at_unix_ms: u64) {
        self.lock().latencies.observe(report, at_unix_ms);
    }

    /// The manager did not answer; returns the number of the timeline's latest entry.
    pub fn away(&self, message: &str, at_unix_ms: u64) -> u64 {
        let mut inner = self.lock();
        inner.history.interrupt();
        inner.latencies.interrupt();
        inner.timeline.away(message, at_unix_ms)
    }

    /// Figures of the subjects that `wanted` accepts.
    pub fn history(&self, tier: Tier, wanted: impl Fn(&str) -> bool) -> HistoryAnswer {
        self.lock().history.answer(tier, wanted)
    }

    /// Latencies later than `after_unix_ms`.
    pub fn latencies(&self, tier: Tier, after_unix_ms: u64) -> LatencyHistory {
        self.lock().latencies.answer(tier, after_unix_ms)
    }

    /// What happened after entry number `after`, the oldest first.
    pub fn timeline(&self, after: u64) -> Vec<Entry> {
        self.lock().timeline.after(after)
    }
}
