//! Brings back a block's missing packets: one solve of e equations for e unknowns.
#![forbid(unsafe_code)]

use crate::code::{Code, CodeId, K_MAX, M_MAX, invert};
use crate::gf;
use crate::kernel::Kernel;

/// A source packet of the block that is there.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Known<'a> {
    /// Its position in the block.
    pub at: usize,
    pub bytes: &'a [u8],
}

/// A repair packet of the block.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Row<'a> {
    pub row: usize,
    pub length: [u8; 2],
    pub coded: &'a [u8],
}

/// Memory for solving, and the codes, each made when it is first met.
#[derive(Debug)]
pub(super) struct Solver {
    kernel: Kernel,
    reed_solomon: Vec<Option<Code>>,
    xor: Vec<Option<Code>>,
    syndromes: Vec<u8>,
    packets: Vec<u8>,
    stride_bytes: usize,
}

impl Solver {
    /// For packets of up to `max_bytes`.
    pub fn new(kernel: Kernel, max_bytes: usize) -> Self {
        let stride_bytes = max_bytes.next_multiple_of(64);
        Self {
            kernel,
            reed_solomon: vec![None; K_MAX + 1],
            xor: vec![None; K_MAX + 1],
            syndromes: vec![0; M_MAX * stride_bytes],
            packets: vec![0; M_MAX * stride_bytes],
            stride_bytes,
        }
    }

    /// Solves for the packets at the positions `missing`, with as many rows, all of the same length.
    /// Gives their lengths; [`Solver::packet`] gives their bytes, with what follows them up to the
    /// coded length, which is all zeroes if nothing was forged.
    pub fn solve(
        &mut self,
        (id, k): (CodeId, usize),
        known: &[Known<'_>],
        missing: &[usize],
        rows: &[Row<'_>],
    ) -> Option<[usize; M_MAX]> {
        let codes = match id {
            CodeId::Xor => &mut self.xor,
            CodeId::ReedSolomon => &mut self.reed_solomon,
        };
        let m = if id == CodeId::Xor { 1 } else { M_MAX };
        if codes[k].is_none() {
            codes[k] = Code::new(id, k, m).ok();
        }
        let code = codes[k].as_ref()?;
        let inverse = invert_for(code, missing, rows)?;
        let lengths = lengths(code, &inverse, known, missing.len(), rows);
        self.sum(id, k, known, rows);
        self.multiply(&inverse, missing.len(), rows);
        Some(lengths)
    }

    /// The packet that was solved for as the `at`-th, with the zeroes behind it.
    pub fn packet(&self, at: usize, coded_bytes: usize) -> &[u8] {
        &self.packets[at * self.stride_bytes..][..coded_bytes]
    }

    /// Takes the known packets out of the repair packets: what is left are sums of the missing.
    fn sum(&mut self, id: CodeId, k: usize, known: &[Known<'_>], rows: &[Row<'_>]) {
        let codes = if id == CodeId::Xor { &self.xor } else { &self.reed_solomon };
        let Some(code) = &codes[k] else { return };
        let mut sources: [&[u8]; K_MAX] = [&[]; K_MAX];
        let mut coefficients = [0; K_MAX * M_MAX];
        for (source, known) in sources.iter_mut().zip(known) {
            *source = known.bytes;
        }
        for (row, to) in rows.iter().zip(coefficients.chunks_exact_mut(known.len().max(1))) {
            for (coefficient, known) in to.iter_mut().zip(known) {
                *coefficient = code.row(row.row)[known.at];
            }
        }
        let mut sums: [&mut [u8]; M_MAX] = Default::default();
        let places = self.syndromes.chunks_exact_mut(self.stride_bytes);
        for ((sum, place), row) in sums.iter_mut().zip(places).zip(rows) {
            *sum = &mut place[..row.coded.len()];
            sum.copy_from_slice(row.coded);
        }
        let count = rows.len() * known.len();
        self.kernel.accumulate(
            &coefficients[..count],
            &sources[..known.len()],
            &mut sums[..rows.len()],
        );
    }

    /// The packets are the inverse times these sums.
    fn multiply(&mut self, inverse: &[u8], missing: usize, rows: &[Row<'_>]) {
        let coded_bytes = rows.first().map_or(0, |row| row.coded.len());
        let mut sources: [&[u8]; M_MAX] = [&[]; M_MAX];
        let mut sums: [&mut [u8]; M_MAX] = Default::default();
        let from = self.syndromes.chunks_exact(self.stride_bytes);
        let to = self.packets.chunks_exact_mut(self.stride_bytes);
        for (((source, sum), from), to) in sources.iter_mut().zip(&mut sums).zip(from).zip(to) {
            *source = &from[..coded_bytes];
            *sum = &mut to[..coded_bytes];
            sum.fill(0);
        }
        self.kernel.accumulate(
            &inverse[..missing * missing],
            &sources[..missing],
            &mut sums[..missing],
        );
    }
}

fn invert_for(code: &Code, missing: &[usize], rows: &[Row<'_>]) -> Option<[u8; M_MAX * M_MAX]> {
    let count = missing.len();
    if count > M_MAX || rows.len() != count {
        return None;
    }
    let (mut matrix, mut inverse) = ([0; M_MAX * M_MAX], [0; M_MAX * M_MAX]);
    for (row, to) in rows.iter().zip(matrix.chunks_exact_mut(count.max(1))) {
        for (coefficient, &at) in to.iter_mut().zip(missing) {
            *coefficient = code.row(row.row)[at];
        }
    }
    invert(&mut matrix, &mut inverse, count).then_some(inverse)
}

fn lengths(
    code: &Code,
    inverse: &[u8],
    known: &[Known<'_>],
    missing: usize,
    rows: &[Row<'_>],
) -> [usize; M_MAX] {
    let mut sums = [[0; 2]; M_MAX];
    for (sum, row) in sums.iter_mut().zip(rows) {
        let coefficients = code.row(row.row);
        *sum = row.length;
        for known in known {
            let [high, low] = (known.bytes.len() as u16).to_be_bytes();
            sum[0] ^= gf::mul(coefficients[known.at], high);
            sum[1] ^= gf::mul(coefficients[known.at], low);
        }
    }
    let mut lengths = [0; M_MAX];
    for (length, row) in lengths.iter_mut().zip(inverse.chunks_exact(missing.max(1))).take(missing)
    {
        let byte = |at: usize| {
            row.iter().zip(&sums).fold(0, |sum, (&c, value)| sum ^ gf::mul(c, value[at]))
        };
        *length = u16::from_be_bytes([byte(0), byte(1)]).into();
    }
    lengths
}
