//! Adds the framing to KCP packets, and parity packets between them.
#![forbid(unsafe_code)]

use thiserror::Error;

use super::{
    DATA, Envelope, FrameError, HEADER_BYTES, OVERHEAD_BYTES, PARITY, SIZE_BYTES, code, header,
    is_kcp, sequence_end,
};
use crate::code::{Code, M_MAX};
use crate::dialect::{ConfigError, longest};
use crate::kernel::Kernel;

/// What an encoder is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncoderConfig {
    /// Data packets of a block: kcptun's `--datashard`.
    pub k: usize,
    /// Parity packets of a block: kcptun's `--parityshard`.
    pub m: usize,
    /// What stands before the framing.
    pub envelope: Envelope,
    /// Longest KCP packet that is protected.
    pub longest_bytes: usize,
}

/// Why a packet gets no framing; it is to go on as it is, which a receiver takes, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SealError {
    /// It would not have been taken in the first place.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// It holds no KCP packet: perhaps it has the framing already.
    #[error("no KCP packet")]
    NotKcp,
}

/// Counts of an encoder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EncoderStats {
    /// Packets that got the framing.
    pub data_pkts: u64,
    /// Parity packets made.
    pub parity_pkts: u64,
    /// Packets that are no KCP packets, or too long.
    pub unprotected_pkts: u64,
}

/// The sending side of one session.
#[derive(Debug)]
pub struct Encoder {
    /// Column by column: what each data packet counts for in each parity.
    columns: Vec<u8>,
    k: usize,
    m: usize,
    envelope: Envelope,
    longest_bytes: usize,
    kernel: Kernel,
    /// Number of the next data packet.
    pub(super) sequence: u32,
    pub(super) end: u32,
    /// Data packets of the block so far.
    filled: usize,
    /// Longest symbol of the block so far.
    symbol_bytes: usize,
    /// m UDP payloads.
    parities: Vec<u8>,
    stride_bytes: usize,
    /// Parities of the last block that were taken, m when there are none to take.
    taken: usize,
    stats: EncoderStats,
}

impl Encoder {
    /// An encoder for one session, which begins with number 0.
    ///
    /// # Errors
    /// [`ConfigError`]
    pub fn new(config: EncoderConfig, kernel: Kernel) -> Result<Self, ConfigError> {
        let EncoderConfig { k, m, envelope, longest_bytes } = config;
        let code: Code = code(k, m)?;
        let longest_bytes = longest(longest_bytes)?;
        let stride_bytes = envelope.bytes() + OVERHEAD_BYTES + longest_bytes;
        Ok(Self {
            columns: (0..k * m).map(|at| code.row(at % m)[at / m]).collect(),
            k,
            m,
            envelope,
            longest_bytes,
            kernel,
            sequence: 0,
            // At most 80 packets a block.
            end: sequence_end((k + m) as u32),
            filled: 0,
            symbol_bytes: 0,
            parities: vec![0; m * stride_bytes],
            stride_bytes,
            taken: m,
            stats: EncoderStats::default(),
        })
    }

    /// Whether a packet, as it comes, is one to protect.
    ///
    /// # Errors
    /// [`SealError`]: why not; it is counted.
    pub fn check(&mut self, payload: &[u8]) -> Result<(), SealError> {
        let result = self.examine(payload);
        self.stats.unprotected_pkts += u64::from(result.is_err());
        result
    }

    fn examine(&self, payload: &[u8]) -> Result<(), SealError> {
        // A wrong checksum must not be made a right one.
        let body = self.envelope.open(payload)?;
        if body.len() > self.longest_bytes {
            return Err(FrameError::Long.into());
        }
        if is_kcp(body) { Ok(()) } else { Err(SealError::NotKcp) }
    }

    /// Frames a packet that passed [`check`](Self::check): `payload` is its envelope, then
    /// [`OVERHEAD_BYTES`] that are free, then the KCP packet. When it was a block's last there are
    /// parity packets to take, before the next packet.
    ///
    /// # Errors
    /// [`FrameError::Short`], [`FrameError::Long`]; nothing has changed.
    pub fn seal(&mut self, payload: &mut [u8]) -> Result<(), FrameError> {
        let from = self.envelope.bytes();
        let (front, symbol) =
            payload.split_at_mut_checked(from + HEADER_BYTES).ok_or(FrameError::Short)?;
        if symbol.len() < SIZE_BYTES {
            return Err(FrameError::Short);
        }
        if symbol.len() > SIZE_BYTES + self.longest_bytes {
            return Err(FrameError::Long);
        }
        front[from..].copy_from_slice(&header(self.sequence, DATA));
        // `LONGEST_BYTES_MAX` and the size itself fit into 16 bits.
        let size = symbol.len() as u16;
        symbol[..SIZE_BYTES].copy_from_slice(&size.to_le_bytes());
        self.add(symbol);
        self.envelope.seal(payload)
    }

    fn add(&mut self, symbol: &[u8]) {
        let from = self.envelope.bytes() + HEADER_BYTES;
        if self.filled == 0 {
            self.symbol_bytes = 0;
        }
        let longer = self.symbol_bytes.max(symbol.len());
        for parity in self.parities.chunks_exact_mut(self.stride_bytes) {
            // What stands there is of an earlier block.
            parity[from..][self.symbol_bytes..longer].fill(0);
        }
        let mut places = self.parities.chunks_exact_mut(self.stride_bytes);
        let mut sums: [&mut [u8]; M_MAX] = std::array::from_fn(|_| {
            let place = places.next().unwrap_or_default();
            place.get_mut(from..from + symbol.len()).unwrap_or_default()
        });
        let column = &self.columns[self.filled * self.m..][..self.m];
        self.kernel.accumulate(column, &[symbol], &mut sums[..self.m]);
        self.symbol_bytes = longer;
        self.stats.data_pkts += 1;
        self.sequence += 1;
        self.filled += 1;
        self.taken = self.m;
        if self.filled == self.k {
            self.finish_block();
        }
    }

    fn finish_block(&mut self) {
        let from = self.envelope.bytes();
        for (place, parity) in (0..).zip(self.parities.chunks_exact_mut(self.stride_bytes)) {
            parity[from..from + HEADER_BYTES]
                .copy_from_slice(&header(self.sequence + place, PARITY));
        }
        self.sequence = (self.sequence + self.m as u32) % self.end;
        (self.filled, self.taken) = (0, 0);
    }

    /// The next parity packet of the block that the last packet completed, a UDP payload. Valid, like
    /// those that are not taken, until the next packet is sealed.
    pub fn next_parity(&mut self) -> Option<&[u8]> {
        if self.taken >= self.m {
            return None;
        }
        let bytes = self.envelope.bytes() + HEADER_BYTES + self.symbol_bytes;
        let parity = &mut self.parities[self.taken * self.stride_bytes..][..bytes];
        self.taken += 1;
        self.stats.parity_pkts += 1;
        self.envelope.seal(parity).ok()?;
        Some(parity)
    }

    /// What it has counted.
    #[must_use]
    pub fn stats(&self) -> EncoderStats {
        self.stats
    }
}
