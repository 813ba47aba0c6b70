//! `fieldstream replay`: plays real editing histories and sensor series, and checks that everybody
//! ends with the same document.

mod measure;
mod script;
mod watcher;
mod writer;

use crate::args::ReplayArgs;
use crate::client::{connect, failure};
use crate::exit::{Exit, Failure};
use crate::output;
use fieldstream_client::Client;
use fieldstream_shared::document::{Body, Document};
use fieldstream_shared::ids::DocumentId;
use indicatif::{ProgressBar, ProgressStyle};
use measure::{Latencies, Sent};
use script::Script;
use serde_json::{Value as Json, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;
use watcher::Watched;

/// Without any progress for so long, the server is not coming back.
const STALLED_AFTER: Duration = Duration::from_secs(300);
/// How long the server's own answer may lag behind what its watchers have seen.
const SETTLE: Duration = Duration::from_secs(30);

/// What came of one document.
struct Played {
    document: String,
    instructions: usize,
    first: Instant,
    last: Instant,
    acks: Latencies,
    watched: Vec<Watched>,
    reconnects: u64,
    revision: u64,
    /// The server's own answer.
    server_says: Document,
    end: String,
}

/// `fieldstream replay`.
pub(crate) async fn run(args: &ReplayArgs) -> Result<(), Failure> {
    if args.watchers == 0 {
        return Err(Failure::usage("--watchers must be at least 1: nobody would see whether the replicas converge"));
    }
    let scripts = load(args)?;
    let total: usize = scripts.iter().map(|(_, script)| script.steps.len()).sum();
    let bar = progress_bar(total);
    let mut tasks = JoinSet::new();
    for (document, script) in scripts {
        let (args, bar) = (args.clone(), bar.clone());
        tasks.spawn(async move { play(&args, document, script, &bar).await });
    }
    let mut played = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        let ended = ended.map_err(|error| Failure::failed(format_args!("a writer ended unexpectedly: {error}")))?;
        played.push(ended.inspect_err(|_| bar.abandon())?);
    }
    bar.finish_and_clear();
    played.sort_by(|a, b| a.document.cmp(&b.document));
    let report = report(&played);
    if args.server.json {
        output::json(&report)?
    } else {
        output::line(&format!("{report:#}"))?
    };
    if played.iter().all(Played::converged) {
        return Ok(());
    }
    let wrong: Vec<&str> = played.iter().filter(|p| !p.converged()).map(|p| p.document.as_str()).collect();
    Err(Failure::failed(format_args!("not converged: {}", wrong.join(", "))))
}

/// Every file with the document it goes to.
fn load(args: &ReplayArgs) -> Result<Vec<(String, Script)>, Failure> {
    let mut scripts = Vec::new();
    let mut problems = Vec::new();
    let mut taken = BTreeSet::new();
    for path in &args.files {
        let script = match Script::read(path) {
            Ok(script) => script,
            Err(problem) => {
                problems.push(problem);
                continue;
            }
        };
        let document = if args.files.len() == 1 { args.doc.clone() } else { format!("{}/{}", args.doc, script.stem) };
        if let Err(error) = DocumentId::new(&document) {
            problems.push(format!("the document id {document:?} {error}"));
        } else if !taken.insert(document.clone()) {
            problems.push(format!("{}: another file is written to {document}, too", path.display()));
        }
        scripts.push((document, script));
    }
    if problems.is_empty() { Ok(scripts) } else { Err(Failure::new(Exit::Usage, problems.join("\n"))) }
}

/// Draws on stderr, and only if that is a terminal.
fn progress_bar(total: usize) -> ProgressBar {
    let bar = ProgressBar::new(total as u64);
    let style = ProgressStyle::with_template("{wide_bar} {human_pos}/{human_len} {per_sec} eta {eta}");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar
}

async fn play(args: &ReplayArgs, document: String, script: Script, bar: &ProgressBar) -> Result<Played, Failure> {
    let server = &args.server;
    let client = connect(server).await?;
    let (base, first_number) = prepare(args, &client, &document, &script).await?;
    let sent = Arc::new(Sent::new(client.id().clone(), first_number, script.steps.len()));
    let (done, end) = watch::channel(None);
    let mut watchers = JoinSet::new();
    let (here, mut there) = tokio::sync::mpsc::channel(args.watchers);
    for nth in 0..args.watchers {
        let watching = watcher::Watching {
            server: anonymous(server),
            document: document.clone(),
            base,
            // One of them is cut off in the middle and has to resume.
            interrupt_at: (nth == 0).then_some(base + script.steps.len() as u64 / 2),
            sent: Arc::clone(&sent),
            end: end.clone(),
            here: here.clone(),
        };
        watchers.spawn(watcher::watch(watching));
    }
    drop(here);
    let mut ready = 0;
    while ready < args.watchers && there.recv().await.is_some() {
        ready += 1;
    }
    let written = match ready == args.watchers {
        true => Some(writer::write(args, &client, &document, &script, &sent, bar).await?),
        // One that cannot watch says why below.
        false => None,
    };
    let revision = match &written {
        Some(written) => written.revision.unwrap_or(base + script.steps.len() as u64),
        None => base,
    };
    let _ = done.send(Some(revision));

    let mut watched = Vec::new();
    while let Some(ended) = watchers.join_next().await {
        let ended = ended.map_err(|error| Failure::failed(format_args!("a watcher ended unexpectedly: {error}")))?;
        watched.push(ended?);
    }
    let Some(written) = written else { return Err(Failure::failed("a watcher ended before the first instruction")) };
    // Nobody watches any more and everything is stored: the answer is a storer's, not what the
    // gateway keeps for watchers.
    watcher::synced(server, &client).await?;
    let server_says = settled(args, &client, &document, revision).await?;
    let reconnects = client.status().reconnects + watched.iter().map(|w| w.reconnects).sum::<u64>();
    let _ = client.close(server.timeout).await;
    Ok(Played {
        document,
        instructions: script.steps.len(),
        first: written.first,
        last: written.last,
        acks: written.acks,
        watched,
        reconnects,
        revision,
        server_says,
        end: script.end,
    })
}

/// The same server for a watcher, which must not take over the writer's id.
fn anonymous(server: &crate::args::ServerArgs) -> crate::args::ServerArgs {
    crate::args::ServerArgs { client_id: None, ..server.clone() }
}

/// Brings the document to where the script begins, whatever an earlier, perhaps interrupted run
/// has left. Gives its revision there and the number of the next instruction.
async fn prepare(args: &ReplayArgs, client: &Client, document: &str, script: &Script) -> Result<(u64, u64), Failure> {
    let server = &args.server;
    let now = client.get(document).await.map_err(|error| failure(server, &error))?;
    let operations = match &script.start {
        Some(start) => script::set_text(start),
        None if now.exists() => script::set_text(""),
        None => return Ok((now.revision, 1)),
    };
    let (mut revision, mut number) = (now.revision, 0);
    for operation in operations {
        let receipt = client.instruct(document, operation).await.map_err(|error| failure(server, &error))?;
        (revision, number) = (receipt.revision.unwrap_or(revision + 1), receipt.number);
    }
    Ok((revision, number + 1))
}

/// The server's own answer, once it has reached a revision.
async fn settled(args: &ReplayArgs, client: &Client, document: &str, revision: u64) -> Result<Document, Failure> {
    let begun = Instant::now();
    loop {
        let got = client.get(document).await;
        match got {
            Ok(got) if got.revision >= revision || begun.elapsed() > SETTLE => return Ok(got),
            Err(error) if begun.elapsed() > SETTLE => return Err(failure(&args.server, &error)),
            Ok(_) | Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Whether a body is this text; no text at all and none that was ever written are the same.
fn holds(body: &Body, text: &str) -> bool {
    match body {
        Body::Text(found) => found == text,
        Body::Absent => text.is_empty(),
        Body::Structured(_) => false,
    }
}

impl Played {
    fn watchers_agree(&self) -> bool {
        self.watched.iter().all(|watched| {
            watched.built.revision == self.revision && holds(&watched.built.body, &self.end) && watched.sdk_agrees
        })
    }

    fn server_agrees(&self) -> bool {
        self.server_says.revision == self.revision && holds(&self.server_says.body, &self.end)
    }

    /// Whether a watcher was cut off, came back and went on.
    fn has_resumed(&self) -> bool {
        self.watched.iter().any(|watched| watched.interrupted && watched.reconnects > 0 && watched.resumes > 0)
    }

    fn converged(&self) -> bool {
        self.server_agrees() && self.watchers_agree() && self.has_resumed()
    }

    fn json(&self) -> Json {
        let seconds = (self.last - self.first).as_secs_f64();
        json!({
            "document": self.document,
            "instructions": self.instructions,
            "seconds": rounded(seconds),
            "revision": self.revision,
            "bytes": self.end.len(),
            "ack_p50_ms": self.acks.quantile_ms(0.5),
            "ack_p99_ms": self.acks.quantile_ms(0.99),
            "watchers": self.watched.len(),
            "updates": self.watched.iter().map(|w| w.updates).collect::<Vec<_>>(),
            "snapshots": self.watched.iter().map(|w| w.snapshots).sum::<u64>(),
            "reconnects": self.reconnects,
            "resumes": self.watched.iter().map(|w| w.resumes).sum::<u64>(),
            "server_agrees": self.server_agrees(),
            "watchers_agree": self.watchers_agree(),
            "converged": self.converged(),
        })
    }
}

fn rounded(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

fn report(played: &[Played]) -> Json {
    let first = played.iter().map(|p| p.first).min();
    let last = played.iter().map(|p| p.last).max();
    let seconds = first.zip(last).map_or(0.0, |(first, last)| (last - first).as_secs_f64());
    let instructions: usize = played.iter().map(|p| p.instructions).sum();
    let (mut acks, mut watchers, mut steady) = (Latencies::default(), Latencies::default(), Latencies::default());
    for one in played {
        acks.add(&one.acks);
        for watched in &one.watched {
            watchers.add(&watched.latencies);
            if !watched.interrupted {
                steady.add(&watched.latencies);
            }
        }
    }
    json!({
        "instructions": instructions,
        "seconds": rounded(seconds),
        "instructions_per_s": if seconds > 0.0 { (instructions as f64 / seconds).round() } else { 0.0 },
        "ack_p50_ms": acks.quantile_ms(0.5),
        "ack_p99_ms": acks.quantile_ms(0.99),
        "watcher_p50_ms": watchers.quantile_ms(0.5),
        "watcher_p99_ms": watchers.quantile_ms(0.99),
        // Without the watchers that were cut off on purpose.
        "steady_watcher_p50_ms": steady.quantile_ms(0.5),
        "steady_watcher_p99_ms": steady.quantile_ms(0.99),
        "watchers": played.iter().map(|p| p.watched.len()).sum::<usize>(),
        "reconnects": played.iter().map(|p| p.reconnects).sum::<u64>(),
        "resumes": played.iter().flat_map(|p| &p.watched).map(|w| w.resumes).sum::<u64>(),
        "converged": played.iter().all(Played::converged),
        "documents": played.iter().map(Played::json).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn played() -> Played {
        let document = Document { revision: 7, time_us: 1, body: Body::Text("end".into()) };
        let watched = |interrupted| Watched {
            built: document.clone(),
            sdk_agrees: true,
            updates: 7,
            snapshots: 0,
            reconnects: u64::from(interrupted),
            resumes: u64::from(interrupted),
            interrupted,
            latencies: Latencies::default(),
        };
        let now = Instant::now();
        Played {
            document: "d".into(),
            instructions: 7,
            first: now,
            last: now,
            acks: Latencies::default(),
            watched: vec![watched(true), watched(false)],
            reconnects: 1,
            revision: 7,
            server_says: document.clone(),
            end: "end".into(),
        }
    }

    #[test]
    fn a_replay_converged_only_if_everybody_has_the_same_and_one_was_cut_off() {
        assert!(played().converged());
        let spoil: [fn(&mut Played); 9] = [
            |p| p.server_says.revision = 8,
            |p| p.server_says.revision = 6,
            |p| p.server_says.body = Body::Text("en".into()),
            |p| p.watched[1].built.revision = 6,
            |p| p.watched[1].built.body = Body::Absent,
            |p| p.watched[1].sdk_agrees = false,
            |p| p.watched[0].interrupted = false,
            |p| p.watched[0].resumes = 0,
            |p| p.watched.clear(),
        ];
        for (nth, spoil) in spoil.into_iter().enumerate() {
            let mut played = played();
            spoil(&mut played);
            assert!(!played.converged(), "{nth}");
            assert_eq!(report(&[played])["converged"], false);
        }
    }
}
