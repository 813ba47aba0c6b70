//! Drives one lane's core: feeds it both logs and the storers' answers, publishes what it builds.

use crate::lane::{Lane, LaneOptions, LaneStatus, Load};
use crate::service::{ProcessorError, ProcessorOptions};
use crate::timing::{Hops, Way};
use bytes::Bytes;
use fieldstream_nats::{
    BatchWriter, Connection, Finding, Health, Log, LogError, LogMessage, LogPump, LogReader, ReadClient, ReadError,
    Severity, Start, Topology, WriteTrouble, first_sequence, last_sequence,
};
use fieldstream_shared::cursor::Cursors;
use fieldstream_shared::partition::PartitionSet;
use fieldstream_shared::read::{Answer, AnswerBody, Checkpoint, Progress, Query, Request};
use std::time::Duration;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What a lane's worker works with.
pub(crate) struct Worker {
    pub(crate) lane: u16,
    pub(crate) topology: Topology,
    pub(crate) publish: Connection,
    pub(crate) consume: Connection,
    pub(crate) reads: ReadClient,
    pub(crate) progress: broadcast::Receiver<Progress>,
    pub(crate) owned: watch::Receiver<PartitionSet>,
    pub(crate) options: ProcessorOptions,
    pub(crate) stop: CancellationToken,
    pub(crate) status: watch::Sender<LaneStatus>,
    pub(crate) hops: Hops,
}

/// A storer that is starting may take this long to answer; without one, the whole log is read.
const CHECKPOINT_WAIT: Duration = Duration::from_secs(2);
const READ_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(500);

/// Code of the finding that a storer is waited for.
const NO_STORER: &str = "no-storer";

type LoadResult = (u64, Result<Answer, ReadError>);

pub(crate) async fn run(mut worker: Worker) -> Result<(), ProcessorError> {
    let stop = worker.stop.clone();
    let Some(checkpoint) = stop.run_until_cancelled(worker.checkpoint()).await else { return Ok(()) };
    let checkpoint = checkpoint?;
    let lanes = worker.topology.lanes;
    let catch_up_to = last_sequence(&worker.consume, Log::Events, worker.lane).await?;
    let start = Start {
        sequence: checkpoint.events_sequence,
        hash: (checkpoint.events_sequence > 0).then_some(checkpoint.events_hash),
    };
    let mut lane = Lane::new(LaneOptions {
        lane: worker.lane,
        lanes,
        incarnation: rand::random(),
        registry: worker.options.registry.clone(),
        cache_bytes_max: worker.options.cache_bytes_max / usize::from(lanes),
        pinned_bytes_max: worker.options.pinned_bytes_max / usize::from(lanes),
        events_sequence: checkpoint.events_sequence,
        cursors: checkpoint.cursors,
        catch_up_to,
    });
    lane.handle_progress(checkpoint.events_sequence);
    lane.handle_owned(*worker.owned.borrow_and_update());
    let events = LogReader::open(&worker.consume, Log::Events, worker.lane, start).await?;
    worker.drive(lane, events.pump()).await
}

impl Worker {
    /// Where reading starts: a storer's checkpoint, or the beginning of an unpurged log.
    async fn checkpoint(&self) -> Result<Checkpoint, ProcessorError> {
        let request = Request { lane: self.lane, min_sequence: 0, query: Query::Checkpoint };
        loop {
            if let Some(found) = self.ask_storers(&request).await? {
                self.options.health.clear(NO_STORER);
                return Ok(found);
            }
            if first_sequence(&self.consume, Log::Events, self.lane).await? <= 1 {
                break;
            }
            let what = format!("no storer answers, and the events log of lane {} has no beginning any more", self.lane);
            let mend = "start a storer; the processor goes on by itself";
            self.options.health.raise(Finding::new(NO_STORER, Severity::Blocking, what, mend));
        }
        tracing::info!(lane = self.lane, "no storer answers; the event log is read from its beginning");
        let (log_id, lanes) = (self.topology.log_id, self.topology.lanes);
        Ok(Checkpoint { log_id, lanes, events_sequence: 0, events_hash: 0, cursors: Cursors::default() })
    }

    async fn ask_storers(&self, request: &Request) -> Result<Option<Checkpoint>, ProcessorError> {
        let deadline = Instant::now() + CHECKPOINT_WAIT;
        // Any storer may answer, and beside one of another log there may be one of this.
        let mut other = None;
        while Instant::now() < deadline {
            if let Ok(Answer { body: AnswerBody::Checkpoint(found), .. }) =
                self.reads.request(request, CHECKPOINT_WAIT).await
            {
                let (log_id, lanes) = (self.topology.log_id, self.topology.lanes);
                if (found.log_id, found.lanes) == (log_id, lanes) {
                    return Ok(Some(*found));
                }
                other = Some(ProcessorError::OtherLog { found: found.log_id, found_lanes: found.lanes, log_id, lanes });
            }
            tokio::time::sleep(RETRY).await;
        }
        other.map_or(Ok(None), Err)
    }

    /// Applying that waits for storers is said: nothing else shows it but latency.
    fn tell_of_pause(&self, paused: bool) {
        let code = format!("storers-behind-{}", self.lane);
        if paused {
            let message = format!("lane {}: nothing is applied, because too much of it is not stored yet", self.lane);
            let mend = "see that a storer runs and has disk space; raise processor.pinned_bytes_max if it only lags";
            self.options.health.raise(Finding::new(&code, Severity::Blocking, message, mend));
        } else {
            self.options.health.clear(&code);
        }
    }

    async fn drive(&mut self, mut lane: Lane, mut events: LogPump) -> Result<(), ProcessorError> {
        let writer = BatchWriter::new(&self.publish, Log::Events, self.lane);
        let mut instructions: Option<LogPump> = None;
        let mut loads: JoinSet<LoadResult> = JoinSet::new();
        let mut publishing: JoinSet<Result<(), ProcessorError>> = JoinSet::new();
        let mut tick = tokio::time::interval(TICK);
        let begun = Instant::now();
        loop {
            if let Some(from) = lane.poll_read_from() {
                let start = Start { sequence: from - 1, hash: None };
                let reader = LogReader::open(&self.consume, Log::Instructions, self.lane, start).await?;
                instructions = Some(reader.pump());
            }
            if publishing.is_empty() {
                if self.stop.is_cancelled() {
                    return Ok(());
                }
                if let Some(built) = lane.poll_batch(begun.elapsed().as_millis() as u64)? {
                    let (read, health) = (lane.events_sequence(), self.options.health.clone());
                    let way = self.hops.applied(built.events, built.timing);
                    let built = (built.message, way, self.hops.clone());
                    publishing.spawn(publish(writer.clone(), built, (self.lane, read), health));
                }
            }
            // Behind applying: what records were found to wait for is asked for now.
            while let Some(load) = lane.poll_load() {
                loads.spawn(ask(self.reads.clone(), load));
            }
            tokio::select! {
                message = events.next() => {
                    let LogMessage { sequence, payload, .. } = message?;
                    lane.handle_events(sequence, &payload)?;
                }
                message = next(&mut instructions), if lane.wants_instructions() => {
                    let LogMessage { sequence, payload, .. } = message?;
                    lane.handle_instructions(sequence, &payload, self.hops.now_us())?;
                }
                Some(loaded) = loads.join_next() => match loaded {
                    Ok((id, Ok(answer))) => lane.handle_loaded(id, answer),
                    Ok((id, Err(error))) => {
                        tracing::debug!(lane = self.lane, %error, "loading again");
                        lane.handle_load_failed(id);
                    }
                    Err(error) => return Err(ProcessorError::Worker(error.to_string())),
                },
                Some(published) = publishing.join_next() => {
                    published.map_err(|error| ProcessorError::Worker(error.to_string()))??;
                }
                said = self.progress.recv() => match said {
                    Ok(said) if said.lane == self.lane && said.log_id == self.topology.log_id => {
                        lane.handle_progress(said.sequence);
                    }
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return Ok(()),
                },
                Ok(()) = self.owned.changed() => lane.handle_owned(*self.owned.borrow_and_update()),
                _ = tick.tick() => {
                    let status = lane.status();
                    self.tell_of_pause(status.paused);
                    self.status.send_replace(status);
                }
                () = self.stop.cancelled(), if publishing.is_empty() => return Ok(()),
            }
        }
    }
}

async fn next(reader: &mut Option<LogPump>) -> Result<LogMessage, LogError> {
    match reader {
        Some(reader) => reader.next().await,
        None => std::future::pending().await,
    }
}

/// Asks storers once; one that is behind says so after a while, and is asked again soon.
async fn ask(reads: ReadClient, load: Load) -> LoadResult {
    let answer = reads.request(&load.request, READ_TIMEOUT).await;
    match answer {
        Ok(Answer { body: AnswerBody::Behind, .. }) => {
            // One that has a file of another log says so without waiting.
            tokio::time::sleep(RETRY).await;
            (load.id, Err(ReadError::TimedOut(READ_TIMEOUT)))
        }
        Ok(answer) => (load.id, Ok(answer)),
        Err(error) => {
            tokio::time::sleep(RETRY).await;
            (load.id, Err(error))
        }
    }
}

/// Sends the same batch until it is in. Every reader recognises a repetition. `read` is the EVENTS
/// sequence this processor has read by now: what the log gives a new message lies above it.
async fn publish(
    writer: BatchWriter,
    (message, mut way, hops): (Bytes, Way, Hops),
    (lane, read): (u16, u64),
    health: Health,
) -> Result<(), ProcessorError> {
    let mut trouble = WriteTrouble::new(&health, Log::Events, lane);
    let mut pause = RETRY;
    hops.published(&mut way);
    loop {
        match writer.append(message.clone()).await {
            Ok(stored) if stored <= read => return Err(went_backwards(lane, stored, read).into()),
            Ok(_) => {
                hops.logged(way);
                trouble.over();
                return Ok(());
            }
            Err(error) => {
                tracing::warn!(lane, %error, "an event batch is not in yet; it is sent again");
                trouble.failed(&error);
                trouble.look(&writer).await?;
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_MAX);
    }
}

fn went_backwards(lane: u16, stored: u64, read: u64) -> LogError {
    let reason = format!("a new message got sequence {stored}, but {read} was read from it");
    LogError::Diverged { stream: Log::Events.stream(lane), reason }
}
