//! What it costs that the manager checks each hand-over, and that it copies packets besides.
#![forbid(unsafe_code)]

use serde_json::json;

use super::super::lab::Lab;
use super::super::{Bench, Outcome, Trouble};
use super::RowSpec;

pub const ROWS: &[RowSpec] = &[
    RowSpec {
        id: "isolated",
        work: "a checked and copied hand-over, more than a trusted one costs",
        unit: "ns a hop",
        peer: "limit",
        aim: 1.0,
        run: copied,
    },
    RowSpec {
        id: "isolated-shared",
        work: "a checked hand-over without a copy, more than a trusted one costs",
        unit: "ns a hop",
        peer: "limit",
        aim: 1.0,
        run: checked,
    },
];

/// NFs in the chain, and so hops between them, each by the manager where they are isolated.
const NFS: u32 = 4;
/// What services say of their isolation.
const TRUSTED: &str = "";
const CHECKED: &str = "isolated = true\nshared_region = true\n";
const COPIED: &str = "isolated = true\n";

/// Nanoseconds that a packet takes from generator to sink: the inverse of the rate, with a manager and
/// NFs that have a core each.
fn ns_a_packet(bench: &Bench, isolation: &str) -> Result<f64, Trouble> {
    let core = bench.second_core()?;
    let mut config = "[[port]]\nname = \"in\"\nbackend = \"generator\"\negress = \"out\"\n\
                      [[port]]\nname = \"out\"\nbackend = \"sink\"\n"
        .to_owned();
    let names: Vec<_> = (1..=NFS).map(|number| format!("nf{number}")).collect();
    for name in &names {
        config += &format!("[[service]]\nname = \"{name}\"\n{isolation}");
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

/// The price of one kind of isolation, beside trusted NFs in the same run.
fn price(bench: &Bench, isolation: &str, limit_ns: f64) -> Result<Outcome, Trouble> {
    let isolated = || ns_a_packet(bench, isolation);
    let pairs = bench.in_turn(isolated, || ns_a_packet(bench, TRUSTED))?;
    let more = pairs.ours.iter().zip(&pairs.peer).map(|(isolated, trusted)| isolated - trusted);
    let costs = more.map(|ns| ns / f64::from(NFS - 1)).collect();
    let outcome = Outcome::below(costs, limit_ns);
    Ok(outcome
        .with("isolated_ns_a_packet_each", json!(pairs.ours))
        .with("trusted_ns_a_packet_each", json!(pairs.peer))
        .with("core_to_core_ns_each", json!(pairs.core_to_core_ns)))
}

fn checked(bench: &Bench) -> Result<Outcome, Trouble> {
    price(bench, CHECKED, 25.0)
}

/// As much again may go into the copies: two of 60 bytes a hop, out and in.
fn copied(bench: &Bench) -> Result<Outcome, Trouble> {
    price(bench, COPIED, 50.0)
}
