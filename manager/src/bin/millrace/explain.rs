//! Why a packet goes where it goes, and flows, as text for people.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use nflib::control::spec::Value;
use nflib::control::{ExplainedHop, Explanation, FlowStatus, MatchSpec};

use crate::rule;
use crate::table::{Table, ago, clean, or_dash};

/// What was read, each table with the rule taken and those that lost, each hop, the end.
pub fn show(explanation: &Explanation) -> String {
    let Explanation { key, flow_hash, tables, chain, hops, end } = explanation;
    let mut out = String::new();
    let mut line = |label: &str, text: &str| _ = writeln!(out, "{label:<9} {}", clean(text));
    line("packet", &flow(key));
    line("read", &key.to_string());
    line("hash", &format!("{flow_hash:#010x}"));
    for table in tables {
        let label = format!("table {}", table.table);
        match &table.rule {
            Some(taken) => line(&label, &format!("rule {}", rule::one_line(taken))),
            None => line(&label, "no rule matches"),
        }
        for lost in &table.also_matching {
            line("", &format!("matches too, and is not taken: rule {}", rule::one_line(lost)));
        }
    }
    match chain {
        Some(chain) => line("chain", chain),
        None => line("chain", "none"),
    }
    for hop in hops {
        line("hop", &self::hop(hop));
    }
    line("end", end);
    out
}

fn hop(hop: &ExplainedHop) -> String {
    let ExplainedHop { chain, hop, service, instance, why, via } = hop;
    let whom = match instance {
        Some(instance) => format!("instance {instance}"),
        None => "NO INSTANCE".to_owned(),
    };
    let why = if why.is_empty() { String::new() } else { format!(" ({why})") };
    let via = if via.is_empty() { String::new() } else { format!(", {}", how(via)) };
    format!("{chain}/{hop} {service}: {whom}{why}{via}")
}

/// How a packet gets to a hop.
fn how(via: &str) -> String {
    match via {
        "manager" => "handed over by the manager".to_owned(),
        "direct" => "handed over directly".to_owned(),
        other => format!("via {other}"),
    }
}

/// One line for each flow.
pub fn flows(flows: &[FlowStatus], total: u64) -> String {
    if flows.is_empty() {
        return format!("no flow to show; {total} known\n");
    }
    let mut table = Table::new(&["FLOW", "IN", "RULE", "THEN", "PKTS", "BYTES", "IDLE"]);
    for FlowStatus { key, rule, then, pkts, bytes, idle_s } in flows {
        let mut without_port = key.clone();
        without_port.in_port = None;
        table.row(vec![
            flow(&without_port),
            or_dash(key.in_port.as_ref()),
            or_dash(*rule),
            then.clone(),
            pkts.to_string(),
            bytes.to_string(),
            ago(*idle_s),
        ]);
    }
    format!("{}{} of {total} flows\n", table.text(), flows.len())
}

/// A key as a person writes it: `tcp 10.0.0.1:1234 → 10.0.0.2:80, in by left`; what is no IP packet
/// by its Ethernet addresses or its fields.
pub fn flow(key: &MatchSpec) -> String {
    let mut text = match (&key.ip_src, &key.ip_dst) {
        (Some(src), Some(dst)) => {
            let proto = key.ip_proto.as_ref().map_or_else(|| "ip".to_owned(), proto);
            format!("{proto} {} → {}", end(src, &key.tp_src), end(dst, &key.tp_dst))
        }
        _ => match (&key.arp_spa, &key.arp_tpa, &key.eth_src, &key.eth_dst) {
            (Some(from), Some(to), _, _) => format!("arp {from} → {to}"),
            (_, _, Some(src), Some(dst)) => {
                let kind = key.eth_type.as_ref().map(|kind| format!(" type {kind}"));
                format!("ethernet {src} → {dst}{}", kind.unwrap_or_default())
            }
            _ => {
                let mut rest = key.clone();
                rest.in_port = None;
                rest.to_string()
            }
        },
    };
    for (name, value) in [("vlan", &key.vlan), ("inner vlan", &key.inner_vlan)] {
        if let Some(value) = value.as_ref().filter(|value| value.to_string() != "none") {
            let _ = write!(text, ", {name} {value}");
        }
    }
    if let Some(port) = &key.in_port {
        let _ = write!(text, ", in by {port}");
    }
    text
}

fn proto(value: &Value) -> String {
    match value.to_string().as_str() {
        "1" => "icmp".to_owned(),
        "6" => "tcp".to_owned(),
        "17" => "udp".to_owned(),
        "58" => "icmpv6".to_owned(),
        "132" => "sctp".to_owned(),
        other if other.starts_with(|c: char| c.is_ascii_digit()) => format!("protocol {other}"),
        other => other.to_owned(),
    }
}

fn end(address: &Value, port: &Option<Value>) -> String {
    let address = address.to_string();
    match port {
        None => address,
        Some(port) if address.contains(':') => format!("[{address}]:{port}"),
        Some(port) => format!("{address}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nflib::control::{ExplainedTable, RuleSpec, RuleStatus, ThenSpec};

    fn key(fields: &[(&str, &str)]) -> MatchSpec {
        let mut key = MatchSpec::default();
        for (field, value) in fields {
            key.set(field, Value::Text((*value).into())).unwrap();
        }
        key
    }

    fn web() -> MatchSpec {
        key(&[
            ("in_port", "left"),
            ("vlan", "none"),
            ("ip_src", "10.0.0.1"),
            ("ip_dst", "10.0.0.2"),
            ("ip_proto", "6"),
            ("tp_src", "1234"),
            ("tp_dst", "80"),
        ])
    }

    fn rule(id: u64, name: &str, priority: u16, chain: &str) -> RuleStatus {
        let then = ThenSpec { chain: Some(chain.into()), ..Default::default() };
        let name = Some(name.to_owned()).filter(|name| !name.is_empty());
        let spec = RuleSpec { name, priority, then, ..Default::default() };
        RuleStatus { id, spec, ..Default::default() }
    }

    #[test]
    fn an_explanation_goes_from_the_packet_to_its_end() {
        let hop = |hop, service: &str, instance: Option<u32>, why: &str, via: &str| ExplainedHop {
            chain: "web".into(),
            hop,
            service: service.into(),
            instance,
            why: why.into(),
            via: via.into(),
        };
        let explanation = Explanation {
            key: web(),
            flow_hash: 0x1234,
            tables: vec![
                ExplainedTable {
                    table: 0,
                    rule: Some(rule(7, "http", 100, "web")),
                    also_matching: vec![rule(2, "", 1, "rest")],
                },
                ExplainedTable { table: 1, rule: None, also_matching: vec![] },
            ],
            chain: Some("web".into()),
            hops: vec![
                hop(0, "fw", Some(3), "the only instance", "manager"),
                hop(1, "nat", Some(9), "bucket 17 of 1024", "direct"),
                hop(2, "dpi", None, "", ""),
            ],
            end: "drop (no_instance)".into(),
        };
        assert_eq!(
            show(&explanation),
            "packet    tcp 10.0.0.1:1234 → 10.0.0.2:80, in by left\n\
             read      in_port=left vlan=none ip_src=10.0.0.1 ip_dst=10.0.0.2 ip_proto=6 \
             tp_src=1234 tp_dst=80\n\
             hash      0x00001234\n\
             table 0   rule 7 http (priority 100): * → chain=web\n\
             \x20         matches too, and is not taken: rule 2 (priority 1): * → chain=rest\n\
             table 1   no rule matches\n\
             chain     web\n\
             hop       web/0 fw: instance 3 (the only instance), handed over by the manager\n\
             hop       web/1 nat: instance 9 (bucket 17 of 1024), handed over directly\n\
             hop       web/2 dpi: NO INSTANCE\n\
             end       drop (no_instance)\n"
        );
    }

    #[test]
    fn a_flow_is_written_as_a_person_writes_it() {
        for (fields, text) in [
            (
                &[
                    ("ip_src", "2001:db8::1"),
                    ("ip_dst", "2001:db8::2"),
                    ("ip_proto", "udp"),
                    ("tp_src", "53"),
                    ("tp_dst", "53"),
                    ("vlan", "7"),
                ][..],
                "udp [2001:db8::1]:53 → [2001:db8::2]:53, vlan 7",
            ),
            (
                &[("ip_src", "10.0.0.1"), ("ip_dst", "10.0.0.2"), ("ip_proto", "50")],
                "protocol 50 10.0.0.1 → 10.0.0.2",
            ),
            (
                &[
                    ("arp_spa", "10.0.0.1"),
                    ("arp_tpa", "10.0.0.2"),
                    ("eth_src", "x"),
                    ("eth_dst", "y"),
                ],
                "arp 10.0.0.1 → 10.0.0.2",
            ),
            (
                &[
                    ("eth_src", "02:00:00:00:00:01"),
                    ("eth_dst", "02:00:00:00:00:02"),
                    ("eth_type", "0x88cc"),
                ],
                "ethernet 02:00:00:00:00:01 → 02:00:00:00:00:02 type 0x88cc",
            ),
            (&[("in_port", "left"), ("metadata", "1")], "metadata=1, in by left"),
        ] {
            assert_eq!(flow(&key(fields)), text);
        }
    }

    #[test]
    fn flows_are_listed_with_their_port_rule_and_action() {
        let flow = FlowStatus {
            key: web(),
            rule: Some(7),
            then: "chain=web".into(),
            pkts: 5,
            bytes: 500,
            idle_s: 0.5,
        };
        assert_eq!(
            flows(&[flow], 90),
            "FLOW                             IN    RULE  THEN       PKTS  BYTES    IDLE\n\
             tcp 10.0.0.1:1234 → 10.0.0.2:80  left     7  chain=web     5    500  0.50 s\n\
             1 of 90 flows\n"
        );
        assert_eq!(flows(&[], 0), "no flow to show; 0 known\n");
    }
}
