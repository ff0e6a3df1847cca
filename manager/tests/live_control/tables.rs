//! Parts of configuration files.

use std::fmt::Write as _;

/// Packets a second that each test offers.
pub const RATE_PPS: u64 = 10_000;
/// Flows they are of: flow `f` comes from 198.18.0.`f`, transport port 1024.
pub const FLOWS: u32 = 64;
/// The first eighth of the flows.
pub const FEW_FLOWS: &str = "198.18.0.0/29";

/// Keys of `[manager]` for tests under traffic: none before the chains are complete, and rings that
/// last for as long as a process may have to wait for a core.
pub const WAITING: &str = "wait_for_nfs = true\nring_capacity = 4096";

/// A generator `in`, endless, that leaves by the verifying sink `out`.
pub fn traffic() -> String {
    generator("in", "out", 0) + &sink("out")
}

/// A generator that makes `count_pkts` packets; 0: endlessly many.
pub fn generator(name: &str, egress: &str, count_pkts: u64) -> String {
    format!(
        "[[port]]\nname = \"{name}\"\nbackend = \"generator\"\nflows = {FLOWS}\n\
         rate_pps = {RATE_PPS}\ncount_pkts = {count_pkts}\negress = \"{egress}\"\n"
    )
}

/// A sink that looks at every packet.
pub fn sink(name: &str) -> String {
    format!("[[port]]\nname = \"{name}\"\nbackend = \"sink\"\nverify = true\n")
}

/// A service whose instances the manager starts.
pub fn service(name: &str, instances: u32) -> String {
    service_with(name, instances, "")
}

/// The same, with further keys.
pub fn service_with(name: &str, instances: u32, keys: &str) -> String {
    format!(
        "[[service]]\nname = \"{name}\"\ninstances = {instances}\n\
         command = [\"millrace-nf\", \"forward\", \"--log\", \"error\"]\n{keys}\n"
    )
}

/// A service whose NFs are started by hand.
pub fn by_hand(name: &str) -> String {
    format!("[[service]]\nname = \"{name}\"\n")
}

/// Services of one instance each.
pub fn services(names: &[&str]) -> String {
    names.iter().map(|name| service(name, 1)).collect()
}

/// A chain that ends at the egress port.
pub fn chain(name: &str, services: &[&str]) -> String {
    format!("[[chain]]\nname = \"{name}\"\nservices = {services:?}\n")
}

/// A chain with another end.
pub fn chain_to(name: &str, services: &[&str], end: &str) -> String {
    chain(name, services) + &format!("end = \"{end}\"\n")
}

/// A rule with a name; `matches` and `then` as they stand in the file.
pub fn rule(name: &str, priority: u16, matches: &str, then: &str) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "[[rule]]\nname = \"{name}\"\npriority = {priority}");
    let _ = writeln!(text, "match = {{ {matches} }}\nthen = {{ {then} }}");
    text
}

/// The few flows go through this chain.
pub fn few_to(chain: &str) -> String {
    let matches = format!("eth_type = \"ipv4\", ip_src = \"{FEW_FLOWS}\"");
    rule("few", 10, &matches, &format!("chain = \"{chain}\""))
}
