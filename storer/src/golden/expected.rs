//! `expected.json`: what a golden file holds, decoded, and the states its history leads to.

use super::scene::Scene;
use super::{body_json, row_json};
use crate::tables::DumpedRow;
use fieldstream_shared::code::Code;
use serde_json::{Map, Value as Json, json};
use std::fmt::Write;

const ABOUT: &str = "What data.mdb holds: rows by database as [key, value], bytes as {\"$bin\": hex}; the states each \
                     document went through; where its history begins; the documents that are not deleted; and the \
                     names of codes. Made with data.mdb by storer/src/golden.";

/// The whole file, one row per line.
pub(super) fn text(scene: &Scene, rows: &[DumpedRow]) -> String {
    let mut databases: Map<String, Json> = Map::new();
    let mut begins: Map<String, Json> = Map::new();
    let mut listed = Vec::new();
    for row in rows {
        let (key, value) = row_json(row);
        match row.0 {
            "history" => {
                begins.entry(key[0].as_str().unwrap()).or_insert_with(|| key[1].clone());
            }
            "documents" if value["kind"] != "absent" => listed.push(key.clone()),
            _ => {}
        }
        let rows = databases.entry(row.0).or_insert_with(|| json!([]));
        rows.as_array_mut().unwrap().push(json!([key, value]));
    }
    let mut states: Map<String, Json> = Map::new();
    for (document, version, body) in &scene.states {
        let states = states.entry(document.clone()).or_insert_with(|| json!([]));
        states.as_array_mut().unwrap().push(json!({
            "revision": version.revision,
            "time_us": version.time_us,
            "state_hash": version.state_hash,
            "kind": body.kind().name(),
            "body": body_json(body),
        }));
    }
    let codes: Map<String, Json> = Code::ALL.iter().map(|code| (code.0.to_string(), json!(code.name()))).collect();
    let mut out = format!("{{\n\"about\": {},\n\"rows\": {{", json!(ABOUT));
    lists(&databases, &mut out);
    out.push_str("},\n\"states\": {");
    lists(&states, &mut out);
    write!(
        out,
        "}},\n\"history_begins\": {},\n\"listed\": {},\n\"codes\": {}\n}}\n",
        json!(begins),
        json!(listed),
        json!(codes)
    )
    .unwrap();
    out
}

fn lists(lists: &Map<String, Json>, out: &mut String) {
    for (n, (name, items)) in lists.iter().enumerate() {
        write!(out, "{}\n{}: [", if n == 0 { "" } else { "," }, json!(name)).unwrap();
        for (n, item) in items.as_array().unwrap().iter().enumerate() {
            write!(out, "{}\n{item}", if n == 0 { "" } else { "," }).unwrap();
        }
        out.push(']');
    }
}
