//! Orders to storers: to make a copy, to make the file again (`docs/LOG.md`, "Purging").

use crate::connection::{Connection, NatsError};
use crate::register::CopyEntry;
use async_nats::{Subject, Subscriber};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long a copy may take before nobody waits for it any more.
const SNAPSHOT_WAIT: Duration = Duration::from_secs(600);

/// How long a rebuild may take before nobody waits for it any more.
const REBUILD_WAIT: Duration = Duration::from_secs(6 * 3600);

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Copy(CopyEntry),
    Rebuilt(Rebuilt),
    Error(String),
}

/// How a storer is to make its file again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RebuildOrder {
    /// From the beginning of the log instead of a copy.
    #[serde(default)]
    pub from_log: bool,
    /// From this copy, on the storer's host, instead of the newest.
    #[serde(default)]
    pub copy: Option<String>,
}

/// A file that was made again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rebuilt {
    /// The folder it is in.
    pub generation: String,
    /// The folder of the file before.
    pub before: String,
    /// The copy it was made from.
    pub copy: Option<String>,
    /// Messages of EVENTS that were taken in behind it.
    pub messages: u64,
    /// Where it was switched in: EVENTS sequences, in order of lanes.
    pub stored: Vec<u64>,
}

/// What a storer is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Make a verified copy.
    Copy,
    /// Make the file again, and go on with the new one.
    Rebuild(RebuildOrder),
}

/// Orders to one storer.
#[derive(Debug)]
pub struct OrderServer {
    connection: Connection,
    copies: Subscriber,
    rebuilds: Subscriber,
}

impl OrderServer {
    /// Begins to listen.
    ///
    /// # Errors
    /// [`NatsError`] if the connection is closed.
    pub async fn subscribe(connection: &Connection, storer: u64) -> Result<OrderServer, NatsError> {
        let failed = |e: &dyn std::fmt::Display| connection.request_error("listening for orders", e);
        let copies = connection.client.subscribe(snapshot_subject(storer)).await.map_err(|e| failed(&e))?;
        let rebuilds = connection.client.subscribe(rebuild_subject(storer)).await.map_err(|e| failed(&e))?;
        Ok(OrderServer { connection: connection.clone(), copies, rebuilds })
    }

    /// The next order; `None` when the connection is closed for good.
    ///
    /// # Cancel safety
    /// Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Option<OrderCall> {
        loop {
            let (request, order) = tokio::select! {
                request = self.copies.next() => (request?, Ok(Order::Copy)),
                request = self.rebuilds.next() => {
                    let request = request?;
                    let order = serde_json::from_slice(&request.payload).map(Order::Rebuild);
                    (request, order)
                }
            };
            let Some(reply) = request.reply else { continue };
            let connection = self.connection.clone();
            match order {
                Ok(order) => return Some(OrderCall { order, reply: OrderReply { connection, reply } }),
                Err(error) => OrderReply { connection, reply }.respond(Answer::Error(error.to_string())).await,
            }
        }
    }
}

/// An order, and who waits for it.
#[derive(Debug)]
pub struct OrderCall {
    /// What is to be done.
    pub order: Order,
    /// Who waits.
    pub reply: OrderReply,
}

/// Who waits for an order to be carried out.
#[derive(Debug)]
pub struct OrderReply {
    connection: Connection,
    reply: Subject,
}

impl OrderReply {
    /// Says where the copy is, or why there is none.
    pub async fn copied(self, made: Result<CopyEntry, String>) {
        self.respond(made.map_or_else(Answer::Error, Answer::Copy)).await;
    }

    /// Says what was made again, or why not.
    pub async fn rebuilt(self, made: Result<Rebuilt, String>) {
        self.respond(made.map_or_else(Answer::Error, Answer::Rebuilt)).await;
    }

    async fn respond(self, answer: Answer) {
        let Ok(bytes) = serde_json::to_vec(&answer) else { return };
        if let Err(error) = self.connection.client.publish(self.reply, bytes.into()).await {
            tracing::debug!(%error, "answering an order");
        }
    }
}

/// Asks a storer for a verified copy, and waits until it is made.
///
/// # Errors
/// [`NatsError`] if it is not there, or says why there is none.
pub async fn request_snapshot(connection: &Connection, storer: u64) -> Result<CopyEntry, NatsError> {
    let what = "asking a storer for a copy";
    match order(connection, what, snapshot_subject(storer), Vec::new(), SNAPSHOT_WAIT).await? {
        Answer::Copy(copy) => Ok(copy),
        Answer::Rebuilt(_) => Err(connection.request_error(what, "the answer is to something else")),
        Answer::Error(reason) => Err(connection.request_error(what, reason)),
    }
}

/// Has a storer make its file again, and waits until it goes on with the new one.
///
/// # Errors
/// [`NatsError`] if it is not there, or says why it did not.
pub async fn request_rebuild(connection: &Connection, storer: u64, how: &RebuildOrder) -> Result<Rebuilt, NatsError> {
    let what = "asking a storer to rebuild its file";
    let payload = serde_json::to_vec(how).map_err(|e| connection.request_error(what, e))?;
    match order(connection, what, rebuild_subject(storer), payload, REBUILD_WAIT).await? {
        Answer::Rebuilt(rebuilt) => Ok(rebuilt),
        Answer::Copy(_) => Err(connection.request_error(what, "the answer is to something else")),
        Answer::Error(reason) => Err(connection.request_error(what, reason)),
    }
}

async fn order(
    connection: &Connection,
    what: &'static str,
    subject: String,
    payload: Vec<u8>,
    wait: Duration,
) -> Result<Answer, NatsError> {
    let request = async_nats::Request::new().payload(payload.into()).timeout(Some(wait));
    let answer = connection.client.send_request(subject, request).await;
    let answer = answer.map_err(|e| connection.request_error(what, e))?;
    serde_json::from_slice(&answer.payload).map_err(|e| connection.request_error(what, e))
}

fn rebuild_subject(storer: u64) -> String {
    format!("fieldstream.rebuild.{storer:016x}")
}

fn snapshot_subject(storer: u64) -> String {
    format!("fieldstream.snapshot.{storer:016x}")
}
