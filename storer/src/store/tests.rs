use super::*;
use crate::digest::Digests;
use crate::projection::{Batch, Projection};
use crate::test_log::TestLog;
use fieldstream_nats::RepairRecord;
use tokio_util::sync::CancellationToken;

fn options(directory: &Path) -> StoreOptions {
    StoreOptions { directory: directory.to_owned(), file_mode: 0o664, map_bytes: 1 << 20, history_revisions: 0 }
}

const IDENTITY: Identity = Identity { lanes: 2, log_id: 0xabc, new_storer: 5, now_us: 6 };

#[test]
fn a_new_directory_has_the_documented_shape_and_opens_again() {
    let temporary = tempfile::tempdir().unwrap();
    let directory = temporary.path().join("deep/storer");
    let store = Store::open(options(&directory), &IDENTITY).unwrap();
    assert_eq!(store.storer(), 5);
    assert_eq!(fs::read_link(directory.join("db")).unwrap(), Path::new("generations/1"));
    for name in ["data.mdb", "lock.mdb"] {
        let mode = fs::metadata(Store::database_path(&directory).join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o664, "{name}");
    }
    assert_eq!(fs::metadata(&directory).unwrap().permissions().mode() & 0o777, 0o775);
    drop(store);
    let again = Store::open(options(&directory), &Identity { new_storer: 9, ..IDENTITY }).unwrap();
    assert_eq!(again.storer(), 5, "drawn once");
    assert_eq!(again.checkpoints().len(), 2);
}

#[test]
fn a_second_storer_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let _first = Store::open(options(directory.path()), &IDENTITY).unwrap();
    let message = Store::open(options(directory.path()), &IDENTITY).err().unwrap().to_string();
    assert!(message.contains(&format!("process id {}", std::process::id())), "{message}");
    assert!(message.contains("give this one another directory"), "{message}");
}

#[test]
fn a_lock_file_left_by_a_killed_storer_is_no_obstacle() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("lock"), "4194304999\n").unwrap();
    assert!(Store::open(options(directory.path()), &IDENTITY).is_ok());
}

#[test]
fn another_log_or_number_of_lanes_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    drop(Store::open(options(directory.path()), &IDENTITY).unwrap());
    let lanes = Store::open(options(directory.path()), &Identity { lanes: 1, ..IDENTITY }).err().unwrap();
    assert!(matches!(lanes, StoreError::Lanes { found: 2, wanted: 1, .. }), "{lanes}");
    let log = Store::open(options(directory.path()), &Identity { log_id: 1, ..IDENTITY }).err().unwrap();
    assert!(matches!(log, StoreError::Log { found: 0xabc, wanted: 1, .. }), "{log}");
}

#[test]
fn something_else_in_the_place_of_the_file_is_told() {
    let directory = tempfile::tempdir().unwrap();
    drop(Store::open(options(directory.path()), &IDENTITY).unwrap());
    fs::write(directory.path().join("db/data.mdb"), vec![7; 8192]).unwrap();
    let error = Store::open(options(directory.path()), &IDENTITY).err().unwrap();
    assert!(matches!(error, StoreError::Invalid { .. }), "{error}");
    assert!(error.to_string().contains("rebuilt from the log"), "{error}");
}

/// Runs in a process of its own (below): holds the file open until its input ends.
fn hold(directory: &Path) {
    let _store = Store::open(options(directory), &IDENTITY).unwrap();
    fs::write(directory.join("held"), "").unwrap();
    io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

#[test]
fn another_lock_file_format_is_told() {
    const HOLD: &str = "FIELDSTREAM_TEST_HOLD";
    if let Some(directory) = std::env::var_os(HOLD) {
        return hold(Path::new(&directory));
    }
    let directory = tempfile::tempdir().unwrap();
    let mut holder = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::tests::another_lock_file_format_is_told"])
        .env(HOLD, directory.path())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    while !directory.path().join("held").exists() {
        assert_eq!(holder.try_wait().unwrap(), None);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let in_use = Store::open(options(directory.path()), &IDENTITY).err().unwrap();
    assert!(in_use.to_string().contains(&format!("process id {}", holder.id())), "{in_use}");
    // The format word behind the magic number becomes that of another LMDB, while it is open.
    let generation = directory.path().join("generations/1");
    let mut lock = OpenOptions::new().write(true).open(generation.join("lock.mdb")).unwrap();
    lock.seek(SeekFrom::Start(4)).unwrap();
    lock.write_all(&[2]).unwrap();
    let error = Tables::open(&generation, 1 << 20).err().unwrap();
    drop(holder.stdin.take());
    holder.wait().unwrap();
    assert!(matches!(error, TableError::LockFormat), "{error}");
    let message = explain(error, &options(directory.path()), &generation).to_string();
    assert!(message.contains("MDB_VERSION_MISMATCH") && message.contains("fuser"), "{message}");
}

#[test]
fn the_link_is_not_touched_when_it_points_elsewhere() {
    let directory = tempfile::tempdir().unwrap();
    drop(Store::open(options(directory.path()), &IDENTITY).unwrap());
    fs::rename(directory.path().join("generations/1"), directory.path().join("generations/7")).unwrap();
    fs::remove_file(directory.path().join("db")).unwrap();
    std::os::unix::fs::symlink("generations/7", directory.path().join("db")).unwrap();
    let store = Store::open(options(directory.path()), &Identity { new_storer: 1, ..IDENTITY }).unwrap();
    assert_eq!(store.storer(), 5);
    assert!(!directory.path().join("generations/1").exists());
}

#[test]
fn a_file_goes_on_with_the_log_that_was_repaired_from_its_state_and_no_other() {
    use fieldstream_nats::{RepairState, RepairedLane};
    use fieldstream_shared::partition::Partition;
    let directory = tempfile::tempdir().unwrap();
    drop(Store::open(options(directory.path()), &IDENTITY).unwrap());
    let lane = |first| RepairedLane {
        events_sequence: 0,
        events_hash: 0,
        instructions_from: 1,
        events_first: first,
        instructions_first: first + 1,
    };
    let record = RepairRecord {
        state: RepairState::Done,
        from_log_id: 0xabc,
        to_log_id: 0xdef,
        storer: 5,
        begun_us: 0,
        lanes: vec![lane(1_000), lane(2_000)],
        losses: vec![],
    };
    let repaired = Identity { log_id: 0xdef, ..IDENTITY };
    let open = |record: &RepairRecord, identity: &Identity| {
        Store::open_as(options(directory.path()), identity, Belongs::ToLogOrRepaired(record))
    };
    let other_state =
        RepairRecord { lanes: vec![RepairedLane { events_sequence: 7, ..lane(1_000) }, lane(2_000)], ..record.clone() };
    let stale = open(&other_state, &repaired).err().unwrap();
    assert!(matches!(stale, StoreError::Stale { storer: 5, .. }), "{stale}");
    let unrelated = open(&RepairRecord { from_log_id: 1, ..record.clone() }, &repaired).err().unwrap();
    assert!(matches!(unrelated, StoreError::Log { found: 0xabc, wanted: 0xdef, .. }), "{unrelated}");
    let later = open(&record, &Identity { log_id: 0x123, ..IDENTITY }).err().unwrap();
    assert!(matches!(later, StoreError::Log { .. }), "a record of another repair says nothing: {later}");
    let any = Store::open_as(options(directory.path()), &repaired, Belongs::Anywhere).unwrap();
    assert_eq!(any.checkpoints()[0].log_id, 0xabc, "only looked at");
    drop(any);

    let adopted = open(&record, &repaired).unwrap();
    let positions: Vec<(u64, u64, u64)> = adopted
        .checkpoints()
        .iter()
        .zip([Partition(0), Partition(1)])
        .map(|(c, p)| (c.log_id, c.events_sequence, c.cursors.get(p).position.sequence))
        .collect();
    assert_eq!(positions, [(0xdef, 999, 1_001), (0xdef, 1_999, 2_001)]);
    drop(adopted);
    let again = Store::open(options(directory.path()), &repaired).unwrap();
    assert_eq!(again.checkpoints()[1].events_sequence, 1_999, "it was written");
    assert_eq!(again.storer(), 5);
}

#[test]
fn history_stays_bounded_and_what_stays_does_not_depend_on_the_commits() {
    let mut log = TestLog::new(0, 1);
    for n in 0..400 {
        log.set_text("c", "d", &n.to_string());
        if n < 10 {
            log.set_text("c", "quiet", &n.to_string());
        }
        log.cut();
    }
    let kept = |history_revisions, messages_per_commit: usize| {
        let directory = tempfile::tempdir().unwrap();
        let options = StoreOptions { history_revisions, map_bytes: 64 << 20, ..options(directory.path()) };
        let store = Store::open(options, &Identity { lanes: 1, ..IDENTITY }).unwrap();
        let mut projection = Projection::new(store.checkpoints().to_vec());
        let numbered: Vec<_> = (1..).zip(&log.messages).collect();
        for messages in numbered.chunks(messages_per_commit) {
            for (sequence, message) in messages {
                let batch = Batch::decode::<TableError>(0, *sequence, message).unwrap();
                projection.handle(batch, &store.read().unwrap()).unwrap();
            }
            store.commit(&projection.writes(1)).unwrap();
            projection.committed();
        }
        let read = store.read().unwrap();
        let mut rows = Vec::new();
        read.rows(|database, key, _| {
            if database == "history" {
                rows.push(
                    crate::rows::HistoryKey::decode(key).map(|key| (key.document.to_string(), key.revision)).unwrap(),
                );
            }
            Ok(())
        })
        .unwrap();
        (rows, Digests::of(&read, 100).unwrap())
    };
    let (all, whole) = kept(0, 7);
    assert_eq!(all.len(), 410);
    let (rows, digests) = kept(100, 7);
    let of = |id: &str| rows.iter().filter(|(document, _)| document == id).map(|(_, r)| *r).collect::<Vec<_>>();
    assert_eq!(of("d"), (285..=400).collect::<Vec<_>>());
    assert_eq!(of("quiet"), (1..=10).collect::<Vec<_>>());
    assert_eq!(digests.places, whole.places, "what is compared is what stays for certain");
    for messages_per_commit in [1, 64, 400] {
        assert_eq!(kept(100, messages_per_commit).0, rows);
    }
}

fn copies_in(directory: &Path) -> Copies {
    Copies::open(directory.join("copies"), 0o664).unwrap()
}

fn make(copies: &Copies, store: &Store) -> Result<CopyState, StoreError> {
    copies.make(store, || 1_790_000_000_123_456, &CancellationToken::new())
}

#[test]
fn what_killed_attempts_left_is_removed_and_never_used() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    drop(Store::open(options(directory.path()), &IDENTITY).unwrap());
    let left = [".restore-1", ".rebuild-1", ".join-1", ".remake-1", "generations/2"];
    for name in left.iter().chain(&[".remake-2", "else"]) {
        fs::create_dir(at(name)).unwrap();
        fs::write(at(name).join("data.mdb"), "cut short").unwrap();
    }
    let _used = take_lock(&at(".remake-2")).unwrap();
    let store = Store::open(options(directory.path()), &Identity { new_storer: 9, ..IDENTITY }).unwrap();
    assert_eq!(store.storer(), 5);
    for name in left {
        assert!(!at(name).exists(), "{name}");
    }
    assert!(at("else").exists() && at(".remake-2").exists(), "a command that runs keeps its own");
}

#[test]
fn a_copy_is_restored_as_a_whole_and_under_the_number_that_is_meant() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = Store::open(options(from.path()), &IDENTITY).unwrap();
    let copy = make(&copies_in(from.path()), &store).unwrap();
    // Where a restore was killed, no file is taken for one that is complete.
    fs::create_dir(to.path().join(".restore-1")).unwrap();
    fs::copy(copy.path.join("data.mdb"), to.path().join(".restore-1/data.mdb")).unwrap();
    drop(Store::open(options(to.path()), &Identity { new_storer: 8, ..IDENTITY }).unwrap());
    assert!(restore(&copy.path, &options(to.path()), Some(8), false).is_err());
    restore(&copy.path, &options(to.path()), Some(8), true).unwrap();
    assert_eq!(fs::read_link(to.path().join("db")).unwrap(), Path::new("generations/2"));
    assert_eq!(Store::number_in(&to.path().join("db")).unwrap(), 8);
    restore(&copy.path, &options(to.path()), None, true).unwrap();
    assert_eq!(Store::number_in(&to.path().join("db")).unwrap(), 5);
    assert_eq!(names_in(to.path(), ".restore-"), [""; 0]);
    fs::write(copy.path.join("data.mdb"), "something else").unwrap();
    assert!(restore(&copy.path, &options(to.path()), None, true).is_err());
    assert_eq!(names_in(to.path(), ".restore-"), [""; 0], "what failed is gone");
    assert_eq!(fs::read_link(to.path().join("db")).unwrap(), Path::new("generations/3"));
}

/// A file with one document.
fn with_text(options: StoreOptions, text: &str) -> Store {
    let store = Store::open(options, &Identity { lanes: 1, ..IDENTITY }).unwrap();
    let mut log = TestLog::new(0, 1);
    log.set_text("c", "d", text);
    log.cut();
    let mut projection = Projection::new(store.checkpoints().to_vec());
    let batch = Batch::decode::<TableError>(0, 1, &log.messages[0]).unwrap();
    projection.handle(batch, &store.read().unwrap()).unwrap();
    store.commit(&projection.writes(1)).unwrap();
    drop(projection);
    store
}

fn names_in(directory: &Path, prefix: &str) -> Vec<String> {
    let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(prefix)).collect()
}

#[test]
fn a_copy_that_was_cut_short_is_refused_before_it_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let options = StoreOptions { map_bytes: 64 << 20, ..options(directory.path()) };
    let store = with_text(options, &"x".repeat(200_000));
    let copies = copies_in(directory.path());
    let copy = make(&copies, &store).unwrap();
    let used = store.used_bytes().unwrap();
    assert!(used.abs_diff(copy.bytes) <= 4 * 4096, "{used} {}", copy.bytes);
    assert_eq!(copies.list().unwrap().len(), 1);
    let file = OpenOptions::new().write(true).open(copy.path.join("data.mdb")).unwrap();
    for bytes in [copy.bytes - 1, copy.bytes / 2, 4096] {
        file.set_len(bytes).unwrap();
        let error = glance(&copy.path).unwrap_err();
        assert!(matches!(error, StoreError::CutShort { .. }), "{bytes}: {error}");
        assert_eq!(copies.list().unwrap(), []);
    }
}

#[test]
fn a_copy_under_way_ends_when_the_storer_stops() {
    let directory = tempfile::tempdir().unwrap();
    let options = StoreOptions { map_bytes: 64 << 20, ..options(directory.path()) };
    let store = with_text(options, "x");
    let (copies, stop) = (copies_in(directory.path()), CancellationToken::new());
    stop.cancel();
    let stopped = copies.make(&store, || 1, &stop).unwrap_err();
    assert!(matches!(stopped, StoreError::Stopped { .. }), "{stopped}");
    assert_eq!(names_in(&directory.path().join("copies"), "."), [""; 0]);
}

#[test]
fn a_copy_counts_as_carried_over_for_a_while_after_each_piece() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(options(directory.path()), &IDENTITY).unwrap();
    let copies = copies_in(directory.path());
    let copy = make(&copies, &store).unwrap();
    assert!(!copies.is_asked_for(copy.made_at_us));
    assert!(!copies.clone().piece(copy.made_at_us, 0, 100).unwrap().is_empty());
    assert!(copies.is_asked_for(copy.made_at_us) && !copies.is_asked_for(1));
}
