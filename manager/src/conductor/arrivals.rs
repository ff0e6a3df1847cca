//! NFs that come.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::sync::Arc;

use nflib::control::{AttachRequest, Attached, ErrorCode, ErrorReply, ServiceRef, ServiceSpec};
use nflib::descriptor::ServiceId;
use nflib::shm::{BlackBox, Channel, RecorderTerms, Region, TapFile};

use super::Conductor;
use crate::fabric::Fabric;
use crate::model::{Model, Service};
use crate::registry::{MAX_NFS, Newcomer, Peer, check_introduction};
use crate::worker::NewNf;

/// Services that an NF may name to send packets to.
const MAX_JUMPS: usize = 256;

/// What is sent to an NF that was let in: the terms, and the files.
pub struct Welcome {
    /// The terms.
    pub attached: Attached,
    /// Packet region, channel, route table, doorbells, marks, event ring, black box; then the workers' alarms,
    /// if any; then the state region, if one was asked for.
    pub fds: Vec<OwnedFd>,
}

/// What an NF of this service records, where the manager says as much of all.
fn recorder_of(spec: &ServiceSpec, usual: RecorderTerms) -> RecorderTerms {
    let slots = spec.recorder_pkts.unwrap_or(usual.slots);
    RecorderTerms { slots, all: spec.recorder_all, ..usual }
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
        let jumps = self.jumps_of(request)?;
        self.check_loan(request.loan_pkts, &service, fabric)?;
        let exhausted = |message: String| ErrorReply { code: ErrorCode::Exhausted, message };
        let (planner, edges) = (&self.planner, &self.edges);
        let number = self.registry.free_number(|nf| planner.leads_to(nf) || edges.involve(nf));
        let nf =
            number.ok_or_else(|| exhausted(format!("{MAX_NFS} NFs are attached, no more fit")))?;
        let geometry = fabric.channel_geometry();
        let channel = Arc::new(Channel::create(geometry).map_err(|e| exhausted(e.to_string()))?);
        let tap = TapFile::create().map_err(|e| exhausted(e.to_string()))?;
        let recorder = recorder_of(&service.spec, fabric.recorder());
        let black_box = BlackBox::create(recorder).map_err(|e| exhausted(e.to_string()))?;
        let black_box = Arc::new(black_box);
        let slot = self.planner.slot_of(service.id);
        let own_region = match service.spec.isolated && !service.spec.shared_region {
            true => Some(Region::create_sparse(*fabric.region().geometry())),
            false => None,
        };
        let own_region =
            own_region.transpose().map_err(|e| exhausted(e.to_string()))?.map(Arc::new);
        let newcomer = Newcomer {
            name: request.name.clone(),
            service: service.id,
            slot,
            isolated: service.spec.isolated,
            own_region: own_region.clone(),
            read_only: service.spec.access.is_read_only(),
            peer,
            channel: Arc::clone(&channel),
            tap: Arc::clone(&tap),
            black_box: Arc::clone(&black_box),
            core,
            jumps: jumps.clone(),
            loan_pkts: request.loan_pkts,
        };
        let record = self.registry.insert(nf, newcomer).map_err(|e| exhausted(e.to_string()))?;
        let instance = record.instance;
        let mut attached = Attached {
            instance,
            nf,
            service: service.id,
            region: *fabric.region().geometry(),
            channel: geometry,
            worker_buffers: fabric.worker_buffers(),
            manager_version: env!("CARGO_PKG_VERSION").to_owned(),
            core,
            jump_services: jumps,
            quantum_pkts: fabric.quantum_pkts(),
            read_only: record.read_only,
            state: None,
            own_region: own_region.is_some(),
            recorder,
        };
        let own = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned();
        // One that is isolated could keep the others from ringing.
        let alarms = if record.isolated { Vec::new() } else { fabric.alarms() };
        let fds = || -> std::io::Result<Vec<OwnedFd>> {
            let table = self.planner.table_fd()?;
            let region = own_region.as_ref().unwrap_or_else(|| fabric.region());
            let region = match record.read_only {
                true => region.read_only_fd()?,
                false => own(region.fd())?,
            };
            let files = [region, own(channel.fd())?, table];
            let (marks, tap) = (fabric.marks().read_only_fd()?, own(tap.fd())?);
            let own_ones = [own(record.bells.fd())?, marks, tap, own(black_box.fd())?];
            let files = files.into_iter().chain(own_ones);
            files.map(Ok).chain(alarms.iter().copied().map(own)).collect()
        };
        let wakes_workers = !alarms.is_empty();
        let states = &mut self.states;
        let result = fds().map_err(|e| exhausted(e.to_string())).and_then(|mut fds| {
            if let Some(spec) = request.state {
                let (terms, fd) = states.claim(service.id, spec, instance)?;
                attached.state = Some(terms);
                fds.push(fd);
            }
            let (bell, counters) = (record.bell.clone(), record.counters.clone());
            let (service, isolated) = (service.id, record.isolated);
            fabric
                .add_nf(slot, |worker, drops| NewNf {
                    nf,
                    service,
                    slot,
                    channel: Arc::clone(&channel),
                    bell: bell.clone(),
                    isolated,
                    wakes_workers,
                    keeps_stock: request.keeps_stock,
                    own_region: own_region.clone(),
                    counters: Arc::clone(&counters[worker]),
                    drops,
                })
                .map_err(|e| exhausted(e.to_string()))?;
            Ok(fds)
        });
        match result {
            Ok(fds) => {
                self.replan = true;
                if request.keeps_stock {
                    // A worker that is lost ends the manager anyway.
                    let _ = self.promise_stock(instance, fabric);
                }
                Ok(Welcome { attached, fds })
            }
            Err(error) => {
                self.states.leave(instance, None);
                self.registry.remove(instance);
                Err(error)
            }
        }
    }

    /// The service that an NF wants to provide.
    ///
    /// # Errors
    /// The refusal to send to the NF.
    pub fn service_of(&self, request: &AttachRequest) -> Result<Arc<Service>, ErrorReply> {
        check_introduction(request)?;
        self.find_service(&request.service)
    }

    fn find_service(&self, named: &ServiceRef) -> Result<Arc<Service>, ErrorReply> {
        self.model_to_be()
            .find_service(named)
            .cloned()
            .map_err(|error| ErrorReply { code: ErrorCode::UnknownService, message: error.message })
    }

    /// The services that an NF will send packets to by name.
    fn jumps_of(&self, request: &AttachRequest) -> Result<Vec<ServiceId>, ErrorReply> {
        if request.jumps_to.len() > MAX_JUMPS {
            let message = format!(
                "the NF names {} services to send packets to; at most {MAX_JUMPS} are possible",
                request.jumps_to.len()
            );
            return Err(ErrorReply { code: ErrorCode::BadRequest, message });
        }
        let id = |named| self.find_service(named).map(|service| service.id);
        request.jumps_to.iter().map(id).collect::<Result<_, _>>().map_err(|error| {
            let message = format!("the NF is to send packets to a service: {error}");
            ErrorReply { message, ..error }
        })
    }

    /// What will be wanted when the change under way is in force. At the start NFs may come before the
    /// first one is, and ask for what it brings.
    pub fn model_to_be(&self) -> &Model {
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
