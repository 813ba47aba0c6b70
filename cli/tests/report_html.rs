//! `fieldstream report html` of a live file, and of one whose server has stopped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde_json::Value as Json;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// The program in an environment without anything of ours but the nats-server.
fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fieldstream"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("FIELDSTREAM_") && name != "FIELDSTREAM_NATS_SERVER" {
            command.env_remove(name);
        }
    }
    command
}

struct Up(Child);

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(data: &Path) -> (Up, Json) {
    let ready = data.join("ready.json");
    let mut command = program();
    command.args(["up", "--listen", "127.0.0.1:0", "--tcp", "127.0.0.1:0", "--ready-file"]).arg(&ready);
    command.arg("--data").arg(data).stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(fs::File::create(data.join("err.txt")).unwrap());
    let mut up = Up(command.spawn().unwrap());
    let begun = Instant::now();
    while !ready.exists() {
        let alive = up.0.try_wait().unwrap().is_none();
        assert!(alive && begun.elapsed() < PATIENCE, "{}", fs::read_to_string(data.join("err.txt")).unwrap());
        std::thread::sleep(Duration::from_millis(20));
    }
    let told = serde_json::from_slice(&fs::read(&ready).unwrap()).expect("written whole");
    (up, told)
}

fn run(arguments: &[&str], paths: &[&Path]) -> Output {
    program().args(arguments).args(paths).stdin(Stdio::null()).output().unwrap()
}

fn report(db: &Path, out: &Path) -> String {
    let done = run(&["report", "html", "--top", "5", "--db"], &[db, out]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(done.stdout.is_empty() && String::from_utf8_lossy(&done.stderr).starts_with("wrote "));
    fs::read_to_string(out).unwrap()
}

#[test]
fn a_page_of_a_live_file_and_of_one_at_rest() {
    let data = tempfile::tempdir().unwrap();
    let (mut up, told) = start(data.path());
    let server = told["tcp"].as_str().unwrap();
    let put = |document: &str, text: &str, more: &[&str]| {
        let arguments = ["put", document, text, "--server", server, "--client-id", "panel-3", "--ack", "stored"];
        run(&[&arguments[..], more].concat(), &[])
    };
    for (document, text) in [("site7/<script>", "one"), ("site7/boiler", "two"), ("site8/boiler", "three")] {
        assert!(put(document, text, &[]).status.success());
    }
    assert!(!put("site7/boiler", "no", &["--if-rev", "9"]).status.success(), "a conflict");

    let out = data.path().join("page.html");
    let page = report(Path::new(told["db"].as_str().unwrap()), &out);
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"));
    assert!(page.contains("All 3 changes were counted") && page.contains("site7/&lt;script&gt;"));
    assert!(!page.contains("<script"));
    assert!(page.contains("<bdi>panel-3</bdi>") && page.contains(": site7/ 2 of 3"));

    rustix::process::kill_process(rustix::process::Pid::from_child(&up.0), rustix::process::Signal::TERM).unwrap();
    assert!(up.0.wait().unwrap().success());
    let page = report(data.path(), &out);
    assert!(page.contains("All 3 changes were counted") && page.contains("<bdi>conflict</bdi>"));
    let left: Vec<_> = fs::read_dir(data.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().ends_with(".part")), "{left:?}");
    let to_stdout = run(&["report", "html", "-", "--db"], &[data.path()]);
    assert!(to_stdout.status.success() && to_stdout.stdout.starts_with(b"<!DOCTYPE html>"));

    let as_json = run(&["report", "html", "--json", "--db"], &[data.path(), &out]);
    assert_eq!(as_json.status.code(), Some(2));
    let nowhere = run(&["report", "html", "--db"], &[data.path(), &data.path().join("no/page.html")]);
    assert_eq!(nowhere.status.code(), Some(1));
    let nothing = run(&["report", "html", "--db"], &[&data.path().join("nothing"), &out]);
    assert_eq!(nothing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("nothing"));
}
