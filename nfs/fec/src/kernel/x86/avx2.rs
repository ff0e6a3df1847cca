//! AVX2: products of 32 bytes, by GF2P8AFFINEQB or by two PSHUFB; in tiles of two vectors of four sums,
//! which fit the 16 registers with what is between.
//!
//! AVX2 can mask no bytes, so that it works on whole tiles always.

use super::super::Old;
use super::super::tiles::{self, Ends, Job};

/// Bytes of a vector.
const VECTOR: usize = 32;
/// Bytes of a tile.
const TILE: usize = 2 * VECTOR;
/// Sums of a tile.
const HEIGHT: usize = 4;

/// A tile of a sum, with zeroes behind its end.
fn whole(sum: &[u8], at: usize) -> [u8; TILE] {
    let rest = &sum[at..];
    rest.first_chunk().copied().unwrap_or_else(|| {
        let mut tile = [0; TILE];
        tile[..rest.len()].copy_from_slice(rest);
        tile
    })
}

/// Everything but the product is the same for both.
macro_rules! kernel {
    ($features:literal, $split:ident, $factor:ident, $product:ident) => {
        #[target_feature(enable = $features)]
        pub fn run(coefficients: &[u8], sources: &[&[u8]], sums: &mut [&mut [u8]], old: Old) {
            let ends = Ends::Whole;
            if coefficients.iter().all(|&coefficient| coefficient <= 1) {
                let run = |job: &Job<'_>, sums: &mut [&mut [u8]]| add_up(job, sums);
                tiles::each::<TILE, 1>(coefficients, sources, sums, old, ends, run);
            } else {
                let run = |job: &Job<'_>, sums: &mut [&mut [u8]]| multiply(job, sums);
                tiles::each::<TILE, HEIGHT>(coefficients, sources, sums, old, ends, run);
            }
        }

        #[target_feature(enable = $features)]
        fn multiply(job: &Job<'_>, sums: &mut [&mut [u8]]) -> usize {
            match sums.len() {
                1 => multiply_tiles::<1>(job, sums),
                2 => multiply_tiles::<2>(job, sums),
                3 => multiply_tiles::<3>(job, sums),
                _ => multiply_tiles::<HEIGHT>(job, sums),
            }
        }

        /// `R` sums.
        #[target_feature(enable = $features)]
        #[inline(never)]
        fn multiply_tiles<const R: usize>(job: &Job<'_>, sums: &mut [&mut [u8]]) -> usize {
            let rows: [&[u8]; R] = job.rows();
            for done in (0..job.bytes).step_by(TILE) {
                let (from, at) = (job.from + done, job.at + done);
                let mut registers = [[_mm256_setzero_si256(); 2]; R];
                if job.old == Old::Kept {
                    for (registers, sum) in registers.iter_mut().zip(&*sums) {
                        *registers = load(&whole(sum, at));
                    }
                }
                for (index, source) in job.sources.iter().enumerate() {
                    if source.is_empty() {
                        continue;
                    }
                    let Some(source) = source.get(from..from + TILE) else { return done };
                    let [first, second] = load(source);
                    let (first, second) = ($split(first), $split(second));
                    for (registers, row) in registers.iter_mut().zip(rows) {
                        // SAFETY: a row has as many coefficients as there are sources.
                        let factor = $factor(unsafe { *row.get_unchecked(index) });
                        registers[0] = _mm256_xor_si256(registers[0], $product(first, factor));
                        registers[1] = _mm256_xor_si256(registers[1], $product(second, factor));
                    }
                }
                for (registers, sum) in registers.iter().zip(&mut *sums) {
                    store(&mut sum[at..], registers);
                }
            }
            job.bytes
        }

        /// One sum of sources whose coefficients are 0 or 1.
        #[target_feature(enable = $features)]
        #[inline(never)]
        fn add_up(job: &Job<'_>, sums: &mut [&mut [u8]]) -> usize {
            let [row] = job.rows();
            for done in (0..job.bytes).step_by(TILE) {
                let (from, at) = (job.from + done, job.at + done);
                let mut registers = [_mm256_setzero_si256(); 2];
                if job.old == Old::Kept {
                    registers = load(&whole(sums[0], at));
                }
                for (source, &coefficient) in job.sources.iter().zip(row) {
                    if source.is_empty() {
                        continue;
                    }
                    // Whatever the coefficient: of one tile either all sums are done or none.
                    let Some(source) = source.get(from..from + TILE) else { return done };
                    if coefficient == 0 {
                        continue;
                    }
                    let vectors = load(source);
                    registers[0] = _mm256_xor_si256(registers[0], vectors[0]);
                    registers[1] = _mm256_xor_si256(registers[1], vectors[1]);
                }
                store(&mut sums[0][at..], &registers);
            }
            job.bytes
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn load(tile: &[u8]) -> [__m256i; 2] {
            let tile = &tile[..TILE];
            // SAFETY: both vectors lie within the tile.
            unsafe {
                [
                    _mm256_loadu_si256(tile.as_ptr().cast()),
                    _mm256_loadu_si256(tile.as_ptr().add(VECTOR).cast()),
                ]
            }
        }

        /// As many bytes as there are.
        #[target_feature(enable = $features)]
        #[inline]
        fn store(bytes: &mut [u8], vectors: &[__m256i; 2]) {
            let Some(tile) = bytes.first_chunk_mut::<TILE>() else {
                let mut tile = [0; TILE];
                store(&mut tile, vectors);
                bytes.copy_from_slice(&tile[..bytes.len()]);
                return;
            };
            // SAFETY: both vectors lie within the tile.
            unsafe {
                _mm256_storeu_si256(tile.as_mut_ptr().cast(), vectors[0]);
                _mm256_storeu_si256(tile.as_mut_ptr().add(VECTOR).cast(), vectors[1]);
            }
        }
    };
}

pub mod gfni {
    //! By GF2P8AFFINEQB.
    use std::arch::x86_64::{
        __m256i, _mm256_gf2p8affine_epi64_epi8, _mm256_loadu_si256, _mm256_set1_epi64x,
        _mm256_setzero_si256, _mm256_storeu_si256, _mm256_xor_si256,
    };

    use super::super::super::tables::MATRICES;
    use super::{Ends, HEIGHT, Job, Old, TILE, VECTOR, tiles, whole};

    kernel!("gfni,avx2", itself, matrix, product);

    #[target_feature(enable = "gfni,avx2")]
    #[inline]
    fn itself(vector: __m256i) -> __m256i {
        vector
    }

    #[target_feature(enable = "gfni,avx2")]
    #[inline]
    fn matrix(coefficient: u8) -> __m256i {
        _mm256_set1_epi64x(MATRICES[usize::from(coefficient)].cast_signed())
    }

    #[target_feature(enable = "gfni,avx2")]
    #[inline]
    fn product(vector: __m256i, matrix: __m256i) -> __m256i {
        _mm256_gf2p8affine_epi64_epi8::<0>(vector, matrix)
    }
}

pub mod shuffle {
    //! By PSHUFB, which looks 16 bytes up in a table of 16: products of the low nibbles and of the high.
    use std::arch::x86_64::{
        __m256i, _mm_loadu_si128, _mm256_and_si256, _mm256_broadcastsi128_si256,
        _mm256_loadu_si256, _mm256_set1_epi8, _mm256_setzero_si256, _mm256_shuffle_epi8,
        _mm256_srli_epi64, _mm256_storeu_si256, _mm256_xor_si256,
    };

    use super::super::super::tables::NIBBLES;
    use super::{Ends, HEIGHT, Job, Old, TILE, VECTOR, tiles, whole};

    kernel!("avx2", nibbles, products, product);

    #[target_feature(enable = "avx2")]
    #[inline]
    fn nibbles(vector: __m256i) -> [__m256i; 2] {
        let low = _mm256_set1_epi8(0x0F);
        let high = _mm256_srli_epi64::<4>(vector);
        [_mm256_and_si256(vector, low), _mm256_and_si256(high, low)]
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn products(coefficient: u8) -> [__m256i; 2] {
        let tables = &NIBBLES[usize::from(coefficient)];
        // SAFETY: each table has 16 bytes.
        let [low, high] = unsafe {
            [_mm_loadu_si128(tables[0].as_ptr().cast()), _mm_loadu_si128(tables[1].as_ptr().cast())]
        };
        [_mm256_broadcastsi128_si256(low), _mm256_broadcastsi128_si256(high)]
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn product(nibbles: [__m256i; 2], products: [__m256i; 2]) -> __m256i {
        let low = _mm256_shuffle_epi8(products[0], nibbles[0]);
        let high = _mm256_shuffle_epi8(products[1], nibbles[1]);
        _mm256_xor_si256(low, high)
    }
}
