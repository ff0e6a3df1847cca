//! What people write down: services, chains and rules, the same in the configuration file (TOML),
//! on the command line and on the control socket (JSON).
//!
//! A spec is text that has been read, not checked: names are looked up, ranges checked and matches
//! compiled by the manager, which answers with one clear line.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::descriptor::ServiceId;

/// A number or a text: `80`, `"80"`, `"0x1000/0xf000"`, `"tcp"`, `"10.0.0.0/8"`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged)]
pub enum Value {
    /// Written as a number.
    Int(u64),
    /// Written as a text.
    Text(String),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(number) => write!(f, "{number}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

macro_rules! match_spec {
    ($($(#[doc = $doc:literal])+ $field:ident,)+) => {
        /// Which packets a rule takes; a field that is absent matches everything.
        ///
        /// Numbers may carry a mask: `"0x10/0xf0"`. Names stand for the usual numbers.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        #[serde(deny_unknown_fields, default)]
        pub struct MatchSpec {$(
            $(#[doc = $doc])+
            #[serde(skip_serializing_if = "Option::is_none")]
            pub $field: Option<Value>,
        )+}

        impl MatchSpec {
            /// The names of all fields, in the order of the layers.
            pub const FIELDS: &[&str] = &[$(stringify!($field),)+];

            /// The fields that are set, with their values.
            pub fn fields(&self) -> impl Iterator<Item = (&'static str, &Value)> + '_ {
                [$((stringify!($field), self.$field.as_ref()),)+]
                    .into_iter()
                    .filter_map(|(name, value)| Some((name, value?)))
            }

            /// Sets a field by its name; gives the value back when there is no such field.
            ///
            /// # Errors
            /// The value.
            pub fn set(&mut self, field: &str, value: Value) -> Result<(), Value> {
                match field {
                    $(stringify!($field) => self.$field = Some(value),)+
                    _ => return Err(value),
                }
                Ok(())
            }
        }
    };
}

match_spec! {
    /// Ingress port, by its name in the configuration.
    in_port,
    /// Ethernet source, `02:00:00:00:00:01` or with a mask behind `/`.
    eth_src,
    /// Ethernet destination.
    eth_dst,
    /// Type of the innermost Ethernet payload: `ipv4`, `ipv6`, `arp`, or a number.
    eth_type,
    /// Outer VLAN id; `none` for untagged, `any` for tagged.
    vlan,
    /// Priority of the outer VLAN tag.
    vlan_pcp,
    /// Second VLAN id (QinQ); `none`, `any` or a number.
    inner_vlan,
    /// ARP operation: 1 request, 2 reply.
    arp_op,
    /// ARP sender protocol address.
    arp_spa,
    /// ARP target protocol address.
    arp_tpa,
    /// IPv4 or IPv6 source: address, prefix or mask.
    ip_src,
    /// IPv4 or IPv6 destination.
    ip_dst,
    /// IP protocol: `tcp`, `udp`, `sctp`, `icmp`, `icmpv6`, or a number.
    ip_proto,
    /// Differentiated services code point.
    ip_dscp,
    /// Explicit congestion notification.
    ip_ecn,
    /// `no`: whole packets; `first`: first fragments; `later`: the others; `any`: any fragment.
    ip_frag,
    /// Transport source port of TCP, UDP or SCTP.
    tp_src,
    /// Transport destination port of TCP, UDP or SCTP.
    tp_dst,
    /// TCP flags that are set, and not set: `syn,!ack`.
    tcp_flags,
    /// ICMP or ICMPv6 type.
    icmp_type,
    /// ICMP or ICMPv6 code.
    icmp_code,
    /// Tunnel id, set by the port.
    tunnel_id,
    /// Metadata, set by a rule of an earlier table.
    metadata,
}

impl fmt::Display for MatchSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut any = false;
        for (name, value) in self.fields() {
            write!(f, "{}{name}={value}", if any { " " } else { "" })?;
            any = true;
        }
        if any { Ok(()) } else { f.write_str("*") }
    }
}

/// What a rule does with the packets it takes: one of `chain`, `out`, `drop`, `goto`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ThenSpec {
    /// Through this chain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chain: Option<String>,
    /// Straight out by this port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out: Option<String>,
    /// Away with it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub drop: bool,
    /// On to a later table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goto: Option<u8>,
    /// With `goto`: the packet's metadata for later tables, as value or `value/mask`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set_metadata: Option<Value>,
}

impl fmt::Display for ThenSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        parts.extend(self.chain.as_ref().map(|chain| format!("chain={chain}")));
        parts.extend(self.out.as_ref().map(|port| format!("out={port}")));
        parts.extend(self.drop.then(|| "drop".to_owned()));
        parts.extend(self.set_metadata.as_ref().map(|value| format!("set_metadata={value}")));
        parts.extend(self.goto.map(|table| format!("goto={table}")));
        f.write_str(&parts.join(" "))
    }
}

/// A rule of the flow table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RuleSpec {
    /// A name to remove it by; unique when given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The table it stands in; packets start at 0.
    #[serde(default)]
    pub table: u8,
    /// Of several rules that match, the one with the highest priority is taken.
    #[serde(default)]
    pub priority: u16,
    /// Which packets.
    #[serde(default, rename = "match")]
    pub matches: MatchSpec,
    /// What to do with them.
    pub then: ThenSpec,
    /// Forget the rule when no packet matched it for so long, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout_s: Option<f64>,
    /// Forget the rule so long after it was added, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hard_timeout_s: Option<f64>,
}

/// A service as a chain names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged)]
pub enum ServiceRef {
    /// By service id.
    Id(ServiceId),
    /// By name.
    Name(String),
}

impl fmt::Display for ServiceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "{id}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl std::str::FromStr for ServiceRef {
    type Err = std::convert::Infallible;

    /// A number is an id, everything else a name.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(text.parse().map_or_else(|_| Self::Name(text.to_owned()), Self::Id))
    }
}

/// The chain that packets take when no rule sends them elsewhere.
pub const DEFAULT_CHAIN_NAME: &str = "default";

/// A service chain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ChainSpec {
    /// Its name, unique. [`DEFAULT_CHAIN_NAME`] takes what no rule sends elsewhere.
    pub name: String,
    /// Its services in order; one may stand in it more than once.
    #[serde(default)]
    pub services: Vec<ServiceRef>,
    /// What becomes of a packet at the end: `egress` (the egress port of its ingress port),
    /// `ingress` (back where it came from), `drop`, `out:PORT`, `chain:NAME`.
    #[serde(default = "egress")]
    pub end: String,
    /// Named branches: an NF of this chain may send a packet to the start of another chain.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub branches: BTreeMap<String, String>,
    /// What becomes of its packets at a service that has no NF: the last one died, or none has come.
    #[serde(default, skip_serializing_if = "OnDeath::is_default")]
    pub on_death: OnDeath,
}

/// What becomes of a chain's packets at a service that has no NF to take them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum OnDeath {
    /// They are dropped, counted as `no_instance` at the service: nothing passes unseen.
    #[default]
    Drop,
    /// They skip the service, and are counted as `bypassed` at it: traffic goes on.
    Bypass,
    /// They wait for the next NF, so many and for so long as the manager allows.
    Hold,
}

impl OnDeath {
    /// The name in files, commands and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Bypass => "bypass",
            Self::Hold => "hold",
        }
    }

    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for OnDeath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for OnDeath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Drop, Self::Bypass, Self::Hold]
            .into_iter()
            .find(|policy| policy.name() == text)
            .ok_or_else(|| "expected drop, bypass or hold".to_owned())
    }
}

fn egress() -> String {
    "egress".to_owned()
}

/// A service: a kind of NF, and how the manager starts its instances.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ServiceSpec {
    /// Its name, unique.
    pub name: String,
    /// Its service id; the manager chooses a free one when it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ServiceId>,
    /// Program and arguments of one instance; `--socket` and `--service` are added. Absent: NFs of
    /// this service are started by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// How many instances the manager keeps running.
    #[serde(default = "one")]
    pub instances: u32,
    /// Cores for the instances, in turn. Empty: the scheduler's choice. See also `own_core`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cores: Vec<u32>,
    /// Give each instance a core that no worker and no other NF has; when none is free, the
    /// instance is not started, and the reason is shown.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own_core: bool,
    /// Weight among the NFs that share a core; absent: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// User (name or number) the instances run as; only a manager that runs as root can choose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// How far the instances that the manager starts are confined.
    #[serde(default, skip_serializing_if = "Confine::is_default")]
    pub confine: Confine,
    /// Files, and folders with all in them, that the instances may write; they may write no others
    /// unless `confine` is off.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub writable: Vec<String>,
    /// Hand packets over only through the manager, which checks each descriptor and copies the packet
    /// to and from a region of the instance's own: of all others it sees nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub isolated: bool,
    /// With `isolated`: check, and do not copy. The instances then map the region of all packets.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shared_region: bool,
    /// What the instances may do with packets' bytes.
    #[serde(default, skip_serializing_if = "Access::is_default")]
    pub access: Access,
    /// What to do with an instance that makes no progress while packets wait for it.
    #[serde(default, skip_serializing_if = "OnStuck::is_default")]
    pub on_stuck: OnStuck,
    /// After how long without progress an instance is stuck, milliseconds; absent: 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stuck_after_ms: Option<u64>,
    /// Packets that each instance's flight recorder keeps; absent: as many as the manager says, 0: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recorder_pkts: Option<u32>,
    /// Record every packet, at its price, and not only as many as cost nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recorder_all: bool,
    /// An instance leaves in good order after so many packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packet_limit: Option<u64>,
    /// An instance leaves in good order after so long, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_limit_s: Option<f64>,
}

/// What to do with an NF that makes no progress while packets wait for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum OnStuck {
    /// Say so, in the log and the status.
    #[default]
    Report,
    /// Kill it, and start another in its place.
    Restart,
    /// Kill it, and start none until the service's entry changes.
    Kill,
}

impl OnStuck {
    /// The name in files and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Report => "report",
            Self::Restart => "restart",
            Self::Kill => "kill",
        }
    }

    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

fn one() -> u32 {
    1
}

/// What an NF may do with the bytes of packets. What becomes of a packet it decides in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Read and change them.
    #[default]
    ReadWrite,
    /// Read them: the packet region is given to it by a descriptor that cannot be mapped writable.
    ReadOnly,
}

impl Access {
    fn is_default(&self) -> bool {
        *self == Self::ReadWrite
    }

    /// True for [`Access::ReadOnly`].
    #[must_use]
    pub fn is_read_only(self) -> bool {
        self == Self::ReadOnly
    }
}

/// How far an NF that the manager starts is confined, beyond running as its user, without any
/// capability and with no way to gain one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Confine {
    /// As `default`; besides, no network, and of files only the system's own may be read.
    Strict,
    /// System calls that no ordinary NF makes are refused, and files can be read but not written.
    #[default]
    Default,
    /// Not at all.
    Off,
}

impl Confine {
    /// The word for it in a file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Default => "default",
            Self::Off => "off",
        }
    }

    fn is_default(&self) -> bool {
        *self == Self::Default
    }
}

/// One change to what the manager runs, as a command makes it. A list of them is carried out as a
/// whole or not at all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "edit", rename_all = "snake_case")]
pub enum Edit {
    /// Add a chain, or put this one in the place of the one with its name.
    SetChain {
        /// The chain.
        chain: ChainSpec,
        /// Refuse when there is one of that name.
        new: bool,
    },
    /// Remove a chain that no rule, branch or end names.
    RemoveChain {
        /// Its name.
        name: String,
    },
    /// Add a rule. One with the same table, priority and match is replaced.
    AddRule {
        /// The rule.
        rule: Box<RuleSpec>,
    },
    /// Remove a rule by its number.
    RemoveRule {
        /// Its number in [`RuleStatus::id`](super::status::RuleStatus::id).
        id: u64,
    },
    /// Remove a rule by its name.
    RemoveRuleNamed {
        /// Its name.
        name: String,
    },
    /// Keep so many instances of a service running.
    Scale {
        /// The service.
        service: ServiceRef,
        /// How many; 0 stops all.
        instances: u32,
    },
    /// Start the NFs of a service by another command. Those that run are replaced as soon as the new
    /// ones are attached; [`Request::Upgrade`](super::Request::Upgrade) tries them out first.
    SetCommand {
        /// The service.
        service: ServiceRef,
        /// Program and arguments.
        command: Vec<String>,
    },
}

/// What kind of thing a [`Change`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ChangeOf {
    /// A service.
    Service,
    /// A chain.
    Chain,
    /// A rule.
    Rule,
}

/// One line of a difference between what runs and what is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Change {
    /// What it is about.
    pub of: ChangeOf,
    /// Name of the service or chain; of a rule, its name or `table/priority match`.
    pub name: String,
    /// How it was, in one line; `None` for what is new.
    pub before: Option<String>,
    /// How it will be; `None` for what goes.
    pub after: Option<String>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = match self.of {
            ChangeOf::Service => "service",
            ChangeOf::Chain => "chain",
            ChangeOf::Rule => "rule",
        };
        let name = &self.name;
        match (&self.before, &self.after) {
            (None, Some(after)) => write!(f, "+ {of} {name}: {after}"),
            (Some(before), None) => write!(f, "- {of} {name}: {before}"),
            (Some(before), Some(after)) => write!(f, "~ {of} {name}: {before} → {after}"),
            (None, None) => write!(f, "  {of} {name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_a_match_can_be_set_by_name_and_is_shown() {
        let mut spec = MatchSpec::default();
        assert_eq!(spec.to_string(), "*");
        for name in MatchSpec::FIELDS {
            spec.set(name, Value::Int(7)).unwrap();
        }
        assert_eq!(spec.fields().count(), MatchSpec::FIELDS.len());
        assert!(spec.to_string().starts_with("in_port=7 eth_src=7"));
        assert_eq!(spec.set("color", Value::Int(1)), Err(Value::Int(1)));
    }

    #[test]
    fn a_rule_survives_json() {
        let text =
            r#"{"priority":10,"match":{"ip_proto":"tcp","tp_dst":80},"then":{"chain":"web"}}"#;
        let rule: RuleSpec = serde_json::from_str(text).unwrap();
        assert_eq!(rule.matches.to_string(), "ip_proto=tcp tp_dst=80");
        assert_eq!(rule.then.to_string(), "chain=web");
        let again: RuleSpec = serde_json::from_str(&serde_json::to_string(&rule).unwrap()).unwrap();
        assert_eq!(again, rule);
        assert!(serde_json::from_str::<RuleSpec>(&text.replace("tp_dst", "tp_dest")).is_err());
    }
}
