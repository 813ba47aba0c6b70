//! Why a report cannot be made, in words: what, where, what to do.

use crate::rows::FORMAT_VERSION;
use crate::tables::TableError;
use fieldstream_shared::change::Misfit;
use fieldstream_shared::msgpack::DecodeError;
use std::io;
use std::path::{Path, PathBuf};

/// Why a report cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// There is nothing at the path.
    #[error("there is no {path}")]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// There is something, and no storer's file in it.
    #[error(
        "{path} holds no storer's file; give the storer's folder, the `db` in it, a copy, or the data directory of \
         `fieldstream up`"
    )]
    NoDatabase {
        /// The path.
        path: PathBuf,
    },
    /// It is an LMDB file, and not a storer's.
    #[error("{path} is an LMDB file, but not a storer's: {reason}")]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// What is not as it must be.
        reason: String,
    },
    /// The file has another format.
    #[error("{path} has format version {found}, this program knows {FORMAT_VERSION}; use the program that wrote it")]
    Version {
        /// The folder.
        path: PathBuf,
        /// The file's version.
        found: u64,
    },
    /// A program with another LMDB has the file open.
    #[error(
        "{path} is open in a program whose LMDB has another lock file format (MDB_VERSION_MISMATCH); find it with \
         `fuser -v {path}/lock.mdb`, end it, and have it use a library of the LMDB 0.9 releases"
    )]
    LockFormat {
        /// The folder.
        path: PathBuf,
    },
    /// It is no file of LMDB 0.9, or damaged.
    #[error("{path}/data.mdb is not a file of LMDB 0.9, or it is damaged ({reason}); report from a copy of it")]
    Invalid {
        /// The folder.
        path: PathBuf,
        /// What LMDB says.
        reason: String,
    },
    /// Not allowed.
    #[error("no permission for {path}: readers read data.mdb and write lock.mdb; join the group of the storer's files")]
    Permission {
        /// The folder.
        path: PathBuf,
    },
    /// The map does not fit the address space.
    #[error("the address space has no room for the map of {path}; raise the limit (`ulimit -v`)")]
    AddressSpace {
        /// The folder.
        path: PathBuf,
    },
    /// Reading failed in another way.
    #[error("cannot read {path}: {reason}")]
    Unreadable {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// There is no such document.
    #[error("there is no document `{document}`, and there never was one")]
    NoDocument {
        /// Its id.
        document: String,
    },
    /// The document has not come to that revision.
    #[error("`{document}` has no revision {revision}; its newest is {last}, and the first of all is 1")]
    NoRevision {
        /// Its id.
        document: String,
        /// The revision.
        revision: u64,
        /// The newest there is.
        last: u64,
    },
    /// History no longer has the revision.
    #[error("not available: history of `{document}` begins at revision {first}")]
    Trimmed {
        /// Its id.
        document: String,
        /// The first there is.
        first: u64,
    },
    /// History begins in the middle, as it may in files of earlier versions.
    #[error("not available: history of `{document}` begins at revision {first} without a whole state")]
    NoWholeState {
        /// Its id.
        document: String,
        /// The first there is.
        first: u64,
    },
    /// The document did not exist yet.
    #[error("`{document}` did not exist then: its first change was later")]
    NotYet {
        /// Its id.
        document: String,
    },
    /// History is not what it must be.
    #[error("history of `{document}` is damaged at revision {revision}: {misfit}")]
    Damaged {
        /// Its id.
        document: String,
        /// The revision.
        revision: u64,
        /// What does not fit.
        misfit: Misfit,
    },
    /// The file has no index by time.
    #[error(
        "{path} has no index by time (`by_time`): an earlier version wrote it; once a storer of this version has \
         opened it, it has the changes from then on"
    )]
    NoByTime {
        /// The folder.
        path: PathBuf,
    },
}

/// An error of LMDB at a folder.
pub(super) fn explain(error: TableError, path: &Path) -> ReportError {
    let path = path.to_owned();
    match error {
        TableError::LockFormat => ReportError::LockFormat { path },
        TableError::Invalid(reason) => ReportError::Invalid { path, reason },
        TableError::Permission => ReportError::Permission { path },
        TableError::AddressSpace => ReportError::AddressSpace { path },
        TableError::Row { database: "meta", error: DecodeError::UnknownVersion(found) } => {
            ReportError::Version { path, found }
        }
        error => ReportError::Unreadable { path, reason: error.to_string() },
    }
}

/// An error of the file system at a path.
pub(super) fn file_error(error: &io::Error, path: &Path) -> ReportError {
    let path = path.to_owned();
    match error.kind() {
        io::ErrorKind::NotFound => ReportError::Missing { path },
        io::ErrorKind::PermissionDenied => ReportError::Permission { path },
        _ => ReportError::Unreadable { path, reason: error.to_string() },
    }
}
