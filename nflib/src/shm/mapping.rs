//! A memory mapping that unmaps itself.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;

/// Which pages stand behind a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    /// Hugepages from hugetlbfs, 2 MiB each.
    Huge2M,
    /// Ordinary 4 KiB pages (the kernel may still collapse them into huge ones).
    Ordinary,
}

/// A shared mapping of a file descriptor; writable unless made by [`Mapping::read_only`].
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    len_bytes: usize,
}

// SAFETY: a Mapping owns nothing but address space; every access goes through raw pointers or
// atomics whose users state their own invariant, so the handle may move between threads.
unsafe impl Send for Mapping {}
// SAFETY: as above; `base` and `len_bytes` never change after construction.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len_bytes` of `fd` from its start, shared and writable.
    ///
    /// With `populate` every page is faulted in now, so that no later access can fail for want of
    /// memory or stall the poll loop.
    ///
    /// # Errors
    /// The error of `mmap(2)`: ENOMEM when hugepages or memory are short, EPERM for a sealed file.
    pub fn new(fd: impl AsFd, len_bytes: usize, populate: bool) -> io::Result<Self> {
        Self::with_protection(fd, len_bytes, populate, libc::PROT_READ | libc::PROT_WRITE)
    }

    /// Maps `len_bytes` of `fd` from its start, shared and for reading only: a write through it
    /// ends the process, so users offer none.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn read_only(fd: impl AsFd, len_bytes: usize) -> io::Result<Self> {
        Self::with_protection(fd, len_bytes, false, libc::PROT_READ)
    }

    fn with_protection(
        fd: impl AsFd,
        len_bytes: usize,
        populate: bool,
        protection: libc::c_int,
    ) -> io::Result<Self> {
        let populate_flag = if populate { libc::MAP_POPULATE } else { 0 };
        // SAFETY: a fresh mapping at an address of the kernel's choice; the arguments are plain
        // values and the result is checked before use.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len_bytes,
                protection,
                libc::MAP_SHARED | populate_flag,
                fd.as_fd().as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast::<u8>())
            .ok_or_else(|| io::Error::other("mmap returned the null page"))?;
        Ok(Self { base, len_bytes })
    }

    /// The first byte. Valid for [`len_bytes`](Self::len_bytes) bytes while `self` lives.
    #[must_use]
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Length in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `base` and `len_bytes` are those mmap returned, unmapped once, here. Users of
        // raw pointers into the mapping hold an Arc to its owner.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len_bytes) };
    }
}
