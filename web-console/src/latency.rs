//! Latencies over time: of each second, and of each ten seconds, how many packets took how long at each
//! hop. The manager counts since its start; what is kept here are the differences.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use nflib::control::{Histogram, LatencyReport};
use schemars::JsonSchema;
use serde::Serialize;

use crate::history::Tier;

/// Waits, times and ways of which latencies are kept; further ones are left out. With 1,320 points of
/// at most [`ROWS`] rows each, and some ten of them in use, that bounds the memory to about 10 MB.
const MAX_SUBJECTS: usize = 64;
/// How much earlier than a step a report may come and still end it: its beat is not exact.
const EARLY_SHARE: f64 = 0.1;
/// The first row ends at this power of two, nanoseconds.
const FIRST_BIT: u32 = 7;
/// Rows of a picture: two to each power of two, from 128 ns to 1 s.
pub const ROWS: usize = 47;

/// The upper end of a row, nanoseconds: 128, 192, 256, 384 …; the last has what is above, too.
#[must_use]
pub fn row_end_ns(row: usize) -> u64 {
    let octave = 1_u64 << (FIRST_BIT as usize + row / 2);
    if row.is_multiple_of(2) { octave } else { octave + octave / 2 }
}

/// The row of a bucket that ends at `end_ns`.
fn row_of(end_ns: u64) -> u8 {
    let row = (0..ROWS - 1).find(|&row| end_ns <= row_end_ns(row)).unwrap_or(ROWS - 1);
    u8::try_from(row).unwrap_or(u8::MAX)
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Span {
    /// From port to port.
    Total,
    /// In the ring before a hop.
    Wait,
    /// With the NF of a hop.
    Took,
}

/// Of what: sorted as packets meet it, the whole way first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
pub struct Subject {
    /// The chain; null: packets that go from port to port.
    pub chain: Option<String>,
    /// Position in it; null: the whole way.
    pub hop: Option<u8>,
    /// What is measured.
    pub span: Span,
    /// The service at that hop.
    pub service: Option<String>,
}

/// The packets of one step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Point {
    /// How many were sampled.
    pub count: u32,
    /// Half of them took at most so long, nanoseconds.
    pub p50_ns: u64,
    /// 99 % of them did.
    pub p99_ns: u64,
    /// Rows with packets, and how many are in each.
    pub rows: Box<[(u8, u32)]>,
}

/// Points of one subject.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Points {
    #[serde(flatten)]
    subject: Subject,
    /// A point each time; null where no packet was sampled, or nothing is known.
    points: Vec<Option<Point>>,
}

/// Latencies over time.
#[derive(Debug, Serialize, JsonSchema)]
pub struct LatencyHistory {
    /// Time between two points, seconds; more where the console asks the manager less often.
    step_s: u32,
    /// When each point was taken, milliseconds since 1970, the oldest first; each is about the time before
    /// it.
    at_unix_ms: Vec<u64>,
    /// The upper end of each row, nanoseconds; the last has what is above, too.
    row_ends_ns: Vec<u64>,
    /// By chain and hop, in their order.
    subjects: Vec<Points>,
    /// Subjects that are not recorded, because there are too many.
    left_out: usize,
    /// A worker samples one packet in so many microseconds; 0: none, it is switched off; null: the manager has
    /// not told yet.
    interval_us: Option<u64>,
}

/// Both tiers.
#[derive(Debug)]
pub struct Latencies {
    interval_us: Option<u64>,
    fine: Ring,
    coarse: Ring,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { interval_us: None, fine: Ring::new(1, 600), coarse: Ring::new(10, 720) }
    }
}

impl Latencies {
    /// Takes note of a report.
    pub fn observe(&mut self, report: &Arc<LatencyReport>, at_unix_ms: u64) {
        self.interval_us = Some(report.interval_us);
        self.fine.observe(report, at_unix_ms);
        self.coarse.observe(report, at_unix_ms);
    }

    /// The next report is not to be compared with the one before.
    pub fn interrupt(&mut self) {
        self.fine.before = None;
        self.coarse.before = None;
    }

    /// Points later than `after_unix_ms`.
    #[must_use]
    pub fn answer(&self, tier: Tier, after_unix_ms: u64) -> LatencyHistory {
        let answer = match tier {
            Tier::Fine => self.fine.answer(after_unix_ms),
            Tier::Coarse => self.coarse.answer(after_unix_ms),
        };
        LatencyHistory { interval_us: self.interval_us, ..answer }
    }
}

/// The last points of one step.
#[derive(Debug)]
struct Ring {
    step_s: u32,
    capacity: usize,
    before: Option<(Arc<LatencyReport>, u64)>,
    at_unix_ms: VecDeque<u64>,
    subjects: BTreeMap<Subject, VecDeque<Option<Point>>>,
    left_out: usize,
}

impl Ring {
    fn new(step_s: u32, capacity: usize) -> Self {
        let (at_unix_ms, subjects) = (VecDeque::new(), BTreeMap::new());
        Self { step_s, capacity, before: None, at_unix_ms, subjects, left_out: 0 }
    }

    fn observe(&mut self, report: &Arc<LatencyReport>, at_unix_ms: u64) {
        let Some((before, then_unix_ms)) = &self.before else {
            self.before = Some((Arc::clone(report), at_unix_ms));
            return;
        };
        let step_ms = f64::from(self.step_s) * (1.0 - EARLY_SHARE) * 1e3;
        if (at_unix_ms.saturating_sub(*then_unix_ms) as f64) < step_ms {
            return;
        }
        // A manager that has counted less than before is another one.
        let is_later = report.sampled_pkts >= before.sampled_pkts;
        let points = if is_later { differences(before, report) } else { BTreeMap::new() };
        self.before = Some((Arc::clone(report), at_unix_ms));
        self.push(at_unix_ms, points);
    }

    fn push(&mut self, at_unix_ms: u64, mut points: BTreeMap<Subject, Point>) {
        if self.at_unix_ms.len() == self.capacity {
            self.at_unix_ms.pop_front();
            self.subjects.values_mut().for_each(|points| {
                points.pop_front();
            });
        }
        // What no packet has met for as long as is remembered makes room.
        self.subjects.retain(|_, points| points.iter().any(Option::is_some));
        let earlier = self.at_unix_ms.len();
        self.at_unix_ms.push_back(at_unix_ms);
        for (subject, kept) in &mut self.subjects {
            kept.push_back(points.remove(subject));
        }
        self.left_out = 0;
        for (subject, point) in points {
            if self.subjects.len() >= MAX_SUBJECTS {
                self.left_out += 1;
                continue;
            }
            let mut kept: VecDeque<_> = std::iter::repeat_n(None, earlier).collect();
            kept.push_back(Some(point));
            self.subjects.insert(subject, kept);
        }
    }

    fn answer(&self, after_unix_ms: u64) -> LatencyHistory {
        let known = self.at_unix_ms.partition_point(|&at| at <= after_unix_ms);
        let points = |(subject, points): (&Subject, &VecDeque<Option<Point>>)| Points {
            subject: subject.clone(),
            points: points.iter().skip(known).cloned().collect(),
        };
        LatencyHistory {
            step_s: self.step_s,
            at_unix_ms: self.at_unix_ms.iter().skip(known).copied().collect(),
            row_ends_ns: (0..ROWS).map(row_end_ns).collect(),
            subjects: self.subjects.iter().map(points).collect(),
            left_out: self.left_out,
            interval_us: None,
        }
    }
}

/// The histograms of a report, each with what it is of.
fn histograms(report: &LatencyReport) -> BTreeMap<Subject, &Histogram> {
    let mut out = BTreeMap::new();
    for chain in &report.chains {
        let chain_name = chain.chain.clone();
        let subject = Subject { chain: chain_name, hop: None, span: Span::Total, service: None };
        out.insert(subject, &chain.total);
    }
    for hop in &report.hops {
        for (span, histogram) in [(Span::Wait, &hop.wait), (Span::Took, &hop.took)] {
            let (chain, service) = (Some(hop.chain.clone()), Some(hop.service.clone()));
            out.insert(Subject { chain, hop: Some(hop.hop), span, service }, histogram);
        }
    }
    out
}

/// What packets met between two reports.
fn differences(before: &LatencyReport, now: &LatencyReport) -> BTreeMap<Subject, Point> {
    let before = histograms(before);
    let none = Histogram::default();
    let point = |(subject, now): (Subject, &Histogram)| {
        let then = before.get(&subject).copied().unwrap_or(&none);
        Some((subject, difference(then, now)?))
    };
    histograms(now).into_iter().filter_map(point).collect()
}

/// The packets that one histogram has more than the other; `None` without any, or where it has fewer.
fn difference(before: &Histogram, now: &Histogram) -> Option<Point> {
    let then: BTreeMap<u64, u64> = before.buckets.iter().copied().collect();
    let mut more = Vec::with_capacity(now.buckets.len());
    for &(end_ns, count) in &now.buckets {
        let grown = count.checked_sub(then.get(&end_ns).copied().unwrap_or(0))?;
        if grown > 0 {
            more.push((end_ns, grown));
        }
    }
    let total: u64 = more.iter().map(|(_, count)| count).sum();
    if total == 0 {
        return None;
    }
    let quantile = |share: f64| {
        let wanted = (share * total as f64).ceil() as u64;
        let mut seen = 0;
        let found = more.iter().find(|(_, count)| {
            seen += count;
            seen >= wanted
        });
        found.map_or(0, |&(end_ns, _)| end_ns)
    };
    let clamped = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
    let mut rows: BTreeMap<u8, u64> = BTreeMap::new();
    for &(end_ns, count) in &more {
        *rows.entry(row_of(end_ns)).or_default() += count;
    }
    Some(Point {
        count: clamped(total),
        p50_ns: quantile(0.5),
        p99_ns: quantile(0.99),
        rows: rows.into_iter().map(|(row, count)| (row, clamped(count))).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nflib::control::{ChainLatency, HopLatency};
    use proptest::prelude::*;

    fn histogram(buckets: &[(u64, u64)]) -> Histogram {
        let count = buckets.iter().map(|(_, count)| count).sum();
        Histogram { count, buckets: buckets.to_vec(), ..Histogram::default() }
    }

    fn report(sampled_pkts: u64, wait: &[(u64, u64)], total: &[(u64, u64)]) -> Arc<LatencyReport> {
        let hop = HopLatency {
            chain: "web".into(),
            service: "fw".into(),
            wait: histogram(wait),
            ..HopLatency::default()
        };
        let chain = ChainLatency { chain: Some("web".into()), total: histogram(total) };
        Arc::new(LatencyReport {
            sampled_pkts,
            hops: vec![hop],
            chains: vec![chain],
            ..LatencyReport::default()
        })
    }

    #[test]
    fn a_point_is_what_came_since_the_one_before() {
        let mut latencies = Latencies::default();
        latencies.observe(&report(10, &[(1024, 10)], &[(4096, 10)]), 1000);
        latencies
            .observe(&report(110, &[(1024, 60), (2048, 49), (1 << 20, 1)], &[(4096, 10)]), 2000);
        let answer = latencies.answer(Tier::Fine, 0);
        assert_eq!(answer.at_unix_ms, [2000]);
        // Of the whole way nothing came.
        let [wait] = &answer.subjects[..] else { panic!("{answer:?}") };
        assert_eq!((wait.subject.span, wait.subject.hop), (Span::Wait, Some(0)));
        let point = wait.points[0].as_ref().unwrap();
        assert_eq!((point.count, point.p50_ns, point.p99_ns), (100, 1024, 2048));
        let ends: Vec<_> = point.rows.iter().map(|&(row, n)| (row_end_ns(row.into()), n)).collect();
        assert_eq!(ends, [(1024, 50), (2048, 49), (1 << 20, 1)]);
        assert!(latencies.answer(Tier::Fine, 2000).at_unix_ms.is_empty());
    }

    #[test]
    fn another_manager_that_has_counted_less_gives_no_point() {
        let mut latencies = Latencies::default();
        latencies.observe(&report(100, &[(1024, 100)], &[]), 1000);
        latencies.observe(&report(5, &[(1024, 5)], &[]), 2000);
        assert!(latencies.answer(Tier::Fine, 0).subjects.is_empty());
        latencies.observe(&report(9, &[(1024, 9)], &[]), 3000);
        let answer = latencies.answer(Tier::Fine, 0);
        assert_eq!(answer.subjects[0].points.len(), 2);
        assert_eq!(answer.subjects[0].points[1].as_ref().unwrap().count, 4);
    }

    #[test]
    fn no_more_is_kept_than_there_is_room_for() {
        let mut ring = Ring::new(1, 3);
        let subject =
            |hop| Subject { chain: None, hop: Some(hop), span: Span::Took, service: None };
        let point = Point { count: 1, p50_ns: 1, p99_ns: 1, rows: Box::new([(0, 1)]) };
        for at in 1..=5 {
            let points = (0..70).map(|hop| (subject(hop), point.clone())).collect();
            ring.push(at, points);
        }
        let answer = ring.answer(0);
        assert_eq!((answer.subjects.len(), answer.left_out), (MAX_SUBJECTS, 6));
        assert!(answer.subjects.iter().all(|subject| subject.points.len() == 3));
        for at in 6..=9 {
            ring.push(at, BTreeMap::new());
        }
        assert!(ring.answer(0).subjects.is_empty(), "what nobody meets any more is forgotten");
    }

    proptest! {
        #[test]
        fn a_row_ends_at_or_above_its_bucket_and_the_row_before_below(end_ns in 1_u64..1 << 40) {
            let row = usize::from(row_of(end_ns));
            prop_assert!(row == ROWS - 1 || end_ns <= row_end_ns(row));
            prop_assert!(row == 0 || end_ns > row_end_ns(row - 1));
        }

        #[test]
        fn every_packet_is_in_a_row(
            before in prop::collection::btree_map(1_u64..1 << 34, 0_u64..1000, 0..20),
            more in prop::collection::btree_map(1_u64..1 << 34, 0_u64..1000, 0..20),
        ) {
            let mut now = before.clone();
            for (&end, &count) in &more {
                *now.entry(end).or_default() += count;
            }
            let list = |map: &BTreeMap<u64, u64>| map.iter().map(|(&a, &b)| (a, b)).collect::<Vec<_>>();
            let total: u64 = more.values().sum();
            let point = difference(&histogram(&list(&before)), &histogram(&list(&now)));
            prop_assert_eq!(point.is_some(), total > 0);
            if let Some(point) = point {
                let in_rows: u64 = point.rows.iter().map(|(_, count)| u64::from(*count)).sum();
                prop_assert_eq!((u64::from(point.count), in_rows), (total, total));
                prop_assert!(point.p50_ns <= point.p99_ns);
            }
        }
    }
}
