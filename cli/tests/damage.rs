//! Damaged logs, with real processes: it is found, said, mended by one command, and nothing that a
//! storer has is lost.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod site;

use site::{Up, assert_there, program, put, run, text, until};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

/// The blocks of a stream, in order.
fn blocks(data: &Path, stream: &str) -> Vec<PathBuf> {
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
    blocks
}

fn flip_a_bit(data: &Path, stream: &str) {
    let file = blocks(data, stream).pop().expect("a block");
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

/// So many trials, unless `FIELDSTREAM_TEST_TRIALS` says how many; `FIELDSTREAM_TEST_SEED` says which, and
/// `FIELDSTREAM_TEST_FIRST` with which of them to begin.
const TRIALS: u64 = 4;

fn number_of(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// The next number of a sequence that looks random (splitmix64).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Does something to a block of a stream; what.
fn damage(data: &Path, rng: &mut u64) -> String {
    let stream = ["EVENTS_0", "INSTRUCTIONS_0"][next(rng) as usize % 2];
    let blocks = blocks(data, stream);
    let file = &blocks[next(rng) as usize % blocks.len()];
    let mut bytes = fs::read(file).unwrap();
    let at = next(rng) as usize % bytes.len();
    let name = file.file_name().unwrap().to_string_lossy();
    match next(rng) % 4 {
        0 => {
            bytes.truncate(at);
            fs::write(file, bytes).unwrap();
            format!("{stream} {name} ends at {at}")
        }
        1 => {
            fs::remove_file(file).unwrap();
            format!("{stream} {name} is gone")
        }
        _ => {
            bytes[at] ^= 1 << (next(rng) % 8);
            let all = bytes.len();
            fs::write(file, bytes).unwrap();
            format!("{stream} {name} has another bit at {at} of {all}")
        }
    }
}

/// Starts it on a damaged log: true if the damage was found, said, and mended by the command it names.
/// Either way all that was acknowledged is there, and everything goes on.
fn is_found(data: &Path) -> bool {
    let at = data.to_str().unwrap();
    let mut up = Up::spawn(data, "durable");
    let found = until("ready, or what is wrong", || {
        let check = run(&["repair", "--check", "--data", at]);
        match check.status.code() {
            Some(1) => Some(true),
            Some(0) if data.join("ready.json").exists() => Some(false),
            _ => None,
        }
    });
    if found {
        let repaired = run(&["repair", "--yes", "--data", at]);
        assert!(repaired.status.success(), "{}{}", text(&repaired.stdout), text(&repaired.stderr));
        // It may have been ready before the damage was noticed.
        until("all is well", || Some(run(&["status", "--data", at])).filter(|s| s.status.success()));
    }
    let url = up.url();
    assert_there(&url, 0..20, "before");
    put(&url, 20..25, "behind");
    assert_there(&url, 20..25, "behind");
    up.kill();
    found
}

#[test]
fn whatever_happens_to_a_block_is_found_and_mended_or_does_no_harm() {
    let (trials, seed) = (number_of("FIELDSTREAM_TEST_TRIALS", TRIALS), number_of("FIELDSTREAM_TEST_SEED", 1));
    let first = number_of("FIELDSTREAM_TEST_FIRST", 0);
    let folder = tempfile::tempdir().unwrap();
    let bases = ["killed", "stopped"].map(|name| folder.path().join(name));
    for base in &bases {
        fs::create_dir(base).unwrap();
        let mut up = Up::spawn(base, "durable");
        put(&up.url(), 0..20, "before");
        if base.ends_with("killed") { up.kill() } else { up.stop() }
    }
    let mut found = 0;
    for trial in first..first + trials {
        let mut rng = seed.wrapping_mul(1_000_003).wrapping_add(trial);
        let base = &bases[next(&mut rng) as usize % 2];
        let data = folder.path().join(format!("trial-{trial}"));
        copy_folder(base, &data);
        let target = fs::read_link(base.join("storer/db")).unwrap();
        std::os::unix::fs::symlink(target, data.join("storer/db")).unwrap();
        let what = damage(&data, &mut rng);
        eprint!("trial {trial}: {}, {what}: ", base.file_name().unwrap().to_string_lossy());
        let is_found = is_found(&data);
        eprintln!("{}", if is_found { "found and mended" } else { "did no harm" });
        found += u64::from(is_found);
        fs::remove_dir_all(&data).unwrap();
    }
    eprintln!("{found} of {trials} found, the others without harm");
    assert!(found > 0, "nothing was damaged at all");
}
