//! Whether the simulation would notice: each defect is switched on, and seeds are played until one
//! run finds something wrong. Defects are a matter of the whole process, so the tests take turns.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use fieldstream_shared::defect::{self, Defect};
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
/// below, and purging.
const ELSEWHERE: [Defect; 4] =
    [Defect::HoleSkipped, Defect::ResumeUnverified, Defect::CheckpointApart, Defect::PurgedPastCopy];

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
