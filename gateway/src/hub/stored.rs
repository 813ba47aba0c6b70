//! What waits until enough storers have an event: outcomes of level `stored`, and SYNCs.

use crate::mailbox::{Mailbox, Wakes, frame};
use fieldstream_shared::code::Code;
use fieldstream_shared::frame::FromServer;
use fieldstream_shared::outcome::AckLevel;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

/// Storers whose progress is followed; more than any deployment has.
const STORERS_MAX: usize = 64;
/// So many may wait before those of sessions that are gone are looked for.
const WAITING_MIN: usize = 1_024;

/// A SYNC that waits for the storers of several lanes.
#[derive(Debug)]
pub(crate) struct SyncWait {
    mailbox: Weak<Mailbox>,
    request: u64,
    lanes_left: AtomicUsize,
    is_answered: AtomicBool,
}

impl SyncWait {
    pub(crate) fn new(mailbox: &Arc<Mailbox>, request: u64, lanes: usize) -> Arc<SyncWait> {
        Arc::new(SyncWait {
            mailbox: Arc::downgrade(mailbox),
            request,
            lanes_left: AtomicUsize::new(lanes),
            is_answered: AtomicBool::new(false),
        })
    }

    fn lane_done(&self, wakes: &mut Wakes) {
        if self.lanes_left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.answer(&FromServer::Synced { request: self.request }, wakes);
        }
    }

    /// The storers took too long: the client may ask again.
    pub(crate) fn expire(&self, wakes: &mut Wakes) {
        self.answer(&FromServer::Refused { request: self.request, document: "", code: Code::UNAVAILABLE }, wakes);
    }

    fn answer(&self, answer: &FromServer<'_>, wakes: &mut Wakes) {
        if self.is_answered.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(mailbox) = self.mailbox.upgrade() {
            wakes.post(&mailbox, |inbound| {
                inbound.outbox.keep(frame(answer));
                inbound.requests_open = inbound.requests_open.saturating_sub(1);
            });
        }
    }

    /// Nobody waits any more.
    pub(crate) fn is_over(&self) -> bool {
        self.is_answered.load(Ordering::Acquire) || self.mailbox.strong_count() == 0
    }
}

/// Something to do when enough storers have an event. Holds no session: those come and go while
/// storers are away.
#[derive(Debug)]
pub(super) enum WhenStored {
    Tell { mailbox: Weak<Mailbox>, epoch: u64, number: u64 },
    Sync(Arc<SyncWait>),
}

impl WhenStored {
    fn run(self, wakes: &mut Wakes) {
        match self {
            WhenStored::Tell { mailbox, epoch, number } => {
                let Some(mailbox) = mailbox.upgrade() else { return };
                wakes.post(&mailbox, |inbound| {
                    if let Some(outcome) = inbound.numbers.stored(epoch, number) {
                        inbound.outcome(epoch, number, AckLevel::Stored, Some(outcome));
                    }
                });
            }
            WhenStored::Sync(wait) => wait.lane_done(wakes),
        }
    }

    fn is_over(&self) -> bool {
        match self {
            WhenStored::Tell { mailbox, .. } => mailbox.strong_count() == 0,
            WhenStored::Sync(wait) => wait.is_over(),
        }
    }
}

/// The storers' progress on one lane, and what waits for it.
#[derive(Debug)]
pub(super) struct Stored {
    copies: usize,
    progress: BTreeMap<u64, u64>,
    waiting: BTreeMap<u64, Vec<WhenStored>>,
    count: usize,
    /// With so many waiting, those that nobody waits for are dropped.
    sweep_at: usize,
}

impl Stored {
    pub(super) fn new(copies: usize) -> Stored {
        let (progress, waiting) = (BTreeMap::new(), BTreeMap::new());
        Stored { copies: copies.max(1), progress, waiting, count: 0, sweep_at: WAITING_MIN }
    }

    /// Everything up to here is durable in enough storers: the K-th highest progress.
    fn sequence(&self) -> u64 {
        let mut sequences: Vec<u64> = self.progress.values().copied().collect();
        sequences.sort_unstable_by(|a, b| b.cmp(a));
        sequences.get(self.copies - 1).copied().unwrap_or(0)
    }

    pub(super) fn when(&mut self, sequence: u64, act: WhenStored, wakes: &mut Wakes) {
        if self.sequence() >= sequence {
            return act.run(wakes);
        }
        self.waiting.entry(sequence).or_default().push(act);
        self.count += 1;
        if self.count >= self.sweep_at {
            self.sweep();
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn sweep(&mut self) {
        self.waiting.retain(|_, acts| {
            acts.retain(|act| !act.is_over());
            !acts.is_empty()
        });
        self.count = self.waiting.values().map(Vec::len).sum();
        self.sweep_at = WAITING_MIN.max(2 * self.count);
    }

    pub(super) fn handle_progress(&mut self, storer: u64, sequence: u64, wakes: &mut Wakes) {
        if self.progress.len() >= STORERS_MAX && !self.progress.contains_key(&storer) {
            return;
        }
        self.progress.insert(storer, sequence);
        let Some(first_waiting) = self.waiting.first_key_value().map(|(sequence, _)| *sequence) else { return };
        let stored = self.sequence();
        if first_waiting > stored {
            return;
        }
        let later = stored.checked_add(1).map(|from| self.waiting.split_off(&from)).unwrap_or_default();
        for act in std::mem::replace(&mut self.waiting, later).into_values().flatten() {
            self.count -= 1;
            act.run(wakes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_that_come_and_go_while_storers_are_away_leave_nothing() {
        let (mut stored, wakes) = (Stored::new(1), &mut Wakes::default());
        for id in 0..10_000 {
            let mailbox = Mailbox::new(id, 1_000);
            stored.when(id, WhenStored::Tell { mailbox: Arc::downgrade(&mailbox), epoch: 1, number: 1 }, wakes);
            stored.when(id, WhenStored::Sync(SyncWait::new(&mailbox, 1, 1)), wakes);
        }
        assert!(stored.count <= WAITING_MIN + 2, "{}", stored.count);
        stored.handle_progress(1, 20_000, wakes);
        assert_eq!(stored.count, 0);
    }

    #[test]
    fn a_sync_is_answered_once() {
        let wakes = &mut Wakes::default();
        let mailbox = Mailbox::new(1, 1_000);
        mailbox.lock().requests_open = 3;
        let wait = SyncWait::new(&mailbox, 7, 2);
        wait.lane_done(wakes);
        wait.expire(wakes);
        assert!(wait.is_over());
        wait.lane_done(wakes);
        assert_eq!(mailbox.lock().requests_open, 2);
    }
}
