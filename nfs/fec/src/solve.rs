//! Erasure decoding: which sums of what came bring back what did not.
//!
//! Of the block's polynomial (see [`code`](crate::code)) k values are known: the sources that came, and a
//! repair symbol for each that did not. The value at a missing source j is a sum of those, and Lagrange's
//! formula gives the coefficient of the one at point p, with products over the known points q:
//!
//! ```text
//!            Π (j − q)
//! ──────────────────────────────────
//!  (j − p) ·  Π (p − q)   q other than p
//! ```
//!
//! Each of the products is one over all sources, which the code knows, without the missing ones and with
//! the repair symbols. So e losses cost O(e · k) sums of logarithms, where inverting a matrix costs
//! O(e³), or O(k³) of the whole generator; and one pass over the data, as encoding does.
#![forbid(unsafe_code)]

use std::fmt;

use thiserror::Error;

use crate::code::{Code, CodeId, K_MAX, M_MAX, WEIGHT_LOGS};
use crate::gf;
use crate::kernel::Kernel;

/// Why a block cannot be repaired by what came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SolveError {
    /// More is missing than there are repair symbols.
    #[error("{missing} sources are missing, and there are {repairs} repair symbols")]
    TooFewRepairs {
        /// How many sources are missing.
        missing: usize,
        /// How many repair symbols are there.
        repairs: usize,
    },
    /// The block has no such source, or it was named twice or out of order.
    #[error("missing source {0}; expected ascending positions below k")]
    Source(usize),
    /// The code has no such repair symbol, or it was named twice.
    #[error("repair symbol {0}; expected different ones below m")]
    Repair(usize),
}

/// How to bring back the missing sources of one block: for each of them k coefficients.
#[derive(Clone)]
pub struct Recovery {
    k: usize,
    missing: usize,
    coefficients: [u8; K_MAX * M_MAX],
}

impl Code {
    /// How to bring back the sources at the positions `missing` (ascending) by repair symbols, of whose
    /// rows as many as are missing are used, the first of `repairs`. Allocates nothing.
    ///
    /// # Errors
    /// [`SolveError`]; never for a pattern that the code can repair, which is any with as many repair
    /// symbols as missing sources.
    pub fn solve(&self, missing: &[usize], repairs: &[usize]) -> Result<Recovery, SolveError> {
        let Some(repairs) = repairs.get(..missing.len()) else {
            let (missing, repairs) = (missing.len(), repairs.len());
            return Err(SolveError::TooFewRepairs { missing, repairs });
        };
        self.check(missing, repairs)?;
        let mut recovery =
            Recovery { k: self.k(), missing: missing.len(), coefficients: [0; K_MAX * M_MAX] };
        match self.id() {
            CodeId::Xor => recovery.coefficients[..self.k() * missing.len()].fill(1),
            CodeId::ReedSolomon => self.interpolate(missing, repairs, &mut recovery.coefficients),
        }
        Ok(recovery)
    }

    fn check(&self, missing: &[usize], repairs: &[usize]) -> Result<(), SolveError> {
        let mut next = 0;
        for &source in missing {
            if source < next || source >= self.k() {
                return Err(SolveError::Source(source));
            }
            next = source + 1;
        }
        let mut seen = 0_u32;
        for &row in repairs {
            if row >= self.m() || seen >> row & 1 == 1 {
                return Err(SolveError::Repair(row));
            }
            seen |= 1 << row;
        }
        Ok(())
    }

    /// Fills rows of k coefficients, one a missing source. Lists are checked, so that no difference of
    /// two points is zero, and no sum of at most 16 · 2 + 3 logarithms overflows.
    fn interpolate(&self, missing: &[usize], repairs: &[usize], coefficients: &mut [u8]) {
        let k = self.k();
        let point = |row: usize| (k + row) as u8;
        let product = |at: u8, rows: &[usize]| -> u32 {
            rows.iter().map(|&row| point(row)).filter(|&x| x != at).map(|x| gf::log(at ^ x)).sum()
        };
        let quotient = |at: u8| -> u32 {
            let others = missing.iter().map(|&source| source as u8).filter(|&source| source != at);
            others.map(|source| 255 - gf::log(at ^ source)).sum()
        };
        let mut points = [0; K_MAX];
        points.iter_mut().zip(0..).for_each(|(place, source)| *place = source);
        let mut stand_ins = missing.iter().zip(repairs);
        stand_ins.by_ref().for_each(|(&source, &row)| points[source] = point(row));

        // Of each known point, the logarithm of the inverse of its product over the others.
        let mut weights = [0; K_MAX];
        for ((weight, &p), known) in weights.iter_mut().zip(&points[..k]).zip(WEIGHT_LOGS[k]) {
            let of_sources = match usize::from(p).checked_sub(k) {
                None => known,
                Some(row) => self.distance_logs[row],
            };
            let log = u32::from(of_sources) + quotient(p) + product(p, repairs);
            *weight = 255 - log % 255;
        }
        for (row, &source) in coefficients.chunks_exact_mut(k).zip(missing) {
            let j = source as u8;
            let sum = u32::from(WEIGHT_LOGS[k][source]) + quotient(j) + product(j, repairs);
            for ((to, &p), weight) in row.iter_mut().zip(&points[..k]).zip(weights) {
                *to = gf::exp(sum + weight + 255 - gf::log(j ^ p));
            }
        }
    }
}

impl Recovery {
    /// Brings the missing sources back, in one pass over the data.
    ///
    /// `symbols` are the block's k sources, with the repair symbols in the places of those that are
    /// missing: the first that was given to [`Code::solve`] in the place of the first, and so on. Sources
    /// that a short block does not have are empty. `recovered` are overwritten by the missing sources in
    /// order, filled up with zeroes; they are as long as the repair symbols.
    ///
    /// # Panics
    /// When `symbols` are not k, or `recovered` not as many as are missing.
    pub fn run(&self, kernel: &Kernel, symbols: &[&[u8]], recovered: &mut [&mut [u8]]) {
        assert_eq!(symbols.len(), self.k, "one symbol for each source");
        assert_eq!(recovered.len(), self.missing, "one place for each missing source");
        kernel.assign(self.coefficients(), symbols, recovered);
    }

    /// For each missing source k coefficients, one after the other.
    #[must_use]
    pub fn coefficients(&self) -> &[u8] {
        &self.coefficients[..self.k * self.missing]
    }
}

impl fmt::Debug for Recovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} sources to bring back", self.missing, self.k)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A block of packets of lengths up to `bytes`, the last of which may be there or not.
    struct Block {
        code: Code,
        sources: Vec<Vec<u8>>,
        repairs: Vec<Vec<u8>>,
    }

    impl Block {
        fn new(code: Code, bytes: usize, present: usize, random: &mut fastrand::Rng) -> Self {
            let sources: Vec<Vec<u8>> = (0..code.k())
                .map(|at| {
                    let length = if at < present { random.usize(1..=bytes) } else { 0 };
                    std::iter::repeat_with(|| random.u8(..)).take(length).collect()
                })
                .collect();
            let mut repairs = vec![vec![0; bytes]; code.m()];
            let all: Vec<&[u8]> = sources.iter().map(Vec::as_slice).collect();
            let mut to: Vec<&mut [u8]> = repairs.iter_mut().map(Vec::as_mut_slice).collect();
            Kernel::scalar().accumulate(code.rows(), &all, &mut to);
            Self { code, sources, repairs }
        }

        /// That this pattern is repaired, or refused when it must be.
        fn check(&self, kernel: Kernel, missing: &[usize], rows: &[usize]) {
            let solved = self.code.solve(missing, rows);
            if missing.len() > rows.len() {
                let (missing, repairs) = (missing.len(), rows.len());
                assert_eq!(solved.unwrap_err(), SolveError::TooFewRepairs { missing, repairs });
                return;
            }
            let mut symbols: Vec<&[u8]> = self.sources.iter().map(Vec::as_slice).collect();
            for (&source, &row) in missing.iter().zip(rows) {
                symbols[source] = &self.repairs[row];
            }
            let mut recovered = vec![vec![0xEE; self.repairs[0].len()]; missing.len()];
            let mut to: Vec<&mut [u8]> = recovered.iter_mut().map(Vec::as_mut_slice).collect();
            solved.unwrap().run(&kernel, &symbols, &mut to);
            for (recovered, &source) in recovered.iter().zip(missing) {
                let (bytes, fill) = recovered.split_at(self.sources[source].len());
                let what = format!("{:?} by {}, {missing:?} {rows:?}", self.code, kernel.name());
                assert_eq!(bytes, self.sources[source], "{what}");
                assert!(fill.iter().all(|&byte| byte == 0), "{what}");
            }
        }
    }

    fn members(set: u32) -> Vec<usize> {
        (0..32).filter(|bit| set >> bit & 1 == 1).collect()
    }

    #[test]
    fn every_pattern_of_at_most_m_losses_is_repaired_and_every_other_refused_in_small_codes() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut patterns = 0;
        for (k, m) in (1..10).flat_map(|k| (1..=10 - k).map(move |m| (k, m))) {
            for id in [CodeId::Xor, CodeId::ReedSolomon] {
                let Ok(code) = Code::new(id, k, m) else { continue };
                let block = Block::new(code, 9, k, &mut random);
                for lost in 0..1_u32 << (k + m) {
                    let missing = members(lost & ((1 << k) - 1));
                    let rows = members(!lost >> k & ((1 << m) - 1));
                    block.check(Kernel::best(), &missing, &rows);
                    patterns += 1;
                }
            }
        }
        // Σ (n − 1) 2^n for n from 2 to 10, and Σ 2^(k + 1) for k from 1 to 9.
        assert_eq!(patterns, 16_388 + 2_044);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn any_pattern_of_any_code_is_repaired_by_every_kernel_in_any_order_of_repairs(
            k in 1..=K_MAX, m in 1..=M_MAX, bytes in 1_usize..400, seed: u64,
        ) {
            let mut random = fastrand::Rng::with_seed(seed);
            // Of a short block the last sources are not there: they are known to be zero.
            let present = random.usize(1..=k);
            let code = Code::new(CodeId::ReedSolomon, k, m).unwrap();
            let block = Block::new(code, bytes, present, &mut random);
            let lost = random.usize(0..=present.min(m));
            let mut missing: Vec<usize> = (0..present).collect();
            random.shuffle(&mut missing);
            missing.truncate(lost);
            missing.sort_unstable();
            let mut rows: Vec<usize> = (0..m).collect();
            random.shuffle(&mut rows);
            for kernel in Kernel::available() {
                block.check(kernel, &missing, &rows);
            }
            block.check(Kernel::best(), &missing, &rows[..lost.saturating_sub(1)]);
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_reason() {
        let code = Code::new(CodeId::ReedSolomon, 4, 3).unwrap();
        let refused = |missing: &[usize], rows: &[usize]| code.solve(missing, rows).unwrap_err();
        assert_eq!(refused(&[4], &[0]), SolveError::Source(4));
        assert_eq!(refused(&[1, 1], &[0, 1]), SolveError::Source(1));
        assert_eq!(refused(&[2, 1], &[0, 1]), SolveError::Source(1));
        assert_eq!(refused(&[usize::MAX], &[0]), SolveError::Source(usize::MAX));
        assert_eq!(refused(&[1, 2], &[2, 2]), SolveError::Repair(2));
        assert_eq!(refused(&[1], &[3]), SolveError::Repair(3));
        assert_eq!(refused(&[1], &[usize::MAX]), SolveError::Repair(usize::MAX));
        let too_few = SolveError::TooFewRepairs { missing: 2, repairs: 1 };
        assert_eq!(refused(&[1, 2], &[0]), too_few);
        assert!(code.solve(&[], &[]).unwrap().coefficients().is_empty());
    }

    #[test]
    fn coefficients_are_those_of_the_inverse_of_the_rows_that_came() {
        let code = Code::new(CodeId::ReedSolomon, 64, 16).unwrap();
        let missing: Vec<usize> = (0..16).map(|at| at * 4 + 1).collect();
        let rows: Vec<usize> = (0..16).rev().collect();
        let mut matrix: Vec<u8> = vec![0; 64 * 64];
        (0..64).for_each(|at| matrix[at * 64 + at] = 1);
        for (&source, &row) in missing.iter().zip(&rows) {
            matrix[source * 64..][..64].copy_from_slice(code.row(row));
        }
        let mut inverse = vec![0; 64 * 64];
        assert!(crate::code::invert(&mut matrix, &mut inverse, 64));
        let recovery = code.solve(&missing, &rows).unwrap();
        for (row, &source) in recovery.coefficients().chunks(64).zip(&missing) {
            assert_eq!(row, &inverse[source * 64..][..64]);
        }
    }
}
