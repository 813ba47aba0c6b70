//! All clients of a run without their sockets: bytes and the time come in, bytes go out, and every
//! delivery is checked and counted. Times are nanoseconds of the program's clock.

mod stock;

use super::client::{Client, Outbox, Phase};
use super::layout::Layout;
use super::payload::{Label, Payloads};
use super::step::{Missing, Step};
use super::window::Resolved;
use fieldstream_shared::frame::{
    Attempt, FrameError, FromClient, FromServer, Hello, Instruct, PROTOCOL_VERSION, Snapshot, Update, Watch, WatchMode,
    Welcome,
};
use fieldstream_shared::instruction::Content;
use fieldstream_shared::limits::FRAME_BYTES_MAX;
use fieldstream_shared::outcome::{AckLevel, Outcome};

/// How often every client is asked whether it must ping.
const SWEEP_NS: u64 = 1_000_000_000;

/// No more is written for a client that has so much unwritten.
const OUTBOX_BYTES_MAX: usize = 256 * 1024;

/// Largest frame taken from a server, which may be newer and send larger ones.
const SERVER_FRAME_BYTES_MAX: usize = 4 * FRAME_BYTES_MAX;

/// What a run's clients have in common.
#[derive(Debug, Clone)]
pub(super) struct Common {
    pub(super) layout: Layout,
    pub(super) ack: AckLevel,
    /// Clients are named this and their number.
    pub(super) client_prefix: String,
    /// Documents are named this and their number.
    pub(super) document_prefix: String,
    pub(super) token: Option<String>,
    pub(super) epoch: u64,
    /// Connections opened at once.
    pub(super) handshakes: usize,
}

/// All clients.
#[derive(Debug)]
pub(super) struct Fleet {
    common: Common,
    payloads: Payloads,
    clients: Vec<Client>,
    step: Option<Step>,
    /// At which level documents count that are put before anything is measured, while they are.
    stock_ack: Option<AckLevel>,
    /// Clients that may have something to send.
    listed: Vec<usize>,
    opening: usize,
    ready: usize,
    dead: usize,
    next_to_open: usize,
    next_sweep_ns: u64,
    first_error: Option<String>,
    operation: Vec<u8>,
}

impl Fleet {
    pub(super) fn new(common: Common, payloads: Payloads) -> Fleet {
        let clients = (0..common.layout.clients).map(|_| Client::new(common.epoch)).collect();
        Fleet {
            common,
            payloads,
            clients,
            step: None,
            stock_ack: None,
            listed: Vec::new(),
            opening: 0,
            ready: 0,
            dead: 0,
            next_to_open: 0,
            next_sweep_ns: 0,
            first_error: None,
            operation: Vec::new(),
        }
    }

    /// Clients that are ready.
    pub(super) fn ready(&self) -> usize {
        self.ready
    }

    /// Clients that lost their connection.
    pub(super) fn dead(&self) -> usize {
        self.dead
    }

    /// Why the first of them did.
    pub(super) fn first_error(&self) -> Option<&str> {
        self.first_error.as_deref()
    }

    /// The running step.
    pub(super) fn step(&self) -> Option<&Step> {
        self.step.as_ref()
    }

    /// Begins a step.
    pub(super) fn begin(&mut self, step: Step) {
        self.clients.iter_mut().for_each(Client::begin);
        self.step = Some(step);
    }

    /// Ends the running step, with what is missing of it.
    pub(super) fn end(&mut self) -> Option<(Step, Missing)> {
        let step = self.step.take()?;
        let missing = step.missing(|client| self.clients[client].sent);
        self.clients.iter_mut().for_each(Client::begin);
        Some((step, missing))
    }

    /// Clients that need a new connection: they lost theirs, or wait for outcomes that may never
    /// come. They are connected again by and by.
    pub(super) fn renew(&mut self) -> Vec<usize> {
        let worn = |client: &Client| client.phase == Phase::Dead || !client.window.is_quiet();
        let worn: Vec<usize> = (0..self.clients.len()).filter(|i| worn(&self.clients[*i])).collect();
        for &i in &worn {
            self.leave_phase(i);
            self.clients[i] = self.clients[i].reborn();
        }
        self.next_to_open = 0;
        worn
    }

    /// The next client to connect, if another may be.
    pub(super) fn next_to_open(&mut self) -> Option<usize> {
        if self.opening >= self.common.handshakes {
            return None;
        }
        let idle = |client: &Client| client.phase == Phase::Idle;
        let i = self.clients[self.next_to_open..].iter().position(idle).map(|ahead| self.next_to_open + ahead);
        self.next_to_open = i.map_or(self.clients.len(), |i| i + 1);
        let i = i?;
        self.clients[i].phase = Phase::Opening;
        self.opening += 1;
        Some(i)
    }

    /// A client's connection stands: it says HELLO.
    pub(super) fn opened(&mut self, i: usize, now_ns: u64) {
        let name = format!("{}{i}", self.common.client_prefix);
        let document = format!("{}{}", self.common.document_prefix, self.common.layout.document_of(i));
        let watch = Watch { document: &document, revision: 0, state_hash: 0, mode: WatchMode::Changes };
        let client = &mut self.clients[i];
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            client: &name,
            token: self.common.token.as_deref(),
            epoch: client.window.epoch(),
            sent_upto: 0,
            watches: vec![watch],
            // Every client of a run has a name of its own, and one connection.
            attempt: Attempt::default(),
        };
        FromClient::Hello(hello).encode(&mut client.outbox.bytes);
        client.phase = Phase::Greeting { welcomed: false, watching: false };
        (client.heard_ns, client.sent_ns) = (now_ns, now_ns);
        self.list(i);
    }

    /// A client lost its connection.
    pub(super) fn lost(&mut self, i: usize, why: String) {
        if self.clients[i].phase == Phase::Dead {
            return;
        }
        self.leave_phase(i);
        self.dead += 1;
        let client = &mut self.clients[i];
        client.phase = Phase::Dead;
        client.outbox = Outbox::default();
        client.partial = Vec::new();
        self.first_error.get_or_insert(why);
    }

    fn leave_phase(&mut self, i: usize) {
        match self.clients[i].phase {
            Phase::Idle => {}
            Phase::Opening | Phase::Greeting { .. } => self.opening -= 1,
            Phase::Ready => self.ready -= 1,
            Phase::Dead => self.dead -= 1,
        }
    }

    /// Does what is due.
    pub(super) fn turn(&mut self, now_ns: u64) {
        while let Some(index) = self.step.as_mut().and_then(|step| step.release(now_ns)) {
            let sender = self.common.layout.sender(index);
            self.clients[sender].due += 1;
            self.list(sender);
        }
        if now_ns >= self.next_sweep_ns {
            self.next_sweep_ns = now_ns + SWEEP_NS;
            self.sweep(now_ns);
        }
    }

    /// When [`Fleet::turn`] has something to do next.
    pub(super) fn next_due_ns(&self) -> u64 {
        let due_ns = self.step.as_ref().and_then(Step::next_due_ns);
        due_ns.unwrap_or(u64::MAX).min(self.next_sweep_ns)
    }

    /// How long a turn lasts at least ([`Pace::turn_min_ns`](super::step::Pace::turn_min_ns)).
    pub(super) fn turn_min_ns(&self) -> u64 {
        self.step.as_ref().map_or(0, |step| step.pace.turn_min_ns())
    }

    /// Keepalive of all clients, now and then: no client has a timer of its own.
    fn sweep(&mut self, now_ns: u64) {
        for i in 0..self.clients.len() {
            let client = &mut self.clients[i];
            if client.is_silent(now_ns) {
                let keepalive_ms = client.keepalive_ns / 1_000_000;
                self.lost(i, format!("nothing was heard from the server for {keepalive_ms} ms"));
            } else if client.must_ping(now_ns) {
                FromClient::Ping { nonce: 0 }.encode(&mut client.outbox.bytes);
                client.sent_ns = now_ns;
                self.list(i);
            } else if client.may_send(now_ns) {
                // A pause has run out.
                self.list(i);
            }
        }
    }

    fn list(&mut self, i: usize) {
        if !std::mem::replace(&mut self.clients[i].is_listed, true) {
            self.listed.push(i);
        }
    }

    /// Takes the clients that may have something to send; `taken` must be empty, its memory is used
    /// again.
    pub(super) fn take_listed(&mut self, taken: &mut Vec<usize>) {
        std::mem::swap(&mut self.listed, taken);
        taken.iter().for_each(|i| self.clients[*i].is_listed = false);
    }

    /// What a client has to send.
    pub(super) fn outbox(&mut self, i: usize) -> &mut Outbox {
        &mut self.clients[i].outbox
    }

    /// Puts the instructions that are due into a client's outbox, as far as its window goes.
    pub(super) fn fill(&mut self, i: usize, now_ns: u64) {
        if let Some(ack) = self.stock_ack {
            return self.put_stock(i, ack, now_ns);
        }
        let client = &mut self.clients[i];
        let Some(step) = &mut self.step else { return };
        while client.may_send(now_ns) && client.outbox.pending().len() < OUTBOX_BYTES_MAX {
            let index = self.common.layout.index(i, client.sent);
            client.sent += 1;
            step.counts.sent += 1;
            let (number, settled) = client.window.take(index);
            self.operation.clear();
            self.payloads.write_operation(Label { step: step.pace.label, index }, &mut self.operation);
            let document = format!("{}{}", self.common.document_prefix, self.common.layout.document_of(i));
            let content = Content { document: &document, if_revision: None, operation: &self.operation };
            let instruct = Instruct { number, settled, resent: false, traced: false, ack: self.common.ack, content };
            FromClient::Instruct(instruct).encode(&mut client.outbox.bytes);
            client.sent_ns = now_ns;
        }
    }

    /// A client's connection brought bytes.
    ///
    /// # Errors
    /// Why the connection is over.
    pub(super) fn received(&mut self, i: usize, bytes: &[u8], now_ns: u64) -> Result<(), String> {
        self.clients[i].heard_ns = now_ns;
        if self.clients[i].partial.is_empty() {
            let used = self.frames(i, bytes, now_ns)?;
            self.clients[i].partial.extend_from_slice(&bytes[used..]);
        } else {
            let mut partial = std::mem::take(&mut self.clients[i].partial);
            partial.extend_from_slice(bytes);
            let used = self.frames(i, &partial, now_ns)?;
            partial.drain(..used);
            self.clients[i].partial = partial;
        }
        if self.clients[i].may_send(now_ns) {
            self.list(i);
        }
        Ok(())
    }

    /// Takes whole frames from the front of `bytes`, in place. Gives their length.
    fn frames(&mut self, i: usize, bytes: &[u8], now_ns: u64) -> Result<usize, String> {
        let mut used = 0;
        while let Some((head, rest)) = bytes[used..].split_first_chunk::<4>() {
            let length_bytes = u32::from_be_bytes(*head) as usize;
            if length_bytes > SERVER_FRAME_BYTES_MAX {
                return Err(format!("the server sent a frame of {length_bytes} bytes"));
            }
            let Some(payload) = rest.get(..length_bytes) else { break };
            used += 4 + length_bytes;
            match FromServer::decode(payload) {
                Ok(frame) => self.frame(i, frame, now_ns)?,
                // Of a newer server.
                Err(FrameError::UnknownTag(_)) => {}
                Err(error @ FrameError::Malformed(_)) => return Err(error.to_string()),
            }
        }
        Ok(used)
    }

    fn frame(&mut self, i: usize, frame: FromServer<'_>, now_ns: u64) -> Result<(), String> {
        let client = &mut self.clients[i];
        match frame {
            FromServer::Update(update) => self.update(i, &update, now_ns),
            FromServer::Outcome { epoch, number, level, outcome } if epoch == client.window.epoch() => {
                self.outcome(i, number, level, outcome, now_ns);
            }
            FromServer::Snapshot(snapshot) => self.snapshot(i, &snapshot, now_ns),
            FromServer::Welcome(welcome) => self.welcome(i, &welcome),
            FromServer::Watching { recovered, .. } => self.greeted(i, |_, watching| *watching |= recovered),
            FromServer::Pause { retry_after_ms } => {
                // A day is as good as for ever, and keeps the sum in range.
                client.paused_until_ns = Some(now_ns + retry_after_ms.min(86_400_000) * 1_000_000);
                if let Some(step) = &mut self.step {
                    step.counts.pauses += 1;
                }
            }
            FromServer::Resume => client.paused_until_ns = None,
            FromServer::Close { code, reason, .. } => return Err(format!("the server closed: {code}: {reason}")),
            FromServer::Refused { code, .. } => return Err(format!("the watch was refused: {code}")),
            FromServer::Outcome { .. }
            | FromServer::Got { .. }
            | FromServer::Listed { .. }
            | FromServer::Pong { .. }
            | FromServer::PongClock { .. }
            | FromServer::Trace { .. }
            | FromServer::Synced { .. } => {}
        }
        Ok(())
    }

    fn welcome(&mut self, i: usize, welcome: &Welcome) {
        let client = &mut self.clients[i];
        client.window.set_limit(welcome.limits.window);
        client.keepalive_ns = welcome.limits.keepalive_ms.clamp(100, 86_400_000) * 1_000_000;
        self.greeted(i, |welcomed, _| *welcomed = true);
    }

    /// Something of the greeting came; with the last of it the client is ready.
    fn greeted(&mut self, i: usize, note: impl FnOnce(&mut bool, &mut bool)) {
        let client = &mut self.clients[i];
        if let Phase::Greeting { welcomed, watching } = &mut client.phase {
            note(welcomed, watching);
            if *welcomed && *watching {
                client.phase = Phase::Ready;
                self.opening -= 1;
                self.ready += 1;
            }
        }
    }

    fn outcome(&mut self, i: usize, number: u64, level: AckLevel, outcome: Option<Outcome>, now_ns: u64) {
        let is_refused = matches!(outcome, Some(Outcome::Refused(_) | Outcome::Dead(_)));
        if !is_refused && level < self.stock_ack.unwrap_or(self.common.ack) {
            return;
        }
        let resolved = self.clients[i].window.resolve(number);
        if let (Some(_), true, Some(outcome)) = (self.stock_ack, is_refused, outcome) {
            self.first_error.get_or_insert(format!("a document was not made: {outcome:?}"));
        }
        let Some(step) = &mut self.step else { return };
        match (resolved, outcome) {
            (Resolved::Earlier, _) => {}
            // A refusal may follow `logged`, which resolved the number.
            (Resolved::Index(_) | Resolved::Known, _) if is_refused => step.refused(now_ns),
            (Resolved::Known, _) => {}
            (Resolved::Index(index), outcome) => {
                step.acknowledged(index, now_ns);
                if let Some(Outcome::Applied { revision }) = outcome {
                    step.made(index, revision);
                }
            }
        }
    }

    fn update(&mut self, i: usize, update: &Update<'_>, now_ns: u64) {
        let Common { layout, client_prefix, document_prefix, .. } = &self.common;
        let client = &mut self.clients[i];
        let seen = client.revision;
        client.revision = seen.max(update.version.revision);
        let Some(step) = &mut self.step else { return };
        if update.version.revision <= seen {
            step.counts.duplicates += 1;
            return;
        }
        step.counts.gaps += u64::from(update.version.revision != seen + 1);
        let Some(label) = self.payloads.recognise(update.change) else {
            step.counts.corrupt += 1;
            return;
        };
        if label.step != step.pace.label {
            return;
        }
        let sender = layout.sender(label.index);
        let first_number = self.clients[sender].first_number;
        let is_right = numbered(update.document, document_prefix) == Some(layout.document_of(i))
            && layout.document_of(sender) == layout.document_of(i)
            && numbered(update.client, client_prefix) == Some(sender)
            && update.number == first_number + u64::from(layout.turn(label.index));
        match is_right {
            true => step.delivered(label.index, i, update.version.revision, now_ns),
            false => step.counts.corrupt += 1,
        }
    }

    fn snapshot(&mut self, i: usize, snapshot: &Snapshot<'_>, now_ns: u64) {
        if snapshot.offset + (snapshot.piece.len() as u64) < snapshot.total_bytes {
            return;
        }
        let revision = snapshot.version.revision;
        let seen = std::mem::replace(&mut self.clients[i].revision, revision);
        if self.clients[i].phase == Phase::Ready {
            if let Some(step) = &mut self.step {
                step.skipped(i, seen, revision, now_ns);
            }
        } else {
            self.greeted(i, |_, watching| *watching = true);
        }
    }
}

/// The number behind a prefix.
fn numbered(name: &str, prefix: &str) -> Option<usize> {
    name.strip_prefix(prefix)?.parse().ok()
}

#[cfg(test)]
#[path = "fleet_tests.rs"]
mod tests;
