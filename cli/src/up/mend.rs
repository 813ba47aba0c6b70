//! What `up` does while the log is damaged.

use super::{Running, Site, addresses};
use crate::config::Profile;
use crate::exit::{Failure, Trouble};
use crate::nats::{nats_failure, url_with_login};
use crate::operator::READY_FILE;
use crate::repair::{self, OtherFiles};
use crate::{roles, supervise};
use fieldstream_nats::{Connection, Topology};
use fieldstream_storer::Storer;
use std::time::Duration;

/// A repair that did not succeed is tried again after this long; one that somebody else began has so long
/// to go on.
const REPAIR_AGAIN: Duration = Duration::from_secs(10);

impl Running {
    /// Says what is wrong with the log, serves the storer's file for a repair, and waits for it. In
    /// the profile `fast`, where a power cut may cut the log, it is repaired at once.
    pub(super) async fn wait_for_repair(&mut self, failure: &Failure, trouble: Trouble) {
        let Some(site) = &mut self.site else { return };
        site.healths.iter().for_each(|health| supervise::raise(health, failure, trouble));
        let ready_file = site.data.join(READY_FILE);
        if !ready_file.exists() {
            let content = serde_json::json!({ "nats": url_with_login(&site.server), "pid": std::process::id() });
            if let Err(failure) = addresses::write_ready_file(&ready_file, &content) {
                tracing::warn!(message = failure.message, "commands need --nats");
            }
        }
        let storer = match trouble {
            Trouble::Outrun => None,
            _ => roles::serve_damaged(site.storer_options()).await,
        };
        site.until_mended(storer.as_ref().map(Storer::id), trouble).await;
        if let Some(storer) = storer {
            storer.stop(supervise::STOP).await;
        }
        if let Ok(connection) = Connection::connect(&site.server, "fieldstream up").await
            && let Ok(topology) = Topology::load(&connection).await
        {
            site.log_id = topology.log_id;
        }
        site.healths.iter().for_each(|health| supervise::clear(health, trouble));
    }
}

impl Site {
    async fn until_mended(&self, storer: Option<u64>, trouble: Trouble) {
        let [gateway, processor, own] = &self.healths;
        let mut roles = vec![("gateway", gateway.clone()), ("processor", processor.clone())];
        if storer.is_none() {
            roles.push(("storer", own.clone()));
        }
        let mended = supervise::until_mended(&self.server, self.log_id, trouble, roles);
        tokio::pin!(mended);
        if self.settings.up.profile == Profile::Fast && trouble != Trouble::Outrun {
            let mut pause = if trouble == Trouble::Unfinished { REPAIR_AGAIN } else { Duration::ZERO };
            loop {
                tokio::select! {
                    () = &mut mended => return,
                    () = tokio::time::sleep(pause) => {}
                }
                match self.repair(storer, trouble).await {
                    Ok(()) => break,
                    Err(Failure { message, .. }) => {
                        tracing::error!(message, "the log could not be repaired by itself; `fieldstream repair`");
                    }
                }
                pause = REPAIR_AGAIN;
            }
        }
        mended.await;
    }

    /// Repairs the log, and says what was lost. If no other storer has a file of the log, that of this
    /// `up` counts.
    async fn repair(&self, storer: Option<u64>, trouble: Trouble) -> Result<(), Failure> {
        let connection = Connection::connect(&self.server, "fieldstream repair").await;
        let connection = connection.map_err(|error| nats_failure(&error))?;
        if trouble == Trouble::OtherFile && repair::has_storer(&connection).await? {
            // The log is well, and repairing it again and again would not help this file.
            return Err(Failure::failed("other storers have files of this log, and the one here is of another"));
        }
        let record = repair::repair(&connection, OtherFiles { named: storer, ..OtherFiles::default() }).await?;
        for line in repair::told(&record).lines() {
            tracing::warn!("{line}");
        }
        Ok(())
    }
}
