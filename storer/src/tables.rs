//! The LMDB file: the databases, one transaction per commit, one read transaction per answer. The
//! only module that names heed.
//!
//! **Invariant:** default sync flags. A commit returns after the data and then the meta page are on
//! the disk, so a power cut leaves the last commit or the one before, never a mixture.

mod error;
mod gate;
mod history;
mod pages;
mod read;

pub use error::TableError;
use gate::{Gate, Pass};
pub use pages::RowCounts;
pub(crate) use pages::{PageLimit, Paged, Stretch};
pub use read::{DumpedRow, IdleMarks, ReadTables};

use crate::projection::Writes;
use crate::rows::{CheckpointRow, FORMAT_KEY, FormatRow, checkpoint_key, client_key, encode_mark};
use fieldstream_shared::defect::{self, Defect};
use fieldstream_shared::marks::Mark;
use fieldstream_shared::msgpack::DecodeError;
use fieldstream_shared::partition::PartitionSet;
use heed::types::Bytes;
use heed::{CommitOrAbort, CompactionOption, Env, EnvFlags, EnvOpenOptions, RwTxn, WithoutTls};
use std::path::Path;

/// Slots in the table of readers: the storer's own few and every reporting tool's.
const READERS_MAX: u32 = 1024;

/// Room for databases that later versions add.
const DATABASES_MAX: u32 = 32;

/// Names of the databases.
const DATABASES: [&str; 5] = ["meta", "documents", "history", "clients", "dead_letters"];

/// Files of earlier versions do not have it until a storer opens them.
const BY_TIME: &str = "by_time";

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
    by_time: Option<Database>,
    gate: Gate,
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
            let by_time = Some(create(BY_TIME)?);
            Ok::<_, heed::Error>(CommitOrAbort::<_, std::convert::Infallible>::Commit((databases, by_time)))
        })?;
        let ([meta, documents, history, clients, dead_letters], by_time) = match opened {
            CommitOrAbort::Commit(databases) => databases,
            CommitOrAbort::Abort(never) => match never {},
        };
        Ok(Tables { env, meta, documents, history, clients, dead_letters, by_time, gate: Gate::default() })
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
            let by_time = opener.open_database::<Bytes, Bytes>(txn, Some(BY_TIME))?;
            Ok::<_, TableError>(CommitOrAbort::<_, std::convert::Infallible>::Commit((databases, by_time)))
        })?;
        let ([meta, documents, history, clients, dead_letters], by_time) = match opened {
            CommitOrAbort::Commit(databases) => databases,
            CommitOrAbort::Abort(never) => match never {},
        };
        Ok(Tables { env, meta, documents, history, clients, dead_letters, by_time, gate: Gate::default() })
    }

    /// Begins a read transaction: one state of all databases.
    pub(crate) fn read(&self) -> Result<ReadTables, TableError> {
        let pass = self.gate.enter();
        Ok(ReadTables { txn: self.env.clone().static_read_txn()?, tables: self.clone(), _pass: pass })
    }

    /// Writes a compacted copy of one state to a new file, and returns once it is on the disk.
    pub(crate) fn copy_to(&self, file: &Path) -> Result<(), TableError> {
        let _pass = self.gate.enter();
        let copied = self.env.copy_to_path(file, CompactionOption::Enabled)?;
        Ok(copied.sync_all().map_err(heed::Error::Io)?)
    }

    /// Begins a write transaction.
    fn write(&self) -> Result<(Pass, RwTxn<'_>), TableError> {
        let pass = self.gate.enter();
        Ok((pass, self.env.write_txn()?))
    }

    /// Doubles the map, up to a size, once no transaction of this process is open, and gives back its
    /// size; `None` if it has that size already. Readers in other processes see that the file outgrew
    /// their map when it did.
    pub(crate) fn grow_map(&self, bytes_max: usize) -> Result<Option<usize>, TableError> {
        let bytes = self.env.info().map_size;
        let page = rustix::param::page_size();
        let larger = bytes.saturating_mul(2).min(bytes_max) / page * page;
        if larger <= bytes {
            return Ok(None);
        }
        // SAFETY: the gate keeps every transaction of this handle, the only one of the process, from
        // being open meanwhile.
        self.gate.alone(|| unsafe { self.env.resize(larger) })?;
        Ok(Some(larger))
    }

    /// Bytes of the map.
    pub(crate) fn map_bytes(&self) -> usize {
        self.env.info().map_size
    }

    /// Gives the file the number of another storer.
    pub(crate) fn set_storer(&self, storer: u64) -> Result<(), TableError> {
        let missing = TableError::Row { database: "meta", error: DecodeError::Expected("a format row") };
        let format = self.read()?.format()?.ok_or(missing)?;
        let (_pass, mut txn) = self.write()?;
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
        let (_pass, mut txn) = self.write()?;
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
    /// is durable. On an error nothing is written. Of each document's history so many revisions stay,
    /// and those since the last multiple of 64 and back to a row that tells the whole state; 0: all.
    pub(crate) fn commit(&self, writes: &Writes<'_>, history_revisions: u64) -> Result<(), TableError> {
        let (_pass, mut txn) = self.write()?;
        let (mut key, mut value) = (Vec::with_capacity(256), Vec::with_capacity(4096));
        for (id, row) in writes.documents {
            value.clear();
            row.encode(&mut value);
            self.documents.put(&mut txn, id.as_bytes(), &value)?;
        }
        self.put_history(&mut txn, &writes.history, history_revisions)?;
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

    /// Replaces checkpoints, in one transaction.
    pub(crate) fn put_checkpoints(&self, rows: &[(u16, PartitionSet, CheckpointRow)]) -> Result<(), TableError> {
        let (_pass, mut txn) = self.write()?;
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
