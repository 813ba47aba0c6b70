//! The task that writes a client's state file.

use crate::driver::{Shared, Wish};
use crate::state_file::StateFile;
use std::sync::Arc;

/// Writes the state file: whatever has collected since the last write, as one. Lets go of the file
/// when it ends, which it does when the client has failed or was closed.
pub(crate) async fn keep_journal(shared: Arc<Shared>, mut file: StateFile) {
    loop {
        while let Some(batch) = shared.with(|session| session.numbers.take_journal()) {
            let written = tokio::task::spawn_blocking(move || {
                let result = file.write(&batch);
                (file, batch, result)
            });
            let Ok((back, batch, result)) = written.await else { return };
            file = back;
            if let Err(error) = result {
                tracing::error!(%error, "the state file cannot be written and the client stops");
                shared.fail(&error);
                shared.wish(Wish::Stop);
                return;
            }
            shared.with(|session| session.numbers.journal_written(&batch));
            shared.work.notify_one();
        }
        if shared.with(|session| session.failed().is_some()) {
            return;
        }
        shared.journal.notified().await;
    }
}
