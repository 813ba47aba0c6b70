use super::*;
use fieldstream_shared::change::{Change, Primitive, Version, write_change};
use fieldstream_shared::code::Code;
use fieldstream_shared::cursor::{BatchId, Part, Position};
use fieldstream_shared::document::Body;
use fieldstream_shared::event::encode_event_batch;
use fieldstream_shared::frame::{Deframer, Snapshot};
use fieldstream_shared::marks::Arrival;
use fieldstream_shared::outcome::{AckLevel, Outcome};
use fieldstream_shared::partition::Partition;
use fieldstream_shared::record::BatchBuilder;

const LIMITS: Limits = Limits { held_bytes_max: 1_000, recent_bytes_max: 400, documents_bytes_max: 10_000 };

fn id(document: &str) -> DocumentId {
    DocumentId::new(document).unwrap()
}

/// What a frame says, in short.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Said {
    Watching(bool),
    Update(u64),
    Snapshot(u64, String),
    Outcome(u64, AckLevel, Option<Outcome>),
    Synced(u64),
    Refused(Code),
}
use Said::{Snapshot as Shot, Update, Watching};

fn said(mailbox: &Mailbox) -> Vec<Said> {
    let (mut deframer, mut frames) = (Deframer::default(), std::collections::VecDeque::new());
    while mailbox.lock().outbox.take(1, &mut frames) > 0 {}
    frames.iter().for_each(|f| deframer.push(f));
    let mut said = Vec::new();
    while let Some(payload) = deframer.next(1 << 20).unwrap() {
        said.push(match FromServer::decode(payload).unwrap() {
            FromServer::Watching { recovered, .. } => Watching(recovered),
            FromServer::Update(update) => Update(update.version.revision),
            FromServer::Snapshot(Snapshot { version, piece, .. }) => {
                Shot(version.revision, String::from_utf8(piece.to_vec()).unwrap())
            }
            FromServer::Outcome { number, level, outcome, .. } => Said::Outcome(number, level, outcome),
            FromServer::Synced { request } => Said::Synced(request),
            FromServer::Refused { request: 0, document: "d" | "e", code } => Said::Refused(code),
            other => panic!("{other:?}"),
        });
    }
    said
}

fn text(revision: u64) -> Document {
    Document { revision, time_us: revision, body: Body::Text("x".repeat(revision as usize)) }
}

/// A hub and the log it reads: each step appends an "x" to document `d`.
struct Scene {
    hub: LaneHub,
    effects: Effects,
    clients: Clients,
    cursors: Cursors,
    sequence: u64,
    revision: u64,
}

impl Scene {
    fn new(stored_copies: usize) -> Scene {
        let hub = LaneHub::new(Beginning {
            lane: 0,
            lanes: 1,
            log_id: 7,
            stored_copies,
            limits: LIMITS,
            cursors: Cursors::default(),
            sequence: 0,
        });
        Scene {
            hub,
            effects: Effects::default(),
            clients: Clients::new(),
            cursors: Cursors::default(),
            sequence: 0,
            revision: 0,
        }
    }

    fn mailbox(id: u64) -> Arc<Mailbox> {
        Mailbox::new(id, 10_000)
    }

    fn client(&mut self, number: u64, ack: AckLevel) -> Arc<Mailbox> {
        let mailbox = Scene::mailbox(100);
        mailbox.lock().numbers.begin(5, 0);
        mailbox.lock().numbers.sent(number, 1, ack);
        self.clients.insert(ClientId::new("c").unwrap(), Arc::clone(&mailbox));
        mailbox
    }

    /// The next event batch: `bodies` of consecutive numbers.
    fn batch(&mut self, first_number: u64, bodies: Vec<EventBody>) -> Vec<u8> {
        self.sequence += 1;
        let batch = BatchId { incarnation: 1, counter: self.sequence };
        let partition = Partition::of("d");
        let upto = Position { sequence: self.sequence, records: bodies.len() as u32 };
        let part = Part { partitions: [partition].into_iter().collect(), after: self.cursors.get(partition), upto };
        let mut events = BatchBuilder::default();
        for (index, body) in (0..).zip(bodies) {
            let number = first_number + u64::from(index);
            let arrival = Arrival { epoch: 5, number, settled: 1, content_hash: 0 };
            let origin = Some(Origin { client: ClientId::new("c").unwrap(), arrival, document: id("d") });
            let event =
                Event { partition, sequence: self.sequence, index, origin, received_at_us: 0, body, trace: None };
            events.push(&event.encode());
        }
        self.cursors.accept(batch, &[part]);
        encode_event_batch(batch, &[part], &events)
    }

    fn change(&mut self) -> EventBody {
        self.revision += 1;
        let document = text(self.revision);
        let version = Version { revision: self.revision, state_hash: document.hash(), time_us: self.revision };
        EventBody::Updated { version, change: vec![Primitive::Append("x".into())] }
    }

    fn read(&mut self, message: &[u8]) {
        self.hub.handle_batch(self.sequence, message, &self.clients, &mut self.effects).unwrap();
    }

    fn step(&mut self) {
        let body = self.change();
        let message = self.batch(1, vec![body]);
        self.read(&message);
    }

    fn watch(&mut self, mailbox: &Arc<Mailbox>, revision: u64, state_hash: u64, mode: WatchMode) {
        let wish = WatchWish { document: id("d"), revision, state_hash, mode };
        self.hub.watch(mailbox, wish, &mut self.effects);
    }

    fn load(&mut self) -> Load {
        assert_eq!(self.effects.loads.len(), 1, "{:?}", self.effects.loads);
        self.effects.loads.remove(0)
    }

    fn loaded(&mut self, load: &Load, sequence: u64, document: Document) {
        self.hub.loaded(load.key, sequence, document, &mut self.effects);
    }

    /// A watcher, up to date.
    fn follower(&mut self, session: u64, mode: WatchMode) -> Arc<Mailbox> {
        let mailbox = Scene::mailbox(session);
        self.watch(&mailbox, 0, 0, mode);
        if !self.effects.loads.is_empty() {
            let load = self.load();
            self.loaded(&load, self.sequence, text_or_absent(self.revision));
        }
        said(&mailbox);
        mailbox
    }

    fn progress(&mut self, storer: u64, log_id: u64, sequence: u64) {
        self.hub.handle_progress(&Progress { storer, log_id, lane: 0, sequence }, &mut self.effects);
    }
}

fn text_or_absent(revision: u64) -> Document {
    if revision == 0 { Document::default() } else { text(revision) }
}

fn xs(n: u64) -> String {
    "x".repeat(n as usize)
}

#[test]
fn events_are_held_while_the_document_is_loaded() {
    let mut scene = Scene::new(1);
    scene.step();
    let mailbox = Scene::mailbox(1);
    scene.watch(&mailbox, 0, 0, WatchMode::Changes);
    let load = scene.load();
    assert_eq!(load.min_sequence, 1, "the answer must include what was read");
    scene.step();
    scene.step();
    assert_eq!(said(&mailbox), []);
    // The answer includes the first two events; the third goes on top.
    scene.loaded(&load, 2, text(2));
    assert_eq!(said(&mailbox), [Watching(false), Shot(3, xs(3))]);
    scene.step();
    assert_eq!(said(&mailbox), [Update(4)]);
}

#[test]
fn an_answer_ahead_of_the_reader_swallows_what_it_includes() {
    let mut scene = Scene::new(1);
    let mailbox = Scene::mailbox(1);
    scene.watch(&mailbox, 0, 0, WatchMode::Changes);
    let load = scene.load();
    scene.loaded(&load, 2, text(2));
    assert_eq!(said(&mailbox), [Watching(false), Shot(2, xs(2))]);
    scene.step();
    scene.step();
    assert_eq!(said(&mailbox), [], "events 1 and 2 are in the answer");
    scene.step();
    assert_eq!(said(&mailbox), [Update(3)]);
}

#[test]
fn an_answer_that_does_not_fit_is_asked_for_again() {
    let mut scene = Scene::new(1);
    scene.step();
    let mailbox = Scene::mailbox(1);
    scene.watch(&mailbox, 0, 0, WatchMode::Changes);
    let load = scene.load();
    scene.loaded(&load, 0, Document::default());
    let again = scene.load();
    assert_eq!(again.min_sequence, 1, "the first answer was too old");
    scene.step();
    scene.loaded(&again, 1, text(7));
    let third = scene.load();
    assert_eq!(third.min_sequence, 2, "revision 2 does not follow 7");
    assert_eq!(said(&mailbox), []);
    scene.loaded(&third, 2, text(2));
    assert_eq!(said(&mailbox), [Watching(false), Shot(2, xs(2))]);
    assert!(scene.effects.loads.is_empty());
}

#[test]
fn too_much_held_means_loading_again() {
    let mut scene = Scene::new(1);
    let mailbox = Scene::mailbox(1);
    scene.watch(&mailbox, 0, 0, WatchMode::Changes);
    let load = scene.load();
    for _ in 0..50 {
        scene.step();
    }
    scene.loaded(&load, 0, Document::default());
    let again = scene.load();
    assert_eq!(again.min_sequence, 50);
    scene.loaded(&again, 50, text(50));
    assert_eq!(said(&mailbox), [Watching(false), Shot(50, xs(50))]);
}

#[test]
fn a_change_that_does_not_fit_reloads_and_everyone_gets_the_state() {
    let mut scene = Scene::new(1);
    let (a, bodies) = (scene.follower(1, WatchMode::Changes), scene.follower(2, WatchMode::Bodies));
    scene.step();
    assert_eq!((said(&a), said(&bodies)), (vec![Update(1)], vec![Shot(1, xs(1))]));
    scene.revision = 4;
    scene.step();
    let load = scene.load();
    assert_eq!(load.min_sequence, 2);
    scene.loaded(&load, 2, text(5));
    assert_eq!((said(&a), said(&bodies)), (vec![Shot(5, xs(5))], vec![Shot(5, xs(5))]));
    scene.step();
    assert_eq!((said(&a), said(&bodies)), (vec![Update(6)], vec![Shot(6, xs(6))]));
}

#[test]
fn bodies_come_once_per_batch() {
    let mut scene = Scene::new(1);
    let (a, bodies) = (scene.follower(1, WatchMode::Changes), scene.follower(2, WatchMode::Bodies));
    let three = vec![scene.change(), scene.change(), scene.change()];
    let message = scene.batch(1, three);
    scene.read(&message);
    assert_eq!((said(&a), said(&bodies)), (vec![Update(1), Update(2), Update(3)], vec![Shot(3, xs(3))]));
}

#[test]
fn who_comes_back_goes_on_from_what_it_holds() {
    let mut scene = Scene::new(1);
    let _first = scene.follower(1, WatchMode::Changes);
    for _ in 0..3 {
        scene.step();
    }
    let mut check = |revision, hash, expect: &[Said]| {
        let mailbox = Scene::mailbox(2);
        scene.watch(&mailbox, revision, hash, WatchMode::Changes);
        assert_eq!(said(&mailbox), expect, "holds {revision}");
        assert!(scene.effects.loads.is_empty());
        scene.hub.unwatch(&mailbox, &id("d"));
    };
    check(3, text(3).hash(), &[Watching(true)]);
    check(1, text(1).hash(), &[Watching(true), Update(2), Update(3)]);
    check(1, 99, &[Watching(false), Shot(3, xs(3))]);
    check(3, 99, &[Watching(false), Shot(3, xs(3))]);
    check(4, 99, &[Watching(false), Shot(3, xs(3))]);
    check(0, 0, &[Watching(false), Shot(3, xs(3))]);
}

fn history(from: u64, upto: u64) -> Vec<HistoryEntry> {
    let entry = |revision| {
        let change: Change = vec![Primitive::Append("x".into())];
        let mut encoded = Vec::new();
        write_change(&change, &mut encoded);
        let version = Version { revision, state_hash: text(revision).hash(), time_us: revision };
        HistoryEntry { version, client: ClientId::new("c").unwrap(), number: revision, change: encoded }
    };
    (from..=upto).map(entry).collect()
}

#[test]
fn older_replicas_are_caught_up_from_history() {
    let recovered = |n: std::ops::RangeInclusive<u64>| {
        let mut expect = vec![Watching(true)];
        expect.extend(n.map(Update));
        expect
    };
    let snapshot = vec![Watching(false), Shot(30, xs(30))];
    let mut odd = history(2, 30);
    odd[0].version.state_hash = 1;
    let mut hole = history(2, 30);
    hole.remove(5);
    for (entries, expect) in [
        (history(2, 30), recovered(3..=30)),
        (history(2, 29), recovered(3..=30)),
        (history(2, 33), recovered(3..=30)),
        (history(2, 10), snapshot.clone()),
        (history(3, 30), snapshot.clone()),
        (hole, snapshot.clone()),
        (odd, snapshot.clone()),
        (vec![], snapshot),
    ] {
        let mut scene = Scene::new(1);
        let _first = scene.follower(1, WatchMode::Changes);
        for _ in 0..30 {
            scene.step();
        }
        let mailbox = Scene::mailbox(2);
        scene.watch(&mailbox, 2, text(2).hash(), WatchMode::Changes);
        let load = scene.load();
        assert_eq!(load.history, Some((2, 2)), "the recent ones do not reach back that far");
        assert_eq!(said(&mailbox), []);
        scene.hub.history(load.key, 2, &entries, &mut scene.effects);
        assert_eq!(said(&mailbox), expect);
        scene.step();
        assert_eq!(said(&mailbox), [Update(31)]);
    }
}

#[test]
fn a_slow_watcher_gets_the_last_state_when_there_is_room() {
    let mut scene = Scene::new(1);
    let mailbox = Mailbox::new(1, 300);
    scene.watch(&mailbox, 0, 0, WatchMode::Changes);
    let load = scene.load();
    scene.loaded(&load, 0, Document::default());
    for _ in 0..20 {
        scene.step();
    }
    assert_eq!(said(&mailbox), [Watching(false)], "the verdict is kept, states are not");
    let key = mailbox.lock().outbox.next_stale().unwrap();
    scene.hub.refresh(key, &mailbox, &mut scene.effects.wakes);
    assert_eq!(said(&mailbox), [Shot(20, xs(20))]);
    scene.step();
    assert_eq!(said(&mailbox), [Update(21)]);
}

#[test]
fn the_last_watcher_takes_the_document_with_it() {
    let mut scene = Scene::new(1);
    let (a, b) = (scene.follower(1, WatchMode::Changes), scene.follower(2, WatchMode::Changes));
    scene.hub.unwatch(&a, &id("d"));
    scene.step();
    assert_eq!((said(&a), said(&b)), (vec![], vec![Update(1)]));
    scene.hub.unwatch(&b, &id("d"));
    assert!(scene.hub.documents.is_empty() && scene.hub.keys.is_empty());
    scene.step();
    assert_eq!(said(&b), []);
}

#[test]
fn only_accepted_events_count() {
    let mut scene = Scene::new(1);
    let watcher = scene.follower(1, WatchMode::Changes);
    let client = scene.client(1, AckLevel::Applied);
    let body = scene.change();
    let message = scene.batch(1, vec![body]);
    scene.read(&message);
    assert_eq!(said(&watcher), [Update(1)]);
    assert_eq!(said(&client), [Said::Outcome(1, AckLevel::Applied, Some(Outcome::Applied { revision: 1 }))]);
    client.lock().numbers.sent(1, 1, AckLevel::Applied);
    scene.sequence += 1;
    scene.read(&message);
    assert_eq!((said(&watcher), said(&client)), (vec![], vec![]), "published twice");
    assert!(scene.hub.handle_batch(9, &[0xc1], &scene.clients, &mut scene.effects).is_err());
}

#[test]
fn refusals_are_told_and_those_of_a_newer_epoch_are_not() {
    let mut scene = Scene::new(1);
    let client = scene.client(1, AckLevel::Applied);
    let message = scene.batch(1, vec![EventBody::Refused(Code::CONFLICT)]);
    client.lock().numbers.begin(4, 0);
    scene.read(&message);
    assert_eq!(said(&client), []);
    client.lock().numbers.begin(5, 0);
    let message = scene.batch(1, vec![EventBody::Refused(Code::CONFLICT)]);
    scene.read(&message);
    assert_eq!(said(&client), [Said::Outcome(1, AckLevel::Applied, Some(Outcome::Refused(Code::CONFLICT)))]);
}

#[test]
fn stored_means_in_as_many_storers_as_asked_for() {
    let mut scene = Scene::new(2);
    let client = scene.client(1, AckLevel::Stored);
    let wait = SyncWait::new(&client, 3, 1);
    scene.step();
    scene.hub.wait_stored(2, wait, &mut scene.effects);
    scene.progress(1, 7, 5);
    scene.progress(2, 8, 5);
    assert_eq!(said(&client), [], "the second storer has another log");
    scene.progress(2, 7, 1);
    let stored = Said::Outcome(1, AckLevel::Stored, Some(Outcome::Applied { revision: 1 }));
    assert_eq!(said(&client), [stored]);
    scene.progress(3, 7, 2);
    assert_eq!(said(&client), [Said::Synced(3)]);
    assert!(scene.hub.stored.is_empty());
}

#[test]
fn watched_documents_keep_to_their_memory() {
    let mut scene = Scene::new(1);
    let (a, b) = (Scene::mailbox(1), Scene::mailbox(2));
    scene.watch(&a, 0, 0, WatchMode::Changes);
    let load = scene.load();
    scene.hub.loaded(load.key, 0, text(20_000), &mut scene.effects);
    assert_eq!(said(&a), [Said::Refused(Code::UNAVAILABLE)], "alone it is more than there is room for");
    assert_eq!((scene.hub.documents_bytes, scene.hub.documents.len(), scene.hub.keys.len()), (0, 0, 0));

    scene.watch(&a, 0, 0, WatchMode::Changes);
    let load = scene.load();
    scene.hub.loaded(load.key, 0, text(6_000), &mut scene.effects);
    assert_eq!(said(&a).len(), 2);
    assert!(scene.hub.documents_bytes > 12_000, "with its snapshot");
    // It is full now: what is there may be watched, and nothing more.
    scene.watch(&b, 0, 0, WatchMode::Changes);
    assert_eq!(said(&b)[0], Watching(false));
    let wish = WatchWish { document: id("e"), revision: 0, state_hash: 0, mode: WatchMode::Changes };
    scene.hub.watch(&b, wish.clone(), &mut scene.effects);
    assert_eq!(said(&b), [Said::Refused(Code::UNAVAILABLE)]);
    assert!(scene.effects.loads.is_empty());
    // What has grown stays as long as somebody follows it, and frees its memory then.
    scene.revision = 6_000;
    scene.step();
    assert_eq!(said(&a), [Update(6_001)]);
    scene.hub.unwatch(&a, &id("d"));
    scene.hub.unwatch(&b, &id("d"));
    assert_eq!(scene.hub.documents_bytes, 0);
    scene.hub.watch(&b, wish, &mut scene.effects);
    assert_eq!(scene.effects.loads.len(), 1);
}

#[test]
fn a_refusal_read_while_its_client_was_away_is_told_when_it_comes() {
    let (mut scene, stale) = (Scene::new(1), Outcome::Refused(Code::STALE_EPOCH));
    let refusals = vec![EventBody::Refused(Code::CONFLICT), EventBody::Refused(Code::STALE_EPOCH)];
    let message = scene.batch(1, refusals);
    scene.read(&message);
    let (client, back) = (ClientId::new("c").unwrap(), Scene::mailbox(1));
    scene.hub.tell_missed(&client, 5, 2, &back);
    let told = |number, outcome| Said::Outcome(number, AckLevel::Applied, Some(outcome));
    assert_eq!(said(&back), [told(1, Outcome::Refused(Code::CONFLICT)), told(2, stale)]);
    // It may have been told through a connection that broke.
    let connected = scene.client(3, AckLevel::Logged);
    let message = scene.batch(3, vec![EventBody::Refused(Code::NOT_FOUND)]);
    scene.read(&message);
    assert_eq!(said(&connected), [told(3, Outcome::Refused(Code::NOT_FOUND))]);
    scene.hub.tell_missed(&client, 5, 3, &back);
    assert_eq!(said(&back).last(), Some(&told(3, Outcome::Refused(Code::NOT_FOUND))));
}

#[test]
fn who_wishes_again_and_again_asks_the_storers_once() {
    let mut scene = Scene::new(1);
    let _other = scene.follower(1, WatchMode::Changes);
    (0..30).for_each(|_| scene.step());
    let mailbox = Scene::mailbox(2);
    let held = text(1).hash();
    (0..100).for_each(|_| scene.watch(&mailbox, 1, held, WatchMode::Changes));
    let load = scene.load();
    assert!(load.history.is_some() && scene.hub.is_wanted(&load));
    scene.hub.history(load.key, 2, &[], &mut scene.effects);
    assert!(matches!(said(&mailbox)[..], [Watching(false), Shot(..)]));
    assert!(!scene.hub.is_wanted(&load), "answered");
    // Another way to ask for the same: what was asked before is not wanted any more.
    for _ in 0..3 {
        scene.hub.unwatch(&mailbox, &id("d"));
        scene.watch(&mailbox, 1, held, WatchMode::Changes);
    }
    scene.hub.unwatch(&mailbox, &id("d"));
    assert!(scene.effects.loads.iter().all(|load| !scene.hub.is_wanted(load)));
}
