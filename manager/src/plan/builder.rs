//! Making plans, and writing their routes where NFs read them.
//!
//! New routes are written to places of the route table that no packet uses; old ones are freed when
//! the workers say that their last packet is out.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nflib::descriptor::{ChainId, RouteId, ServiceId};
use nflib::shm::{HopEntry, MAX_HOPS, MAX_ROUTES, MAX_SET_ENTRIES, NO_NF, RouteTableWriter};
use thiserror::Error;

use super::buckets::Buckets;
use super::{ChainShape, Instances, Miss, NfNumber, Plan, PlannedService, Route};

/// Why a plan cannot be made.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PlanError {
    /// The route table is full.
    #[error("the route table has no room for {0}; use fewer or shorter chains, or fewer instances")]
    Full(&'static str),
}

/// What a plan is to say.
#[derive(Clone, Debug, Default)]
pub struct Wanted<'a> {
    /// Every chain.
    pub chains: &'a [ChainShape],
    /// What becomes of other packets.
    pub miss: Miss,
    /// The instances of each service that get flows.
    pub instances: BTreeMap<ServiceId, Vec<NfNumber>>,
}

/// Makes plans; owns the route table.
#[derive(Debug)]
pub struct Planner {
    table: RouteTableWriter,
    hop_words: Runs,
    set_entries: Runs,
    slots: BTreeMap<ServiceId, u16>,
    /// The last table of each service that had several instances, to move little from.
    buckets: BTreeMap<ServiceId, Buckets>,
    current: Arc<Plan>,
    /// Routes in the table, by number: current, about to be, or still travelled.
    routes: Vec<Option<Written>>,
    /// Sets in the table.
    sets: Vec<(Arc<PlannedService>, u32)>,
    /// Counts the changes of any of this.
    revision: u64,
}

#[derive(Clone, Debug)]
struct Written {
    route: Arc<Route>,
    first_hop: u32,
    /// When, nanoseconds of CLOCK_MONOTONIC.
    written_ns: u64,
}

impl Planner {
    /// A planner with an empty plan.
    ///
    /// # Errors
    /// As [`RouteTableWriter::create`].
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            table: RouteTableWriter::create()?,
            hop_words: Runs::new(MAX_HOPS as u32),
            set_entries: Runs::new(MAX_SET_ENTRIES as u32),
            slots: BTreeMap::new(),
            buckets: BTreeMap::new(),
            current: Arc::default(),
            routes: Vec::new(),
            sets: Vec::new(),
            revision: 0,
        })
    }

    /// The table's file, for NFs to read.
    ///
    /// # Errors
    /// As [`RouteTableWriter::read_only_fd`].
    pub fn table_fd(&self) -> io::Result<OwnedFd> {
        self.table.read_only_fd()
    }

    /// The plan in force.
    #[must_use]
    pub fn current(&self) -> &Arc<Plan> {
        &self.current
    }

    /// The place of a service in the workers' counters; the same for ever.
    pub fn slot_of(&mut self, service: ServiceId) -> u16 {
        // At most 65,535 services exist, so the count fits.
        let next = self.slots.len() as u16;
        *self.slots.entry(service).or_insert(next)
    }

    /// Services by their place in the workers' counters.
    #[must_use]
    pub fn services_by_slot(&self) -> Vec<ServiceId> {
        let mut services = vec![0; self.slots.len()];
        for (&service, &slot) in &self.slots {
            services[usize::from(slot)] = service;
        }
        services
    }

    /// Makes the next plan and writes what is new of it to the table. To be followed by
    /// [`commit`](Self::commit) or [`abandon`](Self::abandon).
    ///
    /// # Errors
    /// [`PlanError::Full`]; nothing is kept then.
    pub fn prepare(&mut self, wanted: &Wanted<'_>) -> Result<Arc<Plan>, PlanError> {
        self.revision += 1;
        let result = self.try_prepare(wanted);
        if result.is_err() {
            self.abandon();
        }
        result
    }

    fn try_prepare(&mut self, wanted: &Wanted<'_>) -> Result<Arc<Plan>, PlanError> {
        let mut services = BTreeMap::new();
        let named = wanted.chains.iter().flat_map(|chain| chain.services.iter().copied());
        for id in named.chain(wanted.instances.keys().copied()) {
            if let Entry::Vacant(place) = services.entry(id) {
                place.insert(self.plan_service(id, wanted.instances.get(&id)));
            }
        }
        let needs_hash = services.values().any(|s| matches!(s.instances, Instances::Many(_)));
        let count = wanted.chains.iter().map(|chain| usize::from(chain.id) + 1).max().unwrap_or(0);
        let mut chains = vec![None; count];
        for chain in wanted.chains {
            chains[usize::from(chain.id)] = Some(self.plan_route(chain, &services)?);
        }
        let routes = self.routes.iter().map(|w| w.as_ref().map(|w| Arc::clone(&w.route))).collect();
        let generation = self.current.generation + 1;
        Ok(Arc::new(Plan { generation, miss: wanted.miss, routes, chains, services, needs_hash }))
    }

    /// The service as it will be; the same object as before when nothing about it changes.
    fn plan_service(&mut self, id: ServiceId, nfs: Option<&Vec<NfNumber>>) -> Arc<PlannedService> {
        let slot = self.slot_of(id);
        let nfs = nfs.map(Vec::as_slice).unwrap_or_default();
        let instances = match (nfs, self.buckets.get(&id)) {
            ([], _) => Instances::None,
            (nfs, Some(before)) if nfs.len() > 1 || before.log2() > 0 => {
                let table = before.shared_among(nfs).unwrap_or_else(|| before.clone());
                if let [one] = nfs {
                    Instances::One(*one)
                } else {
                    Instances::Many(Arc::new(table))
                }
            }
            ([one], _) => Instances::One(*one),
            (nfs, None) => {
                Buckets::new(nfs).map_or(Instances::None, |b| Instances::Many(Arc::new(b)))
            }
            (nfs, Some(_)) => Instances::One(nfs[0]),
        };
        match self.current.service(id) {
            Some(before) if before.instances == instances => Arc::clone(before),
            _ => Arc::new(PlannedService { id, slot, instances }),
        }
    }

    /// The route of a chain: today's when it would be the same, else a new one, written.
    fn plan_route(
        &mut self,
        chain: &ChainShape,
        services: &BTreeMap<ServiceId, Arc<PlannedService>>,
    ) -> Result<RouteId, PlanError> {
        let hops: Box<[_]> =
            chain.services.iter().filter_map(|id| services.get(id).cloned()).collect();
        let branches: Box<[_]> = chain.branches.iter().map(|(&id, &to)| (id, to)).collect();
        if let Some(route) = self.current.route_of(chain.id)
            && route.hops == hops
            && route.end == chain.end
            && route.branches == branches
            && route.on_death == chain.on_death
        {
            return Ok(route.id);
        }
        let at = self.free_route()?;
        let id = at as RouteId;
        let entries = hops.iter().map(|hop| Ok((hop.id, self.entry_of(hop)?)));
        let entries = entries.collect::<Result<Vec<_>, PlanError>>()?;
        let first_hop =
            self.hop_words.take(entries.len() as u32).ok_or(PlanError::Full("more hops"))?;
        self.table.write_route(id, first_hop, &entries);
        let on_death = chain.on_death;
        let route = Route { id, chain: chain.id, hops, end: chain.end, branches, on_death };
        let written_ns = crate::status::now_ns();
        self.routes[at] = Some(Written { route: Arc::new(route), first_hop, written_ns });
        Ok(id)
    }

    fn free_route(&mut self) -> Result<usize, PlanError> {
        if let Some(at) = self.routes.iter().position(Option::is_none) {
            return Ok(at);
        }
        if self.routes.len() == MAX_ROUTES {
            return Err(PlanError::Full("more routes"));
        }
        self.routes.push(None);
        Ok(self.routes.len() - 1)
    }

    fn entry_of(&mut self, service: &Arc<PlannedService>) -> Result<HopEntry, PlanError> {
        let buckets = match &service.instances {
            Instances::None => return Ok(HopEntry::Nf(NO_NF)),
            Instances::One(nf) => return Ok(HopEntry::Nf(*nf)),
            Instances::Many(buckets) => buckets,
        };
        let log2 = buckets.log2();
        if let Some((_, first)) = self.sets.iter().find(|(known, _)| Arc::ptr_eq(known, service)) {
            return Ok(HopEntry::Set { first: *first, log2 });
        }
        let first = self.set_entries.take(1 << log2).ok_or(PlanError::Full("more instances"))?;
        self.table.write_set(first, buckets.owners());
        self.sets.push((Arc::clone(service), first));
        Ok(HopEntry::Set { first, log2 })
    }

    /// Makes a prepared plan the current one. The routes it leaves behind stay readable until
    /// [`retire`](Self::retire).
    pub fn commit(&mut self, plan: Arc<Plan>) {
        for service in plan.services() {
            match &service.instances {
                Instances::Many(buckets) => {
                    self.buckets.insert(service.id, Buckets::clone(buckets));
                }
                Instances::One(nf) => {
                    if let Some(alone) =
                        self.buckets.get(&service.id).and_then(|b| b.shared_among(&[*nf]))
                    {
                        self.buckets.insert(service.id, alone);
                    } else if let Some(alone) = Buckets::new(&[*nf]) {
                        self.buckets.insert(service.id, alone);
                    }
                }
                Instances::None => {}
            }
        }
        self.current = plan;
    }

    /// Forgets a prepared plan.
    pub fn abandon(&mut self) {
        self.retire();
    }

    /// Frees what only older plans use. To be called when no packet travels their routes any more.
    pub fn retire(&mut self) {
        self.revision += 1;
        let current = Arc::clone(&self.current);
        for (id, place) in self.routes.iter_mut().enumerate() {
            let id = id as RouteId;
            let Some(written) = place else { continue };
            let in_use = current.route_of(written.route.chain).is_some_and(|route| route.id == id);
            if !in_use {
                self.table.write_route(id, 0, &[]);
                self.hop_words.give(written.first_hop, written.route.hops.len() as u32);
                *place = None;
            }
        }
        let routes = &self.routes;
        let set_entries = &mut self.set_entries;
        self.sets.retain(|(service, first)| {
            let used = routes
                .iter()
                .flatten()
                .any(|w| w.route.hops.iter().any(|h| Arc::ptr_eq(h, service)));
            if !used && let Instances::Many(buckets) = &service.instances {
                set_entries.give(*first, 1 << buckets.log2());
            }
            used
        });
    }

    /// Whether some route, current or still travelled, leads to an NF.
    #[must_use]
    pub fn leads_to(&self, nf: NfNumber) -> bool {
        let leads = |service: &PlannedService| match &service.instances {
            Instances::None => false,
            Instances::One(one) => *one == nf,
            Instances::Many(buckets) => buckets.owners().contains(&nf),
        };
        self.current.services().any(|service| leads(service))
            || self.routes.iter().flatten().any(|w| w.route.hops.iter().any(|hop| leads(hop)))
    }

    /// Routes in the table, for tests and the status.
    #[must_use]
    pub fn written_routes(&self) -> usize {
        self.routes.iter().flatten().count()
    }

    /// The routes in the table, each with the time when it was written, nanoseconds of CLOCK_MONOTONIC: later
    /// than the last packet of the one that had its number before, earlier than its own first.
    pub fn written(&self) -> impl Iterator<Item = (&Arc<Route>, u64)> {
        self.routes.iter().flatten().map(|written| (&written.route, written.written_ns))
    }

    /// Changes whenever routes or services have.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The chain of a route number.
    #[must_use]
    pub fn chain_of(&self, route: RouteId) -> Option<ChainId> {
        Some(self.routes.get(usize::from(route))?.as_ref()?.route.chain)
    }
}

/// Hands out runs of numbered places, first fit, and joins them again.
#[derive(Debug)]
struct Runs {
    /// Free runs as (first, count), by `first`, never adjacent.
    free: Vec<(u32, u32)>,
}

impl Runs {
    fn new(places: u32) -> Self {
        Self { free: vec![(0, places)] }
    }

    fn take(&mut self, count: u32) -> Option<u32> {
        if count == 0 {
            return Some(0);
        }
        let at = self.free.iter().position(|&(_, free)| free >= count)?;
        let (first, free) = self.free[at];
        if free == count {
            self.free.remove(at);
        } else {
            self.free[at] = (first + count, free - count);
        }
        Some(first)
    }

    fn give(&mut self, first: u32, count: u32) {
        if count == 0 {
            return;
        }
        let at = self.free.partition_point(|&(other, _)| other < first);
        self.free.insert(at, (first, count));
        if at + 1 < self.free.len() && first + count == self.free[at + 1].0 {
            self.free[at].1 += self.free[at + 1].1;
            self.free.remove(at + 1);
        }
        if at > 0 && self.free[at - 1].0 + self.free[at - 1].1 == first {
            self.free[at - 1].1 += self.free[at].1;
            self.free.remove(at);
        }
    }
}

#[cfg(test)]
#[path = "builder_tests.rs"]
mod tests;
