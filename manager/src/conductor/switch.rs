//! One change from its plan to its end.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use nflib::control::{Applied, Change, Edit, ErrorCode, ErrorReply, Reply};

use super::requests::{Asked, Pending, RequestId, Scaling};
use super::rules::PreparedRules;
use super::{CONNECT_LIMIT, Conductor, NextInstances, miss, shapes};
use crate::change::Outcome;
use crate::edges::{Jumper, Pair, wanted_pairs};
use crate::fabric::{Fabric, FabricError};
use crate::journal::Step;
use crate::model::Model;
use crate::plan::builder::Wanted;
use crate::plan::delta::PathDelta;
use crate::plan::{NfNumber, Plan};
use crate::registry::{Leave, NfState};

/// Requests that are carried out as one change of plan, at most.
const MAX_TOGETHER: usize = 1024;

#[derive(Debug, Default)]
pub(super) enum State {
    #[default]
    Idle,
    Connecting(Connecting),
    Switching(Switching),
}

/// Somebody who waits for the change.
#[derive(Debug)]
struct Waiter {
    id: Option<RequestId>,
    applied: Applied,
    scales: Vec<Edit>,
}

/// What was asked for, put together.
struct Taken {
    model: Model,
    /// What led to it, for the journal.
    steps: Vec<Step>,
    waiters: Vec<Waiter>,
}

/// A change that is ready but for its edges.
#[derive(Debug)]
pub(super) struct Prepared {
    model: Model,
    plan: Arc<Plan>,
    delta: Arc<PathDelta>,
    rules: PreparedRules,
    next: NextInstances,
    steps: Vec<Step>,
    waiters: Vec<Waiter>,
    began: Instant,
    moved_share: f64,
}

#[derive(Debug)]
pub(super) struct Connecting {
    prepared: Prepared,
    /// Edges to open as soon as an earlier one of the same pair is gone.
    missing: BTreeSet<Pair>,
    /// NFs that have not said yet that they have their edges, with the number they will say.
    silent: Vec<(NfNumber, u64)>,
    opened: Vec<Pair>,
}

#[derive(Debug)]
pub(super) struct Switching {
    prepared: Prepared,
    outcomes: Vec<Outcome>,
}

impl Connecting {
    /// What will be wanted.
    pub(super) fn model(&self) -> &Model {
        &self.prepared.model
    }
}

impl Switching {
    /// What will be wanted.
    pub(super) fn model(&self) -> &Model {
        &self.prepared.model
    }
}

impl Conductor {
    /// Begins what waits, if anything does.
    pub(super) fn begin(&mut self, fabric: &mut Fabric, now: Instant) {
        if !self.replan && self.pending.is_empty() {
            return;
        }
        let replan = std::mem::take(&mut self.replan);
        let Taken { model, steps, mut waiters } = self.take_pending();
        if !replan && waiters.is_empty() {
            // All that was asked for was refused: nothing changes, not even the plan's number.
            return;
        }
        let next = self.next_instances(&model);
        let plan = match self.plan_for(&model, &next) {
            Ok(plan) => plan,
            Err(error) => return self.refuse(waiters, &error),
        };
        let delta = Arc::new(PathDelta::between(self.planner.current(), &plan));
        let moved_share = delta.moved_share();
        for waiter in &mut waiters {
            waiter.applied.moved_share = moved_share;
            waiter.applied.generation = plan.generation;
        }
        let rules = PreparedRules::between(&self.model, &model);
        let prepared =
            Prepared { model, plan, delta, rules, next, steps, waiters, began: now, moved_share };
        let connecting = self.open_edges(prepared, fabric.channel_geometry().ring_capacity);
        self.state = State::Connecting(connecting);
    }

    /// The wanted state after all that was asked for, and who waits for what. A request that cannot
    /// be met is answered at once, and changes nothing.
    fn take_pending(&mut self) -> Taken {
        let mut model = self.model.clone();
        let mut waiters = Vec::new();
        let mut steps = Vec::new();
        for _ in 0..MAX_TOGETHER {
            let Some(Pending { id, what }) = self.pending.pop_front() else { break };
            let result = match what {
                Asked::First(first) => Ok((first, Vec::new(), Vec::new(), Vec::new(), None)),
                Asked::Specs(specs) => {
                    Model::build(&specs, model.ports(), Some(&model)).map(|(next, notes)| {
                        (next, notes, Vec::new(), Vec::new(), Some(Step::Specs { specs }))
                    })
                }
                Asked::Edits(edits) => model.edit(&edits).map(|edited| {
                    let is_scale = |edit: &&Edit| matches!(edit, Edit::Scale { .. });
                    let scales: Vec<_> = edits.iter().filter(is_scale).cloned().collect();
                    let step = Step::Edits { edits };
                    (edited.model, edited.notes, edited.rule_ids, scales, Some(step))
                }),
            };
            let (next, notes, rule_ids, scales, step) = match result {
                Ok(parts) => parts,
                Err(error) => {
                    self.answer(id, Err(error.into()));
                    continue;
                }
            };
            let changes: Vec<Change> = Model::diff(&model, &next);
            let applied = Applied { changes, notes, rule_ids, ..Applied::default() };
            waiters.push(Waiter { id, applied, scales });
            steps.extend(step);
            model = next;
        }
        Taken { model, steps, waiters }
    }

    /// The plan for a wanted state; the one in force when nothing about paths changes.
    fn plan_for(&mut self, model: &Model, next: &NextInstances) -> Result<Arc<Plan>, ErrorReply> {
        let wanted = Wanted {
            chains: &shapes(model),
            miss: miss(model),
            instances: next.by_service.clone(),
        };
        self.planner
            .prepare(&wanted)
            .map_err(|error| ErrorReply { code: ErrorCode::Exhausted, message: error.to_string() })
    }

    fn refuse(&mut self, waiters: Vec<Waiter>, error: &ErrorReply) {
        tracing::warn!(%error, "the plan cannot follow");
        for waiter in waiters {
            self.answer(waiter.id, Err(error.clone()));
        }
    }

    /// The edges that a plan needs.
    fn wanted_pairs(&self, plan: &Plan) -> BTreeSet<Pair> {
        let trusted = |nf| self.registry.by_number(nf).is_some_and(|record| !record.isolated);
        let jumping = self.registry.nfs().filter(|record| !record.jumps.is_empty());
        let jumpers: Vec<_> =
            jumping.map(|nf| Jumper { nf: nf.nf, service: nf.service, jumps: &nf.jumps }).collect();
        wanted_pairs(plan, trusted, &jumpers)
    }

    /// Makes the edges that the plan needs and tells both ends of each.
    ///
    /// Two NFs that hand packets over through the manager now, for want of an edge, go on so: with an
    /// edge a packet would overtake those of its flow that are with the manager.
    fn open_edges(&mut self, prepared: Prepared, ring_capacity: u32) -> Connecting {
        let mut missing = self.wanted_pairs(&prepared.plan);
        let in_use = self.wanted_pairs(self.planner.current());
        missing.retain(|pair| !self.edges.is_open(*pair) && !in_use.contains(pair));
        let mut connecting =
            Connecting { prepared, missing, silent: Vec::new(), opened: Vec::new() };
        self.open_missing(&mut connecting, ring_capacity);
        connecting
    }

    /// Opens what is missing. An edge of an earlier plan between the same two that is still closing
    /// has to be gone first.
    fn open_missing(&mut self, connecting: &mut Connecting, ring_capacity: u32) {
        let mut ends = BTreeSet::new();
        for pair in std::mem::take(&mut connecting.missing) {
            if self.edges.get(pair).is_some() {
                connecting.missing.insert(pair);
                continue;
            }
            match self.open_edge(pair, ring_capacity) {
                Ok(()) => {
                    ends.extend([pair.0, pair.1]);
                    connecting.opened.push(pair);
                }
                Err(error) => {
                    tracing::warn!(%error, "no direct edge: packets pass the manager");
                    self.close_edges(&[pair]);
                }
            }
        }
        let asked = ends.into_iter().filter_map(|nf| Some((nf, self.ask_to_sync(nf)?)));
        connecting.silent.extend(asked);
    }

    fn open_edge(&mut self, pair: Pair, ring_capacity: u32) -> std::io::Result<()> {
        let edge = self.edges.open(pair, ring_capacity)?;
        let to_pusher = edge.ring.fd().try_clone_to_owned()?;
        let to_taker = edge.ring.fd().try_clone_to_owned()?;
        let (from, to) = pair;
        // The taker first: what is pushed is looked for.
        self.write(to, Reply::InEdge { nf: from, ring_capacity }, Some(to_taker));
        self.write(from, Reply::OutEdge { nf: to, ring_capacity }, Some(to_pusher));
        Ok(())
    }

    /// Closes edges, the pushing end first.
    pub(super) fn close_edges(&mut self, pairs: &[Pair]) {
        let mut ends = BTreeSet::new();
        for &(from, to) in pairs {
            let there = |nf| self.registry.by_number(nf).is_some();
            let (from_there, to_there) = (there(from), there(to));
            let tell = self.edges.close((from, to), from_there, to_there);
            if tell.from {
                self.write(from, Reply::CloseOutEdge { nf: to }, None);
                ends.insert(from);
            }
            if tell.to {
                self.write(to, Reply::CloseInEdge { nf: from }, None);
                ends.insert(to);
            }
        }
        for nf in ends {
            self.ask_to_sync(nf);
        }
    }

    /// Tells NFs to close edges by which nothing more comes.
    pub(super) fn close_in_edges(&mut self, pairs: &[Pair]) {
        let takers: BTreeSet<_> = pairs.iter().map(|&(_, to)| to).collect();
        for &(from, to) in pairs {
            self.write(to, Reply::CloseInEdge { nf: from }, None);
        }
        for nf in takers {
            self.ask_to_sync(nf);
        }
    }

    /// Waits for the NFs' word that they have their edges, then lets the workers switch.
    pub(super) fn connect(
        &mut self,
        mut connecting: Connecting,
        fabric: &mut Fabric,
        now: Instant,
    ) {
        self.open_missing(&mut connecting, fabric.channel_geometry().ring_capacity);
        connecting.silent.retain(|&(nf, token)| {
            self.registry.by_number(nf).is_some_and(|record| record.sync_answered < token)
        });
        let waited = now.saturating_duration_since(connecting.prepared.began);
        let ready = connecting.silent.is_empty() && connecting.missing.is_empty();
        if !ready && waited < CONNECT_LIMIT {
            self.state = State::Connecting(connecting);
            return;
        }
        if !ready {
            // An NF that is silent pushes through the manager: it is told to forget the edge in the
            // same breath as to use it, when it looks again. One that takes finds what was pushed then.
            let silent = |nf: NfNumber| connecting.silent.iter().any(|&(s, _)| s == nf);
            let opened = connecting.opened.iter().copied();
            let pairs: Vec<_> = opened.filter(|&(from, _)| silent(from)).collect();
            let nfs = connecting.silent.len();
            tracing::warn!(nfs, edges = pairs.len(), "NFs do not answer: no direct edges");
            self.close_edges(&pairs);
        }
        let prepared = connecting.prepared;
        let services = self.planner.services_by_slot().len();
        let rules = || prepared.rules.for_worker();
        fabric.begin_change(&prepared.plan, &prepared.delta, services, rules);
        self.planner.commit(Arc::clone(&prepared.plan));
        self.state = State::Switching(Switching { prepared, outcomes: Vec::new() });
    }

    /// Waits until every worker's old packets are out.
    pub(super) fn follow(
        &mut self,
        mut switching: Switching,
        fabric: &mut Fabric,
    ) -> Result<(), FabricError> {
        switching.outcomes.extend(fabric.take_outcomes());
        if fabric.is_changing() {
            self.state = State::Switching(switching);
            return Ok(());
        }
        let Switching { prepared, outcomes } = switching;
        self.note_outcomes(&outcomes);
        self.model = prepared.model;
        self.model_changed = true;
        self.made.extend(prepared.steps);
        let model = &self.model;
        self.states.retain(|service| model.service(service).is_some());
        self.drain_differently_isolated();
        for instance in prepared.next.joining {
            if let Some(record) = self.registry.get_mut(instance)
                && record.state == NfState::Joining
            {
                record.state = NfState::Running;
            }
        }
        for instance in prepared.next.leaving {
            self.let_go(instance, fabric)?;
        }
        let surplus = self.edges.surplus(&self.wanted_pairs(self.planner.current()));
        if !self.stale {
            self.close_edges(&surplus);
        }
        self.lend(fabric)?;
        self.answer_waiters(prepared.waiters, prepared.began, prepared.moved_share);
        // Instances that were to wait for this step.
        let now = self.next_instances(&self.model);
        self.replan |= !now.joining.is_empty() || !now.leaving.is_empty();
        Ok(())
    }

    fn note_outcomes(&mut self, outcomes: &[Outcome]) {
        let in_order = outcomes.iter().all(|outcome| outcome.in_order);
        self.stale = !in_order;
        if in_order {
            self.planner.retire();
        } else {
            self.history.unordered_changes += 1;
        }
        for outcome in outcomes {
            self.history.parked_pkts += outcome.parked_pkts;
            let waited_us = u64::try_from(outcome.waited.as_micros()).unwrap_or(u64::MAX);
            self.history.longest_wait_us = self.history.longest_wait_us.max(waited_us);
        }
    }

    /// An NF that no packet leads to any more may go.
    fn let_go(&mut self, instance: u32, fabric: &mut Fabric) -> Result<(), FabricError> {
        let Some(record) = self.registry.get_mut(instance) else { return Ok(()) };
        let why = std::mem::replace(&mut record.state, NfState::Leaving);
        let nf = record.nf;
        fabric.close_nf(nf)?;
        let reply = match why {
            NfState::Draining(Leave::Asked) => Reply::Detached,
            NfState::Draining(Leave::Told(reason)) => Reply::Stop { reason },
            _ => Reply::Stop { reason: "its service is not wanted any more".to_owned() },
        };
        self.write(nf, reply, None);
        self.ring(instance);
        Ok(())
    }

    fn answer_waiters(&mut self, waiters: Vec<Waiter>, began: Instant, moved_share: f64) {
        let took = began.elapsed();
        // A change of plan without a move is an NF that leaves after its flows, or an edit meanwhile.
        for scaling in self.scalings.iter_mut().filter(|_| moved_share > 0.0) {
            scaling.applied.moves.push(moved_share);
            scaling.applied.moved_share = scaling.applied.moved_share.max(moved_share);
        }
        for Waiter { id, mut applied, scales } in waiters {
            applied.took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            let scaled = scales.iter().find_map(|edit| match edit {
                Edit::Scale { service, instances } => {
                    let service = self.model.find_service(service).ok()?;
                    service.wanted_instances()?;
                    Some((service.id, *instances))
                }
                _ => None,
            });
            match (id, scaled) {
                (Some(id), Some((service, instances))) => {
                    applied.moves.clear();
                    self.scalings.push(Scaling { id, service, instances, applied, began });
                }
                _ => self.answer(id, Ok(applied)),
            }
        }
    }
}
