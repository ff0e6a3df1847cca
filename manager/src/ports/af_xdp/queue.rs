//! One queue of an interface: bursts in, bursts out.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nflib::control::BufferUse;
use nflib::shm::BufferIndex;
use nix::sys::eventfd::EventFd;

use super::abi::{XDP_PKT_CONTD, XdpDesc};
use super::fragments::{Gather, Gathered, Piece, Scatter};
use super::kernel_stats::{DropAdvice, DropLedger, KernelStats};
use super::link::LinkStatus;
use super::socket::{Binding, Kick, Rings, XskSocket};
use super::sys;
use super::umem::{Holdings, Umem};
use crate::pool::BufferPool;
use crate::ports::{LinkState, MAX_BURST_PKTS, PortPacket, PortQueue, checksum};
use crate::stats::{DropReason, QueueCounters};

/// How often the link and the kernel's counters are looked at.
const TICK_NS: u64 = 10_000_000;
/// How long close waits for frames that were accepted to leave.
const DRAIN_PATIENCE: Duration = Duration::from_millis(100);
/// Most transmit calls in one turn, so that a slow device cannot hold the worker.
const KICKS_PER_TURN: u32 = 8;
/// Refilling waits for this many, to touch the fill ring's shared words less often.
const REFILL_BUFFERS: u32 = 32;
const ETHERNET_HEADER_BYTES: u32 = 14;
/// Ethernet header and one VLAN tag: what Linux lets a frame have over the MTU.
const OVER_MTU_BYTES: u32 = ETHERNET_HEADER_BYTES + 4;

/// The kernel's side of a queue, while it is open.
struct Live {
    socket: XskSocket,
    rings: Rings,
}

/// What a queue is opened with.
pub struct QueueSetup {
    pub socket: XskSocket,
    pub rings: Rings,
    pub binding: Binding,
    pub umem: Umem,
    pub link: Arc<LinkStatus>,
    pub kernel: Arc<KernelStats>,
    pub advice: DropAdvice,
    /// Where to enter the kernel's drops; `None` in zero-copy mode.
    pub ledger: Option<DropLedger>,
    /// Buffers to keep offered for receive.
    pub fill_target: u32,
    pub complete_checksums: bool,
}

/// One queue; see [`PortQueue`].
pub struct XdpQueue {
    live: Option<Live>,
    binding: Binding,
    umem: Umem,
    held: Holdings,
    gather: Gather,
    link: Arc<LinkStatus>,
    counters: Arc<QueueCounters>,
    kernel: Arc<KernelStats>,
    advice: DropAdvice,
    /// In copy mode; see [`DropLedger`].
    ledger: Option<DropLedger>,
    fill_target: u32,
    complete_checksums: bool,
    /// The last transmit call said the link is down; try again at the next tick.
    stalled: bool,
    next_tick_ns: u64,
    bad_descriptors: u64,
    /// What stands for the socket of a device that is gone: never readable, so that a worker that
    /// sleeps on its ports need not poll this one.
    quiet: Option<EventFd>,
    /// Buffers on their way to or from the pool, kept to save allocations.
    scratch: Vec<BufferIndex>,
}

impl XdpQueue {
    /// A queue over a bound socket; offers its first buffers for receive.
    pub fn new(setup: QueueSetup, pool: &mut BufferPool) -> Self {
        let mut queue = Self {
            held: Holdings::new(setup.umem.count()),
            live: Some(Live { socket: setup.socket, rings: setup.rings }),
            binding: setup.binding,
            umem: setup.umem,
            gather: Gather::default(),
            link: setup.link,
            counters: Arc::default(),
            kernel: setup.kernel,
            advice: setup.advice,
            ledger: setup.ledger,
            fill_target: setup.fill_target,
            complete_checksums: setup.complete_checksums,
            stalled: false,
            next_tick_ns: 0,
            bad_descriptors: 0,
            quiet: None,
            scratch: Vec::with_capacity(setup.binding.descriptors as usize),
        };
        queue.refill(pool, 1);
        queue
    }

    /// Checks a receive descriptor; `None` (and counted) when it does not name a buffer we offered.
    #[inline]
    fn accept(&mut self, desc: XdpDesc) -> Option<Piece> {
        let piece = self.umem.locate(desc.addr).and_then(|(buffer, offset_bytes)| {
            let slot = self.umem.slot(buffer)?;
            self.held.take_received(slot).then_some(Piece {
                buffer,
                offset_bytes,
                len_bytes: desc.len,
            })
        });
        if piece.is_none() {
            self.bad_descriptors += 1;
        }
        piece
    }

    /// One frame is complete: hands it out, or drops it under a reason.
    #[inline]
    fn deliver(&mut self, frame: Piece, out: &mut Vec<PortPacket>) {
        let end = frame.offset_bytes.checked_add(frame.len_bytes);
        let fits = end.is_some_and(|end| end <= self.umem.stride_bytes());
        if !fits || frame.len_bytes < ETHERNET_HEADER_BYTES {
            self.drop_received(frame.buffer, frame.len_bytes, DropReason::RxMalformed);
            return;
        }
        // A stride fits in 16 bits, and the frame lies within one.
        let packet = PortPacket {
            buffer: frame.buffer,
            offset_bytes: frame.offset_bytes as u16,
            len_bytes: frame.len_bytes as u16,
            flow_hash: 0,
        };
        if self.complete_checksums {
            checksum::prefetch_headers(self.umem.region(), packet.buffer, packet.offset_bytes);
        }
        out.push(packet);
    }

    /// Completes what senders left to hardware, once the headers of the whole burst have been asked
    /// for: the kernel wrote them on another core, most often, and one miss after the other would cost
    /// more than all the rest of receiving.
    fn complete_checksums(&self, received: &[PortPacket]) {
        if !self.complete_checksums {
            return;
        }
        for packet in received {
            checksum::complete_partial(
                self.umem.region(),
                packet.buffer,
                packet.offset_bytes,
                packet.len_bytes,
            );
        }
    }

    /// Counts a frame as received and dropped; its buffer goes back with the scratch list.
    fn drop_received(&mut self, buffer: BufferIndex, len_bytes: u32, reason: DropReason) {
        self.scratch.push(buffer);
        self.counters.rx_pkts.add(1);
        self.counters.rx_bytes.add(u64::from(len_bytes));
        self.counters.drops.add(reason, 1);
    }

    /// A piece of a frame of several chunks.
    fn gather(&mut self, piece: Piece, last: bool, out: &mut Vec<PortPacket>) {
        let chunk_end = piece.offset_bytes.saturating_add(piece.len_bytes);
        let piece = if chunk_end > self.umem.stride_bytes() {
            Piece { len_bytes: 0, ..piece }
        } else {
            piece
        };
        match self.gather.add(self.umem.region(), piece, last, &mut self.scratch) {
            Gathered::Incomplete => {}
            Gathered::Frame(frame) => self.deliver(frame, out),
            Gathered::TooLarge(frame, total_bytes) => {
                self.drop_received(frame.buffer, total_bytes, DropReason::RxTooLarge);
            }
        }
    }

    /// Offers buffers for receive when at least `least` are missing.
    fn refill(&mut self, pool: &mut BufferPool, least: u32) {
        let Some(live) = &mut self.live else { return };
        let missing = self.fill_target.saturating_sub(self.held.receive());
        if missing < least.min(self.fill_target) {
            return;
        }
        let fill = &mut live.rings.fill;
        let want = missing.min(fill.free(missing)) as usize;
        self.scratch.clear();
        pool.take(want, &mut self.scratch);
        for &buffer in &self.scratch {
            let Some(slot) = self.umem.slot(buffer) else {
                debug_assert!(false, "the pool of a queue is the share that its UMEM was made of");
                continue;
            };
            self.held.post_receive(slot);
            fill.write(self.umem.address(buffer, 0));
        }
        fill.publish();
        self.scratch.clear();
        if fill.wants_wakeup() && live.socket.kick_receive() == Kick::Gone {
            self.link.mark_gone();
        }
    }

    /// Takes back the buffers whose frames were sent.
    fn reap(&mut self, pool: &mut BufferPool) {
        if self.held.transmit() == 0 {
            return;
        }
        let Some(live) = &mut self.live else { return };
        self.scratch.clear();
        while let Some(address) = live.rings.completion.next() {
            let slot = self.umem.locate(address).and_then(|(buffer, _)| self.umem.slot(buffer));
            match slot.and_then(|slot| Some((slot, self.held.complete(slot)?))) {
                Some((slot, true)) => self.scratch.push(self.umem.buffer(slot)),
                Some((_, false)) => {}
                None => self.bad_descriptors += 1,
            }
        }
        live.rings.completion.release();
        pool.give(&self.scratch);
        self.scratch.clear();
    }

    /// Makes the kernel send what waits in the transmit ring.
    fn send_waiting(&mut self, pool: &mut BufferPool) {
        for _ in 0..KICKS_PER_TURN {
            let Some(live) = &mut self.live else { return };
            if self.stalled || live.rings.tx.waiting() == 0 || !live.rings.tx.wants_wakeup() {
                return;
            }
            let kick = live.socket.kick_transmit();
            self.reap(pool);
            match kick {
                Kick::More => {}
                Kick::Done => return,
                Kick::Down => self.stalled = true,
                Kick::Gone => self.link.mark_gone(),
            }
            if kick == Kick::Gone {
                return;
            }
        }
    }

    /// Puts one frame into the transmit ring.
    fn send(&mut self, pool: &mut BufferPool, packet: &PortPacket) -> Sent {
        let geometry = self.umem.region().geometry();
        let whole = geometry.contains(packet.buffer, packet.offset_bytes, packet.len_bytes);
        let Some(slot) = self.umem.slot(packet.buffer).filter(|_| whole) else {
            return Sent::Refused;
        };
        let len_bytes = u32::from(packet.len_bytes);
        let piece = Piece {
            buffer: packet.buffer,
            offset_bytes: u32::from(packet.offset_bytes),
            len_bytes,
        };
        let scatter = Scatter::new(&self.umem, piece);
        let fits = ETHERNET_HEADER_BYTES..=self.link.mtu_bytes() + OVER_MTU_BYTES;
        let Some(count) = scatter.pieces().filter(|_| fits.contains(&len_bytes)) else {
            return Sent::Refused;
        };
        if !self.room(pool, count as u32) {
            return Sent::Full;
        }
        if !self.held.post_transmit(slot, count) {
            return Sent::Refused;
        }
        // The kernel reads it soon, in `send_waiting`; after an NF it may be in no near cache.
        checksum::prefetch_headers(self.umem.region(), packet.buffer, packet.offset_bytes);
        if let Some(live) = &mut self.live {
            scatter.for_each(|desc| live.rings.tx.write(desc));
        }
        Sent::Taken
    }

    /// Whether `count` descriptors fit, after a look at what the kernel has sent meanwhile.
    #[inline]
    fn room(&mut self, pool: &mut BufferPool, count: u32) -> bool {
        let free = |queue: &mut Self| {
            queue.live.as_mut().is_some_and(|live| live.rings.tx.free(count) >= count)
        };
        if free(self) {
            return true;
        }
        if let Some(live) = &mut self.live {
            live.rings.tx.publish();
        }
        self.send_waiting(pool);
        free(self)
    }

    /// Frees packets that cannot be sent now or ever.
    fn drop_for_sending(&mut self, pool: &mut BufferPool, packet: &PortPacket, why: DropReason) {
        self.counters.drops.add(why, 1);
        // A buffer of nobody we know, or one that is posted already, is not ours to free.
        if self.umem.slot(packet.buffer).is_some_and(|slot| self.held.is_free(slot)) {
            pool.give(&[packet.buffer]);
        }
    }

    /// What is not done for every packet: the link, the kernel's counters.
    fn tick(&mut self, pool: &mut BufferPool) {
        let now_ns = sys::coarse_now_ns();
        if now_ns < self.next_tick_ns {
            return;
        }
        self.next_tick_ns = now_ns + TICK_NS;
        self.stalled = false;
        self.link.poll();
        let Some(live) = &mut self.live else { return };
        if let Some(statistics) = live.socket.statistics() {
            self.kernel.publish(&statistics, self.bad_descriptors);
            self.advice.look(&statistics);
            if let Some(ledger) = &mut self.ledger {
                ledger.enter(&statistics, &self.counters);
            }
        }
        if self.link.state() == LinkState::Gone && live.rings.rx.is_empty() {
            self.shut(pool);
            self.quiet = EventFd::new().ok();
        }
    }

    /// Frames that were accepted but that the kernel never took are drops, not sent.
    fn count_unsent(&mut self) {
        let Some(live) = &mut self.live else { return };
        let waiting = live.rings.tx.waiting();
        let (mut frames, mut bytes) = (0u64, 0u64);
        for desc in live.rings.tx.newest(waiting) {
            bytes += u64::from(desc.len);
            frames += u64::from(desc.options & XDP_PKT_CONTD == 0);
        }
        if frames > 0 {
            self.counters.tx_pkts.add(frames.wrapping_neg());
            self.counters.tx_bytes.add(bytes.wrapping_neg());
            self.counters.drops.add(DropReason::TxPortDown, frames);
        }
    }

    /// Closes the socket and gives back everything that was posted. Once no descriptor and no
    /// mapping of the socket is left the kernel holds none of our buffers.
    fn shut(&mut self, pool: &mut BufferPool) {
        self.reap(pool);
        self.count_unsent();
        if self.live.take().is_none() {
            return;
        }
        if self.binding.zero_copy && self.link.state() != LinkState::Gone {
            self.wait_until_released();
        }
        let mut buffers: Vec<_> =
            self.held.take_all().into_iter().map(|slot| self.umem.buffer(slot)).collect();
        buffers.extend(self.gather.abandon());
        pool.give(&buffers);
    }

    /// In zero-copy the device lets go in deferred work, a few milliseconds after the close, and may
    /// write into offered buffers until then. A second bind succeeds when it has.
    fn wait_until_released(&self) {
        let probe = Binding { zero_copy: false, busy_poll: false, ..self.binding };
        if let Err(error) = XskSocket::open(&self.umem, &probe) {
            let queue = self.binding.queue;
            tracing::warn!(
                "queue {queue}: cannot tell whether the device let go: {}",
                error.source
            );
        }
    }
}

/// What became of a packet for sending.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sent {
    Taken,
    /// No room now.
    Full,
    /// Never possible.
    Refused,
}

impl PortQueue for XdpQueue {
    fn rx_burst(&mut self, pool: &mut BufferPool, out: &mut Vec<PortPacket>) {
        let before = out.len();
        self.scratch.clear();
        while out.len() - before < MAX_BURST_PKTS {
            let Some(desc) = self.live.as_mut().and_then(|live| live.rings.rx.next()) else {
                break;
            };
            let more = desc.options & XDP_PKT_CONTD != 0;
            let Some(piece) = self.accept(desc) else { continue };
            if more || self.gather.in_progress() {
                self.gather(piece, !more, out);
            } else {
                self.deliver(piece, out);
            }
        }
        if let Some(live) = &mut self.live {
            live.rings.rx.release();
        }
        let received = &out[before..];
        self.complete_checksums(received);
        self.counters.rx_pkts.add(received.len() as u64);
        self.counters.rx_bytes.add(received.iter().map(|p| u64::from(p.len_bytes)).sum());
        if !self.scratch.is_empty() {
            pool.give(&self.scratch);
            self.scratch.clear();
        }
        self.refill(pool, REFILL_BUFFERS);
    }

    fn tx_burst(&mut self, pool: &mut BufferPool, packets: &[PortPacket]) -> usize {
        if self.live.is_none() || self.link.state() != LinkState::Up {
            for packet in packets {
                self.drop_for_sending(pool, packet, DropReason::TxPortDown);
            }
            return packets.len();
        }
        let (mut taken, mut sent, mut bytes) = (0, 0, 0);
        for packet in packets {
            match self.send(pool, packet) {
                Sent::Taken => {
                    sent += 1;
                    bytes += u64::from(packet.len_bytes);
                }
                Sent::Full => break,
                Sent::Refused => self.drop_for_sending(pool, packet, DropReason::TxTooLarge),
            }
            taken += 1;
        }
        if let Some(live) = &mut self.live {
            live.rings.tx.publish();
        }
        self.counters.tx_pkts.add(sent);
        self.counters.tx_bytes.add(bytes);
        taken
    }

    fn maintain(&mut self, pool: &mut BufferPool) {
        self.reap(pool);
        self.send_waiting(pool);
        self.refill(pool, REFILL_BUFFERS);
        if self.binding.busy_poll
            && let Some(live) = &mut self.live
            && live.socket.kick_receive() == Kick::Gone
        {
            self.link.mark_gone();
        }
        self.tick(pool);
    }

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        let socket = self.live.as_ref().map(|live| live.socket.fd());
        socket.or_else(|| self.quiet.as_ref().map(|quiet| quiet.as_fd()))
    }

    fn held_buffers(&self) -> Option<usize> {
        let posted = (self.held.receive() + self.held.transmit()) as usize;
        Some(posted + usize::from(self.gather.in_progress()))
    }

    fn tell_buffers(&self, tell: &mut dyn FnMut(BufferIndex, BufferUse)) {
        for (slot, receives) in self.held.posted() {
            let used_for = if receives { BufferUse::Receiving } else { BufferUse::Sending };
            tell(self.umem.buffer(slot), used_for);
        }
        if let Some(buffer) = self.gather.first_buffer() {
            tell(buffer, BufferUse::Receiving);
        }
    }

    fn close(&mut self, pool: &mut BufferPool) {
        let started = Instant::now();
        self.stalled = false;
        while self.held.transmit() > 0
            && self.link.state() == LinkState::Up
            && started.elapsed() < DRAIN_PATIENCE
        {
            self.send_waiting(pool);
            self.reap(pool);
            if self.held.transmit() > 0 {
                std::thread::sleep(Duration::from_micros(200));
            }
            self.link.poll();
        }
        self.shut(pool);
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
