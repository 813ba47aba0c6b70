//! What devices do meanwhile, and what they are told: the history that is checked afterwards.

use fieldstream_client::{
    AckLevel, Body, Change, Client, ClientError, ClientOptions, How, Operation, Primitive, Receipt, WatchEvent,
};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::task::JoinHandle;

/// Documents that are written by many.
pub const DOCUMENTS: usize = 12;
/// Instructions a device has in flight at most.
const IN_FLIGHT: usize = 4;
/// One instruction in so many begins its document anew, which keeps documents small.
const ANEW_EVERY: u32 = 400;

/// What devices did and were told.
#[derive(Debug, Default, Clone, serde::Serialize)]
pub struct History {
    /// Tag and document of everything that was ever sent.
    pub attempts: BTreeMap<String, String>,
    /// Tag and revision of what was acknowledged; revision 0 is of one acknowledged as logged.
    pub acked: BTreeMap<String, u64>,
    /// Tag of what was acknowledged, when it was sent and when its device was told, in microseconds
    /// since the Unix epoch.
    pub times: BTreeMap<String, (u64, u64)>,
    /// Tags that were refused.
    pub refused: BTreeSet<String>,
    /// Tags whose outcome nobody was told.
    pub unknown: BTreeSet<String>,
    /// States that watchers were shown: document, revision, CRC-32 of the text.
    pub shown: BTreeMap<String, BTreeMap<u64, u32>>,
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

    /// Instructions acknowledged so far.
    pub fn acked(&self) -> usize {
        self.with(|history| history.acked.len())
    }

    /// Devices send nothing new from here on.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// One device: appends tags of its own to documents until it is stopped, then one more to each
    /// document, behind which nothing is undecided, and waits for the outcomes.
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
                let document = rng.random_range(0..if hot { 3 } else { DOCUMENTS });
                let ack = [AckLevel::Logged, AckLevel::Applied, AckLevel::Stored][rng.random_range(0..3)];
                n += 1;
                let is_anew = rng.random_ratio(1, ANEW_EVERY);
                pending.push(self.send(&client, format!("{name}.{n}"), document, is_anew, ack).await);
            }
            self.ended(pending).await;
            tokio::time::sleep(Duration::from_millis(rng.random_range(5..40))).await;
        }
        for document in 0..DOCUMENTS {
            n += 1;
            let sent = self.send(&client, format!("{name}.{n}"), document, false, AckLevel::Stored).await;
            self.ended(vec![sent]).await;
        }
        client.close(Duration::from_secs(5)).await
    }

    /// Sends one tag; the task ends when the device was told.
    async fn send(
        &self,
        client: &Client,
        tag: String,
        document: usize,
        is_anew: bool,
        ack: AckLevel,
    ) -> JoinHandle<()> {
        let (document, text) = (format!("doc-{document}"), format!("{tag};"));
        self.with(|history| history.attempts.insert(tag.clone(), document.clone()));
        self.open.fetch_add(1, Ordering::SeqCst);
        let operation = if is_anew { Operation::PutText(text) } else { Operation::Append(text) };
        let (load, submitted_us) = (self.clone(), now_us());
        let sent = client.submit(&document, operation, How { ack, ..How::default() }).await;
        tokio::spawn(async move {
            let told = match sent {
                Ok(outcome) => outcome.await,
                Err(error) => Err(error),
            };
            load.told(tag, submitted_us, told);
        })
    }

    async fn ended(&self, pending: Vec<JoinHandle<()>>) {
        for told in pending {
            if let Err(error) = told.await {
                self.violated(format!("an outcome: {error}"));
            }
        }
    }

    fn told(&self, tag: String, submitted_us: u64, told: Result<Receipt, ClientError>) {
        self.open.fetch_sub(1, Ordering::SeqCst);
        let now = now_us();
        self.with(|history| match told {
            Ok(receipt) => {
                history.times.insert(tag.clone(), (submitted_us, now));
                history.acked.insert(tag, receipt.revision.unwrap_or(0));
            }
            Err(ClientError::Refused(_)) => drop(history.refused.insert(tag)),
            Err(_) => drop(history.unknown.insert(tag)),
        });
    }

    /// Follows a document for ever; `last` is the revision shown last.
    ///
    /// # Errors
    /// If the watch ends.
    pub async fn watcher(self, url: String, document: String, last: Arc<AtomicU64>) -> Result<(), ClientError> {
        let client = connect(&url, &format!("watcher-{document}-{}", rand::random::<u32>()), &self.ca).await?;
        let mut watch = client.watch(&document).await?;
        let mut text = Text::default();
        loop {
            let event = watch.next().await?;
            let before = last.load(Ordering::SeqCst);
            let revision = match event {
                WatchEvent::Resumed => continue,
                WatchEvent::Snapshot { recovered, document: state } => {
                    if recovered && state.revision < before {
                        self.violated(format!(
                            "{document} is shown at {} after {before}, as recovered",
                            state.revision
                        ));
                    }
                    text.is(&state.body);
                    state.revision
                }
                WatchEvent::Updated { version, change, .. } => {
                    if version.revision != before + 1 {
                        self.violated(format!("{document} is updated to {} after {before}", version.revision));
                    }
                    text.changes(&change);
                    version.revision
                }
            };
            last.store(revision, Ordering::SeqCst);
            if revision > 0 {
                let crc = text.crc.clone().finalize();
                let known = self
                    .with(|history| *history.shown.entry(document.clone()).or_default().entry(revision).or_insert(crc));
                if known != crc {
                    self.violated(format!("{document} is shown in two states at revision {revision}"));
                }
            }
        }
    }

    fn violated(&self, what: String) {
        self.with(|history| history.violations.push(what));
    }
}

/// What a watcher makes of what it is shown, by rules of its own.
#[derive(Debug, Default)]
struct Text {
    crc: crc32fast::Hasher,
}

impl Text {
    fn is(&mut self, body: &Body) {
        self.crc.reset();
        if let Body::Text(text) = body {
            self.crc.update(text.as_bytes());
        }
    }

    fn changes(&mut self, change: &Change) {
        for primitive in change {
            match primitive {
                Primitive::SetText(text) => {
                    self.crc.reset();
                    self.crc.update(text.as_bytes());
                }
                Primitive::Append(text) => self.crc.update(text.as_bytes()),
                _ => {}
            }
        }
    }
}

fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
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
