//! The outer headers: Ethernet, IPv4 (RFC 791) or IPv6 (RFC 8200), UDP (RFC 768).
//!
//! - An outer packet is never fragmented: IPv4 says "don't fragment", and what is too long is refused
//!   before it comes here ([`too_big`](super::too_big)).
//! - The differentiated services code point of the inner packet is copied outwards (RFC 2983, the
//!   uniform model), and so is its congestion field (RFC 6040).
//! - All packets of a tunnel have the same addresses, transport ports and flow label, so that they take
//!   one path and keep their order. With several equal paths, a tunnel uses one of them.
//! - The UDP checksum: see [`UdpChecksum`].
#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use clap::ValueEnum;
use nflib::headers::{ETHERNET_BYTES, Fragment, Headers, MacAddr, Network, Transport};
use nflib::headers::{checksum, ethertype, ip_proto};

use super::fnv;

const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;
const UDP_BYTES: usize = 8;
/// Longest outer header, with Ethernet.
pub const HEADER_BYTES_MAX: usize = ETHERNET_BYTES + IPV6_BYTES + UDP_BYTES;
/// Time to live (hop limit) of outer packets (RFC 1700).
const TTL: u8 = 64;
/// "Don't fragment", in the word of flags and fragment offset.
const DONT_FRAGMENT: u16 = 0x4000;

/// Whether outer packets have a UDP checksum.
///
/// Over IPv4 it may be left out, and over IPv6 by tunnels whose both ends agree (RFC 6935, RFC 6936):
/// the inner packet has its own. But over IPv6 nothing else covers the outer addresses, and routers and
/// firewalls on the way may drop datagrams without one, so it is left out there
/// only when asked. With it, a packet that was damaged on the way is dropped by the far end, and
/// so can be brought back like any other that was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum UdpChecksum {
    /// Over IPv6 only
    Auto,
    /// Always: what was damaged on the way counts as lost
    On,
    /// Never; over IPv6 both ends must be told so
    Off,
}

impl UdpChecksum {
    /// Whether packets to this address get one.
    #[must_use]
    pub fn is_for(self, address: IpAddr) -> bool {
        match self {
            Self::Auto => address.is_ipv6(),
            Self::On => true,
            Self::Off => false,
        }
    }
}

/// Length of the outer headers in front of the UDP payload, without Ethernet.
#[must_use]
pub fn ip_udp_bytes(address: IpAddr) -> usize {
    (if address.is_ipv6() { IPV6_BYTES } else { IPV4_BYTES }) + UDP_BYTES
}

/// Two ends of a tunnel, as one of them sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// This end.
    pub local: SocketAddr,
    /// The other one, of the same IP version.
    pub peer: SocketAddr,
    /// Ethernet source address.
    pub local_mac: MacAddr,
    /// Ethernet destination address: the peer's, or the next router's.
    pub next_hop_mac: MacAddr,
}

/// Outer headers, ready but for what differs from packet to packet.
#[derive(Clone, Debug)]
pub struct Encapsulation {
    template: [u8; HEADER_BYTES_MAX],
    header_bytes: usize,
    is_v6: bool,
    /// Sum over the addresses, the protocol and the UDP ports, when a UDP checksum is wanted.
    pseudo: Option<u64>,
    flow_hash: u32,
}

impl Encapsulation {
    /// # Panics
    /// When the ends' addresses are of different IP versions.
    #[must_use]
    pub fn new(ends: &Ends, udp_checksum: UdpChecksum) -> Self {
        let mut header = Vec::with_capacity(HEADER_BYTES_MAX);
        header.extend(ends.next_hop_mac);
        header.extend(ends.local_mac);
        let addresses = match (ends.local.ip(), ends.peer.ip()) {
            (IpAddr::V4(local), IpAddr::V4(peer)) => [local.octets(), peer.octets()].concat(),
            (IpAddr::V6(local), IpAddr::V6(peer)) => [local.octets(), peer.octets()].concat(),
            _ => panic!("both ends of a tunnel have addresses of one IP version"),
        };
        let ports = [ends.local.port().to_be_bytes(), ends.peer.port().to_be_bytes()].concat();
        let hash = fnv(addresses.iter().chain(&ports));
        let is_v6 = ends.peer.is_ipv6();
        if is_v6 {
            header.extend(ethertype::IPV6.to_be_bytes());
            // Version, traffic class 0 and flow label (RFC 6438).
            header.extend((6 << 28 | (hash >> 32) as u32 & 0x000f_ffff).to_be_bytes());
            header.extend([0, 0, ip_proto::UDP, TTL]);
        } else {
            header.extend(ethertype::IPV4.to_be_bytes());
            header.extend([0x45, 0, 0, 0, 0, 0]);
            header.extend(DONT_FRAGMENT.to_be_bytes());
            header.extend([TTL, ip_proto::UDP, 0, 0]);
        }
        header.extend(&addresses);
        header.extend(&ports);
        header.extend([0; 4]);
        let mut template = [0; HEADER_BYTES_MAX];
        template[..header.len()].copy_from_slice(&header);
        let covered = [&addresses[..], &ports].map(|bytes| u64::from(checksum::sum(bytes)));
        let pseudo = covered.iter().sum::<u64>() + u64::from(ip_proto::UDP);
        Self {
            template,
            header_bytes: header.len(),
            is_v6,
            pseudo: udp_checksum.is_for(ends.peer.ip()).then_some(pseudo),
            flow_hash: ((hash ^ hash >> 32) as u32).max(1),
        }
    }

    /// Length of the outer headers, Ethernet included.
    #[must_use]
    pub fn header_bytes(&self) -> usize {
        self.header_bytes
    }

    /// The flow hash of all packets of the tunnel.
    #[must_use]
    pub fn flow_hash(&self) -> u32 {
        self.flow_hash
    }

    /// Writes the outer headers into the first [`header_bytes`](Self::header_bytes) of a frame, in front
    /// of the UDP payload that is there; `tos` is the type of service or traffic class. A frame that is
    /// shorter than its headers stays as it is.
    pub fn write(&self, frame: &mut [u8], tos: u8) {
        let Some((header, payload)) = frame.split_at_mut_checked(self.header_bytes) else { return };
        header.copy_from_slice(&self.template[..self.header_bytes]);
        let udp_bytes = length16(UDP_BYTES + payload.len());
        let udp_at = self.header_bytes - UDP_BYTES;
        header[udp_at + 4..udp_at + 6].copy_from_slice(&udp_bytes.to_be_bytes());
        if let Some(pseudo) = self.pseudo {
            // The length counts twice: in the pseudo-header and in the UDP header.
            let total = pseudo + 2 * u64::from(udp_bytes) + u64::from(checksum::sum(payload));
            let sum = match !fold(total) {
                0 => 0xffff,
                other => other,
            };
            header[udp_at + 6..].copy_from_slice(&sum.to_be_bytes());
        }
        let ip = &mut header[ETHERNET_BYTES..udp_at];
        if self.is_v6 {
            ip[0] |= tos >> 4;
            ip[1] |= tos << 4;
            ip[4..6].copy_from_slice(&udp_bytes.to_be_bytes());
        } else {
            ip[1] = tos;
            ip[2..4].copy_from_slice(&length16(IPV4_BYTES + usize::from(udp_bytes)).to_be_bytes());
            let sum = checksum::internet(ip);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
        }
    }
}

/// A frame is at most 65,535 bytes long; what claims to be longer is cut off by the port.
fn length16(bytes: usize) -> u16 {
    u16::try_from(bytes).unwrap_or(u16::MAX)
}

fn fold(mut total: u64) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// A UDP datagram in a frame: the outer packet of a tunnel, perhaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Who sent it.
    pub from: SocketAddr,
    /// Whom it is for.
    pub to: SocketAddr,
    /// Type of service or traffic class of the outer header.
    pub tos: u8,
    /// Where the UDP payload is in the frame.
    pub payload: Range<usize>,
}

/// The UDP datagram that a frame carries, if it carries a whole one and no VLAN tag: outer packets have
/// none.
#[must_use]
pub fn datagram(frame: &[u8], headers: &Headers) -> Option<Datagram> {
    let Transport::Udp { src, dst } = headers.transport else { return None };
    let tos = match &headers.network {
        Network::Ipv4(ip) => ip.tos,
        Network::Ipv6(ip) if !ip.routed => ip.traffic_class,
        _ => return None,
    };
    let (from, to) = headers.addresses()?;
    if headers.fragment() != Fragment::Whole || !headers.vlan_tags().is_empty() {
        return None;
    }
    let udp_at = usize::from(headers.l4_offset);
    let length = u16::from_be_bytes(*frame.get(udp_at + 4..)?.first_chunk()?);
    // The parser has seen to it that the datagram is inside the packet.
    let payload = udp_at + UDP_BYTES..udp_at + usize::from(length);
    Some(Datagram { from: (from, src).into(), to: (to, dst).into(), tos, payload })
}

/// Whether the outer checksums of a datagram are right. A UDP checksum may be absent over IPv4; over
/// IPv6 only where `absent_over_ipv6` says that both ends agreed (RFC 6935 section 5).
#[must_use]
pub fn checksums_ok(frame: &[u8], headers: &Headers, absent_over_ipv6: bool) -> bool {
    checksum::ipv4_ok(frame, headers) != Some(false)
        && match checksum::transport_ok(frame, headers) {
            Some(right) => right,
            None => absent_over_ipv6 || !matches!(headers.network, Network::Ipv6(_)),
        }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const V4: [&str; 2] = ["192.0.2.1:4950", "198.51.100.7:4951"];
    const V6: [&str; 2] = ["[2001:db8::1]:4950", "[2001:db8:7::2]:4951"];

    fn ends(addresses: [&str; 2]) -> Ends {
        let [local, peer] = addresses.map(|address| address.parse().unwrap());
        let local_mac = [2, 0, 0, 0, 0, 1];
        Ends { local, peer, local_mac, next_hop_mac: [2, 0, 0, 0, 0, 2] }
    }

    fn written(ends: &Ends, udp_checksum: UdpChecksum, tos: u8, payload: &[u8]) -> Vec<u8> {
        let encapsulation = Encapsulation::new(ends, udp_checksum);
        let mut frame = vec![0xee; encapsulation.header_bytes()];
        frame.extend(payload);
        encapsulation.write(&mut frame, tos);
        frame
    }

    #[test]
    fn an_outer_ipv4_packet_is_byte_for_byte_as_the_rfcs_say() {
        let frame = written(&ends(V4), UdpChecksum::Auto, 0xb9, b"hello");
        let mut expected = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
        // Version and length, TOS, total length 33, id 0, don't fragment, TTL 64, UDP.
        expected.extend([0x45, 0xb9, 0, 33, 0, 0, 0x40, 0, 64, 17]);
        let mut sum = 0x45b9 + 33 + 0x4000 + (64 << 8 | 17);
        sum += 0xc000 + 0x0201 + 0xc633 + 0x6407;
        expected.extend((!((sum & 0xffff) as u16 + (sum >> 16) as u16)).to_be_bytes());
        expected.extend([192, 0, 2, 1, 198, 51, 100, 7]);
        // Ports 4950 and 4951, length 13, no checksum.
        expected.extend([0x13, 0x56, 0x13, 0x57, 0, 13, 0, 0]);
        expected.extend(b"hello");
        assert_eq!(frame, expected);
    }

    #[test]
    fn an_outer_ipv6_packet_has_class_label_length_and_a_checksum() {
        let frame = written(&ends(V6), UdpChecksum::Auto, 0xb9, b"hello");
        let headers = Headers::parse(&frame);
        let Network::Ipv6(ip) = headers.network else { panic!("{headers:?}") };
        assert_eq!((ip.traffic_class, ip.hop_limit, ip.proto), (0xb9, 64, ip_proto::UDP));
        assert_ne!(ip.flow_label, 0);
        assert_eq!(frame[ETHERNET_BYTES + 4..ETHERNET_BYTES + 6], [0, 13]);
        assert_eq!(checksum::transport_ok(&frame, &headers), Some(true));
        assert_eq!(headers.payload(&frame), b"hello");
    }

    #[test]
    fn a_checksum_is_there_when_it_is_wanted_and_by_default_over_ipv6_only() {
        use UdpChecksum::{Auto, Off, On};
        for (addresses, choice, there) in [
            (V4, Auto, false),
            (V4, On, true),
            (V4, Off, false),
            (V6, Auto, true),
            (V6, On, true),
            (V6, Off, false),
        ] {
            let frame = written(&ends(addresses), choice, 0, b"odd");
            let ok = checksum::transport_ok(&frame, &Headers::parse(&frame));
            assert_eq!(ok, there.then_some(true), "{addresses:?} {choice:?}");
        }
    }

    #[test]
    fn a_checksum_that_would_be_zero_is_written_as_all_ones() {
        // Two bytes of payload can make any sum: one of all values makes it 0.
        let frames = (0..=u16::MAX).map(|word| {
            let frame = written(&ends(V6), UdpChecksum::On, 0, &word.to_be_bytes());
            u16::from_be_bytes([frame[60], frame[61]])
        });
        let sums: Vec<_> = frames.collect();
        assert!(!sums.contains(&0) && sums.contains(&0xffff));
    }

    #[test]
    fn a_damaged_or_missing_checksum_is_noticed_where_there_must_be_one() {
        let ok = |frame: &[u8], absent| checksums_ok(frame, &Headers::parse(frame), absent);
        let v4 = written(&ends(V4), UdpChecksum::On, 0, b"hello");
        let v6 = written(&ends(V6), UdpChecksum::On, 0, b"hello");
        for frame in [v4, v6] {
            assert!(ok(&frame, false));
            for at in [frame.len() - 1, frame.len() - 6] {
                let mut damaged = frame.clone();
                damaged[at] ^= 0x10;
                assert!(!ok(&damaged, true), "byte {at}");
            }
        }
        let v4 = written(&ends(V4), UdpChecksum::Off, 0, b"hello");
        assert!(ok(&v4, false));
        let mut damaged = v4;
        damaged[ETHERNET_BYTES + 8] ^= 1;
        assert!(!ok(&damaged, false), "the IPv4 header's own checksum");
        let v6 = written(&ends(V6), UdpChecksum::Off, 0, b"hello");
        assert!(ok(&v6, true) && !ok(&v6, false));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            v6: bool,
            checksum in prop::sample::select(vec![UdpChecksum::On, UdpChecksum::Off]),
            tos: u8,
            payload in proptest::collection::vec(any::<u8>(), 0..1500),
        ) {
            let ends = ends(if v6 { V6 } else { V4 });
            let frame = written(&ends, checksum, tos, &payload);
            let headers = Headers::parse(&frame);
            prop_assert!(checksums_ok(&frame, &headers, true));
            prop_assert_eq!(super::checksum::ipv4_ok(&frame, &headers), (!v6).then_some(true));
            let read = datagram(&frame, &headers).unwrap();
            prop_assert_eq!((read.from, read.to, read.tos), (ends.local, ends.peer, tos));
            prop_assert_eq!(&frame[read.payload], &payload[..]);
        }

        #[test]
        fn any_frame_is_a_datagram_inside_of_it_or_none(
            mut frame in proptest::collection::vec(any::<u8>(), 0..100),
            flips in proptest::collection::vec((0usize..60, any::<u8>()), 0..4),
            real: bool,
        ) {
            if real {
                frame = written(&ends(V4), UdpChecksum::On, 0, &frame);
                for (at, byte) in flips {
                    if let Some(place) = frame.get_mut(at) {
                        *place = byte;
                    }
                }
            }
            if let Some(read) = datagram(&frame, &Headers::parse(&frame)) {
                prop_assert!(frame.get(read.payload).is_some());
            }
        }
    }
}
