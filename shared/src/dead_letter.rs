//! Dead letters as the read service hands them out (`docs/LOG.md`): records that could not be
//! carried out because of themselves.

use crate::code::Code;
use crate::event::Origin;
use crate::msgpack::{DecodeError, Reader, Write};
use crate::partition::Partition;
use std::fmt;
use std::str::FromStr;

/// Which dead letter: the place of its event in EVENTS. Written as `lane-sequence-index`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeadLetterId {
    /// The lane.
    pub lane: u16,
    /// EVENTS sequence of the `dead` event's batch.
    pub sequence: u64,
    /// The event's index in the batch.
    pub event_index: u32,
}

impl fmt::Display for DeadLetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.lane, self.sequence, self.event_index)
    }
}

/// A text that names no dead letter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no id of a dead letter; they look like 0-4711-3")]
pub struct NoDeadLetterId(String);

impl FromStr for DeadLetterId {
    type Err = NoDeadLetterId;

    fn from_str(text: &str) -> Result<DeadLetterId, NoDeadLetterId> {
        let parse = || {
            let (lane, rest) = text.split_once('-')?;
            let (sequence, index) = rest.split_once('-')?;
            let (lane, sequence) = (lane.parse().ok()?, sequence.parse().ok()?);
            Some(DeadLetterId { lane, sequence, event_index: index.parse().ok()? })
        };
        parse().ok_or_else(|| NoDeadLetterId(text.to_owned()))
    }
}

/// A record that could not be carried out because of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadLetter {
    /// Which one.
    pub id: DeadLetterId,
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

impl DeadLetter {
    /// Appends `[lane, sequence, event_index, code, reason, partition, instruction_sequence,
    /// instruction_index, received_at_us, origin, raw]`.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.array(11);
        out.u64(u64::from(self.id.lane));
        out.u64(self.id.sequence);
        out.u64(u64::from(self.id.event_index));
        out.u64(u64::from(self.code.0));
        out.str(&self.reason);
        out.u64(u64::from(self.partition.0));
        out.u64(self.instruction_sequence);
        out.u64(u64::from(self.instruction_index));
        out.u64(self.received_at_us);
        out.optional(self.origin.as_ref(), |out, origin| origin.write(out));
        out.bin(&self.raw);
    }

    /// Reads what [`DeadLetter::write`] wrote.
    ///
    /// # Errors
    /// [`DecodeError`] if it is not of that form.
    pub fn read(reader: &mut Reader<'_>) -> Result<DeadLetter, DecodeError> {
        reader.record(11, |r| {
            Ok(DeadLetter {
                id: DeadLetterId { lane: r.u16()?, sequence: r.u64()?, event_index: r.u32()? },
                code: Code(r.u16()?),
                reason: r.str()?.to_owned(),
                partition: Partition(u8::try_from(r.u64()?).map_err(|_| DecodeError::OutOfRange("a partition"))?),
                instruction_sequence: r.u64()?,
                instruction_index: r.u32()?,
                received_at_us: r.u64()?,
                origin: r.optional(Origin::read)?,
                raw: r.bin()?.to_owned(),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_back_from_their_text() {
        let id = DeadLetterId { lane: 3, sequence: 4711, event_index: 12 };
        assert_eq!(id.to_string().parse(), Ok(id));
        for text in ["", "1", "1-2", "1-2-3-4", "-1-2-3", "70000-1-1", "a-b-c"] {
            assert!(text.parse::<DeadLetterId>().is_err(), "{text}");
        }
    }
}
