//! What happens between turns, on the control thread's order.
#![forbid(unsafe_code)]

use nflib::shm::global_barrier;

use super::*;

impl Worker {
    /// Lets an NF in. It gets packets when a plan names it.
    pub fn add_nf(&mut self, worker: u16, new: NewNf) {
        // The channel was made with rings for every worker.
        let Some((to_nf, from_nf)) = new.channel.manager_ends(worker) else { return };
        let at = usize::from(new.nf);
        if self.nfs.len() <= at {
            self.nfs.resize_with(at + 1, || None);
        }
        self.nfs[at] = Some(NfEdge {
            service: new.service,
            slot: new.slot,
            bell: new.bell,
            own_region: new.own_region,
            holder: if new.isolated { new.nf } else { TRUSTED },
            stock: new.keeps_stock.then(|| lending::Stock::new(&new.channel, worker)),
            waker: new.wakes_workers.then_some(new.channel),
            to_nf,
            from_nf,
            counters: new.counters,
            drops: new.drops,
            staged: Vec::with_capacity(4 * MAX_BURST_PKTS),
            closed: false,
            broken: false,
        });
    }

    /// Whether every NF wakes this worker when it gives packets back.
    #[must_use]
    pub fn is_woken_by_nfs(&self) -> bool {
        self.nfs.iter().flatten().all(|edge| edge.waker.is_some())
    }

    /// Tells the NFs that this worker, by its number, sleeps from now on. False when packets have come
    /// back meanwhile, or the NFs cannot be made to notice: then it must not sleep.
    ///
    /// The order is that of [`nflib::shm::Doorbell::sleep`].
    #[must_use]
    pub fn announce_sleep(&self, worker: u16) -> bool {
        self.tell_wakers(worker, true);
        global_barrier() && self.nfs.iter().flatten().all(|edge| edge.from_nf.is_empty())
    }

    /// Tells the NFs that this worker is awake.
    pub fn announce_waking(&self, worker: u16) {
        self.tell_wakers(worker, false);
    }

    fn tell_wakers(&self, worker: u16, sleeps: bool) {
        for channel in self.nfs.iter().flatten().filter_map(|edge| edge.waker.as_ref()) {
            channel.set_worker_sleeps(worker, sleeps);
        }
    }

    /// The plan that packets follow.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Delivers nothing more to an NF; what it has may still come back.
    pub fn close_nf(&mut self, number: NfNumber) {
        if let Some(Some(edge)) = self.nfs.get_mut(usize::from(number)) {
            edge.closed = true;
        }
        self.loans.retain(|loan| loan.nf != number);
    }

    /// Takes an NF that is gone out: passes on what it had returned, and takes back every buffer that
    /// an isolated one still held. What one of the trusted domain held the control thread finds in its
    /// rings, see [`reclaim`](Self::reclaim).
    pub fn remove_nf(&mut self, number: NfNumber) {
        self.close_nf(number);
        let at = usize::from(number);
        // At most what its ring can hold: an NF that is told to go may be alive and still writing.
        let capacity =
            self.nfs.get(at).and_then(Option::as_ref).map_or(0, |e| e.from_nf.capacity());
        for _ in 0..(capacity as usize).div_ceil(COLLECT_BURST_PKTS) {
            if self.collect(at) == 0 {
                break;
            }
            self.flush_nfs();
            self.flush_ports();
        }
        let Some(edge) = self.nfs.get_mut(at).and_then(Option::take) else { return };
        if edge.holder != TRUSTED {
            self.reclaim_all(edge.holder, &edge.drops);
        }
        self.free_dropped();
    }

    /// Limits the buffers of each isolated NF, and those of each route inside the trusted domain; as
    /// many as the pool allows unless set.
    pub fn set_credit_limit(&mut self, limit_pkts: usize) {
        self.credit = Credit::new(self.pool.count() as usize, limit_pkts);
    }

    /// Takes back buffers that were with an NF of the trusted domain when it died, by the evidence it
    /// left. That may be forged: packets that never come to its service, the one in `slot`, are not
    /// touched.
    pub fn reclaim(&mut self, buffers: &[BufferIndex], slot: u16, drops: &DropCounters) {
        let plans = Plans { new: Arc::clone(&self.plan), old: self.old_plan.clone() };
        for &buffer in buffers {
            let passage = self.owners.passage(buffer, TRUSTED).ok().filter(|passage| {
                visits(plans.of(passage, self.epoch), passage, |service| service.slot == slot)
            });
            if let Some(passage) = passage
                && self.owners.take_back(buffer, TRUSTED).is_ok()
            {
                self.fresh_pkts -= usize::from(passage.epoch == self.epoch);
                self.counters.drop_at(drops, DropReason::NfGone, 1);
                self.lose(whereabouts_lost(buffer), slot, DropReason::NfGone);
            }
        }
        self.free_dropped();
    }

    /// Takes back everything that the trusted domain holds: its last NF is gone.
    pub fn reclaim_domain(&mut self, drops: &DropCounters) {
        self.reclaim_all(TRUSTED, drops);
        self.free_dropped();
    }

    fn reclaim_all(&mut self, holder: Holder, drops: &DropCounters) {
        let mut found = Vec::new();
        self.owners.reclaim(holder, &mut found);
        for (buffer, passage) in &found {
            self.fresh_pkts -= usize::from(passage.epoch == self.epoch);
            self.lose(whereabouts_lost(*buffer), NOBODY, DropReason::NfGone);
        }
        self.counters.drop_at(drops, DropReason::NfGone, found.len() as u64);
    }

    /// NFs that broke their rings since the last call; they are to be removed.
    pub fn take_broken(&mut self, out: &mut Vec<NfNumber>) {
        for (number, edge) in self.nfs.iter_mut().enumerate() {
            if let Some(edge) = edge
                && std::mem::take(&mut edge.broken)
            {
                out.push(number as NfNumber);
            }
        }
    }

    /// Packets inside: with NFs, parked, or delayed in a port.
    #[must_use]
    pub fn held_pkts(&self) -> u64 {
        let in_ports: u64 = self.ports.iter().flat_map(|p| &p.queues).map(|q| q.held_pkts()).sum();
        (self.owners.held_buffers() + self.parked_pkts()) as u64 + in_ports
    }

    /// Packets that wait for a change of plan, or for an NF.
    #[must_use]
    pub fn parked_pkts(&self) -> usize {
        self.transition.as_ref().map_or(0, Transition::parked_pkts) + self.waiting.pkts()
    }

    /// Packets with NFs.
    #[must_use]
    pub fn held_by_nfs(&self) -> usize {
        self.owners.held_buffers()
    }

    /// Packets of each chain that the trusted domain has, by chain id; without those that NFs made.
    #[must_use]
    pub fn held_by_chain(&self) -> Vec<u64> {
        let mut held = Vec::new();
        for route in self.plan.routes() {
            let at = usize::from(route.chain);
            if held.len() <= at {
                held.resize(at + 1, 0);
            }
            held[at] += self.owners.held_by(TRUSTED, route.id) as u64;
        }
        held
    }

    /// Packets that an isolated NF may have now, and that those of a chain may be in the trusted
    /// domain.
    #[must_use]
    pub fn credits(&self) -> (u64, u64) {
        let most = |holder| self.credit.most(&self.owners, holder) as u64;
        // Any number that is not the domain's is an isolated NF's.
        (most(0), most(TRUSTED))
    }

    /// Packets and bytes that entered each chain, by chain id.
    #[must_use]
    pub fn chain_counts(&self) -> &[(u64, u64)] {
        &self.chain_counts
    }

    /// What this worker counts between ports.
    #[must_use]
    pub fn counters(&self) -> &WorkerCounters {
        &self.counters
    }

    /// This worker's flow table.
    pub fn classifier(&mut self) -> &mut Classifier {
        &mut self.classifier
    }

    /// This worker's ports.
    #[must_use]
    pub fn ports(&self) -> &[WorkerPort] {
        &self.ports
    }

    /// This worker's buffers.
    #[must_use]
    pub fn pool(&self) -> &BufferPool {
        &self.pool
    }

    /// Stops every queue. Afterwards all buffers are free that are not at a device.
    pub fn close(&mut self) {
        self.stop_holding();
        for number in 0..self.nfs.len() {
            self.remove_nf(number as NfNumber);
        }
        let mut found = Vec::new();
        self.owners.reclaim(TRUSTED, &mut found);
        let parked = self.transition.take().map(Transition::into_parked).unwrap_or_default();
        let packets = found.into_iter().map(|(buffer, _)| whereabouts_lost(buffer));
        for packet in packets.chain(parked.into_iter().map(|parked| parked.packet)) {
            self.drop_here(packet, DropReason::Shutdown);
        }
        self.free_dropped();
        for port in &mut self.ports {
            for queue in &mut port.queues {
                queue.close(&mut self.pool);
            }
        }
    }
}

/// A packet of which nobody knows any more where it begins in its buffer.
fn whereabouts_lost(buffer: BufferIndex) -> PortPacket {
    PortPacket { buffer, offset_bytes: 0, len_bytes: 0, flow_hash: 0 }
}
