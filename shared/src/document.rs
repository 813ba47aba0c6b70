//! A document and its state: what instructions change and watchers replicate.

use crate::code::Code;
use crate::hash::hash_of;
use crate::limits::DOCUMENT_BYTES_MAX;
use crate::msgpack::{DecodeError, Reader, Write, decode};
use crate::value::{self, Map};
use xxhash_rust::xxh3::Xxh3;

/// What a document holds.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Body {
    /// Nothing: never created, or deleted (the revision tells which).
    #[default]
    Absent,
    /// Text, edited by Unicode code point.
    Text(String),
    /// A map of values.
    Structured(Map),
}

/// The kind of a body, as it stands on the wire and in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Never created, or deleted.
    Absent = 0,
    /// Text.
    Text = 1,
    /// A MessagePack map.
    Structured = 2,
}

impl Kind {
    /// The kind with this number.
    ///
    /// # Errors
    /// If there is none.
    pub fn from_u64(n: u64) -> Result<Kind, DecodeError> {
        match n {
            0 => Ok(Kind::Absent),
            1 => Ok(Kind::Text),
            2 => Ok(Kind::Structured),
            _ => Err(DecodeError::OutOfRange("a document kind")),
        }
    }

    /// The kind in words: `absent`, `text`, `structured`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Absent => "absent",
            Kind::Text => "text",
            Kind::Structured => "structured",
        }
    }
}

impl Body {
    /// The body's kind.
    pub fn kind(&self) -> Kind {
        match self {
            Body::Absent => Kind::Absent,
            Body::Text(_) => Kind::Text,
            Body::Structured(_) => Kind::Structured,
        }
    }

    /// Length in bytes of [`Body::encode`].
    pub fn encoded_bytes(&self) -> usize {
        match self {
            Body::Absent => 0,
            Body::Text(text) => text.len(),
            Body::Structured(map) => value::map_bytes(map),
        }
    }

    /// About how much memory the body takes beside [`Body`] itself. A structured one takes many
    /// times its encoded length.
    pub fn memory_bytes(&self) -> usize {
        match self {
            Body::Absent => 0,
            Body::Text(text) => text.capacity(),
            Body::Structured(map) => value::map_memory_bytes(map),
        }
    }

    /// The body's bytes: nothing, the text's UTF-8, or the map's canonical MessagePack.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Body::Absent => Vec::new(),
            Body::Text(text) => text.clone().into_bytes(),
            Body::Structured(map) => {
                let mut out = Vec::with_capacity(value::map_bytes(map));
                value::write_map(map, &mut out);
                out
            }
        }
    }

    /// A body from its kind and bytes.
    ///
    /// # Errors
    /// [`DecodeError`] if the bytes are not of that kind.
    pub fn decode(kind: Kind, bytes: &[u8]) -> Result<Body, DecodeError> {
        match kind {
            Kind::Absent if bytes.is_empty() => Ok(Body::Absent),
            Kind::Absent => Err(DecodeError::Trailing),
            Kind::Text => match std::str::from_utf8(bytes) {
                Ok(text) => Ok(Body::Text(text.to_owned())),
                Err(_) => Err(DecodeError::InvalidUtf8),
            },
            Kind::Structured => decode(bytes, value::read_map).map(Body::Structured),
        }
    }

    /// The state hash: xxh3_64 over the kind's number as one byte and the encoded body.
    pub fn hash(&self) -> u64 {
        struct Hashing(Xxh3);
        impl Write for Hashing {
            fn raw(&mut self, bytes: &[u8]) {
                self.0.update(bytes);
            }
        }
        let kind = [self.kind() as u8];
        match self {
            Body::Absent => hash_of(&kind, &[]),
            Body::Text(text) => hash_of(&kind, text.as_bytes()),
            Body::Structured(map) => {
                let mut hashing = Hashing(Xxh3::new());
                hashing.raw(&kind);
                value::write_map(map, &mut hashing);
                hashing.0.digest()
            }
        }
    }

    /// Checks the size limit of documents.
    ///
    /// # Errors
    /// [`Code::TOO_LARGE`].
    pub fn check_size(&self) -> Result<(), Code> {
        if self.encoded_bytes() <= DOCUMENT_BYTES_MAX { Ok(()) } else { Err(Code::TOO_LARGE) }
    }

    /// The body as JSON: `null`, a string or an object.
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Body::Absent => serde_json::Value::Null,
            Body::Text(text) => serde_json::Value::String(text.clone()),
            Body::Structured(map) => value::map_to_json(map),
        }
    }
}

/// A document at a revision.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Document {
    /// Number of changes so far; 0 was never created. Never restarts: a deleted document keeps
    /// counting.
    pub revision: u64,
    /// Event time of the last change, microseconds since the Unix epoch; never goes back.
    pub time_us: u64,
    /// What it holds.
    pub body: Body,
}

impl Document {
    /// The state hash of the body ([`Body::hash`]).
    pub fn hash(&self) -> u64 {
        self.body.hash()
    }

    /// Whether there is something to read: created and not deleted.
    pub fn exists(&self) -> bool {
        self.body != Body::Absent
    }

    /// Appends `[revision, time_us, kind, body]`, the form in which the read service and snapshots
    /// carry documents.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.array(4);
        out.u64(self.revision);
        out.u64(self.time_us);
        out.u64(self.body.kind() as u64);
        out.bin(&self.body.encode());
    }

    /// Reads what [`Document::write`] wrote.
    ///
    /// # Errors
    /// [`DecodeError`] if it is not of that form.
    pub fn read(reader: &mut Reader<'_>) -> Result<Document, DecodeError> {
        reader.record(4, |r| {
            let (revision, time_us) = (r.u64()?, r.u64()?);
            let kind = Kind::from_u64(r.u64()?)?;
            Ok(Document { revision, time_us, body: Body::decode(kind, r.bin()?)? })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_tell_kinds_and_contents_apart() {
        let bodies = [Body::Absent, Body::Text(String::new()), Body::Text("a".into()), Body::Structured(Map::new())];
        for (i, a) in bodies.iter().enumerate() {
            for (j, b) in bodies.iter().enumerate() {
                assert_eq!(a.hash() == b.hash(), i == j);
            }
            let document = Document { revision: 3, time_us: 4, body: a.clone() };
            let mut out = Vec::new();
            document.write(&mut out);
            assert_eq!(decode(&out, Document::read), Ok(document));
        }
    }
}
