//! Record batches: the messages of a lane's INSTRUCTIONS stream (`docs/LOG.md`).

use crate::code::Code;
use crate::ids::{ClientId, DocumentId, Number};
use crate::instruction::Content;
use crate::limits::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX};
use crate::marks::Arrival;
use crate::msgpack::{DecodeError, Reader, Write, decode};
use crate::trace;

/// The version of both logs' messages that this code writes and the newest it reads.
pub const LOG_VERSION: u64 = 1;

/// A decoded record of INSTRUCTIONS.
#[derive(Debug, Clone, PartialEq)]
pub struct Record<'a> {
    /// Who sent it, and its number.
    pub number: Number,
    /// Settled, content hash: what the client's mark is asked about.
    pub arrival: Arrival,
    /// Whether the client had sent the number before.
    pub resent: bool,
    /// When the gateway received it, microseconds since the Unix epoch.
    pub received_at_us: u64,
    /// The document it is about.
    pub document: DocumentId,
    /// What is to be done.
    pub action: Action<'a>,
    /// It is traced: the number of the gateway that stamps go to ([`crate::trace`]).
    pub trace: Option<u64>,
}

/// What a record asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Action<'a> {
    /// Carry out an instruction.
    Instruct {
        /// The revision the document must have; 0 must not exist.
        if_revision: Option<u64>,
        /// The encoded operation.
        operation: &'a [u8],
    },
    /// The gateway had to refuse a resent number that the log may already hold: the partition's
    /// owner decides whether it does.
    Refuse(Code),
    /// A storer found that the client has sent nothing for long: its mark in the partition goes, if the
    /// number is still the highest seen. The document only names the partition.
    Forget,
}

/// The form in which a gateway makes a record.
#[derive(Debug, Clone, Copy)]
pub struct NewRecord<'a> {
    /// The client's id.
    pub client: &'a str,
    /// The client's epoch.
    pub epoch: u64,
    /// The number within the epoch.
    pub number: u64,
    /// The lowest number the client has not resolved.
    pub settled: u64,
    /// Whether the client had sent the number before.
    pub resent: bool,
    /// When the gateway received it, microseconds since the Unix epoch.
    pub received_at_us: u64,
    /// Document, condition and operation.
    pub content: Content<'a>,
    /// Refuse it with this code instead of carrying it out.
    pub refuse: Option<Code>,
    /// Trace it: the number of the gateway that stamps go to.
    pub trace: Option<u64>,
}

const FLAG_RESENT: u64 = 1;

impl NewRecord<'_> {
    /// The encoded record.
    pub fn encode(&self) -> Vec<u8> {
        let mut out =
            Vec::with_capacity(self.content.operation.len() + self.content.document.len() + self.client.len() + 64);
        let flags = if self.resent { FLAG_RESENT } else { 0 };
        out.array(10 + usize::from(self.trace.is_some()));
        out.u64(if self.refuse.is_some() { 2 } else { 1 });
        out.str(self.client);
        out.u64(self.epoch);
        out.u64(self.number);
        out.u64(self.settled);
        out.u64(flags);
        out.u64(self.received_at_us);
        match self.refuse {
            None => self.content.write(&mut out),
            Some(code) => {
                out.str(self.content.document);
                out.u64(u64::from(code.0));
                out.u64(u64::from(self.content.hash()));
            }
        }
        if let Some(gateway) = self.trace {
            out.u64(gateway);
        }
        out
    }
}

/// The record that asks to forget a client's mark in the partition of a document, if `epoch` and
/// `highest` are still what it says.
pub fn encode_forget(client: &str, (epoch, highest): (u64, u64), document: &str, now_us: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(client.len() + document.len() + 48);
    out.array(10);
    out.u64(3);
    out.str(client);
    for n in [epoch, highest, 0, 0, now_us] {
        out.u64(n);
    }
    out.str(document);
    out.nil();
    out.nil();
    out
}

impl<'a> Record<'a> {
    /// Decodes a record.
    ///
    /// # Errors
    /// [`DecodeError`] if the bytes are no record of a known kind.
    pub fn decode(bytes: &'a [u8]) -> Result<Record<'a>, DecodeError> {
        decode(bytes, |r| {
            let more = r.array()?.checked_sub(10).ok_or(DecodeError::Expected("a longer array"))?;
            let kind = r.u64()?;
            let client = ClientId::new(r.str()?).map_err(|_| DecodeError::OutOfRange("a client id"))?;
            let (epoch, number, settled, flags, received_at_us) = (r.u64()?, r.u64()?, r.u64()?, r.u64()?, r.u64()?);
            let content = r.rest();
            let id = r.str()?;
            let document = DocumentId::new(id).map_err(|_| DecodeError::OutOfRange("a document id"))?;
            let (action, content_hash) = match kind {
                1 => {
                    let if_revision = r.optional(Reader::u64)?;
                    let operation = r.raw()?;
                    let bytes = &content[..content.len() - r.rest().len()];
                    let hash = Content { document: id, if_revision, operation }.hash_in(bytes);
                    (Action::Instruct { if_revision, operation }, hash)
                }
                2 => (Action::Refuse(Code(r.u16()?)), r.u32()?),
                3 => {
                    r.skip()?;
                    r.skip()?;
                    (Action::Forget, 0)
                }
                _ => return Err(DecodeError::OutOfRange("a record kind")),
            };
            Ok(Record {
                number: Number { client, epoch, number },
                arrival: Arrival { epoch, number, settled, content_hash },
                resent: flags & FLAG_RESENT != 0,
                received_at_us,
                document,
                action,
                trace: trace::read_gateway(r, more)?,
            })
        })
    }
}

/// Collects encoded records until a batch must close.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    records: Vec<u8>,
    count: usize,
}

impl BatchBuilder {
    /// An empty batch with room for records of so many bytes, no more than a batch can hold.
    pub fn with_room(bytes: usize) -> BatchBuilder {
        BatchBuilder { records: Vec::with_capacity(bytes.min(BATCH_BYTES_MAX)), count: 0 }
    }

    /// Whether the batch takes no more records.
    pub fn is_full(&self) -> bool {
        self.count >= BATCH_RECORDS_MAX || self.records.len() >= BATCH_BYTES_MAX
    }

    /// Whether nothing was collected.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Number of records collected.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Bytes of the records collected.
    pub fn bytes(&self) -> usize {
        self.records.len()
    }

    /// Adds an encoded record.
    pub fn push(&mut self, record: &[u8]) {
        self.records.bin(record);
        self.count += 1;
    }

    /// The message `[1, [record, …]]` of an INSTRUCTIONS stream.
    pub fn finish(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.records.len() + 8);
        out.array(2);
        out.u64(LOG_VERSION);
        self.write_list(&mut out);
        out
    }

    /// Appends the list of records.
    pub fn write_list(&self, out: &mut Vec<u8>) {
        out.array(self.count);
        out.raw(&self.records);
    }
}

/// The records of an INSTRUCTIONS message, each still encoded: one that cannot be decoded does not
/// hide the others.
///
/// # Errors
/// [`DecodeError::UnknownVersion`], or another if the message is not of the documented form.
pub fn decode_batch(message: &[u8]) -> Result<Vec<&[u8]>, DecodeError> {
    decode(message, |r| {
        r.record(2, |r| {
            read_version(r)?;
            read_list(r)
        })
    })
}

pub(crate) fn read_version(reader: &mut Reader<'_>) -> Result<(), DecodeError> {
    match reader.u64()? {
        LOG_VERSION => Ok(()),
        other => Err(DecodeError::UnknownVersion(other)),
    }
}

pub(crate) fn read_list<'a>(reader: &mut Reader<'a>) -> Result<Vec<&'a [u8]>, DecodeError> {
    let mut records = Vec::new();
    for _ in 0..reader.array()? {
        records.push(reader.bin()?);
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instruction::Operation;

    fn record(refuse: Option<Code>, operation: &[u8]) -> NewRecord<'_> {
        let content = Content { document: "site7/boiler-1", if_revision: Some(3), operation };
        NewRecord {
            client: "c",
            epoch: 5,
            number: 6,
            settled: 2,
            resent: true,
            received_at_us: 9,
            content,
            refuse,
            trace: None,
        }
    }

    #[test]
    fn records_come_back_and_keep_their_content_hash() {
        let mut operation = Vec::new();
        Operation::PutText("hi".into()).write(&mut operation);
        let plain = record(None, &operation).encode();
        let refused = record(Some(Code::FORBIDDEN), &operation).encode();
        let mut batch = BatchBuilder::default();
        batch.push(&plain);
        batch.push(&refused);
        let message = batch.finish();
        let records = decode_batch(&message).unwrap();
        let (a, b) = (Record::decode(records[0]).unwrap(), Record::decode(records[1]).unwrap());
        assert_eq!(a.arrival, b.arrival);
        assert_eq!(a.action, Action::Instruct { if_revision: Some(3), operation: &operation });
        assert_eq!(b.action, Action::Refuse(Code::FORBIDDEN));
        assert!(a.resent);
    }

    #[test]
    fn a_traced_record_says_where_stamps_go_and_is_the_same_otherwise() {
        let mut operation = Vec::new();
        Operation::PutText("hi".into()).write(&mut operation);
        let plain = record(None, &operation).encode();
        let traced = NewRecord { trace: Some(u64::MAX), ..record(None, &operation) }.encode();
        assert_eq!((plain[0], traced[0]), (0x9a, 0x9b));
        assert_eq!(traced[1..plain.len()], plain[1..], "readers that do not know it pass over it");
        let (plain, traced) = (Record::decode(&plain).unwrap(), Record::decode(&traced).unwrap());
        assert_eq!((plain.trace, traced.trace), (None, Some(u64::MAX)));
        assert_eq!(Record { trace: None, ..traced }, plain);
    }

    #[test]
    fn what_a_newer_version_puts_behind_the_trace_is_passed_over() {
        let mut bytes = NewRecord { trace: Some(7), ..record(None, &[0x91, 7]) }.encode();
        bytes[0] += 1;
        bytes.str("more");
        assert_eq!(Record::decode(&bytes).unwrap().trace, Some(7));
        let mut bytes = record(None, &[0x91, 7]).encode();
        bytes[0] += 2;
        bytes.nil();
        bytes.str("more");
        assert_eq!(Record::decode(&bytes).unwrap().trace, None);
    }

    #[test]
    fn a_wish_to_forget_comes_back() {
        let bytes = encode_forget("c", (5, 6), "d", 7);
        let record = Record::decode(&bytes).unwrap();
        assert_eq!((record.action, record.arrival.epoch, record.arrival.number), (Action::Forget, 5, 6));
        assert_eq!((record.arrival.settled, record.received_at_us, record.document.as_str()), (0, 7, "d"));
    }

    #[test]
    fn unknown_versions_are_told_apart_from_garbage() {
        assert_eq!(decode_batch(&[0x92, 2, 0x90]), Err(DecodeError::UnknownVersion(2)));
        assert!(matches!(decode_batch(&[0x92, 1]), Err(DecodeError::Truncated)));
        assert!(Record::decode(&[0xc0]).is_err());
    }
}
