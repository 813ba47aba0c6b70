use super::*;
use crate::projection::{Batch, Projection};
use crate::rows::HistoryRow;
use crate::store::{Identity, Store, StoreOptions};
use crate::tables::Tables;
use crate::test_log::TestLog;
use fieldstream_shared::change::{Change, Edit, Primitive};
use fieldstream_shared::document::{Body, Document};
use fieldstream_shared::value::{Map, Value};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::PathBuf;

const MAP_BYTES: usize = 64 << 20;

/// Stores a log in a new file, `per_commit` messages at a time, and lets go of it.
fn store(directory: &Path, log: &TestLog, per_commit: usize, history_revisions: u64) {
    let directory = directory.to_owned();
    let options = StoreOptions { directory, file_mode: 0o664, map_bytes: MAP_BYTES, history_revisions };
    let store = Store::open(options, &Identity { lanes: 1, log_id: 1, new_storer: 2, now_us: 3 }).unwrap();
    let mut projection = Projection::new(store.checkpoints_now().unwrap());
    for (sequence, message) in (1..).zip(&log.messages) {
        projection.handle(Batch::decode::<TableError>(0, sequence, message).unwrap(), &store.read().unwrap()).unwrap();
        if (sequence as usize).is_multiple_of(per_commit) || sequence as usize == log.messages.len() {
            store.commit(&projection.writes(sequence)).unwrap();
            projection.committed();
        }
    }
}

/// Every state of every document, by document and revision.
type Model = BTreeMap<(String, u64), Document>;

/// Makes a log of those changes that fit, a batch of each few, and the states they make.
fn log_of(changes: &[(u8, Change)]) -> (TestLog, Model) {
    let (mut log, mut model) = (TestLog::new(0, 1), Model::new());
    log.step_us = 10;
    for (n, (document, change)) in changes.iter().enumerate() {
        // Most changes are of one document: it becomes long enough to be cut.
        let id = format!("site{}/d", document.saturating_sub(200) % 3);
        let before = log.expected(&id);
        let mut body = before.body;
        if change.iter().any(|primitive| primitive.apply(&mut body).is_err()) {
            continue;
        }
        log.update(&format!("c{}", document % 2), &id, change.clone());
        model.insert((id.clone(), before.revision + 1), log.expected(&id));
        if n % 3 == 2 {
            log.cut();
        }
    }
    log.cut();
    (log, model)
}

fn any_change() -> impl Strategy<Value = Change> {
    let text = || prop_oneof![4 => "[a-zä𝄞]{0,12}", 1 => "[a-zä]{900,3000}"];
    let map = || {
        let value = prop_oneof![
            Just(Value::Nil),
            any::<i64>().prop_map(|n| Value::Int(n.into())),
            "[a-z]{0,900}".prop_map(Value::Str),
            Just(Value::Map(Map::new())),
        ];
        proptest::collection::btree_map("[a-d]", value, 0..4)
    };
    let path = proptest::collection::vec("[a-d]", 1..3);
    let primitive = prop_oneof![
        1 => text().prop_map(Primitive::SetText),
        1 => map().prop_map(Primitive::SetMap),
        6 => text().prop_map(Primitive::Append),
        6 => (0_u64..8, 0_u64..3, text())
            .prop_map(|(position, deleted, inserted)| Primitive::Splice(vec![Edit { position, deleted, inserted }])),
        6 => map().prop_map(Primitive::Merge),
        3 => (path, any::<i64>()).prop_map(|(path, n)| Primitive::SetAt(path, Value::Int(n.into()))),
        1 => Just(Primitive::Delete),
    ];
    proptest::collection::vec(primitive, 1..3)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_revision_that_there_is_reads_as_it_was(
        changes in proptest::collection::vec((any::<u8>(), any_change()), 1..220),
        per_commit in 1_usize..9,
        history_revisions in prop_oneof![Just(0_u64), 1_u64..20],
    ) {
        let (log, model) = log_of(&changes);
        let directory = tempfile::tempdir().unwrap();
        store(directory.path(), &log, per_commit, history_revisions);
        let mut reports = Reports::open(directory.path()).unwrap();
        for ((id, revision), document) in &model {
            let (first, _) = reports.revisions(id).unwrap();
            match reports.state(id, *revision) {
                Ok(state) => {
                    prop_assert_eq!(&state.body, &document.body, "{} {}", id, revision);
                    prop_assert_eq!(state.row.version.time_us, document.time_us);
                    prop_assert!(*revision >= first);
                    for time_us in [document.time_us, document.time_us + 9] {
                        prop_assert_eq!(reports.revision_at(id, time_us).unwrap(), *revision);
                    }
                }
                Err(ReportError::Trimmed { first: begins, .. }) => prop_assert!(*revision < first && begins == first),
                Err(error) => prop_assert!(false, "{} {}: {}", id, revision, error),
            }
        }
        for id in ["site0/d", "site1/d", "site2/d"] {
            let Ok((first, last)) = reports.revisions(id) else { continue };
            let mut expected = first;
            reports.states(id, first..=last, |row, body| {
                assert_eq!((row.version.revision, body), (expected, &model[&(id.to_owned(), expected)].body));
                expected += 1;
                std::ops::ControlFlow::Continue(())
            }).unwrap();
            prop_assert_eq!(expected, last + 1);
        }
    }
}

#[test]
fn a_long_history_is_read_from_the_whole_states_in_it_also_when_its_beginning_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let (log, model) = log_of(&(0..300).map(|n| (0, vec![Primitive::Append(format!("{n:0300}"))])).collect::<Vec<_>>());
    store(directory.path(), &log, 1, 10);
    let mut reports = Reports::open(directory.path()).unwrap();
    let (first, last) = reports.revisions("site0/d").unwrap();
    assert!(first > 100 && last == 300, "{first}");
    let rows = all(&mut reports, |reports, from| reports.history("site0/d", 1..=last, from));
    let whole = rows.iter().filter(|row| row.body.is_some()).count();
    assert!(rows[0].body.is_some() && whole > 1 && whole < rows.len() / 4, "{whole} of {}", rows.len());
    for revision in first..=last {
        let state = reports.state("site0/d", revision).unwrap();
        assert_eq!(state.body, model[&("site0/d".to_owned(), revision)].body);
    }
    for revision in [1, first - 1] {
        assert!(matches!(reports.state("site0/d", revision), Err(ReportError::Trimmed { first: f, .. }) if f == first));
    }
}

/// All pages of something.
fn all<T>(
    reports: &mut Reports,
    mut page: impl FnMut(&mut Reports, Option<&Next>) -> Result<Page<T>, ReportError>,
) -> Vec<T> {
    let (mut rows, mut next) = (Vec::new(), None);
    loop {
        let page = page(reports, next.as_ref()).unwrap();
        assert!(page.rows.len() <= PAGE.rows_max);
        rows.extend(page.rows);
        next = page.next;
        if next.is_none() {
            return rows;
        }
    }
}

/// A log of 2,500 documents and one with as many changes.
fn large(directory: &Path) -> TestLog {
    let mut log = TestLog::new(0, 1);
    for n in 0..2_500 {
        log.set_text("c", &format!("many/{n:04}"), "x");
        log.update("d", "one", vec![Primitive::Append("y".into())]);
        if n % 100 == 99 {
            log.refuse("c", "one");
            log.dead("one");
            log.cut();
        }
    }
    store(directory, &log, 5, 0);
    log
}

#[test]
fn pages_tell_every_row_once_and_in_order() {
    let directory = tempfile::tempdir().unwrap();
    large(directory.path());
    let mut reports = Reports::open(directory.path()).unwrap();
    let documents = all(&mut reports, |reports, from| reports.documents("many/", from));
    assert_eq!(documents.len(), 2_500);
    assert!(documents.is_sorted_by(|a, b| a.0 < b.0));
    assert_eq!(all(&mut reports, |reports, from| reports.documents("", from)).len(), 2_501);
    assert_eq!(all(&mut reports, |reports, from| reports.documents("many/001", from)).len(), 10);
    let revisions = |rows: Vec<HistoryRow>| rows.iter().map(|row| row.version.revision).collect::<Vec<_>>();
    let history = revisions(all(&mut reports, |reports, from| reports.history("one", 3..=2_400, from)));
    assert_eq!(history, (3..=2_400).collect::<Vec<_>>());
    let back = revisions(all(&mut reports, |reports, from| reports.history_back("one", 3..=2_400, from)));
    assert_eq!(back, (3..=2_400).rev().collect::<Vec<_>>());
    assert_eq!(all(&mut reports, |reports, from| reports.histories("", from)).len(), 5_000);
    let occurred = all(&mut reports, |reports, from| reports.changes(0, u64::MAX, from));
    assert_eq!(occurred.len(), 5_000);
    assert!(occurred.is_sorted_by_key(|occurred| occurred.time_us));
    let full = all(&mut reports, |reports, from| reports.changes_in_full("one", 5, 1_500, from));
    assert_eq!(full.len(), 1_495);
    assert!(full.iter().all(|(occurred, row)| row.as_ref().unwrap().version.revision == occurred.revision));
    assert_eq!(all(&mut reports, |reports, from| reports.marks(from)).len(), {
        let partitions = |id: &str| fieldstream_shared::partition::Partition::of(id);
        let of_c = (0..2_500).map(|n| partitions(&format!("many/{n:04}"))).chain([partitions("one")]);
        of_c.collect::<std::collections::BTreeSet<_>>().len() + 1
    });
    assert_eq!(all(&mut reports, |reports, from| reports.dead_letters(from)).len(), 25);
}

#[test]
fn it_says_how_far_and_how_large_the_file_is() {
    let directory = tempfile::tempdir().unwrap();
    let log = large(directory.path());
    let mut reports = Reports::open(directory.path()).unwrap();
    let as_of = reports.as_of().unwrap();
    let sequence = log.messages.len() as u64;
    assert_eq!(as_of.lanes, [LaneAsOf { lane: 0, events_sequence: sequence, committed_at_us: sequence }]);
    assert_eq!((as_of.behind_us(sequence + 7), as_of.behind_us(0)), (7, 0));
    let figures = reports.figures().unwrap();
    assert_eq!((figures.rows.documents, figures.rows.history, figures.rows.by_time), (2_501, 5_000, Some(5_000)));
    assert_eq!(figures.newest_us, [Some(2_500)]);
    assert!(figures.file_bytes >= figures.rows.used_bytes && figures.rows.used_bytes > 500_000);
    assert_eq!(reports.document("one").unwrap().unwrap().document, log.expected("one"));
    assert_eq!(reports.document("none").unwrap(), None);
}

#[test]
fn what_is_not_there_is_said_to_be_so() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("nowhere");
    assert!(matches!(Reports::open(&missing), Err(ReportError::Missing { path }) if path == missing));
    assert!(matches!(Reports::open(directory.path()), Err(ReportError::NoDatabase { .. })));
    std::fs::write(directory.path().join("data.mdb"), [7; 9_000]).unwrap();
    assert!(matches!(Reports::open(directory.path()), Err(ReportError::Invalid { .. })));
    std::fs::remove_file(directory.path().join("data.mdb")).unwrap();
    let (log, _) = log_of(&[(0, vec![Primitive::SetText("a".into())])]);
    store(directory.path(), &log, 1, 0);
    let mut reports = Reports::open(&directory.path().join("db/data.mdb")).unwrap();
    assert!(matches!(reports.state("none", 1), Err(ReportError::NoDocument { .. })));
    for revision in [0, 2] {
        let told = reports.state("site0/d", revision);
        assert!(matches!(told, Err(ReportError::NoRevision { last: 1, .. })), "{told:?}");
    }
    assert!(matches!(reports.revision_at("site0/d", 9), Err(ReportError::NotYet { .. })));
    assert_eq!(reports.revision_at("site0/d", 10).unwrap(), 1);
}

#[test]
fn files_of_earlier_versions_tell_what_they_can() {
    let directory = tempfile::tempdir().unwrap();
    let append = |n: u32| (0, vec![Primitive::Append(format!("{n} "))]);
    let (log, model) = log_of(&(0..9).map(append).collect::<Vec<_>>());
    store(directory.path(), &log, 1, 0);
    Tables::open(&directory.path().join("db"), MAP_BYTES).unwrap().make_old("site0/d", 4);
    let mut reports = Reports::open(directory.path()).unwrap();
    assert!(!reports.has_by_time().unwrap());
    assert!(matches!(reports.changes(0, u64::MAX, None), Err(ReportError::NoByTime { .. })));
    assert_eq!(reports.figures().unwrap().rows.by_time, None);
    assert!(matches!(reports.state("site0/d", 3), Err(ReportError::Trimmed { first: 4, .. })));
    assert!(matches!(reports.revision_at("site0/d", 30), Err(ReportError::Trimmed { first: 4, .. })));
    let error = reports.state("site0/d", 8).unwrap_err().to_string();
    assert_eq!(error, "not available: history of `site0/d` begins at revision 4 without a whole state");
    assert_eq!(reports.state("site0/d", 9).unwrap().body, model[&("site0/d".to_owned(), 9)].body);
}

#[test]
fn a_rebuilt_file_is_followed_between_two_pages() {
    let directory = tempfile::tempdir().unwrap();
    large(directory.path());
    let mut reports = Reports::open(directory.path()).unwrap();
    let first = reports.documents("many/", None).unwrap();
    let before = reports.folder().to_owned();
    let generations = directory.path().join("generations");
    std::fs::create_dir(generations.join("2")).unwrap();
    let from = |number: &str| -> PathBuf { generations.join(number).join("data.mdb") };
    std::fs::copy(from("1"), from("2")).unwrap();
    std::fs::remove_file(directory.path().join("db")).unwrap();
    std::os::unix::fs::symlink("generations/2", directory.path().join("db")).unwrap();
    let second = reports.documents("many/", first.next.as_ref()).unwrap();
    assert_eq!(second.rows[0].0.as_str(), "many/1000");
    assert_ne!(before, reports.folder());
}

#[test]
fn a_change_that_was_altered_is_found_by_its_hash() {
    let directory = tempfile::tempdir().unwrap();
    let (log, _) = log_of(&[
        (0, vec![Primitive::SetText("hello".into())]),
        (0, vec![Primitive::Append("ABCDEFGH".into())]),
        (0, vec![Primitive::Append("!".into())]),
    ]);
    store(directory.path(), &log, 1, 0);
    let data = directory.path().join("db/data.mdb");
    let mut bytes = std::fs::read(&data).unwrap();
    for at in 0..bytes.len() - 8 {
        if &bytes[at..at + 8] == b"ABCDEFGH" {
            bytes[at] = b'X';
        }
    }
    std::fs::write(&data, bytes).unwrap();
    let mut reports = Reports::open(directory.path()).unwrap();
    assert_eq!(reports.state("site0/d", 1).unwrap().body, Body::Text("hello".into()));
    for revision in [2, 3] {
        let told = reports.state("site0/d", revision);
        assert!(matches!(told, Err(ReportError::Damaged { misfit: fieldstream_shared::change::Misfit::Hash, .. })));
    }
}

/// As a storer switches its link to a rebuilt file, and an operator removes the old one at once.
#[test]
fn a_file_that_is_switched_while_it_is_opened_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let link = directory.path().join("db");
    let (log, _) = log_of(&[(0, vec![Primitive::SetText("held".into())])]);
    let switch = |n: u32| {
        let generation = directory.path().join(format!("generation-{n}"));
        store(&generation, &log, 1, 0);
        let next = directory.path().join("next");
        std::os::unix::fs::symlink(&generation, &next).unwrap();
        std::fs::rename(&next, &link).unwrap();
        if let Some(before) = n.checked_sub(1) {
            std::fs::remove_dir_all(directory.path().join(format!("generation-{before}"))).unwrap();
        }
    };
    switch(0);
    std::thread::scope(|scope| {
        let switching = scope.spawn(|| (1..=60).for_each(switch));
        while !switching.is_finished() {
            let mut file = open::File::open(&link).unwrap();
            assert!(file.read().unwrap().document("site0/d").unwrap().is_some());
        }
    });
}
