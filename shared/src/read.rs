//! The storers' read service: requests, answers, and the progress storers announce
//! (`docs/LOG.md`). Carried by plain NATS requests, outside the streams.

use crate::change::Version;
use crate::cursor::Cursors;
use crate::dead_letter::DeadLetter;
use crate::document::{Document, Kind};
use crate::ids::{ClientId, DocumentId};
use crate::limits::READ_ITEMS_MAX;
use crate::marks::Mark;
use crate::msgpack::{DecodeError, Reader, Write, decode};
use crate::partition::{Partition, PartitionSet};

/// Version of the read service's messages.
pub const READ_VERSION: u64 = 1;

/// A request to the storers. Any storer that has applied EVENTS of the lane up to `min_sequence`
/// may answer; one that has not waits a while, then answers [`AnswerBody::Behind`].
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The lane whose sequences are meant.
    pub lane: u16,
    /// The answer must include all events up to here.
    pub min_sequence: u64,
    /// What is asked.
    pub query: Query,
}

/// What is asked of a storer.
#[derive(Debug, Clone, PartialEq)]
pub enum Query {
    /// Values of documents and client marks, all of the lane, from one snapshot.
    GetMany {
        /// Documents wanted.
        documents: Vec<DocumentId>,
        /// Marks wanted.
        marks: Vec<(Partition, ClientId)>,
    },
    /// Changes of one document, from a revision on.
    History {
        /// The document.
        document: DocumentId,
        /// First revision wanted.
        from: u64,
        /// At most so many bytes of changes; what does not fit is left out at the end.
        bytes_max: u64,
    },
    /// Ids below a prefix, in order, over all lanes; deleted documents are left out.
    List {
        /// Ids begin with this.
        prefix: String,
        /// Ids behind this one.
        after: String,
        /// At most so many.
        limit: u64,
    },
    /// The lane's checkpoint: from where a reader of EVENTS may start.
    Checkpoint,
    /// Dead letters of the lane, in order.
    DeadLetters {
        /// EVENTS sequence and index of the first that is wanted, or what comes behind it.
        from: (u64, u32),
        /// At most so many.
        limit: u64,
    },
}

/// A storer's answer, taken from one read transaction.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The answer includes exactly the events up to this EVENTS sequence of the lane.
    pub sequence: u64,
    /// What was asked for.
    pub body: AnswerBody,
}

/// The content of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum AnswerBody {
    /// This storer has not read as far as the request demands.
    Behind,
    /// Values in the order of the request; a document that never was is revision 0 and absent.
    Values {
        /// Documents; cut short behind [`crate::limits::READ_DOCUMENTS_BYTES_MAX`].
        documents: Vec<Document>,
        /// Marks.
        marks: Vec<Mark>,
    },
    /// Changes with contiguous revisions from the one asked for, as far as kept and as fits.
    History(Vec<HistoryEntry>),
    /// A page of a listing.
    List(Vec<Listed>),
    /// Where a reader may start.
    Checkpoint(Box<Checkpoint>),
    /// Dead letters in order, as many as fit; none means that there are no more.
    DeadLetters(Vec<DeadLetter>),
}

/// One change of a document, as history keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    /// Revision, state hash and time after the change.
    pub version: Version,
    /// The client that caused it.
    pub client: ClientId,
    /// The client's number.
    pub number: u64,
    /// The encoded change.
    pub change: Vec<u8>,
}

/// One line of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The document.
    pub document: DocumentId,
    /// Its revision.
    pub revision: u64,
    /// Its kind.
    pub kind: Kind,
    /// Encoded length of its body in bytes.
    pub bytes: u64,
    /// When it changed last, microseconds since the Unix epoch.
    pub time_us: u64,
}

/// A lane's checkpoint: what a reader of EVENTS starts from, and the messages it must find in the
/// streams if they are the same streams.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// Identity of the log; another one means that it was repaired or replaced.
    pub log_id: u64,
    /// Number of lanes, for ever.
    pub lanes: u16,
    /// Last EVENTS sequence applied; 0 for none.
    pub events_sequence: u64,
    /// Hash of that message ([`crate::event::message_hash`]).
    pub events_hash: u64,
    /// Cursors of the lane's partitions.
    pub cursors: Cursors,
}

/// What a storer announces after each commit and from time to time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Which storer: a number drawn when its file was made.
    pub storer: u64,
    /// Identity of the log.
    pub log_id: u64,
    /// The lane.
    pub lane: u16,
    /// Everything up to this EVENTS sequence is durable in its file.
    pub sequence: u64,
}

impl Request {
    /// The encoded request `[version, kind, lane, min_sequence, …]`.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let head = |out: &mut Vec<u8>, kind: u64, more: usize| {
            out.array(4 + more);
            out.u64(READ_VERSION);
            out.u64(kind);
            out.u64(u64::from(self.lane));
            out.u64(self.min_sequence);
        };
        match &self.query {
            Query::GetMany { documents, marks } => {
                head(&mut out, 1, 2);
                out.array(documents.len());
                documents.iter().for_each(|d| out.str(d));
                out.array(marks.len());
                for (p, client) in marks {
                    out.array(2);
                    out.u64(u64::from(p.0));
                    out.str(client);
                }
            }
            Query::History { document, from, bytes_max } => {
                head(&mut out, 2, 3);
                out.str(document);
                out.u64(*from);
                out.u64(*bytes_max);
            }
            Query::List { prefix, after, limit } => {
                head(&mut out, 3, 3);
                out.str(prefix);
                out.str(after);
                out.u64(*limit);
            }
            Query::Checkpoint => head(&mut out, 4, 0),
            Query::DeadLetters { from: (sequence, index), limit } => {
                head(&mut out, 5, 3);
                out.u64(*sequence);
                out.u64(u64::from(*index));
                out.u64(*limit);
            }
        }
        out
    }

    /// Decodes a request.
    ///
    /// # Errors
    /// [`DecodeError`] if it is none of this version.
    pub fn decode(bytes: &[u8]) -> Result<Request, DecodeError> {
        decode(bytes, |r| {
            let n = r.array()?;
            match r.u64()? {
                READ_VERSION => {}
                other => return Err(DecodeError::UnknownVersion(other)),
            }
            let (kind, lane, min_sequence) = (r.u64()?, r.u16()?, r.u64()?);
            let (query, known) = match kind {
                1 => (read_get_many(r)?, 6),
                2 => (Query::History { document: read_document_id(r)?, from: r.u64()?, bytes_max: r.u64()? }, 7),
                3 => (Query::List { prefix: r.str()?.to_owned(), after: r.str()?.to_owned(), limit: r.u64()? }, 7),
                4 => (Query::Checkpoint, 4),
                5 => (Query::DeadLetters { from: (r.u64()?, r.u32()?), limit: r.u64()? }, 7),
                _ => return Err(DecodeError::OutOfRange("a query")),
            };
            for _ in known..n {
                r.skip()?;
            }
            Ok(Request { lane, min_sequence, query })
        })
    }
}

fn read_get_many(r: &mut Reader<'_>) -> Result<Query, DecodeError> {
    let (mut documents, mut marks) = (Vec::new(), Vec::new());
    for _ in 0..r.array()? {
        documents.push(read_document_id(r)?);
    }
    for _ in 0..r.array()? {
        marks.push(r.record(2, |r| {
            let p = u8::try_from(r.u64()?).map_err(|_| DecodeError::OutOfRange("a partition"))?;
            Ok((Partition(p), read_client_id(r)?))
        })?);
    }
    if documents.len() + marks.len() > READ_ITEMS_MAX {
        return Err(DecodeError::OutOfRange("the number of items asked for"));
    }
    Ok(Query::GetMany { documents, marks })
}

fn read_document_id(r: &mut Reader<'_>) -> Result<DocumentId, DecodeError> {
    DocumentId::new(r.str()?).map_err(|_| DecodeError::OutOfRange("a document id"))
}

fn read_client_id(r: &mut Reader<'_>) -> Result<ClientId, DecodeError> {
    ClientId::new(r.str()?).map_err(|_| DecodeError::OutOfRange("a client id"))
}

impl Answer {
    /// The encoded answer `[version, sequence, kind, …]`, before it is split into messages.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let head = |out: &mut Vec<u8>, kind: u64, more: usize| {
            out.array(3 + more);
            out.u64(READ_VERSION);
            out.u64(self.sequence);
            out.u64(kind);
        };
        match &self.body {
            AnswerBody::Behind => head(&mut out, 0, 0),
            AnswerBody::Values { documents, marks } => {
                head(&mut out, 1, 2);
                out.array(documents.len());
                documents.iter().for_each(|d| d.write(&mut out));
                out.array(marks.len());
                marks.iter().for_each(|m| m.write(&mut out));
            }
            AnswerBody::History(entries) => {
                head(&mut out, 2, 1);
                out.array(entries.len());
                entries.iter().for_each(|e| e.write(&mut out));
            }
            AnswerBody::List(listed) => {
                head(&mut out, 3, 1);
                out.array(listed.len());
                listed.iter().for_each(|l| l.write(&mut out));
            }
            AnswerBody::Checkpoint(checkpoint) => {
                head(&mut out, 4, 1);
                checkpoint.write(&mut out);
            }
            AnswerBody::DeadLetters(letters) => {
                head(&mut out, 5, 1);
                out.array(letters.len());
                letters.iter().for_each(|l| l.write(&mut out));
            }
        }
        out
    }

    /// Decodes an answer.
    ///
    /// # Errors
    /// [`DecodeError`] if it is none of this version.
    pub fn decode(bytes: &[u8]) -> Result<Answer, DecodeError> {
        decode(bytes, |r| {
            let n = r.array()?;
            match r.u64()? {
                READ_VERSION => {}
                other => return Err(DecodeError::UnknownVersion(other)),
            }
            let (sequence, kind) = (r.u64()?, r.u64()?);
            let (body, known) = match kind {
                0 => (AnswerBody::Behind, 3),
                1 => (AnswerBody::Values { documents: list(r, Document::read)?, marks: list(r, Mark::read)? }, 5),
                2 => (AnswerBody::History(list(r, HistoryEntry::read)?), 4),
                3 => (AnswerBody::List(list(r, Listed::read)?), 4),
                4 => (AnswerBody::Checkpoint(Box::new(Checkpoint::read(r)?)), 4),
                5 => (AnswerBody::DeadLetters(list(r, DeadLetter::read)?), 4),
                _ => return Err(DecodeError::OutOfRange("an answer")),
            };
            for _ in known..n {
                r.skip()?;
            }
            Ok(Answer { sequence, body })
        })
    }
}

fn list<T>(
    r: &mut Reader<'_>,
    read: impl Fn(&mut Reader<'_>) -> Result<T, DecodeError>,
) -> Result<Vec<T>, DecodeError> {
    let mut items = Vec::new();
    for _ in 0..r.array()? {
        items.push(read(r)?);
    }
    Ok(items)
}

impl HistoryEntry {
    fn write(&self, out: &mut Vec<u8>) {
        out.array(6);
        out.u64(self.version.revision);
        out.u64(self.version.state_hash);
        out.u64(self.version.time_us);
        out.str(&self.client);
        out.u64(self.number);
        out.bin(&self.change);
    }

    fn read(r: &mut Reader<'_>) -> Result<HistoryEntry, DecodeError> {
        r.record(6, |r| {
            let version = Version { revision: r.u64()?, state_hash: r.u64()?, time_us: r.u64()? };
            Ok(HistoryEntry { version, client: read_client_id(r)?, number: r.u64()?, change: r.bin()?.to_owned() })
        })
    }
}

impl Listed {
    /// Appends `[document, revision, kind, bytes, time_us]`.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.array(5);
        out.str(&self.document);
        out.u64(self.revision);
        out.u64(self.kind as u64);
        out.u64(self.bytes);
        out.u64(self.time_us);
    }

    /// Reads what [`Listed::write`] wrote.
    ///
    /// # Errors
    /// [`DecodeError`] if it is not of that form.
    pub fn read(r: &mut Reader<'_>) -> Result<Listed, DecodeError> {
        r.record(5, |r| {
            Ok(Listed {
                document: read_document_id(r)?,
                revision: r.u64()?,
                kind: Kind::from_u64(r.u64()?)?,
                bytes: r.u64()?,
                time_us: r.u64()?,
            })
        })
    }
}

impl Checkpoint {
    fn write(&self, out: &mut Vec<u8>) {
        out.array(5);
        out.u64(self.log_id);
        out.u64(u64::from(self.lanes));
        out.u64(self.events_sequence);
        out.u64(self.events_hash);
        self.cursors.write(&PartitionSet::ALL, out);
    }

    fn read(r: &mut Reader<'_>) -> Result<Checkpoint, DecodeError> {
        r.record(5, |r| {
            Ok(Checkpoint {
                log_id: r.u64()?,
                lanes: r.u16()?,
                events_sequence: r.u64()?,
                events_hash: r.u64()?,
                cursors: Cursors::read(r)?,
            })
        })
    }
}

impl Progress {
    /// The encoded announcement `[version, storer, log_id, lane, sequence]`.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(32);
        out.array(5);
        out.u64(READ_VERSION);
        out.u64(self.storer);
        out.u64(self.log_id);
        out.u64(u64::from(self.lane));
        out.u64(self.sequence);
        out
    }

    /// Decodes an announcement.
    ///
    /// # Errors
    /// [`DecodeError`] if it is none of this version.
    pub fn decode(bytes: &[u8]) -> Result<Progress, DecodeError> {
        decode(bytes, |r| {
            r.record(5, |r| {
                match r.u64()? {
                    READ_VERSION => {}
                    other => return Err(DecodeError::UnknownVersion(other)),
                }
                Ok(Progress { storer: r.u64()?, log_id: r.u64()?, lane: r.u16()?, sequence: r.u64()? })
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code::Code;
    use crate::dead_letter::DeadLetterId;
    use crate::document::Body;
    use crate::event::Origin;
    use crate::marks::Arrival;

    #[test]
    fn requests_and_answers_come_back_from_their_bytes() {
        let (document, client) = (DocumentId::new("d").unwrap(), ClientId::new("c").unwrap());
        for query in [
            Query::GetMany { documents: vec![document.clone()], marks: vec![(Partition(9), client.clone())] },
            Query::History { document: document.clone(), from: 3, bytes_max: 4 },
            Query::List { prefix: "a/".into(), after: String::new(), limit: 10 },
            Query::Checkpoint,
            Query::DeadLetters { from: (7, 8), limit: 9 },
        ] {
            let request = Request { lane: 1, min_sequence: 300, query };
            assert_eq!(Request::decode(&request.encode()), Ok(request));
        }
        let version = Version { revision: 1, state_hash: 2, time_us: 3 };
        let checkpoint =
            Checkpoint { log_id: 1, lanes: 2, events_sequence: 3, events_hash: 4, cursors: Cursors::default() };
        let arrival = Arrival { epoch: 1, number: 2, settled: 2, content_hash: 3 };
        let letter = DeadLetter {
            id: DeadLetterId { lane: 1, sequence: 2, event_index: 3 },
            code: Code::UNDECODABLE,
            reason: "r".into(),
            partition: Partition(4),
            instruction_sequence: 5,
            instruction_index: 6,
            received_at_us: 7,
            origin: Some(Origin { client: client.clone(), arrival, document: document.clone() }),
            raw: vec![0xc1],
        };
        for body in [
            AnswerBody::Behind,
            AnswerBody::Values {
                documents: vec![Document { revision: 1, time_us: 2, body: Body::Text("x".into()) }],
                marks: vec![Mark::default()],
            },
            AnswerBody::History(vec![HistoryEntry { version, client, number: 5, change: vec![0x90] }]),
            AnswerBody::List(vec![Listed { document, revision: 1, kind: Kind::Text, bytes: 2, time_us: 3 }]),
            AnswerBody::Checkpoint(Box::new(checkpoint)),
            AnswerBody::DeadLetters(vec![letter.clone(), DeadLetter { origin: None, ..letter }]),
        ] {
            let answer = Answer { sequence: 9, body };
            assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
        }
        let progress = Progress { storer: 1, log_id: 2, lane: 3, sequence: 4 };
        assert_eq!(Progress::decode(&progress.encode()), Ok(progress));
    }
}
