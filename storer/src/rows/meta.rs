//! `meta`: the format row and one checkpoint per lane.

use super::{number, present, read_fields, text};
use fieldstream_shared::cursor::{BatchId, Cursor, Cursors, Position};
use fieldstream_shared::msgpack::{DecodeError, Reader, Token, Write};
use fieldstream_shared::partition::{PARTITIONS, Partition, PartitionSet};
use fieldstream_shared::read::Checkpoint;

/// The version of the format this code writes, and the only one it reads. Additions do not raise it.
pub const FORMAT_VERSION: u64 = 1;

/// Key of the format row.
pub const FORMAT_KEY: &str = "format";

/// What the keys of checkpoints begin with.
pub const CHECKPOINT_PREFIX: &str = "checkpoint/";

/// The key of a lane's checkpoint: the lane as five digits, so that keys sort by number.
pub fn checkpoint_key(lane: u16) -> String {
    format!("{CHECKPOINT_PREFIX}{lane:05}")
}

/// What the file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormatRow {
    /// [`FORMAT_VERSION`].
    pub version: u64,
    /// Number of lanes, for ever.
    pub lanes: u16,
    /// Which storer: a number drawn when the file was made.
    pub storer: u64,
    /// When the file was made, microseconds since the Unix epoch.
    pub created_at_us: u64,
}

impl FormatRow {
    /// Appends the value.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.map(6);
        text(out, "name", "fieldstream");
        number(out, "version", self.version);
        number(out, "lanes", u64::from(self.lanes));
        number(out, "partitions", PARTITIONS as u64);
        number(out, "storer", self.storer);
        number(out, "created_at_us", self.created_at_us);
    }

    /// Decodes a value.
    ///
    /// # Errors
    /// [`DecodeError::UnknownVersion`] for a file of another version, or another error if it is no
    /// format row.
    pub fn decode(bytes: &[u8]) -> Result<FormatRow, DecodeError> {
        let (mut version, mut lanes, mut storer, mut created_at_us) = (None, None, None, None);
        read_fields(bytes, |key, r| {
            match key {
                "version" => match r.u64()? {
                    FORMAT_VERSION => version = Some(FORMAT_VERSION),
                    other => return Err(DecodeError::UnknownVersion(other)),
                },
                "lanes" => lanes = Some(r.u16()?),
                "storer" => storer = Some(r.u64()?),
                "created_at_us" => created_at_us = Some(r.u64()?),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(FormatRow {
            version: present(version, "version")?,
            lanes: present(lanes, "lanes")?,
            storer: present(storer, "storer")?,
            created_at_us: present(created_at_us, "created_at_us")?,
        })
    }
}

/// How far a lane is stored. In the same transaction as everything it stands for.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckpointRow {
    /// The positions, and the identity of the log.
    pub checkpoint: Checkpoint,
    /// The highest INSTRUCTIONS sequence among the cursors.
    pub instructions_sequence: u64,
    /// Hash of that message, if the storer knows it.
    pub instructions_hash: Option<u64>,
    /// When it was committed, microseconds since the Unix epoch.
    pub committed_at_us: u64,
}

impl CheckpointRow {
    /// Appends the value; `partitions` are those of the lane.
    pub fn encode(&self, partitions: &PartitionSet, out: &mut Vec<u8>) {
        let checkpoint = &self.checkpoint;
        out.map(8);
        number(out, "log_id", checkpoint.log_id);
        number(out, "lanes", u64::from(checkpoint.lanes));
        number(out, "events_sequence", checkpoint.events_sequence);
        number(out, "events_hash", checkpoint.events_hash);
        number(out, "instructions_sequence", self.instructions_sequence);
        out.str("instructions_hash");
        out.optional(self.instructions_hash, |out, hash| out.u64(hash));
        number(out, "committed_at_us", self.committed_at_us);
        out.str("cursors");
        write_cursors(&checkpoint.cursors, partitions, out);
    }

    /// Decodes a value.
    ///
    /// # Errors
    /// [`DecodeError`] if it is no checkpoint.
    pub fn decode(bytes: &[u8]) -> Result<CheckpointRow, DecodeError> {
        let (mut log_id, mut lanes, mut events_sequence, mut events_hash) = (None, None, None, None);
        let (mut instructions_sequence, mut instructions_hash) = (None, None);
        let (mut committed_at_us, mut cursors) = (None, None);
        read_fields(bytes, |key, r| {
            match key {
                "log_id" => log_id = Some(r.u64()?),
                "lanes" => lanes = Some(r.u16()?),
                "events_sequence" => events_sequence = Some(r.u64()?),
                "events_hash" => events_hash = Some(r.u64()?),
                "instructions_sequence" => instructions_sequence = Some(r.u64()?),
                "instructions_hash" => instructions_hash = r.optional(Reader::u64)?,
                "committed_at_us" => committed_at_us = Some(r.u64()?),
                "cursors" => cursors = Some(read_cursors(r)?),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(CheckpointRow {
            checkpoint: Checkpoint {
                log_id: present(log_id, "log_id")?,
                lanes: present(lanes, "lanes")?,
                events_sequence: present(events_sequence, "events_sequence")?,
                events_hash: present(events_hash, "events_hash")?,
                cursors: present(cursors, "cursors")?,
            },
            instructions_sequence: present(instructions_sequence, "instructions_sequence")?,
            instructions_hash,
            committed_at_us: present(committed_at_us, "committed_at_us")?,
        })
    }
}

/// `[[partition, sequence, records, set_by], …]`, those at the beginning left out. An array, because
/// not every MessagePack library takes a map whose keys are numbers.
fn write_cursors(cursors: &Cursors, partitions: &PartitionSet, out: &mut Vec<u8>) {
    let moved: PartitionSet = partitions.iter().filter(|p| cursors.get(*p) != Cursor::default()).collect();
    out.array(moved.len());
    for p in moved.iter() {
        let Cursor { position, set_by } = cursors.get(p);
        out.array(4);
        out.u64(u64::from(p.0));
        out.u64(position.sequence);
        out.u64(u64::from(position.records));
        out.optional(set_by, |out, id| id.write(out));
    }
}

fn read_cursors(r: &mut Reader<'_>) -> Result<Cursors, DecodeError> {
    let mut cursors = Cursors::default();
    for _ in 0..r.array()? {
        let (p, cursor) = r.record(4, |r| {
            let p = u8::try_from(r.u64()?).map_err(|_| DecodeError::OutOfRange("a partition"))?;
            let position = Position { sequence: r.u64()?, records: r.u32()? };
            Ok((Partition(p), Cursor { position, set_by: r.optional(BatchId::read)? }))
        })?;
        cursors.set(p, cursor);
    }
    Ok(cursors)
}

/// Only the EVENTS sequence of a checkpoint: every answer of the read service needs it, and few the
/// cursors behind it.
///
/// # Errors
/// [`DecodeError`] if the bytes are no checkpoint.
pub fn checkpoint_sequence(bytes: &[u8]) -> Result<u64, DecodeError> {
    let mut r = Reader::new(bytes);
    let Token::Map(n) = r.token()? else { return Err(DecodeError::Expected("a map")) };
    for _ in 0..n {
        match r.str()? {
            "events_sequence" => return r.u64(),
            _ => r.skip()?,
        }
    }
    Err(DecodeError::Expected("events_sequence"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_come_back_with_the_cursors_of_their_lane() {
        let mut cursors = Cursors::default();
        let set_by = Some(BatchId { incarnation: 1, counter: 2 });
        cursors.set(Partition(3), Cursor { position: Position { sequence: 9, records: 4 }, set_by });
        let checkpoint = Checkpoint { log_id: 1, lanes: 2, events_sequence: 70_000, events_hash: u64::MAX, cursors };
        let row =
            CheckpointRow { checkpoint, instructions_sequence: 9, instructions_hash: Some(5), committed_at_us: 6 };
        let mut out = Vec::new();
        row.encode(&PartitionSet::ALL.on_lane(1, 2), &mut out);
        assert_eq!(CheckpointRow::decode(&out), Ok(row));
        assert_eq!(checkpoint_sequence(&out), Ok(70_000));
        assert!(checkpoint_sequence(&[0x80]).is_err());
        assert_eq!(checkpoint_key(7), "checkpoint/00007");
    }

    #[test]
    fn a_file_of_another_version_is_told_apart() {
        let row = FormatRow { version: FORMAT_VERSION, lanes: 1, storer: 2, created_at_us: 3 };
        let mut out = Vec::new();
        row.encode(&mut out);
        assert_eq!(FormatRow::decode(&out), Ok(row.clone()));
        let mut newer = Vec::new();
        FormatRow { version: 9, ..row }.encode(&mut newer);
        assert_eq!(FormatRow::decode(&newer), Err(DecodeError::UnknownVersion(9)));
    }
}
