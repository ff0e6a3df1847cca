//! Takes the framing off, and brings lost packets back.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::ops::Range;

use super::{
    BLOCKS_MAX, Envelope, Frame, FrameError, Kind, OVERHEAD_BYTES, SIZE_BYTES, code, is_kcp,
    sequence_end,
};
use crate::code::{Code, K_MAX, M_MAX};
use crate::dialect::{ConfigError, LATE_MAX_PKTS, longest};
use crate::kernel::Kernel;
use crate::solve::Recovery;

/// What a decoder is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecoderConfig {
    /// Data packets of a block: the sender's `--datashard`.
    pub k: usize,
    /// Parity packets of a block: the sender's `--parityshard`.
    pub m: usize,
    /// What stands before the framing.
    pub envelope: Envelope,
    /// Longest KCP packet of which a copy is kept.
    pub longest_bytes: usize,
    /// Blocks that are kept while they are not complete: how far packets may be out of order.
    pub blocks: usize,
}

/// What is to be done with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A data packet: let its KCP packet out, which lies there in the payload, behind the envelope.
    Deliver {
        /// Of the payload.
        kcp: Range<usize>,
    },
    /// A packet without the framing: let it out as it is.
    Plain,
    /// A parity packet: it has done its work.
    Parity,
    /// It, or what was brought back in its place, was let out before.
    Duplicate,
    /// Let nothing of it out.
    Reject(FrameError),
}

/// Counts of a decoder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DecoderStats {
    /// Data packets that came and were let out.
    pub data_pkts: u64,
    /// Parity packets that came.
    pub parity_pkts: u64,
    /// Packets without the framing.
    pub plain_pkts: u64,
    /// Lost data packets brought back.
    pub recovered_pkts: u64,
    /// Lost data packets of blocks that were given up.
    pub unrecovered_pkts: u64,
    /// Data packets that came twice, or after they were brought back.
    pub duplicate_pkts: u64,
    /// Packets of blocks that are no longer kept; data is let out.
    pub late_pkts: u64,
    /// Packets whose kind does not fit their number, k and m being what they are here; data is let out.
    pub out_of_step_pkts: u64,
    /// Packets brought back that were no KCP packets, and were not let out: a forged parity, or a
    /// sender with another k or m.
    pub implausible_pkts: u64,
    /// Packets that were not taken.
    pub rejected_pkts: u64,
}

/// A block of which packets are kept.
#[derive(Clone, Copy, Debug)]
struct Block {
    number: u32,
    /// Which of its packets are here: bit 0 is the first data packet, bit k the first parity.
    here: u128,
    /// Nothing more can come of it: it is complete, or no solution was plausible.
    closed: bool,
}

/// The receiving side of one session.
#[derive(Debug)]
pub struct Decoder {
    code: Code,
    k: usize,
    n: usize,
    envelope: Envelope,
    symbol_max_bytes: usize,
    kernel: Kernel,
    blocks: Vec<Option<Block>>,
    /// Symbols of the kept blocks, and their lengths.
    symbols: Vec<u8>,
    lengths: Vec<u16>,
    /// Newest block.
    newest: Option<u32>,
    /// Late packets without a timely one between.
    late_in_a_row: u32,
    /// UDP payloads brought back, as many as a block can lack, and those of them to be taken.
    recovered: Vec<u8>,
    ready: VecDeque<(usize, usize)>,
    stats: DecoderStats,
}

impl Decoder {
    /// A decoder for one session.
    ///
    /// # Errors
    /// [`ConfigError`]
    pub fn new(config: DecoderConfig, kernel: Kernel) -> Result<Self, ConfigError> {
        let DecoderConfig { k, m, envelope, longest_bytes, blocks } = config;
        let code = code(k, m)?;
        let symbol_max_bytes = longest(longest_bytes)? + SIZE_BYTES;
        if !(2..=BLOCKS_MAX).contains(&blocks) {
            return Err(ConfigError::Blocks(blocks));
        }
        let packets = blocks * (k + m);
        Ok(Self {
            code,
            k,
            n: k + m,
            envelope,
            symbol_max_bytes,
            kernel,
            blocks: vec![None; blocks],
            symbols: vec![0; packets * symbol_max_bytes],
            lengths: vec![0; packets],
            newest: None,
            late_in_a_row: 0,
            recovered: vec![0; m * (envelope.bytes() + symbol_max_bytes)],
            ready: VecDeque::with_capacity(m),
            stats: DecoderStats::default(),
        })
    }

    /// Takes a UDP payload of the session. Afterwards there may be packets to take with
    /// [`next_recovered`](Self::next_recovered).
    pub fn receive(&mut self, payload: &[u8]) -> Verdict {
        self.ready.clear();
        let frame = match self.envelope.open(payload).map(Frame::parse) {
            Ok(Ok(Some(frame))) => frame,
            Ok(Ok(None)) => {
                self.stats.plain_pkts += 1;
                return Verdict::Plain;
            }
            Ok(Err(error)) | Err(error) => return self.reject(error),
        };
        if frame.symbol.len() > self.symbol_max_bytes {
            return self.reject(FrameError::Long);
        }
        let is_new = self.keep(&frame);
        match frame.kind {
            Kind::Parity => {
                self.stats.parity_pkts += 1;
                Verdict::Parity
            }
            Kind::Data if is_new => {
                self.stats.data_pkts += 1;
                Verdict::Deliver { kcp: self.envelope.bytes() + OVERHEAD_BYTES..payload.len() }
            }
            Kind::Data => {
                self.stats.duplicate_pkts += 1;
                Verdict::Duplicate
            }
        }
    }

    fn reject(&mut self, error: FrameError) -> Verdict {
        self.stats.rejected_pkts += 1;
        Verdict::Reject(error)
    }

    /// Keeps a copy where it can help, and brings back what it makes possible. False when the packet was
    /// here before.
    fn keep(&mut self, frame: &Frame<'_>) -> bool {
        // At most 80 packets a block.
        let n = self.n as u32;
        let (number, place) = (frame.sequence / n, (frame.sequence % n) as usize);
        let kind = if place < self.k { Kind::Data } else { Kind::Parity };
        if kind != frame.kind || frame.sequence >= sequence_end(n) {
            self.stats.out_of_step_pkts += 1;
            return true;
        }
        let Some(at) = self.block(number) else {
            self.stats.late_pkts += 1;
            return true;
        };
        let Some(block) = &mut self.blocks[at] else { return true };
        let bit = 1 << place;
        if block.here & bit != 0 {
            return false;
        }
        block.here |= bit;
        if !block.closed {
            let slot = at * self.n + place;
            self.lengths[slot] = frame.symbol.len() as u16;
            self.symbols[slot * self.symbol_max_bytes..][..frame.symbol.len()]
                .copy_from_slice(frame.symbol);
            self.conclude(at);
        }
        true
    }

    /// Where a block is kept, made room for when it is new. `None` when it is too old.
    fn block(&mut self, number: u32) -> Option<usize> {
        let kept = self.blocks.len() as u32;
        let all = sequence_end(self.n as u32) / self.n as u32;
        let newest = self.newest.unwrap_or(number);
        // Both are below `all`, as numbers of blocks are.
        let ahead = (u64::from(number) + u64::from(all - newest)) % u64::from(all);
        if ahead > u64::from(all / 2) {
            if u64::from(all) - ahead < u64::from(kept) {
                self.late_in_a_row = 0;
                return self.position(number);
            }
            self.late_in_a_row += 1;
            if self.late_in_a_row < LATE_MAX_PKTS {
                return None;
            }
        }
        self.late_in_a_row = 0;
        if self.newest.is_none() || ahead >= u64::from(kept) {
            // The first of all, the sender has started anew, or nothing kept is of use any more.
            (0..kept as usize).for_each(|at| self.give_up(at));
            self.open(number);
        } else {
            (1..=ahead).for_each(|step| {
                self.open(((u64::from(newest) + step) % u64::from(all)) as u32);
            });
        }
        self.newest = Some(number);
        self.position(number)
    }

    fn position(&self, number: u32) -> Option<usize> {
        let at = number as usize % self.blocks.len();
        self.blocks[at].filter(|block| block.number == number).map(|_| at)
    }

    fn open(&mut self, number: u32) {
        let at = number as usize % self.blocks.len();
        self.give_up(at);
        self.blocks[at] = Some(Block { number, here: 0, closed: false });
    }

    fn give_up(&mut self, at: usize) {
        if let Some(block) = self.blocks[at].take() {
            let missing = self.k - (block.here & self.data_bits()).count_ones() as usize;
            self.stats.unrecovered_pkts += missing as u64;
        }
    }

    fn data_bits(&self) -> u128 {
        (1 << self.k) - 1
    }

    /// Solves a block, once as many packets of it are here as it has data packets.
    fn conclude(&mut self, at: usize) {
        let data_bits = self.data_bits();
        let Some(block) = &mut self.blocks[at] else { return };
        if (block.here.count_ones() as usize) < self.k {
            return;
        }
        block.closed = true;
        let here = block.here;
        if here & data_bits == data_bits {
            return;
        }
        let Some(solved) = self.solve(at, here) else {
            self.stats.implausible_pkts += u64::from((!here & data_bits).count_ones());
            return;
        };
        // Only now are they here.
        if let Some(block) = &mut self.blocks[at] {
            block.here |= solved;
        }
    }

    /// Computes the missing data packets; returns those that came out well, as bits.
    fn solve(&mut self, at: usize, here: u128) -> Option<u128> {
        let is_missing = |place: &usize| here >> place & 1 == 0;
        let (mut missing, mut rows) = ([0; M_MAX], [0; M_MAX]);
        // k of the packets are here, so parities stand in for those that are missing.
        let mut sources: [usize; K_MAX] = std::array::from_fn(|place| place);
        let mut parities = (self.k..self.n).filter(|place| !is_missing(place));
        let mut count = 0;
        for place in (0..self.k).filter(is_missing) {
            sources[place] = parities.next()?;
            (missing[count], rows[count]) = (place, sources[place] - self.k);
            count += 1;
        }
        let recovery = self.code.solve(&missing[..count], &rows[..count]).ok()?;
        let bytes = self.block_bytes(at, &sources[..self.k])?;
        self.sum(at, &sources[..self.k], &recovery, count, bytes);
        let solved = missing[..count].iter().enumerate();
        let bit = |(row, &place)| u128::from(self.let_out(row, bytes)) << place;
        Some(solved.map(bit).fold(0, |bits, bit| bits | bit))
    }

    /// How long the block's symbols are, when its parities agree and no data is longer.
    fn block_bytes(&self, at: usize, sources: &[usize]) -> Option<usize> {
        let length = |place: usize| self.lengths[at * self.n + place];
        let parities = || sources.iter().filter(|&&place| place >= self.k);
        let bytes = parities().next().map(|&place| length(place))?;
        let agree = parities().all(|&place| length(place) == bytes);
        let fit = sources.iter().all(|&place| length(place) <= bytes);
        (agree && fit).then_some(bytes.into())
    }

    fn sum(
        &mut self,
        at: usize,
        sources: &[usize],
        recovery: &Recovery,
        rows: usize,
        bytes: usize,
    ) {
        let symbol = |place: usize| {
            let slot = at * self.n + place;
            &self.symbols[slot * self.symbol_max_bytes..][..self.lengths[slot].into()]
        };
        let mut from: [&[u8]; K_MAX] = [&[]; K_MAX];
        for (from, &place) in from.iter_mut().zip(sources) {
            *from = symbol(place);
        }
        let envelope_bytes = self.envelope.bytes();
        let mut places = self.recovered.chunks_exact_mut(envelope_bytes + self.symbol_max_bytes);
        let mut sums: [&mut [u8]; M_MAX] = std::array::from_fn(|_| {
            let place = places.next().unwrap_or_default();
            place.get_mut(envelope_bytes..envelope_bytes + bytes).unwrap_or_default()
        });
        recovery.run(&self.kernel, &from[..sources.len()], &mut sums[..rows]);
    }

    /// Makes a UDP payload of a symbol that was brought back. False when that is implausible.
    fn let_out(&mut self, row: usize, bytes: usize) -> bool {
        let envelope_bytes = self.envelope.bytes();
        let start = row * (envelope_bytes + self.symbol_max_bytes);
        let symbol = &self.recovered[start + envelope_bytes..][..bytes];
        let size = symbol.first_chunk().map_or(0, |&size| usize::from(u16::from_le_bytes(size)));
        let kcp = symbol.get(SIZE_BYTES..size).unwrap_or_default();
        let padding = symbol.get(size..).unwrap_or_default();
        if !is_kcp(kcp) || padding.iter().any(|&byte| byte != 0) {
            self.stats.implausible_pkts += 1;
            return false;
        }
        // The envelope moves up to where the size ends.
        let start = start + SIZE_BYTES;
        let end = start + envelope_bytes + size - SIZE_BYTES;
        let payload = &mut self.recovered[start..end];
        payload[..envelope_bytes].fill(0);
        if self.envelope.seal(payload).is_err() {
            return false;
        }
        self.ready.push_back((start, end));
        self.stats.recovered_pkts += 1;
        true
    }

    /// The next packet brought back: a UDP payload of the session as it would be without the framing.
    /// To be taken before the next [`receive`](Self::receive), which forgets it.
    pub fn next_recovered(&mut self) -> Option<&[u8]> {
        let (start, end) = self.ready.pop_front()?;
        Some(&self.recovered[start..end])
    }

    /// What it has counted.
    #[must_use]
    pub fn stats(&self) -> DecoderStats {
        self.stats
    }
}
