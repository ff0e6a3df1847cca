//! GFNI and AVX-512: products of 64 bytes by one GF2P8AFFINEQB each.

use std::arch::x86_64::{
    __m512i, __mmask64, _mm512_gf2p8affine_epi64_epi8, _mm512_loadu_si512, _mm512_mask_storeu_epi8,
    _mm512_maskz_loadu_epi8, _mm512_set1_epi64, _mm512_setzero_si512, _mm512_storeu_si512,
    _mm512_xor_si512,
};

use super::super::Old;
use super::super::tables::MATRICES;

/// Bytes of a vector.
const VECTOR: usize = 64;
/// Vectors of a tile: each matrix that is fetched serves so many products.
const WIDTH: usize = 4;
/// Sums of a tile: each vector that is fetched serves so many products. 6 · 4 sums, 4 vectors of a
/// source and what is between fit the 32 registers.
const HEIGHT: usize = 6;
/// Vectors of a tile where nothing is multiplied.
const XOR_WIDTH: usize = 8;

/// Bits for the bytes of a vector that begin `bytes` bytes before an end.
fn mask_of(bytes: usize) -> __mmask64 {
    match bytes {
        0 => 0,
        1..VECTOR => (1 << bytes) - 1,
        _ => !0,
    }
}

/// Where in the symbols the work is: `bytes` from `at` on.
#[derive(Clone, Copy)]
struct Span {
    at: usize,
    bytes: usize,
}

#[target_feature(enable = "gfni,avx512f,avx512bw")]
pub fn run(coefficients: &[u8], sources: &[&[u8]], sums: &mut [&mut [u8]], old: Old) {
    let equal = sums.windows(2).all(|pair| pair[0].len() == pair[1].len());
    let group = if equal { sums.len() } else { 1 };
    for (index, sums) in sums.chunks_mut(group.max(1)).enumerate() {
        let many = sums.len() * sources.len();
        let coefficients = &coefficients[index * group * sources.len()..][..many];
        if coefficients.iter().all(|&coefficient| coefficient <= 1) {
            add_up(coefficients, sources, sums, old);
        } else {
            multiply(coefficients, sources, sums, old);
        }
    }
}

/// Sums of equal length, in tiles of `WIDTH` vectors; and of each all sums before the next, so that the
/// sources are read from the second-level cache once.
#[target_feature(enable = "gfni,avx512f,avx512bw")]
fn multiply(coefficients: &[u8], sources: &[&[u8]], sums: &mut [&mut [u8]], old: Old) {
    let length = sums.first().map_or(0, |sum| sum.len());
    for at in (0..length).step_by(WIDTH * VECTOR) {
        let span = Span { at, bytes: (length - at).min(WIDTH * VECTOR) };
        for (index, sums) in sums.chunks_mut(HEIGHT).enumerate() {
            let coefficients = &coefficients[index * HEIGHT * sources.len()..];
            match sums.len() {
                1 => tile::<1>(coefficients, sources, sums, span, old),
                2 => tile::<2>(coefficients, sources, sums, span, old),
                3 => tile::<3>(coefficients, sources, sums, span, old),
                4 => tile::<4>(coefficients, sources, sums, span, old),
                5 => tile::<5>(coefficients, sources, sums, span, old),
                _ => tile::<HEIGHT>(coefficients, sources, sums, span, old),
            }
        }
    }
}

/// `R` sums, over all sources.
#[target_feature(enable = "gfni,avx512f,avx512bw")]
fn tile<const R: usize>(
    coefficients: &[u8],
    sources: &[&[u8]],
    sums: &mut [&mut [u8]],
    span: Span,
    old: Old,
) {
    match span.bytes.div_ceil(VECTOR) {
        1 => tile_of::<R, 1>(coefficients, sources, sums, span, old),
        2 => tile_of::<R, 2>(coefficients, sources, sums, span, old),
        3 => tile_of::<R, 3>(coefficients, sources, sums, span, old),
        _ => tile_of::<R, WIDTH>(coefficients, sources, sums, span, old),
    }
}

#[target_feature(enable = "gfni,avx512f,avx512bw")]
fn tile_of<const R: usize, const V: usize>(
    coefficients: &[u8],
    sources: &[&[u8]],
    sums: &mut [&mut [u8]],
    span: Span,
    old: Old,
) {
    let rows: [&[u8]; R] =
        std::array::from_fn(|row| &coefficients[row * sources.len()..][..sources.len()]);
    let mut registers = [[_mm512_setzero_si512(); V]; R];
    if old == Old::Kept {
        for (registers, sum) in registers.iter_mut().zip(&*sums) {
            *registers = load(sum, span).unwrap_or(*registers);
        }
    }
    for (index, source) in sources.iter().enumerate() {
        let Some(vectors) = load::<V>(source, span) else { continue };
        for (registers, row) in registers.iter_mut().zip(rows) {
            let matrix = _mm512_set1_epi64(MATRICES[usize::from(row[index])].cast_signed());
            for (register, vector) in registers.iter_mut().zip(vectors) {
                let product = _mm512_gf2p8affine_epi64_epi8::<0>(vector, matrix);
                *register = _mm512_xor_si512(*register, product);
            }
        }
    }
    for (registers, sum) in registers.into_iter().zip(sums) {
        store(sum, span, registers);
    }
}

/// The same where each coefficient is 0 or 1.
#[target_feature(enable = "gfni,avx512f,avx512bw")]
fn add_up(coefficients: &[u8], sources: &[&[u8]], sums: &mut [&mut [u8]], old: Old) {
    for (index, sum) in sums.iter_mut().enumerate() {
        let row = &coefficients[index * sources.len()..][..sources.len()];
        for at in (0..sum.len()).step_by(XOR_WIDTH * VECTOR) {
            let span = Span { at, bytes: (sum.len() - at).min(XOR_WIDTH * VECTOR) };
            match span.bytes.div_ceil(VECTOR) {
                1 => add_up_of::<1>(row, sources, sum, span, old),
                2 => add_up_of::<2>(row, sources, sum, span, old),
                3 => add_up_of::<3>(row, sources, sum, span, old),
                4 => add_up_of::<4>(row, sources, sum, span, old),
                5 => add_up_of::<5>(row, sources, sum, span, old),
                6 => add_up_of::<6>(row, sources, sum, span, old),
                7 => add_up_of::<7>(row, sources, sum, span, old),
                _ => add_up_of::<XOR_WIDTH>(row, sources, sum, span, old),
            }
        }
    }
}

#[target_feature(enable = "gfni,avx512f,avx512bw")]
fn add_up_of<const V: usize>(row: &[u8], sources: &[&[u8]], sum: &mut [u8], span: Span, old: Old) {
    let mut registers = [_mm512_setzero_si512(); V];
    if old == Old::Kept {
        registers = load(sum, span).unwrap_or(registers);
    }
    for (source, _) in sources.iter().zip(row).filter(|(_, coefficient)| **coefficient != 0) {
        let Some(vectors) = load::<V>(source, span) else { continue };
        for (register, vector) in registers.iter_mut().zip(vectors) {
            *register = _mm512_xor_si512(*register, vector);
        }
    }
    store(sum, span, registers);
}

/// The span of a symbol, zeroes where it has no bytes; `None` where it has none of the span at all.
/// A span of `V` vectors ends in its last one.
#[target_feature(enable = "gfni,avx512f,avx512bw")]
#[inline]
fn load<const V: usize>(symbol: &[u8], span: Span) -> Option<[__m512i; V]> {
    let left = symbol.len().checked_sub(span.at).filter(|&left| left > 0)?;
    let mut vectors = [_mm512_setzero_si512(); V];
    if left >= span.bytes {
        let last = mask_of(span.bytes - (V - 1) * VECTOR);
        for (index, vector) in vectors.iter_mut().enumerate() {
            // SAFETY: at + bytes is within the symbol, all vectors but the last lie within these bytes,
            // and of the last no byte is read that the mask does not have.
            unsafe {
                let from = symbol.as_ptr().add(span.at + index * VECTOR);
                *vector = if index + 1 < V {
                    _mm512_loadu_si512(from.cast())
                } else {
                    _mm512_maskz_loadu_epi8(last, from.cast())
                };
            }
        }
    } else {
        for (index, vector) in vectors.iter_mut().enumerate() {
            let mask = mask_of(left.saturating_sub(index * VECTOR));
            // The address of a vector behind the symbol's end is no pointer into it.
            let from = symbol.as_ptr().wrapping_add(span.at + index * VECTOR);
            // SAFETY: no byte is read that the mask does not have, and it has those of the symbol only.
            *vector = unsafe { _mm512_maskz_loadu_epi8(mask, from.cast()) };
        }
    }
    Some(vectors)
}

/// The span of a sum, which has all of it.
#[target_feature(enable = "gfni,avx512f,avx512bw")]
#[inline]
fn store<const V: usize>(sum: &mut [u8], span: Span, vectors: [__m512i; V]) {
    let sum = &mut sum[span.at..][..span.bytes];
    let last = mask_of(span.bytes - (V - 1) * VECTOR);
    for (index, vector) in vectors.into_iter().enumerate() {
        // SAFETY: all vectors but the last lie within the span, and of the last no byte is written that
        // the mask does not have.
        unsafe {
            let to = sum.as_mut_ptr().add(index * VECTOR);
            if index + 1 < V {
                _mm512_storeu_si512(to.cast(), vector);
            } else {
                _mm512_mask_storeu_epi8(to.cast(), last, vector);
            }
        }
    }
}
