//! What waits to be written to one client: bounded in bytes, coalescing per document.
//!
//! Two kinds of frames wait here. *Kept* frames (outcomes, verdicts, answers) are never dropped;
//! their number is bounded by the number window and by the requests a session may have open.
//! *State* frames (updates and snapshots of watched documents) may be dropped at any time: then
//! their document is *stale*, later frames of it are dropped too, and once the queue has drained
//! the connection asks the hub for the document as it is by then. So a slow client gets the latest
//! state instead of every step, and costs a bounded amount of memory.

use bytes::Bytes;
use fieldstream_shared::defect::{self, Defect};
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
    /// The stale document that was sent last: the next one follows it, so that none starves.
    refreshed: DocumentKey,
    is_closing: bool,
}

impl Outbox {
    pub(crate) fn new(bytes_max: usize) -> Outbox {
        Outbox {
            entries: VecDeque::new(),
            bytes: 0,
            bytes_max,
            stale: BTreeSet::new(),
            refreshed: 0,
            is_closing: false,
        }
    }

    /// Queues frames that must arrive.
    pub(crate) fn keep(&mut self, frames: Bytes) {
        self.push(None, frames);
        if self.is_over() {
            self.coalesce();
        }
    }

    /// Queues frames that nobody depends on, if there is plenty of room; else they are dropped.
    pub(crate) fn spare(&mut self, frames: Bytes) {
        if !self.is_closing && (self.bytes + frames.len()) * 2 <= self.bytes_max {
            self.push(None, frames);
        }
    }

    /// Queues a stale document's present state, whatever its size: every document can be delivered.
    /// If there is no room now, it stays stale until [`Outbox::next_stale`] asks for it, so at most
    /// one such state comes on top of half the bound.
    pub(crate) fn fresh(&mut self, document: DocumentKey, frames: Bytes) {
        self.forget(document);
        if self.is_closing {
            return;
        }
        if self.bytes * 2 > self.bytes_max {
            self.stale.insert(document);
        } else {
            self.push(Some(document), frames);
        }
    }

    /// The session ends: what it still gets are outcomes and answers, and states no more.
    pub(crate) fn close(&mut self) {
        self.coalesce();
        self.stale.clear();
        self.is_closing = true;
    }

    /// Queues an update or a snapshot of a document.
    pub(crate) fn state(&mut self, document: DocumentKey, frames: Bytes) {
        if self.is_closing || self.stale.contains(&document) {
            return;
        }
        if self.bytes + frames.len() <= self.bytes_max {
            self.push(Some(document), frames);
            return;
        }
        self.coalesce();
        if !defect::active(Defect::CoalescedAway) {
            self.stale.insert(document);
        }
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
                if !defect::active(Defect::CoalescedAway) {
                    stale.insert(document);
                }
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
    pub(crate) fn next_stale(&mut self) -> Option<DocumentKey> {
        if self.bytes * 2 > self.bytes_max {
            return None;
        }
        let behind = self.stale.range(self.refreshed.saturating_add(1)..).next();
        let next = behind.or_else(|| self.stale.first()).copied()?;
        self.refreshed = next;
        Some(next)
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
    fn no_stale_document_starves_behind_another() {
        let mut outbox = Outbox::new(100);
        let mut served = [0; 3];
        for key in 0..3 {
            outbox.state(key, frames(101, 9));
        }
        for _ in 0..30 {
            let key = outbox.next_stale().unwrap();
            served[key as usize] += 1;
            outbox.fresh(key, frames(300, 5));
            drain(&mut outbox);
            // It changes on while it is written.
            outbox.state(key, frames(101, 9));
        }
        assert_eq!(served, [10; 3]);
    }

    #[test]
    fn a_closing_session_gets_its_outcomes_and_no_states() {
        let mut outbox = Outbox::new(100);
        outbox.state(1, frames(20, 9));
        outbox.keep(frames(15, 1));
        outbox.close();
        outbox.state(2, frames(20, 9));
        outbox.fresh(1, frames(20, 9));
        outbox.keep(frames(15, 2));
        assert_eq!(drain(&mut outbox), [1, 2]);
        assert_eq!(outbox.next_stale(), None);
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
