//! What a gateway is started with.

use crate::tokens::TokenPolicy;
use fieldstream_nats::{Health, Server};
use fieldstream_shared::limits::{NUMBER_WINDOW, WATCHES_MAX};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// What a gateway is started with.
#[derive(Debug, Clone)]
pub struct GatewayOptions {
    /// The NATS server with the streams.
    pub nats: Server,
    /// Where to listen for plain TCP. Nothing on this port is encrypted: loopback only, or a
    /// trusted network.
    pub tcp: Option<SocketAddr>,
    /// Where to listen for TLS and QUIC.
    pub tls: Option<TlsOptions>,
    /// Who may connect, and what they may do.
    pub tokens: TokenPolicy,
    /// How many storers must have an event durably before its instruction counts as stored.
    pub stored_copies: usize,
    /// Limits.
    pub limits: GatewayLimits,
    /// Where it reports what it finds.
    pub health: Health,
}

/// TLS over TCP, and QUIC on the same port number.
#[derive(Debug, Clone)]
pub struct TlsOptions {
    /// The address of both; port 0 takes one that is free for both.
    pub listen: SocketAddr,
    /// PEM file: the certificate and what leads to its root.
    pub certificate_file: PathBuf,
    /// PEM file: the certificate's private key.
    pub key_file: PathBuf,
}

/// The gateway's limits that may be configured. Those of the formats are in
/// [`fieldstream_shared::limits`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayLimits {
    /// Sessions at once; more get CLOSE `busy`. Each costs 5 to 60 KiB, by transport, and one file
    /// descriptor (QUIC none). Default 20,000.
    pub connections_max: usize,
    /// Connections at once that have not shown a HELLO yet; more are dropped unanswered. High
    /// enough that some thousands of silent sockets keep nobody out. Default 4,096.
    pub arrivals_max: usize,
    /// A TLS or QUIC handshake must be done by then. Default 5 s.
    pub handshake_timeout: Duration,
    /// HELLO must have come by then. Default 5 s.
    pub hello_timeout: Duration,
    /// A frame that has begun must be whole by then. Default 10 s.
    pub frame_timeout: Duration,
    /// A client must be heard at least this often. Default 90 s.
    pub keepalive: Duration,
    /// A client that takes no byte of what waits for it for so long is cut off. Default 10 s.
    pub write_timeout: Duration,
    /// Bytes that wait for one client; beyond, states are coalesced. Default 256 KiB.
    pub outbox_bytes_max: usize,
    /// Reads (GET, LIST, SYNC) a session may have open; with more, its further frames wait. One
    /// answer may have 1 MiB. Default 4.
    pub requests_max: usize,
    /// Watches per session. Default and most: [`WATCHES_MAX`].
    pub watches_max: usize,
    /// How far a new number may be ahead of the lowest unresolved one. Default and most:
    /// [`NUMBER_WINDOW`].
    pub window: u64,
    /// Bytes of instructions that wait for one lane's log; beyond, sessions are paused until half
    /// of it is left. Default 16 MiB.
    pub queue_bytes_max: usize,
    /// An instruction that could not be logged for so long closes its session. Default 30 s.
    pub outage_after: Duration,
    /// A batch that could not be logged for so long is given up. Default 10 min.
    pub batch_age_max: Duration,
    /// When clients that were sent away should come again. Default 2 s.
    pub retry_after: Duration,
    /// Memory of all watched documents together, over all lanes; beyond, watches of further ones are
    /// answered `unavailable`, and clients ask again. Default 1 GiB.
    pub documents_bytes_max: usize,
    /// Bytes of changes held for one document while it is loaded; beyond, it is loaded again.
    /// Default 1 MiB.
    pub held_bytes_max: usize,
    /// Bytes of recent updates kept per watched document, for watchers that come back. Default
    /// 32 KiB.
    pub recent_bytes_max: usize,
    /// Bytes of missed updates fetched for one watcher that comes back; beyond, it gets a
    /// snapshot. Default 128 KiB.
    pub history_bytes_max: usize,
    /// An answer of the storers must come by then. Default 5 s.
    pub read_timeout: Duration,
    /// At start, how long to catch up with the log before clients are let in. Default 30 s.
    pub catch_up: Duration,
}

impl Default for GatewayLimits {
    fn default() -> Self {
        GatewayLimits {
            connections_max: 20_000,
            arrivals_max: 4_096,
            handshake_timeout: Duration::from_secs(5),
            hello_timeout: Duration::from_secs(5),
            frame_timeout: Duration::from_secs(10),
            keepalive: Duration::from_secs(90),
            write_timeout: Duration::from_secs(10),
            outbox_bytes_max: 256 * 1024,
            requests_max: 4,
            watches_max: WATCHES_MAX,
            window: NUMBER_WINDOW,
            queue_bytes_max: 16 * 1024 * 1024,
            outage_after: Duration::from_secs(30),
            batch_age_max: Duration::from_secs(600),
            retry_after: Duration::from_secs(2),
            documents_bytes_max: 1024 * 1024 * 1024,
            held_bytes_max: 1024 * 1024,
            recent_bytes_max: 32 * 1024,
            history_bytes_max: 128 * 1024,
            read_timeout: Duration::from_secs(5),
            catch_up: Duration::from_secs(30),
        }
    }
}

/// Where a gateway listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Addresses {
    /// Plain TCP.
    pub tcp: Option<SocketAddr>,
    /// TLS over TCP.
    pub tls: Option<SocketAddr>,
    /// QUIC.
    pub quic: Option<SocketAddr>,
}
