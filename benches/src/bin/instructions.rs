//! `instructions`: counts what a packet costs and compares it with `benches/instructions.toml`; run by
//! `./scripts/test instructions`.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout)]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use millrace_benches::instructions::{Figures, Verdict, judge, with_figures};

/// Counts instructions a packet, by callgrind, and compares them with committed figures
///
/// Exit codes: 0 no path costs over 5 % more, 1 one does or could not be counted.
#[derive(Parser)]
#[command(name = "instructions", max_term_width = 100)]
struct Cli {
    /// The committed figures
    #[arg(long, value_name = "FILE", default_value = "benches/instructions.toml")]
    figures: PathBuf,
    /// Write what is counted into the file
    #[arg(long)]
    update: bool,
}

fn main() -> ExitCode {
    let cli = match nflib::args::parse::<Cli>() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    run(&cli).unwrap_or_else(|error| {
        eprintln!("instructions: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(cli: &Cli) -> anyhow::Result<ExitCode> {
    let figures = Figures::load(&cli.figures)?;
    let programs = std::env::current_exe()?.with_file_name("examples");
    let scratch = tempfile::tempdir().context("no temporary folder")?;
    let mut code = ExitCode::SUCCESS;
    let mut counted = Vec::new();
    for path in &figures.path {
        let now = path.count(&programs, scratch.path())?;
        counted.push(now);
        let verdict = judge(now, path.instructions);
        let committed = path.instructions.unwrap_or(0.0);
        let change = (now / committed - 1.0) * 100.0;
        let says = match verdict {
            Verdict::Same => format!("{change:+.1} %"),
            Verdict::Less => format!("{change:+.1} %: keep it, by --update"),
            Verdict::More => format!("{change:+.1} %, 5 allowed: FAILED"),
            Verdict::New => "no figure yet: FAILED".to_owned(),
        };
        println!("{:<24} {now:>8.2} a packet, committed {committed:>8.2}  {says}", path.name);
        if matches!(verdict, Verdict::More | Verdict::New) && !cli.update {
            code = ExitCode::FAILURE;
        }
    }
    let text = std::fs::read_to_string(&cli.figures)?;
    let new = with_figures(&text, &counted);
    if cli.update {
        std::fs::write(&cli.figures, new)?;
        println!(
            "{} has the new figures: commit it, and say why they changed",
            cli.figures.display()
        );
    } else if code == ExitCode::FAILURE {
        println!(
            "if it is meant to cost more: {} --update",
            std::env::args().next().unwrap_or_default()
        );
    }
    Ok(code)
}
