//! The LMDB file: the databases, one transaction per commit, one read transaction per answer. The
//! only module that names heed.
//!
//! **Invariant:** default sync flags. A commit returns after the data and then the meta page are on
//! the disk, so a power cut leaves the last commit or the one before, never a mixture.

mod error;

pub use error::TableError;

use crate::projection::{State, Writes};
use crate::rows::{
    CheckpointRow, DeadLetterKey, DeadLetterRow, DocumentHead, DocumentRow, FORMAT_KEY, FormatRow, HistoryRow, MarkRow,
    checkpoint_key, checkpoint_sequence, client_key, decode_mark, encode_mark, history_key, parse_client_key,
};
use fieldstream_shared::dead_letter::DeadLetter;
use fieldstream_shared::defect::{self, Defect};
use fieldstream_shared::document::{Document, Kind};
use fieldstream_shared::ids::{ClientId, DocumentId};
use fieldstream_shared::limits::READ_DOCUMENTS_BYTES_MAX;
use fieldstream_shared::marks::Mark;
use fieldstream_shared::msgpack::DecodeError;
use fieldstream_shared::partition::{Partition, PartitionSet};
use fieldstream_shared::read::{HistoryEntry, Listed};
use heed::types::Bytes;
use heed::{CommitOrAbort, CompactionOption, Env, EnvFlags, EnvOpenOptions, RoTxn, RwTxn, WithoutTls};
use std::ops::Bound;
use std::path::Path;

/// Slots in the table of readers: the storer's own few and every reporting tool's.
const READERS_MAX: u32 = 1024;

/// Room for databases that later versions add.
const DATABASES_MAX: u32 = 32;

/// History is cut this often: the rows that go lie on pages of their own, so it costs less at once.
const HISTORY_STEP: u64 = 64;

/// Names of the databases.
const DATABASES: [&str; 5] = ["meta", "documents", "history", "clients", "dead_letters"];

type Database = heed::Database<'static, Bytes, Bytes>;

/// The open file.
#[derive(Clone)]
pub(crate) struct Tables {
    env: Env<WithoutTls>,
    meta: Database,
    documents: Database,
    history: Database,
    clients: Database,
    dead_letters: Database,
}

impl Tables {
    /// Opens the file in a directory and makes the databases that are missing.
    pub(crate) fn open(directory: &Path, map_bytes: usize) -> Result<Tables, TableError> {
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options.map_size(map_bytes).max_readers(READERS_MAX).max_dbs(DATABASES_MAX);
        // SAFETY: the file is changed only through LMDB, by this storer alone (the directory is
        // locked), and no flag that weakens LMDB's guarantees is set.
        let env = unsafe { options.open(directory) }?;
        let opened = env.create_databases_and_commit(env.write_txn()?, |opener, txn| {
            let mut create = |name| opener.create_database::<Bytes, Bytes>(txn, Some(name));
            let [a, b, c, d, e] = DATABASES;
            let databases = [create(a)?, create(b)?, create(c)?, create(d)?, create(e)?];
            Ok::<_, heed::Error>(CommitOrAbort::<_, std::convert::Infallible>::Commit(databases))
        })?;
        let [meta, documents, history, clients, dead_letters] = match opened {
            CommitOrAbort::Commit(databases) => databases,
            CommitOrAbort::Abort(never) => match never {},
        };
        Ok(Tables { env, meta, documents, history, clients, dead_letters })
    }

    /// Opens a file that another process may be writing, to read it.
    pub(crate) fn open_read_only(directory: &Path) -> Result<Tables, TableError> {
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options.max_readers(READERS_MAX).max_dbs(DATABASES_MAX);
        // SAFETY: nothing is written through this handle; the lock file is used, so pages that it
        // sees are not used again; the map has the size noted in the file.
        let env = unsafe { options.flags(EnvFlags::READ_ONLY).open(directory) }?;
        let opened = env.open_databases_and_commit(env.read_txn()?, |opener, txn| {
            let open = |name: &'static str| {
                let missing = TableError::Row { database: name, error: DecodeError::Expected("the database") };
                opener.open_database::<Bytes, Bytes>(txn, Some(name))?.ok_or(missing)
            };
            let [a, b, c, d, e] = DATABASES;
            let databases = [open(a)?, open(b)?, open(c)?, open(d)?, open(e)?];
            Ok::<_, TableError>(CommitOrAbort::<_, std::convert::Infallible>::Commit(databases))
        })?;
        let [meta, documents, history, clients, dead_letters] = match opened {
            CommitOrAbort::Commit(databases) => databases,
            CommitOrAbort::Abort(never) => match never {},
        };
        Ok(Tables { env, meta, documents, history, clients, dead_letters })
    }

    /// Begins a read transaction: one state of all databases.
    pub(crate) fn read(&self) -> Result<ReadTables, TableError> {
        Ok(ReadTables { txn: self.env.clone().static_read_txn()?, tables: self.clone() })
    }

    /// Writes a compacted copy of one state to a new file, and returns once it is on the disk.
    pub(crate) fn copy_to(&self, file: &Path) -> Result<(), TableError> {
        let copied = self.env.copy_to_path(file, CompactionOption::Enabled)?;
        Ok(copied.sync_all().map_err(heed::Error::Io)?)
    }

    /// Gives the file the number of another storer.
    pub(crate) fn set_storer(&self, storer: u64) -> Result<(), TableError> {
        let missing = TableError::Row { database: "meta", error: DecodeError::Expected("a format row") };
        let format = self.read()?.format()?.ok_or(missing)?;
        let mut txn = self.env.write_txn()?;
        let mut value = Vec::new();
        FormatRow { storer, ..format }.encode(&mut value);
        self.meta.put(&mut txn, FORMAT_KEY.as_bytes(), &value)?;
        Ok(txn.commit()?)
    }

    /// Frees the reader slots of processes that ended without doing so, which would keep old pages
    /// from being used again. Returns how many there were.
    pub(crate) fn clear_stale_readers(&self) -> Result<usize, TableError> {
        Ok(self.env.clear_stale_readers()?)
    }

    /// Writes the format row and the first checkpoints of a new file, in one transaction.
    pub(crate) fn initialise(&self, format: &FormatRow, checkpoints: &[CheckpointRow]) -> Result<(), TableError> {
        let mut txn = self.env.write_txn()?;
        let mut value = Vec::new();
        for (lane, row) in (0..format.lanes).zip(checkpoints) {
            self.put_checkpoint(&mut txn, lane, &PartitionSet::EMPTY, row, &mut value)?;
        }
        value.clear();
        format.encode(&mut value);
        self.meta.put(&mut txn, FORMAT_KEY.as_bytes(), &value)?;
        Ok(txn.commit()?)
    }

    /// Writes everything of a commit in one transaction, checkpoints included, and returns once it
    /// is durable. On an error nothing is written. Of each document's history so many revisions
    /// stay, and those since the last multiple of 64; 0: all. What goes depends on the revisions alone,
    /// so that all storers keep the same.
    pub(crate) fn commit(&self, writes: &Writes<'_>, history_revisions: u64) -> Result<(), TableError> {
        let mut txn = self.env.write_txn()?;
        let (mut key, mut value) = (Vec::with_capacity(256), Vec::with_capacity(4096));
        for (id, row) in writes.documents {
            value.clear();
            row.encode(&mut value);
            self.documents.put(&mut txn, id.as_bytes(), &value)?;
        }
        for ((id, revision), row) in writes.history {
            key.clear();
            value.clear();
            history_key(id, *revision, &mut key);
            row.encode(&mut value);
            self.history.put(&mut txn, &key, &value)?;
            if history_revisions > 0 && *revision > history_revisions && revision % HISTORY_STEP == 0 {
                self.forget_history(&mut txn, id, revision - history_revisions)?;
            }
        }
        for ((client, partition), row) in writes.marks {
            key.clear();
            value.clear();
            client_key(client, *partition, &mut key);
            if row.mark == Mark::default() {
                self.clients.delete(&mut txn, &key)?;
                continue;
            }
            encode_mark(row, &mut value);
            self.clients.put(&mut txn, &key, &value)?;
        }
        for (key, row) in writes.dead_letters {
            value.clear();
            row.encode(&mut value);
            self.dead_letters.put(&mut txn, &key.encode(), &value)?;
        }
        if defect::active(Defect::CheckpointApart) {
            txn.commit()?;
            txn = self.env.write_txn()?;
        }
        for (lane, partitions, row) in &writes.checkpoints {
            self.put_checkpoint(&mut txn, *lane, partitions, row, &mut value)?;
        }
        Ok(txn.commit()?)
    }

    /// Removes a document's history up to a revision.
    fn forget_history(&self, txn: &mut RwTxn<'_>, id: &str, upto: u64) -> Result<(), TableError> {
        let (mut first, mut last) = (Vec::new(), Vec::new());
        history_key(id, 0, &mut first);
        history_key(id, upto, &mut last);
        let range = (Bound::Included(first.as_slice()), Bound::Included(last.as_slice()));
        self.history.delete_range(txn, &range)?;
        Ok(())
    }

    /// Replaces checkpoints, in one transaction.
    pub(crate) fn put_checkpoints(&self, rows: &[(u16, PartitionSet, CheckpointRow)]) -> Result<(), TableError> {
        let mut txn = self.env.write_txn()?;
        let mut value = Vec::new();
        for (lane, partitions, row) in rows {
            self.put_checkpoint(&mut txn, *lane, partitions, row, &mut value)?;
        }
        Ok(txn.commit()?)
    }

    fn put_checkpoint(
        &self,
        txn: &mut RwTxn<'_>,
        lane: u16,
        partitions: &PartitionSet,
        row: &CheckpointRow,
        value: &mut Vec<u8>,
    ) -> Result<(), TableError> {
        value.clear();
        row.encode(partitions, value);
        Ok(self.meta.put(txn, checkpoint_key(lane).as_bytes(), value)?)
    }
}

/// Marks of clients that were not heard of, and the key behind which there may be more.
pub type IdleMarks = (Vec<(ClientId, Partition, Mark)>, Option<Vec<u8>>);

/// A row with the name of its database: name, key, value.
pub type DumpedRow = (&'static str, Vec<u8>, Vec<u8>);

/// One state of all databases. Drop it soon: pages it can see are not used again meanwhile.
pub struct ReadTables {
    // The transaction ends before the file is closed.
    txn: RoTxn<'static, WithoutTls>,
    tables: Tables,
}

fn row<T>(database: &'static str, decoded: Result<T, DecodeError>) -> Result<T, TableError> {
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
        Ok(rows)
    }

    /// Bytes of the pages that hold something.
    pub(crate) fn used_bytes(&self) -> Result<u64, TableError> {
        let Tables { meta, documents, history, clients, dead_letters, .. } = &self.tables;
        // Two meta pages and the list of databases.
        let mut pages = 4;
        let mut page_bytes = 0;
        for database in [meta, documents, history, clients, dead_letters] {
            let stat = database.stat(&self.txn)?;
            pages += stat.branch_pages + stat.leaf_pages + stat.overflow_pages;
            page_bytes = u64::from(stat.page_size);
        }
        Ok(pages as u64 * page_bytes)
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
            for pair in database.iter(&self.txn)? {
                let (key, value) = pair?;
                rows.push((name, key.to_vec(), value.to_vec()));
            }
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_flag_that_weakens_a_commit_is_set() {
        let directory = tempfile::tempdir().unwrap();
        let tables = Tables::open(directory.path(), 1 << 20).unwrap();
        let weak = EnvFlags::NO_SYNC | EnvFlags::NO_META_SYNC | EnvFlags::WRITE_MAP | EnvFlags::MAP_ASYNC;
        let set = tables.env.get_flags().unwrap();
        assert_eq!(set & (weak | EnvFlags::NO_LOCK).bits(), 0);
    }

    #[test]
    fn only_this_module_names_heed_and_it_sets_no_flags() {
        let code = include_str!("tables.rs").split("#[cfg(test)]").next().unwrap();
        assert!(code.matches(".flags(").count() == 1 && code.contains(".flags(EnvFlags::READ_ONLY)"));
        assert!(!code.contains("set_flags"));
        for (name, source) in [
            ("projection.rs", include_str!("projection.rs")),
            ("reads.rs", include_str!("reads.rs")),
            ("service.rs", include_str!("service.rs")),
            ("store.rs", include_str!("store.rs")),
            ("writer.rs", include_str!("writer.rs")),
        ] {
            assert!(!source.contains("heed::"), "{name}");
        }
    }
}
