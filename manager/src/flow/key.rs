//! What the flow table looks at: the fields of one packet, in ten words.
//!
//! ```text
//!      63        56 55         48 47        32 31    24 23  16 15   13 12   11 10  9 8  7       0
//! w0 │ 0          │ tcp_flags   │ eth_type   │ proto │ tos  │ 0    │ l4  │ frag│ l3 │ in_port   │
//! w1 │ inner VLAN: 0·present·vid│ outer VLAN: pcp·present·vid│ tp_dst           │ tp_src         │
//! w2 │ 0                        │ eth_src                                                       │
//! w3 │ 0                        │ eth_dst                                                       │
//! w4, w5   ip_src, 128 bits, high word first; an IPv4 or ARP sender address in the low 32
//! w6, w7   ip_dst, likewise; ARP: target address
//! w8 │ tunnel_id                                                                                │
//! w9 │ metadata                                                                                 │
//! ```
//! `tos` is DSCP (6 bits) and ECN (2). `tp_src` also holds the ICMP type and the ARP operation,
//! `tp_dst` the ICMP code: which of them it is, `eth_type` and `proto` say.
//!
//! **What cannot be read is absent.** Its bits are 0, and so are `l3` or `l4`, which say that a
//! sound header of that layer was read; every rule that names a field of a layer also asks for that
//! layer, so a field that is 0 and one that is not there are never confused. What is sound is told
//! as `nflib::headers` tells it, so that rules and NFs see the same packet:
//!
//! | frame | key |
//! |---|---|
//! | shorter than an Ethernet header | everything of the frame absent |
//! | ends within a VLAN tag | addresses, tags before it; `eth_type` 0 |
//! | a third tag | both tags; `eth_type` is the third tag's type |
//! | 802.3 length instead of a type | `eth_type` 0x05ff, as OpenFlow has it |
//! | IP: wrong version, header too short, length beyond the frame | `eth_type` only |
//! | IPv6: an extension header cut off, or more than eight | addresses, `tos`, the protocol reached, and the fragment state if its header was passed |
//! | TCP, UDP, SCTP, ICMP: cut off, impossible length | layer 3 only |
//! | a later fragment | layer 3 only: its bytes are data |
#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, Ipv6Addr};

use nflib::descriptor::PortId;
use nflib::headers::{Fragment, ethertype, ip_proto};

/// Words of a key.
pub const KEY_WORDS: usize = 10;
/// IPv6 extension headers that are walked at most, as in `nflib::headers`.
const MAX_EXTENSIONS: usize = 8;
/// A service tag of the time before 802.1ad.
const QINQ_OLD: u16 = 0x9100;
/// `eth_type` of a frame that has a length in its place (OpenFlow's OFP_DL_TYPE_NOT_ETH_TYPE).
pub const ETH_TYPE_NONE: u16 = 0x05ff;

/// Where a field lies in a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Field {
    pub word: usize,
    pub shift: u32,
    pub bits: u32,
}

impl Field {
    const fn new(word: usize, shift: u32, bits: u32) -> Self {
        Self { word, shift, bits }
    }

    /// The largest value.
    pub const fn max(self) -> u64 {
        u64::MAX >> (64 - self.bits)
    }
}

/// The fields of a key.
pub(super) mod field {
    use super::Field;

    pub const IN_PORT: Field = Field::new(0, 0, 8);
    /// 0 none, [`super::L3_IPV4`], [`super::L3_ARP`], [`super::L3_IPV6`].
    pub const L3: Field = Field::new(0, 8, 2);
    /// The bit that IPv4 and IPv6 have in common.
    pub const IS_IP: Field = Field::new(0, 8, 1);
    /// 0 no fragment, 1 first, 3 later.
    pub const FRAG: Field = Field::new(0, 10, 2);
    pub const IS_FRAG: Field = Field::new(0, 10, 1);
    pub const L4: Field = Field::new(0, 12, 1);
    pub const ECN: Field = Field::new(0, 16, 2);
    pub const DSCP: Field = Field::new(0, 18, 6);
    pub const PROTO: Field = Field::new(0, 24, 8);
    pub const ETH_TYPE: Field = Field::new(0, 32, 16);
    pub const TCP_FLAGS: Field = Field::new(0, 48, 8);
    pub const TP_SRC: Field = Field::new(1, 0, 16);
    pub const TP_DST: Field = Field::new(1, 16, 16);
    pub const VLAN_VID: Field = Field::new(1, 32, 12);
    pub const VLAN_PRESENT: Field = Field::new(1, 44, 1);
    pub const VLAN_PCP: Field = Field::new(1, 45, 3);
    pub const INNER_VID: Field = Field::new(1, 48, 12);
    pub const INNER_PRESENT: Field = Field::new(1, 60, 1);
    pub const ETH_SRC: Field = Field::new(2, 0, 48);
    pub const ETH_DST: Field = Field::new(3, 0, 48);
    pub const TUNNEL_ID: Field = Field::new(8, 0, 64);
    pub const METADATA: Field = Field::new(9, 0, 64);
}

/// First word of `ip_src`.
pub(super) const IP_SRC_WORD: usize = 4;
/// First word of `ip_dst`.
pub(super) const IP_DST_WORD: usize = 6;

pub(super) const L3_IPV4: u64 = 1;
pub(super) const L3_ARP: u64 = 2;
pub(super) const L3_IPV6: u64 = 3;
pub(super) const FRAG_FIRST: u64 = 1;
pub(super) const FRAG_LATER: u64 = 3;

/// The fields of a packet that rules can look at. See the module's head for the layout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C, align(16))]
pub struct FlowKey(pub(super) [u64; KEY_WORDS]);

impl FlowKey {
    /// Reads a frame that starts with its Ethernet header, in one pass, without allocation and in
    /// bounded work. Never fails: see the module's head for what is absent when.
    #[must_use]
    #[inline]
    pub fn parse(frame: &[u8], in_port: PortId, tunnel_id: u64, metadata: u64) -> Self {
        Self::parse_start(frame, frame.len(), in_port, tunnel_id, metadata)
    }

    /// The same of the first bytes of a frame that is `frame_bytes` long: a header that is not among
    /// them is absent, and lengths that headers tell are judged by the whole frame.
    #[must_use]
    #[inline]
    pub fn parse_start(
        frame: &[u8],
        frame_bytes: usize,
        in_port: PortId,
        tunnel_id: u64,
        metadata: u64,
    ) -> Self {
        let mut key = Self::default();
        key.0[0] = u64::from(in_port);
        key.0[8] = tunnel_id;
        key.0[9] = metadata;
        // As `nflib::headers`: what lies behind cannot be named by a descriptor.
        let frame_bytes = frame_bytes.min(usize::from(u16::MAX));
        let frame = &frame[..frame.len().min(frame_bytes)];
        let unseen_bytes = frame_bytes - frame.len();
        let Some(ethernet) = frame.first_chunk::<14>() else { return key };
        key.0[2] = be48(ethernet, 6);
        key.0[3] = be48(ethernet, 0);
        let mut eth_type = be16(ethernet, 12);
        let mut packet = &frame[14..];
        if is_tag(eth_type) {
            match key.read_tags(packet) {
                Some((inner_type, rest)) => (eth_type, packet) = (inner_type, rest),
                None => return key,
            }
        }
        let shown = if eth_type < 1536 { ETH_TYPE_NONE } else { eth_type };
        key.0[0] |= u64::from(shown) << field::ETH_TYPE.shift;
        match eth_type {
            ethertype::IPV4 => key.read_ipv4(packet, unseen_bytes),
            ethertype::IPV6 => key.read_ipv6(packet, unseen_bytes),
            ethertype::ARP => key.read_arp(packet),
            _ => {}
        }
        key
    }

    /// Reads one or two tags; `None` when the frame ends within one.
    #[inline]
    fn read_tags<'f>(&mut self, packet: &'f [u8]) -> Option<(u16, &'f [u8])> {
        let tag = packet.first_chunk::<4>()?;
        // Priority and id; the drop-eligible bit's place says that there is a tag.
        let tci = be16(tag, 0) & 0xefff | 0x1000;
        self.0[1] |= u64::from(tci) << field::VLAN_VID.shift;
        let (mut next, mut rest) = (be16(tag, 2), &packet[4..]);
        if is_tag(next) {
            let tag = rest.first_chunk::<4>()?;
            let tci = be16(tag, 0) & 0x0fff | 0x1000;
            self.0[1] |= u64::from(tci) << field::INNER_VID.shift;
            (next, rest) = (be16(tag, 2), &rest[4..]);
        }
        Some((next, rest))
    }

    #[inline]
    fn read_arp(&mut self, packet: &[u8]) {
        let Some(arp) = packet.first_chunk::<28>() else { return };
        // Hardware type 1 (Ethernet), protocol IPv4, address lengths 6 and 4.
        if arp[..6] != [0, 1, 8, 0, 6, 4] {
            return;
        }
        self.0[0] |= L3_ARP << field::L3.shift;
        self.0[1] |= u64::from(be16(arp, 6)) << field::TP_SRC.shift;
        self.0[IP_SRC_WORD + 1] = u64::from(be32(arp, 14));
        self.0[IP_DST_WORD + 1] = u64::from(be32(arp, 24));
    }

    #[inline]
    fn read_ipv4(&mut self, packet: &[u8], unseen_bytes: usize) {
        let Some(ip) = packet.first_chunk::<20>() else { return };
        let header_bytes = usize::from(ip[0] & 0x0f) * 4;
        let total_bytes = usize::from(be16(ip, 2));
        if ip[0] >> 4 != 4
            || header_bytes < 20
            || total_bytes < header_bytes
            || total_bytes > packet.len() + unseen_bytes
        {
            return;
        }
        let place = be16(ip, 6);
        let fragment = match (place & 0x1fff, place & 0x2000) {
            (0, 0) => 0,
            (0, _) => FRAG_FIRST,
            _ => FRAG_LATER,
        };
        self.0[0] |= L3_IPV4 << field::L3.shift
            | fragment << field::FRAG.shift
            | u64::from(ip[1]) << field::ECN.shift
            | u64::from(ip[9]) << field::PROTO.shift;
        self.0[IP_SRC_WORD + 1] = u64::from(be32(ip, 12));
        self.0[IP_DST_WORD + 1] = u64::from(be32(ip, 16));
        if fragment != FRAG_LATER {
            let Some(segment) = packet.get(header_bytes..) else { return };
            self.read_transport(ip[9], segment, total_bytes - header_bytes);
        }
    }

    fn read_ipv6(&mut self, packet: &[u8], unseen_bytes: usize) {
        let Some(ip) = packet.first_chunk::<40>() else { return };
        let total_bytes = 40 + usize::from(be16(ip, 4));
        if ip[0] >> 4 != 6 || total_bytes > packet.len() + unseen_bytes {
            return;
        }
        let packet = &packet[..packet.len().min(total_bytes)];
        let [src, dst] = [8, 24].map(|at| [be64(ip, at), be64(ip, at + 8)]);
        self.0[IP_SRC_WORD..IP_SRC_WORD + 2].copy_from_slice(&src);
        self.0[IP_DST_WORD..IP_DST_WORD + 2].copy_from_slice(&dst);
        let tos = be16(ip, 0) >> 4 & 0xff;
        self.0[0] |= L3_IPV6 << field::L3.shift | u64::from(tos) << field::ECN.shift;
        let mut walk = Walk { proto: ip[6], fragment: 0 };
        let segment = walk.extensions(&packet[40..]);
        self.0[0] |=
            walk.fragment << field::FRAG.shift | u64::from(walk.proto) << field::PROTO.shift;
        if let Some(segment) = segment {
            let before_bytes = packet.len() - segment.len();
            self.read_transport(walk.proto, segment, total_bytes - before_bytes);
        }
    }

    /// Reads the header at the start of `segment`, the payload of the IP packet or its beginning;
    /// the whole payload has `segment_bytes`.
    #[inline]
    fn read_transport(&mut self, proto: u8, segment: &[u8], segment_bytes: usize) {
        let segment = &segment[..segment.len().min(segment_bytes)];
        let kind = self.0[0] >> field::L3.shift & 3;
        let whole = self.0[0] >> field::FRAG.shift & 1 == 0;
        match proto {
            ip_proto::TCP => {
                let Some(tcp) = segment.first_chunk::<20>() else { return };
                let header_bytes = usize::from(tcp[12] >> 4) * 4;
                if header_bytes < 20 || header_bytes > segment_bytes {
                    return;
                }
                self.0[0] |= u64::from(tcp[13]) << field::TCP_FLAGS.shift;
                self.set_ports(be16(tcp, 0), be16(tcp, 2));
            }
            ip_proto::UDP => {
                let Some(udp) = segment.first_chunk::<8>() else { return };
                let length = usize::from(be16(udp, 4));
                // A first fragment is shorter than its datagram.
                if length >= 8 && (!whole || length <= segment_bytes) {
                    self.set_ports(be16(udp, 0), be16(udp, 2));
                }
            }
            ip_proto::SCTP => {
                let Some(sctp) = segment.first_chunk::<12>() else { return };
                self.set_ports(be16(sctp, 0), be16(sctp, 2));
            }
            ip_proto::ICMP if kind == L3_IPV4 => {
                let Some(icmp) = segment.first_chunk::<8>() else { return };
                self.set_ports(u16::from(icmp[0]), u16::from(icmp[1]));
            }
            ip_proto::ICMPV6 if kind == L3_IPV6 => {
                let Some(icmp) = segment.first_chunk::<4>() else { return };
                self.set_ports(u16::from(icmp[0]), u16::from(icmp[1]));
            }
            _ => {}
        }
    }

    #[inline]
    fn set_ports(&mut self, src: u16, dst: u16) {
        self.0[0] |= 1 << field::L4.shift;
        self.0[1] |= u64::from(src) | u64::from(dst) << field::TP_DST.shift;
    }

    /// A number for the packet's flow, the same in both directions, never 0.
    ///
    /// Over the addresses, the protocol and the ports of TCP, UDP and SCTP. Of fragments, over the
    /// addresses alone: a later fragment has no ports, and in IPv6 may not even tell its protocol,
    /// yet the parts of a datagram must stay together. Of ICMP, without type and code, so that an
    /// answer keeps to its question. Where there is no IP, over the Ethernet addresses and the type.
    #[must_use]
    #[inline]
    pub fn flow_hash(&self) -> u32 {
        let w = &self.0;
        let proto = w[0] >> field::PROTO.shift & 0xff;
        let (source, destination, kind) = if w[0] >> field::IS_IP.shift & 1 == 0 {
            (mix(w[2], SECRET[0]), mix(w[3], SECRET[0]), w[0] >> field::ETH_TYPE.shift & 0xffff)
        } else {
            let fragment = w[0] >> field::FRAG.shift & 1 != 0;
            let has_ports = matches!(proto as u8, ip_proto::TCP | ip_proto::UDP | ip_proto::SCTP);
            let ports = if has_ports && !fragment { w[1] as u32 } else { 0 };
            let kind = if fragment { 0 } else { proto } | 1 << 16;
            (end_hash(w[4], w[5], ports & 0xffff), end_hash(w[6], w[7], ports >> 16), kind)
        };
        // Both are symmetric, and together they tell {a, b} from every other pair.
        let both = mix(
            source.wrapping_add(destination) ^ SECRET[1],
            (source ^ destination).wrapping_add(kind.wrapping_mul(SECRET[2])) ^ SECRET[3],
        );
        let hash = (both ^ both >> 32) as u32;
        if hash == 0 { 1 } else { hash }
    }

    /// The port it came in by.
    #[must_use]
    pub fn in_port(&self) -> PortId {
        self.get(field::IN_PORT) as u8
    }

    /// The type of the innermost Ethernet payload; 0 when it could not be read.
    #[must_use]
    pub fn eth_type(&self) -> u16 {
        self.get(field::ETH_TYPE) as u16
    }

    /// The outer VLAN: its id and its priority.
    #[must_use]
    pub fn vlan(&self) -> Option<(u16, u8)> {
        (self.get(field::VLAN_PRESENT) == 1)
            .then(|| (self.get(field::VLAN_VID) as u16, self.get(field::VLAN_PCP) as u8))
    }

    /// The second VLAN id.
    #[must_use]
    pub fn inner_vlan(&self) -> Option<u16> {
        (self.get(field::INNER_PRESENT) == 1).then(|| self.get(field::INNER_VID) as u16)
    }

    /// The IP protocol; of IPv6, the one reached behind the extension headers.
    #[must_use]
    pub fn ip_proto(&self) -> Option<u8> {
        (self.get(field::IS_IP) == 1).then(|| self.get(field::PROTO) as u8)
    }

    /// Which part of a datagram it is.
    #[must_use]
    pub fn fragment(&self) -> Fragment {
        match self.get(field::FRAG) {
            0 => Fragment::Whole,
            FRAG_FIRST => Fragment::First,
            _ => Fragment::Later,
        }
    }

    /// Source and destination port of TCP, UDP or SCTP.
    #[must_use]
    pub fn ports(&self) -> Option<(u16, u16)> {
        matches!(self.ip_proto()?, ip_proto::TCP | ip_proto::UDP | ip_proto::SCTP)
            .then(|| self.transport())?
    }

    /// Type and code of ICMP or ICMPv6.
    #[must_use]
    pub fn icmp(&self) -> Option<(u8, u8)> {
        let (kind, code) = self.transport()?;
        matches!(self.ip_proto()?, ip_proto::ICMP | ip_proto::ICMPV6)
            .then_some((kind as u8, code as u8))
    }

    fn transport(&self) -> Option<(u16, u16)> {
        (self.get(field::L4) == 1)
            .then(|| (self.get(field::TP_SRC) as u16, self.get(field::TP_DST) as u16))
    }

    /// Source and destination of an IPv4 packet, or sender and target of ARP.
    #[must_use]
    pub fn ipv4(&self) -> Option<(Ipv4Addr, Ipv4Addr)> {
        let low = |word: usize| Ipv4Addr::from_bits(self.0[word + 1] as u32);
        matches!(self.get(field::L3), L3_IPV4 | L3_ARP)
            .then(|| (low(IP_SRC_WORD), low(IP_DST_WORD)))
    }

    /// Source and destination of an IPv6 packet.
    #[must_use]
    pub fn ipv6(&self) -> Option<(Ipv6Addr, Ipv6Addr)> {
        let full = |at: usize| {
            Ipv6Addr::from_bits(u128::from(self.0[at]) << 64 | u128::from(self.0[at + 1]))
        };
        (self.get(field::L3) == L3_IPV6).then(|| (full(IP_SRC_WORD), full(IP_DST_WORD)))
    }

    #[inline]
    pub(super) fn get(&self, field: Field) -> u64 {
        self.0[field.word] >> field.shift & field.max()
    }

    #[inline]
    pub(super) fn set(&mut self, field: Field, value: u64) {
        debug_assert!(value <= field.max(), "{value:#x} does not fit {field:?}");
        let word = &mut self.0[field.word];
        *word = *word & !(field.max() << field.shift) | value << field.shift;
    }

    /// The bits that are set in `mask`.
    #[must_use]
    #[inline]
    pub(super) fn masked(&self, mask: &Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] & mask.0[word]))
    }

    /// The words as they are compared: for benchmarks that hand the same bytes to a peer.
    #[must_use]
    pub fn words(&self) -> &[u64; KEY_WORDS] {
        &self.0
    }
}

/// A walk over IPv6 extension headers.
struct Walk {
    proto: u8,
    fragment: u64,
}

impl Walk {
    /// Walks to the header that is none; returns what starts there. `None` when it is not reached,
    /// or is data of a later fragment.
    fn extensions<'p>(&mut self, mut rest: &'p [u8]) -> Option<&'p [u8]> {
        for _ in 0..=MAX_EXTENSIONS {
            let here = self.proto;
            if !is_extension(here) {
                return Some(rest);
            }
            let start = rest.first_chunk::<8>()?;
            let length = match here {
                ip_proto::FRAGMENT => 8,
                // RFC 4302: in units of 4 bytes, minus 2.
                ip_proto::AH => (usize::from(start[1]) + 2) * 4,
                // RFC 8200: in units of 8 bytes, not counting the first 8.
                _ => (usize::from(start[1]) + 1) * 8,
            };
            rest = rest.get(length..)?;
            self.proto = start[0];
            if here == ip_proto::FRAGMENT {
                let place = be16(start, 2);
                self.fragment = match (place >> 3, place & 1) {
                    (0, 0) => 0,
                    (0, _) => FRAG_FIRST,
                    _ => FRAG_LATER,
                };
                if self.fragment == FRAG_LATER {
                    return None;
                }
            }
        }
        None
    }
}

#[inline]
fn is_extension(proto: u8) -> bool {
    matches!(
        proto,
        ip_proto::HOP_BY_HOP
            | ip_proto::ROUTING
            | ip_proto::FRAGMENT
            | ip_proto::AH
            | ip_proto::DESTINATION
            | ip_proto::MOBILITY
            | ip_proto::HIP
            | ip_proto::SHIM6
    )
}

#[inline]
fn is_tag(eth_type: u16) -> bool {
    matches!(eth_type, ethertype::VLAN | ethertype::QINQ | QINQ_OLD)
}

#[inline]
fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

#[inline]
fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[inline]
fn be48(bytes: &[u8], at: usize) -> u64 {
    u64::from(be32(bytes, at)) << 16 | u64::from(be16(bytes, at + 4))
}

#[inline]
fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from(be32(bytes, at)) << 32 | u64::from(be32(bytes, at + 4))
}

/// Odd numbers without pattern (digits of the square roots of small primes).
pub(super) const SECRET: [u64; 4] =
    [0x6a09_e667_f3bc_c909, 0xbb67_ae85_84ca_a73b, 0x3c6e_f372_fe94_f82b, 0xa54f_f53a_5f1d_36f1];

/// Both halves of the full product: every bit of either factor reaches every bit of the result.
#[inline(always)]
pub(super) fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// One end of a flow.
#[inline(always)]
fn end_hash(high: u64, low: u64, port: u32) -> u64 {
    let mixed = mix(high ^ SECRET[0] ^ u64::from(port) << 32, low ^ SECRET[1] ^ u64::from(port));
    // A factor that happens to be 0 must not hide the other.
    mixed ^ high.rotate_left(29)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use nflib::testing::FrameBuilder;

    use super::*;

    /// Frames of every kind of layer 4, their payload of any length.
    fn frames(payload: &[u8]) -> Vec<Vec<u8>> {
        let v4 = IpAddr::from(Ipv4Addr::new(10, 0, 0, 1));
        let v6 = IpAddr::from(Ipv6Addr::LOCALHOST);
        let mut frames = Vec::new();
        for address in [v4, v6] {
            let ip = || FrameBuilder::new().vlan(7).ip(address, address).payload(payload);
            frames.extend([
                ip().tcp(1, 80, 0x18).build(),
                ip().udp(1, 53).build(),
                ip().sctp(1, 2).build(),
                ip().icmp(8, 0).build(),
                ip().extension(0, &[0; 8]).udp(3, 4).build(),
            ]);
        }
        frames
    }

    #[test]
    fn the_start_of_a_frame_gives_the_key_of_the_frame_when_its_headers_are_in_it() {
        for payload_bytes in [0, 60, 200, 1400] {
            for frame in frames(&vec![7; payload_bytes]) {
                let whole = FlowKey::parse(&frame, 1, 0, 0);
                assert!(whole.transport().is_some(), "{frame:02x?}");
                let start = &frame[..frame.len().min(192)];
                assert_eq!(FlowKey::parse_start(start, frame.len(), 1, 0, 0), whole);
                // Without the true length it looks cut off.
                if start.len() < frame.len() {
                    assert_ne!(FlowKey::parse(start, 1, 0, 0), whole);
                }
            }
        }
    }

    #[test]
    fn a_header_behind_the_start_is_absent_and_lengths_beyond_the_frame_are_wrong() {
        for frame in frames(&[7; 100]) {
            let whole = FlowKey::parse(&frame, 1, 0, 0);
            // The transport header is cut.
            let start = &frame[..40];
            assert!(FlowKey::parse_start(start, frame.len(), 1, 0, 0).transport().is_none());
            // Shorter than its IP header says.
            assert_eq!(FlowKey::parse_start(&frame, frame.len() - 1, 1, 0, 0).ip_proto(), None);
            // Ethernet padding changes nothing.
            assert_eq!(FlowKey::parse_start(&frame, frame.len() + 9, 1, 0, 0), whole);
        }
    }
}
