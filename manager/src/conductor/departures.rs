//! NFs that go: because they want to, because they are told to, or because they are dead.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use nflib::shm::BufferIndex;

use super::Conductor;
use crate::fabric::{Fabric, FabricError};
use crate::registry::{Leave, NfRecord, NfState};

impl Conductor {
    /// Lets an NF leave in good order: the next plan does without it, and when its last packet is out
    /// it gets its word. False when there is no such NF.
    pub fn drain_nf(&mut self, instance: u32, why: Leave) -> bool {
        let Some(record) = self.registry.get_mut(instance) else { return false };
        if matches!(record.state, NfState::Joining | NfState::Running | NfState::Standby) {
            record.state = NfState::Draining(why);
            self.replan = true;
        }
        true
    }

    /// Lets NFs stand by, whose flows the next plan gives to others.
    pub fn stand_by(&mut self, instances: impl IntoIterator<Item = u32>) {
        for instance in instances {
            if let Some(record) = self.registry.get_mut(instance)
                && matches!(record.state, NfState::Joining | NfState::Running)
            {
                record.state = NfState::Standby;
                self.replan = true;
            }
        }
    }

    /// Lets NFs that stand by have flows again, by the next plan.
    pub fn call_up(&mut self, instances: impl IntoIterator<Item = u32>) {
        for instance in instances {
            if let Some(record) = self.registry.get_mut(instance)
                && record.state == NfState::Standby
            {
                record.state = NfState::Joining;
                self.replan = true;
            }
        }
    }

    /// Lets NFs leave whose service has become isolated or read-only, or ceased to be: what an NF may reach was
    /// given to it when it attached. The supervisor replaces those that the manager started.
    pub(super) fn drain_differently_isolated(&mut self) {
        let mut drained = Vec::new();
        for record in self.registry.nfs() {
            let Some(service) = self.model.service(record.service) else { continue };
            if service.spec.command.is_some() {
                continue;
            }
            let read_only = service.spec.access.is_read_only();
            let copies = service.spec.isolated && !service.spec.shared_region;
            if service.spec.isolated != record.isolated
                || copies != record.own_region.is_some()
                || read_only != record.read_only
            {
                let now = match (service.spec.isolated, record.isolated, read_only) {
                    (true, false, _) => "isolated now",
                    (false, true, _) => "not isolated any more",
                    _ if copies != record.own_region.is_some() => "isolated in another way now",
                    (_, _, true) => "read-only now",
                    (_, _, false) => "not read-only any more",
                };
                let why = format!("service {:?} is {now}: start the NF again", service.name());
                drained.push((record.instance, why));
            }
        }
        for (instance, why) in drained {
            self.drain_nf(instance, Leave::Told(why));
        }
    }

    /// Takes out an NF that is gone. Every buffer it had is back in the pool afterwards; what its
    /// neighbours still push towards it comes back as it is found.
    ///
    /// # Errors
    /// [`FabricError::WorkerLost`].
    pub fn remove(
        &mut self,
        instance: u32,
        fabric: &mut Fabric,
    ) -> Result<Option<NfRecord>, FabricError> {
        // The workers first: they push to it no more, and pass on what it had returned.
        let Some(nf) = self.registry.get(instance).map(|record| record.nf) else { return Ok(None) };
        fabric.remove_nf(nf)?;
        let Some(mut record) = self.registry.remove(instance) else { return Ok(None) };
        self.states.leave(instance, record.pidfd.take());
        if !record.isolated {
            let buffers = self.edges.remains_of(nf, &record.channel);
            fabric.reclaim(record.slot, &buffers)?;
            self.departed.insert(nf, record.slot);
            let pairs = self.edges.of(nf);
            self.close_edges(&pairs);
            if self.registry.nfs().all(|other| other.isolated) {
                fabric.reclaim_domain(record.slot)?;
            }
        }
        self.replan = true;
        Ok(Some(record))
    }

    /// Takes back what NFs pushed towards neighbours that are gone.
    pub(super) fn reclaim_orphans(&mut self, fabric: &mut Fabric) -> Result<(), FabricError> {
        let found = self.edges.drain_orphans(|nf| self.registry.by_number(nf).is_none());
        // Together: each order waits for a worker, and there may be a ringful.
        let mut by_slot: BTreeMap<u16, Vec<BufferIndex>> = BTreeMap::new();
        for (nf, buffer) in found {
            let slot = self.departed.get(&nf).copied().unwrap_or(0);
            by_slot.entry(slot).or_default().push(buffer);
        }
        for (slot, buffers) in by_slot {
            fabric.reclaim(slot, &buffers)?;
        }
        // Only now: a neighbour's last packets may have come just before its word that it is done.
        self.edges.forget_closed(|nf| self.registry.by_number(nf).is_none());
        let edges = &self.edges;
        self.departed.retain(|&nf, _| edges.involve(nf));
        Ok(())
    }
}
