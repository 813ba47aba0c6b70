//! In the durable profile no acknowledgement leaves before its fsync: seen from outside, in the
//! system calls of a real nats-server under load.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use bytes::Bytes;
use fieldstream_nats::*;
use fieldstream_tests::{nats_server, tool};
use std::collections::HashMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// What the trace shows.
#[derive(Debug, Default)]
struct Seen {
    fsyncs: usize,
    acks: usize,
    acks_before_fsync: Vec<u64>,
}

/// Attaches strace to a process; `None` if this machine does not allow that.
async fn attach(strace: &Path, pid: u32, log: &Path) -> Option<Child> {
    let mut child = Command::new(strace)
        .args(["-f", "-y", "-s", "16000", "-e", "trace=fsync,fdatasync,write,writev,sendto,sendmsg", "-o"])
        .arg(log)
        .args(["-p", &pid.to_string()])
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        if status.lines().any(|l| l.starts_with("TracerPid:") && !l.ends_with("\t0")) {
            return Some(child);
        }
        if child.try_wait().ok()?.is_some() {
            return None;
        }
    }
    child.kill().ok()?;
    None
}

/// Sequences in the PubAcks that a line of the trace sends. Quotes stand escaped in it.
fn acked(line: &str) -> Vec<u64> {
    let pieces = line.split("\\\"stream\\\":\\\"INSTRUCTIONS_0\\\"").skip(1);
    pieces
        .filter_map(|rest| {
            let digits = rest.split("\\\"seq\\\":").nth(1)?;
            digits.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok()
        })
        .collect()
}

fn read_trace(text: &str) -> Seen {
    let mut seen = Seen::default();
    let mut unfinished: HashMap<&str, bool> = HashMap::new();
    for line in text.lines() {
        let (thread, call) = line.split_once(' ').unwrap_or(("", line));
        let of_stream = call.contains("INSTRUCTIONS_0/msgs/");
        if call.contains("fsync(") || call.contains("fdatasync(") {
            if call.contains("<unfinished") {
                unfinished.insert(thread, of_stream);
            } else if of_stream && call.ends_with("= 0") {
                seen.fsyncs += 1;
            }
        } else if call.contains("sync resumed>") && call.ends_with("= 0") && unfinished.remove(thread) == Some(true) {
            seen.fsyncs += 1;
        }
        for sequence in acked(call) {
            seen.acks += 1;
            if (seen.fsyncs as u64) < sequence {
                seen.acks_before_fsync.push(sequence);
            }
        }
    }
    seen
}

async fn trace(profile: Profile) -> Option<Seen> {
    let strace = tool("FIELDSTREAM_TEST_STRACE", "counting nats-server's fsyncs")?;
    let dir = tempfile::tempdir().unwrap();
    let options = ChildOptions { binary: nats_server(), directory: dir.path().join("nats"), profile };
    let nats = NatsChild::start(options).await.unwrap();
    let connection = Connection::connect(nats.server(), "test").await.unwrap();
    Topology::create(&connection, &TopologyOptions::default()).await.unwrap();
    let log = dir.path().join("trace");
    let Some(mut tracer) = attach(&strace, nats.pid(), &log).await else {
        eprintln!("SKIPPED: counting nats-server's fsyncs: this machine does not let strace attach");
        nats.stop().await;
        return None;
    };
    let writer = BatchWriter::new(&connection, Log::Instructions, 0);
    let writes = (0..4).map(|task: u8| {
        let writer = writer.clone();
        tokio::spawn(async move {
            for i in 0..50_u8 {
                writer.append(Bytes::from(vec![task, i])).await.unwrap();
            }
        })
    });
    for write in writes.collect::<Vec<_>>() {
        write.await.unwrap();
    }
    let pid = rustix::process::Pid::from_child(&tracer);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    tracer.wait().unwrap();
    nats.stop().await;
    Some(read_trace(&std::fs::read_to_string(log).unwrap()))
}

#[tokio::test(flavor = "multi_thread")]
async fn durable_acknowledges_nothing_before_its_fsync() {
    let Some(seen) = trace(Profile::Durable).await else { return };
    eprintln!("durable: {} acknowledgements, {} fsyncs of the stream", seen.acks, seen.fsyncs);
    assert_eq!(seen.acks, 200, "the trace shows every acknowledgement");
    assert_eq!(seen.acks_before_fsync, [] as [u64; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_count_would_show_an_early_acknowledgement() {
    let Some(seen) = trace(Profile::Fast).await else { return };
    eprintln!("fast: {} acknowledgements, {} fsyncs of the stream", seen.acks, seen.fsyncs);
    assert!(seen.acks_before_fsync.len() > 150, "the fast profile acknowledges before it syncs");
}
