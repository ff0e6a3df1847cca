//! Changes of what runs: every one of them, by whoever asks, goes through here, one after the other.
//!
//! ```text
//!          something asked for, or NFs that come, go or die
//! Idle ──► plan ──► Connecting: edges that the plan needs, each NF says it has them
//!  ▲                     │
//!  │                     ▼
//!  └── finish ◄── Switching: workers follow the plan; old packets come out, parked ones go
//! ```
//! Until *Switching* nothing has changed for any packet, and everything that can fail has been tried:
//! a change is carried out as a whole or not at all.
//!
//! The control thread calls [`Conductor::turn`] whenever something may have happened; nothing here
//! waits.
#![forbid(unsafe_code)]

mod arrivals;
mod departures;
mod loans;
mod requests;
mod rules;
mod states;
mod switch;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nflib::control::{PlanStatus, Reply};
use nflib::descriptor::ServiceId;

use crate::edges::Edges;
use crate::fabric::{Fabric, FabricError};
use crate::journal::Step;
use crate::model::{Model, Unmatched};
use crate::plan::builder::Planner;
use crate::plan::{ChainShape, Instances, Miss, NfNumber};
use crate::registry::{NfRecord, NfState, Registry};

pub use requests::{Answer, RequestId};
use requests::{Pending, Scaling};
use states::States;
use switch::State;

/// How long NFs may take to say that they have their new edges.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// Instances of a service up to which they join and leave one at a time, so that each step moves the
/// fewest flows.
const ONE_AT_A_TIME: usize = 16;

/// A message to an NF.
#[derive(Debug)]
pub struct Letter {
    /// The instance.
    pub instance: u32,
    /// The message.
    pub reply: Reply,
    /// A descriptor to send along.
    pub fd: Option<OwnedFd>,
}

/// Brings what runs to what is wanted.
pub struct Conductor {
    model: Model,
    planner: Planner,
    registry: Registry,
    edges: Edges,
    states: States,
    state: State,
    /// Instances came, went or are to go: the plan must follow.
    replan: bool,
    pending: VecDeque<Pending>,
    scalings: Vec<Scaling>,
    answers: Vec<Answer>,
    letters: Vec<Letter>,
    model_changed: bool,
    /// What made the wanted state what it is, since somebody asked.
    made: Vec<Step>,
    last_sync: u64,
    /// Service slots of NFs that are gone while neighbours may still push towards them.
    departed: BTreeMap<NfNumber, u16>,
    history: PlanStatus,
    /// An older plan's packets may still be inside: its routes stay.
    stale: bool,
}

impl Conductor {
    /// Share of its service's flows that an NF gets, 0 to 1.
    #[must_use]
    pub fn flow_share(&self, nf: &NfRecord) -> f64 {
        match self.planner.current().service(nf.service).map(|service| &service.instances) {
            Some(Instances::One(only)) if *only == nf.nf => 1.0,
            Some(Instances::Many(buckets)) => buckets.share_of(nf.nf),
            _ => 0.0,
        }
    }

    /// A conductor for what the configuration says. The first plan is made by the first turn.
    ///
    /// # Errors
    /// Those of memfd_create(2) and mmap(2).
    pub fn new(model: Model) -> io::Result<Self> {
        Ok(Self {
            planner: Planner::new()?,
            registry: Registry::new()?,
            edges: Edges::default(),
            states: States::default(),
            state: State::Idle,
            replan: true,
            pending: VecDeque::from([Pending::first(model)]),
            model: Model::default(),
            scalings: Vec::new(),
            answers: Vec::new(),
            letters: Vec::new(),
            model_changed: false,
            made: Vec::new(),
            last_sync: 0,
            departed: BTreeMap::new(),
            history: PlanStatus::default(),
            stale: false,
        })
    }

    /// What is wanted, as far as it is in force.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The NFs.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The direct edges.
    #[must_use]
    pub fn edges(&self) -> &Edges {
        &self.edges
    }

    /// The NFs' state regions.
    #[must_use]
    pub fn states(&self) -> &States {
        &self.states
    }

    /// The plan maker.
    #[must_use]
    pub fn planner(&self) -> &Planner {
        &self.planner
    }

    /// How changes went so far.
    #[must_use]
    pub fn history(&self) -> PlanStatus {
        PlanStatus {
            generation: self.planner.current().generation,
            changing: !matches!(self.state, State::Idle),
            ..self.history.clone()
        }
    }

    /// Whether what is wanted has changed since the last call.
    pub fn take_model_changed(&mut self) -> bool {
        std::mem::take(&mut self.model_changed)
    }

    /// The steps by which what is wanted has changed since the last call, in order; taken before the
    /// answers, so that nothing is answered that is not written down.
    pub fn take_made(&mut self) -> Vec<Step> {
        std::mem::take(&mut self.made)
    }

    /// Messages to send to NFs, oldest first.
    pub fn take_letters(&mut self) -> Vec<Letter> {
        std::mem::take(&mut self.letters)
    }

    /// Requests that are done, well or badly.
    pub fn take_answers(&mut self) -> Vec<Answer> {
        std::mem::take(&mut self.answers)
    }

    /// Goes on with what is under way, and begins what waits.
    ///
    /// # Errors
    /// [`FabricError::WorkerLost`].
    pub fn turn(&mut self, fabric: &mut Fabric, now: Instant) -> Result<(), FabricError> {
        self.reclaim_orphans(fabric)?;
        // Each step may make the next one possible.
        for _ in 0..3 {
            match std::mem::take(&mut self.state) {
                State::Idle => self.begin(fabric, now),
                State::Connecting(connecting) => self.connect(connecting, fabric, now),
                State::Switching(switching) => self.follow(switching, fabric)?,
            }
        }
        self.finish_scalings(now);
        Ok(())
    }

    /// When [`turn`](Self::turn) should be called though nothing happened.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !matches!(self.state, State::Idle) || self.replan || !self.pending.is_empty()
    }

    /// NFs that owe an answer for longer than `limit`. Edges to them cannot be closed, and their
    /// neighbours' numbers not be used again: one that is silent for ever would use up all.
    #[must_use]
    pub fn silent_for(&self, limit: Duration, now: Instant) -> Vec<u32> {
        let is_silent = |nf: &&NfRecord| {
            nf.asked_since.is_some_and(|since| now.saturating_duration_since(since) > limit)
        };
        self.registry.nfs().filter(is_silent).map(|nf| nf.instance).collect()
    }

    /// Says which NFs returned what they should not since the last call.
    pub fn report_violations(&mut self) {
        let model = &self.model;
        for nf in self.registry.nfs_mut() {
            let Some((new, all)) = nf.new_violations() else { continue };
            let service = model.service(nf.service).map_or("", |service| service.name());
            let (instance, name) = (nf.instance, &nf.name);
            tracing::warn!(instance, service, name, new, all, "an NF broke the rules");
        }
    }

    /// Requests that wait for the change under way.
    #[must_use]
    pub fn waiting_requests(&self) -> usize {
        self.pending.len()
    }

    fn write(&mut self, nf: NfNumber, reply: Reply, fd: Option<OwnedFd>) {
        if let Some(record) = self.registry.by_number(nf) {
            self.letters.push(Letter { instance: record.instance, reply, fd });
        }
    }

    /// Asks an NF to say when it has acted on everything it was told.
    fn ask_to_sync(&mut self, nf: NfNumber) -> Option<u64> {
        self.last_sync += 1;
        let token = self.last_sync;
        let record = self.registry.by_number_mut(nf)?;
        record.sync_sent = token;
        record.asked_since.get_or_insert_with(Instant::now);
        let letter = Letter { instance: record.instance, reply: Reply::Sync { token }, fd: None };
        record.bell.ring();
        self.letters.push(letter);
        Some(token)
    }

    /// Rings the NFs that have messages, once those are sent: a sleeper looks at its socket then.
    pub fn ring(&self, instance: u32) {
        if let Some(record) = self.registry.get(instance) {
            record.bell.ring();
        }
    }

    /// An NF has acted on everything up to a [`Reply::Sync`].
    pub fn synced(&mut self, instance: u32, token: u64) {
        let Some(record) = self.registry.get_mut(instance) else { return };
        // A number that was never sent is another process's fancy.
        if token > record.sync_sent {
            return;
        }
        record.sync_answered = record.sync_answered.max(token);
        record.asked_since = (record.sync_answered < record.sync_sent).then(Instant::now);
        if record.sync_answered == record.sync_sent {
            let nf = record.nf;
            let silent_now = self.edges.synced(nf);
            self.close_in_edges(&silent_now);
        }
    }

    /// The instances that the next plan names, by service; and those that come and go with it.
    fn next_instances(&self, model: &Model) -> NextInstances {
        let mut next = NextInstances::default();
        let mut by_service: BTreeMap<ServiceId, Vec<(u32, NfNumber, &NfState)>> = BTreeMap::new();
        for record in self.registry.nfs() {
            let entry = (record.instance, record.nf, &record.state);
            by_service.entry(record.service).or_default().push(entry);
        }
        for (service, nfs) in by_service {
            let is =
                |wanted: fn(&NfState) -> bool| move |nf: &&(u32, NfNumber, &NfState)| wanted(nf.2);
            let running: Vec<_> = nfs.iter().filter(is(|s| *s == NfState::Running)).collect();
            let joining: Vec<_> = nfs.iter().filter(is(|s| *s == NfState::Joining)).collect();
            let draining: Vec<_> =
                nfs.iter().filter(is(|s| matches!(s, NfState::Draining(_)))).collect();
            if model.service(service).is_none() {
                // The service went: so do its NFs.
                next.leaving.extend(nfs.iter().filter(is(|s| *s != NfState::Leaving)).map(|n| n.0));
                continue;
            }
            let present = running.len() + draining.len();
            let step = if (1..ONE_AT_A_TIME).contains(&present) { 1 } else { usize::MAX };
            let leaving = draining.iter().take(step);
            let staying = draining.iter().skip(step);
            // One step at a time: whoever joins waits until nobody leaves.
            let joining: Vec<_> = if draining.is_empty() {
                joining.into_iter().take(step).collect()
            } else if running.is_empty() {
                // Nobody else could take the flows.
                joining
            } else {
                Vec::new()
            };
            next.leaving.extend(leaving.map(|nf| nf.0));
            next.joining.extend(joining.iter().map(|nf| nf.0));
            let mut numbers: Vec<_> =
                running.iter().chain(&joining).chain(staying).map(|nf| nf.1).collect();
            numbers.sort_unstable();
            if !numbers.is_empty() {
                next.by_service.insert(service, numbers);
            }
        }
        next
    }
}

#[derive(Debug, Default)]
struct NextInstances {
    by_service: BTreeMap<ServiceId, Vec<NfNumber>>,
    joining: Vec<u32>,
    leaving: Vec<u32>,
}

fn shapes(model: &Model) -> Vec<ChainShape> {
    model.chains().map(|chain| ChainShape::of(chain)).collect()
}

fn miss(model: &Model) -> Miss {
    match model.unmatched() {
        Unmatched::Egress => Miss::Egress,
        Unmatched::Chain(chain) => Miss::Chain(chain),
        Unmatched::NoRule => Miss::Drop,
    }
}
