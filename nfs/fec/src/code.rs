//! Systematic codes: k source symbols, m repair symbols, each a sum of all the sources by coefficients
//! of its own.
//!
//! A symbol is a packet; packets that are shorter than the longest of their block count as filled up
//! with zeroes, and so do sources that a short block does not have.
#![forbid(unsafe_code)]

use thiserror::Error;

use crate::gf;

/// Most source symbols of a block.
pub const K_MAX: usize = 64;
/// Most repair symbols of a block.
pub const M_MAX: usize = 16;

/// A code that does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CodeError {
    /// k is out of range.
    #[error("k = {0} source packets a block; expected 1 to {K_MAX}")]
    K(usize),
    /// m is out of range.
    #[error("m = {0} repair packets a block; expected 1 to {M_MAX}")]
    M(usize),
}

/// Which code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CodeId {
    /// One repair symbol, the sum of the sources (m = 1).
    Xor,
    /// Reed–Solomon over GF(2⁸), 0x11D; the generator is that of the crate `reed-solomon-erasure`: a
    /// Vandermonde matrix times the inverse of its upper square. Its repair rows depend on k alone.
    ReedSolomon,
}

/// A code's repair rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code {
    id: CodeId,
    k: usize,
    m: usize,
    /// m rows of k coefficients.
    rows: Vec<u8>,
}

impl Code {
    /// A code with k source and m repair symbols.
    ///
    /// # Errors
    /// [`CodeError`]; m of [`CodeId::Xor`] is 1.
    pub fn new(id: CodeId, k: usize, m: usize) -> Result<Self, CodeError> {
        if k == 0 || k > K_MAX {
            return Err(CodeError::K(k));
        }
        if m == 0 || m > M_MAX || (id == CodeId::Xor && m != 1) {
            return Err(CodeError::M(m));
        }
        let rows = match id {
            CodeId::Xor => vec![1; k],
            CodeId::ReedSolomon => repair_rows(k, m),
        };
        Ok(Self { id, k, m, rows })
    }

    /// Which code it is.
    #[must_use]
    pub fn id(&self) -> CodeId {
        self.id
    }

    /// Source symbols.
    #[must_use]
    pub fn k(&self) -> usize {
        self.k
    }

    /// Repair symbols.
    #[must_use]
    pub fn m(&self) -> usize {
        self.m
    }

    /// The k coefficients of repair symbol `row`, below m.
    #[must_use]
    pub fn row(&self, row: usize) -> &[u8] {
        &self.rows[row * self.k..][..self.k]
    }
}

fn repair_rows(k: usize, m: usize) -> Vec<u8> {
    let vandermonde = |row: usize, column: usize| gf::pow(row as u8, column);
    let top: Vec<u8> = (0..k * k).map(|at| vandermonde(at / k, at % k)).collect();
    let mut inverse = vec![0; k * k];
    let mut scratch = top;
    assert!(invert(&mut scratch, &mut inverse, k), "points of a Vandermonde matrix differ");
    let mut rows = vec![0; m * k];
    for row in 0..m {
        for column in 0..k {
            rows[row * k + column] = (0..k).fold(0, |sum, at| {
                sum ^ gf::mul(vandermonde(k + row, at), inverse[at * k + column])
            });
        }
    }
    rows
}

/// Inverts the n × n `matrix`, which it destroys, into `inverse`, by Gauss–Jordan elimination. False
/// when it has no inverse.
pub fn invert(matrix: &mut [u8], inverse: &mut [u8], n: usize) -> bool {
    for (at, place) in inverse[..n * n].iter_mut().enumerate() {
        *place = u8::from(at / n == at % n);
    }
    for pivot in 0..n {
        let Some(found) = (pivot..n).find(|row| matrix[row * n + pivot] != 0) else { return false };
        for column in 0..n {
            matrix.swap(pivot * n + column, found * n + column);
            inverse.swap(pivot * n + column, found * n + column);
        }
        let scale = gf::inv(matrix[pivot * n + pivot]);
        for column in 0..n {
            matrix[pivot * n + column] = gf::mul(matrix[pivot * n + column], scale);
            inverse[pivot * n + column] = gf::mul(inverse[pivot * n + column], scale);
        }
        for row in (0..n).filter(|row| *row != pivot) {
            let factor = matrix[row * n + pivot];
            for column in 0..n {
                matrix[row * n + column] ^= gf::mul(factor, matrix[pivot * n + column]);
                inverse[row * n + column] ^= gf::mul(factor, inverse[pivot * n + column]);
            }
        }
    }
    true
}
