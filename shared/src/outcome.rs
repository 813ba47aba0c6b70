//! What became of an instruction.

use crate::code::Code;
use crate::msgpack::{DecodeError, Reader, Write};

/// The final outcome of an instruction. Sent to its client and kept, as long as the client may
/// ask again, in the client's mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It changed its document, which then had this revision.
    Applied {
        /// The document's revision after the change.
        revision: u64,
    },
    /// It changed nothing.
    Refused(Code),
    /// It could not be carried out because of itself, and is kept as a dead letter.
    Dead(Code),
}

impl Outcome {
    /// Appends `[kind, revision or code]`: 1 applied, 2 refused, 3 dead.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.array(2);
        let (kind, number) = match *self {
            Outcome::Applied { revision } => (1, revision),
            Outcome::Refused(code) => (2, u64::from(code.0)),
            Outcome::Dead(code) => (3, u64::from(code.0)),
        };
        out.u64(kind);
        out.u64(number);
    }

    /// Reads what [`Outcome::write`] wrote.
    ///
    /// # Errors
    /// [`DecodeError`] if it is not of that form.
    pub fn read(reader: &mut Reader<'_>) -> Result<Outcome, DecodeError> {
        reader.record(2, |r| match r.u64()? {
            1 => Ok(Outcome::Applied { revision: r.u64()? }),
            2 => Ok(Outcome::Refused(Code(r.u16()?))),
            3 => Ok(Outcome::Dead(Code(r.u16()?))),
            _ => Err(DecodeError::OutOfRange("an outcome")),
        })
    }
}

/// When an instruction counts as done for its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum AckLevel {
    /// It is in the log, durably: it will be carried out, whatever crashes.
    Logged = 1,
    /// It was carried out and the event is in the log, durably.
    #[default]
    Applied = 2,
    /// Its effect is in the LMDB file of enough storers, durably.
    Stored = 3,
}

impl AckLevel {
    /// The level with this number.
    ///
    /// # Errors
    /// If there is none.
    pub fn from_u64(n: u64) -> Result<AckLevel, DecodeError> {
        match n {
            1 => Ok(AckLevel::Logged),
            2 => Ok(AckLevel::Applied),
            3 => Ok(AckLevel::Stored),
            _ => Err(DecodeError::OutOfRange("an ack level")),
        }
    }
}
