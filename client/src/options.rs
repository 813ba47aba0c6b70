//! What callers choose, and what they get back.

use crate::transport::QuicSocket;
use fieldstream_shared::code::Code;
use fieldstream_shared::outcome::AckLevel;
use std::path::PathBuf;
use std::time::Duration;

/// How to connect. Every field has a setter of the same name.
#[derive(Clone)]
#[non_exhaustive]
pub struct ClientOptions {
    /// The client's id; default a fresh random one (`anon-…`), or the one in the state file.
    /// Two connections with the same id take over from each other.
    pub client_id: Option<String>,
    /// Token, where the server wants one.
    pub token: Option<String>,
    /// PEM file with the certificates to trust, needed for `tls://` and `quic://`. Only these are
    /// trusted, not the system's.
    pub ca_file: Option<PathBuf>,
    /// File that keeps id, epoch and unresolved instructions, so that they survive a restart.
    /// Costs one fsync before instructions are sent; those submitted meanwhile share the next one.
    pub state_file: Option<PathBuf>,
    /// Whether to connect again after a failure. Default true.
    pub reconnect: bool,
    /// Time for one attempt to connect, the server's welcome included. Default 10 s.
    pub connect_timeout: Duration,
    /// UDP socket shared with other clients of this process; default a socket of its own.
    pub quic_socket: Option<QuicSocket>,
}

impl Default for ClientOptions {
    fn default() -> Self {
        ClientOptions {
            client_id: None,
            token: None,
            ca_file: None,
            state_file: None,
            reconnect: true,
            connect_timeout: Duration::from_secs(10),
            quic_socket: None,
        }
    }
}

impl std::fmt::Debug for ClientOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientOptions")
            .field("client_id", &self.client_id)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("ca_file", &self.ca_file)
            .field("state_file", &self.state_file)
            .field("reconnect", &self.reconnect)
            .field("connect_timeout", &self.connect_timeout)
            .finish_non_exhaustive()
    }
}

impl ClientOptions {
    /// Sets the client's id.
    #[must_use]
    pub fn client_id(mut self, id: impl Into<String>) -> Self {
        self.client_id = Some(id.into());
        self
    }

    /// Sets the token.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Sets the file with the certificates to trust.
    #[must_use]
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.ca_file = Some(path.into());
        self
    }

    /// Sets the state file.
    #[must_use]
    pub fn state_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.state_file = Some(path.into());
        self
    }

    /// Sets whether to connect again after a failure.
    #[must_use]
    pub fn reconnect(mut self, reconnect: bool) -> Self {
        self.reconnect = reconnect;
        self
    }

    /// Sets the time for one attempt to connect.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets the UDP socket to share, for many QUIC clients in one process.
    #[must_use]
    pub fn quic_socket(mut self, socket: QuicSocket) -> Self {
        self.quic_socket = Some(socket);
        self
    }
}

/// How an instruction is to be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct How {
    /// The revision the document must have, 0 for "must not exist"; otherwise `conflict`.
    pub if_revision: Option<u64>,
    /// What resolves the instruction.
    pub ack: AckLevel,
}

/// A resolved instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// The instruction's number.
    pub number: u64,
    /// The level that was reached, at least the one asked for.
    pub level: AckLevel,
    /// The document's revision after it; `None` at level `logged`, where it is not known yet.
    pub revision: Option<u64>,
}

/// A refusal that nobody waits for: of an instruction that was resolved as `logged` before, whose
/// [`Pending`](crate::Pending) was dropped, or that a state file brought from before a restart. With
/// [`Code::STALE_EPOCH`] the instruction may have been carried out all the same if it was sent on more
/// than one connection ([`ClientError::OutcomeUnknown`](crate::ClientError::OutcomeUnknown)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LateRefusal {
    /// Epoch of the number.
    pub epoch: u64,
    /// The instruction's number ([`Receipt::number`]).
    pub number: u64,
    /// Why.
    pub code: Code,
    /// Whether it is kept as a dead letter.
    pub dead: bool,
}

/// A client's state at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// Whether a session with the server is up.
    pub connected: bool,
    /// Instructions whose outcome is not known.
    pub unresolved: usize,
    /// Sessions after the first one.
    pub reconnects: u64,
}
