//! Making the file again beside the one that is in use, and going on with the new one. Nobody notices:
//! both hold the same state when they are switched, and the writer is between two commits.

use super::Upkeep;
use crate::replay::{ROUNDS_MAX, Replay, ReplayOptions};
use crate::service::StorerError;
use crate::store::{Store, StoreError};
use fieldstream_nats::{Connection, RebuildOrder, Rebuilt};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::Mutex;

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
                map_bytes_max: upkeep.map_bytes_max,
                history_revisions: upkeep.history_revisions,
                copy,
                storer: upkeep.store.storer(),
            },
        }
    }

    pub(super) async fn run(self) -> Result<Rebuilt, StorerError> {
        tracing::info!(copy = ?self.options.copy, "making the file again");
        let mut replay = Replay::begin(&self.connection, self.options.clone()).await?;
        let caught_up = match self.approach(&mut replay).await {
            Ok(()) => {
                let turn = self.turn.lock().await;
                self.catch_up(&mut replay).await.map(|stored| (turn, stored))
            }
            Err(error) => Err(error),
        };
        let (_turn, stored) = match caught_up {
            Ok(caught_up) => caught_up,
            Err(error) => {
                replay.discard().await;
                return Err(error);
            }
        };
        let before = std::fs::canonicalize(&self.database).unwrap_or_else(|_| self.database.clone());
        let messages = replay.messages();
        let generation = replay.finish(|rebuilt| self.store.switch_to(rebuilt)).await?;
        tracing::info!(generation = %generation.display(), messages, "the file was made again and is in use");
        let (generation, before) = (generation.display().to_string(), before.display().to_string());
        let copy = self.options.copy.as_ref().map(|path| path.display().to_string());
        Ok(Rebuilt { generation, before, copy, messages, stored })
    }

    async fn approach(&self, replay: &mut Replay) -> Result<(), StorerError> {
        for _ in 0..ROUNDS_MAX {
            if replay.approach(&self.stored()?).await? {
                break;
            }
        }
        Ok(())
    }

    /// Brings the new file to where the one in use stands, between two commits of that.
    async fn catch_up(&self, replay: &mut Replay) -> Result<Vec<u64>, StorerError> {
        let stored = self.stored()?;
        replay.run_to(&stored).await?;
        let in_use = self.store.checkpoints_now().map_err(|error| self.store.explain(error))?;
        if replay.checkpoints()? != in_use {
            return Err(StoreError::RebuiltDiffers { path: self.database.clone() }.into());
        }
        Ok(stored)
    }

    fn stored(&self) -> Result<Vec<u64>, StorerError> {
        let checkpoints = self.store.checkpoints_now().map_err(|error| self.store.explain(error))?;
        Ok(checkpoints.iter().map(|checkpoint| checkpoint.events_sequence).collect())
    }
}
