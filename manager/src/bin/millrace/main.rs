//! The `millrace` command: nouns and verbs over the manager's control socket.
//!
//! Each noun is a module of the same shape: its verbs for clap, and `run`, which gets them with the
//! [`Globals`]. A new noun is a file, a line in [`Noun`] and a line in [`run`].
#![forbid(unsafe_code)]

mod applied;
mod bench;
mod capture;
mod chain;
mod client;
mod crash;
mod doctor;
mod down;
mod drops;
mod explain;
mod extcap;
mod file;
mod flow;
mod frame;
mod generate;
mod latency;
mod nf;
mod port;
mod print;
mod replay;
mod rule;
mod service;
mod stats;
mod status;
mod table;
mod top;
mod trace;
mod up;
mod words;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use nflib::args::{SOCKET_VARIABLE, one_line};
use nflib::control::DEFAULT_SOCKET;

/// Looks at a running Millrace manager, and changes what it does
///
/// Exit codes: 0 done, 1 refused or failed, 2 the command line makes no sense.
#[derive(Parser)]
#[command(name = "millrace", version, arg_required_else_help = false, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    noun: Noun,
}

/// What every command takes.
#[derive(Args, Clone, Debug)]
struct Globals {
    /// The manager's control socket
    #[arg(long, global = true, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    #[arg(env = SOCKET_VARIABLE)]
    socket: PathBuf,
    /// Print JSON, one value a line, instead of text for people
    #[arg(long, global = true)]
    json: bool,
}

impl Globals {
    fn connect(&self) -> Result<client::Client, client::ClientError> {
        client::Client::connect(&self.socket)
    }
}

#[derive(Subcommand)]
enum Noun {
    /// Everything at a glance
    Status,
    /// Ports
    #[command(subcommand, arg_required_else_help = false)]
    Port(port::Verb),
    /// Network functions: the processes
    #[command(subcommand, arg_required_else_help = false)]
    Nf(nf::Verb),
    /// Services: kinds of NF, and how many instances run
    #[command(subcommand, arg_required_else_help = false)]
    Service(service::Verb),
    /// Service chains: which services packets pass, in which order
    #[command(subcommand, arg_required_else_help = false)]
    Chain(chain::Verb),
    /// Rules: which packets take which chain
    #[command(subcommand, arg_required_else_help = false)]
    Rule(rule::Verb),
    /// Flows: what is known of them, and why a packet goes where it goes
    #[command(subcommand, arg_required_else_help = false)]
    Flow(flow::Verb),
    /// Every dropped packet: place, reason, count
    Drops(drops::Options),
    /// Crashes: what is left of NFs that crashed
    #[command(subcommand, arg_required_else_help = false)]
    Crash(crash::Verb),
    /// Let an NF that crashed have its last packets again, offline
    Replay(replay::Options),
    /// Whether all is as it must be
    #[command(subcommand, arg_required_else_help = false)]
    Doctor(doctor::Verb),
    /// Packet traces: what single packets meet, and what is changed of them
    #[command(subcommand, arg_required_else_help = false)]
    Trace(trace::Verb),
    /// How long packets wait and take at each hop, and from port to port
    Latency,
    /// Rates of ports and NFs, measured over an interval, and every drop
    Stats(stats::Options),
    /// A live view of ports, NFs, chains, drops and cores
    Top(top::Options),
    /// Capture packets at ports, NFs, rings and where they are dropped
    Capture(capture::Options),
    /// For Wireshark: every port, ring and drop point in its list of interfaces
    Extcap(Box<extcap::Options>),
    /// Start a manager, and the NFs of its services
    Up(up::Options),
    /// Drain and end a manager, and the NFs it started
    Down(down::Options),
    /// Check a configuration file; needs no manager
    Check(file::CheckOptions),
    /// What a configuration file would change
    Diff(file::DiffOptions),
    /// Make what runs be what a configuration file says: all of it, or nothing
    Apply(file::ApplyOptions),
    /// Measure against others on this machine, by millrace-bench beside this program
    Bench(bench::Options),
    /// Print the completions of a shell
    Completions(generate::CompletionsOptions),
    /// Print the manual page, or write one per command
    Man(generate::ManOptions),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return explain(&error),
    };
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            // `millrace status | head` is no fault.
            let broken_pipe = error
                .downcast_ref::<std::io::Error>()
                .is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe);
            if broken_pipe {
                return ExitCode::SUCCESS;
            }
            eprintln!("millrace: {error:#}");
            if error.is::<print::Usage>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

/// What clap says: help and version as they are, everything else in one line.
fn explain(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // A closed pipe is no fault.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    eprintln!("millrace: {}", one_line(error));
    ExitCode::from(2)
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let globals = &cli.globals;
    match cli.noun {
        Noun::Status => status::run(globals)?,
        Noun::Port(verb) => port::run(globals, &verb)?,
        Noun::Nf(verb) => nf::run(globals, verb)?,
        Noun::Service(verb) => service::run(globals, verb)?,
        Noun::Chain(verb) => chain::run(globals, verb)?,
        Noun::Rule(verb) => rule::run(globals, verb)?,
        Noun::Flow(verb) => flow::run(globals, verb)?,
        Noun::Drops(options) => drops::run(globals, &options)?,
        Noun::Crash(verb) => crash::run(globals, &verb)?,
        Noun::Replay(options) => return replay::run(globals, &options),
        Noun::Doctor(verb) => doctor::run(globals, &verb)?,
        Noun::Trace(verb) => trace::run(globals, verb)?,
        Noun::Latency => latency::run(globals)?,
        Noun::Stats(options) => stats::run(globals, &options)?,
        Noun::Top(options) => return top::run(globals, &options),
        Noun::Capture(options) => return capture::run(globals, options),
        Noun::Extcap(options) => return extcap::run(globals, &options),
        Noun::Up(options) => up::run(globals, &options)?,
        Noun::Down(options) => return down::run(globals, &options),
        Noun::Check(options) => file::check(globals, &options)?,
        Noun::Diff(options) => file::diff(globals, &options)?,
        Noun::Apply(options) => file::apply(globals, &options)?,
        Noun::Bench(options) => bench::run(globals, &options)?,
        Noun::Completions(options) => generate::completions(&options)?,
        Noun::Man(options) => generate::man(&options)?,
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_has_no_contradictions() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_noun_without_a_verb_is_told_its_verbs_in_one_line() {
        let error = Cli::try_parse_from(["millrace", "chain"]).err().unwrap();
        let line = one_line(&error);
        assert_eq!(line.lines().count(), 1);
        assert!(line.contains("list, show, add, set, remove"), "{line}");
    }
}
