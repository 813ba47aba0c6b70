//! The partition owner: reads a lane's instructions in order, applies those of its partitions to
//! documents, and writes one event for each, exactly once.
//!
//! [`lane`] is the core, a state machine without sockets, clocks and randomness; [`cache`] holds
//! its documents and client marks; `worker` drives one core per lane; [`membership`] says which
//! partitions are shared out to whom; [`Processor`] starts and stops the workers.
//!
//! **Invariants.** Input position and output travel as one message, and only parts that every
//! reader accepts count: nobody trusts this process' memory. A value loaded from a storer is used
//! only if it is as new as everything this processor knows of its partition. This crate knows no
//! device, no socket and no LMDB.

pub mod cache;
pub mod lane;
pub mod membership;
mod service;
mod sharing;
mod timing;
mod worker;

pub use service::{Ownership, Processor, ProcessorError, ProcessorOptions};
