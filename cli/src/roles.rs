//! Starting the roles from the configuration, and running one of them by itself.

use crate::admin::Admin;
use crate::config::Settings;
use crate::exit::{Exit, Failure, Trouble};
use crate::nats::{self, gateway_failure, processor_failure, storer_failure};
use crate::output;
use crate::signals::Signals;
use crate::supervise;
use fieldstream_gateway::{Gateway, GatewayLimits, GatewayOptions, TlsOptions, TokenPolicy};
use fieldstream_nats::{Health, Server};
use fieldstream_processor::{Ownership, Processor, ProcessorOptions};
use fieldstream_shared::registry::Registry;
use fieldstream_storer::{Storer, StorerOptions, UpkeepOptions};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The files a gateway needs; each may be missing.
#[derive(Debug, Default, Clone)]
pub(crate) struct GatewayFiles {
    /// Certificate chain and key.
    pub(crate) tls: Option<(PathBuf, PathBuf)>,
    /// Tokens.
    pub(crate) tokens: Option<PathBuf>,
}

/// Allows this process as many open files as the system lets it have: every connection is one.
pub(crate) fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the number of open files");
    }
}

/// A gateway's options.
///
/// # Errors
/// If the token file cannot be used.
pub(crate) fn gateway_options(
    settings: &Settings,
    server: Server,
    files: &GatewayFiles,
) -> Result<GatewayOptions, Failure> {
    let gateway = &settings.gateway;
    let tokens = match &files.tokens {
        Some(file) => TokenPolicy::from_file(file, gateway.require_token_on_loopback)
            .map_err(|error| Failure::new(Exit::Configuration, with_sources(&error)))?,
        None if gateway.require_token_on_loopback => {
            return Err(Failure::new(
                Exit::Configuration,
                "`gateway.require_token_on_loopback` is true, but no token file is named",
            )
            .help("name one with --tokens or gateway.tokens_file; `fieldstream init` makes one"));
        }
        None => TokenPolicy::loopback_open(),
    };
    Ok(GatewayOptions {
        nats: server,
        tcp: gateway.tcp,
        tls: files.tls.clone().map(|(certificate_file, key_file)| TlsOptions {
            listen: gateway.listen,
            certificate_file,
            key_file,
        }),
        tokens,
        stored_copies: gateway.stored_copies,
        limits: GatewayLimits {
            connections_max: gateway.connections_max,
            documents_bytes_max: gateway.watched_bytes_max,
            ..GatewayLimits::default()
        },
        health: Health::new(),
    })
}

/// A processor's options.
pub(crate) fn processor_options(settings: &Settings, server: Server, registry: Registry) -> ProcessorOptions {
    let mut options = ProcessorOptions::new(server);
    options.ownership = settings.processor.ownership;
    options.registry = registry;
    options.cache_bytes_max = settings.processor.cache_bytes_max;
    options.pinned_bytes_max = settings.processor.pinned_bytes_max;
    options
}

/// A storer's options.
pub(crate) fn storer_options(settings: &Settings, server: Server, directory: &Path) -> StorerOptions {
    let mut options = StorerOptions::new(server, directory);
    options.file_mode = settings.storer.file_mode;
    options.map_bytes = settings.storer.map_bytes;
    options.map_bytes_max = settings.storer.map_bytes_max;
    options.history_revisions = settings.storer.history_revisions;
    options.commit_floor = settings.storer.commit_floor;
    options.upkeep = UpkeepOptions {
        copies_directory: settings.storer.copies_directory.clone(),
        copy_every: settings.storer.copy_every,
        copies_kept: settings.storer.copies_kept,
        client_marks_kept: settings.storer.client_marks_kept,
        history_rules: settings.storer.history_keep.clone(),
        history_age_max: Some(settings.storer.history_age_max).filter(|age| !age.is_zero()),
        history_bytes_max: Some(settings.storer.history_bytes_max).filter(|bytes| *bytes > 0),
        ..UpkeepOptions::default()
    };
    options
}

/// An error and its causes in one line.
fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

/// `fieldstream gateway`.
pub(crate) async fn gateway(settings: &Settings, create_streams: bool, begun: Instant) -> Result<(), Failure> {
    let mut signals = Signals::catch()?;
    raise_open_files();
    let server = nats::server(settings)?;
    let files = GatewayFiles {
        tls: settings.gateway.certificate_file.clone().zip(settings.gateway.key_file.clone()),
        tokens: settings.gateway.tokens_file.clone(),
    };
    if files.tls.is_none() && settings.gateway.tcp.is_none() {
        return Err(Failure::new(
            Exit::Configuration,
            "the gateway would listen nowhere: no certificate and `gateway.tcp` is off",
        )
        .help("give --cert and --key (`fieldstream init` makes them), or --tcp ADDR"));
    }
    if files.tls.is_none() {
        eprintln!("note: without --cert and --key there is no TLS and no QUIC");
    }
    let options = gateway_options(settings, server.clone(), &files)?;
    let health = options.health.clone();
    let admin = Admin::start(settings.admin, vec![("gateway", health.clone())]).await?;
    loop {
        let mut log_id = 0;
        let start = async {
            log_id = nats::topology(&server, settings, create_streams).await?.log_id;
            Gateway::start(options.clone()).await.map_err(|error| gateway_failure(&error))
        };
        let failure = match unless_stopped(&mut signals, start).await {
            Ok(None) => return Ok(()),
            Err(failure) => failure,
            Ok(Some(mut gateway)) => {
                let addresses = gateway.addresses();
                for (scheme, address) in [("tcp", addresses.tcp), ("tls", addresses.tls), ("quic", addresses.quic)] {
                    if let Some(address) = address {
                        output::line(&format!("{scheme}://{address}"))?;
                    }
                }
                ready(begun, admin.as_ref())?;
                let failure = tokio::select! {
                    _ = signals.next() => None,
                    error = gateway.failed() => Some(gateway_failure(&error)),
                };
                match failure {
                    Some(failure) if failure.trouble.is_some() => {
                        gateway.stop(supervise::STOP).await;
                        failure
                    }
                    other => return finish(signals, settings, other, |drain| gateway.stop(drain)).await,
                }
            }
        };
        if hold(&mut signals, &server, log_id, (Some("gateway"), &health), failure).await?.is_stopped() {
            return Ok(());
        }
    }
}

/// `fieldstream processor`.
pub(crate) async fn processor(
    settings: &Settings,
    registry: Registry,
    create_streams: bool,
    begun: Instant,
) -> Result<(), Failure> {
    let mut signals = Signals::catch()?;
    let server = nats::server(settings)?;
    let options = processor_options(settings, server.clone(), registry);
    let health = options.health.clone();
    let admin = Admin::start(settings.admin, vec![("processor", health.clone())]).await?;
    loop {
        let mut log_id = 0;
        let start = async {
            log_id = nats::topology(&server, settings, create_streams).await?.log_id;
            Processor::start(options.clone()).await.map_err(|error| processor_failure(&error))
        };
        let failure = match unless_stopped(&mut signals, start).await {
            Ok(None) => return Ok(()),
            Err(failure) => failure,
            Ok(Some(mut processor)) => {
                let shared = if settings.processor.ownership == Ownership::Shared {
                    "; shared with others that come"
                } else {
                    ""
                };
                output::line(&format!("processor of {} partitions{shared}", processor.owned().len()))?;
                ready(begun, admin.as_ref())?;
                let failure = tokio::select! {
                    _ = signals.next() => None,
                    error = processor.failed() => Some(processor_failure(&error)),
                };
                match failure {
                    Some(failure) if failure.trouble.is_some() => {
                        processor.stop(supervise::STOP).await;
                        failure
                    }
                    other => return finish(signals, settings, other, |drain| processor.stop(drain)).await,
                }
            }
        };
        if hold(&mut signals, &server, log_id, (Some("processor"), &health), failure).await?.is_stopped() {
            return Ok(());
        }
    }
}

/// `fieldstream storer`.
pub(crate) async fn storer(settings: &Settings, create_streams: bool, begun: Instant) -> Result<(), Failure> {
    let mut signals = Signals::catch()?;
    let server = nats::server(settings)?;
    let Some(directory) = &settings.storer.directory else {
        return Err(Failure::new(Exit::Configuration, "no folder for the LMDB file is named")
            .help("give --data DIR, or set storer.directory"));
    };
    crate::init::create_directory(directory)?;
    let directory = directory
        .canonicalize()
        .map_err(|error| Failure::failed(format_args!("cannot use the folder {}: {error}", directory.display())))?;
    let options = storer_options(settings, server.clone(), &directory);
    let health = options.health.clone();
    let admin = Admin::start(settings.admin, vec![("storer", health.clone())]).await?;
    loop {
        let mut log_id = 0;
        let start = async {
            log_id = nats::topology(&server, settings, create_streams).await?.log_id;
            Storer::start(options.clone()).await.map_err(|error| storer_failure(&error))
        };
        let failure = match unless_stopped(&mut signals, start).await {
            Ok(None) => return Ok(()),
            Err(failure) => failure,
            Ok(Some(mut storer)) => {
                output::line(&storer.database_path().display().to_string())?;
                ready(begun, admin.as_ref())?;
                let failure = tokio::select! {
                    _ = signals.next() => None,
                    error = storer.failed() => Some(storer_failure(&error)),
                };
                match failure {
                    Some(failure) if failure.trouble.is_some() => {
                        storer.stop(supervise::STOP).await;
                        failure
                    }
                    other => return finish(signals, settings, other, |drain| storer.stop(drain)).await,
                }
            }
        };
        // A repair goes on from the file: it is served meanwhile.
        let serving = match failure.trouble {
            None | Some(Trouble::Outrun) => None,
            Some(_) => serve_damaged(options.clone()).await,
        };
        let answers = if serving.is_some() { None } else { Some("storer") };
        let held = hold(&mut signals, &server, log_id, (answers, &health), failure).await;
        if let Some(storer) = serving {
            storer.stop(supervise::STOP).await;
        }
        if held?.is_stopped() {
            return Ok(());
        }
    }
}

/// Serves the file of a storer whose log is damaged, as far as that is possible.
pub(crate) async fn serve_damaged(options: StorerOptions) -> Option<Storer> {
    match Storer::start(StorerOptions { serve_damaged: true, ..options }).await {
        Ok(storer) => Some(storer),
        Err(error) => {
            tracing::error!(%error, "the file cannot be served for a repair");
            None
        }
    }
}

/// How waiting for a repair ended.
enum Held {
    Mended,
    Stopped,
}

impl Held {
    fn is_stopped(&self) -> bool {
        matches!(self, Held::Stopped)
    }
}

/// Waits, not ready, until a log that is damaged is repaired, or until a signal. Answers meanwhile as
/// `role`, unless that runs.
///
/// # Errors
/// The failure, if it is of another kind.
async fn hold(
    signals: &mut Signals,
    server: &Server,
    log_id: u64,
    (role, health): (Option<&'static str>, &Health),
    failure: Failure,
) -> Result<Held, Failure> {
    let Some(trouble) = failure.trouble else { return Err(failure) };
    let answers = role.map(|role| (role, health.clone())).into_iter().collect();
    supervise::raise(health, &failure, trouble);
    let held = tokio::select! {
        () = supervise::until_mended(server, log_id, trouble, answers) => Held::Mended,
        _ = signals.next() => Held::Stopped,
    };
    supervise::clear(health, trouble);
    Ok(held)
}

/// Starts something, unless a signal comes first.
async fn unless_stopped<T>(
    signals: &mut Signals,
    start: impl Future<Output = Result<T, Failure>>,
) -> Result<Option<T>, Failure> {
    tokio::select! {
        started = start => started.map(Some),
        _ = signals.next() => Ok(None),
    }
}

fn ready(begun: Instant, admin: Option<&Admin>) -> Result<(), Failure> {
    if let Some(admin) = admin {
        output::line(&format!("admin http://{}", admin.address))?;
    }
    output::line(&format!("ready in {} ms", begun.elapsed().as_millis()))
}

/// Stops in order, after a signal or after a failure.
async fn finish<F: Future<Output = ()>>(
    signals: Signals,
    settings: &Settings,
    failure: Option<Failure>,
    stop: impl FnOnce(Duration) -> F,
) -> Result<(), Failure> {
    if failure.is_none() {
        eprintln!("stopping; a second signal stops at once");
    }
    signals.next_one_exits();
    stop(settings.up.drain_timeout).await;
    failure.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Inputs, load};
    use fieldstream_nats::Credentials;

    #[test]
    fn defaults_are_those_of_the_roles() {
        let empty = tempfile::NamedTempFile::new().unwrap();
        let (settings, _) = load(&Inputs { file: Some(empty.path().into()), ..Inputs::default() }).unwrap();
        let server = || Server { url: "nats://h:1".into(), credentials: Credentials::None };
        let (ours, theirs) = (storer_options(&settings, server(), Path::new("/d")), StorerOptions::new(server(), "/d"));
        assert_eq!(
            (ours.file_mode, ours.map_bytes, ours.map_bytes_max, ours.commit_floor, ours.history_revisions),
            (theirs.file_mode, theirs.map_bytes, theirs.map_bytes_max, theirs.commit_floor, theirs.history_revisions)
        );
        let ours = processor_options(&settings, server(), Registry::default());
        let theirs = ProcessorOptions::new(server());
        assert_eq!(
            (ours.ownership, ours.cache_bytes_max, ours.pinned_bytes_max),
            (theirs.ownership, theirs.cache_bytes_max, theirs.pinned_bytes_max)
        );
        let gateway = gateway_options(&settings, server(), &GatewayFiles::default()).unwrap();
        assert_eq!(gateway.limits, GatewayLimits::default());
    }
}
