//! Damaged logs, with real processes: it is found, said, mended by one command, and nothing that a
//! storer has is lost.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value as Json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fieldstream"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("FIELDSTREAM_") && name != "FIELDSTREAM_NATS_SERVER" {
            command.env_remove(name);
        }
    }
    command
}

fn run(arguments: &[&str]) -> Output {
    program().args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

struct Up(Child, PathBuf);

impl Up {
    /// Starts it; whether it becomes ready is another question.
    fn spawn(data: &Path, profile: &str) -> Up {
        let _ = fs::remove_file(data.join("ready.json"));
        let mut command = program();
        command
            .args(["up", "--listen", "127.0.0.1:0", "--tcp", "127.0.0.1:0", "--profile", profile, "--data"])
            .arg(data);
        command.arg("--ready-file").arg(data.join("ready.json")).stdin(Stdio::null()).stdout(Stdio::null());
        let said = fs::OpenOptions::new().create(true).append(true).open(data.join("err.txt")).unwrap();
        Up(command.stderr(said).spawn().unwrap(), data.to_owned())
    }

    /// Waits until it is ready; gives back where.
    fn url(&mut self) -> String {
        let ready = until("ready", || {
            let said = || fs::read_to_string(self.1.join("err.txt")).unwrap();
            assert!(self.0.try_wait().unwrap().is_none(), "{}", said());
            let ready: Json = serde_json::from_slice(&fs::read(self.1.join("ready.json")).ok()?).unwrap();
            Some(ready)
        });
        ready["tcp"].as_str().unwrap().to_owned()
    }

    /// Everything of it dies at once, nats-server included.
    fn kill(mut self) {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.0.id())).unwrap_or_default();
        self.0.kill().unwrap();
        self.0.wait().unwrap();
        for pid in children.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn put(url: &str, documents: std::ops::Range<u32>, tag: &str) {
    for n in documents {
        let done = run(&["put", &format!("d{n}"), &format!("{tag} {n}"), "--ack", "stored", "--server", url]);
        assert!(done.status.success(), "{}", text(&done.stderr));
    }
}

fn assert_there(url: &str, documents: std::ops::Range<u32>, tag: &str) {
    for n in documents {
        let got = run(&["get", &format!("d{n}"), "--json", "--server", url]);
        let got: Json = serde_json::from_slice(&got.stdout).unwrap_or_else(|_| panic!("{}", text(&got.stderr)));
        assert_eq!((&got["revision"], &got["body"]), (&1.into(), &format!("{tag} {n}").into()), "d{n}: {got}");
    }
}

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
