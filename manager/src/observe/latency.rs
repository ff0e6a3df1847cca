//! How long packets take, by chain and hop, since the manager's start.
//!
//! Counted are samples only: which packets a trace follows is somebody's choice. What is counted stays under the
//! names of chain and service, whatever becomes of their numbers.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use nflib::control::{ChainLatency, HopLatency, LatencyReport};

use super::histogram::Histogram;
use super::journeys::{End, Journey};

/// Hops of which times are kept, at most: those that were met last.
const MAX_HOPS: usize = 2048;
/// Chains of which times are kept, at most.
const MAX_CHAINS: usize = 1024;

#[derive(Debug, Default)]
struct Hop {
    wait: Histogram,
    took: Histogram,
    /// The sample that met it last.
    last: u64,
}

#[derive(Debug, Default)]
struct Chain {
    total: Histogram,
    last: u64,
}

/// The times of all samples.
#[derive(Debug, Default)]
pub struct Latencies {
    /// By chain, position and service.
    hops: BTreeMap<(Arc<str>, u8, Arc<str>), Hop>,
    chains: BTreeMap<Option<Arc<str>>, Chain>,
    sampled_pkts: u64,
    torn_pkts: u64,
}

impl Latencies {
    /// Counts a sample that has ended.
    pub fn record(&mut self, journey: &Journey) {
        if journey.torn {
            self.torn_pkts += 1;
            return;
        }
        if journey.end == End::Inside {
            return;
        }
        self.sampled_pkts += 1;
        let now = self.sampled_pkts;
        for step in &journey.steps {
            let (Some(place), Some(out_ns)) = (&step.place, step.out_ns) else { continue };
            let key = (Arc::clone(&place.chain), place.hop, Arc::clone(&place.service));
            let hop = entry(&mut self.hops, key, MAX_HOPS, |hop| hop.last);
            hop.wait.record(step.wait_ns);
            hop.took.record(out_ns.saturating_sub(step.in_ns));
            hop.last = now;
        }
        if matches!(journey.end, End::Sent { .. }) {
            let chain = entry(&mut self.chains, journey.chain.clone(), MAX_CHAINS, |c| c.last);
            chain.total.record(journey.end_ns.saturating_sub(journey.begin.time_ns));
            chain.last = now;
        }
    }

    /// Everything, as it is told.
    #[must_use]
    pub fn report(&self, interval_us: u64) -> LatencyReport {
        let hop = |((chain, hop, service), times): (&(Arc<str>, u8, Arc<str>), &Hop)| HopLatency {
            chain: chain.to_string(),
            hop: *hop,
            service: service.to_string(),
            wait: times.wait.report(),
            took: times.took.report(),
        };
        let chain = |(chain, times): (&Option<Arc<str>>, &Chain)| ChainLatency {
            chain: chain.as_ref().map(ToString::to_string),
            total: times.total.report(),
        };
        LatencyReport {
            interval_us,
            sampled_pkts: self.sampled_pkts,
            torn_pkts: self.torn_pkts,
            hops: self.hops.iter().map(hop).collect(),
            chains: self.chains.iter().map(chain).collect(),
        }
    }
}

/// What stands under a key; for a new one, room is made where there is none.
fn entry<K: Ord + Clone, V: Default>(
    map: &mut BTreeMap<K, V>,
    key: K,
    most: usize,
    last: impl Fn(&V) -> u64,
) -> &mut V {
    if map.len() >= most && !map.contains_key(&key) {
        let oldest = map.iter().min_by_key(|(_, value)| last(value)).map(|(key, _)| key.clone());
        oldest.and_then(|key| map.remove(&key));
    }
    map.entry(key).or_default()
}

#[cfg(test)]
mod tests {
    use super::super::journeys::{Place, Step, View};
    use super::*;
    use nflib::observe::Event;

    fn journey(chain: Option<&str>, stays: &[(u64, u64)], end: End) -> Journey {
        let mut now_ns = 1000;
        let mut step = |(hop, &(wait_ns, took_ns)): (u8, &(u64, u64))| {
            let in_ns = now_ns + wait_ns;
            now_ns = in_ns + took_ns;
            let chain = chain.unwrap_or("none").into();
            Step {
                nf: 1,
                name: None,
                place: Some(Place { chain, hop, service: format!("s{hop}").into() }),
                from: None,
                wait_ns,
                in_ns,
                out_ns: Some(now_ns),
                held: false,
                action: None,
                before: View::default(),
                after: None,
            }
        };
        let steps: Vec<_> = (0..).zip(stays).map(&mut step).collect();
        Journey {
            trace: None,
            torn: false,
            begin: Event { time_ns: 1000, ..Event::default() },
            first: View::default(),
            chain: chain.map(Into::into),
            steps,
            end,
            end_ns: now_ns + 5,
            last: None,
        }
    }

    const SENT: End = End::Sent { port: 0 };

    #[test]
    fn hops_and_chains_get_the_times_of_their_packets() {
        let mut latencies = Latencies::default();
        latencies.record(&journey(Some("web"), &[(10, 20), (30, 40)], SENT));
        latencies.record(&journey(Some("web"), &[(11, 21)], End::Dropped { reason: 1, slot: 0 }));
        latencies.record(&journey(None, &[], SENT));
        latencies.record(&journey(Some("web"), &[(9, 9)], End::Inside));
        latencies.record(&Journey { torn: true, ..journey(Some("web"), &[(9, 9)], SENT) });
        let report = latencies.report(1000);
        assert_eq!((report.interval_us, report.sampled_pkts, report.torn_pkts), (1000, 3, 1));
        let hops: Vec<_> =
            report.hops.iter().map(|hop| (hop.hop, hop.wait.count, hop.took.sum_ns)).collect();
        assert_eq!(hops, [(0, 2, 41), (1, 1, 40)]);
        let chains: Vec<_> =
            report.chains.iter().map(|c| (c.chain.as_deref(), c.total.sum_ns)).collect();
        assert_eq!(chains, [(None, 5), (Some("web"), 105)]);
    }

    #[test]
    fn what_was_met_last_stays_when_there_are_too_many() {
        let mut latencies = Latencies::default();
        for chain in 0..MAX_CHAINS + 10 {
            latencies.record(&journey(Some("kept"), &[(1, 1)], SENT));
            latencies.record(&journey(Some(&format!("c{chain}")), &[(1, 1), (1, 1)], SENT));
        }
        let report = latencies.report(1);
        assert_eq!((report.chains.len(), report.hops.len()), (MAX_CHAINS, MAX_HOPS));
        let kept = report.chains.iter().find(|c| c.chain.as_deref() == Some("kept")).unwrap();
        assert_eq!(kept.total.count, (MAX_CHAINS + 10) as u64);
    }
}
