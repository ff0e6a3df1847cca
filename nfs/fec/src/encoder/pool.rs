//! The memory of blocks that are being coded or wait to be sent: all of it taken at the start.
#![forbid(unsafe_code)]

use crate::code::{Code, K_MAX, M_MAX};
use crate::kernel::Kernel;
use crate::mac::{Key, MAC_BYTES};
use crate::wire::{REPAIR_SHIM_BYTES, Repair, Stream};

/// A block: its sources are counted and summed, not kept.
#[derive(Clone, Debug)]
pub(super) struct Block {
    /// Packets so far.
    pub sources: usize,
    /// Longest packet so far: so many coded bytes are in use.
    coded_bytes: usize,
    /// Every packet's length, as it goes into the length recovery field.
    lengths: [[u8; 2]; K_MAX],
    /// Repair packets that are ready to be sent.
    pub rows: u8,
}

/// Blocks with their repair symbols. A block's symbols lie side by side, each with room before it for
/// its shim and behind it for its MAC.
#[derive(Debug)]
pub(super) struct Pool {
    blocks: Vec<Block>,
    /// Blocks nobody uses; the last one freed is the first one taken, for it is in the cache.
    free: Vec<u16>,
    bytes: Vec<u8>,
    symbols: usize,
    symbol_bytes: usize,
}

impl Pool {
    /// Room for `blocks` blocks of `symbols` repair symbols of up to `coded_max_bytes`.
    pub fn new(blocks: usize, symbols: usize, coded_max_bytes: usize) -> Self {
        let symbol_bytes = (REPAIR_SHIM_BYTES + coded_max_bytes + MAC_BYTES).next_multiple_of(64);
        let block = Block { sources: 0, coded_bytes: 0, lengths: [[0; 2]; K_MAX], rows: 0 };
        Self {
            blocks: vec![block; blocks],
            free: (0..blocks as u16).rev().collect(),
            bytes: vec![0; blocks * symbols * symbol_bytes],
            symbols,
            symbol_bytes,
        }
    }

    /// Blocks that can be taken.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// An empty block.
    pub fn take(&mut self) -> Option<u16> {
        let index = self.free.pop()?;
        let block = &mut self.blocks[usize::from(index)];
        (block.sources, block.coded_bytes, block.rows) = (0, 0, 0);
        Some(index)
    }

    /// Gives a block back.
    pub fn give(&mut self, index: u16) {
        self.free.push(index);
    }

    pub fn block(&self, index: u16) -> &Block {
        &self.blocks[usize::from(index)]
    }

    /// Adds packets to a block's first `m` symbols, all with one run of the kernel. They are the
    /// block's next; there are at most k in all.
    pub fn add(&mut self, index: u16, m: usize, code: &Code, kernel: Kernel, packets: &[&[u8]]) {
        let longest = packets.iter().map(|packet| packet.len()).max().unwrap_or(0);
        let block = &mut self.blocks[usize::from(index)];
        let at = block.sources;
        for (length, packet) in block.lengths[at..].iter_mut().zip(packets) {
            *length = (packet.len() as u16).to_be_bytes();
        }
        block.sources += packets.len();
        let coded_bytes = block.coded_bytes;
        block.coded_bytes = coded_bytes.max(longest);
        let mut coefficients = [0; K_MAX * M_MAX];
        let count = packets.len();
        for row in 0..m {
            coefficients[row * count..][..count].copy_from_slice(&code.row(row)[at..at + count]);
        }
        let block_bytes = self.symbols * self.symbol_bytes;
        let symbols = &mut self.bytes[usize::from(index) * block_bytes..][..block_bytes];
        let mut sums: [&mut [u8]; M_MAX] = Default::default();
        for (sum, symbol) in sums.iter_mut().zip(symbols.chunks_exact_mut(self.symbol_bytes)) {
            let coded = &mut symbol[REPAIR_SHIM_BYTES..];
            if at > 0 && longest > coded_bytes {
                coded[coded_bytes..longest].fill(0);
            }
            *sum = &mut coded[..longest];
        }
        let (coefficients, sums) = (&coefficients[..m * count], &mut sums[..m]);
        if at == 0 {
            kernel.assign(coefficients, packets, sums);
        } else {
            kernel.accumulate(coefficients, packets, sums);
        }
    }

    /// Finishes a block that takes no more packets: its first `repair.m` symbols become packets.
    /// `repair` says all but row and length.
    pub fn seal(
        &mut self,
        index: u16,
        stream: Stream,
        repair: Repair,
        code: &Code,
        kernel: Kernel,
        key: Option<&Key>,
    ) {
        let block = &mut self.blocks[usize::from(index)];
        block.rows = repair.m;
        let (rows, sources) = (usize::from(repair.m), block.sources);
        let mut coefficients = [0; K_MAX * M_MAX];
        let mut lengths: [&[u8]; K_MAX] = [&[]; K_MAX];
        for (source, length) in lengths.iter_mut().zip(&block.lengths[..sources]) {
            *source = length;
        }
        for row in 0..rows {
            coefficients[row * sources..][..sources].copy_from_slice(&code.row(row)[..sources]);
        }
        let mut sums = [[0; 2]; M_MAX];
        let mut places: [&mut [u8]; M_MAX] = Default::default();
        for (place, sum) in places.iter_mut().zip(&mut sums) {
            *place = sum;
        }
        kernel.assign(&coefficients[..rows * sources], &lengths[..sources], &mut places[..rows]);
        let block_bytes = self.symbols * self.symbol_bytes;
        let end = REPAIR_SHIM_BYTES + block.coded_bytes;
        let symbols = &mut self.bytes[usize::from(index) * block_bytes..][..block_bytes];
        for (row, symbol) in symbols.chunks_exact_mut(self.symbol_bytes).take(rows).enumerate() {
            let repair = Repair { row: row as u8, length: sums[row], ..repair };
            symbol[..REPAIR_SHIM_BYTES].copy_from_slice(&repair.shim(stream, key.is_some()));
            if let Some(key) = key {
                let mac = key.mac(&symbol[..end]);
                symbol[end..end + MAC_BYTES].copy_from_slice(&mac);
            }
        }
    }

    /// A sealed block's repair packet.
    pub fn packet(&self, index: u16, row: usize, has_mac: bool) -> &[u8] {
        let symbol = usize::from(index) * self.symbols + row;
        let mac_bytes = if has_mac { MAC_BYTES } else { 0 };
        let end = REPAIR_SHIM_BYTES + self.block(index).coded_bytes + mac_bytes;
        &self.bytes[symbol * self.symbol_bytes..][..end]
    }
}
