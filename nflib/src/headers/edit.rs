//! Changing header fields, checksums included.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use thiserror::Error;

use super::checksum::{covers_addresses, field_offset, update};
use super::{Fragment, Headers, MacAddr, Network, Problem, Transport, checksum};

/// Why a field was not changed; the frame is then as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum EditError {
    /// The frame has no such header.
    #[error("the frame has no {0}")]
    NoHeader(&'static str),
    /// An IPv4 address for an IPv6 packet or the other way round.
    #[error("the address is of the other IP version than the packet")]
    OtherVersion,
    /// The checksum of SCTP covers the whole packet, of which a fragment is only a part.
    #[error("the SCTP checksum of a fragment cannot be computed")]
    SctpFragment,
    /// The time to live is 0 or 1: the packet may go no further.
    #[error("the time to live has run out")]
    Expired,
    /// The frame is not the one that was parsed.
    #[error("the frame is shorter than when its headers were parsed")]
    FrameChanged,
}

/// Changes fields of a frame and keeps its checksums, and the [`Headers`], in step.
///
/// Checksums of IPv4, TCP, UDP and ICMPv6 are updated from the difference (RFC 1624), so a wrong one
/// stays wrong and an error elsewhere in the packet is not hidden. A UDP checksum of 0, "not
/// used", stays 0. The CRC of SCTP is computed afresh.
///
/// Not kept in step: checksums of other protocols that cover addresses (UDP-Lite, DCCP), an
/// authentication header, and packets quoted inside ICMP errors.
pub struct HeaderEditor<'a> {
    frame: &'a mut [u8],
    headers: &'a mut Headers,
}

/// Which end of the packet.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Src,
    Dst,
}

impl<'a> HeaderEditor<'a> {
    pub(super) fn new(frame: &'a mut [u8], headers: &'a mut Headers) -> Self {
        Self { frame, headers }
    }

    /// Sets the destination Ethernet address.
    ///
    /// # Errors
    /// See [`EditError`].
    pub fn set_dst_mac(&mut self, mac: MacAddr) -> Result<(), EditError> {
        self.set_mac(0, mac)?;
        self.headers.dst_mac = mac;
        Ok(())
    }

    /// Sets the source Ethernet address.
    ///
    /// # Errors
    /// See [`EditError`].
    pub fn set_src_mac(&mut self, mac: MacAddr) -> Result<(), EditError> {
        self.set_mac(6, mac)?;
        self.headers.src_mac = mac;
        Ok(())
    }

    fn set_mac(&mut self, at: usize, mac: MacAddr) -> Result<(), EditError> {
        if self.headers.problem == Some(Problem::EthernetTruncated) {
            return Err(EditError::NoHeader("Ethernet header"));
        }
        self.replace(at, &mac, &[])
    }

    /// Sets the id (its low 12 bits) of the outermost VLAN tag.
    ///
    /// # Errors
    /// See [`EditError`].
    pub fn set_vlan_id(&mut self, id: u16) -> Result<(), EditError> {
        let tag = self.headers.vlan_tags().first().ok_or(EditError::NoHeader("VLAN tag"))?;
        let tci = tag.tci & 0xf000 | id & 0x0fff;
        self.replace(14, &tci.to_be_bytes(), &[])?;
        self.headers.tags[0].tci = tci;
        Ok(())
    }

    /// Sets the source address of the IP packet.
    ///
    /// # Errors
    /// See [`EditError`].
    pub fn set_src_addr(&mut self, addr: impl Into<IpAddr>) -> Result<(), EditError> {
        self.set_addr(End::Src, addr.into())
    }

    /// Sets the destination address of the IP packet: with a routing header that has stops left,
    /// the next stop, which no checksum covers.
    ///
    /// # Errors
    /// See [`EditError`].
    pub fn set_dst_addr(&mut self, addr: impl Into<IpAddr>) -> Result<(), EditError> {
        self.set_addr(End::Dst, addr.into())
    }

    fn set_addr(&mut self, end: End, addr: IpAddr) -> Result<(), EditError> {
        let l3 = usize::from(self.headers.l3_offset);
        let covered = self.transport_sum().filter(|_| covers_addresses(&self.headers.transport));
        match (self.headers.network, addr) {
            (Network::Ipv4(mut ip), IpAddr::V4(addr)) => {
                let at = l3 + if end == End::Src { 12 } else { 16 };
                self.replace(at, &addr.octets(), &[Some(l3 + 10), covered])?;
                *(if end == End::Src { &mut ip.src } else { &mut ip.dst }) = addr;
                self.headers.network = Network::Ipv4(ip);
                Ok(())
            }
            (Network::Ipv6(mut ip), IpAddr::V6(addr)) => {
                let at = l3 + if end == End::Src { 8 } else { 24 };
                let covered = covered.filter(|_| end == End::Src || !ip.routed);
                self.replace(at, &addr.octets(), &[covered])?;
                *(if end == End::Src { &mut ip.src } else { &mut ip.dst }) = addr;
                self.headers.network = Network::Ipv6(ip);
                Ok(())
            }
            (Network::Ipv4(_) | Network::Ipv6(_), _) => Err(EditError::OtherVersion),
            _ => Err(EditError::NoHeader("IP header")),
        }
    }

    /// Sets the source port of TCP, UDP or SCTP.
    ///
    /// # Errors
    /// See [`EditError`].
    pub fn set_src_port(&mut self, port: u16) -> Result<(), EditError> {
        self.set_port(End::Src, port)
    }

    /// Sets the destination port of TCP, UDP or SCTP.
    ///
    /// # Errors
    /// See [`EditError`].
    pub fn set_dst_port(&mut self, port: u16) -> Result<(), EditError> {
        self.set_port(End::Dst, port)
    }

    fn set_port(&mut self, end: End, port: u16) -> Result<(), EditError> {
        let mut transport = self.headers.transport;
        let is_sctp = matches!(transport, Transport::Sctp { .. });
        if is_sctp && self.headers.fragment() != Fragment::Whole {
            return Err(EditError::SctpFragment);
        }
        let field = match (&mut transport, end) {
            (
                Transport::Tcp { src, .. }
                | Transport::Udp { src, .. }
                | Transport::Sctp { src, .. },
                End::Src,
            ) => src,
            (
                Transport::Tcp { dst, .. }
                | Transport::Udp { dst, .. }
                | Transport::Sctp { dst, .. },
                End::Dst,
            ) => dst,
            _ => return Err(EditError::NoHeader("transport ports")),
        };
        *field = port;
        let at = usize::from(self.headers.l4_offset) + if end == End::Src { 0 } else { 2 };
        let sum = self.transport_sum().filter(|_| !is_sctp);
        self.replace(at, &port.to_be_bytes(), &[sum])?;
        self.headers.transport = transport;
        if is_sctp && !checksum::fill_transport(self.frame, self.headers) {
            return Err(EditError::FrameChanged);
        }
        Ok(())
    }

    /// Counts the time to live (hop limit) down and returns what is left.
    ///
    /// # Errors
    /// [`EditError::Expired`] when nothing would be left; see also [`EditError`].
    pub fn decrement_ttl(&mut self) -> Result<u8, EditError> {
        let l3 = usize::from(self.headers.l3_offset);
        match self.headers.network {
            Network::Ipv4(mut ip) => {
                ip.ttl = ip.ttl.checked_sub(1).filter(|&ttl| ttl > 0).ok_or(EditError::Expired)?;
                self.replace(l3 + 8, &[ip.ttl, ip.proto], &[Some(l3 + 10)])?;
                self.headers.network = Network::Ipv4(ip);
                Ok(ip.ttl)
            }
            Network::Ipv6(mut ip) => {
                let left = ip.hop_limit.checked_sub(1).filter(|&left| left > 0);
                ip.hop_limit = left.ok_or(EditError::Expired)?;
                self.replace(l3 + 7, &[ip.hop_limit], &[])?;
                self.headers.network = Network::Ipv6(ip);
                Ok(ip.hop_limit)
            }
            _ => Err(EditError::NoHeader("IP header")),
        }
    }

    /// Sets the differentiated services code point (its low 6 bits); congestion bits stay.
    ///
    /// # Errors
    /// See [`EditError`].
    pub fn set_dscp(&mut self, dscp: u8) -> Result<(), EditError> {
        let l3 = usize::from(self.headers.l3_offset);
        match self.headers.network {
            Network::Ipv4(mut ip) => {
                ip.tos = dscp << 2 | ip.tos & 0x03;
                let first = 0x40 | (ip.header_bytes / 4);
                self.replace(l3, &[first, ip.tos], &[Some(l3 + 10)])?;
                self.headers.network = Network::Ipv4(ip);
                Ok(())
            }
            Network::Ipv6(mut ip) => {
                ip.traffic_class = dscp << 2 | ip.traffic_class & 0x03;
                let word =
                    6 << 28 | u32::from(ip.traffic_class) << 20 | (ip.flow_label & 0x000f_ffff);
                self.replace(l3, &word.to_be_bytes(), &[])?;
                self.headers.network = Network::Ipv6(ip);
                Ok(())
            }
            _ => Err(EditError::NoHeader("IP header")),
        }
    }

    /// Where the checksum of layer 4 is in the frame.
    fn transport_sum(&self) -> Option<usize> {
        Some(usize::from(self.headers.l4_offset) + field_offset(&self.headers.transport)?)
    }

    /// Replaces bytes, and updates the checksums at `sums`, all of it or nothing.
    fn replace(&mut self, at: usize, new: &[u8], sums: &[Option<usize>]) -> Result<(), EditError> {
        let fits = |end: usize| end <= self.frame.len();
        if !fits(at + new.len()) || !sums.iter().flatten().all(|sum| fits(sum + 2)) {
            return Err(EditError::FrameChanged);
        }
        let udp_sum = self
            .transport_sum()
            .filter(|_| matches!(self.headers.transport, Transport::Udp { .. }));
        for &sum in sums.iter().flatten() {
            let is_udp = udp_sum == Some(sum);
            let stored = u16::from_be_bytes([self.frame[sum], self.frame[sum + 1]]);
            if is_udp && stored == 0 {
                continue;
            }
            let updated = match update(stored, &self.frame[at..at + new.len()], new) {
                0 if is_udp => 0xffff,
                other => other,
            };
            self.frame[sum..sum + 2].copy_from_slice(&updated.to_be_bytes());
        }
        self.frame[at..at + new.len()].copy_from_slice(new);
        Ok(())
    }
}
