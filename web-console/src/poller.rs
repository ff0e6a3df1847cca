//! The one who asks the manager: one request per interval, however many read the answer.
#![forbid(unsafe_code)]

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nflib::control::rates::Rates;
use nflib::control::{ControlError, Status, request_status};
use thiserror::Error;
use tokio::sync::watch;

use crate::reading::Reading;

/// How long the manager may take to answer; it takes microseconds.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// Why there is no status.
#[derive(Debug, Error)]
pub enum AwayError {
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
    /// What it said is no status of this release.
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
    #[error("the manager at {socket} refused: {source}")]
    Refused {
        /// The path tried.
        socket: PathBuf,
        /// What it said.
        source: ControlError,
    },
    /// Anything else that happens to sockets.
    #[error("{socket}: {source}")]
    Io {
        /// The path tried.
        socket: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// A status that cannot be shown.
    #[error("the manager's status cannot be written as JSON: {0}")]
    Unwritable(#[from] serde_json::Error),
}

impl AwayError {
    fn io(socket: &Path, source: io::Error) -> Self {
        let socket = socket.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Self::Absent { socket },
            io::ErrorKind::PermissionDenied => Self::Forbidden { socket },
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Silent { socket },
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::Closed { socket },
            _ => Self::Io { socket, source },
        }
    }

    fn control(socket: &Path, source: ControlError) -> Self {
        match source {
            ControlError::Io(source) => Self::io(socket, source),
            ControlError::Closed => Self::Closed { socket: socket.to_owned() },
            ControlError::Refused(_) => Self::Refused { socket: socket.to_owned(), source },
            _ => Self::Foreign { socket: socket.to_owned(), source },
        }
    }
}

/// Asks one manager for its status, and asks again.
#[derive(Debug)]
pub struct Poller {
    socket: PathBuf,
    interval: Duration,
    connection: Option<UnixStream>,
    before: Option<Status>,
}

impl Poller {
    /// A poller of the manager at `socket`; it connects when it first asks.
    #[must_use]
    pub fn new(socket: PathBuf, interval: Duration) -> Self {
        Self { socket, interval, connection: None, before: None }
    }

    /// Asks once; blocks for at most a few seconds while a manager is there and says nothing.
    pub fn read(&mut self) -> Reading {
        self.ask().and_then(|status| self.observe(status)).unwrap_or_else(|error| {
            self.before = None;
            Reading::away(&error.to_string(), self.interval)
        })
    }

    fn ask(&mut self) -> Result<Status, AwayError> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => connect(&self.socket).map_err(|error| AwayError::io(&self.socket, error))?,
        };
        let status =
            request_status(&connection).map_err(|error| AwayError::control(&self.socket, error))?;
        // Kept only after a whole answer: a late one would otherwise answer the next question.
        self.connection = Some(connection);
        Ok(status)
    }

    fn observe(&mut self, status: Status) -> Result<Reading, AwayError> {
        let rates = self.before.as_ref().and_then(|before| Rates::between(before, &status));
        let reading = Reading::up(&status, rates.as_ref(), self.interval)?;
        self.before = Some(status);
        Ok(reading)
    }

    /// Publishes one reading per interval until nobody can receive them any more.
    fn run(mut self, readings: &watch::Sender<Reading>) {
        let mut was_up = None;
        let mut next = Instant::now();
        while !readings.is_closed() {
            let reading = self.read();
            if was_up != Some(reading.is_up()) {
                was_up = Some(reading.is_up());
                self.log(&reading);
            }
            readings.send_replace(reading);
            // After a slow answer no request is made up for.
            next = Instant::now().max(next + self.interval);
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    }

    fn log(&self, reading: &Reading) {
        match &self.before {
            Some(status) => tracing::info!(
                version = status.version,
                pid = status.pid,
                "the manager at {} answers",
                self.socket.display()
            ),
            None => tracing::warn!("away: {}", String::from_utf8_lossy(&reading.body())),
        }
    }
}

fn connect(socket: &Path) -> io::Result<UnixStream> {
    let connection = UnixStream::connect(socket)?;
    connection.set_read_timeout(Some(ANSWER_LIMIT))?;
    connection.set_write_timeout(Some(ANSWER_LIMIT))?;
    Ok(connection)
}

/// Starts a poller on a thread of its own; it ends when the last receiver is dropped.
///
/// A thread, because a manager that hangs may block it, and must block nothing else.
///
/// # Errors
/// When no thread can be had.
pub fn spawn(poller: Poller) -> io::Result<watch::Receiver<Reading>> {
    let first = Reading::away("the manager has not been asked yet", poller.interval);
    let (sender, receiver) = watch::channel(first);
    std::thread::Builder::new().name("poller".to_owned()).spawn(move || poller.run(&sender))?;
    Ok(receiver)
}
