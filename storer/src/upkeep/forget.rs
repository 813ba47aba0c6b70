//! Forgetting clients that have sent nothing for long. What a partition remembers of a client changes
//! only by events, so a storer asks for it in the log, and whoever owns the partition decides.

use super::{Upkeep, is_absent};
use crate::tables::TableError;
use crate::writer::now_us;
use bytes::Bytes;
use fieldstream_nats::{BatchWriter, Log, NatsError, Registered, StorerRegister};
use fieldstream_shared::ids::ClientId;
use fieldstream_shared::marks::Mark;
use fieldstream_shared::partition::{PARTITIONS, Partition};
use fieldstream_shared::record::{BatchBuilder, encode_forget};
use std::time::Duration;

/// Rows looked at in one read transaction.
const PAGE: usize = 10_000;

/// Asks for the marks of clients that were not heard of for so long, if this is the storer that does
/// so. Returns how many.
pub(super) async fn ask(upkeep: &Upkeep, kept: Duration) -> Result<usize, NatsError> {
    let now = now_us();
    let found = StorerRegister::open(&upkeep.connection).await?.registered().await?;
    let newest_us = found.iter().map(|found| found.written_at_us).max().unwrap_or(0);
    let may_ask = |found: &&Registered| !found.entry.temporary && !is_absent(found, newest_us);
    // Asking twice does no harm; asking once is enough.
    let first = found.iter().filter(may_ask).map(|found| found.entry.storer).min();
    if first.is_some_and(|first| first != upkeep.store.storer()) {
        return Ok(0);
    }
    let since_us = now.saturating_sub(kept.as_micros() as u64);
    let (mut behind, mut asked) = (Vec::new(), 0);
    loop {
        let store = upkeep.store.clone();
        let from = std::mem::take(&mut behind);
        let page = tokio::task::spawn_blocking(move || store.read()?.idle_marks(since_us, &from, PAGE)).await;
        let (idle, last) = match page {
            Ok(Ok(page)) => page,
            Ok(Err(error)) => return Ok(unreadable(&error, asked)),
            Err(_) => return Ok(asked),
        };
        asked += idle.len();
        log(upkeep, &idle, now).await;
        match last {
            Some(last) => behind = last,
            None => return Ok(asked),
        }
    }
}

fn unreadable(error: &TableError, asked: usize) -> usize {
    tracing::warn!(%error, "looking for clients that were not heard of for long");
    asked
}

async fn log(upkeep: &Upkeep, idle: &[(ClientId, Partition, Mark)], now_us: u64) {
    for lane in 0..upkeep.topology.lanes {
        let writer = BatchWriter::new(&upkeep.connection, Log::Instructions, lane);
        let mut batch = BatchBuilder::default();
        for (client, partition, mark) in idle.iter().filter(|(_, p, _)| p.lane(upkeep.topology.lanes) == lane) {
            let record = encode_forget(client, (mark.epoch, mark.highest), &document_in(*partition), now_us);
            batch.push(&record);
            if batch.is_full() {
                append(&writer, std::mem::take(&mut batch)).await;
            }
        }
        if !batch.is_empty() {
            append(&writer, batch).await;
        }
    }
}

async fn append(writer: &BatchWriter, batch: BatchBuilder) {
    // Not logged now, it is asked for again.
    if let Err(error) = writer.append(Bytes::from(batch.finish())).await {
        tracing::debug!(%error, "asking to forget clients");
    }
}

/// A document id that belongs to a partition; there need not be such a document.
fn document_in(partition: Partition) -> String {
    let ids = (0_u32..).map(|n| format!("forget/{n}"));
    // One in 256 fits: the bound is never reached.
    ids.take(PARTITIONS * 1000).find(|id| Partition::of(id) == partition).unwrap_or_else(|| "forget".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_partition_can_be_named() {
        for partition in Partition::all() {
            assert_eq!(Partition::of(&document_in(partition)), partition);
        }
    }
}
