//! Writes packets to a capture file without holding up the poll loop.
//!
//! Packets are appended to a buffer in memory and written out between bursts. A packet counts as
//! sent once the file has it. When the disk is full or the file fails otherwise, the recording ends
//! at the last whole write, which leaves the file readable; the loss is logged once and counted.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::pool::BufferPool;
use crate::ports::{PortError, PortPacket};
use crate::stats::{Counter, DropReason, QueueCounters};

/// Most bytes that wait in memory; a burst beyond it is taken in part.
const BUFFER_MAX_BYTES: usize = 1 << 20;
/// Written out at once from here on, also while packets keep coming.
const FLUSH_BYTES: usize = 64 << 10;
const RECORD_HEADER_BYTES: usize = 16;
/// libpcap's largest, which means "whole frames".
const SNAPSHOT_BYTES: u32 = 262_144;

/// What the control side may know about a recording.
#[derive(Debug, Default)]
pub(super) struct RecorderState {
    pub(super) written_pkts: Counter,
    pub(super) lost_pkts: Counter,
    failed: AtomicBool,
}

impl RecorderState {
    pub(super) fn failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }
}

pub(super) struct Recorder {
    path: PathBuf,
    file: File,
    file_bytes: u64,
    buffer: Vec<u8>,
    waiting_pkts: u64,
    waiting_bytes: u64,
    busy: bool,
    state: Arc<RecorderState>,
}

impl Recorder {
    /// Starts a new file at `path`, over an older one: nanosecond pcap in this machine's byte order.
    pub(super) fn create(path: &Path) -> Result<Self, PortError> {
        let mut file = super::create_file(path)?;
        let mut header = Vec::new();
        header.extend(0xa1b2_3c4d_u32.to_ne_bytes());
        header.extend(2_u16.to_ne_bytes());
        header.extend(4_u16.to_ne_bytes());
        for field in [0, 0, SNAPSHOT_BYTES, 1] {
            header.extend(u32::to_ne_bytes(field));
        }
        file.write_all(&header).map_err(|source| PortError::Os {
            device: path.display().to_string(),
            what: "writing the file header".into(),
            source,
        })?;
        Ok(Self {
            path: path.into(),
            file,
            file_bytes: header.len() as u64,
            buffer: Vec::with_capacity(BUFFER_MAX_BYTES),
            waiting_pkts: 0,
            waiting_bytes: 0,
            busy: false,
            state: Arc::default(),
        })
    }

    /// Puts another file under the recording, to see what becomes of one that fails.
    #[cfg(test)]
    pub(super) fn replace_file(&mut self, file: File) {
        self.file = file;
    }

    pub(super) fn state(&self) -> &Arc<RecorderState> {
        &self.state
    }

    pub(super) fn waiting_pkts(&self) -> u64 {
        self.waiting_pkts
    }

    /// Takes packets from the front while there is room; their buffers may be freed at once.
    pub(super) fn take(
        &mut self,
        pool: &BufferPool,
        packets: &[PortPacket],
        counters: &QueueCounters,
    ) -> usize {
        if self.state.failed() {
            self.lose(packets.len() as u64, counters);
            return packets.len();
        }
        self.busy = true;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Seconds are 32 bits wide in the format: they wrap in 2106.
        let time = [now.as_secs() as u32, now.subsec_nanos()];
        for (taken, packet) in packets.iter().enumerate() {
            let len = usize::from(packet.len_bytes);
            if self.buffer.len() + RECORD_HEADER_BYTES + len > BUFFER_MAX_BYTES {
                return taken;
            }
            if !self.append(pool, packet, time) {
                counters.drops.add(DropReason::TxTooLarge, 1);
            }
        }
        packets.len()
    }

    fn append(&mut self, pool: &BufferPool, packet: &PortPacket, time: [u32; 2]) -> bool {
        let start = self.buffer.len();
        let len = u32::from(packet.len_bytes);
        for field in [time[0], time[1], len, len] {
            self.buffer.extend(field.to_ne_bytes());
        }
        let data_at = self.buffer.len();
        self.buffer.resize(data_at + len as usize, 0);
        if !pool.region().read(packet.buffer, packet.offset_bytes, &mut self.buffer[data_at..]) {
            self.buffer.truncate(start);
            return false;
        }
        self.waiting_pkts += 1;
        self.waiting_bytes += u64::from(len);
        true
    }

    /// Writes when enough has gathered, or when no packet came since the last call.
    pub(super) fn maintain(&mut self, counters: &QueueCounters) {
        let busy = std::mem::take(&mut self.busy);
        if self.buffer.len() >= FLUSH_BYTES || !busy {
            self.flush(counters);
        }
    }

    /// Writes what waits.
    pub(super) fn flush(&mut self, counters: &QueueCounters) {
        if self.buffer.is_empty() {
            return;
        }
        match self.file.write_all(&self.buffer) {
            Ok(()) => {
                self.file_bytes += self.buffer.len() as u64;
                self.state.written_pkts.add(self.waiting_pkts);
                counters.tx_pkts.add(self.waiting_pkts);
                counters.tx_bytes.add(self.waiting_bytes);
            }
            Err(error) => self.fail(&error, counters),
        }
        self.buffer.clear();
        self.waiting_pkts = 0;
        self.waiting_bytes = 0;
    }

    fn fail(&mut self, error: &std::io::Error, counters: &QueueCounters) {
        let path = self.path.display();
        tracing::error!("{path}: recording stopped: {error}; packets sent here are now dropped");
        // Takes away a record written in part. A device file cannot be cut, nor needs to be.
        if let Err(error) = self.file.set_len(self.file_bytes) {
            tracing::debug!("{path}: not cut to its last whole record: {error}");
        }
        self.state.failed.store(true, Ordering::Relaxed);
        self.lose(self.waiting_pkts, counters);
    }

    fn lose(&self, pkts: u64, counters: &QueueCounters) {
        self.state.lost_pkts.add(pkts);
        counters.drops.add(DropReason::TxPortDown, pkts);
    }
}
