//! The overview for people.

use super::overview::{LaneOverview, Overview, Space, percent, ranges};
use crate::up::addresses::bytes;
use fieldstream_nats::{RoleStatus, StorerStatus};
use fieldstream_shared::partition::PARTITIONS;
use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Ownership in more ranges than this is shown by its number only: shares by hash have no shape.
const RANGES_MAX: usize = 6;

/// All of it, lines with their ends.
pub(crate) fn text(overview: &Overview) -> String {
    let now_us = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64);
    text_at(overview, now_us)
}

fn text_at(overview: &Overview, now_us: u64) -> String {
    let mut text = String::new();
    match &overview.problems[..] {
        [] => text.push_str("ok: everything works\n"),
        problems => {
            let _ = writeln!(text, "{} problem{}:", problems.len(), if problems.len() == 1 { "" } else { "s" });
            for problem in problems {
                let _ = writeln!(text, "  - {problem}");
            }
        }
    }
    let owned = PARTITIONS - overview.unowned.len();
    let _ = writeln!(text, "log {:016x}, {owned} of {PARTITIONS} partitions owned\n", overview.topology.log_id);
    let header = ["LANE", "INSTRUCTIONS", "EVENTS", "LOG USED", "BACKLOG", "NOT STORED"];
    table(&mut text, &header, overview.lanes.iter().enumerate().map(|(number, lane)| lane_row(number, lane)));
    let _ = writeln!(text, "\nspace: {}\n", space(overview));
    let header = ["ROLE", "MEMBER", "HOST", "PID", "UP FOR", "READY", ""];
    table(&mut text, &header, overview.members.iter().map(|member| member_row(member, now_us)));
    let warnings = overview.members.iter().flat_map(|member| member.findings.iter().map(move |f| (member, f)));
    for (member, finding) in warnings {
        let _ = write!(text, "\n{}: {}\n  {}\n", member.member, finding.message, finding.mend);
    }
    text
}

fn space(overview: &Overview) -> String {
    let Space { log_bytes, log_bytes_max, files_bytes, copies_bytes } = overview.space();
    let [log, room, files, copies] = [log_bytes, log_bytes_max, files_bytes, copies_bytes].map(bytes);
    format!("log {log} of {room}, files {files}, copies {copies}")
}

fn lane_row(number: usize, lane: &LaneOverview) -> Vec<String> {
    let span = |s: fieldstream_nats::StreamState| {
        if s.messages == 0 { "-".into() } else { format!("{}..{}", s.first, s.last) }
    };
    let backlog = match (lane.backlog_records, lane.backlog_messages) {
        (0, 0) => "-".to_owned(),
        (records, 0) => format!("{records} records"),
        (records, messages) => format!("{records} records and {messages} messages"),
    };
    let stored = match lane.storer_lag_messages {
        None => "?".to_owned(),
        Some(0) => "-".to_owned(),
        Some(messages) => format!("{messages} messages"),
    };
    let used = lane.instructions.bytes + lane.events.bytes;
    let room = lane.instructions.bytes_max + lane.events.bytes_max;
    let fullest = percent(lane.instructions).max(percent(lane.events));
    let used = format!("{} of {} ({fullest}%)", bytes(used), bytes(room));
    vec![number.to_string(), span(lane.instructions), span(lane.events), used, backlog, stored]
}

fn member_row(member: &RoleStatus, now_us: u64) -> Vec<String> {
    let up = Duration::from_secs(now_us.saturating_sub(member.started_at_us) / 1_000_000);
    let up = humantime::format_duration(up).to_string();
    let ready = if member.ready { "yes" } else { "NO" };
    let says = match (&member.gateway, &member.processor, &member.storer) {
        (Some(gateway), ..) => format!("{} connections", gateway.connections),
        (_, Some(processor), _) => owns(&processor.partitions),
        (.., Some(storer)) => stores(storer, now_us),
        _ => String::new(),
    };
    let words = [&member.role, &member.member, &member.host].map(|word| printable(word));
    let [role, name, host] = words;
    vec![role, name, host, member.pid.to_string(), up, ready.to_owned(), printable(&says)]
}

fn stores(storer: &StorerStatus, now_us: u64) -> String {
    let mut says = format!("{} in {}", bytes(storer.file_bytes), storer.database);
    let Some(file) = &storer.file else { return says };
    says += &format!(", {} of it history", bytes(file.history_bytes + file.by_time_bytes));
    if let Some(copied_at_us) = file.copied_at_us {
        let ago = Duration::from_secs(now_us.saturating_sub(copied_at_us) / 1_000_000);
        says += &format!(", copied {} ago", humantime::format_duration(ago));
    }
    if file.reader_lag_commits > 0 {
        says += &format!(", a reader is {} commits back", file.reader_lag_commits);
    }
    says
}

fn owns(partitions: &[u8]) -> String {
    let ranges = ranges(partitions);
    match ranges.split(',').count() {
        _ if partitions.is_empty() => "owns nothing".to_owned(),
        n if n <= RANGES_MAX => format!("owns partitions {ranges}"),
        _ => format!("owns {} partitions", partitions.len()),
    }
}

/// What others say must not move a terminal's cursor.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Columns two spaces apart; without trailing spaces.
fn table(text: &mut String, header: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    let mut lines = vec![header.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>()];
    lines.extend(rows);
    let width = |column: usize| lines.iter().filter_map(|line| line.get(column)).map(|w| w.chars().count()).max();
    let widths: Vec<usize> = (0..header.len()).map(|column| width(column).unwrap_or(0)).collect();
    for line in &lines {
        let words = line.iter().zip(&widths).map(|(word, width)| format!("{word:<width$}"));
        let _ = writeln!(text, "{}", words.collect::<Vec<_>>().join("  ").trim_end());
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
