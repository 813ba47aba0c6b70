//! The events that wait for one [`Watch`](crate::Watch) handle, bounded.

use fieldstream_shared::change::{Change, Version};
use fieldstream_shared::document::Document;
use fieldstream_shared::frame::WatchMode;
use fieldstream_shared::ids::ClientId;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::Notify;

/// Events that may wait for a slow consumer.
const EVENTS_MAX: usize = 1024;

/// Bytes that may wait for a slow consumer; a single event may be larger.
const BYTES_MAX: usize = 1024 * 1024;

/// An event as it waits. Shared parts are cloned outside the lock, if at all.
#[derive(Debug, Clone)]
pub(crate) enum Queued {
    Snapshot { recovered: bool, document: Arc<Document> },
    Resumed,
    Updated { version: Version, client: ClientId, number: u64, change: Arc<Change> },
}

/// One handle's events.
#[derive(Debug)]
pub(crate) struct Queue {
    /// `None` stands for the replica as it is when the consumer gets there, and so for everything
    /// there was no room for.
    entries: VecDeque<(Option<Queued>, usize)>,
    bytes: usize,
    pub(crate) mode: WatchMode,
    /// Whether the first state was delivered.
    pub(crate) started: bool,
    pub(crate) wake: Arc<Notify>,
}

impl Queue {
    pub(crate) fn new(mode: WatchMode) -> Queue {
        Queue { entries: VecDeque::new(), bytes: 0, mode, started: false, wake: Arc::new(Notify::new()) }
    }

    /// Queues an event of about so many bytes, or lets it be part of a later snapshot.
    pub(crate) fn push(&mut self, event: Queued, bytes: usize) {
        if matches!(self.entries.back(), Some((None, _))) {
            return;
        }
        if self.entries.len() >= EVENTS_MAX || (self.bytes + bytes > BYTES_MAX && !self.entries.is_empty()) {
            self.entries = VecDeque::from([(None, 0)]);
            self.bytes = 0;
        } else {
            self.entries.push_back((Some(event), bytes));
            self.bytes += bytes;
        }
        self.wake.notify_one();
    }

    /// The next event.
    pub(crate) fn pop(&mut self, current: &Arc<Document>) -> Option<Queued> {
        let (event, bytes) = self.entries.pop_front()?;
        self.bytes -= bytes;
        if self.entries.is_empty() {
            // An idle watch holds no memory for a burst that is over.
            self.entries = VecDeque::new();
        }
        Some(event.unwrap_or_else(|| Queued::Snapshot { recovered: false, document: Arc::clone(current) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_consumer_gets_the_current_state_instead_of_what_had_no_room() {
        let mut queue = Queue::new(WatchMode::Changes);
        for _ in 0..EVENTS_MAX + 10 {
            queue.push(Queued::Resumed, 1);
        }
        let current = Arc::new(Document { revision: 7, ..Document::default() });
        let Some(Queued::Snapshot { recovered: false, document }) = queue.pop(&current) else { panic!("no snapshot") };
        assert_eq!(document.revision, 7);
        assert!(queue.pop(&current).is_none());
        for _ in 0..3 {
            queue.push(Queued::Resumed, BYTES_MAX / 2);
        }
        assert!(matches!(queue.pop(&current), Some(Queued::Snapshot { .. })), "bytes count, too");
        queue.push(Queued::Resumed, 2 * BYTES_MAX);
        assert!(matches!(queue.pop(&current), Some(Queued::Resumed)), "one event may be large");
    }
}
