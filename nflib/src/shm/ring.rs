//! Descriptor rings with one producer and one consumer.
//!
//! ```text
//! byte 0      tail: where the producer writes next   (written by the producer alone)
//! byte 64     settled: see below                     (written by the producer alone)
//! byte 128    head: the oldest slot still in use     (written by the consumer alone)
//! byte 192    taken: see below                       (written by the consumer alone)
//! byte 256    slot 0, slot 1, …  16 bytes each, a power of two of them
//! ```
//! Both indices run freely and wrap at 2³²; the slot is the index modulo the capacity, so a ring of
//! `n` slots holds `n` descriptors. Each side keeps a private copy of its own index, which it never
//! reads back, and of the last index seen of the peer's, which it refreshes only when the ring looks
//! full (or empty): in the steady state a burst costs one cache miss on the index, not two.
//!
//! The peer is not trusted. An index read from it is copied once and checked against what is
//! possible; slots are copied out once, by address, to private memory, so that a peer that writes at
//! the wrong time can only change values that are yet to be checked. A descriptor is checked by the
//! one who uses it.
//!
//! A burst is copied as a whole (in two runs where it goes round the end). Slots of two relaxed
//! atomic words each made 0.7 of its rate: the compiler may not join them into wide moves.
//!
//! `settled` and `taken` are for the time after a death ([`Remains`]) and nobody reads them before.
//! A process that passes packets from ring to ring dies at any instant; which of them did it pass
//! on? It reads a burst (`taken` moves), pushes it elsewhere (`tail` moves), releases it (`head`
//! moves) and then settles the rings it pushed to (`settled` moves). So what lies in its input ring
//! from `head` on is its own, except the part before `taken` that also stands in one of its output
//! rings from `settled` on: that was passed on in the very burst in which it died.
//!
//! The lines of the two sides are 128 bytes apart because x86 fetches cache lines in pairs.

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::compiler_fence;

use thiserror::Error;

use super::Mapping;
use super::sync::{AtomicU32, AtomicU64, Ordering};
use crate::descriptor::{Delivery, Returned};

/// Two 64-bit words: what one slot holds.
pub const SLOT_BYTES: usize = 16;
const LINE_BYTES: usize = 64;
const SETTLED_OFFSET_BYTES: usize = 64;
const HEAD_OFFSET_BYTES: usize = 128;
const TAKEN_OFFSET_BYTES: usize = 192;
const SLOTS_OFFSET_BYTES: usize = 256;

/// A value that travels in one slot, in the layout it has in memory.
///
/// # Safety
/// The type is 16 bytes long, aligned to at most 16, has no padding, and any 16 bytes are a value of
/// it: what is read from a slot was written by another process.
pub unsafe trait SlotValue: Copy {}

// SAFETY: `repr(C, align(16))` over integers of 4 + 2 + 2 + 4 + 2 + 1 + 1 = 16 bytes, each at a
// multiple of its size, so without padding; integers take any bits.
unsafe impl SlotValue for Delivery {}
// SAFETY: as above, 4 + 2 + 2 + 4 + 2 + 1 + 1 = 16 bytes.
unsafe impl SlotValue for Returned {}

const _: () = assert!(size_of::<Delivery>() == SLOT_BYTES && size_of::<Returned>() == SLOT_BYTES);

impl Delivery {
    /// How far the hop lies up in the second word.
    const HOP_SHIFT: u32 = 56;

    /// The same packet so many hops on, modulo 256.
    #[inline]
    pub(crate) fn hops_on(&self, hops: u8) -> Self {
        let hops = u64::from(hops) << Self::HOP_SHIFT;
        // Field by field the compiler makes three times as many instructions of it as by words, and by
        // words twice as many as by one vector.
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_mm_add_epi64, _mm_set_epi64x};
            // SAFETY: a Delivery is 16 bytes without padding, aligned to 16, as a vector is, and any bits
            // are one; every x86-64 CPU has these instructions. The hop is the last byte, so that nothing
            // is carried out of it.
            unsafe {
                let hops = _mm_set_epi64x(hops.cast_signed(), 0);
                std::mem::transmute(_mm_add_epi64(std::mem::transmute_copy(self), hops))
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            // SAFETY: a Delivery is 16 bytes without padding, aligned to 16, and any bits are one.
            let [place, mut rest]: [u64; 2] = unsafe { std::mem::transmute_copy(self) };
            // The hop is the last byte, so that nothing is carried out of it.
            rest = u64::from_le(rest).wrapping_add(hops).to_le();
            // SAFETY: as above.
            unsafe { std::mem::transmute([place, rest]) }
        }
    }
}

/// The peer wrote an index that its side of the ring can never have.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the peer's ring index is {found}, outside {oldest}..={newest}")]
pub struct RingError {
    /// What was read.
    pub found: u32,
    /// Smallest possible value (wrapping).
    pub oldest: u32,
    /// Largest possible value (wrapping).
    pub newest: u32,
}

/// Where a ring's words are. Implemented by shared memory and, for tests and models, by the heap.
pub trait RingMemory {
    /// The producer's index.
    fn tail(&self) -> &AtomicU32;
    /// The consumer's index.
    fn head(&self) -> &AtomicU32;
    /// The producer's index when it last settled.
    fn settled(&self) -> &AtomicU32;
    /// The consumer's index up to which it has read.
    fn taken(&self) -> &AtomicU32;
    /// Number of slots, a power of two.
    fn capacity(&self) -> u32;
    /// Says that `count` slots from free-running index `at` on will be written soon, so that their
    /// lines can be fetched from the consumer's core meanwhile. A hint; does nothing by default.
    fn will_write(&self, at: u32, count: usize) {
        let _ = (at, count);
    }
    /// Copies `values` into the slots from free-running index `at` on, round the end if need be.
    /// At most [`capacity`](Self::capacity) values; the caller owns those slots.
    fn write<T: SlotValue>(&self, at: u32, values: &[T]);
    /// As [`write`](Self::write), with the values that `value` makes of `from`.
    #[inline]
    fn write_made<S, T: SlotValue>(&self, at: u32, from: &[S], value: impl Fn(&S) -> T) {
        for (from, n) in from.iter().zip(0..) {
            self.write(at.wrapping_add(n), &[value(from)]);
        }
    }
    /// Copies the slots from free-running index `at` on into `out`, once: whatever the peer writes
    /// afterwards, `out` stays as it is. At most [`capacity`](Self::capacity) values.
    fn read<T: SlotValue>(&self, at: u32, out: &mut [T]);
}

/// A ring inside a shared mapping.
#[derive(Clone, Debug)]
pub struct SharedRing {
    base: NonNull<u8>,
    mask: u32,
    // Keeps the mapping, and so `base`, alive.
    _mapping: Arc<Mapping>,
}

// SAFETY: indices behind `base` are atomics; slots are copied by address, by one producer and one
// consumer, whose hand-over orders them.
unsafe impl Send for SharedRing {}
// SAFETY: as above.
unsafe impl Sync for SharedRing {}

impl SharedRing {
    /// Bytes a ring of `capacity` slots takes.
    #[must_use]
    pub const fn size_bytes(capacity: u32) -> usize {
        SLOTS_OFFSET_BYTES + capacity as usize * SLOT_BYTES
    }

    /// The ring at `offset_bytes` of a mapping. `None` when it would not lie inside the mapping, is
    /// not aligned to 128 bytes, or `capacity` is not a power of two.
    ///
    /// Fresh shared memory is zero, and an all-zero ring is an empty one.
    #[must_use]
    pub fn at(mapping: &Arc<Mapping>, offset_bytes: usize, capacity: u32) -> Option<Self> {
        let end = offset_bytes.checked_add(Self::size_bytes(capacity))?;
        let fits = end <= mapping.len_bytes();
        if !capacity.is_power_of_two() || !offset_bytes.is_multiple_of(128) || !fits {
            return None;
        }
        // SAFETY: `offset_bytes < end <= len_bytes`, so the address is inside the mapping.
        let base = unsafe { mapping.base().add(offset_bytes) };
        Some(Self { base, mask: capacity - 1, _mapping: Arc::clone(mapping) })
    }

    /// Address of the slot that free-running index `at` falls on.
    #[inline]
    fn slot(&self, at: u32) -> NonNull<u8> {
        let offset = SLOTS_OFFSET_BYTES + (at & self.mask) as usize * SLOT_BYTES;
        // SAFETY: the mask keeps the slot's number below the capacity, whose bytes `at` checked.
        unsafe { self.base.add(offset) }
    }

    /// Slots from the one at index `at` to the last.
    #[inline]
    fn slots_to_the_end(&self, at: u32) -> usize {
        (self.mask + 1 - (at & self.mask)) as usize
    }

    #[inline]
    fn index_word(&self, offset_bytes: usize) -> &AtomicU32 {
        // SAFETY: `at` checked that the whole ring lies in the mapping, aligned to 128; the mapping
        // lives as long as `self`; a peer's concurrent writes are what an atomic is for.
        #[allow(clippy::cast_ptr_alignment)]
        unsafe {
            self.base.add(offset_bytes).cast::<AtomicU32>().as_ref()
        }
    }
}

impl RingMemory for SharedRing {
    #[inline]
    fn tail(&self) -> &AtomicU32 {
        self.index_word(0)
    }

    #[inline]
    fn head(&self) -> &AtomicU32 {
        self.index_word(HEAD_OFFSET_BYTES)
    }

    #[inline]
    fn settled(&self) -> &AtomicU32 {
        self.index_word(SETTLED_OFFSET_BYTES)
    }

    #[inline]
    fn taken(&self) -> &AtomicU32 {
        self.index_word(TAKEN_OFFSET_BYTES)
    }

    #[inline]
    fn capacity(&self) -> u32 {
        self.mask + 1
    }

    #[inline]
    fn will_write(&self, at: u32, count: usize) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
            let end = at.wrapping_add(count as u32);
            let mut at = at;
            while (end.wrapping_sub(at) as i32) > 0 {
                // SAFETY: the address is inside the ring; a prefetch changes nothing, and is no
                // operation on a CPU without it.
                unsafe { _mm_prefetch::<_MM_HINT_ET0>(self.slot(at).as_ptr().cast()) };
                at = at.wrapping_add((LINE_BYTES / SLOT_BYTES) as u32);
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (at, count);
    }

    #[inline]
    fn write<T: SlotValue>(&self, at: u32, values: &[T]) {
        let (first, second) = values.split_at(self.slots_to_the_end(at).min(values.len()));
        let copy = |slot: NonNull<u8>, run: &[T]| {
            // SAFETY: the run ends at the ring's end at the latest (`second` is shorter than the
            // ring, since `values` is not longer), inside what `at` checked; `values` is private
            // memory; a SlotValue is 16 bytes, as a slot is, and needs no more than its alignment.
            unsafe { std::ptr::copy_nonoverlapping(run.as_ptr(), slot.cast().as_ptr(), run.len()) };
        };
        copy(self.slot(at), first);
        if !second.is_empty() {
            copy(self.slot(0), second);
        }
    }

    #[inline]
    fn write_made<S, T: SlotValue>(&self, at: u32, from: &[S], value: impl Fn(&S) -> T) {
        let (first, second) = from.split_at(self.slots_to_the_end(at).min(from.len()));
        let write = |slot: NonNull<u8>, run: &[S]| {
            let slot = slot.cast::<T>().as_ptr();
            for (n, from) in run.iter().enumerate() {
                // SAFETY: as in `write`: neither run is longer than the slots behind its first one.
                unsafe { slot.add(n).write(value(from)) };
            }
        };
        write(self.slot(at), first);
        if !second.is_empty() {
            write(self.slot(0), second);
        }
    }

    #[inline]
    fn read<T: SlotValue>(&self, at: u32, out: &mut [T]) {
        let (first, second) = out.split_at_mut(self.slots_to_the_end(at).min(out.len()));
        let copy = |slot: NonNull<u8>, run: &mut [T]| {
            let from = slot.cast().as_ptr();
            // SAFETY: as in `write`, with the roles exchanged; any bytes are a SlotValue.
            unsafe { std::ptr::copy_nonoverlapping(from, run.as_mut_ptr(), run.len()) };
        };
        copy(self.slot(at), first);
        if !second.is_empty() {
            copy(self.slot(0), second);
        }
        // The copy is the only read of the slots: the compiler may not go back to them for a value
        // that was checked meanwhile.
        compiler_fence(Ordering::SeqCst);
    }
}

/// The sending half. There is at most one per ring.
#[derive(Debug)]
pub struct Producer<T, M = SharedRing> {
    memory: M,
    /// Our own index; the shared word is only ever written.
    tail: u32,
    /// The consumer's index when last looked at.
    seen_head: u32,
    _values: PhantomData<fn(T)>,
}

impl<T: SlotValue, M: RingMemory> Producer<T, M> {
    /// Takes the producer's role on a ring that starts empty at index 0.
    #[must_use]
    pub fn new(memory: M) -> Self {
        Self { memory, tail: 0, seen_head: 0, _values: PhantomData }
    }

    /// Number of slots.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.memory.capacity()
    }

    /// Slots known to be free without asking the consumer.
    #[inline]
    fn free_slots(&self) -> u32 {
        self.memory.capacity() - self.tail.wrapping_sub(self.seen_head)
    }

    /// Looks at the consumer's index again.
    #[inline]
    fn refresh(&mut self) -> Result<(), RingError> {
        // Acquire: the consumer's reads of the slots it released happen before we overwrite them.
        let head = self.memory.head().load(Ordering::Acquire);
        // The head may stand anywhere from where we last saw it to our own tail.
        let used_before = self.tail.wrapping_sub(self.seen_head);
        let used = self.tail.wrapping_sub(head);
        if used > used_before {
            return Err(RingError { found: head, oldest: self.seen_head, newest: self.tail });
        }
        self.seen_head = head;
        Ok(())
    }

    /// Appends as many of `values` as there is room for, from the front; returns how many.
    ///
    /// A ring that is nearly full takes what fits: never all or nothing.
    ///
    /// # Errors
    /// [`RingError`] when the consumer's index is impossible; nothing was appended.
    #[inline]
    pub fn push_burst(&mut self, values: &[T]) -> Result<usize, RingError> {
        let count = self.room_for(values.len())?;
        if count > 0 {
            self.memory.write(self.tail, &values[..count]);
            self.publish(count);
        }
        Ok(count)
    }

    /// As [`push_burst`](Self::push_burst), with the values that `value` makes of `from`.
    ///
    /// # Errors
    /// As [`push_burst`](Self::push_burst).
    #[inline]
    pub fn push_made<S>(
        &mut self,
        from: &[S],
        value: impl Fn(&S) -> T,
    ) -> Result<usize, RingError> {
        let count = self.room_for(from.len())?;
        if count > 0 {
            self.memory.write_made(self.tail, &from[..count], value);
            self.publish(count);
        }
        Ok(count)
    }

    /// How many of `count` values fit.
    #[inline]
    fn room_for(&mut self, count: usize) -> Result<usize, RingError> {
        if (self.free_slots() as usize) < count {
            self.refresh()?;
        }
        Ok(count.min(self.free_slots() as usize))
    }

    /// Hands the slots that were just written to the consumer.
    #[inline]
    fn publish(&mut self, count: usize) {
        self.tail = self.tail.wrapping_add(count as u32);
        // Release: publishes the slots, and the packet bytes written before this call.
        self.memory.tail().store(self.tail, Ordering::Release);
        // The next burst is likely as long as this one.
        self.memory.will_write(self.tail, count);
    }

    /// Says that whatever was pushed is no longer the pusher's by any other evidence: it has been
    /// released where it came from. To be called once a burst, after the releases.
    #[inline]
    pub fn settle(&self) {
        // Release: a reader that sees this sees the releases before it.
        self.memory.settled().store(self.tail, Ordering::Release);
    }

    /// Descriptors pushed and not yet released by the consumer, as far as known now.
    ///
    /// # Errors
    /// [`RingError`] when the consumer's index is impossible.
    pub fn in_flight(&mut self) -> Result<u32, RingError> {
        self.refresh()?;
        Ok(self.tail.wrapping_sub(self.seen_head))
    }
}

/// The receiving half. There is at most one per ring.
///
/// Reading and releasing are two steps: a slot goes back to the producer only when the consumer has
/// passed on what it read from it, so that a consumer that dies in between leaves the slot readable.
#[derive(Debug)]
pub struct Consumer<T, M = SharedRing> {
    memory: M,
    /// Oldest slot not yet released; our own index.
    head: u32,
    /// Next slot to read, from `head` to `seen_tail`.
    next: u32,
    /// The producer's index when last looked at.
    seen_tail: u32,
    _values: PhantomData<fn() -> T>,
}

impl<T: SlotValue, M: RingMemory> Consumer<T, M> {
    /// Takes the consumer's role on a ring that starts empty at index 0.
    #[must_use]
    pub fn new(memory: M) -> Self {
        Self { memory, head: 0, next: 0, seen_tail: 0, _values: PhantomData }
    }

    /// Number of slots.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.memory.capacity()
    }

    #[inline]
    fn refresh(&mut self) -> Result<(), RingError> {
        // Acquire: pairs with the producer's Release, so the slots and the packets they name are
        // visible.
        let tail = self.memory.tail().load(Ordering::Acquire);
        // The tail may stand anywhere from where we last saw it to a full ring past our head.
        let grown = tail.wrapping_sub(self.seen_tail);
        let newest = self.head.wrapping_add(self.memory.capacity());
        if grown > newest.wrapping_sub(self.seen_tail) {
            return Err(RingError { found: tail, oldest: self.seen_tail, newest });
        }
        self.seen_tail = tail;
        Ok(())
    }

    /// Reads up to `out.len()` descriptors into `out` without releasing their slots; returns how
    /// many. A further call goes on behind them.
    ///
    /// # Errors
    /// [`RingError`] when the producer's index is impossible; nothing was read.
    #[inline]
    pub fn read_burst(&mut self, out: &mut [T]) -> Result<usize, RingError> {
        // Look again only when what is known would not fill the burst.
        if (self.seen_tail.wrapping_sub(self.next) as usize) < out.len() {
            self.refresh()?;
        }
        let count = out.len().min(self.seen_tail.wrapping_sub(self.next) as usize);
        if count > 0 {
            self.memory.read(self.next, &mut out[..count]);
            self.next = self.next.wrapping_add(count as u32);
            // Release: whoever sees a later push of ours sees that this burst was taken.
            self.memory.taken().store(self.next, Ordering::Release);
        }
        Ok(count)
    }

    /// Gives every slot that was read back to the producer.
    #[inline]
    pub fn release(&mut self) {
        if self.head != self.next {
            self.head = self.next;
            // Release: our reads of the slots happen before the producer may overwrite them.
            self.memory.head().store(self.head, Ordering::Release);
        }
    }

    /// Reads and releases in one step.
    ///
    /// # Errors
    /// As [`read_burst`](Self::read_burst).
    #[inline]
    pub fn pop_burst(&mut self, out: &mut [T]) -> Result<usize, RingError> {
        let count = self.read_burst(out)?;
        self.release();
        Ok(count)
    }

    /// True when nothing waits to be read, by a fresh look at the producer's index.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.memory.tail().load(Ordering::Acquire) == self.next
    }

    /// Descriptors that wait to be read, by a fresh look at the producer's index; a number to compare,
    /// never one to read by: an index that cannot be makes a full ring.
    #[must_use]
    pub fn waiting(&self) -> u32 {
        let waiting = self.memory.tail().load(Ordering::Acquire).wrapping_sub(self.next);
        waiting.min(self.memory.capacity())
    }
}

/// What stands in a ring, for one who is neither of its ends and looks when an end has died.
#[derive(Debug)]
pub struct Remains<M = SharedRing> {
    memory: M,
}

impl<M: RingMemory> Remains<M> {
    /// Looks at a ring.
    #[must_use]
    pub fn of(memory: M) -> Self {
        Self { memory }
    }

    /// The values in slots `from..to`; `None` when that is more than a ring can hold, which only a
    /// process that breaks the rules can bring about.
    fn between<T: SlotValue + Default>(&self, from: u32, to: u32) -> Option<Vec<T>> {
        let count = to.wrapping_sub(from);
        if count > self.memory.capacity() {
            return None;
        }
        let mut values = vec![T::default(); count as usize];
        self.memory.read(from, &mut values);
        Some(values)
    }

    /// What the (dead) consumer had not released, in two parts: read already, and not yet read.
    /// Only what the producer has pushed before this call.
    #[must_use]
    pub fn unreleased<T: SlotValue + Default>(&self) -> Option<(Vec<T>, Vec<T>)> {
        self.unreleased_up_to(self.memory.tail().load(Ordering::Acquire))
    }

    fn unreleased_up_to<T: SlotValue + Default>(&self, tail: u32) -> Option<(Vec<T>, Vec<T>)> {
        let head = self.memory.head().load(Ordering::Acquire);
        let taken = self.memory.taken().load(Ordering::Acquire);
        // Taken stands behind head for an instant in every burst that is read and released at once.
        let taken = if tail.wrapping_sub(taken) > tail.wrapping_sub(head) { head } else { taken };
        Some((self.between(head, taken)?, self.between(taken, tail)?))
    }

    /// As [`unreleased`](Self::unreleased), and takes it: stands in for the dead consumer, so that a
    /// producer that still pushes finds room, and what it pushes is found by the next call.
    #[must_use]
    pub fn drain<T: SlotValue + Default>(&self) -> Option<(Vec<T>, Vec<T>)> {
        let tail = self.memory.tail().load(Ordering::Acquire);
        let found = self.unreleased_up_to(tail)?;
        self.memory.taken().store(tail, Ordering::Relaxed);
        self.memory.head().store(tail, Ordering::Release);
        Some(found)
    }

    /// True when the consumer has released all that was pushed. A ring whose indices cannot be is not
    /// empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let tail = self.memory.tail().load(Ordering::Acquire);
        self.memory.head().load(Ordering::Acquire) == tail
    }

    /// What the (dead) producer had pushed since it settled, consumed meanwhile or not.
    #[must_use]
    pub fn unsettled<T: SlotValue + Default>(&self) -> Option<Vec<T>> {
        let tail = self.memory.tail().load(Ordering::Acquire);
        let settled = self.memory.settled().load(Ordering::Acquire);
        self.between(settled, tail)
    }
}

/// A ring in private memory, for models, tests and benchmarks.
#[derive(Clone, Debug)]
pub struct HeapRing(Arc<HeapRingWords>);

#[derive(Debug)]
struct HeapRingWords {
    tail: AtomicU32,
    head: AtomicU32,
    settled: AtomicU32,
    taken: AtomicU32,
    slots: Box<[[AtomicU64; 2]]>,
}

impl HeapRing {
    /// A ring of `capacity` slots, rounded up to a power of two, whose indices both start at
    /// `start` (0 unless a test wants to see them wrap; give both halves the same with
    /// [`Producer::starting_at`] and [`Consumer::starting_at`]).
    #[must_use]
    pub fn new(capacity: u32, start: u32) -> Self {
        let slots = (0..capacity.next_power_of_two())
            .map(|_| [AtomicU64::new(0), AtomicU64::new(0)])
            .collect();
        Self(Arc::new(HeapRingWords {
            tail: AtomicU32::new(start),
            head: AtomicU32::new(start),
            settled: AtomicU32::new(start),
            taken: AtomicU32::new(start),
            slots,
        }))
    }

    fn slot(&self, at: u32) -> &[AtomicU64; 2] {
        &self.0.slots[at as usize & (self.0.slots.len() - 1)]
    }

    /// The two words of the slot that index `at` falls on.
    #[must_use]
    pub fn words(&self, at: u32) -> [u64; 2] {
        let slot = self.slot(at);
        [slot[0].load(Ordering::Relaxed), slot[1].load(Ordering::Relaxed)]
    }
}

impl<T: SlotValue> Producer<T, HeapRing> {
    /// Takes the producer's role on an empty ring whose indices stand at `start`.
    #[must_use]
    pub fn starting_at(memory: HeapRing, start: u32) -> Self {
        Self { tail: start, seen_head: start, ..Self::new(memory) }
    }
}

impl<T: SlotValue> Consumer<T, HeapRing> {
    /// Takes the consumer's role on an empty ring whose indices stand at `start`.
    #[must_use]
    pub fn starting_at(memory: HeapRing, start: u32) -> Self {
        Self { head: start, next: start, seen_tail: start, ..Self::new(memory) }
    }
}

impl RingMemory for HeapRing {
    fn tail(&self) -> &AtomicU32 {
        &self.0.tail
    }

    fn head(&self) -> &AtomicU32 {
        &self.0.head
    }

    fn settled(&self) -> &AtomicU32 {
        &self.0.settled
    }

    fn taken(&self) -> &AtomicU32 {
        &self.0.taken
    }

    fn capacity(&self) -> u32 {
        u32::try_from(self.0.slots.len()).unwrap_or(u32::MAX)
    }

    fn write<T: SlotValue>(&self, at: u32, values: &[T]) {
        for (n, value) in values.iter().enumerate() {
            // SAFETY: a SlotValue is 16 bytes without padding, so it can be read as two words.
            let words: [u64; 2] = unsafe { std::mem::transmute_copy(value) };
            for (slot, word) in self.slot(at.wrapping_add(n as u32)).iter().zip(words) {
                slot.store(word, Ordering::Relaxed);
            }
        }
    }

    fn read<T: SlotValue>(&self, at: u32, out: &mut [T]) {
        for (n, value) in out.iter_mut().enumerate() {
            let words = self.words(at.wrapping_add(n as u32));
            // SAFETY: any 16 bytes are a SlotValue.
            *value = unsafe { std::mem::transmute_copy(&words) };
        }
    }
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
