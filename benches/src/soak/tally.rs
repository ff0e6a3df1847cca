//! What a soak has seen, and whether that is as it should be.
#![forbid(unsafe_code)]

use nflib::control::Status;
use serde_json::{Value, json};

use super::world::BUFFERS;

/// Reasons for which a packet of a chain whose NFs die may be dropped.
const REASONS_OF_DEATH: [&str; 5] =
    ["nf_gone", "no_instance", "nf_ring_full", "hold_full", "hold_timeout"];
/// Private memory by which the manager may grow, KiB: allocators round, and a sample is a moment.
const MAX_GROWTH_KIB: u64 = 4096;

/// Counts and times.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// NFs killed.
    pub kills: u64,
    /// NFs stopped for a while.
    pub stops: u64,
    /// Configurations applied.
    pub applies: u64,
    /// Scalings.
    pub scales: u64,
    /// From the kill to the first packet through the NF in its place, microseconds.
    pub recovery_us: Vec<u64>,
    /// From the end of the process until every buffer was back, microseconds: detection and reclaim.
    pub reclaim_us: Vec<u64>,
    /// From the kill until every buffer was back, microseconds.
    pub kill_to_reclaim_us: Vec<u64>,
    /// From then until the next NF was attached and in the plan, microseconds.
    pub respawn_us: Vec<u64>,
    /// Private memory of the manager: when everything had happened once, and at the end, KiB.
    pub memory_kib: (u64, u64),
    /// Its open files: before, and at the end.
    pub open_files: (u64, u64),
    /// Buffers that are in nobody's account.
    pub buffers_lost: u64,
    /// What went wrong, one line each.
    pub faults: Vec<String>,
}

/// What the ports say of the packets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packets {
    /// Came in for the bystanders.
    pub bystander_pkts: u64,
    /// Of those, not seen at their sink.
    pub bystander_lost: u64,
    /// Came in for the others.
    pub churned_pkts: u64,
    /// Of those, not seen at their sink.
    pub churned_lost: u64,
    /// Dropped by the ledger, all together.
    pub dropped_pkts: u64,
    /// Seen twice, or so late that it cannot be told.
    pub duplicated: u64,
    /// Overtaken by others of their flow.
    pub reordered: u64,
    /// At the bystanders' sink although not theirs; damaged, or nobody's.
    pub misrouted: u64,
    /// Drops that no death explains.
    pub strange_drops: Vec<String>,
}

impl Packets {
    /// Reads the last status, when nothing is inside any more.
    #[must_use]
    pub fn of(status: &Status) -> Self {
        let port = |name: &str| status.ports.iter().find(|port| port.name == name);
        let rx = |name| port(name).map_or(0, |port| port.rx_pkts);
        let found = |name: &str, what: &str| {
            let key = format!("verify_{what}_pkts");
            port(name).and_then(|port| port.hw_stats.get(&key).copied()).unwrap_or(0)
        };
        let both = |what| found("out", what) + found("by_out", what);
        // Every packet that came in was seen, or is missing: too many are another's.
        let good = |name| found(name, "good");
        let too_many = |sink, source| u64::saturating_sub(good(sink), rx(source));
        let strange = status.drops.iter().filter(|drop| {
            let place = drop.place.strip_prefix("service:").unwrap_or("");
            let dies = place.starts_with('c') || place == super::world::SCALED;
            !dies || !REASONS_OF_DEATH.contains(&&*drop.reason)
        });
        Self {
            bystander_pkts: rx("by_in"),
            bystander_lost: rx("by_in").saturating_sub(good("by_out")),
            churned_pkts: rx("in"),
            churned_lost: rx("in").saturating_sub(good("out")),
            dropped_pkts: status.accounting.dropped_pkts,
            duplicated: both("duplicate") + both("stale"),
            reordered: both("reordered"),
            misrouted: both("foreign")
                + both("corrupt")
                + too_many("by_out", "by_in")
                + too_many("out", "in"),
            strange_drops: strange
                .map(|drop| format!("{} {} {}", drop.place, drop.reason, drop.pkts))
                .collect(),
        }
    }
}

impl Tally {
    /// The verdict, and the line that tells it.
    #[must_use]
    pub fn line(&self, packets: &Packets, seconds: f64, seed: u64) -> (bool, String) {
        let mut faults = self.faults.clone();
        let mut zero = |count: u64, what: &str| {
            if count > 0 {
                faults.push(format!("{count} {what}"));
            }
        };
        zero(self.buffers_lost, "buffers are missing");
        zero(packets.bystander_lost, "packets of the bystanders are missing");
        zero(packets.duplicated, "packets came twice");
        zero(packets.misrouted, "packets are not where they belong");
        let explained = packets.churned_lost + packets.bystander_lost;
        zero(explained.abs_diff(packets.dropped_pkts), "packets are not in the ledger of drops");
        for drop in &packets.strange_drops {
            faults.push(format!("dropped for no death: {drop}"));
        }
        let (before, after) = self.memory_kib;
        if after > before + MAX_GROWTH_KIB {
            faults.push(format!("the manager grew from {before} to {after} KiB"));
        }
        if self.open_files.1 > self.open_files.0 {
            let (before, after) = self.open_files;
            faults.push(format!("the manager had {before} open files, and has {after}"));
        }
        if packets.bystander_pkts == 0 || self.kills == 0 {
            faults.push("nothing was shown: no kills, or no traffic".to_owned());
        }
        let mut line = Vec::new();
        let mut put = |key: &str, value: Value| line.push(format!("\"{key}\": {value}"));
        put("ok", json!(faults.is_empty()));
        put("kills", json!(self.kills));
        put("buffers_lost", json!(self.buffers_lost));
        put("buffers", json!(BUFFERS));
        put("duplicated", json!(packets.duplicated));
        put("misrouted", json!(packets.misrouted));
        put("bystander_lost", json!(packets.bystander_lost));
        put("bystander_pkts", json!(packets.bystander_pkts));
        put("churned_pkts", json!(packets.churned_pkts));
        put("churned_lost", json!(packets.churned_lost));
        put("reordered", json!(packets.reordered));
        for (name, values) in [
            ("recovery", &self.recovery_us),
            ("reclaim", &self.reclaim_us),
            ("kill_to_reclaim", &self.kill_to_reclaim_us),
            ("respawn", &self.respawn_us),
        ] {
            put(&format!("{name}_p50_us"), json!(percentile(values, 50.0)));
            put(&format!("{name}_p99_us"), json!(percentile(values, 99.0)));
        }
        put("recovered", json!(self.recovery_us.len()));
        put("stops", json!(self.stops));
        put("applies", json!(self.applies));
        put("scales", json!(self.scales));
        put("manager_kib_before", json!(before));
        put("manager_kib_after", json!(after));
        put("seconds", json!((seconds * 10.0).round() / 10.0));
        put("seed", json!(seed));
        if let Some(first) = faults.first() {
            put("error", json!(first));
        }
        (faults.is_empty(), format!("{{{}}}", line.join(", ")))
    }
}

/// The value that so many of a hundred do not exceed (nearest rank); `None` of nothing.
#[must_use]
pub fn percentile(values: &[u64], percent: f64) -> Option<u64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nflib::control::{Accounting, DropStatus, PortStatus};

    fn status(lost: u64, by_lost: u64) -> Status {
        let port = |name: &str, rx_pkts, good| PortStatus {
            name: name.into(),
            rx_pkts,
            hw_stats: [("verify_good_pkts".to_owned(), good)].into(),
            ..PortStatus::default()
        };
        let drop = DropStatus { place: "service:c0a".into(), reason: "nf_gone".into(), pkts: lost };
        Status {
            ports: vec![
                port("in", 1000, 0),
                port("out", 0, 1000 - lost),
                port("by_in", 500, 0),
                port("by_out", 0, 500 - by_lost),
            ],
            drops: vec![drop],
            accounting: Accounting { dropped_pkts: lost, ..Accounting::default() },
            ..Status::default()
        }
    }

    fn verdict(change: impl FnOnce(&mut Tally, &mut Status)) -> (bool, Value) {
        let mut tally = Tally { kills: 5, recovery_us: vec![7], ..Tally::default() };
        let mut status = status(30, 0);
        change(&mut tally, &mut status);
        let (ok, line) = tally.line(&Packets::of(&status), 1.0, 3);
        assert!(
            line.starts_with(if ok { "{\"ok\": true, " } else { "{\"ok\": false, " }),
            "{line}"
        );
        (ok, serde_json::from_str(&line).unwrap())
    }

    #[test]
    fn what_deaths_explain_is_well() {
        let (ok, line) = verdict(|_, _| ());
        assert!(ok, "{line}");
        assert_eq!((&line["kills"], &line["churned_lost"]), (&json!(5), &json!(30)));
        assert_eq!((&line["recovery_p99_us"], &line["reclaim_p99_us"]), (&json!(7), &json!(null)));
    }

    #[test]
    fn each_thing_that_may_not_be_is_said() {
        let by_one = |status: &mut Status, port: usize, what: &str| {
            status.ports[port].hw_stats.insert(format!("verify_{what}_pkts"), 1);
        };
        type Change<'a> = &'a dyn Fn(&mut Tally, &mut Status);
        let changes: [(&str, Change<'_>); 8] = [
            ("buffers", &|tally, _| tally.buffers_lost = 1),
            ("bystanders", &|_, status| *status = super::tests::status(30, 1)),
            ("twice", &|_, status| by_one(status, 1, "duplicate")),
            ("belong", &|_, status| by_one(status, 3, "corrupt")),
            ("ledger", &|_, status| status.accounting.dropped_pkts = 29),
            ("no death", &|_, status| status.drops[0].place = "service:by1".into()),
            ("no death", &|_, status| status.drops[0].reason = "no_rule".into()),
            ("grew", &|tally, _| tally.memory_kib = (1000, 9000)),
        ];
        for (word, change) in changes {
            let (ok, line) = verdict(change);
            assert!(!ok && line["error"].as_str().unwrap().contains(word), "{word}: {line}");
        }
        assert!(!verdict(|tally, _| tally.kills = 0).0);
        assert!(!verdict(|tally, _| tally.open_files = (50, 51)).0);
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<u64> = (1..=200).rev().collect();
        assert_eq!((percentile(&values, 50.0), percentile(&values, 99.0)), (Some(100), Some(198)));
        assert_eq!((percentile(&[3], 99.0), percentile(&[], 50.0)), (Some(3), None));
    }
}
