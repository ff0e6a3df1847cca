//! `millrace-bench`: what `millrace bench` runs.
//!
//! A program of its own, so that the command line needs neither DPDK nor the peers.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout)]

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use millrace_benches::data_path::rows::{self, RowSpec};
use millrace_benches::data_path::{Bench, Trouble, pin};
use millrace_benches::environment;
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
    /// Answers each line of its input; the other half of a measured context switch
    #[command(hide = true)]
    Echo {
        /// Core to run on
        core: u32,
    },
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

fn main() -> ExitCode {
    let cli = match nflib::args::parse::<Cli>() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let result = match &cli.what {
        What::DataPath(options) => data_path(options, cli.json),
        What::Echo { core } => echo(*core).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|trouble| {
        eprintln!("millrace bench: {trouble}");
        ExitCode::FAILURE
    })
}

fn data_path(options: &DataPath, json: bool) -> Result<ExitCode, Trouble> {
    let is_asked = |row: &&RowSpec| {
        options.only.is_empty() || options.only.iter().any(|only| row.id.starts_with(only.as_str()))
    };
    let none = |only: &&String| !rows::all().any(|row| row.id.starts_with(only.as_str()));
    if let Some(only) = options.only.iter().find(none) {
        let names: Vec<_> = rows::all().map(|row| row.id).collect();
        eprintln!("millrace bench: --only {only}: no such row; there are {}", names.join(", "));
        return Ok(ExitCode::from(2));
    }
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
        match measure(&bench, row, &mut report) {
            Ok(()) => {}
            Err(Trouble::Stopped) => return Err(Trouble::Stopped),
            Err(trouble) => {
                if !matches!(trouble, Trouble::NotAvailable(_)) {
                    code = ExitCode::FAILURE;
                }
                report.no_row(row.work, row.unit, row.peer, row.aim, &trouble.to_string());
            }
        }
        let _ = std::io::stdout().flush();
    }
    report.finish();
    Ok(code)
}

fn measure(bench: &Bench, spec: &RowSpec, report: &mut Report) -> Result<(), Trouble> {
    let outcome = (spec.run)(bench)?;
    let row = Row {
        work: spec.work.to_owned(),
        ours: outcome.ours,
        unit: spec.unit,
        peer: spec.peer,
        peer_value: outcome.peer_value,
        ratio: outcome.ratio,
        aim: spec.aim,
    };
    let mut more = Map::new();
    more.insert("row".into(), spec.id.into());
    more.extend(outcome.more);
    report.row_with(&row, more);
    Ok(())
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
