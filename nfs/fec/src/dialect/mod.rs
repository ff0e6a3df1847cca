//! Forward error correction as others speak it: the same codes in the framing of programs that are in
//! use, so that one end of a link may be theirs.
//!
//! - [`kcptun`]: Reed–Solomon over the datagrams of KCP sessions, by kcptun and all that uses kcp-go.
//! - [`smpte`]: XOR over rows and columns of RTP packets, SMPTE ST 2022-1 (Pro-MPEG Code of Practice
//!   3), by ffmpeg, GStreamer and broadcast equipment.
//!
//! Each has an encoder, which leaves originals alone but for a header and makes repair packets, and a
//! decoder, which lets originals out at once and brings back what repair packets can. Both keep a bounded
//! number of packets in memory that they take once, when they are made.
#![forbid(unsafe_code)]

pub mod kcptun;
pub mod smpte;

use thiserror::Error;

/// Longest packet that an encoder or decoder can be told of: the longest UDP payload over IPv4.
pub const LONGEST_BYTES_MAX: usize = 65_507;
/// Originals that come too late one after the other, after which they are taken for those of a sender
/// that has started anew.
const LATE_MAX_PKTS: u32 = 32;

/// Options that no encoder or decoder can be made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// No such code.
    #[error(transparent)]
    Code(#[from] crate::code::CodeError),
    /// The longest packet is out of range.
    #[error("packets of up to {0} bytes; expected 64 to {LONGEST_BYTES_MAX}")]
    Longest(usize),
    /// The number of blocks to keep is out of range.
    #[error("{0} blocks kept; expected 2 to {max}", max = kcptun::BLOCKS_MAX)]
    Blocks(usize),
}

/// The longest packet, checked.
fn longest(bytes: usize) -> Result<usize, ConfigError> {
    if (64..=LONGEST_BYTES_MAX).contains(&bytes) {
        Ok(bytes)
    } else {
        Err(ConfigError::Longest(bytes))
    }
}

/// Packets in fixture files: one a line in hexadecimal, perhaps behind a port; `#` begins a comment.
#[cfg(test)]
fn fixture(text: &str) -> Vec<(u16, Vec<u8>)> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (port, hex) = line.split_once(' ').unwrap_or(("0", line));
            let digits: Vec<u8> =
                hex.chars().map(|digit| digit.to_digit(16).unwrap() as u8).collect();
            (port.parse().unwrap(), digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
        })
        .collect()
}
