//! Making a file again from a copy and the log, beside the one that is in use: to compare the two, or
//! to put the new one in the other's place.

use crate::digest::Digests;
use crate::service::{StorerError, open_lanes_at, read_lane_upto, spawn_writer};
use crate::store::{Belongs, Identity, Store, StoreError, StoreOptions, glance, restore};
use crate::writer::{Writer, now_us};
use fieldstream_nats::{Connection, LaneMarks, Log, NatsError, StorerEntry, StorerRegister, Topology, last_sequence};
use fieldstream_shared::read::Checkpoint;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

/// Batches between the readers and the writer.
const QUEUE_BATCHES: usize = 256;
/// The register's entry of what is being made is renewed this often.
const RENEW: Duration = Duration::from_secs(5);
/// Having been so few messages behind, a file has followed closely enough.
const CLOSE_MESSAGES: u64 = 64;
/// An end that runs away faster than it can be followed is approached so many times.
pub(crate) const ROUNDS_MAX: usize = 50;

/// How to make a file again.
#[derive(Debug, Clone)]
pub struct ReplayOptions {
    /// A folder for it, that must not exist yet; removed when the replay is dropped.
    pub scratch: PathBuf,
    /// Permission bits of the files.
    pub file_mode: u32,
    /// How large its map is before it grows.
    pub map_bytes: usize,
    /// How large it may become.
    pub map_bytes_max: usize,
    /// Revisions of each document that are kept in history; 0: all.
    pub history_revisions: u64,
    /// The copy to begin with; `None`: the beginning of the log.
    pub copy: Option<PathBuf>,
    /// The number of the storer whose file it is to be, whoever made the copy.
    pub storer: u64,
}

/// A file that is being made again.
pub struct Replay {
    scratch: Scratch,
    connection: Connection,
    topology: Topology,
    store: Arc<Store>,
    messages: u64,
    history_revisions: u64,
    map_bytes_max: usize,
    kept: Kept,
}

/// A folder that is removed when this is dropped.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let removed = std::fs::remove_dir_all(&self.0);
        if let Err(error) = removed.or_else(|e| if e.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
        {
            tracing::warn!(path = %self.0.display(), %error, "a folder that is needed no more stays");
        }
    }
}

/// An entry in the register, so that nobody purges what is still to be read.
pub(crate) struct Kept {
    register: StorerRegister,
    id: u64,
    renewing: AbortHandle,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

impl Kept {
    pub(crate) async fn begin(connection: &Connection, entry: StorerEntry) -> Result<Kept, NatsError> {
        let register = StorerRegister::open(connection).await?;
        register.put(&entry).await?;
        let (id, renewed) = (entry.storer, register.clone());
        let renewing = tokio::spawn(async move {
            loop {
                tokio::time::sleep(RENEW).await;
                let entry = StorerEntry { seen_at_us: now_us(), ..entry.clone() };
                if let Err(error) = renewed.put(&entry).await {
                    tracing::debug!(%error, "renewing the entry of a file that is being made again");
                }
            }
        });
        Ok(Kept { register, id, renewing: renewing.abort_handle() })
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorerError> + Send + 'static,
) -> Result<T, StorerError> {
    tokio::task::spawn_blocking(work).await.map_err(|e| StorerError::WriterGone(e.to_string()))?
}

impl Replay {
    /// Begins with the copy, of which every row is read.
    ///
    /// # Errors
    /// [`StorerError`] if the copy cannot be used, or is of another log.
    pub async fn begin(connection: &Connection, options: ReplayOptions) -> Result<Replay, StorerError> {
        let topology = Topology::load(connection).await?;
        let scratch = Scratch(options.scratch.clone());
        let (history_revisions, map_bytes_max) = (options.history_revisions, options.map_bytes_max);
        let files = StoreOptions {
            directory: options.scratch,
            file_mode: options.file_mode,
            map_bytes: options.map_bytes,
            history_revisions,
        };
        let (lanes, log_id) = (topology.lanes, topology.log_id);
        let identity = Identity { lanes, log_id, new_storer: options.storer, now_us: now_us() };
        let from = options.copy;
        // Registered before the copy is read, which may take long: what is behind it has to stay.
        // One that cannot be looked at is refused below; until then nothing goes.
        let whole = vec![LaneMarks::default(); usize::from(lanes)];
        let from_marks = match from.clone() {
            Some(copy) => blocking(move || Ok(glance(&copy).map_or(whole, |state| state.marks()))).await?,
            None => whole,
        };
        let entry = StorerEntry {
            storer: rand::random(),
            log_id,
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            database: scratch.0.display().to_string(),
            seen_at_us: now_us(),
            lanes: from_marks,
            copies: Vec::new(),
            temporary: true,
        };
        let kept = Kept::begin(connection, entry).await?;
        let opened = blocking(move || {
            if let Some(copy) = from {
                restore(&copy, &files, Some(options.storer), false)?;
            }
            Ok(Store::open_as(files, &identity, Belongs::ToLog)?)
        });
        let store = match opened.await {
            Ok(store) => store,
            Err(error) => {
                kept.end().await;
                return Err(error);
            }
        };
        Ok(Replay {
            scratch,
            connection: connection.clone(),
            topology,
            store: Arc::new(store),
            messages: 0,
            history_revisions,
            map_bytes_max,
            kept,
        })
    }

    /// Messages of EVENTS read so far.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// The lanes' checkpoints.
    ///
    /// # Errors
    /// [`StorerError`] if the file cannot be read.
    pub fn checkpoints(&self) -> Result<Vec<Checkpoint>, StorerError> {
        Ok(self.store.checkpoints_now().map_err(|e| self.store.explain(e))?)
    }

    /// The EVENTS sequence up to which each lane is in the file.
    ///
    /// # Errors
    /// [`StorerError`] if the file cannot be read.
    pub fn positions(&self) -> Result<Vec<u64>, StorerError> {
        Ok(self.checkpoints()?.iter().map(|checkpoint| checkpoint.events_sequence).collect())
    }

    /// Takes in the log up to these EVENTS sequences, in order of lanes, and not one message more.
    /// Waits if the log is not there yet.
    ///
    /// # Errors
    /// [`StorerError`] if the log does not go on where the file ends, or the file cannot be written.
    pub async fn run_to(&mut self, upto: &[u64]) -> Result<(), StorerError> {
        let checkpoints = self.checkpoints()?;
        let mut readers = open_lanes_at(&self.connection, &checkpoints).await?;
        let (failed, mut failures) = mpsc::channel(readers.len() + 1);
        let (arrived, arriving) = mpsc::channel(QUEUE_BATCHES);
        let from: Vec<u64> = checkpoints.iter().map(|checkpoint| checkpoint.events_sequence).collect();
        let (durable, _) = watch::channel(from.clone());
        let abandon = CancellationToken::new();
        let _abandoned = abandon.clone().drop_guard();
        let writer = Writer::new(Arc::clone(&self.store), arriving, durable, Duration::ZERO, abandon);
        let writer = writer.catching_up(checkpoints).growing_map_to(self.map_bytes_max);
        let mut writer = spawn_writer(writer, failed.clone())?;
        let stop = CancellationToken::new();
        let _stopped = stop.clone().drop_guard();
        for (lane, reader) in readers.drain(..) {
            let Some(upto) = upto.get(usize::from(lane)).copied() else { continue };
            tokio::spawn(read_lane_upto(lane, reader, upto, arrived.clone(), failed.clone(), stop.clone()));
        }
        drop(arrived);
        drop(failed);
        let failure = tokio::select! {
            biased;
            Some(error) = failures.recv() => Some(error),
            _ = &mut writer => None,
        };
        if let Some(error) = failure.or_else(|| failures.try_recv().ok()) {
            return Err(error);
        }
        self.messages += upto.iter().zip(&from).map(|(upto, from)| upto.saturating_sub(*from)).sum::<u64>();
        Ok(())
    }

    /// As [`Replay::run_to`]; whether it was close already, so that the next time will be quick.
    ///
    /// # Errors
    /// As for [`Replay::run_to`].
    pub async fn approach(&mut self, upto: &[u64]) -> Result<bool, StorerError> {
        let behind: u64 = self.positions()?.iter().zip(upto).map(|(at, to)| to.saturating_sub(*at)).sum();
        self.run_to(upto).await?;
        Ok(behind <= CLOSE_MESSAGES)
    }

    /// Takes in the log until its end is close.
    ///
    /// # Errors
    /// As for [`Replay::run_to`].
    pub async fn run_to_end(&mut self) -> Result<(), StorerError> {
        for _ in 0..ROUNDS_MAX {
            let mut ends = Vec::new();
            for lane in 0..self.topology.lanes {
                ends.push(last_sequence(&self.connection, Log::Events, lane).await?);
            }
            if self.approach(&ends).await? {
                break;
            }
        }
        Ok(())
    }

    /// What the file holds, in short.
    ///
    /// # Errors
    /// [`StoreError`] if it cannot be read.
    pub fn digests(&self) -> Result<Digests, StoreError> {
        let read = self.store.read().and_then(|read| Digests::of(&read, self.history_revisions));
        read.map_err(|error| self.store.explain(error))
    }

    /// Closes the file, hands its folder to `place`, and removes everything else.
    ///
    /// # Errors
    /// What `place` returns.
    pub async fn finish<T>(self, place: impl FnOnce(&Path) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let Replay { scratch, store, kept, .. } = self;
        let generation = Store::database_path(&scratch.0);
        let generation = std::fs::canonicalize(&generation).unwrap_or(generation);
        drop(store);
        let placed = place(&generation);
        kept.end().await;
        placed
    }

    /// Ends it without a use for the file.
    pub async fn discard(self) {
        self.kept.end().await;
    }
}

impl Kept {
    pub(crate) async fn end(&self) {
        self.renewing.abort();
        if let Err(error) = self.register.remove(self.id).await {
            tracing::warn!(%error, "an entry of the register stays; `fieldstream storer forget` removes it");
        }
    }
}
