//! Taking a session over from another gateway: a client that came here may have left a connection
//! there that is dead without anybody having been told.

use crate::mailbox::Closing;
use crate::shared::{Shared, wall_us};
use fieldstream_nats::{SessionNote, SessionNotes, publish_session};
use fieldstream_shared::code::Code;
use fieldstream_shared::ids::ClientId;
use std::sync::{Arc, PoisonError};
use tokio::sync::mpsc;

/// Notes that wait to be sent; beyond, the keepalive finds what is dead.
pub(crate) const NOTES_MAX: usize = 4096;
/// An older note says nothing about where the client is now.
const FRESH_US: u64 = 5_000_000;

/// Tells the other gateways who came.
pub(crate) async fn tell(shared: Arc<Shared>, mut came: mpsc::Receiver<(ClientId, u64)>) {
    while let Some((client, opened_at_us)) = came.recv().await {
        let note = SessionNote { gateway: shared.gateway, client: client.to_string(), opened_at_us };
        publish_session(&shared.consuming, &note).await;
    }
}

/// Closes the sessions of clients that came to another gateway since.
pub(crate) async fn hear(shared: Arc<Shared>, mut notes: SessionNotes) {
    let stopped = shared.stopped.clone();
    while let Some(Some(note)) = stopped.run_until_cancelled(notes.next()).await {
        if note.gateway == shared.gateway || wall_us().abs_diff(note.opened_at_us) > FRESH_US {
            continue;
        }
        let clients = shared.clients.read().unwrap_or_else(PoisonError::into_inner);
        let former = clients.get(note.client.as_str()).cloned();
        drop(clients);
        if let Some(former) = former
            && former.opened_at_us() < note.opened_at_us
        {
            let reason = "another connection with the same client id took over, at another gateway";
            former.post(|inbound| inbound.close(Closing::new(Code::TAKEN_OVER, reason)));
        }
    }
}
