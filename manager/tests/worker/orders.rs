//! Any sequence of arrivals, returns and changes, against a model that walks each packet's path.
//!
//! What must hold: of each flow the packets leave in the order in which they came, none is lost or
//! sent twice, each follows from end to end the plan under which it came in, and flows that a change
//! does not concern are not parked by it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use millrace::classify::RuleChanges;
use millrace::flow::{FlowKey, Then};
use millrace::model::End;
use millrace::plan::delta::PathDelta;
use millrace::plan::{NfNumber, Plan};
use nflib::descriptor::{ActionCode, ChainId, Delivery, PortId, ServiceId};
use nflib::shm::RouteTable;
use proptest::prelude::*;

use super::bench::{Bench, TestNf, chain, ending, flow_and_number, frame, rules};

const FLOWS: u16 = 8;
const SERVICES: u16 = 3;
const INSTANCES: u16 = 3;
/// The branch that NFs of service 1 take with some flows.
const BRANCH: u16 = 7;

#[derive(Clone, Debug)]
enum Step {
    Arrive { flow: u16, pkts: u8 },
    Return { nf: u16, pkts: u8 },
    Chain { id: ChainId, services: u8, end: u8 },
    Instances { service: ServiceId, which: u8 },
    Rule { flow: u16, then: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..FLOWS, 1u8..6).prop_map(|(flow, pkts)| Step::Arrive { flow, pkts }),
        6 => (0..SERVICES * INSTANCES, 1u8..12).prop_map(|(nf, pkts)| Step::Return { nf, pkts }),
        1 => (0u16..2, 0u8..8, 0u8..3)
            .prop_map(|(id, services, end)| Step::Chain { id, services, end }),
        2 => (1..=SERVICES, 0u8..8).prop_map(|(service, which)| Step::Instances { service, which }),
        1 => (0..FLOWS, 0u8..5).prop_map(|(flow, then)| Step::Rule { flow, then }),
    ]
}

/// The members of a set of three, given as bits, in rising order.
fn members(bits: u8) -> impl Iterator<Item = u16> {
    (0u16..3).filter(move |at| bits & (1 << at) != 0)
}

/// What NFs of a service do with a flow's packets.
fn action(service: ServiceId, flow: u16) -> (ActionCode, u16) {
    match (service, flow % 4) {
        (1, 1) => (ActionCode::Branch, BRANCH),
        (2, 2) => (ActionCode::ToService, 3),
        _ => (ActionCode::Next, 0),
    }
}

/// What was in force when a packet came in.
#[derive(Clone)]
struct Version {
    plan: Arc<Plan>,
    rules: BTreeMap<u16, Then>,
}

impl Version {
    fn chain_of(&self, flow: u16) -> Option<ChainId> {
        match self.rules.get(&flow) {
            None => Some(0),
            Some(Then::Chain(chain)) => Some(*chain),
            Some(_) => None,
        }
    }

    /// The NFs that a packet meets, and the port it leaves by; `None`: it is dropped.
    fn walk(&self, flow: u16, hash: u32) -> (Vec<NfNumber>, Option<PortId>) {
        let mut trail = Vec::new();
        let fate = self.fate(flow, hash, &mut trail);
        (trail, fate)
    }

    fn fate(&self, flow: u16, hash: u32, trail: &mut Vec<NfNumber>) -> Option<PortId> {
        if let Some(Then::Out(port)) = self.rules.get(&flow) {
            return Some(*port);
        }
        let mut route = self.plan.route_of(self.chain_of(flow)?)?;
        let (mut hop, mut off_route) = (0, None);
        loop {
            let Some(service) = off_route.or(route.hops.get(hop)) else {
                match route.end {
                    End::Egress => return Some(1),
                    End::Ingress => return Some(0),
                    End::Out(port) => return Some(port),
                    End::Drop => return None,
                    End::Chain(next) => route = self.plan.route_of(next)?,
                }
                hop = 0;
                continue;
            };
            trail.push(service.instances.pick(hash)?);
            match action(service.id, flow) {
                (ActionCode::Branch, branch) => {
                    (route, hop, off_route) = (self.plan.route_of(route.branch(branch)?)?, 0, None);
                }
                (ActionCode::ToService, to) => {
                    let found = route.hops.iter().position(|hop| hop.id == to);
                    off_route = if found.is_some() { None } else { Some(self.plan.service(to)?) };
                    hop = found.unwrap_or(route.hops.len());
                }
                _ => (hop, off_route) = (if off_route.is_some() { hop } else { hop + 1 }, None),
            }
        }
    }
}

struct Run {
    bench: Bench,
    nfs: Vec<(TestNf, VecDeque<Delivery>)>,
    /// The route table, when NFs hand packets to each other.
    direct: Option<RouteTable>,
    nic_hashes: bool,
    versions: Vec<Version>,
    numbers: BTreeMap<u16, u32>,
    /// By flow and number: the version a packet came in under, and the NFs it met.
    came: BTreeMap<(u16, u32), (usize, Vec<NfNumber>)>,
    left: BTreeMap<(u16, u32), PortId>,
    /// The last number of each flow that left in an earlier turn.
    last_left: BTreeMap<u16, u32>,
    /// A change under way, with how many packets came in that it concerns.
    changing: Option<(Arc<PathDelta>, u64)>,
}

impl Run {
    fn new(direct: bool, nic_hashes: bool) -> Self {
        let mut bench = Bench::sized(Vec::new(), 512, 512);
        // However slowly the test goes: nobody loses patience.
        bench.worker.set_patience(Duration::from_secs(3600));
        bench.chains = vec![chain(0, &[1, 2]), chain(1, &[3])];
        bench.chains[0].branches.insert(BRANCH, 1);
        let mut nfs = Vec::new();
        for service in 1..=SERVICES {
            nfs.extend((0..INSTANCES).map(|_| (bench.join(service, !direct), VecDeque::new())));
        }
        bench.change();
        let direct =
            direct.then(|| RouteTable::from_fd(&bench.planner.table_fd().unwrap()).unwrap());
        let plan = Arc::clone(bench.planner.current());
        Self {
            bench,
            nfs,
            direct,
            nic_hashes,
            versions: vec![Version { plan, rules: BTreeMap::new() }],
            numbers: BTreeMap::new(),
            came: BTreeMap::new(),
            left: BTreeMap::new(),
            last_left: BTreeMap::new(),
            changing: None,
        }
    }

    fn hash_of(&self, flow: u16) -> u32 {
        if self.nic_hashes {
            (u32::from(flow) + 1).wrapping_mul(0x9137_2B51)
        } else {
            FlowKey::parse(&frame(flow, 0), 0, 0, 0).flow_hash()
        }
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Arrive { flow, pkts } => {
                let hash = if self.nic_hashes { self.hash_of(flow) } else { 0 };
                for _ in 0..pkts {
                    let number = self.numbers.entry(flow).or_default();
                    let mut wire = self.bench.wires[0].lock().unwrap();
                    wire.to_receive.push_back((frame(flow, *number), hash));
                    *number += 1;
                }
            }
            Step::Return { nf, pkts } => self.give_back(usize::from(nf), usize::from(pkts)),
            // One change at a time.
            _ if self.changing.is_some() => {}
            Step::Chain { id, services, end } => {
                let services: Vec<_> = members(services).map(|at| at + 1).collect();
                let end = match (id, end) {
                    (0, 1) => End::Chain(1),
                    (1, 1) => End::Drop,
                    (_, 2) => End::Ingress,
                    _ => End::Egress,
                };
                let branches = std::mem::take(&mut self.bench.chains[usize::from(id)].branches);
                self.bench.chains[usize::from(id)] = ending(id, &services, end);
                self.bench.chains[usize::from(id)].branches = branches;
                self.begin(RuleChanges::default());
            }
            Step::Instances { service, which } => {
                let first = (service - 1) * INSTANCES;
                let nfs = members(which).map(|at| first + at).collect();
                self.bench.instances.insert(service, nfs);
                self.begin(RuleChanges::default());
            }
            Step::Rule { flow, then } => {
                let then = match then {
                    0 => None,
                    1 => Some(Then::Drop),
                    2 => Some(Then::Out(1)),
                    _ => Some(Then::Chain(1)),
                };
                if self.versions.last().unwrap().rules.get(&flow) != then.as_ref() {
                    self.begin_with(flow, then);
                }
            }
        }
    }

    fn begin(&mut self, rules: RuleChanges) {
        let delta = self.bench.begin_change(rules);
        self.changing = Some((delta, 0));
        let before = self.versions.last().unwrap().clone();
        let plan = Arc::clone(self.bench.planner.current());
        self.versions.push(Version { plan, ..before });
    }

    fn begin_with(&mut self, flow: u16, then: Option<Then>) {
        self.begin(rules(&[(flow, then)]));
        let version = self.versions.last_mut().unwrap();
        match then {
            Some(then) => version.rules.insert(flow, then),
            None => version.rules.remove(&flow),
        };
    }

    /// Whether the change under way concerns a flow.
    fn concerns(&self, delta: &PathDelta, flow: u16) -> bool {
        let [.., old, new] = &self.versions[..] else { return false };
        let hash = self.hash_of(flow);
        old.rules.get(&flow) != new.rules.get(&flow)
            || new.chain_of(flow).is_some_and(|chain| delta.moves(chain, hash))
            || (flow % 4 == 2 && delta.moves_to_service(3, hash))
    }

    /// One turn, and what must hold after each.
    fn turn(&mut self) {
        self.bench.turn();
        self.note_received();
        self.note_sent();
        if let Some(outcome) = self.bench.take_outcome() {
            let (_, concerned) = self.changing.take().unwrap();
            assert!(outcome.in_order);
            assert!(outcome.parked_pkts <= concerned, "only flows that it concerns wait");
        }
        for nf in 0..self.nfs.len() {
            loop {
                let got = self.nfs[nf].0.receive();
                if got.is_empty() {
                    break;
                }
                got.into_iter().for_each(|delivery| self.arrive_at(nf, delivery));
            }
        }
    }

    fn note_received(&mut self) {
        let received = std::mem::take(&mut self.bench.wires[0].lock().unwrap().received);
        for packet in received {
            let mut bytes = [0; 60];
            assert!(self.bench.region.read(packet.buffer, packet.offset_bytes, &mut bytes));
            let (flow, number) = flow_and_number(&bytes);
            self.came.insert((flow, number), (self.versions.len() - 1, Vec::new()));
            if let Some((delta, concerned)) = self.changing.take() {
                let one = u64::from(self.concerns(&delta, flow));
                self.changing = Some((delta, concerned + one));
            }
        }
    }

    fn note_sent(&mut self) {
        let mut now = self.last_left.clone();
        for port in 0..2 {
            let mut last = self.last_left.clone();
            for (_, bytes) in self.bench.sent_by(port) {
                let (flow, number) = flow_and_number(&bytes);
                assert!(self.left.insert((flow, number), port as PortId).is_none(), "sent twice");
                let before = last.insert(flow, number);
                assert!(before.is_none_or(|before| before < number), "flow {flow}: {number} late");
            }
            for (flow, number) in last {
                let latest = now.entry(flow).or_insert(number);
                *latest = number.max(*latest);
            }
        }
        self.last_left = now;
    }

    fn arrive_at(&mut self, nf: usize, delivery: Delivery) {
        let (test_nf, queue) = &mut self.nfs[nf];
        let mut bytes = [0; 60];
        assert!(test_nf.region.read(delivery.buffer, delivery.offset_bytes, &mut bytes));
        self.came.get_mut(&flow_and_number(&bytes)).unwrap().1.push(test_nf.nf);
        queue.push_back(delivery);
    }

    /// An NF is done with some packets, oldest first.
    fn give_back(&mut self, nf: usize, pkts: usize) {
        for _ in 0..pkts {
            let (test_nf, queue) = &mut self.nfs[nf];
            let Some(delivery) = queue.pop_front() else { return };
            let mut bytes = [0; 60];
            assert!(test_nf.region.read(delivery.buffer, delivery.offset_bytes, &mut bytes));
            let service = nf as u16 / INSTANCES + 1;
            let (code, target) = action(service, flow_and_number(&bytes).0);
            let Delivery { route, hop, flow_hash, .. } = delivery;
            let neighbour = self
                .direct
                .as_ref()
                .filter(|_| code == ActionCode::Next && hop < 255)
                .and_then(|table| table.nf_at(route, hop + 1, flow_hash));
            match neighbour {
                Some(to) => {
                    self.arrive_at(usize::from(to), Delivery { hop: hop + 1, ..delivery });
                }
                None => test_nf.pass(&delivery, code, target),
            }
        }
    }

    /// Lets everything come out.
    fn finish(&mut self) {
        for _ in 0..500 {
            let inside = self.bench.worker.held_pkts() > 0 || self.bench.waiting_outside() > 0;
            if !inside && self.changing.is_none() {
                return;
            }
            (0..self.nfs.len()).for_each(|nf| self.give_back(nf, usize::MAX));
            self.turn();
        }
        panic!("something stays inside for ever");
    }

    /// Every packet met what the version said under which it came, and left where that said.
    fn assert_paths(&self) {
        let mut dropped = 0;
        for (&(flow, number), (version, trail)) in &self.came {
            let (expected, port) = self.versions[*version].walk(flow, self.hash_of(flow));
            assert_eq!(trail, &expected, "flow {flow} packet {number}, version {version}");
            assert_eq!(self.left.get(&(flow, number)).copied(), port, "flow {flow}");
            dropped += u64::from(port.is_none());
        }
        let sent_in: u32 = self.numbers.values().sum();
        assert_eq!(self.came.len(), sent_in as usize);
        assert_eq!(self.bench.counters.dropped_pkts.get(), dropped);
        assert!(self.nfs.iter().all(|(nf, _)| nf.violations() == 0));
        assert_eq!(self.bench.planner.written_routes(), 2, "routes that nobody travels are gone");
        self.bench.assert_all_back();
    }
}

proptest! {
    // Each case is long; PROPTEST_CASES still makes them more.
    #![proptest_config(ProptestConfig {
        cases: ProptestConfig::default().cases / 4,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_flow_keeps_its_order_and_every_packet_its_version(
        direct: bool,
        nic_hashes: bool,
        steps in proptest::collection::vec(step(), 1..160),
    ) {
        let mut run = Run::new(direct, nic_hashes);
        for step in &steps {
            run.take(step);
            run.turn();
        }
        run.finish();
        run.assert_paths();
    }
}
