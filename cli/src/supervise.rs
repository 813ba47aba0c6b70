//! What a role does when the log is not as it must be: it says so, stays not ready, and starts again by
//! itself once the log is repaired.

use crate::exit::{Failure, Trouble};
use crate::nats::MEND;
use fieldstream_nats::{Connection, Finding, Health, LogNow, Server, Severity};
use std::time::Duration;

/// Code of the finding that the log is damaged, or was.
const DAMAGED: &str = "log-damaged";
/// How often is looked whether the log was repaired.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a role that cannot go on has to stop: what it has not done is done again later.
pub(crate) const STOP: Duration = Duration::from_secs(2);

/// Raises what is wrong with the log.
pub(crate) fn raise(health: &Health, failure: &Failure) {
    let mend = failure.help.as_deref().unwrap_or(MEND);
    health.raise(Finding::new(DAMAGED, Severity::Blocking, failure.message.as_str(), mend));
}

/// It is over.
pub(crate) fn clear(health: &Health) {
    health.clear(DAMAGED);
}

/// Waits until a role that had this trouble with log `log_id` may start again.
pub(crate) async fn until_mended(server: &Server, log_id: u64, trouble: Trouble) {
    let mut connection = None;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if connection.is_none() {
            connection = Connection::connect(server, "fieldstream waiting for a repair").await.ok();
        }
        let Some(connection) = &connection else { continue };
        match LogNow::load(connection).await {
            Ok(now) if now.repairing => {}
            Ok(now) if now.log_id != log_id || trouble == Trouble::Outrun => return,
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "looking whether the log was repaired"),
        }
    }
}
