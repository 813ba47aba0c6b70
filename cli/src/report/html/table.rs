//! Tables of the page.

use super::text::{count, cut, escaped, time_element};
use std::fmt::Write as _;

/// Longer names and reasons are cut.
const CHARS_MAX: usize = 300;

/// A cell.
pub(super) enum Cell {
    /// A name of the file: an id, a code.
    Name(String),
    /// A name with the class of its colour in the chart.
    Key(&'static str, String),
    /// Words.
    Text(String),
    /// A number.
    Number(u64),
    /// A number, with or without a unit, with a bar of such a share, 0 to 1.
    Bar(String, f64),
    /// A number with its unit.
    Measure(String),
    /// A time, microseconds since the Unix epoch; 0 if nobody knows.
    Time(u64),
}

impl Cell {
    fn class(&self) -> &'static str {
        match self {
            Cell::Name(_) | Cell::Key(..) => "name",
            Cell::Text(_) => "text",
            Cell::Number(_) | Cell::Bar(..) | Cell::Measure(_) => "number",
            Cell::Time(_) => "time",
        }
    }

    fn html(&self) -> String {
        // Ids may be written from right to left: they must not turn round what stands beside them.
        let isolated = |text: &str| format!("<bdi>{}</bdi>", escaped(&cut(text, CHARS_MAX)));
        match self {
            Cell::Name(name) => isolated(name),
            Cell::Key(class, name) => format!("<span class=\"key {class}\"></span>{}", isolated(name)),
            Cell::Text(text) => isolated(text),
            Cell::Number(number) => count(*number),
            Cell::Bar(number, share) => {
                let percent = share.clamp(0.0, 1.0) * 100.0;
                format!("{}<span class=\"bar\" style=\"width:{percent:.1}%\"></span>", escaped(number))
            }
            Cell::Measure(text) => escaped(text).into_owned(),
            Cell::Time(0) => "–".to_owned(),
            Cell::Time(time_us) => time_element(*time_us),
        }
    }
}

/// A table with a caption.
pub(super) struct Table {
    caption: String,
    head: &'static [&'static str],
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(super) fn new(caption: impl Into<String>, head: &'static [&'static str], rows: Vec<Vec<Cell>>) -> Table {
        Table { caption: caption.into(), head, rows }
    }

    /// The element, or a sentence if there is nothing to show.
    pub(super) fn write(&self, out: &mut String, empty: &str) {
        let caption = escaped(&self.caption);
        if self.rows.is_empty() {
            let _ = writeln!(out, "<h3>{caption}</h3>\n<p class=\"soft\">{}</p>", escaped(empty));
            return;
        }
        let _ = write!(
            out,
            "<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-label=\"{caption}\"><table>\
             <caption>{caption}</caption>\n<thead><tr>"
        );
        for (nth, title) in self.head.iter().enumerate() {
            let class = self.rows.first().and_then(|row| row.get(nth)).map_or("text", Cell::class);
            let class = if class == "number" { " class=\"number\"" } else { "" };
            let _ = write!(out, "<th scope=\"col\"{class}>{}</th>", escaped(title));
        }
        out.push_str("</tr></thead>\n<tbody>\n");
        for row in &self.rows {
            out.push_str("<tr>");
            for (nth, cell) in row.iter().enumerate() {
                let (class, html) = (cell.class(), cell.html());
                let _ = match nth {
                    0 => write!(out, "<th scope=\"row\" class=\"{class}\">{html}</th>"),
                    _ => write!(out, "<td class=\"{class}\">{html}</td>"),
                };
            }
            out.push_str("</tr>\n");
        }
        out.push_str("</tbody></table></div>\n");
    }
}
