//! Frames that clients send.

use super::{FrameError, begin, decode_frame, end};
use crate::ids::DocumentId;
use crate::instruction::Content;
use crate::limits::{HELLO_WATCHES_MAX, LIST_PAGE_MAX};
use crate::msgpack::{DecodeError, Reader, Write};
use crate::outcome::AckLevel;

/// A frame from a client. Ids are as they came: unchecked.
#[derive(Debug, Clone, PartialEq)]
pub enum FromClient<'a> {
    /// 1: who is there. The first frame, once.
    Hello(Hello<'a>),
    /// 2: an instruction.
    Instruct(Instruct<'a>),
    /// 3: follow a document.
    Watch(Watch<'a>),
    /// 4: stop following a document.
    Unwatch {
        /// The document.
        document: &'a str,
    },
    /// 5: read a document.
    Get {
        /// Returned with the answer.
        request: u64,
        /// The document.
        document: &'a str,
    },
    /// 6: list documents.
    List {
        /// Returned with the answer.
        request: u64,
        /// Ids begin with this.
        prefix: &'a str,
        /// Ids behind this one.
        after: &'a str,
        /// At most so many.
        limit: u64,
    },
    /// 7: sign of life; the server answers with PONG.
    Ping {
        /// Returned with the answer.
        nonce: u64,
    },
    /// 7, too: the server answers with what it knows of clocks, and expects traced instructions.
    PingClock {
        /// Returned with the answer.
        nonce: u64,
    },
    /// 8: answer with SYNCED when everything this client was told was applied is stored.
    Sync {
        /// Returned with the answer.
        request: u64,
    },
    /// 9: the client leaves; nothing follows.
    Bye,
}

/// Which of a client's connections it is: HELLO of one that the client has given up may come late,
/// and must not take over from a later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attempt {
    /// Drawn by the program when it starts; 0 for one that does not tell its connections apart.
    pub instance: u64,
    /// Counts the connections of the instance.
    pub number: u64,
}

impl Attempt {
    /// Whether the same program has connected since.
    pub fn is_before(&self, other: &Attempt) -> bool {
        self.instance != 0 && self.instance == other.instance && self.number < other.number
    }
}

/// The first frame.
#[derive(Debug, Clone, PartialEq)]
pub struct Hello<'a> {
    /// Protocol version spoken.
    pub protocol: u64,
    /// The client's id.
    pub client: &'a str,
    /// Token, where one is needed.
    pub token: Option<&'a str>,
    /// The client's epoch.
    pub epoch: u64,
    /// The highest number sent in this epoch so far; 0 for none.
    pub sent_upto: u64,
    /// Documents to follow. More may come in WATCH frames.
    pub watches: Vec<Watch<'a>>,
    /// Which of the client's connections it is; older clients do not say.
    pub attempt: Attempt,
}

/// What a watcher wants to get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WatchMode {
    /// Changes, to keep a replica by.
    #[default]
    Changes = 0,
    /// The whole document at every change.
    Bodies = 1,
}

/// A wish to follow a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watch<'a> {
    /// The document.
    pub document: &'a str,
    /// Revision of the replica held; 0 for none.
    pub revision: u64,
    /// State hash of the replica held.
    pub state_hash: u64,
    /// What to send.
    pub mode: WatchMode,
}

/// An instruction with its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruct<'a> {
    /// Counter within the epoch, from 1.
    pub number: u64,
    /// The lowest number that is not resolved.
    pub settled: u64,
    /// Whether the number was sent before.
    pub resent: bool,
    /// Whether every hop is to note when it had it ([`crate::trace`]).
    pub traced: bool,
    /// When the client wants to be told.
    pub ack: AckLevel,
    /// Document, condition, operation.
    pub content: Content<'a>,
}

/// Flags of INSTRUCT.
const FLAG_RESENT: u64 = 1;
const FLAG_TRACED: u64 = 2;

impl<'a> Watch<'a> {
    fn write(&self, out: &mut Vec<u8>) {
        out.str(self.document);
        out.u64(self.revision);
        out.u64(self.state_hash);
        out.u64(self.mode as u64);
    }

    fn read(r: &mut Reader<'a>) -> Result<Watch<'a>, DecodeError> {
        let (document, revision, state_hash) = (r.str()?, r.u64()?, r.u64()?);
        let mode = match r.u64()? {
            0 => WatchMode::Changes,
            1 => WatchMode::Bodies,
            _ => return Err(DecodeError::OutOfRange("a watch mode")),
        };
        Ok(Watch { document, revision, state_hash, mode })
    }
}

impl<'a> FromClient<'a> {
    /// Appends the frame, length first.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = begin(out);
        let head = |out: &mut Vec<u8>, tag: u64, more: usize| {
            out.array(1 + more);
            out.u64(tag);
        };
        match self {
            FromClient::Hello(hello) => {
                head(out, 1, 8);
                out.u64(hello.protocol);
                out.str(hello.client);
                out.optional(hello.token, |out, t| out.str(t));
                out.u64(hello.epoch);
                out.u64(hello.sent_upto);
                out.array(hello.watches.len());
                for watch in &hello.watches {
                    out.array(4);
                    watch.write(out);
                }
                out.u64(hello.attempt.instance);
                out.u64(hello.attempt.number);
            }
            FromClient::Instruct(instruct) => {
                let resent = if instruct.resent { FLAG_RESENT } else { 0 };
                let flags = if instruct.traced { resent | FLAG_TRACED } else { resent };
                head(out, 2, 7);
                out.u64(instruct.number);
                out.u64(instruct.settled);
                out.u64(flags);
                out.u64(instruct.ack as u64);
                instruct.content.write(out);
            }
            FromClient::Watch(watch) => {
                head(out, 3, 4);
                watch.write(out);
            }
            FromClient::Unwatch { document } => {
                head(out, 4, 1);
                out.str(document);
            }
            FromClient::Get { request, document } => {
                head(out, 5, 2);
                out.u64(*request);
                out.str(document);
            }
            FromClient::List { request, prefix, after, limit } => {
                head(out, 6, 4);
                out.u64(*request);
                out.str(prefix);
                out.str(after);
                out.u64(*limit);
            }
            FromClient::Ping { nonce } => {
                head(out, 7, 1);
                out.u64(*nonce);
            }
            FromClient::PingClock { nonce } => {
                head(out, 7, 2);
                out.u64(*nonce);
                out.u64(1);
            }
            FromClient::Sync { request } => {
                head(out, 8, 1);
                out.u64(*request);
            }
            FromClient::Bye => head(out, 9, 0),
        }
        end(out, start);
    }

    /// Decodes a payload.
    ///
    /// # Errors
    /// [`FrameError`]; both close the connection.
    pub fn decode(payload: &'a [u8]) -> Result<FromClient<'a>, FrameError> {
        decode_frame(payload, 1..=9, Self::read)
    }

    fn read(tag: u64, r: &mut Reader<'a>) -> Result<(FromClient<'a>, usize), DecodeError> {
        Ok(match tag {
            1 => {
                let (hello, used) = Hello::read(r)?;
                (FromClient::Hello(hello), used)
            }
            2 => {
                let (number, settled, flags) = (r.u64()?, r.u64()?, r.u64()?);
                let ack = AckLevel::from_u64(r.u64()?)?;
                let document = r.str()?;
                let if_revision = r.optional(Reader::u64)?;
                let content = Content { document, if_revision, operation: r.raw()? };
                let (resent, traced) = (flags & FLAG_RESENT != 0, flags & FLAG_TRACED != 0);
                (FromClient::Instruct(Instruct { number, settled, resent, traced, ack, content }), 8)
            }
            3 => (FromClient::Watch(Watch::read(r)?), 5),
            4 => (FromClient::Unwatch { document: r.str()? }, 2),
            5 => (FromClient::Get { request: r.u64()?, document: r.str()? }, 3),
            6 => {
                let (request, prefix, after) = (r.u64()?, r.str()?, r.str()?);
                (FromClient::List { request, prefix, after, limit: r.u64()?.min(LIST_PAGE_MAX as u64) }, 5)
            }
            7 => {
                let nonce = r.u64()?;
                match if r.rest().is_empty() { None } else { Some(r.u64()?) } {
                    None => (FromClient::Ping { nonce }, 2),
                    Some(0) => (FromClient::Ping { nonce }, 3),
                    Some(_) => (FromClient::PingClock { nonce }, 3),
                }
            }
            8 => (FromClient::Sync { request: r.u64()? }, 2),
            _ => (FromClient::Bye, 1),
        })
    }
}

impl<'a> Hello<'a> {
    /// The frame, and of how many elements it was read.
    fn read(r: &mut Reader<'a>) -> Result<(Hello<'a>, usize), DecodeError> {
        let protocol = r.u64()?;
        let client = r.str()?;
        let token = r.optional(Reader::str)?;
        let (epoch, sent_upto, n) = (r.u64()?, r.u64()?, r.array()?);
        if n > HELLO_WATCHES_MAX {
            return Err(DecodeError::OutOfRange("the number of watches in HELLO"));
        }
        let mut watches = Vec::new();
        for _ in 0..n {
            watches.push(r.record(4, Watch::read)?);
        }
        let mut hello = Hello { protocol, client, token, epoch, sent_upto, watches, attempt: Attempt::default() };
        if r.rest().is_empty() {
            return Ok((hello, 7));
        }
        hello.attempt = Attempt { instance: r.u64()?, number: r.u64()? };
        Ok((hello, 9))
    }
}

/// Checks an id from a frame; kept here so that every frame with a document is checked alike.
impl Watch<'_> {
    /// The watch's document, checked.
    ///
    /// # Errors
    /// [`crate::ids::IdError`].
    pub fn document_id(&self) -> Result<DocumentId, crate::ids::IdError> {
        DocumentId::new(self.document)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_from_their_bytes() {
        let watch = Watch { document: "d", revision: 3, state_hash: u64::MAX, mode: WatchMode::Bodies };
        let attempt = Attempt { instance: 77, number: 3 };
        let watches = vec![watch];
        let hello = Hello { protocol: 1, client: "c", token: Some("t"), epoch: 9, sent_upto: 2, watches, attempt };
        let content = Content { document: "d", if_revision: None, operation: &[0x91, 7] };
        let instruct = Instruct { number: 4, settled: 2, resent: true, traced: false, ack: AckLevel::Stored, content };
        for frame in [
            FromClient::Hello(hello),
            FromClient::Instruct(instruct),
            FromClient::Instruct(Instruct { traced: true, ..instruct }),
            FromClient::Instruct(Instruct { traced: true, resent: false, ..instruct }),
            FromClient::Watch(watch),
            FromClient::Unwatch { document: "d" },
            FromClient::Get { request: 1, document: "d" },
            FromClient::List { request: 1, prefix: "a/", after: "", limit: 10 },
            FromClient::Ping { nonce: 5 },
            FromClient::PingClock { nonce: 5 },
            FromClient::Sync { request: 6 },
            FromClient::Bye,
        ] {
            let mut out = Vec::new();
            frame.encode(&mut out);
            assert_eq!(out[..4], (out.len() as u32 - 4).to_be_bytes());
            assert_eq!(FromClient::decode(&out[4..]), Ok(frame));
        }
        // As clients sent it that did not count their connections.
        let older = [0x97, 1, 1, 0xa1, b'c', 0xc0, 9, 2, 0x90];
        let Ok(FromClient::Hello(hello)) = FromClient::decode(&older) else { panic!("not read") };
        assert_eq!((hello.sent_upto, hello.attempt), (2, Attempt::default()));
        assert_eq!(FromClient::decode(&[0x91, 66]), Err(FrameError::UnknownTag(66)));
    }
}
