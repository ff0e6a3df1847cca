//! The event ring: what a worker or an NF sees of packets, on its way to the manager's observer.
//!
//! ```text
//! byte 0       header     magic, layout version, words of the ring; the manager writes it once
//! byte 1024    producer   words written since the start · packets that taps lost, or did not look at · events
//!                         of marked packets that were lost
//! byte 2048    consumer   words read since the start
//! byte 4096    ring       a power of two of words: events (five words each, see `Event`), each followed by
//!                         the packet's first bytes, padded to whole words
//! ```
//! One writes, one reads. The writer never waits: an event that does not fit is lost and counted. An eighth of
//! the ring is for marked packets alone: captures that nobody can follow do not tear traces and latencies. The
//! reader trusts nothing: an index or an event that cannot be ends the ring, and harms nobody else.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use thiserror::Error;

use super::channel::LAYOUT_VERSION;
use super::mapping::Mapping;
use super::sync::{AtomicU64, Ordering};
use crate::observe::Event;

/// Says that a file is an event ring: "MILLTAPS" in ASCII, little endian.
const MAGIC: u64 = u64::from_le_bytes(*b"MILLTAPS");
const WORD_BYTES: usize = 8;
const PRODUCER_WORD: usize = 1024 / WORD_BYTES;
const LOST_WORD: usize = PRODUCER_WORD + 1;
const LOST_MARKED_WORD: usize = PRODUCER_WORD + 2;
const CONSUMER_WORD: usize = 2048 / WORD_BYTES;
const RING_WORD: usize = 4096 / WORD_BYTES;
/// Words of the ring of every tap file: 1 MiB, whose pages come when they are first written.
pub const TAP_WORDS: usize = 1 << 17;

/// Where an event ring lies.
pub trait TapMemory {
    /// Words of the ring, a power of two.
    fn ring_words(&self) -> usize;
    /// A word of the file; `at` is below the ring's begin plus its length.
    fn word(&self, at: usize) -> &AtomicU64;
}

/// Why a ring is read no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TapBroken {
    /// The writer cannot have written as much as it says.
    #[error("its index is {written}, with {read} words read and room for {room}")]
    Index {
        /// As it says.
        written: u64,
        /// As we know.
        read: u64,
        /// Words of the ring.
        room: usize,
    },
    /// What stands there is no event, or longer than what was written.
    #[error("it holds what is no event")]
    Event,
}

/// The writing end.
#[derive(Debug)]
pub struct TapWriter<M> {
    memory: M,
    /// Words written, and read as far as is known.
    written: u64,
    read: u64,
    lost: u64,
    lost_marked: u64,
}

impl<M: TapMemory> TapWriter<M> {
    /// The one writer of a ring; it goes on where an earlier one of this process ended.
    pub fn new(memory: M) -> Self {
        let [written, lost, lost_marked, read] =
            [PRODUCER_WORD, LOST_WORD, LOST_MARKED_WORD, CONSUMER_WORD]
                .map(|at| memory.word(at).load(Ordering::Relaxed));
        Self { memory, written, read, lost, lost_marked }
    }

    /// Writes an event and the bytes that are kept of its packet; false when there was no room, and it is
    /// lost.
    pub fn write(&mut self, mut event: Event, bytes: &[u8]) -> bool {
        let bytes = &bytes[..bytes.len().min(usize::from(u16::MAX))];
        event.kept_bytes = bytes.len() as u16;
        let words = Event::WORDS + bytes.len().div_ceil(WORD_BYTES);
        let reserve = if event.marked { 0 } else { self.memory.ring_words() / 8 };
        if !self.has_room(words + reserve) {
            self.note_lost(&event);
            return false;
        }
        let chunks = bytes.chunks(WORD_BYTES).map(|chunk| {
            let mut word = [0; WORD_BYTES];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_le_bytes(word)
        });
        let mask = self.memory.ring_words() - 1;
        for (at, word) in (self.written as usize..).zip(event.to_words().into_iter().chain(chunks))
        {
            self.memory.word(RING_WORD + (at & mask)).store(word, Ordering::Relaxed);
        }
        self.written += words as u64;
        // Release: who sees the index sees the words.
        self.memory.word(PRODUCER_WORD).store(self.written, Ordering::Release);
        true
    }

    fn note_lost(&mut self, event: &Event) {
        if event.marked {
            self.lost_marked += 1;
            self.memory.word(LOST_MARKED_WORD).store(self.lost_marked, Ordering::Relaxed);
        }
        if event.taps != 0 {
            self.skip(1);
        }
    }

    /// Taps have not looked at so many packets.
    pub fn skip(&mut self, pkts: u64) {
        self.lost += pkts;
        self.memory.word(LOST_WORD).store(self.lost, Ordering::Relaxed);
    }

    fn has_room(&mut self, words: usize) -> bool {
        let room = self.memory.ring_words() as u64;
        let fits = |read: u64| self.written.wrapping_sub(read) + words as u64 <= room;
        if !fits(self.read) {
            // Acquire: the reader has read the words before it said so.
            let read = self.memory.word(CONSUMER_WORD).load(Ordering::Acquire);
            // Written by the manager; a writer in the manager itself trusts no file either.
            if self.written.wrapping_sub(read) <= room {
                self.read = read;
            }
        }
        self.written.wrapping_sub(self.read) + words as u64 <= room
    }
}

/// The reading end.
#[derive(Debug)]
pub struct TapReader<M> {
    memory: M,
    read: u64,
    bytes: Vec<u8>,
    broken: Option<TapBroken>,
}

impl<M: TapMemory> TapReader<M> {
    /// The one reader of a ring, from its start.
    pub fn new(memory: M) -> Self {
        Self { memory, read: 0, bytes: Vec::new(), broken: None }
    }

    /// Packets that taps have lost or not looked at since the start: the writer's word, and no more than that.
    #[must_use]
    pub fn lost_pkts(&self) -> u64 {
        self.memory.word(LOST_WORD).load(Ordering::Relaxed)
    }

    /// Events of marked packets that were lost since the start: the writer's word.
    #[must_use]
    pub fn lost_marked(&self) -> u64 {
        self.memory.word(LOST_MARKED_WORD).load(Ordering::Relaxed)
    }

    /// Gives `each` the events that are there, with the bytes kept, until about `limit_bytes` of the ring
    /// are read. Returns how many there were.
    ///
    /// # Errors
    /// [`TapBroken`], now and from then on; what was read before it was given to `each`.
    pub fn drain(
        &mut self,
        limit_bytes: usize,
        each: &mut dyn FnMut(Event, &[u8]),
    ) -> Result<usize, TapBroken> {
        if let Some(broken) = self.broken {
            return Err(broken);
        }
        let result = self.drain_until(limit_bytes / WORD_BYTES, each);
        // Release: the words are read before the writer may use them again.
        self.memory.word(CONSUMER_WORD).store(self.read, Ordering::Release);
        self.broken = result.err();
        result
    }

    fn drain_until(
        &mut self,
        limit_words: usize,
        each: &mut dyn FnMut(Event, &[u8]),
    ) -> Result<usize, TapBroken> {
        let room = self.memory.ring_words();
        let written = self.memory.word(PRODUCER_WORD).load(Ordering::Acquire);
        let there = written.wrapping_sub(self.read);
        if there > room as u64 {
            return Err(TapBroken::Index { written, read: self.read, room });
        }
        let (mut left, mut taken, mut count) = (there as usize, 0, 0);
        while left > 0 && taken < limit_words {
            if left < Event::WORDS {
                return Err(TapBroken::Event);
            }
            let words = std::array::from_fn(|at| self.ring_word(at));
            let event = Event::from_words(words).ok_or(TapBroken::Event)?;
            let kept_bytes = usize::from(event.kept_bytes);
            let words = Event::WORDS + kept_bytes.div_ceil(WORD_BYTES);
            if words > left {
                return Err(TapBroken::Event);
            }
            self.bytes.clear();
            for at in Event::WORDS..words {
                let word = self.ring_word(at).to_le_bytes();
                self.bytes.extend_from_slice(&word);
            }
            each(event, &self.bytes[..kept_bytes]);
            self.read = self.read.wrapping_add(words as u64);
            left -= words;
            taken += words;
            count += 1;
        }
        Ok(count)
    }

    /// A word of the ring, counted from what was read.
    fn ring_word(&self, ahead: usize) -> u64 {
        let at = (self.read as usize).wrapping_add(ahead) & (self.memory.ring_words() - 1);
        self.memory.word(RING_WORD + at).load(Ordering::Relaxed)
    }
}

/// A mapped event ring, either side.
#[derive(Debug)]
pub struct TapFile {
    fd: OwnedFd,
    mapping: Mapping,
}

impl TapFile {
    const LEN_BYTES: usize = (RING_WORD + TAP_WORDS) * WORD_BYTES;

    /// Makes an empty ring. Only the manager does this.
    ///
    /// # Errors
    /// Those of memfd_create(2) and mmap(2).
    pub fn create() -> io::Result<Arc<Self>> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let fd = memfd_create(c"millrace-tap", flags)?;
        let len = libc::off_t::try_from(Self::LEN_BYTES).unwrap_or(libc::off_t::MAX);
        nix::unistd::ftruncate(&fd, len)?;
        let mapping = Mapping::new(&fd, Self::LEN_BYTES, false)?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals))?;
        let file = Self { fd, mapping };
        for (at, value) in Self::header().into_iter().enumerate() {
            file.word(at).store(value, Ordering::Relaxed);
        }
        Ok(Arc::new(file))
    }

    /// Maps a ring that the manager made, and checks its header.
    ///
    /// # Errors
    /// InvalidData for a file of another size or layout, else those of mmap(2).
    pub fn from_fd(fd: OwnedFd) -> io::Result<Arc<Self>> {
        let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        let size = nix::sys::stat::fstat(&fd)?.st_size;
        if usize::try_from(size).ok() != Some(Self::LEN_BYTES) {
            let expected = Self::LEN_BYTES;
            return Err(invalid(format!("an event ring of {size} bytes, expected {expected}")));
        }
        let mapping = Mapping::new(&fd, Self::LEN_BYTES, false)?;
        let file = Self { fd, mapping };
        for (at, expected) in Self::header().into_iter().enumerate() {
            let found = file.word(at).load(Ordering::Relaxed);
            if found != expected {
                return Err(invalid(format!(
                    "event ring: word {at} is {found:#x}, expected {expected:#x}; manager and NF must \
                     be of one release"
                )));
            }
        }
        Ok(Arc::new(file))
    }

    fn header() -> [u64; 3] {
        [MAGIC, u64::from(LAYOUT_VERSION), TAP_WORDS as u64]
    }

    /// The file, to be passed on.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The reading end. There may be one.
    #[must_use]
    pub fn reader(self: &Arc<Self>) -> TapReader<Arc<Self>> {
        TapReader::new(Arc::clone(self))
    }

    /// The writing end. There may be one.
    #[must_use]
    pub fn writer(self: &Arc<Self>) -> TapWriter<Arc<Self>> {
        TapWriter::new(Arc::clone(self))
    }
}

impl TapMemory for Arc<TapFile> {
    #[inline]
    fn ring_words(&self) -> usize {
        TAP_WORDS
    }

    #[inline]
    fn word(&self, at: usize) -> &AtomicU64 {
        TapFile::word(self, at)
    }
}

impl TapFile {
    #[inline]
    fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at < RING_WORD + TAP_WORDS, "a word of the file");
        // SAFETY: checked just now: the word lies in the mapping, which lives as long as `self`, and is
        // aligned; what another process writes meanwhile is what an atomic is for.
        #[allow(clippy::cast_ptr_alignment)]
        unsafe {
            self.mapping.base().add(at * WORD_BYTES).cast::<AtomicU64>().as_ref()
        }
    }
}

#[cfg(all(test, not(loom)))]
#[path = "tap_tests.rs"]
mod tests;

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::sync::Arc;

    use super::*;

    /// A ring of sixteen words.
    struct Small(Vec<AtomicU64>);

    impl TapMemory for Arc<Small> {
        fn ring_words(&self) -> usize {
            16
        }

        fn word(&self, at: usize) -> &AtomicU64 {
            let at = match at {
                PRODUCER_WORD => 0,
                LOST_WORD => 1,
                LOST_MARKED_WORD => 2,
                CONSUMER_WORD => 3,
                at => at - RING_WORD + 4,
            };
            &self.0[at]
        }
    }

    #[test]
    fn what_is_read_was_written_and_in_order_and_the_rest_is_lost() {
        loom::model(|| {
            let memory = Arc::new(Small((0..20).map(|_| AtomicU64::new(0)).collect()));
            let mut reader = TapReader::new(Arc::clone(&memory));
            let writer = loom::thread::spawn(move || {
                let mut writer = TapWriter::new(memory);
                let event =
                    |n: u64| Event { time_ns: n, flow_hash: 7, marked: true, ..Event::default() };
                (1..=4u64).filter(|&n| writer.write(event(n), &[n as u8; 3])).collect::<Vec<_>>()
            });
            let mut seen = Vec::new();
            let mut read = |reader: &mut TapReader<_>| {
                let drained = reader.drain(usize::MAX, &mut |event, bytes| {
                    assert_eq!((event.flow_hash, bytes), (7, &[event.time_ns as u8; 3][..]));
                    seen.push(event.time_ns);
                });
                assert!(drained.is_ok());
            };
            read(&mut reader);
            read(&mut reader);
            let written = writer.join().unwrap();
            read(&mut reader);
            assert_eq!(reader.lost_marked(), 4 - written.len() as u64);
            assert_eq!(seen, written);
        });
    }
}
