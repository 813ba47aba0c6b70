//! What stands in a column of a report, for people and for programs.

use super::changes;
use crate::client::render::time;
use fieldstream_shared::change::Change;
use fieldstream_shared::document::Body;
use serde_json::{Value as Json, json};

/// A column.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column {
    /// Its name in JSON and CSV.
    pub(super) name: &'static str,
    /// Its heading in a table; `None`: it is not in tables.
    pub(super) heading: Option<&'static str>,
    /// Whether it becomes narrower when the terminal is too narrow.
    pub(super) shrinks: bool,
}

impl Column {
    /// A column of a table.
    pub(super) const fn new(name: &'static str, heading: &'static str) -> Column {
        Column { name, heading: Some(heading), shrinks: false }
    }

    /// One that becomes narrower.
    pub(super) const fn wide(name: &'static str, heading: &'static str) -> Column {
        Column { name, heading: Some(heading), shrinks: true }
    }

    /// One for programs only.
    pub(super) const fn detail(name: &'static str) -> Column {
        Column { name, heading: None, shrinks: false }
    }
}

/// What stands in it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Cell {
    /// Nothing is known.
    Unknown,
    /// Text.
    Text(String),
    /// A number.
    Number(u64),
    /// Microseconds since the Unix epoch.
    Time(u64),
    /// Microseconds that went by, told in seconds.
    Elapsed(u64),
    /// A state hash.
    Hash(u64),
    /// A bar, for people only.
    Bar(String),
    /// What a document holds.
    Body(Body),
    /// What an event did to a document.
    Change(Change),
    /// A value in a structured document; `None` where there is none.
    Value(Option<Json>),
}

/// What comes from devices must not move a terminal's cursor.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' => '⏎',
            '\t' => ' ',
            c if c.is_control() => '?',
            c => c,
        })
        .collect()
}

/// Microseconds as seconds with three digits behind the point.
fn seconds(us: u64) -> f64 {
    (us / 1_000) as f64 / 1_000.0
}

impl Cell {
    /// As JSON.
    pub(super) fn json(&self) -> Json {
        match self {
            Cell::Unknown | Cell::Value(None) => Json::Null,
            Cell::Text(text) | Cell::Bar(text) => json!(text),
            Cell::Number(n) => json!(n),
            Cell::Time(us) => json!(time(*us)),
            Cell::Elapsed(us) => json!(seconds(*us)),
            Cell::Hash(hash) => json!(format!("{hash:016x}")),
            Cell::Body(body) => body.to_json(),
            Cell::Change(change) => changes::json(change),
            Cell::Value(Some(value)) => value.clone(),
        }
    }

    /// As a field of CSV, not quoted yet: text as it is, other values as JSON.
    pub(super) fn csv(&self) -> String {
        match self.json() {
            Json::Null => String::new(),
            Json::String(text) => text,
            other => other.to_string(),
        }
    }

    /// For people, in one line.
    pub(super) fn shown(&self) -> String {
        match self {
            Cell::Unknown => "-".to_owned(),
            Cell::Elapsed(us) => format!("{:.1} s", seconds(*us)),
            // The beginning of a minute, an hour or a day.
            Cell::Time(us) if us % 1_000_000 == 0 => time(*us).replace(".000000Z", "Z"),
            Cell::Body(Body::Text(text)) => printable(text),
            Cell::Body(Body::Absent) | Cell::Value(None) => String::new(),
            Cell::Change(change) => printable(&changes::summary(change)),
            Cell::Value(Some(value)) => printable(&value.to_string()),
            other => printable(&other.csv()),
        }
    }

    /// Whether it stands at the right of its column.
    pub(super) fn is_number(&self) -> bool {
        matches!(self, Cell::Number(_) | Cell::Elapsed(_))
    }
}

/// A field of CSV, quoted if it has to be (RFC 4180).
pub(super) fn csv_field(text: &str) -> String {
    match text.contains([',', '"', '\r', '\n']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fieldstream_shared::change::Primitive;

    #[test]
    fn cells_read_the_same_for_people_and_programs() {
        let told = |cell: Cell| (cell.json(), cell.csv(), cell.shown());
        assert_eq!(told(Cell::Unknown), (Json::Null, String::new(), "-".into()));
        assert_eq!(told(Cell::Number(7)), (json!(7), "7".into(), "7".into()));
        let at = "1970-01-01T00:00:01.000001Z".to_owned();
        assert_eq!(told(Cell::Time(1_000_001)), (json!(at), at.clone(), at));
        assert_eq!(Cell::Time(1_000_000).shown(), "1970-01-01T00:00:01Z");
        assert_eq!(told(Cell::Elapsed(1_234_567)), (json!(1.234), "1.234".into(), "1.2 s".into()));
        let body = Body::Text("a\n\x1b[1mb".into());
        assert_eq!(told(Cell::Body(body)), (json!("a\n\x1b[1mb"), "a\n\x1b[1mb".into(), "a⏎?[1mb".into()));
        assert_eq!(Cell::Body(Body::Structured(Default::default())).csv(), "{}");
        let change = Cell::Change(vec![Primitive::Delete]);
        assert_eq!(told(change), (json!([{"op": "delete"}]), r#"[{"op":"delete"}]"#.into(), "deleted".into()));
        assert_eq!(Cell::Hash(255).csv(), "00000000000000ff");
    }

    #[test]
    fn fields_are_quoted_when_they_have_to_be() {
        for (text, field) in
            [("a b", "a b"), ("", ""), ("a,b", "\"a,b\""), ("\"", "\"\"\"\""), ("a\nb", "\"a\nb\""), ("\r", "\"\r\"")]
        {
            assert_eq!(csv_field(text), field);
        }
    }
}
