//! How long an NF runs at most.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use crate::args::NfArgs;

/// The limits of a program, over all its attachments.
pub(super) struct Limits {
    packets: Option<u64>,
    time: Option<Duration>,
    /// When the first attachment began.
    since: Option<Instant>,
    /// Packets taken in earlier attachments.
    taken_before_pkts: u64,
}

impl Limits {
    pub(super) fn new(args: &NfArgs) -> Self {
        let time = args.time_limit_s.map(Duration::from_secs_f64);
        Self { packets: args.packet_limit, time, since: None, taken_before_pkts: 0 }
    }

    /// The time of the first attachment runs from now on.
    pub(super) fn begin(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    /// An attachment has ended.
    pub(super) fn add_taken(&mut self, taken_pkts: u64) {
        self.taken_before_pkts = self.taken_before_pkts.saturating_add(taken_pkts);
    }

    /// Time left; `None` without a limit, or before the first attachment.
    pub(super) fn time_left(&self) -> Option<Duration> {
        Some(self.time?.saturating_sub(self.since?.elapsed()))
    }

    /// Packets that may still be taken before it is time to leave.
    pub(super) fn packets_left(&self) -> u64 {
        self.packets.map_or(u64::MAX, |limit| limit.saturating_sub(self.taken_before_pkts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::ServiceRef;

    #[test]
    fn limits_hold_over_all_attachments_and_time_runs_from_the_first() {
        let args = NfArgs::new(ServiceRef::Id(1), "unused");
        let none = Limits::new(&args);
        assert_eq!((none.packets_left(), none.time_left()), (u64::MAX, None));
        let args = NfArgs { packet_limit: Some(100), time_limit_s: Some(3600.0), ..args };
        let mut limits = Limits::new(&args);
        assert_eq!((limits.packets_left(), limits.time_left()), (100, None));
        limits.begin();
        let since = limits.since;
        limits.add_taken(64);
        limits.begin();
        assert_eq!((limits.packets_left(), limits.since), (36, since));
        assert!(limits.time_left().unwrap() <= Duration::from_secs(3600));
        limits.add_taken(64);
        assert_eq!(limits.packets_left(), 0);
    }
}
