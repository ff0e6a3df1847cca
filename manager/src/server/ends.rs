//! NFs that end without having been told to, and NFs that live and do nothing.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use nflib::control::{DeathStatus, DeathsStatus, OnStuck};
use nflib::shm::{NfCounter, pidfd_kill};

use super::{Server, ServerError};
use crate::registry::{NfRecord, NfState};
use crate::stuck::{Process, Reading, Stuck, Watch, Why};

/// How often NFs are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long an NF may stand still unless its service says otherwise.
const STUCK_AFTER: Duration = Duration::from_secs(1);
/// Deaths remembered one by one.
const DEATHS_KEPT: usize = 64;

/// The deaths so far.
#[derive(Default)]
pub struct Deaths {
    count: u64,
    longest_reclaim_us: u64,
    last: VecDeque<DeathStatus>,
}

impl Deaths {
    /// Notes an NF whose every buffer is back.
    pub fn note(&mut self, death: DeathStatus) {
        self.count += 1;
        let reclaim_us = death.reclaimed_ns.saturating_sub(death.noticed_ns) / 1000;
        self.longest_reclaim_us = self.longest_reclaim_us.max(reclaim_us);
        if self.last.len() == DEATHS_KEPT {
            self.last.pop_front();
        }
        self.last.push_back(death);
    }

    /// As the status shows them.
    #[must_use]
    pub fn status(&self) -> DeathsStatus {
        DeathsStatus {
            count: self.count,
            longest_reclaim_us: self.longest_reclaim_us,
            last: self.last.iter().cloned().collect(),
        }
    }
}

/// Looks for NFs that stand still.
#[derive(Default)]
pub struct StuckWatch {
    watch: Watch,
    next: Option<Instant>,
}

impl StuckWatch {
    /// How an NF stands still now, if it does.
    #[must_use]
    pub fn stuck(&self, instance: u32) -> Option<Stuck> {
        self.watch.stuck(instance)
    }
}

impl Server {
    /// Looks for NFs that stand still, and does with them what their service says.
    pub(super) fn look_for_stuck(&mut self, now: Instant) -> Result<(), ServerError> {
        if self.draining || self.stuck.next.is_some_and(|next| now < next) {
            return Ok(());
        }
        self.stuck.next = Some(now + LOOK_EVERY);
        let registry = self.conductor.registry();
        // Once for all: there may be thousands of edges.
        let by_edges = self.conductor.edges().nfs_with_packets();
        let reading = |nf: &NfRecord| self.reading(nf, by_edges.contains(&nf.nf));
        let readings: Vec<_> = registry.nfs().map(reading).collect();
        let process = |instance| Process::read(registry.get(instance)?.pid);
        let (stuck, going) = self.stuck.watch.look(now, &readings, process);
        for instance in going {
            if let Some(nf) = self.conductor.registry().get(instance) {
                let service = self.service_name(nf);
                tracing::info!(instance, service, name = nf.name, "NF goes on");
            }
        }
        for (instance, stuck) in stuck {
            self.end_stuck(instance, stuck, now)?;
        }
        Ok(())
    }

    fn service_name(&self, nf: &NfRecord) -> String {
        let service = self.conductor.model().service(nf.service);
        service.map_or_else(|| nf.service.to_string(), |service| service.name().to_owned())
    }

    fn reading(&self, nf: &NfRecord, has_by_edge: bool) -> Reading {
        let channel = &nf.channel;
        let mut lanes = (0..channel.geometry().workers).filter_map(|lane| channel.remains(lane));
        let has_packets = has_by_edge || lanes.any(|(to_nf, _)| !to_nf.is_empty());
        let spec = self.conductor.model().service(nf.service).map(|service| &service.spec);
        let limit = spec.and_then(|spec| spec.stuck_after_ms).map(Duration::from_millis);
        Reading {
            instance: nf.instance,
            progress: channel.nf_counter(NfCounter::Progress),
            has_packets,
            limit: limit.unwrap_or(STUCK_AFTER),
        }
    }

    fn end_stuck(&mut self, instance: u32, stuck: Stuck, now: Instant) -> Result<(), ServerError> {
        let Some(nf) = self.conductor.registry().get(instance) else { return Ok(()) };
        let (pid, name, service) = (nf.pid, nf.name.clone(), self.service_name(nf));
        let spec = self.conductor.model().service(nf.service).map(|service| &service.spec);
        let wanted = spec.map_or(OnStuck::Report, |spec| spec.on_stuck);
        let policy = if stuck.why == Why::Starved { OnStuck::Report } else { wanted };
        let what = match policy {
            OnStuck::Report => "it is left alone",
            OnStuck::Restart => "it is killed, and started again",
            OnStuck::Kill => "it is killed for good",
        };
        tracing::warn!(instance, service, name, pid, "NF is stuck: {stuck}; {what}");
        if policy == OnStuck::Report {
            return Ok(());
        }
        // From here on it is a death like any other.
        let leader = self.supervisor.owner(pid).unwrap_or(pid);
        self.crashes.kills_stuck(leader, &stuck.to_string());
        let Some(nf) = self.conductor.registry().get(instance) else { return Ok(()) };
        if self.supervisor.owner(pid).is_some() {
            self.supervisor.kill_stuck(pid, policy == OnStuck::Restart, &stuck.to_string(), now);
            return Ok(());
        }
        let killed = nf.pidfd.as_ref().map(pidfd_kill);
        if let Some(Err(error)) = killed {
            tracing::warn!(instance, pid, %error, "a stuck NF cannot be killed: it is shut out");
            self.end_nf(instance, "it was stuck")?;
        }
        Ok(())
    }

    /// Notes the end of an NF that had not been told to go.
    pub(super) fn note_death(&mut self, nf: &NfRecord, why: &str) {
        if nf.state == NfState::Leaving {
            return;
        }
        let death = DeathStatus {
            instance: nf.instance,
            service: self.service_name(nf),
            pid: nf.pid,
            why: why.to_owned(),
            noticed_ns: self.woke_ns,
            reclaimed_ns: crate::status::now_ns(),
        };
        self.deaths.note(death);
    }
}
