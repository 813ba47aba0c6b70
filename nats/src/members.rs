//! Who is there: members of a group announce themselves by a lease, a key in a bucket whose entries
//! the server forgets after [`LEASE`].
//!
//! Leases give liveness and balance, never safety: members may disagree for a while about who is
//! there, and the log's acceptance rules decide what counts.

use crate::connection::{Connection, NatsError};
use async_nats::jetstream::kv;
use async_nats::jetstream::stream::StorageType;
use futures::TryStreamExt;
use std::collections::BTreeSet;
use std::time::Duration;

/// A member that has not announced itself for so long counts as gone.
pub const LEASE: Duration = Duration::from_secs(2);
/// A request must be answered by then; it is repeated within the lease.
const REQUEST: Duration = Duration::from_millis(900);
const BUCKET: &str = "fieldstream_members";
/// Members beyond this are not looked at: far more than there are partitions to own.
const MEMBERS_MAX: usize = 1024;

/// The announcements of a group of members.
#[derive(Debug)]
pub struct MemberBoard {
    connection: Connection,
    bucket: Option<kv::Store>,
}

impl MemberBoard {
    /// A board on this server. Nothing is asked yet.
    pub fn new(connection: &Connection) -> MemberBoard {
        MemberBoard { connection: connection.clone(), bucket: None }
    }

    /// Announces a member for one more [`LEASE`] and says who is there, the member included.
    /// `member`: letters, digits, `-` and `_`.
    ///
    /// # Errors
    /// [`NatsError`] if the server does not answer now.
    pub async fn renew(&mut self, member: &str) -> Result<BTreeSet<String>, NatsError> {
        let renewed = match tokio::time::timeout(REQUEST, self.try_renew(member)).await {
            Ok(renewed) => renewed,
            Err(_) => Err(self.error("it took too long")),
        };
        if renewed.is_err() {
            // It may be gone: it lives in the server's memory.
            self.bucket = None;
        }
        renewed
    }

    async fn try_renew(&mut self, member: &str) -> Result<BTreeSet<String>, NatsError> {
        let bucket = self.bucket().await?;
        bucket.put(member, "".into()).await.map_err(|e| self.error(e))?;
        let filter = format!("$KV.{BUCKET}.*");
        let mut subjects = bucket.stream.info_with_subjects(filter).await.map_err(|e| self.error(e))?;
        let mut members = BTreeSet::from([member.to_owned()]);
        while let Some((subject, _)) = subjects.try_next().await.map_err(|e| self.error(e))?
            && members.len() < MEMBERS_MAX
        {
            members.extend(subject.rsplit('.').next().map(str::to_owned));
        }
        Ok(members)
    }

    /// Takes a member's announcement back: the others need not wait for its end.
    pub async fn leave(&mut self, member: &str) {
        let leave = async {
            let bucket = self.bucket().await?;
            let purge = bucket.stream.purge().filter(format!("$KV.{BUCKET}.{member}"));
            purge.await.map_err(|e| self.error(e))
        };
        if let Ok(Err(error)) = tokio::time::timeout(REQUEST, leave).await {
            tracing::debug!(%error, "the lease ends by itself");
        }
    }

    async fn bucket(&mut self) -> Result<kv::Store, NatsError> {
        if let Some(bucket) = &self.bucket {
            return Ok(bucket.clone());
        }
        let jetstream = &self.connection.jetstream;
        let bucket = match jetstream.get_key_value(BUCKET).await {
            Ok(bucket) => bucket,
            Err(_) => {
                let config = kv::Config {
                    bucket: BUCKET.into(),
                    description: "Fieldstream processors that are there".into(),
                    history: 1,
                    max_age: LEASE,
                    storage: StorageType::Memory,
                    max_bytes: 1 << 20,
                    ..kv::Config::default()
                };
                jetstream.create_key_value(config).await.map_err(|e| self.error(e))?
            }
        };
        self.bucket = Some(bucket.clone());
        Ok(bucket)
    }

    fn error(&self, error: impl std::fmt::Display) -> NatsError {
        self.connection.request_error("announcing a member", error)
    }
}
