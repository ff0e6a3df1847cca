//! DPDK's `rte_ring` of pointers, as a peer for benchmarks and for nothing else. Needs no EAL.

use std::ffi::c_void;
use std::ptr::NonNull;

use crate::sys::{self, Api};
use crate::{LoadError, api};

/// How a ring's ends are synchronised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingKind {
    /// Many producers (compare-and-swap), one consumer: what OpenNetVM uses.
    MpSc,
    /// One producer, one consumer.
    SpSc,
}

/// What a pointer on the ring leads to: the two cache lines of an mbuf.
#[repr(C, align(128))]
#[derive(Clone, Copy)]
struct Element([u64; 16]);

/// A ring and the elements that travel on it.
pub struct PeerRing {
    api: &'static Api,
    raw: NonNull<sys::rte_ring>,
    pointers: Vec<*mut c_void>,
    // What the pointers lead to.
    _elements: Vec<Element>,
}

// SAFETY: the ring is made for use by two threads; the elements are written and read by the shim's
// loops alone, an element being the consumer's between its dequeue and the producer's next use of
// it, which the pool of elements, larger than the ring, keeps apart.
unsafe impl Send for PeerRing {}
// SAFETY: as above. `produce` and `consume` each run on one thread at a time, see there.
unsafe impl Sync for PeerRing {}

impl PeerRing {
    /// A ring of `slots` (a power of two; one stays empty) and `elements` to send over it.
    ///
    /// # Errors
    /// [`LoadError`] when libdpdk is missing.
    ///
    /// # Panics
    /// When `slots` is no power of two, or there are not more elements than slots.
    pub fn new(slots: u32, elements: u32, kind: RingKind) -> Result<Self, LoadError> {
        assert!(slots.is_power_of_two() && elements > slots, "a ring smaller than its elements");
        let api = api()?;
        let flags = match kind {
            RingKind::MpSc => sys::MR_RING_SINGLE_CONSUMER,
            RingKind::SpSc => sys::MR_RING_SINGLE_PRODUCER | sys::MR_RING_SINGLE_CONSUMER,
        };
        // SAFETY: plain numbers; the ring is freed in `drop`.
        let raw = NonNull::new(unsafe { api.mr_ring_new(slots, flags) })
            .ok_or_else(|| LoadError { reason: "no memory for a ring".into() })?;
        let mut elements = vec![Element([0; 16]); elements as usize];
        let pointers = elements.iter_mut().map(|element| (&raw mut *element).cast()).collect();
        Ok(Self { api, raw, pointers, _elements: elements })
    }

    /// `rounds` times a burst in and a burst out, on one thread; returns the sum of the pointers,
    /// or with `metadata` of the 16 bytes behind each, which are written before.
    pub fn pingpong(&mut self, burst: u32, rounds: u64, metadata: bool) -> u64 {
        assert!(burst <= sys::MR_MAX_BURST);
        let len = self.pointers.len() as u32;
        // SAFETY: `pointers` holds `len` of them, the shim stays below, and a burst fits its array.
        unsafe {
            let at = self.pointers.as_ptr().cast_mut();
            self.api.mr_ring_bench_pingpong(
                self.raw.as_ptr(),
                at,
                len,
                burst,
                rounds,
                metadata.into(),
            )
        }
    }

    /// Pushes `total` pointers in bursts, waiting while the ring is full; writes 16
    /// bytes behind each before when there is `metadata`. One thread at a time.
    pub fn produce(&self, burst: u32, total: u64, metadata: bool) {
        assert!(burst <= sys::MR_MAX_BURST);
        let len = self.pointers.len() as u32;
        // SAFETY: as in `pingpong`; elements are 128 bytes.
        unsafe {
            let at = self.pointers.as_ptr().cast_mut();
            self.api.mr_ring_bench_produce(
                self.raw.as_ptr(),
                at,
                len,
                burst,
                total,
                metadata.into(),
            );
        }
    }

    /// Pops `total` pointers in bursts, waiting while the ring is empty; returns their sum, or with
    /// `metadata` the sum of what they lead to. One thread at a time.
    pub fn consume(&self, burst: u32, total: u64, metadata: bool) -> u64 {
        assert!(burst <= sys::MR_MAX_BURST);
        // SAFETY: the ring holds pointers to elements of `self` only.
        unsafe { self.api.mr_ring_bench_consume(self.raw.as_ptr(), burst, total, metadata.into()) }
    }
}

impl Drop for PeerRing {
    fn drop(&mut self) {
        // SAFETY: made in `new`, freed here once.
        unsafe { self.api.mr_ring_delete(self.raw.as_ptr()) };
    }
}
