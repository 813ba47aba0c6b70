//! Ways to damage a stream on purpose, so that tests can see it noticed. Not in a shipped program.

use crate::connection::{Connection, NatsError};
use crate::topology::{Log, bounds};

/// Takes one message out of the middle.
///
/// # Errors
/// [`NatsError`] if the server does not do it.
pub async fn remove(connection: &Connection, log: Log, lane: u16, sequence: u64) -> Result<(), NatsError> {
    let stream = stream(connection, log, lane).await?;
    let removed = stream.delete_message(sequence).await;
    removed.map(|_| ()).map_err(|e| connection.request_error("removing a message", e.to_string()))
}

/// Removes everything below a sequence; beyond the end, the next message gets that sequence.
///
/// # Errors
/// [`NatsError`] if the server does not do it.
pub async fn purge(connection: &Connection, log: Log, lane: u16, below: u64) -> Result<(), NatsError> {
    let stream = stream(connection, log, lane).await?;
    let purged = stream.purge().sequence(below).await;
    purged.map(|_| ()).map_err(|e| connection.request_error("purging", e.to_string()))
}

/// Makes a stream again, empty, as one that lets messages be taken out: the shipped ones refuse that.
///
/// # Errors
/// [`NatsError`] if the server does not do it.
pub async fn permit(connection: &Connection, log: Log, lane: u16) -> Result<(), NatsError> {
    let failed = |e: &dyn std::fmt::Display| connection.request_error("making a stream again", e.to_string());
    let mut config = stream(connection, log, lane).await?.cached_info().config.clone();
    config.deny_delete = false;
    connection.jetstream.delete_stream(log.stream(lane)).await.map_err(|e| failed(&e))?;
    connection.jetstream.create_stream(config).await.map_err(|e| failed(&e))?;
    Ok(())
}

/// Gives a stream room for so many messages, also fewer than it holds: then it takes nothing more. `None`
/// takes the bound away. (By bytes it would look to the storers as if there were no room left at all, and
/// they would purge it.)
///
/// # Errors
/// [`NatsError`] if the server does not do it.
pub async fn set_room(
    connection: &Connection,
    log: Log,
    lane: u16,
    messages_max: Option<u32>,
) -> Result<(), NatsError> {
    let mut config = stream(connection, log, lane).await?.cached_info().config.clone();
    config.max_messages = messages_max.map_or(-1, i64::from);
    let updated = connection.jetstream.update_stream(config).await;
    updated.map(|_| ()).map_err(|e| connection.request_error("giving a stream other room", e.to_string()))
}

/// First and last sequence of a stream.
///
/// # Errors
/// [`NatsError`] if the server does not say.
pub async fn ends(connection: &Connection, log: Log, lane: u16) -> Result<(u64, u64), NatsError> {
    bounds(connection, log, lane).await
}

async fn stream(
    connection: &Connection,
    log: Log,
    lane: u16,
) -> Result<async_nats::jetstream::stream::Stream, NatsError> {
    let found = connection.jetstream.get_stream(log.stream(lane)).await;
    found.map_err(|e| connection.request_error("asking for a stream", e.to_string()))
}
