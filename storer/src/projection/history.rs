//! The changes of a commit: documents as they are after it, and their new rows of history, encoded when
//! they come. What waits for the commit is bytes, one behind the other, and not a tree of values.

use crate::rows::{DocumentRow, HistoryRow, add_whole_state};
use fieldstream_shared::change::Primitive;
use fieldstream_shared::ids::DocumentId;
use std::collections::BTreeMap;
use std::ops::{Deref, Range};

/// A row tells the whole state, too, when the rows behind the last one that does have so many bytes, or
/// as many as the state if that is larger: any revision is read from so much, and the states at most
/// double the history.
pub const WHOLE_STATE_EVERY_BYTES: u64 = 16 * 1024;

/// A document that changed, and where its new rows of history are.
#[derive(Debug, Clone)]
pub struct ChangedDocument {
    /// As it is now.
    pub row: DocumentRow,
    /// Indexes of the first and the last of its new rows.
    rows: Option<(usize, usize)>,
}

impl ChangedDocument {
    pub(super) fn new(row: DocumentRow) -> ChangedDocument {
        ChangedDocument { row, rows: None }
    }
}

impl Deref for ChangedDocument {
    type Target = DocumentRow;
    fn deref(&self) -> &DocumentRow {
        &self.row
    }
}

/// A new row of history.
#[derive(Debug, Clone)]
pub struct NewRow {
    /// The revision the change made.
    pub revision: u64,
    /// Its event time, microseconds since the Unix epoch.
    pub time_us: u64,
    /// The lane it came through.
    pub lane: u16,
    /// EVENTS sequence of the change.
    pub sequence: u64,
    value: Range<usize>,
    /// The next one of the same document.
    next: Option<usize>,
}

/// A new row with its document and its value.
#[derive(Debug, Clone, Copy)]
pub struct Placed<'a> {
    /// The document.
    pub document: &'a DocumentId,
    /// The row.
    pub row: &'a NewRow,
    /// Its value.
    pub value: &'a [u8],
}

/// The new history of a commit.
#[derive(Debug, Default)]
pub(super) struct NewHistory {
    bytes: Vec<u8>,
    rows: Vec<NewRow>,
}

impl NewHistory {
    /// Takes in a change, which the document has behind it.
    pub(super) fn push(&mut self, document: &mut ChangedDocument, row: &HistoryRow) {
        let start = self.bytes.len();
        row.encode(&mut self.bytes);
        let DocumentRow { document: now, since_whole_bytes, .. } = &mut document.row;
        if row.change.iter().any(Primitive::sets_whole_state) {
            *since_whole_bytes = 0;
        } else {
            *since_whole_bytes += (self.bytes.len() - start) as u64;
            if *since_whole_bytes >= WHOLE_STATE_EVERY_BYTES.max(now.body.encoded_bytes() as u64) {
                add_whole_state(&now.body, start, &mut self.bytes);
                *since_whole_bytes = 0;
            }
        }
        let index = self.rows.len();
        document.rows = match document.rows {
            None => Some((index, index)),
            Some((first, last)) => {
                if let Some(last) = self.rows.get_mut(last) {
                    last.next = Some(index);
                }
                Some((first, index))
            }
        };
        let HistoryRow { version, lane, sequence, .. } = *row;
        let (revision, time_us) = (version.revision, version.time_us);
        let value = start..self.bytes.len();
        self.rows.push(NewRow { revision, time_us, lane, sequence, value, next: None });
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.rows.clear();
    }

    /// All rows, by document and revision.
    pub(super) fn by_document<'a>(&'a self, documents: &'a BTreeMap<DocumentId, ChangedDocument>) -> Vec<Placed<'a>> {
        let mut placed = Vec::with_capacity(self.rows.len());
        for (document, changed) in documents {
            let mut next = changed.rows.map(|(first, _)| first);
            while let Some(row) = next.and_then(|index| self.rows.get(index)) {
                let value = self.bytes.get(row.value.clone()).unwrap_or_default();
                placed.push(Placed { document, row, value });
                next = row.next;
            }
        }
        placed
    }
}
