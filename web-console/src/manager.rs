//! The manager at the other end of its control socket: one question, one answer, on a connection of
//! its own; and how many may be under way at once.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nflib::control::{
    self, ControlError, ErrorReply, MAX_REPLY_BYTES, MAX_REQUEST_BYTES, Reply, Request,
};
use thiserror::Error;
use tokio::sync::Semaphore;

use crate::api::error::ApiError;

/// How long the manager may take to say what it knows; it takes milliseconds.
pub const LOOK_LIMIT: Duration = Duration::from_secs(10);
/// How long it may take to make a change: packets of flows that move wait until their path is free.
pub const CHANGE_LIMIT: Duration = Duration::from_secs(120);
/// Questions that may be with the manager at once, and as many changes beside them.
const AT_ONCE: usize = 4;
/// Questions a second that reach the manager: each takes its control thread's and its workers' time.
const LOOKS_PER_S: f64 = 20.0;
/// Censuses of all buffers a second: each worker pauses for one.
const CENSUSES_PER_S: f64 = 1.0;

/// Why there is no answer. One line each.
#[derive(Debug, Error)]
pub enum ManagerError {
    /// Nothing listens there.
    #[error("no manager at {socket}: start millrace-manager, or name its socket with --socket")]
    Absent {
        /// The path tried.
        socket: PathBuf,
    },
    /// The socket is there, and not for this user.
    #[error(
        "{socket}: permission denied: run millrace-web as a user of the socket's group \
         (manager.socket_group)"
    )]
    Forbidden {
        /// The path tried.
        socket: PathBuf,
    },
    /// The manager is there and says nothing.
    #[error("the manager at {socket} does not answer")]
    Silent {
        /// The path tried.
        socket: PathBuf,
    },
    /// The manager hung up.
    #[error("the manager at {socket} closed the connection: it stopped, or restarts")]
    Closed {
        /// The path tried.
        socket: PathBuf,
    },
    /// What it said is no answer of this release.
    #[error(
        "what answers at {socket} is not a manager of this release ({}): {source}",
        env!("CARGO_PKG_VERSION")
    )]
    Foreign {
        /// The path tried.
        socket: PathBuf,
        /// What was wrong with the answer.
        source: ControlError,
    },
    /// The manager said no.
    #[error("the manager at {socket} refused: {refusal}")]
    Refused {
        /// The path tried.
        socket: PathBuf,
        /// What it said.
        refusal: ErrorReply,
    },
    /// The question is longer than the manager accepts.
    #[error("a request of {len_bytes} bytes: the manager accepts {MAX_REQUEST_BYTES}")]
    TooLong {
        /// Its length.
        len_bytes: usize,
    },
    /// Anything else that happens to sockets.
    #[error("{socket}: {source}")]
    Io {
        /// The path tried.
        socket: PathBuf,
        /// What happened.
        source: io::Error,
    },
}

impl ManagerError {
    /// A socket failed.
    #[must_use]
    pub fn io(socket: &Path, source: io::Error) -> Self {
        let socket = socket.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Self::Absent { socket },
            io::ErrorKind::PermissionDenied => Self::Forbidden { socket },
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Silent { socket },
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::Closed { socket },
            _ => Self::Io { socket, source },
        }
    }

    /// A message could not be exchanged.
    #[must_use]
    pub fn control(socket: &Path, source: ControlError) -> Self {
        match source {
            ControlError::Io(source) => Self::io(socket, source),
            ControlError::Closed => Self::Closed { socket: socket.to_owned() },
            ControlError::Refused(refusal) => Self::Refused { socket: socket.to_owned(), refusal },
            _ => Self::Foreign { socket: socket.to_owned(), source },
        }
    }

    /// The word for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Silent { .. } => "manager_silent",
            Self::Foreign { .. } => "manager_version",
            Self::Refused { .. } => "manager_refused",
            _ => "manager_away",
        }
    }
}

/// Opens a connection on which nothing takes longer than `limit`.
///
/// # Errors
/// What the system says.
pub fn connect(socket: &Path, limit: Duration) -> io::Result<UnixStream> {
    let connection = UnixStream::connect(socket)?;
    connection.set_read_timeout(Some(limit))?;
    connection.set_write_timeout(Some(limit))?;
    Ok(connection)
}

/// Asks, blocking, on a connection of its own; descriptors may come with the answer.
///
/// # Errors
/// [`ManagerError`].
pub fn ask(
    socket: &Path,
    request: &Request,
    limit: Duration,
) -> Result<(Reply, Vec<OwnedFd>), ManagerError> {
    let failed = |error| ManagerError::control(socket, error);
    let len_bytes = control::encode(request).map_err(failed)?.len() - 4;
    if len_bytes > MAX_REQUEST_BYTES {
        return Err(ManagerError::TooLong { len_bytes });
    }
    let connection = connect(socket, limit).map_err(|error| ManagerError::io(socket, error))?;
    control::send(&connection, request, &[]).map_err(failed)?;
    match control::recv(&connection, MAX_REPLY_BYTES).map_err(failed)? {
        (Reply::Error(refusal), _) => {
            Err(ManagerError::Refused { socket: socket.to_owned(), refusal })
        }
        answer => Ok(answer),
    }
}

/// What a question costs the manager, and so how often it may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// Some time of its control thread.
    Look,
    /// A pause of every worker.
    Census,
    /// A change, which may take long.
    Change,
}

/// Asks the manager for whoever asks the console, few at once and not too often.
#[derive(Debug)]
pub struct Asker {
    socket: PathBuf,
    looks: Arc<Semaphore>,
    changes: Arc<Semaphore>,
    look_rate: Mutex<Bucket>,
    census_rate: Mutex<Bucket>,
}

impl Asker {
    /// One for the manager at `socket`.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            looks: Arc::new(Semaphore::new(AT_ONCE)),
            changes: Arc::new(Semaphore::new(AT_ONCE)),
            look_rate: Mutex::new(Bucket::new(LOOKS_PER_S, Instant::now())),
            census_rate: Mutex::new(Bucket::new(CENSUSES_PER_S, Instant::now())),
        }
    }

    /// Asks on a thread where it may block. A change that has begun is carried out also when nobody
    /// waits for its answer any more.
    ///
    /// # Errors
    /// What the manager refuses, or why it was not asked.
    pub async fn ask(
        &self,
        request: Request,
        cost: Cost,
        limit: Duration,
    ) -> Result<Reply, ApiError> {
        self.ask_for_files(request, cost, limit).await.map(|(reply, _)| reply)
    }

    /// The same, of what is answered with descriptors: pipes and files.
    ///
    /// # Errors
    /// As of [`ask`](Self::ask).
    pub async fn ask_for_files(
        &self,
        request: Request,
        cost: Cost,
        limit: Duration,
    ) -> Result<(Reply, Vec<OwnedFd>), ApiError> {
        let (semaphore, rate) = match cost {
            Cost::Look => (&self.looks, Some(&self.look_rate)),
            Cost::Census => (&self.looks, Some(&self.census_rate)),
            Cost::Change => (&self.changes, None),
        };
        let Ok(permit) = Arc::clone(semaphore).try_acquire_owned() else {
            let message = format!("{AT_ONCE} of these requests are with the manager: ask again");
            return Err(ApiError::busy(message));
        };
        if let Some(rate) = rate {
            let mut rate = rate.lock().unwrap_or_else(PoisonError::into_inner);
            if !rate.take(Instant::now()) {
                let message = format!(
                    "this question reaches the manager, at most {} times a second: ask again",
                    rate.per_s
                );
                return Err(ApiError::busy(message));
            }
        }
        let socket = self.socket.clone();
        let asked = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            ask(&socket, &request, limit)
        });
        match asked.await {
            Ok(answer) => Ok(answer?),
            Err(error) => Err(ApiError::away("console_fault", format!("not asked: {error}"))),
        }
    }
}

/// So many a second, and as many at once after a pause (at least one).
#[derive(Debug)]
struct Bucket {
    per_s: f64,
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn new(per_s: f64, now: Instant) -> Self {
        Self { per_s, tokens: per_s.max(1.0), at: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.tokens = (self.tokens + passed * self.per_s).min(self.per_s.max(1.0));
        let there = self.tokens >= 1.0;
        if there {
            self.tokens -= 1.0;
        }
        there
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_rate_and_no_more() {
        let start = Instant::now();
        let mut bucket = Bucket::new(20.0, start);
        let asked = (0..4000).map(|ms| start + Duration::from_millis(ms));
        let given = asked.filter(|&now| bucket.take(now)).count();
        // The first 20 at once, then 20 a second for 4 s.
        assert!((99..=100).contains(&given), "{given}");
    }

    #[test]
    fn a_request_that_the_manager_would_not_accept_is_not_sent() {
        let request = Request::Apply {
            path: String::new(),
            text: "x".repeat(MAX_REQUEST_BYTES),
            dry_run: true,
        };
        let error = ask(Path::new("/nonexistent"), &request, LOOK_LIMIT).unwrap_err();
        assert!(matches!(error, ManagerError::TooLong { .. }), "{error}");
    }

    #[test]
    fn a_socket_that_is_not_there_is_a_manager_that_is_away() {
        let error = ask(Path::new("/nonexistent"), &Request::Status, LOOK_LIMIT).unwrap_err();
        assert_eq!(error.code(), "manager_away");
        assert!(error.to_string().contains("start millrace-manager"), "{error}");
    }
}
