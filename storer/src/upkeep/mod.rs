//! Care of the log and of the copies: registers the storer, makes verified copies, and purges what
//! nobody needs any more. Every storer does so; they agree because they decide by the same register.

mod bounds;
mod forget;
mod rebuild;

use crate::store::{Copies, CopyState, Store, StoreError};
use crate::writer::now_us;
use bounds::{Pressure, bounds, copy_is_due, dropped, is_absent};
use fieldstream_nats::{
    Connection, CopyEntry, Finding, Health, LaneMarks, Log, NatsError, Order, OrderServer, Severity, StorerEntry,
    StorerRegister, StreamState, Topology, lane_streams, purge_below,
};
use fieldstream_shared::partition::{Partition, PartitionSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How a storer looks after copies and log.
#[derive(Debug, Clone)]
pub struct UpkeepOptions {
    /// Folder of the copies; `None`: `copies` in the storer's directory. On another disk they survive
    /// the loss of the file's.
    pub copies_directory: Option<PathBuf>,
    /// A copy is made this often, if there is anything new; sooner while space is short. Default 10
    /// minutes.
    pub copy_every: Duration,
    /// Copies kept, at least 1. Default 2.
    pub copies_kept: usize,
    /// What is remembered of clients' instruction numbers goes after so long without any instruction:
    /// far longer than any gateway could hold one back, and any device is away with one unresolved.
    /// Zero: never. Default 30 days.
    pub client_marks_kept: Duration,
    /// How often such clients are looked for. Default 1 h.
    pub forget_every: Duration,
    /// How often the register is renewed and the log looked at. Default 2 s.
    pub every: Duration,
}

impl Default for UpkeepOptions {
    fn default() -> UpkeepOptions {
        UpkeepOptions {
            copies_directory: None,
            copy_every: Duration::from_secs(600),
            copies_kept: 2,
            client_marks_kept: Duration::from_secs(30 * 86_400),
            forget_every: Duration::from_secs(3600),
            every: Duration::from_secs(2),
        }
    }
}

/// How long a stopping storer waits for a copy that is under way.
const FINISH: Duration = Duration::from_secs(5);
const ABSENT: &str = "storer-absent";
const FILLING: &str = "log-filling";
const NO_COPY: &str = "no-copy";

/// What the task works with.
pub(crate) struct Upkeep {
    pub(crate) connection: Connection,
    pub(crate) topology: Topology,
    pub(crate) store: Arc<Store>,
    /// Held by the writer while a commit is in the making.
    pub(crate) turn: Arc<tokio::sync::Mutex<()>>,
    /// The storer's directory, and how its files are made.
    pub(crate) directory: PathBuf,
    pub(crate) file_mode: u32,
    pub(crate) map_bytes: usize,
    pub(crate) history_revisions: u64,
    pub(crate) copies: Copies,
    pub(crate) database: PathBuf,
    pub(crate) options: UpkeepOptions,
    pub(crate) health: Health,
}

/// Works until `stop`.
pub(crate) async fn run(upkeep: Upkeep, mut orders: OrderServer, stop: CancellationToken) {
    let listed = upkeep.list().await;
    let mut kept = listed.unwrap_or_else(|error| {
        tracing::warn!(%error, "copies of earlier runs cannot be used");
        Vec::new()
    });
    let mut interval = tokio::time::interval(upkeep.options.every);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // A small copy is finished; a large one is left unfinished, for the next start to remove.
    let end = async {
        stop.cancelled().await;
        tokio::time::sleep(FINISH).await;
    };
    let mut forgetting = tokio::time::interval(upkeep.options.forget_every);
    forgetting.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let kept_for = upkeep.options.client_marks_kept;
    let mut rebuilding = tokio::task::JoinSet::new();
    let work = async {
        loop {
            let call = tokio::select! {
                _ = interval.tick() => None,
                Some(call) = orders.next() => Some(call),
                Some(_) = rebuilding.join_next() => None,
                _ = forgetting.tick(), if !kept_for.is_zero() => {
                    match forget::ask(&upkeep, kept_for).await {
                        Ok(0) => {}
                        Ok(marks) => tracing::info!(marks, "asked to forget clients that were not heard of for long"),
                        Err(error) => tracing::debug!(%error, "looking for clients to forget"),
                    }
                    continue;
                }
                () = stop.cancelled() => return,
            };
            match call.map(|call| (call.order, call.reply)) {
                Some((Order::Copy, reply)) => {
                    let made = upkeep.copy(&mut kept).await;
                    reply.copied(made.map(|copy| copy_entry(&copy))).await;
                }
                Some((Order::Rebuild(_), reply)) if !rebuilding.is_empty() => {
                    reply.rebuilt(Err("it is rebuilding its file already".to_owned())).await;
                }
                Some((Order::Rebuild(order), reply)) => {
                    let newest = kept.first().map(|copy| copy.path.clone());
                    let rebuild = rebuild::Rebuild::of(&upkeep, newest, &order);
                    rebuilding.spawn(async move {
                        reply.rebuilt(rebuild.run().await.map_err(|error| error.to_string())).await;
                    });
                }
                None => {}
            }
            if let Err(error) = upkeep.round(&mut kept).await {
                tracing::warn!(%error, "looking after the log");
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = end => {}
    }
}

impl Upkeep {
    async fn list(&self) -> Result<Vec<CopyState>, StoreError> {
        let copies = self.copies.clone();
        let listed = tokio::task::spawn_blocking(move || copies.list()).await;
        let mine = |copy: &CopyState| {
            copy.format.storer == self.store.storer()
                && copy.checkpoints.iter().all(|row| row.checkpoint.log_id == self.topology.log_id)
        };
        Ok(listed.unwrap_or_else(|_| Ok(Vec::new()))?.into_iter().filter(mine).collect())
    }

    async fn round(&self, kept: &mut Vec<CopyState>) -> Result<(), NatsError> {
        let streams = lane_streams(&self.connection, &self.topology).await?;
        let percent = |s: &StreamState| (u128::from(s.bytes) * 100 / u128::from(s.bytes_max.max(1))) as u64;
        let fullest = streams.iter().flat_map(|(i, e)| [percent(i), percent(e)]).max().unwrap_or(0);
        let pressure = Pressure::of(fullest);
        let Some(lanes) = self.marks() else { return Ok(()) };
        let register = StorerRegister::open(&self.connection).await?;
        register.put(&self.entry(&lanes, kept)).await?;
        let stored: Vec<u64> = lanes.iter().map(|marks| marks.events_sequence).collect();
        let copied =
            kept.first().map(|copy| copy.checkpoints.iter().map(|row| row.checkpoint.events_sequence).collect());
        let copied: Option<Vec<u64>> = copied;
        let age =
            kept.first().map_or(Duration::MAX, |copy| Duration::from_micros(now_us().saturating_sub(copy.made_at_us)));
        if copy_is_due(&stored, copied.as_deref(), age, self.options.copy_every, pressure) {
            // What went wrong is a finding, and tried again.
            let _ = self.copy(kept).await;
            register.put(&self.entry(&lanes, kept)).await?;
        }
        self.purge(&register, &streams, pressure).await?;
        self.tell_of_filling(pressure, fullest);
        Ok(())
    }

    /// What is durable now; `None` if it cannot be read.
    fn marks(&self) -> Option<Vec<LaneMarks>> {
        let read = self.store.read().ok()?;
        let lanes = 0..self.topology.lanes;
        lanes.map(|lane| Some(marks_of(&read.checkpoint(lane).ok()??.checkpoint, lane))).collect()
    }

    fn entry(&self, lanes: &[LaneMarks], kept: &[CopyState]) -> StorerEntry {
        StorerEntry {
            storer: self.store.storer(),
            log_id: self.topology.log_id,
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            database: self.database.display().to_string(),
            seen_at_us: now_us(),
            lanes: lanes.to_vec(),
            copies: kept.iter().map(copy_entry).collect(),
            temporary: false,
        }
    }

    /// Makes a copy and removes those beyond the number that is kept.
    async fn copy(&self, kept: &mut Vec<CopyState>) -> Result<CopyState, String> {
        let (store, copies) = (Arc::clone(&self.store), self.copies.clone());
        let made = tokio::task::spawn_blocking(move || copies.make(&store, now_us, &CancellationToken::new())).await;
        match made {
            Ok(Ok(copy)) => {
                tracing::info!(path = %copy.path.display(), rows = copy.rows, bytes = copy.bytes, "copied and verified");
                self.health.clear(NO_COPY);
                kept.insert(0, copy);
            }
            Ok(Err(error)) => {
                let mend = "make room for it, or set storer.copies_directory; without a copy the log is not purged";
                self.health.raise(Finding::new(NO_COPY, Severity::Warning, format!("no copy: {error}"), mend));
                return Err(error.to_string());
            }
            Err(error) => return Err(format!("copying ended unexpectedly: {error}")),
        }
        for old in kept.split_off(self.options.copies_kept.max(1).min(kept.len())) {
            if let Err(error) = self.copies.remove(&old) {
                tracing::warn!(%error, "an old copy stays");
            }
        }
        kept.first().cloned().ok_or_else(|| "no copy is kept".to_owned())
    }

    async fn purge(
        &self,
        register: &StorerRegister,
        streams: &[(StreamState, StreamState)],
        pressure: Pressure,
    ) -> Result<(), NatsError> {
        let mut entries = register.list().await?;
        entries.retain(|entry| entry.log_id == self.topology.log_id);
        let now = now_us();
        for storer in dropped(&entries, pressure, now) {
            tracing::error!(
                storer = format!("{storer:016x}"),
                "dropped from the register: it is absent, and space is short or it was no storer"
            );
            register.remove(storer).await?;
            entries.retain(|entry| entry.storer != storer);
        }
        self.tell_of_absent(&entries, now);
        for (lane, (instructions, events)) in (0_u16..).zip(streams) {
            let Some((events_bound, instructions_bound)) = bounds(&entries, usize::from(lane), pressure) else {
                continue;
            };
            for (log, stream, bound) in
                [(Log::Events, events, events_bound), (Log::Instructions, instructions, instructions_bound)]
            {
                if stream.messages > 0 && bound > stream.first {
                    let purged = purge_below(&self.connection, log, lane, bound).await?;
                    tracing::debug!(lane, ?log, below = bound, purged, "purged");
                }
            }
        }
        Ok(())
    }

    fn tell_of_absent(&self, entries: &[StorerEntry], now: u64) {
        let absent: Vec<_> = entries.iter().filter(|entry| is_absent(entry, now)).collect();
        let Some(first) = absent.first() else { return self.health.clear(ABSENT) };
        let message = format!(
            "{} storer(s) have not been seen for over a minute, first {:016x} on {}; the log is kept for them",
            absent.len(),
            first.storer,
            first.host
        );
        let mend = format!("start it again, or `fieldstream storer forget {:016x}`", first.storer);
        self.health.raise(Finding::new(ABSENT, Severity::Warning, message, mend));
    }

    fn tell_of_filling(&self, pressure: Pressure, percent: u64) {
        if pressure < Pressure::High {
            return self.health.clear(FILLING);
        }
        let message = format!("the log is {percent}% full, and what is left of it is still needed");
        let mend = "see which storer is behind (`fieldstream storer list`), or raise nats.log_bytes_max";
        self.health.raise(Finding::new(FILLING, Severity::Warning, message, mend));
    }
}

fn copy_entry(copy: &CopyState) -> CopyEntry {
    CopyEntry {
        path: copy.path.display().to_string(),
        made_at_us: copy.made_at_us,
        bytes: copy.bytes,
        lanes: (0..).zip(&copy.checkpoints).map(|(lane, row)| marks_of(&row.checkpoint, lane)).collect(),
    }
}

pub(crate) fn marks_of(checkpoint: &fieldstream_shared::read::Checkpoint, lane: u16) -> LaneMarks {
    let partitions: PartitionSet = Partition::all().filter(|p| p.lane(checkpoint.lanes) == lane).collect();
    let lowest = checkpoint.cursors.lowest(&partitions).map_or(0, |position| position.sequence);
    LaneMarks { events_sequence: checkpoint.events_sequence, instructions_lowest: lowest }
}
