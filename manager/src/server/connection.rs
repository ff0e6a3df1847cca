//! Connections of clients and NFs: read and written without ever waiting.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use nflib::control::{
    self, ControlError, ErrorCode, FrameReader, MAX_MESSAGE_BYTES, MAX_REQUEST_BYTES, Reply,
    Request,
};
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::refusal;
use crate::registry::Peer;

/// Connections at once; an NF takes one for as long as it lives.
const MAX_CONNECTIONS: usize = 8192;
/// How long a client may leave an answer unread before its connection ends.
const UNREAD_LIMIT: Duration = Duration::from_secs(5);
/// Messages that an NF may leave unread before its connection ends.
const MAX_UNREAD: usize = 16_384;
/// Unread bytes above which a peer is not listened to: who does not read its answers gets no more of
/// them.
const UNREAD_LIMIT_BYTES: usize = 1 << 20;
/// Requests answered on one connection before it is the others' turn.
pub const REQUESTS_A_ROUND: usize = 8;
/// Connections without an NF; for one more, the one that was silent for longest ends.
const MAX_CLIENTS: usize = 4096;
/// Bytes of messages that clients have begun and not ended, all together; above, the one with most
/// of them ends.
const MAX_UNFINISHED_BYTES: usize = 64 << 20;
/// Longest message of an attached NF, bytes: twice what [`MAX_MESSAGE_BYTES`] may take as JSON.
const MAX_NF_REQUEST_BYTES: usize = 8 * MAX_MESSAGE_BYTES;
/// Messages of other NFs that wait for one NF.
const MAX_MESSAGES_WAITING: usize = 64;

/// A message on its way.
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<OwnedFd>,
    /// It comes from another NF or a command, and counts against their bound.
    is_message: bool,
    since: Instant,
}

/// One connection.
pub struct Connection {
    stream: UnixStream,
    reader: FrameReader,
    /// The NF on this connection, once attached.
    pub instance: Option<u32>,
    out: VecDeque<Outgoing>,
    /// Bytes of `out`.
    unread_bytes: usize,
    closed: bool,
    /// To be closed when everything is sent.
    closing: bool,
    /// There may be a whole message among the bytes read.
    has_more: bool,
    /// When it last said something whole, or came.
    heard: Instant,
}

/// All connections, by a number that is never used again.
#[derive(Default)]
pub struct Connections {
    connections: BTreeMap<u64, Connection>,
    by_instance: BTreeMap<u32, u64>,
    last: u64,
    /// When it was last said that there are too many.
    warned: Option<Instant>,
}

impl Connections {
    /// Takes in who waits at the door.
    pub fn accept(&mut self, listener: &UnixListener) {
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                // With no file left for one more, the next round accepts it.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                    return self.end_idlest();
                }
                Err(_) => return,
            };
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            if self.connections.len() - self.by_instance.len() >= MAX_CLIENTS {
                self.end_idlest();
            }
            if self.connections.len() >= MAX_CONNECTIONS {
                let message = format!("the manager serves {MAX_CONNECTIONS} connections, no more");
                let _ = control::send(&stream, &refusal(ErrorCode::Exhausted, message), &[]);
                continue;
            }
            self.last += 1;
            let connection = Connection {
                stream,
                reader: FrameReader::new(MAX_REQUEST_BYTES),
                instance: None,
                out: VecDeque::new(),
                unread_bytes: 0,
                closed: false,
                closing: false,
                has_more: false,
                heard: Instant::now(),
            };
            self.connections.insert(self.last, connection);
        }
    }

    /// Ends the connection without an NF that has said nothing whole for longest.
    fn end_idlest(&mut self) {
        let clients = self.connections.iter().filter(|(_, c)| c.instance.is_none());
        if let Some((&id, _)) = clients.min_by_key(|(_, connection)| connection.heard) {
            self.end_client(
                id,
                "too many connections: the one that was silent for longest is closed",
            );
        }
    }

    /// Ends the longest unfinished messages of clients, when all of them together are too long.
    pub fn bound_unfinished(&mut self) {
        let unread_bytes = |c: &Connection| {
            if c.instance.is_none() { c.reader.unread_bytes() } else { 0 }
        };
        let mut sum_bytes: usize = self.connections.values().map(unread_bytes).sum();
        while sum_bytes > MAX_UNFINISHED_BYTES {
            let most = self.connections.iter().max_by_key(|(_, c)| unread_bytes(c));
            let Some((&id, connection)) = most else { return };
            sum_bytes -= unread_bytes(connection);
            self.end_client(id, "too many unfinished requests: the longest is closed");
        }
    }

    /// Ends a connection, and says so at most once a second: whoever opens many may do it for long.
    fn end_client(&mut self, id: u64, why: &str) {
        self.connections.remove(&id);
        if self.warned.is_none_or(|at| at.elapsed() > Duration::from_secs(1)) {
            self.warned = Some(Instant::now());
            tracing::warn!(connections = self.connections.len(), "{why}");
        }
    }

    /// Connections that said more than could be answered in their turn.
    pub fn with_more(&self) -> impl Iterator<Item = u64> + '_ {
        self.connections.iter().filter(|(_, c)| c.has_more && c.listens()).map(|(&id, _)| id)
    }

    /// What to poll.
    pub fn watched(&self) -> Vec<(u64, BorrowedFd<'_>, PollFlags)> {
        let flags = |connection: &Connection| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLIN, connection.listens() && !connection.has_more);
            flags.set(PollFlags::POLLOUT, !connection.out.is_empty());
            flags
        };
        self.connections.iter().map(|(&id, c)| (id, c.stream.as_fd(), flags(c))).collect()
    }

    /// One connection.
    pub fn get_mut(&mut self, id: u64) -> Option<&mut Connection> {
        self.connections.get_mut(&id)
    }

    /// Says which NF a connection belongs to.
    pub fn name(&mut self, id: u64, instance: u32) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.instance = Some(instance);
            connection.reader.set_max_bytes(MAX_NF_REQUEST_BYTES);
            self.by_instance.insert(instance, id);
        }
    }

    /// Sends a reply; a connection that is gone hears nothing.
    pub fn send(&mut self, id: u64, reply: &Reply) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.send(reply, Vec::new());
        }
    }

    /// Sends a reply with descriptors.
    pub fn send_with(&mut self, id: u64, reply: &Reply, fds: Vec<OwnedFd>) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.send(reply, fds);
        }
    }

    /// Sends an NF a message.
    pub fn send_to_nf(&mut self, instance: u32, reply: &Reply, fd: Option<OwnedFd>) {
        let id = self.by_instance.get(&instance);
        if let Some(connection) = id.and_then(|id| self.connections.get_mut(id)) {
            connection.send(reply, fd.into_iter().collect());
        }
    }

    /// Passes an NF a message of somebody else; false when too many wait already, or it is gone.
    pub fn pass_to_nf(&mut self, instance: u32, reply: &Reply) -> bool {
        let id = self.by_instance.get(&instance);
        let Some(connection) = id.and_then(|id| self.connections.get_mut(id)) else { return false };
        let waiting = connection.out.iter().filter(|out| out.is_message).count();
        if waiting >= MAX_MESSAGES_WAITING {
            return false;
        }
        connection.send(reply, Vec::new());
        if let Some(last) = connection.out.back_mut() {
            last.is_message = true;
        }
        true
    }

    /// Sends what can be sent now.
    pub fn flush(&mut self) {
        for connection in self.connections.values_mut().filter(|c| !c.out.is_empty()) {
            connection.flush();
        }
    }

    /// Sends what can be sent within `limit`. For the end, when nobody comes back to it.
    pub fn flush_for(&mut self, limit: Duration) {
        let until = Instant::now() + limit;
        self.flush();
        while self.connections.values().any(|c| !c.closed && !c.out.is_empty())
            && Instant::now() < until
        {
            std::thread::sleep(Duration::from_millis(1));
            self.flush();
        }
    }

    /// Ends the connection of an NF that is gone.
    pub fn close_nf(&mut self, instance: u32) {
        let id = self.by_instance.remove(&instance);
        if let Some(connection) = id.and_then(|id| self.connections.get_mut(&id)) {
            connection.instance = None;
            connection.closing = true;
        }
    }

    /// Forgets closed connections; returns the NFs that were on them.
    pub fn sweep(&mut self) -> Vec<u32> {
        let gone = |c: &Connection| c.closed || (c.closing && c.out.is_empty());
        let closed = self.connections.values().filter(|c| gone(c));
        let instances: Vec<_> = closed.filter_map(|connection| connection.instance).collect();
        self.connections.retain(|_, connection| !gone(connection));
        for instance in &instances {
            self.by_instance.remove(instance);
        }
        instances
    }
}

impl Connection {
    /// Whether what it says is heard.
    fn listens(&self) -> bool {
        !self.closed && !self.closing && self.unread_bytes <= UNREAD_LIMIT_BYTES
    }

    /// Takes in what there is to read; of one that is not listened to, only that it hung up.
    pub fn read(&mut self, hung_up: bool) {
        if !self.listens() {
            self.closed |= hung_up;
            return;
        }
        if self.has_more {
            return;
        }
        let mut bytes = [0; 4096];
        // Plain read(2): descriptors that a client attaches where none belong are closed unseen.
        match self.stream.read(&mut bytes) {
            Ok(0) => self.closed = true,
            Ok(count) => self.reader.extend(&bytes[..count]),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                ) => {}
            Err(_) => self.closed = true,
        }
    }

    /// The next whole message, if there is one.
    ///
    /// # Errors
    /// As [`FrameReader::next_message`].
    pub fn next_request(&mut self) -> Result<Option<Request>, ControlError> {
        self.has_more = false;
        if !self.listens() {
            return Ok(None);
        }
        let request = self.reader.next_message()?;
        if request.is_some() {
            self.heard = Instant::now();
        }
        Ok(request)
    }

    /// It was answered enough for this round.
    pub fn leave_rest(&mut self) {
        self.has_more = true;
    }

    /// Answers nonsense, and ends.
    pub fn refuse(&mut self, error: &ControlError) {
        self.send(&refusal(ErrorCode::BadRequest, error.to_string()), Vec::new());
        self.closing = true;
    }

    /// Who is at the other end.
    ///
    /// # Errors
    /// Those of getsockopt(2).
    pub fn peer(&self) -> Result<Peer, Errno> {
        let peer = getsockopt(&self.stream, PeerCredentials)?;
        Ok(Peer { pid: peer.pid(), uid: peer.uid() })
    }

    fn send(&mut self, reply: &Reply, fds: Vec<OwnedFd>) {
        if self.closed || self.closing {
            return;
        }
        let Ok(bytes) = control::encode(reply) else {
            self.closed = true;
            return;
        };
        if self.out.len() >= MAX_UNREAD {
            self.closed = true;
            return;
        }
        let since = Instant::now();
        self.unread_bytes += bytes.len();
        self.out.push_back(Outgoing { bytes, sent: 0, fds, is_message: false, since });
    }

    fn flush(&mut self) {
        while let Some(first) = self.out.front_mut() {
            let fds: Vec<_> = first.fds.iter().map(AsFd::as_fd).collect();
            match nflib::shm::send_with_fds(&self.stream, &first.bytes[first.sent..], &fds) {
                Ok(sent) => {
                    // They went with the first byte.
                    first.fds.clear();
                    first.sent += sent;
                    self.unread_bytes -= sent;
                    if first.sent == first.bytes.len() {
                        self.out.pop_front();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // An NF may be stopped for a while; a client that does not read is no client.
                    let is_client = self.instance.is_none() || self.closing;
                    self.closed |= is_client && first.since.elapsed() > UNREAD_LIMIT;
                    return;
                }
                Err(_) => {
                    self.closed = true;
                    return;
                }
            }
        }
    }
}
