//! The session core without a driver, for a simulation: bytes, calls and the time come in, bytes
//! and results go out.

use crate::error::ClientError;
use crate::options::{LateRefusal, Receipt};
use crate::session::late::Late;
use crate::session::numbers::{Instruction, Numbers, Restored};
use crate::session::queue::Queued;
use crate::session::{End, Session, is_final};
use fieldstream_shared::document::Document;
use fieldstream_shared::frame::WatchMode;
use fieldstream_shared::ids::{ClientId, DocumentId};
use fieldstream_shared::instruction::Operation;
use fieldstream_shared::outcome::AckLevel;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{broadcast, oneshot};

/// Why a connection is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// Connect again.
    Again(String),
    /// Connecting again would only end the same way, or end another connection.
    Final(String),
    /// A higher epoch is to be taken first ([`Device::take_epoch`]).
    NewEpoch,
}

impl From<End> for Ended {
    fn from(end: End) -> Ended {
        match end {
            End::NewEpoch => Ended::NewEpoch,
            End::Closed { code, reason, .. } if is_final(code) => Ended::Final(reason),
            other => Ended::Again(format!("{other:?}")),
        }
    }
}

/// One state of a watched document that was shown.
#[derive(Debug, Clone, PartialEq)]
pub struct Shown {
    /// Its revision.
    pub revision: u64,
    /// Hash of the state, where the event tells it.
    pub state_hash: Option<u64>,
}

/// One device.
pub struct Device {
    session: Session,
    waiting: BTreeMap<u64, oneshot::Receiver<Result<Receipt, ClientError>>>,
    watches: BTreeMap<DocumentId, u64>,
    late: broadcast::Receiver<LateRefusal>,
    out: Vec<u8>,
}

impl Device {
    /// A device that starts without a state file; `instance` is drawn at every start.
    pub fn new(client: ClientId, epoch: u64, instance: u64, now: Instant) -> Device {
        let restored = Restored { epoch, next: 1, ..Restored::default() };
        let mut session = Session::new(client, None, instance, Numbers::new(restored, false), now);
        let (_, late) = Late::subscribe(&mut session.late);
        Device { session, waiting: BTreeMap::new(), watches: BTreeMap::new(), late, out: Vec::new() }
    }

    /// Submits an instruction under a name of the caller's; false if there is no room for it now.
    pub fn submit(
        &mut self,
        tag: u64,
        document: &DocumentId,
        if_revision: Option<u64>,
        operation: &Operation,
        ack: AckLevel,
    ) -> bool {
        let mut bytes = Vec::new();
        operation.write(&mut bytes);
        let instruction =
            Instruction { document: document.clone(), if_revision, operation: bytes.into(), ack, traced: false };
        let (waiter, result) = oneshot::channel();
        let taken = matches!(self.session.submit(&instruction, waiter), Ok(None));
        if taken {
            self.waiting.insert(tag, result);
        }
        taken
    }

    /// What was resolved since the last call.
    pub fn results(&mut self) -> Vec<(u64, Result<Receipt, ClientError>)> {
        let mut results = Vec::new();
        self.waiting.retain(|tag, result| match result.try_recv() {
            Ok(result) => {
                results.push((*tag, result));
                false
            }
            Err(_) => true,
        });
        results
    }

    /// Refusals of what had been resolved as logged.
    pub fn late_refusals(&mut self) -> Vec<LateRefusal> {
        let mut late = Vec::new();
        while let Ok(refusal) = self.late.try_recv() {
            late.push(refusal);
        }
        late
    }

    /// Instructions without an outcome.
    pub fn open(&self) -> usize {
        self.session.numbers.open()
    }

    /// The epoch.
    pub fn epoch(&self) -> u64 {
        self.session.numbers.epoch()
    }

    /// Begins to watch a document.
    pub fn watch(&mut self, document: &DocumentId) {
        if !self.watches.contains_key(document)
            && let Ok(opening) = self.session.watch(document, WatchMode::Changes)
        {
            self.watches.insert(document.clone(), opening.handle);
        }
    }

    /// Ends a watch.
    pub fn unwatch(&mut self, document: &DocumentId) {
        if let Some(handle) = self.watches.remove(document) {
            self.session.unwatch(document, handle);
        }
    }

    /// The documents watched.
    pub fn watched(&self) -> Vec<DocumentId> {
        self.watches.keys().cloned().collect()
    }

    /// A watched document as it is here.
    pub fn document(&self, document: &DocumentId) -> Arc<Document> {
        self.session.document(document)
    }

    /// The states of a watched document shown since the last call.
    pub fn shown(&mut self, document: &DocumentId) -> Vec<Shown> {
        let mut shown = Vec::new();
        let Some(handle) = self.watches.get(document) else { return shown };
        while let Ok(Some(event)) = self.session.next_event(document, *handle) {
            match event {
                Queued::Snapshot { document, .. } => {
                    shown.push(Shown { revision: document.revision, state_hash: Some(document.hash()) });
                }
                Queued::Updated { version, .. } => {
                    shown.push(Shown { revision: version.revision, state_hash: Some(version.state_hash) });
                }
                Queued::Resumed => {}
            }
        }
        shown
    }

    /// A connection was made.
    pub fn connected(&mut self, now: Instant, welcome_by: Instant) {
        self.session.connected(now, welcome_by);
    }

    /// The connection is gone.
    pub fn disconnected(&mut self) {
        self.session.disconnected();
    }

    /// Takes a higher epoch.
    pub fn take_epoch(&mut self, wall_us: u64) {
        self.session.take_epoch(wall_us);
    }

    /// Does what is due, and gives the bytes to send.
    ///
    /// # Errors
    /// [`Ended`].
    pub fn poll(&mut self, now: Instant) -> Result<Vec<u8>, Ended> {
        self.session.poll(now)?;
        self.session.take_outbox(now, &mut self.out);
        Ok(std::mem::take(&mut self.out))
    }

    /// Bytes have come.
    ///
    /// # Errors
    /// [`Ended`].
    pub fn handle_bytes(&mut self, now: Instant, bytes: &[u8]) -> Result<(), Ended> {
        Ok(self.session.handle_bytes(now, bytes)?)
    }
}
