use super::*;
use crate::tokens::TokenPolicy;
use fieldstream_shared::instruction::{Content, Operation};
use fieldstream_shared::limits::{INSTRUCTION_BYTES_MAX, WATCHES_MAX};
use fieldstream_shared::record::{Action as Recorded, Record};
use proptest::prelude::*;

const RULES: Rules =
    Rules { hello_ms: 5_000, frame_ms: 10_000, keepalive_ms: 90_000, window: 32, watches_max: 3, gateway: 77 };

fn everything() -> Rights {
    TokenPolicy::loopback_open().authorize(true, "c", None).unwrap()
}

fn site7_only() -> Rights {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "[[token]]\ntoken='t'\nclient='*'\nread=['site7/']\nwrite=['site7/']").unwrap();
    TokenPolicy::from_file(file.path(), true).unwrap().authorize(true, "c", Some("t")).unwrap()
}

fn bytes_of(frame: &FromClient<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    frame.encode(&mut out);
    out
}

fn hello<'a>() -> Hello<'a> {
    Hello {
        protocol: 1,
        client: "c",
        token: None,
        epoch: 9,
        sent_upto: 0,
        watches: vec![],
        attempt: Attempt::default(),
    }
}

fn operation(operation: Operation) -> Vec<u8> {
    let mut out = Vec::new();
    operation.write(&mut out);
    out
}

fn put() -> Vec<u8> {
    operation(Operation::PutText("hi".into()))
}

fn instruct<'a>(number: u64, settled: u64, document: &'a str, operation: &'a [u8]) -> Instruct<'a> {
    let content = Content { document, if_revision: None, operation };
    Instruct { number, settled, resent: false, traced: false, ack: AckLevel::Applied, content }
}

/// All actions that these bytes lead to, from a session that admits with `rights`.
fn run(rights: &Rights, chunks: &[&[u8]]) -> Vec<Action> {
    let mut session = Session::new(RULES, 0);
    let mut actions = Vec::new();
    for chunk in chunks {
        session.handle_bytes(1, chunk);
        while let Some(action) = session.poll(1, 77) {
            let admit = matches!(action, Action::Authenticate { .. });
            actions.push(action);
            if admit {
                session.admit(rights.clone());
            }
        }
    }
    actions
}

/// What follows a HELLO.
fn after_hello(rights: &Rights, bytes: &[u8]) -> Vec<Action> {
    let hello = bytes_of(&FromClient::Hello(hello()));
    run(rights, &[&hello, bytes]).split_off(1)
}

fn expect_close(actions: &[Action], code: Code) {
    match actions {
        [.., Action::Close { code: got, reason }] => {
            assert_eq!(*got, code, "{reason}");
            assert!(!reason.is_empty());
        }
        other => panic!("no close with {code} in {other:?}"),
    }
}

/// The only action is a frame to the client.
fn expect_frame(actions: &[Action], expect: &FromServer<'_>) {
    let [Action::Send(bytes)] = actions else { panic!("no frame but {actions:?}") };
    assert_eq!(FromServer::decode(&bytes[4..]).as_ref(), Ok(expect));
}

fn raw(payload: &[u8]) -> Vec<u8> {
    [&(payload.len() as u32).to_be_bytes()[..], payload].concat()
}

#[test]
fn broken_frames_close_with_their_code() {
    let ping = bytes_of(&FromClient::Ping { nonce: 1 });
    let bad_utf8 = raw(&[0x92, 4, 0xa2, 0xff, 0xfe]);
    let bomb = raw(&[vec![0x98, 2, 1, 1, 0, 2, 0xa1, b'd', 0xc0], vec![0x91; 3000]].concat());
    let claims = raw(&[0x92, 4, 0xdb, 0xff, 0xff, 0xff, 0xff]);
    let mut twice = bytes_of(&FromClient::Hello(hello()));
    for (bytes, before, after) in [
        (ping, Code::HELLO_EXPECTED, None),
        (raw(&[0x91, 99]), Code::UNKNOWN_FRAME, Some(Code::UNKNOWN_FRAME)),
        (raw(&[0x91, 66]), Code::UNKNOWN_FRAME, Some(Code::UNKNOWN_FRAME)),
        (raw(&[]), Code::MALFORMED_FRAME, Some(Code::MALFORMED_FRAME)),
        (raw(&[0x90]), Code::MALFORMED_FRAME, Some(Code::MALFORMED_FRAME)),
        (raw(&[0x91, 0xa1, b'x']), Code::MALFORMED_FRAME, Some(Code::MALFORMED_FRAME)),
        (raw(&[0x91, 7]), Code::MALFORMED_FRAME, Some(Code::MALFORMED_FRAME)),
        (raw(&[0x91, 9, 9]), Code::MALFORMED_FRAME, Some(Code::MALFORMED_FRAME)),
        (bad_utf8, Code::MALFORMED_FRAME, Some(Code::MALFORMED_FRAME)),
        (bomb, Code::MALFORMED_FRAME, Some(Code::MALFORMED_FRAME)),
        (claims, Code::MALFORMED_FRAME, Some(Code::MALFORMED_FRAME)),
        (vec![0xff; 4], Code::FRAME_TOO_LARGE, Some(Code::FRAME_TOO_LARGE)),
        (65_537_u32.to_be_bytes().to_vec(), Code::FRAME_TOO_LARGE, None),
    ] {
        expect_close(&run(&everything(), &[&bytes]), before);
        match after {
            Some(code) => expect_close(&after_hello(&everything(), &bytes), code),
            None => assert!(!matches!(after_hello(&everything(), &bytes).as_slice(), [Action::Close { .. }])),
        }
    }
    twice.extend(bytes_of(&FromClient::Hello(hello())));
    expect_close(&run(&everything(), &[&twice]), Code::SECOND_HELLO);
}

#[test]
fn hello_is_checked() {
    let check =
        |hello: Hello<'_>, code| expect_close(&run(&everything(), &[&bytes_of(&FromClient::Hello(hello))]), code);
    check(Hello { protocol: 2, ..hello() }, Code::UNSUPPORTED_PROTOCOL);
    check(Hello { protocol: 0, ..hello() }, Code::UNSUPPORTED_PROTOCOL);
    check(Hello { client: "", ..hello() }, Code::INVALID_CLIENT_ID);
    check(Hello { client: "a\nb", ..hello() }, Code::INVALID_CLIENT_ID);
    let long = "x".repeat(129);
    check(Hello { client: &long, ..hello() }, Code::INVALID_CLIENT_ID);
}

#[test]
fn silence_and_trickles_end_in_time() {
    let mut session = Session::new(RULES, 100);
    assert_eq!(session.handle_time(5_099), None);
    expect_close(&session.handle_time(5_100).into_iter().collect::<Vec<_>>(), Code::TIMED_OUT);

    let mut session = Session::new(RULES, 0);
    session.handle_bytes(0, &bytes_of(&FromClient::Hello(hello())));
    assert!(matches!(session.poll(0, 0), Some(Action::Authenticate { .. })));
    session.admit(everything());
    assert_eq!(session.poll(0, 0), None);
    assert_eq!(session.deadline_ms(), 90_000);
    let ping = bytes_of(&FromClient::Ping { nonce: 1 });
    for (i, byte) in ping[..ping.len() - 1].iter().enumerate() {
        session.handle_bytes(1_000 + i as u64 * 1_000, &[*byte]);
        assert_eq!(session.poll(1_000 + i as u64 * 1_000, 0), None);
    }
    assert_eq!(session.deadline_ms(), 11_000, "bytes that trickle do not move it");
    session.excuse(10_000);
    assert_eq!(session.deadline_ms(), 20_000);
    expect_close(&session.handle_time(20_000).into_iter().collect::<Vec<_>>(), Code::TIMED_OUT);

    let mut session = Session::new(RULES, 0);
    session.handle_bytes(0, &bytes_of(&FromClient::Hello(hello())));
    session.poll(0, 0);
    session.admit(everything());
    session.poll(0, 0);
    expect_close(&session.handle_time(90_000).into_iter().collect::<Vec<_>>(), Code::IDLE);
    assert_eq!(session.handle_time(190_000), None, "closed is closed");
}

#[test]
fn a_stream_that_ends_inside_a_frame_is_told_so() {
    let end = |bytes: &[u8]| {
        let mut session = Session::new(RULES, 0);
        session.handle_bytes(0, bytes);
        session.handle_end();
        session.poll(0, 0)
    };
    assert_eq!(end(&[]), Some(Action::Left));
    expect_close(&end(&[0, 0]).into_iter().collect::<Vec<_>>(), Code::MALFORMED_FRAME);
    assert_eq!(after_hello(&everything(), &bytes_of(&FromClient::Bye)), [Action::Left]);
}

#[test]
fn numbers_stay_in_the_window() {
    let put = put();
    let after = |number, settled| {
        after_hello(&everything(), &bytes_of(&FromClient::Instruct(instruct(number, settled, "d", &put))))
    };
    for (number, settled) in [(0, 0), (1, 2), (33, 1), (u64::MAX, 1), (u64::MAX - 32, u64::MAX)] {
        expect_close(&after(number, settled), Code::OUTSIDE_WINDOW);
    }
    for (number, settled) in [(1, 1), (32, 1), (u64::MAX, u64::MAX), (u64::MAX, u64::MAX - 31)] {
        assert!(matches!(after(number, settled)[..], [Action::Log { .. }]), "{number} {settled}");
    }
}

/// A fresh number that must be refused is refused at once, and nothing is logged; a number that
/// was sent before is logged as a refusal.
fn check_refusal(rights: &Rights, document: &str, operation: &[u8], code: Code) {
    let fresh = instruct(4, 1, document, operation);
    let outcome =
        FromServer::Outcome { epoch: 9, number: 4, level: AckLevel::Applied, outcome: Some(Outcome::Refused(code)) };
    expect_frame(&after_hello(rights, &bytes_of(&FromClient::Instruct(fresh))), &outcome);
    let flagged = bytes_of(&FromClient::Instruct(Instruct { resent: true, ..fresh }));
    let known = Hello { sent_upto: 4, ..hello() };
    let claimed = [bytes_of(&FromClient::Hello(known)), bytes_of(&FromClient::Instruct(fresh))].concat();
    for actions in [after_hello(rights, &flagged), run(rights, &[&claimed]).split_off(1)] {
        if code == Code::INVALID_DOCUMENT_ID {
            expect_frame(&actions, &outcome);
            continue;
        }
        let [Action::Log { record, number: 4, settled: 1, .. }] = &actions[..] else { panic!("{actions:?}") };
        let record = Record::decode(record).unwrap();
        assert_eq!(record.action, Recorded::Refuse(code));
        assert!(record.resent);
    }
}

#[test]
fn instructions_are_refused_by_name() {
    let all = everything();
    check_refusal(&all, "", &put(), Code::INVALID_DOCUMENT_ID);
    check_refusal(&all, &"x".repeat(201), &put(), Code::INVALID_DOCUMENT_ID);
    check_refusal(&all, "a\u{7}", &put(), Code::INVALID_DOCUMENT_ID);
    check_refusal(&site7_only(), "site8/a", &put(), Code::FORBIDDEN);
    check_refusal(&all, "d", &operation(Operation::Splice(vec![])), Code::NO_EDITS);
    let edit = fieldstream_shared::change::Edit { position: 3, deleted: 0, inserted: String::new() };
    check_refusal(&all, "d", &operation(Operation::Splice(vec![edit])), Code::EMPTY_EDIT);
    check_refusal(&all, "d", &operation(Operation::PutText("x".repeat(INSTRUCTION_BYTES_MAX))), Code::TOO_LARGE);
    check_refusal(&all, "d", &[0x91, 0x63], Code::INVALID_INSTRUCTION);
    check_refusal(&all, "d", &[0xc0], Code::INVALID_INSTRUCTION);
    let deep = [vec![0x92, 2], [0x81, 0xa1, b'a'].repeat(17), vec![1]].concat();
    check_refusal(&all, "d", &deep, Code::TOO_DEEP);
}

#[test]
fn accepted_instructions_become_records() {
    let put = put();
    let frame = Instruct { ack: AckLevel::Stored, ..instruct(5, 2, "site7/boiler", &put) };
    let actions = after_hello(&site7_only(), &bytes_of(&FromClient::Instruct(frame)));
    let [Action::Log { partition, record, number: 5, settled: 2, ack: AckLevel::Stored, traced: false }] = &actions[..]
    else {
        panic!("{actions:?}")
    };
    let record = Record::decode(record).unwrap();
    assert_eq!(*partition, Partition::of("site7/boiler"));
    assert_eq!((record.number.epoch, record.number.number, record.arrival.settled), (9, 5, 2));
    assert_eq!((record.received_at_us, record.resent), (77, false));
    assert_eq!(record.action, Recorded::Instruct { if_revision: None, operation: &put });
}

#[test]
fn reads_are_checked_like_writes() {
    let rights = site7_only();
    let check = |frame: FromClient<'_>, request, document: &str, code| {
        expect_frame(&after_hello(&rights, &bytes_of(&frame)), &FromServer::Refused { request, document, code });
    };
    let watch = |document| FromClient::Watch(Watch { document, revision: 0, state_hash: 0, mode: WatchMode::Changes });
    check(watch("site8/a"), 0, "site8/a", Code::FORBIDDEN);
    check(watch(""), 0, "", Code::INVALID_DOCUMENT_ID);
    check(FromClient::Get { request: 6, document: "site8/a" }, 6, "site8/a", Code::FORBIDDEN);
    check(FromClient::Get { request: 6, document: "a\0" }, 6, "a\0", Code::INVALID_DOCUMENT_ID);
    let long = "é".repeat(400);
    check(FromClient::Get { request: 6, document: &long }, 6, &"é".repeat(256), Code::INVALID_DOCUMENT_ID);
    let mut many = Vec::new();
    for document in ["site7/1", "site7/2", "site7/3", "site7/3", "site7/4"] {
        watch(document).encode(&mut many);
    }
    FromClient::Unwatch { document: "site7/1" }.encode(&mut many);
    watch("site7/4").encode(&mut many);
    let actions = after_hello(&rights, &many);
    let watches = actions.iter().filter(|a| matches!(a, Action::Watch(_))).count();
    assert_eq!(watches, 5);
    let refused = FromServer::Refused { request: 0, document: "site7/4", code: Code::TOO_MANY_WATCHES };
    expect_frame(&actions[4..5], &refused);
    assert_eq!(actions[5], Action::Unwatch(DocumentId::new("site7/1").unwrap()));
    const { assert!(RULES.watches_max < WATCHES_MAX) };
}

#[test]
fn watches_of_hello_come_before_what_follows() {
    let watch = Watch { document: "site7/a", revision: 3, state_hash: 4, mode: WatchMode::Bodies };
    let bad = Watch { document: "other", ..watch };
    let bytes = [
        bytes_of(&FromClient::Hello(Hello { watches: vec![watch, bad], ..hello() })),
        bytes_of(&FromClient::Ping { nonce: 3 }),
    ]
    .concat();
    let actions = run(&site7_only(), &[&bytes]);
    let document = DocumentId::new("site7/a").unwrap();
    let wish = WatchWish { document, revision: 3, state_hash: 4, mode: WatchMode::Bodies };
    assert_eq!(actions[1], Action::Watch(wish));
    expect_frame(&actions[2..3], &FromServer::Refused { request: 0, document: "other", code: Code::FORBIDDEN });
    expect_frame(&actions[3..], &FromServer::Pong { nonce: 3, time_us: 77 });
}

#[test]
fn nothing_is_heard_before_admission() {
    let mut session = Session::new(RULES, 0);
    let bytes = [bytes_of(&FromClient::Hello(hello())), bytes_of(&FromClient::Ping { nonce: 3 })].concat();
    session.handle_bytes(0, &bytes);
    assert!(matches!(session.poll(0, 0), Some(Action::Authenticate { .. })));
    assert_eq!(session.poll(0, 0), None);
}

fn some_frames() -> Vec<u8> {
    let put = put();
    let watch = Watch { document: "d", revision: 1, state_hash: 2, mode: WatchMode::Changes };
    let mut out = bytes_of(&FromClient::Hello(Hello { watches: vec![watch], ..hello() }));
    for number in 1..5 {
        FromClient::Instruct(instruct(number, 1, "d", &put)).encode(&mut out);
        FromClient::Ping { nonce: number }.encode(&mut out);
    }
    FromClient::Unwatch { document: "d" }.encode(&mut out);
    FromClient::Get { request: 1, document: "d" }.encode(&mut out);
    FromClient::List { request: 2, prefix: "a", after: "", limit: 5 }.encode(&mut out);
    FromClient::Sync { request: 3 }.encode(&mut out);
    FromClient::Bye.encode(&mut out);
    out
}

proptest! {
    #[test]
    fn any_chunking_gives_the_same_actions(cuts in proptest::collection::vec(0usize..500, 0..20)) {
        let bytes = some_frames();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c % bytes.len()).chain([0, bytes.len()]).collect();
        cuts.sort_unstable();
        let chunks: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
        let rights = everything();
        prop_assert_eq!(run(&rights, &chunks), run(&rights, &[&bytes]));
    }

    #[test]
    fn no_bytes_can_hurt_a_session(bytes in proptest::collection::vec(any::<u8>(), 0..300), after_hello in any::<bool>()) {
        let hello = bytes_of(&FromClient::Hello(hello()));
        let chunks: &[&[u8]] = if after_hello { &[&hello, &bytes] } else { &[&bytes] };
        run(&everything(), chunks);
    }
}

#[test]
fn a_traced_instruction_says_where_stamps_go_if_it_may_be_written() {
    let put = put();
    let traced = Instruct { traced: true, ..instruct(5, 2, "site7/boiler", &put) };
    let bytes = bytes_of(&FromClient::Instruct(traced));
    let [Action::Log { record, traced: true, .. }] = &after_hello(&Rights::everything(), &bytes)[..] else { panic!() };
    assert_eq!(Record::decode(record).unwrap().trace, Some(RULES.gateway));
    let resent = bytes_of(&FromClient::Instruct(Instruct { resent: true, ..traced }));
    let [Action::Log { record, traced: false, .. }] = &after_hello(&Rights::reads(&[""]), &resent)[..] else {
        panic!()
    };
    assert_eq!(Record::decode(record).unwrap().trace, None, "it only asks whether the log has it");
    let ping = bytes_of(&FromClient::PingClock { nonce: 4 });
    assert_eq!(after_hello(&Rights::everything(), &ping), [Action::Clock { nonce: 4 }]);
}
