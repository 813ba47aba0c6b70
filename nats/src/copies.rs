//! Copies of storers' files, carried over NATS piece by piece, so that a storer on another machine can
//! begin with one (`docs/LOG.md`, "Purging").

use crate::connection::{Connection, NatsError};
use async_nats::Subscriber;
use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Bytes of a copy in one answer: well below what a server takes in one message.
pub const PIECE_BYTES: u64 = 256 << 10;
/// How long a piece may take before it counts as lost.
const WAIT: Duration = Duration::from_secs(5);
/// A piece that did not come is asked for so many times.
const TRIES: u32 = 3;
/// The first byte of an answer: bytes of the copy follow, or the reason why there are none.
const BYTES: u8 = 0;
const REASON: u8 = 1;

/// A piece of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PieceRequest {
    /// The copy, by when it was made, as the register tells it.
    pub made_at_us: u64,
    /// Where the piece begins in the file.
    pub offset: u64,
}

/// Hears who asks for pieces of one storer's copies.
#[derive(Debug)]
pub struct PieceServer {
    connection: Connection,
    subscriber: Subscriber,
}

/// Who waits for a piece.
#[derive(Debug)]
pub struct PieceCall {
    /// Which one.
    pub request: PieceRequest,
    connection: Connection,
    reply: async_nats::Subject,
}

impl PieceServer {
    /// Begins to listen.
    ///
    /// # Errors
    /// [`NatsError`] if the connection is closed.
    pub async fn subscribe(connection: &Connection, storer: u64) -> Result<PieceServer, NatsError> {
        let subscriber = connection.client.subscribe(subject(storer)).await;
        let subscriber = subscriber.map_err(|e| connection.request_error("listening for pieces of copies", e))?;
        Ok(PieceServer { connection: connection.clone(), subscriber })
    }

    /// The next request; `None` when the connection is closed for good.
    ///
    /// # Cancel safety
    /// Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Option<PieceCall> {
        loop {
            let message = self.subscriber.next().await?;
            let Some(reply) = message.reply else { continue };
            match serde_json::from_slice(&message.payload) {
                Ok(request) => return Some(PieceCall { request, connection: self.connection.clone(), reply }),
                Err(error) => tracing::debug!(%error, "a request for a piece of a copy cannot be read"),
            }
        }
    }
}

impl PieceCall {
    /// Sends the piece, at most [`PIECE_BYTES`], or says why there is none.
    pub async fn respond(self, piece: Result<Vec<u8>, String>) {
        let (kind, content) = piece.map_or_else(|reason| (REASON, reason.into_bytes()), |bytes| (BYTES, bytes));
        let mut answer = BytesMut::with_capacity(content.len() + 1);
        answer.put_u8(kind);
        answer.put_slice(&content);
        if let Err(error) = self.connection.client.publish(self.reply, answer.freeze()).await {
            tracing::debug!(%error, "sending a piece of a copy");
        }
    }
}

/// Gets a piece of a storer's copy.
///
/// # Errors
/// [`NatsError`] if it does not come, or the storer says why it has none.
pub async fn request_piece(connection: &Connection, storer: u64, piece: PieceRequest) -> Result<Bytes, NatsError> {
    let failed = |e: &dyn std::fmt::Display| connection.request_error("getting a copy from a storer", e);
    let payload = Bytes::from(serde_json::to_vec(&piece).map_err(|e| failed(&e))?);
    let mut tries = 0;
    let answer = loop {
        tries += 1;
        let request = async_nats::Request::new().payload(payload.clone()).timeout(Some(WAIT));
        match connection.client.send_request(subject(storer), request).await {
            Ok(answer) => break answer.payload,
            Err(error) if tries >= TRIES => return Err(failed(&error)),
            Err(error) => tracing::debug!(%error, ?piece, "a piece of a copy is asked for again"),
        }
    };
    match answer.first() {
        Some(&BYTES) => Ok(answer.slice(1..)),
        Some(&REASON) => Err(failed(&String::from_utf8_lossy(&answer[1..]))),
        _ => Err(failed(&"the answer is to something else")),
    }
}

fn subject(storer: u64) -> String {
    format!("fieldstream.copy.{storer:016x}")
}
