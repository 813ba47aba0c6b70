//! Outages and overload: what stands still is said, nothing grows without bound, and everything
//! goes on by itself when the cause is gone.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use fieldstream_client::{Client, ClientOptions, Operation, WatchEvent};
use fieldstream_gateway::Gateway;
use fieldstream_nats::{Connection, Health, NATS_DOWN, collect_status};
use fieldstream_processor::{Processor, ProcessorOptions};
use fieldstream_shared::document::Body;
use fieldstream_storer::Storer;
use fieldstream_tests::faults::proxy::Proxy;
use fieldstream_tests::faults::udp::UdpProxy;
use fieldstream_tests::{Cluster, Shape, raise_open_files, until};
use rustix::process::{Pid, Signal, kill_process};
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(60);

fn found(health: &Health, code: &str) -> bool {
    health.findings().iter().any(|finding| finding.code == code)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stands_still_takes_readiness_and_gives_it_back() {
    let cluster = Cluster::start(Shape::default()).await;
    let client = cluster.client(0, "tcp").await;
    client.instruct("d", Operation::Append("a".into())).await.unwrap();
    let health = &cluster.gateway_healths[0];
    assert!(health.is_ready() && health.findings().is_empty(), "{:?}", health.findings());

    let nats = Pid::from_raw(cluster.nats.pid().cast_signed()).unwrap();
    kill_process(nats, Signal::STOP).unwrap();
    until("the gateway says that NATS does not answer", LONG, || async { found(health, NATS_DOWN) }).await;
    assert!(!health.is_ready());
    let waiting = client.instruct("d", Operation::Append("b".into()));
    kill_process(nats, Signal::CONT).unwrap();
    tokio::time::timeout(LONG, waiting).await.expect("it goes on").unwrap();
    until("the gateway is ready again", LONG, || async { health.is_ready() }).await;
    assert!(health.findings().is_empty(), "{:?}", health.findings());
    assert_eq!(client.get("d").await.unwrap().body, Body::Text("ab".into()));
    client.close(LONG).await.unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_storers_applying_pauses_and_goes_on_when_one_is_back() {
    const DOCUMENTS: usize = 64;
    let mut cluster = Cluster::start(Shape { processors: vec![], ..Shape::default() }).await;
    let mut options = ProcessorOptions::new(cluster.nats.server().clone());
    (options.cache_bytes_max, options.pinned_bytes_max) = (4 << 20, 1 << 20);
    let health = options.health.clone();
    cluster.processors.push(Processor::start(options).await.unwrap());
    let client = cluster.client(0, "tcp").await;
    // Known to the processor: creating them needs no storer then.
    for n in 0..DOCUMENTS {
        client.instruct(&format!("d{n}"), Operation::PutText("x".into())).await.unwrap();
    }
    cluster.storers.remove(0).stop(LONG).await;

    let text = "y".repeat(64 << 10);
    let writing = tokio::spawn(async move {
        for n in 0..DOCUMENTS {
            client.instruct(&format!("d{n}"), Operation::PutText(text.clone())).await.unwrap();
        }
        client
    });
    until("the processor says that it waits for storers", LONG, || async { found(&health, "storers-behind-0") }).await;
    assert!(!writing.is_finished() && !health.is_ready());

    cluster.storers.push(Storer::start(cluster.storer_options(0)).await.unwrap());
    let client = tokio::time::timeout(LONG, writing).await.expect("it goes on").unwrap();
    until("the processor is ready again", LONG, || async { health.is_ready() }).await;
    let last = client.get(&format!("d{}", DOCUMENTS - 1)).await.unwrap();
    assert_eq!((last.revision, last.body.encoded_bytes() >= 64 << 10), (2, true));
    client.close(LONG).await.unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_is_back_after_a_gateway_was_replaced() {
    const CLIENTS: usize = 2_000;
    raise_open_files();
    let mut cluster = Cluster::start(Shape::default()).await;
    let url = cluster.url(0, "tcp");
    let connecting = (0..CLIENTS).map(|_| Client::connect(&url, ClientOptions::default()));
    let clients = futures::future::try_join_all(connecting).await.unwrap();
    let writing = |round: u64| {
        let instruct = |(n, client): (usize, &Client)| {
            let (client, document) = (client.clone(), format!("d{}", n % 16));
            tokio::spawn(async move { client.instruct(&document, Operation::Append(format!("{n}.{round};"))).await })
        };
        clients.iter().enumerate().map(instruct).collect::<Vec<_>>()
    };
    for write in writing(1) {
        write.await.unwrap().unwrap();
    }
    let addresses = cluster.gateways[0].addresses();
    // Dropped, not stopped: no client is told anything.
    drop(cluster.gateways.remove(0));
    let mut options = cluster.gateway_options(1);
    options.tcp = addresses.tcp;
    until("the port is free", LONG, || async { std::net::TcpListener::bind(addresses.tcp.unwrap()).is_ok() }).await;
    let second_round = writing(2);
    cluster.gateways.push(Gateway::start(options).await.unwrap());
    let begun = Instant::now();
    for write in second_round {
        tokio::time::timeout(LONG, write).await.expect("everybody is back").unwrap().unwrap();
    }
    eprintln!("{CLIENTS} clients are back, each with an instruction applied, after {:?}", begun.elapsed());
    let mut tags = Vec::new();
    for n in 0..16 {
        let Body::Text(text) = clients[0].get(&format!("d{n}")).await.unwrap().body else { panic!("no text") };
        tags.extend(text.split_terminator(';').map(str::to_owned));
    }
    tags.sort();
    let mut expected: Vec<_> = (0..CLIENTS).flat_map(|n| [format!("{n}.1"), format!("{n}.2")]).collect();
    expected.sort();
    assert_eq!(tags, expected, "each once");
    for client in clients {
        client.close(LONG).await.unwrap();
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_takes_nothing_is_cut_and_catches_up_and_nobody_else_notices() {
    let mut cluster = Cluster::start(Shape { gateways: 0, ..Shape::default() }).await;
    let mut options = cluster.gateway_options(1);
    assert_eq!(options.limits.write_timeout, Duration::from_secs(10), "what is documented");
    options.limits.write_timeout = Duration::from_secs(2);
    cluster.gateways.push(Gateway::start(options).await.unwrap());
    let proxy = Proxy::of_bytes(cluster.gateways[0].addresses().tcp.unwrap()).await;
    let url = format!("tcp://{}", proxy.address);
    let slow = Client::connect(&url, ClientOptions::default()).await.unwrap();
    let (writer, other) = (cluster.client(0, "tcp").await, cluster.client(0, "tcp").await);
    let mut watch = slow.watch("d").await.unwrap();
    let mut others = other.watch("d").await.unwrap();
    let connection = Connection::connect(cluster.nats.server(), "test").await.unwrap();
    let connections = || async {
        let roles = collect_status(&connection, Duration::from_millis(300)).await.unwrap();
        roles.iter().find_map(|role| role.gateway.as_ref()).map(|gateway| gateway.connections)
    };
    until("all are here", LONG, || async { connections().await == Some(3) }).await;

    // More than the buffers of two sockets take, and far more than the gateway keeps for one.
    proxy.freeze(true);
    let (mut round, mut slowest) = (0_u64, Duration::ZERO);
    let begun = Instant::now();
    while connections().await != Some(2) {
        assert!(begun.elapsed() < LONG, "it is cut");
        for _ in 0..32 {
            round += 1;
            let sent = Instant::now();
            writer.instruct("d", Operation::PutText(format!("{round:>8}").repeat(4096))).await.unwrap();
            slowest = slowest.max(sent.elapsed());
        }
    }
    assert!(slowest < Duration::from_secs(2), "nobody else waits: {slowest:?}");
    writer.instruct("d", Operation::PutText("last".into())).await.unwrap();

    proxy.freeze(false);
    for watch in [&mut watch, &mut others] {
        let until_last = async {
            while watch.document().body != Body::Text("last".into()) {
                if let WatchEvent::Updated { version, .. } = watch.next().await.unwrap() {
                    assert!(version.revision <= round + 1);
                }
            }
        };
        tokio::time::timeout(LONG, until_last).await.expect("it comes to the same end");
    }
    for client in [slow, writer, other] {
        client.close(LONG).await.unwrap();
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_by_quic_learns_at_once_that_its_gateway_was_killed_and_is_back() {
    let mut cluster = Cluster::start(Shape::default()).await;
    let at = cluster.gateways[0].addresses().quic.unwrap();
    let proxy = UdpProxy::start(at, 1).await;
    let options = ClientOptions::default().ca_file(cluster.ca());
    let client = Client::connect(&format!("quic://{}", proxy.address), options).await.unwrap();
    client.instruct("d", Operation::Append("a".into())).await.unwrap();
    // Killed: no goodbye comes through.
    proxy.silence(true);
    drop(cluster.gateways.remove(0));
    let mut options = cluster.gateway_options(1);
    options.tls.as_mut().unwrap().listen = at;
    let is_free = || async { std::net::UdpSocket::bind(at).is_ok() && std::net::TcpListener::bind(at).is_ok() };
    until("the ports are free", LONG, is_free).await;
    cluster.gateways.push(Gateway::start(options).await.unwrap());
    proxy.silence(false);
    let again = client.instruct("d", Operation::Append("b".into()));
    tokio::time::timeout(Duration::from_secs(4), again).await.expect("it does not wait for a dead gateway").unwrap();
    assert_eq!(client.status().reconnects, 1);
    client.close(LONG).await.unwrap();
    cluster.stop().await;
}
