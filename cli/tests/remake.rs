//! `fieldstream storer verify|rebuild` with real processes: a file that is not what the log says is
//! found, and made again beside the running storer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod site;

use fieldstream_nats::{ChildOptions, Credentials, NatsChild, Profile};
use fieldstream_storer::Store;
use serde_json::Value as Json;
use site::{Up, assert_there, put, run, text};
use std::fs;
use std::path::Path;

fn verify(storer: &Path, at: &str, more: &[&str]) -> (Option<i32>, Json) {
    let arguments = ["storer", "verify", "--storer", storer.to_str().unwrap(), "--data", at, "--json"];
    let output = run(&[&arguments[..], more].concat());
    let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| Json::String(text(&output.stderr)));
    (output.status.code(), json)
}

/// Changes a byte in the body of a document, in the file itself.
fn falsify(storer: &Path, from: &str, to: &str) {
    let file = storer.join("db/data.mdb");
    let mut bytes = fs::read(&file).unwrap();
    let places: Vec<usize> =
        (0..bytes.len() - from.len()).filter(|at| bytes[*at..].starts_with(from.as_bytes())).collect();
    assert!(!places.is_empty(), "{from:?} is in the file");
    for at in places {
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    fs::write(&file, bytes).unwrap();
}

#[test]
fn a_file_that_is_not_what_the_log_says_is_found_and_made_again_under_a_running_storer() {
    let folder = tempfile::tempdir().unwrap();
    let (data, storer) = (folder.path(), folder.path().join("storer"));
    let at = data.to_str().unwrap();
    let mut up = Up::spawn(data, "durable");
    let url = up.url();
    put(&url, 0..20, "early");
    let copy = run(&["storer", "snapshot", "--data", at]);
    assert!(copy.status.success(), "{}", text(&copy.stderr));
    put(&url, 20..30, "late");
    let (code, report) = verify(&storer, at, &[]);
    assert_eq!((code, &report["equal"]), (Some(0), &true.into()), "{report}");
    assert!(report["messages"].as_u64().unwrap() >= 10 && report["copy"].is_string(), "{report}");
    let (code, report) = verify(&storer, at, &["--from-log"]);
    assert_eq!((code, &report["copy"]), (Some(0), &Json::Null), "{report}");
    up.kill();

    falsify(&storer, "late 25", "lAte 25");
    let mut up = Up::spawn(data, "durable");
    let url = up.url();
    let (code, report) = verify(&storer, at, &[]);
    assert_eq!((code, &report["equal"]), (Some(1), &false.into()), "{report}");
    assert_eq!(report["bad_rows"][0]["key"], "d25", "{report}");
    let databases: Vec<&str> =
        report["differences"].as_array().unwrap().iter().map(|d| d["database"].as_str().unwrap()).collect();
    assert!(databases.contains(&"documents"), "{report}");

    let before = fs::canonicalize(storer.join("db")).unwrap();
    let rebuilt = run(&["storer", "rebuild", "--data", at]);
    assert!(rebuilt.status.success(), "{}", text(&rebuilt.stderr));
    assert_ne!(fs::canonicalize(storer.join("db")).unwrap(), before);
    let (code, report) = verify(&storer, at, &[]);
    assert_eq!(code, Some(0), "{report}");
    put(&url, 30..35, "behind");
    assert_there(&url, 20..30, "late");
    assert_there(&url, 30..35, "behind");
    let (code, report) = verify(&storer, at, &["--from-log"]);
    assert_eq!(code, Some(0), "{report}");

    // What was made meanwhile is registered no more, and no folder is left.
    let list = run(&["storer", "list", "--json", "--data", at]);
    assert_eq!(text(&list.stdout).lines().count(), 1, "{}", text(&list.stdout));
    let left: Vec<_> = fs::read_dir(&storer).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with(".re")), "{left:?}");
    drop(up);
}

#[tokio::test]
async fn a_file_whose_pages_are_gone_is_found_and_made_again_without_its_storer() {
    let folder = tempfile::tempdir().unwrap();
    let (data, storer) = (folder.path(), folder.path().join("storer"));
    let at = data.to_str().unwrap();
    let mut up = Up::spawn(data, "durable");
    put(&up.url(), 0..30, "here");
    up.kill();
    let file = storer.join("db/data.mdb");
    let mut bytes = fs::read(&file).unwrap();
    // Behind the two meta pages: everything a root page could be.
    bytes[8192..].fill(0xa5);
    fs::write(&file, bytes).unwrap();
    let damaged = run(&["storer", "verify", "--storer", storer.to_str().unwrap(), "--data", at]);
    assert_eq!(damaged.status.code(), Some(1));
    assert!(text(&damaged.stderr).contains("cannot be read to its end"), "{}", text(&damaged.stderr));

    let binary = std::env::var_os("FIELDSTREAM_NATS_SERVER").expect("FIELDSTREAM_NATS_SERVER").into();
    let options = ChildOptions { binary, directory: data.join("nats"), profile: Profile::Durable };
    let nats = NatsChild::start(options).await.unwrap();
    let Credentials::UserPassword { user, password } = &nats.server().credentials else { panic!("a password") };
    let url = nats.server().url.replace("nats://", &format!("nats://{user}:{password}@"));
    let rebuilt = run(&["storer", "rebuild", "--storer", storer.to_str().unwrap(), "--nats", &url, "--from-log"]);
    assert!(rebuilt.status.success(), "{}", text(&rebuilt.stderr));
    // Whose the file was cannot be read any more: what is kept for that one is to be forgotten.
    let number = || Store::number_in(&storer.join("db")).unwrap();
    let (new, said) = (number(), text(&rebuilt.stderr));
    let list = run(&["storer", "list", "--json", "--nats", &url]);
    let old: Json = serde_json::from_str(text(&list.stdout).lines().next().unwrap()).unwrap();
    let old = old["storer"].as_str().unwrap();
    assert!(said.contains(&format!("storer forget {old}")) && format!("{new:016x}") != old, "{said}");
    // Made again from the copy of another storer, it stays the file of this one.
    let (other, file) = (folder.path().join("other"), storer.join("db"));
    let copied = ["storer", "restore", file.to_str().unwrap(), "--as-new", "--data"];
    let copied = run(&[&copied[..], &[other.to_str().unwrap()]].concat());
    assert!(copied.status.success(), "{}", text(&copied.stderr));
    let rebuilt = ["storer", "rebuild", "--storer", storer.to_str().unwrap(), "--nats", &url, "--copy"];
    let rebuilt = run(&[&rebuilt[..], &[other.join("db").to_str().unwrap()]].concat());
    assert!(rebuilt.status.success(), "{}", text(&rebuilt.stderr));
    assert_ne!(Store::number_in(&other.join("db")).unwrap(), new);
    assert_eq!(number(), new);
    nats.stop().await;
    let mut up = Up::spawn(data, "durable");
    let url = up.url();
    assert_there(&url, 0..30, "here");
    put(&url, 30..33, "more");
    let (code, report) = verify(&storer, at, &["--from-log"]);
    assert_eq!(code, Some(0), "{report}");
}
