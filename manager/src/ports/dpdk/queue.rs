//! Bursts: one call into the shim each.

use std::cell::RefCell;
use std::sync::Arc;

use dpdk_sys::sys::{self, Api};

use super::device::Device;
use super::pool::Mempool;
use crate::pool::BufferPool;
use crate::ports::{LinkState, MAX_BURST_PKTS, PortPacket, PortQueue, checksum};
use crate::stats::{DropReason, QueueCounters};

const _: () = assert!(MAX_BURST_PKTS == sys::MR_MAX_BURST as usize);
/// Shortest frame that a driver is given: an Ethernet header.
const MIN_FRAME_BYTES: u16 = 14;
/// Turns without a packet to send after which sent buffers are asked back.
const IDLE_TURNS: u32 = 64;
/// Bursts after which draining a closing queue ends, whatever still comes.
const DRAIN_BURSTS: usize = 1024;

const NO_PACKET: sys::mr_desc = sys::mr_desc { index: 0, offset: 0, len: 0, hash: 0 };

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

    fn receive(&mut self, out: &mut [sys::mr_desc; MAX_BURST_PKTS]) -> usize {
        let mut drops = sys::mr_rx_drops::default();
        // SAFETY: the port is started and this queue set up on this mempool; `out` has room for a
        // burst. This worker alone polls the queue.
        let received = unsafe {
            self.device.api.mr_rx_burst(
                self.device.port_id,
                self.queue,
                self.mempool.raw(),
                self.device.max_frame_bytes,
                out.as_mut_ptr(),
                sys::MR_MAX_BURST as u16,
                &raw mut drops,
            )
        };
        let dropped = drops.too_large + drops.malformed;
        if dropped > 0 {
            self.counters.rx_pkts.add(dropped.into());
            self.counters.rx_bytes.add(drops.bytes);
            self.counters.drops.add(DropReason::RxTooLarge, drops.too_large.into());
            self.counters.drops.add(DropReason::RxMalformed, drops.malformed.into());
        }
        usize::from(received).min(out.len())
    }

    /// Hands a run of sendable packets to the driver; returns how many it took.
    fn send(&mut self, packets: &[PortPacket]) -> usize {
        let mut run = [NO_PACKET; MAX_BURST_PKTS];
        for (to, from) in run.iter_mut().zip(packets) {
            to.index = from.buffer;
            to.offset = from.offset_bytes;
            to.len = from.len_bytes;
        }
        let len = packets.len().min(MAX_BURST_PKTS);
        // SAFETY: `sendable` has found every packet inside a buffer of this mempool, whose mbufs
        // the caller owns; the port is started and this worker alone uses the queue.
        let taken = usize::from(unsafe {
            self.device.api.mr_tx_burst(
                self.device.port_id,
                self.queue,
                self.mempool.raw(),
                run.as_ptr(),
                len as u16,
            )
        })
        .min(len);
        let bytes = packets[..taken].iter().map(|packet| u64::from(packet.len_bytes)).sum();
        self.counters.tx_pkts.add(taken as u64);
        self.counters.tx_bytes.add(bytes);
        taken
    }

    /// True when the driver may be given the packet.
    #[inline]
    fn sendable(&self, packet: &PortPacket) -> bool {
        let PortPacket { buffer, offset_bytes, len_bytes, .. } = *packet;
        len_bytes >= MIN_FRAME_BYTES
            && u32::from(len_bytes) <= u32::from(self.device.mtu_bytes) + self.header_bytes(packet)
            && self.mempool.holds(buffer)
            && self.mempool.region().geometry().contains(buffer, offset_bytes, len_bytes)
    }

    /// Bytes of the frame that do not count for the MTU: the header and up to two VLAN tags.
    #[inline]
    fn header_bytes(&self, packet: &PortPacket) -> u32 {
        if packet.len_bytes <= self.device.mtu_bytes {
            return MIN_FRAME_BYTES.into();
        }
        self.tagged_header_bytes(packet)
    }

    #[cold]
    fn tagged_header_bytes(&self, packet: &PortPacket) -> u32 {
        let mut header = u32::from(MIN_FRAME_BYTES);
        for _ in 0..2 {
            let at = u32::from(packet.offset_bytes) + header - 2;
            let mut ethertype = [0; 2];
            let Ok(at) = u16::try_from(at) else { break };
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
        let mut burst = [NO_PACKET; MAX_BURST_PKTS];
        let received = self.receive(&mut burst);
        if self.complete_checksums {
            for packet in &burst[..received] {
                let region = self.mempool.region();
                checksum::complete_partial(region, packet.index, packet.offset, packet.len);
            }
        }
        let mut bytes = 0;
        out.extend(burst[..received].iter().map(|packet| {
            bytes += u64::from(packet.len);
            PortPacket {
                buffer: packet.index,
                offset_bytes: packet.offset,
                len_bytes: packet.len,
                flow_hash: packet.hash,
            }
        }));
        self.counters.rx_pkts.add(received as u64);
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
            let run = rest.iter().take_while(|packet| self.sendable(packet)).count();
            if run == 0 {
                self.drop_packets(pool, &rest[..1], DropReason::TxTooLarge);
                done += 1;
                continue;
            }
            let taken = self.send(&rest[..run]);
            done += taken;
            if taken < run {
                break;
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

    fn close(&mut self, pool: &mut BufferPool) {
        // A `net_ring` keeps its packets when it is stopped, so they are taken out first. Of other
        // devices this may take a few that have arrived; none was counted as received.
        if self.device.driver == "net_ring" {
            let mut burst = [NO_PACKET; MAX_BURST_PKTS];
            for _ in 0..DRAIN_BURSTS {
                let received = self.receive(&mut burst);
                if received == 0 {
                    break;
                }
                let buffers: Vec<_> = burst[..received].iter().map(|packet| packet.index).collect();
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
