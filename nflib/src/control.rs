//! Messages of the manager's Unix control socket.
//!
//! A message is a frame: its length in bytes (u32, little endian), then that many bytes of JSON.
//! File descriptors travel with the frame's first byte (SCM_RIGHTS). One socket serves commands
//! (`millrace status`) and NFs: an NF sends [`Request::Attach`], gets [`Reply::Attached`] with two
//! descriptors, packet region then channel, and keeps the connection open; its end is the end of
//! the attachment.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::descriptor::ServiceId;
use crate::shm::channel::ChannelGeometry;
use crate::shm::{LAYOUT_VERSION, RegionGeometry, recv_with_fds, send_with_fds};

/// Version of these messages. A peer of another version is refused with [`ErrorCode::Version`].
pub const PROTOCOL_VERSION: u32 = 1;
/// Where the manager listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/millrace/manager.sock";
/// Longest frame a manager accepts from a peer, bytes.
pub const MAX_REQUEST_BYTES: usize = 64 << 10;
/// Longest frame a client accepts from the manager, bytes.
pub const MAX_REPLY_BYTES: usize = 64 << 20;

/// What a client asks of the manager.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Join as an NF.
    Attach(AttachRequest),
    /// From an attached NF that wants to leave: stop delivering to me. Answered by
    /// [`Reply::Detached`], after which the NF returns what it has and closes the connection.
    Detach,
    /// Everything there is to see, in one [`Status`].
    Status,
}

/// An NF's introduction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachRequest {
    /// [`PROTOCOL_VERSION`] of the NF's library.
    pub protocol: u32,
    /// [`LAYOUT_VERSION`] of the NF's library.
    pub layout: u32,
    /// The program's name for itself, e.g. `forward`; shown, never acted on.
    pub name: String,
    /// The service it wants to provide.
    pub service: ServiceId,
}

impl AttachRequest {
    /// An introduction in this library's versions.
    #[must_use]
    pub fn new(name: &str, service: ServiceId) -> Self {
        Self { protocol: PROTOCOL_VERSION, layout: LAYOUT_VERSION, name: name.to_owned(), service }
    }
}

/// What the manager answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// The NF is in; two descriptors come along: the packet region, the channel.
    Attached(Attached),
    /// Answer to [`Request::Detach`]: nothing more will be delivered.
    Detached,
    /// Answer to [`Request::Status`].
    Status(Box<Status>),
    /// The request was refused.
    Error(ErrorReply),
    /// To an attached NF: finish what you hold and leave. The manager is stopping, or removes you.
    Stop {
        /// Why, for the NF's log.
        reason: String,
    },
}

/// Terms of an attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// The number of this NF, unique while the manager runs.
    pub instance: u32,
    /// The service it provides.
    pub service: ServiceId,
    /// Layout of the first descriptor.
    pub region: RegionGeometry,
    /// Layout of the second.
    pub channel: ChannelGeometry,
    /// The manager's release.
    pub manager_version: String,
}

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Error)]
#[error("{message}")]
pub struct ErrorReply {
    /// For programs.
    pub code: ErrorCode,
    /// For people: what was wrong, what was expected, what to do. One line.
    pub message: String,
}

/// Kinds of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The message could not be understood.
    BadRequest,
    /// Another version of protocol or layout.
    Version,
    /// No chain uses this service.
    UnknownService,
    /// Another NF provides the service already.
    ServiceTaken,
    /// The peer may not do this.
    Forbidden,
    /// A limit of the manager is reached.
    Exhausted,
    /// The manager is stopping.
    Stopping,
}

/// A snapshot of everything. Counters are of the moment each was read; `accounting` says whether
/// they add up, and was taken between bursts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The manager's release.
    pub version: String,
    /// Its process.
    pub pid: i32,
    /// Since it started, seconds.
    pub uptime_s: f64,
    /// When this snapshot was taken, nanoseconds of CLOCK_MONOTONIC; rates are differences.
    pub at_ns: u64,
    /// Ports in the order of the configuration.
    pub ports: Vec<PortStatus>,
    /// NFs attached now, by instance id.
    pub nfs: Vec<NfStatus>,
    /// Services of the default chain, in order.
    pub chain: Vec<ServiceId>,
    /// Every drop so far, by place and reason; only what is not zero.
    pub drops: Vec<DropStatus>,
    /// `rx = tx + dropped + held`.
    pub accounting: Accounting,
    /// Buffers.
    pub pool: PoolStatus,
    /// Workers.
    pub workers: Vec<WorkerStatus>,
    /// Whether the packet region lies on hugepages.
    pub hugepages: bool,
}

/// One port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortStatus {
    /// Its name in the configuration.
    pub name: String,
    /// Back end.
    pub backend: String,
    /// Interface, PCI address or file.
    pub device: String,
    /// Driver and mode obtained.
    pub driver: String,
    /// `up`, `down` or `gone`.
    pub link: String,
    /// Mbit/s, where the driver tells.
    pub speed_mbps: Option<u32>,
    /// Hardware address.
    pub mac: Option<String>,
    /// Longest network-layer packet.
    pub mtu_bytes: u32,
    /// Promiscuous mode.
    pub promiscuous: bool,
    /// Queues.
    pub queues: u16,
    /// Port that packets leave by when they came in here and their chain ends.
    pub egress: Option<String>,
    /// Packets received.
    pub rx_pkts: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets sent.
    pub tx_pkts: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Drops at this port by reason.
    pub drops: BTreeMap<String, u64>,
    /// The driver's own counters.
    pub hw_stats: BTreeMap<String, u64>,
    /// A finite source has nothing more.
    pub exhausted: bool,
}

/// One NF.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NfStatus {
    /// Instance id.
    pub instance: u32,
    /// Service id.
    pub service: ServiceId,
    /// Its name for itself.
    pub name: String,
    /// Its process, by the socket's credentials.
    pub pid: i32,
    /// Its user, by the socket's credentials.
    pub uid: u32,
    /// Packets delivered to it.
    pub rx_pkts: u64,
    /// Packets it returned.
    pub tx_pkts: u64,
    /// Of those, with action Drop.
    pub drop_pkts: u64,
    /// Packets dropped because its ring was full.
    pub ring_full_pkts: u64,
    /// Packets it has now: in its rings or kept.
    pub held_pkts: u64,
    /// Descriptors or indices it returned that were not valid.
    pub violations: u64,
    /// Turns of its loop, as it says itself.
    pub progress: u64,
    /// Since it attached, seconds.
    pub uptime_s: f64,
}

/// Packets dropped at one place for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropStatus {
    /// `port:NAME`, `nf:INSTANCE`, `service:ID` or `worker:N`.
    pub place: String,
    /// Name of the reason.
    pub reason: String,
    /// How many packets.
    pub pkts: u64,
}

/// The sum of the ledger: every packet that entered is somewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accounting {
    /// Packets that entered.
    pub rx_pkts: u64,
    /// Packets that left.
    pub tx_pkts: u64,
    /// Packets dropped, all reasons.
    pub dropped_pkts: u64,
    /// Packets inside now: at NFs, in a worker's hands, delayed in a port.
    pub held_pkts: u64,
    /// Whether `rx = tx + dropped + held`.
    pub balanced: bool,
}

/// The buffers of the packet region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// All of them.
    pub total: u64,
    /// Free now.
    pub free: u64,
    /// With NFs.
    pub at_nfs: u64,
    /// With ports: posted for receive, or being sent.
    pub at_ports: u64,
    /// Size of one.
    pub buffer_bytes: u32,
}

/// One worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Its number.
    pub worker: u16,
    /// The core it is pinned to.
    pub core: Option<u32>,
    /// Turns of its loop.
    pub turns: u64,
    /// Turns that found no packet.
    pub idle_turns: u64,
}

/// Why a message could not be exchanged.
#[derive(Debug, Error)]
pub enum ControlError {
    /// The socket failed.
    #[error("control socket: {0}")]
    Io(#[from] io::Error),
    /// The peer hung up.
    #[error("control socket: the peer closed the connection")]
    Closed,
    /// The frame is longer than allowed.
    #[error("control socket: a message of {len_bytes} bytes is longer than {max_bytes}")]
    TooLong {
        /// As announced.
        len_bytes: usize,
        /// As allowed.
        max_bytes: usize,
    },
    /// Not the JSON of a message.
    #[error("control socket: not a message of this protocol: {0}")]
    Malformed(#[from] serde_json::Error),
    /// The manager refused.
    #[error("{0}")]
    Refused(ErrorReply),
    /// The manager answered something else.
    #[error("control socket: unexpected answer to {0}")]
    Unexpected(&'static str),
}

/// A message as bytes to send.
///
/// # Errors
/// [`ControlError::Malformed`] if it cannot be written as JSON.
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>, ControlError> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let len_bytes = frame.len() - 4;
    let prefix = u32::try_from(len_bytes)
        .map_err(|_| ControlError::TooLong { len_bytes, max_bytes: u32::MAX as usize })?;
    frame[..4].copy_from_slice(&prefix.to_le_bytes());
    Ok(frame)
}

/// Sends a message with `fds` attached, blocking until all of it went.
///
/// # Errors
/// [`ControlError::Io`].
pub fn send(
    mut socket: &UnixStream,
    message: &impl Serialize,
    fds: &[BorrowedFd<'_>],
) -> Result<(), ControlError> {
    let frame = encode(message)?;
    let sent = send_with_fds(socket, &frame, fds)?;
    io::Write::write_all(&mut socket, &frame[sent..])?;
    Ok(())
}

/// Receives one message of at most `max_bytes`, blocking, with the descriptors that came along.
///
/// # Errors
/// [`ControlError::Closed`] at the end of the stream, and as the bytes demand.
pub fn recv<T: DeserializeOwned>(
    mut socket: &UnixStream,
    max_bytes: usize,
) -> Result<(T, Vec<OwnedFd>), ControlError> {
    let mut fds = Vec::new();
    let mut prefix = [0; 4];
    let mut have = 0;
    while have < prefix.len() {
        match recv_with_fds(socket, &mut prefix[have..], &mut fds) {
            Ok(0) => return Err(ControlError::Closed),
            Ok(n) => have += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    let len_bytes = frame_len(prefix, max_bytes)?;
    let mut body = vec![0; len_bytes];
    socket.read_exact(&mut body).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => ControlError::Closed,
        _ => ControlError::Io(error),
    })?;
    Ok((serde_json::from_slice(&body)?, fds))
}

fn frame_len(prefix: [u8; 4], max_bytes: usize) -> Result<usize, ControlError> {
    let len_bytes = u32::from_le_bytes(prefix) as usize;
    if len_bytes > max_bytes {
        return Err(ControlError::TooLong { len_bytes, max_bytes });
    }
    Ok(len_bytes)
}

/// Collects the bytes of a stream into frames, for a server that must not block.
#[derive(Debug)]
pub struct FrameReader {
    bytes: Vec<u8>,
    max_bytes: usize,
}

impl FrameReader {
    /// A reader that refuses frames longer than `max_bytes`.
    #[must_use]
    pub fn new(max_bytes: usize) -> Self {
        Self { bytes: Vec::new(), max_bytes }
    }

    /// Adds bytes as they came.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Takes the next whole message, if there is one.
    ///
    /// # Errors
    /// [`ControlError::TooLong`] as soon as the announced length is, and
    /// [`ControlError::Malformed`]; the connection is then of no more use.
    pub fn next_message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ControlError> {
        let Some(prefix) = self.bytes.first_chunk::<4>() else { return Ok(None) };
        let end = 4 + frame_len(*prefix, self.max_bytes)?;
        if self.bytes.len() < end {
            return Ok(None);
        }
        let message = serde_json::from_slice(&self.bytes[4..end]);
        self.bytes.drain(..end);
        Ok(Some(message?))
    }
}

/// Asks the manager for its status over a fresh or used connection.
///
/// # Errors
/// As [`send`] and [`recv`], and [`ControlError::Refused`].
pub fn request_status(socket: &UnixStream) -> Result<Status, ControlError> {
    send(socket, &Request::Status, &[])?;
    match recv(socket, MAX_REPLY_BYTES)?.0 {
        Reply::Status(status) => Ok(*status),
        Reply::Error(error) => Err(ControlError::Refused(error)),
        _ => Err(ControlError::Unexpected("status")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_message_and_its_descriptors_arrive_together() {
        let (a, b) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        let request = Request::Attach(AttachRequest::new("forward", 7));
        send(&a, &request, &[file.as_fd(), file.as_fd()]).unwrap();
        let (got, fds) = recv::<Request>(&b, MAX_REQUEST_BYTES).unwrap();
        assert_eq!(got, request);
        assert_eq!(fds.len(), 2);
    }

    #[test]
    fn a_peer_that_hangs_up_half_way_is_closed_not_a_panic() {
        let (a, b) = UnixStream::pair().unwrap();
        io::Write::write_all(&mut &a, &[9, 0, 0, 0, b'{']).unwrap();
        drop(a);
        assert!(matches!(recv::<Request>(&b, 100), Err(ControlError::Closed)));
    }

    #[test]
    fn a_frame_longer_than_allowed_is_refused_at_its_prefix() {
        let mut reader = FrameReader::new(100);
        reader.extend(&101u32.to_le_bytes());
        let error = reader.next_message::<Request>().unwrap_err();
        assert!(matches!(error, ControlError::TooLong { len_bytes: 101, max_bytes: 100 }));
    }

    #[test]
    fn frames_are_found_however_the_stream_is_cut() {
        let mut stream = encode(&Request::Status).unwrap();
        stream.extend(encode(&Request::Attach(AttachRequest::new("x", 1))).unwrap());
        for cut in 0..stream.len() {
            let mut reader = FrameReader::new(MAX_REQUEST_BYTES);
            let mut seen = 0;
            for part in [&stream[..cut], &stream[cut..]] {
                reader.extend(part);
                while reader.next_message::<Request>().unwrap().is_some() {
                    seen += 1;
                }
            }
            assert_eq!(seen, 2);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_an_error_or_not_yet_enough(bytes: Vec<u8>) {
            let mut reader = FrameReader::new(64);
            reader.extend(&bytes);
            while let Ok(Some(_)) = reader.next_message::<Request>() {}
        }
    }
}
