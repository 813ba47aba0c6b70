//! `fieldstream up`: a nats-server of its own and every role, in one process.
//!
//! The roles talk only through NATS here, too: what works in one process works in many.

pub(crate) mod addresses;
mod binary;
pub(crate) mod demo;
mod lock;
mod mend;

use crate::admin::Admin;
use crate::args::hosts_of;
use crate::config::{Profile, Settings};
use crate::exit::{Exit, Failure};
use crate::init::{TlsFiles, create_directory, ensure_tls, ensure_tokens};
use crate::nats::{gateway_failure, must_be_open, nats_failure, processor_failure, storer_failure, url_with_login};
use crate::operator::READY_FILE;
use crate::output;
use crate::roles::{self, GatewayFiles};
use crate::signals::Signals;
use crate::supervise;
use addresses::Overview;
use demo::Demo;
use fieldstream_client::ClientOptions;
use fieldstream_gateway::{Addresses, Gateway};
use fieldstream_nats::{
    ChildError, ChildOptions, Connection, Health, NatsChild, NatsError, Server, Topology, TopologyOptions,
    child::disk_bytes,
};
use fieldstream_processor::Processor;
use fieldstream_shared::registry::Registry;
use fieldstream_storer::{Storer, StorerOptions};
use lock::DirectoryLock;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The log gets this share of the free disk when it is created; the rest is for documents, their
/// history and everybody else.
const LOG_SHARE_OF_DISK: u64 = 2;
/// Less than this is no log worth having, whatever the disk says.
const LOG_BYTES_MIN: u64 = 256 << 20;
/// More than this is never needed at once: the log is purged behind its readers.
const LOG_BYTES_MAX: u64 = 1 << 40;

/// Everything that runs, in the order in which it was started.
#[derive(Default)]
struct Running {
    nats: Option<NatsChild>,
    storer: Option<Storer>,
    processor: Option<Processor>,
    gateway: Option<Gateway>,
    demo: Option<Demo>,
    admin: Option<Admin>,
    site: Option<Site>,
}

/// What the roles of one `up` are started with, once and again.
struct Site {
    /// With the addresses that were taken, so that clients find the gateway again.
    settings: Settings,
    server: Server,
    registry: Registry,
    /// The storer's.
    directory: PathBuf,
    data: PathBuf,
    files: GatewayFiles,
    /// Of gateway, processor, storer.
    healths: [Health; 3],
    log_id: u64,
}

impl Site {
    fn storer_options(&self) -> StorerOptions {
        let mut options = roles::storer_options(&self.settings, self.server.clone(), &self.directory);
        options.health = self.healths[2].clone();
        options
    }
}

/// `fieldstream up`.
///
/// # Errors
/// If something cannot be started, or a role stops for good.
pub(crate) async fn run(settings: &Settings, registry: Registry, begun: Instant) -> Result<(), Failure> {
    let mut signals = Signals::catch()?;
    roles::raise_open_files();
    if let Some(file) = &settings.up.ready_file {
        // One of an earlier run would send its readers to addresses that are no more.
        let _ = std::fs::remove_file(file);
    }
    let data = data_directory(&settings.up.data)?;
    let _lock = DirectoryLock::take(&data)?;
    let _ = std::fs::remove_file(data.join(READY_FILE));
    let mut running = Running::default();
    let outcome = tokio::select! {
        started = start(&mut running, settings, registry, &data, begun) => started,
        _ = signals.next() => Ok(false),
    };
    let ready = matches!(outcome, Ok(true));
    let failure = match outcome {
        Ok(true) => tokio::select! {
            _ = signals.next() => None,
            failure = keep_running(&mut running) => Some(failure),
        },
        Ok(false) => None,
        Err(failure) => Some(failure),
    };
    if let Some(failure) = &failure {
        tracing::debug!(message = %failure.message, "stopping because of a failure");
    } else {
        eprintln!("stopping; a second signal stops at once");
    }
    signals.next_one_exits();
    let _ = std::fs::remove_file(data.join(READY_FILE));
    if let Some(file) = settings.up.ready_file.as_ref().filter(|_| ready) {
        let _ = std::fs::remove_file(file);
    }
    running.stop(settings.up.drain_timeout).await;
    failure.map_or(Ok(()), Err)
}

fn data_directory(directory: &Path) -> Result<PathBuf, Failure> {
    create_directory(directory)?;
    directory
        .canonicalize()
        .map_err(|error| Failure::failed(format_args!("cannot use the folder {}: {error}", directory.display())))
}

/// Starts everything and says so; `true` once all runs.
async fn start(
    running: &mut Running,
    settings: &Settings,
    registry: Registry,
    data: &Path,
    begun: Instant,
) -> Result<bool, Failure> {
    let files = files(settings, data)?;
    let healths = [(); 3].map(|()| Health::new());
    let roles: Vec<_> = ["gateway", "processor", "storer"].into_iter().zip(healths.clone()).collect();
    running.admin = Admin::start(settings.admin, roles).await?;
    let binary = binary::find(settings.up.nats_server.as_deref())?;
    let profile = match settings.up.profile {
        Profile::Durable => fieldstream_nats::Profile::Durable,
        Profile::Fast => fieldstream_nats::Profile::Fast,
    };
    let child = NatsChild::start(ChildOptions { binary, directory: data.join("nats"), profile }).await;
    let child = running.nats.insert(child.map_err(|error| child_failure(&error))?);
    child.watch(healths.to_vec());
    let server = child.server().clone();
    let (nats_version, nats_pid) = (child.version().to_owned(), child.pid());
    let topology = topology(settings, &server, data).await?;

    let directory = settings.storer.directory.clone().unwrap_or_else(|| data.join("storer"));
    let site = Site {
        settings: settings.clone(),
        server: server.clone(),
        registry,
        directory: data_directory(&directory)?,
        data: data.to_owned(),
        files: files.gateway.clone(),
        healths,
        log_id: topology.log_id,
    };
    running.site = Some(site);
    running.start_roles_or_wait().await?;
    let Some((addresses, database)) = running.addresses() else { return Ok(false) };

    let overview = Overview {
        data: data.to_owned(),
        profile: settings.up.profile,
        tcp: addresses.tcp,
        tls: addresses.tls,
        quic: addresses.quic,
        nats: url_with_login(&server),
        nats_version,
        nats_pid,
        lanes: topology.lanes,
        stream_bytes: topology.stream_bytes,
        disk_free_bytes: disk_bytes(data).map(|(free, _)| free),
        database,
        ca_file: files.ca,
        token_file: files.tokens,
        token_on_loopback: settings.gateway.require_token_on_loopback,
        demo: settings.up.demo,
        admin: running.admin.as_ref().map(|admin| admin.address),
    };
    running.demo = start_demo(settings, &overview);
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("fieldstream"));
    output::line(&overview.banner(&program))?;
    output::line(&format!("ready in {} ms", begun.elapsed().as_millis()))?;
    addresses::write_ready_file(&data.join(READY_FILE), &overview.ready_json())?;
    if let Some(file) = &settings.up.ready_file {
        addresses::write_ready_file(file, &overview.ready_json())?;
    }
    Ok(true)
}

/// The files of one `up`.
struct Files {
    gateway: GatewayFiles,
    tokens: PathBuf,
    ca: Option<PathBuf>,
}

fn files(settings: &Settings, data: &Path) -> Result<Files, Failure> {
    let gateway = &settings.gateway;
    let (tls, ca) = match (&gateway.certificate_file, &gateway.key_file) {
        (Some(certificate), Some(key)) => {
            // `init` puts its CA beside the certificate.
            let ca = TlsFiles::in_directory(certificate.parent().unwrap_or(Path::new("."))).ca;
            ((certificate.clone(), key.clone()), ca.canonicalize().ok())
        }
        _ => {
            let made = ensure_tls(&data.join("tls"), &hosts_of(gateway.listen.ip()))?;
            ((made.certificate, made.key), Some(made.ca))
        }
    };
    let tokens = match &gateway.tokens_file {
        Some(file) => file.canonicalize().unwrap_or_else(|_| file.clone()),
        None => {
            let file = data.join("tokens.toml");
            ensure_tokens(&file)?;
            file
        }
    };
    Ok(Files { gateway: GatewayFiles { tls: Some(tls), tokens: Some(tokens.clone()) }, tokens, ca })
}

async fn topology(settings: &Settings, server: &fieldstream_nats::Server, data: &Path) -> Result<Topology, Failure> {
    let connection = Connection::connect(server, "fieldstream up").await.map_err(|error| nats_failure(&error))?;
    let from_disk = || disk_bytes(data).map(|(free, _)| (free / LOG_SHARE_OF_DISK).clamp(LOG_BYTES_MIN, LOG_BYTES_MAX));
    let options = TopologyOptions {
        lanes: settings.nats.lanes_given.then_some(settings.nats.lanes),
        max_bytes_total: settings.nats.log_bytes_max,
        first_bytes_total: from_disk().unwrap_or(LOG_BYTES_MIN),
        ..TopologyOptions::default()
    };
    Topology::create(&connection, &options).await.map_err(|error: NatsError| nats_failure(&error))
}

fn child_failure(error: &ChildError) -> Failure {
    let failure = Failure::new(Exit::Unavailable, error);
    match error {
        ChildError::InUse(_) => failure.help("it belongs to an earlier `fieldstream up`; it ends by itself, try again"),
        _ => failure,
    }
}

fn start_demo(settings: &Settings, overview: &Overview) -> Option<Demo> {
    if settings.up.demo == 0 {
        return None;
    }
    let Some(tcp) = overview.tcp else {
        eprintln!("note: the demo devices use plain TCP, and `gateway.tcp` is off; none are started");
        return None;
    };
    let mut options = ClientOptions::default();
    if overview.token_on_loopback {
        options.token = first_token(&overview.token_file);
    }
    Some(Demo::start(settings.up.demo, &addresses::url("tcp", tcp), &options))
}

fn first_token(file: &Path) -> Option<String> {
    let table: toml::Table = std::fs::read_to_string(file).ok()?.parse().ok()?;
    Some(table.get("token")?.as_array()?.first()?.get("token")?.as_str()?.to_owned())
}

/// Until something happens after which all must end. Roles that find the log damaged, or that it ran
/// away from, are started again when that is over.
async fn keep_running(running: &mut Running) -> Failure {
    loop {
        let failure = running.failed().await;
        let Some(trouble) = failure.trouble else { return failure };
        running.stop_roles(supervise::STOP).await;
        running.wait_for_repair(&failure, trouble).await;
        if let Err(failure) = running.start_roles_or_wait().await {
            return failure;
        }
    }
}

impl Running {
    /// Starts the roles; while the log is damaged, waits.
    async fn start_roles_or_wait(&mut self) -> Result<(), Failure> {
        loop {
            let Err(failure) = self.start_roles().await else { return Ok(()) };
            let Some(trouble) = failure.trouble else { return Err(failure) };
            self.stop_roles(supervise::STOP).await;
            self.wait_for_repair(&failure, trouble).await;
        }
    }

    async fn start_roles(&mut self) -> Result<(), Failure> {
        let Some(site) = &mut self.site else { return Ok(()) };
        let connection = Connection::connect(&site.server, "fieldstream up").await;
        must_be_open(&connection.map_err(|error| nats_failure(&error))?).await?;
        let storer = Storer::start(site.storer_options()).await;
        self.storer = Some(storer.map_err(|error| storer_failure(&error))?);
        let mut options = roles::processor_options(&site.settings, site.server.clone(), site.registry.clone());
        options.health = site.healths[1].clone();
        let processor = Processor::start(options).await;
        self.processor = Some(processor.map_err(|error| processor_failure(&error))?);
        let mut options = roles::gateway_options(&site.settings, site.server.clone(), &site.files)?;
        options.health = site.healths[0].clone();
        let gateway = Gateway::start(options).await.map_err(|error| gateway_failure(&error))?;
        let addresses = gateway.addresses();
        site.settings.gateway.tcp = addresses.tcp;
        site.settings.gateway.listen = addresses.tls.unwrap_or(site.settings.gateway.listen);
        self.gateway = Some(gateway);
        Ok(())
    }

    fn addresses(&self) -> Option<(Addresses, PathBuf)> {
        Some((self.gateway.as_ref()?.addresses(), self.storer.as_ref()?.database_path()))
    }

    /// Stops the roles, but neither NATS nor the admin endpoint.
    async fn stop_roles(&mut self, drain: Duration) {
        if let Some(gateway) = self.gateway.take() {
            gateway.stop(drain).await;
        }
        if let Some(processor) = self.processor.take() {
            processor.stop(drain).await;
        }
        if let Some(storer) = self.storer.take() {
            storer.stop(drain).await;
        }
    }

    /// Resolves when a role cannot go on.
    async fn failed(&mut self) -> Failure {
        let (gateway, processor, storer) = (&mut self.gateway, &mut self.processor, &mut self.storer);
        let gateway = async {
            match gateway {
                Some(gateway) => gateway_failure(&gateway.failed().await),
                None => std::future::pending().await,
            }
        };
        let processor = async {
            match processor {
                Some(processor) => processor_failure(&processor.failed().await),
                None => std::future::pending().await,
            }
        };
        let storer = async {
            match storer {
                Some(storer) => storer_failure(&storer.failed().await),
                None => std::future::pending().await,
            }
        };
        let (role, mut failure) = tokio::select! {
            failure = gateway => ("gateway", failure),
            failure = processor => ("processor", failure),
            failure = storer => ("storer", failure),
        };
        failure.message = format!("{role}: {}", failure.message);
        // Whatever the reason, from here on it is a failure of something that ran.
        failure.exit = Some(Exit::Failed);
        failure
    }

    /// Stops everything in the order in which work flows: no new instructions, then apply what is
    /// logged, then store what is applied, then the log itself.
    async fn stop(mut self, drain: Duration) {
        drop(self.demo.take());
        self.stop_roles(drain).await;
        if let Some(nats) = self.nats {
            nats.stop().await;
        }
    }
}
