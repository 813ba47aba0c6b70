//! The thread that starts the server, waits for its death, and starts it again.

use super::store::CONFIG;
use super::{Shared, lock};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Pause before a server that died is started again, doubled up to 64 times while it keeps dying.
const RESTART_PAUSE: Duration = Duration::from_millis(100);

pub(super) fn supervise(
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
