//! The unresolved numbers of one session, and what its client is to be told about each.

use fieldstream_shared::code::Code;
use fieldstream_shared::defect::{self, Defect};
use fieldstream_shared::event::EventBody;
use fieldstream_shared::limits::NUMBER_WINDOW;
use fieldstream_shared::outcome::{AckLevel, Outcome};

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
        (self.epoch, self.logged_upto) = (epoch, sent_upto);
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
        true
    }

    /// An accepted event says what became of a number.
    pub(crate) fn decided(&mut self, epoch: u64, number: u64, body: &EventBody) -> Decision {
        if epoch != self.epoch {
            return Decision::Ignore;
        }
        let outcome = body.outcome();
        let Some(at) = self.unresolved.iter().position(|u| u.number == number) else {
            return match outcome {
                // A refusal because of the number itself only says that a copy of it came later.
                Outcome::Refused(Code::SKIPPED | Code::STALE_EPOCH | Code::NUMBER_REUSED) => Decision::Ignore,
                // A number told as logged is resolved for the client, but it must learn of this, be
                // it from a repetition: the session that was told first may be gone. Clients pass
                // over what they know.
                Outcome::Refused(_) | Outcome::Dead(_) if number <= self.logged_upto => {
                    Decision::Tell(AckLevel::Applied, outcome)
                }
                Outcome::Refused(_) | Outcome::Dead(_) | Outcome::Applied { .. } => Decision::Ignore,
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

    /// The event of a number is stored: the outcome to tell now.
    pub(crate) fn stored(&mut self, epoch: u64, number: u64) -> Option<Outcome> {
        if epoch != self.epoch {
            return None;
        }
        let at = self.unresolved.iter().position(|u| u.number == number && u.decided.is_some())?;
        self.unresolved.swap_remove(at).decided
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
