//! The charts: stacked columns as inline SVG. Colours are classes of the page's style.

use super::text::{count, escaped};
use crate::svg;
use std::fmt::Write as _;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 948.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 242.0;
/// Columns are at most so wide, so that a few do not look like walls.
const COLUMN_MAX: f64 = 64.0;

/// Columns that are stacked of series.
pub(super) struct Columns<'a> {
    /// Read out instead of the picture.
    pub(super) title: String,
    /// What the numbers are.
    pub(super) y_label: String,
    /// What the columns are.
    pub(super) x_label: String,
    /// One per column, for its tooltips.
    pub(super) names: Vec<String>,
    /// Labels below columns: which, and the text.
    pub(super) ticks: Vec<(usize, String)>,
    /// Name, class, a number per column; the first stands at the bottom.
    pub(super) series: Vec<(&'a str, &'static str, &'a [u64])>,
}

impl Columns<'_> {
    fn total(&self, column: usize) -> u64 {
        self.series.iter().filter_map(|(_, _, numbers)| numbers.get(column)).sum()
    }

    fn y(&self, number: u64, most: f64) -> f64 {
        BOTTOM - number as f64 / most * (BOTTOM - TOP)
    }

    /// The SVG element.
    pub(super) fn svg(&self) -> String {
        let most = (0..self.names.len()).map(|column| self.total(column)).max().unwrap_or(0).max(1) as f64;
        let step = svg::tick(most / 5.0).max(1.0);
        let most = (most / step).ceil() * step;
        let mut out =
            format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">\n", escaped(&self.title));
        self.axes(&mut out, most, step);
        let slot = (RIGHT - LEFT) / self.names.len().max(1) as f64;
        for (column, name) in self.names.iter().enumerate() {
            self.column(&mut out, column, name, slot, most);
        }
        for (column, label) in &self.ticks {
            let x = LEFT + (*column as f64 + 0.5) * slot;
            let _ = writeln!(
                out,
                "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                BOTTOM + 20.0,
                escaped(label)
            );
        }
        out.push_str("</svg>\n");
        out
    }

    fn axes(&self, out: &mut String, most: f64, step: f64) {
        let mut number = 0.0;
        while number <= most {
            let y = BOTTOM - number / most * (BOTTOM - TOP);
            let class = if number > 0.0 { "grid" } else { "axis" };
            let _ = writeln!(
                out,
                "<line class=\"{class}\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{RIGHT}\" y2=\"{y:.1}\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 8.0,
                y + 4.0,
                svg::thousands(number)
            );
            number += step;
        }
        let middle = (TOP + BOTTOM) / 2.0;
        let _ = writeln!(
            out,
            "<text x=\"14\" y=\"{middle}\" text-anchor=\"middle\" transform=\"rotate(-90 14 {middle})\">{}</text>\
             <text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            escaped(&self.y_label),
            (LEFT + RIGHT) / 2.0,
            BOTTOM + 46.0,
            escaped(&self.x_label)
        );
    }

    fn column(&self, out: &mut String, column: usize, name: &str, slot: f64, most: f64) {
        let width = (slot * 0.86).clamp(0.6, COLUMN_MAX);
        let x = LEFT + (column as f64 + 0.5) * slot - width / 2.0;
        let mut below = 0;
        for (series, class, numbers) in &self.series {
            let number = numbers.get(column).copied().unwrap_or(0);
            if number == 0 {
                continue;
            }
            let (low, high) = (self.y(below, most), self.y(below + number, most));
            below += number;
            // However little it is, it is not nothing.
            let height = (low - high).max(1.0);
            let high = low - height;
            let _ = writeln!(
                out,
                "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{high:.1}\" width=\"{width:.1}\" height=\"{:.1}\"><title>{}: {} \
                 {} of {}</title></rect>",
                height,
                escaped(name),
                escaped(series),
                count(number),
                count(self.total(column))
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns<'a>(names: usize, series: Vec<(&'a str, &'static str, &'a [u64])>) -> Columns<'a> {
        Columns {
            title: "t".into(),
            y_label: "changes".into(),
            x_label: "time".into(),
            names: (0..names).map(|n| format!("n{n}")).collect(),
            ticks: vec![(0, "<first>".into())],
            series,
        }
    }

    #[test]
    fn columns_are_stacked_inside_the_frame() {
        let (a, b) = ([3, 0, 10], [7, 0, 0]);
        let svg = columns(3, vec![("a", "s0", &a), ("b<", "rest", &b)]).svg();
        assert_eq!(svg.matches("<rect").count(), 3, "none for what is 0");
        assert!(svg.contains("n0: b&lt; 7 of 10") && svg.contains("&lt;first&gt;"));
        let rects: Vec<(f64, f64)> =
            svg.split("<rect").skip(1).map(|rect| (of(rect, " y="), of(rect, " height="))).collect();
        let full = BOTTOM - TOP;
        assert!((rects[0].1 - full * 0.3).abs() < 0.11 && (rects[1].1 - full * 0.7).abs() < 0.11, "{rects:?}");
        assert!((rects[0].0 - (rects[1].0 + rects[1].1)).abs() < 0.11, "the second stands on the first");
        assert!(rects.iter().all(|(y, height)| *y >= TOP - 0.1 && y + height <= BOTTOM + 0.1));
    }

    fn of(rect: &str, attribute: &str) -> f64 {
        rect.split(attribute).nth(1).unwrap().split('"').nth(1).unwrap().parse().unwrap()
    }

    #[test]
    fn nothing_and_very_much_have_axes() {
        let none = columns(0, vec![]).svg();
        assert!(none.starts_with("<svg") && none.ends_with("</svg>\n") && none.contains(">1</text>"));
        let much = columns(1, vec![("a", "s0", &[u64::MAX / 2])]).svg();
        assert!(much.matches("<text").count() < 20 && much.contains("<rect"));
    }
}
