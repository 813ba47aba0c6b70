//! The queue of one lane's log: records collect here while a batch is in flight.
//!
//! Self-clocked, without timers: when the batch in flight is acknowledged, everything collected
//! meanwhile becomes the next. A lone record leaves at once; under load batches grow by themselves.
//! The same batch, byte for byte, is sent again until it is in. Pure: the writer task moves it.

use crate::mailbox::{Closing, Mailbox, Wakes, frame};
use bytes::Bytes;
use fieldstream_shared::code::Code;
use fieldstream_shared::defect::{self, Defect};
use fieldstream_shared::frame::FromServer;
use fieldstream_shared::outcome::AckLevel;
use fieldstream_shared::record::BatchBuilder;
use fieldstream_shared::trace::Stamps;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The first pause after a failed attempt; it doubles up to [`RETRY_MS_MAX`].
const RETRY_MS_MIN: u64 = 25;
const RETRY_MS_MAX: u64 = 1_000;

/// Whose record it is.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) epoch: u64,
    pub(crate) number: u64,
    /// Its client wants to know when it is logged.
    pub(crate) tell_logged: bool,
    /// It is traced, and what was noted of it so far.
    pub(crate) trace: Option<Box<Stamps>>,
}

#[derive(Debug, Default)]
struct Collected {
    records: BatchBuilder,
    origins: Vec<Origin>,
    /// When the first record came ([`LaneQueue::note_opening`]).
    since_us: u64,
    has_traced: bool,
}

#[derive(Debug)]
struct Flight {
    record_bytes: usize,
    origins: Vec<Origin>,
    since_ms: u64,
    /// When its first record came.
    collected_since_us: u64,
    has_traced: bool,
    attempts: u32,
}

/// Bounds of the queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QueueLimits {
    pub(crate) bytes_max: usize,
    pub(crate) outage_after_ms: u64,
    pub(crate) batch_age_max_ms: u64,
    pub(crate) retry_after_ms: u64,
}

/// What to do after a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AfterFailure {
    /// Send the same batch again after so many milliseconds.
    RetryIn(u64),
    /// The batch is too old and was given up; its sessions have been closed before.
    GivenUp,
}

/// The queue.
#[derive(Debug)]
pub(crate) struct LaneQueue {
    limits: QueueLimits,
    closed: VecDeque<Collected>,
    open: Collected,
    /// Record bytes, those in flight included.
    bytes: usize,
    flight: Option<Flight>,
    paused: Vec<Arc<Mailbox>>,
    /// Shared with the sessions, which look at it before each frame.
    is_full: Arc<AtomicBool>,
    outage: bool,
    logged_records: u64,
}

impl LaneQueue {
    pub(crate) fn new(limits: QueueLimits) -> LaneQueue {
        LaneQueue {
            limits,
            closed: VecDeque::new(),
            open: Collected::default(),
            bytes: 0,
            flight: None,
            paused: Vec::new(),
            is_full: Arc::default(),
            outage: false,
            logged_records: 0,
        }
    }

    /// Records whose batches were acknowledged, since the start.
    pub(crate) fn logged_records(&self) -> u64 {
        self.logged_records
    }

    /// Whether the queue holds more than it should: for [`LaneQueue::hold_back`].
    pub(crate) fn full_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_full)
    }

    /// Pauses a session that has something for the log, if the queue is full. True if so.
    pub(crate) fn hold_back(&mut self, mailbox: &Arc<Mailbox>, wakes: &mut Wakes) -> bool {
        let is_full = self.is_full.load(Ordering::Relaxed);
        if is_full {
            self.pause(mailbox, wakes);
        }
        is_full
    }

    /// Takes a record. True if the writer must be woken. A full queue takes it all the same, and
    /// stops its session; in an outage the session is closed, for the client to come again.
    pub(crate) fn append(&mut self, record: &[u8], origin: Origin, wakes: &mut Wakes) -> bool {
        if self.outage {
            wakes.post(&origin.mailbox, |inbound| inbound.close(self.outage_closing()));
            return false;
        }
        if self.open.records.is_full() {
            self.closed.push_back(std::mem::take(&mut self.open));
        }
        let before = self.open.records.bytes();
        self.open.records.push(record);
        self.bytes += self.open.records.bytes() - before;
        if self.bytes > self.limits.bytes_max {
            self.is_full.store(true, Ordering::Relaxed);
        }
        self.hold_back(&origin.mailbox, wakes);
        self.open.has_traced |= origin.trace.is_some();
        self.open.origins.push(origin);
        self.flight.is_none()
    }

    /// Notes the time, if the record appended last is the first of its batch.
    pub(crate) fn note_opening(&mut self, now_us: impl FnOnce() -> u64) {
        if self.open.records.len() == 1 {
            self.open.since_us = now_us();
        }
    }

    /// Since when the oldest record of the batch in flight has been here, and how many it has.
    pub(crate) fn flight(&self) -> (u64, u64) {
        self.flight.as_ref().map_or((0, 0), |flight| (flight.collected_since_us, flight.origins.len() as u64))
    }

    fn pause(&mut self, mailbox: &Arc<Mailbox>, wakes: &mut Wakes) {
        let pause = FromServer::Pause { retry_after_ms: self.limits.retry_after_ms };
        wakes.post(mailbox, |inbound| {
            if !std::mem::replace(&mut inbound.paused, true) {
                inbound.outbox.keep(frame(&pause));
            }
        });
        self.paused.push(Arc::clone(mailbox));
    }

    /// The next batch, if none is in flight and something was collected.
    pub(crate) fn take_batch(&mut self, now_ms: u64) -> Option<Bytes> {
        if self.flight.is_some() || self.is_empty() {
            return None;
        }
        let collected = self.closed.pop_front().unwrap_or_else(|| std::mem::take(&mut self.open));
        let Collected { records, origins, since_us, has_traced } = collected;
        let record_bytes = records.bytes();
        if self.open.records.is_empty() {
            // The next batch is mostly about as large: it need not grow step by step, copied each time.
            self.open.records = BatchBuilder::with_room(record_bytes + record_bytes / 4);
        }
        let message = Bytes::from(records.finish());
        if defect::active(Defect::AckBeforePubAck) {
            tell_logged(&origins, &mut Wakes::default());
        }
        let (since_ms, collected_since_us) = (now_ms, since_us);
        self.flight = Some(Flight { record_bytes, origins, since_ms, collected_since_us, has_traced, attempts: 0 });
        Some(message)
    }

    /// The batch in flight is in the log. Returns those of its records that are traced.
    pub(crate) fn acknowledged(&mut self, wakes: &mut Wakes) -> Vec<Origin> {
        let Some(flight) = self.flight.take() else { return Vec::new() };
        self.outage = false;
        self.logged_records += flight.origins.len() as u64;
        tell_logged(&flight.origins, wakes);
        self.landed(flight.record_bytes, wakes);
        if flight.has_traced {
            flight.origins.into_iter().filter(|origin| origin.trace.is_some()).collect()
        } else {
            Vec::new()
        }
    }

    fn landed(&mut self, record_bytes: usize, wakes: &mut Wakes) {
        self.bytes -= record_bytes;
        if self.bytes * 2 <= self.limits.bytes_max && self.is_full.swap(false, Ordering::Relaxed) {
            let resume = frame(&FromServer::Resume);
            for mailbox in self.paused.drain(..) {
                wakes.post(&mailbox, |inbound| {
                    if std::mem::replace(&mut inbound.paused, false) {
                        inbound.outbox.keep(resume.clone());
                    }
                });
            }
        }
    }

    /// An attempt failed. After a while that is an outage: the sessions concerned are closed, and
    /// what was never sent is dropped; the batch in flight, which may be in the log, stays.
    pub(crate) fn failed(&mut self, now_ms: u64, wakes: &mut Wakes) -> AfterFailure {
        let Some(flight) = &mut self.flight else { return AfterFailure::GivenUp };
        let age_ms = now_ms.saturating_sub(flight.since_ms);
        flight.attempts += 1;
        let retry_ms = RETRY_MS_MIN << flight.attempts.min(6);
        if age_ms >= self.limits.outage_after_ms && !self.outage {
            self.begin_outage(wakes);
        }
        if age_ms >= self.limits.batch_age_max_ms {
            let record_bytes = self.flight.take().map_or(0, |flight| flight.record_bytes);
            // Somebody must try again to find out that the log is back.
            self.outage = false;
            self.landed(record_bytes, wakes);
            return AfterFailure::GivenUp;
        }
        AfterFailure::RetryIn(retry_ms.min(RETRY_MS_MAX))
    }

    fn begin_outage(&mut self, wakes: &mut Wakes) {
        self.outage = true;
        let closing = self.outage_closing();
        let flying = self.flight.iter().flat_map(|flight| &flight.origins);
        let waiting = self.closed.iter().chain(Some(&self.open)).flat_map(|collected| &collected.origins);
        for origin in flying.chain(waiting) {
            wakes.post(&origin.mailbox, |inbound| inbound.close(closing.clone()));
        }
        self.closed.clear();
        self.open = Collected::default();
        self.bytes = self.flight.as_ref().map_or(0, |flight| flight.record_bytes);
        self.landed(0, wakes);
    }

    fn outage_closing(&self) -> Closing {
        Closing {
            code: Code::OUTAGE,
            reason: "the log cannot be written at present".to_owned(),
            retry_after_ms: self.limits.retry_after_ms,
        }
    }

    /// Why new sessions are sent away, if they are.
    pub(crate) fn outage(&self) -> Option<Closing> {
        self.outage.then(|| self.outage_closing())
    }

    /// Record bytes that wait or are in flight.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn is_empty(&self) -> bool {
        self.closed.is_empty() && self.open.records.is_empty()
    }

    /// Nothing waits and nothing is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.flight.is_none() && self.is_empty()
    }
}

/// Tells those who wait for it that their records are logged.
fn tell_logged(origins: &[Origin], wakes: &mut Wakes) {
    for origin in origins.iter().filter(|origin| origin.tell_logged) {
        wakes.post(&origin.mailbox, |inbound| {
            if inbound.numbers.logged(origin.epoch, origin.number) {
                inbound.outcome(origin.epoch, origin.number, AckLevel::Logged, None);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fieldstream_shared::limits::BATCH_RECORDS_MAX;
    use fieldstream_shared::record::decode_batch;

    const LIMITS: QueueLimits =
        QueueLimits { bytes_max: 100, outage_after_ms: 30_000, batch_age_max_ms: 600_000, retry_after_ms: 2_000 };

    fn mailbox(id: u64) -> Arc<Mailbox> {
        Mailbox::new(id, 1 << 20)
    }

    fn append(queue: &mut LaneQueue, mailbox: &Arc<Mailbox>, number: u64, bytes: usize) {
        mailbox.lock().numbers.sent(number, 1, AckLevel::Logged);
        let origin = Origin { mailbox: Arc::clone(mailbox), epoch: 0, number, tell_logged: true, trace: None };
        queue.append(&vec![7; bytes], origin, &mut Wakes::default());
    }

    fn count(message: &[u8]) -> usize {
        decode_batch(message).unwrap().len()
    }

    #[test]
    fn one_batch_is_in_flight_and_what_collects_becomes_the_next() {
        let mut queue = LaneQueue::new(QueueLimits { bytes_max: 1 << 20, ..LIMITS });
        let m = mailbox(1);
        append(&mut queue, &m, 1, 5);
        let first = queue.take_batch(0).unwrap();
        assert_eq!(count(&first), 1);
        append(&mut queue, &m, 2, 5);
        append(&mut queue, &m, 3, 5);
        assert_eq!(queue.take_batch(1), None, "one at a time");
        queue.acknowledged(&mut Wakes::default());
        assert_eq!(count(&queue.take_batch(2).unwrap()), 2);
        queue.acknowledged(&mut Wakes::default());
        assert!(queue.is_idle() && m.lock().numbers.is_empty());
        assert_eq!(queue.bytes, 0);
    }

    #[test]
    fn batches_close_at_their_limit() {
        let mut queue = LaneQueue::new(QueueLimits { bytes_max: 1 << 20, ..LIMITS });
        let m = mailbox(1);
        let origin = |number| Origin { mailbox: Arc::clone(&m), epoch: 0, number, tell_logged: false, trace: None };
        for number in 0..BATCH_RECORDS_MAX as u64 + 1 {
            queue.append(&[1], origin(number), &mut Wakes::default());
        }
        assert_eq!(count(&queue.take_batch(0).unwrap()), BATCH_RECORDS_MAX);
        queue.acknowledged(&mut Wakes::default());
        assert_eq!(count(&queue.take_batch(0).unwrap()), 1);
    }

    #[test]
    fn a_full_queue_pauses_and_a_drained_one_resumes() {
        let mut queue = LaneQueue::new(LIMITS);
        let (a, b) = (mailbox(1), mailbox(2));
        append(&mut queue, &a, 1, 60);
        queue.take_batch(0).unwrap();
        append(&mut queue, &b, 1, 60);
        assert!(!a.lock().paused && b.lock().paused);
        queue.acknowledged(&mut Wakes::default());
        assert!(b.lock().paused, "60 of 100 are still there");
        queue.take_batch(0).unwrap();
        queue.acknowledged(&mut Wakes::default());
        assert!(!b.lock().paused);
    }

    #[test]
    fn a_full_queue_stops_sessions_before_they_bring_more() {
        let (mut queue, wakes) = (LaneQueue::new(LIMITS), &mut Wakes::default());
        let (a, late) = (mailbox(1), mailbox(2));
        assert!(!queue.hold_back(&late, wakes) && !late.lock().paused);
        append(&mut queue, &a, 1, 120);
        assert!(queue.full_flag().load(Ordering::Relaxed));
        assert!(queue.hold_back(&late, wakes) && late.lock().paused);
        queue.take_batch(0).unwrap();
        queue.acknowledged(wakes);
        assert!(!late.lock().paused && !queue.full_flag().load(Ordering::Relaxed));
    }

    #[test]
    fn an_outage_closes_sessions_but_keeps_the_batch_that_may_be_in() {
        let mut queue = LaneQueue::new(LIMITS);
        let (a, b, late) = (mailbox(1), mailbox(2), mailbox(3));
        append(&mut queue, &a, 1, 10);
        queue.take_batch(0).unwrap();
        append(&mut queue, &b, 1, 10);
        let wakes = &mut Wakes::default();
        assert!(matches!(queue.failed(10, wakes), AfterFailure::RetryIn(50)));
        assert!(a.lock().closing().is_none());
        assert!(matches!(queue.failed(30_000, wakes), AfterFailure::RetryIn(_)));
        for m in [&a, &b] {
            assert_eq!(m.lock().closing().unwrap().code, Code::OUTAGE);
        }
        append(&mut queue, &late, 1, 10);
        assert!(late.lock().closing().is_some() && queue.outage().is_some());
        assert!(queue.flight.is_some());
        assert_eq!(queue.failed(600_000, wakes), AfterFailure::GivenUp);
        assert!(queue.is_idle() && queue.outage().is_none(), "the next one tries again");
    }

    #[test]
    fn an_outage_ends_with_the_next_acknowledgement() {
        let mut queue = LaneQueue::new(LIMITS);
        let a = mailbox(1);
        append(&mut queue, &a, 1, 10);
        queue.take_batch(0).unwrap();
        queue.failed(40_000, &mut Wakes::default());
        queue.acknowledged(&mut Wakes::default());
        assert!(queue.outage().is_none());
    }

    #[test]
    fn traced_records_come_back_with_the_acknowledgement() {
        let mut queue = LaneQueue::new(QueueLimits { bytes_max: 1 << 20, ..LIMITS });
        let m = mailbox(1);
        let stamps = Stamps { member: 1, clock: 2, stamps: Vec::new() };
        append(&mut queue, &m, 1, 5);
        queue.note_opening(|| 70);
        let origin =
            Origin { mailbox: Arc::clone(&m), epoch: 0, number: 2, tell_logged: false, trace: Some(Box::new(stamps)) };
        queue.append(&[7], origin, &mut Wakes::default());
        queue.note_opening(|| panic!("not the first"));
        queue.take_batch(0).unwrap();
        assert_eq!(queue.flight(), (70, 2));
        append(&mut queue, &m, 3, 5);
        let traced = queue.acknowledged(&mut Wakes::default());
        assert_eq!(traced.iter().map(|origin| origin.number).collect::<Vec<_>>(), [2]);
        queue.take_batch(0).unwrap();
        assert!(queue.acknowledged(&mut Wakes::default()).is_empty());
    }
}
