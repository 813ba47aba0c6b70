//! Traced instructions of this gateway's clients: its own stamps, those of other roles on their way
//! to the client, and what is known of their clocks. And how long hops take, always.
//!
//! Bounded everywhere: so many instructions traced at a time, so many frames about each, for so long;
//! a TRACE frame that finds little room in its client's outbox is dropped. Nothing waits for a stamp.

use crate::lane::Origin;
use crate::mailbox::{Mailbox, Wakes, frame};
use crate::shared::{Shared, wall_us};
use bytes::Bytes;
use fieldstream_nats::{Health, Heard, TraceClock, TraceEar};
use fieldstream_shared::frame::FromServer;
use fieldstream_shared::histogram::Histogram;
use fieldstream_shared::ids::Number;
use fieldstream_shared::trace::clock::{ClockBounds, ClockSample};
use fieldstream_shared::trace::{CLOCKS_MAX, Hop, KnownClock, Stamp, StampNote, Stamps};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Instructions traced at a time; further ones get no stamps from here.
const OPEN_MAX: usize = 4_096;
/// Frames about one instruction: a processor and several storers, and some that came twice.
const FRAMES_MAX: u8 = 24;
/// Stamps that come later are of no interest to anybody.
const OPEN_US: u64 = 30_000_000;
/// So long after a sign of tracing other roles are listened to.
const LISTEN_US: u64 = 40_000_000;
/// Questions about clocks: many at first, to be sure soon, then now and then.
const ASK_FIRST: (u32, Duration) = (16, Duration::from_millis(15));
const ASK_LATER: Duration = Duration::from_millis(500);
/// After the connection to NATS could not be listened on.
const RETRY: Duration = Duration::from_secs(1);

/// An instruction that is traced.
#[derive(Debug)]
struct Open {
    mailbox: Weak<Mailbox>,
    frames_left: u8,
    until_us: u64,
}

/// The event of a traced instruction has come, and what its client is told of it is in its mailbox.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    epoch: u64,
    number: u64,
    event_us: u64,
}

/// What a connection whose client traces keeps for that.
#[derive(Debug, Default)]
pub(crate) struct SessionTrace {
    /// When the first byte of the frame that is next came.
    first_us: u64,
    /// When bytes came last.
    last_us: u64,
    /// Events of which frames are being written.
    writing: Vec<Seen>,
    /// Those of which something was written, and when.
    written: Vec<(Seen, u64)>,
}

impl SessionTrace {
    /// Bytes were read; `is_inside` a frame that had begun before.
    pub(crate) fn read(&mut self, is_inside: bool, now_us: u64) {
        if !is_inside {
            self.first_us = now_us;
        }
        self.last_us = now_us;
    }

    /// A frame was handled: the next one began with the bytes that came last.
    pub(crate) fn next_frame(&mut self) {
        self.first_us = self.last_us;
    }

    /// Frames were fetched for writing, those about these events among them.
    pub(crate) fn fetched(&mut self, seen: &mut Vec<Seen>) {
        self.writing.append(seen);
    }

    /// Something was written, by a call that began then.
    pub(crate) fn wrote(&mut self, begun_us: u64) {
        self.written.extend(self.writing.drain(..).map(|seen| (seen, begun_us)));
    }
}

/// What a gateway knows of traced instructions, and how long its hops take.
#[derive(Debug)]
pub(crate) struct Traces {
    pub(crate) clock: TraceClock,
    gateway: u64,
    open: Mutex<HashMap<Number, Open>>,
    clocks: Mutex<BTreeMap<u64, ClockBounds>>,
    /// Until when other roles are listened to.
    listen_until_us: AtomicU64,
    listen: Notify,
    queue_wait: Arc<Histogram>,
    log_write: Arc<Histogram>,
    fan_out: Arc<Histogram>,
    /// When the event batch was read of which nobody was written anything yet; 0: none.
    event_read_us: AtomicU64,
}

/// Locks here guard plain data that is whole between any two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Traces {
    pub(crate) fn new(gateway: u64, health: &Health) -> Traces {
        Traces {
            clock: TraceClock::of_process(),
            gateway,
            open: Mutex::default(),
            clocks: Mutex::default(),
            listen_until_us: AtomicU64::new(0),
            listen: Notify::new(),
            queue_wait: health.hop("queued_to_published"),
            log_write: health.hop("published_to_logged"),
            fan_out: health.hop("event_to_written"),
            event_read_us: AtomicU64::new(0),
        }
    }

    /// Somebody traces: other roles are listened to from now on for a while.
    fn expect(&self, now_us: u64) {
        let until_us = self.listen_until_us.fetch_max(now_us + LISTEN_US, Ordering::Relaxed);
        if until_us < now_us + LISTEN_US / 2 {
            self.listen.notify_one();
        }
    }

    /// The answer to a PING that asks for clocks.
    pub(crate) fn pong(&self, nonce: u64) -> Bytes {
        let now_us = self.clock.now_us();
        self.expect(now_us);
        let own = self.clock.id();
        let known = |(clock, bounds): (&u64, &ClockBounds)| {
            bounds.offset(now_us).map(|offset| KnownClock { clock: *clock, offset })
        };
        let others = lock(&self.clocks).iter().filter(|(clock, _)| **clock != own).filter_map(known).collect();
        // As late as can be: what was done before counts as the way here.
        let clock = (own, self.clock.now_us());
        frame(&FromServer::PongClock { nonce, time_us: wall_us(), clock, others })
    }

    /// A traced instruction goes to the log: its first stamps. `None` if too many are traced.
    pub(crate) fn begin(&self, session: &SessionTrace, number: Number, mailbox: &Arc<Mailbox>) -> Option<Box<Stamps>> {
        let now_us = self.clock.now_us();
        self.expect(now_us);
        let mut open = lock(&self.open);
        if open.len() >= OPEN_MAX {
            open.retain(|_, open| open.until_us > now_us);
        }
        if open.len() >= OPEN_MAX {
            return None;
        }
        let mailbox = Arc::downgrade(mailbox);
        open.insert(number, Open { mailbox, frames_left: FRAMES_MAX, until_us: now_us + OPEN_US });
        drop(open);
        // A connection that traces for the first time did not look at the clock when it read.
        let read = [(Hop::GatewayFirstByte, session.first_us), (Hop::GatewayLastByte, session.last_us)];
        let read = read.into_iter().filter(|(_, at_us)| *at_us > 0);
        let stamps = read.chain([(Hop::GatewayQueued, now_us)]).map(|(hop, at_us)| Stamp { hop, at_us }).collect();
        Some(Box::new(Stamps { member: self.gateway, clock: self.clock.id(), stamps }))
    }

    /// A batch is sent to the log; its oldest record waited since then.
    pub(crate) fn published(&self, (since_us, records): (u64, u64), now_us: u64) {
        self.queue_wait.record(now_us.saturating_sub(since_us), records);
    }

    /// A batch is in the log.
    pub(crate) fn logged(&self, traced: Vec<Origin>, records: u64, published_us: u64, wakes: &mut Wakes) {
        let now_us = self.clock.now_us();
        self.log_write.record(now_us.saturating_sub(published_us), records);
        for Origin { mailbox, epoch, number, trace, .. } in traced {
            let Some(mut stamps) = trace else { continue };
            let own = [(Hop::GatewayPublished, published_us), (Hop::GatewayLogged, now_us)];
            stamps.stamps.extend(own.map(|(hop, at_us)| Stamp { hop, at_us }));
            let told = frame(&FromServer::Trace { epoch, number, stamps: *stamps });
            wakes.post(&mailbox, |inbound| inbound.outbox.spare(told));
        }
    }

    /// An event batch was handled and is on its way to these sessions; called before they are woken.
    pub(crate) fn event(&self, traced: &mut Vec<Number>, wakes: &mut Wakes, read_us: u64) {
        if wakes.has_posted() {
            self.event_read_us.store(read_us, Ordering::Relaxed);
        }
        for number in traced.drain(..) {
            let mailbox = lock(&self.open).get(&number).and_then(|open| open.mailbox.upgrade());
            if let Some(mailbox) = mailbox {
                let seen = Seen { epoch: number.epoch, number: number.number, event_us: read_us };
                wakes.post(&mailbox, |inbound| inbound.traced.push(seen));
            }
        }
    }

    /// Something was written to a client.
    pub(crate) fn wrote(&self) {
        if self.event_read_us.load(Ordering::Relaxed) != 0 {
            let read_us = self.event_read_us.swap(0, Ordering::Relaxed);
            if read_us != 0 {
                self.fan_out.record(self.clock.now_us().saturating_sub(read_us), 1);
            }
        }
    }

    /// Tells a client when the frames about its traced instructions were written. True if there is
    /// anything to tell.
    pub(crate) fn tell_written(&self, session: &mut SessionTrace, mailbox: &Mailbox) -> bool {
        let has_written = !session.written.is_empty();
        for (Seen { epoch, number, event_us }, written_us) in session.written.drain(..) {
            let stamps = [(Hop::GatewayEvent, event_us), (Hop::GatewayWritten, written_us)];
            let stamps = stamps.map(|(hop, at_us)| Stamp { hop, at_us }).to_vec();
            let stamps = Stamps { member: self.gateway, clock: self.clock.id(), stamps };
            mailbox.lock().outbox.spare(frame(&FromServer::Trace { epoch, number, stamps }));
        }
        has_written
    }

    /// Another role had an instruction that came through here.
    fn pass_on(&self, note: StampNote) {
        let StampNote { number, stamps } = note;
        let mut open = lock(&self.open);
        let Some(found) = open.get_mut(&number) else { return };
        let Some(left) = found.frames_left.checked_sub(1) else { return };
        found.frames_left = left;
        let mailbox = found.mailbox.upgrade();
        drop(open);
        if let Some(mailbox) = mailbox {
            let told = frame(&FromServer::Trace { epoch: number.epoch, number: number.number, stamps });
            mailbox.post(|inbound| inbound.outbox.spare(told));
        }
    }

    fn take_clock(&self, clock: u64, sample: ClockSample) {
        let mut clocks = lock(&self.clocks);
        if clocks.len() < CLOCKS_MAX || clocks.contains_key(&clock) {
            clocks.entry(clock).or_default().take(sample);
        }
    }

    /// Listens until nobody has traced for a while.
    async fn listen(&self, mut ear: TraceEar) {
        let (mut asked, mut ask_at) = (0, Instant::now());
        loop {
            tokio::select! {
                heard = ear.next() => match heard {
                    Some(Heard::Note(note)) => self.pass_on(note),
                    Some(Heard::Clock { clock, sample }) => self.take_clock(clock, sample),
                    None => return,
                },
                () = tokio::time::sleep_until(ask_at) => {
                    let now_us = self.clock.now_us();
                    lock(&self.open).retain(|_, open| open.until_us > now_us);
                    if now_us > self.listen_until_us.load(Ordering::Relaxed) {
                        return;
                    }
                    ear.ask().await;
                    asked += 1;
                    ask_at = Instant::now() + if asked < ASK_FIRST.0 { ASK_FIRST.1 } else { ASK_LATER };
                }
            }
        }
    }
}

/// Listens to other roles while somebody traces, until the gateway stops.
pub(crate) async fn hear(shared: Arc<Shared>) {
    let traces = &shared.traces;
    let work = async {
        loop {
            traces.listen.notified().await;
            match TraceEar::open(&shared.consuming, traces.gateway).await {
                Ok(ear) => traces.listen(ear).await,
                Err(error) => {
                    tracing::debug!(%error, "stamps of traced instructions cannot be listened to");
                    tokio::time::sleep(RETRY).await;
                }
            }
            // Processes come and go, and clocks drift: next time they are asked anew.
            lock(&traces.clocks).clear();
        }
    };
    shared.stopped.run_until_cancelled(work).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use fieldstream_shared::ids::ClientId;

    fn traces() -> Traces {
        Traces::new(7, &Health::new())
    }

    fn number(n: u64) -> Number {
        Number { client: ClientId::new("c").unwrap(), epoch: 1, number: n }
    }

    fn frames(mailbox: &Mailbox) -> usize {
        let mut out = std::collections::VecDeque::new();
        mailbox.lock().outbox.take(1 << 20, &mut out);
        out.len()
    }

    #[test]
    fn only_what_is_traced_is_passed_on_and_not_for_ever() {
        let (traces, mailbox) = (traces(), Mailbox::new(1, 1 << 20));
        let note = |n| StampNote { number: number(n), stamps: Stamps { member: 1, clock: 2, stamps: Vec::new() } };
        assert!(traces.begin(&SessionTrace::default(), number(1), &mailbox).is_some());
        traces.pass_on(note(2));
        assert_eq!(frames(&mailbox), 0);
        (0..100).for_each(|_| traces.pass_on(note(1)));
        assert_eq!(frames(&mailbox), usize::from(FRAMES_MAX));
    }

    #[test]
    fn so_many_are_traced_at_a_time() {
        let (traces, mailbox) = (traces(), Mailbox::new(1, 1 << 20));
        let begun = (0..2 * OPEN_MAX as u64).filter(|n| {
            let stamps = traces.begin(&SessionTrace::default(), number(*n), &mailbox);
            stamps.is_some()
        });
        assert_eq!(begun.count(), OPEN_MAX);
    }

    #[test]
    fn a_client_that_takes_nothing_loses_stamps_and_nothing_else() {
        let (traces, mailbox) = (traces(), Mailbox::new(1, 400));
        traces.begin(&SessionTrace::default(), number(1), &mailbox).unwrap();
        mailbox.lock().outbox.keep(Bytes::from_static(&[0; 190]));
        traces.pass_on(StampNote { number: number(1), stamps: Stamps { member: 1, clock: 2, stamps: Vec::new() } });
        traces.pass_on(StampNote { number: number(1), stamps: Stamps { member: 1, clock: 2, stamps: Vec::new() } });
        assert_eq!(frames(&mailbox), 1);
    }

    #[test]
    fn bytes_of_a_frame_are_timed_from_its_first_to_its_last() {
        let (traces, mailbox) = (traces(), Mailbox::new(1, 1 << 20));
        let mut session = SessionTrace::default();
        session.read(false, 10);
        session.read(true, 20);
        let times = |stamps: Option<Box<Stamps>>| stamps.unwrap().stamps.iter().map(|s| s.at_us).collect::<Vec<_>>();
        assert_eq!(times(traces.begin(&session, number(1), &mailbox))[..2], [10, 20]);
        session.next_frame();
        assert_eq!(times(traces.begin(&session, number(2), &mailbox))[..2], [20, 20], "both came together");
    }

    #[test]
    fn the_first_write_behind_an_event_is_stamped() {
        let (traces, mailbox) = (traces(), Mailbox::new(1, 1 << 20));
        let mut session = SessionTrace::default();
        traces.begin(&session, number(1), &mailbox).unwrap();
        traces.event(&mut vec![number(1), number(9)], &mut Wakes::default(), 50);
        session.fetched(&mut mailbox.lock().traced);
        assert!(!traces.tell_written(&mut session, &mailbox));
        session.wrote(60);
        session.wrote(70);
        assert!(traces.tell_written(&mut session, &mailbox) && !traces.tell_written(&mut session, &mailbox));
        assert_eq!(frames(&mailbox), 1);
        traces.event(&mut Vec::new(), &mut Wakes::default(), 70);
        traces.wrote();
        assert_eq!(traces.fan_out.counts().total(), 0, "nobody was told anything");
        let mut wakes = Wakes::default();
        wakes.post(&mailbox, |_| ());
        traces.event(&mut Vec::new(), &mut wakes, 70);
        traces.wrote();
        traces.wrote();
        assert_eq!(traces.fan_out.counts().total(), 1);
    }
}
