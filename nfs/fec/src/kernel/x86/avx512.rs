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
/// Sources, with one sum or two, whose matrices and addresses stay in registers: 2 · 10 matrices, 2 · 2 sums
/// and 2 vectors of a source fit the 32, and 10 + 2 addresses those that are left of the 16.
const HELD: usize = 10;
/// Of more sources than this, looking at all of them beforehand was found to cost more than it saves.
const MANY: usize = 32;
/// Stands in for a source that has ended.
static ZEROES: [u8; TILE] = [0; TILE];

#[target_feature(enable = "gfni,avx512f,avx512bw")]
pub fn run(coefficients: &[u8], sources: &[&[u8]], sums: &mut [&mut [u8]], old: Old) {
    if coefficients.iter().all(|&coefficient| coefficient <= 1) {
        run_xor(coefficients, sources, sums, old);
    } else if !run_held(coefficients, sources, sums, old)
        && !run_whole(coefficients, sources, sums, old)
    {
        run_products(coefficients, sources, sums, old);
    }
}

/// What most blocks of small codes are: so few whole sources that all their matrices are held. Then nothing
/// but the packets is read, each by a load of its own from begin to end. False, and nothing is done, where it
/// is otherwise.
#[target_feature(enable = "gfni,avx512f,avx512bw")]
#[inline]
fn run_held(coefficients: &[u8], sources: &[&[u8]], sums: &mut [&mut [u8]], old: Old) -> bool {
    match sums {
        _ if sources.len() > HELD => false,
        [sum] => multiply_held(coefficients, sources, [sum], old),
        [one, other] if one.len() == other.len() => {
            multiply_held(coefficients, sources, [one, other], old)
        }
        _ => false,
    }
}

#[target_feature(enable = "gfni,avx512f,avx512bw")]
#[inline(never)]
fn multiply_held<const R: usize>(
    coefficients: &[u8],
    sources: &[&[u8]],
    sums: [&mut [u8]; R],
    old: Old,
) -> bool {
    match sources.len() {
        1 => multiply_exactly::<R, 1>(coefficients, sources, sums, old),
        2 => multiply_exactly::<R, 2>(coefficients, sources, sums, old),
        3 => multiply_exactly::<R, 3>(coefficients, sources, sums, old),
        4 => multiply_exactly::<R, 4>(coefficients, sources, sums, old),
        5 => multiply_exactly::<R, 5>(coefficients, sources, sums, old),
        6 => multiply_exactly::<R, 6>(coefficients, sources, sums, old),
        7 => multiply_exactly::<R, 7>(coefficients, sources, sums, old),
        8 => multiply_exactly::<R, 8>(coefficients, sources, sums, old),
        9 => multiply_exactly::<R, 9>(coefficients, sources, sums, old),
        HELD => multiply_exactly::<R, HELD>(coefficients, sources, sums, old),
        _ => false,
    }
}

/// `R` sums, equally long, of `K` sources. False, and nothing is done, when one of these is shorter.
#[target_feature(enable = "gfni,avx512f,avx512bw")]
#[inline]
fn multiply_exactly<const R: usize, const K: usize>(
    coefficients: &[u8],
    sources: &[&[u8]],
    sums: [&mut [u8]; R],
    old: Old,
) -> bool {
    let (Some(bytes), Some(sources)) =
        (sums.first().map(|sum| sum.len()), sources.first_chunk::<K>())
    else {
        return false;
    };
    let mut from = [std::ptr::null(); K];
    for (from, source) in from.iter_mut().zip(sources) {
        if source.len() < bytes {
            return false;
        }
        *from = source.as_ptr();
    }
    let mut matrices = [[_mm512_setzero_si512(); K]; R];
    for (row, matrices) in matrices.iter_mut().enumerate() {
        for (place, &coefficient) in matrices.iter_mut().zip(&coefficients[row * K..][..K]) {
            *place = matrix(coefficient);
        }
    }
    let mut to = [std::ptr::null_mut(); R];
    for (to, sum) in to.iter_mut().zip(sums) {
        assert!(sum.len() == bytes, "sums of {bytes} and {} bytes", sum.len());
        *to = sum.as_mut_ptr();
    }
    let step = Step { from, matrices, to, is_kept: old == Old::Kept };
    let mut done = 0;
    while bytes - done >= 2 * VECTOR {
        // SAFETY: so many bytes are left of all sources and sums.
        unsafe { step.run::<2>(done, !0) };
        done += 2 * VECTOR;
    }
    while done < bytes {
        let count = (bytes - done).min(VECTOR);
        // SAFETY: so many bytes as the mask has are left of all sources and sums.
        unsafe { step.run::<1>(done, mask_of(count, 1)) };
        done += count;
    }
    true
}

/// What stays in registers.
struct Step<const R: usize, const K: usize> {
    from: [*const u8; K],
    matrices: [[__m512i; K]; R],
    to: [*mut u8; R],
    is_kept: bool,
}

impl<const R: usize, const K: usize> Step<R, K> {
    /// `V` vectors, which begin `done` bytes after the begin of all.
    ///
    /// # Safety
    /// All sources and sums have these vectors, of the last one the bytes of the mask `last`.
    #[target_feature(enable = "gfni,avx512f,avx512bw")]
    #[inline]
    unsafe fn run<const V: usize>(&self, done: usize, last: __mmask64) {
        let mut registers = [[_mm512_setzero_si512(); V]; R];
        if self.is_kept {
            for (registers, to) in registers.iter_mut().zip(self.to) {
                // SAFETY: the caller's word is that the sums have these bytes.
                *registers = unsafe { load_at(to.add(done), last) };
            }
        }
        for (index, from) in self.from.iter().enumerate() {
            // SAFETY: the caller's word is that the sources have these bytes.
            let vectors: [__m512i; V] = unsafe { load_at(from.add(done), last) };
            for (registers, matrices) in registers.iter_mut().zip(&self.matrices) {
                for (register, vector) in registers.iter_mut().zip(vectors) {
                    let product = _mm512_gf2p8affine_epi64_epi8::<0>(vector, matrices[index]);
                    *register = _mm512_xor_si512(*register, product);
                }
            }
        }
        for (registers, to) in registers.into_iter().zip(self.to) {
            // SAFETY: the caller's word is that the sums have these bytes; they were borrowed to be written.
            unsafe { store_at(to.add(done), registers, last) };
        }
    }
}

#[target_feature(enable = "gfni,avx512f,avx512bw")]
#[inline(never)]
fn run_xor(coefficients: &[u8], sources: &[&[u8]], sums: &mut [&mut [u8]], old: Old) {
    let run = |job: &Job<'_>, sums: &mut [&mut [u8]]| add_up(job, sums[0]);
    tiles::each::<TILE, 1>(coefficients, sources, sums, old, Ends::Masked, run);
}

/// Whole sources and few sums, which are one job: of short packets, finding that out as [`tiles`] does takes 3 %
/// of the time. False, and nothing is done, where it is otherwise.
#[target_feature(enable = "gfni,avx512f,avx512bw")]
#[inline]
fn run_whole(coefficients: &[u8], sources: &[&[u8]], sums: &mut [&mut [u8]], old: Old) -> bool {
    let Some(bytes) = sums.first().map(|sum| sum.len()) else { return false };
    let is_odd = sums.len() > HEIGHT
        || sources.len() > MANY
        || sums.iter().any(|sum| sum.len() != bytes)
        || sources.iter().any(|source| source.len() < bytes);
    if is_odd {
        return false;
    }
    let (stride, goes_on) = (sources.len(), false);
    let job = Job { coefficients, stride, sources, from: 0, at: 0, bytes, old, goes_on };
    let done = run_job(&job, sums);
    debug_assert_eq!(done, bytes, "no source is too short");
    true
}

#[target_feature(enable = "gfni,avx512f,avx512bw")]
#[inline]
fn run_job(job: &Job<'_>, sums: &mut [&mut [u8]]) -> usize {
    match sums.len() {
        1 => multiply_few::<1>(job, sums),
        2 => multiply_few::<2>(job, sums),
        3 => multiply_few::<3>(job, sums),
        4 => multiply::<4>(job, sums),
        _ => multiply::<HEIGHT>(job, sums),
    }
}

#[target_feature(enable = "gfni,avx512f,avx512bw")]
#[inline(never)]
fn run_products(coefficients: &[u8], sources: &[&[u8]], sums: &mut [&mut [u8]], old: Old) {
    let run = |job: &Job<'_>, sums: &mut [&mut [u8]]| run_job(job, sums);
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
    // SAFETY: all vectors but the last lie within the bytes, and the mask has those that are left.
    unsafe { load_at(bytes.as_ptr(), last) }
}

/// `V` vectors.
///
/// # Safety
/// There are so many bytes to read, of the last vector those of the mask `last`.
#[target_feature(enable = "gfni,avx512f,avx512bw")]
#[inline]
unsafe fn load_at<const V: usize>(from: *const u8, last: __mmask64) -> [__m512i; V] {
    let mut vectors = [_mm512_setzero_si512(); V];
    for (index, vector) in vectors.iter_mut().enumerate() {
        // SAFETY: the caller's word is that there are so many bytes; a masked load reads none but its mask's.
        *vector = unsafe {
            let from = from.add(index * VECTOR);
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
    // SAFETY: all vectors but the last lie within the bytes, and the mask has those that are left.
    unsafe { store_at(bytes.as_mut_ptr(), vectors, last) };
}

/// The counterpart of [`load_at`].
///
/// # Safety
/// As there, and the bytes may be written.
#[target_feature(enable = "gfni,avx512f,avx512bw")]
#[inline]
unsafe fn store_at<const V: usize>(to: *mut u8, vectors: [__m512i; V], last: __mmask64) {
    for (index, vector) in vectors.into_iter().enumerate() {
        // SAFETY: the caller's word is that there are so many bytes; a masked store writes none but its mask's.
        unsafe {
            let to = to.add(index * VECTOR);
            if index + 1 < V {
                _mm512_storeu_si512(to.cast(), vector);
            } else {
                _mm512_mask_storeu_epi8(to.cast(), last, vector);
            }
        }
    }
}
