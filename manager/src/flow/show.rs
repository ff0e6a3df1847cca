//! A key in words, as a person writes a match.
#![forbid(unsafe_code)]

use std::fmt;

use nflib::control::MatchSpec;
use nflib::control::spec::Value;
use nflib::descriptor::PortId;
use nflib::headers::{Fragment, ethertype, ip_proto};

use super::key::{FlowKey, L3_ARP, field};

impl FlowKey {
    /// The fields that the packet has, as a match that takes it. Ports are named by `port_name`.
    /// Metadata and tunnel id are shown when they are not 0, the fragment state when it is one.
    #[must_use]
    pub fn to_spec(&self, port_name: &dyn Fn(PortId) -> String) -> MatchSpec {
        let mut spec =
            MatchSpec { in_port: text(port_name(self.in_port())), ..MatchSpec::default() };
        spec.eth_src = text(Mac(self.get(field::ETH_SRC)));
        spec.eth_dst = text(Mac(self.get(field::ETH_DST)));
        spec.eth_type = Some(eth_type_name(self.eth_type()));
        if let Some((id, priority)) = self.vlan() {
            spec.vlan = int(id);
            spec.vlan_pcp = int(priority);
        }
        spec.inner_vlan = self.inner_vlan().and_then(int);
        self.show_network(&mut spec);
        if let Some((src, dst)) = self.ports() {
            spec.tp_src = int(src);
            spec.tp_dst = int(dst);
        }
        if let Some((kind, code)) = self.icmp() {
            spec.icmp_type = int(kind);
            spec.icmp_code = int(code);
        }
        let nonzero = |value: u64| (value != 0).then_some(Value::Int(value));
        spec.tunnel_id = nonzero(self.get(field::TUNNEL_ID));
        spec.metadata = nonzero(self.get(field::METADATA));
        spec
    }

    fn show_network(&self, spec: &mut MatchSpec) {
        if self.get(field::L3) == L3_ARP {
            spec.arp_op = int(self.get(field::TP_SRC));
            if let Some((sender, target)) = self.ipv4() {
                spec.arp_spa = text(sender);
                spec.arp_tpa = text(target);
            }
            return;
        }
        let Some(proto) = self.ip_proto() else { return };
        if let Some((src, dst)) = self.ipv4() {
            spec.ip_src = text(src);
            spec.ip_dst = text(dst);
        }
        if let Some((src, dst)) = self.ipv6() {
            spec.ip_src = text(src);
            spec.ip_dst = text(dst);
        }
        spec.ip_proto = Some(proto_name(proto));
        let nonzero = |value: u64| (value != 0).then_some(Value::Int(value));
        spec.ip_dscp = nonzero(self.get(field::DSCP));
        spec.ip_ecn = nonzero(self.get(field::ECN));
        spec.ip_frag = match self.fragment() {
            Fragment::Whole => None,
            Fragment::First => text("first"),
            Fragment::Later => text("later"),
        };
        if proto == ip_proto::TCP && self.get(field::L4) == 1 {
            spec.tcp_flags = flags(self.get(field::TCP_FLAGS));
        }
    }
}

/// Names of TCP flags, lowest bit first.
pub(super) const TCP_FLAG_NAMES: [&str; 8] =
    ["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"];

/// The flags that are set; `None` when none is (a cached flow does not know them either).
fn flags(set: u64) -> Option<Value> {
    let names = TCP_FLAG_NAMES.iter().enumerate();
    let names: Vec<&str> = names.filter(|(bit, _)| set >> bit & 1 == 1).map(|(_, &n)| n).collect();
    (!names.is_empty()).then(|| Value::Text(names.join(",")))
}

fn int(number: impl Into<u64>) -> Option<Value> {
    Some(Value::Int(number.into()))
}

fn text(what: impl fmt::Display) -> Option<Value> {
    Some(Value::Text(what.to_string()))
}

fn eth_type_name(eth_type: u16) -> Value {
    match eth_type {
        ethertype::IPV4 => Value::Text("ipv4".into()),
        ethertype::IPV6 => Value::Text("ipv6".into()),
        ethertype::ARP => Value::Text("arp".into()),
        other => Value::Text(format!("{other:#06x}")),
    }
}

fn proto_name(proto: u8) -> Value {
    let name = match proto {
        ip_proto::TCP => "tcp",
        ip_proto::UDP => "udp",
        ip_proto::SCTP => "sctp",
        ip_proto::ICMP => "icmp",
        ip_proto::ICMPV6 => "icmpv6",
        other => return Value::Int(other.into()),
    };
    Value::Text(name.into())
}

struct Mac(u64);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [_, _, bytes @ ..] = self.0.to_be_bytes();
        let [a, b, c, d, e, g] = bytes;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}
