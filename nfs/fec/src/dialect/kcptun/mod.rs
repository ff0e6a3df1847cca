//! kcptun's framing of forward error correction, which is that of kcp-go (`fec.go`, `sess.go`), as of
//! kcptun 20210922.
//!
//! ```text
//! UDP payload:  envelope │ sequence (4) │ flag (2) │ symbol
//! symbol:       size (2) │ KCP packet (size − 2)              flag 0xf1, data
//!               coded bytes, as long as the block's longest   flag 0xf2, parity
//! ```
//! Numbers are little endian. The size counts itself. Sequence numbers count data and parity alike from
//! 0 and wrap at the largest multiple of k + m that 32 bits can say, so that number mod (k + m) is a
//! packet's place in its block. There are no short blocks: one that is not full waits for more data.
//! A receiver takes packets without this framing, too.
//!
//! What the envelope is depends on `--crypt`: see [`Envelope`].
#![forbid(unsafe_code)]

mod decoder;
mod encoder;

use thiserror::Error;

pub use decoder::{Decoder, DecoderConfig, DecoderStats, Verdict};
pub use encoder::{Encoder, EncoderConfig, EncoderStats, SealError};

use crate::code::{Code, CodeError, CodeId};

/// Sequence number and flag.
pub const HEADER_BYTES: usize = 6;
/// What the framing adds to a data packet: header and size.
pub const OVERHEAD_BYTES: usize = HEADER_BYTES + SIZE_BYTES;
/// Most blocks that a decoder keeps.
pub const BLOCKS_MAX: usize = 1024;

const SIZE_BYTES: usize = 2;
const DATA: u16 = 0xf1;
const PARITY: u16 = 0xf2;
/// Length of a KCP header.
const KCP_BYTES: usize = 24;
/// KCP's commands: push, acknowledge, ask for the window, tell it.
const KCP_COMMANDS: std::ops::RangeInclusive<u8> = 81..=84;

/// What stands before the framing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Envelope {
    /// Nothing: `--crypt null` of newer kcptuns, which Debian 12 has not.
    Bare,
    /// 16 bytes that mean nothing and the CRC-32 (IEEE 802.3) of all that follows: `--crypt none`.
    Checksum,
}

impl Envelope {
    const NONCE_BYTES: usize = 16;

    /// Its length.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::Bare => 0,
            Self::Checksum => 20,
        }
    }

    /// What it holds.
    ///
    /// # Errors
    /// [`FrameError::Short`], [`FrameError::Checksum`]
    pub fn open(self, payload: &[u8]) -> Result<&[u8], FrameError> {
        let (envelope, body) = payload.split_at_checked(self.bytes()).ok_or(FrameError::Short)?;
        let stored = envelope.get(Self::NONCE_BYTES..).and_then(|bytes| bytes.first_chunk());
        match stored {
            Some(stored) if u32::from_le_bytes(*stored) != crc32fast::hash(body) => {
                Err(FrameError::Checksum)
            }
            _ => Ok(body),
        }
    }

    /// Makes it fit what follows it. The first 16 bytes stay as they are, since nobody reads them.
    ///
    /// # Errors
    /// [`FrameError::Short`]
    pub fn seal(self, payload: &mut [u8]) -> Result<(), FrameError> {
        let (envelope, body) =
            payload.split_at_mut_checked(self.bytes()).ok_or(FrameError::Short)?;
        if let Some(stored) = envelope.get_mut(Self::NONCE_BYTES..) {
            stored.copy_from_slice(&crc32fast::hash(body).to_le_bytes());
        }
        Ok(())
    }
}

/// Why a packet is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum FrameError {
    /// Shorter than its headers.
    #[error("shorter than its headers")]
    Short,
    /// The checksum of the envelope is wrong.
    #[error("the checksum of the envelope is wrong")]
    Checksum,
    /// The size of a data packet is not its length.
    #[error("the size field of a data packet is not its length")]
    Size,
    /// The symbol is longer than what is kept.
    #[error("longer than the longest packet that is kept")]
    Long,
}

/// What a packet of a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A KCP packet behind its size.
    Data,
    /// A repair symbol.
    Parity,
}

/// A packet of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its number.
    pub sequence: u32,
    /// What it is.
    pub kind: Kind,
    /// What is coded; of data, size and KCP packet.
    pub symbol: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Reads what an envelope held. `None` when it has not this framing: a plain KCP packet, most likely.
    ///
    /// # Errors
    /// [`FrameError::Short`], [`FrameError::Size`]
    pub fn parse(body: &'a [u8]) -> Result<Option<Self>, FrameError> {
        let (&[s0, s1, s2, s3, f0, f1], symbol) =
            body.split_first_chunk().ok_or(FrameError::Short)?;
        let kind = match u16::from_le_bytes([f0, f1]) {
            DATA => Kind::Data,
            PARITY => Kind::Parity,
            _ => return Ok(None),
        };
        let size = symbol.first_chunk().map(|&size| usize::from(u16::from_le_bytes(size)));
        let size = size.ok_or(FrameError::Short)?;
        if kind == Kind::Data && size != symbol.len() {
            return Err(FrameError::Size);
        }
        Ok(Some(Self { sequence: u32::from_le_bytes([s0, s1, s2, s3]), kind, symbol }))
    }
}

/// Whether this begins like a KCP packet: a conversation, and a command that there is.
#[must_use]
pub fn is_kcp(body: &[u8]) -> bool {
    body.len() >= KCP_BYTES && KCP_COMMANDS.contains(&body[4])
}

fn header(sequence: u32, flag: u16) -> [u8; HEADER_BYTES] {
    let ([s0, s1, s2, s3], [f0, f1]) = (sequence.to_le_bytes(), flag.to_le_bytes());
    [s0, s1, s2, s3, f0, f1]
}

/// kcptun's code: the same generator as ours, also with one parity packet.
fn code(k: usize, m: usize) -> Result<Code, CodeError> {
    Code::new(CodeId::ReedSolomon, k, m)
}

/// One past the largest sequence number, for blocks of `n` packets.
fn sequence_end(n: u32) -> u32 {
    u32::MAX / n * n
}

/// Any bytes through a decoder, and through an encoder's sealing: for fuzzing and property tests. The
/// first bytes choose the options; what follows is packets, each behind its length.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let Some((&[k, m, blocks], mut rest)) = data.split_first_chunk() else { return };
    let envelope = if blocks & 0x80 == 0 { Envelope::Bare } else { Envelope::Checksum };
    let (k, m) = (usize::from(k % 6) + 1, usize::from(m % 4) + 1);
    let config =
        DecoderConfig { k, m, envelope, longest_bytes: 256, blocks: usize::from(blocks % 7) + 2 };
    let encoder = EncoderConfig { k, m, envelope, longest_bytes: 256 };
    let kernel = crate::kernel::Kernel::scalar();
    let (Ok(mut decoder), Ok(mut encoder)) =
        (Decoder::new(config, kernel), Encoder::new(encoder, kernel))
    else {
        return;
    };
    while let Some((&length, more)) = rest.split_first() {
        let (packet, more) = more.split_at(more.len().min(length.into()));
        rest = more;
        let mut packet = packet.to_vec();
        let _ = encoder.seal(&mut packet.clone());
        if length & 1 == 0 {
            let _ = envelope.seal(&mut packet);
        }
        if let Verdict::Deliver { kcp } = decoder.receive(&packet) {
            assert!(kcp.end <= packet.len(), "what is let out lies in the packet");
        }
        while decoder.next_recovered().is_some() {}
        while encoder.next_parity().is_some() {}
    }
}

#[cfg(test)]
mod tests;
