//! Where the headers of a frame are, and what they say.
//!
//! [`Headers::parse`] walks Ethernet, up to two VLAN tags, ARP, IPv4, IPv6 with its extension
//! headers, TCP, UDP, SCTP and ICMP once, without allocation, in bounded work, and never fails: it
//! reports every layer that is sound and stops at the first that is not, which
//! [`Headers::problem`] names. A layer that is malformed is not reported at all, so that nothing is
//! ever decided by a field that lies outside its packet.
//!
//! Fragments: layer 4 is reported for a first fragment, and never for a later one, whose bytes are
//! data. [`Headers::edit`] changes fields and keeps the checksums right.
#![forbid(unsafe_code)]

pub mod checksum;
mod edit;
#[doc(hidden)]
pub mod fuzz;
mod network;
mod transport;

use std::net::IpAddr;

use thiserror::Error;

pub use edit::{EditError, HeaderEditor};
pub use network::{Arp, Fragment, Ipv4, Ipv6, Network};
pub use transport::{Transport, tcp_flags};

/// An Ethernet address.
pub type MacAddr = [u8; 6];

/// Length of an Ethernet header without tags, bytes.
pub const ETHERNET_BYTES: usize = 14;

/// EtherTypes that are looked into (IEEE 802 Numbers, IANA).
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// A customer VLAN tag (802.1Q).
    pub const VLAN: u16 = 0x8100;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// A service VLAN tag (802.1ad).
    pub const QINQ: u16 = 0x88a8;
}

/// Protocol numbers of IPv4 and next-header numbers of IPv6 (Assigned Internet Protocol Numbers).
pub mod ip_proto {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// Encapsulating security payload; what follows is encrypted.
    pub const ESP: u8 = 50;
    /// Authentication header.
    pub const AH: u8 = 51;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// IPv6: nothing follows.
    pub const NO_NEXT: u8 = 59;
    /// IPv6 destination options.
    pub const DESTINATION: u8 = 60;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// IPv6 mobility header.
    pub const MOBILITY: u8 = 135;
    /// Host identity protocol.
    pub const HIP: u8 = 139;
    /// Shim6.
    pub const SHIM6: u8 = 140;
}

/// A VLAN tag (802.1Q clause 9).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct VlanTag {
    /// Tag protocol: [`ethertype::VLAN`] or [`ethertype::QINQ`].
    pub tpid: u16,
    /// Priority (3 bits), drop-eligible (1), VLAN id (12).
    pub tci: u16,
}

impl VlanTag {
    /// The VLAN, 0 to 4095.
    #[must_use]
    pub fn id(self) -> u16 {
        self.tci & 0x0fff
    }

    /// The priority, 0 to 7.
    #[must_use]
    pub fn priority(self) -> u8 {
        (self.tci >> 13) as u8
    }
}

/// Why parsing stopped before the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum Problem {
    /// Fewer bytes than an Ethernet header.
    #[error("shorter than an Ethernet header")]
    EthernetTruncated,
    /// The frame ends within a VLAN tag.
    #[error("the frame ends within a VLAN tag")]
    VlanTruncated,
    /// More than two VLAN tags.
    #[error("more than two VLAN tags")]
    TooManyTags,
    /// The frame ends within the ARP packet.
    #[error("the frame ends within the ARP packet")]
    ArpTruncated,
    /// ARP for other addresses than Ethernet and IPv4.
    #[error("ARP for other addresses than Ethernet and IPv4")]
    ArpAddresses,
    /// The frame ends within the IP header.
    #[error("the frame ends within the IP header")]
    IpTruncated,
    /// The IP version does not fit the EtherType.
    #[error("the IP version does not fit the EtherType")]
    IpVersion,
    /// The IPv4 header is said to be shorter than 20 bytes.
    #[error("the IPv4 header length is below 20")]
    Ipv4HeaderLength,
    /// The IP length is smaller than the header, or larger than the frame.
    #[error("the IP length is smaller than its header or larger than the frame")]
    IpLength,
    /// The packet ends within an IPv6 extension header.
    #[error("the packet ends within an IPv6 extension header")]
    ExtensionTruncated,
    /// More IPv6 extension headers than are walked.
    #[error("more than {max} IPv6 extension headers", max = network::MAX_EXTENSIONS)]
    TooManyExtensions,
    /// The packet ends within the header of layer 4.
    #[error("the packet ends within the header of layer 4")]
    TransportTruncated,
    /// The TCP data offset is below 20 or beyond the packet.
    #[error("the TCP data offset is below 20 or beyond the packet")]
    TcpDataOffset,
    /// The UDP length is below 8 or larger than the packet.
    #[error("the UDP length is below 8 or larger than the packet")]
    UdpLength,
}

/// The headers of one frame. Offsets are bytes from the start of the frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    /// Destination Ethernet address.
    pub dst_mac: MacAddr,
    /// Source Ethernet address.
    pub src_mac: MacAddr,
    /// EtherType after the tags; below 1536 it is an 802.3 length. 0 when the frame is too short.
    pub ethertype: u16,
    tags: [VlanTag; 2],
    tag_count: u8,
    /// Where layer 3 starts.
    pub l3_offset: u16,
    /// Where layer 4 (or a later fragment's data) starts; equals `payload_end` without IP.
    pub l4_offset: u16,
    /// Where the payload of layer 4 starts; equals `l4_offset` when that is not known.
    pub payload_offset: u16,
    /// One past the packet's last byte: what follows is Ethernet padding.
    pub payload_end: u16,
    /// Layer 3.
    pub network: Network,
    /// Layer 4.
    pub transport: Transport,
    /// Why parsing stopped early.
    pub problem: Option<Problem>,
}

impl Headers {
    /// Reads the headers of a frame. Bytes behind the first 65,535 are ignored.
    #[must_use]
    #[inline]
    pub fn parse(frame: &[u8]) -> Self {
        let frame = &frame[..frame.len().min(usize::from(u16::MAX))];
        let mut headers = Self::default();
        headers.payload_end = frame.len() as u16;
        headers.l3_offset = headers.payload_end;
        headers.l4_offset = headers.payload_end;
        headers.payload_offset = headers.payload_end;
        headers.problem = headers.parse_ethernet(frame).err();
        headers
    }

    fn parse_ethernet(&mut self, frame: &[u8]) -> Result<(), Problem> {
        let header: &[u8; ETHERNET_BYTES] =
            frame.first_chunk().ok_or(Problem::EthernetTruncated)?;
        [self.dst_mac, self.src_mac] = [array(header, 0), array(header, 6)];
        let mut next = u16::from_be_bytes([header[12], header[13]]);
        let mut at = ETHERNET_BYTES;
        while matches!(next, ethertype::VLAN | ethertype::QINQ) {
            let tag: &[u8; 4] = frame[at..].first_chunk().ok_or(Problem::VlanTruncated)?;
            let slot =
                self.tags.get_mut(usize::from(self.tag_count)).ok_or(Problem::TooManyTags)?;
            *slot = VlanTag { tpid: next, tci: u16::from_be_bytes([tag[0], tag[1]]) };
            self.tag_count += 1;
            next = u16::from_be_bytes([tag[2], tag[3]]);
            at += 4;
        }
        self.ethertype = next;
        self.l3_offset = at as u16;
        match next {
            ethertype::IPV4 => self.parse_ipv4(frame),
            ethertype::IPV6 => self.parse_ipv6(frame),
            ethertype::ARP => self.parse_arp(frame),
            _ => Ok(()),
        }
    }

    /// The VLAN tags, outermost first.
    #[must_use]
    pub fn vlan_tags(&self) -> &[VlanTag] {
        &self.tags[..usize::from(self.tag_count)]
    }

    /// Source and destination address of the IP packet.
    #[must_use]
    pub fn addresses(&self) -> Option<(IpAddr, IpAddr)> {
        match &self.network {
            Network::Ipv4(ip) => Some((ip.src.into(), ip.dst.into())),
            Network::Ipv6(ip) => Some((ip.src.into(), ip.dst.into())),
            _ => None,
        }
    }

    /// The IP protocol: of IPv6, the one behind the extension headers.
    #[must_use]
    pub fn ip_proto(&self) -> Option<u8> {
        match &self.network {
            Network::Ipv4(ip) => Some(ip.proto),
            Network::Ipv6(ip) => Some(ip.proto),
            _ => None,
        }
    }

    /// Which part of a datagram this is.
    #[must_use]
    pub fn fragment(&self) -> Fragment {
        match &self.network {
            Network::Ipv4(ip) => ip.fragment,
            Network::Ipv6(ip) => ip.fragment,
            _ => Fragment::Whole,
        }
    }

    /// Source and destination port of TCP, UDP or SCTP.
    #[must_use]
    pub fn ports(&self) -> Option<(u16, u16)> {
        self.transport.ports()
    }

    /// The payload of layer 4, without Ethernet padding.
    #[must_use]
    pub fn payload<'f>(&self, frame: &'f [u8]) -> &'f [u8] {
        frame
            .get(usize::from(self.payload_offset)..usize::from(self.payload_end))
            .unwrap_or_default()
    }

    /// To change fields of `frame`, the frame that was parsed; `self` is kept in step.
    #[must_use]
    pub fn edit<'a>(&'a mut self, frame: &'a mut [u8]) -> HeaderEditor<'a> {
        HeaderEditor::new(frame, self)
    }
}

/// `N` bytes of a fixed-size header at a constant offset.
#[inline]
fn array<const N: usize>(header: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&header[at..at + N]);
    out
}

#[inline]
fn be16(header: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(header, at))
}

#[cfg(test)]
mod tests;
