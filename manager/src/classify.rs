//! Which way a packet goes: the flow table, as the worker uses it.
//!
//! Where there are no rules, and no service has several instances to share flows among, a packet's
//! headers are not even looked at, unless the configuration asks to know the flows.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Instant;

use nflib::descriptor::{ChainId, PortId};
use nflib::shm::Region;

use crate::flow::{
    Expired, Flow, FlowKey, FlowScan, FlowTable, MatchSet, Outcome, RuleChange, RuleCounters,
    RuleTables, TableStep, Verdict as FlowVerdict,
};
use crate::plan::{Miss, Plan};
use crate::ports::{MAX_BURST_PKTS, PortPacket};
use crate::stats::DropReason;

/// Bytes of a frame that are looked at: Ethernet, two VLAN tags, IPv6 with extension headers, TCP. A
/// header beyond is as good as cut off.
const HEADER_BYTES: usize = 192;
/// Rules whose counters are taken over between two bursts, after all rules were exchanged.
const ADOPT_BUDGET_RULES: u32 = 64;
/// Rules looked at for their timeouts between two bursts.
const EXPIRE_BUDGET_RULES: usize = 32;
/// Flows a worker remembers when the configuration does not say.
pub const DEFAULT_FLOW_CACHE: u32 = 65_536;

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

/// Which flows a change of rules may concern.
#[derive(Clone, Debug, Default)]
pub enum ChangedRules {
    /// None.
    #[default]
    None,
    /// Those that one of these matches takes.
    Some(Arc<MatchSet>),
    /// All.
    All,
}

impl ChangedRules {
    /// Whether a flow may be concerned. Without a key, it may.
    #[must_use]
    pub fn concern(&self, key: Option<&FlowKey>) -> bool {
        match self {
            Self::None => false,
            Self::Some(matches) => key.is_none_or(|key| matches.contains(key)),
            Self::All => true,
        }
    }
}

/// A change of a worker's rules.
#[derive(Debug, Default)]
pub struct RuleChanges {
    /// Rules that come and go, in order.
    pub changes: Arc<[RuleChange]>,
    /// In the place of `changes`, when they are very many: all rules anew, made ahead.
    pub whole: Option<Box<RuleTables>>,
    /// Whom it concerns.
    pub concerned: ChangedRules,
}

/// The flow table of one worker.
#[derive(Debug)]
pub struct Classifier {
    table: FlowTable,
    /// Look at headers even where nothing depends on them.
    track_flows: bool,
    clock: Instant,
    miss: Verdict,
    /// Whether the last burst's headers were read.
    read: bool,
    keys: Vec<FlowKey>,
    hashes: Vec<u32>,
    bytes: Vec<u32>,
    verdicts: Vec<FlowVerdict>,
    /// Rules that were exchanged as a whole: their counters are taken over from here on.
    replaced: Option<(Box<RuleTables>, u32)>,
    /// Rules whose memory is to be given back elsewhere: that takes long.
    discarded: Vec<RuleTables>,
}

impl Default for Classifier {
    fn default() -> Self {
        Self::new(DEFAULT_FLOW_CACHE, false)
    }
}

impl Classifier {
    /// A classifier without rules that remembers so many flows.
    #[must_use]
    pub fn new(flow_cache: u32, track_flows: bool) -> Self {
        Self {
            table: FlowTable::new(flow_cache),
            track_flows,
            clock: Instant::now(),
            miss: Verdict::Egress,
            read: false,
            keys: Vec::with_capacity(MAX_BURST_PKTS),
            hashes: Vec::with_capacity(MAX_BURST_PKTS),
            bytes: Vec::with_capacity(MAX_BURST_PKTS),
            verdicts: Vec::with_capacity(MAX_BURST_PKTS),
            replaced: None,
            discarded: Vec::new(),
        }
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Classifies a burst, and gives its packets flow hashes where they are needed. The verdicts are
    /// had by [`verdict`](Self::verdict) until the next burst. `read_headers` asks for the keys in any
    /// case.
    pub fn classify(
        &mut self,
        region: &Region,
        plan: &Plan,
        ingress: PortId,
        packets: &mut [PortPacket],
        read_headers: bool,
    ) {
        self.miss = miss_verdict(plan);
        let by_rules = !self.table.rules().is_empty() || self.track_flows;
        self.read = by_rules || plan.needs_hash || read_headers;
        if !self.read {
            return;
        }
        self.keys.clear();
        self.hashes.clear();
        self.bytes.clear();
        for packet in packets.iter() {
            // Copied once, then read: an NF that misbehaves may write it meanwhile.
            let mut header = [0; HEADER_BYTES];
            let len = usize::from(packet.len_bytes).min(HEADER_BYTES);
            let inside = region.read(packet.buffer, packet.offset_bytes, &mut header[..len]);
            let frame = if inside { &header[..len] } else { &[] };
            let frame_bytes = if inside { usize::from(packet.len_bytes) } else { 0 };
            self.keys.push(FlowKey::parse_start(frame, frame_bytes, ingress, 0, 0));
            self.hashes.push(packet.flow_hash);
            self.bytes.push(u32::from(packet.len_bytes));
        }
        self.verdicts.clear();
        if by_rules {
            self.verdicts.resize(self.keys.len(), FlowVerdict::default());
            let now_ns = self.now_ns();
            let Self { table, keys, hashes, bytes, verdicts, .. } = self;
            table.classify_burst(keys, hashes, bytes, now_ns, verdicts);
        }
        for ((packet, hash), key) in packets.iter_mut().zip(&self.hashes).zip(&self.keys) {
            packet.flow_hash = if *hash == 0 { key.flow_hash() } else { *hash };
        }
    }

    /// Where packet `at` of the last burst goes.
    #[must_use]
    #[inline]
    pub fn verdict(&self, at: usize) -> Verdict {
        if !self.read {
            return self.miss;
        }
        match self.verdicts.get(at).map(|verdict| verdict.outcome) {
            Some(Outcome::Chain(chain)) => Verdict::Chain(chain),
            Some(Outcome::Out(port)) => Verdict::Out(port),
            Some(Outcome::Drop) => Verdict::Drop(DropReason::RuleDrop),
            Some(Outcome::NoRule) | None => self.miss,
        }
    }

    /// How many packets of the last burst, of which there were `count`, have one verdict from packet
    /// `at` on.
    #[must_use]
    #[inline]
    pub fn run_pkts(&self, at: usize, count: usize) -> usize {
        match self.verdicts.get(at..count) {
            Some([first, rest @ ..]) if self.read => {
                1 + rest.iter().take_while(|verdict| verdict.outcome == first.outcome).count()
            }
            _ => count.saturating_sub(at),
        }
    }

    /// The key of packet `at` of the last burst, if its headers were read.
    #[must_use]
    #[inline]
    pub fn key(&self, at: usize) -> Option<&FlowKey> {
        if self.read { self.keys.get(at) } else { None }
    }

    /// Changes the rules, between two bursts. Returns whom it concerns.
    pub fn apply(&mut self, changes: RuleChanges) -> ChangedRules {
        if let Some(whole) = changes.whole {
            let old = Box::new(self.table.replace_rules(*whole));
            if let Some((older, _)) = self.replaced.replace((old, 0)) {
                self.discarded.push(*older);
            }
        } else if let Err(error) = self.table.apply(&changes.changes, self.now_ns()) {
            // The model checked them.
            tracing::error!(%error, "rules cannot be changed");
        }
        changes.concerned
    }

    /// Work that is not a packet's, a little of it; to be called between bursts.
    pub fn maintain(&mut self) {
        if let Some((old, from)) = self.replaced.take() {
            match self.table.adopt_counters(&old, from, ADOPT_BUDGET_RULES) {
                Some(next) => self.replaced = Some((old, next)),
                None => self.discarded.push(*old),
            }
        }
    }

    /// Rules whose memory somebody with more time is to give back.
    pub fn take_discarded(&mut self) -> Vec<RuleTables> {
        std::mem::take(&mut self.discarded)
    }

    /// Rules that have run out here.
    pub fn expire(&mut self) -> Vec<Expired> {
        let now_ns = self.now_ns();
        self.table.expire(now_ns, EXPIRE_BUDGET_RULES)
    }

    /// What rules have seen here, in the order asked for.
    #[must_use]
    pub fn rule_counters(&self, ids: &[u64]) -> Vec<Option<RuleCount>> {
        let now_ns = self.now_ns();
        let count = |counters: &RuleCounters| RuleCount {
            pkts: counters.pkts,
            bytes: counters.bytes,
            age_ns: now_ns.saturating_sub(counters.added_ns),
            idle_ns: now_ns.saturating_sub(counters.last_hit_ns),
        };
        ids.iter().map(|&id| self.table.rules().get(id).map(|(_, c)| count(c))).collect()
    }

    /// Goes on looking for the flows with most packets. True when all were seen.
    #[must_use]
    pub fn scan_flows(&self, scan: &mut FlowScan, budget: usize) -> bool {
        self.table.scan_flows(scan, budget)
    }

    /// The flows found, and how long each has been idle, nanoseconds.
    #[must_use]
    pub fn finish_scan(&self, scan: FlowScan) -> Vec<(Flow, u64)> {
        let now_ns = self.now_ns();
        let flows = scan.finish(&self.table);
        flows.into_iter().map(|flow| (flow, now_ns.saturating_sub(flow.last_ns))).collect()
    }

    /// Which rules a packet meets.
    #[must_use]
    pub fn explain(&self, key: &FlowKey) -> (Outcome, Vec<TableStep>) {
        (self.table.rules().lookup(key).0, self.table.rules().explain(key))
    }
}

/// What a rule has seen at one worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleCount {
    /// Packets it took.
    pub pkts: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Since it was added.
    pub age_ns: u64,
    /// Since it took a packet.
    pub idle_ns: u64,
}

fn miss_verdict(plan: &Plan) -> Verdict {
    match plan.miss {
        Miss::Egress => Verdict::Egress,
        Miss::Chain(chain) => Verdict::Chain(chain),
        Miss::Drop => Verdict::Drop(DropReason::NoRule),
    }
}
