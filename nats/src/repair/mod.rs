//! What a repair of the log leaves behind, and the steps it takes on the streams (`docs/LOG.md`,
//! "Repair"). Who decides what is to be done is the command; this is only about streams and keys.
//!
//! Everything a repair is going to do is written under the key `repair` before it is done, and every
//! step may be taken again: a repair that was killed is continued by the next. Two at once would undo
//! each other's steps: [`Claim`].

mod claim;
mod streams;

pub use claim::Claim;
pub use streams::{Copied, StreamLook, Workshop};

use crate::connection::{Connection, NatsError};
use crate::log_reader::LogError;
use serde::{Deserialize, Serialize};

/// Key of the record in the bucket of the settings.
const KEY: &str = "repair";

/// How far a repair is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RepairState {
    /// The streams are being closed to writers; nothing is decided yet.
    Closing,
    /// It is decided; the instructions to be logged again are being put aside.
    Copying,
    /// They are aside; the streams are being moved ahead and filled again.
    Moving,
    /// The log has its new identity; its streams are being opened again. What was put aside may be gone.
    Opening,
    /// Done. The record stays: storers take the new identity by it.
    Done,
}

/// What is decided about one lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairedLane {
    /// EVENTS sequence up to which the source storer had everything.
    pub events_sequence: u64,
    /// Hash of that message; 0 if `events_sequence` is 0.
    pub events_hash: u64,
    /// INSTRUCTIONS from this sequence on are logged again, as far as they are there.
    pub instructions_from: u64,
    /// The first sequence of EVENTS behind the repair.
    pub events_first: u64,
    /// The first sequence of INSTRUCTIONS behind the repair; a batch without records is there.
    pub instructions_first: u64,
}

/// What a repair found, lane by lane, and what it could not keep.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LaneLoss {
    /// Last sequence of EVENTS before the repair.
    pub events_last: u64,
    /// Messages of EVENTS behind the source storer's position: their instructions are decided anew.
    pub events_unusable: u64,
    /// Last sequence of INSTRUCTIONS before the repair.
    pub instructions_last: u64,
    /// Highest INSTRUCTIONS sequence that the source storer's cursors name.
    pub instructions_known: u64,
    /// First and last sequences of INSTRUCTIONS that were needed and are not there; the first hundred
    /// gaps.
    pub instructions_missing: Vec<(u64, u64)>,
    /// Messages of INSTRUCTIONS that are logged again.
    pub messages_again: u64,
    /// Records in them.
    pub records_again: u64,
}

/// A repair of the log: under way, or the last one that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairRecord {
    /// How far it is.
    pub state: RepairState,
    /// Identity of the log that the source storer had.
    pub from_log_id: u64,
    /// The new identity of the log.
    pub to_log_id: u64,
    /// The storer whose file the log goes on from.
    pub storer: u64,
    /// When it was begun, microseconds since the Unix epoch.
    pub begun_us: u64,
    /// The lanes in order; empty while nothing is decided.
    pub lanes: Vec<RepairedLane>,
    /// What was found, in order of lanes.
    #[serde(default)]
    pub losses: Vec<LaneLoss>,
}

/// Which log there is at present, for whoever has to notice a repair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogNow {
    /// Its identity.
    pub log_id: u64,
    /// Whether a repair is under way: everybody must keep off.
    pub repairing: bool,
}

impl LogNow {
    /// Asks for both.
    ///
    /// # Errors
    /// [`NatsError`] if the server does not answer, or there is no deployment.
    pub async fn load(connection: &Connection) -> Result<LogNow, NatsError> {
        // In this order: behind a record that says done stands the new identity.
        let repairing = RepairRecord::load(connection).await?.is_some_and(|record| record.is_under_way());
        let log_id = crate::topology::log_id(connection).await?;
        Ok(LogNow { log_id, repairing })
    }

    /// That nobody has to keep off.
    ///
    /// # Errors
    /// [`LogError::Unfinished`] if a repair is under way.
    pub fn must_be_open(self) -> Result<LogNow, LogError> {
        if self.repairing { Err(LogError::Unfinished) } else { Ok(self) }
    }
}

impl RepairRecord {
    /// Reads the record; `None` if the log was never repaired.
    ///
    /// # Errors
    /// [`NatsError`] if it cannot be read.
    pub async fn load(connection: &Connection) -> Result<Option<RepairRecord>, NatsError> {
        let bucket = claim::bucket(connection).await?;
        Ok(claim::find(connection, &bucket).await?.0)
    }

    /// Whether a repair was begun and is not done.
    pub fn is_under_way(&self) -> bool {
        self.state != RepairState::Done
    }

    /// What a storer at these positions of log `from_log_id`, one `(sequence, hash)` per lane, goes
    /// on with; `None` if the log was not repaired from exactly that state.
    pub fn lanes_for(&self, from_log_id: u64, positions: &[(u64, u64)]) -> Option<&[RepairedLane]> {
        let same = |(lane, (sequence, hash)): (&RepairedLane, &(u64, u64))| {
            lane.events_sequence == *sequence && (lane.events_hash == *hash || *sequence == 0)
        };
        let fits = self.state == RepairState::Done
            && self.from_log_id == from_log_id
            && self.lanes.len() == positions.len()
            && self.lanes.iter().zip(positions).all(same);
        fits.then_some(&self.lanes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_state_the_log_was_repaired_from_goes_on() {
        let lane = RepairedLane {
            events_sequence: 7,
            events_hash: 70,
            instructions_from: 3,
            events_first: 1_000,
            instructions_first: 2_000,
        };
        let lanes = vec![lane, RepairedLane { events_sequence: 0, events_hash: 0, ..lane }];
        let mut record = RepairRecord {
            state: RepairState::Done,
            from_log_id: 1,
            to_log_id: 2,
            storer: 3,
            begun_us: 4,
            lanes,
            losses: vec![],
        };
        assert_eq!(record.lanes_for(1, &[(7, 70), (0, 0)]).map(<[_]>::len), Some(2));
        for (log_id, positions) in
            [(2, vec![(7, 70), (0, 0)]), (1, vec![(7, 71), (0, 0)]), (1, vec![(6, 70), (0, 0)]), (1, vec![(7, 70)])]
        {
            assert_eq!(record.lanes_for(log_id, &positions), None, "{log_id} {positions:?}");
        }
        record.state = RepairState::Moving;
        assert!(record.is_under_way());
        assert_eq!(record.lanes_for(1, &[(7, 70), (0, 0)]), None, "not before it is done");
    }
}
