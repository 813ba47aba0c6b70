//! What was found and done, for people.

use super::look::Found;
use super::plan;
use fieldstream_nats::RepairRecord;
use std::fmt::Write as _;

/// What was found.
pub(super) fn found(found: &Found, damage: &[String]) -> String {
    let mut text = String::new();
    if damage.is_empty() {
        let _ = writeln!(text, "the log is whole");
        return text;
    }
    let _ = writeln!(text, "the log is damaged:");
    for what in damage {
        let _ = writeln!(text, "  - {what}");
    }
    let _ = writeln!(text, "a repair goes on from the file of storer {:016x}:", found.source.storer);
    for (lane, found) in found.lanes.iter().enumerate() {
        let at = found.checkpoint.events_sequence;
        let unusable = found.events.as_ref().map_or(0, |events| events.last.saturating_sub(at));
        let _ = writeln!(
            text,
            "  lane {lane}: state as of message {at} of EVENTS; {unusable} messages behind it are decided anew; \
             INSTRUCTIONS from message {} on are logged again, as far as they are there",
            found.lowest.max(1),
        );
    }
    text
}

/// What a repair did, and what it could not keep.
pub(super) fn repaired(record: &RepairRecord) -> String {
    let mut text = format!("the log is repaired; it is log {:016x} now\n", record.to_log_id);
    for (lane, loss) in record.losses.iter().enumerate() {
        let _ = writeln!(
            text,
            "  lane {lane}: {} instructions in {} messages logged again; {} messages of EVENTS decided anew",
            loss.records_again, loss.messages_again, loss.events_unusable,
        );
        let missing = &loss.instructions_missing;
        if missing.is_empty() && loss.instructions_last >= loss.instructions_known {
            let _ = writeln!(text, "    no instruction is known to be lost");
        }
        for (from, to) in missing {
            let _ = writeln!(text, "    lost: {} of INSTRUCTIONS", plan::range(&(*from..=*to)));
        }
        if loss.instructions_last < loss.instructions_known {
            let (last, known) = (loss.instructions_last, loss.instructions_known);
            let _ = writeln!(
                text,
                "    INSTRUCTIONS ended at {last} and {known} was known: what was behind it and is not in the storer's \
                 file is lost"
            );
        }
    }
    let _ = writeln!(text, "gateways and processors start again from that storer; clients get fresh snapshots");
    text
}
