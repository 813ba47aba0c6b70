//! Looks whether INSTRUCTIONS still has what the stored events speak of. The storer does not read that
//! stream; but a processor that starts from the storer's checkpoint must find its place in it.
//!
//! And whether the log is still the one that the storer has: of a repair that mended what others found
//! its own stream tells nothing, while they wait for a storer that goes on with it.

use crate::beginnings;
use crate::service::StorerError;
use crate::store::Store;
use fieldstream_nats::{Connection, Log, LogError, LogNow, NatsError, last_sequence};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// A stream that does not answer is asked again after this long.
const RETRY: Duration = Duration::from_millis(500);

/// How often is looked whether the log was repaired.
const REPAIRED_EVERY: Duration = Duration::from_secs(2);

/// Looks at the start and at every reconnect, for a repair again and again; ends with the first thing it
/// finds.
pub(crate) async fn watch(mut connection: Connection, store: Arc<Store>, failed: mpsc::Sender<StorerError>) {
    let lanes = 0..store.checkpoints().len() as u16;
    loop {
        for lane in lanes.clone() {
            if let Err(error) = look(&connection, &store, lane).await {
                // If nobody listens the storer is being stopped.
                let _ = failed.try_send(error);
                return;
            }
        }
        if let Err(error) = look_at_beginnings(&mut connection, &store).await {
            let _ = failed.try_send(error);
            return;
        }
        if let Err(error) = until_reconnected(&mut connection, &store).await {
            let _ = failed.try_send(error);
            return;
        }
    }
}

/// Waits for a reconnect; the error is a repair.
async fn until_reconnected(connection: &mut Connection, store: &Store) -> Result<(), StorerError> {
    loop {
        tokio::select! {
            () = connection.reconnected() => return Ok(()),
            () = tokio::time::sleep(REPAIRED_EVERY) => {}
        }
        // One that is under way may still have to ask this storer.
        match LogNow::load(connection).await {
            Ok(now) if !now.repairing => is_ours(now, store)?,
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "the log's identity could not be looked at"),
        }
    }
}

fn is_ours(now: LogNow, store: &Store) -> Result<(), StorerError> {
    let was = store.checkpoints().first().map_or(now.log_id, |checkpoint| checkpoint.log_id);
    if was == now.log_id { Ok(()) } else { Err(StorerError::Repaired { was, now: now.log_id }) }
}

/// Why a storer cannot read on: a log that ran away from it was purged, or repaired.
pub(crate) async fn explain(connection: &Connection, store: &Store, error: LogError) -> StorerError {
    let LogError::Outrun { .. } = error else { return error.into() };
    match LogNow::load(connection).await.map(LogNow::must_be_open) {
        Ok(Ok(now)) => is_ours(now, store).err().unwrap_or_else(|| error.into()),
        Ok(Err(unfinished)) => unfinished.into(),
        Err(_) => error.into(),
    }
}

/// Compares where the streams begin now with the file, once that has come to where EVENTS ends now.
async fn look_at_beginnings(connection: &mut Connection, store: &Store) -> Result<(), StorerError> {
    let lanes = store.checkpoints().len() as u16;
    let mut seen = None;
    loop {
        if seen.is_none() {
            seen = beginnings::look(connection, lanes).await.inspect_err(not_yet).ok();
        }
        if let Some(seen) = &seen {
            match beginnings::check(connection, store, seen).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error @ StorerError::Log(_)) => return Err(error),
                Err(error) => not_yet(&error),
            }
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            // What was seen may be another stream's.
            () = connection.reconnected() => seen = None,
        }
    }
}

fn not_yet(error: &impl std::fmt::Display) {
    tracing::debug!(%error, "the log could not be looked at yet");
}

async fn look(connection: &Connection, store: &Arc<Store>, lane: u16) -> Result<(), StorerError> {
    let diverged = |reason| LogError::Diverged { stream: Log::Instructions.stream(lane), reason };
    loop {
        // Before the stream is asked: both only grow.
        let known = highest(store, lane).await?;
        match last_sequence(connection, Log::Instructions, lane).await {
            Ok(last) if last < known => {
                return Err(diverged(format!("it ends at {last}, but stored events name {known}")).into());
            }
            Ok(_) => return Ok(()),
            Err(NatsError::StreamGone { .. }) => return Err(diverged("it is not there".to_owned()).into()),
            Err(error) => tracing::debug!(lane, %error, "INSTRUCTIONS could not be looked at yet"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// The highest sequence that a stored cursor names.
async fn highest(store: &Arc<Store>, lane: u16) -> Result<u64, StorerError> {
    let store = Arc::clone(store);
    let read = tokio::task::spawn_blocking(move || {
        let row = store.read().and_then(|read| read.checkpoint(lane)).map_err(|error| store.explain(error))?;
        Ok(row.map_or(0, |row| row.instructions_sequence))
    });
    read.await.map_err(|error| StorerError::WriterGone(error.to_string()))?
}
