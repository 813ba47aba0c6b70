//! Figures over several traced instructions. Pure.

use super::path::{Journey, Span};
use fieldstream_client::Hop;
use std::collections::BTreeMap;

/// Percentiles of some durations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spread {
    pub(crate) p50_us: i64,
    pub(crate) p99_us: i64,
    pub(crate) max_us: i64,
}

impl Spread {
    /// `None` of nothing.
    pub(crate) fn of(mut durations_us: Vec<i64>) -> Option<Spread> {
        durations_us.sort_unstable();
        let max_us = *durations_us.last()?;
        let rank = |percent: usize| {
            let nth = (durations_us.len() * percent).div_ceil(100).max(1);
            durations_us.get(nth - 1).copied().unwrap_or(max_us)
        };
        Some(Spread { p50_us: rank(50), p99_us: rank(99), max_us })
    }
}

/// What several journeys have in common.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    /// Spans by their ends, in the order of the way.
    pub(crate) spans: BTreeMap<(Hop, Hop), Spread>,
    /// Until the client has its outcome.
    pub(crate) outcome: Option<Spread>,
    /// Until it is stored.
    pub(crate) stored: Option<Spread>,
}

impl Figures {
    /// Of all of them.
    pub(crate) fn of(journeys: &[Journey]) -> Figures {
        let mut spans: BTreeMap<(Hop, Hop), Vec<i64>> = BTreeMap::new();
        for Span { from, to, took_us, .. } in journeys.iter().flat_map(Journey::spans) {
            spans.entry((to, from)).or_default().push(took_us);
        }
        let spread = |((to, from), took)| Spread::of(took).map(|spread| ((to, from), spread));
        Figures {
            spans: spans.into_iter().filter_map(spread).collect(),
            outcome: Spread::of(journeys.iter().filter_map(Journey::outcome_us).collect()),
            stored: Spread::of(journeys.iter().filter_map(Journey::stored_us).collect()),
        }
    }

    /// Percentiles of a span.
    pub(crate) fn span(&self, from: Hop, to: Hop) -> Option<Spread> {
        self.spans.get(&(to, from)).copied()
    }
}

/// Which journey is the typical one: as long as half of them at least.
pub(crate) fn median(journeys: &[Journey]) -> Option<usize> {
    let mut order: Vec<usize> = (0..journeys.len()).collect();
    order.sort_by_key(|i| journeys[*i].outcome_us().unwrap_or(i64::MAX));
    order.get(journeys.len().div_ceil(2).max(1) - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::path::Point;

    fn journey(outcome_us: i64) -> Journey {
        let point = |at_us| Point { at_us, uncertainty_us: 0, clock: 0 };
        let points = [(Hop::ClientSent, point(0)), (Hop::ClientReceived, point(outcome_us))];
        Journey { points: points.into_iter().collect(), ..Journey::default() }
    }

    #[test]
    fn percentiles_are_those_of_the_nearest_rank() {
        let spread = |n: i64| Spread::of((1..=n).rev().collect()).map(|s| (s.p50_us, s.p99_us, s.max_us));
        assert_eq!((spread(0), spread(1), spread(2)), (None, Some((1, 1, 1)), Some((1, 2, 2))));
        assert_eq!(spread(1000), Some((500, 990, 1000)));
    }

    #[test]
    fn the_median_is_one_of_them() {
        let journeys: Vec<Journey> = [30, 10, 20].map(journey).into_iter().collect();
        assert_eq!((median(&journeys), median(&journeys[..2]), median(&[])), (Some(2), Some(1), None));
        let figures = Figures::of(&journeys);
        assert_eq!(figures.outcome.map(|s| s.p50_us), Some(20));
        assert_eq!(figures.span(Hop::ClientSent, Hop::ClientReceived).map(|s| s.max_us), Some(30));
    }
}
