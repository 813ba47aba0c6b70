//! What the rest of the gateway may do to a session: put frames into its outbox, stop and resume
//! its reading, close it. The connection's task does the rest.

use crate::numbers::Numbers;
use crate::outbox::Outbox;
use crate::traces::Seen;
use bytes::Bytes;
use fieldstream_shared::code::Code;
use fieldstream_shared::frame::{Attempt, FromServer};
use fieldstream_shared::outcome::{AckLevel, Outcome};
use futures::task::AtomicWaker;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Numbers the sessions of this start of the gateway.
pub(crate) type SessionId = u64;

/// Why a session ends, as its client is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Closing {
    pub(crate) code: Code,
    pub(crate) reason: String,
    pub(crate) retry_after_ms: u64,
}

impl Closing {
    pub(crate) fn new(code: Code, reason: impl Into<String>) -> Closing {
        Closing { code, reason: reason.into(), retry_after_ms: 0 }
    }

    /// The CLOSE frame.
    pub(crate) fn frame(&self) -> Bytes {
        frame(&FromServer::Close { code: self.code, reason: &self.reason, retry_after_ms: self.retry_after_ms })
    }
}

/// A frame's bytes.
pub(crate) fn frame(frame: &FromServer<'_>) -> Bytes {
    let mut out = Vec::with_capacity(64);
    frame.encode(&mut out);
    Bytes::from(out)
}

/// What a session's owner and the hub share.
#[derive(Debug)]
pub(crate) struct Inbound {
    pub(crate) outbox: Outbox,
    pub(crate) numbers: Numbers,
    /// A lane's queue is full: nothing more is read until it says so.
    pub(crate) paused: bool,
    /// The gateway stops: nothing more is read.
    pub(crate) draining: bool,
    /// Reads (GET, LIST, SYNC) that are not answered yet.
    pub(crate) requests_open: usize,
    /// Events of its traced instructions that frames in the outbox are about.
    pub(crate) traced: Vec<Seen>,
    closing: Option<Closing>,
    /// Something was put in since the connection looked.
    news: bool,
    /// The connection is at work or about to be woken.
    awake: bool,
}

impl Inbound {
    /// Ends the session; the first reason stands.
    pub(crate) fn close(&mut self, closing: Closing) {
        self.outbox.close();
        self.closing.get_or_insert(closing);
    }

    pub(crate) fn closing(&self) -> Option<&Closing> {
        self.closing.as_ref()
    }

    /// The connection begins a turn: nobody needs to wake it until [`Inbound::rest`].
    pub(crate) fn rise(&mut self) {
        (self.awake, self.news) = (true, false);
    }

    /// The connection would end its turn. False if there is news, which it must look at first.
    pub(crate) fn rest(&mut self) -> bool {
        self.awake = std::mem::take(&mut self.news);
        !self.awake
    }

    /// Notes that something was put in. True if the connection must be woken.
    fn note(&mut self) -> bool {
        self.news = true;
        !std::mem::replace(&mut self.awake, true)
    }

    pub(crate) fn outcome(&mut self, epoch: u64, number: u64, level: AckLevel, outcome: Option<Outcome>) {
        self.outbox.keep(frame(&FromServer::Outcome { epoch, number, level, outcome }));
    }
}

/// How a client was let in.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Entry {
    /// Microseconds since the Unix epoch.
    pub(crate) at_us: u64,
    pub(crate) attempt: Attempt,
}

/// One session, seen from outside its connection.
#[derive(Debug)]
pub(crate) struct Mailbox {
    pub(crate) id: SessionId,
    inbound: Mutex<Inbound>,
    pub(crate) waker: AtomicWaker,
    entry: OnceLock<Entry>,
}

impl Mailbox {
    pub(crate) fn new(id: SessionId, outbox_bytes_max: usize) -> Arc<Mailbox> {
        let inbound = Inbound {
            outbox: Outbox::new(outbox_bytes_max),
            numbers: Numbers::default(),
            paused: false,
            draining: false,
            requests_open: 0,
            traced: Vec::new(),
            closing: None,
            news: false,
            awake: false,
        };
        Arc::new(Mailbox { id, inbound: Mutex::new(inbound), waker: AtomicWaker::new(), entry: OnceLock::new() })
    }

    /// The client was let in; that happens once.
    pub(crate) fn entered(&self, entry: Entry) {
        let _ = self.entry.set(entry);
    }

    /// How the client was let in, if it was.
    pub(crate) fn entry(&self) -> Entry {
        self.entry.get().copied().unwrap_or_default()
    }

    /// For the connection itself, which needs no waking. The lock is held for moments only and
    /// guards plain queues, so what a panicking holder left behind is still whole.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Inbound> {
        self.inbound.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something to the session and wakes its connection.
    pub(crate) fn post(&self, act: impl FnOnce(&mut Inbound)) {
        let mut inbound = self.lock();
        act(&mut inbound);
        let wake = inbound.note();
        drop(inbound);
        if wake {
            self.waker.wake();
        }
    }
}

/// Sessions to wake at the end of a step: each once, however much it got.
#[derive(Debug, Default)]
pub(crate) struct Wakes {
    sleeping: Vec<Arc<Mailbox>>,
    posted: usize,
}

impl Wakes {
    /// Does something to a session, and remembers to wake it.
    pub(crate) fn post<R>(&mut self, mailbox: &Arc<Mailbox>, act: impl FnOnce(&mut Inbound) -> R) -> R {
        let mut inbound = mailbox.lock();
        let result = act(&mut inbound);
        self.posted += 1;
        if inbound.note() {
            self.sleeping.push(Arc::clone(mailbox));
        }
        result
    }

    /// Number of sessions to wake.
    pub(crate) fn len(&self) -> usize {
        self.sleeping.len()
    }

    /// Whether anything was done to any session, also to one that is awake.
    pub(crate) fn has_posted(&self) -> bool {
        self.posted > 0
    }

    /// How often something was done to a session.
    pub(crate) fn posted(&self) -> usize {
        self.posted
    }

    /// Wakes them; outside of all locks.
    pub(crate) fn wake(&mut self) {
        self.sleeping.drain(..).for_each(|mailbox| mailbox.waker.wake());
    }
}

impl Drop for Wakes {
    fn drop(&mut self) {
        self.wake();
    }
}
