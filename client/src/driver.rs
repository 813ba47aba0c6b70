//! The task that drives a client's session over real connections: one per client, for all of its
//! life. Connects, moves bytes, sleeps, connects again.

use crate::error::ClientError;
use crate::session::backoff::Backoff;
use crate::session::{End, Session, is_final};
use crate::transport::{Connector, Link};
use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::ReadBuf;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

/// Bytes read at once. The buffer belongs to the thread, not to the connection: ten thousand idle
/// clients hold none.
const READ_BYTES: usize = 64 * 1024;

/// A write buffer that grew beyond this in a burst is given back.
const KEPT_BYTES: usize = 4 * 1024;

/// Time to say goodbye to a server that takes no more bytes.
const STOP_TIME: Duration = Duration::from_secs(1);

thread_local! {
    static READ_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into());
}

/// What callers want of the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) enum Wish {
    #[default]
    Run,
    /// Drop the connection as if the network had failed.
    Interrupt,
    /// Say goodbye and end.
    Stop,
}

/// What a client's handles and its tasks share.
#[derive(Debug)]
pub(crate) struct Shared {
    session: Mutex<(Session, Wish)>,
    /// Wakes the driver: there is something to send, or a wish.
    pub(crate) work: Notify,
    /// Wakes the one submitter at the head of the line: there may be room.
    pub(crate) room: Notify,
    /// Wakes those who wait until everything is resolved.
    pub(crate) quiet: Notify,
    /// Wakes the task that writes the state file.
    pub(crate) journal: Notify,
    /// The line of submitters: numbers are given in the order of the calls.
    pub(crate) line: tokio::sync::Mutex<()>,
}

impl Shared {
    pub(crate) fn new(session: Session) -> Shared {
        Shared {
            session: Mutex::new((session, Wish::Run)),
            work: Notify::new(),
            room: Notify::new(),
            quiet: Notify::new(),
            journal: Notify::new(),
            line: tokio::sync::Mutex::new(()),
        }
    }

    /// Uses the session, then wakes whom that concerns.
    pub(crate) fn with<R>(&self, use_session: impl FnOnce(&mut Session) -> R) -> R {
        let mut guard = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let result = use_session(&mut guard.0);
        let moved = std::mem::take(&mut guard.0.numbers.moved);
        let quiet = moved && (guard.0.numbers.is_quiet() || guard.0.failed().is_some());
        let journal = moved && guard.0.numbers.journal.is_some();
        drop(guard);
        if moved {
            self.room.notify_one();
        }
        if quiet {
            self.quiet.notify_waiters();
        }
        if journal {
            self.journal.notify_one();
        }
        result
    }

    /// Wishes something of the driver.
    pub(crate) fn wish(&self, wish: Wish) {
        let mut guard = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        guard.1 = guard.1.max(wish);
        drop(guard);
        self.work.notify_one();
    }

    /// The wish; an interruption is granted once.
    fn take_wish(&self) -> Wish {
        let mut guard = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        match guard.1 {
            Wish::Interrupt => std::mem::take(&mut guard.1),
            other => other,
        }
    }

    pub(crate) fn fail(&self, error: &ClientError) {
        self.with(|session| session.fail(error));
        self.room.notify_one();
        self.journal.notify_one();
    }
}

/// How a client connects.
pub(crate) struct Driver {
    pub(crate) shared: Arc<Shared>,
    pub(crate) connector: Connector,
    pub(crate) connect_timeout: Duration,
    pub(crate) reconnect: bool,
}

/// Why the driver leaves a connection.
enum Left {
    End(End),
    Interrupted,
    Stopped,
}

/// Microseconds since the Unix epoch.
pub(crate) fn wall_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

impl Driver {
    /// Runs until the client stops or fails for good. `started` hears of the first session, or why
    /// there is none.
    pub(crate) async fn run(self, started: oneshot::Sender<Result<(), ClientError>>) {
        let mut started = Some(started);
        let mut backoff = Backoff::default();
        loop {
            let mut welcomed = None;
            let left = self.session(&mut started, &mut welcomed).await;
            self.shared.with(Session::disconnected);
            let lasted = welcomed.map_or(Duration::ZERO, |at: Instant| at.elapsed());
            let (error, retry_after) = match left {
                Left::Stopped => (ClientError::Ended, None),
                Left::End(End::NewEpoch) => {
                    let at_once = self.shared.with(|session| session.take_epoch(wall_us()));
                    if !at_once
                        && self.stopped_within(backoff.delay(lasted, true, Duration::ZERO, rand::random())).await
                    {
                        self.shared.fail(&ClientError::Ended);
                        return;
                    }
                    continue;
                }
                Left::Interrupted => (ClientError::Io("the connection was interrupted".into()), Some(Duration::ZERO)),
                Left::End(End::TimedOut) => (ClientError::TimedOut, Some(Duration::ZERO)),
                Left::End(End::Broken(why)) => (ClientError::Io(why), Some(Duration::ZERO)),
                Left::End(End::Closed { code, reason, retry_after }) => {
                    (ClientError::Closed { code, reason }, (!is_final(code)).then_some(retry_after))
                }
            };
            let retry_after = retry_after.filter(|_| self.reconnect && started.is_none());
            let Some(retry_after) = retry_after else {
                self.shared.fail(&error);
                if let Some(started) = started.take() {
                    let _ = started.send(Err(error));
                }
                return;
            };
            let is_waiting = self.shared.with(|session| session.is_waiting());
            let delay = backoff.delay(lasted, is_waiting, retry_after, rand::random());
            tracing::debug!(%error, delay_ms = delay.as_millis() as u64, "the connection ended and is made again");
            if self.stopped_within(delay).await {
                self.shared.fail(&ClientError::Ended);
                return;
            }
        }
    }

    /// Waits. Returns whether the client is to stop.
    async fn stopped_within(&self, delay: Duration) -> bool {
        let until = Instant::now() + delay;
        loop {
            // An interruption while there is no connection has nothing to interrupt.
            if self.shared.take_wish() == Wish::Stop {
                return true;
            }
            tokio::select! {
                () = self.shared.work.notified() => {}
                () = sleep_until(until) => return false,
            }
        }
    }

    /// One connection, from connecting to its end.
    async fn session(
        &self,
        started: &mut Option<oneshot::Sender<Result<(), ClientError>>>,
        welcomed: &mut Option<Instant>,
    ) -> Left {
        let welcome_by = Instant::now() + self.connect_timeout;
        // On the heap: a handshake's state is large, and the driver's own is kept for ever.
        let opening = Box::pin(self.connector.open());
        let opened = tokio::select! {
            opened = timeout(self.connect_timeout, opening) => opened,
            true = self.stopped_within(self.connect_timeout) => return Left::Stopped,
        };
        let mut link = match opened {
            Ok(Ok(link)) => link,
            Ok(Err(error)) => {
                if let Some(started) = started.take() {
                    self.shared.fail(&error);
                    let _ = started.send(Err(error));
                    return Left::Stopped;
                }
                return Left::End(End::Broken(error.to_string()));
            }
            Err(_) => return Left::End(End::TimedOut),
        };
        self.shared.with(|session| {
            if session.numbers.wants_epoch() {
                session.take_epoch(wall_us());
            }
            session.connected(Instant::now().into_std(), welcome_by.into_std());
        });
        let left = self.exchange(&mut link, started, welcomed).await;
        match left {
            // As a network failure would: nobody says goodbye.
            Left::Interrupted => drop(link),
            _ => Box::pin(link.close()).await,
        }
        left
    }

    /// Moves bytes until the connection ends.
    async fn exchange(
        &self,
        link: &mut Link,
        started: &mut Option<oneshot::Sender<Result<(), ClientError>>>,
        welcomed: &mut Option<Instant>,
    ) -> Left {
        let mut writing = Writing::default();
        let mut timer = pin!(sleep_until(Instant::now()));
        let mut stop_by = None;
        loop {
            let now = Instant::now();
            match self.shared.take_wish() {
                Wish::Run => {}
                Wish::Interrupt => return Left::Interrupted,
                Wish::Stop if stop_by.is_none() => {
                    self.shared.with(Session::bye);
                    stop_by = Some(now + STOP_TIME);
                }
                Wish::Stop => {}
            }
            let polled = self.shared.with(|session| {
                let deadline = session.poll(now.into_std());
                if writing.is_done() {
                    session.take_outbox(now.into_std(), writing.empty());
                }
                deadline.map(|deadline| (deadline, session.status().connected))
            });
            let deadline = match polled {
                Ok((deadline, connected)) => {
                    if connected && welcomed.is_none() {
                        *welcomed = Some(now);
                        started.take().map(|started| started.send(Ok(())));
                    }
                    deadline.map_or(now + Duration::from_secs(1), Instant::from_std)
                }
                Err(end) => return Left::End(end),
            };
            if stop_by.is_some_and(|stop_by| writing.is_done() || now >= stop_by) {
                return Left::Stopped;
            }
            let deadline = stop_by.map_or(deadline, |stop_by| deadline.min(stop_by));
            // Setting a timer costs: one that fires too early is only looked at again.
            if timer.is_elapsed() || deadline < timer.deadline() {
                timer.as_mut().reset(deadline);
            }
            let mut work = pin!(self.shared.work.notified());
            let turned = poll_fn(|cx| {
                let mut ready = work.as_mut().poll(cx).is_ready() | timer.as_mut().poll(cx).is_ready();
                match writing.poll(link, cx) {
                    Poll::Ready(Ok(progress)) => ready |= progress,
                    Poll::Ready(Err(end)) => return Poll::Ready(Err(end)),
                    Poll::Pending => {}
                }
                match self.poll_read(link, cx) {
                    Poll::Ready(Ok(())) => ready = true,
                    Poll::Ready(Err(end)) => return Poll::Ready(Err(end)),
                    Poll::Pending => {}
                }
                if ready { Poll::Ready(Ok(())) } else { Poll::Pending }
            })
            .await;
            if let Err(end) = turned {
                return Left::End(end);
            }
        }
    }

    fn poll_read(&self, link: &mut Link, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        READ_BUFFER.with_borrow_mut(|buffer| {
            let mut read = ReadBuf::new(buffer);
            match link.poll_read(cx, &mut read) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Err(error)) => Poll::Ready(Err(End::Broken(format!("the connection broke: {error}")))),
                Poll::Ready(Ok(())) if read.filled().is_empty() => {
                    Poll::Ready(Err(End::Broken("the server ended the connection without a word".into())))
                }
                Poll::Ready(Ok(())) => {
                    let now = Instant::now().into_std();
                    Poll::Ready(self.shared.with(|session| session.handle_bytes(now, read.filled())))
                }
            }
        })
    }
}

/// Bytes on their way out.
#[derive(Default)]
struct Writing {
    bytes: Vec<u8>,
    written: usize,
    flushing: bool,
}

impl Writing {
    fn is_done(&self) -> bool {
        self.written == self.bytes.len() && !self.flushing
    }

    /// The buffer, emptied, for what is sent next.
    fn empty(&mut self) -> &mut Vec<u8> {
        self.written = 0;
        self.bytes.clear();
        if self.bytes.capacity() > KEPT_BYTES {
            self.bytes = Vec::new();
        }
        &mut self.bytes
    }

    /// Writes what can be written. Ready with `true` when everything is out.
    fn poll(&mut self, link: &mut Link, cx: &mut Context<'_>) -> Poll<Result<bool, End>> {
        let broken = |error: std::io::Error| End::Broken(format!("the connection broke: {error}"));
        while self.written < self.bytes.len() {
            match link.poll_write(cx, &self.bytes[self.written..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(End::Broken("the connection takes no bytes".into()))),
                Poll::Ready(Ok(n)) => self.written += n,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(broken(error))),
                Poll::Pending => return Poll::Pending,
            }
            self.flushing = true;
        }
        if !self.flushing {
            return Poll::Ready(Ok(false));
        }
        match link.poll_flush(cx) {
            Poll::Ready(Ok(())) => {
                self.flushing = false;
                Poll::Ready(Ok(true))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(broken(error))),
            Poll::Pending => Poll::Pending,
        }
    }
}
