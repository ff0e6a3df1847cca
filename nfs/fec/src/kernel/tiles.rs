//! The order of work, which is the same for all vector kernels: tile by tile of the symbols, and of each
//! tile some sums after the other, so that the sources come from the second-level cache once.
#![forbid(unsafe_code)]

use std::mem::MaybeUninit;

use super::Old;

/// Sources that are gone through at once. A block has no more.
const SLAB: usize = 64;

/// Work of a kernel: a range of some of the sums, over all sources of a slab.
pub struct Job<'a> {
    /// For each of the sums a row, `stride` apart.
    pub coefficients: &'a [u8],
    /// At least as many as there are sources.
    pub stride: usize,
    /// Empty ones are to be left out.
    pub sources: &'a [&'a [u8]],
    /// Where the range is in the sources.
    pub from: usize,
    /// Where it is in the sums.
    pub at: usize,
    /// How long it is: any number of tiles, of which the last may be cut short where ends are masked.
    pub bytes: usize,
    /// Whether the sums are added to.
    pub old: Old,
    /// Whether more of the same sources is wanted next.
    pub goes_on: bool,
}

impl<'a> Job<'a> {
    /// For each of `R` sums its coefficients, as many as there are sources.
    ///
    /// Not in the kernels: a closure that is made in a function with target features does not become part
    /// of a generic function without them, and what it works on does not stay in registers.
    #[inline]
    pub fn rows<const R: usize>(&self) -> [&'a [u8]; R] {
        std::array::from_fn(|row| &self.coefficients[row * self.stride..][..self.sources.len()])
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

/// Has `run` do everything, in tiles of `TILE` bytes and at most `HEIGHT` sums at once.
///
/// It goes through a job's tiles, stops before the first of which a source has less than it reads, and
/// returns how many bytes it has done: the rest is then done with copies that are filled up. So nobody
/// need look at lengths beforehand.
#[inline]
pub fn each<const TILE: usize, const HEIGHT: usize>(
    coefficients: &[u8],
    sources: &[&[u8]],
    sums: &mut [&mut [u8]],
    old: Old,
    ends: Ends,
    run: impl Fn(&Job<'_>, &mut [&mut [u8]]) -> usize,
) {
    let Some(length) = sums.first().map(|sum| sum.len()) else { return };
    let mut work = Work { coefficients, stride: sources.len(), old, ends, run };
    if sources.len() <= SLAB && sums.iter().all(|sum| sum.len() == length) {
        work.slab::<TILE, HEIGHT>(sources, sums, length);
    } else {
        work.odd::<TILE, HEIGHT>(sources, sums);
    }
}

/// Where the work is, as [`Job`] has it.
#[derive(Clone, Copy)]
struct Range {
    from: usize,
    at: usize,
    bytes: usize,
    goes_on: bool,
}

struct Work<'a, R> {
    coefficients: &'a [u8],
    stride: usize,
    old: Old,
    ends: Ends,
    run: R,
}

impl<R: Fn(&Job<'_>, &mut [&mut [u8]]) -> usize> Work<'_, R> {
    /// Sums of different lengths, one after the other; and any number of sources.
    #[cold]
    fn odd<const TILE: usize, const HEIGHT: usize>(
        &mut self,
        sources: &[&[u8]],
        sums: &mut [&mut [u8]],
    ) {
        let (coefficients, old) = (self.coefficients, self.old);
        for (index, sums) in sums.chunks_mut(1).enumerate() {
            self.old = old;
            for (slab, sources) in sources.chunks(SLAB).enumerate() {
                self.coefficients = &coefficients[index * self.stride + slab * SLAB..];
                self.slab::<TILE, HEIGHT>(sources, sums, sums[0].len());
                self.old = Old::Kept;
            }
            if sources.is_empty() && old == Old::Lost {
                sums[0].fill(0);
            }
        }
    }

    /// At most [`SLAB`] sources, and sums of one length.
    #[inline]
    fn slab<const TILE: usize, const HEIGHT: usize>(
        &self,
        sources: &[&[u8]],
        sums: &mut [&mut [u8]],
        length: usize,
    ) {
        let mut at = 0;
        if sums.len() <= HEIGHT {
            let range = Range { from: 0, at: 0, bytes: length, goes_on: false };
            at = self.run(0, sources, range, sums);
        } else {
            while at < length {
                let bytes = TILE.min(length - at);
                let range = Range { from: at, at, bytes, goes_on: at + bytes < length };
                if !self.groups::<HEIGHT>(sources, range, sums) {
                    break;
                }
                at += bytes;
            }
        }
        while at < length {
            self.filled_up::<TILE, HEIGHT>(sources, at, TILE.min(length - at), sums);
            at += TILE;
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
        let range = Range { from: 0, at, bytes, goes_on: false };
        let done = self.groups::<HEIGHT>(&list[..sources.len()], range, sums);
        debug_assert!(done, "no source has less than the tile");
    }

    /// One tile of all sums, of which the kernel takes so many at once that all turns are about equal.
    /// False, and nothing is done, when a source has less than the tile.
    #[inline]
    fn groups<const HEIGHT: usize>(
        &self,
        sources: &[&[u8]],
        range: Range,
        sums: &mut [&mut [u8]],
    ) -> bool {
        let height = sums.len().div_ceil(sums.len().div_ceil(HEIGHT));
        let mut groups = sums.chunks_mut(height).enumerate();
        groups.all(|(index, sums)| {
            let range = Range { goes_on: range.goes_on && index == 0, ..range };
            self.run(index * height, sources, range, sums) >= range.bytes
        })
    }

    #[inline]
    fn run(&self, row: usize, sources: &[&[u8]], range: Range, sums: &mut [&mut [u8]]) -> usize {
        let (coefficients, stride) = (&self.coefficients[row * self.stride..], self.stride);
        let Range { from, at, bytes, goes_on } = range;
        let old = self.old;
        (self.run)(&Job { coefficients, stride, sources, from, at, bytes, old, goes_on }, sums)
    }
}
