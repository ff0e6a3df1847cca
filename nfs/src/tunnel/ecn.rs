//! Explicit congestion notification through a tunnel (RFC 6040).
//!
//! A router on the way marks the outer header, which ends with the tunnel. So the ingress copies the
//! inner field outwards (section 4.1, normal mode), and the egress combines the two (section 4.2,
//! figure 4).
#![forbid(unsafe_code)]

use nflib::headers::checksum;

/// The congestion field: the low two bits of the type of service or traffic class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ecn {
    /// The transport does not take marks: congestion is told it by loss.
    NotEct = 0b00,
    /// It takes marks, and is of the kind that ECT(1) stands for (RFC 9331).
    Ect1 = 0b01,
    /// It takes marks.
    Ect0 = 0b10,
    /// Congestion was experienced.
    Ce = 0b11,
}

impl Ecn {
    /// The field in a type of service or traffic class.
    #[must_use]
    #[inline]
    pub fn of(tos: u8) -> Self {
        match tos & 0b11 {
            0b00 => Self::NotEct,
            0b01 => Self::Ect1,
            0b10 => Self::Ect0,
            _ => Self::Ce,
        }
    }
}

/// What the egress does with the inner packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Combined {
    /// Lets it out with this field.
    Out(Ecn),
    /// Drops it: a router wanted to slow the sender down, who can be told by nothing but a loss.
    Drop,
}

/// What the two headers make of each other (RFC 6040, figure 4), and whether the pair is one that the
/// figure marks as dangerous, "(!!!)", or worth knowing, "(!)": nobody on the way should have made it.
#[must_use]
#[inline]
pub fn combine(inner: Ecn, outer: Ecn) -> (Combined, bool) {
    use Ecn::{Ce, Ect0, Ect1, NotEct};
    match (inner, outer) {
        (NotEct, NotEct) => (Combined::Out(NotEct), false),
        (NotEct, Ect0 | Ect1) => (Combined::Out(NotEct), true),
        (NotEct, Ce) => (Combined::Drop, true),
        (Ect0, NotEct | Ect0) => (Combined::Out(Ect0), false),
        (Ect0, Ect1) => (Combined::Out(Ect1), false),
        (Ect1, Ect0) => (Combined::Out(Ect1), true),
        (Ect1, NotEct | Ect1) => (Combined::Out(Ect1), false),
        (Ect0 | Ect1, Ce) => (Combined::Out(Ce), false),
        (Ce, Ect1) => (Combined::Out(Ce), true),
        (Ce, NotEct | Ect0 | Ce) => (Combined::Out(Ce), false),
    }
}

/// The type of service (IPv4) or traffic class (IPv6) of an IP packet, which starts with its header;
/// 0 where there is none.
#[must_use]
#[inline]
pub fn tos_of(ip: &[u8]) -> u8 {
    match ip {
        [first, second, ..] if first >> 4 == 6 => first << 4 | second >> 4,
        [first, second, ..] if first >> 4 == 4 => *second,
        _ => 0,
    }
}

/// Writes the congestion field of an IP packet, and updates the checksum of an IPv4 header by the
/// difference (RFC 1624). What is no IP packet stays as it is.
pub fn set(ip: &mut [u8], ecn: Ecn) {
    let Some(&[first, second]) = ip.first_chunk() else { return };
    match first >> 4 {
        4 if ip.len() >= 12 => {
            let new = [first, second & !0b11 | ecn as u8];
            let sum =
                checksum::update(u16::from_be_bytes([ip[10], ip[11]]), &[first, second], &new);
            ip[1] = new[1];
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        6 => ip[1] = second & !0b11_0000 | (ecn as u8) << 4,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use nflib::headers::{ETHERNET_BYTES, Headers};
    use nflib::testing::FrameBuilder;

    use super::*;

    const ALL: [Ecn; 4] = [Ecn::NotEct, Ecn::Ect0, Ecn::Ect1, Ecn::Ce];

    #[test]
    fn the_egress_combines_the_fields_as_figure_4_of_rfc_6040_says() {
        // The figure, row by row: inner Not-ECT, ECT(0), ECT(1), CE; columns are the outer field.
        // "x" is a drop, a mark behind it an alarm.
        let figure = [
            ["Not-ECT", "Not-ECT!", "Not-ECT!", "x!"],
            ["ECT(0)", "ECT(0)", "ECT(1)", "CE"],
            ["ECT(1)", "ECT(1)!", "ECT(1)", "CE"],
            ["CE", "CE", "CE!", "CE"],
        ];
        for (inner, row) in ALL.into_iter().zip(figure) {
            for (outer, cell) in ALL.into_iter().zip(row) {
                let (combined, alarm) = combine(inner, outer);
                let name = match combined {
                    Combined::Out(Ecn::NotEct) => "Not-ECT",
                    Combined::Out(Ecn::Ect0) => "ECT(0)",
                    Combined::Out(Ecn::Ect1) => "ECT(1)",
                    Combined::Out(Ecn::Ce) => "CE",
                    Combined::Drop => "x",
                };
                let said = format!("{name}{}", if alarm { "!" } else { "" });
                assert_eq!(said, cell, "inner {inner:?}, outer {outer:?}");
            }
        }
    }

    #[test]
    fn the_field_is_the_low_two_bits() {
        for (bits, ecn) in [(0, Ecn::NotEct), (1, Ecn::Ect1), (2, Ecn::Ect0), (3, Ecn::Ce)] {
            assert_eq!(Ecn::of(0b1011_1000 | bits), ecn);
            assert_eq!(ecn as u8, bits);
        }
    }

    #[test]
    fn a_field_that_is_set_leaves_the_code_point_and_the_checksum_right() {
        let v4 = (std::net::IpAddr::from([10, 0, 0, 1]), std::net::IpAddr::from([10, 0, 0, 2]));
        let v6 = ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap());
        for (src, dst) in [v4, v6] {
            for (old, new) in ALL.into_iter().flat_map(|old| ALL.map(|new| (old, new))) {
                let tos = 0b1010_1000 | old as u8;
                let mut frame = FrameBuilder::new().ip(src, dst).tos(tos).udp(1, 2).build();
                let ip = &mut frame[ETHERNET_BYTES..];
                assert_eq!(tos_of(ip), tos);
                set(ip, new);
                assert_eq!(tos_of(ip), 0b1010_1000 | new as u8);
                let headers = Headers::parse(&frame);
                assert_ne!(checksum::ipv4_ok(&frame, &headers), Some(false));
                assert_eq!(checksum::transport_ok(&frame, &headers), Some(true));
            }
        }
    }

    #[test]
    fn what_is_no_ip_packet_stays_as_it_is() {
        for bytes in [&b""[..], b"E", b"E\0\0\0\0\0\0\0\0\0\0", &[0x50; 40]] {
            let mut copy = bytes.to_vec();
            set(&mut copy, Ecn::Ce);
            assert_eq!(copy, bytes);
        }
        assert_eq!((tos_of(b""), tos_of(&[0x50, 0xff])), (0, 0));
    }
}
