//! `by_time`: every change in the order of event time. Key: time as 8 bytes big-endian ‖ id ‖ 0x00 ‖
//! revision as 8 bytes big-endian.

use super::{HistoryKey, history_key, number, present, read_fields};
use fieldstream_shared::msgpack::{DecodeError, Write};

/// The key of a change, by its time in microseconds since the Unix epoch.
pub fn by_time_key(time_us: u64, document: &str, revision: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(&time_us.to_be_bytes());
    history_key(document, revision, out);
}

/// Time and change that a key names.
///
/// # Errors
/// [`DecodeError`] if it is no key of `by_time`.
pub fn parse_by_time_key(key: &[u8]) -> Result<(u64, HistoryKey), DecodeError> {
    let (time_us, change) = key.split_first_chunk::<8>().ok_or(DecodeError::Truncated)?;
    Ok((u64::from_be_bytes(*time_us), HistoryKey::decode(change)?))
}

/// Where the change stands in the log of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByTimeRow {
    /// The lane it came through.
    pub lane: u16,
    /// Its EVENTS sequence.
    pub sequence: u64,
}

impl ByTimeRow {
    /// Appends the value.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.map(2);
        number(out, "lane", u64::from(self.lane));
        number(out, "sequence", self.sequence);
    }

    /// Decodes a value.
    ///
    /// # Errors
    /// [`DecodeError`] if it is none.
    pub fn decode(bytes: &[u8]) -> Result<ByTimeRow, DecodeError> {
        let (mut lane, mut sequence) = (None, None);
        read_fields(bytes, |key, r| {
            match key {
                "lane" => lane = Some(r.u16()?),
                "sequence" => sequence = Some(r.u64()?),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(ByTimeRow { lane: present(lane, "lane")?, sequence: present(sequence, "sequence")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_by_time_first_and_come_back() {
        let key = |time_us, id: &str, revision| {
            let mut out = Vec::new();
            by_time_key(time_us, id, revision, &mut out);
            out
        };
        let sorted = [key(255, "z", 9), key(256, "a", 2), key(256, "a", 300), key(256, "a/b", 1), key(257, "a", 1)];
        assert!(sorted.is_sorted());
        let (time_us, change) = parse_by_time_key(&sorted[3]).unwrap();
        assert_eq!((time_us, change.document.as_str(), change.revision), (256, "a/b", 1));
        assert!(parse_by_time_key(b"1234567").is_err());
        let row = ByTimeRow { lane: 3, sequence: 1 << 40 };
        let mut out = Vec::new();
        row.encode(&mut out);
        assert_eq!(ByTimeRow::decode(&out), Ok(row));
    }
}
