//! Events and event batches: the messages of a lane's EVENTS stream (`docs/LOG.md`).

use crate::change::{Change, Version, read_change, write_change};
use crate::code::Code;
use crate::cursor::{BatchId, Part};
use crate::ids::{ClientId, DocumentId};
use crate::marks::{Arrival, Mark};
use crate::msgpack::{DecodeError, Reader, Write, decode};
use crate::outcome::Outcome;
use crate::partition::Partition;
use crate::record::{BatchBuilder, LOG_VERSION, read_list, read_version};
use crate::trace;

/// What one instruction led to. Every record of INSTRUCTIONS gets exactly one accepted event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The partition whose cursor decides whether the event counts.
    pub partition: Partition,
    /// INSTRUCTIONS sequence of the record's message.
    pub sequence: u64,
    /// The record's index in that message.
    pub index: u32,
    /// Who asked; `None` if the record could not be decoded.
    pub origin: Option<Origin>,
    /// When the gateway received the instruction, microseconds since the Unix epoch.
    pub received_at_us: u64,
    /// What happened.
    pub body: EventBody,
    /// Its instruction is traced: the number of the gateway that stamps go to ([`crate::trace`]).
    pub trace: Option<u64>,
}

/// The instruction an event answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The client.
    pub client: ClientId,
    /// Its number.
    pub arrival: Arrival,
    /// The document the instruction was about.
    pub document: DocumentId,
}

/// What an event says.
#[derive(Debug, Clone, PartialEq)]
pub enum EventBody {
    /// The document changed.
    Updated {
        /// Revision, state hash and event time after the change.
        version: Version,
        /// What changed.
        change: Change,
    },
    /// The instruction was refused; nothing changed.
    Refused(Code),
    /// The instruction cannot be carried out because of itself.
    Dead {
        /// Why.
        code: Code,
        /// Why, in words.
        reason: String,
        /// The record as it stands in INSTRUCTIONS, cut at a limit.
        raw: Vec<u8>,
    },
    /// The number was seen before: its outcome from then. No change, no revision, no history.
    Repeated(Outcome),
    /// A storer asked to forget the client's mark; `true` if it is gone, `false` if the client was
    /// heard of since. Nobody is told.
    Forgotten(bool),
}

impl EventBody {
    /// The outcome the client is told.
    pub fn outcome(&self) -> Outcome {
        match self {
            EventBody::Updated { version, .. } => Outcome::Applied { revision: version.revision },
            EventBody::Refused(code) => Outcome::Refused(*code),
            EventBody::Dead { code, .. } => Outcome::Dead(*code),
            EventBody::Repeated(outcome) => *outcome,
            // No client has sent it, so none is told.
            EventBody::Forgotten(_) => Outcome::Refused(Code::SKIPPED),
        }
    }
}

impl Event {
    /// Takes the event into its client's mark.
    pub fn fold_into(&self, mark: &mut Mark) {
        let Some(origin) = &self.origin else { return };
        if let EventBody::Forgotten(gone) = self.body {
            if gone {
                *mark = Mark::default();
            }
            return;
        }
        let outcome = match &self.body {
            EventBody::Repeated(_) | EventBody::Refused(Code::SKIPPED | Code::STALE_EPOCH | Code::NUMBER_REUSED) => {
                None
            }
            body => Some(body.outcome()),
        };
        mark.fold(&origin.arrival, outcome);
    }

    /// The encoded event: `[kind, partition, sequence, index, origin, received_at_us, …]`.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        let head = |out: &mut Vec<u8>, kind: u64, more: usize| {
            out.array(6 + more + usize::from(self.trace.is_some()));
            out.u64(kind);
            out.u64(u64::from(self.partition.0));
            out.u64(self.sequence);
            out.u64(u64::from(self.index));
            out.optional(self.origin.as_ref(), |out, origin| origin.write(out));
            out.u64(self.received_at_us);
        };
        match &self.body {
            EventBody::Updated { version, change } => {
                head(&mut out, 1, 4);
                out.u64(version.revision);
                out.u64(version.state_hash);
                out.u64(version.time_us);
                write_change(change, &mut out);
            }
            EventBody::Refused(code) => {
                head(&mut out, 2, 1);
                out.u64(u64::from(code.0));
            }
            EventBody::Dead { code, reason, raw } => {
                head(&mut out, 3, 3);
                out.u64(u64::from(code.0));
                out.str(reason);
                out.bin(raw);
            }
            EventBody::Repeated(outcome) => {
                head(&mut out, 4, 1);
                outcome.write(&mut out);
            }
            EventBody::Forgotten(gone) => {
                head(&mut out, 5, 1);
                out.u64(u64::from(*gone));
            }
        }
        if let Some(gateway) = self.trace {
            out.u64(gateway);
        }
        out
    }

    /// Decodes an event.
    ///
    /// # Errors
    /// [`DecodeError`] if the bytes are no event.
    pub fn decode(bytes: &[u8]) -> Result<Event, DecodeError> {
        decode(bytes, |r| {
            let n = r.array()?;
            let kind = r.u64()?;
            let known = match kind {
                1 => 10,
                2 | 4 | 5 => 7,
                3 => 9,
                _ => return Err(DecodeError::OutOfRange("an event kind")),
            };
            let more = n.checked_sub(known).ok_or(DecodeError::Expected("a longer array"))?;
            let partition = u8::try_from(r.u64()?).map_err(|_| DecodeError::OutOfRange("a partition"))?;
            let (sequence, index) = (r.u64()?, r.u32()?);
            let origin = r.optional(Origin::read)?;
            let received_at_us = r.u64()?;
            let body = match kind {
                1 => {
                    let version = Version { revision: r.u64()?, state_hash: r.u64()?, time_us: r.u64()? };
                    EventBody::Updated { version, change: read_change(r)? }
                }
                2 => EventBody::Refused(Code(r.u16()?)),
                3 => EventBody::Dead { code: Code(r.u16()?), reason: r.str()?.to_owned(), raw: r.bin()?.to_owned() },
                4 => EventBody::Repeated(Outcome::read(r)?),
                _ => EventBody::Forgotten(r.u64()? != 0),
            };
            let trace = trace::read_gateway(r, more)?;
            if origin.is_none() && !matches!(body, EventBody::Dead { .. }) {
                return Err(DecodeError::Expected("the origin of the event"));
            }
            Ok(Event { partition: Partition(partition), sequence, index, origin, received_at_us, body, trace })
        })
    }
}

impl Origin {
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.array(6);
        out.str(&self.client);
        out.u64(self.arrival.epoch);
        out.u64(self.arrival.number);
        out.u64(self.arrival.settled);
        out.u64(u64::from(self.arrival.content_hash));
        out.str(&self.document);
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Origin, DecodeError> {
        reader.record(6, |r| {
            let client = ClientId::new(r.str()?).map_err(|_| DecodeError::OutOfRange("a client id"))?;
            let arrival = Arrival { epoch: r.u64()?, number: r.u64()?, settled: r.u64()?, content_hash: r.u32()? };
            let document = DocumentId::new(r.str()?).map_err(|_| DecodeError::OutOfRange("a document id"))?;
            Ok(Origin { client, arrival, document })
        })
    }
}

/// A decoded message of an EVENTS stream, its events still encoded.
#[derive(Debug, Clone, PartialEq)]
pub struct EventBatch<'a> {
    /// Which batch it is.
    pub id: BatchId,
    /// The steps of partitions that the batch claims.
    pub parts: Vec<Part>,
    /// Encoded events, in the order of their positions within each partition.
    pub events: Vec<&'a [u8]>,
}

impl<'a> EventBatch<'a> {
    /// Decodes a message.
    ///
    /// # Errors
    /// [`DecodeError`]: the reader must stop and say so, never skip the batch.
    pub fn decode(message: &'a [u8]) -> Result<EventBatch<'a>, DecodeError> {
        decode(message, |r| {
            r.record(4, |r| {
                read_version(r)?;
                let id = BatchId::read(r)?;
                let mut parts = Vec::new();
                for _ in 0..r.array()? {
                    parts.push(Part::read(r)?);
                }
                Ok(EventBatch { id, parts, events: read_list(r)? })
            })
        })
    }
}

/// The message `[1, id, [part, …], [event, …]]` of an EVENTS stream.
pub fn encode_event_batch(id: BatchId, parts: &[Part], events: &BatchBuilder) -> Vec<u8> {
    let mut out = Vec::with_capacity(events.bytes() + parts.len() * 80 + 64);
    out.array(4);
    out.u64(LOG_VERSION);
    id.write(&mut out);
    out.array(parts.len());
    parts.iter().for_each(|part| part.write(&mut out));
    events.write_list(&mut out);
    out
}

/// xxh3_64 of a stored message: checkpoints name messages by sequence and this hash, so that a log
/// that went backwards or was replaced is found.
pub fn message_hash(message: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Primitive;
    use crate::cursor::{Cursor, Position};
    use crate::partition::PartitionSet;

    fn event(body: EventBody) -> Event {
        let origin = Origin {
            client: ClientId::new("c").unwrap(),
            arrival: Arrival { epoch: 1, number: 2, settled: 1, content_hash: 3 },
            document: DocumentId::new("d").unwrap(),
        };
        Event {
            partition: Partition(4),
            sequence: 5,
            index: 6,
            origin: Some(origin),
            received_at_us: 7,
            body,
            trace: None,
        }
    }

    #[test]
    fn events_and_batches_come_back_from_their_bytes() {
        let version = Version { revision: 1, state_hash: u64::MAX, time_us: 8 };
        let events = [
            event(EventBody::Updated { version, change: vec![Primitive::Append("x".into())] }),
            event(EventBody::Refused(Code::CONFLICT)),
            Event {
                origin: None,
                ..event(EventBody::Dead { code: Code::UNDECODABLE, reason: "why".into(), raw: vec![1] })
            },
            event(EventBody::Repeated(Outcome::Applied { revision: 9 })),
            event(EventBody::Forgotten(true)),
            event(EventBody::Forgotten(false)),
            Event { trace: Some(u64::MAX), ..event(EventBody::Refused(Code::CONFLICT)) },
            Event {
                trace: Some(1),
                ..event(EventBody::Updated { version, change: vec![Primitive::Append("x".into())] })
            },
        ];
        let mut list = BatchBuilder::default();
        events.iter().for_each(|e| list.push(&e.encode()));
        let id = BatchId { incarnation: 1, counter: 2 };
        let upto = Position { sequence: 5, records: 7 };
        let parts = [Part { partitions: PartitionSet::ALL, after: Cursor::default(), upto }];
        let message = encode_event_batch(id, &parts, &list);
        let batch = EventBatch::decode(&message).unwrap();
        assert_eq!((batch.id, batch.parts.as_slice()), (id, parts.as_slice()));
        for (bytes, event) in batch.events.iter().zip(&events) {
            assert_eq!(Event::decode(bytes).as_ref(), Ok(event));
        }
    }

    #[test]
    fn an_event_of_a_traced_instruction_is_read_by_who_does_not_know_traces() {
        let plain = event(EventBody::Refused(Code::CONFLICT));
        let traced = Event { trace: Some(7), ..plain.clone() };
        let (plain_bytes, traced_bytes) = (plain.encode(), traced.encode());
        assert_eq!(plain_bytes[0], 0x97, "without a trace the bytes are those of before");
        assert_eq!((traced_bytes[0], &traced_bytes[1..plain_bytes.len()]), (0x98, &plain_bytes[1..]));
        let mut newer = traced_bytes;
        newer[0] += 1;
        newer.str("more");
        assert_eq!(Event::decode(&newer), Ok(traced));
    }
}
