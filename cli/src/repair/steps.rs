//! The steps of a repair. Each may be taken again, and is begun only by the process that has the claim.

use super::look::{OtherFiles, checkpoints_of, look};
use super::plan::{self, decide};
use super::{HOLES_MAX, failed};
use crate::exit::Failure;
use fieldstream_nats::{
    Claim, Connection, LaneLoss, Log, NatsError, ReadClient, RepairRecord, RepairState, Topology, Workshop,
};
use fieldstream_shared::read::Checkpoint;
use fieldstream_shared::record::{BatchBuilder, decode_batch};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Once nobody writes any more, storers must stand still for so long.
const STILL: Duration = Duration::from_millis(1_500);

/// Repairs the log, or continues a repair that was begun.
///
/// # Errors
/// If a step cannot be taken; the next call continues there.
pub(crate) async fn repair(connection: &Connection, others: OtherFiles) -> Result<RepairRecord, Failure> {
    let workshop = Workshop::new(connection);
    let mut claim = match Claim::take_over(connection).await.map_err(failed)? {
        Some(claim) => claim,
        None => begin(connection, others).await?,
    };
    loop {
        match claim.record.state {
            RepairState::Closing => close_and_decide(connection, &workshop, &mut claim, others).await?,
            RepairState::Copying => copy(connection, &workshop, &mut claim).await?,
            RepairState::Moving => move_ahead(&workshop, &mut claim).await.map_err(failed)?,
            RepairState::Opening => open(&workshop, &mut claim).await.map_err(failed)?,
            RepairState::Done => return Ok(claim.record),
        }
    }
}

async fn begin(connection: &Connection, others: OtherFiles) -> Result<Claim, Failure> {
    let found = look(connection, others).await?;
    found.must_fit()?;
    let begun_us = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64);
    let record = RepairRecord {
        state: RepairState::Closing,
        from_log_id: found.source.log_id,
        to_log_id: rand::random(),
        storer: found.source.storer,
        begun_us,
        lanes: Vec::new(),
        losses: Vec::new(),
    };
    Claim::begin(connection, record).await.map_err(failed)
}

/// Nobody writes from here on; once the storers stand still, what they have is what counts.
async fn close_and_decide(
    connection: &Connection,
    workshop: &Workshop,
    claim: &mut Claim,
    others: OtherFiles,
) -> Result<(), Failure> {
    let topology = Topology::load(connection).await.map_err(failed)?;
    for lane in 0..topology.lanes {
        claim.check().await.map_err(failed)?;
        workshop.close(lane, topology.stream_bytes).await.map_err(failed)?;
    }
    let others = OtherFiles { begun_from: Some(claim.record.from_log_id), ..others };
    let mut found = look(connection, others).await?;
    loop {
        tokio::time::sleep(STILL).await;
        let again = look(connection, others).await?;
        let still = again.source.checkpoints == found.source.checkpoints;
        found = again;
        if still {
            break;
        }
    }
    found.must_fit()?;
    (claim.record.storer, claim.record.from_log_id) = (found.source.storer, found.source.log_id);
    claim.record.lanes = found.lanes.iter().map(decide).collect();
    claim.record.state = RepairState::Copying;
    claim.save().await.map_err(failed)
}

async fn copy(connection: &Connection, workshop: &Workshop, claim: &mut Claim) -> Result<(), Failure> {
    claim.record.losses = put_aside(workshop, claim).await.map_err(failed)?;
    // A commit that took longer than storers were waited for: nobody would have a file that fits.
    claim.record.state = if is_still_there(connection, &claim.record).await.map_err(failed)? {
        RepairState::Moving
    } else {
        tracing::warn!(
            storer = format_args!("{:016x}", claim.record.storer),
            "the storer that the log was to go on from stands elsewhere now, or is gone; it is decided anew"
        );
        RepairState::Closing
    };
    claim.save().await.map_err(failed)
}

/// Whether the source storer's file is exactly what was decided.
async fn is_still_there(connection: &Connection, record: &RepairRecord) -> Result<bool, NatsError> {
    let reads = ReadClient::new(connection).await?;
    let checkpoints = checkpoints_of(&reads, record.storer, record.lanes.len() as u16).await;
    Ok(is_decided(record, &checkpoints))
}

fn is_decided(record: &RepairRecord, checkpoints: &[Checkpoint]) -> bool {
    let positions: Vec<(u64, u64)> = checkpoints.iter().map(|c| (c.events_sequence, c.events_hash)).collect();
    let log_id = checkpoints.first().map_or(0, |checkpoint| checkpoint.log_id);
    RepairRecord { state: RepairState::Done, ..record.clone() }.lanes_for(log_id, &positions).is_some()
}

async fn put_aside(workshop: &Workshop, claim: &Claim) -> Result<Vec<LaneLoss>, NatsError> {
    let mut losses = Vec::new();
    for (lane, decided) in (0..).zip(&claim.record.lanes) {
        let events = workshop.look(Log::Events, lane).await?.unwrap_or_default();
        let instructions = workshop.look(Log::Instructions, lane).await?.unwrap_or_default();
        let mut records_again = 0;
        let count =
            |message: &bytes::Bytes| records_again += decode_batch(message).map_or(0, |records| records.len() as u64);
        claim.check().await?;
        let copied = workshop.put_aside(lane, decided.instructions_from, count).await?;
        let missing = copied.missing.iter().map(|gap| (*gap.start(), *gap.end())).take(HOLES_MAX).collect();
        losses.push(LaneLoss {
            events_last: events.last,
            events_unusable: events.last.saturating_sub(decided.events_sequence),
            instructions_last: instructions.last,
            instructions_known: plan::known(decided),
            instructions_missing: missing,
            messages_again: copied.messages,
            records_again,
        });
    }
    Ok(losses)
}

async fn move_ahead(workshop: &Workshop, claim: &mut Claim) -> Result<(), NatsError> {
    for (lane, decided) in (0..).zip(&claim.record.lanes) {
        claim.check().await?;
        workshop.move_ahead(Log::Instructions, lane, decided.instructions_first).await?;
        workshop.move_ahead(Log::Events, lane, decided.events_first).await?;
        let marker = BatchBuilder::default().finish().into();
        workshop.log_again(lane, decided.instructions_first, marker).await?;
    }
    claim.check().await?;
    workshop.set_log_id(claim.record.to_log_id).await?;
    claim.record.state = RepairState::Opening;
    claim.save().await
}

/// From here on gateways may write; nothing is moved any more.
async fn open(workshop: &Workshop, claim: &mut Claim) -> Result<(), NatsError> {
    for lane in 0..claim.record.lanes.len() as u16 {
        claim.check().await?;
        workshop.open(lane).await?;
        workshop.discard_aside(lane).await?;
    }
    claim.record.state = RepairState::Done;
    claim.save().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use fieldstream_nats::RepairedLane;
    use fieldstream_shared::cursor::Cursors;

    #[test]
    fn only_a_file_that_is_exactly_what_was_decided_is_gone_on_from() {
        let lane = RepairedLane {
            events_sequence: 7,
            events_hash: 70,
            instructions_from: 3,
            events_first: 1_000,
            instructions_first: 2_000,
        };
        let record = RepairRecord {
            state: RepairState::Copying,
            from_log_id: 1,
            to_log_id: 2,
            storer: 3,
            begun_us: 4,
            lanes: vec![lane],
            losses: vec![],
        };
        let at = |log_id, events_sequence| {
            [Checkpoint { log_id, lanes: 1, events_sequence, events_hash: 70, cursors: Cursors::default() }]
        };
        assert!(is_decided(&record, &at(1, 7)));
        assert!(!is_decided(&record, &at(1, 8)) && !is_decided(&record, &at(2, 7)) && !is_decided(&record, &[]));
    }
}
