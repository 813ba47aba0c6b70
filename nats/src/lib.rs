//! Everything of Fieldstream that touches NATS: the streams, writing batches to them, reading them
//! in order, the storers' read service, progress announcements, and nats-server as a child process.
//!
//! The only crate that names async-nats. It knows nothing of devices and of LMDB, and does not look
//! into the messages it carries beyond their hash.
//!
//! **Invariants.** [`LogReader`] hands out messages with contiguous sequences or stops with a
//! message; at every (re)connect it looks at its last message again and compares its hash, so a log
//! that went backwards is found. [`BatchWriter::append`] returns only after the server's PubAck,
//! which in the durable profile follows the fsync.
//!
//! Start reading at [`topology`], then [`LogReader`].

mod batch_writer;
pub mod child;
mod connection;
mod copies;
#[cfg(feature = "damage")]
#[doc(hidden)]
pub mod damage;
mod health;
mod log_reader;
mod members;
mod progress;
mod read_service;
mod register;
pub mod repair;
mod sessions;
mod status;
mod storers;
pub mod topology;
mod trace;
mod write_trouble;

pub use batch_writer::{BatchWriter, WriteError};
pub use child::{ChildError, ChildOptions, NatsChild, Profile};
pub use connection::{Connection, Credentials, NatsError, Server};
pub use copies::{PIECE_BYTES, PieceCall, PieceRequest, PieceServer, request_piece};
pub use health::{Finding, Health, Severity};
pub use log_reader::{LogError, LogMessage, LogPump, LogReader, Start};
pub use members::{LEASE, MemberBoard};
pub use progress::{ProgressReader, publish_progress};
pub use read_service::{ReadCall, ReadClient, ReadError, ReadServer};
pub use register::{CopyEntry, EntryPlace, LaneMarks, Registered, StorerEntry, StorerRegister, purge_below};
pub use repair::{Claim, LaneLoss, LogNow, RepairRecord, RepairState, RepairedLane, StreamLook, Workshop};
pub use sessions::{SessionNote, SessionNotes, publish_session};
pub use status::{
    FileStatus, GatewayLane, GatewayStatus, Member, NATS_DOWN, ProcessorLane, ProcessorStatus, RoleStatus,
    StorerStatus, StreamState, collect_status, lane_streams, serve_status,
};
pub use storers::{
    Order, OrderCall, OrderReply, OrderServer, RebuildOrder, Rebuilt, request_rebuild, request_snapshot,
};
pub use topology::{Log, Topology, TopologyOptions, first_sequence, last_sequence, stream_state};
pub use trace::{Heard, TraceClock, TraceDesk, TraceEar, TraceService};
pub use write_trouble::WriteTrouble;
