//! The waterfall, for people.

use super::figures::{Figures, Spread};
use super::path::{Journey, Span, Weight, label};
use fieldstream_client::{Clocks, Hop, Trace};
use std::fmt::Write as _;

/// Bars are not narrower than this; a narrower terminal wraps.
const BAR_COLUMNS_MIN: usize = 16;
const BAR_COLUMNS_MAX: usize = 100;
/// Spans of the critical path that are named in words.
const NAMED_MAX: usize = 3;

/// How to draw.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look {
    /// Columns there are.
    pub(crate) columns: usize,
    /// Whether colours may be used.
    pub(crate) colours: bool,
}

/// Microseconds as milliseconds.
fn ms(us: i64) -> String {
    format!("{:.3}", us as f64 / 1_000.0)
}

/// What was traced, and how long it took.
pub(crate) fn head(document: &str, trace: &Trace, journey: &Journey, several: Option<(usize, &Figures)>) -> String {
    let told = |us: Option<i64>| us.map_or("unknown".to_owned(), |us| format!("{} ms", ms(us)));
    let revision = trace.receipt.revision.map_or(String::new(), |revision| format!(" revision {revision}"));
    let one = format!(
        "{document}{revision}, number {}: outcome after {}, stored after {}",
        trace.receipt.number,
        told(journey.outcome_us()),
        told(journey.stored_us())
    );
    let Some((count, figures)) = several else { return one };
    let spread = |spread: Option<Spread>| {
        spread.map_or("unknown".to_owned(), |of| format!("p50 {} ms, p99 {} ms", ms(of.p50_us), ms(of.p99_us)))
    };
    let (outcome, stored) = (spread(figures.outcome), spread(figures.stored));
    format!("{count} instructions: outcome after {outcome}; stored after {stored}\nthe one in the middle: {one}")
}

/// One instruction, with the figures of all if it is one of several.
pub(crate) fn waterfall(journey: &Journey, figures: Option<&Figures>, look: Look) -> String {
    let spans = journey.spans();
    let end_us = spans.iter().map(|span| span.start_us + span.took_us).max().unwrap_or(0).max(1);
    let more = if figures.is_some() { "     p50 ms     p99 ms" } else { "" };
    let head = format!("{:<9}  {:<28}  {:>8} {:<7}{more}  ", "", "", "took ms", "");
    let columns = look.columns.saturating_sub(head.len()).clamp(BAR_COLUMNS_MIN, BAR_COLUMNS_MAX);
    let mut text = format!("{head}{}\n", scale(end_us, columns));
    for span in &spans {
        let (who, what) = label(span.from, span.to);
        let doubt = match span.uncertainty_us {
            0 => String::new(),
            us => format!("±{}", ms(us as i64)),
        };
        let _ = write!(text, "{who:<9}  {what:<28}  {:>8} {doubt:<7}", ms(span.took_us));
        if let Some(figures) = figures {
            let spread = figures.span(span.from, span.to);
            let (p50, p99) = spread.map_or((0, 0), |spread| (spread.p50_us, spread.p99_us));
            let _ = write!(text, " {:>10} {:>10}", ms(p50), ms(p99));
        }
        let _ = writeln!(text, "  {}", bar(span, end_us, columns, look.colours));
    }
    text
}

/// The ends of the bars' scale.
fn scale(end_us: i64, columns: usize) -> String {
    let end = format!("{} ms", ms(end_us));
    format!("0{end:>width$}", width = columns.saturating_sub(1))
}

fn bar(span: &Span, end_us: i64, columns: usize, colours: bool) -> String {
    let (mark, colour) = match span.weight {
        Weight::Outcome => ('█', "\x1b[32m"),
        Weight::Stored => ('▓', "\x1b[36m"),
        Weight::Beside => ('░', "\x1b[2m"),
    };
    let at = |us: i64| (us.clamp(0, end_us) as f64 / end_us as f64 * columns as f64) as usize;
    // Also what takes no time has its place.
    let begin = at(span.start_us).min(columns - 1);
    let end = at(span.start_us + span.took_us).clamp(begin + 1, columns);
    let drawn: String = std::iter::repeat_n(mark, end - begin).collect();
    let (on, off) = if colours { (colour, "\x1b[0m") } else { ("", "") };
    format!("{:begin$}{on}{drawn}{off}", "")
}

/// What the marks mean.
pub(crate) fn legend() -> &'static str {
    "█ decides when the outcome is there   ▓ then, when it is stored   ░ runs beside"
}

/// What took longest on the way to the outcome.
pub(crate) fn critical(journey: &Journey) -> Option<String> {
    let total_us = journey.outcome_us()?;
    let mut spans: Vec<Span> = journey.spans().into_iter().filter(|span| span.weight == Weight::Outcome).collect();
    spans.sort_by_key(|span| std::cmp::Reverse(span.took_us));
    let named = spans.iter().take(NAMED_MAX).map(|span| {
        let (who, what) = label(span.from, span.to);
        let share = 100.0 * span.took_us as f64 / total_us.max(1) as f64;
        format!("{who}: {what} {} ms ({share:.0}%)", ms(span.took_us))
    });
    Some(format!("critical path {} ms; most of it: {}", ms(total_us), named.collect::<Vec<_>>().join(", ")))
}

/// Whose times are by which clock, and how sure that is.
pub(crate) fn clocks(journey: &Journey, clocks: &Clocks) -> String {
    let mut by_clock: Vec<(u64, Vec<&str>)> = Vec::new();
    for (hop, point) in journey.points.iter().filter(|(hop, _)| hop.role() != "client") {
        match by_clock.iter_mut().find(|(clock, _)| *clock == point.clock) {
            Some((_, roles)) if roles.contains(&hop.role()) => {}
            Some((_, roles)) => roles.push(hop.role()),
            None => by_clock.push((point.clock, vec![hop.role()])),
        }
    }
    let mut said = by_clock.iter().filter_map(|(clock, roles)| {
        let offset = clocks.offset(*clock)?;
        Some(format!("{} {:+} µs ± {} µs", roles.join(", "), offset.ahead_us, offset.uncertainty_us))
    });
    let first = said.next().unwrap_or_else(|| "no other is known".to_owned());
    said.fold(format!("clocks, ahead of the client's: {first}"), |text, next| format!("{text}; {next}"))
}

/// What is not in the report, if anything.
pub(crate) fn gaps(journey: &Journey) -> Option<String> {
    let missing: Vec<&str> = journey.missing().map(Hop::name).collect();
    let unknown = match journey.unaligned {
        0 => String::new(),
        n => format!("; {n} stamps are by clocks that the gateway does not know yet"),
    };
    (!missing.is_empty()).then(|| format!("nothing was heard of {}{unknown}", missing.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::path::Point;

    fn journey() -> Journey {
        let point = |at_us| Point { at_us, uncertainty_us: 0, clock: 0 };
        let points = [
            (Hop::ClientSent, 0),
            (Hop::GatewayFirstByte, 100),
            (Hop::GatewayLastByte, 100),
            (Hop::GatewayQueued, 150),
            (Hop::GatewayPublished, 200),
            (Hop::GatewayLogged, 1_200),
            (Hop::ProcessorRead, 1_000),
            (Hop::ProcessorApplied, 1_050),
            (Hop::ProcessorPublished, 1_060),
            (Hop::GatewayEvent, 1_500),
            (Hop::GatewayWritten, 1_600),
            (Hop::ClientReceived, 2_000),
        ];
        let points = points.into_iter().map(|(hop, at_us)| (hop, point(at_us))).collect();
        Journey { points, ..Journey::default() }
    }

    #[test]
    fn every_line_fits_and_every_span_has_a_bar() {
        for columns in [10, 80, 120, 400] {
            let text = waterfall(&journey(), None, Look { columns, colours: false });
            assert_eq!(text.lines().count(), 1 + journey().spans().len());
            let longest = text.lines().map(|line| line.chars().count()).max().unwrap();
            assert!(longest <= columns.max(59 + BAR_COLUMNS_MIN), "{columns}: {longest}");
            let bars = text.lines().skip(1).filter(|line| line.contains(['█', '▓', '░']));
            assert_eq!(bars.count(), journey().spans().len(), "{text}");
        }
        assert!(!waterfall(&journey(), None, Look { columns: 80, colours: false }).contains('\x1b'));
        assert!(waterfall(&journey(), None, Look { columns: 80, colours: true }).contains("\x1b[32m"));
    }

    #[test]
    fn the_largest_spans_and_the_gaps_are_named() {
        let critical = critical(&journey()).unwrap();
        let begins = "critical path 2.000 ms; most of it: log: write, hand to the processor 0.800 ms (40%), ";
        assert!(critical.starts_with(begins), "{critical}");
        assert_eq!(gaps(&journey()).unwrap(), "nothing was heard of processor_logged, storer_read, storer_committed");
    }
}
