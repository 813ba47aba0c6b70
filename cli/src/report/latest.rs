//! `fieldstream report latest`: the documents as they are now.

use super::args::LatestArgs;
use super::cell::{Cell, Column};
use super::progress::Progress;
use super::sheet::Sheet;
use super::{Desk, each_row};
use crate::exit::Failure;
use crate::output;
use fieldstream_shared::ids::DocumentId;
use fieldstream_storer::rows::DocumentRow;

/// What is told of a document.
pub(super) const COLUMNS: [Column; 10] = [
    Column::wide("document", "DOCUMENT"),
    Column::new("revision", "REVISION"),
    Column::new("kind", "KIND"),
    Column::new("time", "TIME"),
    Column::wide("client", "CLIENT"),
    Column::detail("number"),
    Column::detail("lane"),
    Column::detail("sequence"),
    Column::detail("state_hash"),
    Column::wide("body", "BODY"),
];

/// A document's cells.
pub(super) fn cells(id: &DocumentId, row: DocumentRow) -> Vec<Cell> {
    let text = |text: &str| Cell::Text(text.to_owned());
    vec![
        text(id),
        Cell::Number(row.document.revision),
        text(row.document.body.kind().name()),
        Cell::Time(row.document.time_us),
        text(&row.client),
        Cell::Number(row.number),
        Cell::Number(row.lane.into()),
        Cell::Number(row.sequence),
        Cell::Hash(row.state_hash),
        Cell::Body(row.document.body),
    ]
}

pub(super) fn run(desk: &mut Desk, args: &LatestArgs) -> Result<(), Failure> {
    let mut sheet = Sheet::begin(desk.mode, &desk.stand, "documents", &COLUMNS);
    let limit = args.limit.unwrap_or(u64::MAX);
    let progress = Progress::new(output::stdout_is_terminal());
    each_row(
        &mut desk.reports,
        progress,
        |reports, from| reports.documents(&args.prefix, from),
        |(id, row)| {
            if sheet.rows() >= limit {
                return Ok(false);
            }
            if args.all || row.document.exists() {
                sheet.row(cells(&id, row))?;
            }
            Ok(true)
        },
    )?;
    if sheet.rows() == 0 {
        eprintln!("no documents");
    }
    sheet.end()
}
