//! Rules of one table and priority that can match the same packet: which of them is taken is decided
//! by their numbers (the lower one, the one added first), and a person should hear of it.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use super::key::FlowKey;
use super::rules::{Rule, RuleId};

/// Pairs of overlapping rules of one table and priority, at most `at_most`, each with the lower
/// number first.
///
/// Rules are grouped by mask. Two matches overlap when they agree in the bits that both masks look
/// at, so of two groups one is hashed by those bits and the other probes: `n · m` steps for `n`
/// rules of `m` distinct masks, instead of `n²`. Two rules of one mask overlap only if equal.
#[must_use]
pub fn find_overlaps(rules: &[Rule], at_most: usize) -> Vec<(RuleId, RuleId)> {
    let mut peers: HashMap<(u8, u16), HashMap<FlowKey, Vec<&Rule>>> = HashMap::new();
    for rule in rules {
        let groups = peers.entry((rule.table, rule.priority)).or_default();
        groups.entry(*rule.matches.mask()).or_default().push(rule);
    }
    let mut found = Vec::new();
    for groups in peers.into_values() {
        let mut groups: Vec<_> = groups.into_iter().collect();
        // The larger group is hashed once for each smaller one that probes.
        groups.sort_by_key(|(_, rules)| rules.len());
        for (n, a) in groups.iter().enumerate() {
            for b in &groups[n..] {
                overlaps_of(a, b, at_most, &mut found);
                if found.len() >= at_most {
                    return found;
                }
            }
        }
    }
    found.sort_unstable();
    found
}

type Group<'r> = (FlowKey, Vec<&'r Rule>);

fn overlaps_of(a: &Group<'_>, b: &Group<'_>, at_most: usize, found: &mut Vec<(RuleId, RuleId)>) {
    let common = a.0.masked(&b.0);
    let mut hashed: HashMap<FlowKey, Vec<RuleId>> = HashMap::with_capacity(a.1.len());
    for rule in &a.1 {
        hashed.entry(rule.matches.value().masked(&common)).or_default().push(rule.id);
    }
    for rule in &b.1 {
        let Some(others) = hashed.get(&rule.matches.value().masked(&common)) else { continue };
        for &other in others {
            // Within one group each pair is met twice, and each rule meets itself.
            if std::ptr::eq(a, b) && other >= rule.id {
                continue;
            }
            if found.len() >= at_most {
                return;
            }
            found.push((other.min(rule.id), other.max(rule.id)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{Match, Rule};
    use proptest::prelude::*;

    fn rule() -> impl Strategy<Value = Rule> {
        (0_u8..2, 0_u16..3, 0_u64..8, 0_u64..8).prop_map(|(table, priority, value, mask)| {
            let [mut v, mut m] = [FlowKey::default(); 2];
            (v.0[5], m.0[5]) = (value, mask);
            Rule { table, priority, matches: Match::new(v, m), ..Rule::default() }
        })
    }

    proptest! {
        #[test]
        fn every_overlap_is_found_and_nothing_else(
            mut rules in proptest::collection::vec(rule(), 0..14),
            limit in 1_usize..40,
        ) {
            for (id, rule) in rules.iter_mut().enumerate() {
                rule.id = id as u64;
            }
            let mut expected = Vec::new();
            for (n, a) in rules.iter().enumerate() {
                for b in &rules[n + 1..] {
                    if (a.table, a.priority) == (b.table, b.priority) && a.matches.overlaps(&b.matches) {
                        expected.push((a.id, b.id));
                    }
                }
            }
            prop_assert_eq!(&find_overlaps(&rules, usize::MAX), &expected);
            let some = find_overlaps(&rules, limit);
            prop_assert_eq!(some.len(), limit.min(expected.len()));
            prop_assert!(some.iter().all(|pair| expected.contains(pair)));
        }
    }
}
