//! The table of marks: which packets are looked at wherever they come by.
//!
//! ```text
//! byte 0       header   magic, layout version, buffers; the manager writes it once
//! byte 64      now      how many packets are marked; the manager's workers write it
//! byte 72      kept     bytes that are kept of a packet marked to be shown
//! byte 4096    marked   one bit a buffer
//! then         shown    one bit a buffer: its first bytes are kept, too
//! ```
//! A worker marks a packet before it pushes it to an NF, so the ring orders the bit before the packet. Few
//! packets are marked at a time, mostly none; so whoever takes a burst looks at one word, and at bits
//! only while something is marked. Only the manager can write.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl, open};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;

use super::BufferIndex;
use super::channel::LAYOUT_VERSION;
use super::mapping::Mapping;
use super::sync::{AtomicU64, Ordering};

/// Says that a file is a table of marks: "MILLMARK" in ASCII, little endian.
const MAGIC: u64 = u64::from_le_bytes(*b"MILLMARK");
const NOW_WORD: usize = 8;
const KEPT_WORD: usize = 9;
const MARKED_WORD: usize = 512;

/// How a packet is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// To be timed.
    Timed,
    /// To be timed, and its first bytes to be kept at each place.
    Shown,
}

#[derive(Debug)]
struct Words {
    mapping: Mapping,
    buffers: u32,
}

impl Words {
    fn bitmap_words(buffers: u32) -> usize {
        (buffers as usize).div_ceil(64)
    }

    fn len_bytes(buffers: u32) -> usize {
        ((MARKED_WORD + 2 * Self::bitmap_words(buffers)) * 8).next_multiple_of(4096)
    }

    fn header(buffers: u32) -> [u64; 3] {
        [MAGIC, u64::from(LAYOUT_VERSION), u64::from(buffers)]
    }

    #[inline]
    fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at < self.mapping.len_bytes() / 8, "a word of the file");
        // SAFETY: checked just now: the word lies in the mapping, which lives as long as `self`, and is
        // aligned; what another process writes meanwhile is what an atomic is for.
        #[allow(clippy::cast_ptr_alignment)]
        unsafe {
            self.mapping.base().add(at * 8).cast::<AtomicU64>().as_ref()
        }
    }

    /// The words with a buffer's bits, and its bit in them; `None` where there is no such buffer.
    #[inline]
    fn bits(&self, buffer: BufferIndex) -> Option<(&AtomicU64, &AtomicU64, u64)> {
        if buffer >= self.buffers {
            return None;
        }
        let at = MARKED_WORD + buffer as usize / 64;
        let shown = at + Self::bitmap_words(self.buffers);
        Some((self.word(at), self.word(shown), 1 << (buffer % 64)))
    }

    #[inline]
    fn of(&self, buffer: BufferIndex) -> Option<Mark> {
        let (marked, shown, bit) = self.bits(buffer)?;
        if marked.load(Ordering::Relaxed) & bit == 0 {
            return None;
        }
        match shown.load(Ordering::Relaxed) & bit {
            0 => Some(Mark::Timed),
            _ => Some(Mark::Shown),
        }
    }
}

/// The table as an NF sees it.
#[derive(Debug)]
pub struct Marks {
    words: Words,
    /// The word that says how many packets are marked: looked at for each burst.
    now: NonNull<AtomicU64>,
}

// SAFETY: `now` points into the mapping that `words` (Send) keeps, which does not move with it.
unsafe impl Send for Marks {}

impl Marks {
    /// Maps the manager's table, for that many buffers, for reading.
    ///
    /// # Errors
    /// InvalidData for a file of another size or layout, else those of mmap(2).
    pub fn from_fd(fd: &OwnedFd, buffers: u32) -> io::Result<Self> {
        let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        let (size, expected) = (nix::sys::stat::fstat(fd)?.st_size, Words::len_bytes(buffers));
        if usize::try_from(size).ok() != Some(expected) {
            return Err(invalid(format!("a table of marks of {size} bytes, expected {expected}")));
        }
        let words = Words { mapping: Mapping::read_only(fd, expected)?, buffers };
        for (at, expected) in Words::header(buffers).into_iter().enumerate() {
            let found = words.word(at).load(Ordering::Relaxed);
            if found != expected {
                return Err(invalid(format!(
                    "table of marks: word {at} is {found:#x}, expected {expected:#x}; manager and NF \
                     must be of one release"
                )));
            }
        }
        let now = NonNull::from(words.word(NOW_WORD));
        Ok(Self { words, now })
    }

    /// Whether any packet is marked now.
    #[must_use]
    #[inline]
    pub fn any(&self) -> bool {
        // SAFETY: a word of the mapping, which lives as long as `self`; see `from_fd`.
        unsafe { self.now.as_ref() }.load(Ordering::Relaxed) > 0
    }

    /// How a packet is marked, if it is.
    #[must_use]
    #[inline]
    pub fn of(&self, buffer: BufferIndex) -> Option<Mark> {
        self.words.of(buffer)
    }

    /// Bytes to keep of a packet that is to be shown.
    #[must_use]
    pub fn kept_bytes(&self) -> u16 {
        self.words.word(KEPT_WORD).load(Ordering::Relaxed) as u16
    }
}

/// The table as the manager writes it; all workers do.
#[derive(Debug)]
pub struct MarkTable {
    fd: OwnedFd,
    words: Words,
}

impl MarkTable {
    /// Makes a table without marks.
    ///
    /// # Errors
    /// Those of memfd_create(2) and mmap(2).
    pub fn create(buffers: u32) -> io::Result<Arc<Self>> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let fd = memfd_create(c"millrace-marks", flags)?;
        let len_bytes = Words::len_bytes(buffers);
        nix::unistd::ftruncate(&fd, libc::off_t::try_from(len_bytes).unwrap_or(libc::off_t::MAX))?;
        let words = Words { mapping: Mapping::new(&fd, len_bytes, true)?, buffers };
        // Ours is the only writable mapping there will ever be.
        let seals = SealFlag::F_SEAL_SHRINK
            | SealFlag::F_SEAL_GROW
            | SealFlag::F_SEAL_FUTURE_WRITE
            | SealFlag::F_SEAL_SEAL;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals))?;
        for (at, value) in Words::header(buffers).into_iter().enumerate() {
            words.word(at).store(value, Ordering::Relaxed);
        }
        Ok(Arc::new(Self { fd, words }))
    }

    /// A descriptor of the file that allows reading only, to hand to NFs.
    ///
    /// # Errors
    /// Those of open(2) under /proc.
    pub fn read_only_fd(&self) -> io::Result<OwnedFd> {
        let path = format!("/proc/self/fd/{}", self.fd.as_fd().as_raw_fd());
        Ok(open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?)
    }

    /// Says how many bytes are kept of packets that are to be shown.
    pub fn keep(&self, bytes: u16) {
        self.words.word(KEPT_WORD).store(u64::from(bytes), Ordering::Relaxed);
    }

    /// Bytes to keep of a packet that is to be shown.
    #[must_use]
    pub fn kept_bytes(&self) -> u16 {
        self.words.word(KEPT_WORD).load(Ordering::Relaxed) as u16
    }

    /// Marks a packet; one that is marked to be shown stays so. Returns whether it was not marked before.
    pub fn set(&self, buffer: BufferIndex, mark: Mark) -> bool {
        let Some((marked, shown, bit)) = self.words.bits(buffer) else { return false };
        if mark == Mark::Shown {
            shown.fetch_or(bit, Ordering::Relaxed);
        }
        let is_new = marked.fetch_or(bit, Ordering::Relaxed) & bit == 0;
        if is_new {
            self.words.word(NOW_WORD).fetch_add(1, Ordering::Relaxed);
        }
        is_new
    }

    /// Takes the mark from a packet. Returns how it was marked.
    pub fn take(&self, buffer: BufferIndex) -> Option<Mark> {
        let mark = self.words.of(buffer)?;
        let (marked, shown, bit) = self.words.bits(buffer)?;
        marked.fetch_and(!bit, Ordering::Relaxed);
        shown.fetch_and(!bit, Ordering::Relaxed);
        self.words.word(NOW_WORD).fetch_sub(1, Ordering::Relaxed);
        Some(mark)
    }

    /// How a packet is marked, if it is.
    #[must_use]
    pub fn of(&self, buffer: BufferIndex) -> Option<Mark> {
        self.words.of(buffer)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn marks_are_where_they_were_set_until_they_are_taken(
            buffers in 1u32..200,
            steps in proptest::collection::vec((0u32..220, 0u8..3), 0..300),
        ) {
            let table = MarkTable::create(buffers).unwrap();
            let marks = Marks::from_fd(&table.read_only_fd().unwrap(), buffers).unwrap();
            let mut model = BTreeMap::new();
            for (buffer, step) in steps {
                let exists = buffer < buffers;
                match step {
                    0 => prop_assert_eq!(table.take(buffer), model.remove(&buffer)),
                    step => {
                        let mark = if step == 1 { Mark::Timed } else { Mark::Shown };
                        let is_new = exists && !model.contains_key(&buffer);
                        prop_assert_eq!(table.set(buffer, mark), is_new);
                        if exists && model.get(&buffer) != Some(&Mark::Shown) {
                            model.insert(buffer, mark);
                        }
                    }
                }
                prop_assert_eq!(marks.any(), !model.is_empty());
                prop_assert_eq!(marks.of(buffer), model.get(&buffer).copied());
            }
            for buffer in 0..220 {
                prop_assert_eq!(marks.of(buffer), model.get(&buffer).copied());
                prop_assert_eq!(table.of(buffer), model.get(&buffer).copied());
            }
        }
    }

    #[test]
    fn what_an_nf_gets_cannot_be_mapped_for_writing() {
        let table = MarkTable::create(64).unwrap();
        let fd = table.read_only_fd().unwrap();
        assert!(Mapping::new(&fd, Words::len_bytes(64), false).is_err());
    }

    #[test]
    fn a_table_for_other_buffers_is_refused() {
        let table = MarkTable::create(64).unwrap();
        let fd = table.read_only_fd().unwrap();
        assert!(Marks::from_fd(&fd, 65).unwrap_err().to_string().contains("expected 0x41"));
        assert!(
            Marks::from_fd(&fd, 1 << 20).unwrap_err().to_string().contains("4096 bytes")
                || Marks::from_fd(&fd, 1 << 20).unwrap_err().to_string().contains("8192 bytes")
        );
    }
}
