//! `millrace-nf NAME …`: the network functions that come with Millrace, in one program.
//!
//! Each NF is a folder of the same shape: `mod.rs` with its options, the NF and its tests, and
//! `README.md`. To add one, write the folder and a line in [`Nf`] and in [`Nf::build`].
#![forbid(unsafe_code)]

mod chain;
mod fec;
mod fec_decode;
mod fec_encode;
mod firewall;
mod forward;
mod speed_test;
mod stamp;
mod tunnel;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use nflib::control::ServiceRef;
use nflib::{NetworkFunction, NfArgs, NfError};

/// Runs one of Millrace's network functions as an ordinary process.
#[derive(Parser)]
#[command(name = "millrace-nf", version, subcommand_help_heading = "Network functions")]
#[command(subcommand_value_name = "NAME", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

/// An NF by itself, or several in one process.
#[derive(Subcommand)]
enum What {
    #[command(flatten)]
    One(Nf<NfArgs>),
    /// Runs several NFs in one process, one after the other, as if they were one
    Chain(chain::Options),
}

/// An NF: its name and its own options, beside those of `C`, which all have.
#[derive(Clone, Subcommand)]
enum Nf<C: clap::Args> {
    /// Takes IP packets out of fec-encode's tunnel, and brings lost ones back
    FecDecode(With<C, fec_decode::Options>),
    /// Sends IP packets through a UDP tunnel, with parity packets that repair losses
    FecEncode(With<C, fec_encode::Options>),
    /// Lets packets pass or drops them, by rules on addresses, protocol and ports
    Firewall(With<C, firewall::Options>),
    /// Passes packets on, unchanged or with exchanged Ethernet addresses
    Forward(With<C, forward::Options>),
    /// Makes packets that circulate, and measures how fast
    SpeedTest(With<C, speed_test::Options>),
    /// Writes into each packet's trail that it was here; for labs
    Stamp(With<C, stamp::Options>),
}

/// The options that all NFs have, and an NF's own.
#[derive(clap::Args, Clone)]
struct With<C: clap::Args, O: clap::Args> {
    #[command(flatten)]
    common: C,
    #[command(flatten)]
    own: O,
}

/// Options that an NF shares with others.
trait Common: clap::Args {
    /// The service to provide, where it is the NF's own and not that of a whole process.
    fn service(&self) -> Option<&ServiceRef>;
}

impl Common for NfArgs {
    fn service(&self) -> Option<&ServiceRef> {
        Some(&self.service)
    }
}

impl<C: Common> Nf<C> {
    /// Its name, the options it shares with others, and the NF itself, for the service that its options
    /// or those of its process name.
    ///
    /// # Errors
    /// What is wrong with its own options, as one line.
    fn build(
        &self,
        of_process: Option<&ServiceRef>,
    ) -> Result<(&'static str, &C, Box<dyn NetworkFunction>), NfError> {
        Ok(match self {
            Self::FecDecode(with) => {
                ("fec-decode", &with.common, Box::new(fec_decode::FecDecode::new(&with.own)?))
            }
            Self::FecEncode(with) => {
                ("fec-encode", &with.common, Box::new(fec_encode::FecEncode::new(&with.own)?))
            }
            Self::Firewall(with) => {
                ("firewall", &with.common, Box::new(firewall::Firewall::new(&with.own)?))
            }
            Self::Forward(with) => {
                ("forward", &with.common, Box::new(forward::Forward::new(&with.own)))
            }
            Self::SpeedTest(with) => {
                let service = with
                    .common
                    .service()
                    .or(of_process)
                    .ok_or_else(|| NfError::new("speed-test needs to know its service"))?;
                let nf = speed_test::SpeedTest::new(&with.own, service.clone());
                (
                    "speed-test",
                    &with.common,
                    Box::new(nf.map_err(|error| NfError::new(error.to_string()))?),
                )
            }
            Self::Stamp(with) => ("stamp", &with.common, Box::new(stamp::Stamp::default())),
        })
    }
}

fn main() -> ExitCode {
    let cli = match nflib::args::parse::<Cli>() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let built = match &cli.what {
        What::One(nf) => nf.build(None),
        What::Chain(options) => options.build(),
    };
    match built {
        Ok((name, args, nf)) => nflib::run_as(name, nf, args),
        Err(error) => {
            eprintln!("millrace-nf: {error}");
            ExitCode::FAILURE
        }
    }
}
