//! Who works on a repair: one process at a time, and whoever was there last.

use super::{KEY, RepairRecord};
use crate::connection::{Connection, NatsError};
use crate::topology::BUCKET;
use async_nats::jetstream::kv::{Store, UpdateErrorKind};

/// A repair that this process works on. Another one that takes it over writes the record once more; by
/// the revision of the key that is seen here, and this process stops.
#[derive(Debug)]
pub struct Claim {
    /// What is decided. Changes count once they are saved.
    pub record: RepairRecord,
    connection: Connection,
    bucket: Store,
    revision: u64,
}

impl Claim {
    /// Begins a repair by writing its record.
    ///
    /// # Errors
    /// [`NatsError::OtherRepair`] if one is under way.
    pub async fn begin(connection: &Connection, record: RepairRecord) -> Result<Claim, NatsError> {
        let bucket = bucket(connection).await?;
        let (found, revision) = find(connection, &bucket).await?;
        if found.is_some_and(|found| found.is_under_way()) {
            return Err(NatsError::OtherRepair { url: connection.url.clone() });
        }
        let mut claim = Claim { record, connection: connection.clone(), bucket, revision };
        claim.save().await?;
        Ok(claim)
    }

    /// Goes on with a repair that was begun and not finished; `None` if there is none. Whoever worked on
    /// it has to stop.
    ///
    /// # Errors
    /// [`NatsError`] if it cannot be taken over.
    pub async fn take_over(connection: &Connection) -> Result<Option<Claim>, NatsError> {
        let bucket = bucket(connection).await?;
        let (found, revision) = find(connection, &bucket).await?;
        let Some(record) = found.filter(RepairRecord::is_under_way) else { return Ok(None) };
        let mut claim = Claim { record, connection: connection.clone(), bucket, revision };
        claim.save().await?;
        Ok(Some(claim))
    }

    /// Writes the record.
    ///
    /// # Errors
    /// [`NatsError::OtherRepair`] if another process went on with the repair.
    pub async fn save(&mut self) -> Result<(), NatsError> {
        let failed = |e: &dyn std::fmt::Display| self.connection.request_error("writing the record of repairs", e);
        let bytes = serde_json::to_vec(&self.record).map_err(|e| failed(&e))?;
        let written = self.bucket.update(KEY, bytes.into(), self.revision).await;
        self.revision = written.map_err(|error| match error.kind() {
            UpdateErrorKind::WrongLastRevision => self.other(),
            _ => failed(&error),
        })?;
        Ok(())
    }

    /// Looks whether this process is still the one; before every step on the streams.
    ///
    /// # Errors
    /// [`NatsError::OtherRepair`] if it is not.
    pub async fn check(&self) -> Result<(), NatsError> {
        let (_, revision) = find(&self.connection, &self.bucket).await?;
        if revision == self.revision { Ok(()) } else { Err(self.other()) }
    }

    fn other(&self) -> NatsError {
        NatsError::OtherRepair { url: self.connection.url.clone() }
    }
}

pub(super) async fn bucket(connection: &Connection) -> Result<Store, NatsError> {
    let bucket = connection.jetstream.get_key_value(BUCKET).await;
    bucket.map_err(|e| connection.request_error("looking for the record of repairs", e))
}

/// The record and the revision of its key; 0 if the key was never written.
pub(super) async fn find(connection: &Connection, bucket: &Store) -> Result<(Option<RepairRecord>, u64), NatsError> {
    let failed = |e: &dyn std::fmt::Display| connection.request_error("reading the record of repairs", e);
    let Some(entry) = bucket.entry(KEY).await.map_err(|e| failed(&e))? else { return Ok((None, 0)) };
    if entry.value.is_empty() {
        return Ok((None, entry.revision));
    }
    let record = serde_json::from_slice(&entry.value).map_err(|e| failed(&e))?;
    Ok((Some(record), entry.revision))
}
