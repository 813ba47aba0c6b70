//! Copies, purging, and storers that come back from a copy.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use fieldstream_client::{Client, ClientOptions, Operation};
use fieldstream_gateway::Gateway;
use fieldstream_nats::{
    Connection, LogError, ReadClient, StorerEntry, StorerRegister, StreamState, Topology, lane_streams,
    request_snapshot,
};
use fieldstream_shared::document::Body;
use fieldstream_shared::ids::ClientId;
use fieldstream_shared::partition::Partition;
use fieldstream_shared::read::{AnswerBody, Query, Request};
use fieldstream_storer::{
    Belongs, Digests, Identity, Store, StoreOptions, Storer, StorerError, StorerOptions, UpkeepOptions, restore,
};
use fieldstream_tests::{Cluster, Shape, until};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);
const DOCUMENTS: usize = 20;

/// A cluster with a log of 16 MiB whose storer copies every second.
async fn cluster() -> Cluster {
    let shape = Shape { storers: 0, processors: vec![], gateways: 0, log_bytes: 16 << 20, ..Shape::default() };
    let mut cluster = Cluster::start(shape).await;
    cluster.storers.push(Storer::start(storer_options(&cluster, 0)).await.unwrap());
    cluster.add_sharing_processor().await;
    let options = cluster.gateway_options(1);
    cluster.gateways.push(Gateway::start(options).await.unwrap());
    cluster
}

fn storer_options(cluster: &Cluster, i: usize) -> StorerOptions {
    let mut options = cluster.storer_options(i);
    options.upkeep = UpkeepOptions {
        copy_every: Duration::from_secs(1),
        every: Duration::from_millis(50),
        ..UpkeepOptions::default()
    };
    options
}

fn files(options: &StorerOptions) -> StoreOptions {
    StoreOptions {
        directory: options.directory.clone(),
        file_mode: 0o664,
        map_bytes: options.map_bytes,
        history_revisions: 0,
    }
}

/// Writes so many rounds of 32 KiB texts to all documents.
async fn write(client: &Client, rounds: std::ops::Range<u32>) {
    for round in rounds {
        let writes = (0..DOCUMENTS).map(|n| async move {
            let text = format!("{round:>8}").repeat(4096);
            client.instruct(&format!("d{n}"), Operation::PutText(text)).await
        });
        for done in futures::future::join_all(writes).await {
            done.unwrap();
        }
    }
}

async fn connection(cluster: &Cluster) -> Connection {
    Connection::connect(cluster.nats.server(), "test").await.unwrap()
}

async fn streams(cluster: &Cluster) -> (StreamState, StreamState) {
    let connection = connection(cluster).await;
    let topology = Topology::load(&connection).await.unwrap();
    lane_streams(&connection, &topology).await.unwrap()[0]
}

async fn entries(cluster: &Cluster) -> Vec<StorerEntry> {
    StorerRegister::open(&connection(cluster).await).await.unwrap().list().await.unwrap()
}

async fn assert_texts(client: &Client, round: u32) {
    for n in 0..DOCUMENTS {
        let text = format!("{round:>8}").repeat(4096);
        let document = client.get(&format!("d{n}")).await.unwrap();
        assert!(document.body == Body::Text(text), "d{n} at revision {}", document.revision);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn far_more_than_the_log_holds_goes_through_it_and_a_lost_file_comes_back_from_a_copy() {
    const ROUNDS: u32 = 60;
    let mut cluster = cluster().await;
    let client = cluster.client(0, "tcp").await;
    tokio::time::timeout(LONG * 2, write(&client, 0..ROUNDS)).await.expect("the log makes room");
    let (instructions, events) = streams(&cluster).await;
    assert!(instructions.first > 1 && events.first > 1, "{instructions:?} {events:?}");
    for stream in [instructions, events] {
        assert!(stream.bytes <= stream.bytes_max, "{stream:?}");
    }

    // Everything the storer has is lost, but for its copies; more happens meanwhile.
    let storer = cluster.storers.remove(0);
    let copy = request_snapshot(&connection(&cluster).await, storer.id()).await.unwrap();
    storer.stop(LONG).await;
    let options = storer_options(&cluster, 0);
    let kept = cluster.dir.path().join("kept");
    std::fs::rename(options.directory.join("copies"), &kept).unwrap();
    std::fs::remove_dir_all(&options.directory).unwrap();
    write(&client, ROUNDS..ROUNDS + 3).await;
    let latest = std::fs::read_link(kept.join("latest")).unwrap();
    assert!(
        copy.path.ends_with(latest.to_str().unwrap())
            || latest.to_str().unwrap() > copy.path.rsplit('/').next().unwrap()
    );
    let store = files(&options);
    let restored = restore(&kept.join("latest"), &store, None, false).unwrap();
    assert!(restored.rows >= DOCUMENTS as u64);
    let refused = restore(&kept.join("latest"), &store, None, false).unwrap_err();
    assert!(refused.to_string().contains("--yes"), "{refused}");
    cluster.storers.push(Storer::start(options).await.unwrap());
    client.instruct("d0", Operation::Append("!".into())).await.unwrap();
    client.instruct("d0", Operation::PutText(format!("{:>8}", ROUNDS + 2).repeat(4096))).await.unwrap();
    assert_texts(&client, ROUNDS + 2).await;
    client.close(LONG).await.unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_storer_joins_by_a_copy_and_the_log_is_kept_for_one_that_is_away() {
    let mut cluster = cluster().await;
    let client = cluster.client(0, "tcp").await;
    write(&client, 0..30).await;
    until("the log was purged", LONG, || async { streams(&cluster).await.1.first > 1 }).await;

    // While no other storer runs it cannot begin, and says so.
    let second = storer_options(&cluster, 1);
    let first = storer_options(&cluster, 0);
    cluster.storers.remove(0).stop(LONG).await;
    let register = StorerRegister::open(&connection(&cluster).await).await.unwrap();
    let mut gone = entries(&cluster).await.remove(0);
    gone.seen_at_us = 0;
    register.put(&gone).await.unwrap();
    let error = Storer::start(second.clone()).await.err().expect("no way from nothing").to_string();
    assert!(error.contains("copy"), "{error}");

    // Then it takes a copy from the one that runs, over NATS alone, and goes on from there.
    cluster.storers.push(Storer::start(first).await.unwrap());
    until("the first is back", LONG, || async { entries(&cluster).await[0].seen_at_us > 0 }).await;
    let writing = {
        let client = client.clone();
        tokio::spawn(async move { write(&client, 30..34).await })
    };
    cluster.storers.push(Storer::start(second.clone()).await.unwrap());
    assert_ne!(cluster.storers[1].id(), cluster.storers[0].id());
    writing.await.unwrap();
    let last = streams(&cluster).await.1.last;
    until("both storers follow", LONG, || async { cluster.storers.iter().all(|s| s.stored()[0] >= last) }).await;
    let all_registered = |entries: &[StorerEntry]| entries.len() == 2 && entries.iter().all(|entry| !entry.temporary);
    until("both are registered", LONG, || async { all_registered(&entries(&cluster).await) }).await;
    let left = std::fs::read_dir(&second.directory).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(!left.iter().any(|name| name.starts_with(".join")), "{left:?}");

    // Away, the log is kept for it; back, it goes on.
    let away_at = cluster.storers[1].stored()[0];
    cluster.storers.remove(1).stop(LONG).await;
    write(&client, 34..40).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(streams(&cluster).await.1.first <= away_at, "what it needs is there");
    cluster.storers.push(Storer::start(second).await.unwrap());
    let last = streams(&cluster).await.1.last;
    until("it has caught up", LONG, || async { cluster.storers[1].stored()[0] >= last }).await;
    assert_texts(&client, 39).await;
    client.close(LONG).await.unwrap();
    let mut digests = Vec::new();
    for storer in cluster.storers.drain(..) {
        let database = storer.database_path();
        storer.stop(LONG).await;
        digests.push(tokio::task::spawn_blocking(move || Digests::of_file(&database, 0).unwrap()).await.unwrap());
    }
    assert!(digests[0].rows > 0);
    assert_eq!(digests[0].differences(&digests[1]), [], "both files hold the same");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_purged_for_a_storer_that_is_forgotten_is_no_damage_to_one_behind_it() {
    let mut cluster = cluster().await;
    let client = cluster.client(0, "tcp").await;
    write(&client, 0..30).await;
    until("the log was purged", LONG, || async { streams(&cluster).await.1.first > 1 }).await;
    let second = storer_options(&cluster, 1);
    cluster.storers.push(Storer::start(second.clone()).await.unwrap());
    let id = cluster.storers[1].id();
    let is_registered = |e: &StorerEntry| e.storer == id && !e.temporary;
    until("it is registered", LONG, || async { entries(&cluster).await.iter().any(is_registered) }).await;

    // It is dropped by mistake, and puts itself in again, for the log still has all it needs.
    let register = StorerRegister::open(&connection(&cluster).await).await.unwrap();
    register.remove(id).await.unwrap();
    until("it is back", LONG, || async { entries(&cluster).await.iter().any(is_registered) }).await;

    // While it is away the first goes on, and INSTRUCTIONS is purged for that one.
    cluster.storers.remove(1).stop(LONG).await;
    let away_at = entries(&cluster).await.into_iter().find(is_registered).unwrap().lanes[0];
    write(&client, 30..36).await;
    let until_purged = async {
        while streams(&cluster).await.0.first <= away_at.instructions_lowest {
            client.instruct("other", Operation::Append("+".into())).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(LONG, until_purged).await.expect("INSTRUCTIONS is purged beyond what it names");
    assert!(streams(&cluster).await.1.first <= away_at.events_sequence, "EVENTS is kept for it");
    let first = cluster.storers.remove(0);
    let forgotten = first.id();
    first.stop(LONG).await;
    register.remove(forgotten).await.unwrap();

    cluster.storers.push(Storer::start(second).await.unwrap());
    let last = streams(&cluster).await.1.last;
    until("it has caught up", LONG, || async { cluster.storers[0].stored()[0] >= last }).await;
    // Having caught up, it looks at INSTRUCTIONS.
    let failed = tokio::time::timeout(Duration::from_secs(2), cluster.storers[0].failed()).await;
    assert!(failed.is_err(), "{failed:?}");
    assert_texts(&client, 35).await;
    client.close(LONG).await.unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_is_too_old_is_no_damage_and_a_file_that_is_let_go_is_waited_for() {
    let mut cluster = cluster().await;
    let client = cluster.client(0, "tcp").await;
    write(&client, 0..2).await;
    let copy = request_snapshot(&connection(&cluster).await, cluster.storers[0].id()).await.unwrap();
    let kept = cluster.dir.path().join("kept");
    std::fs::create_dir(&kept).unwrap();
    std::fs::copy(std::path::Path::new(&copy.path).join("data.mdb"), kept.join("data.mdb")).unwrap();
    write(&client, 2..32).await;
    let needed = copy.lanes[0].events_sequence + 1;
    until("it was purged beyond that copy", LONG, || async { streams(&cluster).await.1.first > needed }).await;
    cluster.storers.remove(0).stop(LONG).await;

    let options = storer_options(&cluster, 0);
    let present = std::fs::read_link(options.directory.join("db")).unwrap();
    restore(&kept, &files(&options), None, true).unwrap();
    let error = Storer::start(options.clone()).await.err().expect("the log ran away from it");
    assert!(matches!(error, StorerError::Log(LogError::Outrun { .. })), "{error}");

    // Back to the file before; a copy under way in this process would still have it.
    std::fs::remove_file(options.directory.join("db")).unwrap();
    std::os::unix::fs::symlink(present, options.directory.join("db")).unwrap();
    let identity = Identity { lanes: 1, log_id: 0, new_storer: 0, now_us: 0 };
    let held = Store::open_as(files(&options), &identity, Belongs::Anywhere).unwrap();
    let letting_go = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(held);
    });
    cluster.storers.push(Storer::start(options).await.unwrap());
    letting_go.await.unwrap();
    assert_texts(&client, 31).await;
    client.close(LONG).await.unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_purged_log_roles_wait_for_a_storer() {
    let mut cluster = cluster().await;
    let client = cluster.client(0, "tcp").await;
    write(&client, 0..30).await;
    until("the log was purged", LONG, || async { streams(&cluster).await.1.first > 1 }).await;
    client.close(LONG).await.unwrap();
    cluster.gateways.remove(0).stop(LONG).await;
    cluster.processors.remove(0).stop(LONG).await;
    cluster.storers.remove(0).stop(LONG).await;

    let options = cluster.gateway_options(1);
    let health = options.health.clone();
    let starting = tokio::spawn(Gateway::start(options));
    cluster.add_sharing_processor().await;
    until("the gateway says what it waits for", LONG, || async {
        health.findings().iter().any(|finding| finding.code == "no-storer")
    })
    .await;
    cluster.storers.push(Storer::start(storer_options(&cluster, 0)).await.unwrap());
    cluster.gateways.push(tokio::time::timeout(LONG, starting).await.unwrap().unwrap().unwrap());
    let client = cluster.client(0, "tcp").await;
    write(&client, 30..31).await;
    assert_texts(&client, 30).await;
    client.close(LONG).await.unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_never_come_back_are_forgotten_and_those_that_do_are_served() {
    let mut cluster = Cluster::start(Shape { storers: 0, gateways: 0, processors: vec![], ..Shape::default() }).await;
    let mut options = storer_options(&cluster, 0);
    options.upkeep.client_marks_kept = Duration::from_secs(2);
    options.upkeep.forget_every = Duration::from_millis(200);
    cluster.storers.push(Storer::start(options).await.unwrap());
    cluster.add_sharing_processor().await;
    let options = cluster.gateway_options(1);
    cluster.gateways.push(Gateway::start(options).await.unwrap());
    let connect = |id: &'static str| {
        let url = cluster.url(0, "tcp");
        async move { Client::connect(&url, ClientOptions::default().client_id(id)).await.unwrap() }
    };
    let (once, busy) = (connect("once").await, connect("busy").await);
    once.instruct("d", Operation::Append("1".into())).await.unwrap();
    busy.instruct("d", Operation::Append("2".into())).await.unwrap();
    drop(once);
    let reads = ReadClient::new(&connection(&cluster).await).await.unwrap();
    let epochs = || async {
        let marks = ["once", "busy"].map(|id| (Partition::of("d"), ClientId::new(id).unwrap())).to_vec();
        let request = Request { lane: 0, min_sequence: 0, query: Query::GetMany { documents: vec![], marks } };
        match reads.request(&request, LONG).await.unwrap().body {
            AnswerBody::Values { marks, .. } => (marks[0].epoch, marks[1].epoch),
            other => panic!("{other:?}"),
        }
    };
    // Applied is not yet stored.
    until("both are remembered", LONG, || async { matches!(epochs().await, (1.., 1..)) }).await;
    let (_, busy_epoch) = epochs().await;
    until("the one that is gone is forgotten", Duration::from_secs(30), || async {
        busy.instruct("d", Operation::Append("+".into())).await.unwrap();
        let (once, busy) = epochs().await;
        assert_eq!(busy, busy_epoch, "who works is remembered");
        once == 0
    })
    .await;
    let revision = busy.get("d").await.unwrap().revision;
    let again = connect("once").await;
    again.instruct("d", Operation::Append("3".into())).await.unwrap();
    let document = again.get("d").await.unwrap();
    assert_eq!(document.revision, revision + 1);
    assert!(matches!(document.body, Body::Text(text) if text.starts_with("12+") && text.ends_with("+3")));
    cluster.stop().await;
}
