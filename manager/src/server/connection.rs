//! Connections of clients and NFs: read and written without ever waiting.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use nflib::control::{
    self, ControlError, ErrorCode, FrameReader, MAX_REQUEST_BYTES, Reply, Request,
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
    closed: bool,
    /// To be closed when everything is sent.
    closing: bool,
}

/// All connections, by a number that is never used again.
#[derive(Default)]
pub struct Connections {
    connections: BTreeMap<u64, Connection>,
    by_instance: BTreeMap<u32, u64>,
    last: u64,
}

impl Connections {
    /// Takes in who waits at the door.
    pub fn accept(&mut self, listener: &UnixListener) {
        while let Ok((stream, _)) = listener.accept() {
            if stream.set_nonblocking(true).is_err() {
                continue;
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
                closed: false,
                closing: false,
            };
            self.connections.insert(self.last, connection);
        }
    }

    /// What to poll.
    pub fn watched(&self) -> Vec<(u64, BorrowedFd<'_>, PollFlags)> {
        let flags = |connection: &Connection| {
            if connection.out.is_empty() {
                PollFlags::POLLIN
            } else {
                PollFlags::POLLIN | PollFlags::POLLOUT
            }
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
    /// Takes in what there is to read.
    pub fn read(&mut self) {
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
        self.reader.next_message()
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
                    if first.sent == first.bytes.len() {
                        self.out.pop_front();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // An NF may be stopped for a while; a client that does not read is no client.
                    self.closed |= self.instance.is_none() && first.since.elapsed() > UNREAD_LIMIT;
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
