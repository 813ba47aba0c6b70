//! Disks that are full: said, nothing acknowledged is lost, and everything goes on when there is room.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use fieldstream_client::{AckLevel, Client, How, Operation};
use fieldstream_nats::Health;
use fieldstream_shared::document::Body;
use fieldstream_tests::faults::disk::Disk;
use fieldstream_tests::{Cluster, Shape, in_mount_namespace, until};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(90);
const DISK_BYTES: u64 = 2 << 30;

fn found(health: &Health, code: &str) -> bool {
    health.findings().iter().any(|finding| finding.code.starts_with(code))
}

async fn append(client: &Client, tag: &str, ack: AckLevel) {
    let pending = client.submit("d", Operation::Append(tag.into()), How { ack, ..How::default() }).await.unwrap();
    pending.await.unwrap();
}

async fn text(client: &Client) -> String {
    match client.get("d").await.unwrap().body {
        Body::Text(text) => text,
        other => panic!("not a text: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_disk_was_full_is_started_again_and_everything_goes_on() {
    if let Some(passed) = in_mount_namespace("a_server_whose_disk_was_full_is_started_again_and_everything_goes_on") {
        return assert!(passed);
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::mount(&dir.path().join("nats"), DISK_BYTES).expect("a disk of its own");
    let cluster = Cluster::start_in(dir, Shape { log_bytes: 1 << 30, ..Shape::default() }).await;
    let health = cluster.gateway_healths[0].clone();
    cluster.nats.watch(vec![health.clone()]);
    let client = cluster.client(0, "tcp").await;
    append(&client, "a", AckLevel::Applied).await;

    disk.fill();
    let pid = cluster.nats.pid();
    // A little may still fit into what the file system has given out already.
    let writing = tokio::spawn({
        let client = client.clone();
        async move {
            for _ in 0..64 {
                append(&client, &"b".repeat(8 << 10), AckLevel::Applied).await;
            }
        }
    });
    until("it is said that nothing is acknowledged", LONG, || async { found(&health, "not-acknowledged") }).await;
    assert!(found(&health, "nats-disk-full") && !health.is_ready() && !writing.is_finished());
    assert_eq!(cluster.nats.pid(), pid, "starting it again would be in vain while there is no room");

    disk.empty();
    tokio::time::timeout(LONG, writing).await.expect("it goes on by itself").unwrap();
    assert_ne!(cluster.nats.pid(), pid);
    until("all is well", LONG, || async { health.is_ready() && health.findings().is_empty() }).await;
    append(&client, "c", AckLevel::Stored).await;
    let all = text(&client).await;
    assert!(all == format!("a{}c", "b".repeat(512 << 10)), "each once: {} bytes", all.len());
    client.close(LONG).await.unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storer_whose_disk_was_full_goes_on_and_others_do_not_wait() {
    if let Some(passed) = in_mount_namespace("a_storer_whose_disk_was_full_goes_on_and_others_do_not_wait") {
        return assert!(passed);
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::mount(&dir.path().join("storer-0"), DISK_BYTES).expect("a disk of its own");
    let mut cluster = Cluster::start_in(dir, Shape { storers: 0, ..Shape::default() }).await;
    let options = cluster.storer_options(0);
    let health = options.health.clone();
    cluster.storers.push(fieldstream_storer::Storer::start(options).await.unwrap());
    let client = cluster.client(0, "tcp").await;
    append(&client, "a", AckLevel::Stored).await;

    disk.fill();
    // What is applied does not need the storer's disk.
    for _ in 0..64 {
        append(&client, &"b".repeat(8 << 10), AckLevel::Applied).await;
    }
    until("it is said that nothing is stored", LONG, || async { found(&health, "not-stored") }).await;
    assert!(!health.is_ready());
    disk.empty();
    tokio::time::timeout(LONG, append(&client, "c", AckLevel::Stored)).await.expect("it goes on by itself");
    until("all is well", LONG, || async { health.is_ready() }).await;
    assert!(text(&client).await == format!("a{}c", "b".repeat(512 << 10)), "each once");
    client.close(LONG).await.unwrap();
    cluster.stop().await;
}
