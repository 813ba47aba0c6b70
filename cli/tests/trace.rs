//! `fieldstream trace` against roles that run by themselves, each in a process with a clock of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "site/roles.rs"]
mod roles;
mod site;

use roles::Roles;
use serde_json::Value as Json;
use site::{run, text};
use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

fn metrics(address: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn json_lines(output: &[u8]) -> Vec<Json> {
    text(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The hops of one instruction, the clocks aligned, and the sum of what decided.
fn check_instruction(line: &Json) {
    assert_eq!((line["hops"].as_array().unwrap().len(), &line["missing"]), (15, &Json::Array(vec![])), "{line}");
    let clocks: BTreeSet<&str> =
        line["hops"].as_array().unwrap().iter().map(|h| h["clock"].as_str().unwrap()).collect();
    assert_eq!(clocks.len(), 4, "the client's and three processes': {line}");
    let spans = line["spans"].as_array().unwrap();
    assert_eq!(spans.len(), 14);
    for span in spans {
        let (took, doubt) = (span["took_us"].as_i64().unwrap(), span["uncertainty_us"].as_i64().unwrap());
        assert!(took >= -doubt, "the effect before its cause: {span}");
        assert!(doubt < 100_000, "not aligned: {span}");
    }
    let decided =
        spans.iter().filter(|span| span["decides"] == "outcome").map(|span| span["took_us"].as_i64().unwrap());
    assert_eq!(Some(decided.sum()), line["outcome_us"].as_i64());
    let path = line["critical_path"].as_array().unwrap();
    assert_eq!((path.first().unwrap(), path.last().unwrap()), (&"client_sent".into(), &"client_received".into()));
    assert!(line["stored_us"].as_i64() > Some(0));
}

#[test]
fn hops_of_processes_are_aligned_drawn_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let mut roles = Roles::new(folder.path());
    let admin =
        |role: &'static str| (role, TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string());
    let admins = ["storer", "processor", "gateway"].map(admin);
    for (role, address) in &admins {
        roles.start_with(role, &["--admin", address]);
    }
    roles.put("d", "at first");
    let url = roles.url();
    let traced = run(&["trace", "d", "--json", "--count", "3", "--server", &url]);
    assert!(traced.status.success(), "{}", text(&traced.stderr));
    let lines = json_lines(&traced.stdout);
    assert_eq!(lines.len(), 4);
    lines[..3].iter().for_each(check_instruction);
    let summary = &lines[3];
    assert_eq!((summary["count"].as_u64(), &summary["summary"]), (Some(3), &true.into()));
    assert!(summary["outcome"]["p99_us"].as_i64() >= summary["outcome"]["p50_us"].as_i64());
    assert_eq!(summary["clocks"].as_array().unwrap().len(), 3);
    assert_eq!(roles.get("d"), "at first", "tracing keeps the content");

    let put = run(&["put", "s", "--json-body", "{\"a\": 1}", "--server", &url]);
    assert!(put.status.success());
    let drawn = run(&["trace", "s", "-n", "2", "--server", &url]);
    let said = text(&drawn.stdout);
    assert!(drawn.status.success() && said.contains("critical path") && said.contains("█"), "{said}");
    assert!(!said.contains('\x1b'), "no colours where nobody reads");
    assert!(said.contains("p99") && !said.contains("nothing was heard"), "{said}");
    assert!(text(&run(&["get", "s", "--server", &url]).stdout).contains("\"a\":1"));
    let refused = run(&["trace", "s", "--append", "x", "--server", &url]);
    assert!(!refused.status.success() && text(&refused.stderr).contains("wrong_kind"), "{}", text(&refused.stderr));

    let hops = [
        ("gateway", &["queued_to_published", "published_to_logged", "event_to_written"][..]),
        ("processor", &["read_to_applied", "received_to_applied", "applied_to_event_logged"]),
        ("storer", &["event_read_to_committed", "received_to_committed"]),
    ];
    for (role, hops) in hops {
        let metrics = metrics(&admins.iter().find(|(other, _)| *other == role).unwrap().1);
        for hop in hops {
            let count = format!("fieldstream_hop_seconds_count{{role=\"{role}\",hop=\"{hop}\"}} ");
            let line = metrics.lines().find_map(|line| line.strip_prefix(&count));
            assert!(line.is_some_and(|n| n.parse::<u64>().unwrap() > 0), "{count} is not in {metrics}");
        }
    }
}
