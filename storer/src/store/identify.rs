//! Whether a file belongs to the log, and the one way in which it may come to belong to another: the
//! log was repaired from exactly the state the file holds.

use super::error::{StoreError, explain};
use super::{Identity, StoreOptions};
use crate::rows::{CheckpointRow, FORMAT_VERSION, FormatRow};
use crate::tables::{TableError, Tables};
use fieldstream_nats::{RepairRecord, RepairedLane};
use fieldstream_shared::cursor::{Cursor, Cursors, Position};
use fieldstream_shared::msgpack::DecodeError;
use fieldstream_shared::partition::PartitionSet;
use fieldstream_shared::read::Checkpoint;
use std::path::Path;

/// What is known of the relation between a file and the log.
#[derive(Debug, Clone, Copy)]
pub enum Belongs<'a> {
    /// The file must be of the log.
    ToLog,
    /// The file must be of the log, or hold exactly the state that the log was repaired from; then
    /// it takes the log's identity, in one transaction.
    ToLogOrRepaired(&'a RepairRecord),
    /// The file may be of any log: it is only to be read.
    Anywhere,
}

/// Checks that the file belongs to this log, or makes a new one belong to it.
pub(super) fn identify(
    tables: &Tables,
    options: &StoreOptions,
    generation: &Path,
    identity: &Identity,
    belongs: Belongs<'_>,
) -> Result<(u64, Vec<Checkpoint>), StoreError> {
    let fail = |error| explain(error, options, generation);
    let found = tables.read().and_then(|read| read.format()).map_err(fail)?;
    let format = match found {
        Some(format) => format,
        None => create(tables, identity).map_err(fail)?,
    };
    let path = || generation.to_owned();
    if format.lanes != identity.lanes {
        return Err(StoreError::Lanes { path: path(), found: format.lanes, wanted: identity.lanes });
    }
    let rows = checkpoints(tables, format.lanes).map_err(fail)?;
    let found = rows.iter().map(|row| row.checkpoint.log_id).find(|log_id| *log_id != identity.log_id);
    let plain = |rows: Vec<CheckpointRow>| rows.into_iter().map(|row| row.checkpoint).collect();
    let Some(found) = found else { return Ok((format.storer, plain(rows))) };
    let record = match belongs {
        Belongs::Anywhere => return Ok((format.storer, plain(rows))),
        Belongs::ToLogOrRepaired(record) if record.to_log_id == identity.log_id => record,
        _ => return Err(StoreError::Log { path: path(), found, wanted: identity.log_id }),
    };
    if record.from_log_id != found {
        return Err(StoreError::Log { path: path(), found, wanted: identity.log_id });
    }
    let positions: Vec<(u64, u64)> =
        rows.iter().map(|row| (row.checkpoint.events_sequence, row.checkpoint.events_hash)).collect();
    let Some(lanes) = record.lanes_for(found, &positions) else {
        return Err(StoreError::Stale { path: path(), directory: options.directory.clone(), storer: record.storer });
    };
    let adopted = adopt(identity, lanes);
    tables.put_checkpoints(&adopted).map_err(fail)?;
    tracing::info!(
        from = format_args!("{found:016x}"),
        to = format_args!("{:016x}", identity.log_id),
        "the log was repaired from this file's state; the file goes on with it"
    );
    Ok((format.storer, plain(adopted.into_iter().map(|(_, _, row)| row).collect())))
}

fn checkpoints(tables: &Tables, lanes: u16) -> Result<Vec<CheckpointRow>, TableError> {
    let read = tables.read()?;
    let missing = || TableError::Row { database: "meta", error: DecodeError::Expected("a checkpoint of each lane") };
    (0..lanes).map(|lane| read.checkpoint(lane)?.ok_or_else(missing)).collect()
}

/// The checkpoints with which a file goes on behind a repair. All partitions stand at the batch
/// without records with which INSTRUCTIONS begins again.
fn adopt(identity: &Identity, repaired: &[RepairedLane]) -> Vec<(u16, PartitionSet, CheckpointRow)> {
    let Identity { lanes, log_id, now_us, .. } = *identity;
    let adopt = |(lane, repaired): (u16, &RepairedLane)| {
        let partitions = PartitionSet::ALL.on_lane(lane, lanes);
        let mut cursors = Cursors::default();
        let position = Position { sequence: repaired.instructions_first, records: 0 };
        partitions.iter().for_each(|p| cursors.set(p, Cursor { position, set_by: None }));
        let events_sequence = repaired.events_first - 1;
        let row = CheckpointRow {
            checkpoint: Checkpoint { log_id, lanes, events_sequence, events_hash: 0, cursors },
            instructions_sequence: repaired.instructions_first,
            instructions_hash: None,
            committed_at_us: now_us,
        };
        (lane, partitions, row)
    };
    (0..lanes).zip(repaired).map(adopt).collect()
}

fn create(tables: &Tables, identity: &Identity) -> Result<FormatRow, TableError> {
    let Identity { lanes, log_id, new_storer, now_us } = *identity;
    let format = FormatRow { version: FORMAT_VERSION, lanes, storer: new_storer, created_at_us: now_us };
    let checkpoint = Checkpoint { log_id, lanes, events_sequence: 0, events_hash: 0, cursors: Cursors::default() };
    let row = CheckpointRow { checkpoint, instructions_sequence: 0, instructions_hash: None, committed_at_us: now_us };
    tables.initialise(&format, &vec![row; usize::from(lanes)])?;
    Ok(format)
}
