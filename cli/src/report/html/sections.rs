//! The sections of the page, one function each.

use super::chart::Columns;
use super::page::{figure, remark, section};
use super::table::{Cell, Table};
use super::text::{bytes, count, duration, many, minute, step, time};
use fieldstream_storer::report::facts::{Activity, Busy, ChangeFacts, Facts, Series, SizeClass};

/// Classes of colours, for the series of a chart in order.
const COLOURS: [&str; 8] = ["s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7"];
const REST: &str = "rest";
/// Labels below a chart's columns.
const TICKS: usize = 6;

fn colour(nth: usize, series: &Series) -> &'static str {
    if series.prefix.is_none() { REST } else { COLOURS.get(nth).copied().unwrap_or(REST) }
}

fn name(series: &Series) -> &str {
    series.prefix.as_deref().unwrap_or("other")
}

fn share(part: u64, of: u64) -> f64 {
    if of == 0 { 0.0 } else { part as f64 / of as f64 }
}

pub(super) fn activity(out: &mut String, facts: &Facts) {
    let (changes, activity) = (&facts.changes, &facts.changes.activity);
    section(out, "activity", "Activity", |out| {
        remark(out, "soft", &which(changes));
        if facts.file.by_time_rows.is_none() {
            let text = "This file has no index by time (a storer of this version makes it when it opens the file). \
                        Changes were counted in the order of document ids instead of the newest first.";
            remark(out, "note", text);
        }
        if changes.counted == 0 {
            return;
        }
        let totals = activity.totals();
        let per = step(activity.step_s);
        let names: Vec<String> = (0..totals.len()).map(|nth| minute(begin_us(activity, nth))).collect();
        let title = format!("Changes per {per} by prefix");
        let columns = Columns {
            title: title.clone(),
            y_label: format!("changes per {per}"),
            x_label: format!(
                "event time, UTC; a column is {}",
                if per.starts_with(char::is_numeric) { per.clone() } else { format!("one {per}") }
            ),
            ticks: ticks(activity, &names),
            names,
            series: activity
                .series
                .iter()
                .enumerate()
                .map(|(nth, series)| (name(series), colour(nth, series), series.changes.as_slice()))
                .collect(),
        };
        let most = totals.iter().enumerate().max_by_key(|(nth, total)| (**total, std::cmp::Reverse(*nth)));
        let most = most.map_or_else(String::new, |(nth, total)| {
            format!("The most in one {per}: {}, from {}. ", count(*total), time(begin_us(activity, nth)))
        });
        figure(out, &columns, &format!("{title}. {most}A prefix is an id up to its first slash."));
        prefixes(out, changes);
        steps(out, activity, &totals);
    });
}

/// What was counted, in a sentence.
fn which(changes: &ChangeFacts) -> String {
    let Some((first, last)) = changes.bounds_us else { return "There are no changes in this file.".to_owned() };
    let which = if changes.is_cut { "The newest" } else { "All" };
    format!(
        "{which} {} were counted: from {} to {}, {}.",
        many(changes.counted, "change"),
        time(first),
        time(last),
        duration(last.saturating_sub(first))
    )
}

fn begin_us(activity: &Activity, nth: usize) -> u64 {
    activity.first_us.saturating_add((nth as u64).saturating_mul(activity.step_s).saturating_mul(1_000_000))
}

/// Labels below some columns: the time of day, the day, or both where it changes.
fn ticks(activity: &Activity, names: &[String]) -> Vec<(usize, String)> {
    let apart = names.len().div_ceil(TICKS).max(1);
    let mut day = "";
    let chosen = names.iter().enumerate().skip(apart / 2).step_by(apart);
    chosen
        .map(|(nth, name)| {
            let (date, hour) = name.split_at_checked(10).unwrap_or((name, ""));
            let is_new = std::mem::replace(&mut day, date) != date;
            let label = match (activity.step_s >= 86_400, is_new) {
                (true, _) => date.to_owned(),
                (false, true) => name.clone(),
                (false, false) => hour.trim_start().to_owned(),
            };
            (nth, label)
        })
        .collect()
}

fn prefixes(out: &mut String, changes: &ChangeFacts) {
    let activity = &changes.activity;
    let rows = activity.series.iter().enumerate().map(|(nth, series)| {
        let sum: u64 = series.changes.iter().sum();
        let part = share(sum, changes.counted);
        let key = Cell::Key(colour(nth, series), name(series).to_owned());
        vec![key, Cell::Bar(count(sum), part), Cell::Measure(format!("{:.1} %", part * 100.0))]
    });
    let told = match activity.prefixes {
        Some(prefixes) => format!("Changes by prefix, of {} there are", count(prefixes as u64)),
        None => "Changes by prefix; there are too many prefixes to tell all apart".to_owned(),
    };
    Table::new(told, &["prefix", "changes", "share"], rows.collect()).write(out, "None.");
}

fn steps(out: &mut String, activity: &Activity, totals: &[u64]) {
    let most = totals.iter().copied().max().unwrap_or(0);
    let rows = totals.iter().enumerate().filter(|(_, total)| **total > 0);
    let rows = rows
        .map(|(nth, total)| vec![Cell::Time(begin_us(activity, nth)), Cell::Bar(count(*total), share(*total, most))]);
    out.push_str("<details><summary>The same as a table</summary>\n");
    let caption = format!("Changes per {}, without those that had none", step(activity.step_s));
    Table::new(caption, &["from", "changes"], rows.collect()).write(out, "None.");
    out.push_str("</details>\n");
}

fn busy(out: &mut String, caption: &str, head: &'static [&'static str], busy: &[Busy]) {
    let most = busy.iter().map(|busy| busy.changes).max().unwrap_or(0);
    let row = |busy: &Busy| {
        vec![
            Cell::Name(busy.id.clone()),
            Cell::Bar(count(busy.changes), share(busy.changes, most)),
            Cell::Time(busy.last_us),
        ]
    };
    Table::new(caption, head, busy.iter().map(row).collect()).write(out, "None.");
}

pub(super) fn changes(out: &mut String, facts: &Facts) {
    let changes = &facts.changes;
    section(out, "busiest", "Who and what changes most", |out| {
        remark(out, "soft", "Of the changes counted above.");
        for (what, missed) in [("document", changes.busiest_missed_max), ("client", changes.clients_missed_max)] {
            if missed > 0 {
                let text = format!(
                    "There are more {what}s than were remembered while counting: a {what}'s number of changes may be up to {} too low.",
                    count(missed)
                );
                remark(out, "note", &text);
            }
        }
        if changes.by_nobody_known > 0 {
            let text = format!(
                "The history of {} is gone, so nothing tells which clients made them.",
                many(changes.by_nobody_known, "change")
            );
            remark(out, "note", &text);
        }
        out.push_str("<div class=\"beside\">\n");
        busy(out, "Busiest documents", &["document", "changes", "last change (UTC)"], &changes.busiest);
        busy(out, "Clients with the most changes", &["client", "changes", "last seen (UTC)"], &changes.clients);
        out.push_str("</div>\n");
    });
}

pub(super) fn documents(out: &mut String, facts: &Facts) {
    let documents = &facts.documents;
    section(out, "documents", "Documents", |out| {
        let alive = documents.texts + documents.structured;
        let text = format!(
            "{}: {} and {} structured, with {} of bodies. Deleted: {}.",
            many(alive, "document"),
            many(documents.texts, "text"),
            count(documents.structured),
            bytes(documents.body_bytes),
            count(documents.absent)
        );
        remark(out, "soft", &text);
        if alive > 0 {
            sizes(out, &documents.sizes);
        }
        out.push_str("<div class=\"beside\">\n");
        let silent = documents.silent.iter().map(|silent| {
            let ago = duration(facts.read_at_us.saturating_sub(silent.last_change_us));
            vec![Cell::Name(silent.document.clone()), Cell::Time(silent.last_change_us), Cell::Measure(ago)]
        });
        let head = &["document", "last change (UTC)", "silent for"];
        Table::new("Silent for longest", head, silent.collect()).write(out, "There are no documents.");
        let largest = documents.largest.iter().map(|largest| {
            let size = Cell::Measure(bytes(largest.body_bytes));
            vec![Cell::Name(largest.document.clone()), size, Cell::Number(largest.revision)]
        });
        let head = &["document", "size", "revision"];
        Table::new("Largest documents", head, largest.collect()).write(out, "There are no documents.");
        out.push_str("</div>\n");
    });
}

fn sizes(out: &mut String, sizes: &[SizeClass]) {
    let names: Vec<String> = sizes
        .iter()
        .scan(None, |before: &mut Option<u64>, class| {
            let name = match (class.upto_bytes, *before) {
                (u64::MAX, Some(before)) => format!("> {}", short(before)),
                (upto, _) => format!("≤ {}", short(upto)),
            };
            *before = Some(class.upto_bytes);
            Some(name)
        })
        .collect();
    let texts: Vec<u64> = sizes.iter().map(|class| class.texts).collect();
    let structured: Vec<u64> = sizes.iter().map(|class| class.structured).collect();
    let columns = Columns {
        title: "Sizes of documents".to_owned(),
        y_label: "documents".to_owned(),
        x_label: "size of the body; each column begins where the one before ends".to_owned(),
        ticks: names.iter().cloned().enumerate().collect(),
        names,
        series: vec![("texts", "s0", texts.as_slice()), ("structured", "s1", structured.as_slice())],
    };
    figure(out, &columns, "How many documents are how large, deleted ones left out.");
}

/// Bytes without a fraction, for bounds that are powers of two.
fn short(number: u64) -> String {
    match number {
        0..1_024 => format!("{number} B"),
        1_024..1_048_576 => format!("{} KiB", number / 1_024),
        _ => format!("{} MiB", number / 1_048_576),
    }
}

pub(super) fn refused(out: &mut String, facts: &Facts) {
    let letters = &facts.dead_letters;
    section(out, "refused", "Refused instructions and dead letters", |out| {
        let text = "Refused: only what clients may still ask about, at most 32 instructions of each client and \
                    partition. Dead letters: records that could not be carried out because of themselves.";
        remark(out, "soft", text);
        out.push_str("<div class=\"beside\">\n");
        for (caption, empty, codes) in [
            ("Refused, by code", "None was refused.", &facts.clients.refused),
            ("Dead letters, by code", "There are no dead letters.", &letters.by_code),
        ] {
            let most = codes.iter().map(|(_, number)| *number).max().unwrap_or(0);
            let rows = codes.iter().map(|(code, number)| {
                let meaning = code.meaning().replace('`', "");
                vec![Cell::Name(code.to_string()), Cell::Text(meaning), Cell::Bar(count(*number), share(*number, most))]
            });
            Table::new(caption, &["code", "meaning", "how many"], rows.collect()).write(out, empty);
        }
        out.push_str("</div>\n");
        let rows = letters.last.iter().map(|letter| {
            let (lane, sequence, index) = letter.id;
            let (client, document) = letter.origin.clone().unwrap_or_else(|| ("–".to_owned(), "–".to_owned()));
            vec![
                Cell::Time(letter.received_at_us),
                Cell::Name(letter.code.to_string()),
                Cell::Text(letter.reason.clone()),
                Cell::Name(document),
                Cell::Name(client),
                Cell::Name(format!("{lane}-{sequence}-{index}")),
            ]
        });
        let head = &["received (UTC)", "code", "reason", "document", "client", "id"];
        if !letters.last.is_empty() {
            Table::new("The last dead letters", head, rows.collect()).write(out, "");
        }
    });
}

pub(super) fn histories(out: &mut String, facts: &Facts) {
    let histories = &facts.histories;
    section(out, "histories", "Histories", |out| {
        let text = format!(
            "{} of history take {} of keys and values.",
            many(histories.counted, "row"),
            bytes(histories.bytes)
        );
        remark(out, "soft", &text);
        if histories.is_cut {
            let text = "There are more rows; those of documents further behind in the order of ids were not added up.";
            remark(out, "note", text);
        }
        let most = histories.largest.first().map_or(0, |long| long.bytes);
        let rows = histories.largest.iter().map(|long| {
            let size = Cell::Bar(bytes(long.bytes), share(long.bytes, most));
            vec![Cell::Name(long.document.clone()), Cell::Number(long.rows), size]
        });
        let head = &["document", "rows", "size"];
        Table::new("Largest histories", head, rows.collect()).write(out, "There is no history.");
    });
}

pub(super) fn lanes(out: &mut String, facts: &Facts) {
    section(out, "lanes", "Lanes and file", |out| {
        out.push_str("<div class=\"beside\">\n");
        let rows = facts.as_of.lanes.iter().map(|lane| {
            vec![
                Cell::Text(lane.lane.to_string()),
                Cell::Number(lane.events_sequence),
                Cell::Time(lane.committed_at_us),
                Cell::Measure(duration(facts.read_at_us.saturating_sub(lane.committed_at_us))),
            ]
        });
        let head = &["lane", "EVENTS sequence", "committed (UTC)", "behind"];
        Table::new("Stored up to", head, rows.collect()).write(out, "There are no lanes.");
        let file = &facts.file;
        let row = |name: &str, cell| vec![Cell::Text(name.to_owned()), cell];
        let by_time = file.by_time_rows.map_or_else(|| Cell::Measure("not there".to_owned()), Cell::Number);
        let rows = vec![
            row("size", Cell::Measure(bytes(file.file_bytes))),
            row("of that, used", Cell::Measure(bytes(file.used_bytes))),
            row("rows of documents", Cell::Number(file.documents)),
            row("rows of history", Cell::Number(file.history_rows)),
            row("rows of by_time", by_time),
            row("rows of clients", Cell::Number(file.client_rows)),
            row("rows of dead_letters", Cell::Number(file.dead_letters)),
            row("made (UTC)", Cell::Measure(time(file.created_at_us))),
            row("storer", Cell::Measure(file.storer.to_string())),
        ];
        Table::new("The file", &["what", "how much"], rows).write(out, "");
        out.push_str("</div>\n");
    });
}
