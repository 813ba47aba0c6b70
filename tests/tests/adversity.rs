//! What is full or gone stops the service readably, loses nothing, and is got over without help.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use fieldstream_client::{Client, ClientOptions, How, Operation};
use fieldstream_nats::{Connection, Credentials, NatsError, Server, StorerRegister, Topology, TopologyOptions};
use fieldstream_processor::{Processor, ProcessorOptions};
use fieldstream_tests::{Cluster, Shape, nats_server, until};
use std::process::{Command, Stdio};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);

/// Appends numbered pieces; gives back how many were acknowledged as applied.
async fn append(client: &Client, from: u32, count: u32) {
    let mut pending = Vec::new();
    for i in from..from + count {
        let piece = format!("{i};{}", "x".repeat(2000));
        pending
            .push(client.submit(&format!("doc/{}", i % 40), Operation::PutText(piece), How::default()).await.unwrap());
    }
    for receipt in pending {
        receipt.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_stream_holds_everything_up_and_goes_on_when_there_is_room() {
    let mut cluster = Cluster::start(Shape { log_bytes: 8 << 20, ..Shape::default() }).await;
    let client = cluster.client(0, "tcp").await;
    append(&client, 0, 40).await;
    // While a storer is away, nothing is purged.
    let options = cluster.storer_options(0);
    until("the storer is registered", LONG, || async {
        let connection = Connection::connect(cluster.nats.server(), "operator").await.unwrap();
        !StorerRegister::open(&connection).await.unwrap().list().await.unwrap().is_empty()
    })
    .await;
    cluster.storers.pop().unwrap().stop(LONG).await;
    let writing = tokio::spawn({
        let client = client.clone();
        // About 6 MB into streams of 4 MiB each.
        async move { append(&client, 40, 3000).await }
    });
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(!writing.is_finished(), "the streams should be full by now");
    let connection = Connection::connect(cluster.nats.server(), "operator").await.unwrap();
    let more = TopologyOptions { max_bytes_total: Some(64 << 20), ..TopologyOptions::default() };
    Topology::create(&connection, &more).await.unwrap();
    tokio::time::timeout(LONG, writing).await.expect("goes on by itself").unwrap();
    cluster.storers.push(fieldstream_storer::Storer::start(options).await.unwrap());
    until("the last instruction is there", LONG, || async {
        let got = client.get("doc/39").await.unwrap();
        matches!(got.body, fieldstream_client::Body::Text(text) if text.starts_with("3039;"))
    })
    .await;
    let total: u64 = {
        let listed = client.list("doc/").await.unwrap();
        assert_eq!(listed.len(), 40);
        listed.iter().map(|l| l.revision).sum()
    };
    client.sync().await.unwrap();
    assert!(total <= 3040, "nothing twice");
    let listed = client.list("doc/").await.unwrap();
    assert_eq!(listed.iter().map(|l| l.revision).sum::<u64>(), 3040, "nothing lost, nothing twice");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn processors_wait_for_a_storer_and_go_on() {
    let mut cluster = Cluster::start(Shape::default()).await;
    let client = cluster.client(0, "tcp").await;
    append(&client, 0, 40).await;
    let options = cluster.storer_options(0);
    cluster.storers.pop().unwrap().stop(LONG).await;
    let writing = tokio::spawn({
        let client = client.clone();
        async move {
            for i in 0..20 {
                client.instruct(&format!("new/{i}"), Operation::Append("x".into())).await.unwrap();
            }
        }
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!writing.is_finished(), "a document nobody has in memory needs a storer");
    cluster.storers.push(fieldstream_storer::Storer::start(options).await.unwrap());
    tokio::time::timeout(LONG, writing).await.expect("goes on by itself").unwrap();
    client.close(LONG).await.unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unresolved_instructions_survive_a_restart_of_the_client() {
    let mut cluster = Cluster::start(Shape::default()).await;
    let state = cluster.dir.path().join("client.state");
    let options = ClientOptions::default().client_id("boiler-1").state_file(&state);
    let client = Client::connect(&cluster.url(0, "tcp"), options.clone()).await.unwrap();
    client.instruct("doc", Operation::Append("a".into())).await.unwrap();
    // Nothing is applied while there is no processor.
    cluster.processors.pop().unwrap().stop(LONG).await;
    for piece in ["b", "c"] {
        // Submitted, never resolved: the client goes away.
        let pending = client.submit("doc", Operation::Append(piece.into()), How::default()).await.unwrap();
        drop(pending);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    drop(client);
    cluster.add_processor(fieldstream_shared::partition::PartitionSet::ALL).await;
    let client = Client::connect(&cluster.url(0, "tcp"), options).await.unwrap();
    client.instruct("doc", Operation::Append("d".into())).await.unwrap();
    let got = client.get("doc").await.unwrap();
    assert_eq!(got.body, fieldstream_client::Body::Text("abcd".into()));
    assert_eq!(got.revision, 4, "nothing twice");
    client.close(LONG).await.unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_nats_is_said() {
    let cluster = Cluster::start(Shape { processors: vec![], storers: 0, gateways: 0, ..Shape::default() }).await;
    let wrong = Credentials::UserPassword { user: "fieldstream".into(), password: "wrong".into() };
    let server = Server { credentials: wrong, ..cluster.nats.server().clone() };
    let refused = Processor::start(ProcessorOptions::new(server)).await.unwrap_err().to_string();
    assert!(refused.contains("refused the credentials"), "{refused}");
    cluster.stop().await;

    // A server without JetStream, on a port the system gives.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut plain = Command::new(nats_server());
    plain.args(["-a", "127.0.0.1", "-p", &port.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut plain = plain.spawn().unwrap();
    let server = Server { url: format!("nats://127.0.0.1:{port}"), credentials: Credentials::None };
    until("the plain server answers", LONG, || async { Connection::connect(&server, "test").await.is_ok() }).await;
    let connection = Connection::connect(&server, "test").await.unwrap();
    let off = Topology::load(&connection).await.unwrap_err();
    assert!(matches!(off, NatsError::JetStreamDisabled { .. }), "{off}");
    let off = Topology::create(&connection, &TopologyOptions::default()).await.unwrap_err();
    assert!(matches!(off, NatsError::JetStreamDisabled { .. }), "{off}");
    plain.kill().unwrap();
    plain.wait().unwrap();
}
