//! Counting names in bounded memory, and keeping the first few of an order.

use foldhash::fast::RandomState;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

/// The entries with the highest ranks, of equal ones those whose names come first.
pub(super) struct Top<E> {
    max: usize,
    // The least of them is on top.
    heap: BinaryHeap<Reverse<(u64, Reverse<String>, E)>>,
}

impl<E: Ord> Top<E> {
    /// Keeps at most so many.
    pub(super) fn new(max: usize) -> Top<E> {
        Top { max, heap: BinaryHeap::with_capacity(max + 1) }
    }

    /// Takes an entry, unless there are enough of higher ranks.
    pub(super) fn offer(&mut self, rank: u64, name: &str, entry: impl FnOnce() -> E) {
        let is_full = self.heap.len() >= self.max;
        if is_full && self.heap.peek().is_none_or(|Reverse((least, _, _))| rank < *least) {
            return;
        }
        self.heap.push(Reverse((rank, Reverse(name.to_owned()), entry())));
        if is_full {
            self.heap.pop();
        }
    }

    /// All of them, the highest first: rank, name, entry.
    pub(super) fn sorted(self) -> Vec<(u64, String, E)> {
        let entries = self.heap.into_sorted_vec();
        entries.into_iter().map(|Reverse((rank, Reverse(name), entry))| (rank, name, entry)).collect()
    }
}

/// How often each name came, and its highest time.
pub(super) struct Tally {
    max: usize,
    names: HashMap<String, (u64, u64), RandomState>,
    /// By how much a count can be too low.
    missed_max: u64,
}

impl Tally {
    /// Remembers at most so many names at a time.
    pub(super) fn new(max: usize) -> Tally {
        Tally { max: max.max(2), names: HashMap::default(), missed_max: 0 }
    }

    pub(super) fn add(&mut self, name: &str, time_us: u64) {
        if let Some((count, last_us)) = self.names.get_mut(name) {
            *count += 1;
            *last_us = time_us.max(*last_us);
            return;
        }
        if self.names.len() >= self.max {
            self.forget();
        }
        self.names.insert(name.to_owned(), (1, time_us));
    }

    /// Forgets the rarer half. A name that comes again is counted anew: what it lost is at most what
    /// the most frequent of those forgotten had.
    fn forget(&mut self) {
        let mut counts: Vec<u64> = self.names.values().map(|(count, _)| *count).collect();
        let middle = counts.len() / 2;
        let (_, median, _) = counts.select_nth_unstable(middle);
        let forgotten = *median;
        self.names.retain(|_, (count, _)| *count > forgotten);
        self.missed_max += forgotten;
    }

    /// By how much a count can be too low: 0 unless there were more names than are remembered.
    pub(super) fn missed_max(&self) -> u64 {
        self.missed_max
    }

    /// The most frequent: count, name, highest time.
    pub(super) fn top(&self, max: usize) -> Vec<(u64, String, u64)> {
        let mut top = Top::new(max);
        for (name, (count, last_us)) in &self.names {
            top.offer(*count, name, || *last_us);
        }
        top.sorted()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_stay_and_names_decide_between_equals() {
        let mut top = Top::new(3);
        for (rank, name) in [(1, "a"), (5, "c"), (5, "b"), (2, "d"), (5, "e")] {
            top.offer(rank, name, || ());
        }
        let names: Vec<(u64, String)> = top.sorted().into_iter().map(|(rank, name, ())| (rank, name)).collect();
        assert_eq!(names, [(5, "b".to_owned()), (5, "c".to_owned()), (5, "e".to_owned())]);
        let mut none = Top::new(0);
        none.offer(1, "a", || ());
        assert!(none.sorted().is_empty());
    }

    #[test]
    fn counts_are_exact_while_the_names_fit_and_bounded_behind_that() {
        let mut exact = Tally::new(100);
        let mut small = Tally::new(8);
        for n in 0..4_000_u64 {
            // Every second one is of the same client, the rest of 50.
            let name = if n % 2 == 0 { "often".to_owned() } else { format!("c{}", n / 2 % 50) };
            exact.add(&name, n);
            small.add(&name, n);
        }
        assert_eq!((exact.missed_max(), exact.top(1)), (0, vec![(2_000, "often".to_owned(), 3_998)]));
        assert_eq!(exact.top(60).len(), 51);
        let (count, name, _) = small.top(1).remove(0);
        assert!(small.names.len() <= 8 && name == "often");
        assert!(count <= 2_000 && count + small.missed_max() >= 2_000, "{count} and {}", small.missed_max());
    }
}
