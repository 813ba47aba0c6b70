//! The shells of the simulation: each drives one core as the shipped shell does, one step at a
//! time.

use super::log::Reader;
use bytes::Bytes;
use fieldstream_gateway::cores::Gateway;
use fieldstream_processor::lane::{Lane, Load};
use fieldstream_shared::cursor::Cursors;
use fieldstream_shared::ids::{ClientId, DocumentId};
use fieldstream_shared::marks::Mark;
use fieldstream_shared::partition::Partition;
use fieldstream_shared::read::{Answer, AnswerBody, Checkpoint, HistoryEntry, Query, Request};
use fieldstream_storer::projection::{Batch, Projection, State};
use fieldstream_storer::rows::{DocumentRow, HistoryRow, MarkRow};
use std::collections::{BTreeMap, VecDeque};

/// The lineage of the simulated log.
pub(super) const LOG_ID: u64 = 77;

/// What a storer has on its disk.
#[derive(Clone)]
pub(super) struct Disk {
    pub(super) checkpoint: Checkpoint,
    pub(super) documents: BTreeMap<String, DocumentRow>,
    pub(super) marks: BTreeMap<(u8, String), Mark>,
    history: BTreeMap<(String, u64), HistoryEntry>,
}

impl Disk {
    pub(super) fn new() -> Disk {
        let cursors = Cursors::default();
        let checkpoint = Checkpoint { log_id: LOG_ID, lanes: 1, events_sequence: 0, events_hash: 0, cursors };
        Disk { checkpoint, documents: BTreeMap::new(), marks: BTreeMap::new(), history: BTreeMap::new() }
    }

    /// Answers from one state, with at most so many documents.
    pub(super) fn answer(&self, request: &Request, documents_max: usize) -> Option<Answer> {
        let sequence = self.checkpoint.events_sequence;
        if sequence < request.min_sequence {
            return None;
        }
        let document = |id: &DocumentId| self.documents.get(id.as_str()).map(|row| row.document.clone());
        let body = match &request.query {
            Query::GetMany { documents, marks } => AnswerBody::Values {
                documents: documents.iter().take(documents_max).map(|id| document(id).unwrap_or_default()).collect(),
                marks: marks.iter().map(|(p, client)| self.mark_of(*p, client).unwrap_or_default()).collect(),
            },
            Query::History { document, from, .. } => {
                let entries = (*from..).map_while(|r| self.history.get(&(document.to_string(), r)).cloned());
                AnswerBody::History(entries.take(8).collect())
            }
            Query::Checkpoint | Query::List { .. } | Query::DeadLetters { .. } => {
                AnswerBody::Checkpoint(Box::new(self.checkpoint.clone()))
            }
        };
        Some(Answer { sequence, body })
    }

    fn mark_of(&self, p: Partition, client: &str) -> Option<Mark> {
        self.marks.get(&(p.0, client.to_owned())).cloned()
    }
}

impl State for Disk {
    type Error = std::convert::Infallible;

    fn document(&self, id: &str) -> Result<Option<DocumentRow>, Self::Error> {
        Ok(self.documents.get(id).cloned())
    }

    fn mark(&self, partition: Partition, client: &str) -> Result<Option<MarkRow>, Self::Error> {
        Ok(self.mark_of(partition, client).map(|mark| MarkRow { mark, seen_at_us: 0 }))
    }
}

/// A storer.
pub(super) struct Storer {
    pub(super) disk: Disk,
    projection: Projection,
    reader: Reader,
    pub(super) paused_until: u64,
}

impl Storer {
    pub(super) fn new(disk: Disk) -> Storer {
        let at = disk.checkpoint.events_sequence;
        let reader = Reader::behind(at, (at > 0).then_some(disk.checkpoint.events_hash));
        Storer { projection: Projection::new(vec![disk.checkpoint.clone()]), disk, reader, paused_until: 0 }
    }

    /// Reads one message; false if there is none.
    pub(super) fn read(&mut self, events: &super::log::Stream) -> Result<bool, String> {
        let next = self.reader.next(events).map_err(|e| format!("a storer finds the log damaged: {e:?}"))?;
        let Some((sequence, message)) = next else { return Ok(false) };
        let batch = Batch::decode::<std::convert::Infallible>(0, sequence, &message).map_err(|e| e.to_string())?;
        self.projection.handle(batch, &self.disk).map_err(|e| format!("a storer stops: {e}"))?;
        Ok(true)
    }

    /// Commits what was read; false if that is nothing.
    pub(super) fn commit(&mut self) -> bool {
        if self.projection.batches() == 0 {
            return false;
        }
        let writes = self.projection.writes(1);
        for (id, row) in writes.documents {
            self.disk.documents.insert(id.to_string(), row.row.clone());
        }
        for placed in &writes.history {
            let row = HistoryRow::decode_for_watchers(placed.value).expect("a history row");
            let (version, client, number, change) = row;
            let entry = HistoryEntry { version, client, number, change: change.to_owned() };
            self.disk.history.insert((placed.document.to_string(), placed.row.revision), entry);
        }
        for ((client, p), row) in writes.marks {
            self.disk.marks.insert((p.0, client.to_string()), row.mark.clone());
        }
        if let Some((_, _, row)) = writes.checkpoints.into_iter().next() {
            self.disk.checkpoint = row.checkpoint;
        }
        self.projection.committed();
        true
    }
}

/// A question on its way to a storer, and perhaps its answer on the way back.
pub(super) struct Asked {
    pub(super) id: u64,
    pub(super) request: Request,
    pub(super) answer: Option<Option<Answer>>,
}

/// A batch that a writer wants in the log.
pub(super) struct Sending {
    pub(super) message: Bytes,
    /// The attempt under way, and when it is given up.
    pub(super) attempt: Option<(u64, u64)>,
}

/// A processor.
pub(super) struct Worker {
    pub(super) core: Lane,
    pub(super) instructions: Reader,
    pub(super) events: Reader,
    pub(super) sending: Option<Sending>,
    pub(super) asked: Vec<Asked>,
    pub(super) progress: VecDeque<u64>,
    pub(super) paused_until: u64,
}

impl Worker {
    pub(super) fn ask(&mut self) {
        while let Some(Load { id, request }) = self.core.poll_load() {
            self.asked.push(Asked { id, request, answer: None });
        }
    }
}

/// A gateway.
pub(super) struct Desk {
    pub(super) core: Gateway,
    pub(super) events: Reader,
    pub(super) sending: Option<Sending>,
    pub(super) asked: Vec<Asked>,
    pub(super) paused_until: u64,
}

/// A connection between a device and a gateway: bytes under way.
pub(super) struct Wire {
    pub(super) gateway: usize,
    /// Which start of that gateway.
    pub(super) start: u64,
    pub(super) session: u64,
    pub(super) up: VecDeque<u8>,
    pub(super) down: VecDeque<u8>,
    pub(super) closes: bool,
}

/// A device.
pub(super) struct Unit {
    pub(super) name: ClientId,
    pub(super) core: fieldstream_client::cores::Device,
    pub(super) wire: Option<Wire>,
    pub(super) connect_at: u64,
}
