//! Frames for tests, built with right lengths and checksums.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use crate::headers::{Headers, MacAddr, checksum, ethertype, ip_proto};

/// Builds one frame from the outside in. What is not said is a plausible default.
///
/// ```
/// use nflib::headers::Headers;
/// use nflib::testing::FrameBuilder;
///
/// let frame = FrameBuilder::new()
///     .vlan(7)
///     .ip("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap())
///     .udp(5000, 53)
///     .payload(b"hello")
///     .build();
/// let headers = Headers::parse(&frame);
/// assert_eq!(headers.ports(), Some((5000, 53)));
/// assert_eq!(headers.payload(&frame), b"hello");
/// ```
#[derive(Clone, Debug)]
pub struct FrameBuilder {
    dst_mac: MacAddr,
    src_mac: MacAddr,
    tags: Vec<(u16, u16)>,
    ethertype: u16,
    addresses: Option<(IpAddr, IpAddr)>,
    ttl: u8,
    tos: u8,
    fragment: (u16, bool),
    extensions: Vec<(u8, Vec<u8>)>,
    proto: u8,
    transport: Vec<u8>,
    payload: Vec<u8>,
    pad_to_bytes: usize,
}

impl Default for FrameBuilder {
    fn default() -> Self {
        Self {
            dst_mac: [2, 0, 0, 0, 0, 2],
            src_mac: [2, 0, 0, 0, 0, 1],
            tags: Vec::new(),
            ethertype: 0x88b5, // local experimental
            addresses: None,
            ttl: 64,
            tos: 0,
            fragment: (0, false),
            extensions: Vec::new(),
            proto: 253, // for experiments
            transport: Vec::new(),
            payload: Vec::new(),
            pad_to_bytes: 0,
        }
    }
}

impl FrameBuilder {
    /// An Ethernet frame without anything in it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the Ethernet addresses, source first.
    #[must_use]
    pub fn macs(mut self, src: MacAddr, dst: MacAddr) -> Self {
        (self.src_mac, self.dst_mac) = (src, dst);
        self
    }

    /// Sets the EtherType of a frame without IP.
    #[must_use]
    pub fn ethertype(mut self, ethertype: u16) -> Self {
        self.ethertype = ethertype;
        self
    }

    /// Adds an 802.1Q tag inside those there are.
    #[must_use]
    pub fn vlan(self, tci: u16) -> Self {
        self.tag(ethertype::VLAN, tci)
    }

    /// Adds a tag of any protocol inside those there are.
    #[must_use]
    pub fn tag(mut self, tpid: u16, tci: u16) -> Self {
        self.tags.push((tpid, tci));
        self
    }

    /// Makes it an IP packet; the version is that of `src`.
    #[must_use]
    pub fn ip(mut self, src: IpAddr, dst: IpAddr) -> Self {
        self.addresses = Some((src, dst));
        self.ethertype = if src.is_ipv4() { ethertype::IPV4 } else { ethertype::IPV6 };
        self
    }

    /// Sets the time to live (hop limit).
    #[must_use]
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// Sets the type of service (traffic class).
    #[must_use]
    pub fn tos(mut self, tos: u8) -> Self {
        self.tos = tos;
        self
    }

    /// Makes it a fragment, its offset in units of 8 bytes.
    #[must_use]
    pub fn fragment(mut self, offset: u16, more: bool) -> Self {
        self.fragment = (offset, more);
        if self.addresses.is_some_and(|(src, _)| src.is_ipv6()) {
            let word = offset << 3 | u16::from(more);
            let [high, low] = word.to_be_bytes();
            return self.extension(ip_proto::FRAGMENT, &[0, 0, high, low, 0, 0, 0, 9]);
        }
        self
    }

    /// Adds an IPv6 extension header; its first byte is filled in.
    #[must_use]
    pub fn extension(mut self, kind: u8, bytes: &[u8]) -> Self {
        self.extensions.push((kind, bytes.to_vec()));
        self
    }

    /// Makes it a UDP datagram.
    #[must_use]
    pub fn udp(mut self, src: u16, dst: u16) -> Self {
        self.proto = ip_proto::UDP;
        self.transport = ports(src, dst);
        self.transport.extend([0; 4]);
        self
    }

    /// Makes it a TCP segment with the flags of [`tcp_flags`](crate::headers::tcp_flags).
    #[must_use]
    pub fn tcp(mut self, src: u16, dst: u16, flags: u8) -> Self {
        self.proto = ip_proto::TCP;
        self.transport = ports(src, dst);
        self.transport.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        self
    }

    /// Makes it an SCTP packet.
    #[must_use]
    pub fn sctp(mut self, src: u16, dst: u16) -> Self {
        self.proto = ip_proto::SCTP;
        self.transport = ports(src, dst);
        self.transport.extend([0; 8]);
        self
    }

    /// Makes it an ICMP or ICMPv6 message.
    #[must_use]
    pub fn icmp(mut self, kind: u8, code: u8) -> Self {
        let is_v6 = self.addresses.is_some_and(|(src, _)| src.is_ipv6());
        self.proto = if is_v6 { ip_proto::ICMPV6 } else { ip_proto::ICMP };
        self.transport = vec![kind, code, 0, 0, 0, 0, 0, 0];
        self
    }

    /// Makes it an IP packet of another protocol.
    #[must_use]
    pub fn proto(mut self, proto: u8) -> Self {
        self.proto = proto;
        self
    }

    /// Sets the payload.
    #[must_use]
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self
    }

    /// Adds zeroes behind the packet until the frame has this length.
    #[must_use]
    pub fn pad_to(mut self, bytes: usize) -> Self {
        self.pad_to_bytes = bytes;
        self
    }

    /// The frame.
    #[must_use]
    pub fn build(self) -> Vec<u8> {
        let mut frame = Vec::new();
        frame.extend(self.dst_mac);
        frame.extend(self.src_mac);
        for (tpid, tci) in &self.tags {
            frame.extend(tpid.to_be_bytes());
            frame.extend(tci.to_be_bytes());
        }
        frame.extend(self.ethertype.to_be_bytes());
        let mut segment = self.transport.clone();
        segment.extend(&self.payload);
        if self.proto == ip_proto::UDP && segment.len() >= 8 {
            let length = length16(segment.len());
            segment[4..6].copy_from_slice(&length.to_be_bytes());
        }
        match self.addresses {
            Some((IpAddr::V4(src), IpAddr::V4(dst))) => {
                self.ipv4(&mut frame, src.octets(), dst.octets(), segment.len());
            }
            Some((IpAddr::V6(src), IpAddr::V6(dst))) => {
                self.ipv6(&mut frame, src.octets(), dst.octets(), segment.len());
            }
            _ => {}
        }
        frame.extend(segment);
        if frame.len() < self.pad_to_bytes {
            frame.resize(self.pad_to_bytes, 0);
        }
        let headers = Headers::parse(&frame);
        checksum::fill_transport(&mut frame, &headers);
        frame
    }

    fn ipv4(&self, frame: &mut Vec<u8>, src: [u8; 4], dst: [u8; 4], segment_bytes: usize) {
        let total = length16(20 + segment_bytes).to_be_bytes();
        let flags = (self.fragment.0 & 0x1fff | u16::from(self.fragment.1) << 13).to_be_bytes();
        let mut header = vec![0x45, self.tos, total[0], total[1], 0, 1, flags[0], flags[1]];
        header.extend([self.ttl, self.proto, 0, 0]);
        header.extend(src);
        header.extend(dst);
        let sum = checksum::internet(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        frame.extend(header);
    }

    fn ipv6(&self, frame: &mut Vec<u8>, src: [u8; 16], dst: [u8; 16], segment_bytes: usize) {
        let extension_bytes: usize = self.extensions.iter().map(|(_, bytes)| bytes.len()).sum();
        let word = 6 << 28 | u32::from(self.tos) << 20;
        frame.extend(word.to_be_bytes());
        frame.extend(length16(extension_bytes + segment_bytes).to_be_bytes());
        let kinds = self.extensions.iter().map(|(kind, _)| *kind).chain([self.proto]);
        let mut next = kinds.collect::<Vec<_>>().into_iter();
        frame.extend(next.next());
        frame.push(self.ttl);
        frame.extend(src);
        frame.extend(dst);
        for ((_, bytes), next) in self.extensions.iter().zip(next) {
            frame.push(next);
            frame.extend(&bytes[1..]);
        }
    }
}

fn ports(src: u16, dst: u16) -> Vec<u8> {
    [src.to_be_bytes(), dst.to_be_bytes()].concat()
}

fn length16(bytes: usize) -> u16 {
    u16::try_from(bytes).unwrap_or(u16::MAX)
}
