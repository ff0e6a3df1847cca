//! Which packets a rule takes: a value and a mask over the key.
#![forbid(unsafe_code)]

use super::key::{
    FRAG_FIRST, Field, FlowKey, IP_DST_WORD, IP_SRC_WORD, KEY_WORDS, L3_IPV4, L3_IPV6, field,
};

/// A set of keys: those that agree with `value` in every bit of `mask`.
///
/// Two matches are equal when they take the same keys: `value` has no bit outside `mask`, and
/// [`Match::compile`] fills in what a field presupposes, however it was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Match {
    value: FlowKey,
    mask: FlowKey,
}

impl Match {
    /// Takes every packet.
    pub const ANY: Self = Self { value: FlowKey([0; KEY_WORDS]), mask: FlowKey([0; KEY_WORDS]) };

    /// The keys that agree with `value` in the bits of `mask`.
    #[must_use]
    pub fn new(value: FlowKey, mask: FlowKey) -> Self {
        Self { value: value.masked(&mask), mask }
    }

    /// This key and no other.
    #[must_use]
    pub fn exact(key: FlowKey) -> Self {
        Self::new(key, FlowKey([u64::MAX; KEY_WORDS]))
    }

    /// The bits that packets must have, 0 outside the mask.
    #[must_use]
    pub fn value(&self) -> &FlowKey {
        &self.value
    }

    /// The bits that are looked at.
    #[must_use]
    pub fn mask(&self) -> &FlowKey {
        &self.mask
    }

    /// Whether a packet is taken.
    #[must_use]
    #[inline]
    pub fn matches(&self, key: &FlowKey) -> bool {
        let differ = |word: usize| (key.0[word] ^ self.value.0[word]) & self.mask.0[word];
        (0..KEY_WORDS).fold(0, |all, word| all | differ(word)) == 0
    }

    /// Whether some key is taken by both.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        (0..KEY_WORDS).all(|word| {
            let differ = self.value.0[word] ^ other.value.0[word];
            differ & self.mask.0[word] & other.mask.0[word] == 0
        })
    }

    /// The flow hashes that packets it takes can have, whole packets' first, then first fragments', when
    /// it says enough to tell: both addresses, the protocol and both ports.
    #[must_use]
    pub(super) fn flow_hashes(&self) -> Option<[u32; 2]> {
        let full = |field: Field| self.mask.get(field) == field.max();
        let address = |word: usize| match self.value.get(field::L3) {
            L3_IPV4 => self.mask.0[word + 1] as u32 == u32::MAX,
            L3_IPV6 => [self.mask.0[word], self.mask.0[word + 1]] == [u64::MAX; 2],
            _ => false,
        };
        let fields = [field::L3, field::PROTO, field::L4, field::TP_SRC, field::TP_DST];
        let said = fields.into_iter().all(full) && address(IP_SRC_WORD) && address(IP_DST_WORD);
        said.then(|| {
            let (mut whole, mut first) = (self.value, self.value);
            whole.set(field::FRAG, 0);
            first.set(field::FRAG, FRAG_FIRST);
            [whole.flow_hash(), first.flow_hash()]
        })
    }

    /// Whether it looks at no bit outside of `mask`.
    pub(super) fn looks_within(&self, mask: &FlowKey) -> bool {
        (0..KEY_WORDS).all(|word| self.mask.0[word] & !mask.0[word] == 0)
    }

    /// This match without its condition on metadata, which an earlier table may have set: which
    /// packets may meet it, told by their keys at ingress.
    #[must_use]
    pub fn at_ingress(&self) -> Self {
        let mut all = *self;
        all.value.set(field::METADATA, 0);
        all.mask.set(field::METADATA, 0);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn small_match() -> impl Strategy<Value = Match> {
        let word = 0_u64..8;
        (proptest::array::uniform2(word.clone()), proptest::array::uniform2(word)).prop_map(
            |(value, mask)| {
                let mut words = [[0; KEY_WORDS]; 2];
                (words[0][0], words[0][5]) = (value[0], value[1]);
                (words[1][0], words[1][5]) = (mask[0], mask[1]);
                Match::new(FlowKey(words[0]), FlowKey(words[1]))
            },
        )
    }

    proptest! {
        #[test]
        fn two_matches_overlap_exactly_when_some_key_is_in_both(a in small_match(), b in small_match()) {
            let keys = (0..64_u64).map(|n| {
                let mut key = FlowKey::default();
                (key.0[0], key.0[5]) = (n & 7, n >> 3);
                key
            });
            let common = keys.into_iter().any(|key| a.matches(&key) && b.matches(&key));
            prop_assert_eq!(a.overlaps(&b), common);
            prop_assert_eq!(b.overlaps(&a), common);
        }
    }
}
