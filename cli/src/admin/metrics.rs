//! What the roles say of themselves, in the text format of Prometheus.
//!
//! No label has a value that clients choose.

use super::Roles;
use fieldstream_nats::{FileStatus, RoleStatus, Severity};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Samples of one metric, in order of names.
#[derive(Default)]
struct Metrics(BTreeMap<&'static str, Metric>);

struct Metric {
    kind: &'static str,
    help: &'static str,
    samples: Vec<(String, u64)>,
}

impl Metrics {
    fn add(&mut self, kind: &'static str, name: &'static str, help: &'static str, labels: String, value: u64) {
        let metric = self.0.entry(name).or_insert(Metric { kind, help, samples: Vec::new() });
        metric.samples.push((labels, value));
    }

    fn gauge(&mut self, name: &'static str, help: &'static str, labels: String, value: u64) {
        self.add("gauge", name, help, labels, value);
    }

    fn counter(&mut self, name: &'static str, help: &'static str, labels: String, value: u64) {
        self.add("counter", name, help, labels, value);
    }
}

/// All metrics.
pub(super) fn text(roles: &Roles) -> String {
    let mut metrics = Metrics::default();
    for (role, health) in roles.iter() {
        let label = format!("role=\"{role}\"");
        metrics.gauge("fieldstream_ready", "Whether the role does its work.", label, health.is_ready().into());
        for finding in health.findings() {
            let severity = if finding.severity == Severity::Blocking { "blocking" } else { "warning" };
            let labels = format!("role=\"{role}\",code=\"{}\",severity=\"{severity}\"", escaped(&finding.code));
            metrics.gauge("fieldstream_finding", "Something an operator has to know.", labels, 1);
        }
        if let Some(status) = health.report() {
            of_role(&mut metrics, &status);
        }
    }
    process(&mut metrics);
    let mut text = String::new();
    for (name, Metric { kind, help, samples }) in metrics.0 {
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for (labels, value) in samples {
            let labels = if labels.is_empty() { labels } else { format!("{{{labels}}}") };
            let _ = writeln!(text, "{name}{labels} {value}");
        }
    }
    text + &super::hops::text(roles)
}

fn escaped(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn of_role(metrics: &mut Metrics, status: &RoleStatus) {
    let lane = |number: usize| format!("lane=\"{number}\"");
    if let Some(gateway) = &status.gateway {
        let help = "Connections of clients.";
        metrics.gauge("fieldstream_gateway_connections", help, String::new(), gateway.connections);
        for (number, said) in gateway.lanes.iter().enumerate() {
            let help = "Records whose batches the log has acknowledged.";
            metrics.counter("fieldstream_gateway_logged_records_total", help, lane(number), said.logged_records);
            let help = "Bytes of records on their way to the log.";
            metrics.gauge("fieldstream_gateway_queue_bytes", help, lane(number), said.queue_bytes);
            let help = "Whether the log takes no batches.";
            metrics.gauge("fieldstream_gateway_outage", help, lane(number), said.outage.into());
            let help = "Last EVENTS sequence passed on to clients.";
            metrics.gauge("fieldstream_gateway_events_sequence", help, lane(number), said.events_sequence);
        }
    }
    if let Some(processor) = &status.processor {
        let owned = processor.partitions.len() as u64;
        metrics.gauge("fieldstream_processor_partitions", "Partitions owned.", String::new(), owned);
        for (number, said) in processor.lanes.iter().enumerate() {
            let help = "Instructions of owned partitions that are read and not applied.";
            metrics.gauge("fieldstream_processor_backlog_records", help, lane(number), said.backlog_records);
            let help = "Bytes of changed values that storers do not have yet.";
            metrics.gauge("fieldstream_processor_pinned_bytes", help, lane(number), said.pinned_bytes);
            let help = "Bytes of cached values, the pinned ones included.";
            metrics.gauge("fieldstream_processor_cache_bytes", help, lane(number), said.cache_bytes);
            let help = "Whether applying waits for storers.";
            metrics.gauge("fieldstream_processor_paused", help, lane(number), said.paused.into());
            let help = "Last EVENTS sequence read.";
            metrics.gauge("fieldstream_processor_events_sequence", help, lane(number), said.events_sequence);
            let help = "Last INSTRUCTIONS sequence read.";
            metrics.gauge(
                "fieldstream_processor_instructions_sequence",
                help,
                lane(number),
                said.instructions_sequence,
            );
        }
    }
    if let Some(storer) = &status.storer {
        let help = "Bytes of the LMDB file on disk.";
        metrics.gauge("fieldstream_storer_file_bytes", help, String::new(), storer.file_bytes);
        if let Some(file) = &storer.file {
            of_file(metrics, file);
        }
        for (number, sequence) in storer.stored.iter().enumerate() {
            let help = "EVENTS sequence that is durable in the LMDB file.";
            metrics.gauge("fieldstream_storer_stored_sequence", help, lane(number), *sequence);
        }
    }
}

fn of_file(metrics: &mut Metrics, file: &FileStatus) {
    let mut gauge =
        |name: &'static str, help: &'static str, value: u64| metrics.gauge(name, help, String::new(), value);
    let help = "Bytes of the LMDB file's pages that hold something; the rest is used again.";
    gauge("fieldstream_storer_used_bytes", help, file.used_bytes);
    gauge("fieldstream_storer_history_bytes", "Bytes of the history's pages.", file.history_bytes);
    gauge("fieldstream_storer_by_time_bytes", "Bytes of the pages of the index by time.", file.by_time_bytes);
    gauge("fieldstream_storer_map_bytes", "How large the LMDB file can become before its map grows.", file.map_bytes);
    gauge("fieldstream_storer_readers", "Read transactions that are open on the LMDB file.", file.readers);
    let help = "Commits since the state that the oldest open read transaction looks at.";
    gauge("fieldstream_storer_reader_lag_commits", help, file.reader_lag_commits);
    gauge("fieldstream_storer_copies", "Verified copies of the LMDB file.", file.copies);
    if let Some(copied_at_us) = file.copied_at_us {
        let help = "When the newest verified copy was made, seconds since the Unix epoch.";
        gauge("fieldstream_storer_copied_timestamp_seconds", help, copied_at_us / 1_000_000);
    }
}

/// The process, under the names that Prometheus' own client libraries use.
fn process(metrics: &mut Metrics) {
    let pages = |text: String| text.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    if let Some(pages) = std::fs::read_to_string("/proc/self/statm").ok().and_then(pages) {
        let bytes = pages * rustix::param::page_size() as u64;
        metrics.gauge("process_resident_memory_bytes", "Resident memory.", String::new(), bytes);
    }
    if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
        metrics.gauge("process_open_fds", "Open file descriptors.", String::new(), files.count() as u64);
    }
}
