//! Chains of NFs that share a core, as processes and fused.
//!
//! All circulate packets: the last NF is a `speed-test`, which sends each back to the first, so that
//! nothing but the NFs and their hops is measured.
#![forbid(unsafe_code)]

use super::super::lab::{Lab, Window};
use super::super::{Bench, Outcome, Trouble, relay};
use super::RowSpec;
use super::loops::direct;

const UNIT: &str = "ns CPU a hop";
const OWN: &str = "a chain of 2";
/// Within 15 %.
const LIKE_TWO: f64 = 1.0 / 1.15;

pub const ROWS: &[RowSpec] = &[
    RowSpec {
        id: "chain-4",
        work: "4 NF processes sharing a core, a hop",
        unit: UNIT,
        peer: OWN,
        aim: LIKE_TWO,
        run: |bench| long_chain(bench, 4),
    },
    RowSpec {
        id: "chain-8",
        work: "8 NF processes sharing a core, a hop",
        unit: UNIT,
        peer: OWN,
        aim: LIKE_TWO,
        run: |bench| long_chain(bench, 8),
    },
    RowSpec {
        id: "chain-16",
        work: "16 NF processes sharing a core, a hop",
        unit: UNIT,
        peer: OWN,
        aim: LIKE_TWO,
        run: |bench| long_chain(bench, 16),
    },
    RowSpec {
        id: "relay-4",
        work: "4 processes sharing a core that only copy descriptors, a hop",
        unit: "ns a hop",
        peer: "2 such",
        aim: 0.0,
        run: |bench| long_relay(bench, 4),
    },
    RowSpec {
        id: "relay-8",
        work: "8 processes sharing a core that only copy descriptors, a hop",
        unit: "ns a hop",
        peer: "2 such",
        aim: 0.0,
        run: |bench| long_relay(bench, 8),
    },
    RowSpec {
        id: "relay-16",
        work: "16 processes sharing a core that only copy descriptors, a hop",
        unit: "ns a hop",
        peer: "2 such",
        aim: 0.0,
        run: |bench| long_relay(bench, 16),
    },
    RowSpec {
        id: "fused-4",
        work: "4 forwards fused into one process",
        unit: "M rounds/s CPU",
        peer: "the same 4 as processes on one core",
        aim: 1.5,
        run: fused_4,
    },
    RowSpec {
        id: "shared-3",
        work: "3 NF processes sharing a core, no touch",
        unit: "M rounds/s CPU",
        peer: "the same 3 fused",
        aim: 0.45,
        run: shared_3,
    },
    RowSpec {
        id: "shared-3-onvm",
        work: "3 NF processes sharing a core, no touch",
        unit: "M rounds/s CPU",
        peer: "2 OpenNetVM NFs sharing a core: 8.7, measured elsewhere on such a VM",
        aim: 10.0,
        run: shared_3_onvm,
    },
];

/// Not measured in this run: OpenNetVM itself needs more than this machine has to give.
const ONVM_SHARED_MPPS: f64 = 8.7;

/// Slots of the rings here. A turn at the core ends when a ring is empty, so what a switch between
/// processes costs is shared by as many packets as circulate, and those must fit.
pub const RING_CAPACITY: u32 = 8192;
/// Half of a ring, the most that the manager lends: each turn at the core has work for that many.
const IN_FLIGHT: &str = "4096";

/// The circle: so many processes before the `speed-test`, each given by its words without
/// `--service`, all on one core.
pub fn circle(bench: &Bench, stages: &[&[&str]], options: &[&str]) -> Result<Window, Trouble> {
    let lab = circle_lab(bench, stages, options)?;
    let window = lab.measure()?;
    lab.finish()?;
    Ok(window)
}

/// As [`circle`], running.
pub fn circle_lab<'a>(
    bench: &'a Bench,
    stages: &[&[&str]],
    options: &[&str],
) -> Result<Lab<'a>, Trouble> {
    let core = bench.second_core().unwrap_or(bench.cores.manager);
    let last = stages.len() + 1;
    let services: Vec<_> = (1..=last).collect();
    let config = format!(
        "[[port]]\nname = \"unused\"\nbackend = \"sink\"\n\
         [[chain]]\nname = \"circle\"\nservices = {services:?}\n"
    );
    let mut lab = Lab::with_rings(bench, RING_CAPACITY, &config)?;
    for (words, service) in stages.iter().zip(1..) {
        let service: &str = &i32::to_string(&service);
        lab.nf(core, &[words, &["--service", service][..]].concat())?;
    }
    let last = last.to_string();
    let words = ["speed-test", "--service", &last, "--to", "1"];
    lab.nf(core, &[&words[..], options].concat())?;
    Ok(lab)
}

fn forwards(bench: &Bench, processes: usize) -> Result<Window, Trouble> {
    let stages = vec![&["forward"][..]; processes - 1];
    circle(bench, &stages, &["--packets-in-flight", IN_FLIGHT])
}

fn long_chain(bench: &Bench, processes: usize) -> Result<Outcome, Trouble> {
    let mut by_manager = 0.0_f64;
    let mut ns_a_hop = |processes: usize| -> Result<f64, Trouble> {
        let window = forwards(bench, processes)?;
        by_manager = by_manager.max(window.by_manager_share());
        Ok(1e3 / window.rounds_mpps_cpu() / processes as f64)
    };
    let (mut ours, mut peer) = (Vec::new(), Vec::new());
    let mut core_to_core_ns = Vec::new();
    for _ in 0..bench.reps {
        core_to_core_ns.extend(crate::environment::core_to_core_ns());
        ours.push(ns_a_hop(processes)?);
        peer.push(ns_a_hop(2)?);
    }
    let pairs = super::super::Pairs { ours, peer, core_to_core_ns };
    Ok(direct(Outcome::less_is_better(pairs), by_manager))
}

/// What [`long_chain`] has no part in: switches, and what they do to caches.
fn long_relay(bench: &Bench, processes: u16) -> Result<Outcome, Trouble> {
    let core = bench.second_core().unwrap_or(bench.cores.manager);
    let pairs = bench
        .in_turn(|| relay::ns_a_hop(bench, core, processes), || relay::ns_a_hop(bench, core, 2))?;
    Ok(Outcome::less_is_better(pairs))
}

fn fused_4(bench: &Bench) -> Result<Outcome, Trouble> {
    let fused = || {
        let stage: &[&str] = &["chain", "forward,forward,forward,forward"];
        let window = circle(bench, &[stage], &["--packets-in-flight", IN_FLIGHT])?;
        Ok(window.rounds_mpps_cpu())
    };
    let pairs = bench.in_turn(fused, || Ok(forwards(bench, 5)?.rounds_mpps_cpu()))?;
    Ok(Outcome::more_is_better(pairs))
}

/// Two forwards and a `speed-test` in one process, which sends to itself.
fn fused_3(bench: &Bench, options: &[&str]) -> Result<Window, Trouble> {
    let core = bench.second_core().unwrap_or(bench.cores.manager);
    let config = "[[port]]\nname = \"unused\"\nbackend = \"sink\"\n\
                  [[chain]]\nname = \"circle\"\nservices = [1]\n";
    let mut lab = Lab::with_rings(bench, RING_CAPACITY, config)?;
    let stages = format!("forward,forward,speed-test --to 1 {}", options.join(" "));
    lab.nf(core, &["chain", &stages, "--service", "1"])?;
    let window = lab.measure()?;
    lab.finish()?;
    Ok(window)
}

fn shared_3(bench: &Bench) -> Result<Outcome, Trouble> {
    let pairs = bench.in_turn(
        || Ok(forwards(bench, 3)?.rounds_mpps_cpu()),
        || Ok(fused_3(bench, &["--packets-in-flight", IN_FLIGHT])?.rounds_mpps_cpu()),
    )?;
    Ok(Outcome::more_is_better(pairs))
}

fn shared_3_onvm(bench: &Bench) -> Result<Outcome, Trouble> {
    let pairs =
        bench.in_turn(|| Ok(forwards(bench, 3)?.rounds_mpps_cpu()), || Ok(ONVM_SHARED_MPPS))?;
    Ok(Outcome::more_is_better(pairs))
}
