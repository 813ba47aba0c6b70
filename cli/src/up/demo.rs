//! A fleet of simulated devices: each keeps a document of its own and watches one that all share.

use fieldstream_client::{Client, ClientError, ClientOptions, WatchEvent};
use fieldstream_shared::instruction::Operation;
use fieldstream_shared::value::{Map, Value};
use hdrhistogram::Histogram;
use rand::Rng as _;
use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// The document that every device watches.
pub(crate) const BOARD: &str = "demo/board";
/// Devices of one site.
const SITE_DEVICES: usize = 10;
/// Mean pause between two writes of a device.
const PAUSE: Duration = Duration::from_secs(2);
/// Time between two summaries.
const SUMMARY_EVERY: Duration = Duration::from_secs(10);
/// Pause before a device that failed tries again.
const RETRY: Duration = Duration::from_secs(5);

/// The running fleet; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Demo {
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Tally {
    applied: AtomicU64,
    failed: AtomicU64,
    updates: AtomicU64,
    connected: AtomicU64,
    latency_us: Mutex<Histogram<u64>>,
}

impl Demo {
    /// Starts so many devices.
    pub(crate) fn start(devices: usize, server: &str, options: &ClientOptions) -> Demo {
        let mut tasks = JoinSet::new();
        // Three digits of a number up to a minute always make a histogram.
        let Ok(latency) = Histogram::new_with_bounds(1, 60_000_000, 3) else { return Demo { _tasks: tasks } };
        let tally = Arc::new(Tally {
            applied: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            updates: AtomicU64::new(0),
            connected: AtomicU64::new(0),
            latency_us: Mutex::new(latency),
        });
        for device in 0..devices {
            let (server, tally) = (server.to_owned(), Arc::clone(&tally));
            // The same ids every time, so that a device that comes back takes its own place.
            let options = options.clone().client_id(format!("demo-device-{device}"));
            tasks.spawn(async move {
                loop {
                    let Err(error) = live(device, &server, options.clone(), &tally).await;
                    tracing::debug!(device, %error, "demo device starts again");
                    tally.failed.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(RETRY).await;
                }
            });
        }
        if std::io::stderr().is_terminal() {
            tasks.spawn(summaries(Arc::clone(&tally)));
        }
        Demo { _tasks: tasks }
    }
}

/// A device's life, up to its first error.
async fn live(
    device: usize,
    server: &str,
    options: ClientOptions,
    tally: &Arc<Tally>,
) -> Result<std::convert::Infallible, ClientError> {
    // Not all at once: a fleet that starts together would write together for ever.
    let first = PAUSE.mul_f64(rand::rng().random());
    tokio::time::sleep(first).await;
    let client = Client::connect(server, options).await?;
    let _connected = Connected::new(tally);
    let document = format!("demo/site-{}/device-{device}", device / SITE_DEVICES);
    let mut watch = client.watch(BOARD).await?;
    let mut next = tokio::time::Instant::now();
    loop {
        tokio::select! {
            event = watch.next() => {
                if let WatchEvent::Updated { .. } = event? {
                    tally.updates.fetch_add(1, Ordering::Relaxed);
                }
            }
            () = tokio::time::sleep_until(next) => {
                write(&client, device, &document, tally).await?;
                next = tokio::time::Instant::now() + PAUSE.mul_f64(rand::rng().random_range(0.5..1.5));
            }
        }
    }
}

async fn write(client: &Client, device: usize, document: &str, tally: &Tally) -> Result<(), ClientError> {
    let begun = Instant::now();
    let dice = rand::rng().random_range(0..10);
    let operation = match dice {
        0..6 => Operation::Merge(reading(device)),
        6..9 => Operation::Add(vec!["readings".into()], Value::Int(1)),
        _ => {
            let last = Map::from([("last".to_owned(), Value::Str(document.to_owned()))]);
            client.instruct(BOARD, Operation::Merge(last)).await?;
            Operation::Add(vec!["shown".into()], Value::Int(1))
        }
    };
    client.instruct(document, operation).await?;
    tally.applied.fetch_add(1, Ordering::Relaxed);
    let took_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    tally.latency_us.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(took_us);
    Ok(())
}

/// What a boiler would say.
fn reading(device: usize) -> Map {
    let mut random = rand::rng();
    // One decimal, as sensors have.
    let tenths = |value: f64| Value::Float((value * 10.0).round() / 10.0);
    Map::from([
        ("temperature_c".to_owned(), tenths(random.random_range(55.0..75.0))),
        ("pressure_bar".to_owned(), tenths(random.random_range(1.2..2.4))),
        ("burner".to_owned(), Value::Bool(random.random_bool(0.5))),
        ("model".to_owned(), Value::Str(format!("boiler mk{}", device % 3 + 1))),
    ])
}

/// Counts a connected device as long as it lives.
struct Connected(Arc<Tally>);

impl Connected {
    fn new(tally: &Arc<Tally>) -> Connected {
        tally.connected.fetch_add(1, Ordering::Relaxed);
        Connected(Arc::clone(tally))
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.connected.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn summaries(tally: Arc<Tally>) {
    loop {
        tokio::time::sleep(SUMMARY_EVERY).await;
        let (p50, p99) = {
            let mut latency = tally.latency_us.lock().unwrap_or_else(PoisonError::into_inner);
            let values = (latency.value_at_quantile(0.5), latency.value_at_quantile(0.99));
            latency.reset();
            values
        };
        let rate = |counter: &AtomicU64| counter.swap(0, Ordering::Relaxed) as f64 / SUMMARY_EVERY.as_secs_f64();
        eprintln!(
            "demo: {} devices, {:.1} instructions/s, {:.1} updates/s; applied p50 {:.1} ms, p99 {:.1} ms; {} failed",
            tally.connected.load(Ordering::Relaxed),
            rate(&tally.applied),
            rate(&tally.updates),
            p50 as f64 / 1000.0,
            p99 as f64 / 1000.0,
            tally.failed.load(Ordering::Relaxed),
        );
    }
}
