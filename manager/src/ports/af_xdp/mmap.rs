//! A mapping of one of a socket's rings, unmapped when dropped.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

/// Memory that the kernel and this process share.
#[derive(Debug)]
pub struct RingMap {
    base: NonNull<u8>,
    len_bytes: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread; the one ring half built on it decides
// who touches it.
unsafe impl Send for RingMap {}

impl RingMap {
    /// Maps `len_bytes` of the ring that `page_offset` selects.
    pub fn new(fd: BorrowedFd<'_>, page_offset: i64, len_bytes: usize) -> io::Result<Self> {
        // SAFETY: a fresh shared mapping at an address the kernel picks.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                fd.as_raw_fd(),
                page_offset,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { base, len_bytes })
    }

    /// The address `offset_bytes` in, for a `T` and `count` more like it, or `None` when that
    /// leaves the mapping or is not aligned.
    pub fn at<T>(&self, offset_bytes: u64, count: usize) -> Option<NonNull<T>> {
        let offset = usize::try_from(offset_bytes).ok()?;
        let end = size_of::<T>().checked_mul(count)?.checked_add(offset)?;
        if end > self.len_bytes || !offset.is_multiple_of(align_of::<T>()) {
            return None;
        }
        // SAFETY: `end`, and so `offset`, lies within the mapping.
        Some(unsafe { self.base.add(offset) }.cast())
    }
}

impl Drop for RingMap {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `mmap` with this length, and whoever holds pointers into
        // it (a ring half) owns this value and is being dropped with it.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len_bytes) };
    }
}
