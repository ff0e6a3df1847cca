//! A worker's buffer pool: which buffers of its share of the region are free.
//!
//! Workers share nothing. Each owns a contiguous share of the region's buffers, polls its own port
//! queues and has its own rings to every NF, so a buffer never changes worker and the free list
//! needs no lock. The list is the manager's private memory: no NF can see or corrupt it.
#![forbid(unsafe_code)]

use std::sync::Arc;

use nflib::shm::{BufferIndex, Region};

/// Where free buffers are kept.
///
/// The stack below serves every back end but DPDK, whose drivers allocate and free on their own:
/// with a DPDK port, the worker's pool is a `rte_mempool` laid over the same buffers.
pub trait FreeStore: Send {
    /// Takes up to `want` free buffers, appends them to `out`, and returns how many.
    fn take(&mut self, want: usize, out: &mut Vec<BufferIndex>) -> usize;
    /// Gives buffers back.
    fn give(&mut self, buffers: &[BufferIndex]);
    /// Buffers free now.
    fn free_buffers(&self) -> usize;
    /// Which those are; `None` when the store can only count them.
    fn list(&self) -> Option<&[BufferIndex]> {
        None
    }
}

/// A last-in first-out list: the buffer that was used last is still in the cache.
#[derive(Debug)]
struct Stack(Vec<BufferIndex>);

impl FreeStore for Stack {
    fn take(&mut self, want: usize, out: &mut Vec<BufferIndex>) -> usize {
        let kept = self.0.len().saturating_sub(want);
        let got = self.0.len() - kept;
        out.extend(self.0.drain(kept..).rev());
        got
    }

    fn give(&mut self, buffers: &[BufferIndex]) {
        self.0.extend_from_slice(buffers);
    }

    fn free_buffers(&self) -> usize {
        self.0.len()
    }

    fn list(&self) -> Option<&[BufferIndex]> {
        Some(&self.0)
    }
}

/// One worker's share of the region's buffers, and which of them are free.
pub struct BufferPool {
    region: Arc<Region>,
    first: BufferIndex,
    count: u32,
    store: Box<dyn FreeStore>,
}

impl BufferPool {
    /// A pool of the buffers `first..first + count`, all free.
    #[must_use]
    pub fn new(region: Arc<Region>, first: BufferIndex, count: u32) -> Self {
        let store = Box::new(Stack((first..first + count).rev().collect()));
        Self::with_store(region, first, count, store)
    }

    /// A pool over a store that a back end provides, which holds `first..first + count`, all free.
    #[must_use]
    pub fn with_store(
        region: Arc<Region>,
        first: BufferIndex,
        count: u32,
        store: Box<dyn FreeStore>,
    ) -> Self {
        Self { region, first, count, store }
    }

    /// The region the buffers lie in.
    #[must_use]
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// First buffer of the share.
    #[must_use]
    pub fn first(&self) -> BufferIndex {
        self.first
    }

    /// Buffers in the share, free or not.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Buffers free now.
    #[must_use]
    pub fn free_buffers(&self) -> usize {
        self.store.free_buffers()
    }

    /// Which buffers are free, where that can be told.
    #[must_use]
    pub fn list_free(&self) -> Option<&[BufferIndex]> {
        self.store.list()
    }

    /// Takes up to `want` free buffers, appended to `out`; returns how many it got.
    #[inline]
    pub fn take(&mut self, want: usize, out: &mut Vec<BufferIndex>) -> usize {
        self.store.take(want, out)
    }

    /// Takes one free buffer.
    pub fn take_one(&mut self) -> Option<BufferIndex> {
        let mut one = Vec::with_capacity(1);
        self.take(1, &mut one);
        one.pop()
    }

    /// Gives buffers back. Each must be of this share and not free already: the caller is the
    /// manager itself, and a buffer that an NF returned was checked against the ownership table.
    #[inline]
    pub fn give(&mut self, buffers: &[BufferIndex]) {
        debug_assert!(
            buffers.iter().all(|&b| (self.first..self.first + self.count).contains(&b)),
            "a buffer of another worker's share was freed here"
        );
        self.store.give(buffers);
    }
}

impl std::fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BufferPool")
            .field("first", &self.first)
            .field("count", &self.count)
            .field("free", &self.free_buffers())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nflib::shm::{HugePages, RegionGeometry};

    fn pool(count: u32) -> BufferPool {
        let geometry = RegionGeometry { buffers: 64, stride_bytes: 2048, headroom_bytes: 256 };
        let region = Arc::new(Region::create(geometry, HugePages::Off).unwrap());
        BufferPool::new(region, 8, count)
    }

    #[test]
    fn a_pool_hands_out_each_buffer_of_its_share_once() {
        let mut pool = pool(16);
        let mut got = Vec::new();
        assert_eq!(pool.take(100, &mut got), 16);
        got.sort_unstable();
        assert_eq!(got, (8..24).collect::<Vec<_>>());
        assert_eq!(pool.take_one(), None);
        pool.give(&got);
        assert_eq!(pool.free_buffers(), 16);
    }

    #[test]
    fn the_buffer_freed_last_is_taken_first() {
        let mut pool = pool(4);
        let first = pool.take_one().unwrap();
        let second = pool.take_one().unwrap();
        pool.give(&[second, first]);
        assert_eq!(pool.take_one(), Some(first));
    }
}
