//! Making the file again beside the one that is in use, and going on with the new one. Nobody notices:
//! both hold the same state when they are switched, and the writer is between two commits.

use super::Upkeep;
use crate::replay::{Replay, ReplayOptions};
use crate::service::StorerError;
use crate::store::{Store, StoreError};
use fieldstream_nats::{Connection, RebuildOrder, Rebuilt};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::Mutex;

/// So many messages behind, the new file is close enough for the writer to wait for the rest.
const CLOSE_MESSAGES: u64 = 64;
/// The writer waits at the latest after so many rounds.
const ROUNDS_MAX: usize = 50;

/// What a rebuild needs.
pub(super) struct Rebuild {
    connection: Connection,
    store: Arc<Store>,
    turn: Arc<Mutex<()>>,
    database: PathBuf,
    options: ReplayOptions,
}

impl Rebuild {
    /// From the copy the order names, else from the newest, else from the log.
    pub(super) fn of(upkeep: &Upkeep, newest: Option<PathBuf>, order: &RebuildOrder) -> Rebuild {
        let copy = match (&order.copy, order.from_log) {
            (Some(copy), _) => Some(PathBuf::from(copy)),
            (None, true) => None,
            (None, false) => newest,
        };
        Rebuild {
            connection: upkeep.connection.clone(),
            store: Arc::clone(&upkeep.store),
            turn: Arc::clone(&upkeep.turn),
            database: upkeep.database.clone(),
            options: ReplayOptions {
                scratch: upkeep.directory.join(format!(".rebuild-{:016x}", rand::random::<u64>())),
                file_mode: upkeep.file_mode,
                map_bytes: upkeep.map_bytes,
                history_revisions: upkeep.history_revisions,
                copy,
                storer: upkeep.store.storer(),
            },
        }
    }

    pub(super) async fn run(self) -> Result<Rebuilt, StorerError> {
        tracing::info!(copy = ?self.options.copy, "making the file again");
        let explain = |error| self.store.explain(error);
        let mut replay = Replay::begin(&self.connection, self.options.clone()).await?;
        for _ in 0..ROUNDS_MAX {
            let upto: Vec<u64> = self.stored().map_err(explain)?;
            let behind: u64 = replay.positions()?.iter().zip(&upto).map(|(at, to)| to.saturating_sub(*at)).sum();
            replay.run_to(&upto).await?;
            if behind <= CLOSE_MESSAGES {
                break;
            }
        }
        let _turn = self.turn.lock().await;
        let stored = self.stored().map_err(explain)?;
        replay.run_to(&stored).await?;
        if replay.checkpoints()? != self.store.checkpoints_now().map_err(explain)? {
            let error = StoreError::RebuiltDiffers { path: self.database.clone() };
            replay.discard().await;
            return Err(error.into());
        }
        let before = std::fs::canonicalize(&self.database).unwrap_or_else(|_| self.database.clone());
        let (copy, messages) = (replay.copy().map(|copy| copy.path.display().to_string()), replay.messages());
        let copy = self.options.copy.as_ref().map(|path| path.display().to_string()).or(copy);
        let generation = replay.finish(|rebuilt| self.store.switch_to(rebuilt)).await?;
        tracing::info!(generation = %generation.display(), messages, "the file was made again and is in use");
        let (generation, before) = (generation.display().to_string(), before.display().to_string());
        Ok(Rebuilt { generation, before, copy, messages, stored })
    }

    fn stored(&self) -> Result<Vec<u64>, crate::tables::TableError> {
        Ok(self.store.checkpoints_now()?.iter().map(|checkpoint| checkpoint.events_sequence).collect())
    }
}
