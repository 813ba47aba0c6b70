//! Keeps a processor's announcement alive and tells its workers what they own.

use crate::membership::Membership;
use crate::service::{Ownership, ProcessorError};
use fieldstream_nats::{Connection, LEASE, MemberBoard, NatsError};
use fieldstream_shared::partition::PartitionSet;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// How often the announcement is renewed, and others that came or left are noticed.
const RENEW: Duration = Duration::from_millis(400);

/// Begins to share the partitions, if they are to be shared; owns them from the first answer on.
/// `member` must be another one for every start: an old announcement must not speak for a new
/// process.
pub(crate) async fn begin(
    ownership: Ownership,
    member: String,
    connection: &Connection,
    left: &CancellationToken,
    tasks: &mut JoinSet<()>,
) -> Result<watch::Receiver<PartitionSet>, ProcessorError> {
    let (sender, owned) = watch::channel(PartitionSet::EMPTY);
    if let Ownership::Fixed(partitions) = ownership {
        sender.send_replace(partitions);
        // Kept, so that the workers do not take the channel's end for news.
        let left = left.clone();
        tasks.spawn(async move {
            left.cancelled().await;
            drop(sender);
        });
        return Ok(owned);
    }
    let mut sharing = Sharing {
        membership: Membership::new(member.clone(), LEASE.as_millis() as u64),
        board: MemberBoard::new(connection),
        member,
        begun: Instant::now(),
        owned: sender,
        has_complained: false,
    };
    sharing.renew().await;
    tasks.spawn(sharing.run(left.clone()));
    Ok(owned)
}

struct Sharing {
    member: String,
    membership: Membership,
    board: MemberBoard,
    begun: Instant,
    owned: watch::Sender<PartitionSet>,
    has_complained: bool,
}

impl Sharing {
    async fn run(mut self, left: CancellationToken) {
        let mut interval = tokio::time::interval(RENEW);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while left.run_until_cancelled(interval.tick()).await.is_some() {
            self.renew().await;
        }
        self.board.leave(&self.member).await;
    }

    async fn renew(&mut self) {
        let at_ms = self.now_ms();
        match self.board.renew(&self.member).await {
            Ok(members) => self.membership.handle_renewed(at_ms, members),
            Err(error) => self.not_renewed(&error),
        }
        let owned = self.membership.owned(self.now_ms());
        let changed = self.owned.send_if_modified(|now| std::mem::replace(now, owned) != owned);
        if !owned.is_empty() {
            self.has_complained = false;
        }
        if changed && !owned.is_empty() {
            let (partitions, members) = (owned.len(), self.membership.members().len());
            tracing::info!(member = self.member, partitions, members, "partitions are shared anew");
        }
    }

    /// Said once, when it means that nothing is owned.
    fn not_renewed(&mut self, error: &NatsError) {
        let member = &self.member;
        if self.membership.owned(self.now_ms()).is_empty() && !std::mem::replace(&mut self.has_complained, true) {
            tracing::warn!(member, %error, "this processor owns nothing until it can announce itself");
        } else {
            tracing::debug!(member, %error, "the lease is not renewed yet");
        }
    }

    fn now_ms(&self) -> u64 {
        self.begun.elapsed().as_millis() as u64
    }
}
