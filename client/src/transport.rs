//! Byte streams to a server: plain TCP, TLS over TCP, QUIC.

use crate::error::ClientError;
use fieldstream_shared::frame::ALPN;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// QUIC flow control: a whole snapshot may be under way, and idle connections stay small.
const QUIC_WINDOW_BYTES: u32 = 1024 * 1024;

/// Time given to the last bytes of a connection.
const LINGER: Duration = Duration::from_millis(500);

/// Time given to the packet that closes a QUIC connection; its loss is made up by a timeout there.
const CLOSE_LINGER: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    Tcp,
    Tls,
    Quic,
}

/// Where a server is, from a URL such as `tls://host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) scheme: Scheme,
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// A UDP socket that many QUIC clients share. Belongs to the tokio runtime it was made in.
#[derive(Clone, Debug)]
pub struct QuicSocket(quinn::Endpoint);

impl QuicSocket {
    /// Binds a socket to a free port, on IPv4 or IPv6 as the server needs.
    ///
    /// # Errors
    /// [`ClientError::Io`] if there is none. Must be called inside a tokio runtime.
    pub fn bind(ipv6: bool) -> Result<QuicSocket, ClientError> {
        let any: IpAddr = if ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        quinn::Endpoint::client((any, 0).into())
            .map(QuicSocket)
            .map_err(|error| ClientError::Io(format!("cannot bind a UDP socket: {error}")))
    }
}

/// A connection.
pub(crate) struct Link(Stream);

enum Stream {
    Tcp(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
    Quic(Box<QuicStream>),
}

struct QuicStream {
    send: quinn::SendStream,
    recv: quinn::RecvStream,
    connection: quinn::Connection,
    /// The socket, if it is this connection's own.
    endpoint: Option<quinn::Endpoint>,
}

impl Link {
    fn reader(&mut self) -> Pin<&mut (dyn AsyncRead + Send + Unpin)> {
        match &mut self.0 {
            Stream::Tcp(stream) => Pin::new(stream),
            Stream::Tls(stream) => Pin::new(&mut **stream),
            Stream::Quic(stream) => Pin::new(&mut stream.recv),
        }
    }

    fn writer(&mut self) -> Pin<&mut (dyn AsyncWrite + Send + Unpin)> {
        match &mut self.0 {
            Stream::Tcp(stream) => Pin::new(stream),
            Stream::Tls(stream) => Pin::new(&mut **stream),
            Stream::Quic(stream) => Pin::new(&mut stream.send),
        }
    }

    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.reader().poll_read(cx, buffer)
    }

    pub(crate) fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.writer().poll_write(cx, bytes)
    }

    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writer().poll_flush(cx)
    }

    /// Ends the connection so that the other side learns of it and of everything sent before.
    pub(crate) async fn close(mut self) {
        let _ = timeout(LINGER, self.writer().shutdown()).await;
        if let Stream::Quic(stream) = self.0 {
            let _ = timeout(LINGER, stream.send.stopped()).await;
            stream.connection.close(0u32.into(), b"");
            if let Some(endpoint) = stream.endpoint {
                let _ = timeout(CLOSE_LINGER, endpoint.wait_idle()).await;
            }
        }
    }
}

/// Makes connections to one server.
pub(crate) struct Connector {
    pub(crate) endpoint: Endpoint,
    pub(crate) tls: Option<Arc<rustls::ClientConfig>>,
    quic_socket: Option<QuicSocket>,
}

impl Connector {
    /// Checks the URL and loads the certificates to trust.
    ///
    /// # Errors
    /// [`ClientError::Url`] and [`ClientError::Tls`].
    pub(crate) fn new(
        url: &str,
        ca_file: Option<&Path>,
        quic_socket: Option<QuicSocket>,
    ) -> Result<Connector, ClientError> {
        let endpoint = Endpoint::parse(url).map_err(|why| ClientError::Url(format!("{url}: {why}")))?;
        let tls = match (endpoint.scheme, ca_file) {
            (Scheme::Tcp, _) => None,
            (Scheme::Tls | Scheme::Quic, Some(path)) => Some(Arc::new(tls_config(path)?)),
            (Scheme::Tls | Scheme::Quic, None) => {
                return Err(ClientError::Tls(format!(
                    "no CA file is given for {url}; name the PEM file with the server's CA certificate"
                )));
            }
        };
        Ok(Connector { endpoint, tls, quic_socket })
    }

    /// Connects once.
    ///
    /// # Errors
    /// [`ClientError::Io`] and [`ClientError::Tls`], saying where and why.
    pub(crate) async fn open(&self) -> Result<Link, ClientError> {
        match (self.endpoint.scheme, &self.tls) {
            (Scheme::Quic, Some(tls)) => self.open_quic(tls).await,
            (_, tls) => self.open_tcp(tls.as_ref()).await,
        }
    }

    async fn open_tcp(&self, tls: Option<&Arc<rustls::ClientConfig>>) -> Result<Link, ClientError> {
        let Endpoint { host, port, .. } = &self.endpoint;
        let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(|error| self.unreachable(&error))?;
        // Frames are already gathered into one write; waiting for more would only add latency.
        stream.set_nodelay(true).map_err(|error| self.unreachable(&error))?;
        let Some(tls) = tls else { return Ok(Link(Stream::Tcp(stream))) };
        let name = ServerName::try_from(host.clone())
            .map_err(|_| ClientError::Url(format!("{host} is neither a DNS name nor an IP address")))?;
        match tokio_rustls::TlsConnector::from(Arc::clone(tls)).connect(name, stream).await {
            Ok(stream) => Ok(Link(Stream::Tls(Box::new(stream)))),
            Err(error) => Err(ClientError::Tls(self.explain(&error.to_string()))),
        }
    }

    async fn open_quic(&self, tls: &Arc<rustls::ClientConfig>) -> Result<Link, ClientError> {
        let Endpoint { host, port, .. } = &self.endpoint;
        let found = tokio::net::lookup_host((host.as_str(), *port)).await;
        let addresses: Vec<SocketAddr> = found.map_err(|error| self.unreachable(&error))?.collect();
        let config = quic_config(tls)?;
        let mut last = ClientError::Io(format!("{}: the name has no address", self.endpoint));
        for address in addresses {
            let (socket, own) = match &self.quic_socket {
                Some(socket) => (socket.clone(), false),
                None => (QuicSocket::bind(address.is_ipv6())?, true),
            };
            match self.quic_handshake(&socket.0, config.clone(), address).await {
                Ok((connection, send, recv)) => {
                    let endpoint = own.then_some(socket.0);
                    return Ok(Link(Stream::Quic(Box::new(QuicStream { send, recv, connection, endpoint }))));
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn quic_handshake(
        &self,
        endpoint: &quinn::Endpoint,
        config: quinn::ClientConfig,
        address: SocketAddr,
    ) -> Result<(quinn::Connection, quinn::SendStream, quinn::RecvStream), ClientError> {
        let connecting = endpoint.connect_with(config, address, &self.endpoint.host).map_err(|error| match error {
            quinn::ConnectError::InvalidServerName(name) => {
                ClientError::Url(format!("{name} is neither a DNS name nor an IP address"))
            }
            other => ClientError::Io(format!("cannot connect to {}: {other}", self.endpoint)),
        })?;
        let connection = connecting.await.map_err(|error| self.quic_failed(&error))?;
        let (send, recv) = connection.open_bi().await.map_err(|error| self.quic_failed(&error))?;
        Ok((connection, send, recv))
    }

    fn quic_failed(&self, error: &quinn::ConnectionError) -> ClientError {
        match error {
            quinn::ConnectionError::TransportError(error) => ClientError::Tls(self.explain(&error.reason)),
            quinn::ConnectionError::ConnectionClosed(closed) => ClientError::Tls(self.explain(&closed.to_string())),
            other => ClientError::Io(format!("cannot connect to {}: {other}", self.endpoint)),
        }
    }

    fn unreachable(&self, error: &io::Error) -> ClientError {
        let hint = match error.kind() {
            io::ErrorKind::ConnectionRefused => "; is the gateway running, and is the port right?",
            _ => "",
        };
        ClientError::Io(format!("cannot connect to {}: {error}{hint}", self.endpoint))
    }

    /// What a person needs to know of a TLS error. Goes by its text: over QUIC there is no more.
    fn explain(&self, error: &str) -> String {
        let endpoint = &self.endpoint;
        // A CA of the same name with another key, as a repeated set-up makes it, shows in the signature.
        if error.contains("UnknownIssuer") || error.contains("BadSignature") {
            format!("{endpoint}: the server's certificate was not issued by the given CA ({error})")
        } else if error.contains("not valid for name") || error.contains("NotValidForName") {
            let host = &endpoint.host;
            format!(
                "{endpoint}: the server's certificate is not for the name {host}; use one it was made for ({error})"
            )
        } else if error.contains("expired") || error.contains("Expired") {
            format!("{endpoint}: the server's certificate has expired, or this machine's clock is wrong ({error})")
        } else if error.contains("NoApplicationProtocol") || error.contains("no application protocol") {
            format!("{endpoint}: the server does not speak {} ({error})", String::from_utf8_lossy(ALPN))
        } else {
            format!("{endpoint}: {error}")
        }
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = match self.scheme {
            Scheme::Tcp => "tcp",
            Scheme::Tls => "tls",
            Scheme::Quic => "quic",
        };
        match self.host.contains(':') {
            true => write!(f, "{scheme}://[{}]:{}", self.host, self.port),
            false => write!(f, "{scheme}://{}:{}", self.host, self.port),
        }
    }
}

impl Endpoint {
    fn parse(url: &str) -> Result<Endpoint, &'static str> {
        let (scheme, rest) =
            url.split_once("://").ok_or("write quic://host:port, tls://host:port or tcp://host:port")?;
        let scheme = match scheme {
            "tcp" => Scheme::Tcp,
            "tls" => Scheme::Tls,
            "quic" => Scheme::Quic,
            _ => return Err("the scheme must be quic, tls or tcp"),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = rest.rsplit_once(':').ok_or("the port is missing")?;
        let port = port.parse().map_err(|_| "the port is not a number from 1 to 65535")?;
        let host = match host.strip_prefix('[') {
            Some(v6) => v6.strip_suffix(']').ok_or("the ] of the address is missing")?,
            None if host.contains(':') => return Err("an IPv6 address needs [ and ]"),
            None => host,
        };
        match (host, port) {
            ("", _) => Err("the host is missing"),
            (_, 0) => Err("the port is not a number from 1 to 65535"),
            (host, _) => Ok(Endpoint { scheme, host: host.to_owned(), port }),
        }
    }
}

fn tls_config(ca_file: &Path) -> Result<rustls::ClientConfig, ClientError> {
    let broken = |why: &dyn std::fmt::Display| ClientError::Tls(format!("CA file {}: {why}", ca_file.display()));
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca_file).map_err(|error| broken(&error))? {
        roots.add(certificate.map_err(|error| broken(&error))?).map_err(|error| broken(&error))?;
    }
    if roots.is_empty() {
        return Err(broken(&"there is no certificate in it"));
    }
    // Named here, so that no other crate's choice of a global default can matter.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| broken(&error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

fn quic_config(tls: &Arc<rustls::ClientConfig>) -> Result<quinn::ClientConfig, ClientError> {
    let tls = quinn::crypto::rustls::QuicClientConfig::try_from(Arc::clone(tls))
        .map_err(|error| ClientError::Tls(format!("QUIC: {error}")))?;
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(0u8.into())
        .max_concurrent_uni_streams(0u8.into())
        .datagram_receive_buffer_size(None)
        .stream_receive_window(QUIC_WINDOW_BYTES.into())
        .receive_window(QUIC_WINDOW_BYTES.into())
        .send_window(QUIC_WINDOW_BYTES.into())
        // Signs of life are frames, as on every other transport.
        .max_idle_timeout(None);
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_checked_part_by_part() {
        let ok = |url: &str| Endpoint::parse(url).unwrap().to_string();
        assert_eq!(ok("tcp://localhost:7000"), "tcp://localhost:7000");
        assert_eq!(ok("quic://[::1]:1/"), "quic://[::1]:1");
        for (url, why) in [
            ("localhost:7000", "write quic://"),
            ("http://h:1", "the scheme"),
            ("tcp://h", "the port is missing"),
            ("tcp://h:x", "not a number"),
            ("tcp://h:0", "not a number"),
            ("tcp://h:65536", "not a number"),
            ("tcp://:1", "the host"),
            ("tcp://::1:1", "needs ["),
            ("tcp://[::1:1", "the ]"),
        ] {
            let error = Endpoint::parse(url).unwrap_err();
            assert!(error.contains(why), "{url}: {error}");
        }
    }

    #[test]
    fn tls_without_a_ca_says_what_is_missing() {
        let error = Connector::new("tls://localhost:1", None, None).err().unwrap().to_string();
        assert!(error.contains("no CA file"), "{error}");
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("ca.pem");
        let missing = Connector::new("quic://localhost:1", Some(&empty), None).err().unwrap().to_string();
        assert!(missing.contains("ca.pem"), "{missing}");
        std::fs::write(&empty, "nothing").unwrap();
        let error = Connector::new("quic://localhost:1", Some(&empty), None).err().unwrap().to_string();
        assert!(error.contains("no certificate"), "{error}");
    }
}
