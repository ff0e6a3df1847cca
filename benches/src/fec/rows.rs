//! The rows: what is compared with what, and how.
#![forbid(unsafe_code)]

use std::fmt::Display;
use std::hint::black_box;

use millrace_fec::code::{Code, CodeId};
use millrace_fec::kernel::Kernel;
use reed_solomon_erasure::galois_8::ReedSolomon;
use serde_json::json;

use super::Bench;
use super::blocks::{Block, Placing, Ring, Shape};
use super::isa_l::{self, Pointers, Tables};
use crate::data_path::{Outcome, Pairs, Trouble};

/// A comparison.
#[derive(Clone, Debug)]
pub struct RowSpec {
    /// Its name, for `--only`.
    pub id: String,
    /// What is done.
    pub work: String,
    /// Unit of both figures.
    pub unit: &'static str,
    /// Whom we are compared with.
    pub peer: &'static str,
    /// The ratio aimed at; 0: none.
    pub aim: f64,
    shape: Shape,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// All repair symbols of a block.
    Encode,
    /// m sources brought back, by coefficients that were found before.
    Decode,
    /// The coefficients found for each block, too.
    DecodeAll,
    /// Only the coefficients found.
    Solve,
    /// Encode by one of our kernels, against the crate that is the oracle of the code.
    Crate(&'static str),
    /// Sum of k packets, against copying them.
    Xor,
}

/// Shapes at which we aim to be as fast as ISA-L.
const CODES: [(usize, usize); 3] = [(10, 2), (20, 5), (64, 16)];
const LENGTHS: [usize; 2] = [256, 1400];
/// Names of the kernels, as [`Kernel::name`] has them.
const KERNELS: [&str; 4] = ["gfni-avx512", "gfni-avx2", "avx2", "scalar"];
const ISA_L: &str = "ISA-L 2.32";

impl RowSpec {
    fn new(name: &str, kind: Kind, (k, m): (usize, usize), bytes: usize, placing: Placing) -> Self {
        let shape = Shape { k, m, bytes, placing };
        let (mark, place) = match placing {
            Placing::Near => ("", ""),
            Placing::Far => ("-far", ", 16 MiB"),
            Placing::Buffers => ("-buffers", ", in buffers"),
        };
        let (unit, peer, aim, by) = match kind {
            Kind::Encode | Kind::Decode if placing == Placing::Near => ("GB/s", ISA_L, 1.0, ""),
            Kind::Encode | Kind::Decode | Kind::DecodeAll => ("GB/s", ISA_L, 0.0, ""),
            Kind::Solve => ("us", ISA_L, 0.0, ""),
            Kind::Crate(kernel) => ("GB/s", "rs-erasure 6", 0.0, kernel),
            Kind::Xor => ("GB/s", "memcpy", 0.0, ""),
        };
        let dash = if by.is_empty() { "" } else { "-" };
        let with = if by.is_empty() { String::new() } else { format!(" by {by}") };
        Self {
            id: format!("{name}-{k}-{m}-{bytes}{mark}{dash}{by}"),
            work: format!("{name} {k}+{m}, {bytes} B{place}{with}"),
            unit,
            peer,
            aim,
            shape,
            kind,
        }
    }
}

/// All rows, in the order in which they are measured.
#[must_use]
pub fn all() -> Vec<RowSpec> {
    let mut rows = Vec::new();
    for (name, kind) in [("encode", Kind::Encode), ("decode", Kind::Decode)] {
        for bytes in LENGTHS {
            rows.extend(CODES.map(|code| RowSpec::new(name, kind, code, bytes, Placing::Near)));
        }
        for placing in [Placing::Buffers, Placing::Far] {
            rows.extend(CODES.map(|code| RowSpec::new(name, kind, code, 1400, placing)));
        }
    }
    let near = |name, kind, code, bytes| RowSpec::new(name, kind, code, bytes, Placing::Near);
    rows.extend(CODES.map(|code| near("decode-all", Kind::DecodeAll, code, 1400)));
    rows.push(near("decode-all", Kind::DecodeAll, (64, 16), 256));
    rows.push(near("solve", Kind::Solve, (64, 16), 256));
    rows.push(near("xor", Kind::Xor, (10, 1), 1400));
    for kernel in KERNELS {
        rows.extend(CODES.map(|code| near("encode", Kind::Crate(kernel), code, 1400)));
    }
    rows
}

/// Measures a row.
///
/// # Errors
/// [`Trouble::NotAvailable`] where the processor lacks the kernel or the build the peer,
/// [`Trouble::Failed`] when ours and the peer's results differ.
pub fn measure(bench: &Bench, row: &RowSpec) -> Result<Outcome, Trouble> {
    let outcome = match row.kind {
        Kind::Encode | Kind::Decode | Kind::DecodeAll => against_isa_l(bench, row.kind, row.shape),
        Kind::Solve => solve(bench, row.shape),
        Kind::Crate(kernel) => against_crate(bench, kernel, row.shape),
        Kind::Xor => xor(bench, row.shape),
    };
    Ok(outcome?.with("kernel", json!(Kernel::best().name())))
}

/// A code, and the worst that can happen to one of its blocks: m sources missing, spread over it.
struct Loss {
    code: Code,
    missing: Vec<usize>,
    repairs: Vec<usize>,
}

impl Loss {
    fn new(shape: Shape) -> Result<Self, Trouble> {
        let code = Code::new(CodeId::ReedSolomon, shape.k, shape.m).map_err(failed)?;
        let missing = (0..shape.m).map(|at| at * shape.k / shape.m).collect();
        Ok(Self { code, missing, repairs: (0..shape.m).collect() })
    }

    /// The k rows of the whole generator that came: of the identity, and of repair symbols in the places
    /// of missing sources.
    fn came(&self) -> Vec<u8> {
        let k = self.code.k();
        let mut rows: Vec<u8> = (0..k * k).map(|at| u8::from(at / k == at % k)).collect();
        for (&source, &repair) in self.missing.iter().zip(&self.repairs) {
            rows[source * k..][..k].copy_from_slice(self.code.row(repair));
        }
        rows
    }

    /// ISA-L's coefficients.
    fn tables(&self, came: &[u8]) -> Result<Tables, Trouble> {
        Tables::decoding(self.code.k(), came, &self.missing)
            .ok_or_else(|| Trouble::Failed("ISA-L finds no inverse".into()))
    }
}

fn failed(error: impl Display) -> Trouble {
    Trouble::Failed(error.to_string())
}

fn against_isa_l(bench: &Bench, kind: Kind, shape: Shape) -> Result<Outcome, Trouble> {
    isa_l::need()?;
    let loss = Loss::new(shape)?;
    let kernel = Kernel::best();
    let recovery = loss.code.solve(&loss.missing, &loss.repairs).map_err(failed)?;
    let (came, k) = (loss.came(), shape.k);
    let tables = match kind {
        Kind::Encode => Tables::new(k, loss.code.rows()),
        _ => loss.tables(&came)?,
    };
    let ours = |block: &mut Block<'_>| match kind {
        Kind::Encode => kernel.assign(loss.code.rows(), &block.symbols, &mut block.results),
        Kind::Decode => recovery.run(&kernel, &block.symbols, &mut block.results),
        _ => {
            if let Ok(recovery) = loss.code.solve(black_box(&loss.missing), &loss.repairs) {
                recovery.run(&kernel, &block.symbols, &mut block.results);
            }
        }
    };
    let theirs = |block: &mut Pointers<'_>| match kind {
        Kind::DecodeAll => {
            if let Some(tables) = Tables::decoding(k, black_box(&came), &loss.missing) {
                tables.run(block);
            }
        }
        _ => tables.run(block),
    };
    let (mut ring, mut peer_ring) = (Ring::new(shape), Ring::new(shape));
    ring.blocks().iter_mut().for_each(ours);
    peer_ring.blocks().into_iter().map(Pointers::new).for_each(|mut block| theirs(&mut block));
    same(&mut ring, &mut peer_ring)?;

    let mut blocks = ring.blocks();
    let mut pointers: Vec<_> = peer_ring.blocks().into_iter().map(Pointers::new).collect();
    let pairs = bench.in_turn(
        || black_box(&mut blocks).iter_mut().for_each(ours),
        || black_box(&mut pointers).iter_mut().for_each(theirs),
    )?;
    Ok(gigabytes(pairs, shape))
}

/// That both got the same results; nothing else is worth comparing.
fn same(ours: &mut Ring, peer: &mut Ring) -> Result<(), Trouble> {
    let (ours, peer) = (ours.blocks(), peer.blocks());
    if ours.iter().zip(&peer).all(|(ours, peer)| ours.results == peer.results) {
        return Ok(());
    }
    Err(Trouble::Failed("ours and the peer's results differ".into()))
}

/// Nanoseconds a lap as gigabytes of data a second.
fn gigabytes(pairs: Pairs, shape: Shape) -> Outcome {
    let rates = |times: Vec<f64>| times.iter().map(|ns| shape.lap_bytes() as f64 / ns).collect();
    Outcome::more_is_better(Pairs { ours: rates(pairs.ours), peer: rates(pairs.peer), ..pairs })
}

fn solve(bench: &Bench, shape: Shape) -> Result<Outcome, Trouble> {
    isa_l::need()?;
    let loss = Loss::new(shape)?;
    let came = loss.came();
    let ours = || {
        let _ = black_box(loss.code.solve(black_box(&loss.missing), black_box(&loss.repairs)));
    };
    let peer = || {
        black_box(Tables::decoding(shape.k, black_box(&came), black_box(&loss.missing)));
    };
    let pairs = bench.in_turn(ours, peer)?;
    let micros = |times: Vec<f64>| times.iter().map(|ns| ns / 1000.0).collect();
    let pairs = Pairs { ours: micros(pairs.ours), peer: micros(pairs.peer), ..pairs };
    Ok(Outcome::less_is_better(pairs))
}

fn against_crate(bench: &Bench, name: &str, shape: Shape) -> Result<Outcome, Trouble> {
    let kernel = Kernel::available().find(|kernel| kernel.name() == name);
    let kernel =
        kernel.ok_or_else(|| Trouble::NotAvailable(format!("this processor lacks {name}")))?;
    let code = Code::new(CodeId::ReedSolomon, shape.k, shape.m).map_err(failed)?;
    let peer = ReedSolomon::new(shape.k, shape.m).map_err(failed)?;
    let ours = |block: &mut Block<'_>| {
        kernel.assign(code.rows(), &block.symbols, &mut block.results);
    };
    let theirs = |block: &mut Block<'_>| {
        let _ = peer.encode_sep(&block.symbols, &mut block.results);
    };
    let (mut ring, mut peer_ring) = (Ring::new(shape), Ring::new(shape));
    ring.blocks().iter_mut().for_each(ours);
    peer_ring.blocks().iter_mut().for_each(theirs);
    same(&mut ring, &mut peer_ring)?;
    let (mut blocks, mut peer_blocks) = (ring.blocks(), peer_ring.blocks());
    let pairs = bench.in_turn(
        || black_box(&mut blocks).iter_mut().for_each(ours),
        || black_box(&mut peer_blocks).iter_mut().for_each(theirs),
    )?;
    Ok(gigabytes(pairs, shape))
}

/// The ceiling: what is read is copied, and nothing computed.
fn xor(bench: &Bench, shape: Shape) -> Result<Outcome, Trouble> {
    let code = Code::new(CodeId::Xor, shape.k, 1).map_err(failed)?;
    let kernel = Kernel::best();
    let (mut ring, mut peer_ring) = (Ring::new(shape), Ring::new(shape));
    let (mut blocks, mut peer_blocks) = (ring.blocks(), peer_ring.blocks());
    let pairs = bench.in_turn(
        || {
            for block in black_box(&mut blocks) {
                kernel.assign(code.rows(), &block.symbols, &mut block.results);
            }
        },
        || {
            for block in black_box(&mut peer_blocks) {
                for symbol in &block.symbols {
                    black_box(&mut *block.results[0]).copy_from_slice(symbol);
                }
            }
        },
    )?;
    Ok(gigabytes(pairs, shape))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_row_has_a_name_of_its_own_that_can_be_typed() {
        let rows = all();
        let distinct: BTreeSet<_> = rows.iter().map(|row| &row.id).collect();
        assert_eq!(rows.len(), distinct.len());
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        assert!(rows.iter().all(|row| row.id.chars().all(plain)), "{distinct:?}");
    }

    #[test]
    fn aims_are_set_at_two_lengths_of_three_codes_both_ways() {
        assert_eq!(all().iter().filter(|row| row.aim > 0.0).count(), 12);
    }

    #[test]
    fn ours_and_the_crate_code_the_same_bytes_by_every_kernel_there_is() {
        let bench = Bench { reps: 1, window: Duration::ZERO };
        for row in all() {
            if matches!(row.kind, Kind::Crate(_)) && row.shape.k == 10 {
                match measure(&bench, &row) {
                    Ok(outcome) => assert!(outcome.ours > 0.0),
                    Err(Trouble::NotAvailable(why)) => eprintln!("skipped: {}: {why}", row.id),
                    Err(trouble) => panic!("{}: {trouble}", row.id),
                }
            }
        }
    }
}
