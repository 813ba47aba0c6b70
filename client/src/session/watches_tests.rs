use super::*;
use fieldstream_shared::change::{Change, Primitive, Version, write_change};
use fieldstream_shared::document::{Body, Kind};

/// A server's document that tells of its changes.
struct Source(Document);

impl Source {
    fn new(text: &str) -> Source {
        Source(Document { revision: 1, time_us: 1, body: Body::Text(text.into()) })
    }

    fn version(&self) -> Version {
        Version { revision: self.0.revision, state_hash: self.0.hash(), time_us: self.0.time_us }
    }

    fn append(&mut self, text: &str) -> (Version, Vec<u8>) {
        let change: Change = vec![Primitive::Append(text.into())];
        change[0].apply(&mut self.0.body).unwrap();
        self.0.revision += 1;
        let mut bytes = Vec::new();
        write_change(&change, &mut bytes);
        (self.version(), bytes)
    }

    fn snapshot(&self, watches: &mut Watches) -> Next {
        let body = self.0.body.encode();
        let mut next = Next::Nothing;
        for (i, piece) in body.chunks(2).enumerate() {
            next = watches.snapshot(&Snapshot {
                document: "d",
                version: self.version(),
                kind: Kind::Text,
                total_bytes: body.len() as u64,
                offset: 2 * i as u64,
                piece,
            });
        }
        next
    }
}

fn id() -> DocumentId {
    DocumentId::new("d").unwrap()
}

fn update(watches: &mut Watches, (version, change): &(Version, Vec<u8>)) -> Next {
    watches.update(&Update { document: "d", version: *version, client: "c", number: 5, change })
}

fn text(watches: &Watches) -> String {
    match &watches.document(&id()).body {
        Body::Text(text) => text.clone(),
        other => format!("{other:?}"),
    }
}

/// Events as words: `S<revision>` snapshot, `s<revision>` without a gap, `R`, `U<revision>`.
fn events(watches: &mut Watches, handle: u64) -> Vec<String> {
    std::iter::from_fn(|| watches.next_event(&id(), handle).unwrap())
        .map(|event| match event {
            Queued::Snapshot { recovered: false, document } => format!("S{}", document.revision),
            Queued::Snapshot { recovered: true, document } => format!("s{}", document.revision),
            Queued::Resumed => "R".into(),
            Queued::Updated { version, .. } => format!("U{}", version.revision),
        })
        .collect()
}

fn opened(source: &Source) -> (Watches, u64) {
    let mut watches = Watches::default();
    let mut out = Vec::new();
    let opening = watches.open(&id(), WatchMode::Changes, Some(&mut out));
    assert!(!out.is_empty());
    watches.verdict("d", false);
    source.snapshot(&mut watches);
    assert_eq!(opening.opened.unwrap().try_recv().unwrap(), Ok(()));
    assert_eq!(events(&mut watches, opening.handle), [format!("S{}", source.0.revision)]);
    (watches, opening.handle)
}

#[test]
fn a_replica_follows_its_changes() {
    let mut source = Source::new("one");
    let (mut watches, handle) = opened(&source);
    let change = source.append(" two");
    assert_eq!(update(&mut watches, &change), Next::Nothing);
    assert_eq!(update(&mut watches, &change), Next::Nothing, "a repeated update is passed over");
    assert_eq!(text(&watches), "one two");
    assert_eq!(events(&mut watches, handle), ["U2"]);
}

#[test]
fn a_change_that_does_not_fit_drops_the_replica_and_asks_again() {
    type Spoil = fn(&mut (Version, Vec<u8>));
    let spoil: [Spoil; 3] = [|u| u.0.state_hash += 1, |u| u.0.revision += 1, |u| u.1 = vec![0x91, 0x92, 0x7f, 0xc0]];
    for spoil in spoil {
        let mut source = Source::new("one");
        let (mut watches, handle) = opened(&source);
        let mut change = source.append(" two");
        spoil(&mut change);
        assert_eq!(update(&mut watches, &change), Next::AskAgain);
        assert_eq!(watches.document(&id()).revision, 0, "never a wrong replica");
        let mut out = Vec::new();
        watches.ask_again(&id(), &mut out);
        let FromClient::Watch(wish) = FromClient::decode(&out[4..]).unwrap() else { panic!("no watch") };
        assert_eq!((wish.revision, wish.state_hash), (0, 0));
        let late = source.append("!");
        assert_eq!(update(&mut watches, &late), Next::Nothing, "of the earlier watch");
        watches.verdict("d", false);
        source.snapshot(&mut watches);
        assert_eq!(text(&watches), "one two!");
        assert_eq!(events(&mut watches, handle), ["S3"]);
        let mut again = source.append("?");
        again.0.state_hash += 1;
        assert_eq!(update(&mut watches, &again), Next::AskLater, "not in a tight loop");
    }
}

#[test]
fn a_snapshot_with_a_wrong_hash_is_not_shown() {
    let mut source = Source::new("one");
    let (mut watches, handle) = opened(&source);
    source.append(" two");
    let mut next = Next::Nothing;
    for (offset, piece) in [(0, b"one "), (4, b"tw0!")] {
        let version = source.version();
        let (kind, total_bytes) = (Kind::Text, 8);
        next = watches.snapshot(&Snapshot { document: "d", version, kind, total_bytes, offset, piece });
    }
    assert_eq!(next, Next::AskAgain);
    assert_eq!(events(&mut watches, handle), [""; 0]);
}

#[test]
fn a_watch_resumes_or_says_that_it_could_not() {
    let mut source = Source::new("one");
    let (mut watches, handle) = opened(&source);
    let wishes = watches.wishes();
    assert_eq!((wishes[0].revision, wishes[0].state_hash), (1, source.0.hash()));
    watches.verdict("d", true);
    update(&mut watches, &source.append(" two"));
    assert_eq!(events(&mut watches, handle), ["R", "U2"]);
    watches.wishes();
    watches.verdict("d", false);
    source.append(" three");
    source.append(" four");
    source.snapshot(&mut watches);
    assert_eq!(events(&mut watches, handle), ["S4"]);
    watches.wishes();
    watches.verdict("d", false);
    let older = Source::new("a repaired log");
    older.snapshot(&mut watches);
    assert_eq!(text(&watches), "a repaired log", "after a verdict the server is right, even if it went back");
}

#[test]
fn a_snapshot_within_a_watch_stands_for_the_changes_it_replaces() {
    let mut source = Source::new("one");
    let (mut watches, handle) = opened(&source);
    source.snapshot(&mut watches);
    assert_eq!(events(&mut watches, handle), [""; 0], "nothing new");
    source.append("2");
    source.append("3");
    source.snapshot(&mut watches);
    source.append("4");
    source.snapshot(&mut watches);
    update(&mut watches, &source.append("5"));
    assert_eq!(events(&mut watches, handle), ["S3", "s4", "U5"]);
}

#[test]
fn a_document_that_never_was_is_shown_when_the_server_says_so() {
    let mut watches = Watches::default();
    let opening = watches.open(&id(), WatchMode::Changes, None);
    assert_eq!(watches.wishes().len(), 1);
    watches.verdict("d", false);
    assert_eq!(events(&mut watches, opening.handle), [""; 0], "nothing is known yet");
    let version = Version { revision: 0, state_hash: Body::Absent.hash(), time_us: 0 };
    let (document, kind) = ("d", Kind::Absent);
    watches.snapshot(&Snapshot { document, version, kind, total_bytes: 0, offset: 0, piece: b"" });
    assert_eq!(events(&mut watches, opening.handle), ["S0"]);
}

#[test]
fn a_verdict_about_a_dropped_replica_says_nothing_about_its_successor() {
    let mut source = Source::new("one");
    let (mut watches, handle) = opened(&source);
    let mut out = Vec::new();
    assert_eq!(watches.wishes()[0].revision, 1, "HELLO names the replica held");
    watches.close(&id(), handle, Some(&mut out));
    let mut opening = watches.open(&id(), WatchMode::Changes, Some(&mut out));
    watches.verdict("d", true);
    update(&mut watches, &source.append(" two"));
    let opened = opening.opened.as_mut().unwrap();
    assert!(opened.try_recv().is_err(), "not open with a document nobody vouched for");
    assert_eq!(events(&mut watches, opening.handle), [""; 0]);
    watches.verdict("d", false);
    source.snapshot(&mut watches);
    assert_eq!(opened.try_recv().unwrap(), Ok(()));
    assert_eq!(events(&mut watches, opening.handle), ["S2"]);
    assert_eq!(text(&watches), "one two");
}

#[test]
fn handles_share_a_replica_and_the_last_one_ends_the_watch() {
    let mut source = Source::new("one");
    let (mut watches, first) = opened(&source);
    let mut out = Vec::new();
    let second = watches.open(&id(), WatchMode::Bodies, Some(&mut out));
    assert!(out.is_empty() && second.opened.is_none(), "changes are enough to make bodies from");
    update(&mut watches, &source.append("!"));
    assert_eq!(events(&mut watches, first), ["U2"]);
    assert_eq!(events(&mut watches, second.handle), ["S1", "s2"]);
    watches.close(&id(), first, Some(&mut out));
    assert!(out.is_empty());
    watches.close(&id(), second.handle, Some(&mut out));
    assert_eq!(FromClient::decode(&out[4..]), Ok(FromClient::Unwatch { document: "d" }));
    assert_eq!(watches.len(), 0);
}

#[test]
fn changes_are_asked_for_when_bodies_are_no_longer_enough() {
    let mut watches = Watches::default();
    let mut out = Vec::new();
    let bodies = watches.open(&id(), WatchMode::Bodies, Some(&mut out));
    let mut source = Source::new("one");
    watches.verdict("d", false);
    source.snapshot(&mut watches);
    out.clear();
    let changes = watches.open(&id(), WatchMode::Changes, Some(&mut out));
    let FromClient::Watch(wish) = FromClient::decode(&out[4..]).unwrap() else { panic!("no watch") };
    assert_eq!((wish.mode, wish.revision), (WatchMode::Changes, 1));
    watches.verdict("d", true);
    update(&mut watches, &source.append("!"));
    assert_eq!(events(&mut watches, changes.handle), ["S1", "U2"]);
    assert_eq!(events(&mut watches, bodies.handle), ["S1", "s2"]);
}

#[test]
fn a_refused_watch_says_so_and_is_not_asked_for_again() {
    let source = Source::new("one");
    let (mut watches, handle) = opened(&source);
    assert_eq!(watches.refused("d", Code::UNAVAILABLE), Next::AskLater);
    assert_eq!(watches.refused("d", Code::FORBIDDEN), Next::Nothing);
    assert!(matches!(watches.next_event(&id(), handle), Err(ClientError::Refused(Code::FORBIDDEN))));
    assert!(watches.wishes().is_empty());
    let mut out = Vec::new();
    let again = watches.open(&id(), WatchMode::Changes, Some(&mut out));
    assert!(!out.is_empty(), "rights may have changed");
    watches.refused("d", Code::FORBIDDEN);
    assert_eq!(again.opened.unwrap().try_recv().unwrap(), Err(ClientError::Refused(Code::FORBIDDEN)));
}
