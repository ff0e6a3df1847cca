//! Counters: single-writer words that anyone may read.
//!
//! Every packet that enters, and every buffer lent to an NF to make one in, is accounted for:
//! `rx + lent = tx + Σ drops by reason + held` at every instant when the workers are between bursts. A port queue counts its own `rx`, `tx` and drops; a worker
//! counts the drops between ports.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// A counter with one writer. The writer pays a plain load and store, no locked instruction;
/// readers see a value that was true a moment ago.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the counter's one writer may call this.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Sets a gauge. Only the one writer may call this.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The value now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal,)+) => {
        /// Why a packet was dropped. Each drop is counted under one reason at one place.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        #[repr(u8)]
        pub enum DropReason { $($(#[doc = $doc])+ $name,)+ }

        impl DropReason {
            /// Every reason, in the order of its number.
            pub const ALL: &[DropReason] = &[$(DropReason::$name,)+];
            /// How many reasons there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The name in commands, JSON and metrics.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(DropReason::$name => $text,)+ }
            }
        }
    };
}

drop_reasons! {
    /// The frame is longer than a buffer (after its headroom).
    RxTooLarge = "rx_too_large",
    /// A frame came and no buffer was free for it.
    RxNoBuffer = "rx_no_buffer",
    /// A frame came and the port's receive ring was full: the worker is too slow.
    RxRingFull = "rx_ring_full",
    /// The frame is malformed: shorter than an Ethernet header, or cut off.
    RxMalformed = "rx_malformed",
    /// The port's transmit ring was full.
    TxFull = "tx_full",
    /// The frame is longer than the port's MTU allows, or cannot be sent by it.
    TxTooLarge = "tx_too_large",
    /// The port's link is down or its device is gone.
    TxPortDown = "tx_port_down",
    /// The `fault` wrapper lost it on purpose.
    FaultLoss = "fault_loss",
    /// An NF said Drop.
    NfDrop = "nf_drop",
    /// No rule took the packet, and there is no default chain.
    NoRule = "no_rule",
    /// A rule said drop.
    RuleDrop = "rule_drop",
    /// The packet's chain ends in drop.
    ChainEnd = "chain_end",
    /// The ring to the next NF was full.
    NfRingFull = "nf_ring_full",
    /// The chain's next service, or the packet's route, has as many buffers as it may.
    NoCredit = "no_credit",
    /// The chain's next service has no NF attached.
    NoInstance = "no_instance",
    /// The packet was to wait for an NF, and as many wait as may.
    HoldFull = "hold_full",
    /// The packet waited for an NF for as long as it may, and none came.
    HoldTimeout = "hold_timeout",
    /// An NF named a service that does not exist.
    UnknownService = "unknown_service",
    /// An NF named a port that does not exist.
    UnknownPort = "unknown_port",
    /// An NF named a branch that the packet's chain does not have.
    UnknownBranch = "unknown_branch",
    /// An NF returned a packet with an impossible range or an unknown action.
    NfMalformed = "nf_malformed",
    /// The packet was with an NF that went away.
    NfGone = "nf_gone",
    /// The packet's chain ended and its ingress port has no egress port.
    NoEgress = "no_egress",
    /// NFs sent the packet to and fro more often than the hop limit allows.
    HopLimit = "hop_limit",
    /// An NF gave back a buffer it was lent without having made a packet in it.
    LoanReturned = "loan_returned",
    /// The manager stopped while the packet was still inside.
    Shutdown = "shutdown",
}

/// Packets dropped at one place, by reason.
#[derive(Debug)]
pub struct DropCounters {
    by_reason: [Counter; DropReason::COUNT],
    /// At a service: packets that skipped it because it had no NF, and are not dropped.
    pub bypassed_pkts: Counter,
    /// At a service: packets that wait for an NF of it now (a gauge).
    pub waiting_pkts: Counter,
}

impl Default for DropCounters {
    fn default() -> Self {
        Self {
            by_reason: std::array::from_fn(|_| Counter::default()),
            bypassed_pkts: Counter::default(),
            waiting_pkts: Counter::default(),
        }
    }
}

impl DropCounters {
    /// Counts `pkts` dropped for `reason`. Only the one writer may call this.
    #[inline]
    pub fn add(&self, reason: DropReason, pkts: u64) {
        self.by_reason[reason as usize].add(pkts);
    }

    /// Packets dropped for `reason`.
    #[must_use]
    pub fn get(&self, reason: DropReason) -> u64 {
        self.by_reason[reason as usize].get()
    }

    /// Packets dropped for any reason.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.by_reason.iter().map(Counter::get).sum()
    }

    /// The reasons that have happened, with their counts.
    pub fn nonzero(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().map(|&r| (r, self.get(r))).filter(|&(_, pkts)| pkts > 0)
    }
}

/// What one port queue counts. The worker that polls the queue is the one writer.
///
/// `rx_pkts` counts every packet the queue took from the outside, also those it dropped itself
/// under a reason; `tx_pkts` every packet it accepted for sending and did not drop afterwards.
#[derive(Debug, Default)]
pub struct QueueCounters {
    /// Packets taken in.
    pub rx_pkts: Counter,
    /// Their bytes, without the frame check sequence.
    pub rx_bytes: Counter,
    /// Packets accepted for sending.
    pub tx_pkts: Counter,
    /// Their bytes.
    pub tx_bytes: Counter,
    /// Drops at this queue.
    pub drops: DropCounters,
}

/// What one worker counts of one NF. The worker is the one writer. What an NF gets from its neighbours
/// directly only the NF itself can count.
#[derive(Debug, Default)]
pub struct NfCounters {
    /// Packets delivered.
    pub rx_pkts: Counter,
    /// Packets returned, with whatever action.
    pub tx_pkts: Counter,
    /// Of those, with action Drop.
    pub drop_pkts: Counter,
    /// Packets that found the NF's ring full.
    pub ring_full_pkts: Counter,
    /// Descriptors, ranges, actions and ring indices that were not valid.
    pub violations: Counter,
    /// Packets the worker gave an isolated NF and has not got back (a gauge).
    pub held_pkts: Counter,
}

/// What one worker counts between ports. The worker is the one writer. Drops at a service are counted
/// in [`DropCounters`] of their own, one for each service and worker.
#[derive(Debug, Default)]
pub struct WorkerCounters {
    /// Turns of the loop.
    pub turns: Counter,
    /// Turns that moved no packet.
    pub idle_turns: Counter,
    /// Packets inside at the end of the last turn (a gauge).
    pub held_pkts: Counter,
    /// Drops that belong to no service.
    pub drops: DropCounters,
    /// All drops between ports, those at services included.
    pub dropped_pkts: Counter,
    /// Packets that waited for a change of plan.
    pub parked_pkts: Counter,
    /// Empty buffers lent to NFs.
    pub lent_pkts: Counter,
}

impl WorkerCounters {
    /// Counts a turn that moved `pkts` packets and left `held_pkts` inside.
    #[inline]
    pub fn turn(&self, pkts: usize, held_pkts: u64) {
        self.turns.add(1);
        self.idle_turns.add(u64::from(pkts == 0));
        self.held_pkts.set(held_pkts);
    }

    /// Counts drops under a reason at a service's counters.
    #[inline]
    pub fn drop_at(&self, service: &DropCounters, reason: DropReason, pkts: u64) {
        service.add(reason, pkts);
        self.dropped_pkts.add(pkts);
    }

    /// Counts drops that belong to no service.
    #[inline]
    pub fn drop_here(&self, reason: DropReason, pkts: u64) {
        self.drops.add(reason, pkts);
        self.dropped_pkts.add(pkts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_name_and_slot() {
        let mut names: Vec<_> = DropReason::ALL.iter().map(|r| r.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DropReason::COUNT);
        for (slot, &reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(reason as usize, slot);
            let json = serde_json::to_string(&reason).unwrap();
            assert_eq!(json, format!("\"{}\"", reason.name()));
        }
    }

    #[test]
    fn drops_add_up() {
        let drops = DropCounters::default();
        drops.add(DropReason::NfDrop, 3);
        drops.add(DropReason::TxFull, 2);
        drops.add(DropReason::NfDrop, 1);
        assert_eq!(drops.total(), 6);
        let listed: Vec<_> = drops.nonzero().collect();
        assert_eq!(listed, [(DropReason::TxFull, 2), (DropReason::NfDrop, 4)]);
    }
}
