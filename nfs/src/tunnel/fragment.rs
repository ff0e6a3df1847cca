//! IPv4 packets that are too long and may be cut, cut before they enter a tunnel (RFC 791 section 3.2).
//!
//! Hosts send long datagrams as fragments of their own link's MTU, which are longer than what a tunnel
//! over such a link carries. They do not say "don't fragment", so that nobody is told of a smaller MTU, and
//! all would be lost. The pieces are whole packets, each of which travels by itself: an outer packet is
//! never cut.
#![forbid(unsafe_code)]

use std::ops::Range;

use nflib::headers::checksum;

/// An IPv4 header without options.
pub const HEADER_BYTES: usize = 20;
const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;
/// What offsets count in, bytes.
const UNIT_BYTES: usize = 8;

/// How an IPv4 packet is cut.
#[derive(Clone, Debug)]
pub struct Pieces {
    header: [u8; HEADER_BYTES],
    total_bytes: usize,
    piece_bytes: usize,
    at: usize,
}

impl Pieces {
    /// Cuts an IPv4 packet of no more bytes than it says it has into pieces of `mtu_bytes` at most, header
    /// included. `None` where it must not be cut, or has options, of which some belong into every piece and
    /// some do not; hosts have long stopped to send any.
    #[must_use]
    pub fn new(packet: &[u8], mtu_bytes: usize) -> Option<Self> {
        let header: [u8; HEADER_BYTES] = *packet.first_chunk()?;
        let piece_bytes = mtu_bytes.checked_sub(HEADER_BYTES)? / UNIT_BYTES * UNIT_BYTES;
        let may = header[0] == 0x45 && word(&header, 6) & DONT_FRAGMENT == 0 && piece_bytes > 0;
        // A piece beyond the largest offset would begin the datagram anew.
        let end = usize::from(word(&header, 6) & OFFSET) * UNIT_BYTES + packet.len();
        let fits = end <= usize::from(u16::MAX);
        let total_bytes = packet.len();
        (may && fits).then_some(Self { header, total_bytes, piece_bytes, at: HEADER_BYTES })
    }
}

/// A piece: its header, and which bytes of the packet are its payload.
impl Iterator for Pieces {
    type Item = ([u8; HEADER_BYTES], Range<usize>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.total_bytes {
            return None;
        }
        let payload = self.at..(self.at + self.piece_bytes).min(self.total_bytes);
        let flags = word(&self.header, 6);
        let is_last = payload.end == self.total_bytes;
        let more = if is_last { flags & MORE_FRAGMENTS } else { MORE_FRAGMENTS };
        // Within 13 bits: the whole packet's end was.
        let offset = (flags & OFFSET) + ((self.at - HEADER_BYTES) / UNIT_BYTES) as u16;
        let mut header = self.header;
        let length = (HEADER_BYTES + payload.len()) as u16;
        header[2..4].copy_from_slice(&length.to_be_bytes());
        header[6..8].copy_from_slice(&(more | offset).to_be_bytes());
        header[10..12].fill(0);
        let sum = checksum::internet(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        self.at = payload.end;
        Some((header, payload))
    }
}

fn word(header: &[u8; HEADER_BYTES], at: usize) -> u16 {
    u16::from_be_bytes([header[at], header[at + 1]])
}

#[cfg(test)]
mod tests {
    use nflib::headers::{ETHERNET_BYTES, Fragment, Headers, Network};
    use nflib::testing::FrameBuilder;
    use proptest::prelude::*;

    use super::*;

    fn packet(payload_bytes: usize, offset: u16, more: bool) -> Vec<u8> {
        let payload: Vec<_> = (0..payload_bytes).map(|at| at as u8).collect();
        let frame = FrameBuilder::new().ip([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let frame = frame.proto(200).fragment(offset, more).payload(&payload).build();
        frame[ETHERNET_BYTES..].to_vec()
    }

    #[test]
    fn a_packet_of_1500_bytes_becomes_two_that_1456_carry() {
        let packet = packet(1480, 0, false);
        let pieces: Vec<_> = Pieces::new(&packet, 1456).unwrap().collect();
        // 1,436 bytes of payload would fit; a piece has a multiple of 8.
        assert_eq!(pieces[0].1, 20..20 + 1432);
        assert_eq!(pieces[1].1, 1452..1500);
        assert_eq!(pieces[0].0[2..8], [0x05, 0xac, 0, 1, 0x20, 0]);
        assert_eq!(pieces[1].0[2..8], [0x00, 0x44, 0, 1, 0x00, 179]);
        assert!(pieces.iter().all(|(header, _)| checksum::sum(header) == 0xffff));
        assert!(pieces.iter().all(|(header, _)| header[8..10] == packet[8..10]));
        assert_eq!(pieces.len(), 2);
    }

    #[test]
    fn what_must_not_be_cut_is_not() {
        let mut with_df = packet(1480, 0, false);
        with_df[6] |= 0x40;
        let mut with_options = packet(1480, 0, false);
        with_options[0] = 0x46;
        let beyond = packet(1480, 0x1fff, false);
        for packet in [&with_df[..], &with_options, &beyond, b"", &[0x45; 19], &[0x60; 1500]] {
            assert!(Pieces::new(packet, 1456).is_none());
        }
        assert!(Pieces::new(&packet(100, 0, false), 27).is_none());
    }

    proptest! {
        #[test]
        fn the_pieces_are_short_enough_and_make_the_packet_again(
            payload_bytes in 1usize..9000,
            offset in 0u16..4000,
            more: bool,
            mtu_bytes in 68usize..2000,
        ) {
            let packet = packet(payload_bytes, offset, more);
            let mut expected_offset = usize::from(offset) * 8;
            let mut data: Vec<u8> = Vec::new();
            let pieces: Vec<_> = Pieces::new(&packet, mtu_bytes).unwrap().collect();
            for (number, (header, payload)) in pieces.iter().enumerate() {
                let mut frame = vec![0; 12];
                frame.extend([8, 0]);
                frame.extend(header);
                frame.extend(&packet[payload.clone()]);
                prop_assert!(frame.len() <= ETHERNET_BYTES + mtu_bytes);
                let headers = Headers::parse(&frame);
                let Network::Ipv4(ip) = headers.network else { panic!("{headers:?}") };
                prop_assert_eq!(usize::from(ip.fragment_offset_bytes), expected_offset);
                let more_follow = frame[20] & 0x20 != 0;
                prop_assert_eq!(more_follow, more || number + 1 < pieces.len());
                let whole = pieces.len() == 1 && offset == 0 && !more;
                prop_assert_eq!(ip.fragment == Fragment::Whole, whole);
                expected_offset += payload.len();
                data.extend(&packet[payload.clone()]);
            }
            prop_assert_eq!(&data[..], &packet[20..]);
        }
    }
}
