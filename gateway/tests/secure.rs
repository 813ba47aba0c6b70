//! TLS and QUIC: the same session over each, on one port number.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod common;

use common::{Client, Wire, World};
use fieldstream_gateway::{Addresses, Gateway, GatewayError, TlsOptions};
use fieldstream_shared::code::Code;
use fieldstream_shared::frame::ALPN;
use fieldstream_shared::outcome::Outcome;
use rustls::pki_types::{CertificateDer, ServerName};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;

fn client_config(ca: &CertificateDer<'static>, alpn: &[u8]) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    config
}

async fn tls(address: SocketAddr, config: rustls::ClientConfig) -> std::io::Result<impl Wire + 'static> {
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

async fn quic(address: SocketAddr, config: rustls::ClientConfig) -> (quinn::Endpoint, impl Wire + 'static) {
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(config).unwrap();
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    let connection = endpoint.connect_with(config, address, "localhost").unwrap().await.unwrap();
    let (send, receive) = connection.open_bi().await.unwrap();
    (endpoint, tokio::io::join(receive, send))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_and_quic_carry_the_same_session() {
    let world = World::start().await;
    let (tls_options, ca) = world.tls();
    let mut options = world.options();
    options.tls = Some(tls_options);
    let gateway = Gateway::start(options).await.unwrap();
    let Addresses { tls: Some(at), quic: Some(quic_at), .. } = gateway.addresses() else { panic!("not listening") };
    assert_eq!(at, quic_at, "one port number");
    let (_endpoint, stream) = quic(quic_at, client_config(&ca, ALPN)).await;
    let mut over_quic = Client::over(stream);
    over_quic.hello("over quic", None, vec![]).await;
    over_quic.expect_welcome().await;
    assert_eq!(over_quic.put("d", &"q".repeat(200_000)).await.2, Some(Outcome::Applied { revision: 1 }));
    let mut over_tls = Client::over(tls(at, client_config(&ca, ALPN)).await.unwrap());
    over_tls.hello("over tls", None, vec![]).await;
    over_tls.expect_welcome().await;
    assert_eq!(over_tls.put("d", &"t".repeat(200_000)).await.2, Some(Outcome::Applied { revision: 2 }));
    assert!(tls(at, client_config(&ca, b"h2")).await.is_err(), "another protocol");
    let mut bad = Client::over(tls(at, client_config(&ca, ALPN)).await.unwrap());
    bad.hello("", None, vec![]).await;
    assert_eq!(bad.close_code().await.0, Code::INVALID_CLIENT_ID);
    gateway.stop(Duration::from_secs(5)).await;
    for client in [&mut over_quic, &mut over_tls] {
        assert_eq!(client.close_code().await.0, Code::SHUTTING_DOWN);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_handshake_ends_and_bad_certificates_are_named() {
    let world = World::start().await;
    let (tls_options, ca) = world.tls();
    let mut options = world.options();
    options.tls = Some(tls_options.clone());
    options.limits.handshake_timeout = Duration::from_millis(300);
    options.limits.arrivals_max = 4;
    let gateway = Gateway::start(options).await.unwrap();
    let at = gateway.addresses().tls.unwrap();
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(Client::raw(at).await);
    }
    let mut good = Client::over(tls(at, client_config(&ca, ALPN)).await.unwrap());
    good.hello("good", None, vec![]).await;
    good.expect_welcome().await;
    for mut client in silent {
        assert_eq!(client.try_next().await, None);
    }
    let missing = TlsOptions { key_file: world.path("missing.pem"), ..tls_options };
    let mut options = world.options();
    options.tls = Some(missing);
    let error = Gateway::start(options).await.unwrap_err();
    assert!(matches!(error, GatewayError::Certificate { .. }) && error.to_string().contains("missing.pem"));
}
