//! Layer 3: ARP (RFC 826), IPv4 (RFC 791), IPv6 (RFC 8200).
#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Headers, MacAddr, Problem, array, be16, ethertype, ip_proto};

/// IPv6 extension headers that are walked at most. Real packets have one or two.
pub(super) const MAX_EXTENSIONS: usize = 8;
const ARP_BYTES: usize = 28;
const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;

/// What layer 3 is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// Something else, or malformed.
    #[default]
    None,
    /// ARP for Ethernet and IPv4.
    Arp(Arp),
    /// IPv4.
    Ipv4(Ipv4),
    /// IPv6.
    Ipv6(Ipv6),
}

/// Which part of a datagram a packet is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Fragment {
    /// All of it.
    #[default]
    Whole,
    /// The first part, which has the header of layer 4.
    First,
    /// A later part: data only.
    Later,
}

impl Fragment {
    fn new(offset: u16, more: bool) -> Self {
        match (offset, more) {
            (0, false) => Self::Whole,
            (0, true) => Self::First,
            _ => Self::Later,
        }
    }
}

/// An ARP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// 1 request, 2 reply.
    pub operation: u16,
    /// Who sends it.
    pub sender_mac: MacAddr,
    /// Who sends it.
    pub sender: Ipv4Addr,
    /// Who is asked or answered; zero in a request.
    pub target_mac: MacAddr,
    /// Who is asked or answered.
    pub target: Ipv4Addr,
}

/// An IPv4 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4 {
    /// Source.
    pub src: Ipv4Addr,
    /// Destination.
    pub dst: Ipv4Addr,
    /// Protocol of layer 4.
    pub proto: u8,
    /// Time to live.
    pub ttl: u8,
    /// Differentiated services code point (6 bits) and congestion notification (2).
    pub tos: u8,
    /// Length of the header with its options, bytes.
    pub header_bytes: u8,
    /// Which part of a datagram this is.
    pub fragment: Fragment,
    /// Where the fragment's data belongs in the datagram, bytes.
    pub fragment_offset_bytes: u16,
    /// Identification of the datagram.
    pub identification: u16,
}

/// An IPv6 header and its extension headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6 {
    /// Source.
    pub src: Ipv6Addr,
    /// Destination in the fixed header: the next stop, when `routed`.
    pub dst: Ipv6Addr,
    /// Protocol behind the extension headers.
    pub proto: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Traffic class.
    pub traffic_class: u8,
    /// Flow label, 20 bits.
    pub flow_label: u32,
    /// Which part of a datagram this is.
    pub fragment: Fragment,
    /// Where the fragment's data belongs in the datagram, bytes.
    pub fragment_offset_bytes: u16,
    /// A routing header has stops left: checksums cover another destination than `dst`.
    pub routed: bool,
}

impl Headers {
    pub(super) fn parse_arp(&mut self, frame: &[u8]) -> Result<(), Problem> {
        let arp: &[u8; ARP_BYTES] =
            frame[usize::from(self.l3_offset)..].first_chunk().ok_or(Problem::ArpTruncated)?;
        // Hardware type 1 (Ethernet), protocol IPv4, address lengths 6 and 4.
        let expected = [0, 1, (ethertype::IPV4 >> 8) as u8, ethertype::IPV4 as u8, 6, 4];
        if arp[..6] != expected {
            return Err(Problem::ArpAddresses);
        }
        self.network = Network::Arp(Arp {
            operation: be16(arp, 6),
            sender_mac: array(arp, 8),
            sender: Ipv4Addr::from(array::<4>(arp, 14)),
            target_mac: array(arp, 18),
            target: Ipv4Addr::from(array::<4>(arp, 24)),
        });
        self.payload_end = self.l3_offset + ARP_BYTES as u16;
        self.l4_offset = self.payload_end;
        self.payload_offset = self.payload_end;
        Ok(())
    }

    pub(super) fn parse_ipv4(&mut self, frame: &[u8]) -> Result<(), Problem> {
        let packet = &frame[usize::from(self.l3_offset)..];
        let ip: &[u8; IPV4_BYTES] = packet.first_chunk().ok_or(Problem::IpTruncated)?;
        if ip[0] >> 4 != 4 {
            return Err(Problem::IpVersion);
        }
        let header_bytes = (ip[0] & 0x0f) * 4;
        if usize::from(header_bytes) < IPV4_BYTES {
            return Err(Problem::Ipv4HeaderLength);
        }
        if usize::from(header_bytes) > packet.len() {
            return Err(Problem::IpTruncated);
        }
        let total_bytes = be16(ip, 2);
        if total_bytes < u16::from(header_bytes) || usize::from(total_bytes) > packet.len() {
            return Err(Problem::IpLength);
        }
        let flags_and_offset = be16(ip, 6);
        let offset = flags_and_offset & 0x1fff;
        let fragment = Fragment::new(offset, flags_and_offset & 0x2000 != 0);
        let proto = ip[9];
        self.network = Network::Ipv4(Ipv4 {
            src: Ipv4Addr::from(array::<4>(ip, 12)),
            dst: Ipv4Addr::from(array::<4>(ip, 16)),
            proto,
            ttl: ip[8],
            tos: ip[1],
            header_bytes,
            fragment,
            fragment_offset_bytes: offset.wrapping_mul(8),
            identification: be16(ip, 4),
        });
        // total_bytes ≤ packet.len(), so the sum is at most the frame's length.
        self.payload_end = self.l3_offset + total_bytes;
        self.l4_offset = self.l3_offset + u16::from(header_bytes);
        self.payload_offset = self.l4_offset;
        self.parse_transport(frame, proto, fragment)
    }

    pub(super) fn parse_ipv6(&mut self, frame: &[u8]) -> Result<(), Problem> {
        let packet = &frame[usize::from(self.l3_offset)..];
        let ip: &[u8; IPV6_BYTES] = packet.first_chunk().ok_or(Problem::IpTruncated)?;
        if ip[0] >> 4 != 6 {
            return Err(Problem::IpVersion);
        }
        let total_bytes = IPV6_BYTES + usize::from(be16(ip, 4));
        let packet = packet.get(..total_bytes).ok_or(Problem::IpLength)?;
        let mut header = Ipv6 {
            src: Ipv6Addr::from(array::<16>(ip, 8)),
            dst: Ipv6Addr::from(array::<16>(ip, 24)),
            proto: ip[6],
            hop_limit: ip[7],
            traffic_class: (be16(ip, 0) >> 4) as u8,
            flow_label: u32::from_be_bytes(array(ip, 0)) & 0x000f_ffff,
            fragment: Fragment::Whole,
            fragment_offset_bytes: 0,
            routed: false,
        };
        let walked = walk_extensions(packet, &mut header);
        self.network = Network::Ipv6(header);
        self.payload_end = self.l3_offset + total_bytes as u16;
        self.l4_offset = self.payload_end;
        self.payload_offset = self.payload_end;
        // At most the packet's length, as `walk_extensions` says.
        self.l4_offset = self.l3_offset + walked? as u16;
        self.payload_offset = self.l4_offset;
        self.parse_transport(frame, header.proto, header.fragment)
    }
}

/// Walks the extension headers of `packet`, which starts at the IPv6 header; returns where the
/// first byte behind them is, inside the packet or at its end.
fn walk_extensions(packet: &[u8], header: &mut Ipv6) -> Result<usize, Problem> {
    let mut at = IPV6_BYTES;
    for _ in 0..=MAX_EXTENSIONS {
        let here = header.proto;
        let known = matches!(
            here,
            ip_proto::HOP_BY_HOP
                | ip_proto::ROUTING
                | ip_proto::FRAGMENT
                | ip_proto::AH
                | ip_proto::DESTINATION
                | ip_proto::MOBILITY
                | ip_proto::HIP
                | ip_proto::SHIM6
        );
        if !known {
            return Ok(at);
        }
        // Every extension header is 8 bytes long or more.
        let start: &[u8; 8] = packet[at..].first_chunk().ok_or(Problem::ExtensionTruncated)?;
        let length = match here {
            ip_proto::FRAGMENT => 8,
            // RFC 4302: in units of 4 bytes, minus 2.
            ip_proto::AH => (usize::from(start[1]) + 2) * 4,
            // RFC 8200: in units of 8 bytes, not counting the first 8.
            _ => (usize::from(start[1]) + 1) * 8,
        };
        if packet.len() - at < length {
            return Err(Problem::ExtensionTruncated);
        }
        header.proto = start[0];
        at += length;
        match here {
            ip_proto::FRAGMENT => {
                let word = be16(start, 2);
                header.fragment = Fragment::new(word >> 3, word & 1 != 0);
                header.fragment_offset_bytes = word & 0xfff8;
                if header.fragment == Fragment::Later {
                    return Ok(at);
                }
            }
            ip_proto::ROUTING if start[3] > 0 => header.routed = true,
            _ => {}
        }
    }
    Err(Problem::TooManyExtensions)
}
