//! The storer against a real nats-server.

use super::*;
use crate::test_log::TestLog;
use fieldstream_nats::{BatchWriter, ChildOptions, NatsChild, Profile, ProgressReader, ReadClient, TopologyOptions};
use fieldstream_shared::ids::DocumentId;
use fieldstream_shared::read::{AnswerBody, Query, Request};
use std::path::Path;
use std::time::Instant;
use tempfile::TempDir;

struct World {
    directory: TempDir,
    nats: NatsChild,
    connection: Connection,
}

async fn world(lanes: u16) -> World {
    let directory = tempfile::tempdir().unwrap();
    let binary = std::env::var_os("FIELDSTREAM_NATS_SERVER").map_or_else(|| "nats-server".into(), Into::into);
    let child = ChildOptions { binary, directory: directory.path().join("nats"), profile: Profile::Fast };
    let nats = NatsChild::start(child).await.unwrap();
    let connection = Connection::connect(nats.server(), "test").await.unwrap();
    let options = TopologyOptions { lanes: Some(lanes), max_bytes_total: Some(256 << 20), ..Default::default() };
    Topology::create(&connection, &options).await.unwrap();
    World { directory, nats, connection }
}

impl World {
    fn options(&self, name: &str) -> StorerOptions {
        let options = StorerOptions::new(self.nats.server().clone(), self.directory.path().join(name));
        StorerOptions { map_bytes: 1 << 30, ..options }
    }

    /// Appends the log's messages behind `from`.
    async fn publish(&self, lane: u16, log: &TestLog, from: usize) {
        let writer = BatchWriter::new(&self.connection, Log::Events, lane);
        for (index, message) in log.messages.iter().enumerate().skip(from) {
            assert_eq!(writer.append(message.clone().into()).await.unwrap(), index as u64 + 1);
        }
    }
}

async fn until_stored(storer: &Storer, sequences: &[u64]) {
    let started = Instant::now();
    while storer.stored() != sequences {
        assert!(started.elapsed() < Duration::from_secs(20), "stored {:?}, not {sequences:?}", storer.stored());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

const STOP: Duration = Duration::from_secs(10);

fn log(lane: u16, lanes: u16, messages: u64) -> TestLog {
    let mut log = TestLog::new(lane, lanes);
    for n in 0..messages {
        log.set_text("c", &log.document(n % 3), &format!("text {n}"));
        log.cut();
    }
    log
}

#[tokio::test(flavor = "multi_thread")]
async fn two_lanes_are_stored_answered_for_and_gone_on_with_after_a_restart() {
    let world = world(2).await;
    let (mut even, odd) = (log(0, 2, 30), log(1, 2, 20));
    world.publish(0, &even, 0).await;
    let mut storer = Storer::start(world.options("storer")).await.unwrap();
    let mut progress = ProgressReader::subscribe(&world.connection).await.unwrap();
    world.publish(1, &odd, 0).await;
    until_stored(&storer, &[30, 20]).await;
    let heard = async {
        while let Some(announced) = progress.next().await {
            if (announced.lane, announced.sequence) == (1, 20) {
                return announced.storer;
            }
        }
        panic!("closed");
    };
    assert_eq!(tokio::time::timeout(STOP, heard).await.unwrap(), storer.id());

    let client = ReadClient::new(&world.connection).await.unwrap();
    let document = DocumentId::new(&odd.document(2)).unwrap();
    let query = Query::GetMany { documents: vec![document.clone()], marks: Vec::new() };
    let request = Request { lane: 1, min_sequence: 20, query };
    let answer = client.request(&request, STOP).await.unwrap();
    assert_eq!(answer.sequence, 20);
    let AnswerBody::Values { documents, .. } = answer.body else { panic!() };
    assert_eq!(documents, [odd.expected(&document)]);
    // A request ahead of the log waits for the commit.
    let ahead = Request { lane: 0, min_sequence: 31, query: Query::Checkpoint };
    let waiting = tokio::spawn(async move { client.request(&ahead, STOP).await.unwrap() });
    even.set_text("c", &even.document(1), "the 31st");
    even.cut();
    world.publish(0, &even, 30).await;
    let AnswerBody::Checkpoint(checkpoint) = waiting.await.unwrap().body else { panic!() };
    assert_eq!((checkpoint.lanes, checkpoint.events_sequence), (2, 31));
    assert_eq!(&checkpoint.cursors, even.cursors());
    assert!(tokio::time::timeout(Duration::from_millis(1), storer.failed()).await.is_err());

    let (path, id) = (storer.database_path(), storer.id());
    storer.stop(STOP).await;
    assert!(path.join("data.mdb").exists());
    even.set_text("c", &even.document(1), "while it was away");
    even.cut();
    world.publish(0, &even, 31).await;
    let storer = Storer::start(world.options("storer")).await.unwrap();
    assert_eq!(storer.id(), id);
    until_stored(&storer, &[32, 20]).await;
    storer.stop(STOP).await;
    world.nats.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storer_that_is_dropped_goes_on_at_its_checkpoint_and_a_second_one_agrees() {
    let world = world(1).await;
    let log = log(0, 1, 200);
    let storer = Storer::start(world.options("first")).await.unwrap();
    world.publish(0, &log, 0).await;
    drop(storer);
    // The lock is free as soon as the writer's last commit is done.
    let started = Instant::now();
    let first = loop {
        match Storer::start(world.options("first")).await {
            Ok(storer) => break storer,
            Err(StorerError::Store(StoreError::InUse { .. })) if started.elapsed() < STOP => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(error) => panic!("{error}"),
        }
    };
    let second = Storer::start(world.options("second")).await.unwrap();
    until_stored(&first, &[200]).await;
    until_stored(&second, &[200]).await;
    let (a, b) = (first.database_path(), second.database_path());
    first.stop(STOP).await;
    second.stop(STOP).await;
    let rows = |path: &Path| {
        let tables = crate::tables::Tables::open(&path.canonicalize().unwrap(), 1 << 30).unwrap();
        let rows = tables.read().unwrap().dump().unwrap();
        rows.into_iter().filter(|(database, ..)| *database != "meta").collect::<Vec<_>>()
    };
    assert_eq!(rows(&a), rows(&b));
    world.nats.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_no_batch_fails_the_storer_by_lane_and_sequence() {
    let world = world(1).await;
    let mut log = log(0, 1, 5);
    log.messages.push(b"no batch".to_vec());
    world.publish(0, &log, 0).await;
    let mut storer = Storer::start(world.options("storer")).await.unwrap();
    let error = tokio::time::timeout(STOP, storer.failed()).await.unwrap();
    assert!(error.to_string().starts_with("lane 0, EVENTS sequence 6: the batch cannot be decoded"), "{error}");
    assert_eq!(storer.stored(), [5]);
    storer.stop(STOP).await;
    world.nats.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_another_log_is_refused() {
    let (one, other) = (world(1).await, world(1).await);
    Storer::start(one.options("storer")).await.unwrap().stop(STOP).await;
    let moved = StorerOptions { nats: other.nats.server().clone(), ..one.options("storer") };
    let error = Storer::start(moved).await.err().unwrap();
    assert!(matches!(error, StorerError::Store(StoreError::Log { .. })), "{error}");
    one.nats.stop().await;
    other.nats.stop().await;
}
