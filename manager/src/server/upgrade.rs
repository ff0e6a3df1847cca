//! The exchange of a service's NFs for those of another command, tried out first.
//!
//! ```text
//!             new ones start, attach and live for a while, without flows
//!  starting ──► warming up ──► switching ──► probation ──► committing ──► retiring ──► answered
//!      │             │             │        new: flows      the new command   the old ones
//!      └─────────────┴─────────────┴────────old: stand by   is what is wanted  leave
//!                    a new one fails ──► rolling back: the old ones have the flows again
//! ```
//! Switching and rolling back are one change of plan each: nothing is lost or reordered by them. What a
//! new one held when it died is lost, and counted.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use nflib::control::{Applied, Edit, ErrorCode, ErrorReply, Reply, ServiceRef, UpgradeStatus};
use nflib::descriptor::ServiceId;

use super::{Server, refusal};
use crate::conductor::{Answer, RequestId};
use crate::model::Service;
use crate::registry::NfState;
use crate::supervisor::{Event, Wanted, What};

/// How long new instances may take to attach.
const ATTACH_LIMIT: Duration = Duration::from_secs(10);
/// How long they live without flows before they get some: whoever fails at once loses nothing. Less
/// when the probation is shorter.
const WARM_UP: Duration = Duration::from_millis(500);
/// How long a change of plan may take.
const SWITCH_LIMIT: Duration = Duration::from_secs(10);
/// How long those that go may take, until the answer is given all the same.
const RETIRE_LIMIT: Duration = Duration::from_secs(15);
/// How long the reason of an end may take to follow the end.
const REASON_LIMIT: Duration = Duration::from_millis(200);
/// Longest probation.
const MAX_PROBATION_MS: u64 = 3_600_000;
/// Most processes started in one turn.
const MAX_STARTS: usize = 8;
/// Between two looks while one is under way.
pub(super) const LOOK_EVERY_MS: u8 = 5;

/// One that is under way.
pub(super) struct Upgrade {
    /// The connection that waits for the answer.
    asker: u64,
    /// The service as it was.
    before: std::sync::Arc<Service>,
    /// What the new instances are started for.
    wanted: Wanted,
    probation: Duration,
    /// The new processes that live, with their instance ids once they are attached.
    new: BTreeMap<i32, Option<u32>>,
    /// All instances that were new: a process's end may be noticed before its instance's.
    tried: BTreeSet<u32>,
    phase: Phase,
    began: Instant,
    /// Since the phase began.
    since: Instant,
}

#[derive(Debug)]
enum Phase {
    Starting,
    WarmingUp,
    Switching,
    Probation,
    Committing(RequestId),
    Retiring(Box<Applied>),
    RollingBack {
        why: String,
        /// The process whose end will tell more, if one is known by its end only.
        of: Option<i32>,
        /// The new ones were told to go.
        ended: bool,
    },
}

impl Phase {
    fn name(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::WarmingUp => "warming up",
            Self::Switching => "switching",
            Self::Probation | Self::Committing(_) => "probation",
            Self::Retiring(_) => "retiring",
            Self::RollingBack { .. } => "rolling back",
        }
    }
}

impl Upgrade {
    fn enter(&mut self, phase: Phase, now: Instant) {
        tracing::info!(service = self.before.name(), "upgrade: {}", phase.name());
        (self.phase, self.since) = (phase, now);
    }

    fn service(&self) -> ServiceId {
        self.before.id
    }

    fn new_instances(&self) -> impl Iterator<Item = u32> + '_ {
        self.new.values().copied().flatten()
    }

    pub(super) fn status(&self) -> (ServiceId, UpgradeStatus) {
        let status = UpgradeStatus {
            phase: self.phase.name().to_owned(),
            command: self.wanted.command.clone(),
            instances: self.new_instances().collect(),
            since_s: self.began.elapsed().as_secs_f64(),
        };
        (self.service(), status)
    }
}

impl Server {
    /// Begins an exchange, or says why not.
    pub(super) fn upgrade(
        &mut self,
        id: u64,
        service: &ServiceRef,
        command: Vec<String>,
        probation_ms: u64,
    ) {
        match self.check_upgrade(service, &command, probation_ms) {
            Err(error) => self.connections.send(id, &Reply::Error(error)),
            Ok((before, wanted)) => {
                let now = Instant::now();
                let mut upgrade = Upgrade {
                    asker: id,
                    before,
                    wanted,
                    probation: Duration::from_millis(probation_ms),
                    new: BTreeMap::new(),
                    tried: BTreeSet::new(),
                    phase: Phase::Starting,
                    began: now,
                    since: now,
                };
                upgrade.enter(Phase::Starting, now);
                self.upgrade = Some(upgrade);
            }
        }
    }

    fn check_upgrade(
        &self,
        service: &ServiceRef,
        command: &[String],
        probation_ms: u64,
    ) -> Result<(std::sync::Arc<Service>, Wanted), ErrorReply> {
        let refuse = |code, message| Err(ErrorReply { code, message });
        if self.draining {
            return refuse(ErrorCode::Stopping, "the manager is stopping".to_owned());
        }
        if let Some(other) = &self.upgrade {
            return refuse(
                ErrorCode::Invalid,
                format!(
                    "service {:?} is being upgraded ({}); one at a time: try again when that is done",
                    other.before.name(),
                    other.phase.name()
                ),
            );
        }
        if probation_ms > MAX_PROBATION_MS {
            let message =
                format!("a probation of {probation_ms} ms: expected at most {MAX_PROBATION_MS}");
            return refuse(ErrorCode::Invalid, message);
        }
        let model = self.conductor.model();
        let before = model.startable(service)?.clone();
        let name = before.name();
        // Checked as what it is to become.
        let command = command.to_vec();
        let edit = Edit::SetCommand { service: ServiceRef::Id(before.id), command };
        let after = model.edit(&[edit])?.model;
        let wanted = after.service(before.id).and_then(|s| Wanted::of(s.id, &s.spec));
        let Some(wanted) = wanted.filter(|wanted| wanted.instances > 0) else {
            let message = format!(
                "service {name:?} has no instances: scale it first, or apply a file with the new \
                 command"
            );
            return refuse(ErrorCode::Invalid, message);
        };
        if Some(&wanted) == Wanted::of(before.id, &before.spec).as_ref() {
            let message = format!("service {name:?} runs by this command already");
            return refuse(ErrorCode::Invalid, message);
        }
        Ok((before, wanted))
    }

    /// Why edits have to wait, if they are about the service that is being exchanged.
    pub(super) fn disturbs_upgrade(&self, edits: &[Edit]) -> Option<ErrorReply> {
        let upgrade = self.upgrade.as_ref()?;
        let is_about = |service| {
            let found = self.conductor.model().find_service(service);
            found.is_ok_and(|service| service.id == upgrade.service())
        };
        let disturbs = edits.iter().any(|edit| match edit {
            Edit::Scale { service, .. } | Edit::SetCommand { service, .. } => is_about(service),
            _ => false,
        });
        disturbs.then(|| {
            let (name, phase) = (upgrade.before.name(), upgrade.phase.name());
            let message = format!(
                "service {name:?} is being upgraded ({phase}): try again when that is done"
            );
            ErrorReply { code: ErrorCode::Invalid, message }
        })
    }

    /// An NF has attached: those of a service that is being exchanged may have to stand by.
    pub(super) fn attached_while_upgrading(&mut self, pid: i32, instance: u32, of: ServiceId) {
        let Some(upgrade) = self.upgrade.as_mut().filter(|upgrade| upgrade.service() == of) else {
            return;
        };
        let leader = self.supervisor.owner(pid).unwrap_or(pid);
        let stands_by = match upgrade.new.get_mut(&leader) {
            Some(known) => {
                *known = Some(instance);
                upgrade.tried.insert(instance);
                !matches!(upgrade.phase, Phase::Committing(_) | Phase::Retiring(_))
            }
            // An old one that was started again: it waits like the others.
            None => matches!(
                upgrade.phase,
                Phase::Switching | Phase::Probation | Phase::Committing(_) | Phase::Retiring(_)
            ),
        };
        if stands_by {
            self.conductor.stand_by([instance]);
        }
    }

    /// A process has ended: if it is one on trial, the trial is over.
    pub(super) fn ended_while_upgrading(&mut self, event: &Event) {
        let What::Exited { pid, how, said, .. } = &event.what else { return };
        let Some(upgrade) = &mut self.upgrade else { return };
        if upgrade.new.remove(pid).is_none() {
            return;
        }
        let said = said.as_ref().map_or_else(String::new, |said| format!(": {said}"));
        let told = format!("a new instance has ended: {how}{said}");
        match &mut upgrade.phase {
            Phase::RollingBack { why, of, .. } => {
                if of.take_if(|of| of == pid).is_some() {
                    *why = told;
                }
            }
            Phase::Committing(_) | Phase::Retiring(_) => {}
            _ => self.roll_back(told, None),
        }
    }

    /// An answer of the conductor to this machinery itself. False: it is somebody else's.
    pub(super) fn answered_while_upgrading(&mut self, answer: &Answer) -> bool {
        let Some(upgrade) = &mut self.upgrade else { return false };
        if !matches!(upgrade.phase, Phase::Committing(id) if id == answer.id) {
            return false;
        }
        match &answer.result {
            Ok(applied) => {
                let applied = Applied { moved_share: 1.0, ..applied.clone() };
                upgrade.enter(Phase::Retiring(Box::new(applied)), Instant::now());
            }
            Err(error) => self.roll_back(error.message.clone(), None),
        }
        true
    }

    /// Goes on with the exchange under way. Before the conductor's turn: what fails here is made good
    /// by its next plan.
    pub(super) fn advance_upgrade(&mut self, now: Instant) {
        let Some(mut upgrade) = self.upgrade.take() else { return };
        let done = match &upgrade.phase {
            Phase::Starting => self.start_new(&mut upgrade, now),
            Phase::WarmingUp => self.warm_up(&mut upgrade, now),
            Phase::Switching => self.switch(&mut upgrade, now),
            Phase::Probation => self.watch(&mut upgrade, now),
            // From here on they are what is wanted, and looked after as such.
            Phase::Committing(_) => Ok(()),
            Phase::Retiring(_) => return self.retire(upgrade, now),
            Phase::RollingBack { .. } => return self.finish_roll_back(upgrade, now),
        };
        self.upgrade = Some(upgrade);
        if let Err((why, of)) = done {
            self.roll_back(why, of);
        }
    }

    fn start_new(&mut self, upgrade: &mut Upgrade, now: Instant) -> Result<(), Fault> {
        let missing = (upgrade.wanted.instances as usize).saturating_sub(upgrade.new.len());
        for _ in 0..missing.min(MAX_STARTS) {
            let pid = self.supervisor.try_out(&upgrade.wanted);
            upgrade.new.insert(pid.map_err(|why| (why, None))?, None);
        }
        self.find_fault(upgrade).map_or(Ok(()), Err)?;
        if missing == 0 && upgrade.new.values().all(Option::is_some) {
            upgrade.enter(Phase::WarmingUp, now);
        } else if now.saturating_duration_since(upgrade.since) > ATTACH_LIMIT {
            let attached = upgrade.new_instances().count();
            let (wanted, limit) = (upgrade.wanted.instances, ATTACH_LIMIT.as_secs());
            let why = format!("{attached} of {wanted} new instances are attached after {limit} s");
            return Err((why, None));
        }
        Ok(())
    }

    fn warm_up(&mut self, upgrade: &mut Upgrade, now: Instant) -> Result<(), Fault> {
        self.find_fault(upgrade).map_or(Ok(()), Err)?;
        if now.saturating_duration_since(upgrade.since) >= WARM_UP.min(upgrade.probation) {
            // One change of plan gives all flows of the old ones to the new ones.
            self.conductor.stand_by(self.old_instances(upgrade));
            self.conductor.call_up(upgrade.new_instances());
            upgrade.enter(Phase::Switching, now);
        }
        Ok(())
    }

    fn switch(&mut self, upgrade: &mut Upgrade, now: Instant) -> Result<(), Fault> {
        self.find_fault(upgrade).map_or(Ok(()), Err)?;
        let registry = self.conductor.registry();
        let runs = |instance| registry.get(instance).is_some_and(|nf| nf.state == NfState::Running);
        if upgrade.new_instances().all(runs) {
            upgrade.enter(Phase::Probation, now);
        } else if now.saturating_duration_since(upgrade.since) > SWITCH_LIMIT {
            let limit = SWITCH_LIMIT.as_secs();
            return Err((format!("the plan does not follow within {limit} s"), None));
        }
        Ok(())
    }

    fn watch(&mut self, upgrade: &mut Upgrade, now: Instant) -> Result<(), Fault> {
        self.find_fault(upgrade).map_or(Ok(()), Err)?;
        if now.saturating_duration_since(upgrade.since) >= upgrade.probation {
            let request = self.asking.of_nobody();
            let service = ServiceRef::Id(upgrade.service());
            let command = upgrade.wanted.command.clone();
            self.conductor.ask_edits(request, vec![Edit::SetCommand { service, command }]);
            upgrade.enter(Phase::Committing(request), now);
        }
        Ok(())
    }

    /// Why the exchange cannot go on, if it cannot.
    fn find_fault(&self, upgrade: &Upgrade) -> Option<Fault> {
        let now = self.conductor.model().service(upgrade.service());
        if now.is_none_or(|now| **now != *upgrade.before) {
            return Some(("its entry was changed meanwhile".to_owned(), None));
        }
        upgrade.new.iter().find_map(|(pid, instance)| {
            let why = match self.conductor.registry().get((*instance)?).map(|nf| &nf.state) {
                None => "has gone",
                Some(NfState::Draining(_) | NfState::Leaving) => "leaves",
                Some(_) => return None,
            };
            Some((format!("a new instance (pid {pid}) {why}"), Some(*pid)))
        })
    }

    fn old_instances(&self, upgrade: &Upgrade) -> Vec<u32> {
        let nfs = self.conductor.registry().nfs().filter(|nf| nf.service == upgrade.service());
        let instances = nfs.map(|nf| nf.instance);
        instances.filter(|instance| !upgrade.tried.contains(instance)).collect()
    }

    /// Gives the flows back to the old ones, by the next plan.
    fn roll_back(&mut self, why: String, of: Option<i32>) {
        let Some(mut upgrade) = self.upgrade.take() else { return };
        tracing::warn!(service = upgrade.before.name(), why, "upgrade fails");
        self.conductor.stand_by(upgrade.tried.iter().copied());
        self.conductor.call_up(self.old_instances(&upgrade));
        upgrade.enter(Phase::RollingBack { why, of, ended: false }, Instant::now());
        self.upgrade = Some(upgrade);
    }

    /// Ends the new ones when the old ones have the flows, then answers.
    fn finish_roll_back(&mut self, mut upgrade: Upgrade, now: Instant) {
        let Phase::RollingBack { why, of, ended } = &mut upgrade.phase else { return };
        let took = now.saturating_duration_since(upgrade.since);
        let moved = !self.conductor.is_busy() || took > SWITCH_LIMIT;
        if moved && !*ended {
            *ended = true;
            upgrade.new.keys().for_each(|pid| self.supervisor.end_trial(*pid));
        }
        let wait_for_reason = of.is_some() && took < REASON_LIMIT;
        let all_gone = upgrade.new.keys().all(|pid| self.supervisor.owner(*pid).is_none());
        if *ended && !wait_for_reason && (all_gone || took > RETIRE_LIMIT) {
            let message = format!(
                "service {:?} is not upgraded: {why}; the old instances serve on",
                upgrade.before.name()
            );
            self.connections.send(upgrade.asker, &refusal(ErrorCode::Invalid, message));
        } else {
            self.upgrade = Some(upgrade);
        }
    }

    /// Answers when the old ones are gone.
    fn retire(&mut self, mut upgrade: Upgrade, now: Instant) {
        let state = self.supervisor.state(upgrade.service());
        let leaving = state.is_some_and(|state| state.leaving > 0);
        let took = now.saturating_duration_since(upgrade.since);
        // The supervisor hears of the new command with this turn; those that are stale are told then.
        let told = took > Duration::from_millis(u64::from(LOOK_EVERY_MS) * 2);
        let Phase::Retiring(applied) = &mut upgrade.phase else { return };
        if told && (!leaving || took > RETIRE_LIMIT) {
            let all = now.saturating_duration_since(upgrade.began);
            applied.took_us = u64::try_from(all.as_micros()).unwrap_or(u64::MAX);
            self.connections.send(upgrade.asker, &Reply::Applied(*applied.clone()));
        } else {
            self.upgrade = Some(upgrade);
        }
    }

    /// The manager ends: nothing is tried any more.
    pub(super) fn abandon_upgrade(&mut self) {
        if let Some(upgrade) = self.upgrade.take() {
            let reply = refusal(ErrorCode::Stopping, "the manager is stopping");
            self.connections.send(upgrade.asker, &reply);
        }
    }
}

/// Why, and the process whose end may tell more.
type Fault = (String, Option<i32>);
