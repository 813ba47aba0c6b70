//! Reading single values: sizes, durations, addresses, sets of partitions.

use fieldstream_processor::Ownership;
use fieldstream_shared::partition::{Partition, PartitionSet};
use fieldstream_storer::HistoryRule;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

const UNITS: [(&str, u64); 10] = [
    ("b", 1),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("", 1),
];

/// A number of bytes: `64MiB`, `1.5 GiB`, `10MB`, `4096`.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let wrong = || "expected a size such as 64MiB".to_owned();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = unit.trim().to_ascii_lowercase();
    let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(*factor).ok_or_else(|| "the size is too large".to_owned());
    }
    let fraction: f64 = number.parse().map_err(|_| wrong())?;
    let bytes = fraction * *factor as f64;
    // Above 2^63 a float cannot tell whether it still fits.
    if bytes.is_finite() && (0.0..9.2e18).contains(&bytes) { Ok(bytes as u64) } else { Err(wrong()) }
}

/// A duration: `30s`, `1m 30s`, `250ms`. A number needs its unit.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "expected a duration such as 30s or 250ms".to_owned())
}

/// Rules for history, separated by commas: a prefix, and an age or a size or both.
pub(crate) fn history_rules(text: &str) -> Result<Vec<HistoryRule>, String> {
    let wrong =
        |part: &str| format!("expected `PREFIX AGE SIZE` such as `site7/ 90days 2GiB`, found `{}`", part.trim());
    let mut rules: Vec<HistoryRule> = Vec::new();
    for part in text.split(',').filter(|_| !text.trim().is_empty()) {
        let mut words = part.split_whitespace();
        let prefix = words.next().ok_or_else(|| wrong(part))?.to_owned();
        let (mut age_max, mut bytes_max) = (None, None);
        for word in words {
            match (duration(word), size(word)) {
                (Ok(age), _) if age_max.is_none() => age_max = Some(age),
                (_, Ok(bytes)) if bytes_max.is_none() => bytes_max = Some(bytes),
                _ => return Err(wrong(part)),
            }
        }
        if age_max.is_none() && bytes_max.is_none() {
            return Err(wrong(part));
        }
        if rules.iter().any(|rule| rule.prefix == prefix) {
            return Err(format!("`{prefix}` has two rules"));
        }
        rules.push(HistoryRule { prefix, age_max, bytes_max });
    }
    Ok(rules)
}

/// A socket address; a host name is looked up.
pub(crate) fn address(text: &str) -> Result<SocketAddr, String> {
    let wrong = || "expected an address such as 127.0.0.1:7443 or [::1]:7443".to_owned();
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    port.parse::<u16>().map_err(|_| wrong())?;
    if host.is_empty() || host.contains(':') {
        return Err(wrong());
    }
    let mut found = text.to_socket_addrs().map_err(|error| format!("cannot look up the host {host}: {error}"))?;
    found.next().ok_or_else(|| format!("the host {host} has no address"))
}

/// An address, or `off`.
pub(crate) fn optional_address(text: &str) -> Result<Option<SocketAddr>, String> {
    if text == "off" { Ok(None) } else { address(text).map(Some).map_err(|e| format!("{e}, or off")) }
}

/// A file's permission bits, in octal.
pub(crate) fn file_mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text.trim_start_matches("0o"), 8) {
        Ok(mode) if mode <= 0o777 && !text.is_empty() => Ok(mode),
        _ => Err("expected permission bits in octal such as 0664".to_owned()),
    }
}

/// Who owns what: `shared`, or fixed partitions.
pub(crate) fn ownership(text: &str) -> Result<Ownership, String> {
    if text == "shared" { Ok(Ownership::Shared) } else { partitions(text).map(Ownership::Fixed) }
}

/// Partitions: `all`, or numbers and ranges such as `0-127,200`.
pub(crate) fn partitions(text: &str) -> Result<PartitionSet, String> {
    if text == "all" {
        return Ok(PartitionSet::ALL);
    }
    let wrong = || "expected partitions such as 0-127,200, each 0 to 255, or all, or shared".to_owned();
    let mut set = PartitionSet::EMPTY;
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<u8>().map_err(|_| wrong());
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(wrong());
        }
        (first..=last).for_each(|p| set.insert(Partition(p)));
    }
    Ok(set)
}

/// A URL of a NATS server; empty for none.
pub(crate) fn nats_url(text: &str) -> Result<Option<String>, String> {
    let known = ["nats://", "tls://", "ws://", "wss://"].iter().any(|scheme| text.starts_with(scheme));
    match text {
        "" => Ok(None),
        _ if known && text.len() > 8 => Ok(Some(text.to_owned())),
        _ => Err("expected a URL such as nats://127.0.0.1:4222".to_owned()),
    }
}

/// The word that is meant by a misspelt one: the most similar, if it is similar at all.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = (word.chars().count() / 3).max(2);
    known.into_iter().map(|k| (edit_distance(word, k), k)).filter(|(d, _)| *d <= allowed).min().map(|(_, k)| k)
}

/// Insertions, deletions, replacements and swaps of neighbours that turn one word into another.
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let mut best = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    best = best.min(rows[i - 2][j - 2] + 1);
                }
                best
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_both_kinds_of_units() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("64MiB", 64 << 20),
            ("64 mib", 64 << 20),
            ("1.5GiB", 3 << 29),
            ("10MB", 10_000_000),
            ("1TiB", 1 << 40),
            ("7b", 7),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "MiB", "64 MegaByte", "-1", "1e3", "99999999TiB", "1.2.3MiB", "64M"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("1m 30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for text in ["", "30", "s", "-1s", "soon"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn history_rules_have_a_prefix_and_an_age_or_a_size() {
        let rule = |prefix: &str, age: Option<u64>, bytes_max| HistoryRule {
            prefix: prefix.to_owned(),
            age_max: age.map(Duration::from_secs),
            bytes_max,
        };
        assert_eq!(history_rules(" "), Ok(vec![]));
        let rules = vec![rule("site7/", Some(90 * 86_400), Some(2 << 30)), rule("tmp/", Some(3600), None)];
        assert_eq!(history_rules("site7/ 90days 2GiB, tmp/ 1h"), Ok(rules));
        assert_eq!(history_rules("a 1GiB"), Ok(vec![rule("a", None, Some(1 << 30))]));
        for text in ["a", "a 1h 2h", "a 1h 1GiB 2", "a soon", ",", "a 1h,", "a 1h, a 2h"] {
            assert!(history_rules(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_have_a_host_and_a_port() {
        assert_eq!(address("127.0.0.1:0").unwrap().port(), 0);
        assert!(address("[::1]:7443").unwrap().is_ipv6());
        assert!(address("localhost:7443").unwrap().ip().is_loopback());
        for text in ["", "7443", ":7443", "127.0.0.1", "127.0.0.1:70000", "::1:7443"] {
            assert!(address(text).is_err(), "{text}");
        }
        assert_eq!(optional_address("off"), Ok(None));
    }

    #[test]
    fn partitions_are_numbers_and_ranges() {
        assert_eq!(partitions("all").unwrap().len(), 256);
        let set = partitions("0-2,200, 255").unwrap();
        assert_eq!(set.iter().map(|p| p.0).collect::<Vec<_>>(), [0, 1, 2, 200, 255]);
        for text in ["", "256", "3-1", "a", "1,,2", "-3"] {
            assert!(partitions(text).is_err(), "{text}");
        }
    }

    #[test]
    fn modes_are_octal() {
        assert_eq!(file_mode("0664"), Ok(0o664));
        assert_eq!(file_mode("640"), Ok(0o640));
        assert!(file_mode("0999").is_err() && file_mode("").is_err() && file_mode("7777").is_err());
    }

    #[test]
    fn misspelt_words_find_the_one_that_was_meant() {
        let known = ["listen", "tcp", "stored_copies"];
        assert_eq!(nearest("lisen", known), Some("listen"));
        assert_eq!(nearest("litsen", known), Some("listen"));
        assert_eq!(nearest("store_copies", known), Some("stored_copies"));
        assert_eq!(nearest("colour", known), None);
    }
}
