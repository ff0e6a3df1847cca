//! NFs that crash, as the control thread sees them; and what people ask about them.
#![forbid(unsafe_code)]

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use nflib::control::{ErrorCode, Reply, ServiceSpec};

use super::{Server, refusal};
use crate::crash::bundle::{ManagerNote, Names, ProcessNote, Scene};
use crate::crash::evidence::{Evidence, done_pkts};
use crate::crash::{Lost, Suspect};
use crate::registry::{NfRecord, NfState};
use crate::status;

/// Why an NF is removed: words that tell one case from the others.
pub const PROCESS_ENDED: &str = "its process ended";
/// As [`PROCESS_ENDED`].
pub const HUNG_UP: &str = "it closed its connection";
/// As [`PROCESS_ENDED`]; the NF is well.
pub const MANAGER_ENDS: &str = "the manager ends, and it keeps packets";

impl Server {
    /// Copies what an NF has that is about to be taken out, unless it is one that leaves in good order.
    pub(super) fn witness(&self, instance: u32, why: &str) -> Option<Suspect> {
        let record = self.conductor.registry().get(instance)?;
        let lost = match why {
            MANAGER_ENDS => return None,
            PROCESS_ENDED | HUNG_UP => Lost::Gone,
            _ => Lost::Removed(why.to_owned()),
        };
        if !self.crashes.is_on() || record.state == NfState::Leaving {
            return None;
        }
        let evidence = Evidence::gather(record, self.conductor.edges(), self.fabric.region());
        Some(self.suspect(record, lost, evidence))
    }

    fn suspect(&self, record: &NfRecord, lost: Lost, evidence: Evidence) -> Suspect {
        let pid = record.pid;
        let ended = self.crashes.has_just_ended(pid).then_some(pid);
        let leader = self.supervisor.owner(pid).or(ended);
        let service = self.conductor.model().service(record.service);
        let service = service.map_or_else(
            || ServiceSpec { name: record.service.to_string(), ..ServiceSpec::default() },
            |service| service.spec.clone(),
        );
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time_unix_ns = u64::try_from(unix.as_nanos()).unwrap_or(u64::MAX);
        let attached_unix = unix.saturating_sub(record.since.elapsed());
        let counters = record.status(&service.name);
        let scene = Scene {
            time_unix_ns,
            clock_offset_ns: time_unix_ns.wrapping_sub(status::now_ns()),
            why: String::new(),
            process: ProcessNote { by_manager: leader.is_some(), ..record.process.clone() },
            attached_unix_s: i64::try_from(attached_unix.as_secs()).unwrap_or(i64::MAX),
            service,
            counters,
            done_pkts: done_pkts(&record.channel),
            evidence,
            black_box: std::sync::Arc::clone(&record.black_box),
            names: Names::default(),
            log: Vec::new(),
            manager: ManagerNote::default(),
        };
        Suspect {
            lost,
            leader,
            pidfd: record.pidfd.as_ref().and_then(|pidfd| pidfd.try_clone().ok()),
            told_to_go: self.draining || matches!(record.state, NfState::Draining(_)),
            since: Instant::now(),
            scene,
        }
    }

    /// Looks into a suspect whose buffers are back: now there is time to look up names.
    pub(super) fn accuse(&mut self, mut suspect: Suspect) {
        suspect.scene.names = self.names();
        suspect.scene.manager = self.manager_note();
        self.crashes.suspect(suspect);
    }

    fn names(&self) -> Names {
        let model = self.conductor.model();
        let routes = self.conductor.planner().current().routes();
        let chain = |chain| model.chain(chain).map(|chain| chain.name().to_owned());
        let service = |nf: &NfRecord| {
            model
                .service(nf.service)
                .map_or_else(|| nf.service.to_string(), |s| s.name().to_owned())
        };
        let nfs = self.conductor.registry().nfs();
        Names {
            ports: self.config.ports.iter().map(|port| port.name.clone()).collect(),
            chains: routes.filter_map(|route| Some((route.id, chain(route.chain)?))).collect(),
            nfs: nfs.map(|nf| (nf.nf, format!("{}#{}", service(nf), nf.instance))).collect(),
        }
    }

    fn manager_note(&self) -> ManagerNote {
        let services = self.conductor.model().services();
        ManagerNote {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: nix::unistd::getpid().as_raw(),
            uptime_s: self.started.elapsed().as_secs_f64(),
            workers: self.config.manager.workers,
            ring_capacity: self.config.manager.ring_capacity,
            region: Some(self.config.pool.geometry()),
            recorder: Some(self.config.manager.recorder()),
            ports: self.config.ports.iter().map(|port| port.name.clone()).collect(),
            services: services.map(|s| (s.id, s.name().to_owned())).collect(),
        }
    }

    /// What is left of NFs that crashed.
    pub(super) fn list_crashes(&mut self, id: u64) {
        let crashes = self.crashes.list();
        self.connections.send(id, &Reply::Crashes { crashes });
    }

    /// The files of a crash.
    pub(super) fn show_crash(&mut self, id: u64, name: &str) {
        match self.crashes.files(name) {
            Ok((crash, files)) => {
                self.connections.send_with(id, &Reply::Crash(Box::new(crash)), files);
            }
            Err(message) => self.connections.send(id, &refusal(ErrorCode::NotFound, message)),
        }
    }
}
