//! One rate for some seconds: when instructions are due, and what came of each.

use super::layout::Layout;
use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::ops::Range;

/// Latencies beyond are counted as this.
const LATENCY_US_MAX: u64 = 300_000_000;

/// The least time of a turn grows by so much with each instruction per second …
const TURN_NS_PER_RATE: f64 = 20.0;
/// … up to this.
const TURN_MIN_NS_MAX: u64 = 150_000;

/// What a step is to do. Times are nanoseconds of the program's clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Which step of the run.
    pub(super) label: u16,
    /// Instructions per second.
    pub(super) rate: f64,
    pub(super) warmup_s: f64,
    pub(super) seconds: f64,
    /// When the first instruction is due.
    pub(super) start_ns: u64,
}

impl Pace {
    /// When an instruction is due, whatever happened before.
    pub(super) fn due_ns(&self, index: u32) -> u64 {
        self.start_ns + (f64::from(index) * 1e9 / self.rate) as u64
    }

    /// How long a turn of the generator lasts at least. A wake-up costs as much as an instruction, so
    /// that with thousands per second several are taken at once; with few, none waits.
    pub(super) fn turn_min_ns(&self) -> u64 {
        ((self.rate * TURN_NS_PER_RATE) as u64).min(TURN_MIN_NS_MAX)
    }

    /// Instructions of the step.
    pub(super) fn total(&self) -> u32 {
        ((self.warmup_s + self.seconds) * self.rate).round() as u32
    }

    /// The instructions that are measured: those due in [`Pace::measured_ns`].
    pub(super) fn measured(&self) -> Range<u32> {
        (self.warmup_s * self.rate).round() as u32..self.total()
    }

    /// The time that is measured.
    pub(super) fn measured_ns(&self) -> Range<u64> {
        let at = |seconds: f64| self.start_ns + (seconds * 1e9) as u64;
        at(self.warmup_s)..at(self.warmup_s + self.seconds)
    }
}

/// What is counted while a step runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) sent: u64,
    pub(super) acks: u64,
    pub(super) acks_measured: u64,
    pub(super) deliveries: u64,
    pub(super) deliveries_measured: u64,
    /// Deliveries of what was delivered before, to the same watcher.
    pub(super) duplicates: u64,
    /// Deliveries that are not exactly what was sent, or where it was not sent.
    pub(super) corrupt: u64,
    /// Updates that do not follow the revision before.
    pub(super) gaps: u64,
    pub(super) refused: u64,
    /// PAUSE frames.
    pub(super) pauses: u64,
}

/// What never came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Missing {
    /// Deliveries of sent instructions.
    pub(super) lost: u64,
    /// Those of them whose instruction was acknowledged.
    pub(super) lost_acked: u64,
    /// Deliveries that a snapshot of a later state took the place of.
    pub(super) coalesced: u64,
    /// Sent and neither acknowledged nor refused.
    pub(super) unacked: u64,
    /// Due, but the window of their client had no room for them to the end.
    pub(super) unsent: u64,
}

/// A snapshot that a watcher got instead of updates.
#[derive(Debug, Clone, Copy)]
struct Skipped {
    after: u64,
    upto: u64,
}

/// A running step.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) pace: Pace,
    layout: Layout,
    measured: Range<u32>,
    measured_ns: Range<u64>,
    total: u32,
    /// Deliveries of all of them.
    expected: u64,
    /// Instructions that have become due.
    released: u32,
    answered: Bits,
    got: Bits,
    /// The revision each instruction made; 0 where it is not known.
    revisions: Vec<u32>,
    skipped: BTreeMap<usize, Vec<Skipped>>,
    pub(super) counts: Counts,
    pub(super) ack_us: Histogram<u64>,
    pub(super) delivery_us: Histogram<u64>,
    /// How late the generator itself was.
    pub(super) late_us: Histogram<u64>,
    /// When something last arrived.
    pub(super) progress_ns: u64,
}

impl Step {
    /// A step of which nothing was done yet; `None` if there is no room for its figures.
    pub(super) fn new(pace: Pace, layout: Layout) -> Option<Step> {
        let histogram = || Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).ok();
        let total = pace.total();
        Some(Step {
            layout,
            measured: pace.measured(),
            measured_ns: pace.measured_ns(),
            total,
            expected: layout.deliveries(total),
            released: 0,
            answered: Bits::new(total as usize),
            got: Bits::new(total as usize * layout.slots()),
            revisions: vec![0; total as usize],
            skipped: BTreeMap::new(),
            counts: Counts::default(),
            ack_us: histogram()?,
            delivery_us: histogram()?,
            late_us: histogram()?,
            progress_ns: pace.start_ns,
            pace,
        })
    }

    /// The next instruction if it is due.
    pub(super) fn release(&mut self, now_ns: u64) -> Option<u32> {
        let index = self.released;
        let due_ns = self.next_due_ns()?;
        let late_ns = now_ns.checked_sub(due_ns)?;
        self.released += 1;
        if self.measured.contains(&index) {
            self.late_us.saturating_record(late_ns / 1_000);
        }
        Some(index)
    }

    /// When the next instruction is due; `None` behind the last.
    pub(super) fn next_due_ns(&self) -> Option<u64> {
        (self.released < self.total).then(|| self.pace.due_ns(self.released))
    }

    /// An instruction was acknowledged at the level asked for.
    pub(super) fn acknowledged(&mut self, index: u32, now_ns: u64) {
        self.progress_ns = now_ns;
        self.answered.set(index as usize);
        self.counts.acks += 1;
        self.counts.acks_measured += u64::from(self.measured_ns.contains(&now_ns));
        if self.measured.contains(&index) {
            self.ack_us.saturating_record(self.age_us(index, now_ns));
        }
    }

    /// An instruction was refused.
    pub(super) fn refused(&mut self, now_ns: u64) {
        self.progress_ns = now_ns;
        self.counts.refused += 1;
    }

    /// The revision an instruction made.
    pub(super) fn made(&mut self, index: u32, revision: u64) {
        self.revisions[index as usize] = u32::try_from(revision).unwrap_or(u32::MAX);
    }

    /// A watcher got an instruction's update.
    pub(super) fn delivered(&mut self, index: u32, watcher: usize, revision: u64, now_ns: u64) {
        self.progress_ns = now_ns;
        if index >= self.released {
            self.counts.corrupt += 1;
            return;
        }
        if !self.got.set(self.bit(index, watcher)) {
            self.counts.duplicates += 1;
            return;
        }
        self.made(index, revision);
        self.counts.deliveries += 1;
        self.counts.deliveries_measured += u64::from(self.measured_ns.contains(&now_ns));
        if self.measured.contains(&index) {
            self.delivery_us.saturating_record(self.age_us(index, now_ns));
        }
    }

    /// A watcher got a snapshot in the place of the updates behind one revision, up to another.
    pub(super) fn skipped(&mut self, watcher: usize, after: u64, upto: u64, now_ns: u64) {
        self.progress_ns = now_ns;
        self.skipped.entry(watcher).or_default().push(Skipped { after, upto });
    }

    /// Whether everything that can come has come.
    pub(super) fn is_complete(&self) -> bool {
        self.released == self.total
            && self.counts.acks + self.counts.refused >= u64::from(self.total)
            && self.counts.deliveries >= self.expected
    }

    /// Looks at every instruction. `sent` says how many each client has sent.
    pub(super) fn missing(&self, sent: impl Fn(usize) -> u32) -> Missing {
        let mut missing = Missing::default();
        for index in 0..self.released {
            let sender = self.layout.sender(index);
            if self.layout.turn(index) >= sent(sender) {
                missing.unsent += 1;
                continue;
            }
            let is_answered = self.answered.get(index as usize);
            missing.unacked += u64::from(!is_answered);
            for watcher in self.layout.watchers_of(self.layout.document_of(sender)) {
                if self.got.get(self.bit(index, watcher)) {
                    continue;
                }
                if self.was_skipped(index, watcher) {
                    missing.coalesced += 1;
                } else {
                    missing.lost += 1;
                    missing.lost_acked += u64::from(is_answered);
                }
            }
        }
        missing.unacked = missing.unacked.saturating_sub(self.counts.refused);
        missing
    }

    fn was_skipped(&self, index: u32, watcher: usize) -> bool {
        let revision = u64::from(self.revisions[index as usize]);
        let skipped = self.skipped.get(&watcher).into_iter().flatten();
        revision > 0 && skipped.into_iter().any(|s| s.after < revision && revision <= s.upto)
    }

    fn age_us(&self, index: u32, now_ns: u64) -> u64 {
        now_ns.saturating_sub(self.pace.due_ns(index)) / 1_000
    }

    fn bit(&self, index: u32, watcher: usize) -> usize {
        index as usize * self.layout.slots() + self.layout.slot_of(watcher)
    }
}

#[derive(Debug)]
struct Bits(Vec<u64>);

impl Bits {
    fn new(bits: usize) -> Bits {
        Bits(vec![0; bits.div_ceil(64)])
    }

    fn get(&self, bit: usize) -> bool {
        self.0[bit / 64] >> (bit % 64) & 1 != 0
    }

    /// Whether it was not set before.
    fn set(&mut self, bit: usize) -> bool {
        let is_new = !self.get(bit);
        self.0[bit / 64] |= 1 << (bit % 64);
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout { clients: 6, documents: 2 };

    fn pace() -> Pace {
        Pace { label: 1, rate: 100.0, warmup_s: 0.1, seconds: 0.2, start_ns: 1_000_000_000 }
    }

    fn ms(ms: u64) -> u64 {
        1_000_000_000 + ms * 1_000_000
    }

    fn step_at(now_ns: u64) -> Step {
        let mut step = Step::new(pace(), LAYOUT).unwrap();
        while step.release(now_ns).is_some() {}
        step
    }

    #[test]
    fn instructions_are_due_by_the_clock_alone() {
        let mut step = Step::new(pace(), LAYOUT).unwrap();
        assert_eq!((pace().total(), pace().measured(), pace().measured_ns()), (30, 10..30, ms(100)..ms(300)));
        assert_eq!(step.release(ms(0) - 1), None);
        assert_eq!(step.release(ms(0)), Some(0));
        assert_eq!((step.release(ms(9)), step.next_due_ns()), (None, Some(ms(10))));
        // Nothing was done for a while: all of it is due at once, each late by its own time.
        let released: Vec<u32> = std::iter::from_fn(|| step.release(ms(125))).collect();
        assert_eq!(released, (1..=12).collect::<Vec<_>>());
        assert_eq!((step.late_us.len(), step.late_us.max()), (3, 25_007), "of those that are measured");
        while step.release(ms(1_000)).is_some() {}
        assert_eq!((step.released, step.next_due_ns()), (30, None));
    }

    #[test]
    fn only_fast_steps_take_several_instructions_in_a_turn() {
        let at = |rate| Pace { rate, ..pace() }.turn_min_ns();
        assert_eq!([at(100.0), at(2_000.0), at(5_000.0), at(15_000.0)], [2_000, 40_000, 100_000, 150_000]);
    }

    #[test]
    fn latency_counts_from_when_it_was_due() {
        let mut step = step_at(ms(300));
        step.acknowledged(20, ms(250));
        step.delivered(20, 2, 1, ms(230));
        step.acknowledged(9, ms(99));
        step.delivered(9, 1, 1, ms(99));
        assert_eq!((step.ack_us.len(), step.ack_us.max() / 100), (1, 500), "the warm-up is not measured");
        assert_eq!((step.delivery_us.len(), step.delivery_us.max() / 100), (1, 300));
        assert_eq!((step.counts.acks, step.counts.acks_measured), (2, 1));
        assert_eq!((step.counts.deliveries, step.counts.deliveries_measured), (2, 1));
    }

    #[test]
    fn what_is_lost_twice_or_coalesced_is_counted_per_instruction() {
        let mut step = step_at(ms(300));
        assert_eq!(LAYOUT.deliveries(30), 90);
        for index in 0..30 {
            let document = LAYOUT.document_of(LAYOUT.sender(index));
            let revision = u64::from(index) / 2 + 1;
            step.acknowledged(index, ms(300));
            for watcher in LAYOUT.watchers_of(document) {
                match (index, watcher) {
                    // One delivery is lost, one comes twice, three are skipped by a snapshot.
                    (5, 3) => {}
                    (6, 2) => {
                        step.delivered(index, watcher, revision, ms(300));
                        step.delivered(index, watcher, revision, ms(300));
                    }
                    (10 | 12 | 14, 4) => {}
                    _ => step.delivered(index, watcher, revision, ms(300)),
                }
            }
        }
        assert!(!step.is_complete());
        step.skipped(4, 5, 8, ms(300));
        let all = Missing { lost: 1, lost_acked: 1, coalesced: 3, unacked: 0, unsent: 0 };
        assert_eq!(step.missing(|_| 5), all);
        assert_eq!((step.counts.duplicates, step.counts.deliveries), (1, 86));
        // Client 5 sent one of its five less, the last: its three deliveries did not get lost.
        assert_eq!(step.missing(|client| if client == 5 { 4 } else { 5 }), Missing { unsent: 1, ..all });
    }

    #[test]
    fn what_was_not_acknowledged_is_lost_without_blame() {
        let step = step_at(ms(300));
        assert_eq!(step.missing(|_| 5), Missing { lost: 90, unacked: 30, ..Missing::default() });
    }

    #[test]
    fn a_delivery_of_what_is_not_due_yet_is_corrupt() {
        let mut step = Step::new(pace(), LAYOUT).unwrap();
        step.delivered(0, 0, 1, ms(0));
        assert_eq!((step.counts.corrupt, step.counts.deliveries), (1, 0));
    }

    #[test]
    fn a_step_is_complete_when_all_was_answered_and_delivered() {
        let mut step = step_at(ms(300));
        for index in 0..30 {
            step.acknowledged(index, ms(300));
            assert!(!step.is_complete());
            LAYOUT.watchers_of(index as usize % 2).for_each(|watcher| step.delivered(index, watcher, 1, ms(300)));
        }
        assert!(step.is_complete());
    }
}
