//! Care of the log and of the copies: registers the storer, makes verified copies, and purges what
//! nobody needs any more. Every storer does so; they agree because they decide by the same register.

mod bounds;
mod forget;
mod rebuild;
mod retention;
mod shelf;
mod trim;

pub(crate) use retention::Cut;
pub use retention::HistoryRule;

use crate::service::StorerError;
use crate::store::{Copies, Store};
use crate::writer::now_us;
use bounds::{Pressure, bounds, dropped, is_absent, outrun};
use fieldstream_nats::{
    Connection, Finding, Health, LaneMarks, Log, NatsError, Order, OrderCall, OrderServer, Registered, Severity,
    StorerEntry, StorerRegister, StreamState, Topology, WriteTrouble, lane_streams, purge_below,
};
use fieldstream_shared::partition::{Partition, PartitionSet};
use shelf::Shelf;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
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
    /// What of the history stays, for documents by how their ids begin. Default none.
    pub history_rules: Vec<HistoryRule>,
    /// Of all other documents: older changes go. Default none: whatever their age.
    pub history_age_max: Option<Duration>,
    /// Of all other documents: the oldest changes go when history and its index by time take more bytes
    /// of the file. Default none: a quarter of what the file takes and its disk has free.
    pub history_bytes_max: Option<u64>,
    /// How often the history is looked at. Default 1 min.
    pub history_every: Duration,
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
            history_rules: Vec::new(),
            history_age_max: None,
            history_bytes_max: None,
            history_every: Duration::from_secs(60),
            every: Duration::from_secs(2),
        }
    }
}

/// How long a stopping storer waits for a copy that is under way.
const FINISH: Duration = Duration::from_secs(5);
const ABSENT: &str = "storer-absent";
const FILLING: &str = "log-filling";

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
    pub(crate) map_bytes_max: usize,
    pub(crate) history_revisions: u64,
    pub(crate) copies: Copies,
    pub(crate) database: PathBuf,
    pub(crate) options: UpkeepOptions,
    pub(crate) health: Health,
    /// Where it says that the log ran away from the file.
    pub(crate) failed: mpsc::Sender<StorerError>,
}

/// Works until `stop`. What may take long (copies, rebuilds, the search for clients to forget) goes on
/// beside the rounds: a storer that does not renew its entry is taken for absent.
pub(crate) async fn run(upkeep: Upkeep, mut orders: OrderServer, stop: CancellationToken) {
    let upkeep = Arc::new(upkeep);
    let shelf = Shelf::open(Arc::clone(&upkeep), stop.clone()).await;
    let trouble = WriteTrouble::of_register(&upkeep.health);
    let mut care = Care { upkeep: Arc::clone(&upkeep), shelf, trouble, was_put: false };
    let mut interval = tokio::time::interval(upkeep.options.every);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut forgetting = tokio::time::interval(upkeep.options.forget_every);
    forgetting.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let trimming = trim::Trimmer::new(&upkeep, stop.clone());
    let trimming = tokio::task::spawn_blocking(move || trimming.run());
    let forgets = !upkeep.options.client_marks_kept.is_zero();
    let (mut rebuilding, mut asking) = (JoinSet::new(), JoinSet::new());
    let end = async {
        stop.cancelled().await;
        tokio::time::sleep(FINISH).await;
    };
    let work = async {
        loop {
            tokio::select! {
                _ = interval.tick() => {}
                made = care.shelf.made() => care.shelf.take_in(made).await,
                Some(call) = orders.next() => care.carry_out(call, &mut rebuilding).await,
                Some(_) = rebuilding.join_next() => {}
                Some(()) = join(&mut asking) => continue,
                _ = forgetting.tick(), if forgets => {
                    if asking.is_empty() {
                        asking.spawn(ask_to_forget(Arc::clone(&upkeep)));
                    }
                    continue;
                }
                () = stop.cancelled() => return,
            }
            if let Err(error) = care.round().await {
                tracing::warn!(%error, "looking after the log");
            }
        }
    };
    tokio::select! {
        () = work => {}
        () = end => {}
    }
    care.shelf.end(FINISH).await;
    let _ = tokio::time::timeout(FINISH, trimming).await;
}

async fn join(tasks: &mut JoinSet<()>) -> Option<()> {
    tasks.join_next().await.map(|_| ())
}

async fn ask_to_forget(upkeep: Arc<Upkeep>) {
    match forget::ask(&upkeep, upkeep.options.client_marks_kept).await {
        Ok(0) => {}
        Ok(marks) => tracing::info!(marks, "asked to forget clients that were not heard of for long"),
        Err(error) => tracing::debug!(%error, "looking for clients to forget"),
    }
}

/// What is known from round to round.
struct Care {
    upkeep: Arc<Upkeep>,
    shelf: Shelf,
    trouble: WriteTrouble,
    /// Whether the entry was in the register since the start.
    was_put: bool,
}

impl Care {
    async fn carry_out(&mut self, OrderCall { order, reply }: OrderCall, rebuilding: &mut JoinSet<()>) {
        match order {
            Order::Copy => self.shelf.order(reply),
            Order::Rebuild(_) if !rebuilding.is_empty() => {
                reply.rebuilt(Err("it is rebuilding its file already".to_owned())).await;
            }
            Order::Rebuild(order) => {
                let newest = self.shelf.newest().map(|copy| copy.path.clone());
                let rebuild = rebuild::Rebuild::of(&self.upkeep, newest, &order);
                rebuilding.spawn(async move {
                    reply.rebuilt(rebuild.run().await.map_err(|error| error.to_string())).await;
                });
            }
        }
    }

    async fn round(&mut self) -> Result<(), NatsError> {
        let upkeep = Arc::clone(&self.upkeep);
        let streams = lane_streams(&upkeep.connection, &upkeep.topology).await?;
        let percent = |s: &StreamState| (u128::from(s.bytes) * 100 / u128::from(s.bytes_max.max(1))) as u64;
        let fullest = streams.iter().flat_map(|(i, e)| [percent(i), percent(e)]).max().unwrap_or(0);
        let pressure = Pressure::of(fullest);
        let Some(lanes) = upkeep.marks() else { return Ok(()) };
        let register = StorerRegister::open(&upkeep.connection).await?;
        match self.register(&register, &lanes).await {
            Ok(true) => self.trouble.over(),
            Ok(false) => return Ok(()),
            // What was put before still holds, only for less. Purging may be what makes room for it.
            Err(error) => self.trouble.not_put(&error),
        }
        let stored: Vec<u64> = lanes.iter().map(|marks| marks.events_sequence).collect();
        if self.shelf.is_due(&stored, pressure) {
            self.shelf.begin();
        }
        self.shelf.sweep();
        upkeep.purge(&register, &streams, pressure).await?;
        upkeep.tell_of_filling(pressure, fullest);
        Ok(())
    }

    /// Renews the entry. False if it was dropped meanwhile and the log ran away from the file: an entry
    /// would then say that what is missing was kept for it, and was lost.
    async fn register(&mut self, register: &StorerRegister, lanes: &[LaneMarks]) -> Result<bool, NatsError> {
        let upkeep = &self.upkeep;
        let place = register.place_of(upkeep.store.storer()).await?;
        if self.was_put && !place.is_there {
            let streams = lane_streams(&upkeep.connection, &upkeep.topology).await?;
            if let Some(error) = outrun(lanes, &streams) {
                // If nobody listens the storer is being stopped.
                let _ = upkeep.failed.try_send(error.into());
                return Ok(false);
            }
        }
        let entry = StorerEntry { copies: self.shelf.entries(), ..upkeep.entry(lanes) };
        register.put_at(&entry, place).await?;
        self.was_put = true;
        Ok(true)
    }
}

impl Upkeep {
    /// What is durable now; `None` if it cannot be read.
    fn marks(&self) -> Option<Vec<LaneMarks>> {
        let read = self.store.read().ok()?;
        let lanes = 0..self.topology.lanes;
        lanes.map(|lane| Some(marks_of(&read.checkpoint(lane).ok()??.checkpoint, lane))).collect()
    }

    /// Its entry, without copies.
    fn entry(&self, lanes: &[LaneMarks]) -> StorerEntry {
        StorerEntry {
            storer: self.store.storer(),
            log_id: self.topology.log_id,
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            database: self.database.display().to_string(),
            seen_at_us: now_us(),
            lanes: lanes.to_vec(),
            copies: Vec::new(),
            temporary: false,
        }
    }

    async fn purge(
        &self,
        register: &StorerRegister,
        streams: &[(StreamState, StreamState)],
        pressure: Pressure,
    ) -> Result<(), NatsError> {
        let mut found = register.registered().await?;
        found.retain(|found| found.entry.log_id == self.topology.log_id);
        // Clocks of hosts differ; the own entry says what time it is by that of the others.
        let own = found.iter().find(|found| found.entry.storer == self.store.storer() && !found.entry.temporary);
        // One that is not in the register may need what nobody else does.
        let Some(now_us) = own.map(|own| own.written_at_us) else { return Ok(()) };
        for gone in dropped(&found, pressure, now_us) {
            if register.remove_unchanged(&gone).await? {
                tracing::error!(
                    storer = format!("{:016x}", gone.entry.storer),
                    "dropped from the register: it is absent, and space is short or it was no storer"
                );
                found.retain(|found| found.entry.storer != gone.entry.storer);
            }
        }
        self.tell_of_absent(&found, now_us);
        let entries: Vec<StorerEntry> = found.into_iter().map(|found| found.entry).collect();
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

    fn tell_of_absent(&self, found: &[Registered], now_us: u64) {
        let absent: Vec<_> = found.iter().filter(|found| is_absent(found, now_us)).map(|f| &f.entry).collect();
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

pub(crate) fn marks_of(checkpoint: &fieldstream_shared::read::Checkpoint, lane: u16) -> LaneMarks {
    let partitions: PartitionSet = Partition::all().filter(|p| p.lane(checkpoint.lanes) == lane).collect();
    let lowest = checkpoint.cursors.lowest(&partitions).map_or(0, |position| position.sequence);
    LaneMarks { events_sequence: checkpoint.events_sequence, instructions_lowest: lowest }
}
