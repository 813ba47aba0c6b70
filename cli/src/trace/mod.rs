//! `fieldstream trace`: where the time of an instruction goes, hop by hop.

mod figures;
mod json;
mod path;
mod render;

use crate::args::{ServerArgs, duration};
use crate::client::{connect, failure, within};
use crate::exit::Failure;
use crate::output;
use clap::Args;
use fieldstream_client::{Client, ClientError, Clocks, Code, How, Operation, Trace};
use figures::Figures;
use path::Journey;
use render::Look;
use std::time::Duration;

/// Questions about clocks before the first instruction. The gateway asks the other roles meanwhile.
const CLOCK_QUESTIONS: usize = 24;
const CLOCK_PAUSE: Duration = Duration::from_millis(12);

/// Arguments of `trace`.
#[derive(Debug, Args)]
pub(crate) struct TraceArgs {
    /// The document to write: it gets a new revision for each instruction, but keeps its content
    pub(crate) document: String,
    /// Trace so many, one after the other
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) count: u32,
    /// Pause between two of them
    #[arg(long, value_name = "DURATION", default_value = "20ms", value_parser = duration)]
    pub(crate) pause: Duration,
    /// Append this text each time, instead of nothing
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) append: Option<String>,
    /// How long to wait for stamps behind the outcome; those of storers come last
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration)]
    pub(crate) wait: Duration,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// `fieldstream trace`.
pub(crate) async fn run(args: &TraceArgs) -> Result<(), Failure> {
    let client = connect(&args.server).await?;
    let knows_traces = align(&args.server, &client).await?;
    if !knows_traces {
        eprintln!("note: the gateway is of a version that does not trace; only the client's own times are known");
    }
    let mut operation = Operation::Append(args.append.clone().unwrap_or_default());
    let mut traces = Vec::new();
    for n in 0..args.count {
        if n > 0 {
            tokio::time::sleep(args.pause).await;
        }
        // An answer now and then keeps the clocks known as well as at first.
        let wait = if knows_traces { args.wait } else { Duration::ZERO };
        let traced = trace(args, &client, &operation, wait).await;
        let traced = match traced {
            Err(ClientError::Refused(Code::WRONG_KIND)) if args.append.is_none() => {
                operation = Operation::Merge(Default::default());
                trace(args, &client, &operation, wait).await
            }
            other => other,
        };
        let traced = traced.map_err(|error| failure(&args.server, &error))?;
        if knows_traces {
            within(&args.server, client.ask_clocks()).await?;
        }
        let journey = Journey::new(&traced.stamps, &client.clocks());
        if args.server.json {
            output::json(&json::instruction(&args.document, &traced, &journey))?;
        }
        traces.push((traced, journey));
    }
    report(args, &traces, &client.clocks())?;
    let _ = tokio::time::timeout(Duration::from_millis(200), client.close(Duration::ZERO)).await;
    Ok(())
}

async fn trace(args: &TraceArgs, client: &Client, operation: &Operation, wait: Duration) -> Result<Trace, ClientError> {
    let tracing = client.trace(&args.document, operation.clone(), How::default(), wait);
    tokio::time::timeout(args.server.timeout + wait, tracing).await.unwrap_or(Err(ClientError::TimedOut))
}

/// Finds out how the clocks stand. False if the server does not know traces.
async fn align(server: &ServerArgs, client: &Client) -> Result<bool, Failure> {
    for _ in 0..CLOCK_QUESTIONS {
        if !within(server, client.ask_clocks()).await? {
            return Ok(false);
        }
        tokio::time::sleep(CLOCK_PAUSE).await;
    }
    within(server, client.ask_clocks()).await
}

fn report(args: &TraceArgs, traces: &[(Trace, Journey)], clocks: &Clocks) -> Result<(), Failure> {
    let journeys: Vec<Journey> = traces.iter().map(|(_, journey)| journey.clone()).collect();
    let figures = Figures::of(&journeys);
    if args.server.json {
        return output::json(&json::summary(journeys.len(), &figures, clocks));
    }
    let Some((trace, journey)) = figures::median(&journeys).and_then(|median| traces.get(median)) else {
        return Ok(());
    };
    let look = Look { columns: output::columns(), colours: output::colours_on_stdout() };
    let several = (journeys.len() > 1).then_some(&figures);
    let mut lines = vec![render::head(&args.document, trace, journey, several.map(|of| (journeys.len(), of)))];
    lines.push(String::new());
    lines.push(render::waterfall(journey, several, look));
    lines.push(render::legend().to_owned());
    lines.extend(render::critical(journey));
    lines.push(render::clocks(journey, clocks));
    lines.extend(render::gaps(journey));
    output::line(&lines.join("\n"))
}
