//! Client marks: which instruction numbers a partition has seen, and what became of them.

use crate::code::Code;
use crate::defect::{self, Defect};
use crate::limits::NUMBER_WINDOW;
use crate::msgpack::{DecodeError, Reader, Write};
use crate::outcome::Outcome;
use std::collections::BTreeMap;

/// What a partition remembers of one client. Part of the partition's state: changed only by
/// events, so that every owner of the partition decides alike.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mark {
    /// The client's newest epoch seen here.
    pub epoch: u64,
    /// The highest number of that epoch seen here.
    pub highest: u64,
    /// The client has no unresolved number below this one.
    pub settled: u64,
    /// Content hash and outcome of the numbers the client may still ask about.
    pub window: BTreeMap<u64, (u32, Outcome)>,
}

/// A number as it arrives with an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// The client's epoch.
    pub epoch: u64,
    /// The number within the epoch.
    pub number: u64,
    /// The lowest number the client has not resolved.
    pub settled: u64,
    /// Hash of the instruction's content.
    pub content_hash: u32,
}

/// What a mark says to an arriving number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Never seen: carry it out.
    Fresh,
    /// Seen before, with this outcome: nothing happens again.
    Repeated(Outcome),
    /// Refused because of the number.
    Refused(Code),
}

impl Mark {
    /// Decides about a number.
    pub fn judge(&self, arrival: &Arrival) -> Verdict {
        if arrival.epoch > self.epoch || defect::active(Defect::NoClientMarks) {
            return Verdict::Fresh;
        }
        if arrival.epoch < self.epoch {
            if defect::active(Defect::StaleEpochAccepted) {
                return Verdict::Fresh;
            }
            return Verdict::Refused(Code::STALE_EPOCH);
        }
        if arrival.number > self.highest {
            return Verdict::Fresh;
        }
        match self.window.get(&arrival.number) {
            Some((hash, outcome)) if *hash == arrival.content_hash => Verdict::Repeated(*outcome),
            Some(_) => Verdict::Refused(Code::NUMBER_REUSED),
            // A later number was logged and this one has no outcome: it was never logged before,
            // and carrying it out now would change the client's order.
            None => Verdict::Refused(Code::SKIPPED),
        }
    }

    /// Takes an event's number into account: `outcome` of a number never seen before, or `None` for
    /// a repetition or a refusal because of the number, which only settle.
    pub fn fold(&mut self, arrival: &Arrival, outcome: Option<Outcome>) {
        if arrival.epoch < self.epoch || arrival.epoch > self.epoch && outcome.is_none() {
            return;
        }
        if arrival.epoch > self.epoch {
            *self = Mark { epoch: arrival.epoch, ..Mark::default() };
        }
        self.settled = self.settled.max(arrival.settled);
        if let Some(outcome) = outcome
            && arrival.number > self.highest
        {
            self.highest = arrival.number;
            self.window.insert(arrival.number, (arrival.content_hash, outcome));
        }
        // No unresolved number is further below the highest than the window is wide.
        let keep = self.settled.max(self.highest.saturating_add(1).saturating_sub(NUMBER_WINDOW));
        if self.window.first_key_value().is_some_and(|(n, _)| *n < keep) {
            self.window = self.window.split_off(&keep);
        }
    }

    /// Appends `[epoch, highest, settled, [[number, hash, outcome], …]]`.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.array(4);
        out.u64(self.epoch);
        out.u64(self.highest);
        out.u64(self.settled);
        out.array(self.window.len());
        for (number, (hash, outcome)) in &self.window {
            out.array(3);
            out.u64(*number);
            out.u64(u64::from(*hash));
            outcome.write(out);
        }
    }

    /// Reads a mark.
    ///
    /// # Errors
    /// [`DecodeError`] if it is none.
    pub fn read(reader: &mut Reader<'_>) -> Result<Mark, DecodeError> {
        reader.record(4, |r| {
            let (epoch, highest, settled) = (r.u64()?, r.u64()?, r.u64()?);
            let mut window = BTreeMap::new();
            for _ in 0..r.array()? {
                let (number, entry) = r.record(3, |r| Ok((r.u64()?, (r.u32()?, Outcome::read(r)?))))?;
                window.insert(number, entry);
            }
            Ok(Mark { epoch, highest, settled, window })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::msgpack::decode;

    fn arrival(epoch: u64, number: u64, settled: u64) -> Arrival {
        Arrival { epoch, number, settled, content_hash: number as u32 }
    }

    fn applied(revision: u64) -> Option<Outcome> {
        Some(Outcome::Applied { revision })
    }

    #[test]
    fn a_number_is_carried_out_once_and_its_outcome_kept_until_settled() {
        let mut mark = Mark::default();
        for n in [1, 2, 5] {
            assert_eq!(mark.judge(&arrival(9, n, 1)), Verdict::Fresh);
            mark.fold(&arrival(9, n, 1), applied(n));
        }
        assert_eq!(mark.judge(&arrival(9, 2, 1)), Verdict::Repeated(Outcome::Applied { revision: 2 }));
        assert_eq!(mark.judge(&arrival(9, 3, 1)), Verdict::Refused(Code::SKIPPED), "a hole");
        let reused = Arrival { content_hash: 77, ..arrival(9, 2, 1) };
        assert_eq!(mark.judge(&reused), Verdict::Refused(Code::NUMBER_REUSED));
        assert_eq!(mark.judge(&arrival(8, 6, 1)), Verdict::Refused(Code::STALE_EPOCH));
        mark.fold(&arrival(9, 2, 4), None);
        assert_eq!(mark.window.keys().copied().collect::<Vec<_>>(), [5]);
        let mut out = Vec::new();
        mark.write(&mut out);
        assert_eq!(decode(&out, Mark::read), Ok(mark.clone()));
        mark.fold(&arrival(10, 1, 1), applied(6));
        assert_eq!((mark.epoch, mark.highest, mark.window.len()), (10, 1, 1));
    }

    #[test]
    fn a_late_event_of_an_old_epoch_changes_nothing() {
        let mut mark = Mark { epoch: 5, highest: 3, settled: 2, window: BTreeMap::new() };
        let before = mark.clone();
        mark.fold(&arrival(4, 9, 9), applied(1));
        mark.fold(&arrival(6, 1, 1), None);
        assert_eq!(mark, before);
    }

    #[test]
    fn the_window_is_bounded_even_if_nothing_is_ever_settled() {
        let mut mark = Mark::default();
        for n in 1..1000 {
            mark.fold(&arrival(1, n, 1), applied(n));
        }
        assert_eq!(mark.window.len() as u64, NUMBER_WINDOW);
    }
}
