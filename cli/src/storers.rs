//! `fieldstream storer …`: the storers there are, their copies, and care of their files.

mod remake;

use crate::client::render::time;
use crate::config::{self, Flags, Inputs};
use crate::exit::{Exit, Failure};
use crate::nats::nats_failure;
use crate::operator::OperatorArgs;
use crate::output;
use crate::up::addresses::bytes;
use clap::{Args, Subcommand};
use fieldstream_nats::{StorerEntry, StorerRegister, request_snapshot};
use fieldstream_storer::{StoreOptions, restore};
use serde_json::json;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A storer renews its entry far more often than this.
const PRESENT: Duration = Duration::from_secs(15);

#[derive(Debug, Subcommand)]
pub(crate) enum StorerCommand {
    /// List the storers that the log is kept for, and their copies
    List(ListArgs),
    /// Keep nothing for a storer any more that will not come back
    Forget(ForgetArgs),
    /// Have a storer make a verified copy now, and print where it is
    Snapshot(SnapshotArgs),
    /// Put a copy in the place of a storer's file; the storer must not run
    Restore(RestoreArgs),
    /// Replay the log from a copy and compare the result with a storer's file
    #[command(after_long_help = remake::VERIFY_HELP)]
    Verify(remake::VerifyArgs),
    /// Make a storer's file again from a copy and the log, and go on with the new one
    #[command(after_long_help = remake::REBUILD_HELP)]
    Rebuild(remake::RebuildArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub(crate) operator: OperatorArgs,
    /// Print JSON, one object per line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ForgetArgs {
    /// The storer, as `list` shows it
    #[arg(value_name = "ID", value_parser = id)]
    pub(crate) storer: u64,
    /// Also if it is the last one
    #[arg(long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) operator: OperatorArgs,
}

#[derive(Debug, Args)]
pub(crate) struct SnapshotArgs {
    /// The storer, as `list` shows it [default: the one there is]
    #[arg(value_name = "ID", value_parser = id)]
    pub(crate) storer: Option<u64>,
    #[command(flatten)]
    pub(crate) operator: OperatorArgs,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// The copy: a folder with data.mdb, such as copies/latest
    #[arg(value_name = "COPY")]
    pub(crate) copy: PathBuf,
    /// The storer's folder
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// For a storer beside the one the copy is of: gives the file a number of its own
    #[arg(long)]
    pub(crate) as_new: bool,
    /// Also if the folder has a file already; that stays beside the new one
    #[arg(long)]
    pub(crate) yes: bool,
}

fn id(text: &str) -> Result<u64, String> {
    let parsed = (text.len() <= 16).then(|| u64::from_str_radix(text, 16).ok()).flatten();
    parsed.ok_or_else(|| "expected the storer's number as `fieldstream storer list` shows it".to_owned())
}

/// `fieldstream storer …`.
///
/// # Errors
/// If it could not be done.
pub(crate) async fn run(command: &StorerCommand, config: Option<PathBuf>) -> Result<(), Failure> {
    match command {
        StorerCommand::List(args) => list(args, config).await,
        StorerCommand::Forget(args) => forget(args, config).await,
        StorerCommand::Snapshot(args) => snapshot(args, config).await,
        StorerCommand::Restore(args) => restored(args, config),
        StorerCommand::Verify(args) => remake::verify(args, config).await,
        StorerCommand::Rebuild(args) => remake::rebuild(args, config).await,
    }
}

fn age(entry: &StorerEntry) -> Duration {
    let now_us = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64);
    Duration::from_micros(now_us.saturating_sub(entry.seen_at_us))
}

async fn list(args: &ListArgs, config: Option<PathBuf>) -> Result<(), Failure> {
    let connection = args.operator.connect(config).await?;
    let entries = entries(&connection).await?;
    if args.json {
        return entries.iter().try_for_each(|entry| {
            let mut value = json!(entry);
            value["storer"] = json!(format!("{:016x}", entry.storer));
            value["log_id"] = json!(format!("{:016x}", entry.log_id));
            value["present"] = json!(age(entry) < PRESENT);
            output::json(&value)
        });
    }
    if entries.is_empty() {
        eprintln!("no storer has registered yet");
    }
    for entry in &entries {
        let seen = match age(entry) {
            _ if entry.temporary => "being made again".to_owned(),
            age if age < PRESENT => "present".to_owned(),
            age => format!("absent for {}", humantime::format_duration(Duration::from_secs(age.as_secs()))),
        };
        output::line(&format!("{:016x}  {}  {}  {seen}", entry.storer, entry.host, entry.database))?;
        for (lane, marks) in entry.lanes.iter().enumerate() {
            output::line(&format!("  lane {lane}: has EVENTS up to {}", marks.events_sequence))?;
        }
        for copy in &entry.copies {
            let upto: Vec<_> = copy.lanes.iter().map(|marks| marks.events_sequence.to_string()).collect();
            let (at, size) = (time(copy.made_at_us), bytes(copy.bytes));
            output::line(&format!("  copy of {at}, {size}, EVENTS up to {}: {}", upto.join(", "), copy.path))?;
        }
    }
    Ok(())
}

async fn entries(connection: &fieldstream_nats::Connection) -> Result<Vec<StorerEntry>, Failure> {
    let register = StorerRegister::open(connection).await.map_err(|error| nats_failure(&error))?;
    register.list().await.map_err(|error| nats_failure(&error))
}

async fn forget(args: &ForgetArgs, config: Option<PathBuf>) -> Result<(), Failure> {
    let connection = args.operator.connect(config).await?;
    let entries = entries(&connection).await?;
    let missing = || {
        Failure::failed(format_args!("there is no storer {:016x}", args.storer))
            .help("`fieldstream storer list` shows those there are")
    };
    let entry = entries.iter().find(|entry| entry.storer == args.storer).ok_or_else(missing)?;
    if age(entry) < PRESENT {
        return Err(Failure::failed(format_args!("storer {:016x} is running", args.storer))
            .help("stop it first; it would register again"));
    }
    if !entry.temporary && entries.iter().filter(|entry| !entry.temporary).count() == 1 && !args.yes {
        return Err(Failure::failed(
            "it is the last storer: without it, and without its copies, nothing but the log knows the documents",
        )
        .help("say --yes if that is meant"));
    }
    let register = StorerRegister::open(&connection).await.map_err(|error| nats_failure(&error))?;
    register.remove(args.storer).await.map_err(|error| nats_failure(&error))?;
    output::line(&format!("storer {:016x} is forgotten; the log is kept for it no longer", args.storer))
}

/// The storer that was named, or the only one that is running.
async fn running(connection: &fieldstream_nats::Connection, named: Option<u64>) -> Result<u64, Failure> {
    if let Some(storer) = named {
        return Ok(storer);
    }
    let present: Vec<_> =
        entries(connection).await?.into_iter().filter(|entry| !entry.temporary && age(entry) < PRESENT).collect();
    match &present[..] {
        [one] => Ok(one.storer),
        [] => Err(Failure::new(Exit::Unavailable, "no storer is running")),
        _ => Err(Failure::usage("several storers are running; name one").help("`fieldstream storer list` shows them")),
    }
}

async fn snapshot(args: &SnapshotArgs, config: Option<PathBuf>) -> Result<(), Failure> {
    let connection = args.operator.connect(config).await?;
    let storer = running(&connection, args.storer).await?;
    let copy = request_snapshot(&connection, storer).await.map_err(|error| nats_failure(&error))?;
    if args.json {
        return output::json(&json!(copy));
    }
    output::line(&copy.path)
}

fn restored(args: &RestoreArgs, config: Option<PathBuf>) -> Result<(), Failure> {
    let (settings, _) = config::load(&Inputs::from_process(config, Flags::default()))?;
    let options = StoreOptions {
        directory: args.data.clone(),
        file_mode: settings.storer.file_mode,
        map_bytes: settings.storer.map_bytes,
        history_revisions: settings.storer.history_revisions,
    };
    let as_new = args.as_new.then(rand::random);
    let state = restore(&args.copy, &options, as_new, args.yes).map_err(|error| Failure::failed(&error))?;
    let upto: Vec<_> = state.checkpoints.iter().map(|row| row.checkpoint.events_sequence.to_string()).collect();
    output::line(&format!(
        "storer {:016x}: {} rows, EVENTS up to {}; it goes on from there when it is started",
        as_new.unwrap_or(state.format.storer),
        state.rows,
        upto.join(", ")
    ))
}
