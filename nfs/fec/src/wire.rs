//! The wire format, version 1: what `FORMAT.md` draws.
//!
//! Everything is big endian. Three kinds of UDP payload follow RFC 6363's split: source packets (a
//! shim before the untouched inner packet, section 5.3), repair packets (section 5.4), and reports,
//! which go the other way. What of RFC 6363's section 5.5 the two ends must know comes in the repair
//! packets themselves, so nothing but an optional key is agreed beforehand.
#![forbid(unsafe_code)]

use thiserror::Error;

use crate::code::{CodeId, K_MAX, M_MAX};
use crate::mac::{Key, MAC_BYTES};

/// The version that this library speaks.
pub const VERSION: u8 = 1;
/// Bytes before the inner packet of a source packet.
pub const SOURCE_SHIM_BYTES: usize = 8;
/// Bytes before the coded bytes of a repair packet.
pub const REPAIR_SHIM_BYTES: usize = 16;
/// Most blocks that are interleaved (the stride D).
pub const STRIDE_MAX: usize = 32;
/// Most sequence numbers from a block's first to behind its last: k · D.
pub const SPAN_MAX_PKTS: usize = 1024;
/// Shortest inner packet: an IPv4 header (RFC 791, section 3.1).
pub const INNER_MIN_BYTES: usize = 20;

const TYPE_SOURCE: u8 = 1;
const TYPE_REPAIR: u8 = 2;
pub(crate) const TYPE_REPORT: u8 = 3;
/// The one flag there is: a code of [`MAC_BYTES`] is the packet's end.
pub(crate) const FLAG_MAC: u8 = 1;

/// Why bytes are no packet of this format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum WireError {
    /// Too few bytes for its type.
    #[error("the packet is cut short")]
    Short,
    /// More bytes than its type has.
    #[error("the packet has bytes too many")]
    Long,
    /// Another version.
    #[error("the packet is of another version than {VERSION}")]
    Version,
    /// A type that does not exist, or not here.
    #[error("the packet is of no type that is expected here")]
    Type,
    /// Reserved bits are set.
    #[error("reserved bits are set")]
    Reserved,
    /// k, or the number of sources of a short block, is impossible.
    #[error("k or the number of sources is impossible; expected 1 to {K_MAX}")]
    K,
    /// The row is not below m, or m does not fit the code.
    #[error("row or m is impossible; expected row < m ≤ {M_MAX}, and m = 1 for XOR")]
    M,
    /// The stride is impossible.
    #[error(
        "the stride is impossible; expected 1 to {STRIDE_MAX}, and k times it ≤ {SPAN_MAX_PKTS}"
    )]
    Stride,
    /// A code that does not exist.
    #[error("the code is unknown")]
    Code,
    /// A key is configured and the packet has no MAC.
    #[error("the packet has no MAC, and a key is set")]
    MacMissing,
    /// The packet has a MAC and no key is configured.
    #[error("the packet has a MAC, and no key is set")]
    MacUnexpected,
    /// The MAC is wrong.
    #[error("the MAC is wrong")]
    MacWrong,
    /// Another session than the one expected.
    #[error("the packet is of another session")]
    Session,
    /// Another epoch than the one expected.
    #[error("the packet is of another epoch")]
    Epoch,
    /// A report of packets that were never sent.
    #[error("the report tells of packets that were never sent")]
    Impossible,
    /// A report that is not newer than the last.
    #[error("the report is not newer than the last")]
    Replayed,
}

/// What every packet begins with, besides version and type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// One run of an encoder: another after it was restarted.
    pub epoch: u8,
    /// Which of the encoder's sessions; each counts its packets by itself.
    pub session: u16,
}

/// A packet, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    /// An inner packet with its number.
    Source {
        /// Whose.
        stream: Stream,
        /// Sequence number.
        sequence: u32,
        /// The inner packet.
        inner: &'a [u8],
    },
    /// A repair symbol.
    Repair {
        /// Whose.
        stream: Stream,
        /// What it is a sum of.
        repair: Repair,
        /// The sum: as many bytes as the block's longest packet has.
        coded: &'a [u8],
    },
    /// A report; [`crate::report::Report::parse`] reads it.
    Report,
}

/// The repair shim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repair {
    /// Sequence number of the block's first packet.
    pub first: u32,
    /// The code's k, on which its coefficients depend.
    pub k: u8,
    /// Packets in the block: k, or fewer in a short one. The others count as all zeroes.
    pub sources: u8,
    /// Distance of the block's packets in sequence numbers.
    pub stride: u8,
    /// Which of the block's repair symbols.
    pub row: u8,
    /// How many the block has.
    pub m: u8,
    /// The sum of the packets' lengths, coded like their bytes.
    pub length: [u8; 2],
    /// Which code.
    pub code: CodeId,
}

impl Repair {
    /// Writes the shim, as it is without and with a MAC behind the coded bytes.
    #[must_use]
    pub fn shim(&self, stream: Stream, has_mac: bool) -> [u8; REPAIR_SHIM_BYTES] {
        let mut shim = [0; REPAIR_SHIM_BYTES];
        shim[..4].copy_from_slice(&start(TYPE_REPAIR, stream));
        shim[4..8].copy_from_slice(&self.first.to_be_bytes());
        let code = match self.code {
            CodeId::Xor => 0,
            CodeId::ReedSolomon => 1,
        };
        let rows = self.row << 4 | (self.m - 1) & 0x0f;
        shim[8..12].copy_from_slice(&[self.k, self.sources, self.stride, rows]);
        shim[12..14].copy_from_slice(&self.length);
        shim[14..].copy_from_slice(&[code, if has_mac { FLAG_MAC } else { 0 }]);
        shim
    }

    /// Whether both are symbols of the same block.
    #[must_use]
    pub fn same_block(&self, other: &Self) -> bool {
        Self { row: 0, length: [0; 2], ..*self } == Self { row: 0, length: [0; 2], ..*other }
    }

    fn parse(shim: &[u8; REPAIR_SHIM_BYTES]) -> Result<Self, WireError> {
        let [_, _, _, _, f0, f1, f2, f3, k, sources, stride, rows, l0, l1, code, flags] = *shim;
        let (row, m) = (rows >> 4, (rows & 0x0f) + 1);
        let code = match code {
            0 => CodeId::Xor,
            1 => CodeId::ReedSolomon,
            _ => return Err(WireError::Code),
        };
        if flags & !FLAG_MAC != 0 {
            return Err(WireError::Reserved);
        }
        if k == 0 || usize::from(k) > K_MAX || sources == 0 || sources > k {
            return Err(WireError::K);
        }
        if row >= m || (code == CodeId::Xor && m != 1) {
            return Err(WireError::M);
        }
        let span = usize::from(k) * usize::from(stride);
        if stride == 0 || usize::from(stride) > STRIDE_MAX || span > SPAN_MAX_PKTS {
            return Err(WireError::Stride);
        }
        let first = u32::from_be_bytes([f0, f1, f2, f3]);
        Ok(Self { first, k, sources, stride, row, m, length: [l0, l1], code })
    }
}

/// The shim that goes before an inner packet.
#[must_use]
pub fn source_shim(stream: Stream, sequence: u32) -> [u8; SOURCE_SHIM_BYTES] {
    let ([a, b, c, d], [e, f, g, h]) = (start(TYPE_SOURCE, stream), sequence.to_be_bytes());
    [a, b, c, d, e, f, g, h]
}

pub(crate) fn start(kind: u8, stream: Stream) -> [u8; 4] {
    let [high, low] = stream.session.to_be_bytes();
    [VERSION << 4 | kind, stream.epoch, high, low]
}

/// Takes a UDP payload apart. Every value that comes out of it is in its range, and the MAC of a
/// repair packet was checked.
///
/// # Errors
/// [`WireError`], the first reason found.
pub fn parse<'a>(payload: &'a [u8], key: Option<&Key>) -> Result<Packet<'a>, WireError> {
    let (&[kind, epoch, s0, s1], rest) = payload.split_first_chunk().ok_or(WireError::Short)?;
    if kind >> 4 != VERSION {
        return Err(WireError::Version);
    }
    let stream = Stream { epoch, session: u16::from_be_bytes([s0, s1]) };
    match kind & 0x0f {
        TYPE_SOURCE => {
            let (sequence, inner) = rest.split_first_chunk().ok_or(WireError::Short)?;
            if inner.len() < INNER_MIN_BYTES {
                return Err(WireError::Short);
            }
            Ok(Packet::Source { stream, sequence: u32::from_be_bytes(*sequence), inner })
        }
        TYPE_REPAIR => {
            let (shim, _) = payload.split_first_chunk().ok_or(WireError::Short)?;
            let repair = Repair::parse(shim)?;
            let covered = without_mac(payload, shim[15], key)?;
            let coded = &covered[REPAIR_SHIM_BYTES..];
            if coded.len() < INNER_MIN_BYTES {
                return Err(WireError::Short);
            }
            Ok(Packet::Repair { stream, repair, coded })
        }
        TYPE_REPORT => Ok(Packet::Report),
        _ => Err(WireError::Type),
    }
}

/// The payload without its MAC, which was checked where there is a key.
pub(crate) fn without_mac<'a>(
    payload: &'a [u8],
    flags: u8,
    key: Option<&Key>,
) -> Result<&'a [u8], WireError> {
    match (key, flags & FLAG_MAC != 0) {
        (None, false) => Ok(payload),
        (None, true) => Err(WireError::MacUnexpected),
        (Some(_), false) => Err(WireError::MacMissing),
        (Some(key), true) => {
            let (covered, mac) = payload.split_last_chunk::<MAC_BYTES>().ok_or(WireError::Short)?;
            if covered.len() < REPAIR_SHIM_BYTES {
                return Err(WireError::Short);
            }
            if key.verify(covered, *mac) { Ok(covered) } else { Err(WireError::MacWrong) }
        }
    }
}

#[cfg(test)]
mod tests;
