//! Known defects that can be built in, to find out whether the tests would notice.
//!
//! Without the cargo feature `defects` none of this is in a program: [`active`] is a constant
//! `false` and every branch on it disappears. With it, one defect at a time can be switched on for
//! the whole process; the teeth suite (`tests/tests/teeth.rs`) does so with each and fails if a
//! defect stays unnoticed. Never ship a program built with the feature.

macro_rules! defects {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// What can be made wrong on purpose. Each stands at the very place that prevents it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Defect {
            $($(#[$doc])* $variant,)*
        }

        impl Defect {
            /// All of them.
            pub const ALL: &'static [Defect] = &[$(Defect::$variant),*];

            /// The name it is activated by.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Defect::$variant => $name,)*
                }
            }
        }
    };
}

defects! {
    /// A gateway tells `logged` when it sends the batch, not when it has the PubAck.
    AckBeforePubAck = "ack-before-puback",
    /// A processor does not look at client marks: a repeated number is carried out again.
    NoClientMarks = "no-client-marks",
    /// Readers compare only the position of a cursor, not the batch that set it.
    AcceptanceWithoutPrev = "acceptance-without-prev",
    /// Readers accept a part whose beginning lies behind the cursor.
    StalePartAccepted = "stale-part-accepted",
    /// A processor uses a storer's answer that is ahead of its own reading.
    AnswerAheadOfReading = "answer-ahead-of-reading",
    /// A processor uses a storer's answer that is older than the partition's floor.
    AnswerBelowFloor = "answer-below-floor",
    /// A processor's step claims the record it waits at.
    CursorTooHigh = "cursor-too-high",
    /// A processor evicts values that no storer has yet.
    DirtyEvicted = "dirty-evicted",
    /// A reader passes over a missing message of the log.
    HoleSkipped = "hole-skipped",
    /// A gateway finally refuses a number that was sent before, instead of asking the log.
    ResentRefused = "resent-refused",
    /// A storer writes its checkpoint in a transaction of its own.
    CheckpointApart = "checkpoint-apart",
    /// A reader goes on behind its last message without looking whether it is still the same.
    ResumeUnverified = "resume-unverified",
    /// A gateway drops updates of a slow client without remembering that it did.
    CoalescedAway = "coalesced-away",
    /// A log is purged although no other copy of what goes was verified.
    PurgedPastCopy = "purged-past-copy",
    /// A processor that loses a part does not raise the partition's floor.
    FloorNotRaised = "floor-not-raised",
    /// An instruction of an epoch before the client's newest is carried out.
    StaleEpochAccepted = "stale-epoch-accepted",
    /// A gateway tells `stored` as soon as an instruction is applied.
    StoredTooEarly = "stored-too-early",
}

/// No defect of this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no defect {name:?}; there are: {known}")]
pub struct UnknownDefect {
    /// What was asked for.
    pub name: String,
    /// The names there are.
    pub known: String,
}

/// Whether a defect is switched on. Without the feature `defects`, never.
#[cfg(not(feature = "defects"))]
#[inline(always)]
pub const fn active(_: Defect) -> bool {
    false
}

#[cfg(feature = "defects")]
mod switched {
    use super::{Defect, UnknownDefect};
    use std::sync::atomic::{AtomicU8, Ordering};

    const NONE: u8 = u8::MAX;
    static ACTIVE: AtomicU8 = AtomicU8::new(NONE);

    /// Whether a defect is switched on.
    pub fn active(defect: Defect) -> bool {
        ACTIVE.load(Ordering::Relaxed) == defect as u8
    }

    /// Switches one defect on, and any other off.
    ///
    /// # Errors
    /// [`UnknownDefect`] names those there are.
    pub fn activate(name: &str) -> Result<Defect, UnknownDefect> {
        let found = Defect::ALL.iter().find(|defect| defect.name() == name);
        let defect = *found.ok_or_else(|| UnknownDefect {
            name: name.to_owned(),
            known: Defect::ALL.iter().map(|defect| defect.name()).collect::<Vec<_>>().join(", "),
        })?;
        ACTIVE.store(defect as u8, Ordering::SeqCst);
        Ok(defect)
    }

    /// Switches all defects off.
    pub fn deactivate() {
        ACTIVE.store(NONE, Ordering::SeqCst);
    }
}

#[cfg(feature = "defects")]
pub use switched::{activate, active, deactivate};
