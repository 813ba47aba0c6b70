//! `fieldstream report`: what a storer's file tells, whether the storer runs or not.
//!
//! The questions are in `fieldstream_storer::report`; here are the command line, tables, JSON and CSV.

mod activity;
mod args;
mod at;
mod cell;
mod changes;
mod chart;
mod diff;
mod export;
mod history;
mod html;
mod lag;
mod latest;
mod moment;
mod progress;
mod sheet;
mod table;

pub(crate) use args::ReportArgs;

use crate::exit::Failure;
use args::Report;
use fieldstream_storer::report::{Next, Page, ReportError, Reports};
use progress::Progress;
use sheet::{Mode, Stand};
use std::path::PathBuf;

/// Where the data directory of `up` is if nobody says otherwise.
const DATA: &str = "fieldstream-data";

/// What every report begins with.
struct Desk {
    reports: Reports,
    mode: Mode,
    stand: Stand,
}

/// `fieldstream report …`.
///
/// # Errors
/// If the file cannot be read, or does not have what was asked for.
pub(crate) fn run(args: &ReportArgs) -> Result<(), Failure> {
    if let (Report::Html(_), true) = (&args.report, args.json || args.csv) {
        return Err(Failure::usage("`report html` writes HTML: neither --json nor --csv goes with it"));
    }
    let path = args.db.clone().unwrap_or_else(|| PathBuf::from(DATA));
    let mut reports = Reports::open(&path).map_err(|error| match (&error, &args.db) {
        (ReportError::Missing { .. }, None) => failure(error).help("--db PATH says where the storer's file is"),
        _ => failure(error),
    })?;
    let stand = Stand { as_of: reports.as_of().map_err(failure)?, now_us: moment::now_us() };
    let mut desk = Desk { reports, mode: Mode::chosen(args.json, args.csv), stand };
    match &args.report {
        Report::Latest(args) => latest::run(&mut desk, args),
        Report::History(args) => history::changes(&mut desk, args),
        Report::Who(args) => history::who(&mut desk, args),
        Report::At(args) => at::run(&mut desk, args),
        Report::Diff(args) => diff::run(&mut desk, args),
        Report::Lag => lag::run(&mut desk),
        Report::Activity(args) => activity::run(&mut desk, args),
        Report::Export(of) => export::run(&mut desk, of, args.json || args.csv),
        Report::Html(args) => html::run(args, &mut desk.reports, &path),
    }
}

fn failure(error: ReportError) -> Failure {
    let shown = Failure::failed(&error);
    match error {
        ReportError::NoDocument { .. } => shown.help("`fieldstream report latest` lists the documents"),
        ReportError::Damaged { .. } => {
            shown.help("`fieldstream storer verify` compares the file with the log, `storer rebuild` makes it again")
        }
        _ => shown,
    }
}

/// Hands every row to `each`, page by page, until that gives back false.
fn each_row<T>(
    reports: &mut Reports,
    mut progress: Progress,
    mut page: impl FnMut(&mut Reports, Option<&Next>) -> Result<Page<T>, ReportError>,
    mut each: impl FnMut(T) -> Result<bool, Failure>,
) -> Result<(), Failure> {
    let mut from = None;
    loop {
        let Page { rows, next } = page(reports, from.as_ref()).map_err(failure)?;
        progress.add(rows.len());
        for row in rows {
            if !each(row)? {
                return Ok(());
            }
        }
        match next {
            Some(next) => from = Some(next),
            None => return Ok(()),
        }
    }
}
