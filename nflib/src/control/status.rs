//! What a manager shows of itself: one [`Status`] with everything in it.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::spec::{ChainSpec, RuleSpec};
use crate::descriptor::{ChainId, ServiceId};

/// A snapshot of everything. Counters are of the moment each was read; `accounting` says whether
/// they add up, and was taken between bursts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Status {
    /// The manager's release.
    pub version: String,
    /// Its process.
    pub pid: i32,
    /// Since it started, seconds.
    pub uptime_s: f64,
    /// When this snapshot was taken, nanoseconds of CLOCK_MONOTONIC; rates are differences.
    pub at_ns: u64,
    /// Ports in the order of the configuration.
    pub ports: Vec<PortStatus>,
    /// NFs attached now, by instance id.
    pub nfs: Vec<NfStatus>,
    /// Services, by service id.
    #[serde(default)]
    pub services: Vec<ServiceStatus>,
    /// Chains, by chain id.
    #[serde(default)]
    pub chains: Vec<ChainStatus>,
    /// Rules, by table, then by falling priority. At most [`MAX_RULES_SHOWN`]; `rule_count` says
    /// how many there are.
    #[serde(default)]
    pub rules: Vec<RuleStatus>,
    /// How many rules there are.
    #[serde(default)]
    pub rule_count: u64,
    /// NFs that ended without having been told to.
    #[serde(default)]
    pub deaths: DeathsStatus,
    /// The plan that packets follow now, and how the last change went.
    #[serde(default)]
    pub plan: PlanStatus,
    /// Every drop so far, by place and reason; only what is not zero.
    pub drops: Vec<DropStatus>,
    /// `rx = tx + dropped + held`.
    pub accounting: Accounting,
    /// Buffers.
    pub pool: PoolStatus,
    /// Workers.
    pub workers: Vec<WorkerStatus>,
    /// Whether the packet region lies on hugepages.
    pub hugepages: bool,
}

/// One port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PortStatus {
    /// Its name in the configuration.
    pub name: String,
    /// Back end.
    pub backend: String,
    /// Interface, PCI address or file.
    pub device: String,
    /// Driver and mode obtained.
    pub driver: String,
    /// `up`, `down` or `gone`.
    pub link: String,
    /// Mbit/s, where the driver tells.
    pub speed_mbps: Option<u32>,
    /// Hardware address.
    pub mac: Option<String>,
    /// Longest network-layer packet.
    pub mtu_bytes: u32,
    /// Promiscuous mode.
    pub promiscuous: bool,
    /// Queues.
    pub queues: u16,
    /// Port that packets leave by when they came in here and their chain ends.
    pub egress: Option<String>,
    /// Packets received.
    pub rx_pkts: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets sent.
    pub tx_pkts: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Drops at this port by reason.
    pub drops: BTreeMap<String, u64>,
    /// The driver's own counters.
    pub hw_stats: BTreeMap<String, u64>,
    /// A finite source has nothing more.
    pub exhausted: bool,
}

/// Most rules that a [`Status`] lists.
pub const MAX_RULES_SHOWN: usize = 1000;

/// One service: a kind of NF, and its instances.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ServiceStatus {
    /// Service id.
    pub id: ServiceId,
    /// Name.
    pub name: String,
    /// Instances wanted; `None` when NFs of this service are started by hand.
    pub wanted: Option<u32>,
    /// Instance ids that get flows now.
    pub instances: Vec<u32>,
    /// Instance ids that are draining.
    pub draining: Vec<u32>,
    /// NFs of this service that the manager started again after their death.
    pub restarts: u64,
    /// Why the manager does not start an NF now, if it waits: a backoff, no free core.
    pub waiting: Option<String>,
    /// Handed over only through the manager, which checks each descriptor.
    pub isolated: bool,
    /// And not copied, although isolated.
    #[serde(default)]
    pub shared_region: bool,
    /// Its NFs can read packets and not change them.
    #[serde(default)]
    pub read_only: bool,
    /// How far its NFs are confined, as it is on this machine; `None` when they are started by hand.
    #[serde(default)]
    pub confine: Option<String>,
    /// Its NFs are being exchanged for those of another command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<UpgradeStatus>,
    /// Drops at this service by reason.
    pub drops: BTreeMap<String, u64>,
    /// Packets that skipped it because it had no instance.
    #[serde(default)]
    pub bypassed_pkts: u64,
    /// Packets that wait for an instance of it now.
    #[serde(default)]
    pub waiting_pkts: u64,
}

/// An exchange of a service's NFs for those of another command.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct UpgradeStatus {
    /// `starting`, `warming up` (the new instances are attached and have no flows yet), `switching`,
    /// `probation` (they have the flows, the old ones stand by), `retiring` or `rolling back`.
    pub phase: String,
    /// The command of the new instances.
    pub command: Vec<String>,
    /// Instance ids of the new ones, as far as they are attached.
    pub instances: Vec<u32>,
    /// Since it was asked for, seconds.
    pub since_s: f64,
}

/// One chain.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ChainStatus {
    /// Chain id.
    pub id: ChainId,
    /// What it is.
    #[serde(flatten)]
    pub spec: ChainSpec,
    /// Packets that a rule (or the default) sent into it.
    pub pkts: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Services that have no instance now.
    pub missing: Vec<String>,
    /// Its packets that NFs of the trusted domain have now.
    #[serde(default)]
    pub held_pkts: u64,
    /// Packets that they may have now; beyond, they are dropped as `no_credit`.
    #[serde(default)]
    pub credit_pkts: u64,
}

/// One rule of the flow table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RuleStatus {
    /// Its number, unique while the manager runs.
    pub id: u64,
    /// What it is.
    #[serde(flatten)]
    pub spec: RuleSpec,
    /// Packets that matched.
    pub pkts: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Since it was added, seconds.
    pub age_s: f64,
    /// Since a packet matched it last, seconds; since it was added if none ever did.
    pub idle_s: f64,
}

/// The plan: which flow goes through which instances.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PlanStatus {
    /// Counts the changes.
    pub generation: u64,
    /// A change is under way: packets of flows that it moves wait until their path is free.
    pub changing: bool,
    /// Packets that have waited for a change so far.
    pub parked_pkts: u64,
    /// Changes whose old packets did not come out in time, so that order may have been lost.
    pub unordered_changes: u64,
    /// Longest time packets waited for a change, microseconds.
    pub longest_wait_us: u64,
}

/// One NF.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NfStatus {
    /// Instance id.
    pub instance: u32,
    /// Service id.
    pub service: ServiceId,
    /// The service's name.
    #[serde(default)]
    pub service_name: String,
    /// `running`, `standby` (attached without flows, while its service is upgraded), `draining` (gets no
    /// new flows, will be told to stop) or `leaving`.
    #[serde(default)]
    pub state: String,
    /// The core it is pinned to.
    #[serde(default)]
    pub core: Option<u32>,
    /// Instances it hands packets to without the manager.
    #[serde(default)]
    pub direct_to: Vec<u32>,
    /// Share of its service's flows it gets, 0 to 1.
    #[serde(default)]
    pub flow_share: f64,
    /// CPU time that a packet costs it, ns, by its own account; 0: not known yet.
    #[serde(default)]
    pub cost_ns: f64,
    /// Its name for itself.
    pub name: String,
    /// Its process, by the socket's credentials.
    pub pid: i32,
    /// Its user, by the socket's credentials.
    pub uid: u32,
    /// Packets delivered to it.
    pub rx_pkts: u64,
    /// Of those, packets that the manager handed over; the others came straight from NFs.
    #[serde(default)]
    pub from_manager_pkts: u64,
    /// Packets returned to the manager's workers; the others it handed to neighbours directly.
    #[serde(default)]
    pub to_manager_pkts: u64,
    /// Packets it returned.
    pub tx_pkts: u64,
    /// Of those, with action Drop.
    pub drop_pkts: u64,
    /// Packets dropped because its ring was full.
    pub ring_full_pkts: u64,
    /// Packets it has now: taken and not passed on, as it says itself, plus what waits for it.
    pub held_pkts: u64,
    /// Packets that it may have now, of an isolated NF; beyond, they are dropped as `no_credit`. `None`:
    /// in the trusted domain each chain has a credit.
    #[serde(default)]
    pub credit_pkts: Option<u64>,
    /// Descriptors or indices it returned that were not valid.
    pub violations: u64,
    /// Turns of its loop, as it says itself.
    pub progress: u64,
    /// The NF of its place that it is: 1 for the first that has its state; 0: it asked for none.
    #[serde(default)]
    pub state_generation: u64,
    /// How it stands still though packets wait for it, if it does.
    #[serde(default)]
    pub stuck: Option<String>,
    /// Since it attached, seconds.
    pub uptime_s: f64,
}

/// NFs that ended without having been told to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DeathsStatus {
    /// How many so far.
    pub count: u64,
    /// The longest time from when one was noticed until its last buffer was back, microseconds.
    pub longest_reclaim_us: u64,
    /// The last 64, the latest last.
    pub last: Vec<DeathStatus>,
}

/// An NF that ended without having been told to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DeathStatus {
    /// Instance id.
    pub instance: u32,
    /// The service's name.
    pub service: String,
    /// Its process.
    pub pid: i32,
    /// How the manager learnt of it.
    pub why: String,
    /// When the kernel told the manager, nanoseconds of CLOCK_MONOTONIC.
    pub noticed_ns: u64,
    /// When every buffer it had was back in the pool, and no worker delivered to it any more.
    pub reclaimed_ns: u64,
}

/// Packets dropped at one place for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DropStatus {
    /// `port:NAME`, `nf:INSTANCE`, `service:ID` or `worker:N`.
    pub place: String,
    /// Name of the reason.
    pub reason: String,
    /// How many packets.
    pub pkts: u64,
}

/// The sum of the ledger: every packet that entered, and every buffer lent to an NF, is somewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Accounting {
    /// Packets that entered.
    pub rx_pkts: u64,
    /// Empty buffers lent to NFs, to make packets in.
    #[serde(default)]
    pub lent_pkts: u64,
    /// Packets that left.
    pub tx_pkts: u64,
    /// Packets dropped, all reasons.
    pub dropped_pkts: u64,
    /// Packets inside now: at NFs, in a worker's hands, delayed in a port.
    pub held_pkts: u64,
    /// Whether `rx + lent = tx + dropped + held`.
    pub balanced: bool,
}

impl Accounting {
    /// The equation in figures: `rx 5 + lent 2 = tx 4 + dropped 2 + held 1`; without its second term
    /// where nothing was lent.
    #[must_use]
    pub fn equation(&self) -> String {
        let Self { rx_pkts, lent_pkts, tx_pkts, dropped_pkts, held_pkts, .. } = self;
        let lent = if *lent_pkts > 0 { format!(" + lent {lent_pkts}") } else { String::new() };
        format!("rx {rx_pkts}{lent} = tx {tx_pkts} + dropped {dropped_pkts} + held {held_pkts}")
    }
}

/// The buffers of the packet region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PoolStatus {
    /// All of them.
    pub total: u64,
    /// Free now.
    pub free: u64,
    /// With NFs.
    pub at_nfs: u64,
    /// With packets that wait for a change of plan, or for an NF.
    #[serde(default)]
    pub parked: u64,
    /// With ports: posted for receive, or being sent.
    pub at_ports: u64,
    /// With nobody: `total` less all of the above. Always 0, unless a buffer was lost; also where a
    /// driver keeps its own count to itself, and `at_ports` is what is left.
    #[serde(default)]
    pub lost: i64,
    /// Size of one.
    pub buffer_bytes: u32,
}

/// One worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct WorkerStatus {
    /// Its number.
    pub worker: u16,
    /// The core it is pinned to.
    pub core: Option<u32>,
    /// Turns of its loop.
    pub turns: u64,
    /// Turns that found no packet.
    pub idle_turns: u64,
}

/// What somebody does with a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum BufferUse {
    /// On a worker's list of free buffers.
    Free,
    /// Offered to a device, for a packet to come.
    Receiving,
    /// Being sent by a device.
    Sending,
    /// Delayed in a port.
    Delayed,
    /// With a port whose driver does not say more.
    AtPort,
    /// In the ring from a worker to an NF, not read yet.
    ToNf,
    /// With an NF: read from a ring, or kept.
    AtNf,
    /// In a direct edge from NF to NF, not read yet.
    InEdge,
    /// In the ring from an NF back to a worker, not read yet.
    FromNf,
    /// With the NFs that trust each other, and just then between two of the places above.
    Moving,
    /// Waiting for a change of plan.
    Parked,
    /// With nobody: lost.
    Lost,
}

/// Buffers of one worker's share in one place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BufferPlace {
    /// The worker whose share they are of.
    pub worker: u16,
    /// What is done with them.
    pub used_for: BufferUse,
    /// By whom: `worker:0`, `port:wan`, `nf:3`, `nf:3>nf:4`.
    pub place: String,
    /// How many.
    pub buffers: u64,
}

/// One buffer, and what is known of the packet in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BufferStatus {
    /// Its number.
    pub buffer: u32,
    /// Where it is; `buffers` is 1.
    pub place: BufferPlace,
    /// The chain whose route the packet follows, while an NF has it.
    pub chain: Option<String>,
    /// The hop of the chain that the worker gave it to.
    pub hop: Option<u8>,
    /// The port it came in by; `None` also for a packet that an NF made.
    pub ingress: Option<String>,
}

/// Where every buffer is, by worker, then by use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct BufferReport {
    /// All buffers.
    pub total: u64,
    /// Where they are; only places that have some.
    pub places: Vec<BufferPlace>,
    /// Buffers that two say they have.
    pub twice: u64,
    /// Whether each has exactly one place.
    pub balanced: bool,
    /// The one that was asked about.
    pub buffer: Option<BufferStatus>,
}
