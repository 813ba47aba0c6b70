//! Who reads the file: LMDB's table of readers, as the released 0.9 versions lay it out on 64-bit Linux
//! (`lock.mdb`), and which reader looks at one state for too long.
//!
//! A head of 128 bytes, with the last committed transaction at 48 and the number of slots in use at 56;
//! then slots of 64 bytes: transaction, process id, thread. All in native byte order.

use std::path::Path;
use std::time::{Duration, Instant};

const MAGIC: u32 = 0xbeef_c0de;
const LAST_TRANSACTION_AT: usize = 48;
const SLOTS_USED_AT: usize = 56;
const SLOTS_AT: usize = 128;
const SLOT_BYTES: usize = 64;
/// The transaction of a slot that is kept for the next one.
const IDLE: u64 = u64::MAX;

/// A reader that looks at a state of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reader {
    /// The slot in the table.
    pub(crate) slot: usize,
    /// The process.
    pub(crate) pid: u32,
    /// The transaction whose state it looks at.
    pub(crate) transaction: u64,
}

/// The table at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ReaderTable {
    /// The last committed transaction.
    pub(crate) last_transaction: u64,
    /// Those that look at a state now.
    pub(crate) active: Vec<Reader>,
}

impl ReaderTable {
    /// Of the file in a folder; empty if it cannot be read.
    pub(crate) fn of(folder: &Path) -> ReaderTable {
        std::fs::read(folder.join("lock.mdb")).ok().and_then(|bytes| ReaderTable::parse(&bytes)).unwrap_or_default()
    }

    fn parse(bytes: &[u8]) -> Option<ReaderTable> {
        let u64_at = |at: usize| bytes.get(at..)?.first_chunk::<8>().map(|b| u64::from_ne_bytes(*b));
        let u32_at = |at: usize| bytes.get(at..)?.first_chunk::<4>().map(|b| u32::from_ne_bytes(*b));
        if u32_at(0)? != MAGIC {
            return None;
        }
        let last_transaction = u64_at(LAST_TRANSACTION_AT)?;
        let mut active = Vec::new();
        for slot in 0..u32_at(SLOTS_USED_AT)? as usize {
            let at = SLOTS_AT + slot * SLOT_BYTES;
            let (Some(transaction), Some(pid)) = (u64_at(at), u32_at(at + 8)) else { break };
            if pid != 0 && transaction != IDLE {
                active.push(Reader { slot, pid, transaction });
            }
        }
        Some(ReaderTable { last_transaction, active })
    }

    /// Commits since the state that the oldest reader looks at; 0 without readers.
    pub(crate) fn lag_commits(&self) -> u64 {
        let oldest = self.active.iter().map(|reader| reader.transaction).min();
        oldest.map_or(0, |oldest| self.last_transaction.saturating_sub(oldest))
    }
}

/// Since when each reader looks at the state it looks at.
#[derive(Debug, Default)]
pub(crate) struct Watched(Vec<(Reader, Instant)>);

impl Watched {
    /// Takes in the table as it is now; the reader of another process that has been looking at one state
    /// for the longest time, if that is at least `patience` and something was committed since.
    pub(crate) fn see(&mut self, table: &ReaderTable, now: Instant, patience: Duration) -> Option<(Reader, Duration)> {
        let since = |reader: &Reader| self.0.iter().find(|(known, _)| known == reader).map_or(now, |(_, since)| *since);
        self.0 = table.active.iter().map(|reader| (*reader, since(reader))).collect();
        let own = std::process::id();
        let pins = |reader: &Reader| reader.pid != own && reader.transaction < table.last_transaction;
        let longest = self.0.iter().filter(|(reader, _)| pins(reader)).min_by_key(|(_, since)| *since)?;
        let (reader, for_long) = (longest.0, now.saturating_duration_since(longest.1));
        (for_long >= patience).then_some((reader, for_long))
    }
}

/// What a process is called.
pub(crate) fn process_name(pid: u32) -> String {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    match name.trim() {
        "" => format!("process {pid}"),
        name => format!("process {pid} ({name})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(last_transaction: u64, slots: &[(u64, u32)]) -> Vec<u8> {
        let mut bytes = vec![0; SLOTS_AT];
        bytes[..4].copy_from_slice(&MAGIC.to_ne_bytes());
        bytes[LAST_TRANSACTION_AT..][..8].copy_from_slice(&last_transaction.to_ne_bytes());
        bytes[SLOTS_USED_AT..][..4].copy_from_slice(&(slots.len() as u32).to_ne_bytes());
        for (transaction, pid) in slots {
            bytes.extend_from_slice(&transaction.to_ne_bytes());
            bytes.extend_from_slice(&pid.to_ne_bytes());
            bytes.resize(bytes.len().next_multiple_of(SLOT_BYTES), 0);
        }
        bytes
    }

    #[test]
    fn idle_and_empty_slots_read_nothing() {
        let read = ReaderTable::parse(&table(9, &[(IDLE, 5), (7, 6), (3, 0), (8, 4)])).unwrap();
        let reader = |slot, pid, transaction| Reader { slot, pid, transaction };
        assert_eq!(read, ReaderTable { last_transaction: 9, active: vec![reader(1, 6, 7), reader(3, 4, 8)] });
        assert_eq!(read.lag_commits(), 2);
        assert_eq!(ReaderTable::default().lag_commits(), 0);
        assert_eq!(ReaderTable::parse(&[0; 4096]), None);
        assert_eq!(ReaderTable::parse(b""), None);
        let cut = &table(9, &[(7, 6), (8, 4)])[..SLOTS_AT + 60];
        assert_eq!(ReaderTable::parse(cut).unwrap().active.len(), 1, "a table that ends early");
    }

    #[test]
    fn only_others_that_look_at_an_old_state_for_long_are_told_of() {
        let (mut watched, begun, patience) = (Watched::default(), Instant::now(), Duration::from_secs(60));
        let at = |seconds| begun + Duration::from_secs(seconds);
        let own = std::process::id();
        let of = |last, slots: &[(u64, u32)]| ReaderTable::parse(&table(last, slots)).unwrap();
        assert_eq!(watched.see(&of(7, &[(7, 1), (3, own)]), at(0), patience), None);
        assert_eq!(watched.see(&of(7, &[(7, 1), (3, own)]), at(100), patience), None, "nothing was committed since");
        let (reader, for_long) = watched.see(&of(8, &[(7, 1), (3, own)]), at(101), patience).unwrap();
        assert_eq!((reader.pid, for_long.as_secs()), (1, 101));
        assert_eq!(watched.see(&of(9, &[(8, 1)]), at(102), patience), None, "it went on to another state");
        assert_eq!(watched.see(&of(9, &[(8, 1)]), at(150), patience), None);
        assert!(watched.see(&of(9, &[(8, 1)]), at(162), patience).is_some());
        assert_eq!(watched.see(&of(9, &[]), at(163), patience), None);
    }

    #[test]
    fn the_table_of_a_real_file_is_read() {
        use crate::store::{Identity, Store, StoreOptions};
        let directory = tempfile::tempdir().unwrap();
        let directory_path = directory.path().to_owned();
        let options =
            StoreOptions { directory: directory_path, file_mode: 0o664, map_bytes: 1 << 20, history_revisions: 0 };
        let store = Store::open(options, &Identity { lanes: 1, log_id: 1, new_storer: 2, now_us: 3 }).unwrap();
        let folder = Store::database_path(directory.path());
        assert_eq!(ReaderTable::of(&folder).active, []);
        let read = store.read().unwrap();
        read.sequence(0).unwrap();
        let table = ReaderTable::of(&folder);
        let [reader] = table.active[..] else { panic!("{table:?}") };
        assert_eq!((reader.pid, reader.transaction), (std::process::id(), table.last_transaction));
        assert!(table.last_transaction > 0);
        drop(read);
        assert_eq!(ReaderTable::of(&folder).active, []);
    }
}
