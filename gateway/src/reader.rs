//! The tasks that read EVENTS and the storers' progress into the hub.

use crate::error::GatewayError;
use crate::shared::Shared;
use fieldstream_nats::{
    Connection, Finding, Health, Log, LogError, LogMessage, LogReader, ProgressReader, ReadClient, Severity, Start,
    Topology, first_sequence,
};
use fieldstream_shared::cursor::Cursors;
use fieldstream_shared::read::{AnswerBody, Query, Request};
use futures::FutureExt as _;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long to ask for a storer's checkpoint before the log is read from its beginning.
const CHECKPOINT_WAIT: Duration = Duration::from_secs(1);

/// What one round of the fan-out takes in at most.
const GATHER_MESSAGES_MAX: usize = 64;
const GATHER_BYTES_MAX: usize = 4 << 20;
/// From so many sessions on that one round wakes, the next round may wait.
const REST_FROM_SESSIONS: usize = 64;
/// About what it costs to deliver a frame when nothing is joined.
const REST_PER_FRAME: Duration = Duration::from_micros(8);
const REST_MAX: Duration = Duration::from_millis(30);

/// Code of the finding that a storer is waited for.
const NO_STORER: &str = "no-storer";

/// Where a lane's reader begins.
#[derive(Debug)]
pub(crate) struct ReadFrom {
    pub(crate) start: Start,
    pub(crate) cursors: Cursors,
}

/// Asks for a storer's checkpoint; without one, the beginning of the log.
/// A log that was purged has no beginning: then a storer is waited for.
pub(crate) async fn read_from(
    (reads, connection): (&ReadClient, &Connection),
    topology: &Topology,
    lane: u16,
    health: &Health,
) -> Result<ReadFrom, GatewayError> {
    loop {
        if let Some(found) = ask_storers(reads, topology, lane).await? {
            health.clear(NO_STORER);
            return Ok(found);
        }
        if first_sequence(connection, Log::Events, lane).await? <= 1 {
            break;
        }
        let message = format!("no storer answers, and the events log of lane {lane} has no beginning any more");
        let mend = "start a storer; the gateway goes on by itself";
        health.raise(Finding::new(NO_STORER, Severity::Blocking, message, mend));
    }
    tracing::info!(lane, "no storer has a checkpoint; reading the events log from its beginning");
    Ok(ReadFrom { start: Start { sequence: 0, hash: None }, cursors: Cursors::default() })
}

async fn ask_storers(reads: &ReadClient, topology: &Topology, lane: u16) -> Result<Option<ReadFrom>, GatewayError> {
    let request = Request { lane, min_sequence: 0, query: Query::Checkpoint };
    let deadline = Instant::now() + CHECKPOINT_WAIT;
    // Any storer may answer, and beside one of another log there may be one of this.
    let mut other = None;
    while Instant::now() < deadline {
        match reads.request(&request, CHECKPOINT_WAIT / 4).await {
            Ok(answer) => {
                if let AnswerBody::Checkpoint(checkpoint) = answer.body {
                    if (checkpoint.log_id, checkpoint.lanes) == (topology.log_id, topology.lanes) {
                        let hash = (checkpoint.events_sequence > 0).then_some(checkpoint.events_hash);
                        let start = Start { sequence: checkpoint.events_sequence, hash };
                        return Ok(Some(ReadFrom { start, cursors: checkpoint.cursors }));
                    }
                    other = Some(GatewayError::OtherLog {
                        found: checkpoint.log_id,
                        found_lanes: checkpoint.lanes,
                        wanted: topology.log_id,
                        wanted_lanes: topology.lanes,
                    });
                }
            }
            Err(error) => tracing::debug!(lane, %error, "no checkpoint yet"),
        }
        sleep(CHECKPOINT_WAIT / 10).await;
    }
    other.map_or(Ok(None), Err)
}

/// Reads one lane's EVENTS until the gateway stops or the log cannot be read on.
pub(crate) async fn read_lane(shared: Arc<Shared>, lane: u16, reader: LogReader) {
    tokio::select! {
        () = shared.stopped.cancelled() => {}
        error = read(&shared, lane, reader) => shared.fail(error),
    }
}

async fn read(shared: &Shared, lane: u16, mut reader: LogReader) -> GatewayError {
    let this = &shared.lanes[usize::from(lane)];
    loop {
        let mut messages = Vec::new();
        let gathered = gather(&mut reader, &mut messages).await;
        let begun = Instant::now();
        let read_us = shared.traces.clock.now_us();
        let (result, rest) = this.step(|hub, effects| {
            let clients = shared.clients.read().unwrap_or_else(PoisonError::into_inner);
            let result = messages.iter().try_for_each(|message| {
                let handled = hub.handle_batch(message.sequence, &message.payload, &clients, effects);
                handled.map_err(|source| GatewayError::Undecodable { lane, sequence: message.sequence, source })
            });
            shared.traces.event(&mut effects.traced, &mut effects.wakes, read_us);
            (result, rest_after(effects.wakes.posted(), effects.wakes.len(), clients.len()))
        });
        if let Err(error) = result.and_then(|()| Ok(gathered?)) {
            return error;
        }
        if !rest.is_zero() {
            tokio::time::sleep_until(begun + rest).await;
        }
    }
}

/// The next message, and what is there already behind it: sessions are woken once for all of it.
async fn gather(reader: &mut LogReader, messages: &mut Vec<LogMessage>) -> Result<(), LogError> {
    let mut next = Some(reader.next().await);
    let mut bytes = 0;
    while let Some(message) = next {
        let message = message?;
        bytes += message.payload.len();
        messages.push(message);
        let is_enough = messages.len() >= GATHER_MESSAGES_MAX || bytes >= GATHER_BYTES_MAX;
        next = if is_enough { None } else { reader.next().now_or_never() };
    }
    Ok(())
}

/// How long the fan-out rests behind a round that put so many frames into the outboxes of so many
/// sessions of so many clients.
///
/// Each session costs a system call, however much it gets. When a round wakes a good part of all
/// clients, the next one wakes mostly the same ones: after a rest each of them gets more with one call.
/// Otherwise a rest would spare nothing. It is in proportion to the frames, hence to the load: below
/// what the machine carries, rounds rest for a moment; above it, each rest makes the next round larger,
/// up to the longest rest.
fn rest_after(frames: usize, woken: usize, clients: usize) -> Duration {
    if woken < REST_FROM_SESSIONS || woken * 4 < clients {
        return Duration::ZERO;
    }
    (REST_PER_FRAME * u32::try_from(frames).unwrap_or(u32::MAX)).min(REST_MAX)
}

/// Follows the storers' progress until the gateway stops.
pub(crate) async fn read_progress(shared: Arc<Shared>, mut reader: ProgressReader) {
    let follow = async {
        while let Some(progress) = reader.next().await {
            if let Some(lane) = shared.lanes.get(usize::from(progress.lane)) {
                lane.step(|hub, effects| hub.handle_progress(&progress, effects));
            }
        }
    };
    tokio::select! {
        () = shared.stopped.cancelled() => {}
        () = follow => shared.fail(GatewayError::Ended("the storers' progress")),
    }
}
