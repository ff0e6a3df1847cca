//! What an NF knows of each session, for a bounded number of them.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::hash::Hash;

use super::{Counts, add};

/// A session without a packet for so long makes room for another.
const IDLE_NS: u64 = 30_000_000_000;

/// What is known of a session, with its counts.
pub trait Session {
    /// Counts by name, the same names for all sessions of an NF.
    fn counts(&self) -> Counts;
}

#[derive(Debug)]
struct Entry<K, S> {
    key: K,
    session: S,
    seen_ns: u64,
}

/// Sessions by key. Memory is taken when one begins, up to a number of sessions; then a new one takes the
/// place of the one that has been idle for longest, if that is idle enough, and otherwise gets none: a
/// flood of new ones must not end those that work.
#[derive(Debug)]
pub struct Sessions<K, S> {
    places: HashMap<K, usize>,
    entries: Vec<Entry<K, S>>,
    max: usize,
    /// Counts of sessions that are no more.
    ended: Counts,
    refused_pkts: u64,
}

impl<K: Hash + Eq + Clone, S: Session> Sessions<K, S> {
    /// No session yet, and `max` of them at most.
    #[must_use]
    pub fn new(max: u32) -> Self {
        Self {
            places: HashMap::new(),
            entries: Vec::new(),
            max: max as usize,
            ended: Counts::new(),
            refused_pkts: 0,
        }
    }

    /// The session of a packet, begun by `begin` when it is new. `None` when there is no room.
    pub fn of(&mut self, key: K, now_ns: u64, begin: impl FnOnce() -> Option<S>) -> Option<&mut S> {
        let at = match self.places.get(&key) {
            Some(&at) => at,
            None => self.begin(key, now_ns, begin)?,
        };
        let entry = &mut self.entries[at];
        entry.seen_ns = now_ns;
        Some(&mut entry.session)
    }

    /// The session of a key that is known.
    pub fn known(&mut self, key: &K) -> Option<&mut S> {
        self.places.get(key).map(|&at| &mut self.entries[at].session)
    }

    fn begin(&mut self, key: K, now_ns: u64, begin: impl FnOnce() -> Option<S>) -> Option<usize> {
        let oldest = (0..self.entries.len()).min_by_key(|&at| self.entries[at].seen_ns);
        let at = if self.entries.len() < self.max { Some(self.entries.len()) } else { oldest };
        let at = at.filter(|&at| {
            let entry = self.entries.get(at);
            entry.is_none_or(|entry| now_ns.saturating_sub(entry.seen_ns) >= IDLE_NS)
        });
        let Some(at) = at else {
            self.refused_pkts += 1;
            return None;
        };
        let entry = Entry { key: key.clone(), session: begin()?, seen_ns: now_ns };
        if at == self.entries.len() {
            self.entries.push(entry);
        } else {
            let old = std::mem::replace(&mut self.entries[at], entry);
            self.places.remove(&old.key);
            add(&mut self.ended, &old.session.counts());
        }
        self.places.insert(key, at);
        Some(at)
    }

    /// Counts of all sessions that were and are.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut sum = self.ended.clone();
        for entry in &self.entries {
            add(&mut sum, &entry.session.counts());
        }
        add(
            &mut sum,
            &[("sessions", self.entries.len() as u64), ("no_session_pkts", self.refused_pkts)],
        );
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Counter(u64);

    impl Session for Counter {
        fn counts(&self) -> Counts {
            vec![("pkts", self.0)]
        }
    }

    fn packet(sessions: &mut Sessions<u32, Counter>, key: u32, now_ns: u64) -> bool {
        sessions.of(key, now_ns, || Some(Counter(0))).map(|counter| counter.0 += 1).is_some()
    }

    #[test]
    fn a_new_session_takes_the_place_of_the_idlest_and_of_none_that_works() {
        let mut sessions = Sessions::new(2);
        assert!(packet(&mut sessions, 1, 0) && packet(&mut sessions, 2, 5));
        assert!(packet(&mut sessions, 1, IDLE_NS));
        assert!(!packet(&mut sessions, 3, IDLE_NS), "2 was seen less than that ago");
        assert!(packet(&mut sessions, 3, IDLE_NS + 5));
        assert!(sessions.known(&2).is_none());
        assert_eq!(sessions.known(&1).unwrap().0, 2);
        let expected = [("pkts", 4), ("sessions", 2), ("no_session_pkts", 1)];
        assert_eq!(sessions.counts(), expected, "also those of the one that ended");
    }
}
