//! `fieldstream status`: who is there, who owns what, how far everybody is, and what is wrong.

mod overview;
mod render;

use crate::exit::{Exit, Failure};
use crate::nats::nats_failure;
use crate::operator::OperatorArgs;
use crate::output;
use clap::Args;
use fieldstream_nats::{Connection, LogError, LogNow, Topology, collect_status, lane_streams};
use overview::Overview;
use std::path::PathBuf;
use std::time::Duration;

/// How long answers are collected. Roles answer at once; a loaded machine may take a while.
const COLLECT: Duration = Duration::from_millis(400);

/// Between looking at the streams and asking the roles, which count twice a second: what was in
/// the log before and is not done by then is backlog, what is on its way is not.
const SETTLE: Duration = Duration::from_millis(600);

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) operator: OperatorArgs,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `fieldstream status`.
///
/// # Errors
/// If NATS cannot be asked, or if something is wrong with what it tells: exit code 1.
pub(crate) async fn run(args: &StatusArgs, config: Option<PathBuf>) -> Result<(), Failure> {
    let connection = args.operator.connect(config).await?;
    let overview = look(&connection).await?;
    if args.json {
        output::json(&overview.json())?;
    } else {
        output::bytes(render::text(&overview).as_bytes())?;
    }
    if overview.problems.is_empty() { Ok(()) } else { Err(Failure::told(Exit::Failed)) }
}

async fn look(connection: &Connection) -> Result<Overview, Failure> {
    let topology = Topology::load(connection).await.map_err(|error| nats_failure(&error))?;
    let streams = lane_streams(connection, &topology).await.map_err(|error| nats_failure(&error))?;
    tokio::time::sleep(SETTLE).await;
    let members = collect_status(connection, COLLECT).await.map_err(|error| nats_failure(&error))?;
    let mut overview = Overview::new(topology, streams, members);
    if LogNow::load(connection).await.map_err(|error| nats_failure(&error))?.repairing {
        overview.problems.insert(0, LogError::Unfinished.to_string());
    }
    Ok(overview)
}
