//! What a lane says of itself.

use super::Lane;

/// How far a lane's core is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LaneStatus {
    /// Last EVENTS sequence read.
    pub events_sequence: u64,
    /// Last INSTRUCTIONS sequence read.
    pub instructions_sequence: u64,
    /// Records of owned partitions that are read, and whose events are not accepted yet.
    pub backlog_records: usize,
    /// Bytes of changed values that storers do not have yet.
    pub pinned_bytes: usize,
    /// Bytes of cached values, the pinned ones included.
    pub cache_bytes: usize,
    /// Applying waits for storers.
    pub paused: bool,
}

impl Lane {
    /// How far it is. Looks at every buffered record: not for every message.
    pub fn status(&self) -> LaneStatus {
        let waiting = |m: &super::Message| {
            let records = (0..).zip(&m.records);
            let open = |(index, record): &(u32, &super::Pending)| {
                let p = record.partition;
                self.owned.contains(p) && !self.accepted.get(p).position.covers(m.sequence, *index)
            };
            records.filter(open).count()
        };
        LaneStatus {
            events_sequence: self.events_sequence,
            instructions_sequence: self.instructions_sequence,
            backlog_records: self.messages.iter().map(waiting).sum(),
            pinned_bytes: self.cache.dirty_bytes(),
            cache_bytes: self.cache.bytes(),
            paused: self.cache.dirty_bytes() > self.pinned_bytes_max,
        }
    }
}
