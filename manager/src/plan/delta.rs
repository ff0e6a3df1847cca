//! What a change of plan moves: the flows whose path is another one afterwards.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::sync::Arc;

use nflib::descriptor::{ChainId, ServiceId};

use super::{Plan, Route};
use crate::model::End;

/// The inverse of the multiplier of [`nflib::shm::bucket_of`], modulo 2³².
const INVERSE_OF_MIXER: u32 = 0x0E8B_2F51;
/// Most places of the hash space looked at to tell the moved share.
const MAX_SAMPLES: usize = 1 << 20;

/// The difference of two plans, as seen by a flow.
#[derive(Clone, Debug, Default)]
pub struct PathDelta {
    /// By chain: every changed version among the chains a packet of it can reach, old and new.
    chains: Vec<Option<Box<[Versions]>>>,
    /// Services whose instances changed, for packets that an NF sends to a service.
    services: Vec<(ServiceId, Arc<super::PlannedService>, Arc<super::PlannedService>)>,
    needs_hash: bool,
}

type Versions = (Option<Arc<Route>>, Option<Arc<Route>>);

impl PathDelta {
    /// What changes from `old` to `new`.
    #[must_use]
    pub fn between(old: &Plan, new: &Plan) -> Self {
        let count = old.chains.len().max(new.chains.len());
        let changed: Vec<bool> = (0..count)
            .map(|chain| {
                let id = |plan: &Plan| plan.chains.get(chain).copied().flatten();
                id(old) != id(new)
            })
            .collect();
        let services = changed_services(old, new);
        let needs_hash = old.needs_hash || new.needs_hash;
        if !changed.contains(&true) {
            return Self { chains: Vec::new(), services, needs_hash };
        }
        let chains = (0..count)
            .map(|chain| {
                let versions: Box<[Versions]> = reachable(chain as ChainId, old, new)
                    .into_iter()
                    .filter(|&c| changed.get(usize::from(c)).copied().unwrap_or(false))
                    .map(|c| (old.route_of(c).cloned(), new.route_of(c).cloned()))
                    .collect();
                (!versions.is_empty()).then_some(versions)
            })
            .collect();
        Self { chains, services, needs_hash }
    }

    /// Whether a flow's hash is needed to tell if it moves: some service has several instances, or
    /// had.
    #[must_use]
    pub fn needs_hash(&self) -> bool {
        self.needs_hash
    }

    /// True when no flow moves.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chains.iter().all(Option::is_none) && self.services.is_empty()
    }

    /// Whether a flow that enters `chain` takes another path than before.
    #[must_use]
    #[inline]
    pub fn moves(&self, chain: ChainId, flow_hash: u32) -> bool {
        let Some(Some(versions)) = self.chains.get(usize::from(chain)) else { return false };
        versions.iter().any(|(old, new)| match (old, new) {
            (Some(old), Some(new)) => !old.same_path(new, flow_hash),
            _ => true,
        })
    }

    /// Whether a flow that an NF sends to `service` meets another instance than before.
    #[must_use]
    pub fn moves_to_service(&self, service: ServiceId, flow_hash: u32) -> bool {
        self.services.iter().any(|(id, old, new)| {
            *id == service && old.instances.pick(flow_hash) != new.instances.pick(flow_hash)
        })
    }

    /// Share of the hash space that moves, in the chain where it is largest.
    #[must_use]
    pub fn moved_share(&self) -> f64 {
        let changed: Vec<_> =
            (0..).zip(&self.chains).filter(|(_, c)| c.is_some()).map(|(id, _)| id).collect();
        let routes = || self.chains.iter().flatten().flat_map(|versions| versions.iter());
        let log2 = routes()
            .flat_map(|(old, new)| [old, new])
            .flatten()
            .flat_map(|route| route.hops.iter().map(|hop| hop.instances.log2()))
            .max()
            .unwrap_or(0);
        let places = (1usize << log2).min((MAX_SAMPLES / changed.len().max(1)).max(64));
        let share = |chain: ChainId| {
            let moved = (0..places).filter(|place| {
                let upper = (*place as u64 * (1 << 32) / places as u64) as u32;
                self.moves(chain, upper.wrapping_mul(INVERSE_OF_MIXER))
            });
            moved.count() as f64 / places as f64
        };
        changed.into_iter().map(share).fold(0.0, f64::max)
    }
}

fn changed_services(
    old: &Plan,
    new: &Plan,
) -> Vec<(ServiceId, Arc<super::PlannedService>, Arc<super::PlannedService>)> {
    new.services()
        .filter_map(|service| Some((old.service(service.id)?, service)))
        .filter(|(before, after)| before.instances != after.instances)
        .map(|(before, after)| (after.id, Arc::clone(before), Arc::clone(after)))
        .collect()
}

/// The chains that a packet of `chain` may travel, in either plan: itself, the chain at its end, and
/// those its branches lead to, and theirs.
fn reachable(chain: ChainId, old: &Plan, new: &Plan) -> BTreeSet<ChainId> {
    let mut seen = BTreeSet::new();
    let mut open = vec![chain];
    while let Some(next) = open.pop() {
        if !seen.insert(next) {
            continue;
        }
        for route in [old.route_of(next), new.route_of(next)].into_iter().flatten() {
            open.extend(route.branches.iter().map(|(_, to)| *to));
            if let End::Chain(to) = route.end {
                open.push(to);
            }
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inverse_undoes_the_mixer() {
        for upper in [0, 1, 77, 0x8000_0000, u32::MAX] {
            assert_eq!(upper.wrapping_mul(INVERSE_OF_MIXER).wrapping_mul(0x9E37_79B1), upper);
        }
    }
}
