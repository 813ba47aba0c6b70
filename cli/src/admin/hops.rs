//! How long hops take, as histograms in the text format of Prometheus.

use super::Roles;
use std::fmt::Write as _;

const NAME: &str = "fieldstream_hop_seconds";
const HELP: &str = "How long hops take, counted per record; of a batch the longest.";

/// The histograms of all roles; nothing without any.
pub(super) fn text(roles: &Roles) -> String {
    let mut text = String::new();
    for (role, health) in roles.iter() {
        for (hop, histogram) in health.hops() {
            if text.is_empty() {
                let _ = write!(text, "# HELP {NAME} {HELP}\n# TYPE {NAME} histogram\n");
            }
            let (labels, counts) = (format!("role=\"{role}\",hop=\"{hop}\""), histogram.counts());
            for (bound_us, count) in counts.cumulative() {
                let _ = writeln!(text, "{NAME}_bucket{{{labels},le=\"{}\"}} {count}", seconds(bound_us));
            }
            let total = counts.total();
            let _ = writeln!(text, "{NAME}_bucket{{{labels},le=\"+Inf\"}} {total}");
            let _ = writeln!(text, "{NAME}_sum{{{labels}}} {}", seconds(counts.sum_us));
            let _ = writeln!(text, "{NAME}_count{{{labels}}} {total}");
        }
    }
    text
}

/// Exact, and without an exponent.
fn seconds(us: u64) -> String {
    let text = format!("{}.{:06}", us / 1_000_000, us % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use fieldstream_nats::Health;

    #[test]
    fn buckets_are_cumulative_and_end_with_everything() {
        let health = Health::new();
        assert_eq!(text(&vec![("gateway", health.clone())].into()), "");
        let hop = health.hop("event_to_written");
        hop.record(20, 2);
        hop.record(1_500_000, 1);
        let text = text(&vec![("gateway", health)].into());
        for line in [
            "# TYPE fieldstream_hop_seconds histogram",
            "fieldstream_hop_seconds_bucket{role=\"gateway\",hop=\"event_to_written\",le=\"0.000016\"} 0",
            "fieldstream_hop_seconds_bucket{role=\"gateway\",hop=\"event_to_written\",le=\"0.000024\"} 2",
            "fieldstream_hop_seconds_bucket{role=\"gateway\",hop=\"event_to_written\",le=\"+Inf\"} 3",
            "fieldstream_hop_seconds_sum{role=\"gateway\",hop=\"event_to_written\"} 1.50004",
            "fieldstream_hop_seconds_count{role=\"gateway\",hop=\"event_to_written\"} 3",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in {text}");
        }
        assert_eq!((seconds(0), seconds(2_000_000), seconds(1)), ("0".into(), "2".into(), "0.000001".into()));
    }
}
