//! Transport checksums that the sender left for hardware to fill in.
//!
//! Linux does not compute the checksum of a TCP or UDP packet that it sends into a veth, tap or
//! virtio device: it writes the folded sum of the pseudo-header into the field ("partial") and
//! expects the last device to add the rest. A packet taken out of the kernel by XDP or by a raw
//! socket carries that half-made value, and every receiver would drop it. [`complete_partial`] adds
//! the rest.
//!
//! It is done where packets come **in**, so that NFs see valid packets and may update a checksum
//! incrementally (RFC 1624), and because there the payload is still warm from the kernel's copy.
//! A packet whose checksum is complete costs the parse of its headers only.
//!
//! The mark for "partial" is that the field equals the pseudo-header's sum. One valid packet in
//! 65,536 has that value by chance; computing the checksum afresh then gives the value it has
//! already. A packet that was damaged *and* has that value by chance gets a checksum that hides the
//! damage: once in 65,536 damaged packets, on devices without a wire that could damage them.
//!
//! Not covered: SCTP's CRC, and the inner packet of a tunnel whose device leaves the inner checksum
//! open. For those, `ethtool -K <device> tx off` at the sender.
#![allow(unsafe_code)]

use std::sync::atomic::AtomicU8;

use nflib::shm::{BufferIndex, Region, prefetch};

/// Headers are looked at within this many bytes of the frame's start: Ethernet 14, two VLAN tags 8,
/// IPv4 with options 60 or IPv6 with extensions, and the transport header up to its checksum. A
/// fixed number, so that the copy is a few vector moves and no call.
const WINDOW_BYTES: usize = 128;

/// All that is looked at of an untagged IPv4 packet without options lies in so many bytes: in one cache
/// line, most often.
const GLANCE_BYTES: usize = 64;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: [u16; 2] = [0x8100, 0x88a8];
const TCP: u8 = 6;
const UDP: u8 = 17;

/// The transport part of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Transport {
    /// First byte, from the frame's start.
    start: usize,
    /// Bytes by the IP header's length, so without Ethernet padding.
    len: usize,
    /// Where its checksum is, from the frame's start.
    checksum_at: usize,
    protocol: u8,
    /// Folded sum of the pseudo-header.
    pseudo_sum: u16,
}

/// Asks for the first cache line of a frame, which will be read soon. A range outside the region is
/// left alone.
#[inline]
pub fn prefetch_headers(region: &Region, index: BufferIndex, offset_bytes: u16) {
    if !region.geometry().contains(index, offset_bytes, 1) {
        return;
    }
    if let Some(at) = region.ptr(index, offset_bytes) {
        // SAFETY: `contains` says the byte is inside the region, which outlives the call; an atomic
        // may be written meanwhile.
        prefetch(unsafe { at.cast::<AtomicU8>().as_ref() });
    }
}

/// Completes the TCP or UDP checksum of a frame in place when it is partial; returns whether it was.
///
/// `offset_bytes..offset_bytes + len_bytes` is the frame, from its Ethernet header, in the buffer
/// `index`; a range outside the buffer is left alone. Nobody else may be writing the frame.
pub fn complete_partial(
    region: &Region,
    index: BufferIndex,
    offset_bytes: u16,
    len_bytes: u16,
) -> bool {
    let frame_len = usize::from(len_bytes);
    if !region.geometry().contains(index, offset_bytes, len_bytes) {
        return false;
    }
    if head(region, index, offset_bytes).is_some_and(|head| is_complete_at_a_glance(&head)) {
        return false;
    }
    let mut window = [0u8; WINDOW_BYTES];
    let in_frame = frame_len.min(WINDOW_BYTES);
    // Most often the buffer goes on for a whole window; what lies behind the frame is not looked at.
    let copied = region.read(index, offset_bytes, &mut window)
        || region.read(index, offset_bytes, &mut window[..in_frame]);
    if !copied {
        return false;
    }
    let window = &window[..in_frame];
    let Some(part) = transport(window, frame_len) else { return false };
    let field = [window[part.checksum_at], window[part.checksum_at + 1]];
    if u16::from_ne_bytes(field) != part.pseudo_sum {
        return false;
    }
    // `start` lies within the window, so both fit in 16 bits.
    let Some(bytes) = region.ptr(index, offset_bytes + part.start as u16) else { return false };
    // SAFETY: `transport` saw to it that start + len ≤ frame_len, and the frame is in the buffer.
    let sum = unsafe { sum_at(bytes.as_ptr(), part.len) };
    let checksum = match !fold(sum) {
        // RFC 768: zero means "no checksum"; its other form is sent instead.
        0 if part.protocol == UDP => u16::MAX,
        value => value,
    };
    region.write(index, offset_bytes + part.checksum_at as u16, &checksum.to_ne_bytes())
}

/// The first bytes of a frame, and what lies behind it in the buffer if it is shorter.
#[inline]
fn head(region: &Region, index: BufferIndex, offset_bytes: u16) -> Option<[u8; GLANCE_BYTES]> {
    if !region.geometry().contains(index, offset_bytes, GLANCE_BYTES as u16) {
        return None;
    }
    let from = region.ptr(index, offset_bytes)?;
    let mut head = [0; GLANCE_BYTES];
    // SAFETY: `contains` says that so many bytes are inside the buffer; `head` is private memory.
    unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), head.as_mut_ptr(), GLANCE_BYTES) };
    Some(head)
}

/// Whether a frame is an untagged IPv4 packet without options, of TCP or UDP, whose checksum field is
/// not the pseudo-header's sum. Nearly every packet is, and need not be looked at any longer; false
/// says nothing.
#[inline]
fn is_complete_at_a_glance(head: &[u8; GLANCE_BYTES]) -> bool {
    let checksum_at = match (&head[12..15], head[23]) {
        ([0x08, 0x00, 0x45], TCP) => 14 + 20 + 16,
        ([0x08, 0x00, 0x45], UDP) => 14 + 20 + 6,
        _ => return false,
    };
    let half = |at: usize| u16::from_ne_bytes([head[at], head[at + 1]]);
    let addresses = (26..34).step_by(2).map(|at| u64::from(half(at))).sum::<u64>();
    let len = u16::from_be_bytes([head[16], head[17]]).wrapping_sub(20);
    let protocol = u16::from_ne_bytes([0, head[23]]);
    let pseudo_sum = fold(addresses + u64::from(len.to_be()) + u64::from(protocol));
    pseudo_sum != half(checksum_at)
}

/// The one's complement sum of `bytes` in 16-bit words (RFC 1071), folded, not inverted, in the
/// order of memory: its `to_ne_bytes` are what goes on the wire.
#[must_use]
pub fn ones_complement_sum(bytes: &[u8]) -> u16 {
    // SAFETY: pointer and length are those of the slice.
    fold(unsafe { sum_at(bytes.as_ptr(), bytes.len()) })
}

/// Sums memory in 32-bit halves of 64-bit words, four words a turn, carries folded later: RFC 1071
/// §2 allows any order and width. 2^32 halves fit before the sum could overflow.
///
/// # Safety
/// `bytes` is valid for reads of `len` bytes.
unsafe fn sum_at(bytes: *const u8, len: usize) -> u64 {
    const LOW: u64 = 0xffff_ffff;
    // SAFETY: every call below has `at + 8 <= len`.
    let word = |at: usize| unsafe { bytes.add(at).cast::<u64>().read_unaligned() };
    let mut lanes = [0u64; 4];
    let mut at = 0;
    while at + 32 <= len {
        for (n, lane) in lanes.iter_mut().enumerate() {
            let value = word(at + 8 * n);
            *lane += (value & LOW) + (value >> 32);
        }
        at += 32;
    }
    let mut sum: u64 = lanes.iter().sum();
    while at + 8 <= len {
        let value = word(at);
        sum += (value & LOW) + (value >> 32);
        at += 8;
    }
    let mut tail = [0u8; 8];
    // SAFETY: the rest, under 8 bytes, goes to private memory; a missing byte counts as zero.
    unsafe { std::ptr::copy_nonoverlapping(bytes.add(at), tail.as_mut_ptr(), len - at) };
    let value = u64::from_ne_bytes(tail);
    sum + (value & LOW) + (value >> 32)
}

/// Folds a sum to 16 bits, carries added back in.
fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Finds the transport header of an unfragmented IPv4 or IPv6 packet behind up to two VLAN tags.
fn transport(window: &[u8], frame_len: usize) -> Option<Transport> {
    let mut at = 12;
    let mut ethertype = be16(window, at)?;
    for _ in 0..2 {
        if ETHERTYPE_VLAN.contains(&ethertype) {
            at += 4;
            ethertype = be16(window, at)?;
        }
    }
    let ip = at + 2;
    let (start, end, protocol, addresses) = match ethertype {
        ETHERTYPE_IPV4 => ipv4(window, ip)?,
        ETHERTYPE_IPV6 => ipv6(window, ip)?,
        _ => return None,
    };
    let checksum_at = start + if protocol == TCP { 16 } else { 6 };
    let len = end.checked_sub(start)?;
    let header_bytes = if protocol == TCP { 20 } else { 8 };
    if end > frame_len || checksum_at + 2 > window.len() || len < header_bytes {
        return None;
    }
    let mut rest = [0u8; 8];
    rest[..4].copy_from_slice(&u32::try_from(len).ok()?.to_be_bytes());
    rest[7] = protocol;
    let sum = u64::from(ones_complement_sum(addresses)) + u64::from(ones_complement_sum(&rest));
    Some(Transport { start, len, checksum_at, protocol, pseudo_sum: fold(sum) })
}

/// Start and end of the payload, its protocol, and the addresses of the pseudo-header.
type Payload<'a> = (usize, usize, u8, &'a [u8]);

/// RFC 791 §3.1.
fn ipv4(window: &[u8], ip: usize) -> Option<Payload<'_>> {
    let header = window.get(ip..ip + 20)?;
    let header_bytes = usize::from(header[0] & 0x0f) * 4;
    let fragment = be16(header, 6)? & 0x3fff;
    let protocol = header[9];
    if header[0] >> 4 != 4 || header_bytes < 20 || fragment != 0 || ![TCP, UDP].contains(&protocol)
    {
        return None;
    }
    let end = ip + usize::from(be16(header, 2)?);
    Some((ip + header_bytes, end, protocol, &header[12..20]))
}

/// RFC 8200 §3 and §4: hop-by-hop and destination options are skipped; with a routing or fragment
/// header the checksum is complete or not ours to know.
fn ipv6(window: &[u8], ip: usize) -> Option<Payload<'_>> {
    const HOP_BY_HOP: u8 = 0;
    const DESTINATION: u8 = 60;
    let header = window.get(ip..ip + 40)?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let end = ip + 40 + usize::from(be16(header, 4)?);
    let (mut next, mut at) = (header[6], ip + 40);
    while next == HOP_BY_HOP || next == DESTINATION {
        let option = window.get(at..at + 2)?;
        next = option[0];
        at += (usize::from(option[1]) + 1) * 8;
    }
    [TCP, UDP].contains(&next).then_some((at, end, next, &header[8..40]))
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nflib::shm::{HugePages, RegionGeometry};
    use nflib::testing::FrameBuilder;
    use proptest::prelude::*;
    use std::net::IpAddr;

    /// RFC 1071 as it is written: one word after the other, big-endian.
    fn naive_sum(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    fn region() -> Region {
        let geometry = RegionGeometry { buffers: 2, stride_bytes: 4096, headroom_bytes: 256 };
        Region::create(geometry, HugePages::Off).unwrap()
    }

    struct Frame {
        bytes: Vec<u8>,
        start: usize,
        end: usize,
        checksum_at: usize,
        pseudo: Vec<u8>,
    }

    impl Frame {
        /// A frame without its transport checksum, and 5 bytes of Ethernet padding behind.
        fn new(v6: bool, protocol: u8, vlans: usize, addresses: [u8; 32], payload: &[u8]) -> Self {
            let mut bytes = vec![2; 12];
            for _ in 0..vlans {
                bytes.extend([0x81, 0x00, 0x00, 0x07]);
            }
            let header = if protocol == TCP { 20 } else { 8 };
            let len = header + payload.len();
            let addresses = if v6 {
                bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                bytes.extend((len as u16 + 8).to_be_bytes());
                bytes.extend([60, 64]);
                bytes.extend(addresses);
                bytes.extend([protocol, 0, 1, 4, 0, 0, 0, 0]);
                &addresses[..]
            } else {
                bytes.extend([0x08, 0x00, 0x46, 0]);
                bytes.extend((len as u16 + 24).to_be_bytes());
                bytes.extend([0, 1, 0x40, 0, 64, protocol, 0, 0]);
                bytes.extend(&addresses[..8]);
                bytes.extend([1, 1, 1, 0]);
                &addresses[..8]
            };
            let start = bytes.len();
            bytes.extend((0..header as u8).map(|n| n.wrapping_mul(37)));
            bytes.extend(payload);
            let end = bytes.len();
            bytes.extend([0xee; 5]);
            let mut pseudo = addresses.to_vec();
            pseudo.extend((len as u32).to_be_bytes());
            pseudo.extend([0, 0, 0, protocol]);
            let checksum_at = start + if protocol == TCP { 16 } else { 6 };
            Self { bytes, start, end, checksum_at, pseudo }
        }

        fn set_checksum(&mut self, value: u16) {
            self.bytes[self.checksum_at..self.checksum_at + 2]
                .copy_from_slice(&value.to_be_bytes());
        }

        /// The sum over pseudo-header and segment: all ones when the checksum is right.
        fn verify(&self, bytes: &[u8]) -> u16 {
            let mut all = self.pseudo.clone();
            all.extend(&bytes[self.start..self.end]);
            naive_sum(&all)
        }

        fn complete(&self, region: &Region, offset: u16) -> (bool, Vec<u8>) {
            assert!(region.write(1, offset, &self.bytes));
            let done = complete_partial(region, 1, offset, self.bytes.len() as u16);
            let mut after = vec![0; self.bytes.len()];
            assert!(region.read(1, offset, &mut after));
            (done, after)
        }
    }

    proptest! {
        #[test]
        fn the_fast_sum_agrees_with_the_naive_one(
            bytes in prop::collection::vec(any::<u8>(), 0..300), skip in 0usize..8,
        ) {
            let bytes = bytes.get(skip..).unwrap_or(&[]);
            let fast = u16::from_be_bytes(ones_complement_sum(bytes).to_ne_bytes());
            prop_assert_eq!(fast, naive_sum(bytes));
        }

        #[test]
        fn a_partial_checksum_becomes_right_and_nothing_else_changes(
            v6: bool, tcp: bool, vlans in 0usize..=2, offset in 0u16..600,
            addresses: [u8; 32], payload in prop::collection::vec(any::<u8>(), 0..1500),
        ) {
            let protocol = if tcp { TCP } else { UDP };
            let mut frame = Frame::new(v6, protocol, vlans, addresses, &payload);
            frame.set_checksum(naive_sum(&frame.pseudo));
            let (done, after) = frame.complete(&region(), offset);
            prop_assert!(done);
            prop_assert_eq!(frame.verify(&after), 0xffff);
            let at = frame.checksum_at;
            prop_assert_eq!(&after[..at], &frame.bytes[..at]);
            prop_assert_eq!(&after[at + 2..], &frame.bytes[at + 2..]);
        }

        #[test]
        fn a_complete_checksum_is_left_alone(v6: bool, tcp: bool, payload in prop::collection::vec(any::<u8>(), 1..200)) {
            let protocol = if tcp { TCP } else { UDP };
            let mut frame = Frame::new(v6, protocol, 0, [9; 32], &payload);
            frame.set_checksum(0);
            let right = !frame.verify(&frame.bytes);
            frame.set_checksum(right);
            prop_assume!(right != naive_sum(&frame.pseudo));
            let (done, after) = frame.complete(&region(), 256);
            prop_assert!(!done);
            prop_assert_eq!(after, frame.bytes);
        }

        #[test]
        fn a_plain_ipv4_packet_gets_the_checksum_that_its_sender_left_out(
            tcp: bool, src: [u8; 4], dst: [u8; 4], ports: (u16, u16), offset in 0u16..600,
            payload in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let frame = FrameBuilder::new().ip(IpAddr::from(src), IpAddr::from(dst));
            let frame = match tcp {
                true => frame.tcp(ports.0, ports.1, 0x10),
                false => frame.udp(ports.0, ports.1),
            };
            let whole = frame.payload(&payload).build();
            let (checksum_at, protocol) = if tcp { (50, TCP) } else { (40, UDP) };
            let mut pseudo = [src, dst].concat();
            pseudo.extend([0, protocol]);
            pseudo.extend((whole.len() as u16 - 34).to_be_bytes());
            let mut partial = whole.clone();
            partial[checksum_at..checksum_at + 2].copy_from_slice(&naive_sum(&pseudo).to_be_bytes());
            let region = region();
            for (sent, is_partial) in [(&partial, true), (&whole, whole == partial)] {
                prop_assert!(region.write(1, offset, sent));
                let done = complete_partial(&region, 1, offset, sent.len() as u16);
                prop_assert_eq!(done, is_partial);
                let mut after = vec![0; whole.len()];
                prop_assert!(region.read(1, offset, &mut after));
                prop_assert_eq!(&after, &whole);
            }
        }

        #[test]
        fn any_bytes_are_looked_at_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), ethertype in 0usize..4) {
            let mut bytes = bytes;
            if bytes.len() > 14 {
                let kind = [ETHERTYPE_IPV4, ETHERTYPE_IPV6, 0x8100, 0x1234][ethertype];
                bytes[12..14].copy_from_slice(&kind.to_be_bytes());
                bytes[14] = if ethertype == 0 { 0x45 } else { 0x60 };
            }
            let region = region();
            assert!(region.write(0, 4096 - bytes.len() as u16, &bytes));
            complete_partial(&region, 0, 4096 - bytes.len() as u16, bytes.len() as u16);
        }
    }

    #[test]
    fn a_valid_packet_that_looks_partial_keeps_its_value() {
        // Choose the last payload word so that the right checksum is the pseudo-header's own sum.
        let mut frame = Frame::new(false, TCP, 0, [3; 32], &[0; 40]);
        let pseudo = naive_sum(&frame.pseudo);
        frame.set_checksum(pseudo);
        let missing = !frame.verify(&frame.bytes);
        let end = frame.end;
        frame.bytes[end - 2..end].copy_from_slice(&missing.to_be_bytes());
        assert_eq!(frame.verify(&frame.bytes), 0xffff, "the packet is valid");
        // Its field is then summed twice over: once as the mark, so the value must come out anew.
        let (done, after) = frame.complete(&region(), 256);
        assert!(done);
        assert_eq!(frame.verify(&after), 0xffff, "and is still");
    }

    #[test]
    fn a_udp_checksum_that_comes_out_zero_is_sent_as_all_ones() {
        let mut frame = Frame::new(false, UDP, 0, [3; 32], &[0; 4]);
        frame.set_checksum(naive_sum(&frame.pseudo));
        let missing = !frame.verify_with_field_only();
        let end = frame.end;
        frame.bytes[end - 2..end].copy_from_slice(&missing.to_be_bytes());
        let (done, after) = frame.complete(&region(), 256);
        assert!(done);
        assert_eq!(after[frame.checksum_at..frame.checksum_at + 2], [0xff, 0xff]);
    }

    #[test]
    fn fragments_other_protocols_and_cut_frames_are_left_alone() {
        let region = region();
        let whole = || {
            let mut frame = Frame::new(false, UDP, 0, [3; 32], &[1; 64]);
            frame.set_checksum(naive_sum(&frame.pseudo));
            frame
        };
        let mut fragment = whole();
        fragment.bytes[20] |= 0x20;
        assert!(!fragment.complete(&region, 0).0, "more fragments follow");
        let mut icmp = whole();
        icmp.bytes[23] = 1;
        assert!(!icmp.complete(&region, 0).0);
        let mut cut = whole();
        cut.bytes.truncate(60);
        assert!(!cut.complete(&region, 0).0, "shorter than its IP length");
        assert!(!complete_partial(&region, 9, 0, 60), "no such buffer");
        assert!(!complete_partial(&region, 0, 4090, 60), "leaves the buffer");
    }

    impl Frame {
        /// The sum over the segment alone, whose field holds the pseudo-header's sum.
        fn verify_with_field_only(&self) -> u16 {
            naive_sum(&self.bytes[self.start..self.end])
        }
    }
}
