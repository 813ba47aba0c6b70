//! What every role says when it is asked: plain NATS requests that all roles answer (`docs/LOG.md`).
//!
//! Who asks collects the answers of a short while: nobody knows beforehand how many there are.

use crate::connection::{Connection, NatsError};
use crate::health::{Finding, Health, Report, Severity};
use crate::topology::{Log, Topology, stream_state};
use fieldstream_shared::partition::{Partition, PartitionSet};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::Instant;

/// Plain NATS subject; every role answers.
const SUBJECT: &str = "fieldstream.status";
/// Answers beyond this are not looked at.
const ANSWERS_MAX: usize = 1024;
/// Code of the finding that NATS does not answer.
pub const NATS_DOWN: &str = "nats-down";
/// Between two questions whether NATS is there.
const PROBE_PAUSE: Duration = Duration::from_millis(500);
/// So long NATS may take to answer one.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// One lost answer is no outage.
const PROBES_FAILED_MIN: u32 = 2;
/// The subscription is made anew after this long if the connection was not there.
const RETRY: Duration = Duration::from_secs(1);

/// What one role says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoleStatus {
    /// `gateway`, `processor` or `storer`.
    pub role: String,
    /// Its name, another one after every start.
    pub member: String,
    /// Name of the machine.
    pub host: String,
    /// Its process.
    pub pid: u32,
    /// Version of the program.
    pub version: String,
    /// When it started, microseconds since the Unix epoch.
    pub started_at_us: u64,
    /// Whether it does its work.
    pub ready: bool,
    /// What an operator has to know.
    #[serde(default)]
    pub findings: Vec<Finding>,
    /// Only for a gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<GatewayStatus>,
    /// Only for a processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processor: Option<ProcessorStatus>,
    /// Only for a storer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storer: Option<StorerStatus>,
}

/// A gateway's share of [`RoleStatus`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GatewayStatus {
    /// Connections of clients.
    pub connections: u64,
    /// In order of lanes.
    pub lanes: Vec<GatewayLane>,
}

/// One lane of a gateway.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GatewayLane {
    /// Last EVENTS sequence it has passed on.
    pub events_sequence: u64,
    /// Bytes of records on their way to the log, the batch in flight included.
    pub queue_bytes: u64,
    /// The log does not take its batches at present.
    pub outage: bool,
    /// Records whose batches the log has acknowledged, since the start.
    pub logged_records: u64,
}

/// A processor's share of [`RoleStatus`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessorStatus {
    /// The partitions it owns, in order.
    pub partitions: Vec<u8>,
    /// In order of lanes.
    pub lanes: Vec<ProcessorLane>,
}

/// One lane of a processor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessorLane {
    /// Last EVENTS sequence read.
    pub events_sequence: u64,
    /// Last INSTRUCTIONS sequence read; what is behind it is not counted in `backlog_records`.
    pub instructions_sequence: u64,
    /// Instructions of owned partitions that are read, and whose events are not accepted yet.
    pub backlog_records: u64,
    /// Bytes of changed values that storers do not have yet.
    pub pinned_bytes: u64,
    /// Bytes of cached values, the pinned ones included.
    pub cache_bytes: u64,
    /// Applying waits for storers: too many bytes are pinned.
    pub paused: bool,
}

/// A storer's share of [`RoleStatus`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StorerStatus {
    /// Drawn when its file was made.
    pub storer: u64,
    /// The link that readers open.
    pub database: String,
    /// Bytes of the LMDB file on disk.
    pub file_bytes: u64,
    /// Bytes of its copies.
    #[serde(default)]
    pub copies_bytes: u64,
    /// EVENTS sequence that is durable, in order of lanes.
    pub stored: Vec<u64>,
    /// How the file is; earlier storers do not say.
    #[serde(default)]
    pub file: Option<FileStatus>,
}

/// How a storer's file is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStatus {
    /// Bytes of the pages that hold something; the rest is used again.
    pub used_bytes: u64,
    /// Bytes of the history's pages.
    pub history_bytes: u64,
    /// Bytes of the pages of the index by time.
    pub by_time_bytes: u64,
    /// Bytes of the map: how large the file can become before that grows.
    pub map_bytes: u64,
    /// Readers that look at a state of the file now, the storer's own included.
    pub readers: u64,
    /// Commits since the state that the oldest of them looks at.
    pub reader_lag_commits: u64,
    /// When the newest verified copy was made, microseconds since the Unix epoch; `None` without one.
    pub copied_at_us: Option<u64>,
    /// Verified copies.
    pub copies: u64,
}

impl ProcessorStatus {
    /// The partitions of a set, in the form of the answer.
    pub fn partitions_of(owned: &PartitionSet) -> Vec<u8> {
        owned.iter().map(|Partition(p)| p).collect()
    }
}

/// Who answers: what of [`RoleStatus`] does not change.
#[derive(Debug, Clone)]
pub struct Member {
    /// `gateway`, `processor` or `storer`.
    pub role: &'static str,
    /// Its name, another one after every start.
    pub name: String,
    /// Version of the program.
    pub version: &'static str,
    /// Its health.
    pub health: Health,
    started_at_us: u64,
}

impl Member {
    /// A member that starts now, with a name drawn at random.
    pub fn new(role: &'static str, version: &'static str, health: Health) -> Member {
        let name = format!("{role}-{:016x}", rand::random::<u64>());
        let started_at_us = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64);
        Member { role, name, version, health, started_at_us }
    }

    /// Its status without the share of its role.
    pub fn status(&self) -> RoleStatus {
        RoleStatus {
            role: self.role.to_owned(),
            member: self.name.clone(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            pid: std::process::id(),
            version: self.version.to_owned(),
            started_at_us: self.started_at_us,
            ready: self.health.is_ready(),
            findings: self.health.findings(),
            gateway: None,
            processor: None,
            storer: None,
        }
    }
}

/// Answers until it is dropped, and looks meanwhile whether NATS is there ([`NATS_DOWN`]).
pub async fn serve_status(
    connection: Connection,
    health: Health,
    status: impl Fn() -> RoleStatus + Send + Sync + 'static,
) {
    let status: Arc<Report> = Arc::new(status);
    health.report_by(&status);
    tokio::join!(answer(&connection, &*status), look_after(&connection, &health));
}

/// Asks the server for something small, again and again: one that is stopped or hangs keeps its
/// connections, and nobody else would notice while there is nothing to write.
async fn look_after(connection: &Connection, health: &Health) {
    let mut failures = 0;
    loop {
        let asked = tokio::time::timeout(PROBE_TIMEOUT, connection.jetstream.query_account()).await;
        let problem = match asked {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {PROBE_TIMEOUT:?}")),
        };
        match problem {
            None => {
                failures = 0;
                health.clear(NATS_DOWN);
            }
            Some(reason) => {
                failures += 1;
                if failures >= PROBES_FAILED_MIN {
                    let message = format!("NATS at {} does not answer", connection.url());
                    let mend = "see that nats-server runs and can be reached; this role goes on by itself";
                    health.raise(Finding::new(NATS_DOWN, Severity::Blocking, message, mend));
                }
                tracing::debug!(reason, failures, "asking whether NATS is there");
            }
        }
        tokio::time::sleep(PROBE_PAUSE).await;
    }
}

async fn answer(connection: &Connection, status: &Report) {
    loop {
        match connection.client.subscribe(SUBJECT).await {
            Ok(mut requests) => {
                while let Some(request) = requests.next().await {
                    let Some(reply) = request.reply else { continue };
                    let Ok(answer) = serde_json::to_vec(&status()) else { continue };
                    if let Err(error) = connection.client.publish(reply, answer.into()).await {
                        tracing::debug!(%error, "answering for the status");
                    }
                }
            }
            Err(error) => tracing::debug!(%error, "listening for requests for the status"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Asks everybody and gives what was answered within `wait`, in order of roles and names.
///
/// # Errors
/// [`NatsError`] if nothing can be asked.
pub async fn collect_status(connection: &Connection, wait: Duration) -> Result<Vec<RoleStatus>, NatsError> {
    let failed = |e: &dyn std::fmt::Display| connection.request_error("asking for the status", e);
    let inbox = connection.client.new_inbox();
    let mut answers = connection.client.subscribe(inbox.clone()).await.map_err(|e| failed(&e))?;
    connection.client.publish_with_reply(SUBJECT, inbox, "".into()).await.map_err(|e| failed(&e))?;
    let until = Instant::now() + wait;
    let mut members = Vec::new();
    while members.len() < ANSWERS_MAX
        && let Ok(Some(answer)) = tokio::time::timeout_at(until, answers.next()).await
    {
        if answer.status.is_some() {
            break; // Nobody is there.
        }
        match serde_json::from_slice::<RoleStatus>(&answer.payload) {
            Ok(status) => members.push(status),
            Err(error) => tracing::warn!(%error, "an answer cannot be read; is a newer program running there?"),
        }
    }
    members.sort_by(|a, b| (&a.role, &a.member).cmp(&(&b.role, &b.member)));
    Ok(members)
}

/// A stream as the server sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct StreamState {
    /// First sequence there is; one more than the last if it is empty.
    pub first: u64,
    /// Last sequence ever written.
    pub last: u64,
    /// Messages there are.
    pub messages: u64,
    /// Bytes they take.
    pub bytes: u64,
    /// Bytes they may take; a full stream refuses.
    pub bytes_max: u64,
}

/// Both streams of all lanes: INSTRUCTIONS, EVENTS.
///
/// # Errors
/// [`NatsError`] if they cannot be asked.
pub async fn lane_streams(
    connection: &Connection,
    topology: &Topology,
) -> Result<Vec<(StreamState, StreamState)>, NatsError> {
    let mut lanes = Vec::new();
    for lane in 0..topology.lanes {
        let instructions = stream_state(connection, Log::Instructions, lane).await?;
        lanes.push((instructions, stream_state(connection, Log::Events, lane).await?));
    }
    Ok(lanes)
}
