//! Writing batches to a stream.

use crate::connection::Connection;
use crate::topology::Log;
use async_nats::client::RequestErrorKind;
use bytes::Bytes;
use serde::Deserialize;
use std::time::Duration;

/// How long one attempt waits for its PubAck.
const ACK_TIMEOUT: Duration = Duration::from_secs(5);

/// Why an attempt did not end with a PubAck. Whatever it says, the batch may be stored all the
/// same: send the *same* batch again until it is in. Readers recognise a repetition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// No PubAck in time.
    #[error("no acknowledgement within {} s", ACK_TIMEOUT.as_secs())]
    TimedOut,
    /// The connection is down or JetStream does not answer.
    #[error("NATS is not reachable")]
    Disconnected,
    /// The stream, or the server's disk, is full.
    #[error("the stream is full: {0}; it goes on by itself when there is room")]
    StreamFull(String),
    /// Any other refusal.
    #[error("the server refused the batch: {0}")]
    Refused(String),
}

/// Writes messages to one stream. Cheap to clone.
#[derive(Debug, Clone)]
pub struct BatchWriter {
    connection: Connection,
    subject: String,
}

#[derive(Deserialize)]
struct PubAck {
    #[serde(default)]
    seq: u64,
    error: Option<ApiError>,
}

#[derive(Deserialize)]
struct ApiError {
    #[serde(default)]
    code: u16,
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

impl BatchWriter {
    /// A writer to a lane's log.
    pub fn new(connection: &Connection, log: Log, lane: u16) -> BatchWriter {
        BatchWriter { connection: connection.clone(), subject: log.subject(lane) }
    }

    /// A writer to a subject that some stream takes.
    pub(crate) fn to_subject(connection: &Connection, subject: String) -> BatchWriter {
        BatchWriter { connection: connection.clone(), subject }
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Tries once to store a message; returns its stream sequence when the server says that it is
    /// stored (in the durable profile: synced to disk).
    ///
    /// # Errors
    /// [`WriteError`]; the message may be stored nevertheless.
    ///
    /// # Cancel safety
    /// A cancelled attempt is one whose outcome is unknown, like an error.
    pub async fn append(&self, message: Bytes) -> Result<u64, WriteError> {
        // Queued while disconnected, a batch could be stored long after its attempt was given up.
        if !self.connection.is_connected() {
            return Err(WriteError::Disconnected);
        }
        let mut connection = self.connection.clone();
        connection.forget_reconnects();
        let request = async_nats::Request::new().payload(message).timeout(Some(ACK_TIMEOUT));
        let response = tokio::select! {
            response = self.connection.client.send_request(self.subject.clone(), request) => response,
            // The acknowledgement went with the old connection; waiting on would be in vain.
            () = connection.reconnected() => return Err(WriteError::Disconnected),
        };
        let response = response.map_err(|e| match e.kind() {
            RequestErrorKind::TimedOut => WriteError::TimedOut,
            RequestErrorKind::NoResponders => WriteError::Disconnected,
            _ => WriteError::Refused(e.to_string()),
        })?;
        let ack: PubAck = serde_json::from_slice(&response.payload).map_err(|e| WriteError::Refused(e.to_string()))?;
        match ack.error {
            None if ack.seq > 0 => Ok(ack.seq),
            None => Err(WriteError::Refused("an acknowledgement without sequence".into())),
            Some(error) => Err(refusal(error)),
        }
    }
}

fn refusal(error: ApiError) -> WriteError {
    // 10077: the stream's limit or the store failed; 10023 and 10047: the server's limits.
    match error.err_code {
        10077 | 10023 | 10047 => WriteError::StreamFull(error.description),
        _ => WriteError::Refused(format!("{} ({}/{})", error.description, error.code, error.err_code)),
    }
}
