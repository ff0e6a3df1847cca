//! The channel between the manager and one NF: a memfd of its own, so that an NF sees no other
//! NF's rings.
//!
//! ```text
//! byte 0       header     magic, layout version, workers, ring capacity, size; the manager writes it once
//! byte 1024    workers    one word each: 1 while it sleeps until an NF wakes it; both write it
//! byte 2048    recalls    one word for each of 256 workers: how often it has recalled what it lent for the
//!                         NF's stock; the manager writes it
//! byte 4096    NF page    progress and counters; from byte 5120 on a word for each of 256 workers: how
//!                         many buffers it asked it for; the NF writes it
//! byte 8192    hold map   one bit a buffer: the NF keeps it, outside of any ring; the NF writes it
//! then         for each worker: ring worker → NF (Delivery), ring NF → worker (Returned)
//! ```
//! All integers are little endian. The manager never reads the header back: it keeps what it knows
//! in private memory.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::sync::{AtomicU64, Ordering};
use super::{BufferIndex, Consumer, Mapping, Producer, Remains, SharedRing};
use crate::descriptor::{Delivery, Returned};

/// Says that a file is a channel: "MILLRACE" in ASCII, little endian.
pub const CHANNEL_MAGIC: u64 = u64::from_le_bytes(*b"MILLRACE");
/// Version of the layout of channel, rings and descriptors. Both sides must have the same.
pub const LAYOUT_VERSION: u32 = 6;

/// Words of the workers, a cache line each, as far as they fit.
const WORKERS_OFFSET_BYTES: usize = 1024;
const WORKER_BYTES: usize = 64;
const RECALLS_OFFSET_BYTES: usize = 2048;
const NF_PAGE_OFFSET_BYTES: usize = 4096;
const ASKED_OFFSET_BYTES: usize = 5120;
const HOLD_MAP_OFFSET_BYTES: usize = 8192;
const PAGE_BYTES: usize = 4096;

/// How a channel is laid out. Sent to an NF when it attaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelGeometry {
    /// Workers of the manager; each has a pair of rings.
    pub workers: u16,
    /// Slots in each ring, a power of two.
    pub ring_capacity: u32,
    /// Buffers of the packet region: bits of the hold map.
    pub buffers: u32,
}

impl ChannelGeometry {
    /// Most slots a ring may have.
    pub const MAX_RING_CAPACITY: u32 = 1 << 20;

    fn ring_bytes(self) -> usize {
        SharedRing::size_bytes(self.ring_capacity).next_multiple_of(128)
    }

    fn hold_map_words(self) -> usize {
        (self.buffers as usize).div_ceil(64)
    }

    fn rings_offset_bytes(self) -> usize {
        HOLD_MAP_OFFSET_BYTES + (self.hold_map_words() * 8).next_multiple_of(PAGE_BYTES)
    }

    /// Where the ring of a worker begins, towards the NF or from it.
    #[must_use]
    pub fn ring_offset_bytes(self, worker: u16, towards_nf: bool) -> usize {
        let number = 2 * usize::from(worker) + usize::from(!towards_nf);
        self.rings_offset_bytes() + number * self.ring_bytes()
    }

    /// Size of the channel's file.
    #[must_use]
    pub fn len_bytes(self) -> usize {
        self.rings_offset_bytes() + 2 * usize::from(self.workers) * self.ring_bytes()
    }

    fn validate(self) -> Result<(), ChannelError> {
        let sane = self.workers > 0
            && self.ring_capacity.is_power_of_two()
            && self.ring_capacity <= Self::MAX_RING_CAPACITY;
        if sane { Ok(()) } else { Err(ChannelError::Geometry(self)) }
    }
}

/// Why a channel could not be made or mapped.
#[derive(Debug, Error)]
pub enum ChannelError {
    /// The shape is impossible.
    #[error(
        "channel: {0:?} is impossible; expected ≥ 1 worker and a power of two of at most {max} slots",
        max = ChannelGeometry::MAX_RING_CAPACITY
    )]
    Geometry(ChannelGeometry),
    /// The file is not a channel of this layout.
    #[error(
        "channel: {what} is {found:#x}, expected {expected:#x}; manager and NF must be of one release"
    )]
    Layout {
        /// Which word.
        what: &'static str,
        /// What stands there.
        found: u64,
        /// What should.
        expected: u64,
    },
    /// A system call failed.
    #[error("channel: {what}: {source}")]
    Os {
        /// The call.
        what: &'static str,
        /// Its error.
        source: io::Error,
    },
}

fn os(what: &'static str) -> impl FnOnce(nix::errno::Errno) -> ChannelError {
    move |errno| ChannelError::Os { what, source: errno.into() }
}

/// Header words, by number of 64-bit word.
#[derive(Clone, Copy)]
#[repr(usize)]
enum HeaderWord {
    Magic = 0,
    LayoutVersion = 1,
    Workers = 2,
    RingCapacity = 3,
    LenBytes = 4,
    Buffers = 5,
}

/// Counters that the NF writes on its page, by number of 64-bit word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum NfCounter {
    /// Turns of the NF's loop; an NF that hangs stops counting.
    Progress = 8,
    /// Packets taken from the rings.
    RxPkts = 9,
    /// Packets given back, with whatever action.
    TxPkts = 10,
    /// Packets given back with action Drop.
    DropPkts = 11,
    /// Packets kept now.
    HeldPkts = 12,
    /// Nanoseconds spent in the NF's code.
    BusyNs = 13,
}

/// One mapped channel, either side.
#[derive(Debug)]
pub struct Channel {
    fd: OwnedFd,
    mapping: Arc<Mapping>,
    geometry: ChannelGeometry,
}

impl Channel {
    /// Makes a channel with empty rings. Only the manager does this.
    ///
    /// # Errors
    /// See [`ChannelError`].
    pub fn create(geometry: ChannelGeometry) -> Result<Self, ChannelError> {
        geometry.validate()?;
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let fd = memfd_create(c"millrace-channel", flags).map_err(os("memfd_create"))?;
        let len = libc::off_t::try_from(geometry.len_bytes())
            .map_err(|_| ChannelError::Geometry(geometry))?;
        nix::unistd::ftruncate(&fd, len).map_err(os("ftruncate"))?;
        let channel = Self::map(fd, geometry, true)?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&channel.fd, FcntlArg::F_ADD_SEALS(seals)).map_err(os("F_ADD_SEALS"))?;
        for (word, value) in channel.expected_header() {
            channel.word(word as usize * 8).store(value, Ordering::Relaxed);
        }
        Ok(channel)
    }

    /// Maps a channel that the manager made, and checks its header.
    ///
    /// # Errors
    /// [`ChannelError::Layout`] when the two sides are of different releases.
    pub fn from_fd(fd: OwnedFd, geometry: ChannelGeometry) -> Result<Self, ChannelError> {
        geometry.validate()?;
        let stat = nix::sys::stat::fstat(&fd).map_err(os("fstat"))?;
        let (found, expected) = (stat.st_size.unsigned_abs(), geometry.len_bytes() as u64);
        if found != expected {
            return Err(ChannelError::Layout { what: "its file size", found, expected });
        }
        let channel = Self::map(fd, geometry, false)?;
        for (word, expected) in channel.expected_header() {
            let found = channel.word(word as usize * 8).load(Ordering::Relaxed);
            if found != expected {
                let what = match word {
                    HeaderWord::Magic => "the magic number",
                    HeaderWord::LayoutVersion => "the layout version",
                    HeaderWord::Workers => "the number of workers",
                    HeaderWord::RingCapacity => "the ring capacity",
                    HeaderWord::LenBytes => "the length",
                    HeaderWord::Buffers => "the number of buffers",
                };
                return Err(ChannelError::Layout { what, found, expected });
            }
        }
        Ok(channel)
    }

    fn map(fd: OwnedFd, geometry: ChannelGeometry, populate: bool) -> Result<Self, ChannelError> {
        let mapping = Mapping::new(&fd, geometry.len_bytes(), populate)
            .map_err(|source| ChannelError::Os { what: "mmap", source })?;
        Ok(Self { fd, mapping: Arc::new(mapping), geometry })
    }

    fn expected_header(&self) -> [(HeaderWord, u64); 6] {
        [
            (HeaderWord::Magic, CHANNEL_MAGIC),
            (HeaderWord::LayoutVersion, u64::from(LAYOUT_VERSION)),
            (HeaderWord::Workers, u64::from(self.geometry.workers)),
            (HeaderWord::RingCapacity, u64::from(self.geometry.ring_capacity)),
            (HeaderWord::LenBytes, self.geometry.len_bytes() as u64),
            (HeaderWord::Buffers, u64::from(self.geometry.buffers)),
        ]
    }

    /// The layout.
    #[must_use]
    pub fn geometry(&self) -> ChannelGeometry {
        self.geometry
    }

    /// The file, to hand to the NF.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn word(&self, offset_bytes: usize) -> &AtomicU64 {
        assert!(
            offset_bytes.is_multiple_of(8) && offset_bytes < self.geometry.rings_offset_bytes()
        );
        // SAFETY: header, NF page and hold map lie in every mapping (`len_bytes` is at least
        // `rings_offset_bytes`), the offset is aligned and inside them, and a peer's concurrent
        // writes are what an atomic is for.
        #[allow(clippy::cast_ptr_alignment)]
        unsafe {
            self.mapping.base().add(offset_bytes).cast::<AtomicU64>().as_ref()
        }
    }

    /// Reads a counter of the NF: a number to show, never one to act on unchecked.
    #[must_use]
    pub fn nf_counter(&self, counter: NfCounter) -> u64 {
        self.word(NF_PAGE_OFFSET_BYTES + counter as usize * 8).load(Ordering::Relaxed)
    }

    /// Sets a counter of the NF. Only the NF does this.
    #[inline]
    pub fn set_nf_counter(&self, counter: NfCounter, value: u64) {
        self.word(NF_PAGE_OFFSET_BYTES + counter as usize * 8).store(value, Ordering::Relaxed);
    }

    /// Workers that an NF can wake; those beyond take naps instead.
    pub const MAX_WAKING_WORKERS: u16 = 16;

    fn worker_word(&self, worker: u16) -> &AtomicU64 {
        let place = usize::from(worker % Self::MAX_WAKING_WORKERS);
        self.word(WORKERS_OFFSET_BYTES + place * WORKER_BYTES)
    }

    /// Whether a worker sleeps, or is about to, and wants to be woken when packets come back to it.
    #[inline]
    #[must_use]
    pub fn worker_sleeps(&self, worker: u16) -> bool {
        self.worker_word(worker).load(Ordering::Relaxed) != 0
    }

    /// Says whether a worker sleeps.
    pub fn set_worker_sleeps(&self, worker: u16, sleeps: bool) {
        // SeqCst: before the look at the rings that follows, see `Doorbell::sleep`.
        self.worker_word(worker).store(u64::from(sleeps), Ordering::SeqCst);
    }

    /// Workers that can keep an NF's stock filled.
    pub const MAX_LENDING_WORKERS: u16 = 256;

    fn lending_word(&self, offset_bytes: usize, worker: u16) -> Option<&AtomicU64> {
        let is_one = worker < self.geometry.workers.min(Self::MAX_LENDING_WORKERS);
        is_one.then(|| self.word(offset_bytes + usize::from(worker) * 8))
    }

    /// How many buffers the NF has asked this worker for, besides the first: a number to act on within
    /// bounds only.
    #[must_use]
    pub fn asked_pkts(&self, worker: u16) -> u64 {
        self.lending_word(ASKED_OFFSET_BYTES, worker).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// Asks a worker for so many buffers more. Only the NF does this.
    pub fn ask_for(&self, worker: u16, pkts: u64) {
        if let Some(word) = self.lending_word(ASKED_OFFSET_BYTES, worker) {
            // One writer: no read-modify-write.
            let asked = word.load(Ordering::Relaxed).wrapping_add(pkts);
            word.store(asked, Ordering::Relaxed);
        }
    }

    /// How often this worker has recalled what it lent.
    #[must_use]
    #[inline]
    pub fn recalls(&self, worker: u16) -> u32 {
        let word = self.lending_word(RECALLS_OFFSET_BYTES, worker);
        word.map_or(0, |word| word.load(Ordering::Acquire) as u32)
    }

    /// Says how often a worker has recalled what it lent. Only the manager does this, before it lends
    /// anything anew.
    pub fn set_recalls(&self, worker: u16, recalls: u32) {
        if let Some(word) = self.lending_word(RECALLS_OFFSET_BYTES, worker) {
            word.store(recalls.into(), Ordering::Release);
        }
    }

    fn ring(&self, worker: u16, towards_nf: bool) -> Option<SharedRing> {
        if worker >= self.geometry.workers {
            return None;
        }
        let offset = self.geometry.ring_offset_bytes(worker, towards_nf);
        SharedRing::at(&self.mapping, offset, self.geometry.ring_capacity)
    }

    /// The manager's ends of the rings of one worker. To be taken once.
    #[must_use]
    pub fn manager_ends(&self, worker: u16) -> Option<(Producer<Delivery>, Consumer<Returned>)> {
        Some((Producer::new(self.ring(worker, true)?), Consumer::new(self.ring(worker, false)?)))
    }

    /// The NF's ends of the rings of one worker. To be taken once.
    #[must_use]
    pub fn nf_ends(&self, worker: u16) -> Option<(Consumer<Delivery>, Producer<Returned>)> {
        Some((Consumer::new(self.ring(worker, true)?), Producer::new(self.ring(worker, false)?)))
    }

    /// A look at the rings of one worker (towards the NF, from the NF) after a death.
    #[must_use]
    pub fn remains(&self, worker: u16) -> Option<(Remains, Remains)> {
        Some((Remains::of(self.ring(worker, true)?), Remains::of(self.ring(worker, false)?)))
    }

    /// Writes down that the NF keeps a buffer, or keeps it no more. Only the NF does this: before it
    /// releases the ring slot the packet came by, and after it pushed the packet on.
    #[inline]
    pub fn set_held(&self, buffer: BufferIndex, held: bool) {
        if buffer >= self.geometry.buffers {
            return;
        }
        let word = self.word(HOLD_MAP_OFFSET_BYTES + buffer as usize / 64 * 8);
        let bit = 1u64 << (buffer % 64);
        let old = word.load(Ordering::Relaxed);
        let new = if held { old | bit } else { old & !bit };
        // Release: in the order of the pushes and releases around it.
        word.store(new, Ordering::Release);
    }

    /// True when the NF says that it keeps this buffer.
    #[must_use]
    #[inline]
    pub fn is_held(&self, buffer: BufferIndex) -> bool {
        buffer < self.geometry.buffers
            && self.word(HOLD_MAP_OFFSET_BYTES + buffer as usize / 64 * 8).load(Ordering::Acquire)
                & (1 << (buffer % 64))
                != 0
    }

    /// The buffers that the NF says it keeps.
    #[must_use]
    pub fn held_buffers(&self) -> Vec<BufferIndex> {
        let mut held = Vec::new();
        for number in 0..self.geometry.hold_map_words() {
            let mut word = self.word(HOLD_MAP_OFFSET_BYTES + number * 8).load(Ordering::Acquire);
            while word != 0 {
                let buffer = number as u32 * 64 + word.trailing_zeros();
                if buffer < self.geometry.buffers {
                    held.push(buffer);
                }
                word &= word - 1;
            }
        }
        held
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const GEOMETRY: ChannelGeometry =
        ChannelGeometry { workers: 2, ring_capacity: 64, buffers: 100 };

    fn pair() -> (Channel, Channel) {
        let ours = Channel::create(GEOMETRY).unwrap();
        let theirs = Channel::from_fd(ours.fd().try_clone_to_owned().unwrap(), GEOMETRY).unwrap();
        (ours, theirs)
    }

    #[test]
    fn what_each_worker_pushes_arrives_on_its_own_ring() {
        let (ours, theirs) = pair();
        for worker in 0..2 {
            let (mut push, mut pop) = ours.manager_ends(worker).unwrap();
            let (mut nf_pop, mut nf_push) = theirs.nf_ends(worker).unwrap();
            let sent =
                Delivery { buffer: 40 + u32::from(worker), len_bytes: 60, ..Delivery::default() };
            assert_eq!(push.push_burst(&[sent]), Ok(1));
            let mut got = [Delivery::default(); 4];
            assert_eq!(nf_pop.pop_burst(&mut got), Ok(1));
            assert_eq!(got[0], sent);
            let back = Returned { buffer: got[0].buffer, action: 1, ..Returned::default() };
            assert_eq!(nf_push.push_burst(&[back]), Ok(1));
            let mut returned = [Returned::default(); 4];
            assert_eq!(pop.pop_burst(&mut returned), Ok(1));
            assert_eq!(returned[0], back);
        }
        assert!(ours.manager_ends(2).is_none());
    }

    #[test]
    fn another_layout_is_refused_by_name() {
        let ours = Channel::create(GEOMETRY).unwrap();
        ours.word(8).store(99, Ordering::Relaxed);
        let error =
            Channel::from_fd(ours.fd().try_clone_to_owned().unwrap(), GEOMETRY).unwrap_err();
        assert!(error.to_string().contains("layout version"), "{error}");
        let other = ChannelGeometry { ring_capacity: 128, ..GEOMETRY };
        let error = Channel::from_fd(ours.fd().try_clone_to_owned().unwrap(), other).unwrap_err();
        assert!(error.to_string().contains("file size"), "{error}");
    }

    #[test]
    fn the_hold_map_says_what_was_written_and_no_buffer_outside() {
        let (ours, theirs) = pair();
        for buffer in [0, 63, 64, 99, 100, u32::MAX] {
            theirs.set_held(buffer, true);
        }
        assert_eq!(ours.held_buffers(), [0, 63, 64, 99]);
        theirs.set_held(63, false);
        assert_eq!(ours.held_buffers(), [0, 64, 99]);
        assert!(ours.is_held(64) && !ours.is_held(63) && !ours.is_held(100));
    }
}
