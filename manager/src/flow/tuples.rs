//! Tuple-space search (Srinivasan, Suri, Varghese, SIGCOMM 1999): matches that look at the same bits
//! stand in one hash table, so that a lookup costs one probe a distinct mask, however many matches
//! there are.
#![forbid(unsafe_code)]

use super::growing::GrowingMap;
use super::key::{FlowKey, KEY_WORDS, SECRET, mix};
use super::matching::Match;

/// A mask, and which words of a key it touches.
#[derive(Clone, Copy, Debug)]
pub(super) struct TupleMask {
    mask: FlowKey,
    words: [u8; KEY_WORDS],
    count: u8,
}

impl TupleMask {
    pub fn new(mask: &FlowKey) -> Self {
        let mut tuple = Self { mask: *mask, words: [0; KEY_WORDS], count: 0 };
        for (word, bits) in mask.0.iter().enumerate() {
            if *bits != 0 {
                tuple.words[usize::from(tuple.count)] = word as u8;
                tuple.count += 1;
            }
        }
        tuple
    }

    pub fn mask(&self) -> &FlowKey {
        &self.mask
    }

    #[inline]
    fn used(&self) -> impl Iterator<Item = usize> + '_ {
        // At most KEY_WORDS - 1, which the compiler is told by the remainder.
        self.words[..usize::from(self.count)].iter().map(|&word| usize::from(word) % KEY_WORDS)
    }

    /// A hash of the bits of `key` that the mask looks at.
    #[inline]
    pub fn hash(&self, key: &FlowKey) -> u32 {
        let hash = self
            .used()
            .fold(SECRET[2], |hash, word| mix(hash ^ key.0[word] & self.mask.0[word], SECRET[0]));
        (hash ^ hash >> 32) as u32
    }

    /// Whether `key` has the bits of `value`, which has none outside the mask.
    #[inline]
    pub fn agree(&self, key: &FlowKey, value: &FlowKey) -> bool {
        self.used().fold(0, |all, word| all | (key.0[word] & self.mask.0[word] ^ value.0[word]))
            == 0
    }
}

/// The matches of one mask, each with a value.
#[derive(Debug)]
pub(super) struct Tuple<V> {
    pub mask: TupleMask,
    map: GrowingMap<(FlowKey, V)>,
}

impl<V: Copy + Default> Tuple<V> {
    pub fn new(mask: &FlowKey) -> Self {
        Self { mask: TupleMask::new(mask), map: GrowingMap::default() }
    }

    /// The value of the match that takes `key`.
    #[inline]
    pub fn find(&self, key: &FlowKey) -> Option<&V> {
        let found = self.map.find(self.mask.hash(key), |(value, _)| self.mask.agree(key, value));
        found.map(|(_, v)| v)
    }

    /// Likewise, to change it.
    pub fn find_mut(&mut self, key: &FlowKey) -> Option<&mut V> {
        let mask = self.mask;
        self.map.find_mut(mask.hash(key), |(value, _)| mask.agree(key, value)).map(|(_, v)| v)
    }

    /// Adds a match that is not there yet.
    pub fn insert(&mut self, value: &FlowKey, v: V) {
        self.map.insert(self.mask.hash(value), (*value, v));
    }

    pub fn remove(&mut self, value: &FlowKey) -> Option<V> {
        self.map.remove(self.mask.hash(value), |(known, _)| known == value).map(|(_, v)| v)
    }

    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    pub fn len(&self) -> usize {
        self.map.len()
    }
}

/// A set of matches that tells whether one of them takes a packet. For 10⁵ matches of few masks a
/// question costs as much as for ten.
#[derive(Debug, Default)]
pub struct MatchSet {
    tuples: Vec<Tuple<()>>,
}

impl MatchSet {
    /// A set of nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a match.
    pub fn insert(&mut self, matches: &Match) {
        let known = self.tuples.iter().position(|tuple| tuple.mask.mask() == matches.mask());
        let at = known.unwrap_or_else(|| {
            self.tuples.push(Tuple::new(matches.mask()));
            self.tuples.len() - 1
        });
        let tuple = &mut self.tuples[at];
        if tuple.find(matches.value()).is_none() {
            tuple.insert(matches.value(), ());
        }
    }

    /// Whether one of the matches takes the packet.
    #[must_use]
    pub fn contains(&self, key: &FlowKey) -> bool {
        self.tuples.iter().any(|tuple| tuple.find(key).is_some())
    }

    /// Distinct matches.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tuples.iter().map(Tuple::len).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tuples.is_empty()
    }
}

impl<'m> FromIterator<&'m Match> for MatchSet {
    fn from_iter<I: IntoIterator<Item = &'m Match>>(matches: I) -> Self {
        let mut set = Self::new();
        matches.into_iter().for_each(|m| set.insert(m));
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> impl Strategy<Value = FlowKey> {
        (0_u64..4, 0_u64..4).prop_map(|(a, b)| {
            let mut key = FlowKey::default();
            (key.0[1], key.0[7]) = (a, b);
            key
        })
    }

    proptest! {
        #[test]
        fn a_set_contains_what_one_of_its_matches_takes(
            matches in proptest::collection::vec((key(), key()), 0..12),
            keys in proptest::collection::vec(key(), 16),
        ) {
            let matches: Vec<_> = matches.into_iter().map(|(v, m)| Match::new(v, m)).collect();
            let set: MatchSet = matches.iter().collect();
            for key in keys {
                prop_assert_eq!(set.contains(&key), matches.iter().any(|m| m.matches(&key)));
            }
            let distinct: std::collections::HashSet<_> = matches.iter().collect();
            prop_assert_eq!(set.len(), distinct.len());
            prop_assert_eq!(set.is_empty(), distinct.is_empty());
        }
    }
}
