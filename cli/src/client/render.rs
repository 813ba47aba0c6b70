//! Documents and updates, for people and as JSON.

use fieldstream_client::WatchEvent;
use fieldstream_shared::change::{Change, Primitive};
use fieldstream_shared::document::{Body, Document};
use fieldstream_shared::read::Listed;
use fieldstream_shared::value::map_to_json;
use serde_json::{Value as Json, json};
use std::time::{Duration, UNIX_EPOCH};

/// Microseconds since the epoch as `2026-01-31T12:00:00.123456Z`.
pub(crate) fn time(time_us: u64) -> String {
    // Beyond the year 9999 there is no such form.
    let time = Duration::from_micros(time_us.min(253_402_300_799_000_000));
    humantime::format_rfc3339_micros(UNIX_EPOCH + time).to_string()
}

/// A document with everything known of it.
pub(crate) fn document_json(id: &str, document: &Document) -> Json {
    json!({
        "document": id,
        "revision": document.revision,
        "kind": document.body.kind().name(),
        "time": time(document.time_us),
        "state_hash": format!("{:016x}", document.hash()),
        "body": document.body.to_json(),
    })
}

/// A body as people want to see it: text as it is, structured as JSON.
pub(crate) fn body(body: &Body, pretty: bool) -> String {
    match body {
        Body::Absent => String::new(),
        Body::Text(text) if pretty && !text.is_empty() && !text.ends_with('\n') => format!("{text}\n"),
        Body::Text(text) => text.clone(),
        Body::Structured(_) if pretty => format!("{:#}\n", body.to_json()),
        Body::Structured(_) => format!("{}\n", body.to_json()),
    }
}

/// A listed document.
pub(crate) fn listed_json(listed: &Listed) -> Json {
    json!({
        "document": listed.document.as_str(),
        "revision": listed.revision,
        "kind": listed.kind.name(),
        "bytes": listed.bytes,
        "time": time(listed.time_us),
    })
}

/// One primitive of a change as `{"op": …}`.
pub(crate) fn primitive_json(primitive: &Primitive) -> Json {
    match primitive {
        Primitive::SetText(text) => json!({ "op": "set_text", "text": text }),
        Primitive::SetMap(map) => json!({ "op": "set_map", "map": map_to_json(map) }),
        Primitive::Append(text) => json!({ "op": "append", "text": text }),
        Primitive::Splice(edits) => {
            let edits: Vec<Json> = edits.iter().map(|e| json!([e.position, e.deleted, e.inserted])).collect();
            json!({ "op": "splice", "edits": edits })
        }
        Primitive::Merge(map) => json!({ "op": "merge", "map": map_to_json(map) }),
        Primitive::SetAt(path, value) => json!({ "op": "set_at", "path": path, "value": value.to_json() }),
        Primitive::Delete => json!({ "op": "delete" }),
    }
}

/// One event of a watch as a JSON object.
pub(crate) fn event_json(id: &str, event: &WatchEvent) -> Json {
    match event {
        WatchEvent::Snapshot { recovered, document } => {
            let mut object = document_json(id, document);
            object["event"] = "snapshot".into();
            object["recovered"] = (*recovered).into();
            object
        }
        WatchEvent::Resumed => json!({ "event": "resumed", "document": id, "recovered": true }),
        WatchEvent::Updated { version, client, number, change } => json!({
            "event": "updated",
            "document": id,
            "revision": version.revision,
            "time": time(version.time_us),
            "state_hash": format!("{:016x}", version.state_hash),
            "client": client.as_str(),
            "number": number,
            "change": change.iter().map(primitive_json).collect::<Vec<_>>(),
        }),
        // Events a newer SDK may add say nothing that could be shown here.
        #[allow(unreachable_patterns)]
        _ => json!({ "event": "other", "document": id }),
    }
}

/// One event of a watch as a line for people; the first snapshot of a watch misses nothing.
pub(crate) fn event_line(id: &str, event: &WatchEvent, is_first: bool) -> String {
    match event {
        WatchEvent::Snapshot { document, recovered } => {
            let lost = if *recovered || is_first { "" } else { ", updates in between are not shown" };
            let state =
                if document.exists() { short(&document.body.to_json().to_string()) } else { "does not exist".into() };
            format!("{id} at revision {}{lost}: {state}", document.revision)
        }
        WatchEvent::Resumed => format!("{id} resumed: nothing was missed"),
        WatchEvent::Updated { version, client, number, change } => {
            format!(
                "{} {id} revision {} by {client} #{number}: {}",
                time(version.time_us),
                version.revision,
                summary(change)
            )
        }
        #[allow(unreachable_patterns)]
        _ => id.to_owned(),
    }
}

fn summary(change: &Change) -> String {
    let parts: Vec<String> = change.iter().map(primitive_summary).collect();
    short(&parts.join(", "))
}

fn primitive_summary(primitive: &Primitive) -> String {
    match primitive {
        Primitive::SetText(text) => format!("= {text:?}"),
        Primitive::SetMap(map) => format!("= {}", map_to_json(map)),
        Primitive::Append(text) => format!("+ {text:?}"),
        Primitive::Splice(edits) => {
            let edits: Vec<String> =
                edits.iter().map(|e| format!("@{} -{} +{:?}", e.position, e.deleted, e.inserted)).collect();
            edits.join(" ")
        }
        Primitive::Merge(map) => format!("merge {}", map_to_json(map)),
        Primitive::SetAt(path, value) => format!("{} = {}", path.join("."), value.to_json()),
        Primitive::Delete => "deleted".to_owned(),
    }
}

/// So much of a text as fits a line.
fn short(text: &str) -> String {
    const MOST: usize = 200;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_printed_as_they_are_and_readable_on_a_terminal() {
        let text = Body::Text("a".into());
        assert_eq!((body(&text, false), body(&text, true)), ("a".into(), "a\n".into()));
        assert_eq!(body(&Body::Absent, true), "");
        assert_eq!(body(&Body::Structured(Default::default()), false), "{}\n");
        let document = Document { revision: 2, time_us: 1_000_000, body: text };
        let json = document_json("d", &document);
        assert_eq!(json["time"], "1970-01-01T00:00:01.000000Z");
        assert_eq!((json["revision"].as_u64(), json["body"].as_str()), (Some(2), Some("a")));
        assert_eq!(time(u64::MAX), "9999-12-31T23:59:59.000000Z");
    }

    #[test]
    fn long_lines_are_cut_between_characters() {
        assert_eq!(short(&"ä".repeat(300)).chars().count(), 201);
        assert_eq!(summary(&vec![Primitive::Delete]), "deleted");
    }
}
