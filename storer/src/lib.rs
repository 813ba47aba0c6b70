//! The storer: projects EVENTS into one LMDB file that any tool on the host can open while it is
//! written (`docs/FORMAT.md`), and answers processors' and gateways' reads from it.
//!
//! It knows nothing of devices and their wire, and never decides about an instruction: it applies
//! what the log says, or stops with a message.
//!
//! **Invariants.** All of a commit, the lanes' checkpoints included, is one LMDB transaction with
//! default sync flags: whatever crashes, the file holds exactly the events up to its checkpoints.
//! Progress is announced only behind the commit. An answer's values and its sequence come from one
//! read transaction.
//!
//! Start reading at [`projection`] (what the log makes of the tables) and [`rows`] (their bytes);
//! [`Storer`] is the thin shell around them.

mod beginnings;
mod digest;
#[cfg(test)]
mod golden;
mod instructions;
mod joining;
pub mod projection;
mod reads;
mod replay;
pub mod report;
pub mod rows;
mod service;
mod store;
mod tables;
#[cfg(test)]
mod test_log;
mod timing;
mod upkeep;
mod writer;

pub use digest::{BadRow, Digest, Digests, LaneDigest, Place};
pub use replay::{Replay, ReplayOptions};
pub use service::{Storer, StorerError, StorerOptions};
pub use store::{Belongs, Copies, CopyState, Identity, Store, StoreError, StoreOptions, restore, switch};
pub use tables::{DumpedRow, IdleMarks, ReadTables, TableError};
pub use upkeep::{HistoryRule, UpkeepOptions};
