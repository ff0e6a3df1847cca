//! The NFs that the manager starts itself.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use nflib::control::{ErrorCode, ErrorReply};
use nflib::shm::channel::NfCounter;
use nflib::shm::set_nice;

use super::{Server, ServerError};
use crate::model::{Chain, Service};
use crate::registry::{Leave, NfState};
use crate::shares::Reading;
use crate::supervisor::{Holder, Wanted, What};

/// How long NFs may take to end when the manager does.
const END_LIMIT: Duration = Duration::from_secs(12);

impl Server {
    /// Lets the supervisor work, and tells NFs that are too many to leave.
    pub(super) fn supervise(&mut self, now: Instant) -> Result<(), ServerError> {
        if self.conductor.take_model_changed() {
            let services = self.conductor.model().services();
            let wanted: Vec<_> =
                services.filter_map(|service| Wanted::of(service.id, &service.spec)).collect();
            self.supervisor.set_wanted(&wanted);
        }
        for event in self.supervisor.poll(now) {
            self.ended_while_upgrading(&event);
            self.crashes.hear(&event);
            match &event.what {
                What::Said { .. } => eprintln!("{event}"),
                What::Waiting { .. } | What::GaveUp { .. } | What::Pressed { .. } => {
                    tracing::warn!("{event}");
                }
                What::Started { .. } | What::Adopted { .. } | What::Exited { .. } => {
                    tracing::info!("{event}");
                }
            }
        }
        for pid in self.supervisor.surplus() {
            let record = self
                .conductor
                .registry()
                .nfs()
                .find(|record| self.supervisor.owner(record.pid) == Some(pid))
                .map(|record| (record.instance, record.state.clone()));
            match record {
                None => self.supervisor.released(pid, now),
                Some((_, NfState::Leaving)) => self.supervisor.released(pid, now),
                Some((_, NfState::Draining(_))) => {}
                Some((instance, _)) => {
                    let why = Leave::Told("fewer instances are wanted".to_owned());
                    self.drain_nf(instance, why)?;
                }
            }
        }
        Ok(())
    }

    /// Whether an NF of this service may attach from this process: where the manager starts the NFs,
    /// only those.
    pub(super) fn may_attach(&self, service: &Service, pid: i32) -> Result<(), ErrorReply> {
        if service.wanted_instances().is_none() || self.supervisor.owner(pid).is_some() {
            return Ok(());
        }
        let name = service.name();
        Err(ErrorReply {
            code: ErrorCode::ServiceTaken,
            message: format!(
                "service {name:?} is provided by NFs that the manager starts: for more of them run \
                 millrace service scale {name} N, or choose another service"
            ),
        })
    }

    /// Notes the core that an NF started by hand has chosen itself, and says whom it shares it with.
    pub(super) fn join_core(
        &mut self,
        service: &Service,
        core: Option<u32>,
        pid: i32,
    ) -> Result<(), ErrorReply> {
        let Some(core) = core.filter(|_| self.supervisor.owner(pid).is_none()) else {
            return Ok(());
        };
        let holder = Holder::Nf { service: service.name().to_owned(), pid, instance: None };
        match self.supervisor.cores().join(core, holder) {
            Ok(there) if there.is_empty() => Ok(()),
            Ok(there) => {
                let with = there.join(" and ");
                tracing::info!(core, service = service.name(), pid, "core shared with {with}");
                Ok(())
            }
            Err(message) => Err(ErrorReply { code: ErrorCode::Exhausted, message }),
        }
    }

    /// The core that a process was started on, if the manager chose one for it.
    pub(super) fn core_of(&self, pid: i32) -> Option<u32> {
        let leader = self.supervisor.owner(pid)?;
        self.supervisor.nfs().find(|nf| nf.pid == leader)?.core
    }

    /// Measures what packets cost, and gives NFs on shared cores their shares.
    pub(super) fn share_cores(&mut self, now: Instant) -> Result<(), ServerError> {
        if self.draining || self.conductor.registry().is_empty() || !self.shares.is_due(now) {
            return Ok(());
        }
        let books = self.fabric.snapshot()?;
        let chain_pps = self.shares.chain_rates(now, &books.chains);
        let model = self.conductor.model();
        let arrivals_pps = |service| -> f64 {
            let visits = |chain: &Chain| chain.services.iter().filter(|id| **id == service).count();
            let pps = |chain: &Chain| chain_pps.get(usize::from(chain.id)).copied().unwrap_or(0.0);
            model.chains().map(|chain| visits(chain) as f64 * pps(chain)).sum()
        };
        let readings = self.conductor.registry().nfs().map(|nf| {
            let weight = model.service(nf.service).and_then(|service| service.spec.weight);
            let reading = Reading {
                pid: nf.pid,
                // Another one's NFs may have been given their shares by that one.
                core: nf.core.filter(|_| self.supervisor.owner(nf.pid).is_some()),
                weight: weight.unwrap_or(1),
                busy_ns: nf.channel.nf_counter(NfCounter::BusyNs),
                rx_pkts: nf.channel.nf_counter(NfCounter::RxPkts),
                arrivals_pps: arrivals_pps(nf.service) * self.conductor.flow_share(nf),
            };
            (nf.instance, reading)
        });
        for (pid, nice) in self.shares.adapt(&readings.collect()) {
            // Without privilege a share that was taken could not be given back.
            if nix::unistd::geteuid().is_root()
                && let Err(error) = set_nice(pid, nice)
            {
                tracing::warn!(pid, nice, %error, "an NF's share of its core cannot be set");
            }
        }
        Ok(())
    }

    /// Ends the NFs that the manager started; the others go by themselves.
    pub(super) fn end_nfs(&mut self) -> Result<(), ServerError> {
        let began = Instant::now();
        self.supervisor.end_all(began);
        while !self.supervisor.is_empty() && began.elapsed() < END_LIMIT {
            self.serve()?;
        }
        // The last turn removes what lies beside the socket.
        self.supervisor.poll(Instant::now());
        Ok(())
    }
}
