//! Which NFs are attached.
//!
//! An NF has an instance id, unique while the manager runs, and an edge number, its place in the
//! workers' tables, which is used again after it has gone: any number of NFs may come and go.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use nflib::control::{
    AttachRequest, Attached, ErrorCode, ErrorReply, NfStatus, PROTOCOL_VERSION, ServiceRef,
};
use nflib::descriptor::ServiceId;
use nflib::shm::channel::NfCounter;
use nflib::shm::{Channel, LAYOUT_VERSION};

use crate::fabric::{Fabric, FabricError};
use crate::ownership::{Edge, OwnershipTable};
use crate::stats::{Counter, NfCounters};

/// Longest name an NF may give itself, bytes.
const MAX_NAME_BYTES: usize = 64;

/// One attached NF.
pub struct NfRecord {
    /// Its instance id.
    pub instance: u32,
    /// Its place in the workers' tables.
    pub edge: Edge,
    /// The service it provides.
    pub service: ServiceId,
    /// What it calls itself.
    pub name: String,
    /// Its process.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
    /// Readable when the process has ended; `None` if it had ended before we could ask.
    pub pidfd: Option<OwnedFd>,
    /// The rings.
    pub channel: Arc<Channel>,
    counters: Vec<Arc<NfCounters>>,
    since: Instant,
}

impl NfRecord {
    fn sum(&self, of: impl Fn(&NfCounters) -> &Counter) -> u64 {
        self.counters.iter().map(|counters| of(counters).get()).sum()
    }

    /// The NF as the status shows it.
    #[must_use]
    pub fn status(&self) -> NfStatus {
        NfStatus {
            instance: self.instance,
            service: self.service,
            name: self.name.clone(),
            pid: self.pid,
            uid: self.uid,
            rx_pkts: self.sum(|c| &c.rx_pkts),
            tx_pkts: self.sum(|c| &c.tx_pkts),
            drop_pkts: self.sum(|c| &c.drop_pkts),
            ring_full_pkts: self.sum(|c| &c.ring_full_pkts),
            held_pkts: self.sum(|c| &c.held_pkts),
            violations: self.sum(|c| &c.violations),
            progress: self.channel.nf_counter(NfCounter::Progress),
            uptime_s: self.since.elapsed().as_secs_f64(),
            ..NfStatus::default()
        }
    }
}

/// Who asks, by the socket's credentials.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// Process.
    pub pid: i32,
    /// User.
    pub uid: u32,
}

/// The NFs attached now.
#[derive(Default)]
pub struct Registry {
    nfs: Vec<NfRecord>,
    last_instance: u32,
}

impl Registry {
    /// The NFs, by instance id.
    #[must_use]
    pub fn nfs(&self) -> &[NfRecord] {
        &self.nfs
    }

    /// The NF with an instance id.
    #[must_use]
    pub fn get(&self, instance: u32) -> Option<&NfRecord> {
        self.nfs.iter().find(|nf| nf.instance == instance)
    }

    /// Lets an NF in, or says why not.
    ///
    /// # Errors
    /// The refusal to send to the NF.
    pub fn attach(
        &mut self,
        request: &AttachRequest,
        peer: Peer,
        fabric: &mut Fabric,
    ) -> Result<(Attached, Arc<Channel>), ErrorReply> {
        let service = service_id(request)?;
        let slot = self.check(request, service, fabric)?;
        let exhausted = |message: String| ErrorReply { code: ErrorCode::Exhausted, message };
        let edge = self.free_edge().ok_or_else(|| {
            exhausted(format!("{} NFs are attached, no more fit", self.nfs.len()))
        })?;
        let geometry = fabric.channel_geometry();
        let channel = Arc::new(Channel::create(geometry).map_err(|e| exhausted(e.to_string()))?);
        let counters: Vec<_> = (0..geometry.workers).map(|_| Arc::default()).collect();
        fabric.add_nf(edge, slot, &channel, &counters).map_err(|e| exhausted(e.to_string()))?;
        self.last_instance += 1;
        let instance = self.last_instance;
        self.nfs.push(NfRecord {
            instance,
            edge,
            service,
            name: request.name.clone(),
            pid: peer.pid,
            uid: peer.uid,
            pidfd: nflib::shm::pidfd_open(peer.pid).ok(),
            channel: Arc::clone(&channel),
            counters,
            since: Instant::now(),
        });
        let attached = Attached {
            instance,
            nf: edge,
            service,
            region: *fabric.region().geometry(),
            channel: geometry,
            worker_buffers: fabric.region().geometry().buffers / u32::from(geometry.workers),
            core: None,
            manager_version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        Ok((attached, channel))
    }

    fn check(
        &self,
        request: &AttachRequest,
        service: ServiceId,
        fabric: &Fabric,
    ) -> Result<usize, ErrorReply> {
        let refuse = |code, message| Err(ErrorReply { code, message });
        if request.protocol != PROTOCOL_VERSION || request.layout != LAYOUT_VERSION {
            return refuse(
                ErrorCode::Version,
                format!(
                    "the NF speaks protocol {} with layout {}, this manager ({}) protocol \
                     {PROTOCOL_VERSION} with layout {LAYOUT_VERSION}: rebuild the NF against this \
                     release",
                    request.protocol,
                    request.layout,
                    env!("CARGO_PKG_VERSION")
                ),
            );
        }
        if request.name.len() > MAX_NAME_BYTES || request.name.chars().any(char::is_control) {
            return refuse(
                ErrorCode::BadRequest,
                format!("an NF's name is at most {MAX_NAME_BYTES} printable bytes"),
            );
        }
        let Some(slot) = fabric.chain().slot_of(service) else {
            return refuse(ErrorCode::UnknownService, unknown_service(service, fabric));
        };
        if let Some(other) = self.nfs.iter().find(|nf| nf.service == service) {
            return refuse(
                ErrorCode::ServiceTaken,
                format!(
                    "service {} is provided already by {} (instance {}, pid {}): stop it first, or \
                     choose another service",
                    service, other.name, other.instance, other.pid
                ),
            );
        }
        Ok(slot)
    }

    fn free_edge(&self) -> Option<Edge> {
        (0..OwnershipTable::MAX_EDGES as Edge)
            .find(|edge| self.nfs.iter().all(|nf| nf.edge != *edge))
    }

    /// Takes an NF that is gone out; every buffer it had is back in the pool afterwards.
    ///
    /// # Errors
    /// [`FabricError::WorkerLost`].
    pub fn remove(
        &mut self,
        instance: u32,
        fabric: &mut Fabric,
    ) -> Result<Option<NfRecord>, FabricError> {
        let Some(at) = self.nfs.iter().position(|nf| nf.instance == instance) else {
            return Ok(None);
        };
        let record = self.nfs.remove(at);
        fabric.remove_nf(record.edge)?;
        Ok(Some(record))
    }
}

fn service_id(request: &AttachRequest) -> Result<ServiceId, ErrorReply> {
    match &request.service {
        ServiceRef::Id(id) => Ok(*id),
        ServiceRef::Name(name) => Err(ErrorReply {
            code: ErrorCode::UnknownService,
            message: format!("there is no service {name:?}"),
        }),
    }
}

fn unknown_service(service: ServiceId, fabric: &Fabric) -> String {
    let known: Vec<_> = fabric.chain().services().iter().map(ToString::to_string).collect();
    if known.is_empty() {
        return format!("no chain uses service {service}: there is none, or it is empty");
    }
    format!("no chain uses service {service}; there are {}", known.join(", "))
}
