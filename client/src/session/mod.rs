//! The client's half of a session, without sockets, clock or randomness: bytes, calls and the time
//! come in; bytes, deadlines and resolutions go out.
//!
//! The driver loops: [`Session::poll`], write what [`Session::take_outbox`] gives, sleep until the
//! deadline or until bytes arrive for [`Session::handle_bytes`]. It outlives connections: between
//! [`Session::disconnected`] and [`Session::connected`] calls only collect.

mod assembly;
pub(crate) mod backoff;
pub(crate) mod journal;
pub(crate) mod late;
pub(crate) mod numbers;
pub(crate) mod queue;
pub(crate) mod requests;
pub(crate) mod traces;
mod verdicts;
pub(crate) mod watches;

use crate::error::ClientError;
use crate::options::Status;
use fieldstream_shared::code::Code;
use fieldstream_shared::frame::{
    Attempt, Deframer, FrameError, FromClient, FromServer, Hello, PROTOCOL_VERSION, WatchMode,
};
use fieldstream_shared::frame::{Limits, Welcome};
use fieldstream_shared::ids::{ClientId, DocumentId};
use fieldstream_shared::limits::{FRAME_BYTES_MAX, HELLO_WATCHES_MAX};
use fieldstream_shared::trace::KnownClock;
use late::Late;
use numbers::{Instruction, Numbers, Waiter};
use requests::{Request, Requests};
use std::time::{Duration, Instant};
use traces::Traces;
use watches::{Next, Opening, Watches};

/// Largest frame taken from a server: a newer one may send larger frames than this version does.
const SERVER_FRAME_BYTES_MAX: usize = 4 * FRAME_BYTES_MAX;

/// Instructions are added to the outbox while it holds less than this, so that it stays bounded by
/// this and one instruction.
const OUTBOX_BYTES_MAX: usize = 256 * 1024;

/// When to ask again what the server could not answer.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// No server may ask for signs of life more often.
const KEEPALIVE_MIN: Duration = Duration::from_millis(100);

/// Who waits for an answer asks for a sign of life after so much silence. Servers answer it at once,
/// unless they said that they read nothing at present.
const ASK_ALIVE: Duration = Duration::from_secs(5);

/// Who waits for an answer takes the connection for dead after so much silence, long before the
/// keepalive would: a network may lose a connection without telling either side.
const WAIT_SILENT: Duration = Duration::from_secs(20);

/// Why a connection is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// The server said so.
    Closed { code: Code, reason: String, retry_after: Duration },
    /// The network failed, or what came makes no sense.
    Broken(String),
    /// No welcome within the time allowed.
    TimedOut,
    /// The epoch was changed, which takes a new HELLO.
    NewEpoch,
}

#[derive(Debug, Clone, Copy)]
enum Link {
    Down,
    Greeting { welcome_by: Instant },
    Up { keepalive: Duration },
}

#[derive(Debug)]
enum Retry {
    Watch(DocumentId),
    Request(u64),
}

/// One client's session state.
#[derive(Debug)]
pub(crate) struct Session {
    client: ClientId,
    token: Option<String>,
    /// Which program this is, and how many connections it has made.
    attempt: Attempt,
    pub(crate) numbers: Numbers,
    watches: Watches,
    requests: Requests,
    link: Link,
    deframer: Deframer,
    outbox: Vec<u8>,
    last_sent: Instant,
    last_received: Instant,
    last_ping: Instant,
    paused_until: Option<Instant>,
    /// The server said PAUSE, and nothing yet by which it would be reading again.
    reads_nothing: bool,
    /// Since when something is awaited and nothing was heard.
    awaiting: Option<Instant>,
    retries: Vec<(Instant, Retry)>,
    failed: Option<ClientError>,
    welcomes: u64,
    log_id: Option<u64>,
    /// The server's time in microseconds at the last welcome.
    server_us: u64,
    pub(crate) late: Late,
    /// Of clients that trace; most do not.
    traces: Option<Box<Traces>>,
}

impl Session {
    /// `instance` tells this program from others with the same client id.
    pub(crate) fn new(
        client: ClientId,
        token: Option<String>,
        instance: u64,
        numbers: Numbers,
        now: Instant,
    ) -> Session {
        Session {
            client,
            token,
            attempt: Attempt { instance, number: 0 },
            numbers,
            watches: Watches::default(),
            requests: Requests::default(),
            link: Link::Down,
            deframer: Deframer::default(),
            outbox: Vec::new(),
            last_sent: now,
            last_received: now,
            last_ping: now,
            paused_until: None,
            reads_nothing: false,
            awaiting: None,
            retries: Vec::new(),
            failed: None,
            welcomes: 0,
            log_id: None,
            server_us: 0,
            late: Late::default(),
            traces: None,
        }
    }

    /// Why everything fails from now on, if it does.
    pub(crate) fn failed(&self) -> Option<&ClientError> {
        self.failed.as_ref()
    }

    /// What is traced; from the first call on this client traces. `wall_us`: microseconds since the
    /// Unix epoch.
    pub(crate) fn traces(&mut self, now: Instant, wall_us: u64) -> &mut Traces {
        self.traces.get_or_insert_with(|| Box::new(Traces::new(now, wall_us)))
    }

    pub(crate) fn status(&self) -> Status {
        Status {
            connected: matches!(self.link, Link::Up { .. }),
            unresolved: self.numbers.open(),
            reconnects: self.welcomes.saturating_sub(1),
        }
    }

    /// Takes a higher epoch after [`End::NewEpoch`]. Whether to connect again at once. The present is
    /// what this machine says or what the server said: a device may wake up in 1970.
    pub(crate) fn take_epoch(&mut self, wall_us: u64) -> bool {
        self.numbers.take_epoch(wall_us.max(self.server_us))
    }

    /// A connection was made: HELLO, and behind it the watches that had no room in it.
    pub(crate) fn connected(&mut self, now: Instant, welcome_by: Instant) {
        self.link = Link::Greeting { welcome_by };
        (self.last_sent, self.last_received, self.last_ping) = (now, now, now);
        (self.reads_nothing, self.awaiting) = (false, None);
        self.attempt.number += 1;
        self.outbox.clear();
        self.deframer = Deframer::default();
        self.retries.clear();
        let mut watches = self.watches.wishes();
        let more = watches.split_off(watches.len().min(HELLO_WATCHES_MAX));
        FromClient::Hello(Hello {
            protocol: PROTOCOL_VERSION,
            client: &self.client,
            token: self.token.as_deref(),
            epoch: self.numbers.epoch(),
            sent_upto: self.numbers.sent_upto(),
            watches,
            attempt: self.attempt,
        })
        .encode(&mut self.outbox);
        for watch in more {
            FromClient::Watch(watch).encode(&mut self.outbox);
        }
        self.requests.ask_all(&mut self.outbox);
    }

    /// The connection is gone.
    pub(crate) fn disconnected(&mut self) {
        self.link = Link::Down;
        self.paused_until = None;
        self.outbox = Vec::new();
        self.deframer = Deframer::default();
        self.numbers.disconnected();
        if let Some(traces) = &mut self.traces {
            traces.disconnected();
        }
    }

    /// Nothing works any more, and why: everybody who waits is told.
    pub(crate) fn fail(&mut self, error: &ClientError) {
        self.disconnected();
        let error = self.failed.get_or_insert_with(|| error.clone()).clone();
        self.numbers.fail(&error);
        self.watches.fail(&error);
        self.requests.fail(&error);
        self.late.end();
    }

    /// Numbers an instruction, if there is room now; else the waiter comes back.
    pub(crate) fn submit(&mut self, instruction: &Instruction, waiter: Waiter) -> Result<Option<Waiter>, ClientError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if !self.numbers.has_room() {
            return Ok(Some(waiter));
        }
        self.numbers.submit(instruction.clone(), Some(waiter));
        Ok(None)
    }

    /// Asks something; returns the request's number.
    pub(crate) fn ask(&mut self, request: Request) -> u64 {
        if let Some(error) = &self.failed {
            request.fail(error.clone());
            return 0;
        }
        self.requests.ask(request, connected(self.link, &mut self.outbox))
    }

    pub(crate) fn cancel(&mut self, request: u64) {
        self.requests.cancel(request);
    }

    pub(crate) fn watch(&mut self, document: &DocumentId, mode: WatchMode) -> Result<Opening, ClientError> {
        match &self.failed {
            Some(error) => Err(error.clone()),
            None => Ok(self.watches.open(document, mode, connected(self.link, &mut self.outbox))),
        }
    }

    pub(crate) fn unwatch(&mut self, document: &DocumentId, handle: u64) {
        self.watches.close(document, handle, connected(self.link, &mut self.outbox));
    }

    pub(crate) fn document(&self, document: &DocumentId) -> std::sync::Arc<fieldstream_shared::document::Document> {
        self.watches.document(document)
    }

    /// The next event of a watch; `None` means wait.
    pub(crate) fn next_event(
        &mut self,
        document: &DocumentId,
        handle: u64,
    ) -> Result<Option<queue::Queued>, ClientError> {
        match (self.watches.next_event(document, handle)?, &self.failed) {
            (None, Some(error)) => Err(error.clone()),
            (event, _) => Ok(event),
        }
    }

    /// Says goodbye, if there is somebody to hear it.
    pub(crate) fn bye(&mut self) {
        if let Some(out) = connected(self.link, &mut self.outbox) {
            FromClient::Bye.encode(out);
        }
    }

    /// Takes what there is to send. `out` must be empty; its memory is used again.
    pub(crate) fn take_outbox(&mut self, now: Instant, out: &mut Vec<u8>) {
        if !self.outbox.is_empty() {
            self.last_sent = now;
            std::mem::swap(&mut self.outbox, out);
        }
    }

    /// Does what is due and returns when to be called again at the latest.
    pub(crate) fn poll(&mut self, now: Instant) -> Result<Option<Instant>, End> {
        let keepalive = match self.link {
            Link::Down => return Ok(None),
            Link::Greeting { welcome_by } if now >= welcome_by => return Err(End::TimedOut),
            Link::Greeting { welcome_by } => return Ok(Some(welcome_by)),
            Link::Up { keepalive } => keepalive,
        };
        if self.numbers.wants_epoch() {
            return Err(End::NewEpoch);
        }
        if let Some(until) = self.paused_until.filter(|until| now >= *until) {
            self.paused_until = None;
            // The server read nothing meanwhile, so no ping could be answered: its silence counts
            // from here.
            self.last_received = self.last_received.max(until);
        }
        let silent_at = self.paused_until.unwrap_or(self.last_received).max(self.last_received) + keepalive;
        if now >= silent_at {
            return Err(End::Broken(format!("nothing was heard from the server for {keepalive:?}")));
        }
        let is_awaiting = !self.reads_nothing && self.is_waiting();
        self.awaiting = is_awaiting.then(|| self.awaiting.unwrap_or(now));
        if self.awaiting.is_some_and(|since| now >= since + WAIT_SILENT) {
            return Err(End::Broken(format!("an answer is awaited and nothing was heard for {WAIT_SILENT:?}")));
        }
        self.ask_again(now);
        self.numbers.write_frames(self.paused_until.is_some(), &mut self.outbox, OUTBOX_BYTES_MAX);
        self.trace_sent(now);
        if !self.outbox.is_empty() {
            self.last_sent = now;
        }
        if now >= self.ping_at(keepalive) {
            FromClient::Ping { nonce: self.welcomes }.encode(&mut self.outbox);
            (self.last_sent, self.last_ping) = (now, now);
        }
        let given_up_at = self.awaiting.map(|since| since + WAIT_SILENT);
        let due = self.retries.iter().map(|(at, _)| *at).chain(self.paused_until).chain(given_up_at);
        Ok(due.chain([silent_at, self.ping_at(keepalive)]).min())
    }

    /// Notes what was just sent of what is traced, and asks for clocks if somebody wants to know.
    fn trace_sent(&mut self, now: Instant) {
        let Some(traces) = &mut self.traces else { return };
        let epoch = self.numbers.epoch();
        for number in self.numbers.sent_traced.drain(..) {
            traces.sent(now, epoch, number);
        }
        if let Some(nonce) = traces.ping(now) {
            FromClient::PingClock { nonce }.encode(&mut self.outbox);
        }
    }

    /// When to ask for a sign of life.
    fn ping_at(&self, keepalive: Duration) -> Instant {
        let usual = self.last_sent.min(self.last_received.max(self.last_ping)) + keepalive / 3;
        match self.awaiting {
            Some(since) if self.last_ping < since => usual.min(since + ASK_ALIVE),
            _ => usual,
        }
    }

    fn ask_again(&mut self, now: Instant) {
        if self.retries.iter().all(|(at, _)| now < *at) {
            return;
        }
        let (due, later) = std::mem::take(&mut self.retries).into_iter().partition(|(at, _)| now >= *at);
        self.retries = later;
        let due: Vec<(Instant, Retry)> = due;
        for (_, retry) in due {
            match retry {
                Retry::Watch(document) => self.watches.ask_again(&document, &mut self.outbox),
                Retry::Request(number) => self.requests.ask_again(number, &mut self.outbox),
            }
        }
    }

    /// Takes bytes from the server.
    pub(crate) fn handle_bytes(&mut self, now: Instant, bytes: &[u8]) -> Result<(), End> {
        (self.last_received, self.awaiting) = (now, None);
        let mut deframer = std::mem::take(&mut self.deframer);
        deframer.push(bytes);
        loop {
            match deframer.next(SERVER_FRAME_BYTES_MAX) {
                Ok(Some(payload)) => match FromServer::decode(payload) {
                    Ok(frame) => self.handle_frame(now, frame)?,
                    // Of a newer server.
                    Err(FrameError::UnknownTag(_)) => {}
                    Err(error @ FrameError::Malformed(_)) => return Err(End::Broken(error.to_string())),
                },
                Ok(None) => break,
                Err(error) => return Err(End::Broken(error.to_string())),
            }
        }
        deframer.shrink();
        self.deframer = deframer;
        Ok(())
    }

    /// Whether somebody waits for an answer.
    pub(crate) fn is_waiting(&self) -> bool {
        self.numbers.open() > 0 || !self.requests.is_empty() || self.watches.is_waiting()
    }

    fn handle_frame(&mut self, now: Instant, frame: FromServer<'_>) -> Result<(), End> {
        match frame {
            FromServer::Welcome(welcome) => self.welcome(welcome),
            FromServer::Outcome { epoch, number, level, outcome } => {
                if let Some(traces) = &mut self.traces {
                    traces.received(now, epoch, number);
                }
                if let Some(refusal) = self.numbers.outcome(epoch, number, level, outcome) {
                    self.late.tell(refusal);
                }
            }
            FromServer::Update(update) => {
                let next = self.watches.update(&update);
                self.after_watch(now, update.document, next);
            }
            FromServer::Snapshot(piece) => {
                let next = self.watches.snapshot(&piece);
                self.after_watch(now, piece.document, next);
            }
            FromServer::Watching { document, recovered } => self.watches.verdict(document, recovered),
            FromServer::Got { request, snapshot } => self.requests.got(request, &snapshot),
            FromServer::Listed { request, documents } => self.requests.listed(request, documents),
            FromServer::Pause { retry_after_ms } => {
                // A day is as good as for ever, and keeps the sum in range.
                self.paused_until = Some(now + Duration::from_millis(retry_after_ms.min(86_400_000)));
                self.reads_nothing = true;
            }
            FromServer::Resume => (self.paused_until, self.reads_nothing) = (None, false),
            FromServer::Pong { nonce, .. } => self.pong(now, nonce, None, Vec::new()),
            FromServer::PongClock { nonce, clock, others, .. } => self.pong(now, nonce, Some(clock), others),
            FromServer::Trace { epoch, number, stamps } => {
                if let Some(traces) = &mut self.traces {
                    traces.told(now, epoch, number, stamps);
                }
            }
            FromServer::Close { code, reason, retry_after_ms } => {
                let retry_after = Duration::from_millis(retry_after_ms.min(86_400_000));
                return Err(End::Closed { code, reason: reason.to_owned(), retry_after });
            }
            FromServer::Refused { request: 0, document, code } => {
                let next = self.watches.refused(document, code);
                self.after_watch(now, document, next);
            }
            FromServer::Refused { request, code, .. } => {
                if self.requests.refused(request, code) {
                    self.retries.push((now + ASK_AGAIN, Retry::Request(request)));
                }
            }
            FromServer::Synced { request } => self.requests.synced(request),
        }
        Ok(())
    }

    fn pong(&mut self, now: Instant, nonce: u64, clock: Option<(u64, u64)>, others: Vec<KnownClock>) {
        self.reads_nothing = false;
        if let Some(traces) = &mut self.traces {
            traces.pong(now, nonce, clock, others);
        }
    }

    fn welcome(&mut self, welcome: Welcome) {
        let Limits { window, watches, keepalive_ms, .. } = welcome.limits;
        self.welcomes += 1;
        self.server_us = welcome.time_us;
        self.link = Link::Up { keepalive: Duration::from_millis(keepalive_ms.min(86_400_000)).max(KEEPALIVE_MIN) };
        self.numbers.connected(window);
        if self.log_id.replace(welcome.log_id).is_some_and(|before| before != welcome.log_id) {
            tracing::warn!(log_id = welcome.log_id, "the server's log was repaired or replaced");
        }
        tracing::debug!(session = welcome.session, window, watches, held = self.watches.len(), "session begins");
    }

    fn after_watch(&mut self, now: Instant, document: &str, next: Next) {
        if next == Next::Nothing {
            return;
        }
        let Ok(document) = DocumentId::new(document) else { return };
        match next {
            Next::AskAgain => self.watches.ask_again(&document, &mut self.outbox),
            // One question at a time, however much arrives that does not fit.
            _ if self.retries.iter().any(|(_, r)| matches!(r, Retry::Watch(d) if *d == document)) => {}
            _ => self.retries.push((now + ASK_AGAIN, Retry::Watch(document))),
        }
    }
}

fn connected(link: Link, outbox: &mut Vec<u8>) -> Option<&mut Vec<u8>> {
    match link {
        Link::Down => None,
        Link::Greeting { .. } | Link::Up { .. } => Some(outbox),
    }
}

/// Whether connecting again would only end the same way, or end another connection.
pub(crate) fn is_final(code: Code) -> bool {
    code == Code::TAKEN_OVER || (Code::MALFORMED_FRAME..=Code::OUTSIDE_WINDOW).contains(&code)
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
