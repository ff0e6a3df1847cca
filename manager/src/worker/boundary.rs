//! The boundary of an isolated NF: a packet region of its own.
//!
//! ```text
//!   packet region (ports, trusted domain)      region of one isolated NF
//!   ├─ buffer 5 ─┤  ── deliver: copied out ──►  ├─ buffer 5 ─┤
//!   ├─ buffer 5 ─┤  ◄── accept: copied in ────  ├─ buffer 5 ─┤
//! ```
//! A packet has the same number and the same range on both sides, so nothing but its bytes is
//! translated. The NF maps only its own region: it can neither read nor alter a packet that it was not
//! given, and what it writes after it gave one back reaches nobody. Its region lies on ordinary pages
//! that come when they are first touched; whoever takes them out again, the next access finds zeros and
//! no SIGBUS, since the file is sealed against shrinking.
#![forbid(unsafe_code)]

use super::*;

impl NfEdge {
    /// Copies the bytes of a packet to where the NF sees them.
    #[inline]
    pub(super) fn copy_out(&self, pool: &BufferPool, packet: &PortPacket) {
        if let Some(own) = &self.own_region {
            let PortPacket { buffer, offset_bytes, len_bytes, .. } = *packet;
            // The range was checked when the packet came in, and both regions are cut alike.
            let _ = pool.region().copy_to(own, buffer, offset_bytes, len_bytes);
        }
    }

    /// Copies the bytes of a packet that the NF has given back, whose range was checked.
    #[inline]
    pub(super) fn copy_in(&self, pool: &BufferPool, packet: &PortPacket) {
        if let Some(own) = &self.own_region {
            let PortPacket { buffer, offset_bytes, len_bytes, .. } = *packet;
            let _ = own.copy_to(pool.region(), buffer, offset_bytes, len_bytes);
        }
    }
}
