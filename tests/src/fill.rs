//! A valid log of EVENTS as large as one likes, made without devices, gateways and processors: what a
//! storer is measured with (`scripts/scale`).
//!
//! Every document is put once, as a text; afterwards one of them gets so many small edits. INSTRUCTIONS
//! gets one empty batch for each batch of events, so that the positions that events name are there: a
//! storer looks only at where that stream begins and ends.

use anyhow::{Context, ensure};
use bytes::Bytes;
use fieldstream_nats::{BatchWriter, Connection, Log, Topology};
use fieldstream_shared::change::{Change, Edit, Primitive, Version};
use fieldstream_shared::cursor::{BatchId, Cursor, Cursors, Part, Position};
use fieldstream_shared::document::{Body, Document};
use fieldstream_shared::event::{Event, EventBody, Origin, encode_event_batch};
use fieldstream_shared::ids::{ClientId, DocumentId};
use fieldstream_shared::marks::Arrival;
use fieldstream_shared::partition::{Partition, PartitionSet};
use fieldstream_shared::record::BatchBuilder;
use futures::{StreamExt, TryStreamExt};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

/// Events of a batch: with texts of 500 bytes as many as processors put into one under load.
const BATCH_EVENTS: usize = 256;

/// Messages under way to the server at a time.
const IN_FLIGHT: usize = 32;

/// Documents of one client. Each client's are spread over all partitions, as devices' are that have many.
const DOCUMENTS_PER_CLIENT: u32 = 1_000;

/// In which order documents come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// In the order of their ids: each commit of a storer touches few pages.
    Sequential,
    /// Shuffled: each commit touches pages all over the file.
    Random,
}

/// What to make.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Documents, each put once.
    pub documents: u32,
    /// In which order.
    pub order: Order,
    /// Further revisions of the first document, each an edit of a few characters.
    pub revisions: u32,
    /// Bytes of a text, at least [`TEXT_BYTES_MIN`].
    pub text_bytes: usize,
    /// Lanes of the log.
    pub lanes: u16,
    /// Event time of the first event, microseconds since the Unix epoch; each later one is 1 µs younger.
    pub now_us: u64,
}

/// The number that a text begins with takes so many bytes.
pub const TEXT_BYTES_MIN: usize = NUMBER_DIGITS;
const NUMBER_DIGITS: usize = 10;

/// A document's id by its number; ids sort as numbers do.
pub fn document_id(n: u32) -> String {
    format!("site-{:05}/device-{n:010}", n / DOCUMENTS_PER_CLIENT)
}

/// The text a document is put with.
pub fn text(n: u32, bytes: usize) -> String {
    let words = " pressure 4.21 bar, flow 17.3 l/min, valve open, no alarm;";
    let mut text = numbered(n);
    text.extend(words.chars().cycle().take(bytes.saturating_sub(NUMBER_DIGITS)));
    text
}

fn numbered(n: u32) -> String {
    format!("{n:0width$}", width = NUMBER_DIGITS)
}

/// One message of a lane's EVENTS.
#[derive(Debug)]
pub struct Message {
    /// The lane.
    pub lane: u16,
    /// Its sequence in the stream.
    pub sequence: u64,
    /// Events in it.
    pub events: usize,
    /// The encoded batch.
    pub bytes: Vec<u8>,
}

/// The log of a plan, message by message.
pub struct Filling {
    plan: Plan,
    /// Documents' numbers in the order in which they come.
    order: Vec<u32>,
    /// Updates made: of the documents first, then of the hot one.
    made: u64,
    hot: Document,
    numbers: Vec<u64>,
    lanes: Vec<Lane>,
    incarnation: u64,
}

#[derive(Default)]
struct Lane {
    cursors: Cursors,
    events: BatchBuilder,
    batches: u64,
}

impl Filling {
    /// The same plan and seed make the same log.
    pub fn new(plan: Plan, seed: u64) -> Filling {
        let mut random = StdRng::seed_from_u64(seed);
        let mut order: Vec<u32> = (0..plan.documents).collect();
        if plan.order == Order::Random {
            order.shuffle(&mut random);
        }
        Filling {
            order,
            made: 0,
            hot: Document::default(),
            numbers: vec![0; (plan.documents / DOCUMENTS_PER_CLIENT + 1) as usize],
            lanes: (0..plan.lanes).map(|_| Lane::default()).collect(),
            incarnation: random.random(),
            plan,
        }
    }

    /// The document that the edits are of, as it is after what was handed out so far.
    pub fn hot(&self) -> &Document {
        &self.hot
    }

    /// The next update's document, version and change; `None` at the end.
    fn update(&mut self) -> Option<(u32, Version, Change)> {
        let time_us = self.plan.now_us + self.made;
        let documents = self.order.len() as u64;
        let (n, change) = match self.order.get(usize::try_from(self.made).ok()?) {
            Some(n) => (*n, vec![Primitive::SetText(text(*n, self.plan.text_bytes))]),
            None if self.made < documents + u64::from(self.plan.revisions) && documents > 0 => {
                let inserted = numbered((self.made - documents) as u32);
                (0, vec![Primitive::Splice(vec![Edit { position: 0, deleted: NUMBER_DIGITS as u64, inserted }])])
            }
            None => return None,
        };
        self.made += 1;
        let mut body = if n == 0 { self.hot.body.clone() } else { Body::Absent };
        for primitive in &change {
            primitive.apply(&mut body).ok()?;
        }
        let revision = if n == 0 { self.hot.revision + 1 } else { 1 };
        let version = Version { revision, state_hash: body.hash(), time_us };
        if n == 0 {
            self.hot = Document { revision, time_us, body };
        }
        Some((n, version, change))
    }

    /// Puts the event of an update into its lane's batch; says which lane that is.
    fn push(&mut self, n: u32, version: Version, change: Change) -> Option<u16> {
        let client = n / DOCUMENTS_PER_CLIENT;
        let number = self.numbers.get_mut(client as usize)?;
        *number += 1;
        let document = DocumentId::new(&document_id(n)).ok()?;
        let partition = Partition::of(&document);
        let lane = partition.lane(self.plan.lanes);
        let target = self.lanes.get_mut(usize::from(lane))?;
        let event = Event {
            partition,
            sequence: target.batches + 1,
            index: target.events.len() as u32,
            origin: Some(Origin {
                client: ClientId::new(&format!("client-{client:06}")).ok()?,
                // Content hashes decide about repeated numbers, of which there are none here.
                arrival: Arrival {
                    epoch: self.plan.now_us,
                    number: *number,
                    settled: number.saturating_sub(3).max(1),
                    content_hash: version.state_hash as u32,
                },
                document,
            }),
            received_at_us: version.time_us,
            body: EventBody::Updated { version, change },
            trace: None,
        };
        target.events.push(&event.encode());
        Some(lane)
    }

    /// Closes a lane's batch. One processor owns everything: all partitions of the lane go on together.
    fn cut(&mut self, lane: u16) -> Option<Message> {
        let partitions = PartitionSet::ALL.on_lane(lane, self.plan.lanes);
        let target = self.lanes.get_mut(usize::from(lane))?;
        if target.events.is_empty() {
            return None;
        }
        let first = partitions.iter().next()?;
        let Cursor { position, set_by } = target.cursors.get(first);
        target.batches += 1;
        let id = BatchId { incarnation: self.incarnation ^ u64::from(lane), counter: target.batches };
        let upto = Position { sequence: target.batches, records: target.events.len() as u32 };
        let parts = [Part { partitions, after: Cursor { position, set_by }, upto }];
        target.cursors.accept(id, &parts);
        let events = std::mem::take(&mut target.events);
        let bytes = encode_event_batch(id, &parts, &events);
        Some(Message { lane, sequence: target.batches, events: events.len(), bytes })
    }
}

impl Iterator for Filling {
    type Item = Message;

    fn next(&mut self) -> Option<Message> {
        while let Some((n, version, change)) = self.update() {
            let lane = self.push(n, version, change)?;
            let events = &self.lanes.get(usize::from(lane))?.events;
            if events.len() >= BATCH_EVENTS || events.is_full() {
                return self.cut(lane);
            }
        }
        (0..self.plan.lanes).find_map(|lane| self.cut(lane))
    }
}

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Filled {
    /// Messages of EVENTS, of all lanes.
    pub messages: u64,
    /// Events in them.
    pub events: u64,
    /// Bytes of the messages.
    pub bytes: u64,
}

/// Writes the log of a plan to streams that are empty.
///
/// # Errors
/// If the server does not take it, or did not store it in this order.
pub async fn fill(connection: &Connection, topology: &Topology, plan: Plan, seed: u64) -> anyhow::Result<Filled> {
    ensure!(plan.lanes == topology.lanes, "the log has {} lane(s), not {}", topology.lanes, plan.lanes);
    let append = |message: Message| async move {
        let Message { lane, sequence, events, bytes } = message;
        let length = bytes.len() as u64;
        let instructions = BatchWriter::new(connection, Log::Instructions, lane);
        let empty = Bytes::from(BatchBuilder::default().finish());
        let writer = BatchWriter::new(connection, Log::Events, lane);
        let (stored, named) = futures::join!(writer.append(Bytes::from(bytes)), instructions.append(empty));
        let stored = stored.with_context(|| format!("EVENTS of lane {lane}, sequence {sequence}"))?;
        named.with_context(|| format!("INSTRUCTIONS of lane {lane}, sequence {sequence}"))?;
        ensure!(stored == sequence, "lane {lane}: sequence {sequence} was stored as {stored}; is the stream empty?");
        anyhow::Ok((events as u64, length))
    };
    let written = futures::stream::iter(Filling::new(plan, seed).map(append)).buffered(IN_FLIGHT);
    let counted = written.try_fold(Filled::default(), |so_far, (events, bytes)| async move {
        let Filled { messages, events: before, bytes: length } = so_far;
        Ok(Filled { messages: messages + 1, events: before + events, bytes: length + bytes })
    });
    // Messages leave in the order of their first poll, unless the scheduler's budget ends in front of one.
    tokio::task::unconstrained(counted).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use fieldstream_shared::read::Checkpoint;
    use fieldstream_storer::projection::{Batch, Projection, State};
    use fieldstream_storer::rows::{DocumentRow, MarkRow};
    use std::convert::Infallible;

    /// Nothing was committed yet.
    struct Empty;

    impl State for Empty {
        type Error = Infallible;

        fn document(&self, _: &str) -> Result<Option<DocumentRow>, Infallible> {
            Ok(None)
        }

        fn mark(&self, _: Partition, _: &str) -> Result<Option<MarkRow>, Infallible> {
            Ok(None)
        }
    }

    fn checkpoint(lanes: u16) -> Checkpoint {
        Checkpoint { log_id: 1, lanes, events_sequence: 0, events_hash: 0, cursors: Cursors::default() }
    }

    /// The projection refuses what no processor could have written.
    fn projected(plan: Plan) -> (Projection, Document, u64) {
        let mut projection = Projection::new(vec![checkpoint(plan.lanes); usize::from(plan.lanes)]);
        let (mut filling, mut events) = (Filling::new(plan, 7), 0);
        for Message { lane, sequence, bytes, events: in_it } in filling.by_ref() {
            let batch = Batch::decode::<Infallible>(lane, sequence, &bytes).unwrap();
            assert_eq!(batch.events(), in_it);
            projection.handle(batch, &Empty).unwrap();
            events += in_it as u64;
        }
        (projection, filling.hot().clone(), events)
    }

    #[test]
    fn a_storer_takes_in_every_document_and_every_edit() {
        for order in [Order::Sequential, Order::Random] {
            for lanes in [1, 3] {
                let plan = Plan {
                    documents: 2_500,
                    order,
                    revisions: 700,
                    text_bytes: 80,
                    lanes,
                    now_us: 1_800_000_000_000_000,
                };
                let (projection, hot, events) = projected(plan);
                let writes = projection.writes(0);
                assert_eq!((events, writes.documents.len(), writes.history.len()), (3_200, 2_500, 3_200));
                assert_eq!(writes.checkpoints.len(), usize::from(lanes));
                let row = |n: u32| &writes.documents[document_id(n).as_str()].document;
                assert_eq!(row(1_234).body, Body::Text(text(1_234, 80)));
                assert_eq!((row(0), row(0).revision), (&hot, 701));
                let Body::Text(edited) = &row(0).body else { panic!("a text") };
                assert_eq!((edited.len(), &edited[..NUMBER_DIGITS]), (80, "0000000699"));
                let mut marks = writes.marks.values().map(|row| &row.mark);
                assert!(marks.all(|mark| mark.window.contains_key(&mark.highest) && mark.window.len() <= 4));
            }
        }
    }

    #[test]
    fn sequential_ids_rise_and_random_ones_do_not() {
        let of = |order| {
            let plan = Plan { documents: 600, order, revisions: 0, text_bytes: 10, lanes: 1, now_us: 1 };
            Filling::new(plan, 7).order.iter().map(|n| document_id(*n)).collect::<Vec<_>>()
        };
        assert!(of(Order::Sequential).is_sorted());
        let mut random = of(Order::Random);
        assert!(!random.is_sorted());
        random.sort();
        assert_eq!(random, of(Order::Sequential));
    }
}
