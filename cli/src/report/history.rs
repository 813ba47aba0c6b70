//! `fieldstream report history` and `who`: the changes of a document, and who made them.

use super::args::{HistoryArgs, WhoArgs};
use super::cell::{Cell, Column};
use super::progress::Progress;
use super::sheet::Sheet;
use super::{Desk, each_row, failure};
use crate::exit::Failure;
use crate::output;
use fieldstream_shared::ids::ClientId;
use fieldstream_storer::report::Reports;
use fieldstream_storer::rows::HistoryRow;
use std::collections::BTreeMap;

/// What is told of a change.
pub(super) const COLUMNS: [Column; 11] = [
    Column::new("revision", "REVISION"),
    Column::new("time", "TIME"),
    Column::wide("client", "CLIENT"),
    Column::detail("epoch"),
    Column::new("number", "NUMBER"),
    Column::detail("lane"),
    Column::detail("sequence"),
    Column::detail("instruction_sequence"),
    Column::detail("received_at"),
    Column::detail("state_hash"),
    Column::wide("change", "CHANGE"),
];

/// A change's cells.
pub(super) fn cells(row: HistoryRow) -> Vec<Cell> {
    vec![
        Cell::Number(row.version.revision),
        Cell::Time(row.version.time_us),
        Cell::Text(row.client.as_str().to_owned()),
        Cell::Number(row.epoch),
        Cell::Number(row.number),
        Cell::Number(row.lane.into()),
        Cell::Number(row.sequence),
        Cell::Number(row.instruction_sequence),
        Cell::Time(row.received_at_us),
        Cell::Hash(row.version.state_hash),
        Cell::Change(row.change),
    ]
}

pub(super) fn changes(desk: &mut Desk, args: &HistoryArgs) -> Result<(), Failure> {
    let (first, last) = desk.reports.revisions(&args.document).map_err(failure)?;
    let to = args.to.unwrap_or(last).min(last);
    let mut from = args.from.max(first);
    if args.from < first {
        eprintln!("note: history of {} begins at revision {first}", args.document);
    }
    if let Some(limit) = args.limit {
        from = from.max(to.saturating_add(1).saturating_sub(limit));
    }
    let mut sheet = Sheet::begin(desk.mode, &desk.stand, "changes", &COLUMNS);
    if from <= to {
        let page = |reports: &mut Reports, next: Option<&_>| reports.history(&args.document, from..=to, next);
        let progress = Progress::new(output::stdout_is_terminal());
        each_row(&mut desk.reports, progress, page, |row| sheet.row(cells(row)).map(|()| true))?;
    }
    if sheet.rows() == 0 {
        eprintln!("no changes");
    }
    sheet.end()
}

const WHO: [Column; 5] = [
    Column::wide("client", "CLIENT"),
    Column::new("changes", "CHANGES"),
    Column::new("first_time", "FIRST"),
    Column::new("last_time", "LAST"),
    Column::new("last_revision", "LAST REVISION"),
];

/// A client's share in a document.
struct Share {
    changes: u64,
    first_us: u64,
    last_us: u64,
    last_revision: u64,
}

pub(super) fn who(desk: &mut Desk, args: &WhoArgs) -> Result<(), Failure> {
    let (first, last) = desk.reports.revisions(&args.document).map_err(failure)?;
    if first > 1 {
        eprintln!("note: history of {} begins at revision {first}; earlier changes are not counted", args.document);
    }
    let mut shares: BTreeMap<ClientId, Share> = BTreeMap::new();
    let page = |reports: &mut Reports, next: Option<&_>| reports.history(&args.document, first..=last, next);
    each_row(&mut desk.reports, Progress::new(false), page, |HistoryRow { version, client, .. }| {
        let new = Share { changes: 0, first_us: version.time_us, last_us: 0, last_revision: 0 };
        let share = shares.entry(client).or_insert(new);
        share.changes += 1;
        share.last_us = version.time_us;
        share.last_revision = version.revision;
        Ok(true)
    })?;
    let mut shares: Vec<_> = shares.into_iter().collect();
    shares.sort_by_key(|(_, share)| std::cmp::Reverse((share.changes, share.last_revision)));
    let mut sheet = Sheet::begin(desk.mode, &desk.stand, "clients", &WHO);
    for (client, share) in shares {
        sheet.row(vec![
            Cell::Text(client.as_str().to_owned()),
            Cell::Number(share.changes),
            Cell::Time(share.first_us),
            Cell::Time(share.last_us),
            Cell::Number(share.last_revision),
        ])?;
    }
    sheet.end()
}
