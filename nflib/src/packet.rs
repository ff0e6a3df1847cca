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

use crate::descriptor::{PortId, RouteId};
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
    /// `pop_front` or `trim_back` of more than there is.
    #[error("{wanted_bytes} bytes cannot be removed from a packet of {len_bytes} bytes")]
    TooShort {
        /// Asked for.
        wanted_bytes: usize,
        /// Length of the packet.
        len_bytes: usize,
    },
}

/// A packet that this process holds: the buffer's lease and where the packet lies in it.
///
/// Invariant: `offset + len ≤ stride`, kept by the constructor and by every method of [`Packet`].
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) lease: Lease,
    pub(crate) offset: u16,
    pub(crate) len: u16,
    pub(crate) port: PortId,
    /// The route it travels, and this NF's position in it.
    pub(crate) route: RouteId,
    pub(crate) hop: u8,
    pub(crate) flow_hash: u32,
    pub(crate) arrival: u64,
}

impl Slot {
    pub(crate) fn id(&self) -> PacketId {
        PacketId { arrival: self.arrival, buffer: self.lease.buffer() }
    }

    pub(crate) fn view<'a>(&'a mut self, memory: &'a PacketMemory) -> Packet<'a> {
        let id = self.id();
        Packet {
            buffer: memory.bytes_mut(&mut self.lease),
            offset: &mut self.offset,
            len: &mut self.len,
            port: self.port,
            route: self.route,
            hop: self.hop,
            flow_hash: &mut self.flow_hash,
            id,
        }
    }

    pub(crate) fn bytes<'a>(&'a self, memory: &'a PacketMemory) -> &'a [u8] {
        let from = usize::from(self.offset);
        let buffer = memory.bytes(&self.lease);
        buffer.get(from..from + usize::from(self.len)).unwrap_or_default()
    }
}

/// A view of one packet. The NF is its only holder while the view lives.
pub struct Packet<'a> {
    /// The whole buffer.
    buffer: &'a mut [u8],
    offset: &'a mut u16,
    len: &'a mut u16,
    flow_hash: &'a mut u32,
    port: PortId,
    route: RouteId,
    hop: u8,
    id: PacketId,
}

impl Packet<'_> {
    /// The frame, from its first byte (of the Ethernet header) to its last, without the frame
    /// check sequence.
    #[must_use]
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        let from = usize::from(*self.offset);
        self.buffer.get(from..from + usize::from(*self.len)).unwrap_or_default()
    }

    /// The frame, to change in place.
    #[must_use]
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let from = usize::from(*self.offset);
        self.buffer.get_mut(from..from + usize::from(*self.len)).unwrap_or_default()
    }

    /// Length of the frame in bytes.
    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        usize::from(*self.len)
    }

    /// True for a packet without any byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self.len == 0
    }

    /// Free bytes before the packet.
    #[must_use]
    pub fn headroom_bytes(&self) -> usize {
        usize::from(*self.offset)
    }

    /// Free bytes after the packet.
    #[must_use]
    pub fn tailroom_bytes(&self) -> usize {
        self.buffer.len() - usize::from(*self.offset) - self.len()
    }

    /// Makes the packet `n` bytes longer at its front and returns the new bytes, which hold
    /// whatever was there before: write them all.
    ///
    /// # Errors
    /// [`PacketError::NoHeadroom`]
    pub fn push_front(&mut self, n: usize) -> Result<&mut [u8], PacketError> {
        let free_bytes = self.headroom_bytes();
        let error = PacketError::NoHeadroom { wanted_bytes: n, free_bytes };
        let added = u16::try_from(n).ok().filter(|_| n <= free_bytes).ok_or(error)?;
        // offset + len ≤ stride ≤ u16::MAX, so the longer length fits.
        *self.offset -= added;
        *self.len += added;
        let from = usize::from(*self.offset);
        Ok(&mut self.buffer[from..from + n])
    }

    /// Removes the first `n` bytes and returns them; they stay readable until the next change.
    ///
    /// # Errors
    /// [`PacketError::TooShort`]
    pub fn pop_front(&mut self, n: usize) -> Result<&[u8], PacketError> {
        let removed = self.removable(n)?;
        let from = usize::from(*self.offset);
        *self.offset += removed;
        *self.len -= removed;
        Ok(&self.buffer[from..from + n])
    }

    /// Makes the packet `n` bytes longer at its end and returns the new bytes, which hold whatever
    /// was there before: write them all.
    ///
    /// # Errors
    /// [`PacketError::NoTailroom`]
    pub fn push_back(&mut self, n: usize) -> Result<&mut [u8], PacketError> {
        let free_bytes = self.tailroom_bytes();
        let error = PacketError::NoTailroom { wanted_bytes: n, free_bytes };
        let added = u16::try_from(n).ok().filter(|_| n <= free_bytes).ok_or(error)?;
        let from = usize::from(*self.offset) + self.len();
        *self.len += added;
        Ok(&mut self.buffer[from..from + n])
    }

    /// Removes the last `n` bytes.
    ///
    /// # Errors
    /// [`PacketError::TooShort`]
    pub fn trim_back(&mut self, n: usize) -> Result<(), PacketError> {
        *self.len -= self.removable(n)?;
        Ok(())
    }

    fn removable(&self, n: usize) -> Result<u16, PacketError> {
        u16::try_from(n)
            .ok()
            .filter(|n| n <= self.len)
            .ok_or(PacketError::TooShort { wanted_bytes: n, len_bytes: self.len() })
    }

    /// The port the packet came in by.
    #[must_use]
    #[inline]
    pub fn ingress_port(&self) -> PortId {
        self.port
    }

    /// The flow hash made at ingress: equal for all packets of one flow, 0 when none was made.
    #[must_use]
    #[inline]
    pub fn flow_hash(&self) -> u32 {
        *self.flow_hash
    }

    /// Replaces the flow hash, for an NF that changed what the flow is.
    pub fn set_flow_hash(&mut self, flow_hash: u32) {
        *self.flow_hash = flow_hash;
    }

    /// The route the packet travels: one version of a service chain. Packets of one route go
    /// through the same services; a chain that is changed gets a route of another number, and
    /// numbers are used again. To tell packets apart while they are here, not to be stored.
    #[must_use]
    #[inline]
    pub fn route(&self) -> RouteId {
        self.route
    }

    /// This NF's position in the packet's route, from 0: an NF whose service stands in a chain
    /// twice sees by it which visit this is.
    #[must_use]
    #[inline]
    pub fn hop(&self) -> u8 {
        self.hop
    }

    /// The packet's name, by which it can be found again after [`Action::Hold`](crate::Action).
    #[must_use]
    #[inline]
    pub fn id(&self) -> PacketId {
        self.id
    }
}

impl fmt::Debug for Packet<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packet")
            .field("id", &self.id)
            .field("ingress_port", &self.port)
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
        let lease = memory.lease(1, offset, len).unwrap();
        Slot { lease, offset, len, port: 4, route: 2, hop: 0, flow_hash: 9, arrival: 1 }
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
