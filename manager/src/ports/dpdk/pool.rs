//! A worker's mempool: DPDK's free list over that worker's buffers of the region.

use std::ffi::CString;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use dpdk_sys::sys::{self, Api};
use nflib::shm::{BufferIndex, Region};

use super::eal::unsupported;
use crate::pool::{BufferPool, FreeStore};
use crate::ports::PortError;

/// Free buffers that each lcore keeps for itself; DPDK allows up to 512.
const CACHE_BUFFERS: u32 = 512;

/// A mempool whose mbufs' data are `count` consecutive buffers of the region.
pub(super) struct Mempool {
    api: &'static Api,
    raw: NonNull<sys::mr_pool>,
    region: Arc<Region>,
    first: BufferIndex,
    count: u32,
    /// Buffers that the descriptor rings of open devices may hold.
    promised: AtomicU32,
}

// SAFETY: the mempool is DPDK's multi-producer, multi-consumer kind, safe from any thread; `raw`
// itself is never written after creation.
unsafe impl Send for Mempool {}
// SAFETY: as above.
unsafe impl Sync for Mempool {}

impl Mempool {
    pub(super) fn create(
        api: &'static Api,
        region: &Arc<Region>,
        first: BufferIndex,
        count: u32,
    ) -> Result<Self, PortError> {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let geometry = region.geometry();
        if count == 0 || u64::from(first) + u64::from(count) > u64::from(geometry.buffers) {
            let problem = format!("buffers {first}+{count} of {} do not exist", geometry.buffers);
            return Err(unsupported("dpdk", problem));
        }
        let config = sys::mr_pool_config {
            base: region.base().as_ptr().cast(),
            base_iova: region.base().as_ptr() as u64,
            first,
            count,
            stride: geometry.stride_bytes,
            headroom: geometry.headroom_bytes,
            cache: CACHE_BUFFERS.min(count / 4),
        };
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let name = CString::new(format!("millrace_{serial}")).unwrap_or_default();
        let mut errno = 0;
        // SAFETY: `config` names memory of the region that lasts as long as `self` does; the name
        // is copied; `errno` is written before the call returns.
        let raw = unsafe { api.mr_pool_create(name.as_ptr(), &raw const config, &raw mut errno) };
        let raw = NonNull::new(raw).ok_or_else(|| {
            let why = std::io::Error::from_raw_os_error(errno.abs());
            unsupported("dpdk", format!("no mempool of {count} buffers ({why}); free more memory"))
        })?;
        let region = region.clone();
        Ok(Self { api, raw, region, first, count, promised: AtomicU32::new(0) })
    }

    pub(super) fn raw(&self) -> *mut sys::mr_pool {
        self.raw.as_ptr()
    }

    pub(super) fn region(&self) -> &Arc<Region> {
        &self.region
    }

    pub(super) fn lies_under(&self, pool: &BufferPool) -> bool {
        Arc::ptr_eq(&self.region, pool.region())
            && (self.first, self.count) == (pool.first(), pool.count())
    }

    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// Notes that a device's rings may hold `buffers`; returns how many all devices may hold now.
    pub(super) fn promise(&self, buffers: u32) -> u32 {
        self.promised.fetch_add(buffers, Ordering::Relaxed) + buffers
    }

    pub(super) fn release_promise(&self, buffers: u32) {
        self.promised.fetch_sub(buffers, Ordering::Relaxed);
    }

    pub(super) fn give(&self, buffers: &[BufferIndex]) {
        let len = u32::try_from(buffers.len()).unwrap_or(u32::MAX);
        // SAFETY: `raw` is a live pool; the shim reads `len` numbers and ignores foreign ones.
        let ignored = unsafe { self.api.mr_pool_give(self.raw(), buffers.as_ptr(), len) };
        debug_assert_eq!(ignored, 0, "a buffer of another worker's share was freed here");
    }

    /// Lets other threads have what this thread's cache holds.
    pub(super) fn flush_cache(&self) {
        // SAFETY: `raw` is a live pool; the cache flushed is the calling thread's own.
        unsafe { self.api.mr_pool_flush_cache(self.raw()) };
    }
}

impl Drop for Mempool {
    fn drop(&mut self) {
        // SAFETY: the devices that used the pool hold an Arc to it until they are closed.
        unsafe { self.api.mr_pool_free(self.raw()) };
    }
}

/// The mempool as the worker's free list.
pub(super) struct MempoolStore {
    mempool: Arc<Mempool>,
}

impl MempoolStore {
    pub(super) fn new(mempool: Arc<Mempool>) -> Self {
        Self { mempool }
    }
}

impl FreeStore for MempoolStore {
    fn take(&mut self, want: usize, out: &mut Vec<BufferIndex>) -> usize {
        let want = want.min(self.mempool.count as usize);
        out.reserve(want);
        let wanted = u32::try_from(want).unwrap_or(u32::MAX);
        // SAFETY: `reserve` made room for `want` numbers past the end; the shim writes at most
        // that many and says how many, and so many become part of the vector.
        unsafe {
            let end = out.as_mut_ptr().add(out.len());
            let got = self.mempool.api.mr_pool_take(self.mempool.raw(), end, wanted) as usize;
            out.set_len(out.len() + got);
            got
        }
    }

    fn give(&mut self, buffers: &[BufferIndex]) {
        self.mempool.give(buffers);
    }

    fn free_buffers(&self) -> usize {
        // SAFETY: `raw` is a live pool.
        unsafe { self.mempool.api.mr_pool_free_count(self.mempool.raw()) as usize }
    }
}
