//! `millrace down`: the end of a manager, in good order.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd as _, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use millrace::report;
use nflib::control::{Reply, Request};
use nflib::shm::pidfd_open;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::Globals;
use crate::client::{ClientError, LOOK_LIMIT};
use crate::print::{self, usage};

#[derive(Args)]
pub struct Options {
    /// How long the manager may take to drain and to end its NFs, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    wait: f64,
    /// End only the manager: its NFs wait for the next one, which goes on with what is wanted now
    /// (rules, chains, instances), as for another release of the manager
    #[arg(long)]
    keep_nfs: bool,
}

/// A number of seconds to wait, from the command line.
pub fn limit(wait_s: f64) -> anyhow::Result<Duration> {
    if !(0.0..=86_400.0).contains(&wait_s) {
        return Err(usage(format!("--wait {wait_s}: expected 0 to 86400 seconds")));
    }
    Ok(Duration::from_secs_f64(wait_s))
}

/// Ends the manager; exit code 1 also when its books do not balance.
pub fn run(globals: &Globals, options: &Options) -> anyhow::Result<ExitCode> {
    let limit = limit(options.wait)?;
    let client = globals.connect()?;
    let pid = client.status()?.pid;
    // In another pid namespace the number says nothing, and the connection's end has to do.
    let process = pidfd_open(pid).ok();
    match client.ask(&Request::Shutdown { keep_nfs: options.keep_nfs }, LOOK_LIMIT)? {
        Reply::Done => {}
        _ => return Err(client.unexpected("shutdown").into()),
    }
    let began = Instant::now();
    let last = match client.next_reply(limit) {
        Ok(Reply::Status(status)) => status,
        Ok(_) => return Err(client.unexpected("shutdown").into()),
        Err(ClientError::Silent { .. }) => bail!(
            "the manager (pid {pid}) still drains after {} s: wait on with a longer --wait, or end \
             it with kill -9 {pid}",
            options.wait
        ),
        Err(error) => return Err(error).context("the manager ended before its books were closed"),
    };
    if let Some(process) = process {
        let left = limit.saturating_sub(began.elapsed()).max(Duration::from_secs(5));
        anyhow::ensure!(ends(&process, left), "the manager (pid {pid}) is done and does not end");
    }
    print::either(globals.json, &last, || report::final_books(&last))?;
    Ok(if last.accounting.balanced { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether a process ends in time.
fn ends(process: &OwnedFd, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(ready) if ready > 0 => return true,
            _ if left.is_zero() => return false,
            _ => {}
        }
    }
}
