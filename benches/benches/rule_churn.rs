//! Forwarding while rules are inserted: the manager's own way, from the edit to the moment when the
//! rule is in force for every packet.
//!
//! ```text
//! cargo bench -p millrace-benches --bench rule_churn [-- --json] [--reps N]
//! ```
//! One worker moves packets of 1,000 flows from a generator to a sink, sent by a rule. In every other
//! window the control thread inserts rules for single flows, as a reactive controller does: one by one,
//! each when the one before is in force, or 64 in a request. The sink's counter over the window is the
//! rate. Worker and control thread have a core each where there are two.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use millrace::conductor::Conductor;
use millrace::config::Config;
use millrace::fabric::Fabric;
use millrace_benches::environment;
use millrace_benches::report::{Report, Row, median};
use nflib::control::spec::Value;
use nflib::control::{Edit, MatchSpec, RuleSpec, ThenSpec};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// One measurement.
const WINDOW: Duration = Duration::from_millis(100);
/// Pairs of windows.
const PAIRS: usize = 40;
const CONFIG: &str = r#"
[manager]
cores = [0]
poll = "busy"
[pool]
buffers = 4096
hugepages = "try"
[[port]]
name = "in"
backend = "generator"
flows = 1000
flow_hash = false
[[port]]
name = "out"
backend = "sink"
[[rule]]
priority = 1
match = { in_port = "in" }
then = { out = "out" }
"#;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

struct Bench {
    fabric: Fabric,
    conductor: Conductor,
    asked: u64,
    /// Rules that a window added, to be removed after it.
    added: Vec<u64>,
}

impl Bench {
    fn new() -> Result<Self> {
        let config = Config::parse(CONFIG, Path::new("rule_churn"))?;
        let fabric = Fabric::start(&config, false)?;
        let conductor = Conductor::new(config.model.clone())?;
        let mut bench = Self { fabric, conductor, asked: 0, added: Vec::new() };
        while bench.conductor.is_busy() {
            bench.turn()?;
        }
        Ok(bench)
    }

    fn turn(&mut self) -> Result<()> {
        self.conductor.turn(&mut self.fabric, Instant::now())?;
        std::thread::yield_now();
        Ok(())
    }

    fn sent_pkts(&self) -> u64 {
        self.fabric.ports()[1].counters.iter().map(|queue| queue.tx_pkts.get()).sum()
    }

    /// Makes an edit and waits until it is in force.
    fn edit(&mut self, edits: Vec<Edit>) -> Result<Vec<u64>> {
        self.asked += 1;
        self.conductor.ask_edits(self.asked, edits);
        loop {
            self.turn()?;
            if let Some(answer) = self.conductor.take_answers().pop() {
                return Ok(answer.result?.rule_ids);
            }
        }
    }

    /// The rate of one window, packets/s, and the rules inserted in it, so many a request; 0: none.
    fn window(&mut self, together: u32) -> Result<(f64, usize)> {
        let (began, before) = (Instant::now(), self.sent_pkts());
        while began.elapsed() < WINDOW {
            if together == 0 {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            let first = self.added.len() as u32;
            let add = |n| Edit::AddRule { rule: Box::new(exact_rule(n)) };
            let ids = self.edit((first..first + together).map(add).collect())?;
            self.added.extend(ids);
        }
        let sent = self.sent_pkts() - before;
        let rate = sent as f64 / began.elapsed().as_secs_f64();
        let inserted = self.added.len();
        for ids in std::mem::take(&mut self.added).chunks(512) {
            self.edit(ids.iter().map(|&id| Edit::RemoveRule { id }).collect())?;
        }
        Ok((rate, inserted))
    }
}

/// A rule for one flow of the generator, every field of its 5-tuple said.
fn exact_rule(n: u32) -> RuleSpec {
    let text = |text: String| Some(Value::Text(text));
    let matches = MatchSpec {
        ip_src: text(format!("198.18.{}.{}", n >> 8 & 0xff, n & 0xff)),
        ip_dst: text("198.19.0.1".to_owned()),
        ip_proto: text("udp".to_owned()),
        tp_src: Some(Value::Int(1024 + u64::from(n >> 16))),
        tp_dst: Some(Value::Int(9)),
        ..MatchSpec::default()
    };
    let then = ThenSpec { out: Some("out".to_owned()), ..ThenSpec::default() };
    RuleSpec { priority: 100, matches, then, ..RuleSpec::default() }
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let pairs = args
        .iter()
        .position(|arg| arg == "--reps")
        .and_then(|at| args.get(at + 1)?.parse().ok())
        .unwrap_or(PAIRS);
    let mut report = Report::new(args.iter().any(|arg| arg == "--json"));
    report.environment(&environment::describe());
    // First, for a manager refuses cores that are not its process's.
    let mut bench = Bench::new()?;
    if std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1) {
        let mut core = CpuSet::new();
        core.set(1)?;
        sched_setaffinity(Pid::from_raw(0), &core)?;
    }
    for together in [1, 64] {
        report.row(&measure(&mut bench, together, pairs)?);
    }
    report.finish();
    Ok(())
}

fn measure(bench: &mut Bench, together: u32, pairs: usize) -> Result<Row> {
    let (mut quiet, mut busy, mut rules) = (Vec::new(), Vec::new(), Vec::new());
    for pair in 0..=pairs {
        let (rate, _) = bench.window(0)?;
        let (rate_inserting, inserted) = bench.window(together)?;
        if pair > 0 {
            quiet.push(rate / 1e6);
            busy.push(rate_inserting / 1e6);
            rules.push(inserted as f64 / WINDOW.as_secs_f64());
        }
    }
    let (ours, peer_value) = (median(&mut busy), median(&mut quiet));
    let per_second = median(&mut rules) / 1e3;
    Ok(Row {
        work: format!("{per_second:.1} k rules/s inserted, {together} a request"),
        ours,
        unit: "Mpps",
        peer: "no insertions",
        peer_value,
        ratio: ours / peer_value,
        aim: 0.95,
    })
}
