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
    GENERATIONS, Store, StoreError, StoreOptions, current_generation, link, make_directory, page_multiple, set_mode,
    sync_directory, take_lock,
};
use crate::rows::{CheckpointRow, FormatRow};
use crate::tables::{TableError, Tables};
use fieldstream_shared::msgpack::DecodeError;
use std::fs;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

const LATEST: &str = "latest";
/// What is not finished begins with this.
const UNFINISHED: &str = ".new-";

/// A folder of copies.
#[derive(Debug, Clone)]
pub struct Copies {
    directory: PathBuf,
    file_mode: u32,
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
        Ok(Copies { directory, file_mode })
    }

    /// The folder as it is, to look into while a storer uses it.
    pub fn present(directory: PathBuf) -> Copies {
        Copies { directory, file_mode: 0 }
    }

    /// Makes a copy, reads every row of it, and gives it its name; `latest` then points to it.
    ///
    /// # Errors
    /// [`StoreError`]; nothing is left of the copy then.
    pub fn make(&self, store: &Store, now_us: u64) -> Result<CopyState, StoreError> {
        let unfinished = self.directory.join(format!("{UNFINISHED}{}", std::process::id()));
        let made = self.make_in(store, &unfinished, now_us);
        if made.is_err() {
            let _ = fs::remove_dir_all(&unfinished);
        }
        made
    }

    fn make_in(&self, store: &Store, unfinished: &Path, now_us: u64) -> Result<CopyState, StoreError> {
        make_directory(unfinished)?;
        let file = unfinished.join("data.mdb");
        let options = StoreOptions { directory: self.directory.clone(), ..store.options.clone() };
        store.copy_to(&file).map_err(|error| explain(error, &options, unfinished))?;
        set_mode(&file, self.file_mode)?;
        let state = CopyState { made_at_us: now_us, ..look(unfinished, true)? };
        // Readers make their own.
        let lock = unfinished.join("lock.mdb");
        fs::remove_file(&lock).map_err(|e| file_error("remove", &lock, e))?;
        sync_directory(unfinished)?;
        let name = name(now_us);
        let path = self.directory.join(&name);
        fs::rename(unfinished, &path).map_err(|e| file_error("name", &path, e))?;
        self.point_latest_at(&name)?;
        Ok(CopyState { path, ..state })
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
            match look(&self.directory.join(&name), false) {
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

    /// Removes a copy.
    ///
    /// # Errors
    /// [`StoreError`] if it stays.
    pub fn remove(&self, copy: &CopyState) -> Result<(), StoreError> {
        fs::remove_dir_all(&copy.path).map_err(|e| file_error("remove", &copy.path, e))
    }
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
    let state = look(generation, false);
    Ok(state.is_ok_and(|state| state.checkpoints.iter().all(|row| row.checkpoint.events_sequence == 0)))
}

/// Looks into a copy; with `thoroughly`, at every row.
fn look(path: &Path, thoroughly: bool) -> Result<CopyState, StoreError> {
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
    let rows = if thoroughly { read.verify().map_err(fail)? } else { 0 };
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
    let number = before.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<u64>().ok());
    let next = number.map_or(1, |number| if occupied { number + 1 } else { number });
    let generation = directory.join(GENERATIONS).join(next.to_string());
    make_directory(&directory.join(GENERATIONS))?;
    make_directory(&generation)?;
    let (from, to) = (copy.join("data.mdb"), generation.join("data.mdb"));
    fs::copy(&from, &to).map_err(|e| file_error("copy", &from, e))?;
    let state = look(&generation, true)?;
    if let Some(storer) = as_new {
        let map_bytes = page_multiple(usize::try_from(state.bytes).unwrap_or(usize::MAX).saturating_add(1 << 20));
        let tables = Tables::open(&generation, map_bytes).map_err(|e| explain(e, options, &generation))?;
        tables.set_storer(storer).map_err(|e| explain(e, options, &generation))?;
    }
    fs::File::open(&to).and_then(|file| file.sync_all()).map_err(|e| file_error("sync", &to, e))?;
    for name in ["data.mdb", "lock.mdb"] {
        set_mode(&generation.join(name), options.file_mode)?;
    }
    sync_directory(&generation)?;
    sync_directory(&directory.join(GENERATIONS))?;
    link(directory, &generation)?;
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;

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
