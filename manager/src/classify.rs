//! Which way a packet goes: the flow table, as the worker uses it.
#![forbid(unsafe_code)]

use nflib::descriptor::{ChainId, PortId};
use nflib::shm::Region;

use crate::plan::{Miss, Plan};
use crate::ports::PortPacket;
use crate::stats::DropReason;

/// What the flow table says of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Through a chain.
    Chain(ChainId),
    /// Straight to the egress port of its ingress port.
    Egress,
    /// Straight out by a port.
    Out(PortId),
    /// Away with it.
    Drop(DropReason),
}

pub type Key = ();

#[derive(Clone, Debug, Default)]
pub struct RuleChanges;

impl RuleChanges {
    pub fn between(_old: &crate::model::Model, _new: &crate::model::Model, _before: &Plan, _after: &Plan) -> Self {
        Self
    }
}

#[derive(Debug, Default)]
pub struct ChangedRules;

impl ChangedRules {
    pub fn concern(&self, _key: Option<&Key>) -> bool {
        false
    }
}

/// The flow table of one worker.
#[derive(Debug, Default)]
pub struct Classifier {
    miss: Option<Verdict>,
}

impl Classifier {
    pub fn classify(
        &mut self,
        _region: &Region,
        plan: &Plan,
        _ingress: PortId,
        _packets: &mut [PortPacket],
    ) {
        self.miss = Some(miss_verdict(plan));
    }

    pub fn verdict(&self, _at: usize) -> Verdict {
        self.miss.unwrap_or(Verdict::Egress)
    }

    pub fn key(&self, _at: usize) -> Option<&Key> {
        None
    }

    pub fn apply(&mut self, _changes: RuleChanges) -> ChangedRules {
        ChangedRules
    }
}

fn miss_verdict(plan: &Plan) -> Verdict {
    match plan.miss {
        Miss::Egress => Verdict::Egress,
        Miss::Chain(chain) => Verdict::Chain(chain),
        Miss::Drop => Verdict::Drop(DropReason::NoRule),
    }
}
