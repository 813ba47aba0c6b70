//! `documents`: the current state of each document. Key: the id in UTF-8.

use super::{client_id, number, present, read_fields, text};
use fieldstream_shared::document::{Body, Document, Kind};
use fieldstream_shared::ids::ClientId;
use fieldstream_shared::msgpack::{DecodeError, Reader, Token, Write};
use fieldstream_shared::value;

/// A document and the event that last changed it. A deleted document stays as a tombstone.
#[derive(Debug, Clone, PartialEq)]
pub struct DocumentRow {
    /// Revision, time and body.
    pub document: Document,
    /// Hash of the body.
    pub state_hash: u64,
    /// The client that changed it last.
    pub client: ClientId,
    /// The client's epoch then.
    pub epoch: u64,
    /// The client's number for the change.
    pub number: u64,
    /// The lane it is on.
    pub lane: u16,
    /// EVENTS sequence of the change, on that lane.
    pub sequence: u64,
    /// Bytes of the rows of its history behind the last one that tells the whole state. Not there while
    /// it is 0.
    pub since_whole_bytes: u64,
}

impl DocumentRow {
    /// Appends the value.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.map(if self.since_whole_bytes == 0 { 10 } else { 11 });
        number(out, "revision", self.document.revision);
        number(out, "state_hash", self.state_hash);
        number(out, "time_us", self.document.time_us);
        text(out, "client", &self.client);
        number(out, "epoch", self.epoch);
        number(out, "number", self.number);
        number(out, "lane", u64::from(self.lane));
        number(out, "sequence", self.sequence);
        if self.since_whole_bytes > 0 {
            number(out, "since_whole_bytes", self.since_whole_bytes);
        }
        write_body(&self.document.body, out);
    }

    /// Decodes a value.
    ///
    /// # Errors
    /// [`DecodeError`] if it is no document row.
    pub fn decode(bytes: &[u8]) -> Result<DocumentRow, DecodeError> {
        let (mut client, mut epoch, mut number, mut lane, mut sequence) = (None, None, None, None, None);
        let (mut state_hash, mut body, mut since_whole_bytes) = (None, None, 0);
        let head = read_head(bytes, |key, r| {
            match key {
                "state_hash" => state_hash = Some(r.u64()?),
                "client" => client = Some(client_id(r)?),
                "epoch" => epoch = Some(r.u64()?),
                "number" => number = Some(r.u64()?),
                "lane" => lane = Some(r.u16()?),
                "sequence" => sequence = Some(r.u64()?),
                "since_whole_bytes" => since_whole_bytes = r.u64()?,
                "body" => body = Some(read_body(r)?),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        let body = present(body, "body")?;
        if body.kind() != head.kind {
            return Err(DecodeError::OutOfRange("the kind of the body"));
        }
        Ok(DocumentRow {
            document: Document { revision: head.revision, time_us: head.time_us, body },
            state_hash: present(state_hash, "state_hash")?,
            client: present(client, "client")?,
            epoch: present(epoch, "epoch")?,
            number: present(number, "number")?,
            lane: present(lane, "lane")?,
            sequence: present(sequence, "sequence")?,
            since_whole_bytes,
        })
    }
}

/// What a listing tells of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DocumentHead {
    /// Its revision.
    pub revision: u64,
    /// When it changed last, microseconds since the Unix epoch.
    pub time_us: u64,
    /// Its kind.
    pub kind: Kind,
}

impl DocumentHead {
    /// Decodes the head of a value and its body's encoded length in bytes, without copying the body.
    ///
    /// # Errors
    /// [`DecodeError`] if it is no document row.
    pub fn decode(bytes: &[u8]) -> Result<(DocumentHead, u64), DecodeError> {
        let mut body = None;
        let head = read_head(bytes, |key, r| {
            if key != "body" {
                return Ok(false);
            }
            let raw = r.raw()?;
            body = Some(match Reader::new(raw).token()? {
                Token::Nil => 0,
                Token::Str(text) => text.len(),
                _ => raw.len(),
            });
            Ok(true)
        })?;
        Ok((head, present(body, "body")? as u64))
    }
}

fn read_head<'a>(
    bytes: &'a [u8],
    mut other: impl FnMut(&str, &mut Reader<'a>) -> Result<bool, DecodeError>,
) -> Result<DocumentHead, DecodeError> {
    let (mut revision, mut time_us, mut kind) = (None, None, None);
    read_fields(bytes, |key, r| {
        match key {
            "revision" => revision = Some(r.u64()?),
            "time_us" => time_us = Some(r.u64()?),
            "kind" => kind = Some(read_kind(r)?),
            _ => return other(key, r),
        }
        Ok(true)
    })?;
    Ok(DocumentHead {
        revision: present(revision, "revision")?,
        time_us: present(time_us, "time_us")?,
        kind: present(kind, "kind")?,
    })
}

/// Appends `kind` and `body` as two pairs of a map.
pub(super) fn write_body(body: &Body, out: &mut Vec<u8>) {
    text(out, "kind", body.kind().name());
    out.str("body");
    match body {
        Body::Absent => out.nil(),
        Body::Text(text) => out.str(text),
        Body::Structured(map) => value::write_map(map, out),
    }
}

pub(super) fn read_kind(r: &mut Reader<'_>) -> Result<Kind, DecodeError> {
    let name = r.str()?;
    [Kind::Absent, Kind::Text, Kind::Structured]
        .into_iter()
        .find(|kind| kind.name() == name)
        .ok_or(DecodeError::OutOfRange("a document kind"))
}

pub(super) fn read_body(r: &mut Reader<'_>) -> Result<Body, DecodeError> {
    let raw = r.raw()?;
    let mut inner = Reader::new(raw);
    Ok(match inner.token()? {
        Token::Nil => Body::Absent,
        Token::Str(text) => Body::Text(text.to_owned()),
        Token::Map(_) => Body::Structured(value::read_map(&mut Reader::new(raw))?),
        _ => return Err(DecodeError::Expected("a body")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_and_heads_know_the_length_of_the_body() {
        let map: value::Map = [("a".to_owned(), value::Value::Int(7))].into_iter().collect();
        let bodies = [Body::Absent, Body::Text("ab\u{e9}".repeat(40)), Body::Structured(map)];
        for (body, since_whole_bytes) in bodies.into_iter().zip([0, 1, 1 << 20]) {
            let row = DocumentRow {
                state_hash: body.hash(),
                document: Document { revision: 3, time_us: 4, body },
                client: ClientId::new("c").unwrap(),
                epoch: 5,
                number: 6,
                lane: 1,
                sequence: u64::MAX,
                since_whole_bytes,
            };
            let mut out = Vec::new();
            row.encode(&mut out);
            assert_eq!(DocumentRow::decode(&out), Ok(row.clone()));
            let (head, bytes) = DocumentHead::decode(&out).unwrap();
            assert_eq!((head.revision, head.time_us, head.kind), (3, 4, row.document.body.kind()));
            assert_eq!(bytes as usize, row.document.body.encoded_bytes());
            assert!(DocumentRow::decode(&out[..out.len() - 1]).is_err());
        }
    }
}
