//! Processors may come and go at any moment: clients see latency and nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use fieldstream_client::{Body, Client, ClientError, ClientOptions, Operation};
use fieldstream_shared::code::Code;
use fieldstream_shared::partition::PARTITIONS;
use fieldstream_tests::{Cluster, Shape, until};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const WRITERS: usize = 12;
const LONG: Duration = Duration::from_secs(30);

/// Appends its count until told to stop; gives back how often, and the longest wait for an outcome.
async fn write(client: Client, document: String, stop: Arc<AtomicBool>) -> (u32, Duration) {
    let (mut count, mut longest) = (0, Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        client.instruct(&document, Operation::Append(format!("{count};"))).await.expect("no client sees an error");
        longest = longest.max(begun.elapsed());
        count += 1;
    }
    (count, longest)
}

/// Waits until the processors there own every partition once.
async fn shared_out(cluster: &Cluster, what: &str) -> Duration {
    let begun = Instant::now();
    until(what, LONG, || async {
        let owned = cluster.processors.iter().map(|p| p.owned().len());
        owned.clone().all(|n| n > 0) && owned.sum::<usize>() == PARTITIONS
    })
    .await;
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn processors_come_and_go_and_clients_see_latency_only() {
    let mut cluster = Cluster::start(Shape { lanes: 2, processors: vec![], ..Shape::default() }).await;
    cluster.add_sharing_processor().await;
    shared_out(&cluster, "one processor owns everything").await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for i in 0..WRITERS {
        let client = cluster.client(0, "tcp").await;
        writers.push(tokio::spawn(write(client, format!("doc/{i}"), Arc::clone(&stop))));
    }
    let mut took = Vec::new();
    let pause = || tokio::time::sleep(Duration::from_millis(700));
    for _ in 0..2 {
        pause().await;
        cluster.add_sharing_processor().await;
        took.push(("join", shared_out(&cluster, "a processor joins").await, Duration::from_secs(1)));
    }
    pause().await;
    // Gone without a word, as after kill -9.
    drop(cluster.processors.remove(0));
    took.push(("kill", shared_out(&cluster, "a dead processor is noticed").await, Duration::from_secs(3)));
    pause().await;
    let begun = Instant::now();
    cluster.processors.remove(0).stop(LONG).await;
    shared_out(&cluster, "a processor leaves").await;
    took.push(("leave", begun.elapsed(), Duration::from_secs(1)));
    pause().await;
    stop.store(true, Ordering::Relaxed);

    let reader = cluster.client(0, "tcp").await;
    let (mut total, mut longest) = (0, Duration::ZERO);
    for (i, writer) in writers.into_iter().enumerate() {
        let (count, wait) = tokio::time::timeout(LONG, writer).await.expect("goes on").unwrap();
        let expected: String = (0..count).map(|n| format!("{n};")).collect();
        assert_eq!(reader.get(&format!("doc/{i}")).await.unwrap().body, Body::Text(expected), "each once, in order");
        total += count;
        longest = longest.max(wait);
    }
    eprintln!("{total} instructions, the longest wait {longest:?}; {took:?}");
    assert!(longest < Duration::from_secs(6), "a dead processor holds its partitions up for its lease: {longest:?}");
    for (what, time, bound) in took {
        assert!(time < 2 * bound, "{what} took {time:?} (twice the bound is given to a busy machine)");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_comes_to_another_gateway_leaves_no_connection_behind() {
    let cluster = Cluster::start(Shape { gateways: 2, ..Shape::default() }).await;
    let options = || ClientOptions::default().client_id("roamer").reconnect(false);
    let first = Client::connect(&cluster.url(0, "tcp"), options()).await.unwrap();
    first.get("d").await.unwrap();
    let second = Client::connect(&cluster.url(1, "tcp"), options()).await.unwrap();
    // Far sooner than the keepalive would find a dead connection.
    until("the first is told", Duration::from_secs(5), || async {
        matches!(first.get("d").await, Err(ClientError::Closed { code, .. }) if code == Code::TAKEN_OVER)
    })
    .await;
    for _ in 0..20 {
        second.get("d").await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    cluster.stop().await;
}
