//! What the last commits wrote, kept to be changed again: most of what a commit changes was changed a
//! moment ago, and reading and decoding it again would cost as much as the change.

use crate::rows::{DocumentRow, MarkRow};
use fieldstream_shared::ids::{ClientId, DocumentId};
use fieldstream_shared::partition::Partition;
use foldhash::fast::RandomState;
use std::collections::HashMap;

/// It is emptied when it holds more bytes than this, or more rows of either kind.
const BYTES_MAX: usize = 32 << 20;
const ROWS_MAX: usize = 32 * 1024;

/// Rows as they are in the file.
#[derive(Default)]
pub(super) struct Recent {
    documents: HashMap<DocumentId, DocumentRow, RandomState>,
    marks: HashMap<(ClientId, Partition), MarkRow, RandomState>,
    document_bytes: usize,
}

impl Recent {
    /// A document, if it is here; then it is here no longer.
    pub(super) fn take_document(&mut self, id: &DocumentId) -> Option<DocumentRow> {
        let row = self.documents.remove(id)?;
        self.document_bytes = self.document_bytes.saturating_sub(row.document.body.memory_bytes());
        Some(row)
    }

    /// A mark, if it is here; then it is here no longer.
    pub(super) fn take_mark(&mut self, key: &(ClientId, Partition)) -> Option<MarkRow> {
        self.marks.remove(key)
    }

    /// Takes in what was written.
    pub(super) fn written(
        &mut self,
        documents: impl Iterator<Item = (DocumentId, DocumentRow)>,
        marks: impl Iterator<Item = ((ClientId, Partition), MarkRow)>,
    ) {
        if self.document_bytes > BYTES_MAX || self.documents.len() > ROWS_MAX {
            self.documents.clear();
            self.document_bytes = 0;
        }
        if self.marks.len() > ROWS_MAX {
            self.marks.clear();
        }
        for (id, row) in documents {
            self.document_bytes += row.document.body.memory_bytes();
            self.documents.insert(id, row);
        }
        self.marks.extend(marks);
    }
}
