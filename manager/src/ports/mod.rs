//! Ports: the places where packets enter and leave, behind one trait.
//!
//! | back end | what it is | privilege |
//! |---|---|---|
//! | `dpdk` | any DPDK poll-mode driver, by PCI address or vdev | root or VFIO |
//! | `af_xdp` | a kernel network interface, by AF_XDP sockets | NET_ADMIN, NET_RAW, BPF, IPC_LOCK |
//! | `pcap` | replays one capture file and records another | none |
//! | `generator` | makes packets of a given shape at a given rate | none |
//! | `sink` | counts packets and drops them | none |
//! | `loop` | gives back what it is sent | none |
//! | `fault` | wraps any of these: loss, reorder, duplicate, corrupt, delay | that of the inner one |
//!
//! A back end opens as an [`OpenPort`]: one [`Port`] for the control side and one [`PortQueue`]
//! per queue for the worker that will poll it. All back ends pass the one conformance suite in
//! `manager/tests/port_conformance.rs`.

pub mod af_xdp;
pub mod checksum;
#[cfg(feature = "dpdk")]
pub mod dpdk;
pub mod fault;
pub mod generator;
pub mod layout;
pub mod looped;
pub mod opener;
pub mod pcap;
pub mod sink;
pub mod test_frame;

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use nflib::control::BufferUse;
use nflib::descriptor::{Delivery, Returned};
use nflib::shm::BufferIndex;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::pool::BufferPool;
use crate::stats::QueueCounters;

/// The most packets a queue delivers or takes in one call. DPDK's vector drivers work in 32s; 64
/// halves the per-burst costs that our rings add.
pub const MAX_BURST_PKTS: usize = 64;

/// A packet at a port: a range of one buffer.
///
/// Its fields lie as the first ones of a descriptor do, in as many bytes, and as the DPDK shim has
/// them: from one to the other is one move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct PortPacket {
    /// The buffer.
    pub buffer: BufferIndex,
    /// Where the frame starts in it, bytes. The port chose it so that headroom lies before it.
    pub offset_bytes: u16,
    /// The frame's length without the frame check sequence, bytes.
    pub len_bytes: u16,
    /// The NIC's flow hash (RSS), or 0 when it gave none.
    pub flow_hash: u32,
}

impl From<&Delivery> for PortPacket {
    #[inline]
    fn from(delivery: &Delivery) -> Self {
        let &Delivery { buffer, offset_bytes, len_bytes, flow_hash, .. } = delivery;
        Self { buffer, offset_bytes, len_bytes, flow_hash }
    }
}

impl From<&Returned> for PortPacket {
    #[inline]
    fn from(returned: &Returned) -> Self {
        let &Returned { buffer, offset_bytes, len_bytes, flow_hash, .. } = returned;
        Self { buffer, offset_bytes, len_bytes, flow_hash }
    }
}

/// One queue of a port, owned and polled by one worker.
///
/// Ownership of buffers: `rx_burst` hands the buffers in `out` to the caller; `tx_burst` takes those
/// of the packets it accepted and no others, and gives them back to the pool when they are sent.
pub trait PortQueue: Send {
    /// Receives up to [`MAX_BURST_PKTS`] packets, appended to `out`. Never blocks.
    fn rx_burst(&mut self, pool: &mut BufferPool, out: &mut Vec<PortPacket>);

    /// Sends packets in order; returns how many it took from the front. The rest stay the caller's.
    /// A taken packet that cannot be sent (too long, device gone) is freed and counted as a drop.
    /// Never blocks.
    fn tx_burst(&mut self, pool: &mut BufferPool, packets: &[PortPacket]) -> usize;

    /// Work that is not a packet: taking back sent buffers, refilling, kicking the driver. The
    /// worker calls it once in every turn of its loop, also when there is no traffic.
    fn maintain(&mut self, pool: &mut BufferPool);

    /// The counters, for readers in other threads.
    fn counters(&self) -> &Arc<QueueCounters>;

    /// A descriptor that becomes readable when packets wait, for a worker that sleeps. `None`
    /// when the back end can only be polled.
    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Whether packets can come from here at all.
    fn may_receive(&self) -> bool {
        true
    }

    /// Packets that the queue has counted as received and not yet handed out or dropped.
    fn held_pkts(&self) -> u64 {
        0
    }

    /// Buffers that the queue has between two calls: posted for receive, being sent, delayed. `None`
    /// when only the driver knows.
    fn held_buffers(&self) -> Option<usize> {
        Some(0)
    }

    /// Says which those are, each once.
    fn tell_buffers(&self, _tell: &mut dyn FnMut(BufferIndex, BufferUse)) {}

    /// True when a finite source (a replayed file, a generator with a count) has nothing more.
    fn exhausted(&self) -> bool {
        false
    }

    /// Stops the queue and gives back every buffer it holds. Called once, last.
    fn close(&mut self, pool: &mut BufferPool);
}

/// State of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    /// Carrier is there.
    Up,
    /// No carrier, or set down.
    Down,
    /// The device was removed.
    Gone,
}

/// What a port is and how it is doing, for `millrace port list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortInfo {
    /// Back end: `dpdk`, `af_xdp`, …
    pub backend: String,
    /// What it stands on: an interface, a PCI address, a file.
    pub device: String,
    /// Driver and mode as really obtained, e.g. `net_e1000_igb`, `veth native copy`.
    pub driver: String,
    /// Link state now.
    pub link: LinkState,
    /// Link speed where the driver tells, in Mbit/s.
    pub speed_mbps: Option<u32>,
    /// Hardware address as `02:00:00:00:00:01`, where there is one.
    pub mac: Option<String>,
    /// Longest network-layer packet, bytes.
    pub mtu_bytes: u32,
    /// Promiscuous mode.
    pub promiscuous: bool,
    /// Queues opened.
    pub queues: u16,
}

/// The control side of a port. Lives in the manager's control thread.
pub trait Port: Send {
    /// What the port is now.
    fn info(&self) -> PortInfo;

    /// Counters of the NIC or kernel behind the port, by the driver's own names.
    fn hw_stats(&self) -> Vec<(String, u64)> {
        Vec::new()
    }

    /// The NUMA node that the device is on, where that is known.
    fn numa_node(&self) -> Option<u32> {
        None
    }

    /// Lets go of the device. Called once, after every queue was closed.
    fn close(&mut self) {}
}

/// A port that is ready to be polled.
pub struct OpenPort {
    /// Control side.
    pub port: Box<dyn Port>,
    /// One queue after the other; queue `q` was opened on `pools[q % pools.len()]`.
    pub queues: Vec<Box<dyn PortQueue>>,
}

/// Why a port could not be opened. Names the port's device and says what to do.
#[derive(Debug, Error)]
pub enum PortError {
    /// There is no such device.
    #[error("{device}: no such {what}{hint}")]
    NotFound {
        /// What was asked for.
        device: String,
        /// Interface, PCI device, file.
        what: &'static str,
        /// What there is, or empty; starts with a separator.
        hint: String,
    },
    /// The process may not.
    #[error("{device}: permission denied ({what}); {remedy}")]
    Permission {
        /// What was asked for.
        device: String,
        /// The call that was refused.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// The configuration asks for what the device or back end cannot do.
    #[error("{device}: {problem}")]
    Unsupported {
        /// What was asked for.
        device: String,
        /// What is wrong, what would be right.
        problem: String,
    },
    /// A file's content is bad.
    #[error("{device}: {problem}")]
    BadFile {
        /// The file.
        device: String,
        /// What is wrong and where.
        problem: String,
    },
    /// The system said no.
    #[error("{device}: {what}: {source}")]
    Os {
        /// What was asked for.
        device: String,
        /// The call.
        what: String,
        /// Its error.
        source: std::io::Error,
    },
}
