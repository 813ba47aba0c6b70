//! The projection: what a lane's EVENTS make of the tables. Pure: no clock, no network, no LMDB.
//!
//! [`Projection::handle`] takes the messages of all lanes, each lane's in order. It accepts parts by
//! the rule every reader follows ([`Cursors`](fieldstream_shared::cursor::Cursors)), and keeps the changed rows of the commit being
//! prepared; what it does not have it reads through [`State`], which shows the last commit.
//! [`Projection::writes`] then lists the rows of one transaction, in key order, checkpoints
//! included.
//!
//! **Invariant:** the rows written depend on the log alone, never on how it was cut into commits.
//! An event that cannot be decoded or does not fit is an error that stops the storer; nothing is
//! ever skipped.

mod history;
mod recent;

pub use history::{ChangedDocument, NewRow, Placed, WHOLE_STATE_EVERY_BYTES};

use history::NewHistory;
use recent::Recent;

use crate::rows::{CheckpointRow, DeadLetterKey, DeadLetterRow, DocumentRow, HistoryRow, MarkRow};
use fieldstream_shared::change::{Change, Misfit, Version};
use fieldstream_shared::cursor::{BatchId, Part};
use fieldstream_shared::document::Document;
use fieldstream_shared::event::{Event, EventBatch, EventBody, Origin, message_hash};
use fieldstream_shared::ids::{ClientId, DocumentId, Number};
use fieldstream_shared::marks::Arrival;
use fieldstream_shared::msgpack::DecodeError;
use fieldstream_shared::partition::{Partition, PartitionSet};
use fieldstream_shared::read::Checkpoint;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// The state of the last commit.
pub trait State {
    /// Why it could not be read.
    type Error;

    /// A document's row, if there is one.
    ///
    /// # Errors
    /// If the state cannot be read.
    fn document(&self, id: &str) -> Result<Option<DocumentRow>, Self::Error>;

    /// A client's mark in a partition, if there is one.
    ///
    /// # Errors
    /// If the state cannot be read.
    fn mark(&self, partition: Partition, client: &str) -> Result<Option<MarkRow>, Self::Error>;
}

/// Why the log cannot be projected any further. Each names the lane and the EVENTS sequence, and
/// says what to do.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ProjectionError<E> {
    /// The message is no event batch.
    #[error(
        "lane {lane}, EVENTS sequence {sequence}: the batch cannot be decoded ({error}); the storer stops before it: \
         run a storer at least as new as the processors, or restore the stream"
    )]
    Batch {
        /// The lane.
        lane: u16,
        /// The message.
        sequence: u64,
        /// What is wrong.
        error: DecodeError,
    },
    /// One of the batch's events is none.
    #[error(
        "lane {lane}, EVENTS sequence {sequence}: event {index} of the batch cannot be decoded ({error}); the storer \
         stops before it: run a storer at least as new as the processors, or restore the stream"
    )]
    Event {
        /// The lane.
        lane: u16,
        /// The message.
        sequence: u64,
        /// The event's index in the batch.
        index: usize,
        /// What is wrong.
        error: DecodeError,
    },
    /// The event is about a document of another partition or lane.
    #[error(
        "lane {lane}, EVENTS sequence {sequence}: event {index} of the batch is about document {document:?}, which is \
         not of partition {partition} on this lane; the storer stops before it: find the processor that wrote it"
    )]
    Misplaced {
        /// The lane.
        lane: u16,
        /// The message.
        sequence: u64,
        /// The event's index in the batch.
        index: usize,
        /// The document.
        document: DocumentId,
        /// The partition the event names.
        partition: u8,
    },
    /// The change does not follow the stored state.
    #[error(
        "lane {lane}, EVENTS sequence {sequence}: event {index} of the batch does not fit document {document:?} \
         ({misfit}); file and log disagree, the storer stops before it: move the storer's directory away and start \
         again, it is rebuilt from the log"
    )]
    Misfit {
        /// The lane.
        lane: u16,
        /// The message.
        sequence: u64,
        /// The event's index in the batch.
        index: usize,
        /// The document.
        document: DocumentId,
        /// How it does not fit.
        misfit: Misfit,
    },
    /// Not the message behind the last one.
    #[error("lane {lane}: EVENTS sequence {found} came where {expected} was due; start the storer again")]
    NotContiguous {
        /// The lane.
        lane: u16,
        /// The sequence that was due.
        expected: u64,
        /// The sequence that came.
        found: u64,
    },
    /// A message of a lane that the log does not have.
    #[error("EVENTS of lane {lane} came, but there are {lanes} lane(s); start the storer again")]
    UnknownLane {
        /// The lane.
        lane: u16,
        /// Lanes of the log.
        lanes: usize,
    },
    /// The state of the last commit could not be read.
    #[error("{0}")]
    State(E),
}

/// A decoded message of an EVENTS stream. Decoding needs no state, so readers do it before the one
/// thread that writes gets the batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// The lane.
    pub lane: u16,
    /// Its EVENTS sequence.
    pub sequence: u64,
    /// Hash of the message.
    pub hash: u64,
    /// Length of the message.
    pub bytes: usize,
    id: BatchId,
    parts: Vec<Part>,
    events: Vec<Event>,
    traced: Vec<(u64, Number)>,
}

impl Batch {
    /// Decodes a message and all of its events.
    ///
    /// # Errors
    /// [`ProjectionError::Batch`] or [`ProjectionError::Event`].
    pub fn decode<E>(lane: u16, sequence: u64, message: &[u8]) -> Result<Batch, ProjectionError<E>> {
        let batch = EventBatch::decode(message).map_err(|error| ProjectionError::Batch { lane, sequence, error })?;
        let mut events = Vec::with_capacity(batch.events.len());
        let mut traced = Vec::new();
        for (index, bytes) in batch.events.iter().enumerate() {
            let event = Event::decode(bytes);
            let event = event.map_err(|error| ProjectionError::Event { lane, sequence, index, error })?;
            if let (Some(gateway), Some(origin)) = (event.trace, &event.origin) {
                let Arrival { epoch, number, .. } = origin.arrival;
                traced.push((gateway, Number { client: origin.client.clone(), epoch, number }));
            }
            events.push(event);
        }
        let hash = message_hash(message);
        Ok(Batch { lane, sequence, hash, bytes: message.len(), id: batch.id, parts: batch.parts, events, traced })
    }

    /// The traced instructions among its events, accepted or not, each with the gateway that stamps go
    /// to.
    pub fn take_traced(&mut self) -> Vec<(u64, Number)> {
        std::mem::take(&mut self.traced)
    }

    /// When a gateway received the first of its instructions; `None` if it has none.
    pub fn received_at_us(&self) -> Option<u64> {
        self.events.first().map(|event| event.received_at_us).filter(|at_us| *at_us > 0)
    }

    /// Number of events in it, accepted or not.
    pub fn events(&self) -> usize {
        self.events.len()
    }
}

struct Lane {
    checkpoint: Checkpoint,
    partitions: PartitionSet,
    changed: bool,
}

/// The rows of the commit being prepared, on top of the last one.
pub struct Projection {
    lanes: Vec<Lane>,
    documents: BTreeMap<DocumentId, ChangedDocument>,
    marks: BTreeMap<(ClientId, Partition), MarkRow>,
    history: NewHistory,
    recent: Recent,
    dead_letters: BTreeMap<DeadLetterKey, DeadLetterRow>,
    batches: usize,
    events: usize,
    bytes: usize,
}

/// The rows of one transaction.
pub struct Writes<'a> {
    /// Changed documents, in key order.
    pub documents: &'a BTreeMap<DocumentId, ChangedDocument>,
    /// New history by document and revision, in key order.
    pub history: Vec<Placed<'a>>,
    /// Changed marks, in key order; an empty one is gone.
    pub marks: &'a BTreeMap<(ClientId, Partition), MarkRow>,
    /// New dead letters, in key order.
    pub dead_letters: &'a BTreeMap<DeadLetterKey, DeadLetterRow>,
    /// Checkpoints of the lanes that moved, with the lane and its partitions.
    pub checkpoints: Vec<(u16, PartitionSet, CheckpointRow)>,
}

impl Projection {
    /// Goes on behind the lanes' checkpoints, in order of lanes.
    pub fn new(checkpoints: Vec<Checkpoint>) -> Projection {
        let lanes = checkpoints.len() as u16;
        let lane = |(lane, checkpoint)| {
            let partitions = PartitionSet::ALL.on_lane(lane, lanes);
            Lane { checkpoint, partitions, changed: false }
        };
        Projection {
            lanes: (0..lanes).zip(checkpoints).map(lane).collect(),
            documents: BTreeMap::new(),
            marks: BTreeMap::new(),
            history: NewHistory::default(),
            recent: Recent::default(),
            dead_letters: BTreeMap::new(),
            batches: 0,
            events: 0,
            bytes: 0,
        }
    }

    /// Takes in the next message of a lane.
    ///
    /// # Errors
    /// [`ProjectionError`]: the projection must be dropped, what it holds is not to be written.
    pub fn handle<S: State>(&mut self, batch: Batch, state: &S) -> Result<(), ProjectionError<S::Error>> {
        let Batch { lane, sequence, hash, bytes, id, parts, events, traced: _ } = batch;
        let lanes = self.lanes.len();
        let target = self.lanes.get_mut(usize::from(lane)).ok_or(ProjectionError::UnknownLane { lane, lanes })?;
        let expected = target.checkpoint.events_sequence + 1;
        if sequence != expected {
            return Err(ProjectionError::NotContiguous { lane, expected, found: sequence });
        }
        let accepted = target.checkpoint.cursors.accept(id, &parts);
        target.checkpoint.events_sequence = sequence;
        target.checkpoint.events_hash = hash;
        target.changed = true;
        self.batches += 1;
        self.events += events.len();
        self.bytes += bytes;
        for (index, event) in events.into_iter().enumerate() {
            if accepted.contains(event.partition) {
                self.take(At { lane, sequence, index }, event, state)?;
            }
        }
        Ok(())
    }

    fn take<S: State>(&mut self, at: At, event: Event, state: &S) -> Result<(), ProjectionError<S::Error>> {
        if let Some(origin) = &event.origin {
            self.check_place(at, event.partition, &origin.document)?;
            let row = match self.marks.entry((origin.client.clone(), event.partition)) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => {
                    let row = match self.recent.take_mark(entry.key()) {
                        Some(row) => row,
                        None => {
                            let row = state.mark(event.partition, &origin.client).map_err(ProjectionError::State)?;
                            row.unwrap_or_default()
                        }
                    };
                    entry.insert(row)
                }
            };
            event.fold_into(&mut row.mark);
            if !matches!(event.body, EventBody::Forgotten(_)) {
                row.seen_at_us = row.seen_at_us.max(event.received_at_us);
            }
        }
        let Event { partition, sequence, index, origin, received_at_us, body, trace: _ } = event;
        match (body, origin) {
            (EventBody::Updated { version, change }, Some(origin)) => {
                let source = Source { sequence, index, origin, received_at_us };
                self.update(at, source, version, change, state)?;
            }
            (EventBody::Dead { code, reason, raw }, origin) => {
                let key = DeadLetterKey { lane: at.lane, sequence: at.sequence, event_index: at.index as u32 };
                let (instruction_sequence, instruction_index) = (sequence, index);
                let row = DeadLetterRow {
                    code,
                    reason,
                    partition,
                    instruction_sequence,
                    instruction_index,
                    received_at_us,
                    origin,
                    raw,
                };
                self.dead_letters.insert(key, row);
            }
            // Only dead events come without an origin: the decoder sees to it.
            (
                EventBody::Updated { .. } | EventBody::Refused(_) | EventBody::Repeated(_) | EventBody::Forgotten(_),
                _,
            ) => {}
        }
        Ok(())
    }

    fn update<S: State>(
        &mut self,
        at: At,
        source: Source,
        version: Version,
        change: Change,
        state: &S,
    ) -> Result<(), ProjectionError<S::Error>> {
        let Origin { client, arrival, document: id } = source.origin;
        let changed = match self.documents.entry(id.clone()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let row = match self.recent.take_document(&id) {
                    Some(row) => row,
                    None => {
                        let found = state.document(&id).map_err(ProjectionError::State)?;
                        found.unwrap_or_else(|| new_row(client.clone(), at.lane))
                    }
                };
                self.bytes += row.document.body.memory_bytes();
                entry.insert(ChangedDocument::new(row))
            }
        };
        let row = &mut changed.row;
        row.document.apply(&change, version).map_err(|misfit| ProjectionError::Misfit {
            lane: at.lane,
            sequence: at.sequence,
            index: at.index,
            document: id.clone(),
            misfit,
        })?;
        row.state_hash = version.state_hash;
        row.client = client.clone();
        (row.epoch, row.number) = (arrival.epoch, arrival.number);
        (row.lane, row.sequence) = (at.lane, at.sequence);
        let entry = HistoryRow {
            version,
            client,
            epoch: arrival.epoch,
            number: arrival.number,
            lane: at.lane,
            instruction_sequence: source.sequence,
            instruction_index: source.index,
            sequence: at.sequence,
            received_at_us: source.received_at_us,
            change,
            body: None,
        };
        self.history.push(changed, &entry);
        Ok(())
    }

    fn check_place<E>(&self, at: At, partition: Partition, document: &DocumentId) -> Result<(), ProjectionError<E>> {
        if Partition::of(document) == partition && partition.lane(self.lanes.len() as u16) == at.lane {
            return Ok(());
        }
        let At { lane, sequence, index } = at;
        Err(ProjectionError::Misplaced { lane, sequence, index, document: document.clone(), partition: partition.0 })
    }

    /// Messages taken in since the last commit.
    pub fn batches(&self) -> usize {
        self.batches
    }

    /// Events taken in since the last commit.
    pub fn events(&self) -> usize {
        self.events
    }

    /// About how many bytes the rows of the next commit hold.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The rows of the next commit, all to be written in one transaction; `committed_at_us` is the
    /// wall time, microseconds since the Unix epoch.
    pub fn writes(&self, committed_at_us: u64) -> Writes<'_> {
        let checkpoint = |(lane, Lane { checkpoint, partitions, .. }): (u16, &Lane)| {
            let row = CheckpointRow {
                checkpoint: checkpoint.clone(),
                instructions_sequence: checkpoint.cursors.highest(partitions).unwrap_or_default().sequence,
                instructions_hash: None,
                committed_at_us,
            };
            (lane, *partitions, row)
        };
        Writes {
            documents: &self.documents,
            history: self.history.by_document(&self.documents),
            marks: &self.marks,
            dead_letters: &self.dead_letters,
            checkpoints: (0..).zip(&self.lanes).filter(|(_, lane)| lane.changed).map(checkpoint).collect(),
        }
    }

    /// The rows of [`Projection::writes`] are durable: forgets them.
    pub fn committed(&mut self) {
        let documents = std::mem::take(&mut self.documents).into_iter().map(|(id, changed)| (id, changed.row));
        self.recent.written(documents, std::mem::take(&mut self.marks).into_iter());
        self.history.clear();
        self.dead_letters.clear();
        self.lanes.iter_mut().for_each(|lane| lane.changed = false);
        (self.batches, self.events, self.bytes) = (0, 0, 0);
    }

    /// The EVENTS sequence each lane has been taken in to.
    pub fn sequences(&self) -> Vec<u64> {
        self.lanes.iter().map(|lane| lane.checkpoint.events_sequence).collect()
    }
}

/// Where an event stands in the log of events.
#[derive(Clone, Copy)]
struct At {
    lane: u16,
    sequence: u64,
    index: usize,
}

/// The instruction that led to an update.
struct Source {
    sequence: u64,
    index: u32,
    origin: Origin,
    received_at_us: u64,
}

fn new_row(client: ClientId, lane: u16) -> DocumentRow {
    let document = Document::default();
    DocumentRow {
        state_hash: document.hash(),
        document,
        client,
        epoch: 0,
        number: 0,
        lane,
        sequence: 0,
        since_whole_bytes: 0,
    }
}

#[cfg(test)]
mod tests;
