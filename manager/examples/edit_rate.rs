//! How long a change to the wanted state takes, with many rules present.
//! Run: `cargo run --release --example edit_rate -- [RULES] [EDITS]`
//!
//! Prints one JSON object a line, as all that measures does. The edits add a rule each and are made
//! one by one, every state but the last given up again, as commands do it.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout)] // This is the program's output.

use std::time::Instant;

use millrace::model::{Model, ModelSpecs};
use nflib::control::spec::Value;
use nflib::control::{ChainSpec, Edit, MatchSpec, RuleSpec, ThenSpec};

/// Rule number `n`: an address and a transport port, 1,000 rules a priority.
fn rule(n: u32, first: u8) -> RuleSpec {
    let text = |text: String| Some(Value::Text(text));
    let [_, b, c, d] = n.to_be_bytes();
    let matches = MatchSpec {
        ip_dst: text(format!("{first}.{b}.{c}.{d}")),
        ip_proto: text("tcp".into()),
        tp_dst: Some(Value::Int(80)),
        ..MatchSpec::default()
    };
    let then = ThenSpec { chain: Some("web".into()), ..ThenSpec::default() };
    let priority = u16::try_from(n / 1000 % 60_000).unwrap_or_default();
    RuleSpec { priority, matches, then, ..RuleSpec::default() }
}

fn row(work: &str, value: f64, unit: &str) {
    println!(r#"{{"work": "{work}", "ours": {value:.1}, "unit": "{unit}"}}"#);
}

/// Resident memory, MiB.
fn resident_mib() -> f64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: f64 = text.split(' ').nth(1).and_then(|n| n.parse().ok()).unwrap_or(0.0);
    pages * 4096.0 / f64::from(1 << 20)
}

fn main() -> anyhow::Result<()> {
    let mut counts = std::env::args().skip(1).map(|text| text.parse::<u32>());
    let rules = counts.next().transpose()?.unwrap_or(100_000);
    let edits = counts.next().transpose()?.unwrap_or(20_000);
    let specs = ModelSpecs {
        chains: ["default", "web"]
            .map(|name| ChainSpec {
                name: name.into(),
                end: "egress".into(),
                ..ChainSpec::default()
            })
            .into(),
        rules: (0..rules).map(|n| rule(n, 10)).collect(),
        ..ModelSpecs::default()
    };
    let at = Instant::now();
    let mut model = Model::build(&specs, &[], None)?.0;
    row(&format!("build a state of {rules} rules"), at.elapsed().as_secs_f64() * 1e3, "ms");
    drop(specs);
    row("memory of the process", resident_mib(), "MiB");

    let at = Instant::now();
    for n in 0..edits {
        model = model.edit(&[Edit::AddRule { rule: Box::new(rule(n, 11)) }])?.model;
    }
    row("edits that add a rule", f64::from(edits) / at.elapsed().as_secs_f64(), "edits/s");

    let before = model.clone();
    let at = Instant::now();
    for id in 1..=u64::from(edits.min(rules)) {
        let next = model.edit(&[Edit::RemoveRule { id }])?.model;
        assert_eq!(Model::rule_delta(&model, &next).removed.len(), 1);
        model = next;
    }
    let removed = f64::from(edits.min(rules));
    row("edits that remove a rule, told apart", removed / at.elapsed().as_secs_f64(), "edits/s");

    let batch: Vec<_> = (0..edits).map(|n| Edit::AddRule { rule: Box::new(rule(n, 12)) }).collect();
    let at = Instant::now();
    let next = model.edit(&batch)?.model;
    row("rules added in one edit", f64::from(edits) / at.elapsed().as_secs_f64(), "rules/s");
    drop((before, next));
    Ok(())
}
