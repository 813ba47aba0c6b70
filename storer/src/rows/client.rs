//! `clients`: which numbers of each client a partition has seen. Key: client id ‖ 0x00 ‖ partition
//! as 1 byte.

use super::{KEY_END, number, present, read_fields, utf8};
use fieldstream_shared::ids::ClientId;
use fieldstream_shared::marks::Mark;
use fieldstream_shared::msgpack::{DecodeError, Reader, Write};
use fieldstream_shared::outcome::Outcome;
use fieldstream_shared::partition::Partition;
use std::collections::BTreeMap;

/// The key of a client's mark in a partition.
pub fn client_key(client: &str, partition: Partition, out: &mut Vec<u8>) {
    out.extend_from_slice(client.as_bytes());
    out.push(KEY_END);
    out.push(partition.0);
}

/// Decodes a key.
///
/// # Errors
/// [`DecodeError`] if it is none.
pub fn parse_client_key(key: &[u8]) -> Result<(ClientId, Partition), DecodeError> {
    let (head, [end, partition]) = key.split_last_chunk::<2>().ok_or(DecodeError::Truncated)?;
    if *end != KEY_END {
        return Err(DecodeError::Expected("a zero byte"));
    }
    let client = ClientId::new(utf8(head)?).map_err(|_| DecodeError::OutOfRange("a client id"))?;
    Ok((client, Partition(*partition)))
}

/// A client's mark in a partition, and when it was last heard of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MarkRow {
    /// What the partition has seen of the client.
    pub mark: Mark,
    /// When a gateway received the newest of it, microseconds since the Unix epoch; 0 in files of
    /// earlier versions.
    pub seen_at_us: u64,
}

/// Appends the value of a mark.
pub fn encode_mark(row: &MarkRow, out: &mut Vec<u8>) {
    let MarkRow { mark, seen_at_us } = row;
    out.map(5);
    number(out, "seen_at_us", *seen_at_us);
    number(out, "epoch", mark.epoch);
    number(out, "highest", mark.highest);
    number(out, "settled", mark.settled);
    out.str("window");
    out.array(mark.window.len());
    for (number, (hash, outcome)) in &mark.window {
        out.array(3);
        out.u64(*number);
        out.u64(u64::from(*hash));
        outcome.write(out);
    }
}

/// Decodes the value of a mark.
///
/// # Errors
/// [`DecodeError`] if it is none.
pub fn decode_mark(bytes: &[u8]) -> Result<MarkRow, DecodeError> {
    let mut seen_at_us = 0;
    let (mut epoch, mut highest, mut settled, mut window) = (None, None, None, None);
    read_fields(bytes, |key, r| {
        match key {
            "seen_at_us" => seen_at_us = r.u64()?,
            "epoch" => epoch = Some(r.u64()?),
            "highest" => highest = Some(r.u64()?),
            "settled" => settled = Some(r.u64()?),
            "window" => window = Some(read_window(r)?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    let mark = Mark {
        epoch: present(epoch, "epoch")?,
        highest: present(highest, "highest")?,
        settled: present(settled, "settled")?,
        window: present(window, "window")?,
    };
    Ok(MarkRow { mark, seen_at_us })
}

fn read_window(r: &mut Reader<'_>) -> Result<BTreeMap<u64, (u32, Outcome)>, DecodeError> {
    let mut window = BTreeMap::new();
    for _ in 0..r.array()? {
        let (number, entry) = r.record(3, |r| Ok((r.u64()?, (r.u32()?, Outcome::read(r)?))))?;
        window.insert(number, entry);
    }
    Ok(window)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fieldstream_shared::code::Code;

    #[test]
    fn marks_and_their_keys_come_back() {
        let window = [(7, (1, Outcome::Applied { revision: 9 })), (8, (u32::MAX, Outcome::Refused(Code::CONFLICT)))];
        let mark = Mark { epoch: 1, highest: 8, settled: 7, window: window.into_iter().collect() };
        let mut out = Vec::new();
        let row = MarkRow { mark, seen_at_us: 7 };
        encode_mark(&row, &mut out);
        assert_eq!(decode_mark(&out), Ok(row));
        out.clear();
        client_key("boiler", Partition(0), &mut out);
        assert_eq!(parse_client_key(&out), Ok((ClientId::new("boiler").unwrap(), Partition(0))));
        assert!(parse_client_key(b"x").is_err());
    }
}
