//! Rules of the flow table, checked and numbered, a million of them if need be.
//!
//! They are kept in the order in which packets meet them, and found by number, by name, and by what
//! makes a rule the same rule: table, priority and match. All of it is in shared maps, so that a
//! change to a copy costs some microseconds however many rules there are.
#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use nflib::control::spec::Value;
use nflib::control::{MatchSpec, RuleSpec, ThenSpec};
use nflib::descriptor::{ChainId, PortId};

use super::chains::{Chains, find_port};
use super::error::{ModelError, check_name, shown};
use super::matching::{self, Match};
use super::tree::SharedMap;

/// Shortest timeout of a rule, seconds.
pub const MIN_TIMEOUT_S: f64 = 0.001;

/// A value of which only the bits of the mask count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Masked {
    /// The bits; none outside the mask.
    pub value: u64,
    /// Which of them count.
    pub mask: u64,
}

/// What a rule does with the packets it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Then {
    /// Through this chain.
    Chain(ChainId),
    /// Straight out by this port.
    Out(PortId),
    /// Away with it.
    Drop,
    /// On to a later table.
    Goto {
        /// Which; higher than the rule's own.
        table: u8,
        /// What is written into the packet's metadata before.
        metadata: Option<Masked>,
    },
}

/// A rule of the flow table.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Its number, given once and never again. A rule keeps it when another action or other timeouts
    /// are written for the same table, priority and match.
    pub id: u64,
    /// Of rules with the same table and priority that match, the one with the lowest place is taken.
    /// Compares within one model only.
    pub place: u64,
    /// Its name, unique.
    pub name: Option<Arc<str>>,
    /// Its table.
    pub table: u8,
    /// Its priority; the highest is taken.
    pub priority: u16,
    /// Which packets.
    pub matches: Match,
    /// What to do with them.
    pub then: Then,
    /// What was written, packed: most fields of a match are absent.
    match_fields: Box<[(u8, Value)]>,
    then_spec: ThenSpec,
    idle_timeout_s: Option<f64>,
    hard_timeout_s: Option<f64>,
}

impl Rule {
    /// Forget the rule when no packet matched it for so long.
    #[must_use]
    pub fn idle_timeout(&self) -> Option<Duration> {
        self.idle_timeout_s.map(Duration::from_secs_f64)
    }

    /// Forget the rule so long after it was added.
    #[must_use]
    pub fn hard_timeout(&self) -> Option<Duration> {
        self.hard_timeout_s.map(Duration::from_secs_f64)
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
            table: self.table,
            priority: self.priority,
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
        key_label(self.table, self.priority, &self.match_spec())
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
        let metadata = |rule: &Self| match rule.then {
            Then::Goto { metadata, .. } => metadata,
            _ => None,
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
        (self.table, self.priority) == (other.table, other.priority)
            && self.matches == other.matches
    }

    pub(super) fn order(&self) -> Order {
        (self.table, Reverse(self.priority), self.place)
    }

    fn key_hash(&self) -> u64 {
        key_hash(self.table, self.priority, &self.matches)
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

fn key_hash(table: u8, priority: u16, matches: &Match) -> u64 {
    let mut hasher = DefaultHasher::new();
    (table, priority, matches).hash(&mut hasher);
    hasher.finish()
}

/// Checks a rule and looks up what it names. Its number and place are still 0.
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
    let port = |name: &str| find_port(name, ports).ok();
    if let Some(in_port) = &spec.matches.in_port {
        find_port(&in_port.to_string(), ports).map_err(within)?;
    }
    let matches = matching::compile(&spec.matches, &port)
        .map_err(|error| within(ModelError::invalid(plain(&error.to_string()))))?;
    let field_number = |name: &str| MatchSpec::FIELDS.iter().position(|field| *field == name);
    let match_fields = spec
        .matches
        .fields()
        .filter_map(|(name, value)| Some((u8::try_from(field_number(name)?).ok()?, value.clone())));
    for (name, timeout) in
        [("idle_timeout_s", spec.idle_timeout_s), ("hard_timeout_s", spec.hard_timeout_s)]
    {
        check_timeout(name, timeout).map_err(within)?;
    }
    Ok(Rule {
        id: 0,
        place: 0,
        name: spec.name.as_deref().map(Arc::from),
        table: spec.table,
        priority: spec.priority,
        matches,
        then: resolve_then(spec, chains, ports).map_err(within)?,
        match_fields: match_fields.collect(),
        then_spec: spec.then.clone(),
        idle_timeout_s: spec.idle_timeout_s,
        hard_timeout_s: spec.hard_timeout_s,
    })
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

fn check_timeout(name: &str, timeout: Option<f64>) -> Result<(), ModelError> {
    let most = super::MAX_SECONDS;
    match timeout {
        Some(s) if !(MIN_TIMEOUT_S..=most).contains(&s) => Err(ModelError::invalid(format!(
            "{name} is {s}: expected {MIN_TIMEOUT_S} to {most} seconds"
        ))),
        _ => Ok(()),
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
        (None, None, false, Some(table)) if *table > spec.table => Ok(Then::Goto {
            table: *table,
            metadata: set_metadata.as_ref().map(masked).transpose()?,
        }),
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

/// Reads `5`, `0x10` or `0x10/0xf0`.
fn masked(value: &Value) -> Result<Masked, ModelError> {
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
        (Some(value), Some(mask)) if value & !mask == 0 => Ok(Masked { value, mask }),
        (Some(_), Some(_)) => Err(wrong("the value has bits that its mask has not")),
        _ => Err(wrong("expected a number of 64 bits, or value/mask")),
    }
}

/// Where a rule stands: table, falling priority, place.
pub(super) type Order = (u8, Reverse<u16>, u64);

/// All rules.
#[derive(Clone, Debug, Default)]
pub(super) struct Rules {
    by_order: SharedMap<Order, Arc<Rule>>,
    by_id: SharedMap<u64, Order>,
    by_name: SharedMap<Arc<str>, Order>,
    /// Hash of table, priority and match, then the number.
    by_key: SharedMap<(u64, u64), Order>,
    /// The next rule's number. Numbers start at 1.
    next_id: u64,
    next_place: u64,
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

    /// In the order in which packets meet them: table, falling priority, place.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Rule>> + '_ {
        self.by_order.iter().map(|(_, rule)| rule)
    }

    /// Rules of a table with a priority, by place.
    pub fn group(&self, table: u8, priority: u16) -> impl Iterator<Item = &Arc<Rule>> + '_ {
        let from = (table, Reverse(priority), 0);
        let in_group = move |rule: &&Arc<Rule>| (rule.table, rule.priority) == (table, priority);
        self.by_order.range_from(&from).map(|(_, rule)| rule).take_while(in_group)
    }

    pub fn get(&self, id: u64) -> Option<&Arc<Rule>> {
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
    pub fn add(&mut self, rule: Rule) -> Result<Arc<Rule>, ModelError> {
        let same = self.same_as(&rule).cloned();
        let id = same.as_ref().map(|old| old.id);
        self.check_name_is_free(&rule, id)?;
        let (id, place) = match &same {
            Some(old) => {
                self.take_out(old);
                (old.id, old.place)
            }
            None => (self.new_id(), self.next_place),
        };
        Ok(self.put(Arc::new(Rule { id, place, ..rule })))
    }

    /// Adds a rule of a file, behind all others; one that is there already is a mistake. It keeps
    /// the number it has in `previous`.
    pub fn add_new(
        &mut self,
        rule: Rule,
        previous: Option<&Self>,
    ) -> Result<Arc<Rule>, ModelError> {
        if let Some(other) = self.same_as(&rule) {
            return Err(ModelError::invalid(format!(
                "rule {}: the same table, priority and match stand there already, as rule {}",
                rule.label(),
                other.label()
            )));
        }
        self.check_name_is_free(&rule, None)?;
        let before = previous.and_then(|rules| rules.same_as(&rule));
        let id = before.map_or_else(|| self.new_id(), |before| before.id);
        let rule = Rule { id, place: self.next_place, ..rule };
        Ok(self.put(match before {
            // Not a copy more of what runs already.
            Some(before) if before.place == rule.place && before.is_spelled_like(&rule) => {
                Arc::clone(before)
            }
            _ => Arc::new(rule),
        }))
    }

    fn check_name_is_free(&self, rule: &Rule, unless: Option<u64>) -> Result<(), ModelError> {
        let Some(name) = &rule.name else { return Ok(()) };
        match self.named(name) {
            Some(other) if Some(other.id) != unless => Err(ModelError::invalid(format!(
                "two rules are named {name:?}: names must differ (the other is {})",
                other.key_label()
            ))),
            _ => Ok(()),
        }
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }

    fn put(&mut self, rule: Arc<Rule>) -> Arc<Rule> {
        let order = rule.order();
        self.next_place = self.next_place.max(rule.place + 1);
        self.by_id.insert(rule.id, order);
        if let Some(name) = &rule.name {
            self.by_name.insert(Arc::clone(name), order);
        }
        self.by_key.insert((rule.key_hash(), rule.id), order);
        self.by_order.insert(order, Arc::clone(&rule));
        rule
    }

    /// Removes a rule that is there.
    pub fn take_out(&mut self, rule: &Rule) {
        self.by_order.remove(&rule.order());
        self.by_id.remove(&rule.id);
        if let Some(name) = &rule.name {
            self.by_name.remove(name);
        }
        self.by_key.remove(&(rule.key_hash(), rule.id));
    }

    /// Calls `differs`, place after place, with the rules here and there that are not the `same`.
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
    /// Whether not a letter of what was written differs.
    fn is_spelled_like(&self, other: &Self) -> bool {
        self.does_the_same(other)
            && self.then == other.then
            && self.then_spec == other.then_spec
            && self.match_fields == other.match_fields
    }
}
