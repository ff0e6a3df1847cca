//! Frames to ask about ([`Request::Explain`](super::Request::Explain)): built from a five-tuple, or read
//! from hex.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::headers::{Headers, checksum, ethertype, ip_proto, tcp_flags};

const TUPLE_HINT: &str = "expected PROTO SRC DST, as in tcp 10.0.0.1:1234 10.0.0.2:80, \
                          udp [2001:db8::1]:53 [2001:db8::2]:53 or icmp 10.0.0.1 10.0.0.2";

/// A frame with these addresses and ports. What is not said is made up: Ethernet addresses, no VLAN,
/// TCP with SYN, ICMP echo request, TTL 64.
///
/// # Errors
/// One line: what is wrong, what was expected.
pub fn from_tuple(words: &[String]) -> Result<Vec<u8>, String> {
    let words: Vec<_> = words.iter().flat_map(|word| word.split_whitespace()).collect();
    let [proto, src, dst] = words[..] else {
        return Err(format!("a five-tuple has 3 words, not {}: {TUPLE_HINT}", words.len()));
    };
    let with_ports = |number, header: fn(u16, u16) -> Vec<u8>| {
        let (src, dst) = (end(src)?, end(dst)?);
        build(number, src.ip(), dst.ip(), header(src.port(), dst.port()))
    };
    match proto.to_ascii_lowercase().as_str() {
        "tcp" | "6" => with_ports(ip_proto::TCP, tcp),
        "udp" | "17" => with_ports(ip_proto::UDP, udp),
        "sctp" | "132" => with_ports(ip_proto::SCTP, sctp),
        name @ ("icmp" | "icmpv6" | "icmp6") => echo_request(name, address(src)?, address(dst)?),
        other => match other.parse() {
            Ok(number) => build(number, address(src)?, address(dst)?, Vec::new()),
            Err(_) => Err(format!(
                "there is no protocol {proto:?}: expected tcp, udp, sctp, icmp, icmpv6, or 0 to 255"
            )),
        },
    }
}

/// `10.0.0.1:80` or `[2001:db8::1]:80`.
fn end(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!("{text:?} is no address with a port: expected 10.0.0.1:80 or [2001:db8::1]:80")
    })
}

fn address(text: &str) -> Result<IpAddr, String> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse().map_err(|_| match text.parse::<SocketAddr>() {
        Ok(end) => format!("{text:?}: this protocol has no ports; expected {}", end.ip()),
        Err(_) => format!("{text:?} is no IP address: expected 10.0.0.1 or 2001:db8::1"),
    })
}

fn echo_request(name: &str, src: IpAddr, dst: IpAddr) -> Result<Vec<u8>, String> {
    match (name, src) {
        ("icmp", IpAddr::V4(_)) => build(ip_proto::ICMP, src, dst, vec![8, 0, 0, 0, 0, 0, 0, 0]),
        ("icmp", IpAddr::V6(_)) => Err(format!("icmp with {src}: IPv6 has icmpv6")),
        (_, IpAddr::V6(_)) => build(ip_proto::ICMPV6, src, dst, vec![128, 0, 0, 0, 0, 0, 0, 0]),
        (name, IpAddr::V4(_)) => Err(format!("{name} with {src}: IPv4 has icmp")),
    }
}

fn tcp(src: u16, dst: u16) -> Vec<u8> {
    let mut header = ports(src, dst);
    header.extend([0; 8]); // sequence and acknowledgement
    header.extend([0x50, tcp_flags::SYN, 0xff, 0xff, 0, 0, 0, 0]);
    header
}

fn udp(src: u16, dst: u16) -> Vec<u8> {
    let mut header = ports(src, dst);
    header.extend([0, 8, 0, 0]);
    header
}

fn sctp(src: u16, dst: u16) -> Vec<u8> {
    let mut header = ports(src, dst);
    header.extend([0; 8]); // verification tag and CRC32c
    header
}

fn ports(src: u16, dst: u16) -> Vec<u8> {
    [src.to_be_bytes(), dst.to_be_bytes()].concat()
}

/// An Ethernet frame with an IP packet with `segment` in it, its checksums right.
fn build(proto: u8, src: IpAddr, dst: IpAddr, segment: Vec<u8>) -> Result<Vec<u8>, String> {
    let (kind, header) = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            (ethertype::IPV4, ipv4(proto, src, dst, segment.len() as u16))
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            (ethertype::IPV6, ipv6(proto, src, dst, segment.len() as u16))
        }
        _ => return Err(format!("{src} and {dst} are of two IP versions: expected one")),
    };
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    frame.extend(kind.to_be_bytes());
    frame.extend(header);
    frame.extend(segment);
    let headers = Headers::parse(&frame);
    checksum::fill_transport(&mut frame, &headers);
    Ok(frame)
}

/// RFC 791, without options.
fn ipv4(proto: u8, src: Ipv4Addr, dst: Ipv4Addr, segment_bytes: u16) -> Vec<u8> {
    let [high, low] = (20 + segment_bytes).to_be_bytes();
    let mut header = vec![0x45, 0, high, low, 0, 0, 0, 0, 64, proto, 0, 0];
    header.extend(src.octets());
    header.extend(dst.octets());
    let sum = checksum::internet(&header).to_be_bytes();
    header[10..12].copy_from_slice(&sum);
    header
}

/// RFC 8200, without extension headers.
fn ipv6(proto: u8, src: Ipv6Addr, dst: Ipv6Addr, segment_bytes: u16) -> Vec<u8> {
    let [high, low] = segment_bytes.to_be_bytes();
    let mut header = vec![0x60, 0, 0, 0, high, low, proto, 64];
    header.extend(src.octets());
    header.extend(dst.octets());
    header
}

/// Bytes as pairs of hex digits; spaces, colons, dashes and a leading `0x` are passed over.
///
/// # Errors
/// One line.
pub fn from_hex(text: &str) -> Result<Vec<u8>, String> {
    let text = text.trim();
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let mut nibbles = Vec::new();
    for c in digits.chars().filter(|c| !c.is_whitespace() && !":-".contains(*c)) {
        let nibble = c
            .to_digit(16)
            .ok_or_else(|| format!("{c:?} is no hex digit: expected pairs of 0-9 and a-f"))?;
        nibbles.push(nibble as u8);
    }
    if nibbles.is_empty() || !nibbles.len().is_multiple_of(2) {
        let n = nibbles.len();
        return Err(format!("{n} digits are no bytes: expected pairs of 0-9 and a-f"));
    }
    Ok(nibbles.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headers::Transport;

    fn tuple(text: &str) -> Result<Vec<u8>, String> {
        from_tuple(&text.split_whitespace().map(ToOwned::to_owned).collect::<Vec<_>>())
    }

    fn parsed(text: &str) -> Headers {
        let frame = tuple(text).unwrap();
        let headers = Headers::parse(&frame);
        assert_eq!(headers.problem, None, "{text}");
        assert_ne!(checksum::ipv4_ok(&frame, &headers), Some(false), "{text}");
        assert_ne!(checksum::transport_ok(&frame, &headers), Some(false), "{text}");
        headers
    }

    #[test]
    fn a_five_tuple_becomes_a_sound_frame_that_says_the_same() {
        for (text, proto) in [
            ("tcp 10.0.0.1:1234 10.0.0.2:80", 6),
            ("udp 10.0.0.1:1234 10.0.0.2:80", 17),
            ("sctp 10.0.0.1:1234 10.0.0.2:80", 132),
        ] {
            let headers = parsed(text);
            assert_eq!(headers.ip_proto(), Some(proto));
            assert_eq!(headers.ports(), Some((1234, 80)));
            let (src, dst) = headers.addresses().unwrap();
            assert_eq!((src.to_string(), dst.to_string()), ("10.0.0.1".into(), "10.0.0.2".into()));
        }
        let v6 = parsed("udp [2001:db8::1]:53 [2001:db8::2]:54");
        assert_eq!(v6.ports(), Some((53, 54)));
        assert_eq!(v6.addresses().unwrap().1.to_string(), "2001:db8::2");
    }

    #[test]
    fn icmp_is_an_echo_request_of_its_version() {
        let Transport::Icmp { kind, .. } = parsed("icmp 10.0.0.1 10.0.0.2").transport else {
            panic!("no ICMP")
        };
        assert_eq!(kind, 8);
        let v6 = parsed("icmpv6 2001:db8::1 [2001:db8::2]");
        assert_eq!(v6.transport, Transport::Icmpv6 { kind: 128, code: 0 });
        assert_eq!(parsed("50 10.0.0.1 10.0.0.2").ip_proto(), Some(50));
    }

    #[test]
    fn one_quoted_word_does_as_well() {
        let quoted = from_tuple(&["tcp 10.0.0.1:1 10.0.0.2:2".to_owned()]).unwrap();
        assert_eq!(quoted, tuple("tcp 10.0.0.1:1 10.0.0.2:2").unwrap());
    }

    #[test]
    fn each_mistake_says_what_was_expected() {
        for (text, expected) in [
            ("tcp 10.0.0.1:80", "3 words, not 2"),
            ("tpc 10.0.0.1:1 10.0.0.2:2", "expected tcp, udp"),
            ("300 10.0.0.1 10.0.0.2", "0 to 255"),
            ("tcp 10.0.0.1 10.0.0.2:2", "expected 10.0.0.1:80"),
            ("tcp 10.0.0.1:70000 10.0.0.2:2", "no address with a port"),
            ("tcp 2001:db8::1:80 10.0.0.2:2", "no address with a port"),
            ("tcp 10.0.0.1:1 [2001:db8::2]:2", "two IP versions"),
            ("icmp 10.0.0.1:1 10.0.0.2", "no ports; expected 10.0.0.1"),
            ("icmp 10.0.0.999 10.0.0.2", "no IP address"),
            ("icmp 2001:db8::1 2001:db8::2", "IPv6 has icmpv6"),
            ("icmpv6 10.0.0.1 10.0.0.2", "IPv4 has icmp"),
        ] {
            let error = tuple(text).unwrap_err();
            assert!(error.contains(expected) && error.lines().count() == 1, "{text}: {error}");
        }
    }

    #[test]
    fn hex_is_read_however_it_was_copied() {
        for text in ["0x00ff1A", "00 ff 1a", "00:ff:1a", "00-FF-1a\n", "00f f1a"] {
            assert_eq!(from_hex(text).unwrap(), [0, 0xff, 0x1a]);
        }
        assert!(from_hex("00 fg").unwrap_err().contains("'g' is no hex digit"));
        assert!(from_hex("00f").unwrap_err().contains("3 digits"));
        assert!(from_hex("").unwrap_err().contains("0 digits"));
        assert!(from_hex("über").unwrap_err().contains("'ü'"));
    }
}
