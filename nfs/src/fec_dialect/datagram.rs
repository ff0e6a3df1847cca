//! UDP datagrams whose payload changes its length, and datagrams that are made after others.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::ops::Range;

use nflib::headers::{Fragment, Headers, Network, Transport, checksum};

/// Most bytes of headers in front of a payload: Ethernet with two tags, IPv4 with all its options or
/// IPv6 with some extension headers, UDP.
const HEADERS_MAX_BYTES: usize = 128;
const IPV6_BYTES: usize = 40;
const UDP_BYTES: usize = 8;

/// Where the parts of a frame with a whole UDP datagram are, whose checksum is right.
#[derive(Clone, Debug)]
pub struct Datagram {
    l3: usize,
    l4: usize,
    is_ipv6: bool,
    /// Source and destination address.
    pub addresses: (IpAddr, IpAddr),
    /// Source and destination port.
    pub ports: (u16, u16),
    /// The payload, without Ethernet padding behind it.
    pub payload: Range<usize>,
}

impl Datagram {
    /// Looks at a frame. `None` when it has no such datagram; of one with a wrong checksum nothing may be
    /// changed, since that would make the checksum right.
    #[must_use]
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let headers = Headers::parse(frame);
        let Transport::Udp { src, dst } = headers.transport else { return None };
        let (l4, payload) = (usize::from(headers.l4_offset), usize::from(headers.payload_offset));
        let end = usize::from(headers.payload_end);
        let length =
            frame.get(l4 + 4..)?.first_chunk().map(|&length| u16::from_be_bytes(length))?;
        let is_whole = headers.fragment() == Fragment::Whole && l4 + usize::from(length) == end;
        if !is_whole
            || payload > HEADERS_MAX_BYTES
            || checksum::transport_ok(frame, &headers) == Some(false)
        {
            return None;
        }
        Some(Self {
            l3: headers.l3_offset.into(),
            l4,
            is_ipv6: matches!(headers.network, Network::Ipv6(_)),
            addresses: headers.addresses()?,
            ports: (src, dst),
            payload: payload..end,
        })
    }

    /// Makes lengths and checksums fit a frame whose payload has changed, and which ends with it. False
    /// when it is too long for that.
    #[must_use]
    pub fn finish(&self, frame: &mut [u8]) -> bool {
        let (Some(ip), Some(udp)) =
            (frame.len().checked_sub(self.l3), frame.len().checked_sub(self.l4))
        else {
            return false;
        };
        let ip = if self.is_ipv6 { ip.saturating_sub(IPV6_BYTES) } else { ip };
        let (Ok(ip), Ok(udp)) = (u16::try_from(ip), u16::try_from(udp)) else { return false };
        frame[self.l4 + 4..self.l4 + 6].copy_from_slice(&udp.to_be_bytes());
        if self.is_ipv6 {
            frame[self.l3 + 4..self.l3 + 6].copy_from_slice(&ip.to_be_bytes());
        } else {
            frame[self.l3 + 2..self.l3 + 4].copy_from_slice(&ip.to_be_bytes());
            let header = &mut frame[self.l3..self.l4];
            header[10..12].fill(0);
            let sum = checksum::internet(header).to_be_bytes();
            header[10..12].copy_from_slice(&sum);
        }
        let headers = Headers::parse(frame);
        checksum::fill_transport(frame, &headers)
    }
}

/// The headers of a datagram, after which others are made.
#[derive(Clone, Debug)]
pub struct Template {
    datagram: Datagram,
    bytes: [u8; HEADERS_MAX_BYTES],
}

impl Template {
    /// Copies the headers of a datagram in `frame`.
    #[must_use]
    pub fn of(datagram: &Datagram, frame: &[u8]) -> Option<Self> {
        let mut bytes = [0; HEADERS_MAX_BYTES];
        let length = datagram.payload.start;
        bytes.get_mut(..length)?.copy_from_slice(frame.get(..length)?);
        Some(Self { datagram: datagram.clone(), bytes })
    }

    /// Sets the port that datagrams made after this one go to.
    pub fn set_dst_port(&mut self, port: u16) {
        let at = self.datagram.payload.start - UDP_BYTES + 2;
        self.bytes[at..at + 2].copy_from_slice(&port.to_be_bytes());
    }

    /// Gives datagrams made after this one an identification of their own (IPv4), for what is the same
    /// as another's must not be put together with it, should both be fragmented.
    pub fn set_identification(&mut self, identification: u16) {
        if !self.datagram.is_ipv6 {
            let at = self.datagram.l3 + 4;
            self.bytes[at..at + 2].copy_from_slice(&identification.to_be_bytes());
        }
    }

    /// The headers, to be followed by a payload and [`finished`](Datagram::finish).
    #[must_use]
    pub fn headers(&self) -> &[u8] {
        &self.bytes[..self.datagram.payload.start]
    }

    /// Makes lengths and checksums fit a frame of these headers and a payload. False when it is too long.
    #[must_use]
    pub fn finish(&self, frame: &mut [u8]) -> bool {
        self.datagram.finish(frame)
    }
}

#[cfg(test)]
mod tests {
    use nflib::testing::FrameBuilder;
    use proptest::prelude::*;

    use super::*;

    fn frame(v6: bool, tag: bool, payload: &[u8]) -> Vec<u8> {
        let (src, dst) = if v6 { ("fd00::1", "fd00::2") } else { ("10.0.0.1", "10.0.0.2") };
        let frame = FrameBuilder::new().ip(src.parse().unwrap(), dst.parse().unwrap());
        let frame = if tag { frame.vlan(7) } else { frame };
        frame.udp(1000, 2000).payload(payload).build()
    }

    #[test]
    fn a_payload_of_another_length_gets_right_lengths_and_checksums() {
        for (v6, tag) in [(false, false), (false, true), (true, false), (true, true)] {
            let before = frame(v6, tag, b"before");
            let datagram = Datagram::parse(&before).unwrap();
            let mut after = before[..datagram.payload.start].to_vec();
            after.extend(b"and a longer one");
            assert!(datagram.finish(&mut after));
            assert_eq!(after, frame(v6, tag, b"and a longer one"));
        }
    }

    #[test]
    fn what_is_made_after_a_datagram_goes_where_it_is_told() {
        let before = frame(false, false, b"before");
        let mut template = Template::of(&Datagram::parse(&before).unwrap(), &before).unwrap();
        template.set_dst_port(2002);
        template.set_identification(77);
        let mut made = [template.headers(), b"made"].concat();
        assert!(template.finish(&mut made));
        let headers = Headers::parse(&made);
        assert_eq!(headers.ports(), Some((1000, 2002)));
        assert_eq!(headers.payload(&made), b"made");
        let Network::Ipv4(ip) = headers.network else { panic!("IPv4") };
        assert_eq!(ip.identification, 77);
        assert_eq!(checksum::ipv4_ok(&made, &headers), Some(true));
        assert_eq!(checksum::transport_ok(&made, &headers), Some(true));
    }

    #[test]
    fn a_damaged_datagram_and_a_part_of_one_are_left_alone() {
        let whole = frame(false, false, b"payload");
        let mut damaged = whole.clone();
        *damaged.last_mut().unwrap() ^= 1;
        assert!(Datagram::parse(&damaged).is_none());
        let addresses = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let part = FrameBuilder::new().ip(addresses.0, addresses.1).fragment(0, true);
        assert!(Datagram::parse(&part.udp(1000, 2000).payload(b"payload").build()).is_none());
        let mut padded = whole;
        padded.extend([0; 20]);
        let datagram = Datagram::parse(&padded).unwrap();
        assert_eq!(&padded[datagram.payload], b"payload");
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(datagram) = Datagram::parse(&bytes) {
                prop_assert!(datagram.payload.end <= bytes.len());
                let _ = datagram.finish(&mut bytes);
            }
        }
    }
}
