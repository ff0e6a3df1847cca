//! One half of a ring that is shared with the kernel: we produce, or we consume.
//!
//! ```text
//!  fill, tx:        we ── producer ──►  entries  ── consumer ──► kernel
//!  rx, completion:  kernel ─ producer ─► entries ── consumer ──► us
//! ```
//! The indices are free-running 32-bit words. Each half keeps the peer's index cached and reads it
//! again only when the cached one says "nothing". What the kernel's side says is copied and clamped
//! before use: an index can never lead outside the ring.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use super::abi::{XDP_RING_NEED_WAKEUP, XdpRingOffset};
use super::mmap::RingMap;

/// The words and entries of a ring.
#[derive(Debug)]
struct Shared<T> {
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    entries: NonNull<T>,
    mask: u32,
    /// Keeps the four pointers valid.
    _map: RingMap,
}

// SAFETY: the pointers lead into the mapping that the value owns; nothing is tied to a thread.
unsafe impl<T: Send> Send for Shared<T> {}

impl<T: Copy> Shared<T> {
    /// `None` when the kernel's offsets do not fit the mapping or `size` is not a power of two.
    fn new(map: RingMap, offset: XdpRingOffset, size: u32) -> Option<Self> {
        if !size.is_power_of_two() {
            return None;
        }
        Some(Self {
            producer: map.at(offset.producer, 1)?,
            consumer: map.at(offset.consumer, 1)?,
            flags: map.at(offset.flags, 1)?,
            entries: map.at(offset.desc, size as usize)?,
            mask: size - 1,
            _map: map,
        })
    }

    fn producer(&self) -> &AtomicU32 {
        // SAFETY: points into the mapping, aligned; an atomic may be written by the kernel.
        unsafe { self.producer.as_ref() }
    }

    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as `producer`.
        unsafe { self.consumer.as_ref() }
    }

    fn wants_wakeup(&self) -> bool {
        // SAFETY: as `producer`.
        let flags = unsafe { self.flags.as_ref() };
        flags.load(Ordering::Relaxed) & XDP_RING_NEED_WAKEUP != 0
    }

    fn entry(&self, index: u32) -> *mut T {
        // SAFETY: the mask keeps the entry inside the ring.
        unsafe { self.entries.as_ptr().add((index & self.mask) as usize) }
    }
}

/// The half that puts entries in: fill and transmit rings.
#[derive(Debug)]
pub struct Producer<T> {
    shared: Shared<T>,
    /// Our index, with what was written and not yet published.
    written: u32,
    /// What of it the kernel may see.
    published: u32,
    /// The kernel's index as last read.
    consumed: u32,
}

impl<T: Copy> Producer<T> {
    /// Takes the ring over where it stands.
    pub fn new(map: RingMap, offset: XdpRingOffset, size: u32) -> Option<Self> {
        let shared = Shared::new(map, offset, size)?;
        let at = shared.producer().load(Ordering::Relaxed);
        let consumed = shared.consumer().load(Ordering::Relaxed);
        Some(Self { shared, written: at, published: at, consumed })
    }

    /// Entries in the ring, used or not.
    pub fn size(&self) -> u32 {
        self.shared.mask + 1
    }

    /// Free slots, at least `want` of them if there are that many.
    #[inline]
    pub fn free(&mut self, want: u32) -> u32 {
        let free = self.size().saturating_sub(self.written.wrapping_sub(self.consumed));
        if free >= want {
            return free;
        }
        // Acquire: the kernel has read the entries that it gives back to us.
        self.consumed = self.shared.consumer().load(Ordering::Acquire);
        self.size().saturating_sub(self.written.wrapping_sub(self.consumed))
    }

    /// Entries written that the kernel has not taken yet.
    pub fn waiting(&mut self) -> u32 {
        self.size() - self.free(self.size())
    }

    /// Writes the next entry. The caller has seen a free slot.
    #[inline]
    pub fn write(&mut self, value: T) {
        debug_assert!(self.free(1) > 0);
        // SAFETY: the entry lies in the ring, and the kernel reads it only once it is published.
        unsafe { self.shared.entry(self.written).write_volatile(value) };
        self.written = self.written.wrapping_add(1);
    }

    /// Shows the kernel everything written.
    #[inline]
    pub fn publish(&mut self) {
        if self.published != self.written {
            self.published = self.written;
            // Release: the entries are written before the kernel can see the index.
            self.shared.producer().store(self.written, Ordering::Release);
        }
    }

    /// Whether the kernel wants a system call to go on.
    #[inline]
    pub fn wants_wakeup(&self) -> bool {
        self.shared.wants_wakeup()
    }

    /// The newest `count` entries, oldest first: what the kernel has not taken.
    pub fn newest(&self, count: u32) -> impl Iterator<Item = T> + '_ {
        let first = self.written.wrapping_sub(count.min(self.size()));
        (0..count.min(self.size())).map(move |n| {
            // SAFETY: the entry lies in the ring and holds what we wrote (or zeroes at first).
            unsafe { self.shared.entry(first.wrapping_add(n)).read_volatile() }
        })
    }
}

/// The half that takes entries out: receive and completion rings.
#[derive(Debug)]
pub struct Consumer<T> {
    shared: Shared<T>,
    /// Our index, with what was read and not yet released.
    read: u32,
    /// What of it the kernel may use again.
    released: u32,
    /// The kernel's index as last read.
    produced: u32,
}

impl<T: Copy> Consumer<T> {
    /// Takes the ring over where it stands.
    pub fn new(map: RingMap, offset: XdpRingOffset, size: u32) -> Option<Self> {
        let shared = Shared::new(map, offset, size)?;
        let at = shared.consumer().load(Ordering::Relaxed);
        Some(Self { shared, read: at, released: at, produced: at })
    }

    /// Takes the next entry out, or `None` when there is none.
    #[inline]
    pub fn next(&mut self) -> Option<T> {
        if self.read == self.produced {
            // Acquire: the entries are written before the index that shows them.
            let produced = self.shared.producer().load(Ordering::Acquire);
            // More than the ring holds can only be a lie; believe no more than the ring.
            let size = self.shared.mask + 1;
            let count = produced.wrapping_sub(self.read).min(size);
            if count == 0 {
                return None;
            }
            self.produced = self.read.wrapping_add(count);
        }
        // SAFETY: the entry lies in the ring; any bits are a valid `T` (integers only).
        let value = unsafe { self.shared.entry(self.read).read_volatile() };
        self.read = self.read.wrapping_add(1);
        Some(value)
    }

    /// True when nothing waits.
    pub fn is_empty(&self) -> bool {
        self.shared.producer().load(Ordering::Acquire) == self.read
    }

    /// Lets the kernel use the slots that were read.
    #[inline]
    pub fn release(&mut self) {
        if self.released != self.read {
            self.released = self.read;
            // Release: our reads of the entries are done before the kernel can write them.
            self.shared.consumer().store(self.read, Ordering::Release);
        }
    }
}

/// Rings in plain memory, both of whose halves are ours, so that they are tested without a kernel.
#[cfg(test)]
pub mod fake {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::os::fd::{AsFd, OwnedFd};

    pub const OFFSETS: XdpRingOffset =
        XdpRingOffset { producer: 0, consumer: 64, desc: 192, flags: 128 };
    pub const MEMORY_BYTES: usize = 4096;

    /// Zeroed memory to map.
    pub fn memory() -> OwnedFd {
        let file = memfd_create(c"ring", MFdFlags::empty()).unwrap();
        nix::unistd::ftruncate(&file, MEMORY_BYTES as i64).unwrap();
        file
    }

    /// The two halves of a ring; each maps the same bytes.
    pub fn pair<T: Copy>(size: u32) -> (Producer<T>, Consumer<T>) {
        let file = memory();
        let map = || RingMap::new(file.as_fd(), 0, MEMORY_BYTES).unwrap();
        let producer = Producer::new(map(), OFFSETS, size).unwrap();
        let consumer = Consumer::new(map(), OFFSETS, size).unwrap();
        (producer, consumer)
    }
}

#[cfg(test)]
mod tests {
    use super::fake::{MEMORY_BYTES, OFFSETS, memory};
    use super::*;
    use proptest::prelude::*;
    use std::os::fd::AsFd;

    fn pair(size: u32) -> (Producer<u64>, Consumer<u64>) {
        super::fake::pair(size)
    }

    proptest! {
        #[test]
        fn a_ring_behaves_as_a_bounded_queue(steps in prop::collection::vec((any::<bool>(), 0u32..12), 1..200)) {
            let (mut producer, mut consumer) = pair(8);
            let mut model = std::collections::VecDeque::new();
            let mut next = 0u64;
            for (put, count) in steps {
                if put {
                    let room = producer.free(count).min(count);
                    prop_assert_eq!(room, count.min(8 - model.len() as u32));
                    for _ in 0..room {
                        producer.write(next);
                        model.push_back(next);
                        next += 1;
                    }
                    producer.publish();
                } else {
                    for _ in 0..count {
                        prop_assert_eq!(consumer.next(), model.pop_front());
                    }
                    consumer.release();
                }
                prop_assert_eq!(producer.waiting() as usize, model.len());
            }
        }
    }

    #[test]
    fn an_index_far_ahead_is_believed_only_up_to_the_ring_size() {
        let (producer, mut consumer) = pair(8);
        producer.shared.producer().store(1_000_000, Ordering::Release);
        let taken = std::iter::from_fn(|| consumer.next()).take(8).count();
        assert_eq!(taken, 8);
    }

    #[test]
    fn a_consumer_index_that_lies_gives_no_slot_to_overwrite() {
        let (mut producer, _consumer) = pair(8);
        producer.shared.consumer().store(77, Ordering::Release);
        for _ in 0..producer.free(8) {
            producer.write(1);
        }
        producer.publish();
    }

    #[test]
    fn the_entries_the_kernel_did_not_take_can_be_listed() {
        let (mut producer, mut consumer) = pair(8);
        for value in 0..6 {
            producer.write(value);
        }
        producer.publish();
        assert_eq!((consumer.next(), consumer.next()), (Some(0), Some(1)));
        consumer.release();
        let waiting = producer.waiting();
        assert_eq!(producer.newest(waiting).collect::<Vec<_>>(), [2, 3, 4, 5]);
    }

    #[test]
    fn offsets_outside_the_mapping_make_no_ring() {
        let offset = XdpRingOffset { desc: 4090, ..OFFSETS };
        let file = memory();
        let map = || RingMap::new(file.as_fd(), 0, MEMORY_BYTES).unwrap();
        assert!(Producer::<u64>::new(map(), offset, 8).is_none());
        assert!(Producer::<u64>::new(map(), OFFSETS, 7).is_none());
    }
}
