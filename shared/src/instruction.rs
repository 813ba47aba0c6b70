//! Instructions: what a client asks to be done to a document, and the rules that decide.

use crate::change::{Change, Edit, Misfit, Primitive, check_edits, code_points, read_path, write_path};
use crate::code::Code;
use crate::document::{Body, Document};
use crate::hash::hash_of;
use crate::limits::{CUSTOM_NAME_BYTES_MAX, DEPTH_MAX, DOCUMENT_BYTES_MAX, INSTRUCTION_BYTES_MAX};
use crate::msgpack::{DecodeError, Reader, Write, decode};
use crate::registry::Registry;
use crate::value::{self, Map, Value};
use xxhash_rust::xxh3::xxh3_64;

/// An operation on a document.
#[derive(Debug, Clone, PartialEq)]
pub enum Operation {
    /// The document becomes this text. Creates what is missing.
    PutText(String),
    /// The document becomes this map. Creates what is missing.
    PutMap(Map),
    /// Appends to a text. Creates what is missing.
    Append(String),
    /// Edits a text, all or nothing.
    Splice(Vec<Edit>),
    /// Merges into a structured document (RFC 7396). Creates what is missing.
    Merge(Map),
    /// Adds to the number at a path; a missing one counts as 0. Creates what is missing.
    Add(Vec<String>, Value),
    /// Deletes the document; its revision stays as a tombstone.
    Delete,
    /// A registered custom instruction with its arguments.
    Custom(String, Vec<u8>),
}

impl Operation {
    /// Appends the operation as `[tag, …]` (`docs/PROTOCOL.md`).
    pub fn write(&self, out: &mut Vec<u8>) {
        let head = |out: &mut Vec<u8>, tag: u64, n: usize| {
            out.array(n);
            out.u64(tag);
        };
        match self {
            Operation::PutText(text) => {
                head(out, 1, 2);
                out.str(text);
            }
            Operation::PutMap(map) => {
                head(out, 2, 2);
                value::write_map(map, out);
            }
            Operation::Append(text) => {
                head(out, 3, 2);
                out.str(text);
            }
            Operation::Splice(edits) => {
                head(out, 4, 2);
                Edit::write_all(edits, out);
            }
            Operation::Merge(patch) => {
                head(out, 5, 2);
                value::write_map(patch, out);
            }
            Operation::Add(path, amount) => {
                head(out, 6, 3);
                write_path(path, out);
                amount.write(out);
            }
            Operation::Delete => head(out, 7, 1),
            Operation::Custom(name, arguments) => {
                head(out, 8, 3);
                out.str(name);
                out.bin(arguments);
            }
        }
    }

    /// Reads an operation.
    ///
    /// # Errors
    /// [`DecodeError`] if it is none; [`refusal_of`] names the refusal.
    pub fn read(reader: &mut Reader<'_>) -> Result<Operation, DecodeError> {
        let n = reader.array()?;
        let tag = if n == 0 { 0 } else { reader.u64()? };
        Ok(match (tag, n) {
            (1, 2) => Operation::PutText(reader.str()?.to_owned()),
            (2, 2) => Operation::PutMap(value::read_map(reader)?),
            (3, 2) => Operation::Append(reader.str()?.to_owned()),
            (4, 2) => Operation::Splice(Edit::read_all(reader)?),
            (5, 2) => Operation::Merge(value::read_map(reader)?),
            (6, 3) => {
                let path = read_path(reader)?;
                match Value::read(reader)? {
                    amount @ (Value::Int(_) | Value::Float(_)) => Operation::Add(path, amount),
                    _ => return Err(DecodeError::Expected("a number")),
                }
            }
            (7, 1) => Operation::Delete,
            (8, 3) => {
                let name = reader.str()?;
                if name.is_empty() || name.len() > CUSTOM_NAME_BYTES_MAX {
                    return Err(DecodeError::OutOfRange("the name of a custom instruction"));
                }
                Operation::Custom(name.to_owned(), reader.bin()?.to_owned())
            }
            _ => return Err(DecodeError::Expected("an operation")),
        })
    }
}

/// The refusal that bytes which are no operation get.
pub fn refusal_of(error: DecodeError) -> Code {
    match error {
        DecodeError::TooDeep => Code::TOO_DEEP,
        DecodeError::Truncated
        | DecodeError::Expected(_)
        | DecodeError::InvalidUtf8
        | DecodeError::OutOfRange(_)
        | DecodeError::Trailing
        | DecodeError::UnknownVersion(_) => Code::INVALID_INSTRUCTION,
    }
}

/// The content of an instruction: document, condition and operation in their encoded form. What a
/// number stands for; its hash tells a resent number from a reused one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content<'a> {
    /// The document's id, unchecked.
    pub document: &'a str,
    /// The revision the document must have; 0 must not exist.
    pub if_revision: Option<u64>,
    /// The encoded operation ([`Operation::read`]).
    pub operation: &'a [u8],
}

impl Content<'_> {
    /// Appends the three elements.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.str(self.document);
        out.optional(self.if_revision, |out, n| out.u64(n));
        out.raw(self.operation);
    }

    /// 4-byte hash of the content: the low half of xxh3_64 over its canonical encoding.
    pub fn hash(&self) -> u32 {
        let mut head = Vec::with_capacity(self.document.len() + 16);
        head.str(self.document);
        head.optional(self.if_revision, |out, n| out.u64(n));
        hash_of(&head, self.operation) as u32
    }

    /// The same, of a content that stands encoded in `bytes`.
    pub(crate) fn hash_in(&self, bytes: &[u8]) -> u32 {
        let head_bytes = |n: usize| match n {
            0..=31 => 1,
            32..=0xff => 2,
            _ => 3,
        };
        let number_bytes = |n: u64| match n {
            0..=0x7f => 1,
            0x80..=0xff => 2,
            0x100..=0xffff => 3,
            0x1_0000..=0xffff_ffff => 5,
            _ => 9,
        };
        let id = self.document.len();
        let shortest = head_bytes(id) + id + self.if_revision.map_or(1, number_bytes) + self.operation.len();
        // Nothing but the canonical form is so short.
        if bytes.len() == shortest { xxh3_64(bytes) as u32 } else { self.hash() }
    }

    /// Length of the content's encoding in bytes.
    pub fn encoded_bytes(&self) -> usize {
        self.document.len() + self.operation.len() + 16
    }

    /// What can be said against the content without knowing the document: every gateway decides
    /// this alike.
    ///
    /// # Errors
    /// The refusal's code.
    pub fn check(&self) -> Result<Operation, Code> {
        if self.encoded_bytes() > INSTRUCTION_BYTES_MAX {
            return Err(Code::TOO_LARGE);
        }
        let operation = decode(self.operation, Operation::read).map_err(refusal_of)?;
        match &operation {
            Operation::Splice(edits) if edits.is_empty() => Err(Code::NO_EDITS),
            Operation::Splice(edits) if edits.iter().any(|e| e.deleted == 0 && e.inserted.is_empty()) => {
                Err(Code::EMPTY_EDIT)
            }
            _ => Ok(operation),
        }
    }
}

fn misfit_code(misfit: Misfit) -> Code {
    match misfit {
        Misfit::Kind => Code::WRONG_KIND,
        Misfit::Range => Code::OUT_OF_RANGE,
        Misfit::Revision { .. } | Misfit::Hash => Code::CONFLICT,
    }
}

/// Decides what an operation does to a document: a change that certainly applies and leaves the
/// document within its limits, or the code that refuses it. Deterministic, and total but for
/// custom handlers, which may panic.
///
/// # Errors
/// The refusal's code.
pub fn decide(
    document: &Document,
    if_revision: Option<u64>,
    operation: Operation,
    registry: &Registry,
) -> Result<Change, Code> {
    match if_revision {
        None => {}
        Some(0) if !document.exists() => {}
        Some(revision) if revision > 0 && revision == document.revision => {}
        Some(_) => return Err(Code::CONFLICT),
    }
    let primitive = match (operation, &document.body) {
        (Operation::PutText(text), _) => Primitive::SetText(text),
        (Operation::PutMap(map), _) => Primitive::SetMap(map),
        (Operation::Append(text), Body::Text(_) | Body::Absent) => Primitive::Append(text),
        (Operation::Splice(edits), Body::Text(text)) => {
            check_edits(code_points(text), &edits).map_err(misfit_code)?;
            Primitive::Splice(edits)
        }
        (Operation::Merge(patch), Body::Structured(_) | Body::Absent) => Primitive::Merge(patch),
        (Operation::Add(path, amount), body @ (Body::Structured(_) | Body::Absent)) => add(body, path, &amount)?,
        (Operation::Splice(_) | Operation::Delete, Body::Absent) => return Err(Code::NOT_FOUND),
        (Operation::Delete, _) => Primitive::Delete,
        (Operation::Custom(name, arguments), _) => {
            let handler = registry.get(&name).ok_or(Code::UNKNOWN_INSTRUCTION)?;
            return check_custom(document, handler.apply(document, &arguments)?);
        }
        (Operation::Append(_) | Operation::Splice(_), Body::Structured(_))
        | (Operation::Merge(_) | Operation::Add(..), Body::Text(_)) => return Err(Code::WRONG_KIND),
    };
    check_growth(document, &primitive)?;
    Ok(vec![primitive])
}

/// The sum goes into the change, so that readers need not add: floats are added once, here.
fn add(body: &Body, path: Vec<String>, amount: &Value) -> Result<Primitive, Code> {
    let mut at = match body {
        Body::Structured(map) => Some(map),
        Body::Absent | Body::Text(_) => None,
    };
    let mut number = &Value::Int(0);
    for (i, key) in path.iter().enumerate() {
        match (at.and_then(|map| map.get(key)), i + 1 == path.len()) {
            (None, _) => break,
            (Some(found), true) => number = found,
            (Some(Value::Map(inner)), false) => at = Some(inner),
            (Some(_), false) => return Err(Code::WRONG_KIND),
        }
    }
    let sum = match (number, amount) {
        (Value::Int(a), Value::Int(b)) => a.checked_add(*b).filter(|n| value::int_in_range(*n)).map(Value::Int),
        (Value::Int(a), Value::Float(b)) | (Value::Float(b), Value::Int(a)) => finite(*a as f64 + b),
        (Value::Float(a), Value::Float(b)) => finite(a + b),
        _ => return Err(Code::NOT_A_NUMBER),
    };
    Ok(Primitive::SetAt(path, sum.ok_or(Code::NUMBER_OVERFLOW)?))
}

fn finite(n: f64) -> Option<Value> {
    n.is_finite().then_some(Value::Float(n))
}

/// Refuses what would grow the document over its limit. A cheap upper bound decides nearly always;
/// only close to the limit the change is tried on a copy.
fn check_growth(document: &Document, primitive: &Primitive) -> Result<(), Code> {
    let grows_by = match primitive {
        // The canonical form can be longer than what came: a float of four bytes takes eight.
        Primitive::SetMap(map) | Primitive::Merge(map) if value::map_bytes(map) > INSTRUCTION_BYTES_MAX => {
            return Err(Code::TOO_LARGE);
        }
        Primitive::SetText(text) if text.len() > DOCUMENT_BYTES_MAX => return Err(Code::TOO_LARGE),
        Primitive::SetText(_) | Primitive::SetMap(_) | Primitive::Delete => return Ok(()),
        Primitive::Append(text) => text.len(),
        Primitive::Splice(edits) => edits.iter().map(|e| e.inserted.len()).sum(),
        // A merge may lengthen the head of every map it meets by at most four bytes.
        Primitive::Merge(patch) => 5 * value::map_bytes(patch),
        Primitive::SetAt(path, value) => value.encoded_bytes() + path.iter().map(|k| k.len() + 10).sum::<usize>(),
    };
    let within = match &document.body {
        Body::Absent => grows_by <= DOCUMENT_BYTES_MAX,
        Body::Text(text) => text.len() + grows_by <= DOCUMENT_BYTES_MAX,
        // The nodes of a map of few bytes are cheap to count; of a large one, too, beside its hash.
        Body::Structured(map) => value::map_bytes(map) + grows_by <= DOCUMENT_BYTES_MAX,
    };
    if within {
        return Ok(());
    }
    let mut body = document.body.clone();
    primitive.apply(&mut body).map_err(misfit_code)?;
    body.check_size()
}

/// A handler's change is checked as if it came from outside: it must apply and keep the limits.
fn check_custom(document: &Document, change: Change) -> Result<Change, Code> {
    let mut body = document.body.clone();
    for primitive in &change {
        match primitive {
            Primitive::SetMap(map) | Primitive::Merge(map) if Value::Map(map.clone()).depth() > DEPTH_MAX => {
                return Err(Code::TOO_DEEP);
            }
            Primitive::SetAt(path, value) if path.is_empty() || path.len() + value.depth() > DEPTH_MAX => {
                return Err(Code::TOO_DEEP);
            }
            _ => primitive.apply(&mut body).map_err(misfit_code)?,
        }
    }
    body.check_size()?;
    let mut encoded = Vec::new();
    crate::change::write_change(&change, &mut encoded);
    if encoded.len() > INSTRUCTION_BYTES_MAX {
        return Err(Code::TOO_LARGE);
    }
    // What a handler made must be what every reader reads: no path or list over its limit, no
    // number that has no encoding.
    match decode(&encoded, crate::change::read_change) {
        Ok(read) if read == change => Ok(change),
        Ok(_) | Err(_) => Err(Code::INVALID_INSTRUCTION),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{EDITS_MAX, PATH_KEYS_MAX};

    fn check(body: Body, if_revision: Option<u64>, operation: Operation, expect: Result<Body, Code>) {
        let document = Document { revision: 4, time_us: 0, body };
        let decided = decide(&document, if_revision, operation.clone(), &Registry::default());
        let got = decided.map(|change| {
            let mut body = document.body.clone();
            change.iter().for_each(|p| p.apply(&mut body).unwrap());
            body
        });
        assert_eq!(got, expect, "{operation:?}");
        let mut out = Vec::new();
        operation.write(&mut out);
        assert_eq!(decode(&out, Operation::read), Ok(operation));
    }

    fn text(s: &str) -> Body {
        Body::Text(s.into())
    }

    fn map(json: serde_json::Value) -> Map {
        match Value::from_json(&json) {
            Some(Value::Map(map)) => map,
            _ => panic!("not a map"),
        }
    }

    fn add_to(path: &[&str], amount: Value) -> Operation {
        Operation::Add(path.iter().map(|k| (*k).to_owned()).collect(), amount)
    }

    #[test]
    fn operations_do_what_the_protocol_says() {
        use serde_json::json;
        let edit = |position, deleted, inserted: &str| Edit { position, deleted, inserted: inserted.into() };
        let some = || Body::Structured(map(json!({"n": 1, "m": {"x": 2.5}, "s": "t"})));
        check(Body::Absent, None, Operation::PutText("a".into()), Ok(text("a")));
        check(some(), None, Operation::PutText("a".into()), Ok(text("a")));
        check(text("a"), None, Operation::Append("b".into()), Ok(text("ab")));
        check(Body::Absent, None, Operation::Append("b".into()), Ok(text("b")));
        check(some(), None, Operation::Append("b".into()), Err(Code::WRONG_KIND));
        check(text("abc"), None, Operation::Splice(vec![edit(1, 1, "X")]), Ok(text("aXc")));
        check(text("abc"), None, Operation::Splice(vec![edit(3, 1, "X")]), Err(Code::OUT_OF_RANGE));
        check(Body::Absent, None, Operation::Splice(vec![edit(0, 0, "X")]), Err(Code::NOT_FOUND));
        check(some(), None, Operation::Splice(vec![edit(0, 0, "X")]), Err(Code::WRONG_KIND));
        check(text("a"), None, Operation::Merge(Map::new()), Err(Code::WRONG_KIND));
        check(
            Body::Absent,
            None,
            Operation::Merge(map(json!({"a": 1, "b": null}))),
            Ok(Body::Structured(map(json!({"a": 1})))),
        );
        check(
            Body::Absent,
            None,
            add_to(&["a", "b"], Value::Int(2)),
            Ok(Body::Structured(map(json!({"a": {"b": 2}})))),
        );
        check(
            some(),
            None,
            add_to(&["n"], Value::Float(0.5)),
            Ok(Body::Structured(map(json!({"n": 1.5, "m": {"x": 2.5}, "s": "t"})))),
        );
        check(some(), None, add_to(&["s"], Value::Int(1)), Err(Code::NOT_A_NUMBER));
        check(some(), None, add_to(&["n", "x"], Value::Int(1)), Err(Code::WRONG_KIND));
        check(some(), None, add_to(&["n"], Value::Int(i128::from(u64::MAX))), Err(Code::NUMBER_OVERFLOW));
        check(text("a"), None, add_to(&["n"], Value::Int(1)), Err(Code::WRONG_KIND));
        check(text("a"), None, Operation::Delete, Ok(Body::Absent));
        check(Body::Absent, None, Operation::Delete, Err(Code::NOT_FOUND));
        check(text("a"), None, Operation::Custom("nobody".into(), vec![]), Err(Code::UNKNOWN_INSTRUCTION));
    }

    #[test]
    fn conditions_name_the_revision_or_absence() {
        let put = || Operation::PutText("n".into());
        check(text("a"), Some(4), put(), Ok(text("n")));
        check(text("a"), Some(3), put(), Err(Code::CONFLICT));
        check(text("a"), Some(0), put(), Err(Code::CONFLICT));
        check(Body::Absent, Some(0), put(), Ok(text("n")));
        check(Body::Absent, Some(4), put(), Ok(text("n")));
    }

    #[test]
    fn documents_end_at_their_limit() {
        let full = || text(&"x".repeat(DOCUMENT_BYTES_MAX - 1));
        check(full(), None, Operation::Append("é".into()), Err(Code::TOO_LARGE));
        let swap = Operation::Splice(vec![Edit { position: 0, deleted: 2, inserted: "é".into() }]);
        let expect = text(&format!("é{}", "x".repeat(DOCUMENT_BYTES_MAX - 3)));
        check(full(), None, swap, Ok(expect));
    }

    /// A handler that makes whatever change it was built with.
    struct Makes(Change);

    impl crate::registry::CustomInstruction for Makes {
        fn name(&self) -> &'static str {
            "make"
        }

        fn apply(&self, _: &Document, _: &[u8]) -> Result<Change, Code> {
            Ok(self.0.clone())
        }
    }

    #[test]
    fn handlers_make_only_what_every_reader_reads() {
        let make = |body: Body, change: Change| {
            let registry = Registry::default().with(Makes(change));
            let document = Document { revision: 1, time_us: 0, body };
            decide(&document, None, Operation::Custom("make".into(), vec![]), &registry)
        };
        let path = |keys: usize| vec!["k".to_owned(); keys];
        let edit = Edit { position: 0, deleted: 0, inserted: "x".into() };
        let set = |value| vec![Primitive::SetAt(path(1), value)];
        let good = vec![Primitive::SetText("a".into()), Primitive::Splice(vec![edit.clone()])];
        assert_eq!(make(Body::Absent, good.clone()), Ok(good));
        assert!(make(Body::Absent, vec![Primitive::SetAt(path(PATH_KEYS_MAX), Value::Nil)]).is_ok());
        for (body, change, code) in [
            (text("a"), vec![Primitive::Merge(Map::new())], Code::WRONG_KIND),
            (Body::Absent, vec![Primitive::SetAt(path(DEPTH_MAX), Value::Nil)], Code::INVALID_INSTRUCTION),
            (Body::Absent, vec![Primitive::SetAt(vec![], Value::Nil)], Code::TOO_DEEP),
            (text("a"), vec![Primitive::Splice(vec![edit; EDITS_MAX + 1])], Code::INVALID_INSTRUCTION),
            (Body::Absent, set(Value::Float(f64::NAN)), Code::INVALID_INSTRUCTION),
            (Body::Absent, set(Value::Float(f64::INFINITY)), Code::INVALID_INSTRUCTION),
            (Body::Absent, set(Value::Int(i128::MAX)), Code::INVALID_INSTRUCTION),
            (Body::Absent, vec![Primitive::SetText("x".repeat(INSTRUCTION_BYTES_MAX))], Code::TOO_LARGE),
        ] {
            assert_eq!(make(body, change.clone()), Err(code), "{change:?}");
        }
    }

    #[test]
    fn values_that_grow_when_they_are_encoded_again_keep_the_limit() {
        // Floats of four bytes are kept as eight.
        let n = INSTRUCTION_BYTES_MAX / 6;
        let mut operation = vec![0x92, 5, 0x81, 0xa1, b'a', 0xdd];
        operation.extend((n as u32).to_be_bytes());
        (0..n).for_each(|_| operation.extend([0xca, 0, 0, 0, 0]));
        let content = Content { document: "d", if_revision: None, operation: &operation };
        let operation = content.check().unwrap();
        assert_eq!(decide(&Document::default(), None, operation, &Registry::default()), Err(Code::TOO_LARGE));
    }

    #[test]
    fn a_content_has_one_hash_however_it_is_encoded() {
        let long = "d".repeat(200);
        for document in ["d", &long[..31], &long[..32], &long] {
            for if_revision in [None, Some(0), Some(0x80), Some(0x100), Some(0x1_0000), Some(u64::MAX)] {
                let content = Content { document, if_revision, operation: &[0x92, 1, 0xa1, b'x'] };
                let mut bytes = Vec::new();
                content.write(&mut bytes);
                assert_eq!(content.hash_in(&bytes), content.hash());
                assert_eq!(xxh3_64(&bytes) as u32, content.hash());
                // The id with a longer head than it needs.
                let n = bytes.iter().position(|b| *b == b'd').unwrap();
                let mut other = vec![0xda];
                other.extend((document.len() as u16).to_be_bytes());
                other.extend(&bytes[n..]);
                assert_eq!(content.hash_in(&other), content.hash());
            }
        }
    }

    #[test]
    fn contents_are_checked_by_form() {
        let check = |operation: Operation| {
            let mut bytes = Vec::new();
            operation.write(&mut bytes);
            Content { document: "d", if_revision: None, operation: &bytes }.check().map(|_| ())
        };
        assert_eq!(check(Operation::Splice(vec![])), Err(Code::NO_EDITS));
        assert_eq!(
            check(Operation::Splice(vec![Edit { position: 0, deleted: 0, inserted: String::new() }])),
            Err(Code::EMPTY_EDIT)
        );
        assert_eq!(check(Operation::PutText("x".repeat(INSTRUCTION_BYTES_MAX))), Err(Code::TOO_LARGE));
        assert_eq!(check(Operation::Delete), Ok(()));
        let deep = [vec![0x92, 2], [0x81, 0xa1, b'a'].repeat(DEPTH_MAX + 1), vec![1]].concat();
        assert_eq!(Content { document: "d", if_revision: None, operation: &deep }.check(), Err(Code::TOO_DEEP));
    }
}
