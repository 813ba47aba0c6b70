//! Stock tools read the storer's file while it is written, with locking, in both start orders.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use fieldstream_client::{Client, How, Operation};
use fieldstream_storer::Storer;
use fieldstream_tests::{Cluster, Shape, tool};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(30);

/// Writes to many documents until told to stop; returns how many instructions were applied.
async fn write_on(client: Client, stop: Arc<AtomicBool>) -> u64 {
    let mut pending = std::collections::VecDeque::new();
    let mut n = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        let operation = match n % 3 {
            0 => Operation::PutText(format!("put {n} {}", "x".repeat(400))),
            1 => Operation::Append(format!(" more {n}")),
            _ => Operation::Append("é".into()),
        };
        pending.push_back(client.submit(&format!("live/{}", n / 3 % 50), operation, How::default()).await.unwrap());
        if pending.len() > 24 {
            pending.pop_front().unwrap().await.unwrap();
        }
        n += 1;
    }
    for receipt in pending {
        receipt.await.unwrap();
    }
    n
}

fn read_live(python: &Path, db: &Path, seconds: u32) -> Child {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/python/live_reader.py");
    let mut command = Command::new(python);
    command.arg(script).arg(db).arg(seconds.to_string()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

async fn finish(child: Child) -> serde_json::Value {
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    let (said, wrong) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{wrong}");
    serde_json::from_str(&said).unwrap()
}

fn entries(mdb_stat: &Path, db: &Path) -> u64 {
    let output = Command::new(mdb_stat).args(["-s", "documents"]).arg(db).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let line = said.lines().find_map(|l| l.trim().strip_prefix("Entries:"));
    line.unwrap_or_else(|| panic!("mdb_stat says: {said}")).trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_tools_read_the_file_while_it_is_written_in_both_start_orders() {
    let Some(python) = tool("FIELDSTREAM_TEST_PYTHON", "reading the live file with stock py-lmdb") else { return };
    let mdb_stat = tool("FIELDSTREAM_TEST_MDB_STAT", "reading the live file with mdb_stat");
    let mut cluster = Cluster::start(Shape::default()).await;
    let db = cluster.storers[0].database_path();
    let stop = Arc::new(AtomicBool::new(false));
    let writing = tokio::spawn(write_on(cluster.client(0, "tcp").await, Arc::clone(&stop)));
    tokio::time::sleep(Duration::from_millis(500)).await;

    // The storer was there first.
    let reader = read_live(&python, &db, 2);
    if let Some(mdb_stat) = &mdb_stat {
        assert!(entries(mdb_stat, &db) > 0, "mdb_stat reads beside the storer and py-lmdb");
    }
    let seen = finish(reader).await;
    assert!(seen["passes"].as_u64() > Some(3) && seen["checkpoints_seen"].as_u64() > Some(3), "{seen}");

    // The reader is there first: the storer stops, and starts again while the file is open.
    let options = cluster.storer_options(0);
    cluster.storers.pop().unwrap().stop(LONG).await;
    let reader = read_live(&python, &db, 4);
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.storers.push(Storer::start(options).await.expect("a storer starts while a stock reader has the file open"));
    let seen = finish(reader).await;
    assert!(seen["checkpoints_seen"].as_u64() > Some(3), "the reader sees the new storer's commits: {seen}");

    stop.store(true, Ordering::Relaxed);
    let applied = tokio::time::timeout(LONG, writing).await.unwrap().unwrap();
    assert!(applied > 500, "only {applied} instructions flowed");
    let client = cluster.client(0, "tcp").await;
    client.sync().await.unwrap();
    let seen = finish(read_live(&python, &db, 0)).await;
    assert_eq!((seen["documents"].as_u64(), seen["torn"].as_u64()), (Some(50), Some(0)));
    if let Some(mdb_stat) = &mdb_stat {
        assert_eq!(entries(mdb_stat, &db), 50);
    }
    cluster.stop().await;
}
