//! `docs/FORMAT.md` against the real encoders, both ways: every example in the document is what the
//! storer writes, and decodes to what the document says.
//!
//! Blocks: ```` ```hex DATABASE key EXAMPLE ```` and ```` ```hex DATABASE value EXAMPLE ````, bytes
//! in hex with `#` comments; ```` ```json DATABASE EXAMPLE ````, the value decoded, bytes as
//! `{"$bin": "hex"}`.

#![allow(clippy::unwrap_used)]

use fieldstream_shared::change::{Change, Edit, Primitive, Version};
use fieldstream_shared::code::Code;
use fieldstream_shared::cursor::{BatchId, Cursor, Cursors, Position};
use fieldstream_shared::document::{Body, Document};
use fieldstream_shared::event::Origin;
use fieldstream_shared::ids::{ClientId, DocumentId};
use fieldstream_shared::marks::{Arrival, Mark};
use fieldstream_shared::msgpack::decode;
use fieldstream_shared::outcome::Outcome;
use fieldstream_shared::partition::{Partition, PartitionSet};
use fieldstream_shared::read::Checkpoint;
use fieldstream_shared::value::{Map, Value};
use fieldstream_storer::rows::{
    ByTimeRow, CheckpointRow, DeadLetterKey, DeadLetterRow, DocumentRow, FORMAT_KEY, FORMAT_VERSION, FormatRow,
    HistoryKey, HistoryRow, MarkRow, by_time_key, checkpoint_key, client_key, decode_mark, encode_mark, history_key,
    parse_by_time_key, parse_client_key,
};
use std::collections::BTreeMap;

const FORMAT: &str = include_str!("../../docs/FORMAT.md");

/// Name of a block, as `documents value text`.
type Blocks = BTreeMap<String, String>;

fn blocks(language: &str) -> Blocks {
    let mut blocks = Blocks::new();
    let mut lines = FORMAT.lines();
    while let Some(line) = lines.next() {
        let Some(info) = line.strip_prefix("```") else { continue };
        let body: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        if let Some(name) = info.strip_prefix(language).and_then(|name| name.strip_prefix(' ')) {
            assert_eq!(blocks.insert(name.to_owned(), body.join("\n")), None, "{name} twice");
        }
    }
    blocks
}

fn bytes(block: &str) -> Vec<u8> {
    let digits: String = block.lines().filter_map(|line| line.split('#').next()).collect();
    let digits: Vec<char> = digits.chars().filter(|c| !c.is_whitespace()).collect();
    let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

type Check = Box<dyn Fn(&[u8], &[u8])>;

/// An example: key, value, and a check that both decode to what was encoded.
struct Example {
    name: &'static str,
    key: Vec<u8>,
    value: Vec<u8>,
    check: Check,
}

fn example(
    name: &'static str,
    key: impl FnOnce(&mut Vec<u8>),
    value: impl FnOnce(&mut Vec<u8>),
    check: impl Fn(&[u8], &[u8]) + 'static,
) -> Example {
    let (mut k, mut v) = (Vec::new(), Vec::new());
    key(&mut k);
    value(&mut v);
    Example { name, key: k, value: v, check: Box::new(check) }
}

const START_US: u64 = 1_790_000_000_000_000;
const DOCUMENT: &str = "site7/boiler-1";

fn client() -> ClientId {
    ClientId::new("panel-3").unwrap()
}

fn map(json: serde_json::Value) -> Map {
    let Some(Value::Map(map)) = Value::from_json(&json) else { panic!("not a map") };
    map
}

fn document(name: &'static str, body: Body, revision: u64) -> Example {
    let row = DocumentRow {
        state_hash: body.hash(),
        document: Document { revision, time_us: START_US + 5_000_000, body },
        client: client(),
        epoch: START_US,
        number: 17,
        lane: 0,
        sequence: 41,
        since_whole_bytes: if revision == 3 { 221 } else { 0 },
    };
    let encoded = row.clone();
    example(
        name,
        |key| key.extend_from_slice(DOCUMENT.as_bytes()),
        |value| encoded.encode(value),
        move |key, value| {
            assert_eq!(key, DOCUMENT.as_bytes());
            assert_eq!(DocumentRow::decode(value).as_ref(), Ok(&row));
        },
    )
}

fn history(name: &'static str, revision: u64, state: &Body, change: Change, whole: bool) -> Example {
    let row = HistoryRow {
        version: Version { revision, state_hash: state.hash(), time_us: START_US + 5_000_000 },
        client: client(),
        epoch: START_US,
        number: 17,
        lane: 0,
        instruction_sequence: 38,
        instruction_index: 2,
        sequence: 41,
        received_at_us: START_US + 4_999_000,
        change,
        body: whole.then(|| state.clone()),
    };
    let encoded = row.clone();
    example(
        name,
        |key| history_key(DOCUMENT, revision, key),
        |value| encoded.encode(value),
        move |key, value| {
            let expected = HistoryKey { document: DocumentId::new(DOCUMENT).unwrap(), revision };
            assert_eq!(HistoryKey::decode(key), Ok(expected));
            assert_eq!(HistoryRow::decode(value).as_ref(), Ok(&row));
        },
    )
}

fn by_time() -> Example {
    let (time_us, row) = (START_US + 5_000_000, ByTimeRow { lane: 0, sequence: 41 });
    example(
        "by_time change",
        |key| by_time_key(time_us, DOCUMENT, 2, key),
        |value| row.encode(value),
        move |key, value| {
            let change = HistoryKey { document: DocumentId::new(DOCUMENT).unwrap(), revision: 2 };
            assert_eq!(parse_by_time_key(key), Ok((time_us, change)));
            assert_eq!(ByTimeRow::decode(value), Ok(row));
        },
    )
}

fn mark() -> Example {
    let window =
        [(16, (0x9c1f_03aa, Outcome::Applied { revision: 2 })), (17, (0x0000_51d2, Outcome::Refused(Code::CONFLICT)))];
    let mark = Mark { epoch: START_US, highest: 17, settled: 16, window: window.into_iter().collect() };
    let row = MarkRow { mark, seen_at_us: START_US };
    let encoded = row.clone();
    let partition = Partition::of(DOCUMENT);
    example(
        "clients mark",
        |key| client_key(&client(), partition, key),
        |value| encode_mark(&encoded, value),
        move |key, value| {
            assert_eq!(parse_client_key(key), Ok((client(), partition)));
            assert_eq!(decode_mark(value).as_ref(), Ok(&row));
        },
    )
}

fn dead_letter(name: &'static str, event_index: u32, code: Code, reason: &str, origin: Option<Origin>) -> Example {
    let row = DeadLetterRow {
        code,
        reason: reason.to_owned(),
        partition: Partition::of(DOCUMENT),
        instruction_sequence: 38,
        instruction_index: 3,
        received_at_us: START_US + 4_999_000,
        origin,
        raw: vec![0x93, 0x01, 0xc1],
    };
    let (key, encoded) = (DeadLetterKey { lane: 0, sequence: 41, event_index }, row.clone());
    example(
        name,
        |out| out.extend_from_slice(&key.encode()),
        |value| encoded.encode(value),
        move |bytes, value| {
            assert_eq!(DeadLetterKey::decode(bytes), Ok(key));
            assert_eq!(DeadLetterRow::decode(value).as_ref(), Ok(&row));
        },
    )
}

fn format() -> Example {
    let row = FormatRow { version: FORMAT_VERSION, lanes: 2, storer: 0x8f3a_0c55_12de_7701, created_at_us: START_US };
    let encoded = row.clone();
    example(
        "meta format",
        |key| key.extend_from_slice(FORMAT_KEY.as_bytes()),
        |value| encoded.encode(value),
        move |_, value| assert_eq!(FormatRow::decode(value).as_ref(), Ok(&row)),
    )
}

fn checkpoint() -> Example {
    let mut cursors = Cursors::default();
    let at = |sequence, records, counter| Cursor {
        position: Position { sequence, records },
        set_by: Some(BatchId { incarnation: 0x5bd1_e995, counter }),
    };
    cursors.set(Partition(0), at(38, 4, 19));
    cursors.set(Partition(2), at(37, 1, 18));
    let checkpoint = Checkpoint {
        log_id: 0x1122_3344_5566_7788,
        lanes: 2,
        events_sequence: 41,
        events_hash: 0xfedc_ba98_7654_3210,
        cursors,
    };
    let row = CheckpointRow {
        checkpoint,
        instructions_sequence: 38,
        instructions_hash: None,
        committed_at_us: START_US + 5_003_000,
    };
    let encoded = row.clone();
    example(
        "meta checkpoint",
        |key| key.extend_from_slice(checkpoint_key(0).as_bytes()),
        |value| encoded.encode(&PartitionSet::ALL.on_lane(0, 2), value),
        move |_, value| assert_eq!(CheckpointRow::decode(value).as_ref(), Ok(&row)),
    )
}

fn examples() -> Vec<Example> {
    let structured = Body::Structured(map(serde_json::json!({"on": true, "setpoint_c": 61.5, "zone": "B"})));
    let edits = vec![Edit { position: 2, deleted: 1, inserted: "l".to_owned() }];
    let origin = Origin {
        client: client(),
        arrival: Arrival { epoch: START_US, number: 18, settled: 16, content_hash: 0x2b },
        document: DocumentId::new(DOCUMENT).unwrap(),
    };
    vec![
        format(),
        checkpoint(),
        document("documents text", Body::Text("hello, 24 °C".to_owned()), 2),
        document("documents structured", structured.clone(), 3),
        document("documents absent", Body::Absent, 4),
        history("history text", 2, &Body::Text("hello".to_owned()), vec![Primitive::Splice(edits)], false),
        history(
            "history structured",
            3,
            &structured,
            vec![Primitive::Merge(map(serde_json::json!({"setpoint_c": 61.5})))],
            false,
        ),
        history("history whole", 4, &Body::Text("hello!".to_owned()), vec![Primitive::Append("!".to_owned())], true),
        by_time(),
        mark(),
        dead_letter("dead_letters undecodable", 5, Code::UNDECODABLE, "the bytes end inside a value", None),
        dead_letter("dead_letters panicked", 6, Code::HANDLER_PANICKED, "handler `calibrate` panicked", Some(origin)),
    ]
}

#[test]
fn every_example_of_the_document_is_what_the_storer_writes_and_reads() {
    let (mut hex, mut json) = (blocks("hex"), blocks("json"));
    for Example { name, key, value, check } in examples() {
        let (database, example) = name.split_once(' ').unwrap();
        let mut take = |part: &str| {
            let name = format!("{database} {part} {example}");
            bytes(&hex.remove(&name).unwrap_or_else(|| panic!("no block `{name}`")))
        };
        let (key_shown, value_shown) = (take("key"), take("value"));
        assert_eq!(key_shown, key, "key of {name}");
        assert_eq!(value_shown, value, "value of {name}");
        check(&key_shown, &value_shown);
        let shown = json.remove(name).unwrap_or_else(|| panic!("no block `json {name}`"));
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(decode(&value_shown, Value::read).unwrap().to_json(), shown, "{name}");
    }
    assert!(hex.is_empty() && json.is_empty(), "blocks no test knows: {:?} {:?}", hex.keys(), json.keys());
}

#[test]
fn the_hashes_in_the_examples_are_those_of_the_bodies() {
    for Example { name, value, .. } in examples() {
        if name.starts_with("documents") {
            let row = DocumentRow::decode(&value).unwrap();
            assert_eq!(row.state_hash, row.document.body.hash(), "{name}");
        }
    }
}
