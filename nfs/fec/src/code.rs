//! Systematic codes: k source symbols, m repair symbols, each a sum of all the sources by coefficients
//! of its own.
//!
//! A symbol is a packet; packets that are shorter than the longest of their block count as filled up
//! with zeroes, and so do sources that a short block does not have.
//!
//! **Reed–Solomon.** `reed-solomon-erasure`, and with it all who took over Backblaze's generator,
//! multiply a Vandermonde matrix by the inverse of its upper square. That is evaluation: there is one
//! polynomial of a degree below k that has the k sources as its values at the points 0, 1, … k − 1, and
//! repair symbol r is its value at the point k + r. So no matrix is needed. Lagrange's formula gives the
//! coefficient of source j in repair r:
//!
//! ```text
//!            Π (x − i)   over sources i               x = k + r
//! ─────────────────────────────────────────────
//!  (x − j) ·  Π (j − i)   over sources i other than j
//! ```
//!
//! and, with any k known points in the place of the sources, all that [`solve`](Code::solve) needs. In
//! this field minus is plus is exclusive or; products are sums of logarithms.
#![forbid(unsafe_code)]

use std::fmt;

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
    /// [`CodeId::Xor`] has one repair symbol.
    #[error("m = {0} repair packets a block; expected 1 with XOR")]
    XorM(usize),
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
///
/// One for 64 + 16 is made in a few microseconds and one for 10 + 2 in less than 100 ns, without
/// allocation, so that a decoder may make that of a block when it meets it.
#[derive(Clone, PartialEq, Eq)]
pub struct Code {
    id: CodeId,
    k: usize,
    m: usize,
    /// m rows of k coefficients, one after the other.
    rows: [u8; K_MAX * M_MAX],
    /// For each repair symbol the logarithm of Π (x − i) over all sources i; 0 with XOR.
    pub(crate) distance_logs: [u8; M_MAX],
}

/// Logarithm of Π (j − i) over all i < k other than j, at `[k][j]`.
pub(crate) static WEIGHT_LOGS: [[u8; K_MAX]; K_MAX + 1] = {
    let mut logs = [[0; K_MAX]; K_MAX + 1];
    let mut k = 1;
    while k <= K_MAX {
        let new = k - 1;
        let mut of_new = 0;
        let mut j = 0;
        while j < new {
            let log = gf::log((j ^ new) as u8);
            logs[k][j] = ((logs[k - 1][j] as u32 + log) % 255) as u8;
            of_new += log;
            j += 1;
        }
        logs[k][new] = (of_new % 255) as u8;
        k += 1;
    }
    logs
};

impl Code {
    /// A code with k source and m repair symbols.
    ///
    /// # Errors
    /// [`CodeError`]; m of [`CodeId::Xor`] is 1.
    pub fn new(id: CodeId, k: usize, m: usize) -> Result<Self, CodeError> {
        if k == 0 || k > K_MAX {
            return Err(CodeError::K(k));
        }
        if m == 0 || m > M_MAX {
            return Err(CodeError::M(m));
        }
        let mut code = Self { id, k, m, rows: [0; K_MAX * M_MAX], distance_logs: [0; M_MAX] };
        match id {
            CodeId::Xor if m != 1 => return Err(CodeError::XorM(m)),
            CodeId::Xor => code.rows[..k].fill(1),
            CodeId::ReedSolomon => code.fill_rows(),
        }
        Ok(code)
    }

    fn fill_rows(&mut self) {
        let k = self.k;
        for (row, to) in self.rows[..k * self.m].chunks_exact_mut(k).enumerate() {
            let x = (k + row) as u8;
            let distance: u32 = (0..k as u8).map(|i| gf::log(x ^ i)).sum();
            for ((j, to), weight) in (0_u8..).zip(to).zip(WEIGHT_LOGS[k]) {
                // Twice 255, so that the difference is none below zero.
                *to = gf::exp(distance + 510 - gf::log(x ^ j) - u32::from(weight));
            }
            self.distance_logs[row] = (distance % 255) as u8;
        }
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
    ///
    /// # Panics
    /// When `row` is not below m.
    #[must_use]
    pub fn row(&self, row: usize) -> &[u8] {
        &self.rows()[row * self.k..][..self.k]
    }

    /// All m rows, one after the other: what [`Kernel::assign`](crate::kernel::Kernel::assign) takes to
    /// encode a whole block.
    #[must_use]
    pub fn rows(&self) -> &[u8] {
        &self.rows[..self.k * self.m]
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}+{}", self.id, self.k, self.m)
    }
}

/// Inverts the n × n `matrix`, which it destroys, into `inverse`, by Gauss–Jordan elimination. False
/// when it has no inverse.
///
/// For codes that are not ours; [`Code::solve`] needs none of it.
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

#[cfg(test)]
mod tests {
    use reed_solomon_erasure::galois_8::ReedSolomon;

    use super::*;

    #[test]
    fn the_generator_is_that_of_reed_solomon_erasure_for_every_k_and_m() {
        for k in 1..=K_MAX {
            // Of a unit vector at a source, the repair symbols are that source's column.
            let peer = ReedSolomon::new(k, M_MAX).unwrap();
            let sources: Vec<Vec<u8>> =
                (0..k).map(|j| (0..k).map(|at| u8::from(at == j)).collect()).collect();
            let mut repairs = vec![vec![0; k]; M_MAX];
            peer.encode_sep(&sources, &mut repairs).unwrap();
            for m in 1..=M_MAX {
                let code = Code::new(CodeId::ReedSolomon, k, m).unwrap();
                for (row, expected) in repairs[..m].iter().enumerate() {
                    assert_eq!(code.row(row), expected, "row {row} of {k}+{m}");
                }
            }
        }
    }

    #[test]
    fn a_peer_made_for_fewer_repairs_has_the_same_rows() {
        let full = Code::new(CodeId::ReedSolomon, 20, M_MAX).unwrap();
        let few = Code::new(CodeId::ReedSolomon, 20, 5).unwrap();
        assert_eq!(full.rows()[..100], *few.rows());
    }

    #[test]
    fn xor_is_a_row_of_ones() {
        assert_eq!(Code::new(CodeId::Xor, 7, 1).unwrap().rows(), [1; 7]);
    }

    #[test]
    fn codes_out_of_range_are_refused_with_the_reason() {
        use CodeId::{ReedSolomon, Xor};
        assert_eq!(Code::new(ReedSolomon, 0, 1).unwrap_err(), CodeError::K(0));
        assert_eq!(Code::new(ReedSolomon, 65, 1).unwrap_err(), CodeError::K(65));
        assert_eq!(Code::new(ReedSolomon, 64, 0).unwrap_err(), CodeError::M(0));
        assert_eq!(Code::new(ReedSolomon, 64, 17).unwrap_err(), CodeError::M(17));
        assert_eq!(Code::new(Xor, 4, 2).unwrap_err(), CodeError::XorM(2));
        assert_eq!(Code::new(Xor, usize::MAX, 1).unwrap_err(), CodeError::K(usize::MAX));
    }

    #[test]
    fn a_matrix_times_its_inverse_is_one_and_a_singular_one_has_none() {
        let n = 5;
        let mut random = fastrand::Rng::with_seed(4);
        let mut found = 0;
        while found < 20 {
            let matrix: Vec<u8> = (0..n * n).map(|_| random.u8(..)).collect();
            let (mut scratch, mut inverse) = (matrix.clone(), vec![0; n * n]);
            if !invert(&mut scratch, &mut inverse, n) {
                continue;
            }
            found += 1;
            for at in 0..n * n {
                let (row, column) = (at / n, at % n);
                let sum = (0..n)
                    .fold(0, |sum, i| sum ^ gf::mul(matrix[row * n + i], inverse[i * n + column]));
                assert_eq!(sum, u8::from(row == column));
            }
        }
        assert!(!invert(&mut [1, 2, 2, 4], &mut [0; 4], 2));
    }
}
