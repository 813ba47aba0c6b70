//! From stamps to spans: aligns clocks, finds what each hop waited for, and the path that decided
//! how long all of it took. Pure.

use fieldstream_client::{Clocks, Hop, Stamps};
use std::collections::BTreeMap;

/// When a hop had the instruction, by the client's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Point {
    /// Microseconds since the client sent it.
    pub(crate) at_us: i64,
    /// The truth is at most so far away.
    pub(crate) uncertainty_us: u64,
    /// By which clock it was noted.
    pub(crate) clock: u64,
}

/// All that is known of one instruction's way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Journey {
    pub(crate) points: BTreeMap<Hop, Point>,
    /// Stamps by clocks that nobody knows.
    pub(crate) unaligned: usize,
    /// What is known of clocks.
    pub(crate) clocks: Clocks,
}

/// From one hop to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) from: Hop,
    pub(crate) to: Hop,
    /// Microseconds since the client sent the instruction.
    pub(crate) start_us: i64,
    pub(crate) took_us: i64,
    /// 0 if both ends were noted by one clock.
    pub(crate) uncertainty_us: u64,
    pub(crate) weight: Weight,
}

/// What a span decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weight {
    /// When the client has its outcome.
    Outcome,
    /// Only when it is stored.
    Stored,
    /// Nothing: it runs beside the others.
    Beside,
}

impl Weight {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Weight::Outcome => "outcome",
            Weight::Stored => "stored",
            Weight::Beside => "beside",
        }
    }
}

/// What a hop waits for; of several, what came last.
fn causes(hop: Hop) -> &'static [Hop] {
    match hop {
        Hop::ClientSent => &[],
        Hop::GatewayFirstByte => &[Hop::ClientSent],
        Hop::GatewayLastByte => &[Hop::GatewayFirstByte],
        Hop::GatewayQueued => &[Hop::GatewayLastByte],
        Hop::GatewayPublished => &[Hop::GatewayQueued],
        Hop::GatewayLogged | Hop::ProcessorRead => &[Hop::GatewayPublished],
        Hop::ProcessorApplied => &[Hop::ProcessorRead],
        Hop::ProcessorPublished => &[Hop::ProcessorApplied],
        Hop::ProcessorLogged | Hop::GatewayEvent | Hop::StorerRead => &[Hop::ProcessorPublished],
        Hop::GatewayWritten => &[Hop::GatewayEvent],
        // Told as logged, the outcome waits for the acknowledgement only.
        Hop::ClientReceived => &[Hop::GatewayWritten, Hop::GatewayLogged],
        Hop::StorerCommitted => &[Hop::StorerRead],
    }
}

impl Journey {
    /// Aligns what was noted of an instruction. Of several members of a role (two storers, or a
    /// processor that another took over from) the one counts that was done first.
    pub(crate) fn new(noted: &[Stamps], clocks: &Clocks) -> Journey {
        let mut journey = Journey { clocks: clocks.clone(), ..Journey::default() };
        let mut members: BTreeMap<(&'static str, u64), BTreeMap<Hop, Point>> = BTreeMap::new();
        for stamps in noted {
            let Some(offset) = clocks.offset(stamps.clock) else {
                journey.unaligned += stamps.stamps.len();
                continue;
            };
            for stamp in &stamps.stamps {
                let (at_us, uncertainty_us) = (offset.to_own(stamp.at_us), offset.uncertainty_us);
                let point = Point { at_us, uncertainty_us, clock: stamps.clock };
                // What came twice was repeated: the first counts.
                members.entry((stamp.hop.role(), stamps.member)).or_default().entry(stamp.hop).or_insert(point);
            }
        }
        let done = |points: &BTreeMap<Hop, Point>| points.values().map(|point| point.at_us).max();
        let mut members: Vec<_> = members.into_values().collect();
        members.sort_by_key(|points| (std::cmp::Reverse(points.len()), done(points)));
        for (hop, point) in members.into_iter().flatten() {
            journey.points.entry(hop).or_insert(point);
        }
        let begin_us = journey.points.get(&Hop::ClientSent).map_or(0, |sent| sent.at_us);
        journey.points.values_mut().for_each(|point| point.at_us -= begin_us);
        journey
    }

    /// How long until the client had its outcome.
    pub(crate) fn outcome_us(&self) -> Option<i64> {
        self.points.get(&Hop::ClientReceived).map(|point| point.at_us)
    }

    /// How long until a storer had it on disk.
    pub(crate) fn stored_us(&self) -> Option<i64> {
        self.points.get(&Hop::StorerCommitted).map(|point| point.at_us)
    }

    /// Hops that nothing was heard of.
    pub(crate) fn missing(&self) -> impl Iterator<Item = Hop> {
        Hop::ALL.into_iter().filter(|hop| !self.points.contains_key(hop))
    }

    /// What a hop waited for: the latest of its causes that came before it. A cause that nothing was
    /// heard of is stood in for by its own.
    fn cause(&self, hop: Hop) -> Option<Hop> {
        let at = self.points.get(&hop)?;
        let mut found: Option<(i64, Hop)> = None;
        for cause in causes(hop) {
            let known = if self.points.contains_key(cause) { Some(*cause) } else { self.stand_in(*cause) };
            let Some((known, point)) = known.and_then(|known| self.points.get(&known).map(|point| (known, point)))
            else {
                continue;
            };
            let is_before = point.at_us <= at.at_us.saturating_add_unsigned(self.doubt(known, hop));
            if (is_before || causes(hop).len() == 1) && found.is_none_or(|(at_us, _)| point.at_us > at_us) {
                found = Some((point.at_us, known));
            }
        }
        found.map(|(_, cause)| cause)
    }

    fn stand_in(&self, hop: Hop) -> Option<Hop> {
        causes(hop).iter().find_map(|cause| match self.points.contains_key(cause) {
            true => Some(*cause),
            false => self.stand_in(*cause),
        })
    }

    /// How far the time between two hops may be off.
    fn doubt(&self, from: Hop, to: Hop) -> u64 {
        match (self.points.get(&from), self.points.get(&to)) {
            (Some(from), Some(to)) => self.clocks.uncertainty_between_us(from.clock, to.clock),
            _ => 0,
        }
    }

    /// The hops that decided when `end` was reached, in order.
    pub(crate) fn path_to(&self, end: Hop) -> Vec<Hop> {
        if !self.points.contains_key(&end) {
            return Vec::new();
        }
        let mut path = vec![end];
        while let Some(cause) = path.last().and_then(|hop| self.cause(*hop)) {
            path.push(cause);
        }
        path.reverse();
        path
    }

    /// All spans, in the order of the way.
    pub(crate) fn spans(&self) -> Vec<Span> {
        let (outcome, stored) = (self.path_to(Hop::ClientReceived), self.path_to(Hop::StorerCommitted));
        let is_step = |path: &[Hop], from, to| path.windows(2).any(|step| step == [from, to]);
        let span = |(to, end): (&Hop, &Point)| {
            let from = self.cause(*to)?;
            let start = self.points.get(&from)?;
            let weight = match (is_step(&outcome, from, *to), is_step(&stored, from, *to)) {
                (true, _) => Weight::Outcome,
                (false, true) => Weight::Stored,
                (false, false) => Weight::Beside,
            };
            let (start_us, took_us) = (start.at_us, end.at_us - start.at_us);
            Some(Span { from, to: *to, start_us, took_us, uncertainty_us: self.doubt(from, *to), weight })
        };
        self.points.iter().filter_map(span).collect()
    }
}

/// Who is at work in a span, and what is done: for people. The name for programs is made of the hops'.
pub(crate) fn label(from: Hop, to: Hop) -> (&'static str, &'static str) {
    match (from, to) {
        (Hop::ClientSent, Hop::GatewayFirstByte) => ("network", "to the gateway"),
        (Hop::GatewayFirstByte, Hop::GatewayLastByte) => ("gateway", "receive all of it"),
        (Hop::GatewayLastByte, Hop::GatewayQueued) => ("gateway", "check and queue"),
        (Hop::GatewayQueued, Hop::GatewayPublished) => ("gateway", "wait for the batch before"),
        (Hop::GatewayPublished, Hop::GatewayLogged) => ("log", "acknowledge to the gateway"),
        (Hop::GatewayPublished, Hop::ProcessorRead) => ("log", "write, hand to the processor"),
        (Hop::ProcessorRead, Hop::ProcessorApplied) => ("processor", "wait and apply"),
        (Hop::ProcessorApplied, Hop::ProcessorPublished) => ("processor", "hand to the publisher"),
        (Hop::ProcessorPublished, Hop::ProcessorLogged) => ("event log", "acknowledge to the processor"),
        (Hop::ProcessorPublished, Hop::GatewayEvent) => ("event log", "write, hand to the gateway"),
        (Hop::GatewayEvent, Hop::GatewayWritten) => ("gateway", "fan out, first write"),
        (Hop::GatewayWritten, Hop::ClientReceived) => ("network", "to the client"),
        (Hop::ProcessorPublished, Hop::StorerRead) => ("event log", "write, hand to the storer"),
        (Hop::StorerRead, Hop::StorerCommitted) => ("storer", "wait and commit"),
        (_, to) => (to.role(), "(and what nothing was heard of)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fieldstream_client::{KnownClock, OWN_CLOCK, Offset, Stamp};

    const GATEWAY: u64 = 5;
    const OTHER: u64 = 6;

    /// The gateway's clock is 1,000 ahead, the others' 300 behind that.
    fn clocks() -> Clocks {
        let known = |clock, ahead_us, uncertainty_us| KnownClock { clock, offset: Offset { ahead_us, uncertainty_us } };
        Clocks { gateway: Some(known(GATEWAY, 1_000, 4)), others: vec![known(OTHER, -300, 2)] }
    }

    fn noted(member: u64, clock: u64, ahead: i64, times: &[(Hop, i64)]) -> Stamps {
        let stamp = |(hop, at_us): &(Hop, i64)| Stamp { hop: *hop, at_us: (*at_us + 10_000 + ahead) as u64 };
        Stamps { member, clock, stamps: times.iter().map(stamp).collect() }
    }

    fn way() -> Vec<Stamps> {
        vec![
            noted(0, OWN_CLOCK, 0, &[(Hop::ClientSent, 0)]),
            noted(
                1,
                GATEWAY,
                1_000,
                &[
                    (Hop::GatewayFirstByte, 50),
                    (Hop::GatewayLastByte, 60),
                    (Hop::GatewayQueued, 70),
                    (Hop::GatewayPublished, 100),
                    (Hop::GatewayLogged, 900),
                ],
            ),
            noted(1, GATEWAY, 1_000, &[(Hop::GatewayEvent, 1_700), (Hop::GatewayWritten, 1_750)]),
            noted(
                2,
                OTHER,
                700,
                &[
                    (Hop::ProcessorRead, 700),
                    (Hop::ProcessorApplied, 720),
                    (Hop::ProcessorPublished, 730),
                    (Hop::ProcessorLogged, 1_800),
                ],
            ),
            noted(3, OTHER, 700, &[(Hop::StorerRead, 1_650), (Hop::StorerCommitted, 3_000)]),
            noted(0, OWN_CLOCK, 0, &[(Hop::ClientReceived, 1_800)]),
        ]
    }

    #[test]
    fn stamps_of_three_clocks_become_one_way() {
        let journey = Journey::new(&way(), &clocks());
        assert_eq!((journey.missing().count(), journey.unaligned), (0, 0));
        assert_eq!((journey.outcome_us(), journey.stored_us()), (Some(1_800), Some(3_000)));
        let at = |hop| (journey.points[&hop].at_us, journey.points[&hop].uncertainty_us);
        assert_eq!((at(Hop::ClientSent), at(Hop::GatewayFirstByte)), ((0, 0), (50, 4)));
        assert_eq!(at(Hop::ProcessorRead), (700, 6));
    }

    #[test]
    fn the_critical_path_is_what_the_outcome_waited_for() {
        let spans = Journey::new(&way(), &clocks()).spans();
        let of = |weight| spans.iter().filter(|s| s.weight == weight).map(|s| s.to).collect::<Vec<_>>();
        assert_eq!(of(Weight::Beside), [Hop::GatewayLogged, Hop::ProcessorLogged]);
        assert_eq!(of(Weight::Stored), [Hop::StorerRead, Hop::StorerCommitted]);
        let critical = spans.iter().filter(|s| s.weight == Weight::Outcome);
        assert_eq!(critical.map(|s| s.took_us).sum::<i64>(), 1_800, "it has no gaps and no overlaps");
        assert_eq!(spans.len(), Hop::ALL.len() - 1);
        let apply = spans.iter().find(|s| s.to == Hop::ProcessorApplied).unwrap();
        assert_eq!((apply.start_us, apply.took_us, apply.uncertainty_us), (700, 20, 0));
        let handed = spans.iter().find(|s| s.to == Hop::ProcessorRead).unwrap();
        assert_eq!((handed.took_us, handed.uncertainty_us), (600, 2), "how the client's clock stands does not matter");
    }

    #[test]
    fn what_nothing_was_heard_of_is_bridged() {
        let mut noted = way();
        noted.remove(3);
        let journey = Journey::new(&noted, &clocks());
        assert_eq!(journey.missing().count(), 4);
        let bridge = journey.spans().into_iter().find(|s| s.to == Hop::GatewayEvent).unwrap();
        assert_eq!((bridge.from, bridge.took_us, bridge.weight), (Hop::GatewayPublished, 1_600, Weight::Outcome));
        let total: i64 = journey.spans().iter().filter(|s| s.weight == Weight::Outcome).map(|s| s.took_us).sum();
        assert_eq!(total, 1_800);
        assert_eq!(Journey::new(&[], &clocks()).spans(), []);
    }

    #[test]
    fn an_outcome_told_as_logged_waits_for_the_acknowledgement() {
        let mut noted = way();
        noted.last_mut().unwrap().stamps[0].at_us = 10_950;
        let journey = Journey::new(&noted, &clocks());
        let path = journey.path_to(Hop::ClientReceived);
        assert_eq!(path[path.len() - 3..], [Hop::GatewayPublished, Hop::GatewayLogged, Hop::ClientReceived]);
    }

    #[test]
    fn of_two_storers_the_first_counts_and_clocks_nobody_knows_do_not() {
        let mut noted = way();
        noted.insert(0, super::tests::noted(9, OTHER, 700, &[(Hop::StorerRead, 1_600), (Hop::StorerCommitted, 3_500)]));
        noted.push(super::tests::noted(9, 77, 0, &[(Hop::StorerRead, 1), (Hop::StorerCommitted, 2)]));
        let journey = Journey::new(&noted, &clocks());
        assert_eq!((journey.stored_us(), journey.unaligned), (Some(3_000), 2));
        assert_eq!(journey.points[&Hop::StorerRead].at_us, 1_650, "both times are the same storer's");
    }
}
