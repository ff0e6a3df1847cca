//! Rules in tables: which one a packet takes, and what the rules have seen.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use nflib::descriptor::{ChainId, PortId};
use thiserror::Error;

use super::changes::ChangeLog;
use super::growing::{Chunked, GrowingMap, Slab};
use super::key::{FlowKey, KEY_WORDS, field};
use super::matching::Match;
use super::timers::{Timer, Timers};
use super::tuples::Tuple;

/// Number of a rule, unique among the rules that a table ever held. The control side gives them out
/// in the order of addition, which decides between overlapping rules of one priority.
pub type RuleId = u64;

/// No rule.
pub(super) const NO_SLOT: u32 = u32::MAX;

/// A rule of the flow table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Its number.
    pub id: RuleId,
    /// The table it stands in; packets start at 0.
    pub table: u8,
    /// Of the rules of a table that match, the one with the highest priority is taken; of several
    /// with one priority, the one with the lowest number, that is the one added first.
    pub priority: u16,
    /// Which packets.
    pub matches: Match,
    /// What to do with them.
    pub then: Then,
    /// Report the rule when it took no packet for so long; 0: never.
    pub idle_timeout_ns: u64,
    /// Report the rule so long after it was added; 0: never.
    pub hard_timeout_ns: u64,
}

/// What a rule does with the packets it takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Then {
    /// Through this chain.
    Chain(ChainId),
    /// Straight out by this port.
    Out(PortId),
    /// Away with it.
    #[default]
    Drop,
    /// On to a later table.
    Goto {
        /// Which.
        table: u8,
        /// Bits of the packet's metadata to set …
        metadata: u64,
        /// … among these. The others stay.
        mask: u64,
    },
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    /// Through this chain.
    Chain(ChainId),
    /// Straight out by this port.
    Out(PortId),
    /// Away with it, since a rule says so.
    Drop,
    /// No rule took it, in its first table or in one it was sent on to.
    #[default]
    NoRule,
}

/// Why a rule cannot be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RuleError {
    /// A packet could go round for ever.
    #[error("goto {to} from table {from}: a rule may only send to a later table")]
    GotoBackwards {
        /// Table of the rule.
        from: u8,
        /// Table it names.
        to: u8,
    },
}

impl Rule {
    /// Whether the rule can stand in a table.
    ///
    /// # Errors
    /// [`RuleError::GotoBackwards`].
    pub fn check(&self) -> Result<(), RuleError> {
        match self.then {
            Then::Goto { table, .. } if table <= self.table => {
                Err(RuleError::GotoBackwards { from: self.table, to: table })
            }
            _ => Ok(()),
        }
    }
}

/// What a rule has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleCounters {
    /// Packets it took.
    pub pkts: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When it took the last one; when it was added, if it never did. The caller's clock.
    pub last_hit_ns: u64,
    /// When it was added.
    pub added_ns: u64,
}

impl RuleCounters {
    #[inline]
    fn count(&mut self, bytes: u32, now_ns: u64) {
        self.pkts += 1;
        self.bytes += u64::from(bytes);
        self.last_hit_ns = now_ns;
    }
}

/// A table that a packet passes, for [`RuleTables::explain`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableStep {
    /// Its number.
    pub table: u8,
    /// The rule taken; `None`: none matched.
    pub rule: Option<RuleId>,
    /// The others that match, in the order in which they would be taken.
    pub also_matching: Vec<RuleId>,
}

/// All rules, and their counters.
#[derive(Debug)]
pub struct RuleTables {
    tables: Vec<Table>,
    slots: Slab<Slot>,
    /// By slot. Apart from the rules, so that counting touches half a cache line and no rule.
    counters: Chunked<RuleCounters>,
    by_id: GrowingMap<(RuleId, u32)>,
    timers: Timers,
    /// Counts changes.
    version: u32,
    pub(super) log: ChangeLog,
    /// Bits that some rule looks at.
    looked_at: FlowKey,
}

/// A rule in its place.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Slot {
    rule: Rule,
    /// The rule of the same table and match with the next lower priority.
    next: u32,
    live: bool,
    pub timer: Timer,
}

/// The rules of one table, by mask, the mask with the highest priority first.
#[derive(Debug, Default)]
struct Table {
    tuples: Vec<RuleTuple>,
}

#[derive(Debug)]
struct RuleTuple {
    tuple: Tuple<Head>,
    /// How many rules have each priority; the last key is `top`.
    priorities: BTreeMap<u16, u32>,
    top: u16,
}

/// The first of the rules with one match.
#[derive(Clone, Copy, Debug, Default)]
struct Head {
    slot: u32,
    priority: u16,
}

impl Default for RuleTables {
    fn default() -> Self {
        Self::new()
    }
}

impl RuleTables {
    /// No rules.
    #[must_use]
    pub fn new() -> Self {
        Self {
            tables: Vec::new(),
            slots: Slab::default(),
            counters: Chunked::default(),
            by_id: GrowingMap::default(),
            timers: Timers::new(),
            version: 0,
            log: ChangeLog::new(0),
            looked_at: FlowKey::default(),
        }
    }

    /// Adds a rule; one with the same table, priority and match, and one with the same number, is
    /// replaced and its counters are gone. Returns the number of the rule replaced by its match.
    ///
    /// Takes time for one hash insertion (see `growing.rs` for its bound) and one comparison a
    /// distinct mask of the table.
    ///
    /// # Errors
    /// [`RuleError`]; nothing is changed.
    pub fn insert(&mut self, rule: Rule, now_ns: u64) -> Result<Option<RuleId>, RuleError> {
        let replaced = self.insert_unnoted(rule, now_ns)?;
        self.changed(&rule);
        Ok(replaced)
    }

    /// As [`insert`](Self::insert), for one who sees to the cached verdicts on its packets himself.
    pub(super) fn insert_unnoted(
        &mut self,
        rule: Rule,
        now_ns: u64,
    ) -> Result<Option<RuleId>, RuleError> {
        rule.check()?;
        self.remove(rule.id);
        let slot =
            self.slots.insert(Slot { rule, next: NO_SLOT, live: true, timer: Timer::default() });
        if slot as usize == self.counters.len() {
            self.counters.push(RuleCounters::default());
        }
        self.counters[slot] =
            RuleCounters { last_hit_ns: now_ns, added_ns: now_ns, ..RuleCounters::default() };
        let replaced = self.link(slot);
        let replaced_id = replaced.map(|old| {
            let id = self.slots[old].rule.id;
            self.forget(old);
            id
        });
        self.by_id.insert(id_hash(rule.id), (rule.id, slot));
        self.timers.start(&mut self.slots, slot, due_ns(&rule, &self.counters[slot]));
        Ok(replaced_id)
    }

    /// Removes a rule; returns whether it was there.
    pub fn remove(&mut self, id: RuleId) -> bool {
        let removed = self.remove_unnoted(id);
        removed.inspect(|rule| self.changed(rule));
        removed.is_some()
    }

    /// As [`remove`](Self::remove), for one who sees to the cached verdicts on its packets himself.
    pub(super) fn remove_unnoted(&mut self, id: RuleId) -> Option<Rule> {
        let slot = self.slot_of(id)?;
        let rule = self.slots[slot].rule;
        self.unlink(slot);
        self.forget(slot);
        Some(rule)
    }

    /// A rule that is in no chain any more: its number, timer and slot.
    fn forget(&mut self, slot: u32) {
        let id = self.slots[slot].rule.id;
        self.by_id.remove(id_hash(id), |known| known.0 == id);
        self.timers.stop(&mut self.slots, slot);
        self.slots[slot].live = false;
        self.slots.remove(slot);
    }

    fn changed(&mut self, rule: &Rule) {
        self.version += 1;
        // A rule of a later table may meet packets whose metadata an earlier one set.
        let concerned = if rule.table == 0 { rule.matches } else { rule.matches.at_ingress() };
        self.log.note(self.version, &concerned);
    }

    /// Puts a slot into the chain of its match; returns the one whose place it took.
    fn link(&mut self, slot: u32) -> Option<u32> {
        let Rule { table, priority, matches, .. } = self.slots[slot].rule;
        if self.tables.len() <= usize::from(table) {
            self.tables.resize_with(usize::from(table) + 1, Table::default);
        }
        let table = &mut self.tables[usize::from(table)];
        let known = table.position(&matches);
        let at = known.unwrap_or_else(|| {
            let (priorities, top) = (BTreeMap::new(), 0);
            table.tuples.push(RuleTuple { tuple: Tuple::new(matches.mask()), priorities, top });
            table.tuples.len() - 1
        });
        let tuple = &mut table.tuples[at];
        let mut replaced = None;
        match tuple.tuple.find_mut(matches.value()) {
            None => tuple.tuple.insert(matches.value(), Head { slot, priority }),
            Some(head) => replaced = put_in_chain(&mut self.slots, head, slot),
        }
        if replaced.is_none() {
            *tuple.priorities.entry(priority).or_default() += 1;
            table.settle(at);
        }
        if known.is_none() {
            self.note_masks();
        }
        replaced
    }

    /// Takes a slot out of the chain of its match.
    fn unlink(&mut self, slot: u32) {
        let Slot { rule: Rule { table, priority, matches, .. }, next, .. } = self.slots[slot];
        let table = &mut self.tables[usize::from(table)];
        let Some(at) = table.position(&matches) else { return };
        let tuple = &mut table.tuples[at];
        let Some(head) = tuple.tuple.find_mut(matches.value()) else { return };
        if head.slot != slot {
            let mut before = head.slot;
            while self.slots[before].next != slot {
                before = self.slots[before].next;
            }
            self.slots[before].next = next;
        } else if next == NO_SLOT {
            tuple.tuple.remove(matches.value());
        } else {
            *head = Head { slot: next, priority: self.slots[next].rule.priority };
        }
        match tuple.priorities.get_mut(&priority) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                tuple.priorities.remove(&priority);
            }
        }
        if tuple.tuple.is_empty() {
            table.tuples.remove(at);
            self.note_masks();
        } else {
            table.settle(at);
        }
    }

    fn note_masks(&mut self) {
        self.looked_at = FlowKey::default();
        for tuple in self.tables.iter().flat_map(|table| &table.tuples) {
            let mask = tuple.tuple.mask.mask();
            (0..KEY_WORDS).for_each(|word| self.looked_at.0[word] |= mask.0[word]);
        }
    }

    /// What becomes of a packet; `visit` gets the slot of every rule it takes, in order.
    #[inline]
    pub(super) fn walk(&self, key: &FlowKey, mut visit: impl FnMut(u32)) -> Outcome {
        let mut key = *key;
        let mut table = 0;
        loop {
            let Some(slot) = self.tables.get(table).and_then(|table| table.best(&key, &self.slots))
            else {
                return Outcome::NoRule;
            };
            visit(slot);
            match self.slots[slot].rule.then {
                Then::Chain(chain) => return Outcome::Chain(chain),
                Then::Out(port) => return Outcome::Out(port),
                Then::Drop => return Outcome::Drop,
                Then::Goto { table: to, metadata, mask } => {
                    table = usize::from(to);
                    let old = key.get(field::METADATA);
                    key.set(field::METADATA, old & !mask | metadata & mask);
                }
            }
        }
    }

    /// What becomes of a packet, and by which rule in the end. Counts nothing.
    #[must_use]
    pub fn lookup(&self, key: &FlowKey) -> (Outcome, Option<RuleId>) {
        let mut last = None;
        let outcome = self.walk(key, |slot| last = Some(slot));
        let rule = last.filter(|_| outcome != Outcome::NoRule).map(|slot| self.slots[slot].rule.id);
        (outcome, rule)
    }

    /// The tables a packet passes, with the rules that match in each. Counts nothing.
    #[must_use]
    pub fn explain(&self, key: &FlowKey) -> Vec<TableStep> {
        let mut steps = Vec::new();
        let mut key = *key;
        let mut table = 0;
        loop {
            let mut found = self.all_matching(table, &key);
            found.sort_by_key(|&slot| {
                let rule = &self.slots[slot].rule;
                (u16::MAX - rule.priority, rule.id)
            });
            let mut ids = found.iter().map(|&slot| self.slots[slot].rule.id);
            let rule = ids.next();
            steps.push(TableStep { table, rule, also_matching: ids.collect() });
            let Some(&slot) = found.first() else { return steps };
            let Then::Goto { table: to, metadata, mask } = self.slots[slot].rule.then else {
                return steps;
            };
            table = to;
            let old = key.get(field::METADATA);
            key.set(field::METADATA, old & !mask | metadata & mask);
        }
    }

    fn all_matching(&self, table: u8, key: &FlowKey) -> Vec<u32> {
        let mut found = Vec::new();
        let tuples = self.tables.get(usize::from(table)).map_or(&[][..], |table| &table.tuples);
        for tuple in tuples {
            let mut at = tuple.tuple.find(key).map_or(NO_SLOT, |head| head.slot);
            while at != NO_SLOT {
                found.push(at);
                at = self.slots[at].next;
            }
        }
        found
    }

    /// Rules that are to be forgotten by their timeouts, looking at `budget` rules at most: what it
    /// costs is bounded, and what is not reached now is by the next calls.
    ///
    /// A rule is reported and stays: other workers may have seen packets of it, so the control side
    /// decides, and removes it from all. Until then it is reported again every second while it is
    /// due. Reports come up to 9 ms late, of the caller's clock.
    pub fn expire(&mut self, now_ns: u64, budget: usize) -> Vec<Expired> {
        let mut expired = Vec::new();
        self.timers.begin(now_ns);
        for _ in 0..budget {
            let Some(slot) = self.timers.next_due(&mut self.slots) else { break };
            let (rule, counters) = (&self.slots[slot].rule, &self.counters[slot]);
            let again_ns = match why_due(rule, counters, now_ns) {
                Some(why) => {
                    expired.push(Expired { id: rule.id, why });
                    now_ns.saturating_add(REPORT_AGAIN_NS)
                }
                None => due_ns(rule, counters),
            };
            self.timers.start(&mut self.slots, slot, again_ns);
        }
        expired
    }

    /// Adds the counters of an older set of rules, for the rules that are in both, to this one's:
    /// of the slots `from` to `from + budget` of `old`. Returns where to go on, `None` at the end.
    ///
    /// Counters stay private to a worker, so that counting is an addition to a line no other core
    /// has. When rules are swapped as a whole, they are taken over afterwards, a few between two
    /// bursts: they are sums, so what the new rules counted meanwhile is not lost, and the path
    /// never waits for a million of them.
    pub fn adopt_counters(&mut self, old: &Self, from: u32, budget: u32) -> Option<u32> {
        let to = from.saturating_add(budget).min(old.slots.end());
        for at in from..to {
            let Slot { rule, live: true, .. } = old.slots[at] else { continue };
            let Some(slot) = self.slot_of(rule.id) else { continue };
            let (ours, theirs) = (&mut self.counters[slot], &old.counters[at]);
            ours.pkts += theirs.pkts;
            ours.bytes += theirs.bytes;
            let newly_hit = ours.last_hit_ns > ours.added_ns;
            ours.last_hit_ns = if newly_hit { ours.last_hit_ns } else { theirs.last_hit_ns };
            ours.added_ns = theirs.added_ns;
            let due_ns = due_ns(&self.slots[slot].rule, ours);
            self.timers.stop(&mut self.slots, slot);
            self.timers.start(&mut self.slots, slot, due_ns);
        }
        (to < old.slots.end()).then_some(to)
    }

    #[inline]
    pub(super) fn count(&mut self, slot: u32, bytes: u32, now_ns: u64) {
        self.counters[slot].count(bytes, now_ns);
    }

    #[inline]
    pub(super) fn prefetch_counters(&self, slot: u32) {
        nflib::shm::prefetch(&self.counters[slot]);
    }

    fn slot_of(&self, id: RuleId) -> Option<u32> {
        self.by_id.find(id_hash(id), |known| known.0 == id).map(|known| known.1)
    }

    /// A rule and what it has seen.
    #[must_use]
    pub fn get(&self, id: RuleId) -> Option<(&Rule, &RuleCounters)> {
        let slot = self.slot_of(id)?;
        Some((&self.slots[slot].rule, &self.counters[slot]))
    }

    /// The number of the rule in a slot, that a [`Verdict`](super::Verdict) of before the next
    /// change names.
    #[must_use]
    pub(super) fn id_at(&self, slot: u32) -> Option<RuleId> {
        (slot < self.slots.end()).then(|| self.slots[slot].rule.id)
    }

    /// Every rule with what it has seen, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&Rule, &RuleCounters)> {
        (0..self.slots.end())
            .filter(|&slot| self.slots[slot].live)
            .map(|slot| (&self.slots[slot].rule, &self.counters[slot]))
    }

    /// How many rules there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Distinct masks in each table, which is what a lookup costs.
    pub fn masks(&self) -> impl Iterator<Item = usize> + '_ {
        self.tables.iter().map(|table| table.tuples.len())
    }

    /// Bits of the key that some rule looks at.
    #[must_use]
    pub fn looked_at(&self) -> &FlowKey {
        &self.looked_at
    }

    #[inline]
    pub(super) fn version(&self) -> u32 {
        self.version
    }

    /// Goes on counting versions from here, with every older verdict in doubt.
    pub(super) fn restart_versions(&mut self, version: u32) {
        self.version = version;
        self.log.forget_all(version);
    }
}

impl Table {
    fn position(&self, matches: &Match) -> Option<usize> {
        self.tuples.iter().position(|tuple| tuple.tuple.mask.mask() == matches.mask())
    }

    /// Moves the tuple at `at` to where its highest priority puts it.
    fn settle(&mut self, at: usize) {
        let top = self.tuples[at].priorities.last_key_value().map_or(0, |(&top, _)| top);
        self.tuples[at].top = top;
        let mut tuples = self.tuples.iter().enumerate().filter(|(n, _)| *n != at);
        let to = tuples.position(|(_, tuple)| tuple.top < top).unwrap_or(self.tuples.len() - 1);
        if to < at {
            self.tuples[to..=at].rotate_right(1);
        } else {
            self.tuples[at..=to].rotate_left(1);
        }
    }

    /// The rule that takes `key`.
    #[inline]
    fn best(&self, key: &FlowKey, slots: &Slab<Slot>) -> Option<u32> {
        let mut best: Option<Head> = None;
        for tuple in &self.tuples {
            if best.is_some_and(|best| tuple.top < best.priority) {
                break;
            }
            let Some(&head) = tuple.tuple.find(key) else { continue };
            let better = best.is_none_or(|best| {
                head.priority > best.priority
                    || head.priority == best.priority
                        && slots[head.slot].rule.id < slots[best.slot].rule.id
            });
            if better {
                best = Some(head);
            }
        }
        best.map(|best| best.slot)
    }
}

/// Puts a slot into a chain, which is in order of falling priority; returns the slot of the same
/// priority that it replaced.
fn put_in_chain(slots: &mut Slab<Slot>, head: &mut Head, slot: u32) -> Option<u32> {
    let priority = slots[slot].rule.priority;
    let (mut before, mut at) = (NO_SLOT, head.slot);
    while at != NO_SLOT && slots[at].rule.priority > priority {
        (before, at) = (at, slots[at].next);
    }
    let replaced = (at != NO_SLOT && slots[at].rule.priority == priority).then_some(at);
    slots[slot].next = replaced.map_or(at, |old| slots[old].next);
    if before == NO_SLOT {
        *head = Head { slot, priority };
    } else {
        slots[before].next = slot;
    }
    replaced
}

fn id_hash(id: RuleId) -> u32 {
    (id.wrapping_mul(super::key::SECRET[0]) >> 32) as u32
}

/// How long a rule that was reported is left alone.
const REPORT_AGAIN_NS: u64 = 1_000_000_000;

/// A rule whose time has run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expired {
    /// Which.
    pub id: RuleId,
    /// By which of its timeouts.
    pub why: Timeout,
}

/// Timeouts of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Timeout {
    /// No packet for so long.
    Idle,
    /// So long after it was added.
    Hard,
}

/// When a rule's time runs out, as far as is known now; `u64::MAX`: never.
fn due_ns(rule: &Rule, counters: &RuleCounters) -> u64 {
    let at = |since_ns: u64, after_ns: u64| match after_ns {
        0 => u64::MAX,
        after_ns => since_ns.saturating_add(after_ns),
    };
    at(counters.last_hit_ns, rule.idle_timeout_ns).min(at(counters.added_ns, rule.hard_timeout_ns))
}

fn why_due(rule: &Rule, counters: &RuleCounters, now_ns: u64) -> Option<Timeout> {
    let over =
        |since_ns: u64, after_ns: u64| after_ns > 0 && now_ns >= since_ns.saturating_add(after_ns);
    if over(counters.added_ns, rule.hard_timeout_ns) {
        return Some(Timeout::Hard);
    }
    over(counters.last_hit_ns, rule.idle_timeout_ns).then_some(Timeout::Idle)
}
