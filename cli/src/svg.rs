//! Pieces of SVG files, and the numbers at their axes.

use std::fmt::Write as _;

/// A line; `more` is further attributes, with a space in front.
pub(crate) fn line(out: &mut String, from: (f64, f64), to: (f64, f64), colour: &str, more: &str) {
    let ((x1, y1), (x2, y2)) = (from, to);
    let _ = writeln!(out, "<line x1='{x1:.1}' y1='{y1:.1}' x2='{x2:.1}' y2='{y2:.1}' stroke='{colour}'{more}/>");
}

/// A text; `more` is further attributes.
pub(crate) fn text(out: &mut String, x: f64, y: f64, anchor: &str, more: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(out, "<text x='{x:.1}' y='{y:.1}' text-anchor='{anchor}' {more}>{text}</text>");
}

/// The least of 1, 2 and 5 times a power of ten that is not below.
pub(crate) fn tick(least: f64) -> f64 {
    let power = 10_f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|digit| digit * power).into_iter().find(|tick| *tick >= least).unwrap_or(least)
}

/// A number as it stands at an axis: 2500 is 2.5k.
pub(crate) fn thousands(rate: f64) -> String {
    if rate >= 1_000.0 { format!("{}k", short(rate / 1_000.0)) } else { short(rate) }
}

/// A number without the noise of floats.
pub(crate) fn short(number: f64) -> String {
    format!("{}", (number * 1_000.0).round() / 1_000.0)
}

/// 1234567 as `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (nth, digit) in digits.chars().enumerate() {
        if nth > 0 && (digits.len() - nth).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
