//! A change of plan: packets whose path changes wait until those that came before them are out.
#![forbid(unsafe_code)]

use super::*;

impl Worker {
    /// Begins a change. Only one at a time; see [`is_changing`](Self::is_changing).
    pub fn begin_change(&mut self, change: Change) {
        debug_assert!(self.transition.is_none(), "a change began during another");
        self.service_drops.extend(change.new_services);
        self.old_plan = Some(std::mem::replace(&mut self.plan, Arc::clone(&change.plan)));
        let rules = self.classifier.apply(change.rules);
        self.epoch = self.epoch.checked_add(1).unwrap_or_else(|| {
            // Somebody may have kept a packet since the number was used last.
            self.owners.forget_epochs();
            1
        });
        self.fresh_pkts = 0;
        self.recall_stock();
        let limit_pkts = self.pool.count() as usize / 4;
        let (plan, delta, patience) = (&change.plan, change.delta, self.patience);
        self.transition = Some(Transition::new(plan, delta, rules, limit_pkts, patience));
        if !self.waiting.is_empty() {
            self.rebase_waiting();
        }
    }

    /// Sets how long packets of an older plan may take to come out in the changes to come; 300 ms
    /// unless set.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// True while packets of an older plan are inside or parked ones wait.
    #[must_use]
    pub fn is_changing(&self) -> bool {
        self.transition.is_some()
    }

    /// How the last change went, once it is complete.
    pub fn take_outcome(&mut self) -> Option<Outcome> {
        let done = self.transition.as_ref()?.outcome()?;
        self.transition = None;
        if done.in_order {
            self.old_plan = None;
        }
        Some(done)
    }

    pub(super) fn park(&mut self, parked: Parked) {
        self.counters.parked_pkts.add(1);
        if let Some(transition) = self.transition.as_mut() {
            transition.park(parked);
        }
    }

    /// Lets parked packets go when their path is free, as many as the rings take.
    pub(super) fn continue_change(&mut self) -> usize {
        if self.transition.is_none() {
            return 0;
        }
        let waiting_pkts =
            if self.waiting.is_empty() { 0 } else { self.waiting.old_pkts(self.epoch) };
        let old_pkts = self.owners.held_buffers() - self.fresh_pkts + waiting_pkts;
        let Some(transition) = self.transition.as_mut() else { return 0 };
        if !transition.may_release(old_pkts, Instant::now) {
            return 0;
        }
        let plan = Arc::clone(&self.plan);
        let mut released = 0;
        while released < RELEASE_PKTS * self.queues.max(1)
            && let Some(parked) = self.transition.as_ref().and_then(Transition::first)
        {
            if !self.has_room_for(&plan, parked) {
                break;
            }
            let Some(parked) = self.transition.as_mut().and_then(Transition::release) else {
                break;
            };
            match parked.next {
                Next::Enter { ingress, verdict } => {
                    self.enter(&plan, parked.packet, ingress, verdict);
                }
                Next::Jump { passage, service } => {
                    self.go_to_service(&plan, parked.packet, passage, service);
                }
            }
            released += 1;
        }
        released
    }

    /// Whether the ring of a parked packet's next NF is at most half full: a crowd that waited must
    /// not be lost in the rush.
    fn has_room_for(&mut self, plan: &Plan, parked: Parked) -> bool {
        let service = match parked.next {
            Next::Enter { verdict: Verdict::Chain(chain), .. } => {
                plan.route_of(chain).and_then(|route| route.hops.first())
            }
            Next::Enter { .. } => None,
            Next::Jump { service, .. } => plan.service(service),
        };
        let nf = service.and_then(|hop| hop.instances.pick(parked.packet.flow_hash));
        let overdue = self.transition.as_ref().is_none_or(|t| t.is_overdue(Instant::now));
        overdue || nf.is_none_or(|nf| self.has_room(nf))
    }

    /// Whether an NF's ring is at most half full, or it has none any more.
    pub(super) fn has_room(&mut self, nf: NfNumber) -> bool {
        let edge = self.nfs.get_mut(usize::from(nf)).and_then(Option::as_mut);
        edge.is_none_or(|edge| {
            let waiting = edge.to_nf.in_flight().unwrap_or(0) as usize + edge.staged.len();
            waiting <= edge.to_nf.capacity() as usize / 2
        })
    }
}
