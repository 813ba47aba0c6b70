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
    pub(super) interrupted: bool,
    pub(super) latencies: Latencies,
}

/// Watches until the last revision is here.
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
        interrupted: false,
        latencies: Latencies::default(),
    };
    let mut here = Some(here);
    loop {
        if watched.built.revision >= base
            && let Some(here) = here.take()
        {
            let _ = here.send(()).await;
        }
        if interrupt_at.is_some_and(|at| watched.built.revision >= at) && !watched.interrupted {
            client.interrupt();
            watched.interrupted = true;
        }
        let last = *end.borrow_and_update();
        if last.is_some_and(|last| watched.built.revision >= last) {
            break;
        }
        tokio::select! {
            event = changes.next() => {
                let event = event.map_err(|error| failure(&server, &error))?;
                watched.take(event, &sent, &document)?;
            }
            // An error means that the writer gave up, and with it the reason to watch.
            known = end.changed() => if known.is_err() { break },
            () = tokio::time::sleep(STALLED_AFTER) => {
                let waited = humantime::format_duration(STALLED_AFTER);
                return Err(Failure::new(Exit::TimedOut, format_args!("no update of {document} for {waited}")));
            }
        }
    }
    watched.reconnects = resumed(&client, watched.interrupted).await;
    watched.sdk_agrees = agrees(&changes, &watched.built).await;
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

/// Sessions after the first; one that was cut off at the very end is waited for.
async fn resumed(client: &Client, interrupted: bool) -> u64 {
    for _ in 0..100 {
        if !interrupted || client.status().reconnects > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    client.status().reconnects
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
