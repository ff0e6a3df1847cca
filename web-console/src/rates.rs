//! What moves between two statuses: counters' differences over the time between them.
//!
//! The names are those of `millrace stats --json`.
#![forbid(unsafe_code)]

use nflib::control::{DropStatus, NfStatus, PortStatus, Status};
use serde::Serialize;

/// Rates over the time between two statuses of one manager.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rates {
    /// That time, seconds.
    pub interval_s: f64,
    /// Ports that were there both times.
    pub ports: Vec<PortRate>,
    /// NFs that were there both times.
    pub nfs: Vec<NfRate>,
    /// Places and reasons at which packets were dropped meanwhile.
    pub drops: Vec<DropRate>,
}

/// One port's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PortRate {
    /// The port.
    pub name: String,
    /// Packets received per second.
    pub rx_pps: f64,
    /// Bits received per second: bytes of frames without check sequence, preamble and gap.
    pub rx_bps: f64,
    /// Packets sent per second.
    pub tx_pps: f64,
    /// Bits sent per second, as `rx_bps`.
    pub tx_bps: f64,
    /// Packets dropped at this port per second.
    pub drop_pps: f64,
}

/// One NF's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NfRate {
    /// The NF.
    pub instance: u32,
    /// Packets delivered to it per second.
    pub rx_pps: f64,
    /// Packets it returned per second.
    pub tx_pps: f64,
    /// Of those, with action Drop.
    pub drop_pps: f64,
    /// Packets per second that found its ring full.
    pub ring_full_pps: f64,
}

/// One line of the drop ledger's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DropRate {
    /// As [`DropStatus::place`].
    pub place: String,
    /// As [`DropStatus::reason`].
    pub reason: String,
    /// Packets per second.
    pub pps: f64,
}

impl Rates {
    /// Rates from `before` to `after`, or none when these cannot be compared: another manager, or
    /// no time between them. What has counters that ran backwards is left out.
    #[must_use]
    pub fn between(before: &Status, after: &Status) -> Option<Self> {
        let same_manager = before.pid == after.pid && before.uptime_s <= after.uptime_s;
        let interval_ns = after.at_ns.checked_sub(before.at_ns).filter(|&ns| ns > 0)?;
        if !same_manager {
            return None;
        }
        let over = Over { interval_s: interval_ns as f64 / 1e9 };
        let ports = after.ports.iter().filter_map(|now| {
            over.port(before.ports.iter().find(|then| then.name == now.name)?, now)
        });
        let nfs = after.nfs.iter().filter_map(|now| {
            over.nf(before.nfs.iter().find(|then| then.instance == now.instance)?, now)
        });
        Some(Self {
            interval_s: over.interval_s,
            ports: ports.collect(),
            nfs: nfs.collect(),
            drops: after.drops.iter().filter_map(|now| over.drops(&before.drops, now)).collect(),
        })
    }
}

/// The time that differences are divided by.
struct Over {
    interval_s: f64,
}

impl Over {
    /// Per second, unless the counter ran backwards.
    fn rate(&self, then: u64, now: u64) -> Option<f64> {
        Some(now.checked_sub(then)? as f64 / self.interval_s)
    }

    fn port(&self, then: &PortStatus, now: &PortStatus) -> Option<PortRate> {
        let drops =
            |port: &PortStatus| port.drops.values().fold(0, |sum: u64, &n| sum.saturating_add(n));
        Some(PortRate {
            name: now.name.clone(),
            rx_pps: self.rate(then.rx_pkts, now.rx_pkts)?,
            rx_bps: 8.0 * self.rate(then.rx_bytes, now.rx_bytes)?,
            tx_pps: self.rate(then.tx_pkts, now.tx_pkts)?,
            tx_bps: 8.0 * self.rate(then.tx_bytes, now.tx_bytes)?,
            drop_pps: self.rate(drops(then), drops(now))?,
        })
    }

    fn nf(&self, then: &NfStatus, now: &NfStatus) -> Option<NfRate> {
        Some(NfRate {
            instance: now.instance,
            rx_pps: self.rate(then.rx_pkts, now.rx_pkts)?,
            tx_pps: self.rate(then.tx_pkts, now.tx_pkts)?,
            drop_pps: self.rate(then.drop_pkts, now.drop_pkts)?,
            ring_full_pps: self.rate(then.ring_full_pkts, now.ring_full_pkts)?,
        })
    }

    /// A line that was not in the ledger before counted nothing then.
    fn drops(&self, then: &[DropStatus], now: &DropStatus) -> Option<DropRate> {
        let same = |line: &&DropStatus| line.place == now.place && line.reason == now.reason;
        let then_pkts = then.iter().find(same).map_or(0, |line| line.pkts);
        let pps = self.rate(then_pkts, now.pkts).filter(|&pps| pps > 0.0)?;
        Some(DropRate { place: now.place.clone(), reason: now.reason.clone(), pps })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(at_s: u64, rx_pkts: u64) -> Status {
        let port =
            PortStatus { name: "p".into(), rx_pkts, rx_bytes: 100 * rx_pkts, ..Default::default() };
        let nf = NfStatus { instance: 3, tx_pkts: rx_pkts / 2, ..Default::default() };
        Status {
            at_ns: at_s * 1_000_000_000,
            uptime_s: at_s as f64,
            ports: vec![port],
            nfs: vec![nf],
            ..Default::default()
        }
    }

    #[test]
    fn a_rate_is_the_difference_over_the_time_between() {
        let rates = Rates::between(&status(1, 1000), &status(3, 5000)).unwrap();
        assert_eq!(rates.interval_s, 2.0);
        assert_eq!((rates.ports[0].rx_pps, rates.ports[0].rx_bps), (2000.0, 1_600_000.0));
        assert_eq!(rates.nfs[0].tx_pps, 1000.0);
    }

    #[test]
    fn a_restarted_manager_gives_no_rates_rather_than_wrong_ones() {
        let mut restarted = status(3, 5000);
        restarted.pid = 99;
        assert_eq!(Rates::between(&status(1, 1000), &restarted), None);
        let mut same_pid = status(3, 5000);
        same_pid.uptime_s = 0.5;
        assert_eq!(Rates::between(&status(1, 1000), &same_pid), None);
    }

    #[test]
    fn no_time_between_is_no_rate() {
        assert_eq!(Rates::between(&status(1, 0), &status(1, 9)), None);
        assert_eq!(Rates::between(&status(2, 0), &status(1, 9)), None);
    }

    #[test]
    fn a_port_whose_counter_ran_backwards_is_left_out() {
        let mut after = status(2, 1000);
        after.ports[0].tx_bytes = 5;
        let mut before = status(1, 1000);
        before.ports[0].tx_bytes = 6;
        assert!(Rates::between(&before, &after).unwrap().ports.is_empty());
    }

    #[test]
    fn an_nf_that_just_came_has_no_rate_yet() {
        let mut before = status(1, 0);
        before.nfs.clear();
        assert!(Rates::between(&before, &status(2, 100)).unwrap().nfs.is_empty());
    }

    #[test]
    fn a_new_line_of_the_ledger_counts_from_zero_and_a_quiet_one_is_left_out() {
        let line = |reason: &str, pkts| DropStatus {
            place: "service:1".into(),
            reason: reason.into(),
            pkts,
        };
        let (mut before, mut after) = (status(0, 0), status(2, 0));
        before.drops = vec![line("nf_drop", 7)];
        after.drops = vec![line("nf_drop", 7), line("no_instance", 10)];
        let rates = Rates::between(&before, &after).unwrap();
        let seen: Vec<_> = rates.drops.iter().map(|d| (d.reason.as_str(), d.pps)).collect();
        assert_eq!(seen, [("no_instance", 5.0)]);
    }

    #[test]
    fn no_counters_make_it_panic() {
        let mut huge = status(2, u64::MAX / 200);
        huge.ports[0].drops = [("a".to_owned(), u64::MAX), ("b".to_owned(), 1)].into();
        assert!(Rates::between(&status(1, 0), &huge).is_some());
    }
}
