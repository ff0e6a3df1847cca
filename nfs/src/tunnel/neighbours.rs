//! Who has the tunnel's address? ARP (RFC 826) and IPv6 neighbour discovery (RFC 4861 section 7.2.4).
//!
//! The tunnel's address belongs to no kernel, so its end answers for it, in the buffer of the question.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv6Addr};

use nflib::headers::{ETHERNET_BYTES, Headers, MacAddr, Network, Transport, checksum, ip_proto};
use nflib::{Packet, PacketError};

const IPV6_BYTES: usize = 40;
/// A solicitation: type, code, checksum, 4 reserved bytes, target; then options.
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const MESSAGE_BYTES: usize = 24;
/// The option with an Ethernet address: kind, length in units of 8 bytes, address.
const TARGET_ADDRESS: u8 = 2;
const OPTION_BYTES: usize = 8;
/// Of an answer: it was asked for, and overrides what is cached.
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
/// Whoever has another one has come through a router.
const HOP_LIMIT: u8 = 255;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: MacAddr = [0x33, 0x33, 0, 0, 0, 1];

/// Makes of a question for `address` the answer that it is at `mac`, to go out where the question came
/// in. Returns false, and changes nothing, when the packet is no such question.
///
/// # Errors
/// The answer does not fit into the buffer. What is left of the packet is then of no use.
pub fn answer(
    packet: &mut Packet<'_>,
    headers: &Headers,
    address: IpAddr,
    mac: MacAddr,
) -> Result<bool, PacketError> {
    match (&headers.network, address) {
        (Network::Arp(arp), IpAddr::V4(address)) if arp.operation == 1 && arp.target == address => {
            answer_arp(packet.bytes_mut(), headers, mac);
            Ok(true)
        }
        (Network::Ipv6(ip), IpAddr::V6(address))
            if ip.hop_limit == HOP_LIMIT && asks_for(packet.bytes(), headers, address) =>
        {
            answer_solicitation(packet, headers, ip.src, address, mac)?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// Sender and target change places, and the sender's Ethernet address is ours.
fn answer_arp(frame: &mut [u8], headers: &Headers, mac: MacAddr) {
    let at = usize::from(headers.l3_offset);
    frame[..6].copy_from_slice(&headers.src_mac);
    frame[6..12].copy_from_slice(&mac);
    let Some(arp) = frame.get_mut(at..at + 28) else { return };
    let mut asked = [0; 10];
    asked.copy_from_slice(&arp[8..18]);
    arp[6..8].copy_from_slice(&[0, 2]);
    arp.copy_within(24..28, 14);
    arp[8..14].copy_from_slice(&mac);
    arp[18..28].copy_from_slice(&asked);
}

/// Whether this is a neighbour solicitation for an address, as RFC 4861 section 7.1.1 wants it.
fn asks_for(frame: &[u8], headers: &Headers, address: Ipv6Addr) -> bool {
    let Transport::Icmpv6 { kind: SOLICITATION, code: 0 } = headers.transport else { return false };
    let message = frame.get(usize::from(headers.l4_offset)..usize::from(headers.payload_end));
    message.is_some_and(|message| message.get(8..MESSAGE_BYTES) == Some(&address.octets()))
        && checksum::transport_ok(frame, headers) == Some(true)
}

fn answer_solicitation(
    packet: &mut Packet<'_>,
    headers: &Headers,
    asker: Ipv6Addr,
    address: Ipv6Addr,
    mac: MacAddr,
) -> Result<(), PacketError> {
    let l3 = usize::from(headers.l3_offset);
    // Extension headers, options and padding go: the answer begins behind the fixed header.
    packet.trim_back(packet.len() - (l3 + IPV6_BYTES).min(packet.len()))?;
    packet.push_back(MESSAGE_BYTES + OPTION_BYTES)?;
    let nobody = asker.is_unspecified();
    let frame = packet.bytes_mut();
    frame[..6].copy_from_slice(if nobody { &ALL_NODES_MAC } else { &headers.src_mac });
    frame[6..12].copy_from_slice(&mac);
    let (ip, message) = frame[l3..].split_at_mut(IPV6_BYTES);
    ip[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 32, ip_proto::ICMPV6, HOP_LIMIT]);
    ip[8..24].copy_from_slice(&address.octets());
    ip[24..].copy_from_slice(&if nobody { ALL_NODES } else { asker }.octets());
    message.fill(0);
    message[0] = ADVERTISEMENT;
    message[4] = if nobody { OVERRIDE } else { SOLICITED | OVERRIDE };
    message[8..24].copy_from_slice(&address.octets());
    message[24..26].copy_from_slice(&[TARGET_ADDRESS, 1]);
    message[26..].copy_from_slice(&mac);
    debug_assert!(l3 >= ETHERNET_BYTES, "an IP packet lies behind an Ethernet header");
    let headers = Headers::parse(frame);
    checksum::fill_transport(frame, &headers);
    Ok(())
}

#[cfg(test)]
mod tests {
    use nflib::testing::{FrameBuilder, TestBench};
    use nflib::{Action, Context, NetworkFunction};

    use super::*;

    const MAC: MacAddr = [2, 0, 0, 0, 0, 0xaa];
    const ASKER: MacAddr = [2, 0, 0, 0, 0, 0xbb];

    struct Neighbour(IpAddr);

    impl NetworkFunction for Neighbour {
        fn process(&mut self, packet: &mut Packet<'_>, _: &mut Context<'_>) -> Action {
            let headers = Headers::parse(packet.bytes());
            match answer(packet, &headers, self.0, MAC) {
                Ok(true) => Action::Out(packet.ingress_port()),
                Ok(false) => Action::Next,
                Err(_) => Action::Drop,
            }
        }
    }

    fn asked(address: &str, frame: &[u8]) -> Option<Vec<u8>> {
        let mut bench = TestBench::new(Neighbour(address.parse().unwrap()));
        let out = bench.feed_one(frame).unwrap();
        match out.action {
            Action::Out(0) => Some(out.bytes),
            Action::Next => {
                assert_eq!(out.bytes, frame, "what is no question stays as it is");
                None
            }
            other => panic!("{other:?}"),
        }
    }

    fn arp(operation: u8, target: [u8; 4]) -> Vec<u8> {
        let mut payload = vec![0, 1, 8, 0, 6, 4, 0, operation];
        payload.extend(ASKER);
        payload.extend([192, 0, 2, 9, 0, 0, 0, 0, 0, 0]);
        payload.extend(target);
        let frame = FrameBuilder::new().macs(ASKER, [0xff; 6]).ethertype(0x0806);
        frame.payload(&payload).pad_to(60).build()
    }

    #[test]
    fn an_arp_request_for_the_address_is_answered_with_the_ethernet_address() {
        let out = asked("192.0.2.1", &arp(1, [192, 0, 2, 1])).unwrap();
        let mut expected = ASKER.to_vec();
        expected.extend(MAC);
        expected.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
        expected.extend(MAC);
        expected.extend([192, 0, 2, 1]);
        expected.extend(ASKER);
        expected.extend([192, 0, 2, 9]);
        expected.resize(60, 0);
        assert_eq!(out, expected);
    }

    #[test]
    fn arp_for_others_and_answers_of_others_are_not_answered() {
        assert_eq!(asked("192.0.2.1", &arp(1, [192, 0, 2, 2])), None);
        assert_eq!(asked("192.0.2.1", &arp(2, [192, 0, 2, 1])), None);
        assert_eq!(asked("2001:db8::1", &arp(1, [192, 0, 2, 1])), None);
    }

    fn solicitation(src: &str, target: &str, hop_limit: u8, option: bool) -> Vec<u8> {
        let target: Ipv6Addr = target.parse().unwrap();
        let [.., high, mid, low] = target.octets();
        let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(high), 0);
        let mut group = group.octets();
        (group[14], group[15]) = (mid, low);
        let mut rest = target.octets().to_vec();
        if option {
            rest.extend([1, 1]);
            rest.extend(ASKER);
        }
        let dst = Ipv6Addr::from(group);
        FrameBuilder::new()
            .macs(ASKER, [0x33, 0x33, 0xff, high, mid, low])
            .ip(src.parse().unwrap(), dst.into())
            .ttl(hop_limit)
            .icmp(SOLICITATION, 0)
            .payload(&rest)
            .build()
    }

    #[test]
    fn a_solicitation_for_the_address_is_answered_with_the_ethernet_address() {
        for option in [true, false] {
            let frame = solicitation("2001:db8::9", "2001:db8::1", 255, option);
            let out = asked("2001:db8::1", &frame).unwrap();
            let headers = Headers::parse(&out);
            assert_eq!((headers.dst_mac, headers.src_mac), (ASKER, MAC));
            let Network::Ipv6(ip) = headers.network else { panic!("{headers:?}") };
            assert_eq!(ip.src, "2001:db8::1".parse::<Ipv6Addr>().unwrap());
            assert_eq!(ip.dst, "2001:db8::9".parse::<Ipv6Addr>().unwrap());
            assert_eq!((ip.hop_limit, out.len()), (255, 14 + 40 + 32));
            assert_eq!(checksum::transport_ok(&out, &headers), Some(true));
            let message = &out[54..];
            assert_eq!((message[0], message[1], message[4]), (136, 0, 0x60));
            assert_eq!(message[8..24], ip.src.octets());
            assert_eq!((&message[24..26], &message[26..]), (&[2, 1][..], &MAC[..]));
        }
    }

    #[test]
    fn one_that_only_looks_whether_the_address_is_free_is_told_with_all_others() {
        let frame = solicitation("::", "2001:db8::1", 255, false);
        let out = asked("2001:db8::1", &frame).unwrap();
        assert_eq!(out[..6], ALL_NODES_MAC);
        assert_eq!((&out[38..54], out[58]), (&ALL_NODES.octets()[..], 0x20));
    }

    #[test]
    fn a_solicitation_from_afar_for_others_or_damaged_is_not_answered() {
        let ask = |frame: &[u8]| asked("2001:db8::1", frame);
        assert_eq!(ask(&solicitation("2001:db8::9", "2001:db8::1", 254, true)), None);
        assert_eq!(ask(&solicitation("2001:db8::9", "2001:db8::2", 255, true)), None);
        let mut frame = solicitation("2001:db8::9", "2001:db8::1", 255, true);
        *frame.last_mut().unwrap() ^= 1;
        assert_eq!(ask(&frame), None);
    }
}
