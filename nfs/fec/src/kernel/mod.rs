//! Kernels: sums of symbols with coefficients, which is all that coding and decoding are.

use crate::gf;

/// One way to do the sums, chosen for the processor at run time.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    name: &'static str,
}

impl Kernel {
    /// The fastest that this processor can run.
    #[must_use]
    pub fn best() -> Self {
        Self::scalar()
    }

    /// The one that every processor can run.
    #[must_use]
    pub fn scalar() -> Self {
        Self { name: "scalar" }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Adds to each of `sums` the `sources`, each times its coefficient:
    /// `sums[r] += Σ coefficients[r · sources.len() + s] · sources[s]`.
    ///
    /// A source that is shorter than a sum counts as filled up with zeroes; of one that is longer the
    /// rest is not used.
    ///
    /// # Panics
    /// When there are fewer coefficients than `sums.len() · sources.len()`.
    pub fn accumulate(&self, coefficients: &[u8], sources: &[&[u8]], sums: &mut [&mut [u8]]) {
        let rows = coefficients.chunks_exact(sources.len().max(1));
        assert!(sources.is_empty() || rows.len() >= sums.len(), "too few coefficients");
        for (sum, row) in sums.iter_mut().zip(rows) {
            for (source, &coefficient) in sources.iter().zip(row) {
                for (to, &from) in sum.iter_mut().zip(*source) {
                    *to ^= gf::mul(coefficient, from);
                }
            }
        }
    }
}
