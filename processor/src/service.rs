//! Starting and stopping a processor.

use crate::lane::{LaneError, LaneStatus};
use crate::sharing;
use crate::timing::Hops;
use crate::worker::{self, Worker};
use fieldstream_nats::{
    Connection, Health, LogError, Member, NatsError, ProcessorLane, ProcessorStatus, ProgressReader, ReadClient,
    RoleStatus, Server, Topology, TraceDesk, serve_status,
};
use fieldstream_shared::partition::PartitionSet;
use fieldstream_shared::read::Progress;
use fieldstream_shared::registry::Registry;
use std::time::Duration;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How a processor comes by its partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// It shares all partitions with whoever else shares them, whoever comes and goes.
    Shared,
    /// It owns these, whatever others do.
    Fixed(PartitionSet),
}

/// How to run a processor.
#[derive(Debug, Clone)]
pub struct ProcessorOptions {
    /// Where the log is.
    pub nats: Server,
    /// The partitions it owns.
    pub ownership: Ownership,
    /// Custom instructions.
    pub registry: Registry,
    /// Bytes of documents and client marks kept in memory, over all lanes. A value that storers do
    /// not have yet stays beyond that.
    pub cache_bytes_max: usize,
    /// Bytes of values that storers do not have yet; beyond, applying pauses until they catch up.
    pub pinned_bytes_max: usize,
    /// Where it reports what it finds.
    pub health: Health,
}

impl ProcessorOptions {
    /// A processor that shares the partitions with others, with 256 MiB of cache.
    pub fn new(nats: Server) -> ProcessorOptions {
        ProcessorOptions {
            nats,
            ownership: Ownership::Shared,
            registry: Registry::default(),
            cache_bytes_max: 256 << 20,
            pinned_bytes_max: 128 << 20,
            health: Health::new(),
        }
    }
}

/// Why a processor cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ProcessorError {
    /// NATS is in the way.
    #[error(transparent)]
    Nats(#[from] NatsError),
    /// The log cannot be read on.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The log says something this program cannot follow.
    #[error(transparent)]
    Lane(#[from] LaneError),
    /// The storers' file belongs to another log.
    #[error(
        "the storers' checkpoint is of log {found:016x} with {found_lanes} lane(s), the streams are log {log_id:016x} with {lanes}; point the storers at the right server, or rebuild their file"
    )]
    OtherLog {
        /// Identity in the checkpoint.
        found: u64,
        /// Lanes in the checkpoint.
        found_lanes: u16,
        /// Identity of the streams.
        log_id: u64,
        /// Lanes of the streams.
        lanes: u16,
    },
    /// A worker ended without a word.
    #[error("a lane's worker ended unexpectedly: {0}")]
    Worker(String),
}

/// A running processor.
#[derive(Debug)]
pub struct Processor {
    stop: CancellationToken,
    workers: JoinSet<()>,
    failures: mpsc::Receiver<ProcessorError>,
    /// Ends the membership, after the workers.
    left: CancellationToken,
    membership: JoinSet<()>,
    owned: watch::Receiver<PartitionSet>,
    health: Health,
}

fn status(member: &Member, owned: &PartitionSet, lanes: &[watch::Receiver<LaneStatus>]) -> RoleStatus {
    let lane = |said: &watch::Receiver<LaneStatus>| {
        let lane = *said.borrow();
        ProcessorLane {
            events_sequence: lane.events_sequence,
            instructions_sequence: lane.instructions_sequence,
            backlog_records: lane.backlog_records as u64,
            pinned_bytes: lane.pinned_bytes as u64,
            cache_bytes: lane.cache_bytes as u64,
            paused: lane.paused,
        }
    };
    let partitions = ProcessorStatus::partitions_of(owned);
    let processor = ProcessorStatus { partitions, lanes: lanes.iter().map(lane).collect() };
    RoleStatus { processor: Some(processor), ..member.status() }
}

/// How many progress announcements may wait for a slow worker; missed ones do no harm.
const PROGRESS_QUEUE: usize = 64;

impl Processor {
    /// Connects and starts one worker per lane.
    ///
    /// # Errors
    /// [`ProcessorError`] if NATS or the streams are not as they must be.
    pub async fn start(options: ProcessorOptions) -> Result<Processor, ProcessorError> {
        let publish = Connection::connect(&options.nats, "processor publishing").await?;
        let consume = Connection::connect(&options.nats, "processor consuming").await?;
        let topology = Topology::load(&publish).await?;
        let reads = ReadClient::new(&consume).await?;
        let mut announced = ProgressReader::subscribe(&consume).await?;
        let (progress, _) = broadcast::channel::<Progress>(PROGRESS_QUEUE);
        let stop = CancellationToken::new();
        let left = CancellationToken::new();
        let mut membership = JoinSet::new();
        let member = Member::new("processor", env!("CARGO_PKG_VERSION"), options.health.clone());
        let owned = sharing::begin(options.ownership, member.name.clone(), &publish, &left, &mut membership).await?;
        let (failed, failures) = mpsc::channel(usize::from(topology.lanes) + 1);
        let (desk, traces) = TraceDesk::open(&consume, rand::random());
        let hops = Hops::new(desk, &options.health);
        let until = left.clone();
        membership.spawn(async move {
            let _ = until.run_until_cancelled(traces.run()).await;
        });
        let mut workers = JoinSet::new();
        let mut lanes = Vec::new();
        for lane in 0..topology.lanes {
            let (status, said) = watch::channel(LaneStatus::default());
            lanes.push(said);
            let worker = Worker {
                lane,
                topology,
                publish: publish.clone(),
                consume: consume.clone(),
                reads: reads.clone(),
                progress: progress.subscribe(),
                owned: owned.clone(),
                options: options.clone(),
                stop: stop.clone(),
                status,
                hops: hops.clone(),
            };
            let failed = failed.clone();
            workers.spawn(async move {
                if let Err(error) = worker::run(worker).await {
                    tracing::error!(lane, %error, "processor stops");
                    let _ = failed.send(error).await;
                }
            });
        }
        let (answering, said) = (publish.clone(), owned.clone());
        let status = move || status(&member, &said.borrow(), &lanes);
        let (until, health) = (left.clone(), options.health.clone());
        membership.spawn(async move {
            let _ = until.run_until_cancelled(serve_status(answering, health, status)).await;
        });
        let until = stop.clone();
        workers.spawn(async move {
            while let Some(Some(said)) = until.run_until_cancelled(announced.next()).await {
                let _ = progress.send(said);
            }
        });
        options.health.set_ready(true);
        Ok(Processor { stop, workers, failures, left, membership, owned, health: options.health })
    }

    /// The partitions it owns at present.
    pub fn owned(&self) -> PartitionSet {
        *self.owned.borrow()
    }

    /// Resolves when the processor cannot go on.
    ///
    /// # Cancel safety
    /// Nothing is lost if the future is dropped.
    pub async fn failed(&mut self) -> ProcessorError {
        loop {
            tokio::select! {
                biased;
                Some(error) = self.failures.recv() => return error,
                Some(ended) = self.workers.join_next() => if let Err(panic) = ended {
                    return ProcessorError::Worker(panic.to_string());
                },
                else => return ProcessorError::Worker("no worker is left".into()),
            }
        }
    }

    /// Publishes what is built, then stops. What is not done within the deadline is left to the
    /// next owner; nothing is lost either way.
    pub async fn stop(mut self, deadline: Duration) {
        self.health.set_ready(false);
        self.stop.cancel();
        let all = async { while self.workers.join_next().await.is_some() {} };
        if tokio::time::timeout(deadline, all).await.is_err() {
            tracing::warn!("the processor did not finish in time; what is left is taken over from the log");
        }
        // Only now: what this one has published should be accepted before others take over.
        self.left.cancel();
        while self.membership.join_next().await.is_some() {}
    }
}
