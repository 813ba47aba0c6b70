//! Streams that were lost and made anew, empty, while the storer's file is ahead of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod site;

use site::{Up, assert_there, put, run, text, until};
use std::fs;
use std::path::{Path, PathBuf};

/// The folders in which the server keeps a stream.
fn folders_of(data: &Path, stream: &str) -> Vec<PathBuf> {
    let mut folders = vec![data.join("nats")];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()) {
            match entry.file_name().is_some_and(|name| name == stream) {
                true => found.push(entry),
                false => folders.push(entry),
            }
        }
    }
    found
}

fn is_found_and_mended(streams: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let at = data.to_str().unwrap();
    let mut up = Up::spawn(data, "durable");
    put(&up.url(), 0..30, "before");
    up.stop();
    for stream in streams {
        let folders = folders_of(data, stream);
        assert!(!folders.is_empty(), "the server keeps {stream} somewhere");
        folders.iter().for_each(|folder| fs::remove_dir_all(folder).unwrap());
    }

    let mut up = Up::spawn(data, "durable");
    let status = until("the status says it", || {
        let status = run(&["status", "--data", at]);
        text(&status.stdout).contains("fieldstream repair").then_some(status)
    });
    assert_eq!(status.status.code(), Some(1));
    assert!(!data.join("ready.json").exists(), "it refuses to go on by itself");
    let repaired = run(&["repair", "--yes", "--data", at]);
    assert!(repaired.status.success(), "{}{}", text(&repaired.stdout), text(&repaired.stderr));
    let url = up.url();
    assert_there(&url, 0..30, "before");
    put(&url, 30..40, "behind");
    assert_there(&url, 30..40, "behind");
}

#[test]
fn a_log_that_is_gone_altogether_is_made_again_from_the_file() {
    is_found_and_mended(&["INSTRUCTIONS_0", "EVENTS_0"]);
}

#[test]
fn events_that_are_gone_are_made_again_from_the_file() {
    is_found_and_mended(&["EVENTS_0"]);
}
