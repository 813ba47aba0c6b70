//! Progress announcements of storers.

use crate::connection::{Connection, NatsError};
use async_nats::Subscriber;
use fieldstream_shared::read::Progress;
use futures::StreamExt;

/// Plain NATS subject of the announcements.
const SUBJECT: &str = "fieldstream.progress";

/// Announces what a storer has made durable. Lost announcements do no harm: the next one says more.
pub async fn publish_progress(connection: &Connection, progress: &Progress) {
    if connection.is_connected()
        && let Err(error) = connection.client.publish(SUBJECT, progress.encode().into()).await
    {
        tracing::debug!(%error, "announcing progress");
    }
}

/// Hears the announcements of all storers.
#[derive(Debug)]
pub struct ProgressReader {
    subscriber: Subscriber,
}

impl ProgressReader {
    /// Begins to listen.
    ///
    /// # Errors
    /// [`NatsError`] if the connection is closed.
    pub async fn subscribe(connection: &Connection) -> Result<ProgressReader, NatsError> {
        let subscriber = connection.client.subscribe(SUBJECT).await;
        let subscriber = subscriber.map_err(|e| connection.request_error("listening for progress", e))?;
        Ok(ProgressReader { subscriber })
    }

    /// The next announcement; `None` when the connection is closed for good.
    ///
    /// # Cancel safety
    /// Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Option<Progress> {
        loop {
            let message = self.subscriber.next().await?;
            match Progress::decode(&message.payload) {
                Ok(progress) => return Some(progress),
                Err(error) => tracing::warn!(%error, "a progress announcement cannot be read"),
            }
        }
    }
}
