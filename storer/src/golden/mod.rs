//! The golden files in `storer/golden`: small LMDB files and what every row of them says, which readers
//! in any language can be tested with (`docs/FORMAT.md`). Each folder stays as it is once it is released:
//! what is read from it is the contract.
//!
//! `FIELDSTREAM_TEST_GOLDEN=new cargo test -p fieldstream-storer golden` makes [`NEWEST`] anew. When the
//! format has grown, name another folder there first, so that the old one is read on.

mod expected;
mod scene;

use crate::projection::State;
use crate::rows::{
    ByTimeRow, CHECKPOINT_PREFIX, CheckpointRow, DeadLetterKey, DeadLetterRow, DocumentRow, FORMAT_KEY, FormatRow,
    HistoryKey, HistoryRow, decode_mark, parse_by_time_key, parse_client_key,
};
use crate::tables::{DumpedRow, ReadTables, Tables};
use fieldstream_shared::document::{Body, Document};
use fieldstream_shared::ids::DocumentId;
use fieldstream_shared::msgpack::{DecodeError, decode};
use fieldstream_shared::value::{Value, map_to_json};
use scene::Scene;
use serde_json::{Value as Json, json};
use std::fs;
use std::path::{Path, PathBuf};

/// The folder that today's storer makes.
const NEWEST: &str = "v1";
const MAKE: &str = "FIELDSTREAM_TEST_GOLDEN";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// A key as JSON, by its database.
fn key_json(database: &str, key: &[u8]) -> Result<Json, DecodeError> {
    Ok(match database {
        "meta" | "documents" => json!(std::str::from_utf8(key).map_err(|_| DecodeError::InvalidUtf8)?),
        "history" => {
            let key = HistoryKey::decode(key)?;
            json!([key.document.as_str(), key.revision])
        }
        "by_time" => {
            let (time_us, change) = parse_by_time_key(key)?;
            json!([time_us, change.document.as_str(), change.revision])
        }
        "clients" => {
            let (client, partition) = parse_client_key(key)?;
            json!([client.as_str(), partition.0])
        }
        _ => {
            let key = DeadLetterKey::decode(key)?;
            json!([key.lane, key.sequence, key.event_index])
        }
    })
}

/// Whether the storer's own decoder takes a row.
fn decode_row(database: &str, key: &[u8], value: &[u8]) -> Result<(), DecodeError> {
    match database {
        "meta" if key == FORMAT_KEY.as_bytes() => FormatRow::decode(value).map(drop),
        "meta" if key.starts_with(CHECKPOINT_PREFIX.as_bytes()) => CheckpointRow::decode(value).map(drop),
        "documents" => DocumentRow::decode(value).map(drop),
        "history" => HistoryRow::decode(value).map(drop),
        "by_time" => ByTimeRow::decode(value).map(drop),
        "clients" => decode_mark(value).map(drop),
        "dead_letters" => DeadLetterRow::decode(value).map(drop),
        _ => Err(DecodeError::Expected("a row that this version knows")),
    }
}

fn body_json(body: &Body) -> Json {
    match body {
        Body::Absent => Json::Null,
        Body::Text(text) => json!(text),
        Body::Structured(map) => map_to_json(map),
    }
}

fn row_json((database, key, value): &DumpedRow) -> (Json, Json) {
    decode_row(database, key, value).unwrap_or_else(|e| panic!("{database} {key:02x?}: {e}"));
    (key_json(database, key).unwrap(), decode(value, Value::read).unwrap().to_json())
}

/// What a golden folder must hold, read from `expected.json`.
fn expected(folder: &Path) -> Json {
    serde_json::from_slice(&fs::read(folder.join("expected.json")).unwrap()).unwrap()
}

/// Opens a copy of a folder's file: readers note in a lock file beside it what they look at.
fn open(folder: &Path, copy: &Path) -> ReadTables {
    fs::copy(folder.join("data.mdb"), copy.join("data.mdb")).unwrap();
    Tables::open_read_only(copy).unwrap().read().unwrap()
}

fn folders() -> Vec<PathBuf> {
    let entries = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<_> = entries.filter(|path| path.is_dir()).collect();
    folders.sort();
    assert!(!folders.is_empty());
    folders
}

#[test]
fn todays_storer_writes_the_newest_golden_file() {
    let (scene, directory) = (Scene::play(), tempfile::tempdir().unwrap());
    let store = scene.store(directory.path());
    let rows = store.read().unwrap().dump().unwrap();
    let folder = root().join(NEWEST);
    if std::env::var_os(MAKE).is_some() {
        fs::create_dir_all(&folder).unwrap();
        let _ = fs::remove_file(folder.join("data.mdb"));
        store.copy_to(&folder.join("data.mdb")).unwrap();
        fs::write(folder.join("expected.json"), expected::text(&scene, &rows)).unwrap();
    }
    let copy = tempfile::tempdir().unwrap();
    let golden = open(&folder, copy.path()).dump().unwrap();
    let differ = rows.iter().zip(&golden).find(|(ours, theirs)| ours != theirs).map(|(ours, _)| row_json(ours));
    assert_eq!(differ, None, "{folder:?} is not what is written today: see the head of this file");
    assert_eq!(rows.len(), golden.len());
}

#[test]
fn every_row_of_every_golden_file_says_what_is_expected() {
    for folder in folders() {
        let (copy, expected) = (tempfile::tempdir().unwrap(), expected(&folder));
        let rows = open(&folder, copy.path()).dump().unwrap();
        let databases = expected["rows"].as_object().unwrap();
        for (database, listed) in databases {
            let found: Vec<Json> = rows.iter().filter(|row| row.0 == database).map(|r| json!(row_json(r))).collect();
            assert_eq!(&json!(found), listed, "{database} of {folder:?}");
        }
        assert_eq!(rows.len(), databases.values().map(|listed| listed.as_array().unwrap().len()).sum::<usize>());
    }
}

/// The state of a document after each revision there is, from its history alone.
fn states(read: &ReadTables, id: &DocumentId, first: u64, whole: &Body) -> Vec<Document> {
    let entries = read.history(id, first, usize::MAX).unwrap();
    let mut document = Document { body: whole.clone(), revision: first, time_us: entries[0].version.time_us };
    let mut states = vec![document.clone()];
    for entry in &entries[1..] {
        let change = decode(&entry.change, fieldstream_shared::change::read_change).unwrap();
        document.apply(&change, entry.version).unwrap();
        states.push(document.clone());
    }
    states
}

#[test]
fn the_storer_answers_from_golden_files_as_expected() {
    for folder in folders() {
        let (copy, expected) = (tempfile::tempdir().unwrap(), expected(&folder));
        let read = open(&folder, copy.path());
        for (id, listed) in expected["states"].as_object().unwrap() {
            let (id, listed) = (DocumentId::new(id).unwrap(), listed.as_array().unwrap());
            let begins = expected["history_begins"][id.as_str()].as_u64().unwrap();
            // What the first row tells: the whole state, or it is the first of all.
            let first = &listed[usize::try_from(begins - 1).unwrap()];
            let whole = match &first["body"] {
                Json::Null => Body::Absent,
                Json::String(text) => Body::Text(text.clone()),
                _ => match scene::value(&first["body"]) {
                    Value::Map(map) => Body::Structured(map),
                    other => panic!("{other:?}"),
                },
            };
            let states = states(&read, &id, begins, &whole);
            assert_eq!(states.len(), listed.len() + 1 - usize::try_from(begins).unwrap(), "{id}");
            for (state, listed) in states.iter().zip(&listed[usize::try_from(begins - 1).unwrap()..]) {
                assert_eq!(state.revision, listed["revision"], "{id}");
                assert_eq!(state.time_us, listed["time_us"], "{id}");
                assert_eq!(state.hash(), listed["state_hash"], "{id} at {}", state.revision);
                assert_eq!(body_json(&state.body), listed["body"], "{id} at {}", state.revision);
            }
            assert_eq!(read.documents(std::slice::from_ref(&id)).unwrap(), states[states.len() - 1..]);
            assert_eq!(read.document(&id).unwrap().unwrap().state_hash, states[states.len() - 1].hash());
        }
        let listed: Vec<String> = read.list("", "", 1000).unwrap().iter().map(|l| l.document.to_string()).collect();
        assert_eq!(json!(listed), expected["listed"]);
        for lane in 0..read.format().unwrap().unwrap().lanes {
            let letters = read.dead_letters(lane, (0, 0), 1000).unwrap();
            let wanted = expected["rows"]["dead_letters"].as_array().unwrap();
            assert_eq!(letters.len(), wanted.iter().filter(|row| row[0][0] == lane).count());
        }
    }
}
