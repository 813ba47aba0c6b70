//! How long this processor's hops take, and its stamps of traced instructions.

use crate::lane::Timing;
use fieldstream_nats::{Health, TraceDesk};
use fieldstream_shared::histogram::Histogram;
use fieldstream_shared::trace::{Hop, Stamp};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Where times are counted and stamps are put.
#[derive(Debug, Clone)]
pub(crate) struct Hops {
    desk: TraceDesk,
    read_to_applied: Arc<Histogram>,
    received_to_applied: Arc<Histogram>,
    applied_to_logged: Arc<Histogram>,
}

/// An event batch on its way to the log.
#[derive(Debug)]
pub(crate) struct Way {
    events: u64,
    timing: Timing,
    applied_us: u64,
    published_us: u64,
}

impl Hops {
    pub(crate) fn new(desk: TraceDesk, health: &Health) -> Hops {
        Hops {
            desk,
            read_to_applied: health.hop("read_to_applied"),
            received_to_applied: health.hop("received_to_applied"),
            applied_to_logged: health.hop("applied_to_event_logged"),
        }
    }

    pub(crate) fn now_us(&self) -> u64 {
        self.desk.now_us()
    }

    /// An event batch is built.
    pub(crate) fn applied(&self, events: usize, timing: Timing) -> Way {
        let (applied_us, events) = (self.now_us(), events as u64);
        if timing.read_us > 0 {
            self.read_to_applied.record(applied_us.saturating_sub(timing.read_us), events);
            // The gateway's time is of the day; this process' clock may have drifted from that since.
            let wall_us = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64);
            self.received_to_applied.record(wall_us.saturating_sub(timing.received_us), events);
        }
        Way { events, timing, applied_us, published_us: applied_us }
    }

    /// It is sent to the log.
    pub(crate) fn published(&self, way: &mut Way) {
        way.published_us = self.now_us();
    }

    /// It is in the log.
    pub(crate) fn logged(&self, way: Way) {
        let Way { events, timing, applied_us, published_us } = way;
        let logged_us = self.now_us();
        self.applied_to_logged.record(logged_us.saturating_sub(applied_us), events);
        for traced in timing.traced {
            let times = [
                (Hop::ProcessorRead, traced.read_us),
                (Hop::ProcessorApplied, applied_us),
                (Hop::ProcessorPublished, published_us),
                (Hop::ProcessorLogged, logged_us),
            ];
            let stamps = times.map(|(hop, at_us)| Stamp { hop, at_us }).to_vec();
            self.desk.note(traced.gateway, traced.number, stamps);
        }
    }
}
