//! The shipped cores under simulation: one seed, one run, in virtual time and without threads.
//!
//! Real: the client's session core, the gateway's session, hub, queue, outbox and numbers, the
//! processor's lane with its cache, the storer's projection. Simulated: the log, the network, the
//! clock, the disk of the storers, and the shells between them. The log loses publishes and
//! acknowledgements, stores batches twice and late; roles crash and pause at any step; several
//! processors own the same partitions; storers lag, run ahead and answer in part.
//!
//! [`run`] plays one seed. [`oracle`] checks by means of its own: it shares the decoders with the
//! product, but neither the acceptance rule nor the marks nor the change of documents.

pub mod log;
pub mod oracle;
mod roles;
mod world;

use fieldstream_shared::change::{Primitive, Version};
use fieldstream_shared::cursor::{BatchId, Cursor, Part, Position};
use fieldstream_shared::document::Body;
use fieldstream_shared::event::{Event, EventBody, Origin, encode_event_batch};
use fieldstream_shared::ids::{ClientId, DocumentId};
use fieldstream_shared::marks::Arrival;
use fieldstream_shared::partition::Partition;
use fieldstream_shared::record::BatchBuilder;

/// EVENTS as an honest processor writes them: one message for each new text of one document.
///
/// # Panics
/// If the id is none.
pub fn event_log(document: &str, messages: u64) -> Vec<Vec<u8>> {
    let (mut log, mut after) = (Vec::new(), Cursor::default());
    let id = DocumentId::new(document).expect("a document id");
    for n in 1..=messages {
        let text = format!("{n}");
        let version = Version { revision: n, state_hash: Body::Text(text.clone()).hash(), time_us: n };
        let origin = Origin {
            client: ClientId::new("c").expect("a client id"),
            arrival: Arrival { epoch: 1, number: n, settled: n, content_hash: 0 },
            document: id.clone(),
        };
        let partition = Partition::of(document);
        let body = EventBody::Updated { version, change: vec![Primitive::SetText(text)] };
        let event =
            Event { partition, sequence: n, index: 0, origin: Some(origin), received_at_us: n, body, trace: None };
        let mut events = BatchBuilder::default();
        events.push(&event.encode());
        let batch = BatchId { incarnation: 1, counter: n };
        let upto = Position { sequence: n, records: 1 };
        log.push(encode_event_batch(
            batch,
            &[Part { partitions: [partition].into_iter().collect(), after, upto }],
            &events,
        ));
        after = Cursor { position: upto, set_by: Some(batch) };
    }
    log
}

pub use world::{Finding, Report, run};
