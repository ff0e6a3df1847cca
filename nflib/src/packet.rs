//! A packet as an NF sees it: a range of one buffer, with room before and after it.
//!
//! ```text
//! 0           offset                 offset + len          stride
//! ├─ headroom ──┼──── bytes() ───────────┼──── tailroom ─────┤
//!        ◄─ push_front    pop_front ─►       push_back ─►
//! ```
//! No method reaches outside the buffer: what does not fit is a [`PacketError`], and the packet is
//! left as it was.
#![forbid(unsafe_code)]

use std::fmt;

use thiserror::Error;

use crate::descriptor::{Delivery, PortId, RouteId};
use crate::shm::{Lease, PacketMemory};

/// Names one packet during its stay at one NF. Not used again for another packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PacketId {
    pub(crate) arrival: u64,
    pub(crate) buffer: u32,
}

impl PacketId {
    /// The buffer that the packet lies in: the same at every NF it comes to, and another packet's as
    /// soon as this one has left Millrace.
    #[must_use]
    #[inline]
    pub fn buffer(&self) -> u32 {
        self.buffer
    }
}

impl fmt::Display for PacketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{} (buffer {})", self.arrival, self.buffer)
    }
}

/// Why a packet could not be made longer or shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PacketError {
    /// `push_front` beyond the start of the buffer.
    #[error("{wanted_bytes} bytes of headroom are needed and {free_bytes} are there")]
    NoHeadroom {
        /// Asked for.
        wanted_bytes: usize,
        /// Bytes before the packet.
        free_bytes: usize,
    },
    /// `push_back` beyond the end of the buffer.
    #[error("{wanted_bytes} bytes of tailroom are needed and {free_bytes} are there")]
    NoTailroom {
        /// Asked for.
        wanted_bytes: usize,
        /// Bytes after the packet.
        free_bytes: usize,
    },
    /// The service's `access` is `read-only`: nothing of a packet can be changed.
    #[error("the packet cannot be changed: the service's access is \"read-only\"")]
    ReadOnly,
    /// `pop_front` or `trim_back` of more than there is.
    #[error("{wanted_bytes} bytes cannot be removed from a packet of {len_bytes} bytes")]
    TooShort {
        /// Asked for.
        wanted_bytes: usize,
        /// Length of the packet.
        len_bytes: usize,
    },
}

/// A packet that this process holds, and its number among those that came.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) lease: Lease,
    pub(crate) arrival: u64,
}

impl Slot {
    pub(crate) fn id(&self) -> PacketId {
        PacketId { arrival: self.arrival, buffer: self.lease.buffer() }
    }

    pub(crate) fn view<'a>(&'a mut self, memory: &'a PacketMemory) -> Packet<'a> {
        Packet { memory, lease: &mut self.lease, arrival: self.arrival }
    }

    pub(crate) fn bytes<'a>(&'a self, memory: &'a PacketMemory) -> &'a [u8] {
        bytes_of(&self.lease, memory)
    }
}

#[inline]
pub(crate) fn bytes_of<'a>(lease: &'a Lease, memory: &'a PacketMemory) -> &'a [u8] {
    let from = usize::from(lease.descriptor().offset_bytes);
    let to = from + usize::from(lease.descriptor().len_bytes);
    memory.bytes(lease).get(from..to).unwrap_or_default()
}

/// A view of one packet. The NF is its only holder while the view lives.
///
/// Invariant: `offset + len ≤ stride`, checked before a view is made and kept by every method.
pub struct Packet<'a> {
    memory: &'a PacketMemory,
    lease: &'a mut Lease,
    arrival: u64,
}

impl<'a> Packet<'a> {
    #[inline]
    pub(crate) fn new(memory: &'a PacketMemory, lease: &'a mut Lease, arrival: u64) -> Self {
        Self { memory, lease, arrival }
    }
}

impl Packet<'_> {
    /// The frame, from its first byte (of the Ethernet header) to its last, without the frame
    /// check sequence.
    #[must_use]
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        bytes_of(self.lease, self.memory)
    }

    /// The frame, to change in place.
    ///
    /// # Panics
    /// Where the service's `access` is `read-only`. An NF that changes packets looks at
    /// [`Setup::read_only`](crate::Setup) and refuses to start, or asks
    /// [`is_read_only`](Self::is_read_only) before.
    #[must_use]
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let (from, len) = self.range();
        self.buffer_mut(from, len)
    }

    /// Whether the packet cannot be changed, because the service's `access` is `read-only`.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        !self.memory.is_writable()
    }

    #[inline]
    fn buffer_mut(&mut self, from: usize, len: usize) -> &mut [u8] {
        let memory = self.memory;
        match memory.bytes_mut(self.lease).get_mut(from..from + len) {
            Some(bytes) => bytes,
            None => no_bytes(memory),
        }
    }

    fn check_writable(&self) -> Result<(), PacketError> {
        if self.is_read_only() { Err(PacketError::ReadOnly) } else { Ok(()) }
    }

    /// Offset and length.
    #[inline]
    fn range(&self) -> (usize, usize) {
        let Delivery { offset_bytes, len_bytes, .. } = *self.lease.descriptor();
        (usize::from(offset_bytes), usize::from(len_bytes))
    }

    /// Length of the frame in bytes.
    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        self.range().1
    }

    /// True for a packet without any byte.
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Free bytes before the packet.
    #[must_use]
    #[inline]
    pub fn headroom_bytes(&self) -> usize {
        self.range().0
    }

    /// Free bytes after the packet.
    #[must_use]
    #[inline]
    pub fn tailroom_bytes(&self) -> usize {
        let (offset, len) = self.range();
        self.memory.stride_bytes().saturating_sub(offset + len)
    }

    /// Makes the packet `n` bytes longer at its front and returns the new bytes, which hold
    /// whatever was there before: write them all.
    ///
    /// # Errors
    /// [`PacketError::NoHeadroom`], [`PacketError::ReadOnly`]
    pub fn push_front(&mut self, n: usize) -> Result<&mut [u8], PacketError> {
        self.check_writable()?;
        let (offset, len) = self.range();
        let error = PacketError::NoHeadroom { wanted_bytes: n, free_bytes: offset };
        let from = offset.checked_sub(n).ok_or(error)?;
        self.set_range(from, len + n);
        Ok(self.buffer_mut(from, n))
    }

    /// Removes the first `n` bytes and returns them; they stay readable until the next change.
    ///
    /// # Errors
    /// [`PacketError::TooShort`], [`PacketError::ReadOnly`]
    pub fn pop_front(&mut self, n: usize) -> Result<&[u8], PacketError> {
        self.check_writable()?;
        let (offset, len) = self.range();
        let rest = self.less(n)?;
        self.set_range(offset + len - rest, rest);
        Ok(self.buffer_mut(offset, n))
    }

    /// Makes the packet `n` bytes longer at its end and returns the new bytes, which hold whatever
    /// was there before: write them all.
    ///
    /// # Errors
    /// [`PacketError::NoTailroom`], [`PacketError::ReadOnly`]
    pub fn push_back(&mut self, n: usize) -> Result<&mut [u8], PacketError> {
        self.check_writable()?;
        let free_bytes = self.tailroom_bytes();
        if n > free_bytes {
            return Err(PacketError::NoTailroom { wanted_bytes: n, free_bytes });
        }
        let (offset, len) = self.range();
        self.set_range(offset, len + n);
        Ok(self.buffer_mut(offset + len, n))
    }

    /// Removes the last `n` bytes.
    ///
    /// # Errors
    /// [`PacketError::TooShort`], [`PacketError::ReadOnly`]
    pub fn trim_back(&mut self, n: usize) -> Result<(), PacketError> {
        self.check_writable()?;
        let rest = self.less(n)?;
        self.set_range(self.headroom_bytes(), rest);
        Ok(())
    }

    /// The length without `n` bytes.
    fn less(&self, n: usize) -> Result<usize, PacketError> {
        let len_bytes = self.len();
        let error = PacketError::TooShort { wanted_bytes: n, len_bytes };
        len_bytes.checked_sub(n).ok_or(error)
    }

    /// Both are at most the stride, which 16 bits can say.
    fn set_range(&mut self, offset: usize, len: usize) {
        self.lease.set_range(offset as u16, len as u16);
    }

    /// The port the packet came in by.
    #[must_use]
    #[inline]
    pub fn ingress_port(&self) -> PortId {
        self.lease.descriptor().port
    }

    /// The flow hash made at ingress: equal for all packets of one flow, 0 when none was made.
    #[must_use]
    #[inline]
    pub fn flow_hash(&self) -> u32 {
        self.lease.descriptor().flow_hash
    }

    /// Replaces the flow hash, for an NF that changed what the flow is.
    pub fn set_flow_hash(&mut self, flow_hash: u32) {
        self.lease.set_flow_hash(flow_hash);
    }

    /// The route the packet travels: one version of a service chain. Packets of one route go
    /// through the same services; a chain that is changed gets a route of another number, and
    /// numbers are used again. To tell packets apart while they are here, not to be stored.
    #[must_use]
    #[inline]
    pub fn route(&self) -> RouteId {
        self.lease.descriptor().route
    }

    /// This NF's position in the packet's route, from 0: an NF whose service stands in a chain
    /// twice sees by it which visit this is.
    #[must_use]
    #[inline]
    pub fn hop(&self) -> u8 {
        self.lease.descriptor().hop
    }

    /// The packet's name, by which it can be found again after [`Action::Hold`](crate::Action).
    #[must_use]
    #[inline]
    pub fn id(&self) -> PacketId {
        PacketId { arrival: self.arrival, buffer: self.lease.buffer() }
    }
}

/// A buffer that does not exist has no bytes; one that can be read only has none to change.
#[cold]
fn no_bytes(memory: &PacketMemory) -> &'static mut [u8] {
    assert!(
        memory.is_writable(),
        "this NF changes packets, and its service's access is \"read-only\": remove `access` from the \
         service, or let the NF only look"
    );
    Default::default()
}

impl fmt::Debug for Packet<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packet")
            .field("id", &self.id())
            .field("ingress_port", &self.ingress_port())
            .field("len_bytes", &self.len())
            .field("headroom_bytes", &self.headroom_bytes())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::shm::{HugePages, Region, RegionGeometry};

    const STRIDE: usize = 1024;

    fn region() -> Arc<Region> {
        let geometry =
            RegionGeometry { buffers: 3, stride_bytes: STRIDE as u32, headroom_bytes: 128 };
        Arc::new(Region::create(geometry, HugePages::Off).unwrap())
    }

    fn slot(memory: &PacketMemory, offset: u16, len: u16) -> Slot {
        let place =
            Delivery { buffer: 1, offset_bytes: offset, len_bytes: len, ..Delivery::default() };
        let lease = memory.lease(Delivery { port: 4, route: 2, flow_hash: 9, ..place }).unwrap();
        Slot { lease, arrival: 1 }
    }

    #[test]
    fn a_header_pushed_lies_before_the_packet_and_pops_off_again() {
        let memory = PacketMemory::new(region());
        let mut slot = slot(&memory, 128, 4);
        let mut packet = slot.view(&memory);
        packet.bytes_mut().copy_from_slice(b"data");
        packet.push_front(3).unwrap().copy_from_slice(b"hdr");
        assert_eq!(packet.bytes(), b"hdrdata");
        assert_eq!(packet.headroom_bytes(), 125);
        assert_eq!(packet.pop_front(3).unwrap(), b"hdr");
        packet.push_back(2).unwrap().copy_from_slice(b"!!");
        assert_eq!(packet.bytes(), b"data!!");
        packet.trim_back(5).unwrap();
        assert_eq!(packet.bytes(), b"d");
    }

    #[test]
    fn pushing_beyond_the_headroom_is_an_error_and_leaves_the_previous_buffer_alone() {
        let region = region();
        let memory = PacketMemory::new(region.clone());
        let mut slot = slot(&memory, 16, 4);
        let mut packet = slot.view(&memory);
        let error = PacketError::NoHeadroom { wanted_bytes: 17, free_bytes: 16 };
        assert_eq!(packet.push_front(17), Err(error));
        assert_eq!(
            packet.push_front(65_536 + 1).map(|b| b.len()),
            Err(PacketError::NoHeadroom { wanted_bytes: 65_537, free_bytes: 16 })
        );
        assert_eq!((packet.headroom_bytes(), packet.len()), (16, 4));
        packet.push_front(16).unwrap().fill(0xff);
        let mut before = [0; STRIDE];
        assert!(region.read(0, 0, &mut before));
        assert_eq!(before, [0; STRIDE]);
    }

    #[test]
    fn a_packet_that_can_be_read_only_is_read_and_every_change_is_an_error() {
        let region = region();
        assert!(region.write(1, 128, b"data"));
        let fd = region.read_only_fd().unwrap();
        let theirs = Region::from_fd_read_only(fd, *region.geometry()).unwrap();
        let memory = PacketMemory::new(Arc::new(theirs));
        let mut slot = slot(&memory, 128, 4);
        let mut packet = slot.view(&memory);
        assert!(packet.is_read_only() && packet.bytes() == b"data");
        assert_eq!(packet.push_front(1), Err(PacketError::ReadOnly));
        assert_eq!(packet.push_back(1), Err(PacketError::ReadOnly));
        assert_eq!(packet.pop_front(1), Err(PacketError::ReadOnly));
        assert_eq!(packet.trim_back(1), Err(PacketError::ReadOnly));
        assert_eq!((packet.headroom_bytes(), packet.len()), (128, 4));
    }

    #[test]
    #[should_panic(expected = "its service's access is \"read-only\"")]
    fn bytes_to_change_of_a_packet_that_can_be_read_only_end_the_nf_with_one_clear_line() {
        let region = region();
        let fd = region.read_only_fd().unwrap();
        let theirs = Region::from_fd_read_only(fd, *region.geometry()).unwrap();
        let memory = PacketMemory::new(Arc::new(theirs));
        let _ = slot(&memory, 128, 4).view(&memory).bytes_mut();
    }

    #[test]
    fn removing_more_than_there_is_is_an_error() {
        let memory = PacketMemory::new(region());
        let mut slot = slot(&memory, 128, 4);
        let mut packet = slot.view(&memory);
        let error = PacketError::TooShort { wanted_bytes: 5, len_bytes: 4 };
        assert_eq!(packet.pop_front(5), Err(error));
        assert_eq!(packet.trim_back(5), Err(error));
        assert_eq!(packet.len(), 4);
    }

    proptest! {
        #[test]
        fn any_sequence_of_pushes_and_pops_stays_in_the_buffer(
            steps in proptest::collection::vec((0u8..4, 0usize..400), 0..60)
        ) {
            let memory = PacketMemory::new(region());
            let mut slot = slot(&memory, 300, 300);
            let mut packet = slot.view(&memory);
            let mut model: (usize, usize) = (300, 600); // first byte, one past the last
            for (kind, n) in steps {
                let (from, to) = model;
                let done = match kind {
                    0 => packet.push_front(n).map(|b| b.len()).map(|_| (from - n, to)),
                    1 => packet.pop_front(n).map(<[u8]>::len).map(|_| (from + n, to)),
                    2 => packet.push_back(n).map(|b| b.len()).map(|_| (from, to + n)),
                    _ => packet.trim_back(n).map(|()| (from, to - n)),
                };
                let fits = match kind {
                    0 => n <= from,
                    2 => to + n <= STRIDE,
                    _ => n <= to - from,
                };
                prop_assert_eq!(done.is_ok(), fits);
                model = done.unwrap_or(model);
                prop_assert_eq!(packet.headroom_bytes(), model.0);
                prop_assert_eq!(packet.bytes().len(), model.1 - model.0);
                prop_assert_eq!(packet.tailroom_bytes(), STRIDE - model.1);
            }
        }
    }
}
