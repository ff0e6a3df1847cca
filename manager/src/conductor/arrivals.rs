//! NFs that come.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::sync::Arc;

use nflib::control::{AttachRequest, Attached, ErrorCode, ErrorReply};
use nflib::shm::Channel;

use super::Conductor;
use crate::fabric::Fabric;
use crate::model::{Model, Service};
use crate::registry::{MAX_NFS, Newcomer, Peer, check_introduction};
use crate::worker::NewNf;

/// What is sent to an NF that was let in: the terms, and the files.
pub struct Welcome {
    /// The terms.
    pub attached: Attached,
    /// Packet region, channel, route table, doorbells.
    pub fds: [OwnedFd; 4],
}

impl Conductor {
    /// Lets an NF in, or says why not. It gets packets with the next plan.
    ///
    /// # Errors
    /// The refusal to send to the NF.
    pub fn attach(
        &mut self,
        request: &AttachRequest,
        peer: Peer,
        core: Option<u32>,
        fabric: &mut Fabric,
    ) -> Result<Welcome, ErrorReply> {
        let service = self.service_of(request)?;
        let exhausted = |message: String| ErrorReply { code: ErrorCode::Exhausted, message };
        let (planner, edges) = (&self.planner, &self.edges);
        let number = self.registry.free_number(|nf| planner.leads_to(nf) || edges.involve(nf));
        let nf =
            number.ok_or_else(|| exhausted(format!("{MAX_NFS} NFs are attached, no more fit")))?;
        let geometry = fabric.channel_geometry();
        let channel = Arc::new(Channel::create(geometry).map_err(|e| exhausted(e.to_string()))?);
        let slot = self.planner.slot_of(service.id);
        let newcomer = Newcomer {
            name: request.name.clone(),
            service: service.id,
            slot,
            isolated: service.spec.isolated,
            peer,
            channel: Arc::clone(&channel),
            core,
        };
        let record = self.registry.insert(nf, newcomer).map_err(|e| exhausted(e.to_string()))?;
        let instance = record.instance;
        let attached = Attached {
            instance,
            nf,
            service: service.id,
            region: *fabric.region().geometry(),
            channel: geometry,
            worker_buffers: fabric.worker_buffers(),
            manager_version: env!("CARGO_PKG_VERSION").to_owned(),
            core,
            quantum_pkts: fabric.quantum_pkts(),
        };
        let own = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned();
        let fds = || -> std::io::Result<[OwnedFd; 4]> {
            let table = self.planner.table_fd()?;
            Ok([own(fabric.region().fd())?, own(channel.fd())?, table, own(record.bells.fd())?])
        };
        let result = fds().map_err(|e| e.to_string()).and_then(|fds| {
            let (bell, counters) = (record.bell.clone(), record.counters.clone());
            let (service, isolated) = (service.id, record.isolated);
            fabric
                .add_nf(slot, |worker, drops| NewNf {
                    nf,
                    service,
                    channel: Arc::clone(&channel),
                    bell: bell.clone(),
                    isolated,
                    counters: Arc::clone(&counters[worker]),
                    drops,
                })
                .map_err(|e| e.to_string())?;
            Ok(fds)
        });
        match result {
            Ok(fds) => {
                self.replan = true;
                Ok(Welcome { attached, fds })
            }
            Err(message) => {
                self.registry.remove(instance);
                Err(exhausted(message))
            }
        }
    }

    /// The service that an NF wants to provide.
    ///
    /// # Errors
    /// The refusal to send to the NF.
    pub fn service_of(&self, request: &AttachRequest) -> Result<Arc<Service>, ErrorReply> {
        check_introduction(request)?;
        self.model_to_be()
            .find_service(&request.service)
            .cloned()
            .map_err(|error| ErrorReply { code: ErrorCode::UnknownService, message: error.message })
    }

    /// What will be wanted when the change under way is in force. At the start NFs may come before the
    /// first one is, and ask for what it brings.
    fn model_to_be(&self) -> &Model {
        use super::requests::Asked;
        use super::switch::State;
        match &self.state {
            State::Connecting(connecting) => connecting.model(),
            State::Switching(switching) => switching.model(),
            State::Idle => match self.pending.front().map(|pending| &pending.what) {
                Some(Asked::First(model)) => model,
                _ => &self.model,
            },
        }
    }
}
