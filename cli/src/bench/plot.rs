//! Latency over load, as an SVG file of its own: deliveries on the left, acknowledgements on the
//! right, over the same axes.

use super::figures::{Figures, Head, Percentiles};
use crate::svg::{grouped, line, short, text, thousands, tick};
use std::fmt::Write as _;

const WIDTH: f64 = 980.0;
const HEIGHT: f64 = 470.0;
const TOP: f64 = 112.0;
const BOTTOM: f64 = 404.0;
/// Where the two panels begin and how wide they are.
const PANELS: [f64; 2] = [70.0, 540.0];
const PANEL_WIDTH: f64 = 400.0;

/// A percentile's name, its colour (told apart by the colour-blind, too), and where it stands.
type Curve = (&'static str, &'static str, fn(&Percentiles) -> Option<f64>);
const CURVES: [Curve; 3] =
    [("p50", "#0072b2", |of| of.p50), ("p99", "#d55e00", |of| of.p99), ("p99.9", "#6a3d9a", |of| of.p999)];

/// A delivery p99 above is not sustained.
const LIMIT_MS: f64 = 100.0;

/// Draws the steps of a run. A rate that was tried twice is drawn as it came out last.
pub(super) fn svg(head: &Head, done: &[Figures]) -> String {
    let mut steps: Vec<&Figures> = Vec::new();
    for figures in done {
        steps.retain(|earlier| earlier.offered != figures.offered);
        steps.push(figures);
    }
    steps.sort_by(|a, b| a.offered.total_cmp(&b.offered));
    let axes = Axes::of(&steps);
    let mut out = String::new();
    begin(&mut out, head);
    let deliveries: fn(&Figures) -> &Percentiles = |figures| &figures.delivery;
    let acks: fn(&Figures) -> &Percentiles = |figures| &figures.ack;
    let ack_title = format!("Acknowledgement ({}) at the sender", head.ack);
    let panels = [("Delivery to each watcher", deliveries), (ack_title.as_str(), acks)];
    for (left, (title, percentiles)) in PANELS.into_iter().zip(panels) {
        axes.draw(&mut out, left, title);
        for (name, colour, value) in CURVES {
            let points: Vec<Point> = steps
                .iter()
                .filter_map(|figures| {
                    let ms = value(percentiles(figures))?;
                    Some(Point { x: left + axes.x(figures.offered), y: axes.y(ms), sustained: figures.sustained })
                })
                .collect();
            curve(&mut out, name, colour, &points);
        }
    }
    out.push_str("</svg>\n");
    out
}

struct Point {
    x: f64,
    y: f64,
    sustained: bool,
}

/// Load from 0, in steps people would choose; milliseconds by powers of ten.
struct Axes {
    rate_max: f64,
    rate_tick: f64,
    /// Exponents of ten.
    low: i32,
    high: i32,
}

impl Axes {
    fn of(steps: &[&Figures]) -> Axes {
        let rate_max = steps.iter().fold(1.0, |max: f64, figures| max.max(figures.offered)) * 1.04;
        let all = steps.iter().flat_map(|figures| [&figures.delivery, &figures.ack]);
        let all: Vec<f64> = all.flat_map(|of| CURVES.iter().filter_map(|(_, _, value)| value(of))).collect();
        let least = all.iter().fold(LIMIT_MS, |least: f64, ms| least.min(*ms)).max(0.001);
        let most = all.iter().fold(LIMIT_MS, |most: f64, ms| most.max(*ms));
        Axes {
            rate_max,
            rate_tick: tick(rate_max / 8.0),
            low: least.log10().floor() as i32,
            high: (most * 1.1).log10().ceil() as i32,
        }
    }

    fn x(&self, rate: f64) -> f64 {
        rate / self.rate_max * PANEL_WIDTH
    }

    fn y(&self, ms: f64) -> f64 {
        let share = (ms.max(0.001).log10() - f64::from(self.low)) / f64::from(self.high - self.low);
        BOTTOM - share.clamp(0.0, 1.0) * (BOTTOM - TOP)
    }

    fn draw(&self, out: &mut String, left: f64, title: &str) {
        let right = left + PANEL_WIDTH;
        text(out, left, TOP - 14.0, "start", "font-size='15' font-weight='600'", title);
        for exponent in self.low..=self.high {
            for digit in [1.0, 2.0, 5.0] {
                let ms = digit * 10_f64.powi(exponent);
                if exponent == self.high && digit > 1.0 {
                    continue;
                }
                let y = self.y(ms);
                line(out, (left, y), (right, y), if digit > 1.0 { "#f0f0f0" } else { "#d4d4d4" }, "");
                if digit == 1.0 || self.high - self.low <= 3 {
                    text(out, left - 8.0, y + 4.0, "end", "fill='#444'", &short(ms));
                }
            }
        }
        let mut rate = 0.0;
        while rate <= self.rate_max {
            let x = left + self.x(rate);
            line(out, (x, TOP), (x, BOTTOM), "#e6e6e6", "");
            text(out, x, BOTTOM + 20.0, "middle", "fill='#444'", &thousands(rate));
            rate += self.rate_tick;
        }
        line(out, (left, BOTTOM), (right, BOTTOM), "#444", "");
        line(out, (left, TOP), (left, BOTTOM), "#444", "");
        let limit = self.y(LIMIT_MS);
        line(out, (left, limit), (right, limit), "#888", " stroke-dasharray='6 4'");
        text(out, left + 6.0, limit - 5.0, "start", "fill='#666' font-size='12'", "100 ms");
        text(out, left + PANEL_WIDTH / 2.0, BOTTOM + 44.0, "middle", "fill='#222'", "instructions per second, offered");
        let (x, y) = (left - 48.0, (TOP + BOTTOM) / 2.0);
        let turned = format!("fill='#222' transform='rotate(-90 {x:.1} {y:.1})'");
        text(out, x, y, "middle", &turned, "milliseconds since due");
    }
}

/// Title, what was measured, legend.
fn begin(out: &mut String, head: &Head) {
    let _ = write!(
        out,
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' width='{WIDTH}' height='{HEIGHT}' \
         font-family='system-ui, -apple-system, \"Segoe UI\", \"DejaVu Sans\", sans-serif' font-size='13'>\n\
         <rect width='100%' height='100%' fill='#ffffff'/>\n"
    );
    text(out, 24.0, 34.0, "start", "font-size='19' font-weight='600'", "Latency over load");
    let mut said = format!(
        "{} clients, {} documents, {} bytes, {}",
        grouped(head.clients as u64),
        grouped(head.docs as u64),
        head.size,
        head.transport
    );
    for more in [&head.profile, &head.note] {
        if !more.is_empty() {
            let _ = write!(said, ", {more}");
        }
    }
    text(out, 24.0, 56.0, "start", "fill='#555'", &said);
    let mut x = 540.0;
    for (name, colour, _) in CURVES {
        line(out, (x, 30.0), (x + 26.0, 30.0), colour, " stroke-width='2.5'");
        text(out, x + 32.0, 34.0, "start", "", name);
        x += 84.0;
    }
    dot(out, 553.0, 52.0, "#444", false);
    text(out, 572.0, 56.0, "start", "fill='#555'", "not sustained (late, missing, or below 97 % of the load)");
}

fn curve(out: &mut String, name: &str, colour: &str, points: &[Point]) {
    if points.len() > 1 {
        let at: Vec<String> = points.iter().map(|point| format!("{:.1},{:.1}", point.x, point.y)).collect();
        let at = at.join(" ");
        let _ = writeln!(
            out,
            "<polyline points='{at}' fill='none' stroke='{colour}' stroke-width='2' stroke-linejoin='round'>\
             <title>{name}</title></polyline>"
        );
    }
    points.iter().for_each(|point| dot(out, point.x, point.y, colour, point.sustained));
}

fn dot(out: &mut String, x: f64, y: f64, colour: &str, filled: bool) {
    let fill = if filled { colour } else { "#ffffff" };
    let _ =
        writeln!(out, "<circle cx='{x:.1}' cy='{y:.1}' r='3.5' fill='{fill}' stroke='{colour}' stroke-width='1.6'/>");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        Head {
            peer: "fieldstream",
            version: "1",
            run: "r".into(),
            clients: 1_000,
            docs: 333,
            size: 500,
            transport: "tcp",
            profile: "a<b & c".into(),
            ack: "applied",
            note: String::new(),
            connect_s: 0.1,
            rss_per_conn_kb: None,
        }
    }

    fn step(offered: f64, ms: f64, sustained: bool) -> Figures {
        let of = Percentiles { p50: Some(ms), p99: Some(3.0 * ms), p999: Some(9.0 * ms), max: Some(20.0 * ms) };
        Figures { offered, ack: of, delivery: of, sustained, ..Figures::default() }
    }

    #[test]
    fn a_picture_holds_every_step_inside_its_frame() {
        let failed = step(20_000.0, 400.0, false);
        let done = [step(1_000.0, 2.5, true), step(10_000.0, 4.0, true), step(20_000.0, 90.0, false), failed];
        let svg = svg(&head(), &done);
        assert_eq!(svg.matches("<polyline").count(), 6);
        // The legend has one more.
        assert_eq!(svg.matches("<circle").count(), 1 + 3 * 6);
        assert_eq!(svg.matches("fill='#ffffff' stroke").count(), 1 + 6, "what was not sustained is hollow");
        assert!(svg.contains("a&lt;b &amp; c") && svg.contains(">20k<") && svg.contains("1,000 clients"));
        for coordinate in svg.split("cy='").skip(1) {
            let y: f64 = coordinate.split('\'').next().unwrap().parse().unwrap();
            assert!((TOP..=BOTTOM).contains(&y) || y == 52.0, "{y}");
        }
    }

    #[test]
    fn steps_without_figures_leave_a_gap_and_no_panic() {
        let svg = svg(&head(), &[step(1_000.0, 2.5, true), Figures { offered: 2_000.0, ..Figures::default() }]);
        assert_eq!(svg.matches("<polyline").count(), 0);
        assert!(super::svg(&head(), &[]).ends_with("</svg>\n"));
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!([tick(0.9), tick(1.1), tick(2_100.0), tick(6_000.0)], [1.0, 2.0, 5_000.0, 10_000.0]);
        assert_eq!([thousands(500.0), thousands(15_000.0), thousands(2_500.0)], ["500", "15k", "2.5k"]);
        assert_eq!([grouped(7), grouped(1_000), grouped(1_234_567)], ["7", "1,000", "1,234,567"]);
    }
}
