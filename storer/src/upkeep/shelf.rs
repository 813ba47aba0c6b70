//! A storer's copies: those that are kept and stand in the register, those that only stay until nobody
//! carries them over any more, and the one that is being made, beside everything else.

use super::Upkeep;
use super::bounds::{Pressure, copy_is_due};
use crate::store::{CopyState, StoreError};
use crate::writer::now_us;
use fieldstream_nats::{CopyEntry, Finding, OrderReply, Severity};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;

const NO_COPY: &str = "no-copy";
/// A copy that failed is tried again after this long; then after twice as long, until it is as long as
/// between any two copies.
const RETRY_FIRST: Duration = Duration::from_secs(10);

/// How making a copy ended.
pub(super) type Made = Result<Result<CopyState, StoreError>, JoinError>;

/// The copies of one storer.
pub(super) struct Shelf {
    upkeep: Arc<Upkeep>,
    /// Ends one that is being made.
    stop: CancellationToken,
    /// The newest first.
    kept: Vec<CopyState>,
    /// Of this log under an identity it had before a repair.
    earlier: Vec<CopyState>,
    leaving: Vec<CopyState>,
    making: Option<JoinHandle<Result<CopyState, StoreError>>>,
    /// Who waits for the copy that is being made, and for one that is begun behind it.
    replies: Vec<OrderReply>,
    next_replies: Vec<OrderReply>,
    retry: Retry,
}

/// When a copy that failed is tried again.
#[derive(Debug, Clone, Copy)]
struct Retry {
    not_before: Instant,
    wait: Duration,
}

impl Retry {
    fn none() -> Retry {
        Retry { not_before: Instant::now(), wait: Duration::ZERO }
    }

    fn behind(self, every: Duration) -> Retry {
        let wait = (self.wait * 2).max(RETRY_FIRST).min(every);
        Retry { not_before: Instant::now() + wait, wait }
    }
}

impl Shelf {
    /// With the copies of earlier runs.
    pub(super) async fn open(upkeep: Arc<Upkeep>, stop: CancellationToken) -> Shelf {
        let copies = upkeep.copies.clone();
        let listed = tokio::task::spawn_blocking(move || copies.list()).await;
        let mut own = match listed {
            Ok(Ok(listed)) => listed,
            Ok(Err(error)) => {
                tracing::warn!(%error, "copies of earlier runs cannot be used");
                Vec::new()
            }
            Err(_) => Vec::new(),
        };
        own.retain(|copy| copy.format.storer == upkeep.store.storer());
        let log_id = upkeep.topology.log_id;
        let is_present = |copy: &CopyState| copy.checkpoints.iter().all(|row| row.checkpoint.log_id == log_id);
        let (kept, earlier) = own.into_iter().partition(is_present);
        let (leaving, replies, next_replies) = (Vec::new(), Vec::new(), Vec::new());
        let mut shelf =
            Shelf { upkeep, stop, kept, earlier, leaving, making: None, replies, next_replies, retry: Retry::none() };
        shelf.sort_out();
        shelf
    }

    /// As the register has them.
    pub(super) fn entries(&self) -> Vec<CopyEntry> {
        self.kept.iter().map(copy_entry).collect()
    }

    pub(super) fn newest(&self) -> Option<&CopyState> {
        self.kept.first()
    }

    /// Whether a copy is due for a file that stands at these EVENTS sequences.
    pub(super) fn is_due(&self, stored: &[u64], pressure: Pressure) -> bool {
        if Instant::now() < self.retry.not_before {
            return false;
        }
        let newest = self.newest();
        let copied = newest.map(|copy| copy.checkpoints.iter().map(|row| row.checkpoint.events_sequence).collect());
        let copied: Option<Vec<u64>> = copied;
        // One of the future was made by a clock that was wrong, nobody knows when.
        let age = newest.and_then(|copy| now_us().checked_sub(copy.made_at_us));
        let age = age.map_or(Duration::MAX, Duration::from_micros);
        copy_is_due(stored, copied.as_deref(), age, self.upkeep.options.copy_every, pressure)
    }

    /// Somebody waits for a copy that is begun now or later.
    pub(super) fn order(&mut self, reply: OrderReply) {
        self.next_replies.push(reply);
        self.begin();
    }

    /// Begins to make a copy, unless one is being made.
    pub(super) fn begin(&mut self) {
        if self.making.is_some() || self.stop.is_cancelled() {
            return;
        }
        self.replies = std::mem::take(&mut self.next_replies);
        let (upkeep, stop) = (Arc::clone(&self.upkeep), self.stop.clone());
        self.making = Some(tokio::task::spawn_blocking(move || upkeep.copies.make(&upkeep.store, now_us, &stop)));
    }

    /// Resolves when the copy that is being made is made, or is not; then it is to be taken in.
    ///
    /// # Cancel safety
    /// Nothing is lost if the future is dropped.
    pub(super) async fn made(&mut self) -> Made {
        match &mut self.making {
            Some(making) => making.await,
            None => std::future::pending().await,
        }
    }

    /// Takes in what was made, and tells who waits for it.
    pub(super) async fn take_in(&mut self, made: Made) {
        self.making = None;
        let taken = match made {
            Ok(Ok(copy)) => Ok(self.add(copy)),
            Ok(Err(error)) => Err(self.failed(&error)),
            Err(error) => Err(format!("copying ended unexpectedly: {error}")),
        };
        for reply in self.replies.drain(..) {
            reply.copied(taken.clone()).await;
        }
        if !self.next_replies.is_empty() {
            self.begin();
        }
    }

    fn add(&mut self, copy: CopyState) -> CopyEntry {
        tracing::info!(path = %copy.path.display(), rows = copy.rows, bytes = copy.bytes, "copied and verified");
        self.upkeep.health.clear(NO_COPY);
        self.retry = Retry::none();
        let entry = copy_entry(&copy);
        self.kept.insert(0, copy);
        self.sort_out();
        entry
    }

    fn failed(&mut self, error: &StoreError) -> String {
        self.retry = self.retry.behind(self.upkeep.options.copy_every);
        if !matches!(error, StoreError::Stopped { .. }) {
            let mend = "make room for it, or set storer.copies_directory; without a copy the log is not purged";
            self.upkeep.health.raise(Finding::new(NO_COPY, Severity::Warning, format!("no copy: {error}"), mend));
        }
        error.to_string()
    }

    /// Copies beyond the number that is kept leave the register. Those of before a repair go once there
    /// are as many of the log as it is.
    fn sort_out(&mut self) {
        let kept_max = self.upkeep.options.copies_kept.max(1);
        if self.kept.len() >= kept_max {
            self.leaving.append(&mut self.earlier);
        }
        self.leaving.extend(self.kept.split_off(kept_max.min(self.kept.len())));
    }

    /// Removes copies that are not kept, and that nobody is carrying over.
    pub(super) fn sweep(&mut self) {
        let copies = &self.upkeep.copies;
        self.leaving.retain(|copy| {
            if copies.is_asked_for(copy.made_at_us) {
                return true;
            }
            if let Err(error) = copies.remove(copy) {
                tracing::warn!(%error, "an old copy stays");
            }
            false
        });
    }

    /// Waits for the copy that is being made. A large one may not end in time: it has the file open
    /// until it does.
    pub(super) async fn end(mut self, deadline: Duration) {
        if let Some(making) = self.making.take() {
            let _ = tokio::time::timeout(deadline, making).await;
        }
        for reply in self.replies.into_iter().chain(self.next_replies) {
            reply.copied(Err("the storer is stopping".to_owned())).await;
        }
    }
}

fn copy_entry(copy: &CopyState) -> CopyEntry {
    CopyEntry {
        path: copy.path.display().to_string(),
        made_at_us: copy.made_at_us,
        bytes: copy.bytes,
        lanes: copy.marks(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_fails_is_tried_again_less_and_less_often() {
        let mut retry = Retry::none();
        let mut waits = Vec::new();
        for _ in 0..7 {
            retry = retry.behind(Duration::from_secs(100));
            waits.push(retry.wait.as_secs());
        }
        assert_eq!(waits, [10, 20, 40, 80, 100, 100, 100]);
        assert_eq!(Retry::none().behind(Duration::from_secs(1)).wait, Duration::from_secs(1));
    }
}
