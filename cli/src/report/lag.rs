//! `fieldstream report lag`: how far the file is behind, and how large it is.

use super::cell::{Cell, Column};
use super::sheet::{Mode, Sheet};
use super::{Desk, failure};
use crate::exit::Failure;
use crate::output;
use crate::up::addresses::bytes;

const COLUMNS: [Column; 11] = [
    Column::new("lane", "LANE"),
    Column::new("events_sequence", "EVENTS"),
    Column::new("committed_at", "COMMITTED"),
    Column::new("seconds_behind", "BEHIND"),
    Column::new("newest_event", "NEWEST EVENT"),
    Column::new("newest_event_age_s", "ITS AGE"),
    Column::detail("documents"),
    Column::detail("history_rows"),
    Column::detail("by_time_rows"),
    Column::detail("file_bytes"),
    Column::detail("used_bytes"),
];

pub(super) fn run(desk: &mut Desk) -> Result<(), Failure> {
    let figures = desk.reports.figures().map_err(failure)?;
    let (rows, now_us) = (figures.rows, desk.stand.now_us);
    let mut sheet = Sheet::begin(desk.mode, &desk.stand, "lanes", &COLUMNS);
    let known = |of: Option<u64>, cell: fn(u64) -> Cell| of.map_or(Cell::Unknown, cell);
    for lane in &desk.stand.as_of.lanes {
        let newest_us = figures.newest_us.get(usize::from(lane.lane)).copied().flatten();
        sheet.row(vec![
            Cell::Number(lane.lane.into()),
            Cell::Number(lane.events_sequence),
            Cell::Time(lane.committed_at_us),
            Cell::Elapsed(now_us.saturating_sub(lane.committed_at_us)),
            known(newest_us, Cell::Time),
            known(newest_us.map(|us| now_us.saturating_sub(us)), Cell::Elapsed),
            Cell::Number(rows.documents),
            Cell::Number(rows.history),
            known(rows.by_time, Cell::Number),
            Cell::Number(figures.file_bytes),
            Cell::Number(rows.used_bytes),
        ])?;
    }
    let mode = desk.mode;
    sheet.end()?;
    if rows.by_time.is_none() {
        eprintln!("note: the file has no index by time; an earlier version wrote it");
    }
    if let Mode::Table(_) = mode {
        let (file, used) = (bytes(figures.file_bytes), bytes(rows.used_bytes));
        let folder = desk.reports.folder().display().to_string();
        let counts = format!("{} documents, {} changes in history", rows.documents, rows.history);
        output::line(&format!("{folder}: {file}, of which {used} in use; {counts}"))?;
    }
    Ok(())
}
