//! Verified compacted copies of the file, kept in a folder of their own, and the way back.
//!
//! ```text
//! <copies>/2026-01-31T12-00-00.123456Z/data.mdb
//! <copies>/latest -> 2026-01-31T12-00-00.123456Z
//! ```
//!
//! A copy has its name only once it is complete, on the disk, and every row of it was read.

use super::error::{explain, file_error};
use super::{
    Store, StoreError, StoreOptions, current_generation, link, make_directory, page_multiple, place, set_mode,
    sync_directory, take_lock,
};
use crate::rows::{CheckpointRow, FormatRow};
use crate::tables::{TableError, Tables};
use crate::upkeep::marks_of;
use fieldstream_nats::LaneMarks;
use fieldstream_nats::child::disk_bytes;
use fieldstream_shared::msgpack::DecodeError;
use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};
use tokio_util::sync::CancellationToken;

const LATEST: &str = "latest";
/// What is not finished begins with this.
const UNFINISHED: &str = ".new-";
/// What is put in the place of a file, and is not finished, begins with this.
pub(super) const RESTORING: &str = ".restore-";

/// A copy of which a piece was asked for so recently is being carried over.
const CARRIED: Duration = Duration::from_secs(60);
/// LMDB's mark of a meta page.
const META_MAGIC: u32 = 0xbeef_c0de;
/// What a copy leaves free on its disk, for the file, the log and others: a share of it, at most so much.
const RESERVE: (u64, u64) = (20, 1 << 30);

/// A folder of copies.
#[derive(Debug, Clone)]
pub struct Copies {
    directory: PathBuf,
    file_mode: u32,
    /// When a piece of a copy was last asked for, by when that was made.
    asked: Arc<Mutex<BTreeMap<u64, Instant>>>,
}

/// A copy, and the state it holds.
#[derive(Debug, Clone, PartialEq)]
pub struct CopyState {
    /// Its folder, with `data.mdb` in it.
    pub path: PathBuf,
    /// When it was made, microseconds since the Unix epoch.
    pub made_at_us: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// What the file is.
    pub format: FormatRow,
    /// In order of lanes.
    pub checkpoints: Vec<CheckpointRow>,
    /// Rows that were read; 0 if only the checkpoints were.
    pub rows: u64,
}

impl CopyState {
    /// What of each lane's streams the copy still needs.
    pub fn marks(&self) -> Vec<LaneMarks> {
        (0..).zip(&self.checkpoints).map(|(lane, row)| marks_of(&row.checkpoint, lane)).collect()
    }
}

impl Copies {
    /// The folder, which is made if it is missing. What an earlier attempt left unfinished goes.
    ///
    /// # Errors
    /// [`StoreError`] if it cannot be used.
    pub fn open(directory: PathBuf, file_mode: u32) -> Result<Copies, StoreError> {
        make_directory(&directory)?;
        for name in names(&directory)?.iter().filter(|name| name.starts_with(UNFINISHED)) {
            let path = directory.join(name);
            fs::remove_dir_all(&path).map_err(|e| file_error("remove", &path, e))?;
        }
        Ok(Copies { directory, file_mode, asked: Arc::default() })
    }

    /// The folder as it is, to look into while a storer uses it.
    pub fn present(directory: PathBuf) -> Copies {
        Copies { directory, file_mode: 0, asked: Arc::default() }
    }

    /// Makes a copy, if there is room, reads every row of it, and gives it its name; `latest` then
    /// points to it.
    ///
    /// # Errors
    /// [`StoreError`]; nothing is left of the copy then.
    pub fn make(
        &self,
        store: &Store,
        now_us: impl Fn() -> u64,
        stop: &CancellationToken,
    ) -> Result<CopyState, StoreError> {
        self.require_room(store)?;
        let unfinished = self.directory.join(format!("{UNFINISHED}{}", std::process::id()));
        let made = self.make_in(store, &unfinished, now_us, stop);
        if made.is_err() {
            let _ = fs::remove_dir_all(&unfinished);
        }
        made
    }

    /// A disk that a copy fills stops everything else on it, and the copy fails all the same.
    fn require_room(&self, store: &Store) -> Result<(), StoreError> {
        let disk = disk_bytes(&self.directory).ok_or_else(|| ErrorKind::Unsupported.into());
        let (free_bytes, total_bytes) = disk.map_err(|e| file_error("look at the disk of", &self.directory, e))?;
        let needed_bytes = needed(store.used_bytes().map_err(|error| store.explain(error))?, total_bytes);
        if free_bytes < needed_bytes {
            return Err(StoreError::NoRoom { path: self.directory.clone(), needed_bytes, free_bytes });
        }
        Ok(())
    }

    fn make_in(
        &self,
        store: &Store,
        unfinished: &Path,
        now_us: impl Fn() -> u64,
        stop: &CancellationToken,
    ) -> Result<CopyState, StoreError> {
        make_directory(unfinished)?;
        let file = unfinished.join("data.mdb");
        let options = StoreOptions { directory: self.directory.clone(), ..store.options.clone() };
        store.copy_to(&file).map_err(|error| explain(error, &options, unfinished))?;
        set_mode(&file, self.file_mode)?;
        let state = look_at_copy(unfinished, Rows::All(stop))?;
        // It may be relied on from now on.
        let now_us = now_us();
        // Readers make their own.
        let lock = unfinished.join("lock.mdb");
        fs::remove_file(&lock).map_err(|e| file_error("remove", &lock, e))?;
        sync_directory(unfinished)?;
        let name = name(now_us);
        let path = self.directory.join(&name);
        fs::rename(unfinished, &path).map_err(|e| file_error("name", &path, e))?;
        self.point_latest_at(&name)?;
        Ok(CopyState { path, made_at_us: now_us, ..state })
    }

    fn point_latest_at(&self, name: &str) -> Result<(), StoreError> {
        let (latest, new) = (self.directory.join(LATEST), self.directory.join(".latest"));
        match fs::remove_file(&new) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(file_error("remove", &new, error)),
            _ => {}
        }
        std::os::unix::fs::symlink(name, &new).map_err(|e| file_error("make the link", &new, e))?;
        fs::rename(&new, &latest).map_err(|e| file_error("switch the link", &latest, e))?;
        sync_directory(&self.directory)
    }

    /// The copies there are, the newest first. One that cannot be opened is left out, and said.
    ///
    /// # Errors
    /// [`StoreError`] if the folder cannot be read.
    pub fn list(&self) -> Result<Vec<CopyState>, StoreError> {
        let mut copies = Vec::new();
        for name in names(&self.directory)? {
            let Some(made_at_us) = time_of(&name) else { continue };
            match glance(&self.directory.join(&name)) {
                Ok(state) => copies.push(CopyState { made_at_us, ..state }),
                Err(error) => tracing::warn!(copy = name, %error, "a copy cannot be used"),
            }
        }
        copies.sort_by_key(|copy| std::cmp::Reverse(copy.made_at_us));
        Ok(copies)
    }

    /// Bytes of a copy from an offset on, at most so many; none behind its end.
    ///
    /// # Errors
    /// [`StoreError`] if there is no such copy, or it cannot be read.
    pub(crate) fn piece(&self, made_at_us: u64, offset: u64, bytes_max: u64) -> Result<Vec<u8>, StoreError> {
        self.asked().insert(made_at_us, Instant::now());
        let gone = || file_error("read the copy in", &self.directory, ErrorKind::NotFound.into());
        let name = names(&self.directory)?.into_iter().find(|name| time_of(name) == Some(made_at_us));
        let path = self.directory.join(name.ok_or_else(gone)?).join("data.mdb");
        let failed = |e| file_error("read", &path, e);
        let mut file = fs::File::open(&path).map_err(failed)?;
        file.seek(SeekFrom::Start(offset)).map_err(failed)?;
        let mut piece = Vec::new();
        file.take(bytes_max).read_to_end(&mut piece).map_err(failed)?;
        Ok(piece)
    }

    /// Whether somebody is carrying a copy over.
    pub(crate) fn is_asked_for(&self, made_at_us: u64) -> bool {
        let mut asked = self.asked();
        asked.retain(|_, last| last.elapsed() < CARRIED);
        asked.contains_key(&made_at_us)
    }

    fn asked(&self) -> MutexGuard<'_, BTreeMap<u64, Instant>> {
        // Plain data, whole between any two statements.
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes a copy.
    ///
    /// # Errors
    /// [`StoreError`] if it stays.
    pub fn remove(&self, copy: &CopyState) -> Result<(), StoreError> {
        fs::remove_dir_all(&copy.path).map_err(|e| file_error("remove", &copy.path, e))
    }
}

/// Bytes that must be free for a copy of so many on a disk of so many.
fn needed(used_bytes: u64, total_bytes: u64) -> u64 {
    used_bytes + (total_bytes / RESERVE.0).min(RESERVE.1)
}

fn names(directory: &Path) -> Result<Vec<String>, StoreError> {
    let entries = fs::read_dir(directory).map_err(|e| file_error("list", directory, e))?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
}

/// A time as the name of a folder: no colons, which some systems do not take.
fn name(time_us: u64) -> String {
    humantime::format_rfc3339_micros(UNIX_EPOCH + Duration::from_micros(time_us)).to_string().replace(':', "-")
}

fn time_of(name: &str) -> Option<u64> {
    let (date, time) = name.split_once('T')?;
    let time = humantime::parse_rfc3339(&format!("{date}T{}", time.replace('-', ":"))).ok()?;
    Some(time.duration_since(UNIX_EPOCH).ok()?.as_micros() as u64)
}

/// Whether there is no file yet, or none of the log is in it.
pub(super) fn is_blank(generation: &Path) -> Result<bool, StoreError> {
    if !generation.join("data.mdb").exists() {
        return Ok(true);
    }
    // One that cannot be looked at is not overwritten; opening it says what is wrong.
    let state = look(generation, Rows::None);
    Ok(state.is_ok_and(|state| state.checkpoints.iter().all(|row| row.checkpoint.events_sequence == 0)))
}

/// Which rows of a file are read.
enum Rows<'a> {
    None,
    /// All, unless it is to end.
    All(&'a CancellationToken),
}

/// Looks at a copy's checkpoints.
///
/// # Errors
/// [`StoreError`] if it cannot be used.
pub(crate) fn glance(copy: &Path) -> Result<CopyState, StoreError> {
    look_at_copy(copy, Rows::None)
}

fn look_at_copy(path: &Path, rows: Rows<'_>) -> Result<CopyState, StoreError> {
    refuse_cut_short(&path.join("data.mdb"))?;
    look(path, rows)
}

/// Refuses a file that ends before its last page, which reading would run into. Only for copies: a file
/// in use may be shorter, because pages that were freed again are not written.
fn refuse_cut_short(path: &Path) -> Result<(), StoreError> {
    let failed = |e| file_error("read", path, e);
    let mut file = fs::File::open(path).map_err(failed)?;
    let found_bytes = file.metadata().map_err(failed)?.len();
    // Behind 16 bytes of header, `MDB_meta` has its magic number at 0, the page size at 24 and the last
    // page at 120. What has no meta page is no file of LMDB, which opening it says.
    let mut meta = |offset: u64| -> Option<(u64, u64)> {
        let mut page = [0_u8; 16 + 128];
        file.seek(SeekFrom::Start(offset)).ok()?;
        file.read_exact(&mut page).ok()?;
        let magic = u32::from_ne_bytes(page[16..20].try_into().ok()?);
        let page_bytes = u32::from_ne_bytes(page[40..44].try_into().ok()?);
        let last_page = u64::from_ne_bytes(page[136..144].try_into().ok()?);
        (magic == META_MAGIC).then_some((u64::from(page_bytes), last_page))
    };
    let Some((page_bytes, last_page)) = meta(0) else { return Ok(()) };
    let last_page = meta(page_bytes).map_or(1, |(_, last_page)| last_page).max(last_page);
    let wanted_bytes = last_page.saturating_add(1).saturating_mul(page_bytes);
    if wanted_bytes > found_bytes {
        return Err(StoreError::CutShort { path: path.to_owned(), found_bytes, wanted_bytes });
    }
    Ok(())
}

/// Looks into a file.
fn look(path: &Path, rows: Rows<'_>) -> Result<CopyState, StoreError> {
    let file = path.join("data.mdb");
    let bytes = fs::metadata(&file).map_err(|e| file_error("look at", &file, e))?.len();
    let map_bytes = page_multiple(usize::try_from(bytes).unwrap_or(usize::MAX).saturating_add(1 << 20));
    let options = StoreOptions { directory: path.to_owned(), file_mode: 0o600, map_bytes, history_revisions: 0 };
    let fail = |error: TableError| explain(error, &options, path);
    let tables = Tables::open(path, map_bytes).map_err(fail)?;
    let read = tables.read().map_err(fail)?;
    let missing = |what| fail(TableError::Row { database: "meta", error: DecodeError::Expected(what) });
    let format = read.format().map_err(fail)?.ok_or_else(|| missing("a format row"))?;
    let mut checkpoints = Vec::new();
    for lane in 0..format.lanes {
        checkpoints.push(read.checkpoint(lane).map_err(fail)?.ok_or_else(|| missing("a checkpoint of each lane"))?);
    }
    let rows = match rows {
        Rows::None => 0,
        Rows::All(stop) => read.verify(|| stop.is_cancelled()).map_err(fail)?,
    };
    Ok(CopyState { path: path.to_owned(), made_at_us: 0, bytes, format, checkpoints, rows })
}

/// Puts a copy in the place of a storer's file, as its next generation, once every row of it was
/// read. The storer must not run. With `as_new` the file is that of another storer than the one the
/// copy was made of. Without `overwrite` a directory that has a file already is refused.
///
/// # Errors
/// [`StoreError`]; the file there was is untouched then.
pub fn restore(
    copy: &Path,
    options: &StoreOptions,
    as_new: Option<u64>,
    overwrite: bool,
) -> Result<CopyState, StoreError> {
    let directory = &options.directory;
    make_directory(directory)?;
    let _lock = take_lock(directory)?;
    let before = current_generation(directory)?;
    let occupied = before.join("data.mdb").exists();
    if occupied && !overwrite {
        return Err(StoreError::Occupied { path: before });
    }
    let unfinished = directory.join(format!("{RESTORING}{:016x}", rand::random::<u64>()));
    let restored = restore_in(copy, options, as_new, &unfinished).and_then(|state| {
        let generation = place(directory, &unfinished)?;
        link(directory, &generation)?;
        Ok(state)
    });
    if restored.is_err() {
        let _ = fs::remove_dir_all(&unfinished);
    }
    restored
}

/// Makes the file in a folder that nobody takes for a generation, until it is complete and on the disk.
fn restore_in(
    copy: &Path,
    options: &StoreOptions,
    as_new: Option<u64>,
    unfinished: &Path,
) -> Result<CopyState, StoreError> {
    make_directory(unfinished)?;
    let (from, to) = (copy.join("data.mdb"), unfinished.join("data.mdb"));
    fs::copy(&from, &to).map_err(|e| file_error("copy", &from, e))?;
    let state = look_at_copy(unfinished, Rows::All(&CancellationToken::new()))?;
    if let Some(storer) = as_new {
        let map_bytes = page_multiple(usize::try_from(state.bytes).unwrap_or(usize::MAX).saturating_add(1 << 20));
        let tables = Tables::open(unfinished, map_bytes).map_err(|e| explain(e, options, unfinished))?;
        tables.set_storer(storer).map_err(|e| explain(e, options, unfinished))?;
    }
    fs::File::open(&to).and_then(|file| file.sync_all()).map_err(|e| file_error("sync", &to, e))?;
    for name in ["data.mdb", "lock.mdb"] {
        set_mode(&unfinished.join(name), options.file_mode)?;
    }
    sync_directory(unfinished)?;
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_leaves_room_for_others() {
        assert_eq!(needed(5 << 30, 1 << 40), 6 << 30);
        assert_eq!(needed(1 << 30, 2 << 30), (1 << 30) + (2 << 30) / 20, "a twentieth of a small disk");
    }

    #[test]
    fn names_are_dates_and_come_back() {
        let name = name(1_790_000_000_123_456);
        assert_eq!(name, "2026-09-21T14-13-20.123456Z");
        assert_eq!(time_of(&name), Some(1_790_000_000_123_456));
        for other in ["latest", ".new-7", "2026-09-21", "T"] {
            assert_eq!(time_of(other), None, "{other}");
        }
    }
}
