//! The exact-match cache in front of the rules: one entry a flow, with its verdict and counters.
//!
//! ```text
//! flow hash ─► two buckets of eight 16-bit tags (16 bytes each) ─► entry (two cache lines)
//! ```
//! A flow stands in one of two buckets, the emptier one when it came, so that a cache three quarters
//! full still finds room for it; a search looks at sixteen tags and at the entries whose tag fits,
//! and never further. Nothing is allocated after the cache is made. When both buckets are full, of
//! two flows picked at random the one that was idle for longer makes room.
#![forbid(unsafe_code)]

use nflib::shm::{advise_huge_pages, prefetch};

use super::key::{FlowKey, KEY_WORDS};
use super::rules::{NO_SLOT, Outcome};

/// Flows in a bucket.
const WAYS: usize = 8;
/// Rules a cached flow may take. One that passes more tables is looked up every time.
pub(super) const MAX_PATH: usize = 4;
/// No entry.
pub(super) const NO_ENTRY: u32 = u32::MAX;

/// One flow.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(128))]
pub(super) struct Entry {
    /// The bits of its key that count.
    pub key: FlowKey,
    pub pkts: u64,
    pub bytes: u64,
    pub last_ns: u64,
    /// Version of the rules that the verdict was last known to be right at.
    pub version: u32,
    pub outcome: Outcome,
    /// The rules taken, first to last, then [`NO_SLOT`].
    pub path: [u32; MAX_PATH],
}

impl Entry {
    const EMPTY: Self = Self {
        key: FlowKey([0; KEY_WORDS]),
        pkts: 0,
        bytes: 0,
        last_ns: 0,
        version: 0,
        outcome: Outcome::NoRule,
        path: [NO_SLOT; MAX_PATH],
    };

    pub fn new(key: FlowKey, version: u32, outcome: Outcome, path: [u32; MAX_PATH]) -> Self {
        Self { key, version, outcome, path, ..Self::EMPTY }
    }

    /// Whether this is the flow of `key`, of which the bits in `mask` count.
    #[inline(always)]
    pub fn is_flow_of(&self, key: &FlowKey, mask: &FlowKey) -> bool {
        let differ = |word: usize| key.0[word] & mask.0[word] ^ self.key.0[word];
        (0..KEY_WORDS).fold(0, |all, word| all | differ(word)) == 0
    }
}

/// Where a flow may stand.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    first: u32,
    second: u32,
    /// Never 0.
    tag: u16,
}

impl Place {
    /// The entry of a way, counted through both buckets.
    #[inline(always)]
    fn entry(self, way: u32) -> u32 {
        let bucket = if way < WAYS as u32 { self.first } else { self.second };
        bucket * WAYS as u32 + way % WAYS as u32
    }
}

/// How the cache fares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Flows there is room for.
    pub capacity: u64,
    /// Flows there are.
    pub flows: u64,
    /// Packets whose flow was there.
    pub hits: u64,
    /// Packets whose flow was not: looked up in the rules.
    pub misses: u64,
    /// Of the hits, those whose verdict had to be looked up again after a change.
    pub refreshed: u64,
    /// Flows that made room for others.
    pub evicted: u64,
    /// Flows forgotten because they were idle.
    pub aged: u64,
    /// Packets that passed more tables than a cached flow may.
    pub too_long: u64,
}

/// The cache.
#[derive(Debug)]
pub(super) struct FlowCache {
    /// Tags of each bucket, four to a word; 0 is free.
    tags: Vec<[u64; 2]>,
    /// `WAYS` for each bucket.
    entries: Vec<Entry>,
    pub stats: CacheStats,
    /// State of the choice of victims.
    random: u64,
    /// Next bucket that is looked at for idle flows.
    sweep_at: usize,
}

impl FlowCache {
    /// A cache for `flows` flows: one third larger, so that they fit. 192 bytes a flow, all of it
    /// written here, so that the path meets no page for the first time.
    pub fn new(flows: u32) -> Self {
        let buckets = (flows as usize * 4 / 3).div_ceil(WAYS).max(2);
        let tags = huge(buckets, [0; 2]);
        let entries = huge(buckets * WAYS, Entry::EMPTY);
        let stats = CacheStats { capacity: entries.len() as u64, ..CacheStats::default() };
        Self { tags, entries, stats, random: 0x9e37_79b9_7f4a_7c15, sweep_at: 0 }
    }

    /// Where the flow with this hash may stand.
    #[inline(always)]
    pub fn place(&self, hash: u32) -> Place {
        let spread = (u64::from(hash) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let spread = (spread ^ spread >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let buckets = self.tags.len() as u64;
        // The high ends of two halves; the tag comes from the low end of one.
        let first = (((spread >> 32) * buckets) >> 32) as u32;
        let mut second = (((spread & 0xffff_ffff) * buckets) >> 32) as u32;
        if second == first {
            second = if first == 0 { 1 } else { first - 1 };
        }
        let tag = (spread as u16).max(1);
        Place { first, second, tag }
    }

    #[inline(always)]
    pub fn prefetch_tags(&self, place: Place) {
        prefetch(&self.tags[place.first as usize]);
        prefetch(&self.tags[place.second as usize]);
    }

    #[inline(always)]
    pub fn prefetch_entry(&self, at: u32) {
        let entry = &self.entries[at as usize];
        prefetch(&entry.key.0[0]);
        prefetch(&entry.key.0[8]);
    }

    /// The first entry whose tag fits, or [`NO_ENTRY`]. Reads tags only, and branches on nothing
    /// but whether there is one: where in its two buckets a flow stands cannot be predicted.
    #[inline(always)]
    pub fn candidate(&self, place: Place) -> u32 {
        match self.fitting(place) {
            0 => NO_ENTRY,
            fits => place.entry(fits.trailing_zeros()),
        }
    }

    /// The flow of `key`.
    pub fn find(&self, place: Place, key: &FlowKey, mask: &FlowKey) -> Option<u32> {
        let mut fits = self.fitting(place);
        while fits != 0 {
            let at = place.entry(fits.trailing_zeros());
            if self.entries[at as usize].is_flow_of(key, mask) {
                return Some(at);
            }
            fits &= fits - 1;
        }
        None
    }

    /// A bit for each way of the two buckets whose tag fits.
    #[inline(always)]
    fn fitting(&self, place: Place) -> u32 {
        let [first, second] = [place.first, place.second].map(|bucket| {
            let [low, high] = self.tags[bucket as usize];
            pack(equal_lanes(low, place.tag)) | pack(equal_lanes(high, place.tag)) << 4
        });
        first | second << WAYS
    }

    /// Adds a flow that is not there; returns where.
    pub fn insert(&mut self, place: Place, entry: Entry) -> u32 {
        let free = [place.first, place.second].map(|bucket| {
            let tags = self.tags[bucket as usize];
            tags.map(|word| equal_lanes(word, 0).count_ones()).iter().sum::<u32>()
        });
        let at = if free == [0, 0] {
            self.stats.evicted += 1;
            self.victim(place)
        } else {
            self.stats.flows += 1;
            let bucket = if free[0] >= free[1] { place.first } else { place.second };
            let [low, high] = self.tags[bucket as usize].map(|word| equal_lanes(word, 0));
            let lane = match low {
                0 => 4 + high.trailing_zeros() / 16,
                _ => low.trailing_zeros() / 16,
            };
            bucket * WAYS as u32 + lane
        };
        self.entries[at as usize] = entry;
        self.set_tag(at, place.tag);
        at
    }

    /// Of two random flows of the place, the one that was idle for longer.
    fn victim(&mut self, place: Place) -> u32 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let way = |random: u64| {
            let bucket = if random & 8 == 0 { place.first } else { place.second };
            bucket * WAYS as u32 + (random & 7) as u32
        };
        let [a, b] = [way(self.random), way(self.random >> 8)];
        let last_ns = |at: u32| self.entries[at as usize].last_ns;
        if last_ns(a) <= last_ns(b) { a } else { b }
    }

    pub fn remove(&mut self, at: u32) {
        self.set_tag(at, 0);
        self.stats.flows -= 1;
    }

    fn set_tag(&mut self, at: u32, tag: u16) {
        let (bucket, way) = (at as usize / WAYS, at as usize % WAYS);
        let word = &mut self.tags[bucket][way / 4];
        let shift = way % 4 * 16;
        *word = *word & !(0xffff << shift) | u64::from(tag) << shift;
    }

    #[inline(always)]
    pub fn entry(&self, at: u32) -> &Entry {
        &self.entries[at as usize]
    }

    #[inline(always)]
    pub fn entry_mut(&mut self, at: u32) -> &mut Entry {
        &mut self.entries[at as usize]
    }

    /// Buckets there are.
    pub fn buckets(&self) -> usize {
        self.tags.len()
    }

    /// The entries of a bucket that hold a flow.
    pub fn flows_of(&self, bucket: usize) -> impl Iterator<Item = &Entry> {
        let tags = self.tags[bucket];
        let entries = &self.entries[bucket * WAYS..(bucket + 1) * WAYS];
        let taken = move |way: usize| tags[way / 4] >> (way % 4 * 16) & 0xffff != 0;
        entries.iter().enumerate().filter(move |(way, _)| taken(*way)).map(|(_, entry)| entry)
    }

    /// Forgets flows without a packet since `before_ns`, looking at `budget` buckets.
    pub fn sweep(&mut self, before_ns: u64, budget: usize) {
        for _ in 0..budget.min(self.tags.len()) {
            let bucket = self.sweep_at;
            self.sweep_at = (bucket + 1) % self.tags.len();
            if self.tags[bucket] == [0; 2] {
                continue;
            }
            for at in bucket * WAYS..(bucket + 1) * WAYS {
                let way = at % WAYS;
                let taken = self.tags[bucket][way / 4] >> (way % 4 * 16) & 0xffff != 0;
                if taken && self.entries[at].last_ns < before_ns {
                    self.remove(at as u32);
                    self.stats.aged += 1;
                }
            }
        }
    }

    /// Forgets every flow.
    pub fn clear(&mut self) {
        self.tags.fill([0; 2]);
        self.stats.flows = 0;
    }
}

/// A vector on huge pages where the kernel has some.
fn huge<T: Copy>(len: usize, value: T) -> Vec<T> {
    let mut vector = Vec::with_capacity(len);
    advise_huge_pages(vector.spare_capacity_mut());
    vector.resize(len, value);
    vector
}

/// The top bit of each of the four lanes of 16 bits that equals `tag`.
#[inline(always)]
fn equal_lanes(word: u64, tag: u16) -> u64 {
    const LOW: u64 = 0x7fff_7fff_7fff_7fff;
    let differ = word ^ u64::from(tag).wrapping_mul(0x0001_0001_0001_0001);
    // A lane's sum has its top bit unless its low bits are all 0, and never carries.
    !(((differ & LOW) + LOW) | differ | LOW)
}

/// The top bits of four lanes, side by side.
#[inline(always)]
fn pack(lanes: u64) -> u32 {
    // Bits 0, 16, 32 and 48 meet at 48 to 51; no two of the products fall on one bit below.
    let gathered = (lanes >> 15).wrapping_mul(1 << 48 | 1 << 33 | 1 << 18 | 1 << 3);
    (gathered >> 48) as u32 & 0xf
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_are_told_apart() {
        for tags in [[1_u16, 2, 3, 4], [7, 7, 0, 7], [0xffff, 0x8000, 1, 0], [0; 4]] {
            let word = tags.iter().rev().fold(0, |word, &tag| word << 16 | u64::from(tag));
            for tag in [0, 1, 2, 7, 0x7fff, 0x8000, 0xffff] {
                let expected = (0..4).filter(|&n| tags[n] == tag).fold(0, |all, n| all | 1 << n);
                assert_eq!(pack(equal_lanes(word, tag)), expected, "{tags:?} {tag}");
            }
        }
    }

    #[test]
    fn as_many_flows_fit_as_the_cache_was_made_for() {
        for flows in [8_u32, 100, 1000, 50_000] {
            let mut cache = FlowCache::new(flows);
            for n in 0..flows {
                let hash = n.wrapping_mul(0x85eb_ca6b) ^ n >> 7;
                cache.insert(cache.place(hash), Entry::EMPTY);
            }
            let FlowCache { stats, .. } = cache;
            assert_eq!((stats.flows, stats.evicted), (flows.into(), 0));
        }
    }
}
