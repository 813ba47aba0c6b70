//! How much history stays: by age and size, for documents by the beginning of their ids. Pure: is handed
//! the rows in order and says from which revision on each document's history is to begin.

use std::collections::BTreeMap;
use std::time::Duration;

const MINUTE_US: u64 = 60_000_000;
/// History that is too large is cut to so much of what is allowed, in percent: not to be too large again
/// at once.
const CUT_TO_PERCENT: u128 = 90;

/// What of the history stays of documents whose ids begin alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryRule {
    /// How the ids begin; of several rules that fit the one with the longest prefix counts.
    pub prefix: String,
    /// Older changes go; `None`: whatever their age.
    pub age_max: Option<Duration>,
    /// The oldest changes go if all together have more bytes, keys included; `None`: whatever their size.
    pub bytes_max: Option<u64>,
}

/// The rules, and what they were found to mean by earlier sweeps.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    /// The longest prefixes first; the last one fits every document.
    rules: Vec<HistoryRule>,
    /// Of each rule: changes before this time go because there are too many.
    full_before_us: Vec<u64>,
}

impl Rules {
    /// `rest` is for documents that no rule fits.
    pub(super) fn new(mut rules: Vec<HistoryRule>, rest: HistoryRule) -> Rules {
        rules.retain(|rule| !rule.prefix.is_empty());
        rules.push(HistoryRule { prefix: String::new(), ..rest });
        rules.sort_by_key(|rule| std::cmp::Reverse(rule.prefix.len()));
        Rules { full_before_us: vec![0; rules.len()], rules }
    }

    fn fitting(&self, document: &str) -> usize {
        self.rules.iter().position(|rule| document.starts_with(&rule.prefix)).unwrap_or(self.rules.len() - 1)
    }

    /// Whether some rule can only be carried out by looking at every row.
    pub(super) fn look_at_rows(&self) -> bool {
        let last = self.rules.len() - 1;
        self.rules.iter().enumerate().any(|(i, rule)| rule.age_max.is_some() || (i < last && rule.bytes_max.is_some()))
    }

    /// Bounds what all other documents may take.
    pub(super) fn bound_rest(&mut self, bytes_max: Option<u64>) {
        if let Some(rest) = self.rules.last_mut() {
            rest.bytes_max = bytes_max;
        }
    }

    fn cutoff_us(&self, rule: usize, now_us: u64) -> u64 {
        let age = self.rules.get(rule).and_then(|rule| rule.age_max);
        let old = age.map_or(0, |age| now_us.saturating_sub(age.as_micros() as u64));
        old.max(self.full_before_us.get(rule).copied().unwrap_or(0))
    }

    /// Changes before this time go whatever their document.
    pub(super) fn all_before_us(&self, now_us: u64) -> u64 {
        (0..self.rules.len()).map(|rule| self.cutoff_us(rule, now_us)).min().unwrap_or(0)
    }

    /// Takes in what a sweep counted; `pages_per_byte` is how much of the file a byte of a row takes, for
    /// the rest is bounded by what it takes in the file. True if another sweep has more to cut.
    pub(super) fn learn(&mut self, counted: &[Counted], pages_per_byte: f64) -> bool {
        let last = self.rules.len() - 1;
        let mut is_more = false;
        for (i, ((rule, full), counted)) in self.rules.iter().zip(&mut self.full_before_us).zip(counted).enumerate() {
            let Some(bytes_max) = rule.bytes_max else { continue };
            let per_byte = if i == last { pages_per_byte.max(1.0) } else { 1.0 };
            let bytes_max = (bytes_max as f64 / per_byte) as u64;
            if counted.bytes > bytes_max {
                let before = counted.newest(bytes_max);
                is_more |= before > *full;
                *full = before.max(*full);
            }
        }
        is_more
    }
}

/// What a sweep found of the documents of one rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Counted {
    /// Bytes of the rows that stay.
    pub(super) bytes: u64,
    /// The same by the minute of their time.
    minutes: BTreeMap<u64, u64>,
}

impl Counted {
    /// The time from which on the changes have so many bytes less a little, as whole minutes.
    fn newest(&self, bytes_max: u64) -> u64 {
        let wanted = (u128::from(bytes_max) * CUT_TO_PERCENT / 100) as u64;
        let mut bytes = 0_u64;
        for (minute, of_minute) in self.minutes.iter().rev() {
            bytes = bytes.saturating_add(*of_minute);
            if bytes > wanted {
                return (minute + 1).saturating_mul(MINUTE_US);
            }
        }
        0
    }
}

/// A row of history, as far as it matters here.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen<'a> {
    pub(super) document: &'a str,
    pub(super) revision: u64,
    pub(super) time_us: u64,
    pub(super) bytes: u64,
    /// Whether it tells the whole state.
    pub(super) is_whole: bool,
}

/// A document whose history is to begin with this revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) document: String,
    pub(crate) first_kept: u64,
}

/// The document whose rows come now.
struct Current {
    document: String,
    rule: usize,
    cutoff_us: u64,
    first: u64,
    /// The newest row so far that history may begin with.
    begins: Option<u64>,
    /// Whether a row came that must stay.
    is_young: bool,
    /// Bytes by minute of the rows that may stay.
    bytes: Vec<(u64, u64)>,
}

/// One pass over all rows.
pub(super) struct Sweep<'a> {
    rules: &'a Rules,
    now_us: u64,
    counted: Vec<Counted>,
    current: Option<Current>,
    cuts: Vec<Cut>,
}

impl<'a> Sweep<'a> {
    pub(super) fn new(rules: &'a Rules, now_us: u64) -> Sweep<'a> {
        Sweep { rules, now_us, counted: vec![Counted::default(); rules.rules.len()], current: None, cuts: Vec::new() }
    }

    /// The next row, in the order of the keys.
    pub(super) fn see(&mut self, row: Seen<'_>) {
        if self.current.as_ref().is_none_or(|current| current.document != row.document) {
            self.end_document();
            let rule = self.rules.fitting(row.document);
            self.current = Some(Current {
                document: row.document.to_owned(),
                rule,
                cutoff_us: self.rules.cutoff_us(rule, self.now_us),
                first: row.revision,
                begins: None,
                is_young: false,
                bytes: Vec::new(),
            });
        }
        let Some(current) = &mut self.current else { return };
        if !current.is_young && row.is_whole {
            current.begins = Some(row.revision);
            current.bytes.clear();
        }
        current.is_young |= row.time_us >= current.cutoff_us;
        match current.bytes.last_mut() {
            Some((minute, bytes)) if *minute == row.time_us / MINUTE_US => *bytes += row.bytes,
            _ => current.bytes.push((row.time_us / MINUTE_US, row.bytes)),
        }
    }

    fn end_document(&mut self) {
        let Some(current) = self.current.take() else { return };
        if let Some(counted) = self.counted.get_mut(current.rule) {
            for (minute, bytes) in current.bytes {
                counted.bytes += bytes;
                *counted.minutes.entry(minute).or_default() += bytes;
            }
        }
        if let Some(first_kept) = current.begins.filter(|begins| *begins > current.first) {
            self.cuts.push(Cut { document: current.document, first_kept });
        }
    }

    /// What is to be cut of the documents whose rows have all been seen.
    pub(super) fn take_cuts(&mut self) -> Vec<Cut> {
        std::mem::take(&mut self.cuts)
    }

    /// The last row has been seen: what is still to be cut, and what stays.
    pub(super) fn end(mut self) -> (Vec<Cut>, Vec<Counted>) {
        self.end_document();
        (self.cuts, self.counted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_US: u64 = 60 * MINUTE_US;

    fn rule(prefix: &str, age_hours: Option<u64>, bytes_max: Option<u64>) -> HistoryRule {
        let age_max = age_hours.map(|hours| Duration::from_secs(hours * 3600));
        HistoryRule { prefix: prefix.to_owned(), age_max, bytes_max }
    }

    fn row(document: &str, revision: u64, hour: u64, is_whole: bool) -> Seen<'_> {
        Seen { document, revision, time_us: hour * HOUR_US, bytes: 100, is_whole }
    }

    fn sweep(rules: &Rules, now_hour: u64, rows: &[Seen<'_>]) -> (Vec<(String, u64)>, Vec<Counted>) {
        let mut sweep = Sweep::new(rules, now_hour * HOUR_US);
        rows.iter().for_each(|row| sweep.see(*row));
        let (cuts, counted) = sweep.end();
        (cuts.into_iter().map(|cut| (cut.document, cut.first_kept)).collect(), counted)
    }

    #[test]
    fn what_is_too_old_goes_back_to_a_row_that_tells_the_whole_state() {
        let rules = Rules::new(vec![rule("a/", Some(10), None)], rule("", None, None));
        let rows = [
            row("a/1", 4, 70, true),
            row("a/1", 5, 80, true),
            row("a/1", 6, 85, false),
            row("a/1", 7, 95, false),
            row("a/1", 8, 96, true),
            row("b/1", 1, 1, true),
            row("b/1", 2, 2, true),
        ];
        let (cuts, counted) = sweep(&rules, 100, &rows);
        assert_eq!(cuts, [("a/1".to_owned(), 5)], "6 and 7 need it");
        assert_eq!((counted[0].bytes, counted[1].bytes), (400, 200));
        assert!(rules.look_at_rows());
        assert_eq!(rules.all_before_us(100 * HOUR_US), 0);
    }

    #[test]
    fn the_newest_row_stays_and_nothing_goes_without_a_whole_state() {
        let rules = Rules::new(vec![], rule("", Some(10), None));
        let old = [row("a", 1, 1, true), row("a", 2, 2, true), row("a", 3, 3, false)];
        assert_eq!(sweep(&rules, 100, &old).0, [("a".to_owned(), 2)]);
        let never = [row("a", 7, 1, false), row("a", 8, 2, false), row("a", 9, 99, false)];
        assert_eq!(sweep(&rules, 100, &never).0, []);
        assert_eq!(rules.all_before_us(100 * HOUR_US), 90 * HOUR_US);
    }

    #[test]
    fn the_longest_prefix_counts() {
        let rules = Rules::new(vec![rule("a/", Some(10), None), rule("a/keep/", None, None)], rule("", Some(50), None));
        let rows: Vec<Seen<'_>> = ["a/1", "a/keep/1", "b"]
            .iter()
            .flat_map(|document| (1..=3).map(|n| row(document, n, 20 + n * 20, true)))
            .collect();
        let (cuts, _) = sweep(&rules, 100, &rows);
        assert_eq!(cuts, [("a/1".to_owned(), 3), ("b".to_owned(), 2)]);
    }

    #[test]
    fn what_is_too_much_is_found_by_one_sweep_and_goes_in_the_next() {
        let mut rules = Rules::new(vec![rule("a/", None, Some(1000))], rule("", None, None));
        let rows: Vec<Seen<'_>> = (1..=50).map(|n| row("a/1", n, n, true)).collect();
        let (cuts, counted) = sweep(&rules, 100, &rows);
        assert_eq!((cuts, counted[0].bytes), (vec![], 5000));
        assert!(rules.learn(&counted, 2.0));
        let (cuts, counted) = sweep(&rules, 100, &rows);
        assert_eq!((cuts, counted[0].bytes), (vec![("a/1".to_owned(), 42)], 900));
        assert!(!rules.learn(&counted, 2.0), "it is enough");
    }

    #[test]
    fn the_rest_is_bounded_by_what_it_takes_in_the_file() {
        let mut rules = Rules::new(vec![], rule("", None, Some(4000)));
        assert!(!rules.look_at_rows());
        let rows: Vec<Seen<'_>> = (1..=50).map(|n| row("d", n, n, true)).collect();
        let (_, counted) = sweep(&rules, 100, &rows);
        assert!(rules.learn(&counted, 2.0));
        let (cuts, _) = sweep(&rules, 100, &rows);
        assert_eq!(cuts, [("d".to_owned(), 33)], "18 rows of 200 bytes each");
    }

    #[test]
    fn a_single_minute_that_is_too_much_leaves_the_newest_row() {
        let mut rules = Rules::new(vec![], rule("", None, Some(500)));
        let rows: Vec<Seen<'_>> = (1..=50).map(|n| row("d", n, 7, true)).collect();
        let (_, counted) = sweep(&rules, 100, &rows);
        assert!(rules.learn(&counted, 1.0));
        let (cuts, counted) = sweep(&rules, 100, &rows);
        assert_eq!((cuts, counted[0].bytes), (vec![("d".to_owned(), 50)], 100));
    }
}
