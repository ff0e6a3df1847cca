//! `millrace-nf NAME …`: the network functions that come with Millrace, in one program.
//!
//! Each NF is a folder of the same shape: `mod.rs` with its options, the NF and its tests, and
//! `README.md`. To add one, write the folder and a line in [`Nf`] and in `main`.
#![forbid(unsafe_code)]

mod forward;
mod speed_test;
mod stamp;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Runs one of Millrace's network functions as an ordinary process.
#[derive(Parser)]
#[command(name = "millrace-nf", version, subcommand_help_heading = "Network functions")]
#[command(subcommand_value_name = "NAME", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    nf: Nf,
}

#[derive(Subcommand)]
enum Nf {
    /// Passes packets on, unchanged or with exchanged Ethernet addresses
    Forward(forward::Options),
    /// Makes packets that circulate, and measures how fast
    SpeedTest(speed_test::Options),
    /// Writes into each packet's trail that it was here; for labs
    Stamp(stamp::Options),
}

fn main() -> ExitCode {
    let cli = match nflib::args::parse::<Cli>() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    match cli.nf {
        Nf::Forward(options) => {
            nflib::run_as("forward", forward::Forward::new(&options), &options.nf)
        }
        Nf::SpeedTest(options) => match speed_test::SpeedTest::new(&options) {
            Ok(nf) => nflib::run_as("speed-test", nf, &options.nf),
            Err(error) => {
                eprintln!("speed-test: {error}");
                ExitCode::FAILURE
            }
        },
        Nf::Stamp(options) => nflib::run_as("stamp", stamp::Stamp::default(), &options.nf),
    }
}
