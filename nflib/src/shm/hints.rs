//! Hints to the processor and the kernel about ordinary private memory. They change how fast
//! something is, and nothing else, so they are safe to call with anything.

/// Asks the processor to fetch the cache line in which `at` begins, to be read or written soon.
#[inline(always)]
pub fn prefetch<T>(at: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        // SAFETY: a prefetch changes nothing and cannot fault.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(std::ptr::from_ref(at).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Asks the kernel for huge pages behind the memory of `slice`, as far as it spans whole ones and
/// was not touched yet. A kernel that has none gives ordinary pages.
pub fn advise_huge_pages<T>(slice: &[T]) {
    const HUGE_BYTES: usize = 2 << 20;
    let start = slice.as_ptr() as usize;
    let end = start + size_of_val(slice);
    let (start, end) = (start.next_multiple_of(HUGE_BYTES), end / HUGE_BYTES * HUGE_BYTES);
    if start < end {
        // SAFETY: the range is inside memory that `slice` borrows. MADV_HUGEPAGE keeps its content
        // and its protection; a refusal changes nothing.
        unsafe { libc::madvise(start as *mut _, end - start, libc::MADV_HUGEPAGE) };
    }
}
