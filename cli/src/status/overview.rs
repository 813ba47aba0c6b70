//! What the answers of the roles and the streams come to.

use fieldstream_nats::{ProcessorLane, RoleStatus, Severity, StreamState, Topology};
use fieldstream_shared::partition::PARTITIONS;
use serde::Serialize;
use serde_json::{Value as Json, json};

/// A stream fuller than this, in percent, is a problem.
const FULL_PERCENT: u64 = 90;

/// One lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LaneOverview {
    pub(crate) instructions: StreamState,
    pub(crate) events: StreamState,
    /// Instructions that processors have read and whose events are not accepted yet.
    pub(crate) backlog_records: u64,
    /// Messages of INSTRUCTIONS that the slowest processor has not read.
    pub(crate) backlog_messages: u64,
    /// Messages of EVENTS that the most advanced storer has not stored; `None` without storers.
    pub(crate) storer_lag_messages: Option<u64>,
}

/// What takes room on disks: the log against its budget, and what storers keep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Space {
    pub(crate) log_bytes: u64,
    pub(crate) log_bytes_max: u64,
    pub(crate) files_bytes: u64,
    pub(crate) copies_bytes: u64,
}

/// Everything.
#[derive(Debug, Clone)]
pub(crate) struct Overview {
    pub(crate) topology: Topology,
    pub(crate) lanes: Vec<LaneOverview>,
    pub(crate) members: Vec<RoleStatus>,
    /// Partitions that nobody owns.
    pub(crate) unowned: Vec<u8>,
    /// Partitions that more than one owns.
    pub(crate) contended: Vec<u8>,
    /// What is wrong, one sentence each.
    pub(crate) problems: Vec<String>,
}

impl Overview {
    /// From the streams of every lane and the answers.
    pub(crate) fn new(
        topology: Topology,
        streams: Vec<(StreamState, StreamState)>,
        members: Vec<RoleStatus>,
    ) -> Overview {
        let lanes = (0..).zip(streams).map(|(lane, streams)| lane_overview(lane, streams, &members)).collect();
        let mut owners = [0_u32; PARTITIONS];
        let owned = members.iter().filter_map(|member| member.processor.as_ref());
        owned.flat_map(|processor| &processor.partitions).for_each(|p| owners[usize::from(*p)] += 1);
        let with = |test: fn(u32) -> bool| (0..=u8::MAX).filter(|p| test(owners[usize::from(*p)])).collect();
        let (unowned, contended) = (with(|n| n == 0), with(|n| n > 1));
        let mut overview = Overview { topology, lanes, members, unowned, contended, problems: Vec::new() };
        overview.problems = overview.find_problems();
        overview
    }

    fn find_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for role in ["gateway", "processor", "storer"] {
            if self.members.iter().all(|member| member.role != role) {
                problems.push(format!("no {role} answers"));
            }
        }
        let processors = self.members.iter().any(|member| member.role == "processor");
        if processors && !self.unowned.is_empty() {
            problems.push(format!("nobody owns partitions {}", ranges(&self.unowned)));
        }
        if !self.contended.is_empty() {
            problems.push(format!("more than one processor owns partitions {}", ranges(&self.contended)));
        }
        for member in &self.members {
            let blocking = member.findings.iter().filter(|finding| finding.severity == Severity::Blocking);
            problems.extend(blocking.map(|f| format!("{}: {}; {}", member.member, f.message, f.mend)));
            if !member.ready && member.findings.iter().all(|finding| finding.severity != Severity::Blocking) {
                problems.push(format!("{} is not ready", member.member));
            }
            if member.processor.as_ref().is_some_and(|processor| processor.lanes.iter().any(|lane| lane.paused)) {
                problems.push(format!("{} waits for the storers: too much is not stored yet", member.member));
            }
            if member.gateway.as_ref().is_some_and(|gateway| gateway.lanes.iter().any(|lane| lane.outage)) {
                problems.push(format!("{} cannot write the log", member.member));
            }
        }
        for (number, lane) in self.lanes.iter().enumerate() {
            for (name, stream) in [("INSTRUCTIONS", lane.instructions), ("EVENTS", lane.events)] {
                if percent(stream) >= FULL_PERCENT {
                    let text = "% full; raise nats.log_bytes_max and start again";
                    problems.push(format!("{name}_{number} is {}{text}", percent(stream)));
                }
            }
        }
        problems
    }

    /// What takes room on disks.
    pub(crate) fn space(&self) -> Space {
        let mut space = Space::default();
        for stream in self.lanes.iter().flat_map(|lane| [lane.instructions, lane.events]) {
            space.log_bytes += stream.bytes;
            space.log_bytes_max += stream.bytes_max;
        }
        for storer in self.members.iter().filter_map(|member| member.storer.as_ref()) {
            space.files_bytes += storer.file_bytes;
            space.copies_bytes += storer.copies_bytes;
        }
        space
    }

    /// For programs.
    pub(crate) fn json(&self) -> Json {
        let lanes = self.lanes.iter().enumerate().map(|(number, lane)| {
            json!({
                "lane": number,
                "instructions": lane.instructions,
                "events": lane.events,
                "backlog_records": lane.backlog_records,
                "backlog_messages": lane.backlog_messages,
                "storer_lag_messages": lane.storer_lag_messages,
            })
        });
        json!({
            "ok": self.problems.is_empty(),
            "problems": self.problems,
            "log_id": format!("{:016x}", self.topology.log_id),
            "lanes": lanes.collect::<Vec<_>>(),
            "partitions_unowned": self.unowned,
            "partitions_contended": self.contended,
            "space": self.space(),
            "members": self.members,
        })
    }
}

fn lane_overview(
    number: usize,
    (instructions, events): (StreamState, StreamState),
    members: &[RoleStatus],
) -> LaneOverview {
    let processors = members.iter().filter_map(|member| member.processor.as_ref());
    // One that owns nothing reads nothing.
    let working = processors.filter(|processor| !processor.partitions.is_empty());
    let lanes: Vec<&ProcessorLane> = working.filter_map(|processor| processor.lanes.get(number)).collect();
    let unread = |lane: &&ProcessorLane| instructions.last.saturating_sub(lane.instructions_sequence);
    let stored = members.iter().filter_map(|member| member.storer.as_ref()?.stored.get(number)).max();
    LaneOverview {
        backlog_records: lanes.iter().map(|lane| lane.backlog_records).sum(),
        backlog_messages: lanes.iter().map(unread).max().unwrap_or(instructions.messages),
        storer_lag_messages: stored.map(|stored| events.last.saturating_sub(*stored)),
        instructions,
        events,
    }
}

/// How full a stream is.
pub(crate) fn percent(stream: StreamState) -> u64 {
    (u128::from(stream.bytes) * 100).checked_div(u128::from(stream.bytes_max)).unwrap_or(0).min(100) as u64
}

/// Numbers in order as `0-3,7`.
pub(crate) fn ranges(numbers: &[u8]) -> String {
    let mut runs: Vec<(u8, u8)> = Vec::new();
    for n in numbers {
        match runs.last_mut() {
            Some((_, end)) if end.checked_add(1) == Some(*n) => *end = *n,
            _ => runs.push((*n, *n)),
        }
    }
    let run = |(a, b): &(u8, u8)| if a == b { a.to_string() } else { format!("{a}-{b}") };
    runs.iter().map(run).collect::<Vec<_>>().join(",")
}
