//! Matches as people write them, and the answers they get.
#![forbid(unsafe_code)]

use nflib::control::MatchSpec;

use super::key::{FlowKey, field};
use super::{Match, MatchError};

fn compile(json: &str) -> Result<Match, MatchError> {
    let spec: MatchSpec = serde_json::from_str(json).unwrap();
    Match::compile(&spec, &|name| ["lan", "wan"].iter().position(|p| *p == name).map(|n| n as u8))
}

fn error(json: &str) -> String {
    let error = compile(json).expect_err(json).to_string();
    assert!(!error.contains('\n'));
    error
}

#[test]
fn what_a_field_presupposes_is_filled_in() {
    for (short, long) in [
        (r#"{"ip_src":"10.0.0.0/8"}"#, r#"{"eth_type":"ipv4","ip_src":"10.0.0.0/255.0.0.0"}"#),
        (r#"{"ip_dst":"10.9.8.7/8"}"#, r#"{"eth_type":2048,"ip_dst":"10.0.0.0/8"}"#),
        (
            r#"{"ip_src":"2001:db8::/32"}"#,
            r#"{"eth_type":"0x86dd","ip_src":"2001:db8::/ffff:ffff::"}"#,
        ),
        (r#"{"tcp_flags":"syn,!ack"}"#, r#"{"ip_proto":6,"tcp_flags":"0x02/0x12"}"#),
        (r#"{"vlan_pcp":3}"#, r#"{"vlan":"any","vlan_pcp":"3/7"}"#),
        (r#"{"inner_vlan":3}"#, r#"{"vlan":"any","inner_vlan":"0x3"}"#),
        (r#"{"arp_op":1}"#, r#"{"eth_type":"arp","arp_op":1}"#),
        (
            r#"{"ip_proto":"icmp","icmp_type":8}"#,
            r#"{"eth_type":"ipv4","ip_proto":1,"icmp_type":8}"#,
        ),
        (
            r#"{"eth_type":"ipv4","ip_proto":"tcp","tp_dst":80}"#,
            r#"{"tp_dst":"80","ip_proto":"6","ip_src":"0.0.0.0/0"}"#,
        ),
    ] {
        assert_eq!(compile(short).unwrap(), compile(long).unwrap(), "{short} {long}");
    }
    assert_eq!(compile("{}").unwrap(), Match::ANY);
}

#[test]
fn ip_proto_alone_takes_both_versions_of_ip() {
    let both = compile(r#"{"ip_proto":"tcp","tp_dst":80}"#).unwrap();
    for version in ["ipv4", "ipv6"] {
        let one = compile(&format!(r#"{{"eth_type":"{version}","ip_proto":"tcp","tp_dst":80}}"#));
        assert!(both.overlaps(&one.unwrap()));
    }
    assert!(
        !both.overlaps(&compile(r#"{"eth_type":"arp"}"#).unwrap()) || {
            // Some key has type ARP and the bit of IP, but no frame does.
            let mut key = FlowKey::default();
            key.set(field::ETH_TYPE, 0x0806);
            !both.matches(&key)
        }
    );
}

#[test]
fn each_wrong_value_is_told_with_what_was_expected() {
    for (json, expected) in [
        (
            r#"{"in_port":"dmz"}"#,
            "in_port = dmz: no port has this name; name one of the configuration's ports",
        ),
        (
            r#"{"eth_src":"02:00:00:00:00"}"#,
            "eth_src = 02:00:00:00:00: expected an Ethernet address such as 02:00:00:00:00:01, /mask behind it",
        ),
        (
            r#"{"eth_type":"ipx"}"#,
            "eth_type = ipx: expected ipv4, ipv6, arp, or a number from 0 to 65535, /mask behind it",
        ),
        (
            r#"{"vlan":4096}"#,
            "vlan = 4096: expected none, any, or a number from 0 to 4095, /mask behind it",
        ),
        (r#"{"vlan_pcp":8}"#, "vlan_pcp = 8: expected a number from 0 to 7, /mask behind it"),
        (
            r#"{"ip_src":"10.0.0.0/33"}"#,
            "ip_src = 10.0.0.0/33: expected an IPv4 or IPv6 address, prefix (10.0.0.0/8) or address/mask",
        ),
        (
            r#"{"ip_src":"10.0.0.0/ffff::"}"#,
            "ip_src = 10.0.0.0/ffff::: expected address and mask of one IP version",
        ),
        (
            r#"{"ip_dst":10}"#,
            "ip_dst = 10: expected an IPv4 or IPv6 address, prefix (10.0.0.0/8) or address/mask",
        ),
        (r#"{"arp_spa":"::1"}"#, "arp_spa = ::1: expected an IPv4 address, prefix or address/mask"),
        (
            r#"{"ip_proto":"tpc"}"#,
            "ip_proto = tpc: expected tcp, udp, sctp, icmp, icmpv6, or a number from 0 to 255, /mask behind it",
        ),
        (
            r#"{"ip_proto":256}"#,
            "ip_proto = 256: expected tcp, udp, sctp, icmp, icmpv6, or a number from 0 to 255, /mask behind it",
        ),
        (r#"{"ip_frag":"yes"}"#, "ip_frag = yes: expected no, first, later or any"),
        (
            r#"{"ip_proto":"udp","tp_dst":"80/0x10000"}"#,
            "tp_dst = 80/0x10000: expected a number from 0 to 65535, /mask behind it",
        ),
        (
            r#"{"ip_proto":"udp","tp_dst":"+80"}"#,
            "tp_dst = +80: expected a number from 0 to 65535, /mask behind it",
        ),
        (
            r#"{"tcp_flags":"syn,!syn"}"#,
            "tcp_flags = syn,!syn: expected flags of fin, syn, rst, psh, ack, urg, ece, cwr, ! before those not set, or a number from 0 to 255",
        ),
        (
            r#"{"ip_proto":"icmp","icmp_code":256}"#,
            "icmp_code = 256: expected a number from 0 to 255, /mask behind it",
        ),
        (
            r#"{"metadata":"a\nb"}"#,
            "metadata = a\\nb: expected a number from 0 to 18446744073709551615, /mask behind it",
        ),
        (r#"{"tp_dst":80}"#, "tp_dst means nothing by itself: add ip_proto = tcp, udp or sctp"),
        (
            r#"{"ip_proto":"6/7","tp_dst":80}"#,
            "tp_dst means nothing by itself: add ip_proto = tcp, udp or sctp",
        ),
        (r#"{"icmp_type":8}"#, "icmp_type means nothing by itself: add ip_proto = icmp or icmpv6"),
    ] {
        assert_eq!(error(json), expected);
    }
    let long = format!(r#"{{"ip_src":"{}"}}"#, "9".repeat(5000));
    assert!(error(&long).len() < 250);
}

#[test]
fn what_no_packet_can_have_is_refused() {
    for (json, expected) in [
        (r#"{"eth_type":"ipv6","ip_src":"10.0.0.1"}"#, "ip_src contradicts eth_type = ipv6"),
        (r#"{"ip_src":"10.0.0.1","ip_dst":"::1"}"#, "ip_dst contradicts ip_src = 10.0.0.1"),
        (r#"{"eth_type":"arp","ip_proto":6}"#, "ip_proto contradicts eth_type = arp"),
        (r#"{"arp_op":1,"ip_dscp":6}"#, "ip_dscp contradicts arp_op = 1"),
        (r#"{"ip_proto":"udp","tcp_flags":"syn"}"#, "tcp_flags contradicts ip_proto = udp"),
        (r#"{"ip_proto":"icmp","tp_src":1}"#, "tp_src contradicts ip_proto = icmp"),
        (r#"{"ip_proto":"udp","icmp_type":1}"#, "icmp_type contradicts ip_proto = udp"),
        (
            r#"{"ip_src":"::1","ip_proto":"icmp","icmp_type":1}"#,
            "icmp_type contradicts ip_src = ::1",
        ),
        (r#"{"vlan":"none","vlan_pcp":1}"#, "vlan_pcp contradicts vlan = none"),
        (r#"{"vlan":"none","inner_vlan":1}"#, "inner_vlan contradicts vlan = none"),
        (
            r#"{"ip_frag":"later","ip_proto":"tcp","tp_dst":1}"#,
            "tp_dst contradicts ip_frag = later",
        ),
    ] {
        assert_eq!(error(json), format!("{expected}: no packet can have both"));
    }
    // These can be together.
    for json in [
        r#"{"vlan":"any","inner_vlan":"none"}"#,
        r#"{"ip_frag":"first","ip_proto":"tcp","tp_dst":1}"#,
        r#"{"ip_frag":"any","ip_proto":"tcp"}"#,
        r#"{"eth_type":"0x0800/0xff00","ip_src":"10.0.0.0/8"}"#,
        r#"{"in_port":"wan","tunnel_id":"0x10/0xf0","metadata":7}"#,
    ] {
        compile(json).unwrap();
    }
}
