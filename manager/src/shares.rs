//! CPU shares of NFs that share a core, by what their packets cost.
//!
//! The kernel shares a core out by time: of two NFs that are both overloaded, the one with the dearer
//! packets passes fewer of them. What operators mean is a share of the traffic. So each NF's share of
//! its core is made proportional to *arrivals × cost of a packet × weight* (NFVnice, SIGCOMM 2017), by
//! its nice level, a ratio of 1.25 each, which is all that needs.
//!
//! Arrivals are what enters the NF's chains, and not what the NF got to see: an NF that fell behind
//! would be given less for it, and fall behind further. The cost is CPU time by the NF's own account,
//! see `nflib::runtime`; an NF that lies about it can gain or lose at most [`MAX_NICE`] levels.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// How often shares are adapted.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// Lowest share: a ninth of the highest. Below, an NF that suddenly gets packets would wait long.
pub const MAX_NICE: i32 = 10;
/// Ratio of the shares of neighbouring nice levels (sched(7)).
const NICE_RATIO: f64 = 1.25;
/// Weight of a new measurement of a cost against those before.
const FRESH: f64 = 0.3;

/// An NF, as counted at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    /// Its process.
    pub pid: i32,
    /// The core it shares by the manager's choice; `None`: its share is left alone.
    pub core: Option<u32>,
    /// Its weight.
    pub weight: u32,
    /// CPU time spent on packets so far, by its own account, ns.
    pub busy_ns: u64,
    /// Packets taken so far, by its own account.
    pub rx_pkts: u64,
    /// Packets a second that enter its chains and are meant for it.
    pub arrivals_pps: f64,
}

/// What is known of an NF.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Known {
    busy_ns: u64,
    rx_pkts: u64,
    cost_ns: f64,
    nice: i32,
}

/// The shares in force.
#[derive(Debug, Default)]
pub struct Shares {
    next: Option<Instant>,
    nfs: HashMap<u32, Known>,
    /// Packets that had entered each chain, and when.
    chains: Option<(Instant, Vec<u64>)>,
}

impl Shares {
    /// Whether it is time to adapt them; at most once an [`INTERVAL`].
    pub fn is_due(&mut self, now: Instant) -> bool {
        let due = self.next.is_none_or(|next| now >= next);
        if due {
            self.next = Some(now + INTERVAL);
        }
        due
    }

    /// Packets a second that entered each chain since the last call, by chain id.
    pub fn chain_rates(&mut self, now: Instant, chains: &[(u64, u64)]) -> Vec<f64> {
        let pkts: Vec<u64> = chains.iter().map(|(pkts, _)| *pkts).collect();
        let Some((then, before)) = self.chains.replace((now, pkts.clone())) else {
            return vec![0.0; pkts.len()];
        };
        let seconds = now.saturating_duration_since(then).as_secs_f64();
        let before = before.into_iter().chain(std::iter::repeat(0));
        let rate = |(now, before): (&u64, u64)| match seconds > 0.0 {
            true => now.saturating_sub(before) as f64 / seconds,
            false => 0.0,
        };
        pkts.iter().zip(before).map(rate).collect()
    }

    /// What a packet costs an NF, ns; 0 while that is not known.
    #[must_use]
    pub fn cost_ns(&self, instance: u32) -> f64 {
        self.nfs.get(&instance).map_or(0.0, |known| known.cost_ns)
    }

    /// Takes a reading of every NF, by instance id; NFs that are missing are forgotten. Returns the
    /// processes whose nice level shall change.
    pub fn adapt(&mut self, readings: &BTreeMap<u32, Reading>) -> Vec<(i32, i32)> {
        self.nfs.retain(|instance, _| readings.contains_key(instance));
        let mut by_core: BTreeMap<u32, Vec<(u32, f64)>> = BTreeMap::new();
        for (&instance, reading) in readings {
            let cost_ns = self.nfs.entry(instance).or_default().measure(reading);
            let demand = reading.arrivals_pps * cost_ns * f64::from(reading.weight);
            if let Some(core) = reading.core {
                by_core.entry(core).or_default().push((instance, demand));
            }
        }
        let mut changes = Vec::new();
        for nfs in by_core.into_values() {
            let demands: Vec<f64> = nfs.iter().map(|(_, demand)| *demand).collect();
            for ((instance, _), nice) in nfs.iter().zip(nice_levels(&demands)) {
                let (Some(known), Some(reading)) =
                    (self.nfs.get_mut(instance), readings.get(instance))
                else {
                    continue;
                };
                // A level more or less is noise.
                if (known.nice - nice).abs() > 1 || (nice == 0 && known.nice != 0) {
                    known.nice = nice;
                    changes.push((reading.pid, nice));
                }
            }
        }
        changes
    }
}

impl Known {
    /// Notes a reading; returns the cost of a packet.
    fn measure(&mut self, reading: &Reading) -> f64 {
        let pkts = reading.rx_pkts.saturating_sub(self.rx_pkts);
        let busy_ns = reading.busy_ns.saturating_sub(self.busy_ns);
        (self.rx_pkts, self.busy_ns) = (reading.rx_pkts, reading.busy_ns);
        if pkts > 0 {
            let fresh = busy_ns as f64 / pkts as f64;
            let first = self.cost_ns == 0.0;
            self.cost_ns =
                if first { fresh } else { self.cost_ns + FRESH * (fresh - self.cost_ns) };
        }
        self.cost_ns
    }
}

/// Nice levels whose shares stand to each other as the demands do. Who has none, or is alone, gets
/// level 0, so that it is not late when packets come.
fn nice_levels(demands: &[f64]) -> Vec<i32> {
    let most = demands.iter().copied().fold(0.0, f64::max);
    let level = |demand: &f64| match *demand > 0.0 {
        true => ((most / demand).ln() / NICE_RATIO.ln()).round().min(f64::from(MAX_NICE)) as i32,
        false => 0,
    };
    demands.iter().map(level).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// NFs 0, 1, … with processes 100, 101, … after `seconds`, on core 1.
    fn readings(seconds: u64, nfs: &[(u64, f64, u32)]) -> BTreeMap<u32, Reading> {
        let reading = |(nf, &(cost_ns, arrivals_pps, weight)): (u32, &(u64, f64, u32))| {
            let rx_pkts = 1000 * seconds;
            let pid = 100 + nf.cast_signed();
            let busy_ns = cost_ns * rx_pkts;
            (nf, Reading { pid, core: Some(1), weight, busy_ns, rx_pkts, arrivals_pps })
        };
        (0..).zip(nfs).map(reading).collect()
    }

    #[test]
    fn shares_stand_as_arrivals_times_cost_times_weight() {
        let share = |nice: i32| NICE_RATIO.powi(-nice);
        for (nfs, ratio) in [
            ([(100, 1e6, 1), (500, 1e6, 1)], 5.0),
            ([(100, 1e6, 1), (100, 3e6, 1)], 3.0),
            ([(100, 1e6, 1), (100, 1e6, 4)], 4.0),
            ([(100, 4e6, 1), (400, 1e6, 1)], 1.0),
        ] {
            let mut shares = Shares::default();
            let nice: HashMap<i32, i32> = shares.adapt(&readings(1, &nfs)).into_iter().collect();
            let of = |pid| share(nice.get(&pid).copied().unwrap_or(0));
            let got = of(101) / of(100);
            // Within half a level.
            assert!((got / ratio).ln().abs() <= NICE_RATIO.ln() / 2.0 + 1e-9, "{nfs:?}: {got}");
        }
    }

    #[test]
    fn nobody_falls_below_a_ninth_and_who_has_no_packets_is_not_held_back() {
        let mut shares = Shares::default();
        let nfs = [(10, 1e3, 1), (1000, 1e6, 1), (1000, 0.0, 1)];
        assert_eq!(shares.adapt(&readings(1, &nfs)), [(100, MAX_NICE)]);
        let equal = [(10, 1e6, 1), (10, 1e6, 1), (10, 0.0, 1)];
        for seconds in 2..30 {
            shares.adapt(&readings(seconds, &equal));
        }
        assert_eq!(shares.nfs[&0].nice, 0, "what is equal again has equal shares again");
    }

    #[test]
    fn what_costs_about_the_same_is_left_alone_and_so_is_who_has_no_core_of_ours() {
        let mut shares = Shares::default();
        assert_eq!(shares.adapt(&readings(1, &[(100, 1e6, 1), (120, 1e6, 1)])), []);
        let mut free = readings(2, &[(100, 1e6, 1), (9000, 1e6, 1)]);
        free.get_mut(&0).unwrap().core = None;
        assert_eq!(shares.adapt(&free), []);
        assert!(shares.cost_ns(1) > 120.0 && shares.cost_ns(9) == 0.0);
    }

    #[test]
    fn chain_rates_are_those_since_the_last_look() {
        let mut shares = Shares::default();
        let now = Instant::now();
        assert_eq!(shares.chain_rates(now, &[(50, 0)]), [0.0]);
        let rates = shares.chain_rates(now + Duration::from_secs(2), &[(150, 0), (20, 0)]);
        assert_eq!(rates, [50.0, 10.0]);
    }

    #[test]
    fn it_is_due_once_a_second() {
        let mut shares = Shares::default();
        let now = Instant::now();
        let due =
            [0, 500, 1000, 1001, 2000].map(|ms| shares.is_due(now + Duration::from_millis(ms)));
        assert_eq!(due, [true, false, true, false, true]);
    }
}
