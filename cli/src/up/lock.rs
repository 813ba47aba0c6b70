//! One process per data directory.

use crate::exit::Failure;
use rustix::fs::{FlockOperation, flock};
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;

/// The data directory is ours as long as this lives. The operating system gives it back however
/// the process ends.
#[derive(Debug)]
pub(crate) struct DirectoryLock {
    _file: File,
}

impl DirectoryLock {
    /// Takes the directory.
    ///
    /// # Errors
    /// If another process has it; the message names it.
    pub(crate) fn take(directory: &Path) -> Result<DirectoryLock, Failure> {
        let path = directory.join("up.lock");
        let cannot = |error: std::io::Error| Failure::failed(format_args!("cannot use {}: {error}", path.display()));
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(cannot)?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut holder = String::new();
            let _ = (&file).take(32).read_to_string(&mut holder);
            let holder = match holder.trim() {
                "" => "another process".to_owned(),
                pid => format!("process {pid}"),
            };
            return Err(Failure::failed(format_args!(
                "the data directory {} is in use by {holder}",
                directory.display()
            ))
            .help("stop that one first, or give another directory with --data"));
        }
        file.set_len(0).and_then(|()| file.rewind()).map_err(cannot)?;
        file.write_all(format!("{}\n", std::process::id()).as_bytes()).map_err(cannot)?;
        Ok(DirectoryLock { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_holder_and_the_message_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let first = DirectoryLock::take(directory.path()).unwrap();
        let refused = DirectoryLock::take(directory.path()).unwrap_err();
        assert!(refused.message.contains(&format!("process {}", std::process::id())), "{refused:?}");
        drop(first);
        DirectoryLock::take(directory.path()).unwrap();
    }
}
