//! `lab-fec`: what FEC leaves of a link's losses; see `scripts/lab-fec`, which builds it and what it needs.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use millrace_benches::data_path::{Bench, Trouble};
use millrace_benches::fec_lab::{Losses, Options, run, whole_path};
use millrace_fec::model::Gilbert;

/// Sends packets through fec-encode, a link that loses, and fec-decode, and holds what is left against the
/// mathematics.
///
/// The last line is one of JSON; exit code 0 only if all is well.
#[derive(Parser)]
#[command(name = "lab-fec", version, disable_help_subcommand = true)]
struct Cli {
    /// Data packets of a block
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=64))]
    k: u32,
    /// Parity packets of a block
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=16))]
    m: u32,
    /// Distance of a block's packets
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=32))]
    stride: u32,
    /// Probability that a packet is lost, each on its own
    #[arg(long, default_value_t = 0.01, value_parser = parse_loss)]
    loss: f64,
    /// Losses in bursts instead: probability that one begins before a packet, and that it ends
    #[arg(long, value_name = "P,R", value_parser = parse_gilbert, conflicts_with = "loss")]
    gilbert: Option<Gilbert>,
    /// Data packets
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1000..=10_000_000_000))]
    packets: u64,
    /// Packets a second
    #[arg(long, default_value_t = 150_000, value_parser = clap::value_parser!(u64).range(1000..=100_000_000))]
    rate: u64,
    /// Length of the frames
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(60..=1500))]
    frame_bytes: u32,
    /// Chooses which packets are lost
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Hold it against a code with one parity packet less: the run must then fail, which shows that it can
    #[arg(long)]
    spoil: bool,
    /// Measure what the whole way costs instead, against the same without FEC
    #[arg(long)]
    whole_path: bool,
    /// Pairs of measurements of --whole-path
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    reps: u32,
}

fn parse_loss(text: &str) -> Result<f64, String> {
    let loss: Option<f64> = text.parse().ok();
    loss.filter(|loss| (0.0..=1.0).contains(loss))
        .ok_or_else(|| "a probability from 0 to 1 is wanted".to_owned())
}

fn parse_gilbert(text: &str) -> Result<Gilbert, String> {
    let (p, r) = text.split_once(',').ok_or("two probabilities are wanted, as 0.003,0.33")?;
    Ok(Gilbert { p: parse_loss(p)?, r: parse_loss(r)? })
}

/// The last line, and whether all is well.
fn work(cli: &Cli) -> Result<(bool, String), Trouble> {
    let bench = Bench::new(cli.reps as usize, Duration::from_millis(500))?;
    let options = Options {
        k: cli.k,
        m: cli.m,
        stride: cli.stride,
        losses: cli.gilbert.map_or(Losses::Independent(cli.loss), Losses::Bursts),
        packets: cli.packets,
        rate_pps: cli.rate,
        frame_bytes: cli.frame_bytes,
        seed: cli.seed,
        spoil: cli.spoil,
    };
    if cli.whole_path {
        let row = serde_json::to_string(&whole_path(&bench, &options)?);
        return Ok((true, row.map_err(|error| Trouble::Failed(error.to_string()))?));
    }
    let outcome = run(&bench, &options)?;
    for fault in &outcome.faults {
        eprintln!("lab-fec: {fault}");
    }
    Ok((outcome.ok, outcome.line()))
}

#[allow(clippy::print_stdout)] // the result
fn main() -> ExitCode {
    let cli = match nflib::args::parse::<Cli>() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    match work(&cli) {
        Ok((ok, line)) => {
            println!("{line}");
            if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("lab-fec: {error}");
            let text = serde_json::Value::from(error.to_string());
            println!("{{\"ok\": false, \"error\": {text}, \"seed\": {}}}", cli.seed);
            ExitCode::from(if matches!(error, Trouble::Stopped) { 130 } else { 1 })
        }
    }
}
