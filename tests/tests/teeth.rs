//! Whether the simulation would notice: each defect is switched on, and seeds are played until one
//! run finds something wrong. Defects are a matter of the whole process, so the tests take turns.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use fieldstream_processor::lane::{Lane, LaneOptions};
use fieldstream_shared::cursor::Cursors;
use fieldstream_shared::defect::{self, Defect};
use fieldstream_shared::document::Document;
use fieldstream_shared::ids::ClientId;
use fieldstream_shared::instruction::{Content, Operation};
use fieldstream_shared::marks::Mark;
use fieldstream_shared::partition::PartitionSet;
use fieldstream_shared::read::{Answer, AnswerBody, Query};
use fieldstream_shared::record::{BatchBuilder, NewRecord};
use fieldstream_shared::registry::Registry;
use fieldstream_storer::projection::{Batch, Projection};
use fieldstream_storer::{Identity, Store, StoreOptions, TableError};
use fieldstream_tests::logs::{LogLike, Nats, Noticed};
use fieldstream_tests::sim::{event_log, run};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const SEEDS: u64 = 3_000;
const CONTROL: u64 = 200;

/// Defects in code that the simulation does not run: shells and LMDB, each with a test of its own
/// below, and purging. And one that nobody outside would see: a part that was built on an answer
/// ahead of reading does not fit the cursor that the answer's events have moved.
const ELSEWHERE: [Defect; 5] = [
    Defect::HoleSkipped,
    Defect::ResumeUnverified,
    Defect::CheckpointApart,
    Defect::PurgedPastCopy,
    Defect::AnswerAheadOfReading,
];

static TURN: Mutex<()> = Mutex::new(());

/// Waits for its turn; no defect is on then.
fn turn() -> MutexGuard<'static, ()> {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    defect::deactivate();
    turn
}

/// The first seed that finds something. A panic of a core is a finding, too.
fn first(seeds: u64) -> Option<(u64, String)> {
    (0..seeds).find_map(|seed| match std::panic::catch_unwind(|| run(seed, false)) {
        Ok(Ok(_)) => None,
        Ok(Err(finding)) => Some((seed, finding.what)),
        Err(_) => Some((seed, "a core panics".to_owned())),
    })
}

#[test]
fn every_defect_of_the_cores_is_noticed() {
    let _turn = turn();
    assert_eq!(first(CONTROL), None, "without a defect nothing may be found");
    let mut missed = Vec::new();
    for defect in Defect::ALL.iter().filter(|defect| !ELSEWHERE.contains(defect)) {
        defect::activate(defect.name()).unwrap();
        let begun = Instant::now();
        match first(SEEDS) {
            Some((seed, what)) => {
                let what: String = what.chars().take(110).collect();
                println!("{:<26} seed {seed:>3} {:>6} ms  {what}", defect.name(), begun.elapsed().as_millis());
            }
            None => missed.push(defect.name()),
        }
    }
    defect::deactivate();
    assert_eq!(missed, Vec::<&str>::new(), "not noticed within {SEEDS} seeds");
}

/// Whether a processor decides with an answer that includes more of EVENTS than it has read.
fn decides_ahead_of_reading() -> bool {
    let mut lane = Lane::new(LaneOptions {
        lane: 0,
        lanes: 1,
        incarnation: 1,
        registry: Registry::default(),
        cache_bytes_max: 1 << 20,
        pinned_bytes_max: 1 << 20,
        events_sequence: 0,
        cursors: Cursors::default(),
        catch_up_to: 0,
    });
    lane.handle_owned(PartitionSet::ALL);
    lane.handle_instructions(1, &one_instruction().into(), 0).unwrap();
    while let Some(load) = lane.poll_load() {
        let Query::GetMany { documents, marks } = load.request.query else { panic!("not asked by a lane") };
        let documents = vec![Document::default(); documents.len()];
        let body = AnswerBody::Values { documents, marks: vec![Mark::default(); marks.len()] };
        lane.handle_loaded(load.id, Answer { sequence: 5, body });
    }
    lane.poll_batch(0).unwrap().is_some()
}

fn one_instruction() -> Vec<u8> {
    let mut operation = Vec::new();
    Operation::Append("x".into()).write(&mut operation);
    let record = NewRecord {
        client: &ClientId::new("c").unwrap(),
        epoch: 1,
        number: 1,
        settled: 1,
        resent: false,
        received_at_us: 1,
        content: Content { document: "d", if_revision: None, operation: &operation },
        refuse: None,
        trace: None,
    };
    let mut records = BatchBuilder::default();
    records.push(&record.encode());
    records.finish()
}

#[test]
fn an_answer_ahead_of_reading_is_noticed() {
    let _turn = turn();
    assert!(!decides_ahead_of_reading());
    defect::activate(Defect::AnswerAheadOfReading.name()).unwrap();
    assert!(decides_ahead_of_reading(), "the check would pass with the defect");
    defect::deactivate();
}

/// Whether a reader that goes on behind the second message says what is wrong with the log.
fn notices(damage: fn(&mut Nats)) -> Option<Noticed> {
    let mut log = Nats::start();
    for n in 1..=4u8 {
        log.append(vec![n].into()).unwrap();
    }
    damage(&mut log);
    log.read(2, Some(b"\x02"), 2).1
}

#[test]
fn a_reader_that_skips_a_hole_is_noticed() {
    let _turn = turn();
    assert_eq!(notices(|log| log.remove(3)), Some(Noticed::Hole));
    defect::activate(Defect::HoleSkipped.name()).unwrap();
    assert_ne!(notices(|log| log.remove(3)), Some(Noticed::Hole), "the check would pass with the defect");
    defect::deactivate();
}

#[test]
fn a_reader_that_does_not_look_at_its_last_message_is_noticed() {
    let _turn = turn();
    let other = |log: &mut Nats| log.read(2, Some(b"another"), 1).1;
    let mut log = Nats::start();
    for n in 1..=4u8 {
        log.append(vec![n].into()).unwrap();
    }
    assert_eq!(other(&mut log), Some(Noticed::Diverged));
    defect::activate(Defect::ResumeUnverified.name()).unwrap();
    assert_ne!(other(&mut log), Some(Noticed::Diverged), "the check would pass with the defect");
    defect::deactivate();
}

/// Whether some state of the file, as a reader beside the storer sees it, has a document that is
/// ahead of the checkpoint: what a crash at that moment would leave behind.
fn is_torn_within(commits: u64) -> bool {
    let directory = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        directory: directory.path().to_owned(),
        file_mode: 0o664,
        map_bytes: 64 << 20,
        history_revisions: 0,
    };
    let store = Store::open(options, &Identity { lanes: 1, log_id: 1, new_storer: 2, now_us: 3 }).unwrap();
    let (done, torn) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let read = store.read().unwrap();
                let checkpoint = read.sequence(0).unwrap().unwrap_or(0);
                let row = fieldstream_storer::projection::State::document(&read, "d").unwrap();
                if row.is_some_and(|row| row.sequence > checkpoint) {
                    torn.store(true, Ordering::Relaxed);
                }
            }
        });
        let mut projection = Projection::new(store.checkpoints().to_vec());
        for (sequence, message) in (1..).zip(event_log("d", commits)) {
            if torn.load(Ordering::Relaxed) {
                break;
            }
            let batch = Batch::decode::<TableError>(0, sequence, &message).unwrap();
            projection.handle(batch, &store.read().unwrap()).unwrap();
            store.commit(&projection.writes(1)).unwrap();
            projection.committed();
        }
        done.store(true, Ordering::Relaxed);
    });
    torn.into_inner()
}

#[test]
fn a_checkpoint_in_another_transaction_is_noticed() {
    let _turn = turn();
    assert!(!is_torn_within(300));
    defect::activate(Defect::CheckpointApart.name()).unwrap();
    let begun = Instant::now();
    assert!(is_torn_within(3_000), "no torn state was seen");
    assert!(begun.elapsed() < Duration::from_secs(120));
    defect::deactivate();
}
