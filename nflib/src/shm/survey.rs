//! One look at a whole burst of descriptors: whether all are in order, without a branch for each.
//!
//! The packets' fields are looked at together, as the eight 16-bit lanes that a descriptor is made of
//! (`descriptor.rs` has the layout), and only the largest values of the burst are compared with what
//! is allowed. That may find fault with a burst in which each packet is in order (one with a large
//! offset, another one with a great length); it never misses one that is not. So a burst that does
//! not pass is looked at packet by packet.

use super::RegionGeometry;
use crate::descriptor::Delivery;

/// What a burst looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Survey {
    /// Every packet lies inside a buffer that exists, and is not empty, so no loan either.
    pub(crate) in_order: bool,
    /// All packets are at the same hop of the same route.
    pub(crate) one_hop: bool,
}

/// Looks at a burst.
#[inline]
pub(crate) fn survey(packets: &[Delivery], geometry: &RegionGeometry) -> Survey {
    let Some(first) = packets.first() else { return Survey { in_order: true, one_hop: true } };
    let (most, differing) = extremes(packets, lanes(first));
    let [buffer_low, buffer_high, offset, len_less_1, ..] = most;
    let [.., other_route, other_hop] = differing;
    let highest_buffer = u32::from(buffer_high) << 16 | u32::from(buffer_low);
    let end = u32::from(offset) + u32::from(len_less_1) + 1;
    Survey {
        in_order: highest_buffer < geometry.buffers && end <= geometry.stride_bytes,
        one_hop: other_route == 0 && other_hop & 0xff00 == 0,
    }
}

type Lanes = [u16; 8];

#[inline]
fn lanes(packet: &Delivery) -> Lanes {
    const { assert!(size_of::<Delivery>() == size_of::<Lanes>()) };
    // SAFETY: a Delivery is 16 bytes of integers without padding (it is a `SlotValue`), and so are
    // the lanes.
    let lanes: Lanes = unsafe { std::mem::transmute_copy(packet) };
    lanes.map(u16::from_le)
}

/// The largest value of each lane, with the lengths counted down by one so that 0 is the largest; and
/// the bits in which any packet differs from `first`.
#[cfg(target_arch = "x86_64")]
#[inline]
fn extremes(packets: &[Delivery], first: Lanes) -> (Lanes, Lanes) {
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the CPU has AVX2.
        unsafe { extremes_avx2(packets, first) }
    } else {
        extremes_plainly(packets, first)
    }
}

/// Two packets at a time: a third of the instructions that the compiler makes of the plain one.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn extremes_avx2(packets: &[Delivery], first: Lanes) -> (Lanes, Lanes) {
    use std::arch::x86_64::{
        __m128i, __m256i, _mm_max_epu16, _mm_or_si128, _mm256_add_epi16,
        _mm256_broadcastsi128_si256, _mm256_castsi256_si128, _mm256_extracti128_si256,
        _mm256_max_epu16, _mm256_or_si256, _mm256_setr_epi16, _mm256_setzero_si256,
        _mm256_xor_si256,
    };
    let one_less_len = _mm256_setr_epi16(0, 0, 0, -1, 0, 0, 0, 0, 0, 0, 0, -1, 0, 0, 0, 0);
    // SAFETY: 16 bytes for 16, and any bits are a value of either type.
    let first =
        _mm256_broadcastsi128_si256(unsafe { std::mem::transmute::<Lanes, __m128i>(first) });
    let (mut most, mut differing) = (_mm256_setzero_si256(), _mm256_setzero_si256());
    let mut look = |packets: __m256i| {
        most = _mm256_max_epu16(most, _mm256_add_epi16(packets, one_less_len));
        differing = _mm256_or_si256(differing, _mm256_xor_si256(packets, first));
    };
    let (pairs, last) = packets.as_chunks::<2>();
    for pair in pairs {
        // SAFETY: two descriptors are 32 bytes without padding, and any bits are such a value.
        look(unsafe { std::mem::transmute_copy::<[Delivery; 2], __m256i>(pair) });
    }
    if let [last] = last {
        // SAFETY: as above, 16 bytes; the same packet fills both halves.
        let last = unsafe { std::mem::transmute_copy::<Delivery, __m128i>(last) };
        look(_mm256_broadcastsi128_si256(last));
    }
    let halves = |of| (_mm256_castsi256_si128(of), _mm256_extracti128_si256::<1>(of));
    let ((a, b), (c, d)) = (halves(most), halves(differing));
    // SAFETY: 16 bytes for 16 each.
    unsafe {
        (
            std::mem::transmute::<__m128i, Lanes>(_mm_max_epu16(a, b)),
            std::mem::transmute::<__m128i, Lanes>(_mm_or_si128(c, d)),
        )
    }
}

#[cfg(not(target_arch = "x86_64"))]
#[inline]
fn extremes(packets: &[Delivery], first: Lanes) -> (Lanes, Lanes) {
    extremes_plainly(packets, first)
}

fn extremes_plainly(packets: &[Delivery], first: Lanes) -> (Lanes, Lanes) {
    const LEN_LANE: usize = 3;
    let (mut most, mut differing) = ([0; 8], [0; 8]);
    for packet in packets {
        let packet = lanes(packet);
        for at in 0..8 {
            let counted = packet[at].wrapping_sub(u16::from(at == LEN_LANE));
            most[at] = counted.max(most[at]);
            differing[at] |= packet[at] ^ first[at];
        }
    }
    (most, differing)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GEOMETRY: RegionGeometry =
        RegionGeometry { buffers: 70_000, stride_bytes: 2048, headroom_bytes: 256 };

    fn packet() -> impl Strategy<Value = Delivery> {
        let buffer = prop_oneof![8 => 0u32..70_000, 1 => 69_998u32..70_003, 1 => any::<u32>()];
        let offset = prop_oneof![8 => Just(256u16), 1 => 0u16..2100, 1 => any::<u16>()];
        let len = prop_oneof![8 => 1u16..1793, 1 => Just(0u16), 1 => any::<u16>()];
        let of_route = prop_oneof![8 => Just(7u16), 1 => any::<u16>()];
        let hop = prop_oneof![8 => Just(2u8), 1 => any::<u8>()];
        (buffer, offset, len, any::<u32>(), of_route, any::<u8>(), hop).prop_map(
            |(buffer, offset_bytes, len_bytes, flow_hash, route, port, hop)| Delivery {
                buffer,
                offset_bytes,
                len_bytes,
                flow_hash,
                route,
                port,
                hop,
            },
        )
    }

    proptest! {
        #[test]
        fn no_fault_is_missed_and_hops_are_told_apart(
            packets in proptest::collection::vec(packet(), 1..65)
        ) {
            let survey = survey(&packets, &GEOMETRY);
            let fits = |p: &Delivery| {
                GEOMETRY.contains(p.buffer, p.offset_bytes, p.len_bytes) && p.len_bytes > 0
            };
            prop_assert!(!survey.in_order || packets.iter().all(fits));
            let place = |p: &Delivery| (p.route, p.hop);
            let one_hop = packets.iter().all(|p| place(p) == place(&packets[0]));
            prop_assert_eq!(survey.one_hop, one_hop);
            let first = lanes(&packets[0]);
            prop_assert_eq!(extremes(&packets, first), extremes_plainly(&packets, first));
        }
    }

    #[test]
    fn an_ordinary_burst_is_in_order() {
        let packet = |n: u16| Delivery {
            buffer: 69_999 - u32::from(n),
            offset_bytes: 256,
            len_bytes: 1 + 28 * n,
            ..Delivery::default()
        };
        let packets: Vec<_> = (0..64).map(packet).collect();
        assert_eq!(survey(&packets, &GEOMETRY), Survey { in_order: true, one_hop: true });
        assert_eq!(packets[63].len_bytes, 1765);
    }
}
