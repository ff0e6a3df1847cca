//! `millrace extcap`: Wireshark's way to capture by another program. It lists every port, NF, ring and drop
//! point as an interface, and captures at one into a pipe that Wireshark has made.
//!
//! What Wireshark asks, and how it wants the answers: extcap(4), and the chapter on capture sources in its
//! developer's guide.
#![forbid(unsafe_code)]

mod install;

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use nflib::control::{CapturePoint, CaptureRequest};
use nflib::observe::MAX_KEPT_BYTES;

use crate::capture::{self, Copy, Pump};
use crate::{Globals, print};

/// What an interface's name begins with, that it be told from those of the machine.
const PREFIX: &str = "millrace:";
/// How long a manager may take to list its places: Wireshark does not start before.
const START_LIMIT: Duration = Duration::from_secs(2);

/// Options of `millrace extcap`.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = false)]
pub struct Options {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// List the interfaces
    #[arg(long)]
    extcap_interfaces: bool,
    /// The version of Wireshark that asks
    #[arg(long, value_name = "VERSION", num_args = 0..=1, require_equals = true)]
    extcap_version: Option<Option<String>>,
    /// The interface that is meant
    #[arg(long, value_name = "NAME")]
    extcap_interface: Option<String>,
    /// What packets at the interface look like
    #[arg(long)]
    extcap_dlts: bool,
    /// What can be set at the interface
    #[arg(long)]
    extcap_config: bool,
    /// Check this filter; with --capture, capture only what passes it
    #[arg(long, value_name = "EXPR", allow_hyphen_values = true)]
    extcap_capture_filter: Option<String>,
    /// Capture at the interface
    #[arg(long)]
    capture: bool,
    /// Write to this pipe
    #[arg(long, value_name = "PIPE")]
    fifo: Option<PathBuf>,
    /// First bytes of a packet to keep; 0: all
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    snap: u16,
}

#[derive(Subcommand)]
enum Verb {
    /// Let Wireshark find this program
    Install(install::Options),
    /// Let it find it no more
    Remove(install::Options),
}

pub fn run(globals: &Globals, options: &Options) -> anyhow::Result<ExitCode> {
    match &options.verb {
        Some(Verb::Install(folder)) => install::install(globals, folder)?,
        Some(Verb::Remove(folder)) => install::remove(folder)?,
        None if options.capture => return capture_at(globals, options),
        None if options.extcap_interfaces => print::text(&interfaces(globals))?,
        None if options.extcap_dlts => {
            print::text("dlt {number=1}{name=EN10MB}{display=Ethernet}\n")?;
        }
        None if options.extcap_config => print::text(&config(globals))?,
        None => match &options.extcap_capture_filter {
            // Nothing said is a filter that is right.
            Some(filter) => {
                if let Err(error) = capture::filter(filter) {
                    print::text(&format!("{error:#}\n"))?;
                }
            }
            None => {
                return Err(print::usage(
                    "this is for Wireshark, which calls it: let it be found by `millrace extcap install`",
                ));
            }
        },
    }
    Ok(ExitCode::SUCCESS)
}

/// The version line, and an interface for each place; none, when there is no manager to ask.
fn interfaces(globals: &Globals) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let mut text = format!("extcap {{version={version}}}{{display=Millrace}}\n");
    let points = globals
        .connect()
        .and_then(|client| capture::points(&client, START_LIMIT))
        .unwrap_or_default();
    for CapturePoint { at, description } in points {
        let (at, description) = (sentence(&at), sentence(&description));
        text += &format!("interface {{value={PREFIX}{at}}}{{display=Millrace: {description}}}\n");
    }
    text
}

fn config(globals: &Globals) -> String {
    let socket = sentence(&globals.socket.display().to_string());
    format!(
        "arg {{number=0}}{{call=--snap}}{{display=Bytes of a packet to keep}}{{type=unsigned}}\
         {{range=0,{MAX_KEPT_BYTES}}}{{default=0}}{{tooltip=0 keeps all of them}}\n\
         arg {{number=1}}{{call=--socket}}{{display=The manager's control socket}}{{type=string}}\
         {{default={socket}}}\n"
    )
}

/// A text between braces must have none.
fn sentence(text: &str) -> String {
    text.chars().map(|c| if "{}".contains(c) || c.is_control() { '_' } else { c }).collect()
}

fn capture_at(globals: &Globals, options: &Options) -> anyhow::Result<ExitCode> {
    let missing = |what: &str| print::usage(format!("--capture needs {what}"));
    let interface =
        options.extcap_interface.as_ref().ok_or_else(|| missing("--extcap-interface"))?;
    let fifo = options.fifo.as_ref().ok_or_else(|| missing("--fifo"))?;
    let at = interface.strip_prefix(PREFIX).unwrap_or(interface);
    let filter_text = options.extcap_capture_filter.clone().unwrap_or_default();
    let request = CaptureRequest {
        at: vec![at.to_owned()],
        filter: capture::filter(&filter_text)?,
        filter_text,
        snap_bytes: options.snap,
        name: format!("Wireshark (pid {})", std::process::id()),
        ..CaptureRequest::default()
    };
    let mut pump = Pump::new()?;
    let client = globals.connect()?;
    let started = capture::start(&client, request)?;
    let output = OpenOptions::new().write(true).open(fifo);
    let output = output.with_context(|| fifo.display().to_string())?;
    capture::finish(&client, &started, &mut pump, &mut Copy::new(output))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_braces_has_none() {
        assert_eq!(sentence("port:{a}\nb"), "port:_a__b");
    }
}
