//! Changes per time and prefix, in bounded memory: the step grows with the time that is covered.

use std::collections::BTreeMap;

/// More steps than these are joined to longer ones.
pub const STEPS_MAX: u64 = 120;
/// Prefixes that are told apart while counting.
const PREFIXES_MAX: usize = 1_000;
/// Lengths of a step in seconds; each is a multiple of the one before.
const STEPS_S: [u64; 8] = [60, 300, 900, 3_600, 21_600, 86_400, 604_800, 2_419_200];

/// Changes per step of time, by prefix.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Activity {
    /// Length of a step, seconds.
    pub step_s: u64,
    /// Begin of the first step, microseconds since the Unix epoch.
    pub first_us: u64,
    /// The most active prefixes, the most active first; then, if there are more, the rest, without a
    /// name.
    pub series: Vec<Series>,
    /// Prefixes there are; `None` if there were too many to tell them apart.
    pub prefixes: Option<usize>,
}

/// Changes below one prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Series {
    /// The id up to its first `/`, which belongs to it, or an id without one; `None` for all others.
    pub prefix: Option<String>,
    /// Changes in each step, from the first to the last.
    pub changes: Vec<u64>,
}

impl Activity {
    /// Changes in each step, of all prefixes.
    pub fn totals(&self) -> Vec<u64> {
        let steps = self.series.iter().map(|series| series.changes.len()).max().unwrap_or(0);
        let of = |step: usize| self.series.iter().filter_map(|series| series.changes.get(step)).sum();
        (0..steps).map(of).collect()
    }
}

/// The part of an id that stands for the site, the kind, or what ids begin with.
pub fn prefix_of(id: &str) -> &str {
    id.find('/').and_then(|slash| id.get(..=slash)).unwrap_or(id)
}

type Counts = BTreeMap<u64, u64>;

/// Counts changes in any order of time.
pub(super) struct Counting {
    step_s: u64,
    bounds: Option<(u64, u64)>,
    prefixes: BTreeMap<String, Counts>,
    rest: Counts,
}

impl Counting {
    pub(super) fn new() -> Counting {
        Counting { step_s: STEPS_S[0], bounds: None, prefixes: BTreeMap::new(), rest: Counts::new() }
    }

    pub(super) fn add(&mut self, time_us: u64, prefix: &str) {
        let step = |step_s: u64| time_us / 1_000_000 / step_s;
        let now = step(self.step_s);
        let (mut first, mut last) = self.bounds.unwrap_or((now, now));
        (first, last) = (first.min(now), last.max(now));
        while last - first >= STEPS_MAX {
            let factor = self.widen();
            (first, last) = (first / factor, last / factor);
        }
        self.bounds = Some((first, last));
        let counts = if self.prefixes.contains_key(prefix) || self.prefixes.len() < PREFIXES_MAX {
            if !self.prefixes.contains_key(prefix) {
                self.prefixes.insert(prefix.to_owned(), Counts::new());
            }
            self.prefixes.get_mut(prefix)
        } else {
            None
        };
        *counts.unwrap_or(&mut self.rest).entry(step(self.step_s)).or_default() += 1;
    }

    /// Takes the next longer step; gives back by how much it is longer.
    fn widen(&mut self) -> u64 {
        let longer = STEPS_S.into_iter().find(|step_s| *step_s > self.step_s);
        let longer = longer.unwrap_or_else(|| self.step_s.saturating_mul(10));
        let factor = longer / self.step_s;
        self.step_s = longer;
        for counts in self.prefixes.values_mut().chain([&mut self.rest]) {
            let mut joined = Counts::new();
            for (step, count) in counts.iter() {
                *joined.entry(step / factor).or_default() += count;
            }
            *counts = joined;
        }
        factor
    }

    /// The most active prefixes, at most so many, and the rest.
    pub(super) fn done(self, series_max: usize) -> Activity {
        let Some((first, last)) = self.bounds else { return Activity::default() };
        let prefixes = self.rest.is_empty().then_some(self.prefixes.len());
        let mut order: Vec<(u64, String, Counts)> =
            self.prefixes.into_iter().map(|(prefix, counts)| (counts.values().sum(), prefix, counts)).collect();
        order.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        let mut rest = self.rest;
        for (_, _, counts) in order.iter().skip(series_max) {
            counts.iter().for_each(|(step, count)| *rest.entry(*step).or_default() += count);
        }
        order.truncate(series_max);
        let steps = |counts: &Counts| (first..=last).map(|step| counts.get(&step).copied().unwrap_or(0)).collect();
        let mut series: Vec<Series> = order
            .into_iter()
            .map(|(_, prefix, counts)| Series { prefix: Some(prefix), changes: steps(&counts) })
            .collect();
        if !rest.is_empty() {
            series.push(Series { prefix: None, changes: steps(&rest) });
        }
        let first_us = first.saturating_mul(self.step_s).saturating_mul(1_000_000);
        Activity { step_s: self.step_s, first_us, series, prefixes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE_US: u64 = 60_000_000;

    #[test]
    fn steps_are_minutes_while_they_fit_and_gaps_are_zeros() {
        let mut counting = Counting::new();
        for (minute, prefix) in [(1_003, "b/"), (1_000, "a/"), (1_000, "a/"), (1_000, "b/"), (1_003, "c/")] {
            counting.add(minute * MINUTE_US + 5, prefix);
        }
        let activity = counting.done(2);
        assert_eq!((activity.step_s, activity.first_us, activity.prefixes), (60, 1_000 * MINUTE_US, Some(3)));
        let named = |n: usize| (activity.series[n].prefix.as_deref(), activity.series[n].changes.clone());
        assert_eq!(named(0), (Some("a/"), vec![2, 0, 0, 0]));
        assert_eq!(named(1), (Some("b/"), vec![1, 0, 0, 1]));
        assert_eq!(named(2), (None, vec![0, 0, 0, 1]));
        assert_eq!(activity.totals(), [3, 0, 0, 2]);
    }

    #[test]
    fn however_long_the_time_the_steps_are_few_and_nothing_is_lost() {
        for times in
            [vec![0, 119 * MINUTE_US], vec![0, 120 * MINUTE_US], vec![1, 400 * 86_400_000_000], vec![u64::MAX, 0, 7]]
        {
            let mut counting = Counting::new();
            times.iter().for_each(|time_us| counting.add(*time_us, "p"));
            let activity = counting.done(8);
            let totals = activity.totals();
            assert!(totals.len() as u64 <= STEPS_MAX, "{times:?}: {}", totals.len());
            assert_eq!(totals.iter().sum::<u64>(), times.len() as u64, "{times:?}");
        }
    }

    #[test]
    fn too_many_prefixes_are_counted_together() {
        let mut counting = Counting::new();
        (0..PREFIXES_MAX + 5).for_each(|n| counting.add(0, &format!("p{n:05}/")));
        counting.add(0, "p00003/");
        let activity = counting.done(1);
        assert_eq!(activity.prefixes, None);
        assert_eq!(activity.series[0], Series { prefix: Some("p00003/".into()), changes: vec![2] });
        assert_eq!(activity.series[1], Series { prefix: None, changes: vec![PREFIXES_MAX as u64 + 4] });
        assert_eq!(Counting::new().done(8), Activity::default());
    }

    #[test]
    fn a_prefix_reaches_to_the_first_slash() {
        assert_eq!(["a/b/c", "a/", "/a", "abc", "é/x"].map(prefix_of), ["a/", "a/", "/", "abc", "é/"]);
    }
}
