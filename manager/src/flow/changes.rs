//! Which flows the latest changes may concern, so that a cached verdict older than them need not be
//! thrown away.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use super::key::FlowKey;
use super::matching::Match;
use super::tuples::Tuple;

/// Changes that are remembered. A verdict that missed more of them is looked up afresh.
const REMEMBERED: usize = 16_384;
/// Distinct masks that are remembered: each costs a probe, as it does in a full lookup.
const MAX_MASKS: usize = 24;

/// The latest changes to the rules, by mask, each with the version it made.
#[derive(Debug)]
pub(super) struct ChangeLog {
    tuples: Vec<ChangedTuple>,
    /// Every change remembered, oldest first: version and match.
    order: VecDeque<(u32, Match)>,
    /// Changes up to this version are forgotten.
    floor: u32,
}

#[derive(Debug)]
struct ChangedTuple {
    tuple: Tuple<u32>,
    /// The version of the last change in it.
    newest: u32,
}

impl ChangeLog {
    /// A log that knows nothing of changes up to `version`.
    pub fn new(version: u32) -> Self {
        // All of its room at once: a growing queue would copy itself during a change.
        Self { tuples: Vec::new(), order: VecDeque::with_capacity(REMEMBERED), floor: version }
    }

    /// Notes that the change which made `version` concerns the packets of `matches`.
    pub fn note(&mut self, version: u32, matches: &Match) {
        if self.order.len() == REMEMBERED {
            self.forget_oldest();
        }
        let known = self.tuples.iter().position(|t| t.tuple.mask.mask() == matches.mask());
        let at = match known {
            Some(at) => at,
            None if self.tuples.len() < MAX_MASKS => {
                self.tuples.push(ChangedTuple { tuple: Tuple::new(matches.mask()), newest: 0 });
                self.tuples.len() - 1
            }
            None => {
                // Too many kinds of changes to remember: start anew behind this one.
                self.forget_all(version);
                return;
            }
        };
        let changed = &mut self.tuples[at];
        changed.newest = version;
        match changed.tuple.find_mut(matches.value()) {
            Some(latest) => *latest = version,
            None => changed.tuple.insert(matches.value(), version),
        }
        self.order.push_back((version, *matches));
    }

    fn forget_oldest(&mut self) {
        let Some((version, matches)) = self.order.pop_front() else { return };
        self.floor = version;
        let at = self.tuples.iter().position(|t| t.tuple.mask.mask() == matches.mask());
        let Some(at) = at else { return };
        let tuple = &mut self.tuples[at].tuple;
        // Unless the same match changed again since.
        if tuple.find(matches.value()) == Some(&version) {
            tuple.remove(matches.value());
        }
        if tuple.is_empty() {
            self.tuples.swap_remove(at);
        }
    }

    /// Forgets every change up to `version`: all older verdicts are in doubt.
    pub fn forget_all(&mut self, version: u32) {
        self.tuples.clear();
        self.order.clear();
        self.floor = version;
    }

    /// Whether a verdict on `key` that was right at `version` still is, as far as can be told.
    #[inline]
    pub fn still_right(&self, key: &FlowKey, version: u32) -> bool {
        version >= self.floor
            && self.tuples.iter().all(|changed| {
                changed.newest <= version
                    || changed.tuple.find(key).is_none_or(|&latest| latest <= version)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matching(value: u64, mask: u64) -> Match {
        let [mut v, mut m] = [FlowKey::default(); 2];
        (v.0[2], m.0[2]) = (value, mask);
        Match::new(v, m)
    }

    fn key(value: u64) -> FlowKey {
        *matching(value, u64::MAX).value()
    }

    #[test]
    fn a_change_puts_older_verdicts_on_its_packets_in_doubt_and_no_others() {
        let mut log = ChangeLog::new(10);
        log.note(11, &matching(5, 0xff));
        log.note(12, &matching(0x300, 0xf00));
        for (value, version, right) in [
            (5, 10, false),
            (5, 11, true),
            (6, 10, true),
            (0x305, 11, false),
            (0x305, 12, true),
            (6, 9, false),
        ] {
            assert_eq!(log.still_right(&key(value), version), right, "{value:#x} at {version}");
        }
    }

    #[test]
    fn what_is_forgotten_is_in_doubt() {
        let mut log = ChangeLog::new(0);
        for version in 1..=REMEMBERED as u32 + 5 {
            log.note(version, &matching(u64::from(version % 1000), 0xffff));
        }
        assert!(!log.still_right(&key(40_000), 4));
        assert!(log.still_right(&key(40_000), 5));
        assert_eq!(log.order.len(), REMEMBERED);
        let mut log = ChangeLog::new(0);
        for version in 1..=MAX_MASKS as u32 + 1 {
            log.note(version, &matching(1, u64::from(version)));
        }
        assert!(!log.still_right(&key(0), MAX_MASKS as u32));
        assert!(log.still_right(&key(1), MAX_MASKS as u32 + 1));
    }
}
