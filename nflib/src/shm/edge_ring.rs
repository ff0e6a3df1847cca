//! A direct edge: a memfd with one ring of [`Delivery`] from one NF to another.
//!
//! The manager makes it and hands the same file to both, and keeps it mapped to look at the remains
//! when one of them dies.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{Consumer, Mapping, Producer, Remains, SharedRing};
use crate::descriptor::Delivery;

/// One direct edge, mapped.
#[derive(Debug)]
pub struct EdgeRing {
    fd: OwnedFd,
    ring: SharedRing,
}

fn len_bytes(capacity: u32) -> usize {
    SharedRing::size_bytes(capacity).next_multiple_of(4096)
}

impl EdgeRing {
    /// Makes an empty ring. Only the manager does this.
    ///
    /// # Errors
    /// Those of memfd_create(2) and mmap(2).
    pub fn create(capacity: u32) -> io::Result<Self> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let fd = memfd_create(c"millrace-edge", flags)?;
        let len = libc::off_t::try_from(len_bytes(capacity)).unwrap_or(libc::off_t::MAX);
        nix::unistd::ftruncate(&fd, len)?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals))?;
        Self::map(fd, capacity, true)
    }

    /// Maps an edge that the manager made.
    ///
    /// # Errors
    /// InvalidData when the file is not as large as a ring of `capacity` slots.
    pub fn from_fd(fd: OwnedFd, capacity: u32) -> io::Result<Self> {
        let size = nix::sys::stat::fstat(&fd)?.st_size;
        if usize::try_from(size).ok() != Some(len_bytes(capacity)) {
            let what = format!("an edge of {capacity} slots in a file of {size} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Self::map(fd, capacity, false)
    }

    fn map(fd: OwnedFd, capacity: u32, populate: bool) -> io::Result<Self> {
        let mapping = Arc::new(Mapping::new(&fd, len_bytes(capacity), populate)?);
        let ring = SharedRing::at(&mapping, 0, capacity).ok_or_else(|| {
            let what = format!("an edge of {capacity} slots; expected a power of two");
            io::Error::new(io::ErrorKind::InvalidData, what)
        })?;
        Ok(Self { fd, ring })
    }

    /// The file, to hand to an NF.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The sending end. To be taken once, by one process.
    #[must_use]
    pub fn producer(&self) -> Producer<Delivery> {
        Producer::new(self.ring.clone())
    }

    /// The receiving end. To be taken once, by one process.
    #[must_use]
    pub fn consumer(&self) -> Consumer<Delivery> {
        Consumer::new(self.ring.clone())
    }

    /// A look at the ring after a death.
    #[must_use]
    pub fn remains(&self) -> Remains {
        Remains::of(self.ring.clone())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn packet(buffer: u32) -> Delivery {
        Delivery { buffer, ..Delivery::default() }
    }

    fn buffers(values: &[Delivery]) -> Vec<u32> {
        values.iter().map(|value| value.buffer).collect()
    }

    #[test]
    fn an_edge_joins_two_mappings() {
        let ours = EdgeRing::create(64).unwrap();
        let theirs = EdgeRing::from_fd(ours.fd().try_clone_to_owned().unwrap(), 64).unwrap();
        let (mut push, mut pop) = (ours.producer(), theirs.consumer());
        assert_eq!(push.push_burst(&[packet(7), packet(8)]), Ok(2));
        let mut out = [Delivery::default(); 4];
        assert_eq!(pop.pop_burst(&mut out), Ok(2));
        assert_eq!(buffers(&out[..2]), [7, 8]);
        assert!(EdgeRing::from_fd(ours.fd().try_clone_to_owned().unwrap(), 1024).is_err());
    }

    #[test]
    fn the_remains_tell_what_was_read_released_and_settled() {
        let edge = EdgeRing::create(8).unwrap();
        let (mut push, mut pop) = (edge.producer(), edge.consumer());
        let remains = edge.remains();
        let packets: Vec<_> = (0..6).map(packet).collect();
        assert_eq!(push.push_burst(&packets[..2]), Ok(2));
        push.settle();
        assert_eq!(push.push_burst(&packets[2..]), Ok(4));
        let unsettled = remains.unsettled::<Delivery>().unwrap();
        assert_eq!(buffers(&unsettled), [2, 3, 4, 5]);

        let mut out = [Delivery::default(); 2];
        assert_eq!(pop.pop_burst(&mut out), Ok(2));
        assert_eq!(pop.read_burst(&mut out), Ok(2));
        let (taken, waiting) = remains.unreleased::<Delivery>().unwrap();
        assert_eq!((buffers(&taken), buffers(&waiting)), (vec![2, 3], vec![4, 5]));

        assert_eq!(remains.drain::<Delivery>().map(|(t, w)| (t.len(), w.len())), Some((2, 2)));
        let (taken, waiting) = remains.unreleased::<Delivery>().unwrap();
        assert!(taken.is_empty() && waiting.is_empty());
        assert_eq!(push.push_burst(&packets), Ok(6), "the whole ring is free again");
    }

    #[test]
    fn an_impossible_index_gives_no_remains_instead_of_nonsense() {
        use crate::shm::RingMemory as _;
        use std::sync::atomic::Ordering;
        let edge = EdgeRing::create(8).unwrap();
        edge.ring.head().store(100, Ordering::Relaxed);
        assert!(edge.remains().unreleased::<Delivery>().is_none());
        edge.ring.settled().store(100, Ordering::Relaxed);
        assert!(edge.remains().unsettled::<Delivery>().is_none());
    }
}
