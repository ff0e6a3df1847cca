//! What travels on a ring: 16-byte descriptors of a packet, by value.
//!
//! ```text
//!              63            48 47            32 31                             0
//! both     w0 │ len_bytes      │ offset_bytes   │ buffer                         │
//! Delivery w1 │ hop    │ port  │ route          │ flow_hash                      │
//! Returned w1 │ action │ hop   │ target         │ flow_hash                      │
//! ```
//! Little endian. The types below have this very layout, so that a burst is one copy.
//! A descriptor carries all that the next process needs to begin, so that reading a ring does not
//! lead to a second cache miss on some header of the buffer.
//!
//! What comes back from an NF names a buffer, a range, an action, and the hop at which the NF had it;
//! the route and the ingress port are kept in the manager's private table, where an NF cannot change
//! them, and the hop must be one at which the route visits the NF's service.
#![forbid(unsafe_code)]

use crate::shm::BufferIndex;

/// The kind of an NF; what a chain is made of.
pub type ServiceId = u16;
/// A port's number, in the order of the configuration.
pub type PortId = u8;
/// A service chain's number.
pub type ChainId = u16;
/// A route's number: one version of a chain, resolved to instances.
pub type RouteId = u16;

/// The ingress port of a *loan*, an empty buffer that an NF asked for, and of the packet that the NF
/// makes in it. No port has this number.
pub const NO_PORT: PortId = PortId::MAX;

/// A packet handed to an NF.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct Delivery {
    /// The buffer.
    pub buffer: BufferIndex,
    /// Where the packet starts in the buffer, bytes.
    pub offset_bytes: u16,
    /// Its length, bytes.
    pub len_bytes: u16,
    /// Flow hash of the NIC or of the manager; 0 when none was computed.
    pub flow_hash: u32,
    /// The route it travels.
    pub route: RouteId,
    /// The port it came in by.
    pub port: PortId,
    /// The receiver's position in the route.
    pub hop: u8,
}

impl Delivery {
    /// True for an empty buffer that is lent to the NF, to make a packet in.
    #[must_use]
    #[inline]
    pub fn is_loan(&self) -> bool {
        self.port == NO_PORT && self.len_bytes == 0
    }
}

/// What an NF decided, as a code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum ActionCode {
    /// Free the packet.
    #[default]
    Drop = 0,
    /// On to the chain's next service, or out at its end.
    Next = 1,
    /// To the service named by `target`.
    ToService = 2,
    /// Out by the port named by `target`.
    Out = 3,
    /// The ring to the next NF was full; free the packet. `target` is that NF's number.
    Refused = 4,
    /// To the start of the chain that the branch with id `target` of this chain names.
    Branch = 5,
}

impl ActionCode {
    /// The action behind a code read from another process; `None` for a code that means nothing.
    #[must_use]
    #[inline]
    pub fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Drop),
            1 => Some(Self::Next),
            2 => Some(Self::ToService),
            3 => Some(Self::Out),
            4 => Some(Self::Refused),
            5 => Some(Self::Branch),
            _ => None,
        }
    }
}

/// A packet that an NF gives back, with its decision. `Hold` never travels: a held packet simply
/// does not come back yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct Returned {
    /// The buffer; must be one the manager delivered to this NF.
    pub buffer: BufferIndex,
    /// Where the packet starts now, bytes.
    pub offset_bytes: u16,
    /// Its length now, bytes.
    pub len_bytes: u16,
    /// Flow hash, as delivered or as the NF changed it.
    pub flow_hash: u32,
    /// Service, port, NF or branch that the action names, else 0.
    pub target: u16,
    /// The sender's position in the route.
    pub hop: u8,
    /// An [`ActionCode`], unchecked.
    pub action: u8,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shm::{HeapRing, Producer, SlotValue};
    use proptest::prelude::*;

    /// The words of a descriptor, as a peer in another language reads them from a slot.
    fn words<T: SlotValue>(value: T) -> [u64; 2] {
        let ring = HeapRing::new(1, 0);
        assert_eq!(Producer::new(ring.clone()).push_burst(&[value]), Ok(1));
        ring.words(0)
    }

    proptest! {
        #[test]
        fn a_delivery_lies_in_its_slot_as_documented(
            buffer: u32, offset_bytes: u16, len_bytes: u16, flow_hash: u32, route: u16, port: u8, hop: u8,
        ) {
            let d = Delivery { buffer, offset_bytes, len_bytes, flow_hash, route, port, hop };
            let range = u64::from(buffer) | u64::from(offset_bytes) << 32 | u64::from(len_bytes) << 48;
            let rest = u64::from(flow_hash)
                | u64::from(route) << 32 | u64::from(port) << 48 | u64::from(hop) << 56;
            prop_assert_eq!(words(d), [range, rest]);
        }

        #[test]
        fn a_returned_packet_lies_in_its_slot_as_documented(
            buffer: u32, offset_bytes: u16, len_bytes: u16, flow_hash: u32, target: u16, hop: u8, action: u8,
        ) {
            let r = Returned {
                buffer, offset_bytes, len_bytes, flow_hash, target, hop, action,
            };
            let range = u64::from(buffer) | u64::from(offset_bytes) << 32 | u64::from(len_bytes) << 48;
            let rest = u64::from(flow_hash)
                | u64::from(target) << 32 | u64::from(hop) << 48 | u64::from(action) << 56;
            prop_assert_eq!(words(r), [range, rest]);
        }
    }

    #[test]
    fn only_the_six_codes_are_actions() {
        let known = (0..=u8::MAX).filter(|&c| ActionCode::from_code(c).is_some()).count();
        assert_eq!(known, 6);
        let all = [
            ActionCode::Drop,
            ActionCode::Next,
            ActionCode::ToService,
            ActionCode::Out,
            ActionCode::Refused,
            ActionCode::Branch,
        ];
        for action in all {
            assert_eq!(ActionCode::from_code(action as u8), Some(action));
        }
    }
}
