//! `lab-soak`: chaos under load; see `scripts/soak`, which builds it and what it needs.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use millrace_benches::data_path::Trouble;
use millrace_benches::soak::{Options, run};
use millrace_benches::traffic::signals::Signals;

/// Kills, stops, scales and reconfigures NFs of a real manager under load, and accounts for every packet.
///
/// The last line is one of JSON; exit code 0 only if all is well.
#[derive(Parser)]
#[command(name = "lab-soak", version, disable_help_subcommand = true)]
struct Cli {
    /// How long
    #[arg(long, default_value_t = 60.0, value_parser = parse_seconds)]
    seconds: f64,
    /// Chooses what happens when
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Packets a second to the chains whose NFs die; half as many go to the bystanders
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(100..=10_000_000))]
    rate: u64,
    /// Mean time between two kills or stops, milliseconds
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    pace_ms: u64,
    /// Miscount one packet on purpose: the run must then fail, which shows that it can
    #[arg(long)]
    spoil: bool,
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds: Option<f64> = text.parse().ok();
    seconds
        .filter(|seconds| (1.0..=604_800.0).contains(seconds))
        .ok_or_else(|| "a number of seconds from 1 to 604800 is wanted".to_owned())
}

#[allow(clippy::print_stdout)] // the result
fn main() -> ExitCode {
    let cli = match nflib::args::parse::<Cli>() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let Cli { seconds, seed, rate, pace_ms, spoil } = cli;
    let options = Options { seconds, seed, rate_pps: rate, pace_ms, spoil };
    let done = Signals::take_over()
        .context("signals")
        .and_then(|signals| run(options, &signals).map_err(anyhow::Error::from));
    match done {
        Ok((ok, line)) => {
            println!("{line}");
            if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("lab-soak: {error:#}");
            let text = serde_json::Value::from(format!("{error:#}"));
            println!("{{\"ok\": false, \"error\": {text}, \"seed\": {seed}}}");
            let stopped = matches!(error.downcast_ref(), Some(Trouble::Stopped));
            ExitCode::from(if stopped { 130 } else { 1 })
        }
    }
}
