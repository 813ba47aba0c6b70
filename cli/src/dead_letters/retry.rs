//! `fieldstream dead-letters retry`.
//!
//! The instruction is logged again as one of a client of its own, named after the letter, whose
//! numbers are remembered like those of any client: a retry that is repeated, for whatever reason,
//! is carried out once. Only when it was refused or died again does the next one get a new number.

use super::{Desk, RetryArgs};
use crate::exit::{Exit, Failure};
use crate::output;
use fieldstream_nats::{BatchWriter, Log};
use fieldstream_shared::dead_letter::DeadLetter;
use fieldstream_shared::ids::{ClientId, DocumentId};
use fieldstream_shared::instruction::Content;
use fieldstream_shared::marks::Mark;
use fieldstream_shared::outcome::Outcome;
use fieldstream_shared::partition::Partition;
use fieldstream_shared::read::{AnswerBody, Query};
use fieldstream_shared::record::{Action, BatchBuilder, NewRecord, Record};
use serde_json::json;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// All retries of one letter are of one epoch.
const EPOCH: u64 = 1;
const LOOK_EVERY: Duration = Duration::from_millis(50);

pub(super) async fn run(desk: &Desk, letter: &DeadLetter, args: &RetryArgs) -> Result<(), Failure> {
    let cannot = |why: &dyn std::fmt::Display| Failure::failed(format_args!("{} cannot be retried: {why}", letter.id));
    let record =
        Record::decode(&letter.raw).map_err(|error| cannot(&format_args!("its record is no record ({error})")))?;
    let Action::Instruct { if_revision, operation } = record.action else {
        return Err(cannot(&"the gateway refused it; there is nothing to carry out"));
    };
    let client = ClientId::new(&format!("dead-letter/{}", letter.id)).map_err(|error| cannot(&error))?;
    let before = mark(desk, letter.id.lane, &record.document, &client).await?;
    if let Some((_, outcome @ Outcome::Applied { .. })) = before.window.get(&before.highest) {
        eprintln!("it was retried before");
        return told(letter, &record.document, outcome, args.letter.json);
    }
    let number = before.highest + 1;
    let now_us = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64);
    let new = NewRecord {
        client: &client,
        epoch: EPOCH,
        number,
        settled: number,
        resent: false,
        received_at_us: now_us,
        content: Content { document: &record.document, if_revision, operation },
        refuse: None,
        trace: None,
    };
    let mut batch = BatchBuilder::default();
    batch.push(&new.encode());
    let writer = BatchWriter::new(&desk.connection, Log::Instructions, letter.id.lane);
    let logged = writer.append(batch.finish().into()).await;
    logged.map_err(|error| Failure::new(Exit::Unavailable, format_args!("it could not be logged: {error}")))?;
    let until = Instant::now() + args.timeout;
    while Instant::now() < until {
        let mark = mark(desk, letter.id.lane, &record.document, &client).await?;
        if let Some((_, outcome)) = mark.window.get(&number) {
            return told(letter, &record.document, outcome, args.letter.json);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Err(Failure::new(Exit::TimedOut, "it is logged, and no storer knows its outcome yet")
        .help("the same command again waits on; it is carried out once all the same"))
}

async fn mark(desk: &Desk, lane: u16, document: &DocumentId, client: &ClientId) -> Result<Mark, Failure> {
    let marks = vec![(Partition::of(document), client.clone())];
    match desk.ask(lane, Query::GetMany { documents: Vec::new(), marks }).await? {
        AnswerBody::Values { mut marks, .. } => Ok(marks.pop().unwrap_or_default()),
        _ => Err(Failure::failed("a storer answered something else; is an older program running there?")),
    }
}

fn told(letter: &DeadLetter, document: &DocumentId, outcome: &Outcome, as_json: bool) -> Result<(), Failure> {
    let (name, revision, code) = match outcome {
        Outcome::Applied { revision } => ("applied", Some(*revision), None),
        Outcome::Refused(code) => ("refused", None, Some(*code)),
        Outcome::Dead(code) => ("dead", None, Some(*code)),
    };
    if as_json {
        output::json(&json!({
            "id": letter.id.to_string(),
            "document": document.as_str(),
            "outcome": name,
            "revision": revision,
            "code_name": code.map(|code| code.name()),
        }))?;
    }
    match (revision, code) {
        (Some(revision), _) if !as_json => output::line(&format!("applied as revision {revision} of {document}")),
        (None, Some(code)) => Err(Failure::failed(format_args!("{}: it is {name} again: {}", letter.id, code.name()))),
        _ => Ok(()),
    }
}
