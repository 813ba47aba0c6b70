//! The device SDK: instructions in, live replicas out, over one connection that heals itself.
//!
//! ```no_run
//! # async fn example() -> Result<(), fieldstream_client::ClientError> {
//! use fieldstream_client::{Client, ClientOptions, Operation};
//! let client = Client::connect("quic://localhost:7443", ClientOptions::default().ca_file("ca.pem")).await?;
//! let mut watch = client.watch("site7/boiler-1").await?;
//! client.instruct("site7/boiler-1", Operation::Append("on\n".into())).await?;
//! println!("{:?}", watch.next().await?);
//! # Ok(()) }
//! ```
//!
//! What a program may rely on:
//! - An instruction is carried out once, however often the connection breaks while it is under way.
//!   `Ok` and `Refused` are final. With a state file that holds across restarts, too.
//! - Instructions of one client on one document are carried out in the order of the calls.
//! - A replica never shows a state the server did not have: every change must fit the revision and
//!   lead to the announced state hash, or a snapshot replaces it.
//! - Memory is bounded, whatever the server or a slow consumer does.
//!
//! Inside, `session` is a state machine without sockets, clock or randomness; `driver` moves its
//! bytes, one task per client; `transport` knows TCP, TLS and QUIC; `state_file` is the disk, and
//! `journal_writer` the task that writes to it.
//! The crate knows nothing of NATS or LMDB. Where to start reading: `session/mod.rs`.

mod client;
#[cfg(feature = "cores")]
#[doc(hidden)]
pub mod cores;
mod driver;
mod error;
mod journal_writer;
mod options;
mod session;
mod state_file;
mod trace;
mod transport;
mod watch;
#[cfg(feature = "wire")]
#[doc(hidden)]
pub mod wire;

pub use client::{Client, LateRefusals, Pending};
pub use error::ClientError;
pub use options::{ClientOptions, How, LateRefusal, Receipt, Status};
pub use session::traces::{Clocks, OWN_CLOCK};
pub use trace::Trace;
pub use transport::QuicSocket;
pub use watch::{Watch, WatchEvent};

pub use fieldstream_shared::change::{Change, Edit, Primitive, Version};
pub use fieldstream_shared::code::Code;
pub use fieldstream_shared::document::{Body, Document};
pub use fieldstream_shared::frame::WatchMode;
pub use fieldstream_shared::ids::{ClientId, DocumentId};
pub use fieldstream_shared::instruction::Operation;
pub use fieldstream_shared::outcome::AckLevel;
pub use fieldstream_shared::read::Listed;
pub use fieldstream_shared::trace::{Hop, KnownClock, Stamp, Stamps, clock::Offset};
pub use fieldstream_shared::value::{Map, Value};
