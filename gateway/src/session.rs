//! The session's state machine: bytes in, actions out. Knows no socket, no clock, no hub; time is
//! an argument.
//!
//! | phase | left by |
//! | --- | --- |
//! | waiting for HELLO | HELLO of this protocol with a valid client id → deciding; anything else → closed |
//! | deciding | [`Session::admit`] → open; the owner closes it otherwise |
//! | open | BYE, end of the stream, any broken rule → closed |
//! | closed | – |
//!
//! The owner feeds [`Session::handle_bytes`], then takes actions from [`Session::poll`] until there
//! is none. It may stop polling at any time: what has arrived stays here.

use crate::mailbox::frame;
use crate::tokens::Rights;
use bytes::Bytes;
use fieldstream_shared::code::Code;
use fieldstream_shared::defect::{self, Defect};
use fieldstream_shared::frame::{
    Attempt, Deframer, FrameError, FromClient, FromServer, Hello, Instruct, PROTOCOL_VERSION, Watch, WatchMode,
};
use fieldstream_shared::ids::{ClientId, DocumentId};
use fieldstream_shared::limits::{FRAME_BYTES_MAX, HELLO_BYTES_MAX, REASON_BYTES_MAX};
use fieldstream_shared::outcome::{AckLevel, Outcome};
use fieldstream_shared::partition::Partition;
use fieldstream_shared::record::NewRecord;
use std::collections::{BTreeSet, VecDeque};

/// What the session keeps its client to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) hello_ms: u64,
    pub(crate) frame_ms: u64,
    pub(crate) keepalive_ms: u64,
    pub(crate) window: u64,
    pub(crate) watches_max: usize,
    /// The gateway's number: where stamps of traced instructions go.
    pub(crate) gateway: u64,
}

/// A wish to follow a document, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WatchWish {
    pub(crate) document: DocumentId,
    pub(crate) revision: u64,
    pub(crate) state_hash: u64,
    pub(crate) mode: WatchMode,
}

/// What the owner of the session is to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Decide whether this client may connect: then [`Session::admit`], or close.
    Authenticate { client: ClientId, token: Option<String>, epoch: u64, sent_upto: u64, attempt: Attempt },
    /// Append a record to the lane of its partition.
    Log { partition: Partition, record: Vec<u8>, number: u64, settled: u64, ack: AckLevel, traced: bool },
    /// Send frames.
    Send(Bytes),
    /// Follow a document.
    Watch(WatchWish),
    /// Stop following it.
    Unwatch(DocumentId),
    /// Read a document.
    Get { request: u64, document: DocumentId },
    /// List documents.
    List { request: u64, prefix: String, after: String, limit: usize },
    /// Answer with what is known of clocks.
    Clock { nonce: u64 },
    /// Answer when everything is stored.
    Sync { request: u64 },
    /// Tell the client why and close.
    Close { code: Code, reason: String },
    /// The client has left.
    Left,
}

#[derive(Debug)]
struct Identity {
    client: ClientId,
    epoch: u64,
    sent_upto: u64,
}

#[derive(Debug)]
enum Phase {
    Hello,
    Deciding,
    Open(Rights),
    Closed,
}

/// The machine.
#[derive(Debug)]
pub(crate) struct Session {
    rules: Rules,
    phase: Phase,
    deframer: Deframer,
    identity: Option<Identity>,
    /// Watches of HELLO, in turn after admission; then nothing.
    hello_watches: VecDeque<(String, u64, u64, WatchMode)>,
    watching: BTreeSet<DocumentId>,
    started_ms: u64,
    heard_ms: u64,
    /// Since when a frame has been incomplete.
    partial_since_ms: Option<u64>,
    ended: bool,
}

impl Session {
    pub(crate) fn new(rules: Rules, now_ms: u64) -> Session {
        Session {
            rules,
            phase: Phase::Hello,
            deframer: Deframer::default(),
            identity: None,
            hello_watches: VecDeque::new(),
            watching: BTreeSet::new(),
            started_ms: now_ms,
            heard_ms: now_ms,
            partial_since_ms: None,
            ended: false,
        }
    }

    /// Takes bytes as they arrive.
    pub(crate) fn handle_bytes(&mut self, now_ms: u64, bytes: &[u8]) {
        self.heard_ms = now_ms;
        // The deadline of a frame runs from its first byte: bytes that trickle do not move it.
        self.partial_since_ms.get_or_insert(now_ms);
        self.deframer.push(bytes);
    }

    /// The stream has ended.
    pub(crate) fn handle_end(&mut self) {
        self.ended = true;
    }

    /// Nothing was read for a while because this side would not: the client's silence since then
    /// does not count.
    pub(crate) fn excuse(&mut self, now_ms: u64) {
        self.heard_ms = now_ms;
        if self.partial_since_ms.is_some() {
            self.partial_since_ms = Some(now_ms);
        }
    }

    /// The client may come in.
    pub(crate) fn admit(&mut self, rights: Rights) {
        if matches!(self.phase, Phase::Deciding) {
            self.phase = Phase::Open(rights);
        }
    }

    pub(crate) fn rights(&self) -> Option<&Rights> {
        match &self.phase {
            Phase::Open(rights) => Some(rights),
            Phase::Hello | Phase::Deciding | Phase::Closed => None,
        }
    }

    /// Documents followed, for whoever cleans up.
    pub(crate) fn watching(&self) -> impl Iterator<Item = &DocumentId> {
        self.watching.iter()
    }

    /// When [`Session::handle_time`] has something to say, if nothing arrives before.
    pub(crate) fn deadline_ms(&self) -> u64 {
        let silence = match self.phase {
            Phase::Hello => self.started_ms + self.rules.hello_ms,
            Phase::Deciding | Phase::Open(_) => self.heard_ms + self.rules.keepalive_ms,
            Phase::Closed => u64::MAX,
        };
        self.partial_since_ms.map_or(silence, |since| silence.min(since + self.rules.frame_ms))
    }

    /// Time has passed.
    pub(crate) fn handle_time(&mut self, now_ms: u64) -> Option<Action> {
        if now_ms < self.deadline_ms() {
            return None;
        }
        if matches!(self.phase, Phase::Hello) && now_ms >= self.started_ms + self.rules.hello_ms {
            return Some(self.close(Code::TIMED_OUT, "no HELLO came in time"));
        }
        if self.partial_since_ms.is_some_and(|since| now_ms >= since + self.rules.frame_ms) {
            return Some(self.close(Code::TIMED_OUT, "a frame stayed incomplete for too long"));
        }
        Some(self.close(Code::IDLE, "nothing was heard for longer than the keepalive allows"))
    }

    /// Whether frames, or the beginning of one, wait to be looked at.
    pub(crate) fn has_input(&self) -> bool {
        self.deframer.is_partial()
    }

    /// The next thing to do, `None` until more arrives. `wall_us` is the time stamped on
    /// instructions.
    pub(crate) fn poll(&mut self, now_ms: u64, wall_us: u64) -> Option<Action> {
        match self.phase {
            Phase::Closed | Phase::Deciding => return None,
            Phase::Hello | Phase::Open(_) => {}
        }
        if let Some((document, revision, state_hash, mode)) = self.hello_watches.pop_front() {
            return Some(self.watch(&Watch { document: &document, revision, state_hash, mode }));
        }
        // Taken out so that a frame may borrow from it while the rest of the session changes.
        let mut deframer = std::mem::take(&mut self.deframer);
        let max = if self.identity.is_some() { FRAME_BYTES_MAX } else { HELLO_BYTES_MAX };
        let action = match deframer.next(max) {
            Err(error) => Some(self.close(Code::FRAME_TOO_LARGE, error.to_string())),
            Ok(Some(payload)) => {
                self.partial_since_ms = None;
                Some(self.handle_frame(payload, wall_us))
            }
            Ok(None) => None,
        };
        if deframer.is_partial() {
            self.partial_since_ms.get_or_insert(now_ms);
        } else {
            self.partial_since_ms = None;
            deframer.shrink();
        }
        self.deframer = deframer;
        match action {
            None if self.ended && self.deframer.is_partial() => {
                Some(self.close(Code::MALFORMED_FRAME, "the stream ends inside a frame"))
            }
            None if self.ended => {
                self.phase = Phase::Closed;
                Some(Action::Left)
            }
            action => action,
        }
    }

    fn close(&mut self, code: Code, reason: impl Into<String>) -> Action {
        self.phase = Phase::Closed;
        Action::Close { code, reason: reason.into() }
    }

    fn handle_frame(&mut self, payload: &[u8], wall_us: u64) -> Action {
        let frame = match FromClient::decode(payload) {
            Ok(frame) => frame,
            Err(error @ FrameError::UnknownTag(_)) => return self.close(Code::UNKNOWN_FRAME, error.to_string()),
            Err(error @ FrameError::Malformed(_)) => return self.close(Code::MALFORMED_FRAME, error.to_string()),
        };
        match (&self.phase, frame) {
            (Phase::Hello, FromClient::Hello(hello)) => self.hello(&hello),
            (Phase::Hello, _) => self.close(Code::HELLO_EXPECTED, "the first frame must be HELLO"),
            (_, FromClient::Hello(_)) => self.close(Code::SECOND_HELLO, "HELLO is sent once per connection"),
            (_, FromClient::Instruct(instruct)) => self.instruct(&instruct, wall_us),
            (_, FromClient::Watch(watch)) => self.watch(&watch),
            (_, FromClient::Unwatch { document }) => self.unwatch(document),
            (_, FromClient::Get { request, document }) => self.get(request, document),
            (_, FromClient::List { request, prefix, after, limit }) => Action::List {
                request,
                prefix: prefix.to_owned(),
                after: after.to_owned(),
                limit: usize::try_from(limit).unwrap_or(usize::MAX),
            },
            (_, FromClient::Ping { nonce }) => {
                Action::Send(crate::mailbox::frame(&FromServer::Pong { nonce, time_us: wall_us }))
            }
            (_, FromClient::PingClock { nonce }) => Action::Clock { nonce },
            (_, FromClient::Sync { request }) => Action::Sync { request },
            (_, FromClient::Bye) => {
                self.phase = Phase::Closed;
                Action::Left
            }
        }
    }

    fn hello(&mut self, hello: &Hello<'_>) -> Action {
        if hello.protocol != PROTOCOL_VERSION {
            let reason = format!("this server speaks version {PROTOCOL_VERSION}, not {}", hello.protocol);
            return self.close(Code::UNSUPPORTED_PROTOCOL, reason);
        }
        let client = match ClientId::new(hello.client) {
            Ok(client) => client,
            Err(error) => return self.close(Code::INVALID_CLIENT_ID, format!("the client id {error}")),
        };
        self.identity = Some(Identity { client: client.clone(), epoch: hello.epoch, sent_upto: hello.sent_upto });
        let own = |w: &Watch<'_>| (w.document.to_owned(), w.revision, w.state_hash, w.mode);
        self.hello_watches = hello.watches.iter().map(own).collect();
        self.phase = Phase::Deciding;
        let Hello { epoch, sent_upto, attempt, .. } = *hello;
        Action::Authenticate { client, token: hello.token.map(str::to_owned), epoch, sent_upto, attempt }
    }

    fn instruct(&mut self, instruct: &Instruct<'_>, wall_us: u64) -> Action {
        let Instruct { number, settled, resent, traced, ack, content } = *instruct;
        if number == 0 || number < settled || number - settled >= self.rules.window {
            let reason = format!("number {number} is outside the window {settled}..+{}", self.rules.window);
            return self.close(Code::OUTSIDE_WINDOW, reason);
        }
        let (Some(identity), Phase::Open(rights)) = (&self.identity, &self.phase) else {
            return self.close(Code::HELLO_EXPECTED, "the first frame must be HELLO");
        };
        let resent = resent || number <= identity.sent_upto;
        let refused = |code| {
            let outcome = Some(Outcome::Refused(code));
            Action::Send(frame(&FromServer::Outcome { epoch: identity.epoch, number, level: ack, outcome }))
        };
        // No gateway ever logs an invalid id, so this is final also for a number sent before.
        let Ok(document) = DocumentId::new(content.document) else { return refused(Code::INVALID_DOCUMENT_ID) };
        let refuse = if rights.may_write(&document) { content.check().err() } else { Some(Code::FORBIDDEN) };
        if let Some(code) = refuse
            && (!resent || defect::active(Defect::ResentRefused))
        {
            return refused(code);
        }
        // Who may not write is not traced either, however often the number was sent.
        let trace = (traced && refuse.is_none()).then_some(self.rules.gateway);
        let record = NewRecord {
            client: &identity.client,
            epoch: identity.epoch,
            number,
            settled,
            resent,
            received_at_us: wall_us,
            content,
            refuse,
            trace,
        };
        let (partition, traced) = (Partition::of(&document), trace.is_some());
        Action::Log { partition, record: record.encode(), number, settled, ack, traced }
    }

    fn watch(&mut self, watch: &Watch<'_>) -> Action {
        let document = match self.readable(0, watch.document) {
            Ok(document) => document,
            Err(refusal) => return refusal,
        };
        if self.watching.len() >= self.rules.watches_max && !self.watching.contains(&document) {
            return refuse_request(0, &document, Code::TOO_MANY_WATCHES);
        }
        self.watching.insert(document.clone());
        Action::Watch(WatchWish { document, revision: watch.revision, state_hash: watch.state_hash, mode: watch.mode })
    }

    fn unwatch(&mut self, document: &str) -> Action {
        match self.watching.take(document) {
            Some(document) => Action::Unwatch(document),
            // Not followed: then it is as the client wishes.
            None => Action::Send(Bytes::new()),
        }
    }

    fn get(&mut self, request: u64, document: &str) -> Action {
        match self.readable(request, document) {
            Ok(document) => Action::Get { request, document },
            Err(refusal) => refusal,
        }
    }

    /// A document id that may be read, or the refusal. What may not be read is refused alike
    /// whether it exists or not.
    fn readable(&self, request: u64, document: &str) -> Result<DocumentId, Action> {
        let id = DocumentId::new(document).map_err(|_| refuse_request(request, document, Code::INVALID_DOCUMENT_ID))?;
        match self.rights() {
            Some(rights) if rights.may_read(&id) => Ok(id),
            _ => Err(refuse_request(request, document, Code::FORBIDDEN)),
        }
    }
}

/// REFUSED. The document is repeated as it came, but not at any length.
fn refuse_request(request: u64, document: &str, code: Code) -> Action {
    let end = (0..=document.len().min(REASON_BYTES_MAX)).rev().find(|i| document.is_char_boundary(*i));
    let document = &document[..end.unwrap_or(0)];
    Action::Send(frame(&FromServer::Refused { request, document, code }))
}

#[cfg(test)]
mod tests;
