//! What of the log may go, and when a copy is due. Pure: decides by what it is given.

use fieldstream_nats::{LaneMarks, Log, LogError, Registered, StorerEntry, StreamState};
use fieldstream_shared::defect::{self, Defect};
use std::time::Duration;

/// A log that takes less of its room than this, in percent, is left whole: storers can start from
/// its beginning, and the room is set aside for it anyway.
const LOW_PERCENT: u64 = 30;
/// From so full a stream on, in percent, retention yields to space.
const HIGH_PERCENT: u64 = 70;
/// From so full a stream on, in percent, nothing is kept for storers that are not there.
const CRITICAL_PERCENT: u64 = 90;
/// A storer that has not been seen for so long is not there.
pub(super) const ABSENT_AFTER_US: u64 = 60_000_000;
/// While space is short, copies are made no more often than this.
const COPY_PAUSE: Duration = Duration::from_secs(10);

/// How full the fullest stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pressure {
    /// Nothing needs to go.
    None,
    /// There is room.
    Low,
    /// Retention yields.
    High,
    /// Absent storers are forgotten.
    Critical,
}

impl Pressure {
    pub(super) fn of(percent: u64) -> Pressure {
        match percent {
            0..LOW_PERCENT => Pressure::None,
            LOW_PERCENT..HIGH_PERCENT => Pressure::Low,
            HIGH_PERCENT..CRITICAL_PERCENT => Pressure::High,
            _ => Pressure::Critical,
        }
    }
}

/// Whether a storer has not renewed its entry for a while, at a time of the server's clock.
pub(super) fn is_absent(found: &Registered, now_us: u64) -> bool {
    now_us.saturating_sub(found.written_at_us) > ABSENT_AFTER_US
}

/// The entries that are dropped from the register: what was left behind of files that were being made
/// again, and storers that are absent while space is critical, but never the last one, and never the
/// only ones with a copy.
pub(super) fn dropped(found: &[Registered], pressure: Pressure, now_us: u64) -> Vec<Registered> {
    let present = |found: &&Registered| !is_absent(found, now_us);
    let safe = found.iter().filter(present).any(|found| !found.entry.copies.is_empty());
    let drop_storers = pressure >= Pressure::Critical && safe;
    let goes = |found: &&Registered| is_absent(found, now_us) && (found.entry.temporary || drop_storers);
    found.iter().filter(goes).cloned().collect()
}

/// Whether EVENTS of a lane begins behind what a file with these marks needs next.
pub(super) fn outrun(lanes: &[LaneMarks], streams: &[(StreamState, StreamState)]) -> Option<LogError> {
    (0..).zip(lanes).zip(streams).find_map(|((lane, marks), (_, events))| {
        let (expected, first) = (marks.events_sequence + 1, events.first);
        (first > expected).then(|| LogError::Outrun { stream: Log::Events.stream(lane), expected, first })
    })
}

/// Sequences below which the streams of a lane may go: EVENTS, INSTRUCTIONS.
///
/// EVENTS stays from the message on that the least advanced storer names, and from the one on that
/// a verified copy names: the newest one of all while space is short, the oldest kept one of the most
/// advanced storer else, so that a reader that was away for a while still finds its place.
/// INSTRUCTIONS stays from the lowest cursor of the most advanced storer and of that copy on.
pub(super) fn bounds(entries: &[StorerEntry], lane: usize, pressure: Pressure) -> Option<(u64, u64)> {
    if pressure == Pressure::None {
        return None;
    }
    let marks = |lanes: &[LaneMarks]| lanes.get(lane).copied();
    // An entry without the lane protects everything.
    let durable: Option<Vec<LaneMarks>> = entries.iter().map(|entry| marks(&entry.lanes)).collect();
    let durable = durable?;
    let least = durable.iter().map(|marks| marks.events_sequence).min()?;
    let most = durable.iter().max_by_key(|marks| marks.events_sequence)?;
    if defect::active(Defect::PurgedPastCopy) {
        return Some((least, most.instructions_lowest));
    }
    let newest = |entry: &&StorerEntry| entry.copies.first().and_then(|copy| marks(&copy.lanes));
    let best = entries.iter().max_by_key(|entry| newest(entry).map(|marks| marks.events_sequence))?;
    let copy = if pressure == Pressure::Low { best.copies.last() } else { best.copies.first() };
    let copy = marks(&copy?.lanes)?;
    Some((least.min(copy.events_sequence), most.instructions_lowest.min(copy.instructions_lowest)))
}

/// Whether a copy is due: `stored` and `copied` are the EVENTS sequences of the file and of its newest
/// copy, `age` is how old that is.
pub(super) fn copy_is_due(
    stored: &[u64],
    copied: Option<&[u64]>,
    age: Duration,
    every: Duration,
    pressure: Pressure,
) -> bool {
    match copied {
        None => stored.iter().any(|sequence| *sequence > 0),
        Some(copied) if copied == stored => false,
        Some(_) => age >= if pressure < Pressure::High { every } else { COPY_PAUSE.min(every) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fieldstream_nats::CopyEntry;

    fn marks(events_sequence: u64, instructions_lowest: u64) -> Vec<LaneMarks> {
        vec![LaneMarks { events_sequence, instructions_lowest }]
    }

    fn entry(storer: u64, at: (u64, u64), copies: &[(u64, u64)]) -> StorerEntry {
        let copy = |(e, i): &(u64, u64)| CopyEntry { path: "/c".into(), made_at_us: 0, bytes: 1, lanes: marks(*e, *i) };
        StorerEntry {
            storer,
            log_id: 1,
            host: "h".into(),
            database: "/d".into(),
            seen_at_us: 0,
            lanes: marks(at.0, at.1),
            copies: copies.iter().map(copy).collect(),
            temporary: false,
        }
    }

    #[test]
    fn nothing_goes_that_a_storer_or_the_newest_copy_needs() {
        assert_eq!(bounds(&[], 0, Pressure::Low), None);
        assert_eq!(bounds(&[entry(1, (100, 90), &[(80, 70)])], 0, Pressure::None), None, "a small log stays whole");
        assert_eq!(bounds(&[entry(1, (100, 90), &[])], 0, Pressure::Critical), None, "never without a copy");
        let one = entry(1, (100, 90), &[(80, 70), (40, 30)]);
        assert_eq!(bounds(std::slice::from_ref(&one), 0, Pressure::Low), Some((40, 30)), "some margin");
        assert_eq!(bounds(std::slice::from_ref(&one), 0, Pressure::High), Some((80, 70)), "none while space is short");
        let behind = entry(2, (50, 45), &[]);
        assert_eq!(bounds(&[one.clone(), behind.clone()], 0, Pressure::High), Some((50, 70)));
        let other = entry(3, (120, 110), &[(95, 85)]);
        assert_eq!(bounds(&[one.clone(), other.clone()], 0, Pressure::High), Some((95, 85)));
        assert_eq!(bounds(&[one.clone(), other], 1, Pressure::High), None, "a lane nobody speaks of");
        assert_eq!(bounds(&[one, StorerEntry { lanes: vec![], ..behind }], 0, Pressure::High), None);
    }

    /// Renewed `storer` minutes after the beginning; the storer's own clock is another.
    fn renewed(entry: StorerEntry) -> Registered {
        Registered { revision: 1, written_at_us: entry.storer * ABSENT_AFTER_US, entry }
    }

    #[test]
    fn only_absent_storers_are_dropped_and_only_if_another_has_a_copy() {
        let (now_us, copy) = (5 * ABSENT_AFTER_US, &[(1, 1)][..]);
        let gone = |found: &[Registered], pressure| -> Vec<u64> {
            dropped(found, pressure, now_us).iter().map(|found| found.entry.storer).collect()
        };
        let left = |storer| renewed(StorerEntry { temporary: true, ..entry(storer, (9, 9), &[]) });
        assert_eq!(gone(&[left(1), left(5), renewed(entry(2, (9, 9), copy))], Pressure::None), [1], "left behind");
        let (absent, present) = (renewed(entry(1, (5, 5), copy)), renewed(entry(5, (9, 9), copy)));
        let both = [absent.clone(), present];
        assert_eq!(gone(&both, Pressure::High), [0_u64; 0]);
        assert_eq!(gone(&both, Pressure::Critical), [1]);
        assert_eq!(gone(std::slice::from_ref(&absent), Pressure::Critical), [0_u64; 0], "never the last one");
        let without = renewed(entry(5, (9, 9), &[]));
        assert_eq!(gone(&[absent, without], Pressure::Critical), [0_u64; 0], "never the only copy");
    }

    #[test]
    fn a_storer_that_was_dropped_comes_back_only_if_the_log_still_has_what_it_needs() {
        let first = |first| vec![(StreamState::default(), StreamState { first, ..StreamState::default() })];
        assert!(outrun(&marks(100, 90), &first(101)).is_none());
        let error = outrun(&marks(100, 90), &first(102));
        assert!(matches!(error, Some(LogError::Outrun { expected: 101, first: 102, .. })), "{error:?}");
    }

    #[test]
    fn copies_are_made_when_there_is_something_new_and_sooner_when_space_is_short() {
        let (minute, hour) = (Duration::from_secs(60), Duration::from_secs(3_600));
        assert!(!copy_is_due(&[0], None, hour, hour, Pressure::High));
        assert!(copy_is_due(&[1], None, Duration::ZERO, hour, Pressure::Low));
        assert!(!copy_is_due(&[7], Some(&[7]), hour, hour, Pressure::Critical));
        assert!(!copy_is_due(&[8], Some(&[7]), minute, hour, Pressure::Low));
        assert!(copy_is_due(&[8], Some(&[7]), hour, hour, Pressure::Low));
        assert!(copy_is_due(&[8], Some(&[7]), minute, hour, Pressure::High));
    }

    #[cfg(feature = "defects")]
    #[test]
    fn purging_past_the_last_copy_would_be_noticed() {
        let one = [entry(1, (100, 90), &[(80, 70)])];
        let safe = || bounds(&one, 0, Pressure::High).is_some_and(|(events, _)| events <= 80);
        assert!(safe());
        defect::activate(Defect::PurgedPastCopy.name()).unwrap();
        assert!(!safe(), "the check would pass with the defect");
        defect::deactivate();
    }
}
