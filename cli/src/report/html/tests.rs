//! Pages of facts that were thought up, and whether they are HTML.

use super::page::page;
use fieldstream_shared::code::Code;
use fieldstream_storer::report::facts::{
    Activity, Busy, Facts, Largest, LastDeadLetter, LongHistory, Series, Silent, SizeClass,
};
use fieldstream_storer::report::{AsOf, LaneAsOf};

const NOW_US: u64 = 1_790_000_000_000_000;

/// Checks that every tag is closed in order, that attributes are quoted, and gives back how many elements
/// there are of a name.
fn elements(html: &str, name: &str) -> usize {
    const VOID: [&str; 1] = ["meta"];
    let (mut open, mut found) = (Vec::new(), 0);
    let (head, rest) = html.split_once("<style>").unwrap();
    let (style, rest) = rest.split_once("</style>").unwrap();
    assert!(!style.contains('<'));
    let html = format!("{head}{rest}");
    let mut parts = html.strip_prefix("<!DOCTYPE html>").unwrap().split('<');
    assert!(!parts.next().unwrap().contains('>'));
    for part in parts {
        let (tag, text) = part.split_once('>').unwrap_or_else(|| panic!("no end of <{part}"));
        assert!(!text.contains('>'), "{text:?}");
        if let Some(closed) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(closed), "at {text:?}");
            continue;
        }
        let (tag, is_closed) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
        let (element, attributes) = tag.split_once(' ').unwrap_or((tag, ""));
        assert!(element.chars().all(|c| c.is_ascii_alphanumeric()), "{element:?}");
        assert!(attributes.matches('"').count().is_multiple_of(2), "{attributes:?}");
        found += usize::from(element == name);
        if !is_closed && !VOID.contains(&element) {
            open.push(element);
        }
    }
    assert!(open.is_empty(), "{open:?}");
    found
}

fn empty() -> Facts {
    let lane = LaneAsOf { lane: 0, events_sequence: 0, committed_at_us: NOW_US - 1_500_000 };
    let mut facts = Facts { as_of: AsOf { lanes: vec![lane] }, read_at_us: NOW_US, ..Facts::default() };
    facts.file.by_time_rows = Some(0);
    facts
}

fn busy(id: &str, changes: u64) -> Busy {
    Busy { id: id.into(), changes, last_us: NOW_US }
}

/// Facts with something everywhere, and a name in every place that has one.
fn full(name: &str) -> Facts {
    let mut facts = empty();
    let second = LaneAsOf { lane: 1, events_sequence: 1_234, committed_at_us: NOW_US - 400_000 };
    facts.as_of.lanes.push(second);
    facts.documents.texts = 1;
    facts.documents.sizes = vec![
        SizeClass { upto_bytes: 64, texts: 1, structured: 0 },
        SizeClass { upto_bytes: u64::MAX, texts: 0, structured: 0 },
    ];
    facts.documents.silent = vec![Silent { document: name.into(), last_change_us: 5, revision: 1 }];
    facts.documents.largest = vec![Largest { document: name.into(), body_bytes: 3, revision: 1 }];
    facts.changes.counted = 7;
    facts.changes.bounds_us = Some((NOW_US, NOW_US + 240_000_000));
    let series = |prefix: Option<&str>, changes| Series { prefix: prefix.map(str::to_owned), changes };
    facts.changes.activity = Activity {
        step_s: 60,
        first_us: NOW_US,
        series: vec![series(Some(name), vec![4, 0, 0, 0, 2]), series(None, vec![1, 0, 0, 0, 0])],
        prefixes: Some(12),
    };
    facts.changes.busiest = vec![busy(name, 7)];
    facts.changes.clients = vec![busy(name, 6)];
    facts.changes.by_nobody_known = 1;
    facts.clients.refused = vec![(Code::CONFLICT, 3)];
    facts.dead_letters.by_code = vec![(Code(99), 1)];
    let origin = Some((name.to_owned(), name.to_owned()));
    let letter = LastDeadLetter { received_at_us: NOW_US, id: (0, 1, 2), code: Code(99), reason: name.into(), origin };
    facts.dead_letters.last = vec![letter];
    facts.histories.counted = 7;
    facts.histories.largest = vec![LongHistory { document: name.into(), rows: 7, bytes: 700 }];
    facts
}

#[test]
fn an_empty_file_has_a_page_that_says_so() {
    let page = page(&empty(), "/var/lib/storer/db");
    assert_eq!(elements(&page, "section"), 6);
    assert_eq!((elements(&page, "svg"), elements(&page, "h1")), (0, 1));
    for said in
        ["There are no changes in this file.", "There are no dead letters.", "1.5 s behind", "/var/lib/storer/db"]
    {
        assert!(page.contains(said), "{said}");
    }
}

#[test]
fn nothing_that_the_file_says_becomes_a_tag_or_an_attribute() {
    let name = "a\"><script>alert('1')</script>&amp;\u{202e}é";
    let page = page(&full(name), name);
    assert_eq!((elements(&page, "script"), elements(&page, "svg")), (0, 2));
    assert!(!page.contains("<script") && !page.contains("alert('"));
    let escaped = "a&quot;&gt;&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&amp;amp;\u{202e}é";
    // Everywhere a name stands: title, two texts about the source, legend, tables, tooltips.
    assert!(page.matches(escaped).count() >= 14, "{}", page.matches(escaped).count());
    let isolated = page.matches(&format!("<bdi>{escaped}</bdi>")).count();
    assert!(isolated >= 10, "{isolated}");
}

#[test]
fn the_page_needs_nothing_from_elsewhere_and_is_always_the_same() {
    let page = page(&full("site7/"), "db");
    assert_eq!(page, super::page::page(&full("site7/"), "db"));
    for foreign in ["http:", "https:", "src=", "url(", "@import", "<link"] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    for needed in
        ["default-src 'none'", "prefers-color-scheme: dark", "@media print", "width=device-width", "lang=\"en\""]
    {
        assert!(page.contains(needed), "{needed}");
    }
    assert_eq!(elements(&page, "table"), elements(&page, "caption"));
}

#[test]
fn as_of_and_figures_are_told() {
    let mut facts = full("site7/");
    facts.changes.is_cut = true;
    facts.histories.is_cut = true;
    facts.changes.busiest_missed_max = 4;
    facts.file.by_time_rows = None;
    let page = page(&facts, "db");
    elements(&page, "p");
    for said in [
        "sequences 0, 1,234",
        "0.4 s behind",
        "The newest 7 changes were counted",
        "may be up to 4 too low",
        "no index by time",
        "were not added up",
        "The history of 1 change is gone",
        "2026-09-21 14:13: site7/ 4 of 5",
        "code 99",
        "of 12 there are",
    ] {
        assert!(page.contains(said), "{said}");
    }
    // Five steps, three of which are a gap: two columns, one of them of two series; one size.
    assert_eq!(page.matches("<rect ").count(), 4);
}

#[test]
fn many_prefixes_and_steps_have_few_labels_and_colours_of_their_own() {
    let mut facts = full("x");
    let series = |n: usize| Series { prefix: (n < 8).then(|| format!("p{n}/")), changes: vec![1; 120] };
    facts.changes.activity.series = (0..9).map(series).collect();
    for step_s in [60, 3_600, 86_400, 2_419_200] {
        facts.changes.activity.step_s = step_s;
        let page = page(&facts, "db");
        assert_eq!(page.matches("<rect ").count(), 9 * 120 + 1);
        for class in ["s0", "s7", "rest"] {
            assert!(page.matches(&format!("<span class=\"key {class}\">")).count() >= 2, "{class}");
        }
        let first = page.split("</svg>").next().unwrap();
        let labels = first.matches(&format!("y=\"{:.1}\" text-anchor=\"middle\"", 262.0)).count();
        assert!((3..=7).contains(&labels), "{labels}");
    }
}
