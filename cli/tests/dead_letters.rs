//! `fieldstream dead-letters`, with real processes: a handler that panics and is mended, and bytes
//! that are no record.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use fieldstream_client::{Client, ClientError, ClientOptions, Operation};
use serde_json::Value as Json;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// The example of a deployment's own binary, which is built beside the tests.
fn custom_program() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_fieldstream")).parent().unwrap().join("examples/custom_instruction");
    assert!(program.exists(), "cargo builds examples for tests: {}", program.display());
    program
}

/// A program in an environment without anything of ours but the nats-server.
fn program(path: &Path) -> Command {
    let mut command = Command::new(path);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("FIELDSTREAM_") && name != "FIELDSTREAM_NATS_SERVER" {
            command.env_remove(name);
        }
    }
    command
}

struct Up(Child, Json);

impl Up {
    fn start(data: &Path, broken: bool) -> Up {
        let ready = data.join("ready.json");
        let _ = fs::remove_file(&ready);
        let mut command = program(&custom_program());
        command.args(["up", "--listen", "127.0.0.1:0", "--tcp", "127.0.0.1:0", "--ready-file"]).arg(&ready);
        command.arg("--data").arg(data).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(fs::File::create(data.join("err.txt")).unwrap());
        if broken {
            command.env("EXAMPLE_BROKEN", "1");
        }
        let mut up = Up(command.spawn().unwrap(), Json::Null);
        let begun = Instant::now();
        while up.1.is_null() {
            let alive = up.0.try_wait().unwrap().is_none();
            assert!(alive && begun.elapsed() < PATIENCE, "{}", fs::read_to_string(data.join("err.txt")).unwrap());
            std::thread::sleep(Duration::from_millis(20));
            up.1 = fs::read(&ready).map_or(Json::Null, |text| serde_json::from_slice(&text).expect("written whole"));
        }
        up
    }

    fn stop(&mut self) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.0), rustix::process::Signal::TERM)
            .unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn dead_letters(data: &Path, arguments: &[&str]) -> Output {
    let mut command = program(Path::new(env!("CARGO_BIN_EXE_fieldstream")));
    command.arg("dead-letters").args(arguments).arg("--data").arg(data).stdin(Stdio::null()).output().unwrap()
}

fn list(data: &Path) -> Vec<Json> {
    let output = dead_letters(data, &["list", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout.lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect()
}

/// Puts a message straight into INSTRUCTIONS, as no gateway would.
fn publish(url: &str, message: &[u8]) {
    let (login, address) = url.strip_prefix("nats://").unwrap().split_once('@').unwrap();
    let (user, password) = login.split_once(':').unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "CONNECT {{\"verbose\":false,\"user\":\"{user}\",\"pass\":\"{password}\"}}\r\n").unwrap();
    write!(stream, "PUB ins.0 {}\r\n", message.len()).unwrap();
    stream.write_all(message).unwrap();
    stream.write_all(b"\r\nPING\r\n").unwrap();
    let lines = BufReader::new(stream).lines().map(Result::unwrap);
    let answer = lines.filter(|line| !line.starts_with("INFO")).find(|line| !line.starts_with("+OK"));
    assert_eq!(answer.as_deref(), Some("PONG"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_died_of_a_broken_handler_is_carried_out_once_when_it_is_mended() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let mut up = Up::start(data, true);
    assert_eq!(list(data), Vec::<Json>::new());
    let client = Client::connect(up.1["tcp"].as_str().unwrap(), ClientOptions::default()).await.unwrap();
    client.instruct("notes", Operation::PutText("be loud".into())).await.unwrap();
    let died = client.instruct("notes", Operation::Custom("shout".into(), vec![])).await.unwrap_err();
    assert!(matches!(died, ClientError::Dead(_)), "{died}");
    // A batch of version 1 with one record, which is the single byte c1: never used in MessagePack.
    publish(up.1["nats"].as_str().unwrap(), &[0x92, 1, 0x91, 0xc4, 1, 0xc1]);

    let begun = Instant::now();
    while list(data).len() < 2 {
        assert!(begun.elapsed() < PATIENCE, "{:?}", list(data));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let letters = list(data);
    assert_eq!((&letters[0]["code_name"], &letters[0]["document"]), (&"handler_panicked".into(), &"notes".into()));
    assert_eq!((&letters[1]["code_name"], &letters[1]["raw"]), (&"undecodable".into(), &"c1".into()));
    let ids = [letters[0]["id"].as_str().unwrap(), letters[1]["id"].as_str().unwrap()];
    let shown = dead_letters(data, &["show", ids[0]]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("handler_panicked") && shown.contains("Custom(\"shout\""), "{shown}");
    let table = String::from_utf8(dead_letters(data, &["list"]).stdout).unwrap();
    assert!(table.starts_with("ID") && table.lines().count() == 3, "{table}");

    let again = dead_letters(data, &["retry", ids[0]]);
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(!again.status.success() && said.contains("dead again: handler_panicked"), "{said}");
    let never = dead_letters(data, &["retry", ids[1]]);
    assert!(String::from_utf8_lossy(&never.stderr).contains("its record is no record"));
    let nothing = dead_letters(data, &["show", "0-999999-0"]);
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("there is no dead letter 0-999999-0"));
    client.close(Duration::from_secs(5)).await.unwrap();
    up.stop();

    let mut up = Up::start(data, false);
    let retried = dead_letters(data, &["retry", ids[0], "--json"]);
    let retried: Json = serde_json::from_slice(&retried.stdout).expect("an outcome");
    assert_eq!((&retried["outcome"], &retried["revision"]), (&"applied".into(), &2.into()));
    let twice = dead_letters(data, &["retry", ids[0]]);
    assert_eq!(String::from_utf8_lossy(&twice.stdout), "applied as revision 2 of notes\n", "not once more");
    let client = Client::connect(up.1["tcp"].as_str().unwrap(), ClientOptions::default()).await.unwrap();
    let document = client.get("notes").await.unwrap();
    assert_eq!((document.revision, document.body), (2, fieldstream_shared::document::Body::Text("BE LOUD".into())));
    client.close(Duration::from_secs(5)).await.unwrap();
    up.stop();
}
