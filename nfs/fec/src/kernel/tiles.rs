//! The order of work, which is the same for all vector kernels: tile by tile of the symbols, and of each
//! tile some sums after the other, so that the sources come from the second-level cache once.
#![forbid(unsafe_code)]

use std::mem::MaybeUninit;

use super::Old;

/// Sources that are gone through at once. A block has no more.
const SLAB: usize = 64;

/// A tile's work: some of the sums, over all sources of a slab.
pub struct Tile<'a> {
    /// For each of the sums a row, `stride` apart.
    pub coefficients: &'a [u8],
    pub stride: usize,
    /// From `from` on they have the tile's bytes; those that have not are left out.
    pub sources: &'a [&'a [u8]],
    pub from: usize,
    /// Where the tile is in the sums, of which it has at least one byte.
    pub at: usize,
    /// Bytes of the tile that the sums have.
    pub bytes: usize,
    pub old: Old,
}

// Closures are kept out of the kernels and in here: one made in a function with target features does not
// become part of a generic function without them, nor what it returns stay in registers.
impl<'a> Tile<'a> {
    /// For each of `R` sums its coefficients, as many as there are sources.
    #[inline]
    pub fn rows<const R: usize>(&self) -> [&'a [u8]; R] {
        std::array::from_fn(|row| &self.coefficients[row * self.stride..][..self.sources.len()])
    }

    /// What is to be read of a source, when it has all `bytes` of it.
    #[inline]
    pub fn of(&self, source: &'a [u8], bytes: usize) -> Option<&'a [u8]> {
        source.get(self.from..).and_then(|rest| rest.get(..bytes))
    }
}

/// Whether a kernel can do without the bytes of a tile behind the end of the sums.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// It reads none of them.
    Masked,
    /// It needs whole tiles of the sources.
    Whole,
}

/// Has `run` do all tiles of `TILE` bytes, with at most `HEIGHT` sums at once, which are equally long.
#[inline]
pub fn each<const TILE: usize, const HEIGHT: usize>(
    coefficients: &[u8],
    sources: &[&[u8]],
    sums: &mut [&mut [u8]],
    old: Old,
    ends: Ends,
    run: impl Fn(&Tile<'_>, &mut [&mut [u8]]),
) {
    let equal = sums.iter().all(|sum| sum.len() == sums[0].len());
    // Sums of different lengths are done one by one.
    for (index, sums) in sums.chunks_mut(if equal { usize::MAX } else { 1 }).enumerate() {
        let coefficients = &coefficients[index * sources.len()..];
        let mut work = Work { coefficients, stride: sources.len(), old, ends, run: &run };
        if sources.is_empty() {
            work.slab::<TILE, HEIGHT>(sources, sums);
        }
        for slab in sources.chunks(SLAB) {
            work.slab::<TILE, HEIGHT>(slab, sums);
            work.coefficients = work.coefficients.get(SLAB..).unwrap_or(&[]);
            work.old = Old::Kept;
        }
    }
}

struct Work<'a, R> {
    coefficients: &'a [u8],
    stride: usize,
    old: Old,
    ends: Ends,
    run: &'a R,
}

impl<R: Fn(&Tile<'_>, &mut [&mut [u8]])> Work<'_, R> {
    #[inline]
    fn slab<const TILE: usize, const HEIGHT: usize>(
        &self,
        sources: &[&[u8]],
        sums: &mut [&mut [u8]],
    ) {
        let length = sums.first().map_or(0, |sum| sum.len());
        let shortest = sources.iter().map(|source| source.len()).min().unwrap_or(0);
        for at in (0..length).step_by(TILE) {
            let bytes = (length - at).min(TILE);
            let needed = if self.ends == Ends::Masked { bytes } else { TILE };
            if shortest >= at + needed {
                self.groups::<HEIGHT>(sources, at, at, bytes, sums);
            } else {
                self.filled_up::<TILE, HEIGHT>(sources, at, bytes, sums);
            }
        }
    }

    /// A tile of which some sources have less than the whole: those are copied, and zeroes put behind.
    #[inline(never)]
    fn filled_up<const TILE: usize, const HEIGHT: usize>(
        &self,
        sources: &[&[u8]],
        at: usize,
        bytes: usize,
        sums: &mut [&mut [u8]],
    ) {
        let mut buffers = [const { MaybeUninit::<[u8; TILE]>::uninit() }; SLAB];
        let mut list: [&[u8]; SLAB] = [&[]; SLAB];
        let needed = if self.ends == Ends::Masked { bytes } else { TILE };
        for ((place, source), buffer) in list.iter_mut().zip(sources).zip(&mut buffers) {
            let rest = source.get(at..).unwrap_or(&[]);
            *place = if rest.is_empty() || rest.len() >= needed {
                rest
            } else {
                let buffer = buffer.write([0; TILE]);
                buffer[..rest.len()].copy_from_slice(rest);
                buffer
            };
        }
        self.groups::<HEIGHT>(&list[..sources.len()], 0, at, bytes, sums);
    }

    #[inline]
    fn groups<const HEIGHT: usize>(
        &self,
        sources: &[&[u8]],
        from: usize,
        at: usize,
        bytes: usize,
        sums: &mut [&mut [u8]],
    ) {
        for (index, sums) in sums.chunks_mut(HEIGHT).enumerate() {
            let coefficients = self.coefficients.get(index * HEIGHT * self.stride..).unwrap_or(&[]);
            let (stride, old) = (self.stride, self.old);
            (self.run)(&Tile { coefficients, stride, sources, from, at, bytes, old }, sums);
        }
    }
}
