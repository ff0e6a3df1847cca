//! Layer 4: TCP (RFC 9293), UDP (RFC 768), SCTP (RFC 9260), ICMP (RFC 792), ICMPv6 (RFC 4443).
#![forbid(unsafe_code)]

use super::{Fragment, Headers, Network, Problem, array, be16, ip_proto};

const TCP_BYTES: usize = 20;
const UDP_BYTES: usize = 8;
const SCTP_BYTES: usize = 12;
const ICMP_BYTES: usize = 8;
const ICMPV6_BYTES: usize = 4;

/// What layer 4 is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// Another protocol, a later fragment, or malformed.
    #[default]
    None,
    /// TCP.
    Tcp {
        /// Source port.
        src: u16,
        /// Destination port.
        dst: u16,
        /// The flags of [`tcp_flags`].
        flags: u8,
        /// Sequence number.
        sequence: u32,
        /// Acknowledgement number.
        acknowledgement: u32,
    },
    /// UDP.
    Udp {
        /// Source port.
        src: u16,
        /// Destination port.
        dst: u16,
    },
    /// SCTP.
    Sctp {
        /// Source port.
        src: u16,
        /// Destination port.
        dst: u16,
    },
    /// ICMP, in IPv4.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
    },
    /// ICMPv6, in IPv6.
    Icmpv6 {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
    },
}

/// TCP flags.
pub mod tcp_flags {
    /// No more data.
    pub const FIN: u8 = 0x01;
    /// Start.
    pub const SYN: u8 = 0x02;
    /// Abort.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer counts.
    pub const URG: u8 = 0x20;
    /// Echo of congestion (RFC 3168).
    pub const ECE: u8 = 0x40;
    /// Congestion window reduced (RFC 3168).
    pub const CWR: u8 = 0x80;
}

impl Transport {
    /// Source and destination port, where the protocol has them.
    #[must_use]
    pub fn ports(&self) -> Option<(u16, u16)> {
        match *self {
            Self::Tcp { src, dst, .. } | Self::Udp { src, dst } | Self::Sctp { src, dst } => {
                Some((src, dst))
            }
            _ => None,
        }
    }
}

impl Headers {
    /// Reads the header at `l4_offset`, inside the packet that ends at `payload_end`.
    #[inline]
    pub(super) fn parse_transport(
        &mut self,
        frame: &[u8],
        proto: u8,
        fragment: Fragment,
    ) -> Result<(), Problem> {
        if fragment == Fragment::Later {
            return Ok(());
        }
        let segment = &frame[usize::from(self.l4_offset)..usize::from(self.payload_end)];
        let is_v6 = matches!(self.network, Network::Ipv6(_));
        let (transport, header_bytes) = match proto {
            ip_proto::TCP => tcp(segment)?,
            ip_proto::UDP => {
                let udp: &[u8; UDP_BYTES] = checked(segment)?;
                let length = usize::from(be16(udp, 4));
                // A first fragment is shorter than its datagram.
                if length < UDP_BYTES || (fragment == Fragment::Whole && length > segment.len()) {
                    return Err(Problem::UdpLength);
                }
                (Transport::Udp { src: be16(udp, 0), dst: be16(udp, 2) }, UDP_BYTES)
            }
            ip_proto::SCTP => {
                let sctp: &[u8; SCTP_BYTES] = checked(segment)?;
                (Transport::Sctp { src: be16(sctp, 0), dst: be16(sctp, 2) }, SCTP_BYTES)
            }
            ip_proto::ICMP if !is_v6 => {
                let icmp: &[u8; ICMP_BYTES] = checked(segment)?;
                (Transport::Icmp { kind: icmp[0], code: icmp[1] }, ICMP_BYTES)
            }
            ip_proto::ICMPV6 if is_v6 => {
                let icmp: &[u8; ICMPV6_BYTES] = checked(segment)?;
                (Transport::Icmpv6 { kind: icmp[0], code: icmp[1] }, ICMPV6_BYTES)
            }
            _ => return Ok(()),
        };
        self.transport = transport;
        self.payload_offset = self.l4_offset + header_bytes as u16;
        Ok(())
    }
}

fn checked<const N: usize>(segment: &[u8]) -> Result<&[u8; N], Problem> {
    segment.first_chunk().ok_or(Problem::TransportTruncated)
}

fn tcp(segment: &[u8]) -> Result<(Transport, usize), Problem> {
    let tcp: &[u8; TCP_BYTES] = checked(segment)?;
    let header_bytes = usize::from(tcp[12] >> 4) * 4;
    if header_bytes < TCP_BYTES || header_bytes > segment.len() {
        return Err(Problem::TcpDataOffset);
    }
    let transport = Transport::Tcp {
        src: be16(tcp, 0),
        dst: be16(tcp, 2),
        flags: tcp[13],
        sequence: u32::from_be_bytes(array(tcp, 4)),
        acknowledgement: u32::from_be_bytes(array(tcp, 8)),
    };
    Ok((transport, header_bytes))
}
