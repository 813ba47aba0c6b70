//! Rows, page by page.

use super::error::ReportError;
use super::{PAGE, Reports};
use crate::rows::{
    ByTimeRow, DeadLetterKey, DeadLetterRow, DocumentRow, HistoryKey, HistoryRow, MarkRow, by_time_key, decode_mark,
    history_key, parse_by_time_key, parse_client_key,
};
use crate::tables::{Paged, Stretch};
use fieldstream_shared::dead_letter::DeadLetter;
use fieldstream_shared::ids::{ClientId, DocumentId};
use fieldstream_shared::msgpack::DecodeError;
use fieldstream_shared::partition::Partition;
use std::ops::{Bound, RangeInclusive};

/// Where the next page begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Next(Vec<u8>);

/// Rows of one state of the file.
#[derive(Debug, Clone)]
pub struct Page<T> {
    /// The rows, in order. There may be none although more follow.
    pub rows: Vec<T>,
    /// Where to go on; `None` at the end.
    pub next: Option<Next>,
}

/// A change in the order of time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Occurred {
    /// Its event time, microseconds since the Unix epoch.
    pub time_us: u64,
    /// The document.
    pub document: DocumentId,
    /// The revision the change made.
    pub revision: u64,
    /// The lane it came through.
    pub lane: u16,
    /// Its EVENTS sequence on the lane.
    pub sequence: u64,
}

/// The first page begins at `first`.
fn start(from: Option<&Next>, first: Vec<u8>) -> Bound<Vec<u8>> {
    from.map_or(Bound::Included(first), |Next(behind)| Bound::Excluded(behind.clone()))
}

impl Reports {
    /// Documents whose ids begin with a prefix, by id; deleted ones, too.
    ///
    /// # Errors
    /// [`ReportError`].
    pub fn documents(
        &mut self,
        prefix: &str,
        from: Option<&Next>,
    ) -> Result<Page<(DocumentId, DocumentRow)>, ReportError> {
        let mut rows = Vec::new();
        let stretch = Stretch { start: start(from, prefix.into()), end: Bound::Unbounded };
        let next = self.file.read()?.page(Paged::Documents, &stretch, PAGE, |key, value| {
            if !key.starts_with(prefix.as_bytes()) {
                return Ok(false);
            }
            let id = std::str::from_utf8(key).ok().and_then(|id| DocumentId::new(id).ok());
            let id = id.ok_or(DecodeError::OutOfRange("a document id"))?;
            rows.push((id, DocumentRow::decode(value)?));
            Ok(true)
        });
        Ok(Page { rows, next: next.map_err(|error| self.file.explain(error))?.map(Next) })
    }

    /// The changes of one document that make these revisions, those that there still are.
    ///
    /// # Errors
    /// [`ReportError`].
    pub fn history(
        &mut self,
        document: &str,
        revisions: RangeInclusive<u64>,
        from: Option<&Next>,
    ) -> Result<Page<HistoryRow>, ReportError> {
        let (mut first, mut last) = (Vec::new(), Vec::new());
        history_key(document, *revisions.start(), &mut first);
        history_key(document, *revisions.end(), &mut last);
        let stretch = Stretch { start: start(from, first), end: Bound::Included(last) };
        let mut rows = Vec::new();
        let next = self.file.read()?.page(Paged::History, &stretch, PAGE, |_, value| {
            rows.push(HistoryRow::decode(value)?);
            Ok(true)
        });
        Ok(Page { rows, next: next.map_err(|error| self.file.explain(error))?.map(Next) })
    }

    /// The newest changes of one document up to a revision, the newest first.
    ///
    /// # Errors
    /// [`ReportError`].
    pub fn history_back(
        &mut self,
        document: &str,
        revisions: RangeInclusive<u64>,
        from: Option<&Next>,
    ) -> Result<Page<HistoryRow>, ReportError> {
        let (mut first, mut last) = (Vec::new(), Vec::new());
        history_key(document, *revisions.start(), &mut first);
        history_key(document, *revisions.end(), &mut last);
        let stretch = Stretch { start: Bound::Included(first), end: start(from, last) };
        let mut rows = Vec::new();
        let next = self.file.read()?.page_back(Paged::History, &stretch, PAGE, |_, value| {
            rows.push(HistoryRow::decode(value)?);
            Ok(true)
        });
        Ok(Page { rows, next: next.map_err(|error| self.file.explain(error))?.map(Next) })
    }

    /// The changes of all documents whose ids begin with a prefix, by document and revision.
    ///
    /// # Errors
    /// [`ReportError`].
    pub fn histories(
        &mut self,
        prefix: &str,
        from: Option<&Next>,
    ) -> Result<Page<(DocumentId, HistoryRow)>, ReportError> {
        let stretch = Stretch { start: start(from, prefix.into()), end: Bound::Unbounded };
        let mut rows = Vec::new();
        let next = self.file.read()?.page(Paged::History, &stretch, PAGE, |key, value| {
            if !key.starts_with(prefix.as_bytes()) {
                return Ok(false);
            }
            rows.push((HistoryKey::decode(key)?.document, HistoryRow::decode(value)?));
            Ok(true)
        });
        Ok(Page { rows, next: next.map_err(|error| self.file.explain(error))?.map(Next) })
    }

    /// All changes from a time on and before another, in the order of their event times, microseconds
    /// since the Unix epoch.
    ///
    /// # Errors
    /// [`ReportError`], also if the file has no index by time.
    pub fn changes(
        &mut self,
        since_us: u64,
        before_us: u64,
        from: Option<&Next>,
    ) -> Result<Page<Occurred>, ReportError> {
        let read = self.file.read()?;
        if !read.has_by_time() {
            return Err(ReportError::NoByTime { path: self.file.folder().to_owned() });
        }
        let end = Bound::Excluded(before_us.to_be_bytes().to_vec());
        let stretch = Stretch { start: start(from, since_us.to_be_bytes().to_vec()), end };
        let mut rows = Vec::new();
        let next = read.page(Paged::ByTime, &stretch, PAGE, |key, value| {
            rows.push(occurred(key, value)?);
            Ok(true)
        });
        Ok(Page { rows, next: next.map_err(|error| self.file.explain(error))?.map(Next) })
    }

    /// Like [`Reports::changes`], with the row of history of each; `None` where it is gone by now.
    /// Documents whose ids do not begin with the prefix are left out.
    ///
    /// # Errors
    /// [`ReportError`], also if the file has no index by time.
    pub fn changes_in_full(
        &mut self,
        prefix: &str,
        since_us: u64,
        before_us: u64,
        from: Option<&Next>,
    ) -> Result<Page<(Occurred, Option<HistoryRow>)>, ReportError> {
        let Page { rows, mut next } = self.changes(since_us, before_us, from)?;
        let read = self.file.read()?;
        let (mut full, mut bytes) = (Vec::new(), 0);
        for occurred in rows.into_iter().filter(|occurred| occurred.document.starts_with(prefix)) {
            let explain = |error| self.file.explain(error);
            let value = read.change_value(&occurred.document, occurred.revision).map_err(explain)?;
            bytes += value.map_or(0, <[u8]>::len);
            let row = read.change(&occurred.document, occurred.revision).map_err(explain)?;
            let mut key = Vec::new();
            by_time_key(occurred.time_us, &occurred.document, occurred.revision, &mut key);
            full.push((occurred, row));
            if bytes >= PAGE.bytes_max {
                next = Some(Next(key));
                break;
            }
        }
        Ok(Page { rows: full, next })
    }
}

/// A client's mark in a partition.
pub type Marked = (ClientId, Partition, MarkRow);

impl Reports {
    /// What each partition remembers of each client, by client.
    ///
    /// # Errors
    /// [`ReportError`].
    pub fn marks(&mut self, from: Option<&Next>) -> Result<Page<Marked>, ReportError> {
        let mut rows = Vec::new();
        let stretch = Stretch { start: start(from, Vec::new()), end: Bound::Unbounded };
        let next = self.file.read()?.page(Paged::Clients, &stretch, PAGE, |key, value| {
            let (client, partition) = parse_client_key(key)?;
            rows.push((client, partition, decode_mark(value)?));
            Ok(true)
        });
        Ok(Page { rows, next: next.map_err(|error| self.file.explain(error))?.map(Next) })
    }

    /// The dead letters of all lanes, by lane and then in the order in which they came.
    ///
    /// # Errors
    /// [`ReportError`].
    pub fn dead_letters(&mut self, from: Option<&Next>) -> Result<Page<DeadLetter>, ReportError> {
        let mut rows = Vec::new();
        let stretch = Stretch { start: start(from, Vec::new()), end: Bound::Unbounded };
        let next = self.file.read()?.page(Paged::DeadLetters, &stretch, PAGE, |key, value| {
            rows.push(DeadLetterRow::decode(value)?.into_letter(DeadLetterKey::decode(key)?));
            Ok(true)
        });
        Ok(Page { rows, next: next.map_err(|error| self.file.explain(error))?.map(Next) })
    }
}

fn occurred(key: &[u8], value: &[u8]) -> Result<Occurred, DecodeError> {
    let (time_us, HistoryKey { document, revision }) = parse_by_time_key(key)?;
    let ByTimeRow { lane, sequence } = ByTimeRow::decode(value)?;
    Ok(Occurred { time_us, document, revision, lane, sequence })
}
