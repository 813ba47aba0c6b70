//! What a role does when the log is not as it must be: it says so, stays not ready, and starts again by
//! itself once the log is repaired.

use crate::exit::{Failure, Trouble};
use crate::nats::MEND;
use fieldstream_nats::{Connection, Finding, Health, LogNow, Member, Server, Severity, serve_status};
use std::time::Duration;
use tokio::task::JoinSet;

/// Code of the finding that the log is damaged.
pub(crate) const DAMAGED: &str = "log-damaged";
/// How often is looked whether the log was repaired.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a role that cannot go on has to stop: what it has not done is done again later.
pub(crate) const STOP: Duration = Duration::from_secs(2);

/// Code of the finding that tells of a trouble.
fn code(trouble: Trouble) -> &'static str {
    match trouble {
        Trouble::Damaged => DAMAGED,
        Trouble::OtherFile => "log-of-another-file",
        Trouble::Unfinished => "log-repair-unfinished",
        Trouble::Outrun => "log-outrun",
    }
}

/// Raises what is wrong with the log.
pub(crate) fn raise(health: &Health, failure: &Failure, trouble: Trouble) {
    let mend = failure.help.as_deref().unwrap_or(MEND);
    health.raise(Finding::new(code(trouble), Severity::Blocking, failure.message.as_str(), mend));
}

/// It is over.
pub(crate) fn clear(health: &Health, trouble: Trouble) {
    health.clear(code(trouble));
}

/// Waits until roles that had this trouble with log `log_id` may start again. They answer meanwhile for
/// the status: a repair takes their word for it that the log is damaged.
pub(crate) async fn until_mended(server: &Server, log_id: u64, trouble: Trouble, roles: Vec<(&'static str, Health)>) {
    let mut answering = JoinSet::new();
    for (role, health) in roles {
        answering.spawn(answer(server.clone(), role, health));
    }
    let connection = connect(server).await;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        match LogNow::load(&connection).await {
            Ok(now) if now.repairing => {}
            Ok(now) => match trouble {
                Trouble::Outrun | Trouble::Unfinished => return,
                Trouble::Damaged | Trouble::OtherFile if now.log_id != log_id => return,
                Trouble::Damaged | Trouble::OtherFile => {}
            },
            Err(error) => tracing::debug!(%error, "looking whether the log was repaired"),
        }
    }
}

async fn answer(server: Server, role: &'static str, health: Health) {
    let connection = connect(&server).await;
    let member = Member::new(role, env!("CARGO_PKG_VERSION"), health.clone());
    serve_status(connection, health, move || member.status()).await;
}

async fn connect(server: &Server) -> Connection {
    loop {
        match Connection::connect(server, "fieldstream waiting for a repair").await {
            Ok(connection) => return connection,
            Err(error) => tracing::debug!(%error, "waiting for a repair"),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
