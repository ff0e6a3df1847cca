//! Writing anything anywhere: what an NF that keeps no rule can do to the memory it maps.
//!
//! Nothing of Millrace needs this but its tests, which play such an NF. It gives no power that a
//! process with the descriptor has not.

use std::io;
use std::os::fd::AsFd;

use super::Mapping;
use super::sync::{AtomicU32, Ordering};

/// Writes to address 16, as one does who takes a null pointer for one to a structure: the process dies of it by
/// SIGSEGV.
#[inline(never)]
pub fn write_to_null() {
    let nowhere = std::ptr::without_provenance_mut::<u8>(std::hint::black_box(16));
    // SAFETY: none; that this is no memory of anybody's is what it is for. The kernel maps nothing there
    // (vm.mmap_min_addr), so that nothing can be harmed but the process itself.
    unsafe { nowhere.write_volatile(1) };
}

/// A shared file as plain words and bytes.
#[derive(Debug)]
pub struct Scribble {
    mapping: Mapping,
}

impl Scribble {
    /// Maps a whole file, as anybody can who has been given it.
    ///
    /// # Errors
    /// Those of fstat(2) and mmap(2): EACCES for one that may only be read.
    pub fn over(fd: impl AsFd) -> io::Result<Self> {
        let size = nix::sys::stat::fstat(&fd)?.st_size;
        let len_bytes = usize::try_from(size).unwrap_or(0);
        Ok(Self { mapping: Mapping::new(fd, len_bytes, false)? })
    }

    /// Bytes there are.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.mapping.len_bytes()
    }

    /// The word that begins at `offset_bytes`, rounded down to a multiple of 4.
    ///
    /// # Panics
    /// If there is no such word.
    fn word(&self, offset_bytes: usize) -> &AtomicU32 {
        let at = offset_bytes & !3;
        assert!(at + 4 <= self.len_bytes(), "byte {at} of {}", self.len_bytes());
        // SAFETY: the word lies in the mapping, at a multiple of 4; the mapping lives as long as
        // `self`; others' concurrent accesses are what an atomic is for.
        #[allow(clippy::cast_ptr_alignment)]
        unsafe {
            self.mapping.base().add(at).cast::<AtomicU32>().as_ref()
        }
    }

    /// Reads the 32-bit word at `offset_bytes`.
    ///
    /// # Panics
    /// If there is no such word.
    #[must_use]
    pub fn load(&self, offset_bytes: usize) -> u32 {
        self.word(offset_bytes).load(Ordering::Acquire)
    }

    /// Writes the 32-bit word at `offset_bytes`.
    ///
    /// # Panics
    /// If there is no such word.
    pub fn store(&self, offset_bytes: usize, value: u32) {
        self.word(offset_bytes).store(value, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::shm::{Channel, ChannelGeometry, RouteTableWriter};

    #[test]
    fn whoever_has_a_channel_can_write_every_word_of_it() {
        let geometry = ChannelGeometry { workers: 1, ring_capacity: 64, buffers: 64 };
        let channel = Channel::create(geometry).unwrap();
        let scribble = Scribble::over(channel.fd()).unwrap();
        assert_eq!(scribble.len_bytes(), geometry.len_bytes());
        scribble.store(8192, 1 << 5);
        assert!(channel.is_held(5) && scribble.load(8192) == 32);
    }

    #[test]
    fn the_route_table_cannot_be_scribbled_on() {
        let table = RouteTableWriter::create().unwrap();
        let error = Scribble::over(table.read_only_fd().unwrap()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EACCES));
    }
}
