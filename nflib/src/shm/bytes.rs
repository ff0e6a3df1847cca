//! From a buffer's number to its bytes, as an ordinary slice.
//!
//! An NF works on packet bytes through `&mut [u8]`, which promises the compiler that nobody else
//! touches them. That promise rests on the hand-over protocol: *inside one trust domain a buffer
//! has one holder at a time*. It is handed over by a descriptor on a ring, whose release store and
//! acquire load order every access of the old holder before every access of the new one.
//! A [`Lease`] stands for "this process is the holder": one is made for each descriptor received,
//! it cannot be copied, and bytes can only be reached by borrowing it. The borrow checker then
//! keeps the rest of the crate honest.
//!
//! Across trust domains the manager copies the packet, so that the rule holds there, too.

use std::num::NonZeroU32;
use std::ptr::NonNull;
use std::sync::Arc;

use super::{BufferIndex, Region};

/// Proof that this process holds a buffer. Neither `Clone` nor `Copy`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Lease(NonZeroU32);

impl Lease {
    /// The buffer's number.
    #[inline]
    pub(crate) fn buffer(&self) -> BufferIndex {
        self.0.get() - 1
    }
}

/// The bytes of the buffers that this process holds.
#[derive(Clone, Debug)]
pub(crate) struct PacketMemory {
    region: Arc<Region>,
    base: NonNull<u8>,
    stride_bytes: usize,
}

// SAFETY: `base` points into the mapping that `region` (Send + Sync) keeps alive, and bytes are only
// reached through a Lease, of which there is one per buffer.
unsafe impl Send for PacketMemory {}

impl PacketMemory {
    pub(crate) fn new(region: Arc<Region>) -> Self {
        let base = region.base();
        let stride_bytes = region.geometry().stride_bytes as usize;
        Self { region, base, stride_bytes }
    }

    /// Takes the hold of a buffer that a descriptor just handed over, or `None` when the descriptor
    /// names a range outside one buffer.
    ///
    /// The caller calls this exactly once for each descriptor it received and ends the lease (drops
    /// it) before it passes the buffer on.
    #[inline]
    pub(crate) fn lease(&self, buffer: BufferIndex, offset: u16, len: u16) -> Option<Lease> {
        if !self.region.geometry().contains(buffer, offset, len) {
            return None;
        }
        NonZeroU32::new(buffer.checked_add(1)?).map(Lease)
    }

    /// All bytes of a leased buffer, headroom included.
    #[inline]
    pub(crate) fn bytes_mut<'a>(&'a self, lease: &'a mut Lease) -> &'a mut [u8] {
        let at = lease.buffer() as usize * self.stride_bytes;
        // SAFETY: `lease` checked the buffer's number against the geometry, and the mapping covers
        // buffers × stride and lives as long as `self.region`. Exclusive: the buffer has one holder
        // (the protocol), this process has one Lease for it, and it is mutably borrowed for 'a.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(at).as_ptr(), self.stride_bytes) }
    }

    /// All bytes of a leased buffer, to read.
    #[inline]
    pub(crate) fn bytes<'a>(&'a self, lease: &'a Lease) -> &'a [u8] {
        let at = lease.buffer() as usize * self.stride_bytes;
        // SAFETY: as in `bytes_mut`; the lease is borrowed, so nobody in this process can write.
        unsafe { std::slice::from_raw_parts(self.base.add(at).as_ptr(), self.stride_bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shm::{HugePages, RegionGeometry};

    #[test]
    fn a_lease_reaches_its_own_buffer_and_no_other() {
        let geometry = RegionGeometry { buffers: 4, stride_bytes: 2048, headroom_bytes: 256 };
        let region = Arc::new(Region::create(geometry, HugePages::Off).unwrap());
        let memory = PacketMemory::new(region.clone());
        let mut lease = memory.lease(2, 0, 2048).unwrap();
        memory.bytes_mut(&mut lease).fill(7);
        let mut around = [0; 3];
        assert!(region.read(1, 2045, &mut around));
        assert_eq!(around, [0; 3]);
        assert!(region.read(3, 0, &mut around));
        assert_eq!(around, [0; 3]);
        assert_eq!(memory.bytes(&lease)[2047], 7);
    }

    #[test]
    fn no_lease_is_given_for_a_range_outside_one_buffer() {
        let geometry = RegionGeometry { buffers: 4, stride_bytes: 2048, headroom_bytes: 256 };
        let region = Arc::new(Region::create(geometry, HugePages::Off).unwrap());
        let memory = PacketMemory::new(region);
        assert!(memory.lease(4, 0, 0).is_none());
        assert!(memory.lease(0, 2000, 49).is_none());
        assert!(memory.lease(u32::MAX, 0, 0).is_none());
    }
}
