//! `fieldstream-fill NATS_URL DOCUMENTS random|sequential REVISIONS TEXT_BYTES LANES`: creates the streams
//! and fills EVENTS with a valid log of so many documents; prints one line of JSON. See `scripts/scale`.

use anyhow::Context;
use fieldstream_nats::{Connection, Credentials, Server, Topology, TopologyOptions};
use fieldstream_tests::fill::{Order, Plan, TEXT_BYTES_MIN, fill};
use serde_json::json;
use std::process::ExitCode;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// What an event takes beside its text, with room to spare.
const EVENT_BYTES: u64 = 400;

/// The log is purged from a third of its room on, and here it is to stay: so many times its size.
const ROOM: u64 = 5;

/// The same arguments make the same log.
const SEED: u64 = 1;

fn plan(arguments: &[String]) -> Option<(String, Plan)> {
    let [url, documents, order, revisions, text_bytes, lanes] = arguments else { return None };
    let order = match order.as_str() {
        "random" => Order::Random,
        "sequential" => Order::Sequential,
        _ => return None,
    };
    let plan = Plan {
        documents: documents.parse().ok().filter(|n| *n > 0)?,
        order,
        revisions: revisions.parse().ok()?,
        text_bytes: text_bytes.parse().ok().filter(|n| (TEXT_BYTES_MIN..=100_000).contains(n))?,
        lanes: lanes.parse().ok().filter(|n| *n > 0)?,
        now_us: SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_micros() as u64,
    };
    Some((url.clone(), plan))
}

async fn run(url: String, plan: Plan) -> anyhow::Result<serde_json::Value> {
    let connection = Connection::connect(&Server { url, credentials: Credentials::None }, "fill").await?;
    let events = u64::from(plan.documents) + u64::from(plan.revisions);
    let log_bytes = events * (plan.text_bytes as u64 + EVENT_BYTES) + (16 << 20);
    // Half of it is for INSTRUCTIONS, which stay nearly empty.
    let options = TopologyOptions {
        lanes: Some(plan.lanes),
        max_bytes_total: Some(2 * ROOM * log_bytes),
        ..TopologyOptions::default()
    };
    let topology = Topology::create(&connection, &options).await.context("creating the streams")?;
    let begun = Instant::now();
    let filled = fill(&connection, &topology, plan, SEED).await?;
    Ok(json!({
        "messages": filled.messages,
        "events": filled.events,
        "log_bytes": filled.bytes,
        "fill_s": begun.elapsed().as_secs_f64(),
    }))
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((url, plan)) = plan(&arguments) else {
        eprintln!("usage: fieldstream-fill NATS_URL DOCUMENTS random|sequential REVISIONS TEXT_BYTES LANES");
        return ExitCode::from(2);
    };
    let done = tokio::runtime::Runtime::new().map_err(anyhow::Error::from).and_then(|rt| rt.block_on(run(url, plan)));
    match done {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
