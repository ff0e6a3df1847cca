//! The state region of an NF: a small memfd that outlives the NF and is handed to its successor.
//!
//! ```text
//! byte 0     changes   begun and finished changes, counted by twos: odd while one is being made
//! byte 64    words     whatever the NF keeps there, 8 bytes each
//! ```
//! The file is the manager's: it made it, sealed its size, and gives it to one NF at a time. It never
//! maps it; whether a state may be handed on it knows from what the predecessor asked for. A process
//! that is killed in the middle of a change leaves the count odd, and its successor knows that the
//! words may not belong together.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::Mapping;

const WORDS_AT_BYTES: usize = 64;
const WORD_BYTES: usize = 8;

/// Most words a state may have.
pub const MAX_STATE_WORDS: u32 = (1 << 20) / WORD_BYTES as u32;

/// The manager's side: the file.
#[derive(Debug)]
pub struct StateFile {
    fd: OwnedFd,
}

impl StateFile {
    /// A file for so many words, all 0, whose size nobody can change.
    ///
    /// # Errors
    /// Those of memfd_create(2), ftruncate(2) and fcntl(2).
    pub fn create(words: u32) -> io::Result<Self> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let fd = memfd_create(c"millrace-state", flags)?;
        let len = libc::off_t::try_from(len_bytes(words)).map_err(io::Error::other)?;
        nix::unistd::ftruncate(&fd, len)?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(Self { fd })
    }

    /// The file, to hand to an NF.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn len_bytes(words: u32) -> usize {
    WORDS_AT_BYTES + words as usize * WORD_BYTES
}

/// What an NF finds in its state region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inherited {
    /// Nothing: every word is 0. There was no predecessor, or its state is not this NF's.
    Nothing,
    /// The predecessor's words, as it left them between two changes.
    Clean,
    /// The predecessor's words; it died while it changed some, so they may not belong together.
    Torn,
}

/// An NF's side: words that outlive it. Clones are the same words.
#[derive(Clone, Debug)]
pub struct State {
    mapping: Arc<Mapping>,
    words: u32,
    generation: u64,
    inherited: Inherited,
}

impl State {
    /// Maps a state region of so many words, which `generation - 1` NFs had before.
    ///
    /// # Errors
    /// InvalidData for a file of another size, and those of fstat(2) and mmap(2).
    pub fn from_fd(fd: &OwnedFd, words: u32, generation: u64) -> io::Result<Self> {
        let size = nix::sys::stat::fstat(fd)?.st_size;
        if usize::try_from(size) != Ok(len_bytes(words)) || words > MAX_STATE_WORDS {
            let what = format!("a file of {size} bytes for a state of {words} words");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let mapping = Arc::new(Mapping::new(fd, len_bytes(words), true)?);
        let mut state = Self { mapping, words, generation, inherited: Inherited::Nothing };
        let is_torn = state.changes().load(Ordering::Acquire) % 2 == 1;
        state.inherited = match (generation, is_torn) {
            (..=1, _) => Inherited::Nothing,
            (_, false) => Inherited::Clean,
            (_, true) => Inherited::Torn,
        };
        Ok(state)
    }

    /// A state that nobody inherits: for tests, and where there is no manager.
    ///
    /// # Errors
    /// As [`StateFile::create`] and [`from_fd`](Self::from_fd).
    pub fn private(words: u32) -> io::Result<Self> {
        Self::from_fd(&StateFile::create(words)?.fd, words, 1)
    }

    /// How many words there are.
    #[must_use]
    pub fn words(&self) -> u32 {
        self.words
    }

    /// Which NF this is that has the state: 1 for the first.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What was there when this NF got it.
    #[must_use]
    pub fn inherited(&self) -> Inherited {
        self.inherited
    }

    fn atomic(&self, offset_bytes: usize) -> &AtomicU64 {
        assert!(
            offset_bytes.is_multiple_of(WORD_BYTES)
                && offset_bytes + WORD_BYTES <= self.mapping.len_bytes()
        );
        // SAFETY: aligned and inside the mapping, which lives as long as `self`; another process's
        // concurrent writes, which the protocol rules out, are what an atomic is for.
        #[allow(clippy::cast_ptr_alignment)]
        unsafe {
            self.mapping.base().add(offset_bytes).cast::<AtomicU64>().as_ref()
        }
    }

    fn changes(&self) -> &AtomicU64 {
        self.atomic(0)
    }

    /// A word; 0 beyond the last.
    #[must_use]
    #[inline]
    pub fn get(&self, word: u32) -> u64 {
        if word >= self.words {
            return 0;
        }
        self.atomic(WORDS_AT_BYTES + word as usize * WORD_BYTES).load(Ordering::Relaxed)
    }

    /// Changes words that belong together. A process that dies before `change` returns leaves the
    /// state [`Inherited::Torn`], and so does a panic in it. Changes do not nest.
    #[inline]
    pub fn change<T>(&self, change: impl FnOnce(&mut StateChange<'_>) -> T) -> T {
        let begun = self.changes().load(Ordering::Relaxed) | 1;
        self.changes().store(begun, Ordering::Relaxed);
        // Whoever sees a word of the change sees that it was begun; and, below, the other way round.
        fence(Ordering::Release);
        let result = change(&mut StateChange { state: self });
        self.changes().store(begun.wrapping_add(1), Ordering::Release);
        result
    }
}

/// A change of words under way.
#[derive(Debug)]
pub struct StateChange<'s> {
    state: &'s State,
}

impl StateChange<'_> {
    /// Sets a word; nothing beyond the last.
    #[inline]
    pub fn set(&mut self, word: u32, value: u64) {
        if word < self.state.words {
            let at = WORDS_AT_BYTES + word as usize * WORD_BYTES;
            self.state.atomic(at).store(value, Ordering::Relaxed);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn successor(file: &StateFile, generation: u64) -> State {
        State::from_fd(&file.fd.try_clone().unwrap(), 4, generation).unwrap()
    }

    #[test]
    fn the_next_one_finds_the_words_and_knows_whether_they_belong_together() {
        let file = StateFile::create(4).unwrap();
        let first = successor(&file, 1);
        assert_eq!((first.inherited(), first.get(3)), (Inherited::Nothing, 0));
        first.change(|words| {
            words.set(0, 7);
            words.set(3, 9);
            words.set(4, 1);
        });
        let second = successor(&file, 2);
        assert_eq!((second.inherited(), second.generation()), (Inherited::Clean, 2));
        assert_eq!([0, 1, 3, 4, u32::MAX].map(|word| second.get(word)), [7, 0, 9, 0, 0]);

        let dies = std::panic::catch_unwind(|| {
            second.change(|words| {
                words.set(0, 8);
                panic!("in the middle of a change");
            });
        });
        assert!(dies.is_err());
        let third = successor(&file, 3);
        assert_eq!((third.inherited(), third.get(0), third.get(3)), (Inherited::Torn, 8, 9));
        third.change(|words| words.set(3, 10));
        assert_eq!(successor(&file, 4).inherited(), Inherited::Clean);
    }

    #[test]
    fn nobody_can_change_its_size_and_another_size_is_refused() {
        let file = StateFile::create(4).unwrap();
        assert!(nix::unistd::ftruncate(&file.fd, 8).is_err());
        assert!(nix::unistd::ftruncate(&file.fd, 1 << 20).is_err());
        for words in [0, 3, 5, MAX_STATE_WORDS + 1, u32::MAX] {
            assert!(State::from_fd(&file.fd, words, 1).is_err(), "{words}");
        }
        assert_eq!(State::private(MAX_STATE_WORDS).unwrap().get(MAX_STATE_WORDS - 1), 0);
    }
}
