use super::*;
use crate::store::{Identity, Store, StoreOptions};
use crate::tables::{DumpedRow, TableError};
use crate::test_log::TestLog;
use fieldstream_shared::change::Primitive;
use fieldstream_shared::code::Code;
use fieldstream_shared::cursor::{BatchId, Cursor, Position};
use fieldstream_shared::event::encode_event_batch;
use fieldstream_shared::record::BatchBuilder;
use proptest::prelude::*;
use std::path::Path;

/// Nothing was ever stored.
struct Empty;

impl State for Empty {
    type Error = std::convert::Infallible;

    fn document(&self, _: &str) -> Result<Option<DocumentRow>, Self::Error> {
        Ok(None)
    }

    fn mark(&self, _: Partition, _: &str) -> Result<Option<MarkRow>, Self::Error> {
        Ok(None)
    }
}

type Outcome = Result<Projection, ProjectionError<std::convert::Infallible>>;

fn checkpoint(lanes: u16) -> Checkpoint {
    Checkpoint { log_id: 1, lanes, events_sequence: 0, events_hash: 0, cursors: Default::default() }
}

/// Projects a log onto nothing, in one commit.
fn project(log: &TestLog) -> Outcome {
    let mut projection = Projection::new(vec![checkpoint(1)]);
    for (sequence, message) in (1..).zip(&log.messages) {
        projection.handle(Batch::decode(0, sequence, message)?, &Empty)?;
    }
    Ok(projection)
}

fn open(directory: &Path, lanes: u16) -> Store {
    let options =
        StoreOptions { directory: directory.to_owned(), file_mode: 0o664, map_bytes: 64 << 20, history_revisions: 0 };
    Store::open(options, &Identity { lanes, log_id: 1, new_storer: 2, now_us: 3 }).unwrap()
}

/// Stores messages behind the file's checkpoints; a commit after each number of them in `cuts`.
fn store(store: &Store, messages: &[Vec<u8>], cuts: &[usize]) -> Result<(), ProjectionError<TableError>> {
    let checkpoints = vec![store.read().unwrap().checkpoint(0).unwrap().unwrap().checkpoint];
    let mut projection = Projection::new(checkpoints);
    let done = projection.sequences()[0];
    let mut cuts = cuts.iter().copied().cycle();
    let mut left = cuts.next().unwrap_or(1);
    for (sequence, message) in (1..).zip(messages).filter(|(sequence, _)| *sequence > done) {
        projection.handle(Batch::decode(0, sequence, message)?, &store.read().unwrap())?;
        left -= 1;
        if left == 0 {
            store.commit(&projection.writes(4)).unwrap();
            projection.committed();
            left = cuts.next().unwrap_or(1);
        }
    }
    if projection.batches() > 0 {
        store.commit(&projection.writes(4)).unwrap();
    }
    Ok(())
}

fn dump(store: &Store) -> Vec<DumpedRow> {
    store.read().unwrap().dump().unwrap()
}

#[test]
fn updates_become_documents_history_and_marks() {
    let mut log = TestLog::new(0, 1);
    log.set_text("c", "d", "one");
    log.update("c", "d", vec![Primitive::Append(" two".into())]);
    log.refuse("c", "d");
    log.cut();
    let projection = project(&log).unwrap();
    let writes = projection.writes(0);
    let row = &writes.documents["d"];
    assert_eq!(row.document, log.expected("d"));
    assert_eq!((row.number, row.sequence, row.document.revision), (2, 1, 2));
    let revisions: Vec<u64> = writes.history.iter().map(|placed| placed.row.revision).collect();
    assert_eq!(revisions, [1, 2]);
    let MarkRow { mark, .. } = &writes.marks[&(ClientId::new("c").unwrap(), Partition::of("d"))];
    assert_eq!((mark.highest, mark.window.len()), (3, 3));
    let (lane, _, row) = &writes.checkpoints[0];
    assert_eq!((*lane, row.checkpoint.events_sequence, row.instructions_sequence), (0, 1, 1));
    assert_eq!(row.checkpoint.events_hash, message_hash(&log.messages[0]));
    assert_eq!(&row.checkpoint.cursors, log.cursors());
}

#[test]
fn a_batch_published_twice_counts_once() {
    let mut log = TestLog::new(0, 1);
    log.set_text("c", "d", "one");
    log.cut();
    log.publish_again();
    log.update("c", "d", vec![Primitive::Append("!".into())]);
    log.cut();
    let projection = project(&log).unwrap();
    assert_eq!(projection.writes(0).documents["d"].document, log.expected("d"));
    assert_eq!(projection.sequences(), [3]);
}

#[test]
fn a_zombies_part_is_ignored_and_the_rest_of_its_batch_counts() {
    let mut log = TestLog::new(0, 1);
    let (own, zombie) = (log.document(1), log.document(2));
    log.set_text("c", &zombie, "kept");
    log.cut();
    log.half_zombie("c", &own, &zombie);
    log.set_text("c", &zombie, "next");
    log.cut();
    let projection = project(&log).unwrap();
    let writes = projection.writes(0);
    for document in [&own, &zombie] {
        assert_eq!(writes.documents[document.as_str()].document, log.expected(document));
    }
    let MarkRow { mark, .. } = &writes.marks[&(ClientId::new("c").unwrap(), Partition::of(&zombie))];
    assert_eq!(mark.highest, 3, "the zombie's number was not seen");
    assert_eq!(&writes.checkpoints[0].2.checkpoint.cursors, log.cursors());
}

#[test]
fn repeated_numbers_leave_no_row_but_the_mark() {
    let mut log = TestLog::new(0, 1);
    log.set_text("c", "d", "one");
    log.repeat("c", "d");
    log.cut();
    let projection = project(&log).unwrap();
    let writes = projection.writes(0);
    assert_eq!((writes.history.len(), writes.documents["d"].document.revision), (1, 1));
    assert_eq!(writes.dead_letters.len(), 0);
}

#[test]
fn dead_events_become_dead_letters() {
    let mut log = TestLog::new(0, 1);
    log.dead("d");
    log.dead("d");
    log.cut();
    let projection = project(&log).unwrap();
    let writes = projection.writes(0);
    assert_eq!((writes.documents.len(), writes.marks.len(), writes.dead_letters.len()), (0, 0, 2));
    let (key, row) = writes.dead_letters.last_key_value().unwrap();
    assert_eq!((key.sequence, key.event_index, row.instruction_index), (1, 1, 1));
    assert_eq!((row.code, row.raw.len()), (Code::UNDECODABLE, 20));
}

#[test]
fn what_cannot_be_decoded_stops_with_lane_and_sequence() {
    let mut log = TestLog::new(0, 1);
    log.set_text("c", "d", "one");
    log.garbage(&[0xc1]);
    log.cut();
    let error = project(&log).err().unwrap();
    assert!(matches!(error, ProjectionError::Event { lane: 0, sequence: 1, index: 1, .. }), "{error}");
    assert!(error.to_string().starts_with("lane 0, EVENTS sequence 1: event 1 of the batch cannot be decoded"));
    log.messages = vec![vec![0x94, 2, 0, 0, 0]];
    let error = project(&log).err().unwrap();
    let newer = DecodeError::UnknownVersion(2);
    assert_eq!(error, ProjectionError::Batch { lane: 0, sequence: 1, error: newer });
}

#[test]
fn a_change_that_does_not_fit_stops_with_its_document() {
    for (revision, state_hash, expected) in [(2, 0, Misfit::Revision { document: 0, change: 2 }), (1, 0, Misfit::Hash)]
    {
        let mut log = TestLog::new(0, 1);
        let version = Version { revision, state_hash, time_us: 1 };
        log.push("c", "d", EventBody::Updated { version, change: vec![Primitive::SetText("x".into())] });
        log.cut();
        match project(&log).err().unwrap() {
            ProjectionError::Misfit { document, misfit, sequence: 1, .. } => {
                assert_eq!((document.as_str(), misfit), ("d", expected));
            }
            other => panic!("{other}"),
        }
    }
}

#[test]
fn an_event_on_a_foreign_partition_stops() {
    let mut log = TestLog::new(0, 1);
    log.set_text("c", "d", "one");
    log.cut();
    let mut events = BatchBuilder::default();
    let batch = EventBatch::decode(&log.messages[0]).unwrap();
    let mut event = Event::decode(batch.events[0]).unwrap();
    event.partition = Partition(event.partition.0.wrapping_add(1));
    events.push(&event.encode());
    log.messages = vec![encode_event_batch(batch.id, &batch.parts, &events)];
    assert!(matches!(project(&log), Err(ProjectionError::Misplaced { .. })));
}

#[test]
fn a_gap_or_an_unknown_lane_stops() {
    let mut log = TestLog::new(0, 1);
    log.set_text("c", "d", "one");
    log.cut();
    let mut projection = Projection::new(vec![checkpoint(1)]);
    let batch = Batch::decode::<std::convert::Infallible>(0, 2, &log.messages[0]).unwrap();
    let error = projection.handle(batch.clone(), &Empty);
    assert_eq!(error, Err(ProjectionError::NotContiguous { lane: 0, expected: 1, found: 2 }));
    let error = projection.handle(Batch { lane: 1, ..batch }, &Empty);
    assert_eq!(error, Err(ProjectionError::UnknownLane { lane: 1, lanes: 1 }));
}

#[test]
fn only_lanes_that_moved_are_written() {
    let mut log = TestLog::new(1, 2);
    let document = log.document(1);
    log.set_text("c", &document, "one");
    log.cut();
    let mut projection = Projection::new(vec![checkpoint(2), checkpoint(2)]);
    let batch = Batch::decode::<std::convert::Infallible>(1, 1, &log.messages[0]).unwrap();
    projection.handle(batch, &Empty).unwrap();
    let lanes: Vec<u16> = projection.writes(0).checkpoints.iter().map(|(lane, ..)| *lane).collect();
    assert_eq!(lanes, [1]);
    projection.committed();
    assert!(projection.writes(0).checkpoints.is_empty());
    let cursor =
        Cursor { position: Position { sequence: 1, records: 1 }, set_by: Some(BatchId { incarnation: 7, counter: 1 }) };
    assert_eq!(log.cursors().get(Partition::of(&document)), cursor);
}

#[test]
fn what_was_not_committed_is_gone_and_the_file_goes_on_at_its_checkpoint() {
    let mut log = TestLog::new(0, 1);
    for n in 0..20 {
        log.set_text("c", &log.document(n % 3), &"x".repeat(n as usize));
        log.cut();
    }
    let (straight, crashed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let whole = open(straight.path(), 1);
    store(&whole, &log.messages, &[1]).unwrap();

    let first = open(crashed.path(), 1);
    store(&first, &log.messages[..7], &[7]).unwrap();
    let before = dump(&first);
    let mut lost = Projection::new(vec![first.read().unwrap().checkpoint(0).unwrap().unwrap().checkpoint]);
    for (sequence, message) in (8..).zip(&log.messages[7..12]) {
        let batch = Batch::decode::<TableError>(0, sequence, message).unwrap();
        lost.handle(batch, &first.read().unwrap()).unwrap();
    }
    drop((lost, first));

    let again = open(crashed.path(), 1);
    assert_eq!(again.checkpoints()[0].events_sequence, 7);
    assert_eq!(dump(&again), before);
    store(&again, &log.messages, &[4]).unwrap();
    assert_eq!(dump(&again), dump(&whole));
}

#[derive(Debug, Clone)]
enum Action {
    Set(u8, u8, String),
    Append(u8, u8, String),
    Delete(u8, u8),
    Refuse(u8, u8),
    Repeat(u8, u8),
    Dead(u8),
    Cut,
    Again,
    Zombie(u8, u8),
}

fn action() -> impl Strategy<Value = Action> {
    let (c, d, text) = (|| 0u8..3, || 0u8..6, "[a-z]{0,900}");
    prop_oneof![
        4 => (c(), d(), text).prop_map(|(c, d, t)| Action::Set(c, d, t)),
        4 => (c(), d(), "[a-z]{0,90}").prop_map(|(c, d, t)| Action::Append(c, d, t)),
        1 => (c(), d()).prop_map(|(c, d)| Action::Delete(c, d)),
        1 => (c(), d()).prop_map(|(c, d)| Action::Refuse(c, d)),
        1 => (c(), d()).prop_map(|(c, d)| Action::Repeat(c, d)),
        1 => d().prop_map(Action::Dead),
        6 => Just(Action::Cut),
        1 => Just(Action::Again),
        1 => (c(), d()).prop_map(|(c, d)| Action::Zombie(c, d)),
    ]
}

fn play(actions: &[Action]) -> TestLog {
    let mut log = TestLog::new(0, 1);
    let client = |c: &u8| format!("client-{c}");
    for action in actions {
        let document = |d: &u8| format!("doc/{d}");
        match action {
            Action::Set(c, d, text) => log.set_text(&client(c), &document(d), text),
            Action::Append(c, d, text) => {
                log.update(&client(c), &document(d), vec![Primitive::Append(text.clone())]);
            }
            Action::Delete(c, d) => log.update(&client(c), &document(d), vec![Primitive::Delete]),
            Action::Refuse(c, d) => log.refuse(&client(c), &document(d)),
            Action::Repeat(c, d) => log.repeat(&client(c), &document(d)),
            Action::Dead(d) => log.dead(&document(d)),
            Action::Cut => log.cut(),
            Action::Again => log.publish_again(),
            Action::Zombie(c, d) => {
                log.cut();
                log.half_zombie(&client(c), &document(d), &document(&((d + 1) % 6)));
            }
        }
    }
    log.cut();
    log
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn the_file_depends_on_the_log_and_not_on_how_it_was_cut_into_commits(
        actions in proptest::collection::vec(action(), 1..60),
        cuts in proptest::collection::vec(1usize..9, 1..5),
    ) {
        let log = play(&actions);
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (one, other) = (open(a.path(), 1), open(b.path(), 1));
        store(&one, &log.messages, &[usize::MAX]).unwrap();
        store(&other, &log.messages, &cuts).unwrap();
        prop_assert_eq!(dump(&one), dump(&other));
        let read = one.read().unwrap();
        for d in 0..6 {
            let id = format!("doc/{d}");
            let row = State::document(&read, &id).unwrap();
            prop_assert_eq!(row.map(|row| row.document).unwrap_or_default(), log.expected(&id));
        }
        prop_assert_eq!(&read.checkpoint(0).unwrap().unwrap().checkpoint.cursors, log.cursors());
    }
}
