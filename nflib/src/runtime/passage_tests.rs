//! The evidence of a packet's place, looked at before and after every single access to the memory
//! that others see: each is an instant at which the NF may die.
//!
//! What the NF has is counted apart from it, by what its neighbours see: a packet is its own from the
//! push to an input to the push to an output.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use proptest::prelude::*;

use super::super::outputs::PATIENCE_NS;
use super::*;
use crate::branch::BranchId;
use crate::descriptor::{ActionCode, Delivery, Returned};
use crate::nf::Setup;
use crate::packet::PacketId;
use crate::shm::{
    BufferIndex, Consumer, HeapRing, HopEntry, HugePages, Producer, Region, RegionGeometry,
    Remains, RouteTableWriter, SlotValue, remaining_buffers,
};
use crate::{Burst, Context, Packet};

const REGION: RegionGeometry = RegionGeometry { buffers: 96, stride_bytes: 128, headroom_bytes: 0 };
/// Neighbours with an edge; the route's second hop is one of them or [`FAR`], by the flow.
const NEAR: [u16; 3] = [4, 5, 6];
const FAR: u16 = 7;
/// The NF itself, which has an edge to itself, too.
const OWN: u16 = 1;

/// Numbers that look random (SplitMix64, Steele et al., OOPSLA 2014).
#[derive(Clone)]
struct Dice(Arc<AtomicU64>);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(Arc::new(AtomicU64::new(seed)))
    }

    fn below(&self, n: usize) -> usize {
        let step = 0x9e37_79b9_7f4a_7c15;
        let state = self.0.fetch_add(step, Ordering::Relaxed).wrapping_add(step);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % n as u64) as usize
    }

    fn one_in(&self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// An output as its reader sees it.
struct Tap<T> {
    ring: HeapRing,
    reader: Consumer<T, HeapRing>,
    /// Up to where its pushes have been counted.
    seen_tail: u32,
}

impl<T: SlotValue + Default> Tap<T> {
    fn new(ring: HeapRing) -> Self {
        Self { reader: Consumer::new(ring.clone()), ring, seen_tail: 0 }
    }

    /// What was pushed since the last look.
    fn fresh(&mut self) -> Vec<T> {
        let tail = self.ring.tail().load(Ordering::Acquire);
        let mut values = vec![T::default(); tail.wrapping_sub(self.seen_tail) as usize];
        self.ring.read(self.seen_tail, &mut values);
        self.seen_tail = tail;
        values
    }

    fn take(&mut self, most: usize) -> Vec<T> {
        let mut values = vec![T::default(); most];
        let count = self.reader.pop_burst(&mut values).unwrap();
        values.truncate(count);
        values
    }
}

/// Everybody around the NF, and the one who counts.
struct World {
    inputs: Vec<(HeapRing, Producer<Delivery, HeapRing>)>,
    edges: Vec<Tap<Delivery>>,
    returns: Vec<Tap<Returned>>,
    /// Rings from the NF to itself; these taps only look.
    own: Vec<Tap<Delivery>>,
    held: BTreeSet<BufferIndex>,
    /// What the NF has, by what others saw.
    has: BTreeSet<BufferIndex>,
    free: Vec<BufferIndex>,
    dice: Dice,
    /// How often, in looks, a neighbour does something meanwhile; 0 for never.
    meanwhile: usize,
    looks: usize,
    refused: usize,
    rounds: usize,
}

impl World {
    /// The NF may die now: is the evidence exact?
    fn look(&mut self) {
        self.looks += 1;
        self.count();
        self.compare();
        if self.meanwhile > 0 && self.dice.one_in(self.meanwhile) {
            self.neighbours_act();
            self.compare();
        }
    }

    fn count(&mut self) {
        let edges = self.edges.iter_mut().flat_map(Tap::fresh).map(|packet| packet.buffer);
        let mut gone: Vec<_> = edges.collect();
        for packet in self.returns.iter_mut().flat_map(Tap::fresh) {
            self.refused += usize::from(packet.action == ActionCode::Refused as u8);
            gone.push(packet.buffer);
        }
        for packet in self.own.iter_mut().flat_map(Tap::fresh) {
            self.rounds += 1;
            assert!(self.has.contains(&packet.buffer), "what goes round stays with the NF");
        }
        for buffer in gone {
            assert!(self.has.remove(&buffer), "buffer {buffer} was pushed twice");
        }
    }

    fn compare(&self) {
        let own = || self.own.iter().map(|tap| &tap.ring);
        let inputs = self.inputs.iter().map(|(ring, _)| ring).chain(own());
        let inputs: Vec<_> = inputs.map(|ring| Remains::of(ring.clone())).collect();
        let edges = self.edges.iter().map(|tap| &tap.ring).chain(own());
        let edges: Vec<_> = edges.map(|ring| Remains::of(ring.clone())).collect();
        let returns: Vec<_> =
            self.returns.iter().map(|tap| Remains::of(tap.ring.clone())).collect();
        let held: Vec<_> = self.held.iter().copied().collect();
        let remaining = remaining_buffers(
            &inputs.iter().collect::<Vec<_>>(),
            &edges.iter().collect::<Vec<_>>(),
            &returns.iter().collect::<Vec<_>>(),
            &held,
        );
        let has: Vec<_> = self.has.iter().copied().collect();
        assert_eq!(remaining, Some(has), "at look {}", self.looks);
    }

    /// Neighbours take some packets from the NF and give it some, even ones it has just passed on.
    fn neighbours_act(&mut self) {
        let most = 1 + self.dice.below(8);
        let taken: Vec<_> = if self.dice.one_in(4) {
            let edge = self.dice.below(self.edges.len());
            self.edges[edge].take(most).iter().map(|packet| packet.buffer).collect()
        } else {
            let lane = self.dice.below(self.returns.len());
            self.returns[lane].take(most).iter().map(|packet| packet.buffer).collect()
        };
        self.free.extend(taken);
        let input = self.dice.below(self.inputs.len());
        let count = self.dice.below(9).min(self.free.len());
        let burst: Vec<_> =
            self.free.drain(self.free.len() - count..).map(|b| packet(b, &self.dice)).collect();
        let pushed = self.inputs[input].1.push_burst(&burst).unwrap();
        for (at, packet) in burst.iter().enumerate() {
            if at < pushed {
                assert!(self.has.insert(packet.buffer));
            } else {
                self.free.push(packet.buffer);
            }
        }
    }

    fn drain_outputs(&mut self) {
        self.count();
        let edges = self.edges.iter_mut().flat_map(|tap| tap.take(64)).map(|p| p.buffer);
        self.free.extend(edges);
        let returns = self.returns.iter_mut().flat_map(|tap| tap.take(64)).map(|p| p.buffer);
        self.free.extend(returns);
    }
}

fn packet(buffer: BufferIndex, dice: &Dice) -> Delivery {
    let flow_hash = dice.below(1 << 20) as u32;
    // Route 1 has no second hop, route 2 one NF there.
    let route = [0, 0, 0, 0, 1, 2, 2, 2][dice.below(8)];
    Delivery { buffer, len_bytes: 60, flow_hash, route, ..Delivery::default() }
}

/// A ring that is looked at around each access.
#[derive(Clone)]
struct Watched {
    ring: HeapRing,
    world: Rc<RefCell<World>>,
}

impl Watched {
    fn look(&self) -> &HeapRing {
        self.world.borrow_mut().look();
        &self.ring
    }
}

impl RingMemory for Watched {
    fn tail(&self) -> &AtomicU32 {
        self.look().tail()
    }
    fn head(&self) -> &AtomicU32 {
        self.look().head()
    }
    fn settled(&self) -> &AtomicU32 {
        self.look().settled()
    }
    fn taken(&self) -> &AtomicU32 {
        self.look().taken()
    }
    fn capacity(&self) -> u32 {
        self.ring.capacity()
    }
    fn write<T: SlotValue>(&self, at: u32, values: &[T]) {
        self.look().write(at, values);
        self.look();
    }
    fn read<T: SlotValue>(&self, at: u32, out: &mut [T]) {
        self.look().read(at, out);
    }
}

/// A hold map that is looked at around each access.
struct WatchedHolds(Rc<RefCell<World>>);

impl HoldMap for WatchedHolds {
    fn set_held(&self, buffer: BufferIndex, held: bool) {
        let mut world = self.0.borrow_mut();
        world.look();
        let changed = match held {
            true => world.held.insert(buffer),
            false => world.held.remove(&buffer),
        };
        assert!(changed, "no bit is set or cleared twice");
        world.look();
    }
    fn is_held(&self, buffer: BufferIndex) -> bool {
        self.0.borrow().held.contains(&buffer)
    }
}

/// Decides as the dice fall, and lets held packets go in bursts and ticks.
struct Fickle {
    dice: Dice,
    held: Vec<PacketId>,
}

impl Fickle {
    fn action(&self) -> Action {
        match self.dice.below(12) {
            0 => Action::Drop,
            1 => Action::Out(3),
            2 => Action::ToService(9),
            3 => Action::Branch(BranchId(1)),
            4 | 5 => Action::ToService(1),
            6 => Action::ToService(2),
            _ => Action::Next,
        }
    }

    fn release_one(&mut self, ctx: &mut Context<'_>) {
        if !self.held.is_empty() {
            let id = self.held.swap_remove(self.dice.below(self.held.len()));
            // At the end of a run it may have been dropped already.
            let _ = ctx.release(id, self.action());
        }
    }
}

impl NetworkFunction for Fickle {
    fn process(&mut self, packet: &mut Packet<'_>, ctx: &mut Context<'_>) -> Action {
        if self.dice.one_in(3) {
            self.release_one(ctx);
        }
        if self.dice.one_in(3) && ctx.hold_room() > 0 {
            self.held.push(packet.id());
            return Action::Hold;
        }
        self.action()
    }

    fn process_burst(&mut self, burst: &mut Burst<'_>, ctx: &mut Context<'_>) {
        if self.dice.one_in(2) {
            burst.decide_all(self.action(), ctx);
        } else {
            burst.decide_each(ctx, |packet, ctx| self.process(packet, ctx));
        }
    }

    fn tick_interval(&self) -> Option<std::time::Duration> {
        Some(std::time::Duration::from_micros(300))
    }

    fn tick(&mut self, ctx: &mut Context<'_>) {
        for _ in 0..self.dice.below(5) {
            self.release_one(ctx);
        }
    }
}

/// The parts of a run that differ from case to case.
#[derive(Clone, Debug)]
struct Case {
    seed: u64,
    capacity: u32,
    meanwhile: usize,
    hold_limit_pkts: usize,
    turns: usize,
}

fn cases() -> impl Strategy<Value = Case> {
    (any::<u64>(), 0u32..5, 0usize..12, 0usize..24, 5usize..60).prop_map(
        |(seed, log2, meanwhile, hold_limit_pkts, turns)| Case {
            seed,
            capacity: 1 << log2,
            meanwhile,
            hold_limit_pkts,
            turns,
        },
    )
}

fn world(case: &Case, dice: &Dice) -> Rc<RefCell<World>> {
    let ring = || HeapRing::new(case.capacity, 0);
    let input = || {
        let ring = ring();
        (ring.clone(), Producer::new(ring))
    };
    Rc::new(RefCell::new(World {
        inputs: (0..3).map(|_| input()).collect(),
        edges: NEAR.iter().map(|_| Tap::new(ring())).collect(),
        returns: (0..2).map(|_| Tap::new(ring())).collect(),
        own: vec![Tap::new(ring())],
        held: BTreeSet::new(),
        has: BTreeSet::new(),
        free: (0..REGION.buffers).collect(),
        dice: dice.clone(),
        meanwhile: case.meanwhile,
        looks: 0,
        refused: 0,
        rounds: 0,
    }))
}

fn routes() -> RouteTableWriter {
    let routes = RouteTableWriter::create().unwrap();
    routes.write_set(0, &[NEAR[0], NEAR[1], NEAR[2], FAR]);
    let hops = [(1, HopEntry::Nf(OWN)), (2, HopEntry::Set { first: 0, log2: 2 })];
    routes.write_route(0, 0, &hops);
    routes.write_route(2, 2, &[(1, HopEntry::Nf(OWN)), (2, HopEntry::Nf(NEAR[0]))]);
    routes
}

type Watching<'n> = Passage<&'n mut Fickle, Watched, WatchedHolds>;

fn passage<'n>(nf: &'n mut Fickle, case: &Case, world: &Rc<RefCell<World>>) -> Watching<'n> {
    let watched = |ring: &HeapRing| Watched { ring: ring.clone(), world: Rc::clone(world) };
    let now = world.borrow();
    let inputs: Vec<_> = now.inputs.iter().map(|(ring, _)| watched(ring)).collect();
    let edges: Vec<_> = now.edges.iter().map(|tap| watched(&tap.ring)).collect();
    let returns: Vec<_> = now.returns.iter().map(|tap| watched(&tap.ring)).collect();
    let own = watched(&now.own[0].ring);
    drop(now);
    let region = Arc::new(Region::create(REGION, HugePages::Off).unwrap());
    let hold_limit_pkts = case.hold_limit_pkts;
    let jump_services = vec![];
    let setup = Setup {
        service: 1,
        instance: 1,
        region: REGION,
        hold_limit_pkts,
        jump_services,
        read_only: false,
        state: None,
    };
    let engine = Engine::new(nf, region, setup, 1, 0).unwrap();
    let mut all = Inputs::new(inputs[..2].iter().cloned().map(Consumer::new));
    all.open_edge(40, Consumer::new(inputs[2].clone()), None);
    all.open_edge(OWN, Consumer::new(own.clone()), None);
    let routes = crate::shm::RouteTable::from_fd(&routes().read_only_fd().unwrap()).unwrap();
    let lanes = returns.into_iter().map(Producer::new);
    let mut outputs = Outputs::new(lanes, REGION.buffers / 2, 1, routes);
    for (nf, edge) in NEAR.into_iter().zip(edges) {
        outputs.open_edge(nf, Producer::new(edge), None);
    }
    outputs.open_edge(OWN, Producer::new(own), None);
    Passage::new(engine, all, outputs, WatchedHolds(Rc::clone(world)))
}

/// Closes an edge, or puts a new one in its place.
fn change_edge(
    passage: &mut Watching<'_>,
    case: &Case,
    world: &Rc<RefCell<World>>,
    nf: u16,
    closes: bool,
) {
    let own = nf == OWN;
    if closes {
        passage.outputs.close_edge(nf);
        if own {
            passage.inputs.close_edge(nf);
        }
        return;
    }
    let ring = HeapRing::new(case.capacity, 0);
    let tap = Tap::new(ring.clone());
    match own {
        true => world.borrow_mut().own.push(tap),
        false => world.borrow_mut().edges.push(tap),
    }
    let ring = Watched { ring, world: Rc::clone(world) };
    passage.outputs.open_edge(nf, Producer::new(ring.clone()), None);
    if own {
        passage.inputs.close_edge(nf);
        passage.inputs.open_edge(nf, Consumer::new(ring), None);
    }
}

/// Runs a case to its end, with a look at every instant; returns looks, refusals and rounds of the loop.
fn run(case: &Case) -> (usize, usize, usize) {
    let dice = Dice::new(case.seed);
    let world = world(case, &dice);
    let mut nf = Fickle { dice: dice.clone(), held: Vec::new() };
    let mut passage = passage(&mut nf, case, &world);
    let mut now_ns = 0;
    for _ in 0..case.turns {
        for _ in 0..=dice.below(3) {
            world.borrow_mut().neighbours_act();
        }
        // Sometimes longer than the patience with a full edge.
        now_ns += [1_000, PATIENCE_NS / 20, PATIENCE_NS + 1][dice.below(3)];
        passage.turn(now_ns).unwrap();
        if dice.one_in(10) {
            let nf = [NEAR[0], NEAR[1], NEAR[2], OWN][dice.below(4)];
            let closes = dice.one_in(2);
            change_edge(&mut passage, case, &world, nf, closes);
        }
        world.borrow_mut().look();
    }
    // The end: what is still held is dropped, and everything comes out.
    world.borrow_mut().meanwhile = 0;
    passage.engine.drop_held();
    passage.pass_on(None, now_ns).unwrap();
    while passage.outputs.have_leftovers() || !passage.inputs.are_empty() {
        world.borrow_mut().drain_outputs();
        // A full ring to itself stops an NF until its patience is over.
        now_ns += PATIENCE_NS + 1;
        passage.turn(now_ns).unwrap();
        passage.engine.drop_held();
        passage.pass_on(None, now_ns).unwrap();
    }
    let mut world = world.borrow_mut();
    world.look();
    world.drain_outputs();
    assert!(world.has.is_empty() && world.held.is_empty());
    assert_eq!(world.free.len(), REGION.buffers as usize, "no packet is lost");
    (world.looks, world.refused, world.rounds)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn at_every_instant_the_rule_names_exactly_the_packets_the_nf_has(case in cases()) {
        run(&case);
    }
}

#[test]
fn the_cases_reach_holds_leftovers_refusals_and_loops() {
    let case = Case { seed: 1, capacity: 4, meanwhile: 40, hold_limit_pkts: 20, turns: 800 };
    let (looks, refused, rounds) = run(&case);
    assert!(
        looks > 5_000 && refused > 20 && rounds > 100,
        "{looks} looks, {refused} refusals, {rounds} rounds"
    );
}

#[test]
fn a_burst_is_no_longer_than_it_may_be_and_shorter_when_packets_are_dear() {
    let case = Case { seed: 1, capacity: 128, meanwhile: 0, hold_limit_pkts: 0, turns: 0 };
    let dice = Dice::new(case.seed);
    let world = world(&case, &dice);
    let mut nf = Fickle { dice: dice.clone(), held: Vec::new() };
    let mut passage = passage(&mut nf, &case, &world);
    {
        let mut world = world.borrow_mut();
        let burst: Vec<_> = world.free.drain(..).map(|buffer| packet(buffer, &dice)).collect();
        world.has.extend(burst.iter().map(|packet| packet.buffer));
        assert_eq!(world.inputs[0].1.push_burst(&burst), Ok(96));
    }
    let dear_ns = MAX_BURST_NS / 8;
    passage.limit_burst(40);
    assert_eq!(passage.serve(0, 0), Ok(40));
    passage.adapt_burst(dear_ns);
    assert_eq!(passage.serve(0, 0), Ok(8));
    passage.adapt_burst(1);
    assert_eq!(passage.serve(0, 0), Ok(40));
    passage.limit_burst(usize::MAX);
    assert_eq!(passage.serve(0, 0), Ok(8), "the rest");
}
