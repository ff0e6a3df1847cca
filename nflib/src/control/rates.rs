//! What moves between two statuses: counters' differences over the time between them.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::status::{
    ChainStatus, DropStatus, NfStatus, PortStatus, RuleStatus, Status, WorkerStatus,
};
use crate::descriptor::ServiceId;

/// Rates over the time between two statuses of one manager.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Rates {
    /// That time, seconds.
    pub interval_s: f64,
    /// Ports that were there both times.
    pub ports: Vec<PortRate>,
    /// NFs that were there both times.
    pub nfs: Vec<NfRate>,
    /// Chains that were there both times.
    pub chains: Vec<ChainRate>,
    /// Rules that were listed both times and matched packets meanwhile.
    pub rules: Vec<RuleRate>,
    /// Workers.
    pub workers: Vec<WorkerRate>,
    /// Every line of the drop ledger, also those that did not move.
    pub drops: Vec<DropRate>,
}

/// One port's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PortRate {
    /// The port.
    pub name: String,
    /// As [`PortStatus::link`], at the end.
    pub link: String,
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NfRate {
    /// The NF.
    pub instance: u32,
    /// The service it provides.
    pub service: ServiceId,
    /// That service's name.
    pub service_name: String,
    /// Its name for itself.
    pub name: String,
    /// Packets delivered to it per second.
    pub rx_pps: f64,
    /// Packets it returned per second.
    pub tx_pps: f64,
    /// Of those, with action Drop.
    pub drop_pps: f64,
    /// Packets per second that found its ring full.
    pub ring_full_pps: f64,
    /// Packets it had at the end.
    pub held_pkts: u64,
}

/// One chain's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ChainRate {
    /// The chain.
    pub name: String,
    /// Packets sent into it per second.
    pub pps: f64,
    /// Bits sent into it per second.
    pub bps: f64,
}

/// One rule's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RuleRate {
    /// As [`RuleStatus::id`].
    pub id: u64,
    /// Packets per second that it matched.
    pub pps: f64,
    /// Bits per second.
    pub bps: f64,
}

/// One worker's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct WorkerRate {
    /// Its number.
    pub worker: u16,
    /// Turns of its loop per second.
    pub turns_per_s: f64,
    /// Share of its turns that moved packets, 0 to 1; `None` when it made no turn.
    pub busy_share: Option<f64>,
}

/// One line of the drop ledger's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DropRate {
    /// As [`DropStatus::place`].
    pub place: String,
    /// As [`DropStatus::reason`].
    pub reason: String,
    /// Packets so far.
    pub pkts: u64,
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
        let chains = after.chains.iter().filter_map(|now| {
            let same = |then: &&ChainStatus| then.spec.name == now.spec.name;
            over.chain(before.chains.iter().find(same)?, now)
        });
        let rules_then: HashMap<u64, &RuleStatus> =
            before.rules.iter().map(|rule| (rule.id, rule)).collect();
        let rules =
            after.rules.iter().filter_map(|now| over.rule(rules_then.get(&now.id).copied()?, now));
        let workers = after.workers.iter().filter_map(|now| {
            over.worker(before.workers.iter().find(|then| then.worker == now.worker)?, now)
        });
        Some(Self {
            interval_s: over.interval_s,
            ports: ports.collect(),
            nfs: nfs.collect(),
            chains: chains.collect(),
            rules: rules.collect(),
            workers: workers.collect(),
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
            link: now.link.clone(),
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
            service: now.service,
            service_name: now.service_name.clone(),
            name: now.name.clone(),
            rx_pps: self.rate(then.rx_pkts, now.rx_pkts)?,
            tx_pps: self.rate(then.tx_pkts, now.tx_pkts)?,
            drop_pps: self.rate(then.drop_pkts, now.drop_pkts)?,
            ring_full_pps: self.rate(then.ring_full_pkts, now.ring_full_pkts)?,
            held_pkts: now.held_pkts,
        })
    }

    fn chain(&self, then: &ChainStatus, now: &ChainStatus) -> Option<ChainRate> {
        Some(ChainRate {
            name: now.spec.name.clone(),
            pps: self.rate(then.pkts, now.pkts)?,
            bps: 8.0 * self.rate(then.bytes, now.bytes)?,
        })
    }

    fn rule(&self, then: &RuleStatus, now: &RuleStatus) -> Option<RuleRate> {
        let pps = self.rate(then.pkts, now.pkts).filter(|&pps| pps > 0.0)?;
        Some(RuleRate { id: now.id, pps, bps: 8.0 * self.rate(then.bytes, now.bytes)? })
    }

    fn worker(&self, then: &WorkerStatus, now: &WorkerStatus) -> Option<WorkerRate> {
        let turns = now.turns.checked_sub(then.turns)?;
        let idle = now.idle_turns.checked_sub(then.idle_turns)?;
        Some(WorkerRate {
            worker: now.worker,
            turns_per_s: self.rate(then.turns, now.turns)?,
            busy_share: (turns > 0).then(|| turns.saturating_sub(idle) as f64 / turns as f64),
        })
    }

    /// A line that was not in the ledger before counted nothing then.
    fn drops(&self, then: &[DropStatus], now: &DropStatus) -> Option<DropRate> {
        let same = |line: &&DropStatus| line.place == now.place && line.reason == now.reason;
        let then_pkts = then.iter().find(same).map_or(0, |line| line.pkts);
        Some(DropRate {
            place: now.place.clone(),
            reason: now.reason.clone(),
            pkts: now.pkts,
            pps: self.rate(then_pkts, now.pkts)?,
        })
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
    fn a_new_line_of_the_ledger_counts_from_zero_and_a_quiet_one_stands_still() {
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
        assert_eq!(seen, [("nf_drop", 0.0), ("no_instance", 5.0)]);
    }

    #[test]
    fn chains_and_rules_are_found_again_by_name_and_number() {
        let chain = |name: &str, pkts| ChainStatus {
            spec: crate::control::ChainSpec { name: name.into(), ..Default::default() },
            pkts,
            bytes: 100 * pkts,
            ..Default::default()
        };
        let rule = |id, pkts| RuleStatus { id, pkts, ..Default::default() };
        let (mut before, mut after) = (status(0, 0), status(2, 0));
        before.chains = vec![chain("gone", 9), chain("web", 10)];
        after.chains = vec![chain("web", 30), chain("new", 5)];
        before.rules = vec![rule(1, 5), rule(2, 5)];
        after.rules = vec![rule(2, 25), rule(1, 5), rule(3, 5)];
        let rates = Rates::between(&before, &after).unwrap();
        let web = ChainRate { name: "web".into(), pps: 10.0, bps: 8000.0 };
        assert_eq!(rates.chains, [web]);
        assert_eq!(rates.rules, [RuleRate { id: 2, pps: 10.0, bps: 0.0 }]);
    }

    #[test]
    fn a_worker_is_busy_in_the_turns_that_were_not_idle() {
        let worker =
            |turns, idle_turns| WorkerStatus { turns, idle_turns, ..WorkerStatus::default() };
        let (mut before, mut after) = (status(0, 0), status(2, 0));
        before.workers = vec![worker(1000, 900)];
        after.workers = vec![worker(1400, 1200)];
        let workers = Rates::between(&before, &after).unwrap().workers;
        assert_eq!((workers[0].turns_per_s, workers[0].busy_share), (200.0, Some(0.25)));
        after.workers = vec![worker(1000, 900)];
        assert_eq!(Rates::between(&before, &after).unwrap().workers[0].busy_share, None);
    }

    #[test]
    fn no_counters_make_it_panic() {
        let mut huge = status(2, u64::MAX / 200);
        huge.ports[0].drops = [("a".to_owned(), u64::MAX), ("b".to_owned(), 1)].into();
        assert!(Rates::between(&status(1, 0), &huge).is_some());
    }
}
