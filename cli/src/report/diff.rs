//! `fieldstream report diff`: what changed in a document between two revisions.

use super::args::DiffArgs;
use super::cell::{Cell, Column};
use super::sheet::{Mode, Sheet};
use super::{Desk, failure};
use crate::client::render::{body, time};
use crate::exit::Failure;
use crate::output;
use fieldstream_shared::document::Body;
use fieldstream_shared::value::{Map, Value};
use fieldstream_storer::report::{ReportError, State};
use serde_json::json;
use similar::{ChangeTag, TextDiff};
use std::str::FromStr;
use std::time::Duration;

/// After so long a difference is told that is right, but not the shortest.
const SHORTEST_FOR: Duration = Duration::from_secs(5);

/// Two revisions, as `3..7` tells them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Revisions {
    /// The one before; 0 is before there was one.
    from: u64,
    /// The one after; `None`: the newest.
    to: Option<u64>,
}

impl FromStr for Revisions {
    type Err = String;

    fn from_str(text: &str) -> Result<Revisions, String> {
        let number = |text: &str| {
            text.parse::<u64>()
                .map_err(|_| "expected two revisions such as 3..7, or 3.., or 7 alone for 6..7".to_owned())
        };
        let revisions = match text.split_once("..") {
            Some((from, "")) => Revisions { from: number(from)?, to: None },
            Some((from, to)) => Revisions { from: number(from)?, to: Some(number(to)?) },
            None => {
                let to = number(text)?;
                Revisions { from: to.saturating_sub(1), to: Some(to) }
            }
        };
        Ok(revisions)
    }
}

/// One side: revision, when it was made, what the document was.
struct Side {
    revision: u64,
    time_us: Option<u64>,
    body: Body,
}

impl Side {
    fn of(desk: &mut Desk, document: &str, revision: u64) -> Result<Side, ReportError> {
        if revision == 0 {
            return Ok(Side { revision, time_us: None, body: Body::Absent });
        }
        let State { row, body } = desk.reports.state(document, revision)?;
        Ok(Side { revision, time_us: Some(row.version.time_us), body })
    }

    fn json(&self) -> serde_json::Value {
        json!({ "revision": self.revision, "time": self.time_us.map(time), "kind": self.body.kind().name() })
    }

    fn title(&self, document: &str) -> String {
        let at = self.time_us.map_or(String::new(), |us| format!("\t{}", time(us)));
        format!("{document} revision {}{at}", self.revision)
    }
}

pub(super) fn run(desk: &mut Desk, args: &DiffArgs) -> Result<(), Failure> {
    let document = &args.document;
    let (_, last) = desk.reports.revisions(document).map_err(failure)?;
    let before = Side::of(desk, document, args.revisions.from).map_err(failure)?;
    let after = Side::of(desk, document, args.revisions.to.unwrap_or(last)).map_err(failure)?;
    match (&before.body, &after.body) {
        (Body::Structured(was), Body::Structured(is)) => values(desk, document, &before, &after, (was, is)),
        (Body::Structured(was), Body::Absent) => values(desk, document, &before, &after, (was, &Map::new())),
        (Body::Absent, Body::Structured(is)) => values(desk, document, &before, &after, (&Map::new(), is)),
        _ => lines(desk, document, &before, &after),
    }
}

const LINES: [Column; 4] = [
    Column::new("line_before", "BEFORE"),
    Column::new("line_after", "AFTER"),
    Column::new("change", "CHANGE"),
    Column::wide("text", "TEXT"),
];

/// Texts, and documents that became another kind, line by line.
fn lines(desk: &Desk, document: &str, before: &Side, after: &Side) -> Result<(), Failure> {
    let text = |side: &Side| match &side.body {
        Body::Structured(_) => body(&side.body, true),
        other => body(other, false),
    };
    let (was, is) = (text(before), text(after));
    let diff = TextDiff::configure().timeout(SHORTEST_FOR).diff_lines(was.as_str(), is.as_str());
    let mut unified = diff.unified_diff();
    let unified = unified.context_radius(3).header(&before.title(document), &after.title(document)).to_string();
    if matches!(desk.mode, Mode::Table(_) | Mode::Lines) {
        if unified.is_empty() {
            eprintln!("no difference");
        }
        let colours = output::colours_on_stdout();
        // What stands in a document must not move a terminal's cursor; a pipe gets it as it is.
        let is_shown = |c: &char| !c.is_control() || matches!(c, '\n' | '\t') || matches!(desk.mode, Mode::Lines);
        let unified: String = unified.chars().map(|c| if is_shown(&c) { c } else { '\u{fffd}' }).collect();
        output::bytes(if colours { coloured(&unified) } else { unified }.as_bytes())?;
        eprintln!("{}", desk.stand.line());
        return Ok(());
    }
    let mut sheet = Sheet::begin(desk.mode, &desk.stand, "lines", &LINES);
    for change in diff.iter_all_changes() {
        let number = |index: Option<usize>| index.map_or(Cell::Unknown, |index| Cell::Number(index as u64 + 1));
        let what = match change.tag() {
            ChangeTag::Equal => continue,
            ChangeTag::Delete => "removed",
            ChangeTag::Insert => "added",
        };
        let text = change.value().to_owned();
        let (old, new) = (number(change.old_index()), number(change.new_index()));
        sheet.row(vec![old, new, Cell::Text(what.to_owned()), Cell::Text(text)])?;
    }
    beside(&mut sheet, document, before, after);
    sheet.beside("unified", unified.into());
    sheet.end()
}

fn beside(sheet: &mut Sheet, document: &str, before: &Side, after: &Side) {
    sheet.beside("document", document.into());
    sheet.beside("from", before.json());
    sheet.beside("to", after.json());
}

fn coloured(unified: &str) -> String {
    let line = |line: &str| {
        let colour = match line.as_bytes().first() {
            Some(b'+') => "\x1b[32m",
            Some(b'-') => "\x1b[31m",
            Some(b'@') => "\x1b[36m",
            _ => "",
        };
        if colour.is_empty() { format!("{line}\n") } else { format!("{colour}{line}\x1b[0m\n") }
    };
    unified.lines().map(line).collect()
}

const VALUES: [Column; 4] = [
    Column::wide("path", "PATH"),
    Column::new("change", "CHANGE"),
    Column::wide("before", "BEFORE"),
    Column::wide("after", "AFTER"),
];

/// A value that differs: path of keys, before, after.
type Difference<'a> = (Vec<&'a str>, Option<&'a Value>, Option<&'a Value>);

/// Structured documents, path by path.
fn values(desk: &Desk, document: &str, before: &Side, after: &Side, maps: (&Map, &Map)) -> Result<(), Failure> {
    let mut found = Vec::new();
    differences(maps.0, maps.1, &mut Vec::new(), &mut found);
    let mut sheet = Sheet::begin(desk.mode, &desk.stand, "changes", &VALUES);
    for (path, was, is) in found {
        let what = match (was, is) {
            (None, _) => "added",
            (_, None) => "removed",
            _ => "changed",
        };
        let value = |of: Option<&Value>| Cell::Value(of.map(Value::to_json));
        sheet.row(vec![Cell::Text(path.join(".")), Cell::Text(what.to_owned()), value(was), value(is)])?;
    }
    if sheet.rows() == 0 {
        eprintln!("no difference");
    }
    beside(&mut sheet, document, before, after);
    sheet.end()
}

/// The values that differ; maps are gone into where both sides have one.
fn differences<'a>(was: &'a Map, is: &'a Map, path: &mut Vec<&'a str>, found: &mut Vec<Difference<'a>>) {
    let added = is.keys().filter(|key| !was.contains_key(*key));
    let mut keys: Vec<&String> = was.keys().chain(added).collect();
    keys.sort_unstable();
    for key in keys {
        path.push(key);
        match (was.get(key), is.get(key)) {
            (Some(was), Some(is)) if was == is => {}
            (Some(Value::Map(was)), Some(Value::Map(is))) => differences(was, is, path, found),
            (was, is) => found.push((path.clone(), was, is)),
        }
        path.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_are_read_in_every_form() {
        let both = |from, to| Ok(Revisions { from, to });
        assert_eq!("3..7".parse(), both(3, Some(7)));
        assert_eq!("3..".parse(), both(3, None));
        assert_eq!("7".parse(), both(6, Some(7)));
        assert_eq!("0..1".parse(), both(0, Some(1)));
        for text in ["", "..", "..3", "a..b", "3...7", "-1..2"] {
            assert!(text.parse::<Revisions>().is_err(), "{text}");
        }
    }

    #[test]
    fn differences_are_found_at_every_depth() {
        let map = |json: serde_json::Value| match Value::from_json(&json) {
            Some(Value::Map(map)) => map,
            _ => panic!("not a map"),
        };
        let was = map(json!({"a": 1, "b": {"c": {"d": 2, "e": 3}, "f": []}, "g": {"h": 1}, "same": {"x": null}}));
        let is = map(json!({"b": {"c": {"d": 2, "e": "3", "n": 4}, "f": [0]}, "g": 1, "same": {"x": null}, "z": {}}));
        let mut found = Vec::new();
        differences(&was, &is, &mut Vec::new(), &mut found);
        let told: Vec<_> = found
            .iter()
            .map(|(path, was, is)| (path.join("."), was.map(Value::to_json), is.map(Value::to_json)))
            .collect();
        assert_eq!(
            told,
            [
                ("a".into(), Some(json!(1)), None),
                ("b.c.e".into(), Some(json!(3)), Some(json!("3"))),
                ("b.c.n".into(), None, Some(json!(4))),
                ("b.f".into(), Some(json!([])), Some(json!([0]))),
                ("g".into(), Some(json!({"h": 1})), Some(json!(1))),
                ("z".into(), None, Some(json!({}))),
            ]
        );
    }
}
