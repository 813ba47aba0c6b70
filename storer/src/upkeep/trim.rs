//! Keeps the history within its bounds ([`super::retention`]), beside the writer and in its pauses.

use super::Upkeep;
use super::retention::{Counted, Cut, HistoryRule, Rules, Seen, Sweep};
use crate::rows::tells_whole_state;
use crate::store::Store;
use crate::tables::TableError;
use crate::writer::now_us;
use fieldstream_nats::child::disk_bytes;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Rows that one read transaction looks at.
const PAGE_ROWS: usize = 2_000;
/// Documents that are cut in one transaction.
const CUT_DOCUMENTS: usize = 32;
/// Rows of `by_time` that go in one transaction.
const CUT_ROWS: usize = 4_000;
/// Sweeps of one round: one that finds out how much there is, one that cuts, and one more since what
/// rows take in the file is only known afterwards.
const SWEEPS_MAX: usize = 3;
/// Of the room for history, the index by time takes at most one part in so many.
const BY_TIME_PART: u64 = 4;
/// Without a bound in bytes, history takes at most one part in so many of what there is to take.
const DISK_PART: u64 = 4;

/// What went in a round.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trimmed {
    /// Rows of history.
    pub(super) history_rows: usize,
    /// Rows of the index by time.
    pub(super) by_time_rows: usize,
}

/// Looks after the history of one storer.
pub(super) struct Trimmer {
    store: Arc<Store>,
    /// Held by the writer while a commit is in the making.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// The storer's directory, on the file's disk.
    directory: PathBuf,
    every: Duration,
    /// Of the history without a rule; `None`: by the room there is.
    bytes_max: Option<u64>,
    rules: Rules,
    stop: CancellationToken,
}

impl Trimmer {
    pub(super) fn new(upkeep: &Upkeep, stop: CancellationToken) -> Trimmer {
        let options = &upkeep.options;
        let rest = HistoryRule {
            prefix: String::new(),
            age_max: options.history_age_max,
            bytes_max: options.history_bytes_max,
        };
        let rules = Rules::new(options.history_rules.clone(), rest);
        Trimmer {
            store: upkeep.store.clone(),
            turn: upkeep.turn.clone(),
            directory: upkeep.directory.clone(),
            every: options.history_every,
            bytes_max: options.history_bytes_max,
            rules,
            stop,
        }
    }

    /// Looks again and again until it is stopped.
    pub(super) fn run(mut self) {
        let every = self.every;
        let mut next = Instant::now() + every;
        while !self.stop.is_cancelled() {
            if Instant::now() < next {
                std::thread::sleep(Duration::from_millis(100).min(every));
                continue;
            }
            match self.round() {
                Ok(trimmed) if trimmed != Trimmed::default() => {
                    let Trimmed { history_rows, by_time_rows } = trimmed;
                    tracing::info!(history_rows, by_time_rows, "old history is gone");
                }
                Ok(_) | Err(TableError::Stopped) => {}
                Err(error) => {
                    let error = self.store.explain(error);
                    tracing::warn!(%error, "looking after the history");
                }
            }
            next = Instant::now() + every;
        }
    }

    /// What there is now is brought within the bounds.
    pub(super) fn round(&mut self) -> Result<Trimmed, TableError> {
        let mut trimmed = Trimmed::default();
        let bytes_max = self.bytes_max()?;
        self.rules.bound_rest(Some(bytes_max));
        trimmed.by_time_rows += self.trim_by_time(bytes_max / BY_TIME_PART)?;
        let is_too_much = |trimmer: &Trimmer| -> Result<bool, TableError> {
            let (history, by_time) = trimmer.store.read()?.history_bytes()?;
            Ok(history + by_time > bytes_max)
        };
        for _ in 0..SWEEPS_MAX {
            if !self.rules.look_at_rows() && !is_too_much(self)? {
                break;
            }
            let (rows, counted) = self.sweep()?;
            trimmed.history_rows += rows;
            let (history, by_time) = self.store.read()?.history_bytes()?;
            self.rules.bound_rest(Some(bytes_max.saturating_sub(by_time)));
            let bytes: u64 = counted.iter().map(|counted| counted.bytes).sum();
            if !self.rules.learn(&counted, history as f64 / bytes.max(1) as f64) {
                break;
            }
        }
        trimmed.by_time_rows += self.trim_by_time(bytes_max / BY_TIME_PART)?;
        Ok(trimmed)
    }

    fn bytes_max(&self) -> Result<u64, TableError> {
        if let Some(bytes_max) = self.bytes_max {
            return Ok(bytes_max);
        }
        // What is free inside the file counts as free, too: only what holds something is taken.
        let used = self.store.used_bytes()?;
        let file =
            std::fs::metadata(Store::database_path(&self.directory).join("data.mdb")).map_or(used, |file| file.len());
        let free = disk_bytes(&self.directory).map_or(u64::MAX / 2, |(free, _)| free);
        Ok(free.saturating_add(file.max(used)) / DISK_PART)
    }

    /// Removes the oldest rows while they are older than anything that is kept, or too many.
    fn trim_by_time(&self, bytes_max: u64) -> Result<usize, TableError> {
        let before_us = self.rules.all_before_us(now_us());
        let mut rows = 0;
        loop {
            self.check()?;
            let too_old = self.in_turn(|| self.store.cut_by_time(before_us, CUT_ROWS))?;
            rows += too_old;
            if too_old == CUT_ROWS {
                continue;
            }
            if self.store.read()?.history_bytes()?.1 <= bytes_max {
                return Ok(rows);
            }
            let too_many = self.in_turn(|| self.store.cut_by_time(u64::MAX, CUT_ROWS))?;
            rows += too_many;
            if too_many == 0 {
                return Ok(rows);
            }
        }
    }

    /// Looks at all rows once and cuts what is to go; rests as long as it works.
    fn sweep(&self) -> Result<(usize, Vec<Counted>), TableError> {
        let mut sweep = Sweep::new(&self.rules, now_us());
        let (mut rows, mut behind) = (0, Some(Vec::new()));
        while let Some(key) = behind {
            let begun = Instant::now();
            let read = self.store.read()?;
            let (_, next) = read.history_rows(&key, PAGE_ROWS, |document, revision, value, bytes| {
                let (is_whole, time_us) = tells_whole_state(value)?;
                sweep.see(Seen { document, revision, time_us, bytes, is_whole });
                Ok(())
            })?;
            drop(read);
            behind = next;
            rows += self.cut(&sweep.take_cuts())?;
            self.check()?;
            std::thread::sleep(begun.elapsed());
        }
        let (cuts, counted) = sweep.end();
        rows += self.cut(&cuts)?;
        Ok((rows, counted))
    }

    fn cut(&self, cuts: &[Cut]) -> Result<usize, TableError> {
        let mut rows = 0;
        for cuts in cuts.chunks(CUT_DOCUMENTS) {
            self.check()?;
            rows += self.in_turn(|| self.store.cut_history(cuts))?;
        }
        Ok(rows)
    }

    /// Between two commits of the writer.
    fn in_turn<T>(&self, work: impl FnOnce() -> Result<T, TableError>) -> Result<T, TableError> {
        let _turn = self.turn.blocking_lock();
        work()
    }

    fn check(&self) -> Result<(), TableError> {
        if self.stop.is_cancelled() { Err(TableError::Stopped) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::projection::{Batch, Projection, State as _, WHOLE_STATE_EVERY_BYTES};
    use crate::rows::{HistoryKey, HistoryRow, parse_by_time_key};
    use crate::store::{Identity, StoreOptions};
    use crate::test_log::TestLog;
    use fieldstream_shared::change::Primitive;
    use fieldstream_shared::document::{Body, Document};
    use std::collections::BTreeMap;
    use std::path::Path;

    fn open(directory: &Path, history_revisions: u64) -> Arc<Store> {
        let options =
            StoreOptions { directory: directory.to_owned(), file_mode: 0o664, map_bytes: 64 << 20, history_revisions };
        Arc::new(Store::open(options, &Identity { lanes: 1, log_id: 1, new_storer: 2, now_us: 3 }).unwrap())
    }

    fn trimmer(store: &Arc<Store>, directory: &Path, bytes_max: u64, rules: Vec<HistoryRule>) -> Trimmer {
        let rest = HistoryRule { prefix: String::new(), age_max: None, bytes_max: Some(bytes_max) };
        Trimmer {
            store: store.clone(),
            turn: Arc::default(),
            directory: directory.to_owned(),
            every: Duration::from_secs(60),
            bytes_max: Some(bytes_max),
            rules: Rules::new(rules, rest),
            stop: CancellationToken::new(),
        }
    }

    /// Appends to documents by turns; every document as it was at every revision.
    fn fill(store: &Store, changes: u64) -> BTreeMap<(String, u64), Document> {
        let mut log = TestLog::new(0, 1);
        log.step_us = 60_000_000;
        let mut was = BTreeMap::new();
        let documents: Vec<String> = (0..5).map(|n| log.document(n)).collect();
        for n in 0..changes {
            let document = &documents[(n % 5) as usize];
            match n {
                0..5 => log.set_text("c", document, "begun"),
                _ => log.update("c", document, vec![Primitive::Append(format!(" and {n}"))]),
            }
            let now = log.expected(document);
            was.insert((document.clone(), now.revision), now);
            if n % 97 == 96 {
                log.cut();
            }
        }
        log.cut();
        let mut projection = Projection::new(store.checkpoints_now().unwrap());
        for (sequence, message) in (1..).zip(&log.messages) {
            let batch = Batch::decode::<TableError>(0, sequence, message).unwrap();
            projection.handle(batch, &store.read().unwrap()).unwrap();
            store.commit(&projection.writes(4)).unwrap();
            projection.committed();
        }
        was
    }

    /// The history of each document, each state told by the rows up to it.
    fn told(store: &Store) -> BTreeMap<(String, u64), Body> {
        let read = store.read().unwrap();
        let (mut told, mut body) = (BTreeMap::new(), None);
        for (database, key, value) in read.dump().unwrap() {
            if database != "history" {
                continue;
            }
            let (key, row) = (HistoryKey::decode(&key).unwrap(), HistoryRow::decode(&value).unwrap());
            let mut state = match body.take() {
                Some((document, state)) if document == key.document => state,
                _ => {
                    assert!(tells_whole_state(&value).unwrap().0, "{key:?} begins its history");
                    Body::Absent
                }
            };
            match row.body {
                Some(whole) => state = whole,
                None => row.change.iter().for_each(|primitive| primitive.apply(&mut state).unwrap()),
            }
            told.insert((key.document.to_string(), key.revision), state.clone());
            body = Some((key.document, state));
        }
        told
    }

    fn check(store: &Store, was: &BTreeMap<(String, u64), Document>) -> usize {
        let told = told(store);
        for (at, body) in &told {
            assert_eq!(body, &was[at].body, "{at:?}");
        }
        let read = store.read().unwrap();
        for document in was.keys().map(|(document, _)| document) {
            let newest = read.document(document).unwrap().unwrap().document.revision;
            assert!(told.contains_key(&(document.clone(), newest)), "the newest row of {document} stays");
        }
        told.len()
    }

    #[test]
    fn every_state_in_history_can_be_told_however_much_of_it_goes() {
        let directory = tempfile::tempdir().unwrap();
        let store = open(directory.path(), 0);
        let was = fill(&store, 3000);
        assert_eq!(check(&store, &was), 3000);
        let (history, by_time) = store.read().unwrap().history_bytes().unwrap();
        assert!(history > 3000 / 5 * 200);
        assert_eq!(trimmer(&store, directory.path(), 2 * (history + by_time), vec![]).round().unwrap().history_rows, 0);
        let mut small = trimmer(&store, directory.path(), (history + by_time) / 2, vec![]);
        let trimmed = small.round().unwrap();
        let (now, index) = store.read().unwrap().history_bytes().unwrap();
        let left = check(&store, &was);
        assert_eq!(left + trimmed.history_rows, 3000);
        assert!((500..2000).contains(&left), "{left}");
        assert!(now + index <= (history + by_time) / 2 + 5 * WHOLE_STATE_EVERY_BYTES, "{now} and {index} of {history}");
        assert_eq!(small.round().unwrap().history_rows, 0, "it is enough");
    }

    #[test]
    fn what_is_kept_by_number_begins_with_a_whole_state_too() {
        let directory = tempfile::tempdir().unwrap();
        let store = open(directory.path(), 100);
        let was = fill(&store, 3000);
        let left = check(&store, &was);
        // 100 for certain, 64 since the last cut, and back to a row that tells the whole state.
        let back = WHOLE_STATE_EVERY_BYTES as usize / 180;
        assert!((500..=5 * (164 + back)).contains(&left), "{left}");
    }

    #[test]
    fn the_index_by_time_is_bounded_on_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let store = open(directory.path(), 0);
        fill(&store, 3000);
        let times = |store: &Store| -> Vec<u64> {
            let rows = store.read().unwrap().dump().unwrap();
            let rows = rows.into_iter().filter(|(database, ..)| *database == "by_time");
            rows.map(|(_, key, _)| parse_by_time_key(&key).unwrap().0).collect()
        };
        let all = times(&store);
        assert_eq!(all.len(), 3000);
        let before_us = all[1000];
        assert!(before_us > all[0]);
        assert_eq!(store.cut_by_time(before_us, 200).unwrap(), 200);
        let left = 3000 - 200 - store.cut_by_time(before_us, 5000).unwrap();
        assert_eq!(times(&store).first(), Some(&before_us));
        assert_eq!(times(&store).len(), left);
        let trimmed = trimmer(&store, directory.path(), 1 << 16, vec![]).round().unwrap();
        assert!(trimmed.by_time_rows > 0 && store.read().unwrap().history_bytes().unwrap().1 <= 1 << 14);
    }
}
