//! Checksums: the Internet checksum (RFC 1071, updated as in RFC 1624) and CRC32c (RFC 9260).
#![forbid(unsafe_code)]

use super::{Fragment, Headers, Network, Transport, ip_proto};

/// The one's complement sum of big-endian words; an odd last byte counts as a high byte.
#[must_use]
pub fn sum(bytes: &[u8]) -> u16 {
    let (pairs, odd) = bytes.as_chunks::<2>();
    // 32,768 words of 16 bits cannot overflow; a longer slice wraps in u64 no earlier than 2⁴⁸ words.
    let mut total: u64 = pairs.iter().map(|&pair| u64::from(u16::from_be_bytes(pair))).sum();
    if let [last] = odd {
        total += u64::from(*last) << 8;
    }
    fold(total)
}

/// The Internet checksum over bytes whose checksum field is 0 (RFC 1071).
#[must_use]
pub fn internet(bytes: &[u8]) -> u16 {
    !sum(bytes)
}

/// A checksum after the bytes `old`, at an even place of what it covers, became `new`, of the same
/// length: `HC' = ~(~HC + ~m + m')` (RFC 1624, equation 3).
#[must_use]
pub fn update(checksum: u16, old: &[u8], new: &[u8]) -> u16 {
    !fold(u64::from(!checksum) + u64::from(!sum(old)) + u64::from(sum(new)))
}

fn fold(mut total: u64) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// Whether the IPv4 header's checksum is right; `None` when this is not IPv4.
#[must_use]
pub fn ipv4_ok(frame: &[u8], headers: &Headers) -> Option<bool> {
    let Network::Ipv4(ip) = &headers.network else { return None };
    let from = usize::from(headers.l3_offset);
    Some(sum(frame.get(from..from + usize::from(ip.header_bytes))?) == 0xffff)
}

/// Whether the checksum of layer 4 is right. `None` when it cannot be told: no known layer 4, a
/// fragment, a UDP checksum of 0 (not used), or a routing header with stops left.
#[must_use]
pub fn transport_ok(frame: &[u8], headers: &Headers) -> Option<bool> {
    let (field, segment) = transport_parts(frame, headers)?;
    let stored = segment.get(field..field + 2)?;
    match headers.transport {
        Transport::Udp { .. } if stored == [0, 0] => None,
        Transport::Sctp { .. } => {
            let stored = u32::from_le_bytes(*segment.get(8..)?.first_chunk()?);
            Some(stored == sctp(segment))
        }
        _ => Some(
            fold(u64::from(pseudo(headers, segment.len())?) + u64::from(sum(segment))) == 0xffff,
        ),
    }
}

/// Computes the checksum of layer 4 afresh and stores it. Returns false, and changes nothing, where
/// [`transport_ok`] could not tell either; a UDP checksum of 0 is replaced.
pub fn fill_transport(frame: &mut [u8], headers: &Headers) -> bool {
    let Some((field, segment)) = transport_parts(frame, headers) else { return false };
    let Some(pseudo) = pseudo(headers, segment.len()) else { return false };
    let Some(stored) = segment.get(field..field + 2) else { return false };
    let at = usize::from(headers.l4_offset) + field;
    if let Transport::Sctp { .. } = headers.transport {
        let crc = sctp(segment).to_le_bytes();
        frame[at..at + 4].copy_from_slice(&crc);
        return true;
    }
    let without = u64::from(!sum(stored)) + u64::from(sum(segment));
    let mut checksum = !fold(without + u64::from(pseudo));
    if checksum == 0 && matches!(headers.transport, Transport::Udp { .. }) {
        checksum = 0xffff;
    }
    frame[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    true
}

/// Where the checksum field is in the segment, and the segment, when all of it is here.
fn transport_parts<'f>(frame: &'f [u8], headers: &Headers) -> Option<(usize, &'f [u8])> {
    if headers.fragment() != Fragment::Whole {
        return None;
    }
    let field = field_offset(&headers.transport)?;
    let mut segment =
        frame.get(usize::from(headers.l4_offset)..usize::from(headers.payload_end))?;
    if let Transport::Udp { .. } = headers.transport {
        // The datagram may be shorter than the packet that carries it.
        let length = u16::from_be_bytes(*segment.get(4..)?.first_chunk()?);
        segment = segment.get(..usize::from(length))?;
    }
    Some((field, segment))
}

/// Where the checksum is in a header of layer 4.
pub(super) fn field_offset(transport: &Transport) -> Option<usize> {
    match transport {
        Transport::None => None,
        Transport::Tcp { .. } => Some(16),
        Transport::Udp { .. } => Some(6),
        Transport::Sctp { .. } => Some(8),
        Transport::Icmp { .. } | Transport::Icmpv6 { .. } => Some(2),
    }
}

/// Whether the checksum of layer 4 covers the IP addresses.
pub(super) fn covers_addresses(transport: &Transport) -> bool {
    matches!(transport, Transport::Tcp { .. } | Transport::Udp { .. } | Transport::Icmpv6 { .. })
}

/// Sum over the pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1).
fn pseudo(headers: &Headers, segment_bytes: usize) -> Option<u16> {
    if !covers_addresses(&headers.transport) {
        return Some(0);
    }
    let (addresses, proto) = match &headers.network {
        Network::Ipv4(ip) => {
            (u64::from(sum(&ip.src.octets())) + u64::from(sum(&ip.dst.octets())), ip.proto)
        }
        Network::Ipv6(ip) if !ip.routed => {
            (u64::from(sum(&ip.src.octets())) + u64::from(sum(&ip.dst.octets())), ip.proto)
        }
        _ => return None,
    };
    debug_assert!(
        matches!(proto, ip_proto::TCP | ip_proto::UDP | ip_proto::ICMPV6),
        "only these have a pseudo-header"
    );
    Some(fold(addresses + u64::from(proto) + segment_bytes as u64))
}

/// CRC32c of an SCTP packet with its checksum field taken as 0 (RFC 9260 appendix A).
fn sctp(segment: &[u8]) -> u32 {
    let (before, rest) = segment.split_at(8.min(segment.len()));
    let after = rest.get(4..).unwrap_or_default();
    !crc32c_step(crc32c_step(crc32c_step(!0, before), &[0; 4]), after)
}

fn crc32c_step(crc: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(crc, |crc, &byte| CRC32C[usize::from((crc as u8) ^ byte)] ^ (crc >> 8))
}

/// Remainders of all bytes for the reflected Castagnoli polynomial.
const CRC32C: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_checksum_of_an_ipv4_header_is_as_computed_by_hand() {
        let header = [
            0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0,
            0xc7,
        ];
        assert_eq!(internet(&header), 0xb861);
    }

    #[test]
    fn crc32c_matches_the_check_value_of_its_polynomial() {
        assert_eq!(!crc32c_step(!0, b"123456789"), 0xe306_9283);
    }

    proptest! {
        #[test]
        fn an_updated_checksum_equals_one_computed_afresh(
            mut bytes in proptest::collection::vec(any::<u8>(), 20..60),
            new: [u8; 4],
            at in 0usize..8,
        ) {
            bytes.truncate(bytes.len() & !1);
            // At least one word stays other than 0: an all-zero sum has two representations.
            bytes[18] |= 1;
            let before = internet(&bytes);
            let old: [u8; 4] = array_at(&bytes, at * 2);
            bytes[at * 2..at * 2 + 4].copy_from_slice(&new);
            prop_assert_eq!(update(before, &old, &new), internet(&bytes));
        }
    }

    fn array_at(bytes: &[u8], at: usize) -> [u8; 4] {
        super::super::array(bytes, at)
    }
}
