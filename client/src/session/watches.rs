//! Watched documents: one replica per document, however many handles watch it.
//!
//! A replica is changed only by changes that fit it and lead to the announced state hash, or by a
//! whole snapshot. Anything else drops it and asks for a snapshot.

use super::assembly::{Assembled, Assembly};
use super::queue::{Queue, Queued};
use crate::error::ClientError;
use fieldstream_shared::change::read_change;
use fieldstream_shared::code::Code;
use fieldstream_shared::document::Document;
use fieldstream_shared::frame::{FromClient, Snapshot, Update, Watch, WatchMode};
use fieldstream_shared::ids::{ClientId, DocumentId};
use fieldstream_shared::msgpack::decode;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{Notify, oneshot};

/// Resolves when a watch has its first state, or was refused.
pub(crate) type Opened = oneshot::Receiver<Result<(), ClientError>>;

/// Where a replica stands.
///
/// | phase | verdict "recovered" | updates | a snapshot |
/// | --- | --- | --- | --- |
/// | `Asked` | makes it `Live` if something is held | are of an earlier watch: ignored | makes it `Live` |
/// | `Live` | changes nothing | are applied; a misfit leads to `Asked` | is taken if it is not older |
/// | `Refused` | ignored | ignored | ignored |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Asked,
    Live,
    Refused(Code),
}

#[derive(Debug)]
struct Replica {
    mode: WatchMode,
    phase: Phase,
    document: Arc<Document>,
    state_hash: u64,
    /// `document` is a state the server vouched for.
    verified: bool,
    /// The next verdict is about going on after a reconnect.
    resuming: bool,
    misfits: u32,
    assembly: Assembly,
    handles: BTreeMap<u64, Queue>,
    opening: Vec<oneshot::Sender<Result<(), ClientError>>>,
}

/// What has to happen after a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    Nothing,
    /// Ask for a snapshot at once.
    AskAgain,
    /// Ask for a snapshot a little later: it went wrong before.
    AskLater,
}

/// A new handle's number, its wake-up call, and its first state if that has yet to come.
#[derive(Debug)]
pub(crate) struct Opening {
    pub(crate) handle: u64,
    pub(crate) wake: Arc<Notify>,
    pub(crate) opened: Option<Opened>,
}

/// All watches of a client.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    replicas: BTreeMap<DocumentId, Replica>,
    handles: u64,
}

impl Watches {
    pub(crate) fn len(&self) -> usize {
        self.replicas.len()
    }

    /// Whether somebody waits for a first state, or for a verdict on the one held.
    pub(crate) fn is_waiting(&self) -> bool {
        self.replicas.values().any(|replica| replica.phase == Phase::Asked && !replica.handles.is_empty())
    }

    /// Adds a handle. `out` takes a WATCH frame if one is needed; `None` while there is no connection.
    pub(crate) fn open(&mut self, document: &DocumentId, mode: WatchMode, out: Option<&mut Vec<u8>>) -> Opening {
        self.handles += 1;
        let handle = self.handles;
        let replica = self.replicas.entry(document.clone()).or_insert_with(|| Replica::new(mode));
        let mut queue = Queue::new(mode);
        let wake = Arc::clone(&queue.wake);
        let asks = replica.handles.is_empty()
            || matches!(replica.phase, Phase::Refused(_))
            || (mode == WatchMode::Changes && replica.mode == WatchMode::Bodies);
        let mut opened = None;
        if replica.phase == Phase::Live {
            queue.started = true;
            queue.push(
                Queued::Snapshot { recovered: false, document: Arc::clone(&replica.document) },
                replica.document.body.encoded_bytes(),
            );
        } else {
            let (sender, receiver) = oneshot::channel();
            replica.opening.push(sender);
            opened = Some(receiver);
        }
        replica.handles.insert(handle, queue);
        if asks {
            replica.mode = replica.handles.values().map(|q| q.mode).min_by_key(|m| *m as u8).unwrap_or(mode);
            replica.phase = Phase::Asked;
            if let Some(out) = out {
                FromClient::Watch(replica.wish(document)).encode(out);
            }
        }
        Opening { handle, wake, opened }
    }

    /// Removes a handle; the last one ends the watch.
    pub(crate) fn close(&mut self, document: &DocumentId, handle: u64, out: Option<&mut Vec<u8>>) {
        let Some(replica) = self.replicas.get_mut(document) else { return };
        replica.handles.remove(&handle);
        if !replica.handles.is_empty() {
            return;
        }
        let refused = matches!(replica.phase, Phase::Refused(_));
        self.replicas.remove(document);
        if let Some(out) = out.filter(|_| !refused) {
            FromClient::Unwatch { document }.encode(out);
        }
    }

    /// The replica as it is.
    pub(crate) fn document(&self, document: &DocumentId) -> Arc<Document> {
        self.replicas.get(document).map_or_else(Arc::default, |replica| Arc::clone(&replica.document))
    }

    /// The next event of a handle, or why there will be none.
    pub(crate) fn next_event(&mut self, document: &DocumentId, handle: u64) -> Result<Option<Queued>, ClientError> {
        let replica = self.replicas.get_mut(document).ok_or(ClientError::Ended)?;
        let queue = replica.handles.get_mut(&handle).ok_or(ClientError::Ended)?;
        match (queue.pop(&replica.document), replica.phase) {
            (None, Phase::Refused(code)) => Err(ClientError::Refused(code)),
            (event, _) => Ok(event),
        }
    }

    /// A connection begins: what to ask for, in order of the ids.
    pub(crate) fn wishes(&mut self) -> Vec<Watch<'_>> {
        self.replicas.retain(|_, replica| !replica.handles.is_empty());
        let mut wishes = Vec::new();
        for (document, replica) in &mut self.replicas {
            if matches!(replica.phase, Phase::Refused(_)) {
                continue;
            }
            replica.phase = Phase::Asked;
            replica.resuming = true;
            replica.assembly = Assembly::default();
            wishes.push(replica.wish(document));
        }
        wishes
    }

    /// Asks for a document again, from nothing.
    pub(crate) fn ask_again(&mut self, document: &DocumentId, out: &mut Vec<u8>) {
        if let Some(replica) = self.replicas.get_mut(document)
            && replica.phase == Phase::Asked
        {
            FromClient::Watch(replica.wish(document)).encode(out);
        }
    }

    /// WATCHING: the verdict.
    pub(crate) fn verdict(&mut self, document: &str, recovered: bool) {
        let Some(replica) = self.replicas.get_mut(document) else { return };
        if matches!(replica.phase, Phase::Refused(_)) {
            return;
        }
        if recovered && !replica.verified {
            // Of an earlier watch of the document, for a replica that is no longer held: who holds
            // nothing gets a snapshot.
            return;
        }
        let resuming = std::mem::take(&mut replica.resuming);
        if !recovered {
            replica.phase = Phase::Asked;
            return;
        }
        replica.phase = Phase::Live;
        replica.tell(resuming.then_some(Queued::Resumed), 0);
    }

    /// SNAPSHOT: a state, or a piece of one.
    pub(crate) fn snapshot(&mut self, piece: &Snapshot<'_>) -> Next {
        let Some(replica) = self.replicas.get_mut(piece.document) else { return Next::Nothing };
        if matches!(replica.phase, Phase::Refused(_)) {
            return Next::Nothing;
        }
        let (document, version) = match replica.assembly.take(piece) {
            Assembled::Partial => return Next::Nothing,
            Assembled::Whole(document, version) => (document, version),
            Assembled::Misfit => return replica.misfit(),
        };
        let live = replica.phase == Phase::Live;
        let held = (replica.document.revision, replica.state_hash);
        if live && (version.revision < held.0 || (version.revision, version.state_hash) == held) {
            return Next::Nothing;
        }
        let recovered = live && version.revision == held.0 + 1;
        replica.hold(document, version.state_hash);
        replica.phase = Phase::Live;
        replica.resuming = false;
        let event = Queued::Snapshot { recovered, document: Arc::clone(&replica.document) };
        replica.tell(Some(event), replica.document.body.encoded_bytes());
        Next::Nothing
    }

    /// UPDATE: a change.
    pub(crate) fn update(&mut self, update: &Update<'_>) -> Next {
        let Some(replica) = self.replicas.get_mut(update.document) else { return Next::Nothing };
        if replica.phase != Phase::Live || update.version.revision <= replica.document.revision {
            return Next::Nothing;
        }
        let (Ok(change), Ok(client)) = (decode(update.change, read_change), ClientId::new(update.client)) else {
            return replica.misfit();
        };
        if Arc::make_mut(&mut replica.document).apply(&change, update.version).is_err() {
            return replica.misfit();
        }
        replica.state_hash = update.version.state_hash;
        let change = Arc::new(change);
        for queue in replica.handles.values_mut().filter(|queue| queue.started) {
            match queue.mode {
                WatchMode::Changes => queue.push(
                    Queued::Updated {
                        version: update.version,
                        client: client.clone(),
                        number: update.number,
                        change: Arc::clone(&change),
                    },
                    update.change.len() + 64,
                ),
                WatchMode::Bodies => queue.push(
                    Queued::Snapshot { recovered: true, document: Arc::clone(&replica.document) },
                    replica.document.body.encoded_bytes(),
                ),
            }
        }
        Next::Nothing
    }

    /// REFUSED for a watch.
    pub(crate) fn refused(&mut self, document: &str, code: Code) -> Next {
        let Some(replica) = self.replicas.get_mut(document) else { return Next::Nothing };
        if code == Code::UNAVAILABLE {
            replica.phase = Phase::Asked;
            return Next::AskLater;
        }
        replica.phase = Phase::Refused(code);
        replica.fail(&ClientError::Refused(code));
        Next::Nothing
    }

    /// There will be nothing more.
    pub(crate) fn fail(&mut self, error: &ClientError) {
        self.replicas.values_mut().for_each(|replica| replica.fail(error));
    }
}

impl Replica {
    fn new(mode: WatchMode) -> Replica {
        Replica {
            mode,
            phase: Phase::Asked,
            document: Arc::default(),
            state_hash: 0,
            verified: false,
            resuming: false,
            misfits: 0,
            assembly: Assembly::default(),
            handles: BTreeMap::new(),
            opening: Vec::new(),
        }
    }

    fn wish<'a>(&self, document: &'a DocumentId) -> Watch<'a> {
        let (revision, state_hash) = match self.document.revision {
            revision if self.verified && revision > 0 => (revision, self.state_hash),
            _ => (0, 0),
        };
        Watch { document, revision, state_hash, mode: self.mode }
    }

    fn hold(&mut self, document: Document, state_hash: u64) {
        self.document = Arc::new(document);
        self.state_hash = state_hash;
        self.verified = true;
    }

    /// The replica is not what the server has: it is dropped rather than shown.
    fn misfit(&mut self) -> Next {
        tracing::warn!(revision = self.document.revision, "a replica does not fit and is asked for again");
        self.document = Arc::default();
        self.verified = false;
        self.phase = Phase::Asked;
        self.assembly = Assembly::default();
        self.misfits += 1;
        if self.misfits == 1 { Next::AskAgain } else { Next::AskLater }
    }

    /// Tells everybody of a state; who has none yet gets the replica.
    fn tell(&mut self, event: Option<Queued>, bytes: usize) {
        for queue in self.handles.values_mut() {
            if !queue.started {
                queue.started = true;
                let document = Arc::clone(&self.document);
                queue.push(Queued::Snapshot { recovered: false, document }, self.document.body.encoded_bytes());
            } else if let Some(event) = &event {
                queue.push(event.clone(), bytes);
            }
        }
        for opening in self.opening.drain(..) {
            let _ = opening.send(Ok(()));
        }
    }

    fn fail(&mut self, error: &ClientError) {
        for opening in self.opening.drain(..) {
            let _ = opening.send(Err(error.clone()));
        }
        self.handles.values().for_each(|queue| queue.wake.notify_one());
    }
}

#[cfg(test)]
#[path = "watches_tests.rs"]
mod tests;
