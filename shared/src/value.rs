//! Values of structured documents, with one encoding per value.

use crate::limits::DEPTH_MAX;
use crate::msgpack::{DecodeError, Reader, Token, Write};
use std::collections::BTreeMap;

/// A map of a structured document. Keys are sorted by their UTF-8 bytes, so that iteration and
/// encoding have one order everywhere.
pub type Map = BTreeMap<String, Value>;

/// A MessagePack value as documents hold it: string keys, finite floats, no extension types.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// nil
    Nil,
    /// true or false
    Bool(bool),
    /// An integer, `i64::MIN..=u64::MAX`.
    Int(i128),
    /// A finite 64-bit float.
    Float(f64),
    /// Text.
    Str(String),
    /// Bytes.
    Bin(Vec<u8>),
    /// A list.
    Array(Vec<Value>),
    /// A map with string keys.
    Map(Map),
}

/// Integers that MessagePack can hold.
pub fn int_in_range(n: i128) -> bool {
    (i128::from(i64::MIN)..=i128::from(u64::MAX)).contains(&n)
}

impl Value {
    /// Reads one value.
    ///
    /// # Errors
    /// [`DecodeError`] for broken bytes, nesting over the limit, keys that are not text or occur
    /// twice, floats that are not finite and extension types.
    pub fn read(reader: &mut Reader<'_>) -> Result<Value, DecodeError> {
        read_at(reader, 0)
    }

    /// Appends the canonical encoding: sorted keys, shortest integers.
    pub fn write<W: Write>(&self, out: &mut W) {
        match self {
            Value::Nil => out.nil(),
            Value::Bool(b) => out.bool(*b),
            Value::Int(n) => match i64::try_from(*n) {
                Ok(n) => out.i64(n),
                Err(_) => out.u64(*n as u64),
            },
            Value::Float(n) => out.f64(*n),
            Value::Str(s) => out.str(s),
            Value::Bin(b) => out.bin(b),
            Value::Array(items) => {
                out.array(items.len());
                items.iter().for_each(|v| v.write(out));
            }
            Value::Map(map) => write_map(map, out),
        }
    }

    /// The canonical encoding's length in bytes.
    pub fn encoded_bytes(&self) -> usize {
        let mut counter = Counter(0);
        self.write(&mut counter);
        counter.0
    }

    /// About how much memory the value takes beside [`Value`] itself.
    fn memory_bytes(&self) -> usize {
        match self {
            Value::Nil | Value::Bool(_) | Value::Int(_) | Value::Float(_) => 0,
            Value::Str(s) => s.capacity(),
            Value::Bin(b) => b.capacity(),
            Value::Array(items) => {
                items.capacity() * size_of::<Value>() + items.iter().map(Value::memory_bytes).sum::<usize>()
            }
            Value::Map(map) => map_memory_bytes(map),
        }
    }

    /// Levels of nesting: 0 for a scalar.
    pub fn depth(&self) -> usize {
        match self {
            Value::Array(items) => 1 + items.iter().map(Value::depth).max().unwrap_or(0),
            Value::Map(map) => 1 + map.values().map(Value::depth).max().unwrap_or(0),
            _ => 0,
        }
    }

    /// The value as JSON. Bytes become `{"$bin": "<hex>"}`, which JSON has no type for.
    pub fn to_json(&self) -> serde_json::Value {
        use serde_json::{Number, Value as Json};
        match self {
            Value::Nil => Json::Null,
            Value::Bool(b) => Json::Bool(*b),
            Value::Int(n) => match i64::try_from(*n) {
                Ok(n) => Json::Number(n.into()),
                Err(_) => Json::Number((*n as u64).into()),
            },
            Value::Float(n) => Number::from_f64(*n).map_or(Json::Null, Json::Number),
            Value::Str(s) => Json::String(s.clone()),
            Value::Bin(b) => {
                let hex: String = b.iter().map(|b| format!("{b:02x}")).collect();
                serde_json::json!({ "$bin": hex })
            }
            Value::Array(items) => Json::Array(items.iter().map(Value::to_json).collect()),
            Value::Map(map) => map_to_json(map),
        }
    }

    /// A value from JSON, `None` for a number that MessagePack cannot hold.
    pub fn from_json(json: &serde_json::Value) -> Option<Value> {
        use serde_json::Value as Json;
        Some(match json {
            Json::Null => Value::Nil,
            Json::Bool(b) => Value::Bool(*b),
            Json::Number(n) => match (n.as_i64(), n.as_u64()) {
                (Some(n), _) => Value::Int(n.into()),
                (None, Some(n)) => Value::Int(n.into()),
                (None, None) => Value::Float(n.as_f64().filter(|n| n.is_finite())?),
            },
            Json::String(s) => Value::Str(s.clone()),
            Json::Array(items) => Value::Array(items.iter().map(Value::from_json).collect::<Option<_>>()?),
            Json::Object(map) => {
                Value::Map(map.iter().map(|(k, v)| Some((k.clone(), Value::from_json(v)?))).collect::<Option<_>>()?)
            }
        })
    }
}

/// A map as a JSON object.
pub fn map_to_json(map: &Map) -> serde_json::Value {
    serde_json::Value::Object(map.iter().map(|(k, v)| (k.clone(), v.to_json())).collect())
}

/// Appends a map's canonical encoding.
pub fn write_map<W: Write>(map: &Map, out: &mut W) {
    out.map(map.len());
    for (key, value) in map {
        out.str(key);
        value.write(out);
    }
}

/// Reads a map that is not inside another value.
///
/// # Errors
/// Those of [`Value::read`], or if something else than a map is next.
pub fn read_map(reader: &mut Reader<'_>) -> Result<Map, DecodeError> {
    match Value::read(reader)? {
        Value::Map(map) => Ok(map),
        _ => Err(DecodeError::Expected("a map")),
    }
}

/// The length of a map's canonical encoding in bytes.
pub fn map_bytes(map: &Map) -> usize {
    let mut counter = Counter(0);
    write_map(map, &mut counter);
    counter.0
}

/// About how much memory a map takes beside [`Map`] itself. A node of the standard library's
/// B-tree has room for eleven entries; six are taken for granted, and at least one node is there.
pub fn map_memory_bytes(map: &Map) -> usize {
    const NODE_BYTES: usize = 11 * (size_of::<String>() + size_of::<Value>()) + 32;
    let entries: usize = map.iter().map(|(key, value)| key.capacity() + value.memory_bytes()).sum();
    map.len().div_ceil(6) * NODE_BYTES + entries
}

fn read_at(reader: &mut Reader<'_>, depth: usize) -> Result<Value, DecodeError> {
    Ok(match reader.token()? {
        Token::Nil => Value::Nil,
        Token::Bool(b) => Value::Bool(b),
        Token::Int(n) => Value::Int(n),
        Token::Float(n) if n.is_finite() => Value::Float(n),
        Token::Float(_) => return Err(DecodeError::OutOfRange("a float that is not finite")),
        Token::Str(s) => Value::Str(s.to_owned()),
        Token::Bin(b) => Value::Bin(b.to_owned()),
        Token::Ext(_) => return Err(DecodeError::Expected("no extension type")),
        Token::Array(_) | Token::Map(_) if depth == DEPTH_MAX => return Err(DecodeError::TooDeep),
        Token::Array(n) => {
            let mut items = Vec::new();
            for _ in 0..n {
                items.push(read_at(reader, depth + 1)?);
            }
            Value::Array(items)
        }
        Token::Map(n) => {
            let mut map = Map::new();
            for _ in 0..n {
                let key = match reader.token()? {
                    Token::Str(s) => s.to_owned(),
                    _ => return Err(DecodeError::Expected("text as a key")),
                };
                if map.insert(key, read_at(reader, depth + 1)?).is_some() {
                    return Err(DecodeError::OutOfRange("a key that occurs twice"));
                }
            }
            Value::Map(map)
        }
    })
}

struct Counter(usize);

impl Write for Counter {
    fn raw(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }
}

/// Applies an RFC 7396 merge patch: maps merge key by key, `nil` removes, all else replaces.
pub fn merge(target: &mut Map, patch: &Map) {
    for (key, value) in patch {
        match value {
            Value::Nil => {
                target.remove(key);
            }
            Value::Map(patch) => {
                let entry = target.entry(key.clone()).or_insert(Value::Nil);
                if !matches!(entry, Value::Map(_)) {
                    *entry = Value::Map(Map::new());
                }
                if let Value::Map(inner) = entry {
                    merge(inner, patch);
                }
            }
            _ => {
                target.insert(key.clone(), value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::msgpack::decode;

    fn map(json: serde_json::Value) -> Map {
        match Value::from_json(&json) {
            Some(Value::Map(map)) => map,
            _ => panic!("not a map"),
        }
    }

    #[test]
    fn merge_follows_the_examples_of_rfc_7396() {
        use serde_json::json;
        for (target, patch, result) in [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
            (json!({"a":"b"}), json!({"a":null}), json!({})),
            (json!({"a":"b","b":"c"}), json!({"a":null}), json!({"b":"c"})),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"c"}), json!({"a":["b"]}), json!({"a":["b"]})),
            (json!({"a":{"b":"c"}}), json!({"a":{"b":"d","c":null}}), json!({"a":{"b":"d"}})),
            (json!({"a":[{"b":"c"}]}), json!({"a":[1]}), json!({"a":[1]})),
            (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
            (json!({}), json!({"a":{"bb":{"ccc":null}}}), json!({"a":{"bb":{}}})),
        ] {
            let mut merged = map(target);
            merge(&mut merged, &map(patch));
            assert_eq!(map_to_json(&merged), result);
        }
    }

    #[test]
    fn values_that_could_differ_between_readers_are_refused() {
        let nan = [[0xcb].as_slice(), &f64::NAN.to_bits().to_be_bytes()].concat();
        assert!(decode(&nan, Value::read).is_err());
        assert!(decode(&[0x81, 0x01, 0x02], Value::read).is_err(), "integer key");
        assert!(decode(&[0x82, 0xa1, b'a', 1, 0xa1, b'a', 2], Value::read).is_err(), "key twice");
        assert!(decode(&[0xd4, 1, 2], Value::read).is_err(), "extension type");
        let nested = |n: usize| [vec![0x91; n], vec![0xc0]].concat();
        assert!(decode(&nested(DEPTH_MAX), Value::read).is_ok());
        assert_eq!(decode(&nested(DEPTH_MAX + 1), Value::read), Err(DecodeError::TooDeep));
    }

    #[test]
    fn equal_values_have_equal_bytes_whatever_form_they_came_in() {
        let long = [
            0xdf, 0, 0, 0, 2, 0xd9, 1, b'b', 0xcd, 0, 1, 0xa1, b'a', 0xd3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
            0xff,
        ];
        let value = decode(&long, Value::read).unwrap();
        let mut out = Vec::new();
        value.write(&mut out);
        assert_eq!(out, [0x82, 0xa1, b'a', 0xff, 0xa1, b'b', 1]);
        assert_eq!(value.encoded_bytes(), out.len());
    }
}
