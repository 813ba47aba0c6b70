//! nats-server as a child process: for `fieldstream up` and for tests.
//!
//! The child dies with its parent, never gets the terminal's Ctrl-C, and is started again when it
//! dies by itself. Two servers on one store directory would corrupt it without complaint, so the
//! child inherits a locked file: as long as any server on the directory lives, no other is started.

mod process;
mod store;
mod watchdog;

pub use store::disk_bytes;

use crate::connection::{Connection, Credentials, NatsError, Server};
use crate::health::{Finding, Health, Severity};
use crate::status::NATS_DOWN;
use process::supervise;
use rustix::process::{Signal, pidfd_send_signal};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use store::{LOG, USER, files, free_port, lock_store, password, write_config};
use tokio::sync::oneshot;

/// What an acknowledged write survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Profile {
    /// Every message is synced to disk before it is acknowledged: survives power cuts.
    #[default]
    Durable,
    /// The server syncs every two minutes: survives the death of processes, not power cuts.
    Fast,
}

/// How to run the child.
#[derive(Debug, Clone)]
pub struct ChildOptions {
    /// The nats-server program.
    pub binary: PathBuf,
    /// Its folder: configuration, log, store.
    pub directory: PathBuf,
    /// What an acknowledged write survives.
    pub profile: Profile,
}

/// Why the child could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// The program is not there or cannot be run.
    #[error(
        "cannot run nats-server at {binary}: {source}; install nats-server 2.14 or newer, or name it with --nats-server"
    )]
    Binary {
        /// Which program.
        binary: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Files in its folder.
    #[error("cannot use {path}: {source}")]
    Files {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another server works on the same store.
    #[error("another nats-server still uses {0}; it must end first")]
    InUse(PathBuf),
    /// It ended or did not answer.
    #[error("nats-server did not start ({reason}); its log {log} ends with: {tail}")]
    NotStarted {
        /// What happened.
        reason: String,
        /// Its log file.
        log: PathBuf,
        /// The last lines.
        tail: String,
    },
}

/// How long the server may take until JetStream answers; it may have a large store to read.
const START_WAIT: Duration = Duration::from_secs(60);
/// How long it may take to end by itself.
const STOP_WAIT: Duration = Duration::from_secs(15);
/// A running nats-server.
#[derive(Debug)]
pub struct NatsChild {
    server: Server,
    version: String,
    directory: PathBuf,
    shared: Arc<Mutex<Shared>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    running: Option<(u32, OwnedFd)>,
    stopping: bool,
    /// Those of the roles that it is told.
    healths: Vec<Health>,
    watchdog: Option<tokio::task::AbortHandle>,
}

impl Shared {
    fn signal(&self, signal: Signal) {
        if let Some((_, pidfd)) = &self.running
            && let Err(error) = pidfd_send_signal(pidfd, signal)
        {
            tracing::debug!(%error, "signalling nats-server");
        }
    }

    fn down(&self, what: &str) {
        for health in &self.healths {
            let mend = "nothing: it is started again by itself, and the roles reconnect";
            health.raise(Finding::new(NATS_DOWN, Severity::Blocking, what, mend));
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> std::sync::MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl NatsChild {
    /// Starts a server on a free loopback port with credentials of its own and waits until
    /// JetStream answers. From then on it is started again whenever it dies.
    ///
    /// # Errors
    /// [`ChildError`] with the end of the server's log.
    pub async fn start(options: ChildOptions) -> Result<NatsChild, ChildError> {
        let directory = options.directory.clone();
        fs::create_dir_all(&directory).map_err(files(&directory))?;
        let guard = lock_store(&directory).await?;
        let password = password(&directory)?;
        let port = free_port().map_err(files(&directory))?;
        write_config(&options, port, &password)?;
        let server = Server {
            url: format!("nats://127.0.0.1:{port}"),
            credentials: Credentials::UserPassword { user: USER.into(), password },
        };
        let shared = Arc::new(Mutex::new(Shared::default()));
        let (first, started) = oneshot::channel();
        let (for_thread, binary) = (Arc::clone(&shared), options.binary.clone());
        // The death signal of a child follows the thread that spawned it, so this thread lives as
        // long as the child is wanted.
        let thread = std::thread::Builder::new()
            .name("nats-server".into())
            .spawn(move || supervise(&binary, &directory, &guard, &for_thread, first))
            .map_err(files(&options.directory))?;
        let directory = options.directory.clone();
        let mut child = NatsChild { server, version: String::new(), directory, shared, thread: Some(thread) };
        match started.await {
            Ok(Ok(())) => {}
            Ok(Err(source)) => return Err(ChildError::Binary { binary: options.binary, source }),
            Err(_) => return Err(not_started("its supervisor ended".into(), &options.directory)),
        }
        match child.wait_ready().await {
            Ok(version) => child.version = version,
            Err(reason) => {
                child.stop().await;
                return Err(not_started(reason, &options.directory));
            }
        }
        Ok(child)
    }

    /// Where the server is and how to get in.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The server's version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Process id of the server; 0 while it is being started again.
    pub fn pid(&self) -> u32 {
        lock(&self.shared).running.as_ref().map_or(0, |(pid, _)| *pid)
    }

    /// Says there when the server dies ([`NATS_DOWN`], which who hears from it again clears) and when
    /// its disk is full, and starts a server again that acknowledges nothing though there is room.
    pub fn watch(&self, healths: Vec<Health>) {
        let watchdog =
            watchdog::watch(self.server.clone(), self.directory.clone(), Arc::clone(&self.shared), healths.clone());
        let mut shared = lock(&self.shared);
        shared.healths = healths;
        shared.watchdog = Some(tokio::spawn(watchdog).abort_handle());
    }

    /// Ends the server and waits until it is gone.
    pub async fn stop(mut self) {
        let thread = self.thread.take();
        end(&self.shared, Signal::TERM);
        let ended = tokio::task::spawn_blocking(move || thread.map(std::thread::JoinHandle::join));
        let mut ended = std::pin::pin!(ended);
        if tokio::time::timeout(STOP_WAIT, &mut ended).await.is_err() {
            tracing::warn!("nats-server did not end in time; it is killed");
            end(&self.shared, Signal::KILL);
            let _ = ended.await;
        }
    }

    async fn wait_ready(&self) -> Result<String, String> {
        let deadline = Instant::now() + START_WAIT;
        loop {
            let reason = match self.try_ready().await {
                Ok(version) => return Ok(version),
                Err(reason) => reason,
            };
            if Instant::now() > deadline || self.thread.as_ref().is_none_or(std::thread::JoinHandle::is_finished) {
                return Err(reason);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn try_ready(&self) -> Result<String, String> {
        let connection = Connection::connect(&self.server, "start").await.map_err(|e: NatsError| e.to_string())?;
        connection.jetstream.query_account().await.map_err(|e| e.to_string())?;
        Ok(connection.server_version())
    }
}

impl Drop for NatsChild {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            end(&self.shared, Signal::KILL);
            let _ = thread.join();
        }
    }
}

/// Ends the server for good.
fn end(shared: &Mutex<Shared>, signal: Signal) {
    let mut shared = lock(shared);
    shared.stopping = true;
    if let Some(watchdog) = shared.watchdog.take() {
        watchdog.abort();
    }
    shared.signal(signal);
}

fn not_started(reason: String, directory: &Path) -> ChildError {
    let log = directory.join(LOG);
    let text = fs::read_to_string(&log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(3).collect();
    ChildError::NotStarted { reason, log, tail: lines.into_iter().rev().collect::<Vec<_>>().join(" | ") }
}
