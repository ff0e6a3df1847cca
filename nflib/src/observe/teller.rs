//! The writing of events, the same for workers and NFs: of marked packets whatever happens, of others where a
//! tap takes them and there is time.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::{Budget, Catch, Event, FilterError, TapPoint, TapSet, TapSpec};
use crate::shm::{Mark, Region, TapFile, TapWriter};

/// Taps, the time they may take, and the ring into which is written what they take and what is marked.
pub struct Teller {
    taps: TapSet,
    budget: Budget,
    ring: TapWriter<Arc<TapFile>>,
    region: Arc<Region>,
    /// One packet's bytes.
    bytes: Vec<u8>,
}

impl Teller {
    /// One without taps, of packets in this region.
    #[must_use]
    pub fn new(file: &Arc<TapFile>, region: Arc<Region>) -> Self {
        let (taps, budget, bytes) = (TapSet::default(), Budget::default(), Vec::new());
        Self { taps, budget, ring: file.writer(), region, bytes }
    }

    /// Sets other taps. Where one of them cannot be, there are none.
    ///
    /// # Errors
    /// A filter that is none.
    pub fn set_taps(&mut self, taps: &[TapSpec]) -> Result<(), FilterError> {
        self.taps = TapSet::default();
        self.taps = TapSet::new(taps)?;
        Ok(())
    }

    /// Bounds the time that taps take otherwise.
    pub fn bound_taps(&mut self, budget: Budget) {
        self.budget = budget;
    }

    /// Whether there is a tap anywhere.
    #[must_use]
    #[inline]
    pub fn has_taps(&self) -> bool {
        !self.taps.is_empty()
    }

    /// Whether a tap sits at a place.
    pub fn has_tap_at(&self, is_here: impl Fn(TapPoint) -> bool) -> bool {
        self.taps.any_at(is_here)
    }

    /// Whether there is time for taps to look at so many packets, at a place where one sits. Where there is
    /// none, the packets are counted as lost to them; where there is, [`Teller::end`] follows.
    pub fn begin(&mut self, time_ns: u64, pkts: usize) -> bool {
        let has_time = self.budget.has_time(time_ns);
        if !has_time {
            self.ring.skip(pkts as u64);
        }
        has_time
    }

    /// Taps have looked for so long.
    pub fn end(&mut self, took_ns: u64) {
        self.budget.spend(took_ns);
    }

    /// Writes of a packet that is marked, of whose bytes so many are shown where the mark says so; or that a tap at
    /// this place takes, where taps look (`tapped`). Without bytes where the event names a place that is none.
    pub fn tell(
        &mut self,
        mut event: Event,
        (mark, shown_bytes): (Option<Mark>, u16),
        tapped: bool,
        is_here: impl Fn(TapPoint) -> bool,
    ) {
        if mark.is_none() && !tapped {
            return;
        }
        let shown_bytes = if mark == Some(Mark::Shown) { shown_bytes } else { 0 };
        let len = if tapped { event.len_bytes } else { shown_bytes.min(event.len_bytes) };
        self.bytes.resize(len.into(), 0);
        if !self.region.read(event.buffer, event.offset_bytes, &mut self.bytes) {
            self.bytes.clear();
        }
        let catch = if tapped { self.taps.take(is_here, &self.bytes) } else { Catch::default() };
        if mark.is_none() && catch.taps == 0 {
            return;
        }
        (event.taps, event.marked) = (catch.taps, mark.is_some());
        let kept_bytes = usize::from(catch.snap_bytes.max(shown_bytes)).min(self.bytes.len());
        self.ring.write(event, &self.bytes[..kept_bytes]);
    }
}
