//! The register of storers: what each has on disk, so that nobody purges what one of them needs
//! (`docs/LOG.md`, "Purging"). A bucket of its own, kept on disk; entries stay until they are removed.

use crate::connection::{Connection, NatsError};
use crate::topology::Log;
use async_nats::jetstream::kv;
use async_nats::jetstream::kv::UpdateErrorKind;
use futures::StreamExt;
use serde::{Deserialize, Serialize};

pub(crate) const BUCKET: &str = "fieldstream_storers";
const REGISTERING: &str = "registering a storer";
/// Entries beyond this are not looked at.
const ENTRIES_MAX: usize = 256;

/// What a checkpoint means for one lane's streams.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneMarks {
    /// Last EVENTS sequence taken in; a reader that starts there looks at this message.
    pub events_sequence: u64,
    /// INSTRUCTIONS sequence of the lowest cursor: no partition needs anything below it.
    pub instructions_lowest: u64,
}

/// A verified copy of a storer's file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyEntry {
    /// Where it is, on the storer's host.
    pub path: String,
    /// When it was verified, microseconds since the Unix epoch.
    pub made_at_us: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// In order of lanes.
    pub lanes: Vec<LaneMarks>,
}

/// What a storer says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorerEntry {
    /// The number drawn when its file was made.
    pub storer: u64,
    /// Identity of the log its file belongs to.
    pub log_id: u64,
    /// Name of its machine.
    pub host: String,
    /// The link that readers open.
    pub database: String,
    /// When it last renewed this entry, microseconds since the Unix epoch.
    pub seen_at_us: u64,
    /// What is durable in its file, in order of lanes.
    pub lanes: Vec<LaneMarks>,
    /// Its verified copies, the newest first.
    #[serde(default)]
    pub copies: Vec<CopyEntry>,
    /// No storer, but a file that is being made again: it answers nobody, and whoever left it behind
    /// does not come back.
    #[serde(default)]
    pub temporary: bool,
}

/// An entry as the server has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    /// What the storer says.
    pub entry: StorerEntry,
    /// Another one after every renewal.
    pub revision: u64,
    /// When it was last renewed, by the server's clock: the only one that all entries share.
    pub written_at_us: u64,
}

/// What a storer's entry is to be written behind.
#[derive(Debug, Clone, Copy)]
pub struct EntryPlace {
    /// Whether there is one.
    pub is_there: bool,
    revision: u64,
}

/// The register.
#[derive(Debug, Clone)]
pub struct StorerRegister {
    connection: Connection,
    bucket: kv::Store,
}

impl StorerRegister {
    /// Opens the register, and makes it if there is none.
    ///
    /// # Errors
    /// [`NatsError`] if the server does not answer.
    pub async fn open(connection: &Connection) -> Result<StorerRegister, NatsError> {
        let failed = |e: &dyn std::fmt::Display| connection.request_error("opening the register of storers", e);
        let bucket = match connection.jetstream.get_key_value(BUCKET).await {
            Ok(bucket) => bucket,
            Err(_) => {
                let config = kv::Config {
                    bucket: BUCKET.into(),
                    description: "Fieldstream storers and what they have on disk".into(),
                    history: 1,
                    max_bytes: 4 << 20,
                    ..kv::Config::default()
                };
                connection.jetstream.create_key_value(config).await.map_err(|e| failed(&e))?
            }
        };
        Ok(StorerRegister { connection: connection.clone(), bucket })
    }

    /// Whether a storer has an entry, and as what it may be replaced.
    ///
    /// # Errors
    /// [`NatsError`] if the server does not say.
    pub async fn place_of(&self, storer: u64) -> Result<EntryPlace, NatsError> {
        let failed = |e: &dyn std::fmt::Display| self.connection.request_error("reading the register of storers", e);
        let entry = self.bucket.entry(key(storer)).await.map_err(|e| failed(&e))?;
        // One that was removed leaves a mark, which has a revision, too.
        let is_there = entry.as_ref().is_some_and(|entry| entry.operation == kv::Operation::Put);
        Ok(EntryPlace { is_there, revision: entry.map_or(0, |entry| entry.revision) })
    }

    /// Writes a storer's entry, if nobody has changed or removed it since.
    ///
    /// # Errors
    /// [`NatsError::Unacknowledged`] if the server does not say that it took it, or another one.
    pub async fn put_at(&self, entry: &StorerEntry, place: EntryPlace) -> Result<(), NatsError> {
        let failed = |e: &dyn std::fmt::Display| self.connection.request_error(REGISTERING, e);
        let bytes = serde_json::to_vec(entry).map_err(|e| failed(&e))?;
        match self.bucket.update(key(entry.storer), bytes.into(), place.revision).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == UpdateErrorKind::TimedOut => {
                Err(NatsError::Unacknowledged { url: self.connection.url.clone(), what: REGISTERING.to_owned() })
            }
            Err(error) => Err(failed(&error)),
        }
    }

    /// Writes a storer's entry, whatever there is.
    ///
    /// # Errors
    /// [`NatsError`] if the server did not take it.
    pub async fn put(&self, entry: &StorerEntry) -> Result<(), NatsError> {
        let failed = |e: &dyn std::fmt::Display| self.connection.request_error(REGISTERING, e);
        let bytes = serde_json::to_vec(entry).map_err(|e| failed(&e))?;
        self.bucket.put(key(entry.storer), bytes.into()).await.map_err(|e| failed(&e))?;
        Ok(())
    }

    /// All entries, in order of storers. An entry that cannot be read is an error: what it protects
    /// is not known.
    ///
    /// # Errors
    /// [`NatsError`] if they cannot be had, or one of them cannot be read.
    pub async fn list(&self) -> Result<Vec<StorerEntry>, NatsError> {
        Ok(self.registered().await?.into_iter().map(|registered| registered.entry).collect())
    }

    /// As [`StorerRegister::list`], with what the server knows of each.
    ///
    /// # Errors
    /// As for [`StorerRegister::list`].
    pub async fn registered(&self) -> Result<Vec<Registered>, NatsError> {
        let failed = |e: &dyn std::fmt::Display| self.connection.request_error("reading the register of storers", e);
        let mut keys = self.bucket.keys().await.map_err(|e| failed(&e))?;
        let mut entries = Vec::new();
        while let Some(key) = keys.next().await {
            let key = key.map_err(|e| failed(&e))?;
            let Some(found) = self.bucket.entry(&key).await.map_err(|e| failed(&e))? else { continue };
            if found.operation != kv::Operation::Put {
                continue;
            }
            let entry = serde_json::from_slice::<StorerEntry>(&found.value);
            let entry = entry.map_err(|e| failed(&format_args!("the entry {key}: {e}")))?;
            let written_at_us = u64::try_from(found.created.unix_timestamp_nanos() / 1_000).unwrap_or(0);
            entries.push(Registered { entry, revision: found.revision, written_at_us });
            if entries.len() > ENTRIES_MAX {
                return Err(failed(&"there are too many entries"));
            }
        }
        entries.sort_by_key(|registered| registered.entry.storer);
        Ok(entries)
    }

    /// Forgets a storer: nothing is kept for it any more.
    ///
    /// # Errors
    /// [`NatsError`] if the server did not do it.
    pub async fn remove(&self, storer: u64) -> Result<(), NatsError> {
        let removed = self.bucket.purge(key(storer)).await;
        removed.map_err(|e| self.connection.request_error("forgetting a storer", e))
    }

    /// Forgets a storer, if it has not renewed its entry since. Whether it did not.
    ///
    /// # Errors
    /// [`NatsError`] if the server did not do it.
    pub async fn remove_unchanged(&self, found: &Registered) -> Result<bool, NatsError> {
        match self.bucket.purge_expect_revision(key(found.entry.storer), Some(found.revision)).await {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(false),
            Err(error) => Err(self.connection.request_error("forgetting a storer", error)),
        }
    }
}

fn key(storer: u64) -> String {
    format!("{storer:016x}")
}

/// Removes every message of a stream below a sequence; returns how many there were.
///
/// # Errors
/// [`NatsError`] if the server did not do it.
pub async fn purge_below(connection: &Connection, log: Log, lane: u16, sequence: u64) -> Result<u64, NatsError> {
    let failed = |e: &dyn std::fmt::Display| connection.request_error("purging the log", e);
    let stream = connection.jetstream.get_stream(log.stream(lane)).await.map_err(|e| failed(&e))?;
    // Beyond the end a purge would make the stream jump.
    let sequence = sequence.min(stream.cached_info().state.last_sequence);
    let purged = stream.purge().sequence(sequence).await.map_err(|e| failed(&e))?;
    Ok(purged.purged)
}
