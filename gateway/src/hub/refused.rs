//! The latest refusals of this lane, for clients that may not have heard of them: what was told as
//! logged is not asked about again, and its refusal may be read while its client is between two
//! connections, or be lost with one of them.

use crate::numbers::may_be_late;
use fieldstream_shared::ids::ClientId;
use fieldstream_shared::outcome::Outcome;
use std::collections::{HashMap, VecDeque};

/// Refusals kept, of all clients together.
const KEPT_MAX: usize = 8_192;
/// Refusals told to one client: clients remember a few times as many, to know what they were told.
const TOLD_MAX: usize = 64;

/// What became of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) epoch: u64,
    pub(super) number: u64,
    pub(super) outcome: Outcome,
}

/// See above.
#[derive(Debug, Default)]
pub(super) struct Refused {
    by_client: HashMap<ClientId, VecDeque<Refusal>>,
    /// Whose refusal is the oldest, and so on.
    order: VecDeque<ClientId>,
}

impl Refused {
    /// Keeps an outcome if it is one that its client may have to be told yet.
    pub(super) fn keep(&mut self, client: &ClientId, refusal: Refusal) {
        if !may_be_late(refusal.outcome) {
            return;
        }
        let of_client = self.by_client.entry(client.clone()).or_default();
        // Repetitions are not news.
        if of_client.iter().rev().take(TOLD_MAX).any(|known| *known == refusal) {
            return;
        }
        of_client.push_back(refusal);
        self.order.push_back(client.clone());
        if self.order.len() > KEPT_MAX
            && let Some(oldest) = self.order.pop_front()
            && let Some(of_client) = self.by_client.get_mut(&oldest)
        {
            of_client.pop_front();
            if of_client.is_empty() {
                self.by_client.remove(&oldest);
            }
        }
    }

    /// The latest refusals of what a client has sent: in this epoch, or in one that it left.
    pub(super) fn of(&self, client: &ClientId, epoch: u64, sent_upto: u64) -> impl Iterator<Item = Refusal> {
        let of_client = self.by_client.get(client).into_iter();
        let latest = of_client.flat_map(|all| all.range(all.len().saturating_sub(TOLD_MAX)..));
        latest.filter(move |r| r.epoch < epoch || r.epoch == epoch && r.number <= sent_upto).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fieldstream_shared::code::Code;

    fn client(name: &str) -> ClientId {
        ClientId::new(name).unwrap()
    }

    fn refusal(epoch: u64, number: u64) -> Refusal {
        Refusal { epoch, number, outcome: Outcome::Refused(Code::CONFLICT) }
    }

    #[test]
    fn a_client_is_told_what_it_has_sent_and_each_once() {
        let (mut refused, c) = (Refused::default(), client("c"));
        for kept in [refusal(4, 9), refusal(5, 1), refusal(5, 1), refusal(5, 2), refusal(6, 1)] {
            refused.keep(&c, kept);
        }
        refused.keep(&c, Refusal { outcome: Outcome::Applied { revision: 1 }, ..refusal(5, 1) });
        refused.keep(&c, Refusal { outcome: Outcome::Refused(Code::SKIPPED), ..refusal(5, 1) });
        let told: Vec<Refusal> = refused.of(&c, 5, 1).collect();
        assert_eq!(told, [refusal(4, 9), refusal(5, 1)]);
        assert_eq!(refused.of(&client("d"), 9, 9).count(), 0);
    }

    #[test]
    fn memory_is_bounded_and_the_latest_stay() {
        let (mut refused, c) = (Refused::default(), client("c"));
        refused.keep(&client("first"), refusal(1, 1));
        for number in 1..=KEPT_MAX as u64 {
            refused.keep(&c, refusal(1, number));
        }
        assert_eq!((refused.order.len(), refused.by_client.len()), (KEPT_MAX, 1));
        let told: Vec<u64> = refused.of(&c, 1, u64::MAX).map(|r| r.number).collect();
        assert_eq!((told.len(), told.last()), (TOLD_MAX, Some(&(KEPT_MAX as u64))));
    }
}
