//! The storer as a service: a reader per lane, one writer, the read service, announcements.

mod condition;

use crate::beginnings;
use crate::instructions;
use crate::joining;
use crate::projection::ProjectionError;
use crate::reads::{self, Scope};
use crate::store::{Belongs, Copies, Identity, Store, StoreError, StoreOptions};
use crate::tables::TableError;
use crate::timing::Hops;
use crate::upkeep::{self, Upkeep, UpkeepOptions};
use crate::writer::{Arrived, Writer, now_us};
use fieldstream_nats::{
    Connection, Health, Log, LogError, LogReader, Member, NatsError, OrderServer, PieceServer, ReadServer,
    RepairRecord, Server, Start, Topology, TraceDesk, publish_progress, serve_status,
};
use fieldstream_shared::read::{Checkpoint, Progress};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Batches between the readers and the writer. Full, the readers wait, and the log keeps the rest.
const QUEUE_BATCHES: usize = 64;

/// Progress is announced at least this often: whoever missed an announcement hears the next.
const ANNOUNCE: Duration = Duration::from_millis(200);

/// How long a stopping storer waits for a commit that is under way when its time is up.
const ABANDON: Duration = Duration::from_secs(2);

/// What serves others may take this long to end.
const FAREWELL: Duration = Duration::from_secs(5);

/// How long a storer waits for its file while one before it in the same process still copies it.
const LET_GO: Duration = Duration::from_secs(600);
const LET_GO_LOOK: Duration = Duration::from_millis(100);

/// What a storer needs.
#[derive(Debug, Clone)]
pub struct StorerOptions {
    /// The NATS server with the log.
    pub nats: Server,
    /// Where the LMDB file is kept.
    pub directory: PathBuf,
    /// Permission bits of the LMDB file and its lock file. Readers need to write the lock file.
    /// Default 0664.
    pub file_mode: u32,
    /// How large the LMDB file can become before its map grows. Takes address space, not memory and not disk.
    /// Default 1 TiB.
    pub map_bytes: usize,
    /// How far the map grows by itself when it is full, without the storer being stopped. Default 64 TiB.
    pub map_bytes_max: usize,
    /// Revisions of each document that are kept in history; 0: all. Who missed more of a document that
    /// is watched gets it as a whole. Default 1,000.
    pub history_revisions: u64,
    /// The least time from the beginning of a commit to that of the next, unless that is full. More
    /// spares the disk and delays `stored` acknowledgements. After a commit the writer also rests
    /// for as long as the commit took. Default 5 ms.
    pub commit_floor: Duration,
    /// Copies, and care of the log.
    pub upkeep: UpkeepOptions,
    /// Whether to start, too, when the log is damaged or another one than the file is of: the file is
    /// then served as it is, because a repair goes on from it, and [`Storer::failed`] says what is
    /// wrong at once. Default false: the start fails.
    pub serve_damaged: bool,
    /// Where it reports what it finds.
    pub health: Health,
}

impl StorerOptions {
    /// The defaults.
    pub fn new(nats: Server, directory: impl Into<PathBuf>) -> StorerOptions {
        StorerOptions {
            nats,
            directory: directory.into(),
            file_mode: 0o664,
            map_bytes: 1 << 40,
            map_bytes_max: 1 << 46,
            history_revisions: 1000,
            commit_floor: Duration::from_millis(5),
            upkeep: UpkeepOptions::default(),
            serve_damaged: false,
            health: Health::new(),
        }
    }
}

/// Why a storer does not start or has stopped. Each message says what, where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StorerError {
    /// NATS.
    #[error(transparent)]
    Nats(#[from] NatsError),
    /// The LMDB file.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The log does not continue where the file ends.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The log does not fit the file.
    #[error(transparent)]
    Projection(#[from] ProjectionError<TableError>),
    /// The log was repaired while this storer ran on with the one before.
    #[error("the log was repaired and is log {now:016x} now, the storer has log {was:016x}; it starts again")]
    Repaired {
        /// Identity of the storer's log.
        was: u64,
        /// Identity of the log in NATS.
        now: u64,
    },
    /// The connection to NATS was closed for good.
    #[error("the connection to NATS was closed; start the storer again")]
    Closed,
    /// A thread could not be started or ended by a panic.
    #[error("the storer's writer thread is gone ({0}); start the storer again")]
    WriterGone(String),
}

/// A running storer.
pub struct Storer {
    directory: PathBuf,
    storer: u64,
    connection: Connection,
    durable: watch::Receiver<Vec<u64>>,
    failures: mpsc::Receiver<StorerError>,
    writer: tokio::task::JoinHandle<()>,
    readers: CancellationToken,
    services: CancellationToken,
    abandon: CancellationToken,
    tasks: TaskTracker,
    health: Health,
}

impl Storer {
    /// Opens the file, checks that it belongs to the log, and begins to store and to answer.
    ///
    /// # Errors
    /// [`StorerError`] if the log or the file cannot be used.
    pub async fn start(options: StorerOptions) -> Result<Storer, StorerError> {
        let consuming = Connection::connect(&options.nats, "fieldstream storer, log").await?;
        let connection = Connection::connect(&options.nats, "fieldstream storer, reads").await?;
        let topology = Topology::load(&connection).await?;
        let Opened { store, mut damage, scope } = open(&options, &connection, &topology).await?;
        let store = Arc::new(store);
        let mut lanes = Vec::new();
        if damage.is_none() {
            let seen = beginnings::look(&connection, topology.lanes).await?;
            let opened = match beginnings::check(&connection, &store, &seen).await {
                Ok(_) => open_lanes(&consuming, &store).await,
                Err(error) => Err(error),
            };
            match opened {
                Ok(opened) => lanes = opened,
                Err(error) if options.serve_damaged => damage = Some(error),
                Err(error) => return Err(error),
            }
        }
        let (reads, own) =
            (ReadServer::subscribe(&connection).await?, ReadServer::subscribe_own(&connection, store.storer()).await?);

        let (readers, services, abandon) =
            (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
        let (failed, failures) = mpsc::channel(usize::from(topology.lanes) + 4);
        let (arrived, arriving) = mpsc::channel(QUEUE_BATCHES);
        let stored = store.checkpoints().iter().map(|checkpoint| checkpoint.events_sequence).collect();
        let (durable_sender, durable) = watch::channel(stored);
        let turn = Arc::new(tokio::sync::Mutex::new(()));
        let (desk, traces) = TraceDesk::open(&connection, store.storer());
        let writer = Writer::new(store.clone(), arriving, durable_sender, options.commit_floor, abandon.clone())
            .reporting_to(options.health.clone())
            .growing_map_to(options.map_bytes_max)
            .timed_by(Hops::new(desk, &options.health))
            .taking_turns(Arc::clone(&turn));
        let writer = spawn_writer(writer, failed.clone())?;
        let tasks = TaskTracker::new();
        tasks.spawn(services.clone().run_until_cancelled_owned(traces.run()));
        // A damaged log is neither purged nor copied over: a repair needs what is left of it.
        let damaged = damage.is_some();
        match damage {
            // The file is served as it is; nothing more comes into it.
            Some(error) => {
                let _ = failed.try_send(error);
            }
            None => {
                let watching = instructions::watch(consuming, store.clone(), failed.clone());
                tasks.spawn(services.clone().run_until_cancelled_owned(watching));
            }
        }
        for (lane, reader) in lanes {
            let of = (connection.clone(), store.clone());
            tasks.spawn(read_lane(of, lane, reader, (arrived.clone(), failed.clone()), readers.clone()));
        }
        drop(arrived);
        let log_id = store.checkpoints().first().map_or(topology.log_id, |checkpoint| checkpoint.log_id);
        let announced = Announced { storer: store.storer(), log_id };
        tasks.spawn(announce(connection.clone(), announced, durable.clone(), services.clone()));
        let seen = condition::Seen::default();
        let watching = condition::watch(
            store.clone(),
            copies_of(&options),
            seen.clone(),
            options.health.clone(),
            services.clone(),
        );
        tasks.spawn(watching);
        let member = Member::new("storer", env!("CARGO_PKG_VERSION"), options.health.clone());
        let places = (options.directory.as_path(), copies_of(&options));
        let status = condition::status(member, places, store.storer(), durable.clone(), seen);
        let (answering, until, health) = (connection.clone(), services.clone(), options.health.clone());
        tasks.spawn(async move {
            let _ = until.run_until_cancelled(serve_status(answering, health, status)).await;
        });
        if !damaged {
            let upkeep = upkeep_of(&options, &connection, topology, &store, (turn, failed.clone()))?;
            let orders = OrderServer::subscribe(&connection, store.storer()).await?;
            let pieces = PieceServer::subscribe(&connection, store.storer()).await?;
            let handing_out = joining::serve(pieces, upkeep.copies.clone());
            tasks.spawn(services.clone().run_until_cancelled_owned(handing_out));
            tasks.spawn(upkeep::run(upkeep, orders, services.clone()));
        }
        for (server, scope) in [(reads, scope), (own, Scope::Checkpoint)] {
            let serving = reads::serve(server, scope, store.clone(), durable.clone(), services.clone());
            let failed = failed.clone();
            tasks.spawn(async move {
                if serving.await {
                    // If nobody listens the storer is being stopped.
                    let _ = failed.try_send(StorerError::Closed);
                }
            });
        }
        tasks.close();
        let (directory, storer, health) = (options.directory, store.storer(), options.health);
        health.set_ready(true);
        tracing::info!(directory = %directory.display(), storer, lanes = topology.lanes, "storer started");
        Ok(Storer {
            directory,
            storer,
            connection,
            durable,
            failures,
            writer,
            readers,
            services,
            abandon,
            tasks,
            health,
        })
    }

    /// Stops: takes no more from the log, stores what was taken, within the deadline. What was not
    /// stored is still in the log.
    pub async fn stop(mut self, deadline: Duration) {
        self.health.set_ready(false);
        self.readers.cancel();
        if tokio::time::timeout(deadline, &mut self.writer).await.is_err() {
            tracing::warn!(?deadline, "not everything taken was stored in time; it is still in the log");
            self.abandon.cancel();
            // It ends after the commit it is at, which waits for nothing but the disk.
            let _ = tokio::time::timeout(ABANDON, &mut self.writer).await;
        }
        self.services.cancel();
        // What they still say is for others; with NATS away it may never get there.
        if tokio::time::timeout(FAREWELL, self.tasks.wait()).await.is_err() {
            tracing::debug!("not everything that serves others has ended");
        }
        self.connection.flush().await;
        tracing::info!("storer stopped");
    }

    /// Pends until something fatal happens; the storer is then to be stopped.
    ///
    /// # Cancel safety
    /// Nothing is lost if the future is dropped.
    pub async fn failed(&mut self) -> StorerError {
        match self.failures.recv().await {
            Some(error) => error,
            None => std::future::pending().await,
        }
    }

    /// The path readers open: a link to the directory with `data.mdb` and `lock.mdb`.
    pub fn database_path(&self) -> PathBuf {
        Store::database_path(&self.directory)
    }

    /// The number drawn when the file was made, by which progress announcements name this storer.
    pub fn id(&self) -> u64 {
        self.storer
    }

    /// The EVENTS sequence up to which each lane is durable, in order of lanes.
    pub fn stored(&self) -> Vec<u64> {
        self.durable.borrow().clone()
    }
}

impl Drop for Storer {
    fn drop(&mut self) {
        self.readers.cancel();
        self.services.cancel();
        self.abandon.cancel();
    }
}

/// The file, and what is wrong with its relation to the log.
struct Opened {
    store: Store,
    damage: Option<StorerError>,
    scope: Scope,
}

/// A storer of this process that was stopped holds its file until a large copy that it was making is
/// written: that cannot be broken off.
async fn until_let_go(directory: &Path) {
    let until = tokio::time::Instant::now() + LET_GO;
    while let Err(StoreError::InUse { by_this_process: true, .. }) = Store::check_unused(directory) {
        if tokio::time::Instant::now() >= until {
            return;
        }
        tokio::time::sleep(LET_GO_LOOK).await;
    }
}

async fn open(options: &StorerOptions, connection: &Connection, topology: &Topology) -> Result<Opened, StorerError> {
    let store = StoreOptions {
        directory: options.directory.clone(),
        file_mode: options.file_mode,
        map_bytes: options.map_bytes,
        history_revisions: options.history_revisions,
    };
    until_let_go(&options.directory).await;
    joining::join(options, &store, connection, topology).await?;
    let identity =
        Identity { lanes: topology.lanes, log_id: topology.log_id, new_storer: rand::random(), now_us: now_us() };
    let record = RepairRecord::load(connection).await?;
    let serve_damaged = options.serve_damaged;
    let unfinished = record.as_ref().is_some_and(RepairRecord::is_under_way);
    if unfinished && !serve_damaged {
        return Err(LogError::Unfinished.into());
    }
    let opened = tokio::task::spawn_blocking(move || {
        let belongs = record.as_ref().map_or(Belongs::ToLog, Belongs::ToLogOrRepaired);
        match Store::open_as(store.clone(), &identity, belongs) {
            Ok(store) => {
                let damage = unfinished.then(|| LogError::Unfinished.into());
                Ok(Opened { store, damage, scope: Scope::All })
            }
            Err(error @ StoreError::Log { .. }) if serve_damaged => {
                let store = Store::open_as(store, &identity, Belongs::Anywhere)?;
                Ok(Opened { store, damage: Some(error.into()), scope: Scope::Checkpoint })
            }
            Err(error) => Err(error.into()),
        }
    });
    opened.await.map_err(|e| StorerError::WriterGone(e.to_string()))?
}

async fn open_lanes(consuming: &Connection, store: &Store) -> Result<Vec<(u16, LogReader)>, StorerError> {
    open_lanes_at(consuming, store.checkpoints()).await
}

pub(crate) async fn open_lanes_at(
    consuming: &Connection,
    checkpoints: &[Checkpoint],
) -> Result<Vec<(u16, LogReader)>, StorerError> {
    let mut lanes = Vec::new();
    for (lane, checkpoint) in (0..).zip(checkpoints) {
        let hash = (checkpoint.events_sequence > 0).then_some(checkpoint.events_hash);
        let start = Start { sequence: checkpoint.events_sequence, hash };
        lanes.push((lane, LogReader::open(consuming, Log::Events, lane, start).await?));
    }
    Ok(lanes)
}

/// A thread of its own, because commits wait for the disk. The handle ends when the thread does.
pub(crate) fn spawn_writer(
    writer: Writer,
    failed: mpsc::Sender<StorerError>,
) -> Result<tokio::task::JoinHandle<()>, StorerError> {
    let (done, ended) = tokio::sync::oneshot::channel();
    let body = move || {
        let _ = done.send(writer.run());
    };
    let spawned = std::thread::Builder::new().name("storer-writer".to_owned()).spawn(body);
    spawned.map_err(|e| StorerError::WriterGone(e.to_string()))?;
    Ok(tokio::spawn(async move {
        let error = match ended.await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(_) => StorerError::WriterGone("it panicked".to_owned()),
        };
        // If nobody listens the storer is being stopped.
        let _ = failed.try_send(error);
    }))
}

async fn read_lane(
    (connection, store): (Connection, Arc<Store>),
    lane: u16,
    reader: LogReader,
    (arrived, failed): (mpsc::Sender<Arrived>, mpsc::Sender<StorerError>),
    stop: CancellationToken,
) {
    if let Err(error) = read_upto(lane, reader, u64::MAX, &arrived, &stop).await {
        let _ = failed.try_send(instructions::explain(&connection, &store, error).await);
    }
}

/// Reads a lane up to this EVENTS sequence.
pub(crate) async fn read_lane_upto(
    lane: u16,
    reader: LogReader,
    upto: u64,
    arrived: mpsc::Sender<Arrived>,
    failed: mpsc::Sender<StorerError>,
    stop: CancellationToken,
) {
    if let Err(error) = read_upto(lane, reader, upto, &arrived, &stop).await {
        let _ = failed.try_send(error.into());
    }
}

async fn read_upto(
    lane: u16,
    mut reader: LogReader,
    upto: u64,
    arrived: &mpsc::Sender<Arrived>,
    stop: &CancellationToken,
) -> Result<(), LogError> {
    while reader.position() < upto {
        let message = tokio::select! {
            message = reader.next() => message?,
            () = stop.cancelled() => return Ok(()),
        };
        // Fails only when the writer has ended; it has told why.
        if arrived.send(Arrived::new(lane, message.sequence, message.payload)).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

fn copies_of(options: &StorerOptions) -> PathBuf {
    options.upkeep.copies_directory.clone().unwrap_or_else(|| options.directory.join("copies"))
}

fn upkeep_of(
    options: &StorerOptions,
    connection: &Connection,
    topology: Topology,
    store: &Arc<Store>,
    (turn, failed): (Arc<tokio::sync::Mutex<()>>, mpsc::Sender<StorerError>),
) -> Result<Upkeep, StoreError> {
    Ok(Upkeep {
        connection: connection.clone(),
        topology,
        store: store.clone(),
        turn,
        directory: options.directory.clone(),
        file_mode: options.file_mode,
        map_bytes: options.map_bytes,
        map_bytes_max: options.map_bytes_max,
        history_revisions: options.history_revisions,
        copies: Copies::open(copies_of(options), options.file_mode)?,
        database: Store::database_path(&options.directory),
        options: options.upkeep.clone(),
        health: options.health.clone(),
        failed,
    })
}

struct Announced {
    storer: u64,
    log_id: u64,
}

async fn announce(
    connection: Connection,
    Announced { storer, log_id }: Announced,
    mut durable: watch::Receiver<Vec<u64>>,
    stop: CancellationToken,
) {
    let mut interval = tokio::time::interval(ANNOUNCE);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut told: Vec<u64> = Vec::new();
    let mut open = true;
    loop {
        let all = tokio::select! {
            biased;
            changed = durable.changed(), if open => {
                open = changed.is_ok();
                false
            }
            _ = interval.tick() => true,
            () = stop.cancelled() => return,
        };
        let stored = durable.borrow_and_update().clone();
        for (lane, sequence) in (0..).zip(&stored) {
            if all || told.get(usize::from(lane)) != Some(sequence) {
                publish_progress(&connection, &Progress { storer, log_id, lane, sequence: *sequence }).await;
            }
        }
        told = stored;
    }
}

#[cfg(test)]
mod tests;
