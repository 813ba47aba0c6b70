//! nats-server as a child process: for `fieldstream up` and for tests.
//!
//! The child dies with its parent, never gets the terminal's Ctrl-C, and is started again when it
//! dies by itself. Two servers on one store directory would corrupt it without complaint, so the
//! child inherits a locked file: as long as any server on the directory lives, no other is started.

use crate::connection::{Connection, Credentials, NatsError, Server};
use crate::health::{Finding, Health, Severity};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
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

/// How long a predecessor on the same store may take to die.
const PREDECESSOR_WAIT: Duration = Duration::from_secs(10);
/// How long the server may take until JetStream answers; it may have a large store to read.
const START_WAIT: Duration = Duration::from_secs(60);
/// How long it may take to end by itself.
const STOP_WAIT: Duration = Duration::from_secs(15);
/// Pause before a server that died is started again, doubled up to 64 times while it keeps dying.
const RESTART_PAUSE: Duration = Duration::from_millis(100);

/// Code of the finding that NATS is not there. Whoever hears from NATS again clears it.
pub const NATS_DOWN: &str = "nats-down";

/// A running nats-server.
#[derive(Debug)]
pub struct NatsChild {
    server: Server,
    version: String,
    shared: Arc<Mutex<Shared>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    running: Option<(u32, OwnedFd)>,
    stopping: bool,
    health: Option<Health>,
}

impl Shared {
    fn down(&self, what: &str) {
        if let Some(health) = &self.health {
            let mend = "nothing: it is started again by itself, and the roles reconnect";
            health.raise(Finding::new(NATS_DOWN, Severity::Blocking, what, mend));
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> std::sync::MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn files(path: &Path) -> impl FnOnce(io::Error) -> ChildError + '_ {
    move |source| ChildError::Files { path: path.to_owned(), source }
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
        let mut child = NatsChild { server, version: String::new(), shared, thread: Some(thread) };
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

    /// Where it is reported when the server dies ([`NATS_DOWN`]). It is not cleared here: that the
    /// server runs again does not mean that it answers.
    pub fn report_to(&self, health: Health) {
        lock(&self.shared).health = Some(health);
    }

    /// Ends the server and waits until it is gone.
    pub async fn stop(mut self) {
        let thread = self.thread.take();
        signal(&self.shared, Signal::TERM);
        let ended = tokio::task::spawn_blocking(move || thread.map(std::thread::JoinHandle::join));
        let mut ended = std::pin::pin!(ended);
        if tokio::time::timeout(STOP_WAIT, &mut ended).await.is_err() {
            tracing::warn!("nats-server did not end in time; it is killed");
            signal(&self.shared, Signal::KILL);
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
            signal(&self.shared, Signal::KILL);
            let _ = thread.join();
        }
    }
}

fn signal(shared: &Mutex<Shared>, signal: Signal) {
    let mut shared = lock(shared);
    shared.stopping = true;
    if let Some((_, pidfd)) = &shared.running
        && let Err(error) = pidfd_send_signal(pidfd, signal)
    {
        tracing::debug!(%error, "signalling nats-server");
    }
}

fn supervise(
    binary: &Path,
    directory: &Path,
    guard: &File,
    shared: &Mutex<Shared>,
    first: oneshot::Sender<io::Result<()>>,
) {
    let mut first = Some(first);
    let mut pause = RESTART_PAUSE;
    loop {
        let begun = Instant::now();
        let spawned = {
            let mut shared = lock(shared);
            if shared.stopping {
                return;
            }
            let spawned = spawn(binary, directory, guard);
            if let Ok((child, pidfd)) = &spawned {
                shared.running = pidfd.try_clone().ok().map(|fd| (child.id(), fd));
            }
            spawned
        };
        match (spawned, first.take()) {
            (Ok((mut child, _)), first) => {
                if let Some(first) = first {
                    let _ = first.send(Ok(()));
                }
                let status = child.wait();
                let mut shared = lock(shared);
                shared.running = None;
                if shared.stopping {
                    return;
                }
                match status {
                    Ok(status) => {
                        tracing::error!(%status, "nats-server died; starting it again");
                        shared.down(&format!("nats-server died ({status})"));
                    }
                    Err(error) => tracing::error!(%error, "nats-server is gone; starting it again"),
                }
            }
            (Err(error), Some(first)) => {
                let _ = first.send(Err(error));
                return;
            }
            (Err(error), None) => {
                tracing::error!(%error, "nats-server cannot be started again; trying on");
                lock(shared).down(&format!("nats-server died and cannot be started again: {error}"));
            }
        }
        pause =
            if begun.elapsed() > Duration::from_secs(10) { RESTART_PAUSE } else { (pause * 2).min(RESTART_PAUSE * 64) };
        std::thread::sleep(pause);
    }
}

#[allow(unsafe_code)]
fn spawn(binary: &Path, directory: &Path, guard: &File) -> io::Result<(Child, OwnedFd)> {
    let parent = rustix::process::getpid();
    let guard = guard.as_fd().try_clone_to_owned()?;
    let mut command = Command::new(binary);
    command
        .arg("--config")
        .arg(directory.join(CONFIG))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // A group of its own, or Ctrl-C would reach the server before the roles have drained.
        .process_group(0);
    // SAFETY: between fork and exec only system calls are made, nothing is allocated.
    unsafe {
        command.pre_exec(move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before the line above.
            if rustix::process::getppid() != Some(parent) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            // The lock on the store lives as long as the server.
            rustix::io::fcntl_setfd(&guard, rustix::io::FdFlags::empty())?;
            Ok(())
        });
    }
    let child = command.spawn()?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    Ok((child, pidfd))
}

const USER: &str = "fieldstream";
const CONFIG: &str = "nats-server.conf";
const LOG: &str = "nats-server.log";

async fn lock_store(directory: &Path) -> Result<File, ChildError> {
    use rustix::fs::{FlockOperation, flock};
    let path = directory.join("store.lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(files(&path))?;
    let deadline = Instant::now() + PREDECESSOR_WAIT;
    while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        if Instant::now() > deadline {
            return Err(ChildError::InUse(directory.to_owned()));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(file)
}

/// The password stays the same on one folder, so that roles started by hand may reconnect.
fn password(directory: &Path) -> Result<String, ChildError> {
    let path = directory.join("password");
    if let Ok(password) = fs::read_to_string(&path)
        && password.len() == 32
    {
        return Ok(password);
    }
    let password = format!("{:032x}", rand::random::<u128>());
    write_private(&path, &password)?;
    Ok(password)
}

fn write_private(path: &Path, text: &str) -> Result<(), ChildError> {
    let _ = fs::remove_file(path);
    let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path).map_err(files(path))?;
    io::Write::write_all(&mut file, text.as_bytes()).map_err(files(path))
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

fn write_config(options: &ChildOptions, port: u16, password: &str) -> Result<(), ChildError> {
    let quoted = |path: PathBuf| serde_json::Value::String(path.to_string_lossy().into_owned()).to_string();
    let sync = match options.profile {
        Profile::Durable => "always",
        Profile::Fast => "\"2m\"",
    };
    let disk = disk_bytes(&options.directory).map_or(1 << 40, |(_, total)| total);
    let text = format!(
        "# Written anew at every start.\n\
         host: 127.0.0.1\nport: {port}\nserver_name: fieldstream\nlog_file: {log}\nlogfile_size_limit: 16MB\n\
         max_payload: 1MB\nwrite_deadline: \"10s\"\n\
         authorization {{ user: {USER}, password: \"{password}\" }}\n\
         jetstream {{\n  store_dir: {store}\n  sync_interval: {sync}\n  max_file_store: {disk}\n  max_memory_store: 256MB\n}}\n",
        log = quoted(options.directory.join(LOG)),
        store = quoted(options.directory.join("store")),
    );
    write_private(&options.directory.join(CONFIG), &text)
}

/// Free and total bytes of the disk that holds a folder.
pub fn disk_bytes(directory: &Path) -> Option<(u64, u64)> {
    let stat = rustix::fs::statvfs(directory).ok()?;
    Some((stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize))
}

fn not_started(reason: String, directory: &Path) -> ChildError {
    let log = directory.join(LOG);
    let text = fs::read_to_string(&log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(3).collect();
    ChildError::NotStarted { reason, log, tail: lines.into_iter().rev().collect::<Vec<_>>().join(" | ") }
}
