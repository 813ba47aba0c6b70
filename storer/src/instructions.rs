//! Looks whether INSTRUCTIONS still has what the stored events speak of. The storer does not read that
//! stream; but a processor that starts from the storer's checkpoint must find its place in it.

use crate::beginnings;
use crate::service::StorerError;
use crate::store::Store;
use fieldstream_nats::{Connection, Log, LogError, NatsError, last_sequence};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// A stream that does not answer, or is not there, is asked again after this long.
const RETRY: Duration = Duration::from_millis(500);
/// Not there so many times in a row, it is gone.
const GONE_AFTER: u32 = 4;

/// Looks at the start and at every reconnect; ends with the first thing it finds.
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
        connection.reconnected().await;
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
    let mut gone = 0;
    loop {
        // Before the stream is asked: both only grow.
        let known = highest(store, lane).await?;
        match last_sequence(connection, Log::Instructions, lane).await {
            Ok(last) if last < known => {
                return Err(diverged(format!("it ends at {last}, but stored events name {known}")).into());
            }
            Ok(_) => return Ok(()),
            Err(NatsError::StreamGone { .. }) if gone + 1 == GONE_AFTER => {
                return Err(diverged("it is not there".to_owned()).into());
            }
            Err(NatsError::StreamGone { .. }) => gone += 1,
            Err(error) => {
                gone = 0;
                tracing::debug!(lane, %error, "INSTRUCTIONS could not be looked at yet");
            }
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
