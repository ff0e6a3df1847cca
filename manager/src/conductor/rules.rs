//! The wanted rules, as workers take them.
//!
//! A worker's table names a rule by its *place*, which orders rules of one priority as they were
//! written; people name it by its number, which it keeps when its place changes. The conductor knows
//! which is which.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::miss;
use crate::classify::{ChangedRules, RuleChanges};
use crate::flow::{MatchSet, Rule, RuleChange, RuleTables, Then};
use crate::model::{self, Model};

/// Changes above which workers get all rules anew instead: making those takes the control thread's
/// time, not theirs.
const MAX_CHANGES: usize = 4096;

/// A change of rules, ready for any number of workers.
#[derive(Debug, Default)]
pub(super) struct PreparedRules {
    changes: Arc<[RuleChange]>,
    whole: Option<Model>,
    concerned: ChangedRules,
}

/// Numbers of rules by their places.
#[derive(Debug, Default)]
pub(super) struct Places(HashMap<u64, u64>);

impl Places {
    /// The number of the rule at a place.
    pub fn id_at(&self, place: u64) -> Option<u64> {
        self.0.get(&place).copied()
    }

    /// Follows a change.
    pub fn follow(&mut self, old: &Model, new: &Model) {
        let delta = Model::rule_delta(old, new);
        for rule in &delta.removed {
            self.0.remove(&rule.place);
        }
        for rule in &delta.added {
            self.0.insert(rule.place, rule.id);
        }
    }
}

impl PreparedRules {
    /// What workers must change to get from one model to the next.
    pub fn between(old: &Model, new: &Model) -> Self {
        let delta = Model::rule_delta(old, new);
        let matches = || delta.removed.iter().chain(&delta.added).map(|rule| &rule.matches);
        let concerned = if miss(old) != miss(new) {
            ChangedRules::All
        } else if delta.removed.is_empty() && delta.added.is_empty() {
            ChangedRules::None
        } else if delta.removed.len() + delta.added.len() > MAX_CHANGES {
            ChangedRules::All
        } else {
            let mut set = MatchSet::new();
            for matches in matches() {
                set.insert(&matches.at_ingress());
            }
            ChangedRules::Some(Arc::new(set))
        };
        if delta.removed.len() + delta.added.len() > MAX_CHANGES {
            return Self { changes: Arc::default(), whole: Some(new.clone()), concerned };
        }
        let removed = delta.removed.iter().map(|rule| RuleChange::Remove(rule.place));
        let added = delta.added.iter().map(|rule| RuleChange::Add(for_worker(rule)));
        Self { changes: removed.chain(added).collect(), whole: None, concerned }
    }

    /// A worker's own copy.
    pub fn for_worker(&self) -> RuleChanges {
        let whole = self.whole.as_ref().map(|model| {
            let mut tables = RuleTables::new();
            for rule in model.rules() {
                if let Err(error) = tables.insert(for_worker(rule), 0) {
                    // The model checked it.
                    tracing::error!(%error, rule = rule.id, "a rule cannot be added");
                }
            }
            Box::new(tables)
        });
        RuleChanges { changes: Arc::clone(&self.changes), whole, concerned: self.concerned.clone() }
    }
}

fn for_worker(rule: &model::Rule) -> Rule {
    let ns = |timeout: Option<Duration>| {
        timeout.map_or(0, |timeout| u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX))
    };
    Rule {
        id: rule.place,
        table: rule.table,
        priority: rule.priority,
        matches: rule.matches.clone(),
        then: match rule.then {
            model::Then::Chain(chain) => Then::Chain(chain),
            model::Then::Out(port) => Then::Out(port),
            model::Then::Drop => Then::Drop,
            model::Then::Goto { table, metadata } => {
                let (value, mask) = metadata.map_or((0, 0), |m| (m.value, m.mask));
                Then::Goto { table, metadata: value, mask }
            }
        },
        idle_timeout_ns: ns(rule.idle_timeout()),
        hard_timeout_ns: ns(rule.hard_timeout()),
    }
}
