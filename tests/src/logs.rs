//! One view of two logs: the simulated one and a real nats-server's. The conformance tests hold
//! both to the same behaviour, so that what the simulation shows means something.

use crate::nats_server;
use crate::sim::log::{Damage, Reader, Stream};
use bytes::Bytes;
use fieldstream_nats::{
    BatchWriter, ChildOptions, Connection, Log, LogError, LogReader, NatsChild, Profile, Start, Topology,
    TopologyOptions, WriteError, damage,
};
use fieldstream_shared::event::message_hash;
use std::time::Duration;
use tokio::runtime::Runtime;

const LONG: Duration = Duration::from_secs(30);
/// So long a reader may be silent before it counts as having nothing.
const SILENCE: Duration = Duration::from_secs(2);

/// What a reader said about the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noticed {
    /// A message is missing.
    Hole,
    /// The log begins behind the reader.
    Outrun,
    /// The log went backwards or was replaced.
    Diverged,
}

/// The stream is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// A log as writers, readers and accidents see it.
pub trait LogLike {
    /// Stores a message and returns its sequence.
    ///
    /// # Errors
    /// [`Full`].
    fn append(&mut self, message: Bytes) -> Result<u64, Full>;
    /// Stores a message whose acknowledgement nobody gets.
    fn append_unheard(&mut self, message: Bytes);
    /// First and last sequence.
    fn ends(&mut self) -> (u64, u64);
    /// Up to `max` messages behind a position, and what was noticed.
    fn read(&mut self, behind: u64, last: Option<&[u8]>, max: usize) -> (Vec<(u64, Bytes)>, Option<Noticed>);
    /// Removes everything below a sequence.
    fn purge(&mut self, below: u64);
    /// Takes out one message.
    fn remove(&mut self, sequence: u64);
    /// Kills what keeps the log, and starts it again.
    fn restart(&mut self);
}

/// The simulated log.
#[derive(Debug, Default)]
pub struct Simulated(Stream);

impl Simulated {
    /// A log that takes so many bytes; 0 for no bound.
    pub fn new(bytes_max: usize) -> Simulated {
        Simulated(Stream::bounded(bytes_max))
    }
}

impl LogLike for Simulated {
    fn append(&mut self, message: Bytes) -> Result<u64, Full> {
        self.0.append(message).map_err(|_| Full)
    }

    fn append_unheard(&mut self, message: Bytes) {
        let _ = self.0.append(message);
    }

    fn ends(&mut self) -> (u64, u64) {
        (self.0.first(), self.0.last())
    }

    fn read(&mut self, behind: u64, last: Option<&[u8]>, max: usize) -> (Vec<(u64, Bytes)>, Option<Noticed>) {
        let mut reader = Reader::behind(behind, last.map(message_hash));
        let mut read = Vec::new();
        while read.len() < max {
            match reader.next(&self.0) {
                Ok(Some(message)) => read.push(message),
                Ok(None) => break,
                Err(Damage::Hole) => return (read, Some(Noticed::Hole)),
                Err(Damage::Outrun) => return (read, Some(Noticed::Outrun)),
                Err(Damage::Diverged) => return (read, Some(Noticed::Diverged)),
            }
        }
        (read, None)
    }

    fn purge(&mut self, below: u64) {
        self.0.purge(below);
    }

    fn remove(&mut self, sequence: u64) {
        self.0.remove(sequence);
    }

    /// What was stored stays: the durable profile.
    fn restart(&mut self) {}
}

/// INSTRUCTIONS of a real nats-server of its own, through the shipped writer and reader.
pub struct Nats {
    runtime: Runtime,
    directory: tempfile::TempDir,
    child: Option<NatsChild>,
    connection: Connection,
}

impl Default for Nats {
    fn default() -> Nats {
        Nats::start()
    }
}

impl Nats {
    /// Starts a server with room enough.
    pub fn start() -> Nats {
        Nats::with_room(64 << 20)
    }

    /// Starts a server whose streams together take so many bytes.
    ///
    /// # Panics
    /// If there is no nats-server.
    pub fn with_room(bytes: u64) -> Nats {
        let runtime = Runtime::new().expect("a runtime");
        let directory = tempfile::tempdir().expect("a folder");
        let (child, connection) = runtime.block_on(async {
            let (child, connection) = serve(directory.path()).await;
            let topology =
                TopologyOptions { lanes: Some(1), max_bytes_total: Some(bytes), ..TopologyOptions::default() };
            Topology::create(&connection, &topology).await.expect("the streams");
            damage::permit(&connection, Log::Instructions, 0).await.expect("a stream to take messages out of");
            (child, connection)
        });
        Nats { runtime, directory, child: Some(child), connection }
    }
}

async fn serve(directory: &std::path::Path) -> (NatsChild, Connection) {
    let options = ChildOptions { binary: nats_server(), directory: directory.join("nats"), profile: Profile::Durable };
    let child = NatsChild::start(options).await.expect("nats-server");
    let connection = Connection::connect(child.server(), "conformance").await.expect("a connection");
    (child, connection)
}

impl LogLike for Nats {
    fn append(&mut self, message: Bytes) -> Result<u64, Full> {
        let writer = BatchWriter::new(&self.connection, Log::Instructions, 0);
        match self.runtime.block_on(writer.append(message)) {
            Ok(sequence) => Ok(sequence),
            Err(WriteError::StreamFull(_)) => Err(Full),
            Err(error) => panic!("the server takes no message: {error}"),
        }
    }

    fn append_unheard(&mut self, message: Bytes) {
        let writer = BatchWriter::new(&self.connection, Log::Instructions, 0);
        let before = self.ends().1;
        self.runtime.block_on(async {
            let attempt = tokio::spawn(async move { writer.append(message).await });
            // Given up as soon as it is in, whether or not it has heard of it.
            let end = tokio::time::Instant::now() + LONG;
            while damage::ends(&self.connection, Log::Instructions, 0).await.expect("the server answers").1 == before {
                assert!(tokio::time::Instant::now() < end, "the message never came in");
            }
            attempt.abort();
        });
    }

    fn ends(&mut self) -> (u64, u64) {
        let ends = self.runtime.block_on(damage::ends(&self.connection, Log::Instructions, 0));
        let (first, last) = ends.expect("the server answers");
        // A stream that never had a message says 0.
        (first.max(1), last)
    }

    fn read(&mut self, behind: u64, last: Option<&[u8]>, max: usize) -> (Vec<(u64, Bytes)>, Option<Noticed>) {
        let noticed = |error: LogError| match error {
            LogError::Hole { .. } => Noticed::Hole,
            LogError::Outrun { .. } => Noticed::Outrun,
            LogError::Diverged { .. } | LogError::Unfinished => Noticed::Diverged,
        };
        let start = Start { sequence: behind, hash: last.map(message_hash) };
        self.runtime.block_on(async {
            let mut read = Vec::new();
            let mut reader = match LogReader::open(&self.connection, Log::Instructions, 0, start).await {
                Ok(reader) => reader,
                Err(error) => return (read, Some(noticed(error))),
            };
            while read.len() < max {
                match tokio::time::timeout(SILENCE, reader.next()).await {
                    Ok(Ok(message)) => read.push((message.sequence, message.payload)),
                    Ok(Err(error)) => return (read, Some(noticed(error))),
                    Err(_) => break,
                }
            }
            (read, None)
        })
    }

    fn purge(&mut self, below: u64) {
        self.runtime.block_on(damage::purge(&self.connection, Log::Instructions, 0, below)).expect("purged");
    }

    fn remove(&mut self, sequence: u64) {
        self.runtime.block_on(damage::remove(&self.connection, Log::Instructions, 0, sequence)).expect("removed");
    }

    fn restart(&mut self) {
        let child = self.child.take().expect("it runs");
        let pid = rustix::process::Pid::from_raw(child.pid().cast_signed()).expect("a process id");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
        self.runtime.block_on(child.stop());
        let (child, connection) = self.runtime.block_on(serve(self.directory.path()));
        (self.child, self.connection) = (Some(child), connection);
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        if let Some(child) = self.child.take() {
            self.runtime.block_on(child.stop());
        }
    }
}
