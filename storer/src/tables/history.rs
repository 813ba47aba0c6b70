//! History and its index by time: new rows, and what of the old goes.

use super::read::{ReadTables, row};
use super::{TableError, Tables};
use crate::projection::Placed;
use crate::rows::{ByTimeRow, HistoryKey, by_time_key, history_key, tells_whole_state};
use crate::upkeep::Cut;
use fieldstream_shared::msgpack::DecodeError;
use heed::{PutFlags, RwTxn};
use std::ops::Bound;

/// History is cut this often: the rows that go lie on pages of their own, so it costs less at once.
const STEP: u64 = 64;

impl Tables {
    /// Puts the rows in the order of each database's keys, which changes the fewest pages. Of each
    /// document so many revisions stay for certain; 0: all.
    pub(super) fn put_history(
        &self,
        txn: &mut RwTxn<'_>,
        new: &[Placed<'_>],
        history_revisions: u64,
    ) -> Result<(), TableError> {
        let (mut key, mut value) = (Vec::with_capacity(256), Vec::with_capacity(64));
        for Placed { document, row, value } in new {
            key.clear();
            history_key(document, row.revision, &mut key);
            self.history.put(txn, &key, value)?;
            if history_revisions > 0 && row.revision > history_revisions && row.revision % STEP == 0 {
                self.forget_history(txn, document, row.revision - history_revisions + 1)?;
            }
        }
        let Some(by_time) = self.by_time else { return Ok(()) };
        // Of rows of one time the ids decide, in whose order they come.
        let mut order: Vec<(u64, u32)> = new.iter().map(|placed| placed.row.time_us).zip(0..).collect();
        order.sort_unstable();
        let mut last = by_time.last(txn)?.map(|(key, _)| key.to_vec()).unwrap_or_default();
        for Placed { document, row, .. } in order.iter().filter_map(|(_, index)| new.get(*index as usize)) {
            key.clear();
            value.clear();
            by_time_key(row.time_us, document, row.revision, &mut key);
            ByTimeRow { lane: row.lane, sequence: row.sequence }.encode(&mut value);
            // Nearly all are newer than all before them: then nothing is searched, and pages become full.
            if key > last {
                by_time.put_with_flags(txn, PutFlags::APPEND, &key, &value)?;
                last.clone_from(&key);
            } else {
                by_time.put(txn, &key, &value)?;
            }
        }
        Ok(())
    }

    /// Removes a document's history in front of the newest row, at or before a revision, that tells the
    /// whole state: every revision that stays can still be told. Gives back how many rows went.
    pub(super) fn forget_history(&self, txn: &mut RwTxn<'_>, id: &str, before: u64) -> Result<usize, TableError> {
        let (mut first, mut last) = (Vec::new(), Vec::new());
        history_key(id, 0, &mut first);
        history_key(id, before, &mut last);
        let range = (Bound::Included(first.as_slice()), Bound::Included(last.as_slice()));
        let mut whole = None;
        for pair in self.history.rev_range(txn, &range)? {
            let (key, value) = pair?;
            if row("history", tells_whole_state(value))?.0 {
                whole = Some(key.to_vec());
                break;
            }
        }
        let Some(whole) = whole else { return Ok(0) };
        let range = (Bound::Included(first.as_slice()), Bound::Excluded(whole.as_slice()));
        Ok(self.history.delete_range(txn, &range)?)
    }
}

/// A page of rows of history: how many there were, and the key to go on behind; `None` at the end.
pub(crate) type HistoryPage = (usize, Option<Vec<u8>>);

impl Tables {
    /// Removes the history of documents in front of a revision each, in one transaction; how many rows
    /// went.
    pub(crate) fn cut_history(&self, cuts: &[Cut]) -> Result<usize, TableError> {
        let (_pass, mut txn) = self.write()?;
        let mut rows = 0;
        for Cut { document, first_kept } in cuts {
            rows += self.forget_history(&mut txn, document, *first_kept)?;
        }
        txn.commit()?;
        Ok(rows)
    }

    /// Removes the oldest rows of `by_time`, before a time and at most so many; how many went.
    pub(crate) fn cut_by_time(&self, before_us: u64, rows_max: usize) -> Result<usize, TableError> {
        let Some(by_time) = self.by_time else { return Ok(0) };
        let (_pass, mut txn) = self.write()?;
        let end = before_us.to_be_bytes();
        let range = (Bound::Unbounded, Bound::Excluded(end.as_slice()));
        let mut last = None;
        for pair in by_time.range(&txn, &range)?.take(rows_max) {
            last = Some(pair?.0.to_vec());
        }
        let Some(last) = last else { return Ok(0) };
        let rows = by_time.delete_range(&mut txn, &(Bound::Unbounded, Bound::Included(last.as_slice())))?;
        txn.commit()?;
        Ok(rows)
    }
}

impl ReadTables {
    /// Bytes of the pages of `history` and of `by_time`.
    pub(crate) fn history_bytes(&self) -> Result<(u64, u64), TableError> {
        let by_time = self.tables.by_time.as_ref().map_or(Ok(0), |by_time| self.bytes_of(by_time))?;
        Ok((self.bytes_of(&self.tables.history)?, by_time))
    }

    /// Hands the rows of history behind a key to `each`, at most so many: document, revision, value, bytes
    /// of key and value.
    pub(crate) fn history_rows(
        &self,
        behind: &[u8],
        rows_max: usize,
        mut each: impl FnMut(&str, u64, &[u8], u64) -> Result<(), DecodeError>,
    ) -> Result<HistoryPage, TableError> {
        let start = if behind.is_empty() { Bound::Unbounded } else { Bound::Excluded(behind) };
        let mut rows = 0;
        for pair in self.tables.history.range(&self.txn, &(start, Bound::Unbounded))? {
            let (key, value) = pair?;
            let read = HistoryKey::decode(key);
            let told = read.and_then(|HistoryKey { document, revision }| {
                each(&document, revision, value, (key.len() + value.len()) as u64)
            });
            row("history", told)?;
            rows += 1;
            if rows == rows_max {
                return Ok((rows, Some(key.to_vec())));
            }
        }
        Ok((rows, None))
    }
}
