//! `docs/PROTOCOL.md` says what the code does: every example's bytes are what the encoder writes
//! and what the decoder reads, and the table of codes is the code's.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use fieldstream_shared::change::{Change, Edit, Primitive, Version, read_change, write_change};
use fieldstream_shared::code::Code;
use fieldstream_shared::document::Kind;
use fieldstream_shared::frame::{
    Attempt, FromClient, FromServer, Hello, Instruct, Limits, Snapshot, Update, Watch, WatchMode, Welcome,
};
use fieldstream_shared::ids::DocumentId;
use fieldstream_shared::instruction::{Content, Operation};
use fieldstream_shared::limits;
use fieldstream_shared::msgpack::decode;
use fieldstream_shared::outcome::{AckLevel, Outcome};
use fieldstream_shared::read::Listed;
use fieldstream_shared::trace::{Hop, KnownClock, Stamp, Stamps, clock::Offset};
use fieldstream_shared::value::{Map, Value};
use std::collections::BTreeMap;

fn document() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/PROTOCOL.md");
    std::fs::read_to_string(path).expect("docs/PROTOCOL.md")
}

/// Fenced blocks that begin with "```hex NAME": the bytes of each. `#` begins a comment.
fn examples(text: &str) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(name) = line.strip_prefix("```hex ") else { continue };
        let mut bytes = Vec::new();
        for line in lines.by_ref().take_while(|line| !line.starts_with("```")) {
            let hex = line.split('#').next().unwrap_or_default();
            bytes.extend(hex.split_whitespace().map(|b| u8::from_str_radix(b, 16).expect("two hex digits")));
        }
        assert!(found.insert(name.to_owned(), bytes).is_none(), "two examples named {name}");
    }
    found
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x} ")).collect()
}

fn check(examples: &mut BTreeMap<String, Vec<u8>>, name: &str, encoded: &[u8]) {
    let documented = examples.remove(name).unwrap_or_default();
    assert_eq!(hex(&documented), hex(encoded), "example {name}");
}

const OPERATION: &[u8] = &[0x92, 0x03, 0xa2, b'h', b'i'];

fn from_client() -> Vec<(&'static str, FromClient<'static>)> {
    let watch =
        Watch { document: "site7/boiler-1", revision: 3, state_hash: 0x0123_4567_89ab_cdef, mode: WatchMode::Changes };
    let fresh = Watch { document: "d", revision: 0, state_hash: 0, mode: WatchMode::Bodies };
    let content = Content { document: "d", if_revision: None, operation: OPERATION };
    let instruct = Instruct { number: 4, settled: 2, resent: false, traced: false, ack: AckLevel::Applied, content };
    let conditional = Content { if_revision: Some(3), ..content };
    let hello = Hello {
        protocol: 1,
        client: "boiler-1",
        token: Some("s3cret"),
        epoch: 1_800_000_000_000_000,
        sent_upto: 3,
        watches: vec![watch],
        attempt: Attempt { instance: 7, number: 2 },
    };
    vec![
        ("HELLO", FromClient::Hello(hello)),
        ("INSTRUCT", FromClient::Instruct(instruct)),
        (
            "INSTRUCT-resent",
            FromClient::Instruct(Instruct { resent: true, ack: AckLevel::Stored, content: conditional, ..instruct }),
        ),
        ("INSTRUCT-traced", FromClient::Instruct(Instruct { traced: true, ..instruct })),
        ("WATCH", FromClient::Watch(fresh)),
        ("UNWATCH", FromClient::Unwatch { document: "d" }),
        ("GET", FromClient::Get { request: 7, document: "d" }),
        ("LIST", FromClient::List { request: 8, prefix: "site7/", after: "", limit: 100 }),
        ("PING", FromClient::Ping { nonce: 5 }),
        ("PING-clocks", FromClient::PingClock { nonce: 5 }),
        ("SYNC", FromClient::Sync { request: 9 }),
        ("BYE", FromClient::Bye),
    ]
}

fn from_server() -> Vec<(&'static str, FromServer<'static>)> {
    let version = Version { revision: 4, state_hash: 0x0123_4567_89ab_cdef, time_us: 1_800_000_000_000_000 };
    let limits =
        Limits { window: 32, frame_bytes: limits::FRAME_BYTES_MAX as u64, watches: 1024, keepalive_ms: 90_000 };
    let welcome = Welcome { session: 17, limits, time_us: 1_800_000_000_000_000, log_id: 42 };
    let outcome = |level, outcome| FromServer::Outcome { epoch: 1, number: 4, level, outcome };
    let update =
        Update { document: "d", version, client: "c", number: 4, change: &[0x91, 0x92, 0x03, 0xa2, b'h', b'i'] };
    let snapshot = Snapshot { document: "d", version, kind: Kind::Text, total_bytes: 2, offset: 0, piece: b"hi" };
    let listed = Listed {
        document: DocumentId::new("site7/a").expect("an id"),
        revision: 4,
        kind: Kind::Structured,
        bytes: 20,
        time_us: 1_800_000_000_000_000,
    };
    let stamp = |(hop, at_us)| Stamp { hop, at_us };
    let stamps = [(Hop::ProcessorRead, 1_800_000_000_000_000), (Hop::ProcessorApplied, 1_800_000_000_000_050)];
    let stamps = stamps.map(stamp).to_vec();
    vec![
        ("WELCOME", FromServer::Welcome(welcome)),
        ("OUTCOME-logged", outcome(AckLevel::Logged, None)),
        ("OUTCOME-applied", outcome(AckLevel::Applied, Some(Outcome::Applied { revision: 4 }))),
        ("OUTCOME-refused", outcome(AckLevel::Applied, Some(Outcome::Refused(Code::CONFLICT)))),
        ("OUTCOME-dead", outcome(AckLevel::Stored, Some(Outcome::Dead(Code::HANDLER_PANICKED)))),
        ("UPDATE", FromServer::Update(update)),
        ("SNAPSHOT", FromServer::Snapshot(snapshot.clone())),
        ("WATCHING", FromServer::Watching { document: "d", recovered: true }),
        ("GOT", FromServer::Got { request: 7, snapshot }),
        ("LISTED", FromServer::Listed { request: 8, documents: vec![listed] }),
        ("PAUSE", FromServer::Pause { retry_after_ms: 2000 }),
        ("RESUME", FromServer::Resume),
        ("PONG", FromServer::Pong { nonce: 5, time_us: 1_800_000_000_000_000 }),
        (
            "PONG-clocks",
            FromServer::PongClock {
                nonce: 5,
                time_us: 1_800_000_000_000_000,
                clock: (9, 1_800_000_000_000_000),
                others: vec![KnownClock { clock: 10, offset: Offset { ahead_us: -70, uncertainty_us: 25 } }],
            },
        ),
        ("CLOSE", FromServer::Close { code: Code::IDLE, reason: "nothing was heard", retry_after_ms: 0 }),
        ("REFUSED", FromServer::Refused { request: 7, document: "d", code: Code::FORBIDDEN }),
        ("SYNCED", FromServer::Synced { request: 9 }),
        ("TRACE", FromServer::Trace { epoch: 1, number: 4, stamps: Stamps { member: 3, clock: 9, stamps } }),
    ]
}

fn map() -> Map {
    [("a".to_owned(), Value::Int(1)), ("b".to_owned(), Value::Nil)].into_iter().collect()
}

fn operations() -> Vec<(&'static str, Operation)> {
    let edits = vec![Edit { position: 1, deleted: 2, inserted: "hi".into() }];
    vec![
        ("put-text", Operation::PutText("hi".into())),
        ("put-map", Operation::PutMap(map())),
        ("append", Operation::Append("hi".into())),
        ("splice", Operation::Splice(edits)),
        ("merge", Operation::Merge(map())),
        ("add", Operation::Add(vec!["a".into(), "b".into()], Value::Float(0.5))),
        ("delete", Operation::Delete),
        ("custom", Operation::Custom("reset".into(), vec![0xc0])),
    ]
}

fn primitives() -> Vec<(&'static str, Primitive)> {
    let edits = vec![Edit { position: 1, deleted: 2, inserted: "hi".into() }];
    vec![
        ("set-text", Primitive::SetText("hi".into())),
        ("set-map", Primitive::SetMap(map())),
        ("change-append", Primitive::Append("hi".into())),
        ("change-splice", Primitive::Splice(edits)),
        ("change-merge", Primitive::Merge(map())),
        ("set-at", Primitive::SetAt(vec!["a".into()], Value::Int(-3))),
        ("change-delete", Primitive::Delete),
    ]
}

#[test]
fn examples_are_the_bytes_of_the_code() {
    let mut examples = examples(&document());
    for (name, frame) in from_client() {
        let mut out = Vec::new();
        frame.encode(&mut out);
        check(&mut examples, name, &out);
        assert_eq!(FromClient::decode(&out[4..]), Ok(frame), "{name}");
    }
    for (name, frame) in from_server() {
        let mut out = Vec::new();
        frame.encode(&mut out);
        check(&mut examples, name, &out);
        assert_eq!(FromServer::decode(&out[4..]), Ok(frame), "{name}");
    }
    for (name, operation) in operations() {
        let mut out = Vec::new();
        operation.write(&mut out);
        check(&mut examples, name, &out);
        assert_eq!(decode(&out, Operation::read), Ok(operation), "{name}");
    }
    for (name, primitive) in primitives() {
        let (mut out, change): (_, Change) = (Vec::new(), vec![primitive]);
        write_change(&change, &mut out);
        check(&mut examples, name, &out);
        assert_eq!(decode(&out, read_change), Ok(change), "{name}");
    }
    assert!(examples.is_empty(), "examples nobody checks: {:?}", examples.keys());
}

/// The cells of table rows that begin with a number.
fn numbered_rows(text: &str) -> Vec<Vec<&str>> {
    text.lines()
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"))
        .map(|line| line.split(" | ").map(str::trim).collect::<Vec<_>>())
        .filter(|cells| cells[0].parse::<u16>().is_ok())
        .collect()
}

#[test]
fn the_table_of_codes_is_complete() {
    let text = document();
    let section = text.split("## Codes").nth(1).expect("a section named Codes").split("\n## ").next();
    let documented: Vec<(String, String, String)> = numbered_rows(section.unwrap_or_default())
        .into_iter()
        .map(|cells| (cells[0].to_owned(), cells[1].trim_matches('`').to_owned(), cells[2].to_owned()))
        .collect();
    let known: Vec<(String, String, String)> =
        Code::ALL.iter().map(|c| (c.0.to_string(), c.name().to_owned(), c.meaning().to_owned())).collect();
    assert_eq!(documented, known);
}

#[test]
fn the_table_of_limits_is_right() {
    let text = document();
    for (name, value) in [
        ("frame, both ways", limits::FRAME_BYTES_MAX),
        ("HELLO", limits::HELLO_BYTES_MAX),
        ("instruction", limits::INSTRUCTION_BYTES_MAX),
        ("document", limits::DOCUMENT_BYTES_MAX),
        ("document id", limits::DOCUMENT_ID_BYTES_MAX),
        ("client id", limits::CLIENT_ID_BYTES_MAX),
        ("nesting", limits::DEPTH_MAX),
        ("window", limits::NUMBER_WINDOW as usize),
        ("watches per session", limits::WATCHES_MAX),
        ("watches in HELLO", limits::HELLO_WATCHES_MAX),
        ("edits in one splice", limits::EDITS_MAX),
        ("keys in a path", limits::PATH_KEYS_MAX),
        ("documents in a page", limits::LIST_PAGE_MAX),
        ("piece of a snapshot", limits::SNAPSHOT_CHUNK_BYTES_MAX),
        ("token", limits::TOKEN_BYTES_MAX),
        ("custom name", limits::CUSTOM_NAME_BYTES_MAX),
    ] {
        let row = format!("| {name} | {value} ");
        assert!(text.contains(&row), "no row `{row}`");
    }
}
