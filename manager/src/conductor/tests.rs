//! The conductor over a real small data path: workers, rings, edges. The NFs are the tests'.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use nflib::control::{AttachRequest, ChainSpec, Edit, ServiceRef};
use nflib::descriptor::{ActionCode, Delivery, Returned};
use nflib::shm::{Channel, Consumer, EdgeRing, Producer, RouteTable};

use super::*;
use crate::config::Config;
use crate::plan::Instances;
use crate::poll_loop::Snapshot;
use crate::registry::{Leave, MAX_NFS, Peer};

const LIMIT: Duration = Duration::from_secs(20);
const BUFFERS: u64 = 8192;
/// Rings that take all packets of a test: none is dropped because the machine is busy.
const RING: u32 = 4096;

/// An NF that passes packets on, and does what a test wants of it.
struct FakeNf {
    instance: u32,
    nf: NfNumber,
    channel: Channel,
    rx: Consumer<Delivery>,
    tx: Producer<Returned>,
    table: RouteTable,
    ins: BTreeMap<NfNumber, (Consumer<Delivery>, bool)>,
    outs: BTreeMap<NfNumber, Producer<Delivery>>,
    mail: VecDeque<Letter>,
    /// It looks at its messages.
    listens: bool,
    /// It passes packets on.
    works: bool,
    told_to_go: bool,
    /// Packets it handed to neighbours, and took from them.
    pushed_pkts: u64,
    taken_pkts: u64,
}

impl FakeNf {
    /// What is there, in its protocol's order: keep, release, push, note, settle.
    fn work(&mut self) {
        if !self.works {
            return;
        }
        let mut packets = Vec::new();
        let mut out = [Delivery::default(); 64];
        let edges = self.ins.values_mut().map(|(ring, _)| (ring, true));
        for (ring, direct) in edges.chain([(&mut self.rx, false)]) {
            let count = ring.read_burst(&mut out).unwrap();
            self.taken_pkts += if direct { count as u64 } else { 0 };
            for packet in &out[..count] {
                self.channel.set_held(packet.buffer, true);
            }
            ring.release();
            packets.extend_from_slice(&out[..count]);
        }
        for packet in packets {
            self.pass_on(packet);
        }
        self.outs.values().for_each(Producer::settle);
        self.tx.settle();
        self.ins.retain(|_, (ring, closing)| !*closing || !ring.is_empty());
    }

    fn pass_on(&mut self, packet: Delivery) {
        let Delivery { buffer, offset_bytes, len_bytes, flow_hash, route, hop, .. } = packet;
        let next = self.table.nf_at(route, hop + 1, flow_hash);
        match next.and_then(|nf| self.outs.get_mut(&nf)) {
            Some(edge) => {
                assert_eq!(edge.push_burst(&[Delivery { hop: hop + 1, ..packet }]), Ok(1));
                self.pushed_pkts += 1;
            }
            None => {
                let action = ActionCode::Next as u8;
                let back =
                    Returned { buffer, offset_bytes, len_bytes, flow_hash, target: 0, hop, action };
                assert_eq!(self.tx.push_burst(&[back]), Ok(1));
            }
        }
        self.channel.set_held(buffer, false);
    }

    /// Acts on a message; the number to answer with, if it asks for one.
    fn act_on(&mut self, letter: Letter) -> Option<u64> {
        let ring = |fd: Option<OwnedFd>| EdgeRing::from_fd(fd.unwrap(), RING).unwrap();
        match letter.reply {
            Reply::OutEdge { nf, .. } => {
                self.outs.insert(nf, ring(letter.fd).producer());
            }
            Reply::InEdge { nf, .. } => {
                self.ins.insert(nf, (ring(letter.fd).consumer(), false));
            }
            Reply::CloseOutEdge { nf } => {
                assert!(self.outs.remove(&nf).is_some(), "an edge is closed once");
            }
            Reply::CloseInEdge { nf } => {
                self.ins.get_mut(&nf).expect("an edge is closed once").1 = true;
            }
            Reply::Sync { token } => return Some(token),
            Reply::Detached | Reply::Stop { .. } => self.told_to_go = true,
            other => panic!("not for an NF: {other:?}"),
        }
        None
    }

    fn is_empty(&self) -> bool {
        self.rx.is_empty() && self.ins.values().all(|(ring, _)| ring.is_empty())
    }
}

struct Lab {
    conductor: Conductor,
    fabric: Fabric,
    nfs: Vec<FakeNf>,
    answers: Vec<Answer>,
    /// How far the conductor's clock is ahead.
    ahead: Duration,
    /// Instances of service 1 in each plan seen, in order.
    sizes: Vec<usize>,
}

fn config(pkts: u64, rest: &str) -> Config {
    let text = format!(
        "[manager]\nsocket = \"/nowhere/m.sock\"\nring_capacity = {RING}\nwait_for_nfs = true\n\
         [pool]\nbuffers = {BUFFERS}\nhugepages = \"off\"\n\
         [[port]]\nname = \"in\"\nbackend = \"generator\"\nflows = 16\n\
         count_pkts = {pkts}\nrate_pps = 5000\negress = \"out\"\n\
         [[port]]\nname = \"out\"\nbackend = \"sink\"\nverify = true\n{rest}"
    );
    Config::parse(&text, Path::new("test.toml")).unwrap()
}

fn default_chain(services: &str) -> String {
    format!("[[chain]]\nname = \"default\"\nservices = {services}\n")
}

fn chain(name: &str, services: &[u16]) -> ChainSpec {
    let services: Vec<_> = services.iter().map(|&id| ServiceRef::Id(id)).collect();
    ChainSpec { name: name.to_owned(), services, end: "egress".to_owned(), ..ChainSpec::default() }
}

impl Lab {
    fn new(pkts: u64, rest: &str) -> Self {
        let config = config(pkts, rest);
        let fabric = Fabric::start(&config, false).unwrap();
        let conductor = Conductor::new(config.model).unwrap();
        let mut lab = Self {
            conductor,
            fabric,
            nfs: Vec::new(),
            answers: Vec::new(),
            ahead: Duration::ZERO,
            sizes: Vec::new(),
        };
        lab.settle();
        lab
    }

    /// Lets an NF in; its place in `nfs`.
    fn attach(&mut self, service: u16) -> usize {
        let request = AttachRequest::new("fake", ServiceRef::Id(service));
        let peer = Peer { pid: std::process::id().cast_signed(), uid: 0 };
        let welcome = self.conductor.attach(&request, peer, None, &mut self.fabric).unwrap();
        let [_, channel, table, ..] = <[_; 8]>::try_from(welcome.fds).unwrap();
        let channel = Channel::from_fd(channel, welcome.attached.channel).unwrap();
        let (rx, tx) = channel.nf_ends(0).unwrap();
        self.nfs.push(FakeNf {
            instance: welcome.attached.instance,
            nf: welcome.attached.nf,
            channel,
            rx,
            tx,
            table: RouteTable::from_fd(&table).unwrap(),
            ins: BTreeMap::new(),
            outs: BTreeMap::new(),
            mail: VecDeque::new(),
            listens: true,
            works: true,
            told_to_go: false,
            pushed_pkts: 0,
            taken_pkts: 0,
        });
        self.nfs.len() - 1
    }

    fn attach_all(&mut self, services: &[u16]) {
        for &service in services {
            self.attach(service);
        }
    }

    fn deliver_letters(&mut self) {
        for letter in self.conductor.take_letters() {
            if let Some(nf) = self.nfs.iter_mut().find(|nf| nf.instance == letter.instance) {
                nf.mail.push_back(letter);
            }
        }
    }

    fn step(&mut self) {
        self.conductor.turn(&mut self.fabric, Instant::now() + self.ahead).unwrap();
        self.deliver_letters();
        self.answers.extend(self.conductor.take_answers());
        let size = self.instances_of(1).len();
        if self.sizes.last() != Some(&size) {
            self.sizes.push(size);
        }
        for nf in &mut self.nfs {
            // Packets first: what is pushed just before the word that it is done counts too.
            nf.work();
            while nf.listens
                && let Some(letter) = nf.mail.pop_front()
            {
                if let Some(token) = nf.act_on(letter) {
                    self.conductor.synced(nf.instance, token);
                }
            }
        }
        let gone: Vec<_> = self
            .nfs
            .iter()
            .filter(|nf| nf.told_to_go && nf.is_empty())
            .map(|nf| nf.instance)
            .collect();
        gone.into_iter().for_each(|instance| self.remove(instance));
    }

    /// The NF is dead, or has closed its connection.
    fn remove(&mut self, instance: u32) {
        self.nfs.retain(|nf| nf.instance != instance);
        let record = self.conductor.remove(instance, &mut self.fabric).unwrap();
        assert_eq!(record.unwrap().instance, instance);
    }

    fn until(&mut self, what: &str, mut look: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + LIMIT;
        while !look(self) {
            if Instant::now() >= end {
                let (history, books) = (self.conductor.history(), self.fabric.snapshot());
                panic!("not within {LIMIT:?}: {what}; {history:?}, {books:?}");
            }
            self.step();
            std::thread::yield_now();
        }
    }

    fn settle(&mut self) {
        self.until("every change is done", |lab| !lab.conductor.is_busy());
    }

    fn snapshot(&mut self) -> Snapshot {
        let books = self.fabric.snapshot().unwrap();
        assert!(books.balanced(), "{books:?}");
        books
    }

    fn instances_of(&self, service: u16) -> BTreeSet<NfNumber> {
        match self.conductor.planner.current().service(service).map(|s| &s.instances) {
            None | Some(Instances::None) => BTreeSet::new(),
            Some(Instances::One(nf)) => BTreeSet::from([*nf]),
            Some(Instances::Many(buckets)) => buckets.owners().iter().copied().collect(),
        }
    }

    fn verified(&self, what: &str) -> u64 {
        let stats = self.fabric.ports()[1].port.hw_stats();
        let name = format!("verify_{what}_pkts");
        stats.into_iter().find(|(n, _)| *n == name).unwrap().1
    }

    /// Lets all packets out; what must hold at the end of each test. Returns the packets dropped.
    fn finish(&mut self, pkts: u64) -> u64 {
        let dropped = self.come_out(pkts);
        // Where the machine let an NF wait for longer than the workers' patience, order is not promised.
        if self.conductor.history().unordered_changes == 0 {
            assert_eq!(self.verified("reordered"), 0);
        }
        dropped
    }

    /// The same where an NF that hung may have cost order.
    fn come_out(&mut self, pkts: u64) -> u64 {
        self.settle();
        self.until("every packet is out and every buffer back", |lab| {
            let books = lab.snapshot();
            !books.exhausted.is_empty() && books.held_pkts == 0 && books.buffers_free == BUFFERS
        });
        let books = self.snapshot();
        assert_eq!(books.rx_pkts, pkts);
        assert_eq!(self.verified("good") + self.verified("reordered"), books.tx_pkts);
        assert_eq!(self.verified("duplicate"), 0);
        books.dropped_pkts
    }
}

#[test]
fn nfs_that_join_get_packets_and_hand_them_to_each_other() {
    let mut lab = Lab::new(500, &default_chain("[1, 2, 3]"));
    assert_eq!(lab.conductor.planner.current().generation, 1);
    for service in 1..=3 {
        lab.attach(service);
        assert_eq!(lab.conductor.registry.nfs().last().unwrap().state, NfState::Joining);
    }
    lab.settle();
    assert!(lab.conductor.registry.nfs().all(|nf| nf.state == NfState::Running));
    let [a, b, c] = [0, 1, 2].map(|at| lab.nfs[at].nf);
    assert!(lab.conductor.edges.is_open((a, b)) && lab.conductor.edges.is_open((b, c)));
    assert_eq!(lab.finish(500), 0);
    assert_eq!((lab.nfs[0].pushed_pkts, lab.nfs[2].taken_pkts), (500, 500));
    let counted: Vec<_> =
        lab.conductor.registry.nfs().map(|nf| nf.counters[0].rx_pkts.get()).collect();
    assert_eq!(counted, [500, 0, 0], "the manager sees each packet once in and once out");
}

#[test]
fn an_nf_that_leaves_leaves_nothing_behind() {
    let mut lab = Lab::new(2000, &default_chain("[1, 2]"));
    lab.attach_all(&[1, 2, 2]);
    lab.settle();
    lab.until("packets flow", |lab| lab.nfs[2].taken_pkts > 20);
    let leaver = lab.nfs[2].instance;
    assert!(lab.conductor.drain_nf(leaver, Leave::Asked));
    lab.until("it is gone", |lab| lab.nfs.len() == 2);
    assert!(!lab.conductor.drain_nf(leaver, Leave::Asked), "there is no such NF any more");
    assert_eq!(lab.finish(2000), 0);
    assert_eq!(lab.instances_of(2).len(), 1);
    assert_eq!(lab.conductor.edges.len(), 1);
}

/// An NF dies with packets in its direct edges, and its neighbour pushes on for a while.
fn dies_with_packets(middle_of: &str, services: &[u16]) {
    let mut lab = Lab::new(1500, &default_chain(middle_of));
    lab.attach_all(services);
    lab.settle();
    lab.until("packets flow", |lab| lab.nfs[1].taken_pkts > 20);
    let before = lab.nfs[0].pushed_pkts;
    lab.nfs[1].works = false;
    lab.until("packets wait in its ring", |lab| lab.nfs[0].pushed_pkts > before + 60);
    let dead = &mut lab.nfs[1];
    let mut out = [Delivery::default(); 20];
    let (ring, _) = dead.ins.values_mut().next().unwrap();
    assert_eq!(ring.read_burst(&mut out[..10]), Ok(10));
    out[..10].iter().for_each(|packet| dead.channel.set_held(packet.buffer, true));
    ring.release();
    assert_eq!(ring.read_burst(&mut out), Ok(20));
    let (instance, number) = (dead.instance, dead.nf);
    // The neighbour has more for it, and does not know yet.
    (lab.nfs[0].listens, lab.nfs[0].works) = (false, false);
    let before = lab.snapshot().buffers_at_nfs;
    lab.until("packets wait at the neighbour", |lab| lab.snapshot().buffers_at_nfs > before + 60);
    lab.remove(instance);
    let after = lab.nfs[0].pushed_pkts;
    lab.nfs[0].works = true;
    lab.until("the neighbour pushes on", |lab| lab.nfs[0].pushed_pkts > after + 60);
    for _ in 0..MAX_NFS {
        let Conductor { registry, planner, edges, .. } = &mut lab.conductor;
        let free = registry.free_number(|nf| planner.leads_to(nf) || edges.involve(nf));
        assert_ne!(free, Some(number), "somebody still pushes to that number");
    }
    lab.nfs[0].listens = true;
    let dropped = lab.finish(1500);
    assert!(dropped >= 120, "{dropped}");
    assert_eq!(lab.verified("good") + dropped, 1500);
    assert!(!lab.conductor.edges.involve(number) && !lab.conductor.planner.leads_to(number));
    let Conductor { registry, planner, edges, .. } = &mut lab.conductor;
    let mut free = (0..MAX_NFS)
        .filter_map(|_| registry.free_number(|nf| planner.leads_to(nf) || edges.involve(nf)));
    assert!(free.any(|nf| nf == number), "now nothing leads to it");
}

#[test]
fn an_nf_that_dies_gives_back_what_is_in_its_direct_edges_and_what_still_comes() {
    dies_with_packets("[1, 2]", &[1, 2]);
}

#[test]
fn an_nf_that_dies_in_the_middle_of_a_chain_takes_nothing_along() {
    dies_with_packets("[1, 2, 3]", &[1, 2, 3]);
}

#[test]
fn the_last_nf_of_the_domain_gives_back_all_it_had_whatever_its_rings_say() {
    let mut lab = Lab::new(300, &default_chain("[1]"));
    lab.attach(1);
    lab.nfs[0].works = false;
    lab.settle();
    lab.until("all packets are with it", |lab| lab.snapshot().buffers_at_nfs == 300);
    // Its rings' indices are impossible now: they tell nothing.
    let geometry = lab.nfs[0].channel.geometry();
    let rings_offset = 8192 + (geometry.buffers as usize / 8).next_multiple_of(4096);
    let file = lab.nfs[0].channel.fd().try_clone_to_owned().unwrap();
    let head = i64::try_from(rings_offset + 128).unwrap();
    nix::sys::uio::pwrite(file, &0x7fff_0000u32.to_le_bytes(), head).unwrap();
    let instance = lab.nfs[0].instance;
    lab.remove(instance);
    assert_eq!(lab.finish(300), 300);
}

#[test]
fn an_nf_that_does_not_answer_holds_a_change_up_for_a_second_and_finds_its_packets_in_order() {
    let mut lab = Lab::new(400, &default_chain("[1, 2]"));
    lab.attach(1);
    lab.settle();
    let silent = lab.attach(2);
    (lab.nfs[silent].listens, lab.nfs[silent].works) = (false, false);
    let began = Instant::now();
    for _ in 0..200 {
        lab.step();
    }
    let waits = lab.conductor.history().changing;
    assert!(waits || began.elapsed() >= CONNECT_LIMIT, "its word is waited for");
    lab.ahead = CONNECT_LIMIT;
    lab.settle();
    assert!(lab.conductor.registry.nfs().all(|nf| nf.state == NfState::Running));
    // Its neighbour has its end: all packets take the one way, and wait for it there.
    lab.until("its neighbour has pushed all", |lab| lab.nfs[0].pushed_pkts == 400);
    assert_eq!(lab.nfs[silent].taken_pkts, 0);
    (lab.nfs[silent].listens, lab.nfs[silent].works) = (true, true);
    assert_eq!(lab.finish(400), 0);
    assert_eq!(lab.nfs[silent].taken_pkts, 400);
}

#[test]
fn one_that_did_not_answer_pushes_through_the_manager_whatever_else_changes() {
    let mut lab = Lab::new(2000, &default_chain("[1, 2]"));
    lab.attach(2);
    lab.settle();
    let silent = lab.attach(1);
    lab.nfs[silent].listens = false;
    lab.ahead = CONNECT_LIMIT;
    lab.settle();
    let pair = (lab.nfs[silent].nf, lab.nfs[0].nf);
    assert!(!lab.conductor.edges.is_open(pair), "closed again");
    lab.nfs[silent].listens = true;
    lab.until("both have done with the edge", |lab| lab.conductor.edges.is_empty());
    // An edge now would let packets overtake those that are with the manager.
    lab.until("packets flow", |lab| lab.snapshot().tx_pkts > 100);
    lab.conductor.ask_edits(1, vec![Edit::SetChain { chain: chain("x", &[2]), new: true }]);
    lab.until("it is done", |lab| !lab.answers.is_empty());
    assert!(lab.answers[0].result.is_ok());
    assert!(lab.conductor.edges.is_empty());
    assert_eq!(lab.finish(2000), 0);
    assert_eq!(lab.nfs[silent].pushed_pkts, 0);
}

#[test]
fn instances_come_and_go_one_at_a_time_and_each_step_moves_the_fewest_flows() {
    let mut lab = Lab::new(4000, &default_chain("[1]"));
    lab.attach(1);
    lab.settle();
    for _ in 0..3 {
        lab.attach(1);
    }
    lab.settle();
    for leaver in [lab.nfs[0].instance, lab.nfs[2].instance] {
        assert!(lab.conductor.drain_nf(leaver, Leave::Told("scaled".to_owned())));
    }
    lab.until("two are gone", |lab| lab.nfs.len() == 2);
    assert_eq!(lab.sizes, [0, 1, 2, 3, 4, 3, 2]);
    assert_eq!(lab.finish(4000), 0);
}

#[test]
fn a_request_is_carried_out_as_a_whole_or_not_at_all() {
    let mut lab = Lab::new(10, &default_chain("[1]"));
    let set = |chain: ChainSpec| Edit::SetChain { chain, new: false };
    lab.conductor.ask_edits(1, vec![set(chain("a", &[1]))]);
    let missing = Edit::RemoveChain { name: "nothing".to_owned() };
    lab.conductor.ask_edits(2, vec![set(chain("b", &[1])), missing]);
    lab.conductor.ask_edits(3, vec![set(chain("c", &[1, 1]))]);
    let before = lab.conductor.planner.current().generation;
    lab.settle();
    let answered: Vec<_> = lab.answers.iter().map(|a| (a.id, a.result.is_ok())).collect();
    let mut sorted = answered.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, [(1, true), (2, false), (3, true)]);
    let names: BTreeSet<_> = lab.conductor.model.chains().map(|c| c.name().to_owned()).collect();
    assert_eq!(names, BTreeSet::from(["a", "c", "default"].map(str::to_owned)));
    assert_eq!(lab.conductor.planner.current().generation, before + 1, "one plan for all");
    lab.attach(1);
    assert_eq!(lab.finish(10), 0);
}

#[test]
fn another_configuration_is_applied_under_traffic_and_no_flow_loses_its_order() {
    // Services stay wanted, and so do their NFs, while no chain names them.
    let all = |services: &str| {
        let service = |id| format!("[[service]]\nname = \"s{id}\"\nid = {id}\n");
        (1..=3).map(service).collect::<String>() + &default_chain(services)
    };
    let mut lab = Lab::new(10_000, &all("[1, 2, 3]"));
    lab.attach_all(&[1, 2, 3, 2]);
    lab.settle();
    let mut id = 0;
    for services in ["[3, 1]", "[2, 3, 1]", "[1]", "[2, 2]", "[1, 2, 3]"] {
        let seen = lab.verified("good");
        lab.until("packets flow", |lab| lab.verified("good") > seen + 100);
        let next = config(10_000, &all(services));
        id += 1;
        lab.conductor.ask_specs(id, next.specs);
        lab.until("it is in force", |lab| lab.answers.len() as u64 == id);
        lab.answers.last().unwrap().result.as_ref().unwrap();
    }
    let dropped = lab.finish(10_000);
    let lost = lab.verified("lost");
    assert_eq!(lost, dropped);
    assert_eq!(dropped, 0);
    let (a, c) = (lab.nfs[0].nf, lab.nfs[2].nf);
    for middle in [1, 3].map(|at| lab.nfs[at].nf) {
        for pair in [(a, middle), (middle, c)] {
            assert!(lab.conductor.edges.is_open(pair));
        }
    }
    assert_eq!(lab.conductor.edges.len(), 4, "edges of chains that were are gone");
}
