//! How far another clock is ahead of one's own, from questions and answers, and how sure that is.
//!
//! A question sent at `sent` and answered at `received`, both by one's own clock, while the other
//! clock showed `other`, proves that the other is ahead by at least `other - received` and at most
//! `other - sent`. Several answers narrow that from both sides: what is left is never wider than the
//! shortest round trip, and is certain, however lopsided the way there and back were.

/// Clocks run apart by at most so much: crystals, and what keeps them in time.
const DRIFT_PPM: i64 = 100;

/// One question and its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockSample {
    /// When it was asked, by one's own clock.
    pub sent_us: u64,
    /// What the other clock showed.
    pub other_us: u64,
    /// When the answer came, by one's own clock.
    pub received_us: u64,
}

/// How far another clock is ahead, and how far that may be off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offset {
    /// The other clock minus one's own.
    pub ahead_us: i64,
    /// The truth is at most so far away.
    pub uncertainty_us: u64,
}

impl Offset {
    /// A time of the other clock, by one's own.
    pub fn to_own(self, other_us: u64) -> i64 {
        (other_us as i64).saturating_sub(self.ahead_us)
    }

    /// How far a third clock is ahead, which is `next` ahead of the other.
    #[must_use]
    pub fn then(self, next: Offset) -> Offset {
        Offset {
            ahead_us: self.ahead_us.saturating_add(next.ahead_us),
            uncertainty_us: self.uncertainty_us.saturating_add(next.uncertainty_us),
        }
    }
}

/// Bounds on how far another clock is ahead, narrowed with every answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClockBounds {
    /// Lowest and highest, and when that held, by one's own clock.
    bounds: Option<(i64, i64, u64)>,
}

impl ClockBounds {
    /// Takes an answer. One that contradicts what was known says that a clock was set: what was
    /// known no longer holds.
    pub fn take(&mut self, sample: ClockSample) {
        let ClockSample { sent_us, other_us, received_us } = sample;
        if received_us < sent_us {
            return;
        }
        // The microsecond beyond: both clocks cut theirs off.
        let low = (other_us as i64).saturating_sub(received_us as i64).saturating_sub(1);
        let high = (other_us as i64).saturating_sub(sent_us as i64).saturating_add(1);
        let (known_low, known_high) = self.at(received_us).unwrap_or((low, high));
        let narrowed = (low.max(known_low), high.min(known_high));
        let (low, high) = if narrowed.0 <= narrowed.1 { narrowed } else { (low, high) };
        self.bounds = Some((low, high, received_us));
    }

    /// Takes what is known otherwise: that the other clock is ahead by at least and at most so much, as
    /// when something that was sent at one time by one's own clock was there at another by the other.
    /// What contradicts the answers does not count.
    pub fn narrow(&mut self, at_least_us: Option<i64>, at_most_us: Option<i64>, now_us: u64) {
        let Some((low, high)) = self.at(now_us) else { return };
        let low = at_least_us.map_or(low, |at_least_us| low.max(at_least_us));
        let high = at_most_us.map_or(high, |at_most_us| high.min(at_most_us));
        if low <= high {
            self.bounds = Some((low, high, now_us));
        }
    }

    fn at(&self, now_us: u64) -> Option<(i64, i64)> {
        let (low, high, at_us) = self.bounds?;
        let drift = now_us.saturating_sub(at_us).min(1 << 40) as i64 * DRIFT_PPM / 1_000_000;
        Some((low.saturating_sub(drift), high.saturating_add(drift)))
    }

    /// The middle of the bounds; `None` before the first answer. It gets less sure as time passes.
    pub fn offset(&self, now_us: u64) -> Option<Offset> {
        let (low, high) = self.at(now_us)?;
        let width = high.saturating_sub(low);
        Some(Offset { ahead_us: low.saturating_add(width / 2), uncertainty_us: (width as u64).div_ceil(2) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_truth_is_always_within_the_bounds(
            ahead in -1_000_000i64..1_000_000,
            trips in proptest::collection::vec((0u64..5_000, 0u64..5_000, 0u64..500_000), 1..20),
        ) {
            let (mut bounds, mut now, mut shortest) = (ClockBounds::default(), 10_000_000u64, u64::MAX);
            for (there, back, pause) in trips {
                let other_us = ((now + there) as i64 + ahead) as u64;
                bounds.take(ClockSample { sent_us: now, other_us, received_us: now + there + back });
                now += there + back;
                shortest = shortest.min(there + back);
                let offset = bounds.offset(now).unwrap();
                prop_assert!(offset.ahead_us.abs_diff(ahead) <= offset.uncertainty_us, "{offset:?}");
                now += pause;
            }
            let offset = bounds.offset(now).unwrap();
            let drifted = 20 * 510_000 * DRIFT_PPM as u64 / 1_000_000;
            prop_assert!(offset.uncertainty_us <= shortest / 2 + drifted + 3, "{offset:?} {shortest}");
        }
    }

    #[test]
    fn lopsided_ways_narrow_each_other() {
        let mut bounds = ClockBounds::default();
        bounds.take(ClockSample { sent_us: 1_000, other_us: 1_090, received_us: 1_100 });
        bounds.take(ClockSample { sent_us: 2_000, other_us: 2_010, received_us: 2_100 });
        let offset = bounds.offset(2_100).unwrap();
        assert!(offset.ahead_us.abs() <= 1 && offset.uncertainty_us <= 12, "{offset:?}");
        assert_eq!(offset.to_own(5_000), 5_000 - offset.ahead_us);
        assert_eq!(bounds.offset(2_100 + 10_000_000).unwrap().uncertainty_us, offset.uncertainty_us + 1_000);
    }

    #[test]
    fn what_is_known_otherwise_narrows_and_never_contradicts() {
        let mut bounds = ClockBounds::default();
        bounds.narrow(Some(1), Some(2), 0);
        assert_eq!(bounds.offset(0), None, "without an answer nothing is known");
        bounds.take(ClockSample { sent_us: 1_000, other_us: 1_050, received_us: 1_100 });
        bounds.narrow(Some(-10), None, 1_100);
        bounds.narrow(None, Some(10), 1_100);
        bounds.narrow(Some(70), None, 1_100);
        assert_eq!(bounds.offset(1_100), Some(Offset { ahead_us: 0, uncertainty_us: 10 }));
    }

    #[test]
    fn a_clock_that_was_set_begins_anew() {
        let mut bounds = ClockBounds::default();
        bounds.take(ClockSample { sent_us: 1_000, other_us: 1_050, received_us: 1_100 });
        bounds.take(ClockSample { sent_us: 2_000, other_us: 9_050, received_us: 2_100 });
        assert!(bounds.offset(2_100).unwrap().ahead_us.abs_diff(7_000) <= 52);
        bounds.take(ClockSample { sent_us: 3_000, other_us: 0, received_us: 2_000 });
        assert!(bounds.offset(2_100).unwrap().ahead_us > 6_000, "an answer before its question says nothing");
    }
}
