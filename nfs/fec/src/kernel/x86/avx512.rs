//! GFNI and AVX-512: products of 64 bytes by one GF2P8AFFINEQB each.

use std::arch::x86_64::{
    __m512i, __mmask64, _MM_HINT_T0, _mm_prefetch, _mm512_gf2p8affine_epi64_epi8,
    _mm512_loadu_si512, _mm512_mask_storeu_epi8, _mm512_maskz_loadu_epi8, _mm512_set1_epi64,
    _mm512_setzero_si512, _mm512_storeu_si512, _mm512_ternarylogic_epi64, _mm512_xor_si512,
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
const HEIGHT: usize = 5;
/// Vectors of a tile of at most three sums: 3 · 8 sums fit the registers, and so long a run over each
/// source was not found to gain from prefetching.
const LONG: usize = 8;
/// Stands in for a source that has ended.
static ZEROES: [u8; TILE] = [0; TILE];

#[target_feature(enable = "gfni,avx512f,avx512bw")]
pub fn run(coefficients: &[u8], sources: &[&[u8]], sums: &mut [&mut [u8]], old: Old) {
    if coefficients.iter().all(|&coefficient| coefficient <= 1) {
        run_xor(coefficients, sources, sums, old);
    } else {
        run_products(coefficients, sources, sums, old);
    }
}

#[target_feature(enable = "gfni,avx512f,avx512bw")]
#[inline(never)]
fn run_xor(coefficients: &[u8], sources: &[&[u8]], sums: &mut [&mut [u8]], old: Old) {
    let run = |job: &Job<'_>, sums: &mut [&mut [u8]]| add_up(job, sums[0]);
    tiles::each::<TILE, 1>(coefficients, sources, sums, old, Ends::Masked, run);
}

#[target_feature(enable = "gfni,avx512f,avx512bw")]
#[inline(never)]
fn run_products(coefficients: &[u8], sources: &[&[u8]], sums: &mut [&mut [u8]], old: Old) {
    let run = |job: &Job<'_>, sums: &mut [&mut [u8]]| match sums.len() {
        1 => multiply_few::<1>(job, sums),
        2 => multiply_few::<2>(job, sums),
        3 => multiply_few::<3>(job, sums),
        4 => multiply::<4>(job, sums),
        _ => multiply::<HEIGHT>(job, sums),
    };
    tiles::each::<TILE, HEIGHT>(coefficients, sources, sums, old, Ends::Masked, run);
}

/// At most three sums: in longer tiles, and source by source. Eight products of each matrix keep the
/// multipliers busy without pairs, which would cost instructions. Not part of its caller, so that its loops
/// have the registers alone.
#[target_feature(enable = "gfni,avx512f,avx512bw")]
#[inline(never)]
fn multiply_few<const R: usize>(job: &Job<'_>, sums: &mut [&mut [u8]]) -> usize {
    let rows: [&[u8]; R] = job.rows();
    let mut done = 0;
    loop {
        let bytes = (job.bytes - done).min(LONG * VECTOR);
        let whole = match bytes.div_ceil(VECTOR) {
            0 => return done,
            1 => multiply_long::<R, 1>(job, &rows, sums, done, bytes),
            2 => multiply_long::<R, 2>(job, &rows, sums, done, bytes),
            3 => multiply_long::<R, 3>(job, &rows, sums, done, bytes),
            4 => multiply_long::<R, 4>(job, &rows, sums, done, bytes),
            5 => multiply_long::<R, 5>(job, &rows, sums, done, bytes),
            6 => multiply_long::<R, 6>(job, &rows, sums, done, bytes),
            7 => multiply_long::<R, 7>(job, &rows, sums, done, bytes),
            _ => multiply_long::<R, LONG>(job, &rows, sums, done, bytes),
        };
        if !whole {
            return done;
        }
        done += bytes;
    }
}

/// `V` vectors of each, which have `bytes` bytes. False, and nothing is done, when a source has less.
#[target_feature(enable = "gfni,avx512f,avx512bw")]
#[inline]
fn multiply_long<const R: usize, const V: usize>(
    job: &Job<'_>,
    rows: &[&[u8]; R],
    sums: &mut [&mut [u8]],
    done: usize,
    bytes: usize,
) -> bool {
    let last = mask_of(bytes, V);
    let (from, at) = (job.from + done, job.at + done);
    let mut registers = [[_mm512_setzero_si512(); V]; R];
    if job.old == Old::Kept {
        for (registers, sum) in registers.iter_mut().zip(&*sums) {
            *registers = load(&sum[at..at + bytes], last);
        }
    }
    let span = from..from + bytes;
    let rows = *rows;
    for (index, source) in job.sources.iter().enumerate() {
        match source.get(span.clone()) {
            Some(source) => add_product(&mut registers, &rows, index, load(source, last)),
            None if source.is_empty() => {}
            None => return false,
        }
    }
    for (registers, sum) in registers.into_iter().zip(&mut *sums) {
        store(&mut sum[at..at + bytes], registers, last);
    }
    true
}

/// `R` sums. Not part of its caller, so that its loops have the registers alone.
#[target_feature(enable = "gfni,avx512f,avx512bw")]
#[inline(never)]
fn multiply<const R: usize>(job: &Job<'_>, sums: &mut [&mut [u8]]) -> usize {
    let rows: [&[u8]; R] = job.rows();
    let mut done = 0;
    while job.bytes - done >= TILE {
        if !multiply_tile::<R, WIDTH>(job, &rows, sums, done, TILE) {
            return done;
        }
        done += TILE;
    }
    let left = job.bytes - done;
    let whole = match left.div_ceil(VECTOR) {
        0 => true,
        1 => multiply_tile::<R, 1>(job, &rows, sums, done, left),
        2 => multiply_tile::<R, 2>(job, &rows, sums, done, left),
        3 => multiply_tile::<R, 3>(job, &rows, sums, done, left),
        _ => multiply_tile::<R, WIDTH>(job, &rows, sums, done, left),
    };
    if whole { job.bytes } else { done }
}

/// `V` vectors of each, which have `bytes` bytes. False, and nothing is done, when a source has less.
#[target_feature(enable = "gfni,avx512f,avx512bw")]
#[inline]
fn multiply_tile<const R: usize, const V: usize>(
    job: &Job<'_>,
    rows: &[&[u8]; R],
    sums: &mut [&mut [u8]],
    done: usize,
    bytes: usize,
) -> bool {
    let last = mask_of(bytes, V);
    let (from, at) = (job.from + done, job.at + done);
    let mut registers = [[_mm512_setzero_si512(); V]; R];
    if job.old == Old::Kept {
        for (registers, sum) in registers.iter_mut().zip(&*sums) {
            *registers = load(&sum[at..at + bytes], last);
        }
    }
    let span = from..from + bytes;
    let ahead = job.goes_on || job.bytes - done > bytes;
    let (pairs, single) = job.sources.as_chunks::<2>();
    for (index, [first, second]) in pairs.iter().enumerate() {
        let (first, second) = match (first.get(span.clone()), second.get(span.clone())) {
            (Some(first), Some(second)) => (first, second),
            (None, None) if first.is_empty() && second.is_empty() => continue,
            (Some(first), None) if second.is_empty() => (first, &ZEROES[..bytes]),
            (None, Some(second)) if first.is_empty() => (&ZEROES[..bytes], second),
            _ => return false,
        };
        if V == WIDTH && ahead {
            prefetch(first, bytes);
            prefetch(second, bytes);
        }
        add_products(&mut registers, rows, 2 * index, load(first, last), load(second, last));
    }
    if let [source] = single {
        match source.get(span) {
            Some(source) => {
                add_product(&mut registers, rows, 2 * pairs.len(), load(source, last));
            }
            None if source.is_empty() => {}
            None => return false,
        }
    }
    for (registers, sum) in registers.into_iter().zip(&mut *sums) {
        store(&mut sum[at..at + bytes], registers, last);
    }
    true
}

/// Asks for the tile behind one of `bytes` bytes, which comes next: so many streams at once are more than
/// processors find out by themselves.
#[inline]
fn prefetch(tile: &[u8], bytes: usize) {
    for line in (0..TILE).step_by(VECTOR) {
        // SAFETY: a prefetch reads nothing, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(tile.as_ptr().wrapping_add(bytes + line).cast()) };
    }
}

/// Adds two sources, the first of which is at `index`, times their coefficients in each row.
#[target_feature(enable = "gfni,avx512f,avx512bw")]
#[inline]
fn add_products<const R: usize, const V: usize>(
    registers: &mut [[__m512i; V]; R],
    rows: &[&[u8]; R],
    index: usize,
    first: [__m512i; V],
    second: [__m512i; V],
) {
    for (registers, row) in registers.iter_mut().zip(rows) {
        debug_assert!(index + 1 < row.len());
        // SAFETY: a row has as many coefficients as there are sources.
        let pair = unsafe { row.as_ptr().add(index).cast::<u16>().read_unaligned() };
        let [one, other] = [matrix(pair as u8), matrix((pair >> 8) as u8)];
        for ((register, first), second) in registers.iter_mut().zip(first).zip(second) {
            let first = _mm512_gf2p8affine_epi64_epi8::<0>(first, one);
            let second = _mm512_gf2p8affine_epi64_epi8::<0>(second, other);
            *register = _mm512_ternarylogic_epi64::<0x96>(*register, first, second);
        }
    }
}

/// The same of one source; vector by vector, so that they are loaded in the order in which they lie.
#[target_feature(enable = "gfni,avx512f,avx512bw")]
#[inline]
fn add_product<const R: usize, const V: usize>(
    registers: &mut [[__m512i; V]; R],
    rows: &[&[u8]; R],
    index: usize,
    source: [__m512i; V],
) {
    let mut matrices = [_mm512_setzero_si512(); R];
    for (place, row) in matrices.iter_mut().zip(rows) {
        debug_assert!(index < row.len());
        // SAFETY: a row has as many coefficients as there are sources.
        *place = matrix(unsafe { *row.get_unchecked(index) });
    }
    for (at, vector) in source.into_iter().enumerate() {
        for (registers, matrix) in registers.iter_mut().zip(matrices) {
            let product = _mm512_gf2p8affine_epi64_epi8::<0>(vector, matrix);
            registers[at] = _mm512_xor_si512(registers[at], product);
        }
    }
}

#[target_feature(enable = "gfni,avx512f,avx512bw")]
#[inline]
fn matrix(coefficient: u8) -> __m512i {
    _mm512_set1_epi64(MATRICES[usize::from(coefficient)].cast_signed())
}

/// One sum of sources whose coefficients are 0 or 1.
#[target_feature(enable = "gfni,avx512f,avx512bw")]
#[inline(never)]
fn add_up(job: &Job<'_>, sum: &mut [u8]) -> usize {
    let mut done = 0;
    while job.bytes - done >= TILE {
        if !add_up_tile::<WIDTH>(job, sum, done, TILE) {
            return done;
        }
        done += TILE;
    }
    let left = job.bytes - done;
    let whole = match left.div_ceil(VECTOR) {
        0 => true,
        1 => add_up_tile::<1>(job, sum, done, left),
        2 => add_up_tile::<2>(job, sum, done, left),
        3 => add_up_tile::<3>(job, sum, done, left),
        _ => add_up_tile::<WIDTH>(job, sum, done, left),
    };
    if whole { job.bytes } else { done }
}

/// `V` vectors of it, which have `bytes` bytes. False, and nothing is done, when a source has less.
#[target_feature(enable = "gfni,avx512f,avx512bw")]
#[inline]
fn add_up_tile<const V: usize>(job: &Job<'_>, sum: &mut [u8], done: usize, bytes: usize) -> bool {
    let last = mask_of(bytes, V);
    let (from, at) = (job.from + done, job.at + done);
    let [row] = job.rows();
    let mut registers = [_mm512_setzero_si512(); V];
    if job.old == Old::Kept {
        registers = load(&sum[at..at + bytes], last);
    }
    for (source, &coefficient) in job.sources.iter().zip(row) {
        if source.is_empty() {
            continue;
        }
        // Whatever the coefficient: of one tile either all sums are done or none.
        let Some(source) = source.get(from..from + bytes) else { return false };
        if coefficient == 0 {
            continue;
        }
        let vectors: [__m512i; V] = load(source, last);
        for (register, vector) in registers.iter_mut().zip(vectors) {
            *register = _mm512_xor_si512(*register, vector);
        }
    }
    store(&mut sum[at..at + bytes], registers, last);
    true
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
