//! AVX2: products of 32 bytes, by GF2P8AFFINEQB or by two PSHUFB; in tiles of two vectors of four sums,
//! which fit the 16 registers with what is between.
//!
//! AVX2 can mask no bytes: the end of a symbol is copied to a buffer of one tile and filled up with zeroes.

use super::super::Old;

/// Bytes of a vector.
const VECTOR: usize = 32;
/// Bytes of a tile.
const TILE: usize = 2 * VECTOR;
/// Sums of a tile.
const HEIGHT: usize = 4;

/// The tile of a symbol at `at`: its own bytes, or a copy in `buffer` with zeroes behind its end. `None`
/// where the symbol has ended.
fn tile_at<'a>(symbol: &'a [u8], at: usize, buffer: &'a mut [u8; TILE]) -> Option<&'a [u8; TILE]> {
    let rest = symbol.get(at..).filter(|rest| !rest.is_empty())?;
    Some(rest.first_chunk().unwrap_or_else(|| {
        *buffer = [0; TILE];
        buffer[..rest.len()].copy_from_slice(rest);
        buffer
    }))
}

/// Everything but the product is the same for both.
macro_rules! kernel {
    ($features:literal, $split:ident, $factor:ident, $product:ident) => {
        #[target_feature(enable = $features)]
        pub fn run(coefficients: &[u8], sources: &[&[u8]], sums: &mut [&mut [u8]], old: Old) {
            let equal = sums.windows(2).all(|pair| pair[0].len() == pair[1].len());
            let height = if equal { HEIGHT } else { 1 };
            let length = sums.iter().map(|sum| sum.len()).max().unwrap_or(0);
            for at in (0..length).step_by(TILE) {
                for (index, sums) in sums.chunks_mut(height).enumerate() {
                    let coefficients = &coefficients[index * height * sources.len()..];
                    match sums.len() {
                        1 => tile::<1>(coefficients, sources, sums, at, old),
                        2 => tile::<2>(coefficients, sources, sums, at, old),
                        3 => tile::<3>(coefficients, sources, sums, at, old),
                        _ => tile::<HEIGHT>(coefficients, sources, sums, at, old),
                    }
                }
            }
        }

        /// `R` sums of equal length, over all sources.
        #[target_feature(enable = $features)]
        fn tile<const R: usize>(
            coefficients: &[u8],
            sources: &[&[u8]],
            sums: &mut [&mut [u8]],
            at: usize,
            old: Old,
        ) {
            let rows: [&[u8]; R] =
                std::array::from_fn(|row| &coefficients[row * sources.len()..][..sources.len()]);
            let mut registers = [[_mm256_setzero_si256(); 2]; R];
            let mut buffer = [0; TILE];
            if old == Old::Kept {
                for (registers, sum) in registers.iter_mut().zip(&*sums) {
                    let Some(bytes) = tile_at(sum, at, &mut buffer) else { return };
                    *registers = load(bytes);
                }
            }
            for (index, source) in sources.iter().enumerate() {
                let Some(bytes) = tile_at(source, at, &mut buffer) else { continue };
                let vectors = load(bytes).map(|vector| $split(vector));
                for (registers, row) in registers.iter_mut().zip(rows) {
                    if row[index] == 0 {
                        continue;
                    }
                    let factor = $factor(row[index]);
                    for (register, vector) in registers.iter_mut().zip(vectors) {
                        *register = _mm256_xor_si256(*register, $product(vector, factor));
                    }
                }
            }
            for (registers, sum) in registers.into_iter().zip(sums) {
                store(sum, at, registers);
            }
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn load(bytes: &[u8; TILE]) -> [__m256i; 2] {
            // SAFETY: both vectors lie within the tile.
            unsafe {
                [
                    _mm256_loadu_si256(bytes.as_ptr().cast()),
                    _mm256_loadu_si256(bytes.as_ptr().add(VECTOR).cast()),
                ]
            }
        }

        /// What of a tile lies within the sum.
        #[target_feature(enable = $features)]
        #[inline]
        fn store(sum: &mut [u8], at: usize, vectors: [__m256i; 2]) {
            let mut buffer = [0; TILE];
            let rest = sum.get_mut(at..).unwrap_or(&mut []);
            let whole = rest.len() >= TILE;
            let to = if whole { rest.as_mut_ptr() } else { buffer.as_mut_ptr() };
            // SAFETY: both vectors lie within a tile, which there is in either.
            unsafe {
                _mm256_storeu_si256(to.cast(), vectors[0]);
                _mm256_storeu_si256(to.add(VECTOR).cast(), vectors[1]);
            }
            if !whole {
                rest.copy_from_slice(&buffer[..rest.len()]);
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
    use super::{HEIGHT, Old, TILE, VECTOR, tile_at};

    kernel!("gfni,avx2", whole, matrix, product);

    #[target_feature(enable = "gfni,avx2")]
    #[inline]
    fn whole(vector: __m256i) -> __m256i {
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
    use super::{HEIGHT, Old, TILE, VECTOR, tile_at};

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
        let load = |table: &[u8; 16]| unsafe { _mm_loadu_si128(table.as_ptr().cast()) };
        [&tables[0], &tables[1]].map(|table| _mm256_broadcastsi128_si256(load(table)))
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn product(nibbles: [__m256i; 2], products: [__m256i; 2]) -> __m256i {
        let low = _mm256_shuffle_epi8(products[0], nibbles[0]);
        let high = _mm256_shuffle_epi8(products[1], nibbles[1]);
        _mm256_xor_si256(low, high)
    }
}
