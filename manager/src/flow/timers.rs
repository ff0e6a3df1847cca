//! When to look at which rule's timeouts: a timing wheel (Varghese and Lauck, SOSP 1987) whose lists
//! run through the rules' slots, so that nothing is allocated and a change costs a few words.
//!
//! A packet does not touch the wheel. A rule stands in the bucket of the moment when its time would
//! run out; when the wheel gets there, it is looked at, and put back if packets came since.
#![forbid(unsafe_code)]

use super::growing::Slab;
use super::rules::{NO_SLOT, Slot};

/// Length of a tick, as a power of two: 8.4 ms.
const TICK_SHIFT: u32 = 23;
/// Buckets, a round of which takes 69 s. A rule with a longer timeout is looked at every round.
const BUCKETS: u64 = 8192;
/// In no list.
const NO_BUCKET: u32 = u32::MAX;
/// In the list of those that the wheel has reached.
const REACHED: u32 = BUCKETS as u32;

/// A slot's place on the wheel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timer {
    next: u32,
    previous: u32,
    bucket: u32,
}

impl Default for Timer {
    fn default() -> Self {
        Self { next: NO_SLOT, previous: NO_SLOT, bucket: NO_BUCKET }
    }
}

/// The wheel.
#[derive(Debug)]
pub(super) struct Timers {
    /// First slot of each bucket's list, and of the list of those reached.
    heads: Box<[u32]>,
    /// The first tick that was not reached yet.
    tick: u64,
    /// The tick now: ticks before it are over.
    now: u64,
}

impl Timers {
    pub fn new() -> Self {
        Self { heads: vec![NO_SLOT; BUCKETS as usize + 1].into_boxed_slice(), tick: 0, now: 0 }
    }

    /// Looks at `slot` once `due_ns` is past; never, if that is `u64::MAX`.
    pub fn start(&mut self, slots: &mut Slab<Slot>, slot: u32, due_ns: u64) {
        if due_ns != u64::MAX {
            let tick = (due_ns >> TICK_SHIFT).max(self.tick);
            self.push(slots, slot, (tick % BUCKETS) as u32);
        }
    }

    fn push(&mut self, slots: &mut Slab<Slot>, slot: u32, bucket: u32) {
        let head = &mut self.heads[bucket as usize];
        if *head != NO_SLOT {
            slots[*head].timer.previous = slot;
        }
        slots[slot].timer = Timer { next: *head, previous: NO_SLOT, bucket };
        *head = slot;
    }

    /// Never looks at `slot`.
    pub fn stop(&mut self, slots: &mut Slab<Slot>, slot: u32) {
        let Timer { next, previous, bucket } = slots[slot].timer;
        if bucket == NO_BUCKET {
            return;
        }
        if next != NO_SLOT {
            slots[next].timer.previous = previous;
        }
        if previous != NO_SLOT {
            slots[previous].timer.next = next;
        } else {
            let reached = &mut self.heads[REACHED as usize];
            if *reached == slot {
                *reached = next;
            } else {
                self.heads[bucket as usize] = next;
            }
        }
        slots[slot].timer = Timer::default();
    }

    /// It is `now_ns`.
    pub fn begin(&mut self, now_ns: u64) {
        self.now = self.now.max(now_ns >> TICK_SHIFT);
        // After a long pause once round is enough.
        self.tick = self.tick.max(self.now.saturating_sub(BUCKETS));
    }

    /// Takes a slot off the wheel that it has reached.
    pub fn next_due(&mut self, slots: &mut Slab<Slot>) -> Option<u32> {
        while self.heads[REACHED as usize] == NO_SLOT && self.tick < self.now {
            // The whole list at once: what is put back now belongs to a later round.
            let bucket = (self.tick % BUCKETS) as usize;
            self.heads[REACHED as usize] = std::mem::replace(&mut self.heads[bucket], NO_SLOT);
            self.tick += 1;
        }
        let slot = self.heads[REACHED as usize];
        if slot == NO_SLOT {
            return None;
        }
        self.stop(slots, slot);
        Some(slot)
    }
}
