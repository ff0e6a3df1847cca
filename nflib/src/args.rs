//! The command line that all NFs share.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, Parser};

use crate::control::DEFAULT_SOCKET;
use crate::control::ServiceRef;
use crate::log::LogFormat;

/// Names the manager's socket when `--socket` does not.
pub const SOCKET_VARIABLE: &str = "MILLRACE_SOCKET";
/// Says how logs are written when `--log-format` does not.
pub const LOG_FORMAT_VARIABLE: &str = "MILLRACE_LOG_FORMAT";

/// How an NF finds its manager. Flatten it into an NF's own arguments:
///
/// ```
/// #[derive(clap::Parser)]
/// struct Options {
///     #[command(flatten)]
///     nf: nflib::NfArgs,
///     /// Drop every n-th packet.
///     #[arg(long, default_value_t = 2)]
///     every: u64,
/// }
/// ```
#[derive(Args, Clone, Debug)]
pub struct NfArgs {
    /// Service to provide: its id or its name in the manager's configuration
    #[arg(long, value_name = "SERVICE")]
    pub service: ServiceRef,
    /// Socket of the manager
    #[arg(long, value_name = "PATH", env = SOCKET_VARIABLE, default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// Fail when no manager is there, instead of waiting for one
    #[arg(long)]
    pub no_wait: bool,
    /// What to log to stderr: error, warn, info, debug, trace, or a filter such as nflib=debug
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log: String,
    /// How lines of the log are written
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t, env = LOG_FORMAT_VARIABLE)]
    pub log_format: LogFormat,
    /// Leave, in good order, once so many packets were taken
    #[arg(long, value_name = "PACKETS", value_parser = clap::value_parser!(u64).range(1..))]
    pub packet_limit: Option<u64>,
    /// Leave, in good order, so many seconds after joining the manager
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub time_limit_s: Option<f64>,
    /// Core to run on, whatever the manager proposes
    #[arg(long, value_name = "CORE")]
    pub core: Option<u32>,
}

impl NfArgs {
    /// What the command line gives that names these two and nothing else.
    pub fn new(service: ServiceRef, socket: impl Into<PathBuf>) -> Self {
        Self {
            service,
            socket: socket.into(),
            no_wait: false,
            log: "info".to_owned(),
            log_format: LogFormat::default(),
            packet_limit: None,
            time_limit_s: None,
            core: None,
        }
    }
}

/// Most seconds that a time can be: some thirty years.
const MAX_SECONDS: f64 = 1e9;

fn seconds(text: &str) -> Result<f64, String> {
    let is_good = |seconds: &f64| *seconds > 0.0 && *seconds <= MAX_SECONDS;
    let seconds = text.parse().ok().filter(is_good);
    seconds.ok_or_else(|| format!("expected more than 0, at most {MAX_SECONDS}"))
}

/// An NF that has no arguments of its own.
#[derive(Parser, Debug)]
pub(crate) struct PlainArgs {
    #[command(flatten)]
    pub(crate) nf: NfArgs,
}

/// Parses the command line. What cannot be parsed is explained by one line on stderr, with the
/// usage, and exit code 2; `--help` and `--version` print and exit with 0.
///
/// # Errors
/// The code to exit with, when there is nothing to run.
pub fn parse<T: Parser>() -> Result<T, ExitCode> {
    T::try_parse().map_err(|error| {
        match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                let _ = error.print();
                return ExitCode::SUCCESS;
            }
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                eprintln!("{}", which_one(&T::command()));
            }
            _ => eprintln!("{}: {}", T::command().get_name(), one_line(&error)),
        }
        ExitCode::from(2)
    })
}

/// What to say to a program of several that was given no name.
fn which_one(command: &clap::Command) -> String {
    let name = command.get_name();
    let shown = command.get_subcommands().filter(|command| !command.is_hide_set());
    let names = shown.map(clap::Command::get_name).collect::<Vec<_>>();
    format!("{name}: no name given; usage: {name} <NAME> …, where <NAME> is: {}", names.join(", "))
}

/// Clap's message, which has several lines and paragraphs, as one line: what is wrong, how it
/// should be, and what else there is.
#[must_use]
pub fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let parts = text
        .split("\n\n")
        .filter(|part| !part.starts_with("For more information"))
        .map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "))
        .filter(|part| !part.is_empty());
    let line = parts.collect::<Vec<_>>().join("; ");
    line.strip_prefix("error: ").unwrap_or(&line).replacen("; Usage:", "; usage:", 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_nf_without_arguments_gets_one_line_that_says_what_is_missing() {
        let error = PlainArgs::try_parse_from(["some-nf"]).unwrap_err();
        let line = one_line(&error);
        assert_eq!(line.lines().count(), 1);
        assert!(line.contains("--service <SERVICE>") && line.contains("usage: some-nf"), "{line}");
    }

    #[test]
    fn a_service_has_an_id_or_a_name() {
        let service =
            |text| PlainArgs::try_parse_from(["some-nf", "--service", text]).unwrap().nf.service;
        assert_eq!(service("65535"), ServiceRef::Id(65535));
        assert_eq!(service("firewall"), ServiceRef::Name("firewall".into()));
    }

    #[test]
    fn limits_and_core_are_read_and_what_is_none_is_one_line() {
        let parse = |option: &str, value: &str| {
            PlainArgs::try_parse_from(["nf", "--service", "3", option, value])
        };
        assert_eq!(
            parse("--packet-limit", "5000000000").unwrap().nf.packet_limit,
            Some(5_000_000_000)
        );
        assert_eq!(parse("--time-limit-s", "2.5").unwrap().nf.time_limit_s, Some(2.5));
        assert_eq!(parse("--core", "0").unwrap().nf.core, Some(0));
        let wrong = [
            ("--packet-limit", "0"),
            ("--packet-limit", "many"),
            ("--time-limit-s", "0"),
            ("--time-limit-s", "nan"),
            ("--time-limit-s", "1e10"),
            ("--core", "-1"),
            ("--core", "4294967296"),
        ];
        for (option, value) in wrong {
            let line = one_line(&parse(option, value).unwrap_err());
            assert!(line.lines().count() == 1 && line.contains(value), "{line}");
        }
    }

    #[test]
    fn a_service_is_all_that_an_nf_needs() {
        let args = PlainArgs::try_parse_from(["some-nf", "--service", "3"]).unwrap().nf;
        assert_eq!((args.service, args.no_wait), (ServiceRef::Id(3), false));
        assert_eq!((args.packet_limit, args.time_limit_s, args.core), (None, None, None));
        let args = PlainArgs::try_parse_from(["n", "--service", "3", "--socket", "/x"]).unwrap().nf;
        assert_eq!(args.socket, PathBuf::from("/x"));
    }
}
