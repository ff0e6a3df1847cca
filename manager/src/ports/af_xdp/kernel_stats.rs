//! The kernel's counters for a socket: copied by the queue's worker for readers elsewhere, put into
//! the drop ledger, and explained once when they grow.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

use super::abi::XdpStatistics;
use crate::stats::{DropReason, QueueCounters};

/// Latest counters of one queue, as the kernel gives them.
#[derive(Debug, Default)]
pub struct KernelStats {
    rx_dropped: AtomicU64,
    rx_invalid_descs: AtomicU64,
    tx_invalid_descs: AtomicU64,
    rx_ring_full: AtomicU64,
    fill_ring_empty: AtomicU64,
    tx_ring_empty: AtomicU64,
    /// Ring entries that named a buffer the kernel does not hold.
    bad_descriptors: AtomicU64,
}

impl KernelStats {
    /// Publishes what the kernel says, and our own count of its impossible entries.
    pub fn publish(&self, now: &XdpStatistics, bad_descriptors: u64) {
        let set = |to: &AtomicU64, value| to.store(value, Ordering::Relaxed);
        set(&self.rx_dropped, now.rx_dropped);
        set(&self.rx_invalid_descs, now.rx_invalid_descs);
        set(&self.tx_invalid_descs, now.tx_invalid_descs);
        set(&self.rx_ring_full, now.rx_ring_full);
        set(&self.fill_ring_empty, now.rx_fill_ring_empty_descs);
        set(&self.tx_ring_empty, now.tx_ring_empty_descs);
        set(&self.bad_descriptors, bad_descriptors);
    }

    /// Every counter by name.
    pub fn read(&self) -> [(&'static str, u64); 7] {
        let get = |from: &AtomicU64| from.load(Ordering::Relaxed);
        [
            ("xsk_rx_dropped", get(&self.rx_dropped)),
            ("xsk_rx_ring_full", get(&self.rx_ring_full)),
            ("xsk_fill_ring_empty", get(&self.fill_ring_empty)),
            ("xsk_rx_invalid_descs", get(&self.rx_invalid_descs)),
            ("xsk_tx_invalid_descs", get(&self.tx_invalid_descs)),
            ("xsk_tx_ring_empty", get(&self.tx_ring_empty)),
            ("xsk_bad_descriptors", get(&self.bad_descriptors)),
        ]
    }
}

/// Puts frames that the kernel dropped at this socket into the drop ledger: they came, so they are
/// received, and dropped under a reason. Only for copy mode, where each count is a frame; a driver in
/// zero-copy mode counts attempts to find a buffer.
#[derive(Debug)]
pub struct DropLedger {
    /// With fragments no frame is too long for the kernel: all that it drops, it drops for want of
    /// buffers.
    fragments: bool,
    too_large_pkts: u64,
    no_buffer_pkts: u64,
    ring_full_pkts: u64,
}

impl DropLedger {
    /// A ledger for a fresh socket; `fragments` when frames may take several buffers.
    pub fn new(fragments: bool) -> Self {
        Self { fragments, too_large_pkts: 0, no_buffer_pkts: 0, ring_full_pkts: 0 }
    }

    /// Enters what is new.
    pub fn enter(&mut self, now: &XdpStatistics, counters: &QueueCounters) {
        // An empty fill ring counts in `rx_dropped` too; a drop beyond those was for its length.
        let beyond = now.rx_dropped.saturating_sub(now.rx_fill_ring_empty_descs);
        let (too_large, no_buffer) =
            if self.fragments { (0, now.rx_dropped) } else { (beyond, now.rx_dropped - beyond) };
        for (before, now_pkts, reason) in [
            (&mut self.too_large_pkts, too_large, DropReason::RxTooLarge),
            (&mut self.no_buffer_pkts, no_buffer, DropReason::RxNoBuffer),
            (&mut self.ring_full_pkts, now.rx_ring_full, DropReason::RxRingFull),
        ] {
            let new_pkts = now_pkts.saturating_sub(*before);
            *before += new_pkts;
            counters.rx_pkts.add(new_pkts);
            counters.drops.add(reason, new_pkts);
        }
    }
}

/// Says once per queue and cause why the kernel drops frames, and what to do about it.
#[derive(Debug)]
pub struct DropAdvice {
    device: String,
    queue: u32,
    /// What to say when frames were dropped though buffers were there.
    too_long: String,
    warned_too_long: bool,
    warned_no_buffer: bool,
}

impl DropAdvice {
    /// `longest_bytes` is what the kernel can deliver; `generic` that the program runs behind the
    /// stack, where a sender's segmentation offload reaches us.
    pub fn new(device: &str, queue: u32, longest_bytes: u32, generic: bool) -> Self {
        let too_long = if generic {
            format!(
                "longer than {longest_bytes} bytes; in generic mode these are most often \
                 unsegmented TCP: run `ethtool -K <sender's interface> tx off tso off gso off`, or \
                 use mode = \"native\"; for true jumbo frames raise pool.buffer_bytes"
            )
        } else {
            format!(
                "longer than {longest_bytes} bytes; lower the MTU, or raise pool.buffer_bytes \
                 (12288 takes frames of 9000)"
            )
        };
        Self {
            device: device.to_owned(),
            queue,
            too_long,
            warned_too_long: false,
            warned_no_buffer: false,
        }
    }

    /// Looks at the counters and speaks when something new grew.
    ///
    /// An empty fill ring counts in `rx_dropped` too; a drop beyond those was for its length.
    pub fn look(&mut self, now: &XdpStatistics) {
        let Self { device, queue, too_long, .. } = self;
        if now.rx_dropped > now.rx_fill_ring_empty_descs && !self.warned_too_long {
            self.warned_too_long = true;
            let frames = now.rx_dropped - now.rx_fill_ring_empty_descs;
            tracing::warn!(
                "{device} queue {queue}: the kernel dropped {frames} frames, probably {too_long}"
            );
        }
        if now.rx_ring_full + now.rx_fill_ring_empty_descs > 0 && !self.warned_no_buffer {
            self.warned_no_buffer = true;
            tracing::warn!(
                "{device} queue {queue}: the kernel dropped frames because no buffer was free; \
                 the chain is slower than the traffic, or raise pool.buffers and ring_descriptors"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statistics(rx_dropped: u64, fill_empty: u64, rx_ring_full: u64) -> XdpStatistics {
        XdpStatistics {
            rx_dropped,
            rx_fill_ring_empty_descs: fill_empty,
            rx_ring_full,
            ..XdpStatistics::default()
        }
    }

    fn entered(counters: &QueueCounters) -> [u64; 4] {
        let of = |reason| counters.drops.get(reason);
        [
            counters.rx_pkts.get(),
            of(DropReason::RxTooLarge),
            of(DropReason::RxNoBuffer),
            of(DropReason::RxRingFull),
        ]
    }

    #[test]
    fn each_frame_the_kernel_dropped_is_entered_once_under_its_reason() {
        let (mut ledger, counters) = (DropLedger::new(false), QueueCounters::default());
        ledger.enter(&statistics(5, 2, 4), &counters);
        assert_eq!(entered(&counters), [9, 3, 2, 4]);
        ledger.enter(&statistics(5, 2, 4), &counters);
        assert_eq!(entered(&counters), [9, 3, 2, 4]);
        ledger.enter(&statistics(6, 3, 4), &counters);
        assert_eq!(entered(&counters), [10, 3, 3, 4]);
    }

    #[test]
    fn with_fragments_no_frame_is_too_large_for_the_kernel() {
        let (mut ledger, counters) = (DropLedger::new(true), QueueCounters::default());
        ledger.enter(&statistics(5, 0, 0), &counters);
        assert_eq!(entered(&counters), [5, 0, 5, 0]);
    }
}
