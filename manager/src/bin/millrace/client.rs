//! The manager at the other end of its control socket: one question, one answer.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nflib::control::{
    self, Applied, ControlError, Edit, ErrorReply, MAX_REPLY_BYTES, MAX_REQUEST_BYTES, Reply,
    Request, Status,
};
use thiserror::Error;

/// How long the manager may take to say what it knows; it takes milliseconds.
pub const LOOK_LIMIT: Duration = Duration::from_secs(10);
/// How long it may take to make a change: packets of flows that move wait until their path is free.
pub const CHANGE_LIMIT: Duration = Duration::from_secs(120);

/// Why there is no answer. One line each.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nothing listens there.
    #[error("no manager at {0}: start millrace-manager, or name its socket with --socket")]
    Absent(PathBuf),
    /// The socket is there, and not for this user.
    #[error("{0}: permission denied: join the socket's group (manager.socket_group), or use root")]
    Forbidden(PathBuf),
    /// The manager is there and says nothing.
    #[error("the manager at {path} has not answered for {} s", .limit.as_secs_f64())]
    Silent {
        /// The path tried.
        path: PathBuf,
        /// How long.
        limit: Duration,
    },
    /// The manager hung up.
    #[error("the manager at {0} closed the connection: it stopped, or restarts")]
    Closed(PathBuf),
    /// What it said is no answer of this release.
    #[error(
        "what answers at {path} is not a manager of this release ({}): {reason}",
        env!("CARGO_PKG_VERSION")
    )]
    Foreign {
        /// The path tried.
        path: PathBuf,
        /// What was wrong with the answer.
        reason: ControlError,
    },
    /// The question is longer than the manager accepts.
    #[error(
        "the request has {len_bytes} bytes, and the manager accepts {MAX_REQUEST_BYTES}: {advice}"
    )]
    TooLong {
        /// Its length.
        len_bytes: usize,
        /// How it can be shortened.
        advice: &'static str,
    },
    /// The manager said no.
    #[error("{}", super::table::clean(&.0.message))]
    Refused(ErrorReply),
    /// Anything else that happens to sockets.
    #[error("{0}: {1}")]
    Io(PathBuf, io::Error),
}

/// A connection to a manager.
pub struct Client {
    socket: UnixStream,
    path: PathBuf,
}

impl Client {
    /// Connects to the manager whose socket is at `path`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        match UnixStream::connect(path) {
            Ok(socket) => Ok(Self { socket, path: path.to_owned() }),
            Err(error) => Err(io_error(path, error, Duration::ZERO)),
        }
    }

    /// Asks, and waits at most `limit` between the bytes of the answer.
    ///
    /// # Errors
    /// [`ClientError`]; after one the connection is of no more use.
    pub fn ask(&self, request: &Request, limit: Duration) -> Result<Reply, ClientError> {
        Ok(self.ask_for_fds(request, limit)?.0)
    }

    /// The same, and the descriptors that come with the answer.
    ///
    /// # Errors
    /// [`ClientError`]; after one the connection is of no more use.
    pub fn ask_for_fds(
        &self,
        request: &Request,
        limit: Duration,
    ) -> Result<(Reply, Vec<OwnedFd>), ClientError> {
        let fail = |error| self.error(error, limit);
        let io = |error| io_error(&self.path, error, limit);
        let len_bytes = control::encode(request).map_err(fail)?.len() - 4;
        if len_bytes > MAX_REQUEST_BYTES {
            return Err(ClientError::TooLong { len_bytes, advice: advice(request) });
        }
        self.socket.set_read_timeout(Some(limit)).map_err(io)?;
        self.socket.set_write_timeout(Some(limit)).map_err(io)?;
        control::send(&self.socket, request, &[]).map_err(fail)?;
        match control::recv(&self.socket, MAX_REPLY_BYTES).map_err(fail)? {
            (Reply::Error(error), _) => Err(ClientError::Refused(error)),
            answer => Ok(answer),
        }
    }

    /// A further answer to what was asked last, waiting at most `limit` between its bytes.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn next_reply(&self, limit: Duration) -> Result<Reply, ClientError> {
        let io = |error| io_error(&self.path, error, limit);
        // Zero would be no limit.
        let timeout = limit.max(Duration::from_millis(1));
        self.socket.set_read_timeout(Some(timeout)).map_err(io)?;
        let answer = control::recv(&self.socket, MAX_REPLY_BYTES);
        Ok(answer.map_err(|error| self.error(error, limit))?.0)
    }

    /// An answer that does not fit the question.
    pub fn unexpected(&self, question: &'static str) -> ClientError {
        ClientError::Foreign { path: self.path.clone(), reason: ControlError::Unexpected(question) }
    }

    /// Everything there is to see, waiting at most `limit`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn status_within(&self, limit: Duration) -> Result<Status, ClientError> {
        match self.ask(&Request::Status, limit)? {
            Reply::Status(status) => Ok(*status),
            _ => Err(self.unexpected("status")),
        }
    }

    /// Everything there is to see.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn status(&self) -> Result<Status, ClientError> {
        self.status_within(LOOK_LIMIT)
    }

    /// Makes some changes: all, or none.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn edit(&self, edits: Vec<Edit>) -> Result<Applied, ClientError> {
        self.change(&Request::Edit { edits })
    }

    /// A request that is answered by what changed.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn change(&self, request: &Request) -> Result<Applied, ClientError> {
        self.change_within(request, CHANGE_LIMIT)
    }

    /// The same, waiting at most `limit`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn change_within(
        &self,
        request: &Request,
        limit: Duration,
    ) -> Result<Applied, ClientError> {
        match self.ask(request, limit)? {
            Reply::Applied(applied) => Ok(applied),
            _ => Err(self.unexpected("a change")),
        }
    }

    fn error(&self, error: ControlError, limit: Duration) -> ClientError {
        match error {
            ControlError::Io(error) => io_error(&self.path, error, limit),
            ControlError::Closed => ClientError::Closed(self.path.clone()),
            ControlError::Refused(error) => ClientError::Refused(error),
            reason => ClientError::Foreign { path: self.path.clone(), reason },
        }
    }
}

fn io_error(path: &Path, error: io::Error, limit: Duration) -> ClientError {
    let path = path.to_owned();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::Absent(path),
        io::ErrorKind::PermissionDenied => ClientError::Forbidden(path),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientError::Silent { path, limit },
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ClientError::Closed(path),
        _ => ClientError::Io(path, error),
    }
}

fn advice(request: &Request) -> &'static str {
    match request {
        Request::Apply { .. } => "shorten the file, or add its rules by `millrace rule add`",
        Request::Explain { .. } => "give a shorter frame",
        Request::Call { .. } => "give a shorter payload",
        Request::Capture(_) => "give a shorter filter, or fewer places",
        _ => "ask for less at once",
    }
}
