//! What can be in the way of the file, in words: what, where, what to do.

use super::StoreOptions;
use crate::rows::FORMAT_VERSION;
use crate::tables::TableError;
use fieldstream_shared::msgpack::DecodeError;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// Why the file cannot be used. Each message says what, where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another storer has the directory.
    #[error("{directory} is in use by {holder}; stop that storer, or give this one another directory")]
    InUse {
        /// The directory.
        directory: PathBuf,
        /// Who has it.
        holder: String,
        /// Whether that is this very process, which may be about to let it go.
        by_this_process: bool,
    },
    /// The file is open in a program with another LMDB.
    #[error(
        "{path} is open in a program whose LMDB has another lock file format (MDB_VERSION_MISMATCH); find it with \
         `fuser -v {path}/lock.mdb`, end it, and have it use a library of the LMDB 0.9 releases"
    )]
    LockFormat {
        /// The generation's directory.
        path: PathBuf,
    },
    /// The file is something else, or damaged.
    #[error(
        "{path}/data.mdb is not a file of LMDB 0.9, or it is damaged ({reason}); move {directory} away and start \
         again: the file is rebuilt from the log"
    )]
    Invalid {
        /// The generation's directory.
        path: PathBuf,
        /// What LMDB says.
        reason: String,
        /// The storer's directory.
        directory: PathBuf,
    },
    /// What was made again is not what is in use.
    #[error(
        "the checkpoint of the file made again differs from that of {path}, so it is not put in its place; make it \
         again from an older copy (`--copy`) or from the log (`--from-log`)"
    )]
    RebuiltDiffers {
        /// The file in use.
        path: PathBuf,
    },
    /// Not allowed.
    #[error("no permission to read and write {path}; give it to the user who runs the storer")]
    Permission {
        /// What.
        path: PathBuf,
    },
    /// The disk is full.
    #[error("the disk of {path} is full; free some space")]
    DiskFull {
        /// What could not be written.
        path: PathBuf,
    },
    /// A copy would leave too little room on its disk.
    #[error(
        "a copy takes {needed_bytes} bytes with what has to stay free, and the disk of {path} has {free_bytes}; free          some space"
    )]
    NoRoom {
        /// Where the copy would be.
        path: PathBuf,
        /// What it takes, and what is left free for others.
        needed_bytes: u64,
        /// What there is.
        free_bytes: u64,
    },
    /// The file ends before its last page: reading it would end the process.
    #[error("{path} has {found_bytes} bytes of {wanted_bytes}: it was cut short; take another copy")]
    CutShort {
        /// The file.
        path: PathBuf,
        /// Its length.
        found_bytes: u64,
        /// What its pages take.
        wanted_bytes: u64,
    },
    /// It was asked to end.
    #[error("{path} is not finished: the storer is stopping")]
    Stopped {
        /// What it was at.
        path: PathBuf,
    },
    /// The disk reports an error.
    #[error(
        "the disk of {path} is full or reports an input/output error; free some space, and look at the kernel's log"
    )]
    Disk {
        /// What could not be written.
        path: PathBuf,
    },
    /// The map is full.
    #[error("the LMDB map of {path} is full at {map_bytes} bytes; start the storer with a larger map size")]
    MapFull {
        /// The generation's directory.
        path: PathBuf,
        /// The map's size.
        map_bytes: usize,
    },
    /// The map does not fit the address space.
    #[error(
        "{map_bytes} bytes of address space for {path} are not to be had; raise the limit (`ulimit -v`), or start \
         the storer with a smaller map size"
    )]
    AddressSpace {
        /// The generation's directory.
        path: PathBuf,
        /// The map's size.
        map_bytes: usize,
    },
    /// The file was written by another version.
    #[error("{path} has format version {found}, this storer knows {FORMAT_VERSION}; use the storer that made it")]
    Version {
        /// The generation's directory.
        path: PathBuf,
        /// The file's version.
        found: u64,
    },
    /// The file belongs to a log with another number of lanes.
    #[error(
        "{path} was made for {found} lane(s) and the log has {wanted}; the number of lanes never changes: give the \
         directory of this log, or an empty one"
    )]
    Lanes {
        /// The generation's directory.
        path: PathBuf,
        /// As in the file.
        found: u16,
        /// As in the log.
        wanted: u16,
    },
    /// The file belongs to another log.
    #[error(
        "{path} stores log {found:016x} and NATS has log {wanted:016x}; the log was replaced or repaired: give the \
         directory of this log, or an empty one to build it anew"
    )]
    Log {
        /// The generation's directory.
        path: PathBuf,
        /// As in the file.
        found: u64,
        /// As in the log.
        wanted: u64,
    },
    /// There is a file already.
    #[error("{path} has a file already; restoring would put the copy in its place: say --yes if that is meant")]
    Occupied {
        /// The generation's directory.
        path: PathBuf,
    },
    /// The log was repaired, but not from the state this file holds.
    #[error(
        "the log was repaired from the file of storer {storer:016x}, and {path} does not hold the same state; make \
         {directory} anew from that storer's file"
    )]
    Stale {
        /// The generation's directory.
        path: PathBuf,
        /// The storer's directory.
        directory: PathBuf,
        /// The storer whose file the log goes on from.
        storer: u64,
    },
    /// A file operation.
    #[error("cannot {action} {path}: {source}")]
    File {
        /// What was to be done.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// LMDB says something unexpected.
    #[error(
        "{path}: {reason}; start the storer again, and if it stays, move {directory} away: it is rebuilt from the log"
    )]
    Unexpected {
        /// The generation's directory.
        path: PathBuf,
        /// What it says.
        reason: String,
        /// The storer's directory.
        directory: PathBuf,
    },
}

pub(crate) fn file_error(action: &'static str, path: &Path, source: io::Error) -> StoreError {
    match source.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => StoreError::Permission { path: path.to_owned() },
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StoreError::DiskFull { path: path.to_owned() },
        _ => StoreError::File { action, path: path.to_owned(), source },
    }
}

pub(super) fn explain(error: TableError, options: &StoreOptions, generation: &Path) -> StoreError {
    let (path, directory, map_bytes) = (generation.to_owned(), options.directory.clone(), options.map_bytes);
    match error {
        TableError::DiskFull => StoreError::DiskFull { path },
        TableError::MapFull => StoreError::MapFull { path, map_bytes },
        TableError::LockFormat => StoreError::LockFormat { path },
        TableError::Invalid(reason) => StoreError::Invalid { path, reason, directory },
        TableError::Permission => StoreError::Permission { path },
        TableError::AddressSpace => StoreError::AddressSpace { path, map_bytes },
        TableError::Row { database: "meta", error: DecodeError::UnknownVersion(found) } => {
            StoreError::Version { path, found }
        }
        TableError::Disk => StoreError::Disk { path },
        TableError::Stopped => StoreError::Stopped { path },
        error @ (TableError::Row { .. } | TableError::Outgrown | TableError::Other(_)) => {
            StoreError::Unexpected { path, reason: error.to_string(), directory }
        }
    }
}
