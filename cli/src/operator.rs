//! How commands for operators find the NATS server.

use crate::config::{self, Flags, Inputs};
use crate::exit::{Exit, Failure};
use crate::nats;
use clap::Args;
use fieldstream_nats::{Connection, Server};
use std::path::{Path, PathBuf};

/// The file in the data directory in which a running `up` says where everything is.
pub(crate) const READY_FILE: &str = "up.json";

/// Where the deployment is.
#[derive(Debug, Clone, Args)]
pub(crate) struct OperatorArgs {
    /// URL of the NATS server; user and password may stand in it [default: nats.url of the
    /// configuration, else the server of the `fieldstream up` that runs on --data]
    #[arg(long = "nats", value_name = "URL")]
    pub(crate) url: Option<String>,
    /// A NATS credentials file
    #[arg(long = "nats-creds", value_name = "FILE")]
    pub(crate) credentials: Option<PathBuf>,
    /// The file that `up --ready-file` has written
    #[arg(long, value_name = "FILE", conflicts_with = "url")]
    pub(crate) ready_file: Option<PathBuf>,
    /// Data directory of a running `fieldstream up` [default: fieldstream-data]
    #[arg(long, value_name = "DIR", conflicts_with_all = ["url", "ready_file"])]
    pub(crate) data: Option<PathBuf>,
}

impl OperatorArgs {
    /// Connects to the server the arguments name.
    ///
    /// # Errors
    /// If none is named or found, or it does not answer.
    pub(crate) async fn connect(&self, config: Option<PathBuf>) -> Result<Connection, Failure> {
        let server = self.server(config)?;
        Connection::connect(&server, "fieldstream operator").await.map_err(|error| nats::nats_failure(&error))
    }

    fn server(&self, config: Option<PathBuf>) -> Result<Server, Failure> {
        if let Some(file) = &self.ready_file {
            return read_ready_file(file);
        }
        if let Some(data) = &self.data {
            return read_ready_file(&data.join(READY_FILE));
        }
        let credentials = self.credentials.as_ref().map(|path| path.display().to_string());
        let flags = Flags::default().set("nats.url", "--nats", self.url.as_ref()).set(
            "nats.credentials_file",
            "--nats-creds",
            credentials,
        );
        let (settings, _) = config::load(&Inputs::from_process(config, flags))?;
        if settings.nats.url.is_some() {
            return nats::server(&settings);
        }
        read_ready_file(&settings.up.data.join(READY_FILE))
    }
}

fn read_ready_file(file: &Path) -> Result<Server, Failure> {
    let cannot = |reason: &dyn std::fmt::Display| {
        Failure::new(
            Exit::Unavailable,
            format_args!("no running `fieldstream up` is known: {}: {reason}", file.display()),
        )
        .help("give --data DIR of a running `fieldstream up`, or --nats URL of the server")
    };
    let text = std::fs::read_to_string(file).map_err(|error| cannot(&error))?;
    let ready: serde_json::Value = serde_json::from_str(&text).map_err(|error| cannot(&error))?;
    let url = ready["nats"].as_str().ok_or_else(|| cannot(&"it names no NATS server"))?;
    Ok(nats::server_at(url))
}
