//! What both ends of a tunnel over UDP need: the outer headers, congestion marks, MTU, and the few
//! answers that a tunnel's address owes its neighbours.
//!
//! ```text
//! Ethernet │ outer IPv4 or IPv6 │ UDP │ payload, of which the tunnel's user knows
//! ```
//! Nothing here keeps a packet or knows what the payload is.
#![forbid(unsafe_code)]

pub mod ecn;
pub mod fragment;
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
    let (src_port, dst_port) = headers.ports().unwrap_or_default();
    let (src, dst) = match &headers.network {
        Network::Ipv4(ip) => (
            end_hash(u64::from(ip.src.to_bits()), 0, src_port),
            end_hash(u64::from(ip.dst.to_bits()), 0, dst_port),
        ),
        Network::Ipv6(ip) => {
            let halves = |bits: u128| ((bits >> 64) as u64, bits as u64);
            let ((a, b), (c, d)) = (halves(ip.src.to_bits()), halves(ip.dst.to_bits()));
            (end_hash(a, b, src_port), end_hash(c, d, dst_port))
        }
        _ => (0, 0),
    };
    let both = src.wrapping_add(dst);
    let folded = (both ^ both >> 32) as u32 ^ u32::from(headers.ip_proto().unwrap_or_default());
    folded.max(1)
}

/// A hash of one end of a flow.
fn end_hash(high: u64, low: u64, port: u16) -> u64 {
    let words = [high, low, port.into()];
    words.into_iter().fold(FNV_OFFSET, |hash, word| {
        let product = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        product ^ product >> 29
    })
}

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

/// A hash of some bytes: FNV-1a, 64 bits.
fn fnv<'a>(bytes: impl IntoIterator<Item = &'a u8>) -> u64 {
    bytes.into_iter().fold(FNV_OFFSET, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use nflib::testing::FrameBuilder;

    use super::*;

    fn hash(src: ([u8; 4], u16), dst: ([u8; 4], u16)) -> u32 {
        let frame = FrameBuilder::new().ip(src.0.into(), dst.0.into()).udp(src.1, dst.1).build();
        flow_hash(&Headers::parse(&frame))
    }

    #[test]
    fn both_directions_of_a_flow_have_one_hash_and_other_flows_have_others() {
        let (a, b) = (([10, 0, 0, 1], 1000), ([10, 0, 0, 2], 53));
        assert_eq!(hash(a, b), hash(b, a));
        let others: std::collections::HashSet<_> =
            (0..1000).map(|port| hash((a.0, port), b)).collect();
        assert_eq!(others.len(), 1000);
        assert_ne!(hash(a, b), hash((a.0, 53), (b.0, 1000)), "the ports belong to the addresses");
        assert_ne!(flow_hash(&Headers::parse(&[])), 0);
    }
}
