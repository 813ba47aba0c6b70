//! One watched document: its state, the recent updates, and who follows it.

use super::{Held, Limits, Watcher};
use crate::mailbox::{SessionId, Wakes, frame};
use crate::outbox::DocumentKey;
use bytes::Bytes;
use fieldstream_shared::change::{Change, Version, write_change};
use fieldstream_shared::document::Document;
use fieldstream_shared::frame::{FromServer, Update, WatchMode, encode_document};
use fieldstream_shared::ids::{ClientId, DocumentId};
use fieldstream_shared::read::HistoryEntry;
use std::collections::{BTreeMap, VecDeque};

/// A change as an event brings it.
#[derive(Debug, Clone)]
pub(super) struct Step {
    pub(super) sequence: u64,
    pub(super) version: Version,
    pub(super) client: ClientId,
    pub(super) number: u64,
    pub(super) change: Change,
}

/// What a watched document has at hand.
#[derive(Debug)]
enum State {
    /// A storer was asked; events are held until it answers.
    Loading { asked_at: u64, held: Vec<Step>, held_bytes: usize, overflown: bool },
    /// The document as it is, and the EVENTS sequence it was loaded at.
    Live { document: Document, version: Version, loaded_at: u64 },
}

/// What a step of a watched document calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Nothing,
    /// Followers want the body at the end of the event batch.
    SendBodies,
    /// Ask a storer for the document.
    Load,
}

/// What became of a wish to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Welcomed {
    /// The verdict is given, or will be when the load is done.
    Done,
    /// The missed updates must come from a storer, from this revision on.
    NeedsHistory { from: u64 },
}

#[derive(Debug)]
pub(super) struct Watched {
    pub(super) id: DocumentId,
    key: DocumentKey,
    state: State,
    pub(super) watchers: BTreeMap<SessionId, Watcher>,
    /// The version before the first of `recent`.
    base: Version,
    recent: VecDeque<(Version, Bytes)>,
    recent_bytes: usize,
    /// The SNAPSHOT frames of the present state, once somebody needed them.
    snapshot: Option<Bytes>,
    body_bytes: usize,
    /// What the hub has counted for it.
    pub(super) accounted_bytes: usize,
}

fn version_of(document: &Document) -> Version {
    Version { revision: document.revision, state_hash: document.hash(), time_us: document.time_us }
}

impl Watched {
    pub(super) fn new(id: DocumentId, key: DocumentKey, asked_at: u64) -> Watched {
        Watched {
            id,
            key,
            state: State::Loading { asked_at, held: Vec::new(), held_bytes: 0, overflown: false },
            watchers: BTreeMap::new(),
            base: Version { revision: 0, state_hash: 0, time_us: 0 },
            recent: VecDeque::new(),
            recent_bytes: 0,
            snapshot: None,
            body_bytes: 0,
            accounted_bytes: 0,
        }
    }

    /// About how much memory it takes.
    pub(super) fn memory_bytes(&self) -> usize {
        let held = match &self.state {
            State::Loading { overflown: false, held_bytes, .. } => *held_bytes,
            State::Loading { .. } | State::Live { .. } => 0,
        };
        let snapshot = self.snapshot.as_ref().map_or(0, Bytes::len);
        size_of::<Watched>() + self.body_bytes + held + self.recent_bytes + snapshot
    }

    /// Whether nobody has had a verdict on it yet.
    pub(super) fn is_new_to_all(&self) -> bool {
        self.watchers.values().all(|watcher| matches!(watcher.held, Held::Claims { .. }))
    }

    pub(super) fn key(&self) -> DocumentKey {
        self.key
    }

    pub(super) fn document(&self) -> Option<&Document> {
        match &self.state {
            State::Live { document, .. } => Some(document),
            State::Loading { .. } => None,
        }
    }

    /// The lowest sequence an answer must include.
    pub(super) fn asked_at(&self) -> Option<u64> {
        match &self.state {
            State::Loading { asked_at, .. } => Some(*asked_at),
            State::Live { .. } => None,
        }
    }

    /// An accepted event changes the document.
    pub(super) fn step(&mut self, step: Step, step_bytes: usize, limits: &Limits, wakes: &mut Wakes) -> Next {
        match &mut self.state {
            State::Loading { held, held_bytes, overflown, .. } => {
                *held_bytes += step_bytes;
                if *held_bytes > limits.held_bytes_max {
                    *held = Vec::new();
                    *overflown = true;
                }
                if !*overflown {
                    held.push(step);
                }
                Next::Nothing
            }
            State::Live { loaded_at, .. } if step.sequence <= *loaded_at => Next::Nothing,
            State::Live { document, version, .. } => {
                if document.apply(&step.change, step.version).is_err() {
                    tracing::warn!(document = %self.id, "a change does not fit what the gateway has; it is loaded again");
                    return self.reload(step.sequence);
                }
                *version = step.version;
                self.body_bytes = document.body.memory_bytes();
                self.snapshot = None;
                self.send(&step, limits, wakes)
            }
        }
    }

    /// Forgets the state and waits for a fresh one that includes everything up to `asked_at`.
    pub(super) fn reload(&mut self, asked_at: u64) -> Next {
        self.state = State::Loading { asked_at, held: Vec::new(), held_bytes: 0, overflown: false };
        self.recent.clear();
        (self.recent_bytes, self.body_bytes) = (0, 0);
        self.snapshot = None;
        // What those who follow hold no longer leads anywhere: they get the fresh state.
        for watcher in self.watchers.values_mut() {
            if matches!(watcher.held, Held::Follows | Held::AwaitsHistory { .. }) {
                watcher.held = Held::Lost;
            }
        }
        Next::Load
    }

    fn send(&mut self, step: &Step, limits: &Limits, wakes: &mut Wakes) -> Next {
        let mut change = Vec::new();
        write_change(&step.change, &mut change);
        let update = Update {
            document: &self.id,
            version: step.version,
            client: &step.client,
            number: step.number,
            change: &change,
        };
        let frames = Bytes::from(update.encode());
        let mut next = Next::Nothing;
        for watcher in self.watchers.values() {
            match (watcher.held, watcher.mode) {
                (Held::Follows, WatchMode::Changes) => {
                    wakes.post(&watcher.mailbox, |inbound| inbound.outbox.state(self.key, frames.clone()));
                }
                (Held::Follows, WatchMode::Bodies) => next = Next::SendBodies,
                (Held::Lost | Held::Claims { .. } | Held::AwaitsHistory { .. }, _) => {}
            }
        }
        self.remember(step.version, frames, limits);
        next
    }

    fn remember(&mut self, version: Version, frames: Bytes, limits: &Limits) {
        self.recent_bytes += frames.len();
        self.recent.push_back((version, frames));
        while self.recent_bytes > limits.recent_bytes_max
            && let Some((version, frames)) = self.recent.pop_front()
        {
            self.base = version;
            self.recent_bytes -= frames.len();
        }
    }

    /// Sends the body to those who asked for bodies.
    pub(super) fn send_bodies(&mut self, wakes: &mut Wakes) {
        let Some(snapshot) = self.snapshot() else { return };
        for watcher in self.watchers.values() {
            if watcher.mode == WatchMode::Bodies && watcher.held == Held::Follows {
                wakes.post(&watcher.mailbox, |inbound| {
                    inbound.outbox.forget(self.key);
                    inbound.outbox.state(self.key, snapshot.clone());
                });
            }
        }
    }

    fn snapshot(&mut self) -> Option<Bytes> {
        let State::Live { document, .. } = &self.state else { return None };
        if self.snapshot.is_none() {
            let mut out = Vec::new();
            encode_document(None, &self.id, document, &mut out);
            self.snapshot = Some(Bytes::from(out));
        }
        self.snapshot.clone()
    }

    /// A storer's answer: the document as it was at `sequence`. Takes it, lays the held events on
    /// top, and gives everyone who waits a verdict; or asks again.
    pub(super) fn loaded(&mut self, sequence: u64, loaded: Document, limits: &Limits, wakes: &mut Wakes) -> Next {
        let State::Loading { asked_at, held, overflown, .. } = &mut self.state else { return Next::Nothing };
        let (asked_at, overflown, held) = (*asked_at, *overflown, std::mem::take(held));
        if sequence < asked_at {
            return self.reload(asked_at);
        }
        // An overflow is harmless if the answer includes what was thrown away; nobody knows, so no.
        if overflown {
            return self.reload(sequence.max(asked_at));
        }
        let version = version_of(&loaded);
        (self.base, self.snapshot, self.body_bytes) = (version, None, loaded.body.memory_bytes());
        self.state = State::Live { document: loaded, version, loaded_at: sequence };
        for step in held {
            let bytes = 0;
            if self.step(step, bytes, limits, wakes) == Next::Load {
                return Next::Load;
            }
        }
        Next::SendBodies
    }

    /// Gives a watcher its verdict: goes on from what it holds, or gets a snapshot.
    pub(super) fn welcome(&mut self, session: SessionId, wakes: &mut Wakes) -> Welcomed {
        let State::Live { version, .. } = &self.state else { return Welcomed::Done };
        let current = *version;
        let Some(watcher) = self.watchers.get(&session) else { return Welcomed::Done };
        let (revision, state_hash) = match watcher.held {
            Held::Follows | Held::AwaitsHistory { .. } => return Welcomed::Done,
            Held::Lost => {
                self.refresh(session, wakes);
                return Welcomed::Done;
            }
            Held::Claims { revision, state_hash } => (revision, state_hash),
        };
        if revision > 0 && (revision, state_hash) == (current.revision, current.state_hash) {
            self.give(session, Some(Vec::new()), wakes);
        } else if revision == 0 || revision >= current.revision || watcher.mode == WatchMode::Bodies {
            self.give(session, None, wakes);
        } else if let Some(missed) = self.recent_after(revision, state_hash) {
            self.give(session, missed, wakes);
        } else {
            if let Some(watcher) = self.watchers.get_mut(&session) {
                watcher.held = Held::AwaitsHistory { revision, state_hash };
            }
            return Welcomed::NeedsHistory { from: revision };
        }
        Welcomed::Done
    }

    /// The updates behind a revision, as far back as remembered. `Some(None)`: the revision is
    /// remembered with another state hash, so the replica is not one of this history.
    fn recent_after(&self, revision: u64, state_hash: u64) -> Option<Option<Vec<Bytes>>> {
        let mut versions = std::iter::once(&self.base).chain(self.recent.iter().map(|(version, _)| version));
        let at = versions.position(|version| version.revision == revision)?;
        let known = if at == 0 { &self.base } else { &self.recent[at - 1].0 };
        let missed = || self.recent.iter().skip(at).map(|(_, frames)| frames.clone()).collect();
        Some((known.state_hash == state_hash).then(missed))
    }

    /// Whether a storer's history is wanted for a watcher.
    pub(super) fn awaits_history(&self, session: SessionId) -> bool {
        self.watchers.get(&session).is_some_and(|watcher| matches!(watcher.held, Held::AwaitsHistory { .. }))
    }

    /// A storer's history for a watcher that comes back; none if it has none to give.
    pub(super) fn history(&mut self, session: SessionId, entries: &[HistoryEntry], wakes: &mut Wakes) {
        let Some(Watcher { held: Held::AwaitsHistory { revision, state_hash }, .. }) = self.watchers.get(&session)
        else {
            return;
        };
        let missed = self.missed(*revision, *state_hash, entries);
        self.give(session, missed, wakes);
    }

    /// Updates from a replica's version to the present, from history and from what is remembered.
    fn missed(&self, revision: u64, state_hash: u64, entries: &[HistoryEntry]) -> Option<Vec<Bytes>> {
        let State::Live { version: current, .. } = &self.state else { return None };
        let (held, later) = entries.split_first()?;
        if (held.version.revision, held.version.state_hash) != (revision, state_hash) {
            return None;
        }
        let mut missed = Vec::new();
        let mut last = held.version;
        for entry in later.iter().take_while(|entry| entry.version.revision <= current.revision) {
            if entry.version.revision != last.revision + 1 {
                return None;
            }
            last = entry.version;
            let update = Update {
                document: &self.id,
                version: entry.version,
                client: &entry.client,
                number: entry.number,
                change: &entry.change,
            };
            missed.push(Bytes::from(update.encode()));
        }
        if last.revision < current.revision {
            missed.extend(self.recent_after(last.revision, last.state_hash)??);
        } else if last.state_hash != current.state_hash {
            return None;
        }
        Some(missed)
    }

    /// Tells the verdict: `missed` updates follow, or a snapshot.
    fn give(&mut self, session: SessionId, missed: Option<Vec<Bytes>>, wakes: &mut Wakes) {
        let snapshot = if missed.is_none() { self.snapshot() } else { None };
        let Some(watcher) = self.watchers.get_mut(&session) else { return };
        watcher.held = Held::Follows;
        let verdict = frame(&FromServer::Watching { document: &self.id, recovered: missed.is_some() });
        wakes.post(&watcher.mailbox, |inbound| {
            inbound.outbox.keep(verdict);
            for frames in missed.into_iter().flatten().chain(snapshot) {
                inbound.outbox.state(self.key, frames);
            }
        });
    }

    /// Sends the present state to a follower whose updates were dropped.
    pub(super) fn refresh(&mut self, session: SessionId, wakes: &mut Wakes) {
        let snapshot = self.snapshot();
        let Some(watcher) = self.watchers.get_mut(&session) else { return };
        match snapshot {
            Some(snapshot) => {
                watcher.held = Held::Follows;
                wakes.post(&watcher.mailbox, |inbound| {
                    inbound.outbox.fresh(self.key, snapshot);
                });
            }
            // It is being loaded; the fresh state goes to everyone then.
            None => {
                if watcher.held == Held::Follows {
                    watcher.held = Held::Lost;
                }
                wakes.post(&watcher.mailbox, |inbound| inbound.outbox.refreshed(self.key));
            }
        }
    }
}
