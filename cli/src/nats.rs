//! Where NATS is, out of the configuration, and what to say when it is not there.

use crate::config::Settings;
use crate::exit::{Exit, Failure, Trouble};
use fieldstream_gateway::GatewayError;
use fieldstream_nats::{Connection, Credentials, LogError, LogNow, NatsError, Server, Topology, TopologyOptions};
use fieldstream_processor::ProcessorError;
use fieldstream_storer::{StoreError, StorerError};

/// The server that the configuration names.
///
/// # Errors
/// If it names none.
pub(crate) fn server(settings: &Settings) -> Result<Server, Failure> {
    let Some(url) = &settings.nats.url else {
        return Err(Failure::new(Exit::Configuration, "no NATS server is named")
            .help("give --nats URL, or set nats.url; `fieldstream up` needs none and starts its own"));
    };
    let mut server = server_at(url);
    if let Some(file) = &settings.nats.credentials_file {
        server.credentials = Credentials::File(file.clone());
    }
    Ok(server)
}

/// The server of a URL in which user and password may stand.
pub(crate) fn server_at(url: &str) -> Server {
    let (url, login) = split_login(url);
    let login = login.map(|(user, password)| Credentials::UserPassword { user, password });
    Server { url, credentials: login.unwrap_or(Credentials::None) }
}

/// A URL without its user and password, so that no message ever shows them.
fn split_login(url: &str) -> (String, Option<(String, String)>) {
    let Some((scheme, rest)) = url.split_once("://") else { return (url.to_owned(), None) };
    let Some((login, host)) = rest.rsplit_once('@') else { return (url.to_owned(), None) };
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    (format!("{scheme}://{host}"), Some((decoded(user), decoded(password))))
}

/// A URL with user and password in it, for programs that take nothing else.
pub(crate) fn url_with_login(server: &Server) -> String {
    match (&server.credentials, server.url.split_once("://")) {
        (Credentials::UserPassword { user, password }, Some((scheme, host))) => {
            format!("{scheme}://{}:{}@{host}", encoded(user), encoded(password))
        }
        _ => server.url.clone(),
    }
}

fn encoded(text: &str) -> String {
    let one = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(one).collect()
}

fn decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let pair = after.get(..2).and_then(|pair| std::str::from_utf8(pair).ok());
        match pair.and_then(|pair| u8::from_str_radix(pair, 16).ok()).filter(|_| *first == b'%') {
            Some(byte) => {
                out.push(byte);
                rest = &after[2..];
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The streams: created on request, else as they are.
///
/// # Errors
/// What [`nats_failure`] makes of the reason.
pub(crate) async fn topology(server: &Server, settings: &Settings, create: bool) -> Result<Topology, Failure> {
    let connection = Connection::connect(server, "fieldstream start").await.map_err(|e| nats_failure(&e))?;
    let options = TopologyOptions {
        lanes: settings.nats.lanes_given.then_some(settings.nats.lanes),
        max_bytes_total: settings.nats.log_bytes_max,
        ..TopologyOptions::default()
    };
    let topology =
        if create { Topology::create(&connection, &options).await } else { Topology::load(&connection).await };
    let topology = topology.map_err(|error| nats_failure(&error))?;
    must_be_open(&connection).await?;
    Ok(topology)
}

/// That no repair is under way: who starts in the midst of it may take the one half for the whole.
///
/// # Errors
/// The trouble to be waited for if one is.
pub(crate) async fn must_be_open(connection: &Connection) -> Result<(), Failure> {
    let now = LogNow::load(connection).await.map_err(|error| nats_failure(&error))?;
    now.must_be_open().map(|_| ()).map_err(|error| in_log(&error, &error.to_string()))
}

/// An error of NATS with the exit code for it. Its messages end with what to do.
pub(crate) fn nats_failure(error: &NatsError) -> Failure {
    let exit = match error {
        NatsError::LanesMismatch { .. } | NatsError::LogVersion { .. } | NatsError::CredentialsFile { .. } => {
            Exit::Configuration
        }
        _ => Exit::Unavailable,
    };
    split(exit, &error.to_string())
}

/// Separates what to do from what went wrong.
fn split(exit: Exit, message: &str) -> Failure {
    match message.rsplit_once("; ") {
        Some((what, help)) => Failure::new(exit, what).help(help),
        None => Failure::new(exit, message),
    }
}

fn in_log(error: &LogError, message: &str) -> Failure {
    match error {
        LogError::Outrun { .. } => again(message),
        LogError::Unfinished => Failure { trouble: Some(Trouble::Unfinished), ..split(Exit::Failed, message) },
        LogError::Hole { .. } | LogError::Diverged { .. } => damaged(message),
    }
}

/// Starting again is enough. So it is with a storer of another log, too: behind a repair it takes the new
/// identity a moment later, and beside it there may be others.
fn again(message: &str) -> Failure {
    Failure { trouble: Some(Trouble::Outrun), ..split(Exit::Failed, message) }
}

fn damaged(message: &str) -> Failure {
    let what = message.rsplit_once("; ").map_or(message, |(what, _)| what);
    Failure { trouble: Some(Trouble::Damaged), ..Failure::failed(what).help(MEND) }
}

/// What mends a damaged log.
pub(crate) const MEND: &str = "`fieldstream repair --check` says what is wrong, `fieldstream repair` mends it";

/// What a role met: a stream that is not there is damage like any other.
fn in_nats(error: &NatsError) -> Failure {
    match error {
        NatsError::StreamGone { .. } => damaged(&error.to_string()),
        error => nats_failure(error),
    }
}

/// Why a gateway does not run.
pub(crate) fn gateway_failure(error: &GatewayError) -> Failure {
    match error {
        GatewayError::Nats(error) => in_nats(error),
        GatewayError::Certificate { .. } => split(Exit::Configuration, &error.to_string()),
        GatewayError::Log(log) => in_log(log, &error.to_string()),
        GatewayError::WentBackwards { .. } | GatewayError::Undecodable { .. } => damaged(&error.to_string()),
        GatewayError::OtherLog { .. } => again(&error.to_string()),
        error => split(Exit::Failed, &error.to_string()),
    }
}

/// Why a processor does not run.
pub(crate) fn processor_failure(error: &ProcessorError) -> Failure {
    match error {
        ProcessorError::Nats(error) => in_nats(error),
        ProcessorError::Log(log) => in_log(log, &error.to_string()),
        ProcessorError::Lane(_) => damaged(&error.to_string()),
        ProcessorError::OtherLog { .. } => again(&error.to_string()),
        error => split(Exit::Failed, &error.to_string()),
    }
}

/// Why a storer does not run.
pub(crate) fn storer_failure(error: &StorerError) -> Failure {
    match error {
        StorerError::Nats(error) => in_nats(error),
        // A storer that the log ran away from needs a copy; starting again does not help.
        StorerError::Log(LogError::Outrun { .. }) => split(Exit::Failed, &error.to_string()),
        StorerError::Log(log) => in_log(log, &error.to_string()),
        StorerError::Projection(_) => damaged(&error.to_string()),
        StorerError::Store(StoreError::Log { .. }) => {
            Failure { trouble: Some(Trouble::OtherFile), ..damaged(&error.to_string()) }
        }
        StorerError::Repaired { .. } => again(&error.to_string()),
        error => split(Exit::Failed, &error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_leave_the_url_and_come_back_into_it() {
        let (url, login) = split_login("nats://us%3Aer:p%40ss@host:4222");
        assert_eq!(url, "nats://host:4222");
        let (user, password) = login.unwrap();
        assert_eq!((user.as_str(), password.as_str()), ("us:er", "p@ss"));
        let server = Server { url, credentials: Credentials::UserPassword { user, password } };
        assert_eq!(url_with_login(&server), "nats://us%3Aer:p%40ss@host:4222");
        assert_eq!(split_login("nats://host:4222"), ("nats://host:4222".into(), None));
        assert_eq!(decoded("100%"), "100%");
    }

    #[test]
    fn a_storer_of_another_log_is_asked_again_and_not_waited_for() {
        let gateway = GatewayError::OtherLog { found: 1, found_lanes: 1, wanted: 2, wanted_lanes: 1 };
        assert_eq!(gateway_failure(&gateway).trouble, Some(Trouble::Outrun));
        let processor = ProcessorError::OtherLog { found: 1, found_lanes: 1, log_id: 2, lanes: 1 };
        assert_eq!(processor_failure(&processor).trouble, Some(Trouble::Outrun));
        assert_eq!(storer_failure(&StorerError::Repaired { was: 1, now: 2 }).trouble, Some(Trouble::Outrun));
    }

    #[test]
    fn a_stream_that_is_gone_is_damage_and_a_repair_that_is_not_finished_is_waited_for() {
        let gone = || NatsError::StreamGone { url: "nats://h:1".into(), stream: "INSTRUCTIONS_0".into() };
        let troubles = [
            gateway_failure(&gone().into()).trouble,
            processor_failure(&gone().into()).trouble,
            storer_failure(&gone().into()).trouble,
        ];
        assert_eq!(troubles, [Some(Trouble::Damaged); 3]);
        let unfinished = gateway_failure(&LogError::Unfinished.into());
        assert_eq!(unfinished.trouble, Some(Trouble::Unfinished));
        assert!(unfinished.help.unwrap().contains("fieldstream repair"));
    }

    #[test]
    fn messages_and_what_to_do_are_told_apart() {
        let error = NatsError::Unreachable { url: "nats://h:1".into(), reason: "connection refused".into() };
        let failure = nats_failure(&error);
        assert_eq!(failure.exit, Some(Exit::Unavailable));
        assert!(failure.message.contains("nats://h:1: connection refused"), "{failure:?}");
        assert!(failure.help.unwrap().contains("fieldstream up"));
    }
}
