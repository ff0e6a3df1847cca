//! The control thread: one loop over the control socket, the NFs' processes and signals.
//!
//! Everything that may wait happens here and never in a worker. A client is not trusted: its
//! messages are bounded, it is never waited for longer than `REPLY_LIMIT`, and whatever is wrong
//! with it ends its connection and nothing else.
#![forbid(unsafe_code)]

use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nflib::control::{
    self, ControlError, ErrorCode, ErrorReply, FrameReader, MAX_REQUEST_BYTES, Reply, Request,
};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use thiserror::Error;

use crate::config::ManagerConfig;
use crate::fabric::{Fabric, FabricError};
use crate::poll_loop::Snapshot;
use crate::registry::{Peer, Registry};
use crate::status;

/// Connections at once; an NF takes one for as long as it lives.
const MAX_CONNECTIONS: usize = 4096;
/// How long a client that does not read may hold the control thread up.
const REPLY_LIMIT: Duration = Duration::from_millis(500);
/// Time between looks at the workers while they drain.
const DRAIN_LOOK_MS: u8 = 5;
/// Longest time between looks at what has no descriptor to wait for.
const HOUSEKEEPING_MS: u8 = 100;

/// Why the control socket cannot be used, or the manager had to stop.
#[derive(Debug, Error)]
pub enum ServerError {
    /// Another manager has it.
    #[error(
        "{socket}: another manager is listening here{pid}; stop it, or set manager.socket to another path"
    )]
    InUse {
        /// The path.
        socket: PathBuf,
        /// Its process as ` (pid N)`, where known.
        pid: String,
    },
    /// Something else is there, and is left alone.
    #[error("{0}: this is not a socket; set manager.socket to another path, or remove it")]
    NotASocket(PathBuf),
    /// The group does not exist.
    #[error("manager.socket_group: there is no group {0:?}")]
    NoGroup(String),
    /// The system said no.
    #[error("{socket}: {what}: {source}")]
    Socket {
        /// The path.
        socket: PathBuf,
        /// The call.
        what: &'static str,
        /// Its error.
        source: io::Error,
    },
    /// The data path failed.
    #[error(transparent)]
    Fabric(#[from] FabricError),
    /// Signals or poll failed.
    #[error("control thread: {what}: {source}")]
    Os {
        /// The call.
        what: &'static str,
        /// Its error.
        source: io::Error,
    },
}

/// The listening socket; its file goes with it.
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlSocket {
    /// Binds the socket with mode 0660, in the place of one that a dead manager left.
    ///
    /// # Errors
    /// [`ServerError::InUse`] when a manager answers there, and as the system says.
    pub fn bind(config: &ManagerConfig) -> Result<Self, ServerError> {
        let path = config.socket.clone();
        let fail = |what| {
            let socket = path.clone();
            move |source: io::Error| ServerError::Socket { socket, what, source }
        };
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        std::fs::create_dir_all(directory).map_err(fail("cannot make its directory"))?;
        // Two managers that start at once take turns here; the lock goes with this function.
        let lock = std::fs::File::open(directory).map_err(fail("cannot open its directory"))?;
        let _lock = Flock::lock(lock, FlockArg::LockExclusive)
            .map_err(|(_, errno)| fail("cannot lock its directory")(errno.into()))?;
        remove_stale(&path)?;
        let listener = UnixListener::bind(&path).map_err(fail("cannot listen"))?;
        let socket = Self { listener, path: path.clone() };
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o660))
            .map_err(fail("cannot set its mode"))?;
        if let Some(group) = &config.socket_group {
            let gid = group_id(group)?;
            std::os::unix::fs::chown(&path, None, Some(gid))
                .map_err(fail("cannot give it to its group"))?;
        }
        socket.listener.set_nonblocking(true).map_err(fail("cannot be made non-blocking"))?;
        Ok(socket)
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn remove_stale(path: &Path) -> Result<(), ServerError> {
    // connect(2) refuses a plain file just as a socket nobody listens on: ask before removing.
    let is_socket = |meta: std::fs::Metadata| meta.file_type().is_socket();
    if std::fs::symlink_metadata(path).is_ok_and(|meta| !is_socket(meta)) {
        return Err(ServerError::NotASocket(path.into()));
    }
    match UnixStream::connect(path) {
        Ok(other) => {
            let pid = getsockopt(&other, PeerCredentials)
                .map_or_else(|_| String::new(), |peer| format!(" (pid {})", peer.pid()));
            Err(ServerError::InUse { socket: path.into(), pid })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.raw_os_error() == Some(Errno::ECONNREFUSED as i32) => {
            std::fs::remove_file(path).map_err(|source| ServerError::Socket {
                socket: path.into(),
                what: "cannot remove what a dead manager left",
                source,
            })
        }
        Err(source) => Err(ServerError::Socket {
            socket: path.into(),
            what: "cannot be asked whether a manager listens",
            source,
        }),
    }
}

fn group_id(group: &str) -> Result<u32, ServerError> {
    if let Ok(gid) = group.parse() {
        return Ok(gid);
    }
    match nix::unistd::Group::from_name(group) {
        Ok(Some(found)) => Ok(found.gid.as_raw()),
        _ => Err(ServerError::NoGroup(group.to_owned())),
    }
}

struct Connection {
    stream: UnixStream,
    reader: FrameReader,
    /// The NF on this connection, once attached.
    instance: Option<u32>,
    closed: bool,
}

/// The control thread's state.
pub struct Server {
    socket: ControlSocket,
    fabric: Fabric,
    registry: Registry,
    connections: Vec<Connection>,
    signals: SignalFd,
    started: Instant,
    drain_limit: Duration,
}

/// Blocks SIGINT and SIGTERM in this thread and all it starts later, so that they arrive at
/// [`Server::run`] and nowhere else. To be called before any other thread exists.
///
/// # Errors
/// As the system says.
pub fn block_signals() -> Result<SignalFd, ServerError> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGINT);
    set.add(Signal::SIGTERM);
    set.thread_block()
        .and_then(|()| SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK))
        .map_err(|errno| ServerError::Os { what: "signalfd", source: errno.into() })
}

impl Server {
    /// A server over a running fabric.
    #[must_use]
    pub fn new(
        socket: ControlSocket,
        fabric: Fabric,
        signals: SignalFd,
        drain_limit: Duration,
    ) -> Self {
        Self {
            socket,
            fabric,
            registry: Registry::default(),
            connections: Vec::new(),
            signals,
            started: Instant::now(),
            drain_limit,
        }
    }

    /// Serves until SIGINT or SIGTERM, then drains. Returns the final status.
    ///
    /// # Errors
    /// [`ServerError`] when the data path fails.
    pub fn run(mut self) -> Result<control::Status, ServerError> {
        loop {
            self.serve(HOUSEKEEPING_MS)?;
            if let Ok(Some(signal)) = self.signals.read_signal() {
                tracing::info!(signal = signal.ssi_signo, "stopping: draining");
                return self.drain();
            }
        }
    }

    /// Stops receiving, lets what is inside come out, then tells the NFs to go.
    fn drain(mut self) -> Result<control::Status, ServerError> {
        self.fabric.drain(self.drain_limit);
        let asked = Instant::now();
        let mut told = false;
        while !self.fabric.stopped() {
            // What does not come out by itself is kept by an NF: it gives it up when told to stop.
            if !told && asked.elapsed() > self.drain_limit / 2 {
                self.tell_nfs_to_stop();
                told = true;
            }
            self.serve(DRAIN_LOOK_MS)?;
        }
        if !told {
            self.tell_nfs_to_stop();
        }
        Ok(status::take(&mut self.fabric, &self.registry, self.started)?)
    }

    fn tell_nfs_to_stop(&mut self) {
        for connection in self.connections.iter_mut().filter(|c| c.instance.is_some()) {
            let stop = Reply::Stop { reason: "the manager is stopping".to_owned() };
            connection.closed |= control::send(&connection.stream, &stop, &[]).is_err();
        }
    }

    /// One round: waits for something to happen, and sees to it.
    fn serve(&mut self, timeout_ms: u8) -> Result<(), ServerError> {
        let (accept, readable, dead) = self.wait(timeout_ms)?;
        for at in readable {
            self.read_from(at)?;
        }
        for instance in dead {
            self.end_nf(instance, "its process ended")?;
        }
        if accept {
            self.accept();
        }
        self.end_broken()?;
        self.sweep()?;
        match self.fabric.lost_worker() {
            Some(worker) => Err(FabricError::WorkerLost { worker }.into()),
            None => Ok(()),
        }
    }

    /// Polls everything; returns whether to accept, which connections to read, which NFs are dead.
    fn wait(&self, timeout_ms: u8) -> Result<(bool, Vec<usize>, Vec<u32>), ServerError> {
        let pidfds: Vec<_> = self
            .registry
            .nfs()
            .iter()
            .filter_map(|nf| Some((nf.instance, nf.pidfd.as_ref()?.as_fd())))
            .collect();
        let mut fds = vec![watch(self.signals.as_fd()), watch(self.socket.listener.as_fd())];
        fds.extend(self.connections.iter().map(|c| watch(c.stream.as_fd())));
        fds.extend(pidfds.iter().map(|&(_, fd)| watch(fd)));
        match poll(&mut fds, PollTimeout::from(timeout_ms)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(ServerError::Os { what: "poll", source: errno.into() }),
        }
        let ready = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
        let (connections, processes) = fds[2..].split_at(self.connections.len());
        let readable = (0..).zip(connections).filter(|(_, fd)| ready(fd)).map(|(at, _)| at);
        let dead = pidfds.iter().zip(processes).filter(|(_, fd)| ready(fd)).map(|(nf, _)| nf.0);
        Ok((ready(&fds[1]), readable.collect(), dead.collect()))
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.socket.listener.accept() {
            let ready = stream.set_nonblocking(false).is_ok()
                && stream.set_write_timeout(Some(REPLY_LIMIT)).is_ok();
            if !ready {
                continue;
            }
            if self.connections.len() >= MAX_CONNECTIONS {
                let message = format!("the manager serves {MAX_CONNECTIONS} connections, no more");
                let error = ErrorReply { code: ErrorCode::Exhausted, message };
                let _ = control::send(&stream, &Reply::Error(error), &[]);
                continue;
            }
            let reader = FrameReader::new(MAX_REQUEST_BYTES);
            self.connections.push(Connection { stream, reader, instance: None, closed: false });
        }
    }

    /// Reads what there is from a connection and answers every whole message.
    fn read_from(&mut self, at: usize) -> Result<(), ServerError> {
        let mut bytes = [0; 4096];
        let connection = &mut self.connections[at];
        // Plain read(2): descriptors that a client attaches where none belong are closed unseen.
        match connection.stream.read(&mut bytes) {
            Ok(0) => connection.closed = true,
            Ok(count) => connection.reader.extend(&bytes[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => connection.closed = true,
        }
        loop {
            let connection = &mut self.connections[at];
            match connection.reader.next_message::<Request>() {
                Ok(Some(request)) => self.answer(at, request)?,
                Ok(None) => return Ok(()),
                Err(error) => {
                    refuse(connection, &error);
                    return Ok(());
                }
            }
        }
    }

    fn answer(&mut self, at: usize, request: Request) -> Result<(), ServerError> {
        match request {
            Request::Attach(request) => self.attach(at, &request),
            Request::Detach => self.detach(at),
            Request::Status => {
                let status = status::take(&mut self.fabric, &self.registry, self.started)?;
                self.reply(at, &Reply::Status(Box::new(status)), &[]);
                Ok(())
            }
            _ => {
                let message = "this manager does not know that request".to_owned();
                let error = ErrorReply { code: ErrorCode::BadRequest, message };
                self.reply(at, &Reply::Error(error), &[]);
                Ok(())
            }
        }
    }

    fn reply(&mut self, at: usize, reply: &Reply, fds: &[BorrowedFd<'_>]) {
        let connection = &mut self.connections[at];
        connection.closed |= control::send(&connection.stream, reply, fds).is_err();
    }

    fn attach(&mut self, at: usize, request: &control::AttachRequest) -> Result<(), ServerError> {
        let attached = match peer_of(&self.connections[at].stream) {
            _ if self.connections[at].instance.is_some() => Err(ErrorReply {
                code: ErrorCode::BadRequest,
                message: "this connection is attached already".to_owned(),
            }),
            Ok(peer) => self.registry.attach(request, peer, &mut self.fabric),
            Err(error) => Err(error),
        };
        match attached {
            Ok((attached, channel)) => {
                let instance = attached.instance;
                tracing::info!(
                    instance,
                    service = attached.service,
                    name = request.name,
                    "NF attached"
                );
                self.connections[at].instance = Some(instance);
                let region = std::sync::Arc::clone(self.fabric.region());
                self.reply(at, &Reply::Attached(attached), &[region.fd(), channel.fd()]);
            }
            Err(error) => {
                tracing::warn!(service = %request.service, name = request.name, %error, "NF refused");
                self.reply(at, &Reply::Error(error), &[]);
            }
        }
        Ok(())
    }

    fn detach(&mut self, at: usize) -> Result<(), ServerError> {
        let nf = self.connections[at].instance.and_then(|instance| self.registry.get(instance));
        let Some(edge) = nf.map(|nf| nf.edge) else {
            let message = "this connection has no NF to detach".to_owned();
            let error = ErrorReply { code: ErrorCode::BadRequest, message };
            self.reply(at, &Reply::Error(error), &[]);
            return Ok(());
        };
        self.fabric.close_nf(edge)?;
        self.reply(at, &Reply::Detached, &[]);
        Ok(())
    }

    /// Removes NFs that wrote impossible indices into their rings.
    fn end_broken(&mut self) -> Result<(), ServerError> {
        for edge in self.fabric.take_broken() {
            let nf = self.registry.nfs().iter().find(|nf| nf.edge == edge);
            if let Some(instance) = nf.map(|nf| nf.instance) {
                self.end_nf(instance, "it broke its ring")?;
            }
        }
        Ok(())
    }

    fn end_nf(&mut self, instance: u32, why: &str) -> Result<(), ServerError> {
        for connection in self.connections.iter_mut().filter(|c| c.instance == Some(instance)) {
            connection.instance = None;
            connection.closed = true;
        }
        if let Some(nf) = self.registry.remove(instance, &mut self.fabric)? {
            tracing::info!(instance, service = nf.service, name = nf.name, why, "NF removed");
        }
        Ok(())
    }

    /// Forgets closed connections, and the NFs on them.
    fn sweep(&mut self) -> Result<(), ServerError> {
        let gone: Vec<u32> =
            self.connections.iter().filter(|c| c.closed).filter_map(|c| c.instance).collect();
        for instance in gone {
            self.end_nf(instance, "it closed its connection")?;
        }
        self.connections.retain(|connection| !connection.closed);
        Ok(())
    }

    /// What is attached and how it is doing, for tests that run the server in their own process.
    #[must_use]
    pub fn books(&mut self) -> Option<Snapshot> {
        self.fabric.snapshot().ok()
    }
}

fn watch(fd: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::new(fd, PollFlags::POLLIN)
}

fn refuse(connection: &mut Connection, error: &ControlError) {
    let error = ErrorReply { code: ErrorCode::BadRequest, message: error.to_string() };
    let _ = control::send(&connection.stream, &Reply::Error(error), &[]);
    connection.closed = true;
}

fn peer_of(stream: &UnixStream) -> Result<Peer, ErrorReply> {
    let peer = getsockopt(stream, PeerCredentials).map_err(|errno| ErrorReply {
        code: ErrorCode::Forbidden,
        message: format!("the peer's credentials cannot be read: {errno}"),
    })?;
    Ok(Peer { pid: peer.pid(), uid: peer.uid() })
}
