//! Pages of rows, for reports: each is read in one transaction, which ends with it.

use super::read::{ReadTables, row};
use super::{Database, TableError, Tables};
use crate::rows::{HistoryRow, history_key};
use fieldstream_shared::msgpack::DecodeError;
use std::ops::Bound;

/// A database that is read page by page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Paged {
    /// `documents`.
    Documents,
    /// `history`.
    History,
    /// `clients`.
    Clients,
    /// `dead_letters`.
    DeadLetters,
    /// `by_time`; has no rows where there is none.
    ByTime,
}

/// Where a page begins and ends.
#[derive(Debug, Clone)]
pub(crate) struct Stretch {
    /// Its first key, or the key it begins behind.
    pub(crate) start: Bound<Vec<u8>>,
    /// Its last key, or the key it ends before.
    pub(crate) end: Bound<Vec<u8>>,
}

/// What a page holds at most. One row always fits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PageLimit {
    /// Rows.
    pub(crate) rows_max: usize,
    /// Bytes of their values.
    pub(crate) bytes_max: usize,
}

/// How many rows there are, and what they take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RowCounts {
    /// Documents, deleted ones too.
    pub documents: u64,
    /// Changes in `history`.
    pub history: u64,
    /// Changes in `by_time`; `None` in files of earlier versions.
    pub by_time: Option<u64>,
    /// Bytes of the pages that hold something.
    pub used_bytes: u64,
}

/// LMDB takes no empty key, and no row has one.
fn bound(of: &Bound<Vec<u8>>) -> Bound<&[u8]> {
    match of {
        Bound::Included(key) | Bound::Excluded(key) if key.is_empty() => Bound::Unbounded,
        Bound::Included(key) => Bound::Included(key),
        Bound::Excluded(key) => Bound::Excluded(key),
        Bound::Unbounded => Bound::Unbounded,
    }
}

/// Hands pairs to `each` until it says stop, the page is full, or there are no more. Gives back the last
/// key if there may be more.
fn paged<'t>(
    name: &'static str,
    pairs: impl Iterator<Item = heed::Result<(&'t [u8], &'t [u8])>>,
    limit: PageLimit,
    mut each: impl FnMut(&[u8], &[u8]) -> Result<bool, DecodeError>,
) -> Result<Option<Vec<u8>>, TableError> {
    let (mut rows, mut bytes) = (0, 0);
    for pair in pairs {
        let (key, value) = pair?;
        if !row(name, each(key, value))? {
            return Ok(None);
        }
        rows += 1;
        bytes += value.len();
        if rows >= limit.rows_max || bytes >= limit.bytes_max {
            return Ok(Some(key.to_vec()));
        }
    }
    Ok(None)
}

impl Tables {
    /// Takes the size that the map has in the file by now, once no transaction of this process is open:
    /// the storer doubled it.
    pub(crate) fn take_map_size(&self) -> Result<(), TableError> {
        // SAFETY: the gate keeps every transaction of this handle, the only one of the process, from
        // being open meanwhile. 0 is the size noted in the file.
        Ok(self.gate.alone(|| unsafe { self.env.resize(0) })?)
    }
}

impl ReadTables {
    fn paged_database(&self, paged: Paged) -> Option<(&'static str, &Database)> {
        match paged {
            Paged::Documents => Some(("documents", &self.tables.documents)),
            Paged::History => Some(("history", &self.tables.history)),
            Paged::Clients => Some(("clients", &self.tables.clients)),
            Paged::DeadLetters => Some(("dead_letters", &self.tables.dead_letters)),
            Paged::ByTime => self.tables.by_time.as_ref().map(|by_time| (super::BY_TIME, by_time)),
        }
    }

    /// Hands the rows of a stretch to `each`, in order, until it gives back false. Gives back the key to
    /// go on behind, `None` at the end.
    pub(crate) fn page(
        &self,
        of: Paged,
        stretch: &Stretch,
        limit: PageLimit,
        each: impl FnMut(&[u8], &[u8]) -> Result<bool, DecodeError>,
    ) -> Result<Option<Vec<u8>>, TableError> {
        let Some((name, database)) = self.paged_database(of) else { return Ok(None) };
        let range = (bound(&stretch.start), bound(&stretch.end));
        paged(name, database.range(&self.txn, &range)?, limit, each)
    }

    /// Like [`ReadTables::page`], from the end of the stretch to its beginning.
    pub(crate) fn page_back(
        &self,
        of: Paged,
        stretch: &Stretch,
        limit: PageLimit,
        each: impl FnMut(&[u8], &[u8]) -> Result<bool, DecodeError>,
    ) -> Result<Option<Vec<u8>>, TableError> {
        let Some((name, database)) = self.paged_database(of) else { return Ok(None) };
        let range = (bound(&stretch.start), bound(&stretch.end));
        paged(name, database.rev_range(&self.txn, &range)?, limit, each)
    }

    /// One change of a document.
    pub(crate) fn change(&self, id: &str, revision: u64) -> Result<Option<HistoryRow>, TableError> {
        let mut key = Vec::new();
        history_key(id, revision, &mut key);
        let value = self.tables.history.get(&self.txn, &key)?;
        value.map(|value| row("history", HistoryRow::decode(value))).transpose()
    }

    /// The value of a change's row, not decoded: what is wanted may be little of it.
    pub(crate) fn change_value(&self, id: &str, revision: u64) -> Result<Option<&[u8]>, TableError> {
        let mut key = Vec::with_capacity(id.len() + 9);
        history_key(id, revision, &mut key);
        Ok(self.tables.history.get(&self.txn, &key)?)
    }

    /// How many rows `clients` and `dead_letters` have.
    pub(crate) fn rest_counts(&self) -> Result<(u64, u64), TableError> {
        Ok((self.tables.clients.len(&self.txn)?, self.tables.dead_letters.len(&self.txn)?))
    }

    /// Bytes of the file.
    pub(crate) fn file_bytes(&self) -> Result<u64, TableError> {
        Ok(self.tables.env.real_disk_size()?)
    }

    /// Whether there is a database `by_time`.
    pub(crate) fn has_by_time(&self) -> bool {
        self.tables.by_time.is_some()
    }

    /// How many rows there are.
    pub(crate) fn row_counts(&self) -> Result<RowCounts, TableError> {
        let entries = |database: &Database| Ok::<_, TableError>(database.stat(&self.txn)?.entries as u64);
        Ok(RowCounts {
            documents: entries(&self.tables.documents)?,
            history: entries(&self.tables.history)?,
            by_time: self.tables.by_time.as_ref().map(entries).transpose()?,
            used_bytes: self.used_bytes()?,
        })
    }
}

#[cfg(test)]
impl Tables {
    /// Makes a file as earlier versions left it: without an index by time, and without the first changes
    /// of a document.
    pub(crate) fn make_old(&self, document: &str, first_kept: u64) {
        let mut txn = self.env.write_txn().unwrap();
        let [mut first, mut last] = [Vec::new(), Vec::new()];
        history_key(document, 0, &mut first);
        history_key(document, first_kept, &mut last);
        let range = (Bound::Included(first.as_slice()), Bound::Excluded(last.as_slice()));
        self.history.delete_range(&mut txn, &range).unwrap();
        // SAFETY: the handle is not used again: the caller drops the tables.
        unsafe { self.by_time.unwrap().remove(&mut txn) }.unwrap();
        txn.commit().unwrap();
    }
}
