//! Running an NF: attach, process until told to stop, leave in good order.
//!
//! ```text
//! attach ─► setup ─► turns … ─► detach ─► last turns ─► shutdown ─► held packets dropped ─► exit
//!    ▲                  │ manager vanished
//!    └──────────────────┘
//! ```
#![forbid(unsafe_code)]

mod affinity;
mod attach;
mod effort;
pub(crate) mod inputs;
mod limits;
pub(crate) mod lookout;
mod mailbox;
pub(crate) mod marks;
pub(crate) mod outputs;
pub(crate) mod passage;
mod stock;
mod turns;

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;

use thiserror::Error;

pub use affinity::core_list;

use crate::args::{self, NfArgs, PlainArgs};
use crate::control::{AttachRequest, ControlError, ErrorReply};
use crate::log::LogError;
use crate::nf::{NetworkFunction, NfError};
use crate::shm::{
    ChannelError, Inherited, RegionError, RingError, catch_stop_signals, leave_last_words,
};
use attach::attach;
use limits::Limits;
use turns::{Ending, Turns};

/// Why an NF could not run, or go on running; one clear line each.
#[derive(Debug, Error)]
pub enum RunError {
    /// Nobody listens.
    #[error("no manager listens on {}; start millrace-manager or name its socket with --socket", socket.display())]
    NoManager {
        /// Where.
        socket: PathBuf,
    },
    /// The socket is there and cannot be used.
    #[error("{}: {source}; the socket's group may use it, so be a member or name another with --socket", socket.display())]
    Connect {
        /// Where.
        socket: PathBuf,
        /// The error of `connect(2)`.
        source: io::Error,
    },
    /// The socket failed.
    #[error("control socket: {0}")]
    Socket(io::Error),
    /// The conversation failed.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The manager said no, and why.
    #[error("{0}")]
    Refused(ErrorReply),
    /// What is to be mapped did not come along.
    #[error(
        "the manager sent {found} descriptors, expected 7 (region, channel, routes, doorbells, marks, event \
         ring, black box); use one release"
    )]
    Descriptors {
        /// How many came.
        found: usize,
    },
    /// The region cannot be mapped.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// The channel cannot be mapped.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The manager's terms contradict themselves.
    #[error("the manager offers {0}; use one release")]
    Terms(String),
    /// The route table cannot be mapped.
    #[error("route table: {0}")]
    Routes(io::Error),
    /// The doorbells cannot be mapped.
    #[error("doorbells: {0}")]
    Doorbells(io::Error),
    /// The table of marks, the event ring or the black box cannot be mapped.
    #[error("observation: {0}")]
    Observation(io::Error),
    /// The state region cannot be mapped.
    #[error("state region: {0}; use one release")]
    State(io::Error),
    /// The manager announced a ring to or from another NF that is none.
    #[error("edge between this NF and NF {nf}: {why}")]
    Edge {
        /// The other NF's number.
        nf: u16,
        /// What was wrong.
        why: String,
    },
    /// The core cannot be had.
    #[error("core {core} cannot be used: {source}; this process may use {usable}")]
    Core {
        /// Which.
        core: u32,
        /// The error of `sched_setaffinity(2)`.
        source: io::Error,
        /// The cores that can be had.
        usable: String,
    },
    /// The manager wrote nonsense into a ring.
    #[error("the manager broke a ring: {0}")]
    Ring(#[from] RingError),
    /// The manager went away.
    #[error("the manager went away")]
    ManagerGone,
    /// The NF refused to start.
    #[error(transparent)]
    Nf(#[from] NfError),
    /// The log filter cannot be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Signals cannot be caught.
    #[error("signal handlers: {0}")]
    Signals(io::Error),
}

impl RunError {
    /// True when waiting may help.
    fn is_absence(&self) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, TimedOut, WouldBlock};
        match self {
            Self::NoManager { .. } | Self::ManagerGone | Self::Control(ControlError::Closed) => {
                true
            }
            // One that died before it answered, or has its socket and is not done starting.
            Self::Control(ControlError::Io(error)) => {
                matches!(error.kind(), BrokenPipe | ConnectionReset | TimedOut | WouldBlock)
            }
            _ => false,
        }
    }
}

/// The whole of an NF program that has no arguments of its own: parses the command line, attaches,
/// runs until SIGINT, SIGTERM or the manager's word, and says what went wrong in one line.
///
/// ```no_run
/// use nflib::{Action, Context, NetworkFunction, Packet};
///
/// struct Discard;
///
/// impl NetworkFunction for Discard {
///     fn process(&mut self, _: &mut Packet<'_>, _: &mut Context<'_>) -> Action {
///         Action::Drop
///     }
/// }
///
/// fn main() -> std::process::ExitCode {
///     nflib::run(Discard)
/// }
/// ```
pub fn run(nf: impl NetworkFunction) -> ExitCode {
    match args::parse::<PlainArgs>() {
        Ok(args) => run_as(&program_name(), nf, &args.nf),
        Err(code) => code,
    }
}

/// As [`run`], for a program that has parsed [`NfArgs`] itself. `name` is what the manager shows.
pub fn run_as(name: &str, nf: impl NetworkFunction, args: &NfArgs) -> ExitCode {
    let done = start(name, nf, args);
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start(name: &str, nf: impl NetworkFunction, args: &NfArgs) -> Result<(), RunError> {
    crate::log::init(&args.log, args.log_format)?;
    let stop = catch_stop_signals().map_err(RunError::Signals)?;
    leave_last_words().map_err(RunError::Signals)?;
    run_until(name, nf, args, stop)
}

/// Runs an NF until `stop` is set, the manager says so, or the NF asks for it. When the manager
/// vanishes, waits for a new one, unless `--no-wait`. Leaves at the limits of the arguments, too.
///
/// # Errors
/// See [`RunError`].
pub fn run_until(
    name: &str,
    mut nf: impl NetworkFunction,
    args: &NfArgs,
    stop: &AtomicBool,
) -> Result<(), RunError> {
    let mut was_set_up = false;
    let result = run_attached(name, &mut nf, args, stop, &mut was_set_up);
    if was_set_up {
        nf.shutdown();
    }
    result
}

fn run_attached(
    name: &str,
    nf: &mut impl NetworkFunction,
    args: &NfArgs,
    stop: &AtomicBool,
    was_set_up: &mut bool,
) -> Result<(), RunError> {
    // Before the manager hears of an NF that cannot run.
    if let Some(core) = args.core {
        affinity::run_on(core)?;
        tracing::info!("running on core {core}");
    }
    let mut next_arrival = 1;
    let mut limits = Limits::new(args);
    loop {
        let stock_pkts = nf.stock_pkts();
        let request = AttachRequest {
            loan_pkts: if stock_pkts > 0 { stock_pkts } else { nf.loan_pkts() },
            keeps_stock: stock_pkts > 0,
            jumps_to: nf.jumps_to(),
            core: args.core,
            state: nf.state(),
            ..AttachRequest::new(name, args.service.clone())
        };
        let Some(attachment) = attach(&request, args, stop, &limits)? else { return Ok(()) };
        tracing::info!(
            "{name} attached as instance {} of service {} (manager {})",
            attachment.terms.instance,
            attachment.terms.service,
            attachment.terms.manager_version,
        );
        match attachment.state.as_ref().map(|state| (state.inherited(), state.generation())) {
            None | Some((Inherited::Nothing, _)) => {}
            Some((Inherited::Clean, generation)) => {
                tracing::info!("state inherited, generation {generation}");
            }
            Some((Inherited::Torn, generation)) => tracing::warn!(
                "state inherited, generation {generation}: the NF before died while it changed it"
            ),
        }
        limits.begin();
        if let Some(core) = attachment.terms.core.filter(|_| args.core.is_none()) {
            affinity::run_on(core)?;
            tracing::info!("running on core {core}");
        }
        let mut turns = Turns::new(nf, attachment, next_arrival, &limits)?;
        *was_set_up = true;
        match turns.run(stop)? {
            Ending::Stopped => return Ok(()),
            Ending::ManagerGone if args.no_wait => return Err(RunError::ManagerGone),
            Ending::ManagerGone => tracing::warn!("the manager went away; waiting for a new one"),
        }
        next_arrival = turns.next_arrival();
        limits.add_taken(turns.rx_pkts());
    }
}

/// The program's file name, for the manager to show.
fn program_name() -> String {
    std::env::args_os()
        .next()
        .as_deref()
        .map(Path::new)
        .and_then(Path::file_name)
        .map(OsStr::to_string_lossy)
        .map_or_else(|| "nf".to_owned(), std::borrow::Cow::into_owned)
}

#[cfg(all(test, not(loom)))]
mod tests;
