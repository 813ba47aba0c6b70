//! Measures projection and commits without NATS: 500-byte documents, random over 10,000, batches as
//! processors make them. `cargo run --release -p fieldstream-storer --example commit_rate -- [EVENTS] [COMMIT_EVENTS] [DIRECTORY]`;
//! a directory that is named is kept, and can be read meanwhile.

use fieldstream_shared::change::{Primitive, Version};
use fieldstream_shared::cursor::{BatchId, Cursor, Part, Position};
use fieldstream_shared::document::Body;
use fieldstream_shared::event::{Event, EventBody, Origin, encode_event_batch};
use fieldstream_shared::ids::{ClientId, DocumentId};
use fieldstream_shared::marks::Arrival;
use fieldstream_shared::partition::{Partition, PartitionSet};
use fieldstream_shared::record::BatchBuilder;
use fieldstream_storer::projection::{Batch, Projection, ProjectionError};
use fieldstream_storer::{Identity, Store, StoreOptions, TableError};
use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

const DOCUMENTS: u64 = 10_000;
const CLIENTS: u64 = 1_000;
const BODY_BYTES: usize = 500;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default| arguments.get(i).map_or(Ok(default), |a| a.parse::<usize>());
    let (events, commit_events) = (number(0, 500_000)?, number(1, 16 * 1024)?);
    let temporary = std::env::temp_dir().join(format!("fieldstream-commit-rate-{}", std::process::id()));
    let directory = arguments.get(2).map_or_else(|| temporary.clone(), PathBuf::from);
    let options =
        StoreOptions { directory: directory.clone(), file_mode: 0o664, map_bytes: 1 << 40, history_revisions: 0 };
    let store = Store::open(options, &Identity { lanes: 1, log_id: 1, new_storer: 1, now_us: 1 })?;
    let messages = log(events)?;
    println!("{events} events in {} batches", messages.len());

    let written_before = bytes_written();
    let started = Instant::now();
    let (sender, receiver) = sync_channel(64);
    let decoder = std::thread::spawn(move || {
        for (sequence, message) in (1..).zip(&messages) {
            if sender.send(Batch::decode::<TableError>(0, sequence, message)).is_err() {
                break;
            }
        }
    });
    let mut projection = Projection::new(store.checkpoints().to_vec());
    let (mut commits, mut committing) = (0, Duration::ZERO);
    let mut commit = |projection: &mut Projection| -> Result<(), Box<dyn Error>> {
        let begun = Instant::now();
        store.commit(&projection.writes(1)).map_err(|e| store.explain(e))?;
        committing += begun.elapsed();
        projection.committed();
        commits += 1;
        Ok(())
    };
    for batch in receiver {
        let read = store.read()?;
        batch
            .and_then(|batch| projection.handle(batch, &read))
            .map_err(|e: ProjectionError<TableError>| e.to_string())?;
        drop(read);
        if projection.events() >= commit_events {
            commit(&mut projection)?;
        }
    }
    commit(&mut projection)?;
    decoder.join().map_err(|_| "the decoder panicked")?;
    let seconds = started.elapsed().as_secs_f64();
    let per_event = |bytes: u64| bytes / events as u64;
    println!(
        "{:.0} events/s, {commits} commits of {} events ({:.1} ms each), {:.0} % of the time in commits, {} bytes written per event, file {} MiB",
        events as f64 / seconds,
        events / commits,
        committing.as_secs_f64() * 1e3 / f64::from(commits as u32),
        committing.as_secs_f64() / seconds * 100.0,
        per_event(bytes_written() - written_before),
        std::fs::metadata(directory.join("db/data.mdb"))?.len() >> 20,
    );
    drop(store);
    if directory == temporary {
        std::fs::remove_dir_all(temporary)?;
    }
    Ok(())
}

/// The messages of an EVENTS stream: every event sets a document's text.
fn log(events: usize) -> Result<Vec<Vec<u8>>, Box<dyn Error>> {
    let (mut random, mut revisions, mut numbers) = (0x9e37_79b9_7f4a_7c15_u64, BTreeMap::new(), BTreeMap::new());
    let (mut messages, mut cursor, mut builder) = (Vec::new(), Cursor::default(), BatchBuilder::default());
    for n in 1..=events as u64 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let (document, client) =
            (format!("site7/boiler-{:05}", random % DOCUMENTS), format!("client-{:04}", random % DOCUMENTS % CLIENTS));
        let revision = revisions.entry(document.clone()).and_modify(|r| *r += 1).or_insert(1_u64);
        let number = numbers.entry(client.clone()).and_modify(|n| *n += 1).or_insert(1_u64);
        let text = format!("{random:020}").repeat(BODY_BYTES / 20);
        let version = Version {
            revision: *revision,
            state_hash: Body::Text(text.clone()).hash(),
            time_us: 1_800_000_000_000_000 + n,
        };
        let arrival = Arrival {
            epoch: 1_800_000_000_000_000,
            number: *number,
            settled: number.saturating_sub(4).max(1),
            content_hash: n as u32,
        };
        let event = Event {
            partition: Partition::of(&document),
            sequence: messages.len() as u64 + 1,
            index: builder.len() as u32,
            origin: Some(Origin { client: ClientId::new(&client)?, arrival, document: DocumentId::new(&document)? }),
            received_at_us: 1_800_000_000_000_000 + n,
            body: EventBody::Updated { version, change: vec![Primitive::SetText(text)] },
            trace: None,
        };
        builder.push(&event.encode());
        if builder.is_full() || n == events as u64 {
            let upto = Position { sequence: messages.len() as u64 + 1, records: builder.len() as u32 };
            let id = BatchId { incarnation: 7, counter: upto.sequence };
            let part = Part { partitions: PartitionSet::ALL, after: cursor, upto };
            messages.push(encode_event_batch(id, &[part], &builder));
            builder = BatchBuilder::default();
            cursor = Cursor { position: upto, set_by: Some(id) };
        }
    }
    Ok(messages)
}

/// Bytes this process has sent to the disk.
fn bytes_written() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.and_then(|n| n.trim().parse().ok()).unwrap_or(0)
}
