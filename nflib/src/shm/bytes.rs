//! From a descriptor to its packet's bytes, as an ordinary slice.
//!
//! An NF works on packet bytes through `&mut [u8]`, which promises the compiler that nobody else
//! touches them. That promise rests on the hand-over protocol: *inside one trust domain a buffer
//! has one holder at a time*. It is handed over by a descriptor on a ring, whose release store and
//! acquire load order every access of the old holder before every access of the new one.
//! A [`Lease`] stands for "this process is the holder": it is the descriptor received, it cannot be
//! copied, and bytes can only be reached by borrowing it. The borrow checker then keeps the rest of
//! the crate honest.
//!
//! A burst of descriptors becomes a burst of leases where it lies ([`Lease::all`]): nothing is copied
//! until it is pushed on.
//!
//! Across trust domains the manager copies the packet, so that the rule holds there, too.

use std::ptr::NonNull;
use std::sync::Arc;

use super::{BufferIndex, Region, RegionGeometry};
use crate::descriptor::Delivery;

/// Stands in a lease that has been taken out of its place.
const NO_BUFFER: BufferIndex = BufferIndex::MAX;

/// A packet that this process holds: its descriptor. Neither `Clone` nor `Copy`.
///
/// Whoever makes one has checked that the range lies inside a buffer. Memory safety does not rest on
/// that: a buffer that does not exist has no bytes.
#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct Lease(Delivery);

impl Lease {
    /// Takes the hold of the buffers that a burst of descriptors just handed over.
    ///
    /// The caller calls this exactly once for each descriptor it received, and ends the leases, by
    /// using them no more, before it passes the buffers on.
    #[inline]
    pub(crate) fn all(descriptors: &mut [Delivery]) -> &mut [Self] {
        let (first, count) = (descriptors.as_mut_ptr(), descriptors.len());
        // SAFETY: `repr(transparent)`, so a lease has the layout of a descriptor, and any descriptor
        // is one; borrowed mutably for as long as the result lives.
        unsafe { std::slice::from_raw_parts_mut(first.cast::<Self>(), count) }
    }

    /// The packet's place and what is known of it.
    #[inline]
    pub(crate) fn descriptor(&self) -> &Delivery {
        &self.0
    }

    /// The buffer's number.
    #[inline]
    pub(crate) fn buffer(&self) -> BufferIndex {
        self.0.buffer
    }

    /// Says where the packet lies now.
    #[inline]
    pub(crate) fn set_range(&mut self, offset_bytes: u16, len_bytes: u16) {
        self.0.offset_bytes = offset_bytes;
        self.0.len_bytes = len_bytes;
    }

    #[inline]
    pub(crate) fn set_flow_hash(&mut self, flow_hash: u32) {
        self.0.flow_hash = flow_hash;
    }

    /// False when the lease was taken out of this place.
    #[inline]
    pub(crate) fn is_here(&self) -> bool {
        self.0.buffer != NO_BUFFER
    }

    /// Takes the lease out of its place.
    #[inline]
    pub(crate) fn take(&mut self) -> Self {
        Self(std::mem::replace(&mut self.0, Delivery { buffer: NO_BUFFER, ..Delivery::default() }))
    }
}

/// The bytes of the buffers that this process holds.
#[derive(Clone, Debug)]
pub(crate) struct PacketMemory {
    region: Arc<Region>,
    base: NonNull<u8>,
    buffers: u32,
    /// All buffers, or none where the region can be read only: one comparison tells both.
    writable_buffers: u32,
    stride_bytes: u32,
}

// SAFETY: `base` points into the mapping that `region` (Send + Sync) keeps alive, and bytes are only
// reached through a Lease, of which there is one per buffer.
unsafe impl Send for PacketMemory {}

impl PacketMemory {
    pub(crate) fn new(region: Arc<Region>) -> Self {
        let base = region.base();
        let RegionGeometry { buffers, stride_bytes, .. } = *region.geometry();
        let writable_buffers = if region.is_writable() { buffers } else { 0 };
        Self { region, base, buffers, writable_buffers, stride_bytes }
    }

    /// Whether the bytes may be changed.
    pub(crate) fn is_writable(&self) -> bool {
        self.region.is_writable()
    }

    pub(crate) fn geometry(&self) -> &RegionGeometry {
        self.region.geometry()
    }

    /// Bytes of a buffer.
    #[inline]
    pub(crate) fn stride_bytes(&self) -> usize {
        self.stride_bytes as usize
    }

    /// Takes the hold of one buffer, or `None` when the descriptor names a range outside one.
    #[inline]
    pub(crate) fn lease(&self, descriptor: Delivery) -> Option<Lease> {
        let Delivery { buffer, offset_bytes, len_bytes, .. } = descriptor;
        self.geometry().contains(buffer, offset_bytes, len_bytes).then_some(Lease(descriptor))
    }

    /// Where a leased buffer begins, and its length: 0 when there is no such buffer among the first
    /// `buffers`, of which there are not more than in the region.
    #[inline]
    fn buffer(&self, lease: &Lease, buffers: u32) -> (NonNull<u8>, usize) {
        let buffer = lease.buffer();
        if buffer >= buffers {
            return (NonNull::dangling(), 0);
        }
        // SAFETY: the number was checked just now, and the mapping covers buffers × stride.
        let at = unsafe { self.base.add(buffer as usize * self.stride_bytes as usize) };
        (at, self.stride_bytes as usize)
    }

    /// All bytes of a leased buffer, headroom included; none where the region can be read only.
    #[inline]
    pub(crate) fn bytes_mut<'a>(&'a self, lease: &'a mut Lease) -> &'a mut [u8] {
        let (at, len) = self.buffer(lease, self.writable_buffers);
        // SAFETY: `buffer` gave a range of the mapping, which is writable and lives as long as
        // `self.region`, or an empty one. Exclusive: the buffer has one holder (the protocol), this process has one Lease
        // for it, and it is mutably borrowed for 'a.
        unsafe { std::slice::from_raw_parts_mut(at.as_ptr(), len) }
    }

    /// All bytes of a leased buffer, to read.
    #[inline]
    pub(crate) fn bytes<'a>(&'a self, lease: &'a Lease) -> &'a [u8] {
        let (at, len) = self.buffer(lease, self.buffers);
        // SAFETY: as in `bytes_mut`; the lease is borrowed, so nobody in this process can write.
        unsafe { std::slice::from_raw_parts(at.as_ptr(), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shm::HugePages;

    fn region() -> Arc<Region> {
        let geometry = RegionGeometry { buffers: 4, stride_bytes: 2048, headroom_bytes: 256 };
        Arc::new(Region::create(geometry, HugePages::Off).unwrap())
    }

    fn descriptor(buffer: u32, offset_bytes: u16, len_bytes: u16) -> Delivery {
        Delivery { buffer, offset_bytes, len_bytes, ..Delivery::default() }
    }

    #[test]
    fn a_lease_reaches_its_own_buffer_and_no_other() {
        let region = region();
        let memory = PacketMemory::new(region.clone());
        let mut lease = memory.lease(descriptor(2, 0, 2048)).unwrap();
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
        let memory = PacketMemory::new(region());
        assert!(memory.lease(descriptor(4, 0, 0)).is_none());
        assert!(memory.lease(descriptor(0, 2000, 49)).is_none());
        assert!(memory.lease(descriptor(u32::MAX, 0, 0)).is_none());
    }

    #[test]
    fn a_lease_is_in_its_place_until_it_is_taken_and_then_has_no_bytes() {
        let memory = PacketMemory::new(region());
        let mut burst = [descriptor(1, 256, 60), descriptor(3, 256, 60)];
        let leases = Lease::all(&mut burst);
        let taken = leases[1].take();
        assert_eq!((taken.buffer(), memory.bytes(&taken).len()), (3, 2048));
        assert!(leases[0].is_here() && !leases[1].is_here());
        assert!(memory.bytes_mut(&mut leases[1]).is_empty());
    }
}
