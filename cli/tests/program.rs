//! The program as people and scripts use it: real processes, a real nats-server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value as Json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// The program, in an environment without anything of ours but the nats-server.
fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fieldstream"));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("FIELDSTREAM_") && name != "FIELDSTREAM_NATS_SERVER" {
            command.env_remove(name);
        }
    }
    command
}

fn run(arguments: &[&str]) -> Output {
    program().args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn wait(child: &mut Child) -> ExitStatus {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(begun.elapsed() < PATIENCE, "it does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn is_gone(pid: i32) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if test_kill_process(Pid::from_raw(pid).unwrap()).is_err() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

/// A running `fieldstream up`; killed when dropped.
struct Up {
    child: Child,
    data: PathBuf,
    ready: Json,
}

impl Up {
    fn start(data: &Path, more: &[&str]) -> Up {
        let ready_file = data.join("ready.json");
        // One that was killed could not remove it.
        let _ = fs::remove_file(&ready_file);
        let child = program()
            .args(["up", "--data"])
            .arg(data)
            .arg("--ready-file")
            .arg(&ready_file)
            .args(more)
            .stdin(Stdio::null())
            .stdout(fs::File::create(data.join("out.txt")).unwrap())
            .stderr(fs::File::create(data.join("err.txt")).unwrap())
            .spawn()
            .unwrap();
        let mut up = Up { child, data: data.to_owned(), ready: Json::Null };
        let begun = Instant::now();
        while up.ready.is_null() {
            let ended = up.child.try_wait().unwrap();
            assert!(ended.is_none() && begun.elapsed() < PATIENCE, "not ready: {}", up.said("err.txt"));
            std::thread::sleep(Duration::from_millis(20));
            if let Ok(text) = fs::read(&ready_file) {
                up.ready = serde_json::from_slice(&text).expect("written whole");
            }
        }
        assert_eq!(up.ready["pid"], up.child.id(), "not the file of an earlier run");
        up
    }

    fn anywhere(data: &Path) -> Up {
        Up::start(data, &["--listen", "127.0.0.1:0", "--tcp", "127.0.0.1:0"])
    }

    fn url(&self, transport: &str) -> &str {
        self.ready[transport].as_str().unwrap()
    }

    fn said(&self, file: &str) -> String {
        fs::read_to_string(self.data.join(file)).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// The child nats-server's process id, as the banner tells it.
    fn nats_pid(&self) -> i32 {
        let banner = self.said("out.txt");
        let line = banner.lines().find(|line| line.contains("nats-server")).expect("a line about nats-server");
        line.split_whitespace().next_back().unwrap().parse().unwrap()
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The update that a watcher of `watched` prints after something was done.
fn watch_one(url: &str, ca: &str, act: impl FnOnce()) -> Json {
    use std::io::BufRead as _;
    let arguments = ["watch", "watched", "--json", "-n", "1", "--server", url, "--ca", ca];
    let mut child = program().args(arguments).stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
    let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let mut lines = lines.map(|line| serde_json::from_str::<Json>(&line.unwrap()).unwrap());
    assert_eq!(lines.next().unwrap()["event"], "snapshot");
    act();
    let update = lines.next().unwrap();
    assert!(lines.next().is_none() && wait(&mut child).success());
    update
}

/// The status of the `up` on a data directory.
fn status(data: &Path) -> (Option<i32>, Json) {
    let output = run(&["status", "--json", "--data", &data.display().to_string()]);
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or(Json::Null))
}

/// Waits for a status.
fn until_status(data: &Path, what: &str, is_there: impl Fn(Option<i32>, &Json) -> bool) -> Json {
    let begun = Instant::now();
    loop {
        let (code, said) = status(data);
        if is_there(code, &said) {
            return said;
        }
        assert!(begun.elapsed() < PATIENCE, "{what}: {code:?} {said:#}");
    }
}

#[test]
fn status_tells_who_owns_what_and_what_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path();
    let mut up = Up::anywhere(data);
    let processors = |said: &Json| {
        let members = said["members"].as_array().cloned().unwrap_or_default();
        members.iter().filter_map(|m| m["processor"]["partitions"].as_array().map(Vec::len)).collect::<Vec<_>>()
    };
    let said = until_status(data, "all is well", |code, _| code == Some(0));
    assert_eq!(processors(&said), [256]);
    assert_eq!(said["partitions_unowned"], serde_json::json!([]));

    let nats = up.ready["nats"].as_str().unwrap().to_owned();
    let mut second = program().args(["processor", "--nats", &nats]).stdout(Stdio::null()).spawn().unwrap();
    let shared = until_status(data, "two share", |code, said| code == Some(0) && processors(said).len() == 2);
    assert_eq!(processors(&shared).iter().sum::<usize>(), 256);
    let text = stdout(&run(&["status", "--nats", &nats]));
    assert!(text.starts_with("ok: everything works") && text.contains("owns "), "{text}");

    // Stopped, not ended: it does not answer, and its partitions go to the other one.
    kill_process(Pid::from_child(&second), Signal::STOP).unwrap();
    until_status(data, "the other one takes over", |code, said| code == Some(0) && processors(said) == [256]);
    kill_process(Pid::from_child(&second), Signal::KILL).unwrap();
    wait(&mut second);

    up.signal(Signal::TERM);
    assert!(wait(&mut up.child).success());
    let gone = run(&["status", "--data", &data.display().to_string()]);
    assert_eq!(gone.status.code(), Some(69));
    assert!(stderr(&gone).contains("help: give --data DIR"), "{}", stderr(&gone));
}

#[test]
fn up_serves_every_command_and_comes_back_with_everything() {
    let directory = tempfile::tempdir().unwrap();
    let mut up = Up::anywhere(directory.path());
    let ca = up.ready["ca_file"].as_str().unwrap().to_owned();
    let at = |transport: &str, words: &[&str]| {
        let output = run(&[words, &["--server", up.url(transport), "--ca", &ca]].concat());
        assert!(output.status.success(), "{words:?}: {}", stderr(&output));
        stdout(&output)
    };
    assert_eq!(at("tcp", &["put", "hello", "Hello, world"]), "hello is at revision 1 (applied)\n");
    assert_eq!(at("quic", &["get", "hello"]), "Hello, world");
    let put: Json = serde_json::from_str(&at("tls", &["append", "hello", "!", "--json", "--ack", "stored"])).unwrap();
    assert_eq!((put["revision"].as_u64(), put["level"].as_str()), (Some(2), Some("stored")));
    at("quic", &["splice", "hello", "0", "5", "Bye"]);
    at("tcp", &["splice", "hello", "--edits", r#"[[0,1,"b"],[3,0,"-bye"]]"#]);
    assert_eq!(at("tls", &["get", "hello"]), "bye-bye, world!");
    at("tcp", &["put", "boiler", "--json-body", r#"{"a":1,"b":{"c":2}}"#]);
    at("tcp", &["merge", "boiler", r#"{"a":null}"#]);
    at("tcp", &["add", "boiler", "b.c", "-3", "--ack", "stored"]);
    assert_eq!(at("tcp", &["get", "boiler"]), "{\"b\":{\"c\":-1}}\n");
    let listed = at("quic", &["ls", "--json"]);
    assert_eq!(listed.lines().count(), 2, "{listed}");
    let watched = watch_one(up.url("quic"), &ca, || {
        at("tcp", &["append", "watched", "x"]);
    });
    assert_eq!((&watched["event"], &watched["change"][0]["op"]), (&"updated".into(), &"append".into()));

    let refused = run(&["splice", "hello", "99", "1", "x", "--server", up.url("tcp")]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("out_of_range"), "{}", stderr(&refused));
    let second = run(&["up", "--data", &directory.path().display().to_string()]);
    assert_eq!(second.status.code(), Some(1));
    assert!(stderr(&second).contains(&format!("process {}", up.child.id())), "{}", stderr(&second));

    let nats = up.nats_pid();
    up.signal(Signal::TERM);
    assert_eq!(wait(&mut up.child).code(), Some(0), "{}", up.said("err.txt"));
    assert!(is_gone(nats));
    assert!(!directory.path().join("ready.json").exists(), "it would send its readers nowhere");
    drop(up);

    let mut up = Up::anywhere(directory.path());
    let again = run(&["get", "hello", "--server", up.url("tcp")]);
    assert_eq!(stdout(&again), "bye-bye, world!");
    up.signal(Signal::INT);
    assert_eq!(wait(&mut up.child).code(), Some(0), "Ctrl-C is an orderly end, too");
}

/// Lines of a sensor series and the transactions of an editing trace.
fn samples(directory: &Path, lines: usize) -> (String, String) {
    let series: String = (0..lines).map(|i| format!("2026-01-01 00:00:{:02},{i}\n", i % 60)).collect();
    let csv = directory.join("series.csv");
    fs::write(&csv, format!("timestamp,value\n{series}")).unwrap();
    let transactions: Vec<Json> =
        (0..lines).map(|i| serde_json::json!({"time": "t", "patches": [[i, 0, "ä"], [0, 0, ""]]})).collect();
    let trace = directory.join("trace.json");
    let text = serde_json::json!({"startContent": "end", "endContent": format!("{}end", "ä".repeat(lines)), "txns": transactions});
    fs::write(&trace, text.to_string()).unwrap();
    (csv.display().to_string(), trace.display().to_string())
}

#[test]
fn replay_converges_over_every_transport() {
    let directory = tempfile::tempdir().unwrap();
    let (csv, trace) = samples(directory.path(), 400);
    let up = Up::anywhere(directory.path());
    let ca = up.ready["ca_file"].as_str().unwrap();
    for transport in ["tcp", "tls", "quic"] {
        let arguments = ["replay", &csv, &trace, "--doc", "r", "--json", "--server", up.url(transport), "--ca", ca];
        let output = run(&arguments);
        assert!(output.status.success(), "{transport}: {}", stderr(&output));
        let report: Json = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["converged"], true);
        assert_eq!((&report["instructions"], &report["watchers"]), (&801.into(), &6.into()));
        for number in ["reconnects", "resumes"] {
            assert!(report[number].as_u64() >= Some(2), "one watcher of each document is cut off: {report}");
        }
        for number in ["seconds", "instructions_per_s", "ack_p50_ms", "ack_p99_ms", "watcher_p50_ms", "watcher_p99_ms"]
        {
            assert!(report[number].as_f64() > Some(0.0), "{number}: {report}");
        }
    }
}

#[test]
fn a_replay_too_short_to_be_cut_in_the_middle_is_cut_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let csv = directory.path().join("s.csv").display().to_string();
    let up = Up::anywhere(directory.path());
    // The second one starts with what the first has left.
    for lines in ["a\n", "a\nb\n", ""] {
        fs::write(&csv, lines).unwrap();
        let output = run(&["replay", &csv, "--doc", "r", "--watchers", "1", "--json", "--server", up.url("tcp")]);
        assert!(output.status.success(), "{lines:?}: {}{}", stdout(&output), stderr(&output));
        let report: Json = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&report["converged"], &report["resumes"]), (&true.into(), &1.into()), "{lines:?}: {report}");
    }
}

#[test]
fn replay_goes_on_when_everything_was_killed_and_started_again() {
    let directory = tempfile::tempdir().unwrap();
    let (csv, _) = samples(directory.path(), 15_000);
    let mut up = Up::anywhere(directory.path());
    let address = |url: &str| url.split_once("://").unwrap().1.to_owned();
    let (tcp, tls) = (address(up.url("tcp")), address(up.url("tls")));
    let arguments = ["replay", &csv, "--doc", "r", "--json", "--server", up.url("tcp")];
    let mut replay =
        program().args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < PATIENCE);
        let got = run(&["get", "r", "--json", "--server", up.url("tcp")]);
        let revision = serde_json::from_slice::<Json>(&got.stdout).ok().and_then(|json| json["revision"].as_u64());
        if revision > Some(100) {
            break;
        }
    }
    assert!(replay.try_wait().unwrap().is_none(), "killed in the middle, not after the end");
    let nats = up.nats_pid();
    up.signal(Signal::KILL);
    wait(&mut up.child);
    assert!(is_gone(nats), "nats-server goes with the program");
    drop(up);
    let _up = Up::start(directory.path(), &["--listen", &tls, "--tcp", &tcp]);
    wait(&mut replay);
    let output = replay.wait_with_output().unwrap();
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
    let report: Json = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["converged"], &report["instructions"]), (&true.into(), &15_001.into()));
    assert_eq!(report["documents"][0]["revision"], 15_001, "nothing lost, nothing twice");
}

#[test]
fn roles_run_by_themselves_against_a_server() {
    let directory = tempfile::tempdir().unwrap();
    let up = Up::anywhere(directory.path());
    let nats = up.url("nats").to_owned();
    let put = run(&["put", "hello", "Hello", "--ack", "stored", "--server", up.url("tcp")]);
    assert!(put.status.success(), "{}", stderr(&put));

    let storer = directory.path().join("second");
    let mut storer = Role::start(&["storer", "--nats", &nats, "--data", &storer.display().to_string()], "/second/db");
    let mut gateway = Role::start(&["gateway", "--nats", &nats, "--tcp", "127.0.0.1:0"], "tcp://");
    let got = run(&["get", "hello", "--server", &gateway.line]);
    assert_eq!(stdout(&got), "Hello", "{}", stderr(&got));
    for role in [&mut gateway, &mut storer] {
        kill_process(Pid::from_child(&role.child), Signal::TERM).unwrap();
        assert_eq!(wait(&mut role.child).code(), Some(0));
    }
}

/// A role with the line it printed that has something in it.
struct Role {
    child: Child,
    line: String,
}

impl Role {
    fn start(arguments: &[&str], awaited: &str) -> Role {
        use std::io::BufRead as _;
        let mut child = program()
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let line = lines.find(|line| line.contains(awaited)).expect("the role says where it is");
        assert!(lines.any(|line| line.starts_with("ready in ")));
        Role { child, line }
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Arguments, exit code, and what the message must say.
#[test]
fn failures_have_their_codes_and_say_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().display().to_string();
    let cases: &[(&[&str], i32, &str)] = &[
        (&["up", "--data", &data, "--listen", "nowhere"], 78, "flag --listen"),
        (&["up", "--data", &data, "--nats-server", "/nowhere"], 78, "/nowhere"),
        (&["processor"], 78, "--nats"),
        (&["gateway", "--nats", "nats://127.0.0.1:1"], 69, "nats://127.0.0.1:1"),
        (&["storer", "--nats", "nats://127.0.0.1:1", "--data", &data], 69, "fieldstream up"),
        (&["get", "d", "--server", "tcp://127.0.0.1:1"], 69, "tcp://127.0.0.1:1"),
        (&["get", "d", "--server", "quic://127.0.0.1:1"], 2, "--ca"),
        (&["get", "d", "--server", "http://127.0.0.1:1"], 2, "tcp://host:port"),
        (&["get", "", "--server", "tcp://127.0.0.1:1"], 69, ""),
        (&["replay", "/nowhere.csv", "--doc", "d", "--server", "tcp://127.0.0.1:1"], 2, "/nowhere.csv"),
        (&["replay", "/x.csv", "--doc", "d", "--watchers", "0", "--server", "tcp://127.0.0.1:1"], 2, "--watchers"),
        (&["bench", "--server", "tcp://127.0.0.1:1"], 69, "tcp://127.0.0.1:1"),
        (&["bench", "--server", "tls://127.0.0.1:1"], 2, "--ca"),
        (&["bench", "--server", "tcp://127.0.0.1:1", "--pids", "4294967295"], 2, "--pids"),
        (&["bench", "--server", "tcp://127.0.0.1:1", "--plot", "p.svg"], 2, "--rates"),
        (&["bench", "--server", "tcp://127.0.0.1:1", "--seconds", "0"], 2, "--seconds"),
        (&["wathc"], 2, "watch"),
        (&["config", "check", "--config", "/nowhere.toml"], 78, "/nowhere.toml"),
    ];
    for (arguments, code, said) in cases {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(*code), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(said), "{arguments:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn init_makes_what_up_starts_with() {
    let directory = tempfile::tempdir().unwrap();
    let made = run(&["init", &directory.path().display().to_string()]);
    assert!(made.status.success(), "{}", stderr(&made));
    let file = directory.path().join("fieldstream.toml");
    let config = file.display().to_string();
    let shown = run(&["config", "show", "--origin", "--config", &config]);
    assert!(stdout(&shown).contains("fieldstream.toml"), "{}", stdout(&shown));
    let up = Up::start(directory.path(), &["--config", &config, "--listen", "127.0.0.1:0", "--tcp", "off"]);
    assert!(up.ready["tcp"].is_null());
    let ca = up.ready["ca_file"].as_str().unwrap();
    let put = run(&["put", "hello", "x", "--server", up.url("tls"), "--ca", ca]);
    assert!(put.status.success(), "{}", stderr(&put));
    let token = run(&["put", "hello", "x", "--server", up.url("tls"), "--ca", ca, "--token", "wrong"]);
    assert_eq!(token.status.code(), Some(1));
    assert!(stderr(&token).contains("unauthorized"), "{}", stderr(&token));
}

#[test]
fn a_storer_is_listed_copied_and_restored() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().to_str().unwrap();
    let up = Up::anywhere(folder.path());
    let put = run(&["put", "kept", "as it was", "--ack", "stored", "--server", up.url("tcp")]);
    assert!(put.status.success(), "{}", stderr(&put));
    let begun = Instant::now();
    let listed = loop {
        let listed = run(&["storer", "list", "--json", "--data", data]);
        match serde_json::from_slice::<Json>(&listed.stdout) {
            Ok(listed) => break listed,
            Err(_) => assert!(begun.elapsed() < PATIENCE, "{}", stderr(&listed)),
        }
    };
    assert_eq!(listed["present"], true);
    let snapshot = run(&["storer", "snapshot", "--data", data]);
    assert!(snapshot.status.success(), "{}", stderr(&snapshot));
    let copy = stdout(&snapshot).trim().to_owned();
    assert!(Path::new(&copy).join("data.mdb").exists(), "{copy}");
    let forget = run(&["storer", "forget", listed["storer"].as_str().unwrap(), "--data", data]);
    assert!(stderr(&forget).contains("is running"), "{}", stderr(&forget));
    let put = run(&["put", "kept", "as it is", "--ack", "stored", "--server", up.url("tcp")]);
    assert!(put.status.success());
    let storer = folder.path().join("storer");
    let storer = storer.to_str().unwrap();
    let in_use = run(&["storer", "restore", &copy, "--data", storer, "--yes"]);
    assert!(stderr(&in_use).contains("in use by the storer"), "{}", stderr(&in_use));
    up.signal(Signal::TERM);
    let mut up = up;
    assert!(wait(&mut up.child).success());

    let refused = run(&["storer", "restore", &copy, "--data", storer]);
    assert!(stderr(&refused).contains("say --yes"), "{}", stderr(&refused));
    let restored = run(&["storer", "restore", &copy, "--data", storer, "--yes"]);
    assert!(restored.status.success(), "{}", stderr(&restored));
    // From the copy on, the log says the rest.
    let up = Up::anywhere(folder.path());
    let got = run(&["get", "kept", "--server", up.url("tcp")]);
    assert_eq!(stdout(&got), "as it is");
}
