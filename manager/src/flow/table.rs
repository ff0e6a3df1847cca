//! The flow table of one worker: rules, and the cache in front of them.
#![forbid(unsafe_code)]

use super::cache::{CacheStats, Entry, FlowCache, MAX_PATH, NO_ENTRY, Place};
use super::key::{FlowKey, KEY_WORDS, field};
use super::rules::{Expired, NO_SLOT, Outcome, Rule, RuleError, RuleId, RuleTables};

/// The most packets that are looked up at once; a longer burst is taken in parts.
const BURST: usize = crate::ports::MAX_BURST_PKTS;

/// What becomes of a packet, and by which rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What becomes of it.
    pub outcome: Outcome,
    /// Slot of the rule taken last. [`FlowTable::rule_of`] gives its number until the next change.
    slot: u32,
}

impl Default for Verdict {
    fn default() -> Self {
        Self { outcome: Outcome::NoRule, slot: NO_SLOT }
    }
}

/// One change to the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "a list of them is made once and read once")]
pub enum RuleChange {
    /// Add this rule; see [`RuleTables::insert`] for what it replaces.
    Add(Rule),
    /// Remove the rule of this number, if it is still there.
    Remove(RuleId),
}

/// A flow that the cache knows, as [`FlowTable::top_flows`] tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Its key, without the fields that no rule looks at and that differ from packet to packet.
    pub key: FlowKey,
    /// What becomes of its packets now.
    pub outcome: Outcome,
    /// The rule that says so.
    pub rule: Option<RuleId>,
    /// Packets since the flow came to be known.
    pub pkts: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When the last one came. The caller's clock.
    pub last_ns: u64,
}

/// Rules and the cache in front of them, owned and used by one thread.
///
/// Workers share no table: each has a copy, and applies the changes it is sent between two bursts,
/// so a burst sees all of a transaction or nothing of it, and nobody takes a lock.
///
/// **After a change** nothing is thrown away. Every cached verdict remembers the version of the
/// rules it was right at; when a packet finds one that is older than the last change, the changes in
/// between are asked whether they concern this flow (`changes.rs`: a probe a distinct mask among
/// them), and only if one does, or too many were missed, are the rules looked up again.
#[derive(Debug)]
pub struct FlowTable {
    rules: RuleTables,
    cache: Option<FlowCache>,
    /// Bits of a key that tell cached flows apart.
    cache_mask: FlowKey,
    uncached: u64,
}

impl FlowTable {
    /// No rules, and a cache for so many flows (0: none; 192 bytes each, taken at once).
    #[must_use]
    pub fn new(cached_flows: u32) -> Self {
        let cache = (cached_flows > 0).then(|| FlowCache::new(cached_flows));
        let rules = RuleTables::new();
        let cache_mask = cache_mask(&rules);
        Self { rules, cache, cache_mask, uncached: 0 }
    }

    /// The rules, to be read.
    #[must_use]
    pub fn rules(&self) -> &RuleTables {
        &self.rules
    }

    /// Adds a rule. See [`RuleTables::insert`].
    ///
    /// # Errors
    /// [`RuleError`]; nothing is changed.
    pub fn insert(&mut self, rule: Rule, now_ns: u64) -> Result<Option<RuleId>, RuleError> {
        let replaced = self.rules.insert(rule, now_ns)?;
        self.after_changes();
        Ok(replaced)
    }

    /// Removes a rule; returns whether it was there.
    pub fn remove(&mut self, id: RuleId) -> bool {
        let was_there = self.rules.remove(id);
        self.after_changes();
        was_there
    }

    /// Makes all of the changes, in order, or none.
    ///
    /// # Errors
    /// [`RuleError`] of the first that cannot be made; nothing is changed.
    pub fn apply(&mut self, changes: &[RuleChange], now_ns: u64) -> Result<(), RuleError> {
        for change in changes {
            if let RuleChange::Add(rule) = change {
                rule.check()?;
            }
        }
        for change in changes {
            match change {
                RuleChange::Add(rule) => {
                    self.rules.insert(*rule, now_ns)?;
                }
                RuleChange::Remove(id) => {
                    self.rules.remove(*id);
                }
            }
        }
        self.after_changes();
        Ok(())
    }

    /// Puts other rules, built elsewhere, in the place of these, at once; returns the old ones, for
    /// [`FlowTable::adopt_counters`] and to be dropped elsewhere. The cache stays: every flow is
    /// looked up again when its next packet comes, and keeps its counters.
    pub fn replace_rules(&mut self, new: RuleTables) -> RuleTables {
        let version = self.rules.version();
        let old = std::mem::replace(&mut self.rules, new);
        self.rules.restart_versions(version + 1);
        self.after_changes();
        old
    }

    /// See [`RuleTables::adopt_counters`].
    pub fn adopt_counters(&mut self, old: &RuleTables, from: u32, budget: u32) -> Option<u32> {
        self.rules.adopt_counters(old, from, budget)
    }

    fn after_changes(&mut self) {
        self.cache_mask = cache_mask(&self.rules);
        // Long before the count of changes would wrap and old verdicts look new.
        if self.rules.version() > u32::MAX / 2 {
            self.rules.restart_versions(0);
            if let Some(cache) = &mut self.cache {
                cache.clear();
            }
        }
    }

    /// What becomes of each packet of a burst, and counts it.
    ///
    /// `hashes` are the NIC's flow hashes; where there is none (0), the key's own is filled in.
    /// `bytes` are the frames' lengths. All slices are as long as `keys`.
    ///
    /// The burst passes in stages, each of which asks for the memory of the next, so that the waits
    /// for memory of all its packets overlap.
    ///
    /// # Panics
    /// When a slice is shorter than `keys`.
    pub fn classify_burst(
        &mut self,
        keys: &[FlowKey],
        hashes: &mut [u32],
        bytes: &[u32],
        now_ns: u64,
        out: &mut [Verdict],
    ) {
        let len = keys.len();
        let (hashes, bytes, out) = (&mut hashes[..len], &bytes[..len], &mut out[..len]);
        for (key, hash) in keys.iter().zip(hashes.iter_mut()) {
            if *hash == 0 {
                *hash = key.flow_hash();
            }
        }
        let Some(mut cache) = self.cache.take() else {
            for ((key, bytes), out) in keys.iter().zip(bytes).zip(out) {
                *out = self.classify_uncached(key, *bytes, now_ns);
            }
            return;
        };
        for from in (0..len).step_by(BURST) {
            let part = from..len.min(from + BURST);
            self.classify_part(
                &mut cache,
                &keys[part.clone()],
                &hashes[part.clone()],
                &bytes[part.clone()],
                now_ns,
                &mut out[part],
            );
        }
        self.cache = Some(cache);
    }

    #[inline]
    fn classify_part(
        &mut self,
        cache: &mut FlowCache,
        keys: &[FlowKey],
        hashes: &[u32],
        bytes: &[u32],
        now_ns: u64,
        out: &mut [Verdict],
    ) {
        let len = keys.len().min(BURST);
        let mut places = [Place::default(); BURST];
        let mut at = [NO_ENTRY; BURST];
        for n in 0..len {
            places[n] = cache.place(hashes[n]);
            cache.prefetch_tags(places[n]);
        }
        for n in 0..len {
            at[n] = cache.candidate(places[n]);
            if at[n] != NO_ENTRY {
                cache.prefetch_entry(at[n]);
            }
        }
        let version = self.rules.version();
        // Bit n: packet n's flow was found; its verdict is right, too.
        let (mut found, mut right) = (0_u64, 0_u64);
        for n in 0..len {
            if at[n] == NO_ENTRY {
                continue;
            }
            let entry = cache.entry(at[n]);
            let is_it = entry.is_flow_of(&keys[n], &self.cache_mask);
            let current = is_it && entry.version == version;
            found |= u64::from(is_it) << n;
            right |= u64::from(current) << n;
            if current && entry.path[0] != NO_SLOT {
                self.rules.prefetch_counters(entry.path[0]);
            }
        }
        cache.stats.hits += u64::from(found.count_ones());
        let mut disturbed = false;
        for n in 0..len {
            // A miss of this very burst may have put another flow into the entry.
            let known = right >> n & 1 == 1
                && (!disturbed || cache.entry(at[n]).is_flow_of(&keys[n], &self.cache_mask));
            let at = if known {
                at[n]
            } else {
                disturbed = true;
                match self.find_or_add(cache, places[n], &keys[n], found >> n & 1 == 0) {
                    Some(at) => at,
                    None => {
                        out[n] = self.classify_uncached(&keys[n], bytes[n], now_ns);
                        continue;
                    }
                }
            };
            out[n] = self.count(cache.entry_mut(at), bytes[n], now_ns);
        }
    }

    /// Counts a packet of a cached flow whose verdict is right.
    #[inline(always)]
    fn count(&mut self, entry: &mut Entry, bytes: u32, now_ns: u64) -> Verdict {
        entry.pkts += 1;
        entry.bytes += u64::from(bytes);
        entry.last_ns = now_ns;
        let mut last = NO_SLOT;
        for slot in entry.path {
            if slot == NO_SLOT {
                break;
            }
            self.rules.count(slot, bytes, now_ns);
            last = slot;
        }
        let slot = if entry.outcome == Outcome::NoRule { NO_SLOT } else { last };
        Verdict { outcome: entry.outcome, slot }
    }

    /// The entry of a flow, with a right verdict; `None` for one that the cache cannot hold.
    #[cold]
    fn find_or_add(
        &mut self,
        cache: &mut FlowCache,
        place: Place,
        key: &FlowKey,
        missed: bool,
    ) -> Option<u32> {
        let found = cache.find(place, key, &self.cache_mask);
        let version = self.rules.version();
        if let Some(at) = found {
            // Two flows with one tag, or one that came in this very burst.
            cache.stats.hits += u64::from(missed);
            let entry = cache.entry_mut(at);
            if entry.version == version || self.rules.log.still_right(&entry.key, entry.version) {
                entry.version = version;
                return Some(at);
            }
            cache.stats.refreshed += 1;
        } else {
            cache.stats.misses += 1;
            cache.stats.hits -= u64::from(!missed);
        }
        let (outcome, path) = self.path_of(key);
        let Some(path) = path else {
            cache.stats.too_long += 1;
            found.inspect(|&at| cache.remove(at));
            return None;
        };
        let Some(at) = found else {
            let entry = Entry::new(key.masked(&self.cache_mask), version, outcome, path);
            return Some(cache.insert(place, entry));
        };
        let entry = cache.entry_mut(at);
        (entry.version, entry.outcome, entry.path) = (version, outcome, path);
        Some(at)
    }

    /// What becomes of a packet, and the rules it takes; `None` when they are too many.
    fn path_of(&self, key: &FlowKey) -> (Outcome, Option<[u32; MAX_PATH]>) {
        let mut path = [NO_SLOT; MAX_PATH];
        let mut len = 0;
        let outcome = self.rules.walk(key, |slot| {
            if let Some(place) = path.get_mut(len) {
                *place = slot;
            }
            len += 1;
        });
        (outcome, (len <= MAX_PATH).then_some(path))
    }

    /// What becomes of a packet, without the cache, and counts it.
    fn classify_uncached(&mut self, key: &FlowKey, bytes: u32, now_ns: u64) -> Verdict {
        self.uncached += 1;
        let mut path = [NO_SLOT; 256];
        let mut len = 0;
        let outcome = self.rules.walk(key, |slot| {
            // A packet passes a table once at most, and there are 256.
            path[len] = slot;
            len += 1;
        });
        let path = &path[..len];
        path.iter().for_each(|&slot| self.rules.count(slot, bytes, now_ns));
        let slot = path.last().copied().filter(|_| outcome != Outcome::NoRule);
        Verdict { outcome, slot: slot.unwrap_or(NO_SLOT) }
    }

    /// Number of the rule behind a verdict, until the next change. `None` when no rule gave it.
    #[must_use]
    pub fn rule_of(&self, verdict: Verdict) -> Option<RuleId> {
        self.rules.id_at(verdict.slot)
    }

    /// Rules whose time has run out. See [`RuleTables::expire`].
    pub fn expire(&mut self, now_ns: u64, budget: usize) -> Vec<Expired> {
        self.rules.expire(now_ns, budget)
    }

    /// Forgets cached flows that had no packet since `before_ns`, looking at `budget` times eight
    /// places of the cache; the next call goes on where this one ended.
    pub fn forget_idle_flows(&mut self, before_ns: u64, budget: usize) {
        if let Some(cache) = &mut self.cache {
            cache.sweep(before_ns, budget);
        }
    }

    /// How the cache fares; all 0 when there is none.
    #[must_use]
    pub fn cache_stats(&self) -> CacheStats {
        self.cache.as_ref().map(|cache| cache.stats).unwrap_or_default()
    }

    /// The flows with most packets, by falling number of them, in one go: 0.1 s for a million.
    #[must_use]
    pub fn top_flows(&self, limit: usize) -> Vec<Flow> {
        let mut scan = FlowScan::new(limit);
        while !self.scan_flows(&mut scan, usize::MAX) {}
        scan.finish(self)
    }

    /// Looks at `budget` times eight more places of the cache for [`FlowScan`], which can so be
    /// spread over many turns of a worker. Returns true at the end.
    pub fn scan_flows(&self, scan: &mut FlowScan, budget: usize) -> bool {
        let Some(cache) = &self.cache else { return true };
        let to = scan.at.saturating_add(budget).min(cache.buckets());
        for bucket in scan.at..to {
            cache.flows_of(bucket).for_each(|entry| scan.consider(entry));
        }
        scan.at = to;
        to == cache.buckets()
    }
}

/// Bits that tell cached flows apart: those that some rule looks at, and those that make a flow for
/// a person. Not those that differ between packets of one flow (TCP flags, DSCP, ECN, fragment
/// state, VLAN priority): as long as no rule asks for them, all of a flow is one entry.
///
/// The mask may change while there are entries: an entry stands for the packets whose bits under the
/// mask of now are its key, bits it was not made with being 0, and its verdict is that of its key.
fn cache_mask(rules: &RuleTables) -> FlowKey {
    let mut mask = FlowKey([u64::MAX; KEY_WORDS]);
    for varying in [field::TCP_FLAGS, field::DSCP, field::ECN, field::FRAG, field::VLAN_PCP] {
        mask.set(varying, 0);
    }
    let looked_at = rules.looked_at();
    FlowKey(std::array::from_fn(|word| mask.0[word] | looked_at.0[word]))
}

/// A search for the flows with most packets, in steps: see [`FlowTable::scan_flows`].
#[derive(Debug)]
pub struct FlowScan {
    limit: usize,
    at: usize,
    flows: u64,
    /// The best so far, the worst of them on top.
    best: std::collections::BinaryHeap<Candidate>,
}

impl FlowScan {
    /// A search for `limit` flows.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { limit, at: 0, flows: 0, best: std::collections::BinaryHeap::new() }
    }

    fn consider(&mut self, entry: &Entry) {
        self.flows += 1;
        if self.best.len() == self.limit {
            match self.best.peek() {
                Some(worst) if entry.pkts > worst.0.pkts => self.best.pop(),
                _ => return,
            };
        }
        self.best.push(Candidate(*entry));
    }

    /// Flows seen.
    #[must_use]
    pub fn flows(&self) -> u64 {
        self.flows
    }

    /// What was found, by falling number of packets, with the verdicts of now.
    #[must_use]
    pub fn finish(self, table: &FlowTable) -> Vec<Flow> {
        let best = self.best.into_sorted_vec();
        let flow = |Candidate(entry): Candidate| {
            let (outcome, rule) = table.rules.lookup(&entry.key);
            let Entry { key, pkts, bytes, last_ns, .. } = entry;
            Flow { key, outcome, rule, pkts, bytes, last_ns }
        };
        best.into_iter().map(flow).collect()
    }
}

/// Orders by falling number of packets, so that the greatest is the one with fewest.
#[derive(Debug)]
struct Candidate(Entry);

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.0.pkts.cmp(&self.0.pkts)
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.0.pkts == other.0.pkts
    }
}

impl Eq for Candidate {}

/// A table is built by the control thread and used by a worker.
const _: fn() = || {
    fn sent<T: Send>() {}
    sent::<FlowTable>();
    sent::<RuleTables>();
};
