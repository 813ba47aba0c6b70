//! The writer of one document: a window of instructions in flight, in order.

use super::STALLED_AFTER;
use super::measure::{Latencies, Sent};
use super::script::Script;
use crate::args::ReplayArgs;
use crate::client::failure;
use crate::exit::{Exit, Failure};
use fieldstream_client::{Client, How, Pending};
use indicatif::ProgressBar;
use std::collections::VecDeque;
use std::time::Instant;

/// What the writer saw.
pub(super) struct Written {
    pub(super) first: Instant,
    pub(super) last: Instant,
    pub(super) acks: Latencies,
    /// The document's revision after the last instruction, where acknowledgements say it.
    pub(super) revision: Option<u64>,
}

/// Plays the script.
///
/// # Errors
/// If an instruction is refused, or nothing moves for long.
pub(super) async fn write(
    args: &ReplayArgs,
    client: &Client,
    document: &str,
    script: &Script,
    sent: &Sent,
    bar: &ProgressBar,
) -> Result<Written, Failure> {
    let how = How { if_revision: None, ack: args.ack.into() };
    let begun = Instant::now();
    let mut written = Written { first: begun, last: begun, acks: Latencies::default(), revision: None };
    let mut in_flight: VecDeque<(usize, Instant, Pending)> = VecDeque::new();
    let window = usize::try_from(args.window).unwrap_or(1);
    for (index, step) in script.steps.iter().enumerate() {
        while in_flight.len() >= window {
            acknowledge(args, document, &mut in_flight, &mut written, bar).await?;
        }
        let time = sent.now(index);
        let submitting = client.submit(document, step.clone(), how);
        let submitted = tokio::time::timeout(STALLED_AFTER, submitting).await.map_err(|_| stalled(args))?;
        let pending = submitted.map_err(|error| of_step(failure(&args.server, &error), document, index))?;
        in_flight.push_back((index, time, pending));
    }
    while !in_flight.is_empty() {
        acknowledge(args, document, &mut in_flight, &mut written, bar).await?;
    }
    Ok(written)
}

/// Waits for the oldest instruction in flight. Those of one document are carried out in order, so
/// the ones behind it can hardly be resolved earlier.
async fn acknowledge(
    args: &ReplayArgs,
    document: &str,
    in_flight: &mut VecDeque<(usize, Instant, Pending)>,
    written: &mut Written,
    bar: &ProgressBar,
) -> Result<(), Failure> {
    let Some((index, time, pending)) = in_flight.pop_front() else { return Ok(()) };
    let receipt = tokio::time::timeout(STALLED_AFTER, pending).await.map_err(|_| stalled(args))?;
    let receipt = receipt.map_err(|error| of_step(failure(&args.server, &error), document, index))?;
    written.last = Instant::now();
    written.acks.push(written.last - time);
    written.revision = receipt.revision.or(written.revision);
    bar.inc(1);
    Ok(())
}

fn of_step(mut failure: Failure, document: &str, index: usize) -> Failure {
    failure.message = format!("{document}, instruction {}: {}", index + 1, failure.message);
    failure
}

fn stalled(args: &ReplayArgs) -> Failure {
    let waited = humantime::format_duration(STALLED_AFTER);
    Failure::new(Exit::TimedOut, format_args!("nothing from {} for {waited}", args.server.server))
        .help("play it again once the server is back; the document then starts anew")
}
