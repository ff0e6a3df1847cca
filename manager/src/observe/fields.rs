//! What lies where in a frame's headers, by the names that traces show.
//!
//! `nflib::headers` judges a whole packet; here there are only its first bytes, perhaps changed halfway by
//! somebody. So each header is named as far as it is there, and nothing is checked but what is needed
//! to find the next one.
#![forbid(unsafe_code)]

use nflib::headers::{ethertype, ip_proto};

/// Bytes with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// The first, counted from the frame's begin.
    pub at: usize,
    /// How many.
    pub len: usize,
    /// `ipv4.ttl`.
    pub name: &'static str,
}

impl Field {
    /// The header that it is of: `ipv4`.
    #[must_use]
    pub fn layer(&self) -> &'static str {
        self.name.split('.').next().unwrap_or_default()
    }
}

const ETHERNET: &[(&str, usize)] = &[("eth.dst", 6), ("eth.src", 6)];
const TAG: &[(&str, usize)] = &[("vlan.tpid", 2), ("vlan.tci", 2)];
const ARP: &[(&str, usize)] = &[
    ("arp.types", 6),
    ("arp.op", 2),
    ("arp.sha", 6),
    ("arp.spa", 4),
    ("arp.tha", 6),
    ("arp.tpa", 4),
];
const IPV4: &[(&str, usize)] = &[
    ("ipv4.ihl", 1),
    ("ipv4.tos", 1),
    ("ipv4.length", 2),
    ("ipv4.id", 2),
    ("ipv4.fragment", 2),
    ("ipv4.ttl", 1),
    ("ipv4.proto", 1),
    ("ipv4.checksum", 2),
    ("ipv4.src", 4),
    ("ipv4.dst", 4),
];
const IPV6: &[(&str, usize)] = &[
    ("ipv6.class", 4),
    ("ipv6.length", 2),
    ("ipv6.next", 1),
    ("ipv6.hop_limit", 1),
    ("ipv6.src", 16),
    ("ipv6.dst", 16),
];
const TCP: &[(&str, usize)] = &[
    ("tcp.sport", 2),
    ("tcp.dport", 2),
    ("tcp.seq", 4),
    ("tcp.ack", 4),
    ("tcp.offset", 1),
    ("tcp.flags", 1),
    ("tcp.window", 2),
    ("tcp.checksum", 2),
    ("tcp.urgent", 2),
];
const UDP: &[(&str, usize)] =
    &[("udp.sport", 2), ("udp.dport", 2), ("udp.length", 2), ("udp.checksum", 2)];
const ICMP: &[(&str, usize)] =
    &[("icmp.type", 1), ("icmp.code", 1), ("icmp.checksum", 2), ("icmp.rest", 4)];

/// The fields of a frame, of which these are the first bytes; in their order, without overlap.
#[must_use]
pub fn fields_of(frame: &[u8]) -> Vec<Field> {
    let mut walk = Walk { frame, at: 0, fields: Vec::new() };
    // Each step is `None` where the frame ends.
    walk.ethernet();
    walk.fields
}

struct Walk<'a> {
    frame: &'a [u8],
    at: usize,
    fields: Vec<Field>,
}

impl Walk<'_> {
    fn name(&mut self, name: &'static str, len: usize) -> Option<()> {
        if len > 0 && self.at + len <= self.frame.len() {
            self.fields.push(Field { at: self.at, len, name });
        }
        self.at += len;
        (self.at <= self.frame.len()).then_some(())
    }

    fn names(&mut self, header: &[(&'static str, usize)]) -> Option<()> {
        header.iter().try_for_each(|&(name, len)| self.name(name, len))
    }

    /// A byte that lies ahead.
    fn byte(&self, ahead: usize) -> Option<u8> {
        self.frame.get(self.at + ahead).copied()
    }

    fn be16(&self, ahead: usize) -> Option<u16> {
        Some(u16::from_be_bytes([self.byte(ahead)?, self.byte(ahead + 1)?]))
    }

    fn ethernet(&mut self) -> Option<()> {
        self.names(ETHERNET)?;
        let mut next = self.be16(0)?;
        for _ in 0..2 {
            if matches!(next, ethertype::VLAN | ethertype::QINQ) {
                self.names(TAG)?;
                next = self.be16(0)?;
            }
        }
        self.name("eth.type", 2)?;
        match next {
            ethertype::IPV4 => self.ipv4(),
            ethertype::IPV6 => self.ipv6(),
            ethertype::ARP => self.names(ARP),
            _ => None,
        }
    }

    fn ipv4(&mut self) -> Option<()> {
        let (first, fragment, proto) = (self.byte(0), self.be16(6), self.byte(9));
        self.names(IPV4)?;
        let header_bytes = usize::from(first? & 0x0f) * 4;
        self.name("ipv4.options", header_bytes.checked_sub(20)?)?;
        if fragment? & 0x1fff == 0 { self.transport(proto?) } else { None }
    }

    fn ipv6(&mut self) -> Option<()> {
        let next = self.byte(6);
        self.names(IPV6)?;
        self.transport(next?)
    }

    fn transport(&mut self, proto: u8) -> Option<()> {
        match proto {
            ip_proto::TCP => {
                let offset = self.byte(12);
                self.names(TCP)?;
                let header_bytes = usize::from(offset? >> 4) * 4;
                self.name("tcp.options", header_bytes.checked_sub(20)?)
            }
            ip_proto::UDP => self.names(UDP),
            ip_proto::ICMP | ip_proto::ICMPV6 => self.names(ICMP),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Of a frame with one tag, IPv4 with four bytes of options, and UDP.
    fn frame() -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x81, 0, 0, 100, 8, 0]);
        frame.extend([
            0x46, 0, 0, 40, 0, 1, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 1, 1, 1, 1,
        ]);
        frame.extend([0, 80, 0, 81, 0, 16, 0, 0]);
        frame.extend([0xaa; 8]);
        frame
    }

    fn at(frame: &[u8], name: &str) -> Option<(usize, usize)> {
        let fields = fields_of(frame);
        let field = fields.into_iter().find(|field| field.name == name)?;
        Some((field.at, field.len))
    }

    #[test]
    fn fields_are_where_the_standards_have_them() {
        let frame = frame();
        assert_eq!(at(&frame, "eth.src"), Some((6, 6)));
        assert_eq!(at(&frame, "vlan.tci"), Some((14, 2)));
        assert_eq!(at(&frame, "eth.type"), Some((16, 2)));
        assert_eq!(at(&frame, "ipv4.ttl"), Some((26, 1)));
        assert_eq!(at(&frame, "ipv4.options"), Some((38, 4)));
        assert_eq!(at(&frame, "udp.dport"), Some((44, 2)));
        assert_eq!(at(&frame, "tcp.dport"), None);
    }

    #[test]
    fn a_later_fragment_has_no_ports_and_a_frame_that_ends_has_what_is_there() {
        let mut later = frame();
        later[25] = 1;
        assert_eq!((at(&later, "ipv4.dst"), at(&later, "udp.sport")), (Some((34, 4)), None));
        assert_eq!(at(&frame()[..27], "ipv4.ttl"), Some((26, 1)));
        assert_eq!(at(&frame()[..26], "ipv4.ttl"), None);
    }

    proptest! {
        #[test]
        fn fields_of_any_bytes_lie_inside_and_follow_each_other(mut bytes: Vec<u8>, kind in 0u8..4) {
            if let Some(place) = bytes.get_mut(12..14) {
                place.copy_from_slice(&[[8, 0], [0x86, 0xdd], [0x81, 0], [8, 6]][usize::from(kind)]);
            }
            let mut end = 0;
            for field in fields_of(&bytes) {
                prop_assert!(field.at >= end && field.len > 0);
                end = field.at + field.len;
            }
            prop_assert!(end <= bytes.len());
        }
    }
}
