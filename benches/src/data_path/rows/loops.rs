//! Packets that circulate: through one NF, and between two.
#![forbid(unsafe_code)]

use serde_json::json;

use super::super::lab::Lab;
use super::super::peers::OnvmHop;
use super::super::{Bench, Outcome, Pairs, Trouble};
use super::RowSpec;

const UNIT: &str = "M hops/s CPU";

pub const ROWS: &[RowSpec] = &[
    RowSpec {
        id: "self-loop",
        work: "an NF to itself, one core, no touch",
        unit: UNIT,
        peer: "OpenNetVM hop, walk of 128 NFs",
        aim: 4.0,
        run: |bench| self_loop(bench, "none", 64, true),
    },
    RowSpec {
        id: "self-loop-cut",
        work: "an NF to itself, one core, no touch",
        unit: UNIT,
        peer: "OpenNetVM hop, walk cut",
        aim: 2.0,
        run: |bench| self_loop(bench, "none", 64, false),
    },
    RowSpec {
        id: "self-loop-header",
        work: "an NF to itself, one core, header touched",
        unit: UNIT,
        peer: "OpenNetVM hop, walk cut",
        aim: 0.0,
        run: |bench| self_loop(bench, "header", 64, false),
    },
    RowSpec {
        id: "self-loop-payload",
        work: "an NF to itself, one core, 1,024 bytes touched",
        unit: UNIT,
        peer: "OpenNetVM hop, walk cut",
        aim: 0.0,
        run: |bench| self_loop(bench, "payload", 1024, false),
    },
    RowSpec {
        id: "two-cores",
        work: "two NFs, two cores, header touched",
        unit: "M rounds/s",
        peer: "OpenNetVM hops, walk cut",
        aim: 2.0,
        run: two_cores,
    },
];

/// As many packets as OpenNetVM's speed tester makes by default, in both.
const ALONE_PKTS: u32 = 128;
/// Enough to keep two cores busy however far they are apart, in both.
const APART_PKTS: u32 = 1024;

const CONFIG: &str = r#"
[[port]]
name = "unused"
backend = "sink"
[[chain]]
name = "loop"
services = [1, 2]
"#;

fn self_loop(bench: &Bench, touch: &str, bytes: u32, walk_all: bool) -> Result<Outcome, Trouble> {
    let core = bench.second_core().unwrap_or(bench.cores.manager);
    let mut by_manager = 0.0_f64;
    let ours = || {
        let mut lab = Lab::start(bench, &CONFIG.replace("[1, 2]", "[1]"))?;
        let (pkts, bytes) = (ALONE_PKTS.to_string(), bytes.to_string());
        let mut words = vec!["speed-test", "--service", "1", "--touch", touch];
        words.extend(["--packets-in-flight", &pkts, "--packet-bytes", &bytes]);
        lab.nf(core, &words)?;
        let window = lab.measure()?;
        lab.finish()?;
        by_manager = by_manager.max(window.by_manager_share());
        Ok(window.rounds_mpps_cpu())
    };
    let hop =
        OnvmHop { cores: &[core], walk_all, touch, packet_bytes: bytes, in_flight: ALONE_PKTS };
    let pairs = bench.in_turn(ours, || Ok(hop.run(bench)?.mpps_cpu))?;
    Ok(direct(Outcome::more_is_better(pairs), by_manager))
}

fn two_cores(bench: &Bench) -> Result<Outcome, Trouble> {
    let cores = [bench.second_core()?, bench.cores.manager];
    let mut by_manager = 0.0_f64;
    let ours = || {
        let mut lab = Lab::start(bench, CONFIG)?;
        lab.nf(cores[1], &["forward", "--service", "1", "--swap-macs"])?;
        let pkts = APART_PKTS.to_string();
        let mut words = vec!["speed-test", "--service", "2", "--to", "1", "--touch", "header"];
        words.extend(["--packets-in-flight", &pkts]);
        lab.nf(cores[0], &words)?;
        let window = lab.measure()?;
        lab.finish()?;
        by_manager = by_manager.max(window.by_manager_share());
        Ok(window.rounds_mpps())
    };
    let hops = OnvmHop {
        cores: &cores,
        walk_all: false,
        touch: "header",
        packet_bytes: 64,
        in_flight: APART_PKTS,
    };
    let pairs: Pairs = bench.in_turn(ours, || Ok(hops.run(bench)?.mpps))?;
    Ok(direct(Outcome::more_is_better(pairs), by_manager))
}

/// Says so where packets went by the manager, which they should not.
pub fn direct(outcome: Outcome, by_manager: f64) -> Outcome {
    if by_manager < 0.01 {
        return outcome;
    }
    outcome.with("by_manager_share", json!((by_manager * 1000.0).round() / 1000.0))
}
