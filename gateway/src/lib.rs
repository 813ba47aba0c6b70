//! The gateway: devices connect here, over TCP, TLS or QUIC.
//!
//! It checks what clients send, appends their instructions to the log in batches, and pushes
//! accepted events to the clients that wait for them or watch their documents. It decides nothing
//! about documents and stores nothing: what it knows can be had again from the log and a storer.
//! It knows nothing of LMDB and of processors.
//!
//! **Invariants.** A client is told `logged` only after the PubAck of its batch; an instruction is
//! never refused because of load or outage, but its session is paused or closed; every number that
//! was or may have been logged is answered by the log alone. No lock is held across an await, and
//! every queue has a bound in bytes.
//!
//! Cores without sockets and clocks: `session` (one client's frames), `hub` (who gets what of one
//! lane's events), `lane` (batches on their way to the log), `outbox` and `numbers` (one client's
//! queue and unresolved numbers), [`TokenPolicy`]. Around them: `connection`, `listen`, `writer`,
//! `reader`, `reads`, `listing`, `takeover`, `traces`, and [`Gateway`], where to start reading. The device wire is described in
//! `docs/PROTOCOL.md`.

mod connection;
#[cfg(feature = "cores")]
#[doc(hidden)]
pub mod cores;
mod error;
mod gateway;
mod hub;
mod lane;
mod listen;
mod listing;
mod mailbox;
mod numbers;
mod options;
mod outbox;
mod reader;
mod reads;
mod session;
mod shared;
mod takeover;
mod tokens;
mod traces;
mod writer;

pub use error::GatewayError;
pub use gateway::Gateway;
pub use options::{Addresses, GatewayLimits, GatewayOptions, TlsOptions};
pub use tokens::{Rights, TokenFileError, TokenPolicy, Unauthorized};
