//! One connection's task: drives the session, its mailbox and its stream, whatever the transport.
//!
//! It holds no buffer while it is idle: reads go into a buffer of the thread, which is handed to
//! the session before the turn ends, and small frames are joined in another one for each write.

use crate::lane::Origin;
use crate::listing::{self, Listing};
use crate::mailbox::{Closing, Entry, Mailbox, frame};
use crate::reads;
use crate::session::{Action, Session};
use crate::shared::{Shared, wall_us};
use crate::takeover;
use crate::traces::SessionTrace;
use bytes::{Buf, Bytes};
use fieldstream_shared::code::Code;
use fieldstream_shared::frame::{Attempt, FromServer, Limits, Welcome};
use fieldstream_shared::ids::{ClientId, Number};
use fieldstream_shared::limits::FRAME_BYTES_MAX;
use fieldstream_shared::outcome::AckLevel;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Sleep, timeout};

const READ_BYTES: usize = 64 * 1024;
/// Frames are joined up to this; longer ones are written by themselves.
const JOIN_BYTES: usize = 32 * 1024;
/// What is taken from the outbox at once.
const TAKE_BYTES: usize = 64 * 1024;
/// After the reason for the end was queued, so long for the client to take it.
const CLOSE_MS: u64 = 2_000;
/// After the last byte, so long for the client to close. A socket closed with unread bytes in it
/// would be reset, and the client might never see why.
const LINGER: Duration = Duration::from_secs(1);

thread_local! {
    static READ: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into());
    static JOIN: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(2 * JOIN_BYTES));
}

/// A byte stream to a client.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The client left, or its stream broke.
    Gone,
    /// The client was told why.
    Told,
}

struct Connection<S: Stream> {
    /// There until the end.
    stream: Option<S>,
    shared: Arc<Shared>,
    mailbox: Arc<Mailbox>,
    session: Session,
    client: Option<ClientId>,
    is_loopback: bool,
    /// Held until HELLO was taken: the connection counts as arriving.
    arriving: Option<OwnedSemaphorePermit>,
    writing: VecDeque<Bytes>,
    needs_flush: bool,
    /// When the stream last took something, or began to have something to take.
    progress_ms: u64,
    is_reading: bool,
    has_left: bool,
    closing_since_ms: Option<u64>,
    has_told: bool,
    timer: Pin<Box<Sleep>>,
    timer_ms: u64,
    /// Of clients that trace.
    trace: Option<Box<SessionTrace>>,
}

/// Serves a client until it leaves, is sent away or falls silent.
pub(crate) async fn serve<S: Stream>(
    shared: Arc<Shared>,
    mut stream: S,
    is_loopback: bool,
    arriving: OwnedSemaphorePermit,
) {
    let Ok(_place) = Arc::clone(&shared.places).try_acquire_owned() else {
        let mut closing = Closing::new(Code::BUSY, "the server has as many connections as it takes");
        closing.retry_after_ms = shared.limits.retry_after.as_millis() as u64;
        let told = timeout(LINGER, stream.write_all(&closing.frame())).await;
        if matches!(told, Ok(Ok(()))) {
            linger(stream).await;
        }
        return;
    };
    let now_ms = shared.now_ms();
    let mailbox = shared.enter();
    let session = Session::new(shared.rules(), now_ms);
    let timer_ms = session.deadline_ms();
    let mut connection = Connection {
        stream: Some(stream),
        mailbox: Arc::clone(&mailbox),
        session,
        client: None,
        is_loopback,
        arriving: Some(arriving),
        writing: VecDeque::new(),
        needs_flush: false,
        progress_ms: now_ms,
        is_reading: true,
        has_left: false,
        closing_since_ms: None,
        has_told: false,
        timer: Box::pin(tokio::time::sleep_until(shared.instant(timer_ms))),
        timer_ms,
        trace: None,
        shared,
    };
    let stopped = connection.shared.stopped.clone();
    let end = tokio::select! {
        biased;
        end = poll_fn(|context| connection.poll(context)) => end,
        () = stopped.cancelled() => End::Gone,
    };
    let stream = connection.stream.take();
    // It leaves everything before the stream is wound up.
    drop(connection);
    if end == End::Told
        && let Some(stream) = stream
    {
        linger(stream).await;
    }
}

/// Ends the stream after its last byte was written.
async fn linger<S: Stream>(mut stream: S) {
    let farewell = async {
        stream.flush().await?;
        stream.shutdown().await?;
        let mut rest = [0; 512];
        while stream.read(&mut rest).await? > 0 {}
        Ok::<(), std::io::Error>(())
    };
    // Whatever comes of it, the client had its chance.
    let _ = timeout(LINGER, farewell).await;
}

impl<S: Stream> Connection<S> {
    /// One turn: reads, acts and writes until nothing moves.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<End> {
        self.mailbox.waker.register(context.waker());
        self.mailbox.lock().rise();
        // Once for the turn, which is short; the deadlines at its end look at the clock again.
        let now_ms = self.shared.now_ms();
        loop {
            let has_read = match self.poll_read(context, now_ms) {
                Ok(has_read) => has_read,
                Err(end) => return Poll::Ready(end),
            };
            let has_written = match self.poll_write(context, now_ms) {
                Ok(has_written) => has_written,
                Err(end) => return Poll::Ready(end),
            };
            if has_read || has_written {
                continue;
            }
            if let Some(end) = self.poll_time(context, now_ms) {
                return Poll::Ready(end);
            }
            if self.mailbox.lock().rest() {
                return Poll::Pending;
            }
        }
    }

    /// Whether the next frame may be looked at.
    fn may_read(&mut self, now_ms: u64) -> bool {
        let inbound = self.mailbox.lock();
        let stops = inbound.paused
            || inbound.draining
            || inbound.closing().is_some()
            || inbound.requests_open >= self.shared.limits.requests_max
            || inbound.outbox.is_over();
        drop(inbound);
        let may = !stops && !self.has_left;
        if may && !self.is_reading {
            self.session.excuse(now_ms);
        }
        self.is_reading = may;
        may
    }

    fn poll_read(&mut self, context: &mut Context<'_>, now_ms: u64) -> Result<bool, End> {
        while self.may_read(now_ms) {
            // HELLO brings nothing for the log: who waited with it would be let in when the client has
            // long been somewhere else.
            if self.client.is_some() && self.session.has_input() && self.shared.hold_back(&self.mailbox) {
                continue;
            }
            match self.session.poll(now_ms, wall_us()) {
                Some(action) => self.act(action)?,
                None => break,
            }
            if let Some(trace) = &mut self.trace {
                trace.next_frame();
            }
        }
        if !self.is_reading {
            return Ok(false);
        }
        let Some(stream) = &mut self.stream else { return Err(End::Gone) };
        READ.with_borrow_mut(|buffer| {
            let mut buffer = ReadBuf::new(buffer);
            match Pin::new(stream).poll_read(context, &mut buffer) {
                Poll::Pending => Ok(false),
                Poll::Ready(Err(_)) => Err(End::Gone),
                Poll::Ready(Ok(())) => {
                    match buffer.filled() {
                        [] => self.session.handle_end(),
                        bytes => {
                            if let Some(trace) = &mut self.trace {
                                trace.read(self.session.has_input(), self.shared.traces.clock.now_us());
                            }
                            self.session.handle_bytes(now_ms, bytes);
                        }
                    }
                    Ok(true)
                }
            }
        })
    }

    fn act(&mut self, action: Action) -> Result<(), End> {
        let (shared, mailbox) = (&self.shared, &self.mailbox);
        match action {
            Action::Log { partition, record, number, settled, ack, traced } => {
                let mut inbound = mailbox.lock();
                inbound.numbers.sent(number, settled, ack);
                let epoch = inbound.numbers.epoch();
                drop(inbound);
                let tell_logged = ack == AckLevel::Logged;
                let trace = match &self.client {
                    Some(client) if traced => {
                        let trace = self.trace.get_or_insert_default();
                        shared.traces.begin(trace, Number { client: client.clone(), epoch, number }, mailbox)
                    }
                    _ => None,
                };
                let origin = Origin { mailbox: Arc::clone(mailbox), epoch, number, tell_logged, trace };
                shared.lane(partition).append(&record, origin);
            }
            Action::Send(frames) if frames.is_empty() => {}
            Action::Send(frames) => mailbox.lock().outbox.keep(frames),
            Action::Watch(wish) => {
                shared.lane_of(&wish.document).step(|hub, effects| hub.watch(mailbox, wish, effects));
            }
            Action::Unwatch(document) => {
                shared.lane_of(&document).step(|hub, _| hub.unwatch(mailbox, &document));
            }
            Action::Get { request, document } => reads::get(shared, mailbox, request, document),
            Action::List { request, prefix, after, limit } => {
                if let Some(rights) = self.session.rights() {
                    let listing = Listing { request, prefix, after, limit };
                    listing::list(shared, mailbox, rights.clone(), listing);
                }
            }
            Action::Clock { nonce } => {
                self.trace.get_or_insert_default();
                mailbox.lock().outbox.keep(shared.traces.pong(nonce));
            }
            Action::Sync { request } => {
                mailbox.lock().requests_open += 1;
                shared.add_sync(mailbox, request);
            }
            Action::Authenticate { client, token, epoch, sent_upto, attempt } => {
                self.authenticate(client, token.as_deref(), (epoch, sent_upto), attempt);
            }
            Action::Close { code, reason } => {
                let client = self.client.as_deref().unwrap_or_default();
                tracing::debug!(session = mailbox.id, client, %code, reason, "a session is closed");
                mailbox.lock().close(Closing::new(code, reason));
            }
            Action::Left => {
                self.has_left = true;
                return Err(End::Gone);
            }
        }
        Ok(())
    }

    fn authenticate(
        &mut self,
        client: ClientId,
        token: Option<&str>,
        (epoch, sent_upto): (u64, u64),
        attempt: Attempt,
    ) {
        self.arriving = None;
        if let Some(closing) = self.shared.turned_away() {
            return self.mailbox.lock().close(closing);
        }
        let rights = match self.shared.tokens.authorize(self.is_loopback, &client, token) {
            Ok(rights) => rights,
            Err(error) => {
                tracing::debug!(session = self.mailbox.id, client = %client, "a client was not let in");
                return self.mailbox.lock().close(Closing::new(Code::UNAUTHORIZED, error.to_string()));
            }
        };
        let rules = self.shared.rules();
        let welcome = Welcome {
            session: self.mailbox.id,
            limits: Limits {
                window: rules.window,
                frame_bytes: FRAME_BYTES_MAX as u64,
                watches: rules.watches_max as u64,
                keepalive_ms: rules.keepalive_ms,
            },
            time_us: wall_us(),
            log_id: self.shared.topology.log_id,
        };
        let mut inbound = self.mailbox.lock();
        inbound.numbers.begin(epoch, sent_upto);
        inbound.outbox.keep(frame(&FromServer::Welcome(welcome)));
        drop(inbound);
        self.mailbox.entered(Entry { at_us: wall_us(), attempt });
        if let Err(closing) = takeover::enter(&self.shared, &client, &self.mailbox) {
            return self.mailbox.lock().close(closing);
        }
        for lane in &self.shared.lanes {
            lane.step(|hub, _| hub.tell_missed(&client, epoch, sent_upto, &self.mailbox));
        }
        self.session.admit(rights);
        self.client = Some(client);
    }

    fn poll_write(&mut self, context: &mut Context<'_>, now_ms: u64) -> Result<bool, End> {
        let mut has_written = false;
        loop {
            if self.writing.is_empty() && !self.fetch(now_ms) {
                break;
            }
            let Some(stream) = &mut self.stream else { return Err(End::Gone) };
            // Before the write: on one machine the client may have the bytes before the call returns.
            let begun_us = self.trace.as_ref().map(|_| self.shared.traces.clock.now_us());
            let wrote = JOIN.with_borrow_mut(|join| {
                let bytes = joined(&self.writing, join);
                Pin::new(stream).poll_write(context, bytes)
            });
            match wrote {
                Poll::Pending => return Ok(has_written),
                Poll::Ready(Err(_) | Ok(0)) => return Err(End::Gone),
                Poll::Ready(Ok(n)) => {
                    consume(&mut self.writing, n);
                    self.progress_ms = now_ms;
                    (has_written, self.needs_flush) = (true, true);
                    self.shared.traces.wrote();
                    if let (Some(trace), Some(begun_us)) = (&mut self.trace, begun_us) {
                        trace.wrote(begun_us);
                    }
                }
            }
        }
        if self.needs_flush
            && let Some(stream) = &mut self.stream
        {
            match Pin::new(stream).poll_flush(context) {
                Poll::Pending => return Ok(has_written),
                Poll::Ready(Err(_)) => return Err(End::Gone),
                Poll::Ready(Ok(())) => {
                    (self.needs_flush, self.progress_ms) = (false, now_ms);
                }
            }
        }
        if let Some(trace) = &mut self.trace {
            has_written |= self.shared.traces.tell_written(trace, &self.mailbox);
        }
        if self.has_told { Err(End::Told) } else { Ok(has_written) }
    }

    /// Gets the next frames to write. False if there are none.
    fn fetch(&mut self, now_ms: u64) -> bool {
        // Behind CLOSE nothing follows.
        if self.has_told {
            return false;
        }
        loop {
            let mut inbound = self.mailbox.lock();
            let stale = if inbound.closing().is_none() { inbound.outbox.next_stale() } else { None };
            if let Some(document) = stale {
                drop(inbound);
                let lane = &self.shared.lanes[crate::hub::LaneHub::lane_of(document)];
                lane.step(|hub, effects| hub.refresh(document, &self.mailbox, &mut effects.wakes));
                continue;
            }
            let taken = inbound.outbox.take(TAKE_BYTES, &mut self.writing);
            if let Some(trace) = &mut self.trace {
                trace.fetched(&mut inbound.traced);
            }
            if taken == 0
                && let Some(closing) = inbound.closing()
            {
                self.writing.push_back(closing.frame());
                self.has_told = true;
            }
            drop(inbound);
            if self.writing.is_empty() {
                self.writing.shrink_to(4);
                return false;
            }
            self.progress_ms = now_ms;
            return true;
        }
    }

    fn poll_time(&mut self, context: &mut Context<'_>, now_ms: u64) -> Option<End> {
        let closing = self.mailbox.lock().closing().is_some();
        if closing {
            self.closing_since_ms.get_or_insert(now_ms);
        }
        loop {
            let now_ms = self.shared.now_ms();
            if self.is_waiting_to_write() && now_ms >= self.write_deadline_ms() {
                tracing::debug!(session = self.mailbox.id, "a client that takes nothing is cut off");
                let reason = "nothing was taken of what waits for this client";
                self.mailbox.lock().close(Closing::new(Code::TOO_SLOW, reason));
                return Some(End::Gone);
            }
            if self.closing_since_ms.is_some_and(|since| now_ms >= since + CLOSE_MS) {
                return Some(End::Gone);
            }
            if self.is_reading
                && let Some(action) = self.session.handle_time(now_ms)
            {
                // To be written in the next round of this turn.
                let _ = self.act(action);
                self.mailbox.post(|_| {});
                return None;
            }
            let deadline_ms = self.deadline_ms();
            // Deadlines mostly move away; the timer is moved only when it would fire too late.
            if deadline_ms < self.timer_ms || self.timer.is_elapsed() {
                self.timer_ms = deadline_ms;
                self.timer.as_mut().reset(self.shared.instant(deadline_ms));
            }
            if self.timer.as_mut().poll(context).is_pending() {
                return None;
            }
        }
    }

    fn is_waiting_to_write(&self) -> bool {
        !self.writing.is_empty() || self.needs_flush
    }

    fn write_deadline_ms(&self) -> u64 {
        self.progress_ms + self.shared.limits.write_timeout.as_millis() as u64
    }

    fn deadline_ms(&self) -> u64 {
        let mut deadline_ms = if self.is_reading { self.session.deadline_ms() } else { u64::MAX };
        if self.is_waiting_to_write() {
            deadline_ms = deadline_ms.min(self.write_deadline_ms());
        }
        self.closing_since_ms.map_or(deadline_ms, |since| deadline_ms.min(since + CLOSE_MS))
    }
}

impl<S: Stream> Drop for Connection<S> {
    /// Takes the session out of everything, also when its task was aborted or has panicked.
    fn drop(&mut self) {
        self.shared.leave(&self.mailbox);
        if let Some(client) = &self.client {
            let mut clients = self.shared.clients.write().unwrap_or_else(PoisonError::into_inner);
            if clients.get(client).is_some_and(|mailbox| mailbox.id == self.mailbox.id) {
                clients.remove(client);
            }
        }
        for document in self.session.watching() {
            self.shared.lane_of(document).step(|hub, _| hub.unwatch(&self.mailbox, document));
        }
    }
}

/// The next bytes to write: one long frame, or several short ones joined.
fn joined<'a>(writing: &'a VecDeque<Bytes>, join: &'a mut Vec<u8>) -> &'a [u8] {
    match writing.front() {
        None => return &[],
        Some(first) if writing.len() == 1 || first.len() >= JOIN_BYTES / 2 => return first,
        Some(_) => join.clear(),
    }
    for frames in writing.iter().take_while(|frames| frames.len() <= JOIN_BYTES / 2) {
        if !join.is_empty() && join.len() + frames.len() > JOIN_BYTES {
            break;
        }
        join.extend_from_slice(frames);
    }
    join
}

fn consume(writing: &mut VecDeque<Bytes>, mut written: usize) {
    while let Some(first) = writing.front_mut() {
        if first.len() > written {
            first.advance(written);
            return;
        }
        written -= first.len();
        writing.pop_front();
    }
}
