//! `lab-xdp-source send|drop|environment`: frames at the kernel's own speed, and an end that takes them.
#![forbid(unsafe_code)]

use std::io;
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser, Subcommand};
use millrace_benches::environment;
use millrace_benches::traffic::signals::{Asked, Signals};
use millrace_benches::traffic::xdp_program::{Drain, MAX_FRAME_BYTES, Source};
use nflib::testing::FrameBuilder;

/// Least UDP frame without the frame check sequence.
const MIN_FRAME_BYTES: u16 = 60;
/// Ethernet, IPv4 and UDP headers.
const HEADER_BYTES: u16 = 14 + 20 + 8;
/// How long `drop` sleeps between two looks at its signals; a signal ends it at once.
const DOZE: Duration = Duration::from_secs(1);

/// Copies of one UDP frame, made by the kernel and redirected out of an interface (BPF_PROG_TEST_RUN
/// with live frames): millions a second. The other end of a veth must have an XDP program or GRO on.
///
/// Needs root (CAP_BPF, CAP_NET_ADMIN). SIGTERM ends it in good order.
#[derive(Parser)]
#[command(name = "lab-xdp-source", version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Send for some time; one line of JSON at the end says how much that was
    Send(SendArgs),
    /// Drop what an interface receives, in its driver, until SIGTERM
    Drop(DropArgs),
    /// Print the machine, with the time a cache line takes from core to core at this moment
    Environment,
}

#[derive(Args)]
struct SendArgs {
    /// Interface to send out of
    #[arg(long)]
    interface: String,
    /// How long
    #[arg(long, default_value = "1", value_parser = parse_seconds)]
    seconds: f64,
    /// Length of a frame, without the frame check sequence
    #[arg(long, default_value_t = MIN_FRAME_BYTES,
          value_parser = clap::value_parser!(u16).range(i64::from(MIN_FRAME_BYTES)..=i64::from(MAX_FRAME_BYTES)))]
    packet_bytes: u16,
    /// UDP ports and the last byte of the addresses follow from it
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Args)]
struct DropArgs {
    /// Interface whose packets to drop
    #[arg(long)]
    interface: String,
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds: Option<f64> = text.parse().ok();
    seconds
        .filter(|seconds| (0.01..=3600.0).contains(seconds))
        .ok_or_else(|| "a number of seconds from 0.01 to 3600 is wanted".to_owned())
}

/// A frame to an Ethernet address that no kernel has.
fn frame(packet_bytes: u16, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut host = || Ipv4Addr::new(10, 78, 0, random.u8(1..=254));
    let (src, dst) = (host(), host());
    FrameBuilder::new()
        .macs([0x02, 0x6d, 0x72, 0x6c, 0xfd, 0x01], [0x02, 0x6d, 0x72, 0x6c, 0xfd, 0xfe])
        .ip(src.into(), dst.into())
        .udp(random.u16(1024..), random.u16(1024..))
        .payload(&vec![0xa5; usize::from(packet_bytes - HEADER_BYTES)])
        .build()
}

fn index_of(interface: &str) -> Result<u32> {
    nix::net::if_::if_nametoindex(interface)
        .with_context(|| format!("no interface {interface} in this network namespace"))
}

/// The error of bpf(2), with what to do about it.
fn explain(error: io::Error) -> anyhow::Error {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            anyhow::anyhow!("bpf(2) needs root (CAP_BPF and CAP_NET_ADMIN); run it with sudo")
        }
        Some(libc::EINVAL) => {
            anyhow::anyhow!("this kernel refuses (EINVAL): live frames need Linux 5.18 or later")
        }
        Some(libc::EBUSY | libc::EEXIST) => {
            anyhow::anyhow!("another XDP program is attached there; remove it first")
        }
        _ => anyhow::Error::new(error).context("bpf(2)"),
    }
}

#[allow(clippy::print_stdout)] // the result
fn print_json(line: &serde_json::Value) {
    println!("{line}");
}

fn send(args: &SendArgs, signals: &Signals) -> Result<()> {
    let ifindex = index_of(&args.interface)?;
    let source = Source::new(ifindex, frame(args.packet_bytes, args.seed)).map_err(explain)?;
    let stopped = AtomicBool::new(false);
    let stop = || {
        let asked = matches!(signals.next(), Ok(Some(Asked::Stop)) | Err(_));
        stopped.fetch_or(asked, Ordering::Relaxed) || asked
    };
    let made = source.run(Duration::from_secs_f64(args.seconds), stop).map_err(explain)?;
    let seconds = made.time.as_secs_f64();
    if made.pkts == 0 {
        bail!("told to stop before the first frame");
    }
    print_json(&serde_json::json!({
        "interface": args.interface, "packets": made.pkts, "packet_bytes": args.packet_bytes,
        "seconds": (seconds * 1e3).round() / 1e3, "pps": (made.pkts as f64 / seconds).round() as u64,
    }));
    Ok(())
}

fn drop_all(args: &DropArgs, signals: &Signals) -> Result<()> {
    let _drain = Drain::attach(index_of(&args.interface)?).map_err(explain)?;
    print_json(&serde_json::json!({ "dropping": args.interface }));
    loop {
        signals.sleep(DOZE)?;
        if signals.next()? == Some(Asked::Stop) {
            return Ok(());
        }
    }
}

fn main() -> ExitCode {
    let cli = match nflib::args::parse::<Cli>() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let done = Signals::take_over().context("signals").and_then(|signals| match cli.command {
        Command::Send(args) => send(&args, &signals),
        Command::Drop(args) => drop_all(&args, &signals),
        Command::Environment => {
            print_json(&environment::describe());
            Ok(())
        }
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-xdp-source: {error:#}");
            ExitCode::FAILURE
        }
    }
}
