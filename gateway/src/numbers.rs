//! The unresolved numbers of one session, and what its client is to be told about each.

use fieldstream_shared::code::Code;
use fieldstream_shared::defect::{self, Defect};
use fieldstream_shared::event::EventBody;
use fieldstream_shared::limits::NUMBER_WINDOW;
use fieldstream_shared::outcome::{AckLevel, Outcome};
use std::collections::BTreeSet;

/// Numbers told as logged whose first event is awaited; while a processor stands still there may
/// be any number of them.
const AWAITED_MAX: usize = 8 * NUMBER_WINDOW as usize;

#[derive(Debug, Clone, Copy)]
struct Unresolved {
    number: u64,
    ack: AckLevel,
    /// What was decided, while it waits for the storers.
    decided: Option<Outcome>,
}

/// The numbers sent through this session that are not resolved yet; never more than the window
/// is wide, because what lies below `settled` is the client's own business.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    epoch: u64,
    unresolved: Vec<Unresolved>,
    /// The highest `settled` the client has claimed.
    settled: u64,
    /// The highest number the client may have been told is logged, by this session or one before: a
    /// refusal of a number up to here is still delivered, although the number is resolved.
    logged_upto: u64,
    /// Told as logged by this session, without an event so far.
    awaited: BTreeSet<u64>,
    /// Numbers up to here may have been told as logged and be awaited without being in `awaited`.
    unsure_upto: u64,
}

/// What to do about an event of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Nobody here waits for it.
    Ignore,
    /// Tell the client now.
    Tell(AckLevel, Outcome),
    /// Tell the client when the event is stored.
    TellWhenStored,
}

impl Numbers {
    /// The client has come, with the highest number it sent before.
    pub(crate) fn begin(&mut self, epoch: u64, sent_upto: u64) {
        (self.epoch, self.logged_upto, self.unsure_upto) = (epoch, sent_upto, sent_upto);
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.unresolved.is_empty()
    }

    /// A number goes to the log.
    pub(crate) fn sent(&mut self, number: u64, settled: u64, ack: AckLevel) {
        self.settled = self.settled.max(settled);
        self.unresolved.retain(|u| u.number >= self.settled && u.number != number);
        if number >= self.settled {
            self.unresolved.push(Unresolved { number, ack, decided: None });
        }
        // Whatever the client claims: what is kept is at or above the highest `settled`, and what
        // is sent is below some `settled` plus the window.
        debug_assert!(self.unresolved.len() as u64 <= NUMBER_WINDOW);
    }

    /// A number is in the log. Whether the client is to be told.
    pub(crate) fn logged(&mut self, epoch: u64, number: u64) -> bool {
        let waits = |u: &Unresolved| u.number == number && u.ack == AckLevel::Logged;
        if epoch != self.epoch || !self.unresolved.iter().any(waits) {
            return false;
        }
        self.unresolved.retain(|u| u.number != number);
        self.logged_upto = self.logged_upto.max(number);
        self.awaited.insert(number);
        if self.awaited.len() > AWAITED_MAX
            && let Some(lowest) = self.awaited.pop_first()
        {
            self.unsure_upto = self.unsure_upto.max(lowest);
        }
        true
    }

    /// An accepted event says what became of a number.
    pub(crate) fn decided(&mut self, epoch: u64, number: u64, body: &EventBody) -> Decision {
        let outcome = body.outcome();
        if epoch != self.epoch {
            return if epoch < self.epoch && may_be_late(outcome) {
                // Of an epoch that the client left since; it knows what it was told there.
                Decision::Tell(AckLevel::Applied, outcome)
            } else {
                Decision::Ignore
            };
        }
        let is_first = self.awaited.remove(&number);
        let Some(at) = self.unresolved.iter().position(|u| u.number == number) else {
            return if self.is_news(number, outcome, is_first) {
                Decision::Tell(AckLevel::Applied, outcome)
            } else {
                Decision::Ignore
            };
        };
        if defect::active(Defect::StoredTooEarly) && self.unresolved[at].ack == AckLevel::Stored {
            self.unresolved.swap_remove(at);
            return Decision::Tell(AckLevel::Stored, outcome);
        }
        if self.unresolved[at].ack == AckLevel::Stored {
            // A second event of the number can only repeat the first.
            return match self.unresolved[at].decided.replace(outcome) {
                None => Decision::TellWhenStored,
                Some(first) => {
                    self.unresolved[at].decided = Some(first);
                    Decision::Ignore
                }
            };
        }
        self.unresolved.swap_remove(at);
        Decision::Tell(AckLevel::Applied, outcome)
    }

    /// Whether the client must learn of the outcome of a number that it need not wait for: one told
    /// as logged is resolved for it, be it by a session before, which may be gone. Clients pass
    /// over what they know.
    fn is_news(&self, number: u64, outcome: Outcome, is_first: bool) -> bool {
        match outcome {
            Outcome::Applied { .. } => false,
            // The first event of a number is its verdict, whatever the reason.
            Outcome::Refused(_) | Outcome::Dead(_) if is_first => true,
            // Else a reason that is the number itself says only that a copy of it came later. A stale
            // epoch may be all that ever becomes of it, too, unless another event was seen here.
            Outcome::Refused(Code::STALE_EPOCH) => number <= self.unsure_upto,
            outcome => may_be_late(outcome) && number <= self.logged_upto,
        }
    }

    /// The event of a number is stored: the outcome to tell now.
    pub(crate) fn stored(&mut self, epoch: u64, number: u64) -> Option<Outcome> {
        if epoch != self.epoch {
            return None;
        }
        let at = self.unresolved.iter().position(|u| u.number == number && u.decided.is_some())?;
        self.unresolved.swap_remove(at).decided
    }
}

/// Whether a client that was told `logged` may have to be told this yet, although nothing is known
/// here of the number. A stale epoch is told: it may be the verdict, and at any rate it is true.
pub(crate) fn may_be_late(outcome: Outcome) -> bool {
    match outcome {
        Outcome::Applied { .. } | Outcome::Refused(Code::SKIPPED | Code::NUMBER_REUSED) => false,
        Outcome::Refused(_) | Outcome::Dead(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: Code) -> EventBody {
        EventBody::Refused(code)
    }

    fn repeated() -> EventBody {
        EventBody::Repeated(Outcome::Applied { revision: 4 })
    }

    fn numbers() -> Numbers {
        let mut numbers = Numbers::default();
        numbers.begin(9, 0);
        numbers
    }

    #[test]
    fn a_refusal_after_logged_is_told_and_success_is_not() {
        let mut n = numbers();
        n.sent(1, 1, AckLevel::Logged);
        n.sent(2, 1, AckLevel::Logged);
        assert!(n.logged(9, 1) && n.logged(9, 2) && !n.logged(9, 2));
        assert!(n.is_empty(), "a stopped processor lets nothing grow");
        assert_eq!(n.decided(9, 1, &repeated()), Decision::Ignore);
        let told = Decision::Tell(AckLevel::Applied, Outcome::Refused(Code::CONFLICT));
        assert_eq!(n.decided(9, 2, &refused(Code::CONFLICT)), told);
        assert_eq!(n.decided(9, 2, &refused(Code::SKIPPED)), Decision::Ignore, "a copy that came later");
        assert_eq!(n.decided(9, 3, &refused(Code::CONFLICT)), Decision::Ignore, "sent elsewhere");
    }

    #[test]
    fn a_refusal_after_logged_is_told_by_the_next_session_too() {
        let conflict = Outcome::Refused(Code::CONFLICT);
        let mut n = Numbers::default();
        n.begin(9, 2);
        assert_eq!(n.decided(9, 1, &refused(Code::CONFLICT)), Decision::Tell(AckLevel::Applied, conflict));
        n.sent(2, 2, AckLevel::Logged);
        assert!(n.logged(9, 2));
        let told = Decision::Tell(AckLevel::Applied, conflict);
        assert_eq!(n.decided(9, 2, &EventBody::Repeated(conflict)), told, "its first event came before");
        assert_eq!(n.decided(9, 2, &repeated()), Decision::Ignore);
        assert_eq!(n.decided(9, 3, &refused(Code::CONFLICT)), Decision::Ignore, "never sent");
    }

    #[test]
    fn whatever_becomes_of_a_number_told_as_logged_its_first_event_is_told() {
        for code in [Code::STALE_EPOCH, Code::SKIPPED, Code::NUMBER_REUSED] {
            let told = Decision::Tell(AckLevel::Applied, Outcome::Refused(code));
            let mut n = numbers();
            for number in 1..=2 {
                n.sent(number, number, AckLevel::Logged);
                assert!(n.logged(9, number));
            }
            assert_eq!(n.decided(9, 1, &refused(code)), told);
            assert_eq!(n.decided(9, 1, &refused(code)), Decision::Ignore, "a copy");
            assert_eq!(n.decided(9, 2, &repeated()), Decision::Ignore);
            assert_eq!(n.decided(9, 2, &refused(code)), Decision::Ignore, "a copy of one that was applied");
        }
    }

    #[test]
    fn a_stale_epoch_is_told_also_of_numbers_and_epochs_of_sessions_before() {
        let (mut n, stale) = (Numbers::default(), Outcome::Refused(Code::STALE_EPOCH));
        n.begin(9, 2);
        let told = Decision::Tell(AckLevel::Applied, stale);
        assert_eq!(n.decided(9, 2, &refused(Code::STALE_EPOCH)), told);
        assert_eq!(n.decided(9, 3, &refused(Code::STALE_EPOCH)), Decision::Ignore, "never sent");
        assert_eq!(n.decided(8, 7, &refused(Code::STALE_EPOCH)), told, "the epoch it left");
        assert_eq!(n.decided(8, 7, &refused(Code::SKIPPED)), Decision::Ignore);
        assert_eq!(n.decided(10, 1, &refused(Code::CONFLICT)), Decision::Ignore, "somebody else's");
    }

    #[test]
    fn what_is_awaited_is_bounded_and_what_falls_out_may_still_be_stale() {
        let mut n = numbers();
        for number in 1..=2 * AWAITED_MAX as u64 {
            n.sent(number, number, AckLevel::Logged);
            assert!(n.logged(9, number));
        }
        assert_eq!(n.awaited.len(), AWAITED_MAX);
        assert!(matches!(n.decided(9, 1, &refused(Code::STALE_EPOCH)), Decision::Tell(..)));
    }

    #[test]
    fn an_event_that_overtakes_its_acknowledgement_resolves() {
        let mut n = numbers();
        n.sent(1, 1, AckLevel::Logged);
        assert_eq!(n.decided(9, 1, &repeated()), Decision::Tell(AckLevel::Applied, Outcome::Applied { revision: 4 }));
        assert!(!n.logged(9, 1));
    }

    #[test]
    fn stored_waits_for_the_storers_and_epochs_are_kept_apart() {
        let mut n = numbers();
        n.sent(1, 1, AckLevel::Stored);
        assert_eq!(n.decided(8, 1, &repeated()), Decision::Ignore);
        assert_eq!(n.stored(9, 1), None);
        assert_eq!(n.decided(9, 1, &repeated()), Decision::TellWhenStored);
        assert_eq!(n.decided(9, 1, &refused(Code::SKIPPED)), Decision::Ignore);
        assert_eq!(n.stored(9, 1), Some(Outcome::Applied { revision: 4 }));
        assert_eq!(n.stored(9, 1), None);
    }

    #[test]
    fn what_is_settled_takes_no_room() {
        let mut n = numbers();
        for number in 1..1000 {
            n.sent(number, number, AckLevel::Applied);
        }
        assert_eq!(n.unresolved.len(), 1);
        for settled in (32..900).rev() {
            n.sent(settled, settled, AckLevel::Applied);
        }
        assert_eq!(n.unresolved.len(), 1, "a claim that goes back changes nothing");
    }
}
