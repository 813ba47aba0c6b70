//! What every part of Fieldstream agrees on: ids, instructions, events, record batches, wire
//! frames and the deterministic [`Document`](document::Document).
//!
//! This crate is pure. It knows no socket, no clock, no environment, no NATS and no LMDB: time and
//! ids arrive as arguments, bytes go in and values come out. The same code runs in gateways,
//! processors, storers and in the client SDK, so a replica built anywhere from the same changes
//! has the same bytes and the same state hash.
//!
//! Where to start reading: [`instruction`] (what a device asks for), [`change`] (what happened to a
//! document), [`record`] and [`event`] (the two logs, `docs/LOG.md`), [`cursor`] (which parts of the
//! event log count), [`marks`] (which instruction numbers were seen), [`frame`] (the device wire,
//! `docs/PROTOCOL.md`).
//!
//! **Invariant:** bytes from outside never reach `unwrap`, `expect`, `assert` or an allocation that
//! they size. Decoders take borrowed slices and check every length against what is really there.

pub mod change;
pub mod code;
pub mod cursor;
pub mod dead_letter;
pub mod defect;
pub mod document;
pub mod event;
pub mod frame;
mod hash;
pub mod histogram;
pub mod ids;
pub mod instruction;
pub mod limits;
pub mod marks;
pub mod msgpack;
pub mod outcome;
pub mod partition;
pub mod read;
pub mod record;
pub mod registry;
pub mod trace;
pub mod value;
