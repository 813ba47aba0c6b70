//! Activity as an SVG file of its own: stacked bars by prefix over time, readable on light and dark.

use super::activity::{Counts, Per};
use crate::client::render::time;
use crate::svg::{line, short, text, thousands, tick};
use std::collections::BTreeMap;
use std::fmt::Write as _;

const WIDTH: f64 = 980.0;
const HEIGHT: f64 = 470.0;
const LEFT: f64 = 78.0;
const RIGHT: f64 = 956.0;
const TOP: f64 = 124.0;
const BOTTOM: f64 = 398.0;

/// Told apart by the colour-blind, too, and on light and dark. The last one is all others together.
const COLOURS: [&str; 8] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8a63d2", "#8c8c8c"];
/// Narrower bars are joined.
const BARS_MAX: u64 = 400;
const LEGEND_NAME_MAX: usize = 18;

const STYLE: &str = "<style>\
    .page{fill:#ffffff}.ink{fill:#222222}.muted{fill:#555555}.grid{color:#e2e2e2}.axis{color:#444444}\
    @media (prefers-color-scheme: dark){\
    .page{fill:#16181d}.ink{fill:#e8e8e8}.muted{fill:#a8adb5}.grid{color:#30343b}.axis{color:#9aa0a8}}\
    </style>\n";

/// Prefixes that have a colour of their own, the busiest first, each with its events.
fn busiest(counts: &Counts) -> (Vec<(String, u64)>, u64) {
    let mut totals: BTreeMap<&str, u64> = BTreeMap::new();
    for (prefix, events) in counts.by_begin.values().flatten() {
        *totals.entry(prefix).or_default() += events;
    }
    let mut totals: Vec<(String, u64)> = totals.into_iter().map(|(prefix, n)| (prefix.to_owned(), n)).collect();
    totals.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let own = if totals.len() > COLOURS.len() { COLOURS.len() - 1 } else { totals.len() };
    let others = totals.split_off(own).iter().map(|(_, events)| events).sum();
    (totals, others)
}

/// A bar: events per minute, hour or day of each colour.
type Bar = [f64; COLOURS.len()];

/// Bars from the first to the last beginning, `joined` minutes, hours or days in each.
fn bars(counts: &Counts, per: Per, span: (u64, u64), named: &[(String, u64)]) -> (Vec<Bar>, u64) {
    let all = (span.1.saturating_sub(span.0) / per.us()).saturating_add(1);
    let joined = all.div_ceil(BARS_MAX);
    let mut bars = vec![Bar::default(); all.div_ceil(joined) as usize];
    for (begin_us, of) in &counts.by_begin {
        let nth = begin_us.saturating_sub(span.0) / per.us() / joined;
        let Some(bar) = bars.get_mut(nth as usize) else { continue };
        for (prefix, events) in of {
            let colour = named.iter().position(|(name, _)| name == prefix).unwrap_or(COLOURS.len() - 1);
            bar[colour] += *events as f64 / joined as f64;
        }
    }
    (bars, joined)
}

/// Draws the events from the first to the last beginning, microseconds since the Unix epoch.
pub(super) fn svg(counts: &Counts, per: Per, span: (u64, u64), as_of: &str) -> String {
    let (named, others) = busiest(counts);
    let (bars, joined) = bars(counts, per, span, &named);
    let most = bars.iter().map(|bar| bar.iter().sum::<f64>()).fold(1.0, f64::max) * 1.05;
    let mut out = String::new();
    begin(&mut out, per, joined, as_of);
    legend(&mut out, &named, others);
    let step = tick(most / 6.0);
    let mut value = 0.0;
    while value <= most {
        let y = BOTTOM - value / most * (BOTTOM - TOP);
        line(&mut out, (LEFT, y), (RIGHT, y), "currentColor", " class='grid'");
        text(&mut out, LEFT - 8.0, y + 4.0, "end", "class='muted'", &thousands(value));
        value += step;
    }
    let width = (RIGHT - LEFT) / bars.len() as f64;
    for (nth, bar) in bars.iter().enumerate() {
        let begin_us = span.0 + nth as u64 * joined * per.us();
        draw(&mut out, bar, (LEFT + nth as f64 * width, width), most, &time(begin_us));
    }
    times(&mut out, span, bars.len() as u64 * joined * per.us());
    line(&mut out, (LEFT, BOTTOM), (RIGHT, BOTTOM), "currentColor", " class='axis'");
    line(&mut out, (LEFT, TOP), (LEFT, BOTTOM), "currentColor", " class='axis'");
    let (x, y) = (LEFT - 52.0, (TOP + BOTTOM) / 2.0);
    let turned = format!("class='ink' transform='rotate(-90 {x:.1} {y:.1})'");
    text(&mut out, x, y, "middle", &turned, &format!("events per {}", per.name()));
    text(&mut out, (LEFT + RIGHT) / 2.0, BOTTOM + 54.0, "middle", "class='ink'", "time (UTC)");
    out.push_str("</svg>\n");
    out
}

fn begin(out: &mut String, per: Per, joined: u64, as_of: &str) {
    let _ = write!(
        out,
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' width='{WIDTH}' height='{HEIGHT}' \
         font-family='system-ui, -apple-system, \"Segoe UI\", \"DejaVu Sans\", sans-serif' font-size='13'>\n\
         {STYLE}<rect width='100%' height='100%' class='page'/>\n"
    );
    let title = format!("Events per {} by prefix", per.name());
    text(out, 24.0, 34.0, "start", "class='ink' font-size='19' font-weight='600'", &title);
    let mut said = as_of.to_owned();
    if joined > 1 {
        let _ = write!(said, "; each bar is the mean of {joined} {}s", per.name());
    }
    text(out, 24.0, 56.0, "start", "class='muted'", &said);
}

/// In two rows of four.
fn legend(out: &mut String, named: &[(String, u64)], others: u64) {
    let mut entries: Vec<(&str, u64, &str)> =
        named.iter().zip(COLOURS).map(|((name, events), colour)| (name.as_str(), *events, colour)).collect();
    if others > 0 {
        entries.push(("others", others, COLOURS[COLOURS.len() - 1]));
    }
    for (nth, (name, events, colour)) in entries.into_iter().enumerate() {
        let (x, y) = (LEFT + (nth % 4) as f64 * 220.0, 74.0 + (nth / 4) as f64 * 20.0);
        let _ = writeln!(out, "<rect x='{x:.1}' y='{y:.1}' width='12' height='12' rx='2' fill='{colour}'/>");
        // The ends of ids tell more than their beginnings.
        let too_many = name.chars().count().saturating_sub(LEGEND_NAME_MAX);
        let short = match name.char_indices().nth(too_many) {
            Some((begin, _)) if too_many > 0 => format!("…{}", &name[begin..]),
            _ => name.to_owned(),
        };
        text(out, x + 18.0, y + 10.5, "start", "class='ink'", &format!("{short} ({events})"));
    }
}

fn draw(out: &mut String, bar: &Bar, (x, width): (f64, f64), most: f64, at: &str) {
    let gap = if width > 4.0 { 1.0 } else { 0.0 };
    let mut y = BOTTOM;
    for (events, colour) in bar.iter().zip(COLOURS).filter(|(events, _)| **events > 0.0) {
        let height = events / most * (BOTTOM - TOP);
        y -= height;
        let width = width - gap;
        let _ = writeln!(
            out,
            "<rect x='{x:.2}' y='{y:.2}' width='{width:.2}' height='{height:.2}' fill='{colour}'>\
             <title>{at}: {}</title></rect>",
            short(*events)
        );
    }
}

/// Steps of the time axis, in minutes; behind them days by powers of two.
const STEPS_MIN: [u64; 13] = [1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1_440, 2_880];
const MINUTE_US: u64 = 60_000_000;
const DAY_US: u64 = 1_440 * MINUTE_US;
const LABELS_MAX: u64 = 10;

/// The time axis: hours and minutes, and under them the date where it is a new one.
fn times(out: &mut String, span: (u64, u64), length_us: u64) {
    let fits = |step_us: &u64| length_us / step_us <= LABELS_MAX;
    let longer = (2_u32..40).map(|power| DAY_US << power);
    let mut steps = STEPS_MIN.iter().map(|minutes| minutes * MINUTE_US).chain(longer);
    let step_us = steps.find(fits).unwrap_or(length_us.max(1));
    let mut at_us = span.0.div_ceil(step_us).saturating_mul(step_us);
    let mut date = String::new();
    while at_us < span.0.saturating_add(length_us) {
        let x = LEFT + (at_us - span.0) as f64 / length_us as f64 * (RIGHT - LEFT);
        line(out, (x, BOTTOM), (x, BOTTOM + 5.0), "currentColor", " class='axis'");
        let at = time(at_us);
        let (day, clock) = at.split_once('T').unwrap_or((&at, ""));
        text(out, x, BOTTOM + 19.0, "middle", "class='muted'", clock.get(..5).unwrap_or(clock));
        if date != day {
            text(out, x, BOTTOM + 34.0, "middle", "class='muted' font-size='11'", day);
            date = day.to_owned();
        }
        at_us += step_us;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(rows: &[(u64, &str, u64)]) -> Counts {
        let mut counts = Counts::default();
        for (minute, prefix, events) in rows {
            counts.by_begin.entry(minute * MINUTE_US).or_default().insert((*prefix).to_owned(), *events);
        }
        counts
    }

    #[test]
    fn every_event_is_in_a_bar_inside_the_frame() {
        let names: Vec<String> = (0..12).map(|n| format!("plant/of/the/site{n}<&/")).collect();
        let rows: Vec<_> = (0..60).map(|n| (n, names[n as usize % 12].as_str(), n + 1)).collect();
        let counts = counts(&rows);
        let (named, others) = busiest(&counts);
        assert_eq!((named.len(), named[0].0.as_str()), (7, "plant/of/the/site11<&/"));
        assert_eq!(named.iter().map(|(_, events)| events).sum::<u64>() + others, 60 * 61 / 2);
        let (bars, joined) = bars(&counts, Per::Minute, (0, 59 * MINUTE_US), &named);
        assert_eq!((bars.len(), joined), (60, 1));
        assert_eq!(bars.iter().flatten().sum::<f64>(), 1_830.0);
        let svg = svg(&counts, Per::Minute, (0, 59 * MINUTE_US), "as of");
        assert_eq!(svg.matches("<title>").count(), 60);
        assert!(
            svg.contains("events per minute")
                && svg.contains("…t/of/the/site11&lt;&amp;/ (")
                && svg.contains("others (")
        );
        for part in svg.split("<rect x='").skip(1) {
            let number = |name: &str| -> f64 {
                let from = part.split_once(name).unwrap().1;
                from.split_once('\'').unwrap().0.parse().unwrap()
            };
            assert!(number("y='") >= 70.0 && number("y='") + number("height='") <= BOTTOM + 0.1, "{part}");
        }
    }

    #[test]
    fn a_long_time_is_drawn_in_fewer_bars_of_the_same_measure() {
        let rows: Vec<_> = (0..10_000).map(|n| (n, "a", 6)).collect();
        let counts = counts(&rows);
        let (named, _) = busiest(&counts);
        let (bars, joined) = bars(&counts, Per::Minute, (0, 9_999 * MINUTE_US), &named);
        assert_eq!((bars.len(), joined), (400, 25));
        assert!(bars.iter().all(|bar| (bar[0] - 6.0).abs() < 1e-9));
        let svg = svg(&counts, Per::Minute, (0, 9_999 * MINUTE_US), "");
        assert!(svg.contains("mean of 25 minutes"));
        assert!(svg.matches("class='muted' font-size='11'").count() >= 4, "dates");
        let empty = super::svg(&Counts::default(), Per::Day, (0, 0), "");
        assert!(empty.ends_with("</svg>\n") && !empty.contains("NaN"));
    }
}
