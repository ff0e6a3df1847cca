//! Bursts: one call into the shim each.

use std::cell::RefCell;
use std::mem::offset_of;
use std::sync::Arc;

use dpdk_sys::sys::{self, Api};

use super::device::Device;
use super::pool::Mempool;
use crate::pool::BufferPool;
use crate::ports::{LinkState, MAX_BURST_PKTS, PortPacket, PortQueue, checksum};
use crate::stats::{DropReason, QueueCounters};

const _: () = assert!(MAX_BURST_PKTS == sys::MR_MAX_BURST as usize);
// A packet lies in memory as the shim's does, so that a burst passes without a copy.
const _: () = {
    assert!(size_of::<PortPacket>() == size_of::<sys::mr_desc>());
    assert!(align_of::<PortPacket>().is_multiple_of(align_of::<sys::mr_desc>()));
    assert!(offset_of!(PortPacket, buffer) == offset_of!(sys::mr_desc, index));
    assert!(offset_of!(PortPacket, offset_bytes) == offset_of!(sys::mr_desc, offset));
    assert!(offset_of!(PortPacket, len_bytes) == offset_of!(sys::mr_desc, len));
    assert!(offset_of!(PortPacket, flow_hash) == offset_of!(sys::mr_desc, hash));
};
/// An Ethernet header.
const HEADER_BYTES: u16 = 14;
/// Turns without a packet to send after which sent buffers are asked back.
const IDLE_TURNS: u32 = 64;
/// Bursts after which draining a closing queue ends, whatever still comes.
const DRAIN_BURSTS: usize = 1024;

/// One receive and one transmit queue of a device.
pub(super) struct DpdkQueue {
    device: Arc<Device>,
    mempool: Arc<Mempool>,
    queue: u16,
    counters: Arc<QueueCounters>,
    /// The driver shows what a packet socket sees: checksums that the sender left to the device.
    complete_checksums: bool,
    /// Turns since the last packet was sent.
    idle_turns: u32,
}

impl DpdkQueue {
    pub(super) fn new(device: Arc<Device>, queue: u16) -> Self {
        let mempool = device.pool(queue).clone();
        let complete_checksums = device.driver == "net_af_packet";
        let counters = Arc::default();
        Self { device, mempool, queue, counters, complete_checksums, idle_turns: IDLE_TURNS }
    }

    /// Appends a burst to `out`; returns the bytes in it.
    fn receive(&mut self, out: &mut Vec<PortPacket>) -> u64 {
        let mut result = sys::mr_rx::default();
        out.reserve(MAX_BURST_PKTS);
        // SAFETY: the port is started and this queue set up on this mempool, and this worker alone
        // polls it. `reserve` made room for a burst past the end; the shim writes at most that many
        // packets there, in the layout asserted above, and says how many, and so many become part
        // of the vector.
        unsafe {
            let received = self.device.api.mr_rx_burst(
                self.device.port_id,
                self.queue,
                self.mempool.raw(),
                self.device.max_frame_bytes,
                out.as_mut_ptr().add(out.len()).cast(),
                sys::MR_MAX_BURST as u16,
                &raw mut result,
            );
            out.set_len(out.len() + usize::from(received).min(MAX_BURST_PKTS));
        }
        let dropped = result.too_large + result.malformed;
        if dropped > 0 {
            self.counters.rx_pkts.add(dropped.into());
            self.counters.rx_bytes.add(result.dropped_bytes);
            self.counters.drops.add(DropReason::RxTooLarge, result.too_large.into());
            self.counters.drops.add(DropReason::RxMalformed, result.malformed.into());
        }
        result.bytes
    }

    /// Hands packets to the driver, up to the first that is no frame of at most `max_frame_bytes`
    /// inside a buffer of this mempool. Returns how many are before that, and how many of them the
    /// driver took.
    fn send(&mut self, packets: &[PortPacket], max_frame_bytes: u16) -> (usize, usize) {
        let mut result = sys::mr_tx::default();
        // SAFETY: the shim reads as many packets as said, in the layout asserted above, and uses
        // none before it is found inside a buffer of this mempool, whose mbufs the caller owns; the
        // port is started and this worker alone uses the queue.
        unsafe {
            self.device.api.mr_tx_burst(
                self.device.port_id,
                self.queue,
                self.mempool.raw(),
                max_frame_bytes,
                packets.as_ptr().cast(),
                packets.len().min(MAX_BURST_PKTS) as u16,
                &raw mut result,
            );
        }
        self.counters.tx_pkts.add(result.taken.into());
        self.counters.tx_bytes.add(result.bytes);
        (result.fit.into(), result.taken.into())
    }

    /// Longest frame, if it has so many bytes before what counts for the MTU.
    #[inline]
    fn max_frame_bytes(&self, header_bytes: u16) -> u16 {
        self.device.mtu_bytes.saturating_add(header_bytes)
    }

    /// Sends a packet that is longer than others may be, if that is because of its VLAN tags.
    /// Returns false when it stays with the caller, who is to try again; what cannot be sent is
    /// dropped.
    #[cold]
    fn send_tagged(&mut self, pool: &mut BufferPool, packet: &PortPacket) -> bool {
        let header_bytes = self.tagged_header_bytes(packet);
        if header_bytes > HEADER_BYTES {
            let max_frame_bytes = self.max_frame_bytes(header_bytes);
            let (fit, taken) = self.send(std::slice::from_ref(packet), max_frame_bytes);
            if fit > 0 {
                return taken > 0;
            }
        }
        self.drop_packets(pool, std::slice::from_ref(packet), DropReason::TxTooLarge);
        true
    }

    /// Bytes of the frame that do not count for the MTU: the header and up to two VLAN tags.
    fn tagged_header_bytes(&self, packet: &PortPacket) -> u16 {
        let mut header = HEADER_BYTES;
        for _ in 0..2 {
            let mut ethertype = [0; 2];
            let Some(at) = packet.offset_bytes.checked_add(header - 2) else { break };
            let read = self.mempool.region().read(packet.buffer, at, &mut ethertype);
            if !read || !matches!(u16::from_be_bytes(ethertype), 0x8100 | 0x88a8) {
                break;
            }
            header += 4;
        }
        header
    }

    fn drop_packets(&self, pool: &mut BufferPool, packets: &[PortPacket], reason: DropReason) {
        for packet in packets {
            pool.give(&[packet.buffer]);
        }
        self.counters.drops.add(reason, packets.len() as u64);
    }
}

impl PortQueue for DpdkQueue {
    fn rx_burst(&mut self, _pool: &mut BufferPool, out: &mut Vec<PortPacket>) {
        register_thread(self.device.api);
        let before = out.len();
        let bytes = self.receive(out);
        let received = &out[before..];
        if self.complete_checksums {
            for &PortPacket { buffer, offset_bytes, len_bytes, .. } in received {
                let region = self.mempool.region();
                checksum::complete_partial(region, buffer, offset_bytes, len_bytes);
            }
        }
        self.counters.rx_pkts.add(received.len() as u64);
        self.counters.rx_bytes.add(bytes);
    }

    fn tx_burst(&mut self, pool: &mut BufferPool, packets: &[PortPacket]) -> usize {
        self.idle_turns = 0;
        if self.device.link() != LinkState::Up {
            self.drop_packets(pool, packets, DropReason::TxPortDown);
            return packets.len();
        }
        let mut done = 0;
        while done < packets.len() {
            let rest = &packets[done..packets.len().min(done + MAX_BURST_PKTS)];
            let (fit, taken) = self.send(rest, self.max_frame_bytes(HEADER_BYTES));
            done += taken;
            if taken < fit {
                break;
            }
            if let Some(odd) = rest.get(fit) {
                if !self.send_tagged(pool, odd) {
                    break;
                }
                done += 1;
            }
        }
        done
    }

    fn maintain(&mut self, _pool: &mut BufferPool) {
        if self.idle_turns < IDLE_TURNS {
            self.idle_turns += 1;
            if self.idle_turns == IDLE_TURNS {
                // SAFETY: the port is started and this worker alone uses the queue.
                unsafe { self.device.api.mr_tx_cleanup(self.device.port_id, self.queue) };
            }
        }
    }

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }

    fn held_buffers(&self) -> Option<usize> {
        None
    }

    fn close(&mut self, pool: &mut BufferPool) {
        // A `net_ring` keeps its packets when it is stopped, so they are taken out first. Of other
        // devices this may take a few that have arrived; none was counted as received.
        if self.device.driver == "net_ring" {
            let mut burst = Vec::with_capacity(MAX_BURST_PKTS);
            for _ in 0..DRAIN_BURSTS {
                burst.clear();
                self.receive(&mut burst);
                if burst.is_empty() {
                    break;
                }
                let buffers: Vec<_> = burst.iter().map(|packet| packet.buffer).collect();
                pool.give(&buffers);
            }
        }
        self.device.queue_closed();
        self.mempool.flush_cache();
    }
}

/// Gives the calling thread an lcore number, once, so that it has a cache in every mempool.
/// Without one (all 128 taken) everything works, only slower.
#[inline]
fn register_thread(api: &'static Api) {
    struct Registered(Option<&'static Api>);

    impl Drop for Registered {
        fn drop(&mut self) {
            if let Some(api) = self.0 {
                // SAFETY: this thread was registered below.
                unsafe { api.rte_thread_unregister() };
            }
        }
    }

    thread_local! {
        static REGISTERED: RefCell<Registered> = const { RefCell::new(Registered(None)) };
    }
    REGISTERED.with_borrow_mut(|registered| {
        if registered.0.is_none() {
            // SAFETY: EAL runs, for there is a device; the thread is not one of EAL's.
            unsafe { api.rte_thread_register() };
            registered.0 = Some(api);
        }
    });
}
