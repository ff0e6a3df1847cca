//! `millrace rule …`
#![forbid(unsafe_code)]

use clap::{Args, Subcommand};
use nflib::control::{Edit, MatchSpec, RuleSpec, RuleStatus, Status};
use serde::Serialize;

use crate::table::{Table, ago, or_dash};
use crate::{Globals, applied, print, words};

#[derive(Subcommand)]
pub enum Verb {
    /// One line each, in the order in which packets meet them
    List {
        /// Only those of this table
        #[arg(long)]
        table: Option<u8>,
        /// At most so many
        #[arg(long, default_value_t = 1000)]
        limit: usize,
    },
    /// Add a rule, or replace the one with the same table, priority and match
    ///
    /// Example: millrace rule add --priority 100 ip_proto=tcp tp_dst=80 then chain=web
    #[command(
        override_usage = "millrace rule add [OPTIONS] --priority <P> MATCH... then ACTION..."
    )]
    Add(Spec),
    /// Remove rules, by number or by name: all of them, or none
    Remove {
        /// A rule's number, or its name
        #[arg(required = true, value_name = "ID|NAME")]
        rules: Vec<String>,
    },
    /// What a rule can match on
    Fields,
}

#[derive(Args)]
pub struct Spec {
    /// Of several rules that match, the one with the highest priority is taken: 0 to 65535
    #[arg(long, value_name = "P")]
    priority: u16,
    /// The table it stands in; packets start at 0
    #[arg(long, value_name = "T", default_value_t = 0)]
    table: u8,
    /// A name to remove it by
    #[arg(long)]
    name: Option<String>,
    /// Forget the rule when no packet matched it for so long
    #[arg(long, value_name = "SECONDS", value_parser = words::seconds)]
    idle_timeout: Option<f64>,
    /// Forget the rule so long after it was added
    #[arg(long, value_name = "SECONDS", value_parser = words::seconds)]
    hard_timeout: Option<f64>,
    /// FIELD=VALUE… (none: every packet), "then", and chain=NAME, out=PORT, drop or
    /// [set_metadata=VALUE] goto=TABLE
    #[arg(required = true, value_name = "MATCH... then ACTION")]
    words: Vec<String>,
}

impl Spec {
    fn rule(self) -> anyhow::Result<RuleSpec> {
        let (matches, then) = words::rule(&self.words).map_err(print::usage)?;
        Ok(RuleSpec {
            name: self.name,
            table: self.table,
            priority: self.priority,
            matches,
            then,
            idle_timeout_s: self.idle_timeout,
            hard_timeout_s: self.hard_timeout,
        })
    }
}

pub fn run(globals: &Globals, verb: Verb) -> anyhow::Result<()> {
    let edits = match verb {
        Verb::List { table, limit } => {
            let status = globals.connect()?.status()?;
            let rules: Vec<_> = status
                .rules
                .iter()
                .filter(|rule| table.is_none_or(|table| rule.spec.table == table))
                .collect();
            let shown = &rules[..rules.len().min(limit)];
            let left_out = left_out(&status, rules.len() - shown.len());
            return print::either(globals.json, &shown, || self::table(shown) + &left_out);
        }
        Verb::Fields => return fields(globals),
        Verb::Add(spec) => vec![Edit::AddRule { rule: Box::new(spec.rule()?) }],
        Verb::Remove { rules } => rules.into_iter().map(removal).collect(),
    };
    applied::report(globals, &globals.connect()?.edit(edits)?)
}

fn removal(rule: String) -> Edit {
    match rule.parse() {
        Ok(id) => Edit::RemoveRule { id },
        Err(_) => Edit::RemoveRuleNamed { name: rule },
    }
}

/// One line for each rule.
pub fn table(rules: &[&RuleStatus]) -> String {
    if rules.is_empty() {
        return "no rule\n".to_owned();
    }
    let mut table = Table::new(&[
        "ID", "TABLE", "PRIORITY", "NAME", "MATCH", "THEN", "PKTS", "BYTES", "IDLE", "TIMEOUTS",
    ]);
    for rule in rules {
        table.row(vec![
            rule.id.to_string(),
            rule.spec.table.to_string(),
            rule.spec.priority.to_string(),
            or_dash(rule.spec.name.as_ref()),
            rule.spec.matches.to_string(),
            rule.spec.then.to_string(),
            rule.pkts.to_string(),
            rule.bytes.to_string(),
            ago(rule.idle_s),
            timeouts(&rule.spec),
        ]);
    }
    table.text()
}

fn timeouts(rule: &RuleSpec) -> String {
    let idle = rule.idle_timeout_s.map(|s| format!("idle {s} s"));
    let hard = rule.hard_timeout_s.map(|s| format!("hard {s} s"));
    let both: Vec<_> = idle.into_iter().chain(hard).collect();
    if both.is_empty() { "-".to_owned() } else { both.join(", ") }
}

/// What is said when not every rule is shown.
fn left_out(status: &Status, by_limit: usize) -> String {
    let listed = status.rules.len() as u64;
    let mut out = String::new();
    if by_limit > 0 {
        out += &format!("{by_limit} more; --limit shows them\n");
    }
    if status.rule_count > listed {
        out += &format!("the manager listed the first {listed} of {} rules\n", status.rule_count);
    }
    out
}

/// `12 web (priority 100): tp_dst=80 → chain=web`.
pub fn one_line(rule: &RuleStatus) -> String {
    let RuleStatus { id, spec, .. } = rule;
    let name = spec.name.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
    format!("{id}{name} (priority {}): {} → {}", spec.priority, spec.matches, spec.then)
}

/// What can be matched on, with an example and its meaning, by the order of the layers.
const FIELDS: &[(&str, &str, &str)] = &[
    ("in_port", "left", "the port the packet came in by, by its name"),
    ("eth_src", "02:00:00:00:00:01", "Ethernet source; a mask may follow behind /"),
    (
        "eth_dst",
        "01:00:00:00:00:00/01:00:00:00:00:00",
        "Ethernet destination (here: any multicast)",
    ),
    ("eth_type", "ipv6", "type of the innermost payload: ipv4, ipv6, arp, or a number"),
    ("vlan", "7", "outer VLAN id; none: untagged, any: tagged"),
    ("vlan_pcp", "5", "priority of the outer VLAN tag, 0 to 7"),
    ("inner_vlan", "42", "second VLAN id (QinQ), none or any"),
    ("arp_op", "1", "ARP operation: 1 request, 2 reply"),
    ("arp_spa", "10.0.0.1", "ARP sender protocol address"),
    ("arp_tpa", "10.0.0.2", "ARP target protocol address"),
    ("ip_src", "10.0.0.0/8", "IPv4 or IPv6 source: address, prefix or mask"),
    ("ip_dst", "2001:db8::1", "IPv4 or IPv6 destination"),
    ("ip_proto", "tcp", "IP protocol: tcp, udp, sctp, icmp, icmpv6, or a number"),
    ("ip_dscp", "46", "differentiated services code point, 0 to 63"),
    ("ip_ecn", "3", "explicit congestion notification, 0 to 3"),
    (
        "ip_frag",
        "no",
        "no: whole packets, first: first fragments, later: the others, any: all fragments",
    ),
    (
        "tp_src",
        "0x1000/0xf000",
        "source port; needs ip_proto=tcp, udp or sctp; a mask may follow behind /",
    ),
    ("tp_dst", "80", "destination port; needs ip_proto=tcp, udp or sctp"),
    ("tcp_flags", "syn,!ack", "TCP flags that are set, and (with !) that are not"),
    ("icmp_type", "8", "ICMP type; needs ip_proto=icmp or icmpv6"),
    ("icmp_code", "0", "ICMP code; needs ip_proto=icmp or icmpv6"),
    ("tunnel_id", "5000", "tunnel id, set by the port"),
    ("metadata", "0x10/0xf0", "metadata, set by a rule of an earlier table"),
];

#[derive(Serialize)]
struct Field {
    name: &'static str,
    example: &'static str,
    meaning: &'static str,
}

/// Needs no manager.
fn fields(globals: &Globals) -> anyhow::Result<()> {
    debug_assert_eq!(FIELDS.len(), MatchSpec::FIELDS.len());
    let fields: Vec<_> =
        FIELDS.iter().map(|&(name, example, meaning)| Field { name, example, meaning }).collect();
    print::either(globals.json, &fields, || {
        let mut table = Table::new(&["FIELD", "EXAMPLE", "MEANING"]);
        for field in &fields {
            let example = format!("{}={}", field.name, field.example);
            table.row(vec![field.name.into(), example, field.meaning.into()]);
        }
        table.text() + "\nA field that is not given matches every packet.\n"
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nflib::control::{ThenSpec, spec::Value};

    fn rule(id: u64, name: Option<&str>) -> RuleStatus {
        let matches = MatchSpec { tp_dst: Some(Value::Int(80)), ..Default::default() };
        let then = ThenSpec { chain: Some("web".into()), ..Default::default() };
        RuleStatus {
            id,
            spec: RuleSpec {
                name: name.map(Into::into),
                priority: 100,
                matches,
                then,
                idle_timeout_s: name.map(|_| 30.0),
                ..Default::default()
            },
            pkts: 5,
            bytes: 500,
            idle_s: 1.5,
            ..Default::default()
        }
    }

    #[test]
    fn a_list_has_one_line_for_each() {
        assert_eq!(
            table(&[&rule(1, None), &rule(12, Some("http"))]),
            "ID  TABLE  PRIORITY  NAME  MATCH      THEN       PKTS  BYTES    IDLE  TIMEOUTS\n\
             \x201      0       100  -     tp_dst=80  chain=web     5    500  1.50 s  -\n\
             12      0       100  http  tp_dst=80  chain=web     5    500  1.50 s  idle 30 s\n"
        );
        assert_eq!(table(&[]), "no rule\n");
    }

    #[test]
    fn what_is_left_out_is_said() {
        let status = Status { rules: vec![rule(1, None)], rule_count: 1, ..Default::default() };
        assert_eq!(left_out(&status, 0), "");
        assert!(left_out(&status, 3).starts_with("3 more"));
        let status = Status { rule_count: 5000, ..status };
        assert_eq!(left_out(&status, 0), "the manager listed the first 1 of 5000 rules\n");
    }

    #[test]
    fn every_field_is_explained_in_the_order_of_the_layers() {
        let named: Vec<_> = FIELDS.iter().map(|field| field.0).collect();
        assert_eq!(named, MatchSpec::FIELDS);
    }

    #[test]
    fn a_number_removes_by_number_and_a_text_by_name() {
        assert_eq!(removal("12".into()), Edit::RemoveRule { id: 12 });
        assert_eq!(removal("web".into()), Edit::RemoveRuleNamed { name: "web".into() });
    }
}
