//! The command line.

mod flags;
#[cfg(test)]
mod tests;

use crate::bench::BenchArgs;
use crate::dead_letters::DeadLettersCommand;
use crate::init::InitArgs;
use crate::repair::RepairArgs;
use crate::report::ReportArgs;
use crate::status::StatusArgs;
use crate::storers::StorerCommand;
use crate::trace::TraceArgs;
use clap::{Args, Parser, Subcommand, ValueEnum};
use fieldstream_shared::outcome::AckLevel;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Event-sourced documents for fleets of devices, on NATS JetStream.
#[derive(Debug, Parser)]
#[command(name = "fieldstream", version, about, after_help = crate::exit::HELP, max_term_width = 100)]
pub(crate) struct Cli {
    /// The configuration file [default: fieldstream.toml, if there is one]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The least severe messages shown: error, warn, info, debug, trace, off
    #[arg(long, global = true, value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run everything on this machine: nats-server, gateway, processor and storer
    Up(UpArgs),
    /// Write a commented configuration file, certificates and a token file
    Init(InitArgs),
    /// Run a gateway against a NATS server
    Gateway(GatewayArgs),
    /// Run a processor against a NATS server
    Processor(ProcessorArgs),
    /// Run a storer against a NATS server, or look after storers
    Storer(StorerArgs),
    /// Replace a document by a text or a structured value
    Put(PutArgs),
    /// Append to a text
    Append(AppendArgs),
    /// Edit a text: at a position, delete code points and insert others
    Splice(SpliceArgs),
    /// Merge JSON into a structured document (RFC 7396: null removes)
    Merge(MergeArgs),
    /// Add to a number in a structured document
    Add(AddArgs),
    /// Delete a document
    Delete(DeleteArgs),
    /// Print a document
    Get(GetArgs),
    /// List documents
    Ls(LsArgs),
    /// Follow documents and print every update
    Watch(WatchArgs),
    /// Play editing traces (.json, .json.gz) or CSV files and check that every watcher agrees
    Replay(ReplayArgs),
    /// Send at a given rate, come what may, and measure how long acknowledgements and deliveries take
    Bench(BenchArgs),
    /// Make reports from a storer's file, whether the server runs or not
    Report(ReportArgs),
    /// Have instructions traced, and say where their time goes, hop by hop
    Trace(TraceArgs),
    /// Say who is there, who owns what, how far everybody is, and what is wrong
    Status(StatusArgs),
    /// Look whether the log is whole, and mend it from the storers' files if it is not
    Repair(RepairArgs),
    /// Look at what could not be carried out because of itself, and try again
    #[command(subcommand)]
    DeadLetters(DeadLettersCommand),
    /// Look at the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print versions and how the program was built
    Version {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print every key with the value that counts
    Show {
        /// Say where each value came from
        #[arg(long)]
        origin: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Say whether the configuration is right
    Check,
}

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// The data directory [default: fieldstream-data]
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Address for TLS and QUIC; port 0 takes a free one [default: 127.0.0.1:7443]
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<String>,
    /// Address for TCP without encryption, or off [default: 127.0.0.1:7440]
    #[arg(long, value_name = "ADDR")]
    pub(crate) tcp: Option<String>,
    /// Address of /livez, /readyz and /metrics, or off [default: off]
    #[arg(long, value_name = "ADDR")]
    pub(crate) admin: Option<String>,
    /// Run N simulated devices
    #[arg(long, value_name = "N")]
    pub(crate) demo: Option<String>,
    /// Write all addresses to this file as JSON once everything runs
    #[arg(long, value_name = "FILE")]
    pub(crate) ready_file: Option<PathBuf>,
    /// durable (everything acknowledged survives a power cut) or fast [default: durable]
    #[arg(long, value_name = "PROFILE")]
    pub(crate) profile: Option<String>,
    /// Pairs of streams; fixed when the data directory is made [default: 1]
    #[arg(long, value_name = "N")]
    pub(crate) lanes: Option<String>,
    /// The nats-server program [env: FIELDSTREAM_NATS_SERVER]
    #[arg(long, value_name = "FILE")]
    pub(crate) nats_server: Option<PathBuf>,
    /// The token file [default: tokens.toml in the data directory]
    #[arg(long, value_name = "FILE")]
    pub(crate) tokens: Option<PathBuf>,
}

/// What every role run by itself needs.
#[derive(Debug, Args)]
pub(crate) struct NatsArgs {
    /// URL of the NATS server; user and password may stand in it
    #[arg(long = "nats", value_name = "URL")]
    pub(crate) url: Option<String>,
    /// A NATS credentials file
    #[arg(long = "nats-creds", value_name = "FILE")]
    pub(crate) credentials: Option<PathBuf>,
    /// Address of /livez, /readyz and /metrics, or off [default: off]
    #[arg(long, value_name = "ADDR")]
    pub(crate) admin: Option<String>,
    /// Create the streams if they are not there
    #[arg(long)]
    pub(crate) create_streams: bool,
    /// Pairs of streams, with --create-streams [default: 1]
    #[arg(long, value_name = "N", requires = "create_streams")]
    pub(crate) lanes: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct GatewayArgs {
    #[command(flatten)]
    pub(crate) nats: NatsArgs,
    /// Address for TLS and QUIC; needs --cert and --key [default: 127.0.0.1:7443]
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<String>,
    /// Address for TCP without encryption, or off [default: 127.0.0.1:7440]
    #[arg(long, value_name = "ADDR")]
    pub(crate) tcp: Option<String>,
    /// PEM file with the certificate chain; without it there is no TLS and no QUIC
    #[arg(long, value_name = "FILE")]
    pub(crate) cert: Option<PathBuf>,
    /// PEM file with the certificate's key
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// The token file; without it only this machine may connect
    #[arg(long, value_name = "FILE")]
    pub(crate) tokens: Option<PathBuf>,
    /// Storers that must have an instruction on disk before it counts as stored [default: 1]
    #[arg(long, value_name = "N")]
    pub(crate) stored_copies: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ProcessorArgs {
    #[command(flatten)]
    pub(crate) nats: NatsArgs,
    /// The partitions it owns: shared (among all that share), all, or such as 0-127,200 [default: shared]
    #[arg(long, value_name = "SET")]
    pub(crate) partitions: Option<String>,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct StorerArgs {
    #[command(subcommand)]
    pub(crate) command: Option<StorerCommand>,
    #[command(flatten)]
    pub(crate) nats: NatsArgs,
    /// Folder of the LMDB file
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
}

/// Where the server is and who asks.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServerArgs {
    /// tcp://host:port, tls://host:port or quic://host:port
    #[arg(long, value_name = "URL", env = "FIELDSTREAM_SERVER")]
    pub(crate) server: String,
    /// PEM file of the CA to trust, for tls and quic
    #[arg(long, value_name = "FILE", env = "FIELDSTREAM_CA")]
    pub(crate) ca: Option<PathBuf>,
    /// The token
    #[arg(long, value_name = "TOKEN", env = "FIELDSTREAM_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// The client's id [default: a new one every time]
    #[arg(long, value_name = "ID", env = "FIELDSTREAM_CLIENT_ID")]
    pub(crate) client_id: Option<String>,
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub(crate) timeout: Duration,
    /// Print JSON: one object, or one per line
    #[arg(long)]
    pub(crate) json: bool,
}

/// When an instruction counts as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Ack {
    /// It is in the log
    Logged,
    /// It was carried out
    Applied,
    /// Its effect is in the file that reports read
    Stored,
}

impl From<Ack> for AckLevel {
    fn from(ack: Ack) -> AckLevel {
        match ack {
            Ack::Logged => AckLevel::Logged,
            Ack::Applied => AckLevel::Applied,
            Ack::Stored => AckLevel::Stored,
        }
    }
}

/// What every instruction can have.
#[derive(Debug, Clone, Args)]
pub(crate) struct HowArgs {
    /// When it counts as done
    #[arg(long, value_name = "LEVEL", value_enum, default_value = "applied")]
    pub(crate) ack: Ack,
    /// Only if the document has this revision; 0: only if it does not exist
    #[arg(long, value_name = "N")]
    pub(crate) if_rev: Option<u64>,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PutArgs {
    /// The document's id
    pub(crate) document: String,
    /// The text; @FILE takes a file's content, - takes stdin [default: -]
    #[arg(allow_hyphen_values = true, conflicts_with = "json_body")]
    pub(crate) text: Option<String>,
    /// A JSON object instead: the document becomes structured (@FILE and - work, too)
    #[arg(long, value_name = "JSON")]
    pub(crate) json_body: Option<String>,
    #[command(flatten)]
    pub(crate) how: HowArgs,
}

#[derive(Debug, Args)]
pub(crate) struct AppendArgs {
    /// The document's id
    pub(crate) document: String,
    /// The text; @FILE takes a file's content, - takes stdin [default: -]
    #[arg(allow_hyphen_values = true)]
    pub(crate) text: Option<String>,
    #[command(flatten)]
    pub(crate) how: HowArgs,
}

#[derive(Debug, Args)]
pub(crate) struct SpliceArgs {
    /// The document's id
    pub(crate) document: String,
    /// Code points before the edit
    #[arg(required_unless_present = "edits", conflicts_with = "edits")]
    pub(crate) position: Option<u64>,
    /// Code points to delete
    #[arg(required_unless_present = "edits")]
    pub(crate) deleted: Option<u64>,
    /// Text to insert
    #[arg(required_unless_present = "edits", allow_hyphen_values = true)]
    pub(crate) text: Option<String>,
    /// Several edits at once: [[position, deleted, "text"], …]
    #[arg(long, value_name = "JSON")]
    pub(crate) edits: Option<String>,
    #[command(flatten)]
    pub(crate) how: HowArgs,
}

#[derive(Debug, Args)]
pub(crate) struct MergeArgs {
    /// The document's id
    pub(crate) document: String,
    /// A JSON object; @FILE takes a file's content, - takes stdin
    pub(crate) patch: String,
    #[command(flatten)]
    pub(crate) how: HowArgs,
}

#[derive(Debug, Args)]
pub(crate) struct AddArgs {
    /// The document's id
    pub(crate) document: String,
    /// Keys that lead to the number, joined by dots; then the amount
    #[arg(value_name = "PATH AMOUNT", num_args = 1..=2, required = true, allow_negative_numbers = true)]
    pub(crate) path_and_amount: Vec<String>,
    /// The keys as JSON instead of PATH, for keys with dots: ["a.b","c"]
    #[arg(long, value_name = "JSON")]
    pub(crate) path_json: Option<String>,
    #[command(flatten)]
    pub(crate) how: HowArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// The document's id
    pub(crate) document: String,
    #[command(flatten)]
    pub(crate) how: HowArgs,
}

#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// The document's id
    pub(crate) document: String,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// Only documents whose id begins with this
    #[arg(default_value = "", hide_default_value = true)]
    pub(crate) prefix: String,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// The documents' ids
    #[arg(required = true, value_name = "DOCUMENT")]
    pub(crate) documents: Vec<String>,
    /// End after so many updates (the state at the start is not one)
    #[arg(short = 'n', long, value_name = "N")]
    pub(crate) count: Option<u64>,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ReplayArgs {
    /// Editing traces (.json, .json.gz) or CSV files
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// The document to write; with several files ID/NAME, the file's name without its ending
    #[arg(long, value_name = "ID")]
    pub(crate) doc: String,
    /// Watchers of each document, every one on a connection of its own
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) watchers: usize,
    /// Instructions in flight per writer
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=fieldstream_shared::limits::NUMBER_WINDOW))]
    pub(crate) window: u64,
    /// When an instruction counts as done
    #[arg(long, value_name = "LEVEL", value_enum, default_value = "applied")]
    pub(crate) ack: Ack,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    crate::config::parse::duration(text)
}

/// The host names and addresses a listener's certificate should be for besides the usual ones.
pub(crate) fn hosts_of(listen: IpAddr) -> Vec<String> {
    if listen.is_unspecified() { Vec::new() } else { vec![listen.to_string()] }
}
