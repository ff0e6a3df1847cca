//! What both ends of a tunnel over UDP need: the outer headers, congestion marks, MTU, and the few
//! answers that a tunnel's address owes its neighbours.
//!
//! ```text
//! Ethernet │ outer IPv4 or IPv6 │ UDP │ payload, of which the tunnel's user knows
//! ```
//! Nothing here keeps a packet or knows what the payload is.
#![forbid(unsafe_code)]

pub mod ecn;
pub mod mss;
pub mod neighbours;
pub mod options;
pub mod outer;
pub mod stock;
pub mod too_big;

use nflib::headers::{Headers, Network};

/// A hash that is equal for all packets of a flow, both ways, and never 0 ("none was made"): for
/// packets that have just come out of a tunnel, whose hash until then was the tunnel's.
#[must_use]
pub fn flow_hash(headers: &Headers) -> u32 {
    let end = |address: &[u8], port: u16| {
        address.iter().chain(&port.to_be_bytes()).fold(0xcbf2_9ce4_8422_2325, fnv)
    };
    let (src_port, dst_port) = headers.ports().unwrap_or_default();
    let (src, dst) = match &headers.network {
        Network::Ipv4(ip) => (end(&ip.src.octets(), src_port), end(&ip.dst.octets(), dst_port)),
        Network::Ipv6(ip) => (end(&ip.src.octets(), src_port), end(&ip.dst.octets(), dst_port)),
        _ => (0, 0),
    };
    let both: u64 = src ^ dst;
    let folded = (both ^ (both >> 32)) as u32 ^ u32::from(headers.ip_proto().unwrap_or_default());
    folded.max(1)
}

/// A step of FNV-1a, 64 bits.
fn fnv(hash: u64, byte: &u8) -> u64 {
    (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
}
