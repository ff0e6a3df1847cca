//! Empty buffers for NFs that make packets of their own: how many an NF may have, and when it gets
//! them.
#![forbid(unsafe_code)]

use std::sync::Arc;

use nflib::control::{ErrorCode, ErrorReply};
use nflib::descriptor::{ChainId, ServiceId};

use super::Conductor;
use crate::fabric::{Fabric, FabricError};
use crate::model::Service;
use crate::plan::{Instances, PlannedService, Route};
use crate::registry::{NfRecord, NfState};

impl Conductor {
    /// Whether an NF of this service may have so many buffers.
    ///
    /// # Errors
    /// The refusal to send to the NF.
    pub(super) fn check_loan(
        &self,
        pkts: u32,
        service: &Service,
        fabric: &Fabric,
    ) -> Result<(), ErrorReply> {
        let refuse = |code, message| Err(ErrorReply { code, message });
        if pkts == 0 {
            return Ok(());
        }
        let name = service.name();
        if !self.model_to_be().chains().any(|chain| chain.services.contains(&service.id)) {
            let message = format!(
                "the NF makes packets of its own, and service {name:?} is in no chain that they \
                 could travel: put it into the services of one"
            );
            return refuse(ErrorCode::Invalid, message);
        }
        if service.spec.access.is_read_only() {
            let message = format!(
                "the NF makes packets of its own, and the access of service {name:?} is \"read-only\": \
                 remove `access` from the service"
            );
            return refuse(ErrorCode::Invalid, message);
        }
        let lent = |of: &dyn Fn(&NfRecord) -> bool| -> u32 {
            self.registry.nfs().filter(|nf| of(nf)).map(|nf| nf.loan_pkts).sum()
        };
        // What circulates must never fill the rings it circulates in, or nobody could go on.
        let ring = fabric.channel_geometry().ring_capacity / 2;
        let of_service = lent(&|nf| nf.service == service.id);
        let pool = fabric.region().geometry().buffers / 2;
        let of_all = lent(&|_| true);
        let (limit, others, what) = if pkts > ring.saturating_sub(of_service) {
            (ring, of_service, format!("to service {name:?}, half of manager.ring_capacity"))
        } else if pkts > pool.saturating_sub(of_all) {
            (pool, of_all, "to all NFs, half of pool.buffers".to_owned())
        } else {
            return Ok(());
        };
        let others = if others > 0 { format!(", and {others} are") } else { String::new() };
        let message = format!(
            "the NF asks for {pkts} packets of its own; at most {limit} can be lent {what}{others}: \
             ask for fewer, or set that higher"
        );
        refuse(ErrorCode::Exhausted, message)
    }

    /// Promises an NF its stock, which it gets with the first packets.
    pub(super) fn promise_stock(
        &mut self,
        instance: u32,
        fabric: &mut Fabric,
    ) -> Result<(), FabricError> {
        let Some(record) = self.registry.get_mut(instance) else { return Ok(()) };
        record.loan_due = false;
        let (nf, pkts, service) = (record.nf, record.loan_pkts, record.service);
        let mut chains = self.model_to_be().chains();
        // One at least has it, or the NF had been refused.
        let chain = chains.find(|chain| chain.services.contains(&service)).map(|chain| chain.id);
        chain.map_or(Ok(()), |chain| fabric.lend(nf, pkts, chain))
    }

    /// Lends what is due, to NFs whose chain is complete: sooner, their packets would be lost.
    pub(super) fn lend(&mut self, fabric: &mut Fabric) -> Result<(), FabricError> {
        let due = self.registry.nfs().filter(|nf| nf.loan_due && nf.state == NfState::Running);
        let ready: Vec<_> = due
            .filter_map(|nf| {
                let chain = self.way_of(nf.service, &nf.jumps)?;
                Some((nf.instance, nf.nf, nf.loan_pkts, chain))
            })
            .collect();
        for (instance, nf, pkts, chain) in ready {
            fabric.lend(nf, pkts, chain)?;
            if let Some(record) = self.registry.get_mut(instance) {
                record.loan_due = false;
            }
        }
        Ok(())
    }

    /// The chain for packets that an NF of this service makes: the first that contains the service
    /// and those it sends them to, or else the first that contains the service. `None` while they
    /// would not find somebody at every hop, and at every service they are sent to.
    fn way_of(&self, service: ServiceId, jumps: &[ServiceId]) -> Option<ChainId> {
        let plan = self.planner.current();
        let is_there = |service: &Arc<PlannedService>| service.instances != Instances::None;
        let visits = |route: &Route, id| route.hops.iter().any(|hop| hop.id == id);
        let routes = || plan.current_routes().filter(|route| visits(route, service));
        let route = routes()
            .find(|route| jumps.iter().all(|&id| visits(route, id)))
            .or_else(|| routes().next())?;
        let complete = route.hops.iter().all(is_there)
            && jumps.iter().all(|&id| plan.service(id).is_some_and(is_there));
        complete.then_some(route.chain)
    }
}
