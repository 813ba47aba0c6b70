//! Traced instructions: when which hop had them (`docs/TRACING.md`).
//!
//! An instruction may carry a flag that asks every role to note when it had it in hand. What is
//! noted travels beside the log, as [`StampNote`]s over plain NATS to the gateway the client is at,
//! and from there as TRACE frames: stamps that are known only after a record was written could not
//! be in it. Times are by the clock of whoever notes; [`clock`] aligns them.

pub mod clock;

use crate::ids::{ClientId, Number};
use crate::msgpack::{DecodeError, Reader, Write, decode};

/// Version of a [`StampNote`].
const NOTE_VERSION: u64 = 1;
/// Stamps of one note: more than any role makes of an instruction.
pub const STAMPS_MAX: usize = 16;
/// Clocks in one answer about clocks.
pub const CLOCKS_MAX: usize = 64;

/// Reads what follows the known elements of a record or an event, `more` elements: the number of the
/// gateway that stamps go to, if it is traced, and what a newer version put behind it.
pub(crate) fn read_gateway(r: &mut Reader<'_>, more: usize) -> Result<Option<u64>, DecodeError> {
    let gateway = if more > 0 { r.optional(Reader::u64)? } else { None };
    for _ in 1..more {
        r.skip()?;
    }
    Ok(gateway)
}

/// A point on an instruction's way, in the order of the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Hop {
    /// The client gives it to its connection.
    ClientSent = 1,
    /// The gateway has its first byte.
    GatewayFirstByte = 2,
    /// The gateway has its last byte.
    GatewayLastByte = 3,
    /// It is checked, and in the queue of its lane.
    GatewayQueued = 4,
    /// Its batch is sent to the log.
    GatewayPublished = 5,
    /// The log has acknowledged the batch.
    GatewayLogged = 6,
    /// A processor has read the batch.
    ProcessorRead = 7,
    /// It was carried out, and its event batch is built.
    ProcessorApplied = 8,
    /// The event batch is sent to the log.
    ProcessorPublished = 9,
    /// The log has acknowledged the event batch.
    ProcessorLogged = 10,
    /// The gateway of the client has read the event.
    GatewayEvent = 11,
    /// What the client is told of it was written to its connection.
    GatewayWritten = 12,
    /// The client has its outcome.
    ClientReceived = 13,
    /// A storer has read the event.
    StorerRead = 14,
    /// The event is durable in a storer's file.
    StorerCommitted = 15,
}

impl Hop {
    /// All of them, in order.
    pub const ALL: [Hop; 15] = [
        Hop::ClientSent,
        Hop::GatewayFirstByte,
        Hop::GatewayLastByte,
        Hop::GatewayQueued,
        Hop::GatewayPublished,
        Hop::GatewayLogged,
        Hop::ProcessorRead,
        Hop::ProcessorApplied,
        Hop::ProcessorPublished,
        Hop::ProcessorLogged,
        Hop::GatewayEvent,
        Hop::GatewayWritten,
        Hop::ClientReceived,
        Hop::StorerRead,
        Hop::StorerCommitted,
    ];

    /// The hop of a number; `None` for one of a newer version.
    pub fn from_u64(number: u64) -> Option<Hop> {
        Hop::ALL.into_iter().find(|hop| *hop as u64 == number)
    }

    /// Stable name, for programs.
    pub fn name(self) -> &'static str {
        match self {
            Hop::ClientSent => "client_sent",
            Hop::GatewayFirstByte => "gateway_first_byte",
            Hop::GatewayLastByte => "gateway_last_byte",
            Hop::GatewayQueued => "gateway_queued",
            Hop::GatewayPublished => "gateway_published",
            Hop::GatewayLogged => "gateway_logged",
            Hop::ProcessorRead => "processor_read",
            Hop::ProcessorApplied => "processor_applied",
            Hop::ProcessorPublished => "processor_published",
            Hop::ProcessorLogged => "processor_logged",
            Hop::GatewayEvent => "gateway_event",
            Hop::GatewayWritten => "gateway_written",
            Hop::ClientReceived => "client_received",
            Hop::StorerRead => "storer_read",
            Hop::StorerCommitted => "storer_committed",
        }
    }

    /// The role that notes it.
    pub fn role(self) -> &'static str {
        let name = self.name();
        name.split_once('_').map_or(name, |(role, _)| role)
    }
}

/// When a hop had an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Where.
    pub hop: Hop,
    /// When, in microseconds by the clock of whoever noted it.
    pub at_us: u64,
}

/// What one role noted of an instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamps {
    /// Tells roles of one kind apart: drawn at a role's start, or a storer's number.
    pub member: u64,
    /// Which clock the times are by: drawn at a process' start.
    pub clock: u64,
    /// The times.
    pub stamps: Vec<Stamp>,
}

impl Stamps {
    /// Appends `member, clock, [[hop, at_us], …]`.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.u64(self.member);
        out.u64(self.clock);
        out.array(self.stamps.len());
        for stamp in &self.stamps {
            out.array(2);
            out.u64(stamp.hop as u64);
            out.u64(stamp.at_us);
        }
    }

    /// Reads what [`Stamps::write`] wrote; hops of a newer version are passed over.
    pub(crate) fn read(r: &mut Reader<'_>) -> Result<Stamps, DecodeError> {
        let (member, clock, n) = (r.u64()?, r.u64()?, r.array()?);
        if n > STAMPS_MAX {
            return Err(DecodeError::OutOfRange("the number of stamps"));
        }
        let mut stamps = Vec::new();
        for _ in 0..n {
            let (hop, at_us) = r.record(2, |r| Ok((r.u64()?, r.u64()?)))?;
            stamps.extend(Hop::from_u64(hop).map(|hop| Stamp { hop, at_us }));
        }
        Ok(Stamps { member, clock, stamps })
    }
}

/// Stamps on their way to the gateway that the instruction came through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StampNote {
    /// The instruction.
    pub number: Number,
    /// What was noted.
    pub stamps: Stamps,
}

impl StampNote {
    /// The message `[1, client, epoch, number, member, clock, [[hop, at_us], …]]`.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + 12 * self.stamps.stamps.len());
        out.array(7);
        out.u64(NOTE_VERSION);
        out.str(&self.number.client);
        out.u64(self.number.epoch);
        out.u64(self.number.number);
        self.stamps.write(&mut out);
        out
    }

    /// Reads a message.
    ///
    /// # Errors
    /// [`DecodeError`] if it is none.
    pub fn decode(bytes: &[u8]) -> Result<StampNote, DecodeError> {
        decode(bytes, |r| {
            r.record(7, |r| {
                match r.u64()? {
                    NOTE_VERSION => {}
                    other => return Err(DecodeError::UnknownVersion(other)),
                }
                let client = ClientId::new(r.str()?).map_err(|_| DecodeError::OutOfRange("a client id"))?;
                let number = Number { client, epoch: r.u64()?, number: r.u64()? };
                Ok(StampNote { number, stamps: Stamps::read(r)? })
            })
        })
    }
}

/// How far a role's clock is ahead of its gateway's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownClock {
    /// The clock.
    pub clock: u64,
    /// How far it is ahead.
    pub offset: clock::Offset,
}

impl KnownClock {
    /// Appends `[clock, ahead_us, uncertainty_us]`.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.array(3);
        out.u64(self.clock);
        out.i64(self.offset.ahead_us);
        out.u64(self.offset.uncertainty_us);
    }

    pub(crate) fn read(r: &mut Reader<'_>) -> Result<KnownClock, DecodeError> {
        r.record(3, |r| {
            let clock = r.u64()?;
            let offset = clock::Offset { ahead_us: r.i64()?, uncertainty_us: r.u64()? };
            Ok(KnownClock { clock, offset })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note() -> StampNote {
        let number = Number { client: ClientId::new("boiler-1").unwrap(), epoch: 5, number: 6 };
        let stamps =
            vec![Stamp { hop: Hop::ProcessorRead, at_us: 7 }, Stamp { hop: Hop::ProcessorApplied, at_us: u64::MAX }];
        StampNote { number, stamps: Stamps { member: 1, clock: 2, stamps } }
    }

    #[test]
    fn notes_come_back_from_their_bytes() {
        assert_eq!(StampNote::decode(&note().encode()), Ok(note()));
        let known = KnownClock { clock: 3, offset: clock::Offset { ahead_us: -70_000, uncertainty_us: 9 } };
        let mut out = Vec::new();
        known.write(&mut out);
        assert_eq!(decode(&out, KnownClock::read), Ok(known));
    }

    #[test]
    fn hops_of_a_newer_version_are_passed_over_and_too_many_refused() {
        let mut bytes = note().encode();
        let hop = bytes.len() - 10;
        assert_eq!(bytes[hop], Hop::ProcessorApplied as u8);
        bytes[hop] = 99;
        assert_eq!(StampNote::decode(&bytes).unwrap().stamps.stamps, note().stamps.stamps[..1]);
        let mut many = note();
        many.stamps.stamps = vec![note().stamps.stamps[0]; STAMPS_MAX + 1];
        assert!(StampNote::decode(&many.encode()).is_err());
        let mut newer = note().encode();
        newer[1] = 2;
        assert_eq!(StampNote::decode(&newer), Err(DecodeError::UnknownVersion(2)));
    }

    #[test]
    fn names_say_the_role() {
        for hop in Hop::ALL {
            assert_eq!(Hop::from_u64(hop as u64), Some(hop));
            assert!(["client", "gateway", "processor", "storer"].contains(&hop.role()), "{}", hop.name());
        }
        assert_eq!(Hop::from_u64(0), None);
    }
}
