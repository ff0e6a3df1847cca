//! NFs joined by direct edges.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;

use super::*;
use crate::shm::{EdgeRing, HopEntry};

const ROUTE: u16 = 7;
/// What every NF of these tests provides.
const SERVICE: u16 = 3;
const OTHER_SERVICE: u16 = 4;
/// More slots than there are buffers: never full.
const WIDE: u32 = 256;
/// Full soon.
const NARROW: u32 = 32;

/// A manager's socket for each of several NFs, and the NFs.
struct Lab {
    world: Arc<World>,
    places: Vec<Place>,
    managers: Vec<FakeManager>,
    nfs: Vec<Running>,
}

/// The NFs of a lab, all of [`SERVICE`], are at hops 0, 1, … of [`ROUTE`].
fn lab(nfs: Vec<Box<dyn NetworkFunction>>) -> Lab {
    let world = World::new();
    let hops: Vec<_> = (0..nfs.len() as u16).map(|nf| (SERVICE, HopEntry::Nf(nf))).collect();
    world.routes.write_route(ROUTE, 0, &hops);
    let mut lab = Lab { world, places: Vec::new(), managers: Vec::new(), nfs: Vec::new() };
    for (number, nf) in (0..).zip(nfs) {
        let place = place(false);
        let listener = listen(&place.args.socket);
        lab.nfs.push(start(nf, &place.args));
        lab.managers.push(accept_into(&listener, &lab.world, number));
        lab.places.push(place);
    }
    lab
}

impl Lab {
    fn open(&self, from: u16, to: u16, slots: u32) -> EdgeRing {
        let edge = EdgeRing::create(slots).unwrap();
        self.open_in(to, from, &edge, slots);
        self.open_out(from, to, &edge, slots);
        edge
    }

    fn open_in(&self, at: u16, from: u16, edge: &EdgeRing, ring_capacity: u32) {
        let message = Reply::InEdge { nf: from, ring_capacity };
        self.managers[usize::from(at)].say(&message, &[edge.fd()]);
        self.managers[usize::from(at)].sync();
    }

    fn open_out(&self, at: u16, to: u16, edge: &EdgeRing, ring_capacity: u32) {
        let message = Reply::OutEdge { nf: to, ring_capacity };
        self.managers[usize::from(at)].say(&message, &[edge.fd()]);
        self.managers[usize::from(at)].sync();
    }

    fn close_out(&self, at: u16, to: u16) {
        self.managers[usize::from(at)].say(&Reply::CloseOutEdge { nf: to }, &[]);
        self.managers[usize::from(at)].sync();
    }

    fn close_in(&self, at: u16, from: u16) {
        self.managers[usize::from(at)].say(&Reply::CloseInEdge { nf: from }, &[]);
        self.managers[usize::from(at)].sync();
    }

    fn end(self) {
        for manager in &self.managers {
            manager.stop();
            manager.bell.ring();
        }
        for (nf, _) in self.nfs {
            nf.join().unwrap().unwrap();
        }
    }
}

static NEXT_TOKEN: AtomicU64 = AtomicU64::new(1);

impl FakeManager {
    /// Waits until all messages so far are acted on.
    fn sync(&self) {
        let token = NEXT_TOKEN.fetch_add(1, Ordering::Relaxed);
        self.say(&Reply::Sync { token }, &[]);
        self.bell.ring();
        let answer = control::recv::<Request>(&self.socket, MAX_REQUEST_BYTES).unwrap().0;
        assert_eq!(answer, Request::Synced { token });
    }

    /// Delivers packets at a hop of [`ROUTE`]; returns how many fitted.
    fn deliver_at(&mut self, hop: u8, buffers: impl Iterator<Item = u32>) -> usize {
        let burst: Vec<_> = buffers.map(|buffer| packet(buffer, hop)).collect();
        let pushed = self.lanes[0].0.push_burst(&burst).unwrap();
        self.bell.ring();
        pushed
    }

    /// What has come back by now, by any lane.
    fn returned(&mut self) -> Vec<Returned> {
        let mut all = Vec::new();
        for (_, returns) in &mut self.lanes {
            let mut burst = [Returned::default(); 64];
            let got = returns.pop_burst(&mut burst).unwrap();
            all.extend_from_slice(&burst[..got]);
        }
        all
    }
}

fn packet(buffer: u32, hop: u8) -> Delivery {
    Delivery {
        buffer,
        offset_bytes: 256,
        len_bytes: 60,
        flow_hash: buffer,
        route: ROUTE,
        port: 1,
        hop,
    }
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::yield_now();
    }
}

/// Adds a byte in front, so that offset and length must travel.
struct Prepend;

impl NetworkFunction for Prepend {
    fn process(&mut self, packet: &mut Packet<'_>, _: &mut Context<'_>) -> Action {
        assert_eq!(packet.route(), ROUTE);
        packet.push_front(1).unwrap()[0] = packet.hop();
        Action::Next
    }
}

#[test]
fn packets_go_from_nf_to_nf_in_order_and_the_manager_is_not_on_the_hop() {
    let mut lab = lab(vec![Box::new(Prepend), Box::new(Prepend), Box::new(Prepend)]);
    let _edges = [lab.open(0, 1, WIDE), lab.open(1, 2, WIDE)];
    let (mut sent, mut seen) = (0u32, Vec::new());
    wait_for("2000 packets go through", || {
        // Buffers are used again once they came back.
        let free = (100 - (sent - seen.len() as u32)).min(2000 - sent);
        sent += lab.managers[0].deliver_at(0, (sent..sent + free).map(|n| n % 100)) as u32;
        seen.extend(lab.managers[2].returned());
        seen.len() == 2000
    });
    for (number, returned) in (0..).zip(&seen) {
        assert_eq!(returned.buffer, number % 100);
        assert_eq!((returned.offset_bytes, returned.len_bytes), (253, 63));
        assert_eq!((returned.action, returned.hop), (ActionCode::Next as u8, 2));
        assert_eq!(returned.flow_hash, returned.buffer);
    }
    let mut front = [0; 3];
    assert!(lab.world.region.read(17, 253, &mut front));
    assert_eq!(front, [2, 1, 0]);
    assert!(lab.managers[0].returned().is_empty() && lab.managers[1].returned().is_empty());
    lab.end();
}

#[test]
fn without_an_edge_and_at_the_end_of_its_route_a_packet_goes_by_the_manager() {
    let mut lab = lab(vec![Box::new(Pass), Box::new(Pass)]);
    assert_eq!(lab.managers[0].deliver_at(0, 0..1), 1);
    let back = lab.managers[0].take(0, 1)[0];
    assert_eq!((back.action, back.hop), (ActionCode::Next as u8, 0));
    let _edge = lab.open(0, 1, WIDE);
    // Hop 1 is the last, hop 255 has none after it, and route 9 was never written.
    assert_eq!(lab.managers[0].deliver_at(1, 1..2), 1);
    assert_eq!(lab.managers[0].deliver_at(255, 2..3), 1);
    let nowhere = Delivery { route: 9, ..packet(3, 0) };
    assert_eq!(lab.managers[0].lanes[0].0.push_burst(&[nowhere]), Ok(1));
    lab.managers[0].bell.ring();
    let back: Vec<_> = lab.managers[0].take(0, 3).iter().map(|r| (r.buffer, r.hop)).collect();
    assert_eq!(back, [(1, 1), (2, 255), (3, 0)]);
    lab.end();
}

#[test]
fn a_packet_that_is_not_sent_on_never_takes_the_edge() {
    use crate::BranchId;
    struct Else;
    impl NetworkFunction for Else {
        fn process(&mut self, packet: &mut Packet<'_>, _: &mut Context<'_>) -> Action {
            match packet.flow_hash() {
                0 => Action::Drop,
                1 => Action::ToService(300),
                2 => Action::Out(4),
                _ => Action::Branch(BranchId(0xabcd)),
            }
        }
    }
    let mut lab = lab(vec![Box::new(Else), Box::new(Pass)]);
    let edge = lab.open(0, 1, WIDE);
    assert_eq!(lab.managers[0].deliver_at(0, 0..4), 4);
    let back: Vec<_> =
        lab.managers[0].take(0, 4).iter().map(|r| (r.action, r.target, r.hop)).collect();
    let expected = [
        (ActionCode::Drop as u8, 0, 0),
        (ActionCode::ToService as u8, 300, 0),
        (ActionCode::Out as u8, 4, 0),
        (ActionCode::Branch as u8, 0xabcd, 0),
    ];
    assert_eq!(back, expected);
    assert_eq!(edge.remains().unsettled::<Delivery>().unwrap(), []);
    lab.end();
}

/// Stands still while `shut` is set.
struct Gate {
    shut: Arc<AtomicBool>,
}

impl NetworkFunction for Gate {
    fn process_burst(&mut self, burst: &mut crate::Burst<'_>, ctx: &mut Context<'_>) {
        while self.shut.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        for at in 0..burst.len() {
            burst.decide(at, Action::Next, ctx);
        }
    }
}

#[test]
fn a_neighbour_that_hangs_gets_patience_then_refusals_and_traffic_again_when_it_moves() {
    let shut = Arc::new(AtomicBool::new(true));
    let mut lab = lab(vec![Box::new(Pass), Box::new(Gate { shut: Arc::clone(&shut) })]);
    let _edge = lab.open(0, 1, NARROW);
    // What the edge has no room for is refused; the neighbour releases nothing.
    let count = NARROW + 96;
    let mut sent = 0;
    let mut refused = Vec::new();
    wait_for("the edge fills and packets for it are refused", || {
        sent += lab.managers[0].deliver_at(0, sent..count) as u32;
        refused.extend(lab.managers[0].returned());
        refused.len() as u32 == count - NARROW
    });
    for returned in &refused {
        assert_eq!(returned.action, ActionCode::Refused as u8);
        assert_eq!((returned.target, returned.hop), (1, 0));
    }
    // The hung NF is no hindrance to what does not go there.
    assert_eq!(lab.managers[0].deliver_at(1, 190..191), 1);
    let other = lab.managers[0].take(0, 1)[0];
    assert_eq!((other.buffer, other.action), (190, ActionCode::Next as u8));

    shut.store(false, Ordering::SeqCst);
    let mut through = BTreeSet::new();
    wait_for("what was in the edge comes through", || {
        through.extend(lab.managers[1].returned().iter().map(|r| r.buffer));
        through.len() + refused.len() == count as usize
    });
    assert!(through.iter().all(|b| refused.iter().all(|r| r.buffer != *b)));
    assert_eq!(lab.managers[0].deliver_at(0, 0..5), 5);
    assert_eq!(
        lab.managers[1].take(0, 5).iter().map(|r| r.buffer).collect::<Vec<_>>(),
        [0, 1, 2, 3, 4]
    );
    assert!(lab.managers[0].returned().is_empty());
    lab.end();
}

#[test]
fn a_neighbour_that_is_slow_but_moves_loses_nothing() {
    struct Slow;
    impl NetworkFunction for Slow {
        fn process(&mut self, _: &mut Packet<'_>, _: &mut Context<'_>) -> Action {
            // The edge holds 32: it is full nearly always, and a burst frees a part of it.
            std::thread::sleep(Duration::from_micros(5));
            Action::Next
        }
    }
    let mut lab = lab(vec![Box::new(Pass), Box::new(Slow)]);
    let _edge = lab.open(0, 1, NARROW);
    let (mut sent, mut seen) = (0u32, Vec::new());
    let mut refused = 0;
    wait_for("1500 packets come through, or back", || {
        let free = (190 - (sent - (seen.len() + refused) as u32)).min(1500 - sent);
        sent += lab.managers[0].deliver_at(0, (sent..sent + free).map(|n| n % 190)) as u32;
        seen.extend(lab.managers[1].returned().iter().map(|r| r.buffer));
        let back = lab.managers[0].returned();
        // A machine that stops one of the two for longer than the patience makes refusals right.
        assert!(back.iter().all(|r| r.action == ActionCode::Refused as u8));
        refused += back.len();
        seen.len() + refused == 1500
    });
    if refused == 0 {
        assert_eq!(seen, (0..1500).map(|n| n % 190).collect::<Vec<_>>());
    }
    lab.end();
}

#[test]
fn edges_come_and_go_under_traffic_and_no_packet_is_lost_or_seen_twice() {
    let mut lab = lab(vec![Box::new(Pass), Box::new(Pass)]);
    let mut free: Vec<u32> = (0..150).collect();
    let mut under_way = BTreeSet::new();
    let mut edge = None;
    let (mut by_edge, mut by_manager) = (0, 0);
    let mut rounds = 0;
    wait_for("1000 packets take either way", || {
        rounds += 1;
        let burst: Vec<_> = free.drain(free.len().saturating_sub(40)..).collect();
        let sent = lab.managers[0].deliver_at(0, burst.iter().copied());
        for &buffer in &burst[..sent] {
            assert!(under_way.insert(buffer));
        }
        free.extend(&burst[sent..]);
        match rounds % 6 {
            0 => {
                if let Some(old) = edge.take() {
                    lab.close_out(0, 1);
                    lab.close_in(1, 0);
                    drop::<EdgeRing>(old);
                }
            }
            3 => edge = Some(lab.open(0, 1, WIDE)),
            // Replaced while in use.
            4 if rounds % 12 == 4 => {
                edge = Some(lab.open(0, 1, WIDE));
                lab.close_in(1, 0);
            }
            _ => {}
        }
        for (number, count) in [(0, &mut by_manager), (1, &mut by_edge)] {
            for returned in lab.managers[number].returned() {
                assert_eq!(returned.action, ActionCode::Next as u8);
                assert!(under_way.remove(&returned.buffer), "{} came back twice", returned.buffer);
                free.push(returned.buffer);
                *count += 1;
            }
        }
        by_edge >= 1000 && by_manager >= 1000 && rounds >= 60
    });
    wait_for("all packets come back", || {
        for number in 0..2 {
            for returned in lab.managers[number].returned() {
                assert!(under_way.remove(&returned.buffer));
            }
        }
        under_way.is_empty()
    });
    lab.end();
}

#[test]
fn what_waits_for_an_edge_that_closes_goes_by_the_manager_in_order() {
    let mut lab = lab(vec![Box::new(Pass)]);
    lab.world.routes.write_route(ROUTE, 0, &two_services());
    // Nobody reads this edge.
    let edge = EdgeRing::create(NARROW).unwrap();
    let all: Vec<u32> = (0..NARROW + 20).collect();
    // Messages and packets are there before the NF looks: the edge is full and never refuses, since
    // the close follows within its patience, or else some are refused and the rest goes on.
    lab.open_out(0, 1, &edge, NARROW);
    assert_eq!(lab.managers[0].deliver_at(0, all.iter().copied()), all.len());
    lab.close_out(0, 1);
    assert!(edge.remains().unsettled::<Delivery>().unwrap().is_empty());
    let (_, waiting) = edge.remains().unreleased::<Delivery>().unwrap();
    let in_edge: Vec<u32> = waiting.iter().map(|d| d.buffer).collect();
    let back = lab.managers[0].take(0, all.len() - in_edge.len());
    let together: Vec<_> = in_edge.into_iter().chain(back.iter().map(|r| r.buffer)).collect();
    assert_eq!(together, all);
    for returned in back {
        let action = ActionCode::from_code(returned.action).unwrap();
        assert!(matches!(action, ActionCode::Next | ActionCode::Refused));
        assert_eq!(returned.hop, 0);
    }
    wait_for("no hold bit stays set", || lab.managers[0].channel.held_buffers().is_empty());
    lab.end();
}

fn two_services() -> [(u16, HopEntry); 2] {
    [(SERVICE, HopEntry::Nf(0)), (OTHER_SERVICE, HopEntry::Nf(1))]
}

/// Sends a packet on to a service as often as its first byte says, then lets it go.
struct Jumper(u16);

impl NetworkFunction for Jumper {
    fn process(&mut self, packet: &mut Packet<'_>, _: &mut Context<'_>) -> Action {
        let rounds = &mut packet.bytes_mut()[0];
        if *rounds == 0 {
            return Action::Next;
        }
        *rounds -= 1;
        Action::ToService(self.0)
    }
}

#[test]
fn a_packet_goes_round_a_self_loop_as_often_as_its_nf_wants() {
    let mut lab = lab(vec![Box::new(Jumper(SERVICE))]);
    let edge = lab.open(0, 0, NARROW);
    let rounds: Vec<u8> = (0..20).map(|n| 10 * n).collect();
    for (buffer, rounds) in (0..).zip(&rounds) {
        assert!(lab.world.region.write(buffer, 256, &[*rounds]));
    }
    assert_eq!(lab.managers[0].deliver_at(0, 0..20), 20);
    let back = lab.managers[0].take(0, 20);
    assert!(back.iter().all(|r| r.hop == 0 && r.action == ActionCode::Next as u8));
    assert!((0..20).all(|buffer| back.iter().filter(|r| r.buffer == buffer).count() == 1));
    let taken = lab.managers[0].channel.nf_counter(NfCounter::RxPkts);
    let expected = 20 + rounds.iter().map(|&n| u64::from(n)).sum::<u64>();
    wait_for("each round was counted", || {
        lab.managers[0].channel.nf_counter(NfCounter::RxPkts) == expected
    });
    assert!(taken <= expected && edge.remains().is_empty());
    lab.end();
}

#[test]
fn a_jump_takes_the_edge_where_the_route_visits_the_service_and_else_the_manager() {
    let mut lab = lab(vec![Box::new(Jumper(OTHER_SERVICE)), Box::new(Pass)]);
    let _edge = lab.open(0, 1, WIDE);
    assert!(lab.world.region.write(0, 256, &[1]));
    assert_eq!(lab.managers[0].deliver_at(0, 0..1), 1);
    let back = lab.managers[0].take(0, 1)[0];
    assert_eq!((back.action, back.target), (ActionCode::ToService as u8, OTHER_SERVICE));
    lab.world.routes.write_route(ROUTE, 0, &two_services());
    assert!(lab.world.region.write(0, 256, &[1]));
    assert_eq!(lab.managers[0].deliver_at(0, 0..1), 1);
    let back = lab.managers[1].take(0, 1)[0];
    assert_eq!((back.buffer, back.hop, back.action), (0, 1, ActionCode::Next as u8));
    lab.end();
}

#[test]
fn a_jump_that_waits_for_an_edge_that_closes_goes_by_the_manager_as_a_jump() {
    let mut lab = lab(vec![Box::new(Jumper(OTHER_SERVICE))]);
    // Not the next hop, which is what a plain `Next` would name.
    let hops = [(SERVICE, 0), (5, 2), (OTHER_SERVICE, 1)].map(|(s, nf)| (s, HopEntry::Nf(nf)));
    lab.world.routes.write_route(ROUTE, 0, &hops);
    let edge = EdgeRing::create(NARROW).unwrap();
    let all: Vec<u32> = (0..NARROW + 20).collect();
    for &buffer in &all {
        assert!(lab.world.region.write(buffer, 256, &[1]));
    }
    lab.open_out(0, 1, &edge, NARROW);
    assert_eq!(lab.managers[0].deliver_at(0, all.iter().copied()), all.len());
    lab.close_out(0, 1);
    let (_, waiting) = edge.remains().unreleased::<Delivery>().unwrap();
    assert!(waiting.iter().all(|packet| packet.hop == 2));
    for returned in lab.managers[0].take(0, all.len() - waiting.len()) {
        let jump = (ActionCode::ToService as u8, OTHER_SERVICE);
        let refused = (ActionCode::Refused as u8, 1);
        assert!([jump, refused].contains(&(returned.action, returned.target)));
        assert_eq!(returned.hop, 0);
    }
    lab.end();
}

#[test]
fn an_edge_opened_and_closed_before_the_nf_looks_is_never_used() {
    let mut lab = lab(vec![Box::new(Pass), Box::new(Pass)]);
    for round in 0..20 {
        let edge = EdgeRing::create(NARROW).unwrap();
        let manager = &mut lab.managers[0];
        // One write, so that the NF cannot look in between.
        let mut both = control::encode(&Reply::OutEdge { nf: 1, ring_capacity: NARROW }).unwrap();
        both.extend(control::encode(&Reply::CloseOutEdge { nf: 1 }).unwrap());
        let sent = crate::shm::send_with_fds(&manager.socket, &both, &[edge.fd()]).unwrap();
        assert_eq!(sent, both.len());
        assert_eq!(manager.deliver_at(0, round..round + 1), 1);
        assert_eq!(manager.take(0, 1)[0].action, ActionCode::Next as u8);
        let remains = edge.remains();
        assert_eq!(remains.unreleased::<Delivery>().unwrap(), (vec![], vec![]));
    }
    lab.end();
}

#[test]
fn a_sleeping_nf_answers_a_sync_when_rung_and_a_busy_one_too() {
    let mut lab = lab(vec![Box::new(Pass)]);
    wait_for("the NF falls asleep", || lab.managers[0].bell.sleeps());
    let began = Instant::now();
    for _ in 0..50 {
        lab.managers[0].sync();
    }
    // Without the bell each would take up to the longest sleep, 50 ms.
    let took = began.elapsed();
    assert!(took < Duration::from_millis(50 * 25), "{took:?} for 50 syncs");
    assert_eq!(lab.managers[0].deliver_at(0, 0..40), 40);
    lab.managers[0].sync();
    assert_eq!(lab.managers[0].take(0, 40).len(), 40);
    lab.end();
}

#[test]
fn an_edge_without_its_ring_ends_the_nf_with_one_clear_line() {
    type Fault = (&'static str, fn(&FakeManager));
    let faults: [Fault; 4] = [
        ("did not come along", |manager| {
            manager.say(&Reply::OutEdge { nf: 1, ring_capacity: 32 }, &[]);
        }),
        ("no NF", |manager| {
            let edge = EdgeRing::create(32).unwrap();
            manager.say(&Reply::InEdge { nf: u16::MAX, ring_capacity: 32 }, &[edge.fd()]);
        }),
        ("64 slots", |manager| {
            let edge = EdgeRing::create(512).unwrap();
            manager.say(&Reply::InEdge { nf: 1, ring_capacity: 64 }, &[edge.fd()]);
        }),
        ("4294967295 slots", |manager| {
            let edge = EdgeRing::create(32).unwrap();
            manager.say(&Reply::OutEdge { nf: 1, ring_capacity: u32::MAX }, &[edge.fd()]);
        }),
    ];
    for (complaint, fault) in faults {
        let mut lab = lab(vec![Box::new(Pass)]);
        fault(&lab.managers[0]);
        let (nf, _) = lab.nfs.remove(0);
        let line = nf.join().unwrap().unwrap_err().to_string();
        assert!(line.contains(complaint) && line.lines().count() == 1, "{line}");
    }
}

#[test]
fn a_neighbour_that_breaks_its_ring_costs_nothing_but_the_edge() {
    let mut lab = lab(vec![Box::new(Pass), Box::new(Pass)]);
    let (from_it, to_it) = (EdgeRing::create(NARROW).unwrap(), EdgeRing::create(NARROW).unwrap());
    lab.open_out(0, 1, &to_it, NARROW);
    lab.open_in(0, 1, &from_it, NARROW);
    // The consumer releases what was never pushed, the producer pushes more than there is room for.
    scribble(&to_it, 128, 99);
    scribble(&from_it, 0, 99);
    lab.managers[0].sync();
    let mut back = Vec::new();
    for first in [0, 50, 100] {
        assert_eq!(lab.managers[0].deliver_at(0, first..first + 50), 50);
        back.extend(lab.managers[0].take(0, 50 - usize::from(first == 0) * NARROW as usize));
    }
    assert!(back.iter().all(|returned| returned.action == ActionCode::Next as u8));
    lab.end();
}

/// Writes an index word of a ring, as a peer could.
fn scribble(edge: &EdgeRing, offset_bytes: i64, value: u32) {
    let file = std::fs::File::from(edge.fd().try_clone_to_owned().unwrap());
    let bytes = value.to_le_bytes();
    std::os::unix::fs::FileExt::write_at(&file, &bytes, offset_bytes as u64).unwrap();
}
