//! Figures over time: each second of the last ten minutes, and each ten seconds of the last two
//! hours, in memory of a bounded size.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use nflib::control::Status;
use nflib::control::rates::Rates;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Ports, NFs, services, chains and workers of which figures are kept; further ones are left out.
/// With 6 figures of 1,320 points each, that bounds the memory to 16 MB.
const MAX_SUBJECTS: usize = 512;
/// How much earlier than a step a status may come and still end it: its beat is not exact.
const EARLY_SHARE: f64 = 0.1;

/// Which steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// A second each, for ten minutes.
    #[default]
    Fine,
    /// Ten seconds each, for two hours.
    Coarse,
}

/// Figures over time.
#[derive(Debug, Serialize, JsonSchema)]
pub struct HistoryAnswer {
    /// Time between two points, seconds; more where the console asks the manager less often.
    pub step_s: u32,
    /// When each point was taken, milliseconds since 1970, the oldest first. Rates are over the time
    /// before it. While the manager is away there is none.
    pub at_unix_ms: Vec<u64>,
    /// By subject (`manager`, `port:NAME`, `nf:INSTANCE`, `service:NAME`, `chain:NAME`, `worker:N`),
    /// then by figure: a value a point; null where it is not known.
    pub subjects: BTreeMap<String, BTreeMap<&'static str, Vec<Option<f32>>>>,
    /// Subjects that are not recorded, because there are too many.
    pub left_out: usize,
}

/// Both tiers.
#[derive(Debug)]
pub struct History {
    fine: Ring,
    coarse: Ring,
}

impl Default for History {
    fn default() -> Self {
        Self { fine: Ring::new(1, 600), coarse: Ring::new(10, 720) }
    }
}

impl History {
    /// Takes note of a status.
    pub fn observe(&mut self, status: &Arc<Status>, at_unix_ms: u64) {
        self.fine.observe(status, at_unix_ms);
        self.coarse.observe(status, at_unix_ms);
    }

    /// The next status is not to be compared with the one before.
    pub fn interrupt(&mut self) {
        self.fine.before = None;
        self.coarse.before = None;
    }

    /// The figures of the subjects that `wanted` accepts.
    pub fn answer(&self, tier: Tier, wanted: impl Fn(&str) -> bool) -> HistoryAnswer {
        match tier {
            Tier::Fine => self.fine.answer(wanted),
            Tier::Coarse => self.coarse.answer(wanted),
        }
    }
}

/// The points of one subject's figures.
type Figures = BTreeMap<&'static str, VecDeque<f32>>;

/// The last points of one step.
#[derive(Debug)]
struct Ring {
    step_s: u32,
    capacity: usize,
    before: Option<Arc<Status>>,
    at_unix_ms: VecDeque<u64>,
    subjects: BTreeMap<String, Subject>,
    left_out: usize,
}

#[derive(Debug, Default)]
struct Subject {
    figures: Figures,
    last_seen_unix_ms: u64,
}

impl Ring {
    fn new(step_s: u32, capacity: usize) -> Self {
        let (at_unix_ms, subjects) = (VecDeque::new(), BTreeMap::new());
        Self { step_s, capacity, before: None, at_unix_ms, subjects, left_out: 0 }
    }

    fn observe(&mut self, status: &Arc<Status>, at_unix_ms: u64) {
        let Some(before) = &self.before else {
            self.before = Some(Arc::clone(status));
            return;
        };
        let step_ns = f64::from(self.step_s) * (1.0 - EARLY_SHARE) * 1e9;
        if (status.at_ns.saturating_sub(before.at_ns) as f64) < step_ns && status.pid == before.pid
        {
            return;
        }
        let rates = Rates::between(before, status);
        self.before = Some(Arc::clone(status));
        if let Some(rates) = rates {
            self.push(at_unix_ms, samples(status, &rates));
        }
    }

    fn push(&mut self, at_unix_ms: u64, samples: Vec<(String, &'static str, f64)>) {
        if self.at_unix_ms.len() == self.capacity {
            self.at_unix_ms.pop_front();
            self.each(|points| {
                points.pop_front();
            });
        }
        let earlier = self.at_unix_ms.len();
        self.at_unix_ms.push_back(at_unix_ms);
        // Who was last seen before the oldest point makes room.
        let oldest = self.at_unix_ms.front().copied().unwrap_or(0);
        self.subjects.retain(|_, subject| subject.last_seen_unix_ms >= oldest);
        self.left_out = 0;
        for (name, figure, value) in samples {
            if !self.subjects.contains_key(&name) && self.subjects.len() >= MAX_SUBJECTS {
                self.left_out += 1;
                continue;
            }
            let subject = self.subjects.entry(name).or_default();
            subject.last_seen_unix_ms = at_unix_ms;
            let points = subject.figures.entry(figure).or_default();
            points.resize(earlier, f32::NAN);
            // A tenth of a packet a second is exact enough to look at, and shorter to write.
            points.push_back(((value * 1000.0).round() / 1000.0) as f32);
        }
        let len = self.at_unix_ms.len();
        self.each(|points| points.resize(len, f32::NAN));
    }

    fn each(&mut self, mut change: impl FnMut(&mut VecDeque<f32>)) {
        for subject in self.subjects.values_mut() {
            subject.figures.values_mut().for_each(&mut change);
        }
    }

    fn answer(&self, wanted: impl Fn(&str) -> bool) -> HistoryAnswer {
        let values = |points: &VecDeque<f32>| {
            points.iter().map(|&value| value.is_finite().then_some(value)).collect()
        };
        let figures = |subject: &Subject| {
            subject.figures.iter().map(|(&figure, points)| (figure, values(points))).collect()
        };
        let subjects = self.subjects.iter().filter(|(name, _)| wanted(name));
        HistoryAnswer {
            step_s: self.step_s,
            at_unix_ms: self.at_unix_ms.iter().copied().collect(),
            subjects: subjects.map(|(name, subject)| (name.clone(), figures(subject))).collect(),
            left_out: self.left_out,
        }
    }
}

/// What is kept of a status and of what moved before it: subject, figure, value.
fn samples(status: &Status, rates: &Rates) -> Vec<(String, &'static str, f64)> {
    let mut out = Vec::new();
    let mut add = |name: &str, figures: &[(&'static str, f64)]| {
        out.extend(figures.iter().map(|&(figure, value)| (name.to_owned(), figure, value)));
    };
    let sum = |of: fn(&nflib::control::rates::PortRate) -> f64| rates.ports.iter().map(of).sum();
    add(
        "manager",
        &[
            ("rx_pps", sum(|port| port.rx_pps)),
            ("tx_pps", sum(|port| port.tx_pps)),
            ("drop_pps", rates.drops.iter().map(|drop| drop.pps).sum()),
            ("held_pkts", status.accounting.held_pkts as f64),
            ("free_buffers", status.pool.free as f64),
        ],
    );
    for port in &rates.ports {
        let figures = [
            ("rx_pps", port.rx_pps),
            ("tx_pps", port.tx_pps),
            ("rx_bps", port.rx_bps),
            ("tx_bps", port.tx_bps),
            ("drop_pps", port.drop_pps),
        ];
        add(&format!("port:{}", port.name), &figures);
    }
    for nf in &rates.nfs {
        let now = status.nfs.iter().find(|now| now.instance == nf.instance);
        let figures = [
            ("rx_pps", nf.rx_pps),
            ("tx_pps", nf.tx_pps),
            ("drop_pps", nf.drop_pps),
            ("ring_full_pps", nf.ring_full_pps),
            ("held_pkts", nf.held_pkts as f64),
            ("cost_ns", now.map_or(0.0, |now| now.cost_ns)),
        ];
        add(&format!("nf:{}", nf.instance), &figures);
    }
    for service in &status.services {
        let place = format!("service:{}", service.name);
        let here = rates.drops.iter().filter(|drop| drop.place == place);
        let figures = [
            ("drop_pps", here.map(|drop| drop.pps).sum()),
            ("instances", service.instances.len() as f64),
        ];
        add(&place, &figures);
    }
    for chain in &rates.chains {
        add(&format!("chain:{}", chain.name), &[("pps", chain.pps), ("bps", chain.bps)]);
    }
    for worker in &rates.workers {
        let busy = worker.busy_share.unwrap_or(f64::NAN);
        let figures = [("busy_share", busy), ("turns_per_s", worker.turns_per_s)];
        add(&format!("worker:{}", worker.worker), &figures);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use nflib::control::PortStatus;

    fn status(at_s: f64, ports: &[(&str, u64)]) -> Arc<Status> {
        let port = |&(name, rx_pkts): &(&str, u64)| PortStatus {
            name: name.into(),
            rx_pkts,
            ..Default::default()
        };
        Arc::new(Status {
            at_ns: (at_s * 1e9) as u64,
            uptime_s: at_s,
            ports: ports.iter().map(port).collect(),
            ..Default::default()
        })
    }

    fn all(history: &History, tier: Tier) -> HistoryAnswer {
        history.answer(tier, |_| true)
    }

    #[test]
    fn each_second_is_a_point_however_often_the_manager_is_asked() {
        let mut history = History::default();
        for tenth in 0..=50_u64 {
            history.observe(&status(tenth as f64 / 10.0, &[("lan", 100 * tenth)]), 100 * tenth);
        }
        let fine = all(&history, Tier::Fine);
        let rates = &fine.subjects["port:lan"]["rx_pps"];
        assert_eq!(fine.at_unix_ms.len(), rates.len());
        assert!((5..=6).contains(&rates.len()), "{rates:?}");
        assert!(rates.iter().all(|&rate| rate == Some(1000.0)), "{rates:?}");
        assert!(all(&history, Tier::Coarse).at_unix_ms.is_empty());
    }

    #[test]
    fn two_hours_are_kept_in_tens_of_seconds_and_no_more() {
        let mut history = History::default();
        for s in 0..3 * 3600_u64 {
            history.observe(&status(s as f64, &[("lan", s)]), 1000 * s);
        }
        let (fine, coarse) = (all(&history, Tier::Fine), all(&history, Tier::Coarse));
        assert_eq!((fine.at_unix_ms.len(), coarse.at_unix_ms.len()), (600, 720));
        let span_ms = coarse.at_unix_ms[719] - coarse.at_unix_ms[0];
        assert!(span_ms > 3_600_000, "over an hour: {span_ms} ms");
        assert_eq!(coarse.subjects["port:lan"]["rx_pps"].len(), 720);
    }

    #[test]
    fn what_comes_later_or_goes_earlier_is_unknown_for_the_rest_of_the_time() {
        let mut history = History::default();
        for s in 0..4_u64 {
            let ports: &[_] = if s < 2 { &[("old", s)] } else { &[("new", s)] };
            history.observe(&status(s as f64, ports), 1000 * s);
        }
        let fine = all(&history, Tier::Fine);
        assert_eq!(fine.subjects["port:old"]["rx_pps"], [Some(1.0), None, None]);
        assert_eq!(fine.subjects["port:new"]["rx_pps"], [None, None, Some(1.0)]);
    }

    #[test]
    fn who_is_gone_for_longer_than_is_remembered_makes_room() {
        let mut ring = Ring::new(1, 3);
        ring.push(1, vec![("gone".into(), "x", 1.0)]);
        for at in 2..=4 {
            ring.push(at, vec![("here".into(), "x", 1.0)]);
        }
        assert_eq!(ring.subjects.keys().collect::<Vec<_>>(), ["here"]);
    }

    #[test]
    fn more_subjects_than_there_is_room_for_are_counted_not_kept() {
        let mut ring = Ring::new(1, 3);
        ring.push(1, (0..MAX_SUBJECTS + 7).map(|n| (format!("nf:{n}"), "x", 1.0)).collect());
        assert_eq!((ring.subjects.len(), ring.answer(|_| true).left_out), (MAX_SUBJECTS, 7));
    }

    #[test]
    fn a_manager_that_was_away_or_is_another_gives_no_point_across_the_gap() {
        let mut history = History::default();
        history.observe(&status(0.0, &[("lan", 0)]), 0);
        history.interrupt();
        history.observe(&status(60.0, &[("lan", 9)]), 60_000);
        assert!(all(&history, Tier::Fine).at_unix_ms.is_empty());
        let mut other = Status::clone(&status(1.0, &[("lan", 1)]));
        other.pid = 9;
        history.observe(&Arc::new(other), 61_000);
        assert!(all(&history, Tier::Fine).at_unix_ms.is_empty());
    }
}
