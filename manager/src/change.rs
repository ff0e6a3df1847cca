//! A change of plan, as the control thread orders it and a worker reports it.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use crate::classify::RuleChanges;
use crate::plan::Plan;
use crate::plan::delta::PathDelta;
use crate::stats::DropCounters;

/// What a worker needs to follow a new plan.
#[derive(Debug)]
pub struct Change {
    /// The plan.
    pub plan: Arc<Plan>,
    /// Which flows move.
    pub delta: Arc<PathDelta>,
    /// Rules that come and go.
    pub rules: RuleChanges,
    /// Counters of services that this worker does not know yet, in the order of their slots.
    pub new_services: Vec<Arc<DropCounters>>,
}

/// How a change went at one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The plan's generation.
    pub generation: u64,
    /// Packets that waited.
    pub parked_pkts: u64,
    /// How long the old packets took to come out.
    pub waited: Duration,
    /// They were all out before the parked ones went: no packet overtook another of its flow, and no
    /// packet travels a route of an older plan any more.
    pub in_order: bool,
}
