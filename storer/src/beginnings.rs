//! Whether the streams begin where a purge can have left them. What is missing beyond that was lost: to
//! a reader both look alike, but after a purge a copy helps, and after a loss only a repair.

use crate::service::StorerError;
use crate::store::Store;
use crate::upkeep::marks_of;
use fieldstream_nats::{Connection, LaneMarks, Log, LogError, NatsError, StorerRegister, StreamState, stream_state};
use fieldstream_shared::read::Checkpoint;

/// A lane's streams as they were at a moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    instructions_first: u64,
    events_first: u64,
    events_last: u64,
}

/// Looks at the streams of all lanes.
///
/// # Errors
/// [`NatsError`] if they cannot be asked.
pub(crate) async fn look(connection: &Connection, lanes: u16) -> Result<Vec<Seen>, NatsError> {
    let mut seen = Vec::new();
    for lane in 0..lanes {
        // INSTRUCTIONS first: whoever it was purged for had at most what EVENTS has afterwards.
        let instructions = state(connection, Log::Instructions, lane).await?;
        let events = state(connection, Log::Events, lane).await?;
        let (instructions_first, events_first, events_last) = (instructions.first, events.first, events.last);
        seen.push(Seen { instructions_first, events_first, events_last });
    }
    Ok(seen)
}

/// A stream's state; all 0 if it is not there, which its readers find.
async fn state(connection: &Connection, log: Log, lane: u16) -> Result<StreamState, NatsError> {
    match stream_state(connection, log, lane).await {
        Err(NatsError::StreamGone { .. }) => Ok(StreamState::default()),
        other => other,
    }
}

/// Compares what was seen with what the storer's file and the register say now: both only grow, so
/// that they bound every purge before. False if the file must first come to where EVENTS ended then.
///
/// # Errors
/// [`LogError::Hole`] if a stream begins behind what nobody can have purged.
pub(crate) async fn check(connection: &Connection, store: &Store, seen: &[Seen]) -> Result<bool, StorerError> {
    let checkpoints = store.checkpoints_now().map_err(|error| store.explain(error))?;
    let log_id = checkpoints.first().map(|checkpoint| checkpoint.log_id);
    let entries = StorerRegister::open(connection).await?.list().await?;
    let is_own = |entry: &&fieldstream_nats::StorerEntry| {
        entry.storer == store.storer() && !entry.temporary && Some(entry.log_id) == log_id
    };
    let own = entries.iter().find(is_own);
    let mut is_whole = true;
    for ((lane, checkpoint), seen) in (0..).zip(&checkpoints).zip(seen) {
        let registered = own.and_then(|entry| entry.lanes.get(usize::from(lane)));
        is_whole &= judge(lane, checkpoint, registered, seen)?;
    }
    Ok(is_whole)
}

fn judge(lane: u16, checkpoint: &Checkpoint, registered: Option<&LaneMarks>, seen: &Seen) -> Result<bool, LogError> {
    let own = marks_of(checkpoint, lane);
    // Without an entry this file was waited for by nobody. One that was put back from an older copy
    // was waited for only where the file before it stood: then the log ran away from it.
    let named = registered.map_or(0, |marks| marks.events_sequence.max(own.events_sequence));
    let named = if checkpoint.events_hash == 0 { 0 } else { named };
    // INSTRUCTIONS is purged below what the most advanced file needs, which may have been forgotten
    // since. Nobody was further than EVENTS, so from its end on this file needs no less.
    let has_caught_up = seen.events_last <= own.events_sequence;
    let needed = if has_caught_up { own.instructions_lowest } else { 0 };
    for (log, needed, found) in
        [(Log::Events, named, seen.events_first), (Log::Instructions, needed, seen.instructions_first)]
    {
        if needed > 0 && found > needed {
            return Err(LogError::Hole { stream: log.stream(lane), expected: needed, found });
        }
    }
    Ok(has_caught_up)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fieldstream_shared::cursor::{Cursor, Cursors, Position};
    use fieldstream_shared::partition::Partition;

    fn checkpoint(events_sequence: u64, lowest: u64) -> Checkpoint {
        let mut cursors = Cursors::default();
        let position = Position { sequence: lowest, records: 0 };
        Partition::all().for_each(|p| cursors.set(p, Cursor { position, set_by: None }));
        Checkpoint { log_id: 1, lanes: 1, events_sequence, events_hash: 7, cursors }
    }

    fn judged(registered: Option<u64>, seen: (u64, u64, u64)) -> Option<bool> {
        let registered = registered.map(|at| LaneMarks { events_sequence: at, instructions_lowest: at - 50 });
        let (instructions_first, events_first, events_last) = seen;
        let seen = Seen { instructions_first, events_first, events_last };
        judge(0, &checkpoint(500, 450), registered.as_ref(), &seen).ok()
    }

    #[test]
    fn a_purge_for_a_file_that_was_further_is_no_damage_and_what_was_lost_is() {
        assert_eq!(judged(Some(500), (400, 300, 500)), Some(true));
        assert_eq!(judged(Some(500), (850, 300, 1_000)), Some(false), "purged for one that was at 1,000");
        assert_eq!(judged(Some(500), (450, 300, 500)), Some(true));
        assert_eq!(judged(Some(500), (451, 300, 500)), None, "nobody was further");
        assert_eq!(judged(Some(500), (400, 501, 1_000)), None, "EVENTS was kept for it");
        assert_eq!(judged(None, (400, 501, 1_000)), Some(false), "nothing was kept for one that is not registered");
        assert_eq!(judged(Some(1_000), (400, 950, 1_000)), Some(false), "an older copy was put back");
        assert_eq!(judged(Some(1_000), (400, 1_001, 1_000)), None, "also for that, this was lost");
    }
}
