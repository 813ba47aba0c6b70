//! Having an instruction traced: which hop had it when, for whoever wants to know where time goes.

use crate::client::Client;
use crate::driver::wall_us;
use crate::error::ClientError;
use crate::options::{How, Receipt};
use crate::session::traces::Clocks;
use fieldstream_shared::instruction::Operation;
use fieldstream_shared::trace::Stamps;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// What was told of one traced instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// The epoch of its number.
    pub epoch: u64,
    /// How it was resolved.
    pub receipt: Receipt,
    /// What each role noted, in the order it came; times are by the clocks named there.
    pub stamps: Vec<Stamps>,
}

impl Client {
    /// Has an instruction carried out and traced: waits for its outcome, and after that up to `wait`
    /// for what other roles noted of it. What has not come by then is missing.
    ///
    /// # Errors
    /// As [`Client::instruct_with`].
    pub async fn trace(
        &self,
        document: &str,
        operation: Operation,
        how: How,
        wait: Duration,
    ) -> Result<Trace, ClientError> {
        let shared = &self.inner.shared;
        let receipt = self.submit_traced(document, operation, how).await?.await?;
        let (epoch, done) = shared.with(|session| {
            let epoch = session.numbers.epoch();
            (epoch, session.traces(Instant::now(), wall_us()).done(epoch, receipt.number))
        });
        // What comes of it is looked at below.
        let _ = timeout(wait, done).await;
        let stamps = shared.with(|session| session.traces(Instant::now(), wall_us()).take(epoch, receipt.number));
        Ok(Trace { epoch, receipt, stamps })
    }

    /// Asks the server once how its clock and those of other roles stand to this client's. Every answer
    /// makes [`Client::clocks`] surer. False if the server is of a version that does not tell.
    ///
    /// # Errors
    /// The end of the client, or of the connection before the answer came.
    pub async fn ask_clocks(&self) -> Result<bool, ClientError> {
        let (waiter, answered) = oneshot::channel();
        let shared = &self.inner.shared;
        shared.with(|session| match session.failed() {
            Some(error) => Err(error.clone()),
            None => {
                session.traces(Instant::now(), wall_us()).ask(waiter);
                Ok(())
            }
        })?;
        shared.work.notify_one();
        answered.await.map_err(|_| ClientError::Io("the connection broke".into()))
    }

    /// How the clocks of the server's roles stand to this client's, by the answers so far.
    pub fn clocks(&self) -> Clocks {
        self.inner.shared.with(|session| session.traces(Instant::now(), wall_us()).clocks(Instant::now()))
    }
}
