//! How long this storer's hops take, and its stamps of traced instructions.

use crate::projection::Batch;
use crate::writer::now_us as wall_us;
use fieldstream_nats::{Health, TraceClock, TraceDesk};
use fieldstream_shared::histogram::Histogram;
use fieldstream_shared::ids::Number;
use fieldstream_shared::trace::{Hop, Stamp};
use std::sync::Arc;

/// What of a message is of interest once it is durable.
#[derive(Debug)]
pub(crate) struct Arrival {
    read_us: u64,
    received_at_us: Option<u64>,
    events: u64,
    traced: Vec<(u64, Number)>,
}

impl Arrival {
    /// A message that was read now.
    pub(crate) fn of(batch: &mut Batch, read_us: u64) -> Arrival {
        let traced = batch.take_traced();
        Arrival { read_us, received_at_us: batch.received_at_us(), events: batch.events() as u64, traced }
    }
}

/// Where times are counted and stamps are put.
#[derive(Debug, Clone)]
pub(crate) struct Hops {
    clock: TraceClock,
    desk: TraceDesk,
    read_to_committed: Arc<Histogram>,
    received_to_committed: Arc<Histogram>,
}

impl Hops {
    pub(crate) fn new(desk: TraceDesk, health: &Health) -> Hops {
        Hops {
            clock: TraceClock::of_process(),
            desk,
            read_to_committed: health.hop("event_read_to_committed"),
            received_to_committed: health.hop("received_to_committed"),
        }
    }

    /// These messages are durable.
    pub(crate) fn committed(&self, arrivals: &mut Vec<Arrival>) {
        if arrivals.is_empty() {
            return;
        }
        let (now_us, wall_us) = (self.clock.now_us(), wall_us());
        for Arrival { read_us, received_at_us, events, traced } in arrivals.drain(..) {
            self.read_to_committed.record(now_us.saturating_sub(read_us), events);
            if let Some(received_at_us) = received_at_us {
                self.received_to_committed.record(wall_us.saturating_sub(received_at_us), events);
            }
            for (gateway, number) in traced {
                let times = [(Hop::StorerRead, read_us), (Hop::StorerCommitted, now_us)];
                self.desk.note(gateway, number, times.map(|(hop, at_us)| Stamp { hop, at_us }).to_vec());
            }
        }
    }
}
