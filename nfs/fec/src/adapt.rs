//! Adaptive redundancy: how much parity, and how far apart, from what the reports say.
//!
//! Two pure functions choose: the smallest m whose expected residual loss is under the target, for
//! independent losses at the rate reported; and the stride D that spreads a burst, of the length that
//! 99 % of all bursts do not exceed, over so many blocks that each loses at most m packets of it. A
//! controller smooths what it is told, follows a rise at once, and a fall only after it lasted.
#![forbid(unsafe_code)]

use crate::code::M_MAX;
use crate::model;
use crate::report::{BURST_BINS, Bursts};
use crate::wire::{SPAN_MAX_PKTS, STRIDE_MAX};

/// Share of the past that each report leaves: what was 8 reports ago counts a third.
const MEMORY: f64 = 7.0 / 8.0;
/// Reports in a row that must agree before redundancy is taken back.
const PATIENCE_REPORTS: u32 = 8;
/// Less redundancy must be enough for so much more loss than there is.
const MARGIN: f64 = 1.25;
/// Once on, redundancy goes off below this share of the floor.
const OFF_SHARE: f64 = 0.5;
/// Loss that is assumed where none was reported yet, and against which short blocks are measured.
pub const ASSUMED_LOSS: f64 = 0.01;

/// How many repair packets a block gets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Redundancy {
    /// Always this many, 1 to 16.
    Fixed {
        /// Repair packets of a full block.
        m: u8,
    },
    /// As many as the reported loss asks for.
    Adaptive(Adaptive),
}

/// What adaptive redundancy aims at. All are shares of packets, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adaptive {
    /// Residual loss to stay under.
    pub target: f64,
    /// Most repair packets for each source packet; at least 1 / k.
    pub overhead_max: f64,
    /// Below this loss no parity is sent.
    pub floor: f64,
}

impl Default for Adaptive {
    /// One packet in 10,000 lost at most, half as much parity as data at most, off below 0.01 % loss.
    fn default() -> Self {
        Self { target: 1e-4, overhead_max: 0.5, floor: 1e-4 }
    }
}

impl Adaptive {
    /// The largest m that the overhead's cap allows; 0 when it allows none.
    #[must_use]
    pub fn m_max(&self, k: u8) -> u8 {
        // A cap of 0.3 must allow 3 for 10, whatever 0.3 × 10 is in binary.
        let most = (self.overhead_max * f64::from(k) + 1e-9).floor();
        most.clamp(0.0, M_MAX as f64) as u8
    }
}

/// How far apart a block's packets are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stride {
    /// Always D, 1 to 32; 1 is no interleaving.
    Fixed(u8),
    /// As far as the reported bursts ask for, at most so far.
    Adaptive {
        /// Largest D, 1 to 32.
        max: u8,
    },
}

impl Stride {
    /// The largest D that may be chosen.
    #[must_use]
    pub fn max(&self) -> u8 {
        match *self {
            Self::Fixed(stride) | Self::Adaptive { max: stride } => stride,
        }
    }
}

/// What was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Repair packets of a full block; 0 when none are sent.
    pub m: u8,
    /// Stride D.
    pub stride: u8,
}

/// The smallest m, 1 or more, that keeps the expected residual loss under the target; the cap's when
/// none does.
#[must_use]
pub fn choose_m(k: u8, loss: f64, aim: &Adaptive) -> u8 {
    let m_max = aim.m_max(k).max(1);
    let m = model::smallest_m(k.into(), loss, aim.target, m_max.into());
    m.map_or(m_max, |m| m as u8)
}

/// The stride for which the 99th percentile of burst lengths hits no block more than m times: its
/// length over m, rounded up. `bursts[n]` is how many bursts were n + 1 packets long.
#[must_use]
pub fn choose_stride(k: u8, m: u8, bursts: &[f64; BURST_BINS], max: u8) -> u8 {
    let all: f64 = bursts.iter().sum();
    if m == 0 || all <= 0.0 {
        return 1;
    }
    let mut sum = 0.0;
    let within = bursts.iter().position(|&count| {
        sum += count;
        sum >= 0.99 * all
    });
    let length_pkts = within.unwrap_or(BURST_BINS - 1) + 1;
    let longest = usize::from(max).min(STRIDE_MAX).min(SPAN_MAX_PKTS / usize::from(k.max(1)));
    length_pkts.div_ceil(m.into()).clamp(1, longest.max(1)) as u8
}

/// What one report says that earlier ones did not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Packets that came by themselves.
    pub received: u32,
    /// Packets that did not.
    pub lost: u32,
    /// Bursts among them.
    pub bursts: Bursts,
}

/// Follows the reports of one session.
#[derive(Clone, Debug)]
pub struct Controller {
    k: u8,
    redundancy: Redundancy,
    stride: Stride,
    choice: Choice,
    /// Decaying counts of packets, lost packets and bursts.
    packets: f64,
    lost: f64,
    bursts: [f64; BURST_BINS],
    /// Reports in a row that asked for less, and the most that any of them asked for.
    calm_m: Calm,
    calm_stride: Calm,
}

#[derive(Clone, Copy, Debug, Default)]
struct Calm {
    reports: u32,
    most: u8,
}

impl Calm {
    /// What to use when `now` is in use and `wanted` is asked for.
    fn follow(&mut self, now: u8, wanted: u8) -> u8 {
        if wanted >= now {
            *self = Self::default();
            return wanted;
        }
        self.reports += 1;
        self.most = self.most.max(wanted);
        if self.reports < PATIENCE_REPORTS {
            return now;
        }
        std::mem::take(self).most
    }
}

impl Controller {
    /// Begins with what [`ASSUMED_LOSS`] asks for.
    #[must_use]
    pub fn new(k: u8, redundancy: Redundancy, stride: Stride) -> Self {
        let m = match &redundancy {
            Redundancy::Fixed { m } => *m,
            Redundancy::Adaptive(aim) => choose_m(k, ASSUMED_LOSS, aim),
        };
        let first = match stride {
            Stride::Fixed(stride) => stride,
            Stride::Adaptive { .. } => 1,
        };
        Self {
            k,
            redundancy,
            stride,
            choice: Choice { m, stride: first },
            packets: 0.0,
            lost: 0.0,
            bursts: [0.0; BURST_BINS],
            calm_m: Calm::default(),
            calm_stride: Calm::default(),
        }
    }

    /// What is in use.
    #[must_use]
    pub fn choice(&self) -> Choice {
        self.choice
    }

    /// The smoothed loss, a share; `None` before the first report with packets in it.
    #[must_use]
    pub fn loss(&self) -> Option<f64> {
        (self.packets > 0.0).then(|| self.lost / self.packets)
    }

    /// Takes a report's news and chooses anew.
    pub fn observe(&mut self, news: &News) -> Choice {
        let packets = f64::from(news.received) + f64::from(news.lost);
        if packets == 0.0 {
            return self.choice;
        }
        self.packets = self.packets * MEMORY + packets;
        self.lost = self.lost * MEMORY + f64::from(news.lost);
        for (smooth, &count) in self.bursts.iter_mut().zip(&news.bursts.0) {
            *smooth = *smooth * MEMORY + f64::from(count);
        }
        let loss = self.lost / self.packets;
        if let Redundancy::Adaptive(aim) = self.redundancy {
            let wanted = self.wanted_m(loss, &aim);
            self.choice.m = self.calm_m.follow(self.choice.m, wanted);
        }
        if let Stride::Adaptive { max } = self.stride {
            let wanted = choose_stride(self.k, self.choice.m, &self.bursts, max);
            self.choice.stride = self.calm_stride.follow(self.choice.stride, wanted);
        }
        self.choice
    }

    fn wanted_m(&self, loss: f64, aim: &Adaptive) -> u8 {
        let now = self.choice.m;
        let floor = if now > 0 { aim.floor * OFF_SHARE } else { aim.floor };
        if loss < floor || loss <= 0.0 {
            return 0;
        }
        let needed = choose_m(self.k, loss, aim);
        if needed >= now { needed } else { choose_m(self.k, loss * MARGIN, aim).min(now) }
    }
}

#[cfg(test)]
mod tests;
