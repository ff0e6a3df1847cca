//! What it costs that the manager checks each hand-over.
#![forbid(unsafe_code)]

use serde_json::json;

use super::super::lab::Lab;
use super::super::{Bench, Outcome, Trouble};
use super::RowSpec;

pub const ROWS: &[RowSpec] = &[RowSpec {
    id: "isolated",
    work: "a checked hand-over, more than a trusted one costs",
    unit: "ns a hop",
    peer: "limit",
    aim: 1.0,
    run: isolated,
}];

/// NFs in the chain, and so hops between them, each by the manager where they are isolated.
const NFS: u32 = 4;

/// Nanoseconds that a packet takes from generator to sink: the inverse of the rate, with a manager and
/// NFs that have a core each.
fn ns_a_packet(bench: &Bench, isolated: bool) -> Result<f64, Trouble> {
    let core = bench.second_core()?;
    let mut config = "[[port]]\nname = \"in\"\nbackend = \"generator\"\negress = \"out\"\n\
                      [[port]]\nname = \"out\"\nbackend = \"sink\"\n"
        .to_owned();
    let names: Vec<_> = (1..=NFS).map(|number| format!("nf{number}")).collect();
    for name in &names {
        config += &format!("[[service]]\nname = \"{name}\"\nisolated = {isolated}\n");
    }
    config += &format!("[[chain]]\nname = \"default\"\nservices = {names:?}\n");
    let mut lab = Lab::start(bench, &config)?;
    for name in &names {
        lab.nf(core, &["forward", "--service", name])?;
    }
    let window = lab.measure()?;
    lab.finish()?;
    Ok(1e3 / window.tx_mpps())
}

fn isolated(bench: &Bench) -> Result<Outcome, Trouble> {
    let pairs = bench.in_turn(|| ns_a_packet(bench, true), || ns_a_packet(bench, false))?;
    let more = pairs.ours.iter().zip(&pairs.peer).map(|(isolated, trusted)| isolated - trusted);
    let costs = more.map(|ns| ns / f64::from(NFS - 1)).collect();
    let outcome = Outcome::below(costs, 25.0);
    Ok(outcome
        .with("isolated_ns_a_packet_each", json!(pairs.ours))
        .with("trusted_ns_a_packet_each", json!(pairs.peer))
        .with("core_to_core_ns_each", json!(pairs.core_to_core_ns)))
}
