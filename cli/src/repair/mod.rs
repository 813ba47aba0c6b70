//! `fieldstream repair`: makes a damaged log one again, from what the most advanced storer has and
//! from the instructions that are left (`docs/LOG.md`, "Repair").

mod look;
mod plan;
mod render;
mod steps;

use crate::exit::{Exit, Failure};
use crate::nats::nats_failure;
use crate::operator::OperatorArgs;
use crate::output;
use clap::Args;
use fieldstream_nats::{Connection, LogError, NatsError, RepairRecord};
pub(crate) use look::OtherFiles;
use look::look;
use serde_json::json;
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
pub(crate) use steps::repair;

/// Holes looked for in one stream.
const HOLES_MAX: usize = 100;

#[derive(Debug, Args)]
pub(crate) struct RepairArgs {
    #[command(flatten)]
    pub(crate) operator: OperatorArgs,
    /// Only look; exit code 1 if the log is damaged
    #[arg(long)]
    pub(crate) check: bool,
    /// If no storer has a file of this log: go on from that of this storer, of another log
    #[arg(long, value_name = "STORER", value_parser = storer_number)]
    pub(crate) from: Option<u64>,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

fn storer_number(text: &str) -> Result<u64, String> {
    u64::from_str_radix(text, 16).map_err(|error| format!("a storer's number is 16 hex digits: {error}"))
}

/// `fieldstream repair`.
///
/// # Errors
/// If the log cannot be looked at or mended; with `--check` also if it is damaged.
pub(crate) async fn run(args: &RepairArgs, config: Option<PathBuf>) -> Result<(), Failure> {
    let connection = args.operator.connect(config).await?;
    let others = OtherFiles { named: args.from, ..OtherFiles::default() };
    let damage = find_damage(args, &connection, others).await?;
    if damage.is_empty() {
        return Ok(());
    }
    if args.check {
        return Err(Failure::told(Exit::Failed));
    }
    if !args.yes && !confirmed() {
        return Err(Failure::failed("nothing was done").help("say --yes to repair without being asked"));
    }
    let record = repair(&connection, others).await?;
    if args.json {
        return output::json(&json!({ "damaged": true, "damage": damage, "repaired": true, "record": record }));
    }
    output::bytes(render::repaired(&record).as_bytes())
}

/// Says what is wrong, and gives it back.
async fn find_damage(args: &RepairArgs, connection: &Connection, others: OtherFiles) -> Result<Vec<String>, Failure> {
    let begun = RepairRecord::load(connection).await.map_err(failed)?.is_some_and(|record| record.is_under_way());
    // What is decided is done, whatever there is to be seen meanwhile.
    let (damage, text, fits) = if begun {
        let begun = LogError::Unfinished.to_string();
        (vec![begun.clone()], begun + "\n", Ok(()))
    } else {
        let found = look(connection, others).await?;
        let damage = found.damage();
        let text = render::found(&found, &damage);
        let fits = if damage.is_empty() { Ok(()) } else { found.must_fit() };
        (damage, text, fits)
    };
    if !args.json {
        output::bytes(text.as_bytes())?;
    } else if args.check || damage.is_empty() {
        output::json(&json!({ "damaged": !damage.is_empty(), "damage": damage, "repaired": false }))?;
    }
    if args.check { Ok(damage) } else { fits.map(|()| damage) }
}

/// Whether a storer has a file of the log that is in NATS.
///
/// # Errors
/// If NATS cannot be asked, or no storer answers.
pub(crate) async fn has_storer(connection: &Connection) -> Result<bool, Failure> {
    Ok(look(connection, OtherFiles::default()).await?.must_fit().is_ok())
}

/// What a repair did, in words.
pub(crate) fn told(record: &RepairRecord) -> String {
    render::repaired(record)
}

fn confirmed() -> bool {
    if !std::io::stdin().is_terminal() {
        return false;
    }
    eprint!("Repair it? Clients are cut off meanwhile; it cannot be undone. [y/N] ");
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).is_ok() && answer.trim().eq_ignore_ascii_case("y")
}

fn failed(error: NatsError) -> Failure {
    nats_failure(&error)
}
