//! The cores joined without tasks and sockets, for a simulation: sessions, mailboxes, one lane's
//! hub and queue. What `connection`, `writer`, `reader` and `reads` do between them is done here by
//! whoever calls, at any time and in any order.

use crate::hub::{Beginning, Clients, Effects, LaneHub, Limits, Load};
use crate::lane::{AfterFailure, LaneQueue, Origin, QueueLimits};
use crate::mailbox::{Closing, Entry, Mailbox, Wakes, frame};
use crate::session::{Action, Rules, Session};
use crate::takeover::take_place;
use crate::tokens::Rights;
use bytes::Bytes;
use fieldstream_shared::code::Code;
use fieldstream_shared::cursor::Cursors;
use fieldstream_shared::frame::{Attempt, FromServer, Limits as WireLimits, Welcome};
use fieldstream_shared::ids::ClientId;
use fieldstream_shared::limits::{FRAME_BYTES_MAX, NUMBER_WINDOW, WATCHES_MAX};
use fieldstream_shared::msgpack::DecodeError;
use fieldstream_shared::outcome::AckLevel;
use fieldstream_shared::read::{Answer, AnswerBody, Progress, Query, Request};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// What a gateway begins with.
pub struct Setup {
    /// Identity of the log.
    pub log_id: u64,
    /// Where the storer's checkpoint stands.
    pub cursors: Cursors,
    /// Its EVENTS sequence.
    pub sequence: u64,
    /// Bytes that may wait for one client.
    pub outbox_bytes_max: usize,
    /// Bytes that may wait for the log.
    pub queue_bytes_max: usize,
    /// Updates remembered for those who come back, in bytes.
    pub recent_bytes_max: usize,
    /// Number of storers that must have an event.
    pub stored_copies: usize,
}

struct Seat {
    mailbox: Arc<Mailbox>,
    session: Session,
    client: Option<ClientId>,
    rights: Rights,
    has_told: bool,
}

/// One gateway on one lane.
pub struct Gateway {
    hub: LaneHub,
    queue: LaneQueue,
    clients: Clients,
    seats: BTreeMap<u64, Seat>,
    last_session: u64,
    log_id: u64,
    outbox_bytes_max: usize,
    loads: VecDeque<Load>,
    asked: BTreeMap<u64, Load>,
    last_load: u64,
}

const RULES: Rules = Rules {
    hello_ms: 10_000,
    frame_ms: 10_000,
    keepalive_ms: 30_000,
    window: NUMBER_WINDOW,
    watches_max: WATCHES_MAX,
    gateway: 1,
};

impl Gateway {
    /// A gateway nobody is connected to.
    pub fn new(setup: Setup) -> Gateway {
        let limits =
            Limits { held_bytes_max: 4_096, recent_bytes_max: setup.recent_bytes_max, documents_bytes_max: 64 << 20 };
        let queue = QueueLimits {
            bytes_max: setup.queue_bytes_max,
            outage_after_ms: 5_000,
            batch_age_max_ms: 600_000,
            retry_after_ms: 200,
        };
        let Setup { log_id, cursors, sequence, stored_copies, .. } = setup;
        Gateway {
            hub: LaneHub::new(Beginning { lane: 0, lanes: 1, log_id, stored_copies, limits, cursors, sequence }),
            queue: LaneQueue::new(queue),
            clients: Clients::default(),
            seats: BTreeMap::new(),
            last_session: 0,
            log_id,
            outbox_bytes_max: setup.outbox_bytes_max,
            loads: VecDeque::new(),
            asked: BTreeMap::new(),
            last_load: 0,
        }
    }

    /// A connection was made; whoever it is may write, or only read.
    pub fn connect(&mut self, now_ms: u64, may_write: bool) -> u64 {
        self.last_session += 1;
        let mailbox = Mailbox::new(self.last_session, self.outbox_bytes_max);
        let session = Session::new(RULES, now_ms);
        let rights = Rights::all_or_read(may_write);
        self.seats.insert(self.last_session, Seat { mailbox, session, client: None, rights, has_told: false });
        self.last_session
    }

    /// The connection is gone.
    pub fn disconnect(&mut self, session: u64) {
        let Some(seat) = self.seats.remove(&session) else { return };
        if let Some(client) = &seat.client
            && self.clients.get(client).is_some_and(|mailbox| mailbox.id == session)
        {
            self.clients.remove(client);
        }
        for document in seat.session.watching() {
            self.hub.unwatch(&seat.mailbox, document);
        }
    }

    /// Bytes have come.
    pub fn bytes(&mut self, session: u64, now_ms: u64, bytes: &[u8]) {
        if let Some(seat) = self.seats.get_mut(&session) {
            seat.session.handle_bytes(now_ms, bytes);
        }
    }

    /// Acts on what has come, until the session must wait.
    pub fn turn(&mut self, session: u64, now_ms: u64, wall_us: u64) {
        // Taken out whole, which costs next to nothing, so that a seat can act on the rest.
        let mut seats = std::mem::take(&mut self.seats);
        if let Some(seat) = seats.get_mut(&session) {
            self.turn_of(seat, now_ms, wall_us);
        }
        self.seats = seats;
    }

    fn turn_of(&mut self, seat: &mut Seat, now_ms: u64, wall_us: u64) {
        while may_read(&seat.mailbox) {
            if seat.client.is_some()
                && seat.session.has_input()
                && self.queue.hold_back(&seat.mailbox, &mut Wakes::default())
            {
                continue;
            }
            match seat.session.poll(now_ms, wall_us) {
                Some(action) => self.act(seat, action, wall_us),
                None => break,
            }
        }
    }

    fn act(&mut self, seat: &mut Seat, action: Action, wall_us: u64) {
        let mailbox = &seat.mailbox;
        match action {
            Action::Log { record, number, settled, ack, .. } => {
                let mut inbound = mailbox.lock();
                inbound.numbers.sent(number, settled, ack);
                let epoch = inbound.numbers.epoch();
                drop(inbound);
                let tell_logged = ack == AckLevel::Logged;
                let origin = Origin { mailbox: Arc::clone(mailbox), epoch, number, tell_logged, trace: None };
                self.queue.append(&record, origin, &mut Wakes::default());
            }
            Action::Send(frames) if frames.is_empty() => {}
            Action::Send(frames) => mailbox.lock().outbox.keep(frames),
            Action::Watch(wish) => {
                let mut effects = Effects::default();
                self.hub.watch(mailbox, wish, &mut effects);
                self.loads.extend(effects.loads);
            }
            Action::Unwatch(document) => self.hub.unwatch(mailbox, &document),
            Action::Authenticate { client, epoch, sent_upto, attempt, .. } => {
                self.admit(seat, client, (epoch, sent_upto), attempt, wall_us);
            }
            Action::Close { code, reason } => mailbox.lock().close(Closing::new(code, reason)),
            // Reads are answered by tasks of the shell, which are not here, and so are clocks.
            Action::Get { .. } | Action::List { .. } | Action::Sync { .. } | Action::Clock { .. } | Action::Left => {}
        }
    }

    fn admit(
        &mut self,
        seat: &mut Seat,
        client: ClientId,
        (epoch, sent_upto): (u64, u64),
        attempt: Attempt,
        wall_us: u64,
    ) {
        if let Some(closing) = self.queue.outage() {
            return seat.mailbox.lock().close(closing);
        }
        let limits = WireLimits {
            window: RULES.window,
            frame_bytes: FRAME_BYTES_MAX as u64,
            watches: RULES.watches_max as u64,
            keepalive_ms: RULES.keepalive_ms,
        };
        let welcome = Welcome { session: seat.mailbox.id, limits, time_us: wall_us, log_id: self.log_id };
        let mut inbound = seat.mailbox.lock();
        inbound.numbers.begin(epoch, sent_upto);
        inbound.outbox.keep(frame(&FromServer::Welcome(welcome)));
        drop(inbound);
        seat.mailbox.entered(Entry { at_us: wall_us, attempt });
        match take_place(&mut self.clients, &client, &seat.mailbox) {
            Err(closing) => return seat.mailbox.lock().close(closing),
            Ok(None) => {}
            Ok(Some(former)) => {
                former.post(|inbound| inbound.close(Closing::new(Code::TAKEN_OVER, "another connection took over")));
            }
        }
        self.hub.tell_missed(&client, epoch, sent_upto, &seat.mailbox);
        seat.session.admit(seat.rights.clone());
        seat.client = Some(client);
    }

    /// Bytes for a client, about `bytes_max`, and whether the connection ends behind them.
    pub fn output(&mut self, session: u64, bytes_max: usize) -> (Vec<u8>, bool) {
        let mut writing = VecDeque::new();
        let ends = self.take_output(session, bytes_max, &mut writing);
        (writing.iter().flat_map(|frames| frames.iter().copied()).collect(), ends)
    }

    /// As [`Gateway::output`], but the frames as they are handed to the socket.
    pub fn take_output(&mut self, session: u64, bytes_max: usize, writing: &mut VecDeque<Bytes>) -> bool {
        let Some(seat) = self.seats.get_mut(&session) else { return true };
        loop {
            let mut inbound = seat.mailbox.lock();
            let stale = if inbound.closing().is_none() { inbound.outbox.next_stale() } else { None };
            if let Some(document) = stale {
                drop(inbound);
                self.hub.refresh(document, &seat.mailbox, &mut Wakes::default());
                continue;
            }
            if inbound.outbox.take(bytes_max, writing) == 0
                && let Some(closing) = inbound.closing()
                && !seat.has_told
            {
                writing.push_back(closing.frame());
                seat.has_told = true;
            }
            // As at the end of a connection's turn: what comes next wakes it.
            inbound.rise();
            inbound.rest();
            break;
        }
        seat.has_told
    }

    /// The next message of EVENTS.
    ///
    /// # Errors
    /// [`DecodeError`]: the gateway must stop.
    pub fn handle_events(&mut self, sequence: u64, message: &[u8]) -> Result<(), DecodeError> {
        let mut effects = Effects::default();
        self.hub.handle_batch(sequence, message, &self.clients, &mut effects)?;
        self.loads.extend(effects.loads);
        Ok(())
    }

    /// A storer says how far it is.
    pub fn handle_progress(&mut self, progress: &Progress) {
        self.hub.handle_progress(progress, &mut Effects::default());
    }

    /// The next batch for INSTRUCTIONS.
    pub fn take_batch(&mut self, now_ms: u64) -> Option<Bytes> {
        self.queue.take_batch(now_ms)
    }

    /// The batch is in.
    pub fn acknowledged(&mut self) {
        self.queue.acknowledged(&mut Wakes::default());
    }

    /// An attempt failed: whether the same batch is to be sent again.
    pub fn failed(&mut self, now_ms: u64) -> bool {
        matches!(self.queue.failed(now_ms, &mut Wakes::default()), AfterFailure::RetryIn(_))
    }

    /// The next question to the storers.
    pub fn poll_load(&mut self) -> Option<(u64, Request)> {
        loop {
            let load = self.loads.pop_front()?;
            if !self.hub.is_wanted(&load) {
                continue;
            }
            let query = match &load.history {
                Some((_, from)) => Query::History { document: load.document.clone(), from: *from, bytes_max: 4_096 },
                None => Query::GetMany { documents: vec![load.document.clone()], marks: Vec::new() },
            };
            let request = Request { lane: 0, min_sequence: load.min_sequence, query };
            self.last_load += 1;
            self.asked.insert(self.last_load, load);
            return Some((self.last_load, request));
        }
    }

    /// A storer's answer; `None` if none came.
    pub fn handle_loaded(&mut self, id: u64, answer: Option<Answer>) {
        let Some(load) = self.asked.remove(&id) else { return };
        let mut effects = Effects::default();
        match (answer, load.history) {
            (Some(Answer { sequence, body: AnswerBody::Values { mut documents, .. } }), None)
                if !documents.is_empty() =>
            {
                self.hub.loaded(load.key, sequence, documents.swap_remove(0), &mut effects);
            }
            (Some(Answer { body: AnswerBody::History(entries), .. }), Some((session, _))) => {
                self.hub.history(load.key, session, &entries, &mut effects);
            }
            (_, Some((session, _))) => self.hub.history(load.key, session, &[], &mut effects),
            (_, None) => self.loads.push_back(load),
        }
        self.loads.extend(effects.loads);
    }

    /// EVENTS is read through here.
    pub fn sequence(&self) -> u64 {
        self.hub.sequence()
    }

    /// The cursors it has accepted.
    pub fn cursors(&self) -> &Cursors {
        self.hub.cursors()
    }

    /// Nothing waits for the log or for storers.
    pub fn is_idle(&self) -> bool {
        self.queue.is_idle() && self.loads.is_empty() && self.asked.is_empty()
    }
}

fn may_read(mailbox: &Mailbox) -> bool {
    let inbound = mailbox.lock();
    !(inbound.paused || inbound.closing().is_some() || inbound.outbox.is_over())
}
