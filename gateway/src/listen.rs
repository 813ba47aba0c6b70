//! The listeners: plain TCP, TLS over TCP, and QUIC.

use crate::connection::serve;
use crate::error::GatewayError;
use crate::options::TlsOptions;
use crate::shared::Shared;
use fieldstream_shared::frame::ALPN;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;

/// Connections the kernel holds until they are accepted; a fleet may come back all at once.
const BACKLOG: u32 = 4_096;
/// After a failed accept (no more file descriptors, say), so long until the next.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// How often a pair of free ports is looked for.
const PORT_ATTEMPTS: usize = 32;
/// QUIC connections that were closed are kept for three times the time a loss is noticed in: a second or
/// so, several on slow networks.
const DRAIN_MAX: Duration = Duration::from_secs(10);
const BIND_RETRY: Duration = Duration::from_millis(50);

/// Of the socket that all QUIC connections share, each way.
const UDP_BUFFER_BYTES: usize = 4 << 20;
/// Flow control of QUIC: one stream carries everything, so small windows do, and bound what a
/// client can make the gateway hold.
const QUIC_STREAM_WINDOW: u32 = 128 * 1024;
const QUIC_CONNECTION_WINDOW: u32 = 256 * 1024;

/// At most so often a client of an earlier run is told that its connection is gone: a whole fleet
/// hears of it within seconds.
const RESET_EVERY: Duration = Duration::from_micros(100);

/// What TLS and QUIC are set up with.
pub(crate) struct Secure {
    tls: TlsAcceptor,
    quic: quinn::ServerConfig,
    resets: ResetKey,
}

/// From what a gateway makes its connection ids and the tokens that end connections it knows nothing of
/// (RFC 9000, 10.3): a gateway that was killed and is started again has the same, so that its clients
/// learn at once that they must connect again, instead of waiting for answers.
struct ResetKey(ring::hmac::Key);

impl ResetKey {
    /// Nobody but this gateway may have the same: who can have packets answered by another one with the
    /// key learns tokens of this one's connections.
    fn new(private: &PrivateKeyDer<'_>, address: SocketAddr) -> ResetKey {
        let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, private.secret_der());
        let host = rustix::system::uname();
        let name = format!("fieldstream quic reset {} {address}", host.nodename().to_string_lossy());
        let own = ring::hmac::sign(&secret, name.as_bytes());
        ResetKey(ring::hmac::Key::new(ring::hmac::HMAC_SHA256, own.as_ref()))
    }

    fn endpoint_config(&self) -> quinn::EndpointConfig {
        let ids = ring::hmac::sign(&self.0, b"connection ids");
        let ids = ids.as_ref().iter().take(8).fold(0, |key, byte| key << 8 | u64::from(*byte));
        let mut config = quinn::EndpointConfig::new(Arc::new(self.0.clone()));
        config
            .cid_generator(move || Box::new(quinn_proto::HashedConnectionIdGenerator::from_key(ids)))
            .min_reset_interval(RESET_EVERY);
        config
    }
}

/// Sockets that are bound, not yet accepting.
pub(crate) struct Bound {
    pub(crate) plain: Option<TcpListener>,
    pub(crate) secure: Option<(TcpListener, UdpSocket, Secure)>,
}

fn listen_error(address: SocketAddr, transport: &'static str, reason: io::Error) -> GatewayError {
    match reason.kind() {
        io::ErrorKind::AddrInUse => GatewayError::PortTaken { address, transport },
        _ => GatewayError::Listen { address, transport, reason },
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restarted gateway takes its port back while old connections of it are still dying.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// TCP and UDP on the same port number; with port 0, one that is free for both.
async fn bind_pair(address: SocketAddr) -> Result<(TcpListener, UdpSocket), GatewayError> {
    let mut attempts = PORT_ATTEMPTS;
    loop {
        let tcp = bind_tcp(address).map_err(|e| listen_error(address, "TLS", e))?;
        let at = tcp.local_addr().map_err(|e| listen_error(address, "TLS", e))?;
        let bound = if address.port() == 0 { UdpSocket::bind(at) } else { bind_udp(at).await };
        match bound {
            Ok(udp) => {
                widen(&udp);
                return Ok((tcp, udp));
            }
            Err(error) => {
                attempts -= 1;
                if attempts == 0 || address.port() != 0 {
                    return Err(listen_error(at, "QUIC", error));
                }
            }
        }
    }
}

/// All QUIC connections share one socket: what comes while its reader waits for a core must fit into the
/// socket's buffer, or it is lost and sent again. The kernel gives as much of it as it may
/// (`net.core.rmem_max`), and with less everything works, only slower.
fn widen(socket: &UdpSocket) {
    use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};
    let widened = set_socket_recv_buffer_size(socket, UDP_BUFFER_BYTES)
        .and_then(|()| set_socket_send_buffer_size(socket, UDP_BUFFER_BYTES));
    if let Err(error) = widened {
        tracing::debug!(%error, "the buffers of the QUIC socket stay as they are");
    }
}

/// A gateway that was stopped in this process keeps its socket until its connections have drained. (One
/// in another process has the TCP port, too, which was found before.)
async fn bind_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let until = Instant::now() + DRAIN_MAX;
    loop {
        match UdpSocket::bind(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < until => {
                tokio::time::sleep(BIND_RETRY).await;
            }
            bound => return bound,
        }
    }
}

/// Binds everything, so that a taken port is known before anything else is done.
pub(crate) async fn bind(
    plain: Option<SocketAddr>,
    tls: Option<&TlsOptions>,
    limits: &crate::options::GatewayLimits,
) -> Result<Bound, GatewayError> {
    let plain = match plain {
        Some(address) => Some(bind_tcp(address).map_err(|e| listen_error(address, "TCP", e))?),
        None => None,
    };
    let secure = match tls {
        Some(tls) => {
            let (config, private) = tls_config(&tls.certificate_file, &tls.key_file)?;
            let quic = quic_config(config.clone(), limits.keepalive, &tls.certificate_file)?;
            let (tcp, udp) = bind_pair(tls.listen).await?;
            let resets = ResetKey::new(&private, udp.local_addr().unwrap_or(tls.listen));
            let tls = TlsAcceptor::from(Arc::new(config));
            Some((tcp, udp, Secure { tls, quic, resets }))
        }
        None => None,
    };
    Ok(Bound { plain, secure })
}

fn tls_config(certificate: &Path, key: &Path) -> Result<(rustls::ServerConfig, PrivateKeyDer<'static>), GatewayError> {
    let bad = |path: &Path, reason: String| GatewayError::Certificate { path: path.to_owned(), reason };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|e| bad(certificate, format!("cannot read the certificate: {e}")))?;
    if chain.is_empty() {
        return Err(bad(certificate, "holds no certificate".to_owned()));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|e| bad(key, format!("cannot read the key: {e}")))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| bad(certificate, e.to_string()))?
        .with_no_client_auth()
        .with_single_cert(chain, private.clone_key())
        .map_err(|e| bad(certificate, format!("does not go with the key {}: {e}", key.display())))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok((config, private))
}

fn quic_config(
    tls: rustls::ServerConfig,
    keepalive: Duration,
    certificate: &Path,
) -> Result<quinn::ServerConfig, GatewayError> {
    let bad = |reason: String| GatewayError::Certificate { path: certificate.to_owned(), reason };
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls).map_err(|e| bad(e.to_string()))?;
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(4_u8.into())
        .max_concurrent_uni_streams(0_u8.into())
        .stream_receive_window(QUIC_STREAM_WINDOW.into())
        .receive_window(QUIC_CONNECTION_WINDOW.into())
        .send_window(QUIC_CONNECTION_WINDOW.into())
        .datagram_receive_buffer_size(None)
        .mtu_discovery_config(None)
        // The session's own keepalive strikes first and says why.
        .max_idle_timeout(Some(
            (keepalive + keepalive / 2).try_into().map_err(|_| bad("the keepalive is too long".into()))?,
        ));
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// Accepts plain TCP until the gateway closes.
pub(crate) async fn accept_plain(shared: Arc<Shared>, listener: TcpListener) {
    while let Some((stream, peer, arriving)) = accept(&shared, &listener).await {
        let is_loopback = peer.ip().to_canonical().is_loopback();
        shared.tasks.spawn(serve(Arc::clone(&shared), stream, is_loopback, arriving));
    }
}

/// Accepts TLS over TCP until the gateway closes.
pub(crate) async fn accept_tls(shared: Arc<Shared>, listener: TcpListener, tls: TlsAcceptor) {
    while let Some((stream, peer, arriving)) = accept(&shared, &listener).await {
        let is_loopback = peer.ip().to_canonical().is_loopback();
        let (shared, tls) = (Arc::clone(&shared), tls.clone());
        let tasks = shared.tasks.clone();
        tasks.spawn(async move {
            let handshake = timeout(shared.limits.handshake_timeout, tls.accept(stream));
            let handshake = tokio::select! {
                () = shared.stopped.cancelled() => return,
                handshake = handshake => handshake,
            };
            match handshake {
                Ok(Ok(stream)) => serve(Arc::clone(&shared), stream, is_loopback, arriving).await,
                Ok(Err(error)) => tracing::debug!(%peer, %error, "no TLS handshake"),
                Err(_) => tracing::debug!(%peer, "the TLS handshake took too long"),
            }
        });
    }
}

/// The next connection, `None` when the gateway closes. Survives every failure to accept.
async fn accept(shared: &Shared, listener: &TcpListener) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    loop {
        let accepted = tokio::select! {
            () = shared.closed.cancelled() => return None,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                // Small frames must leave at once; batching is done here, not by the kernel.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%peer, %error, "a connection was gone at once");
                    continue;
                }
                match Arc::clone(&shared.arrivals).try_acquire_owned() {
                    Ok(arriving) => return Some((stream, peer, arriving)),
                    Err(_) => tracing::debug!(%peer, "too many connections without HELLO; one was dropped"),
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted; trying again");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

impl Secure {
    pub(crate) fn tls(&self) -> TlsAcceptor {
        self.tls.clone()
    }

    /// The QUIC endpoint on a bound socket.
    pub(crate) fn endpoint(&self, socket: UdpSocket, address: SocketAddr) -> Result<quinn::Endpoint, GatewayError> {
        let config = Some(self.quic.clone());
        quinn::Endpoint::new(self.resets.endpoint_config(), config, socket, Arc::new(quinn::TokioRuntime))
            .map_err(|e| listen_error(address, "QUIC", e))
    }
}

/// Accepts QUIC until the gateway closes.
pub(crate) async fn accept_quic(shared: Arc<Shared>, endpoint: quinn::Endpoint) {
    loop {
        let incoming = tokio::select! {
            () = shared.closed.cancelled() => return,
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else {
            // Its socket is gone: nothing would be heard there any more, and nobody told.
            if !shared.closed.is_cancelled() {
                shared.fail(GatewayError::Ended("the QUIC listener"));
            }
            return;
        };
        let Ok(arriving) = Arc::clone(&shared.arrivals).try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        // With many arriving at once, addresses are made to prove themselves first.
        let is_crowded = shared.arrivals.available_permits() < shared.limits.arrivals_max / 2;
        if is_crowded && !incoming.remote_address_validated() && incoming.may_retry() {
            // Fails only for an address that has been asked already.
            let _ = incoming.retry();
            continue;
        }
        shared.tasks.spawn(serve_quic(Arc::clone(&shared), incoming, arriving));
    }
}

async fn serve_quic(shared: Arc<Shared>, incoming: quinn::Incoming, arriving: OwnedSemaphorePermit) {
    let peer = incoming.remote_address();
    let open = async {
        let connection = incoming.await.map_err(|e| e.to_string())?;
        let (send, receive) = connection.accept_bi().await.map_err(|e| e.to_string())?;
        Ok::<_, String>((connection, Duplex { send, receive }))
    };
    let opened = tokio::select! {
        () = shared.stopped.cancelled() => return,
        opened = timeout(shared.limits.handshake_timeout, open) => opened,
    };
    match opened {
        Ok(Ok((connection, stream))) => {
            serve(shared, stream, peer.ip().to_canonical().is_loopback(), arriving).await;
            connection.close(0_u8.into(), b"");
        }
        Ok(Err(error)) => tracing::debug!(%peer, error, "no QUIC handshake"),
        Err(_) => tracing::debug!(%peer, "the QUIC handshake took too long"),
    }
}

/// The two halves of a QUIC stream as one.
struct Duplex {
    send: quinn::SendStream,
    receive: quinn::RecvStream,
}

impl AsyncRead for Duplex {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(Pin::new(&mut self.receive), cx, buf)
    }
}

impl AsyncWrite for Duplex {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.send), cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.send), cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_shutdown(Pin::new(&mut self.send), cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_that_is_still_drained_is_waited_for() {
        let (tcp, drained) = bind_pair(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let address = tcp.local_addr().unwrap();
        drop(tcp);
        let freed = async {
            tokio::time::sleep(4 * BIND_RETRY).await;
            drop(drained);
        };
        let (bound, ()) = tokio::join!(bind_pair(address), freed);
        assert_eq!(bound.unwrap().1.local_addr().unwrap(), address);
        // One that another program listens on with TCP, too, is said at once.
        let (other, _udp) = bind_pair(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let begun = Instant::now();
        let taken = bind_pair(other.local_addr().unwrap()).await;
        assert!(matches!(taken, Err(GatewayError::PortTaken { transport: "TLS", .. })) && begun.elapsed() < DRAIN_MAX);
    }
}
