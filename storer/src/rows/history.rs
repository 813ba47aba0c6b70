//! `history`: every change of every document. Key: id ‖ 0x00 ‖ revision as 8 bytes big-endian.

use super::document::{read_body, read_kind, write_body};
use super::{KEY_END, client_id, document_id, number, present, read_fields, text, utf8};
use fieldstream_shared::change::{Change, Primitive, Version, read_change, write_change};
use fieldstream_shared::document::Body;
use fieldstream_shared::ids::{ClientId, DocumentId};
use fieldstream_shared::msgpack::{DecodeError, Reader, Write};

/// The key of a change.
pub fn history_key(document: &str, revision: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(document.as_bytes());
    out.push(KEY_END);
    out.extend_from_slice(&revision.to_be_bytes());
}

/// A decoded key of `history`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryKey {
    /// The document.
    pub document: DocumentId,
    /// The revision the change made.
    pub revision: u64,
}

impl HistoryKey {
    /// Decodes a key.
    ///
    /// # Errors
    /// [`DecodeError`] if it is none.
    pub fn decode(key: &[u8]) -> Result<HistoryKey, DecodeError> {
        let (head, revision) = key.split_last_chunk::<8>().ok_or(DecodeError::Truncated)?;
        let id = head.strip_suffix(&[KEY_END]).ok_or(DecodeError::Expected("a zero byte"))?;
        Ok(HistoryKey { document: document_id(utf8(id)?)?, revision: u64::from_be_bytes(*revision) })
    }
}

/// One change of a document.
#[derive(Debug, Clone, PartialEq)]
pub struct HistoryRow {
    /// Revision, state hash and event time after the change.
    pub version: Version,
    /// The client that caused it.
    pub client: ClientId,
    /// The client's epoch.
    pub epoch: u64,
    /// The client's number.
    pub number: u64,
    /// The lane of the sequences below.
    pub lane: u16,
    /// INSTRUCTIONS sequence of the instruction's message.
    pub instruction_sequence: u64,
    /// The instruction's index in that message.
    pub instruction_index: u32,
    /// EVENTS sequence of the change.
    pub sequence: u64,
    /// When the gateway received the instruction, microseconds since the Unix epoch.
    pub received_at_us: u64,
    /// What changed.
    pub change: Change,
    /// The whole state after the change, in rows that tell it.
    pub body: Option<Body>,
}

/// Keys of a row without the whole state.
const KEYS: u8 = 12;
/// A map of so few pairs begins with one byte.
const FIXMAP: u8 = 0x80;

/// Adds the state after the change to the encoded row that begins at `start`.
pub fn add_whole_state(body: &Body, start: usize, out: &mut Vec<u8>) {
    if let Some(head) = out.get_mut(start) {
        *head = FIXMAP | (KEYS + 2);
    }
    write_body(body, out);
}

/// Whether the state after a change can be told from its row alone, and the time of the change in
/// microseconds since the Unix epoch.
///
/// # Errors
/// [`DecodeError`] if the bytes are no history row.
pub fn tells_whole_state(bytes: &[u8]) -> Result<(bool, u64), DecodeError> {
    let mut has_body = false;
    let (version, _, _, change) = HistoryRow::read(bytes, |key, _| {
        has_body |= key == "body";
        Ok(false)
    })?;
    let is_whole =
        has_body || fieldstream_shared::msgpack::decode(change, read_change)?.iter().any(Primitive::sets_whole_state);
    Ok((is_whole, version.time_us))
}

impl HistoryRow {
    /// Appends the value.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.map(usize::from(KEYS));
        number(out, "revision", self.version.revision);
        number(out, "state_hash", self.version.state_hash);
        number(out, "time_us", self.version.time_us);
        text(out, "client", &self.client);
        number(out, "epoch", self.epoch);
        number(out, "number", self.number);
        number(out, "lane", u64::from(self.lane));
        number(out, "instruction_sequence", self.instruction_sequence);
        number(out, "instruction_index", u64::from(self.instruction_index));
        number(out, "sequence", self.sequence);
        number(out, "received_at_us", self.received_at_us);
        out.str("change");
        write_change(&self.change, out);
        if let Some(body) = &self.body {
            add_whole_state(body, start, out);
        }
    }

    /// Decodes a value.
    ///
    /// # Errors
    /// [`DecodeError`] if it is no history row.
    pub fn decode(bytes: &[u8]) -> Result<HistoryRow, DecodeError> {
        let (mut epoch, mut lane, mut received_at_us) = (None, None, None);
        let (mut instruction_sequence, mut instruction_index, mut sequence) = (None, None, None);
        let (mut kind, mut body) = (None, None);
        let (version, client, number, change) = Self::read(bytes, |key, r| {
            match key {
                "epoch" => epoch = Some(r.u64()?),
                "lane" => lane = Some(r.u16()?),
                "instruction_sequence" => instruction_sequence = Some(r.u64()?),
                "instruction_index" => instruction_index = Some(r.u32()?),
                "sequence" => sequence = Some(r.u64()?),
                "received_at_us" => received_at_us = Some(r.u64()?),
                "kind" => kind = Some(read_kind(r)?),
                "body" => body = Some(read_body(r)?),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        if body.as_ref().map(Body::kind) != kind {
            return Err(DecodeError::OutOfRange("the kind of the body"));
        }
        Ok(HistoryRow {
            body,
            version,
            client,
            epoch: present(epoch, "epoch")?,
            number,
            lane: present(lane, "lane")?,
            instruction_sequence: present(instruction_sequence, "instruction_sequence")?,
            instruction_index: present(instruction_index, "instruction_index")?,
            sequence: present(sequence, "sequence")?,
            received_at_us: present(received_at_us, "received_at_us")?,
            change: fieldstream_shared::msgpack::decode(change, read_change)?,
        })
    }

    /// Version, client, number and the encoded change: what watchers that catch up need.
    ///
    /// # Errors
    /// [`DecodeError`] if the bytes are no history row.
    pub fn decode_for_watchers(bytes: &[u8]) -> Result<(Version, ClientId, u64, &[u8]), DecodeError> {
        Self::read(bytes, |_, _| Ok(false))
    }

    fn read<'a>(
        bytes: &'a [u8],
        mut other: impl FnMut(&str, &mut Reader<'a>) -> Result<bool, DecodeError>,
    ) -> Result<(Version, ClientId, u64, &'a [u8]), DecodeError> {
        let (mut revision, mut state_hash, mut time_us) = (None, None, None);
        let (mut client, mut number, mut change) = (None, None, None);
        read_fields(bytes, |key, r| {
            match key {
                "revision" => revision = Some(r.u64()?),
                "state_hash" => state_hash = Some(r.u64()?),
                "time_us" => time_us = Some(r.u64()?),
                "client" => client = Some(client_id(r)?),
                "number" => number = Some(r.u64()?),
                "change" => change = Some(r.raw()?),
                _ => return other(key, r),
            }
            Ok(true)
        })?;
        let version = Version {
            revision: present(revision, "revision")?,
            state_hash: present(state_hash, "state_hash")?,
            time_us: present(time_us, "time_us")?,
        };
        Ok((version, present(client, "client")?, present(number, "number")?, present(change, "change")?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fieldstream_shared::change::Primitive;

    #[test]
    fn keys_sort_by_document_then_revision() {
        let key = |id: &str, revision| {
            let mut out = Vec::new();
            history_key(id, revision, &mut out);
            out
        };
        let sorted = [key("a", 255), key("a", 256), key("a ", 1), key("a/b", 1), key("ab", 1), key("b", 1)];
        assert!(sorted.is_sorted());
        let parsed = HistoryKey::decode(&sorted[3]).unwrap();
        assert_eq!((parsed.document.as_str(), parsed.revision), ("a/b", 1));
        assert!(HistoryKey::decode(b"a").is_err());
    }

    #[test]
    fn rows_come_back() {
        let row = HistoryRow {
            version: Version { revision: 1, state_hash: u64::MAX, time_us: 2 },
            client: ClientId::new("c").unwrap(),
            epoch: 3,
            number: 4,
            lane: 5,
            instruction_sequence: 6,
            instruction_index: 7,
            sequence: 8,
            received_at_us: 9,
            change: vec![Primitive::Append("x".into())],
            body: None,
        };
        let mut out = Vec::new();
        row.encode(&mut out);
        assert_eq!(HistoryRow::decode(&out), Ok(row.clone()));
        assert_eq!(tells_whole_state(&out), Ok((false, 2)));
        let whole = HistoryRow { body: Some(Body::Text("yx".into())), ..row.clone() };
        let mut added = out.clone();
        add_whole_state(&Body::Text("yx".into()), 0, &mut added);
        assert_eq!(HistoryRow::decode(&added), Ok(whole.clone()));
        assert_eq!(tells_whole_state(&added), Ok((true, 2)));
        let mut encoded = vec![];
        whole.encode(&mut encoded);
        assert_eq!(encoded, added);
        let deleted = HistoryRow { change: vec![Primitive::Append("x".into()), Primitive::Delete], ..row.clone() };
        encoded.clear();
        deleted.encode(&mut encoded);
        assert_eq!(tells_whole_state(&encoded), Ok((true, 2)));
        let (version, client, number, change) = HistoryRow::decode_for_watchers(&out).unwrap();
        assert_eq!((version, client, number), (row.version, row.client, 4));
        assert_eq!(change[0], 0x91);
    }
}
