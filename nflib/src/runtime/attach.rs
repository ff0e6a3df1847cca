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
use crate::args::NfArgs;
use crate::control::{self, AttachRequest, Attached, ErrorCode, MAX_REPLY_BYTES, Reply, Request};
use crate::shm::{Channel, Region};

/// How often a manager that is not there is looked for.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
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
    pub(super) terms: Attached,
}

/// Joins the manager; waits for one when none is there, unless `--no-wait`. `None` when `stop` was
/// set meanwhile.
pub(super) fn attach(
    name: &str,
    args: &NfArgs,
    stop: &AtomicBool,
) -> Result<Option<Attachment>, RunError> {
    let mut told = false;
    let mut refused_since = None;
    while !stop.load(Ordering::Relaxed) {
        match try_attach(name, args) {
            Err(RunError::Connect { .. })
                if !args.no_wait
                    && refused_since.get_or_insert_with(Instant::now).elapsed()
                        < REFUSAL_TIMEOUT =>
            {
                std::thread::sleep(RETRY_INTERVAL);
            }
            Err(error) if error.is_absence() && !args.no_wait => {
                refused_since = None;
                if !told {
                    tracing::warn!("{error}; waiting for it");
                    told = true;
                }
                std::thread::sleep(RETRY_INTERVAL);
            }
            result => return result.map(Some),
        }
    }
    Ok(None)
}

fn try_attach(name: &str, args: &NfArgs) -> Result<Attachment, RunError> {
    let socket = connect(&args.socket)?;
    socket.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(RunError::Socket)?;
    socket.set_write_timeout(Some(ANSWER_TIMEOUT)).map_err(RunError::Socket)?;
    let request = Request::Attach(AttachRequest::new(name, args.service.clone()));
    control::send(&socket, &request, &[])?;
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
    let [region, channel] =
        <[OwnedFd; 2]>::try_from(fds).map_err(|fds| RunError::Descriptors { found: fds.len() })?;
    let region = Arc::new(Region::from_fd(region, terms.region)?);
    let channel = Channel::from_fd(channel, terms.channel)?;
    socket.set_nonblocking(true).map_err(RunError::Socket)?;
    Ok(Attachment { socket, region, channel, terms })
}

fn connect(path: &Path) -> Result<UnixStream, RunError> {
    UnixStream::connect(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            RunError::NoManager { socket: path.to_owned() }
        }
        _ => RunError::Connect { socket: path.to_owned(), source },
    })
}
