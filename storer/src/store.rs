//! The storer's directory: one generation of the LMDB file, the link that readers open, the lock
//! that keeps a second storer out.
//!
//! ```text
//! <directory>/lock                 held while a storer runs
//! <directory>/generations/1/       data.mdb, lock.mdb
//! <directory>/db -> generations/1  what readers open; switched atomically to a rebuilt file
//! ```
//!
//! The link appears only once the file behind it is complete.

mod copies;
mod error;
mod identify;
mod leftovers;
mod readers;

pub(crate) use copies::glance;
pub use copies::{Copies, CopyState, restore};
pub use error::StoreError;

use crate::projection::Writes;
use crate::tables::{ReadTables, TableError, Tables};
use crate::upkeep::Cut;
use error::explain;
pub(crate) use error::file_error;
use fieldstream_shared::msgpack::DecodeError;
use fieldstream_shared::read::Checkpoint;
pub use identify::Belongs;
use identify::identify;
pub(crate) use readers::{ReaderTable, Watched, process_name};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

/// Where and how to keep the file.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// The storer's directory; made if it is missing.
    pub directory: PathBuf,
    /// Permission bits of the LMDB file and its lock file. Readers need to write the lock file, so
    /// give their group `rw`.
    pub file_mode: u32,
    /// Size of the memory map: the largest the file can become. Takes address space, not memory
    /// and not disk.
    pub map_bytes: usize,
    /// Revisions of each document that are kept in history; a few more until they are removed. 0: all.
    pub history_revisions: u64,
}

/// What the file must belong to, and what a new one is given.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// Number of lanes of the log.
    pub lanes: u16,
    /// Identity of the log.
    pub log_id: u64,
    /// The number a new file gets as its storer's.
    pub new_storer: u64,
    /// Wall time, microseconds since the Unix epoch.
    pub now_us: u64,
}

/// The open directory: the file, and the lock that keeps other storers out.
pub struct Store {
    /// Another one when a rebuilt file is switched in.
    current: RwLock<Arc<Generation>>,
    options: StoreOptions,
    storer: u64,
    checkpoints: Vec<Checkpoint>,
    _lock: File,
}

struct Generation {
    tables: Tables,
    path: PathBuf,
}

impl Store {
    /// Opens the directory, makes what is missing, and checks that it belongs to the log.
    ///
    /// # Errors
    /// [`StoreError`] if it cannot be used, or belongs to another log.
    pub fn open(options: StoreOptions, identity: &Identity) -> Result<Store, StoreError> {
        Store::open_as(options, identity, Belongs::ToLog)
    }

    /// Like [`Store::open`], for a file that may stand in another relation to the log.
    ///
    /// # Errors
    /// [`StoreError`] if it cannot be used.
    pub fn open_as(options: StoreOptions, identity: &Identity, belongs: Belongs<'_>) -> Result<Store, StoreError> {
        make_directory(&options.directory)?;
        let lock = take_lock(&options.directory)?;
        leftovers::remove(&options.directory)?;
        let generation = current_generation(&options.directory)?;
        make_directory(&options.directory.join(GENERATIONS))?;
        make_directory(&generation)?;
        let fail = |error| explain(error, &options, &generation);
        let tables = Tables::open(&generation, page_multiple(options.map_bytes)).map_err(fail)?;
        for name in ["data.mdb", "lock.mdb"] {
            set_mode(&generation.join(name), options.file_mode)?;
        }
        let stale = tables.clear_stale_readers().map_err(fail)?;
        if stale > 0 {
            tracing::info!(stale, "reader slots of ended processes were freed");
        }
        let (storer, checkpoints) = identify(&tables, &options, &generation, identity, belongs)?;
        sync_directory(&generation)?;
        sync_directory(&options.directory.join(GENERATIONS))?;
        link(&options.directory, &generation)?;
        let current = RwLock::new(Arc::new(Generation { tables, path: generation }));
        Ok(Store { current, options, storer, checkpoints, _lock: lock })
    }

    fn current(&self) -> Arc<Generation> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The lanes' checkpoints as they are now.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn checkpoints_now(&self) -> Result<Vec<Checkpoint>, TableError> {
        let read = self.read()?;
        let missing =
            || TableError::Row { database: "meta", error: DecodeError::Expected("a checkpoint of each lane") };
        let lanes = 0..self.checkpoints.len() as u16;
        lanes.map(|lane| Ok(read.checkpoint(lane)?.ok_or_else(missing)?.checkpoint)).collect()
    }

    /// Puts a rebuilt file in the place of the present one, as the next generation, and goes on with
    /// it. The caller sees to it that both hold the same state, and that nothing is written
    /// meanwhile. Readers of the old file keep it until they open anew.
    ///
    /// # Errors
    /// [`StoreError`]; the present file stays in its place then.
    pub fn switch_to(&self, rebuilt: &Path) -> Result<PathBuf, StoreError> {
        let generation = place(&self.options.directory, rebuilt)?;
        let fail = |error| explain(error, &self.options, &generation);
        let tables = Tables::open(&generation, page_multiple(self.options.map_bytes)).map_err(fail)?;
        for name in ["data.mdb", "lock.mdb"] {
            set_mode(&generation.join(name), self.options.file_mode)?;
        }
        sync_directory(&generation)?;
        link(&self.options.directory, &generation)?;
        let new = Arc::new(Generation { tables, path: generation.clone() });
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(generation)
    }

    /// The number drawn when the file was made.
    pub fn storer(&self) -> u64 {
        self.storer
    }

    /// The lanes' checkpoints as they were when the file was opened.
    pub fn checkpoints(&self) -> &[Checkpoint] {
        &self.checkpoints
    }

    /// Whether no storer has the directory open.
    ///
    /// # Errors
    /// [`StoreError::InUse`] if one has.
    pub fn check_unused(directory: &Path) -> Result<(), StoreError> {
        take_lock(directory).map(drop)
    }

    /// Whether the directory holds nothing of any log yet: no file, or one that nothing was stored in.
    ///
    /// # Errors
    /// [`StoreError`] if it cannot be looked at.
    pub(crate) fn is_blank(directory: &Path) -> Result<bool, StoreError> {
        make_directory(directory)?;
        let _lock = take_lock(directory)?;
        copies::is_blank(&current_generation(directory)?)
    }

    /// The number of the storer whose file is in a folder, which another process may be writing.
    ///
    /// # Errors
    /// [`TableError`] if it cannot be read.
    pub fn number_in(folder: &Path) -> Result<u64, TableError> {
        let missing = TableError::Row { database: "meta", error: DecodeError::Expected("a format row") };
        Ok(Tables::open_read_only(folder)?.read()?.format()?.ok_or(missing)?.storer)
    }

    /// What readers open.
    pub fn database_path(directory: &Path) -> PathBuf {
        directory.join(LINK)
    }

    /// One state of all databases.
    ///
    /// # Errors
    /// [`TableError`], to be put in words by [`Store::explain`].
    pub fn read(&self) -> Result<ReadTables, TableError> {
        self.current().tables.read()
    }

    /// Writes one transaction, and returns when it is durable; on an error nothing is written.
    ///
    /// # Errors
    /// [`TableError`]; one that [is passing](TableError::is_passing) may be tried again.
    pub fn commit(&self, writes: &Writes<'_>) -> Result<(), TableError> {
        self.current().tables.commit(writes, self.options.history_revisions)
    }

    /// Doubles the map, up to a size; the size it has then, `None` if it cannot grow any more.
    ///
    /// # Errors
    /// [`TableError`]; the map is as it was then.
    pub(crate) fn grow_map(&self, bytes_max: usize) -> Result<Option<usize>, TableError> {
        self.current().tables.grow_map(bytes_max)
    }

    /// How the file is now.
    pub(crate) fn condition(&self) -> Result<Condition, TableError> {
        let current = self.current();
        let read = current.tables.read()?;
        let (history_bytes, by_time_bytes) = read.history_bytes()?;
        let used_bytes = read.used_bytes()?;
        drop(read);
        let readers = ReaderTable::of(&current.path);
        let map_bytes = current.tables.map_bytes() as u64;
        Ok(Condition { used_bytes, history_bytes, by_time_bytes, map_bytes, readers })
    }

    /// Removes history in front of a revision of each of these documents; how many rows went.
    ///
    /// # Errors
    /// [`TableError`]; nothing went then.
    pub(crate) fn cut_history(&self, cuts: &[Cut]) -> Result<usize, TableError> {
        self.current().tables.cut_history(cuts)
    }

    /// Removes the oldest rows of `by_time`, before a time and at most so many; how many went.
    ///
    /// # Errors
    /// [`TableError`]; nothing went then.
    pub(crate) fn cut_by_time(&self, before_us: u64, rows_max: usize) -> Result<usize, TableError> {
        self.current().tables.cut_by_time(before_us, rows_max)
    }

    /// Frees the reader slots of processes that ended without doing so, and tells how many.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn clear_stale_readers(&self) -> Result<usize, TableError> {
        self.current().tables.clear_stale_readers()
    }

    /// About the bytes of a compacted copy.
    ///
    /// # Errors
    /// [`TableError`].
    pub(crate) fn used_bytes(&self) -> Result<u64, TableError> {
        self.read()?.used_bytes()
    }

    /// Writes a compacted copy of one state to a new file, and returns once it is on the disk.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn copy_to(&self, file: &Path) -> Result<(), TableError> {
        self.current().tables.copy_to(file)
    }

    /// An LMDB error in words: what, where, what to do.
    pub fn explain(&self, error: TableError) -> StoreError {
        explain(error, &self.options, &self.current().path)
    }
}

/// How a file is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Condition {
    /// Bytes of the pages that hold something.
    pub(crate) used_bytes: u64,
    /// Bytes of those of `history`.
    pub(crate) history_bytes: u64,
    /// Bytes of those of `by_time`.
    pub(crate) by_time_bytes: u64,
    /// Bytes of the map.
    pub(crate) map_bytes: u64,
    /// Who reads it.
    pub(crate) readers: ReaderTable,
}

const GENERATIONS: &str = "generations";
const LINK: &str = "db";
const DIRECTORY_MODE: u32 = 0o775;

fn page_multiple(bytes: usize) -> usize {
    let page = rustix::param::page_size();
    bytes.max(page).div_ceil(page).saturating_mul(page)
}

fn make_directory(path: &Path) -> Result<(), StoreError> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path).map_err(|e| file_error("make the directory", path, e))?;
    // What the process's umask took from the group is given back: readers must get in.
    set_mode(path, DIRECTORY_MODE)?;
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        sync_directory(parent)?;
    }
    Ok(())
}

fn set_mode(path: &Path, mode: u32) -> Result<(), StoreError> {
    let has = fs::metadata(path).map_err(|e| file_error("look at", path, e))?.permissions().mode();
    if has & 0o777 == mode {
        return Ok(());
    }
    match fs::set_permissions(path, Permissions::from_mode(mode)) {
        // Another user made the file. The storer can work with it; readers get in or not.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            tracing::warn!(path = %path.display(), %error, "the file mode is not the configured one");
            Ok(())
        }
        other => other.map_err(|e| file_error("set the mode of", path, e)),
    }
}

/// A new name in a directory is durable only once the directory is.
fn sync_directory(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(|e| file_error("sync", path, e))
}

fn take_lock(directory: &Path) -> Result<File, StoreError> {
    let path = directory.join("lock");
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = open.map_err(|e| file_error("open", &path, e))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            // Only to name the holder; an unreadable name is no reason for another error.
            let _ = file.take(32).read_to_string(&mut pid);
            let holder = match pid.trim() {
                "" => "another storer".to_owned(),
                pid => format!("the storer with process id {pid}"),
            };
            let by_this_process = pid.trim() == std::process::id().to_string();
            return Err(StoreError::InUse { directory: directory.to_owned(), holder, by_this_process });
        }
        Err(errno) => return Err(file_error("lock", &path, errno.into())),
    }
    let write = |file: &mut File| -> io::Result<()> {
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        writeln!(file, "{}", std::process::id())
    };
    write(&mut file).map_err(|e| file_error("write", &path, e))?;
    Ok(file)
}

/// Where the link points; without one, the newest generation there is, else the first.
fn current_generation(directory: &Path) -> Result<PathBuf, StoreError> {
    let link = directory.join(LINK);
    match fs::read_link(&link) {
        Ok(target) => return Ok(directory.join(target)),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(file_error("read the link", &link, error)),
    }
    let generations = directory.join(GENERATIONS);
    let mut newest = 1_u64;
    match fs::read_dir(&generations) {
        Ok(entries) => {
            let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u64>().ok());
            newest = newest.max(numbers.max().unwrap_or(1));
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(file_error("list", &generations, error)),
    }
    Ok(generations.join(newest.to_string()))
}

/// Makes a rebuilt file's folder the next generation; the link still points to the present one.
fn place(directory: &Path, rebuilt: &Path) -> Result<PathBuf, StoreError> {
    let generations = directory.join(GENERATIONS);
    make_directory(&generations)?;
    let entries = fs::read_dir(&generations).map_err(|e| file_error("list", &generations, e))?;
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u64>().ok());
    let generation = generations.join((numbers.max().unwrap_or(0) + 1).to_string());
    // Written as a generation of its own folder: on the same disk, and synced by every commit.
    fs::rename(rebuilt, &generation).map_err(|e| file_error("name", &generation, e))?;
    sync_directory(&generations)?;
    Ok(generation)
}

/// Puts a rebuilt file in the place of a storer's file. The storer must not run.
///
/// # Errors
/// [`StoreError`]; the file there was is untouched then.
pub fn switch(options: &StoreOptions, rebuilt: &Path) -> Result<PathBuf, StoreError> {
    let _lock = take_lock(&options.directory)?;
    let generation = place(&options.directory, rebuilt)?;
    for name in ["data.mdb", "lock.mdb"] {
        set_mode(&generation.join(name), options.file_mode)?;
    }
    sync_directory(&generation)?;
    link(&options.directory, &generation)?;
    Ok(generation)
}

/// Points the link at a generation, atomically.
fn link(directory: &Path, generation: &Path) -> Result<(), StoreError> {
    let Ok(target) = generation.strip_prefix(directory) else { return Ok(()) };
    let link = directory.join(LINK);
    if fs::read_link(&link).is_ok_and(|present| present == target) {
        return Ok(());
    }
    let new = directory.join("db.new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(file_error("remove", &new, error)),
        _ => {}
    }
    std::os::unix::fs::symlink(target, &new).map_err(|e| file_error("make the link", &new, e))?;
    fs::rename(&new, &link).map_err(|e| file_error("switch the link", &link, e))?;
    sync_directory(directory)
}

#[cfg(test)]
mod power_cut;
#[cfg(test)]
mod tests;
