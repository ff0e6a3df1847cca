//! What a status looks like as metrics.

use super::*;
use nflib::control::{
    ChainLatency, DropStatus, Histogram, HopLatency, LatencyReport, NfStatus, PortStatus,
    ServiceStatus,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A status in which every family has a line, with names that want escaping.
pub fn full() -> Status {
    let text = include_str!("full.json");
    let mut status: Status = serde_json::from_str(text).unwrap();
    status.nfs[0].name = "a\"b\\c\nd{}".into();
    status
}

/// What is seen of packets, with a line in every family.
fn seen() -> Seen {
    let chain = ChainLatency { chain: Some("a".into()), total: Histogram::default() };
    let straight = ChainLatency::default();
    let report = LatencyReport {
        hops: vec![HopLatency { chain: "a".into(), service: "fw".into(), ..Default::default() }],
        chains: vec![chain, straight],
        ..Default::default()
    };
    Seen { latency: Some(Arc::new(report)), ..Seen::default() }
}

fn accept(value: &str) -> Format {
    Format::of(&HeaderMap::from_iter([(ACCEPT, value.parse().unwrap())]))
}

#[test]
fn openmetrics_is_for_those_who_ask_for_it() {
    assert_eq!(
        accept("application/openmetrics-text;version=1.0.0,text/plain;q=0.5"),
        Format::OpenMetrics
    );
    assert_eq!(
        accept("text/plain, application/openmetrics-text; version=0.0.1"),
        Format::OpenMetrics
    );
    for other in ["*/*", "text/plain", "application/json", "application/openmetrics-text;q=0", ""] {
        assert_eq!(accept(other), Format::Text, "{other}");
    }
    assert_eq!(Format::of(&HeaderMap::new()), Format::Text);
}

/// Families with their kinds, and samples with their families, as the format's grammar has them.
fn parsed(text: &str) -> (BTreeMap<String, String>, Vec<(String, String)>) {
    let (mut families, mut samples) = (BTreeMap::new(), Vec::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            let twice = families.insert(name.to_owned(), kind.to_owned());
            assert_eq!(twice, None, "{name} twice");
        } else if !line.starts_with('#') {
            let (head, value) = line.rsplit_once(' ').unwrap();
            value.parse::<f64>().unwrap_or_else(|_| panic!("{line}"));
            let name = head.split('{').next().unwrap();
            samples.push((name.to_owned(), head.to_owned()));
        }
    }
    (families, samples)
}

#[test]
fn every_sample_belongs_to_the_family_above_it_and_stands_once() {
    let text = text(Some(&full()), &seen(), Format::OpenMetrics);
    assert!(text.ends_with("# EOF\n"));
    let (families, samples) = parsed(&text);
    let mut seen = BTreeSet::new();
    for (name, head) in &samples {
        let family = match families.get(name) {
            Some(kind) => (name.as_str(), kind.as_str()),
            None => {
                let (base, suffix) = name.rsplit_once('_').unwrap();
                let kind = families.get(base).map_or("", String::as_str);
                let suffixes: &[_] = match kind {
                    "counter" => &["total"],
                    "info" => &["info"],
                    "histogram" => &["bucket", "count", "sum"],
                    _ => &[],
                };
                assert!(suffixes.contains(&suffix), "{name} has no family");
                (base, kind)
            }
        };
        assert_eq!(family.1 == "counter", name.ends_with("_total"), "{name}");
        assert!(seen.insert(head), "{head} twice");
    }
    let with_samples: BTreeSet<_> = samples
        .iter()
        .map(|(name, _)| {
            let mut ends = ["_total", "_info", "_bucket"].into_iter();
            ends.find_map(|end| name.strip_suffix(end)).unwrap_or(name)
        })
        .collect();
    for family in families.keys() {
        assert!(with_samples.contains(family.as_str()), "{family} has no line in a full status");
    }
}

#[test]
fn names_that_others_chose_are_escaped() {
    let text = text(Some(&full()), &seen(), Format::OpenMetrics);
    assert!(text.contains(r#"name="a\"b\\c\nd{}""#), "{text}");
}

#[test]
fn a_manager_that_is_away_is_one_gauge_that_says_so() {
    let text = text(None, &Seen::default(), Format::Text);
    assert!(text.contains("\nmillrace_up 0\n"), "{text}");
    assert!(!text.contains("millrace_port"));
}

#[test]
fn figures_are_in_base_units() {
    let nf =
        NfStatus { instance: 3, service_name: "fw".into(), cost_ns: 250.0, ..Default::default() };
    let port =
        PortStatus { name: "lan".into(), rx_pkts: 7, link: "down".into(), ..Default::default() };
    let drop = DropStatus { place: "nf:3".into(), reason: "nf_drop".into(), pkts: 5 };
    let service = ServiceStatus { name: "fw".into(), instances: vec![3], ..Default::default() };
    let status = Status {
        nfs: vec![nf],
        ports: vec![port],
        drops: vec![drop],
        services: vec![service],
        ..Default::default()
    };
    let text = text(Some(&status), &Seen::default(), Format::Text);
    for line in [
        "millrace_up 1",
        "millrace_nf_packet_cost_seconds{nf=\"3\",service=\"fw\"} 0.00000025",
        "millrace_port_receive_packets_total{port=\"lan\"} 7",
        "millrace_port_up{port=\"lan\"} 0",
        "millrace_dropped_packets_total{place=\"nf:3\",reason=\"nf_drop\"} 5",
        "millrace_service_instances{service=\"fw\"} 1",
    ] {
        assert!(text.lines().any(|have| have == line), "{line} in {text}");
    }
}
