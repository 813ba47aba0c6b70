//! Frames that servers send.

use super::{FrameError, begin, decode_frame, end};
use crate::change::Version;
use crate::code::Code;
use crate::document::{Document, Kind};
use crate::limits::SNAPSHOT_CHUNK_BYTES_MAX;
use crate::msgpack::{DecodeError, Reader, Write};
use crate::outcome::{AckLevel, Outcome};
use crate::read::Listed;
use crate::trace::{CLOCKS_MAX, KnownClock, Stamps};

/// A frame from a server.
#[derive(Debug, Clone, PartialEq)]
pub enum FromServer<'a> {
    /// 65: the session begins.
    Welcome(Welcome),
    /// 66: what became of an instruction.
    Outcome {
        /// The instruction's epoch.
        epoch: u64,
        /// The instruction's number.
        number: u64,
        /// Which level is reached.
        level: AckLevel,
        /// What became of it; `None` at level `logged`, when it is not known yet.
        outcome: Option<Outcome>,
    },
    /// 67: a watched document changed.
    Update(Update<'a>),
    /// 68: a watched document as it is now, in one or more pieces.
    Snapshot(Snapshot<'a>),
    /// 69: the verdict on a watch. `recovered`: the replica held is good and its missing updates
    /// follow; else a snapshot follows.
    Watching {
        /// The document.
        document: &'a str,
        /// Whether the replica held goes on.
        recovered: bool,
    },
    /// 70: the answer to GET, in one or more pieces.
    Got {
        /// The request's number.
        request: u64,
        /// The document; `piece` and `total_bytes` as in snapshots.
        snapshot: Snapshot<'a>,
    },
    /// 71: the answer to LIST; fewer than asked for means the end.
    Listed {
        /// The request's number.
        request: u64,
        /// The documents.
        documents: Vec<Listed>,
    },
    /// 72: send nothing new until RESUME; after this many milliseconds at the latest, ask again.
    Pause {
        /// Milliseconds.
        retry_after_ms: u64,
    },
    /// 73: new instructions are welcome again.
    Resume,
    /// 74: answer to PING.
    Pong {
        /// The ping's.
        nonce: u64,
        /// The server's clock, microseconds since the Unix epoch.
        time_us: u64,
    },
    /// 74, too: answer to a PING that asks for clocks.
    PongClock {
        /// The ping's.
        nonce: u64,
        /// The server's clock, microseconds since the Unix epoch.
        time_us: u64,
        /// The clock by which the server stamps, and its time now.
        clock: (u64, u64),
        /// Other roles' clocks, as far as the server knows them.
        others: Vec<KnownClock>,
    },
    /// 75: the connection ends, and why.
    Close {
        /// Why.
        code: Code,
        /// Why, in words.
        reason: &'a str,
        /// Connect again after this many milliseconds at the earliest.
        retry_after_ms: u64,
    },
    /// 76: a request other than an instruction was refused.
    Refused {
        /// The request's number; 0 for a watch.
        request: u64,
        /// The document it was about; empty for a listing.
        document: &'a str,
        /// Why.
        code: Code,
    },
    /// 77: answer to SYNC.
    Synced {
        /// The request's number.
        request: u64,
    },
    /// 78: when a role had a traced instruction of this client.
    Trace {
        /// The instruction's epoch.
        epoch: u64,
        /// The instruction's number.
        number: u64,
        /// What the role noted.
        stamps: Stamps,
    },
}

/// The first frame from the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// The session's number, for logs.
    pub session: u64,
    /// What the client must keep to.
    pub limits: Limits,
    /// The server's clock, microseconds since the Unix epoch.
    pub time_us: u64,
    /// Identity of the log: another one than before means that it was repaired or replaced.
    pub log_id: u64,
}

/// What the client must keep to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// A new number is below the lowest unresolved one plus this.
    pub window: u64,
    /// Bytes of one frame's payload.
    pub frame_bytes: u64,
    /// Watches per session.
    pub watches: u64,
    /// The client must be heard at least this often, in milliseconds.
    pub keepalive_ms: u64,
}

/// A change of a watched document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update<'a> {
    /// The document.
    pub document: &'a str,
    /// Revision, state hash and time after the change.
    pub version: Version,
    /// The client that caused it.
    pub client: &'a str,
    /// That client's number.
    pub number: u64,
    /// The encoded change ([`crate::change::read_change`]).
    pub change: &'a [u8],
}

/// A document, or a piece of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot<'a> {
    /// The document.
    pub document: &'a str,
    /// Revision, state hash and time.
    pub version: Version,
    /// Its kind.
    pub kind: Kind,
    /// Bytes of the whole body.
    pub total_bytes: u64,
    /// Where this piece begins.
    pub offset: u64,
    /// The piece.
    pub piece: &'a [u8],
}

impl Update<'_> {
    /// The update of a document from the encoded change, length first.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.change.len() + self.document.len() + self.client.len() + 64);
        FromServer::Update(self.clone()).encode(&mut out);
        out
    }
}

/// Appends a document as SNAPSHOT frames, or as GOT frames of a request.
pub fn encode_document(request: Option<u64>, id: &str, document: &Document, out: &mut Vec<u8>) {
    let body = document.body.encode();
    let version = Version { revision: document.revision, state_hash: document.hash(), time_us: document.time_us };
    let pieces = body.len().div_ceil(SNAPSHOT_CHUNK_BYTES_MAX).max(1);
    for i in 0..pieces {
        let offset = i * SNAPSHOT_CHUNK_BYTES_MAX;
        let piece = &body[offset..body.len().min(offset + SNAPSHOT_CHUNK_BYTES_MAX)];
        let snapshot = Snapshot {
            document: id,
            version,
            kind: document.body.kind(),
            total_bytes: body.len() as u64,
            offset: offset as u64,
            piece,
        };
        match request {
            None => FromServer::Snapshot(snapshot).encode(out),
            Some(request) => FromServer::Got { request, snapshot }.encode(out),
        }
    }
}

fn write_version(version: &Version, out: &mut Vec<u8>) {
    out.u64(version.revision);
    out.u64(version.state_hash);
    out.u64(version.time_us);
}

fn read_version(r: &mut Reader<'_>) -> Result<Version, DecodeError> {
    Ok(Version { revision: r.u64()?, state_hash: r.u64()?, time_us: r.u64()? })
}

impl<'a> Snapshot<'a> {
    fn write(&self, out: &mut Vec<u8>) {
        out.str(self.document);
        write_version(&self.version, out);
        out.u64(self.kind as u64);
        out.u64(self.total_bytes);
        out.u64(self.offset);
        out.bin(self.piece);
    }

    fn read(r: &mut Reader<'a>) -> Result<Snapshot<'a>, DecodeError> {
        let (document, version) = (r.str()?, read_version(r)?);
        let kind = Kind::from_u64(r.u64()?)?;
        let (total_bytes, offset, piece) = (r.u64()?, r.u64()?, r.bin()?);
        Ok(Snapshot { document, version, kind, total_bytes, offset, piece })
    }
}

impl<'a> FromServer<'a> {
    /// Appends the frame, length first.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = begin(out);
        let head = |out: &mut Vec<u8>, tag: u64, more: usize| {
            out.array(1 + more);
            out.u64(tag);
        };
        match self {
            FromServer::Welcome(welcome) => {
                head(out, 65, 4);
                out.u64(welcome.session);
                out.array(4);
                out.u64(welcome.limits.window);
                out.u64(welcome.limits.frame_bytes);
                out.u64(welcome.limits.watches);
                out.u64(welcome.limits.keepalive_ms);
                out.u64(welcome.time_us);
                out.u64(welcome.log_id);
            }
            FromServer::Outcome { epoch, number, level, outcome } => {
                head(out, 66, 4);
                out.u64(*epoch);
                out.u64(*number);
                out.u64(*level as u64);
                out.optional(*outcome, |out, o| o.write(out));
            }
            FromServer::Update(update) => {
                head(out, 67, 7);
                out.str(update.document);
                write_version(&update.version, out);
                out.str(update.client);
                out.u64(update.number);
                out.bin(update.change);
            }
            FromServer::Snapshot(snapshot) => {
                head(out, 68, 8);
                snapshot.write(out);
            }
            FromServer::Watching { document, recovered } => {
                head(out, 69, 2);
                out.str(document);
                out.bool(*recovered);
            }
            FromServer::Got { request, snapshot } => {
                head(out, 70, 9);
                out.u64(*request);
                snapshot.write(out);
            }
            FromServer::Listed { request, documents } => {
                head(out, 71, 2);
                out.u64(*request);
                out.array(documents.len());
                documents.iter().for_each(|l| l.write(out));
            }
            FromServer::Pause { retry_after_ms } => {
                head(out, 72, 1);
                out.u64(*retry_after_ms);
            }
            FromServer::Resume => head(out, 73, 0),
            FromServer::Pong { nonce, time_us } => {
                head(out, 74, 2);
                out.u64(*nonce);
                out.u64(*time_us);
            }
            FromServer::PongClock { nonce, time_us, clock, others } => {
                head(out, 74, 5);
                out.u64(*nonce);
                out.u64(*time_us);
                out.u64(clock.0);
                out.u64(clock.1);
                out.array(others.len());
                others.iter().for_each(|known| known.write(out));
            }
            FromServer::Close { code, reason, retry_after_ms } => {
                head(out, 75, 3);
                out.u64(u64::from(code.0));
                out.str(reason);
                out.u64(*retry_after_ms);
            }
            FromServer::Refused { request, document, code } => {
                head(out, 76, 3);
                out.u64(*request);
                out.str(document);
                out.u64(u64::from(code.0));
            }
            FromServer::Synced { request } => {
                head(out, 77, 1);
                out.u64(*request);
            }
            FromServer::Trace { epoch, number, stamps } => {
                head(out, 78, 5);
                out.u64(*epoch);
                out.u64(*number);
                stamps.write(out);
            }
        }
        end(out, start);
    }

    /// Decodes a payload.
    ///
    /// # Errors
    /// [`FrameError::UnknownTag`] for a frame of a newer server, which clients pass over;
    /// [`FrameError::Malformed`] otherwise.
    pub fn decode(payload: &'a [u8]) -> Result<FromServer<'a>, FrameError> {
        decode_frame(payload, 65..=78, Self::read)
    }

    fn read(tag: u64, r: &mut Reader<'a>) -> Result<(FromServer<'a>, usize), DecodeError> {
        Ok(match tag {
            65 => {
                let session = r.u64()?;
                let limits = r.record(4, |r| {
                    Ok(Limits { window: r.u64()?, frame_bytes: r.u64()?, watches: r.u64()?, keepalive_ms: r.u64()? })
                })?;
                (FromServer::Welcome(Welcome { session, limits, time_us: r.u64()?, log_id: r.u64()? }), 5)
            }
            66 => {
                let (epoch, number) = (r.u64()?, r.u64()?);
                let level = AckLevel::from_u64(r.u64()?)?;
                (FromServer::Outcome { epoch, number, level, outcome: r.optional(Outcome::read)? }, 5)
            }
            67 => {
                let (document, version) = (r.str()?, read_version(r)?);
                let (client, number, change) = (r.str()?, r.u64()?, r.bin()?);
                (FromServer::Update(Update { document, version, client, number, change }), 8)
            }
            68 => (FromServer::Snapshot(Snapshot::read(r)?), 9),
            69 => (FromServer::Watching { document: r.str()?, recovered: r.bool()? }, 3),
            70 => (FromServer::Got { request: r.u64()?, snapshot: Snapshot::read(r)? }, 10),
            71 => {
                let request = r.u64()?;
                let mut documents = Vec::new();
                for _ in 0..r.array()? {
                    documents.push(Listed::read(r)?);
                }
                (FromServer::Listed { request, documents }, 3)
            }
            72 => (FromServer::Pause { retry_after_ms: r.u64()? }, 2),
            73 => (FromServer::Resume, 1),
            74 => {
                let (nonce, time_us) = (r.u64()?, r.u64()?);
                if r.rest().is_empty() {
                    return Ok((FromServer::Pong { nonce, time_us }, 3));
                }
                let clock = (r.u64()?, r.u64()?);
                let n = r.array()?;
                if n > CLOCKS_MAX {
                    return Err(DecodeError::OutOfRange("the number of clocks"));
                }
                let mut others = Vec::new();
                for _ in 0..n {
                    others.push(KnownClock::read(r)?);
                }
                (FromServer::PongClock { nonce, time_us, clock, others }, 6)
            }
            75 => (FromServer::Close { code: Code(r.u16()?), reason: r.str()?, retry_after_ms: r.u64()? }, 4),
            76 => (FromServer::Refused { request: r.u64()?, document: r.str()?, code: Code(r.u16()?) }, 4),
            77 => (FromServer::Synced { request: r.u64()? }, 2),
            _ => {
                let (epoch, number) = (r.u64()?, r.u64()?);
                (FromServer::Trace { epoch, number, stamps: Stamps::read(r)? }, 6)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Body;
    use crate::ids::DocumentId;
    use crate::trace::{Hop, Stamp, clock::Offset};

    #[test]
    fn frames_come_back_from_their_bytes() {
        let version = Version { revision: 1, state_hash: 2, time_us: 3 };
        let update = Update { document: "d", version, client: "c", number: 4, change: &[0x90] };
        let snapshot = Snapshot { document: "d", version, kind: Kind::Text, total_bytes: 1, offset: 0, piece: b"x" };
        let limits = Limits { window: 32, frame_bytes: 5, watches: 6, keepalive_ms: 7 };
        let listed =
            Listed { document: DocumentId::new("d").unwrap(), revision: 1, kind: Kind::Text, bytes: 2, time_us: 3 };
        let known = KnownClock { clock: 5, offset: Offset { ahead_us: -6, uncertainty_us: 7 } };
        let stamps = Stamps { member: 3, clock: 4, stamps: vec![Stamp { hop: Hop::StorerRead, at_us: 5 }] };
        for frame in [
            FromServer::Welcome(Welcome { session: 1, limits, time_us: 2, log_id: 3 }),
            FromServer::Outcome { epoch: 1, number: 2, level: AckLevel::Logged, outcome: None },
            FromServer::Outcome {
                epoch: 1,
                number: 2,
                level: AckLevel::Applied,
                outcome: Some(Outcome::Refused(Code::CONFLICT)),
            },
            FromServer::Update(update),
            FromServer::Snapshot(snapshot.clone()),
            FromServer::Watching { document: "d", recovered: true },
            FromServer::Got { request: 1, snapshot },
            FromServer::Listed { request: 1, documents: vec![listed] },
            FromServer::Pause { retry_after_ms: 1 },
            FromServer::Resume,
            FromServer::Pong { nonce: 1, time_us: 2 },
            FromServer::PongClock { nonce: 1, time_us: 2, clock: (3, 4), others: vec![known] },
            FromServer::Trace { epoch: 1, number: 2, stamps },
            FromServer::Close { code: Code::IDLE, reason: "idle", retry_after_ms: 0 },
            FromServer::Refused { request: 1, document: "d", code: Code::FORBIDDEN },
            FromServer::Synced { request: 1 },
        ] {
            let mut out = Vec::new();
            frame.encode(&mut out);
            assert_eq!(FromServer::decode(&out[4..]), Ok(frame));
        }
    }

    #[test]
    fn a_long_document_comes_in_pieces() {
        let document = Document { revision: 1, time_us: 1, body: Body::Text("x".repeat(SNAPSHOT_CHUNK_BYTES_MAX + 1)) };
        let mut out = Vec::new();
        encode_document(None, "d", &document, &mut out);
        let mut deframer = super::super::Deframer::default();
        deframer.push(&out);
        let mut pieces = Vec::new();
        while let Some(payload) = deframer.next(1 << 20).unwrap() {
            let Ok(FromServer::Snapshot(s)) = FromServer::decode(payload) else { panic!("not a snapshot") };
            pieces.push((s.offset, s.piece.len(), s.total_bytes));
        }
        let chunk = SNAPSHOT_CHUNK_BYTES_MAX as u64;
        assert_eq!(pieces, [(0, SNAPSHOT_CHUNK_BYTES_MAX, chunk + 1), (chunk, 1, chunk + 1)]);
    }
}
