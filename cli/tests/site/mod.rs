//! `fieldstream up` in a folder of a test's own, and what is said to it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, dead_code)]

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value as Json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Long enough for anything that is to happen.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fieldstream"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("FIELDSTREAM_") && name != "FIELDSTREAM_NATS_SERVER" {
            command.env_remove(name);
        }
    }
    command
}

pub(crate) fn run(arguments: &[&str]) -> Output {
    program().args(arguments).stdin(Stdio::null()).output().unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub(crate) struct Up(Child, PathBuf);

impl Up {
    /// Starts it; whether it becomes ready is another question.
    pub(crate) fn spawn(data: &Path, profile: &str) -> Up {
        Up::spawn_with(data, profile, &[])
    }

    /// Starts it with further arguments.
    pub(crate) fn spawn_with(data: &Path, profile: &str, more: &[&str]) -> Up {
        let _ = fs::remove_file(data.join("ready.json"));
        let mut command = program();
        command
            .args(["up", "--listen", "127.0.0.1:0", "--tcp", "127.0.0.1:0", "--profile", profile, "--data"])
            .arg(data)
            .args(more);
        command.arg("--ready-file").arg(data.join("ready.json")).stdin(Stdio::null()).stdout(Stdio::null());
        let said = fs::OpenOptions::new().create(true).append(true).open(data.join("err.txt")).unwrap();
        Up(command.stderr(said).spawn().unwrap(), data.to_owned())
    }

    /// Waits until it is ready; gives back where.
    pub(crate) fn url(&mut self) -> String {
        let ready = until("ready", || {
            let said = || fs::read_to_string(self.1.join("err.txt")).unwrap();
            assert!(self.0.try_wait().unwrap().is_none(), "{}", said());
            let ready: Json = serde_json::from_slice(&fs::read(self.1.join("ready.json")).ok()?).unwrap();
            Some(ready)
        });
        ready["tcp"].as_str().unwrap().to_owned()
    }

    /// It ends in order.
    pub(crate) fn stop(mut self) {
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        self.0.wait().unwrap();
    }

    /// Everything of it dies at once, nats-server included.
    pub(crate) fn kill(mut self) {
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

pub(crate) fn put(url: &str, documents: std::ops::Range<u32>, tag: &str) {
    for n in documents {
        let done = run(&["put", &format!("d{n}"), &format!("{tag} {n}"), "--ack", "stored", "--server", url]);
        assert!(done.status.success(), "{}", text(&done.stderr));
    }
}

pub(crate) fn assert_there(url: &str, documents: std::ops::Range<u32>, tag: &str) {
    for n in documents {
        let got = run(&["get", &format!("d{n}"), "--json", "--server", url]);
        let got: Json = serde_json::from_slice(&got.stdout).unwrap_or_else(|_| panic!("{}", text(&got.stderr)));
        assert_eq!((&got["revision"], &got["body"]), (&1.into(), &format!("{tag} {n}").into()), "d{n}: {got}");
    }
}
