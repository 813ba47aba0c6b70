//! One session per client: the newest takes over, here and from other gateways, where the client may
//! have left a connection that is dead without anybody having been told.

use crate::hub::Clients;
use crate::mailbox::{Closing, Entry, Mailbox};
use crate::shared::{Shared, wall_us};
use fieldstream_nats::{SessionNote, SessionNotes, publish_session};
use fieldstream_shared::code::Code;
use fieldstream_shared::frame::Attempt;
use fieldstream_shared::ids::ClientId;
use std::sync::{Arc, PoisonError};
use tokio::sync::mpsc;

/// Notes that wait to be sent; beyond, the keepalive finds what is dead.
pub(crate) const NOTES_MAX: usize = 4096;
/// An older note says nothing about where the client is now.
const FRESH_US: u64 = 5_000_000;

/// Makes a session the one of its client. Returns the one that it takes over from.
///
/// # Errors
/// Why not: the client has given this connection up and has another one since. HELLO may have waited
/// in a socket while this gateway stood still.
pub(crate) fn take_place(
    clients: &mut Clients,
    client: &ClientId,
    mailbox: &Arc<Mailbox>,
) -> Result<Option<Arc<Mailbox>>, Closing> {
    let attempt = mailbox.entry().attempt;
    if clients.get(client).is_some_and(|present| attempt.is_before(&present.entry().attempt)) {
        return Err(Closing::new(Code::TAKEN_OVER, "the client has connected again since"));
    }
    Ok(clients.insert(client.clone(), Arc::clone(mailbox)))
}

/// Whether a session ends because its client was let in elsewhere. Clocks decide only between
/// programs; the same one knows which of its connections is the later.
fn gives_way(here: &Entry, elsewhere: &Entry) -> bool {
    let is_left = here.attempt.is_before(&elsewhere.attempt);
    is_left || here.at_us < elsewhere.at_us && !elsewhere.attempt.is_before(&here.attempt)
}

/// A client is let in: its former session ends.
///
/// # Errors
/// As [`take_place`].
pub(crate) fn enter(shared: &Shared, client: &ClientId, mailbox: &Arc<Mailbox>) -> Result<(), Closing> {
    let mut clients = shared.clients.write().unwrap_or_else(PoisonError::into_inner);
    let former = take_place(&mut clients, client, mailbox);
    drop(clients);
    if let Some(former) = former? {
        let reason = "another connection with the same client id took over";
        former.post(|inbound| inbound.close(Closing::new(Code::TAKEN_OVER, reason)));
    }
    shared.tell_of(client, mailbox.entry());
    Ok(())
}

/// Tells the other gateways who came.
pub(crate) async fn tell(shared: Arc<Shared>, mut came: mpsc::Receiver<(ClientId, Entry)>) {
    while let Some((client, Entry { at_us, attempt })) = came.recv().await {
        let note = SessionNote {
            gateway: shared.gateway,
            client: client.to_string(),
            opened_at_us: at_us,
            instance: attempt.instance,
            attempt: attempt.number,
        };
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
        let attempt = Attempt { instance: note.instance, number: note.attempt };
        if let Some(former) = former
            && gives_way(&former.entry(), &Entry { at_us: note.opened_at_us, attempt })
        {
            let reason = "another connection with the same client id took over, at another gateway";
            former.post(|inbound| inbound.close(Closing::new(Code::TAKEN_OVER, reason)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(instance: u64, number: u64, at_us: u64) -> Entry {
        Entry { at_us, attempt: Attempt { instance, number } }
    }

    #[test]
    fn a_connection_given_up_does_not_take_over_from_a_later_one() {
        let (mut clients, client) = (Clients::new(), ClientId::new("c").unwrap());
        let mut come = |id: u64, entry: Entry| {
            let mailbox = Mailbox::new(id, 1);
            mailbox.entered(entry);
            take_place(&mut clients, &client, &mailbox).map(|former| former.map(|former| former.id))
        };
        assert_eq!(come(1, entry(7, 2, 20)), Ok(None));
        assert_eq!(come(2, entry(7, 1, 30)).map_err(|closing| closing.code), Err(Code::TAKEN_OVER));
        assert_eq!(come(3, entry(7, 3, 10)), Ok(Some(1)), "its own, later one");
        assert_eq!(come(4, entry(8, 1, 10)), Ok(Some(3)), "another program");
        assert_eq!(come(5, entry(0, 0, 10)), Ok(Some(4)), "one that does not say");
        assert_eq!(come(6, entry(0, 0, 10)), Ok(Some(5)));
    }

    #[test]
    fn nor_does_its_gateway_end_the_later_one_at_another() {
        assert!(!gives_way(&entry(7, 2, 10), &entry(7, 1, 20)), "let in late");
        assert!(gives_way(&entry(7, 1, 20), &entry(7, 2, 10)), "whatever the clocks say");
        assert!(gives_way(&entry(7, 9, 10), &entry(8, 1, 20)) && !gives_way(&entry(7, 1, 20), &entry(8, 9, 10)));
        assert!(gives_way(&entry(0, 0, 10), &entry(0, 0, 20)) && !gives_way(&entry(0, 0, 20), &entry(0, 0, 10)));
    }
}
