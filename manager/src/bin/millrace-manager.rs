//! The manager: owns the ports, moves packets between them and the NFs.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;
use millrace::config::Config;
use millrace::fabric::Fabric;
use millrace::journal::Found;
use millrace::report;
use millrace::server::{ControlSocket, Server, block_signals};
use millrace::supervisor::{CoreMap, exec};
use nflib::args::LOG_FORMAT_VARIABLE;
use nflib::log::LogFormat;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signalfd::SignalFd;

/// Owns the ports and moves packets between them and the network functions.
#[derive(Parser)]
#[command(name = "millrace-manager", version)]
struct Args {
    /// The configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Read and check the configuration, start nothing.
    #[arg(long)]
    check: bool,
    /// Take an interface even if it carries the default route.
    #[arg(long)]
    force: bool,
    /// What to log: error, warn, info, debug or trace.
    #[arg(long, default_value = "info", env = "MILLRACE_LOG")]
    log: String,
    /// How lines of the log are written.
    #[arg(
        long,
        value_name = "FORMAT",
        value_enum,
        default_value_t,
        env = LOG_FORMAT_VARIABLE
    )]
    log_format: LogFormat,
    /// Where spans of requests and changes are sent: an OpenTelemetry collector that speaks OTLP over
    /// HTTP, `http://127.0.0.1:4318`.
    #[cfg(feature = "otel")]
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    otlp_endpoint: Option<String>,
}

fn main() -> ExitCode {
    if let Some(code) = exec::run_if_asked() {
        return code;
    }
    let args = Args::parse();
    // Before any other thread is there: they shall all have its signals blocked.
    let signals = match block_signals() {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("millrace-manager: {error}");
            return ExitCode::FAILURE;
        }
    };
    let _telemetry = match start_log(&args) {
        Ok(telemetry) => telemetry,
        Err(error) => {
            eprintln!("millrace-manager: {error}");
            return ExitCode::from(2);
        }
    };
    match run(&args, signals) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("millrace-manager: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Starts the log, and with it what is sent elsewhere, for as long as the result lives.
#[cfg(feature = "otel")]
fn start_log(args: &Args) -> anyhow::Result<Option<millrace::telemetry::Telemetry>> {
    let telemetry = args.otlp_endpoint.as_deref().map(millrace::telemetry::start).transpose()?;
    let (telemetry, listener) = telemetry.unzip();
    nflib::log::init_with(&args.log, args.log_format, listener)?;
    Ok(telemetry)
}

/// Starts the log.
#[cfg(not(feature = "otel"))]
fn start_log(args: &Args) -> anyhow::Result<()> {
    Ok(nflib::log::init(&args.log, args.log_format)?)
}

/// Allows as many open files as may be: an NF takes three, an edge between two another one, and the
/// limit of a login is for programs that use select(2).
fn raise_file_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%error, soft, "the limit of open files cannot be raised");
    }
}

fn run(args: &Args, signals: SignalFd) -> anyhow::Result<()> {
    let config = Config::load(&args.config).context("configuration")?;
    if args.check {
        report::config_summary(&config);
        return Ok(());
    }
    raise_file_limit();
    let cores = CoreMap::of_this_thread();
    // The socket first: a second manager must not touch the first one's ports.
    let socket = ControlSocket::bind(&config.manager)?;
    let file = config.manager.journal.file(&config.manager.socket);
    let found = file.map(|(path, lasting)| Found::read(&path, lasting, &config)).transpose()?;
    let fabric = Fabric::start(&config, args.force)?;
    nflib::shm::replace_lost_pages(fabric.region()).context("SIGBUS")?;
    report::started(&config, &fabric);
    let mut server = Server::new(socket, config, fabric, signals, cores)?;
    if let Some(found) = found {
        server = server.with_journal(found.begin()?)?;
    }
    // Dead NFs' buffers wait for this thread, on a machine whose NFs may want every core.
    if let Err(error) = nflib::shm::ask_for_short_slices(nflib::shm::SHORT_SLICE_NS) {
        tracing::debug!(%error, "the control thread waits for a core like any other");
    }
    let last = server.run()?;
    report::final_summary(&last);
    anyhow::ensure!(last.accounting.balanced, "the books do not balance: {:?}", last.accounting);
    Ok(())
}
