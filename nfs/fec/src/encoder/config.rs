//! What an encoder is told.
#![forbid(unsafe_code)]

use thiserror::Error;

use crate::adapt::{Adaptive, Redundancy, Stride};
use crate::code::{K_MAX, M_MAX};
use crate::mac::{Key, MAC_BYTES};
use crate::wire::{INNER_MIN_BYTES, REPAIR_SHIM_BYTES, SPAN_MAX_PKTS, STRIDE_MAX};

/// Shortest flush timer, ns.
pub const FLUSH_MIN_NS: u64 = 1_000_000;
/// Longest flush timer, ns.
pub const FLUSH_MAX_NS: u64 = 100_000_000;
/// Longest inner packet that fits a repair packet in a UDP datagram (RFC 768: a 16-bit length).
const INNER_MOST_BYTES: usize = 65_535 - 8 - REPAIR_SHIM_BYTES - MAC_BYTES;

/// A setting that cannot be.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum ConfigError {
    /// k is out of range.
    #[error("k = {0} source packets a block; expected 1 to {K_MAX}")]
    K(u8),
    /// m is out of range.
    #[error("m = {0} repair packets a block; expected 1 to {M_MAX}")]
    M(u8),
    /// The stride is out of range.
    #[error(
        "stride {stride} with k = {k}; expected 1 to {STRIDE_MAX}, and k times it at most {SPAN_MAX_PKTS}"
    )]
    Stride {
        /// k.
        k: u8,
        /// D.
        stride: u8,
    },
    /// The flush timer is out of range.
    #[error("flush timer of {} µs; expected {} to {} ms", .0 / 1_000, FLUSH_MIN_NS / 1_000_000, FLUSH_MAX_NS / 1_000_000)]
    Flush(u64),
    /// The longest inner packet is out of range.
    #[error("inner packets of up to {0} bytes; expected {INNER_MIN_BYTES} to {INNER_MOST_BYTES}")]
    InnerMax(usize),
    /// A share is none.
    #[error("{name} = {value}; expected a share between 0 and 1")]
    Share {
        /// Which.
        name: &'static str,
        /// What it is.
        value: f64,
    },
    /// The cap on overhead allows no parity at all.
    #[error(
        "an overhead of at most {overhead_max} allows no repair packet for k = {k}; expected 1/k or more"
    )]
    Overhead {
        /// The cap.
        overhead_max: f64,
        /// k.
        k: u8,
    },
}

/// How many repair packets a block gets that the flush timer closed before it was full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ShortBlocks {
    /// The fewest that leave it no worse off than a full block at 1 % loss. One packet alone may so
    /// get two; traffic that is that slow costs little and needs it most.
    #[default]
    SameStrength,
    /// In proportion to its packets, rounded up: overhead stays near m / k.
    Proportional,
}

/// An encoder's settings: of one session.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderConfig {
    /// The session's number.
    pub session: u16,
    /// Number of its first packet.
    pub first_sequence: u32,
    /// Source packets of a full block, 1 to 64.
    pub k: u8,
    /// Repair packets of a block.
    pub redundancy: Redundancy,
    /// Distance of a block's packets.
    pub stride: Stride,
    /// Time from a block's first packet to its closing, full or not, ns: 1 to 100 ms.
    pub flush_ns: u64,
    /// What a short block gets.
    pub short_blocks: ShortBlocks,
    /// Longest inner packet, bytes.
    pub inner_max_bytes: usize,
    /// Key of the MACs on repair packets and reports; none without.
    pub key: Option<Key>,
}

impl Default for EncoderConfig {
    /// Session 0, blocks of 10 + 2, no interleaving, 8 ms, inner packets of up to 1,500 bytes.
    fn default() -> Self {
        Self {
            session: 0,
            first_sequence: 0,
            k: 10,
            redundancy: Redundancy::Fixed { m: 2 },
            stride: Stride::Fixed(1),
            flush_ns: 8_000_000,
            short_blocks: ShortBlocks::default(),
            inner_max_bytes: 1500,
            key: None,
        }
    }
}

impl EncoderConfig {
    /// Checks every setting.
    ///
    /// # Errors
    /// [`ConfigError`], the first that is wrong.
    pub fn check(&self) -> Result<(), ConfigError> {
        let Self { k, .. } = *self;
        if k == 0 || usize::from(k) > K_MAX {
            return Err(ConfigError::K(k));
        }
        match self.redundancy {
            Redundancy::Fixed { m } if m == 0 || usize::from(m) > M_MAX => {
                return Err(ConfigError::M(m));
            }
            Redundancy::Fixed { .. } => {}
            Redundancy::Adaptive(aim) => check_aim(k, &aim)?,
        }
        let stride = self.stride.max();
        if stride == 0
            || usize::from(stride) > STRIDE_MAX
            || usize::from(k) * usize::from(stride) > SPAN_MAX_PKTS
        {
            return Err(ConfigError::Stride { k, stride });
        }
        if !(FLUSH_MIN_NS..=FLUSH_MAX_NS).contains(&self.flush_ns) {
            return Err(ConfigError::Flush(self.flush_ns));
        }
        if !(INNER_MIN_BYTES..=INNER_MOST_BYTES).contains(&self.inner_max_bytes) {
            return Err(ConfigError::InnerMax(self.inner_max_bytes));
        }
        Ok(())
    }

    /// Most repair packets that a block may ever get.
    pub(super) fn m_max(&self) -> usize {
        match self.redundancy {
            Redundancy::Fixed { m } => m.into(),
            Redundancy::Adaptive(aim) => aim.m_max(self.k).into(),
        }
    }
}

fn check_aim(k: u8, aim: &Adaptive) -> Result<(), ConfigError> {
    for (name, value) in [("target", aim.target), ("floor", aim.floor)] {
        if !(0.0..=1.0).contains(&value) {
            return Err(ConfigError::Share { name, value });
        }
    }
    if !aim.overhead_max.is_finite() || aim.m_max(k) == 0 {
        return Err(ConfigError::Overhead { overhead_max: aim.overhead_max, k });
    }
    Ok(())
}
