//! The `millrace` command: nouns and verbs over the manager's control socket.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout)] // This is the program's output.

mod show;

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};
use nflib::control::{DEFAULT_SOCKET, request_status};

/// Looks at a running Millrace manager.
#[derive(Parser)]
#[command(name = "millrace", version)]
struct Args {
    /// The manager's control socket.
    #[arg(long, global = true, default_value = DEFAULT_SOCKET, env = "MILLRACE_SOCKET")]
    socket: PathBuf,
    /// Print JSON instead of a table.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    noun: Noun,
}

#[derive(Subcommand)]
enum Noun {
    /// Everything at a glance.
    Status,
    /// Ports.
    Port {
        #[command(subcommand)]
        verb: ListVerb,
    },
    /// Network functions.
    Nf {
        #[command(subcommand)]
        verb: ListVerb,
    },
    /// Rates of ports and NFs, measured over an interval, and every drop.
    Stats {
        /// Seconds to measure over.
        #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
        interval: f64,
        /// Measure again and again, until interrupted or so many times.
        #[arg(long, value_name = "TIMES", num_args = 0..=1, default_missing_value = "0")]
        watch: Option<u64>,
    },
}

#[derive(Clone, Copy, Subcommand)]
enum ListVerb {
    /// One line each.
    List,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // `millrace status | head` is no fault.
            let broken_pipe = error
                .downcast_ref::<std::io::Error>()
                .is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe);
            if broken_pipe {
                return ExitCode::SUCCESS;
            }
            eprintln!("millrace: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let socket = connect(&args.socket)?;
    match &args.noun {
        Noun::Stats { interval, watch } => stats(&socket, *interval, *watch, args.json),
        noun => {
            let status = request_status(&socket)?;
            let text = match noun {
                Noun::Port { verb: ListVerb::List } if args.json => json(&status.ports)?,
                Noun::Port { verb: ListVerb::List } => show::ports(&status),
                Noun::Nf { verb: ListVerb::List } if args.json => json(&status.nfs)?,
                Noun::Nf { verb: ListVerb::List } => show::nfs(&status),
                _ if args.json => json(&status)?,
                _ => show::status(&status),
            };
            print(&text)
        }
    }
}

fn connect(path: &Path) -> anyhow::Result<UnixStream> {
    let socket = UnixStream::connect(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => anyhow::anyhow!(
            "no manager at {}: start millrace-manager, or name its socket with --socket",
            path.display()
        ),
        std::io::ErrorKind::PermissionDenied => anyhow::anyhow!(
            "{}: permission denied: join the socket's group (manager.socket_group), or use root",
            path.display()
        ),
        _ => anyhow::Error::new(error).context(path.display().to_string()),
    })?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    Ok(socket)
}

fn stats(
    socket: &UnixStream,
    interval_s: f64,
    watch: Option<u64>,
    as_json: bool,
) -> anyhow::Result<()> {
    if !(0.01..=3600.0).contains(&interval_s) {
        bail!("--interval {interval_s}: expected 0.01 to 3600 seconds");
    }
    let mut times_left = watch.unwrap_or(1);
    let mut before = request_status(socket)?;
    loop {
        std::thread::sleep(Duration::from_secs_f64(interval_s));
        let after = request_status(socket)?;
        let rates = show::Rates::between(&before, &after);
        print(&if as_json { json(&rates)? } else { show::rates(&rates) })?;
        before = after;
        if watch != Some(0) {
            times_left = times_left.saturating_sub(1);
            if times_left == 0 {
                return Ok(());
            }
        }
    }
}

fn json(value: &impl serde::Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_string(value).context("cannot write JSON")? + "\n")
}

fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}
