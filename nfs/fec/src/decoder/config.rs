//! What a decoder is told, and what it tells.
#![forbid(unsafe_code)]

use std::ops::RangeInclusive;

use thiserror::Error;

use crate::mac::Key;
use crate::wire::{INNER_MIN_BYTES, WireError};

/// Shortest and longest time between reports, ns.
pub const REPORT_NS: RangeInclusive<u64> = 100_000_000..=1_000_000_000;
/// Shortest and longest time after which a missing packet is given up, ns.
pub const SETTLE_NS: RangeInclusive<u64> = 10_000_000..=10_000_000_000;
/// Fewest and most packets of a window.
pub const WINDOW_PKTS: RangeInclusive<usize> = 64..=65_536;
/// Fewest and most blocks that may wait for repair in a session.
pub const BLOCKS: RangeInclusive<usize> = 1..=1024;

/// In-order release: packets are let out in the order of their numbers. Those behind a gap wait for
/// it to be filled, within both bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InOrder {
    /// Most packets from a gap to the newest packet.
    pub bound_pkts: usize,
    /// Longest time that a gap is waited for, ns.
    pub bound_ns: u64,
}

/// A decoder's settings: for all the sessions of one peer.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// Sessions that are accepted.
    pub sessions: RangeInclusive<u16>,
    /// Longest inner packet, bytes.
    pub inner_max_bytes: usize,
    /// Numbers that a session looks back on; rounded up to a power of two. A block must fit (k · D),
    /// with room for reordering.
    pub window_pkts: usize,
    /// Memory for copies of a session's packets, bytes: the newest are kept.
    pub window_bytes: usize,
    /// Blocks of a session that may wait for repair at a time.
    pub blocks_max: usize,
    /// Memory in all, bytes. When another session needs some, the one that was silent for longest is
    /// given up for it.
    pub memory_bytes: usize,
    /// Time between reports of a session, ns.
    pub report_ns: u64,
    /// A packet that is missing is given up after one to two times this, ns, if its window has not
    /// passed before.
    pub settle_ns: u64,
    /// Whether packets are let out in order.
    pub in_order: Option<InOrder>,
    /// Key of the MACs on repair packets and reports; none without.
    pub key: Option<Key>,
    /// What reports tell this run of the decoder by: it must differ from that of the last run.
    pub run: u8,
}

impl Default for DecoderConfig {
    /// A session for every DSCP, 256 MiB in all, 5 reports a second. A window is 2,048 packets and
    /// 1 MiB, or 700 packets of 1,500 bytes: enough for k · D of 500. One that the core's cache holds
    /// is faster.
    fn default() -> Self {
        Self {
            sessions: 0..=63,
            inner_max_bytes: 1500,
            window_pkts: 2048,
            window_bytes: 1 << 20,
            blocks_max: 64,
            memory_bytes: 256 << 20,
            report_ns: 200_000_000,
            settle_ns: 200_000_000,
            in_order: None,
            key: None,
            run: 0,
        }
    }
}

/// A setting that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DecoderConfigError {
    /// No session is accepted.
    #[error("no session is accepted; expected a range from low to high")]
    Sessions,
    /// The longest inner packet is out of range.
    #[error("inner packets of up to {0} bytes; expected {INNER_MIN_BYTES} to 65503")]
    InnerMax(usize),
    /// The window is out of range.
    #[error("a window of {0} packets; expected {low} to {high}", low = WINDOW_PKTS.start(), high = WINDOW_PKTS.end())]
    WindowPkts(usize),
    /// The window's memory does not hold a few packets.
    #[error("a window of {bytes} bytes; expected {expected} or more: 32 of the longest packets")]
    WindowBytes {
        /// What it is.
        bytes: usize,
        /// What it must be.
        expected: usize,
    },
    /// Blocks are out of range.
    #[error("{0} waiting blocks; expected {low} to {high}", low = BLOCKS.start(), high = BLOCKS.end())]
    Blocks(usize),
    /// There is no memory for one session.
    #[error("{bytes} bytes of memory; one session takes {session_bytes}")]
    Memory {
        /// What there is.
        bytes: usize,
        /// What one takes.
        session_bytes: usize,
    },
    /// The time between reports is out of range.
    #[error("a report every {} ms; expected 100 to 1000", .0 / 1_000_000)]
    Report(u64),
    /// The time after which packets are given up is out of range.
    #[error("missing packets are given up after {} ms; expected 10 to 10000", .0 / 1_000_000)]
    Settle(u64),
    /// In-order release would wait longer than there is memory or time.
    #[error("in-order release may wait for 1 to {most_pkts} packets and at most {} ms", .most_ns / 1_000_000)]
    InOrder {
        /// Most packets: half the window.
        most_pkts: usize,
        /// Longest time: after it packets are given up.
        most_ns: u64,
    },
}

impl DecoderConfig {
    /// Checks every setting but the memory in all.
    pub(super) fn check(&self) -> Result<(), DecoderConfigError> {
        if self.sessions.is_empty() {
            return Err(DecoderConfigError::Sessions);
        }
        if !(INNER_MIN_BYTES..=65_503).contains(&self.inner_max_bytes) {
            return Err(DecoderConfigError::InnerMax(self.inner_max_bytes));
        }
        if !WINDOW_PKTS.contains(&self.window_pkts) {
            return Err(DecoderConfigError::WindowPkts(self.window_pkts));
        }
        let expected = 32 * self.inner_max_bytes;
        if self.window_bytes < expected {
            return Err(DecoderConfigError::WindowBytes { bytes: self.window_bytes, expected });
        }
        if !BLOCKS.contains(&self.blocks_max) {
            return Err(DecoderConfigError::Blocks(self.blocks_max));
        }
        if !REPORT_NS.contains(&self.report_ns) {
            return Err(DecoderConfigError::Report(self.report_ns));
        }
        if !SETTLE_NS.contains(&self.settle_ns) {
            return Err(DecoderConfigError::Settle(self.settle_ns));
        }
        let (most_pkts, most_ns) = (self.window_pkts / 2, self.settle_ns);
        if self.in_order.is_some_and(|in_order| {
            !(1..=most_pkts).contains(&in_order.bound_pkts) || in_order.bound_ns > most_ns
        }) {
            return Err(DecoderConfigError::InOrder { most_pkts, most_ns });
        }
        Ok(())
    }
}

/// What became of a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Let the inner packet out: it is the payload from this byte on.
    Deliver {
        /// Where it begins.
        inner_offset: usize,
    },
    /// Kept, to be let out in order: [`super::Decoder::next_recovered`] hands out a copy.
    Held,
    /// A repair packet. It may have brought packets back: [`super::Decoder::next_recovered`].
    Repair,
    /// A report of the other end's decoder, unread: for this end's encoder.
    Report,
    /// It came before: drop it.
    Duplicate,
    /// It was recovered or given up before: drop it.
    Late,
    /// It is not acceptable: drop it.
    Reject(Reject),
}

/// Why a payload was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum Reject {
    /// It is not of the format, or its MAC is missing, unexpected or wrong.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// No such session is accepted.
    #[error("the session is not accepted")]
    Session,
    /// It is of the epoch before, or it is a repair packet of an epoch that is not known.
    #[error("the packet is of another epoch")]
    Epoch,
    /// It is the first of a new epoch; the next number of it confirms the epoch.
    #[error("the epoch is new and not confirmed yet")]
    EpochUnconfirmed,
    /// Its number is more than a window ahead; the next number after it confirms that.
    #[error("the sequence number is far ahead and not confirmed yet")]
    Jump,
    /// The inner packet, or the block's longest, is longer than the decoder was set up for.
    #[error("the inner packet is too long")]
    TooLong,
    /// The inner packet is neither IPv4 nor IPv6.
    #[error("the inner packet is not IP")]
    NotIp,
    /// The block is wider than the window, or too far ahead of it.
    #[error("the block does not fit the window")]
    Span,
    /// It contradicts other repair packets.
    #[error("the repair packet contradicts another")]
    Inconsistent,
}

impl Reject {
    /// How many reasons there are.
    pub const COUNT: usize = 21;

    /// The reason as a name for counters.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES[self.index()]
    }

    const NAMES: [&str; Self::COUNT] = [
        "short",
        "long",
        "version",
        "type",
        "reserved",
        "k",
        "m",
        "stride",
        "code",
        "mac_missing",
        "mac_unexpected",
        "mac_wrong",
        "report",
        "session",
        "epoch",
        "epoch_unconfirmed",
        "jump",
        "too_long",
        "not_ip",
        "span",
        "inconsistent",
    ];

    fn index(self) -> usize {
        match self {
            Self::Wire(WireError::Short) => 0,
            Self::Wire(WireError::Long) => 1,
            Self::Wire(WireError::Version) => 2,
            Self::Wire(WireError::Type) => 3,
            Self::Wire(WireError::Reserved) => 4,
            Self::Wire(WireError::K) => 5,
            Self::Wire(WireError::M) => 6,
            Self::Wire(WireError::Stride) => 7,
            Self::Wire(WireError::Code) => 8,
            Self::Wire(WireError::MacMissing) => 9,
            Self::Wire(WireError::MacUnexpected) => 10,
            Self::Wire(WireError::MacWrong) => 11,
            Self::Wire(WireError::Replayed | WireError::Impossible) => 12,
            Self::Session | Self::Wire(WireError::Session) => 13,
            Self::Epoch | Self::Wire(WireError::Epoch) => 14,
            Self::EpochUnconfirmed => 15,
            Self::Jump => 16,
            Self::TooLong => 17,
            Self::NotIp => 18,
            Self::Span => 19,
            Self::Inconsistent => 20,
        }
    }
}

/// Rejected payloads, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rejected([u64; Reject::COUNT]);

impl Rejected {
    pub(super) fn add(&mut self, reason: Reject) {
        self.0[reason.index()] += 1;
    }

    /// How many there were for this reason.
    #[must_use]
    pub fn of(&self, reason: Reject) -> u64 {
        self.0[reason.index()]
    }

    /// Every reason's name with its count.
    pub fn by_name(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Reject::NAMES.into_iter().zip(self.0)
    }

    /// All together.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

/// What a decoder did, over all sessions. Of every sequence number that was sent between the first
/// and the newest known of, exactly one is true in the end: it was received, recovered, or is
/// unrecovered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DecoderStats {
    /// Source packets that came, for the first time and in time.
    pub received: u64,
    /// Packets brought back.
    pub recovered: u64,
    /// Packets given up.
    pub unrecovered: u64,
    /// Packets that did not come by themselves, recovered or not. Counted when settled: later than
    /// `recovered`.
    pub lost: u64,
    /// Source packets that came after they had been recovered or given up.
    pub late: u64,
    /// Source and repair packets that came again.
    pub duplicate: u64,
    /// Payloads that were not accepted.
    pub rejected: Rejected,
    /// Repair packets accepted, with the ones below.
    pub repairs: u64,
    /// Repair packets of blocks in which nothing was missing.
    pub repairs_unused: u64,
    /// Repair packets of blocks that are past.
    pub repairs_late: u64,
    /// Blocks of which a repair packet came.
    pub blocks: u64,
    /// Blocks in which something was missing and that were solved.
    pub blocks_solved: u64,
    /// Blocks that were given up with something missing, the three kinds below among them.
    pub blocks_failed: u64,
    /// Given up to make room for other blocks.
    pub blocks_evicted: u64,
    /// Given up because copies of their packets were overwritten: the window's memory is too small.
    pub blocks_overrun: u64,
    /// Solved to something that is no packet, which is not let out: forged or damaged.
    pub blocks_bad: u64,
    /// Packets skipped by in-order release because a bound was reached.
    pub skipped: u64,
    /// Packets that nobody fetched in time.
    pub undelivered: u64,
    /// Sessions at this time.
    pub sessions: u64,
    /// Sessions given up for others.
    pub sessions_evicted: u64,
    /// Changes of epoch: restarts of the encoder.
    pub epochs: u64,
    /// Jumps of the sequence number by more than a window.
    pub jumps: u64,
    /// Reports made.
    pub reports: u64,
}
