//! Positions in INSTRUCTIONS, cursors, and the rule that says which parts of EVENTS count.

use crate::defect::{self, Defect};
use crate::msgpack::{DecodeError, Reader, Write};
use crate::partition::{PARTITIONS, Partition, PartitionSet};

/// How far a lane's INSTRUCTIONS were consumed: `records` records of message `sequence`, and all
/// of the messages before it. A position may stand inside a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Position {
    /// Stream sequence of a message; 0 before the first.
    pub sequence: u64,
    /// Records of that message that are consumed.
    pub records: u32,
}

impl Position {
    /// Whether the record with this index of this message is consumed.
    pub fn covers(self, sequence: u64, index: u32) -> bool {
        (sequence, index) < (self.sequence, self.records)
    }
}

/// The identity of an event batch: which incarnation of a processor made it, and a counter. The
/// same when it is published again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchId {
    /// Drawn at random by every start of a processor, for each lane.
    pub incarnation: u64,
    /// Counts the incarnation's batches.
    pub counter: u64,
}

impl BatchId {
    /// Appends `[incarnation, counter]`.
    pub fn write(self, out: &mut Vec<u8>) {
        out.array(2);
        out.u64(self.incarnation);
        out.u64(self.counter);
    }

    /// Reads a batch id.
    ///
    /// # Errors
    /// [`DecodeError`] if it is none.
    pub fn read(reader: &mut Reader<'_>) -> Result<BatchId, DecodeError> {
        reader.record(2, |r| Ok(BatchId { incarnation: r.u64()?, counter: r.u64()? }))
    }
}

/// Where a partition stands: the position up to which its instructions are decided, and the batch
/// that decided the last of them (`None` before the first).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Cursor {
    /// Consumed up to here.
    pub position: Position,
    /// The batch whose part set the position.
    pub set_by: Option<BatchId>,
}

impl Cursor {
    /// Appends `[sequence, records, set_by]`.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.array(3);
        out.u64(self.position.sequence);
        out.u64(u64::from(self.position.records));
        out.optional(self.set_by, |out, id| id.write(out));
    }

    /// Reads a cursor.
    ///
    /// # Errors
    /// [`DecodeError`] if it is none.
    pub fn read(reader: &mut Reader<'_>) -> Result<Cursor, DecodeError> {
        reader.record(3, |r| {
            let position = Position { sequence: r.u64()?, records: r.u32()? };
            Ok(Cursor { position, set_by: r.optional(BatchId::read)? })
        })
    }
}

/// A step of some partitions that stood at the same cursor: from `after` to `upto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// The partitions that take the step.
    pub partitions: PartitionSet,
    /// The cursor they stood at when the step was made.
    pub after: Cursor,
    /// The position they come to.
    pub upto: Position,
}

impl Part {
    /// Appends `[partitions, [sequence, records], prev, [sequence, records]]`.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.array(4);
        out.bin(&self.partitions.0);
        write_position(self.after.position, out);
        out.optional(self.after.set_by, |out, id| id.write(out));
        write_position(self.upto, out);
    }

    /// Reads a part.
    ///
    /// # Errors
    /// [`DecodeError`] if it is none.
    pub fn read(reader: &mut Reader<'_>) -> Result<Part, DecodeError> {
        reader.record(4, |r| {
            let set: [u8; 32] = r.bin()?.try_into().map_err(|_| DecodeError::OutOfRange("a partition set"))?;
            let after = Cursor { position: read_position(r)?, set_by: r.optional(BatchId::read)? };
            Ok(Part { partitions: PartitionSet(set), after, upto: read_position(r)? })
        })
    }
}

fn write_position(position: Position, out: &mut Vec<u8>) {
    out.array(2);
    out.u64(position.sequence);
    out.u64(u64::from(position.records));
}

fn read_position(reader: &mut Reader<'_>) -> Result<Position, DecodeError> {
    reader.record(2, |r| Ok(Position { sequence: r.u64()?, records: r.u32()? }))
}

/// The cursors of all partitions. Every reader of EVENTS keeps its own, by the same rule, and the
/// stream is totally ordered: so all readers accept the same parts.
#[derive(Clone, PartialEq, Eq)]
pub struct Cursors(Box<[Cursor; PARTITIONS]>);

impl Default for Cursors {
    fn default() -> Self {
        Cursors(Box::new([Cursor::default(); PARTITIONS]))
    }
}

impl std::fmt::Debug for Cursors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let moved = self.0.iter().enumerate().filter(|(_, c)| **c != Cursor::default());
        f.debug_map().entries(moved).finish()
    }
}

impl Cursors {
    /// A partition's cursor.
    pub fn get(&self, p: Partition) -> Cursor {
        self.0[p.index()]
    }

    /// Puts a partition's cursor somewhere: when a checkpoint is loaded.
    pub fn set(&mut self, p: Partition, cursor: Cursor) {
        self.0[p.index()] = cursor;
    }

    /// The acceptance rule. A part counts for a partition only if the partition stands exactly at
    /// the part's `after`, position *and* batch, and the part leads forward; then the cursor moves.
    /// Everything else is ignored: zombies, repeated publishes, losers of a take-over, and whatever
    /// was built on a part that was not accepted. Returns the partitions accepted.
    pub fn accept(&mut self, id: BatchId, parts: &[Part]) -> PartitionSet {
        let mut accepted = PartitionSet::EMPTY;
        for part in parts.iter().filter(|part| part.after.position < part.upto) {
            for p in part.partitions.iter() {
                let cursor = &mut self.0[p.index()];
                let fits = *cursor == part.after
                    || defect::active(Defect::AcceptanceWithoutPrev) && cursor.position == part.after.position
                    || defect::active(Defect::StalePartAccepted) && cursor.position >= part.after.position;
                if fits {
                    *cursor = Cursor { position: part.upto, set_by: Some(id) };
                    accepted.insert(p);
                }
            }
        }
        accepted
    }

    /// The lowest position among some partitions; `None` if there are none.
    pub fn lowest(&self, partitions: &PartitionSet) -> Option<Position> {
        partitions.iter().map(|p| self.get(p).position).min()
    }

    /// The highest position among some partitions; `None` if there are none.
    pub fn highest(&self, partitions: &PartitionSet) -> Option<Position> {
        partitions.iter().map(|p| self.get(p).position).max()
    }

    /// Appends the cursors of some partitions as a map from partition to cursor.
    pub fn write(&self, partitions: &PartitionSet, out: &mut Vec<u8>) {
        out.map(partitions.len());
        for p in partitions.iter() {
            out.u64(u64::from(p.0));
            self.get(p).write(out);
        }
    }

    /// Reads what [`Cursors::write`] wrote; partitions not named stand at the beginning.
    ///
    /// # Errors
    /// [`DecodeError`] if it is not of that form.
    pub fn read(reader: &mut Reader<'_>) -> Result<Cursors, DecodeError> {
        let crate::msgpack::Token::Map(n) = reader.token()? else { return Err(DecodeError::Expected("a map")) };
        let mut cursors = Cursors::default();
        for _ in 0..n {
            let p = u8::try_from(reader.u64()?).map_err(|_| DecodeError::OutOfRange("a partition"))?;
            cursors.set(Partition(p), Cursor::read(reader)?);
        }
        Ok(cursors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::msgpack::decode;

    fn id(counter: u64) -> BatchId {
        BatchId { incarnation: 7, counter }
    }

    fn at(sequence: u64, records: u32) -> Position {
        Position { sequence, records }
    }

    fn one(p: u8) -> PartitionSet {
        [Partition(p)].into_iter().collect()
    }

    #[test]
    fn a_part_counts_only_where_position_and_batch_fit() {
        let mut cursors = Cursors::default();
        let start = Part { partitions: one(3), after: Cursor::default(), upto: at(1, 2) };
        assert_eq!(cursors.accept(id(1), &[start]), one(3));
        assert_eq!(cursors.accept(id(1), &[start]), PartitionSet::EMPTY, "published twice");
        let zombie =
            Part { partitions: one(3), after: Cursor { position: at(1, 2), set_by: Some(id(9)) }, upto: at(2, 1) };
        assert_eq!(cursors.accept(id(10), &[zombie]), PartitionSet::EMPTY, "same position, other history");
        let next = Part { partitions: one(3), after: cursors.get(Partition(3)), upto: at(2, 1) };
        let still = Part { upto: at(1, 2), ..next };
        assert_eq!(cursors.accept(id(2), &[still]), PartitionSet::EMPTY, "leads nowhere");
        assert_eq!(cursors.accept(id(2), &[next]), one(3));
        assert_eq!(cursors.get(Partition(3)).position, at(2, 1));
    }

    #[test]
    fn cursors_and_parts_come_back_from_their_bytes() {
        let mut cursors = Cursors::default();
        let part = Part { partitions: one(200), after: Cursor::default(), upto: at(5, 1) };
        cursors.accept(id(4), &[part]);
        let mut out = Vec::new();
        cursors.write(&PartitionSet::ALL, &mut out);
        assert_eq!(decode(&out, Cursors::read), Ok(cursors));
        out.clear();
        part.write(&mut out);
        assert_eq!(decode(&out, Part::read), Ok(part));
    }
}
