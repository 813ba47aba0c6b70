//! The gateway over real sockets, with a real nats-server.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod common;

use common::{Client, WAIT, World, append, put};
use fieldstream_gateway::{Gateway, GatewayError, GatewayLimits, TokenPolicy};
use fieldstream_shared::code::Code;
use fieldstream_shared::document::{Body, Document};
use fieldstream_shared::frame::{FromClient, FromServer, Watch, WatchMode};
use fieldstream_shared::outcome::{AckLevel, Outcome};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;

fn watch(document: &str, revision: u64, state_hash: u64) -> Watch<'_> {
    Watch { document, revision, state_hash, mode: WatchMode::Changes }
}

fn applied(revision: u64) -> Option<Outcome> {
    Some(Outcome::Applied { revision })
}

async fn expect(client: &mut Client, check: impl Fn(&FromServer<'_>) -> bool) {
    let payload = client.next().await;
    let frame = FromServer::decode(&payload).unwrap();
    assert!(check(&frame), "{frame:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instructions_become_updates_at_watchers() {
    let world = World::start().await;
    let gateway = world.gateway().await;
    let address = gateway.addresses().tcp.unwrap();
    let mut watcher = Client::connect(address, "w", vec![watch("d", 0, 0)]).await;
    expect(&mut watcher, |f| matches!(f, FromServer::Watching { recovered: false, .. })).await;
    expect(&mut watcher, |f| matches!(f, FromServer::Snapshot(s) if s.version.revision == 0)).await;
    let mut writer = Client::connect(address, "c", vec![]).await;
    assert_eq!(writer.put("d", "one").await, (1, AckLevel::Applied, applied(1)));
    expect(&mut watcher, |f| matches!(f, FromServer::Update(u) if u.version.revision == 1 && u.client == "c")).await;
    for n in 2..=20 {
        writer.instruct("d", &append("x"), AckLevel::Applied).await;
        assert_eq!(writer.number, n);
    }
    for revision in 2..=20 {
        assert_eq!(writer.outcome().await.2, applied(revision));
        expect(&mut watcher, |f| matches!(f, FromServer::Update(u) if u.version.revision == revision)).await;
    }
    // GET, of a document at hand and of one that is not.
    for (request, document, revision) in [(1, "d", 20), (2, "never", 0)] {
        writer.send(&FromClient::Get { request, document }).await;
        expect(&mut writer, |f| {
            matches!(f, FromServer::Got { request: r, snapshot } if *r == request && snapshot.version.revision == revision)
        })
        .await;
    }
    writer.send(&FromClient::List { request: 3, prefix: "", after: "", limit: 10 }).await;
    expect(&mut writer, |f| matches!(f, FromServer::Listed { request: 3, documents } if documents.len() == 1)).await;
    writer.send(&FromClient::Ping { nonce: 9 }).await;
    expect(&mut writer, |f| matches!(f, FromServer::Pong { nonce: 9, .. })).await;
    gateway.stop(Duration::from_secs(5)).await;
    assert_eq!(watcher.close_code().await.0, Code::SHUTTING_DOWN);
    assert_eq!(watcher.try_next().await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ack_levels_are_told_when_they_are_reached() {
    let world = World::start().await;
    let gateway = world.gateway().await;
    let address = gateway.addresses().tcp.unwrap();
    let mut client = Client::connect(address, "c", vec![]).await;
    world.processor_on.store(false, Ordering::Relaxed);
    client.instruct("d", &put("a"), AckLevel::Logged).await;
    assert_eq!(client.outcome().await, (1, AckLevel::Logged, None), "without a processor");
    // Splice on an absent document is refused, after it was logged: the client learns of it.
    let splice = fieldstream_shared::instruction::Operation::Splice(vec![fieldstream_shared::change::Edit {
        position: 0,
        deleted: 0,
        inserted: "x".into(),
    }]);
    client.instruct("absent", &splice, AckLevel::Logged).await;
    assert_eq!(client.outcome().await, (2, AckLevel::Logged, None));
    world.processor_on.store(true, Ordering::Relaxed);
    let late = (2, AckLevel::Applied, Some(Outcome::Refused(Code::NOT_FOUND)));
    assert_eq!(client.outcome().await, late);
    world.storer_on.store(false, Ordering::Relaxed);
    client.instruct("d", &put("b"), AckLevel::Stored).await;
    client.instruct("d", &put("c"), AckLevel::Applied).await;
    assert_eq!(client.outcome().await, (4, AckLevel::Applied, applied(3)), "stored waits, applied does not");
    client.send(&FromClient::Sync { request: 8 }).await;
    client.send(&FromClient::Ping { nonce: 1 }).await;
    expect(&mut client, |f| matches!(f, FromServer::Pong { .. })).await;
    world.storer_on.store(true, Ordering::Relaxed);
    assert_eq!(client.outcome().await, (3, AckLevel::Stored, applied(2)));
    expect(&mut client, |f| matches!(f, FromServer::Synced { request: 8 })).await;
    gateway.stop(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_comes_back_gets_a_verdict() {
    let world = World::start().await;
    let gateway = world.gateway().await;
    let address = gateway.addresses().tcp.unwrap();
    let mut writer = Client::connect(address, "c", vec![]).await;
    let mut hashes = vec![0];
    for n in 1..=5 {
        writer.instruct("d", &append("x"), AckLevel::Applied).await;
        assert_eq!(writer.outcome().await.2, applied(n));
        hashes.push(Document { revision: n, time_us: 0, body: Body::Text("x".repeat(n as usize)) }.hash());
    }
    // The first watcher causes the load, the others find the document at hand.
    for (id, revision, hash, recovered, updates) in [
        ("from history", 2, hashes[2], true, 3),
        ("the same", 5, hashes[5], true, 0),
        ("another history", 2, 77, false, 0),
        ("from the future", 9, 77, false, 0),
    ] {
        let mut watcher = Client::connect(address, id, vec![watch("d", revision, hash)]).await;
        expect(&mut watcher, |f| matches!(f, FromServer::Watching { recovered: r, .. } if *r == recovered)).await;
        for n in 0..updates {
            expect(&mut watcher, |f| matches!(f, FromServer::Update(u) if u.version.revision == revision + 1 + n))
                .await;
        }
        if !recovered {
            expect(&mut watcher, |f| matches!(f, FromServer::Snapshot(s) if s.version.revision == 5)).await;
        }
        watcher.send(&FromClient::Ping { nonce: 1 }).await;
        expect(&mut watcher, |f| matches!(f, FromServer::Pong { .. })).await;
    }
    let bodies = Watch { mode: WatchMode::Bodies, ..watch("d", 0, 0) };
    let mut watcher = Client::connect(address, "bodies", vec![bodies]).await;
    expect(&mut watcher, |f| matches!(f, FromServer::Watching { recovered: false, .. })).await;
    expect(&mut watcher, |f| matches!(f, FromServer::Snapshot(s) if s.piece == b"xxxxx")).await;
    writer.put("d", "new").await;
    expect(&mut watcher, |f| matches!(f, FromServer::Snapshot(s) if s.piece == b"new" && s.version.revision == 6))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_connection_takes_over_and_resends() {
    let world = World::start().await;
    let gateway = world.gateway().await;
    let address = gateway.addresses().tcp.unwrap();
    let mut first = Client::connect(address, "c", vec![]).await;
    first.put("d", "one").await;
    let mut second = Client::raw(address).await;
    second.number = 1;
    second.hello("c", None, vec![]).await;
    second.expect_welcome().await;
    assert_eq!(first.close_code().await.0, Code::TAKEN_OVER);
    second.send_number(1, "d", &put("one"), AckLevel::Applied, true).await;
    assert_eq!(second.outcome().await, (1, AckLevel::Applied, applied(1)), "the same outcome, once applied");
    second.send_number(1, "d", &put("two"), AckLevel::Applied, true).await;
    assert_eq!(second.outcome().await.2, Some(Outcome::Refused(Code::NUMBER_REUSED)));
    let mut third = Client::connect(address, "c2", vec![]).await;
    assert_eq!(third.put("d", "three").await.2, applied(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_clients_are_told_why_and_others_go_on() {
    let world = World::start().await;
    let tokens = world.path("tokens.toml");
    std::fs::write(&tokens, "[[token]]\ntoken='t'\nclient='*'\nread=['a/']\nwrite=['a/']\n").unwrap();
    let mut options = world.options();
    options.tokens = TokenPolicy::from_file(&tokens, true).unwrap();
    options.limits = GatewayLimits {
        hello_timeout: Duration::from_millis(300),
        frame_timeout: Duration::from_millis(300),
        keepalive: Duration::from_millis(900),
        ..GatewayLimits::default()
    };
    let gateway = Gateway::start(options).await.unwrap();
    let address = gateway.addresses().tcp.unwrap();
    let mut good = Client::raw(address).await;
    good.hello("good", Some("t"), vec![]).await;
    good.expect_welcome().await;
    for token in [None, Some("wrong")] {
        let mut bad = Client::raw(address).await;
        bad.hello("good", token, vec![]).await;
        assert_eq!(bad.close_code().await.0, Code::UNAUTHORIZED);
        assert_eq!(bad.try_next().await, None);
    }
    assert_eq!(good.put("a/1", "x").await.2, applied(1), "not taken over by strangers");
    assert_eq!(good.put("b/1", "x").await.2, Some(Outcome::Refused(Code::FORBIDDEN)));
    let mut silent = Client::raw(address).await;
    assert_eq!(silent.close_code().await.0, Code::TIMED_OUT);
    let mut huge = Client::raw(address).await;
    huge.stream.write_all(&[0xff; 100_000]).await.unwrap();
    assert_eq!(huge.close_code().await.0, Code::FRAME_TOO_LARGE, "told although bytes were left unread");
    let mut partial = Client::raw(address).await;
    partial.hello("p", Some("t"), vec![]).await;
    partial.expect_welcome().await;
    partial.stream.write_all(&[0, 0, 0]).await.unwrap();
    assert_eq!(partial.close_code().await.0, Code::TIMED_OUT);
    let mut idle = Client::raw(address).await;
    idle.hello("i", Some("t"), vec![]).await;
    idle.expect_welcome().await;
    assert_eq!(good.put("a/1", "y").await.2, applied(2));
    assert_eq!(idle.close_code().await.0, Code::IDLE);
    gateway.stop(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_gets_the_last_state_and_a_deaf_one_is_cut() {
    let world = World::start().await;
    let mut options = world.options();
    options.limits.write_timeout = Duration::from_millis(1_500);
    let gateway = Gateway::start(options).await.unwrap();
    let address = gateway.addresses().tcp.unwrap();
    let mut slow = Client::connect(address, "slow", vec![watch("d", 0, 0)]).await;
    let mut deaf = Client::connect(address, "deaf", vec![watch("d", 0, 0)]).await;
    let mut writer = Client::connect(address, "c", vec![]).await;
    let text = "y".repeat(200_000);
    // Far more than sockets and outbox hold.
    for n in 1..=80 {
        let (_, _, outcome) = writer.put("d", &format!("{n} {text}")).await;
        assert_eq!(outcome, applied(n));
    }
    let (mut seen, mut gaps, mut body) = (0, 0, Vec::new());
    while seen < 80 {
        let payload = slow.next().await;
        match FromServer::decode(&payload).unwrap() {
            FromServer::Update(update) => {
                assert_eq!(update.version.revision, seen + 1, "updates are contiguous");
                seen += 1;
            }
            FromServer::Snapshot(piece) => {
                assert!(piece.version.revision >= seen);
                body.truncate(piece.offset as usize);
                body.extend_from_slice(piece.piece);
                if body.len() as u64 == piece.total_bytes {
                    gaps += u64::from(piece.version.revision > seen + 1);
                    seen = piece.version.revision;
                }
            }
            FromServer::Watching { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(gaps > 0, "states were left out");
    let started = Instant::now();
    while started.elapsed() < WAIT {
        // Whoever reads nothing finds its connection ended behind what the sockets held.
        tokio::time::sleep(Duration::from_millis(200)).await;
        if started.elapsed() > Duration::from_millis(2_500) {
            break;
        }
    }
    let mut frames = 0;
    while deaf.try_next().await.is_some() {
        frames += 1;
    }
    assert!(frames < 80);
    assert_eq!(writer.put("d", "end").await.2, applied(81));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_connections_are_told_busy() {
    let world = World::start().await;
    let mut options = world.options();
    options.limits.connections_max = 1;
    let gateway = Gateway::start(options).await.unwrap();
    let address = gateway.addresses().tcp.unwrap();
    let mut only = Client::connect(address, "a", vec![]).await;
    let (code, retry_after_ms) = Client::raw(address).await.close_code().await;
    assert!(code == Code::BUSY && retry_after_ms > 0);
    assert_eq!(only.put("d", "x").await.2, applied(1));
    let mut options = world.options();
    options.tcp = Some(address);
    let error = Gateway::start(options).await.unwrap_err();
    assert!(matches!(error, GatewayError::PortTaken { .. }) && error.to_string().contains(&address.to_string()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_closes_sessions_and_heals() {
    let world = World::start().await;
    let mut options = world.options();
    options.limits.outage_after = Duration::from_millis(500);
    let gateway = Gateway::start(options).await.unwrap();
    let address = gateway.addresses().tcp.unwrap();
    let mut client = Client::connect(address, "c", vec![]).await;
    assert_eq!(client.put("d", "one").await.2, applied(1));
    let pid = world.nats.pid().to_string();
    let signal = |name: &str| {
        assert!(std::process::Command::new("kill").args([name, &pid]).status().unwrap().success());
    };
    signal("-STOP");
    // On a busy machine the signal takes a moment.
    let answers = || fieldstream_nats::last_sequence(&world.connection, fieldstream_nats::Log::Events, 0);
    while tokio::time::timeout(Duration::from_millis(300), answers()).await.is_ok() {}
    client.instruct("d", &put("two"), AckLevel::Applied).await;
    let (code, retry_after_ms) = client.close_code().await;
    assert!(code == Code::OUTAGE && retry_after_ms > 0);
    let mut early = Client::raw(address).await;
    early.hello("e", None, vec![]).await;
    assert_eq!(early.close_code().await.0, Code::OUTAGE);
    signal("-CONT");
    let deadline = Instant::now() + WAIT;
    let mut again = loop {
        let mut again = Client::raw(address).await;
        again.number = 2;
        again.hello("c", None, vec![]).await;
        let payload = again.next().await;
        if matches!(FromServer::decode(&payload), Ok(FromServer::Welcome(_))) {
            break again;
        }
        assert!(Instant::now() < deadline, "still out");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    again.send_number(2, "d", &put("two"), AckLevel::Applied, true).await;
    assert_eq!(again.outcome().await.2, applied(2), "applied once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_events_log_that_cannot_be_read_stops_the_gateway() {
    let world = World::start().await;
    let mut gateway = world.gateway().await;
    let mut client = Client::connect(gateway.addresses().tcp.unwrap(), "c", vec![]).await;
    assert_eq!(client.put("d", "x").await.2, applied(1));
    let writer = fieldstream_nats::BatchWriter::new(&world.connection, fieldstream_nats::Log::Events, 0);
    let sequence = writer.append(bytes::Bytes::from_static(&[0x92, 99, 0x90])).await.unwrap();
    let error = tokio::time::timeout(WAIT, gateway.failed()).await.unwrap();
    assert!(matches!(error, GatewayError::Undecodable { sequence: at, .. } if at == sequence), "{error}");
    gateway.stop(Duration::from_secs(1)).await;
    // Another one does not even start.
    let error = Gateway::start(world.options()).await.unwrap_err();
    assert!(matches!(error, GatewayError::Undecodable { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instructions_log_that_went_backwards_is_not_written_to() {
    let world = World::start().await;
    let gateway = world.gateway().await;
    let mut client = Client::connect(gateway.addresses().tcp.unwrap(), "c", vec![]).await;
    assert_eq!(client.put("d", "x").await.2, applied(1));
    gateway.stop(Duration::from_secs(5)).await;
    // The events name an instruction message that the log does not have.
    world.stored.lock().unwrap().announce_checkpoint_at = Some(99);
    let error = Gateway::start(world.options()).await.unwrap_err();
    assert!(matches!(error, GatewayError::WentBackwards { last: 1, known: 99, .. }), "{error}");
}
