//! What differs between two wanted states.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use nflib::control::{Change, ChangeOf, Confine, OnDeath, OnStuck};

use super::order::Overlapped;
use super::rules::Order;
use super::{Chain, Model, Rule, Service};

/// Which entries of the flow table one state has and another one has not.
#[derive(Clone, Debug, Default)]
pub struct RuleDelta {
    /// Rules of the old state.
    pub removed: Vec<Arc<Rule>>,
    /// Rules of the new one. A rule that changed stands in both.
    pub added: Vec<Arc<Rule>>,
}

impl Model {
    /// What differs, for people: services by name, chains by name, then rules in their order.
    /// Empty exactly when the states are equal. O(changes × log n) for a state and its edit.
    #[must_use]
    pub fn diff(old: &Self, new: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        if !Arc::ptr_eq(&old.services, &new.services) {
            let by_name = |model: &Self| -> BTreeMap<String, String> {
                model.services().map(|s| (s.name().to_owned(), service_line(s))).collect()
            };
            compare(ChangeOf::Service, &by_name(old), &by_name(new), &mut changes);
        }
        if !Arc::ptr_eq(&old.chains, &new.chains) || !Arc::ptr_eq(&old.services, &new.services) {
            let by_name = |model: &Self| -> BTreeMap<String, String> {
                model.chains().map(|c| (c.name().to_owned(), chain_line(model, c))).collect()
            };
            compare(ChangeOf::Chain, &by_name(old), &by_name(new), &mut changes);
        }
        changes.extend(diff_rules(old, new));
        changes
    }

    /// Which rules a flow table must forget and learn to get from `old` to `new`. O(changes × log n)
    /// for a state and its edit.
    #[must_use]
    pub fn rule_delta(old: &Self, new: &Self) -> RuleDelta {
        let mut delta = RuleDelta::default();
        // A new name or spelling is nothing to a flow table.
        let same = |a: &Arc<Rule>, b: &Arc<Rule>| Arc::ptr_eq(a, b) || a.entry == b.entry;
        old.rules.differences(&new.rules, same, |before, after| {
            delta.removed.extend(before.cloned());
            delta.added.extend(after.cloned());
        });
        delta
    }
}

/// Compares by name what is said in one line each.
fn compare(
    of: ChangeOf,
    old: &BTreeMap<String, String>,
    new: &BTreeMap<String, String>,
    changes: &mut Vec<Change>,
) {
    let names: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    for name in names {
        let (before, after) = (old.get(name).cloned(), new.get(name).cloned());
        if before != after {
            changes.push(Change { of, name: name.clone(), before, after });
        }
    }
}

/// A service in one line; two services that differ have different lines.
fn service_line(service: &Service) -> String {
    let spec = &service.spec;
    let mut parts = vec![format!("id {}", service.id)];
    match &spec.command {
        Some(command) => parts.push(format!("{} of {command:?}", spec.instances)),
        None if spec.instances == 1 => {}
        None => parts.push(format!("instances {}", spec.instances)),
    }
    if !spec.cores.is_empty() {
        parts.push(format!("cores {:?}", spec.cores));
    }
    parts.extend(spec.own_core.then(|| "own core".to_owned()));
    parts.extend(spec.user.as_ref().map(|user| format!("user {user:?}")));
    if spec.confine != Confine::Default {
        parts.push(format!("confine {}", spec.confine.name()));
    }
    if !spec.writable.is_empty() {
        parts.push(format!("writable {:?}", spec.writable));
    }
    parts.extend(spec.access.is_read_only().then(|| "read-only".to_owned()));
    parts.extend(spec.isolated.then(|| "isolated".to_owned()));
    parts.extend(
        (spec.on_stuck != OnStuck::default()).then(|| format!("on_stuck {}", spec.on_stuck.name())),
    );
    parts.extend(spec.stuck_after_ms.map(|ms| format!("stuck_after_ms {ms}")));
    parts.extend(spec.recorder_pkts.map(|pkts| format!("recorder_pkts {pkts}")));
    parts.extend(spec.recorder_all.then(|| "recorder_all".to_owned()));
    parts.extend(spec.shared_region.then(|| "shared region".to_owned()));
    parts.extend(spec.packet_limit.map(|limit| format!("packet_limit {limit}")));
    parts.extend(spec.weight.map(|weight| format!("weight {weight}")));
    parts.extend(spec.time_limit_s.map(|limit| format!("time_limit_s {limit}")));
    parts.join(", ")
}

/// A chain in one line; two chains that differ have different lines.
fn chain_line(model: &Model, chain: &Chain) -> String {
    let names: Vec<_> = chain
        .services
        .iter()
        .map(|id| model.service(*id).map_or_else(|| id.to_string(), |s| s.name().to_owned()))
        .collect();
    let mut line = format!("[{}] end {}", names.join(", "), chain.spec.end);
    for (branch, target) in &chain.spec.branches {
        line.push_str(&format!(", branch {branch} → {target}"));
    }
    if chain.spec.on_death != OnDeath::default() {
        line.push_str(&format!(", on_death {}", chain.spec.on_death));
    }
    line
}

/// A rule in one line, for a change that is headed by its label.
fn rule_line(rule: &Rule, with_name: bool) -> String {
    match &rule.name {
        Some(name) if with_name => format!("name={name} {}", rule.then_label()),
        Some(_) => format!("{}: {}", rule.key_label(), rule.then_label()),
        None => rule.then_label(),
    }
}

fn rule_change(before: Option<&Rule>, after: Option<&Rule>) -> Change {
    let renamed = matches!((before, after), (Some(a), Some(b)) if a.name != b.name);
    let line = |rule: &Rule| rule_line(rule, renamed);
    let name = match after.or(before) {
        Some(rule) if renamed => rule.key_label(),
        Some(rule) => rule.label(),
        None => String::new(),
    };
    let (before, after) = (before.map(line), after.map(line));
    Change { of: ChangeOf::Rule, name, before, after }
}

/// Compares rules by table, priority and match. Those that are the same must also stand in the same
/// order where they overlap others.
fn diff_rules(old: &Model, new: &Model) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut changed = HashSet::new();
    let mut renumbered = BTreeSet::new();
    let same = |a: &Arc<Rule>, b: &Arc<Rule>| {
        Arc::ptr_eq(a, b) || (a.is_same_rule(b) && a.does_the_same(b))
    };
    old.rules.differences(&new.rules, same, |before, after| {
        if let Some(before) = before.filter(|rule| new.rules.same_as(rule).is_none()) {
            changes.push((before.order(), rule_change(Some(before), None)));
        }
        let Some(after) = after else { return };
        match old.rules.same_as(after) {
            None => changes.push((after.order(), rule_change(None, Some(after)))),
            Some(before) => {
                if before.id() != after.id() {
                    renumbered.insert(after.group());
                }
                if !before.does_the_same(after) {
                    changed.insert(after.id());
                    changes.push((after.order(), rule_change(Some(before), Some(after))));
                }
            }
        }
    });
    for group in renumbered {
        let moved = moved(old, new, group).into_iter();
        changes.extend(moved.filter(|(order, _)| !changed.contains(&order.2)));
    }
    changes.sort_by_key(|(order, _)| *order);
    changes.into_iter().map(|(_, change)| change).collect()
}

/// Rules of one priority that stand behind a rule they overlap, and stood before it.
fn moved(old: &Model, new: &Model, (table, priority): (u8, u16)) -> Vec<(Order, Change)> {
    let mut passed = Overlapped::default();
    let mut moved = Vec::new();
    for after in new.rules.group(table, priority) {
        let Some(before) = old.rules.same_as(after) else { continue };
        let matches = &after.entry.matches;
        if let Some(other) = passed.highest(matches).filter(|number| *number > before.id()) {
            let other = old.rule(other).map_or_else(String::new, |rule| rule.label());
            let change = Change {
                of: ChangeOf::Rule,
                name: after.label(),
                before: Some(format!("before rule {other}")),
                after: Some(format!("after rule {other}")),
            };
            moved.push((after.order(), change));
        }
        passed.add(matches, before.id());
    }
    moved
}
