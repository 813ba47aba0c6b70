//! The report as JSON (`docs/TRACING.md`).

use super::figures::{Figures, Spread};
use super::path::{Journey, label};
use fieldstream_client::{Clocks, Hop, Trace};
use serde_json::{Value as Json, json};

/// One instruction.
pub(crate) fn instruction(document: &str, trace: &Trace, journey: &Journey) -> Json {
    let hops = journey.points.iter().map(|(hop, point)| {
        json!({
            "hop": hop.name(),
            "role": hop.role(),
            "at_us": point.at_us,
            "uncertainty_us": point.uncertainty_us,
            "clock": format!("{:016x}", point.clock),
        })
    });
    let spans = journey.spans().into_iter().map(|span| {
        let (who, what) = label(span.from, span.to);
        json!({
            "from": span.from.name(),
            "to": span.to.name(),
            "who": who,
            "what": what,
            "start_us": span.start_us,
            "took_us": span.took_us,
            "uncertainty_us": span.uncertainty_us,
            "decides": span.weight.name(),
        })
    });
    let path = journey.path_to(Hop::ClientReceived);
    json!({
        "document": document,
        "epoch": trace.epoch,
        "number": trace.receipt.number,
        "revision": trace.receipt.revision,
        "outcome_us": journey.outcome_us(),
        "stored_us": journey.stored_us(),
        "hops": hops.collect::<Vec<_>>(),
        "spans": spans.collect::<Vec<_>>(),
        "critical_path": path.into_iter().map(Hop::name).collect::<Vec<_>>(),
        "missing": journey.missing().map(Hop::name).collect::<Vec<_>>(),
    })
}

/// The last line.
pub(crate) fn summary(count: usize, figures: &Figures, clocks: &Clocks) -> Json {
    let spread = |spread: Spread| json!({ "p50_us": spread.p50_us, "p99_us": spread.p99_us, "max_us": spread.max_us });
    let spans = figures.spans.iter().map(|((to, from), of)| {
        let mut span = spread(*of);
        span["from"] = from.name().into();
        span["to"] = to.name().into();
        span
    });
    let known = clocks.gateway.iter().chain(&clocks.others).filter_map(|known| {
        let offset = clocks.offset(known.clock)?;
        let clock = format!("{:016x}", known.clock);
        Some(json!({ "clock": clock, "ahead_us": offset.ahead_us, "uncertainty_us": offset.uncertainty_us }))
    });
    json!({
        "summary": true,
        "count": count,
        "outcome": figures.outcome.map(spread),
        "stored": figures.stored.map(spread),
        "spans": spans.collect::<Vec<_>>(),
        "clocks": known.collect::<Vec<_>>(),
    })
}
