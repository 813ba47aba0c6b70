//! What a whole file tells at a glance: the facts of `fieldstream report html`.
//!
//! [`Reports::facts`](super::Reports::facts) goes through the databases page by page, each page in a read transaction of its
//! own, and remembers only counts and the first few of each order: however large the file is, memory
//! stays bounded and the storer can use old pages again. So the facts are not of one state: they are
//! at least as new as [`Facts::as_of`], and what was stored while they were gathered may be among
//! them.

mod activity;
mod gather;
mod tally;
#[cfg(test)]
mod tests;

pub use activity::{Activity, STEPS_MAX, Series, prefix_of};
pub use gather::Part;

use super::AsOf;
use fieldstream_shared::code::Code;

/// How much is looked at, and how much is told.
#[derive(Debug, Clone)]
pub struct FactsOptions {
    /// Changes that are counted, the newest first.
    pub changes_max: u64,
    /// Rows of `history` whose sizes are added up.
    pub history_rows_max: u64,
    /// Names of documents and of clients that are remembered while counting.
    pub names_max: usize,
    /// Entries of each list.
    pub listed_max: usize,
    /// Prefixes that activity tells apart.
    pub prefixes_max: usize,
}

impl Default for FactsOptions {
    fn default() -> FactsOptions {
        FactsOptions {
            changes_max: 1_000_000,
            history_rows_max: 20_000_000,
            names_max: 200_000,
            listed_max: 10,
            prefixes_max: 8,
        }
    }
}

/// The facts of a file. Times are microseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Facts {
    /// Where the lanes stood when gathering began.
    pub as_of: AsOf,
    /// When gathering began.
    pub read_at_us: u64,
    /// The file.
    pub file: FileFacts,
    /// Documents.
    pub documents: DocumentFacts,
    /// Changes, the newest of them.
    pub changes: ChangeFacts,
    /// Clients.
    pub clients: ClientFacts,
    /// Dead letters.
    pub dead_letters: DeadLetterFacts,
    /// Histories.
    pub histories: HistoryFacts,
}

/// The file as such.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FileFacts {
    /// The storer's number.
    pub storer: u64,
    /// When the file was made.
    pub created_at_us: u64,
    /// Its size.
    pub file_bytes: u64,
    /// Of that, pages that hold something.
    pub used_bytes: u64,
    /// Rows of `documents`, deleted ones among them.
    pub documents: u64,
    /// Rows of `history`.
    pub history_rows: u64,
    /// Rows of `by_time`; `None` if the file does not have it.
    pub by_time_rows: Option<u64>,
    /// Rows of `clients`: one per client and partition.
    pub client_rows: u64,
    /// Rows of `dead_letters`.
    pub dead_letters: u64,
    /// The oldest change that `by_time` knows.
    pub oldest_change_us: Option<u64>,
}

/// Current states.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DocumentFacts {
    /// Texts.
    pub texts: u64,
    /// Structured documents.
    pub structured: u64,
    /// Deleted ones.
    pub absent: u64,
    /// Bytes of all bodies.
    pub body_bytes: u64,
    /// How many are how large, in order of size; without deleted ones.
    pub sizes: Vec<SizeClass>,
    /// Those that changed longest ago, the longest first; without deleted ones.
    pub silent: Vec<Silent>,
    /// The largest bodies, the largest first.
    pub largest: Vec<Largest>,
}

/// Documents whose bodies have at most so many bytes, and more than those of the class before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SizeClass {
    /// At most so many bytes.
    pub upto_bytes: u64,
    /// Texts.
    pub texts: u64,
    /// Structured documents.
    pub structured: u64,
}

/// A document that has not changed for long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Silent {
    /// Its id.
    pub document: String,
    /// When it changed last.
    pub last_change_us: u64,
    /// Its revision.
    pub revision: u64,
}

/// A document with a large body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Largest {
    /// Its id.
    pub document: String,
    /// Bytes of the body.
    pub body_bytes: u64,
    /// Its revision.
    pub revision: u64,
}

/// The changes that were counted: the newest ones.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ChangeFacts {
    /// How many.
    pub counted: u64,
    /// Whether there are older ones that were not counted.
    pub is_cut: bool,
    /// Time of the oldest and of the newest counted.
    pub bounds_us: Option<(u64, u64)>,
    /// When they came, by prefix.
    pub activity: Activity,
    /// Documents with the most of them.
    pub busiest: Vec<Busy>,
    /// By how much a count of `busiest` can be too low.
    pub busiest_missed_max: u64,
    /// Clients with the most of them.
    pub clients: Vec<Busy>,
    /// By how much a count of `clients` can be too low.
    pub clients_missed_max: u64,
    /// Changes whose history is gone, so that nobody knows any more who made them.
    pub by_nobody_known: u64,
}

/// Who or what changed much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Busy {
    /// The document's or client's id.
    pub id: String,
    /// Changes.
    pub changes: u64,
    /// The last of them; of a client, when it was last heard of, if that was later.
    pub last_us: u64,
}

/// What the partitions remember of clients.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientFacts {
    /// Clients.
    pub clients: u64,
    /// Of them, heard of in the last day before gathering began.
    pub of_last_day: u64,
    /// Refused instructions the clients may still ask about, by code.
    pub refused: Vec<(Code, u64)>,
}

/// Dead letters.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeadLetterFacts {
    /// How many there are, by code.
    pub by_code: Vec<(Code, u64)>,
    /// The last ones, the last first.
    pub last: Vec<LastDeadLetter>,
}

/// A dead letter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LastDeadLetter {
    /// When the gateway received it; 0 if the record could not tell.
    pub received_at_us: u64,
    /// Which one: lane, EVENTS sequence, index.
    pub id: (u16, u64, u32),
    /// Why, as a number.
    pub code: Code,
    /// Why, in words.
    pub reason: String,
    /// Client and document, if the record told them.
    pub origin: Option<(String, String)>,
}

/// What the histories of documents take.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HistoryFacts {
    /// Rows that were added up.
    pub counted: u64,
    /// Whether there are more, of documents behind in the order of ids.
    pub is_cut: bool,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// The largest ones, the largest first.
    pub largest: Vec<LongHistory>,
}

/// A document's history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LongHistory {
    /// The document.
    pub document: String,
    /// Rows.
    pub rows: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
}
