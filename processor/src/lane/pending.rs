//! A record between its reading and its event. It is decoded once: what it says is kept beside its bytes.

use bytes::Bytes;
use fieldstream_shared::code::Code;
use fieldstream_shared::ids::{DocumentId, Number};
use fieldstream_shared::marks::Arrival;
use fieldstream_shared::partition::Partition;
use fieldstream_shared::record::{Action, Record};

/// A record and the partition that decides it.
#[derive(Debug, Clone)]
pub(super) struct Pending {
    pub(super) partition: Partition,
    pub(super) bytes: Bytes,
    /// What it says; `None` if it is no whole record of this lane: it becomes a dead letter.
    pub(super) said: Option<Said>,
}

/// A [`Record`] on its own.
#[derive(Debug, Clone)]
pub(super) struct Said {
    pub(super) number: Number,
    pub(super) arrival: Arrival,
    pub(super) received_at_us: u64,
    pub(super) document: DocumentId,
    pub(super) action: Asked,
    pub(super) trace: Option<u64>,
}

/// An [`Action`] on its own.
#[derive(Debug, Clone)]
pub(super) enum Asked {
    Instruct { if_revision: Option<u64>, operation: Bytes },
    Refuse(Code),
    Forget,
}

impl Said {
    /// `bytes` are those that the record was decoded from.
    pub(super) fn of(record: Record<'_>, bytes: &Bytes) -> Said {
        let Record { number, arrival, resent: _, received_at_us, document, action, trace } = record;
        let action = match action {
            Action::Instruct { if_revision, operation } => {
                Asked::Instruct { if_revision, operation: bytes.slice_ref(operation) }
            }
            Action::Refuse(code) => Asked::Refuse(code),
            Action::Forget => Asked::Forget,
        };
        Said { number, arrival, received_at_us, document, action, trace }
    }
}
