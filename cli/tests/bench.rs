//! `fieldstream bench` against a real `up`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod site;

use serde_json::Value as Json;
use site::{Up, run, text};

fn bench(url: &str, more: &[&str]) -> Vec<Json> {
    let arguments = ["bench", "--server", url, "--clients", "9", "--json", "--warmup", "0.5"];
    let output = run(&[&arguments, more].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Nothing is missing, nothing came twice, and every watcher got everything.
fn assert_whole(line: &Json, instructions: u64) {
    assert_eq!(
        (&line["published"], &line["deliveries"]),
        (&instructions.into(), &(3 * instructions).into()),
        "{line:#}"
    );
    for none in
        ["lost", "lost_acked", "coalesced", "unacked", "unsent", "dup", "corrupt", "gaps", "refused", "dead_conns"]
    {
        assert_eq!(line[none], 0, "{none}: {line:#}");
    }
    for some in ["achieved", "ack_p50", "ack_max", "del_p50", "del_p999", "gen_cores", "gen_late_max_ms", "connect_s"] {
        assert!(line[some].as_f64() > Some(0.0), "{some}: {line:#}");
    }
    assert_eq!((&line["peer"], &line["docs"]), (&"fieldstream".into(), &3.into()));
}

#[test]
fn every_instruction_reaches_its_three_watchers_over_every_transport() {
    let directory = tempfile::tempdir().unwrap();
    let mut up = Up::spawn(directory.path(), "fast");
    up.url();
    let ready: Json = serde_json::from_slice(&std::fs::read(directory.path().join("ready.json")).unwrap()).unwrap();
    let of = |field: &str| ready[field].as_str().unwrap().to_owned();
    let (ca, pid) = (of("ca_file"), ready["pid"].to_string());
    for transport in ["tcp", "tls", "quic"] {
        let more = ["--rate", "200", "--seconds", "1.5", "--size", "100", "--ca", &ca, "--pids", &pid];
        let lines = bench(&of(transport), &more);
        let line = &lines[0];
        assert_eq!((lines.len(), &line["transport"], &line["mode"]), (1, &transport.into(), &"rate".into()));
        assert_whole(line, 400);
        assert!(line["cpu_us_per_pub"].as_f64() > Some(0.0), "{line:#}");
        assert!(line["cpu_split"]["nats-server"].is_f64() && line["rss_per_conn_kb"].is_f64(), "{line:#}");
    }
    let plot = directory.path().join("plot.svg");
    let plot = plot.to_str().unwrap();
    let more = ["--seconds", "0.5", "--find-max", "--rates", "50,100", "--ack", "stored", "--plot", plot];
    let lines = bench(&of("tcp"), &more);
    let end = lines.last().unwrap();
    assert_eq!((&end["mode"], &end["ack"]), (&"findmax".into(), &"stored".into()));
    // A machine that is busy with something else may not keep up, but nothing may be lost.
    if end["max_rate"] == 100.0 {
        assert_whole(&lines[lines.len() - 2], 100);
    }
    assert!(std::fs::read_to_string(plot).unwrap().contains("</svg>"));
    up.stop();
}
