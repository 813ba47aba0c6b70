//! The clients against frames as a server would send them, without any socket.

use super::*;
use crate::bench::step::Pace;
use fieldstream_shared::change::Version;
use fieldstream_shared::code::Code;
use fieldstream_shared::document::Kind;
use fieldstream_shared::frame::{Deframer, Limits};

const LAYOUT: Layout = Layout { clients: 4, documents: 2 };
const EPOCH: u64 = 77;
const MS: u64 = 1_000_000;

/// An instruction as the server saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    client: usize,
    number: u64,
    settled: u64,
    document: String,
    operation: Vec<u8>,
}

/// Clients, and a server that keeps documents' revisions.
struct World {
    fleet: Fleet,
    revisions: [u64; 2],
}

impl World {
    /// All clients connected, and a step of so many instructions, 1 ms apart, all of them due.
    fn with_step(instructions: u32) -> World {
        let mut world = World::connected(LAYOUT, AckLevel::Applied);
        world.begin(1, instructions);
        world
    }

    fn connected(layout: Layout, ack: AckLevel) -> World {
        let common = Common {
            layout,
            ack,
            client_prefix: "c-".into(),
            document_prefix: "d/".into(),
            token: None,
            epoch: EPOCH,
            handshakes: 2,
        };
        let mut random = 0_u8;
        let payloads = Payloads::new(40, || {
            random = random.wrapping_mul(13).wrapping_add(7);
            random
        });
        let mut world = World { fleet: Fleet::new(common, payloads), revisions: [0; 2] };
        while let Some(client) = world.fleet.next_to_open() {
            world.greet(client);
        }
        assert_eq!(world.fleet.ready(), layout.clients);
        world
    }

    fn begin(&mut self, label: u16, instructions: u32) {
        let pace =
            Pace { label, rate: 1_000.0, warmup_s: 0.0, seconds: f64::from(instructions) / 1_000.0, start_ns: 0 };
        self.fleet.begin(Step::new(pace, self.fleet.common.layout).unwrap());
        self.fleet.turn(1_000 * MS);
    }

    fn greet(&mut self, client: usize) {
        self.fleet.opened(client, 0);
        let mut sent = self.take(client);
        let hello = sent.remove(0);
        let Ok(FromClient::Hello(hello)) = FromClient::decode(&hello) else { panic!("{hello:?}") };
        assert_eq!((hello.client, hello.watches[0].document), (&*format!("c-{client}"), &*format!("d/{}", client % 2)));
        let limits = Limits { window: 32, frame_bytes: 1 << 18, watches: 9, keepalive_ms: 90_000 };
        self.frame(client, &FromServer::Welcome(Welcome { session: 1, limits, time_us: 1, log_id: 1 }));
        let document = format!("d/{}", client % 2);
        self.frame(client, &FromServer::Watching { document: &document, recovered: false });
        self.snapshot(client, self.revisions[client % 2]);
    }

    /// Frames that a client has to send.
    fn take(&mut self, client: usize) -> Vec<Vec<u8>> {
        self.fleet.fill(client, 1_000 * MS);
        let outbox = self.fleet.outbox(client);
        let mut deframer = Deframer::default();
        deframer.push(outbox.pending());
        outbox.wrote(outbox.pending().len());
        let mut frames = Vec::new();
        while let Some(payload) = deframer.next(1 << 20).unwrap() {
            frames.push(payload.to_vec());
        }
        frames
    }

    /// Instructions that a client sends now.
    fn sends(&mut self, client: usize) -> Vec<Seen> {
        let seen = |frame: Vec<u8>| match FromClient::decode(&frame) {
            Ok(FromClient::Instruct(i)) => Seen {
                client,
                number: i.number,
                settled: i.settled,
                document: i.content.document.into(),
                operation: i.content.operation.into(),
            },
            other => panic!("{other:?}"),
        };
        self.take(client).into_iter().map(seen).collect()
    }

    fn frame(&mut self, client: usize, frame: &FromServer<'_>) {
        self.try_frame(client, frame).unwrap();
    }

    fn try_frame(&mut self, client: usize, frame: &FromServer<'_>) -> Result<(), String> {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        // However the bytes are cut, the frames are the same.
        let (first, second) = bytes.split_at(bytes.len() / 2);
        self.fleet.received(client, first, 1_000 * MS)?;
        self.fleet.received(client, second, 1_000 * MS)
    }

    fn outcome(&mut self, client: usize, number: u64, level: AckLevel, outcome: Option<Outcome>) {
        self.frame(client, &FromServer::Outcome { epoch: EPOCH, number, level, outcome });
    }

    fn applied(&mut self, seen: &Seen, revision: u64) {
        self.outcome(seen.client, seen.number, AckLevel::Applied, Some(Outcome::Applied { revision }));
    }

    fn update(&mut self, watcher: usize, seen: &Seen, revision: u64) {
        let change = [&[0x91], &*seen.operation].concat();
        self.update_with(watcher, seen, revision, &change);
    }

    fn update_with(&mut self, watcher: usize, seen: &Seen, revision: u64, change: &[u8]) {
        let version = Version { revision, state_hash: 0, time_us: 0 };
        let client = format!("c-{}", seen.client);
        let update = Update { document: &seen.document, version, client: &client, number: seen.number, change };
        self.frame(watcher, &FromServer::Update(update));
    }

    fn snapshot(&mut self, watcher: usize, revision: u64) {
        let version = Version { revision, state_hash: 0, time_us: 0 };
        let document = format!("d/{}", watcher % 2);
        let snapshot =
            Snapshot { document: &document, version, kind: Kind::Text, total_bytes: 1, offset: 0, piece: b"x" };
        self.frame(watcher, &FromServer::Snapshot(snapshot));
    }

    /// Applies an instruction and tells everybody.
    fn apply(&mut self, seen: &Seen) {
        let document = seen.client % 2;
        self.revisions[document] += 1;
        let revision = self.revisions[document];
        self.applied(seen, revision);
        for watcher in LAYOUT.watchers_of(document) {
            self.update(watcher, seen, revision);
        }
    }

    fn counts(&self) -> crate::bench::step::Counts {
        self.fleet.step().unwrap().counts
    }
}

#[test]
fn everything_applied_and_delivered_makes_a_step_complete() {
    let mut world = World::with_step(10);
    for client in 0..4 {
        for seen in world.sends(client) {
            world.apply(&seen);
        }
    }
    assert!(world.fleet.step().unwrap().is_complete());
    let (step, missing) = world.fleet.end().unwrap();
    assert_eq!(missing, Missing::default());
    let expected = crate::bench::step::Counts {
        sent: 10,
        acks: 10,
        deliveries: 20,
        acks_measured: step.counts.acks_measured,
        deliveries_measured: step.counts.deliveries_measured,
        ..Default::default()
    };
    assert_eq!(step.counts, expected);
}

#[test]
fn what_is_due_waits_in_the_client_while_its_window_is_full() {
    let mut world = World::with_step(4 * 40);
    let sent = world.sends(0);
    assert_eq!(sent.len(), 32);
    assert!(sent.iter().all(|seen| seen.settled == 1) && sent[31].number == 32);
    assert_eq!(world.sends(0), []);
    world.applied(&sent[1], 2);
    assert_eq!(world.sends(0), [], "number 1 is not resolved");
    world.outcome(0, 1, AckLevel::Logged, None);
    assert_eq!(world.sends(0), [], "logged is less than what was asked for");
    world.applied(&sent[0], 1);
    let more = world.sends(0);
    assert_eq!(more.iter().map(|seen| (seen.number, seen.settled)).collect::<Vec<_>>(), [(33, 3), (34, 3)]);
    assert_eq!(world.fleet.end().unwrap().1.unsent, 6 + 3 * 40);
}

#[test]
fn a_pause_holds_instructions_back_until_it_is_over() {
    let mut world = World::with_step(4);
    world.frame(0, &FromServer::Pause { retry_after_ms: 2_000 });
    assert_eq!((world.sends(0), world.counts().pauses), (vec![], 1));
    world.frame(0, &FromServer::Resume);
    let mut listed = Vec::new();
    world.fleet.take_listed(&mut listed);
    assert!(listed.contains(&0) && world.sends(0).len() == 1);
    world.frame(1, &FromServer::Pause { retry_after_ms: 1 });
    world.fleet.turn(3_000 * MS);
    world.fleet.take_listed(&mut listed);
    assert!(listed.contains(&1), "it ran out");
}

#[test]
fn a_flipped_byte_is_noticed_wherever_it_is() {
    let mut world = World::with_step(4);
    let seen = world.sends(0).remove(0);
    let right = [&[0x91], &*seen.operation].concat();
    for at in 0..right.len() {
        let mut wrong = right.clone();
        wrong[at] ^= 1;
        world.update_with(0, &seen, at as u64 + 1, &wrong);
        assert_eq!((world.counts().corrupt, world.counts().deliveries), (at as u64 + 1, 0), "byte {at}");
    }
}

#[test]
fn the_right_text_in_the_wrong_place_is_corrupt() {
    let mut world = World::with_step(8);
    let (a, b) = (world.sends(0).remove(0), world.sends(1).remove(0));
    world.update(1, &a, 1);
    assert_eq!(world.counts().corrupt, 1, "another document's");
    world.update(0, &Seen { client: 2, ..a.clone() }, 1);
    assert_eq!(world.counts().corrupt, 2, "another client's");
    world.update(2, &Seen { number: 2, ..a.clone() }, 1);
    assert_eq!(world.counts().corrupt, 3, "another number's");
    world.update(3, &b, 1);
    world.update(0, &a, 2);
    assert_eq!((world.counts().corrupt, world.counts().deliveries), (3, 2));
}

#[test]
fn repeated_and_skipped_revisions_are_counted() {
    let mut world = World::with_step(16);
    let seen = world.sends(0);
    world.update(0, &seen[0], 1);
    world.update(0, &seen[0], 1);
    assert_eq!(world.counts().duplicates, 1, "the same event again");
    world.update(0, &seen[0], 2);
    assert_eq!(world.counts().duplicates, 2, "carried out again");
    world.update(0, &seen[1], 4);
    assert_eq!((world.counts().gaps, world.counts().deliveries), (1, 2));
}

#[test]
fn a_snapshot_in_the_place_of_updates_makes_them_coalesced_and_not_lost() {
    let mut world = World::with_step(16);
    let seen = world.sends(0);
    for (nth, one) in seen.iter().enumerate() {
        let revision = nth as u64 + 1;
        world.applied(one, revision);
        world.update(0, one, revision);
        // Client 2 gets the first as update, the next two as snapshot, and the last never.
        match nth {
            0 => world.update(2, one, revision),
            2 => world.snapshot(2, revision),
            _ => {}
        }
    }
    assert!(!world.fleet.step().unwrap().is_complete());
    let missing = world.fleet.end().unwrap().1;
    // The other three clients sent nothing.
    assert_eq!(missing, Missing { coalesced: 2, lost: 1, lost_acked: 1, unacked: 0, unsent: 12 });
}

#[test]
fn refusals_are_counted_also_behind_logged() {
    let mut world = World::connected(LAYOUT, AckLevel::Logged);
    world.begin(1, 8);
    let seen = world.sends(0);
    world.outcome(0, 1, AckLevel::Applied, Some(Outcome::Refused(Code::FORBIDDEN)));
    world.outcome(0, 2, AckLevel::Logged, None);
    world.outcome(0, 2, AckLevel::Applied, Some(Outcome::Dead(Code::HANDLER_PANICKED)));
    assert_eq!((world.counts().refused, world.counts().acks, seen.len()), (2, 1, 2));
}

#[test]
fn what_an_earlier_step_left_makes_room_and_counts_nowhere() {
    let mut world = World::with_step(4);
    let old = world.sends(0).remove(0);
    world.fleet.end();
    world.begin(2, 4);
    let new = world.sends(0).remove(0);
    assert_eq!((new.number, new.settled), (2, 1));
    world.applied(&old, 1);
    world.update(0, &old, 1);
    assert_eq!((world.counts().acks, world.counts().deliveries), (0, 0));
    world.applied(&new, 2);
    world.update(0, &new, 2);
    assert_eq!((world.counts().acks, world.counts().deliveries, world.counts().corrupt), (1, 1, 0));
}

#[test]
fn a_lost_connection_is_counted_and_made_again_in_a_new_epoch() {
    let mut world = World::with_step(4);
    assert_eq!(world.sends(1).len(), 1);
    let closed = FromServer::Close { code: Code::BUSY, reason: "full", retry_after_ms: 0 };
    let why = world.try_frame(0, &closed).unwrap_err();
    world.fleet.lost(0, why);
    assert_eq!((world.fleet.dead(), world.fleet.ready(), world.sends(0)), (1, 3, vec![]));
    assert!(world.fleet.first_error().unwrap().contains("busy"));
    world.fleet.end();
    // Client 1 waits for an outcome that may never come.
    assert_eq!(world.fleet.renew(), [0, 1]);
    assert_eq!((world.fleet.dead(), world.fleet.ready()), (0, 2));
    let opened: Vec<usize> = std::iter::from_fn(|| world.fleet.next_to_open()).collect();
    assert_eq!(opened, [0, 1], "two at once");
    opened.into_iter().for_each(|client| world.greet(client));
    assert_eq!((world.fleet.ready(), world.fleet.clients[0].window.epoch()), (4, EPOCH + 1));
}

#[test]
fn handshakes_are_bounded() {
    let mut world = World::connected(LAYOUT, AckLevel::Applied);
    (0..4).for_each(|client| world.fleet.lost(client, "gone".into()));
    world.fleet.renew();
    assert_eq!(
        (world.fleet.next_to_open(), world.fleet.next_to_open(), world.fleet.next_to_open()),
        (Some(0), Some(1), None)
    );
    world.greet(1);
    assert_eq!((world.fleet.next_to_open(), world.fleet.next_to_open()), (Some(2), None));
}

#[test]
fn a_client_pings_in_time_and_a_silent_server_is_given_up() {
    let mut world = World::connected(LAYOUT, AckLevel::Applied);
    world.fleet.turn(31_000 * MS);
    let frames = world.take(3);
    assert!(matches!(FromClient::decode(&frames[0]), Ok(FromClient::Ping { .. })));
    world.fleet.turn(92_000 * MS);
    assert_eq!((world.fleet.dead(), world.fleet.ready()), (4, 0));
}

#[test]
fn documents_that_are_put_first_are_as_many_as_asked_for_and_count_for_nothing() {
    let mut world = World::connected(LAYOUT, AckLevel::Applied);
    world.fleet.begin_stock(6, AckLevel::Stored);
    let seen: Vec<Seen> = (0..4).flat_map(|client| world.sends(client)).collect();
    let mut documents: Vec<&str> = seen.iter().map(|seen| &*seen.document).collect();
    documents.sort_unstable();
    assert_eq!(documents, ["d/stock/0", "d/stock/1", "d/stock/2", "d/stock/3", "d/stock/4", "d/stock/5"]);
    assert_eq!(world.fleet.stock_missing(), 6);
    for seen in &seen {
        world.applied(seen, 1);
    }
    assert_eq!(world.fleet.stock_missing(), 6, "not stored yet");
    for seen in seen.iter().rev() {
        world.outcome(seen.client, seen.number, AckLevel::Stored, Some(Outcome::Applied { revision: 1 }));
    }
    assert_eq!((world.fleet.stock_missing(), world.fleet.first_error()), (0, None));
    world.fleet.end_stock();
    world.begin(1, 4);
    let sent: Vec<Seen> = (0..4).flat_map(|client| world.sends(client)).collect();
    assert_eq!(sent.iter().map(|seen| &*seen.document).collect::<Vec<_>>(), ["d/0", "d/1", "d/0", "d/1"]);
}

#[test]
fn a_document_that_is_refused_is_told() {
    let mut world = World::connected(LAYOUT, AckLevel::Applied);
    world.fleet.begin_stock(1, AckLevel::Stored);
    let seen = world.sends(0);
    world.outcome(0, seen[0].number, AckLevel::Stored, Some(Outcome::Refused(Code::FORBIDDEN)));
    assert!(world.fleet.first_error().is_some_and(|error| error.contains("not made")));
}
