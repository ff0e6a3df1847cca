//! A ring of blocks of packets, in memory of its own.
#![forbid(unsafe_code)]

/// Bytes of a cache line.
const LINE: usize = 64;

/// How packets lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placing {
    /// One behind the other, each at the begin of a cache line; 512 KiB of them, which a second-level
    /// cache holds. The kindest there is.
    Near,
    /// So, but 16 MiB of them, which it does not hold.
    Far,
    /// As inner packets lie in buffers of the packet region: 2,368 bytes apart, each 14 bytes behind the
    /// begin of a cache line; 512 KiB of packets.
    Buffers,
}

/// Of what size the blocks are.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Source symbols.
    pub k: usize,
    /// Repair symbols.
    pub m: usize,
    /// Bytes of each symbol.
    pub bytes: usize,
    /// Where they are.
    pub placing: Placing,
}

impl Shape {
    fn stride(&self) -> usize {
        match self.placing {
            Placing::Near | Placing::Far => self.bytes.next_multiple_of(LINE),
            Placing::Buffers => 2368,
        }
    }

    fn offset(&self) -> usize {
        if self.placing == Placing::Buffers { 14 } else { 0 }
    }

    /// Blocks in the ring.
    #[must_use]
    pub fn blocks(&self) -> usize {
        let ring = if self.placing == Placing::Far { 16 << 20 } else { 512 << 10 };
        (ring / ((self.k + self.m) * self.bytes)).max(1)
    }

    /// Data that a lap over the ring codes.
    #[must_use]
    pub fn lap_bytes(&self) -> usize {
        self.blocks() * self.k * self.bytes
    }
}

/// The memory of a ring.
#[derive(Debug)]
pub struct Ring {
    shape: Shape,
    memory: Vec<u8>,
    /// Where the first cache line begins.
    begin: usize,
}

/// k symbols that are read, and m that are written.
#[derive(Debug)]
pub struct Block<'a> {
    /// What is read.
    pub symbols: Vec<&'a [u8]>,
    /// What is written.
    pub results: Vec<&'a mut [u8]>,
}

impl Ring {
    /// Filled with the same bytes for the same shape.
    #[must_use]
    pub fn new(shape: Shape) -> Self {
        let slots = shape.blocks() * (shape.k + shape.m);
        let mut memory = vec![0; slots * shape.stride() + LINE];
        let begin = memory.as_ptr().align_offset(LINE);
        fastrand::Rng::with_seed(7).fill(&mut memory[begin..]);
        Self { shape, memory, begin }
    }

    /// Its blocks.
    pub fn blocks(&mut self) -> Vec<Block<'_>> {
        let Shape { k, m, bytes, .. } = self.shape;
        let (stride, offset) = (self.shape.stride(), self.shape.offset());
        let mut slots = self.memory[self.begin..]
            .chunks_exact_mut(stride)
            .map(|slot| &mut slot[offset..offset + bytes]);
        (0..self.shape.blocks())
            .map(|_| Block {
                symbols: slots.by_ref().take(k).map(|slot| &*slot).collect(),
                results: slots.by_ref().take(m).collect(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_has_its_blocks_whole_and_where_they_should_be() {
        for placing in [Placing::Near, Placing::Far, Placing::Buffers] {
            let shape = Shape { k: 10, m: 2, bytes: 1400, placing };
            let (mut ring, mut other) = (Ring::new(shape), Ring::new(shape));
            let blocks = ring.blocks();
            assert!(
                blocks.iter().zip(&other.blocks()).all(|(one, two)| one.symbols == two.symbols)
            );
            assert_eq!(blocks.len(), shape.blocks());
            let past_line = if placing == Placing::Buffers { 14 } else { 0 };
            for block in blocks {
                assert_eq!((block.symbols.len(), block.results.len()), (10, 2));
                let written = block.results.iter().map(|bytes| &**bytes);
                for symbol in block.symbols.iter().copied().chain(written) {
                    assert_eq!(symbol.len(), 1400);
                    assert_eq!(symbol.as_ptr().addr() % LINE, past_line);
                }
            }
        }
    }
}
