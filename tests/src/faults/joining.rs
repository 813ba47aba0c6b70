//! What joining and leaving processors cost the devices: a steady load, and the time from when an
//! instruction was due to when it was applied, second by second.

use super::load::connect;
use super::site::{Role, Site, SiteOptions};
use fieldstream_client::{Client, How, Operation};
use serde_json::{Value as Json, json};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

const DEVICES: u64 = 100;
/// One processor, then four, then one again, for so long each.
const PHASE: Duration = Duration::from_secs(10);

type Samples = Arc<Mutex<Vec<(u64, u64)>>>;

/// Runs the load at `rate` instructions per second over all devices; a report with a curve.
///
/// # Panics
/// If the deployment cannot be started at all.
pub async fn run(options: &SiteOptions, rate: u64) -> Json {
    let mut site = Site::start(&SiteOptions { processors: 4, ..options.clone() }).await;
    site.processors.iter_mut().skip(1).for_each(Role::stop);
    let mut clients = Vec::new();
    for i in 0..DEVICES {
        clients.push(connect(&site.urls[(i % 2) as usize], &format!("device-{i}"), &site.ca).await.expect("a device"));
    }
    let (samples, errors) = (Samples::default(), Arc::new(Mutex::new(Vec::new())));
    let begun = Instant::now();
    let end = begun + PHASE * 3;
    let pause = Duration::from_nanos(1_000_000_000 * DEVICES / rate.max(1));
    let devices: Vec<_> = (0..)
        .zip(clients)
        .map(|(i, client)| {
            let first = begun + pause * i / DEVICES as u32;
            tokio::spawn(device(client, i, first, (begun, end), pause, (Arc::clone(&samples), Arc::clone(&errors))))
        })
        .collect();
    tokio::time::sleep(PHASE).await;
    site.processors.iter_mut().skip(1).for_each(Role::start);
    tokio::time::sleep(PHASE).await;
    // One after the other, as an operator would.
    site.processors.iter_mut().skip(1).for_each(Role::stop);
    for device in devices {
        let _ = device.await;
    }
    site.roles().for_each(Role::stop);
    site.nats.stop().await;
    let samples = std::mem::take(&mut *samples.lock().unwrap_or_else(PoisonError::into_inner));
    let errors = std::mem::take(&mut *errors.lock().unwrap_or_else(PoisonError::into_inner));
    let seconds = samples.iter().map(|(second, _)| *second).max().unwrap_or(0);
    let curve: Vec<Json> = (0..=seconds)
        .map(|second| {
            let mut us: Vec<u64> = samples.iter().filter(|(at, _)| *at == second).map(|(_, us)| *us).collect();
            us.sort_unstable();
            let at = |share: usize| us.get(us.len().saturating_sub(1) * share / 100).copied().unwrap_or(0) / 1_000;
            json!({ "second": second, "applied": us.len(), "p50_ms": at(50), "p99_ms": at(99), "max_ms": at(100) })
        })
        .collect();
    json!({ "rate": rate, "applied": samples.len(), "errors": errors, "curve": curve })
}

/// Sends when it is due, whatever became of what was sent before.
async fn device(
    client: Client,
    i: u32,
    first: Instant,
    (begun, end): (Instant, Instant),
    pause: Duration,
    (samples, errors): (Samples, Arc<Mutex<Vec<String>>>),
) {
    let mut due = first;
    let mut waiting = Vec::new();
    let mut n = 0_u32;
    while due < end {
        tokio::time::sleep_until(due.into()).await;
        n += 1;
        let document = format!("unit-{i}-{}", n % 8);
        let text = format!("{:>64}", n);
        match client.submit(&document, Operation::PutText(text), How::default()).await {
            Ok(pending) => {
                let (samples, errors) = (Arc::clone(&samples), Arc::clone(&errors));
                waiting.push(tokio::spawn(async move {
                    match pending.await {
                        Ok(_) => {
                            let sample = ((due - begun).as_secs(), due.elapsed().as_micros() as u64);
                            samples.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
                        }
                        Err(error) => errors.lock().unwrap_or_else(PoisonError::into_inner).push(error.to_string()),
                    }
                }));
            }
            Err(error) => errors.lock().unwrap_or_else(PoisonError::into_inner).push(error.to_string()),
        }
        waiting.retain(|sent| !sent.is_finished());
        due += pause;
    }
    for sent in waiting {
        let _ = sent.await;
    }
    let _ = client.close(Duration::from_secs(5)).await;
}
