//! One state of all databases, to read.

use super::gate::Pass;
use super::{Database, TableError, Tables};
use crate::projection::State;
use crate::rows::{
    CheckpointRow, DeadLetterKey, DeadLetterRow, DocumentHead, DocumentRow, FORMAT_KEY, FormatRow, HistoryRow, MarkRow,
    checkpoint_key, checkpoint_sequence, client_key, decode_mark, history_key, parse_by_time_key, parse_client_key,
};
use fieldstream_shared::dead_letter::DeadLetter;
use fieldstream_shared::document::{Document, Kind};
use fieldstream_shared::ids::{ClientId, DocumentId};
use fieldstream_shared::limits::READ_DOCUMENTS_BYTES_MAX;
use fieldstream_shared::marks::Mark;
use fieldstream_shared::msgpack::DecodeError;
use fieldstream_shared::partition::Partition;
use fieldstream_shared::read::{HistoryEntry, Listed};
use heed::{RoTxn, WithoutTls};
use std::ops::Bound;

/// Marks of clients that were not heard of, and the key behind which there may be more.
pub type IdleMarks = (Vec<(ClientId, Partition, Mark)>, Option<Vec<u8>>);

/// A row with the name of its database: name, key, value.
pub type DumpedRow = (&'static str, Vec<u8>, Vec<u8>);

/// One state of all databases. Drop it soon: pages it can see are not used again meanwhile.
pub struct ReadTables {
    // The transaction ends before the file is closed.
    pub(super) txn: RoTxn<'static, WithoutTls>,
    pub(super) tables: Tables,
    pub(super) _pass: Pass,
}

pub(super) fn row<T>(database: &'static str, decoded: Result<T, DecodeError>) -> Result<T, TableError> {
    decoded.map_err(|error| TableError::Row { database, error })
}

impl State for ReadTables {
    type Error = TableError;

    fn document(&self, id: &str) -> Result<Option<DocumentRow>, TableError> {
        let value = self.tables.documents.get(&self.txn, id.as_bytes())?;
        value.map(|value| row("documents", DocumentRow::decode(value))).transpose()
    }

    fn mark(&self, partition: Partition, client: &str) -> Result<Option<MarkRow>, TableError> {
        let mut key = Vec::with_capacity(client.len() + 2);
        client_key(client, partition, &mut key);
        let value = self.tables.clients.get(&self.txn, &key)?;
        value.map(|value| row("clients", decode_mark(value))).transpose()
    }
}

impl ReadTables {
    /// The format row; a new file has none.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn format(&self) -> Result<Option<FormatRow>, TableError> {
        let value = self.tables.meta.get(&self.txn, FORMAT_KEY.as_bytes())?;
        value.map(|value| row("meta", FormatRow::decode(value))).transpose()
    }

    /// A lane's checkpoint.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn checkpoint(&self, lane: u16) -> Result<Option<CheckpointRow>, TableError> {
        let value = self.tables.meta.get(&self.txn, checkpoint_key(lane).as_bytes())?;
        value.map(|value| row("meta", CheckpointRow::decode(value))).transpose()
    }

    /// The EVENTS sequence up to which a lane is stored; `None` for a lane there is not.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn sequence(&self, lane: u16) -> Result<Option<u64>, TableError> {
        let value = self.tables.meta.get(&self.txn, checkpoint_key(lane).as_bytes())?;
        value.map(|value| row("meta", checkpoint_sequence(value))).transpose()
    }

    /// Documents in the order asked for; one that never was is revision 0 and absent. Cut short,
    /// behind at least one, at [`READ_DOCUMENTS_BYTES_MAX`].
    ///
    /// # Errors
    /// [`TableError`].
    pub fn documents(&self, ids: &[DocumentId]) -> Result<Vec<Document>, TableError> {
        let (mut documents, mut bytes) = (Vec::new(), 0);
        for id in ids {
            if bytes >= READ_DOCUMENTS_BYTES_MAX {
                break;
            }
            let document = self.document(id)?.map(|row| row.document).unwrap_or_default();
            bytes += document.body.encoded_bytes();
            documents.push(document);
        }
        Ok(documents)
    }

    /// Marks in the order asked for.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn marks(&self, wanted: &[(Partition, ClientId)]) -> Result<Vec<Mark>, TableError> {
        wanted.iter().map(|(partition, client)| Ok(self.mark(*partition, client)?.unwrap_or_default().mark)).collect()
    }

    /// Changes of a document with contiguous revisions from `from` on, as many as fit `bytes_max`.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn history(&self, id: &str, from: u64, bytes_max: usize) -> Result<Vec<HistoryEntry>, TableError> {
        let (mut first, mut last) = (Vec::new(), Vec::new());
        history_key(id, from, &mut first);
        history_key(id, u64::MAX, &mut last);
        let range = (Bound::Included(first.as_slice()), Bound::Included(last.as_slice()));
        let (mut entries, mut expected, mut bytes) = (Vec::new(), from, 0_usize);
        for pair in self.tables.history.range(&self.txn, &range)? {
            let (_, value) = pair?;
            let (version, client, number, change) = row("history", HistoryRow::decode_for_watchers(value))?;
            bytes = bytes.saturating_add(change.len());
            if version.revision != expected || bytes > bytes_max {
                break;
            }
            expected += 1;
            entries.push(HistoryEntry { version, client, number, change: change.to_owned() });
        }
        Ok(entries)
    }

    /// At most `limit` documents whose ids begin with `prefix` and come behind `after`; deleted
    /// ones are passed over.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn list(&self, prefix: &str, after: &str, limit: usize) -> Result<Vec<Listed>, TableError> {
        let mut listed = Vec::new();
        let start = match after >= prefix {
            true => Bound::Excluded(after.as_bytes()),
            false => Bound::Included(prefix.as_bytes()),
        };
        // LMDB takes no empty key, and no id is shorter than one byte.
        let start =
            if start == Bound::Included(&[]) || start == Bound::Excluded(&[]) { Bound::Unbounded } else { start };
        if limit == 0 {
            return Ok(listed);
        }
        for pair in self.tables.documents.range(&self.txn, &(start, Bound::Unbounded))? {
            let (key, value) = pair?;
            if !key.starts_with(prefix.as_bytes()) {
                break;
            }
            let (head, bytes) = row("documents", DocumentHead::decode(value))?;
            if head.kind == Kind::Absent {
                continue;
            }
            let id = std::str::from_utf8(key).ok().and_then(|id| DocumentId::new(id).ok());
            let document = row("documents", id.ok_or(DecodeError::OutOfRange("a document id")))?;
            listed.push(Listed { document, revision: head.revision, kind: head.kind, bytes, time_us: head.time_us });
            if listed.len() == limit {
                break;
            }
        }
        Ok(listed)
    }

    /// At most `limit` dead letters of a lane, from an EVENTS sequence and index on; cut short,
    /// behind at least one, at [`READ_DOCUMENTS_BYTES_MAX`].
    ///
    /// # Errors
    /// [`TableError`].
    pub fn dead_letters(&self, lane: u16, from: (u64, u32), limit: usize) -> Result<Vec<DeadLetter>, TableError> {
        let first = DeadLetterKey { lane, sequence: from.0, event_index: from.1 }.encode();
        let last = DeadLetterKey { lane, sequence: u64::MAX, event_index: u32::MAX }.encode();
        let range = (Bound::Included(first.as_slice()), Bound::Included(last.as_slice()));
        let (mut letters, mut bytes) = (Vec::new(), 0);
        for pair in self.tables.dead_letters.range(&self.txn, &range)? {
            if letters.len() == limit || bytes >= READ_DOCUMENTS_BYTES_MAX {
                break;
            }
            let (key, value) = pair?;
            bytes += value.len();
            let key = row("dead_letters", DeadLetterKey::decode(key))?;
            letters.push(row("dead_letters", DeadLetterRow::decode(value))?.into_letter(key));
        }
        Ok(letters)
    }

    /// Marks of clients that were not heard of since, behind a key, in order: at most `looked_at` rows
    /// are looked at. Gives back the key to go on behind; `None` at the end.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn idle_marks(&self, since_us: u64, behind: &[u8], looked_at: usize) -> Result<IdleMarks, TableError> {
        let start = if behind.is_empty() { Bound::Unbounded } else { Bound::Excluded(behind) };
        let (mut idle, mut last) = (Vec::new(), None);
        let rows = self.tables.clients.range(&self.txn, &(start, Bound::Unbounded))?;
        for (n, pair) in rows.enumerate() {
            let (key, value) = pair?;
            let marked = row("clients", decode_mark(value))?;
            // 0 is of an earlier version, which did not know.
            if (1..since_us).contains(&marked.seen_at_us) {
                let (client, partition) = row("clients", parse_client_key(key))?;
                idle.push((client, partition, marked.mark));
            }
            if n + 1 == looked_at {
                last = Some(key.to_vec());
                break;
            }
        }
        Ok((idle, last))
    }

    /// Hands every row of the four databases that stand for the log to `each`, in order: database,
    /// key, value.
    ///
    /// # Errors
    /// [`TableError`], also one that `each` returns.
    pub fn rows(
        &self,
        mut each: impl FnMut(&'static str, &[u8], &[u8]) -> Result<(), TableError>,
    ) -> Result<(), TableError> {
        let Tables { documents, history, clients, dead_letters, .. } = &self.tables;
        for (name, database) in
            [("documents", documents), ("history", history), ("clients", clients), ("dead_letters", dead_letters)]
        {
            for pair in database.iter(&self.txn)? {
                let (key, value) = pair?;
                each(name, key, value)?;
            }
        }
        Ok(())
    }

    /// Reads every row there is, unless it is to end.
    ///
    /// # Errors
    /// [`TableError::Row`] names the database of the first that is no row.
    pub(crate) fn verify(&self, is_over: impl Fn() -> bool) -> Result<u64, TableError> {
        let mut rows = 0;
        self.rows(|database, key, value| {
            if is_over() {
                return Err(TableError::Stopped);
            }
            row(
                database,
                match database {
                    "documents" => DocumentRow::decode(value).map(drop),
                    "history" => HistoryRow::decode_for_watchers(value).map(drop),
                    "clients" => decode_mark(value).map(drop),
                    _ => DeadLetterKey::decode(key).and_then(|_| DeadLetterRow::decode(value).map(drop)),
                },
            )?;
            rows += 1;
            Ok(())
        })?;
        let Some(by_time) = self.tables.by_time else { return Ok(rows) };
        for pair in by_time.iter(&self.txn)? {
            if is_over() {
                return Err(TableError::Stopped);
            }
            let (key, _) = pair?;
            row(super::BY_TIME, parse_by_time_key(key))?;
            rows += 1;
        }
        Ok(rows)
    }

    /// Bytes of the pages that hold something.
    pub(crate) fn used_bytes(&self) -> Result<u64, TableError> {
        let Tables { meta, documents, history, clients, dead_letters, .. } = &self.tables;
        // Two meta pages and the list of databases.
        let rest = 4 * rustix::param::page_size() as u64;
        let databases = [meta, documents, history, clients, dead_letters].into_iter().chain(&self.tables.by_time);
        let bytes = databases.map(|database| self.bytes_of(database)).sum::<Result<u64, TableError>>()?;
        Ok(rest + bytes)
    }

    pub(super) fn bytes_of(&self, database: &Database) -> Result<u64, TableError> {
        let stat = database.stat(&self.txn)?;
        let pages = stat.branch_pages + stat.leaf_pages + stat.overflow_pages;
        Ok(pages as u64 * u64::from(stat.page_size))
    }

    fn dump_one(&self, name: &'static str, database: &Database, rows: &mut Vec<DumpedRow>) -> Result<(), TableError> {
        for pair in database.iter(&self.txn)? {
            let (key, value) = pair?;
            rows.push((name, key.to_vec(), value.to_vec()));
        }
        Ok(())
    }

    /// All rows of all databases, in order. For tests and tools that compare files.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn dump(&self) -> Result<Vec<DumpedRow>, TableError> {
        let Tables { meta, documents, history, clients, dead_letters, .. } = &self.tables;
        let mut rows = Vec::new();
        for (name, database) in [
            ("meta", meta),
            ("documents", documents),
            ("history", history),
            ("clients", clients),
            ("dead_letters", dead_letters),
        ] {
            self.dump_one(name, database, &mut rows)?;
        }
        if let Some(by_time) = &self.tables.by_time {
            self.dump_one(super::BY_TIME, by_time, &mut rows)?;
        }
        Ok(rows)
    }
}
