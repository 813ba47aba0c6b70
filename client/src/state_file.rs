//! The state file: a client's epoch, counter and unresolved instructions on disk. The only code
//! here that touches it; all of it blocks.

use crate::error::ClientError;
use crate::session::journal::{self, Batch};
use crate::session::numbers::Restored;
use fieldstream_shared::ids::ClientId;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// An open state file. Locked through a second file beside it, because replacing a file would
/// leave a lock on the old one.
#[derive(Debug)]
pub(crate) struct StateFile {
    path: PathBuf,
    client: ClientId,
    file: File,
    _lock: File,
}

fn failed(path: &Path, what: &str, error: &io::Error) -> ClientError {
    ClientError::StateFile(format!("{}: {what}: {error}", path.display()))
}

impl StateFile {
    /// Opens or creates the file. `client` is the id asked for, `fresh` the one to use if there is
    /// neither; `wall_us` becomes the epoch of a new file.
    ///
    /// # Errors
    /// [`ClientError::StateFile`] if it is in use, of another client, damaged or not writable.
    pub(crate) fn open(
        path: &Path,
        client: Option<&ClientId>,
        fresh: &ClientId,
        wall_us: u64,
    ) -> Result<(StateFile, ClientId, Restored), ClientError> {
        let lock = lock(path)?;
        let (client, restored) = match fs::read(path) {
            Ok(bytes) => restore(path, &bytes, client)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let client = client.unwrap_or(fresh).clone();
                (client, Restored { epoch: wall_us, next: 1, ..Restored::default() })
            }
            Err(error) => return Err(failed(path, "cannot be read", &error)),
        };
        let mut records = Vec::new();
        for (number, instruction) in &restored.unresolved {
            journal::write_instruction(*number, instruction, &mut records);
        }
        let file = replace(path, &client, restored.epoch, restored.next, &records)
            .map_err(|error| failed(path, "cannot be written", &error))?;
        Ok((StateFile { path: path.to_owned(), client: client.clone(), file, _lock: lock }, client, restored))
    }

    /// Writes a batch durably.
    ///
    /// # Errors
    /// [`ClientError::StateFile`]: nothing of the batch may be relied on.
    pub(crate) fn write(&mut self, batch: &Batch) -> Result<(), ClientError> {
        let written = if batch.rewrite {
            replace(&self.path, &self.client, batch.epoch, batch.next, &batch.records).map(|file| self.file = file)
        } else {
            self.file.write_all(&batch.records).and_then(|()| self.file.sync_data())
        };
        written.map_err(|error| failed(&self.path, "cannot be written", &error))
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn lock(path: &Path) -> Result<File, ClientError> {
    let lock_path = with_suffix(path, ".lock");
    let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path);
    let lock = opened.map_err(|error| failed(&lock_path, "cannot be created", &error))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(fs::TryLockError::WouldBlock) => Err(ClientError::StateFile(format!(
            "{}: in use by another client; give each client a file of its own",
            path.display()
        ))),
        Err(fs::TryLockError::Error(error)) => Err(failed(&lock_path, "cannot be locked", &error)),
    }
}

fn restore(path: &Path, bytes: &[u8], client: Option<&ClientId>) -> Result<(ClientId, Restored), ClientError> {
    let (kept, restored, good_bytes) = journal::read(bytes).map_err(|error| {
        ClientError::StateFile(format!(
            "{}: is no state file or is damaged ({error}); move it away to start without it",
            path.display()
        ))
    })?;
    if good_bytes < bytes.len() {
        tracing::warn!(path = %path.display(), bytes = bytes.len() - good_bytes, "the state file's torn end was left out");
    }
    match client {
        Some(client) if *client != kept => Err(ClientError::StateFile(format!(
            "{}: belongs to client {kept}, not to {client}; give each client a file of its own",
            path.display()
        ))),
        _ => Ok((kept, restored)),
    }
}

/// Replaces the file in one step: after a crash there is the old one or the new one.
fn replace(path: &Path, client: &ClientId, epoch: u64, next: u64, records: &[u8]) -> io::Result<File> {
    let mut bytes = Vec::new();
    journal::write_head(client, epoch, next, &mut bytes);
    bytes.extend_from_slice(records);
    let new_path = with_suffix(path, ".new");
    let mut options = OpenOptions::new();
    options.create(true).truncate(true).write(true);
    // Instructions may hold what other users of the machine should not see.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&new_path)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    fs::rename(&new_path, path)?;
    #[cfg(unix)]
    {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::numbers::{Instruction, Numbers};
    use fieldstream_shared::ids::DocumentId;
    use fieldstream_shared::outcome::{AckLevel, Outcome};

    fn instruction(n: u8) -> Instruction {
        let document = DocumentId::new("d").unwrap();
        Instruction {
            document,
            if_revision: Some(3),
            operation: vec![n; 10].into(),
            ack: AckLevel::Stored,
            traced: false,
        }
    }

    fn open(path: &Path) -> (StateFile, Restored) {
        let fresh = ClientId::new("fresh").unwrap();
        let (file, client, restored) = StateFile::open(path, None, &fresh, 77).unwrap();
        assert_eq!(client, fresh);
        (file, restored)
    }

    fn flush(numbers: &mut Numbers, file: &mut StateFile) {
        while let Some(batch) = numbers.take_journal() {
            file.write(&batch).unwrap();
            numbers.journal_written(&batch);
        }
    }

    #[test]
    fn unresolved_instructions_survive_and_the_counter_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let (mut file, restored) = open(&path);
        assert_eq!((restored.epoch, restored.next), (77, 1));
        let mut numbers = Numbers::new(restored, true);
        for n in 0..3 {
            numbers.submit(instruction(n), None);
        }
        flush(&mut numbers, &mut file);
        numbers.outcome(77, 2, AckLevel::Stored, Some(Outcome::Applied { revision: 1 }));
        flush(&mut numbers, &mut file);
        drop(file);
        let (mut file, restored) = open(&path);
        assert_eq!((restored.epoch, restored.next), (77, 4));
        assert_eq!(restored.unresolved.keys().copied().collect::<Vec<_>>(), [1, 3]);
        assert_eq!(restored.unresolved[&3], instruction(2));
        let mut numbers = Numbers::new(restored, true);
        for n in [1, 3] {
            numbers.outcome(77, n, AckLevel::Stored, Some(Outcome::Applied { revision: 1 }));
        }
        flush(&mut numbers, &mut file);
        assert!(numbers.is_quiet());
        drop(file);
        let (_file, restored) = open(&path);
        assert_eq!((restored.next, restored.unresolved.len()), (4, 0));
    }

    #[test]
    fn a_torn_end_is_left_out_wherever_it_was_torn() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let (mut file, restored) = open(&path);
        let mut numbers = Numbers::new(restored, true);
        numbers.submit(instruction(1), None);
        flush(&mut numbers, &mut file);
        let first_bytes = fs::metadata(&path).unwrap().len() as usize;
        numbers.submit(instruction(2), None);
        flush(&mut numbers, &mut file);
        drop(file);
        let whole = fs::read(&path).unwrap();
        for cut in first_bytes..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let (_, restored) = open(&path);
            assert_eq!((restored.next, restored.unresolved.len()), (2, 1), "cut at {cut}");
        }
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        fs::write(&path, &flipped).unwrap();
        assert_eq!(open(&path).1.unresolved.len(), 1);
        fs::write(&path, &whole[..5]).unwrap();
        let fresh = ClientId::new("fresh").unwrap();
        let refused = StateFile::open(&path, None, &fresh, 1).unwrap_err().to_string();
        assert!(refused.contains("move it away"), "{refused}");
    }

    #[test]
    fn a_file_is_for_one_client_at_a_time_and_one_id() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let (file, _) = open(&path);
        let fresh = ClientId::new("fresh").unwrap();
        let busy = StateFile::open(&path, None, &fresh, 1).unwrap_err().to_string();
        assert!(busy.contains("in use"), "{busy}");
        drop(file);
        let other = ClientId::new("other").unwrap();
        let wrong = StateFile::open(&path, Some(&other), &fresh, 1).unwrap_err().to_string();
        assert!(wrong.contains("belongs to client fresh"), "{wrong}");
    }

    #[test]
    fn a_file_does_not_grow_with_what_is_resolved() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let (mut file, restored) = open(&path);
        let mut numbers = Numbers::new(restored, true);
        for _ in 0..60 {
            let mut large = instruction(1);
            large.operation = vec![0; 100_000].into();
            let n = numbers.submit(large, None);
            flush(&mut numbers, &mut file);
            numbers.outcome(77, n, AckLevel::Stored, Some(Outcome::Applied { revision: 1 }));
            flush(&mut numbers, &mut file);
        }
        assert!(fs::metadata(&path).unwrap().len() < 2_000_000);
        drop(file);
        assert_eq!(open(&path).1.next, 61);
    }
}
