//! The configuration as values of their own types.

use super::layers::Layers;
use super::parse;
use fieldstream_processor::Ownership;
use fieldstream_storer::HistoryRule;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// What acknowledged means for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// On disk before it is acknowledged.
    Durable,
    /// With the operating system before it is acknowledged.
    Fast,
}

impl Profile {
    /// The word of the configuration.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Profile::Durable => "durable",
            Profile::Fast => "fast",
        }
    }
}

/// Section `nats`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Nats {
    pub(crate) url: Option<String>,
    pub(crate) credentials_file: Option<PathBuf>,
    pub(crate) lanes: u16,
    /// Whether `lanes` was chosen, and not just left at its default.
    pub(crate) lanes_given: bool,
    pub(crate) log_bytes_max: Option<u64>,
}

/// Section `gateway`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Gateway {
    pub(crate) listen: SocketAddr,
    pub(crate) tcp: Option<SocketAddr>,
    pub(crate) certificate_file: Option<PathBuf>,
    pub(crate) key_file: Option<PathBuf>,
    pub(crate) tokens_file: Option<PathBuf>,
    pub(crate) require_token_on_loopback: bool,
    pub(crate) stored_copies: usize,
    pub(crate) connections_max: usize,
    pub(crate) watched_bytes_max: usize,
}

/// Section `processor`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Processor {
    pub(crate) ownership: Ownership,
    pub(crate) cache_bytes_max: usize,
    pub(crate) pinned_bytes_max: usize,
}

/// Section `storer`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Storer {
    pub(crate) directory: Option<PathBuf>,
    pub(crate) file_mode: u32,
    pub(crate) map_bytes: usize,
    pub(crate) commit_floor: Duration,
    pub(crate) copies_directory: Option<PathBuf>,
    pub(crate) copy_every: Duration,
    pub(crate) copies_kept: usize,
    pub(crate) map_bytes_max: usize,
    pub(crate) history_revisions: u64,
    /// Zero: whatever their age.
    pub(crate) history_age_max: Duration,
    /// 0: by the room there is.
    pub(crate) history_bytes_max: u64,
    pub(crate) history_keep: Vec<HistoryRule>,
    pub(crate) client_marks_kept: Duration,
}

/// Section `up`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Up {
    pub(crate) data: PathBuf,
    pub(crate) profile: Profile,
    pub(crate) demo: usize,
    pub(crate) ready_file: Option<PathBuf>,
    pub(crate) nats_server: Option<PathBuf>,
    pub(crate) drain_timeout: Duration,
}

/// Section `log`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Log {
    pub(crate) level: String,
    pub(crate) format: String,
}

/// The whole configuration.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    pub(crate) nats: Nats,
    pub(crate) gateway: Gateway,
    pub(crate) processor: Processor,
    pub(crate) storer: Storer,
    pub(crate) up: Up,
    /// Where the admin endpoint listens.
    pub(crate) admin: Option<SocketAddr>,
    pub(crate) log: Log,
}

/// What is remembered of a client must outlast every gateway that could still hold something it sent.
const MARKS_KEPT_MIN: Duration = Duration::from_secs(86_400);

impl Settings {
    /// Reads settings from layers whose values have the right form, and checks what concerns
    /// several keys.
    ///
    /// # Errors
    /// Every problem there is, one line each.
    pub(crate) fn read(layers: &Layers) -> Result<Settings, Vec<String>> {
        let settings = typed(layers).map_err(|problem| vec![problem])?;
        let problems = settings.contradictions(layers);
        if problems.is_empty() { Ok(settings) } else { Err(problems) }
    }

    fn contradictions(&self, layers: &Layers) -> Vec<String> {
        let mut problems = Vec::new();
        let mut complain = |key: &str, why: &str| {
            problems.push(format!("`{key}` ({}): {why}", layers.origin(key)));
        };
        let gateway = &self.gateway;
        match (&gateway.certificate_file, &gateway.key_file) {
            (Some(_), None) => complain("gateway.certificate_file", "needs gateway.key_file beside it"),
            (None, Some(_)) => complain("gateway.key_file", "needs gateway.certificate_file beside it"),
            _ => {}
        }
        if gateway.tcp.is_some_and(|tcp| tcp.port() != 0 && tcp == gateway.listen) {
            complain("gateway.tcp", "must differ from gateway.listen");
        }
        if self.processor.pinned_bytes_max > self.processor.cache_bytes_max {
            complain("processor.pinned_bytes_max", "must not be larger than processor.cache_bytes_max");
        }
        if !self.storer.client_marks_kept.is_zero() && self.storer.client_marks_kept < MARKS_KEPT_MIN {
            complain("storer.client_marks_kept", "must be 0s, for ever, or at least 1 day");
        }
        for (key, file) in [
            ("gateway.certificate_file", &gateway.certificate_file),
            ("gateway.key_file", &gateway.key_file),
            ("gateway.tokens_file", &gateway.tokens_file),
            ("nats.credentials_file", &self.nats.credentials_file),
            ("up.nats_server", &self.up.nats_server),
        ] {
            if let Some(file) = file
                && let Err(error) = std::fs::File::open(file)
            {
                complain(key, &format!("cannot read {}: {error}", file.display()));
            }
        }
        problems
    }
}

fn typed(layers: &Layers) -> Result<Settings, String> {
    let text = |key: &str| layers.value(key).to_owned();
    let path = |key: &str| Some(layers.value(key)).filter(|v| !v.is_empty()).map(PathBuf::from);
    let bytes = |key: &str| parse::size(layers.value(key));
    let memory = |key: &str| bytes(key).and_then(|n| usize::try_from(n).map_err(|e| e.to_string()));
    let integer = |key: &str| layers.value(key).parse::<u32>().map_err(|e| e.to_string());
    Ok(Settings {
        nats: Nats {
            url: parse::nats_url(layers.value("nats.url"))?,
            credentials_file: path("nats.credentials_file"),
            lanes: u16::try_from(integer("nats.lanes")?).map_err(|e| e.to_string())?,
            lanes_given: *layers.origin("nats.lanes") != super::Origin::Default,
            log_bytes_max: Some(bytes("nats.log_bytes_max")?).filter(|n| *n > 0),
        },
        gateway: Gateway {
            listen: parse::address(layers.value("gateway.listen"))?,
            tcp: parse::optional_address(layers.value("gateway.tcp"))?,
            certificate_file: path("gateway.certificate_file"),
            key_file: path("gateway.key_file"),
            tokens_file: path("gateway.tokens_file"),
            require_token_on_loopback: layers.value("gateway.require_token_on_loopback") == "true",
            stored_copies: integer("gateway.stored_copies")? as usize,
            connections_max: integer("gateway.connections_max")? as usize,
            watched_bytes_max: memory("gateway.watched_bytes_max")?,
        },
        processor: Processor {
            ownership: parse::ownership(layers.value("processor.partitions"))?,
            cache_bytes_max: memory("processor.cache_bytes_max")?,
            pinned_bytes_max: memory("processor.pinned_bytes_max")?,
        },
        storer: Storer {
            directory: path("storer.directory"),
            file_mode: parse::file_mode(layers.value("storer.file_mode"))?,
            map_bytes: memory("storer.map_bytes")?,
            commit_floor: parse::duration(layers.value("storer.commit_floor"))?,
            copies_directory: path("storer.copies_directory"),
            copy_every: parse::duration(layers.value("storer.copy_every"))?,
            client_marks_kept: parse::duration(layers.value("storer.client_marks_kept"))?,
            copies_kept: integer("storer.copies_kept")? as usize,
            map_bytes_max: memory("storer.map_bytes_max")?,
            history_revisions: integer("storer.history_revisions")?.into(),
            history_age_max: parse::duration(layers.value("storer.history_age_max"))?,
            history_bytes_max: bytes("storer.history_bytes_max")?,
            history_keep: parse::history_rules(layers.value("storer.history_keep"))?,
        },
        up: Up {
            data: PathBuf::from(text("up.data")),
            profile: if layers.value("up.profile") == "fast" { Profile::Fast } else { Profile::Durable },
            demo: integer("up.demo")? as usize,
            ready_file: path("up.ready_file"),
            nats_server: path("up.nats_server"),
            drain_timeout: parse::duration(layers.value("up.drain_timeout"))?,
        },
        admin: parse::optional_address(layers.value("admin.listen"))?,
        log: Log { level: text("log.level"), format: text("log.format") },
    })
}
