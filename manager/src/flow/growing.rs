//! Containers that grow without ever stopping to copy what they hold.
//!
//! A worker changes its flow table between two bursts, so no single change may take long, however
//! large the table is. `Vec` and `HashMap` copy everything when they double. Here:
//!
//! - [`Chunked`] adds a chunk of [`CHUNK`] elements and moves nothing;
//! - [`GrowingMap`] doubles its index of 8-byte slots by taking zero pages from the system and
//!   moving [`MOVED_PER_CHANGE`] slots with every later change, looking into both until it is done.
//!
//! So an insertion writes one element, moves at most [`MOVED_PER_CHANGE`] slots, and may ask the
//! allocator for one chunk and one zeroed index.
#![forbid(unsafe_code)]

/// Elements of a chunk.
const CHUNK: usize = 256;
/// Slots that a change to a map moves from its old index to the new one. The old index of `n` slots
/// is empty after `n / 8` changes, and the new one, twice as large, is not full before `0.6 n`.
pub(super) const MOVED_PER_CHANGE: usize = 8;
/// Slots of the smallest index.
const MIN_SLOTS: usize = 16;
/// A slot of an old index whose element moved.
const MOVED: u64 = u64::MAX;

/// A stack of elements that stay where they are.
#[derive(Debug)]
pub(super) struct Chunked<T> {
    chunks: Vec<Box<[T]>>,
    len: usize,
}

impl<T> Default for Chunked<T> {
    fn default() -> Self {
        Self { chunks: Vec::new(), len: 0 }
    }
}

impl<T: Copy + Default> Chunked<T> {
    pub fn push(&mut self, value: T) -> u32 {
        let at = self.len;
        if at / CHUNK == self.chunks.len() {
            self.chunks.push(vec![T::default(); CHUNK].into_boxed_slice());
        }
        self.chunks[at / CHUNK][at % CHUNK] = value;
        self.len += 1;
        at as u32
    }

    pub fn pop(&mut self) -> Option<T> {
        self.len = self.len.checked_sub(1)?;
        Some(self.chunks[self.len / CHUNK][self.len % CHUNK])
    }

    pub fn len(&self) -> usize {
        self.len
    }
}

impl<T> std::ops::Index<u32> for Chunked<T> {
    type Output = T;
    #[inline]
    fn index(&self, at: u32) -> &T {
        &self.chunks[at as usize / CHUNK][at as usize % CHUNK]
    }
}

impl<T> std::ops::IndexMut<u32> for Chunked<T> {
    #[inline]
    fn index_mut(&mut self, at: u32) -> &mut T {
        &mut self.chunks[at as usize / CHUNK][at as usize % CHUNK]
    }
}

/// Numbered places; a freed number is used again.
#[derive(Debug)]
pub(super) struct Slab<T> {
    items: Chunked<T>,
    free: Chunked<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { items: Chunked::default(), free: Chunked::default() }
    }
}

impl<T: Copy + Default> Slab<T> {
    pub fn insert(&mut self, value: T) -> u32 {
        match self.free.pop() {
            Some(slot) => {
                self.items[slot] = value;
                slot
            }
            None => self.items.push(value),
        }
    }

    pub fn remove(&mut self, slot: u32) {
        self.free.push(slot);
    }

    /// One more than the largest slot ever in use.
    pub fn end(&self) -> u32 {
        self.items.len() as u32
    }
}

impl<T> std::ops::Index<u32> for Slab<T> {
    type Output = T;
    #[inline]
    fn index(&self, at: u32) -> &T {
        &self.items[at]
    }
}

impl<T> std::ops::IndexMut<u32> for Slab<T> {
    #[inline]
    fn index_mut(&mut self, at: u32) -> &mut T {
        &mut self.items[at]
    }
}

/// A hash table of elements that know their key. The caller gives the hash, of which all 32 bits
/// are kept, so that growing reads no element.
#[derive(Debug)]
pub(super) struct GrowingMap<T> {
    index: Index,
    /// The index before the last doubling, and how far it is emptied.
    old: Option<(Index, usize)>,
    items: Slab<T>,
    len: usize,
}

impl<T> Default for GrowingMap<T> {
    fn default() -> Self {
        Self { index: Index::new(MIN_SLOTS), old: None, items: Slab::default(), len: 0 }
    }
}

impl<T: Copy + Default> GrowingMap<T> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The element with this hash that `is` recognises.
    #[inline]
    pub fn find(&self, hash: u32, is: impl Fn(&T) -> bool) -> Option<&T> {
        self.find_slot(hash, is).map(|slot| &self.items[slot])
    }

    #[inline]
    pub fn find_mut(&mut self, hash: u32, is: impl Fn(&T) -> bool) -> Option<&mut T> {
        self.find_slot(hash, is).map(|slot| &mut self.items[slot])
    }

    #[inline]
    fn find_slot(&self, hash: u32, is: impl Fn(&T) -> bool) -> Option<u32> {
        if let Some((_, slot)) = self.index.find(hash, |slot| is(&self.items[slot])) {
            return Some(slot);
        }
        let (old, _) = self.old.as_ref()?;
        old.find(hash, |slot| is(&self.items[slot])).map(|(_, slot)| slot)
    }

    /// Adds an element that is not there yet.
    pub fn insert(&mut self, hash: u32, value: T) {
        self.move_some();
        if self.old.is_none() && (self.len + 1) * 5 > self.index.slots.len() * 3 {
            let larger = Index::new(self.index.slots.len() * 2);
            self.old = Some((std::mem::replace(&mut self.index, larger), 0));
        }
        let slot = self.items.insert(value);
        self.index.insert(hash, slot);
        self.len += 1;
    }

    /// Takes an element out.
    pub fn remove(&mut self, hash: u32, is: impl Fn(&T) -> bool) -> Option<T> {
        self.move_some();
        let slot = match self.index.find(hash, |slot| is(&self.items[slot])) {
            Some((at, slot)) => {
                self.index.remove(at);
                slot
            }
            None => {
                let (old, _) = self.old.as_mut()?;
                let (at, slot) = old.find(hash, |slot| is(&self.items[slot]))?;
                old.slots[at] = MOVED;
                slot
            }
        };
        self.items.remove(slot);
        self.len -= 1;
        Some(self.items[slot])
    }

    /// Moves a few slots of the old index to the new one.
    fn move_some(&mut self) {
        let Some((old, from)) = &mut self.old else { return };
        let to = (*from + MOVED_PER_CHANGE).min(old.slots.len());
        for at in *from..to {
            let slot = old.slots[at];
            // An empty slot stays empty: it is where searches end.
            if slot != 0 && slot != MOVED {
                old.slots[at] = MOVED;
                self.index.insert((slot >> 32) as u32, Index::number(slot));
            }
        }
        *from = to;
        if to == old.slots.len() {
            self.old = None;
        }
    }

    /// Every element, in no order.
    #[cfg(test)]
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        let old = self.old.iter().flat_map(|(index, _)| &index.slots);
        self.index
            .slots
            .iter()
            .chain(old)
            .filter(|&&slot| slot != 0 && slot != MOVED)
            .map(|&slot| &self.items[Index::number(slot)])
    }
}

/// Open addressing, one step at a time; a slot is hash (32 bits) and number of the item plus 1.
#[derive(Debug)]
struct Index {
    slots: Vec<u64>,
}

impl Index {
    fn new(slots: usize) -> Self {
        // Zero pages from the system: nothing is written here.
        Self { slots: vec![0; slots] }
    }

    #[inline]
    fn number(slot: u64) -> u32 {
        (slot as u32).wrapping_sub(1)
    }

    /// Where a hash's search starts. The low bits choose, the high ones tell neighbours apart.
    #[inline]
    fn home(&self, hash: u32) -> usize {
        hash as usize & (self.slots.len() - 1)
    }

    #[inline]
    fn find(&self, hash: u32, is: impl Fn(u32) -> bool) -> Option<(usize, u32)> {
        let mut at = self.home(hash);
        loop {
            let slot = self.slots[at];
            if slot == 0 {
                return None;
            }
            if (slot >> 32) as u32 == hash && slot != MOVED && is(Self::number(slot)) {
                return Some((at, Self::number(slot)));
            }
            at = (at + 1) & (self.slots.len() - 1);
        }
    }

    fn insert(&mut self, hash: u32, number: u32) {
        let mut at = self.home(hash);
        while self.slots[at] != 0 {
            at = (at + 1) & (self.slots.len() - 1);
        }
        self.slots[at] = u64::from(hash) << 32 | u64::from(number + 1);
    }

    /// Empties a slot and closes the gap, so that searches end where they would have.
    fn remove(&mut self, at: usize) {
        let last = self.slots.len() - 1;
        let (mut gap, mut next) = (at, at);
        loop {
            next = (next + 1) & last;
            let slot = self.slots[next];
            if slot == 0 {
                break;
            }
            let home = self.home((slot >> 32) as u32);
            // It may go back to the gap unless its search starts behind it.
            if (next.wrapping_sub(home) & last) >= (next.wrapping_sub(gap) & last) {
                self.slots[gap] = slot;
                gap = next;
            }
        }
        self.slots[gap] = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn a_map_holds_what_was_put_in_and_not_taken_out(
            changes in proptest::collection::vec((any::<bool>(), 0_u32..80), 1..600),
            spread in 0_u32..3,
        ) {
            // Few hashes, many, or all in one place at the end of the index.
            let hash = |key: u32| [key % 7, key.wrapping_mul(0x9e37_79b9), u32::MAX][spread as usize];
            let mut map = GrowingMap::<(u32, usize)>::default();
            let mut model = HashMap::new();
            for (at, (add, key)) in changes.into_iter().enumerate() {
                if add && !model.contains_key(&key) {
                    map.insert(hash(key), (key, at));
                    model.insert(key, at);
                } else {
                    let taken = map.remove(hash(key), |item| item.0 == key);
                    prop_assert_eq!(taken.map(|item| item.1), model.remove(&key));
                }
                prop_assert_eq!(map.len(), model.len());
                for key in (at as u32 % 7..80).step_by(7) {
                    let found = map.find(hash(key), |item| item.0 == key).map(|item| item.1);
                    prop_assert_eq!(found, model.get(&key).copied());
                }
            }
            let mut all: Vec<_> = map.iter().copied().collect();
            all.sort_unstable();
            let mut expected: Vec<_> = model.into_iter().collect();
            expected.sort_unstable();
            prop_assert_eq!(all, expected);
        }
    }

    #[test]
    fn an_insertion_moves_no_more_than_it_says() {
        let mut map = GrowingMap::<u32>::default();
        let (mut doublings, mut slots) = (0, MIN_SLOTS);
        for n in 0..100_000_u32 {
            let before = map.old.as_ref().map(|(_, from)| *from);
            map.insert(n.wrapping_mul(0x9e37_79b9), n);
            if let (Some(before), Some((_, after))) = (before, &map.old) {
                assert!(after - before <= MOVED_PER_CHANGE);
            }
            if map.index.slots.len() != slots {
                // The move before was done in time.
                slots *= 2;
                doublings += 1;
                assert_eq!(map.index.slots.len(), slots);
                assert!(map.len() * 5 <= slots * 3);
            }
        }
        assert!(doublings > 10);
    }
}
