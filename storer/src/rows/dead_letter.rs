//! `dead_letters`: records that could not be carried out because of themselves. Key: lane as 2
//! bytes ‖ EVENTS sequence as 8 bytes ‖ index of the event in its batch as 4 bytes, big-endian.

use super::{document_id, number, present, read_fields, text};
use fieldstream_shared::code::Code;
use fieldstream_shared::dead_letter::{DeadLetter, DeadLetterId};
use fieldstream_shared::event::Origin;
use fieldstream_shared::ids::ClientId;
use fieldstream_shared::marks::Arrival;
use fieldstream_shared::msgpack::{DecodeError, Write};
use fieldstream_shared::partition::Partition;

/// The key of a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeadLetterKey {
    /// The lane.
    pub lane: u16,
    /// EVENTS sequence of the `dead` event's batch.
    pub sequence: u64,
    /// The event's index in the batch.
    pub event_index: u32,
}

impl DeadLetterKey {
    /// The encoded key.
    pub fn encode(&self) -> [u8; 14] {
        let mut key = [0; 14];
        key[..2].copy_from_slice(&self.lane.to_be_bytes());
        key[2..10].copy_from_slice(&self.sequence.to_be_bytes());
        key[10..].copy_from_slice(&self.event_index.to_be_bytes());
        key
    }

    /// Decodes a key.
    ///
    /// # Errors
    /// [`DecodeError`] if it is none.
    pub fn decode(key: &[u8]) -> Result<DeadLetterKey, DecodeError> {
        let (lane, rest) = key.split_first_chunk::<2>().ok_or(DecodeError::Truncated)?;
        let (sequence, rest) = rest.split_first_chunk::<8>().ok_or(DecodeError::Truncated)?;
        let index: &[u8; 4] = rest.try_into().map_err(|_| DecodeError::Truncated)?;
        Ok(DeadLetterKey {
            lane: u16::from_be_bytes(*lane),
            sequence: u64::from_be_bytes(*sequence),
            event_index: u32::from_be_bytes(*index),
        })
    }
}

/// A dead letter.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadLetterRow {
    /// Why, as a number.
    pub code: Code,
    /// Why, in words.
    pub reason: String,
    /// The partition.
    pub partition: Partition,
    /// INSTRUCTIONS sequence of the record's message.
    pub instruction_sequence: u64,
    /// The record's index in that message.
    pub instruction_index: u32,
    /// When the gateway received it, microseconds since the Unix epoch.
    pub received_at_us: u64,
    /// Client, number and document, if the record told them.
    pub origin: Option<Origin>,
    /// The record as it stands in INSTRUCTIONS, cut at a limit.
    pub raw: Vec<u8>,
}

impl DeadLetterRow {
    /// The letter as the read service tells it.
    pub fn into_letter(self, key: DeadLetterKey) -> DeadLetter {
        DeadLetter {
            id: DeadLetterId { lane: key.lane, sequence: key.sequence, event_index: key.event_index },
            code: self.code,
            reason: self.reason,
            partition: self.partition,
            instruction_sequence: self.instruction_sequence,
            instruction_index: self.instruction_index,
            received_at_us: self.received_at_us,
            origin: self.origin,
            raw: self.raw,
        }
    }

    /// Appends the value.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.map(if self.origin.is_some() { 14 } else { 8 });
        number(out, "code", u64::from(self.code.0));
        text(out, "code_name", self.code.name());
        text(out, "reason", &self.reason);
        number(out, "partition", u64::from(self.partition.0));
        number(out, "instruction_sequence", self.instruction_sequence);
        number(out, "instruction_index", u64::from(self.instruction_index));
        number(out, "received_at_us", self.received_at_us);
        if let Some(origin) = &self.origin {
            text(out, "document", &origin.document);
            text(out, "client", &origin.client);
            number(out, "epoch", origin.arrival.epoch);
            number(out, "number", origin.arrival.number);
            number(out, "settled", origin.arrival.settled);
            number(out, "content_hash", u64::from(origin.arrival.content_hash));
        }
        out.str("raw");
        out.bin(&self.raw);
    }

    /// Decodes a value.
    ///
    /// # Errors
    /// [`DecodeError`] if it is no dead letter.
    pub fn decode(bytes: &[u8]) -> Result<DeadLetterRow, DecodeError> {
        let (mut code, mut reason, mut partition, mut raw) = (None, None, None, None);
        let (mut instruction_sequence, mut instruction_index, mut received_at_us) = (None, None, None);
        let (mut document, mut client) = (None, None);
        let mut arrival = Arrival { epoch: 0, number: 0, settled: 0, content_hash: 0 };
        read_fields(bytes, |key, r| {
            match key {
                "code" => code = Some(Code(r.u16()?)),
                "reason" => reason = Some(r.str()?.to_owned()),
                "partition" => {
                    partition = Some(u8::try_from(r.u64()?).map_err(|_| DecodeError::OutOfRange("a partition"))?);
                }
                "instruction_sequence" => instruction_sequence = Some(r.u64()?),
                "instruction_index" => instruction_index = Some(r.u32()?),
                "received_at_us" => received_at_us = Some(r.u64()?),
                "document" => document = Some(document_id(r.str()?)?),
                "client" => client = ClientId::new(r.str()?).ok(),
                "epoch" => arrival.epoch = r.u64()?,
                "number" => arrival.number = r.u64()?,
                "settled" => arrival.settled = r.u64()?,
                "content_hash" => arrival.content_hash = r.u32()?,
                "raw" => raw = Some(r.bin()?.to_owned()),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(DeadLetterRow {
            code: present(code, "code")?,
            reason: present(reason, "reason")?,
            partition: Partition(present(partition, "partition")?),
            instruction_sequence: present(instruction_sequence, "instruction_sequence")?,
            instruction_index: present(instruction_index, "instruction_index")?,
            received_at_us: present(received_at_us, "received_at_us")?,
            origin: client.zip(document).map(|(client, document)| Origin { client, arrival, document }),
            raw: present(raw, "raw")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fieldstream_shared::ids::DocumentId;

    #[test]
    fn letters_and_their_keys_come_back() {
        let origin = Origin {
            client: ClientId::new("c").unwrap(),
            arrival: Arrival { epoch: 1, number: 2, settled: 1, content_hash: 3 },
            document: DocumentId::new("d").unwrap(),
        };
        for origin in [None, Some(origin)] {
            let row = DeadLetterRow {
                code: Code::UNDECODABLE,
                reason: "why".into(),
                partition: Partition(255),
                instruction_sequence: 4,
                instruction_index: 5,
                received_at_us: 6,
                origin,
                raw: vec![0xc1; 300],
            };
            let mut out = Vec::new();
            row.encode(&mut out);
            assert_eq!(DeadLetterRow::decode(&out), Ok(row));
        }
        let key = DeadLetterKey { lane: 1, sequence: 2, event_index: 3 };
        assert_eq!(DeadLetterKey::decode(&key.encode()), Ok(key));
        assert!(DeadLetterKey::decode(&key.encode()[1..]).is_err());
    }
}
