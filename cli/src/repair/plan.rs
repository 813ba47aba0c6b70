//! What is wrong with a lane, and where it goes on. Pure: decides by what was found.

use fieldstream_nats::{RepairedLane, StreamLook};
use fieldstream_shared::partition::PartitionSet;
use fieldstream_shared::read::Checkpoint;
use std::ops::RangeInclusive;

/// Sequences left free behind everything that was ever named.
const GAP: u64 = 1_000;

/// What was found of one lane.
#[derive(Debug, Clone)]
pub(super) struct LaneFound {
    /// Where the most advanced storer stands.
    pub(super) checkpoint: Checkpoint,
    /// INSTRUCTIONS sequence of its lowest cursor.
    pub(super) lowest: u64,
    /// INSTRUCTIONS sequence of its highest cursor.
    pub(super) highest: u64,
    /// EVENTS sequence that the register names for it; `None` if it has no entry of this log.
    pub(super) registered: Option<u64>,
    /// The streams, in the order in which they were asked; `None` if they are not there.
    pub(super) instructions: Option<StreamLook>,
    pub(super) events: Option<StreamLook>,
    /// Hash of the EVENTS message at the storer's position, if it is there.
    pub(super) named: Option<u64>,
    /// What is missing between the first sequence that is needed and the last one there is.
    pub(super) instruction_holes: Vec<RangeInclusive<u64>>,
    pub(super) event_holes: Vec<RangeInclusive<u64>>,
}

fn partitions(checkpoint: &Checkpoint, lane: u16) -> PartitionSet {
    PartitionSet::ALL.on_lane(lane, checkpoint.lanes)
}

/// INSTRUCTIONS sequence of a checkpoint's lowest cursor.
pub(super) fn lowest(checkpoint: &Checkpoint, lane: u16) -> u64 {
    checkpoint.cursors.lowest(&partitions(checkpoint, lane)).map_or(0, |position| position.sequence)
}

/// INSTRUCTIONS sequence of a checkpoint's highest cursor.
pub(super) fn highest(checkpoint: &Checkpoint, lane: u16) -> u64 {
    checkpoint.cursors.highest(&partitions(checkpoint, lane)).map_or(0, |position| position.sequence)
}

/// What is wrong with a lane, one sentence each.
pub(super) fn damage_of(lane: u16, found: &LaneFound) -> Vec<String> {
    let mut damage = Vec::new();
    let at = found.checkpoint.events_sequence;
    match &found.events {
        None => damage.push(format!("EVENTS_{lane} is not there")),
        Some(events) if events.last < at => {
            damage.push(format!("EVENTS_{lane} ends at {}, and the storer has read through {at}", events.last));
        }
        Some(events) if events.first > at && at > 0 && found.checkpoint.events_hash != 0 => {
            // EVENTS is purged below what the register names. If that is not the file, the log ran away
            // from it, and it needs a newer copy: a repair would make what is left useless.
            if let Some(named) = found.registered.map(|named| named.max(at)).filter(|named| events.first > *named) {
                let first = events.first;
                damage.push(format!("EVENTS_{lane} begins at {first}, and the storer's file names message {named}"));
            }
        }
        Some(_) => match found.named {
            Some(hash) if found.checkpoint.events_hash != 0 && hash != found.checkpoint.events_hash => {
                damage.push(format!("EVENTS_{lane} has another message {at} than the storer read"));
            }
            None if at > 0 && found.checkpoint.events_hash != 0 => {
                damage.push(format!("EVENTS_{lane} has lost message {at}"));
            }
            _ => {}
        },
    }
    damage.extend(found.event_holes.iter().map(|hole| format!("EVENTS_{lane} has lost {}", range(hole))));
    match &found.instructions {
        None => damage.push(format!("INSTRUCTIONS_{lane} is not there")),
        Some(instructions) if instructions.last < found.highest => {
            let (last, highest) = (instructions.last, found.highest);
            damage.push(format!("INSTRUCTIONS_{lane} ends at {last}, and events name message {highest}"));
        }
        // INSTRUCTIONS is purged below what the most advanced file needs, also if its storer was forgotten
        // since. Nobody was further than EVENTS goes.
        Some(instructions) if found.lowest > 0 && instructions.first > found.lowest && !has_more(found) => {
            let (first, lowest) = (instructions.first, found.lowest);
            damage.push(format!("INSTRUCTIONS_{lane} begins at {first}, and message {lowest} is still to be read"));
        }
        Some(_) => {}
    }
    let holes = found.instruction_holes.iter();
    damage.extend(holes.map(|hole| format!("INSTRUCTIONS_{lane} has lost {}", range(hole))));
    damage
}

/// Whether EVENTS has something behind the storer's file.
fn has_more(found: &LaneFound) -> bool {
    found.events.as_ref().is_some_and(|events| events.last > found.checkpoint.events_sequence)
}

pub(super) fn range(range: &RangeInclusive<u64>) -> String {
    if range.start() == range.end() {
        format!("message {}", range.start())
    } else {
        format!("messages {} to {}", range.start(), range.end())
    }
}

/// Where a lane goes on: from the storer's state, with the instructions above its lowest cursor, and
/// behind every sequence that anybody may remember.
pub(super) fn decide(found: &LaneFound) -> RepairedLane {
    let last = |stream: &Option<StreamLook>| stream.as_ref().map_or(0, |look| look.last);
    RepairedLane {
        events_sequence: found.checkpoint.events_sequence,
        events_hash: found.checkpoint.events_hash,
        instructions_from: found.lowest.max(1),
        events_first: last(&found.events).max(found.checkpoint.events_sequence) + GAP,
        instructions_first: last(&found.instructions).max(found.highest) + GAP,
    }
}

/// The highest INSTRUCTIONS sequence there was or that was named, when a lane was decided about.
pub(super) fn known(decided: &RepairedLane) -> u64 {
    decided.instructions_first.saturating_sub(GAP)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fieldstream_shared::cursor::{Cursor, Cursors, Position};
    use fieldstream_shared::partition::Partition;

    fn found() -> LaneFound {
        let mut cursors = Cursors::default();
        for p in Partition::all() {
            let position = Position { sequence: if p.0 == 3 { 40 } else { 50 }, records: 0 };
            cursors.set(p, Cursor { position, set_by: None });
        }
        let checkpoint = Checkpoint { log_id: 1, lanes: 1, events_sequence: 60, events_hash: 7, cursors };
        LaneFound {
            lowest: lowest(&checkpoint, 0),
            highest: highest(&checkpoint, 0),
            checkpoint,
            registered: Some(60),
            instructions: Some(StreamLook { first: 30, last: 55, messages: 26 }),
            events: Some(StreamLook { first: 20, last: 62, messages: 43 }),
            named: Some(7),
            instruction_holes: vec![],
            event_holes: vec![],
        }
    }

    #[test]
    fn a_whole_log_is_left_alone_and_damage_is_named() {
        assert_eq!(damage_of(0, &found()), Vec::<String>::new());
        let emptied = Some(StreamLook { first: 61, last: 60, messages: 0 });
        let mut repaired = LaneFound { events: emptied.clone(), named: None, ..found() };
        repaired.checkpoint.events_hash = 0;
        assert_eq!(damage_of(0, &repaired), Vec::<String>::new(), "behind a repair nothing is named");
        let behind = Some(StreamLook { first: 56, last: 55, messages: 0 });
        let cut = Some(StreamLook { first: 20, last: 59, messages: 40 });
        let to_the_end = Some(StreamLook { first: 20, last: 60, messages: 41 });
        let ahead = LaneFound { instructions: behind.clone(), ..found() };
        assert_eq!(damage_of(0, &ahead), Vec::<String>::new(), "purged for a file that was further");
        let purged = Some(StreamLook { first: 90, last: 100, messages: 11 });
        let outrun = LaneFound { events: purged, named: None, registered: Some(95), ..found() };
        assert_eq!(damage_of(0, &outrun), Vec::<String>::new(), "an older copy was put back");
        let forgotten = LaneFound { registered: None, ..outrun.clone() };
        assert_eq!(damage_of(0, &forgotten), Vec::<String>::new(), "nothing was kept for it");
        for (damaged, said) in [
            (
                LaneFound { events: cut, named: None, ..found() },
                "EVENTS_0 ends at 59, and the storer has read through 60",
            ),
            (LaneFound { events: None, named: None, ..found() }, "EVENTS_0 is not there"),
            (
                LaneFound { events: emptied, named: None, ..found() },
                "EVENTS_0 begins at 61, and the storer's file names message 60",
            ),
            (
                LaneFound { registered: Some(89), ..outrun },
                "EVENTS_0 begins at 90, and the storer's file names message 89",
            ),
            (
                LaneFound { instructions: behind, events: to_the_end, ..found() },
                "INSTRUCTIONS_0 begins at 56, and message 40 is still to be read",
            ),
            (LaneFound { named: Some(8), ..found() }, "EVENTS_0 has another message 60 than the storer read"),
            (LaneFound { named: None, ..found() }, "EVENTS_0 has lost message 60"),
            (LaneFound { event_holes: vec![61..=61], ..found() }, "EVENTS_0 has lost message 61"),
            (LaneFound { instruction_holes: vec![51..=53], ..found() }, "INSTRUCTIONS_0 has lost messages 51 to 53"),
            (LaneFound { instructions: None, ..found() }, "INSTRUCTIONS_0 is not there"),
            (
                LaneFound { instructions: Some(StreamLook { first: 30, last: 49, messages: 20 }), ..found() },
                "INSTRUCTIONS_0 ends at 49, and events name message 50",
            ),
        ] {
            assert_eq!(damage_of(0, &damaged), [said]);
        }
    }

    #[test]
    fn a_lane_goes_on_behind_everything_that_anybody_may_remember() {
        let decided = decide(&found());
        assert_eq!((decided.events_sequence, decided.events_hash, decided.instructions_from), (60, 7, 40));
        assert_eq!((decided.events_first, decided.instructions_first), (62 + GAP, 55 + GAP));
        let lost = LaneFound { instructions: None, events: None, ..found() };
        let decided = decide(&lost);
        assert_eq!((decided.events_first, decided.instructions_first), (60 + GAP, 50 + GAP));
    }
}
