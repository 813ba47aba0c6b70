//! What a file holds, in short: a hash and a count per partition and database. Two files that hold
//! the same state have the same digests, whatever their pages look like and whoever wrote them.

use crate::projection::State;
use crate::rows::{
    DeadLetterKey, DeadLetterRow, DocumentRow, HistoryKey, HistoryRow, decode_mark, encode_mark, parse_client_key,
};
use crate::tables::{ReadTables, TableError, Tables};
use fieldstream_shared::cursor::Cursors;
use fieldstream_shared::event::message_hash;
use fieldstream_shared::msgpack::DecodeError;
use fieldstream_shared::partition::Partition;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Rows and their hash.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// Number of rows.
    pub rows: u64,
    /// Sum of the rows' hashes.
    pub hash: u64,
}

/// Where a lane stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneDigest {
    /// Identity of the log.
    pub log_id: u64,
    /// Everything up to this message of EVENTS is in the file.
    pub events_sequence: u64,
    /// Hash of that message.
    pub events_hash: u64,
}

/// Where to find rows that differ.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// The partition.
    pub partition: u8,
    /// The database, or `cursors`.
    pub database: String,
}

/// A row that cannot be right, whatever the log says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadRow {
    /// The database.
    pub database: String,
    /// Its key, as text where it is text.
    pub key: String,
    /// What is wrong.
    pub reason: String,
}

/// What a file holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digests {
    /// In order of lanes.
    pub lanes: Vec<LaneDigest>,
    /// By partition and database; those without rows are left out.
    pub places: Vec<(Place, Digest)>,
    /// The first rows that cannot be right.
    pub bad: Vec<BadRow>,
    /// Number of rows.
    pub rows: u64,
}

/// So many bad rows are named.
const BAD_MAX: usize = 10;

impl Digests {
    /// Of an open file. Of each document's history only the rows that are kept for certain count:
    /// those of `history_revisions` revisions, 0 for all.
    ///
    /// # Errors
    /// [`TableError`] if the file cannot be read to its end.
    pub fn of(read: &ReadTables, history_revisions: u64) -> Result<Digests, TableError> {
        let missing = |what| TableError::Row { database: "meta", error: DecodeError::Expected(what) };
        let format = read.format()?.ok_or_else(|| missing("a format row"))?;
        let mut gathered = Gathered::default();
        let mut lanes = Vec::new();
        for lane in 0..format.lanes {
            let checkpoint = read.checkpoint(lane)?.ok_or_else(|| missing("a checkpoint of each lane"))?.checkpoint;
            for p in Partition::all().filter(|p| p.lane(format.lanes) == lane) {
                gathered.cursor(p, &checkpoint.cursors);
            }
            let (log_id, events_sequence, events_hash) =
                (checkpoint.log_id, checkpoint.events_sequence, checkpoint.events_hash);
            lanes.push(LaneDigest { log_id, events_sequence, events_hash });
        }
        let mut kept = Kept::default();
        read.rows(|database, key, value| {
            if database == "history" && history_revisions > 0 && !kept.counts(key, history_revisions, read) {
                return Ok(());
            }
            if let Err(error) = gathered.row(database, key, value) {
                gathered.tell(database, key, error.to_string());
            }
            Ok(())
        })?;
        let places = gathered.places.into_iter().filter(|(_, digest)| digest.rows > 0);
        let places =
            places.map(|((partition, database), digest)| (Place { partition, database: database.to_owned() }, digest));
        Ok(Digests { lanes, places: places.collect(), bad: gathered.bad, rows: gathered.rows })
    }

    /// Of the file in a folder, which another process may be writing.
    ///
    /// # Errors
    /// [`TableError`] if the file cannot be read to its end.
    pub fn of_file(folder: &Path, history_revisions: u64) -> Result<Digests, TableError> {
        Digests::of(&Tables::open_read_only(folder)?.read()?, history_revisions)
    }

    /// Where the two differ.
    pub fn differences(&self, other: &Digests) -> Vec<Place> {
        let map = |digests: &Digests| digests.places.iter().cloned().collect::<BTreeMap<Place, Digest>>();
        let (ours, theirs) = (map(self), map(other));
        let all: std::collections::BTreeSet<&Place> = ours.keys().chain(theirs.keys()).collect();
        all.into_iter().filter(|place| ours.get(place) != theirs.get(place)).cloned().collect()
    }
}

/// Which rows of history are kept for certain: the document whose rows come now, and from which
/// revision on.
#[derive(Default)]
struct Kept {
    document: Vec<u8>,
    from: u64,
}

impl Kept {
    fn counts(&mut self, key: &[u8], history_revisions: u64, read: &ReadTables) -> bool {
        let Some((document, revision)) = key.split_last_chunk::<8>() else { return true };
        let document = document.strip_suffix(&[0]).unwrap_or(document);
        if document != self.document {
            self.document = document.to_owned();
            let newest = std::str::from_utf8(document).ok().map(|id| read.document(id)).transpose();
            // A row that cannot be read is told of where documents are looked at.
            let newest = newest.ok().flatten().flatten().map_or(0, |row| row.document.revision);
            self.from = newest.saturating_sub(history_revisions) + 1;
        }
        u64::from_be_bytes(*revision) >= self.from
    }
}

#[derive(Default)]
struct Gathered {
    places: BTreeMap<(u8, &'static str), Digest>,
    bad: Vec<BadRow>,
    rows: u64,
    bytes: Vec<u8>,
}

impl Gathered {
    fn add(&mut self, partition: Partition, database: &'static str) {
        let digest = self.places.entry((partition.0, database)).or_default();
        digest.rows += 1;
        digest.hash = digest.hash.wrapping_add(message_hash(&self.bytes));
    }

    fn cursor(&mut self, p: Partition, cursors: &Cursors) {
        self.bytes.clear();
        cursors.get(p).write(&mut self.bytes);
        self.add(p, "cursors");
    }

    /// Rows are decoded and written again, so that a file that an older storer wrote compares by what
    /// it says.
    fn row(&mut self, database: &'static str, key: &[u8], value: &[u8]) -> Result<(), DecodeError> {
        self.rows += 1;
        self.bytes.clear();
        self.bytes.extend_from_slice(&(key.len() as u32).to_be_bytes());
        self.bytes.extend_from_slice(key);
        let partition = match database {
            "documents" => {
                // Files of earlier versions do not tell how much there is behind the last whole state.
                let row = DocumentRow { since_whole_bytes: 0, ..DocumentRow::decode(value)? };
                if row.document.hash() != row.state_hash {
                    self.tell(database, key, "the body does not have its hash".to_owned());
                }
                row.encode(&mut self.bytes);
                Partition::of(std::str::from_utf8(key).map_err(|_| DecodeError::InvalidUtf8)?)
            }
            "history" => {
                // Nor does each of their rows tell the whole state where others do.
                HistoryRow { body: None, ..HistoryRow::decode(value)? }.encode(&mut self.bytes);
                Partition::of(&HistoryKey::decode(key)?.document)
            }
            "clients" => {
                encode_mark(&decode_mark(value)?, &mut self.bytes);
                parse_client_key(key)?.1
            }
            _ => {
                DeadLetterKey::decode(key)?;
                let row = DeadLetterRow::decode(value)?;
                row.encode(&mut self.bytes);
                row.partition
            }
        };
        self.add(partition, database);
        Ok(())
    }

    fn tell(&mut self, database: &str, key: &[u8], reason: String) {
        if self.bad.len() < BAD_MAX {
            let key = String::from_utf8_lossy(key).replace(char::is_control, ".");
            self.bad.push(BadRow { database: database.to_owned(), key, reason });
        }
    }
}
