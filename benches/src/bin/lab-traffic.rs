//! `lab-traffic send|receive`: numbered traffic for labs, and what became of it.
#![forbid(unsafe_code)]

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use millrace_benches::traffic::flows::{Addresses, Kinds, MAX_FLOWS};
use millrace_benches::traffic::label::Kind;
use millrace_benches::traffic::receiver::{ReceiveOptions, receive};
use millrace_benches::traffic::sender::{SendOptions, Sent, send};
use millrace_benches::traffic::signals::Signals;
use nflib::headers::MacAddr;

/// Makes numbered traffic in a network namespace, and accounts for every packet in another.
///
/// Both print one JSON object at their end. SIGTERM ends both in good order.
#[derive(Parser)]
#[command(name = "lab-traffic", version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Send TCP segments to port 80 and UDP datagrams; SIGUSR1 begins the next phase
    Send(SendArgs),
    /// Receive them and say what was lost, out of order, altered, and which way it came
    Receive(ReceiveArgs),
}

#[derive(Clone, Copy, ValueEnum)]
enum KindArg {
    /// TCP to port 80
    Http,
    /// UDP to other ports
    Udp,
    /// Both, half of the flows each
    Mix,
}

impl From<KindArg> for Kinds {
    fn from(kind: KindArg) -> Self {
        match kind {
            KindArg::Http => Self::Only(Kind::Http),
            KindArg::Udp => Self::Only(Kind::Udp),
            KindArg::Mix => Self::Mix,
        }
    }
}

#[derive(Args)]
struct SendArgs {
    /// Interface to send on
    #[arg(long)]
    interface: String,
    /// Ethernet address to send to; one that no kernel has, or that kernel answers with resets
    #[arg(long, value_parser = parse_mac)]
    dst_mac: MacAddr,
    /// Ethernet address to send from
    #[arg(long, value_parser = parse_mac, default_value = "02:6d:72:6c:ff:01")]
    src_mac: MacAddr,
    /// Address to send from
    #[arg(long, default_value = "10.79.9.1")]
    from: Ipv4Addr,
    /// Addresses to send to: of HTTP flows, then of UDP flows; one for both
    #[arg(long, num_args = 1..=2, required = true)]
    to: Vec<Ipv4Addr>,
    /// Tells this run's packets from others
    #[arg(long, default_value_t = 1)]
    run_id: u64,
    /// How many flows
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_FLOWS)))]
    flows: u32,
    /// Which kinds of flow
    #[arg(long, value_enum, default_value = "mix")]
    kind: KindArg,
    /// Packets a second, all flows together
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    rate_pps: u64,
    /// How long; until SIGTERM when absent
    #[arg(long, value_parser = parse_seconds)]
    seconds: Option<f64>,
    /// For the order of flows and the lengths of packets
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// File for the count of each flow, which `receive --expect` reads; it appears at the end
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

#[derive(Args)]
struct ReceiveArgs {
    /// Interface to receive on
    #[arg(long)]
    interface: String,
    /// The run to account for; all else is ignored
    #[arg(long, default_value_t = 1)]
    run_id: u64,
    /// Kinds that belong here
    #[arg(long, value_enum, default_value = "mix")]
    kind: KindArg,
    /// The sender's report: from its appearance on, wait only for what is missing
    #[arg(long, value_name = "FILE")]
    expect: Option<PathBuf>,
    /// End when nothing came for so long (with --expect: after the report's appearance)
    #[arg(long, value_name = "SECONDS", default_value = "3", value_parser = parse_seconds)]
    until_idle: f64,
    /// End after so long whatever happens
    #[arg(long, value_parser = parse_seconds)]
    seconds: Option<f64>,
    /// Services that packets may meet, in order: 1,2; may be given again; any when absent
    #[arg(long, value_name = "IDS")]
    course: Vec<String>,
}

fn parse_mac(text: &str) -> Result<MacAddr, String> {
    let bytes: Vec<_> = text.split(':').map(|part| u8::from_str_radix(part, 16)).collect();
    let bytes: Result<Vec<_>, _> = bytes.into_iter().collect();
    let mac = bytes.ok().and_then(|bytes| MacAddr::try_from(bytes).ok());
    mac.ok_or_else(|| "six bytes in hexadecimal are wanted, as in 02:00:00:00:00:01".to_owned())
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds: Option<f64> = text.parse().ok();
    seconds
        .filter(|seconds| (0.001..=86_400.0).contains(seconds))
        .ok_or_else(|| "a number of seconds from 0.001 to 86400 is wanted".to_owned())
}

#[allow(clippy::print_stdout)] // the result
fn print_json(line: &impl serde::Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(line)?);
    Ok(())
}

fn run_send(args: SendArgs, signals: &Signals) -> Result<()> {
    let to_http = *args.to.first().context("--to names no address")?;
    let addresses = Addresses {
        src_mac: args.src_mac,
        dst_mac: args.dst_mac,
        src: args.from,
        to_http,
        to_udp: args.to.get(1).copied().unwrap_or(to_http),
    };
    let options = SendOptions {
        interface: args.interface,
        addresses,
        run_id: args.run_id,
        flows: args.flows,
        kinds: args.kind.into(),
        rate_pps: args.rate_pps,
        seconds: args.seconds,
        seed: args.seed,
        report: args.report,
    };
    // Sleeps are short; the usual slack would double them.
    nix::sys::prctl::set_timerslack(1000)?;
    let sent = send(&options, signals, |phase| {
        // Whoever asked for it can see from when on packets carry it.
        let _ = print_json(&serde_json::json!({ "phase": phase }));
    })?;
    print_json(&Sent { sent_by_flow: Vec::new(), kinds: String::new(), ..sent })
}

fn run_receive(args: ReceiveArgs, signals: &Signals) -> Result<()> {
    for course in &args.course {
        let is_course = course == "-" || course.split(',').all(|id| id.parse::<u16>().is_ok());
        ensure!(
            is_course,
            "--course {course}: service ids with commas between are wanted, as in 1,2"
        );
    }
    let options = ReceiveOptions {
        interface: args.interface,
        run_id: args.run_id,
        kinds: args.kind.into(),
        expect: args.expect,
        idle: Duration::from_secs_f64(args.until_idle),
        seconds: args.seconds,
        courses: args.course,
    };
    let received = receive(&options, signals, || {
        let _ = print_json(&serde_json::json!({ "listening": options.interface }));
    })?;
    print_json(&received)
}

fn main() -> ExitCode {
    let cli = match nflib::args::parse::<Cli>() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let done = Signals::take_over().context("signals").and_then(|signals| match cli.command {
        Command::Send(args) => run_send(args, &signals),
        Command::Receive(args) => run_receive(args, &signals),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-traffic: {error:#}");
            ExitCode::FAILURE
        }
    }
}
