//! The one thread that writes. Self-clocked: while a commit runs, batches gather in the queue; when
//! it is done, all of them become the next. A pause between commits spares the disk.

use crate::projection::{Batch, Projection, ProjectionError};
use crate::service::StorerError;
use crate::store::Store;
use crate::tables::TableError;
use crate::timing::{Arrival, Hops};
use bytes::Bytes;
use fieldstream_nats::{Finding, Health, Severity, TraceClock};
use fieldstream_shared::read::Checkpoint;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{Mutex, mpsc, watch};
use tokio_util::sync::CancellationToken;

/// A commit closes at this many events. A commit holds every page it changes in memory, up to four
/// per event, and `stored` acknowledgements wait for the whole of it.
const COMMIT_EVENTS_MAX: usize = 16 * 1024;

/// A commit closes when its rows reach this many bytes: bounds the memory a commit takes.
const COMMIT_BYTES_MAX: usize = 32 * 1024 * 1024;

/// While a commit waits for its time, how often the queue is looked at.
const GATHER_STEP: Duration = Duration::from_millis(1);

/// Short commits are followed by a rest so many times as long, up to [`LONG_REST_MAX`].
const REST_PER_COMMIT: u32 = 3;

/// Who waits for `stored` waits for the rest, too.
const LONG_REST_MAX: Duration = Duration::from_millis(100);

/// The longest rest after a commit that took longer than that.
const REST_MAX: Duration = Duration::from_secs(1);

/// Code of the finding that commits fail.
const NOT_STORED: &str = "not-stored";

/// The wait before a failed commit is tried again, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// A message on its way to the writer, decoded by the task that read it.
pub(crate) struct Arrived {
    pub(crate) lane: u16,
    pub(crate) sequence: u64,
    pub(crate) payload: Bytes,
    pub(crate) batch: Result<Batch, ProjectionError<TableError>>,
    /// When it was read.
    read_us: u64,
}

impl Arrived {
    pub(crate) fn new(lane: u16, sequence: u64, payload: Bytes) -> Arrived {
        let read_us = TraceClock::of_process().now_us();
        let batch = Batch::decode(lane, sequence, &payload);
        Arrived { lane, sequence, payload, batch, read_us }
    }
}

/// The writer's side of the storer.
pub(crate) struct Writer {
    store: Arc<Store>,
    projection: Projection,
    arriving: mpsc::Receiver<Arrived>,
    durable: watch::Sender<Vec<u64>>,
    floor: Duration,
    /// Ends the writer after the commit it is at, whatever is still queued.
    abandon: CancellationToken,
    /// What the commit being prepared is made of: enough to make it again without its last message.
    group: Vec<(u16, u64, Bytes)>,
    /// When the next commit may begin, unless it is full.
    not_before: Instant,
    health: Health,
    /// Held from the first event of a commit until it is durable: who has it finds the writer between
    /// two commits, with nothing taken in.
    turn: Arc<Mutex<()>>,
    rests: bool,
    /// A full map grows up to this size; 0: it does not.
    map_bytes_max: usize,
    hops: Option<Hops>,
    /// Of the commit being prepared, if anybody wants to know.
    arrivals: Vec<Arrival>,
}

impl Writer {
    pub(crate) fn new(
        store: Arc<Store>,
        arriving: mpsc::Receiver<Arrived>,
        durable: watch::Sender<Vec<u64>>,
        floor: Duration,
        abandon: CancellationToken,
    ) -> Writer {
        let projection = Projection::new(store.checkpoints().to_vec());
        Writer {
            rests: true,
            map_bytes_max: 0,
            hops: None,
            arrivals: Vec::new(),
            turn: Arc::new(Mutex::new(())),
            store,
            projection,
            arriving,
            durable,
            floor,
            abandon,
            group: Vec::new(),
            not_before: Instant::now(),
            health: Health::new(),
        }
    }

    /// Where it reports commits that fail.
    pub(crate) fn reporting_to(self, health: Health) -> Writer {
        Writer { health, ..self }
    }

    /// Where it counts how long hops take, and puts stamps.
    pub(crate) fn timed_by(self, hops: Hops) -> Writer {
        Writer { hops: Some(hops), ..self }
    }

    /// How far the map may grow.
    pub(crate) fn growing_map_to(self, map_bytes_max: usize) -> Writer {
        Writer { map_bytes_max, ..self }
    }

    /// Takes its turns under this lock.
    pub(crate) fn taking_turns(self, turn: Arc<Mutex<()>>) -> Writer {
        Writer { turn, ..self }
    }

    /// Goes on behind these checkpoints, and never rests: for a file that nobody reads yet.
    pub(crate) fn catching_up(self, checkpoints: Vec<Checkpoint>) -> Writer {
        Writer { projection: Projection::new(checkpoints), rests: false, ..self }
    }

    /// Writes until the queue is closed and empty.
    pub(crate) fn run(mut self) -> Result<(), StorerError> {
        // A writer before this one may have ended while its commits failed.
        self.health.clear(NOT_STORED);
        while let Some(first) = self.arriving.blocking_recv() {
            if self.abandon.is_cancelled() {
                return Ok(());
            }
            let turn = Arc::clone(&self.turn);
            let _turn = turn.blocking_lock();
            self.take_in(first)?;
            self.gather()?;
            let begun = Instant::now();
            let took = self.commit()?;
            if !self.rests {
                continue;
            }
            self.not_before = Instant::now() + rest(self.floor, begun.elapsed(), took);
        }
        Ok(())
    }

    /// Takes in what is queued, until the commit is full or its time has come. A lone event after a
    /// quiet time is committed at once.
    fn gather(&mut self) -> Result<(), StorerError> {
        loop {
            self.take_in_queued()?;
            let rest = self.not_before.saturating_duration_since(Instant::now());
            if self.is_full() || rest.is_zero() || self.arriving.is_closed() {
                return Ok(());
            }
            std::thread::sleep(rest.min(GATHER_STEP));
        }
    }

    fn is_full(&self) -> bool {
        self.projection.events() >= COMMIT_EVENTS_MAX || self.projection.bytes() >= COMMIT_BYTES_MAX
    }

    fn take_in_queued(&mut self) -> Result<(), StorerError> {
        while !self.is_full() {
            let Ok(arrived) = self.arriving.try_recv() else { break };
            self.take_in(arrived)?;
        }
        Ok(())
    }

    fn take_in(&mut self, arrived: Arrived) -> Result<(), StorerError> {
        let Arrived { lane, sequence, payload, mut batch, read_us } = arrived;
        let arrival =
            if self.hops.is_some() { batch.as_mut().ok().map(|batch| Arrival::of(batch, read_us)) } else { None };
        let read = self.store.read().map_err(|e| self.store.explain(e))?;
        match batch.and_then(|batch| self.projection.handle(batch, &read)) {
            Ok(()) => {
                self.group.push((lane, sequence, payload));
                self.arrivals.extend(arrival);
                Ok(())
            }
            Err(error) => {
                drop(read);
                self.store_what_came_before()?;
                Err(self.explain(error))
            }
        }
    }

    /// The last message was bad and may have been taken in by half: makes the commit again from the
    /// messages before it, so that what is stored ends right before the bad one.
    fn store_what_came_before(&mut self) -> Result<(), StorerError> {
        let good = std::mem::take(&mut self.group);
        if good.is_empty() {
            return Ok(());
        }
        let read = self.store.read().map_err(|e| self.store.explain(e))?;
        let lanes = 0..self.store.checkpoints().len() as u16;
        let checkpoints = lanes.filter_map(|lane| read.checkpoint(lane).transpose());
        let checkpoints: Result<Vec<_>, _> = checkpoints.map(|row| row.map(|row| row.checkpoint)).collect();
        let mut projection = Projection::new(checkpoints.map_err(|e| self.store.explain(e))?);
        for (lane, sequence, payload) in &good {
            let batch = Batch::decode(*lane, *sequence, payload);
            let handled = batch.and_then(|batch| projection.handle(batch, &read));
            handled.map_err(|e| self.explain(e))?;
        }
        drop(read);
        self.projection = projection;
        self.commit().map(drop)
    }

    /// Commits, and if the disk or the map is full, tries again until it works. How long the attempt
    /// took that did.
    fn commit(&mut self) -> Result<Duration, StorerError> {
        let (mut wait, mut failing) = (RETRY.0, false);
        let took = loop {
            let begun = Instant::now();
            let error = match self.store.commit(&self.projection.writes(now_us())) {
                Ok(()) => break begun.elapsed(),
                Err(TableError::MapFull) if self.grow_map() => continue,
                Err(error) if error.is_passing() => self.store.explain(error),
                Err(error) => return Err(self.store.explain(error).into()),
            };
            if self.abandon.is_cancelled() {
                return Err(error.into());
            }
            failing = true;
            let message = format!("nothing is stored: {error}");
            let mend = "make room on the disk; commits are tried until they work, the log keeps everything meanwhile";
            self.health.raise(Finding::new(NOT_STORED, Severity::Blocking, message, mend));
            self.pause(wait);
            wait = (wait * 2).min(RETRY.1);
        };
        if failing {
            tracing::info!("committing again");
            self.health.clear(NOT_STORED);
        }
        tracing::trace!(batches = self.projection.batches(), events = self.projection.events(), "committed");
        self.projection.committed();
        self.group.clear();
        if let Some(hops) = &self.hops {
            hops.committed(&mut self.arrivals);
        }
        self.durable.send_replace(self.projection.sequences());
        Ok(took)
    }

    /// False if the map is as large as it may be, or as the address space allows.
    fn grow_map(&self) -> bool {
        match self.store.grow_map(self.map_bytes_max) {
            Ok(Some(map_bytes)) => {
                tracing::info!(map_bytes, "the map was full and is twice as large now");
                true
            }
            Ok(None) => false,
            Err(error) => {
                tracing::warn!(%error, "the map cannot grow");
                false
            }
        }
    }

    /// Sleeps, but not long when the writer is to end.
    fn pause(&self, wait: Duration) {
        let until = Instant::now() + wait;
        while Instant::now() < until && !self.abandon.is_cancelled() {
            std::thread::sleep(wait.min(RETRY.0));
        }
    }

    fn explain(&self, error: ProjectionError<TableError>) -> StorerError {
        match error {
            ProjectionError::State(error) => self.store.explain(error).into(),
            error => error.into(),
        }
    }
}

/// How long the writer rests behind a commit that began so long ago and whose successful attempt took
/// so long. At least as long as that, which leaves half of the disk's time to others, above all to
/// nats-server. Behind short commits longer, so that the next one is larger, hence cheaper per event: a
/// commit writes every page it touches, however few rows of it changed. An outage before it is no reason
/// to rest.
fn rest(floor: Duration, since_begun: Duration, took: Duration) -> Duration {
    let longer = (took * REST_PER_COMMIT).min(LONG_REST_MAX);
    floor.saturating_sub(since_begun).max(longer).max(took.min(REST_MAX))
}

/// Wall time in microseconds since the Unix epoch.
pub(crate) fn now_us() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::projection::State;
    use crate::store::{Identity, StoreError, StoreOptions};
    use crate::tables::DumpedRow;
    use crate::test_log::TestLog;
    use std::path::Path;
    use std::thread::JoinHandle;

    fn open(directory: &Path, map_bytes: usize) -> Arc<Store> {
        let options =
            StoreOptions { directory: directory.to_owned(), file_mode: 0o664, map_bytes, history_revisions: 0 };
        Arc::new(Store::open(options, &Identity { lanes: 1, log_id: 1, new_storer: 2, now_us: 3 }).unwrap())
    }

    struct Running {
        arrived: mpsc::Sender<Arrived>,
        durable: watch::Receiver<Vec<u64>>,
        abandon: CancellationToken,
        thread: JoinHandle<Result<(), StorerError>>,
    }

    fn start(store: &Arc<Store>) -> Running {
        let (arrived, arriving) = mpsc::channel(64);
        let (sender, durable) = watch::channel(vec![0]);
        let abandon = CancellationToken::new();
        let writer = Writer::new(store.clone(), arriving, sender, Duration::from_millis(1), abandon.clone());
        Running { arrived, durable, abandon, thread: std::thread::spawn(move || writer.run()) }
    }

    fn send(running: &Running, log: &TestLog, behind: u64) {
        for (sequence, message) in (1..).zip(&log.messages).filter(|(sequence, _)| *sequence > behind) {
            running.arrived.blocking_send(Arrived::new(0, sequence, message.clone().into())).unwrap();
        }
    }

    /// All rows but the checkpoints, whose time of commit differs.
    fn dump(store: &Store) -> Vec<DumpedRow> {
        let rows = store.read().unwrap().dump().unwrap();
        rows.into_iter().filter(|(database, ..)| *database != "meta").collect()
    }

    fn log(messages: u64) -> TestLog {
        let mut log = TestLog::new(0, 1);
        for n in 0..messages {
            log.set_text("c", &log.document(n % 7), &"x".repeat(30_000 + n as usize));
            log.cut();
        }
        log
    }

    /// The writer tries again and again, and nothing more becomes durable.
    fn wait_until_stuck(running: &Running) -> u64 {
        let sequence = || running.durable.borrow()[0];
        loop {
            let before = sequence();
            std::thread::sleep(Duration::from_millis(300));
            if sequence() == before {
                return before;
            }
        }
    }

    #[test]
    fn a_rest_is_in_proportion_to_the_commit_and_not_to_an_outage() {
        let ms = Duration::from_millis;
        assert_eq!(rest(ms(9), ms(2), ms(2)), ms(7));
        assert_eq!(rest(ms(5), ms(30), ms(30)), ms(90));
        assert_eq!(rest(ms(5), ms(40), ms(40)), LONG_REST_MAX);
        assert_eq!(rest(ms(5), ms(400), ms(400)), ms(400), "a slow disk has others, too");
        assert_eq!(rest(ms(5), ms(3_600_000), ms(30)), ms(90), "tried for an hour");
        assert_eq!(rest(ms(5), ms(30_000), ms(30_000)), REST_MAX);
    }

    #[test]
    fn what_an_earlier_writer_found_is_over() {
        let directory = tempfile::tempdir().unwrap();
        let (health, (_, arriving)) = (Health::new(), mpsc::channel(1));
        health.raise(Finding::new(NOT_STORED, Severity::Blocking, "full", "make room"));
        let (durable, _) = watch::channel(vec![0]);
        let store = open(directory.path(), 1 << 20);
        let writer = Writer::new(store, arriving, durable, Duration::ZERO, CancellationToken::new());
        writer.reporting_to(health.clone()).run().unwrap();
        assert_eq!(health.findings(), []);
    }

    #[test]
    fn what_is_queued_is_stored_before_the_writer_ends() {
        let directory = tempfile::tempdir().unwrap();
        let (store, log) = (open(directory.path(), 64 << 20), log(50));
        let running = start(&store);
        send(&running, &log, 0);
        drop(running.arrived);
        running.thread.join().unwrap().unwrap();
        assert_eq!(*running.durable.borrow(), [50]);
        let row = store.read().unwrap().document(&log.document(3)).unwrap().unwrap();
        assert_eq!(row.document, log.expected(&log.document(3)));
    }

    #[test]
    fn a_bad_message_stops_the_writer_right_behind_the_last_good_one() {
        let directory = tempfile::tempdir().unwrap();
        let (store, mut log) = (open(directory.path(), 64 << 20), log(20));
        log.set_text("c", "d", "taken in by half");
        log.garbage(&[0xc1]);
        log.cut();
        let running = start(&store);
        send(&running, &log, 0);
        let error = running.thread.join().unwrap().unwrap_err();
        assert!(error.to_string().starts_with("lane 0, EVENTS sequence 21: event 1"), "{error}");
        assert_eq!(*running.durable.borrow(), [20]);
        assert_eq!(store.read().unwrap().document("d").unwrap(), None);
    }

    #[test]
    fn a_full_map_stores_nothing_by_half_and_a_larger_one_goes_on() {
        let (directory, straight) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let log = log(60);
        let store = open(directory.path(), 1 << 20);
        let running = start(&store);
        send(&running, &log, 0);
        let stuck = wait_until_stuck(&running);
        assert!(stuck < 60);
        assert!(!running.thread.is_finished(), "a full map is no reason to end");
        assert_eq!(store.read().unwrap().sequence(0).unwrap(), Some(stuck));
        running.abandon.cancel();
        let error = running.thread.join().unwrap().unwrap_err();
        assert!(matches!(error, StorerError::Store(StoreError::MapFull { .. })), "{error}");
        assert!(error.to_string().contains("larger map size"), "{error}");
        drop(store);

        let store = open(directory.path(), 64 << 20);
        let running = start(&store);
        send(&running, &log, stuck);
        drop(running.arrived);
        running.thread.join().unwrap().unwrap();
        let whole = open(straight.path(), 64 << 20);
        let running = start(&whole);
        send(&running, &log, 0);
        drop(running.arrived);
        running.thread.join().unwrap().unwrap();
        assert_eq!(dump(&store), dump(&whole));
    }

    #[test]
    fn a_full_map_grows_while_others_read() {
        let directory = tempfile::tempdir().unwrap();
        let (store, log) = (open(directory.path(), 1 << 20), log(60));
        let (arrived, arriving) = mpsc::channel(64);
        let (sender, durable) = watch::channel(vec![0]);
        let abandon = CancellationToken::new();
        let writer = Writer::new(store.clone(), arriving, sender, Duration::from_millis(1), abandon.clone())
            .growing_map_to(64 << 20);
        let running = Running { arrived, durable, abandon, thread: std::thread::spawn(move || writer.run()) };
        let stop = CancellationToken::new();
        let reader = std::thread::spawn({
            let (store, stop) = (store.clone(), stop.clone());
            move || {
                let mut reads = 0_u64;
                while !stop.is_cancelled() {
                    let read = store.read().unwrap();
                    let stored = read.sequence(0).unwrap().unwrap();
                    let rows = read.list("", "", 100).unwrap().len() as u64;
                    assert!(rows <= stored && rows >= stored.min(7));
                    reads += 1;
                }
                reads
            }
        });
        send(&running, &log, 0);
        drop(running.arrived);
        running.thread.join().unwrap().unwrap();
        stop.cancel();
        assert!(reader.join().unwrap() > 0);
        assert_eq!(*running.durable.borrow(), [60]);
        assert!(store.condition().unwrap().map_bytes >= 2 << 20);
    }

    /// Runs in a process of its own (below), where files must not grow beyond a limit.
    fn store_on_a_full_disk(directory: &Path) {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let (store, log) = (open(directory, 64 << 20), log(60));
        let unlimited = getrlimit(Resource::Fsize);
        setrlimit(Resource::Fsize, Rlimit { current: Some(1 << 20), ..unlimited }).unwrap();
        let mut running = start(&store);
        send(&running, &log, 0);
        let stuck = wait_until_stuck(&running);
        assert!(stuck < 60 && !running.thread.is_finished());
        assert_eq!(store.read().unwrap().sequence(0).unwrap(), Some(stuck));
        setrlimit(Resource::Fsize, unlimited).unwrap();
        while *running.durable.borrow_and_update() != [60] {
            assert!(!running.thread.is_finished());
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(running.arrived);
        running.thread.join().unwrap().unwrap();
    }

    #[test]
    fn a_full_disk_is_waited_for() {
        const DIRECTORY: &str = "FIELDSTREAM_TEST_FULL_DISK";
        if let Some(directory) = std::env::var_os(DIRECTORY) {
            return store_on_a_full_disk(Path::new(&directory));
        }
        let directory = tempfile::tempdir().unwrap();
        // A process over its limit gets an error like that of a full disk, if it ignores the signal.
        let output = std::process::Command::new("sh")
            .args(["-c", "trap '' XFSZ; exec \"$0\" --exact writer::tests::a_full_disk_is_waited_for"])
            .arg(std::env::current_exe().unwrap())
            .env(DIRECTORY, directory.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        let store = open(directory.path(), 64 << 20);
        assert_eq!(store.checkpoints()[0].events_sequence, 60);
    }
}
