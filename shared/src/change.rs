//! Changes: a closed set of primitive operations, so that every reader of every version applies
//! them alike.

use crate::document::{Body, Document};
use crate::limits::{EDITS_MAX, PATH_KEYS_MAX};
use crate::msgpack::{DecodeError, Reader, Write};
use crate::value::{self, Map, Value};

/// One edit of a text: at `position`, `deleted` code points go and `inserted` comes. Edits of one
/// list apply one after the other, each to the text its predecessors left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// Code points before the edit.
    pub position: u64,
    /// Code points taken out.
    pub deleted: u64,
    /// Text put in.
    pub inserted: String,
}

impl Edit {
    /// Appends a list of edits as `[[position, deleted, inserted], …]`.
    pub fn write_all(edits: &[Edit], out: &mut Vec<u8>) {
        out.array(edits.len());
        for edit in edits {
            out.array(3);
            out.u64(edit.position);
            out.u64(edit.deleted);
            out.str(&edit.inserted);
        }
    }

    /// Reads a list of edits.
    ///
    /// # Errors
    /// [`DecodeError`] if it is not one, or is longer than [`EDITS_MAX`].
    pub fn read_all(reader: &mut Reader<'_>) -> Result<Vec<Edit>, DecodeError> {
        let n = reader.array()?;
        if n > EDITS_MAX {
            return Err(DecodeError::OutOfRange("the number of edits"));
        }
        let mut edits = Vec::new();
        for _ in 0..n {
            edits
                .push(reader.record(3, |r| {
                    Ok(Edit { position: r.u64()?, deleted: r.u64()?, inserted: r.str()?.to_owned() })
                })?);
        }
        Ok(edits)
    }
}

/// One primitive operation on a document's body.
#[derive(Debug, Clone, PartialEq)]
pub enum Primitive {
    /// The body becomes this text.
    SetText(String),
    /// The body becomes this map.
    SetMap(Map),
    /// Text is appended; an absent body becomes the text.
    Append(String),
    /// Edits of the text.
    Splice(Vec<Edit>),
    /// RFC 7396 merge into the map; an absent body counts as an empty map.
    Merge(Map),
    /// The value at a path of keys is set; missing maps on the way are created.
    SetAt(Vec<String>, Value),
    /// The body is gone; the revision stays as a tombstone.
    Delete,
}

/// What one event did to a document: primitives in order, usually one.
pub type Change = Vec<Primitive>;

/// A change that does not fit the document: the reader's copy is not what the writer's was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// The primitive needs another kind of body.
    #[error("the change needs another kind of document")]
    Kind,
    /// An edit reaches behind the end of the text.
    #[error("an edit reaches behind the end of the text")]
    Range,
    /// The revision is not the next one.
    #[error("the change makes revision {change}, the document is at {document}")]
    Revision {
        /// The document's revision.
        document: u64,
        /// The revision the change makes.
        change: u64,
    },
    /// The resulting state hash is not the writer's.
    #[error("the state hash differs after the change")]
    Hash,
}

impl Primitive {
    /// Whether the body after it does not depend on the body before it.
    pub fn sets_whole_state(&self) -> bool {
        matches!(self, Primitive::SetText(_) | Primitive::SetMap(_) | Primitive::Delete)
    }

    /// Appends the primitive as `[tag, …]` (`docs/LOG.md`).
    pub fn write(&self, out: &mut Vec<u8>) {
        let head = |out: &mut Vec<u8>, tag: u64, n: usize| {
            out.array(n);
            out.u64(tag);
        };
        match self {
            Primitive::SetText(text) => {
                head(out, 1, 2);
                out.str(text);
            }
            Primitive::SetMap(map) => {
                head(out, 2, 2);
                value::write_map(map, out);
            }
            Primitive::Append(text) => {
                head(out, 3, 2);
                out.str(text);
            }
            Primitive::Splice(edits) => {
                head(out, 4, 2);
                Edit::write_all(edits, out);
            }
            Primitive::Merge(patch) => {
                head(out, 5, 2);
                value::write_map(patch, out);
            }
            Primitive::SetAt(path, value) => {
                head(out, 6, 3);
                write_path(path, out);
                value.write(out);
            }
            Primitive::Delete => head(out, 7, 1),
        }
    }

    /// Reads one primitive.
    ///
    /// # Errors
    /// [`DecodeError`] if it is none: the set is closed, so an unknown tag is an error too.
    pub fn read(reader: &mut Reader<'_>) -> Result<Primitive, DecodeError> {
        let n = reader.array()?;
        let tag = if n == 0 { 0 } else { reader.u64()? };
        Ok(match (tag, n) {
            (1, 2) => Primitive::SetText(reader.str()?.to_owned()),
            (2, 2) => Primitive::SetMap(value::read_map(reader)?),
            (3, 2) => Primitive::Append(reader.str()?.to_owned()),
            (4, 2) => Primitive::Splice(Edit::read_all(reader)?),
            (5, 2) => Primitive::Merge(value::read_map(reader)?),
            (6, 3) => Primitive::SetAt(read_path(reader)?, Value::read(reader)?),
            (7, 1) => Primitive::Delete,
            _ => return Err(DecodeError::Expected("a primitive operation")),
        })
    }

    /// Applies the primitive. On an error the body is unchanged.
    ///
    /// # Errors
    /// [`Misfit`] if the body is not one the primitive can be applied to.
    pub fn apply(&self, body: &mut Body) -> Result<(), Misfit> {
        match (self, &mut *body) {
            (Primitive::SetText(text), _) => *body = Body::Text(text.clone()),
            (Primitive::SetMap(map), _) => *body = Body::Structured(map.clone()),
            (Primitive::Append(more), Body::Text(text)) => text.push_str(more),
            (Primitive::Append(more), Body::Absent) => *body = Body::Text(more.clone()),
            (Primitive::Splice(edits), Body::Text(text)) => splice(text, edits)?,
            (Primitive::Merge(patch), Body::Structured(map)) => value::merge(map, patch),
            (Primitive::Merge(patch), Body::Absent) => {
                let mut map = Map::new();
                value::merge(&mut map, patch);
                *body = Body::Structured(map);
            }
            (Primitive::SetAt(path, value), Body::Structured(map)) => set_at(map, path, value)?,
            (Primitive::SetAt(path, value), Body::Absent) => {
                let mut map = Map::new();
                set_at(&mut map, path, value)?;
                *body = Body::Structured(map);
            }
            (Primitive::Delete, _) => *body = Body::Absent,
            (Primitive::Append(_), Body::Structured(_))
            | (Primitive::Splice(_), Body::Structured(_) | Body::Absent)
            | (Primitive::Merge(_) | Primitive::SetAt(..), Body::Text(_)) => return Err(Misfit::Kind),
        }
        Ok(())
    }
}

/// Appends a change as an array of primitives.
pub fn write_change(change: &Change, out: &mut Vec<u8>) {
    out.array(change.len());
    change.iter().for_each(|p| p.write(out));
}

/// Reads a change.
///
/// # Errors
/// [`DecodeError`] if it is none.
pub fn read_change(reader: &mut Reader<'_>) -> Result<Change, DecodeError> {
    let mut change = Change::new();
    for _ in 0..reader.array()? {
        change.push(Primitive::read(reader)?);
    }
    Ok(change)
}

/// What an event says of a document besides the change itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// Revision after the change.
    pub revision: u64,
    /// State hash after the change.
    pub state_hash: u64,
    /// Event time, microseconds since the Unix epoch.
    pub time_us: u64,
}

impl Document {
    /// Applies a change that makes `version`, checking revision and state hash.
    ///
    /// # Errors
    /// [`Misfit`] if the change does not follow this state. The document may then be half changed
    /// and must be loaded again.
    pub fn apply(&mut self, change: &Change, version: Version) -> Result<(), Misfit> {
        if version.revision != self.revision + 1 {
            return Err(Misfit::Revision { document: self.revision, change: version.revision });
        }
        for primitive in change {
            primitive.apply(&mut self.body)?;
        }
        self.revision = version.revision;
        self.time_us = version.time_us;
        if self.hash() == version.state_hash { Ok(()) } else { Err(Misfit::Hash) }
    }
}

/// Appends a path of keys.
pub fn write_path(path: &[String], out: &mut Vec<u8>) {
    out.array(path.len());
    path.iter().for_each(|key| out.str(key));
}

/// Reads a path of keys: 1 to [`PATH_KEYS_MAX`].
///
/// # Errors
/// [`DecodeError`] if it is none.
pub fn read_path(reader: &mut Reader<'_>) -> Result<Vec<String>, DecodeError> {
    let n = reader.array()?;
    if n == 0 || n > PATH_KEYS_MAX {
        return Err(DecodeError::OutOfRange("the length of a path"));
    }
    let mut path = Vec::new();
    for _ in 0..n {
        path.push(reader.str()?.to_owned());
    }
    Ok(path)
}

fn set_at(map: &mut Map, path: &[String], value: &Value) -> Result<(), Misfit> {
    let Some((key, rest)) = path.split_first() else { return Err(Misfit::Kind) };
    if rest.is_empty() {
        map.insert(key.clone(), value.clone());
        return Ok(());
    }
    match map.get_mut(key) {
        Some(Value::Map(inner)) => set_at(inner, rest, value),
        Some(_) => Err(Misfit::Kind),
        None => {
            let mut inner = Map::new();
            set_at(&mut inner, rest, value)?;
            map.insert(key.clone(), Value::Map(inner));
            Ok(())
        }
    }
}

/// Number of code points. Counts the bytes that do not continue a code point, which vectorises.
pub fn code_points(text: &str) -> u64 {
    text.as_bytes().iter().filter(|b| !is_continuation(**b)).count() as u64
}

fn is_continuation(byte: u8) -> bool {
    byte & 0xc0 == 0x80
}

/// Checks a list of edits against a text of `length` code points, without touching it.
///
/// # Errors
/// [`Misfit::Range`] if an edit reaches behind the end the text has at its turn.
pub fn check_edits(length: u64, edits: &[Edit]) -> Result<(), Misfit> {
    let mut length = length;
    for edit in edits {
        let end = edit.position.checked_add(edit.deleted).ok_or(Misfit::Range)?;
        if end > length {
            return Err(Misfit::Range);
        }
        length = length - edit.deleted + code_points(&edit.inserted);
    }
    Ok(())
}

/// Byte index of the `n`th code point from byte `from` on; the text's end if there are just `n`.
fn byte_of(text: &str, from: usize, n: u64) -> Option<usize> {
    const BLOCK: usize = 64;
    let (bytes, mut at, mut left) = (text.as_bytes(), from, n);
    while let Some(block) = bytes.get(at..at + BLOCK) {
        let starts = block.iter().filter(|b| !is_continuation(**b)).count() as u64;
        if starts > left {
            break;
        }
        left -= starts;
        at += BLOCK;
    }
    // `at` may stand inside a code point that an earlier block has counted.
    while bytes.get(at).copied().is_some_and(is_continuation) {
        at += 1;
    }
    let mut starts = text.get(at..)?.char_indices();
    for _ in 0..left {
        starts.next()?;
    }
    Some(starts.next().map_or(text.len(), |(i, _)| at + i))
}

fn splice(text: &mut String, edits: &[Edit]) -> Result<(), Misfit> {
    check_edits(code_points(text), edits)?;
    for edit in edits {
        let start = byte_of(text, 0, edit.position).ok_or(Misfit::Range)?;
        let end = byte_of(text, start, edit.deleted).ok_or(Misfit::Range)?;
        text.replace_range(start..end, &edit.inserted);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::msgpack::decode;
    use proptest::prelude::*;

    fn edit(position: u64, deleted: u64, inserted: &str) -> Edit {
        Edit { position, deleted, inserted: inserted.into() }
    }

    #[test]
    fn edits_count_code_points_and_apply_in_sequence() {
        let mut text = "añ𝄞z".to_owned();
        splice(&mut text, &[edit(2, 1, "ß"), edit(4, 0, "!"), edit(0, 1, "")]).unwrap();
        assert_eq!(text, "ñßz!");
    }

    #[test]
    fn a_list_with_one_bad_edit_changes_nothing() {
        let mut body = Body::Text("abc".into());
        let change = Primitive::Splice(vec![edit(0, 1, ""), edit(2, 1, "x")]);
        assert_eq!(change.apply(&mut body), Err(Misfit::Range));
        assert_eq!(Primitive::Splice(vec![edit(u64::MAX, 1, "")]).apply(&mut body), Err(Misfit::Range));
        assert_eq!(body, Body::Text("abc".into()));
    }

    proptest! {
        #[test]
        fn splice_equals_editing_a_list_of_characters(
            text in "\\PC{0,300}",
            edits in proptest::collection::vec((0u64..320, 0u64..40, "\\PC{0,80}"), 1..6),
        ) {
            let edits: Vec<Edit> = edits.into_iter().map(|(p, d, i)| Edit { position: p, deleted: d, inserted: i }).collect();
            let mut model: Option<Vec<char>> = Some(text.chars().collect());
            for e in &edits {
                model = model.and_then(|mut chars| {
                    let (start, end) = (e.position as usize, (e.position + e.deleted) as usize);
                    (end <= chars.len()).then(|| { chars.splice(start..end, e.inserted.chars()); chars })
                });
            }
            let mut edited = text.clone();
            match splice(&mut edited, &edits) {
                Ok(()) => prop_assert_eq!(Some(edited.chars().collect()), model),
                Err(_) => { prop_assert_eq!(model, None); prop_assert_eq!(edited, text); }
            }
        }
    }

    #[test]
    fn primitives_come_back_from_their_bytes() {
        let map: Map = [("a".to_owned(), Value::Int(-5))].into_iter().collect();
        let all = vec![
            Primitive::SetText("x".into()),
            Primitive::SetMap(map.clone()),
            Primitive::Append("y".into()),
            Primitive::Splice(vec![edit(1, 2, "z")]),
            Primitive::Merge(map),
            Primitive::SetAt(vec!["a".into(), "b".into()], Value::Float(1.5)),
            Primitive::Delete,
        ];
        let mut out = Vec::new();
        write_change(&all, &mut out);
        assert_eq!(decode(&out, read_change), Ok(all));
    }
}
