//! The black box of an NF: what is found of it when it has crashed.
//!
//! A memfd of the manager's, which the NF writes and both map, so that what is in it outlives the NF:
//!
//! ```text
//! byte 0       last words   what a panic or a signal said (see `last_words`)
//! byte 20480   slots        the last packets that the NF took, in a circle
//! ```
//! A slot, whose length is a multiple of 64 bytes:
//!
//! ```text
//! w0  mark       2·n + 1 while packet n of those recorded is being written, 2·n + 2 once it is whole
//! w1  number     of the packet among all that the NF took, from 1 on: gaps are packets not recorded
//! w2  time_ns    CLOCK_MONOTONIC
//! w3  flow_hash (high) │ buffer
//! w4  peer, kept_bytes, len_bytes, offset_bytes (high to low, 16 bits each)
//! w5  ingress (bits 24 to 31), hop (16 to 23), route
//! w8… the packet's first bytes
//! ```
//! Little endian. The writer may die between any two writes, or live on and write while the slot is read:
//! a slot whose mark is odd, is not one that its place can have, or has changed since, is left out.
//!
//! Recording has a budget, so that it costs nobody anything who is busy: see [`Recorder`].

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use super::last_words::{self, LastWords};
use super::{BufferIndex, Mapping, Region};
use crate::descriptor::{Delivery, PortId, RouteId};

/// Where the slots begin, bytes.
const SLOTS_AT_BYTES: usize = 20_480;
const SLOT_HEAD_WORDS: usize = 8;
const WORD_BYTES: usize = 8;
/// Most slots there can be.
pub const MAX_RECORDED_PKTS: u32 = 1 << 16;
/// Packets recorded in a window of time unless all are to be.
const BUDGET_PKTS: usize = 32;
/// The length of that window.
const WINDOW_NS: u64 = 1_000_000;

/// How a black box is laid out, and what goes into it. Sent to an NF when it attaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecorderTerms {
    /// Packets that are kept; 0: none.
    pub slots: u32,
    /// First bytes of each, a multiple of 8.
    pub kept_bytes: u16,
    /// All packets are recorded, whatever it costs.
    pub all: bool,
}

impl RecorderTerms {
    /// Most first bytes that can be kept of each packet.
    pub const MAX_KEPT_BYTES: u16 = 2048;

    fn slot_words(self) -> usize {
        (SLOT_HEAD_WORDS + usize::from(self.kept_bytes) / WORD_BYTES).next_multiple_of(8)
    }

    fn len_bytes(self) -> usize {
        SLOTS_AT_BYTES + self.slots as usize * self.slot_words() * WORD_BYTES
    }

    fn check(self) -> io::Result<()> {
        let kept = self.kept_bytes;
        if self.slots > MAX_RECORDED_PKTS || kept > Self::MAX_KEPT_BYTES || !kept.is_multiple_of(8)
        {
            let what = format!("a black box for {} packets of {kept} bytes", self.slots);
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok(())
    }
}

/// A packet as it was when the NF took it. Everything in it is the NF's word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordedPacket {
    /// Its number among all that the NF took, from 1 on.
    pub number: u64,
    /// When, nanoseconds of CLOCK_MONOTONIC.
    pub time_ns: u64,
    /// Its buffer.
    pub buffer: BufferIndex,
    /// Its flow hash.
    pub flow_hash: u32,
    /// Where it started in the buffer, bytes.
    pub offset_bytes: u16,
    /// Its length, bytes.
    pub len_bytes: u16,
    /// The route it travelled.
    pub route: RouteId,
    /// The NF's position in the route.
    pub hop: u8,
    /// The port it came in by.
    pub ingress: PortId,
    /// The NF it came from, or [`NOBODY`](crate::observe::NOBODY): a worker.
    pub peer: u16,
    /// Its first bytes.
    pub bytes: Vec<u8>,
}

/// The words of a black box's slots, as the writer and the reader of slots see them.
trait Words {
    fn set(&self, word: usize, value: u64, order: Ordering);
    fn get(&self, word: usize, order: Ordering) -> u64;
}

/// A black box, mapped.
#[derive(Debug)]
pub struct BlackBox {
    fd: OwnedFd,
    mapping: Mapping,
    terms: RecorderTerms,
}

impl BlackBox {
    /// An empty one. Only the manager does this.
    ///
    /// # Errors
    /// Those of memfd_create(2), ftruncate(2), fcntl(2) and mmap(2); InvalidData for impossible terms.
    pub fn create(terms: RecorderTerms) -> io::Result<Self> {
        terms.check()?;
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let fd = memfd_create(c"millrace-black-box", flags)?;
        let len = libc::off_t::try_from(terms.len_bytes()).map_err(io::Error::other)?;
        nix::unistd::ftruncate(&fd, len)?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals))?;
        let mapping = Mapping::new(&fd, terms.len_bytes(), false)?;
        Ok(Self { fd, mapping, terms })
    }

    /// Maps one that the manager made.
    ///
    /// # Errors
    /// InvalidData for a file of another size, and those of fstat(2) and mmap(2).
    pub fn from_fd(fd: OwnedFd, terms: RecorderTerms) -> io::Result<Self> {
        terms.check()?;
        let size = nix::sys::stat::fstat(&fd)?.st_size;
        if usize::try_from(size) != Ok(terms.len_bytes()) {
            let what = format!("a black box for {} packets in {size} bytes", terms.slots);
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        // Every page is entered now: neither a packet nor a dying process shall wait for one.
        let mapping = Mapping::new(&fd, terms.len_bytes(), true)?;
        Ok(Self { fd, mapping, terms })
    }

    /// The file, to hand to an NF.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// What it is made for.
    #[must_use]
    pub fn terms(&self) -> RecorderTerms {
        self.terms
    }

    /// The packets that are in it, oldest first; those that are not whole are left out.
    #[must_use]
    pub fn packets(&self) -> Vec<RecordedPacket> {
        read_slots(self, self.terms)
    }

    #[cfg(test)]
    pub(super) fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// What the NF said last.
    #[must_use]
    pub fn last_words(&self) -> LastWords {
        last_words::read(&self.mapping)
    }

    /// From now on, last words of this process go here, until this is dropped or another one is named.
    /// Writes down what is mapped where, so that addresses can be understood.
    pub fn take_last_words(&self) {
        last_words::go_to(&self.mapping);
    }
}

impl Drop for BlackBox {
    fn drop(&mut self) {
        last_words::go_no_more_to(&self.mapping);
    }
}

impl Words for BlackBox {
    #[inline]
    fn set(&self, word: usize, value: u64, order: Ordering) {
        self.word(word).store(value, order);
    }

    #[inline]
    fn get(&self, word: usize, order: Ordering) -> u64 {
        self.word(word).load(order)
    }
}

impl BlackBox {
    /// A word of the slots. Only for words below the slots' number times their words.
    #[inline]
    fn word(&self, word: usize) -> &AtomicU64 {
        let at = SLOTS_AT_BYTES + word * WORD_BYTES;
        assert!(at + WORD_BYTES <= self.mapping.len_bytes());
        // SAFETY: aligned and, as just checked, inside the mapping, which lives as long as `self`; the
        // other side's concurrent accesses are what an atomic is for.
        #[allow(clippy::cast_ptr_alignment)]
        unsafe {
            self.mapping.base().add(at).cast::<AtomicU64>().as_ref()
        }
    }
}

/// Where a packet's bytes are, and who else may write them meanwhile is somebody's own fault.
#[derive(Clone, Copy)]
struct Bytes {
    from: NonNull<u8>,
    len: usize,
}

impl Bytes {
    /// The bytes from `at` on as a word, filled up with zeros.
    ///
    /// # Safety
    /// All `len` bytes from `from` on are readable, and `at` is below `len`.
    #[inline]
    unsafe fn word(self, at: usize) -> u64 {
        let count = self.len - at;
        // SAFETY: what is read is at most `len` bytes, for which the caller vouches; `word` is private, so
        // that it does not overlap. Whoever writes there meanwhile changes what is copied.
        unsafe {
            let from = self.from.as_ptr().add(at);
            if count >= WORD_BYTES {
                return u64::from_le_bytes(from.cast::<[u8; WORD_BYTES]>().read());
            }
            let mut word = [0; WORD_BYTES];
            std::ptr::copy_nonoverlapping(from, word.as_mut_ptr(), count);
            u64::from_le_bytes(word)
        }
    }
}

/// Writes packet `n` of those recorded into its slot.
///
/// # Safety
/// All of `bytes` are readable.
#[inline]
unsafe fn write_slot(
    words: &impl Words,
    terms: RecorderTerms,
    n: u64,
    head: [u64; 5],
    bytes: Bytes,
) {
    let base = (n % u64::from(terms.slots)) as usize * terms.slot_words();
    words.set(base, 2 * n + 1, Ordering::Relaxed);
    // Whoever sees a word of this packet sees that it is being written.
    fence(Ordering::Release);
    for (at, value) in (1..).zip(head) {
        words.set(base + at, value, Ordering::Relaxed);
    }
    let mut at = 0;
    while at < bytes.len {
        // SAFETY: `at` is below the length of what the caller vouches for.
        let word = unsafe { bytes.word(at) };
        words.set(base + SLOT_HEAD_WORDS + at / WORD_BYTES, word, Ordering::Relaxed);
        at += WORD_BYTES;
    }
    // And whoever sees that it is whole sees all of it.
    words.set(base, 2 * n + 2, Ordering::Release);
}

fn read_slots(words: &impl Words, terms: RecorderTerms) -> Vec<RecordedPacket> {
    let found = (0..u64::from(terms.slots)).filter_map(|place| read_slot(words, terms, place));
    let mut found: Vec<_> = found.collect();
    found.sort_by_key(|(n, _)| *n);
    // A writer that keeps the rules leaves no older packet beside newer ones of a full circle.
    let newest = found.last().map_or(0, |(n, _)| *n);
    let is_of_the_circle = |n: u64| newest - n < u64::from(terms.slots);
    found.into_iter().filter(|(n, _)| is_of_the_circle(*n)).map(|(_, packet)| packet).collect()
}

fn read_slot(
    words: &impl Words,
    terms: RecorderTerms,
    place: u64,
) -> Option<(u64, RecordedPacket)> {
    let base = place as usize * terms.slot_words();
    let mark = words.get(base, Ordering::Acquire);
    let n = mark.checked_sub(2).filter(|twice| twice % 2 == 0)? / 2;
    if n % u64::from(terms.slots) != place {
        return None;
    }
    let get = |word| words.get(base + word, Ordering::Relaxed);
    let [number, time_ns, buffer, range, way] = [1, 2, 3, 4, 5].map(get);
    let quarter = |word: u64, at: u32| (word >> (16 * at)) as u16;
    let (len_bytes, kept_bytes) = (quarter(range, 1), quarter(range, 2));
    if kept_bytes > terms.kept_bytes || kept_bytes > len_bytes {
        return None;
    }
    let kept = usize::from(kept_bytes);
    let mut bytes = Vec::with_capacity(kept.next_multiple_of(WORD_BYTES));
    for word in 0..kept.div_ceil(WORD_BYTES) {
        bytes.extend(get(SLOT_HEAD_WORDS + word).to_le_bytes());
    }
    bytes.truncate(kept);
    // One that lives may have begun with another packet meanwhile.
    fence(Ordering::Acquire);
    if words.get(base, Ordering::Relaxed) != mark {
        return None;
    }
    let [_, hop_and_ingress, ..] = [quarter(way, 0), quarter(way, 1)];
    let [hop, ingress] = hop_and_ingress.to_le_bytes();
    let packet = RecordedPacket {
        number,
        time_ns,
        buffer: buffer as u32,
        flow_hash: (buffer >> 32) as u32,
        offset_bytes: quarter(range, 0),
        len_bytes,
        route: quarter(way, 0),
        hop,
        ingress,
        peer: quarter(range, 3),
        bytes,
    };
    Some((n, packet))
}

/// The NF's side: records the packets that the NF takes, as long as they are few enough.
///
/// Of each millisecond the first 32 packets are recorded, and of the others nobody knows but that they
/// were there. So an NF that takes at most that many loses none, and one that takes millions pays for
/// 32,000 a second; [`is_due`](Self::is_due) is all that the rest costs.
#[derive(Debug)]
pub struct Recorder {
    /// Where to, and where packets are; `None`: nothing is recorded.
    to: Option<(Arc<BlackBox>, Arc<Region>)>,
    /// Packets recorded so far.
    recorded: u64,
    /// From when on packets are recorded, on the NF's clock.
    due_ns: u64,
    window_ends_ns: u64,
    left_pkts: usize,
    /// What the NF's clock was at CLOCK_MONOTONIC's 0, as what is to be added to it.
    clock_offset_ns: u64,
}

impl Recorder {
    /// One that records nothing.
    #[must_use]
    pub fn off() -> Self {
        Self {
            to: None,
            recorded: 0,
            due_ns: u64::MAX,
            window_ends_ns: 0,
            left_pkts: 0,
            clock_offset_ns: 0,
        }
    }

    /// One that records packets of this region. CLOCK_MONOTONIC is the NF's clock and
    /// `clock_offset_ns`.
    #[must_use]
    pub fn new(to: Arc<BlackBox>, region: Arc<Region>, clock_offset_ns: u64) -> Self {
        if to.terms.slots == 0 {
            return Self::off();
        }
        Self { to: Some((to, region)), due_ns: 0, clock_offset_ns, ..Self::off() }
    }

    /// Whether a burst taken now is to be [recorded](Self::record).
    #[must_use]
    #[inline]
    pub fn is_due(&self, now_ns: u64) -> bool {
        now_ns >= self.due_ns
    }

    /// Records the packets of a burst, as many as the budget allows. `first_number` is the number of the
    /// first among all that the NF took, from 1 on.
    #[inline(never)]
    pub fn record(&mut self, burst: &[Delivery], peer: u16, first_number: u64, now_ns: u64) {
        let Some((to, region)) = &self.to else { return };
        let mut count = burst.len();
        if !to.terms.all {
            if now_ns >= self.window_ends_ns {
                self.window_ends_ns = now_ns.saturating_add(WINDOW_NS);
                self.left_pkts = BUDGET_PKTS;
            }
            count = count.min(self.left_pkts);
            self.left_pkts -= count;
            self.due_ns = if self.left_pkts == 0 { self.window_ends_ns } else { 0 };
        }
        let time_ns = now_ns.wrapping_add(self.clock_offset_ns);
        for (number, packet) in (first_number..).zip(&burst[..count]) {
            let &Delivery { buffer, offset_bytes, len_bytes, flow_hash, route, port, hop } = packet;
            if packet.is_loan() || !region.geometry().contains(buffer, offset_bytes, len_bytes) {
                continue;
            }
            let Some(from) = region.ptr(buffer, offset_bytes) else { continue };
            let kept_bytes = len_bytes.min(to.terms.kept_bytes);
            let range = u64::from(offset_bytes)
                | u64::from(len_bytes) << 16
                | u64::from(kept_bytes) << 32
                | u64::from(peer) << 48;
            let way = u64::from(route) | u64::from(hop) << 16 | u64::from(port) << 24;
            let place = u64::from(buffer) | u64::from(flow_hash) << 32;
            let head = [number, time_ns, place, range, way];
            let bytes = Bytes { from, len: usize::from(kept_bytes) };
            // SAFETY: the range lies inside the buffer, as just checked, and the kept bytes inside the
            // range; the region is mapped as long as it is held here.
            unsafe { write_slot(&**to, to.terms, self.recorded, head, bytes) };
            self.recorded += 1;
        }
    }
}

#[cfg(all(test, not(loom)))]
#[path = "black_box_tests.rs"]
mod tests;
