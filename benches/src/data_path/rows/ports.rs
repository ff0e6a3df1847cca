//! From port to port through an NF.
#![forbid(unsafe_code)]

use serde_json::json;

use super::super::lab::Lab;
use super::super::peers::testpmd_mpps;
use super::super::{Bench, Outcome, Trouble};
use super::RowSpec;

const VDEVS: [&str; 2] = ["net_null0", "net_null1"];

pub const ROWS: &[RowSpec] = &[
    RowSpec {
        id: "null-nf",
        work: "null port, 1 NF process, null port, two cores",
        unit: "Mpps",
        peer: "dpdk-testpmd, io, one core, no NF",
        aim: 0.6,
        run: |bench| null_ports(bench, true),
    },
    RowSpec {
        id: "null-wire",
        work: "null port to null port, no NF, one core",
        unit: "Mpps",
        peer: "dpdk-testpmd, io, one core",
        aim: 0.0,
        run: |bench| null_ports(bench, false),
    },
];

/// Both directions at once, as testpmd does it.
fn null_ports(bench: &Bench, with_nf: bool) -> Result<Outcome, Trouble> {
    let core = bench.second_core()?;
    let [left, right] = VDEVS;
    let services = if with_nf { "[1]" } else { "[]" };
    let config = format!(
        "[[port]]\nname = \"left\"\nbackend = \"dpdk\"\ndevice = \"{left}\"\negress = \"right\"\n\
         [[port]]\nname = \"right\"\nbackend = \"dpdk\"\ndevice = \"{right}\"\negress = \"left\"\n\
         [[chain]]\nname = \"default\"\nservices = {services}\n"
    );
    let mut drops = std::collections::BTreeMap::new();
    let ours = || {
        let mut lab = Lab::start(bench, &config).map_err(without_dpdk)?;
        if with_nf {
            lab.nf(core, &["forward", "--service", "1"])?;
        }
        let window = lab.measure()?;
        lab.finish()?;
        drops = window.drops.clone();
        Ok(window.tx_mpps())
    };
    let pairs = bench.in_turn(ours, || testpmd_mpps(bench, VDEVS))?;
    // A source without end fills every ring: what does not fit is dropped at the entrance.
    Ok(Outcome::more_is_better(pairs).with("drops", json!(drops)))
}

fn without_dpdk(trouble: Trouble) -> Trouble {
    match trouble {
        Trouble::Failed(what) if what.contains("without DPDK") || what.contains("libdpdk") => {
            Trouble::NotAvailable(what)
        }
        other => other,
    }
}
