//! Reading a stream in order, without acks, from a known position.

use crate::connection::{Connection, NatsError};
use crate::repair::Workshop;
use crate::topology::{GONE_AFTER, Log, bounds};
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use bytes::Bytes;
use fieldstream_shared::defect::{self, Defect};
use fieldstream_shared::event::message_hash;
use futures::StreamExt;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// Messages asked for at a time: bounds what waits in memory.
const PULL_MESSAGES: usize = 128;
/// Messages a pump has read ahead of its owner.
const PUMPED_MESSAGES: usize = 8;
/// A pull request that finds nothing is renewed after this long.
const PULL_EXPIRES: Duration = Duration::from_secs(30);
/// The server gives a sign of life this often; two missing ones and the consumer is made anew.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// The server forgets a consumer that nobody asks for this long.
const INACTIVE: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// When a consumer has delivered nothing for so long, the stream is looked at once: a message that is
/// missing at the very end shows in no gap before another follows.
const SILENCE: Duration = Duration::from_secs(1);

/// Where reading starts: behind the last message already consumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Start {
    /// Sequence of that message; 0 for none.
    pub sequence: u64,
    /// Its hash ([`message_hash`]), checked against the stream where known.
    pub hash: Option<u64>,
}

/// A message of a stream.
#[derive(Debug, Clone)]
pub struct LogMessage {
    /// Stream sequence; contiguous.
    pub sequence: u64,
    /// The batch.
    pub payload: Bytes,
    /// Messages that were in the stream behind this one when it was sent.
    pub pending: u64,
}

/// Why a reader had to stop. All are final: reading on would lose or repeat something.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A message is missing in the middle.
    #[error(
        "stream {stream} has a hole: message {expected} is missing, {found} follows; the log is damaged, stop writing and repair it"
    )]
    Hole {
        /// Which stream.
        stream: String,
        /// The sequence that should follow.
        expected: u64,
        /// The next sequence that is there, or would be.
        found: u64,
    },
    /// The stream was purged beyond the reader's position.
    #[error(
        "stream {stream} begins at {first}, behind {expected} where this reader is; start again: gateways and processors begin at a storer's checkpoint, a storer needs a copy: on an empty folder it takes one from a storer that is running, else `fieldstream storer restore`"
    )]
    Outrun {
        /// Which stream.
        stream: String,
        /// The sequence the reader needs.
        expected: u64,
        /// The first one there is.
        first: u64,
    },
    /// The stream is not the one that was read before.
    #[error("stream {stream} went backwards or was replaced: {reason}; stop writing and repair the log")]
    Diverged {
        /// Which stream.
        stream: String,
        /// How that was seen.
        reason: String,
    },
    /// The streams are closed, or about to be moved.
    #[error("a repair of the log was begun and is not finished; `fieldstream repair` continues it")]
    Unfinished,
}

impl LogError {
    /// The code of the finding that tells an operator.
    pub fn code(&self) -> &'static str {
        match self {
            LogError::Hole { .. } => "log-hole",
            LogError::Outrun { .. } => "log-outrun",
            LogError::Diverged { .. } => "log-diverged",
            LogError::Unfinished => "log-repair-unfinished",
        }
    }
}

/// Reads one stream in order. Reconnects by itself.
pub struct LogReader {
    connection: Connection,
    log: Log,
    lane: u16,
    /// The last message handed out.
    last: Start,
    messages: Option<pull::Stream>,
    /// Whether the next message must be the last one handed out, to be looked at again.
    verify: bool,
    /// Whether the consumer has not delivered anything new yet.
    fresh: bool,
    retry: Duration,
    /// How often in a row the stream was not there.
    gone: u32,
    /// When to look behind a silent consumer, once for each silence.
    look_at: Option<Instant>,
}

impl std::fmt::Debug for LogReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogReader").field("log", &self.log).field("lane", &self.lane).field("last", &self.last).finish()
    }
}

/// A reader that reads on by itself ([`LogReader::pump`]). Ends when dropped.
#[derive(Debug)]
pub struct LogPump {
    messages: mpsc::Receiver<Result<LogMessage, LogError>>,
    task: AbortHandle,
}

impl LogPump {
    /// The next message; pends for good behind an error.
    ///
    /// # Errors
    /// [`LogError`] if going on would lose or repeat something.
    ///
    /// # Cancel safety
    /// Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Result<LogMessage, LogError> {
        match self.messages.recv().await {
            Some(message) => message,
            None => std::future::pending().await,
        }
    }
}

impl Drop for LogPump {
    fn drop(&mut self) {
        self.task.abort();
    }
}

enum Step {
    Message(LogMessage),
    Nothing,
}

impl LogReader {
    /// A reader that goes on behind `start`. If the server does not answer now,
    /// [`LogReader::next`] goes on trying.
    ///
    /// # Errors
    /// [`LogError`] if the stream does not hold the position.
    pub async fn open(connection: &Connection, log: Log, lane: u16, start: Start) -> Result<LogReader, LogError> {
        let mut reader = LogReader {
            connection: connection.clone(),
            log,
            lane,
            last: start,
            messages: None,
            verify: false,
            fresh: true,
            retry: RETRY,
            gone: 0,
            look_at: None,
        };
        // Reconnects that came before have nothing to do with the consumer made now.
        reader.connection.forget_reconnects();
        reader.try_open().await?;
        Ok(reader)
    }

    /// Reads on in a task of its own, for callers that wait for other things beside. Dropping
    /// [`LogReader::next`] over and over would begin the opening of a consumer, which takes several
    /// round trips, anew each time.
    pub fn pump(mut self) -> LogPump {
        let (sender, messages) = mpsc::channel(PUMPED_MESSAGES);
        let task = tokio::spawn(async move {
            loop {
                let message = self.next().await;
                let last = message.is_err();
                if sender.send(message).await.is_err() || last {
                    return;
                }
            }
        });
        LogPump { messages, task: task.abort_handle() }
    }

    /// The next message. Waits as long as it takes, also through outages.
    ///
    /// # Errors
    /// [`LogError`] if going on would lose or repeat something.
    ///
    /// # Cancel safety
    /// Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Result<LogMessage, LogError> {
        loop {
            if self.messages.is_none() {
                self.try_open().await?;
            }
            let Some(messages) = &mut self.messages else {
                tokio::time::sleep(self.retry).await;
                self.retry = (self.retry * 2).min(RETRY_MAX);
                continue;
            };
            let look_at = self.look_at;
            let received = tokio::select! {
                received = messages.next() => received,
                () = until(look_at) => {
                    if let Some((expected, found)) = self.gap_behind_silence().await {
                        self.missing(expected, found).await?;
                    }
                    self.look_at = None;
                    continue;
                }
                () = self.connection.reconnected() => {
                    // The consumer may be gone with the server that held it in memory.
                    self.messages = None;
                    continue;
                }
            };
            match received {
                Some(Ok(message)) => {
                    if let Step::Message(message) = self.take(&message).await? {
                        return Ok(message);
                    }
                }
                Some(Err(error)) => {
                    tracing::debug!(stream = self.log.stream(self.lane), %error, "consumer ended; it is made anew");
                    self.messages = None;
                }
                None => self.messages = None,
            }
        }
    }

    async fn take(&mut self, message: &async_nats::jetstream::Message) -> Result<Step, LogError> {
        let Ok(info) = message.info() else { return Ok(Step::Nothing) };
        let (sequence, pending) = (info.stream_sequence, info.pending);
        let hash = message_hash(&message.payload);
        if self.verify {
            if sequence != self.last.sequence {
                return self.missing(self.last.sequence, sequence).await;
            }
            if self.last.hash.is_some_and(|known| known != hash) {
                return Err(self.diverged(format!("message {sequence} is not the one that was read before")));
            }
            self.verify = false;
            self.last.hash = Some(hash);
            return Ok(Step::Nothing);
        }
        let expected = self.last.sequence + 1;
        if sequence < expected {
            return Ok(Step::Nothing);
        }
        if sequence > expected && !defect::active(Defect::HoleSkipped) {
            if self.fresh {
                return self.missing(expected, sequence).await;
            }
            // The client drops messages when its queue overflows: what is missing may still be in
            // the stream. A new consumer starts exactly there; only if its first message is behind
            // a gap, too, it is a hole.
            self.messages = None;
            return Ok(Step::Nothing);
        }
        self.fresh = false;
        self.look_at = Some(Instant::now() + SILENCE);
        self.last = Start { sequence, hash: Some(hash) };
        self.retry = RETRY;
        Ok(Step::Message(LogMessage { sequence, payload: message.payload.clone(), pending }))
    }

    /// The last message handed out, or the one it starts behind; 0 for none.
    pub fn position(&self) -> u64 {
        self.last.sequence
    }

    /// Whether the message this reader starts behind is there.
    pub(crate) async fn verified(&mut self) -> Result<(), LogError> {
        if self.verify
            && let Some((expected, found)) = self.gap_behind_silence().await
        {
            self.missing(expected, found).await?;
        }
        Ok(())
    }

    /// What the consumer should deliver next, and what the stream has in its place.
    async fn gap_behind_silence(&self) -> Option<(u64, u64)> {
        let expected = if self.verify { self.last.sequence } else { self.last.sequence + 1 };
        let (_, last) = bounds(&self.connection, self.log, self.lane).await.ok()?;
        if last < expected {
            return None;
        }
        match Workshop::new(&self.connection).next(self.log, self.lane, expected).await.ok()? {
            Some((found, _)) => (found > expected).then_some((expected, found)),
            None => Some((expected, last + 1)),
        }
    }

    /// `found` came where `expected` should: a hole, unless the stream was purged meanwhile, which is no
    /// damage. Then opening it anew tells whether the reader can go on.
    async fn missing(&mut self, expected: u64, found: u64) -> Result<Step, LogError> {
        self.messages = None;
        match bounds(&self.connection, self.log, self.lane).await {
            Ok((first, _)) if first <= expected => Err(self.hole(expected, found)),
            // Without an answer what is missing shows again.
            Ok(_) | Err(_) => Ok(Step::Nothing),
        }
    }

    fn hole(&self, expected: u64, found: u64) -> LogError {
        LogError::Hole { stream: self.log.stream(self.lane), expected, found }
    }

    fn diverged(&self, reason: String) -> LogError {
        LogError::Diverged { stream: self.log.stream(self.lane), reason }
    }

    /// Looks at the stream and makes a consumer; leaves `messages` empty if the server does not
    /// answer now.
    async fn try_open(&mut self) -> Result<(), LogError> {
        self.messages = None;
        let (first, last) = match bounds(&self.connection, self.log, self.lane).await {
            Ok(bounds) => bounds,
            Err(error) => {
                log_unavailable(&error);
                let is_gone = matches!(error, NatsError::StreamGone { .. });
                self.gone = if is_gone { self.gone + 1 } else { 0 };
                return if self.gone < GONE_AFTER { Ok(()) } else { Err(self.diverged("it is not there".to_owned())) };
            }
        };
        self.gone = 0;
        if last < self.last.sequence {
            return Err(self.diverged(format!("it ends at {last}, but {} was read from it", self.last.sequence)));
        }
        if first > self.last.sequence + 1 {
            let expected = self.last.sequence + 1;
            return Err(LogError::Outrun { stream: self.log.stream(self.lane), expected, first });
        }
        self.verify =
            self.last.sequence > 0 && first <= self.last.sequence && !defect::active(Defect::ResumeUnverified);
        let start = if self.verify { self.last.sequence } else { self.last.sequence + 1 };
        match self.make_consumer(start).await {
            Ok(messages) => {
                self.messages = Some(messages);
                self.fresh = true;
                self.look_at = Some(Instant::now() + SILENCE);
            }
            Err(reason) => tracing::debug!(stream = self.log.stream(self.lane), reason, "no consumer yet"),
        }
        Ok(())
    }

    async fn make_consumer(&self, start_sequence: u64) -> Result<pull::Stream, String> {
        let config = pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence },
            ack_policy: AckPolicy::None,
            memory_storage: true,
            num_replicas: 1,
            inactive_threshold: INACTIVE,
            ..pull::Config::default()
        };
        let stream = self.log.stream(self.lane);
        let consumer = self.connection.jetstream.create_consumer_on_stream(config, stream).await;
        let consumer = consumer.map_err(|e| e.to_string())?;
        let stream = consumer.stream().max_messages_per_batch(PULL_MESSAGES).expires(PULL_EXPIRES).heartbeat(HEARTBEAT);
        stream.messages().await.map_err(|e| e.to_string())
    }
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

fn log_unavailable(error: &NatsError) {
    tracing::debug!(%error, "the stream does not answer; trying again");
}
