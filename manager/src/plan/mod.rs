//! The plan: which services a packet meets, by which instances, and where it leaves.
//!
//! A *chain* is what people write: services in order. A *route* is one version of a chain, resolved
//! to instances; packets carry its number. Plans and routes never change once they are made. A change
//! makes a new plan, whose routes stand beside the old ones until the last packet of those has come
//! out; so every packet follows one version from end to end.
#![forbid(unsafe_code)]

pub mod buckets;
pub mod builder;
pub mod delta;

use std::collections::BTreeMap;
use std::sync::Arc;

use nflib::control::OnDeath;
use nflib::descriptor::{ChainId, RouteId, ServiceId};
use nflib::shm::bucket_of;

use crate::model::{Chain, End};
use buckets::Buckets;

/// The number of an attached NF in route table, doorbells and workers.
pub type NfNumber = u16;

/// A chain as the plan needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainShape {
    /// Its number.
    pub id: ChainId,
    /// Its services in order.
    pub services: Vec<ServiceId>,
    /// Its end.
    pub end: End,
    /// Chains that an NF may send a packet to, by branch id.
    pub branches: BTreeMap<u16, ChainId>,
    /// What becomes of packets at a service without instances.
    pub on_death: OnDeath,
}

impl ChainShape {
    /// The shape of a chain.
    #[must_use]
    pub fn of(chain: &Chain) -> Self {
        Self {
            id: chain.id,
            services: chain.services.clone(),
            end: chain.end,
            branches: chain.branches.clone(),
            on_death: chain.spec.on_death,
        }
    }
}

/// What becomes of packets that no rule sends anywhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Miss {
    /// Straight to the egress port: a configuration without chains and rules is a wire.
    #[default]
    Egress,
    /// Through the default chain.
    Chain(ChainId),
    /// Dropped as `no_rule`.
    Drop,
}

/// The instances of a service that get flows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Instances {
    /// None: their chain's policy says what becomes of packets for the service.
    None,
    /// One.
    One(NfNumber),
    /// Several, by bucket.
    Many(Arc<Buckets>),
}

impl Instances {
    /// The instance for a flow.
    #[must_use]
    #[inline]
    pub fn pick(&self, flow_hash: u32) -> Option<NfNumber> {
        match self {
            Self::None => None,
            Self::One(nf) => Some(*nf),
            Self::Many(buckets) => {
                let bucket = bucket_of(flow_hash, buckets.log2());
                buckets.owners().get(bucket as usize).copied()
            }
        }
    }

    /// Whether this NF is one of them.
    #[must_use]
    pub fn has(&self, nf: NfNumber) -> bool {
        match self {
            Self::None => false,
            Self::One(one) => *one == nf,
            Self::Many(buckets) => buckets.owners().contains(&nf),
        }
    }

    /// Binary logarithm of how finely flows are told apart.
    #[must_use]
    pub fn log2(&self) -> u32 {
        match self {
            Self::None | Self::One(_) => 0,
            Self::Many(buckets) => buckets.log2(),
        }
    }
}

/// A service as the plan has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedService {
    /// Its id.
    pub id: ServiceId,
    /// Its place in the workers' counters.
    pub slot: u16,
    /// Who provides it.
    pub instances: Instances,
}

/// One version of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its number; descriptors carry it.
    pub id: RouteId,
    /// The chain it is a version of.
    pub chain: ChainId,
    /// The services in order.
    pub hops: Box<[Arc<PlannedService>]>,
    /// The end.
    pub end: End,
    /// Chains by branch id, sorted.
    pub branches: Box<[(u16, ChainId)]>,
    /// What becomes of packets at a service without instances.
    pub on_death: OnDeath,
}

impl Route {
    /// The chain that a branch leads to.
    #[must_use]
    pub fn branch(&self, id: u16) -> Option<ChainId> {
        let at = self.branches.binary_search_by_key(&id, |(branch, _)| *branch).ok()?;
        Some(self.branches[at].1)
    }

    /// Whether a flow meets the same instances in the same order, and the same end, on both.
    #[must_use]
    pub fn same_path(&self, other: &Self, flow_hash: u32) -> bool {
        let pick = |hop: &Arc<PlannedService>| (hop.id, hop.instances.pick(flow_hash));
        self.id == other.id
            || (self.end == other.end
                && self.hops.len() == other.hops.len()
                && self.hops.iter().map(pick).eq(other.hops.iter().map(pick)))
    }
}

/// A plan.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Counts the changes.
    pub generation: u64,
    /// What to do with packets that no rule takes.
    pub miss: Miss,
    /// Routes by number; also those of older plans that packets may still travel.
    routes: Vec<Option<Arc<Route>>>,
    /// The route of each chain for packets that enter now.
    chains: Vec<Option<RouteId>>,
    /// Services by id, for packets that an NF sends to a service.
    services: BTreeMap<ServiceId, Arc<PlannedService>>,
    /// Some service has several instances: a flow hash is needed.
    pub needs_hash: bool,
}

impl Plan {
    /// The route with a number.
    #[must_use]
    #[inline]
    pub fn route(&self, id: RouteId) -> Option<&Arc<Route>> {
        self.routes.get(usize::from(id))?.as_ref()
    }

    /// The route that packets of a chain enter now.
    #[must_use]
    #[inline]
    pub fn route_of(&self, chain: ChainId) -> Option<&Arc<Route>> {
        self.route((*self.chains.get(usize::from(chain))?)?)
    }

    /// A service.
    #[must_use]
    pub fn service(&self, id: ServiceId) -> Option<&Arc<PlannedService>> {
        self.services.get(&id)
    }

    /// The services, by id.
    pub fn services(&self) -> impl Iterator<Item = &Arc<PlannedService>> {
        self.services.values()
    }

    /// All routes, also those of older plans that packets may still travel.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.routes.iter().flatten()
    }

    /// The routes that packets may enter now.
    pub fn current_routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.chains.iter().flatten().filter_map(|&id| self.route(id))
    }

    /// True when every service that a chain names has an instance.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let present = |hop: &Arc<PlannedService>| hop.instances != Instances::None;
        self.current_routes().all(|route| route.hops.iter().all(present))
    }
}
