//! Traced instructions: what is told of them, and how the server's clock stands to this one.
//!
//! Own times are wall time when this began, and steady from there.

use fieldstream_shared::trace::clock::{ClockBounds, ClockSample, Offset};
use fieldstream_shared::trace::{Hop, KnownClock, Stamp, Stamps};
use std::collections::BTreeMap;
use std::time::Instant;
use tokio::sync::oneshot;

/// Instructions whose stamps are collected; the oldest gives way.
const OPEN_MAX: usize = 256;
/// What is kept of one instruction.
const STAMPS_MAX: usize = 64;
/// Nonces of pings that ask for clocks: told apart from those of the keepalive.
const NONCE_FIRST: u64 = 1 << 48;

/// Told whether the server knows clocks; dropped if the connection ends first.
pub(crate) type ClockWaiter = oneshot::Sender<bool>;

/// The clock of this client, among those of [`Clocks`].
pub const OWN_CLOCK: u64 = 0;

/// How the clocks of roles stand to this client's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Clocks {
    /// The gateway's clock.
    pub gateway: Option<KnownClock>,
    /// The others, as the gateway knows them: how far they are ahead of the gateway's.
    pub others: Vec<KnownClock>,
}

impl Clocks {
    /// How far a clock is ahead of this client's; `None` if nobody knows.
    pub fn offset(&self, clock: u64) -> Option<Offset> {
        if clock == OWN_CLOCK {
            return Some(Offset::default());
        }
        let gateway = self.gateway?;
        if clock == gateway.clock {
            return Some(gateway.offset);
        }
        Some(gateway.offset.then(self.other(clock)?.offset))
    }

    fn other(&self, clock: u64) -> Option<&KnownClock> {
        self.others.iter().find(|other| other.clock == clock)
    }

    /// How far the time between two stamps may be off; 0 if both are by one clock. How the gateway's
    /// clock stands to this client's does not matter between two of the server's.
    pub fn uncertainty_between_us(&self, one: u64, another: u64) -> u64 {
        if one == another {
            return 0;
        }
        let beside_gateway = |clock| self.other(clock).map_or(0, |other| other.offset.uncertainty_us);
        let of_gateway = match self.gateway {
            Some(gateway) if one == OWN_CLOCK || another == OWN_CLOCK => gateway.offset.uncertainty_us,
            _ => 0,
        };
        of_gateway + beside_gateway(one) + beside_gateway(another)
    }
}

#[derive(Debug, Default)]
struct Collected {
    stamps: Vec<Stamps>,
    /// Told when nothing more is to be expected.
    done: Option<oneshot::Sender<()>>,
}

impl Collected {
    fn at_us(&self, hop: Hop) -> Option<u64> {
        let mut stamps = self.stamps.iter().flat_map(|stamps| &stamps.stamps);
        stamps.find(|stamp| stamp.hop == hop).map(|stamp| stamp.at_us)
    }

    fn has(&self, hop: Hop) -> bool {
        self.at_us(hop).is_some()
    }

    fn is_complete(&self) -> bool {
        // Of each role the last.
        [Hop::GatewayLogged, Hop::ProcessorLogged, Hop::GatewayWritten, Hop::StorerCommitted, Hop::ClientReceived]
            .into_iter()
            .all(|hop| self.has(hop))
    }

    fn add(&mut self, stamps: Stamps) {
        if self.stamps.len() < STAMPS_MAX {
            self.stamps.push(stamps);
        }
        if self.is_complete()
            && let Some(done) = self.done.take()
        {
            let _ = done.send(());
        }
    }
}

/// What a client that traces keeps.
#[derive(Debug)]
pub(crate) struct Traces {
    begun: Instant,
    begun_us: u64,
    gateway: Option<(u64, ClockBounds)>,
    others: Vec<KnownClock>,
    waiting: Vec<ClockWaiter>,
    /// The ping that is not answered yet.
    asked: Option<(u64, u64)>,
    nonce: u64,
    open: BTreeMap<(u64, u64), Collected>,
}

impl Traces {
    /// `wall_us`: microseconds since the Unix epoch.
    pub(crate) fn new(now: Instant, wall_us: u64) -> Traces {
        Traces {
            begun: now,
            begun_us: wall_us,
            gateway: None,
            others: Vec::new(),
            waiting: Vec::new(),
            asked: None,
            nonce: NONCE_FIRST,
            open: BTreeMap::new(),
        }
    }

    fn us(&self, now: Instant) -> u64 {
        self.begun_us + now.saturating_duration_since(self.begun).as_micros() as u64
    }

    /// Somebody wants to know how the clocks stand.
    pub(crate) fn ask(&mut self, waiter: ClockWaiter) {
        self.waiting.push(waiter);
    }

    /// The nonce of a ping to be sent now, if one is.
    pub(crate) fn ping(&mut self, now: Instant) -> Option<u64> {
        if self.asked.is_some() || self.waiting.is_empty() {
            return None;
        }
        self.nonce += 1;
        self.asked = Some((self.nonce, self.us(now)));
        Some(self.nonce)
    }

    /// A ping was answered; without a clock by a server that knows none.
    pub(crate) fn pong(&mut self, now: Instant, nonce: u64, clock: Option<(u64, u64)>, others: Vec<KnownClock>) {
        let Some((_, sent_us)) = self.asked.take_if(|(asked, _)| *asked == nonce) else { return };
        if let Some((clock, other_us)) = clock {
            let received_us = self.us(now);
            let (known, bounds) = self.gateway.get_or_insert((clock, ClockBounds::default()));
            if *known != clock {
                (*known, *bounds) = (clock, ClockBounds::default());
            }
            bounds.take(ClockSample { sent_us, other_us, received_us });
            self.others = others;
        }
        for waiter in self.waiting.drain(..) {
            let _ = waiter.send(clock.is_some());
        }
    }

    /// The connection is gone, and with it what was asked; the next one may be to another gateway.
    pub(crate) fn disconnected(&mut self) {
        self.waiting.clear();
        self.asked = None;
        self.gateway = None;
        self.others.clear();
    }

    pub(crate) fn clocks(&self, now: Instant) -> Clocks {
        let gateway = self
            .gateway
            .and_then(|(clock, bounds)| bounds.offset(self.us(now)).map(|offset| KnownClock { clock, offset }));
        Clocks { gateway, others: self.others.clone() }
    }

    /// An instruction was sent. What was noted of an earlier attempt no longer counts.
    pub(crate) fn sent(&mut self, now: Instant, epoch: u64, number: u64) {
        if self.open.len() >= OPEN_MAX {
            self.open.pop_first();
        }
        let at_us = self.us(now);
        let collected = self.open.entry((epoch, number)).or_default();
        collected.stamps.clear();
        collected.add(own(Hop::ClientSent, at_us));
    }

    /// The outcome of an instruction has come.
    pub(crate) fn received(&mut self, now: Instant, epoch: u64, number: u64) {
        let at_us = self.us(now);
        if let Some(collected) = self.open.get_mut(&(epoch, number))
            && !collected.has(Hop::ClientReceived)
        {
            collected.add(own(Hop::ClientReceived, at_us));
        }
    }

    /// A role had it.
    pub(crate) fn told(&mut self, now: Instant, epoch: u64, number: u64, stamps: Stamps) {
        let now_us = self.us(now);
        let Some(collected) = self.open.get_mut(&(epoch, number)) else { return };
        if let Some((clock, bounds)) = &mut self.gateway
            && *clock == stamps.clock
        {
            // What was sent was there later, whatever the clocks say.
            let own = |hop| collected.at_us(hop).map(|at_us| at_us as i64);
            for Stamp { hop, at_us } in &stamps.stamps {
                let at_us = *at_us as i64;
                match hop {
                    Hop::GatewayFirstByte => {
                        let at_most_us = own(Hop::ClientSent).map(|sent_us| at_us - sent_us + 1);
                        bounds.narrow(None, at_most_us, now_us);
                    }
                    Hop::GatewayWritten => {
                        let at_least_us = own(Hop::ClientReceived).map(|received_us| at_us - received_us - 1);
                        bounds.narrow(at_least_us, None, now_us);
                    }
                    _ => {}
                }
            }
        }
        collected.add(stamps);
    }

    /// Resolves when nothing more is to be expected of an instruction.
    pub(crate) fn done(&mut self, epoch: u64, number: u64) -> oneshot::Receiver<()> {
        let (done, wait) = oneshot::channel();
        if let Some(collected) = self.open.get_mut(&(epoch, number)) {
            if collected.is_complete() {
                let _ = done.send(());
            } else {
                collected.done = Some(done);
            }
        }
        wait
    }

    /// Takes what was collected.
    pub(crate) fn take(&mut self, epoch: u64, number: u64) -> Vec<Stamps> {
        self.open.remove(&(epoch, number)).map_or_else(Vec::new, |collected| collected.stamps)
    }
}

fn own(hop: Hop, at_us: u64) -> Stamps {
    Stamps { member: 0, clock: OWN_CLOCK, stamps: vec![Stamp { hop, at_us }] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const BEGIN_US: u64 = 1_000_000;

    fn stamps(hops: &[Hop]) -> Stamps {
        Stamps { member: 1, clock: 2, stamps: hops.iter().map(|hop| Stamp { hop: *hop, at_us: 3 }).collect() }
    }

    #[test]
    fn a_trace_is_done_when_the_last_of_every_role_is_there() {
        let begun = Instant::now();
        let mut traces = Traces::new(begun, BEGIN_US);
        traces.sent(begun, 1, 2);
        traces.told(begun, 1, 3, stamps(&[Hop::StorerCommitted]));
        let mut done = traces.done(1, 2);
        traces.told(begun, 1, 2, stamps(&[Hop::StorerCommitted, Hop::GatewayLogged, Hop::ProcessorLogged]));
        traces.told(begun, 1, 2, stamps(&[Hop::GatewayWritten]));
        assert!(done.try_recv().is_err());
        traces.received(begun + Duration::from_micros(70), 1, 2);
        traces.received(begun + Duration::from_micros(90), 1, 2);
        assert_eq!(done.try_recv(), Ok(()));
        let collected = traces.take(1, 2);
        assert_eq!(collected.len(), 4);
        assert_eq!(collected[3], own(Hop::ClientReceived, BEGIN_US + 70));
        assert!(traces.take(1, 2).is_empty() && traces.done(1, 2).try_recv().is_err());
    }

    #[test]
    fn what_comes_without_end_is_not_kept() {
        let begun = Instant::now();
        let mut traces = Traces::new(begun, BEGIN_US);
        (0..2 * OPEN_MAX as u64).for_each(|number| traces.sent(begun, 1, number));
        (0..2 * STAMPS_MAX).for_each(|_| traces.told(begun, 1, 2 * OPEN_MAX as u64 - 1, stamps(&[Hop::StorerRead])));
        assert_eq!(traces.open.len(), OPEN_MAX);
        assert_eq!(traces.take(1, 2 * OPEN_MAX as u64 - 1).len(), STAMPS_MAX);
    }

    #[test]
    fn clocks_are_those_of_the_gateway_that_answers() {
        let begun = Instant::now();
        let at = |us| begun + Duration::from_micros(us);
        let mut traces = Traces::new(begun, BEGIN_US);
        assert_eq!(traces.ping(begun), None, "nobody asks");
        let (waiter, mut answered) = oneshot::channel();
        traces.ask(waiter);
        let nonce = traces.ping(begun).unwrap();
        assert_eq!(traces.ping(begun), None, "one at a time");
        let other = KnownClock { clock: 6, offset: Offset { ahead_us: 10, uncertainty_us: 3 } };
        traces.pong(at(50), 1, None, Vec::new());
        traces.pong(at(100), nonce, Some((5, BEGIN_US + 550)), vec![other]);
        assert_eq!(answered.try_recv(), Ok(true));
        let clocks = traces.clocks(at(100));
        assert_eq!(clocks.offset(OWN_CLOCK), Some(Offset::default()));
        assert_eq!(clocks.offset(5), Some(Offset { ahead_us: 500, uncertainty_us: 51 }));
        assert_eq!(clocks.offset(6), Some(Offset { ahead_us: 510, uncertainty_us: 54 }));
        assert_eq!(clocks.offset(7), None);
        let between = |one, another| clocks.uncertainty_between_us(one, another);
        assert_eq!((between(5, 5), between(OWN_CLOCK, 5), between(6, 5), between(OWN_CLOCK, 6)), (0, 51, 3, 54));
        traces.disconnected();
        assert_eq!(traces.clocks(at(100)), Clocks::default());
        let (waiter, mut answered) = oneshot::channel();
        traces.ask(waiter);
        let nonce = traces.ping(begun).unwrap();
        traces.pong(at(50), nonce, None, Vec::new());
        assert_eq!(answered.try_recv(), Ok(false), "a server of before");
    }

    #[test]
    fn what_was_sent_was_there_later_whatever_the_clocks_say() {
        let begun = Instant::now();
        let at = |us| begun + Duration::from_micros(us);
        let mut traces = Traces::new(begun, BEGIN_US);
        traces.ask(oneshot::channel().0);
        let nonce = traces.ping(begun).unwrap();
        traces.pong(at(1_000), nonce, Some((5, BEGIN_US + 500)), Vec::new());
        let now = at(1_200);
        traces.sent(at(1_000), 1, 2);
        traces.received(now, 1, 2);
        let stamp = |hop, us| Stamp { hop, at_us: BEGIN_US + us };
        let written = vec![stamp(Hop::GatewayFirstByte, 1_010), stamp(Hop::GatewayWritten, 1_180)];
        traces.told(now, 1, 2, Stamps { member: 1, clock: 5, stamps: written });
        assert_eq!(traces.clocks(now).offset(5), Some(Offset { ahead_us: -5, uncertainty_us: 16 }));
    }
}
