//! Packets for a service that has no NF: its last one died, or none has come yet.
//!
//! Their chain says what becomes of them ([`OnDeath`]). Those that are to wait do so here, in order,
//! until an NF of the service is there: at most a quarter of the worker's buffers, so that the ports
//! never run dry, and none for longer than [`HOLD_LIMIT`]. What is beyond is dropped and counted at
//! the service.
//!
//! They go before all that came later: a change of plan that brings an NF back takes those that waited
//! for it as packets of the older plan, and parks the others of their flows until these are out.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, VecDeque};

use nflib::control::OnDeath;

use super::*;

/// Longest wait for an NF; the supervisor's first restarts take less.
pub(super) const HOLD_LIMIT: Duration = Duration::from_secs(5);

/// A packet that waits for an NF.
#[derive(Clone, Copy)]
struct Held {
    packet: PortPacket,
    /// How far it has come; its hop is the service it waits for.
    passage: Passage,
    since: Instant,
}

/// Those who wait for one service, the first in front.
struct Queue {
    slot: u16,
    held: VecDeque<Held>,
}

/// All who wait.
pub(super) struct Waiting {
    queues: BTreeMap<ServiceId, Queue>,
    pkts: usize,
    limit_pkts: usize,
    hold_limit: Duration,
}

impl Waiting {
    pub(super) fn new(pool_buffers: u32) -> Self {
        let limit_pkts = pool_buffers as usize / 4;
        Self { queues: BTreeMap::new(), pkts: 0, limit_pkts, hold_limit: HOLD_LIMIT }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.pkts == 0
    }

    pub(super) fn pkts(&self) -> usize {
        self.pkts
    }

    /// Their buffers.
    pub(super) fn buffers(&self) -> impl Iterator<Item = BufferIndex> + '_ {
        self.queues.values().flat_map(|queue| &queue.held).map(|held| held.packet.buffer)
    }

    /// Packets of an older plan than the present one.
    pub(super) fn old_pkts(&self, epoch: u8) -> usize {
        let held = self.queues.values().flat_map(|queue| &queue.held);
        held.filter(|held| held.passage.epoch != epoch).count()
    }

    fn push(&mut self, service: &PlannedService, held: Held) {
        let new = || Queue { slot: service.slot, held: VecDeque::new() };
        self.queues.entry(service.id).or_insert_with(new).held.push_back(held);
        self.pkts += 1;
    }

    fn pop(&mut self, service: ServiceId) -> Option<(u16, Held)> {
        let queue = self.queues.get_mut(&service)?;
        let held = queue.held.pop_front()?;
        let slot = queue.slot;
        self.pkts -= 1;
        if queue.held.is_empty() {
            self.queues.remove(&service);
        }
        Some((slot, held))
    }
}

impl Worker {
    /// Does with a packet what its chain says for a service that has no NF.
    #[cold]
    pub(super) fn without_instance(
        &mut self,
        plan: &Plan,
        packet: PortPacket,
        passage: Passage,
        service: &PlannedService,
    ) {
        match plan.route(passage.route).map_or(OnDeath::Drop, |route| route.on_death) {
            OnDeath::Drop => self.drop_at(packet, service.slot, DropReason::NoInstance),
            OnDeath::Bypass => self.bypass(plan, packet, passage, service),
            OnDeath::Hold => self.hold(packet, passage, service),
        }
    }

    /// On to the first hop behind that has an NF, or to the end.
    fn bypass(
        &mut self,
        plan: &Plan,
        packet: PortPacket,
        mut passage: Passage,
        service: &PlannedService,
    ) {
        self.drops_of(service.slot).bypassed_pkts.add(1);
        let Some(route) = plan.route(passage.route) else {
            return self.drop_here(packet, DropReason::NoRule);
        };
        loop {
            passage.hop = passage.hop.saturating_add(1);
            match route.hops.get(usize::from(passage.hop)) {
                None => return self.end(plan, packet, passage, route.end),
                Some(next) if self.instance_for(next, packet.flow_hash).is_some() => {
                    return self.deliver(plan, packet, passage, next);
                }
                Some(next) => self.drops_of(next.slot).bypassed_pkts.add(1),
            }
        }
    }

    /// The NF that takes a flow's packets for a service, if there is one now.
    fn instance_for(&self, service: &PlannedService, flow_hash: u32) -> Option<NfNumber> {
        let nf = service.instances.pick(flow_hash)?;
        let edge = self.nfs.get(usize::from(nf))?.as_ref()?;
        (!edge.closed).then_some(nf)
    }

    /// The same by the plan in force, whichever the packet came in under.
    fn instance_now(&self, service: ServiceId, flow_hash: u32) -> Option<NfNumber> {
        self.instance_for(self.plan.service(service)?, flow_hash)
    }

    /// Lets a packet wait for an NF, if there is room.
    pub(super) fn hold(&mut self, packet: PortPacket, passage: Passage, service: &PlannedService) {
        if self.waiting.pkts >= self.waiting.limit_pkts {
            return self.drop_at(packet, service.slot, DropReason::HoldFull);
        }
        // Without an NF in the plan in force, a change must not wait for this packet.
        let passage = match self.instance_now(service.id, packet.flow_hash) {
            Some(_) => Some(passage),
            None => self.rebased(passage, service.id),
        };
        match passage {
            Some(passage) => {
                self.waiting.push(service, Held { packet, passage, since: Instant::now() });
                self.show_waiting(service.id, service.slot);
            }
            None => self.drop_at(packet, service.slot, DropReason::NoInstance),
        }
    }

    /// A packet's place on the route that its chain has now; `None` when its chain is gone, or does
    /// not visit the service any more.
    fn rebased(&self, passage: Passage, service: ServiceId) -> Option<Passage> {
        if passage.epoch == self.epoch {
            return Some(passage);
        }
        let old = self.old_plan.as_ref().and_then(|old| old.route(passage.route));
        let chain = old.or_else(|| self.plan.route(passage.route))?.chain;
        let route = self.plan.route_of(chain)?;
        let visits = |hop: u8| route.hops.get(usize::from(hop)).is_some_and(|h| h.id == service);
        let hop = if passage.hop == OFF_ROUTE || visits(passage.hop) {
            passage.hop
        } else {
            u8::try_from(route.hops.iter().position(|hop| hop.id == service)?).ok()?
        };
        Some(Passage { route: route.id, hop, epoch: self.epoch, ..passage })
    }

    /// At the beginning of a change: those for whom it brings no NF go on waiting, as packets of the
    /// new plan; the others are packets of the old one, which the parked ones wait for.
    pub(super) fn rebase_waiting(&mut self) {
        for (service, queue) in std::mem::take(&mut self.waiting.queues) {
            let slot = queue.slot;
            self.waiting.pkts -= queue.held.len();
            for held in queue.held {
                let passage = match self.instance_now(service, held.packet.flow_hash) {
                    Some(_) => Some(held.passage),
                    None => self.rebased(held.passage, service),
                };
                let Some(passage) = passage else {
                    self.drop_at(held.packet, slot, DropReason::NoInstance);
                    continue;
                };
                let planned = PlannedService { id: service, slot, instances: Instances::None };
                self.waiting.push(&planned, Held { passage, ..held });
            }
            self.show_waiting(service, slot);
        }
    }

    /// Lets those go whose NF is there, as its ring takes them, and those that waited too long.
    /// Returns how many went.
    #[cold]
    pub(super) fn release_waiting(&mut self) -> usize {
        let now = Instant::now();
        let services: Vec<_> =
            self.waiting.queues.iter().map(|(&id, queue)| (id, queue.slot)).collect();
        let plan = Arc::clone(&self.plan);
        let mut released = 0;
        for (service, slot) in services {
            while released < RELEASE_PKTS * self.queues.max(1)
                && let Some(&first) = self.waiting.queues.get(&service).and_then(|q| q.held.front())
            {
                let nf = self.instance_now(service, first.packet.flow_hash);
                match (nf, plan.service(service)) {
                    (Some(nf), Some(planned)) if self.has_room(nf) => {
                        self.waiting.pop(service);
                        self.deliver_to(nf, first.packet, first.passage, planned.slot);
                    }
                    (None, _)
                        if now.saturating_duration_since(first.since)
                            >= self.waiting.hold_limit =>
                    {
                        self.waiting.pop(service);
                        self.drop_at(first.packet, slot, DropReason::HoldTimeout);
                    }
                    _ => break,
                }
                released += 1;
            }
            self.show_waiting(service, slot);
        }
        released
    }

    /// Drops all who wait, and lets nobody wait any more: the manager stops.
    pub fn stop_holding(&mut self) {
        self.waiting.limit_pkts = 0;
        for service in self.waiting.queues.keys().copied().collect::<Vec<_>>() {
            let mut slot = 0;
            while let Some((of, held)) = self.waiting.pop(service) {
                slot = of;
                self.drop_here(held.packet, DropReason::Shutdown);
            }
            self.show_waiting(service, slot);
        }
        self.free_dropped();
    }

    /// Sets how long packets may wait for an NF; 5 s unless set.
    pub fn set_hold_limit(&mut self, limit: Duration) {
        self.waiting.hold_limit = limit;
    }

    fn show_waiting(&self, service: ServiceId, slot: u16) {
        let pkts = self.waiting.queues.get(&service).map_or(0, |queue| queue.held.len());
        self.drops_of(slot).waiting_pkts.set(pkts as u64);
    }
}
