//! What state the log is in, and whose file a repair of it goes on from.

use super::plan::{self, LaneFound, damage_of};
use super::{HOLES_MAX, failed};
use crate::exit::{Exit, Failure};
use crate::supervise;
use fieldstream_nats::{
    Connection, Finding, Log, NatsError, ProgressReader, ReadClient, RoleStatus, Severity, StorerEntry, StorerRegister,
    Topology, Workshop, collect_status,
};
use fieldstream_shared::event::message_hash;
use fieldstream_shared::read::{AnswerBody, Checkpoint, Query, Request};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Storers announce themselves five times a second.
const LISTEN: Duration = Duration::from_millis(1_500);
const ANSWER: Duration = Duration::from_secs(3);
/// How long the roles have to say what they found.
const COLLECT: Duration = Duration::from_millis(400);

/// What the log was found to be.
pub(super) struct Found {
    pub(super) source: Source,
    pub(super) topology: Topology,
    pub(super) lanes: Vec<LaneFound>,
    /// What roles wait for a repair of.
    pub(super) said: Vec<String>,
}

/// The storer whose file a repair goes on from.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) storer: u64,
    pub(super) log_id: u64,
    /// Whether it may be: its file is of this log, or it was named.
    pub(super) fits: bool,
    pub(super) checkpoints: Vec<Checkpoint>,
}

/// Which files a repair may go on from beside those of the log that is in NATS.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct OtherFiles {
    /// Those of the log that a repair which is continued began with.
    pub(crate) begun_from: Option<u64>,
    /// That of this storer.
    pub(crate) named: Option<u64>,
}

impl Found {
    /// What is wrong, one sentence each.
    pub(super) fn damage(&self) -> Vec<String> {
        let mut damage: Vec<String> = (0..).zip(&self.lanes).flat_map(|(lane, found)| damage_of(lane, found)).collect();
        if self.source.log_id != self.topology.log_id {
            let (found, wanted) = (self.source.log_id, self.topology.log_id);
            damage.insert(0, format!("the storers' files are of log {found:016x}, NATS has log {wanted:016x}"));
        }
        damage.extend(self.said.iter().cloned());
        // The message that a file names may be the first of those that are missing.
        damage.dedup();
        damage
    }

    /// That a repair may go on from the source.
    pub(super) fn must_fit(&self) -> Result<(), Failure> {
        let Source { storer, log_id, fits, .. } = self.source;
        if fits {
            return Ok(());
        }
        let what = format!("no storer that answers has a file of log {:016x}, which is in NATS", self.topology.log_id);
        let mend = format!(
            "start the one that has; or go on from the file of storer {storer:016x}, of log {log_id:016x}, with \
             `fieldstream repair --from {storer:016x}`"
        );
        Err(Failure::failed(what).help(mend))
    }
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

/// Where a storer stands, lane by lane; fewer than there are if it does not answer.
pub(super) async fn checkpoints_of(reads: &ReadClient, storer: u64, lanes: u16) -> Vec<Checkpoint> {
    let mut checkpoints = Vec::new();
    for lane in 0..lanes {
        let request = Request { lane, min_sequence: 0, query: Query::Checkpoint };
        match reads.request_of(storer, &request, ANSWER).await.map(|answer| answer.body) {
            Ok(AnswerBody::Checkpoint(checkpoint)) => checkpoints.push(*checkpoint),
            _ => break,
        }
    }
    checkpoints
}

/// The most advanced storer among those whose file comes first in question.
async fn source(connection: &Connection, topology: &Topology, others: OtherFiles) -> Result<Source, Failure> {
    let reads = ReadClient::new(connection).await.map_err(failed)?;
    let mut best: Option<((u8, u64), Source)> = None;
    for storer in storers(connection).await? {
        let checkpoints = checkpoints_of(&reads, storer, topology.lanes).await;
        let Some(log_id) = checkpoints.first().map(|checkpoint| checkpoint.log_id) else { continue };
        if checkpoints.len() < usize::from(topology.lanes) {
            continue;
        }
        let rank = rank(storer, log_id, topology.log_id, others);
        let order = (rank, checkpoints.iter().map(|checkpoint| checkpoint.events_sequence).sum());
        if best.as_ref().is_none_or(|(best, _)| *best < order) {
            best = Some((order, Source { storer, log_id, fits: rank > 0, checkpoints }));
        }
    }
    best.map(|(_, source)| source).ok_or_else(|| {
        Failure::new(Exit::Unavailable, "no storer answers, and a log is repaired from a storer's file")
            .help("start one, with its file as it is: it is served although the log is damaged")
    })
}

/// Numbers of messages compare only within one log: a file of another one is nothing to go on from,
/// however far it is, unless somebody says so.
fn rank(storer: u64, log_id: u64, present: u64, others: OtherFiles) -> u8 {
    match log_id {
        id if id == present => 3,
        id if Some(id) == others.begun_from => 2,
        _ if Some(storer) == others.named => 1,
        _ => 0,
    }
}

/// Looks at everything.
pub(super) async fn look(connection: &Connection, others: OtherFiles) -> Result<Found, Failure> {
    let topology = Topology::load(connection).await.map_err(failed)?;
    let (source, members) = tokio::join!(source(connection, &topology, others), collect_status(connection, COLLECT));
    let (source, said) = (source?, said(&members.map_err(failed)?));
    let workshop = Workshop::new(connection);
    let registered = registered(connection, &source).await;
    let mut lanes = Vec::new();
    for (lane, checkpoint) in (0..).zip(&source.checkpoints) {
        let named = registered.get(usize::from(lane)).copied();
        lanes.push(look_at(&workshop, lane, checkpoint.clone(), named).await.map_err(failed)?);
    }
    Ok(Found { source, topology, lanes, said })
}

/// The EVENTS sequences of a storer's entry in the register; none if it has no entry. A register that
/// cannot be read lets nobody purge: then it is what the file names.
async fn registered(connection: &Connection, source: &Source) -> Vec<u64> {
    let entries = async { StorerRegister::open(connection).await?.list().await };
    match entries.await {
        Ok(entries) => {
            let is_its = |e: &&StorerEntry| e.storer == source.storer && e.log_id == source.log_id && !e.temporary;
            let lanes = entries.iter().find(is_its).map_or(&[][..], |entry| &entry.lanes);
            lanes.iter().map(|marks| marks.events_sequence).collect()
        }
        Err(error) => {
            tracing::warn!(%error, "the register of storers cannot be read");
            source.checkpoints.iter().map(|checkpoint| checkpoint.events_sequence).collect()
        }
    }
}

async fn look_at(
    workshop: &Workshop,
    lane: u16,
    checkpoint: Checkpoint,
    registered: Option<u64>,
) -> Result<LaneFound, NatsError> {
    let at = checkpoint.events_sequence;
    let named = workshop.message(Log::Events, lane, at.max(1)).await?;
    let mut found = LaneFound {
        lowest: plan::lowest(&checkpoint, lane),
        highest: plan::highest(&checkpoint, lane),
        registered,
        instructions: workshop.look(Log::Instructions, lane).await?,
        events: workshop.look(Log::Events, lane).await?,
        named: named.filter(|_| at > 0).map(|payload| message_hash(&payload)),
        instruction_holes: Vec::new(),
        event_holes: Vec::new(),
        checkpoint,
    };
    if found.instructions.is_some() {
        found.instruction_holes = workshop.holes(Log::Instructions, lane, found.lowest.max(1), HOLES_MAX).await?;
    }
    if found.events.is_some() {
        found.event_holes = workshop.holes(Log::Events, lane, at.max(1), HOLES_MAX).await?;
    }
    Ok(found)
}

/// What roles found that only a repair mends. They know more than the streams show: what they were
/// acknowledged, what they read, and what they cannot read.
fn said(members: &[RoleStatus]) -> Vec<String> {
    let mut said: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for member in members {
        let is_damage =
            |finding: &&Finding| finding.code == supervise::DAMAGED && finding.severity == Severity::Blocking;
        for finding in member.findings.iter().filter(is_damage) {
            said.entry(&finding.message).or_default().insert(&member.role);
        }
    }
    let line = |(message, roles): (&str, BTreeSet<&str>)| {
        format!("said by {}: {message}", roles.into_iter().collect::<Vec<_>>().join(", "))
    };
    said.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use fieldstream_nats::{Health, Member};

    #[test]
    fn a_file_of_another_log_is_gone_on_from_only_if_there_is_no_other_and_it_is_named() {
        let others = OtherFiles { begun_from: Some(20), named: Some(7) };
        let ranks = [(7, 10), (7, 20), (7, 30), (8, 30)].map(|(storer, log_id)| rank(storer, log_id, 10, others));
        assert_eq!(ranks, [3, 2, 1, 0]);
        assert_eq!(rank(7, 30, 10, OtherFiles::default()), 0);
    }

    #[test]
    fn what_roles_wait_for_a_repair_of_is_damage() {
        let health = Health::new();
        for code in ["disk-full", supervise::DAMAGED] {
            health.raise(Finding::new(code, Severity::Blocking, format!("{code} it is"), "mend it"));
        }
        let members = ["gateway", "gateway", "processor"].map(|role| Member::new(role, "1", health.clone()).status());
        assert_eq!(said(&members), ["said by gateway, processor: log-damaged it is"]);
    }
}
