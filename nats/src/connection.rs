//! Connecting to NATS, with errors that say what to do.

use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, connection::State, jetstream};
use std::{fmt, path::PathBuf, time::Duration};
use tokio::sync::watch;

/// How to prove who we are.
#[derive(Clone, Default)]
pub enum Credentials {
    /// Not at all.
    #[default]
    None,
    /// User and password.
    UserPassword {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// A NATS credentials file (JWT and nkey seed).
    File(PathBuf),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Credentials::None => f.write_str("None"),
            Credentials::UserPassword { user, .. } => write!(f, "UserPassword({user:?})"),
            Credentials::File(path) => write!(f, "File({path:?})"),
        }
    }
}

/// A NATS server or cluster.
#[derive(Clone, Debug)]
pub struct Server {
    /// `nats://host:port` or `tls://host:port`, several with commas between.
    pub url: String,
    /// How to prove who we are.
    pub credentials: Credentials,
}

/// What can go wrong with NATS before messages flow. Each message says what, where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum NatsError {
    /// Nobody answers there.
    #[error(
        "cannot reach NATS at {url}: {reason}; start everything with `fieldstream up`, or a server with `nats-server -js`"
    )]
    Unreachable {
        /// Where.
        url: String,
        /// Why.
        reason: String,
    },
    /// The server does not let us in.
    #[error("NATS at {url} refused the credentials: {reason}; check user and password or the credentials file")]
    Unauthorized {
        /// Where.
        url: String,
        /// Why.
        reason: String,
    },
    /// The credentials file is not there or not readable.
    #[error("cannot read the NATS credentials {path}: {reason}")]
    CredentialsFile {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The server runs without JetStream.
    #[error("JetStream is off at {url}; start nats-server with `-js`, or enable `jetstream` in its configuration")]
    JetStreamDisabled {
        /// Where.
        url: String,
    },
    /// The deployment was never created there.
    #[error("no Fieldstream streams at {url}; create them once with `--create-streams`")]
    StreamsMissing {
        /// Where.
        url: String,
    },
    /// The number of lanes is fixed when the streams are created.
    #[error(
        "the streams at {url} were created with {found} lane(s), not {wanted}; the number of lanes is fixed: start with `--lanes {found}`"
    )]
    LanesMismatch {
        /// Where.
        url: String,
        /// As created.
        found: u16,
        /// As asked for.
        wanted: u16,
    },
    /// The log is of a version this program does not know.
    #[error("the log at {url} has format version {found}, this program knows {known}; use a newer program")]
    LogVersion {
        /// Where.
        url: String,
        /// Version found.
        found: u64,
        /// Newest version known.
        known: u64,
    },
    /// The server may not use as much disk as the streams want.
    #[error(
        "NATS at {url} may not store {bytes} bytes for stream {stream}: {reason}; free disk space, raise `max_file_store`, or ask for less with `nats.log_bytes_max`"
    )]
    NoSpace {
        /// Where.
        url: String,
        /// Which stream.
        stream: String,
        /// How much was asked for.
        bytes: u64,
        /// The server's words.
        reason: String,
    },
    /// A stream of the deployment is not there, though its settings are.
    #[error(
        "NATS at {url} has no stream {stream}, though the deployment's settings are there; the log is damaged: stop writing and repair it"
    )]
    StreamGone {
        /// Where.
        url: String,
        /// Which stream.
        stream: String,
    },
    /// The server answers, but does not say that it stored something.
    #[error("NATS at {url}: {what}: not acknowledged in time; see that the server gets on and its disk has room")]
    Unacknowledged {
        /// Where.
        url: String,
        /// What was to be stored.
        what: String,
    },
    /// Two processes repair the log.
    #[error(
        "NATS at {url}: another process goes on with the repair of the log; this one stops, see what that one says"
    )]
    OtherRepair {
        /// Where.
        url: String,
    },
    /// Any other refusal of a request.
    #[error("NATS at {url}: {what}: {reason}")]
    Request {
        /// Where.
        url: String,
        /// What was asked.
        what: String,
        /// The answer.
        reason: String,
    },
}

/// A connection to NATS that reconnects by itself. Cheap to clone.
///
/// Publishing and consuming use connections of their own: on one connection a hot consumer delays
/// publishes.
#[derive(Clone)]
pub struct Connection {
    pub(crate) client: Client,
    pub(crate) jetstream: jetstream::Context,
    pub(crate) url: String,
    connects: watch::Receiver<u64>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({})", self.url)
    }
}

/// Without a connection a flush would wait until there is one again.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Answers to requests that are not publishes: long enough for a busy server, short enough to tell.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

impl Connection {
    /// Connects once; later losses are mended in the background.
    ///
    /// # Errors
    /// [`NatsError`] if the server cannot be reached or refuses us.
    pub async fn connect(server: &Server, name: &str) -> Result<Connection, NatsError> {
        let url = redact(&server.url);
        let (connected, mut connects) = watch::channel(0_u64);
        let mut options = ConnectOptions::new()
            .name(name)
            .connection_timeout(REQUEST_TIMEOUT)
            .request_timeout(Some(REQUEST_TIMEOUT))
            .ping_interval(Duration::from_secs(5))
            .client_capacity(8192)
            .reconnect_delay_callback(|attempt| Duration::from_millis(10 << attempt.min(6)))
            .event_callback(move |event| {
                let connected = connected.clone();
                async move {
                    match event {
                        Event::Connected => connected.send_modify(|n| *n += 1),
                        Event::Disconnected => tracing::warn!("NATS connection lost; reconnecting"),
                        Event::SlowConsumer(_) => {
                            tracing::warn!("NATS client queue overflowed; the reader starts again")
                        }
                        other => tracing::debug!(event = %other, "NATS connection"),
                    }
                }
            });
        options = match &server.credentials {
            Credentials::None => options,
            Credentials::UserPassword { user, password } => options.user_and_password(user.clone(), password.clone()),
            Credentials::File(path) => {
                let unreadable =
                    |e: std::io::Error| NatsError::CredentialsFile { path: path.clone(), reason: e.to_string() };
                let text = std::fs::read_to_string(path).map_err(unreadable)?;
                options.credentials(&text).map_err(unreadable)?
            }
        };
        let client = options.connect(&*server.url).await.map_err(|e| connect_error(&url, &e))?;
        // This connect is told by a task of its own: coming later it would be taken for a reconnect.
        let _ = tokio::time::timeout(REQUEST_TIMEOUT, connects.wait_for(|connects| *connects > 0)).await;
        let mut jetstream = jetstream::new(client.clone());
        jetstream.set_timeout(REQUEST_TIMEOUT);
        Ok(Connection { client, jetstream, url, connects })
    }

    /// Whether the connection stands at this moment.
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Resolves when the connection was made anew since the last call on this handle.
    pub async fn reconnected(&mut self) {
        if self.connects.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Makes [`Connection::reconnected`] wait for the next time.
    pub(crate) fn forget_reconnects(&mut self) {
        self.connects.mark_unchanged();
    }

    /// Waits until what was published has left this process, but not for a server that is away.
    pub async fn flush(&self) {
        match tokio::time::timeout(FLUSH_TIMEOUT, self.client.flush()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "flushing the NATS connection"),
            Err(_) => tracing::debug!("flushing the NATS connection: not connected"),
        }
    }

    /// The server's version.
    pub fn server_version(&self) -> String {
        self.client.server_info().version
    }

    /// Where this connection leads, without secrets.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The error of a request that was answered with something that cannot be.
    pub fn wrong_answer(&self, what: &str, reason: &str) -> NatsError {
        self.request_error(what, reason)
    }

    pub(crate) fn request_error(&self, what: &str, reason: impl fmt::Display) -> NatsError {
        NatsError::Request { url: self.url.clone(), what: what.to_owned(), reason: reason.to_string() }
    }
}

fn connect_error(url: &str, error: &async_nats::ConnectError) -> NatsError {
    let url = url.to_owned();
    let reason = match std::error::Error::source(error) {
        Some(source) => source.to_string(),
        None => error.to_string(),
    };
    match error.kind() {
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
            NatsError::Unauthorized { url, reason }
        }
        ConnectErrorKind::TimedOut => NatsError::Unreachable { url, reason: "timed out".into() },
        ConnectErrorKind::ServerParse
        | ConnectErrorKind::Dns
        | ConnectErrorKind::Tls
        | ConnectErrorKind::Io
        | ConnectErrorKind::MaxReconnects => NatsError::Unreachable { url, reason },
    }
}

/// A URL without user and password.
fn redact(url: &str) -> String {
    let one = |url: &str| match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => format!("{}{}", &url[..scheme + 3], &url[at + 1..]),
        _ => url.to_owned(),
    };
    url.split(',').map(one).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_shown_without_secrets() {
        assert_eq!(redact("nats://u:p@h:1,nats://h:2"), "nats://h:1,nats://h:2");
        let secret = Credentials::UserPassword { user: "u".into(), password: "hidden".into() };
        assert!(!format!("{secret:?}").contains("hidden"));
    }

    #[tokio::test]
    async fn nobody_there_is_said_with_the_address() {
        let server = Server { url: "nats://127.0.0.1:1".into(), credentials: Credentials::None };
        let error = Connection::connect(&server, "test").await.map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("127.0.0.1:1") && error.contains("refused"), "{error}");
    }
}
