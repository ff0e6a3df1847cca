//! The frame that the generator makes and the sink can check.
//!
//! Ethernet, IPv4 (RFC 791), UDP (RFC 768), then a stamp that tells which packet this is:
//!
//! ```text
//! 0 Ethernet 14 ─ IPv4 20 ─ 34 UDP 8 ─ 42 magic 4 ─ 46 flow 4 ─ 50 sequence 8 ─ 58 filler …
//! ```
//! All numbers are in network order. Flow `f` comes from 198.18.0.0 plus the low 16 bits of `f`,
//! transport port 1024 plus the bits above them, and goes to 198.19.0.1, port 9: the network set
//! aside for benchmarks (RFC 2544 appendix C.2.2) and the discard service.
#![forbid(unsafe_code)]

use nflib::shm::{BufferIndex, Region};

/// Shortest frame, bytes without the frame check sequence: Ethernet's own minimum.
pub const MIN_FRAME_BYTES: u16 = 60;
/// Most flows that differ in their 5-tuple.
pub const MAX_FLOWS: u32 = 1 << 24;
/// Source address of every frame.
pub const SOURCE_MAC: [u8; 6] = [0x02, 0x4d, 0x52, 0, 0, 1];
/// Destination address of every frame.
pub const DESTINATION_MAC: [u8; 6] = [0x02, 0x4d, 0x52, 0, 0, 2];

const MAGIC: [u8; 4] = *b"MRtf";
const IP_AT: usize = 14;
const IP_CHECKSUM_AT: usize = 24;
const IP_SOURCE_AT: usize = 26;
const UDP_AT: usize = 34;
const UDP_CHECKSUM_AT: usize = 40;
const MAGIC_AT: usize = 42;
const FLOW_AT: usize = 46;
const SEQUENCE_AT: usize = 50;
const STAMP_END: usize = 58;
/// One cache line holds everything that differs from frame to frame.
const HEAD_BYTES: usize = 64;
const UDP_PROTOCOL: u8 = 17;
const FIRST_SOURCE_PORT: u16 = 1024;
const DISCARD_PORT: u16 = 9;

/// Which packet a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The flow's number, from 0.
    pub flow: u32,
    /// The packet's place in its flow, from 0.
    pub sequence: u64,
}

/// Why a frame has no stamp to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Not a frame of the generator: other protocols, or another payload.
    Foreign,
    /// A length or a checksum is wrong.
    Corrupt,
}

/// A frame of one length, ready but for its flow and sequence, and its checksums so far.
///
/// Those fields are zero here. By RFC 1624 (equation 3, with `m` = 0) a checksum is then brought up
/// to date by adding the new words to the sum, without another look at the rest of the frame.
#[derive(Clone, Debug)]
pub struct Template {
    head: [u8; HEAD_BYTES],
    tail: Vec<u8>,
    len_bytes: u16,
    ip_sum: u32,
    udp_sum: u32,
}

impl Template {
    /// A template for frames of `len_bytes` (at least [`MIN_FRAME_BYTES`]), its filler from `rng`.
    #[must_use]
    pub fn new(len_bytes: u16, rng: &mut fastrand::Rng) -> Self {
        let len_bytes = len_bytes.max(MIN_FRAME_BYTES);
        let len = usize::from(len_bytes);
        let ip_len = len_bytes - 14;
        let udp_len = ip_len - 20;
        let mut frame = vec![0; len.max(HEAD_BYTES)];
        frame[..6].copy_from_slice(&DESTINATION_MAC);
        frame[6..12].copy_from_slice(&SOURCE_MAC);
        frame[12..14].copy_from_slice(&[0x08, 0x00]);
        frame[IP_AT..IP_AT + 2].copy_from_slice(&[0x45, 0]);
        frame[IP_AT + 2..IP_AT + 4].copy_from_slice(&ip_len.to_be_bytes());
        frame[IP_AT + 6] = 0x40; // do not fragment
        frame[IP_AT + 8..IP_AT + 10].copy_from_slice(&[64, UDP_PROTOCOL]);
        frame[IP_AT + 16..IP_AT + 20].copy_from_slice(&[198, 19, 0, 1]);
        frame[UDP_AT + 2..UDP_AT + 4].copy_from_slice(&DISCARD_PORT.to_be_bytes());
        frame[UDP_AT + 4..UDP_AT + 6].copy_from_slice(&udp_len.to_be_bytes());
        frame[MAGIC_AT..FLOW_AT].copy_from_slice(&MAGIC);
        rng.fill(&mut frame[STAMP_END..len]);
        let ip_sum = sum(0, &frame[IP_AT..UDP_AT]);
        let pseudo = sum(u32::from(UDP_PROTOCOL) + u32::from(udp_len), &frame[26..34]);
        let udp_sum = sum(pseudo, &frame[UDP_AT..len]);
        let mut head = [0; HEAD_BYTES];
        head.copy_from_slice(&frame[..HEAD_BYTES]);
        Self { head, tail: frame.split_off(HEAD_BYTES), len_bytes, ip_sum, udp_sum }
    }

    /// Length of the frame, bytes.
    #[must_use]
    #[inline]
    pub fn len_bytes(&self) -> u16 {
        self.len_bytes
    }

    /// Writes the frame with this stamp into a buffer. False when it does not fit there.
    #[must_use]
    #[inline]
    pub fn write(
        &self,
        region: &Region,
        buffer: BufferIndex,
        offset_bytes: u16,
        stamp: Stamp,
    ) -> bool {
        let head = self.stamped(stamp);
        let head_bytes = usize::from(self.len_bytes).min(HEAD_BYTES);
        if !region.write(buffer, offset_bytes, &head[..head_bytes]) {
            return false;
        }
        self.tail.is_empty()
            || offset_bytes
                .checked_add(HEAD_BYTES as u16)
                .is_some_and(|at| region.write(buffer, at, &self.tail))
    }

    #[inline]
    fn stamped(&self, stamp: Stamp) -> [u8; HEAD_BYTES] {
        let source = 0xc612_0000 | (stamp.flow & 0xffff);
        let port = u32::from(FIRST_SOURCE_PORT) + (stamp.flow >> 16);
        let source_sum = (source >> 16) + (source & 0xffff);
        let stamp_sum = words(u64::from(stamp.flow)) + words(stamp.sequence);
        let ip_checksum = !fold(self.ip_sum + source_sum);
        let udp_checksum = match !fold(self.udp_sum + source_sum + port + stamp_sum) {
            0 => 0xffff, // zero would mean "no checksum" (RFC 768)
            checksum => checksum,
        };
        let mut head = self.head;
        head[IP_CHECKSUM_AT..IP_SOURCE_AT].copy_from_slice(&ip_checksum.to_be_bytes());
        head[IP_SOURCE_AT..IP_SOURCE_AT + 4].copy_from_slice(&source.to_be_bytes());
        head[UDP_AT..UDP_AT + 2].copy_from_slice(&(port as u16).to_be_bytes());
        head[UDP_CHECKSUM_AT..MAGIC_AT].copy_from_slice(&udp_checksum.to_be_bytes());
        head[FLOW_AT..SEQUENCE_AT].copy_from_slice(&stamp.flow.to_be_bytes());
        head[SEQUENCE_AT..STAMP_END].copy_from_slice(&stamp.sequence.to_be_bytes());
        head
    }

    /// The whole frame with this stamp, for comparison.
    #[must_use]
    pub fn frame(&self, stamp: Stamp) -> Vec<u8> {
        let mut frame = self.stamped(stamp).to_vec();
        frame.extend_from_slice(&self.tail);
        frame.truncate(usize::from(self.len_bytes));
        frame
    }
}

/// Reads the stamp of a frame and checks both its checksums.
///
/// VLAN tags, a changed TTL, address or transport port and Ethernet padding are all right: what
/// lies between the generator and the sink may do that. Ethernet addresses are under no checksum.
///
/// # Errors
/// [`Flaw`] says whether it is somebody else's frame or a damaged one.
pub fn parse(frame: &[u8]) -> Result<Stamp, Flaw> {
    let ip = ipv4(frame).ok_or(Flaw::Foreign)?;
    let header_bytes = usize::from(ip[0] & 0x0f) * 4;
    let total_bytes = usize::from(be16(ip, 2));
    if ip[0] >> 4 != 4 || header_bytes < 20 || header_bytes > total_bytes || total_bytes > ip.len()
    {
        return Err(Flaw::Corrupt);
    }
    if fold(sum(0, &ip[..header_bytes])) != 0xffff {
        return Err(Flaw::Corrupt);
    }
    if ip[9] != UDP_PROTOCOL || be16(ip, 6) & 0x3fff != 0 {
        return Err(Flaw::Foreign);
    }
    let udp = &ip[header_bytes..total_bytes];
    if udp.len() < 8 || usize::from(be16(udp, 4)) != udp.len() {
        return Err(Flaw::Corrupt);
    }
    let pseudo = sum(u32::from(UDP_PROTOCOL) + udp.len() as u32, &ip[12..20]);
    if be16(udp, 6) != 0 && fold(sum(pseudo, udp)) != 0xffff {
        return Err(Flaw::Corrupt);
    }
    let (magic, stamp) = udp[8..].split_first_chunk::<4>().ok_or(Flaw::Foreign)?;
    if *magic != MAGIC || be16(udp, 6) == 0 {
        return Err(Flaw::Foreign);
    }
    let (flow, stamp) = stamp.split_first_chunk::<4>().ok_or(Flaw::Foreign)?;
    let sequence = stamp.first_chunk::<8>().ok_or(Flaw::Foreign)?;
    Ok(Stamp { flow: u32::from_be_bytes(*flow), sequence: u64::from_be_bytes(*sequence) })
}

/// What lies behind the Ethernet header and up to two VLAN tags (IEEE 802.1Q, 802.1ad), if IPv4.
fn ipv4(frame: &[u8]) -> Option<&[u8]> {
    let mut rest = frame.get(12..)?;
    for _ in 0..3 {
        let (ether_type, behind) = rest.split_first_chunk::<2>()?;
        match u16::from_be_bytes(*ether_type) {
            0x0800 => return (behind.len() >= 20).then_some(behind),
            0x8100 | 0x88a8 => rest = behind.get(2..)?,
            _ => return None,
        }
    }
    None
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Adds the 16-bit words of `bytes` to a one's complement sum that is not folded yet (RFC 1071).
fn sum(start: u32, bytes: &[u8]) -> u32 {
    let (pairs, odd) = bytes.as_chunks::<2>();
    let whole: u32 = pairs.iter().map(|&pair| u32::from(u16::from_be_bytes(pair))).sum();
    start + whole + odd.first().map_or(0, |&last| u32::from(last) << 8)
}

/// The sum of a number's four 16-bit words.
fn words(n: u64) -> u32 {
    ((n >> 48) + (n >> 32 & 0xffff) + (n >> 16 & 0xffff) + (n & 0xffff)) as u32
}

fn fold(sum: u32) -> u16 {
    let once = (sum >> 16) + (sum & 0xffff);
    ((once >> 16) + (once & 0xffff)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_stamped_frame_has_right_checksums_and_gives_its_stamp_back(
            len in MIN_FRAME_BYTES..9100,
            flow in 0..MAX_FLOWS,
            sequence: u64,
            seed: u64,
        ) {
            let template = Template::new(len, &mut fastrand::Rng::with_seed(seed));
            let stamp = Stamp { flow, sequence };
            let frame = template.frame(stamp);
            prop_assert_eq!(frame.len(), usize::from(len));
            prop_assert_eq!(parse(&frame), Ok(stamp));
        }

        #[test]
        fn one_wrong_bit_behind_the_ethernet_header_never_passes(
            len in MIN_FRAME_BYTES..600,
            sequence: u64,
            at: prop::sample::Index,
            bit in 0..8_u32,
        ) {
            let template = Template::new(len, &mut fastrand::Rng::with_seed(1));
            let mut frame = template.frame(Stamp { flow: 3, sequence });
            let at = 14 + at.index(frame.len() - 14);
            frame[at] ^= 1_u8 << bit;
            prop_assert!(parse(&frame).is_err());
        }

        #[test]
        fn arbitrary_bytes_are_refused_without_a_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            prop_assert!(parse(&bytes).is_err());
        }
    }

    #[test]
    fn a_tagged_and_padded_frame_still_gives_its_stamp() {
        let template = Template::new(60, &mut fastrand::Rng::with_seed(1));
        let stamp = Stamp { flow: 70_000, sequence: 5 };
        let mut frame = template.frame(stamp);
        frame.splice(12..12, [0x81, 0x00, 0x00, 0x2a]);
        frame.extend([0; 12]);
        assert_eq!(parse(&frame), Ok(stamp));
    }
}
