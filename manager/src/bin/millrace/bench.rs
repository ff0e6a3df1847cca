//! `millrace bench`: hands over to `millrace-bench`, which lies beside this program.
//!
//! Measuring needs the peers and DPDK; looking at a manager needs neither. So that is another program,
//! and may be missing.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, bail};
use clap::Args;

use crate::Globals;

const PROGRAM: &str = "millrace-bench";

/// Options of `millrace bench`.
#[derive(Args, Debug)]
#[command(disable_help_flag = true)]
pub struct Options {
    /// What to measure, and how: `data-path` or `fec`; `--help` tells
    #[arg(value_name = "WORDS", trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<OsString>,
}

/// Becomes the other program; returns only if that cannot be.
pub fn run(globals: &Globals, options: &Options) -> anyhow::Result<()> {
    let own = std::env::current_exe().context("this program does not find itself")?;
    let program = own.with_file_name(PROGRAM);
    if !program.exists() {
        bail!(
            "{PROGRAM} is not beside {}: build it with cargo build --release -p millrace-benches",
            own.display()
        );
    }
    let json = globals.json.then(|| OsString::from("--json"));
    let error = Command::new(&program).args(&options.words).args(json).exec();
    Err(error).with_context(|| format!("{} could not be run", program.display()))
}
