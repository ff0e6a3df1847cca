//! GFNI and AVX-512: products of 64 bytes by one GF2P8AFFINEQB each.

use std::arch::x86_64::{
    __m512i, __mmask64, _mm512_gf2p8affine_epi64_epi8, _mm512_loadu_si512, _mm512_mask_storeu_epi8,
    _mm512_maskz_loadu_epi8, _mm512_set1_epi64, _mm512_setzero_si512, _mm512_storeu_si512,
    _mm512_xor_si512,
};

use super::super::Old;
use super::super::tables::MATRICES;
use super::super::tiles::{self, Ends, Job};

/// Bytes of a vector.
const VECTOR: usize = 64;
/// Vectors of a tile: each matrix that is fetched serves so many products.
const WIDTH: usize = 4;
/// Bytes of a tile.
const TILE: usize = WIDTH * VECTOR;
/// Sums of a tile: each vector that is fetched serves so many products. 6 · 4 sums, 4 vectors of a
/// source and what is between fit the 32 registers.
const HEIGHT: usize = 6;

#[target_feature(enable = "gfni,avx512f,avx512bw")]
pub fn run(coefficients: &[u8], sources: &[&[u8]], sums: &mut [&mut [u8]], old: Old) {
    let ends = Ends::Masked;
    if coefficients.iter().all(|&coefficient| coefficient <= 1) {
        let run = |job: &Job<'_>, sums: &mut [&mut [u8]]| add_up(job, sums);
        tiles::each::<TILE, 1>(coefficients, sources, sums, old, ends, run);
    } else {
        let run = |job: &Job<'_>, sums: &mut [&mut [u8]]| multiply(job, sums);
        tiles::each::<TILE, HEIGHT>(coefficients, sources, sums, old, ends, run);
    }
}

#[target_feature(enable = "gfni,avx512f,avx512bw")]
fn multiply(job: &Job<'_>, sums: &mut [&mut [u8]]) {
    match sums.len() {
        1 => multiply_rows::<1>(job, sums),
        2 => multiply_rows::<2>(job, sums),
        3 => multiply_rows::<3>(job, sums),
        4 => multiply_rows::<4>(job, sums),
        5 => multiply_rows::<5>(job, sums),
        _ => multiply_rows::<HEIGHT>(job, sums),
    }
}

#[target_feature(enable = "gfni,avx512f,avx512bw")]
fn multiply_rows<const R: usize>(job: &Job<'_>, sums: &mut [&mut [u8]]) {
    match job.bytes.div_ceil(VECTOR) {
        1 => multiply_tiles::<R, 1>(job, sums),
        2 => multiply_tiles::<R, 2>(job, sums),
        3 => multiply_tiles::<R, 3>(job, sums),
        _ => multiply_tiles::<R, WIDTH>(job, sums),
    }
}

/// `R` sums, `V` vectors of each at once. Not part of its callers, so that its loop has the registers
/// alone.
#[target_feature(enable = "gfni,avx512f,avx512bw")]
#[inline(never)]
fn multiply_tiles<const R: usize, const V: usize>(job: &Job<'_>, sums: &mut [&mut [u8]]) {
    let rows: [&[u8]; R] = job.rows();
    for done in (0..job.bytes).step_by(V * VECTOR) {
        let (bytes, last) = tile::<V>(job.bytes - done);
        let (from, at) = (job.from + done, job.at + done);
        let mut registers = [[_mm512_setzero_si512(); V]; R];
        if job.old == Old::Kept {
            for (registers, sum) in registers.iter_mut().zip(&*sums) {
                *registers = load(&sum[at..at + bytes], last);
            }
        }
        for (index, source) in job.sources.iter().enumerate() {
            let Some(source) = source.get(from..from + bytes) else { continue };
            let vectors: [__m512i; V] = load(source, last);
            for (registers, row) in registers.iter_mut().zip(rows) {
                // SAFETY: a row has as many coefficients as there are sources.
                let coefficient = unsafe { *row.get_unchecked(index) };
                let matrix = _mm512_set1_epi64(MATRICES[usize::from(coefficient)].cast_signed());
                for (register, vector) in registers.iter_mut().zip(vectors) {
                    let product = _mm512_gf2p8affine_epi64_epi8::<0>(vector, matrix);
                    *register = _mm512_xor_si512(*register, product);
                }
            }
        }
        for (registers, sum) in registers.into_iter().zip(&mut *sums) {
            store(&mut sum[at..at + bytes], registers, last);
        }
    }
}

/// One sum of sources whose coefficients are 0 or 1.
#[target_feature(enable = "gfni,avx512f,avx512bw")]
fn add_up(job: &Job<'_>, sums: &mut [&mut [u8]]) {
    match job.bytes.div_ceil(VECTOR) {
        1 => add_up_tiles::<1>(job, sums[0]),
        2 => add_up_tiles::<2>(job, sums[0]),
        3 => add_up_tiles::<3>(job, sums[0]),
        _ => add_up_tiles::<WIDTH>(job, sums[0]),
    }
}

#[target_feature(enable = "gfni,avx512f,avx512bw")]
#[inline(never)]
fn add_up_tiles<const V: usize>(job: &Job<'_>, sum: &mut [u8]) {
    let [row] = job.rows();
    for done in (0..job.bytes).step_by(V * VECTOR) {
        let (bytes, last) = tile::<V>(job.bytes - done);
        let (from, at) = (job.from + done, job.at + done);
        let mut registers = [_mm512_setzero_si512(); V];
        if job.old == Old::Kept {
            registers = load(&sum[at..at + bytes], last);
        }
        for (source, &coefficient) in job.sources.iter().zip(row) {
            let Some(source) = source.get(from..from + bytes) else { continue };
            if coefficient == 0 {
                continue;
            }
            let vectors: [__m512i; V] = load(source, last);
            for (register, vector) in registers.iter_mut().zip(vectors) {
                *register = _mm512_xor_si512(*register, vector);
            }
        }
        store(&mut sum[at..at + bytes], registers, last);
    }
}

/// Bytes of the next tile of at most `V` vectors, and the bits of those in its last vector.
fn tile<const V: usize>(left: usize) -> (usize, __mmask64) {
    let bytes = left.min(V * VECTOR);
    (bytes, mask_of(bytes, V))
}

/// Bits for the bytes that the last of `vectors` vectors has, when all of them have `bytes`.
fn mask_of(bytes: usize, vectors: usize) -> __mmask64 {
    debug_assert_eq!(bytes.div_ceil(VECTOR), vectors);
    !0 >> (vectors * VECTOR - bytes)
}

/// All bytes, in `V` vectors of which the last has those of the mask `last`.
#[target_feature(enable = "gfni,avx512f,avx512bw")]
#[inline]
fn load<const V: usize>(bytes: &[u8], last: __mmask64) -> [__m512i; V] {
    debug_assert_eq!(last, mask_of(bytes.len(), V));
    let mut vectors = [_mm512_setzero_si512(); V];
    for (index, vector) in vectors.iter_mut().enumerate() {
        // SAFETY: all vectors but the last lie within the bytes, and of the last none is read that the
        // mask does not have, which are those within.
        *vector = unsafe {
            let from = bytes.as_ptr().add(index * VECTOR);
            if index + 1 < V {
                _mm512_loadu_si512(from.cast())
            } else {
                _mm512_maskz_loadu_epi8(last, from.cast())
            }
        };
    }
    vectors
}

/// The counterpart of [`load`].
#[target_feature(enable = "gfni,avx512f,avx512bw")]
#[inline]
fn store<const V: usize>(bytes: &mut [u8], vectors: [__m512i; V], last: __mmask64) {
    debug_assert_eq!(last, mask_of(bytes.len(), V));
    for (index, vector) in vectors.into_iter().enumerate() {
        // SAFETY: all vectors but the last lie within the bytes, and of the last none is written that
        // the mask does not have, which are those within.
        unsafe {
            let to = bytes.as_mut_ptr().add(index * VECTOR);
            if index + 1 < V {
                _mm512_storeu_si512(to.cast(), vector);
            } else {
                _mm512_mask_storeu_epi8(to.cast(), last, vector);
            }
        }
    }
}
