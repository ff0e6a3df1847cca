//! The `pcap` port: receives the frames of one capture file and records what it is sent in another.
//!
//! The file to replay is read and checked as a whole when the port opens, so that a truncated or
//! damaged one is refused before any traffic starts, and no packet ever waits for the disk. Copying
//! a frame from the file into a buffer is this port's DMA, and so is copying a sent packet into the
//! recording. When no buffer is free the replay waits and drops nothing.
#![forbid(unsafe_code)]

mod reader;
mod recorder;

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use nflib::shm::BufferIndex;
use serde::Deserialize;

pub use reader::{Capture, CaptureError, Frame};
use recorder::{Recorder, RecorderState};

use super::sink::Discard;
use super::{
    LinkState, MAX_BURST_PKTS, OpenPort, Port, PortError, PortInfo, PortPacket, PortQueue,
};
use crate::pool::BufferPool;
use crate::stats::{DropReason, QueueCounters};

/// Longest file that is replayed, bytes: it is held in memory.
const REPLAY_MAX_BYTES: u64 = 1 << 30;
const ETHERNET_HEADER_BYTES: u32 = 14;

/// Options of a `pcap` port. At least one of the files must be named.
#[derive(Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct PcapOptions {
    /// File to receive from: pcap with micro- or nanoseconds, or pcapng; Ethernet; up to 1 GiB.
    pub replay: Option<PathBuf>,
    /// File to write what is sent to: pcap with nanoseconds. An older file is overwritten.
    pub record: Option<PathBuf>,
    /// How often the file is replayed; 0 = endlessly.
    pub loops: u64,
    /// When the frames come.
    pub pace: Pace,
}

impl Default for PcapOptions {
    fn default() -> Self {
        Self { replay: None, record: None, loops: 1, pace: Pace::Full }
    }
}

/// When the frames of a replayed file come.
#[derive(Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Pace {
    /// As fast as they are asked for.
    #[default]
    Full,
    /// At the distances at which they were captured.
    Timestamps,
}

/// Opens a pcap port called `name`.
///
/// # Errors
/// [`PortError::BadFile`] names the file, what is wrong with it, and at which record and byte;
/// the others say why a file could not be opened.
pub fn open(
    name: &str,
    options: &PcapOptions,
    pools: &mut [BufferPool],
) -> Result<OpenPort, PortError> {
    let unsupported =
        |problem: &str| PortError::Unsupported { device: name.into(), problem: problem.into() };
    let Some(pool) = pools.first() else {
        return Err(unsupported("a port needs at least 1 buffer pool"));
    };
    if options.replay.is_none() && options.record.is_none() {
        return Err(unsupported("name a file to replay, or one to record, or both"));
    }
    if let (Some(replay), Some(record)) = (&options.replay, &options.record)
        && same_file(replay, record)
    {
        return Err(unsupported("replay and record name the same file; use two"));
    }
    let replay = match &options.replay {
        Some(path) => Some(Replay::new(load(path)?, options)),
        None => None,
    };
    let recorder = options.record.as_deref().map(Recorder::create).transpose()?;
    let port = PcapPort {
        info: info(options, pool, replay.as_ref()),
        recording: recorder.as_ref().map(|recorder| Arc::clone(recorder.state())),
    };
    let queue = PcapQueue {
        replay,
        recorder,
        counters: Arc::default(),
        discard: Discard::default(),
        buffers: Vec::with_capacity(MAX_BURST_PKTS),
    };
    Ok(OpenPort { port: Box::new(port), queues: vec![Box::new(queue)] })
}

fn info(options: &PcapOptions, pool: &BufferPool, replay: Option<&Replay>) -> PortInfo {
    let mut parts = Vec::new();
    if let (Some(path), Some(replay)) = (&options.replay, replay) {
        parts.push(format!("{} ({} frames)", path.display(), replay.capture.frames().len()));
    }
    if let Some(path) = &options.record {
        parts.push(format!("to {}", path.display()));
    }
    PortInfo {
        backend: "pcap".into(),
        device: parts.join(", "),
        driver: "pcap".into(),
        link: LinkState::Up,
        speed_mbps: None,
        mac: None,
        mtu_bytes: pool.region().geometry().max_packet_bytes().saturating_sub(14),
        promiscuous: true,
        queues: 1,
    }
}

fn same_file(one: &Path, other: &Path) -> bool {
    one == other
        || matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

fn load(path: &Path) -> Result<Capture, PortError> {
    let device = || path.display().to_string();
    let fail = |source| file_error(path, "read", source);
    // Before it is opened: opening a pipe would wait for a writer.
    if !std::fs::metadata(path).map_err(fail)?.is_file() {
        let problem = "not a regular file; a capture is replayed from one".into();
        return Err(PortError::Unsupported { device: device(), problem });
    }
    let file = File::open(path).map_err(fail)?;
    let mut bytes = Vec::new();
    let len = file.take(REPLAY_MAX_BYTES + 1).read_to_end(&mut bytes).map_err(fail)?;
    if len as u64 > REPLAY_MAX_BYTES {
        let problem = format!(
            "longer than {REPLAY_MAX_BYTES} bytes, and a replayed file is held in memory; split \
             it with `editcap -c`"
        );
        return Err(PortError::Unsupported { device: device(), problem });
    }
    Capture::new(bytes)
        .map_err(|error| PortError::BadFile { device: device(), problem: error.to_string() })
}

fn create_file(path: &Path) -> Result<File, PortError> {
    // Opening a FIFO for writing would wait for a reader, and writing to one for its pace.
    if std::fs::metadata(path)
        .is_ok_and(|meta| meta.file_type().is_fifo() || meta.file_type().is_socket())
    {
        let problem = "a pipe or socket would stall the port; record to a regular file".into();
        return Err(PortError::Unsupported { device: path.display().to_string(), problem });
    }
    File::create(path).map_err(|source| file_error(path, "write", source))
}

fn file_error(path: &Path, verb: &str, source: io::Error) -> PortError {
    let device = path.display().to_string();
    match source.kind() {
        io::ErrorKind::NotFound => {
            PortError::NotFound { device, what: "file or directory", hint: String::new() }
        }
        io::ErrorKind::PermissionDenied => PortError::Permission {
            device,
            what: format!("to {verb} it"),
            remedy: format!("let the user that runs the manager {verb} it"),
        },
        _ => PortError::Os { device, what: format!("cannot {verb} it"), source },
    }
}

struct PcapPort {
    info: PortInfo,
    recording: Option<Arc<RecorderState>>,
}

impl Port for PcapPort {
    fn info(&self) -> PortInfo {
        let mut info = self.info.clone();
        if self.recording.as_ref().is_some_and(|recording| recording.failed()) {
            info.link = LinkState::Down;
        }
        info
    }

    fn hw_stats(&self) -> Vec<(String, u64)> {
        let Some(recording) = &self.recording else { return Vec::new() };
        vec![
            ("recorded_pkts".into(), recording.written_pkts.get()),
            ("record_lost_pkts".into(), recording.lost_pkts.get()),
            ("record_failed".into(), recording.failed().into()),
        ]
    }
}

/// Where the replay of a file is.
struct Replay {
    capture: Capture,
    next: usize,
    /// Passes still to come, with the present one; `None` = endless.
    passes_left: Option<u64>,
    clock: Option<Clock>,
}

impl Replay {
    fn new(capture: Capture, options: &PcapOptions) -> Self {
        let clock = (options.pace == Pace::Timestamps).then(|| Clock::new(capture.frames()));
        let endless = options.loops == 0;
        Self { capture, next: 0, passes_left: (!endless).then_some(options.loops), clock }
    }

    fn exhausted(&self) -> bool {
        self.passes_left == Some(0) || self.capture.frames().is_empty()
    }

    /// How many frames may come now, up to a burst and to the end of this pass.
    fn due_pkts(&mut self) -> usize {
        if self.exhausted() {
            return 0;
        }
        let left = &self.capture.frames()[self.next..];
        let burst = &left[..left.len().min(MAX_BURST_PKTS)];
        match &mut self.clock {
            None => burst.len(),
            Some(clock) => {
                let now_ns = clock.now_ns();
                burst.iter().take_while(|frame| clock.due_ns(frame) <= now_ns).count()
            }
        }
    }

    fn advance(&mut self) {
        self.next += 1;
        if self.next == self.capture.frames().len() {
            self.next = 0;
            if let Some(passes) = &mut self.passes_left {
                *passes -= 1;
            }
            if let Some(clock) = &mut self.clock {
                clock.pass_start_ns = clock.pass_start_ns.saturating_add(clock.pass_ns);
            }
        }
    }
}

/// The time of a replay, in nanoseconds since its first burst.
struct Clock {
    started: Option<Instant>,
    first_ns: u64,
    /// From the first frame of one pass to that of the next: the file's span and one mean gap.
    pass_ns: u64,
    pass_start_ns: u64,
}

impl Clock {
    fn new(frames: &[Frame]) -> Self {
        let first_ns = frames.first().map_or(0, |frame| frame.time_ns);
        let last_ns = frames.iter().map(|frame| frame.time_ns).max().unwrap_or(first_ns);
        let span_ns = last_ns - first_ns;
        let gaps = (frames.len() as u64).saturating_sub(1).max(1);
        let pass_ns = span_ns.saturating_add(span_ns / gaps);
        Self { started: None, first_ns, pass_ns, pass_start_ns: 0 }
    }

    fn now_ns(&mut self) -> u64 {
        let now = Instant::now();
        let elapsed = now - *self.started.get_or_insert(now);
        u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
    }

    fn due_ns(&self, frame: &Frame) -> u64 {
        self.pass_start_ns.saturating_add(frame.time_ns.saturating_sub(self.first_ns))
    }
}

struct PcapQueue {
    replay: Option<Replay>,
    recorder: Option<Recorder>,
    counters: Arc<QueueCounters>,
    discard: Discard,
    buffers: Vec<BufferIndex>,
}

/// What is wrong with a frame, if anything.
fn flaw(frame: &Frame, max_bytes: u32) -> Option<DropReason> {
    if frame.cut_off || frame.len_bytes < ETHERNET_HEADER_BYTES {
        Some(DropReason::RxMalformed)
    } else if frame.len_bytes > max_bytes {
        Some(DropReason::RxTooLarge)
    } else {
        None
    }
}

impl PortQueue for PcapQueue {
    fn rx_burst(&mut self, pool: &mut BufferPool, out: &mut Vec<PortPacket>) {
        let Some(replay) = &mut self.replay else { return };
        let due = replay.due_pkts();
        if due == 0 {
            return;
        }
        pool.take(due, &mut self.buffers);
        let geometry = *pool.region().geometry();
        let (mut taken_pkts, mut taken_bytes) = (0, 0);
        for _ in 0..due {
            let frame = replay.capture.frames()[replay.next];
            let mut drop_reason = flaw(&frame, geometry.max_packet_bytes());
            if drop_reason.is_none() {
                let Some(buffer) = self.buffers.pop() else { break };
                let offset_bytes = geometry.headroom_bytes;
                let len_bytes = frame.len_bytes as u16;
                if pool.region().write(buffer, offset_bytes, replay.capture.bytes(&frame)) {
                    out.push(PortPacket { buffer, offset_bytes, len_bytes, flow_hash: 0 });
                } else {
                    self.buffers.push(buffer);
                    drop_reason = Some(DropReason::RxTooLarge);
                }
            }
            if let Some(reason) = drop_reason {
                self.counters.drops.add(reason, 1);
            }
            taken_pkts += 1;
            taken_bytes += u64::from(frame.len_bytes);
            replay.advance();
        }
        pool.give(&self.buffers);
        self.buffers.clear();
        self.counters.rx_pkts.add(taken_pkts);
        self.counters.rx_bytes.add(taken_bytes);
    }

    fn tx_burst(&mut self, pool: &mut BufferPool, packets: &[PortPacket]) -> usize {
        let packets = &packets[..packets.len().min(MAX_BURST_PKTS)];
        let Some(recorder) = &mut self.recorder else {
            return self.discard.take(pool, packets, &self.counters);
        };
        let taken = recorder.take(pool, packets, &self.counters);
        self.buffers.extend(packets[..taken].iter().map(|packet| packet.buffer));
        pool.give(&self.buffers);
        self.buffers.clear();
        taken
    }

    fn maintain(&mut self, _pool: &mut BufferPool) {
        if let Some(recorder) = &mut self.recorder {
            recorder.maintain(&self.counters);
        }
    }

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }

    /// Packets that wait to be written: accepted, and not yet counted as sent.
    fn held_pkts(&self) -> u64 {
        self.recorder.as_ref().map_or(0, Recorder::waiting_pkts)
    }

    fn exhausted(&self) -> bool {
        self.replay.as_ref().is_some_and(Replay::exhausted)
    }

    fn close(&mut self, _pool: &mut BufferPool) {
        if let Some(recorder) = &mut self.recorder {
            recorder.flush(&self.counters);
        }
    }
}

#[cfg(test)]
mod tests;
