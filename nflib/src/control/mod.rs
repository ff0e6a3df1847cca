//! Messages of the manager's Unix control socket.
//!
//! A message is a frame: its length in bytes (u32, little endian), then that many bytes of JSON.
//! File descriptors travel with the frame's first byte (SCM_RIGHTS). One socket serves commands
//! (`millrace status`) and NFs: an NF sends [`Request::Attach`], gets [`Reply::Attached`] with its
//! descriptors (packet region, channel, route table, doorbells, marks, event ring, black box; the alarms
//! of the workers, of all or of none; the state region, for NFs that ask for one), and keeps the connection
//! open; its end is the end of the attachment.
#![forbid(unsafe_code)]

pub mod frame;
pub mod observe;
pub mod rates;
pub mod spec;
pub mod status;

use std::io::{self, Read as _};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use observe::*;
pub use spec::{
    Access, ChainSpec, Change, ChangeOf, Confine, Edit, MatchSpec, OnDeath, OnStuck, RuleSpec,
    ServiceRef, ServiceSpec, ThenSpec,
};
pub use status::*;

use crate::descriptor::ServiceId;
use crate::observe::TapSpec;
use crate::shm::channel::ChannelGeometry;
use crate::shm::{LAYOUT_VERSION, RecorderTerms, RegionGeometry, recv_with_fds, send_with_fds};

/// Version of these messages. A peer of another version is refused with [`ErrorCode::Version`].
pub const PROTOCOL_VERSION: u32 = 6;
/// Where the manager listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/millrace/manager.sock";
/// Longest frame a manager accepts from a peer, bytes: room for a configuration file of some 20,000
/// rules.
pub const MAX_REQUEST_BYTES: usize = 4 << 20;
/// Longest frame a client accepts from the manager, bytes.
pub const MAX_REPLY_BYTES: usize = 64 << 20;

/// What a client asks of the manager.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
#[allow(clippy::large_enum_variant, reason = "each is made, sent and done with")]
pub enum Request {
    /// Join as an NF.
    Attach(AttachRequest),
    /// From an attached NF that wants to leave: stop delivering to me. Answered by
    /// [`Reply::Detached`], after which the NF returns what it has and closes the connection.
    Detach,
    /// Everything there is to see, in one [`Status`].
    Status,
    /// Compare a configuration file with what runs, and, unless `dry_run`, make it so: all of it, or
    /// nothing. Answered by [`Reply::Applied`].
    Apply {
        /// Its name, for messages.
        path: String,
        /// Its text.
        text: String,
        /// Only say what would change.
        dry_run: bool,
    },
    /// Make some changes: all of them, or none. Answered by [`Reply::Applied`].
    Edit {
        /// The changes, in order.
        edits: Vec<Edit>,
    },
    /// Run a service by another command, without a loss: new instances are started beside the old
    /// ones, take their flows, and the old ones go when the new ones have lived long enough with them;
    /// until then they take the flows back if a new one fails. Answered by [`Reply::Applied`] once the
    /// old ones are gone, or by the reason why everything is as before.
    Upgrade {
        /// The service, whose NFs the manager starts.
        service: ServiceRef,
        /// Program and arguments of the new instances.
        command: Vec<String>,
        /// How long the new instances must live with the flows, milliseconds.
        probation_ms: u64,
    },
    /// Tell an NF to leave in good order. Answered by [`Reply::Done`] once it is told.
    StopNf {
        /// Which.
        instance: u32,
    },
    /// The flows with most packets. Answered by [`Reply::Flows`].
    Flows {
        /// How many at most.
        limit: u32,
    },
    /// What would become of a packet, and why. Answered by [`Reply::Explained`].
    Explain {
        /// Port it comes in by; `None`: the first port.
        in_port: Option<String>,
        /// The frame, from its Ethernet header on.
        frame: Vec<u8>,
    },
    /// Where each buffer is. Answered by [`Reply::Buffers`].
    Buffers {
        /// One to tell more about.
        buffer: Option<u32>,
    },
    /// Where packets can be captured. Answered by [`Reply::CapturePoints`].
    CapturePoints,
    /// Capture packets. Answered by [`Reply::Capturing`], with the end of a pipe from which a pcapng file is
    /// read; the capture ends when that end is closed, when a limit is reached, or with the manager.
    Capture(CaptureRequest),
    /// Captures under way. Answered by [`Reply::Captures`].
    Captures,
    /// Follow packets. Answered by [`Reply::Tracing`].
    Trace(TraceRequest),
    /// What was seen of packets followed. Answered by [`Reply::Traces`].
    Traces {
        /// Of one trace; `None`: of all, without their packets.
        id: Option<u64>,
    },
    /// Mark no more packets for a trace, and forget it. Answered by [`Reply::Done`].
    ForgetTrace {
        /// Which.
        id: u64,
    },
    /// How long packets take. Answered by [`Reply::Latency`].
    Latency,
    /// What is left of NFs that crashed. Answered by [`Reply::Crashes`].
    Crashes,
    /// The files of a crash. Answered by [`Reply::Crash`], with a descriptor for each.
    Crash {
        /// Its name.
        name: String,
    },
    /// Hand a message to an NF and wait for what it answers. Answered by [`Reply::Called`].
    Call {
        /// Whom.
        target: Target,
        /// What, at most [`MAX_MESSAGE_BYTES`].
        payload: Vec<u8>,
    },
    /// Drain and end the manager, and the NFs it started. Answered by [`Reply::Done`] at once, and by
    /// [`Reply::Status`] with the final books when everything has ended.
    Shutdown {
        /// Only the manager: its NFs wait for the next one, which goes on with what is wanted now.
        #[serde(default)]
        keep_nfs: bool,
    },
    /// From an attached NF: all messages up to [`Reply::Sync`] with this number are acted on.
    Synced {
        /// The number.
        token: u64,
    },
    /// From an attached NF: a message to other NFs. Answered by [`Reply::Sent`].
    Send {
        /// To whom.
        target: Target,
        /// What, at most [`MAX_MESSAGE_BYTES`].
        payload: Vec<u8>,
        /// Number for the answer.
        token: u64,
    },
    /// From an attached NF: its answer to a [`Reply::Message`] that wants one.
    Answer {
        /// The message's number.
        token: u64,
        /// What the NF says, or why it does not.
        result: Result<Vec<u8>, String>,
    },
}

/// Longest message between NFs, or from a command to an NF, bytes.
pub const MAX_MESSAGE_BYTES: usize = 16 << 10;

/// Whom a message is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// One NF.
    Instance(u32),
    /// Every instance of a service.
    Service(ServiceRef),
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
    /// The service it wants to provide, by id or name.
    pub service: ServiceRef,
    /// Empty buffers it wants, to make packets in.
    pub loan_pkts: u32,
    /// Another is to be lent for each of them that is used.
    #[serde(default)]
    pub keeps_stock: bool,
    /// Services to whose instances it wants direct edges, for packets it sends them by name.
    pub jumps_to: Vec<ServiceRef>,
    /// The core it runs on by its own choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub core: Option<u32>,
    /// The state it wants to keep for its successor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<StateSpec>,
}

/// A state region as an NF asks for it. It inherits only what was asked for alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateSpec {
    /// Words of 8 bytes, at most [`MAX_STATE_WORDS`](crate::shm::MAX_STATE_WORDS).
    pub words: u32,
    /// What they mean: another number for another meaning.
    pub version: u32,
}

/// A state region as an NF gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateTerms {
    /// As asked for.
    pub words: u32,
    /// Which NF this is that has it: 1 for the first, which finds zeros.
    pub generation: u64,
}

impl AttachRequest {
    /// An introduction in this library's versions, of an NF that wants nothing special.
    #[must_use]
    pub fn new(name: &str, service: ServiceRef) -> Self {
        Self {
            protocol: PROTOCOL_VERSION,
            layout: LAYOUT_VERSION,
            name: name.to_owned(),
            service,
            loan_pkts: 0,
            keeps_stock: false,
            jumps_to: Vec::new(),
            core: None,
            state: None,
        }
    }
}

/// What the manager answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// The NF is in; descriptors come along: packet region, channel, route table, doorbells, marks, event
    /// ring, black box, and the alarms of all workers or of none.
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
    /// To an attached NF, with one descriptor: a ring to another NF, for packets whose next hop it
    /// is. Until it comes, and after [`Reply::CloseOutEdge`], they go through the manager.
    OutEdge {
        /// The NF at the other end, by its number in the route table.
        nf: u16,
        /// Its ring.
        ring_capacity: u32,
    },
    /// To an attached NF, with one descriptor: a ring from another NF.
    InEdge {
        /// The NF at the other end.
        nf: u16,
        /// Its ring.
        ring_capacity: u32,
    },
    /// To an attached NF: use the ring to this NF no more.
    CloseOutEdge {
        /// The NF at the other end.
        nf: u16,
    },
    /// To an attached NF: the ring from this NF gets nothing more; take what is in it and forget it.
    CloseInEdge {
        /// The NF at the other end.
        nf: u16,
    },
    /// To an attached NF: the taps that are set at it from now on, all of them.
    Taps {
        /// At most [`MAX_TAPS`](crate::observe::MAX_TAPS).
        taps: Vec<TapSpec>,
    },
    /// To an attached NF: answer with [`Request::Synced`] when all messages before are acted on.
    Sync {
        /// The number to answer with.
        token: u64,
    },
    /// To an attached NF: a message of another NF or of a command.
    Message {
        /// Instance id of the sender; `None`: a command.
        from: Option<u32>,
        /// What.
        payload: Vec<u8>,
        /// A number to answer with, when an answer is wanted.
        token: Option<u64>,
    },
    /// To an attached NF: what became of its [`Request::Send`].
    Sent {
        /// Its number.
        token: u64,
        /// How many NFs got it, or why none did.
        result: Result<u32, SendRefusal>,
    },
    /// Answer to [`Request::Apply`] and [`Request::Edit`].
    Applied(Applied),
    /// Answer to [`Request::Flows`].
    Flows {
        /// By falling number of packets.
        flows: Vec<FlowStatus>,
        /// Flows known now.
        total: u64,
    },
    /// Answer to [`Request::Explain`].
    Explained(Box<Explanation>),
    /// Answer to [`Request::Buffers`].
    Buffers(Box<BufferReport>),
    /// Answer to [`Request::CapturePoints`].
    CapturePoints {
        /// All there are now.
        points: Vec<CapturePoint>,
    },
    /// Answer to [`Request::Capture`]; the reading end of a pipe comes along.
    Capturing {
        /// Number of the capture.
        id: u64,
    },
    /// Answer to [`Request::Captures`].
    Captures {
        /// By number.
        captures: Vec<CaptureStatus>,
    },
    /// Answer to [`Request::Trace`].
    Tracing {
        /// Number of the trace.
        id: u64,
    },
    /// Answer to [`Request::Traces`].
    Traces {
        /// By number.
        traces: Vec<TraceStatus>,
    },
    /// Answer to [`Request::Latency`].
    Latency(Box<LatencyReport>),
    /// Answer to [`Request::Crashes`].
    Crashes {
        /// Newest first.
        crashes: Vec<CrashStatus>,
    },
    /// Answer to [`Request::Crash`]; a descriptor for each of its files comes along, in their order.
    Crash(Box<CrashStatus>),
    /// Answer to [`Request::Call`]: what each NF called said, by instance id.
    Called {
        /// Answers.
        answers: Vec<(u32, Result<Vec<u8>, String>)>,
    },
    /// It is done, and there is nothing to tell.
    Done,
}

/// Why a message between NFs was not delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Error)]
#[serde(rename_all = "snake_case")]
pub enum SendRefusal {
    /// No such instance, or no instance of such a service.
    #[error("nobody is there: no such instance, or no instance of that service")]
    Absent,
    /// The receiver has as many messages waiting as it may.
    #[error("the receiver's queue of messages is full; try again later")]
    Full,
    /// Longer than [`MAX_MESSAGE_BYTES`].
    #[error("the message is too long; at most {MAX_MESSAGE_BYTES} bytes")]
    TooLong,
}

/// What a change did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Applied {
    /// Each difference.
    pub changes: Vec<Change>,
    /// What a person should know and is no error: rules that overlap, packets that match nothing.
    pub notes: Vec<String>,
    /// The plan that is in force now.
    pub generation: u64,
    /// Share of flows (hash space) that changed their path, 0 to 1; of a change in several steps, the
    /// largest.
    pub moved_share: f64,
    /// Of a change in several steps, such as a scaling by more than one instance: the share of each.
    #[serde(default)]
    pub moves: Vec<f64>,
    /// From the change to the moment when it was in force for every packet, microseconds.
    pub took_us: u64,
    /// Numbers of rules that were added, in the order of the request.
    pub rule_ids: Vec<u64>,
}

/// A flow, as the exact-match cache knows it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct FlowStatus {
    /// Its fields.
    pub key: MatchSpec,
    /// The rule that matched it; `None`: no rule did.
    pub rule: Option<u64>,
    /// What is done with it: `chain=web`, `out=wan`, `drop`.
    pub then: String,
    /// Packets.
    pub pkts: u64,
    /// Bytes.
    pub bytes: u64,
    /// Since its last packet, seconds.
    pub idle_s: f64,
}

/// Why a packet goes where it goes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Explanation {
    /// What was read from the frame.
    pub key: MatchSpec,
    /// Its flow hash.
    pub flow_hash: u32,
    /// Each table passed, in order.
    pub tables: Vec<ExplainedTable>,
    /// The chain it takes, if any.
    pub chain: Option<String>,
    /// Each hop of the chain, following `chain:` ends.
    pub hops: Vec<ExplainedHop>,
    /// What becomes of it in the end: `out=wan`, `drop (no_rule)`.
    pub end: String,
}

/// A table, and the rule that was taken there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ExplainedTable {
    /// Its number.
    pub table: u8,
    /// The rule taken; `None`: none matched.
    pub rule: Option<RuleStatus>,
    /// Rules that match too and lost by their priority, at most 10.
    pub also_matching: Vec<RuleStatus>,
}

/// A hop, and the instance chosen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ExplainedHop {
    /// The chain.
    pub chain: String,
    /// Position in it.
    pub hop: u8,
    /// The service.
    pub service: String,
    /// The instance; `None` when the service has none.
    pub instance: Option<u32>,
    /// Why this one: `the only instance`, `bucket 17 of 1024`.
    pub why: String,
    /// How it gets there: `manager` or `direct`.
    pub via: String,
}

/// Terms of an attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// The number of this NF, unique while the manager runs.
    pub instance: u32,
    /// Its number in the route table and among the doorbells.
    pub nf: u16,
    /// The service it provides.
    pub service: ServiceId,
    /// Layout of the first descriptor.
    pub region: RegionGeometry,
    /// Layout of the second.
    pub channel: ChannelGeometry,
    /// Workers' shares: buffer `b` is worker `b / worker_buffers`'s, and goes back by its ring.
    pub worker_buffers: u32,
    /// The manager's release.
    pub manager_version: String,
    /// The core to run on, when the manager chose one.
    #[serde(default)]
    pub core: Option<u32>,
    /// The services of [`AttachRequest::jumps_to`], in the same order.
    pub jump_services: Vec<ServiceId>,
    /// Packets to take before a shared core is offered to others.
    #[serde(default = "default_quantum_pkts")]
    pub quantum_pkts: u32,
    /// The packet region can be read only.
    #[serde(default)]
    pub read_only: bool,
    /// The state region, when one was asked for: the last descriptor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<StateTerms>,
    /// The packet region is the NF's own: its pages come when they are first touched.
    #[serde(default)]
    pub own_region: bool,
    /// Layout of the black box, and what is to be recorded in it.
    pub recorder: RecorderTerms,
}

fn default_quantum_pkts() -> u32 {
    crate::resting::DEFAULT_QUANTUM_PKTS
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
    /// Another NF provides the service already, and it may have one instance only.
    ServiceTaken,
    /// What was named does not exist.
    NotFound,
    /// The wanted state is impossible; nothing was changed.
    Invalid,
    /// Somebody did not answer in time.
    Timeout,
    /// The peer may not do this.
    Forbidden,
    /// A limit of the manager is reached.
    Exhausted,
    /// The manager is stopping.
    Stopping,
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

    /// Refuses frames longer than `max_bytes` from now on.
    pub fn set_max_bytes(&mut self, max_bytes: usize) {
        self.max_bytes = max_bytes;
    }

    /// Bytes of messages not yet taken.
    #[must_use]
    pub fn unread_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// True when no byte of a message not yet taken is here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
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
        let request = Request::Attach(AttachRequest::new("forward", ServiceRef::Id(7)));
        send(&a, &request, &[file.as_fd(), file.as_fd()]).unwrap();
        let (got, fds) = recv::<Request>(&b, MAX_REQUEST_BYTES).unwrap();
        assert_eq!(got, request);
        assert_eq!(fds.len(), 2);
    }

    #[test]
    fn the_longest_message_between_nfs_fits_a_frame() {
        let (target, payload) = (Target::Instance(u32::MAX), vec![255; MAX_MESSAGE_BYTES]);
        let request = Request::Send { target, payload, token: u64::MAX };
        assert!(encode(&request).unwrap().len() <= MAX_REQUEST_BYTES);
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
        stream
            .extend(encode(&Request::Attach(AttachRequest::new("x", ServiceRef::Id(1)))).unwrap());
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
