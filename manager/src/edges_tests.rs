//! Edges against real rings, with NFs that stop at any step.

use std::collections::HashSet;

use nflib::control::OnDeath;
use nflib::shm::channel::ChannelGeometry;
use nflib::shm::{Consumer, Producer};
use proptest::prelude::*;

use super::*;
use crate::model::End;
use crate::plan::builder::{Planner, Wanted};
use crate::plan::{ChainShape, Miss};

const GEOMETRY: ChannelGeometry = ChannelGeometry { workers: 1, ring_capacity: 16, buffers: 64 };

fn plan(chains: &[&[u16]], instances: &[(u16, Vec<NfNumber>)]) -> std::sync::Arc<Plan> {
    let chains: Vec<_> = (0..)
        .zip(chains)
        .map(|(id, services)| ChainShape {
            id,
            services: services.to_vec(),
            end: End::Egress,
            branches: BTreeMap::new(),
            on_death: OnDeath::Drop,
        })
        .collect();
    let instances = instances.iter().cloned().collect();
    let wanted = Wanted { chains: &chains, miss: Miss::Drop, instances };
    Planner::new().unwrap().prepare(&wanted).unwrap()
}

fn delivery(buffer: u32) -> Delivery {
    Delivery { buffer, ..Delivery::default() }
}

#[test]
fn neighbours_of_a_route_want_an_edge_unless_one_is_isolated_or_they_are_the_same() {
    let instances = [(1, vec![10]), (2, vec![20, 21]), (3, vec![30]), (4, vec![]), (5, vec![50])];
    let plan = plan(&[&[1, 2, 3], &[3, 4, 5], &[1, 1, 5]], &instances);
    let wanted = wanted_pairs(&plan, |nf| nf != 21, &[]);
    let expected = [(10, 20), (20, 30), (10, 50)];
    assert_eq!(wanted, BTreeSet::from(expected));
}

#[test]
fn a_hop_that_would_need_too_many_edges_passes_the_manager_and_others_do_not() {
    let many: Vec<NfNumber> = (100..170).collect();
    let others: Vec<NfNumber> = (200..270).collect();
    let plan = plan(&[&[1, 2, 3], &[3, 4]], &[(1, many), (2, others), (3, vec![1]), (4, vec![2])]);
    let wanted = wanted_pairs(&plan, |_| true, &[]);
    assert!(wanted.len() <= MAX_EDGES);
    assert_eq!(wanted.len(), 70 + 1, "70 × 70 is more than {MAX_EDGES}");
    assert!(wanted.contains(&(200, 1)) && wanted.contains(&(1, 2)));
}

#[test]
fn a_jump_wants_an_edge_where_a_route_contains_both_services_its_own_too() {
    let instances =
        [(1, vec![10]), (2, vec![20, 21]), (3, vec![30]), (4, vec![40]), (5, vec![50, 51])];
    let plan = plan(&[&[1, 2, 3], &[4], &[5]], &instances);
    let jumper = |nf, service, jumps| Jumper { nf, service, jumps };
    let jumpers = [
        // Backwards; to a service on another chain; to one that nobody knows.
        jumper(30, 3, &[1, 4, 99][..]),
        jumper(20, 2, &[2]),
        jumper(40, 4, &[4, 5]),
        jumper(50, 5, &[4, 5]),
        // Isolated; not in the plan.
        jumper(51, 5, &[5]),
        jumper(60, 5, &[5]),
    ];
    let wanted = wanted_pairs(&plan, |nf| nf != 51, &jumpers);
    let hops = [(10, 20), (10, 21), (20, 30), (21, 30)];
    let jumps = [(30, 10), (20, 20), (20, 21), (40, 40), (50, 50)];
    assert_eq!(wanted, hops.into_iter().chain(jumps).collect());
}

#[test]
fn jumps_that_would_need_too_many_edges_pass_the_manager_and_hops_come_first() {
    let many: Vec<NfNumber> = (100..170).collect();
    let plan = plan(&[&[1], &[1, 2]], &[(1, many), (2, vec![7])]);
    let jumper = |nf| Jumper { nf, service: 1, jumps: &[1] };
    let jumpers: Vec<_> = (100..170).map(jumper).collect();
    let wanted = wanted_pairs(&plan, |_| true, &jumpers);
    assert!(wanted.len() <= MAX_EDGES && wanted.len() > MAX_EDGES - 70);
    assert!((100..170).all(|nf| wanted.contains(&(nf, 7))));
}

#[test]
fn an_edge_from_an_nf_to_itself_is_closed_by_its_two_ends_in_turn() {
    let mut edges = Edges::default();
    edges.open((1, 1), 8).unwrap();
    assert_eq!((edges.of(1), edges.out_of(1).collect::<Vec<_>>()), (vec![(1, 1)], vec![1]));
    let (mut push, mut take) = {
        let ring = &edges.get((1, 1)).unwrap().ring;
        (ring.producer(), ring.consumer())
    };
    assert_eq!(push.push_burst(&[delivery(7)]), Ok(1));
    assert_eq!(edges.close((1, 1), true, true), Tell { from: true, to: false });
    assert_eq!(edges.synced(1), [(1, 1)], "it pushes no more, and is told that nothing comes");
    edges.forget_closed(|_| false);
    assert!(edges.involve(1), "it has not said yet that it is done");
    assert!(edges.synced(1).is_empty());
    edges.forget_closed(|_| false);
    assert!(edges.involve(1), "something is in it yet");
    assert_eq!(take.pop_burst(&mut [Delivery::default(); 4]), Ok(1));
    edges.forget_closed(|_| false);
    assert!(edges.is_empty());
    // It dies with a packet in it, before and after it was told.
    for told in [false, true] {
        let mut push = edges.open((1, 1), 8).unwrap().ring.producer();
        assert_eq!(push.push_burst(&[delivery(7)]), Ok(1));
        if told {
            edges.close((1, 1), true, true);
        }
        let channel = Channel::create(GEOMETRY).unwrap();
        assert_eq!(edges.remains_of(1, &channel), [7]);
        assert_eq!(edges.close((1, 1), false, false), Tell::default());
        edges.forget_closed(|_| false);
        assert!(edges.is_empty());
    }
}

#[test]
fn an_edge_is_closed_by_its_pusher_first_and_forgotten_when_it_is_empty() {
    let mut edges = Edges::default();
    edges.open((1, 2), 8).unwrap();
    edges.open((2, 3), 8).unwrap();
    assert!(edges.is_open((1, 2)) && !edges.is_open((2, 1)));
    assert_eq!(edges.out_of(1).collect::<Vec<_>>(), [2]);
    assert_eq!(edges.surplus(&BTreeSet::from([(2, 3)])), [(1, 2)]);
    let ring =
        EdgeRing::from_fd(edges.get((1, 2)).unwrap().ring.fd().try_clone_to_owned().unwrap(), 8);
    let ring = ring.unwrap();
    let (mut push, mut take) = (ring.producer(), ring.consumer());

    assert_eq!(edges.close((1, 2), true, true), Tell { from: true, to: false });
    assert!(!edges.is_open((1, 2)) && edges.involve(2));
    assert!(edges.surplus(&BTreeSet::new()) == [(2, 3)] && edges.out_of(1).next().is_none());
    assert_eq!(edges.close((1, 2), true, true), Tell::default(), "told once");
    assert!(edges.synced(2).is_empty(), "the taker was not asked yet");
    edges.forget_closed(|_| false);
    // The pusher's last packet, before its word.
    assert_eq!(push.push_burst(&[delivery(7)]), Ok(1));
    assert_eq!(edges.synced(1), [(1, 2)], "now the taker");
    assert!(edges.synced(1).is_empty());
    assert!(edges.synced(2).is_empty());
    edges.forget_closed(|_| false);
    assert_eq!(edges.len(), 2, "something is in it yet");
    assert_eq!(take.pop_burst(&mut [Delivery::default(); 4]), Ok(1));
    edges.forget_closed(|_| false);
    assert_eq!((edges.of(1), edges.of(2)), (vec![], vec![(2, 3)]));
    assert!(!edges.involve(1) && edges.involve(3));
}

#[test]
fn an_end_that_is_gone_need_not_say_anything() {
    let mut edges = Edges::default();
    for (from_there, to_there) in [(false, true), (true, false), (false, false)] {
        edges.open((1, 2), 8).unwrap();
        let tell = edges.close((1, 2), from_there, to_there);
        assert_eq!(tell, Tell { from: from_there, to: to_there });
        edges.forget_closed(|_| false);
        assert_eq!(edges.is_empty(), !from_there && !to_there);
        if from_there {
            assert!(edges.synced(1).is_empty(), "there is nobody to tell");
        }
        edges.synced(2);
        edges.forget_closed(|_| false);
        assert!(edges.is_empty());
    }
    // The pusher dies while it is waited for.
    edges.open((1, 2), 8).unwrap();
    edges.close((1, 2), true, true);
    assert_eq!(edges.close((1, 2), false, true), Tell { from: false, to: true });
    edges.synced(2);
    edges.forget_closed(|_| false);
    assert!(edges.is_empty());
}

#[test]
fn what_is_pushed_to_the_dead_is_found_at_every_look() {
    let mut edges = Edges::default();
    let ring = &edges.open((1, 2), 8).unwrap().ring;
    let mut push = ring.producer();
    let dead = |nf| nf == 2;
    for round in 0..5u32 {
        let packets: Vec<_> = (0..8).map(|n| delivery(round * 8 + n)).collect();
        assert_eq!(push.push_burst(&packets), Ok(8), "its ring is emptied for who still pushes");
        let found = edges.drain_orphans(dead);
        assert_eq!(found, packets.iter().map(|p| (2, p.buffer)).collect::<Vec<_>>());
        assert!(edges.drain_orphans(dead).is_empty());
    }
    assert_eq!(push.push_burst(&[delivery(1)]), Ok(1));
    assert!(edges.drain_orphans(|nf| nf == 1).is_empty(), "the living one's are its own");
}

/// An NF between a worker, a neighbour before it and one behind it, as the library's passage works:
/// read, push or keep, note what is kept, release, settle.
struct SimulatedNf {
    edges: Edges,
    channel: Channel,
    inputs: [Consumer<Delivery>; 3],
    to_edge: Producer<Delivery>,
    to_itself: Producer<Delivery>,
    to_manager: Producer<Returned>,
    /// What the test believes the NF has, by every effect others could see.
    has: HashSet<u32>,
    kept: Vec<u32>,
    steps_left: usize,
}

impl SimulatedNf {
    /// False when the NF is dead.
    fn step(&mut self) -> bool {
        self.steps_left = self.steps_left.saturating_sub(1);
        self.steps_left > 0
    }

    /// One burst; `None` when it died in it. `decide` says of each packet: 0 to the neighbour, 1 to
    /// the manager, 2 kept, 3 to itself.
    fn burst(&mut self, decide: &[u8]) -> Option<()> {
        let mut decide = decide.iter().copied().cycle();
        let mut got = Vec::new();
        for input in &mut self.inputs {
            let mut out = [Delivery::default(); 4];
            if self.steps_left <= 1 {
                return None;
            }
            self.steps_left -= 1;
            let count = input.read_burst(&mut out).unwrap();
            got.extend_from_slice(&out[..count]);
        }
        let mut passed_on: Vec<u32> = Vec::new();
        let unkept: Vec<u32> = self.kept.drain(..).collect();
        for buffer in got.iter().map(|d| d.buffer).chain(unkept.iter().copied()) {
            if !self.step() {
                return None;
            }
            match decide.next() {
                Some(0) if self.to_edge.push_burst(&[delivery(buffer)]) == Ok(1) => {}
                Some(3) if self.to_itself.push_burst(&[delivery(buffer)]) == Ok(1) => {
                    passed_on.push(buffer);
                    continue;
                }
                Some(0 | 1 | 3) => {
                    let back = Returned { buffer, ..Returned::default() };
                    if self.to_manager.push_burst(&[back]) != Ok(1) {
                        self.channel.set_held(buffer, true);
                        self.kept.push(buffer);
                        continue;
                    }
                }
                _ => {
                    self.channel.set_held(buffer, true);
                    self.kept.push(buffer);
                    continue;
                }
            }
            self.has.remove(&buffer);
            passed_on.push(buffer);
        }
        for buffer in passed_on {
            if !self.step() {
                return None;
            }
            self.channel.set_held(buffer, false);
        }
        for input in &mut self.inputs {
            self.steps_left = self.steps_left.checked_sub(1).filter(|left| *left > 0)?;
            input.release();
        }
        self.steps_left = self.steps_left.checked_sub(1).filter(|left| *left > 0)?;
        self.to_edge.settle();
        self.steps_left = self.steps_left.checked_sub(1).filter(|left| *left > 0)?;
        self.to_itself.settle();
        self.steps_left = self.steps_left.checked_sub(1).filter(|left| *left > 0)?;
        self.to_manager.settle();
        Some(())
    }
}

proptest! {
    /// Whenever an NF dies, what it had is found: all of it, and nothing that it had passed on.
    #[test]
    fn the_remains_are_exact_at_every_step(
        steps_left in 1usize..150,
        bursts in proptest::collection::vec(
            (0usize..4, 0usize..4, proptest::collection::vec(0u8..4, 1..5)), 1..12),
    ) {
        let mut edges = Edges::default();
        let channel = Channel::create(GEOMETRY).unwrap();
        let (mut from_worker, mut to_worker) = channel.manager_ends(0).unwrap();
        let (rx, to_manager) = channel.nf_ends(0).unwrap();
        let mut neighbour = edges.open((1, 2), 16).unwrap().ring.producer();
        let in_edge = edges.get((1, 2)).unwrap().ring.consumer();
        let to_edge = edges.open((2, 3), 16).unwrap().ring.producer();
        let mut behind = edges.get((2, 3)).unwrap().ring.consumer();
        let to_itself = edges.open((2, 2), 16).unwrap().ring.producer();
        let from_itself = edges.get((2, 2)).unwrap().ring.consumer();
        let mut nf = SimulatedNf {
            edges, channel, inputs: [rx, in_edge, from_itself],
            to_edge, to_itself, to_manager,
            has: HashSet::new(), kept: Vec::new(), steps_left,
        };
        let mut next = 0u32;
        for (by_worker, by_neighbour, decide) in &bursts {
            for (count, ring) in [(by_worker, &mut from_worker), (by_neighbour, &mut neighbour)] {
                for _ in 0..*count {
                    if next < GEOMETRY.buffers && ring.push_burst(&[delivery(next)]) == Ok(1) {
                        nf.has.insert(next);
                        next += 1;
                    }
                }
            }
            if nf.burst(decide).is_none() {
                break;
            }
            let _ = behind.pop_burst(&mut [Delivery::default(); 8]);
            let _ = to_worker.pop_burst(&mut [Returned::default(); 8]);
        }
        let mut found = nf.edges.remains_of(2, &nf.channel);
        found.sort_unstable();
        found.dedup();
        let mut expected: Vec<_> = nf.has.iter().copied().collect();
        expected.sort_unstable();
        prop_assert_eq!(found, expected);
    }
}
