//! The streams of a deployment, and what is fixed when they are created (`docs/LOG.md`).

use crate::connection::{Connection, NatsError};
use crate::status::StreamState;
use async_nats::jetstream::context::{AccountErrorKind, CreateStreamErrorKind, GetStreamError, GetStreamErrorKind};
use async_nats::jetstream::{ErrorCode, kv, stream};
use fieldstream_shared::limits::LANES_MAX;
use fieldstream_shared::record::LOG_VERSION;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Key-value bucket with the deployment's settings.
pub(crate) const BUCKET: &str = "fieldstream";
/// Key of the topology in the bucket.
const TOPOLOGY_KEY: &str = "topology";
/// A stream that is not there so many times in a row is gone; in a cluster whose leader changes it
/// may seem so for a moment.
pub(crate) const GONE_AFTER: u32 = 5;
const GONE_PAUSE: Duration = Duration::from_millis(200);

/// One of the two logs of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Log {
    /// What gateways write.
    Instructions,
    /// What processors write.
    Events,
}

impl Log {
    /// The stream's name: `INSTRUCTIONS_<lane>` or `EVENTS_<lane>`.
    pub fn stream(self, lane: u16) -> String {
        match self {
            Log::Instructions => format!("INSTRUCTIONS_{lane}"),
            Log::Events => format!("EVENTS_{lane}"),
        }
    }

    /// The stream's only subject: `ins.<lane>` or `evt.<lane>`.
    pub fn subject(self, lane: u16) -> String {
        match self {
            Log::Instructions => format!("ins.{lane}"),
            Log::Events => format!("evt.{lane}"),
        }
    }
}

/// What is fixed for a deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// Number of lanes.
    pub lanes: u16,
    /// Identity of the log, drawn when the streams were created; changes when they are repaired.
    pub log_id: u64,
    /// Room of one stream in bytes; a full stream refuses, it never drops.
    pub stream_bytes: u64,
}

/// How to create the streams.
#[derive(Debug, Clone, Copy)]
pub struct TopologyOptions {
    /// Number of lanes; `None` takes what is there, or 1.
    pub lanes: Option<u16>,
    /// Room of all streams together in bytes. Streams that exist and are smaller are enlarged; they
    /// are never made smaller, because that would drop messages.
    pub max_bytes_total: Option<u64>,
    /// Room of all streams together when they are created without `max_bytes_total`.
    pub first_bytes_total: u64,
    /// Copies in a cluster: 1, 3 or 5.
    pub replicas: usize,
}

impl Default for TopologyOptions {
    fn default() -> Self {
        TopologyOptions { lanes: None, max_bytes_total: None, first_bytes_total: 4 << 30, replicas: 1 }
    }
}

#[derive(Serialize, Deserialize)]
struct Settings {
    lanes: u16,
    log_id: u64,
    log_version: u64,
    stream_bytes: u64,
}

impl Topology {
    /// Creates the streams, or checks that they are as asked for.
    ///
    /// # Errors
    /// [`NatsError`] that says what is in the way.
    pub async fn create(connection: &Connection, options: &TopologyOptions) -> Result<Topology, NatsError> {
        require_jetstream(connection).await?;
        let bucket = match connection.jetstream.get_key_value(BUCKET).await {
            Ok(bucket) => bucket,
            Err(_) => create_bucket(connection, options.replicas).await?,
        };
        let mut settings = match read_settings(connection, &bucket).await? {
            Some(settings) => settings,
            None => first_settings(connection, &bucket, options).await?,
        };
        if let Some(wanted) = options.lanes.filter(|wanted| *wanted != settings.lanes) {
            return Err(NatsError::LanesMismatch { url: connection.url.clone(), found: settings.lanes, wanted });
        }
        let wanted = options.max_bytes_total.map_or(0, |total| stream_share(total, settings.lanes));
        if wanted > settings.stream_bytes {
            settings.stream_bytes = wanted;
            write_settings(connection, &bucket, &settings).await?;
        }
        for lane in 0..settings.lanes {
            create_stream(connection, Log::Instructions, lane, settings.stream_bytes, options.replicas).await?;
            create_stream(connection, Log::Events, lane, settings.stream_bytes, options.replicas).await?;
        }
        settings.check(connection)
    }

    /// Reads the topology of streams that exist.
    ///
    /// # Errors
    /// [`NatsError::StreamsMissing`] if there are none, or another that says what is in the way.
    pub async fn load(connection: &Connection) -> Result<Topology, NatsError> {
        require_jetstream(connection).await?;
        let missing = || NatsError::StreamsMissing { url: connection.url.clone() };
        let bucket = connection.jetstream.get_key_value(BUCKET).await.map_err(|_| missing())?;
        read_settings(connection, &bucket).await?.ok_or_else(missing)?.check(connection)
    }
}

impl Settings {
    fn check(self, connection: &Connection) -> Result<Topology, NatsError> {
        if self.log_version > LOG_VERSION {
            let url = connection.url.clone();
            return Err(NatsError::LogVersion { url, found: self.log_version, known: LOG_VERSION });
        }
        Ok(Topology { lanes: self.lanes, log_id: self.log_id, stream_bytes: self.stream_bytes })
    }
}

/// Nobody answers JetStream's requests where it is off.
async fn require_jetstream(connection: &Connection) -> Result<(), NatsError> {
    match connection.jetstream.query_account().await {
        Ok(_) => Ok(()),
        Err(e) if matches!(e.kind(), AccountErrorKind::JetStreamUnavailable | AccountErrorKind::Other) => {
            Err(NatsError::JetStreamDisabled { url: connection.url.clone() })
        }
        Err(e) => Err(jetstream_error(connection, "asking for JetStream", &e)),
    }
}

async fn create_bucket(connection: &Connection, replicas: usize) -> Result<kv::Store, NatsError> {
    let config = kv::Config {
        bucket: BUCKET.into(),
        description: "Fieldstream settings".into(),
        history: 1,
        num_replicas: replicas,
        max_bytes: 1 << 20,
        ..kv::Config::default()
    };
    connection
        .jetstream
        .create_key_value(config)
        .await
        .map_err(|e| jetstream_error(connection, "creating the settings", &e))
}

async fn read_settings(connection: &Connection, bucket: &kv::Store) -> Result<Option<Settings>, NatsError> {
    let entry = bucket.get(TOPOLOGY_KEY).await.map_err(|e| connection.request_error("reading the settings", e))?;
    let Some(bytes) = entry else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|e| connection.request_error("reading the settings", e))
}

async fn first_settings(
    connection: &Connection,
    bucket: &kv::Store,
    options: &TopologyOptions,
) -> Result<Settings, NatsError> {
    let lanes = options.lanes.unwrap_or(1).clamp(1, LANES_MAX);
    let total = options.max_bytes_total.unwrap_or(options.first_bytes_total);
    let stream_bytes = stream_share(total, lanes);
    let settings = Settings { lanes, log_id: rand::random(), log_version: LOG_VERSION, stream_bytes };
    let bytes = serde_json::to_vec(&settings).map_err(|e| connection.request_error("writing the settings", e))?;
    match bucket.create(TOPOLOGY_KEY, bytes.into()).await {
        Ok(_) => Ok(settings),
        // Somebody else was faster; what counts is what stands there.
        Err(_) => read_settings(connection, bucket)
            .await?
            .ok_or_else(|| connection.request_error("writing the settings", "they did not stay")),
    }
}

async fn write_settings(connection: &Connection, bucket: &kv::Store, settings: &Settings) -> Result<(), NatsError> {
    let failed = |e: &dyn std::fmt::Display| connection.request_error("writing the settings", e);
    let bytes = serde_json::to_vec(settings).map_err(|e| failed(&e))?;
    bucket.put(TOPOLOGY_KEY, bytes.into()).await.map_err(|e| failed(&e))?;
    Ok(())
}

/// The log's identity.
pub(crate) async fn log_id(connection: &Connection) -> Result<u64, NatsError> {
    let missing = || NatsError::StreamsMissing { url: connection.url.clone() };
    let bucket = connection.jetstream.get_key_value(BUCKET).await.map_err(|_| missing())?;
    Ok(read_settings(connection, &bucket).await?.ok_or_else(missing)?.log_id)
}

/// Gives the log another identity.
pub(crate) async fn set_log_id(connection: &Connection, log_id: u64) -> Result<(), NatsError> {
    let missing = || NatsError::StreamsMissing { url: connection.url.clone() };
    let bucket = connection.jetstream.get_key_value(BUCKET).await.map_err(|_| missing())?;
    let settings = read_settings(connection, &bucket).await?.ok_or_else(missing)?;
    write_settings(connection, &bucket, &Settings { log_id, ..settings }).await
}

/// One stream's share of the room of all; at least room for a few of the largest batches.
fn stream_share(total: u64, lanes: u16) -> u64 {
    (total / (2 * u64::from(lanes.max(1)))).max(4 << 20)
}

pub(crate) async fn create_stream(
    connection: &Connection,
    log: Log,
    lane: u16,
    bytes: u64,
    replicas: usize,
) -> Result<(), NatsError> {
    let name = log.stream(lane);
    let config = stream::Config {
        name: name.clone(),
        subjects: vec![log.subject(lane)],
        storage: stream::StorageType::File,
        retention: stream::RetentionPolicy::Limits,
        discard: stream::DiscardPolicy::New,
        max_bytes: i64::try_from(bytes).unwrap_or(i64::MAX),
        num_replicas: replicas,
        deny_delete: true,
        allow_direct: true,
        ..stream::Config::default()
    };
    let error = match connection.jetstream.get_or_create_stream(config.clone()).await {
        Ok(stream) if stream.cached_info().config.max_bytes >= config.max_bytes => return Ok(()),
        // As it is, but larger: one that a repair has closed stays closed.
        Ok(stream) => {
            let larger = stream::Config { max_bytes: config.max_bytes, ..stream.cached_info().config.clone() };
            match connection.jetstream.update_stream(larger).await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            }
        }
        Err(error) => error,
    };
    if let CreateStreamErrorKind::JetStream(refusal) = error.kind()
        && [ErrorCode::STORAGE_RESOURCES_EXCEEDED, ErrorCode::INSUFFICIENT_RESOURCES].contains(&refusal.error_code())
    {
        return Err(NatsError::NoSpace {
            url: connection.url.clone(),
            stream: name,
            bytes,
            reason: refusal.to_string(),
        });
    }
    Err(jetstream_error(connection, &format!("creating stream {name}"), &error))
}

pub(crate) fn jetstream_error(
    connection: &Connection,
    what: &str,
    error: &(dyn std::error::Error + 'static),
) -> NatsError {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = inner.to_string();
        source = inner.source();
    }
    let lower = text.to_lowercase();
    if lower.contains("no responders") || lower.contains("jetstream not enabled") || lower.contains("not available") {
        return NatsError::JetStreamDisabled { url: connection.url.clone() };
    }
    connection.request_error(what, text)
}

/// The last sequence of a stream; 0 if it is empty.
///
/// # Errors
/// [`NatsError`] if the stream cannot be asked.
pub async fn last_sequence(connection: &Connection, log: Log, lane: u16) -> Result<u64, NatsError> {
    Ok(bounds_if_there(connection, log, lane).await?.1)
}

/// The first sequence of a stream; one more than the last if it is empty.
///
/// # Errors
/// [`NatsError`] if the stream cannot be asked.
pub async fn first_sequence(connection: &Connection, log: Log, lane: u16) -> Result<u64, NatsError> {
    Ok(bounds_if_there(connection, log, lane).await?.0)
}

/// First and last sequence of a stream that may seem not to be there for a moment.
async fn bounds_if_there(connection: &Connection, log: Log, lane: u16) -> Result<(u64, u64), NatsError> {
    for _ in 1..GONE_AFTER {
        match bounds(connection, log, lane).await {
            Err(NatsError::StreamGone { .. }) => tokio::time::sleep(GONE_PAUSE).await,
            other => return other,
        }
    }
    bounds(connection, log, lane).await
}

/// First and last sequence of a stream.
pub(crate) async fn bounds(connection: &Connection, log: Log, lane: u16) -> Result<(u64, u64), NatsError> {
    let state = stream_state(connection, log, lane).await?;
    Ok((state.first, state.last))
}

/// A stream as the server sees it now.
///
/// # Errors
/// [`NatsError`] if it cannot be asked.
pub async fn stream_state(connection: &Connection, log: Log, lane: u16) -> Result<StreamState, NatsError> {
    let name = log.stream(lane);
    let stream = connection.jetstream.get_stream(&name).await.map_err(|e| get_stream_error(connection, &name, &e))?;
    let info = stream.cached_info();
    Ok(StreamState {
        first: info.state.first_sequence,
        last: info.state.last_sequence,
        messages: info.state.messages,
        bytes: info.state.bytes,
        bytes_max: u64::try_from(info.config.max_bytes).unwrap_or(0),
    })
}

/// Why a stream cannot be asked; one that is not there is told apart.
pub(crate) fn get_stream_error(connection: &Connection, name: &str, error: &GetStreamError) -> NatsError {
    match error.kind() {
        GetStreamErrorKind::JetStream(refusal) if refusal.error_code() == ErrorCode::STREAM_NOT_FOUND => {
            NatsError::StreamGone { url: connection.url.clone(), stream: name.to_owned() }
        }
        _ => jetstream_error(connection, &format!("asking for stream {name}"), error),
    }
}
