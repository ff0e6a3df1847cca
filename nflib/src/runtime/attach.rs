//! Finding the manager and joining it.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::RunError;
use super::limits::Limits;
use crate::args::NfArgs;
use crate::control::{self, AttachRequest, Attached, ErrorCode, MAX_REPLY_BYTES, Reply, Request};
use crate::shm::{
    BlackBox, Channel, Doorbell, Doorbells, Marks, Region, RouteTable, SHORT_SLICE_NS, State,
    TapFile, ask_for_short_slices, register_for_global_barrier,
};

/// How long after a first look in vain a manager is looked for again; the pause doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
/// The longest such pause, and with it the longest that a manager is there and not noticed.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);
/// How long the socket may refuse before that is an error: a manager that is just starting makes the
/// socket first, and sets its group and mode then.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a manager may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A place in the manager.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) socket: UnixStream,
    pub(super) region: Arc<Region>,
    pub(super) channel: Channel,
    pub(super) routes: RouteTable,
    pub(super) bells: Arc<Doorbells>,
    pub(super) own_bell: Doorbell,
    pub(super) marks: Marks,
    pub(super) tap: Arc<TapFile>,
    pub(super) black_box: Arc<BlackBox>,
    /// Of each worker, or none.
    pub(super) alarms: Vec<OwnedFd>,
    pub(super) state: Option<State>,
    pub(super) terms: Attached,
}

/// Joins the manager; waits for one when none is there, unless `--no-wait`. `None` when `stop` was
/// set, or the time ran out, meanwhile.
pub(super) fn attach(
    request: &AttachRequest,
    args: &NfArgs,
    stop: &AtomicBool,
    limits: &Limits,
) -> Result<Option<Attachment>, RunError> {
    let mut told = false;
    let mut refused_since = None;
    let mut pause = FIRST_PAUSE;
    let mut wait = || {
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    };
    let time_is_over = || limits.time_left().is_some_and(|left| left.is_zero());
    while !stop.load(Ordering::Relaxed) && !time_is_over() {
        match try_attach(request, args) {
            Err(RunError::Connect { .. })
                if !args.no_wait
                    && refused_since.get_or_insert_with(Instant::now).elapsed()
                        < REFUSAL_TIMEOUT =>
            {
                wait();
            }
            Err(error) if error.is_absence() && !args.no_wait => {
                refused_since = None;
                if !told {
                    tracing::warn!("{error}; waiting for it");
                    told = true;
                }
                wait();
            }
            result => return result.map(Some),
        }
    }
    Ok(None)
}

fn try_attach(request: &AttachRequest, args: &NfArgs) -> Result<Attachment, RunError> {
    let socket = connect(&args.socket)?;
    socket.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(RunError::Socket)?;
    socket.set_write_timeout(Some(ANSWER_TIMEOUT)).map_err(RunError::Socket)?;
    control::send(&socket, &Request::Attach(request.clone()), &[])?;
    let (reply, fds) = control::recv(&socket, MAX_REPLY_BYTES)?;
    let terms = match reply {
        Reply::Attached(terms) => terms,
        // A manager on its way out is as good as absent.
        Reply::Stop { .. } => return Err(RunError::NoManager { socket: args.socket.clone() }),
        Reply::Error(error) if error.code == ErrorCode::Stopping => {
            return Err(RunError::NoManager { socket: args.socket.clone() });
        }
        Reply::Error(error) => return Err(RunError::Refused(error)),
        _ => return Err(control::ControlError::Unexpected("attach").into()),
    };
    if terms.jump_services.len() != request.jumps_to.len() {
        return Err(RunError::Terms(format!(
            "{} ids for {} services",
            terms.jump_services.len(),
            request.jumps_to.len()
        )));
    }
    map_all(socket, fds, terms)
}

/// Maps what came along with the terms.
fn map_all(
    socket: UnixStream,
    mut fds: Vec<OwnedFd>,
    terms: Attached,
) -> Result<Attachment, RunError> {
    let state = match terms.state {
        None => None,
        Some(of) => {
            let fd = fds.pop().ok_or(RunError::Descriptors { found: 0 })?;
            Some(State::from_fd(&fd, of.words, of.generation).map_err(RunError::State)?)
        }
    };
    let alarms = fds.split_off(fds.len().min(7));
    let [region, channel, routes, bells, marks, tap, black_box] =
        <[OwnedFd; 7]>::try_from(fds).map_err(|fds| RunError::Descriptors { found: fds.len() })?;
    if !alarms.is_empty() && alarms.len() != usize::from(terms.channel.workers) {
        return Err(RunError::Terms(format!(
            "{} alarms for {} workers",
            alarms.len(),
            terms.channel.workers
        )));
    }
    if terms.channel.buffers != terms.region.buffers {
        return Err(RunError::Terms(format!(
            "a hold map for {} buffers with a region of {}",
            terms.channel.buffers, terms.region.buffers
        )));
    }
    let region = match (terms.read_only, terms.own_region) {
        (true, _) => Region::from_fd_read_only(region, terms.region)?,
        (_, true) => Region::from_fd_sparse(region, terms.region)?,
        _ => Region::from_fd(region, terms.region)?,
    };
    let region = Arc::new(region);
    let channel = Channel::from_fd(channel, terms.channel)?;
    let routes = RouteTable::from_fd(&routes).map_err(RunError::Routes)?;
    let bells = Arc::new(Doorbells::from_fd(bells).map_err(RunError::Doorbells)?);
    let marks = Marks::from_fd(&marks, terms.region.buffers).map_err(RunError::Observation)?;
    let tap = TapFile::from_fd(tap).map_err(RunError::Observation)?;
    let black_box = BlackBox::from_fd(black_box, terms.recorder).map_err(RunError::Observation)?;
    black_box.take_last_words();
    let black_box = Arc::new(black_box);
    let own_bell = bells.bell(terms.nf).ok_or_else(|| {
        RunError::Terms(format!("number {} with {} doorbells", terms.nf, bells.len()))
    })?;
    // Before the first edge comes, and with it somebody to wake.
    if !register_for_global_barrier() {
        tracing::debug!("no membarrier(2); sleeps are bounded by 1 ms instead");
    }
    // As the workers do, with whom it may share a core in turns.
    if let Err(error) = ask_for_short_slices(SHORT_SLICE_NS) {
        tracing::debug!(%error, "the scheduler is not asked for short slices");
    }
    socket.set_nonblocking(true).map_err(RunError::Socket)?;
    Ok(Attachment {
        socket,
        region,
        channel,
        routes,
        bells,
        own_bell,
        marks,
        tap,
        black_box,
        alarms,
        state,
        terms,
    })
}

fn connect(path: &Path) -> Result<UnixStream, RunError> {
    UnixStream::connect(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            RunError::NoManager { socket: path.to_owned() }
        }
        _ => RunError::Connect { socket: path.to_owned(), source },
    })
}
