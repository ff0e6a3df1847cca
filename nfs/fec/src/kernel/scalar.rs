//! The kernel for every processor: no multiplication at all.
//!
//! A coefficient is a sum of powers of 2, so a sum of products is Σ 2^b · (the sum of the sources whose
//! coefficient has bit b). By Horner's rule that is, for each bit from the highest on, a doubling of what
//! is there and then a few exclusive ors, on all bytes of a chunk at once: which the compiler makes
//! vectors of, whatever the processor has. A table of products would cost a look-up for each byte of each
//! product.
#![forbid(unsafe_code)]

use super::Old;

/// Bytes worked on at once: what stays in the registers of any processor of 64 bits.
const CHUNK: usize = 64;
/// Sources gone through at once, for which there are lists.
const SLAB: usize = 64;

// Not part of the choice of a kernel, which is to be short.
#[inline(never)]
pub fn run(coefficients: &[u8], sources: &[&[u8]], sums: &mut [&mut [u8]], old: Old) {
    for (row, sum) in sums.iter_mut().enumerate() {
        if old == Old::Lost {
            sum.fill(0);
        }
        let coefficients = &coefficients[row * sources.len()..][..sources.len()];
        for (coefficients, sources) in coefficients.chunks(SLAB).zip(sources.chunks(SLAB)) {
            let plan = Plan::new(coefficients);
            for (at, chunk) in sum.chunks_mut(CHUNK).enumerate() {
                plan.add(sources, at * CHUNK, chunk);
            }
        }
    }
}

/// For each bit, which sources' coefficients have it.
struct Plan {
    sources: [[u8; SLAB]; 8],
    counts: [usize; 8],
}

impl Plan {
    fn new(coefficients: &[u8]) -> Self {
        let mut plan = Self { sources: [[0; SLAB]; 8], counts: [0; 8] };
        for (source, coefficient) in (0..).zip(coefficients) {
            for bit in (0..8).filter(|bit| coefficient >> bit & 1 == 1) {
                plan.sources[bit][plan.counts[bit]] = source;
                plan.counts[bit] += 1;
            }
        }
        plan
    }

    /// Adds to the chunk that begins at byte `at`.
    fn add(&self, sources: &[&[u8]], at: usize, chunk: &mut [u8]) {
        let mut sum = [0; CHUNK];
        let bits = self.sources.iter().zip(self.counts).rev();
        // Nothing is to be doubled before there is anything.
        for (list, count) in bits.skip_while(|(_, count)| *count == 0) {
            double(&mut sum);
            for &source in &list[..count] {
                let source = sources[usize::from(source)];
                match source.get(at..).and_then(<[u8]>::first_chunk) {
                    Some(bytes) => add_to(&mut sum, bytes),
                    None => add_short(&mut sum, source.get(at..).unwrap_or(&[])),
                }
            }
        }
        chunk.iter_mut().zip(sum).for_each(|(to, from)| *to ^= from);
    }
}

fn double(bytes: &mut [u8; CHUNK]) {
    for byte in bytes {
        *byte = byte.wrapping_add(*byte) ^ if byte.cast_signed() < 0 { 0x1D } else { 0 };
    }
}

fn add_to(sum: &mut [u8; CHUNK], bytes: &[u8; CHUNK]) {
    sum.iter_mut().zip(bytes).for_each(|(to, from)| *to ^= from);
}

#[cold]
fn add_short(sum: &mut [u8; CHUNK], bytes: &[u8]) {
    sum.iter_mut().zip(bytes).for_each(|(to, from)| *to ^= from);
}
