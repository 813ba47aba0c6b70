//! Questions to a storer's file, whether the storer runs or not, for reports.
//!
//! [`Reports`] opens the file read-only and answers page by page. **Invariant:** no read transaction
//! lives longer than a page, so a report of any length keeps no pages of the file from being used again.
//! Between two pages the file may change: it may grow beyond its map, and the storer may switch to a
//! rebuilt one. Both are followed. What a report says is therefore at least as new as [`Reports::as_of`]
//! asked before its first page.

mod error;
pub mod facts;
mod open;
mod pages;
mod states;
#[cfg(test)]
mod tests;

pub use crate::tables::RowCounts;
pub use error::ReportError;
pub use pages::{Marked, Next, Occurred, Page};
pub use states::State;

use crate::projection::State as _;
use crate::rows::{DocumentRow, parse_by_time_key};
use crate::tables::{PageLimit, Paged, Stretch, TableError};
use facts::{Facts, FactsOptions, Part};
use fieldstream_shared::msgpack::DecodeError;
use open::File;
use std::ops::Bound;
use std::path::Path;

/// What a page holds at most: a transaction of some milliseconds.
const PAGE: PageLimit = PageLimit { rows_max: 1_000, bytes_max: 8 << 20 };

/// How far a lane is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneAsOf {
    /// The lane.
    pub lane: u16,
    /// Everything up to this EVENTS sequence is in the file.
    pub events_sequence: u64,
    /// When that was committed, microseconds since the Unix epoch.
    pub committed_at_us: u64,
}

/// Up to where the file holds the log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AsOf {
    /// The lanes, in order.
    pub lanes: Vec<LaneAsOf>,
}

impl AsOf {
    /// When the newest commit was made, microseconds since the Unix epoch.
    pub fn committed_at_us(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.committed_at_us).max().unwrap_or(0)
    }

    /// Microseconds from the newest commit to now.
    pub fn behind_us(&self, now_us: u64) -> u64 {
        now_us.saturating_sub(self.committed_at_us())
    }
}

/// How large the file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figures {
    /// Its rows.
    pub rows: RowCounts,
    /// Bytes of `data.mdb`.
    pub file_bytes: u64,
    /// Time of the newest change of each lane, microseconds since the Unix epoch, if it is among the
    /// newest changes of all.
    pub newest_us: Vec<Option<u64>>,
}

/// A storer's file, to be asked.
pub struct Reports {
    file: File,
}

impl Reports {
    /// Opens a file: `path` is the folder with `data.mdb` or a link to it, such as a storer's `db` or a
    /// copy, or the storer's folder, or the data directory of `up`.
    ///
    /// # Errors
    /// [`ReportError`] if there is no file, or it cannot be read.
    pub fn open(path: &Path) -> Result<Reports, ReportError> {
        Ok(Reports { file: File::open(path)? })
    }

    /// The folder with `data.mdb` that is open now.
    pub fn folder(&self) -> &Path {
        self.file.folder()
    }

    /// Up to where the file holds the log, now.
    ///
    /// # Errors
    /// [`ReportError`].
    pub fn as_of(&mut self) -> Result<AsOf, ReportError> {
        let read = self.file.read()?;
        let missing =
            || TableError::Row { database: "meta", error: DecodeError::Expected("a checkpoint of each lane") };
        let lane = |lane| {
            let row = read.checkpoint(lane)?.ok_or_else(missing)?;
            let (events_sequence, committed_at_us) = (row.checkpoint.events_sequence, row.committed_at_us);
            Ok(LaneAsOf { lane, events_sequence, committed_at_us })
        };
        let lanes: Result<_, TableError> = (0..self.file.lanes()).map(lane).collect();
        Ok(AsOf { lanes: lanes.map_err(|error| self.file.explain(error))? })
    }

    /// What the whole file tells at a glance. `progress` is told after each page how many rows of a part
    /// were looked at.
    ///
    /// # Errors
    /// [`ReportError`].
    pub fn facts(
        &mut self,
        options: &FactsOptions,
        now_us: u64,
        progress: impl FnMut(Part, u64),
    ) -> Result<Facts, ReportError> {
        Facts::gather(self, options, now_us, progress)
    }

    /// A document as it is now; `None` if it never was.
    ///
    /// # Errors
    /// [`ReportError`].
    pub fn document(&mut self, document: &str) -> Result<Option<DocumentRow>, ReportError> {
        self.file.read()?.document(document).map_err(|error| self.file.explain(error))
    }

    /// Whether the file has an index by time.
    ///
    /// # Errors
    /// [`ReportError`].
    pub fn has_by_time(&mut self) -> Result<bool, ReportError> {
        Ok(self.file.read()?.has_by_time())
    }

    /// How large the file is.
    ///
    /// # Errors
    /// [`ReportError`].
    pub fn figures(&mut self) -> Result<Figures, ReportError> {
        let read = self.file.read()?;
        let mut newest_us = vec![None; usize::from(self.file.lanes())];
        let all = Stretch { start: Bound::Unbounded, end: Bound::Unbounded };
        let newest = read.page_back(Paged::ByTime, &all, PAGE, |key, value| {
            let (time_us, _) = parse_by_time_key(key)?;
            let lane = crate::rows::ByTimeRow::decode(value)?.lane;
            if let Some(newest_us) = newest_us.get_mut(usize::from(lane)) {
                newest_us.get_or_insert(time_us);
            }
            Ok(newest_us.contains(&None))
        });
        let rows = newest.and_then(|_| read.row_counts()).map_err(|error| self.file.explain(error))?;
        drop(read);
        let data = self.file.folder().join("data.mdb");
        let file_bytes = std::fs::metadata(&data).map_err(|error| error::file_error(&error, &data))?.len();
        Ok(Figures { rows, file_bytes, newest_us })
    }
}
