use super::*;
use fieldstream_shared::document::Body;
use fieldstream_shared::frame::encode_document;
use fieldstream_shared::outcome::{AckLevel, Outcome};
use tokio::sync::oneshot;

const SECOND: Duration = Duration::from_secs(1);
const SERVER_US: u64 = 1_800_000_000_000_000;

struct Bench {
    session: Session,
    now: Instant,
}

impl Bench {
    fn new() -> Bench {
        let now = Instant::now();
        let numbers = Numbers::new(numbers::Restored { epoch: 7, ..Default::default() }, false);
        let session = Session::new(ClientId::new("c").unwrap(), Some("secret".into()), 77, numbers, now);
        Bench { session, now }
    }

    /// A bench with a session that was welcomed, its greeting already sent.
    fn up() -> Bench {
        let mut bench = Bench::new();
        bench.session.connected(bench.now, bench.now + SECOND);
        bench.welcome();
        bench.sent();
        bench
    }

    fn welcome(&mut self) {
        let limits = Limits { window: 32, frame_bytes: 1 << 18, watches: 100, keepalive_ms: 30_000 };
        self.take(FromServer::Welcome(Welcome { session: 1, limits, time_us: SERVER_US, log_id: 1 })).unwrap();
    }

    fn take(&mut self, frame: FromServer<'_>) -> Result<(), End> {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.session.handle_bytes(self.now, &bytes)
    }

    fn submit(&mut self) -> oneshot::Receiver<Result<crate::Receipt, ClientError>> {
        let document = DocumentId::new("d").unwrap();
        let instruction = Instruction {
            document,
            if_revision: None,
            operation: Box::from([0xc0]),
            ack: AckLevel::Applied,
            traced: false,
        };
        let (waiter, receiver) = oneshot::channel();
        assert!(self.session.submit(&instruction, waiter).unwrap().is_none());
        receiver
    }

    /// What is sent now, as the names of the frames.
    fn sent(&mut self) -> Vec<String> {
        self.session.poll(self.now).unwrap();
        let mut out = Vec::new();
        self.session.take_outbox(self.now, &mut out);
        let mut deframer = Deframer::default();
        deframer.push(&out);
        let mut frames = Vec::new();
        while let Some(payload) = deframer.next(1 << 20).unwrap() {
            frames.push(match FromClient::decode(payload).unwrap() {
                FromClient::Hello(h) => {
                    assert_eq!((h.protocol, h.client, h.token, h.epoch), (1, "c", Some("secret"), 7));
                    format!("hello {} {}", h.sent_upto, h.watches.len())
                }
                FromClient::Instruct(i) => format!("instruct {}{}", i.number, if i.resent { " again" } else { "" }),
                FromClient::Watch(w) => format!("watch {}", w.document),
                FromClient::Unwatch { document } => format!("unwatch {document}"),
                FromClient::Get { request, .. } => format!("get {request}"),
                FromClient::List { request, .. } => format!("list {request}"),
                FromClient::Ping { .. } | FromClient::PingClock { .. } => "ping".into(),
                FromClient::Sync { request } => format!("sync {request}"),
                FromClient::Bye => "bye".into(),
            });
        }
        frames
    }
}

#[test]
fn a_session_begins_with_hello_and_resumes_with_what_is_open() {
    let mut bench = Bench::new();
    let mut pending = bench.submit();
    bench.session.connected(bench.now, bench.now + SECOND);
    assert_eq!(bench.sent(), ["hello 0 0"], "instructions wait for the window of the welcome");
    bench.welcome();
    assert_eq!(bench.sent(), ["instruct 1"]);
    let (answer, _got) = oneshot::channel();
    bench.session.ask(Request::Get { document: DocumentId::new("d").unwrap(), answer });
    bench.session.watch(&DocumentId::new("w").unwrap(), WatchMode::Changes).unwrap();
    assert_eq!(bench.sent(), ["get 1", "watch w"]);
    bench.session.disconnected();
    assert!(!bench.session.status().connected);
    bench.session.connected(bench.now, bench.now + SECOND);
    assert_eq!(bench.sent(), ["hello 1 1", "get 1"]);
    bench.welcome();
    assert_eq!(bench.sent(), ["instruct 1 again"]);
    assert_eq!(bench.session.status(), Status { connected: true, unresolved: 1, reconnects: 1 });
    let outcome = Some(Outcome::Applied { revision: 3 });
    bench.take(FromServer::Outcome { epoch: 7, number: 1, level: AckLevel::Applied, outcome }).unwrap();
    assert_eq!(pending.try_recv().unwrap().unwrap().revision, Some(3));
}

#[test]
fn watches_beyond_the_first_page_follow_hello() {
    let mut bench = Bench::new();
    let mut handles = Vec::new();
    for i in 0..HELLO_WATCHES_MAX + 2 {
        let id = DocumentId::new(&format!("d{i:03}")).unwrap();
        handles.push(bench.session.watch(&id, WatchMode::Changes).unwrap());
    }
    bench.session.connected(bench.now, bench.now + SECOND);
    assert_eq!(bench.sent(), ["hello 0 128", "watch d128", "watch d129"]);
}

#[test]
fn a_pause_holds_new_instructions_until_resume_or_its_end() {
    let mut bench = Bench::up();
    bench.take(FromServer::Pause { retry_after_ms: 500 }).unwrap();
    let _pending = bench.submit();
    assert_eq!(bench.sent(), [""; 0]);
    bench.take(FromServer::Resume).unwrap();
    assert_eq!(bench.sent(), ["instruct 1"]);
    bench.take(FromServer::Pause { retry_after_ms: 500 }).unwrap();
    let _pending = bench.submit();
    let due = bench.session.poll(bench.now).unwrap().unwrap();
    assert_eq!(due, bench.now + Duration::from_millis(500));
    bench.now = due;
    assert_eq!(bench.sent(), ["instruct 2"]);
}

#[test]
fn silence_is_answered_with_pings_and_then_with_the_end() {
    let mut bench = Bench::up();
    let mut pings = 0;
    let end = loop {
        match bench.session.poll(bench.now) {
            Ok(due) => bench.now = due.unwrap(),
            Err(end) => break end,
        }
        let mut out = Vec::new();
        bench.session.take_outbox(bench.now, &mut out);
        pings += usize::from(!out.is_empty());
        if pings == 5 {
            bench.take(FromServer::Pong { nonce: 1, time_us: 1 }).unwrap();
        }
        assert!(pings < 20);
    };
    assert!(matches!(end, End::Broken(why) if why.contains("nothing was heard")));
}

#[test]
fn silence_while_paused_counts_from_the_end_of_the_pause() {
    let mut bench = Bench::up();
    let keepalive = 30 * SECOND;
    let paused = Duration::from_secs(100);
    bench.take(FromServer::Pause { retry_after_ms: paused.as_millis() as u64 }).unwrap();
    let begun = bench.now;
    let end = loop {
        match bench.session.poll(bench.now) {
            Ok(due) => bench.now = due.unwrap(),
            Err(end) => break end,
        }
        bench.session.take_outbox(bench.now, &mut Vec::new());
    };
    assert!(matches!(end, End::Broken(_)));
    assert_eq!(bench.now, begun + paused + keepalive);
    let mut bench = Bench::up();
    bench.take(FromServer::Pause { retry_after_ms: paused.as_millis() as u64 }).unwrap();
    bench.take(FromServer::Resume).unwrap();
    assert!(bench.session.poll(bench.now + keepalive).is_err(), "an ended pause excuses nothing");
}

#[test]
fn who_waits_for_an_answer_finds_a_dead_connection_sooner() {
    let mut bench = Bench::up();
    // Nothing of the silence before counts.
    bench.now += SECOND;
    let _outcome = bench.submit();
    let begun = bench.now;
    assert_eq!(bench.sent(), ["instruct 1"]);
    bench.now += ASK_ALIVE;
    assert_eq!(bench.sent(), ["ping"]);
    bench.now = begun + WAIT_SILENT - Duration::from_millis(1);
    bench.session.poll(bench.now).unwrap();
    // An answer to the ping, and it waits on.
    bench.take(FromServer::Pong { nonce: 1, time_us: SERVER_US }).unwrap();
    bench.session.poll(bench.now).unwrap();
    bench.now += WAIT_SILENT - Duration::from_millis(1);
    bench.session.poll(bench.now).unwrap();
    bench.now += Duration::from_millis(1);
    assert!(matches!(bench.session.poll(bench.now), Err(End::Broken(_))));
}

#[test]
fn who_waits_for_a_watch_to_begin_does_so_too() {
    let mut bench = Bench::up();
    let document = DocumentId::new("d").unwrap();
    let _opening = bench.session.watch(&document, WatchMode::Changes).unwrap();
    bench.session.poll(bench.now).unwrap();
    bench.now += WAIT_SILENT;
    assert!(matches!(bench.session.poll(bench.now), Err(End::Broken(_))));
    let mut bench = Bench::up();
    let _opening = bench.session.watch(&document, WatchMode::Changes).unwrap();
    bench.take(FromServer::Refused { request: 0, document: "d", code: Code::FORBIDDEN }).unwrap();
    bench.session.poll(bench.now).unwrap();
    bench.now += WAIT_SILENT;
    assert!(bench.session.poll(bench.now).is_ok(), "it has its answer");
}

#[test]
fn each_connection_says_which_one_it_is() {
    let mut bench = Bench::new();
    for number in 1..=2 {
        bench.session.connected(bench.now, bench.now + SECOND);
        let mut out = Vec::new();
        bench.session.take_outbox(bench.now, &mut out);
        let Ok(FromClient::Hello(hello)) = FromClient::decode(&out[4..]) else { panic!("no HELLO") };
        assert_eq!(hello.attempt, Attempt { instance: 77, number });
        bench.session.disconnected();
    }
}

#[test]
fn a_server_that_reads_nothing_is_waited_for() {
    let mut bench = Bench::up();
    let _outcome = bench.submit();
    bench.sent();
    bench.take(FromServer::Pause { retry_after_ms: 1_000 }).unwrap();
    bench.now += SECOND + WAIT_SILENT + SECOND;
    bench.session.poll(bench.now).unwrap();
    bench.take(FromServer::Resume).unwrap();
    bench.session.poll(bench.now).unwrap();
    bench.now += WAIT_SILENT;
    assert!(bench.session.poll(bench.now).is_err());
}

#[test]
fn a_server_that_does_not_welcome_is_left() {
    let mut bench = Bench::new();
    bench.session.connected(bench.now, bench.now + SECOND);
    assert_eq!(bench.session.poll(bench.now), Ok(Some(bench.now + SECOND)));
    assert_eq!(bench.session.poll(bench.now + SECOND), Err(End::TimedOut));
}

#[test]
fn what_the_server_sends_decides_about_the_connection() {
    let mut bench = Bench::up();
    // A frame of a newer server: tag 99 and something in it.
    bench.session.handle_bytes(bench.now, &[0, 0, 0, 3, 0x92, 99, 0xc3]).unwrap();
    let closed = bench.take(FromServer::Close { code: Code::BUSY, reason: "later", retry_after_ms: 9 });
    let retry_after = Duration::from_millis(9);
    assert_eq!(closed, Err(End::Closed { code: Code::BUSY, reason: "later".into(), retry_after }));
    let broken = [&[0, 0, 0, 1, 0xc0][..], &[0xff, 0xff, 0xff, 0xff], &[0, 0, 0, 2, 0x91, 66], &[0, 0, 0, 1, 0x90]];
    for bytes in broken {
        let mut bench = Bench::up();
        assert!(matches!(bench.session.handle_bytes(bench.now, bytes), Err(End::Broken(_))), "{bytes:?}");
    }
}

#[test]
fn a_client_stays_away_after_what_a_repetition_would_meet_again() {
    let last: Vec<u16> = (0..u16::MAX).filter(|number| is_final(Code(*number))).collect();
    assert_eq!(last, [100, 101, 102, 103, 104, 105, 106, 107, 108, 111]);
}

#[test]
fn requests_are_answered_refused_or_asked_again() {
    let mut bench = Bench::up();
    let id = DocumentId::new("d").unwrap();
    let (answer, mut got) = oneshot::channel();
    bench.session.ask(Request::Get { document: id.clone(), answer });
    let body = Body::Text("x".repeat(100_000));
    let document = fieldstream_shared::document::Document { revision: 1, time_us: 2, body };
    let mut bytes = Vec::new();
    encode_document(Some(1), "d", &document, &mut bytes);
    for chunk in bytes.chunks(1000) {
        bench.session.handle_bytes(bench.now, chunk).unwrap();
    }
    assert_eq!(got.try_recv().unwrap(), Ok(document));
    let (answer, mut got) = oneshot::channel();
    bench.session.ask(Request::Get { document: id, answer });
    assert_eq!(bench.sent(), ["get 1", "get 2"]);
    bench.take(FromServer::Refused { request: 2, document: "d", code: Code::UNAVAILABLE }).unwrap();
    assert_eq!(bench.sent(), [""; 0]);
    bench.now += ASK_AGAIN;
    assert_eq!(bench.sent(), ["get 2"]);
    bench.take(FromServer::Refused { request: 2, document: "d", code: Code::FORBIDDEN }).unwrap();
    assert_eq!(got.try_recv().unwrap(), Err(ClientError::Refused(Code::FORBIDDEN)));
    let (answer, mut synced) = oneshot::channel();
    bench.session.ask(Request::Sync { answer });
    bench.take(FromServer::Listed { request: 3, documents: vec![] }).unwrap();
    assert!(matches!(synced.try_recv().unwrap(), Err(ClientError::Protocol(_))), "an answer to something else");
}

#[test]
fn misfits_are_asked_about_one_at_a_time() {
    let mut bench = Bench::up();
    let id = DocumentId::new("d").unwrap();
    bench.session.watch(&id, WatchMode::Changes).unwrap();
    bench.sent();
    let version = fieldstream_shared::change::Version { revision: 1, state_hash: 0, time_us: 0 };
    let kind = fieldstream_shared::document::Kind::Text;
    let wrong =
        fieldstream_shared::frame::Snapshot { document: "d", version, kind, total_bytes: 1, offset: 0, piece: b"x" };
    for _ in 0..100 {
        bench.take(FromServer::Snapshot(wrong.clone())).unwrap();
    }
    assert_eq!(bench.sent(), ["watch d"]);
    bench.now += ASK_AGAIN;
    assert_eq!(bench.sent(), ["watch d"]);
}

#[test]
fn a_new_epoch_takes_a_new_hello() {
    let mut bench = Bench::up();
    let _pending = bench.submit();
    bench.sent();
    let outcome = Some(Outcome::Refused(Code::STALE_EPOCH));
    bench.take(FromServer::Outcome { epoch: 7, number: 1, level: AckLevel::Applied, outcome }).unwrap();
    assert_eq!(bench.session.poll(bench.now), Err(End::NewEpoch));
    bench.session.disconnected();
    assert!(bench.session.take_epoch(1_000));
    assert_eq!(bench.session.numbers.epoch(), SERVER_US, "a clock that was never set does not count");
    assert!(!bench.session.take_epoch(SERVER_US + 1_000_000_000));
    assert_eq!(bench.session.numbers.epoch(), SERVER_US + 1_000_000_000);
}

#[test]
fn a_refusal_that_came_before_anybody_asked_is_kept() {
    let mut bench = Bench::up();
    drop(bench.submit());
    bench.sent();
    let outcome = Some(Outcome::Refused(Code::CONFLICT));
    bench.take(FromServer::Outcome { epoch: 7, number: 1, level: AckLevel::Applied, outcome }).unwrap();
    assert_eq!(bench.session.late.subscribe().0.len(), 1);
}

#[test]
fn failing_for_good_ends_every_call() {
    let mut bench = Bench::up();
    let mut pending = bench.submit();
    let id = DocumentId::new("d").unwrap();
    let opening = bench.session.watch(&id, WatchMode::Changes).unwrap();
    let error = ClientError::Closed { code: Code::TAKEN_OVER, reason: "another".into() };
    bench.session.fail(&error);
    assert_eq!(pending.try_recv().unwrap(), Err(error.clone()));
    assert_eq!(opening.opened.unwrap().try_recv().unwrap(), Err(error.clone()));
    assert!(matches!(bench.session.next_event(&id, opening.handle), Err(e) if e == error));
    assert!(matches!(bench.session.watch(&id, WatchMode::Changes), Err(e) if e == error));
    bench.session.fail(&ClientError::Ended);
    assert_eq!(bench.session.failed(), Some(&error), "the first reason counts");
}
