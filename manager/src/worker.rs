//! A packet's way through the manager, from top to bottom.
//!
//! ```text
//! receive ─► classify ─► enter ─► deliver ─► [ring] ─► NF ─► [ring] ─► collect ─► deliver … or send
//!                          │ path is about to change          │    ▲
//!                          └─► parked, until it is free       └► NF ┘  direct edges: not through here
//! ```
//! A worker is one thread with one loop. It owns its share of the buffers, its queue of every port
//! and its pair of rings to every NF, and shares none of them, so nothing here takes a lock. One
//! turn of the loop moves a burst through each stage; between turns the worker has no packet in its
//! hands: each is free, at a port, with an NF, or parked, and `rx = tx + drops + held` is exact.
//!
//! The payload is never copied: what moves is a 16-byte descriptor.
#![forbid(unsafe_code)]

mod boundary;
mod census;
mod changes;
mod credit;
mod lending;
mod observing;
mod orders;
mod runs;
mod waiting;

pub use census::{Census, Whereabouts};
pub use observing::{Following, Observation};

use std::sync::Arc;
use std::time::{Duration, Instant};

use nflib::descriptor::{ActionCode, ChainId, Delivery, NO_PORT, PortId, Returned, ServiceId};
use nflib::observe::NOBODY;
use nflib::shm::{BufferIndex, Channel, Consumer, Doorbell, Producer, Region, RegionGeometry};

use crate::change::{Change, Outcome};
use crate::classify::{Classifier, Verdict};
use crate::model::End;
use crate::ownership::{Holder, OFF_ROUTE, OwnershipTable, Passage, TRUSTED};
use crate::parking::{Next, PATIENCE, Parked, Transition};
use crate::plan::{Instances, NfNumber, Plan, PlannedService};
use crate::pool::BufferPool;
use crate::ports::{MAX_BURST_PKTS, PortPacket, PortQueue};
use crate::stats::{DropCounters, DropReason, NfCounters, WorkerCounters};
use credit::Credit;
use observing::watching;

/// Packets taken from an NF at once.
const COLLECT_BURST_PKTS: usize = MAX_BURST_PKTS;
/// Parked packets let go in one turn, for each queue that packets may come in by: more than come in,
/// so that those who wait become fewer.
const RELEASE_PKTS: usize = 4 * MAX_BURST_PKTS;
/// Times a worker gives a packet to an NF or moves it to another chain; ends the loops that
/// ToService and branches can make.
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

/// An NF as the control thread introduces it to a worker.
#[derive(Clone)]
pub struct NewNf {
    /// Its number.
    pub nf: NfNumber,
    /// The service it provides.
    pub service: ServiceId,
    /// That service's place among the counters of drops.
    pub slot: u16,
    /// Its rings.
    pub channel: Arc<Channel>,
    /// How to wake it.
    pub bell: Doorbell,
    /// Whether each hand-over to and from it goes through the manager and is checked.
    pub isolated: bool,
    /// Whether it can wake a worker that sleeps.
    pub wakes_workers: bool,
    /// Whether another buffer is lent to it for each that it uses.
    pub keeps_stock: bool,
    /// Where an isolated one sees its packets, if they are copied.
    pub own_region: Option<Arc<Region>>,
    /// What to count it under.
    pub counters: Arc<NfCounters>,
    /// What to count its service's drops under.
    pub drops: Arc<DropCounters>,
}

/// An NF as one worker sees it: a ring there, a ring back.
struct NfEdge {
    service: ServiceId,
    slot: u16,
    bell: Doorbell,
    /// Under which name its buffers are written down.
    holder: Holder,
    /// Where it is told whether the worker sleeps, if it can wake it.
    waker: Option<Arc<Channel>>,
    /// Its stock of empty buffers, if it keeps one.
    stock: Option<lending::Stock>,
    /// See `boundary.rs`.
    own_region: Option<Arc<Region>>,
    to_nf: Producer<Delivery>,
    from_nf: Consumer<Returned>,
    counters: Arc<NfCounters>,
    drops: Arc<DropCounters>,
    /// Packets to push at the end of this stage.
    staged: Vec<Delivery>,
    /// The NF is leaving, or broke its ring: nothing more is delivered to it.
    closed: bool,
    /// It broke its ring, and nobody has been told yet.
    broken: bool,
}

/// What the loop of one worker works on.
pub struct Worker {
    geometry: RegionGeometry,
    pool: BufferPool,
    owners: OwnershipTable,
    credit: Credit,
    ports: Vec<WorkerPort>,
    /// Queues of all ports.
    queues: usize,
    /// The port that is looked at first in the next turn.
    first_port: usize,
    classifier: Classifier,
    plan: Arc<Plan>,
    /// The plan before, while packets may be inside that follow it.
    old_plan: Option<Arc<Plan>>,
    /// For each service, by its slot, where its drops are counted.
    service_drops: Vec<Arc<DropCounters>>,
    nfs: Vec<Option<NfEdge>>,
    /// Packets for services without an NF.
    waiting: waiting::Waiting,
    /// Empty buffers that NFs are still to get.
    loans: Vec<lending::Loan>,
    /// Counts the changes of plan, from 1 to 255 and again; packets remember the one they came in
    /// under.
    epoch: u8,
    /// Packets with NFs that came in under the present epoch.
    fresh_pkts: usize,
    /// A change of plan under way.
    transition: Option<Transition>,
    /// How long packets of an older plan may take to come out.
    patience: Duration,
    /// NFs and ports with something staged: what to flush, however many there are.
    dirty_nfs: Vec<NfNumber>,
    dirty_ports: Vec<PortId>,
    counters: Arc<WorkerCounters>,
    /// Who looks at packets, where somebody may want to know.
    watch: Option<Box<observing::Watch>>,
    /// Packets and bytes that entered each chain.
    chain_counts: Vec<(u64, u64)>,
    // Scratch space of one turn, kept so that nothing is allocated on the path.
    received: Vec<PortPacket>,
    returned: Vec<Returned>,
    lent: Vec<BufferIndex>,
    dropped: Vec<BufferIndex>,
}

impl Worker {
    /// A worker with its share of the buffers and its ports. Until a first [`Change`] comes, packets
    /// go straight to their egress port.
    #[must_use]
    pub fn new(
        pool: BufferPool,
        ports: Vec<WorkerPort>,
        classifier: Classifier,
        counters: Arc<WorkerCounters>,
    ) -> Self {
        Self {
            geometry: *pool.region().geometry(),
            owners: OwnershipTable::new(pool.first(), pool.count()),
            waiting: waiting::Waiting::new(pool.count()),
            credit: Credit::new(pool.count() as usize, usize::MAX),
            pool,
            queues: ports.iter().map(|port| port.queues.len()).sum(),
            first_port: 0,
            ports,
            classifier,
            plan: Arc::default(),
            old_plan: None,
            service_drops: Vec::new(),
            nfs: Vec::new(),
            loans: Vec::new(),
            epoch: 0,
            fresh_pkts: 0,
            transition: None,
            patience: PATIENCE,
            dirty_nfs: Vec::new(),
            dirty_ports: Vec::new(),
            counters,
            watch: None,
            chain_counts: Vec::new(),
            received: Vec::with_capacity(MAX_BURST_PKTS),
            returned: vec![Returned::default(); COLLECT_BURST_PKTS],
            lent: Vec::new(),
            dropped: Vec::with_capacity(4 * MAX_BURST_PKTS),
        }
    }

    /// One turn of the loop. `receiving` is false while the manager drains. Returns the number of
    /// packets moved, so that the caller knows when it is idle.
    pub fn turn(&mut self, receiving: bool) -> usize {
        let mut moved = if self.waiting.is_empty() { 0 } else { self.release_waiting() };
        moved += self.continue_change();
        if !self.loans.is_empty() {
            // Before the packets that may want them: rings keep their order.
            moved += self.lend();
        }
        if receiving && self.transition.as_ref().is_none_or(Transition::has_room) {
            // In turn: where rings are nearly full, he who is first has them all.
            let ports = self.ports.len();
            for port in (self.first_port..ports).chain(0..self.first_port) {
                for queue in 0..self.ports[port].queues.len() {
                    moved += self.receive(port, queue);
                }
            }
            self.first_port = if self.first_port + 1 < ports { self.first_port + 1 } else { 0 };
        }
        self.flush_nfs();
        if self.owners.held_buffers() > 0 {
            for nf in 0..self.nfs.len() {
                // As many bursts as may have come in, or what comes in would pile up in the rings.
                for _ in 0..self.queues.max(1) {
                    let count = self.collect(nf);
                    moved += count;
                    if count < COLLECT_BURST_PKTS {
                        break;
                    }
                }
            }
        }
        self.flush_nfs();
        self.flush_ports();
        self.free_dropped();
        self.maintain_ports();
        self.classifier.maintain();
        self.counters.turn(moved, self.held_pkts());
        moved
    }

    /// Stage 1: a burst from one port queue, each packet to the start of its path.
    fn receive(&mut self, port: usize, queue: usize) -> usize {
        let mut received = std::mem::take(&mut self.received);
        self.ports[port].queues[queue].rx_burst(&mut self.pool, &mut received);
        let count = received.len();
        if count > 0 {
            // Stage 2: which chain, once per packet. Descriptor and ownership table carry it on.
            let plan = Arc::clone(&self.plan);
            let headers = self.transition.as_ref().is_some_and(Transition::reads_headers);
            let region = self.pool.region();
            self.classifier.classify(region, &plan, port as PortId, &mut received, headers);
            if self.watch.as_mut().is_some_and(|watch| watch.looks_at_burst()) {
                self.watch_burst(&plan, port as PortId, &received);
            }
            let (mut at, ingress) = (0, port as PortId);
            while at < count {
                let verdict = self.classifier.verdict(at);
                let run = at..at + self.classifier.run_pkts(at, count);
                match self.way_in(&plan, ingress, verdict) {
                    Some(way) => self.enter_run(way, verdict, &received[run.clone()]),
                    None => {
                        for at in run.clone() {
                            self.enter_or_park(&plan, at, received[at], ingress, verdict);
                        }
                    }
                }
                at = run.end;
            }
            received.clear();
        }
        self.received = received;
        count
    }

    /// Packet `at` of the burst: on its way, or to wait for a change of plan.
    #[inline]
    fn enter_or_park(
        &mut self,
        plan: &Plan,
        at: usize,
        packet: PortPacket,
        ingress: PortId,
        verdict: Verdict,
    ) {
        let parks = self.transition.as_ref().is_some_and(|transition| {
            transition.parks(verdict, packet.flow_hash, self.classifier.key(at))
        });
        if parks {
            self.park(Parked { packet, next: Next::Enter { ingress, verdict } });
        } else {
            self.enter(plan, packet, ingress, verdict);
        }
    }

    /// Stage 3: does what the flow table says.
    #[inline]
    fn enter(&mut self, plan: &Plan, packet: PortPacket, ingress: PortId, verdict: Verdict) {
        match verdict {
            Verdict::Chain(chain) => {
                self.count_entries(chain, 1, packet.len_bytes.into());
                let epoch = self.epoch;
                let passage = Passage { route: 0, hop: 0, ingress, visits: 0, epoch };
                self.enter_chain(plan, packet, passage, chain);
            }
            Verdict::Egress => self.send_to_egress(packet, ingress),
            Verdict::Out(port) => self.stage_for_port(packet, port),
            Verdict::Drop(reason) => self.drop_here(packet, reason),
        }
    }

    #[inline]
    fn count_entries(&mut self, chain: ChainId, pkts: u64, bytes: u64) {
        let at = usize::from(chain);
        if self.chain_counts.len() <= at {
            self.chain_counts.resize(at + 1, (0, 0));
        }
        let counts = &mut self.chain_counts[at];
        *counts = (counts.0 + pkts, counts.1 + bytes);
    }

    /// To the first hop of a chain, by the route that is in force.
    fn enter_chain(&mut self, plan: &Plan, packet: PortPacket, passage: Passage, chain: ChainId) {
        let (mut chain, mut visits) = (chain, passage.visits);
        loop {
            let Some(route) = plan.route_of(chain) else {
                return self.drop_here(packet, DropReason::NoRule);
            };
            let passage = Passage { route: route.id, hop: 0, visits, ..passage };
            match (route.hops.first(), route.end) {
                (Some(service), _) => return self.deliver(plan, packet, passage, service),
                // A chain without services that ends in another: on, without recursion.
                (None, End::Chain(next)) if visits < MAX_VISITS => chain = next,
                (None, end) => return self.end(plan, packet, passage, end),
            }
            visits += 1;
        }
    }

    /// To the NF at `passage.hop` of its route, or to the route's end.
    #[inline]
    fn forward(&mut self, plan: &Plan, packet: PortPacket, passage: Passage) {
        let Some(route) = plan.route(passage.route) else {
            return self.drop_here(packet, DropReason::NoRule);
        };
        match route.hops.get(usize::from(passage.hop)) {
            Some(service) => self.deliver(plan, packet, passage, service),
            None => self.end(plan, packet, passage, route.end),
        }
    }

    /// What becomes of a packet at the end of its chain.
    #[inline]
    fn end(&mut self, plan: &Plan, packet: PortPacket, passage: Passage, end: End) {
        match end {
            End::Egress => self.send_to_egress(packet, passage.ingress),
            // A packet that an NF made came in nowhere.
            End::Ingress if passage.ingress == NO_PORT => {
                self.drop_here(packet, DropReason::NoEgress);
            }
            End::Ingress => self.stage_for_port(packet, passage.ingress),
            End::Out(port) => self.stage_for_port(packet, port),
            End::Drop => self.drop_here(packet, DropReason::ChainEnd),
            End::Chain(_) if passage.visits == MAX_VISITS => {
                self.drop_here(packet, DropReason::HopLimit);
            }
            End::Chain(chain) => {
                let passage = Passage { visits: passage.visits + 1, ..passage };
                self.enter_chain(plan, packet, passage, chain);
            }
        }
    }

    #[inline]
    fn send_to_egress(&mut self, packet: PortPacket, ingress: PortId) {
        match self.ports.get(usize::from(ingress)).and_then(|port| port.egress) {
            Some(egress) => self.stage_for_port(packet, egress),
            None => self.drop_here(packet, DropReason::NoEgress),
        }
    }

    /// Stages a packet for the instance of a service that its flow belongs to.
    #[inline]
    fn deliver(
        &mut self,
        plan: &Plan,
        packet: PortPacket,
        passage: Passage,
        service: &PlannedService,
    ) {
        let nf = service.instances.pick(packet.flow_hash);
        let edge = nf.and_then(|nf| Some((nf, self.nfs.get(usize::from(nf))?.as_ref()?)));
        match edge.filter(|(_, edge)| !edge.closed) {
            Some((nf, _)) => self.deliver_to(nf, packet, passage, service.slot),
            None => self.without_instance(plan, packet, passage, service),
        }
    }

    /// Stages a packet for an NF that is there.
    #[inline]
    fn deliver_to(&mut self, nf: NfNumber, packet: PortPacket, mut passage: Passage, slot: u16) {
        let Some(edge) = self.nfs[usize::from(nf)].as_mut() else {
            return self.drop_at(packet, slot, DropReason::NoInstance);
        };
        if passage.visits == MAX_VISITS {
            return self.drop_at(packet, slot, DropReason::HopLimit);
        }
        if self.credit.left(&self.owners, edge.holder, passage) == 0 {
            return self.drop_at(packet, slot, DropReason::NoCredit);
        }
        // What NFs made circulates for as long as they like; it is no more than was lent.
        passage.visits += u8::from(passage.ingress != NO_PORT);
        self.owners.give(packet.buffer, edge.holder, passage);
        self.fresh_pkts += usize::from(passage.epoch == self.epoch);
        if edge.staged.is_empty() {
            self.dirty_nfs.push(nf);
        }
        edge.copy_out(&self.pool, &packet);
        edge.staged.push(delivery(packet, passage));
    }

    #[inline]
    fn stage_for_port(&mut self, packet: PortPacket, port: PortId) {
        let Some(target) = self.ports.get_mut(usize::from(port)) else {
            return self.drop_here(packet, DropReason::UnknownPort);
        };
        if target.staged.is_empty() {
            self.dirty_ports.push(port);
        }
        target.staged.push(packet);
    }

    /// Stage 4: pushes what is staged, only where something is.
    fn flush_nfs(&mut self) {
        while let Some(number) = self.dirty_nfs.pop() {
            let Some(edge) = self.nfs[usize::from(number)].as_mut() else { continue };
            let pushed = edge.to_nf.push_burst(&edge.staged).unwrap_or_else(|_| {
                // The NF wrote an index that cannot be. It gets nothing more; what it has comes
                // back when it is gone.
                edge.break_off();
                0
            });
            edge.bell.ring();
            edge.counters.rx_pkts.add(pushed as u64);
            let refused = &edge.staged[pushed..];
            if !refused.is_empty() {
                edge.counters.ring_full_pkts.add(refused.len() as u64);
                for delivery in refused {
                    // It was written down as given when it was staged.
                    if let Ok(passage) = self.owners.take_back(delivery.buffer, edge.holder) {
                        self.fresh_pkts -= usize::from(passage.epoch == self.epoch);
                        self.dropped.push(delivery.buffer);
                        if let Some(watch) = watching(&mut self.watch) {
                            let packet = PortPacket::from(delivery);
                            watch.dropped(&[packet], edge.slot, DropReason::NfRingFull);
                        }
                    }
                }
                let refused_pkts = refused.len() as u64;
                self.counters.drop_at(&edge.drops, DropReason::NfRingFull, refused_pkts);
            }
            edge.staged.clear();
        }
    }

    /// Stage 5: a burst back from one NF. Every descriptor is another process's word: each is
    /// checked against the ownership table before anything is done with it.
    fn collect(&mut self, number: usize) -> usize {
        let Some(edge) = self.nfs[number].as_mut() else { return 0 };
        let mut returned = std::mem::take(&mut self.returned);
        let count = edge.from_nf.read_burst(&mut returned[..]).unwrap_or_else(|_| {
            edge.break_off();
            0
        });
        if count > 0 {
            let plans = Plans { new: Arc::clone(&self.plan), old: self.old_plan.clone() };
            let mut rest = &returned[..count];
            while let Some(first) = rest.first() {
                let mut pkts = self.accept_run(&plans, number, rest);
                if pkts == 0 {
                    self.accept(&plans, number, first);
                    pkts = 1;
                }
                rest = &rest[pkts..];
            }
            if let Some(edge) = self.nfs[number].as_mut() {
                // Only now: a slot is the NF's again when its packet has been passed on.
                edge.from_nf.release();
            }
        }
        self.returned = returned;
        count
    }

    /// Checks one returned descriptor and does what it says.
    #[inline]
    fn accept(&mut self, plans: &Plans, number: usize, returned: &Returned) {
        let Some(edge) = self.nfs[number].as_ref() else { return };
        let passage = self.owners.passage(returned.buffer, edge.holder);
        let plan = |passage: &Passage| plans.of(passage, self.epoch);
        // A packet of a chain that the NF is not in stays where it is: another one of the domain has it.
        let Some(mut passage) =
            passage.ok().filter(|passage| edge.may_have(plan(passage), passage))
        else {
            edge.counters.violations.add(1);
            return;
        };
        let plan = plan(&passage);
        let accepted = self.owners.take_back(returned.buffer, edge.holder);
        debug_assert_eq!(accepted, Ok(passage), "what it has can be taken back");
        self.fresh_pkts -= usize::from(passage.epoch == self.epoch);
        edge.counters.tx_pkts.add(1);
        let in_buffer =
            self.geometry.contains(returned.buffer, returned.offset_bytes, returned.len_bytes);
        let at_hop = edge.may_be_at(plan, &passage, returned.hop);
        passage.hop = returned.hop;
        // An isolated NF has no neighbours whose rings could be full.
        let may = |action: &ActionCode| *action != ActionCode::Refused || edge.holder == TRUSTED;
        let action =
            ActionCode::from_code(returned.action).filter(|act| in_buffer && at_hop && may(act));
        let packet = PortPacket::from(returned);
        if action.is_some_and(|action| action != ActionCode::Drop) {
            edge.copy_in(&self.pool, &packet);
        }
        match action {
            Some(_) if passage.ingress == NO_PORT && packet.len_bytes == 0 => {
                self.counters.drop_at(&edge.drops, DropReason::LoanReturned, 1);
                self.dropped.push(packet.buffer);
            }
            Some(ActionCode::Next) => {
                let hop = passage.hop.saturating_add(1);
                self.forward(plan, packet, Passage { hop, ..passage });
            }
            Some(ActionCode::Drop) => {
                let unused = passage.ingress == NO_PORT && packet.len_bytes == 0;
                let reason = if unused { DropReason::LoanReturned } else { DropReason::NfDrop };
                edge.counters.drop_pkts.add(1);
                self.counters.drop_at(&edge.drops, reason, 1);
                let slot = edge.slot;
                if self.watch.as_ref().is_some_and(|watch| watch.is_on()) {
                    edge.copy_in(&self.pool, &packet);
                }
                self.lose(packet, slot, reason);
            }
            Some(ActionCode::Out) => match PortId::try_from(returned.target) {
                Ok(port) => self.stage_for_port(packet, port),
                Err(_) => self.drop_here(packet, DropReason::UnknownPort),
            },
            Some(ActionCode::ToService) => self.jump(plan, packet, passage, returned.target),
            Some(ActionCode::Branch) => self.branch(plan, packet, passage, returned.target),
            Some(ActionCode::Refused) => {
                self.refused(plan, packet, passage, returned.target);
            }
            None => {
                edge.counters.violations.add(1);
                self.counters.drop_at(&edge.drops, DropReason::NfMalformed, 1);
                let slot = edge.slot;
                self.lose(packet, slot, DropReason::NfMalformed);
            }
        }
    }

    /// An NF sends a packet to a service. If the packet's route contains it, the packet goes on from
    /// there; if not, it comes back to the end of its route.
    fn jump(&mut self, plan: &Plan, packet: PortPacket, passage: Passage, service: ServiceId) {
        let parks = passage.epoch == self.epoch
            && self.transition.as_ref().is_some_and(|t| t.parks_jump(service, packet.flow_hash));
        if parks {
            return self.park(Parked { packet, next: Next::Jump { passage, service } });
        }
        self.go_to_service(plan, packet, passage, service);
    }

    fn go_to_service(
        &mut self,
        plan: &Plan,
        packet: PortPacket,
        passage: Passage,
        service: ServiceId,
    ) {
        let Some(to) = plan.service(service) else {
            return self.drop_here(packet, DropReason::UnknownService);
        };
        let hops = plan.route(passage.route).map(|route| route.hops.iter());
        let hop = hops.and_then(|mut hops| hops.position(|hop| hop.id == service));
        let hop = hop.and_then(|hop| u8::try_from(hop).ok()).unwrap_or(OFF_ROUTE);
        self.deliver(plan, packet, Passage { hop, ..passage }, to);
    }

    /// An NF sends a packet to a named branch of its chain.
    fn branch(&mut self, plan: &Plan, packet: PortPacket, passage: Passage, branch: u16) {
        match plan.route(passage.route).and_then(|route| route.branch(branch)) {
            None => self.drop_here(packet, DropReason::UnknownBranch),
            Some(chain) => self.end(plan, packet, passage, End::Chain(chain)),
        }
    }

    /// An NF could not push to a neighbour whose ring stayed full. One that is not on the packet's
    /// route is nobody's neighbour, and not blamed.
    fn refused(&mut self, plan: &Plan, packet: PortPacket, passage: Passage, neighbour: NfNumber) {
        let route = plan.route(passage.route);
        let is_on_it = |edge: &&NfEdge| {
            route.is_some_and(|route| route.hops.iter().any(|hop| hop.id == edge.service))
        };
        match self.nfs.get(usize::from(neighbour)).and_then(Option::as_ref).filter(is_on_it) {
            Some(edge) => {
                edge.counters.ring_full_pkts.add(1);
                self.counters.drop_at(&edge.drops, DropReason::NfRingFull, 1);
                let slot = edge.slot;
                self.lose(packet, slot, DropReason::NfRingFull);
            }
            None => self.drop_here(packet, DropReason::NfRingFull),
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
            let (sent, refused) = port.staged.split_at(sent);
            if let Some(watch) = watching(&mut self.watch) {
                watch.sent(sent, number);
                watch.dropped(refused, NOBODY, DropReason::TxFull);
            }
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

    fn drop_here(&mut self, packet: PortPacket, reason: DropReason) {
        self.counters.drop_here(reason, 1);
        self.lose(packet, NOBODY, reason);
    }

    fn drop_at(&mut self, packet: PortPacket, slot: u16, reason: DropReason) {
        self.counters.drop_at(self.drops_of(slot), reason, 1);
        self.lose(packet, slot, reason);
    }

    /// The end of a packet whose drop is counted.
    fn lose(&mut self, packet: PortPacket, slot: u16, reason: DropReason) {
        if let Some(watch) = watching(&mut self.watch) {
            watch.dropped(&[packet], slot, reason);
        }
        self.dropped.push(packet.buffer);
    }

    /// What is counted at a service.
    fn drops_of(&self, slot: u16) -> &DropCounters {
        self.service_drops
            .get(usize::from(slot))
            .unwrap_or_else(|| unreachable!("a plan names a service whose counters came with it"))
    }
}

/// The plans that packets inside follow.
struct Plans {
    new: Arc<Plan>,
    old: Option<Arc<Plan>>,
}

impl Plans {
    /// The plan of a packet: from end to end the one it came in under, lest it overtakes others of
    /// its flow in a chain or at a service that it comes to later.
    #[inline]
    fn of(&self, passage: &Passage, epoch: u8) -> &Plan {
        match &self.old {
            Some(old) if passage.epoch != epoch => old,
            _ => &self.new,
        }
    }
}

impl NfEdge {
    #[cold]
    fn break_off(&mut self) {
        self.broken |= !self.closed;
        self.closed = true;
        self.counters.violations.add(1);
    }

    /// Whether a packet that the worker gave away in `passage` can be with this NF at all.
    #[inline]
    fn may_have(&self, plan: &Plan, passage: &Passage) -> bool {
        self.holder != TRUSTED || visits(plan, passage, |service| service.id == self.service)
    }

    /// Whether a packet that the worker gave away in `passage` can be at `hop` with this NF.
    #[inline]
    fn may_be_at(&self, plan: &Plan, passage: &Passage, hop: u8) -> bool {
        if self.holder != TRUSTED || hop == OFF_ROUTE {
            return hop == passage.hop;
        }
        // Neighbours may have passed it on, inside the domain: along the route, or to a service on it
        // that lies before or behind.
        let service = || plan.route(passage.route)?.hops.get(usize::from(hop));
        service().is_some_and(|service| service.id == self.service)
    }
}

/// Whether a packet may come to a service on its way. Off its route it may come to any.
#[inline]
fn visits(plan: &Plan, passage: &Passage, is_it: impl Fn(&PlannedService) -> bool) -> bool {
    passage.hop == OFF_ROUTE
        || plan.route(passage.route).is_none_or(|route| route.hops.iter().any(|hop| is_it(hop)))
}

/// A packet as an NF gets it.
#[inline]
fn delivery(packet: PortPacket, passage: Passage) -> Delivery {
    Delivery {
        buffer: packet.buffer,
        offset_bytes: packet.offset_bytes,
        len_bytes: packet.len_bytes,
        flow_hash: packet.flow_hash,
        route: passage.route,
        port: passage.ingress,
        hop: passage.hop,
    }
}
