//! `millrace latency`
#![forbid(unsafe_code)]

use std::time::Duration;

use nflib::control::{Histogram, LatencyReport, Reply, Request};

use crate::client::{Client, ClientError, LOOK_LIMIT};
use crate::table::{Table, time_ns};
use crate::{Globals, print};

pub fn run(globals: &Globals) -> anyhow::Result<()> {
    let report = within(&globals.connect()?, LOOK_LIMIT)?;
    print::either(globals.json, &report, || shown(&report))
}

/// What the manager has measured, waiting at most `limit` for its answer.
///
/// # Errors
/// [`ClientError`].
pub fn within(client: &Client, limit: Duration) -> Result<LatencyReport, ClientError> {
    match client.ask(&Request::Latency, limit)? {
        Reply::Latency(report) => Ok(*report),
        _ => Err(client.unexpected("latency")),
    }
}

fn shown(report: &LatencyReport) -> String {
    if report.interval_us == 0 {
        return "no packet is sampled: manager.latency_interval_us is 0\n".to_owned();
    }
    let mut text = format!(
        "{} packets sampled since the manager's start, each worker one in {} µs; {} torn\n",
        report.sampled_pkts, report.interval_us, report.torn_pkts
    );
    if report.chains.is_empty() && report.hops.is_empty() {
        return text;
    }
    text.push('\n');
    text += &hops(report);
    text.push('\n');
    text + &chains(report)
}

fn hops(report: &LatencyReport) -> String {
    let mut table = Table::new(&[
        "CHAIN", "HOP", "SERVICE", "PKTS", "WAIT P50", "P99", "MAX", "TOOK P50", "P99", "MAX",
    ]);
    for hop in &report.hops {
        let times = |of: &Histogram| [of.p50_ns, of.p99_ns, of.max_ns].map(time_ns);
        let mut cells = vec![
            hop.chain.clone(),
            hop.hop.to_string(),
            hop.service.clone(),
            hop.took.count.to_string(),
        ];
        cells.extend(times(&hop.wait));
        cells.extend(times(&hop.took));
        table.row(cells);
    }
    table.text()
}

fn chains(report: &LatencyReport) -> String {
    let mut table = Table::new(&["PORT TO PORT", "PKTS", "P50", "P90", "P99", "P99.9", "MAX"]);
    for chain in &report.chains {
        let total = &chain.total;
        let mut cells = vec![
            chain.chain.clone().unwrap_or_else(|| "without a chain".to_owned()),
            total.count.to_string(),
        ];
        let times = [total.p50_ns, total.p90_ns, total.p99_ns, total.p999_ns, total.max_ns];
        cells.extend(times.map(time_ns));
        table.row(cells);
    }
    table.text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nflib::control::{ChainLatency, HopLatency};

    fn report() -> LatencyReport {
        let times = |p50_ns, max_ns| Histogram {
            count: 7,
            p50_ns,
            p90_ns: p50_ns,
            p99_ns: max_ns,
            p999_ns: max_ns,
            max_ns,
            ..Histogram::default()
        };
        LatencyReport {
            interval_us: 1000,
            sampled_pkts: 9,
            torn_pkts: 1,
            hops: vec![HopLatency {
                chain: "web".into(),
                hop: 0,
                service: "firewall".into(),
                wait: times(900, 12_345),
                took: times(1500, 2_000_000),
            }],
            chains: vec![
                ChainLatency { chain: None, total: times(5, 6) },
                ChainLatency { chain: Some("web".into()), total: times(9_000, 3_000_000_000) },
            ],
        }
    }

    #[test]
    fn hops_and_chains_have_a_line_each() {
        assert_eq!(
            shown(&report()),
            "9 packets sampled since the manager's start, each worker one in 1000 µs; 1 torn\n\n\
             CHAIN  HOP  SERVICE   PKTS  WAIT P50      P99      MAX  TOOK P50      P99      MAX\n\
             web      0  firewall     7    900 ns  12.3 µs  12.3 µs   1.50 µs  2.00 ms  2.00 ms\n\n\
             PORT TO PORT     PKTS      P50      P90     P99   P99.9     MAX\n\
             without a chain     7     5 ns     5 ns    6 ns    6 ns    6 ns\n\
             web                 7  9.00 µs  9.00 µs  3.00 s  3.00 s  3.00 s\n"
        );
    }

    #[test]
    fn that_nothing_is_sampled_is_said() {
        assert!(shown(&LatencyReport::default()).contains("latency_interval_us is 0"));
        let none = LatencyReport { interval_us: 1000, ..LatencyReport::default() };
        assert_eq!(shown(&none).lines().count(), 1);
    }
}
