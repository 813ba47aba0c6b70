//! The shipped cores under simulation: one seed, one run, in virtual time and without threads.
//!
//! Real: the client's session core, the gateway's session, hub, queue, outbox and numbers, the
//! processor's lane with its cache, the storer's projection. Simulated: the log, the network, the
//! clock, the disk of the storers, and the shells between them. The log loses publishes and
//! acknowledgements, stores batches twice and late; roles crash and pause at any step; several
//! processors own the same partitions; storers lag, run ahead and answer in part.
//!
//! [`run`] plays one seed. [`oracle`] checks by means of its own: it shares the decoders with the
//! product, but neither the acceptance rule nor the marks nor the change of documents.

pub mod log;
pub mod oracle;
mod roles;
mod world;

pub use world::{Finding, Report, run};
