//! What a tunnel's options are made of.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use nflib::headers::MacAddr;

/// An Ethernet address as an option's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac(pub MacAddr);

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part = parts.next().filter(|part| (1..=2).contains(&part.len()));
            let digits = part.filter(|part| part.bytes().all(|digit| digit.is_ascii_hexdigit()));
            *byte =
                digits.and_then(|part| u8::from_str_radix(part, 16).ok()).ok_or_else(not_mac)?;
        }
        if parts.next().is_some() {
            return Err(not_mac());
        }
        if mac[0] & 1 == 1 || mac == [0; 6] {
            return Err("expected the Ethernet address of one station".to_owned());
        }
        Ok(Self(mac))
    }
}

fn not_mac() -> String {
    "expected an Ethernet address, as 02:00:00:00:00:01".to_owned()
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Reads one end of a tunnel.
///
/// # Errors
/// It is no address with a port, or none that one station can have.
pub fn end(text: &str) -> Result<SocketAddr, String> {
    let end: SocketAddr = text.parse().map_err(|_| {
        "expected an address with a UDP port, as 192.0.2.1:4950 or [2001:db8::1]:4950".to_owned()
    })?;
    let address = end.ip();
    if address.is_unspecified() || address.is_multicast() || end.port() == 0 {
        return Err("expected the address of one station and a UDP port from 1".to_owned());
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ethernet_address_is_read_as_it_is_written() {
        let mac: Mac = "02:0:aB:00:00:1f".parse().unwrap();
        assert_eq!(mac.0, [2, 0, 0xab, 0, 0, 0x1f]);
        assert_eq!(mac.to_string(), "02:00:ab:00:00:1f");
        assert_eq!(mac.to_string().parse(), Ok(mac));
    }

    #[test]
    fn what_is_no_station_s_address_is_refused() {
        for text in ["", "02", "02:00:00:00:00", "02:00:00:00:00:01:02", "02:00:00:00:00:xx"] {
            assert!(text.parse::<Mac>().unwrap_err().contains("02:00:00:00:00:01"), "{text}");
        }
        for text in ["02:00:00:00:00:+1", "02:00:00:00:00:001", "02-00-00-00-00-01"] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
        for text in ["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "00:00:00:00:00:00"] {
            assert!(text.parse::<Mac>().unwrap_err().contains("one station"), "{text}");
        }
    }

    #[test]
    fn an_end_has_an_address_of_one_station_and_a_port() {
        assert_eq!(end("192.0.2.1:4950"), Ok(([192, 0, 2, 1], 4950).into()));
        assert!(end("[2001:db8::1]:4950").unwrap().is_ipv6());
        for text in ["", "192.0.2.1", "2001:db8::1:4950", "host:4950", "192.0.2.1:70000"] {
            assert!(end(text).unwrap_err().contains("192.0.2.1:4950"), "{text}");
        }
        for text in ["0.0.0.0:4950", "224.0.0.1:4950", "192.0.2.1:0", "[::]:4950"] {
            assert!(end(text).unwrap_err().contains("one station"), "{text}");
        }
    }
}
