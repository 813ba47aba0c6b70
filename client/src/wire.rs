//! Connections without a session, for the load generator: the same addresses, certificates and
//! transports as every client has, and nothing above them.

use crate::error::ClientError;
use crate::transport::{Connector, Link, QuicSocket, Scheme};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::ReadBuf;

/// Makes connections to one server.
pub struct Wire(Connector);

/// A connection: bytes in, bytes out.
pub struct WireLink(Link);

impl Wire {
    /// Checks the URL and loads the certificates to trust. QUIC connections share `quic_socket`.
    ///
    /// # Errors
    /// [`ClientError::Url`] and [`ClientError::Tls`].
    pub fn new(url: &str, ca_file: Option<&Path>, quic_socket: Option<QuicSocket>) -> Result<Wire, ClientError> {
        Connector::new(url, ca_file, quic_socket).map(Wire)
    }

    /// `tcp`, `tls` or `quic`.
    pub fn transport(&self) -> &'static str {
        match self.0.endpoint.scheme {
            Scheme::Tcp => "tcp",
            Scheme::Tls => "tls",
            Scheme::Quic => "quic",
        }
    }

    /// The server's name or address, and its port.
    pub fn host_and_port(&self) -> (&str, u16) {
        (&self.0.endpoint.host, self.0.endpoint.port)
    }

    /// How TLS is spoken, for whoever opens TCP connections itself.
    pub fn tls(&self) -> Option<&Arc<rustls::ClientConfig>> {
        self.0.tls.as_ref()
    }

    /// Connects once.
    ///
    /// # Errors
    /// [`ClientError::Io`] and [`ClientError::Tls`], saying where and why.
    pub async fn open(&self) -> Result<WireLink, ClientError> {
        self.0.open().await.map(WireLink)
    }
}

impl WireLink {
    /// Reads what is there.
    ///
    /// # Errors
    /// Those of the transport.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.poll_read(cx, buffer)
    }

    /// Writes as much as is taken.
    ///
    /// # Errors
    /// Those of the transport.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.poll_write(cx, bytes)
    }

    /// Hands on what was written.
    ///
    /// # Errors
    /// Those of the transport.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_flush(cx)
    }

    /// Ends the connection so that the other side learns of it.
    pub async fn close(self) {
        self.0.close().await;
    }
}
