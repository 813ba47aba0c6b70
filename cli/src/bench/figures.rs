//! What came of a step, in the words of the workload's definition.

use super::layout::Layout;
use super::process::Used;
use super::step::{Missing, Step};
use hdrhistogram::Histogram;
use serde::Serialize;
use std::collections::BTreeMap;

/// A rate is sustained if at least this share of it was achieved …
const ACHIEVED_MIN: f64 = 0.97;
/// … and this share of deliveries …
const DELIVERY_QUANTILE: f64 = 0.99;
/// … came within so long. Nothing may be missing.
const DELIVERY_MS_MAX: f64 = 100.0;

/// A generator whose thread used so much of a core had no time left.
const GENERATOR_CORES_MAX: f64 = 0.95;
/// A generator so late adds visibly to the latencies it measures.
const GENERATOR_LATE_MS_MAX: f64 = 10.0;
/// A machine so busy has nothing left for anybody.
const MACHINE_SHARE_MAX: f64 = 0.97;
/// So much used by others disturbs what is measured.
const OTHER_CORES_MAX: f64 = 0.25;

/// What all lines of a run have in common.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Head {
    pub(super) peer: &'static str,
    pub(super) version: &'static str,
    pub(super) run: String,
    pub(super) clients: usize,
    pub(super) docs: usize,
    pub(super) size: usize,
    pub(super) transport: &'static str,
    pub(super) profile: String,
    pub(super) ack: &'static str,
    pub(super) note: String,
    pub(super) connect_s: f64,
    pub(super) rss_per_conn_kb: Option<f64>,
}

/// One line.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Line<'a> {
    #[serde(flatten)]
    pub(super) head: &'a Head,
    pub(super) mode: &'static str,
    /// The highest sustained rate, in the last line of a search; 0 if none was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_rate: Option<f64>,
    #[serde(flatten)]
    pub(super) figures: Option<&'a Figures>,
}

/// Percentiles in milliseconds; nothing if nothing was measured.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Percentiles {
    pub(super) p50: Option<f64>,
    pub(super) p99: Option<f64>,
    pub(super) p999: Option<f64>,
    pub(super) max: Option<f64>,
}

/// The figures of one step.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Figures {
    pub(super) offered: f64,
    pub(super) achieved: f64,
    pub(super) sustained: bool,
    /// `generator`, `machine` (in full use), `others` (than the server on it), `server`, or nothing.
    pub(super) limited_by: Option<&'static str>,
    pub(super) ack_rate: f64,
    pub(super) deliveries_s: f64,
    #[serde(flatten, serialize_with = "ack")]
    pub(super) ack: Percentiles,
    #[serde(flatten, serialize_with = "del")]
    pub(super) delivery: Percentiles,
    pub(super) published: u64,
    pub(super) deliveries: u64,
    pub(super) lost: u64,
    pub(super) lost_acked: u64,
    pub(super) coalesced: u64,
    pub(super) unacked: u64,
    pub(super) unsent: u64,
    pub(super) dup: u64,
    pub(super) corrupt: u64,
    pub(super) gaps: u64,
    pub(super) refused: u64,
    pub(super) pauses: u64,
    pub(super) dead_conns: usize,
    pub(super) drain_s: f64,
    /// Whether nothing more would come: all had, or nothing did for a while.
    pub(super) drained: bool,
    pub(super) cpu_us_per_pub: Option<f64>,
    pub(super) cpu_split: BTreeMap<String, f64>,
    pub(super) rss_mb: Option<f64>,
    pub(super) gen_cores: f64,
    pub(super) gen_us_per_pub: Option<f64>,
    pub(super) gen_late_p99_ms: Option<f64>,
    pub(super) gen_late_max_ms: Option<f64>,
    pub(super) other_cores: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

/// What a step's figures are made of, besides the step itself.
#[derive(Debug)]
pub(super) struct Circumstances {
    pub(super) layout: Layout,
    pub(super) missing: Missing,
    pub(super) used: Used,
    pub(super) rss_kb: Option<u64>,
    pub(super) dead: usize,
    pub(super) drain_s: f64,
    pub(super) drained: bool,
    pub(super) error: Option<String>,
}

impl Figures {
    /// The figures of a step that has ended.
    pub(super) fn of(step: &Step, circumstances: Circumstances) -> Figures {
        let Circumstances { layout, missing, used, rss_kb, dead, drain_s, drained, error } = circumstances;
        let (pace, counts) = (step.pace, step.counts);
        let per_s = |count: u64| count as f64 / pace.seconds;
        let fan = layout.deliveries(pace.total()) as f64 / f64::from(pace.total().max(1));
        let (ack_rate, deliveries_s) = (per_s(counts.acks_measured), per_s(counts.deliveries_measured));
        let us_each = |seconds: f64| (counts.acks_measured > 0).then(|| seconds * 1e6 / counts.acks_measured as f64);
        let late = Percentiles::of(&step.late_us);
        let split = used.processes.iter().filter_map(|(name, s)| Some((name.clone(), rounded(us_each(*s)?, 1))));
        let mut figures = Figures {
            offered: pace.rate,
            achieved: rounded(ack_rate.min(deliveries_s / fan), 1),
            ack_rate: rounded(ack_rate, 1),
            deliveries_s: rounded(deliveries_s, 1),
            ack: Percentiles::of(&step.ack_us),
            delivery: Percentiles::of(&step.delivery_us),
            published: u64::from(pace.total()),
            deliveries: counts.deliveries,
            lost: missing.lost,
            lost_acked: missing.lost_acked,
            coalesced: missing.coalesced,
            unacked: missing.unacked,
            unsent: missing.unsent,
            dup: counts.duplicates,
            corrupt: counts.corrupt,
            gaps: counts.gaps,
            refused: counts.refused,
            pauses: counts.pauses,
            dead_conns: dead,
            drain_s: rounded(drain_s, 2),
            drained,
            cpu_split: split.collect(),
            rss_mb: rss_kb.map(|kb| rounded(kb as f64 / 1024.0, 1)),
            gen_cores: rounded(used.own / used.seconds, 3),
            gen_us_per_pub: us_each(used.own).map(|us| rounded(us, 1)),
            gen_late_p99_ms: late.p99,
            gen_late_max_ms: late.max,
            other_cores: rounded(used.others / used.seconds, 3),
            error,
            ..Figures::default()
        };
        let servers: f64 = used.processes.values().sum();
        figures.cpu_us_per_pub = us_each(servers).filter(|_| !used.processes.is_empty()).map(|us| rounded(us, 1));
        figures.sustained = figures.is_sustained();
        figures.limited_by = figures.limit(used.share);
        figures
    }

    fn is_sustained(&self) -> bool {
        let is_missing = self.lost
            + self.coalesced
            + self.unacked
            + self.unsent
            + self.refused
            + self.corrupt
            + self.dup
            + self.gaps
            > 0;
        self.achieved >= ACHIEVED_MIN * self.offered
            && self.delivery.p99.is_some_and(|ms| ms <= DELIVERY_MS_MAX)
            && !is_missing
            && self.dead_conns == 0
    }

    /// What kept the rate from being higher, if something did. Who is late on a machine that is in
    /// full use is not the limit itself.
    fn limit(&self, machine_share: f64) -> Option<&'static str> {
        let is_late = self.gen_late_p99_ms.is_some_and(|ms| ms > GENERATOR_LATE_MS_MAX);
        let is_full = machine_share >= MACHINE_SHARE_MAX;
        if self.gen_cores >= GENERATOR_CORES_MAX {
            Some("generator")
        } else if self.sustained && !is_full && !is_late {
            None
        } else if self.other_cores > OTHER_CORES_MAX && !self.cpu_split.is_empty() {
            // Without the server's processes it would be one of the others.
            Some("others")
        } else if is_full {
            Some("machine")
        } else {
            Some(if is_late { "generator" } else { "server" })
        }
    }

    /// What must never happen, whatever the load: why this is a failure of the server.
    pub(super) fn broken(&self) -> Option<String> {
        let lost_acked = if self.drained && self.dead_conns == 0 { self.lost_acked } else { 0 };
        let counts = [
            (lost_acked, "acknowledged instructions were not delivered"),
            (self.dup, "deliveries came twice"),
            (self.corrupt, "deliveries were not what was sent"),
            (self.gaps, "updates did not follow the revision before"),
        ];
        let told = counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
        Some(told.collect::<Vec<_>>().join("; ")).filter(|told| !told.is_empty())
    }
}

impl Percentiles {
    fn of(us: &Histogram<u64>) -> Percentiles {
        let ms = |us: u64| rounded(us as f64 / 1_000.0, 3);
        let quantile = |share: f64| (!us.is_empty()).then(|| ms(us.value_at_quantile(share)));
        Percentiles {
            p50: quantile(0.5),
            p99: quantile(DELIVERY_QUANTILE),
            p999: quantile(0.999),
            max: (!us.is_empty()).then(|| ms(us.max())),
        }
    }

    fn serialize<S: serde::Serializer>(&self, names: [&'static str; 4], serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap as _;
        let mut map = serializer.serialize_map(Some(4))?;
        for (name, value) in names.into_iter().zip([self.p50, self.p99, self.p999, self.max]) {
            map.serialize_entry(name, &value)?;
        }
        map.end()
    }
}

fn ack<S: serde::Serializer>(of: &Percentiles, serializer: S) -> Result<S::Ok, S::Error> {
    of.serialize(["ack_p50", "ack_p99", "ack_p999", "ack_max"], serializer)
}

fn del<S: serde::Serializer>(of: &Percentiles, serializer: S) -> Result<S::Ok, S::Error> {
    of.serialize(["del_p50", "del_p99", "del_p999", "del_max"], serializer)
}

/// Rounded to so many decimals.
pub(super) fn rounded(number: f64, decimals: i32) -> f64 {
    let factor = 10_f64.powi(decimals);
    (number * factor).round() / factor
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Figures {
        let delivery = Percentiles { p99: Some(100.0), ..Percentiles::default() };
        Figures { offered: 1_000.0, achieved: 970.0, delivery, drained: true, ..Figures::default() }
    }

    #[test]
    fn a_rate_is_sustained_only_if_all_of_it_came_in_time() {
        assert!(good().is_sustained());
        let spoil: [fn(&mut Figures); 12] = [
            |f| f.achieved = 969.0,
            |f| f.delivery.p99 = Some(100.1),
            |f| f.delivery.p99 = None,
            |f| f.lost = 1,
            |f| f.coalesced = 1,
            |f| f.unacked = 1,
            |f| f.unsent = 1,
            |f| f.refused = 1,
            |f| f.corrupt = 1,
            |f| f.dup = 1,
            |f| f.gaps = 1,
            |f| f.dead_conns = 1,
        ];
        for (nth, spoil) in spoil.into_iter().enumerate() {
            let mut figures = good();
            spoil(&mut figures);
            assert!(!figures.is_sustained(), "{nth}");
        }
    }

    #[test]
    fn who_was_the_limit_is_said() {
        let figures = Figures { sustained: true, ..good() };
        assert_eq!(figures.limit(0.5), None);
        assert_eq!(figures.limit(0.98), Some("machine"));
        let cpu_split = BTreeMap::from([("fieldstream".to_owned(), 50.0)]);
        let disturbed = Figures { other_cores: 0.3, cpu_split, ..good() };
        assert_eq!(disturbed.limit(0.98), Some("others"));
        assert_eq!(disturbed.limit(0.5), Some("others"), "it was not sustained");
        assert_eq!(Figures { other_cores: 0.3, ..good() }.limit(0.5), Some("server"), "it is among the others");
        assert_eq!(Figures { gen_late_p99_ms: Some(10.1), ..figures }.limit(0.98), Some("machine"));
        assert_eq!(Figures { sustained: false, ..good() }.limit(0.5), Some("server"));
        assert_eq!(Figures { gen_cores: 0.95, ..good() }.limit(0.98), Some("generator"));
        assert_eq!(Figures { gen_late_p99_ms: Some(10.1), ..good() }.limit(0.5), Some("generator"));
    }

    #[test]
    fn what_must_never_happen_is_told() {
        assert_eq!(good().broken(), None);
        assert_eq!(Figures { lost: 3, coalesced: 2, ..good() }.broken(), None, "nobody was told that it was done");
        let told = Figures { lost_acked: 3, dup: 1, ..good() }.broken().unwrap();
        assert!(told.starts_with("3 acknowledged") && told.contains("; 1 deliveries came twice"), "{told}");
        assert_eq!(Figures { lost_acked: 3, drained: false, ..good() }.broken(), None, "they may still come");
    }

    #[test]
    fn a_line_has_the_fields_of_the_workload() {
        let head = Head {
            peer: "fieldstream",
            version: "1",
            run: "r".into(),
            clients: 3,
            docs: 1,
            size: 500,
            transport: "tcp",
            profile: String::new(),
            ack: "applied",
            note: String::new(),
            connect_s: 0.1,
            rss_per_conn_kb: None,
        };
        let line = Line { head: &head, mode: "rate", max_rate: None, figures: Some(&good()) };
        let json = serde_json::to_value(&line).unwrap();
        for field in "peer clients docs size transport profile ack mode offered achieved ack_rate deliveries_s ack_p50 \
            ack_p99 ack_p999 ack_max del_p50 del_p99 del_p999 del_max published lost lost_acked dup dead_conns \
            connect_s rss_per_conn_kb cpu_us_per_pub cpu_split gen_cores gen_late_max_ms other_cores limited_by"
            .split_whitespace()
        {
            assert!(json.get(field).is_some(), "{field}");
        }
        assert_eq!(json["del_p99"], 100.0);
    }
}
