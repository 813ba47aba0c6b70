//! The fault runner: real processes, a real nats-server, seeded faults, devices that keep a history, and
//! a checker in Python that shares no code with the product (`tests/python/check_history.py`).

pub mod disk;
mod inflict;
pub mod joining;
pub mod load;
mod nemesis;
pub mod proxy;
pub mod site;
pub mod udp;

use crate::tool;
use fieldstream_nats::Profile;
use load::{DOCUMENTS, Load};
use nemesis::Nemesis;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde_json::{Value as Json, json};
use site::{Role, Site, SiteOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const DEVICES: usize = 24;
/// Every third of them comes by QUIC.
const QUIC_EVERY: usize = 3;
/// After the last fault everything must be resolved and shown within this: a watcher whose connection
/// was left half open notices only by the keepalive, after 90 s.
const CALM: Duration = Duration::from_secs(100);

/// What a run is to do.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// The `fieldstream` program.
    pub program: PathBuf,
    /// How long faults are injected.
    pub faults_for: Duration,
    /// Which faults, and when.
    pub seed: u64,
    /// What the log survives.
    pub profile: Profile,
    /// Everything is written here.
    pub directory: PathBuf,
}

/// Runs, checks, and gives back the report.
///
/// # Panics
/// If the deployment cannot be started at all.
pub async fn run(options: &RunOptions) -> Json {
    let site = SiteOptions {
        program: options.program.clone(),
        directory: options.directory.clone(),
        profile: options.profile,
        processors: 3,
        seed: options.seed,
        has_disks: true,
    };
    let mut site = Site::start(&site).await;
    let load = Load::new(site.ca.clone());
    let devices: Vec<_> = (0..DEVICES)
        .map(|i| {
            let urls = if i % QUIC_EVERY == 0 { &site.quic_urls } else { &site.device_urls };
            let (url, seed) = (urls[i % 2].clone(), options.seed.wrapping_mul(1_000).wrapping_add(i as u64));
            tokio::spawn(load.clone().device(url, format!("device-{i}"), seed))
        })
        .collect();
    let mut watched = Vec::new();
    for i in 0..DOCUMENTS * 2 {
        let last = Arc::new(AtomicU64::new(0));
        watched.push((format!("doc-{}", i % DOCUMENTS), Arc::clone(&last)));
        let watcher =
            load.clone().watcher(site.device_urls[i / DOCUMENTS].clone(), format!("doc-{}", i % DOCUMENTS), last);
        tokio::spawn(watcher);
    }
    let reader = LiveReader::start(&options.directory);
    let mut nemesis = Nemesis::new(StdRng::seed_from_u64(options.seed), load.clone(), &mut site).await;
    let end = Instant::now() + options.faults_for;
    while Instant::now() < end {
        nemesis.strike(&mut site).await;
    }
    load.stop();
    let unresolved = settle(devices).await;
    let behind = converge(&load, &watched).await;
    let mut report = json!({ "seed": options.seed, "unresolved": unresolved, "watchers_behind": behind });
    merge(&mut report, reader.map_or_else(|| json!({}), LiveReader::stop));
    site.roles().for_each(Role::stop);
    merge(&mut report, nemesis.report());
    let history = options.directory.join("history.json");
    let text = load.with(|history| serde_json::to_string(history)).expect("a history");
    std::fs::write(&history, text).expect("the history is written");
    merge(&mut report, check(&history, &site.nats_url, &options.directory));
    site.nats.stop().await;
    report
}

/// Waits for the devices; how many did not come to an end.
async fn settle(devices: Vec<tokio::task::JoinHandle<Result<(), fieldstream_client::ClientError>>>) -> usize {
    let until = tokio::time::Instant::now() + CALM;
    let mut unresolved = 0;
    for device in devices {
        match tokio::time::timeout_at(until, device).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => eprintln!("a device ended with {error}"),
            Ok(Err(error)) => eprintln!("a device panicked: {error}"),
            Err(_) => unresolved += 1,
        }
    }
    unresolved
}

/// Waits until all watchers of a document show the same revision, the highest that was acknowledged or
/// a later one; the documents whose watchers do not.
async fn converge(load: &Load, watched: &[(String, Arc<AtomicU64>)]) -> Vec<String> {
    let until = Instant::now() + CALM;
    loop {
        let acked = load.with(|history| {
            let mut highest = std::collections::BTreeMap::<String, u64>::new();
            for (tag, revision) in &history.acked {
                let at = highest.entry(history.attempts[tag].clone()).or_default();
                *at = (*at).max(*revision);
            }
            highest
        });
        let is_behind = |(document, last): &&(String, Arc<AtomicU64>)| {
            last.load(Ordering::SeqCst) < acked.get(document).copied().unwrap_or(0)
        };
        let behind: Vec<String> = watched.iter().filter(is_behind).map(|(document, _)| document.clone()).collect();
        if behind.is_empty() || Instant::now() > until {
            return behind;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A program that reads the storers' files all the time, with stock libraries.
struct LiveReader(Child);

impl LiveReader {
    fn start(directory: &Path) -> Option<LiveReader> {
        let python = tool("FIELDSTREAM_TEST_PYTHON", "reading the files meanwhile")?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/watch_files.py");
        let mut command = Command::new(python);
        command.arg(script).args(Site::databases(directory)).stdin(Stdio::piped()).stdout(Stdio::piped());
        Some(LiveReader(command.spawn().expect("the reader starts")))
    }

    /// What it read.
    fn stop(mut self) -> Json {
        drop(self.0.stdin.take());
        let output = self.0.wait_with_output().expect("the reader ends");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| json!({ "live_violations": "the reader failed" }))
    }
}

/// Runs the checker on what is left.
fn check(history: &Path, nats_url: &str, directory: &Path) -> Json {
    let Some(python) = tool("FIELDSTREAM_TEST_PYTHON", "checking the history") else {
        return json!({ "checked": false });
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/check_history.py");
    let output = Command::new(python).arg(script).arg(nats_url).arg(history).args(Site::databases(directory)).output();
    let output = output.expect("the checker runs");
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| json!({ "checked": false }))
}

fn merge(into: &mut Json, from: Json) {
    if let (Some(into), Json::Object(from)) = (into.as_object_mut(), from) {
        into.extend(from);
    }
}

/// Whether a report shows anything that must not be.
pub fn is_clean(report: &Json) -> bool {
    let none = |key: &str| report[key].as_u64() == Some(0);
    report["checked"] == true
        && report["live_reads"].as_u64() > Some(0)
        && [
            "lost",
            "duplicated",
            "reordered",
            "diverged",
            "phantom",
            "watch_violations",
            "unresolved",
            "stuck",
            "live_violations",
        ]
        .into_iter()
        .all(none)
        && report["watchers_behind"].as_array().is_some_and(Vec::is_empty)
}
