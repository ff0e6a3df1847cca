//! A change of plan at one worker: no packet is lost by it, and none overtakes another of its flow.
//!
//! From the instant of the change, new packets follow the new plan. A packet whose path is another
//! one than before could overtake those of its flow that are still on the old path. So it is parked,
//! and so are all after it that are like it; when the last packet of the old plan has come out,
//! the parked ones go, in order. Flows whose path stays as it was do not wait.
//!
//! A packet that an NF sends to a service can reach one that its route does not name. If it is that
//! service whose instances change, the packet is parked there, not where it came in.
//!
//! An NF that keeps packets cannot hold a change up for ever: after [`PATIENCE`] the parked ones go
//! all the same, and the change is reported as one that may have cost order.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nflib::descriptor::{PortId, ServiceId};
use nflib::shm::BufferIndex;

use crate::change::Outcome;
use crate::classify::{ChangedRules, Verdict};
use crate::flow::FlowKey;
use crate::ownership::Passage;
use crate::plan::Plan;
use crate::plan::delta::PathDelta;
use crate::ports::PortPacket;

/// How long packets of the old plan may take to come out, unless a worker is told otherwise.
pub const PATIENCE: Duration = Duration::from_millis(300);

/// A packet that waits.
#[derive(Clone, Copy, Debug)]
pub struct Parked {
    /// The packet.
    pub packet: PortPacket,
    /// What it waits to do.
    pub next: Next,
}

/// What a packet waits to do.
#[derive(Clone, Copy, Debug)]
pub enum Next {
    /// To begin its path.
    Enter {
        /// The port it came in by.
        ingress: PortId,
        /// What the new rules say of it.
        verdict: Verdict,
    },
    /// To go to the service that an NF sends it to.
    Jump {
        /// How far it has come.
        passage: Passage,
        /// The service.
        service: ServiceId,
    },
}

/// A change under way.
#[derive(Debug)]
pub struct Transition {
    generation: u64,
    delta: Arc<PathDelta>,
    rules: ChangedRules,
    parked: VecDeque<Parked>,
    limit_pkts: usize,
    parked_total: u64,
    began: Instant,
    patience: Duration,
    /// When the old packets were out, or were waited for no longer; and whether they were out.
    freed: Option<(Instant, bool)>,
}

impl Transition {
    /// Begins now. At most `limit_pkts` wait here; more wait at the ports.
    #[must_use]
    pub fn new(
        plan: &Plan,
        delta: Arc<PathDelta>,
        rules: ChangedRules,
        limit_pkts: usize,
        patience: Duration,
    ) -> Self {
        Self {
            generation: plan.generation,
            delta,
            rules,
            parked: VecDeque::new(),
            limit_pkts,
            parked_total: 0,
            began: Instant::now(),
            patience,
            freed: None,
        }
    }

    /// Whether more packets may be received: one burst always fits behind a true answer.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.parked.len() < self.limit_pkts
    }

    /// Whether nobody waits any more: packets go on as they come. Without this, steady traffic would
    /// always find the last of the queue still there, and the change would never end.
    fn is_over(&self) -> bool {
        self.freed.is_some() && self.parked.is_empty()
    }

    /// Whether a packet must wait because its flow changes its path.
    #[must_use]
    pub fn parks(&self, verdict: Verdict, flow_hash: u32, key: Option<&FlowKey>) -> bool {
        if self.is_over() {
            return false;
        }
        let moves = match verdict {
            Verdict::Chain(chain) => self.delta.moves(chain, flow_hash),
            Verdict::Egress | Verdict::Out(_) | Verdict::Drop(_) => false,
        };
        moves || self.rules.concern(key)
    }

    /// Whether a packet of the new plan that an NF sends to a service must wait, because its flow
    /// meets another instance there than before.
    #[must_use]
    pub fn parks_jump(&self, service: ServiceId, flow_hash: u32) -> bool {
        !self.is_over() && self.delta.moves_to_service(service, flow_hash)
    }

    /// Whether packets' headers must be read to tell: for the rules they meet, or for the hash that
    /// says who moves, which the new plan itself may need no more.
    #[must_use]
    pub fn reads_headers(&self) -> bool {
        self.delta.needs_hash() || matches!(self.rules, ChangedRules::Some(_))
    }

    /// Lets a packet wait.
    pub fn park(&mut self, parked: Parked) {
        self.parked_total += 1;
        self.parked.push_back(parked);
    }

    /// Whether parked packets may go, given how many packets of older plans are inside.
    pub fn may_release(&mut self, old_pkts: usize, now: impl Fn() -> Instant) -> bool {
        if self.freed.is_none() {
            let out = old_pkts == 0;
            if out || self.is_overdue(&now) {
                self.freed = Some((now(), out));
            }
        }
        self.freed.is_some()
    }

    /// Whether the change takes longer than it should.
    #[must_use]
    pub fn is_overdue(&self, now: impl Fn() -> Instant) -> bool {
        now().saturating_duration_since(self.began) > self.patience
    }

    /// The packet that goes first.
    #[must_use]
    pub fn first(&self) -> Option<Parked> {
        self.parked.front().copied()
    }

    /// Takes the packet that goes first.
    pub fn release(&mut self) -> Option<Parked> {
        self.parked.pop_front()
    }

    /// Packets that wait.
    #[must_use]
    pub fn parked_pkts(&self) -> usize {
        self.parked.len()
    }

    /// Buffers of the packets that wait.
    pub fn parked_buffers(&self) -> impl Iterator<Item = BufferIndex> + '_ {
        self.parked.iter().map(|parked| parked.packet.buffer)
    }

    /// What waits, when there is nothing more to wait for.
    #[must_use]
    pub fn into_parked(self) -> VecDeque<Parked> {
        self.parked
    }

    /// The result, once nobody waits any more.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        let (freed, in_order) = self.freed?;
        self.is_over().then(|| Outcome {
            generation: self.generation,
            parked_pkts: self.parked_total,
            waited: freed.saturating_duration_since(self.began),
            in_order,
        })
    }
}
