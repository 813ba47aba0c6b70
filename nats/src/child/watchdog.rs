//! Looks after the server's disk. A nats-server whose disk was full answers requests, but acknowledges
//! nothing on the streams whose write failed until it is started again, however much room there is.

use super::store::disk_bytes;
use super::{Shared, lock};
use crate::connection::{Connection, NatsError, Server};
use crate::health::{Finding, Health, Severity};
use crate::topology::Topology;
use crate::write_trouble::{is_unacknowledged, is_write_trouble};
use rustix::process::Signal;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_secs(1);
/// With less free than this a write may fail at any moment; with twice as much there is room again.
const DISK_FULL_BYTES: u64 = 32 << 20;
/// The server is given so long to acknowledge again before it is started once more, at first and at
/// most.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(240));
/// How long a server that is asked to end may take.
const ENDING: Duration = Duration::from_secs(10);
/// Code of the finding that the server's disk is full.
const DISK_FULL: &str = "nats-disk-full";

/// Watches for ever.
pub(super) async fn watch(server: Server, directory: PathBuf, shared: Arc<Mutex<Shared>>, healths: Vec<Health>) {
    let (mut patience, mut not_before) = (PATIENCE.0, Instant::now());
    loop {
        tokio::time::sleep(PAUSE).await;
        let Some((free, total)) = disk_bytes(&directory) else { continue };
        let was_full = has(&healths, |code| code == DISK_FULL);
        let is_full = free < DISK_FULL_BYTES.min(total / 16) * if was_full { 2 } else { 1 };
        if is_full {
            let message = format!("the disk of {} has {} MiB left", directory.display(), free >> 20);
            let mend = "make room; nats-server is started again by itself then";
            let finding = Finding::new(DISK_FULL, Severity::Warning, message, mend);
            healths.iter().for_each(|health| health.raise(finding.clone()));
            continue;
        }
        healths.iter().for_each(|health| health.clear(DISK_FULL));
        if !has(&healths, is_write_trouble) {
            patience = if not_before + PATIENCE.1 < Instant::now() { PATIENCE.0 } else { patience };
            continue;
        }
        if Instant::now() < not_before || !needs_restart(&server, has(&healths, is_unacknowledged)).await {
            continue;
        }
        tracing::error!("nats-server acknowledges nothing though its disk has room; it is started again");
        restart(&shared).await;
        not_before = Instant::now() + patience;
        patience = (patience * 2).min(PATIENCE.1);
    }
}

/// One that does not answer at all may only be slow or stopped: that is no case for a restart. One
/// that answers without JetStream has switched it off because of its disk.
async fn needs_restart(server: &Server, is_unacknowledged: bool) -> bool {
    let Ok(connection) = Connection::connect(server, "watchdog").await else { return false };
    is_unacknowledged || matches!(Topology::load(&connection).await, Err(NatsError::JetStreamDisabled { .. }))
}

fn has(healths: &[Health], is_it: impl Fn(&str) -> bool) -> bool {
    healths.iter().flat_map(Health::findings).any(|finding| is_it(&finding.code))
}

/// Ends the server; its thread starts it again.
async fn restart(shared: &Mutex<Shared>) {
    let pid = || lock(shared).running.as_ref().map(|(pid, _)| *pid);
    let before = pid();
    lock(shared).signal(Signal::TERM);
    let until = Instant::now() + ENDING;
    while pid() == before && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    if pid() == before {
        lock(shared).signal(Signal::KILL);
    }
}
