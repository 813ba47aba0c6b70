//! The steps of a repair on the streams of one deployment.

use crate::batch_writer::{BatchWriter, WriteError};
use crate::connection::{Connection, NatsError};
use crate::log_reader::{LogError, LogReader, Start};
use crate::topology::{self, Log, create_stream, get_stream_error, jetstream_error};
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::stream::{
    Config, DiscardPolicy, LastRawMessageErrorKind, RawMessageErrorKind, RetentionPolicy, StorageType, Stream,
    SubjectTransform,
};
use bytes::Bytes;
use std::ops::RangeInclusive;
use std::time::Duration;

/// How often an append is tried before the repair gives up; it may be continued.
const APPEND_ATTEMPTS: u32 = 20;
const APPEND_PAUSE: Duration = Duration::from_millis(250);

/// What a stream holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StreamLook {
    /// First sequence there is; one more than `last` if it is empty.
    pub first: u64,
    /// Last sequence that was given away.
    pub last: u64,
    /// Messages there are.
    pub messages: u64,
}

/// What was put aside of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Copied {
    /// Messages.
    pub messages: u64,
    /// Sequences that were not there.
    pub missing: Vec<RangeInclusive<u64>>,
}

/// The streams of a deployment, to be looked at and repaired.
#[derive(Debug, Clone)]
pub struct Workshop {
    connection: Connection,
}

impl Workshop {
    /// Nothing is done yet.
    pub fn new(connection: &Connection) -> Workshop {
        Workshop { connection: connection.clone() }
    }

    /// What a stream holds; `None` if it does not exist.
    ///
    /// # Errors
    /// [`NatsError`] if it cannot be asked.
    pub async fn look(&self, log: Log, lane: u16) -> Result<Option<StreamLook>, NatsError> {
        let Some(stream) = self.stream(&log.stream(lane)).await? else { return Ok(None) };
        let state = &stream.cached_info().state;
        Ok(Some(StreamLook { first: state.first_sequence, last: state.last_sequence, messages: state.messages }))
    }

    async fn stream(&self, name: &str) -> Result<Option<Stream>, NatsError> {
        match self.connection.jetstream.get_stream(name).await {
            Ok(stream) => Ok(Some(stream)),
            Err(error) => match get_stream_error(&self.connection, name, &error) {
                NatsError::StreamGone { .. } => Ok(None),
                error => Err(error),
            },
        }
    }

    async fn present(&self, name: &str) -> Result<Stream, NatsError> {
        let gone = || NatsError::StreamGone { url: self.connection.url.clone(), stream: name.to_owned() };
        self.stream(name).await?.ok_or_else(gone)
    }

    /// A message by its sequence; `None` if it is not there.
    ///
    /// # Errors
    /// [`NatsError`] if the stream cannot be asked.
    pub async fn message(&self, log: Log, lane: u16, sequence: u64) -> Result<Option<Bytes>, NatsError> {
        let found = self.next(log, lane, sequence).await?;
        Ok(found.filter(|(at, _)| *at == sequence).map(|(_, payload)| payload))
    }

    /// The first message at or behind a sequence, with its own.
    ///
    /// # Errors
    /// [`NatsError`] if the stream cannot be asked.
    pub async fn next(&self, log: Log, lane: u16, from: u64) -> Result<Option<(u64, Bytes)>, NatsError> {
        let Some(stream) = self.stream(&log.stream(lane)).await? else { return Ok(None) };
        next_message(&self.connection, &stream, from).await
    }

    /// Reads a stream from a sequence to its end and tells what is missing: a server does not count
    /// what it finds broken. Stops early behind `holes_max` holes.
    ///
    /// # Errors
    /// [`NatsError`] if the stream cannot be read.
    pub async fn holes(
        &self,
        log: Log,
        lane: u16,
        from: u64,
        holes_max: usize,
    ) -> Result<Vec<RangeInclusive<u64>>, NatsError> {
        let (first, last) = topology::bounds(&self.connection, log, lane).await?;
        let (mut holes, mut next) = (Vec::new(), from.max(first));
        while next <= last && holes.len() < holes_max {
            match self.read_through(log, lane, next, last).await {
                Ok(()) => break,
                Err(LogError::Hole { expected, found, .. }) => {
                    holes.push(expected..=found - 1);
                    next = found;
                }
                Err(LogError::Outrun { first, .. }) => next = first,
                Err(error) => return Err(self.connection.request_error("reading a stream", error)),
            }
        }
        Ok(holes)
    }

    /// Reads from a message, which is looked at, too, to the last one.
    async fn read_through(&self, log: Log, lane: u16, from: u64, last: u64) -> Result<(), LogError> {
        let start = Start { sequence: from, hash: None };
        let mut reader = LogReader::open(&self.connection, log, lane, start).await?;
        if from == last {
            return reader.verified().await;
        }
        while reader.next().await?.sequence < last {}
        Ok(())
    }

    /// Closes a lane's streams to everybody but the repair, whoever does not know of it included.
    /// Streams that are not there are made.
    ///
    /// # Errors
    /// [`NatsError`] if the server refuses.
    pub async fn close(&self, lane: u16, stream_bytes: u64) -> Result<(), NatsError> {
        for log in [Log::Instructions, Log::Events] {
            if self.stream(&log.stream(lane)).await?.is_none() {
                create_stream(&self.connection, log, lane, stream_bytes, 1).await?;
            }
            let transform = SubjectTransform { source: closed(log, lane), destination: log.subject(lane) };
            self.set_subject(log, lane, closed(log, lane), Some(transform)).await?;
        }
        Ok(())
    }

    /// Opens a lane's streams again.
    ///
    /// # Errors
    /// [`NatsError`] if the server refuses.
    pub async fn open(&self, lane: u16) -> Result<(), NatsError> {
        for log in [Log::Instructions, Log::Events] {
            self.set_subject(log, lane, log.subject(lane), None).await?;
        }
        Ok(())
    }

    async fn set_subject(
        &self,
        log: Log,
        lane: u16,
        subject: String,
        subject_transform: Option<SubjectTransform>,
    ) -> Result<(), NatsError> {
        let stream = self.present(&log.stream(lane)).await?;
        let config = Config { subjects: vec![subject], subject_transform, ..stream.cached_info().config.clone() };
        let updated = self.connection.jetstream.update_stream(config).await;
        updated.map_err(|e| jetstream_error(&self.connection, "closing or opening a stream", &e))?;
        Ok(())
    }

    /// Puts aside a lane's INSTRUCTIONS from a sequence on, in order; what was put aside before is
    /// forgotten. `seen` gets every message.
    ///
    /// # Errors
    /// [`NatsError`] if a message cannot be read or put aside.
    pub async fn put_aside(
        &self,
        lane: u16,
        from: u64,
        mut seen: impl FnMut(&Bytes) + Send,
    ) -> Result<Copied, NatsError> {
        self.discard_aside(lane).await?;
        let source = self.present(&Log::Instructions.stream(lane)).await?;
        let replicas = source.cached_info().config.num_replicas;
        let last = source.cached_info().state.last_sequence;
        let subject = aside_subject(lane, rand::random());
        let config = Config {
            name: aside_stream(lane),
            subjects: vec![subject.clone()],
            storage: StorageType::File,
            retention: RetentionPolicy::Limits,
            discard: DiscardPolicy::New,
            num_replicas: replicas,
            ..Config::default()
        };
        let made = self.connection.jetstream.create_stream(config).await;
        made.map_err(|e| jetstream_error(&self.connection, "making room for instructions", &e))?;
        let writer = BatchWriter::to_subject(&self.connection, subject);
        let (mut copied, mut next) = (Copied::default(), from.max(1));
        while let Some((sequence, payload)) = next_message(&self.connection, &source, next).await? {
            if sequence > next {
                copied.missing.push(next..=sequence - 1);
            }
            seen(&payload);
            self.append(&writer, payload).await?;
            copied.messages += 1;
            next = sequence + 1;
        }
        if next <= last {
            copied.missing.push(next..=last);
        }
        Ok(copied)
    }

    /// Forgets what was put aside.
    ///
    /// # Errors
    /// [`NatsError`] if the server refuses.
    pub async fn discard_aside(&self, lane: u16) -> Result<(), NatsError> {
        if self.stream(&aside_stream(lane)).await?.is_none() {
            return Ok(());
        }
        let deleted = self.connection.jetstream.delete_stream(aside_stream(lane)).await;
        deleted.map_err(|e| jetstream_error(&self.connection, "deleting what was put aside", &e))?;
        Ok(())
    }

    /// Empties a stream and moves it ahead, so that the next message gets the sequence `first`.
    ///
    /// # Errors
    /// [`NatsError`] if the server refuses, or the stream is not where it must be afterwards.
    pub async fn move_ahead(&self, log: Log, lane: u16, first: u64) -> Result<(), NatsError> {
        let name = log.stream(lane);
        let stream = self.present(&name).await?;
        if stream.cached_info().state.last_sequence + 1 >= first {
            return Ok(());
        }
        let purged = stream.purge().sequence(first).await;
        purged.map_err(|e| jetstream_error(&self.connection, &format!("moving {name} ahead"), &e))?;
        let (_, last) = topology::bounds(&self.connection, log, lane).await?;
        if last + 1 != first {
            let reason = format!("the stream ends at {last}, not at {}", first - 1);
            return Err(self.connection.request_error(&format!("moving {name} ahead"), reason));
        }
        Ok(())
    }

    /// Begins the moved INSTRUCTIONS with `marker`, then logs again what was put aside, in order.
    /// Taken again it may log messages once more; readers recognise repetitions.
    ///
    /// # Errors
    /// [`NatsError`] if a message cannot be read or logged.
    pub async fn log_again(&self, lane: u16, first: u64, marker: Bytes) -> Result<(), NatsError> {
        let writer = BatchWriter::to_subject(&self.connection, closed(Log::Instructions, lane));
        let (_, last) = topology::bounds(&self.connection, Log::Instructions, lane).await?;
        if last < first {
            self.append(&writer, marker).await?;
        }
        let Some(aside) = self.stream(&aside_stream(lane)).await? else {
            let reason = format!("what was put aside of lane {lane} is gone");
            return Err(self.connection.request_error("logging instructions again", reason));
        };
        let mut next = 1;
        while let Some((sequence, payload)) = next_message(&self.connection, &aside, next).await? {
            self.append(&writer, payload).await?;
            next = sequence + 1;
        }
        Ok(())
    }

    /// Gives the log its new identity.
    ///
    /// # Errors
    /// [`NatsError`] if the settings cannot be written.
    pub async fn set_log_id(&self, log_id: u64) -> Result<(), NatsError> {
        topology::set_log_id(&self.connection, log_id).await
    }

    async fn append(&self, writer: &BatchWriter, message: Bytes) -> Result<(), NatsError> {
        let mut reason = WriteError::Disconnected;
        for _ in 0..APPEND_ATTEMPTS {
            match writer.append(message.clone()).await {
                Ok(_) => return Ok(()),
                Err(error) => reason = error,
            }
            tokio::time::sleep(APPEND_PAUSE).await;
        }
        Err(self.connection.request_error("writing a message", reason))
    }
}

/// The first message of a stream at or behind a sequence, by its leader's word.
async fn next_message(connection: &Connection, stream: &Stream, from: u64) -> Result<Option<(u64, Bytes)>, NatsError> {
    match stream.raw_message_builder().sequence(from).next_by_subject(">").send().await {
        Ok(message) => Ok(Some((message.sequence, message.payload))),
        Err(error) => match error.kind() {
            RawMessageErrorKind::NoMessageFound => Ok(None),
            LastRawMessageErrorKind::JetStream(refusal) if refusal.error_code() == ErrorCode::NO_MESSAGE_FOUND => {
                Ok(None)
            }
            _ => Err(jetstream_error(connection, "reading a message", &error)),
        },
    }
}

/// The subject of a closed stream: only the repair knows it.
fn closed(log: Log, lane: u16) -> String {
    format!("repair.{}", log.subject(lane))
}

fn aside_stream(lane: u16) -> String {
    format!("REPAIR_{lane}")
}

/// Another one each time: a repair that was taken over meanwhile puts nothing among what the next one does.
fn aside_subject(lane: u16, attempt: u64) -> String {
    format!("repair.aside.{lane}.{attempt:016x}")
}
