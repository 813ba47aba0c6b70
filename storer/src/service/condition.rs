//! How the file is: looked at from time to time, for status and metrics, and to tell of readers that keep
//! pages from being used again.

use crate::store::{ReaderTable, Store, Watched, process_name};
use fieldstream_nats::{FileStatus, Finding, Health, Member, RoleStatus, Severity, StorerStatus};
use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often it is looked at.
const EVERY: Duration = Duration::from_secs(5);

/// Every so many looks, reader slots of ended processes are looked for. They keep old pages from being
/// used again, so the file would grow.
const STALE_READERS_EVERY: u32 = 12;

/// A reader that looks at one state for so long is told of, if there were commits since.
const PATIENCE: Duration = Duration::from_secs(60);

/// Code of the finding that a reader keeps pages from being used again.
const PINNED: &str = "reader-pins-pages";

/// What was seen last.
pub(super) type Seen = Arc<Mutex<FileStatus>>;

/// Looks until `stop`.
pub(super) async fn watch(store: Arc<Store>, copies: PathBuf, seen: Seen, health: Health, stop: CancellationToken) {
    let mut interval = tokio::time::interval(EVERY);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut watched = Watched::default();
    for n in 0_u32.. {
        tokio::select! {
            _ = interval.tick() => {}
            () = stop.cancelled() => return,
        }
        let (store, copies) = (store.clone(), copies.clone());
        let is_due = n % STALE_READERS_EVERY == 0;
        let looking = tokio::task::spawn_blocking(move || {
            if is_due {
                clear_stale_readers(&store);
            }
            look(&store, &copies)
        });
        let Ok(Some((status, readers))) = looking.await else { continue };
        *seen.lock().unwrap_or_else(PoisonError::into_inner) = status;
        tell_of_readers(&mut watched, &readers, &health);
    }
}

fn clear_stale_readers(store: &Store) {
    match store.clear_stale_readers() {
        Ok(0) => {}
        Ok(stale) => tracing::info!(stale, "reader slots of ended processes were freed"),
        Err(error) => {
            let error = store.explain(error);
            tracing::warn!(%error, "looking for reader slots of ended processes");
        }
    }
}

fn look(store: &Store, copies: &Path) -> Option<(FileStatus, ReaderTable)> {
    let condition = match store.condition() {
        Ok(condition) => condition,
        Err(error) => {
            let error = store.explain(error);
            tracing::warn!(%error, "looking at the file");
            return None;
        }
    };
    let newest = std::fs::metadata(copies.join("latest/data.mdb")).and_then(|file| file.modified()).ok();
    let copied_at_us = newest.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map(|since| since.as_micros() as u64);
    let status = FileStatus {
        used_bytes: condition.used_bytes,
        history_bytes: condition.history_bytes,
        by_time_bytes: condition.by_time_bytes,
        map_bytes: condition.map_bytes,
        readers: condition.readers.active.len() as u64,
        reader_lag_commits: condition.readers.lag_commits(),
        copied_at_us,
        copies: copy_files(copies).count() as u64,
    };
    Some((status, condition.readers))
}

fn tell_of_readers(watched: &mut Watched, readers: &ReaderTable, health: &Health) {
    let Some((reader, for_long)) = watched.see(readers, Instant::now(), PATIENCE) else {
        return health.clear(PINNED);
    };
    let message = format!(
        "{} has been looking at one state of the LMDB file for over {} min; no page is used again meanwhile, and the \
         file grows",
        process_name(reader.pid),
        for_long.as_secs() / 60
    );
    let mend = "let it use one read transaction per page of rows, or end it";
    health.raise(Finding::new(PINNED, Severity::Warning, message, mend));
}

/// The files of the copies in a folder. `latest` is a link to one of them.
fn copy_files(folder: &Path) -> impl Iterator<Item = Metadata> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let own = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    own.filter_map(|entry| std::fs::metadata(entry.path().join("data.mdb")).ok())
}

/// What the storer says of itself.
pub(super) fn status(
    member: Member,
    (directory, copies): (&Path, PathBuf),
    storer: u64,
    durable: watch::Receiver<Vec<u64>>,
    seen: Seen,
) -> impl Fn() -> RoleStatus + use<> {
    let database = Store::database_path(directory);
    move || {
        let file_bytes = std::fs::metadata(database.join("data.mdb")).map_or(0, |file| file.len());
        let (database, stored) = (database.display().to_string(), durable.borrow().clone());
        let copies_bytes = copy_files(&copies).map(|file| file.len()).sum();
        let file = seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let storer = StorerStatus { storer, database, file_bytes, copies_bytes, stored, file: Some(file) };
        RoleStatus { storer: Some(storer), ..member.status() }
    }
}
