//! LMDB's errors, by what can be done about them.

use fieldstream_shared::msgpack::DecodeError;
use heed::MdbError;

/// What went wrong in LMDB, by what can be done about it.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The disk is full.
    #[error("no space left on the disk")]
    DiskFull,
    /// The map is full.
    #[error("the map is full")]
    MapFull,
    /// The file has outgrown this process' map.
    #[error("the file has outgrown the map")]
    Outgrown,
    /// The disk reported an error, or a write was cut short, which LMDB reports alike.
    #[error("input/output error")]
    Disk,
    /// Another LMDB, with another lock file format, has the file open.
    #[error("another LMDB has the file open")]
    LockFormat,
    /// The file is not one of this LMDB, or damaged.
    #[error("not an LMDB 0.9 file, or damaged ({0})")]
    Invalid(String),
    /// Not allowed to open it.
    #[error("permission denied")]
    Permission,
    /// The address space does not take the map.
    #[error("not enough address space")]
    AddressSpace,
    /// A row of the file cannot be read.
    #[error("a row of {database} cannot be decoded ({error})")]
    Row {
        /// The database.
        database: &'static str,
        /// What is wrong.
        error: DecodeError,
    },
    /// Reading was to end early.
    #[error("it was asked to end")]
    Stopped,
    /// Anything else.
    #[error("LMDB: {0}")]
    Other(String),
}

impl TableError {
    /// Whether the same commit may succeed later, when the cause is gone. An I/O error belongs
    /// here: on a disk that becomes full in the middle of a write LMDB reports one, and the next
    /// attempt writes every page of the transaction anew.
    pub fn is_passing(&self) -> bool {
        matches!(self, TableError::DiskFull | TableError::MapFull | TableError::Disk)
    }
}

impl From<heed::Error> for TableError {
    fn from(error: heed::Error) -> TableError {
        use std::io::ErrorKind;
        match &error {
            heed::Error::Mdb(MdbError::MapFull) => TableError::MapFull,
            heed::Error::Mdb(MdbError::MapResized) => TableError::Outgrown,
            heed::Error::Mdb(MdbError::VersionMismatch) => TableError::LockFormat,
            heed::Error::Mdb(MdbError::Invalid | MdbError::Corrupted | MdbError::PageNotFound) => {
                TableError::Invalid(error.to_string())
            }
            heed::Error::Io(io) => match (io.kind(), io.raw_os_error()) {
                (ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge, _) => {
                    TableError::DiskFull
                }
                (ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem, _) => TableError::Permission,
                (ErrorKind::OutOfMemory, _) => TableError::AddressSpace,
                (_, Some(EIO)) => TableError::Disk,
                _ => TableError::Other(error.to_string()),
            },
            _ => TableError::Other(error.to_string()),
        }
    }
}

const EIO: i32 = rustix::io::Errno::IO.raw_os_error();
