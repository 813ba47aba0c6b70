//! The history rows of a commit, encoded when they come: what waits for the commit is bytes, one behind
//! the other, and not a tree of values.

use crate::rows::{HistoryRow, add_whole_state};
use fieldstream_shared::change::Primitive;
use fieldstream_shared::document::Body;
use fieldstream_shared::ids::DocumentId;
use std::ops::Range;

/// A row tells the whole state, too, when the rows behind the last one that does have so many bytes, or
/// as many as the state if that is larger: any revision is read from so much, and the states at most
/// double the history.
pub const WHOLE_STATE_EVERY_BYTES: u64 = 16 * 1024;

/// One row.
#[derive(Debug, Clone)]
pub struct NewRow {
    /// The document.
    pub document: DocumentId,
    /// The revision the change made.
    pub revision: u64,
    /// Its event time, microseconds since the Unix epoch.
    pub time_us: u64,
    /// The lane it came through.
    pub lane: u16,
    /// EVENTS sequence of the change.
    pub sequence: u64,
    value: Range<usize>,
}

/// The new history of a commit.
#[derive(Debug, Default)]
pub struct NewHistory {
    bytes: Vec<u8>,
    rows: Vec<NewRow>,
}

impl NewHistory {
    /// Takes in a change. `since_whole_bytes` are those of the document's rows behind the last that tells
    /// its whole state, and is kept up to date; `body` is the state after the change.
    pub(super) fn push(&mut self, document: DocumentId, row: &HistoryRow, body: &Body, since_whole_bytes: &mut u64) {
        let start = self.bytes.len();
        row.encode(&mut self.bytes);
        if row.change.iter().any(Primitive::sets_whole_state) {
            *since_whole_bytes = 0;
        } else {
            *since_whole_bytes += (self.bytes.len() - start) as u64;
            if *since_whole_bytes >= WHOLE_STATE_EVERY_BYTES.max(body.encoded_bytes() as u64) {
                add_whole_state(body, start, &mut self.bytes);
                *since_whole_bytes = 0;
            }
        }
        let value = start..self.bytes.len();
        let HistoryRow { version, lane, sequence, .. } = *row;
        self.rows.push(NewRow {
            document,
            revision: version.revision,
            time_us: version.time_us,
            lane,
            sequence,
            value,
        });
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.rows.clear();
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The rows with their values, by document and revision.
    pub fn by_document(&self) -> Vec<(&NewRow, &[u8])> {
        self.sorted(|a, b| (&a.document, a.revision).cmp(&(&b.document, b.revision)))
    }

    /// The rows by time, document and revision.
    pub fn by_time(&self) -> Vec<(&NewRow, &[u8])> {
        self.sorted(|a, b| (a.time_us, &a.document, a.revision).cmp(&(b.time_us, &b.document, b.revision)))
    }

    fn sorted(&self, order: impl Fn(&NewRow, &NewRow) -> std::cmp::Ordering) -> Vec<(&NewRow, &[u8])> {
        let value = |row: &NewRow| self.bytes.get(row.value.clone()).unwrap_or_default();
        let mut rows: Vec<_> = self.rows.iter().map(|row| (row, value(row))).collect();
        rows.sort_unstable_by(|(a, _), (b, _)| order(a, b));
        rows
    }
}
