//! Watching a document.

use crate::client::Inner;
use crate::error::ClientError;
use crate::session::queue::Queued;
use fieldstream_shared::change::{Change, Version};
use fieldstream_shared::document::Document;
use fieldstream_shared::ids::{ClientId, DocumentId};
use std::sync::Arc;
use tokio::sync::Notify;

/// What a watcher is told.
#[derive(Debug, Clone, PartialEq)]
pub enum WatchEvent {
    /// The document as a whole. Always the first event.
    Snapshot {
        /// Whether this follows the state told before without a gap (watching full bodies). If
        /// not, it is the first state, or changes were passed over: after a disconnection too
        /// long to resume, or because they came faster than they were taken.
        recovered: bool,
        /// The document.
        document: Document,
    },
    /// The connection was lost and the watch goes on where it stood; what was missed follows.
    Resumed,
    /// A change.
    Updated {
        /// Revision, state hash and time after the change.
        version: Version,
        /// Who caused it.
        client: ClientId,
        /// That client's instruction.
        number: u64,
        /// What changed.
        change: Change,
    },
}

/// A live replica of a document and the events that lead to it. Several watches of one document
/// share one replica; the last one dropped ends the watch at the server.
///
/// A watch whose events are not taken costs bounded memory: what has no room becomes one
/// [`WatchEvent::Snapshot`] of the state at the time it is taken.
#[derive(Debug)]
pub struct Watch {
    client: Arc<Inner>,
    document: DocumentId,
    handle: u64,
    wake: Arc<Notify>,
}

impl Watch {
    pub(crate) fn new(client: Arc<Inner>, document: DocumentId, handle: u64, wake: Arc<Notify>) -> Watch {
        Watch { client, document, handle, wake }
    }

    /// The document's id.
    pub fn id(&self) -> &DocumentId {
        &self.document
    }

    /// The replica as it is now, which may be ahead of the events taken. Every state shown is one
    /// the server had. At revision 0 the document never was, or (after a replica that did not fit
    /// the server's hash was dropped) the right state is under way.
    pub fn document(&self) -> Document {
        let document = self.client.shared.with(|session| session.document(&self.document));
        Arc::unwrap_or_clone(document)
    }

    /// The next event.
    ///
    /// # Errors
    /// Why there will be none: the right to read was withdrawn, or the client ended.
    ///
    /// # Cancel safety
    /// No event is lost if it is dropped.
    pub async fn next(&mut self) -> Result<WatchEvent, ClientError> {
        loop {
            let event = self.client.shared.with(|session| session.next_event(&self.document, self.handle))?;
            match event {
                Some(event) => return Ok(WatchEvent::from(event)),
                None => self.wake.notified().await,
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.client.shared.with(|session| session.unwatch(&self.document, self.handle));
        self.client.shared.work.notify_one();
    }
}

impl From<Queued> for WatchEvent {
    fn from(event: Queued) -> WatchEvent {
        match event {
            Queued::Snapshot { recovered, document } => {
                WatchEvent::Snapshot { recovered, document: Arc::unwrap_or_clone(document) }
            }
            Queued::Resumed => WatchEvent::Resumed,
            Queued::Updated { version, client, number, change } => {
                WatchEvent::Updated { version, client, number, change: Arc::unwrap_or_clone(change) }
            }
        }
    }
}
