//! The read service: answers of processors' and gateways' questions, each from one read transaction.

use crate::store::Store;
use crate::tables::TableError;
use fieldstream_nats::{ReadCall, ReadServer};
use fieldstream_shared::limits::{DOCUMENT_ID_BYTES_MAX, LIST_PAGE_MAX};
use fieldstream_shared::read::{Answer, AnswerBody, Query, Request};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Requests being answered or waiting for a commit. Beyond it they wait in the connection.
const CALLS_MAX: usize = 1024;

/// Read transactions at the same time. Reads come from the page cache, so more of them than cores
/// only get in each other's way.
const READS_MAX: usize = 4;

/// How long a request waits for events this storer has not stored yet.
const BEHIND_WAIT: Duration = Duration::from_secs(2);

/// Bytes of changes in one answer of history, whatever was asked for.
const HISTORY_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// What is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Everything.
    All,
    /// Where this storer stands, and nothing else: its file is of another log than the one in NATS.
    /// Whoever asks sees that, instead of taking an unanswered question for an empty deployment.
    Checkpoint,
}

/// Answers requests until `stop`. Returns whether it ended because the connection was closed.
pub(crate) async fn serve(
    mut server: ReadServer,
    scope: Scope,
    store: Arc<Store>,
    durable: watch::Receiver<Vec<u64>>,
    stop: CancellationToken,
) -> bool {
    let (calls, reads) = (Arc::new(Semaphore::new(CALLS_MAX)), Arc::new(Semaphore::new(READS_MAX)));
    let tasks = TaskTracker::new();
    let closed = loop {
        let received = async {
            let permit = calls.clone().acquire_owned().await.ok()?;
            Some((permit, server.next().await?))
        };
        let (permit, call) = tokio::select! {
            received = received => match received {
                Some(received) => received,
                None => break true,
            },
            () = stop.cancelled() => break false,
        };
        if scope == Scope::Checkpoint && call.request.query != Query::Checkpoint {
            // At once: the next question may come to a storer that has an answer.
            let sequence = call.request.min_sequence.saturating_sub(1);
            call.respond(&Answer { sequence, body: AnswerBody::Behind }).await;
            continue;
        }
        let (store, durable, reads, stop) = (store.clone(), durable.clone(), reads.clone(), stop.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = handle(call, store, durable, reads) => {}
                () = stop.cancelled() => {}
            }
            drop(permit);
        });
    };
    tasks.close();
    tasks.wait().await;
    closed
}

async fn handle(call: ReadCall, store: Arc<Store>, mut durable: watch::Receiver<Vec<u64>>, reads: Arc<Semaphore>) {
    let (lane, least) = (usize::from(call.request.lane), call.request.min_sequence);
    let far_enough = |stored: &Vec<u64>| stored.get(lane).is_some_and(|sequence| *sequence >= least);
    // Whether the wait ended well shows in the transaction itself.
    let _ = tokio::time::timeout(BEHIND_WAIT, durable.wait_for(far_enough)).await;
    let Ok(_read) = reads.acquire().await else { return };
    let request = call.request.clone();
    let answered = tokio::task::spawn_blocking(move || answer(&store, &request).map_err(|e| store.explain(e))).await;
    match answered {
        Ok(Ok(answer)) => call.respond(&answer).await,
        // No answer: the asker's time runs out, and it asks again, perhaps another storer.
        Ok(Err(error)) => tracing::error!(%error, "reading for an answer"),
        Err(error) => tracing::error!(%error, "an answer was not finished"),
    }
}

/// The answer to a request, from the state of the last commit.
pub(crate) fn answer(store: &Store, request: &Request) -> Result<Answer, TableError> {
    let read = store.read()?;
    let sequence = match read.sequence(request.lane)? {
        Some(sequence) if sequence >= request.min_sequence => sequence,
        behind => return Ok(Answer { sequence: behind.unwrap_or(0), body: AnswerBody::Behind }),
    };
    let body = match &request.query {
        Query::GetMany { documents, marks } => {
            AnswerBody::Values { documents: read.documents(documents)?, marks: read.marks(marks)? }
        }
        Query::History { document, from, bytes_max } => {
            let bytes_max = (*bytes_max).min(HISTORY_BYTES_MAX) as usize;
            AnswerBody::History(read.history(document, *from, bytes_max)?)
        }
        // No id is that long: nothing begins with the prefix, nothing comes behind the id.
        Query::List { prefix, .. } if prefix.len() > DOCUMENT_ID_BYTES_MAX => AnswerBody::List(Vec::new()),
        Query::List { prefix, after, limit } => {
            let limit = (*limit).min(LIST_PAGE_MAX as u64) as usize;
            AnswerBody::List(read.list(prefix, after, limit)?)
        }
        Query::Checkpoint => match read.checkpoint(request.lane)? {
            Some(row) => AnswerBody::Checkpoint(Box::new(row.checkpoint)),
            None => AnswerBody::Behind,
        },
        Query::DeadLetters { from, limit } => {
            let limit = (*limit).min(LIST_PAGE_MAX as u64) as usize;
            AnswerBody::DeadLetters(read.dead_letters(request.lane, *from, limit)?)
        }
    };
    Ok(Answer { sequence, body })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::projection::{Batch, Projection};
    use crate::store::{Identity, StoreOptions};
    use crate::test_log::TestLog;
    use fieldstream_shared::change::{Primitive, read_change};
    use fieldstream_shared::document::Document;
    use fieldstream_shared::ids::{ClientId, DocumentId};
    use fieldstream_shared::marks::Mark;
    use fieldstream_shared::msgpack::decode;
    use fieldstream_shared::partition::Partition;

    fn id(document: &str) -> DocumentId {
        DocumentId::new(document).unwrap()
    }

    fn stored(log: &TestLog, directory: &std::path::Path) -> Store {
        let options = StoreOptions {
            directory: directory.to_owned(),
            file_mode: 0o664,
            map_bytes: 64 << 20,
            history_revisions: 0,
        };
        let store = Store::open(options, &Identity { lanes: 1, log_id: 8, new_storer: 2, now_us: 3 }).unwrap();
        let mut projection = Projection::new(store.checkpoints().to_vec());
        for (sequence, message) in (1..).zip(&log.messages) {
            let batch = Batch::decode::<TableError>(0, sequence, message).unwrap();
            projection.handle(batch, &store.read().unwrap()).unwrap();
        }
        store.commit(&projection.writes(4)).unwrap();
        store
    }

    fn ask(store: &Store, min_sequence: u64, query: Query) -> Answer {
        answer(store, &Request { lane: 0, min_sequence, query }).unwrap()
    }

    #[test]
    fn values_come_in_the_order_asked_for_with_the_sequence_they_stand_at() {
        let (directory, mut log) = (tempfile::tempdir().unwrap(), TestLog::new(0, 1));
        log.set_text("c", "a", "one");
        log.set_text("c", "b", "two");
        log.cut();
        let store = stored(&log, directory.path());
        let marks =
            vec![(Partition::of("a"), ClientId::new("c").unwrap()), (Partition(0), ClientId::new("x").unwrap())];
        let query = Query::GetMany { documents: vec![id("b"), id("never"), id("a")], marks };
        let Answer { sequence: 1, body: AnswerBody::Values { documents, marks } } = ask(&store, 1, query.clone())
        else {
            panic!()
        };
        assert_eq!(documents, [log.expected("b"), Document::default(), log.expected("a")]);
        assert_eq!((marks[0].highest, &marks[1]), (1, &Mark::default()));
        assert_eq!(ask(&store, 2, query), Answer { sequence: 1, body: AnswerBody::Behind });
        let elsewhere = Request { lane: 9, min_sequence: 0, query: Query::Checkpoint };
        assert_eq!(answer(&store, &elsewhere).unwrap().body, AnswerBody::Behind);
    }

    #[test]
    fn history_is_contiguous_and_bounded() {
        let (directory, mut log) = (tempfile::tempdir().unwrap(), TestLog::new(0, 1));
        log.set_text("c", "a", "0");
        for n in 1..300 {
            log.update("c", "a", vec![Primitive::Append(format!("{n},"))]);
        }
        log.set_text("c", "a!", "the next key");
        log.cut();
        let store = stored(&log, directory.path());
        let history = |from, bytes_max| match ask(&store, 0, Query::History { document: id("a"), from, bytes_max }).body
        {
            AnswerBody::History(entries) => entries,
            other => panic!("{other:?}"),
        };
        let all = history(1, u64::MAX);
        assert_eq!(all.len(), 300);
        let mut replica = Document::default();
        for entry in &all {
            replica.apply(&decode(&entry.change, read_change).unwrap(), entry.version).unwrap();
        }
        assert_eq!(replica, log.expected("a"));
        assert_eq!(history(290, u64::MAX), all[289..]);
        assert_eq!(history(301, u64::MAX), []);
        let some = history(1, 100);
        assert_eq!(some, all[..some.len()]);
        assert!(some.iter().map(|e| e.change.len()).sum::<usize>() <= 100 && some.len() > 5);
        assert_eq!(history(1, 3), []);
        assert_eq!(history(0, u64::MAX), [], "there is no revision 0");
    }

    #[test]
    fn listings_honour_prefix_start_and_limit_and_leave_out_what_was_deleted() {
        let (directory, mut log) = (tempfile::tempdir().unwrap(), TestLog::new(0, 1));
        for document in ["a/1", "a/2", "a/3", "ab", "b", "\u{10ffff}"] {
            log.set_text("c", document, "four");
        }
        log.update("c", "a/2", vec![Primitive::Delete]);
        log.cut();
        let store = stored(&log, directory.path());
        let list = |prefix: &str, after: &str, limit| {
            let query = Query::List { prefix: prefix.into(), after: after.into(), limit };
            match ask(&store, 0, query).body {
                AnswerBody::List(listed) => listed.iter().map(|l| l.document.to_string()).collect::<Vec<_>>(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(list("", "", u64::MAX), ["a/1", "a/3", "ab", "b", "\u{10ffff}"]);
        assert_eq!(list("a/", "", 10), ["a/1", "a/3"]);
        assert_eq!(list("a/", "a/1", 10), ["a/3"]);
        assert_eq!(list("a", "", 2), ["a/1", "a/3"]);
        assert_eq!(list("", "ab", 1), ["b"]);
        assert_eq!(list("a", "zz", 9), [] as [&str; 0]);
        assert_eq!(list("", "", 0), [] as [&str; 0]);
        assert_eq!(list(&"x".repeat(600), &"y".repeat(600), 5), [] as [&str; 0]);
        assert_eq!(list("", &"b".repeat(600), 5), ["\u{10ffff}"]);
        let query = Query::List { prefix: "ab".into(), after: String::new(), limit: 1 };
        let AnswerBody::List(listed) = ask(&store, 0, query).body else { panic!() };
        assert_eq!((listed[0].bytes, listed[0].revision), (4, 1));
    }

    #[test]
    fn dead_letters_come_in_order_from_where_they_are_wanted() {
        let (directory, mut log) = (tempfile::tempdir().unwrap(), TestLog::new(0, 1));
        for n in 0..4 {
            log.set_text("c", "a", "alive");
            log.dead(&format!("d{n}"));
            log.cut();
        }
        let store = stored(&log, directory.path());
        let letters = |from, limit| match ask(&store, 0, Query::DeadLetters { from, limit }).body {
            AnswerBody::DeadLetters(letters) => letters,
            other => panic!("{other:?}"),
        };
        let all = letters((0, 0), 100);
        let places: Vec<_> = all.iter().map(|l| (l.id.sequence, l.id.event_index)).collect();
        assert_eq!(places, [(1, 1), (2, 1), (3, 1), (4, 1)]);
        assert_eq!(letters((2, 0), 2), all[1..3]);
        assert_eq!(letters((all[3].id.sequence, all[3].id.event_index + 1), 2), []);
        let elsewhere = Request { lane: 1, min_sequence: 0, query: Query::DeadLetters { from: (0, 0), limit: 9 } };
        assert_eq!(answer(&store, &elsewhere).unwrap().body, AnswerBody::Behind);
    }

    #[test]
    fn a_checkpoint_is_where_a_reader_may_start() {
        let (directory, mut log) = (tempfile::tempdir().unwrap(), TestLog::new(0, 1));
        log.set_text("c", "a", "one");
        log.cut();
        let store = stored(&log, directory.path());
        let AnswerBody::Checkpoint(checkpoint) = ask(&store, 0, Query::Checkpoint).body else { panic!() };
        assert_eq!((checkpoint.log_id, checkpoint.lanes, checkpoint.events_sequence), (8, 1, 1));
        assert_eq!(&checkpoint.cursors, log.cursors());
    }
}
