//! Branches of a chain: an NF names one, and what travels is a number of 16 bits.
#![forbid(unsafe_code)]

/// A branch as descriptors and the route table carry it: its name, hashed.
///
/// NF and manager compute the number from the name, each by itself, so nothing has to be asked for
/// or agreed on. The manager refuses a chain two of whose branches come out the same.
///
/// ```
/// use nflib::branch::BranchId;
///
/// const SUSPICIOUS: BranchId = BranchId::new("suspicious");
/// assert_eq!(SUSPICIOUS, BranchId::new("suspicious"));
/// assert_ne!(SUSPICIOUS, BranchId::new("clean"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BranchId(pub u16);

impl BranchId {
    /// Longest name of a branch, bytes.
    pub const MAX_NAME_BYTES: usize = 64;

    /// The number of the branch with this name: FNV-1a of its bytes in 32 bits, the upper half
    /// xor'ed into the lower (draft-eastlake-fnv, section 3, "xor-folding").
    ///
    /// Takes any text; which ones may be names, [`BranchId::is_name`] tells.
    #[must_use]
    pub const fn new(name: &str) -> Self {
        const OFFSET_BASIS: u32 = 0x811c_9dc5;
        const PRIME: u32 = 0x0100_0193;
        let bytes = name.as_bytes();
        let mut hash = OFFSET_BASIS;
        let mut at = 0;
        while at < bytes.len() {
            hash = (hash ^ bytes[at] as u32).wrapping_mul(PRIME);
            at += 1;
        }
        Self((hash >> 16) as u16 ^ hash as u16)
    }

    /// Whether a branch may have this name: 1 to 64 of `A-Z a-z 0-9 _ -`.
    #[must_use]
    pub fn is_name(name: &str) -> bool {
        (1..=Self::MAX_NAME_BYTES).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_the_folded_fnv_1a_of_the_name() {
        // FNV-1a (32 bits) of "", "a" and "foobar", as published with the algorithm.
        for (name, fnv) in [("", 0x811c_9dc5_u32), ("a", 0xe40c_292c), ("foobar", 0xbf9c_f968)] {
            let folded = u16::try_from((fnv >> 16) ^ (fnv & 0xffff)).unwrap();
            assert_eq!(BranchId::new(name), BranchId(folded), "{name}");
        }
    }

    #[test]
    fn names_are_short_and_plain() {
        for name in ["a", "to-scrubber_2", &"x".repeat(64)] {
            assert!(BranchId::is_name(name), "{name}");
        }
        for name in ["", "a b", "ä", "a.b", "a\n", &"x".repeat(65)] {
            assert!(!BranchId::is_name(name), "{name:?}");
        }
    }
}
