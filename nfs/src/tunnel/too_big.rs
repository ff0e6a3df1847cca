//! What a tunnel tells the sender of a packet that it cannot carry: ICMP "fragmentation needed" (RFC 792,
//! RFC 1191 section 4) and ICMPv6 "packet too big" (RFC 4443 section 3.2, RFC 8201).
//!
//! The answer is made in the buffer of the packet that it is about, which is cut to what may be quoted,
//! and goes out by the port that the packet came in by. A tunnel is a wire and has no address inside: the
//! answer comes from whom the packet was for, as if it had been too long there.
#![forbid(unsafe_code)]

use nflib::headers::{ETHERNET_BYTES, Headers, MacAddr, Network, Transport, checksum, ip_proto};
use nflib::{Packet, PacketError};

const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;
const ICMP_BYTES: usize = 8;
/// Longest ICMP error, IP header included: what every host takes (RFC 1812 section 4.3.2.3).
const IPV4_ERROR_BYTES: usize = 576;
/// Longest ICMPv6 error: what every link carries (RFC 4443 section 3.2).
const IPV6_ERROR_BYTES: usize = 1280;
/// Class of errors: internetwork control (RFC 1812 section 4.3.2.5).
const TOS: u8 = 0xc0;
const TTL: u8 = 64;

/// Answers a second, on average.
const ANSWERS_PER_S: u64 = 100;
/// Answers at once.
const BURST: u64 = 50;

/// A bound on answers (RFC 4443 section 2.4 (f), RFC 1812 section 4.3.2.8): a bucket of tokens.
#[derive(Debug)]
pub struct Limiter {
    /// When the bucket will be full again; it holds what has passed until then, in reverse.
    full_at_ns: u64,
}

impl Limiter {
    const ONE_NS: u64 = 1_000_000_000 / ANSWERS_PER_S;

    /// One that allows some at once.
    #[must_use]
    pub fn new() -> Self {
        Self { full_at_ns: 0 }
    }

    /// Whether one more may be sent now.
    pub fn allows(&mut self, now_ns: u64) -> bool {
        let full_at_ns = self.full_at_ns.max(now_ns) + Self::ONE_NS;
        let allowed = full_at_ns - now_ns <= BURST * Self::ONE_NS;
        if allowed {
            self.full_at_ns = full_at_ns;
        }
        allowed
    }
}

/// Whether a packet is one that an error may be sent about (RFC 1122 section 3.2.2, RFC 4443 section
/// 2.4 (e)): not to many, not from nobody, not about an error, and of a datagram only the first part.
#[must_use]
pub fn may_answer(headers: &Headers) -> bool {
    let to_many = headers.dst_mac[0] & 1 == 1;
    match &headers.network {
        Network::Ipv4(ip) => {
            let from_one = !ip.src.is_multicast()
                && !ip.src.is_broadcast()
                && !ip.src.is_loopback()
                && ip.src.octets()[0] != 0;
            let to_one = !ip.dst.is_multicast() && !ip.dst.is_broadcast();
            let is_error = match headers.transport {
                Transport::Icmp { kind, .. } => matches!(kind, 3 | 4 | 5 | 11 | 12),
                _ => false,
            };
            from_one && to_one && !to_many && !is_error && ip.fragment_offset_bytes == 0
        }
        Network::Ipv6(ip) => {
            let from_one =
                !ip.src.is_multicast() && !ip.src.is_unspecified() && !ip.src.is_loopback();
            // To many it would be allowed, but then there is nobody for the answer to come from.
            let to_one = !ip.dst.is_multicast();
            let is_error = match headers.transport {
                // Types below 128, and redirects.
                Transport::Icmpv6 { kind, .. } => kind < 128 || kind == 137,
                _ => false,
            };
            from_one && to_one && !to_many && !is_error
        }
        _ => false,
    }
}

/// Makes of an untagged IP packet that is too long the error that tells its sender so, to go out where it
/// came in. `mtu_bytes` is the longest packet that would have been carried.
///
/// # Errors
/// The buffer has too little room in front. What is left of the packet is then of no use.
pub fn make_answer(
    packet: &mut Packet<'_>,
    headers: &Headers,
    mtu_bytes: u16,
) -> Result<(), PacketError> {
    let is_v6 = matches!(headers.network, Network::Ipv6(_));
    let (ip_bytes, error_bytes) =
        if is_v6 { (IPV6_BYTES, IPV6_ERROR_BYTES) } else { (IPV4_BYTES, IPV4_ERROR_BYTES) };
    packet.trim_back(packet.len() - usize::from(headers.payload_end).min(packet.len()))?;
    packet.pop_front(usize::from(headers.l3_offset))?;
    let quoted_bytes = packet.len().min(error_bytes - ip_bytes - ICMP_BYTES);
    packet.trim_back(packet.len() - quoted_bytes)?;
    let front = packet.push_front(ETHERNET_BYTES + ip_bytes + ICMP_BYTES)?;
    let (ethernet, rest) = front.split_at_mut(ETHERNET_BYTES);
    let (ip, icmp) = rest.split_at_mut(ip_bytes);
    write_ethernet(ethernet, headers.src_mac, headers.dst_mac, headers.ethertype);
    icmp.fill(0);
    // At most 1,280, so it fits.
    let icmp_bytes = (ICMP_BYTES + quoted_bytes) as u16;
    match &headers.network {
        Network::Ipv6(quoted) => {
            ip[..4].copy_from_slice(&(6 << 28 | u32::from(TOS) << 20).to_be_bytes());
            ip[4..6].copy_from_slice(&icmp_bytes.to_be_bytes());
            (ip[6], ip[7]) = (ip_proto::ICMPV6, TTL);
            ip[8..24].copy_from_slice(&quoted.dst.octets());
            ip[24..40].copy_from_slice(&quoted.src.octets());
            icmp[0] = 2;
            icmp[4..8].copy_from_slice(&u32::from(mtu_bytes).to_be_bytes());
        }
        Network::Ipv4(quoted) => {
            let total_bytes = IPV4_BYTES as u16 + icmp_bytes;
            ip[..4].copy_from_slice(&[0x45, TOS, (total_bytes >> 8) as u8, total_bytes as u8]);
            // No identification, "don't fragment" (RFC 6864).
            ip[4..12].copy_from_slice(&[0, 0, 0x40, 0, TTL, ip_proto::ICMP, 0, 0]);
            ip[12..16].copy_from_slice(&quoted.dst.octets());
            ip[16..20].copy_from_slice(&quoted.src.octets());
            let sum = checksum::internet(ip);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            (icmp[0], icmp[1]) = (3, 4);
            icmp[6..8].copy_from_slice(&mtu_bytes.to_be_bytes());
        }
        _ => {}
    }
    let frame = packet.bytes_mut();
    let headers = Headers::parse(frame);
    checksum::fill_transport(frame, &headers);
    Ok(())
}

fn write_ethernet(header: &mut [u8], to: MacAddr, from: MacAddr, ethertype: u16) {
    header[..6].copy_from_slice(&to);
    header[6..12].copy_from_slice(&from);
    header[12..].copy_from_slice(&ethertype.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use nflib::testing::{FrameBuilder, TestBench};
    use nflib::{Action, Context, NetworkFunction};

    use super::*;

    /// Answers every packet.
    struct Answerer;

    impl NetworkFunction for Answerer {
        fn process(&mut self, packet: &mut Packet<'_>, _: &mut Context<'_>) -> Action {
            let headers = Headers::parse(packet.bytes());
            match make_answer(packet, &headers, 1456) {
                Ok(()) => Action::Out(packet.ingress_port()),
                Err(_) => Action::Drop,
            }
        }
    }

    fn answer(frame: &[u8]) -> Vec<u8> {
        let out = TestBench::new(Answerer).feed_one(frame).unwrap();
        assert_eq!(out.action, Action::Out(0));
        out.bytes
    }

    fn v4() -> FrameBuilder {
        FrameBuilder::new().ip([10, 0, 0, 1].into(), [10, 0, 9, 2].into())
    }

    fn v6() -> FrameBuilder {
        let (src, dst): (IpAddr, IpAddr) =
            ("2001:db8::1".parse().unwrap(), "2001:db8:9::2".parse().unwrap());
        FrameBuilder::new().ip(src, dst)
    }

    #[test]
    fn fragmentation_needed_is_byte_for_byte_as_rfc_1191_says() {
        let frame = v4().udp(1000, 2000).payload(&[0x5a; 1472]).build();
        let out = answer(&frame);
        assert_eq!(out[..6], frame[6..12], "back to whom it came from");
        assert_eq!(out[6..14], [2, 0, 0, 0, 0, 2, 8, 0]);
        let ip = &out[14..34];
        assert_eq!(ip[..10], [0x45, 0xc0, 2, 64, 0, 0, 0x40, 0, 64, 1]);
        assert_eq!(checksum::sum(ip), 0xffff);
        assert_eq!(ip[12..], [10, 0, 9, 2, 10, 0, 0, 1]);
        let icmp = &out[34..];
        // Type 3, code 4, checksum, unused, the next hop's MTU: 1456.
        assert_eq!((&icmp[..2], &icmp[4..8]), (&[3, 4][..], &[0, 0, 5, 0xb0][..]));
        assert_eq!(checksum::sum(icmp), 0xffff);
        assert_eq!(icmp[8..], frame[14..14 + 548], "as much as fits into 576 bytes");
        assert_eq!(out.len(), 14 + 576);
    }

    #[test]
    fn packet_too_big_is_byte_for_byte_as_rfc_4443_says() {
        let frame = v6().udp(1000, 2000).payload(&[0x5a; 1452]).build();
        let out = answer(&frame);
        assert_eq!(out[12..14], [0x86, 0xdd]);
        let ip = &out[14..54];
        assert_eq!(ip[..8], [0x6c, 0, 0, 0, 4, 0xd8, 58, 64]);
        assert_eq!(ip[8..24], frame[38..54]);
        assert_eq!(ip[24..40], frame[22..38]);
        let icmp = &out[54..];
        // Type 2, code 0, checksum, the MTU in 32 bits.
        assert_eq!((&icmp[..2], &icmp[4..8]), (&[2, 0][..], &[0, 0, 5, 0xb0][..]));
        assert_eq!(icmp[8..], frame[14..14 + 1232]);
        assert_eq!(out.len(), 14 + 1280);
        assert_eq!(checksum::transport_ok(&out, &Headers::parse(&out)), Some(true));
    }

    #[test]
    fn a_short_packet_is_quoted_whole_and_without_padding() {
        let frame = v4().udp(1, 2).payload(b"short").pad_to(60).build();
        assert_eq!(answer(&frame)[42..], frame[14..47]);
    }

    #[test]
    fn no_error_is_sent_to_many_from_nobody_about_an_error_or_a_later_fragment() {
        let may = |frame: FrameBuilder| may_answer(&Headers::parse(&frame.build()));
        assert!(may(v4().udp(1, 2)) && may(v6().udp(1, 2)) && may(v4().icmp(8, 0)));
        assert!(may(v6().icmp(128, 0)) && may(v4().fragment(0, true)));
        let ip = |src: [u8; 4], dst: [u8; 4]| FrameBuilder::new().ip(src.into(), dst.into());
        let ip6 = |src: &str, dst: &str| {
            FrameBuilder::new().ip(src.parse().unwrap(), dst.parse().unwrap())
        };
        for frame in [
            ip([10, 0, 0, 1], [224, 0, 0, 1]),
            ip([10, 0, 0, 1], [255; 4]),
            ip([0, 0, 0, 0], [10, 0, 0, 2]),
            ip([127, 0, 0, 1], [10, 0, 0, 2]),
            ip([239, 1, 1, 1], [10, 0, 0, 2]),
            v4().macs([2; 6], [0xff; 6]),
            v4().icmp(3, 4),
            v4().icmp(11, 0),
            v4().fragment(3, true),
            ip6("::", "2001:db8::2"),
            ip6("2001:db8::1", "ff02::1"),
            ip6("ff02::1", "2001:db8::2"),
            v6().icmp(2, 0),
            v6().icmp(137, 0),
            FrameBuilder::new().ethertype(0x0806).payload(&[0; 28]),
        ] {
            assert!(!may(frame.clone()), "{frame:?}");
        }
    }

    #[test]
    fn some_answers_go_at_once_and_then_so_many_a_second() {
        let mut limiter = Limiter::new();
        let allowed = |limiter: &mut Limiter, at_ns: u64, asked: usize| {
            (0..asked).filter(|_| limiter.allows(at_ns)).count() as u64
        };
        let start_ns = 7_000_000_000;
        assert_eq!(allowed(&mut limiter, start_ns, 1000), BURST);
        assert_eq!(allowed(&mut limiter, start_ns + Limiter::ONE_NS, 1000), 1);
        let second = (1..=1000).map(|ms| allowed(&mut limiter, start_ns + ms * 1_000_000, 3));
        assert!((ANSWERS_PER_S - 2..=ANSWERS_PER_S).contains(&second.sum()));
        assert_eq!(allowed(&mut limiter, start_ns + 60_000_000_000, 1000), BURST);
    }
}
