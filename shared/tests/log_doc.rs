//! The byte-level examples of `docs/LOG.md` are what the code writes and reads.
#![allow(clippy::unwrap_used)]

use fieldstream_shared::change::{Edit, Primitive, Version};
use fieldstream_shared::code::Code;
use fieldstream_shared::cursor::{BatchId, Cursor, Part, Position};
use fieldstream_shared::document::Body;
use fieldstream_shared::event::{Event, EventBatch, EventBody, Origin, encode_event_batch, message_hash};
use fieldstream_shared::ids::{ClientId, DocumentId, Number};
use fieldstream_shared::instruction::{Content, Operation};
use fieldstream_shared::marks::Arrival;
use fieldstream_shared::outcome::Outcome;
use fieldstream_shared::partition::{Partition, owner};
use fieldstream_shared::read::{Progress, Query, Request};
use fieldstream_shared::record::{Action, BatchBuilder, NewRecord, Record, decode_batch};
use fieldstream_shared::trace::{Hop, Stamp, StampNote, Stamps};
use std::collections::BTreeMap;

/// Blocks of the form ```` ```hex NAME ````: bytes as hex pairs, `#` begins a comment.
fn blocks(text: &str) -> BTreeMap<String, Vec<u8>> {
    let mut blocks = BTreeMap::new();
    for block in text.split("```hex ").skip(1) {
        let (name, rest) = block.split_once('\n').unwrap();
        let body = rest.split("```").next().unwrap();
        let digits: String = body.lines().flat_map(|l| l.split('#').next()).flat_map(str::split_whitespace).collect();
        let bytes = (0..digits.len()).step_by(2).map(|i| u8::from_str_radix(&digits[i..i + 2], 16).unwrap()).collect();
        blocks.insert(name.trim().to_owned(), bytes);
    }
    blocks
}

fn content(operation: &[u8]) -> Content<'_> {
    Content { document: "site7/boiler-1", if_revision: None, operation }
}

fn record(operation: &[u8], refuse: Option<Code>, trace: Option<u64>) -> Vec<u8> {
    let record = NewRecord {
        client: "boiler-1",
        epoch: 1_790_000_000_000_000,
        number: 5,
        settled: 4,
        resent: refuse.is_some(),
        received_at_us: 1_790_000_000_500_000,
        content: content(operation),
        refuse,
        trace,
    };
    record.encode()
}

fn event(operation: &[u8], body: EventBody) -> Event {
    let arrival =
        Arrival { epoch: 1_790_000_000_000_000, number: 5, settled: 4, content_hash: content(operation).hash() };
    let document = DocumentId::new("site7/boiler-1").unwrap();
    let origin = Origin { client: ClientId::new("boiler-1").unwrap(), arrival, document };
    Event {
        partition: Partition::of("site7/boiler-1"),
        sequence: 12,
        index: 0,
        origin: Some(origin),
        received_at_us: 1_790_000_000_500_000,
        body,
        trace: None,
    }
}

fn note() -> StampNote {
    let number = Number { client: ClientId::new("boiler-1").unwrap(), epoch: 1_790_000_000_000_000, number: 5 };
    let stamp = |(hop, at_us)| Stamp { hop, at_us };
    let times = [(Hop::StorerRead, 1_790_000_000_502_000), (Hop::StorerCommitted, 1_790_000_000_503_500)];
    StampNote { number, stamps: Stamps { member: 1, clock: 9, stamps: times.map(stamp).to_vec() } }
}

fn examples() -> BTreeMap<String, Vec<u8>> {
    let mut operation = Vec::new();
    Operation::Splice(vec![Edit { position: 2, deleted: 1, inserted: "é".into() }]).write(&mut operation);
    let (instruct, refuse) = (record(&operation, None, None), record(&operation, Some(Code::FORBIDDEN), None));
    let mut batch = BatchBuilder::default();
    batch.push(&instruct);
    batch.push(&refuse);
    let version = Version { revision: 7, state_hash: Body::Text("abé".into()).hash(), time_us: 1_790_000_000_500_000 };
    let change = vec![Primitive::Splice(vec![Edit { position: 2, deleted: 1, inserted: "é".into() }])];
    let updated = event(&operation, EventBody::Updated { version, change });
    let traced = Event { trace: Some(66), ..updated.clone() }.encode();
    let updated = updated.encode();
    let refused = event(&operation, EventBody::Refused(Code::CONFLICT)).encode();
    let repeated = event(&operation, EventBody::Repeated(Outcome::Applied { revision: 7 })).encode();
    let dead = EventBody::Dead {
        code: Code::UNDECODABLE,
        reason: "the record is not of a known form".into(),
        raw: vec![0xc1],
    };
    let dead = Event { origin: None, partition: Partition(0), received_at_us: 0, ..event(&operation, dead) }.encode();
    let mut events = BatchBuilder::default();
    events.push(&updated);
    let set_by = Some(BatchId { incarnation: 1, counter: 41 });
    let part = Part {
        partitions: [Partition::of("site7/boiler-1")].into_iter().collect(),
        after: Cursor { position: Position { sequence: 11, records: 3 }, set_by },
        upto: Position { sequence: 12, records: 2 },
    };
    let event_batch = encode_event_batch(BatchId { incarnation: 1, counter: 42 }, &[part], &events);
    let documents = vec![DocumentId::new("site7/boiler-1").unwrap()];
    let marks = vec![(Partition::of("site7/boiler-1"), ClientId::new("boiler-1").unwrap())];
    let request = Request { lane: 0, min_sequence: 9, query: Query::GetMany { documents, marks } };
    [
        ("record-instruct", instruct),
        ("record-refuse", refuse),
        ("record-traced", record(&operation, None, Some(66))),
        ("instructions-message", batch.finish()),
        ("event-updated", updated),
        ("event-refused", refused),
        ("event-traced", traced),
        ("event-dead", dead),
        ("event-repeated", repeated),
        ("events-message", event_batch),
        ("read-request", request.encode()),
        ("stamps", note().encode()),
        ("progress", Progress { storer: 1, log_id: 2, lane: 0, sequence: 300 }.encode()),
    ]
    .into_iter()
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .collect()
}

fn hex(bytes: &[u8]) -> String {
    let pairs: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
    pairs.chunks(24).map(|line| line.join(" ")).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_examples_are_the_bytes_that_are_written() {
    let documented = blocks(include_str!("../../docs/LOG.md"));
    for (name, bytes) in examples() {
        let found = documented.get(&name).map(|b| hex(b)).unwrap_or_default();
        assert_eq!(found, hex(&bytes), "docs/LOG.md, block `{name}`, must be:\n{}\n", hex(&bytes));
    }
    assert_eq!(documented.keys().collect::<Vec<_>>(), examples().keys().collect::<Vec<_>>());
}

#[test]
fn the_examples_can_be_read() {
    let documented = blocks(include_str!("../../docs/LOG.md"));
    let records = decode_batch(&documented["instructions-message"]).unwrap();
    assert!(matches!(Record::decode(records[0]).unwrap().action, Action::Instruct { .. }));
    assert_eq!(Record::decode(records[1]).unwrap().action, Action::Refuse(Code::FORBIDDEN));
    assert_eq!(Record::decode(&documented["record-traced"]).unwrap().trace, Some(66));
    assert_eq!(StampNote::decode(&documented["stamps"]), Ok(note()));
    let batch = EventBatch::decode(&documented["events-message"]).unwrap();
    assert_eq!(batch.events, [&documented["event-updated"][..]]);
    for name in ["event-updated", "event-traced", "event-refused", "event-dead", "event-repeated"] {
        let event = Event::decode(&documented[name]).unwrap();
        assert_eq!(event.encode(), documented[name]);
    }
}

#[test]
fn the_functions_give_the_documented_values() {
    let text = include_str!("../../docs/LOG.md");
    for document in ["site7/boiler-1", "a", "demo/site-1/device-3", "Größe 1"] {
        let row = format!("| `{document}` | {} |", Partition::of(document).0);
        assert!(text.contains(&row), "docs/LOG.md must have the row {row}");
    }
    for p in [0_u8, 1, 2, 255] {
        let row =
            format!("| {p} | `{}` |", owner(Partition(p), ["processor-a", "processor-b", "processor-c"]).unwrap());
        assert!(text.contains(&row), "docs/LOG.md must have the row {row}");
    }
    let hash = format!("`{:016x}`", message_hash(b"fieldstream"));
    assert!(text.contains(&hash), "docs/LOG.md must have the hash {hash}");
}
