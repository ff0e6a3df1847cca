//! Options of `fec-decode`.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use clap::Args;
use nflib::control::ServiceRef;
use nflib::descriptor::PortId;

use crate::fec::EndOptions;
use crate::tunnel::options::{self, Mac};

/// Most ends that one NF takes packets from.
pub const PEERS_MAX: usize = 64;

/// Options of `fec-decode`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    #[command(flatten)]
    pub end: EndOptions,
    /// Address and UDP port of a far end's fec-encode; may be repeated. Tunnel packets of all others
    /// are dropped
    #[arg(long = "peer", value_name = "ADDRESS:PORT", value_parser = options::end, required = true)]
    pub peers: Vec<SocketAddr>,
    /// Ethernet destination of the packets that are let out
    #[arg(long, value_name = "MAC")]
    pub next_hop_mac: Mac,
    /// Ethernet source of the packets that are let out; --mac if not given
    #[arg(long, value_name = "MAC")]
    pub inner_mac: Option<Mac>,
    /// Let packets out in order, and wait for a missing one until so many others or milliseconds
    /// have passed; without it all go out as they come
    #[arg(long, value_name = "PACKETS,MS")]
    pub in_order: Option<InOrder>,
    /// Memory for copies of packets, all peers together
    #[arg(long, value_name = "MIB", default_value_t = 64)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub memory_mib: u32,
    /// Memory of a session for copies of its newest packets: of all packets of a block, and of those
    /// that come between its first and its last parity packet
    #[arg(long, value_name = "KIB", default_value_t = 1024)]
    #[arg(value_parser = clap::value_parser!(u32).range(256..=1_048_576))]
    pub window_kib: u32,
    /// How often to report to each peer's encoder what was lost, 100 to 1000
    #[arg(long, value_name = "MS", default_value_t = 200)]
    #[arg(value_parser = clap::value_parser!(u16).range(100..=1000))]
    pub report_ms: u16,
    /// Service of this end's fec-encode: gets the reports that come from the peers. One for all peers,
    /// or one for each, in their order
    #[arg(long, value_name = "SERVICE")]
    pub reports_to: Vec<ServiceRef>,
    /// Send out by this port, instead of on along the chain
    #[arg(long, value_name = "PORT")]
    pub to_port: Option<PortId>,
    /// Drop what is not for this end, instead of passing it on as it is
    #[arg(long)]
    pub drop_others: bool,
    /// Empty buffers to keep for reports, and for recovered packets beyond those that parity packets
    /// leave
    #[arg(long, value_name = "PACKETS", default_value_t = 128)]
    #[arg(value_parser = clap::value_parser!(u32).range(16..=65_536))]
    pub stock: u32,
}

/// A bound on the wait for a missing packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InOrder {
    /// Packets behind it that wait at most.
    pub pkts: u16,
    /// Time that they wait at most.
    pub ms: u16,
}

impl FromStr for InOrder {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (pkts, ms) = text.split_once(',').unwrap_or_default();
        let number = |text: &str, most: u16| text.parse().ok().filter(|n| (1..=most).contains(n));
        match (number(pkts, 1024), number(ms, 200)) {
            (Some(pkts), Some(ms)) => Ok(Self { pkts, ms }),
            _ => Err("expected PACKETS,MS: 1 to 1024 packets and 1 to 200 ms, as 128,20".into()),
        }
    }
}

impl fmt::Display for InOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.pkts, self.ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_bounded_in_packets_and_in_time() {
        let in_order: InOrder = "128,20".parse().unwrap();
        assert_eq!(in_order, InOrder { pkts: 128, ms: 20 });
        assert_eq!(in_order.to_string().parse(), Ok(in_order));
        for text in ["", "128", "0,20", "128,0", "1025,20", "128,201", "128,20,3", "a,b"] {
            assert!(text.parse::<InOrder>().unwrap_err().contains("128,20"), "{text}");
        }
    }
}
