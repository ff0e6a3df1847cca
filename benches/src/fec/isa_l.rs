//! Intel's ISA-L, the fastest other library for these codes: version 2.32, which chooses GFNI and AVX-512
//! at run time as we do. Compiled in with the feature `isa-l` (Debian's has no GFNI yet).
//!
//! `unsafe` because its functions take pointers.

use std::marker::PhantomData;

use super::blocks::Block;
use crate::data_path::Trouble;

/// Tables that ISA-L makes of coefficients before it codes.
#[derive(Debug)]
pub struct Tables {
    #[cfg_attr(not(feature = "isa-l"), allow(dead_code))]
    tables: Vec<u8>,
    #[cfg_attr(not(feature = "isa-l"), allow(dead_code))]
    k: usize,
    #[cfg_attr(not(feature = "isa-l"), allow(dead_code))]
    rows: usize,
}

/// A block's symbols as ISA-L takes them, made before it is timed.
#[derive(Debug)]
pub struct Pointers<'a> {
    #[cfg_attr(not(feature = "isa-l"), allow(dead_code))]
    symbols: Vec<*mut u8>,
    #[cfg_attr(not(feature = "isa-l"), allow(dead_code))]
    results: Vec<*mut u8>,
    #[cfg_attr(not(feature = "isa-l"), allow(dead_code))]
    bytes: usize,
    block: PhantomData<&'a mut [u8]>,
}

impl<'a> Pointers<'a> {
    /// Of all symbols of a block, which are equally long.
    ///
    /// # Panics
    /// When they are not.
    #[must_use]
    pub fn new(mut block: Block<'a>) -> Self {
        let bytes = block.symbols[0].len();
        assert!(block.symbols.iter().all(|symbol| symbol.len() == bytes), "one length");
        assert!(block.results.iter().all(|result| result.len() == bytes), "one length");
        Self {
            symbols: block.symbols.iter().map(|symbol| symbol.as_ptr().cast_mut()).collect(),
            results: block.results.iter_mut().map(|result| result.as_mut_ptr()).collect(),
            bytes,
            block: PhantomData,
        }
    }
}

/// That it was compiled in.
///
/// # Errors
/// [`Trouble::NotAvailable`] when not.
pub fn need() -> Result<(), Trouble> {
    if cfg!(feature = "isa-l") {
        return Ok(());
    }
    let advice = "built without ISA-L: ./scripts/setup --tests, then cargo build --release \
                  -p millrace-benches --features isa-l";
    Err(Trouble::NotAvailable(advice.into()))
}

#[cfg(feature = "isa-l")]
impl Tables {
    /// Of rows of k coefficients.
    ///
    /// # Panics
    /// When these are no whole rows.
    #[must_use]
    pub fn new(k: usize, coefficients: &[u8]) -> Self {
        let rows = coefficients.len() / k;
        assert_eq!(coefficients.len(), rows * k, "whole rows");
        let mut coefficients = coefficients.to_vec();
        let mut tables = vec![0; 32 * k * rows];
        let (columns, lines) = (number(k), number(rows));
        // SAFETY: it reads k · rows coefficients and writes 32 bytes for each (erasure_code.h).
        unsafe {
            erasure_isa_l_sys::ec_init_tables(
                columns,
                lines,
                coefficients.as_mut_ptr(),
                tables.as_mut_ptr(),
            );
        }
        Self { tables, k, rows }
    }

    /// As ISA-L's examples decode: the k rows of the code's k + m that came are inverted, and the rows
    /// of the inverse that belong to what is missing are the coefficients. `None` if there is no inverse.
    #[must_use]
    pub fn decoding(k: usize, came: &[u8], missing: &[usize]) -> Option<Self> {
        let mut came = came[..k * k].to_vec();
        let mut inverse = vec![0; k * k];
        // SAFETY: it reads (and destroys) k · k bytes and writes as many (erasure_code.h).
        let failed = unsafe {
            erasure_isa_l_sys::gf_invert_matrix(came.as_mut_ptr(), inverse.as_mut_ptr(), number(k))
        };
        let rows: Vec<u8> =
            missing.iter().flat_map(|&source| &inverse[source * k..][..k]).copied().collect();
        (failed == 0).then(|| Self::new(k, &rows))
    }

    /// Codes a block.
    ///
    /// # Panics
    /// When the block has other counts than the coefficients.
    pub fn run(&self, block: &mut Pointers<'_>) {
        assert!(block.symbols.len() == self.k && block.results.len() == self.rows);
        // SAFETY: the tables are those of k · rows coefficients, all k symbols and all results have
        // `bytes` bytes, and the value `block` stands for the only reference to the results.
        unsafe {
            erasure_isa_l_sys::ec_encode_data(
                number(block.bytes),
                number(self.k),
                number(self.rows),
                self.tables.as_ptr().cast_mut(),
                block.symbols.as_mut_ptr(),
                block.results.as_mut_ptr(),
            );
        }
    }
}

#[cfg(feature = "isa-l")]
fn number(count: usize) -> std::ffi::c_int {
    count.try_into().expect("counts of a benchmark fit an int")
}

/// Without the feature nobody gets here, because of [`need`].
#[cfg(not(feature = "isa-l"))]
#[allow(clippy::unused_self)]
impl Tables {
    /// Empty.
    #[must_use]
    pub fn new(k: usize, _: &[u8]) -> Self {
        Self { tables: Vec::new(), k, rows: 0 }
    }

    /// None.
    #[must_use]
    pub fn decoding(_: usize, _: &[u8], _: &[usize]) -> Option<Self> {
        None
    }

    /// Does nothing.
    pub fn run(&self, _: &mut Pointers<'_>) {}
}
