//! The fan-out of one lane: which events count, who is told about them, and the documents that
//! somebody watches.
//!
//! Knows no socket, no NATS, no clock. Inputs are event batches in stream order, wishes of
//! sessions, storers' answers and progress; outputs are frames in mailboxes, sessions to wake, and
//! [`Load`]s to be put to the storers. One lane's hub is used under one lock, never held across an
//! await; a mailbox's lock is taken inside it, never the other way round.
//!
//! **Invariant:** what a follower gets of a document are contiguous updates from what it held, or
//! a snapshot that replaces it; never an update that does not follow.

mod refused;
mod stored;
mod watched;

use crate::mailbox::{Mailbox, SessionId, Wakes, frame};
use crate::numbers::Decision;
use crate::outbox::DocumentKey;
use crate::session::WatchWish;
use fieldstream_shared::code::Code;
use fieldstream_shared::cursor::Cursors;
use fieldstream_shared::document::Document;
use fieldstream_shared::event::{Event, EventBatch, EventBody, Origin};
use fieldstream_shared::frame::{FromServer, WatchMode};
use fieldstream_shared::ids::{ClientId, DocumentId, Number};
use fieldstream_shared::msgpack::DecodeError;
use fieldstream_shared::outcome::AckLevel;
use fieldstream_shared::partition::PartitionSet;
use fieldstream_shared::read::{HistoryEntry, Progress};
use refused::{Refusal, Refused};
use std::collections::HashMap;
use std::sync::Arc;
pub(crate) use stored::SyncWait;
use stored::{Stored, WhenStored};
use watched::{Next, Step, Watched, Welcomed};

/// Sessions by client, over all lanes.
pub(crate) type Clients = HashMap<ClientId, Arc<Mailbox>>;

/// Bounds of the hub's memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) held_bytes_max: usize,
    pub(crate) recent_bytes_max: usize,
    /// Memory of this lane's watched documents; beyond, no further ones are taken.
    pub(crate) documents_bytes_max: usize,
}

/// Somebody who follows a document.
#[derive(Debug)]
struct Watcher {
    mailbox: Arc<Mailbox>,
    mode: WatchMode,
    held: Held,
}

/// What a watcher has of its document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    /// It says that it has this; no verdict yet.
    Claims { revision: u64, state_hash: u64 },
    /// A storer was asked for what it missed.
    AwaitsHistory { revision: u64, state_hash: u64 },
    /// It gets every update.
    Follows,
    /// It had its verdict, but what it has leads nowhere: it gets the next state as a whole.
    Lost,
}

/// A question to the storers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) key: DocumentKey,
    pub(crate) document: DocumentId,
    /// The answer must include all events up to here.
    pub(crate) min_sequence: u64,
    /// The history from a revision on, for this session; else the document.
    pub(crate) history: Option<(SessionId, u64)>,
}

/// What a step of the hub calls for.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    pub(crate) wakes: Wakes,
    pub(crate) loads: Vec<Load>,
    /// Traced instructions whose events came.
    pub(crate) traced: Vec<Number>,
}

/// The fan-out of one lane.
#[derive(Debug)]
pub(crate) struct LaneHub {
    lane: u16,
    partitions: PartitionSet,
    log_id: u64,
    limits: Limits,
    cursors: Cursors,
    /// EVENTS is read through here.
    sequence: u64,
    documents: HashMap<DocumentId, Watched>,
    /// Memory of the watched documents.
    documents_bytes: usize,
    keys: HashMap<DocumentKey, DocumentId>,
    next_key: DocumentKey,
    stored: Stored,
    refused: Refused,
}

/// What a lane's hub begins with.
#[derive(Debug)]
pub(crate) struct Beginning {
    pub(crate) lane: u16,
    pub(crate) lanes: u16,
    pub(crate) log_id: u64,
    pub(crate) stored_copies: usize,
    pub(crate) limits: Limits,
    pub(crate) cursors: Cursors,
    pub(crate) sequence: u64,
}

impl LaneHub {
    pub(crate) fn new(beginning: Beginning) -> LaneHub {
        let Beginning { lane, lanes, log_id, stored_copies, limits, cursors, sequence } = beginning;
        LaneHub {
            lane,
            partitions: PartitionSet::ALL.on_lane(lane, lanes),
            log_id,
            limits,
            cursors,
            sequence,
            documents: HashMap::new(),
            documents_bytes: 0,
            keys: HashMap::new(),
            next_key: DocumentKey::from(lane) << 48,
            stored: Stored::new(stored_copies),
            refused: Refused::default(),
        }
    }

    /// EVENTS is read through here.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The cursors as accepted.
    #[cfg(feature = "cores")]
    pub(crate) fn cursors(&self) -> &Cursors {
        &self.cursors
    }

    /// The highest INSTRUCTIONS sequence that some cursor names.
    pub(crate) fn highest_cursor(&self) -> u64 {
        self.cursors.highest(&self.partitions).map_or(0, |position| position.sequence)
    }

    /// The lane a key belongs to.
    pub(crate) fn lane_of(key: DocumentKey) -> usize {
        (key >> 48) as usize
    }

    /// The next message of EVENTS.
    ///
    /// # Errors
    /// [`DecodeError`]: the reader must stop; a batch is never skipped.
    pub(crate) fn handle_batch(
        &mut self,
        sequence: u64,
        message: &[u8],
        clients: &Clients,
        effects: &mut Effects,
    ) -> Result<(), DecodeError> {
        let batch = EventBatch::decode(message)?;
        let accepted = self.cursors.accept(batch.id, &batch.parts);
        self.sequence = sequence;
        if accepted.is_empty() {
            return Ok(());
        }
        let mut bodies: Vec<DocumentId> = Vec::new();
        for bytes in &batch.events {
            let event = Event::decode(bytes)?;
            if !accepted.contains(event.partition) {
                continue;
            }
            let Event { origin: Some(origin), body, trace, .. } = event else { continue };
            if matches!(body, EventBody::Forgotten(_)) {
                continue;
            }
            self.tell_origin(&origin, &body, clients, effects);
            if trace.is_some() {
                let (client, arrival) = (origin.client.clone(), &origin.arrival);
                effects.traced.push(Number { client, epoch: arrival.epoch, number: arrival.number });
            }
            if let EventBody::Updated { version, change } = body
                && let Some(watched) = self.documents.get_mut(&origin.document)
            {
                let step = Step { sequence, version, client: origin.client, number: origin.arrival.number, change };
                match watched.step(step, bytes.len(), &self.limits, &mut effects.wakes) {
                    Next::Nothing => {}
                    Next::SendBodies if bodies.last() == Some(&origin.document) => {}
                    Next::SendBodies => bodies.push(origin.document),
                    Next::Load => effects.loads.push(watched_load(watched, sequence)),
                }
                account(&mut self.documents_bytes, watched);
            }
        }
        bodies.sort_unstable();
        bodies.dedup();
        for document in bodies {
            if let Some(watched) = self.documents.get_mut(&document) {
                watched.send_bodies(&mut effects.wakes);
                account(&mut self.documents_bytes, watched);
            }
        }
        Ok(())
    }

    fn tell_origin(&mut self, origin: &Origin, body: &EventBody, clients: &Clients, effects: &mut Effects) {
        let (epoch, number) = (origin.arrival.epoch, origin.arrival.number);
        self.refused.keep(&origin.client, Refusal { epoch, number, outcome: body.outcome() });
        let Some(mailbox) = clients.get(&origin.client) else { return };
        let decision = mailbox.lock().numbers.decided(epoch, number, body);
        match decision {
            Decision::Ignore => {}
            Decision::Tell(level, outcome) => {
                effects.wakes.post(mailbox, |inbound| inbound.outcome(epoch, number, level, Some(outcome)));
            }
            Decision::TellWhenStored => {
                let tell = WhenStored::Tell { mailbox: Arc::downgrade(mailbox), epoch, number };
                self.stored.when(self.sequence, tell, &mut effects.wakes);
            }
        }
    }

    /// A client has come, and is to be told of events from now on: it may have missed refusals of what
    /// it sent before.
    pub(crate) fn tell_missed(&self, client: &ClientId, epoch: u64, sent_upto: u64, mailbox: &Arc<Mailbox>) {
        for Refusal { epoch, number, outcome } in self.refused.of(client, epoch, sent_upto) {
            mailbox.lock().outcome(epoch, number, AckLevel::Applied, Some(outcome));
        }
    }

    /// A storer announces how far it is.
    pub(crate) fn handle_progress(&mut self, progress: &Progress, effects: &mut Effects) {
        if progress.log_id != self.log_id || progress.lane != self.lane {
            return;
        }
        self.stored.handle_progress(progress.storer, progress.sequence, &mut effects.wakes);
    }

    /// A SYNC waits until everything up to `sequence` is stored.
    pub(crate) fn wait_stored(&mut self, sequence: u64, wait: Arc<SyncWait>, effects: &mut Effects) {
        self.stored.when(sequence, WhenStored::Sync(wait), &mut effects.wakes);
    }

    /// A session wants to follow a document; a repeated wish replaces the first.
    pub(crate) fn watch(&mut self, mailbox: &Arc<Mailbox>, wish: WatchWish, effects: &mut Effects) {
        let WatchWish { document, revision, state_hash, mode } = wish;
        if self.is_full() && !self.documents.contains_key(&document) {
            return refuse(mailbox, &document, &mut effects.wakes);
        }
        let sequence = self.sequence;
        let watched = self.documents.entry(document).or_insert_with_key(|document| {
            self.next_key += 1;
            self.keys.insert(self.next_key, document.clone());
            let watched = Watched::new(document.clone(), self.next_key, sequence);
            effects.loads.push(watched_load_of(self.next_key, document, sequence));
            watched
        });
        let former = watched.watchers.get(&mailbox.id).map(|watcher| watcher.held);
        let held = match former {
            // One question for each watcher, however often it wishes: an answer that does not fit what
            // it holds now leads to a snapshot.
            Some(Held::AwaitsHistory { .. }) if mode == WatchMode::Changes && revision > 0 => {
                Held::AwaitsHistory { revision, state_hash }
            }
            _ => Held::Claims { revision, state_hash },
        };
        let watcher = Watcher { mailbox: Arc::clone(mailbox), mode, held };
        if watched.watchers.insert(mailbox.id, watcher).is_some() {
            wakes_forget(watched, mailbox, &mut effects.wakes);
        }
        welcome(watched, mailbox.id, sequence, effects);
        account(&mut self.documents_bytes, watched);
    }

    fn is_full(&self) -> bool {
        self.documents_bytes > self.limits.documents_bytes_max
    }

    /// A session no longer follows a document. The last one takes the document with it.
    pub(crate) fn unwatch(&mut self, mailbox: &Arc<Mailbox>, document: &DocumentId) {
        let Some(watched) = self.documents.get_mut(document) else { return };
        watched.watchers.remove(&mailbox.id);
        mailbox.lock().outbox.forget(watched.key());
        if watched.watchers.is_empty() {
            self.drop_document(document);
        }
    }

    fn drop_document(&mut self, document: &DocumentId) {
        if let Some(watched) = self.documents.remove(document) {
            self.keys.remove(&watched.key());
            self.documents_bytes -= watched.accounted_bytes;
        }
    }

    fn by_key(&mut self, key: DocumentKey) -> Option<&mut Watched> {
        self.documents.get_mut(self.keys.get(&key)?)
    }

    /// A storer's answer to a load.
    pub(crate) fn loaded(&mut self, key: DocumentKey, sequence: u64, document: Document, effects: &mut Effects) {
        let (limits, own) = (self.limits, self.sequence);
        let Some(watched) = self.keys.get(&key).and_then(|id| self.documents.get_mut(id)) else { return };
        let next = watched.loaded(sequence, document, &limits, &mut effects.wakes);
        account(&mut self.documents_bytes, watched);
        if self.documents_bytes > limits.documents_bytes_max && watched.is_new_to_all() {
            watched.watchers.values().for_each(|w| refuse(&w.mailbox, &watched.id, &mut effects.wakes));
            let document = watched.id.clone();
            return self.drop_document(&document);
        }
        match next {
            Next::Nothing => {}
            Next::Load => {
                let at = watched.asked_at().unwrap_or(own).max(own);
                watched.reload(at);
                effects.loads.push(watched_load(watched, at));
            }
            Next::SendBodies => {
                let waiting: Vec<SessionId> = watched.watchers.keys().copied().collect();
                for session in waiting {
                    welcome(watched, session, own, effects);
                }
            }
        }
        account(&mut self.documents_bytes, watched);
    }

    /// A storer's history for one watcher; empty if none could be had.
    pub(crate) fn history(
        &mut self,
        key: DocumentKey,
        session: SessionId,
        entries: &[HistoryEntry],
        effects: &mut Effects,
    ) {
        if let Some(watched) = self.by_key(key) {
            watched.history(session, entries, &mut effects.wakes);
        }
    }

    /// Whether somebody still waits for this load.
    pub(crate) fn is_wanted(&mut self, load: &Load) -> bool {
        self.by_key(load.key).is_some_and(|watched| match load.history {
            Some((session, _)) => watched.awaits_history(session),
            None => watched.asked_at().is_some(),
        })
    }

    /// A session whose queue has drained gets the present state of a document it missed updates of.
    pub(crate) fn refresh(&mut self, key: DocumentKey, mailbox: &Arc<Mailbox>, wakes: &mut Wakes) {
        match self.keys.get(&key).and_then(|id| self.documents.get_mut(id)) {
            Some(watched) => {
                watched.refresh(mailbox.id, wakes);
                account(&mut self.documents_bytes, watched);
            }
            None => mailbox.lock().outbox.refreshed(key),
        }
    }

    /// The document, if it is at hand.
    pub(crate) fn document(&self, document: &DocumentId) -> Option<&Document> {
        self.documents.get(document)?.document()
    }
}

/// Brings the memory of all documents up to date with one that may have changed.
fn account(documents_bytes: &mut usize, watched: &mut Watched) {
    let bytes = watched.memory_bytes();
    *documents_bytes = *documents_bytes + bytes - watched.accounted_bytes;
    watched.accounted_bytes = bytes;
}

/// There is no room for another watched document: its client asks again after a while.
fn refuse(mailbox: &Arc<Mailbox>, document: &DocumentId, wakes: &mut Wakes) {
    let refused = frame(&FromServer::Refused { request: 0, document, code: Code::UNAVAILABLE });
    wakes.post(mailbox, |inbound| inbound.outbox.keep(refused));
}

fn watched_load_of(key: DocumentKey, document: &DocumentId, min_sequence: u64) -> Load {
    Load { key, document: document.clone(), min_sequence, history: None }
}

fn watched_load(watched: &Watched, min_sequence: u64) -> Load {
    watched_load_of(watched.key(), &watched.id, min_sequence)
}

fn wakes_forget(watched: &Watched, mailbox: &Arc<Mailbox>, wakes: &mut Wakes) {
    wakes.post(mailbox, |inbound| inbound.outbox.forget(watched.key()));
}

fn welcome(watched: &mut Watched, session: SessionId, sequence: u64, effects: &mut Effects) {
    if let Welcomed::NeedsHistory { from } = watched.welcome(session, &mut effects.wakes) {
        let history = Some((session, from));
        effects.loads.push(Load { history, ..watched_load(watched, sequence) });
    }
}

#[cfg(test)]
mod tests;
