//! Rules of the flow table, checked and numbered, a million of them if need be.
//!
//! They are kept in the order in which packets meet them, and found by number, by name, and by what
//! makes a rule the same rule: table, priority and match. All of it is in shared maps, so that a
//! change to a copy costs some microseconds however many rules there are.
#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use nflib::control::spec::Value;
use nflib::control::{MatchSpec, RuleSpec, ThenSpec};

use super::chains::{Chains, find_port};
use super::error::{ModelError, check_name, shown};
use super::order::Overlapped;
use super::tree::SharedMap;
use crate::flow::{self, Match, RuleId, Then};

/// Shortest timeout of a rule, seconds.
pub const MIN_TIMEOUT_S: f64 = 0.001;

/// A rule of the flow table.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The rule as the flow table takes it.
    ///
    /// Its number is given once and never again. It stays when another action or other timeouts are
    /// written for the same table, priority and match, and changes when the rule comes to stand
    /// behind another one that it overlaps.
    pub entry: flow::Rule,
    /// Its name, unique.
    pub name: Option<Arc<str>>,
    /// What was written, packed: most fields of a match are absent.
    match_fields: Box<[(u8, Value)]>,
    then_spec: ThenSpec,
    idle_timeout_s: Option<f64>,
    hard_timeout_s: Option<f64>,
}

impl Rule {
    /// Its number.
    #[must_use]
    pub fn id(&self) -> RuleId {
        self.entry.id
    }

    /// The match as it was written.
    #[must_use]
    pub fn match_spec(&self) -> MatchSpec {
        let mut spec = MatchSpec::default();
        for (field, value) in &self.match_fields {
            // The number was made from the same list.
            let _ = spec.set(MatchSpec::FIELDS[usize::from(*field)], value.clone());
        }
        spec
    }

    /// The rule as it was written.
    #[must_use]
    pub fn spec(&self) -> RuleSpec {
        RuleSpec {
            name: self.name.as_deref().map(str::to_owned),
            table: self.entry.table,
            priority: self.entry.priority,
            matches: self.match_spec(),
            then: self.then_spec.clone(),
            idle_timeout_s: self.idle_timeout_s,
            hard_timeout_s: self.hard_timeout_s,
        }
    }

    /// Its name, or `table/priority match`: for people.
    #[must_use]
    pub fn label(&self) -> String {
        match &self.name {
            Some(name) => name.to_string(),
            None => self.key_label(),
        }
    }

    /// `table/priority match`, without control characters.
    #[must_use]
    pub fn key_label(&self) -> String {
        key_label(self.entry.table, self.entry.priority, &self.match_spec())
    }

    /// What it does, as it was written: `chain=web idle_timeout_s=5`.
    #[must_use]
    pub fn then_label(&self) -> String {
        use std::fmt::Write as _;
        let mut label = plain(&self.then_spec.to_string());
        for (name, timeout) in
            [("idle_timeout_s", self.idle_timeout_s), ("hard_timeout_s", self.hard_timeout_s)]
        {
            if let Some(timeout) = timeout {
                let _ = write!(label, " {name}={timeout}");
            }
        }
        label
    }

    /// Whether it says the same of its packets as `other`, chains and ports taken by their names.
    #[must_use]
    pub fn does_the_same(&self, other: &Self) -> bool {
        let named = |then: &ThenSpec| ThenSpec { set_metadata: None, ..then.clone() };
        let metadata = |rule: &Self| match rule.entry.then {
            Then::Goto { metadata, mask, .. } => (metadata, mask),
            _ => (0, 0),
        };
        named(&self.then_spec) == named(&other.then_spec)
            && metadata(self) == metadata(other)
            && self.name == other.name
            && self.idle_timeout_s == other.idle_timeout_s
            && self.hard_timeout_s == other.hard_timeout_s
    }

    /// Whether it is the same rule as `other`, whatever it does.
    #[must_use]
    pub fn is_same_rule(&self, other: &Self) -> bool {
        let (a, b) = (&self.entry, &other.entry);
        (a.table, a.priority, &a.matches) == (b.table, b.priority, &b.matches)
    }

    pub(super) fn order(&self) -> Order {
        (self.entry.table, Reverse(self.entry.priority), self.entry.id)
    }

    fn key_hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.entry.table, self.entry.priority, &self.entry.matches).hash(&mut hasher);
        hasher.finish()
    }
}

/// A rule's label before it has a number.
pub(super) fn spec_label(spec: &RuleSpec) -> String {
    match &spec.name {
        Some(name) => shown(name),
        None => key_label(spec.table, spec.priority, &spec.matches),
    }
}

fn key_label(table: u8, priority: u16, matches: &MatchSpec) -> String {
    plain(&format!("{table}/{priority} {matches}"))
}

/// A text on one line.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(500).collect()
}

/// Checks a rule and looks up what it names. Its number is still 0.
pub(super) fn compile(
    spec: &RuleSpec,
    chains: &Chains,
    ports: &[String],
) -> Result<Rule, ModelError> {
    let within = |error: ModelError| ModelError {
        message: format!("rule {}: {}", spec_label(spec), error.message),
        ..error
    };
    if let Some(name) = &spec.name {
        check_rule_name(name)?;
    }
    let matches = compile_match(&spec.matches, ports).map_err(within)?;
    let field_number = |name: &str| MatchSpec::FIELDS.iter().position(|field| *field == name);
    let match_fields = spec
        .matches
        .fields()
        .filter_map(|(name, value)| Some((u8::try_from(field_number(name)?).ok()?, value.clone())));
    let timeout_ns = |name, timeout| timeout_ns(name, timeout).map_err(within);
    let entry = flow::Rule {
        id: 0,
        table: spec.table,
        priority: spec.priority,
        matches,
        then: resolve_then(spec, chains, ports).map_err(within)?,
        idle_timeout_ns: timeout_ns("idle_timeout_s", spec.idle_timeout_s)?,
        hard_timeout_ns: timeout_ns("hard_timeout_s", spec.hard_timeout_s)?,
    };
    Ok(Rule {
        entry,
        name: spec.name.as_deref().map(Arc::from),
        match_fields: match_fields.collect(),
        then_spec: spec.then.clone(),
        idle_timeout_s: spec.idle_timeout_s,
        hard_timeout_s: spec.hard_timeout_s,
    })
}

/// Checks a match and looks up what it names.
pub(super) fn compile_match(spec: &MatchSpec, ports: &[String]) -> Result<Match, ModelError> {
    let port = |name: &str| find_port(name, ports).ok();
    if let Some(in_port) = &spec.in_port {
        find_port(&in_port.to_string(), ports)?;
    }
    Match::compile(spec, &port).map_err(|error| ModelError::invalid(plain(&error.to_string())))
}

fn check_rule_name(name: &str) -> Result<(), ModelError> {
    check_name("rule", name)?;
    if name.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(ModelError::invalid(format!(
            "rule {name:?}: digits only would be taken for a rule's number; choose a word"
        )));
    }
    Ok(())
}

/// A timeout as the flow table takes it; 0: never.
fn timeout_ns(name: &str, timeout: Option<f64>) -> Result<u64, ModelError> {
    let most = super::MAX_SECONDS;
    match timeout {
        None => Ok(0),
        Some(s) if (MIN_TIMEOUT_S..=most).contains(&s) => Ok((s * 1e9) as u64),
        Some(s) => Err(ModelError::invalid(format!(
            "{name} is {s}: expected {MIN_TIMEOUT_S} to {most} seconds"
        ))),
    }
}

fn resolve_then(spec: &RuleSpec, chains: &Chains, ports: &[String]) -> Result<Then, ModelError> {
    let ThenSpec { chain, out, drop, goto, set_metadata } = &spec.then;
    if set_metadata.is_some() && goto.is_none() {
        return Err(ModelError::invalid(
            "set_metadata is for a later table: add goto, or leave it out",
        ));
    }
    match (chain, out, drop, goto) {
        (Some(chain), None, false, None) => Ok(Then::Chain(chains.find(chain)?)),
        (None, Some(port), false, None) => Ok(Then::Out(find_port(port, ports)?)),
        (None, None, true, None) => Ok(Then::Drop),
        (None, None, false, Some(table)) if *table > spec.table => {
            let (metadata, mask) = set_metadata.as_ref().map_or(Ok((0, 0)), masked)?;
            Ok(Then::Goto { table: *table, metadata, mask })
        }
        (None, None, false, Some(table)) => Err(ModelError::invalid(format!(
            "goto {table} from table {}: a packet only goes on to a higher table",
            spec.table
        ))),
        (None, None, false, None) => Err(ModelError::invalid(
            "then says nothing: expected one of chain, out, drop = true, goto",
        )),
        _ => Err(ModelError::invalid(format!(
            "then says more than one thing ({}): expected one of chain, out, drop, goto",
            plain(&spec.then.to_string())
        ))),
    }
}

/// Reads `5`, `0x10` or `0x10/0xf0`: the bits, and which of them count.
fn masked(value: &Value) -> Result<(u64, u64), ModelError> {
    let read = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    let (value_bits, mask) = match value {
        Value::Int(number) => (Some(*number), Some(u64::MAX)),
        Value::Text(text) => match text.split_once('/') {
            Some((value, mask)) => (read(value), read(mask)),
            None => (read(text), Some(u64::MAX)),
        },
    };
    let wrong = |what: &str| {
        ModelError::invalid(format!("set_metadata is {}: {what}", shown(&value.to_string())))
    };
    match (value_bits, mask) {
        (Some(value), Some(mask)) if value & !mask == 0 => Ok((value, mask)),
        (Some(_), Some(_)) => Err(wrong("the value has bits that its mask has not")),
        _ => Err(wrong("expected a number of 64 bits, or value/mask")),
    }
}

/// Where a rule stands: table, falling priority, number.
pub(super) type Order = (u8, Reverse<u16>, RuleId);

/// Table and priority: rules among which the order of writing counts.
pub(super) type Group = (u8, u16);

/// All rules.
#[derive(Clone, Debug, Default)]
pub(super) struct Rules {
    by_order: SharedMap<Order, Arc<Rule>>,
    by_id: SharedMap<RuleId, Order>,
    by_name: SharedMap<Arc<str>, Order>,
    /// Hash of table, priority and match, then the number.
    by_key: SharedMap<(u64, RuleId), Order>,
    /// The next rule's number. Numbers start at 1.
    next_id: RuleId,
}

impl Rules {
    /// No rules, numbering on from those of `previous`.
    pub fn after(previous: Option<&Self>) -> Self {
        Self { next_id: previous.map_or(1, |rules| rules.next_id), ..Self::default() }
    }

    pub fn len(&self) -> usize {
        self.by_order.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_order.is_empty()
    }

    /// In the order in which packets meet them: table, falling priority, number.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Rule>> + '_ {
        self.by_order.iter().map(|(_, rule)| rule)
    }

    /// Rules of a table with a priority, by number.
    pub fn group(&self, table: u8, priority: u16) -> impl Iterator<Item = &Arc<Rule>> + '_ {
        let from = (table, Reverse(priority), 0);
        let in_group =
            move |rule: &&Arc<Rule>| (rule.entry.table, rule.entry.priority) == (table, priority);
        self.by_order.range_from(&from).map(|(_, rule)| rule).take_while(in_group)
    }

    /// Whether more than `count` rules have a priority. Looks at no more of them.
    pub fn group_is_larger(&self, table: u8, priority: u16, count: usize) -> bool {
        let from = (table, Reverse(priority), 0);
        let mut orders = self.by_order.range_from(&from).map(|(order, _)| order);
        orders.nth(count).is_some_and(|order| (order.0, order.1) == (from.0, from.1))
    }

    pub fn get(&self, id: RuleId) -> Option<&Arc<Rule>> {
        self.by_order.get(self.by_id.get(&id)?)
    }

    pub fn named(&self, name: &str) -> Option<&Arc<Rule>> {
        self.by_order.get(self.by_name.get(&Arc::from(name))?)
    }

    /// The rule that is the same rule.
    pub fn same_as(&self, rule: &Rule) -> Option<&Arc<Rule>> {
        let hash = rule.key_hash();
        self.by_key
            .range_from(&(hash, 0))
            .take_while(|((other, _), _)| *other == hash)
            .filter_map(|(_, order)| self.by_order.get(order))
            .find(|other| other.is_same_rule(rule))
    }

    /// Adds a rule behind those of its priority, or puts it in the place of the same rule.
    pub fn add(&mut self, mut rule: Rule) -> Result<Arc<Rule>, ModelError> {
        let same = self.same_as(&rule).cloned();
        self.check_name_is_free(&rule, same.as_ref().map(|old| old.id()))?;
        rule.entry.id = match &same {
            Some(old) => {
                self.take_out(old);
                old.id()
            }
            None => self.new_id(),
        };
        Ok(self.put(Arc::new(rule)))
    }

    /// Takes in the rules of a file, given in its order. A rule keeps the number it has in
    /// `previous`, unless it now stands behind one with a higher number that it overlaps.
    pub fn add_all(
        &mut self,
        rules: Vec<Rule>,
        previous: Option<&Self>,
    ) -> Result<(), (usize, ModelError)> {
        let unordered = self.unordered_groups(&rules, previous);
        let mut before: HashMap<Group, Overlapped> = HashMap::new();
        for (at, mut rule) in rules.into_iter().enumerate() {
            self.check_is_new(&rule).map_err(|error| (at, error))?;
            let old = previous.and_then(|rules| rules.same_as(&rule));
            let mut overlapped = match unordered.contains(&rule.group()) {
                true => Some(before.entry(rule.group()).or_default()),
                false => None,
            };
            let above = overlapped.as_mut().and_then(|o| o.highest(&rule.entry.matches));
            rule.entry.id = match old {
                Some(old) if above < Some(old.id()) => old.id(),
                _ => self.new_id(),
            };
            if let Some(overlapped) = overlapped {
                overlapped.add(&rule.entry.matches, rule.entry.id);
            }
            // Not a copy more of what runs already.
            let rule = match old {
                Some(old) if old.is_spelled_like(&rule) => Arc::clone(old),
                _ => Arc::new(rule),
            };
            self.put(rule);
        }
        Ok(())
    }

    /// The next rule's number.
    pub fn next_id(&self) -> RuleId {
        self.next_id
    }

    /// Adds a rule with the number that it had before.
    pub fn add_numbered(&mut self, mut rule: Rule, id: RuleId) -> Result<(), ModelError> {
        self.check_is_new(&rule)?;
        if self.get(id).is_some() || id == 0 || id == RuleId::MAX {
            return Err(ModelError::invalid(format!(
                "rule {}: its number {id} is none, or another rule's",
                rule.label()
            )));
        }
        rule.entry.id = id;
        self.next_id = self.next_id.max(id + 1);
        self.put(Arc::new(rule));
        Ok(())
    }

    /// The next rule's number is at least this one.
    pub fn number_on_from(&mut self, id: RuleId) {
        self.next_id = self.next_id.max(id);
    }

    /// Priorities in whose order of writing the numbers, as far as known, do not rise.
    fn unordered_groups(&self, rules: &[Rule], previous: Option<&Self>) -> HashSet<Group> {
        let mut unordered = HashSet::new();
        let Some(previous) = previous else { return unordered };
        let mut last: HashMap<Group, RuleId> = HashMap::new();
        for rule in rules {
            let id = previous.same_as(rule).map_or(RuleId::MAX, |old| old.id());
            let highest = last.entry(rule.group()).or_insert(id);
            if id < *highest {
                unordered.insert(rule.group());
            }
            *highest = id.max(*highest);
        }
        unordered
    }

    fn check_is_new(&self, rule: &Rule) -> Result<(), ModelError> {
        match self.same_as(rule) {
            None => self.check_name_is_free(rule, None),
            Some(other) => Err(ModelError::invalid(format!(
                "rule {}: the same table, priority and match stand there already, as rule {}",
                rule.label(),
                other.label()
            ))),
        }
    }

    fn check_name_is_free(&self, rule: &Rule, unless: Option<RuleId>) -> Result<(), ModelError> {
        let Some(name) = &rule.name else { return Ok(()) };
        match self.named(name) {
            Some(other) if Some(other.id()) != unless => Err(ModelError::invalid(format!(
                "two rules are named {name:?}: names must differ (the other is {})",
                other.key_label()
            ))),
            _ => Ok(()),
        }
    }

    fn new_id(&mut self) -> RuleId {
        self.next_id += 1;
        self.next_id - 1
    }

    fn put(&mut self, rule: Arc<Rule>) -> Arc<Rule> {
        let order = rule.order();
        self.by_id.insert(rule.id(), order);
        if let Some(name) = &rule.name {
            self.by_name.insert(Arc::clone(name), order);
        }
        self.by_key.insert((rule.key_hash(), rule.id()), order);
        self.by_order.insert(order, Arc::clone(&rule));
        rule
    }

    /// Removes a rule that is there.
    pub fn take_out(&mut self, rule: &Rule) {
        self.by_order.remove(&rule.order());
        self.by_id.remove(&rule.id());
        if let Some(name) = &rule.name {
            self.by_name.remove(name);
        }
        self.by_key.remove(&(rule.key_hash(), rule.id()));
    }

    /// Calls `differs`, in their order, with the rules here and there that are not the `same`.
    pub fn differences<'a>(
        &'a self,
        other: &'a Self,
        same: impl Fn(&Arc<Rule>, &Arc<Rule>) -> bool,
        differs: impl FnMut(Option<&'a Arc<Rule>>, Option<&'a Arc<Rule>>),
    ) {
        self.by_order.differences(&other.by_order, same, differs);
    }
}

impl Rule {
    /// Its table and priority.
    pub(super) fn group(&self) -> Group {
        (self.entry.table, self.entry.priority)
    }

    /// Whether not a letter of what was written differs.
    fn is_spelled_like(&self, other: &Self) -> bool {
        self.entry == other.entry
            && self.name == other.name
            && self.idle_timeout_s == other.idle_timeout_s
            && self.hard_timeout_s == other.hard_timeout_s
            && self.then_spec == other.then_spec
            && self.match_fields == other.match_fields
    }
}
