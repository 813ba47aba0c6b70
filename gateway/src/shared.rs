//! What the tasks of one gateway share.

use crate::error::GatewayError;
use crate::hub::{Clients, Effects, LaneHub, Load, SyncWait};
use crate::lane::{LaneQueue, Origin};
use crate::mailbox::{Closing, Entry, Mailbox, SessionId, Wakes};
use crate::options::GatewayLimits;
use crate::session::Rules;
use crate::tokens::TokenPolicy;
use crate::traces::Traces;
use fieldstream_nats::{Connection, Health, ReadClient, Topology, TraceClock};
use fieldstream_shared::ids::{ClientId, DocumentId};
use fieldstream_shared::partition::Partition;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// So many questions to the storers wait before it is looked which of them are still wanted.
const LOADS_LOOKED_THROUGH_AT: usize = 1_024;

/// Questions to the storers.
#[derive(Debug, Default)]
struct Loads {
    waiting: VecDeque<Load>,
    /// How many there may be before they are looked through again: twice what was wanted then.
    looked_through_at: usize,
}

/// One lane of the log.
#[derive(Debug)]
pub(crate) struct Lane {
    hub: Mutex<LaneHub>,
    queue: Mutex<LaneQueue>,
    queue_is_full: Arc<AtomicBool>,
    /// The queue has something for its writer.
    pub(crate) work: Notify,
    loads: Mutex<Loads>,
    /// There are questions for the storers.
    pub(crate) loads_wanted: Notify,
}

/// Locks of this module guard plain data that is whole between any two statements, so one left
/// behind by a panic is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lane {
    pub(crate) fn new(hub: LaneHub, queue: LaneQueue) -> Lane {
        Lane {
            hub: Mutex::new(hub),
            queue_is_full: queue.full_flag(),
            queue: Mutex::new(queue),
            work: Notify::new(),
            loads: Mutex::default(),
            loads_wanted: Notify::new(),
        }
    }

    pub(crate) fn queue(&self) -> MutexGuard<'_, LaneQueue> {
        lock(&self.queue)
    }

    /// Takes a step of the hub and does what it calls for.
    pub(crate) fn step<R>(&self, step: impl FnOnce(&mut LaneHub, &mut Effects) -> R) -> R {
        let mut effects = Effects::default();
        let result = step(&mut lock(&self.hub), &mut effects);
        let Effects { wakes, loads, .. } = effects;
        drop(wakes);
        if !loads.is_empty() {
            self.ask(loads);
        }
        result
    }

    /// Puts questions to the storers. At most one per watched document and one per watcher is
    /// wanted at a time, so the queue is bounded by the watches once the others are thrown out.
    pub(crate) fn ask(&self, loads: impl IntoIterator<Item = Load>) {
        let mut queue = lock(&self.loads);
        queue.waiting.extend(loads);
        if queue.waiting.len() > queue.looked_through_at.max(LOADS_LOOKED_THROUGH_AT) {
            let mut asked = HashSet::new();
            // The hub's lock goes inside the queue's here, and never the other way round.
            let mut hub = lock(&self.hub);
            queue.waiting.retain(|load| {
                hub.is_wanted(load) && asked.insert((load.key, load.history.map(|(session, _)| session)))
            });
            queue.looked_through_at = 2 * queue.waiting.len();
        }
        drop(queue);
        self.loads_wanted.notify_one();
    }

    pub(crate) fn take_loads(&self, max: usize) -> Vec<Load> {
        let waiting = &mut lock(&self.loads).waiting;
        let n = waiting.len().min(max);
        waiting.drain(..n).collect()
    }

    /// Appends a record to the queue.
    pub(crate) fn append(&self, record: &[u8], origin: Origin) {
        let mut wakes = Wakes::default();
        let mut queue = self.queue();
        let wakes_writer = queue.append(record, origin, &mut wakes);
        queue.note_opening(|| TraceClock::of_process().now_us());
        drop(queue);
        if wakes_writer {
            self.work.notify_one();
        }
    }
}

/// What the tasks of one gateway share.
pub(crate) struct Shared {
    pub(crate) limits: GatewayLimits,
    /// Drawn at the start: tells this gateway from others.
    pub(crate) gateway: u64,
    /// Who was let in, to be told to the other gateways.
    came: mpsc::Sender<(ClientId, Entry)>,
    pub(crate) topology: Topology,
    pub(crate) tokens: TokenPolicy,
    pub(crate) lanes: Vec<Lane>,
    pub(crate) reads: ReadClient,
    /// The connection that consumes; publishing has its own.
    pub(crate) consuming: Connection,
    pub(crate) clients: RwLock<Clients>,
    sessions: Mutex<HashMap<SessionId, Arc<Mailbox>>>,
    next_session: AtomicU64,
    /// SYNCs that are to be placed.
    syncs: Mutex<Vec<Arc<SyncWait>>>,
    pub(crate) syncs_wanted: Notify,
    /// When SYNCs that are not answered by then expire; in order.
    sync_deadlines: Mutex<VecDeque<(u64, Weak<SyncWait>)>>,
    pub(crate) places: Arc<Semaphore>,
    pub(crate) arrivals: Arc<Semaphore>,
    draining: AtomicBool,
    started: Instant,
    fatal: mpsc::Sender<GatewayError>,
    /// What is traced, and how long hops take.
    pub(crate) traces: Traces,
    /// Where problems are reported.
    pub(crate) health: Health,
    /// No new connections.
    pub(crate) closed: CancellationToken,
    /// Everything ends.
    pub(crate) stopped: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("topology", &self.topology).finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn new(
        limits: GatewayLimits,
        tokens: TokenPolicy,
        topology: Topology,
        lanes: Vec<Lane>,
        (reads, consuming): (ReadClient, Connection),
        (fatal, health): (mpsc::Sender<GatewayError>, Health),
        came: mpsc::Sender<(ClientId, Entry)>,
    ) -> Shared {
        let gateway = rand::random();
        Shared {
            places: Arc::new(Semaphore::new(limits.connections_max)),
            arrivals: Arc::new(Semaphore::new(limits.arrivals_max)),
            limits,
            gateway,
            traces: Traces::new(gateway, &health),
            came,
            topology,
            tokens,
            lanes,
            reads,
            consuming,
            clients: RwLock::default(),
            sessions: Mutex::default(),
            next_session: AtomicU64::new(1),
            syncs: Mutex::default(),
            syncs_wanted: Notify::new(),
            sync_deadlines: Mutex::default(),
            draining: AtomicBool::new(false),
            started: Instant::now(),
            fatal,
            health,
            closed: CancellationToken::new(),
            stopped: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// Milliseconds since the start.
    pub(crate) fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    pub(crate) fn instant(&self, ms: u64) -> Instant {
        // A century from now is never.
        self.started + std::time::Duration::from_millis(ms.min(100 * 365 * 86_400_000))
    }

    /// Pauses a session that brings something while a lane's queue is full. True if so.
    pub(crate) fn hold_back(&self, mailbox: &Arc<Mailbox>) -> bool {
        let full = self.lanes.iter().find(|lane| lane.queue_is_full.load(Ordering::Relaxed));
        full.is_some_and(|lane| {
            let mut wakes = Wakes::default();
            // The queue's lock goes before the sessions are woken.
            lane.queue().hold_back(mailbox, &mut wakes)
        })
    }

    pub(crate) fn lane_of(&self, document: &DocumentId) -> &Lane {
        self.lane(Partition::of(document))
    }

    pub(crate) fn lane(&self, partition: Partition) -> &Lane {
        &self.lanes[usize::from(partition.lane(self.topology.lanes))]
    }

    pub(crate) fn rules(&self) -> Rules {
        let limits = &self.limits;
        Rules {
            hello_ms: limits.hello_timeout.as_millis() as u64,
            frame_ms: limits.frame_timeout.as_millis() as u64,
            keepalive_ms: limits.keepalive.as_millis() as u64,
            window: limits.window.min(fieldstream_shared::limits::NUMBER_WINDOW),
            watches_max: limits.watches_max.min(fieldstream_shared::limits::WATCHES_MAX),
            gateway: self.gateway,
        }
    }

    /// Something happened after which the gateway must not go on.
    pub(crate) fn fail(&self, error: GatewayError) {
        tracing::error!(%error, "the gateway cannot go on");
        // The first reason counts; when the channel is full there is one.
        let _ = self.fatal.try_send(error);
    }

    /// A new session's mailbox, in the register until [`Shared::leave`].
    pub(crate) fn enter(&self) -> Arc<Mailbox> {
        let id = self.next_session.fetch_add(1, Ordering::Relaxed);
        let mailbox = Mailbox::new(id, self.limits.outbox_bytes_max);
        lock(&self.sessions).insert(id, Arc::clone(&mailbox));
        mailbox
    }

    /// A client was let in: the other gateways are told.
    pub(crate) fn tell_of(&self, client: &ClientId, entry: Entry) {
        // Full, or nobody sends any more: the keepalive finds what is dead elsewhere.
        let _ = self.came.try_send((client.clone(), entry));
    }

    pub(crate) fn leave(&self, mailbox: &Mailbox) {
        lock(&self.sessions).remove(&mailbox.id);
    }

    /// Whether a session is still there.
    pub(crate) fn is_here(&self, mailbox: &Mailbox) -> bool {
        lock(&self.sessions).contains_key(&mailbox.id)
    }

    pub(crate) fn session_count(&self) -> usize {
        lock(&self.sessions).len()
    }

    pub(crate) fn sessions(&self) -> Vec<Arc<Mailbox>> {
        lock(&self.sessions).values().cloned().collect()
    }

    pub(crate) fn add_sync(&self, mailbox: &Arc<Mailbox>, request: u64) {
        let wait = SyncWait::new(mailbox, request, self.lanes.len());
        let deadline_ms = self.now_ms() + self.limits.read_timeout.as_millis() as u64;
        lock(&self.sync_deadlines).push_back((deadline_ms, Arc::downgrade(&wait)));
        lock(&self.syncs).push(wait);
        self.syncs_wanted.notify_one();
    }

    /// The SYNCs that were asked for and are still waited for.
    pub(crate) fn take_syncs(&self) -> Vec<Arc<SyncWait>> {
        let mut syncs = std::mem::take(&mut *lock(&self.syncs));
        syncs.retain(|wait| !wait.is_over());
        syncs
    }

    /// Answers the SYNCs that have waited for too long, so that they hold up nothing else of their
    /// sessions.
    pub(crate) fn expire_syncs(&self, now_ms: u64) {
        let mut wakes = Wakes::default();
        let mut deadlines = lock(&self.sync_deadlines);
        while let Some((deadline_ms, _)) = deadlines.front()
            && *deadline_ms <= now_ms
            && let Some((_, wait)) = deadlines.pop_front()
        {
            if let Some(wait) = wait.upgrade() {
                wait.expire(&mut wakes);
            }
        }
        drop(deadlines);
        // While the log does not answer, they wait here.
        lock(&self.syncs).retain(|wait| !wait.is_over());
    }

    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Why new sessions are sent away at present, if they are.
    pub(crate) fn turned_away(&self) -> Option<Closing> {
        if self.draining.load(Ordering::Acquire) {
            return Some(Closing::new(fieldstream_shared::code::Code::SHUTTING_DOWN, "the server is stopping"));
        }
        self.lanes.iter().find_map(|lane| lane.queue().outage())
    }
}

/// Microseconds since the Unix epoch.
pub(crate) fn wall_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::{Beginning, Limits};
    use crate::lane::QueueLimits;
    use fieldstream_shared::cursor::Cursors;

    #[test]
    fn questions_that_nobody_wants_any_more_do_not_pile_up() {
        let hub = LaneHub::new(Beginning {
            lane: 0,
            lanes: 1,
            log_id: 1,
            stored_copies: 1,
            limits: Limits { held_bytes_max: 1, recent_bytes_max: 1, documents_bytes_max: 1 },
            cursors: Cursors::default(),
            sequence: 0,
        });
        let queue = QueueLimits { bytes_max: 1, outage_after_ms: 1, batch_age_max_ms: 1, retry_after_ms: 1 };
        let lane = Lane::new(hub, LaneQueue::new(queue));
        let document = DocumentId::new("d").unwrap();
        for from in 1..=5 * LOADS_LOOKED_THROUGH_AT as u64 {
            lane.ask([Load { key: 1, document: document.clone(), min_sequence: 0, history: Some((1, from)) }]);
        }
        assert!(lock(&lane.loads).waiting.len() <= LOADS_LOOKED_THROUGH_AT);
    }
}
