//! What gateways tell each other about sessions: which client has just come to which of them, so that
//! the one it was at before does not keep a connection that is dead.

use crate::connection::{Connection, NatsError};
use async_nats::Subscriber;
use futures::StreamExt;
use serde::{Deserialize, Serialize};

/// Plain NATS subject of the notes.
const SUBJECT: &str = "fieldstream.session";

/// A client was let in by a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionNote {
    /// The gateway: a number drawn at its start.
    pub gateway: u64,
    /// The client's id.
    pub client: String,
    /// When it was let in, by the gateway's clock, microseconds since the Unix epoch.
    pub opened_at_us: u64,
    /// Which program it is, and which of its connections; 0 if it did not say.
    #[serde(default)]
    pub instance: u64,
    /// Counts the connections of the instance.
    #[serde(default)]
    pub attempt: u64,
}

/// Tells the other gateways. A note that is lost does no harm: the keepalive finds what is dead.
pub async fn publish_session(connection: &Connection, note: &SessionNote) {
    let Ok(bytes) = serde_json::to_vec(note) else { return };
    // Never later: by then the client may be somewhere else.
    if connection.is_connected()
        && let Err(error) = connection.client.publish(SUBJECT, bytes.into()).await
    {
        tracing::debug!(%error, "telling the other gateways of a session");
    }
}

/// Hears the notes of all gateways.
#[derive(Debug)]
pub struct SessionNotes {
    subscriber: Subscriber,
}

impl SessionNotes {
    /// Begins to listen.
    ///
    /// # Errors
    /// [`NatsError`] if the connection is closed.
    pub async fn subscribe(connection: &Connection) -> Result<SessionNotes, NatsError> {
        let subscriber = connection.client.subscribe(SUBJECT).await;
        let subscriber = subscriber.map_err(|e| connection.request_error("listening for sessions", e))?;
        Ok(SessionNotes { subscriber })
    }

    /// The next note; `None` when the connection is closed for good.
    ///
    /// # Cancel safety
    /// Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Option<SessionNote> {
        loop {
            match serde_json::from_slice(&self.subscriber.next().await?.payload) {
                Ok(note) => return Some(note),
                Err(error) => tracing::debug!(%error, "a note of a session cannot be read"),
            }
        }
    }
}
