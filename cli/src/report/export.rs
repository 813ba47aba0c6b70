//! `fieldstream report export`: all documents, or all changes, for other programs.

use super::args::ExportArgs;
use super::cell::{Cell, Column};
use super::progress::Progress;
use super::sheet::{Mode, Sheet};
use super::{Desk, each_row, history, latest};
use crate::exit::Failure;
use crate::output;
use clap::ValueEnum;
use fieldstream_storer::report::Reports;

/// How it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// With a header; RFC 4180
    Csv,
    /// One object per line
    Json,
}

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum What {
    /// The documents as they are now
    Documents,
    /// Every change: with --since in the order of time, else by document and revision
    History,
}

/// A change, with its document in front.
const CHANGES: [Column; history::COLUMNS.len() + 1] = {
    let mut all = [Column::wide("document", "DOCUMENT"); history::COLUMNS.len() + 1];
    let mut n = 0;
    while n < history::COLUMNS.len() {
        all[n + 1] = history::COLUMNS[n];
        n += 1;
    }
    all
};

pub(super) fn run(desk: &mut Desk, args: &ExportArgs, has_mode: bool) -> Result<(), Failure> {
    if has_mode {
        return Err(Failure::usage("export takes --format csv or --format json, and not --csv or --json"));
    }
    let default = if args.since.is_some() { What::History } else { What::Documents };
    let what = args.what.unwrap_or(default);
    if what == What::Documents && args.since.is_some() {
        return Err(Failure::usage("--since is for changes; say --what history"));
    }
    let mode = if args.format == Format::Csv { Mode::Csv } else { Mode::Lines };
    let columns: &'static [Column] = if what == What::Documents { &latest::COLUMNS } else { &CHANGES };
    let mut sheet = Sheet::begin(mode, &desk.stand, "", columns);
    if let Some(file) = &args.out {
        sheet = sheet.into_file(file.clone())?;
    }
    let progress = Progress::new(args.out.is_none() && output::stdout_is_terminal());
    match (what, args.since) {
        (What::Documents, _) => documents(&mut desk.reports, args, progress, &mut sheet)?,
        (What::History, None) => histories(&mut desk.reports, args, progress, &mut sheet)?,
        (What::History, Some(since_us)) => changes(&mut desk.reports, args, since_us, progress, &mut sheet)?,
    }
    sheet.end()
}

fn documents(reports: &mut Reports, args: &ExportArgs, progress: Progress, sheet: &mut Sheet) -> Result<(), Failure> {
    let page = |reports: &mut Reports, from: Option<&_>| reports.documents(&args.prefix, from);
    each_row(reports, progress, page, |(id, row)| {
        if args.all || row.document.exists() {
            sheet.row(latest::cells(&id, row))?;
        }
        Ok(true)
    })
}

fn histories(reports: &mut Reports, args: &ExportArgs, progress: Progress, sheet: &mut Sheet) -> Result<(), Failure> {
    let page = |reports: &mut Reports, from: Option<&_>| reports.histories(&args.prefix, from);
    each_row(reports, progress, page, |(id, row)| {
        let document = [Cell::Text(id.as_str().to_owned())];
        sheet.row(document.into_iter().chain(history::cells(row)).collect())?;
        Ok(true)
    })
}

fn changes(
    reports: &mut Reports,
    args: &ExportArgs,
    since_us: u64,
    progress: Progress,
    sheet: &mut Sheet,
) -> Result<(), Failure> {
    let mut gone = 0_u64;
    let page =
        |reports: &mut Reports, from: Option<&_>| reports.changes_in_full(&args.prefix, since_us, u64::MAX, from);
    each_row(reports, progress, page, |(occurred, row)| {
        let Some(row) = row else {
            gone += 1;
            return Ok(true);
        };
        let document = [Cell::Text(occurred.document.as_str().to_owned())];
        sheet.row(document.into_iter().chain(history::cells(row)).collect())?;
        Ok(true)
    })?;
    if gone > 0 {
        eprintln!("note: {gone} changes since then are no longer in history, and are left out");
    }
    Ok(())
}
