//! Which partitions a member owns, from who is there: pure, time is an argument.
//!
//! Members may see each other come and go at different moments, so two may own a partition for a
//! while, or nobody. That costs work, not correctness: the log accepts one of them.

use fieldstream_shared::partition::{Partition, PartitionSet, owner};
use std::collections::BTreeSet;

/// What one member knows of its group.
#[derive(Debug)]
pub struct Membership {
    member: String,
    lease_ms: u64,
    members: BTreeSet<String>,
    /// When the last renewal that succeeded was begun.
    renewed_at_ms: Option<u64>,
}

impl Membership {
    /// A member that has not announced itself yet; its announcements last for `lease_ms`.
    pub fn new(member: String, lease_ms: u64) -> Membership {
        Membership { member, lease_ms, members: BTreeSet::new(), renewed_at_ms: None }
    }

    /// The announcement was renewed, begun at `at_ms`; these members are there.
    pub fn handle_renewed(&mut self, at_ms: u64, members: BTreeSet<String>) {
        self.renewed_at_ms = Some(at_ms);
        self.members = members;
        self.members.insert(self.member.clone());
    }

    /// Who is there, this member included.
    pub fn members(&self) -> &BTreeSet<String> {
        &self.members
    }

    /// The partitions this member owns now: its share by rendezvous hashing; none once its own
    /// announcement has lapsed, because the others count it as gone then.
    pub fn owned(&self, now_ms: u64) -> PartitionSet {
        let lapsed = self.renewed_at_ms.is_none_or(|at_ms| now_ms.saturating_sub(at_ms) >= self.lease_ms);
        if lapsed {
            return PartitionSet::EMPTY;
        }
        let mine = |p: &Partition| owner(*p, self.members.iter().map(String::as_str)) == Some(&self.member);
        Partition::all().filter(mine).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn members_share_all_partitions_and_those_that_stay_keep_theirs() {
        let all = ["a", "b", "c"];
        let owned = |member: &str, members: &[&str]| {
            let mut membership = Membership::new(member.into(), 2_000);
            membership.handle_renewed(0, names(members));
            membership.owned(1_999)
        };
        for p in Partition::all() {
            assert_eq!(all.iter().filter(|m| owned(m, &all).contains(p)).count(), 1);
        }
        assert!(all.iter().all(|m| owned(m, &all).len() > 50), "about a third each");
        let (before, after) = (owned("a", &all), owned("a", &["a", "b"]));
        assert!(before.iter().all(|p| after.contains(p)), "nothing moves between those that stay");
        assert_eq!(owned("a", &["a"]), PartitionSet::ALL);
    }

    #[test]
    fn a_lapsed_lease_owns_nothing() {
        let mut membership = Membership::new("a".into(), 2_000);
        assert_eq!(membership.owned(0), PartitionSet::EMPTY);
        membership.handle_renewed(500, names(&[]));
        assert_eq!(membership.owned(2_499), PartitionSet::ALL);
        assert_eq!(membership.owned(2_500), PartitionSet::EMPTY);
        membership.handle_renewed(2_600, names(&["a"]));
        assert_eq!(membership.owned(2_700), PartitionSet::ALL);
    }
}
