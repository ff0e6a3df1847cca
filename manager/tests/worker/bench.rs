//! A worker with everything around it in the test's hands: ports whose every buffer is seen, NFs at
//! the other end of real rings, and a planner.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use millrace::change::{Change, Outcome};
use millrace::classify::{ChangedRules, Classifier, RuleChanges};
use millrace::edges::Edges;
use millrace::flow::{Match, MatchSet, Rule, RuleChange, Then};
use millrace::model::End;
use millrace::plan::builder::{Planner, Wanted};
use millrace::plan::delta::PathDelta;
use millrace::plan::{ChainShape, Miss, NfNumber};
use millrace::pool::BufferPool;
use millrace::ports::{MAX_BURST_PKTS, PortPacket, PortQueue};
use millrace::stats::{DropCounters, DropReason, NfCounters, QueueCounters, WorkerCounters};
use millrace::worker::{NewNf, Whereabouts, Worker, WorkerPort};
use nflib::control::MatchSpec;
use nflib::control::OnDeath;
use nflib::control::spec::Value;
use nflib::descriptor::{ActionCode, ChainId, Delivery, Returned, ServiceId};
use nflib::shm::channel::ChannelGeometry;
use nflib::shm::{
    BufferIndex, Channel, Consumer, Doorbells, HugePages, MarkTable, Producer, Region,
    RegionGeometry, TapFile,
};
use nflib::testing::FrameBuilder;

/// What a probe port is told and what it saw.
#[derive(Default)]
pub struct Wire {
    /// Frames to come in, each with the hash that the NIC computed; 0: none.
    pub to_receive: VecDeque<(Vec<u8>, u32)>,
    pub received: Vec<PortPacket>,
    pub sent: Vec<(PortPacket, Vec<u8>)>,
    pub tx_room: Option<usize>,
    /// How many times a sent buffer is given back.
    pub frees: Option<usize>,
}

/// A port that a test feeds and looks at. Frames go into buffers of the pool as a NIC would put
/// them there.
struct ProbePort {
    wire: Arc<Mutex<Wire>>,
    counters: Arc<QueueCounters>,
}

impl PortQueue for ProbePort {
    fn rx_burst(&mut self, pool: &mut BufferPool, out: &mut Vec<PortPacket>) {
        let mut wire = self.wire.lock().unwrap();
        while out.len() < MAX_BURST_PKTS && !wire.to_receive.is_empty() {
            let Some(buffer) = pool.take_one() else { return };
            let (frame, flow_hash) = wire.to_receive.pop_front().unwrap();
            let len_bytes = u16::try_from(frame.len()).unwrap();
            assert!(pool.region().write(buffer, 256, &frame));
            let packet = PortPacket { buffer, offset_bytes: 256, len_bytes, flow_hash };
            self.counters.rx_pkts.add(1);
            wire.received.push(packet);
            out.push(packet);
        }
    }

    fn tx_burst(&mut self, pool: &mut BufferPool, packets: &[PortPacket]) -> usize {
        let mut wire = self.wire.lock().unwrap();
        let taken = packets.len().min(wire.tx_room.unwrap_or(usize::MAX));
        for packet in &packets[..taken] {
            let mut bytes = vec![0; usize::from(packet.len_bytes)];
            assert!(pool.region().read(packet.buffer, packet.offset_bytes, &mut bytes));
            wire.sent.push((*packet, bytes));
            for _ in 0..wire.frees.unwrap_or(1) {
                pool.give(&[packet.buffer]);
            }
        }
        self.counters.tx_pkts.add(taken as u64);
        taken
    }

    fn maintain(&mut self, _pool: &mut BufferPool) {}

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }

    fn close(&mut self, _pool: &mut BufferPool) {}
}

/// An NF's ends of the rings, in the test's hands. It keeps its hold map as NFs do.
pub struct TestNf {
    pub nf: NfNumber,
    pub region: Region,
    pub rx: Consumer<Delivery>,
    pub tx: Producer<Returned>,
    pub channel: Channel,
    pub counters: Arc<NfCounters>,
}

impl TestNf {
    pub fn receive(&mut self) -> Vec<Delivery> {
        let mut out = [Delivery::default(); 64];
        let count = self.rx.read_burst(&mut out).unwrap();
        for delivery in &out[..count] {
            self.channel.set_held(delivery.buffer, true);
        }
        self.rx.release();
        out[..count].to_vec()
    }

    pub fn give_back(&mut self, returned: &[Returned]) {
        assert_eq!(self.tx.push_burst(returned), Ok(returned.len()));
        for packet in returned {
            self.channel.set_held(packet.buffer, false);
        }
        self.tx.settle();
    }

    pub fn pass(&mut self, delivery: &Delivery, action: ActionCode, target: u16) {
        self.give_back(&[back(delivery, action, target)]);
    }

    pub fn violations(&self) -> u64 {
        self.counters.violations.get()
    }
}

pub fn back(delivery: &Delivery, action: ActionCode, target: u16) -> Returned {
    Returned {
        buffer: delivery.buffer,
        offset_bytes: delivery.offset_bytes,
        len_bytes: delivery.len_bytes,
        flow_hash: delivery.flow_hash,
        target,
        hop: delivery.hop,
        action: action as u8,
    }
}

/// A chain that ends at the egress port.
pub fn chain(id: ChainId, services: &[ServiceId]) -> ChainShape {
    ending(id, services, End::Egress)
}

pub fn ending(id: ChainId, services: &[ServiceId], end: End) -> ChainShape {
    ChainShape {
        id,
        services: services.to_vec(),
        end,
        branches: BTreeMap::new(),
        on_death: OnDeath::Drop,
    }
}

/// A frame of a flow: the flow is the UDP source port, the number is the payload's.
pub fn frame(flow: u16, number: u32) -> Vec<u8> {
    FrameBuilder::new()
        .ip("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap())
        .udp(flow, 53)
        .payload(&number.to_be_bytes())
        .pad_to(60)
        .build()
}

/// What [`frame`] put in: flow and number.
pub fn flow_and_number(frame: &[u8]) -> (u16, u32) {
    let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    (word(34), u32::from(word(42)) << 16 | u32::from(word(44)))
}

/// What a rule asks of a flow of [`frame`].
pub fn of_flow(flow: u16) -> Match {
    let mut spec = MatchSpec::default();
    for (field, value) in [
        ("eth_type", Value::Text("ipv4".to_owned())),
        ("ip_proto", Value::Text("udp".to_owned())),
        ("tp_src", Value::Int(u64::from(flow))),
    ] {
        spec.set(field, value).unwrap();
    }
    Match::compile(&spec, &|_| None).unwrap()
}

/// A rule whose number is its flow's.
pub fn rule(flow: u16, then: Then) -> Rule {
    Rule { id: u64::from(flow), priority: 1, matches: of_flow(flow), then, ..Rule::default() }
}

/// The rules of some flows come, in the place of those they had.
pub fn rules(flows: &[(u16, Option<Then>)]) -> RuleChanges {
    let mut concerned = MatchSet::new();
    let changes = flows.iter().map(|&(flow, then)| {
        concerned.insert(&of_flow(flow));
        match then {
            Some(then) => RuleChange::Add(rule(flow, then)),
            None => RuleChange::Remove(u64::from(flow)),
        }
    });
    let changes = changes.collect();
    RuleChanges { changes, whole: None, concerned: ChangedRules::Some(Arc::new(concerned)) }
}

/// Two probe ports, the second the first one's egress, and the worker between them.
pub struct Bench {
    pub region: Arc<Region>,
    pub worker: Worker,
    pub wires: [Arc<Mutex<Wire>>; 2],
    pub counters: Arc<WorkerCounters>,
    pub chains: Vec<ChainShape>,
    pub miss: Miss,
    /// The instances of each service that the next plan names.
    pub instances: BTreeMap<ServiceId, Vec<NfNumber>>,
    pub planner: Planner,
    pub ring_capacity: u32,
    channels: BTreeMap<NfNumber, (ServiceId, Arc<Channel>)>,
    bells: Arc<Doorbells>,
    service_drops: Vec<Arc<DropCounters>>,
    told_services: usize,
    next_nf: NfNumber,
    /// Whether NFs to come keep a stock of empty buffers.
    pub keeps_stock: bool,
    pub marks: Arc<MarkTable>,
    pub tap: Arc<TapFile>,
}

impl Bench {
    /// 256 buffers, rings of 64 slots, and a default chain 0 of some services.
    pub fn new(services: &[ServiceId]) -> Self {
        Self::with_chains(vec![chain(0, services)])
    }

    pub fn with_chains(chains: Vec<ChainShape>) -> Self {
        Self::sized(chains, 256, 64)
    }

    pub fn sized(chains: Vec<ChainShape>, buffers: u32, ring_capacity: u32) -> Self {
        let geometry = RegionGeometry { buffers, stride_bytes: 2048, headroom_bytes: 256 };
        let region = Arc::new(Region::create(geometry, HugePages::Off).unwrap());
        let pool = BufferPool::new(Arc::clone(&region), 0, buffers);
        let wires = [Arc::default(), Arc::default()];
        let port = |wire: &Arc<Mutex<Wire>>, egress| {
            let queue = ProbePort { wire: Arc::clone(wire), counters: Arc::default() };
            WorkerPort::new(vec![Box::new(queue)], egress)
        };
        let ports = vec![port(&wires[0], Some(1)), port(&wires[1], None)];
        let counters = Arc::new(WorkerCounters::default());
        let classifier = Classifier::new(1024, false);
        let mut worker = Worker::new(pool, ports, classifier, Arc::clone(&counters));
        let (marks, tap) = (MarkTable::create(buffers).unwrap(), TapFile::create().unwrap());
        worker.watch_with(Arc::clone(&marks), &tap);
        let mut bench = Self {
            region,
            worker,
            wires,
            counters,
            chains,
            miss: Miss::Chain(0),
            instances: BTreeMap::new(),
            planner: Planner::new().unwrap(),
            ring_capacity,
            channels: BTreeMap::new(),
            bells: Arc::new(Doorbells::create(1024).unwrap()),
            service_drops: Vec::new(),
            told_services: 0,
            next_nf: 0,
            keeps_stock: false,
            marks,
            tap,
        };
        bench.change();
        bench
    }

    pub fn buffers(&self) -> usize {
        self.region.geometry().buffers as usize
    }

    /// An NF of the trusted domain, in the plan.
    pub fn attach(&mut self, service: ServiceId) -> TestNf {
        let nf = self.join(service, false);
        self.change();
        nf
    }

    /// An isolated NF, in the plan.
    pub fn attach_isolated(&mut self, service: ServiceId) -> TestNf {
        let nf = self.join(service, true);
        self.change();
        nf
    }

    /// An NF that the next plan will name.
    pub fn join(&mut self, service: ServiceId, isolated: bool) -> TestNf {
        let nf = self.next_nf;
        self.next_nf += 1;
        self.instances.entry(service).or_default().push(nf);
        self.join_as(nf, service, isolated)
    }

    /// An NF under a number that is known already or will be.
    pub fn join_as(&mut self, nf: NfNumber, service: ServiceId, isolated: bool) -> TestNf {
        let buffers = self.region.geometry().buffers;
        let geometry = ChannelGeometry { workers: 1, ring_capacity: self.ring_capacity, buffers };
        let channel = Arc::new(Channel::create(geometry).unwrap());
        let counters = Arc::new(NfCounters::default());
        let own_region =
            isolated.then(|| Arc::new(Region::create_sparse(*self.region.geometry()).unwrap()));
        let new = NewNf {
            nf,
            service,
            slot: self.planner.slot_of(service),
            channel: Arc::clone(&channel),
            bell: self.bells.bell(nf).unwrap(),
            isolated,
            wakes_workers: !isolated,
            keeps_stock: self.keeps_stock,
            own_region: own_region.clone(),
            counters: Arc::clone(&counters),
            drops: self.service_drops(service),
        };
        self.worker.add_nf(0, new);
        // The NF's own mappings, from the descriptors, as in another process.
        let theirs =
            Channel::from_fd(channel.fd().try_clone_to_owned().unwrap(), geometry).unwrap();
        let region = own_region.as_ref().unwrap_or(&self.region).fd().try_clone_to_owned().unwrap();
        let region = Region::from_fd_sparse(region, *self.region.geometry()).unwrap();
        let (rx, tx) = theirs.nf_ends(0).unwrap();
        self.channels.insert(nf, (service, channel));
        TestNf { nf, region, rx, tx, channel: theirs, counters }
    }

    /// An NF is dead: takes it out as the control thread does, by what it left in its rings.
    pub fn bury(&mut self, nf: NfNumber) {
        self.worker.remove_nf(nf);
        let (service, channel) = self.channels.remove(&nf).unwrap();
        let found = Edges::default().remains_of(nf, &channel);
        let drops = self.service_drops(service);
        self.worker.reclaim(&found, self.planner.slot_of(service), &drops);
    }

    /// Where the drops at a service are counted.
    pub fn service_drops(&mut self, service: ServiceId) -> Arc<DropCounters> {
        let slot = usize::from(self.planner.slot_of(service));
        let count = self.service_drops.len().max(slot + 1);
        self.service_drops.resize_with(count, Arc::default);
        Arc::clone(&self.service_drops[slot])
    }

    pub fn drops_at(&mut self, service: ServiceId, reason: DropReason) -> u64 {
        self.service_drops(service).get(reason)
    }

    /// Begins a change to `chains`, `miss` and `instances`, and to other rules.
    pub fn begin_change(&mut self, rules: RuleChanges) -> Arc<PathDelta> {
        let instances: BTreeMap<_, _> =
            self.instances.clone().into_iter().filter(|(_, nfs)| !nfs.is_empty()).collect();
        let wanted = Wanted { chains: &self.chains, miss: self.miss, instances };
        let plan = self.planner.prepare(&wanted).unwrap();
        let delta = Arc::new(PathDelta::between(self.planner.current(), &plan));
        let services = self.planner.services_by_slot().len().max(self.service_drops.len());
        self.service_drops.resize_with(services, Arc::default);
        let new_services = self.service_drops[self.told_services..].to_vec();
        self.told_services = services;
        self.planner.commit(Arc::clone(&plan));
        let change = Change { plan, delta: Arc::clone(&delta), rules, new_services };
        self.worker.begin_change(change);
        delta
    }

    /// The outcome of a change, if it is complete; its old routes are gone then.
    pub fn take_outcome(&mut self) -> Option<Outcome> {
        let outcome = self.worker.take_outcome()?;
        if outcome.in_order {
            self.planner.retire();
        }
        Some(outcome)
    }

    /// Makes a change while nothing of the old plan is inside.
    pub fn change(&mut self) {
        self.change_rules(RuleChanges::default());
    }

    pub fn change_rules(&mut self, rules: RuleChanges) {
        self.begin_change(rules);
        self.worker.turn(false);
        let outcome = self.take_outcome().expect("nothing of the old plan is inside");
        assert!(outcome.in_order);
    }

    /// Frames whose every byte is their number, of one flow.
    pub fn inject(&self, count: u8) {
        let mut wire = self.wires[0].lock().unwrap();
        wire.to_receive.extend((0..count).map(|n| (vec![n; 60], 7)));
    }

    /// A frame of a flow, whose hash the NIC did not compute.
    pub fn inject_flow(&self, flow: u16, number: u32) {
        self.wires[0].lock().unwrap().to_receive.push_back((frame(flow, number), 0));
    }

    /// Frames that still wait at the port.
    pub fn waiting_outside(&self) -> usize {
        self.wires[0].lock().unwrap().to_receive.len()
    }

    pub fn turn(&mut self) {
        self.worker.turn(true);
        self.assert_balanced();
    }

    /// What left by the second port since the last call.
    pub fn sent(&self) -> Vec<(PortPacket, Vec<u8>)> {
        self.sent_by(1)
    }

    pub fn sent_by(&self, port: usize) -> Vec<(PortPacket, Vec<u8>)> {
        std::mem::take(&mut self.wires[port].lock().unwrap().sent)
    }

    /// The same, as flows and numbers.
    pub fn sent_flows(&self) -> Vec<(u16, u32)> {
        self.sent().iter().map(|(_, frame)| flow_and_number(frame)).collect()
    }

    /// Every packet that entered is somewhere, now.
    pub fn assert_balanced(&self) {
        let (mut rx, mut tx, mut drops) = (0, 0, self.counters.dropped_pkts.get());
        for queue in self.worker.ports().iter().flat_map(|port| &port.queues) {
            rx += queue.counters().rx_pkts.get();
            tx += queue.counters().tx_pkts.get();
            drops += queue.counters().drops.total();
        }
        let lent = self.counters.lent_pkts.get();
        let held = self.worker.held_pkts();
        assert_eq!(rx + lent, tx + drops + held, "rx + lent = tx + drops + held");
        let services: u64 = self.service_drops.iter().map(|drops| drops.total()).sum();
        let counted = self.counters.drops.total() + services;
        assert_eq!(self.counters.dropped_pkts.get(), counted, "each drop is counted at one place");
        let census = self.worker.census();
        let lost = census.places.iter().filter(|place| **place == Whereabouts::Unknown).count();
        assert_eq!((lost, census.twice), (0, 0), "each buffer is at one place");
    }

    pub fn assert_all_back(&self) {
        self.assert_balanced();
        assert_eq!(self.worker.held_pkts(), 0);
        assert_eq!(self.worker.pool().free_buffers(), self.buffers());
        assert_eq!(self.worker.marked_pkts(), 0, "a mark ends with its packet");
    }
}

/// The buffers of some deliveries.
pub fn buffers(deliveries: &[Delivery]) -> Vec<BufferIndex> {
    deliveries.iter().map(|delivery| delivery.buffer).collect()
}
