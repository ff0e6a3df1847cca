//! Kernels: sums of symbols with coefficients, which is all that coding and decoding are.
//!
//! | module | instructions | product of a vector by a coefficient |
//! |---|---|---|
//! | `x86::avx512` | GFNI, AVX-512 | one GF2P8AFFINEQB of 64 bytes by the coefficient's 8 × 8 bit matrix |
//! | `x86::avx2` | GFNI, AVX2 | the same of 32 bytes |
//! | `x86::avx2` | AVX2 | two PSHUFB, one a nibble, of 32 bytes |
//! | `scalar` | any | none: sums by bits of the coefficients, and doublings of those |
//!
//! All do the same in the same order of things: a tile of a few vectors of several sums is kept in
//! registers, the sources are gone through, and each vector of a source is loaded once for all of these
//! sums. A tile of all sources fits the first-level cache, from which further sums are served. What was
//! measured and why it is so: `KERNELS.md`.
#![deny(unsafe_code)]

mod scalar;
#[cfg(target_arch = "x86_64")]
mod tables;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod tiles;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod x86;

/// One way to do the sums, chosen for the processor at run time.
#[derive(Clone, Copy, Debug)]
pub struct Kernel(Choice);

/// Each but the scalar one holds the proof that the processor can run it.
#[derive(Clone, Copy, Debug)]
enum Choice {
    #[cfg(target_arch = "x86_64")]
    GfniAvx512(x86::GfniAvx512),
    #[cfg(target_arch = "x86_64")]
    GfniAvx2(x86::GfniAvx2),
    #[cfg(target_arch = "x86_64")]
    Avx2(x86::Avx2),
    Scalar,
}

/// What becomes of the old contents of the sums.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Old {
    /// They are added to.
    Kept,
    /// They are overwritten.
    Lost,
}

impl Kernel {
    /// The fastest that this processor can run.
    #[must_use]
    pub fn best() -> Self {
        Self::available().next().unwrap_or(Self(Choice::Scalar))
    }

    /// The one that every processor can run.
    #[must_use]
    pub fn scalar() -> Self {
        Self(Choice::Scalar)
    }

    /// All that this processor can run, the fastest first.
    pub fn available() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let fast = [
            x86::GfniAvx512::detect().map(Choice::GfniAvx512),
            x86::GfniAvx2::detect().map(Choice::GfniAvx2),
            x86::Avx2::detect().map(Choice::Avx2),
        ];
        #[cfg(not(target_arch = "x86_64"))]
        let fast: [Option<Choice>; 0] = [];
        fast.into_iter().flatten().chain([Choice::Scalar]).map(Self)
    }

    /// Its name: `gfni-avx512`, `gfni-avx2`, `avx2` or `scalar`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Choice::GfniAvx512(_) => "gfni-avx512",
            #[cfg(target_arch = "x86_64")]
            Choice::GfniAvx2(_) => "gfni-avx2",
            #[cfg(target_arch = "x86_64")]
            Choice::Avx2(_) => "avx2",
            Choice::Scalar => "scalar",
        }
    }

    /// Adds to each of `sums` the `sources`, each times its coefficient:
    /// `sums[r] += Σ coefficients[r · sources.len() + s] · sources[s]`.
    ///
    /// A source that is shorter than a sum counts as filled up with zeroes; of one that is longer the
    /// rest is not used. Fastest where all sums are equally long.
    ///
    /// # Panics
    /// When there are fewer coefficients than `sums.len() · sources.len()`.
    pub fn accumulate(&self, coefficients: &[u8], sources: &[&[u8]], sums: &mut [&mut [u8]]) {
        self.run(coefficients, sources, sums, Old::Kept);
    }

    /// As [`Kernel::accumulate`], into sums whose old contents do not matter:
    /// `sums[r] = Σ coefficients[r · sources.len() + s] · sources[s]`.
    ///
    /// # Panics
    /// When there are fewer coefficients than `sums.len() · sources.len()`.
    pub fn assign(&self, coefficients: &[u8], sources: &[&[u8]], sums: &mut [&mut [u8]]) {
        self.run(coefficients, sources, sums, Old::Lost);
    }

    fn run(&self, coefficients: &[u8], sources: &[&[u8]], sums: &mut [&mut [u8]], old: Old) {
        let Some(coefficients) = coefficients.get(..sources.len() * sums.len()) else {
            panic!(
                "{} coefficients for {} sources and {} sums",
                coefficients.len(),
                sources.len(),
                sums.len()
            );
        };
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Choice::GfniAvx512(kernel) => kernel.run(coefficients, sources, sums, old),
            #[cfg(target_arch = "x86_64")]
            Choice::GfniAvx2(kernel) => kernel.run(coefficients, sources, sums, old),
            #[cfg(target_arch = "x86_64")]
            Choice::Avx2(kernel) => kernel.run(coefficients, sources, sums, old),
            Choice::Scalar => scalar::run(coefficients, sources, sums, old),
        }
    }
}
