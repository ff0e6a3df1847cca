//! What a code ought to leave: exact expectations of residual loss, to choose m by and to check
//! measurements against.
//!
//! A block of k source and m repair packets comes through whole when at most m of them are lost; a
//! block that lost more keeps its lost source packets lost. Residual loss is the share of source
//! packets lost after decoding. For independent losses at rate p it is `p · P[Bin(k+m−1, p) ≥ m]`.
//! For bursts it is computed along the chain, in the order in which the encoder sends: the packets
//! of a block and then its repair packets, each D packets after the one before.
#![forbid(unsafe_code)]

use crate::code::M_MAX;

/// Losses in bursts (Gilbert's model, as the manager's `fault` port makes them): a good state that
/// loses nothing, a bad one that loses all; before each packet the state may change.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gilbert {
    /// Probability of going from good to bad.
    pub p: f64,
    /// Probability of going from bad to good; bursts are 1 / r packets long on average.
    pub r: f64,
}

impl Gilbert {
    /// Bursts of `burst_pkts` on average that lose a share of `loss` in all.
    #[must_use]
    pub fn of_loss(loss: f64, burst_pkts: f64) -> Self {
        let r = 1.0 / burst_pkts;
        Self { p: r * loss / (1.0 - loss), r }
    }

    /// Share of packets lost: `p / (p + r)`.
    #[must_use]
    pub fn loss(&self) -> f64 {
        if self.p + self.r > 0.0 { self.p / (self.p + self.r) } else { 0.0 }
    }

    /// Probabilities of being in the bad state `steps` packets on, from good and from bad.
    fn bad_after(&self, steps: u32) -> [f64; 2] {
        let (loss, memory) = (self.loss(), (1.0 - self.p - self.r).powi(steps as i32));
        [loss * (1.0 - memory), loss + (1.0 - loss) * memory]
    }
}

/// What a code leaves of the source packets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Expectation {
    /// Source packets of a block.
    pub k: u32,
    /// Share of source packets lost after decoding.
    pub residual: f64,
    /// Probability that a block loses more than m of its k + m packets.
    pub block_failure: f64,
    /// Variance, over blocks, of how many source packets a block loses for good.
    pub variance: f64,
}

impl Expectation {
    /// Standard error of the residual loss measured over `blocks` blocks that fail independently.
    ///
    /// Interleaved blocks and blocks under burst losses do not: there, take the error from the
    /// measurement itself ([`Tally`]).
    #[must_use]
    pub fn se(&self, blocks: u64) -> f64 {
        (self.variance / blocks as f64).sqrt() / f64::from(self.k)
    }
}

/// Independent losses at rate `p`.
#[must_use]
pub fn independent(k: u32, m: u32, p: f64) -> Expectation {
    along_chain(k, m, p, [p, p])
}

/// Losses in bursts, blocks interleaved with `stride` D.
#[must_use]
pub fn gilbert(k: u32, m: u32, stride: u32, losses: Gilbert) -> Expectation {
    along_chain(k, m, losses.loss(), losses.bad_after(stride))
}

/// Standard error of the residual loss measured over `packets` source packets, under burst losses and
/// interleaving, where neighbouring blocks share their fate and [`Expectation::se`] is too small.
///
/// The chain is played for a million packets in the encoder's order, without any coding, and the error
/// is that of stretches of some 50 groups; the same arguments give the same error.
#[must_use]
pub fn gilbert_se(k: u32, m: u32, stride: u32, losses: Gilbert, packets: u64) -> f64 {
    const PLAYED_PKTS: u32 = 1_000_000;
    const STRETCH_GROUPS: u32 = 50;
    let stretch = k * stride * STRETCH_GROUPS;
    let stretches = (PLAYED_PKTS / stretch).max(100);
    let tally = play(k, m, stride, losses, (stretches, STRETCH_GROUPS), 1);
    let played = f64::from(stretches) * f64::from(stretch);
    tally.se() * (played / packets as f64).sqrt()
}

/// Plays losses along the chain: so many stretches, of so many groups each, tallied as one block.
fn play(
    k: u32,
    m: u32,
    stride: u32,
    losses: Gilbert,
    (stretches, groups): (u32, u32),
    seed: u64,
) -> Tally {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut bad = rng.f64() < losses.loss();
    let mut tally = Tally::default();
    let mut blocks = vec![(0, 0); stride as usize];
    for _ in 0..stretches {
        let mut gone = 0;
        for _ in 0..groups {
            blocks.fill((0, 0));
            for row in 0..k + m {
                for (sources, all) in &mut blocks {
                    bad ^= rng.f64() < if bad { losses.r } else { losses.p };
                    *sources += u32::from(bad && row < k);
                    *all += u32::from(bad);
                }
            }
            gone += blocks.iter().filter(|(_, all)| *all > m).map(|(s, _)| s).sum::<u32>();
        }
        tally.block(k * stride * groups, gone);
    }
    tally
}

/// Sums over all patterns of losses. `next_bad` is the probability that the block's next packet is
/// lost when the last was not, and when it was.
fn along_chain(k: u32, m: u32, first_bad: f64, next_bad: [f64; 2]) -> Expectation {
    let (sources, repairs) = (k as usize, m as usize);
    let at = |bad: usize, s: usize, r: usize| (bad * (sources + 1) + s) * (repairs + 1) + r;
    let mut now = vec![0.0; 2 * (sources + 1) * (repairs + 1)];
    now[at(0, 0, 0)] = 1.0 - first_bad;
    now[at(1, 1, 0)] = first_bad;
    for packet in 1..sources + repairs {
        let mut next = vec![0.0; now.len()];
        let (more_s, more_r) = if packet < sources { (1, 0) } else { (0, 1) };
        for bad in 0..2 {
            for s in 0..=packet.min(sources) {
                for r in 0..=packet.saturating_sub(sources).min(repairs) {
                    let weight = now[at(bad, s, r)];
                    if weight > 0.0 {
                        next[at(0, s, r)] += weight * (1.0 - next_bad[bad]);
                        next[at(1, s + more_s, r + more_r)] += weight * next_bad[bad];
                    }
                }
            }
        }
        now = next;
    }
    let (mut failure, mut mean, mut square) = (0.0, 0.0, 0.0);
    for s in 0..=sources {
        for r in (0..=repairs).filter(|r| s + r > repairs) {
            let weight = now[at(0, s, r)] + now[at(1, s, r)];
            failure += weight;
            mean += weight * s as f64;
            square += weight * (s * s) as f64;
        }
    }
    Expectation {
        k,
        residual: mean / f64::from(k),
        block_failure: failure,
        variance: square - mean * mean,
    }
}

/// Residual loss for independent losses at rate `p`, as [`independent`] gives it, without a table:
/// `p · P[Bin(k+m−1, p) ≥ m]`.
#[must_use]
pub fn residual(k: u32, m: u32, p: f64) -> f64 {
    if p <= 0.0 || p >= 1.0 {
        return p.clamp(0.0, 1.0);
    }
    let n = k + m - 1;
    let odds = p / (1.0 - p);
    let mut term = (1.0 - p).powi(n as i32);
    let mut tail = 0.0;
    for losses in 0..=n {
        if losses >= m {
            tail += term;
        }
        term *= f64::from(n - losses) / f64::from(losses + 1) * odds;
    }
    p * tail
}

/// The fewest repair packets, from 1 to `m_max`, that leave at most `target` of independent losses
/// at rate `p`; `None` when `m_max` does not.
#[must_use]
pub fn smallest_m(k: u32, p: f64, target: f64, m_max: u32) -> Option<u32> {
    (1..=m_max.min(M_MAX as u32)).find(|&m| residual(k, m, p) <= target)
}

/// Collects what was measured, block by block, and gives residual loss with its standard error from
/// the spread between blocks: losses cluster in blocks, so that an error from packets is too small.
///
/// Where neighbouring blocks share their fate (interleaving, bursts), give it many blocks at a time
/// as one.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    blocks: f64,
    sources: f64,
    lost: f64,
    lost_square: f64,
}

impl Tally {
    /// A block of `sources` packets of which `lost` were not recovered.
    pub fn block(&mut self, sources: u32, lost: u32) {
        self.blocks += 1.0;
        self.sources += f64::from(sources);
        self.lost += f64::from(lost);
        self.lost_square += f64::from(lost) * f64::from(lost);
    }

    /// Blocks so far.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.blocks as u64
    }

    /// Residual loss so far; 0 without blocks.
    #[must_use]
    pub fn residual(&self) -> f64 {
        if self.sources > 0.0 { self.lost / self.sources } else { 0.0 }
    }

    /// Its standard error, for blocks of one size; infinite for fewer than two.
    #[must_use]
    pub fn se(&self) -> f64 {
        if self.blocks < 2.0 {
            return f64::INFINITY;
        }
        let mean = self.lost / self.blocks;
        let variance =
            (self.lost_square - self.blocks * mean * mean).max(0.0) / (self.blocks - 1.0);
        (variance * self.blocks).sqrt() / self.sources
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-9 * a.abs().max(b.abs())
    }

    #[test]
    fn independent_losses_leave_what_the_formula_says() {
        for (k, m) in [(4, 1), (10, 1), (10, 2), (20, 4), (20, 5), (64, 16), (1, 1), (1, 16)] {
            for p in [0.001, 0.01, 0.02, 0.05, 0.5, 0.99] {
                let exact = independent(k, m, p);
                assert!(close(exact.residual, residual(k, m, p)), "{k}+{m} at {p}");
                assert!(exact.block_failure >= exact.residual && exact.variance > 0.0);
            }
        }
        // By hand: 1+1 fails when both are lost.
        assert!(close(residual(1, 1, 0.1), 0.01));
        assert!(close(independent(2, 1, 0.5).block_failure, 0.5));
    }

    #[test]
    fn bursts_leave_what_was_computed_for_the_issue() {
        let losses = Gilbert::of_loss(0.01, 3.0);
        assert!(close(losses.loss(), 0.01));
        for (k, m, stride, expected) in
            [(10, 2, 1, 7.0e-3), (10, 2, 4, 1.2e-3), (10, 2, 8, 1.7e-4), (20, 4, 4, 1.5e-4)]
        {
            let residual = gilbert(k, m, stride, losses).residual;
            assert!((residual / expected - 1.0).abs() < 0.02, "{k}+{m} D{stride}: {residual}");
        }
    }

    #[test]
    fn bursts_spread_far_apart_are_independent_losses() {
        let spread = gilbert(10, 2, 10_000, Gilbert::of_loss(0.02, 3.0));
        assert!(close(spread.residual, residual(10, 2, 0.02)));
    }

    #[test]
    fn bursts_of_a_small_block_agree_with_all_its_patterns_counted() {
        let losses = Gilbert { p: 0.1, r: 0.4 };
        let (k, m) = (3, 2);
        let step = |from: bool, to: bool| {
            let bad = if from { 1.0 - losses.r } else { losses.p };
            if to { bad } else { 1.0 - bad }
        };
        let mut expected = 0.0;
        for pattern in 0..1u32 << (k + m) {
            let lost = |at: u32| pattern >> at & 1 == 1;
            let start = if lost(0) { losses.loss() } else { 1.0 - losses.loss() };
            let weight: f64 = (1..k + m).map(|at| step(lost(at - 1), lost(at))).product();
            if pattern.count_ones() > m {
                let sources = (pattern & 0b111).count_ones();
                expected += start * weight * f64::from(sources) / f64::from(k);
            }
        }
        assert!(close(gilbert(k, m, 1, losses).residual, expected));
    }

    #[test]
    fn losses_that_are_played_leave_what_is_expected() {
        let losses = Gilbert::of_loss(0.02, 3.0);
        for (k, m, stride) in [(10, 2, 1), (10, 2, 4), (20, 4, 4), (64, 16, 1)] {
            let tally = play(k, m, stride, losses, (400, 10), 7);
            let expected = gilbert(k, m, stride, losses).residual;
            let off = (tally.residual() - expected).abs();
            assert!(off <= 4.0 * tally.se(), "{k}+{m} D{stride}: {tally:?}, {expected}");
        }
    }

    #[test]
    fn the_error_under_bursts_is_that_of_blocks_where_these_are_far_apart_and_more_where_not() {
        let losses = Gilbert::of_loss(0.02, 3.0);
        let (packets, k, m) = (500_000, 10, 2);
        let of_blocks = |stride| gilbert(k, m, stride, losses).se(packets / u64::from(k));
        let played = |stride| gilbert_se(k, m, stride, losses, packets);
        // A burst seldom reaches into the next block, but often into the neighbour of an interleaved one.
        let (alone, interleaved) = (played(1) / of_blocks(1), played(8) / of_blocks(8));
        assert!((0.8..1.3).contains(&alone), "{alone}");
        assert!(interleaved > 1.15, "{interleaved}");
        // Independent losses are the limit of short bursts.
        let independent_losses = Gilbert { p: 0.02, r: 0.98 };
        let ratio = gilbert_se(k, m, 1, independent_losses, packets)
            / independent(k, m, 0.02).se(packets / u64::from(k));
        assert!((0.8..1.2).contains(&ratio), "{ratio}");
    }

    #[test]
    fn the_smallest_m_is_enough_and_one_less_is_not() {
        for p in [0.001, 0.01, 0.05] {
            for k in [1, 4, 10, 64] {
                let Some(m) = smallest_m(k, p, 1e-4, 16) else { continue };
                assert!(residual(k, m, p) <= 1e-4, "{k}+{m} at {p}");
                assert!(m == 1 || residual(k, m - 1, p) > 1e-4, "{k}+{m} at {p}");
            }
        }
        assert_eq!(smallest_m(64, 0.5, 1e-4, 16), None);
    }

    #[test]
    fn a_tally_finds_mean_and_error_of_a_known_sample() {
        let mut tally = Tally::default();
        assert_eq!((tally.residual(), tally.se()), (0.0, f64::INFINITY));
        for lost in [0, 0, 4, 0] {
            tally.block(10, lost);
        }
        // Variance 4 over 4 blocks: the mean block loses 1 ± 1 of 10.
        assert!(close(tally.residual(), 0.1) && close(tally.se(), 0.1));
        assert_eq!(tally.blocks(), 4);
    }
}
