//! What the overview finds and how it looks.

use super::*;
use fieldstream_nats::{
    FileStatus, Finding, GatewayLane, GatewayStatus, Health, Member, ProcessorLane, ProcessorStatus, RoleStatus,
    Severity, StorerStatus, StreamState, Topology,
};

fn topology() -> Topology {
    Topology { lanes: 1, log_id: 0xabc, stream_bytes: 1000 }
}

fn stream(last: u64, bytes: u64) -> StreamState {
    StreamState { first: 1, last, messages: last, bytes, bytes_max: 1000 }
}

fn member(role: &'static str) -> RoleStatus {
    let health = Health::new();
    health.set_ready(true);
    RoleStatus { host: "h".into(), member: format!("{role}-1"), ..Member::new(role, "0", health).status() }
}

fn gateway() -> RoleStatus {
    let gateway = GatewayStatus { connections: 7, lanes: vec![GatewayLane::default()] };
    RoleStatus { gateway: Some(gateway), ..member("gateway") }
}

fn processor(partitions: Vec<u8>, read: u64, backlog_records: u64) -> RoleStatus {
    let lane = ProcessorLane { instructions_sequence: read, backlog_records, ..ProcessorLane::default() };
    RoleStatus { processor: Some(ProcessorStatus { partitions, lanes: vec![lane] }), ..member("processor") }
}

fn storer(stored: u64) -> RoleStatus {
    let storer = StorerStatus {
        storer: 5,
        database: "/d/db".into(),
        file_bytes: 4096,
        copies_bytes: 8192,
        stored: vec![stored],
        file: Some(FileStatus {
            history_bytes: 1024,
            by_time_bytes: 1024,
            reader_lag_commits: 3,
            ..FileStatus::default()
        }),
    };
    RoleStatus { storer: Some(storer), ..member("storer") }
}

fn overview(members: Vec<RoleStatus>) -> Overview {
    Overview::new(topology(), vec![(stream(20, 500), stream(30, 100))], members)
}

#[test]
fn a_whole_deployment_is_ok() {
    let half = |from: u8| (from..=from + 127).collect::<Vec<u8>>();
    let found = overview(vec![gateway(), processor(half(0), 20, 3), processor(half(128), 18, 4), storer(30)]);
    assert_eq!(found.problems, Vec::<String>::new());
    let lane = &found.lanes[0];
    assert_eq!((lane.backlog_records, lane.backlog_messages, lane.storer_lag_messages), (7, 2, Some(0)));
    let text = text(&found);
    for part in [
        "ok: everything works",
        "256 of 256",
        "7 records and 2 messages",
        "7 connections",
        "0-127",
        "(50%)",
        "space: log 600 bytes of",
        "of it history, a reader is 3 commits back",
    ] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    assert_eq!(found.json()["ok"], true);
    let space = serde_json::json!({
        "log_bytes": 600, "log_bytes_max": 2000, "files_bytes": 4096, "copies_bytes": 8192
    });
    assert_eq!(found.json()["space"], space);
}

#[test]
fn what_is_missing_is_said() {
    let found = overview(vec![processor((0..=200).collect(), 20, 0), processor((199..=250).collect(), 20, 0)]);
    let all = found.problems.join("\n");
    for part in ["no gateway answers", "no storer answers", "owns partitions 199-200", "nobody owns partitions 251-255"]
    {
        assert!(all.contains(part), "{part} is missing in\n{all}");
    }
    assert_eq!(found.lanes[0].storer_lag_messages, None);
    assert_eq!(overview(vec![]).lanes[0].backlog_messages, 20, "without processors everything waits");
}

#[test]
fn findings_and_full_streams_are_problems() {
    let mut broken = gateway();
    broken.ready = false;
    broken.findings = vec![Finding::new("log-hole", Severity::Blocking, "message 7 is missing", "run `fieldstream x`")];
    let members = vec![broken, processor((0..=255).collect(), 20, 0), storer(25)];
    let found = Overview::new(topology(), vec![(stream(20, 950), stream(30, 100))], members);
    let all = found.problems.join("\n");
    assert!(all.contains("gateway-1: message 7 is missing; run `fieldstream x`"), "{all}");
    assert!(all.contains("INSTRUCTIONS_0 is 95% full"), "{all}");
    assert!(text(&found).contains("5 messages"), "the storer's lag");
}

#[test]
fn what_others_say_moves_no_cursor() {
    let mut odd = storer(30);
    odd.host = "\x1b[2J".into();
    assert!(!text(&overview(vec![odd])).contains('\x1b'));
}
