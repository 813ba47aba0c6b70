//! `fieldstream report` on the file of a running `up`, and after it has stopped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod site;

use fieldstream_storer::report::Reports;
use serde_json::{Value as Json, json};
use site::{Up, program, run, text};
use std::fs;
use std::path::Path;

fn instruct(url: &str, words: &[&str]) {
    let done = run(&[words, &["--ack", "stored", "--client-id", "panel-3", "--server", url]].concat());
    assert!(done.status.success(), "{words:?}: {}", text(&done.stderr));
}

/// What a report says on stdout, which is a pipe.
fn told(db: &Path, words: &[&str]) -> String {
    let output = run(&[&["report", "--db", db.to_str().unwrap()], words].concat());
    assert!(output.status.success(), "{words:?}: {}", text(&output.stderr));
    let said = text(&output.stderr);
    let is_json = words.contains(&"--json");
    assert!(
        is_json || said.contains("as of EVENTS sequence ") && said.contains(" seconds behind"),
        "{words:?}: {said}"
    );
    text(&output.stdout)
}

fn lines(db: &Path, words: &[&str]) -> Vec<Json> {
    told(db, words).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn whole(db: &Path, words: &[&str]) -> Json {
    let json: Json = serde_json::from_str(&told(db, &[words, &["--json"]].concat())).unwrap();
    assert!(json["as_of"]["lanes"][0]["events_sequence"].as_u64() > Some(0), "{json}");
    assert!(json["as_of"]["seconds_behind"].as_f64() >= Some(0.0), "{json}");
    json
}

/// What a report that cannot be made says.
fn refused(db: &Path, words: &[&str], code: i32) -> String {
    let output = run(&[&["report", "--db", db.to_str().unwrap()], words].concat());
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(code), String::new()), "{words:?}");
    text(&output.stderr)
}

fn write_some(url: &str) {
    instruct(url, &["put", "site7/note", "one\ntwo\nthree\n"]);
    instruct(url, &["splice", "site7/note", "4", "3", "zwei, \"2\""]);
    instruct(url, &["append", "site7/note", "four\n"]);
    instruct(url, &["put", "site7/boiler", "--json-body", r#"{"a":1,"b":{"c":2}}"#]);
    instruct(url, &["merge", "site7/boiler", r#"{"a":null,"d":[1]}"#]);
    instruct(url, &["add", "site7/boiler", "b.c", "1"]);
    instruct(url, &["put", "other", "x"]);
    instruct(url, &["delete", "other"]);
}

fn check_documents(db: &Path) {
    let latest = lines(db, &["latest"]);
    let ids: Vec<_> = latest.iter().map(|row| row["document"].as_str().unwrap()).collect();
    assert_eq!(ids, ["site7/boiler", "site7/note"]);
    assert_eq!((&latest[0]["revision"], &latest[0]["body"]), (&3.into(), &json!({"b": {"c": 3}, "d": [1]})));
    assert_eq!((&latest[1]["kind"], &latest[1]["client"]), (&"text".into(), &"panel-3".into()));
    assert_eq!(lines(db, &["latest", "--all"]).len(), 3);
    assert_eq!(lines(db, &["latest", "site7/n"]).len(), 1);
    assert_eq!(whole(db, &["latest", "--limit", "1"])["documents"].as_array().unwrap().len(), 1);
    let csv = told(db, &["latest", "site7/n", "--csv"]);
    assert!(csv.starts_with("document,revision,kind,time,client,number,lane,sequence,state_hash,body\r\n"), "{csv}");
    assert!(csv.ends_with(",\"one\nzwei, \"\"2\"\"\nthree\nfour\n\"\r\n"), "{csv}");
    assert_eq!(told(db, &["export", "--format", "csv"]).matches("\r\n").count(), 3);
    assert_eq!(lines(db, &["export", "--format", "json"]), latest);
}

fn check_changes(db: &Path) {
    let history = lines(db, &["history", "site7/note"]);
    let revisions: Vec<_> = history.iter().map(|row| row["revision"].as_u64().unwrap()).collect();
    assert_eq!(revisions, [1, 2, 3]);
    assert_eq!(history[1]["change"], json!([{"op": "splice", "edits": [[4, 3, "zwei, \"2\""]]}]));
    assert_eq!(lines(db, &["history", "site7/note", "--from", "2", "--to", "2"]), history[1..2]);
    assert_eq!(lines(db, &["history", "site7/note", "-n", "2"]), history[1..]);
    let who = whole(db, &["who", "site7/note"]);
    assert_eq!((&who["clients"][0]["client"], &who["clients"][0]["changes"]), (&"panel-3".into(), &3.into()));

    assert_eq!(told(db, &["at", "site7/note", "--rev", "1"]), "one\ntwo\nthree\n");
    let second = history[1]["time"].as_str().unwrap();
    assert_eq!(told(db, &["at", "site7/note", "--time", second]), "one\nzwei, \"2\"\nthree\n");
    assert_eq!(whole(db, &["at", "site7/boiler", "--rev", "2"])["body"], json!({"b": {"c": 2}, "d": [1]}));
    assert_eq!(whole(db, &["at", "other", "--rev", "2"])["kind"], "absent");
    assert!(refused(db, &["at", "site7/note", "--rev", "4"], 1).contains("has no revision 4; its newest is 3"));
    assert!(refused(db, &["at", "site7/note", "--time", "-30d"], 1).contains("did not exist then"));
    assert!(refused(db, &["at", "nothing", "--rev", "1"], 1).contains("there never was one"));
    refused(db, &["at", "site7/note"], 2);

    let diff = told(db, &["diff", "site7/note", "1..3"]);
    assert!(diff.contains("\n-two\n+zwei, \"2\"\n three\n+four\n"), "{diff}");
    let diff = lines(db, &["diff", "site7/boiler", "1.."]);
    let paths: Vec<_> = diff.iter().map(|row| (row["path"].as_str().unwrap(), &row["before"], &row["after"])).collect();
    let none = &Json::Null;
    assert_eq!(paths, [("a", &json!(1), none), ("b.c", &json!(2), &json!(3)), ("d", none, &json!([1]))]);
    assert_eq!(whole(db, &["diff", "site7/note", "1"])["lines"].as_array().unwrap().len(), 3);
}

fn check_times(db: &Path, folder: &Path) {
    let lag = whole(db, &["lag"]);
    assert_eq!((&lag["lanes"][0]["documents"], &lag["lanes"][0]["history_rows"]), (&3.into(), &8.into()), "{lag}");
    assert!(lag["lanes"][0]["newest_event_age_s"].as_f64().is_some(), "{lag}");
    let svg = folder.join("activity.svg");
    let activity = lines(db, &["activity", "--svg", svg.to_str().unwrap()]);
    let events = |prefix: &str| {
        let rows = activity.iter().filter(|row| row["prefix"] == prefix);
        rows.map(|row| row["events"].as_u64().unwrap()).sum::<u64>()
    };
    assert_eq!((events("site7/"), events("other")), (6, 2), "{activity:?}");
    assert!(fs::read_to_string(&svg).unwrap().contains("events per minute"));
    assert_eq!(lines(db, &["activity", "site7/n", "--per", "day", "--depth", "2"]).len(), 1);

    let changes = lines(db, &["export", "--format", "json", "--since", "-1d"]);
    assert_eq!(changes.len(), 8);
    assert!(changes.is_sorted_by_key(|row| row["time"].as_str().unwrap().to_owned()));
    let file = folder.join("changes.csv");
    let words = ["export", "--format", "csv", "--what", "history", "--prefix", "site7/", "--out"];
    assert_eq!(told(db, &[&words[..], &[file.to_str().unwrap()]].concat()), "");
    let csv = fs::read_to_string(&file).unwrap();
    assert_eq!((csv.matches("\r\n").count(), csv.starts_with("document,revision,time,")), (7, true), "{csv}");
}

#[test]
fn reports_tell_the_same_of_a_running_file_and_one_at_rest() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    fs::create_dir(&data).unwrap();
    let mut up = Up::spawn(&data, "fast");
    write_some(&up.url());
    let check = |db: &Path| {
        check_documents(db);
        check_changes(db);
        check_times(db, folder.path());
    };
    check(&data);
    let live = told(&data, &["export", "--format", "json", "--what", "history"]);
    up.stop();
    for db in [data.clone(), data.join("storer"), data.join("storer/db"), data.join("storer/db/data.mdb")] {
        assert_eq!(told(&db, &["export", "--format", "json", "--what", "history"]), live);
    }
    check(&data.join("storer"));
    assert!(refused(folder.path(), &["lag"], 1).contains("holds no storer's file"));
    assert!(refused(&folder.path().join("none"), &["lag"], 1).contains("there is no "));
}

#[test]
fn a_reader_follows_a_map_that_grew() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("fieldstream.toml");
    fs::write(&config, "[storer]\nmap_bytes = \"1MiB\"\n").unwrap();
    let mut up = Up::spawn_with(folder.path(), "fast", &["--config", config.to_str().unwrap()]);
    let url = up.url();
    instruct(&url, &["put", "a", "x"]);
    let mut reports = Reports::open(folder.path()).unwrap();
    let first = reports.documents("", None).unwrap();
    assert_eq!(first.rows.len(), 1);
    let large = "y".repeat(250_000);
    let file = folder.path().join("large.txt");
    fs::write(&file, &large).unwrap();
    for n in 0..12 {
        instruct(&url, &["put", &format!("b{n}"), &format!("@{}", file.display())]);
    }
    assert!(fs::metadata(reports.folder().join("data.mdb")).unwrap().len() > 3 << 20);
    let mut found = 0;
    let mut from = None;
    loop {
        let page = reports.documents("b", from.as_ref()).unwrap();
        found += page.rows.iter().filter(|(_, row)| row.document.body.encoded_bytes() == large.len()).count();
        from = page.next;
        if from.is_none() {
            break;
        }
    }
    assert_eq!(found, 12);
    drop(reports);
    let broken = program().args(["report", "latest", "--json", "--csv"]).output().unwrap();
    assert_eq!(broken.status.code(), Some(2));
    up.stop();
}
