//! `fieldstream repair`: makes a damaged log one again, from what the most advanced storer has and
//! from the instructions that are left (`docs/LOG.md`, "Repair").

mod plan;
mod render;

use crate::exit::{Exit, Failure};
use crate::nats::nats_failure;
use crate::operator::OperatorArgs;
use crate::output;
use clap::Args;
use fieldstream_nats::{
    Connection, LaneLoss, Log, NatsError, ProgressReader, ReadClient, RepairRecord, RepairState, StorerEntry,
    StorerRegister, Topology, Workshop,
};
use fieldstream_shared::event::message_hash;
use fieldstream_shared::read::{AnswerBody, Checkpoint, Query, Request};
use fieldstream_shared::record::{BatchBuilder, decode_batch};
use plan::{LaneFound, damage_of, decide};
use serde_json::json;
use std::collections::BTreeSet;
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Storers announce themselves five times a second.
const LISTEN: Duration = Duration::from_millis(1_500);
const ANSWER: Duration = Duration::from_secs(3);
/// Once nobody writes any more, storers must stand still for so long.
const STILL: Duration = Duration::from_millis(1_500);
/// Holes looked for in one stream.
const HOLES_MAX: usize = 100;

#[derive(Debug, Args)]
pub(crate) struct RepairArgs {
    #[command(flatten)]
    pub(crate) operator: OperatorArgs,
    /// Only look; exit code 1 if the log is damaged
    #[arg(long)]
    pub(crate) check: bool,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// What the log was found to be.
pub(crate) struct Found {
    storer: u64,
    log_id: u64,
    topology: Topology,
    lanes: Vec<LaneFound>,
}

impl Found {
    /// What is wrong, one sentence each.
    fn damage(&self) -> Vec<String> {
        let mut damage: Vec<String> = (0..).zip(&self.lanes).flat_map(|(lane, found)| damage_of(lane, found)).collect();
        if self.log_id != self.topology.log_id {
            let (found, wanted) = (self.log_id, self.topology.log_id);
            damage.insert(0, format!("the storers' files are of log {found:016x}, NATS has log {wanted:016x}"));
        }
        damage
    }
}

/// `fieldstream repair`.
///
/// # Errors
/// If the log cannot be looked at or mended; with `--check` also if it is damaged.
pub(crate) async fn run(args: &RepairArgs, config: Option<PathBuf>) -> Result<(), Failure> {
    let connection = args.operator.connect(config).await?;
    let unfinished = RepairRecord::load(&connection).await.map_err(failed)?.filter(RepairRecord::is_under_way);
    if unfinished.is_some() {
        eprintln!("a repair was begun and not finished; it is continued");
    }
    let found = look(&connection).await?;
    let damage = found.damage();
    if args.json && (args.check || (damage.is_empty() && unfinished.is_none())) {
        output::json(&json!({ "damaged": !damage.is_empty(), "damage": damage, "repaired": false }))?;
    } else if !args.json {
        output::bytes(render::found(&found, &damage).as_bytes())?;
    }
    if damage.is_empty() && unfinished.is_none() {
        return Ok(());
    }
    if args.check {
        return Err(Failure::told(Exit::Failed));
    }
    if !args.yes && !confirmed() {
        return Err(Failure::failed("nothing was done").help("say --yes to repair without being asked"));
    }
    let record = repair(&connection).await?;
    if args.json {
        return output::json(&json!({ "damaged": true, "damage": damage, "repaired": true, "record": record }));
    }
    output::bytes(render::repaired(&record).as_bytes())
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

/// The storers that announce themselves.
async fn storers(connection: &Connection) -> Result<BTreeSet<u64>, Failure> {
    let mut progress = ProgressReader::subscribe(connection).await.map_err(failed)?;
    let mut storers = BTreeSet::new();
    let until = tokio::time::Instant::now() + LISTEN;
    while let Ok(Some(said)) = tokio::time::timeout_at(until, progress.next()).await {
        storers.insert(said.storer);
    }
    Ok(storers)
}

/// Where the most advanced storer stands.
async fn source(connection: &Connection, topology: &Topology) -> Result<(u64, Vec<Checkpoint>), Failure> {
    let reads = ReadClient::new(connection).await.map_err(failed)?;
    let mut best: Option<(u64, Vec<Checkpoint>)> = None;
    for storer in storers(connection).await? {
        let mut checkpoints = Vec::new();
        for lane in 0..topology.lanes {
            let request = Request { lane, min_sequence: 0, query: Query::Checkpoint };
            if let Ok(answer) = reads.request_of(storer, &request, ANSWER).await
                && let AnswerBody::Checkpoint(checkpoint) = answer.body
            {
                checkpoints.push(*checkpoint);
            }
        }
        let total = |all: &[Checkpoint]| all.iter().map(|c| c.events_sequence).sum::<u64>();
        let is_whole = checkpoints.len() == usize::from(topology.lanes);
        if is_whole && best.as_ref().is_none_or(|(_, best)| total(best) < total(&checkpoints)) {
            best = Some((storer, checkpoints));
        }
    }
    best.ok_or_else(|| {
        Failure::new(Exit::Unavailable, "no storer answers, and a log is repaired from a storer's file")
            .help("start one, with its file as it is: it is served although the log is damaged")
    })
}

/// The EVENTS sequences of a storer's entry in the register; none if it has no entry. A register that
/// cannot be read lets nobody purge: then it is what the file names.
async fn named_by_register(
    connection: &Connection,
    (storer, log_id): (u64, u64),
    checkpoints: &[Checkpoint],
) -> Vec<u64> {
    let entries = async { StorerRegister::open(connection).await?.list().await };
    match entries.await {
        Ok(entries) => {
            let is_its = |e: &&StorerEntry| e.storer == storer && e.log_id == log_id && !e.temporary;
            let lanes = entries.iter().find(is_its).map_or(&[][..], |entry| &entry.lanes);
            lanes.iter().map(|marks| marks.events_sequence).collect()
        }
        Err(error) => {
            tracing::warn!(%error, "the register of storers cannot be read");
            checkpoints.iter().map(|checkpoint| checkpoint.events_sequence).collect()
        }
    }
}

async fn look(connection: &Connection) -> Result<Found, Failure> {
    let topology = Topology::load(connection).await.map_err(failed)?;
    let (storer, checkpoints) = source(connection, &topology).await?;
    let workshop = Workshop::new(connection);
    let log_id = checkpoints.first().map_or(topology.log_id, |checkpoint| checkpoint.log_id);
    let named_upto = named_by_register(connection, (storer, log_id), &checkpoints).await;
    let mut lanes = Vec::new();
    for (lane, checkpoint) in (0..).zip(checkpoints) {
        let at = checkpoint.events_sequence;
        let named = workshop.message(Log::Events, lane, at.max(1)).await.map_err(failed)?;
        let mut found = LaneFound {
            lowest: plan::lowest(&checkpoint, lane),
            highest: plan::highest(&checkpoint, lane),
            registered: named_upto.get(usize::from(lane)).copied(),
            instructions: workshop.look(Log::Instructions, lane).await.map_err(failed)?,
            events: workshop.look(Log::Events, lane).await.map_err(failed)?,
            named: named.filter(|_| at > 0).map(|payload| message_hash(&payload)),
            instruction_holes: Vec::new(),
            event_holes: Vec::new(),
            checkpoint,
        };
        if found.instructions.is_some() {
            let holes = workshop.holes(Log::Instructions, lane, found.lowest.max(1), HOLES_MAX).await;
            found.instruction_holes = holes.map_err(failed)?;
        }
        if found.events.is_some() {
            found.event_holes = workshop.holes(Log::Events, lane, at.max(1), HOLES_MAX).await.map_err(failed)?;
        }
        lanes.push(found);
    }
    Ok(Found { storer, log_id, topology, lanes })
}

/// Repairs the log, or continues a repair that was begun.
///
/// # Errors
/// If a step cannot be taken; the next call continues there.
pub(crate) async fn repair(connection: &Connection) -> Result<RepairRecord, Failure> {
    let workshop = Workshop::new(connection);
    let begun = RepairRecord::load(connection).await.map_err(failed)?.filter(RepairRecord::is_under_way);
    let mut record = match begun {
        Some(record) => record,
        None => begin(connection).await?,
    };
    if record.state == RepairState::Closing {
        close_and_decide(connection, &workshop, &mut record).await?;
    }
    if record.state == RepairState::Copying {
        record.losses = put_aside(&workshop, &record).await?;
        record.state = RepairState::Moving;
        record.save(connection).await.map_err(failed)?;
    }
    finish(connection, &workshop, record).await
}

async fn begin(connection: &Connection) -> Result<RepairRecord, Failure> {
    let topology = Topology::load(connection).await.map_err(failed)?;
    let (storer, checkpoints) = source(connection, &topology).await?;
    let begun_us = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64);
    let record = RepairRecord {
        state: RepairState::Closing,
        from_log_id: checkpoints.first().map_or(topology.log_id, |checkpoint| checkpoint.log_id),
        to_log_id: rand::random(),
        storer,
        begun_us,
        lanes: Vec::new(),
        losses: Vec::new(),
    };
    record.save(connection).await.map_err(failed)?;
    Ok(record)
}

/// Nobody writes from here on; once the storers stand still, what they have is what counts.
async fn close_and_decide(
    connection: &Connection,
    workshop: &Workshop,
    record: &mut RepairRecord,
) -> Result<(), Failure> {
    let topology = Topology::load(connection).await.map_err(failed)?;
    for lane in 0..topology.lanes {
        workshop.close(lane, topology.stream_bytes).await.map_err(failed)?;
    }
    let mut found = look(connection).await?;
    loop {
        tokio::time::sleep(STILL).await;
        let again = look(connection).await?;
        let positions = |found: &Found| found.lanes.iter().map(|l| l.checkpoint.events_sequence).collect::<Vec<_>>();
        let still = positions(&again) == positions(&found);
        found = again;
        if still {
            break;
        }
    }
    (record.storer, record.from_log_id) = (found.storer, found.log_id);
    record.lanes = found.lanes.iter().map(decide).collect();
    record.state = RepairState::Copying;
    record.save(connection).await.map_err(failed)
}

async fn put_aside(workshop: &Workshop, record: &RepairRecord) -> Result<Vec<LaneLoss>, Failure> {
    let mut losses = Vec::new();
    for (lane, decided) in (0..).zip(&record.lanes) {
        let events = workshop.look(Log::Events, lane).await.map_err(failed)?.unwrap_or_default();
        let instructions = workshop.look(Log::Instructions, lane).await.map_err(failed)?.unwrap_or_default();
        let mut records_again = 0;
        let count =
            |message: &bytes::Bytes| records_again += decode_batch(message).map_or(0, |records| records.len() as u64);
        let copied = workshop.put_aside(lane, decided.instructions_from, count).await.map_err(failed)?;
        let missing = copied.missing.iter().map(|gap| (*gap.start(), *gap.end())).take(HOLES_MAX).collect();
        losses.push(LaneLoss {
            events_last: events.last,
            events_unusable: events.last.saturating_sub(decided.events_sequence),
            instructions_last: instructions.last,
            instructions_known: plan::known(decided),
            instructions_missing: missing,
            messages_again: copied.messages,
            records_again,
        });
    }
    Ok(losses)
}

async fn finish(
    connection: &Connection,
    workshop: &Workshop,
    mut record: RepairRecord,
) -> Result<RepairRecord, Failure> {
    for (lane, decided) in (0..).zip(&record.lanes) {
        workshop.move_ahead(Log::Instructions, lane, decided.instructions_first).await.map_err(failed)?;
        workshop.move_ahead(Log::Events, lane, decided.events_first).await.map_err(failed)?;
        let marker = BatchBuilder::default().finish().into();
        workshop.log_again(lane, decided.instructions_first, marker).await.map_err(failed)?;
    }
    workshop.set_log_id(record.to_log_id).await.map_err(failed)?;
    for lane in 0..record.lanes.len() as u16 {
        workshop.open(lane).await.map_err(failed)?;
        workshop.discard_aside(lane).await.map_err(failed)?;
    }
    record.state = RepairState::Done;
    record.save(connection).await.map_err(failed)?;
    Ok(record)
}
