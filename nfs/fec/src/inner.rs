//! What an inner packet must look like before a recovered one is let out.
//!
//! A wrong repair, or a wrong packet among the block's, gives random bytes. They pass here by
//! chance once in about 2³⁶ (IPv4: version and header length, total length, checksum) or 2²⁰ (IPv6,
//! which has no checksum: version and payload length).
#![forbid(unsafe_code)]

use crate::wire::INNER_MIN_BYTES;

const IPV6_HEADER_BYTES: usize = 40;

/// Whether these bytes are one whole IPv4 packet with a right header checksum (RFC 791, section
/// 3.1), or one whole IPv6 packet (RFC 8200, section 3; jumbograms have no place here).
#[must_use]
pub fn is_ip(packet: &[u8]) -> bool {
    if packet.len() < INNER_MIN_BYTES {
        return false;
    }
    let field = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
    match packet[0] >> 4 {
        4 => {
            let header_bytes = usize::from(packet[0] & 0x0f) * 4;
            header_bytes >= INNER_MIN_BYTES
                && field(2) == packet.len()
                && packet.get(..header_bytes).is_some_and(|header| sum(header) == 0xffff)
        }
        6 => packet.len() >= IPV6_HEADER_BYTES && field(4) == packet.len() - IPV6_HEADER_BYTES,
        _ => false,
    }
}

/// The one's complement sum of big-endian words (RFC 1071); a header has whole words.
fn sum(header: &[u8]) -> u16 {
    let (words, _) = header.as_chunks::<2>();
    let total: u32 = words.iter().map(|&word| u32::from(u16::from_be_bytes(word))).sum();
    let folded = (total & 0xffff) + (total >> 16);
    ((folded & 0xffff) + (folded >> 16)) as u16
}

/// Makes `packet` a valid IPv4 packet of its length: for tests and models of traffic.
///
/// # Panics
/// When it is shorter than 20 bytes or longer than 65,535.
pub fn make_ipv4(packet: &mut [u8]) {
    let total = u16::try_from(packet.len()).expect("an IPv4 packet of at most 65,535 bytes");
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    packet[10..12].fill(0);
    let checksum = !sum(&packet[..INNER_MIN_BYTES]);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_packet_with_any_header_bit_flipped_is_refused() {
        let mut packet = [0x5a; 60];
        make_ipv4(&mut packet);
        assert!(is_ip(&packet));
        for bit in 0..160 {
            let mut damaged = packet;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(!is_ip(&damaged), "bit {bit}");
        }
    }

    #[test]
    fn an_ipv6_packet_must_have_the_length_it_says() {
        let mut packet = [0; 61];
        packet[0] = 0x60;
        packet[5] = 21;
        assert!(is_ip(&packet));
        assert!(!is_ip(&packet[..60]));
        packet[0] = 0x70;
        assert!(!is_ip(&packet));
        assert!(!is_ip(&[0x60; 39]));
    }

    #[test]
    fn options_count_as_header_and_must_fit() {
        let mut packet = [0; 24];
        make_ipv4(&mut packet);
        packet[0] = 0x46;
        assert!(!is_ip(&packet), "the checksum is of another first byte");
        packet[10..12].fill(0);
        let checksum = !sum(&packet);
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        assert!(is_ip(&packet));
        packet[0] = 0x47;
        assert!(!is_ip(&packet), "seven words do not fit 24 bytes");
    }
}
