//! Plans against what they should say, and what NFs read against the plan.

use nflib::control::OnDeath;
use proptest::prelude::*;

use super::*;
use crate::model::End;
use crate::plan::delta::PathDelta;

fn chain(id: ChainId, services: &[ServiceId]) -> ChainShape {
    ChainShape {
        id,
        services: services.to_vec(),
        end: End::Egress,
        branches: BTreeMap::new(),
        on_death: OnDeath::Drop,
    }
}

fn wanted<'a>(chains: &'a [ChainShape], instances: &[(ServiceId, &[u16])]) -> Wanted<'a> {
    let instances = instances.iter().map(|(id, nfs)| (*id, nfs.to_vec())).collect();
    Wanted { chains, miss: Miss::Drop, instances }
}

fn change(planner: &mut Planner, wanted: &Wanted<'_>) -> PathDelta {
    let before = Arc::clone(planner.current());
    let plan = planner.prepare(wanted).unwrap();
    let delta = PathDelta::between(&before, &plan);
    planner.commit(plan);
    planner.retire();
    delta
}

/// What an NF reads of every hop is what the plan says.
fn assert_table_says_the_plan(planner: &Planner) {
    let reader = planner.table.reader().unwrap();
    for route in planner.current().current_routes() {
        for hash in (0..500u32).map(|n| n.wrapping_mul(0x9123_4567)) {
            for (hop, service) in (0u8..).zip(&route.hops) {
                assert_eq!(reader.nf_at(route.id, hop, hash), service.instances.pick(hash));
            }
            assert_eq!(reader.nf_at(route.id, route.hops.len() as u8, hash), None);
        }
    }
}

#[test]
fn an_unchanged_chain_keeps_its_route_and_no_flow_of_it_moves() {
    let mut planner = Planner::new().unwrap();
    let chains = [chain(0, &[1, 2]), chain(1, &[3])];
    let all: &[(u16, &[u16])] = &[(1, &[10]), (2, &[20]), (3, &[30])];
    change(&mut planner, &wanted(&chains, all));
    let kept = planner.current().route_of(0).unwrap().id;
    let delta = change(&mut planner, &wanted(&[chain(0, &[1, 2]), chain(1, &[3, 1])], all));
    assert_eq!(planner.current().route_of(0).unwrap().id, kept);
    assert!(!delta.moves(0, 5) && delta.moves(1, 5));
    assert!((delta.moved_share() - 1.0).abs() < 1e-9);
    assert_table_says_the_plan(&planner);
    assert_eq!(planner.written_routes(), 2, "the old route's place is free again");
}

#[test]
fn the_nth_instance_moves_one_nth_of_the_flows() {
    let mut planner = Planner::new().unwrap();
    let chains = [chain(0, &[1])];
    change(&mut planner, &wanted(&chains, &[(1, &[0])]));
    for n in 2..=8u16 {
        let nfs: Vec<_> = (0..n).collect();
        let delta = change(&mut planner, &wanted(&chains, &[(1, &nfs)]));
        let share = delta.moved_share();
        assert!((share - 1.0 / f64::from(n)).abs() < 0.005, "{n}: {share}");
        assert_table_says_the_plan(&planner);
    }
    let before = Arc::clone(planner.current());
    change(&mut planner, &wanted(&chains, &[(1, &[0, 1, 2, 3, 4, 5, 6])]));
    let (old, new) = (before.route_of(0).unwrap(), planner.current().route_of(0).unwrap());
    for hash in (0..5000u32).map(|n| n.wrapping_mul(0x2545_F491)) {
        let was = old.hops[0].instances.pick(hash).unwrap();
        let is = new.hops[0].instances.pick(hash).unwrap();
        assert!(was == is || was == 7, "only the flows of the one that left move");
    }
}

#[test]
fn a_flow_is_told_to_move_only_if_its_instance_changes() {
    let mut planner = Planner::new().unwrap();
    let chains = [chain(0, &[1, 2])];
    change(&mut planner, &wanted(&chains, &[(1, &[0, 1]), (2, &[9])]));
    let old = Arc::clone(planner.current());
    let delta = change(&mut planner, &wanted(&chains, &[(1, &[0, 1, 2]), (2, &[9])]));
    let new = planner.current();
    let mut moved = 0;
    for hash in (0..9000u32).map(|n| n.wrapping_mul(0x9E37_79B9)) {
        let pick = |plan: &Plan| plan.route_of(0).unwrap().hops[0].instances.pick(hash);
        assert_eq!(delta.moves(0, hash), pick(&old) != pick(new));
        assert_eq!(delta.moves_to_service(1, hash), pick(&old) != pick(new));
        moved += u32::from(delta.moves(0, hash));
    }
    assert!((2500..3500).contains(&moved), "{moved} of 9000");
}

#[test]
fn a_chain_that_leads_to_a_changed_one_moves_with_it() {
    let mut planner = Planner::new().unwrap();
    let end = |mut shape: ChainShape, end| {
        shape.end = end;
        shape
    };
    let mut branching = chain(2, &[1]);
    branching.branches.insert(77, 1);
    let chains =
        [end(chain(0, &[1]), End::Chain(1)), chain(1, &[2]), branching.clone(), chain(3, &[1])];
    change(&mut planner, &wanted(&chains, &[(1, &[0]), (2, &[1]), (3, &[2])]));
    let chains = [end(chain(0, &[1]), End::Chain(1)), chain(1, &[3]), branching, chain(3, &[1])];
    let delta = change(&mut planner, &wanted(&chains, &[(1, &[0]), (2, &[1]), (3, &[2])]));
    let moved: Vec<_> = (0..4).map(|id| delta.moves(id, 1)).collect();
    assert_eq!(moved, [true, true, true, false]);
}

#[test]
fn an_abandoned_plan_leaves_no_trace() {
    let mut planner = Planner::new().unwrap();
    change(&mut planner, &wanted(&[chain(0, &[1])], &[(1, &[5, 6])]));
    let (routes, free) = (planner.written_routes(), planner.set_entries.free.clone());
    planner.prepare(&wanted(&[chain(0, &[1, 2])], &[(1, &[5, 6, 7]), (2, &[8])])).unwrap();
    assert!(planner.leads_to(8) && planner.leads_to(5));
    planner.abandon();
    assert_eq!((planner.written_routes(), &planner.set_entries.free), (routes, &free));
    assert!(!planner.leads_to(8));
    assert_table_says_the_plan(&planner);
}

#[test]
fn chains_of_64_services_and_a_thousand_services_with_a_thousand_instances_fit() {
    let mut planner = Planner::new().unwrap();
    let long: Vec<u16> = (1..=64).collect();
    let mut chains = vec![chain(0, &long)];
    chains.extend((1..=1000).map(|id| chain(id, &[id, 1])));
    let thousand: Vec<u16> = (0..1000).collect();
    let mut instances: Vec<(u16, &[u16])> = (2..=1000).map(|id| (id, &thousand[..1])).collect();
    instances.push((1, &thousand));
    change(&mut planner, &wanted(&chains, &instances));
    assert!(planner.current().is_complete());
    let reader = planner.table.reader().unwrap();
    let id = planner.current().route_of(1000).unwrap().id;
    assert!(reader.nf_at(id, 1, 12345).is_some());
}

#[test]
fn a_table_without_room_refuses_and_keeps_what_it_has() {
    let mut planner = Planner::new().unwrap();
    change(&mut planner, &wanted(&[chain(0, &[1])], &[(1, &[0])]));
    let long = vec![1; 254];
    let chains: Vec<_> = (0..5000).map(|id| chain(id, &long)).collect();
    let error = planner.prepare(&wanted(&chains, &[(1, &[0])])).unwrap_err();
    assert_eq!(error, PlanError::Full("more hops"));
    assert_eq!(planner.written_routes(), 1);
    assert_table_says_the_plan(&planner);
}

proptest! {
    #[test]
    fn runs_never_overlap_and_come_back_whole(sizes in proptest::collection::vec((1u32..20, any::<bool>()), 1..60)) {
        let mut runs = Runs::new(300);
        let mut taken: Vec<(u32, u32)> = Vec::new();
        for (count, give) in sizes {
            if give && !taken.is_empty() {
                let (first, count) = taken.remove(count as usize % taken.len());
                runs.give(first, count);
            } else if let Some(first) = runs.take(count) {
                for &(other, len) in &taken {
                    prop_assert!(first + count <= other || other + len <= first);
                }
                taken.push((first, count));
            }
        }
        for (first, count) in taken {
            runs.give(first, count);
        }
        prop_assert_eq!(runs.free, [(0, 300)]);
    }
}
