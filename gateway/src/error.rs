//! Why a gateway does not start, or stops.

use fieldstream_nats::{LogError, NatsError};
use fieldstream_shared::msgpack::DecodeError;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Why a gateway does not start, or stops.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GatewayError {
    /// NATS is not there or not as it must be.
    #[error(transparent)]
    Nats(#[from] NatsError),
    /// A stream is damaged or is not the one it was.
    #[error(transparent)]
    Log(#[from] LogError),
    /// INSTRUCTIONS ends before what was already consumed of it.
    #[error(
        "the instructions log of lane {lane} went backwards: it ends at {last}, but {known} was logged in it; \
         nothing is written to it until it is repaired"
    )]
    WentBackwards {
        /// The lane.
        lane: u16,
        /// The last sequence found or acknowledged.
        last: u64,
        /// The highest sequence that an event names, or that was acknowledged.
        known: u64,
    },
    /// An event batch cannot be read, and none is ever skipped.
    #[error(
        "message {sequence} of the events log of lane {lane} cannot be read ({source}); \
         use a newer program if the log is newer, else repair the log"
    )]
    Undecodable {
        /// The lane.
        lane: u16,
        /// Its stream sequence.
        sequence: u64,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// A storer's checkpoint is of another log.
    #[error(
        "the storer's checkpoint is of log {found} with {found_lanes} lane(s), NATS has log {wanted} with \
         {wanted_lanes}: the storer's directory belongs to another deployment"
    )]
    OtherLog {
        /// Identity of the storer's log.
        found: u64,
        /// Its lanes.
        found_lanes: u16,
        /// Identity of the log in NATS.
        wanted: u64,
        /// Its lanes.
        wanted_lanes: u16,
    },
    /// The address is in use.
    #[error(
        "{address} ({transport}) is in use by another program; stop it, or listen elsewhere (port 0 takes a free one)"
    )]
    PortTaken {
        /// The address.
        address: SocketAddr,
        /// TCP, TLS or QUIC.
        transport: &'static str,
    },
    /// The address cannot be listened on for another reason.
    #[error("cannot listen on {address} ({transport}): {reason}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// TCP, TLS or QUIC.
        transport: &'static str,
        /// Why.
        reason: std::io::Error,
    },
    /// Certificate or key cannot be used.
    #[error("{path}: {reason}; `fieldstream init` makes a certificate and a key")]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A task of the gateway ended though it must not.
    #[error("a part of the gateway ended unexpectedly: {0}")]
    Ended(&'static str),
}
