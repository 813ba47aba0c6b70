//! The client over real sockets, against a tiny server that fails on request.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod fake;
mod state_file;

use fake::Fake;
use fieldstream_client::{
    AckLevel, Body, Client, ClientError, ClientOptions, Code, Edit, How, Operation, QuicSocket, Watch, WatchEvent,
    WatchMode,
};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

fn options(fake: &Fake) -> ClientOptions {
    ClientOptions::default().ca_file(&fake.ca_file).connect_timeout(Duration::from_secs(5))
}

async fn connect(url: &str, fake: &Fake) -> Client {
    Client::connect(url, options(fake)).await.unwrap()
}

async fn refused(url: &str, options: ClientOptions) -> ClientError {
    Client::connect(url, options).await.err().unwrap()
}

fn append(text: &str) -> Operation {
    Operation::Append(text.into())
}

/// Takes events until one is of this revision.
async fn until(watch: &mut Watch, revision: u64) -> Vec<WatchEvent> {
    let mut events = Vec::new();
    let taken = tokio::time::timeout(PATIENCE, async {
        loop {
            let event = watch.next().await.unwrap();
            let reached = match &event {
                WatchEvent::Snapshot { document, .. } => document.revision,
                WatchEvent::Updated { version, .. } => version.revision,
                WatchEvent::Resumed => 0,
            };
            events.push(event);
            if reached >= revision {
                return;
            }
        }
    });
    assert!(taken.await.is_ok(), "the last events were {:?}", events.last());
    events
}

/// Waits until something is so.
async fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "never: {what}");
}

#[tokio::test]
async fn every_transport_carries_everything() {
    let fake = Fake::start().await;
    for url in [&fake.tcp, &fake.tls, &fake.quic] {
        let client = connect(url, &fake).await;
        let id = format!("doc/{}", url.split(':').next().unwrap());
        let mut watch = client.watch(&id).await.unwrap();
        assert_eq!(watch.document().revision, 0);
        let receipt = client.instruct(&id, Operation::PutText("hällo".into())).await.unwrap();
        assert_eq!((receipt.number, receipt.revision), (1, Some(1)));
        let edit = Edit { position: 1, deleted: 1, inserted: "e".into() };
        client.instruct(&id, Operation::Splice(vec![edit])).await.unwrap();
        let long = "x".repeat(200_000);
        client.instruct(&id, append(&long)).await.unwrap();
        let events = until(&mut watch, 3).await;
        assert!(matches!(events[0], WatchEvent::Snapshot { recovered: false, .. }));
        let expect = Body::Text(format!("hello{long}"));
        assert_eq!(watch.document().body, expect);
        assert_eq!(client.get(&id).await.unwrap().body, expect);
        assert_eq!(client.watch(&id).await.unwrap().document().body, expect);
        client.close(PATIENCE).await.unwrap();
        assert_eq!(watch.next().await, Err(ClientError::Ended));
    }
    assert_eq!(fake.with(|state| state.byes), 3);
}

#[tokio::test]
async fn a_watch_tells_first_the_state_and_then_every_change() {
    let fake = Fake::start().await;
    let client = connect(&fake.tcp, &fake).await;
    client.instruct("d", append("a")).await.unwrap();
    let mut watch = client.watch("d").await.unwrap();
    let mut bodies = client.watch_with("d", WatchMode::Bodies).await.unwrap();
    for _ in 0..50 {
        client.instruct("d", append("b")).await.unwrap();
    }
    let first = watch.next().await.unwrap();
    assert!(matches!(first, WatchEvent::Snapshot { recovered: false, document } if document.revision == 1));
    for expect in 2..=51 {
        let event = watch.next().await.unwrap();
        let WatchEvent::Updated { version, client: by, number, change } = event else { panic!("{event:?}") };
        assert_eq!((version.revision, by, number, change.len()), (expect, client.id().clone(), expect, 1));
    }
    for expect in 1..=51 {
        let event = bodies.next().await.unwrap();
        assert!(matches!(event, WatchEvent::Snapshot { document, .. } if document.revision == expect));
    }
}

#[tokio::test]
async fn instructions_survive_cuts_once_and_in_order() {
    let fake = Fake::start().await;
    for url in [&fake.tcp, &fake.quic] {
        let client = connect(url, &fake).await;
        let watcher = connect(url, &fake).await;
        let id = format!("doc/{}", url.split(':').next().unwrap());
        let mut watch = watcher.watch(&id).await.unwrap();
        let mut pending = Vec::new();
        for i in 0..120 {
            if i % 40 == 20 {
                fake.with(|state| state.cut_after = Some(7));
            }
            if i == 60 {
                watcher.interrupt();
            }
            let how = How { ack: AckLevel::Stored, ..How::default() };
            pending.push(client.submit(&id, append(&format!("{i},")), how).await.unwrap());
        }
        for (i, pending) in pending.into_iter().enumerate() {
            let receipt = pending.await.unwrap();
            assert_eq!((receipt.number, receipt.revision), (i as u64 + 1, Some(i as u64 + 1)));
        }
        let expect = Body::Text((0..120).map(|i| format!("{i},")).collect());
        assert_eq!(fake.document(&id).body, expect);
        let events = until(&mut watch, 120).await;
        assert_eq!(watch.document().body, expect);
        assert!(events.iter().any(|e| matches!(e, WatchEvent::Resumed)), "{events:?}");
        assert_eq!(client.status().unresolved, 0);
        assert!(client.status().reconnects >= 1 && watcher.status().reconnects >= 1);
    }
}

#[tokio::test]
async fn refusals_come_back_as_they_are() {
    let fake = Fake::start().await;
    let client = connect(&fake.tcp, &fake).await;
    let how = How { if_revision: Some(9), ack: AckLevel::Applied };
    let conflict = client.instruct_with("d", append("x"), how).await;
    assert_eq!(conflict, Err(ClientError::Refused(Code::CONFLICT)));
    for (operation, code) in [
        (Operation::Splice(vec![]), Code::NO_EDITS),
        (append(&"x".repeat(300_000)), Code::TOO_LARGE),
        (Operation::Delete, Code::NOT_FOUND),
    ] {
        assert_eq!(client.instruct("d", operation).await, Err(ClientError::Refused(code)));
    }
    assert!(matches!(client.instruct("", append("x")).await, Err(ClientError::InvalidId(_))));
    assert!(matches!(client.watch("a\nb").await, Err(ClientError::InvalidId(_))));
    assert_eq!(client.watch("secret/x").await.err(), Some(ClientError::Refused(Code::FORBIDDEN)));
    client.instruct("d", append("x")).await.unwrap();
    assert_eq!(client.status().reconnects, 0, "none of it cost the connection");
}

#[tokio::test]
async fn a_refusal_after_logged_is_delivered() {
    let fake = Fake::start().await;
    fake.with(|state| state.log_first = true);
    let client = connect(&fake.tcp, &fake).await;
    let mut late = client.late_refusals();
    let how = How { if_revision: Some(9), ack: AckLevel::Logged };
    let receipt = client.instruct_with("d", append("x"), how).await.unwrap();
    assert_eq!((receipt.level, receipt.revision), (AckLevel::Logged, None));
    let refusal = late.next().await.unwrap();
    assert_eq!((refusal.number, refusal.code), (receipt.number, Code::CONFLICT));
    client.close(PATIENCE).await.unwrap();
    assert_eq!(late.next().await, None);
    assert_eq!(fake.with(|state| state.arrived.len()), 2, "closing passes what may not be applied yet");
    assert_eq!(fake.document("d").revision, 0, "without changing anything");
}

#[tokio::test]
async fn a_stale_epoch_is_replaced_without_the_caller_noticing() {
    let fake = Fake::start().await;
    let client = connect(&fake.tcp, &fake).await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros() as u64;
    fake.with(|state| state.stale_below = now + 100);
    let mut pending = Vec::new();
    for i in 0..50 {
        pending.push(client.submit("d", append(&format!("{i},")), How::default()).await.unwrap());
    }
    for pending in pending {
        pending.await.unwrap();
    }
    let expect = Body::Text((0..50).map(|i| format!("{i},")).collect());
    assert_eq!(fake.document("d").body, expect);
}

#[tokio::test]
async fn an_epoch_far_behind_takes_the_servers_time_or_is_patient() {
    const YEAR_US: u64 = 31_557_600_000_000;
    let fake = Fake::start().await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros() as u64;
    fake.with(|state| (state.stale_below, state.time_us) = (now + YEAR_US, now + YEAR_US));
    let client = connect(&fake.tcp, &fake).await;
    tokio::time::timeout(PATIENCE, client.instruct("d", append("x"))).await.unwrap().unwrap();
    assert_eq!(fake.with(|state| state.hellos.len()), 2, "the server knows the time");
    fake.with(|state| state.stale_below = now + 100 * YEAR_US);
    let waiting = client.submit("d", append("y"), How::default()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let hellos = fake.with(|state| state.hellos.len());
    assert!((4..20).contains(&hellos), "{hellos} connections in 2 s");
    fake.with(|state| state.stale_below = 0);
    tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap();
    assert_eq!(fake.document("d").body, Body::Text("xy".into()));
}

#[tokio::test]
async fn listings_go_on_page_by_page() {
    let fake = Fake::start().await;
    let client = connect(&fake.tcp, &fake).await;
    let mut pending = Vec::new();
    for i in 0..2000 {
        pending.push(client.submit(&format!("l/{i:04}"), append("x"), How::default()).await.unwrap());
    }
    pending.push(client.submit("m", append("x"), How::default()).await.unwrap());
    for pending in pending {
        pending.await.unwrap();
    }
    let listed = client.list("l/").await.unwrap();
    assert_eq!(listed.len(), 2000, "two full pages and an empty one");
    assert!(listed.windows(2).all(|pair| pair[0].document < pair[1].document));
    assert_eq!(client.list("").await.unwrap().len(), 2001);
    assert_eq!(client.list(&"x".repeat(500)).await.unwrap().len(), 0);
    assert_eq!(client.get("nothing").await.unwrap().revision, 0);
}

#[tokio::test]
async fn the_first_connection_fails_fast_and_says_why() {
    let fake = Fake::start().await;
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let check = |error: ClientError, word: &str| assert!(error.to_string().contains(word), "{word}: {error}");
    check(refused(&format!("tcp://127.0.0.1:{closed}"), options(&fake)).await, "is the gateway running");
    check(refused("nonsense", options(&fake)).await, "write quic://");
    let by_address = |url: &str| url.replace("localhost", "127.0.0.1");
    check(refused(&by_address(&fake.tls), options(&fake)).await, "is not for the name 127.0.0.1");
    check(refused(&by_address(&fake.quic), options(&fake)).await, "is not for the name 127.0.0.1");
    let other = Fake::start().await;
    check(refused(&fake.tls, options(&other)).await, "not issued by the given CA");
    check(refused(&fake.quic, options(&other)).await, "not issued by the given CA");
    fake.with(|state| state.mute = true);
    let short = options(&fake).connect_timeout(Duration::from_millis(100));
    assert_eq!(refused(&fake.tcp, short.clone()).await, ClientError::TimedOut);
    assert_eq!(refused(&format!("quic://localhost:{closed}"), short).await, ClientError::TimedOut);
    fake.with(|state| (state.mute, state.close_with) = (false, Some((Code::UNAUTHORIZED, 0))));
    for url in [&fake.tcp, &fake.tls, &fake.quic] {
        let error = refused(url, options(&fake)).await;
        assert_eq!(error, ClientError::Closed { code: Code::UNAUTHORIZED, reason: "as told".into() });
    }
}

#[tokio::test]
async fn who_is_taken_over_stays_away() {
    let fake = Fake::start().await;
    let first = Client::connect(&fake.tcp, options(&fake).client_id("me")).await.unwrap();
    let mut watch = first.watch("d").await.unwrap();
    watch.next().await.unwrap();
    let second = Client::connect(&fake.tcp, options(&fake).client_id("me")).await.unwrap();
    let error = watch.next().await.unwrap_err();
    assert!(matches!(error, ClientError::Closed { code: Code::TAKEN_OVER, .. }));
    assert_eq!(first.instruct("d", append("x")).await, Err(error.clone()));
    assert_eq!(first.get("d").await.err(), Some(error));
    second.instruct("d", append("x")).await.unwrap();
    assert_eq!(fake.with(|state| state.hellos.len()), 2);
}

#[tokio::test]
async fn a_lost_client_comes_back_when_the_server_lets_it() {
    let fake = Fake::start().await;
    let client = connect(&fake.tcp, &fake).await;
    fake.with(|state| state.close_with = Some((Code::SHUTTING_DOWN, 300)));
    fake.cut_all();
    eventually("a refused reconnect", || fake.with(|state| state.hellos.len() >= 2)).await;
    let refused_at = tokio::time::Instant::now();
    fake.with(|state| state.close_with = None);
    client.instruct("d", append("x")).await.unwrap();
    assert!(refused_at.elapsed() >= Duration::from_millis(290), "retry-after is kept to");
    fake.cut_all();
    client.get("d").await.unwrap();
    client.sync().await.unwrap();
}

#[tokio::test]
async fn silence_is_noticed_and_a_quiet_connection_is_kept() {
    let fake = Fake::start().await;
    fake.with(|state| state.keepalive_ms = 300);
    let client = connect(&fake.quic, &fake).await;
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert_eq!(client.status().reconnects, 0);
    assert!(client.status().connected);
}

#[tokio::test]
async fn closing_waits_for_what_is_under_way_but_not_for_ever() {
    let fake = Fake::start().await;
    let client = connect(&fake.tcp, &fake).await;
    let pending = client.submit("d", append("x"), How::default()).await.unwrap();
    client.clone().close(PATIENCE).await.unwrap();
    assert_eq!(pending.await.unwrap().revision, Some(1));
    assert_eq!(client.instruct("d", append("x")).await, Err(ClientError::Ended));
    let client = connect(&fake.tcp, &fake).await;
    fake.with(|state| state.close_with = Some((Code::OUTAGE, 60_000)));
    fake.cut_all();
    eventually("the cut is noticed", || !client.status().connected).await;
    let _pending = client.submit("d", append("x"), How::default()).await.unwrap();
    assert_eq!(client.close(Duration::from_millis(50)).await, Err(ClientError::TimedOut));
}

#[tokio::test]
async fn dropping_every_handle_ends_the_connection() {
    let fake = Fake::start().await;
    let client = connect(&fake.tcp, &fake).await;
    let pending = client.submit("d", append("x"), How::default()).await.unwrap();
    drop(client);
    assert_eq!(pending.await.unwrap().revision, Some(1), "a pending outcome keeps it");
    eventually("goodbye", || fake.with(|state| state.byes == 1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_share_a_process_and_a_quic_socket() {
    let fake = Fake::start().await;
    let socket = QuicSocket::bind(false).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..100 {
        let url = [&fake.tcp, &fake.quic][i % 2].clone();
        let options = options(&fake).quic_socket(socket.clone()).connect_timeout(PATIENCE);
        tasks.spawn(async move {
            let client = Client::connect(&url, options).await.unwrap();
            let mut watch = client.watch("shared").await.unwrap();
            client.instruct("shared", append(".")).await.unwrap();
            until(&mut watch, 100).await;
            watch.document()
        });
    }
    while let Some(document) = tasks.join_next().await {
        assert_eq!(document.unwrap().body, Body::Text(".".repeat(100)));
    }
}
