//! The file: found, opened read-only, and followed where the storer leads.

use super::error::{ReportError, explain, file_error};
use crate::tables::{ReadTables, TableError, Tables};
use fieldstream_shared::msgpack::DecodeError;
use std::path::{Path, PathBuf};

/// Where the storer's file is below a folder: in it, behind the storer's link, below the data directory
/// of `up`.
const PLACES: [&str; 3] = ["", "db", "storer/db"];

/// An open file. What reads it has one transaction at a time, of a page each.
pub(super) struct File {
    /// Followed anew for every page: the storer may switch it to a rebuilt file.
    link: PathBuf,
    /// Where it led to.
    folder: PathBuf,
    tables: Tables,
    lanes: u16,
}

/// The folder, or link to one, that has `data.mdb`.
fn find(path: &Path) -> Result<PathBuf, ReportError> {
    std::fs::metadata(path).map_err(|error| file_error(&error, path))?;
    let folder = match path.file_name() {
        Some(name) if name == "data.mdb" && path.is_file() => path.parent().unwrap_or(path),
        _ => path,
    };
    for place in PLACES {
        let found = if place.is_empty() { folder.to_owned() } else { folder.join(place) };
        match std::fs::metadata(found.join("data.mdb")) {
            Ok(_) => return Ok(found),
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                return Err(ReportError::Permission { path: found });
            }
            Err(_) => {}
        }
    }
    Err(ReportError::NoDatabase { path: path.to_owned() })
}

fn real(link: &Path) -> Result<PathBuf, ReportError> {
    std::fs::canonicalize(link).map_err(|error| file_error(&error, link))
}

/// Opens a folder's file, and gives back its number of lanes with it.
fn open(folder: &Path) -> Result<(Tables, u16), ReportError> {
    let foreign = |reason: String| ReportError::Foreign { path: folder.to_owned(), reason };
    let fail = |error| match error {
        TableError::Row { database, error: DecodeError::Expected("the database") } => {
            foreign(format!("it has no database `{database}`"))
        }
        error => explain(error, folder),
    };
    let tables = Tables::open_read_only(folder).map_err(fail)?;
    let format = tables.read().and_then(|read| read.format()).map_err(fail)?;
    let format = format.ok_or_else(|| foreign("it does not say what it is; its storer may be making it".to_owned()))?;
    Ok((tables, format.lanes))
}

/// What the path leads to, whichever of the places the file is in.
fn leads_to(path: &Path) -> [Option<PathBuf>; PLACES.len()] {
    PLACES.map(|place| std::fs::canonicalize(path.join(place)).ok())
}

/// What a link led to before its storer switched it may be removed at any moment: who was about to open
/// that looks again, a few times at most.
fn steadily<T>(path: &Path, open: impl Fn() -> Result<T, ReportError>) -> Result<T, ReportError> {
    let mut attempts_left = 5;
    loop {
        let before = leads_to(path);
        attempts_left -= 1;
        match open() {
            Err(_) if attempts_left > 0 && leads_to(path) != before => {}
            opened => return opened,
        }
    }
}

impl File {
    pub(super) fn open(path: &Path) -> Result<File, ReportError> {
        steadily(path, || {
            let link = find(path)?;
            let folder = real(&link)?;
            let (tables, lanes) = open(&folder)?;
            Ok(File { link, folder, tables, lanes })
        })
    }

    /// One state, for a page: of the file that the link leads to now.
    pub(super) fn read(&mut self) -> Result<ReadTables, ReportError> {
        if steadily(&self.link, || real(&self.link))? != self.folder {
            *self = File::open(&self.link)?;
        }
        let read = match self.tables.read() {
            Err(TableError::Outgrown) => self.tables.take_map_size().and_then(|()| self.tables.read()),
            read => read,
        };
        read.map_err(|error| self.explain(error))
    }

    pub(super) fn explain(&self, error: TableError) -> ReportError {
        explain(error, &self.folder)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn lanes(&self) -> u16 {
        self.lanes
    }
}
