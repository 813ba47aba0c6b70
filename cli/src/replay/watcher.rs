//! A watcher on a connection of its own. Besides the SDK's replica it builds one by itself from
//! the changes it is told, so that the two can be compared.

use super::STALLED_AFTER;
use super::measure::{Latencies, Sent};
use crate::args::ServerArgs;
use crate::client::{connect, failure};
use crate::exit::{Exit, Failure};
use fieldstream_client::{Client, Document, Watch, WatchEvent};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// What a watcher is to do.
pub(super) struct Watching {
    pub(super) server: ServerArgs,
    pub(super) document: String,
    /// The revision before the first instruction.
    pub(super) base: u64,
    /// At this revision the connection is cut.
    pub(super) interrupt_at: Option<u64>,
    pub(super) sent: Arc<Sent>,
    /// The last revision, once it is known.
    pub(super) end: watch::Receiver<Option<u64>>,
    /// Told once, when the watcher is ready for the first change.
    pub(super) here: mpsc::Sender<()>,
}

/// What a watcher saw.
pub(super) struct Watched {
    /// Its own replica. The time is not kept.
    pub(super) built: Document,
    /// Whether the SDK's replica is the same.
    pub(super) sdk_agrees: bool,
    pub(super) updates: u64,
    /// States that replaced the replica instead of a change, after the first.
    pub(super) snapshots: u64,
    pub(super) reconnects: u64,
    /// Times the watch went on after its connection was lost: where it stood, or, if too much was
    /// missed for that, with a snapshot.
    pub(super) resumes: u64,
    pub(super) interrupted: bool,
    pub(super) latencies: Latencies,
}

/// Watches until the last revision is here, and after a cut until the watch goes on.
///
/// # Errors
/// If the server cannot be reached at first, or nothing moves for long.
pub(super) async fn watch(watching: Watching) -> Result<Watched, Failure> {
    let Watching { server, document, base, interrupt_at, sent, mut end, here } = watching;
    let client = connect(&server).await?;
    let mut changes = client.watch(&document).await.map_err(|error| failure(&server, &error))?;
    let mut watched = Watched {
        built: Document::default(),
        sdk_agrees: false,
        updates: 0,
        snapshots: 0,
        reconnects: 0,
        resumes: 0,
        interrupted: false,
        latencies: Latencies::default(),
    };
    let mut here = Some(here);
    // How often the client had connected again when it was cut off, until its watch goes on.
    let mut cut_at = None;
    loop {
        if watched.built.revision >= base
            && let Some(here) = here.take()
        {
            let _ = here.send(()).await;
        }
        if interrupt_at.is_some_and(|at| watched.built.revision >= at) && !watched.interrupted {
            cut_at = Some(client.status().reconnects);
            client.interrupt();
            watched.interrupted = true;
        }
        let last = *end.borrow_and_update();
        // The replay of a short file may be over before the cut is felt.
        if last.is_some_and(|last| watched.built.revision >= last) && cut_at.is_none() {
            break;
        }
        tokio::select! {
            event = changes.next() => {
                let event = event.map_err(|error| failure(&server, &error))?;
                let goes_on = match &event {
                    WatchEvent::Resumed => true,
                    WatchEvent::Snapshot { .. } => cut_at.is_some_and(|at| client.status().reconnects > at),
                    WatchEvent::Updated { .. } => false,
                };
                if goes_on {
                    watched.resumes += 1;
                    cut_at = None;
                }
                watched.take(event, &sent, &document)?;
            }
            // An error means that the writer gave up, and with it the reason to watch.
            known = end.changed() => if known.is_err() { break },
            () = tokio::time::sleep(STALLED_AFTER) => {
                let waited = humantime::format_duration(STALLED_AFTER);
                let what = if cut_at.is_some() { "no watch after the cut" } else { "no update" };
                return Err(Failure::new(Exit::TimedOut, format_args!("{what} of {document} for {waited}")));
            }
        }
    }
    watched.reconnects = client.status().reconnects;
    watched.sdk_agrees = agrees(&changes, &watched.built).await;
    drop(changes);
    // The gateway handles the frames of a client in order: an answer means that it knows of the end
    // of the watch, too.
    synced(&server, &client).await?;
    let _ = client.close(Duration::from_secs(1)).await;
    Ok(watched)
}

impl Watched {
    fn take(&mut self, event: WatchEvent, sent: &Sent, document: &str) -> Result<(), Failure> {
        match event {
            WatchEvent::Snapshot { document, .. } => {
                self.snapshots += u64::from(self.built.revision > 0);
                self.built = document;
            }
            WatchEvent::Resumed => {}
            WatchEvent::Updated { version, client, number, change } => {
                let fits = version.revision == self.built.revision + 1
                    && change.iter().all(|primitive| primitive.apply(&mut self.built.body).is_ok());
                if !fits {
                    let (at, to) = (self.built.revision, version.revision);
                    return Err(Failure::failed(format_args!("a change of {document} from {at} to {to} does not fit")));
                }
                self.built.revision = version.revision;
                self.updates += 1;
                if let Some(age) = sent.age(&client, number) {
                    self.latencies.push(age);
                }
            }
        }
        Ok(())
    }
}

/// Waits until what the client knows to be applied is stored.
///
/// # Errors
/// If the client fails, or there is no answer for long.
pub(super) async fn synced(server: &ServerArgs, client: &Client) -> Result<(), Failure> {
    match tokio::time::timeout(STALLED_AFTER, client.sync()).await {
        Ok(synced) => synced.map_err(|error| failure(server, &error)),
        Err(_) => {
            let waited = humantime::format_duration(STALLED_AFTER);
            Err(Failure::new(Exit::TimedOut, format_args!("{}: nothing was stored for {waited}", server.server)))
        }
    }
}

/// Whether the SDK's replica equals the one built here; it may be a moment behind after a cut.
async fn agrees(changes: &Watch, built: &Document) -> bool {
    for _ in 0..100 {
        let replica = changes.document();
        if replica.revision >= built.revision {
            return replica.revision == built.revision && replica.body == built.body;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    false
}
