//! The command line.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout)] // `--help` is the program's output.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser};
use nflib::args::{LOG_FORMAT_VARIABLE, one_line};
use nflib::control::DEFAULT_SOCKET;
use nflib::log::LogFormat;

/// Shows a running Millrace manager in the browser.
#[derive(Clone, Debug, Parser)]
#[command(name = "millrace-web", version)]
pub struct Options {
    /// The manager's control socket.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET, env = "MILLRACE_SOCKET")]
    pub socket: PathBuf,
    /// Address and port to serve on; other than loopback only with --token-file. Port 0 takes a
    /// free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080", value_parser = address)]
    pub listen: SocketAddr,
    /// Let pages and programs change what runs.
    #[arg(long)]
    pub allow_changes: bool,
    /// Give packets out: captures, traces, and what crashed NFs had (--allow-changes does so too).
    #[arg(long)]
    pub allow_captures: bool,
    /// Let in only who has the token in this file (mode 0600).
    #[arg(long, value_name = "PATH")]
    pub token_file: Option<PathBuf>,
    /// A name that this console is reached by, beside localhost; may be given more than once.
    #[arg(long, value_name = "NAME")]
    pub host: Vec<String>,
    /// Serve over TLS, with this certificate chain (PEM).
    #[arg(long, value_name = "PATH", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key (PEM).
    #[arg(long, value_name = "PATH", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// How often the manager is asked and pages are updated, ms: 100 to 10000.
    #[arg(
        long,
        value_name = "MS",
        default_value_t = 1000,
        value_parser = clap::value_parser!(u64).range(100..=10_000)
    )]
    pub interval_ms: u64,
    /// What to log: error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", default_value = "info", env = "MILLRACE_LOG")]
    pub log: String,
    /// How lines of the log are written.
    #[arg(
        long,
        value_name = "FORMAT",
        value_enum,
        default_value_t,
        env = LOG_FORMAT_VARIABLE
    )]
    pub log_format: LogFormat,
}

impl Options {
    /// Whether packets are given out: whoever may run programs as the manager's user could read them anyway.
    #[must_use]
    pub fn may_capture(&self) -> bool {
        self.allow_captures || self.allow_changes
    }

    /// [`interval_ms`](Self::interval_ms) as a duration.
    #[must_use]
    pub fn interval(&self) -> Duration {
        Duration::from_millis(self.interval_ms)
    }
}

/// The program ends before it starts: help was asked for, or an option is wrong.
#[derive(Debug)]
pub struct Stop(clap::Error);

impl Stop {
    /// Prints help, or the one line that says what is wrong; returns the exit code.
    #[must_use]
    pub fn tell(&self) -> ExitCode {
        if self.0.use_stderr() {
            eprintln!("millrace-web: {}", self.line());
            return ExitCode::from(2);
        }
        print!("{}", self.0.render());
        ExitCode::SUCCESS
    }

    /// What is wrong, without the usage that clap adds.
    #[must_use]
    pub fn line(&self) -> String {
        one_line(&self.0)
    }
}

/// Reads the command line, the program's name first.
///
/// # Errors
/// [`Stop`] for `--help`, `--version` and whatever cannot be understood.
pub fn parse<I, T>(words: I) -> Result<Options, Stop>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let options = Options::try_parse_from(words).map_err(Stop)?;
    if !options.listen.ip().is_loopback() && options.token_file.is_none() {
        let message = "--listen: others than this machine are let in only with a token: add \
                       --token-file PATH (or listen on 127.0.0.1 or [::1], and reach it by ssh -L)";
        return Err(Stop(Options::command().error(ErrorKind::MissingRequiredArgument, message)));
    }
    Ok(options)
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "expected an address and a port, such as 127.0.0.1:8080 or [::1]:8080".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(words: &[&str]) -> String {
        let words = ["millrace-web"].iter().chain(words);
        parse(words).expect_err("these options are wrong").line()
    }

    #[test]
    fn without_options_it_serves_on_loopback_once_a_second() {
        let options = parse(["millrace-web"]).unwrap();
        assert_eq!(options.listen, "127.0.0.1:8080".parse().unwrap());
        assert_eq!(options.interval(), Duration::from_secs(1));
    }

    #[test]
    fn packets_are_given_out_only_when_asked_for_or_when_everything_is_allowed() {
        for (words, expected) in [
            (&["millrace-web"][..], false),
            (&["millrace-web", "--allow-captures"], true),
            (&["millrace-web", "--allow-changes"], true),
        ] {
            assert_eq!(parse(words).unwrap().may_capture(), expected, "{words:?}");
        }
    }

    #[test]
    fn an_address_that_others_can_reach_needs_a_token() {
        for address in ["0.0.0.0:8080", "[::]:8080", "192.0.2.1:80"] {
            let line = refused(&["--listen", address]);
            assert!(line.contains("only with a token"), "{line}");
            assert!(parse(["millrace-web", "--listen", address, "--token-file", "t"]).is_ok());
        }
    }

    #[test]
    fn a_certificate_without_its_key_is_refused() {
        assert!(refused(&["--tls-cert=c"]).contains("--tls-key"));
        assert!(refused(&["--tls-key=k"]).contains("--tls-cert"));
    }

    #[test]
    fn what_is_no_address_is_refused_with_an_example_of_one() {
        for address in ["8080", "localhost", "127.0.0.1", "127.0.0.1:99999"] {
            assert!(refused(&["--listen", address]).contains("127.0.0.1:8080"));
        }
        assert!(parse(["millrace-web", "--listen", "[::1]:0"]).is_ok());
    }

    #[test]
    fn an_interval_outside_its_range_is_refused() {
        for interval in ["99", "10001", "-1", "fast"] {
            refused(&[&format!("--interval-ms={interval}")]);
        }
    }

    #[test]
    fn an_unknown_option_is_one_line() {
        let line = refused(&["--liste=127.0.0.1:1"]);
        assert!(line.contains("--liste") && !line.contains('\n'), "{line}");
    }
}
