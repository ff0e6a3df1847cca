//! From a match as a person writes it to a match that the table looks up.
//!
//! A field presupposes others, as in OpenFlow 1.3 (section 7.2.3.8, prerequisites). Where there is
//! only one way to fulfil that, it is filled in: `ip_src = "10.0.0.0/8"` means IPv4, `tcp_flags`
//! means TCP, `vlan_pcp` means that there is a tag. Where there are several, as for `tp_dst`, what
//! to add is said. What no packet can fulfil is refused.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nflib::control::MatchSpec;
use nflib::control::spec::Value;
use nflib::descriptor::PortId;
use nflib::headers::{ethertype, ip_proto};
use thiserror::Error;

use super::key::{
    FRAG_FIRST, FRAG_LATER, Field, FlowKey, IP_DST_WORD, IP_SRC_WORD, L3_ARP, L3_IPV4, L3_IPV6,
    field,
};
use super::matching::Match;
use super::show::TCP_FLAG_NAMES;

/// Why a match means nothing. One line each.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MatchError {
    /// No port has that name.
    #[error("in_port = {name}: no port has this name; name one of the configuration's ports")]
    UnknownPort {
        /// What was written.
        name: String,
    },
    /// A value that cannot be read, or is out of range.
    #[error("{field} = {value}: expected {expected}")]
    Value {
        /// The field.
        field: &'static str,
        /// What was written.
        value: String,
        /// What would be right.
        expected: String,
    },
    /// A field that means nothing without another.
    #[error("{field} means nothing by itself: add {add}")]
    Missing {
        /// The field.
        field: &'static str,
        /// What to add.
        add: &'static str,
    },
    /// Two fields that no packet can have together.
    #[error("{field} contradicts {other}: no packet can have both")]
    Contradiction {
        /// A field.
        field: &'static str,
        /// What it contradicts.
        other: String,
    },
}

impl Match {
    /// Compiles a match. `port` finds a port's number by its name.
    ///
    /// # Errors
    /// See [`MatchError`].
    pub fn compile(
        spec: &MatchSpec,
        port: &dyn Fn(&str) -> Option<PortId>,
    ) -> Result<Self, MatchError> {
        let mut compiler = Compiler { spec, value: FlowKey::default(), mask: FlowKey::default() };
        compiler.ingress(port)?;
        compiler.ethernet()?;
        compiler.vlan_tags()?;
        compiler.arp()?;
        compiler.ip()?;
        compiler.transport()?;
        compiler.icmp()?;
        compiler.complete_layer_3();
        Ok(Self::new(compiler.value, compiler.mask))
    }
}

struct Compiler<'s> {
    spec: &'s MatchSpec,
    value: FlowKey,
    mask: FlowKey,
}

type Result<T = (), E = MatchError> = std::result::Result<T, E>;

impl Compiler<'_> {
    /// Demands `value` in the bits of `mask` of a field, on behalf of the spec's field `by`.
    fn want(&mut self, at: Field, value: u64, mask: u64, by: &'static str) -> Result {
        let (had, had_mask) = (self.value.get(at), self.mask.get(at));
        if (had ^ value) & had_mask & mask != 0 {
            return Err(MatchError::Contradiction { field: by, other: self.author_of(at, by) });
        }
        self.value.set(at, had & had_mask | value & mask);
        self.mask.set(at, had_mask | mask);
        Ok(())
    }

    /// Demands one value of a field.
    fn want_all(&mut self, at: Field, value: u64, by: &'static str) -> Result {
        self.want(at, value, at.max(), by)
    }

    /// The field of the spec that most likely demanded something of `at` before `by` did.
    fn author_of(&self, at: Field, by: &'static str) -> String {
        let candidates: &[&str] = match at {
            field::VLAN_PRESENT => &["vlan", "vlan_pcp", "inner_vlan"],
            field::PROTO => &["ip_proto", "tcp_flags"],
            field::L4 | field::FRAG | field::IS_FRAG => &["ip_frag"],
            _ => &[
                "eth_type",
                "arp_op",
                "arp_spa",
                "arp_tpa",
                "ip_src",
                "ip_dst",
                "ip_proto",
                "icmp_type",
                "icmp_code",
            ],
        };
        let set = self.spec.fields().find(|(name, _)| candidates.contains(name) && *name != by);
        set.map_or_else(
            || "the other fields".into(),
            |(name, value)| format!("{name} = {}", shown(value)),
        )
    }

    fn ingress(&mut self, port: &dyn Fn(&str) -> Option<PortId>) -> Result {
        if let Some(value) = &self.spec.in_port {
            let name = value.to_string();
            let id = port(&name).ok_or_else(|| MatchError::UnknownPort { name: shown(value) })?;
            self.want_all(field::IN_PORT, id.into(), "in_port")?;
        }
        self.number("tunnel_id", &self.spec.tunnel_id, field::TUNNEL_ID, &[])?;
        self.number("metadata", &self.spec.metadata, field::METADATA, &[])?;
        Ok(())
    }

    fn ethernet(&mut self) -> Result {
        let addresses = [
            ("eth_src", &self.spec.eth_src, field::ETH_SRC),
            ("eth_dst", &self.spec.eth_dst, field::ETH_DST),
        ];
        for (name, value, at) in addresses {
            let Some(value) = value else { continue };
            let (address, mask) = masked(value, at.max(), mac).ok_or_else(|| {
                bad(name, value, "an Ethernet address such as 02:00:00:00:00:01, /mask behind it")
            })?;
            self.want(at, address, mask, name)?;
        }
        let names = [
            ("ipv4", ethertype::IPV4.into()),
            ("ipv6", ethertype::IPV6.into()),
            ("arp", ethertype::ARP.into()),
        ];
        self.number("eth_type", &self.spec.eth_type, field::ETH_TYPE, &names)?;
        Ok(())
    }

    fn vlan_tags(&mut self) -> Result {
        self.tag("vlan", &self.spec.vlan, field::VLAN_PRESENT, field::VLAN_VID)?;
        if self.number("vlan_pcp", &self.spec.vlan_pcp, field::VLAN_PCP, &[])? {
            self.want_all(field::VLAN_PRESENT, 1, "vlan_pcp")?;
        }
        self.tag("inner_vlan", &self.spec.inner_vlan, field::INNER_PRESENT, field::INNER_VID)?;
        if self.value.get(field::INNER_PRESENT) == 1 {
            self.want_all(field::VLAN_PRESENT, 1, "inner_vlan")?;
        }
        Ok(())
    }

    fn tag(
        &mut self,
        name: &'static str,
        value: &Option<Value>,
        present: Field,
        vid: Field,
    ) -> Result {
        let Some(value) = value else { return Ok(()) };
        let tagged = match value {
            Value::Text(text) if text == "none" => 0,
            Value::Text(text) if text == "any" => 1,
            _ => {
                let (id, mask) = masked(value, vid.max(), number)
                    .filter(|(id, mask)| (id | mask) <= vid.max())
                    .ok_or_else(|| {
                        bad(name, value, "none, any, or a number from 0 to 4095, /mask behind it")
                    })?;
                self.want(vid, id, mask, name)?;
                1
            }
        };
        self.want_all(present, tagged, name)
    }

    fn arp(&mut self) -> Result {
        if self.number("arp_op", &self.spec.arp_op, field::TP_SRC, &[])? {
            self.want_arp("arp_op")?;
        }
        let addresses = [
            ("arp_spa", &self.spec.arp_spa, IP_SRC_WORD),
            ("arp_tpa", &self.spec.arp_tpa, IP_DST_WORD),
        ];
        for (name, value, word) in addresses {
            let Some(value) = value else { continue };
            let Some((IpAddr::V4(address), IpAddr::V4(mask))) = prefix(value) else {
                return Err(bad(name, value, "an IPv4 address, prefix or address/mask"));
            };
            self.want_arp(name)?;
            let low = Field { word: word + 1, shift: 0, bits: 64 };
            self.want(low, address.to_bits().into(), mask.to_bits().into(), name)?;
        }
        Ok(())
    }

    fn want_arp(&mut self, by: &'static str) -> Result {
        self.want_all(field::ETH_TYPE, ethertype::ARP.into(), by)?;
        self.want_all(field::L3, L3_ARP, by)
    }

    fn ip(&mut self) -> Result {
        let addresses = [
            ("ip_src", &self.spec.ip_src, IP_SRC_WORD),
            ("ip_dst", &self.spec.ip_dst, IP_DST_WORD),
        ];
        for (name, value, word) in addresses {
            let Some(value) = value else { continue };
            self.address(name, value, word)?;
        }
        let protocols = [
            ("tcp", ip_proto::TCP.into()),
            ("udp", ip_proto::UDP.into()),
            ("sctp", ip_proto::SCTP.into()),
            ("icmp", ip_proto::ICMP.into()),
            ("icmpv6", ip_proto::ICMPV6.into()),
        ];
        if self.number("ip_proto", &self.spec.ip_proto, field::PROTO, &protocols)? {
            self.want_ip("ip_proto")?;
        }
        if self.number("ip_dscp", &self.spec.ip_dscp, field::DSCP, &[])? {
            self.want_ip("ip_dscp")?;
        }
        if self.number("ip_ecn", &self.spec.ip_ecn, field::ECN, &[])? {
            self.want_ip("ip_ecn")?;
        }
        let Some(value) = &self.spec.ip_frag else { return Ok(()) };
        let (at, state) = match value.to_string().as_str() {
            "no" => (field::FRAG, 0),
            "first" => (field::FRAG, FRAG_FIRST),
            "later" => (field::FRAG, FRAG_LATER),
            "any" => (field::IS_FRAG, 1),
            _ => return Err(bad("ip_frag", value, "no, first, later or any")),
        };
        self.want_ip("ip_frag")?;
        self.want_all(at, state, "ip_frag")
    }

    fn address(&mut self, name: &'static str, value: &Value, word: usize) -> Result {
        let Some((address, mask)) = prefix(value) else {
            let expected = "an IPv4 or IPv6 address, prefix (10.0.0.0/8) or address/mask";
            return Err(bad(name, value, expected));
        };
        let (kind, eth_type, address, mask) = match (address, mask) {
            (IpAddr::V4(address), IpAddr::V4(mask)) => {
                // The high bits are 0 in every IPv4 key: demanding it costs nothing and says
                // nothing, so it is left out.
                let bits = [address, mask].map(|part| u128::from(part.to_bits()));
                (L3_IPV4, ethertype::IPV4, bits[0], bits[1])
            }
            (IpAddr::V6(address), IpAddr::V6(mask)) => {
                (L3_IPV6, ethertype::IPV6, address.to_bits(), mask.to_bits())
            }
            _ => return Err(bad(name, value, "address and mask of one IP version")),
        };
        self.want_all(field::ETH_TYPE, eth_type.into(), name)?;
        self.want_all(field::L3, kind, name)?;
        for (word, shift) in [(word, 64), (word + 1, 0)] {
            let at = Field { word, shift: 0, bits: 64 };
            self.want(at, (address >> shift) as u64, (mask >> shift) as u64, name)?;
        }
        Ok(())
    }

    /// Demands IPv4 or IPv6, as far as it is not known which.
    fn want_ip(&mut self, by: &'static str) -> Result {
        let known = self.mask.get(field::ETH_TYPE) == field::ETH_TYPE.max();
        let eth_type = self.value.get(field::ETH_TYPE) as u16;
        if known && !matches!(eth_type, ethertype::IPV4 | ethertype::IPV6) {
            let other = self.author_of(field::ETH_TYPE, by);
            return Err(MatchError::Contradiction { field: by, other });
        }
        self.want_all(field::IS_IP, 1, by)
    }

    fn transport(&mut self) -> Result {
        const ADD: &str = "ip_proto = tcp, udp or sctp";
        if self.spec.tcp_flags.is_some() {
            self.tcp_flags()?;
        }
        for (name, value, at) in [
            ("tp_src", &self.spec.tp_src, field::TP_SRC),
            ("tp_dst", &self.spec.tp_dst, field::TP_DST),
        ] {
            if value.is_none() {
                continue;
            }
            self.known_proto(name, ADD, |p| {
                matches!(p, ip_proto::TCP | ip_proto::UDP | ip_proto::SCTP)
            })?;
            self.want_layer_4(name)?;
            self.number(name, value, at, &[])?;
        }
        Ok(())
    }

    fn tcp_flags(&mut self) -> Result {
        let Some(value) = &self.spec.tcp_flags else { return Ok(()) };
        let at = field::TCP_FLAGS;
        let (set, mask) = tcp_flags(value)
            .or_else(|| masked(value, at.max(), number).filter(|(set, m)| (set | m) <= at.max()))
            .ok_or_else(|| {
                let names = TCP_FLAG_NAMES.join(", ");
                let expected =
                    format!("flags of {names}, ! before those not set, or a number from 0 to 255");
                bad("tcp_flags", value, &expected)
            })?;
        self.want_ip("tcp_flags")?;
        self.want_all(field::PROTO, ip_proto::TCP.into(), "tcp_flags")?;
        self.want_layer_4("tcp_flags")?;
        self.want(at, set, mask, "tcp_flags")
    }

    fn icmp(&mut self) -> Result {
        for (name, value, at) in [
            ("icmp_type", &self.spec.icmp_type, field::TP_SRC),
            ("icmp_code", &self.spec.icmp_code, field::TP_DST),
        ] {
            let Some(value) = value else { continue };
            let proto = self.known_proto(name, "ip_proto = icmp or icmpv6", |p| {
                matches!(p, ip_proto::ICMP | ip_proto::ICMPV6)
            })?;
            let (eth_type, kind) = match proto {
                ip_proto::ICMP => (ethertype::IPV4, L3_IPV4),
                _ => (ethertype::IPV6, L3_IPV6),
            };
            self.want_all(field::ETH_TYPE, eth_type.into(), name)?;
            self.want_all(field::L3, kind, name)?;
            self.want_layer_4(name)?;
            let (number, mask) = masked(value, 0xff, number)
                .filter(|(number, mask)| (number | mask) <= 0xff)
                .ok_or_else(|| bad(name, value, "a number from 0 to 255, /mask behind it"))?;
            self.want(at, number, mask, name)?;
        }
        Ok(())
    }

    /// The one protocol demanded so far, which must be one of those that have the field `by`.
    fn known_proto(
        &self,
        by: &'static str,
        add: &'static str,
        fits: impl Fn(u8) -> bool,
    ) -> Result<u8> {
        if self.mask.get(field::PROTO) != field::PROTO.max() {
            return Err(MatchError::Missing { field: by, add });
        }
        let proto = self.value.get(field::PROTO) as u8;
        if !fits(proto) {
            let other = self.author_of(field::PROTO, by);
            return Err(MatchError::Contradiction { field: by, other });
        }
        Ok(proto)
    }

    /// Demands a header of layer 4, which later fragments have not.
    fn want_layer_4(&mut self, by: &'static str) -> Result {
        if self.mask.get(field::FRAG) == field::FRAG.max()
            && self.value.get(field::FRAG) == FRAG_LATER
        {
            let other = self.author_of(field::FRAG, by);
            return Err(MatchError::Contradiction { field: by, other });
        }
        self.want_all(field::L4, 1, by)
    }

    /// Where the type is known and IP is demanded, the IP version is known: says so, so that two
    /// ways to write one match compile to the same.
    fn complete_layer_3(&mut self) {
        if self.mask.get(field::ETH_TYPE) != field::ETH_TYPE.max()
            || self.mask.get(field::IS_IP) == 0
        {
            return;
        }
        let kind = match self.value.get(field::ETH_TYPE) as u16 {
            ethertype::IPV4 => L3_IPV4,
            ethertype::IPV6 => L3_IPV6,
            _ => return,
        };
        self.value.set(field::L3, kind);
        self.mask.set(field::L3, field::L3.max());
    }

    /// Demands a number, plain, by name or with a mask. Returns whether the field was written.
    fn number(
        &mut self,
        name: &'static str,
        value: &Option<Value>,
        at: Field,
        names: &[(&str, u64)],
    ) -> Result<bool> {
        let Some(value) = value else { return Ok(false) };
        let named = names.iter().find(|(name, _)| *name == value.to_string());
        let (number, mask) = named
            .map(|&(_, number)| (number, at.max()))
            .or_else(|| masked(value, at.max(), number))
            .filter(|(number, mask)| (number | mask) <= at.max())
            .ok_or_else(|| {
                let mut expected = String::new();
                for (name, _) in names {
                    expected += &format!("{name}, ");
                }
                let or = if names.is_empty() { "" } else { "or " };
                expected += &format!("{or}a number from 0 to {}, /mask behind it", at.max());
                bad(name, value, &expected)
            })?;
        self.want(at, number, mask, name)?;
        Ok(true)
    }
}

/// A value as a message shows it: in one line, and not endless.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    let mut short: String = text.chars().take(60).flat_map(char::escape_debug).collect();
    if text.chars().nth(60).is_some() {
        short.push('…');
    }
    short
}

fn bad(field: &'static str, value: &Value, expected: &str) -> MatchError {
    MatchError::Value { field, value: shown(value), expected: expected.to_owned() }
}

/// `value` or `value/mask`, each read by `read`.
fn masked(value: &Value, all: u64, read: fn(&str) -> Option<u64>) -> Option<(u64, u64)> {
    let text = value.to_string();
    match text.split_once('/') {
        Some((value, mask)) => Some((read(value)?, read(mask)?)),
        None => Some((read(&text)?, all)),
    }
}

/// A number, decimal or hexadecimal.
fn number(text: &str) -> Option<u64> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    // `from_str_radix` takes a sign.
    digits.bytes().all(|byte| byte.is_ascii_hexdigit()).then_some(())?;
    u64::from_str_radix(digits, radix).ok()
}

/// An Ethernet address, six pairs of digits.
fn mac(text: &str) -> Option<u64> {
    let mut address = 0;
    let mut count = 0;
    for part in text.split(':') {
        let digits = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        address = address << 8 | u64::from_str_radix(digits.then_some(part)?, 16).ok()?;
        count += 1;
        if count > 6 {
            return None;
        }
    }
    (count == 6).then_some(address)
}

/// An address, `address/length` or `address/mask`.
fn prefix(value: &Value) -> Option<(IpAddr, IpAddr)> {
    let Value::Text(text) = value else { return None };
    let (address, rest) = match text.split_once('/') {
        Some((address, rest)) => (address, Some(rest)),
        None => (text.as_str(), None),
    };
    let address: IpAddr = address.parse().ok()?;
    let width = if address.is_ipv4() { 32 } else { 128 };
    let Some(rest) = rest else { return Some((address, ones(address, width)?)) };
    if let Some(length) = number(rest).filter(|_| rest.bytes().all(|byte| byte.is_ascii_digit())) {
        return Some((address, ones(address, u32::try_from(length).ok()?)?));
    }
    Some((address, rest.parse().ok()?))
}

/// The mask of a prefix of `length` bits, of the address's version.
fn ones(address: IpAddr, length: u32) -> Option<IpAddr> {
    match address {
        IpAddr::V4(_) => {
            let empty = 32_u32.checked_sub(length)?;
            Some(Ipv4Addr::from_bits(u32::MAX.checked_shl(empty).unwrap_or(0)).into())
        }
        IpAddr::V6(_) => {
            let empty = 128_u32.checked_sub(length)?;
            Some(Ipv6Addr::from_bits(u128::MAX.checked_shl(empty).unwrap_or(0)).into())
        }
    }
}

/// `syn,!ack`: the flags that are set, and those looked at.
fn tcp_flags(value: &Value) -> Option<(u64, u64)> {
    let Value::Text(text) = value else { return None };
    let (mut set, mut mask) = (0, 0);
    for part in text.split(',') {
        let (name, wanted) = match part.trim().strip_prefix('!') {
            Some(name) => (name, 0),
            None => (part.trim(), 1),
        };
        let bit = TCP_FLAG_NAMES.iter().position(|flag| *flag == name)?;
        if mask >> bit & 1 == 1 && set >> bit & 1 != wanted {
            return None;
        }
        set |= wanted << bit;
        mask |= 1 << bit;
    }
    Some((set, mask))
}
