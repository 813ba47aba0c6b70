//! The admin endpoint: `/livez`, `/readyz` and `/metrics` over plain HTTP, for the roles of this
//! process. It tells nothing secret and changes nothing, but it has no login: keep it on loopback
//! or on a private network.

mod hops;
mod metrics;

use crate::exit::{Exit, Failure};
use bytes::Bytes;
use fieldstream_nats::{Health, Severity};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// Connections at once; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 32;
/// So long a connection may take for the head of a request, and so long it may live at all.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// After a failed accept: out of file descriptors, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
/// The text format of Prometheus, version 0.0.4.
const METRICS: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// A role of this process and its health.
pub(crate) type Roles = Arc<[(&'static str, Health)]>;

/// The running endpoint; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Admin {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Admin {
    /// Starts it, if it is wanted.
    ///
    /// # Errors
    /// If it cannot listen there.
    pub(crate) async fn start(listen: Option<SocketAddr>, roles: impl Into<Roles>) -> Result<Option<Admin>, Failure> {
        let Some(listen) = listen else { return Ok(None) };
        let cannot = |error: std::io::Error| {
            Failure::new(Exit::Unavailable, format_args!("the admin endpoint cannot listen on {listen}: {error}"))
                .help("choose another address with --admin or admin.listen, or off")
        };
        let listener = TcpListener::bind(listen).await.map_err(cannot)?;
        let address = listener.local_addr().map_err(cannot)?;
        let accepting = tokio::spawn(accept(listener, roles.into()));
        Ok(Some(Admin { address, accepting }))
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, roles: Roles) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let roles = Arc::clone(&roles);
                tokio::spawn(async move {
                    let _ = tokio::time::timeout(CONNECTION_TIMEOUT, serve(stream, roles)).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the admin endpoint accepts nothing at present");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, roles: Roles) {
    let answer = service_fn(move |request: Request<Incoming>| {
        let answer = answer(request.method(), request.uri().path(), &roles);
        async move { Ok::<_, Infallible>(answer) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), answer).await {
        tracing::debug!(%error, "a connection to the admin endpoint");
    }
}

fn answer(method: &Method, path: &str, roles: &Roles) -> Response<Full<Bytes>> {
    let (status, kind, body) = match (method, path) {
        (&Method::GET | &Method::HEAD, "/livez") => (StatusCode::OK, TEXT, "ok\n".to_owned()),
        (&Method::GET | &Method::HEAD, "/readyz") => {
            let (is_ready, text) = readiness(roles);
            (if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, TEXT, text)
        }
        (&Method::GET | &Method::HEAD, "/metrics") => (StatusCode::OK, METRICS, metrics::text(roles)),
        (_, "/livez" | "/readyz" | "/metrics") => {
            (StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n".to_owned())
        }
        _ => (StatusCode::NOT_FOUND, TEXT, "there are /livez, /readyz and /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// Whether every role does its work, and a line for each and for everything that was found.
fn readiness(roles: &Roles) -> (bool, String) {
    let mut text = String::new();
    let mut all = true;
    for (role, health) in roles.iter() {
        let is_ready = health.is_ready();
        all &= is_ready;
        let _ = writeln!(text, "{role}: {}", if is_ready { "ready" } else { "not ready" });
        for finding in health.findings() {
            let severity = match finding.severity {
                Severity::Warning => "warning",
                Severity::Blocking => "blocking",
            };
            let _ = writeln!(text, "  {severity} {}: {}; {}", finding.code, finding.message, finding.mend);
        }
    }
    (all, text)
}

#[cfg(test)]
mod tests;
