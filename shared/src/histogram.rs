//! A histogram of durations that costs next to nothing to fill: fixed buckets, two per doubling, in
//! relaxed atomics. What happens per batch is recorded once, with the batch's records as weight.

use std::sync::atomic::{AtomicU64, Ordering};

/// The smallest bound; everything faster is in the first bucket.
const FIRST_BOUND_US: u64 = 16;
/// Up to 50 s, two per doubling: 16, 24, 32, 48, 64, 96, …
const BUCKETS: usize = 44;

/// Counts of durations. Written by any number of threads at once.
#[derive(Debug)]
pub struct Histogram {
    /// The last one holds what is above all bounds.
    buckets: [AtomicU64; BUCKETS + 1],
    sum_us: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { buckets: std::array::from_fn(|_| AtomicU64::new(0)), sum_us: AtomicU64::new(0) }
    }
}

impl Histogram {
    /// Counts a duration for each of `weight` records.
    pub fn record(&self, duration_us: u64, weight: u64) {
        self.buckets[bucket_of(duration_us)].fetch_add(weight, Ordering::Relaxed);
        self.sum_us.fetch_add(duration_us.saturating_mul(weight), Ordering::Relaxed);
    }

    /// What was counted so far. Counts that come in meanwhile may be in it or not.
    pub fn counts(&self) -> Counts {
        let buckets = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        Counts { buckets, sum_us: self.sum_us.load(Ordering::Relaxed) }
    }
}

/// What a [`Histogram`] had counted at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts {
    buckets: Vec<u64>,
    /// Sum of all durations.
    pub sum_us: u64,
}

impl Counts {
    /// For each bound, in order: how many durations were at most that long.
    pub fn cumulative(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut total = 0;
        self.buckets.iter().take(BUCKETS).enumerate().map(move |(i, count)| {
            total += count;
            (bound_us(i), total)
        })
    }

    /// How many durations were counted.
    pub fn total(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// The longest duration of a bucket.
fn bound_us(bucket: usize) -> u64 {
    let doubled = FIRST_BOUND_US << (bucket / 2);
    if bucket.is_multiple_of(2) { doubled } else { doubled + doubled / 2 }
}

fn bucket_of(duration_us: u64) -> usize {
    if duration_us <= FIRST_BOUND_US {
        return 0;
    }
    let below = duration_us - 1;
    let octave = below.ilog2();
    let is_upper_half = below >> (octave - 1) & 1;
    let bucket = 2 * (octave - FIRST_BOUND_US.ilog2()) as usize + 1 + is_upper_half as usize;
    bucket.min(BUCKETS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_is_in_the_first_bucket_whose_bound_it_does_not_pass() {
        let durations = (0..200).chain((4..36).flat_map(|n| [(1u64 << n) - 1, 1 << n, (1 << n) + 1, 3 << (n - 1)]));
        for duration_us in durations.chain([u64::MAX]) {
            let expected = (0..BUCKETS).find(|i| duration_us <= bound_us(*i)).unwrap_or(BUCKETS);
            assert_eq!(bucket_of(duration_us), expected, "{duration_us}");
        }
        assert!(bound_us(BUCKETS - 1) > 50_000_000);
    }

    #[test]
    fn counts_are_weighted_and_cumulative() {
        let histogram = Histogram::default();
        histogram.record(20, 3);
        histogram.record(100, 1);
        histogram.record(u64::MAX / 2, 1);
        let counts = histogram.counts();
        assert_eq!(counts.total(), 5);
        let at = |bound| counts.cumulative().find(|(b, _)| *b == bound).map(|(_, n)| n);
        assert_eq!((at(16), at(24), at(96), at(128)), (Some(0), Some(3), Some(3), Some(4)));
        assert_eq!(counts.cumulative().last().map(|(_, n)| n), Some(4), "what is above all bounds is in none");
    }
}
