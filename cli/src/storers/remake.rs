//! `fieldstream storer verify|rebuild`: a storer's file, made again from a copy and the log.

use super::{id, running};
use crate::config::{self, Flags, Inputs, Settings};
use crate::exit::{Exit, Failure};
use crate::nats::{nats_failure, storer_failure};
use crate::operator::OperatorArgs;
use crate::output;
use clap::Args;
use fieldstream_nats::{Connection, RebuildOrder, StorerRegister, Topology, request_rebuild};
use fieldstream_storer::{
    Copies, CopyState, Digests, Place, Replay, ReplayOptions, Store, StoreOptions, StorerError, switch,
};
use serde::de::DeserializeOwned;
use serde_json::json;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub(super) const VERIFY_HELP: &str = "\
The storer may run. Beside its file, in its folder, the newest verified copy is brought to exactly the state the
file was in when it was looked at, and the rows of each partition are compared. Room for a second file is needed
meanwhile. Looking at the file is one read transaction, so a large file grows a little while it is verified.

A copy of a file that was damaged already has the same damage: --from-log replays the whole log, as long as it was
not purged, and --copy an older copy.

Exit codes: 0 they are equal, 1 they differ or the file cannot be read to its end.";

pub(super) const REBUILD_HELP: &str = "\
A running storer does it beside its work: clients and readers notice nothing, and the link `db` then points to the
new file. Programs that read the old one keep it until they open anew.

With --storer it is done for a storer that does not run.";

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The storer's folder, on this machine [default: `storer` in --data, else storer.directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) storer: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
    /// Only look at the file, and print what it holds
    #[arg(long, hide = true, value_name = "HISTORY_REVISIONS")]
    pub(crate) digest: Option<u64>,
    /// Only print the number of the file's storer
    #[arg(long, hide = true)]
    pub(crate) number: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RebuildArgs {
    /// The running storer, as `list` shows it [default: the one there is]
    #[arg(value_name = "ID", value_parser = id, conflicts_with = "storer")]
    pub(crate) id: Option<u64>,
    /// The folder of a storer that does not run, on this machine
    #[arg(long, value_name = "DIR")]
    pub(crate) storer: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

/// What to begin with, where the log is, and how to say what came of it.
#[derive(Debug, Args)]
pub(crate) struct CommonArgs {
    /// Begin with this copy, a folder with data.mdb [default: the newest]
    #[arg(long, value_name = "COPY", conflicts_with = "from_log")]
    pub(crate) copy: Option<PathBuf>,
    /// Begin with the first message of the log, without a copy
    #[arg(long)]
    pub(crate) from_log: bool,
    #[command(flatten)]
    pub(crate) operator: OperatorArgs,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// A storer's folder, and how its files are made.
struct Site {
    directory: PathBuf,
    copies: PathBuf,
    settings: Settings,
}

impl Site {
    fn of(named: Option<&PathBuf>, data: Option<&PathBuf>, config: Option<PathBuf>) -> Result<Site, Failure> {
        let (settings, _) = config::load(&Inputs::from_process(config, Flags::default()))?;
        let directory = named.cloned().or_else(|| Some(data?.join("storer")));
        let directory = directory.or_else(|| settings.storer.directory.clone());
        let directory = directory.unwrap_or_else(|| settings.up.data.join("storer"));
        let directory = directory.canonicalize().map_err(|error| {
            Failure::failed(format_args!("cannot use the folder {}: {error}", directory.display())).help(
                "name the storer's folder with --storer DIR; the commands that make files again run on its machine",
            )
        })?;
        let copies = settings.storer.copies_directory.clone().unwrap_or_else(|| directory.join("copies"));
        Ok(Site { directory, copies, settings })
    }

    /// The newest copy that is not ahead of `upto`, and belongs to the log: one of this storer's, if its
    /// number is known and there is one. Several storers may share a folder of copies.
    fn newest(&self, log_id: u64, storer: Option<u64>, upto: Option<&[u64]>) -> Result<Option<CopyState>, Failure> {
        if !self.copies.is_dir() {
            return Ok(None);
        }
        let copies = Copies::present(self.copies.clone()).list().map_err(|error| Failure::failed(&error))?;
        let fits = |copy: &CopyState| {
            let checkpoints = copy.checkpoints.iter().map(|row| &row.checkpoint);
            checkpoints.enumerate().all(|(lane, checkpoint)| {
                let within = upto.and_then(|upto| upto.get(lane)).is_none_or(|to| checkpoint.events_sequence <= *to);
                checkpoint.log_id == log_id && within
            })
        };
        let is_own = |copy: &&CopyState| Some(copy.format.storer) == storer;
        let fitting: Vec<CopyState> = copies.into_iter().filter(fits).collect();
        Ok(fitting.iter().find(is_own).or(fitting.first()).cloned())
    }

    fn options(&self, copy: Option<PathBuf>, storer: u64) -> ReplayOptions {
        ReplayOptions {
            scratch: self.directory.join(format!(".remake-{:016x}", rand::random::<u64>())),
            file_mode: self.settings.storer.file_mode,
            map_bytes: self.settings.storer.map_bytes,
            map_bytes_max: self.settings.storer.map_bytes_max,
            history_revisions: self.settings.storer.history_revisions,
            copy,
            storer,
        }
    }
}

/// `fieldstream storer verify`.
///
/// # Errors
/// If file and log differ, or could not be compared.
pub(super) async fn verify(args: &VerifyArgs, config: Option<PathBuf>) -> Result<(), Failure> {
    let site = Site::of(args.storer.as_ref(), args.common.operator.data.as_ref(), config.clone())?;
    let database = Store::database_path(&site.directory);
    if let Some(history_revisions) = args.digest {
        let digests = Digests::of_file(&database, history_revisions).map_err(|error| Failure::failed(&error))?;
        return output::json(&json!(digests));
    }
    if args.number {
        let number = Store::number_in(&database).map_err(|error| Failure::failed(&error))?;
        return output::json(&json!(number));
    }
    let begun = Instant::now();
    let file = look_at(&site.directory, site.settings.storer.history_revisions).await?;
    let storer = number_of(&site.directory).await;
    let upto: Vec<u64> = file.lanes.iter().map(|lane| lane.events_sequence).collect();
    let connection = args.common.operator.connect(config).await?;
    let topology = Topology::load(&connection).await.map_err(|error| nats_failure(&error))?;
    let copy = match (&args.common.copy, args.common.from_log) {
        (Some(copy), _) => Some(copy.clone()),
        (None, true) => None,
        (None, false) => site.newest(topology.log_id, storer, Some(&upto))?.map(|copy| copy.path),
    };
    let replayed = replay_to(&connection, site.options(copy.clone(), 0), &upto);
    let (replayed, messages) = replayed.await.map_err(|error| not_replayed(&error))?;
    let report = Report { file, replayed, copy, messages, took: begun.elapsed() };
    report.print(args.common.json)?;
    if report.is_equal() {
        return Ok(());
    }
    Err(Failure::told(Exit::Failed))
}

async fn replay_to(
    connection: &Connection,
    options: ReplayOptions,
    upto: &[u64],
) -> Result<(Digests, u64), StorerError> {
    let mut replay = Replay::begin(connection, options).await?;
    let (done, messages) = (replay.run_to(upto).await, replay.messages());
    let digests = done.and_then(|()| Ok(replay.digests()?));
    replay.discard().await;
    Ok((digests?, messages))
}

fn not_replayed(error: &StorerError) -> Failure {
    let failure = storer_failure(error);
    let message = format!("the file could not be made again to compare it: {}", failure.message);
    Failure { message, trouble: None, ..failure }
}

/// What a file holds.
async fn look_at(directory: &Path, history_revisions: u64) -> Result<Digests, Failure> {
    let broken = |reason: String| {
        let database = Store::database_path(directory);
        Failure::failed(format_args!("the file behind {} cannot be read to its end: {reason}", database.display()))
            .help("stop the storer if it runs, then: fieldstream storer rebuild --storer DIR")
    };
    ask_of(directory, &["--digest", &history_revisions.to_string()]).await?.map_err(broken)
}

/// The number of the storer whose file it is, if that can be read.
async fn number_of(directory: &Path) -> Option<u64> {
    ask_of(directory, &["--number"]).await.ok()?.ok()
}

/// Has a process of its own look at a file, and say something of it as JSON: LMDB takes the process with
/// it when it follows a page number that a damaged file makes up.
async fn ask_of<T: DeserializeOwned>(directory: &Path, what: &[&str]) -> Result<Result<T, String>, Failure> {
    let program =
        std::env::current_exe().map_err(|error| Failure::failed(format_args!("cannot run itself: {error}")))?;
    let mut command = tokio::process::Command::new(program);
    command.args(["storer", "verify"]).args(what).arg("--storer").arg(directory).kill_on_drop(true);
    let output = command.output().await.map_err(|error| Failure::failed(format_args!("cannot run itself: {error}")))?;
    if let Some(signal) = output.status.signal() {
        return Ok(Err(format!("reading it ended with signal {signal}")));
    }
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().find_map(|line| line.strip_prefix("error: ")).unwrap_or("no reason given");
        return Ok(Err(said.to_owned()));
    }
    Ok(serde_json::from_slice(&output.stdout).map_err(|error| error.to_string()))
}

/// What a file was made from.
fn source(copy: Option<&str>, messages: u64) -> String {
    match copy {
        Some(copy) => format!("{copy} and {messages} message(s) of EVENTS behind it"),
        None => format!("the log from its beginning, {messages} message(s) of EVENTS"),
    }
}

struct Report {
    file: Digests,
    replayed: Digests,
    copy: Option<PathBuf>,
    messages: u64,
    took: Duration,
}

impl Report {
    fn differences(&self) -> Vec<Place> {
        self.file.differences(&self.replayed)
    }

    fn is_equal(&self) -> bool {
        self.differences().is_empty() && self.file.bad.is_empty() && self.file.lanes == self.replayed.lanes
    }

    fn print(&self, as_json: bool) -> Result<(), Failure> {
        let differences = self.differences();
        let upto: Vec<u64> = self.file.lanes.iter().map(|lane| lane.events_sequence).collect();
        if as_json {
            return output::json(&json!({
                "equal": self.is_equal(),
                "stored": upto,
                "rows": self.file.rows,
                "rows_replayed": self.replayed.rows,
                "copy": self.copy,
                "messages": self.messages,
                "differences": differences,
                "bad_rows": self.file.bad,
                "took_ms": self.took.as_millis() as u64,
            }));
        }
        let from = source(self.copy.as_ref().map(|copy| copy.display().to_string()).as_deref(), self.messages);
        let ends: Vec<String> = upto.iter().map(u64::to_string).collect();
        output::line(&format!("replayed    {from}"))?;
        output::line(&format!("compared    {} rows, EVENTS up to {}", self.file.rows, ends.join(", ")))?;
        for bad in &self.file.bad {
            output::line(&format!("bad row     {}: {}: {}", bad.database, bad.key, bad.reason))?;
        }
        for place in differences.iter().take(20) {
            output::line(&format!("different   partition {}: {}", place.partition, place.database))?;
        }
        if differences.len() > 20 {
            output::line(&format!("different   and {} more", differences.len() - 20))?;
        }
        let took = format!("{:.1} s", self.took.as_secs_f64());
        if self.is_equal() {
            return output::line(&format!("equal       the file is what the log says ({took})"));
        }
        output::line(&format!("NOT EQUAL   the file is not what the log says ({took})"))?;
        output::line("            `fieldstream storer rebuild` makes it again from the same copy and the log")?;
        output::line("            is the copy sound? `--from-log`, or `--copy` with an older one, tells")
    }
}

/// `fieldstream storer rebuild`.
///
/// # Errors
/// If it was not done; the file there was is in use then as before.
pub(super) async fn rebuild(args: &RebuildArgs, config: Option<PathBuf>) -> Result<(), Failure> {
    let begun = Instant::now();
    let connection = args.common.operator.connect(config.clone()).await?;
    let rebuilt = match &args.storer {
        None => {
            let storer = running(&connection, args.id).await?;
            let copy = args.common.copy.as_ref().map(|copy| copy.display().to_string());
            let order = RebuildOrder { from_log: args.common.from_log, copy };
            eprintln!("storer {storer:016x} makes its file again, beside its work; this may take a while");
            request_rebuild(&connection, storer, &order).await.map_err(|error| nats_failure(&error))?
        }
        Some(directory) => {
            let site = Site::of(Some(directory), None, config)?;
            rebuild_stopped(&connection, &site, &args.common).await?
        }
    };
    if args.common.json {
        return output::json(&json!(rebuilt));
    }
    let upto: Vec<String> = rebuilt.stored.iter().map(u64::to_string).collect();
    output::line(&format!("made again  from {}", source(rebuilt.copy.as_deref(), rebuilt.messages)))?;
    output::line(&format!("in use      {}, EVENTS up to {}", rebuilt.generation, upto.join(", ")))?;
    output::line(&format!("the old one {}; remove it when no program reads it any more", rebuilt.before))?;
    output::line(&format!("took        {:.1} s", begun.elapsed().as_secs_f64()))
}

/// The number of a file that is made in the place of one whose number cannot be read: a new one. What is
/// kept for the old one would be kept for ever.
async fn another_number(connection: &Connection, directory: &Path) -> Result<u64, Failure> {
    let register = StorerRegister::open(connection).await.map_err(|error| nats_failure(&error))?;
    let (host, database) = (uname(), Store::database_path(directory).display().to_string());
    let entries = register.list().await.map_err(|error| nats_failure(&error))?;
    let old: Vec<_> = entries.iter().filter(|entry| entry.host == host && entry.database == database).collect();
    eprintln!("the number of the old file's storer cannot be read: the new file is another storer's");
    match &old[..] {
        [] => eprintln!("`fieldstream storer forget ID` for the old one, see `fieldstream storer list`"),
        old => old.iter().for_each(|entry| eprintln!("run `fieldstream storer forget {:016x}`", entry.storer)),
    }
    Ok(rand::random())
}

fn uname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

async fn rebuild_stopped(
    connection: &Connection,
    site: &Site,
    source: &CommonArgs,
) -> Result<fieldstream_nats::Rebuilt, Failure> {
    let topology = Topology::load(connection).await.map_err(|error| nats_failure(&error))?;
    let files = StoreOptions {
        directory: site.directory.clone(),
        file_mode: site.settings.storer.file_mode,
        map_bytes: site.settings.storer.map_bytes,
        history_revisions: site.settings.storer.history_revisions,
    };
    Store::check_unused(&files.directory).map_err(|error| Failure::failed(&error))?;
    let number = number_of(&site.directory).await;
    let copy = match (&source.copy, source.from_log) {
        (Some(copy), _) => Some(copy.clone()),
        (None, true) => None,
        (None, false) => site.newest(topology.log_id, number, None)?.map(|copy| copy.path),
    };
    let storer = match number {
        Some(storer) => storer,
        None => another_number(connection, &files.directory).await?,
    };
    let before = Store::database_path(&files.directory);
    let before = before.canonicalize().unwrap_or(before);
    let fail = |error: &StorerError| Failure { trouble: None, ..storer_failure(error) };
    let options = site.options(copy.clone(), storer);
    let mut replay = Replay::begin(connection, options).await.map_err(|error| fail(&error))?;
    if let Err(error) = replay.run_to_end().await {
        replay.discard().await;
        return Err(fail(&error));
    }
    let (stored, messages) = (replay.positions().map_err(|error| fail(&error))?, replay.messages());
    let generation = replay.finish(|rebuilt| switch(&files, rebuilt)).await;
    let generation = generation.map_err(|error| Failure::failed(&error))?.display().to_string();
    let (copy, before) = (copy.map(|copy| copy.display().to_string()), before.display().to_string());
    Ok(fieldstream_nats::Rebuilt { generation, before, copy, messages, stored })
}
