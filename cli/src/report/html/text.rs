//! Words and numbers of the page.

use crate::client::render;
pub(super) use crate::svg::grouped as count;
use std::borrow::Cow;

/// Text as it may stand between tags and in attributes. Control characters, which HTML has no way to
/// write, become U+FFFD.
pub(super) fn escaped(text: &str) -> Cow<'_, str> {
    if !text.chars().any(|c| matches!(c, '&' | '<' | '>' | '"' | '\'') || c.is_control()) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(' '),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// A number with its noun, `1 text`, `2 texts`.
pub(super) fn many(number: u64, noun: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{} {noun}{ending}", count(number))
}

/// Bytes for people.
pub(super) fn bytes(number: u64) -> String {
    if number == 1 { "1 byte".to_owned() } else { crate::up::addresses::bytes(number) }
}

/// A time to the second, UTC, as `2026-01-31 12:00:00`.
pub(super) fn time(time_us: u64) -> String {
    let full = render::time(time_us);
    let seconds = full.get(..19).unwrap_or(&full);
    seconds.replace('T', " ")
}

/// A time to the minute, UTC, as `2026-01-31 12:00`.
pub(super) fn minute(time_us: u64) -> String {
    let mut full = time(time_us);
    full.truncate("2026-01-31 12:00".len());
    full
}

/// The day of a time, UTC, as `2026-01-31`.
pub(super) fn day(time_us: u64) -> String {
    let mut full = time(time_us);
    full.truncate("2026-01-31".len());
    full
}

/// A time as an element that programs understand, too.
pub(super) fn time_element(time_us: u64) -> String {
    format!("<time datetime=\"{}\">{}</time>", render::time(time_us), time(time_us))
}

/// Seconds with as many digits as matter, `0.4 s`, `12 s`, `3 h 5 min`.
pub(super) fn duration(us: u64) -> String {
    let s = us / 1_000_000;
    let (minutes, hours, days) = (s / 60, s / 3_600, s / 86_400);
    match s {
        0..10 => format!("{:.1} s", us as f64 / 1e6),
        10..60 => format!("{s} s"),
        60..3_600 => format!("{minutes} min {} s", s % 60),
        3_600..86_400 => format!("{hours} h {} min", minutes % 60),
        _ if days < 100 => format!("{days} d {} h", hours % 24),
        _ => format!("{} d", count(days)),
    }
}

/// A step of time in words, `minute`, `5 minutes`.
pub(super) fn step(step_s: u64) -> String {
    let units = [("week", 604_800), ("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1)];
    let unit = units.into_iter().find(|(_, unit_s)| step_s.is_multiple_of(*unit_s));
    let (name, unit_s) = unit.unwrap_or(("second", 1));
    match step_s / unit_s {
        1 => name.to_owned(),
        n => format!("{} {name}s", count(n)),
    }
}

/// A text cut to so many characters.
pub(super) fn cut(text: &str, chars_max: usize) -> Cow<'_, str> {
    match text.char_indices().nth(chars_max) {
        Some((end, _)) => Cow::Owned(format!("{}…", text.get(..end).unwrap_or_default())),
        None => Cow::Borrowed(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_text_is_taken_for_html() {
        assert_eq!(
            escaped("<script>alert('a' & \"b\")</script>"),
            "&lt;script&gt;alert(&#39;a&#39; &amp; &quot;b&quot;)&lt;/script&gt;"
        );
        assert_eq!(escaped("a\u{0}b\u{1b}\nc"), "a\u{fffd}b\u{fffd} c");
        assert!(matches!(escaped("site7/é"), Cow::Borrowed("site7/é")));
    }

    #[test]
    fn numbers_times_and_durations_are_for_people() {
        assert_eq!([0, 7, 1_000, 1_234_567].map(count), ["0", "7", "1,000", "1,234,567"]);
        assert_eq!([bytes(1), bytes(2), bytes(3 << 20)], ["1 byte", "2 bytes", "3.0 MiB"]);
        assert_eq!([many(1, "text"), many(2_000, "text")], ["1 text", "2,000 texts"]);
        assert_eq!(time(1_790_000_000_000_000), "2026-09-21 14:13:20");
        assert_eq!([minute(1_790_000_000_000_000), day(0)], ["2026-09-21 14:13", "1970-01-01"]);
        assert_eq!(time(u64::MAX), "9999-12-31 23:59:59");
        let s = 1_000_000;
        let said = [400_000, 12 * s, 61 * s, 3_720 * s, 90_000 * s, 40_000_000 * s].map(duration);
        assert_eq!(said, ["0.4 s", "12 s", "1 min 1 s", "1 h 2 min", "1 d 1 h", "462 d"]);
        assert_eq!(
            [60, 300, 3_600, 21_600, 86_400, 2_419_200, 61].map(step),
            ["minute", "5 minutes", "hour", "6 hours", "day", "4 weeks", "61 seconds"]
        );
        assert_eq!([cut("äbc", 3), cut("äbcd", 3)], ["äbc", "äbc…"]);
    }
}
