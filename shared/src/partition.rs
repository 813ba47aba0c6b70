//! Which partition and lane a document is on, and which member owns a partition (`docs/LOG.md`).

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Number of partitions, for ever: stored positions and keys depend on it.
pub const PARTITIONS: usize = 256;

/// A partition: all order is per partition, hence per document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Partition(pub u8);

impl Partition {
    /// All partitions in order.
    pub fn all() -> impl DoubleEndedIterator<Item = Partition> {
        (0..=u8::MAX).map(Partition)
    }

    /// The partition of a document: `xxh3_64(id) mod 256`.
    pub fn of(document: &str) -> Partition {
        Partition((xxh3_64(document.as_bytes()) % PARTITIONS as u64) as u8)
    }

    /// The lane this partition is on: `partition mod lanes`.
    pub fn lane(self, lanes: u16) -> u16 {
        u16::from(self.0) % lanes.max(1)
    }

    /// Index into arrays of [`PARTITIONS`] entries.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A set of partitions, as 32 bytes: partition `p` is bit `p % 8` of byte `p / 8`.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct PartitionSet(pub [u8; 32]);

impl PartitionSet {
    /// No partition.
    pub const EMPTY: PartitionSet = PartitionSet([0; 32]);
    /// Every partition.
    pub const ALL: PartitionSet = PartitionSet([0xff; 32]);

    /// Adds a partition.
    pub fn insert(&mut self, p: Partition) {
        self.0[p.index() / 8] |= 1 << (p.0 % 8);
    }

    /// Takes a partition out.
    pub fn remove(&mut self, p: Partition) {
        self.0[p.index() / 8] &= !(1 << (p.0 % 8));
    }

    /// Whether a partition is in the set.
    pub fn contains(&self, p: Partition) -> bool {
        self.0[p.index() / 8] & (1 << (p.0 % 8)) != 0
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.0 == [0; 32]
    }

    /// Number of partitions in the set.
    pub fn len(&self) -> usize {
        self.0.iter().map(|b| b.count_ones() as usize).sum()
    }

    /// The set's partitions in order.
    pub fn iter(&self) -> impl Iterator<Item = Partition> + '_ {
        Partition::all().filter(|p| self.contains(*p))
    }

    /// Those of the set that are on the given lane.
    pub fn on_lane(&self, lane: u16, lanes: u16) -> PartitionSet {
        self.iter().filter(|p| p.lane(lanes) == lane).collect()
    }
}

impl FromIterator<Partition> for PartitionSet {
    fn from_iter<I: IntoIterator<Item = Partition>>(partitions: I) -> Self {
        let mut set = PartitionSet::EMPTY;
        partitions.into_iter().for_each(|p| set.insert(p));
        set
    }
}

impl std::fmt::Debug for PartitionSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.iter().map(|p| p.0)).finish()
    }
}

/// The owner of a partition among live members, by rendezvous hashing: the member whose
/// `xxh3_64(member id, seed = partition)` is highest, ties to the greater id. `None` without members.
pub fn owner<'a>(p: Partition, members: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    members.into_iter().max_by_key(|m| (xxh3_64_with_seed(m.as_bytes(), u64::from(p.0)), *m))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_hold_what_was_put_in() {
        let mut set: PartitionSet = [Partition(0), Partition(9), Partition(255)].into_iter().collect();
        assert_eq!(set.len(), 3);
        assert_eq!(set.0[1], 2);
        set.remove(Partition(9));
        assert_eq!(set.iter().collect::<Vec<_>>(), [Partition(0), Partition(255)]);
        assert_eq!(PartitionSet::ALL.on_lane(1, 2).len(), 128);
    }

    #[test]
    fn a_member_that_leaves_moves_only_its_own_partitions() {
        let (three, two) = (["a", "b", "c"], ["a", "c"]);
        for p in Partition::all() {
            let before = owner(p, three).unwrap();
            if before != "b" {
                assert_eq!(owner(p, two), Some(before));
            }
        }
        assert_eq!(owner(Partition(0), []), None);
    }
}
