//! What devices do meanwhile, and what they are told: the history that is checked afterwards.

use fieldstream_client::{Client, ClientError, ClientOptions, How, Operation, WatchEvent};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Documents that are written by many.
pub const DOCUMENTS: usize = 12;
/// Instructions a device has in flight at most.
const IN_FLIGHT: usize = 4;

/// What devices did and were told.
#[derive(Debug, Default, Clone, serde::Serialize)]
pub struct History {
    /// Tag and document of everything that was ever sent.
    pub attempts: BTreeMap<String, String>,
    /// Tag and revision of what was acknowledged as applied.
    pub acked: BTreeMap<String, u64>,
    /// Tags that were refused.
    pub refused: BTreeSet<String>,
    /// Tags whose outcome nobody was told.
    pub unknown: BTreeSet<String>,
    /// States that watchers were shown: document, revision, hash.
    #[serde(skip)]
    pub shown: BTreeMap<(String, u64), u64>,
    /// What watchers were shown that cannot be.
    pub violations: Vec<String>,
}

/// The load. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Load {
    history: Arc<Mutex<History>>,
    open: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    ca: PathBuf,
}

impl Load {
    /// Nothing yet; gateways' certificates are of this CA.
    pub fn new(ca: PathBuf) -> Load {
        Load { ca, ..Load::default() }
    }

    /// Changes the history.
    pub fn with<R>(&self, change: impl FnOnce(&mut History) -> R) -> R {
        change(&mut self.history.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Instructions in flight.
    pub fn open(&self) -> u64 {
        self.open.load(Ordering::SeqCst)
    }

    /// Devices send nothing new from here on.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// One device: appends tags of its own to documents until it is stopped, then waits for the
    /// outcomes.
    ///
    /// # Errors
    /// If it never gets a connection.
    pub async fn device(self, url: String, name: String, seed: u64) -> Result<(), ClientError> {
        let mut rng = StdRng::seed_from_u64(seed);
        let client = connect(&url, &name, &self.ca).await?;
        let mut n = 0_u64;
        while !self.stop.load(Ordering::SeqCst) {
            let mut pending = Vec::new();
            for _ in 0..rng.random_range(1..=IN_FLIGHT) {
                // A few documents get most of it.
                let hot = rng.random_bool(0.5);
                let document = format!("doc-{}", rng.random_range(0..if hot { 3 } else { DOCUMENTS }));
                n += 1;
                let tag = format!("{name}.{n}");
                self.with(|history| history.attempts.insert(tag.clone(), document.clone()));
                self.open.fetch_add(1, Ordering::SeqCst);
                let operation = Operation::Append(format!("{tag};"));
                pending.push((tag, client.submit(&document, operation, How::default()).await));
            }
            for (tag, sent) in pending {
                let told = match sent {
                    Ok(outcome) => outcome.await,
                    Err(error) => Err(error),
                };
                self.open.fetch_sub(1, Ordering::SeqCst);
                self.with(|history| match told {
                    Ok(receipt) => drop(history.acked.insert(tag, receipt.revision.unwrap_or(0))),
                    Err(ClientError::Refused(_)) => drop(history.refused.insert(tag)),
                    Err(_) => drop(history.unknown.insert(tag)),
                });
            }
            tokio::time::sleep(Duration::from_millis(rng.random_range(5..40))).await;
        }
        client.close(Duration::from_secs(5)).await
    }

    /// Follows a document for ever; `last` is the revision shown last.
    ///
    /// # Errors
    /// If the watch ends.
    pub async fn watcher(self, url: String, document: String, last: Arc<AtomicU64>) -> Result<(), ClientError> {
        let client = connect(&url, &format!("watcher-{document}-{}", rand::random::<u32>()), &self.ca).await?;
        let mut watch = client.watch(&document).await?;
        loop {
            let event = watch.next().await?;
            let before = last.load(Ordering::SeqCst);
            let (revision, hash) = match &event {
                WatchEvent::Resumed => continue,
                WatchEvent::Snapshot { recovered, document: state } => {
                    if *recovered && state.revision < before {
                        self.violated(format!(
                            "{document} is shown at {} after {before}, as recovered",
                            state.revision
                        ));
                    }
                    (state.revision, state.hash())
                }
                WatchEvent::Updated { version, .. } => {
                    if version.revision != before + 1 {
                        self.violated(format!("{document} is updated to {} after {before}", version.revision));
                    }
                    (version.revision, version.state_hash)
                }
            };
            last.store(revision, Ordering::SeqCst);
            if revision > 0 {
                let known = self.with(|history| *history.shown.entry((document.clone(), revision)).or_insert(hash));
                if known != hash {
                    self.violated(format!("{document} is shown in two states at revision {revision}"));
                }
            }
        }
    }

    fn violated(&self, what: String) {
        self.with(|history| history.violations.push(what));
    }
}

/// A client that never gives up; certificates of gateways are of this CA.
///
/// # Errors
/// If the server sends it away for good.
pub async fn connect(url: &str, name: &str, ca: &Path) -> Result<Client, ClientError> {
    loop {
        let options = ClientOptions::default().client_id(name).ca_file(ca).connect_timeout(Duration::from_secs(5));
        match Client::connect(url, options).await {
            Ok(client) => return Ok(client),
            Err(error @ (ClientError::Url(_) | ClientError::InvalidId(_))) => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}
