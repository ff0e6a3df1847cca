//! Pages that were taken out from under the packet region.
//!
//! The region's file is sealed against shrinking, but who may write it can punch holes into it. On
//! ordinary pages the next access finds zeros. On hugepages it finds zeros, too, as long as one is free,
//! and ends the process by SIGBUS when none is: a hole gives back what was reserved. A manager must not
//! die of that, so it puts a page of its own in the place. What was in it is lost, and NFs that share the
//! region do not see what the manager writes there from now on; all else goes on.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::{PageKind, Region};

static BASE: AtomicUsize = AtomicUsize::new(0);
static LEN_BYTES: AtomicUsize = AtomicUsize::new(0);
static PAGE_BYTES: AtomicUsize = AtomicUsize::new(4096);
static LOST: AtomicU64 = AtomicU64::new(0);

/// From now on, an access to a page of this region that is gone puts another page there, in this
/// process. For one region; it stays mapped until the process ends.
///
/// # Errors
/// As sigaction(2).
pub fn replace_lost_pages(region: &Arc<Region>) -> io::Result<()> {
    let page_bytes = match region.pages() {
        PageKind::Huge2M => 2 << 20,
        PageKind::Ordinary => 4096,
    };
    // Never unmapped, so that no other mapping can come to lie where the handler believes this one.
    let region = Box::leak(Box::new(Arc::clone(region)));
    watch(region.base().as_ptr() as usize, region.mapped_bytes(), page_bytes)
}

/// Pages replaced so far.
#[must_use]
pub fn lost_pages() -> u64 {
    LOST.load(Ordering::Relaxed)
}

fn watch(base: usize, len_bytes: usize, page_bytes: usize) -> io::Result<()> {
    PAGE_BYTES.store(page_bytes, Ordering::Relaxed);
    LEN_BYTES.store(len_bytes, Ordering::Relaxed);
    BASE.store(base, Ordering::Release);
    let flags = SaFlags::SA_SIGINFO | SaFlags::SA_ONSTACK;
    let action = SigAction::new(SigHandler::SigAction(on_bus_error), flags, SigSet::empty());
    // SAFETY: the handler reads and writes atomics and makes system calls that are async-signal-safe.
    unsafe { sigaction(Signal::SIGBUS, &action) }?;
    Ok(())
}

extern "C" fn on_bus_error(
    _: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a siginfo_t to a handler with SA_SIGINFO, and for SIGBUS with an
    // address in it.
    let at = unsafe { (*info).si_addr() } as usize;
    let base = BASE.load(Ordering::Acquire);
    let offset = at.wrapping_sub(base);
    if offset < LEN_BYTES.load(Ordering::Relaxed) && replace_page(base, offset) {
        LOST.fetch_add(1, Ordering::Relaxed);
        return;
    }
    // Not ours: the access is made again, and ends the process as it would have without us.
    // SAFETY: takes plain values; async-signal-safe.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
}

fn replace_page(base: usize, offset_bytes: usize) -> bool {
    let page_bytes = PAGE_BYTES.load(Ordering::Relaxed);
    let page = base + offset_bytes / page_bytes * page_bytes;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // SAFETY: the page is a whole one of the watched mapping, which is never unmapped (`watch`), so
    // nothing else is replaced; users of the mapping reach it by raw pointers and expect its bytes to
    // change at any time. mmap is a plain system call, fit for a signal handler.
    let replaced =
        unsafe { libc::mmap(page as *mut libc::c_void, page_bytes, protection, flags, -1, 0) };
    replaced != libc::MAP_FAILED
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::os::fd::AsFd as _;

    use nix::fcntl::{FallocateFlags, fallocate};
    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;
    use crate::shm::{HugePages, Mapping, RegionGeometry};

    #[test]
    fn a_page_that_is_gone_is_replaced_and_the_others_keep_what_was_in_them() {
        let fd = memfd_create(c"lost", MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&fd, 3 * 4096).unwrap();
        let mapping = Box::leak(Box::new(Mapping::new(&fd, 3 * 4096, true).unwrap()));
        let base = mapping.base();
        // SAFETY: inside the mapping, which nobody else knows; so below.
        unsafe { base.write(7) };
        let before = lost_pages();
        watch(base.as_ptr() as usize, 3 * 4096, 4096).unwrap();
        nix::unistd::ftruncate(&fd, 4096).unwrap();
        // SAFETY: as above.
        unsafe {
            let (second, third) = (base.add(4096 + 17), base.add(2 * 4096 + 4095));
            assert_eq!((second.read_volatile(), third.read_volatile()), (0, 0));
            second.write_volatile(3);
            assert_eq!((base.read_volatile(), second.read_volatile()), (7, 3));
        }
        assert_eq!(lost_pages() - before, 2);
    }

    #[test]
    fn a_hole_in_a_hugepage_for_which_none_is_free_does_not_end_the_process() {
        let geometry = RegionGeometry { buffers: 1024, stride_bytes: 2048, headroom_bytes: 256 };
        let Ok(region) = Region::create(geometry, HugePages::Require) else {
            eprintln!("skipped: no hugepage is free: sysctl vm.nr_hugepages=2");
            return;
        };
        let region = Arc::new(region);
        assert!(region.write(3, 256, b"millrace"));
        replace_lost_pages(&region).unwrap();
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(region.fd().as_fd(), punch, 0, 2 << 20).unwrap();
        // Whoever is quicker has the page that was given back.
        let mut others = Vec::new();
        while let Ok(other) = Region::create(geometry, HugePages::Require) {
            others.push(other);
        }
        let before = lost_pages();
        let mut seen = [9; 8];
        assert!(region.read(3, 256, &mut seen));
        assert_eq!((seen, lost_pages() - before), ([0; 8], 1));
        assert!(region.write(1023, 2040, b"goes on!"));
    }
}
