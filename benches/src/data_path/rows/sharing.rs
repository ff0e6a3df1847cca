//! NFs that share a core and are not alike, or not saturated.
#![forbid(unsafe_code)]

use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use super::super::lab::{Lab, Window};
use super::super::peers::context_switch_ns;
use super::super::{Bench, Outcome, Pairs, Trouble};
use super::RowSpec;

pub const ROWS: &[RowSpec] = &[
    RowSpec {
        id: "overload",
        work: "3 NFs sharing a core, one 10 times as costly, 2x overload",
        unit: "Mpps",
        peer: "its own rate at 1x",
        aim: 0.95,
        run: overload,
    },
    RowSpec {
        id: "latency-3",
        work: "p99 through 3 NFs sharing a core, from 1 Mpps on",
        unit: "us",
        peer: "the 3 fused, and 3 context switches",
        aim: 0.0,
        run: latency_against_fused,
    },
    RowSpec {
        id: "latency-3-limit",
        work: "p99 through 3 NFs sharing a core, from 1 Mpps on",
        unit: "us",
        peer: "limit",
        aim: 1.0,
        run: latency_against_limit,
    },
];

/// Work of the two cheap NFs on a packet, and of the costly one.
const BUSY_NS: [&str; 3] = ["50", "500", "50"];

/// At a rate, for a window.
fn offered(bench: &Bench, rate_pps: u64) -> Result<Window, Trouble> {
    let core = bench.second_core()?;
    let config = format!(
        "[[port]]\nname = \"in\"\nbackend = \"generator\"\nrate_pps = {rate_pps}\negress = \"out\"\n\
         [[port]]\nname = \"out\"\nbackend = \"sink\"\n\
         [[chain]]\nname = \"default\"\nservices = [1, 2, 3]\n"
    );
    let mut lab = Lab::start(bench, &config)?;
    for (busy_ns, service) in BUSY_NS.iter().zip(["1", "2", "3"]) {
        lab.nf(core, &["forward", "--service", service, "--busy-ns", busy_ns])?;
    }
    let window = lab.measure()?;
    lab.finish()?;
    Ok(window)
}

/// The highest rate at which at most one packet in a thousand is dropped, to 3 %.
fn highest_rate_pps(bench: &Bench) -> Result<u64, Trouble> {
    let (mut passes, mut fails) = (100_000.0_f64, 4_000_000.0_f64);
    while fails / passes > 1.03 {
        let rate = (passes * fails).sqrt();
        let window = offered(bench, rate as u64)?;
        let dropped: u64 = window.drops.values().sum();
        let arrives = window.tx_mpps() * 1e6 > rate * 0.99;
        if arrives && (dropped as f64) < window.tx_pkts as f64 / 1e3 {
            passes = rate;
        } else {
            fails = rate;
        }
    }
    Ok(passes as u64)
}

fn overload(bench: &Bench) -> Result<Outcome, Trouble> {
    let rate_pps = highest_rate_pps(bench)?;
    let mut drops = std::collections::BTreeMap::new();
    let pairs = bench.in_turn(
        || {
            let window = offered(bench, 2 * rate_pps)?;
            drops = window.drops.clone();
            Ok(window.tx_mpps())
        },
        || Ok(offered(bench, rate_pps)?.tx_mpps()),
    )?;
    let outcome = Outcome::more_is_better(pairs);
    Ok(outcome.with("drops", json!(drops)).with("rate_pps", json!(rate_pps)))
}

/// Of a line that `speed-test --json` prints.
#[derive(Deserialize)]
struct Line {
    mpps: f64,
    latency: Option<Latency>,
}

#[derive(Deserialize)]
struct Latency {
    p99_ns: f64,
}

/// What the packets pass, one core for all of it.
#[derive(Clone, Copy)]
enum Three {
    Processes,
    Fused,
}

/// Rate and 99th percentile of a round that crosses the three on the second core, and the `speed-test`
/// on the first, with so many packets under way.
fn round_trip(bench: &Bench, three: Three, in_flight: u32) -> Result<(f64, f64), Trouble> {
    let core = bench.second_core()?;
    let (services, last) = match three {
        Three::Processes => ("[1, 2, 3, 4]", "4"),
        Three::Fused => ("[1, 2]", "2"),
    };
    let config = format!(
        "[[port]]\nname = \"unused\"\nbackend = \"sink\"\n\
         [[chain]]\nname = \"circle\"\nservices = {services}\n"
    );
    let mut lab = Lab::start(bench, &config)?;
    match three {
        Three::Processes => {
            for service in ["1", "2", "3"] {
                lab.nf(core, &["forward", "--service", service])?;
            }
        }
        Three::Fused => {
            lab.nf(core, &["chain", "forward,forward,forward", "--service", "1"])?;
        }
    }
    let in_flight = in_flight.to_string();
    let mut words = vec!["speed-test", "--service", last, "--to", "1", "--json"];
    words.extend(["--packets-in-flight", &in_flight, "--sample", "64"]);
    lab.nf(bench.cores.manager, &words)?;
    bench.pause(bench.warm_up + bench.window + Duration::from_millis(200))?;
    let printed = lab.finish()?;
    let last =
        printed.last().ok_or_else(|| Trouble::Failed("speed-test printed nothing".into()))?;
    let line: Line = serde_json::from_str(last)
        .map_err(|error| Trouble::Failed(format!("speed-test printed {last:?}: {error}")))?;
    let latency = line.latency.ok_or_else(|| Trouble::Failed("no packet was timed".into()))?;
    Ok((line.mpps, latency.p99_ns))
}

/// The fewest packets under way with which a million a second come round.
fn enough_in_flight(bench: &Bench, three: Three) -> Result<u32, Trouble> {
    let mut in_flight = 1;
    while round_trip(bench, three, in_flight)?.0 < 1.0 {
        in_flight *= 2;
        if in_flight > 512 {
            let what = "they do not reach 1 Mpps here, however many packets are under way";
            return Err(Trouble::NotAvailable(what.into()));
        }
    }
    Ok(in_flight)
}

fn latency_against_fused(bench: &Bench) -> Result<Outcome, Trouble> {
    let core = bench.second_core()?;
    let fused = enough_in_flight(bench, Three::Fused)?;
    let processes = enough_in_flight(bench, Three::Processes)?;
    let (mut rates, mut switches) = (Vec::new(), Vec::new());
    let ours = || {
        let (mpps, p99_ns) = round_trip(bench, Three::Processes, processes)?;
        rates.push(mpps);
        Ok(p99_ns / 1e3)
    };
    let peer = || {
        let switch_ns = context_switch_ns(bench, core)?;
        switches.push(switch_ns);
        Ok((round_trip(bench, Three::Fused, fused)?.1 + 3.0 * switch_ns) / 1e3)
    };
    let pairs: Pairs = bench.in_turn(ours, peer)?;
    let outcome = Outcome::less_is_better(pairs);
    Ok(outcome
        .with("packets_in_flight", json!([processes, fused]))
        .with("mpps_each", json!(rates))
        .with("context_switch_ns_each", json!(switches)))
}

fn latency_against_limit(bench: &Bench) -> Result<Outcome, Trouble> {
    let in_flight = enough_in_flight(bench, Three::Processes)?;
    let mut p99_us = Vec::new();
    let mut rates = Vec::new();
    for _ in 0..bench.reps {
        let (mpps, p99_ns) = round_trip(bench, Three::Processes, in_flight)?;
        p99_us.push(p99_ns / 1e3);
        rates.push(mpps);
    }
    let outcome = Outcome::below(p99_us, 10.0);
    Ok(outcome.with("packets_in_flight", json!(in_flight)).with("mpps_each", json!(rates)))
}
