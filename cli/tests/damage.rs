//! Damaged logs, with real processes: it is found, said, mended by one command, and nothing that a
//! storer has is lost.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod site;

use site::{Up, assert_there, program, put, run, text, until};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

/// The newest block of a stream.
fn block(data: &Path, stream: &str) -> PathBuf {
    let mut folders = vec![data.join("nats")];
    let mut blocks = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            let is_of_stream = entry.components().any(|part| part.as_os_str() == stream);
            if entry.is_dir() {
                folders.push(entry);
            } else if is_of_stream && entry.extension().is_some_and(|e| e == "blk") {
                blocks.push(entry);
            }
        }
    }
    blocks.sort();
    blocks.pop().expect("a block")
}

fn flip_a_bit(data: &Path, stream: &str) {
    let file = block(data, stream);
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() * 6 / 10;
    bytes[middle] ^= 0x10;
    fs::write(&file, bytes).unwrap();
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn mends_after_a_flipped_bit(stream: &str, kill_the_repair: bool) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let at = data.to_str().unwrap();
    let mut up = Up::spawn(data, "durable");
    let url = up.url();
    put(&url, 0..30, "before");
    let whole = run(&["repair", "--check", "--data", at]);
    assert!(whole.status.success() && text(&whole.stdout).contains("whole"), "{whole:?}");
    up.kill();
    flip_a_bit(data, stream);

    let mut up = Up::spawn(data, "durable");
    // It stays up, not ready, and says what is wrong and what mends it.
    let status = until("the status says it", || {
        let status = run(&["status", "--data", at]);
        text(&status.stdout).contains("fieldstream repair").then_some(status)
    });
    assert_eq!(status.status.code(), Some(1));
    assert!(!data.join("ready.json").exists());
    let check = run(&["repair", "--check", "--data", at]);
    let said = text(&check.stdout);
    assert!(check.status.code() == Some(1) && said.contains(stream) && said.contains("goes on from"), "{check:?}");
    let unasked = run(&["repair", "--data", at]);
    assert!(text(&unasked.stderr).contains("--yes"), "{}", text(&unasked.stderr));
    if kill_the_repair {
        for ms in [1_600, 3_200] {
            let mut repair = program();
            repair.args(["repair", "--yes", "--data", at]).stdout(Stdio::null()).stderr(Stdio::null());
            let mut repair = repair.spawn().unwrap();
            std::thread::sleep(Duration::from_millis(ms));
            let _ = repair.kill();
            repair.wait().unwrap();
        }
    }
    let repaired = run(&["repair", "--yes", "--data", at]);
    assert!(repaired.status.success(), "{}{}", text(&repaired.stdout), text(&repaired.stderr));

    let url = up.url();
    assert_there(&url, 0..30, "before");
    put(&url, 30..40, "behind");
    assert_there(&url, 30..40, "behind");
    let whole = run(&["repair", "--check", "--data", at]);
    assert!(whole.status.success(), "{}{}", text(&whole.stdout), text(&whole.stderr));
    let status = until("all is well", || Some(run(&["status", "--data", at])).filter(|s| s.status.success()));
    assert!(text(&status.stdout).starts_with("ok"), "{}", text(&status.stdout));
}

#[test]
fn events_that_were_cut_short_are_made_again() {
    mends_after_a_flipped_bit("EVENTS_0", false);
}

#[test]
fn instructions_that_were_cut_short_are_got_over_also_if_the_repair_is_killed() {
    mends_after_a_flipped_bit("INSTRUCTIONS_0", true);
}

#[test]
fn a_power_cut_in_the_fast_profile_is_repaired_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let (data, older) = (folder.path().join("data"), folder.path().join("older"));
    fs::create_dir(&data).unwrap();
    let mut up = Up::spawn(&data, "fast");
    put(&up.url(), 0..20, "early");
    up.kill();
    copy_folder(&data.join("nats"), &older);
    let mut up = Up::spawn(&data, "fast");
    put(&up.url(), 20..40, "late");
    up.kill();
    // The log is as it was on the disk a while ago; the storer's file is ahead.
    fs::remove_dir_all(data.join("nats")).unwrap();
    copy_folder(&older, &data.join("nats"));

    let mut up = Up::spawn(&data, "fast");
    let url = up.url();
    let said = fs::read_to_string(data.join("err.txt")).unwrap();
    assert!(said.contains("the log is repaired"), "{said}");
    assert_there(&url, 0..20, "early");
    assert_there(&url, 20..40, "late");
    put(&url, 40..45, "now");
    assert_there(&url, 40..45, "now");
}
