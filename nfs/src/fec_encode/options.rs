//! Options of `fec-encode`.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use nflib::descriptor::PortId;

use super::adaptive::Adaptive;
use crate::fec::EndOptions;
use crate::tunnel::options::{self, Mac};

/// Options of `fec-encode`.
#[derive(Args, Clone, Debug)]
pub struct Options {
    #[command(flatten)]
    pub end: EndOptions,
    /// Address and UDP port of the far end's fec-decode
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = options::end)]
    pub peer: SocketAddr,
    /// Ethernet address that leads to the peer: its own, or the next router's
    #[arg(long, value_name = "MAC")]
    pub next_hop_mac: Mac,
    /// Data packets of a block, 1 to 64
    #[arg(short, value_name = "PACKETS", default_value_t = 10)]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=64))]
    pub k: u8,
    /// Parity packets of a block, 1 to 16; 1 of them is a plain sum (XOR)
    #[arg(short, value_name = "PACKETS", default_value_t = 2, conflicts_with = "adaptive")]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=16))]
    pub m: u8,
    /// As many parity packets as the loss that the far end reports asks for, as
    /// target=1e-4,cap=0.5,floor=1e-4: the share that may stay lost, the most parity for a data packet,
    /// and the loss below which there is none
    #[arg(long, value_name = "AIM")]
    pub adaptive: Option<Adaptive>,
    /// Distance of a block's packets, so that a burst of losses hits many blocks: 1 to 32, or auto, or
    /// auto:MOST, to follow the bursts that the far end reports
    #[arg(long, value_name = "PACKETS", default_value_t = Stride::Fixed(1))]
    pub stride: Stride,
    /// Longest wait for a block to fill before it is closed as it is, 1 to 100
    #[arg(long, value_name = "MS", default_value_t = 8)]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=100))]
    pub flush_ms: u8,
    /// Which packets share blocks
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = SessionBy::None)]
    pub session_by: SessionBy,
    /// Send out by this port, instead of on along the chain
    #[arg(long, value_name = "PORT")]
    pub to_port: Option<PortId>,
    /// Drop what is not an untagged IP packet, instead of passing it on as it is
    #[arg(long)]
    pub drop_non_ip: bool,
    /// Empty buffers to keep for parity packets
    #[arg(long, value_name = "PACKETS", default_value_t = 1024)]
    #[arg(value_parser = clap::value_parser!(u32).range(16..=65_536))]
    pub stock: u32,
}

/// Which packets share blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SessionBy {
    /// All
    None,
    /// Those of one differentiated services code point
    Dscp,
}

/// How far apart a block's packets are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stride {
    /// Always so far.
    Fixed(u8),
    /// As far as the reported bursts ask for, at most so far.
    Auto(u8),
}

const STRIDE_MAX: u8 = 32;

impl FromStr for Stride {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let pkts = |text: &str| {
            let pkts = text.parse().ok().filter(|pkts| (1..=STRIDE_MAX).contains(pkts));
            pkts.ok_or(format!("expected 1 to {STRIDE_MAX}, auto, or auto:MOST"))
        };
        match text.split_once(':') {
            None if text == "auto" => Ok(Self::Auto(STRIDE_MAX)),
            Some(("auto", most)) => pkts(most).map(Self::Auto),
            _ => pkts(text).map(Self::Fixed),
        }
    }
}

impl fmt::Display for Stride {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(pkts) => write!(f, "{pkts}"),
            Self::Auto(most) => write!(f, "auto:{most}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stride_is_a_number_or_follows_the_reports() {
        for (text, expected) in [
            ("1", Stride::Fixed(1)),
            ("32", Stride::Fixed(32)),
            ("auto", Stride::Auto(32)),
            ("auto:8", Stride::Auto(8)),
        ] {
            let stride: Stride = text.parse().unwrap();
            assert_eq!(stride, expected);
            assert_eq!(stride.to_string().parse(), Ok(stride));
        }
        for text in ["0", "33", "", "auto:0", "auto:33", "auto:", "far"] {
            assert!(text.parse::<Stride>().unwrap_err().contains("1 to 32"), "{text}");
        }
    }
}
