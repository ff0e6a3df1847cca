//! A packet's way through the manager, from top to bottom.
//!
//! ```text
//! receive ─► classify ─► deliver ─► [ring] ─► NF ─► [ring] ─► collect ─► deliver … or send
//! ```
//! A worker is one thread with one loop. It owns its share of the buffers, its queue of every port
//! and its pair of rings to every NF, and shares none of them, so nothing here takes a lock. One
//! turn of the loop moves a burst through each stage; between turns the worker has no packet in its
//! hands: each is free, at a port, or with an NF, and `rx = tx + drops + held` is exact.
//!
//! The payload is never copied or even looked at: what moves is a 16-byte descriptor.
#![forbid(unsafe_code)]

use std::sync::Arc;

use nflib::descriptor::{ActionCode, ChainId, Delivery, PortId, Returned};
use nflib::shm::{BufferIndex, Channel, Consumer, Producer, RegionGeometry};

use crate::chain::ServiceChain;
use crate::ownership::{Edge, OwnershipTable, Passage};
use crate::pool::BufferPool;
use crate::ports::{MAX_BURST_PKTS, PortPacket, PortQueue};
use crate::stats::{DropReason, NfCounters, WorkerCounters};

/// The chain every packet takes until rules choose others.
pub const DEFAULT_CHAIN: ChainId = 0;
/// Packets an NF may return in one turn before the worker looks at the ports again.
const COLLECT_BURST_PKTS: usize = MAX_BURST_PKTS;
/// NFs a packet may visit; ends the loops that ToService can make.
const MAX_VISITS: u8 = 255;

/// A port as one worker sees it.
pub struct WorkerPort {
    /// The queue this worker polls and sends by. A port may give a worker several.
    pub queues: Vec<Box<dyn PortQueue>>,
    /// Where packets that came in here leave when their chain ends.
    pub egress: Option<PortId>,
    /// Packets to send at the end of this turn.
    staged: Vec<PortPacket>,
}

impl WorkerPort {
    /// A port with its queues for this worker.
    #[must_use]
    pub fn new(queues: Vec<Box<dyn PortQueue>>, egress: Option<PortId>) -> Self {
        Self { queues, egress, staged: Vec::with_capacity(4 * MAX_BURST_PKTS) }
    }
}

/// An NF as one worker sees it: a ring there, a ring back.
pub struct NfEdge {
    /// The service it provides, by its slot in the chain.
    slot: usize,
    channel: Arc<Channel>,
    to_nf: Producer<Delivery>,
    from_nf: Consumer<Returned>,
    counters: Arc<NfCounters>,
    /// Packets to push at the end of this stage.
    staged: Vec<Delivery>,
    /// Packets pushed and not returned.
    held_pkts: u64,
    /// The NF is leaving, or broke its ring: nothing more is delivered to it.
    closed: bool,
}

impl NfEdge {
    /// The worker's ends of an NF's channel; `None` when the channel has no rings for this worker.
    #[must_use]
    pub fn new(
        worker: u16,
        slot: usize,
        channel: &Arc<Channel>,
        counters: Arc<NfCounters>,
    ) -> Option<Self> {
        let (to_nf, from_nf) = channel.manager_ends(worker)?;
        Some(Self {
            slot,
            channel: Arc::clone(channel),
            to_nf,
            from_nf,
            counters,
            staged: Vec::with_capacity(4 * MAX_BURST_PKTS),
            held_pkts: 0,
            closed: false,
        })
    }
}

/// What the loop of one worker works on.
pub struct Worker {
    geometry: RegionGeometry,
    pool: BufferPool,
    owners: OwnershipTable,
    ports: Vec<WorkerPort>,
    chain: ServiceChain,
    edges: Vec<Option<NfEdge>>,
    /// For each service of the chain, the NF that provides it now.
    providers: Vec<Option<Edge>>,
    /// Edges and ports with something staged: what to flush, however many there are.
    dirty_edges: Vec<Edge>,
    dirty_ports: Vec<PortId>,
    counters: Arc<WorkerCounters>,
    // Scratch space of one turn, kept so that nothing is allocated on the path.
    received: Vec<PortPacket>,
    returned: Vec<Returned>,
    dropped: Vec<BufferIndex>,
}

impl Worker {
    /// A worker with its share of the buffers, its ports and the chain.
    #[must_use]
    pub fn new(
        pool: BufferPool,
        ports: Vec<WorkerPort>,
        chain: ServiceChain,
        counters: Arc<WorkerCounters>,
    ) -> Self {
        Self {
            geometry: *pool.region().geometry(),
            owners: OwnershipTable::new(pool.first(), pool.count()),
            pool,
            ports,
            providers: vec![None; chain.services().len()],
            chain,
            edges: Vec::new(),
            dirty_edges: Vec::new(),
            dirty_ports: Vec::new(),
            counters,
            received: Vec::with_capacity(MAX_BURST_PKTS),
            returned: vec![Returned::default(); COLLECT_BURST_PKTS],
            dropped: Vec::with_capacity(4 * MAX_BURST_PKTS),
        }
    }

    /// One turn of the loop. `receiving` is false while the manager drains. Returns the number of
    /// packets moved, so that the caller knows when it is idle.
    pub fn turn(&mut self, receiving: bool) -> usize {
        let mut moved = 0;
        if receiving {
            for port in 0..self.ports.len() {
                for queue in 0..self.ports[port].queues.len() {
                    moved += self.receive(port, queue);
                }
            }
        }
        self.flush_edges();
        for edge in 0..self.edges.len() {
            moved += self.collect(edge);
        }
        self.flush_edges();
        self.flush_ports();
        self.free_dropped();
        self.maintain_ports();
        self.counters.turn(moved, self.held_pkts());
        moved
    }

    /// Stage 1: a burst from one port queue, each packet to the start of its chain.
    fn receive(&mut self, port: usize, queue: usize) -> usize {
        let mut received = std::mem::take(&mut self.received);
        self.ports[port].queues[queue].rx_burst(&mut self.pool, &mut received);
        let count = received.len();
        for packet in received.drain(..) {
            let passage = self.classify(port, &packet);
            self.forward(packet, passage);
        }
        self.received = received;
        count
    }

    /// Stage 2: which chain, once per packet. The descriptor and the ownership table carry it on.
    fn classify(&self, port: usize, _packet: &PortPacket) -> Passage {
        Passage { chain: DEFAULT_CHAIN, hop: 0, ingress: port as PortId, visits: 0 }
    }

    /// Stage 3: to the NF at `passage.hop` of the chain, or out when the chain is at its end.
    #[inline]
    fn forward(&mut self, packet: PortPacket, passage: Passage) {
        let hop = usize::from(passage.hop);
        match self.chain.hop(hop) {
            Some(slot) => self.deliver(packet, passage, slot),
            None => match self.ports[usize::from(passage.ingress)].egress {
                Some(egress) => self.stage_for_port(packet, egress),
                None => self.drop_at_worker(packet.buffer, DropReason::NoEgress),
            },
        }
    }

    /// Stages a packet for the NF that provides the service in `slot` of the chain's services.
    #[inline]
    fn deliver(&mut self, packet: PortPacket, mut passage: Passage, slot: usize) {
        let provider = self.providers[slot];
        let edge = provider.and_then(|e| Some((e, self.edges[usize::from(e)].as_mut()?)));
        let Some((number, edge)) = edge else {
            return self.drop_at_service(packet.buffer, slot, DropReason::NoInstance);
        };
        if passage.visits == MAX_VISITS {
            return self.drop_at_service(packet.buffer, slot, DropReason::HopLimit);
        }
        passage.visits += 1;
        self.owners.give(packet.buffer, number, passage);
        if edge.staged.is_empty() {
            self.dirty_edges.push(number);
        }
        edge.staged.push(Delivery {
            buffer: packet.buffer,
            offset_bytes: packet.offset_bytes,
            len_bytes: packet.len_bytes,
            flow_hash: packet.flow_hash,
            chain: passage.chain,
            port: passage.ingress,
            hop: passage.hop,
        });
    }

    #[inline]
    fn stage_for_port(&mut self, packet: PortPacket, port: PortId) {
        let Some(target) = self.ports.get_mut(usize::from(port)) else {
            return self.drop_at_worker(packet.buffer, DropReason::UnknownPort);
        };
        if target.staged.is_empty() {
            self.dirty_ports.push(port);
        }
        target.staged.push(packet);
    }

    /// Stage 4: pushes what is staged, only where something is.
    fn flush_edges(&mut self) {
        while let Some(number) = self.dirty_edges.pop() {
            let Some(edge) = self.edges[usize::from(number)].as_mut() else { continue };
            let pushed = edge.to_nf.push_burst(&edge.staged).unwrap_or_else(|_| {
                // The NF wrote an index that cannot be. It gets nothing more; what it has comes
                // back when it is gone.
                edge.closed = true;
                edge.counters.violations.add(1);
                0
            });
            edge.channel.wake_nf();
            edge.held_pkts += pushed as u64;
            edge.counters.rx_pkts.add(pushed as u64);
            let refused = edge.staged.len() - pushed;
            if refused > 0 {
                edge.counters.ring_full_pkts.add(refused as u64);
                for delivery in &edge.staged[pushed..] {
                    // It was written down as given when it was staged.
                    let _ = self.owners.take_back(delivery.buffer, number);
                    self.dropped.push(delivery.buffer);
                }
                self.counters.drop_at_service(edge.slot, DropReason::NfRingFull, refused as u64);
            }
            edge.counters.held_pkts.set(edge.held_pkts);
            edge.staged.clear();
        }
    }

    /// Stage 5: a burst back from one NF. Every descriptor is another process's word: each is
    /// checked against the ownership table before anything is done with it.
    fn collect(&mut self, number: usize) -> usize {
        let Some(edge) = self.edges[number].as_mut() else { return 0 };
        if edge.held_pkts == 0 {
            return 0;
        }
        let mut returned = std::mem::take(&mut self.returned);
        let count = edge.from_nf.read_burst(&mut returned[..]).unwrap_or_else(|_| {
            edge.closed = true;
            edge.counters.violations.add(1);
            0
        });
        for descriptor in &returned[..count] {
            self.accept(number as Edge, descriptor);
        }
        if let Some(edge) = self.edges[number].as_mut() {
            // Only now: a slot is the NF's again when its packet has been passed on.
            edge.from_nf.release();
            edge.counters.held_pkts.set(edge.held_pkts);
        }
        self.returned = returned;
        count
    }

    /// Checks one returned descriptor and does what it says.
    #[inline]
    fn accept(&mut self, number: Edge, returned: &Returned) {
        let Some(edge) = self.edges[usize::from(number)].as_mut() else { return };
        let Ok(passage) = self.owners.take_back(returned.buffer, number) else {
            edge.counters.violations.add(1);
            return;
        };
        edge.held_pkts -= 1;
        edge.counters.tx_pkts.add(1);
        let slot = edge.slot;
        let in_buffer =
            self.geometry.contains(returned.buffer, returned.offset_bytes, returned.len_bytes);
        let action = ActionCode::from_code(returned.action).filter(|_| in_buffer);
        let packet = PortPacket {
            buffer: returned.buffer,
            offset_bytes: returned.offset_bytes,
            len_bytes: returned.len_bytes,
            flow_hash: returned.flow_hash,
        };
        match action {
            Some(ActionCode::Next) => {
                self.forward(packet, Passage { hop: passage.hop.saturating_add(1), ..passage });
            }
            Some(ActionCode::Drop) => {
                edge.counters.drop_pkts.add(1);
                self.dropped.push(packet.buffer);
                self.counters.drop_at_service(slot, DropReason::NfDrop, 1);
            }
            Some(ActionCode::Out) => match PortId::try_from(returned.target) {
                Ok(port) => self.stage_for_port(packet, port),
                Err(_) => self.drop_at_worker(packet.buffer, DropReason::UnknownPort),
            },
            Some(ActionCode::ToService) => match self.chain.slot_of(returned.target) {
                // The packet leaves its place in the chain and goes on behind the service's.
                Some(to) => {
                    let hop = self.chain.first_hop_of(to);
                    self.deliver(packet, Passage { hop, ..passage }, to);
                }
                None => self.drop_at_worker(packet.buffer, DropReason::UnknownService),
            },
            None => {
                edge.counters.violations.add(1);
                self.dropped.push(packet.buffer);
                self.counters.drop_at_service(slot, DropReason::NfMalformed, 1);
            }
        }
    }

    /// Stage 6: sends what is staged, only where something is.
    fn flush_ports(&mut self) {
        while let Some(number) = self.dirty_ports.pop() {
            let port = &mut self.ports[usize::from(number)];
            let Some(queue) = port.queues.first_mut() else { continue };
            let mut sent = 0;
            for burst in port.staged.chunks(MAX_BURST_PKTS) {
                let taken = queue.tx_burst(&mut self.pool, burst);
                sent += taken;
                if taken < burst.len() {
                    break;
                }
            }
            let refused = &port.staged[sent..];
            queue.counters().drops.add(DropReason::TxFull, refused.len() as u64);
            self.dropped.extend(refused.iter().map(|packet| packet.buffer));
            port.staged.clear();
        }
    }

    fn maintain_ports(&mut self) {
        for port in &mut self.ports {
            for queue in &mut port.queues {
                queue.maintain(&mut self.pool);
            }
        }
    }

    /// Stage 7: the buffers of everything dropped in this turn.
    fn free_dropped(&mut self) {
        if !self.dropped.is_empty() {
            self.pool.give(&self.dropped);
            self.dropped.clear();
        }
    }

    fn drop_at_worker(&mut self, buffer: BufferIndex, reason: DropReason) {
        self.counters.drops.add(reason, 1);
        self.dropped.push(buffer);
    }

    fn drop_at_service(&mut self, buffer: BufferIndex, slot: usize, reason: DropReason) {
        self.counters.drop_at_service(slot, reason, 1);
        self.dropped.push(buffer);
    }
}

/// What happens between turns, on the control thread's order.
impl Worker {
    /// Lets an NF in behind `number`, and gives it its service's packets.
    pub fn add_nf(&mut self, number: Edge, edge: NfEdge) {
        let at = usize::from(number);
        if self.edges.len() <= at {
            self.edges.resize_with(at + 1, || None);
        }
        if let Some(provider) = self.providers.get_mut(edge.slot) {
            *provider = Some(number);
        }
        self.edges[at] = Some(edge);
    }

    /// True when every service of the chain has an NF now.
    #[must_use]
    pub fn chain_is_complete(&self) -> bool {
        self.providers.iter().all(Option::is_some)
    }

    /// Delivers nothing more to an NF; what it has may still come back.
    pub fn close_nf(&mut self, number: Edge) {
        for provider in &mut self.providers {
            if *provider == Some(number) {
                *provider = None;
            }
        }
    }

    /// Takes an NF that is gone out: passes on what it had returned, and takes back every buffer it
    /// still held.
    pub fn remove_nf(&mut self, number: Edge) {
        self.close_nf(number);
        let at = usize::from(number);
        // At most what its ring can hold: an NF that is told to go may be alive and still writing.
        let capacity =
            self.edges.get(at).and_then(Option::as_ref).map_or(0, |e| e.from_nf.capacity());
        for _ in 0..(capacity as usize).div_ceil(COLLECT_BURST_PKTS) {
            if self.collect(at) == 0 {
                break;
            }
            self.flush_edges();
            self.flush_ports();
        }
        let Some(edge) = self.edges.get_mut(at).and_then(Option::take) else { return };
        let already_dropped = self.dropped.len();
        self.owners.reclaim(number, &mut self.dropped);
        let reclaimed = (self.dropped.len() - already_dropped) as u64;
        edge.counters.held_pkts.set(0);
        self.counters.drop_at_service(edge.slot, DropReason::NfGone, reclaimed);
        self.free_dropped();
    }

    /// Edges whose rings were broken by their NF since the last call; they are to be removed.
    pub fn take_broken(&mut self, out: &mut Vec<Edge>) {
        for (number, edge) in self.edges.iter_mut().enumerate() {
            if let Some(edge) = edge
                && std::mem::take(&mut edge.closed)
            {
                out.push(number as Edge);
            }
        }
        for &number in out.iter() {
            self.close_nf(number);
        }
    }

    /// Packets inside: with NFs, or delayed in a port.
    #[must_use]
    pub fn held_pkts(&self) -> u64 {
        let in_ports: u64 = self.ports.iter().flat_map(|p| &p.queues).map(|q| q.held_pkts()).sum();
        self.owners.held_buffers() as u64 + in_ports
    }

    /// Packets with NFs.
    #[must_use]
    pub fn held_by_nfs(&self) -> usize {
        self.owners.held_buffers()
    }

    /// What this worker counts between ports.
    #[must_use]
    pub fn counters(&self) -> &WorkerCounters {
        &self.counters
    }

    /// This worker's ports.
    #[must_use]
    pub fn ports(&self) -> &[WorkerPort] {
        &self.ports
    }

    /// This worker's buffers.
    #[must_use]
    pub fn pool(&self) -> &BufferPool {
        &self.pool
    }

    /// Stops every queue. Afterwards all buffers that NFs do not hold are free.
    pub fn close(&mut self) {
        for number in 0..self.edges.len() {
            self.remove_nf(number as Edge);
        }
        for port in &mut self.ports {
            for queue in &mut port.queues {
                queue.close(&mut self.pool);
            }
        }
    }
}
