//! A document as it was: from the nearest row that tells the whole state, change by change.

use super::error::ReportError;
use super::{PAGE, Reports};
use crate::projection::State as _;
use crate::rows::{HistoryKey, HistoryRow, history_key, tells_whole_state};
use crate::tables::{Paged, ReadTables, Stretch, TableError};
use fieldstream_shared::change::{Misfit, Primitive};
use fieldstream_shared::document::Body;
use std::ops::{Bound, ControlFlow, RangeInclusive};

/// A document at a revision.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// The change that made the revision.
    pub row: HistoryRow,
    /// The document behind it.
    pub body: Body,
}

fn stretch(document: &str, revisions: RangeInclusive<u64>) -> Stretch {
    let key = |revision| {
        let mut key = Vec::new();
        history_key(document, revision, &mut key);
        Bound::Included(key)
    };
    Stretch { start: key(*revisions.start()), end: key(*revisions.end()) }
}

/// The first and the last revision in a document's history.
fn span(read: &ReadTables, document: &str) -> Result<Option<(u64, u64)>, TableError> {
    let all = stretch(document, 0..=u64::MAX);
    let (mut first, mut last) = (None, None);
    read.page(Paged::History, &all, PAGE, |key, _| {
        first = Some(HistoryKey::decode(key)?.revision);
        Ok(false)
    })?;
    read.page_back(Paged::History, &all, PAGE, |key, _| {
        last = Some(HistoryKey::decode(key)?.revision);
        Ok(false)
    })?;
    Ok(first.zip(last))
}

/// Applies a row to the body before it. What stands in front of a primitive that sets the whole state
/// counts for nothing, and need not fit.
fn apply(row: &HistoryRow, body: &mut Body) -> Result<(), Misfit> {
    if let Some(whole) = &row.body {
        *body = whole.clone();
        return Ok(());
    }
    let begin = row.change.iter().rposition(Primitive::sets_whole_state).unwrap_or(0);
    row.change.iter().skip(begin).try_for_each(|primitive| primitive.apply(body))
}

impl Reports {
    /// The first and the last revision in a document's history.
    ///
    /// # Errors
    /// [`ReportError::NoDocument`] if there is none, or another.
    pub fn revisions(&mut self, document: &str) -> Result<(u64, u64), ReportError> {
        let span = span(&self.file.read()?, document).map_err(|error| self.file.explain(error))?;
        span.ok_or_else(|| ReportError::NoDocument { document: document.to_owned() })
    }

    /// The revision that a document had at a time in microseconds since the Unix epoch: that of its
    /// newest change not after it.
    ///
    /// # Errors
    /// [`ReportError::NotYet`] before its first change, [`ReportError::Trimmed`] before the first that
    /// there still is, or another.
    pub fn revision_at(&mut self, document: &str, time_us: u64) -> Result<u64, ReportError> {
        let read = self.file.read()?;
        let fail = |error| self.file.explain(error);
        let missing = || ReportError::NoDocument { document: document.to_owned() };
        let (first, last) = span(&read, document).map_err(fail)?.ok_or_else(missing)?;
        // Revisions are contiguous, and time never goes back within a document. `until` is the first
        // revision known to be later.
        let (mut from, mut until) = (first, last.saturating_add(1));
        while from < until {
            let middle = from + (until - from) / 2;
            let gap = || self.damaged(document, middle, Misfit::Revision { document: middle - 1, change: middle + 1 });
            let row = read.change(document, middle).map_err(fail)?.ok_or_else(gap)?;
            if row.version.time_us <= time_us {
                from = middle + 1;
            } else {
                until = middle;
            }
        }
        match from {
            _ if from > first => Ok(from - 1),
            1 => Err(ReportError::NotYet { document: document.to_owned() }),
            _ => Err(ReportError::Trimmed { document: document.to_owned(), first }),
        }
    }

    fn damaged(&self, document: &str, revision: u64, misfit: Misfit) -> ReportError {
        ReportError::Damaged { document: document.to_owned(), revision, misfit }
    }

    /// The newest revision, not behind one, whose row tells the whole state, or revision 1.
    fn base(&mut self, document: &str, revision: u64) -> Result<Result<u64, u64>, ReportError> {
        let mut all = stretch(document, 0..=revision);
        let (mut base, mut first) = (None, revision);
        loop {
            let page = self.file.read()?.page_back(Paged::History, &all, PAGE, |key, value| {
                first = HistoryKey::decode(key)?.revision;
                if first <= 1 || tells_whole_state(value)?.0 {
                    base = Some(first);
                }
                Ok(base.is_none())
            });
            match page.map_err(|error| self.file.explain(error))? {
                Some(before) if base.is_none() => all.end = Bound::Excluded(before),
                _ => return Ok(base.ok_or(first)),
            }
        }
    }

    /// Hands a document's states at contiguous revisions to `each`, in order, until it breaks. The state
    /// hash of each is checked.
    ///
    /// # Errors
    /// [`ReportError`] if the document has no such revisions, if they can no longer be told, or if history
    /// is damaged.
    pub fn states(
        &mut self,
        document: &str,
        revisions: RangeInclusive<u64>,
        mut each: impl FnMut(&HistoryRow, &Body) -> ControlFlow<()>,
    ) -> Result<(), ReportError> {
        let (from, to) = revisions.into_inner();
        let (first, last) = self.revisions(document)?;
        let id = || document.to_owned();
        if from == 0 || to > last {
            let revision = if from == 0 { 0 } else { to };
            return Err(ReportError::NoRevision { document: id(), revision, last });
        }
        if from < first {
            return Err(ReportError::Trimmed { document: id(), first });
        }
        let base = self.base(document, from)?.map_err(|first| ReportError::NoWholeState { document: id(), first })?;
        let (mut body, mut expected, mut next) = (Body::Absent, base, None);
        loop {
            let page = self.history(document, base..=to, next.as_ref())?;
            for row in &page.rows {
                let revision = row.version.revision;
                if revision != expected {
                    // Rows go from the front only, and no further than to one that tells the whole state.
                    return Err(ReportError::Trimmed { document: id(), first: revision });
                }
                apply(row, &mut body).map_err(|misfit| self.damaged(document, revision, misfit))?;
                expected = expected.saturating_add(1);
                if revision < from {
                    continue;
                }
                if body.hash() != row.version.state_hash {
                    return Err(self.damaged(document, revision, Misfit::Hash));
                }
                if each(row, &body).is_break() {
                    return Ok(());
                }
            }
            next = page.next;
            if next.is_none() {
                break;
            }
        }
        // Trimmed altogether between two pages.
        if expected <= to { Err(ReportError::Trimmed { document: id(), first: to.saturating_add(1) }) } else { Ok(()) }
    }

    /// A document at a revision; revisions start at 1. Its state hash is checked.
    ///
    /// # Errors
    /// [`ReportError`] if it has no such revision, if that can no longer be told, or if history is damaged.
    pub fn state(&mut self, document: &str, revision: u64) -> Result<State, ReportError> {
        let mut state = None;
        let told = self.states(document, revision..=revision, |row, body| {
            state = Some(State { row: row.clone(), body: body.clone() });
            ControlFlow::Break(())
        });
        match (told, state) {
            (Ok(()), Some(state)) => Ok(state),
            // The newest state stands in `documents`, whatever history has.
            (Err(ReportError::NoWholeState { document, first }), _) => {
                self.newest(&document, revision)?.ok_or(ReportError::NoWholeState { document, first })
            }
            (Err(error), _) => Err(error),
            (Ok(()), None) => {
                Err(ReportError::Trimmed { document: document.to_owned(), first: revision.saturating_add(1) })
            }
        }
    }

    /// The state in `documents`, if it is that of the revision.
    fn newest(&mut self, document: &str, revision: u64) -> Result<Option<State>, ReportError> {
        let read = self.file.read()?;
        let fail = |error| self.file.explain(error);
        let now = read.document(document).map_err(fail)?.filter(|row| row.document.revision == revision);
        let Some((now, row)) = now.zip(read.change(document, revision).map_err(fail)?) else { return Ok(None) };
        if now.document.hash() != row.version.state_hash {
            return Err(self.damaged(document, revision, Misfit::Hash));
        }
        Ok(Some(State { row, body: now.document.body }))
    }
}
