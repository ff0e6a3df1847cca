//! The maximum segment size that TCP peers tell each other, lowered to what a tunnel carries.
//!
//! Each end says at the start how long segments to it may be (RFC 9293 section 3.7.1). A tunnel that
//! lowers the value in passing spares the connection the loss and the ICMP message by which it would
//! find out, and works where that message is filtered on its way. RFC 6691: the value is the MTU
//! without the fixed headers, whatever options a packet has.
#![forbid(unsafe_code)]

use nflib::headers::{Headers, Network, Transport, checksum, tcp_flags};

const TCP_BYTES: usize = 20;
/// Kinds of TCP options (IANA, TCP parameters).
mod kind {
    pub const END: u8 = 0;
    pub const NO_OPERATION: u8 = 1;
    pub const MSS: u8 = 2;
}

/// Lowers the maximum segment size of a SYN to what packets of `mtu_bytes` carry, and updates the
/// TCP checksum by the difference. Returns whether it changed anything.
///
/// A SYN without the option says 536 (IPv4) or 1,220 bytes (IPv6), which any tunnel carries.
pub fn clamp(frame: &mut [u8], headers: &Headers, mtu_bytes: usize) -> bool {
    let Transport::Tcp { flags, .. } = headers.transport else { return false };
    if flags & tcp_flags::SYN == 0 {
        return false;
    }
    let ip_bytes = if matches!(headers.network, Network::Ipv6(_)) { 40 } else { 20 };
    let largest = u16::try_from(mtu_bytes.saturating_sub(ip_bytes + TCP_BYTES)).unwrap_or(u16::MAX);
    let segment = usize::from(headers.l4_offset)..usize::from(headers.payload_end);
    let Some(segment) = frame.get_mut(segment) else { return false };
    // The parser has seen to it that the header with its options is in the segment.
    let header_bytes = segment.get(12).map_or(0, |byte| usize::from(byte >> 4) * 4);
    let Some(header) = segment.get_mut(..header_bytes) else { return false };
    let Some(at) = find(header) else { return false };
    if u16::from_be_bytes([header[at], header[at + 1]]) <= largest {
        return false;
    }
    replace(header, at, largest);
    true
}

/// Where the value is in a TCP header, with two bytes there.
fn find(header: &[u8]) -> Option<usize> {
    let mut at = TCP_BYTES;
    loop {
        match *header.get(at)? {
            kind::END => return None,
            kind::NO_OPERATION => at += 1,
            here => {
                let length = usize::from(*header.get(at + 1)?);
                if length < 2 || at + length > header.len() {
                    return None;
                }
                if here == kind::MSS {
                    return (length == 4).then_some(at + 2);
                }
                at += length;
            }
        }
    }
}

/// The checksum counts words, and an option may stand at an odd place: the words it touches are
/// replaced. A header's length is even, so that they are all in it.
fn replace(header: &mut [u8], at: usize, value: u16) {
    let words = at & !1..(at + 3) & !1;
    let mut old = [0; 4];
    let old = &mut old[..words.len()];
    old.copy_from_slice(&header[words.clone()]);
    header[at..at + 2].copy_from_slice(&value.to_be_bytes());
    let sum = u16::from_be_bytes([header[16], header[17]]);
    let sum = checksum::update(sum, old, &header[words]);
    header[16..18].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use nflib::headers::{ETHERNET_BYTES, ip_proto};
    use nflib::testing::FrameBuilder;
    use proptest::prelude::*;

    use super::*;

    fn addresses(v6: bool) -> (IpAddr, IpAddr) {
        if v6 {
            ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap())
        } else {
            ([10, 0, 0, 1].into(), [10, 0, 0, 2].into())
        }
    }

    /// A TCP segment with these flags and options.
    fn segment(v6: bool, flags: u8, options: &[u8]) -> Vec<u8> {
        let words = options.len().div_ceil(4);
        let mut tcp = vec![0, 9, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0];
        tcp.extend([((5 + words) as u8) << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
        tcp.extend(options);
        tcp.resize(TCP_BYTES + words * 4, 0);
        let (src, dst) = addresses(v6);
        let mut frame = FrameBuilder::new().ip(src, dst).proto(ip_proto::TCP).payload(&tcp).build();
        let headers = Headers::parse(&frame);
        assert!(checksum::fill_transport(&mut frame, &headers));
        frame
    }

    fn clamped(frame: &[u8], mtu_bytes: usize) -> (Vec<u8>, bool) {
        let mut copy = frame.to_vec();
        let headers = Headers::parse(&copy);
        let changed = clamp(&mut copy, &headers, mtu_bytes);
        assert_eq!(checksum::transport_ok(&copy, &headers), Some(true));
        (copy, changed)
    }

    fn mss(frame: &[u8]) -> u16 {
        let tcp = usize::from(Headers::parse(frame).l4_offset);
        let at = tcp + find(&frame[tcp..]).unwrap();
        u16::from_be_bytes([frame[at], frame[at + 1]])
    }

    #[test]
    fn a_syn_and_its_answer_are_lowered_to_what_the_tunnel_carries() {
        for flags in [tcp_flags::SYN, tcp_flags::SYN | tcp_flags::ACK] {
            for (v6, expected) in [(false, 1416), (true, 1396)] {
                let frame = segment(v6, flags, &[2, 4, 5, 0xb4, 1, 1, 4, 2]);
                let (out, changed) = clamped(&frame, 1456);
                assert!(changed);
                assert_eq!(mss(&out), expected);
                // Nothing else is changed: the value at 22, the checksum at 16.
                let tcp = usize::from(Headers::parse(&frame).l4_offset);
                for at in (0..frame.len()).filter(|at| out[*at] != frame[*at]) {
                    assert!([16, 17, 22, 23].contains(&(at - tcp)), "byte {at}");
                }
            }
        }
    }

    #[test]
    fn one_that_is_small_enough_or_absent_stays() {
        for options in [&[2, 4, 2, 24][..], &[1, 1, 1, 1], &[0, 2, 4, 255], &[]] {
            let frame = segment(false, tcp_flags::SYN, options);
            assert_eq!(clamped(&frame, 1456), (frame, false), "{options:?}");
        }
    }

    #[test]
    fn segments_that_open_no_connection_stay() {
        let frame = segment(false, tcp_flags::ACK, &[2, 4, 5, 0xb4]);
        assert_eq!(clamped(&frame, 1456), (frame, false));
    }

    #[test]
    fn an_option_at_an_odd_place_is_found_and_the_checksum_follows() {
        let frame = segment(false, tcp_flags::SYN, &[1, 2, 4, 5, 0xb4]);
        let (out, changed) = clamped(&frame, 1456);
        assert!(changed);
        assert_eq!(mss(&out), 1416);
    }

    #[test]
    fn options_that_are_no_options_are_left_alone() {
        for options in [&[2, 3, 5][..], &[2, 5, 5, 0xb4, 0], &[3, 0, 2, 4], &[8, 1], &[1, 1, 2, 4]]
        {
            let frame = segment(false, tcp_flags::SYN, options);
            assert!(!clamped(&frame, 1456).1, "{options:?}");
        }
    }

    proptest! {
        #[test]
        fn any_options_leave_the_checksum_right_and_no_larger_segment(
            options in proptest::collection::vec(any::<u8>(), 0..40),
            mtu_bytes in 1280usize..9000,
            v6: bool,
        ) {
            let frame = segment(v6, tcp_flags::SYN, &options);
            let (out, changed) = clamped(&frame, mtu_bytes);
            let tcp = usize::from(Headers::parse(&frame).l4_offset);
            if let Some(at) = find(&out[tcp..]) {
                let largest = mtu_bytes - if v6 { 60 } else { 40 };
                let value = u16::from_be_bytes([out[tcp + at], out[tcp + at + 1]]);
                prop_assert!(usize::from(value) <= largest);
            } else {
                prop_assert!(!changed);
            }
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let mut frame = segment(false, tcp_flags::SYN, &[2, 4, 5, 0xb4]);
            frame.truncate(ETHERNET_BYTES + 20);
            frame.extend(&bytes);
            let headers = Headers::parse(&frame);
            clamp(&mut frame, &headers, 1456);
        }
    }
}
