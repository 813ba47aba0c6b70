//! The server's folder: its lock, its password, its configuration.

use super::{ChildError, ChildOptions, Profile};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a predecessor on the same store may take to die.
const PREDECESSOR_WAIT: Duration = Duration::from_secs(10);

pub(super) fn files(path: &Path) -> impl FnOnce(io::Error) -> ChildError + '_ {
    move |source| ChildError::Files { path: path.to_owned(), source }
}

pub(super) const USER: &str = "fieldstream";
pub(super) const CONFIG: &str = "nats-server.conf";
pub(super) const LOG: &str = "nats-server.log";

pub(super) async fn lock_store(directory: &Path) -> Result<File, ChildError> {
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
pub(super) fn password(directory: &Path) -> Result<String, ChildError> {
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

pub(super) fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

pub(super) fn write_config(options: &ChildOptions, port: u16, password: &str) -> Result<(), ChildError> {
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
