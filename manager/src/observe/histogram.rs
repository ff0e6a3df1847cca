//! How often a time was how long: counts in buckets, four to each power of two.
//!
//! The buckets are fixed: 0 to 3 nanoseconds have one each, then every range from 2^n to 2^(n+1) is cut into
//! four equal ones. So any two histograms add up, a value's bucket is two shifts away, and what is read
//! from a bucket is at most a quarter too large. (A general HDR histogram keeps decimal digits instead, at
//! sixteen buckets or more to a power of two.)
#![forbid(unsafe_code)]

use nflib::control::Histogram as Report;

/// Buckets to each power of two, as a power of two.
const LOG2_PER_OCTAVE: u32 = 2;
const PER_OCTAVE: usize = 1 << LOG2_PER_OCTAVE;
/// Those of all values of 64 bits.
const BUCKETS: usize = (u64::BITS - LOG2_PER_OCTAVE + 1) as usize * PER_OCTAVE;

/// Counts of times, nanoseconds.
#[derive(Clone, Debug)]
pub struct Histogram {
    buckets: Box<[u64; BUCKETS]>,
    count: u64,
    sum_ns: u64,
    max_ns: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: Box::new([0; BUCKETS]), count: 0, sum_ns: 0, max_ns: 0 }
    }
}

/// The bucket of a value.
fn bucket_of(value_ns: u64) -> usize {
    if value_ns < PER_OCTAVE as u64 {
        return value_ns as usize;
    }
    let octave = value_ns.ilog2() - LOG2_PER_OCTAVE;
    // The bits behind the first one say which quarter of the octave.
    ((octave as usize) << LOG2_PER_OCTAVE) + (value_ns >> octave) as usize
}

/// The largest value of a bucket.
fn end_of(bucket: usize) -> u64 {
    if bucket < PER_OCTAVE {
        return bucket as u64;
    }
    let octave = (bucket >> LOG2_PER_OCTAVE) as u32 - 1;
    let quarter = (bucket & (PER_OCTAVE - 1)) as u64 + PER_OCTAVE as u64;
    // The last bucket ends with the largest number there is.
    (quarter << octave) + ((1 << octave) - 1)
}

impl Histogram {
    /// Counts a value.
    pub fn record(&mut self, value_ns: u64) {
        self.buckets[bucket_of(value_ns)] += 1;
        self.count += 1;
        self.sum_ns = self.sum_ns.saturating_add(value_ns);
        self.max_ns = self.max_ns.max(value_ns);
    }

    /// How many values were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The value below or at which `per_mille` of a thousand values lie, nanoseconds: the end of its bucket, or
    /// the largest value seen if that is less. 0 without values.
    #[must_use]
    pub fn quantile_ns(&self, per_mille: u64) -> u64 {
        let wanted = u128::from(self.count) * u128::from(per_mille.min(1000));
        let rank = u64::try_from(wanted.div_ceil(1000)).unwrap_or(u64::MAX).max(1);
        let mut below = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            below += count;
            if below >= rank {
                return end_of(bucket).min(self.max_ns);
            }
        }
        0
    }

    /// As it is told.
    #[must_use]
    pub fn report(&self) -> Report {
        let filled = self.buckets.iter().enumerate().filter(|(_, count)| **count > 0);
        Report {
            count: self.count,
            sum_ns: self.sum_ns,
            max_ns: self.max_ns,
            p50_ns: self.quantile_ns(500),
            p90_ns: self.quantile_ns(900),
            p99_ns: self.quantile_ns(990),
            p999_ns: self.quantile_ns(999),
            buckets: filled.map(|(bucket, &count)| (end_of(bucket), count)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(values: &[u64]) -> Histogram {
        let mut histogram = Histogram::default();
        values.iter().for_each(|&value| histogram.record(value));
        histogram
    }

    /// Values of all sizes.
    fn values() -> impl Strategy<Value = Vec<u64>> {
        let value = (any::<u64>(), 0u32..64).prop_map(|(value, shift)| value >> shift);
        prop::collection::vec(value, 1..200)
    }

    #[test]
    fn the_buckets_follow_each_other_without_a_gap_to_the_largest_number() {
        for bucket in 1..BUCKETS {
            assert!(end_of(bucket) > end_of(bucket - 1), "{bucket}");
            assert_eq!(bucket_of(end_of(bucket - 1) + 1), bucket);
            assert_eq!(bucket_of(end_of(bucket)), bucket);
        }
        assert_eq!(end_of(BUCKETS - 1), u64::MAX);
    }

    #[test]
    fn each_power_of_two_has_four_buckets() {
        for octave in 2..63 {
            let low = 1u64 << octave;
            assert_eq!(bucket_of(2 * low) - bucket_of(low), 4, "2^{octave}");
        }
    }

    #[test]
    fn nothing_counted_is_all_zeros() {
        assert_eq!(Histogram::default().report(), Report::default());
    }

    proptest! {
        #[test]
        fn a_quantile_is_at_most_a_quarter_above_the_value_of_that_rank(
            values in values(), per_mille in 0u64..=1000,
        ) {
            let mut sorted = values.clone();
            sorted.sort_unstable();
            let rank = (sorted.len() as u64 * per_mille).div_ceil(1000).max(1) as usize;
            let exact = sorted[rank - 1];
            let read = of(&values).quantile_ns(per_mille);
            prop_assert!(read >= exact, "{read} < {exact}");
            prop_assert!(read - exact <= exact / 4, "{read} > {exact} + a quarter");
        }

        #[test]
        fn the_report_counts_every_value_once_in_ascending_buckets(values in values()) {
            let report = of(&values).report();
            prop_assert_eq!(report.count, values.len() as u64);
            prop_assert_eq!(report.max_ns, *values.iter().max().unwrap());
            let sum = values.iter().fold(0u64, |sum, &value| sum.saturating_add(value));
            prop_assert_eq!(report.sum_ns, sum);
            prop_assert!(report.buckets.windows(2).all(|pair| pair[0].0 < pair[1].0));
            let mut low = None;
            for &(end, count) in &report.buckets {
                let inside = |&&value: &&u64| value <= end && low.is_none_or(|low| value > low);
                prop_assert_eq!(values.iter().filter(inside).count() as u64, count);
                low = Some(end);
            }
            let quantiles = [report.p50_ns, report.p90_ns, report.p99_ns, report.p999_ns];
            prop_assert!(quantiles.windows(2).all(|pair| pair[0] <= pair[1]));
            prop_assert!(quantiles[3] <= report.max_ns);
        }
    }
}
