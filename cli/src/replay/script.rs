//! What a file says is to be written: its instructions and the content they end with.

use fieldstream_shared::change::Edit;
use fieldstream_shared::instruction::Operation;
use fieldstream_shared::limits::{DOCUMENT_BYTES_MAX, EDITS_MAX};
use serde::Deserialize;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Inserted bytes of one instruction, with room for ids and numbers below the instruction limit.
const INSERTED_BYTES_MAX: usize = 200 * 1024;
/// The largest file that is read, unpacked.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// The instructions of one file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Script {
    /// The file's name without its ending.
    pub(super) stem: String,
    /// The text before the first instruction; `None` if the first one creates the document.
    pub(super) start: Option<String>,
    /// What is played.
    pub(super) steps: Vec<Operation>,
    /// The text after the last instruction.
    pub(super) end: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Trace {
    kind: Option<String>,
    start_content: String,
    end_content: String,
    txns: Vec<Transaction>,
}

#[derive(Deserialize)]
struct Transaction {
    patches: Vec<(u64, u64, String)>,
}

impl Script {
    /// Reads a file; its kind follows from its name.
    ///
    /// # Errors
    /// One line that says what is wrong with which file.
    pub(super) fn read(path: &Path) -> Result<Script, String> {
        let about = |reason: String| format!("{}: {reason}", path.display());
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (stem, ending) = split_name(&name)
            .ok_or_else(|| about("expected a name that ends with .json.gz, .json or .csv".to_owned()))?;
        let text = read_text(path, ending == ".json.gz").map_err(about)?;
        let script =
            if ending == ".csv" { Script::lines(stem, text) } else { Script::trace(stem, &text).map_err(about)? };
        if script.end.len() > DOCUMENT_BYTES_MAX {
            let bytes = script.end.len();
            return Err(about(format!("ends with {bytes} bytes, a document has at most {DOCUMENT_BYTES_MAX}")));
        }
        Ok(script)
    }

    fn lines(stem: &str, text: String) -> Script {
        let steps = text.split_inclusive('\n').map(|line| Operation::Append(line.to_owned())).collect();
        Script { stem: stem.to_owned(), start: None, steps, end: text }
    }

    fn trace(stem: &str, text: &str) -> Result<Script, String> {
        let trace: Trace = serde_json::from_str(text).map_err(|error| format!("not an editing trace: {error}"))?;
        if trace.kind.as_deref() == Some("concurrent") {
            return Err("a concurrent trace; only traces in one order can be played (the *_flat files)".to_owned());
        }
        let mut steps = Vec::with_capacity(trace.txns.len());
        for transaction in trace.txns {
            let edits = transaction
                .patches
                .into_iter()
                .flat_map(|(position, deleted, inserted)| pieces(Edit { position, deleted, inserted }));
            steps.extend(splices(edits));
        }
        Ok(Script { stem: stem.to_owned(), start: Some(trace.start_content), steps, end: trace.end_content })
    }
}

/// Name and ending of a file that can be played.
fn split_name(name: &str) -> Option<(&str, &'static str)> {
    [".json.gz", ".json", ".csv"]
        .into_iter()
        .find_map(|ending| name.strip_suffix(ending).filter(|stem| !stem.is_empty()).map(|stem| (stem, ending)))
}

fn read_text(path: &Path, packed: bool) -> Result<String, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let mut source: Box<dyn Read> = if packed { Box::new(flate2::read::GzDecoder::new(file)) } else { Box::new(file) };
    let mut text = String::new();
    let read = source.by_ref().take(FILE_BYTES_MAX).read_to_string(&mut text);
    match read.map_err(|error| error.to_string())? as u64 {
        FILE_BYTES_MAX => Err(format!("larger than {FILE_BYTES_MAX} bytes")),
        _ => Ok(text),
    }
}

/// One edit, in several if it inserts more than one instruction can carry; none if it does nothing.
fn pieces(edit: Edit) -> Vec<Edit> {
    if edit.deleted == 0 && edit.inserted.is_empty() {
        return Vec::new();
    }
    let mut pieces = Vec::new();
    let (mut position, mut deleted) = (edit.position, edit.deleted);
    for part in parts(&edit.inserted) {
        pieces.push(Edit { position, deleted, inserted: part.to_owned() });
        position += part.chars().count() as u64;
        deleted = 0;
    }
    if pieces.is_empty() { vec![edit] } else { pieces }
}

/// A text cut into parts that fit an instruction, between code points.
fn parts(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text;
    while rest.len() > INSERTED_BYTES_MAX {
        let mut end = INSERTED_BYTES_MAX;
        while !rest.is_char_boundary(end) {
            end -= 1;
        }
        let (part, after) = rest.split_at(end);
        parts.push(part);
        rest = after;
    }
    if !rest.is_empty() {
        parts.push(rest);
    }
    parts
}

/// One splice with all edits; several only if one could not carry them.
fn splices(edits: impl Iterator<Item = Edit>) -> Vec<Operation> {
    let mut splices = Vec::new();
    let (mut list, mut bytes) = (Vec::new(), 0);
    for edit in edits {
        // An edit's two numbers take at most 18 bytes.
        let more = edit.inserted.len() + 24;
        if !list.is_empty() && (list.len() == EDITS_MAX || bytes + more > INSERTED_BYTES_MAX + 24) {
            splices.push(Operation::Splice(std::mem::take(&mut list)));
            bytes = 0;
        }
        bytes += more;
        list.push(edit);
    }
    if !list.is_empty() {
        splices.push(Operation::Splice(list));
    }
    splices
}

/// The operations that make a document hold this text, whatever it held before.
pub(super) fn set_text(text: &str) -> Vec<Operation> {
    let mut parts = parts(text).into_iter();
    let first = Operation::PutText(parts.next().unwrap_or_default().to_owned());
    std::iter::once(first).chain(parts.map(|part| Operation::Append(part.to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use fieldstream_shared::document::{Body, Document};
    use fieldstream_shared::instruction::decide;
    use fieldstream_shared::registry::Registry;
    use std::io::Write as _;

    fn file(name: &str, content: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        (directory, path)
    }

    fn played(script: &Script) -> Body {
        let mut body = script.start.clone().map_or(Body::Absent, Body::Text);
        for step in &script.steps {
            let document = Document { revision: 1, time_us: 0, body: body.clone() };
            for primitive in decide(&document, None, step.clone(), &Registry::default()).unwrap() {
                primitive.apply(&mut body).unwrap();
            }
        }
        body
    }

    const TRACE: &str = r#"{"startContent":"ab","endContent":"añ!b","txns":[
        {"time":"t","patches":[[1,0,"x"],[1,1,"ñ"],[0,0,""]]},
        {"time":"t","patches":[[0,0,""]]},
        {"time":"t","patches":[]},
        {"time":"t","patches":[[2,0,"!"]]}]}"#;

    #[test]
    fn a_trace_is_one_splice_per_transaction_that_does_something() {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(TRACE.as_bytes()).unwrap();
        for (name, content) in [("t.json", TRACE.as_bytes().to_vec()), ("t.json.gz", packed.finish().unwrap())] {
            let (_directory, path) = file(name, &content);
            let script = Script::read(&path).unwrap();
            assert_eq!((script.stem.as_str(), script.steps.len()), ("t", 2));
            assert!(matches!(&script.steps[0], Operation::Splice(edits) if edits.len() == 2));
            assert_eq!(played(&script), Body::Text(script.end));
        }
    }

    #[test]
    fn a_csv_is_one_append_per_line_with_its_newline() {
        let (_directory, path) = file("s.csv", b"timestamp,value\r\n1,2\n3,4");
        let script = Script::read(&path).unwrap();
        assert_eq!(script.steps.len(), 3);
        assert_eq!(script.steps[0], Operation::Append("timestamp,value\r\n".into()));
        assert_eq!(played(&script), Body::Text("timestamp,value\r\n1,2\n3,4".into()));
    }

    #[test]
    fn files_that_cannot_be_played_are_named_with_the_reason() {
        for (name, content, reason) in [
            ("x.txt", &b"x"[..], "expected a name"),
            (".csv", b"x", "expected a name"),
            ("x.json", b"{}", "not an editing trace"),
            ("x.json", br#"{"kind":"concurrent","startContent":"","endContent":"","txns":[]}"#, "concurrent"),
            ("x.json.gz", b"this is certainly not packed", "gzip"),
            ("x.csv", b"\xff\n", "UTF-8"),
        ] {
            let (_directory, path) = file(name, content);
            let error = Script::read(&path).unwrap_err();
            assert!(error.contains(reason) && error.contains(name), "{error}");
        }
        assert!(Script::read(Path::new("/nowhere.csv")).is_err());
    }

    #[test]
    fn what_one_instruction_cannot_carry_becomes_several() {
        let long = "ä".repeat(INSERTED_BYTES_MAX);
        let operations = set_text(&long);
        assert!(operations.len() > 1);
        let script = Script { stem: String::new(), start: None, steps: operations, end: long.clone() };
        assert_eq!(played(&script), Body::Text(long.clone()));
        let steps = splices(pieces(Edit { position: 1, deleted: 2, inserted: long.clone() }).into_iter());
        assert!(steps.len() > 1);
        let script = Script { stem: String::new(), start: Some("abcd".into()), steps, end: String::new() };
        assert_eq!(played(&script), Body::Text(format!("a{long}d")));
        let many = (0..EDITS_MAX as u64 + 1).map(|_| Edit { position: 0, deleted: 0, inserted: "x".into() });
        assert_eq!(splices(many).len(), 2);
        assert_eq!(set_text(""), [Operation::PutText(String::new())]);
    }
}
