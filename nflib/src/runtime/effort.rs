//! What an NF's time went for: CPU time spent on packets, and time spent looking for some.
//!
//! The clock alone would count the time of others: an NF that is preempted in the middle of a burst
//! has the same packets in hand until it gets the core back. The kernel knows the CPU time exactly but
//! is dear to ask, so it is asked every ten milliseconds or so, and what it says is divided by how the
//! clock divided that time; being preempted lengthens both parts alike.
#![forbid(unsafe_code)]

use crate::burst::MAX_BURST_PKTS;
use crate::resting::CoreWatch;

/// What a look that finds nothing costs with the yield behind it, about. The yield itself cannot be
/// timed: others run in it.
const EMPTY_LOOK_NS: u64 = 500;

/// A look at the clock costs 20 ns. While packets cost this at most, so many bursts are served for each: the time
/// that an NF is told is some microseconds late then.
const CHEAP_PKT_NS: u64 = 8;
const CHEAP_LOOKS: usize = 4;

/// Looks at the inputs for one at the clock, when a packet costs so much; not for more packets than a quantum.
pub(super) fn looks_a_turn(pkt_ns: u64, quantum_pkts: usize) -> usize {
    let most = if pkt_ns <= CHEAP_PKT_NS { CHEAP_LOOKS } else { 1 };
    most.min(quantum_pkts / MAX_BURST_PKTS).max(1)
}

pub(super) struct Effort {
    core: CoreWatch,
    /// When the turn began whose time is not accounted for yet.
    since_ns: u64,
    /// It moved packets.
    worked: bool,
    /// Since the kernel was asked, by the clock.
    work_ns: u64,
    search_ns: u64,
    /// Packets taken until then.
    rx_pkts: u64,
    /// CPU time spent on packets so far.
    busy_ns: u64,
}

impl Effort {
    pub(super) fn new(now_ns: u64) -> Self {
        Self {
            core: CoreWatch::new(now_ns),
            since_ns: now_ns,
            worked: false,
            work_ns: 0,
            search_ns: 0,
            rx_pkts: 0,
            busy_ns: 0,
        }
    }

    /// Whether other threads want this thread's core.
    #[inline]
    pub(super) fn core_is_shared(&self) -> bool {
        self.core.is_shared()
    }

    /// CPU time spent on packets, as of the last [`look`](Self::look).
    pub(super) fn busy_ns(&self) -> u64 {
        self.busy_ns
    }

    /// The last turn, whatever it did, ends now.
    #[inline]
    pub(super) fn next_turn(&mut self, now_ns: u64) {
        let took_ns = now_ns.saturating_sub(self.since_ns);
        match self.worked {
            true => self.work_ns += took_ns,
            false => self.search_ns += took_ns,
        }
        self.since_ns = now_ns;
        self.worked = false;
    }

    /// The turn under way moves packets.
    #[inline]
    pub(super) fn works(&mut self) {
        self.worked = true;
    }

    /// The thread has yielded or slept, until now: that time is nobody's.
    pub(super) fn rested(&mut self, now_ns: u64) {
        self.search_ns += EMPTY_LOOK_NS;
        self.since_ns = now_ns;
    }

    /// Asks the kernel for the CPU time. Returns what a packet cost since the last look, ns, if there
    /// was any; `rx_pkts` is how many have been taken so far.
    pub(super) fn look(&mut self, now_ns: u64, rx_pkts: u64) -> Option<u64> {
        let cpu_ns = self.core.look(now_ns);
        self.share_out(cpu_ns, rx_pkts)
    }

    fn share_out(&mut self, cpu_ns: u64, rx_pkts: u64) -> Option<u64> {
        let work_ns = std::mem::take(&mut self.work_ns);
        let all_ns = work_ns + std::mem::take(&mut self.search_ns);
        let part = if all_ns == 0 { 0.0 } else { work_ns as f64 / all_ns as f64 };
        let busy_ns = (cpu_ns as f64 * part) as u64;
        self.busy_ns += busy_ns;
        let pkts = rx_pkts - std::mem::replace(&mut self.rx_pkts, rx_pkts);
        busy_ns.checked_div(pkts)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_others_is_not_the_cost_of_a_packet() {
        let mut effort = Effort::new(0);
        // 10 µs of work on 100 packets; in the middle others have the core for 4 ms.
        effort.next_turn(0);
        effort.works();
        effort.next_turn(4_010_000);
        assert_eq!(effort.share_out(10_000, 100), Some(100));
        assert_eq!(effort.busy_ns(), 10_000);
    }

    #[test]
    fn the_clock_is_never_late_by_more_than_some_microseconds() {
        for pkt_ns in [0, 1, CHEAP_PKT_NS, CHEAP_PKT_NS + 1, 1_000_000] {
            let unseen_pkts = (looks_a_turn(pkt_ns, 4096) - 1) * MAX_BURST_PKTS;
            assert!(unseen_pkts as u64 * pkt_ns < 5_000, "{pkt_ns}");
        }
        assert!(looks_a_turn(CHEAP_PKT_NS, 4096) > 1);
        assert_eq!([32, 128, 256].map(|quantum_pkts| looks_a_turn(0, quantum_pkts)), [1, 1, 2]);
    }

    #[test]
    fn looking_for_packets_is_no_work_and_rest_is_nothing() {
        let mut effort = Effort::new(0);
        effort.works();
        effort.next_turn(3_000);
        effort.next_turn(12_000);
        effort.rested(5_000_000);
        effort.next_turn(5_000_000 + 1_000 - EMPTY_LOOK_NS);
        // 3 µs of work, 10 of search.
        assert_eq!(effort.share_out(13_000, 30), Some(100));
        assert_eq!(effort.share_out(13_000, 30), None, "no packet, no cost");
        assert_eq!(effort.busy_ns(), 3_000);
    }
}
