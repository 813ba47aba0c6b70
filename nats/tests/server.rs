//! The log against a real nats-server.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use bytes::Bytes;
use fieldstream_nats::*;
use std::time::Duration;

fn binary() -> std::path::PathBuf {
    std::env::var_os("FIELDSTREAM_NATS_SERVER").map_or_else(|| "nats-server".into(), Into::into)
}

async fn child(directory: &std::path::Path) -> NatsChild {
    let options = ChildOptions { binary: binary(), directory: directory.join("nats"), profile: Profile::Durable };
    NatsChild::start(options).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_come_back_in_order_also_through_a_server_that_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let nats = child(dir.path()).await;
    let (publish, consume) = (
        Connection::connect(nats.server(), "p").await.unwrap(),
        Connection::connect(nats.server(), "c").await.unwrap(),
    );
    let options = TopologyOptions { lanes: Some(2), max_bytes_total: Some(1 << 30), ..TopologyOptions::default() };
    let topology = Topology::create(&publish, &options).await.unwrap();
    assert_eq!(Topology::create(&publish, &TopologyOptions::default()).await.unwrap(), topology);
    assert_eq!(Topology::load(&consume).await.unwrap(), topology);
    let other = TopologyOptions { lanes: Some(3), ..options };
    assert!(matches!(
        Topology::create(&publish, &other).await,
        Err(NatsError::LanesMismatch { found: 2, wanted: 3, .. })
    ));

    let writer = BatchWriter::new(&publish, Log::Events, 1);
    let mut reader = LogReader::open(&consume, Log::Events, 1, Start::default()).await.unwrap();
    let mut read = 0;
    for i in 1..=20_u8 {
        if i == 10 {
            let pid = rustix::process::Pid::from_raw(i32::try_from(nats.pid()).unwrap()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
        let sequence = loop {
            match writer.append(Bytes::from(vec![i])).await {
                Ok(sequence) => break sequence,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        // The batch in flight when the server died may be stored twice: it was sent again.
        loop {
            let message = tokio::time::timeout(Duration::from_secs(20), reader.next()).await.unwrap().unwrap();
            read += 1;
            assert_eq!((message.sequence, &message.payload[..]), (read, &[i][..]), "in order, without a hole");
            if message.sequence == sequence {
                break;
            }
        }
    }
    assert_eq!(last_sequence(&publish, Log::Events, 1).await.unwrap(), read);
    assert!(read <= 21, "only the batch in flight is repeated");

    let behind = Start { sequence: read + 1, hash: None };
    assert!(matches!(LogReader::open(&consume, Log::Events, 1, behind).await, Err(LogError::Diverged { .. })));
    let mut changed = LogReader::open(&consume, Log::Events, 1, Start { sequence: 5, hash: Some(1) }).await.unwrap();
    assert!(matches!(changed.next().await, Err(LogError::Diverged { .. })));
    nats.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_is_served_by_one_server_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let first = child(dir.path()).await;
    let pid = first.pid();
    let second = tokio::spawn({
        let dir = dir.path().to_owned();
        async move { child(&dir).await.pid() }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!second.is_finished(), "two servers on one store");
    first.stop().await;
    assert_ne!(second.await.unwrap(), pid);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_program_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let options =
        ChildOptions { binary: "no-such-server".into(), directory: dir.path().to_owned(), profile: Profile::Fast };
    let error = NatsChild::start(options).await.unwrap_err().to_string();
    assert!(error.contains("no-such-server") && error.contains("--nats-server"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn long_answers_of_storers_are_split_and_joined() {
    use fieldstream_shared::document::{Body, Document};
    use fieldstream_shared::read::{Answer, AnswerBody, Query, Request};
    let dir = tempfile::tempdir().unwrap();
    let nats = child(dir.path()).await;
    let connection = Connection::connect(nats.server(), "t").await.unwrap();
    let client = ReadClient::new(&connection).await.unwrap();
    let request = Request { lane: 0, min_sequence: 0, query: Query::Checkpoint };
    assert_eq!(client.request(&request, Duration::from_secs(5)).await, Err(ReadError::NoStorer));
    let mut server = ReadServer::subscribe(&connection).await.unwrap();
    let document = Document { revision: 1, time_us: 2, body: Body::Text("x".repeat(1 << 20)) };
    let answer = Answer { sequence: 7, body: AnswerBody::Values { documents: vec![document; 2], marks: vec![] } };
    let served = answer.clone();
    tokio::spawn(async move {
        while let Some(call) = server.next().await {
            call.respond(&served).await;
        }
    });
    connection.flush().await;
    assert_eq!(client.request(&request, Duration::from_secs(5)).await, Ok(answer));
    nats.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storer_that_dies_with_a_request_in_its_hands_is_not_waited_for() {
    use fieldstream_shared::read::{Answer, AnswerBody, Query, Request};
    let dir = tempfile::tempdir().unwrap();
    let nats = child(dir.path()).await;
    let connection = Connection::connect(nats.server(), "t").await.unwrap();
    let client = ReadClient::new(&connection).await.unwrap();
    let mut server = ReadServer::subscribe(&connection).await.unwrap();
    let answer = Answer { sequence: 7, body: AnswerBody::Values { documents: vec![], marks: vec![] } };
    let served = answer.clone();
    tokio::spawn(async move {
        let _swallowed = server.next().await;
        while let Some(call) = server.next().await {
            call.respond(&served).await;
        }
    });
    connection.flush().await;
    let request = Request { lane: 0, min_sequence: 0, query: Query::Checkpoint };
    let begun = std::time::Instant::now();
    assert_eq!(client.request(&request, Duration::from_secs(10)).await, Ok(answer));
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    nats.stop().await;
}
