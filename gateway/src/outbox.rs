//! What waits to be written to one client: bounded in bytes, coalescing per document.
//!
//! Two kinds of frames wait here. *Kept* frames (outcomes, verdicts, answers) are never dropped;
//! their number is bounded by the number window and by the requests a session may have open.
//! *State* frames (updates and snapshots of watched documents) may be dropped at any time: then
//! their document is *stale*, later frames of it are dropped too, and once the queue has drained
//! the connection asks the hub for the document as it is by then. So a slow client gets the latest
//! state instead of every step, and costs a bounded amount of memory.

use bytes::Bytes;
use std::collections::{BTreeSet, VecDeque};

/// A watched document in this gateway, for as long as somebody watches it.
pub(crate) type DocumentKey = u64;

/// Frames in the queue beyond which it gives its memory back when it runs empty.
const IDLE_CAPACITY_MAX: usize = 4;

#[derive(Debug)]
struct Entry {
    document: Option<DocumentKey>,
    frames: Bytes,
}

/// The queue of one session.
#[derive(Debug)]
pub(crate) struct Outbox {
    entries: VecDeque<Entry>,
    bytes: usize,
    bytes_max: usize,
    stale: BTreeSet<DocumentKey>,
}

impl Outbox {
    pub(crate) fn new(bytes_max: usize) -> Outbox {
        Outbox { entries: VecDeque::new(), bytes: 0, bytes_max, stale: BTreeSet::new() }
    }

    /// Queues frames that must arrive.
    pub(crate) fn keep(&mut self, frames: Bytes) {
        self.push(None, frames);
        if self.is_over() {
            self.coalesce();
        }
    }

    /// Queues a stale document's present state, whatever its size: every document can be delivered.
    /// Called only when [`Outbox::next_stale`] asks for it, so at most one such state comes on top
    /// of half the bound.
    pub(crate) fn fresh(&mut self, document: DocumentKey, frames: Bytes) {
        self.forget(document);
        self.push(Some(document), frames);
    }

    /// Queues an update or a snapshot of a document.
    pub(crate) fn state(&mut self, document: DocumentKey, frames: Bytes) {
        if self.stale.contains(&document) {
            return;
        }
        if self.bytes + frames.len() <= self.bytes_max {
            self.push(Some(document), frames);
            return;
        }
        self.coalesce();
        self.stale.insert(document);
    }

    fn push(&mut self, document: Option<DocumentKey>, frames: Bytes) {
        self.bytes += frames.len();
        self.entries.push_back(Entry { document, frames });
    }

    fn coalesce(&mut self) {
        let (stale, bytes) = (&mut self.stale, &mut self.bytes);
        self.entries.retain(|entry| match entry.document {
            None => true,
            Some(document) => {
                stale.insert(document);
                *bytes -= entry.frames.len();
                false
            }
        });
    }

    /// Drops what waits of a document: it is no longer watched, or a fresh state of it follows.
    pub(crate) fn forget(&mut self, document: DocumentKey) {
        self.stale.remove(&document);
        let bytes = &mut self.bytes;
        self.entries.retain(|entry| {
            let goes = entry.document == Some(document);
            if goes {
                *bytes -= entry.frames.len();
            }
            !goes
        });
    }

    /// Moves frames of up to about `bytes_max` bytes, at least one, into `writing`. Returns how
    /// many bytes they have.
    pub(crate) fn take(&mut self, bytes_max: usize, writing: &mut VecDeque<Bytes>) -> usize {
        let mut taken = 0;
        while taken < bytes_max
            && let Some(entry) = self.entries.pop_front()
        {
            taken += entry.frames.len();
            writing.push_back(entry.frames);
        }
        self.bytes -= taken;
        if self.entries.is_empty() && self.entries.capacity() > IDLE_CAPACITY_MAX {
            self.entries = VecDeque::new();
        }
        taken
    }

    /// A document to send afresh, when there is room again.
    pub(crate) fn next_stale(&self) -> Option<DocumentKey> {
        if self.bytes * 2 > self.bytes_max { None } else { self.stale.first().copied() }
    }

    /// Takes the mark off a document whose fresh state is queued next.
    pub(crate) fn refreshed(&mut self, document: DocumentKey) {
        self.stale.remove(&document);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.bytes > self.bytes_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(n: usize, fill: u8) -> Bytes {
        Bytes::from(vec![fill; n])
    }

    fn drain(outbox: &mut Outbox) -> Vec<u8> {
        let mut writing = VecDeque::new();
        while outbox.take(10, &mut writing) > 0 {}
        writing.iter().map(|b| b[0]).collect()
    }

    #[test]
    fn frames_leave_in_the_order_they_came() {
        let mut outbox = Outbox::new(100);
        outbox.keep(frames(5, 1));
        outbox.state(7, frames(5, 2));
        outbox.keep(frames(5, 3));
        assert_eq!(drain(&mut outbox), [1, 2, 3]);
        assert!(outbox.bytes == 0 && outbox.entries.capacity() <= IDLE_CAPACITY_MAX);
    }

    #[test]
    fn over_the_bound_states_go_and_outcomes_stay() {
        let mut outbox = Outbox::new(100);
        for i in 0..4 {
            outbox.state(i, frames(20, 9));
        }
        outbox.keep(frames(15, 1));
        outbox.state(9, frames(10, 9));
        assert_eq!(outbox.stale.len(), 5);
        assert_eq!(outbox.bytes, 15);
        outbox.state(2, frames(1, 9));
        assert_eq!(drain(&mut outbox), [1], "a stale document gets nothing until it is sent afresh");
        let key = outbox.next_stale().unwrap();
        outbox.keep(frames(1, 2));
        outbox.fresh(key, frames(500, 5));
        assert_eq!(outbox.next_stale(), None, "no room for another");
        assert_eq!(drain(&mut outbox), [2, 5], "a fresh state passes whatever its size, behind what waits");
        assert!(outbox.next_stale().is_some_and(|next| next != key));
    }

    #[test]
    fn kept_frames_push_states_out() {
        let mut outbox = Outbox::new(100);
        outbox.state(1, frames(90, 9));
        outbox.keep(frames(50, 1));
        assert!(!outbox.is_over());
        assert_eq!(outbox.next_stale(), Some(1));
        outbox.forget(1);
        assert_eq!(drain(&mut outbox), [1]);
        assert_eq!(outbox.next_stale(), None);
    }
}
