//! Messages about what is seen of packets: captures, traces, latencies, and what is left of NFs that
//! crashed.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use super::spec::MatchSpec;

/// One instruction of a packet filter, as `struct sock_filter` has it: code, jump if true, jump if false,
/// constant.
pub type FilterStep = (u16, u8, u8, u32);
/// Most instructions of a filter (the kernel's BPF_MAXINSNS).
pub const MAX_FILTER_STEPS: usize = 4096;

/// What to capture, and how much.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CaptureRequest {
    /// Where, as written: `port:lan:in`, `nf:firewall:out`, `ring:manager:firewall`, `drop`,
    /// `drop:no_rule`. At least one.
    pub at: Vec<String>,
    /// The compiled filter that packets must pass; empty: all packets.
    pub filter: Vec<FilterStep>,
    /// The filter as written, to be shown.
    pub filter_text: String,
    /// First bytes of a packet to keep; 0: all.
    pub snap_bytes: u16,
    /// End after so many packets; 0: no such limit.
    pub max_pkts: u64,
    /// End after so many milliseconds; 0: no such limit.
    pub max_ms: u64,
    /// Who asks, to be shown.
    pub name: String,
}

/// A place where packets can be captured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CapturePoint {
    /// As a request writes it.
    pub at: String,
    /// For people.
    pub description: String,
}

/// A capture under way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CaptureStatus {
    /// Its number.
    pub id: u64,
    /// Who asked.
    pub name: String,
    /// Where it captures.
    pub at: Vec<String>,
    /// The filter, as written.
    pub filter: String,
    /// Packets written.
    pub pkts: u64,
    /// Packets that were to be captured and were not: rings or the reader were full.
    pub lost_pkts: u64,
    /// Since its begin, seconds.
    pub for_s: f64,
}

/// Which packets to follow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct TraceRequest {
    /// Packets that this matches at ingress; `in_port` among the fields.
    pub matches: MatchSpec,
    /// How many.
    pub count: u32,
    /// Of the packets that match, only each so manieth; 0 and 1: each.
    pub one_in: u32,
    /// First bytes of the packet that are compared from hop to hop; 0: a useful number.
    pub bytes: u16,
}

/// A trace: done, or under way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TraceStatus {
    /// Its number.
    pub id: u64,
    /// What was asked for.
    pub request: TraceRequest,
    /// Packets marked so far.
    pub marked_pkts: u64,
    /// Packets of which the way is not complete, because events of them were lost.
    pub torn_pkts: u64,
    /// It marks no more packets.
    pub done: bool,
    /// Since its begin, seconds.
    pub for_s: f64,
    /// The packets, oldest first.
    pub packets: Vec<TracedPacket>,
}

/// A packet's way from port to port, or to where it was dropped.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TracedPacket {
    /// When it came in, nanoseconds since 1970.
    pub time_unix_ns: u64,
    /// The fields of its headers as it came in.
    pub key: MatchSpec,
    /// Its length as it came in, bytes.
    pub len_bytes: u16,
    /// The chain it entered, if any.
    pub chain: Option<String>,
    /// From port to port, nanoseconds.
    pub total_ns: u64,
    /// What became of it: `sent by wan`, `dropped at firewall (nf_drop)`, `still inside`.
    pub end: String,
    /// Each place it was seen at, in order.
    pub steps: Vec<TraceStep>,
}

/// A packet at one place.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TraceStep {
    /// `port:lan`, `nf:firewall#3`, `drop:no_rule`.
    pub place: String,
    /// Service, where the place is an NF.
    pub service: Option<String>,
    /// From ingress until it came here, nanoseconds.
    pub at_ns: u64,
    /// In the ring before it came here, nanoseconds: since the place before let it go.
    pub wait_ns: u64,
    /// Here, nanoseconds: from the ring until it was passed on. Its whole burst's time, since it goes on
    /// with its burst.
    pub took_ns: u64,
    /// Where it came from: `manager` or an NF's place.
    pub from: Option<String>,
    /// What was decided about it: `next`, `drop`, `out wan`, `hold`.
    pub action: Option<String>,
    /// Its length when it left this place, bytes.
    pub len_bytes: u16,
    /// Bytes added in front (negative: taken away).
    pub moved_bytes: i32,
    /// Bytes that are others than before, counted from the first byte that it has here.
    pub changed: Vec<ByteChange>,
}

/// Bytes that an NF changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ByteChange {
    /// The first of them, counted from the start of the packet as it left.
    pub at_bytes: u16,
    /// Before, in hexadecimal; empty where bytes were added.
    pub before: String,
    /// Afterwards, in hexadecimal.
    pub after: String,
    /// What lies there, where known: `ipv4.ttl`.
    pub field: Option<String>,
}

/// Latencies, as sampled since the manager's start.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LatencyReport {
    /// A worker marks one packet in so many microseconds; 0: none, it is switched off.
    pub interval_us: u64,
    /// Packets whose way is complete.
    pub sampled_pkts: u64,
    /// Packets whose way is not, because events of them were lost.
    pub torn_pkts: u64,
    /// By chain and hop, in their order.
    pub hops: Vec<HopLatency>,
    /// By chain: from the ingress port to the egress port, for packets that were sent.
    pub chains: Vec<ChainLatency>,
}

/// What packets met at one hop of a chain.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct HopLatency {
    /// The chain.
    pub chain: String,
    /// Position in it.
    pub hop: u8,
    /// The service there.
    pub service: String,
    /// In the ring before the NF.
    pub wait: Histogram,
    /// With the NF.
    pub took: Histogram,
}

/// What packets of a chain met altogether.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ChainLatency {
    /// The chain; `None`: packets that go from port to port.
    pub chain: Option<String>,
    /// From port to port.
    pub total: Histogram,
}

/// How often a time was how long, since the manager's start.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Histogram {
    /// Values.
    pub count: u64,
    /// Their sum, nanoseconds.
    pub sum_ns: u64,
    /// The largest, nanoseconds.
    pub max_ns: u64,
    /// Quantiles, nanoseconds.
    pub p50_ns: u64,
    /// See `p50_ns`.
    pub p90_ns: u64,
    /// See `p50_ns`.
    pub p99_ns: u64,
    /// See `p50_ns`.
    pub p999_ns: u64,
    /// Upper end of a bucket, nanoseconds, and the values in it; ascending; buckets without values are
    /// left out. The ends are the same in every histogram: four to each power of two.
    pub buckets: Vec<(u64, u64)>,
}

/// What is left of an NF that crashed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CrashStatus {
    /// Its name, for commands.
    pub name: String,
    /// When, nanoseconds since 1970.
    pub time_unix_ns: u64,
    /// The service.
    pub service: String,
    /// The instance.
    pub instance: u32,
    /// How its process ended: `SIGSEGV`, `exit status 101`.
    pub why: String,
    /// The last words it found: a panic's message, or the place where a signal struck.
    pub last_words: Option<String>,
    /// The folder.
    pub path: String,
    /// Its files, with their lengths in bytes.
    pub files: Vec<(String, u64)>,
    /// Packets in the bundle: recorded before, and those that it had in hand.
    pub recorded_pkts: u64,
    /// See `recorded_pkts`.
    pub in_hand_pkts: u64,
}
