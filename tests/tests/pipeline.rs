//! The whole path, from a client's instruction to the file that stock tools read.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use fieldstream_client::{
    AckLevel, Body, Client, ClientError, Code, Edit, How, Operation, Value, WatchEvent, WatchMode,
};
use fieldstream_shared::partition::{Partition, PartitionSet};
use fieldstream_tests::{Cluster, Shape, tool, until};
use std::process::Command;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(20);

fn text(body: &Body) -> &str {
    match body {
        Body::Text(text) => text,
        other => panic!("not a text: {other:?}"),
    }
}

async fn every_operation(client: &Client, prefix: &str) {
    let doc = |name: &str| format!("{prefix}/{name}");
    let text_doc = doc("text");
    client.instruct(&text_doc, Operation::PutText("añb".into())).await.unwrap();
    client.instruct(&text_doc, Operation::Append("c".into())).await.unwrap();
    let edits = vec![
        Edit { position: 1, deleted: 1, inserted: "n".into() },
        Edit { position: 4, deleted: 0, inserted: "!".into() },
    ];
    let receipt = client.instruct(&text_doc, Operation::Splice(edits)).await.unwrap();
    assert_eq!(receipt.revision, Some(3));
    assert_eq!(text(&client.get(&text_doc).await.unwrap().body), "anbc!");

    let map_doc = doc("map");
    let patch = match Value::from_json(&serde_json::json!({"a": {"b": 1}, "c": "x"})).unwrap() {
        Value::Map(map) => map,
        _ => unreachable!(),
    };
    client.instruct(&map_doc, Operation::Merge(patch)).await.unwrap();
    client.instruct(&map_doc, Operation::Add(vec!["a".into(), "b".into()], Value::Int(41))).await.unwrap();
    let got = client.get(&map_doc).await.unwrap();
    assert_eq!(got.body.to_json(), serde_json::json!({"a": {"b": 42}, "c": "x"}));

    let how = How { if_revision: Some(1), ack: AckLevel::Stored };
    let put = Operation::PutText("late".into());
    assert!(matches!(client.instruct_with(&map_doc, put, how).await, Err(ClientError::Refused(Code::CONFLICT))));
    let gone = doc("gone");
    let how = |ack| How { if_revision: None, ack };
    client.instruct_with(&gone, Operation::PutText("x".into()), how(AckLevel::Logged)).await.unwrap();
    let deleted = client.instruct_with(&gone, Operation::Delete, how(AckLevel::Stored)).await.unwrap();
    assert_eq!(deleted.revision, Some(2));
    client.sync().await.unwrap();
    let listed: Vec<String> =
        client.list(&format!("{prefix}/")).await.unwrap().iter().map(|l| l.document.to_string()).collect();
    assert_eq!(listed, [doc("map"), doc("text")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_works_over_every_transport() {
    let cluster = Cluster::start(Shape::default()).await;
    for transport in ["tcp", "tls", "quic"] {
        let client = cluster.client(0, transport).await;
        every_operation(&client, transport).await;
        client.close(LONG).await.unwrap();
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_keep_equal_replicas_through_lost_connections() {
    let cluster = Cluster::start(Shape::default()).await;
    let writer = cluster.client(0, "tcp").await;
    let watcher = cluster.client(0, "quic").await;
    let mut changes = watcher.watch("doc").await.unwrap();
    let mut bodies = cluster.client(0, "tls").await.watch_with("doc", WatchMode::Bodies).await.unwrap();
    let reading = tokio::spawn(async move {
        let (mut resumed, mut seen) = (0, 0);
        while seen < 200 {
            match tokio::time::timeout(LONG, changes.next()).await.expect("no event").unwrap() {
                WatchEvent::Resumed => resumed += 1,
                WatchEvent::Snapshot { document, .. } => seen = document.revision,
                WatchEvent::Updated { version, .. } => {
                    assert_eq!(version.revision, seen + 1, "no gap, no repeat");
                    seen = version.revision;
                }
            }
        }
        (resumed, changes.document())
    });
    for i in 0..200 {
        writer.instruct("doc", Operation::Append(format!("{i} "))).await.unwrap();
        if i == 50 || i == 120 {
            watcher.interrupt();
        }
    }
    let expect: String = (0..200).map(|i| format!("{i} ")).collect();
    let (resumed, replica) = reading.await.unwrap();
    assert_eq!(text(&replica.body), expect);
    assert!(resumed >= 1, "a short interruption is resumed without a snapshot");
    while bodies.document().revision < 200 {
        tokio::time::timeout(LONG, bodies.next()).await.expect("no body").unwrap();
    }
    assert_eq!(text(&bodies.document().body), expect);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_lanes_two_gateways_two_storers_and_processors_that_own_half_each() {
    let half = |odd: bool| -> PartitionSet { Partition::all().filter(|p| (p.0 / 2 % 2 == 1) == odd).collect() };
    let shape = Shape {
        lanes: 2,
        gateways: 2,
        processors: vec![half(false), half(true)],
        storers: 2,
        stored_copies: 2,
        ..Shape::default()
    };
    let cluster = Cluster::start(shape).await;
    let writers = [cluster.client(0, "tcp").await, cluster.client(1, "tls").await];
    let reader = cluster.client(1, "quic").await;
    let documents: Vec<String> = (0..24).map(|i| format!("doc/{i}")).collect();
    let mut watches = Vec::new();
    for document in &documents {
        watches.push(reader.watch(document).await.unwrap());
    }
    let writes = writers.iter().enumerate().map(|(w, client)| {
        let (client, documents) = (client.clone(), documents.clone());
        tokio::spawn(async move {
            let mut pending = Vec::new();
            for round in 0..20 {
                for document in &documents {
                    let operation = Operation::Append(format!("{w}:{round};"));
                    pending.push(client.submit(document, operation, How::default()).await.unwrap());
                }
            }
            for receipt in pending {
                receipt.await.unwrap();
            }
            client.sync().await.unwrap();
        })
    });
    for write in writes {
        write.await.unwrap();
    }
    for (watch, document) in watches.iter_mut().zip(&documents) {
        while watch.document().revision < 40 {
            tokio::time::timeout(LONG, watch.next()).await.expect("no update").unwrap();
        }
        let body = watch.document().body;
        for w in 0..2 {
            let mine: Vec<String> =
                text(&body).split(';').filter_map(|s| s.strip_prefix(&format!("{w}:"))).map(Into::into).collect();
            assert_eq!(mine, (0..20).map(|r| r.to_string()).collect::<Vec<_>>(), "{document}: order of writer {w}");
        }
        assert_eq!(writers[0].get(document).await.unwrap().body, body);
    }
    let paths: Vec<_> = cluster.storers.iter().map(fieldstream_storer::Storer::database_path).collect();
    if let Some(python) = tool("FIELDSTREAM_TEST_PYTHON", "comparing two storers' files with stock py-lmdb") {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/python/compare.py");
        let output = Command::new(python).arg(script).args(&paths).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("24 documents"), "{said}");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_come_back_and_go_on_where_the_log_is() {
    let mut cluster = Cluster::start(Shape::default()).await;
    let client = cluster.client(0, "tcp").await;
    let mut expect = String::new();
    for round in 0..4 {
        for i in 0..50 {
            let piece = format!("{round}.{i} ");
            client.instruct("doc", Operation::Append(piece.clone())).await.unwrap();
            expect.push_str(&piece);
        }
        match round {
            0 => {
                cluster.processors.pop().unwrap().stop(LONG).await;
                cluster.add_processor(PartitionSet::ALL).await;
            }
            1 => {
                let options = cluster.storer_options(0);
                cluster.storers.pop().unwrap().stop(LONG).await;
                cluster.storers.push(fieldstream_storer::Storer::start(options).await.unwrap());
            }
            _ => {
                let pid = rustix::process::Pid::from_raw(i32::try_from(cluster.nats.pid()).unwrap()).unwrap();
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            }
        }
    }
    let client = &client;
    until("the document is complete", LONG, || async { client.get("doc").await.is_ok_and(|d| d.revision == 200) })
        .await;
    assert_eq!(text(&client.get("doc").await.unwrap().body), expect);
    client.sync().await.unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hello_example_says_hello() {
    let source = include_str!("../../client/examples/hello.rs");
    assert!(source.lines().count() <= 15, "hello fits on a slide");
    let cluster = Cluster::start(Shape::default()).await;
    let built = std::env::current_exe().unwrap().parent().unwrap().join("../examples/hello");
    assert!(built.exists(), "not built: cargo build -p fieldstream-client --example hello");
    for (transport, ca) in [("tcp", None), ("quic", Some(cluster.ca()))] {
        let mut hello = tokio::process::Command::new(&built);
        hello.arg(cluster.url(0, transport)).args(ca);
        let output = tokio::time::timeout(LONG, hello.output()).await.unwrap().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.contains("Hello, field!"),
            "{said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    cluster.stop().await;
}
