//! Calls to the storers' read service: one request, an answer in one or more messages.

use crate::connection::{Connection, NatsError};
use async_nats::{HeaderMap, Subject, Subscriber};
use bytes::Bytes;
use fieldstream_shared::limits::READ_PART_BYTES_MAX;
use fieldstream_shared::msgpack::DecodeError;
use fieldstream_shared::read::{Answer, Request};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Plain NATS subject of requests; storers listen as one queue group, so one of them answers.
const SUBJECT: &str = "fieldstream.read";
const QUEUE: &str = "storers";

/// When further storers are asked for the same, each behind the one before. Longer than answers take:
/// asking twice what is only slow makes it slower.
const ASK_AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(2)];

/// Where one storer alone answers. Storers of a queue group are not to be told apart.
fn own_subject(storer: u64) -> String {
    format!("fieldstream.storer.{storer:016x}.checkpoint")
}

/// Why a request got no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// No storer listens, or NATS is not reachable.
    #[error("no storer is there")]
    NoStorer,
    /// No whole answer in time.
    #[error("no answer from a storer within {0:?}")]
    TimedOut(Duration),
    /// The answer is not of the documented form.
    #[error("a storer's answer cannot be read: {0}")]
    Malformed(#[from] DecodeError),
}

#[derive(Debug, Default)]
struct Waiting {
    parts: Vec<(u32, Bytes)>,
    of: Option<u32>,
    done: Option<oneshot::Sender<Result<Vec<u8>, ReadError>>>,
}

type Calls = Arc<Mutex<HashMap<u64, Waiting>>>;

/// Asks storers. Cheap to clone; all clones share one subscription for answers.
#[derive(Debug, Clone)]
pub struct ReadClient {
    connection: Connection,
    inbox: Arc<str>,
    calls: Calls,
    next: Arc<AtomicU64>,
    _collector: Arc<AbortOnDrop>,
}

/// Ends the task that collects answers with the last client: it would hold the connection open.
#[derive(Debug)]
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl ReadClient {
    /// Subscribes to the answers.
    ///
    /// # Errors
    /// [`NatsError`] if the connection is closed.
    pub async fn new(connection: &Connection) -> Result<ReadClient, NatsError> {
        let inbox: Arc<str> = connection.client.new_inbox().into();
        let subscriber = connection.client.subscribe(format!("{inbox}.*")).await;
        let subscriber = subscriber.map_err(|e| connection.request_error("subscribing to answers", e))?;
        let calls = Calls::default();
        let collector = Arc::new(AbortOnDrop(tokio::spawn(collect(subscriber, Arc::clone(&calls)))));
        Ok(ReadClient { connection: connection.clone(), inbox, calls, next: Arc::default(), _collector: collector })
    }

    /// Sends a request and waits for its whole answer. A storer that was killed with the request in
    /// its hands says nothing: after a while another one is asked, too.
    ///
    /// # Errors
    /// [`ReadError`]; asking again is safe.
    ///
    /// # Cancel safety
    /// A dropped call is forgotten.
    pub async fn request(&self, request: &Request, timeout: Duration) -> Result<Answer, ReadError> {
        let until = Instant::now() + timeout;
        let mut again = ASK_AGAIN.iter();
        let mut asked = FuturesUnordered::from_iter([self.ask(SUBJECT.to_owned(), request, timeout)]);
        loop {
            let pause = again.next().copied().unwrap_or(timeout);
            tokio::select! {
                Some(answer) = asked.next() => return answer,
                () = tokio::time::sleep(pause) => {
                    asked.push(self.ask(SUBJECT.to_owned(), request, until.saturating_duration_since(Instant::now())));
                }
            }
        }
    }

    /// Like [`ReadClient::request`], but asks one storer, named as in its announcements.
    ///
    /// # Errors
    /// [`ReadError`]; asking again is safe.
    ///
    /// # Cancel safety
    /// A dropped call is forgotten.
    pub async fn request_of(&self, storer: u64, request: &Request, timeout: Duration) -> Result<Answer, ReadError> {
        self.ask(own_subject(storer), request, timeout).await
    }

    async fn ask(&self, subject: String, request: &Request, timeout: Duration) -> Result<Answer, ReadError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (done, answered) = oneshot::channel();
        let _forget = Forget { calls: &self.calls, id };
        lock(&self.calls).insert(id, Waiting { done: Some(done), ..Waiting::default() });
        let reply = format!("{}.{id}", self.inbox);
        let sent = self.connection.client.publish_with_reply(subject, reply, request.encode().into()).await;
        sent.map_err(|_| ReadError::NoStorer)?;
        let mut connection = self.connection.clone();
        connection.forget_reconnects();
        let answered = tokio::select! {
            answered = tokio::time::timeout(timeout, answered) => answered,
            // The answer went with the old connection; waiting on would be in vain.
            () = connection.reconnected() => return Err(ReadError::NoStorer),
        };
        match answered {
            Err(_) => Err(ReadError::TimedOut(timeout)),
            Ok(Err(_)) => Err(ReadError::NoStorer),
            Ok(Ok(bytes)) => Ok(Answer::decode(&bytes?)?),
        }
    }
}

struct Forget<'a> {
    calls: &'a Calls,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(self.calls).remove(&self.id);
    }
}

fn lock(calls: &Calls) -> std::sync::MutexGuard<'_, HashMap<u64, Waiting>> {
    calls.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn collect(mut subscriber: Subscriber, calls: Calls) {
    while let Some(message) = subscriber.next().await {
        let id = message.subject.rsplit('.').next().and_then(|id| id.parse().ok());
        let Some(id) = id else { continue };
        let mut calls = lock(&calls);
        let Some(waiting) = calls.get_mut(&id) else { continue };
        if let Some(result) = waiting.take(&message)
            && let Some(done) = waiting.done.take()
        {
            let _ = done.send(result);
        }
    }
}

impl Waiting {
    /// Takes a part; the whole answer once all are there.
    fn take(&mut self, message: &async_nats::Message) -> Option<Result<Vec<u8>, ReadError>> {
        if message.status == Some(async_nats::StatusCode::NO_RESPONDERS) {
            return Some(Err(ReadError::NoStorer));
        }
        let (number, of) = part_of(message.headers.as_ref());
        self.of = Some(of);
        if self.parts.iter().all(|(n, _)| *n != number) {
            self.parts.push((number, message.payload.clone()));
        }
        if self.parts.len() < of as usize {
            return None;
        }
        self.parts.sort_unstable_by_key(|(n, _)| *n);
        Some(Ok(self.parts.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect()))
    }
}

const PART: &str = "Fieldstream-Part";

/// Number and count of a message's part; a message without header is the whole answer.
fn part_of(headers: Option<&HeaderMap>) -> (u32, u32) {
    let parse = || {
        let (number, of) = headers?.get(PART)?.as_str().split_once('/')?;
        Some((number.parse().ok()?, of.parse().ok()?))
    };
    parse().unwrap_or((0, 1))
}

/// Receives requests, as one storer of the queue group.
#[derive(Debug)]
pub struct ReadServer {
    connection: Connection,
    subscriber: Subscriber,
}

impl ReadServer {
    /// Begins to listen.
    ///
    /// # Errors
    /// [`NatsError`] if the connection is closed.
    pub async fn subscribe(connection: &Connection) -> Result<ReadServer, NatsError> {
        let subscriber = connection.client.queue_subscribe(SUBJECT, QUEUE.into()).await;
        let subscriber = subscriber.map_err(|e| connection.request_error("listening for requests", e))?;
        Ok(ReadServer { connection: connection.clone(), subscriber })
    }

    /// Begins to listen for what is asked of this one storer ([`ReadClient::request_of`]).
    ///
    /// # Errors
    /// [`NatsError`] if the connection is closed.
    pub async fn subscribe_own(connection: &Connection, storer: u64) -> Result<ReadServer, NatsError> {
        let subscriber = connection.client.subscribe(own_subject(storer)).await;
        let subscriber = subscriber.map_err(|e| connection.request_error("listening for requests", e))?;
        Ok(ReadServer { connection: connection.clone(), subscriber })
    }

    /// The next request; `None` when the connection is closed for good. Requests that cannot be
    /// read are logged and get no answer.
    ///
    /// # Cancel safety
    /// Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Option<ReadCall> {
        loop {
            let message = self.subscriber.next().await?;
            let Some(reply) = message.reply else { continue };
            match Request::decode(&message.payload) {
                Ok(request) => return Some(ReadCall { request, reply, connection: self.connection.clone() }),
                Err(error) => tracing::warn!(%error, "a read request cannot be read"),
            }
        }
    }
}

/// A request that waits for its answer.
#[derive(Debug)]
pub struct ReadCall {
    /// What is asked.
    pub request: Request,
    reply: Subject,
    connection: Connection,
}

impl ReadCall {
    /// Sends the answer, in as many messages as it takes.
    pub async fn respond(self, answer: &Answer) {
        let bytes = Bytes::from(answer.encode());
        let parts = bytes.len().div_ceil(READ_PART_BYTES_MAX).max(1);
        for number in 0..parts {
            let start = number * READ_PART_BYTES_MAX;
            let part = bytes.slice(start..bytes.len().min(start + READ_PART_BYTES_MAX));
            let sent = if parts == 1 {
                self.connection.client.publish(self.reply.clone(), part).await
            } else {
                let mut headers = HeaderMap::new();
                headers.insert(PART, format!("{number}/{parts}"));
                self.connection.client.publish_with_headers(self.reply.clone(), headers, part).await
            };
            if let Err(error) = sent {
                tracing::debug!(%error, "answering a read request");
                return;
            }
        }
    }
}
