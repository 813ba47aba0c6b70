//! Whether the streams begin where a purge can have left them. What is missing beyond that was lost: to
//! a reader both look alike, but after a purge a copy helps, and after a loss only a repair.

use crate::service::StorerError;
use crate::store::Store;
use crate::upkeep::marks_of;
use fieldstream_nats::{Connection, Log, LogError, NatsError, StorerRegister, first_sequence};

/// Checks the streams of all lanes against what a storer's file and the register say.
///
/// # Errors
/// [`LogError::Hole`] if a stream begins behind what nobody can have purged.
pub(crate) async fn check(connection: &Connection, store: &Store) -> Result<(), StorerError> {
    // Asked first: files and entries only grow, so what they say afterwards bounds every purge before.
    let mut firsts = Vec::new();
    for lane in 0..store.checkpoints().len() as u16 {
        firsts.push((first(connection, Log::Events, lane).await?, first(connection, Log::Instructions, lane).await?));
    }
    let checkpoints = store.checkpoints_now().map_err(|error| store.explain(error))?;
    let mut entries = StorerRegister::open(connection).await?.list().await?;
    entries.retain(|entry| checkpoints.first().is_some_and(|checkpoint| checkpoint.log_id == entry.log_id));
    // Without an entry this file was waited for by nobody.
    let is_registered = entries.iter().any(|entry| entry.storer == store.storer() && !entry.temporary);
    for ((lane, checkpoint), (events, instructions)) in (0..).zip(&checkpoints).zip(firsts) {
        let own = marks_of(checkpoint, lane);
        let registered = entries.iter().filter_map(|entry| entry.lanes.get(usize::from(lane)));
        // Purged is below what the most advanced file still needs.
        let needed = registered.map(|marks| marks.instructions_lowest).fold(own.instructions_lowest, u64::max);
        let named = if is_registered && checkpoint.events_hash != 0 { own.events_sequence } else { 0 };
        for (log, needed, found) in [(Log::Events, named, events), (Log::Instructions, needed, instructions)] {
            if needed > 0 && found > needed {
                return Err(LogError::Hole { stream: log.stream(lane), expected: needed, found }.into());
            }
        }
    }
    Ok(())
}

/// Where a stream begins; 0 if it is not there, which its readers find.
async fn first(connection: &Connection, log: Log, lane: u16) -> Result<u64, NatsError> {
    match first_sequence(connection, log, lane).await {
        Err(NatsError::StreamGone { .. }) => Ok(0),
        other => other,
    }
}
