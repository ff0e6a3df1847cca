//! The wanted rules, as workers take them.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::miss;
use crate::classify::{ChangedRules, RuleChanges};
use crate::flow::{MatchSet, RuleChange, RuleTables};
use crate::model::Model;

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

impl PreparedRules {
    /// What workers must change to get from one model to the next.
    pub fn between(old: &Model, new: &Model) -> Self {
        let delta = Model::rule_delta(old, new);
        let matches = || delta.removed.iter().chain(&delta.added).map(|rule| &rule.entry.matches);
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
        let removed = delta.removed.iter().map(|rule| RuleChange::Remove(rule.id()));
        let added = delta.added.iter().map(|rule| RuleChange::Add(rule.entry));
        Self { changes: removed.chain(added).collect(), whole: None, concerned }
    }

    /// A worker's own copy.
    pub fn for_worker(&self) -> RuleChanges {
        let whole = self.whole.as_ref().map(|model| {
            let mut tables = RuleTables::new();
            for rule in model.rules() {
                if let Err(error) = tables.insert(rule.entry, 0) {
                    // The model checked it.
                    tracing::error!(%error, rule = rule.id(), "a rule cannot be added");
                }
            }
            Box::new(tables)
        });
        RuleChanges { changes: Arc::clone(&self.changes), whole, concerned: self.concerned.clone() }
    }
}
