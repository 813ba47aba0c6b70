//! Facts of files that the storer's own code wrote, against what a model counts.

use super::*;
use crate::projection::{Batch, Projection};
use crate::report::{LaneAsOf, Reports};
use crate::store::{Identity, Store, StoreOptions};
use crate::tables::TableError;
use crate::test_log::TestLog;
use fieldstream_shared::change::Primitive;
use fieldstream_shared::document::Body;
use fieldstream_shared::outcome::Outcome;
use fieldstream_shared::value::{Map, Value};
use std::collections::BTreeMap;

const MINUTE_US: u64 = 60_000_000;
/// What `TestLog` says of every instruction.
const RECEIVED_US: u64 = 1_800_000_000_000_000;

/// A file with everything of a log in it, and what else is to be done to it.
fn stored(log: &TestLog, also: impl FnOnce(&Store)) -> (tempfile::TempDir, Reports) {
    let directory = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        directory: directory.path().to_owned(),
        file_mode: 0o664,
        map_bytes: 64 << 20,
        history_revisions: 0,
    };
    let store = Store::open(options, &Identity { lanes: 1, log_id: 1, new_storer: 2, now_us: 3 }).unwrap();
    let mut projection = Projection::new(store.checkpoints().to_vec());
    for (sequence, message) in (1..).zip(&log.messages) {
        projection.handle(Batch::decode::<TableError>(0, sequence, message).unwrap(), &store.read().unwrap()).unwrap();
    }
    if projection.batches() > 0 {
        store.commit(&projection.writes(4)).unwrap();
    }
    also(&store);
    drop(store);
    let reports = Reports::open(directory.path()).unwrap();
    (directory, reports)
}

fn gather(reports: &mut Reports, options: &FactsOptions) -> Facts {
    reports.facts(options, RECEIVED_US + 5, |_, _| ()).unwrap()
}

/// Rows of a database, as they stand in the file.
fn dumped(reports: &mut Reports, name: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
    let rows = reports.file.read().unwrap().dump().unwrap().into_iter();
    rows.filter(|(database, ..)| *database == name).map(|(_, key, value)| (key, value)).collect()
}

fn map_of(n: u64) -> Map {
    (0..n).map(|key| (format!("key{key}"), Value::Int(i128::from(key)))).collect()
}

/// What the same operations count without a file.
#[derive(Default)]
struct Model {
    changes: BTreeMap<String, u64>,
    by_client: BTreeMap<String, u64>,
    refused: u64,
    dead: u64,
}

/// Many operations of every sort, the same every time.
fn busy_log(model: &mut Model, operations: u64) -> TestLog {
    let mut log = TestLog::new(0, 1);
    log.step_us = MINUTE_US;
    let mut state = 7_u64;
    for n in 0..operations {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let random = state >> 33;
        let document = format!("site{}/d{}", random % 3, random / 3 % 17);
        let client = format!("c{}", random / 51 % 5);
        match random / 255 % 10 {
            0 => {
                log.refuse(&client, &document);
                model.refused += 1;
            }
            1 => {
                log.dead(&document);
                model.dead += 1;
            }
            kind => {
                let change = match kind {
                    2 => Primitive::Delete,
                    3..=5 => Primitive::SetMap(map_of(random % 60)),
                    _ => Primitive::SetText("x".repeat((random % 2_000) as usize)),
                };
                log.update(&client, &document, vec![change]);
                *model.changes.entry(document).or_default() += 1;
                *model.by_client.entry(client).or_default() += 1;
            }
        }
        if n % 25 == 24 {
            log.cut();
        }
    }
    log.cut();
    log
}

fn most_first(counts: &BTreeMap<String, u64>, max: usize) -> Vec<(String, u64)> {
    let mut counts: Vec<(String, u64)> = counts.iter().map(|(name, count)| (name.clone(), *count)).collect();
    counts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    counts.truncate(max);
    counts
}

fn pairs(busy: &[Busy]) -> Vec<(String, u64)> {
    busy.iter().map(|busy| (busy.id.clone(), busy.changes)).collect()
}

#[test]
fn facts_are_what_a_model_counts() {
    let mut model = Model::default();
    let log = busy_log(&mut model, 1_600);
    let (_directory, mut reports) = stored(&log, |_| ());
    let changes: u64 = model.changes.values().sum();
    assert!(changes > 1_000, "more than a page: {changes}");
    let facts = gather(&mut reports, &FactsOptions::default());
    assert_eq!(
        facts.as_of.lanes,
        [LaneAsOf { lane: 0, events_sequence: log.messages.len() as u64, committed_at_us: 4 }]
    );
    let file = &facts.file;
    assert_eq!((file.documents, file.history_rows), (model.changes.len() as u64, changes));
    assert_eq!((file.by_time_rows, file.dead_letters, file.storer), (Some(changes), model.dead, 2));
    assert_eq!(file.oldest_change_us, Some(MINUTE_US));
    assert!(file.file_bytes >= file.used_bytes && file.used_bytes > 0);

    let counted = &facts.changes;
    assert_eq!((counted.counted, counted.is_cut, counted.by_nobody_known), (changes, false, 0));
    assert_eq!(pairs(&counted.busiest), most_first(&model.changes, 10));
    assert_eq!(pairs(&counted.clients), most_first(&model.by_client, 10));
    assert!(counted.clients.iter().all(|client| client.last_us == RECEIVED_US));
    assert_eq!(counted.activity.totals().iter().sum::<u64>(), changes);
    assert_eq!((counted.activity.step_s, counted.activity.prefixes), (60, Some(3)));

    let bodies: Vec<(String, Body)> = model.changes.keys().map(|id| (id.clone(), log.expected(id).body)).collect();
    let of = |kind: fn(&Body) -> bool| bodies.iter().filter(|(_, body)| kind(body)).count() as u64;
    let documents = &facts.documents;
    assert_eq!(documents.texts, of(|body| matches!(body, Body::Text(_))));
    assert_eq!(documents.structured, of(|body| matches!(body, Body::Structured(_))));
    assert_eq!(documents.absent, of(|body| matches!(body, Body::Absent)));
    assert!(documents.texts > 0 && documents.structured > 0 && documents.absent > 0);
    let sizes: Vec<u64> = bodies.iter().map(|(_, body)| body.encoded_bytes() as u64).collect();
    assert_eq!(documents.body_bytes, sizes.iter().sum::<u64>());
    assert_eq!(documents.largest[0].body_bytes, *sizes.iter().max().unwrap());
    assert_eq!(documents.sizes.iter().map(|size| size.texts).sum::<u64>(), documents.texts);
    assert_eq!(documents.sizes.iter().map(|size| size.structured).sum::<u64>(), documents.structured);
    let alive = bodies.iter().filter(|(_, body)| !matches!(body, Body::Absent));
    let oldest = alive.map(|(id, _)| (log.expected(id).time_us, id.clone())).min().unwrap();
    assert_eq!((documents.silent[0].last_change_us, documents.silent[0].document.clone()), oldest);

    assert_eq!((facts.clients.clients, facts.clients.of_last_day), (5, 5));
    assert_eq!(facts.dead_letters.by_code, [(Code::UNDECODABLE, model.dead)]);
    assert_eq!(facts.dead_letters.last.len(), 10);
    assert!(facts.dead_letters.last.is_sorted_by(|a, b| a.id > b.id));
    assert_eq!((facts.histories.counted, facts.histories.is_cut), (changes, false));
    assert_eq!(facts.histories.largest.len(), 10);
    for long in &facts.histories.largest {
        assert_eq!(long.rows, model.changes[&long.document], "{}", long.document);
    }
    let history = dumped(&mut reports, "history");
    assert_eq!(facts.histories.bytes, history.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum::<u64>());
    let marks = dumped(&mut reports, "clients").into_iter();
    let outcomes = marks.flat_map(|(_, value)| crate::rows::decode_mark(&value).unwrap().mark.window.into_values());
    let refused = outcomes.filter(|(_, outcome)| *outcome == Outcome::Refused(Code::CONFLICT));
    let refused = refused.count() as u64;
    assert!(refused > 0 && refused <= model.refused);
    assert_eq!(facts.clients.refused, [(Code::CONFLICT, refused)]);
}

#[test]
fn a_bound_counts_the_newest_and_says_so() {
    let mut model = Model::default();
    let log = busy_log(&mut model, 400);
    let (_directory, mut reports) = stored(&log, |_| ());
    let changes: u64 = model.changes.values().sum();
    let all = gather(&mut reports, &FactsOptions::default());
    let mut bound = |changes_max, history_rows_max| {
        gather(&mut reports, &FactsOptions { changes_max, history_rows_max, ..FactsOptions::default() })
    };
    let few = bound(50, 10);
    assert_eq!((few.changes.counted, few.changes.is_cut), (50, true));
    assert_eq!((few.histories.counted, few.histories.is_cut), (10, true));
    let newest = all.changes.bounds_us.unwrap().1;
    let (first, last) = few.changes.bounds_us.unwrap();
    assert!(last == newest && first > all.changes.bounds_us.unwrap().0);
    let exact = bound(changes, changes);
    assert_eq!((exact.changes, exact.histories), (all.changes, all.histories));
    let names = gather(&mut reports, &FactsOptions { names_max: 4, ..FactsOptions::default() });
    assert!(names.changes.busiest_missed_max > 0 && names.changes.busiest.len() <= 4);
}

#[test]
fn a_file_without_anything_has_facts() {
    let (_directory, mut reports) = stored(&TestLog::new(0, 1), |_| ());
    let facts = gather(&mut reports, &FactsOptions::default());
    assert_eq!((facts.changes.counted, facts.changes.is_cut, facts.changes.bounds_us), (0, false, None));
    assert_eq!((facts.file.documents, facts.file.oldest_change_us), (0, None));
    assert!(facts.histories.largest.is_empty() && facts.documents.silent.is_empty());
}

#[test]
fn changes_whose_history_is_gone_count_without_a_client() {
    let mut log = TestLog::new(0, 1);
    (0..300).for_each(|n| log.set_text("c", "d", &format!("{n}")));
    log.cut();
    let cut = crate::upkeep::Cut { document: "d".to_owned(), first_kept: 201 };
    let (_directory, mut reports) = stored(&log, |store| assert_eq!(store.cut_history(&[cut]).unwrap(), 200));
    let facts = gather(&mut reports, &FactsOptions::default());
    assert_eq!((facts.changes.counted, facts.changes.by_nobody_known), (300, 200));
    assert_eq!((pairs(&facts.changes.clients), facts.histories.counted), (vec![("c".to_owned(), 100)], 100));
}

#[test]
fn a_file_of_an_earlier_version_is_counted_by_its_history() {
    let mut log = TestLog::new(0, 1);
    (0..5).for_each(|n| log.set_text("c", "d", &format!("{n}")));
    log.set_text("e", "f", "x");
    log.cut();
    let (directory, reports) = stored(&log, |_| ());
    drop(reports);
    let folder = std::fs::canonicalize(directory.path().join("db")).unwrap();
    crate::tables::Tables::open(&folder, 64 << 20).unwrap().make_old("d", 3);
    let facts = gather(&mut Reports::open(directory.path()).unwrap(), &FactsOptions::default());
    assert_eq!((facts.file.by_time_rows, facts.file.oldest_change_us), (None, None));
    assert_eq!((facts.changes.counted, facts.changes.is_cut, facts.changes.by_nobody_known), (4, false, 0));
    assert_eq!(pairs(&facts.changes.busiest), [("d".to_owned(), 3), ("f".to_owned(), 1)]);
    assert_eq!(facts.changes.bounds_us, Some((1, 5)));
}
