//! A storer that begins where the log does not: it takes a verified copy from one that is running, over
//! NATS, and goes on from there. And the other side: handing out pieces of copies.

use crate::replay::{Kept, Scratch};
use crate::service::{StorerError, StorerOptions};
use crate::store::{Copies, Store, StoreError, StoreOptions, file_error, restore};
use crate::writer::now_us;
use fieldstream_nats::{
    Connection, CopyEntry, Log, NatsError, PIECE_BYTES, PieceRequest, PieceServer, StorerEntry, StorerRegister,
    Topology, first_sequence, request_piece, request_snapshot,
};
use futures::{StreamExt as _, TryStreamExt as _};
use std::path::Path;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;

/// What is not complete begins with this.
const UNFINISHED: &str = ".join-";
/// Pieces that are under way at a time.
const PIECES: usize = 4;
/// A copy may be replaced while it is carried over; then the next newest is taken.
const TRIES: u32 = 3;
/// A storer renews its entry far more often than this.
const PRESENT: Duration = Duration::from_secs(15);

/// Fills an empty directory from a running storer's copy, if the log does not reach back to its
/// beginning. Otherwise, and if no storer is running, nothing is done.
///
/// The new storer is in the register before the first piece comes, so that what it still has to read
/// behind the copy stays in the log.
pub(crate) async fn join(
    options: &StorerOptions,
    files: &StoreOptions,
    connection: &Connection,
    topology: &Topology,
) -> Result<(), StorerError> {
    if !Store::is_blank(&files.directory)? || reaches_back(connection, topology.lanes).await? {
        return Ok(());
    }
    let register = StorerRegister::open(connection).await?;
    for _ in 0..TRIES {
        let Some((from, copy)) = newest(connection, &register, topology.log_id).await? else { return Ok(()) };
        match take(options, files, connection, topology, (from, &copy)).await {
            Ok(true) => return Ok(()),
            Ok(false) => tracing::info!("the log was purged behind the copy meanwhile; a newer one is taken"),
            Err(error @ StorerError::Nats(_)) => tracing::warn!(%error, "a copy did not come over; once more"),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether every lane can be read from its first message on.
async fn reaches_back(connection: &Connection, lanes: u16) -> Result<bool, NatsError> {
    for lane in 0..lanes {
        if first_sequence(connection, Log::Events, lane).await? > 1 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The newest copy of those that running storers have; one is made if there is none.
async fn newest(
    connection: &Connection,
    register: &StorerRegister,
    log_id: u64,
) -> Result<Option<(u64, CopyEntry)>, NatsError> {
    let now = now_us();
    let is_running = |entry: &StorerEntry| {
        let age = Duration::from_micros(now.saturating_sub(entry.seen_at_us));
        !entry.temporary && entry.log_id == log_id && age < PRESENT
    };
    let running: Vec<StorerEntry> = register.list().await?.into_iter().filter(is_running).collect();
    let upto = |copy: &CopyEntry| copy.lanes.iter().map(|marks| marks.events_sequence).sum::<u64>();
    let copies = running.iter().filter_map(|entry| Some((entry.storer, entry.copies.first()?.clone())));
    match (copies.max_by_key(|(_, copy)| upto(copy)), running.first()) {
        (Some(newest), _) => Ok(Some(newest)),
        (None, Some(entry)) => Ok(Some((entry.storer, request_snapshot(connection, entry.storer).await?))),
        (None, None) => Ok(None),
    }
}

/// Takes over one copy. False if the log no longer goes on where it ends.
async fn take(
    options: &StorerOptions,
    files: &StoreOptions,
    connection: &Connection,
    topology: &Topology,
    (from, copy): (u64, &CopyEntry),
) -> Result<bool, StorerError> {
    let storer = rand::random();
    let entry = StorerEntry {
        storer,
        log_id: topology.log_id,
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        database: Store::database_path(&options.directory).display().to_string(),
        seen_at_us: now_us(),
        lanes: copy.lanes.clone(),
        copies: Vec::new(),
        // Until it stores by itself, it is dropped like any that is only being made.
        temporary: true,
    };
    let kept = Kept::begin(connection, entry).await?;
    let taken = carry_over(files, connection, topology, (from, copy), storer).await;
    // Its own entry takes the place of this one when it works.
    if !matches!(taken, Ok(true)) {
        kept.end().await;
    }
    taken
}

async fn carry_over(
    files: &StoreOptions,
    connection: &Connection,
    topology: &Topology,
    (from, copy): (u64, &CopyEntry),
    storer: u64,
) -> Result<bool, StorerError> {
    for (lane, marks) in (0..topology.lanes).zip(&copy.lanes) {
        // The message behind the copy is enough: right behind a repair there is no other.
        if first_sequence(connection, Log::Events, lane).await? > marks.events_sequence + 1 {
            return Ok(false);
        }
    }
    tracing::info!(
        from = format_args!("{from:016x}"),
        bytes = copy.bytes,
        "the log was purged; taking a storer's copy"
    );
    remove_unfinished(&files.directory)?;
    let scratch = Scratch(files.directory.join(format!("{UNFINISHED}{storer:016x}")));
    fetch(connection, from, copy, &scratch.0).await?;
    let files = files.clone();
    let placed = tokio::task::spawn_blocking(move || restore(&scratch.0, &files, Some(storer), true));
    let state = placed.await.map_err(|e| StorerError::WriterGone(e.to_string()))??;
    tracing::info!(rows = state.rows, "the copy is complete and was verified; going on from it");
    Ok(true)
}

/// What an earlier attempt left behind.
fn remove_unfinished(directory: &Path) -> Result<(), StoreError> {
    Store::check_unused(directory)?;
    let entries = std::fs::read_dir(directory).map_err(|e| file_error("list", directory, e))?;
    for entry in entries.filter_map(Result::ok) {
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            std::fs::remove_dir_all(entry.path()).map_err(|e| file_error("remove", &entry.path(), e))?;
        }
    }
    Ok(())
}

async fn fetch(connection: &Connection, from: u64, copy: &CopyEntry, folder: &Path) -> Result<(), StorerError> {
    let path = folder.join("data.mdb");
    let failed = |e| file_error("write", &path, e);
    tokio::fs::create_dir_all(folder).await.map_err(failed)?;
    let mut file = tokio::fs::File::create(&path).await.map_err(failed)?;
    let pieces = (0..copy.bytes).step_by(PIECE_BYTES as usize);
    let pieces =
        pieces.map(|offset| request_piece(connection, from, PieceRequest { made_at_us: copy.made_at_us, offset }));
    let mut pieces = futures::stream::iter(pieces).buffered(PIECES);
    let mut written = 0;
    while let Some(piece) = pieces.try_next().await? {
        let expected = PIECE_BYTES.min(copy.bytes - written);
        if piece.len() as u64 != expected {
            return Err(connection.wrong_answer("getting a copy from a storer", "a piece has another length").into());
        }
        file.write_all(&piece).await.map_err(failed)?;
        written += expected;
    }
    file.flush().await.map_err(failed)?;
    Ok(())
}

/// Hands out pieces of this storer's copies until the connection is closed.
pub(crate) async fn serve(mut server: PieceServer, copies: Copies) {
    while let Some(call) = server.next().await {
        let (copies, request) = (copies.clone(), call.request);
        let piece = tokio::task::spawn_blocking(move || copies.piece(request.made_at_us, request.offset, PIECE_BYTES));
        let piece = piece.await.map_err(|e| e.to_string()).and_then(|piece| piece.map_err(|e| e.to_string()));
        call.respond(piece).await;
    }
}
