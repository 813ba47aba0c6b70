//! Logs for tests: what processors would have written, zombies and repetitions included.

use fieldstream_shared::change::{Change, Primitive, Version};
use fieldstream_shared::code::Code;
use fieldstream_shared::cursor::{BatchId, Cursor, Cursors, Part, Position};
use fieldstream_shared::document::Document;
use fieldstream_shared::event::{Event, EventBody, Origin, encode_event_batch};
use fieldstream_shared::ids::{ClientId, DocumentId};
use fieldstream_shared::marks::Arrival;
use fieldstream_shared::outcome::Outcome;
use fieldstream_shared::partition::{Partition, PartitionSet};
use fieldstream_shared::record::BatchBuilder;
use std::collections::BTreeMap;

/// One lane's EVENTS, as honest processors and zombies write them.
pub(crate) struct TestLog {
    /// The messages; the first has sequence 1.
    pub(crate) messages: Vec<Vec<u8>>,
    lane: u16,
    lanes: u16,
    cursors: Cursors,
    documents: BTreeMap<String, Document>,
    numbers: BTreeMap<String, u64>,
    instruction: Position,
    batches: u64,
    events: BatchBuilder,
    /// From one change of a document to the next.
    pub(crate) step_us: u64,
    /// Changes come no earlier than a step behind this, microseconds since the Unix epoch.
    pub(crate) clock_us: u64,
    /// When gateways receive what follows, microseconds since the Unix epoch.
    pub(crate) received_at_us: u64,
}

impl TestLog {
    pub(crate) fn new(lane: u16, lanes: u16) -> TestLog {
        TestLog {
            messages: Vec::new(),
            lane,
            lanes,
            cursors: Cursors::default(),
            documents: BTreeMap::new(),
            numbers: BTreeMap::new(),
            instruction: Position { sequence: 1, records: 0 },
            batches: 0,
            events: BatchBuilder::default(),
            step_us: 1,
            clock_us: 0,
            received_at_us: 1_800_000_000_000_000,
        }
    }

    /// A document on the log's lane, one of many by number.
    pub(crate) fn document(&self, n: u64) -> String {
        let names = (0..).map(|i| format!("site7/boiler-{n}-{i}"));
        let mut here = names.filter(|id| Partition::of(id).lane(self.lanes) == self.lane);
        here.next().unwrap()
    }

    /// What the document must be when everything is stored.
    pub(crate) fn expected(&self, document: &str) -> Document {
        self.documents.get(document).cloned().unwrap_or_default()
    }

    /// The cursors a reader has at the end of the log.
    pub(crate) fn cursors(&self) -> &Cursors {
        &self.cursors
    }

    pub(crate) fn set_text(&mut self, client: &str, document: &str, text: &str) {
        self.update(client, document, vec![Primitive::SetText(text.to_owned())]);
    }

    pub(crate) fn update(&mut self, client: &str, document: &str, change: Change) {
        let entry = self.documents.entry(document.to_owned()).or_default();
        let body = updated(entry, &change);
        let time_us = entry.time_us.max(self.clock_us) + self.step_us;
        let version = Version { revision: entry.revision + 1, state_hash: body.hash(), time_us };
        entry.apply(&change, version).unwrap();
        self.push(client, document, EventBody::Updated { version, change });
    }

    pub(crate) fn push(&mut self, client: &str, document: &str, body: EventBody) {
        let number = self.numbers.entry(client.to_owned()).or_default();
        *number += 1;
        let arrival = Arrival { epoch: 9, number: *number, settled: number.saturating_sub(3).max(1), content_hash: 5 };
        let event = self.event(document, Some((client, arrival)), body);
        self.instruction.records += 1;
        self.events.push(&event.encode());
    }

    pub(crate) fn refuse(&mut self, client: &str, document: &str) {
        self.push(client, document, EventBody::Refused(Code::CONFLICT));
    }

    pub(crate) fn repeat(&mut self, client: &str, document: &str) {
        let arrival = Arrival { epoch: 9, number: 1, settled: 1, content_hash: 5 };
        let body = EventBody::Repeated(Outcome::Applied { revision: 1 });
        let event = self.event(document, Some((client, arrival)), body);
        self.instruction.records += 1;
        self.events.push(&event.encode());
    }

    pub(crate) fn dead(&mut self, document: &str) {
        let body = EventBody::Dead { code: Code::UNDECODABLE, reason: "broken".to_owned(), raw: vec![0xc1; 20] };
        let event = self.event(document, None, body);
        self.instruction.records += 1;
        self.events.push(&event.encode());
    }

    /// Raw bytes in the place of an event.
    pub(crate) fn garbage(&mut self, bytes: &[u8]) {
        self.events.push(bytes);
    }

    /// Closes the batch. Every partition of the lane takes the step.
    pub(crate) fn cut(&mut self) {
        let mut steps: BTreeMap<(Position, Option<BatchId>), PartitionSet> = BTreeMap::new();
        for p in PartitionSet::ALL.on_lane(self.lane, self.lanes).iter() {
            let Cursor { position, set_by } = self.cursors.get(p);
            steps.entry((position, set_by)).or_default().insert(p);
        }
        let upto = self.instruction;
        let part = |((position, set_by), partitions)| Part { partitions, after: Cursor { position, set_by }, upto };
        let parts: Vec<Part> = steps.into_iter().map(part).collect();
        let events = std::mem::take(&mut self.events);
        self.append(&parts, &events);
        self.instruction = Position { sequence: self.instruction.sequence + 1, records: 0 };
    }

    /// The last message once more, as after a lost acknowledgement.
    pub(crate) fn publish_again(&mut self) {
        self.messages.extend(self.messages.last().cloned());
    }

    /// A batch of somebody who does not know that `zombie`'s partition went on, but is right about
    /// `own`'s: the one part counts, the other does not.
    pub(crate) fn half_zombie(&mut self, client: &str, own: &str, zombie: &str) {
        let (p, q) = (Partition::of(own), Partition::of(zombie));
        assert_ne!(p, q);
        assert!(self.events.is_empty(), "cut before");
        self.update(client, own, vec![Primitive::SetText("own".to_owned())]);
        let wrong = Version { revision: 77, state_hash: 1, time_us: 1 };
        let body = EventBody::Updated { version: wrong, change: vec![Primitive::SetText("zombie".to_owned())] };
        let arrival = Arrival { epoch: 9, number: 1_000_000, settled: 1, content_hash: 5 };
        self.events.push(&self.event(zombie, Some((client, arrival)), body).encode());
        let upto = self.instruction;
        let stale = Cursor { set_by: Some(BatchId { incarnation: 666, counter: 1 }), ..self.cursors.get(q) };
        let parts = [
            Part { partitions: [p].into_iter().collect(), after: self.cursors.get(p), upto },
            Part { partitions: [q].into_iter().collect(), after: stale, upto },
        ];
        let events = std::mem::take(&mut self.events);
        self.append(&parts, &events);
        self.instruction = Position { sequence: self.instruction.sequence + 1, records: 0 };
    }

    fn event(&self, document: &str, client: Option<(&str, Arrival)>, body: EventBody) -> Event {
        let origin = client.map(|(client, arrival)| Origin {
            client: ClientId::new(client).unwrap(),
            arrival,
            document: DocumentId::new(document).unwrap(),
        });
        Event {
            partition: Partition::of(document),
            sequence: self.instruction.sequence,
            index: self.instruction.records,
            origin,
            received_at_us: self.received_at_us,
            body,
            trace: None,
        }
    }

    fn append(&mut self, parts: &[Part], events: &BatchBuilder) {
        self.batches += 1;
        let id = BatchId { incarnation: 7, counter: self.batches };
        self.cursors.accept(id, parts);
        self.messages.push(encode_event_batch(id, parts, events));
    }
}

fn updated(document: &Document, change: &Change) -> fieldstream_shared::document::Body {
    let mut body = document.body.clone();
    change.iter().for_each(|primitive| primitive.apply(&mut body).unwrap());
    body
}
