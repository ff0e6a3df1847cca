//! From one 16-byte form of a packet to another, by the burst.
//!
//! A packet at a port, one delivered to an NF and one that comes back have buffer, range and flow hash
//! at the same places, so that going from one to the other is one wide move, or none. Written field
//! by field it is five times the instructions: the compiler does not put them together.
#![allow(unsafe_code)]

use std::mem::offset_of;

use nflib::descriptor::{Delivery, PortId, Returned, RouteId};

use super::PortPacket;

const TAIL_OFFSET_BYTES: usize = 12;

const _: () = {
    assert!(size_of::<PortPacket>() == 16 && align_of::<PortPacket>() == 16);
    assert!(size_of::<Delivery>() == 16 && align_of::<Delivery>() == 16);
    assert!(size_of::<Returned>() == 16 && align_of::<Returned>() == 16);
    assert!(offset_of!(PortPacket, buffer) == offset_of!(Delivery, buffer));
    assert!(offset_of!(PortPacket, offset_bytes) == offset_of!(Delivery, offset_bytes));
    assert!(offset_of!(PortPacket, len_bytes) == offset_of!(Delivery, len_bytes));
    assert!(offset_of!(PortPacket, flow_hash) == offset_of!(Delivery, flow_hash));
    assert!(offset_of!(Delivery, route) == TAIL_OFFSET_BYTES);
    assert!(offset_of!(Delivery, port) == TAIL_OFFSET_BYTES + 2);
    assert!(offset_of!(Delivery, hop) == TAIL_OFFSET_BYTES + 3);
    assert!(offset_of!(PortPacket, buffer) == offset_of!(Returned, buffer));
    assert!(offset_of!(PortPacket, offset_bytes) == offset_of!(Returned, offset_bytes));
    assert!(offset_of!(PortPacket, len_bytes) == offset_of!(Returned, len_bytes));
    assert!(offset_of!(PortPacket, flow_hash) == offset_of!(Returned, flow_hash));
};

/// Returned descriptors as packets.
#[must_use]
#[inline]
pub fn packets_of(returned: &[Returned]) -> &[PortPacket] {
    // SAFETY: both are 16 bytes, aligned to 16; the fields of a PortPacket are integers that lie
    // where a Returned has the same integers (asserted above), and the rest of it is padding, which
    // may hold anything. The slice has the same length and lives as long.
    unsafe { std::slice::from_raw_parts(returned.as_ptr().cast(), returned.len()) }
}

/// Appends `packets` to `out`, as delivered at one place.
#[inline]
pub fn deliver_to(
    out: &mut Vec<Delivery>,
    packets: &[PortPacket],
    route: RouteId,
    port: PortId,
    hop: u8,
) {
    let [low, high] = route.to_ne_bytes();
    let tail = u32::from_ne_bytes([low, high, port, hop]);
    out.reserve(packets.len());
    let room = out.spare_capacity_mut();
    for (to, packet) in room.iter_mut().zip(packets) {
        let to = to.as_mut_ptr();
        // SAFETY: `to` is room for one Delivery, aligned. The first 12 bytes come from a packet, whose
        // fields lie as a Delivery's do, and the last four are its route, port and hop in the order
        // asserted above; so it is initialised as a whole, whatever the packet's padding was.
        unsafe {
            to.cast::<PortPacket>().write(*packet);
            to.cast::<u32>().add(TAIL_OFFSET_BYTES / 4).write(tail);
        }
    }
    // SAFETY: `reserve` made room for all packets, so the loop above initialised as many.
    unsafe { out.set_len(out.len() + packets.len()) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_moves_agree_with_the_fields(
            (buffer, offset_bytes, len_bytes, flow_hash) in any::<(u32, u16, u16, u32)>(),
            (route, port, hop, action) in any::<(u16, u8, u8, u8)>(),
            count in 0_usize..5,
        ) {
            let returned = Returned {
                buffer, offset_bytes, len_bytes, flow_hash, target: route, hop, action,
            };
            let packet = PortPacket { buffer, offset_bytes, len_bytes, flow_hash };
            let delivery = Delivery {
                buffer, offset_bytes, len_bytes, flow_hash, route, port, hop,
            };
            prop_assert_eq!(PortPacket::from(&returned), packet);
            let returned = vec![returned; count];
            prop_assert_eq!(packets_of(&returned), &vec![packet; count][..]);
            let mut out = vec![Delivery::default()];
            deliver_to(&mut out, packets_of(&returned), route, port, hop);
            prop_assert_eq!(&out[1..], &vec![delivery; count][..]);
        }
    }
}
