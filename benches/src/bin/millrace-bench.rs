//! `millrace-bench`: what `millrace bench` runs.
//!
//! A program of its own, so that the command line needs neither DPDK nor the peers.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout)]

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use millrace_benches::data_path::relay::Relay;
use millrace_benches::data_path::rows::{self, RowSpec};
use millrace_benches::data_path::{Bench, Outcome, Trouble, pin};
use millrace_benches::environment;
use millrace_benches::fec::{self, rows as fec_rows};
use millrace_benches::report::{Report, Row};
use serde_json::Map;

/// Measures Millrace against others on this machine.
///
/// Exit codes: 0 measured, whether aims were met or not, 1 something failed, 2 the command line makes
/// no sense.
#[derive(Parser)]
#[command(name = "millrace bench", version, max_term_width = 100)]
struct Cli {
    /// Print JSON, one object a line, instead of a table
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Hops, chains, ports and sharing of cores, each against a named peer in the same run
    DataPath(DataPath),
    /// Coding and decoding of forward error correction on one core, against ISA-L and others
    Fec(Fec),
    /// Answers each line of its input; the other half of a measured context switch
    #[command(hide = true)]
    Echo {
        /// Core to run on
        core: u32,
    },
    /// Passes descriptors from ring to ring; one of the processes that show what a chain costs at least
    #[command(hide = true)]
    Relay(Relay),
}

#[derive(Args)]
struct DataPath {
    /// Pairs of runs of each row, ours and the peer's in turn; medians are shown
    #[arg(long, value_name = "N", default_value_t = 5)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1000))]
    reps: u16,
    /// Only the rows whose name begins so; may be given more than once
    #[arg(long, value_name = "ROW")]
    only: Vec<String>,
    /// Length of one measurement
    #[arg(long, value_name = "MS", default_value_t = 500)]
    #[arg(value_parser = clap::value_parser!(u64).range(50..=60_000))]
    window_ms: u64,
    /// Print the names of the rows and what they are, and measure nothing
    #[arg(long)]
    list: bool,
}

#[derive(Args)]
struct Fec {
    /// Pairs of runs of each row, ours and the peer's in turn; medians are shown
    #[arg(long, value_name = "N", default_value_t = 15)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=1000))]
    reps: u16,
    /// Only the rows whose name begins so; may be given more than once
    #[arg(long, value_name = "ROW")]
    only: Vec<String>,
    /// CPU time of one run, about
    #[arg(long, value_name = "MS", default_value_t = 20)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=60_000))]
    window_ms: u64,
    /// Print the names of the rows and what they are, and measure nothing
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    let cli = match nflib::args::parse::<Cli>() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let result = match &cli.what {
        What::DataPath(options) => data_path(options, cli.json),
        What::Fec(options) => forward_error_correction(options, cli.json),
        What::Echo { core } => echo(*core).map(|()| ExitCode::SUCCESS),
        What::Relay(relay) => relay.run().map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|trouble| {
        eprintln!("millrace bench: {trouble}");
        ExitCode::FAILURE
    })
}

fn data_path(options: &DataPath, json: bool) -> Result<ExitCode, Trouble> {
    let names: Vec<_> = rows::all().map(|row| row.id).collect();
    if let Some(code) = unknown(&options.only, &names) {
        return Ok(code);
    }
    let is_asked = |row: &&RowSpec| asked(&options.only, row.id);
    if options.list {
        for row in rows::all().filter(is_asked) {
            println!("{:<18} {} / {}", row.id, row.work, row.peer);
        }
        return Ok(ExitCode::SUCCESS);
    }
    // Before this thread is bound to a core.
    let environment = environment::describe();
    let mut bench = Bench::new(options.reps.into(), Duration::from_millis(options.window_ms))?;
    bench.progress = std::io::stderr().is_terminal();
    let mut report = Report::new(json);
    report.environment(&environment);
    let mut code = ExitCode::SUCCESS;
    for row in rows::all().filter(is_asked) {
        let outcome = (row.run)(&bench);
        let row =
            Named { id: row.id, work: row.work, unit: row.unit, peer: row.peer, aim: row.aim };
        if !row.show(outcome, &mut report)? {
            code = ExitCode::FAILURE;
        }
        let _ = std::io::stdout().flush();
    }
    report.finish();
    Ok(code)
}

fn forward_error_correction(options: &Fec, json: bool) -> Result<ExitCode, Trouble> {
    let rows = fec_rows::all();
    let names: Vec<_> = rows.iter().map(|row| row.id.as_str()).collect();
    if let Some(code) = unknown(&options.only, &names) {
        return Ok(code);
    }
    let chosen = rows.iter().filter(|row| asked(&options.only, &row.id));
    if options.list {
        for row in chosen {
            println!("{:<28} {} / {}", row.id, row.work, row.peer);
        }
        return Ok(ExitCode::SUCCESS);
    }
    // Before this thread is bound to a core.
    let environment = environment::describe();
    let window = Duration::from_millis(options.window_ms);
    let bench = fec::Bench::new(options.reps.into(), window)?;
    let mut report = Report::new(json);
    report.environment(&environment);
    let mut code = ExitCode::SUCCESS;
    for row in chosen {
        let outcome = fec_rows::measure(&bench, row);
        let row =
            Named { id: &row.id, work: &row.work, unit: row.unit, peer: row.peer, aim: row.aim };
        if !row.show(outcome, &mut report)? {
            code = ExitCode::FAILURE;
        }
        let _ = std::io::stdout().flush();
    }
    report.finish();
    Ok(code)
}

/// Whether a row is among those asked for, which are all where none is named.
fn asked(only: &[String], id: &str) -> bool {
    only.is_empty() || only.iter().any(|only| id.starts_with(only.as_str()))
}

/// Says which names are those of no row.
fn unknown(only: &[String], names: &[&str]) -> Option<ExitCode> {
    let none = |only: &&String| !names.iter().any(|name| name.starts_with(only.as_str()));
    let only = only.iter().find(none)?;
    eprintln!("millrace bench: --only {only}: no such row; there are {}", names.join(", "));
    Some(ExitCode::from(2))
}

/// What a row of either kind is called.
struct Named<'a> {
    id: &'a str,
    work: &'a str,
    unit: &'static str,
    peer: &'static str,
    aim: f64,
}

impl Named<'_> {
    /// Reports it; false when it should have been measured and was not.
    fn show(
        &self,
        outcome: Result<Outcome, Trouble>,
        report: &mut Report,
    ) -> Result<bool, Trouble> {
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(Trouble::Stopped) => return Err(Trouble::Stopped),
            Err(trouble) => {
                report.no_row(self.work, self.unit, self.peer, self.aim, &trouble.to_string());
                return Ok(matches!(trouble, Trouble::NotAvailable(_)));
            }
        };
        let row = Row {
            work: self.work.to_owned(),
            ours: outcome.ours,
            unit: self.unit,
            peer: self.peer,
            peer_value: outcome.peer_value,
            ratio: outcome.ratio,
            aim: self.aim,
        };
        let mut more = Map::new();
        more.insert("row".into(), self.id.into());
        more.extend(outcome.more);
        report.row_with(&row, more);
        Ok(true)
    }
}

fn echo(core: u32) -> Result<(), Trouble> {
    pin(core)?;
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        writeln!(out, "{}", line?)?;
        out.flush()?;
    }
    Ok(())
}
