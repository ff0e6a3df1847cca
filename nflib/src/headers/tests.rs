use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::testing::FrameBuilder;

fn v4(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

fn v6(last: u8) -> IpAddr {
    let mut octets = [0; 16];
    (octets[0], octets[15]) = (0xfd, last);
    IpAddr::from(octets)
}

fn tcp4() -> FrameBuilder {
    FrameBuilder::new().ip(v4(1), v4(2)).tcp(1000, 80, tcp_flags::SYN).payload(b"abc")
}

#[test]
fn a_tcp_segment_gives_back_its_fields() {
    let frame = tcp4().ttl(9).tos(0xb8).pad_to(64).build();
    let headers = Headers::parse(&frame);
    assert_eq!(headers.problem, None);
    assert_eq!(headers.ethertype, ethertype::IPV4);
    assert_eq!(headers.addresses(), Some((v4(1), v4(2))));
    assert_eq!(headers.ports(), Some((1000, 80)));
    assert_eq!((headers.l3_offset, headers.l4_offset, headers.payload_offset), (14, 34, 54));
    assert_eq!(headers.payload(&frame), b"abc", "without the padding");
    let Network::Ipv4(ip) = headers.network else { panic!("{headers:?}") };
    assert_eq!((ip.ttl, ip.tos, ip.header_bytes, ip.proto), (9, 0xb8, 20, ip_proto::TCP));
    let Transport::Tcp { flags, sequence, acknowledgement, .. } = headers.transport else {
        panic!("{headers:?}")
    };
    assert_eq!((flags, sequence, acknowledgement), (tcp_flags::SYN, 1, 2));
}

#[test]
fn two_vlan_tags_are_read_and_a_third_is_a_problem() {
    let frame = tcp4().tag(ethertype::QINQ, 0x2064).vlan(0xe007).build();
    let headers = Headers::parse(&frame);
    let ids: Vec<_> = headers.vlan_tags().iter().map(|t| (t.id(), t.priority())).collect();
    assert_eq!(ids, [(100, 1), (7, 7)]);
    assert_eq!(headers.ports(), Some((1000, 80)));
    let headers = Headers::parse(&tcp4().vlan(1).vlan(2).vlan(3).build());
    assert_eq!(headers.problem, Some(Problem::TooManyTags));
    assert_eq!(headers.vlan_tags().len(), 2);
    assert_eq!(headers.network, Network::None);
}

#[test]
fn ipv6_extension_headers_are_walked_to_the_transport() {
    let frame = FrameBuilder::new()
        .ip(v6(1), v6(2))
        .extension(ip_proto::HOP_BY_HOP, &[0; 8])
        .extension(ip_proto::DESTINATION, &[0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
        .extension(
            ip_proto::AH,
            &[0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        )
        .udp(5, 6)
        .build();
    let headers = Headers::parse(&frame);
    assert_eq!(headers.problem, None);
    assert_eq!(headers.ports(), Some((5, 6)));
    assert_eq!(usize::from(headers.l4_offset), 14 + 40 + 8 + 16 + 24);
}

#[test]
fn extension_headers_without_end_are_a_problem_and_not_a_loop() {
    let many = (0..100).fold(FrameBuilder::new().ip(v6(1), v6(2)), |frame, _| {
        frame.extension(ip_proto::DESTINATION, &[0; 8])
    });
    let headers = Headers::parse(&many.udp(5, 6).build());
    assert_eq!(headers.problem, Some(Problem::TooManyExtensions));
    assert_eq!(headers.addresses(), Some((v6(1), v6(2))));
    assert_eq!(headers.ports(), None);
}

#[test]
fn a_first_fragment_has_ports_and_a_later_one_has_none() {
    for (src, dst) in [(v4(1), v4(2)), (v6(1), v6(2))] {
        let frame = |offset, more| {
            let base = FrameBuilder::new().ip(src, dst).fragment(offset, more);
            Headers::parse(&base.udp(5, 6).payload(&[1; 32]).build())
        };
        let first = frame(0, true);
        assert_eq!((first.fragment(), first.ports()), (Fragment::First, Some((5, 6))));
        let later = frame(5, true);
        assert_eq!((later.fragment(), later.ports()), (Fragment::Later, None));
        let last = frame(9, false);
        assert_eq!((last.fragment(), last.ports()), (Fragment::Later, None));
        assert_eq!(last.addresses(), Some((src, dst)));
        assert_eq!(last.problem, None);
    }
}

#[test]
fn arp_gives_back_its_fields() {
    let arp =
        [0, 1, 8, 0, 6, 4, 0, 2, 1, 1, 1, 1, 1, 1, 10, 0, 0, 1, 2, 2, 2, 2, 2, 2, 10, 0, 0, 2];
    let frame = FrameBuilder::new().ethertype(ethertype::ARP).payload(&arp).pad_to(60).build();
    let Network::Arp(arp) = Headers::parse(&frame).network else { panic!("not ARP") };
    assert_eq!((arp.operation, arp.sender_mac, arp.target_mac), (2, [1; 6], [2; 6]));
    assert_eq!(arp.target, Ipv4Addr::new(10, 0, 0, 2));
}

/// One way to spoil a frame, and the problem that it makes.
fn spoiled(at: usize, byte: u8) -> Option<Problem> {
    let mut frame = tcp4().build();
    frame[at] = byte;
    Headers::parse(&frame).problem
}

#[test]
fn each_malformed_field_is_named() {
    assert_eq!(spoiled(14, 0x65), Some(Problem::IpVersion));
    assert_eq!(spoiled(14, 0x44), Some(Problem::Ipv4HeaderLength));
    assert_eq!(spoiled(14, 0x4f), Some(Problem::IpTruncated));
    assert_eq!(spoiled(17, 200), Some(Problem::IpLength));
    assert_eq!(spoiled(17, 19), Some(Problem::IpLength));
    assert_eq!(spoiled(17, 39), Some(Problem::TransportTruncated));
    assert_eq!(spoiled(46, 0x40), Some(Problem::TcpDataOffset));
    assert_eq!(spoiled(46, 0x60), Some(Problem::TcpDataOffset));
    let mut udp = FrameBuilder::new().ip(v4(1), v4(2)).udp(5, 6).build();
    udp[39] = 9;
    assert_eq!(Headers::parse(&udp).problem, Some(Problem::UdpLength));
}

#[test]
fn a_frame_cut_anywhere_names_a_problem_and_reports_no_layer_that_is_not_whole() {
    let frame = FrameBuilder::new().vlan(5).ip(v6(1), v6(2)).tcp(1, 2, 0).build();
    for len in 0..frame.len() {
        let headers = Headers::parse(&frame[..len]);
        assert!(headers.problem.is_some(), "cut to {len} bytes");
        assert_eq!(headers.ports(), None);
        assert_eq!(headers.addresses(), None);
    }
}

#[test]
fn changing_addresses_and_ports_keeps_every_checksum_right() {
    let kinds: [fn(FrameBuilder) -> FrameBuilder; 4] =
        [|f| f.tcp(1, 2, 0), |f| f.udp(1, 2), |f| f.sctp(1, 2), |f| f.icmp(8, 0)];
    for (src, dst, new) in [(v4(1), v4(2), v4(99)), (v6(1), v6(2), v6(99))] {
        for kind in kinds {
            let mut frame = kind(FrameBuilder::new().ip(src, dst)).payload(b"odd").build();
            let mut headers = Headers::parse(&frame);
            assert_eq!(checksum::transport_ok(&frame, &headers), Some(true));
            let had_ports = headers.ports().is_some();
            let mut edit = headers.edit(&mut frame);
            edit.set_src_addr(new).unwrap();
            edit.set_dst_addr(src).unwrap();
            edit.set_dscp(46).unwrap();
            assert_eq!(edit.decrement_ttl(), Ok(63));
            assert_eq!(edit.set_src_port(7777).is_ok(), had_ports);
            assert_eq!(edit.set_dst_port(8888).is_ok(), had_ports);
            assert_eq!(Headers::parse(&frame), headers);
            assert_eq!(checksum::transport_ok(&frame, &headers), Some(true), "{headers:?}");
            assert_ne!(checksum::ipv4_ok(&frame, &headers), Some(false));
            assert_eq!(headers.addresses(), Some((new, src)));
        }
    }
}

#[test]
fn a_udp_checksum_of_zero_stays_unused() {
    let mut frame = FrameBuilder::new().ip(v4(1), v4(2)).udp(1, 2).build();
    frame[40..42].fill(0);
    let mut headers = Headers::parse(&frame);
    headers.edit(&mut frame).set_src_port(9).unwrap();
    headers.edit(&mut frame).set_src_addr(v4(7)).unwrap();
    assert_eq!(frame[40..42], [0, 0]);
    assert_eq!(checksum::ipv4_ok(&frame, &headers), Some(true));
}

#[test]
fn a_wrong_checksum_is_not_made_right_by_a_change() {
    let mut frame = tcp4().build();
    frame[56] ^= 1;
    let mut headers = Headers::parse(&frame);
    headers.edit(&mut frame).set_dst_port(81).unwrap();
    assert_eq!(checksum::transport_ok(&frame, &headers), Some(false));
}

#[test]
fn a_field_that_is_not_there_cannot_be_set() {
    let mut frame = FrameBuilder::new().payload(&[0; 46]).build();
    let mut headers = Headers::parse(&frame);
    let mut edit = headers.edit(&mut frame);
    assert_eq!(edit.set_src_port(1), Err(EditError::NoHeader("transport ports")));
    assert_eq!(edit.set_src_addr(v4(1)), Err(EditError::NoHeader("IP header")));
    assert_eq!(edit.set_vlan_id(1), Err(EditError::NoHeader("VLAN tag")));
    let mut frame = tcp4().ttl(1).build();
    let mut headers = Headers::parse(&frame);
    assert_eq!(headers.edit(&mut frame).decrement_ttl(), Err(EditError::Expired));
    assert_eq!(headers.edit(&mut frame).set_src_addr(v6(1)), Err(EditError::OtherVersion));
}

fn any_frame() -> impl Strategy<Value = FrameBuilder> {
    let addresses = prop_oneof![
        any::<([u8; 4], [u8; 4])>().prop_map(|(a, b)| (IpAddr::from(a), IpAddr::from(b))),
        any::<([u8; 16], [u8; 16])>()
            .prop_map(|(a, b)| (Ipv6Addr::from(a).into(), Ipv6Addr::from(b).into())),
    ];
    (
        addresses,
        proptest::collection::vec(any::<u16>(), 0..=2),
        0u8..5,
        any::<(u16, u16, u8, u8)>(),
        proptest::collection::vec(any::<u8>(), 0..100),
    )
        .prop_map(|((src, dst), tags, kind, (a, b, ttl, flags), payload)| {
            let frame = FrameBuilder::new().ip(src, dst).ttl(ttl).payload(&payload);
            let frame = tags.into_iter().fold(frame, FrameBuilder::vlan);
            match kind {
                0 => frame.tcp(a, b, flags),
                1 => frame.udp(a, b),
                2 => frame.sctp(a, b),
                3 => frame.icmp(ttl, flags),
                _ => frame.proto(254),
            }
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn any_bytes_keep_the_promises(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        fuzz::fuzz_one(&bytes);
    }

    #[test]
    fn a_damaged_frame_keeps_the_promises(
        frame in any_frame(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = frame.build();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        fuzz::fuzz_one(&bytes);
        fuzz::fuzz_one(&bytes[..cut.index(bytes.len())]);
    }

    #[test]
    fn a_built_frame_parses_without_a_problem_and_with_right_checksums(frame in any_frame()) {
        let bytes = frame.build();
        let headers = Headers::parse(&bytes);
        prop_assert_eq!(headers.problem, None);
        prop_assert_ne!(checksum::ipv4_ok(&bytes, &headers), Some(false));
        prop_assert_ne!(checksum::transport_ok(&bytes, &headers), Some(false));
        prop_assert!(headers.addresses().is_some());
        fuzz::fuzz_one(&bytes);
    }
}
