//! Doorbells: one word for each NF, by which whoever pushes packets to a sleeping NF wakes it.
//!
//! ```text
//! byte 64 × n    sleeping word of NF n: 1 while it sleeps (or is about to) for want of packets, 2
//!                while it sleeps for want of room in a ring to another NF, else 0
//! byte 64 × n + 4    the core on which NF n took its last turn, plus 1; 0 before its first
//! byte 64 × n + 8    the number of that turn, of those that are taken on the core
//! byte 64 × (NFs + c)    the NF that took the last turn on core c (modulo 64), plus 1
//! byte 64 × (NFs + c) + 4    the number of that turn
//! ```
//! Who pushes to an NF wakes it from the first sleep only: one that cannot pass on what it has would
//! wake for nothing, and on a shared core take the core from the one that it waits for. Out of the
//! second wakes it the NF that takes from the full ring, when that has become half empty.
//!
//! The manager makes the file; all NFs of a trust domain map it, since each may push to each. An
//! NF outside of it gets a file of its own with one word.
//!
//! NFs that share a core take turns at it, and note here who had it when: an NF that comes long after the
//! one that feeds it has a bad place in their order, see [`resting`](crate::resting).
//!
//! A neighbour that writes here what it should not can wake an NF for nothing or make it sleep up to
//! the end of its time-out; nothing is lost by either.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::Mapping;
use super::sync::{AtomicU32, Ordering};

/// A word for each NF, and no two on one cache line.
const BELL_BYTES: usize = 64;

/// Lines for the cores. Cores that share one disturb each other's order, no more.
const CORE_LINES: usize = 64;
/// Of further words within the line of an NF, and of a core.
const CORE_OFFSET_BYTES: usize = 4;
const TURN_OFFSET_BYTES: usize = 8;
const TURNS_OFFSET_BYTES: usize = 4;

/// Values of a sleeping word.
const AWAKE: u32 = 0;
const WANTS_PACKETS: u32 = 1;
const WANTS_ROOM: u32 = 2;

/// The doorbells of a trust domain, mapped.
#[derive(Debug)]
pub struct Doorbells {
    fd: OwnedFd,
    mapping: Mapping,
}

impl Doorbells {
    /// Makes doorbells for `nfs` NFs. Only the manager does this.
    ///
    /// # Errors
    /// Those of memfd_create(2) and mmap(2).
    pub fn create(nfs: u32) -> io::Result<Self> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let fd = memfd_create(c"millrace-doorbells", flags)?;
        let lines = nfs.max(1) as usize + CORE_LINES;
        let len_bytes = (lines * BELL_BYTES).next_multiple_of(4096);
        nix::unistd::ftruncate(&fd, libc::off_t::try_from(len_bytes).unwrap_or(libc::off_t::MAX))?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals))?;
        let mapping = Mapping::new(&fd, len_bytes, false)?;
        Ok(Self { fd, mapping })
    }

    /// Maps doorbells that the manager made.
    ///
    /// # Errors
    /// Those of fstat(2) and mmap(2); InvalidData for a file of an impossible size.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let size = nix::sys::stat::fstat(&fd)?.st_size;
        let len_bytes = usize::try_from(size).unwrap_or(0);
        if len_bytes <= CORE_LINES * BELL_BYTES || !len_bytes.is_multiple_of(4096) {
            let what =
                format!("doorbells of {len_bytes} bytes; manager and NF must be of one release");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let mapping = Mapping::new(&fd, len_bytes, true)?;
        Ok(Self { fd, mapping })
    }

    /// The file, to hand to an NF.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.mapping.len_bytes() / BELL_BYTES - CORE_LINES
    }

    /// The word at `offset_bytes` of a line.
    #[inline]
    fn word(&self, line: usize, offset_bytes: usize) -> &AtomicU32 {
        debug_assert!(line < self.len() + CORE_LINES && offset_bytes + 4 <= BELL_BYTES);
        // SAFETY: every caller's line is below `len` (checked by `bell`) or is one of the CORE_LINES
        // after those, so the word lies in the mapping, at a multiple of 4; the mapping lives as long
        // as `self`; a peer's concurrent writes are what an atomic is for.
        #[allow(clippy::cast_ptr_alignment)]
        unsafe {
            self.mapping.base().add(line * BELL_BYTES + offset_bytes).cast::<AtomicU32>().as_ref()
        }
    }

    /// Never: there is at least one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The bell of one NF; `None` when there is no such number.
    #[must_use]
    pub fn bell(self: &Arc<Self>, nf: u16) -> Option<Doorbell> {
        (usize::from(nf) < self.len()).then(|| Doorbell { bells: Arc::clone(self), nf })
    }
}

/// The doorbell of one NF.
#[derive(Clone, Debug)]
pub struct Doorbell {
    bells: Arc<Doorbells>,
    nf: u16,
}

impl Doorbell {
    #[inline]
    fn word(&self) -> &AtomicU32 {
        self.bells.word(usize::from(self.nf), 0)
    }

    /// The line of a core.
    fn core_line(&self, core: u32) -> usize {
        self.bells.len() + core as usize % CORE_LINES
    }

    /// Notes that the NF, whose own bell this is, takes a turn on `core`; tells which NF took the last.
    pub fn take_turn(&self, core: u32) -> Option<u16> {
        let (bells, own, line) = (&self.bells, usize::from(self.nf), self.core_line(core));
        let turns = bells.word(line, TURNS_OFFSET_BYTES);
        let turn = turns.load(Ordering::Relaxed).wrapping_add(1);
        turns.store(turn, Ordering::Relaxed);
        bells.word(own, TURN_OFFSET_BYTES).store(turn, Ordering::Relaxed);
        bells.word(own, CORE_OFFSET_BYTES).store(core.wrapping_add(1), Ordering::Relaxed);
        let last = bells.word(line, 0);
        let before = last.load(Ordering::Relaxed);
        last.store(u32::from(self.nf) + 1, Ordering::Relaxed);
        before.checked_sub(1).and_then(|nf| u16::try_from(nf).ok())
    }

    /// How many turns were taken on `core` since the NF's last one; `None` when that was on another core.
    #[must_use]
    pub fn turns_since(&self, core: u32) -> Option<u32> {
        if self.core() != Some(core) {
            return None;
        }
        let turns = self.bells.word(self.core_line(core), TURNS_OFFSET_BYTES);
        let its = self.bells.word(usize::from(self.nf), TURN_OFFSET_BYTES);
        Some(turns.load(Ordering::Relaxed).wrapping_sub(its.load(Ordering::Relaxed)))
    }

    /// The core on which the NF took its last turn, if it has taken any.
    #[must_use]
    pub fn core(&self) -> Option<u32> {
        let word = self.bells.word(usize::from(self.nf), CORE_OFFSET_BYTES);
        word.load(Ordering::Relaxed).checked_sub(1)
    }

    /// The number of the NF.
    #[must_use]
    pub fn nf(&self) -> u16 {
        self.nf
    }

    /// Wakes the NF if it sleeps for want of packets. To be called after a push; while the NF is
    /// awake it costs one load of a line that nobody writes.
    #[inline]
    pub fn ring(&self) {
        if self.word().load(Ordering::Relaxed) == WANTS_PACKETS {
            self.wake();
        }
    }

    /// Wakes the NF if it sleeps for want of room. To be called after slots of a ring from it were
    /// released.
    #[inline]
    pub fn ring_for_room(&self) {
        if self.wants_room() {
            self.wake();
        }
    }

    /// True while the NF sleeps for want of room, or is about to.
    #[inline]
    #[must_use]
    pub fn wants_room(&self) -> bool {
        self.word().load(Ordering::Relaxed) == WANTS_ROOM
    }

    /// True while the NF sleeps for want of packets, or is about to.
    #[must_use]
    pub fn sleeps(&self) -> bool {
        self.word().load(Ordering::Relaxed) == WANTS_PACKETS
    }

    #[cold]
    fn wake(&self) {
        let word = self.word();
        word.store(AWAKE, Ordering::Relaxed);
        // SAFETY: FUTEX_WAKE only looks the address up; the word is mapped.
        unsafe {
            libc::syscall(libc::SYS_futex, std::ptr::from_ref(word), libc::FUTEX_WAKE, i32::MAX);
        }
    }

    /// Puts the calling NF to sleep until somebody rings, `timeout` passes or a signal comes.
    /// `is_idle` looks at the rings once more; when it finds work, there is no sleep.
    ///
    /// The order that makes it safe without a fence in the pusher's hot path: the sleeper sets the
    /// word, then `membarrier(2)` makes every running thread of every process that registered for it
    /// (the manager and the NFs all do) pass a full barrier, then it looks at the rings. Either the
    /// pusher's later load sees the word, or this look sees the push. Where membarrier is missing,
    /// the bound on the sleep is the bound on the delay: it is cut to 1 ms.
    pub fn sleep(&self, timeout: Duration, is_idle: impl FnOnce() -> bool) {
        self.sleep_as(WANTS_PACKETS, timeout, is_idle);
    }

    /// As [`sleep`](Self::sleep), for one that expects to be rung for by a thread on its own core, and
    /// soon: without the barrier, which interrupts every other core. A switch between threads of one
    /// core is a barrier by itself; a push from another core may be noticed 5 ms late. (No sooner, for a
    /// time-out before the next tick programs the core's timer: 0.9 µs more for each sleep in a virtual machine.)
    pub fn sleep_shortly(&self, is_idle: impl FnOnce() -> bool) {
        self.word().store(WANTS_PACKETS, Ordering::SeqCst);
        self.wait(WANTS_PACKETS, Duration::from_millis(5), is_idle);
    }

    /// Puts the calling NF to sleep until a ring it pushes to has room again, in the same order.
    /// `is_full` looks at the rings once more.
    pub fn sleep_for_room(&self, timeout: Duration, is_full: impl FnOnce() -> bool) {
        self.sleep_as(WANTS_ROOM, timeout, is_full);
    }

    fn sleep_as(&self, state: u32, timeout: Duration, is_idle: impl FnOnce() -> bool) {
        self.word().store(state, Ordering::SeqCst);
        let timeout =
            if global_barrier() { timeout } else { timeout.min(Duration::from_millis(1)) };
        self.wait(state, timeout, is_idle);
    }

    /// Waits until the word is not `state`, to which the caller has set it.
    fn wait(&self, state: u32, timeout: Duration, is_idle: impl FnOnce() -> bool) {
        let word = self.word();
        if is_idle() {
            let limit = libc::timespec {
                tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
                tv_nsec: libc::c_long::from(timeout.subsec_nanos()),
            };
            // SAFETY: the word and the timespec are valid for the call. A spurious return is fine.
            unsafe {
                libc::syscall(
                    libc::SYS_futex,
                    std::ptr::from_ref(word),
                    libc::FUTEX_WAIT,
                    state,
                    std::ptr::from_ref(&limit),
                );
            }
        }
        word.store(AWAKE, Ordering::Relaxed);
    }
}

// linux/membarrier.h
const MEMBARRIER_CMD_GLOBAL_EXPEDITED: libc::c_int = 1 << 1;
const MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED: libc::c_int = 1 << 2;

/// Lets sleepers force a barrier on this process (see [`Doorbell::sleep`]). Everyone who rings calls
/// it once at start. Returns false on a kernel that has no such command (before 4.16).
#[must_use]
pub fn register_for_global_barrier() -> bool {
    // SAFETY: membarrier takes two integers and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, 0) == 0 }
}

/// Makes every running thread of every process that registered for it pass a full barrier: what the
/// caller wrote before is seen by whatever they look at after. False where the kernel has none.
#[must_use]
pub fn global_barrier() -> bool {
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0) == 0 }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn pair() -> (Doorbell, Doorbell) {
        let ours = Arc::new(Doorbells::create(70).unwrap());
        let theirs = Doorbells::from_fd(ours.fd().try_clone_to_owned().unwrap()).unwrap();
        (ours.bell(69).unwrap(), Arc::new(theirs).bell(69).unwrap())
    }

    #[test]
    fn a_sleeper_is_woken_by_the_bell() {
        use std::sync::atomic::AtomicBool;
        assert!(register_for_global_barrier());
        let (ours, theirs) = pair();
        let work = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&work);
        let sleeper = std::thread::spawn(move || {
            while !seen.load(Ordering::SeqCst) {
                theirs.sleep(Duration::from_secs(60), || !seen.load(Ordering::SeqCst));
            }
        });
        while !ours.sleeps() {
            std::thread::yield_now();
        }
        work.store(true, Ordering::SeqCst);
        ours.ring();
        sleeper.join().unwrap();
    }

    #[test]
    fn who_has_work_does_not_fall_asleep() {
        let (ours, _) = pair();
        ours.sleep(Duration::from_secs(3600), || false);
        assert!(!ours.sleeps());
    }

    #[test]
    fn who_waits_for_room_is_woken_by_room_and_not_by_packets() {
        let (ours, theirs) = pair();
        let sleeper = std::thread::spawn(move || {
            let begun = std::time::Instant::now();
            theirs.sleep_for_room(Duration::from_secs(60), || true);
            begun.elapsed()
        });
        while !ours.wants_room() {
            std::thread::yield_now();
        }
        ours.ring();
        assert!(ours.wants_room() && !ours.sleeps(), "a push does not wake it");
        ours.ring_for_room();
        assert!(sleeper.join().unwrap() < Duration::from_secs(60));
    }

    #[test]
    fn a_number_beyond_the_file_has_no_bell() {
        let bells = Arc::new(Doorbells::create(64).unwrap());
        assert!(bells.bell(63).is_some() && bells.bell(64).is_none());
    }

    #[test]
    fn a_core_knows_who_took_the_last_turn_at_it() {
        let (ours, theirs) = pair();
        let other = theirs.bells.bell(3).unwrap();
        assert_eq!((ours.core(), ours.take_turn(1)), (None, None));
        assert_eq!(other.take_turn(1), Some(69));
        assert_eq!(other.take_turn(0), None, "another core");
        assert_eq!(ours.take_turn(1), Some(3));
        assert_eq!((other.core(), ours.core()), (Some(0), Some(1)));
        assert_eq!([0, 1].map(|core| other.turns_since(core)), [Some(0), None]);
        assert_eq!(ours.turns_since(1), Some(0));
        other.take_turn(1);
        assert_eq!((ours.turns_since(1), other.turns_since(1)), (Some(1), Some(0)));
        assert_eq!(ours.take_turn(u32::MAX), None, "no such core, and nothing breaks");
        assert!(!ours.sleeps() && !other.sleeps());
    }
}
