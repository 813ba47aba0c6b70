//! `fieldstream dead-letters`: records that could not be carried out because of themselves.

mod render;
mod retry;

use crate::exit::{Exit, Failure};
use crate::nats::nats_failure;
use crate::operator::OperatorArgs;
use crate::output;
use clap::{Args, Subcommand};
use fieldstream_nats::{Connection, ReadClient, ReadError, Topology};
use fieldstream_shared::dead_letter::{DeadLetter, DeadLetterId};
use fieldstream_shared::read::{AnswerBody, Query, Request};
use std::path::PathBuf;
use std::time::Duration;

/// How long a storer may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// Letters asked for at a time.
const PAGE: u64 = 100;

#[derive(Debug, Subcommand)]
pub(crate) enum DeadLettersCommand {
    /// List them, the oldest first
    List(ListArgs),
    /// Print all there is to know of one, with the record as it stands in the log
    Show(LetterArgs),
    /// Send the instruction once more, under a number of its own, and wait for its outcome
    Retry(RetryArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub(crate) operator: OperatorArgs,
    /// End after so many
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1000)]
    pub(crate) count: usize,
    /// Print JSON, one object per line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LetterArgs {
    /// Which one, as `list` shows it
    #[arg(value_name = "ID")]
    pub(crate) id: DeadLetterId,
    #[command(flatten)]
    pub(crate) operator: OperatorArgs,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RetryArgs {
    #[command(flatten)]
    pub(crate) letter: LetterArgs,
    /// How long to wait for the outcome
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = crate::config::parse::duration)]
    pub(crate) timeout: Duration,
}

/// `fieldstream dead-letters …`.
///
/// # Errors
/// If nobody can be asked, if there is no such letter, or if the retry came to nothing.
pub(crate) async fn run(command: &DeadLettersCommand, config: Option<PathBuf>) -> Result<(), Failure> {
    match command {
        DeadLettersCommand::List(args) => {
            let desk = Desk::open(&args.operator, config).await?;
            let letters = desk.list(args.count).await?;
            if args.json {
                return letters.iter().try_for_each(|letter| output::json(&render::json(letter)));
            }
            if letters.is_empty() {
                eprintln!("no dead letters");
            }
            output::bytes(render::table(&letters).as_bytes())
        }
        DeadLettersCommand::Show(args) => {
            let letter = Desk::open(&args.operator, config).await?.find(args.id).await?;
            if args.json {
                return output::json(&render::json(&letter));
            }
            output::bytes(render::text(&letter).as_bytes())
        }
        DeadLettersCommand::Retry(args) => {
            let desk = Desk::open(&args.letter.operator, config).await?;
            let letter = desk.find(args.letter.id).await?;
            retry::run(&desk, &letter, args).await
        }
    }
}

/// Whom to ask.
struct Desk {
    connection: Connection,
    reads: ReadClient,
    topology: Topology,
}

impl Desk {
    async fn open(operator: &OperatorArgs, config: Option<PathBuf>) -> Result<Desk, Failure> {
        let connection = operator.connect(config).await?;
        let topology = Topology::load(&connection).await.map_err(|error| nats_failure(&error))?;
        let reads = ReadClient::new(&connection).await.map_err(|error| nats_failure(&error))?;
        Ok(Desk { connection, reads, topology })
    }

    async fn ask(&self, lane: u16, query: Query) -> Result<AnswerBody, Failure> {
        let answer = self.reads.request(&Request { lane, min_sequence: 0, query }, ANSWER).await;
        let answer = answer.map_err(|error| match error {
            ReadError::NoStorer => Failure::new(Exit::Unavailable, "no storer answers; dead letters are in its file")
                .help("`fieldstream status` shows who is there"),
            ReadError::TimedOut(_) => Failure::new(Exit::TimedOut, &error),
            ReadError::Malformed(_) => Failure::failed(format_args!("{error}; is an older program running there?")),
        })?;
        Ok(answer.body)
    }

    async fn letters(&self, lane: u16, from: (u64, u32), limit: u64) -> Result<Vec<DeadLetter>, Failure> {
        match self.ask(lane, Query::DeadLetters { from, limit }).await? {
            AnswerBody::DeadLetters(letters) => Ok(letters),
            _ => Err(Failure::failed("a storer answered something else; is an older program running there?")),
        }
    }

    async fn list(&self, count: usize) -> Result<Vec<DeadLetter>, Failure> {
        let mut all = Vec::new();
        for lane in 0..self.topology.lanes {
            let mut from = (0, 0);
            while all.len() < count {
                let page = self.letters(lane, from, PAGE.min((count - all.len()) as u64)).await?;
                let Some(last) = page.last() else { break };
                from = (last.id.sequence, last.id.event_index.saturating_add(1));
                all.extend(page);
            }
        }
        Ok(all)
    }

    async fn find(&self, id: DeadLetterId) -> Result<DeadLetter, Failure> {
        let missing = || {
            Failure::failed(format_args!("there is no dead letter {id}"))
                .help("`fieldstream dead-letters list` shows those there are")
        };
        if id.lane >= self.topology.lanes {
            return Err(missing());
        }
        let found = self.letters(id.lane, (id.sequence, id.event_index), 1).await?;
        found.into_iter().find(|letter| letter.id == id).ok_or_else(missing)
    }
}
