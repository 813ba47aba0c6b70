//! The page: facts in, HTML out. Pure: the same facts give the same bytes.

use super::chart::Columns;
use super::sections;
use super::text::{bytes, count, day, duration, escaped, many, time_element};
use fieldstream_storer::report::facts::Facts;
use std::fmt::Write as _;

/// Nothing is loaded and nothing runs, whatever the file's texts say.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

/// The whole page. `source` is what the file is called.
pub(super) fn page(facts: &Facts, source: &str) -> String {
    let mut out = String::with_capacity(64 * 1024);
    begin(&mut out, facts, source);
    tiles(&mut out, facts);
    sections::activity(&mut out, facts);
    sections::changes(&mut out, facts);
    sections::documents(&mut out, facts);
    sections::refused(&mut out, facts);
    sections::histories(&mut out, facts);
    sections::lanes(&mut out, facts);
    let _ = write!(
        out,
        "<footer><p>Made by <code>fieldstream report html</code> from {}, while the file may have been written: no \
         figure is older than the lanes' positions above, and later changes may be among them. All times are UTC.</p>\
         </footer>\n</main>\n</body>\n</html>\n",
        escaped(source)
    );
    out
}

/// A section with its heading.
pub(super) fn section(out: &mut String, id: &str, title: &str, content: impl FnOnce(&mut String)) {
    let _ = writeln!(out, "<section aria-labelledby=\"{id}\">\n<h2 id=\"{id}\">{}</h2>", escaped(title));
    content(out);
    out.push_str("</section>\n");
}

/// A remark that is no heading.
pub(super) fn remark(out: &mut String, class: &str, text: &str) {
    let _ = writeln!(out, "<p class=\"{class}\">{}</p>", escaped(text));
}

/// A chart with its legend and caption.
pub(super) fn figure(out: &mut String, columns: &Columns<'_>, caption: &str) {
    let _ = write!(
        out,
        "<figure>\n<div class=\"chart\" role=\"region\" tabindex=\"0\" aria-label=\"{}\">\n{}</div>\n<ul class=\"legend\">",
        escaped(&columns.title),
        columns.svg()
    );
    for (name, class, _) in &columns.series {
        let _ = write!(out, "<li><span class=\"key {class}\"></span><bdi>{}</bdi></li>", escaped(name));
    }
    let _ = writeln!(out, "</ul>\n<figcaption>{}</figcaption>\n</figure>", escaped(caption));
}

fn begin(out: &mut String, facts: &Facts, source: &str) {
    let behind = duration(facts.as_of.behind_us(facts.read_at_us));
    let positions: Vec<String> = facts.as_of.lanes.iter().map(|lane| count(lane.events_sequence)).collect();
    let (noun, positions) = match positions.as_slice() {
        [one] => ("sequence", one.clone()),
        more => ("sequences", more.join(", ")),
    };
    let _ = write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"generator\" content=\"fieldstream {}\">\n<title>Fieldstream report: {source}</title>\n\
         <style>\n{}</style>\n</head>\n<body>\n<main>\n<h1>Fieldstream report</h1>\n\
         <p>As of EVENTS {noun} {positions}, committed {}, <strong>{behind} behind</strong>. <span \
         class=\"soft\">Read {} (UTC) from <bdi>{source}</bdi>.</span></p>\n",
        env!("CARGO_PKG_VERSION"),
        include_str!("style.css"),
        time_element(facts.as_of.committed_at_us()),
        time_element(facts.read_at_us),
        source = escaped(source),
    );
}

fn tiles(out: &mut String, facts: &Facts) {
    let (file, documents, changes) = (&facts.file, &facts.documents, &facts.changes);
    let alive = documents.texts + documents.structured;
    let (texts, structured) = (many(documents.texts, "text"), count(documents.structured));
    let kinds = format!("{texts}, {structured} structured, {} deleted", count(documents.absent));
    let rates = changes.bounds_us.map(|(first, last)| last.saturating_sub(first)).filter(|span_us| *span_us > 0);
    let rates = rates.map_or_else(String::new, |span_us| format!("within {}", duration(span_us)));
    let counted = if changes.is_cut { format!("the newest, {rates}") } else { rates };
    let share = file.used_bytes.saturating_mul(100).checked_div(file.file_bytes).unwrap_or(0);
    let refused: u64 = facts.clients.refused.iter().map(|(_, number)| number).sum();
    let tiles = [
        ("Documents", count(alive), kinds),
        ("Changes counted", count(changes.counted), counted),
        ("History rows", count(file.history_rows), format!("{} of keys and values", bytes(facts.histories.bytes))),
        (
            "Clients",
            count(facts.clients.clients),
            format!("{} heard of in the last day", count(facts.clients.of_last_day)),
        ),
        ("Refused", count(refused), "that clients may still ask about".to_owned()),
        ("Dead letters", count(file.dead_letters), "kept until looked at".to_owned()),
        ("File", bytes(file.file_bytes), format!("{share} % of it used, {} of bodies", bytes(documents.body_bytes))),
        ("Oldest change", file.oldest_change_us.map_or_else(|| "–".to_owned(), day), oldest(facts)),
    ];
    out.push_str("<dl class=\"tiles\">\n");
    for (name, figure, more) in tiles {
        let _ = writeln!(
            out,
            "<div><dt>{name}</dt><dd class=\"figure\">{}</dd><dd class=\"more\">{}</dd></div>",
            escaped(&figure),
            escaped(&more)
        );
    }
    out.push_str("</dl>\n");
}

fn oldest(facts: &Facts) -> String {
    match (facts.file.by_time_rows, facts.file.oldest_change_us) {
        (None, _) => "the file has no index by time".to_owned(),
        (_, None) => "no change yet".to_owned(),
        (_, Some(us)) => format!("{} before this report", duration(facts.read_at_us.saturating_sub(us))),
    }
}
