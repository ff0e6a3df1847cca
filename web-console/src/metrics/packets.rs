//! Which figures of what is seen of packets are metrics, under which names.
#![forbid(unsafe_code)]

use nflib::control::{Histogram, HopLatency, LatencyReport};

use super::text::Writer;
use crate::seen::Seen;

/// Upper ends of buckets are these powers of two, nanoseconds: 256 ns to 134 ms. The manager's buckets, four
/// to each power of two, end at them, so none is divided.
const BITS: std::ops::RangeInclusive<u32> = 8..=27;

/// Writes every family.
pub fn write(seen: &Seen, out: &mut Writer) {
    if let Some(report) = &seen.latency {
        latency(report, out);
    }
    let sums = &seen.sums;
    out.gauge("millrace_captures", "Captures under way.").count(&[], seen.captures.len() as u64);
    out.gauge("millrace_traces", "Traces that are kept or under way.")
        .count(&[], seen.traces.len() as u64);
    let counters: [(&str, &str, u64); 4] = [
        ("millrace_capture_packets", "Packets captured.", sums.captured_pkts),
        (
            "millrace_capture_lost_packets",
            "Packets that were to be captured and were not.",
            sums.capture_lost_pkts,
        ),
        ("millrace_trace_packets", "Packets marked to be followed.", sums.traced_pkts),
        (
            "millrace_trace_torn_packets",
            "Packets followed in part only, because something of them was lost.",
            sums.trace_torn_pkts,
        ),
    ];
    for (name, help, value) in counters {
        out.counter(name, help).count(&[], value);
    }
    out.gauge("millrace_crash_bundles", "What is left of NFs that crashed, as many as are kept.")
        .count(&[], seen.crashes.len() as u64);
}

fn latency(report: &LatencyReport, out: &mut Writer) {
    out.gauge("millrace_latency_interval_seconds", "A worker samples a packet so often; 0: never.")
        .value(&[], report.interval_us as f64 / 1e6);
    out.counter("millrace_latency_sampled_packets", "Sampled packets whose way is complete.")
        .count(&[], report.sampled_pkts);
    out.counter("millrace_latency_torn_packets", "Sampled packets whose way is not.")
        .count(&[], report.torn_pkts);
    type Of = fn(&HopLatency) -> &Histogram;
    let families: [(&str, &str, Of); 2] = [
        ("millrace_hop_wait_seconds", "In the ring before a hop's NF.", |hop| &hop.wait),
        ("millrace_hop_processing_seconds", "With a hop's NF.", |hop| &hop.took),
    ];
    for (name, help, of) in families {
        let mut family = out.histogram(name, help);
        for hop in &report.hops {
            let number = hop.hop.to_string();
            let labels = [("chain", &*hop.chain), ("hop", &*number), ("service", &*hop.service)];
            let histogram = of(hop);
            family.buckets(&labels, &merged(histogram), histogram.count, sum_s(histogram));
        }
    }
    let help =
        "From port to port, of packets that were sent; no chain: straight from port to port.";
    let mut family = out.histogram("millrace_chain_latency_seconds", help);
    for chain in &report.chains {
        let labels = [("chain", chain.chain.as_deref().unwrap_or(""))];
        family.buckets(&labels, &merged(&chain.total), chain.total.count, sum_s(&chain.total));
    }
}

fn sum_s(histogram: &Histogram) -> f64 {
    histogram.sum_ns as f64 / 1e9
}

/// Seconds, and how many values lie at or below.
fn merged(histogram: &Histogram) -> Vec<(f64, u64)> {
    let mut buckets = histogram.buckets.iter().peekable();
    let mut below = 0;
    let merge = |bit: u32| {
        let end_ns = 1_u64 << bit;
        while let Some((_, count)) = buckets.next_if(|(end, _)| *end <= end_ns) {
            below += count;
        }
        (end_ns as f64 / 1e9, below)
    };
    BITS.map(merge).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_merged_at_powers_of_two_and_none_is_lost() {
        let buckets = vec![(96, 1), (256, 2), (320, 4), (512, 8), (1 << 27, 16), (1 << 30, 32)];
        let histogram = Histogram { count: 63, buckets, ..Histogram::default() };
        let merged = merged(&histogram);
        assert_eq!(merged.len(), 20);
        assert_eq!(merged[..2], [(256e-9, 3), (512e-9, 15)]);
        assert_eq!(merged[19], (0.134_217_728, 31));
    }
}
