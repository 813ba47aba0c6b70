//! Commands that talk to a server as a client.

mod read;
pub(crate) mod render;
mod write;

pub(crate) use read::{get, ls, watch};
pub(crate) use write::{add, append, delete, merge, put, splice};

use crate::args::ServerArgs;
use crate::exit::{Exit, Failure};
use fieldstream_client::{Client, ClientError, ClientOptions};
use fieldstream_shared::code::Code;
use std::future::Future;

/// Options for a client with these arguments.
pub(crate) fn options(server: &ServerArgs) -> ClientOptions {
    let mut options = ClientOptions::default().connect_timeout(server.timeout);
    options.client_id = server.client_id.clone();
    options.token = server.token.clone();
    options.ca_file = server.ca.clone();
    options
}

/// Connects.
///
/// # Errors
/// What [`failure`] makes of the reason.
pub(crate) async fn connect(server: &ServerArgs) -> Result<Client, Failure> {
    let connecting = Client::connect(&server.server, options(server));
    match tokio::time::timeout(server.timeout, connecting).await {
        Ok(connected) => connected.map_err(|error| failure(server, &error)),
        Err(_) => Err(timed_out(server)),
    }
}

/// Waits for an answer, but not longer than the command line allows.
pub(crate) async fn within<T>(
    server: &ServerArgs,
    answer: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(server.timeout, answer).await {
        Ok(answer) => answer.map_err(|error| failure(server, &error)),
        Err(_) => Err(timed_out(server)),
    }
}

fn timed_out(server: &ServerArgs) -> Failure {
    let waited = humantime::format_duration(server.timeout);
    Failure::new(Exit::TimedOut, format_args!("no answer from {} within {waited}", server.server))
        .help("an instruction may have been carried out all the same; look with `fieldstream get`, or wait longer with --timeout")
}

/// An error of the SDK, in the words of this program.
pub(crate) fn failure(server: &ServerArgs, error: &ClientError) -> Failure {
    let url = &server.server;
    match error {
        ClientError::Refused(Code::UNAVAILABLE) => {
            Failure::new(Exit::TimedOut, format_args!("{url}: {error}")).help("no storer answered in time; try again")
        }
        ClientError::Refused(code) => {
            let refused = Failure::failed(format_args!("{error}"));
            match *code {
                Code::FORBIDDEN if server.token.is_none() => {
                    refused.help("give a token with --token or FIELDSTREAM_TOKEN")
                }
                Code::CONFLICT => refused.help("`fieldstream get --json` shows the revision it has now"),
                _ => refused,
            }
        }
        ClientError::Dead(_) => Failure::failed(format_args!("{error}")),
        ClientError::Closed { code, .. } => {
            let closed = format_args!("{url}: {error}").to_string();
            match *code {
                Code::BUSY | Code::OUTAGE | Code::SHUTTING_DOWN => {
                    Failure::new(Exit::Unavailable, closed).help("try again later")
                }
                Code::TIMED_OUT | Code::IDLE => Failure::new(Exit::TimedOut, closed),
                Code::UNAUTHORIZED => Failure::failed(closed).help("give a token with --token or FIELDSTREAM_TOKEN"),
                _ => Failure::failed(closed),
            }
        }
        ClientError::TimedOut => timed_out(server),
        ClientError::Url(_) => {
            Failure::usage(error).help("write it as tcp://host:port, tls://host:port or quic://host:port")
        }
        ClientError::Tls(_) if server.ca.is_none() => Failure::usage(error)
            .help("name the CA to trust with --ca or FIELDSTREAM_CA; `fieldstream up` prints its own"),
        ClientError::Tls(_) => Failure::new(Exit::Unavailable, format_args!("cannot connect to {url}: {error}"))
            .help("the CA must be the one that signed the server's certificate, and the host must be in it"),
        ClientError::Io(reason) => {
            let reason = reason.split_once("; ").map_or(reason.as_str(), |(reason, _)| reason);
            let named = if reason.contains(url) { String::new() } else { format!("{url}: ") };
            Failure::new(Exit::Unavailable, format_args!("{named}{reason}"))
                .help("is it running? `fieldstream up` starts everything and prints its addresses")
        }
        ClientError::InvalidId(_) => Failure::usage(error),
        _ => Failure::failed(format_args!("{url}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn errors_have_the_codes_that_scripts_expect() {
        let server = ServerArgs {
            server: "tcp://h:1".into(),
            ca: None,
            token: None,
            client_id: None,
            timeout: Duration::from_secs(1),
            json: false,
        };
        let closed = |code| ClientError::Closed { code, reason: "r".into() };
        for (error, exit) in [
            (ClientError::Refused(Code::CONFLICT), Exit::Failed),
            (ClientError::Refused(Code::FORBIDDEN), Exit::Failed),
            (ClientError::Refused(Code::UNAVAILABLE), Exit::TimedOut),
            (ClientError::Dead(Code::HANDLER_PANICKED), Exit::Failed),
            (closed(Code::UNAUTHORIZED), Exit::Failed),
            (closed(Code::OUTAGE), Exit::Unavailable),
            (ClientError::TimedOut, Exit::TimedOut),
            (ClientError::Url("x".into()), Exit::Usage),
            (ClientError::Tls("x".into()), Exit::Usage),
            (ClientError::Io("x".into()), Exit::Unavailable),
        ] {
            assert_eq!(failure(&server, &error).exit, Some(exit), "{error}");
        }
        assert!(failure(&server, &ClientError::Refused(Code::CONFLICT)).message.contains("conflict"));
    }
}
