//! Changes for people and as JSON.

use crate::client::render::primitive_json;
use fieldstream_shared::change::{Change, Edit, Primitive};
use fieldstream_shared::value::map_to_json;
use serde_json::Value as Json;

/// A change as a list of `{"op": …}`.
pub(super) fn json(change: &Change) -> Json {
    Json::Array(change.iter().map(primitive_json).collect())
}

/// A change in words.
pub(super) fn summary(change: &Change) -> String {
    let parts: Vec<String> = change.iter().map(primitive).collect();
    parts.join("; ")
}

fn characters(text: &str) -> String {
    match text.chars().count() {
        1 => "1 char".to_owned(),
        n => format!("{n} chars"),
    }
}

fn edit(edit: &Edit) -> String {
    let Edit { position, deleted, inserted } = edit;
    let gone = if *deleted > 0 { format!(" -{deleted}") } else { String::new() };
    let come = if inserted.is_empty() { String::new() } else { format!(" +{inserted:?}") };
    format!("@{position}{gone}{come}")
}

fn primitive(primitive: &Primitive) -> String {
    match primitive {
        Primitive::SetText(text) => format!("text {} {text:?}", characters(text)),
        Primitive::SetMap(map) => format!("map {}", map_to_json(map)),
        Primitive::Append(text) => format!("append +{text:?}"),
        Primitive::Splice(edits) => {
            let edits: Vec<String> = edits.iter().map(edit).collect();
            format!("edit {}", edits.join(" "))
        }
        Primitive::Merge(map) => format!("merge {}", map_to_json(map)),
        Primitive::SetAt(path, value) => format!("set {} = {}", path.join("."), value.to_json()),
        Primitive::Delete => "deleted".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fieldstream_shared::value::Value;

    #[test]
    fn every_change_can_be_read() {
        let edits = [(3, 1, "l"), (0, 0, "x"), (5, 2, "")];
        let edit =
            |(position, deleted, inserted): (u64, u64, &str)| Edit { position, deleted, inserted: inserted.into() };
        let map = || [("a".to_owned(), Value::Nil)].into_iter().collect();
        for (change, said) in [
            (vec![Primitive::SetText("añ".into())], "text 2 chars \"añ\""),
            (vec![Primitive::SetText("a".into()), Primitive::Delete], "text 1 char \"a\"; deleted"),
            (vec![Primitive::SetMap(map())], r#"map {"a":null}"#),
            (vec![Primitive::Append("b\n".into())], r#"append +"b\n""#),
            (vec![Primitive::Splice(edits.map(edit).into())], r#"edit @3 -1 +"l" @0 +"x" @5 -2"#),
            (vec![Primitive::Merge(map())], r#"merge {"a":null}"#),
            (vec![Primitive::SetAt(vec!["a".into(), "b".into()], Value::Int(3))], "set a.b = 3"),
        ] {
            assert_eq!(summary(&change), said);
            assert_eq!(json(&change).as_array().map(Vec::len), Some(change.len()));
        }
    }
}
