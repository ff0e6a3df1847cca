//! `millrace capture`: packets at any place of the manager's, as text, or as pcapng into a file or a pipe.
#![forbid(unsafe_code)]

mod blocks;
mod lines;
mod pump;

use std::fs::File;
use std::io::IsTerminal as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use millrace_pcap_filter::{FilterError, compile};
use nflib::control::{CapturePoint, CaptureRequest, CaptureStatus, Reply, Request};
use nflib::observe::MAX_KEPT_BYTES;

use crate::client::{Client, ClientError, LOOK_LIMIT};
use crate::table::{Table, ago};
use crate::{Globals, print, words};
pub use pump::{Copy, Pump};
use pump::{End, Sink};

/// Options of `millrace capture`.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = false)]
#[command(
    override_usage = "millrace capture --at <PLACE>… [--filter <EXPR>] [-w <FILE|->]\n       \
                            millrace capture points\n       millrace capture list"
)]
pub struct Options {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Where: port:NAME[:in|:out], nf:SERVICE[#INSTANCE][:in|:out], ring:FROM:TO, where each is an NF
    /// or `manager`, drop[:SERVICE][:REASON]; `millrace capture points` lists them
    #[arg(long, value_name = "PLACE", num_args = 1..)]
    at: Vec<String>,
    /// Only packets that pass, in tcpdump's language: "tcp port 80 and host 10.0.0.1"
    #[arg(long, value_name = "EXPR", default_value = "", hide_default_value = true)]
    filter: String,
    /// Write pcapng to this file, or `-` for standard output; else a line for each packet is printed
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// End after so many packets
    #[arg(long, value_name = "PACKETS", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after so long
    #[arg(long, value_name = "SECONDS", value_parser = words::seconds)]
    seconds: Option<f64>,
    /// First bytes of a packet to keep; all, when it is not given
    #[arg(long, value_name = "BYTES")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=MAX_KEPT_BYTES as i64))]
    snap: Option<u16>,
}

#[derive(Subcommand)]
enum Verb {
    /// The places where packets can be captured now
    Points,
    /// Captures under way
    List,
}

pub fn run(globals: &Globals, options: Options) -> anyhow::Result<ExitCode> {
    match options.verb {
        Some(Verb::Points) => {
            let points = points(&globals.connect()?, LOOK_LIMIT)?;
            print::either(globals.json, &points, || point_table(&points))?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Verb::List) => {
            let captures = captures(&globals.connect()?)?;
            print::either(globals.json, &captures, || capture_table(&captures))?;
            Ok(ExitCode::SUCCESS)
        }
        None => capture(globals, options),
    }
}

fn capture(globals: &Globals, options: Options) -> anyhow::Result<ExitCode> {
    if options.at.is_empty() {
        return Err(print::usage(
            "capture where? Give --at PLACE; `millrace capture points` lists the places",
        ));
    }
    let to_stdout = options.write.as_deref() == Some(Path::new("-"));
    if to_stdout && std::io::stdout().is_terminal() {
        return Err(print::usage(
            "-w - would write pcapng to this terminal: give -w FILE, or pipe it to a program",
        ));
    }
    let request = CaptureRequest {
        filter: filter(&options.filter)?,
        filter_text: options.filter,
        at: options.at,
        snap_bytes: options.snap.unwrap_or(0),
        max_pkts: options.count.unwrap_or(0),
        max_ms: options.seconds.map_or(0, |s| (s * 1000.0).ceil() as u64),
        name: format!("millrace capture (pid {})", std::process::id()),
    };
    // Before anything is captured: a signal must find somebody who ends it well.
    let mut pump = Pump::new()?;
    let client = globals.connect()?;
    let started = start(&client, request)?;
    match &options.write {
        None => finish(&client, &started, &mut pump, &mut lines::Lines::new(globals.json)),
        Some(_) if to_stdout => {
            let stdout = std::io::stdout();
            finish(&client, &started, &mut pump, &mut Copy::new(stdout.lock()))
        }
        Some(path) => {
            let file = File::create(path).with_context(|| path.display().to_string())?;
            finish(&client, &started, &mut pump, &mut Copy::new(file))
        }
    }
}

/// A capture that the manager has started.
pub struct Started {
    id: u64,
    reader: File,
}

/// Asks for a capture.
///
/// # Errors
/// The manager's refusal, else [`ClientError`].
pub fn start(client: &Client, request: CaptureRequest) -> Result<Started, ClientError> {
    match client.ask_for_fds(&Request::Capture(request), LOOK_LIMIT)? {
        (Reply::Capturing { id }, fds) => match <[OwnedFd; 1]>::try_from(fds) {
            Ok([reader]) => Ok(Started { id, reader: reader.into() }),
            Err(_) => Err(client.unexpected("a capture")),
        },
        _ => Err(client.unexpected("a capture")),
    }
}

/// Reads a capture to its end, or until a signal, and tells what it was.
///
/// # Errors
/// When the manager goes away meanwhile, or what it says is no pcapng, or the sink fails.
pub fn finish(
    client: &Client,
    started: &Started,
    pump: &mut Pump,
    sink: &mut impl Sink,
) -> anyhow::Result<ExitCode> {
    let end = pump.run(&started.reader, sink)?;
    let lost_pkts = match end {
        End::Complete => pump.seen.lost_pkts(),
        // Its file has no count; the manager has.
        _ => captures(client)
            .ok()
            .and_then(|all| all.into_iter().find(|capture| capture.id == started.id))
            .map_or(pump.seen.lost_pkts(), |capture| capture.lost_pkts),
    };
    if end == End::Signal {
        pump.last_words(&started.reader, sink, lost_pkts)?;
    }
    let pkts = pump.seen.pkts;
    eprintln!("{pkts} packets captured, {lost_pkts} lost");
    match end {
        End::Complete | End::Signal | End::SinkGone => Ok(ExitCode::SUCCESS),
        End::ManagerGone => bail!("the manager went away; what it had captured until then is kept"),
    }
}

/// A filter's instructions.
///
/// # Errors
/// A mistake of the caller, unless libpcap is missing.
pub fn filter(text: &str) -> anyhow::Result<Vec<nflib::control::FilterStep>> {
    compile(text).map_err(|error| match error {
        FilterError::Missing(_) => error.into(),
        mistake => print::usage(mistake.to_string()),
    })
}

/// Where packets can be captured, waiting at most `limit`.
///
/// # Errors
/// [`ClientError`].
pub fn points(client: &Client, limit: Duration) -> Result<Vec<CapturePoint>, ClientError> {
    match client.ask(&Request::CapturePoints, limit)? {
        Reply::CapturePoints { points } => Ok(points),
        _ => Err(client.unexpected("points")),
    }
}

fn captures(client: &Client) -> Result<Vec<CaptureStatus>, ClientError> {
    match client.ask(&Request::Captures, LOOK_LIMIT)? {
        Reply::Captures { captures } => Ok(captures),
        _ => Err(client.unexpected("captures")),
    }
}

fn point_table(points: &[CapturePoint]) -> String {
    let mut table = Table::new(&["PLACE", "WHAT"]);
    for point in points {
        table.row(vec![point.at.clone(), point.description.clone()]);
    }
    table.text()
}

fn capture_table(captures: &[CaptureStatus]) -> String {
    if captures.is_empty() {
        return "no capture is under way\n".to_owned();
    }
    let mut table = Table::new(&["CAPTURE", "AT", "FILTER", "PKTS", "LOST", "FOR", "BY"]);
    for capture in captures {
        table.row(vec![
            capture.id.to_string(),
            capture.at.join(" "),
            if capture.filter.is_empty() { "-".to_owned() } else { capture.filter.clone() },
            capture.pkts.to_string(),
            capture.lost_pkts.to_string(),
            ago(capture.for_s),
            capture.name.clone(),
        ]);
    }
    table.text()
}
