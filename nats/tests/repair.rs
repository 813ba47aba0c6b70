//! The steps of a repair, and what damage looks like, on a real nats-server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use bytes::Bytes;
use fieldstream_nats::*;
use std::path::{Path, PathBuf};
use std::time::Duration;

async fn child(directory: &Path) -> NatsChild {
    let binary = std::env::var_os("FIELDSTREAM_NATS_SERVER").map_or_else(|| "nats-server".into(), Into::into);
    let options = ChildOptions { binary, directory: directory.join("nats"), profile: Profile::Durable };
    NatsChild::start(options).await.unwrap()
}

async fn connect(nats: &NatsChild) -> Connection {
    let started = std::time::Instant::now();
    loop {
        match Connection::connect(nats.server(), "test").await {
            Ok(connection) => return connection,
            Err(error) => assert!(started.elapsed() < Duration::from_secs(20), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn write(connection: &Connection, log: Log, messages: std::ops::RangeInclusive<u8>) {
    let writer = BatchWriter::new(connection, log, 0);
    for i in messages {
        writer.append(Bytes::from(vec![i; 100])).await.unwrap();
    }
}

fn kill(nats: &NatsChild) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(nats.pid()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_log_moves_ahead_and_keeps_what_was_put_aside() {
    let dir = tempfile::tempdir().unwrap();
    let nats = child(dir.path()).await;
    let connection = connect(&nats).await;
    let topology = Topology::create(&connection, &TopologyOptions::default()).await.unwrap();
    write(&connection, Log::Instructions, 1..=20).await;
    let workshop = Workshop::new(&connection);
    workshop.close(0, topology.stream_bytes).await.unwrap();
    let late = BatchWriter::new(&connection, Log::Instructions, 0).append(Bytes::from_static(b"late")).await;
    assert_eq!(late, Err(WriteError::Disconnected), "a closed log takes nothing");
    // Every step twice, as after a repair that was killed.
    for _ in 0..2 {
        let mut seen = 0;
        let copied = workshop.put_aside(0, 15, |_| seen += 1).await.unwrap();
        assert_eq!((copied.messages, seen, copied.missing), (6, 6, vec![]));
    }
    for _ in 0..2 {
        workshop.move_ahead(Log::Instructions, 0, 1_000_000).await.unwrap();
        // An empty stream moves ahead, too.
        workshop.move_ahead(Log::Events, 0, 5_000).await.unwrap();
    }
    kill(&nats);
    let connection = connect(&nats).await;
    let workshop = Workshop::new(&connection);
    assert_eq!(last_sequence(&connection, Log::Instructions, 0).await.unwrap(), 999_999, "survives kill -9");
    assert_eq!(last_sequence(&connection, Log::Events, 0).await.unwrap(), 4_999);
    for _ in 0..2 {
        workshop.log_again(0, 1_000_000, Bytes::from_static(b"marker")).await.unwrap();
    }
    workshop.set_log_id(77).await.unwrap();
    workshop.open(0).await.unwrap();
    workshop.discard_aside(0).await.unwrap();
    workshop.discard_aside(0).await.unwrap();
    let loaded = Topology::load(&connection).await.unwrap();
    assert_eq!(loaded, Topology { log_id: 77, ..topology });
    write(&connection, Log::Instructions, 21..=21).await;
    write(&connection, Log::Events, 1..=1).await;
    let look = workshop.look(Log::Instructions, 0).await.unwrap().unwrap();
    assert_eq!((look.first, look.last, look.messages), (1_000_000, 1_000_013, 14));
    let mut reader =
        LogReader::open(&connection, Log::Instructions, 0, Start { sequence: 999_999, hash: None }).await.unwrap();
    let mut firsts = Vec::new();
    for _ in 0..14 {
        firsts.push(reader.next().await.unwrap().payload[0]);
    }
    let again: Vec<u8> = (15..=20).collect();
    assert_eq!(firsts, [&b"m"[..], &again, &again, &[21]].concat());
    assert!(workshop.message(Log::Events, 0, 5_000).await.unwrap().is_some());
    assert!(workshop.message(Log::Events, 0, 4_999).await.unwrap().is_none());
    nats.stop().await;
}

fn begun() -> RepairRecord {
    RepairRecord {
        state: RepairState::Closing,
        from_log_id: 1,
        to_log_id: 2,
        storer: 3,
        begun_us: 4,
        lanes: vec![],
        losses: vec![],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_repairs_at_once_the_earlier_one_stops() {
    let dir = tempfile::tempdir().unwrap();
    let nats = child(dir.path()).await;
    let connection = connect(&nats).await;
    Topology::create(&connection, &TopologyOptions::default()).await.unwrap();
    assert!(Claim::take_over(&connection).await.unwrap().is_none(), "there is none");
    let mut first = Claim::begin(&connection, begun()).await.unwrap();
    first.check().await.unwrap();
    let second = Claim::begin(&connection, begun()).await;
    assert!(matches!(second, Err(NatsError::OtherRepair { .. })), "one is under way: {second:?}");
    let mut second = Claim::take_over(&connection).await.unwrap().unwrap();
    assert_eq!(second.record, begun());
    assert!(matches!(first.check().await, Err(NatsError::OtherRepair { .. })));
    first.record.state = RepairState::Moving;
    let late = first.save().await;
    assert!(matches!(late, Err(NatsError::OtherRepair { .. })), "{late:?}");
    second.record.state = RepairState::Done;
    second.save().await.unwrap();
    second.check().await.unwrap();
    assert_eq!(RepairRecord::load(&connection).await.unwrap().unwrap().state, RepairState::Done);
    let third = Claim::begin(&connection, begun()).await.unwrap();
    third.check().await.unwrap();
    nats.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_repair_puts_aside_late_does_not_come_into_what_the_next_one_did() {
    let dir = tempfile::tempdir().unwrap();
    let nats = child(dir.path()).await;
    let connection = connect(&nats).await;
    let topology = Topology::create(&connection, &TopologyOptions::default()).await.unwrap();
    write(&connection, Log::Instructions, 1..=200).await;
    let workshop = Workshop::new(&connection);
    workshop.close(0, topology.stream_bytes).await.unwrap();
    let other = Workshop::new(&connection);
    let (begun, mut is_begun) = tokio::sync::mpsc::channel(1);
    let late = tokio::spawn(async move { other.put_aside(0, 1, |_| begun.try_send(()).unwrap_or_default()).await });
    is_begun.recv().await.unwrap();
    assert_eq!(workshop.put_aside(0, 1, |_| {}).await.unwrap().messages, 200);
    let late = late.await.unwrap();
    workshop.move_ahead(Log::Instructions, 0, 1_000).await.unwrap();
    workshop.log_again(0, 1_000, Bytes::from_static(b"marker")).await.unwrap();
    let look = workshop.look(Log::Instructions, 0).await.unwrap().unwrap();
    assert_eq!((look.first, look.messages), (1_000, 201), "the earlier one: {late:?}");
    nats.stop().await;
}

async fn read_to_damage(connection: &Connection, start: Start) -> LogError {
    let read = async {
        let mut reader = LogReader::open(connection, Log::Events, 0, start).await?;
        loop {
            reader.next().await?;
        }
    };
    let read: Result<Result<(), LogError>, _> = tokio::time::timeout(Duration::from_secs(20), read).await;
    read.unwrap().unwrap_err()
}

/// The stream's newest block file.
fn block(dir: &Path, stream: &str) -> PathBuf {
    let messages = dir.join("nats/store/jetstream/$G/streams").join(stream).join("msgs");
    let mut blocks: Vec<PathBuf> = std::fs::read_dir(messages).unwrap().map(|e| e.unwrap().path()).collect();
    blocks.retain(|path| path.extension().is_some_and(|e| e == "blk"));
    blocks.sort();
    blocks.pop().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_shows_in_what_a_stream_holds() {
    for clean in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let nats = child(dir.path()).await;
        let connection = connect(&nats).await;
        Topology::create(&connection, &TopologyOptions::default()).await.unwrap();
        write(&connection, Log::Events, 1..=20).await;
        if clean {
            nats.stop().await;
        } else {
            drop(nats);
        }
        let path = block(dir.path(), "EVENTS_0");
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.windows(100).position(|w| w == [10; 100]).unwrap() + 50;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let nats = child(dir.path()).await;
        let connection = connect(&nats).await;
        let look = Workshop::new(&connection).look(Log::Events, 0).await.unwrap().unwrap();
        // The server itself counts nothing as missing.
        let expected = if clean { (1, 20, 20) } else { (1, 9, 9) };
        assert_eq!((look.first, look.last, look.messages), expected);
        let holes = Workshop::new(&connection).holes(Log::Events, 0, 1, 10).await.unwrap();
        assert_eq!(holes, if clean { vec![10..=10] } else { vec![] });
        let hash = Some(fieldstream_shared::event::message_hash(&[20; 100]));
        let start = if clean { Start::default() } else { Start { sequence: 20, hash } };
        let error = read_to_damage(&connection, start).await;
        assert_eq!(error.code(), if clean { "log-hole" } else { "log-diverged" });
        nats.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_not_there_is_damage_and_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let nats = child(dir.path()).await;
    let connection = connect(&nats).await;
    Topology::create(&connection, &TopologyOptions::default()).await.unwrap();
    write(&connection, Log::Events, 1..=3).await;
    nats.stop().await;
    std::fs::remove_dir_all(dir.path().join("nats/store/jetstream/$G/streams/EVENTS_0")).unwrap();
    let nats = child(dir.path()).await;
    let connection = connect(&nats).await;
    let start = Start { sequence: 3, hash: None };
    let mut reader = LogReader::open(&connection, Log::Events, 0, start).await.unwrap();
    let error = tokio::time::timeout(Duration::from_secs(20), reader.next()).await.unwrap().unwrap_err();
    assert!(matches!(&error, LogError::Diverged { .. }), "{error}");
    assert!(error.to_string().contains("EVENTS_0") && error.to_string().contains("not there"), "{error}");
    let workshop = Workshop::new(&connection);
    assert_eq!(workshop.look(Log::Events, 0).await.unwrap(), None);
    workshop.close(0, 1 << 24).await.unwrap();
    assert!(workshop.look(Log::Events, 0).await.unwrap().is_some(), "a repair makes it anew");
    nats.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_missing_at_the_very_end_is_a_hole_before_another_follows() {
    let dir = tempfile::tempdir().unwrap();
    let nats = child(dir.path()).await;
    let connection = connect(&nats).await;
    Topology::create(&connection, &TopologyOptions::default()).await.unwrap();
    write(&connection, Log::Events, 1..=20).await;
    nats.stop().await;
    let path = block(dir.path(), "EVENTS_0");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.windows(100).position(|w| w == [20; 100]).unwrap();
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let nats = child(dir.path()).await;
    let connection = connect(&nats).await;
    assert_eq!(last_sequence(&connection, Log::Events, 0).await.unwrap(), 20);
    for at in [0, 19, 20] {
        let start = Start { sequence: at, hash: None };
        let error = read_to_damage(&connection, start).await;
        assert!(matches!(error, LogError::Hole { expected: 20, found: 21, .. }), "{at}: {error}");
    }
    assert_eq!(Workshop::new(&connection).holes(Log::Events, 0, 3, 10).await.unwrap(), [20..=20]);
    nats.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_between_opening_and_reading_is_no_hole() {
    let dir = tempfile::tempdir().unwrap();
    let nats = child(dir.path()).await;
    let connection = connect(&nats).await;
    Topology::create(&connection, &TopologyOptions::default()).await.unwrap();
    write(&connection, Log::Events, 1..=20).await;
    for (at, below, is_outrun) in [(0, 8, true), (8, 12, true), (12, 13, false)] {
        let mut reader =
            LogReader::open(&connection, Log::Events, 0, Start { sequence: at, hash: None }).await.unwrap();
        purge_below(&connection, Log::Events, 0, below).await.unwrap();
        let next = tokio::time::timeout(Duration::from_secs(20), reader.next()).await.unwrap();
        match next {
            Err(LogError::Outrun { first, .. }) if is_outrun => assert_eq!(first, below),
            // Only the message to be looked at again is gone.
            Ok(message) if !is_outrun => assert_eq!(message.sequence, 13),
            other => panic!("{at}: {other:?}"),
        }
    }
    nats.stop().await;
}
