//! Kernels for x86-64 with vectors; the only `unsafe` of this crate.
//!
//! A kernel is called through a value that only detection makes, which is what its `unsafe` rests on.

mod avx2;
mod avx512;

use super::Old;

macro_rules! kernel {
    ($(#[$doc:meta])* $name:ident, $run:path, $($feature:tt),+) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name {
            /// No other module can make one.
            _detected: (),
        }

        impl $name {
            /// The proof, where the processor and the operating system have what it needs.
            pub fn detect() -> Option<Self> {
                ($(is_x86_feature_detected!($feature))&&+).then_some(Self { _detected: () })
            }

            /// Adds up; there are as many coefficients as sources times sums.
            pub fn run(self, coefficients: &[u8], sources: &[&[u8]], sums: &mut [&mut [u8]], old: Old) {
                // SAFETY: a value of this type exists only where its target features were detected.
                unsafe { $run(coefficients, sources, sums, old) }
            }
        }
    };
}

kernel!(
    /// GF2P8AFFINEQB on 64 bytes.
    GfniAvx512, avx512::run, "gfni", "avx512f", "avx512bw"
);
kernel!(
    /// GF2P8AFFINEQB on 32 bytes.
    GfniAvx2, avx2::gfni::run, "gfni", "avx2"
);
kernel!(
    /// PSHUFB on 32 bytes.
    Avx2, avx2::shuffle::run, "avx2"
);
