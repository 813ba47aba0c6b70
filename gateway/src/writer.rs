//! The task that writes one lane's batches to INSTRUCTIONS.

use crate::error::GatewayError;
use crate::lane::AfterFailure;
use crate::mailbox::Wakes;
use crate::shared::Shared;
use bytes::Bytes;
use fieldstream_nats::{BatchWriter, Connection, Log, NatsError, WriteError, WriteTrouble, last_sequence};
use std::sync::Arc;
use std::time::Duration;

/// Writes until the gateway stops or the log is found to be damaged.
pub(crate) async fn write_lane(shared: Arc<Shared>, lane: u16, connection: Connection) {
    let writer = BatchWriter::new(&connection, Log::Instructions, lane);
    let work = async {
        let mut acknowledged = 0;
        loop {
            let batch = {
                let mut queue = shared.lanes[usize::from(lane)].queue();
                queue.take_batch(shared.now_ms()).map(|message| (message, queue.flight()))
            };
            match batch {
                Some(batch) => {
                    let landed = land(&shared, lane, &connection, &writer, acknowledged, batch).await?;
                    acknowledged = landed.unwrap_or(acknowledged);
                }
                None => shared.lanes[usize::from(lane)].work.notified().await,
            }
        }
    };
    let result: Result<(), GatewayError> = tokio::select! {
        () = shared.stopped.cancelled() => Ok(()),
        result = work => result,
    };
    if let Err(error) = result {
        shared.fail(error);
    }
}

/// Sends one batch until it is in the log, and gives its sequence, or until it must be given up.
/// `acknowledged` is the sequence of the one before.
async fn land(
    shared: &Shared,
    lane: u16,
    connection: &Connection,
    writer: &BatchWriter,
    acknowledged: u64,
    (batch, (since_us, records)): (Bytes, (u64, u64)),
) -> Result<Option<u64>, GatewayError> {
    let this = &shared.lanes[usize::from(lane)];
    let published_us = shared.traces.clock.now_us();
    shared.traces.published((since_us, records), published_us);
    let mut must_look = false;
    let mut trouble = WriteTrouble::new(&shared.health, Log::Instructions, lane);
    loop {
        // Taken before the attempt: what the log gives a new message lies above everything that
        // events name and above what this gateway has told its clients to be logged.
        let known = this.step(|hub, _| hub.highest_cursor()).max(acknowledged);
        let failure = if must_look && let Err(error) = look(connection, lane, known).await? {
            trouble.failed(&WriteError::Disconnected);
            error
        } else {
            match writer.append(batch.clone()).await {
                Ok(last) if last <= known => return Err(GatewayError::WentBackwards { lane, last, known }),
                Ok(last) => {
                    // Dropped after the queue's lock, and that is when the sessions are woken.
                    let mut wakes = Wakes::default();
                    let traced = this.queue().acknowledged(&mut wakes);
                    shared.traces.logged(traced, records, published_us, &mut wakes);
                    trouble.over();
                    return Ok(Some(last));
                }
                Err(error) => {
                    trouble.failed(&error);
                    trouble.look(writer).await?;
                    error.to_string()
                }
            }
        };
        must_look = true;
        let mut wakes = Wakes::default();
        let after = this.queue().failed(shared.now_ms(), &mut wakes);
        drop(wakes);
        match after {
            AfterFailure::RetryIn(ms) => {
                tracing::warn!(lane, reason = %failure, retry_ms = ms, "instructions could not be logged yet");
                tokio::time::sleep(Duration::from_millis(ms)).await;
            }
            AfterFailure::GivenUp => {
                tracing::error!(lane, reason = %failure, "a batch of instructions was given up; its clients send again");
                return Ok(None);
            }
        }
    }
}

/// Looks whether the log still has everything that events speak of. The inner error is a failure
/// to find out.
pub(crate) async fn look(connection: &Connection, lane: u16, known: u64) -> Result<Result<(), String>, GatewayError> {
    match last_sequence(connection, Log::Instructions, lane).await {
        Ok(last) if last < known => Err(GatewayError::WentBackwards { lane, last, known }),
        Ok(_) => Ok(Ok(())),
        Err(error @ NatsError::StreamGone { .. }) if known > 0 => Err(error.into()),
        Err(error) => Ok(Err(error.to_string())),
    }
}
