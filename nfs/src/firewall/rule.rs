//! Rules of the firewall: what a person writes, and whether a packet matches.
//!
//! ```text
//! allow|deny [PROTO] [from PREFIX [PORTS]] [to PREFIX [PORTS]]
//! ```
//! `PROTO` is `tcp`, `udp`, `sctp`, `icmp`, `icmpv6` or a number; `PREFIX` is `any`, an address or
//! `ADDRESS/BITS`; `PORTS` is `N` or `N-M`, for protocols that have transport ports.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use nflib::headers::{Fragment, Headers, ip_proto};

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Allow,
    Deny,
}

impl FromStr for Verdict {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "allow" => Ok(Self::Allow),
            "deny" => Ok(Self::Deny),
            other => Err(format!("\"{other}\": expected allow or deny")),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        })
    }
}

/// The addresses that share their first bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Prefix {
    address: IpAddr,
    bits: u8,
}

impl Prefix {
    fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                let differ = u32::from(ours) ^ u32::from(theirs);
                differ.leading_zeros() >= u32::from(self.bits)
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => {
                let differ = u128::from(ours) ^ u128::from(theirs);
                differ.leading_zeros() >= u32::from(self.bits)
            }
            _ => false,
        }
    }
}

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("\"{text}\": expected any, an address or ADDRESS/BITS");
        let (address, bits) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(most), str::parse).map_err(|_| bad())?;
        if bits > most {
            return Err(format!("\"{text}\": a prefix of this address has at most {most} bits"));
        }
        Ok(Self { address, bits })
    }
}

/// One end of a packet: addresses and transport ports that match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct End {
    prefix: Option<Prefix>,
    ports: Option<RangeInclusive<u16>>,
}

impl End {
    fn takes_address(&self, address: Option<IpAddr>) -> bool {
        self.prefix.is_none_or(|prefix| address.is_some_and(|address| prefix.contains(address)))
    }
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub verdict: Verdict,
    proto: Option<u8>,
    from: End,
    to: End,
}

impl Rule {
    /// Whether the rule takes a packet.
    ///
    /// A later fragment does not show its transport ports. Where only they are in doubt, a rule that
    /// denies takes it and one that allows does not: nothing gets through on a guess.
    pub fn takes(&self, headers: &Headers) -> bool {
        let addresses = headers.addresses();
        if self.proto.is_some_and(|proto| headers.ip_proto() != Some(proto))
            || !self.from.takes_address(addresses.map(|(src, _)| src))
            || !self.to.takes_address(addresses.map(|(_, dst)| dst))
        {
            return false;
        }
        if self.from.ports.is_none() && self.to.ports.is_none() {
            return true;
        }
        match headers.ports() {
            Some((src, dst)) => {
                self.from.ports.as_ref().is_none_or(|ports| ports.contains(&src))
                    && self.to.ports.as_ref().is_none_or(|ports| ports.contains(&dst))
            }
            None => headers.fragment() == Fragment::Later && self.verdict == Verdict::Deny,
        }
    }
}

fn proto(word: &str) -> Option<u8> {
    Some(match word {
        "tcp" => ip_proto::TCP,
        "udp" => ip_proto::UDP,
        "sctp" => ip_proto::SCTP,
        "icmp" => ip_proto::ICMP,
        "icmpv6" => ip_proto::ICMPV6,
        number => number.parse().ok()?,
    })
}

fn has_ports(proto: Option<u8>) -> bool {
    matches!(proto, Some(ip_proto::TCP | ip_proto::UDP | ip_proto::SCTP))
}

fn ports(word: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = word.split_once('-').unwrap_or((word, word));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some(first..=last)
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split_whitespace().peekable();
        let verdict = words.next().unwrap_or_default().parse()?;
        let mut rule = Self { verdict, proto: None, from: End::default(), to: End::default() };
        if let Some(word) = words.next_if(|word| !matches!(*word, "from" | "to")) {
            rule.proto = Some(proto(word).ok_or_else(|| {
                format!(
                    "\"{word}\": expected a protocol (tcp, udp, sctp, icmp, icmpv6, 0 to 255), \
                     from or to"
                )
            })?);
        }
        while let Some(word) = words.next() {
            let end = match word {
                "from" if rule.from == End::default() => &mut rule.from,
                "to" if rule.to == End::default() => &mut rule.to,
                _ => return Err(format!("\"{word}\": expected from or to, each once")),
            };
            let prefix =
                words.next().ok_or_else(|| format!("an address is missing after {word}"))?;
            end.prefix = if prefix == "any" { None } else { Some(prefix.parse()?) };
            if let Some(word) = words.next_if(|word| !matches!(*word, "from" | "to")) {
                let range = ports(word);
                end.ports = Some(range.ok_or_else(|| {
                    format!("\"{word}\": expected a transport port, 0 to 65535, or a range N-M")
                })?);
            }
        }
        let names_ports = rule.from.ports.is_some() || rule.to.ports.is_some();
        if names_ports && !has_ports(rule.proto) {
            return Err("only tcp, udp and sctp have transport ports: name one of them".to_owned());
        }
        Ok(rule)
    }
}

#[cfg(test)]
mod tests {
    use nflib::testing::FrameBuilder;

    use super::*;

    fn takes(rule: &str, frame: FrameBuilder) -> bool {
        rule.parse::<Rule>().unwrap().takes(&Headers::parse(&frame.build()))
    }

    fn v4(src: [u8; 4], dst: [u8; 4]) -> FrameBuilder {
        FrameBuilder::new().ip(src.into(), dst.into())
    }

    #[test]
    fn a_rule_takes_what_it_names_and_nothing_else() {
        let web = || v4([10, 0, 0, 1], [10, 0, 0, 2]).tcp(1234, 80, 0);
        for rule in [
            "allow",
            "deny tcp",
            "deny 6",
            "deny from 10.0.0.0/8",
            "deny from any to 10.0.0.2",
            "deny tcp from 10.0.0.1 1234 to 10.0.0.2 80",
            "deny tcp to any 79-81",
            "deny tcp to 0.0.0.0/0 80",
        ] {
            assert!(takes(rule, web()), "{rule}");
        }
        for rule in [
            "deny udp",
            "deny from 10.0.0.2",
            "deny to 10.0.0.3/32",
            "deny tcp from any 80",
            "deny tcp to any 81-90",
            "deny from 2001:db8::/32",
        ] {
            assert!(!takes(rule, web()), "{rule}");
        }
    }

    #[test]
    fn an_ipv6_prefix_takes_its_addresses() {
        let frame = || {
            let address = |text: &str| text.parse::<IpAddr>().unwrap();
            FrameBuilder::new().ip(address("2001:db8::1"), address("2001:db8::2")).udp(5, 53)
        };
        assert!(takes("deny udp from 2001:db8::/32 to any 53", frame()));
        assert!(!takes("deny udp from 2001:db9::/32 to any 53", frame()));
        assert!(takes("deny from ::/0", frame()));
        assert!(!takes("deny from 0.0.0.0/0", frame()));
    }

    #[test]
    fn a_later_fragment_is_taken_by_a_rule_that_denies_its_ports_and_not_by_one_that_allows_them() {
        let later =
            || v4([10, 0, 0, 1], [10, 0, 0, 2]).fragment(1480, false).proto(6).payload(b"data");
        assert!(takes("deny tcp to any 23", later()));
        assert!(!takes("allow tcp to any 23", later()));
        assert!(takes("allow tcp", later()));
    }

    #[test]
    fn what_is_wrong_with_a_rule_is_said_with_what_was_expected() {
        for (rule, what) in [
            ("", "expected allow or deny"),
            ("block tcp", "expected allow or deny"),
            ("deny tpc", "expected a protocol"),
            ("deny 256", "expected a protocol"),
            ("deny tcp from", "missing after from"),
            ("deny tcp from 10.0.0.0/33", "at most 32 bits"),
            ("deny tcp from 10.0.0", "an address or ADDRESS/BITS"),
            ("deny tcp to any 80-79", "a range N-M"),
            ("deny tcp to any 65536", "a range N-M"),
            ("deny to any 80", "name one of them"),
            ("deny icmp to any 80", "name one of them"),
            ("deny tcp from any 1 from any 2", "each once"),
            ("deny tcp from any 1 2", "expected from or to"),
        ] {
            let error = rule.parse::<Rule>().unwrap_err();
            assert!(error.contains(what), "{rule}: {error}");
        }
    }
}
