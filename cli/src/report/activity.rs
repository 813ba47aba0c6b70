//! `fieldstream report activity`: events per minute, hour or day, by prefix.

use super::args::ActivityArgs;
use super::cell::{Cell, Column};
use super::chart;
use super::progress::Progress;
use super::sheet::{BAR, Sheet};
use super::{Desk, each_row};
use crate::exit::Failure;
use clap::ValueEnum;
use fieldstream_storer::report::Reports;
use std::collections::{BTreeMap, BTreeSet};

/// What is counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Per {
    /// Events of a minute
    Minute,
    /// Events of an hour
    Hour,
    /// Events of a day, in UTC
    Day,
}

impl Per {
    /// How long it is.
    pub(super) fn us(self) -> u64 {
        match self {
            Per::Minute => 60_000_000,
            Per::Hour => 3_600_000_000,
            Per::Day => 86_400_000_000,
        }
    }

    /// Its name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Per::Minute => "minute",
            Per::Hour => "hour",
            Per::Day => "day",
        }
    }
}

/// So many prefixes are told apart; events of further ones count together.
const PREFIXES_MAX: usize = 10_000;
/// So many rows the table can have.
const ROWS_MAX: usize = 1_000_000;
/// What the further prefixes are called.
const OTHERS: &str = "(others)";

/// Events by when the minute, hour or day begins (microseconds since the Unix epoch) and by prefix.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) by_begin: BTreeMap<u64, BTreeMap<String, u64>>,
    prefixes: BTreeSet<String>,
    rows: usize,
}

impl Counts {
    /// False if there are too many rows.
    fn add(&mut self, begin_us: u64, prefix: &str) -> bool {
        let prefix = if self.prefixes.contains(prefix) {
            prefix
        } else if self.prefixes.len() < PREFIXES_MAX {
            self.prefixes.insert(prefix.to_owned());
            prefix
        } else {
            OTHERS
        };
        let of = self.by_begin.entry(begin_us).or_default();
        match of.get_mut(prefix) {
            Some(events) => *events += 1,
            None => {
                of.insert(prefix.to_owned(), 1);
                self.rows += 1;
            }
        }
        self.rows <= ROWS_MAX
    }
}

/// The first parts of an id, with the `/` behind them if more follows.
fn prefix(id: &str, depth: usize) -> &str {
    let end = id.match_indices('/').nth(depth.saturating_sub(1)).map_or(id.len(), |(at, _)| at + 1);
    id.get(..end).unwrap_or(id)
}

const COLUMNS: [Column; 4] = [
    Column::new("time", "BEGINS"),
    Column::wide("prefix", "PREFIX"),
    Column::new("events", "EVENTS"),
    Column::new(BAR, ""),
];

/// Columns of the longest bar.
const BAR_COLUMNS: u64 = 30;
/// What is counted if nobody says since when: so many minutes, hours or days.
const SHOWN: u64 = 60;

/// As long as its share of the most; never nothing.
fn bar(events: u64, most: u64) -> String {
    let eighths = (u128::from(events) * u128::from(BAR_COLUMNS) * 8).div_ceil(u128::from(most.max(1))) as usize;
    let rest = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"].get(eighths % 8).copied().unwrap_or("");
    format!("{}{rest}", "█".repeat(eighths / 8))
}

pub(super) fn run(desk: &mut Desk, args: &ActivityArgs) -> Result<(), Failure> {
    let step_us = args.per.us();
    // Clocks of processors may be ahead of this machine's.
    let until_us = desk.stand.now_us.max(desk.stand.as_of.committed_at_us()) + 1;
    let since_us = args.since.unwrap_or((until_us / step_us + 1).saturating_sub(SHOWN) * step_us);
    let mut counts = Counts::default();
    let page = |reports: &mut Reports, from: Option<&_>| reports.changes(since_us, u64::MAX, from);
    each_row(&mut desk.reports, Progress::new(false), page, |change| {
        if change.document.starts_with(&args.prefix) {
            let begin_us = change.time_us / step_us * step_us;
            if !counts.add(begin_us, prefix(&change.document, args.depth as usize)) {
                let what = format!("more than {ROWS_MAX} rows");
                return Err(Failure::failed(what).help("a later --since, a longer --per, or a smaller --depth"));
            }
        }
        Ok(true)
    })?;
    if let Some(file) = &args.svg {
        let last_us = counts.by_begin.keys().next_back().copied().unwrap_or(0).max(until_us / step_us * step_us);
        let svg = chart::svg(&counts, args.per, (since_us / step_us * step_us, last_us), &desk.stand.line());
        let written = std::fs::write(file, svg);
        written.map_err(|error| Failure::failed(format_args!("cannot write {}: {error}", file.display())))?;
    }
    let most = counts.by_begin.values().flat_map(BTreeMap::values).max().copied().unwrap_or(0);
    let mut sheet = Sheet::begin(desk.mode, &desk.stand, "activity", &COLUMNS);
    for (begin_us, of) in counts.by_begin {
        for (prefix, events) in of {
            let bar = Cell::Bar(bar(events, most));
            sheet.row(vec![Cell::Time(begin_us), Cell::Text(prefix), Cell::Number(events), bar])?;
        }
    }
    if sheet.rows() == 0 {
        eprintln!("no events since {}", crate::client::render::time(since_us));
    }
    sheet.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_counted_by_their_first_parts() {
        for (depth, found) in [(1, "site7/"), (2, "site7/a/"), (3, "site7/a/b"), (9, "site7/a/b")] {
            assert_eq!(prefix("site7/a/b", depth), found);
        }
        assert_eq!(prefix("notes", 1), "notes");
        let mut counts = Counts::default();
        for (begin_us, prefix) in [(0, "a/"), (0, "b/"), (0, "a/"), (60, "a/")] {
            counts.add(begin_us, prefix);
        }
        assert_eq!(counts.by_begin[&0]["a/"], 2);
        assert_eq!(counts.by_begin.values().map(BTreeMap::len).sum::<usize>(), 3);
    }

    #[test]
    fn bars_are_as_long_as_their_share() {
        assert_eq!(bar(10, 10), "█".repeat(30));
        assert_eq!(bar(5, 10), "█".repeat(15));
        assert_eq!(bar(1, u64::MAX), "▏", "what there is can be seen");
        assert_eq!(bar(u64::MAX, u64::MAX).chars().count(), 30);
    }
}
